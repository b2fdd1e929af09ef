"""Log rows become runs: how rows are folded, what is ignored, what is kept, and when a part of the log decides."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from itertools import permutations
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from admin_db import LogRow
from audit.log import FUTURE, MALFORMED, UNDATED, ContainerLog, LogReader, clock_gap
from audit.messages import Patterns
from audit.policy import HOUR, UTC, Moment, Run
from tests.builders import NOW

MINUTE = timedelta(minutes=1)
PATTERNS = Patterns(errors=(re.compile("fail"),), successes=(re.compile("fine"),))
BERLIN, LOS_ANGELES = ZoneInfo("Europe/Berlin"), ZoneInfo("America/Los_Angeles")


def at(text: str) -> datetime:
    """A naive stamp of March 2026, from `13 18:07`."""
    return datetime.fromisoformat(f"2026-03-{text}")


def row(state: str | None, ts: str | datetime | None, message: str | None = "", **more: Any) -> LogRow:
    """A row of the log, from `start` and `13 18:07`."""
    stamp = at(ts) if isinstance(ts, str) else ts
    facts: dict[str, Any] = {"id": 1, "c_id": 7, "name": "sales", "backup_id": "x", "type": "Daily", "url": ""}
    return LogRow(**{**facts, "state": state, "ts": stamp, "message": message, "message_end": None, **more})


def log_of(*rows: LogRow, moment: Moment | None = None, zone: Any = UTC, keeps: bool = False) -> ContainerLog:
    """What is made of rows; the early moment is 24 hours ago."""
    moment = moment or Moment.by_clock(NOW)
    return LogReader(moment, zone, PATTERNS, keeps).read(rows, moment.yesterday)


def shown(runs: list[Run]) -> list[str]:
    """Runs as `18:07-18:30 fine`; `?` where a start or an end is not in the log."""
    return [
        f"{f'{run.started:%H:%M}' if run.start_logged else '?'}-{f'{run.ended:%H:%M}' if run.ended else '?'}"
        f" {run.said.meaning.name.lower()}"
        for run in runs
    ]


# --- Rows to runs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "runs"),
    [
        (["start 18:07", "end 18:30"], ["18:07-18:30 fine"]),
        (["end 18:30"], ["?-18:30 fine"]),
        (["start 18:07", "end 18:30", "end 18:40"], ["18:07-18:40 fine"]),
        # a start row that is there twice is no other run; one with another stamp is
        (["start 18:07", "start 18:07", "end 18:30"], ["18:07-18:30 fine"]),
        (["start 18:07", "end 18:30", "start 20:00"], ["18:07-18:30 fine", "20:00-? fine"]),
        (["start 18:07", "start 20:00", "end 20:10"], ["18:07-? fine", "20:00-20:10 fine"]),
        (["end 18:30", "start 18:35"], ["18:35-18:30 fine"]),
        # at the same stamp a start comes before an end
        (["end 18:07", "start 18:07"], ["18:07-18:07 fine"]),
        ([" START\n 18:07", "End 18:30"], ["18:07-18:30 fine"]),
        # an error counts in any row
        (["start 18:07 it failed", "end 18:30 fine"], ["18:07-18:30 error"]),
        (["start 18:07 odd", "end 18:30 fine"], ["18:07-18:30 unrecognised"]),
        (["start 18:07", "end 18:30 it failed", "start 20:00"], ["18:07-18:30 error", "20:00-? fine"]),
    ],
)
def test_rows_of_one_backup_id_become_runs(rows: list[str], runs: list[str]) -> None:
    """Whatever the order of ids, and of rows at one stamp."""
    for order in permutations(range(len(rows))):
        parts = [re.fullmatch(r"(\s*\S+\s+)(\d\d:\d\d) ?(.*)", text) for text in rows]
        made = [row(m[1], f"13 {m[2]}", m[3], id=number) for m, number in zip(parts, order, strict=True) if m]
        assert shown(log_of(*made).runs) == runs


def test_rows_of_other_backup_ids_are_other_runs() -> None:
    log = log_of(row("start", "13 18:07"), row("start", "13 18:10", backup_id="y"), row("end", "13 18:30"))
    assert shown(log.runs) == ["18:07-18:30 fine", "18:10-? fine"]


def test_a_run_has_what_its_rows_say() -> None:
    first = row("start", "13 18:07", "fine start", url="s3://b/at-start", type=None)
    last = row("end", "13 18:30", "fine\nodd", url="s3://b/at-end")
    [run] = log_of(first, last, keeps=True).runs
    assert (run.duration, run.type, run.url) == (23 * MINUTE, "Daily", "s3://b/at-end")
    assert (run.said.line, run.message) == ("odd", "fine start\nfine\nodd")
    assert [one.url for one in log_of(first, last._replace(url=None)).runs] == ["s3://b/at-start"]
    worst = log_of(first._replace(message="b failed", id=9), last._replace(message="a failed"))
    assert [run.said.line for run in worst.runs] == ["b failed"], "of lines that are as bad the earliest"


def test_the_runs_of_yesterday_are_folded_from_the_rows_until_then() -> None:
    rows = [row("start", "13 06:50"), row("end", "13 07:10", "it failed"), row("start", "13 18:07", backup_id="y")]
    log = log_of(*rows)
    assert shown(log.runs) == ["06:50-07:10 error", "18:07-? fine"]
    assert shown(log.early_runs) == ["06:50-? fine"]


def test_stamps_are_read_in_the_zone_of_the_log() -> None:
    twice = datetime(2026, 10, 25, 2, 30)  # its first occurrence counts
    moment = Moment.by_clock(datetime(2026, 10, 26, tzinfo=UTC))
    [run] = log_of(row("start", twice), moment=moment, zone=BERLIN).runs
    assert run.started == datetime(2026, 10, 25, 0, 30, tzinfo=UTC)


# --- What is ignored -------------------------------------------------------------------------------------


def test_ignored_rows_have_a_reason_and_the_newest_three_ids_of_each() -> None:
    malformed = [row("start", "13 18:07", id=number, backup_id=None) for number in (5, 9, 2)]
    malformed += [
        row("ended", "13 18:07", id=7),
        row(None, "13 18:07", id=1),
        row("end", "13 18:07", id=8, backup_id=""),
    ]
    log = log_of(*malformed, row("start", "14 07:05:01", id=11), row("end", None, id=12), row("start", "14 07:05"))
    assert log.ignored.counts == {FUTURE: 1, MALFORMED: 6, UNDATED: 1}
    assert log.ignored.newest == {FUTURE: [11], MALFORMED: [9, 8, 7], UNDATED: [12]}
    assert shown(log.runs) == ["07:05-? fine"]
    log.ignored.add_all(log.ignored)
    assert (log.ignored.counts[MALFORMED], log.ignored.newest[UNDATED]) == (12, [12, 12])


def test_rows_after_a_moment_that_was_asked_for_are_unseen() -> None:
    log = log_of(row("start", "14 07:00"), row("end", "14 07:00:01"), moment=Moment.as_of(NOW))
    assert shown(log.runs) == ["07:00-? fine"]
    assert log.ignored.counts[FUTURE] == 0


def test_the_newest_row_is_any_that_is_not_future() -> None:
    rows = [row("start", "13 18:07"), row("odd", "13 19:00", name="renamed"), row("start", "15 18:07")]
    log = log_of(*rows)
    assert (log.newest_row, log.last_name) == (at("13 19:00").replace(tzinfo=UTC), "renamed")
    assert log_of(row("start", None)).newest_row is None


# --- Messages --------------------------------------------------------------------------------------------


def test_messages_are_kept_only_where_they_are_asked_for() -> None:
    rows = [row("start", "13 18:07", "fine start"), row("end", "13 18:30", "it failed")]
    assert [[run.message for run in log_of(*rows, keeps=keeps).runs] for keeps in (False, True)] == [
        [""],
        ["fine start\nit failed"],
    ]


def test_of_a_very_long_message_the_broken_lines_in_the_middle_are_left_out() -> None:
    [run] = log_of(row("end", "13 18:30", "fine\nhalf of it fai", message_end="led\nfine\nodd"), keeps=True).runs
    assert (run.message, run.said.line, run.is_cut) == ("fine\nfine\nodd", "odd", True)
    [run] = log_of(row("end", "13 18:30", "no line it", message_end="ends nowhere"), keeps=True).runs
    assert run.message == "no line it\nends nowhere"


def test_a_message_of_a_hundred_characters_may_be_cut_off() -> None:
    lengths = {length: log_of(row("end", "13 18:30", "f" * length)).runs[0].is_cut for length in (0, 99, 100, 101)}
    assert lengths == {0: False, 99: False, 100: True, 101: False}


# --- The zones -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ids", "zone", "gap"),
    [
        (["2026-03-13_18:21:59"] * 10, UTC, None),
        (["2026-03-13_18:22:01"] * 10, UTC, 15 * MINUTE + timedelta(seconds=1)),
        (["20260313-11:07:00"] * 10, LOS_ANGELES, None),
        (["20260313-18:07:00"] * 5 + ["20260313-11:07:00"] * 5, UTC, None),  # not most of them
        (["20260313-18:07:00"] * 4 + ["20260313-11:07:00"] * 5, UTC, 7 * HOUR),
        (["20260313"] * 10, UTC, None),  # a day alone says nothing
        (["20260313"] * 9 + ["20260313-11:07:00"], UTC, 7 * HOUR),
        (["20261399-18:07:00", "x"], UTC, None),
        ([], UTC, None),
    ],
)
def test_backup_ids_and_stamps_that_do_not_fit(ids: list[str], zone: Any, gap: timedelta | None) -> None:
    stamp = at("13 18:07").replace(tzinfo=UTC)
    assert clock_gap([(stamp, backup_id) for backup_id in ids], zone) == gap


def test_an_hour_that_comes_twice_fits_both_times() -> None:
    for hour in (0, 1):
        stamp = datetime(2026, 10, 25, hour, 30, tzinfo=UTC)
        assert clock_gap([(stamp, "20261025-02:30:00")], BERLIN) is None
