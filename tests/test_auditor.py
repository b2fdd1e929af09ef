"""Which part of the log an audit reads, where that part begins and ends, and who is audited as of when."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import pytest

from audit.policy import DAY, HOUR
from tests.builders import NOW, Site

ERROR = "pg_dump: error: query failed: ERROR:  permission denied for table visits"
LOCAL_NOW = NOW.replace(tzinfo=None)


def ago(hours: float) -> datetime:
    """A local time of the log."""
    return LOCAL_NOW - hours * HOUR


def audited(site: Site, at: str = NOW.isoformat(), **config: Any) -> dict[str, Any]:
    """The report as JSON."""
    site.config(**config)
    result = site.audit("--json", "--at", at)
    assert result.err == ""
    report: dict[str, Any] = json.loads(result.out)
    return report


def found(site: Site, at: str = NOW.isoformat(), **config: Any) -> dict[str, tuple[str, str | None]]:
    """From name to status and the status of yesterday."""
    containers = audited(site, at, **config)["containers"]
    return {one["name"]: (one["status"], one["status_yesterday"]) for one in containers}


# --- The days read -------------------------------------------------------------------------------------

LONG = 7 * 24 + 24 + 6  # hours of the longest promise by default


@pytest.mark.parametrize(
    ("config", "hours"),
    [
        ({"history_days": 0, "policies": {"Often": 2}, "window_hours": 2}, 10 * 24 + 24),  # the least
        ({"history_days": 0, "max_runtime_hours": 72}, 10 * 24 + 72),
        ({"history_days": 0, "policies": {"Monthly": 744}}, 744 + 6 + 24 + 24),
        ({"history_days": 0, "window_hours": 300, "grace_hours": 48}, 7 * 24 + 300 + 48 + 24 + 24),
        ({"history_days": 2}, LONG + 2 * 24 + 24),
        ({}, LONG + 30 * 24 + 24),
    ],
)
def test_the_days_read_are_those_of_the_longest_promise_and_the_history(
    sqlite_site: Site, config: dict[str, Any], hours: float
) -> None:
    c_id = sqlite_site.container()
    for number in (hours, hours + 24):  # what is malformed is counted where it is read
        sqlite_site.row(c_id=c_id, state="upload", backup_id="x", ts=ago(number))
    assert audited(sqlite_site, **config)["audit"]["rows_ignored"]["malformed"] == 1


def test_of_two_start_rows_the_earlier_counts(any_site: Site) -> None:
    for hours in (24, 27.5, 30, 100, 240):
        for error in ("", ERROR):
            c_id = any_site.container(f"{hours}{error[:7]}")
            any_site.row(c_id=c_id, state="start", backup_id="x", ts=ago(hours), err_msg=error)
            any_site.run(c_id, ago(13), ago(12), backup_id="x")
    statuses = {name: status for name, (status, _) in found(any_site).items()}
    expected = {"24": "late", "27.5": "late", "30": "missed", "100": "missed", "240": "missed"}
    assert statuses == expected | {f"{hours}pg_dump": "failed" for hours in expected}


def test_an_end_whose_start_was_not_read_belongs_to_an_old_run(any_site: Site) -> None:
    for name, error in (("missed", ""), ("failed", ERROR)):
        c_id = any_site.container(name, "Weekly")
        any_site.run(c_id, ago(5000), ago(40), error=error, error_at_start=True)
    assert [status for status, _ in found(any_site).values()] == ["missed", "failed"]


@pytest.mark.parametrize("age", range(240, 272))
def test_a_run_at_the_edge_of_the_days_read_is_complete(sqlite_site: Site, age: int) -> None:
    whole, failed, end_only = (sqlite_site.container(name) for name in ("whole", "failed", "end only"))
    for c_id in (whole, failed):
        sqlite_site.run(c_id, ago(age), ago(age - 5))
    sqlite_site.row(c_id=failed, state="start", backup_id=f"{ago(age):%Y%m%d-%H:%M:%S}", ts=ago(age + 6), err_msg=ERROR)
    sqlite_site.run(end_only, ago(500), ago(499), error=ERROR)
    sqlite_site.row(c_id=end_only, state="end", backup_id="x", ts=ago(age))
    report = audited(sqlite_site, history_days=0)["containers"]
    assert [one["status"] for one in report] == ["missed", "failed", "missed"]
    assert [one["last_success"] and one["last_success"]["duration_seconds"] for one in report] == [5 * 3600, None, None]


def test_yesterday_needs_the_whole_log_if_the_first_good_backup_is_from_today(any_site: Site) -> None:
    old: dict[str, dict[str, Any] | None] = {
        "missed": {"ended": ago(5000)},
        "failed": {"ended": ago(5000), "error": ERROR},
        "stalled": {"ended": None},
        "never": None,
    }
    for name, run in old.items():
        c_id = any_site.container(name)
        if run:
            any_site.run(c_id, ago(5001), **run)
        any_site.run(c_id, ago(20), ago(19))
    any_site.run(any_site.container("forgotten"), ago(5001), ago(5000))
    expected = {name: ("ok", "missed" if name == "never" else name) for name in old}
    assert found(any_site) == expected | {"forgotten": ("missed", "missed")}


def test_ids_say_nothing_about_time(any_site: Site) -> None:
    restored, neighbour = any_site.container("restored"), any_site.container("neighbour")
    for number, (c_id, hours, error) in enumerate(
        [(restored, 10, ERROR), (neighbour, 13, ""), (restored, 13, ""), (neighbour, 5000, ERROR), (restored, 5000, "")]
    ):
        for half, state in enumerate(("start", "end")):
            row = {"id": 2 * number + half + 1, "backup_id": str(number), "err_msg": error * half}
            any_site.row(c_id=c_id, state=state, ts=ago(hours - half / 2), **row)
    any_site.row(id=2**31 - 1, c_id=neighbour, state="end", backup_id="x", ts=ago(9000))
    assert found(any_site) == {"restored": ("failed", "missed"), "neighbour": ("ok", "failed")}


def test_containers_without_rows(any_site: Site) -> None:
    expected = {"Daily": "missed", "Never": "exempt", " none": "exempt", "Dialy": "no_policy", "": "no_policy"}
    for policy in expected:
        any_site.container(f"'{policy}'", policy)
    assert found(any_site) == {f"'{policy}'": (status, status) for policy, status in expected.items()}


# --- As of when ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["Daily", "Never", None])
def test_a_container_exists_from_its_creation_or_its_first_run(any_site: Site, policy: str | None) -> None:
    old, restored, fresh, later = (
        any_site.container(name, policy, created=NOW + offset)
        for name, offset in (("old", -DAY), ("restored", HOUR), ("fresh", HOUR / 60 - DAY), ("later", HOUR / 60))
    )
    any_site.run(restored, ago(5001), ago(5000))
    any_site.run(later, ago(-0.5))
    statuses = found(any_site, allow_empty=True)
    assert {name for name, (_, yesterday) in statuses.items() if yesterday} == {"old", "restored"}
    assert set(statuses) == {"old", "restored", "fresh"}
    assert set(found(any_site, (NOW - DAY).isoformat())) == {"old", "restored"}
    assert old < fresh


@pytest.mark.parametrize(
    ("at", "started", "yesterday"),
    [
        # 24 hours before is 13:00 of the day before where clocks were set back, 11:00 where they were set forward
        ("2026-10-25T12:00+01:00", "2026-10-24 13:00:00", "running"),
        ("2026-10-25T12:00+01:00", "2026-10-24 13:00:01", "missed"),
        ("2026-03-29T12:00+02:00", "2026-03-28 11:00:00", "running"),
        ("2026-03-29T12:00+02:00", "2026-03-28 11:00:01", "missed"),
        # 02:30 for the second time, 24 hours after 03:30
        ("2026-10-25T02:30+01:00", "2026-10-24 03:30:00", "running"),
        ("2026-10-25T02:30+01:00", "2026-10-24 03:30:01", "missed"),
        # 24 hours after 02:30 for the second time: rows of the hour are taken for their first occurrence
        ("2026-10-26T02:30+01:00", "2026-10-25 02:59:59", "running"),
        ("2026-10-26T02:30+01:00", "2026-10-25 03:00:00", "missed"),
    ],
)
def test_yesterday_is_24_hours_ago_where_clocks_change(
    sqlite_site: Site, at: str, started: str, yesterday: str
) -> None:
    sqlite_site.run(sqlite_site.container(), started)
    assert found(sqlite_site, at, db_timezone="Europe/Berlin")["sales"][1] == yesterday
    then = (datetime.fromisoformat(at) - DAY).isoformat()
    assert found(sqlite_site, then, db_timezone="Europe/Berlin")["sales"][0] == yesterday


def test_rows_of_a_repeated_hour_are_seen(sqlite_site: Site) -> None:
    sqlite_site.run(sqlite_site.container(), "2026-10-25 02:50", "2026-10-25 02:10")  # 00:50 to 01:10 UTC
    assert found(sqlite_site, "2026-10-25T00:09:59Z", db_timezone="Europe/Berlin")["sales"][0] == "missed"
    assert found(sqlite_site, "2026-10-25T01:15Z", db_timezone="Europe/Berlin")["sales"][0] == "ok"


def test_ignored_rows_are_counted_and_the_newest_three_named(any_site: Site) -> None:
    c_id, now = any_site.container(), any_site.clock().replace(tzinfo=None)
    sound = {"c_id": c_id, "state": "end", "backup_id": "x"}
    for row_id, row in enumerate(
        (
            {**sound, "ts": None},
            {**sound, "ts": None, "c_id": None, "state": None},
            {**sound, "ts": now - HOUR, "state": "upload"},
            {**sound, "ts": now - HOUR, "backup_id": ""},
            {**sound, "ts": now - HOUR, "backup_id": None, "c_id": 99},
            {**sound, "ts": now - HOUR, "state": None, "c_id": None},
            {**sound, "ts": now - 400 * DAY, "state": "upload"},  # older than what is read
            {**sound, "ts": now + 4 * HOUR / 60},
            {**sound, "ts": now + 6 * HOUR / 60},
            {**sound, "ts": now + 400 * DAY, "state": "upload"},
        ),
        start=1,
    ):
        any_site.row(id=row_id, **row)
    any_site.config()
    report = json.loads(any_site.audit("--json").out)
    assert report["audit"]["rows_ignored"] == {"future": 2, "malformed": 4, "undated": 2}
    assert report["containers"][0]["status"] == "ok"
    text = " ".join(any_site.audit("-v").out.split())
    assert [ids for ids in ("10, 9", "6, 5, 4", "2, 1") if ids not in text] == []
    assert audited(any_site, now.isoformat() + "Z")["audit"]["rows_ignored"] == {
        "future": 0,
        "malformed": 4,
        "undated": 2,
    }


# --- Exceptions ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["sales", 1])
def test_an_exception_holds_to_the_end_of_its_last_day(sqlite_site: Site, key: str | int) -> None:
    sqlite_site.container(c_id=1)
    sqlite_site.config(exceptions={key: ("2026-03-14", "frozen")}, db_timezone="Europe/Berlin")
    end = datetime.fromisoformat("2026-03-15T00:00+01:00")
    for now, accepted in ((end - HOUR / 10**6, True), (end, False)):
        result = sqlite_site.audit("--json", "--at", now.isoformat())
        [container] = json.loads(result.out)["containers"]
        expected = {"until": "2026-03-14", "reason": "frozen"} if accepted else None
        assert (result.status, container["exception"]) == (0 if accepted else 2, expected)
        week_later = sqlite_site.audit("--at", (now + 7 * DAY).isoformat())
        assert ("frozen" in week_later.out) is accepted, "for a week, the report says that it has ended"


def test_the_longer_of_two_exceptions_counts(sqlite_site: Site) -> None:
    c_id = sqlite_site.container()
    both = {"sales": ("2026-03-13", "short"), c_id: ("2026-03-14", "long"), "nobody": ("2026-03-14", "gone")}
    [container] = audited(sqlite_site, exceptions=both)["containers"]
    assert container["exception"]["reason"] == "long"
    assert "nobody" in sqlite_site.audit("-v", "--at", NOW.isoformat()).out
