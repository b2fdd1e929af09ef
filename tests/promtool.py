"""Tests of the rules in monitoring/ on small sites, run with promtool: what an expression returns after 15 minutes."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from audit.policy import Status
from tests.builders import TOP
from tests.programs import require

MONITORING = TOP / "monitoring"
RUNBOOK = (MONITORING / "README.md").read_text("utf-8")
RUNBOOK_URL = "https://runbook.example.org/README.md"
ANCHORS = {
    re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
    for heading in re.findall(r"^#+ +(.+)$", RUNBOOK, re.MULTILINE)
}
"""Those that GitHub, GitLab and others give to the headings of the runbook."""
HOST = {"job": "node", "instance": "audit1:9100"}
DAY = 86400
OLD = 26 * 3600 + 1
"""The age in seconds at which an audit is no longer current."""

Labels = dict[str, str]
Series = dict[str, str]
Case = dict[str, Any]


def output_of(*command: str | Path) -> str:
    """The output of a command that must succeed, run in monitoring/."""
    answer = subprocess.run(
        command, cwd=MONITORING, capture_output=True, text=True, encoding="utf-8", check=False, timeout=120
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return answer.stdout


def promtool(*arguments: str | Path) -> str:
    return output_of(require("promtool", "prometheus"), *arguments)


def written(labels: Labels) -> str:
    return "{" + ", ".join(f"{name}={json.dumps(value)}" for name, value in labels.items()) + "}"


def input_series(labels: Labels, **values: float | str) -> list[Series]:
    """A series of each metric, with the same value all the time, or with the values that the text says."""
    return [
        {"series": f"mydb_backup_{name}{written(labels)}", "values": f"{v}x1" if not isinstance(v, str) else v}
        for name, v in values.items()
    ]


def audit_series(
    of: Labels, containers: int, age: float = 0, run_age: float = 0, success: int = 1, silent: float = 3600
) -> list[Series]:
    """An audit with the ages of its stamps in seconds, `silent` seconds after its last log row; two are ignored."""
    return [
        *input_series(of, audit_timestamp_seconds=-age, audit_run_timestamp_seconds=-run_age, audit_success=success),
        *input_series(of, log_newest_timestamp_seconds=-age - silent, audit_clock_skew_seconds=7),
        *(one for why in ("malformed", "undated") for one in input_series(of | {"reason": why}, log_rows_ignored=1)),
        *input_series(of | {"version": "3"}, audit_info=1),
        *input_series(of | {"status": "ok"}, containers=containers),
    ]


def container_series(
    key: Labels, status: str, owner: str = "bo", engine: str = "Postgres", **values: float | str
) -> list[Series]:
    """The three series that every container has, and further ones."""
    return [
        *input_series(key | {"engine": engine, "policy": "Daily", "owner": owner}, container_info=1),
        *input_series(key | {"status": status}, status=1),
        *input_series(key, severity=Status(status).severity, **values),
    ]


def expect(expr: str, *samples: tuple[Labels, float]) -> Case:
    found = [{"labels": written(labels), "value": value} for labels, value in samples]
    return {"expr": expr, "eval_time": "15m", "exp_samples": found}


def check(folder: Path, *sites: tuple[Sequence[Series], Sequence[Case]], step: str = "15m") -> None:
    """Check what is expected of each site, by the rules of alerts.yml, which are evaluated at each step."""
    tests = [
        {
            "interval": step,
            "input_series": inputs,
            "promql_expr_test": [case for case in cases if "expr" in case],
            "alert_rule_test": [case for case in cases if "alertname" in case],
        }
        for inputs, cases in sites
    ]
    rules = {
        "rule_files": [str(MONITORING / "alerts.yml")],
        "group_eval_order": ["backup_audit", "backup_audit_dashboard"],  # the latter uses series of the former
        "evaluation_interval": step,
        "tests": tests,
    }
    file = folder / "made_test.yml"
    file.write_text(yaml.safe_dump(rules), "utf-8")
    promtool("test", "rules", file)
