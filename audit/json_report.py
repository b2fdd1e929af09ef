"""The report as one JSON document, for programs (SPEC section 4). Texts are whole, with passwords masked."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

from audit.findings import Audit, Finding
from audit.policy import UTC, Run
from audit.printable import mask
from audit.report import RUNS_SHOWN


def as_json(audit: Audit, version: str, detailed: bool = False) -> str:
    """The report; with `detailed` also the last runs of each container, newest first."""
    head = {
        "version": version,
        "now": iso(audit.now),
        "database": audit.database,
        "containers": {status.value: count for status, count in audit.counts().items()},
        "rows_ignored": audit.ignored.counts,
    }
    containers = [_container(finding, detailed) for finding in audit.findings]
    return json.dumps({"audit": head, "containers": containers}, indent=2)


def iso(moment: datetime | None) -> str | None:
    """A moment as ISO 8601 in UTC, ending in `Z`; None stays None."""
    return None if moment is None else moment.astimezone(UTC).replace(tzinfo=None).isoformat() + "Z"


def _container(finding: Finding, detailed: bool) -> dict[str, Any]:
    container, verdict = finding.container, finding.verdict
    document: dict[str, Any] = {
        "name": container.name,
        "c_id": container.c_id,
        "policy": mask(verdict.policy),
        "engine": container.engine,
        "state": container.state,
        "owner": container.owner,
        "contact": container.contact,
        "status": verdict.status.value,
        "severity": verdict.severity,
        "status_yesterday": finding.yesterday.status.value if finding.yesterday else None,
        "exception": _exception(finding),
        "note": mask("; ".join(finding.notes)) or None,
        "reason": mask(verdict.reason),
        "due": iso(verdict.due),
        "last_success": _run(verdict.last_success, finding),
        "last_run": _run(verdict.last_run, finding),
    }
    if detailed:
        document["runs"] = [_run(run, finding) for run in finding.runs[:RUNS_SHOWN]]
    return document


def _exception(finding: Finding) -> dict[str, str] | None:
    """The exception in force; one that has ended is as if it had never been."""
    known = finding.known_problem
    if known is None or not finding.accepted:
        return None
    return {"until": known.until.isoformat(), "reason": mask(known.reason)}


def _run(run: Run | None, finding: Finding) -> dict[str, Any] | None:
    if run is None:
        return None
    verdict = finding.verdict
    return {
        "backup_id": mask(run.backup_id),
        "type": mask(run.type),
        "started": iso(run.started),
        "ended": iso(run.ended),
        "duration_seconds": run.duration.total_seconds() if run.duration is not None else None,
        "outcome": run.outcome(verdict.now, verdict.rules.max_runtime).value,
        "error": mask(run.error) if run.error is not None else None,
        "message": mask("\n".join(run.messages)) or None,
    }
