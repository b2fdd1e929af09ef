"""The past of a site by example (docs/rules.md, "History"): the rule, days, periods, and the program around them."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from sqlalchemy import Engine, event

from audit.errors import AuditError
from audit.history import ContainerHistory, last_days, look_back, parse_period
from audit.messages import Meaning, Said
from audit.policy import DAY, HOUR, UTC, Container, Rules, Run
from tests.builders import NOW, TOP, Site

MINUTE = timedelta(minutes=1)
TICK = timedelta.resolution
NOTHING = timedelta(0)
BERLIN = ZoneInfo("Europe/Berlin")
RULES = Rules(grace=6 * HOUR, max_runtime=24 * HOUR, policies={"Monthly": 744 * HOUR})
FAILURE = "pg_dump: error: query failed: ERROR:  permission denied for table visits"


def at(text: str) -> datetime:
    """A moment of March 2026 from `13 18:07`, or a full one."""
    full = text if re.match(r"\d{4}-", text) else f"2026-03-{text}"
    return datetime.fromisoformat(full).replace(tzinfo=UTC)


def run(started: str | datetime, ended: str | None = "", **more: Any) -> Run:
    """A good run, of 23 minutes where its end is not given; None is a run without an end."""
    begin = at(started) if isinstance(started, str) else started
    end = None if ended is None else at(ended) if ended else begin + 23 * MINUTE
    return Run(begin, f"{begin:%Y%m%d-%H:%M:%S}", "Daily", end)._replace(**more)


def bad(started: str, backup_id: str = "bad") -> Run:
    return run(started, said=Said(Meaning.ERROR, FAILURE), backup_id=backup_id)


def nights(*dates: int) -> list[Run]:
    return [run(f"{date:02} 18:07") for date in dates]


def past(
    *runs: Run, days: int = 3, end: datetime = NOW, rules: Rules = RULES, begins: str | None = None, **facts: Any
) -> ContainerHistory:
    """The history of a Daily container made long ago, but for the facts that are given; the log `begins` then."""
    given: dict[str, Any] = {"c_id": 7, "name": "sales", "policy": "Daily", "created": at("2025-01-15 09:30")} | facts
    period = replace(last_days(days, end, rules.zone), log_begins=at(begins) if begins else None)
    return look_back(Container(**given), runs, period, rules)


def letters(history: ContainerHistory) -> str:
    """The outcomes: o(k), f(ailed), - (none), b(efore)."""
    return "".join(outcome.value[0] for outcome in history.outcomes).replace("n", "-")


def spans(history: ContainerHistory) -> list[tuple[datetime, datetime]]:
    return [(stretch.start, stretch.end) for stretch in history.stretches]


# --- The rule ------------------------------------------------------------------------------------------


def test_a_nightly_job_with_jitter_is_covered_whenever_you_ask() -> None:
    runs = [run(at("2026-02-01 00:40") + night * DAY + night % 2 * 40 * MINUTE) for night in range(42)]
    for now in (NOW.replace(hour=hour) for hour in range(24)):
        history = past(*(one for one in runs if one.ended and one.ended <= now), days=30, end=now)
        assert (set(letters(history)), history.ratio) == ({"o"}, 1)


def test_a_run_in_progress_is_not_a_failure() -> None:
    history = past(*nights(9, 10, 11, 12), run("13 18:07"), run("14 06:50", None))
    assert (letters(history), history.ratio, history.verdict.status.value) == ("oooo", 1, "ok")


@pytest.mark.parametrize(
    ("policy", "base", "zone", "lapse"),
    [
        ("Daily", "13 01:00", UTC, "14 07:00"),
        ("Monthly", "2026-02-10 18:00", UTC, "14 00:00"),
        ("Weekly", "07 18:07", UTC, "15 06:00"),
        ("Weekly", "24 18:07", BERLIN, "29 05:00"),  # clocks change in these six hours of grace
    ],
)
def test_covered_is_up_to_due_and_grace(policy: str, base: str, zone: Any, lapse: str) -> None:
    given: dict[str, Any] = {"policy": policy, "rules": replace(RULES, zone=zone)}
    for runs, facts in (([run(base)], given), ([], {**given, "created": at(base)})):
        last, late = (past(*runs, end=end, **facts) for end in (at(lapse), at(lapse) + TICK))
        assert at(lapse) not in [end for _, end in spans(last)]
        assert spans(late)[-1] == (at(lapse), at(lapse) + TICK)
        assert (letters(late)[-1], late.ratio == 1) == ("-", False)


@pytest.mark.parametrize(
    ("runs", "uncovered"),
    [
        pytest.param([run("13 18:07", "14 05:00")], [("13 07:00", "14 05:00")], id="a run counts from its end"),
        pytest.param([bad("13 05:00")], [("13 07:00", "14 07:00")], id="a failed run never counts"),
        pytest.param([run("13 05:00", start_logged=False)], [], id="an end without a start is a run"),
        pytest.param([run("13 09:00", "13 05:00")], [("13 07:00", "13 09:00")], id="no base lies in the future"),
        pytest.param([run("12 06:00", "13 08:00")], [("13 07:00", "13 08:00"), ("13 12:00", "14 07:00")], id="age"),
        pytest.param([run("12 02:00", "13 08:00")], [("13 07:00", "14 07:00")], id="too old when it ends: no split"),
        pytest.param([run("12 20:00"), run("12 10:00", "13 06:00")], [("14 02:00", "14 07:00")], id="the newest"),
        pytest.param([run("13 05:00", "14 07:02")], [("13 07:00", "14 07:00")], id="by a clock that is ahead"),
    ],
)
def test_what_covers(runs: list[Run], uncovered: list[tuple[str, str]]) -> None:
    for given in (runs, runs[::-1]):
        history = past(run("12 01:00"), *given, days=1)
        assert spans(history) == [(at(start), at(end)) for start, end in uncovered]
        assert history.uncovered == sum((end - start for start, end in spans(history)), NOTHING)
        assert history.covered + history.uncovered == history.counted == DAY


# --- Days ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("runs", "expected"),
    [
        ([], "----"),
        ([*nights(10), bad("11 18:07"), *nights(12, 13)], "o-oo"),  # the failure was on a day that was covered
        ([*nights(10), bad("12 00:30"), *nights(12, 13)], "ofoo"),
        ([*nights(10), run("12 00:30", None), *nights(12, 13)], "ofoo"),  # stalled by the end of the period
        ([bad("12 00:00"), *nights(12, 13)], "-foo"),
        ([bad("11 23:59"), *nights(12, 13)], "f-oo"),
        ([bad("11 06:59"), *nights(13)], "---o"),  # before the period
        ([bad("11 07:00"), *nights(13)], "f--o"),
        ([run(NOW - DAY, None)], "--f-"),
        ([run(NOW - DAY + TICK, None)], "----"),  # running
    ],
)
def test_the_outcomes_of_days(runs: list[Run], expected: str) -> None:
    assert letters(past(*runs)) == expected


@pytest.mark.parametrize(
    ("begins", "created", "expected"),
    [
        (None, "12 00:00", "bo--"),  # covered until due and grace after its creation
        (None, "11 23:59:59", "oo--"),
        (None, "13 23:59", "bboo"),
        (None, "14 06:59:59", "bbbo"),
        (None, "14 07:00", "bbbb"),
        (None, "14 07:05", "bbbb"),
        (None, "14 07:05:01", "----"),  # a wrong stamp makes no container new
        (None, None, "----"),
        ("12 00:00", "2025-01-15 09:30", "bo--"),  # and after the first row of the log
        ("12 00:00", None, "bo--"),
        ("12 00:00", "13 12:00", "bboo"),  # its creation is later
        ("09 00:00", "2025-01-15 09:30", "----"),
        ("09 00:00", None, "----"),
    ],
)
def test_before_a_container_is_known_nothing_counts(begins: str | None, created: str | None, expected: str) -> None:
    history = past(begins=begins, created=created and at(created))
    assert letters(history) == expected
    known = max((at(text) for text in (begins, created) if text and text != "14 07:05:01"), default=None)
    assert history.counted == max(NOW - max(known or at("11 07:00"), at("11 07:00")), NOTHING)
    assert (history.ratio is None) is (expected == "bbbb")
    assert history.worst_age == (NOW - known if known and history.counted else None)


def test_a_container_created_after_the_period_does_not_count_but_a_wrong_stamp_is_unknown() -> None:
    period = parse_period("2026-03-12..2026-03-13", at("2026-04-01 00:00"), UTC)
    for created, expected in (("20 00:00", "bb"), ("2026-04-01 00:06", "--")):
        assert letters(look_back(Container(7, "sales", "Daily", created=at(created)), [], period, RULES)) == expected


@pytest.mark.parametrize(
    ("zone", "text", "starts"),
    [
        ("Europe/Berlin", "2026-10-24..2026-10-26", ["10-23 22:00", "10-24 22:00", "10-25 23:00"]),
        ("America/Sao_Paulo", "2018-11-03..2018-11-05", ["11-03 03:00", "11-04 03:00", "11-05 02:00"]),
        ("Asia/Beirut", "2026-03-28..2026-03-30", ["03-27 22:00", "03-28 22:00", "03-29 21:00"]),
        ("America/Havana", "2026-10-31..2026-11-02", ["10-31 04:00", "11-01 04:00", "11-02 05:00"]),
        ("Pacific/Apia", "2011-12-29..2011-12-31", ["12-29 10:00", "12-30 10:00"]),  # left out a day
    ],
)
def test_the_days_of_a_period_begin_at_midnight_even_if_it_does_not_exist_or_occurs_twice(
    zone: str, text: str, starts: list[str]
) -> None:
    period = parse_period(text, at("2027-01-01 00:00"), ZoneInfo(zone))
    assert [f"{day.start:%m-%d %H:%M}" for day in period.days] == starts


# --- Figures -------------------------------------------------------------------------------------------


def test_the_median_duration_is_that_of_the_succeeded_runs_of_the_period() -> None:
    runs = [run("10 18:07", "10 23:07"), run("11 18:07", "11 18:17"), run("12 18:07", "12 18:27"), bad("12 20:00")]
    assert past(*runs).median_duration == 15 * MINUTE
    assert past(*runs, run("13 18:07")).median_duration == 20 * MINUTE
    assert past(*runs, run("13 18:07", start_logged=False)).median_duration == 15 * MINUTE
    assert past(bad("13 18:07")).median_duration is None
    on_the_edges = run(NOW - 3 * DAY), run(NOW, None), run(NOW - 3 * DAY - TICK, NOW.isoformat()[:19])
    assert past(*on_the_edges).median_duration == 23 * MINUTE


def test_a_stretch_shows_the_bad_runs_since_the_last_good_backup() -> None:
    history = past(run("09 18:07"), bad("09 18:00"), *nights(10), bad("11 18:07"), *nights(12), bad("12 19:00"))
    assert spans(history) == [(at("12 00:07"), at("12 18:30")), (at("14 00:07"), NOW)]
    assert [stretch.runs for stretch in history.stretches] == [(bad("11 18:07"),), (bad("12 19:00"),)]


@pytest.mark.parametrize(("policy", "status"), [("Never", "exempt"), (" none ", "exempt"), (None, "no_policy")])
def test_without_a_schedule_there_are_no_outcomes_and_no_ratio(policy: str | None, status: str) -> None:
    history = past(*nights(10), policy=policy)
    assert (history.verdict.status.value, history.outcomes, history.ratio, history.stretches) == (status, (), None, ())


def test_a_deleted_container_counts_up_to_its_last_row() -> None:
    history = past(*nights(10, 11), bad("12 20:00"), deleted=True)  # nothing of the 13th counts
    assert (letters(history), history.uncovered, history.verdict.status.value) == ("oo", NOTHING, "failed")
    assert history.counted == at("12 20:23") - at("11 07:00")
    before = past(run("10 18:07", "11 07:00"), deleted=True)
    assert (letters(before), before.counted) == ("", NOTHING)


def test_a_job_of_the_site_is_known_from_its_own_first_row() -> None:
    job: dict[str, Any] = {"c_id": 0, "name": "offsite", "created": None, "begins": "2025-01-15 09:30"}
    assert letters(past(run("12 18:07"), run("13 18:07"), **job)) == "booo"
    assert letters(past(bad("12 18:07"), run("14 05:00"), **job)) == "boo-"
    assert (letters(past(**job)), past(**job).ratio) == ("bbbb", None)


def test_unrecognised_and_cut_messages_of_the_period_are_counted() -> None:
    unknown = Said(Meaning.UNRECOGNISED, "Disk is 100% used")
    runs = [run("11 06:00", said=unknown, is_cut=True), run("12 18:07", said=unknown), run("13 18:07", is_cut=True)]
    assert (past(*runs).unrecognised, past(*runs).cut) == (1, 1)


# --- Periods -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "start", "end", "days"),
    [
        ("1", "13 07:00", "14 07:00", 2),
        ("30", "2026-02-12 07:00", "14 07:00", 31),
        (" 007 ", "07 07:00", "14 07:00", 8),
        ("2024", "2023-12-31 23:00", "2024-12-31 23:00", 366),
        ("2025-Q4", "2025-09-30 22:00", "2025-12-31 23:00", 92),
        ("2025-q1", "2024-12-31 23:00", "2025-03-31 22:00", 90),
        ("2026-02", "2026-01-31 23:00", "2026-02-28 23:00", 28),
        ("2025-12", "2025-11-30 23:00", "2025-12-31 23:00", 31),
        ("2026-03-01..2026-03-07", "2026-02-28 23:00", "07 23:00", 7),
        ("2026-03-14..2090-03-14", "13 23:00", "14 07:00", 1),
        ("2016-03-07..2026-03-31", "2016-03-06 23:00", "14 07:00", 3660),
    ],
)
def test_a_period(text: str, start: str, end: str, days: int) -> None:
    period = parse_period(text, NOW, BERLIN)
    assert (period.start, period.end, len(period.days), period.now) == (at(start), at(end), days, NOW)
    assert period.label == {"1": "1 day", "30": "30 days", " 007 ": "7 days"}.get(text, text)


@pytest.mark.parametrize(
    ("texts", "problem"),
    [
        (("", "0", "-1", "x"), "is not a period: use a number of days (999 at most), 2026, 2026-Q1, 2026-03 or "),
        (("1.5", "10000", "1825", "9999", "2026-Q5", "2026-13", "2026-3", "\u0663\u0660"), "is not a period"),
        (("2026-02-01..2026-02-30", "2026-03-01..", "20260301..20260302", "2026-01-01..9999-12-31"), "is not a period"),
        (("2026-03-12..2026-03-11", "2011-12-30..2011-12-30"), "contains no time: put the earlier day first"),
        (("2027", "2026-03-15..2026-03-16"), "has not begun: name a period that has"),
        (("2016-03-05..2026-03-31",), "is too long: name a period of 3660 days at most"),
    ],
)
def test_a_bad_period_says_what_is_accepted(texts: Sequence[str], problem: str) -> None:
    for text in texts:
        with pytest.raises(AuditError, match=re.escape(f"--history {text} {problem}")):
            parse_period(text, at("14 11:00"), ZoneInfo("Pacific/Apia"))  # midnight; it left out a day


# --- The program ---------------------------------------------------------------------------------------


def asked(site: Site, *argv: str, days: str = "30") -> str:
    """What `--history` prints as of NOW; it must succeed, however bad the past, and write no textfile."""
    result = site.audit("--history", days, "--at", NOW.isoformat(), *argv)
    assert (result.status, result.err, list(site.textfile.parent.iterdir())) == (0, "", [])
    return result.out


def by_name(site: Site, *argv: str, days: str = "30") -> dict[str, dict[str, Any]]:
    return {one["name"]: one for one in json.loads(asked(site, "--json", *argv, days=days))["containers"]}


def log_nights(site: Site, c_id: int, count: int, skip: Sequence[int] = ()) -> None:
    """Log a run of each of the last nights but some; 0 is the last one."""
    for night in set(range(count)) - set(skip):
        start = at("13 18:07") - night * DAY
        site.run(c_id, start, start + 23 * MINUTE)


def test_the_whole_population_is_in_every_form(sqlite_site: Site) -> None:
    sqlite_site.config(policies={"Monthly": 744}, extra_jobs={"offsite": "Daily"})
    policies = {"sales": "Daily", "trials": "Weekly", "survey": "monthly", "scratch": "Never", "typo": "x"}
    for name, policy in policies.items():
        log_nights(sqlite_site, sqlite_site.container(name, policy), 9, skip=(3, 4))
    log_nights(sqlite_site, sqlite_site.container("gone", active=False), 10, skip=range(8))
    sqlite_site.run(0, NOW - HOUR, NOW - MINUTE, name="offsite")
    everyone = {*policies, "offsite"}
    for argv, names in (([], everyone), (["--all"], everyone | {"gone"}), (["sa*", "trials"], {"sales", "trials"})):
        found = by_name(sqlite_site, *argv)
        assert set(found) == names
        rows = list(csv.DictReader(io.StringIO(asked(sqlite_site, "--csv", *argv), newline=""), strict=True))
        for name, one in found.items():
            assert [row["outcome"] for row in rows if row["name"] == name] == (one["outcomes"] or [""])
        assert {row["name"] for row in rows} == names
        assert [name for name in names if name not in asked(sqlite_site, *argv)] == []
    assert found["sales"]["outcomes"][-8:] == ["ok", "ok", "none", "none", "none", "ok", "ok", "ok"]
    assert asked(sqlite_site, "-q") == ""


def test_the_ratio_of_the_nightly_metric_is_that_of_the_history(any_site: Site) -> None:
    any_site.config(policies={"Monthly": 744}, history_days=20)
    for number, policy in enumerate(("Daily", "Weekly", "Monthly", "Never")):
        log_nights(any_site, any_site.container(policy, policy), 9, skip=range(number, 3 * number))
    log_nights(any_site, any_site.container("gone", active=False), 9)
    any_site.container("fresh", created=NOW - HOUR)
    any_site.container("unborn", created=NOW)
    ratios = {name: one["ratio"] for name, one in by_name(any_site, "--all", days="20").items()}
    assert [name for name, ratio in ratios.items() if ratio is None] == ["Never", "unborn"]
    assert ratios.pop("gone") == 1
    any_site.audit("-q", "--at", NOW.isoformat(), "--output", any_site.textfile)
    samples = any_site.samples().items()
    measured = {dict(labels)["name"]: value for (name, labels), value in samples if name == "mydb_backup_covered_ratio"}
    assert measured == {name: ratio for name, ratio in ratios.items() if ratio is not None}


def test_a_past_period_is_judged_as_of_its_end(sqlite_site: Site) -> None:
    c_id = sqlite_site.container("sales")
    log_nights(sqlite_site, c_id, 20)
    sqlite_site.run(c_id, "2026-03-08 23:50", "2026-03-09 00:10", error=FAILURE)
    sqlite_site.container("later", created="2026-03-10 09:00")
    for at_now in ([], ["--at", NOW.isoformat()]):
        result = sqlite_site.audit("--history", "2026-03-02..2026-03-08", "--json", *at_now)
        [sales] = json.loads(result.out)["containers"]
        assert (sales["status"], sales["outcomes"], sales["first_day"]) == ("ok", ["ok"] * 7, "2026-03-02")


def test_a_closed_pipe_is_not_an_error(sqlite_site: Site) -> None:
    for number in range(4):  # more than a pipe holds
        sqlite_site.container(f"sales-{number}")
    command = [sys.executable, str(TOP / "backup_audit.py"), "--config", str(sqlite_site.config()), "--history", "999"]
    with subprocess.Popen([*command, "--csv"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stderr
        assert process.stdout.readline()
        process.stdout.close()
        assert (process.stderr.read(), process.wait(timeout=60)) == (b"", 0)


def test_the_number_of_statements_is_bounded(sqlite_site: Site) -> None:
    seen: list[str] = []
    counts = []

    def note(*arguments: Any) -> None:
        seen.append(arguments[2])

    for number in (2, 20):
        for k in range(number):
            c_id = sqlite_site.container(f"c{number}-{k}", active=k % 2 == 0)
            sqlite_site.run(c_id, NOW - k * HOUR, NOW - k * HOUR)
        seen.clear()
        event.listen(Engine, "before_cursor_execute", note)
        asked(sqlite_site, "--csv", "--all", days="365")
        event.remove(Engine, "before_cursor_execute", note)
        counts.append(sum(bool(re.match(r"\s*(SELECT|WITH)\b", statement)) for statement in seen))
    assert counts[0] == counts[1] <= 6
