"""The report as JSON: exactly the document that programs were promised."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from audit import text
from audit.auditor import Finding
from audit.policy import DAY, UTC, Container, Rules, Status, judge
from audit.reports.document import render
from tests import findings
from tests.builders import NOW
from tests.findings import ENDED, FROZEN, audit_of, failed, finding, missed, unsure
from tests.runs import ERROR, FINE, RULES, bad, run, unfinished

CONTAINER_KEYS = [
    "name", "c_id", "policy", "engine", "state", "owner", "contact", "status", "severity", "status_yesterday",
    "exception", "note", "reason", "due", "kept_until", "failures_in_a_row", "last_success", "last_run",
]  # fmt: skip
RUN_KEYS = ["backup_id", "type", "started", "ended", "duration_seconds", "outcome", "error", "message", "url"]


def only(one: Finding, detailed: bool = False, rules: Rules = RULES) -> dict[str, Any]:
    """The container's part of the document on a site of this container."""
    containers: list[dict[str, Any]] = json.loads(render(audit_of(one, rules=rules), "1.2.3", detailed))["containers"]
    return containers[0]


def test_the_document_has_its_keys_in_their_order() -> None:
    found = findings.of_every_status()
    ignored = findings.ignored(future=[1], malformed=[2, 3], undated=[4, 5, 6])
    written = render(audit_of(*found, ignored=ignored), "1.2.3")
    assert written.startswith('{\n  "audit": {\n    "version"'), "people look at it, too"
    report = json.loads(written)
    assert [*report, *report["audit"].items()] == [
        "audit", "containers", ("version", "1.2.3"), ("now", "2026-03-14T07:00:00Z"),
        ("database", "mydbadmin@db.example.org:32009/mydb_admin"),
        ("containers", dict.fromkeys([status.value for status in Status], 1)),
        ("rows_ignored", {"future": 1, "malformed": 2, "undated": 3}),
    ]  # fmt: skip
    for one, original in zip(report["containers"], found, strict=True):
        assert list(one) == CONTAINER_KEYS
        assert one["reason"] == text.reason(original.verdict, UTC)
        assert one["severity"] == Status(one["status"]).severity
        assert all(list(shown) == RUN_KEYS for shown in (one["last_success"], one["last_run"]) if shown)


def test_the_values_of_a_container() -> None:
    rules = Rules(dumps_kept=30 * DAY)
    runs = run("12 18:07"), unfinished("13 18:07"), bad("14 02:00:00.000005")
    one = only(finding("sales", *runs, backup_freq=" daily ", more={"exception": FROZEN}, rules=rules), rules=rules)
    assert one.pop("reason").startswith("the run of 2026-03-14 02:00 UTC (5 h ago) failed: pg_dump: error: query")
    assert list(one.pop("last_success").values()) == [
        "20260312-18:07:00", "Daily", "2026-03-12T18:07:00Z", "2026-03-12T18:30:00Z", 1380,
        "succeeded", None, FINE, "s3://site-backups/prod/2026-03-12",
    ]  # fmt: skip
    last = one.pop("last_run")
    assert (last["started"], last["outcome"]) == ("2026-03-14T02:00:00.000005Z", "failed")
    assert last["error"] == last["message"] == ERROR
    assert list(one.values()) == [
        "sales", 7, "Daily", "Postgres", "running", "ada", "ada@example.org", "failed", 2, "ok",
        {"until": "2026-12-31", "reason": "frozen for the paper, ticket 4711"},
        None, "2026-03-13T18:07:00Z", "2026-04-11T18:07:00Z", 2,
    ]  # fmt: skip


def test_unknown_values_are_null() -> None:
    one = only(Finding(judge(Container(None, "lost", state=None, has_metadata=False), [], NOW, RULES)))
    known = {"name": "lost", "policy": "", "status": "no_policy", "severity": 2, "failures_in_a_row": 0}
    assert one == dict.fromkeys(CONTAINER_KEYS) | known | {"reason": one["reason"]}
    running = only(finding("sales", unfinished("14 06:50", message="")))["last_run"]
    assert [key for key in running if running[key] is None] == ["ended", "duration_seconds", "error", "message", "url"]


def test_a_deleted_container_has_no_status() -> None:
    gone = failed("gone", deleted=True)
    one = only(gone)
    assert (one["status"], one["severity"], one["status_yesterday"], one["due"]) == (None, 0, None, None)
    assert one["last_success"]["url"] == "s3://site-backups/prod/2026-03-12"
    assert set(json.loads(render(audit_of(gone), "1"))["audit"]["containers"].values()) == {0}


def test_an_ended_exception_is_none() -> None:
    assert only(missed(more={"exception": ENDED}))["exception"] is None


def test_a_suspicion_is_a_note() -> None:
    assert only(findings.quick())["note"] == "took 2 s, typically 31 min: check the dump"


def test_an_unrecognised_message_is_no_error() -> None:
    last = only(unsure())["last_run"]
    assert (last["outcome"], last["error"]) == ("succeeded", None)


def test_the_details_have_the_last_ten_runs_newest_first() -> None:
    one = only(finding("sales", *[run(f"{day:02} 18:07") for day in range(1, 13)]), detailed=True)
    assert list(one) == [*CONTAINER_KEYS, "runs"]
    assert [shown["started"][8:10] for shown in one["runs"]] == [f"{day:02}" for day in range(12, 2, -1)]
    assert one["runs"][0] == one["last_run"]


def test_texts_are_whole() -> None:
    error = f"pg_dump: error: {'e' * 5_000}"
    one = only(finding("n" * 500, replace(bad("14 02:00", error), message=f"{FINE}\n{error}\nmore")))
    assert (one["name"], one["last_run"]["message"]) == ("n" * 500, f"{FINE}\n{error}\nmore")
    assert one["last_run"]["error"] == error
    assert f"failed: {error}; no good backup" in one["reason"]
