"""Log rows become runs: their parts, messages and notes, what is ignored, and when a part of the log decides."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from itertools import permutations
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from admin_db import SEPARATOR, LoggedRun
from audit.policy import HOUR, UTC, Rules, Run
from audit.runs import FUTURE, MALFORMED, UNDATED, ContainerLog, IgnoredRows, decides, notes, unrecognised
from tests.builders import NOW

RULES = Rules(error_pattern=re.compile("fail"), success_pattern=re.compile("fine"))
STARTED, ENDED = datetime(2026, 3, 13, 18, 7), datetime(2026, 3, 13, 18, 30)
MINUTE = timedelta(minutes=1)


def logged(started: datetime | None = STARTED, ended: datetime | None = ENDED, **more: Any) -> LoggedRun:
    """What the database returns of a run, or of a stray row."""
    stamp = max((stamp for stamp in (started, ended) if stamp), default=None)
    row: dict[str, Any] = {"c_id": 7, "name": None, "backup_id": "x", "is_early": True, "type": "Daily"}
    row |= {"started": started, "ended": ended, "messages": None, "stray_id": None, "stamp": stamp, **more}
    return LoggedRun(**row)


def log_of(*rows: LoggedRun, rules: Rules = RULES) -> ContainerLog:
    return ContainerLog(rows, NOW, rules)


def test_a_run_has_what_its_rows_say() -> None:
    [run] = log_of(logged(messages=f"fine{SEPARATOR}odd{SEPARATOR}fine")).runs
    assert run == Run(STARTED.replace(tzinfo=UTC), "x", "Daily", ENDED.replace(tzinfo=UTC), None, ("fine", "odd"))
    assert run.duration == 23 * MINUTE


def test_an_end_alone_is_a_run_that_started_when_it_ended() -> None:
    [run] = log_of(logged(None, ENDED)).runs
    assert (run.started, run.start_logged, run.duration) == (run.ended, False, None)


@pytest.mark.parametrize("message", ["it failed", f"fine{SEPARATOR}it failed", f"it failed{SEPARATOR}fine"])
def test_one_message_that_reports_an_error_is_enough(message: str) -> None:
    assert [run.error for run in log_of(logged(messages=message)).runs] == ["it failed"]


def test_of_several_errors_it_is_always_the_same_one() -> None:
    """The database joins messages in any order, and the error is a label in Prometheus."""
    for order in permutations(["b failed", "a failed", "fine"]):
        [run] = log_of(logged(messages=SEPARATOR.join(order))).runs
        assert (run.error, run.messages) == ("a failed", order)


PARTS = (
    logged(STARTED, None, type=None, messages="fine"),
    logged(None, ENDED, is_early=False, messages="it failed"),
    logged(STARTED, ENDED, backup_id="y"),
)


@pytest.mark.parametrize("rows", list(permutations(PARTS)))
def test_the_parts_of_a_run_before_and_after_the_earlier_moment_make_one(rows: tuple[LoggedRun, ...]) -> None:
    log = log_of(*rows)
    now, then = ({run.backup_id: run for run in runs} for runs in (log.runs, log.early_runs))
    assert (now["x"].duration, now["x"].error, now["x"].type) == (23 * MINUTE, "it failed", "Daily")
    assert (then["x"].ended, then["x"].error, then["x"].messages) == (None, None, ("fine",))
    assert now["y"] == then["y"]
    assert log.newest_row == ENDED.replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("rows", "newest"),
    [
        ([], None),
        ([logged(None, None, stray_id=3)], None),
        ([logged(None, None, stray_id=3, stamp=datetime(2026, 3, 15))], None),
        ([logged(None, None, stray_id=3, stamp=ENDED), logged(STARTED, None)], ENDED),  # malformed, but logged
        ([logged(STARTED, STARTED - HOUR)], STARTED),  # an end before its start
        ([logged(STARTED, None, stamp=ENDED)], ENDED),  # a second start row
    ],
)
def test_the_newest_row_is_any_that_is_not_future(rows: list[LoggedRun], newest: datetime | None) -> None:
    assert log_of(*rows).newest_row == (newest and newest.replace(tzinfo=UTC))


def test_an_end_in_the_hour_that_comes_twice_is_not_before_its_start() -> None:
    berlin = Rules(zone=ZoneInfo("Europe/Berlin"))
    [run] = log_of(logged(datetime(2026, 10, 25, 2, 50), datetime(2026, 10, 25, 2, 10)), rules=berlin).runs
    assert run.duration == 20 * MINUTE


def test_ignored_rows_have_a_reason_and_the_newest_three_ids_of_each() -> None:
    ahead = NOW.replace(tzinfo=None) + timedelta(microseconds=1)
    strays = [logged(None, None, stray_id=number, stamp=STARTED) for number in (5, 9, 2, 7)]
    strays += [logged(None, None, stray_id=11, stamp=ahead), logged(None, None, stray_id=1)]
    log = log_of(*strays, logged(), logged(None, None, stray_id=4, stamp=NOW.replace(tzinfo=None)))
    assert log.ignored.counts == {FUTURE: 1, MALFORMED: 5, UNDATED: 1}
    assert log.ignored.newest == {FUTURE: [11], MALFORMED: [9, 7, 5], UNDATED: [1]}
    total = IgnoredRows()
    for _ in range(2):
        total.add_all(log.ignored)
    assert total.counts == {FUTURE: 2, MALFORMED: 10, UNDATED: 2}
    assert len(log.runs) == 1


# --- When a part of the log decides --------------------------------------------------------------------


def run(hours: float, *, ended: bool = True, error: str | None = None, start_logged: bool = True) -> Run:
    started = NOW - hours * HOUR
    return Run(started, str(hours), ended=started if ended else None, error=error, start_logged=start_logged)


SINCE = NOW - 240 * HOUR


@pytest.mark.parametrize(
    ("runs", "expected"),
    [
        ([], False),
        ([run(13)], True),
        ([run(240)], True),
        ([run(240.01)], False),  # a row of it may lie before what was read
        ([run(13, error="x")], False),
        ([run(13, ended=False)], False),
        ([run(13, start_logged=False)], False),  # it may have started long ago
        ([run(13, error="x"), run(14)], True),
        ([run(13, ended=False), run(14)], True),
        ([run(13, error="x", start_logged=False), run(14)], False),
        ([run(13), run(14, start_logged=False)], True),
        ([run(13), run(300)], True),
    ],
)
def test_a_good_backup_in_sight_decides_if_no_run_since_may_look_different(runs: list[Run], expected: bool) -> None:
    assert decides(runs, SINCE) is decides(runs[::-1], SINCE) is expected


# --- Notes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("messages", "error", "expected"),
    [((), None, None), (("fine",), None, None), (("fine", "odd"), None, "odd"), (("odd",), "it failed", None)],
)
def test_an_unrecognised_message_is_a_note(messages: tuple[str, ...], error: str | None, expected: str | None) -> None:
    said = run(13, error=error)._replace(messages=messages)
    assert unrecognised(said, RULES.success_pattern) == expected
    assert notes(said, RULES) == ([f'its message is not known as fine: "{expected}"'] if expected else [])


def test_an_end_before_its_start_is_a_note() -> None:
    started = NOW - HOUR
    assert notes(Run(started, "x", ended=started), RULES) == []
    assert notes(Run(started, "x", ended=started - MINUTE), RULES) == [
        "its end is stamped before its start: the duration is unknown"
    ]
