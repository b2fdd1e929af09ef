"""Which part of the log an audit reads, where that part begins and ends, and who is audited as of when."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from audit.auditor import Change, Finding
from audit.policy import DAY, HOUR, Rules, Status, judge
from audit.settings import AcceptedException
from tests.builders import NOW, Site, series
from tests.findings import ENDED, ERROR, FROZEN, at, finding, missed, ok, run
from tests.findings import site as audit_of

TICK = timedelta.resolution
LOCAL_NOW = NOW.replace(tzinfo=None)


def ago(hours: float) -> datetime:
    """A local time of the log."""
    return LOCAL_NOW - hours * HOUR


def audited(site: Site, moment: str = NOW.isoformat(), **config: Any) -> dict[str, Any]:
    """The report as JSON."""
    site.config(**config)
    result = site.audit("--json", "--at", moment)
    assert result.err == ""
    report: dict[str, Any] = json.loads(result.out)
    return report


def found(site: Site, moment: str = NOW.isoformat(), **config: Any) -> dict[str, tuple[str, str | None]]:
    """From name to status and the status of yesterday."""
    containers = audited(site, moment, **config)["containers"]
    return {one["name"]: (one["status"], one["status_yesterday"]) for one in containers}


# --- The days read -------------------------------------------------------------------------------------

LONG = 7 * 24 + 2 + 24 + 3  # hours of the longest promise by default, with two for clock changes
LEAST = 31 * 24
SAFE = 2
"""Hours that are read besides, for clock changes."""


@pytest.mark.parametrize(
    ("config", "hours"),
    [
        ({"history_days": 0}, LEAST + 12),  # for typical durations
        ({"history_days": 0, "policies": {"Monthly": 1744}}, 1744 + 3 + 12),
        ({"history_days": 0, "window_hours": 700, "grace_hours": 48}, 7 * 24 + 2 + 700 + 48 + 12),
        ({"history_days": 60, "max_runtime_hours": 1}, LONG + 60 * 24 + 1),
    ],
)
def test_the_days_read_are_those_of_the_longest_promise_and_the_history(
    sqlite_site: Site, config: dict[str, Any], hours: float
) -> None:
    c_id = sqlite_site.container()
    for number in (hours, hours + SAFE + 0.1):  # what is malformed is counted where it is read
        sqlite_site.row(c_id=c_id, state="upload", backup_id="x", ts=ago(number))
    assert audited(sqlite_site, **config)["audit"]["rows_ignored"]["malformed"] == 1


def test_a_history_reads_what_covers_the_beginning_of_its_period(sqlite_site: Site) -> None:
    c_id, hours = sqlite_site.container(), (40 + 30) * 24 + 12
    for number in (hours, hours + SAFE + 0.1):
        sqlite_site.row(c_id=c_id, state="upload", backup_id="x", ts=ago(number))
    page = sqlite_site.folder / "page.html"
    sqlite_site.config()
    assert sqlite_site.audit("--history", "40", "--at", NOW.isoformat(), "--html", page).status == 0
    assert ": 0 future, 1 malformed, 0 undated" in page.read_text("utf-8")


def test_a_run_at_the_edge_of_the_days_read_is_complete(sqlite_site: Site) -> None:
    expected: dict[str, tuple[str, float | None]] = {}
    for age in (LEAST + number for number in (-1, 0, 1, 4, 5, 6, 11, 12, 13, 14, 15, 20)):
        whole, end_only = sqlite_site.container(f"{age}"), sqlite_site.container(f"{age} end only")
        sqlite_site.run(whole, ago(age), ago(age - 5))
        sqlite_site.run(end_only, ago(1500), ago(1499), error=ERROR)
        sqlite_site.row(c_id=end_only, state="end", backup_id="x", ts=ago(age))
        expected |= {f"{age}": ("missed", 5 * 3600), f"{age} end only": ("missed", None)}
    old = sqlite_site.container("old", "Weekly")  # an end whose start was not read
    sqlite_site.run(old, ago(5000), ago(40), error=ERROR, error_at_start=True)
    report = audited(sqlite_site, history_days=0)["containers"]
    assert {one["name"]: one["status"] for one in report if one["last_success"] is None} == {"old": "failed"}
    good = [one for one in report if one["last_success"]]
    assert {one["name"]: (one["status"], one["last_success"]["duration_seconds"]) for one in good} == expected


def test_a_job_that_began_within_the_history_is_known_from_its_first_row(sqlite_site: Site) -> None:
    """Its first row may lie anywhere before what is read."""
    sqlite_site.run(sqlite_site.container(), ago(5000), ago(4999))
    expected = {}
    for days in (31, 36, 45, 100):
        job = f"offsite {days}"
        sqlite_site.run(0, ago(days * 24), ago(days * 24 - 1), name=job)
        for night in range(10):
            sqlite_site.run(0, ago(night * 24 + 13), ago(night * 24 + 12), name=job)
        expected[job] = (9 * 24 + 12 + max(0, 27 - (days - 30) * 24)) / (30 * 24)
    sqlite_site.config(extra_jobs=dict.fromkeys(expected, "Daily"))
    sqlite_site.audit("-q", "--at", NOW.isoformat(), "--output", sqlite_site.textfile)
    samples = sqlite_site.samples()
    ratios = {job: samples[series("mydb_backup_covered_ratio", name=job, c_id="0")] for job in expected}
    assert ratios == pytest.approx(expected)


def test_yesterday_needs_the_whole_log_if_the_first_good_backup_is_from_today(any_site: Site) -> None:
    old: dict[str, dict[str, Any]] = {
        "missed": {"ended": ago(5000)},
        "failed": {"ended": ago(5000), "error": ERROR},
        "stalled": {},
    }
    for name in (*old, "never"):
        c_id = any_site.container(name)
        if name in old:
            any_site.run(c_id, ago(5001), **old[name])
        any_site.run(c_id, ago(20), ago(19))
    any_site.run(any_site.container("forgotten"), ago(5001), ago(5000))
    expected = {name: ("ok", name) for name in old} | {"never": ("ok", "missed"), "forgotten": ("missed", "missed")}
    assert found(any_site) == expected


def test_deleted_containers_are_found_by_name_and_in_the_history(any_site: Site) -> None:
    """In that of a period, if they were logged in it."""
    for name, hours, active in (("sales", 13, True), ("gone", 100, False), ("long gone", 900, False)):
        any_site.run(any_site.container(name, active=active), ago(hours), ago(hours - 1))
    any_site.config()
    for words, names in (
        (["gone", "long gone"], ["gone", "long gone"]),
        (["--history", "30", "--all"], ["gone", "sales"]),
        (["--history", "30", "long gone"], ["long gone"]),
        (["--history", "30"], ["sales"]),
        ([], ["sales"]),
    ):
        report = json.loads(any_site.audit("--json", "--at", NOW.isoformat(), *words).out)
        assert sorted(one["name"] for one in report["containers"]) == names, words


# --- As of when ----------------------------------------------------------------------------------------


def test_a_container_exists_from_its_creation_or_its_first_run(sqlite_site: Site) -> None:
    ages = {"old": -DAY, "restored": HOUR, "fresh": HOUR / 60 - DAY, "later": HOUR / 60}
    for name, policy in ((name, policy) for name in ages for policy in ("Daily", "Never", None)):
        c_id = sqlite_site.container(f"{name} {policy}", policy, created=NOW + ages[name])
        if name == "restored":
            sqlite_site.run(c_id, ago(5001), ago(5000))
        if name == "later":
            sqlite_site.run(c_id, ago(-0.5))
    statuses, before = found(sqlite_site), found(sqlite_site, (NOW - DAY).isoformat())
    for policy in ("Daily", "Never", None):
        known = {name: statuses[f"{name} {policy}"] for name in ages if f"{name} {policy}" in statuses}
        assert set(known) == {"old", "restored", "fresh"}
        assert {name for name, (_, yesterday) in known.items() if yesterday} == {"old", "restored"}
        assert {name for name in ages if f"{name} {policy}" in before} == {"old", "restored"}


@pytest.mark.parametrize(
    ("asked", "started"),
    [
        # 24 hours before is 13:00 of the day before where clocks were set back, 11:00 where they were set forward
        ("2026-10-25T12:00+01:00", "2026-10-24 13:00:00"),
        ("2026-03-29T12:00+02:00", "2026-03-28 11:00:00"),
        # 02:30 for the second time, 24 hours after 03:30
        ("2026-10-25T02:30+01:00", "2026-10-24 03:30:00"),
        # 24 hours after 02:30 for the second time: rows of the hour are taken for their first occurrence
        ("2026-10-26T02:30+01:00", "2026-10-25 02:59:59"),
    ],
)
def test_yesterday_is_24_hours_ago_where_clocks_change(sqlite_site: Site, asked: str, started: str) -> None:
    start = datetime.fromisoformat(started)
    sqlite_site.run(sqlite_site.container("begun"), start)
    sqlite_site.run(sqlite_site.container("later"), start + HOUR / 3600)
    expected = {"begun": "running", "later": "missed"}
    now = found(sqlite_site, asked, db_timezone="Europe/Berlin")
    assert {name: yesterday for name, (_, yesterday) in now.items()} == expected
    then = found(sqlite_site, (datetime.fromisoformat(asked) - DAY).isoformat(), db_timezone="Europe/Berlin")
    assert {name: status for name, (status, _) in then.items()} == expected


def test_rows_of_a_repeated_hour_are_seen(sqlite_site: Site) -> None:
    sqlite_site.run(sqlite_site.container(), "2026-10-25 02:50", "2026-10-25 02:10")  # 00:50 to 01:10 UTC
    assert found(sqlite_site, "2026-10-25T00:09:59Z", db_timezone="Europe/Berlin")["sales"][0] == "missed"
    assert found(sqlite_site, "2026-10-25T01:15Z", db_timezone="Europe/Berlin")["sales"][0] == "ok"


def test_ignored_rows_are_counted_and_the_newest_three_named(sqlite_site: Site) -> None:
    c_id, now = sqlite_site.container(), sqlite_site.clock().replace(tzinfo=None)
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
        sqlite_site.row(id=row_id, **row)
    sqlite_site.config()
    report = json.loads(sqlite_site.audit("--json").out)
    assert report["audit"]["rows_ignored"] == {"future": 2, "malformed": 4, "undated": 2}
    assert report["containers"][0]["status"] == "ok"
    text = " ".join(sqlite_site.audit("-v").out.split())
    assert [ids for ids in ("10, 9", "6, 5, 4", "2, 1") if ids not in text] == []
    ignored = audited(sqlite_site, now.isoformat() + "Z")["audit"]["rows_ignored"]
    assert ignored == {"future": 0, "malformed": 4, "undated": 2}


# --- Exceptions ----------------------------------------------------------------------------------------


def test_an_exception_holds_to_the_end_of_its_last_day(sqlite_site: Site) -> None:
    day = ("2026-03-14", "frozen")
    exceptions = {
        sqlite_site.container("by number"): day,
        "by name": day,
        "nobody": day,
        "two": ("2026-03-13", "short"),
    }
    sqlite_site.container("by name")
    exceptions[sqlite_site.container("two")] = day  # the longer one counts
    sqlite_site.config(exceptions=exceptions, timezone="Europe/Berlin")
    end = datetime.fromisoformat("2026-03-15T00:00+01:00")
    for now, accepted in ((end - HOUR / 10**6, True), (end, False)):
        result = sqlite_site.audit("--json", "--at", now.isoformat())
        expected = {"until": "2026-03-14", "reason": "frozen"} if accepted else None
        found = [container["exception"] for container in json.loads(result.out)["containers"]]
        assert (result.status, found) == (0 if accepted else 2, [expected] * 3)
        week_later = sqlite_site.audit("--at", (now + 7 * DAY).isoformat()).out
        assert ("frozen" in week_later) is accepted, "for a week, the report says that it has ended"
    assert "nobody" in sqlite_site.audit("-v", "--at", NOW.isoformat()).out


# --- What is left --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("left", "exception", "expiry"),
    [
        (7 * DAY + TICK, None, 0),
        (7 * DAY, None, 1),
        (TICK, None, 1),
        (0 * DAY, None, 2),
        (-900 * DAY, None, 2),
        (-30 * DAY + TICK, FROZEN, 2),
        (-30 * DAY, FROZEN, 0),
        (-30 * DAY, ENDED, 2),
    ],
)
def test_the_expiry_of_the_last_dump_is_told_for_a_month_where_the_problem_is_accepted(
    left: timedelta, exception: AcceptedException | None, expiry: int
) -> None:
    now = at("10 18:07") + 1000 * DAY
    container = finding().container
    for policy, told in (("Daily", expiry), ("Never", 0)):
        rules = Rules(dumps_kept=1000 * DAY + left)
        verdict = judge(replace(container, policy=policy), [run("10 18:07")], now, rules)
        until = exception and replace(exception, ends=now + (DAY if exception is FROZEN else -TICK))
        assert Finding(verdict, exception=until).expiry == told


def test_without_an_active_container_the_audit_fails_unless_that_is_accepted(sqlite_site: Site) -> None:
    sqlite_site.config()
    failed = sqlite_site.audit()
    assert (failed.status, "no active container in " in failed.err) == (3, True)
    sqlite_site.config(allow_empty=True)
    assert (sqlite_site.audit().status, sqlite_site.audit().err) == (0, "")


# --- What counts ---------------------------------------------------------------------------------------


def test_an_accepted_problem_stays_in_the_verdict_and_counts_for_nothing() -> None:
    problem, accepted, calm = missed(), missed(more={"exception": FROZEN}), ok()
    assert [one.severity for one in (problem, accepted, calm)] == [2, 2, 0]
    assert [one.is_problem for one in (problem, accepted, calm)] == [True, False, False]
    assert [one.is_overdue for one in (problem, accepted, calm)] == [True, False, False]
    assert [audit_of(accepted, one).severity for one in (problem, accepted, calm)] == [2, 0, 0]


def test_a_site_is_silent_if_it_logged_nothing_within_the_window_and_a_backup_is_overdue_for_that() -> None:
    for newest_row, silent in ((None, True), (NOW - DAY - TICK, True), (NOW - DAY, False)):
        assert audit_of(missed(), ok(), newest_row=newest_row).silent is silent
        assert not audit_of(missed(more={"exception": FROZEN}), ok(), newest_row=newest_row).silent


def test_what_has_changed_since_yesterday() -> None:
    for before, expected in (("ok", Change.NEW), (None, Change.NEW), ("missed", None), ("late", Change.CHANGED)):
        assert replace(missed(), yesterday=Status(before) if before else None).change is expected
    for before, expected in (("missed", Change.RECOVERED), ("ok", None), (None, None), ("new", Change.CHANGED)):
        assert replace(ok(), yesterday=Status(before) if before else None).change is expected
