"""Log rows become runs: how rows are folded, what is ignored, what is kept, and whether the zones fit."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from itertools import permutations
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from admin_db import PlainRow
from audit.log import ContainerLog, RowReader, clock_gap
from audit.messages import Patterns
from audit.policy import HOUR, UTC, Moment, Run
from tests.builders import NOW

MINUTE, SECOND = timedelta(minutes=1), timedelta(seconds=1)
PATTERNS = Patterns(errors=(re.compile("fail"),), successes=(re.compile("fine"),))
BERLIN, LOS_ANGELES = ZoneInfo("Europe/Berlin"), ZoneInfo("America/Los_Angeles")


def row(text: str, **more: Any) -> PlainRow:
    """A row of 13 March 2026, from `start 18:07 its message`."""
    state, time, *message = text.split(" ", 2)
    stamp = datetime.fromisoformat(f"2026-03-13 {time}")
    facts = {"id": 1, "c_id": 7, "name": "sales", "state": state, "backup_id": "x", "type": "Daily", "url": ""}
    return PlainRow(**{**facts, "ts": stamp, "message": "".join(message), "message_end": None, **more})


def log_of(*rows: PlainRow, moment: Moment | None = None, keeps: bool = False) -> ContainerLog:
    """What is made of rows; the earlier moment is 24 hours ago."""
    moment = moment or Moment.by_clock(NOW)
    return RowReader(moment, UTC, PATTERNS, keeps).read(rows, moment.yesterday)


def shown(runs: list[Run]) -> list[str]:
    """Runs as `18:07-18:30 fine`; `?` where a start or an end is not in the log."""
    return [
        f"{f'{run.started:%H:%M}' if run.start_logged else '?'}-{f'{run.ended:%H:%M}' if run.ended else '?'}"
        f" {run.said.meaning.name.lower()}"
        for run in runs
    ]


@pytest.mark.parametrize(
    ("rows", "runs"),
    [
        pytest.param(["start 18:07", "end 18:30"], ["18:07-18:30 fine"], id="start and end"),
        pytest.param(["end 18:30"], ["?-18:30 fine"], id="no start"),
        pytest.param(["end 18:30", "end 18:40"], ["?-18:40 fine"], id="no start, two ends"),
        pytest.param(["START 18:07", "End 18:30", "end 18:40"], ["18:07-18:40 fine"], id="letter case, two ends"),
        pytest.param(["start 18:07", "start 18:07", "end 18:30"], ["18:07-18:30 fine"], id="a start row twice"),
        pytest.param(["start 18:07", "end 18:30", "start 20:00"], ["18:07-18:30 fine", "20:00-? fine"], id="another"),
        pytest.param(["start 18:07", "start 20:00", "end 20:10"], ["18:07-? fine", "20:00-20:10 fine"], id="no end"),
        pytest.param(["end 18:30", "start 18:35"], ["18:35-18:30 fine"], id="an end before its start"),
        pytest.param(["end 18:07", "start 18:07"], ["18:07-18:07 fine"], id="at one stamp the start comes first"),
        pytest.param(["start 18:07 it failed", "end 18:30 odd"], ["18:07-18:30 error"], id="an error at the start"),
        pytest.param(["start 18:07 odd", "end 18:30 fine"], ["18:07-18:30 unrecognised"], id="an odd start"),
        pytest.param(
            ["start 18:07", "end 18:30 it failed", "start 20:00"],
            ["18:07-18:30 error", "20:00-? fine"],
            id="the error of another run",
        ),
    ],
)
def test_rows_of_one_backup_id_become_runs_in_any_order_and_the_worst_message_of_any_row_counts(
    rows: list[str], runs: list[str]
) -> None:
    for order in permutations(rows):
        log = log_of(*(row(text, id=number) for number, text in enumerate(order)))
        assert shown(log.runs) == runs


def test_a_run_without_a_start_began_when_it_ended_at_last() -> None:
    [run] = log_of(row("end 02:00"), row("end 18:30")).runs
    assert run.started == run.ended
    assert f"{run.started:%H:%M}" == "18:30"


def test_a_run_has_what_its_rows_say() -> None:
    first = row("start 18:07 fine start", url="s3://b/at-start", type=None)
    last = row("end 18:30 fine\nodd", url="s3://b/at-end")
    [run] = log_of(first, last, keeps=True).runs
    assert (run.duration, run.type, run.url) == (23 * MINUTE, "Daily", "s3://b/at-end")
    assert (run.said.line, run.message) == ("odd", "fine start\nfine\nodd")
    [run] = log_of(first, last, last._replace(id=2), first, keeps=True).runs
    assert run.message == "fine start\nfine\nodd", "no message twice"
    [run] = log_of(first._replace(message="b failed", id=9), last._replace(message="a failed", url=None)).runs
    assert (run.said.line, run.url) == ("b failed", "s3://b/at-start"), "of lines that are as bad the earliest"
    assert run.message == "", "messages are kept only where they are asked for"


def test_the_runs_of_yesterday_are_folded_from_the_rows_until_then() -> None:
    log = log_of(row("start 06:50"), row("start 07:00", backup_id="y"), row("end 07:10 it failed"), row("end 07:00:01"))
    assert shown(log.runs) == ["06:50-07:10 error", "07:00-? fine"]
    assert sorted(shown(log.runs_then)) == ["06:50-? fine", "07:00-? fine"]


def test_ignored_rows_have_a_reason_and_the_newest_three_ids_of_each() -> None:
    latest = NOW.replace(tzinfo=None) + 5 * MINUTE
    log = log_of(
        row("start 18:07", id=9, backup_id=None),
        row("start 18:07", id=2, backup_id=""),
        row("ended 18:07", id=7),
        row("start 18:07", id=8, state=None),
        row("start 18:07", id=11, ts=latest + SECOND),
        row("start 18:07", id=12, ts=None),
        row("start 18:07", ts=latest, state=" start\n", name="renamed"),
    )
    assert log.ignored.counts == {"future": 1, "malformed": 4, "undated": 1}
    assert log.ignored.newest == {"future": [11], "malformed": [9, 8, 7], "undated": [12]}
    assert (shown(log.runs), log.newest_row, log.last_name) == (["07:05-? fine"], NOW + 5 * MINUTE, "renamed")
    log.ignored.add_all(log.ignored)
    assert (log.ignored.counts["malformed"], log.ignored.newest["undated"]) == (8, [12, 12])


def test_rows_after_a_moment_that_was_asked_for_are_unseen() -> None:
    moment = Moment.as_of(datetime(2026, 3, 13, 7, 0, tzinfo=UTC))
    log = log_of(row("start 07:00"), row("end 07:01"), moment=moment)
    assert (shown(log.runs), log.ignored.counts["future"]) == (["07:00-? fine"], 0)


def test_of_a_message_that_was_cut_the_broken_lines_are_left_out() -> None:
    [run] = log_of(row("end 18:30 fine\nhalf of it fai", message_end="led\nfine\nodd"), keeps=True).runs
    assert (run.message, run.said.line, run.is_cut) == ("fine\nfine\nodd", "odd", True)
    [run] = log_of(row("end 18:30 no line it", message_end="ends nowhere"), keeps=True).runs
    assert run.message == "no line it\nends nowhere"
    cut = {length: log_of(row(f"end 18:30 {'f' * length}")).runs[0].is_cut for length in (99, 100, 101)}
    assert cut == {99: False, 100: True, 101: False}, "some versions of DB4Sci cut at a hundred characters"


@pytest.mark.parametrize(
    ("ids", "zone", "gap"),
    [
        (["2026-03-13_18:21:59"], UTC, None),
        (["2026-03-13_18:22:01"], UTC, 15 * MINUTE + SECOND),
        (["20260313-11:07:00"], LOS_ANGELES, None),
        (["20260313-18:07:00"] * 5 + ["20260313-11:07:00"] * 5, UTC, None),  # not most of them
        (["20260313-18:07:00"] * 4 + ["20260313-11:07:00"] * 5, UTC, 7 * HOUR),
        (["20260313"] * 9 + ["20260313-11:07:00"], UTC, 7 * HOUR),  # a day alone says nothing
        (["20260313", "20261399-18:07:00", "x"], UTC, None),
        ([], UTC, None),
    ],
)
def test_backup_ids_and_stamps_that_do_not_fit(ids: list[str], zone: Any, gap: timedelta | None) -> None:
    stamp = datetime(2026, 3, 13, 18, 7, tzinfo=UTC)
    assert clock_gap([(stamp, backup_id) for backup_id in ids], zone) == gap


def test_an_hour_that_comes_twice_fits_both_times() -> None:
    for hour in (0, 1):
        stamp = datetime(2026, 10, 25, hour, 30, tzinfo=UTC)
        assert clock_gap([(stamp, "20261025-02:30:00")], BERLIN) is None
