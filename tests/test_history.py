"""The past of a site (SPEC section 9) by example: the rule, periods, table, JSON, CSV, and the program around them."""

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

from audit.history import ContainerHistory, last_days, look_back, parse_period
from audit.history_report import history_csv, history_json, history_table, percent, worst_first
from audit.policy import DAY, HOUR, UTC, Container, Rules, Run
from audit.printable import Style, columns
from tests.builders import NOW, SECRET, TOP, Site
from tests.test_printable import HOSTILE, PASSWORDS, WIDE
from tests.test_printable import SECRET as MASKED

MINUTE = timedelta(minutes=1)
TICK = timedelta.resolution
NOTHING = timedelta(0)
BERLIN = ZoneInfo("Europe/Berlin")
RULES = Rules(policies={"Monthly": 744 * HOUR})
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
    return run(started, error=FAILURE, backup_id=backup_id)


def nights(*dates: int) -> list[Run]:
    return [run(f"{date:02} 18:07") for date in dates]


def past(*runs: Run, days: int = 3, end: datetime = NOW, rules: Rules = RULES, **facts: Any) -> ContainerHistory:
    """The history of a Daily container made long ago, but for the facts that are given."""
    given: dict[str, Any] = {"c_id": 7, "name": "sales", "policy": "Daily", "created": at("2025-01-15 09:30")} | facts
    return look_back(Container(**given), runs, last_days(days, end, rules.zone), rules)


def letters(history: ContainerHistory) -> str:
    """The outcomes: o(k), f(ailed), - (none), b(efore)."""
    return "".join(outcome.value[0] for outcome in history.outcomes).replace("n", "-")


def spans(history: ContainerHistory) -> list[tuple[datetime, datetime]]:
    return [(stretch.start, stretch.end) for stretch in history.stretches]


# --- The rule ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hour", range(24))
def test_a_nightly_job_with_jitter_is_covered_whenever_you_ask(hour: int) -> None:
    now, first = NOW.replace(hour=hour), at("2026-02-01 00:40")
    runs = [run(first + night * DAY + night % 2 * 40 * MINUTE) for night in range(42)]
    history = past(*(one for one in runs if one.ended and one.ended <= now), days=30, end=now)
    assert (set(letters(history)), history.ratio) == ({"o"}, 1)


def test_a_run_in_progress_is_not_a_failure() -> None:
    history = past(*nights(9, 10, 11, 12), run("13 18:07"), run("14 06:50", None))
    assert (letters(history), history.ratio, history.status.value) == ("oooo", 1, "ok")


def test_a_container_five_hours_old_with_nothing_due_is_covered() -> None:
    history = past(created=NOW - 5 * HOUR)
    assert (letters(history), history.ratio, history.counted) == ("bbbo", 1, 5 * HOUR)
    assert (history.status.value, history.worst_age) == ("new", 5 * HOUR)


@pytest.mark.parametrize("backed_up", [True, False])
@pytest.mark.parametrize(
    ("policy", "base", "zone", "lapse"),
    [
        ("Daily", "13 01:00", UTC, "14 07:00"),
        ("Monthly", "2026-02-10 18:00", UTC, "14 00:00"),
        ("Weekly", "07 18:07", UTC, "15 06:00"),
        ("Weekly", "14 00:00", UTC, "22 06:00"),  # midnight itself is not after the base
        ("Weekly", "13 23:59", UTC, "15 06:00"),
        ("Weekly", "24 18:07", BERLIN, "29 05:00"),  # clocks change in these six hours of grace
        ("Weekly", "2026-10-20 18:07", BERLIN, "2026-10-25 04:00"),
    ],
)
def test_covered_is_up_to_due_and_grace(policy: str, base: str, zone: Any, lapse: str, backed_up: bool) -> None:
    runs = [run(base)] if backed_up else []
    facts: dict[str, Any] = {} if backed_up else {"created": at(base)}
    ends = (at(lapse), at(lapse) + TICK)
    last, late = (past(*runs, policy=policy, end=end, rules=replace(RULES, zone=zone), **facts) for end in ends)
    assert at(lapse) not in [end for _, end in spans(last)]
    assert spans(late)[-1] == (at(lapse), at(lapse) + TICK)
    assert (letters(late)[-1], percent(late.ratio) == "100.0 %") == ("-", False)


@pytest.mark.parametrize(
    ("runs", "uncovered"),
    [
        pytest.param([run("13 18:07", "14 05:00")], [("13 07:00", "14 05:00")], id="a run counts from its end"),
        pytest.param([bad("13 05:00")], [("13 07:00", "14 07:00")], id="a failed run never counts"),
        pytest.param([run("13 05:00", None)], [("13 07:00", "14 07:00")], id="nor one without an end"),
        pytest.param([run("13 05:00", start_logged=False)], [], id="an end without a start is a run"),
        pytest.param([run("13 09:00", "13 05:00")], [("13 07:00", "13 09:00")], id="no base lies in the future"),
        pytest.param([run("12 06:00", "13 08:00")], [("13 07:00", "13 08:00"), ("13 12:00", "14 07:00")], id="age"),
        pytest.param([run("12 02:00", "13 08:00")], [("13 07:00", "14 07:00")], id="too old when it ends: no split"),
        pytest.param([run("12 20:00"), run("12 10:00", "13 06:00")], [("14 02:00", "14 07:00")], id="the newest"),
        pytest.param([run("13 18:07"), bad("13 18:07", "x")], [("13 07:00", "13 18:30")], id="twins"),
        pytest.param([run("13 18:07", "14 07:00")], [("13 07:00", "14 07:00")], id="an end at the very end"),
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
        (nights(10, 11, 12, 13), "oooo"),
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
    ("created", "expected"),
    [
        *((at("12 00:00"), "bo--"), (at("12 00:00") - TICK, "oo--"), (at("13 23:59"), "bboo"), (NOW - TICK, "bbbo")),
        *((NOW, "bbbb"), (NOW + 5 * MINUTE, "bbbb"), (None, "----")),
        (NOW + 5 * MINUTE + TICK, "----"),  # a wrong stamp makes no container new
    ],
)
def test_before_its_creation_nothing_counts(created: datetime | None, expected: str) -> None:
    history = past(created=created)
    assert letters(history) == expected
    assert history.counted == {"bbbb": NOTHING, "----": 3 * DAY}.get(expected, NOW - (created or NOW))
    assert (history.ratio is None) is (expected == "bbbb")


@pytest.mark.parametrize(("created", "expected"), [("20 00:00", "bb"), ("2026-04-01 00:06", "--")])
def test_a_container_created_after_the_period_does_not_count_but_a_wrong_stamp_is_unknown(
    created: str, expected: str
) -> None:
    period = parse_period("2026-03-12..2026-03-13", at("2026-04-01 00:00"), UTC)
    assert letters(look_back(Container(7, "sales", "Daily", created=at(created)), [], period, RULES)) == expected


@pytest.mark.parametrize(
    ("text", "hours"), [("2026-03-28..2026-03-30", [24, 23, 24]), ("2026-10-24..2026-10-26", [24, 25, 24])]
)
def test_days_have_23_or_25_hours_where_clocks_change(text: str, hours: list[int]) -> None:
    period, container = parse_period(text, at("2027-01-01 00:00"), BERLIN), Container(7, "sales", "Daily")
    assert [(day.end - day.start) / HOUR for day in period.days] == hours
    runs = [[], [run(period.days[1].end - 30 * HOUR)], [run(period.days[1].end - 30 * HOUR - TICK)]]
    none, whole, late = (look_back(container, some, period, replace(RULES, zone=BERLIN)) for some in runs)
    assert [lost / HOUR for lost in none.uncovered_by_day] == hours
    assert [letters(history)[1] for history in (none, whole, late)] == ["-", "o", "-"]


@pytest.mark.parametrize(
    ("zone", "text", "starts"),
    [
        ("America/Sao_Paulo", "2018-11-03..2018-11-05", ["11-03 03:00", "11-04 03:00", "11-05 02:00"]),
        ("Asia/Beirut", "2026-03-28..2026-03-30", ["03-27 22:00", "03-28 22:00", "03-29 21:00"]),
        ("America/Havana", "2026-10-31..2026-11-02", ["10-31 04:00", "11-01 04:00", "11-02 05:00"]),
        ("Pacific/Apia", "2011-12-29..2011-12-31", ["12-29 10:00", "12-30 10:00"]),  # left out a day
    ],
)
def test_a_midnight_that_does_not_exist_or_occurs_twice_begins_a_day(zone: str, text: str, starts: list[str]) -> None:
    period = parse_period(text, at("2027-01-01 00:00"), ZoneInfo(zone))
    assert [f"{day.start:%m-%d %H:%M}" for day in period.days] == starts


# --- Figures -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("runs", "created", "expected"),
    [
        (nights(10, 11, 12, 13), None, 24 * HOUR + 23 * MINUTE),
        (nights(10, 13), None, 72 * HOUR + 23 * MINUTE),
        ([*nights(10), bad("12 18:07")], None, NOW - at("10 18:07")),
        ([], "10 09:30", NOW - at("10 09:30")),
        (nights(13), "10 09:30", at("13 18:30") - at("10 09:30")),
        (nights(13), None, None),  # how old the data was before that run is not known
        ([], None, None),
    ],
)
def test_the_worst_age(runs: list[Run], created: str | None, expected: timedelta | None) -> None:
    assert past(*runs, created=created and at(created)).worst_age == expected


def test_the_median_duration_is_that_of_the_succeeded_runs_of_the_period() -> None:
    runs = [run("10 18:07", "10 23:07"), run("11 18:07", "11 18:17"), run("12 18:07", "12 18:27"), bad("12 20:00")]
    assert past(*runs).median_duration == 15 * MINUTE
    assert past(*runs, run("13 18:07")).median_duration == 20 * MINUTE
    assert past(*runs, run("13 18:07", start_logged=False)).median_duration == 15 * MINUTE
    assert past(bad("13 18:07")).median_duration is None


def test_a_stretch_shows_the_bad_runs_since_the_last_good_backup() -> None:
    history = past(run("09 18:07"), bad("09 18:00"), *nights(10), bad("11 18:07"), *nights(12), bad("12 19:00"))
    assert spans(history) == [(at("12 00:07"), at("12 18:30")), (at("14 00:07"), NOW)]
    assert [stretch.runs for stretch in history.stretches] == [(bad("11 18:07"),), (bad("12 19:00"),)]
    runs = [bad(f"{date:02} 18:07") for date in range(1, 14)]
    [stretch] = past(run("2026-02-20 18:07"), *runs).stretches
    assert stretch.runs == tuple(runs[9:])  # since 10 01:00: a run before that would be too old now
    [stretch] = past(run("09 01:00"), run("09 02:00", "12 12:00"), bad("10 05:00"), bad("10 00:59")).stretches
    assert stretch.runs == (bad("10 05:00"),)


@pytest.mark.parametrize(("policy", "status"), [("Never", "exempt"), (" none ", "exempt"), (None, "no_policy")])
def test_without_a_schedule_there_are_no_outcomes_and_no_ratio(policy: str | None, status: str) -> None:
    history = past(*nights(10), policy=policy)
    assert (history.status.value, history.outcomes, history.ratio, history.stretches) == (status, (), None, ())


@pytest.mark.parametrize(
    ("runs", "expected", "uncovered", "status"),
    [
        ([*nights(10, 11), bad("12 20:00")], "oo", NOTHING, "failed"),
        ([*nights(10), bad("12 20:00")], "of", at("12 20:23") - at("12 00:07"), "failed"),
        ([*nights(10, 11), run("13 00:00", None)], "oo", NOTHING, "running"),  # nothing of the 13th counts
        ([run("10 18:07", "11 07:00")], "", NOTHING, "ok"),  # it was deleted before the period
        ([], "", NOTHING, "missed"),
    ],
)
def test_a_deleted_container_counts_up_to_its_last_row(
    runs: list[Run], expected: str, uncovered: Any, status: str
) -> None:
    history = past(*runs, deleted=True)
    assert (letters(history), history.uncovered, history.status.value) == (expected, uncovered, status)
    last = max((one.ended or one.started for one in runs), default=NOW - 3 * DAY)
    assert history.counted == last - (NOW - 3 * DAY)


# --- Periods -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "start", "end", "days"),
    [
        ("1", "13 07:00", "14 07:00", 2),
        ("30", "2026-02-12 07:00", "14 07:00", 31),
        (" 007 ", "07 07:00", "14 07:00", 8),
        ("2024", "2023-12-31 23:00", "2024-12-31 23:00", 366),
        ("2026", "2025-12-31 23:00", "14 07:00", 73),
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
        with pytest.raises(ValueError, match=re.escape(f"--history {text} {problem}")):
            parse_period(text, at("14 11:00"), ZoneInfo("Pacific/Apia"))  # midnight; it left out a day


# --- The table -----------------------------------------------------------------------------------------


def some_site(days: int = 9) -> list[ContainerHistory]:
    """Five judged containers, and two others."""
    every = nights(*range(1, 14))
    return [
        past(*every, days=days),
        past(*every[:7], bad("09 00:30"), *every[9:], days=days, name="trials", c_id=8),
        past(*every, days=days, name="fresh", c_id=9, created=at("12 12:00")),
        past(*every[:1], days=days, name="survey", policy="monthly", c_id=10),
        past(*nights(1, 2, 3, 7, 8), days=days, name="gone", c_id=11, deleted=True, state=None),
        past(days=days, name="scratch", policy="Never", c_id=12),
        past(days=days, name="typo", policy="Fortnightly", c_id=13),
    ]


def shown(histories: Sequence[ContainerHistory], days: int = 9, **style: Any) -> list[str]:
    return list(history_table(histories, last_days(days, NOW, UTC), "mydbadmin@db:32009/mydb_admin", Style(**style)))


def test_the_table() -> None:
    assert shown(some_site()) == [
        "Backup history of mydbadmin@db:32009/mydb_admin, 9 days: 2026-03-05 07:00 UTC to",
        "2026-03-14 07:00 UTC",
        "",
        "COVERED CONTAINER      POLICY  WORST AGE 03-05",
        " 28.7 % gone (deleted) Daily      4 days ···■",
        " 80.3 % trials         Daily      3 days ■■■■✗·■■■■",
        "100.0 % survey         Monthly 12.5 days ■■■■■■■■■■",
        "100.0 % fresh          Daily      24.4 h        ■■■",
        "100.0 % sales          Daily      24.4 h ■■■■■■■■■■",
        "",
        "■ covered all day        ✗ not, and a run failed",
        "· not, no run failed     blank: did not exist",
        "",
        "A container is covered while its newest good backup is recent enough for its",
        "policy, grace included. Judged by today's policies and settings.",
        "7 containers, 5 judged: 86.8 % of the time covered, 4.2 days in all not covered.",
        "3 covered all the time. Worst: gone (deleted).",
        "No backups wanted: scratch.",
        "No valid policy, so not judged: typo.",
    ]


def test_colours_and_ascii_say_the_same() -> None:
    lines, colours = shown(some_site()), shown(some_site(), colour=True)
    assert [re.sub(r"\x1b\[[\d;]*m", "", line) for line in colours] == lines
    assert "\x1b[31;1m✗\x1b[0m" in "\n".join(colours)
    assert shown(some_site(), ascii=True) == [line.translate(str.maketrans("■✗·", "#x.")) for line in lines]


def test_a_long_strip_continues_in_lines_of_whole_weeks() -> None:
    lines = shown(some_site(99), days=99, width=64)
    trials, fresh = (next(n for n, line in enumerate(lines) if f" {name} " in line) for name in ("trials", "fresh"))
    assert lines[trials + 1 : trials + 4] == [
        "       2025-12-05 " + "·" * 42,
        "       2026-01-16 " + "·" * 42,
        "       2026-02-27 ···■■■■■■■✗·■■■■",
    ]
    assert lines[fresh + 1] == f"       2026-02-27 {'':13}■■■", "a line of blanks is left out"


def test_a_month_is_one_line_of_80_columns_with_a_date_a_week() -> None:
    long, short = (past(*nights(*range(1, 14)), days=30, name=name) for name in ("plasmid-catalog-of-2026", "sales"))
    header, *rows = shown([long, short], days=30)[3:6]
    assert header == "COVERED CONTAINER              POLICY  WORST AGE 02-12  02-19  02-26  03-05"
    assert [len(row) for row in rows] == [80, 80]
    assert [len(shown([long, short], days=30, width=width)) for width in (80, 74, 73)] == [14, 14, 16]
    assert {row[7:31] for row in rows} == {" plasmid-catalog-of-... ", f" {'sales':22} "}


NAMES = ["sales", "x" * 300, WIDE * 30, "cafe\u0301" * 10, "a b c", "-v", *HOSTILE]


@pytest.mark.parametrize("width", [60, 80, 200])
@pytest.mark.parametrize("days", [1, 30, 365])
def test_no_line_is_wider_than_the_terminal(width: int, days: int) -> None:
    rules = replace(RULES, policies={"Every second month of the year": 1488 * HOUR, "9": HOUR})
    histories = [
        past(*nights(5, 9), days=days, name=name, policy=policy, deleted=deleted, created=created, rules=rules)
        for name in NAMES
        for policy in (*rules.policies, "Never", "=x")
        for deleted in (False, True)
        for created in (at("1990-01-01 00:00"), NOW, None)
    ]
    lines = shown(histories, days=days, width=width)
    assert [line for line in lines if columns(line) > width or line != line.rstrip() or not line.isprintable()] == []
    rows = [line for line in lines if re.match(r" *(\d+\.\d %|-) ", line)]
    assert len(rows) == sum(bool(one.outcomes) for one in histories)
    assert sum("(deleted)" in row for row in rows) == sum(one.container.deleted for one in histories if one.outcomes)


def test_the_worst_ratio_comes_first_and_of_equal_ones_the_worst_age() -> None:
    histories = [past(name="b"), past(name="a"), past(name="older", created=at("2020-01-01 00:00")), past(created=NOW)]
    histories += [past(*nights(9, 10, 11, 12, 13), name="fine"), past(*nights(9, 10, 11, 12), name="nearly")]
    assert [one.container.name for one in worst_first(histories)] == ["older", "a", "b", "nearly", "fine", "sales"]


def test_a_percentage_is_rounded_down() -> None:
    ratios = (None, 0.0, 0.57, 0.2999, 1 - 1e-15, 1.0)
    assert [percent(ratio) for ratio in ratios] == ["-", "0.0 %", "57.0 %", "29.9 %", "99.9 %", "100.0 %"]


def test_the_summary_of_other_sites() -> None:
    fine = past(*nights(9, 10, 11, 12, 13))
    for histories, text in (
        ([], "0 containers."),
        ([past(policy="Never")], "1 container, 0 judged."),
        ([fine], "1 container: covered all the time."),
        ([fine, fine, past(created=NOW)], "3 containers, 2 judged: covered all the time."),
        ([fine, past(run("01 18:07"), deleted=True)], "Deleted before this period: sales (deleted)."),
    ):
        assert text in shown(histories)


# --- JSON and CSV --------------------------------------------------------------------------------------


def test_the_json_document() -> None:
    period, site = last_days(9, NOW, UTC), some_site()
    document = json.loads(history_json(site, period))
    counted, uncovered = (sum((getattr(one, name) for one in site), NOTHING) for name in ("counted", "uncovered"))
    assert list(document["history"].items()) == [
        *(("from", "2026-03-05T07:00:00Z"), ("to", "2026-03-14T07:00:00Z"), ("days", 10), ("containers", 7)),
        *(("ratio", (counted - uncovered) / counted), ("uncovered_seconds", uncovered.total_seconds())),
    ]
    by_name = {one["name"]: one for one in document["containers"]}
    assert list(by_name["trials"].items()) == [
        *(("name", "trials"), ("c_id", 8), ("policy", "Daily"), ("status", "ok"), ("first_day", "2026-03-05")),
        *(("ratio", (9 * 86400 - 152580) / (9 * 86400)), ("uncovered_seconds", 152580.0)),
        *(("worst_age_seconds", 260580.0), ("median_duration_seconds", 1380.0)),
        ("outcomes", ["ok"] * 4 + ["failed", "none"] + ["ok"] * 4),
    ]
    assert by_name["fresh"]["outcomes"] == ["before"] * 7 + ["ok"] * 3
    for name, status in (("scratch", "exempt"), ("typo", "no_policy")):
        assert (by_name[name]["status"], by_name[name]["ratio"], by_name[name]["outcomes"]) == (status, None, [])
    assert json.loads(history_json([], period))["history"]["ratio"] is None


def rows_of(history: ContainerHistory, runs: Sequence[Run], days: int = 3, zone: Any = UTC) -> list[dict[str, str]]:
    text = "".join(f"{lines}\n" for lines in history_csv([(history, list(runs))], last_days(days, NOW, zone), zone))
    assert text.count("\n") == text.count("\r\n") == len(list(csv.reader(io.StringIO(text, newline=""), strict=True)))
    assert text.startswith("name,c_id,policy,day,outcome,uncovered_seconds,run_started,run_ended,backup_id\r\n")
    return list(csv.DictReader(io.StringIO(text, newline=""), strict=True))


def test_the_csv_has_a_row_for_each_day_with_the_last_good_run_that_started_on_it_or_else_the_last() -> None:
    runs = [run("10 18:07"), bad("11 06:59"), bad("12 00:30"), run("12 18:07"), bad("12 20:00"), bad("14 00:30")]
    runs += [run("14 06:50", None)]
    assert [list(row.values()) for row in rows_of(past(*runs), runs)] == [
        ["sales", "7", "Daily", "2026-03-11", "ok", "0", "", "", ""],
        [
            *("sales", "7", "Daily", "2026-03-12", "failed", "66180"),
            *("2026-03-12T18:07:00+00:00", "2026-03-12T18:30:00+00:00", "20260312-18:07:00"),
        ],
        ["sales", "7", "Daily", "2026-03-13", "ok", "0", "", "", ""],
        ["sales", "7", "Daily", "2026-03-14", "failed", "24780", "2026-03-14T06:50:00+00:00", "", "20260314-06:50:00"],
    ]


def test_the_times_of_the_csv_are_those_of_its_days() -> None:
    runs = [run("12 23:30", "13 00:10")]
    rows = rows_of(past(*runs, rules=replace(RULES, zone=BERLIN)), runs, zone=BERLIN)
    assert [row["run_started"] for row in rows] == ["", "", "2026-03-13T00:30:00+01:00", ""]


def test_uncovered_seconds_are_never_rounded_to_none() -> None:
    runs, end = [run("13 01:00")], NOW + TICK
    *_, lines = history_csv([(past(*runs, days=1, end=end), runs)], last_days(1, end, UTC), UTC)
    assert lines.splitlines()[-1] == "sales,7,Daily,2026-03-14,none,1,,,"


def test_the_whole_population_is_in_the_csv() -> None:
    assert [list(row.values()) for row in rows_of(past(policy="Never"), [])] == [["sales", "7", "Never", *[""] * 6]]
    runs = nights(10, 11)
    assert [row["outcome"] for row in rows_of(past(*runs, deleted=True), runs)] == ["ok"]
    assert [row["outcome"] for row in rows_of(past(created=NOW), [])] == ["before"] * 4


@pytest.mark.parametrize(
    "name", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "\uff1d1", "\uff20x", *HOSTILE]
)
def test_no_cell_of_the_csv_is_a_formula_or_breaks_a_line(name: str) -> None:
    runs = [run("12 18:07", backup_id=name)]
    for row in rows_of(past(*runs, name=name, policy=name, rules=replace(RULES, policies={name.strip(): HOUR})), runs):
        assert not [
            cell for cell in row.values() if re.match("[=+@\uff1d\uff0b\uff0d\uff20-]", cell) or not cell.isprintable()
        ]


@pytest.mark.parametrize("name", ["sales", 'a"b', "a,b", "a;b", "caf\u00e9", WIDE, "'x", "0042", "1e5"])
def test_any_other_name_survives_the_csv(name: str) -> None:
    runs = [run("12 18:07", backup_id=name)]
    rows = rows_of(past(*runs, name=name), runs)
    assert ({row["name"] for row in rows}, rows[1]["backup_id"]) == ({name}, name)


@pytest.mark.parametrize("text", PASSWORDS)
def test_no_password_comes_out(text: str) -> None:
    runs = [run("12 18:07", backup_id=text)]
    for history in (past(*runs), past(policy=text)):
        rows = rows_of(history, runs)
        assert MASKED not in json.dumps(rows) + history_json([history], last_days(3, NOW, UTC))
        assert MASKED not in "".join(shown([history, past(name=text), past(name=text, policy=None)], days=3))


# --- The program ---------------------------------------------------------------------------------------


def asked(site: Site, *argv: str, days: str = "30") -> str:
    """What `--history` prints as of NOW; it must succeed, and write no textfile."""
    result = site.audit("--history", days, "--at", NOW.isoformat(), *argv)
    assert (result.status, result.err, list(site.textfile.parent.iterdir())) == (0, "", [])
    return result.out


def by_name(site: Site, *argv: str, days: str = "30") -> dict[str, dict[str, Any]]:
    return {one["name"]: one for one in json.loads(asked(site, "--json", *argv, days=days))["containers"]}


def measured(site: Site) -> dict[str, dict[str, float]]:
    """The samples of an audit as of NOW: of each metric the containers' values."""
    textfile = site.folder / "measured.prom"
    assert site.audit("-q", "--at", NOW.isoformat(), "--output", textfile).status < 3
    found: dict[str, dict[str, float]] = {}
    for (metric, labels), value in site.samples(textfile).items():
        found.setdefault(metric, {})[dict(labels).get("name", "")] = value
    return found


def log_nights(site: Site, c_id: int, count: int, skip: Sequence[int] = (), seconds: float = 1380) -> None:
    """Log a run of each of the last nights but some; 0 is the last one."""
    for night in set(range(count)) - set(skip):
        start = at("13 18:07") - night * DAY
        site.run(c_id, start, start + timedelta(seconds=seconds))


def test_the_whole_population_is_in_every_form(any_site: Site) -> None:
    site = any_site
    site.config(policies={"Monthly": 744}, extra_jobs={"offsite": "Daily"})
    policies = {"sales": "Daily", "trials": "Weekly", "survey": "monthly", "scratch": "Never", "typo": "x"}
    for name, policy in policies.items():
        log_nights(site, site.container(name, policy), 9, skip=(3, 4))
    log_nights(site, site.container("gone", active=False), 20, skip=range(8))
    site.run(0, NOW - HOUR, NOW - MINUTE, name="offsite")
    everyone = {*policies, "offsite"}
    for argv, names in (([], everyone), (["--all"], everyone | {"gone"}), (["sa*", "trials"], {"sales", "trials"})):
        found = by_name(site, *argv)
        assert set(found) == names
        rows = list(csv.DictReader(io.StringIO(asked(site, "--csv", *argv), newline=""), strict=True))
        for name, one in found.items():
            assert [row["outcome"] for row in rows if row["name"] == name] == (one["outcomes"] or [""])
        assert {row["name"] for row in rows} == names
        assert [name for name in names if name not in asked(site, *argv)] == []
    assert found["sales"]["outcomes"][-8:] == ["ok", "ok", "ok", "none", "none", "ok", "ok", "ok"]


def test_the_ratio_of_the_nightly_metric_is_that_of_the_history(any_site: Site) -> None:
    any_site.config(policies={"Monthly": 744}, history_days=20)
    for number, policy in enumerate(("Daily", "Weekly", "Monthly", "Never")):
        log_nights(any_site, any_site.container(policy, policy), 9, skip=range(number, 3 * number))
    any_site.container("fresh", created=NOW - HOUR)
    any_site.container("unborn", created=NOW)
    ratios = {name: one["ratio"] for name, one in by_name(any_site, days="20").items()}
    assert [name for name, ratio in ratios.items() if ratio is None] == ["Never", "unborn"]
    assert measured(any_site)["mydb_backup_covered_ratio"] == {name: r for name, r in ratios.items() if r is not None}


def test_a_past_period_is_judged_as_of_its_end(any_site: Site) -> None:
    c_id = any_site.container("sales")
    log_nights(any_site, c_id, 20)
    any_site.run(c_id, "2026-03-08 23:50", "2026-03-09 00:10", error=FAILURE)
    any_site.container("later", created="2026-03-10 09:00")
    for at_now in ([], ["--at", NOW.isoformat()]):
        result = any_site.audit("--history", "2026-03-02..2026-03-08", "--json", *at_now)
        [sales] = json.loads(result.out)["containers"]
        assert (sales["status"], sales["outcomes"], sales["first_day"]) == ("ok", ["ok"] * 7, "2026-03-02")


@pytest.mark.parametrize(
    "argv",
    [
        *(["--history", "0"], ["--history=-1"], ["--history", "month"], ["--history", "2027"], ["--history", "3", "x"]),
        *(["--csv"], ["--all"], ["--history", "3", "--csv", "--json"], ["--history", "3", "--output", "-"]),
    ],
)
def test_an_impossible_history_is_one_line_and_status_3(sqlite_site: Site, argv: list[str]) -> None:
    sqlite_site.container()
    assert asked(sqlite_site, "-q") == "", "however bad the past, the status is 0"
    result = sqlite_site.audit("--at", NOW.isoformat(), *argv)
    assert (result.status, result.out) == (3, "")
    assert re.fullmatch(r"backup_audit: [^\n]+: [^\n]+\n", result.err)


@pytest.mark.parametrize("form", [["--csv"], ["--json"], []])
def test_a_closed_pipe_is_not_an_error(sqlite_site: Site, form: list[str]) -> None:
    for number in range(20):  # more than a pipe holds
        sqlite_site.container(f"sales-{number}")
    command = [sys.executable, str(TOP / "backup_audit.py"), "--config", str(sqlite_site.config()), "--history", "999"]
    with subprocess.Popen([*command, *form], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stderr
        assert process.stdout.readline()
        process.stdout.close()
        assert (process.stderr.read(), process.wait(timeout=60)) == (b"", 0)


@pytest.mark.parametrize("form", [["--json"], ["--csv", "--all"]])
def test_the_number_of_statements_is_bounded_and_none_reads_a_password(any_site: Site, form: list[str]) -> None:
    seen: list[str] = []
    counts = []

    def note(*arguments: Any) -> None:
        seen.append(arguments[2])

    for number in (2, 40):
        for k in range(number):
            any_site.run(any_site.container(f"c{number}-{k}", active=k % 2 == 0), NOW - k * HOUR, NOW - k * HOUR)
        seen.clear()
        event.listen(Engine, "before_cursor_execute", note)
        assert SECRET not in asked(any_site, *form, days="365")
        event.remove(Engine, "before_cursor_execute", note)
        counts.append(sum(bool(re.match(r"\s*(SELECT|WITH)\b", statement)) for statement in seen))
        assert not [statement for statement in seen if re.search(r"\bcommand\b", statement)]
    assert counts[0] == counts[1] <= 6


def test_a_suspicious_duration_is_noted_and_changes_no_status(any_site: Site) -> None:
    c_id, start = any_site.container(), at("13 18:07")
    log_nights(any_site, c_id, 6, skip=[0], seconds=1860)
    any_site.run(c_id, start, start + timedelta(seconds=2))
    note = "took 2 s, typically 31 min: check the dump"
    for argv in ([], ["-v"], ["sales"]):
        result = any_site.audit("--at", NOW.isoformat(), *argv)
        assert (result.status, note in " ".join(result.out.split())) == (0, True)
    assert measured(any_site)["mydb_backup_typical_duration_seconds"] == {"sales": 1860}
    any_site.config(history_days=0)
    assert note not in any_site.audit("--at", NOW.isoformat(), "-v").out
    assert not {"mydb_backup_covered_ratio", "mydb_backup_typical_duration_seconds"} & set(measured(any_site))
