"""The report as JSON: exactly the document of SPEC section 4."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest

from audit.findings import Audit, Finding
from audit.json_report import as_json
from audit.policy import Container, Status, judge
from tests import test_report as given
from tests.builders import NOW
from tests.test_printable import HOSTILE, PASSWORDS, SECRET

TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z"
CONTAINER_KEYS = [
    *("name", "c_id", "policy", "engine", "state", "owner", "contact", "status", "severity", "status_yesterday"),
    *("exception", "note", "reason", "due", "last_success", "last_run"),
]
RUN_KEYS = ["backup_id", "type", "started", "ended", "duration_seconds", "outcome", "error", "message"]


def parsed(audit: Audit, detailed: bool = False) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(as_json(audit, "1.2.3", detailed))
    return document


def only(one: Finding, detailed: bool = False) -> dict[str, Any]:
    """The container's part of the document on a site of this container."""
    containers: list[dict[str, Any]] = parsed(given.site(one), detailed)["containers"]
    return containers[0]


def test_the_document_has_the_keys_of_the_specification_in_their_order() -> None:
    findings = given.of_every_status()
    report = parsed(given.site(*findings, ignored=given.ignored(future=[1], malformed=[2, 3], undated=[4, 5, 6])))
    assert list(report) == ["audit", "containers"]
    assert report["audit"] == {
        "version": "1.2.3",
        "now": "2026-03-14T07:00:00Z",
        "database": "mydbadmin@db.example.org:32009/mydb_admin",
        "containers": dict.fromkeys([status.value for status in Status], 1),
        "rows_ignored": {"future": 1, "malformed": 2, "undated": 3},
    }
    assert list(report["audit"]) == ["version", "now", "database", "containers", "rows_ignored"]
    for one, result in zip(report["containers"], findings, strict=True):
        assert list(one) == CONTAINER_KEYS
        assert one["reason"] == result.verdict.reason
        assert one["severity"] == Status(one["status"]).severity
        assert one["due"] is None or re.fullmatch(TIME, one["due"])
        for shown in filter(None, (one["last_success"], one["last_run"])):
            assert list(shown) == RUN_KEYS
            assert re.fullmatch(TIME, shown["started"])


def test_the_values_of_a_container() -> None:
    more = {"notes": ("took 2 s", "its clock is wrong"), "known_problem": given.FROZEN}
    one = only(given.failed("sales", policy=" daily ", more=more))
    assert "permission denied" in one.pop("reason")
    assert one == json.loads(
        """{"name": "sales", "c_id": 7, "policy": "Daily", "engine": "Postgres", "state": "running",
            "owner": "ada", "contact": "ada@example.org", "status": "failed", "severity": 2, "status_yesterday": "ok",
            "exception": {"until": "2026-12-31", "reason": "frozen for the paper, ticket 4711"},
            "note": "took 2 s; its clock is wrong", "due": "2026-03-13T18:07:00Z",
            "last_success": {"backup_id": "20260312-18:07:00", "type": "Daily", "started": "2026-03-12T18:07:00Z",
                "ended": "2026-03-12T18:30:00Z", "duration_seconds": 1380, "outcome": "succeeded", "error": null,
                "message": "\\nExecuted Postgres dump_all commands:\\npg_dump --dbname sales --username pgdba  -F c"},
            "last_run": {"backup_id": "20260314-02:00:00", "type": "Daily", "started": "2026-03-14T02:00:00Z",
                "ended": "2026-03-14T02:23:00Z", "duration_seconds": 1380, "outcome": "failed",
                "error": "pg_dump: error: query failed: ERROR:  permission denied for table visits",
                "message": "pg_dump: error: query failed: ERROR:  permission denied for table visits"}}"""
    )


def test_unknown_values_are_null() -> None:
    lost = Finding(judge(Container(None, "lost", state=None, has_metadata=False), [], NOW, given.RULES))
    one = only(lost)
    assert (one["name"], one["policy"], one["status"]) == ("lost", "", "no_policy")
    unknowns = set(CONTAINER_KEYS) - {"name", "policy", "status", "severity", "reason"}
    assert {key: one[key] for key in unknowns} == dict.fromkeys(unknowns)
    running = only(given.finding("sales", given.run("14 06:50:00.000005", None, message="")))["last_run"]
    assert running["started"] == "2026-03-14T06:50:00.000005Z"
    assert [key for key, value in running.items() if value is None] == ["ended", "duration_seconds", "error", "message"]


def test_an_ended_exception_has_no_effect() -> None:
    assert only(given.missed(more={"known_problem": given.ENDED}))["exception"] is None


def test_the_details_have_the_last_ten_runs_newest_first() -> None:
    runs = [given.run(f"{day:02} 18:07") for day in range(1, 13)]
    one = only(given.finding("sales", *runs), detailed=True)
    assert list(one) == [*CONTAINER_KEYS, "runs"]
    assert [shown["started"][8:10] for shown in one["runs"]] == [f"{day:02}" for day in range(12, 2, -1)]
    assert one["runs"][0] == one["last_run"]
    assert only(given.ok(more={"runs": ()}), detailed=True)["runs"] == []


def test_texts_are_whole_and_all_messages_of_a_run_are_there() -> None:
    error, name = f"pg_dump: error: {'e' * 5_000}\n", "n" * 500
    spoilt = given.run("14 02:00", error=error)._replace(messages=(given.FINE, error))
    one = only(given.finding(name, spoilt))
    assert one["name"] == name
    assert one["last_run"]["error"] == error
    assert one["last_run"]["message"] == f"{given.FINE}\n{error}"
    assert one["reason"].endswith(error)


@pytest.mark.parametrize("bad", [*HOSTILE, *PASSWORDS], ids=ascii)
def test_the_document_is_harmless_and_without_passwords(bad: str) -> None:
    spoilt = given.run("13 18:07", message=bad, type=bad, backup_id=bad)
    more = {"notes": (bad,), "known_problem": replace(given.FROZEN, reason=bad)}
    findings = (
        given.finding("sales", spoilt, more=more),
        given.failed(error=f"pg_dump: error: {bad}"),
        given.unknown(policy=bad),
    )
    document = as_json(given.site(*findings), "1", detailed=True)
    assert document.replace("\n", "").isprintable()
    assert json.loads(document)["containers"][1]["last_run"]["error"].startswith("pg_dump: error: ")
    assert SECRET not in document
