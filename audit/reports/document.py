"""The report as one JSON document, for programs. Texts are whole, with passwords masked."""

from __future__ import annotations

import json
from typing import Any

from audit import text
from audit.auditor import Audit, Finding
from audit.policy import Run
from audit.text import iso


def render(audit: Audit, version: str, detailed: bool = False) -> str:
    """The report; with `detailed` also the last runs of each container, newest first."""
    head = {
        "version": version,
        "now": iso(audit.now),
        "database": audit.database,
        "containers": {status.value: number for status, number in audit.counts().items()},
        "rows_ignored": audit.ignored.counts,
    }
    containers = [_container(finding, audit, detailed) for finding in audit.findings]
    return json.dumps({"audit": head, "containers": containers}, indent=2)


def _container(finding: Finding, audit: Audit, detailed: bool) -> dict[str, Any]:
    container, verdict, is_judged = finding.container, finding.verdict, finding.status is not None
    document: dict[str, Any] = {
        "name": container.name,
        "c_id": container.c_id,
        "policy": _masked(verdict.policy),
        "engine": _masked(container.engine),
        "state": _masked(container.state),
        "owner": _masked(container.owner),
        "contact": _masked(container.contact),
        "status": finding.status.value if finding.status else None,
        "severity": finding.severity,
        "status_yesterday": finding.yesterday.value if finding.yesterday and is_judged else None,
        "exception": _exception(finding),
        "note": text.suspicion(verdict) or None,
        "reason": text.reason(verdict, audit.rules.zone),
        "due": iso(verdict.due) if is_judged else None,
        "kept_until": iso(verdict.kept_until),
        "failures_in_a_row": verdict.failures,
        "last_success": _run(verdict.last_success, finding),
        "last_run": _run(verdict.last_run, finding),
    }
    if detailed:
        document["runs"] = [_run(run, finding) for run in finding.runs[: text.RUNS_SHOWN]]
    return document


def _exception(finding: Finding) -> dict[str, str] | None:
    """The exception in force; one that has ended is as if it had never been."""
    accepted = finding.exception
    if accepted is None or not finding.is_accepted:
        return None
    return {"until": accepted.until.isoformat(), "reason": text.mask(accepted.reason)}


def _run(run: Run | None, finding: Finding) -> dict[str, Any] | None:
    if run is None:
        return None
    return {
        "backup_id": _masked(run.backup_id),
        "type": _masked(run.type),
        "started": iso(run.started),
        "ended": iso(run.ended),
        "duration_seconds": run.duration.total_seconds() if run.duration is not None else None,
        "outcome": finding.verdict.outcome(run).value,
        "error": _masked(run.said.line) if run.failed else None,
        "message": _masked(run.message) or None,
        "url": _masked(run.url) or None,
    }


def _masked(value: str | None) -> str | None:
    return None if value is None else text.mask(value)
