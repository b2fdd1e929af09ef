"""The past of a site (SPEC section 9): `--history` as table, JSON and CSV, and what the nightly audit makes of it."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event, update

from models import BackupLog, ContainerState
from tests.builders import NOW, SECRET, TOP, Result, Sample, Site, moment, series

UTC = timezone.utc
DAY = timedelta(days=1)
HOUR = timedelta(hours=1)
MINUTE = timedelta(minutes=1)
SECOND = timedelta(seconds=1)
TICK = timedelta(microseconds=1)

FAILURE = "pg_dump: error: query failed: ERROR:  permission denied for table visits"
COLUMNS = ["name", "c_id", "policy", "slot_start", "slot_end", "outcome", "run_started", "run_ended", "backup_id"]
LETTERS = {"ok": "o", "failed": "f", "none": "-", "before": "b"}
ESCAPES = re.compile(r"\x1b\[[0-9;]*m")


def shown(site: Site, *argv: str, days: int = 30, at: datetime | str = NOW, terminal: bool = False) -> Result:
    """What `--history` prints; it must succeed."""
    result = site.audit("--history", str(days), "--at", iso(at), *argv, terminal=terminal)
    assert (result.status, result.err) == (0, ""), result.err
    return result


def document(site: Site, *argv: str, days: int = 30, at: datetime | str = NOW) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(shown(site, "--json", *argv, days=days, at=at).out)
    return loaded


def past(site: Site, *argv: str, days: int = 30, at: datetime | str = NOW) -> dict[str, Any]:
    """The entry of the only container."""
    [container] = document(site, *argv, days=days, at=at)["containers"]
    assert isinstance(container, dict)
    return container


def letters(site: Site, *argv: str, days: int = 30, at: datetime | str = NOW) -> str:
    """The outcomes of the only container: o(k), f(ailed), - (none), b(efore)."""
    return "".join(LETTERS[outcome] for outcome in past(site, *argv, days=days, at=at)["outcomes"])


def names(site: Site, *argv: str) -> set[str]:
    return {container["name"] for container in document(site, *argv)["containers"]}


def slots(site: Site, *argv: str, days: int = 30, at: datetime | str = NOW) -> list[dict[str, str]]:
    """The rows of the CSV, read back strictly."""
    text = shown(site, "--csv", *argv, days=days, at=at).out
    header, *rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    assert header == COLUMNS
    return [dict(zip(header, row, strict=True)) for row in rows]


def iso(when: datetime | str) -> str:
    return when if isinstance(when, str) else when.isoformat()


def nightly(
    site: Site,
    c_id: int,
    nights: int,
    *,
    skip: Sequence[int] = (),
    failed: Sequence[int] = (),
    minutes: float = 23,
    name: str | None = "sales",
    every: timedelta = DAY,
) -> None:
    """Log a run for each of the last nights at 18:07 (night 0 is the last one), but for those to skip."""
    rows = []
    for night in range(nights):
        if night in skip:
            continue
        start = datetime(2026, 3, 13, 18, 7) - night * every
        key = {"c_id": c_id, "name": name, "backup_id": f"{start:%Y%m%d-%H:%M:%S}", "backup_type": "Daily"}
        error = FAILURE if night in failed else ""
        rows.append(BackupLog(**key, state="start", ts=start, err_msg=""))
        rows.append(BackupLog(**key, state="end", ts=start + timedelta(minutes=minutes), err_msg=error))
    with site.session() as session:
        session.add_all(rows)


def width(line: str) -> int:
    """The columns of a terminal that a line takes."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in ESCAPES.sub("", line))


def rows_of(text: str) -> list[str]:
    """The lines between the table's head and the summary."""
    lines = text.splitlines()
    [head] = (number for number, line in enumerate(lines) if line.startswith("RATIO"))
    return lines[head + 1 : lines.index("", head)]


def row_of(text: str, name: str) -> str:
    [row] = (row for row in rows_of(text) if name in row)
    return row


@pytest.fixture
def colours(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal of 80 columns that understands colours."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")


# --- Slots of Daily and of hours -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("started", "expected"),
    [
        (NOW - 3 * DAY, "---"),
        (NOW - 3 * DAY + TICK, "o--"),
        (NOW - 2 * DAY, "o--"),
        (NOW - 2 * DAY + TICK, "-o-"),
        (NOW - DAY, "-o-"),
        (NOW - DAY + TICK, "--o"),
        (NOW, "--o"),
    ],
)
def test_a_daily_slot_excludes_its_first_moment_and_includes_its_last(
    any_site: Site, started: datetime, expected: str
) -> None:
    any_site.run(any_site.container(), started, started)
    assert letters(any_site, days=3) == expected


@pytest.mark.parametrize(("hour", "expected"), [(0, "-o-"), (7, "-o-"), (8, "--o"), (23, "--o")])
def test_a_daily_slot_has_nothing_to_do_with_the_calendar(sqlite_site: Site, hour: int, expected: str) -> None:
    sqlite_site.run(sqlite_site.container(), datetime(2026, 3, 13, hour), datetime(2026, 3, 13, hour, 30))
    assert letters(sqlite_site, days=3) == expected


def test_midnight_belongs_to_the_slot_that_ends_with_it(sqlite_site: Site) -> None:
    sqlite_site.run(sqlite_site.container(), "2026-03-13 00:00", "2026-03-13 00:10")
    assert letters(sqlite_site, days=2, at="2026-03-14T00:00Z") == "o-"
    assert letters(sqlite_site, days=2, at="2026-03-13T23:59:59.999999Z") == "-o"


@pytest.mark.parametrize(
    ("hours", "days", "expected"),
    [(1, 1, 24), (5, 1, 4), (6, 1, 4), (7, 30, 102), (24, 30, 30), (36, 2, 1), (48, 2, 1), (49, 2, 0), (744, 31, 1)],
)
def test_as_many_slots_of_a_policy_as_fit_into_the_days(
    sqlite_site: Site, hours: int, days: int, expected: int
) -> None:
    sqlite_site.container(policy="Special")
    sqlite_site.config(policies={"Special": hours})
    container = past(sqlite_site, days=days)
    assert (container["policy"], container["slots"], len(container["outcomes"])) == ("Special", expected, expected)


def test_the_slots_of_a_policy_go_back_from_now(sqlite_site: Site) -> None:
    site = sqlite_site
    c_id = site.container(policy="Special")
    site.config(policies={"Special": 10})
    for started in (NOW - 20 * HOUR, NOW - 20 * HOUR + TICK):  # 24 hours hold two slots of 10
        assert letters(site, days=1) == "--"
        site.run(c_id, started, started, backup_id=str(started))
    assert letters(site, days=1) == "o-"


def test_the_slots_of_daily_are_as_long_as_the_window(sqlite_site: Site) -> None:
    sqlite_site.run(sqlite_site.container(), NOW - 12 * HOUR, NOW - 11 * HOUR)
    sqlite_site.config(window_hours=12)
    assert letters(sqlite_site, days=2) == "--o-"


def test_the_change_of_clocks_moves_no_daily_slot(sqlite_site: Site) -> None:
    site = sqlite_site
    c_id = site.container()
    site.config(db_timezone="Europe/Berlin")
    for local in ("2026-03-27 18:07", "2026-03-28 18:07", "2026-03-29 18:07", "2026-03-30 18:07"):
        site.run(c_id, local, moment(local) + timedelta(minutes=23))
    assert letters(site, days=5, at="2026-03-31T07:00") == "-oooo"


# --- Slots of Weekly -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weekday", "first"),
    [("Saturday", 14), ("Sunday", 15), ("Mon", 16), ("Tuesday", 17), (2, 18), ("thursday", 19), ("Friday", 20)],
)
def test_a_weekly_slot_lasts_from_midnight_to_midnight(sqlite_site: Site, weekday: object, first: int) -> None:
    site = sqlite_site
    c_id = site.container(policy="Weekly")
    site.config(weekly_day=weekday)
    midnight = datetime(2026, 3, first, tzinfo=UTC)
    now = midnight + 8 * DAY  # the next slot begins at midnight + 7 days, and its window has passed too
    for started, expected in (
        (midnight - SECOND, "o--"),
        (midnight + 7 * DAY, "o-o"),
        (midnight, "ooo"),
    ):
        site.run(c_id, started, started + MINUTE, backup_id=str(started))
        assert letters(site, days=15, at=now) == expected
    last = [(row["slot_start"], row["slot_end"]) for row in slots(site, days=15, at=now)][-2:]
    assert last == [
        (f"{midnight:%Y-%m-%d}T00:00:00Z", f"{midnight + 7 * DAY:%Y-%m-%d}T00:00:00Z"),
        (f"{midnight + 7 * DAY:%Y-%m-%d}T00:00:00Z", f"{midnight + 14 * DAY:%Y-%m-%d}T00:00:00Z"),
    ]


def test_the_last_moment_of_a_weekly_slot_is_right_before_the_next(sqlite_site: Site) -> None:
    c_id = sqlite_site.container(policy="Weekly")
    sqlite_site.run(c_id, "2026-03-13 23:59:59", "2026-03-14 00:30")
    assert letters(sqlite_site, days=21, at="2026-03-15T00:00Z") == "-o-"


def test_the_fraction_of_a_second_is_not_rounded_into_the_next_slot(any_site: Site) -> None:
    c_id = any_site.container()
    any_site.run(c_id, NOW - DAY - TICK, NOW - DAY + 10 * MINUTE)
    container = past(any_site, days=2)
    assert container["outcomes"] == ["ok", "none"]
    assert container["longest_gap_seconds"] == 86400.000001
    assert container["median_duration_seconds"] == 600.000001


@pytest.mark.parametrize(
    ("at", "days", "expected"),
    [
        ("2026-03-14T23:59:59.999999Z", 8, 1),  # the window of the 14th has a microsecond left
        ("2026-03-15T00:00:00Z", 8, 2),
        ("2026-03-14T00:00:00Z", 7, 1),  # the 7th is the first moment of the period
        ("2026-03-14T00:00:00.000001Z", 7, 0),
        ("2026-03-13T23:59:59.999999Z", 7, 1),
    ],
)
def test_a_week_has_a_slot_once_its_window_has_passed(sqlite_site: Site, at: str, days: int, expected: int) -> None:
    sqlite_site.container(policy="Weekly")
    assert past(sqlite_site, days=days, at=at)["slots"] == expected


def test_the_window_of_a_week_comes_from_the_settings(sqlite_site: Site) -> None:
    sqlite_site.container(policy="Weekly")
    sqlite_site.config(window_hours=7)
    assert past(sqlite_site, days=7, at=NOW)["slots"] == 1
    assert past(sqlite_site, days=7, at=NOW - TICK)["slots"] == 0


@pytest.mark.parametrize(
    ("zone", "at", "midnights"),
    [
        pytest.param(
            "Europe/Berlin", "2026-04-07", ["03-21T23:00", "03-28T23:00", "04-04T22:00", "04-11T22:00"], id="spring"
        ),
        pytest.param(
            "America/Havana",  # its clocks go from 23:59 to 01:00 on 8 March
            "2026-03-17",
            ["03-01T05:00", "03-08T05:00", "03-15T04:00", "03-22T04:00"],
            id="no midnight",
        ),
        pytest.param(
            "America/Havana",  # midnight of 1 November occurs twice: the first counts
            "2026-11-10",
            ["10-25T04:00", "11-01T04:00", "11-08T05:00", "11-15T05:00"],
            id="two midnights",
        ),
        pytest.param(
            "Australia/Lord_Howe",
            "2026-04-14",
            ["03-28T13:00", "04-04T13:00", "04-11T13:30", "04-18T13:30"],
            id="half an hour",
        ),
    ],
)
def test_weekly_slots_over_a_change_of_clocks(sqlite_site: Site, zone: str, at: str, midnights: list[str]) -> None:
    sqlite_site.container(policy="Weekly")
    sqlite_site.config(db_timezone=zone, weekly_day="Sunday")
    rows = slots(sqlite_site, days=20, at=at)
    edges = [f"2026-{midnight}:00Z" for midnight in midnights]
    assert [row["slot_start"] for row in rows] == edges[:-1]
    assert [row["slot_end"] for row in rows] == edges[1:]


def test_weekly_slots_where_daylight_saving_began_at_midnight(sqlite_site: Site) -> None:
    site = sqlite_site
    c_id = site.container(policy="Weekly", created="2018-01-01")
    site.config(db_timezone="America/Sao_Paulo", weekly_day="Sunday")
    assert [row["slot_start"] for row in slots(site, days=20, at="2018-11-13")] == [
        "2018-10-28T03:00:00Z",
        "2018-11-04T03:00:00Z",
        "2018-11-11T02:00:00Z",
    ]
    site.run(c_id, "2018-11-03 23:59:59", "2018-11-04 01:10")
    assert letters(site, days=20, at="2018-11-13") == "o--"
    site.run(c_id, "2018-11-04 01:00:00", "2018-11-04 01:20")
    assert letters(site, days=20, at="2018-11-13") == "oo-"


# --- What a slot comes to ------------------------------------------------------------------------------


def test_a_slot_is_ok_if_one_run_succeeded_else_failed_if_there_was_any(any_site: Site) -> None:
    site = any_site
    c_id = site.container()
    site.run(c_id, "2026-03-09 18:07", "2026-03-09 18:30", error=FAILURE)
    site.run(c_id, "2026-03-10 18:07", "2026-03-10 18:30", error=FAILURE, error_at_start=True)
    site.run(c_id, "2026-03-11 18:07")  # never ended
    site.run(c_id, "2026-03-12 18:07", "2026-03-12 18:30")
    site.run(c_id, "2026-03-12 20:07", "2026-03-12 20:30", error=FAILURE)
    site.run(c_id, "2026-03-13 18:07", error=FAILURE)
    site.run(c_id, "2026-03-13 19:07", "2026-03-13 19:30")
    container = past(site, days=6)
    assert container["outcomes"] == ["none", "failed", "failed", "failed", "ok", "ok"]
    assert (container["slots"], container["covered"], container["ratio"]) == (6, 2, 2 / 6)


def test_where_all_runs_say_the_same_error_all_have_failed(any_site: Site) -> None:
    nightly(any_site, any_site.container(), 3, failed=(0, 1, 2))
    assert letters(any_site, days=3) == "fff"


def test_where_all_runs_say_the_same_and_one_has_not_ended_it_is_the_only_one_that_failed(any_site: Site) -> None:
    c_id = any_site.container()
    nightly(any_site, c_id, 3, skip=(1,))
    any_site.run(c_id, "2026-03-12 18:07")
    assert letters(any_site, days=3) == "ofo"


def test_a_message_of_progress_is_no_failure(any_site: Site) -> None:
    name = "failed-trials"
    progress = f"\nExecuted Postgres dump_all commands:\npg_dump --dbname {name} --username pgdba  -F c -f /var/l"
    any_site.run(any_site.container(name), "2026-03-13 18:07", "2026-03-13 18:30", message=progress)
    assert letters(any_site, days=1) == "o"


def test_the_error_pattern_of_the_settings_decides(sqlite_site: Site) -> None:
    sqlite_site.run(sqlite_site.container(), "2026-03-13 18:07", "2026-03-13 18:30", error="it went pear-shaped")
    assert letters(sqlite_site, days=1) == "o"
    sqlite_site.config(error_pattern="pear-shaped")
    assert letters(sqlite_site, days=1) == "f"


def test_any_type_of_backup_covers_a_slot(sqlite_site: Site) -> None:
    sqlite_site.run(sqlite_site.container(), "2026-03-13 18:07", "2026-03-13 18:30", type="User")
    assert letters(sqlite_site, days=1) == "o"


@pytest.mark.parametrize(
    ("created", "expected"),
    [
        (NOW - DAY - TICK, "b--"),
        (NOW - DAY, "b--"),
        (NOW - DAY + TICK, "bb-"),
        (NOW - 2 * DAY, "---"),
        (NOW - 2 * DAY + TICK, "b--"),
        (NOW, "bb-"),
        (NOW + TICK, "bbb"),
        (None, "---"),
    ],
)
def test_slots_that_ended_before_the_creation_do_not_count(
    any_site: Site, created: datetime | None, expected: str
) -> None:
    any_site.container(created=created)
    container = past(any_site, days=3)
    assert "".join(LETTERS[outcome] for outcome in container["outcomes"]) == expected
    assert container["slots"] == 3 - expected.count("b")
    assert container["ratio"] == (0 if container["slots"] else None)


def test_a_week_in_which_the_container_was_made_counts(sqlite_site: Site) -> None:
    sqlite_site.container("inside", "Weekly", created="2026-03-08 12:00")
    sqlite_site.container("at the edge", "Weekly", created="2026-03-07 00:00")
    outcomes = {c["name"]: c["outcomes"] for c in document(sqlite_site, days=15)["containers"]}
    assert outcomes == {"inside": ["before", "none"], "at the edge": ["before", "none"]}


def test_a_run_in_a_slot_before_the_creation_changes_nothing(sqlite_site: Site) -> None:
    c_id = sqlite_site.container(created=NOW - DAY)
    sqlite_site.run(c_id, NOW - 60 * HOUR, NOW - 59 * HOUR)
    assert letters(sqlite_site, days=3) == "b--"
    assert past(sqlite_site, days=3)["ratio"] == 0
    assert [row["backup_id"] for row in slots(sqlite_site, days=3)] == ["", "", ""]


def test_without_slots_there_is_no_ratio(sqlite_site: Site) -> None:
    sqlite_site.container(policy="Monthly")
    sqlite_site.config(policies={"Monthly": 744})
    loaded = document(sqlite_site)
    assert loaded["history"]["ratio"] is None
    [container] = loaded["containers"]
    assert (container["slots"], container["covered"], container["ratio"], container["outcomes"]) == (0, 0, None, [])
    assert "monthly" in shown(sqlite_site).out.casefold()


@pytest.mark.parametrize(("hours", "longest"), [(1, 24), (23, 24), (71, 72)])
def test_a_run_that_began_before_the_period_is_not_of_it(any_site: Site, hours: int, longest: int) -> None:
    any_site.config(max_runtime_hours=longest)
    any_site.run(any_site.container(), NOW - 2 * DAY - hours * HOUR, NOW - 2 * DAY + HOUR / 2)
    container = past(any_site, days=2)
    assert container["outcomes"] == ["none", "none"]
    assert container["longest_gap_seconds"] == 2 * 86400
    assert container["median_duration_seconds"] is None


def test_an_end_without_a_start_is_a_run_that_started_when_it_ended(any_site: Site) -> None:
    c_id = any_site.container()
    any_site.row(c_id=c_id, name="sales", state="end", backup_id="x", ts=datetime(2026, 3, 13, 6, 0))
    container = past(any_site, days=2)
    assert container["outcomes"] == ["ok", "none"]
    assert container["longest_gap_seconds"] == 25 * 3600
    assert container["median_duration_seconds"] is None


def test_an_end_without_a_start_shows_its_end_as_evidence(any_site: Site) -> None:
    c_id = any_site.container()
    any_site.row(c_id=c_id, name="sales", state="end", backup_id="x", ts=datetime(2026, 3, 13, 18, 0))
    [row] = slots(any_site, days=1)
    assert (row["outcome"], row["run_started"], row["run_ended"]) == (
        "ok",
        "2026-03-13T18:00:00Z",
        "2026-03-13T18:00:00Z",
    )


def test_malformed_rows_cover_nothing(any_site: Site) -> None:
    c_id, ts = any_site.container(), datetime(2026, 3, 13, 18, 0)
    any_site.row(c_id=c_id, name="sales", state="end", backup_id="", ts=ts)
    any_site.row(c_id=c_id, name="sales", state="end", backup_id=None, ts=ts)
    any_site.row(c_id=c_id, name="sales", state="END", backup_id="x", ts=ts)
    any_site.row(c_id=c_id, name="sales", state="end", backup_id="x", ts=None)
    any_site.row(c_id=None, name="sales", state="end", backup_id="x", ts=ts)
    assert letters(any_site, days=1) == "-"


@pytest.mark.parametrize("error", ["", FAILURE], ids=["succeeded", "failed"])
def test_two_runs_of_one_container_may_start_at_the_same_moment(any_site: Site, error: str) -> None:
    c_id = any_site.container()
    started = datetime(2026, 3, 13, 18, 7)
    any_site.run(c_id, started, started + 23 * MINUTE, error=error, backup_id="first")
    if error:
        any_site.run(c_id, started, backup_id="second")
    else:
        any_site.row(c_id=c_id, name="sales", state="end", backup_id="second", ts=started)
    assert letters(any_site, days=1) == ("f" if error else "o")


def test_two_such_runs_do_not_keep_the_audit_from_being_done(sqlite_site: Site) -> None:
    c_id = sqlite_site.container()
    sqlite_site.run(c_id, "2026-03-13 18:07", "2026-03-13 18:30", backup_id="first")
    sqlite_site.row(c_id=c_id, name="sales", state="end", backup_id="second", ts=datetime(2026, 3, 13, 18, 7))
    result = sqlite_site.audit("-v", "--at", iso(NOW))
    assert (result.status, result.err) == (0, "")


# --- Gaps and durations --------------------------------------------------------------------------------


def test_the_longest_gap_lies_between_the_starts_of_succeeded_runs(any_site: Site) -> None:
    site = any_site
    c_id = site.container()
    nightly(site, c_id, 30, skip=(5, 6), failed=(20, 21, 22, 23))
    assert past(site)["longest_gap_seconds"] == 5 * 86400


@pytest.mark.parametrize(
    ("created", "expected"),
    [
        ("2025-01-15", 30 * DAY),  # the period's start is the later one
        ("2026-03-04 07:00", 10 * DAY),
        ("2026-03-14 06:00", HOUR),
        (NOW + HOUR, timedelta(0)),
        (None, 30 * DAY),
    ],
)
def test_without_any_run_the_gap_is_the_whole_time(
    any_site: Site, created: datetime | str | None, expected: timedelta
) -> None:
    any_site.container(created=created)
    assert past(any_site)["longest_gap_seconds"] == expected.total_seconds()


def test_the_gap_may_lie_at_the_beginning_or_at_the_end(sqlite_site: Site) -> None:
    c_id = sqlite_site.container(created=NOW - 10 * DAY)
    sqlite_site.run(c_id, NOW - 4 * DAY, NOW - 4 * DAY + HOUR)
    assert past(sqlite_site)["longest_gap_seconds"] == 6 * 86400
    assert past(sqlite_site, at=NOW + 3 * DAY)["longest_gap_seconds"] == 7 * 86400


def test_a_run_before_the_first_weekly_slot_ends_a_gap(sqlite_site: Site) -> None:
    c_id = sqlite_site.container(policy="Weekly")
    sqlite_site.run(c_id, "2026-02-13 18:07", "2026-02-13 18:30")  # a day before the first Saturday of the period
    assert letters(sqlite_site) == "----"
    assert past(sqlite_site)["longest_gap_seconds"] == (NOW.replace(tzinfo=None) - moment("2026-02-13 18:07")) / (
        timedelta(seconds=1)
    )


def test_the_median_duration_is_that_of_succeeded_runs(any_site: Site) -> None:
    site = any_site
    c_id = site.container()
    for night, minutes in ((1, 10), (2, 40), (3, 20), (4, 30)):
        site.run(c_id, NOW - night * DAY, NOW - night * DAY + minutes * MINUTE)
    assert past(site)["median_duration_seconds"] == 25 * 60
    site.run(c_id, NOW - 5 * DAY, NOW - 5 * DAY + 22 * MINUTE)
    assert past(site)["median_duration_seconds"] == 22 * 60
    site.run(c_id, NOW - 6 * DAY, NOW - 6 * DAY + 5 * HOUR, error=FAILURE)
    site.run(c_id, NOW - 7 * DAY)
    site.run(c_id, NOW - 40 * DAY, NOW - 40 * DAY + 5 * HOUR)
    assert past(site)["median_duration_seconds"] == 22 * 60


def test_durations_over_a_change_of_clocks(sqlite_site: Site) -> None:
    site = sqlite_site
    c_id = site.container()
    site.config(db_timezone="Europe/Berlin")
    site.run(c_id, "2026-03-29 01:30", "2026-03-29 03:30")
    assert past(site, at="2026-03-30")["median_duration_seconds"] == 3600
    site.run(c_id, "2026-10-25 02:50", "2026-10-25 02:10")  # 02:10 for the second time
    assert past(site, at="2026-10-26")["median_duration_seconds"] == 20 * 60


# --- Who is listed -------------------------------------------------------------------------------------


def test_containers_without_a_schedule_are_not_listed(any_site: Site) -> None:
    any_site.container("sales")
    any_site.container("never", "Never")
    any_site.container("none", "None")
    any_site.container("unknown", "Fortnightly")
    any_site.container("silent", None)
    any_site.container("orphan", c_id=4711, metadata=False)
    any_site.container("broken", data=[1, 2])
    any_site.container("spelt", " dAiLy ")
    listed = {c["name"]: c["policy"] for c in document(any_site)["containers"]}
    assert listed == {"sales": "Daily", "spelt": "Daily"}


def test_a_container_in_maintenance_is_listed(sqlite_site: Site) -> None:
    sqlite_site.container("sales", state="maintenance")
    assert names(sqlite_site) == {"sales"}


def test_extra_jobs_are_listed(any_site: Site) -> None:
    site = any_site
    site.container()
    site.config(extra_jobs={"offsite": "Daily", "tape": "weekly"})
    site.run(0, "2026-03-13 20:00", "2026-03-13 21:00", name="offsite", type="AWS S3")
    site.run(0, "2026-03-12 20:00", "2026-03-12 21:00", name="something else")
    found = {c["name"]: c for c in document(site, days=2)["containers"]}
    assert found.keys() == {"sales", "offsite", "tape"}
    assert found["offsite"]["c_id"] == 0
    assert found["offsite"]["outcomes"] == ["none", "ok"]
    assert found["tape"]["policy"] == "Weekly"


def test_a_site_without_schedules_says_so(sqlite_site: Site) -> None:
    sqlite_site.container(policy="Never")
    assert "No container has a schedule" in shown(sqlite_site).out
    assert document(sqlite_site)["containers"] == []
    assert slots(sqlite_site) == []


def test_names_and_numbers_narrow_the_list(any_site: Site) -> None:
    for name in ("sales", "stock", "archive"):
        any_site.container(name)
    assert names(any_site, "stock") == {"stock"}
    assert names(any_site, "archive", "1") == {"archive", "sales"}
    assert {row["name"] for row in slots(any_site, "stock", days=1)} == {"stock"}
    table = shown(any_site, "stock").out
    assert "stock" in table
    assert "sales" not in table


def test_an_unknown_name_is_an_error_with_close_matches(sqlite_site: Site) -> None:
    sqlite_site.container("sales")
    result = sqlite_site.audit("--history", "30", "--at", iso(NOW), "slaes")
    assert (result.status, result.out) == (3, "")
    assert "slaes" in result.err
    assert "did you mean sales?" in result.err


# --- Containers that were deleted ----------------------------------------------------------------------


def test_a_deleted_container_is_listed_on_demand_only(any_site: Site) -> None:
    site = any_site
    nightly(site, site.container("sales"), 30)
    nightly(site, site.container("gone", active=False), 30, skip=range(20), name="gone")
    assert names(site) == {"sales"}
    assert names(site, "--all") == {"sales", "gone"}
    assert {row["name"] for row in slots(site, "--all")} == {"sales", "gone"}


def test_a_deleted_container_is_judged_up_to_its_last_log_row(any_site: Site) -> None:
    site = any_site
    site.container("sales")
    c_id = site.container("gone", active=False)
    nightly(site, c_id, 30, skip=[*range(20), 25], name="gone")
    [container] = [c for c in document(site, "--all")["containers"] if c["name"] == "gone"]
    # the last row is of 2026-02-21 18:30; nine whole days before it are in the period
    assert container["outcomes"] == ["ok"] * 3 + ["none"] + ["ok"] * 5
    assert (container["slots"], container["covered"], container["ratio"]) == (9, 8, 8 / 9)
    assert container["longest_gap_seconds"] == 2 * 86400


def test_a_deleted_container_that_failed_to_the_end(sqlite_site: Site) -> None:
    c_id = sqlite_site.container("gone", active=False)
    nightly(sqlite_site, c_id, 30, skip=range(20), failed=(20, 21), name="gone")
    assert letters(sqlite_site, "--all") == "ooooooo" + "ff"


def test_a_deleted_weekly_container(sqlite_site: Site) -> None:
    c_id = sqlite_site.container("gone", "Weekly", active=False)
    sqlite_site.run(c_id, "2026-02-14 18:07", "2026-02-14 18:30")
    sqlite_site.run(c_id, "2026-02-21 18:07", "2026-02-21 18:30")  # its window has not passed when the log ends
    assert letters(sqlite_site, "--all") == "o"


@pytest.mark.parametrize("ended", [NOW - 30 * DAY - HOUR, NOW - 32 * DAY])
def test_a_container_whose_log_ends_before_the_period_owes_nothing_in_it(any_site: Site, ended: datetime) -> None:
    any_site.container("sales")
    any_site.run(any_site.container("gone", active=False), ended - HOUR, ended)
    owed = {c["name"]: c["slots"] for c in document(any_site, "--all")["containers"]}
    assert owed.get("gone", 0) == 0


def test_a_deleted_container_whose_last_run_straddles_the_periods_start_owes_nothing(sqlite_site: Site) -> None:
    sqlite_site.container("sales")
    c_id = sqlite_site.container("gone", active=False)
    sqlite_site.run(c_id, NOW - 30 * DAY - HOUR, NOW - 30 * DAY + HOUR)
    owed = {c["name"]: c["slots"] for c in document(sqlite_site, "--all")["containers"]}
    assert owed.get("gone", 0) == 0


def test_deleted_containers_without_a_schedule_are_not_listed(sqlite_site: Site) -> None:
    sqlite_site.container("sales")
    nightly(sqlite_site, sqlite_site.container("gone", "Never", active=False), 5, name="gone")
    assert names(sqlite_site, "--all") == {"sales"}


def test_a_recreated_container_and_its_deleted_forerunner_are_two(sqlite_site: Site) -> None:
    site = sqlite_site
    old = site.container("sales", active=False)
    nightly(site, old, 30, skip=range(10))
    new = site.container("sales", created="2026-03-04 08:00")
    nightly(site, new, 9)
    assert {c["c_id"] for c in document(site, "sales", "--all")["containers"]} == {old, new}
    assert {c["c_id"] for c in document(site, "sales")["containers"]} == {new}
    assert {c["c_id"] for c in document(site, str(old), "--all")["containers"]} == {old}


def test_a_deleted_container_is_unknown_without_all(sqlite_site: Site) -> None:
    sqlite_site.container("sales")
    nightly(sqlite_site, sqlite_site.container("gone", active=False), 5, name="gone")
    assert sqlite_site.audit("--history", "30", "--at", iso(NOW), "gone").status == 3
    assert names(sqlite_site, "--all", "gone") == {"gone"}


@pytest.mark.parametrize("name", ["gone", "gone-but-not-forgotten", "a-name-of-eighteen"])
def test_a_deleted_container_is_marked_as_deleted(sqlite_site: Site, name: str) -> None:
    sqlite_site.container("sales")
    nightly(sqlite_site, sqlite_site.container(name, active=False), 5, name=name)
    [row] = [row for row in rows_of(shown(sqlite_site, "--all").out) if name in row]
    assert "deleted" in row


@pytest.mark.usefixtures("colours")
@pytest.mark.parametrize("name", ["gone", "gone-but-not-forgotten", "a-name-of-eighteen"])
def test_the_mark_of_a_deleted_container_survives_a_narrow_terminal(sqlite_site: Site, name: str) -> None:
    sqlite_site.container("sales")
    nightly(sqlite_site, sqlite_site.container(name, active=False), 5, name=name)
    [row] = [row for row in rows_of(shown(sqlite_site, "--all", terminal=True).out) if name[:4] in row]
    assert "del" in row


# --- --at ----------------------------------------------------------------------------------------------


def test_at_moves_the_end_of_the_period(any_site: Site) -> None:
    nightly(any_site, any_site.container(), 10, skip=(3,))
    assert letters(any_site, days=5) == "o-ooo"
    assert letters(any_site, days=5, at=NOW - 2 * DAY) == "ooo-o"
    assert letters(any_site, days=5, at=NOW + 2 * DAY) == "ooo--"
    assert document(any_site, days=5, at=NOW - 2 * DAY)["history"]["to"] == "2026-03-12T07:00:00Z"


def test_at_without_an_offset_is_in_the_zone_of_the_log(sqlite_site: Site) -> None:
    sqlite_site.container()
    sqlite_site.config(db_timezone="Europe/Berlin")
    period = document(sqlite_site, days=1, at="2026-03-29T12:00")["history"]
    assert (period["from"], period["to"]) == ("2026-03-28T10:00:00Z", "2026-03-29T10:00:00Z")


def test_a_run_that_ends_after_at_has_not_ended_yet(sqlite_site: Site) -> None:
    sqlite_site.run(sqlite_site.container(), NOW - HOUR, NOW + HOUR)
    assert letters(sqlite_site, days=1) != "o"
    assert letters(sqlite_site, days=1, at=NOW + HOUR) == "o"


def test_without_at_the_period_ends_now(any_site: Site) -> None:
    any_site.container()
    before = any_site.clock()
    result = any_site.audit("--history", "7", "--json")
    after = any_site.clock()
    period = json.loads(result.out)["history"]
    end = datetime.fromisoformat(period["to"].replace("Z", "+00:00"))
    assert before - HOUR / 3600 <= end <= after + HOUR / 3600
    assert end - datetime.fromisoformat(period["from"].replace("Z", "+00:00")) == 7 * DAY


# --- JSON ----------------------------------------------------------------------------------------------


def test_the_json_document(any_site: Site) -> None:
    site = any_site
    sales, stock = site.container("sales"), site.container("stock", "Weekly", created="2026-03-08")
    nightly(site, sales, 4, failed=(1,), skip=(2,))
    assert document(site, days=5) == {
        "history": {
            "from": "2026-03-09T07:00:00Z",
            "to": "2026-03-14T07:00:00Z",
            "days": 5,
            "containers": 2,
            "slots": 5,
            "covered": 2,
            "ratio": 0.4,
        },
        "containers": [
            {
                "name": "sales",
                "c_id": sales,
                "policy": "Daily",
                "slots": 5,
                "covered": 2,
                "ratio": 0.4,
                "longest_gap_seconds": 3 * 86400,
                "median_duration_seconds": 23 * 60,
                "outcomes": ["none", "ok", "none", "failed", "ok"],
            },
            {
                "name": "stock",
                "c_id": stock,
                "policy": "Weekly",
                "slots": 0,
                "covered": 0,
                "ratio": None,
                "longest_gap_seconds": 5 * 86400,
                "median_duration_seconds": None,
                "outcomes": [],
            },
        ],
    }


def test_the_json_types(sqlite_site: Site) -> None:
    nightly(sqlite_site, sqlite_site.container(), 4)
    loaded = document(sqlite_site)
    [container] = loaded["containers"]
    kinds = {key: type(value) for part in (loaded["history"], container) for key, value in part.items()}
    for key in ("days", "containers", "slots", "covered", "c_id"):
        assert kinds[key] is int, key
    for key in ("ratio", "longest_gap_seconds", "median_duration_seconds"):
        assert kinds[key] in (float, int), key


def test_the_ratio_of_all_is_that_of_all_slots(sqlite_site: Site) -> None:
    nightly(sqlite_site, sqlite_site.container("sales"), 30)
    sqlite_site.container("new", created=NOW - HOUR)
    period = document(sqlite_site)["history"]
    assert (period["slots"], period["covered"], period["ratio"]) == (31, 30, 30 / 31)


def test_any_name_survives_the_json(sqlite_site: Site) -> None:
    odd = 'caf\u00e9 "\\ \x1b[31m\n\u202e\U0001f4be'
    sqlite_site.container(odd)
    assert names(sqlite_site) == {odd}


# --- CSV -----------------------------------------------------------------------------------------------


def test_the_csv(any_site: Site) -> None:
    site = any_site
    c_id = site.container(created=NOW - 3 * DAY)
    nightly(site, c_id, 1)
    site.run(c_id, "2026-03-12 18:07", "2026-03-12 18:30", error=FAILURE)
    found = [[row[name] for name in COLUMNS if not name.startswith("slot")] for row in slots(site, days=4)]
    who = ["sales", str(c_id), "Daily"]
    ok = ["2026-03-13T18:07:00Z", "2026-03-13T18:30:00Z", "20260313-18:07:00"]
    failed = ["2026-03-12T18:07:00Z", "2026-03-12T18:30:00Z", "20260312-18:07:00"]
    assert found == [
        [*who, "none", "", "", ""],  # it ended at the very moment of the creation
        [*who, "none", "", "", ""],
        [*who, "failed", *failed],
        [*who, "ok", *ok],
    ]


def test_the_slots_of_the_csv_have_the_bounds_of_the_rules(sqlite_site: Site) -> None:
    sqlite_site.container()
    assert [(row["slot_start"], row["slot_end"]) for row in slots(sqlite_site, days=2)] == [
        ("2026-03-12T07:00:00Z", "2026-03-13T07:00:00Z"),
        ("2026-03-13T07:00:00Z", "2026-03-14T07:00:00Z"),
    ]


def test_the_csv_names_the_last_run_that_settles_a_slot(sqlite_site: Site) -> None:
    site = sqlite_site
    c_id = site.container()
    site.run(c_id, NOW - 5 * HOUR, NOW - 4 * HOUR, backup_id="first")
    site.run(c_id, NOW - 3 * HOUR, NOW - 2 * HOUR, backup_id="second")
    site.run(c_id, NOW - HOUR, NOW, error=FAILURE, backup_id="third")
    assert [row["backup_id"] for row in slots(site, days=1)] == ["second"]


def test_a_run_that_never_ended_has_no_end_in_the_csv(sqlite_site: Site) -> None:
    sqlite_site.run(sqlite_site.container(), "2026-03-12 18:07")
    [_, row, _] = slots(sqlite_site, days=3)
    assert (row["outcome"], row["run_started"], row["run_ended"]) == ("failed", "2026-03-12T18:07:00Z", "")


def test_the_csv_has_a_row_for_each_container_and_slot(sqlite_site: Site) -> None:
    for name, policy in (("sales", "Daily"), ("stock", "Weekly"), ("new", "Daily")):
        sqlite_site.container(name, policy, created=NOW - HOUR if name == "new" else NOW - 90 * DAY)
    loaded = {(c["name"], c["c_id"]): c["outcomes"] for c in document(sqlite_site)["containers"]}
    rows: dict[tuple[str, int], list[str]] = {key: [] for key in loaded}
    for row in slots(sqlite_site):
        rows[row["name"], int(row["c_id"])].append(row["outcome"])
    assert rows == loaded


def test_the_csv_ends_every_line_as_rfc_4180_says(sqlite_site: Site) -> None:
    nightly(sqlite_site, sqlite_site.container(), 3)
    text = shown(sqlite_site, "--csv", days=3).out
    assert text.count("\r\n") == 4
    assert text.endswith("\r\n")
    assert "\n" not in text.replace("\r\n", "")
    assert "\r" not in text.replace("\r\n", "")


@pytest.mark.parametrize(
    "name",
    ["a,b", 'the "big" one', "two\nlines", "two\r\nlines", ",", '"', "a;b", " blank ", "Gr\u00fc\u00dfe", "o'hara"],
)
def test_any_name_survives_the_csv(sqlite_site: Site, name: str) -> None:
    c_id = sqlite_site.container(name)
    sqlite_site.run(c_id, "2026-03-13 18:07", "2026-03-13 18:30", backup_id=name)
    [row] = slots(sqlite_site, days=1)
    assert (row["name"], row["backup_id"], row["c_id"]) == (name, name, str(c_id))


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1+1", "\r=1+1", "\n=1+1", '=HYPERLINK("x","y")'])
def test_no_cell_of_the_csv_is_a_formula(sqlite_site: Site, name: str) -> None:
    c_id = sqlite_site.container(name)
    sqlite_site.run(c_id, "2026-03-13 18:07", "2026-03-13 18:30", backup_id=name)
    [row] = slots(sqlite_site, days=1)
    for cell in (row["name"], row["backup_id"]):
        assert cell[0] not in "=+-@\t\r\n"
        assert name in cell


def test_a_policy_of_the_settings_may_look_like_a_formula(sqlite_site: Site) -> None:
    sqlite_site.container(policy="=2*12")
    sqlite_site.config(policies={"=2*12": 24})
    [row] = slots(sqlite_site, days=1)
    assert row["policy"][0] != "="


def test_a_password_in_a_backup_id_does_not_come_out(sqlite_site: Site) -> None:
    sqlite_site.run(
        sqlite_site.container(), "2026-03-13 18:07", "2026-03-13 18:30", backup_id=f"20260313 password={SECRET}"
    )
    for argv in ([], ["--json"], ["--csv"]):
        out = shown(sqlite_site, *argv, days=1).out
        assert SECRET not in out, argv
        assert "20260313" not in out or argv == ["--csv"]


# --- The table -----------------------------------------------------------------------------------------


def some_site(site: Site) -> None:
    nightly(site, site.container("perfect"), 40, name="perfect")
    nightly(site, site.container("scarred"), 40, skip=(3, 9), failed=(10,), name="scarred")
    nightly(site, site.container("dead"), 40, skip=range(15), name="dead")
    nightly(site, site.container("new", created="2026-03-04 09:00"), 10, name="new")
    nightly(site, site.container("weekly", "Weekly"), 1, name="weekly")


def test_the_table(sqlite_site: Site) -> None:
    some_site(sqlite_site)
    table = shown(sqlite_site).out
    assert len(rows_of(table)) == 5
    assert "25 %" in row_of(table, "weekly")
    assert "\u00b7\u00b7\u00b7\u25a0" in row_of(table, "weekly")
    assert "\u25a0" * 15 + "\u00b7" * 15 in row_of(table, "dead")
    assert "50 %" in row_of(table, "dead")
    good = "\u25a0"
    assert good * 19 + "\u2717\u00b7" + good * 5 + "\u00b7" + good * 3 in row_of(table, "scarred")
    assert "90 %" in row_of(table, "scarred")
    assert f" {' ' * 20}{good * 10}" in row_of(table, "new")
    assert good * 30 in row_of(table, "perfect")
    assert "100 %" in row_of(table, "perfect")


def test_the_worst_ratio_comes_first(sqlite_site: Site) -> None:
    some_site(sqlite_site)
    sqlite_site.container("monthly", "Monthly")
    sqlite_site.config(policies={"Monthly": 744})
    order = [re.findall(r"[a-z]+", row)[0] for row in rows_of(shown(sqlite_site).out)]
    assert order[:3] == ["weekly", "dead", "scarred"]
    assert set(order[3:5]) == {"new", "perfect"}
    assert order[5] == "monthly"


def test_of_equal_ratios_the_longest_gap_comes_first(sqlite_site: Site) -> None:
    for name, skip in (("a", (2, 4)), ("b", (2, 3)), ("c", (5, 9))):
        nightly(sqlite_site, sqlite_site.container(name), 40, skip=skip, name=name)
    assert [row.split()[2] for row in rows_of(shown(sqlite_site).out)] == ["b", "a", "c"]


def test_the_legend_explains_every_mark(sqlite_site: Site) -> None:
    some_site(sqlite_site)
    legend = shown(sqlite_site).out.split("RATIO")[0]
    for mark in ("\u25a0 backed up", "\u2717 failed", "\u00b7 nothing"):
        assert mark in legend
    assert "blank" in legend


def test_the_table_says_from_when_to_when_its_strips_reach(sqlite_site: Site) -> None:
    some_site(sqlite_site)
    lines = shown(sqlite_site).out.splitlines()
    assert "30 days to 2026-03-14 07:00 UTC" in lines[0]
    [scale] = [line for line in lines if line.startswith("RATIO")]
    strip = row_of("\n".join(lines), "perfect").index("\u25a0")
    assert scale[strip : strip + 5] == "02-12"
    assert scale[strip + 25 :] == "03-14"
    assert "02-14 " in row_of("\n".join(lines), "weekly")


def summary_of(site: Site) -> str:
    lines = shown(site).out.splitlines()
    return " ".join(lines[len(lines) - lines[::-1].index("") :])


def test_the_summary(sqlite_site: Site) -> None:
    some_site(sqlite_site)
    period = document(sqlite_site)["history"]
    assert (period["slots"], period["covered"]) == (104, 83)
    summary = summary_of(sqlite_site)
    for fact in ("5 containers", "104 slots", "83 covered", "79.8 %", "29.5 d (weekly)", "worst ratio weekly"):
        assert fact in summary


def test_the_summary_names_the_container_of_the_longest_gap(sqlite_site: Site) -> None:
    site = sqlite_site
    nightly(site, site.container("often"), 30, skip=range(0, 30, 2), name="often")
    nightly(site, site.container("once"), 30, skip=range(5, 15), name="once")
    assert "11.0 d (once)" in summary_of(site)
    assert "worst ratio often" in summary_of(site)


def test_one_container_is_not_several(sqlite_site: Site) -> None:
    nightly(sqlite_site, sqlite_site.container(), 30)
    assert summary_of(sqlite_site).startswith("1 container, 30 slots, 30 covered (100")


@pytest.mark.parametrize("covered", [0, 1, 7, 14, 28, 29, 55, 56, 57, 58, 99, 100])
def test_the_percentage_of_a_container_is_not_a_rounding_error(sqlite_site: Site, covered: int) -> None:
    nightly(sqlite_site, sqlite_site.container(), covered)
    [row] = [row for row in rows_of(shown(sqlite_site, days=100).out) if "sales" in row]
    assert row.split()[:2] == [str(covered), "%"]


def test_what_is_not_whole_is_never_called_100_percent(sqlite_site: Site) -> None:
    site = sqlite_site
    nightly(site, site.container(policy="Hourly"), 90 * 24 + 24, skip=(1000,), every=HOUR)
    site.config(policies={"Hourly": 1})
    at = datetime(2026, 3, 13, 19, 0, tzinfo=UTC)
    period = document(site, days=90, at=at)["history"]
    assert period["slots"] - period["covered"] == 1
    table = shown(site, days=90, at=at).out
    assert "99 %" in table
    assert not re.search(r"\b100(\.0)? %", table)


@pytest.mark.parametrize(
    "name", ["s", "sixteen-columns.", "a-name-of-17-cols", "a-name-of-eighteen", "\u9867\u5ba2" * 4]
)
def test_thirty_days_are_one_line_of_80_columns(sqlite_site: Site, name: str) -> None:
    nightly(sqlite_site, sqlite_site.container(name), 30, name=name)
    assert len(rows_of(shown(sqlite_site).out)) == 1


@pytest.mark.parametrize(
    "name", ["s", "sixteen-columns.", "a-name-of-eighteen", "\u9867\u5ba2" * 4, "\u9867\u5ba2" * 6]
)
@pytest.mark.parametrize("days", [1, 20, 25, 30, 31, 40, 50, 100, 365])
def test_no_line_is_wider_than_80_columns(sqlite_site: Site, name: str, days: int) -> None:
    nightly(sqlite_site, sqlite_site.container(name), 50, name=name)
    table = shown(sqlite_site, days=days).out
    legend = table.splitlines()[1:5]  # the first line names the database
    assert [line for line in (*legend, *rows_of(table)) if width(line) > 80] == []


@pytest.mark.parametrize("name", ["s", "a-name-of-eighteen", "\u9867\u5ba2" * 4, "\u9867\u5ba2" * 9])
def test_the_summary_is_not_wider_than_80_columns(sqlite_site: Site, name: str) -> None:
    sqlite_site.container(name)
    lines = shown(sqlite_site).out.splitlines()[-3:]
    assert [line for line in lines if width(line) > 80] == []


@pytest.mark.usefixtures("colours")
@pytest.mark.parametrize("columns", [60, 80, 99, 132, 200])
@pytest.mark.parametrize("days", [7, 30, 90, 366])
def test_no_line_is_wider_than_the_terminal(
    sqlite_site: Site, monkeypatch: pytest.MonkeyPatch, columns: int, days: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    long = "a-very-long-name-that-somebody-gave-to-a-database-of-his"
    nightly(sqlite_site, sqlite_site.container(long), 30, name=long)
    nightly(sqlite_site, sqlite_site.container("\u9867\u5ba2" * 10, "Weekly"), 30, name="wide")
    rows = rows_of(shown(sqlite_site, days=days, terminal=True).out)
    assert [row for row in rows if width(row) > columns] == []


@pytest.mark.usefixtures("colours")
def test_a_gap_of_many_days_does_not_push_a_strip_out_of_the_terminal(
    sqlite_site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    sqlite_site.container()
    for columns in range(125, 140):
        monkeypatch.setenv("COLUMNS", str(columns))
        rows = rows_of(shown(sqlite_site, days=100, terminal=True).out)
        assert [row for row in rows if width(row) > columns] == []


def test_a_long_period_goes_on_in_lines_of_whole_weeks(sqlite_site: Site) -> None:
    nightly(sqlite_site, sqlite_site.container(), 365, skip=(100,), failed=(200,))
    rows = rows_of(shown(sqlite_site, days=365).out)
    strips = [re.fullmatch(r" +(\d{4}-\d\d-\d\d) (\S+) (\d{4}-\d\d-\d\d)", row) for row in rows[1:]]
    parts = [strip.groups() for strip in strips if strip]
    assert len(parts) == len(rows) - 1
    marks = "".join(part[1] for part in parts)
    assert len(marks) == 365
    assert (marks.index("\u2717"), marks.index("\u00b7")) == (364 - 200, 364 - 100)
    assert {len(part[1]) % 7 for part in parts[:-1]} == {0}
    assert len({len(part[1]) for part in parts[:-1]}) == 1
    assert parts[0][0] == "2025-03-14"
    assert parts[-1][2] in ("2026-03-13", "2026-03-14")  # its last slot is of both
    starts = [part[0] for part in parts]
    assert starts == sorted(set(starts))


def test_a_container_without_slots_has_a_line_whatever_the_length_of_its_name(sqlite_site: Site) -> None:
    site = sqlite_site
    site.config(policies={"Monthly": 744})
    c_id = site.container("x", "Monthly")
    for length in range(30, 60):
        with site.session() as session:
            session.execute(update(ContainerState).where(ContainerState.c_id == c_id).values(name="x" * length))
        assert "none due" in shown(site, days=1).out


def test_names_of_containers_are_harmless_in_a_terminal(sqlite_site: Site) -> None:
    nightly(sqlite_site, sqlite_site.container("red\x1b[31m\nalert\u202e\x07"), 3)
    table = shown(sqlite_site).out
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", table)
    assert len([line for line in table.splitlines() if "alert" in line]) >= 1


@pytest.mark.usefixtures("colours")
def test_colours_are_for_terminals(sqlite_site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    some_site(sqlite_site)
    plain = shown(sqlite_site).out
    assert "\x1b" not in plain
    coloured = shown(sqlite_site, terminal=True).out
    assert "\x1b[" in coloured
    assert ESCAPES.sub("", coloured) == plain
    for name, value in (("NO_COLOR", "1"), ("TERM", "dumb")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            assert "\x1b" not in shown(sqlite_site, terminal=True).out


@pytest.mark.usefixtures("colours")
@pytest.mark.parametrize("form", ["--json", "--csv"])
def test_machines_get_no_colours(sqlite_site: Site, form: str) -> None:
    some_site(sqlite_site)
    assert shown(sqlite_site, form, terminal=True).out == shown(sqlite_site, form).out


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "latin-1"},
        {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
)
def test_the_table_is_plain_ascii_where_the_output_is_not_unicode(
    sqlite_site: Site, environment: dict[str, str]
) -> None:
    some_site(sqlite_site)
    result = sqlite_site.process("--history", "30", "--at", iso(NOW), env=environment)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.isascii()
    assert "\\x" not in result.stdout
    assert "\\u" not in result.stdout
    assert "#" * 15 + "." * 15 in row_of(result.stdout, "dead")
    assert "x." in row_of(result.stdout, "scarred")
    for mark in ("# backed up", "x failed", ". nothing"):
        assert mark in result.stdout


def test_a_name_that_the_output_cannot_hold_keeps_nothing_from_being_printed(sqlite_site: Site) -> None:
    nightly(sqlite_site, sqlite_site.container("Gr\u00fc\u00dfe"), 30)
    for form in ([], ["--json"], ["--csv"]):
        result = sqlite_site.process(
            "--history", "30", "--at", iso(NOW), *form, env={"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
        )
        assert (result.returncode, result.stderr) == (0, "")
        assert result.stdout.isascii()
        assert "Gr" in result.stdout


def test_the_table_is_unicode_where_the_output_is(sqlite_site: Site) -> None:
    some_site(sqlite_site)
    result = sqlite_site.process("--history", "30", "--at", iso(NOW), env={"PYTHONIOENCODING": "utf-8"})
    assert "\u25a0" * 30 in result.stdout
    assert result.stdout == shown(sqlite_site).out


# --- What it does not do -------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [[], ["--json"], ["--csv"], ["--all"]])
def test_no_textfile_is_written(sqlite_site: Site, form: list[str]) -> None:
    sqlite_site.container()
    result = sqlite_site.audit("--history", "30", *form)
    assert result.status == 0
    assert list(sqlite_site.textfile.parent.iterdir()) == []


def test_the_status_is_0_however_bad_the_past(sqlite_site: Site) -> None:
    sqlite_site.container()
    assert sqlite_site.audit("--history", "30").status == 0


@pytest.mark.parametrize("form", [[], ["--json"], ["--csv"]])
def test_the_status_is_3_if_it_could_not_be_done(sqlite_site: Site, form: list[str]) -> None:
    sqlite_site.config(database_url=f"sqlite:///{sqlite_site.folder / 'missing.db'}")
    result = sqlite_site.audit("--history", "30", *form)
    assert (result.status, result.out) == (3, "")
    assert re.fullmatch(r"backup_audit: .+: .+\n", result.err)
    assert list(sqlite_site.textfile.parent.iterdir()) == []


@pytest.mark.parametrize(
    "argv",
    [
        ["--history"],
        ["--history", "0"],
        ["--history=-1"],
        ["--history", "1.5"],
        ["--history", "month"],
        ["--history", "\u0663"],
        ["--history", "99999999999"],
        ["--csv"],
        ["--all"],
        ["--history", "30", "--csv", "--json"],
        ["--history", "30", "--output", "-"],
    ],
)
def test_bad_usage_is_one_line_and_status_3(sqlite_site: Site, argv: list[str]) -> None:
    sqlite_site.container()
    result = sqlite_site.audit(*argv)
    assert (result.status, result.out) == (3, "")
    assert re.fullmatch(r"backup_audit: [^\n]+\n", result.err)
    assert list(sqlite_site.textfile.parent.iterdir()) == []


def piped(site: Site, *argv: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(TOP / "backup_audit.py"), "--config", str(site.config()), *argv]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL)


@pytest.mark.parametrize("form", [["--csv"], ["--json"], []])
def test_a_reader_that_has_read_enough_is_no_error(sqlite_site: Site, form: list[str]) -> None:
    for number in range(8 if form else 40):  # more than a pipe holds
        sqlite_site.container(f"sales-{number}")
    with piped(sqlite_site, "--history", "2000", "--at", iso(NOW), *form) as process:
        assert process.stdout
        assert process.stderr
        assert process.stdout.readline()
        process.stdout.close()
        errors = process.stderr.read()
        status = process.wait(timeout=60)
    assert (status, errors) == (0, b"")


@contextmanager
def statements() -> Iterator[list[str]]:
    """The SELECT statements that any engine sends meanwhile."""
    seen: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if re.match(r"\s*(SELECT|WITH)\b", statement):
            seen.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        event.remove(Engine, "before_cursor_execute", note)


@pytest.mark.parametrize("form", [["--json"], ["--csv"], ["--all"]])
def test_the_number_of_statements_is_bounded(any_site: Site, form: list[str]) -> None:
    counts = []
    for number in (2, 60):
        for k in range(number):
            any_site.run(any_site.container(f"c{number}-{k}", active=k % 2 == 0), NOW - k * HOUR, NOW - k * HOUR)
        with statements() as seen:
            shown(any_site, *form, days=365)
        counts.append(len(seen))
    assert counts[0] == counts[1] <= 6


def test_the_nightly_audit_with_its_past_needs_no_more_than_six_statements(any_site: Site) -> None:
    for k in range(40):
        c_id = any_site.container(f"sales-{k}", ("Daily", "Weekly")[k % 2])
        nightly(any_site, c_id, 10, skip=range(k % 10), name=f"sales-{k}")
    with statements() as seen:
        assert any_site.audit("-q", "--at", iso(NOW)).status == 2
    assert 0 < len(seen) <= 6
    assert not [statement for statement in seen if re.search(r"\bcommand\b", statement)]


def test_no_password_of_the_database_comes_out(any_site: Site) -> None:
    nightly(any_site, any_site.container("sales"), 3)
    any_site.run(
        any_site.container("stock", version=1), NOW - DAY, NOW - DAY, error=f"Error: password={SECRET} refused"
    )
    for form in ([], ["--json"], ["--csv"], ["--all"]):
        assert SECRET not in shown(any_site, *form).out


def test_a_long_log_is_read_as_far_back_as_the_period_goes(any_site: Site) -> None:
    site = any_site
    other = site.container("busy")
    c_id = site.container("sales")
    nightly(site, c_id, 300, skip=range(0, 300, 2))
    with site.session() as session:
        session.add_all(
            BackupLog(c_id=other, name="busy", state="end", backup_id=str(k), ts=datetime(2026, 3, 14) - k * MINUTE)
            for k in range(24_000)
        )
    assert letters(site, "sales", days=300) == "o-" * 150


# --- The metrics of the past ---------------------------------------------------------------------------


def measured(site: Site, **settings: Any) -> dict[Sample, float]:
    """The samples of an audit as of NOW."""
    site.config(**settings)
    textfile = site.folder / "measured.prom"
    result = site.audit("-q", "--at", iso(NOW), "--output", textfile)
    assert result.status < 3, result.err
    return site.samples(textfile)


def of_past(samples: dict[Sample, float]) -> dict[tuple[str, str], float]:
    """The samples of the two metrics of the past: by metric and container."""
    wanted = ("mydb_backup_covered_ratio", "mydb_backup_typical_duration_seconds")
    return {(metric, dict(labels)["name"]): value for (metric, labels), value in samples.items() if metric in wanted}


def timed(site: Site, c_id: int, *seconds: float, error: str = "") -> None:
    """Log runs of so many seconds, the last one in the last night."""
    for night, duration in enumerate(reversed(seconds)):
        start = datetime(2026, 3, 13, 18, 7) - night * DAY
        site.run(c_id, start, start + timedelta(seconds=duration), error=error)


def test_the_covered_ratio_is_published(any_site: Site) -> None:
    site = any_site
    c_id = site.container()
    nightly(site, c_id, 40, skip=(3, 9, 33), failed=(10,))
    samples = measured(site)
    assert samples[series("mydb_backup_covered_ratio", name="sales", c_id=str(c_id))] == 0.9
    assert past(site)["ratio"] == 0.9


def test_the_days_of_the_metrics_come_from_the_settings(any_site: Site) -> None:
    nightly(any_site, any_site.container(), 40, skip=(3, 9), failed=(33,))
    for days, ratio in ((3, 1), (4, 0.75), (30, 28 / 30), (36, 33 / 36)):
        assert of_past(measured(any_site, history_days=days))["mydb_backup_covered_ratio", "sales"] == ratio


def test_without_history_days_both_metrics_are_off(any_site: Site) -> None:
    site = any_site
    timed(site, site.container(), *[1860] * 6, 2)
    assert len(of_past(measured(site))) == 2
    assert of_past(measured(site, history_days=0)) == {}
    result = site.audit("-v", "--at", iso(NOW))
    assert "check the dump" not in result.out


def test_only_what_has_slots_has_a_covered_ratio(any_site: Site) -> None:
    site = any_site
    site.container("daily")
    site.container("weekly", "Weekly")
    site.container("monthly", "Monthly")
    site.container("never", "Never")
    site.container("unknown", "Fortnightly")
    site.container("fresh", "Weekly", created="2026-03-14 06:00")
    jobs = {"offsite": "Daily"}
    found = of_past(measured(site, policies={"Monthly": 744}, extra_jobs=jobs))
    ratios = {name: value for (metric, name), value in found.items() if metric == "mydb_backup_covered_ratio"}
    assert ratios == {"daily": 0, "weekly": 0, "offsite": 0}


def test_the_typical_duration_is_the_median_of_the_runs_before_the_last(any_site: Site) -> None:
    timed(any_site, any_site.container(), 900, 1200, 600, 3000, 1800, 7)
    assert of_past(measured(any_site))["mydb_backup_typical_duration_seconds", "sales"] == 1200


def test_the_typical_duration_of_an_even_number_of_runs(sqlite_site: Site) -> None:
    timed(sqlite_site, sqlite_site.container(), 900, 1200, 600, 3000, 1800, 1500, 7)
    assert of_past(measured(sqlite_site))["mydb_backup_typical_duration_seconds", "sales"] == 1350


def test_a_typical_duration_needs_five_runs_before_the_last(any_site: Site) -> None:
    site = any_site
    c_id = site.container()
    timed(site, c_id, *[600] * 5)
    nothing = ("mydb_backup_typical_duration_seconds", "sales")
    assert nothing not in of_past(measured(site))
    early = datetime(2026, 3, 1, 18, 7)
    site.run(c_id, early, early + HOUR, error=FAILURE)
    site.run(c_id, early - DAY)
    site.row(c_id=c_id, name="sales", state="end", backup_id="x", ts=early - 2 * DAY)  # its duration is not known
    site.run(c_id, NOW - 31 * DAY, NOW - 31 * DAY + HOUR)
    assert nothing not in of_past(measured(site))
    site.run(c_id, early - 3 * DAY, early - 3 * DAY + HOUR)
    assert of_past(measured(site))[nothing] == 600


@pytest.mark.parametrize(("before", "expected"), [(TICK, None), (0 * TICK, 600)], ids=["before", "first moment"])
def test_a_run_that_began_right_before_the_period_has_no_part_in_the_typical_duration(
    any_site: Site, before: timedelta, expected: float | None
) -> None:
    c_id = any_site.container()
    timed(any_site, c_id, *[600] * 5)
    began = NOW - 30 * DAY - before
    any_site.run(c_id, began, began + timedelta(minutes=10))
    assert of_past(measured(any_site)).get(("mydb_backup_typical_duration_seconds", "sales")) == expected


def test_failed_runs_have_no_part_in_the_typical_duration(sqlite_site: Site) -> None:
    c_id = sqlite_site.container()
    timed(sqlite_site, c_id, *[600] * 6)
    for night in range(6):
        start = datetime(2026, 3, 13, 20, 0) - night * DAY
        sqlite_site.run(c_id, start, start + 5 * MINUTE, error=FAILURE)
    assert of_past(measured(sqlite_site))["mydb_backup_typical_duration_seconds", "sales"] == 600


# --- The suspicion -------------------------------------------------------------------------------------

NOTE = "took 2 s, typically 31 min: check the dump"


def test_a_run_that_took_suspiciously_little_time_is_noted(any_site: Site) -> None:
    timed(any_site, any_site.container(), *[1860] * 5, 2)
    result = any_site.audit("--at", iso(NOW))
    assert result.status == 0
    assert NOTE in result.out
    assert "sales" in result.out
    assert "1 ok" in result.out


@pytest.mark.usefixtures("colours")
def test_the_note_is_in_the_table_of_a_terminal(sqlite_site: Site) -> None:
    timed(sqlite_site, sqlite_site.container(), *[1860] * 5, 2)
    sqlite_site.container("stock", "Never")
    result = sqlite_site.audit("--at", iso(NOW), terminal=True)
    assert result.status == 0
    lines = result.out.splitlines()
    [noted] = [number for number, line in enumerate(lines) if NOTE in line]
    assert "sales" in lines[noted - 1]
    assert noted < next(number for number, line in enumerate(lines) if "stock" in line)


def test_the_note_is_in_the_detail_view(any_site: Site) -> None:
    timed(any_site, any_site.container(), *[1860] * 5, 2)
    result = any_site.audit("--at", iso(NOW), "sales")
    assert result.status == 0
    assert NOTE in result.out


def test_a_note_is_not_a_status(sqlite_site: Site) -> None:
    timed(sqlite_site, sqlite_site.container(), *[1860] * 5, 2)
    samples = measured(sqlite_site)
    assert samples[series("mydb_backup_severity", name="sales", c_id="1")] == 0
    assert samples[series("mydb_backup_status", name="sales", c_id="1", status="ok")] == 1
    assert sqlite_site.audit("--at", iso(NOW), "-q").out == ""


@pytest.mark.parametrize(
    ("typical", "last", "suspicious"),
    [
        (600, 60, False),  # a tenth
        (600, 59.999999, True),
        (600, 0, True),
        (60, 5.999999, True),
        (60, 6, False),
        (59.9, 0, False),  # not even a minute
        (60, 0, True),
        (7200, 719.999999, True),
        (7200, 720, False),
        (600, 6000, False),
    ],
)
def test_less_than_a_tenth_of_a_typical_minute_or_more_is_suspicious(
    sqlite_site: Site, typical: float, last: float, suspicious: bool
) -> None:
    timed(sqlite_site, sqlite_site.container(), *[typical] * 5, last)
    result = sqlite_site.audit("-v", "--at", iso(NOW))
    assert result.status == 0
    assert ("check the dump" in result.out) is suspicious


def test_four_runs_are_not_typical_enough_for_a_suspicion(sqlite_site: Site) -> None:
    timed(sqlite_site, sqlite_site.container(), *[1860] * 4, 2)
    assert "check the dump" not in sqlite_site.audit("-v", "--at", iso(NOW)).out


def test_a_failed_run_that_took_little_time_is_failed_and_not_suspicious(sqlite_site: Site) -> None:
    c_id = sqlite_site.container()
    timed(sqlite_site, c_id, *[1860] * 6)
    sqlite_site.run(c_id, NOW - HOUR, NOW - HOUR + timedelta(seconds=2), error=FAILURE)
    result = sqlite_site.audit("-v", "--at", iso(NOW))
    assert result.status == 2
    assert "check the dump" not in result.out


def test_a_last_run_of_unknown_duration_is_not_suspicious(sqlite_site: Site) -> None:
    c_id = sqlite_site.container()
    timed(sqlite_site, c_id, *[1860] * 6)
    sqlite_site.row(c_id=c_id, name="sales", state="end", backup_id="x", ts=NOW.replace(tzinfo=None) - HOUR)
    assert "check the dump" not in sqlite_site.audit("-v", "--at", iso(NOW)).out


def test_the_textfile_with_its_past_passes_the_lint(sqlite_site: Site, check_metrics: Any) -> None:
    timed(sqlite_site, sqlite_site.container(), *[1860] * 5, 2)
    measured(sqlite_site)
    path: Path = sqlite_site.folder / "measured.prom"
    assert check_metrics(path) == ""
