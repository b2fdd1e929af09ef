"""Which part of the log an audit reads, where that part begins and ends, and who is audited as of when."""

from __future__ import annotations

import json
import re
import tracemalloc
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import insert

from audit.auditor import Change, Finding, by_change
from audit.policy import DAY, HOUR, Rules, Status, judge
from audit.settings import AcceptedException
from models import BackupLog
from tests.builders import NOW, Site, series
from tests.findings import ENDED, FROZEN, audit_of, failed, finding, missed, of_every_status, ok
from tests.postgres import ADMIN_USER
from tests.runs import ERROR, at, run

TICK, SECOND = timedelta.resolution, timedelta(seconds=1)


def ago(hours: float) -> datetime:
    """A local time of the log."""
    return NOW.replace(tzinfo=None) - hours * HOUR


def audited(site: Site, moment: datetime = NOW, *words: str, **config: Any) -> dict[str, Any]:
    """The report as JSON."""
    site.config(**config)
    result = site.audit("--json", "--at", moment.isoformat(), *words)
    assert result.err == ""
    report: dict[str, Any] = json.loads(result.out)
    return report


def statuses_by_name(site: Site, moment: datetime = NOW, **config: Any) -> dict[str, tuple[str, str | None]]:
    """From name to status and the status of yesterday."""
    containers = audited(site, moment, **config)["containers"]
    return {one["name"]: (one["status"], one["status_yesterday"]) for one in containers}


# --- The days read -------------------------------------------------------------------------------------

LONG = 7 * 24 + 2 + 24 + 3  # hours of the longest promise by default, with two for clock changes
LEAST = 31 * 24  # for typical durations


@pytest.mark.parametrize(
    ("config", "hours"),
    [
        ({"history_days": 0}, LEAST + 12),
        ({"history_days": 0, "policies": {"Monthly": 1744}}, 1744 + 3 + 12),
        ({"history_days": 0, "window_hours": 700, "grace_hours": 48}, 7 * 24 + 2 + 700 + 48 + 12),
        ({"history_days": 60, "max_runtime_hours": 1}, LONG + 60 * 24 + 1),
    ],
)
def test_the_days_read_are_those_of_the_longest_promise_and_the_history(
    sqlite_site: Site, config: dict[str, Any], hours: float
) -> None:
    c_id = sqlite_site.container()
    for number in (hours, hours + 2.1):  # two more are read, for clock changes
        sqlite_site.row(c_id=c_id, state="malformed, and counted where it is read", backup_id="x", ts=ago(number))
    assert audited(sqlite_site, **config)["audit"]["rows_ignored"]["malformed"] == 1


def test_a_run_at_the_edge_of_the_days_read_is_complete(sqlite_site: Site) -> None:
    expected: dict[str, tuple[str, float | None]] = {}
    for age in (LEAST + number for number in (-1, 0, 1, 4, 5, 6, 11, 12, 13, 14, 15, 20)):
        whole, end_only = sqlite_site.container(f"{age}"), sqlite_site.container(f"{age} end only")
        sqlite_site.run(whole, ago(age), ago(age - 5))
        sqlite_site.run(end_only, ago(1500), ago(1499), error=ERROR)
        sqlite_site.row(c_id=end_only, state="end", backup_id="x", ts=ago(age))
        expected |= {f"{age}": ("missed", 5 * 3600), f"{age} end only": ("missed", None)}
    old = sqlite_site.container("old", "Weekly")  # an end whose start was not read
    sqlite_site.row(c_id=old, state="start", backup_id="x", ts=ago(5000), err_msg=ERROR)  # as version 1 has it
    sqlite_site.row(c_id=old, state="end", backup_id="x", ts=ago(40))
    *good, bad = audited(sqlite_site, history_days=0)["containers"]
    assert (bad["name"], bad["status"], bad["last_success"]) == ("old", "failed", None)
    assert {one["name"]: (one["status"], one["last_success"]["duration_seconds"]) for one in good} == expected


def test_a_job_that_began_within_the_history_is_known_from_its_first_row(sqlite_site: Site) -> None:
    """Its first row may lie anywhere before what is read."""
    sqlite_site.run(sqlite_site.container(), ago(5000), ago(4999))
    for days in (31, 36, 100):
        for hour in (days * 24, *range(13, 240, 24)):
            sqlite_site.run(0, ago(hour), ago(hour - 1), name=f"job {days}")
    jobs = {"job 31": "Daily", "job 36": "Daily", "job 100": "Daily"}
    audited(sqlite_site, NOW, "--output", str(sqlite_site.textfile), extra_jobs=jobs)
    samples = sqlite_site.samples()
    hours = [30 * 24 * samples[series("mydb_backup_covered_ratio", name=job, c_id="0")] for job in jobs]
    assert hours == pytest.approx([9 * 24 + 12 + 3, 9 * 24 + 12, 9 * 24 + 12])


def test_the_whole_log_is_read_if_the_first_good_backup_is_from_today_or_there_is_none(sqlite_site: Site) -> None:
    old: dict[str, dict[str, Any]] = {"missed": {"ended": ago(5000)}, "failed": {"ended": ago(5000), "error": ERROR}}
    for name, rest in {**old, "stalled": {}}.items():
        c_id = sqlite_site.container(name)
        sqlite_site.run(c_id, ago(5001), **rest)
        sqlite_site.run(c_id, ago(20), ago(19))
    sqlite_site.run(sqlite_site.container("never"), ago(20), ago(19))
    sqlite_site.run(sqlite_site.container("forgotten"), ago(5001), ago(5000))
    expected = {name: ("ok", name) for name in ("missed", "failed", "stalled")}
    assert statuses_by_name(sqlite_site) == expected | {"never": ("ok", "missed"), "forgotten": ("missed", "missed")}
    silent = sqlite_site.audit("--at", (NOW + 1000 * DAY).isoformat()).out
    assert "The whole site logged no backup run since 2026-03-13 12:00 UTC" in " ".join(silent.split())


def test_deleted_containers_are_found_by_name_and_in_the_history_of_a_period_with_rows(sqlite_site: Site) -> None:
    for name, hours, active in (("sales", 13, True), ("gone", 100, False), ("long gone", 900, False)):
        sqlite_site.run(sqlite_site.container(name, active=active), ago(hours), ago(hours - 1))
    for words, names in (
        (["gone", "long gone"], ["gone", "long gone"]),
        (["--history", "30", "--all"], ["gone", "sales"]),
        (["--history", "30", "long gone"], ["long gone"]),
        (["--history", "30"], ["sales"]),
        ([], ["sales"]),
    ):
        assert sorted(one["name"] for one in audited(sqlite_site, NOW, *words)["containers"]) == names, words


@pytest.mark.parametrize("argv", [("-q",), ("--history", "30", "--json")])
def test_memory_follows_the_containers_and_not_their_runs_or_messages(sqlite_site: Site, argv: tuple[str, ...]) -> None:
    c_ids = [sqlite_site.container(f"lab {number}") for number in range(40)]
    peaks = []
    for hours in (range(10, 30), range(30, 130)):
        times = [(hour, ago(hour)) for hour in hours]
        rows = [
            {"c_id": c_id, "state": "end", "backup_id": f"{hour}", "ts": ts, "err_msg": f"{hour} " + "odd " * 20}
            for c_id in c_ids
            for hour, ts in times
        ]
        with sqlite_site.session() as session:
            session.execute(insert(BackupLog), rows)
        sqlite_site.audit(*argv, "--at", NOW.isoformat())  # imports what it needs
        tracemalloc.start()
        assert sqlite_site.audit(*argv, "--at", NOW.isoformat()).status < 3
        peaks.append(tracemalloc.get_traced_memory()[1] / 1e6)
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 1, "MB"


# --- As of when ----------------------------------------------------------------------------------------


def test_a_container_exists_from_its_creation_or_its_first_run(sqlite_site: Site) -> None:
    ages = {"old": -DAY, "restored": HOUR, "fresh": SECOND - DAY, "later": SECOND}
    c_ids = {name: sqlite_site.container(name, "Never", created=NOW + age) for name, age in ages.items()}
    sqlite_site.run(c_ids["restored"], ago(5001), ago(5000))
    sqlite_site.run(c_ids["later"], ago(-0.5))
    existed = ("exempt", "exempt")
    assert statuses_by_name(sqlite_site) == {"old": existed, "restored": existed, "fresh": ("exempt", None)}
    assert statuses_by_name(sqlite_site, NOW - DAY).keys() == {"old", "restored"}


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
    start, now = datetime.fromisoformat(started), datetime.fromisoformat(asked)
    sqlite_site.run(sqlite_site.container("begun"), start)
    sqlite_site.run(sqlite_site.container("later"), start + SECOND)
    expected = {"begun": "running", "later": "missed"}
    today, yesterday = (
        statuses_by_name(sqlite_site, moment, db_timezone="Europe/Berlin") for moment in (now, now - DAY)
    )
    assert {name: before for name, (_, before) in today.items()} == expected
    assert {name: status for name, (status, _) in yesterday.items()} == expected


def test_now_is_the_clock_of_the_server(own_site: Site) -> None:
    slow = "SELECT pg_catalog.clock_timestamp() - interval '3 days'"
    for statement in (
        "CREATE SCHEMA slow",
        f"CREATE FUNCTION slow.clock_timestamp() RETURNS timestamptz LANGUAGE sql AS $${slow}$$",
        f"GRANT USAGE ON SCHEMA slow TO {ADMIN_USER}",
        f'ALTER DATABASE "{own_site.postgres.name}" SET search_path = slow, pg_catalog, public',
    ):
        own_site.postgres.execute(statement)
    now = own_site.clock() - 3 * DAY
    own_site.run(own_site.container(), now - HOUR, now - HOUR / 2)
    own_site.run(own_site.container("ahead"), now + HOUR, now + HOUR)
    own_site.config()
    report = json.loads(own_site.audit("--json").out)
    assert [one["status"] for one in report["containers"]] == ["ok", "missed"]
    assert report["audit"]["rows_ignored"]["future"] == 2
    skew = own_site.samples(own_site.runfile)[series("mydb_backup_audit_clock_skew_seconds")]
    assert skew == pytest.approx(3 * 24 * 3600, abs=60)


def test_rows_of_a_repeated_hour_are_seen(sqlite_site: Site) -> None:
    sqlite_site.run(sqlite_site.container(), "2026-10-25 02:50", "2026-10-25 02:10")  # 00:50 to 01:10 UTC
    for moment, status in (("00:09:59", "missed"), ("01:15:00", "ok")):
        asked = datetime.fromisoformat(f"2026-10-25T{moment}+00:00")
        assert statuses_by_name(sqlite_site, asked, db_timezone="Europe/Berlin")["sales"][0] == status


# --- What counts ---------------------------------------------------------------------------------------


def test_an_exception_holds_to_the_end_of_its_last_day(sqlite_site: Site) -> None:
    day, shorter = ("2026-03-14", "frozen"), ("2026-03-13", "short")
    exceptions = {"by name": day, sqlite_site.container("by number"): day, "two": shorter, "nobody": day}
    sqlite_site.container("by name")
    exceptions[sqlite_site.container("two")] = day  # the longer one counts
    sqlite_site.config(exceptions=exceptions, timezone="Europe/Berlin")
    end = datetime.fromisoformat("2026-03-15T00:00+01:00")
    for now, accepted in ((end - TICK, True), (end, False)):
        result = sqlite_site.audit("--json", "--at", now.isoformat())
        expected = {"until": "2026-03-14", "reason": "frozen"} if accepted else None
        found = [container["exception"] for container in json.loads(result.out)["containers"]]
        assert (result.status, found) == (0 if accepted else 2, [expected] * 3)
        week_later = sqlite_site.audit("--at", (now + 7 * DAY).isoformat()).out
        assert ("frozen" in week_later) is accepted, "for a week, the report says that it has ended"
    assert "nobody" in sqlite_site.audit("-v", "--at", NOW.isoformat()).out


def test_the_expiry_of_the_last_dump_is_told_for_a_month_where_the_problem_is_accepted() -> None:
    now = at("10 18:07") + 1000 * DAY
    in_force, ended = replace(FROZEN, ends=now + DAY), replace(ENDED, ends=now)
    cases: list[tuple[timedelta, AcceptedException | None, int]] = [
        (7 * DAY + TICK, None, 0),
        (7 * DAY, None, 1),
        (TICK, None, 1),
        (0 * DAY, None, 2),
        (-900 * DAY, None, 2),
        (-30 * DAY + TICK, in_force, 2),
        (-30 * DAY, in_force, 0),
        (-30 * DAY, ended, 2),
    ]
    for left, exception, expiry in cases:
        for policy, told in (("Daily", expiry), ("Never", 0)):
            container = replace(finding().container, backup_freq=policy)
            verdict = judge(container, [run("10 18:07")], now, Rules(dumps_kept=1000 * DAY + left))
            assert Finding(verdict, exception=exception).expiry_severity == told, (left, exception)
            accepted = Finding(verdict, exception=in_force)
            assert audit_of(accepted).severity == accepted.expiry_severity, "of what is accepted nothing else counts"
    expired = [Finding(replace(one.verdict, kept_until=NOW)) for one in of_every_status()]
    assert {one.status for one in expired if one.expiry_severity == 0} == {Status.EXEMPT, Status.OK}


def test_without_an_active_container_the_audit_fails_unless_that_is_accepted(sqlite_site: Site) -> None:
    sqlite_site.config()
    refused = sqlite_site.audit()
    assert refused.status == 3
    assert "no active container in " in refused.err
    sqlite_site.run(0, ago(13), ago(12), name="offsite")
    sqlite_site.config(extra_jobs={"offsite": "Daily"})
    for words in ((), ("--history", "7")):
        assert "no active container in " in sqlite_site.audit(*words).err, "a job of the site is no container"
    sqlite_site.container(created=NOW + SECOND)
    assert "at that moment" in sqlite_site.audit("--at", NOW.isoformat()).err
    sqlite_site.config(allow_empty=True, extra_jobs={"offsite": "Daily"})
    empty = sqlite_site.audit("--at", NOW.isoformat())
    assert (empty.status, empty.err) == (0, "")


def test_a_site_is_silent_if_it_logged_nothing_within_the_window_and_a_backup_is_overdue_for_that() -> None:
    for newest_row, silent in ((None, True), (NOW - DAY - TICK, True), (NOW - DAY, False)):
        assert audit_of(missed(), ok(), newest_row=newest_row).silent is silent
        assert not audit_of(missed(more={"exception": FROZEN}), ok(), newest_row=newest_row).silent


def test_a_night_broke_off_where_the_newest_run_stalled_and_a_container_waits_that_ran_in_the_week_before(
    sqlite_site: Site,
) -> None:
    def headline(now: datetime = NOW, **config: Any) -> str:
        sqlite_site.config(**config)
        printed = " ".join(sqlite_site.audit("--at", now.isoformat()).out.split())
        return printed.partition("job probably stopped at ")[2].partition(":")[0]

    waiting, longer = sqlite_site.container("waiting"), sqlite_site.container("longer")
    sqlite_site.run(99, ago(12), name="graph")  # it is deleted by now
    sqlite_site.run(waiting, ago(12 + 7 * 24), ago(7 * 24))
    sqlite_site.run(longer, ago(12 + 7 * 24) - SECOND, ago(7 * 24))
    assert headline() == "graph"
    assert headline(NOW - SECOND) == "", "it is running"
    assert headline(exceptions={"waiting": ("2026-12-31", "frozen")}) == ""
    sqlite_site.run(longer, ago(11), ago(10))
    assert headline() == "", "the job went on"


def test_a_night_breaks_off_by_the_usual_time_of_a_run_and_never_at_a_job_of_the_site_which_comes_last(
    sqlite_site: Site,
) -> None:
    def headline() -> str:
        return re.split(" stopped at |:", sqlite_site.audit("--at", NOW.isoformat()).out)[1]

    sqlite_site.run(sqlite_site.container("late"), ago(26), ago(25))
    for c_id, name, hours in ((99, "graph", 3), (0, "offsite", 2)):
        for night in (1, 2, 3):
            sqlite_site.run(c_id, ago(hours + 24 * night), ago(hours - 0.1 + 24 * night), name=name)
    sqlite_site.run(99, ago(3), name="graph")
    assert headline() == "graph"
    sqlite_site.run(0, ago(2), name="offsite")
    assert headline() != "offsite"
    sqlite_site.run(99, ago(1.5), name="graph")
    assert headline() == "graph"
    sqlite_site.run(99, ago(1), name="graph", error=ERROR)
    assert headline() != "graph", "what failed has said so itself"


def test_what_has_changed_since_yesterday() -> None:
    for before, expected in (
        ("ok", Change.NEW_PROBLEM),
        (None, Change.NEW_PROBLEM),
        ("missed", None),
        ("late", Change.CHANGED),
    ):
        assert replace(missed(), yesterday=Status(before) if before else None).change is expected
    for before, expected in (("missed", Change.RECOVERED), ("ok", None), (None, None), ("new", Change.CHANGED)):
        assert replace(ok(), yesterday=Status(before) if before else None).change is expected
    problem, accepted = failed(), failed(more={"exception": FROZEN})
    assert by_change([problem, accepted], Change.NEW_PROBLEM) == [problem]
    back, frozen = (ok(more={"exception": each}) for each in (None, FROZEN))
    recovered = [replace(one, yesterday=Status.MISSED) for one in (back, frozen)]
    assert by_change(recovered, Change.RECOVERED) == recovered[:1]
