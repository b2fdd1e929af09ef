"""The rules of docs/rules.md, beyond its table: both sides of every boundary, weekly midnights, local time."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import date, datetime, timedelta
from itertools import pairwise, permutations
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from audit.messages import Meaning, Said
from audit.policy import (
    DAY,
    FUTURE_TOLERANCE,
    HOUR,
    UTC,
    Container,
    Moment,
    Rules,
    Run,
    Status,
    Suspicion,
    Verdict,
    due_at,
    judge,
    known_policy,
    run_limit,
    typical_duration,
    utc_from_local,
)
from tests.builders import NOW

TICK = timedelta(microseconds=1)
MINUTE = timedelta(minutes=1)
RULES = Rules()
BERLIN = ZoneInfo("Europe/Berlin")
ZONES = (
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "America/Havana",  # midnight occurs twice in autumn, and is left out in spring
    "America/Sao_Paulo",  # left out midnight until 2018
    "Africa/Cairo",  # leaves out midnight in spring, and returns to 23:00 in autumn
    "Australia/Lord_Howe",  # half an hour of daylight saving
    "Asia/Kathmandu",
    "Pacific/Apia",  # left out the whole 30 December 2011
    "Pacific/Chatham",
)
ERROR = Said(Meaning.ERROR, "pg_dump: error: query failed")
UNKNOWN = Said(Meaning.UNRECOGNISED, "Disk is 100% used")


def utc(text: str) -> datetime:
    """A moment of 2026 from `03-13 18:07`, or a full one."""
    full = text if re.match(r"\d{4}-", text) else f"2026-{text}"
    return datetime.fromisoformat(full).replace(tzinfo=UTC)


def good(started: str, minutes: float = 23, **more: Any) -> Run:
    start = utc(started)
    return Run(start, started, ended=start + minutes * MINUTE, **more)


def bad(started: str) -> Run:
    return good(started, said=ERROR)


def unsure(started: str) -> Run:
    return good(started, said=UNKNOWN)


def unfinished(started: str) -> Run:
    return Run(utc(started), started)


def nights(first: int, last: int, minutes: float) -> list[Run]:
    """A good run at 18:07 on each of these days of March."""
    return [good(f"03-{day:02} 18:07", minutes) for day in range(first, last + 1)]


def verdict_of(*runs: Run, now: datetime = NOW, rules: Rules = RULES, **facts: Any) -> Verdict:
    """The verdict on a Daily container; its creation may be text."""
    facts = {"c_id": 7, "policy": "Daily", "created": utc("2025-01-15 09:30"), **facts}
    if isinstance(facts["created"], str):
        facts["created"] = utc(facts["created"])
    return judge(Container(name="sales", **facts), runs, now, rules)


# --- What a verdict says -------------------------------------------------------------------------------


def test_a_verdict_has_the_runs_that_it_is_made_of_in_any_order() -> None:
    runs = good("03-10 18:07"), unsure("03-11 18:07"), bad("03-12 18:07"), unfinished("03-14 06:00")
    for order in permutations(runs):
        verdict = verdict_of(*order)
        assert (verdict.known_good, verdict.last_success, verdict.concluded, verdict.last_run) == runs
        assert verdict.due == utc("03-12 18:07"), "neither a failed nor a running one moves it"
        assert (verdict.failures, verdict.line) == (1, "pg_dump: error: query failed")
        assert [verdict.outcome(run).value for run in runs] == ["succeeded", "succeeded", "failed", "running"]


@pytest.mark.parametrize(
    ("runs", "failures"),
    [
        ([], 0),
        ([bad("03-12 18:07"), good("03-13 18:07")], 0),
        ([good("03-10 18:07"), bad("03-11 18:07"), unfinished("03-12 18:07"), unfinished("03-14 06:50")], 2),
        ([unsure("03-11 18:07"), bad("03-12 18:07")], 1),
        ([unfinished(f"03-{day} 18:07") for day in (11, 12, 13)], 3),
    ],
)
def test_failures_in_a_row_are_those_since_the_last_success(runs: list[Run], failures: int) -> None:
    assert verdict_of(*runs).failures == failures


def test_the_line_that_decides_is_that_of_a_failed_or_an_unsure_one() -> None:
    for run, line in ((unsure("03-13 18:07"), "Disk is 100% used"), (unsure("03-10 18:07"), None)):  # that is missed
        assert verdict_of(run).line == line


def test_a_dump_is_kept_from_its_start_on() -> None:
    rules = replace(RULES, dumps_kept=180 * DAY)
    last = good("03-10 18:07"), bad("03-13 18:07")
    assert verdict_of(*last, rules=rules).kept_until == utc("03-10 18:07") + 180 * DAY
    assert verdict_of(*last).kept_until is None
    assert verdict_of(last[1], rules=rules).kept_until is None
    assert verdict_of(*last, rules=rules, c_id=0).kept_until is None, "a job of the site has no dump"


SUSPECTED = [
    (60, 5.9, [Suspicion.SHORT]),
    (60, 6, []),
    (1, 0.05, [Suspicion.SHORT]),
    (0.99, 0.05, []),  # of a typical duration below a minute nothing is short
    (60, -1, [Suspicion.ENDED_BEFORE_START]),
]


@pytest.mark.parametrize(("typical", "last", "expected"), SUSPECTED)
def test_suspicions_about_the_last_good_backup(typical: float, last: float, expected: list[Suspicion]) -> None:
    verdict = verdict_of(*nights(1, 12, typical), good("03-13 18:07", last))
    assert (verdict.status, verdict.suspicions) == (Status.OK, expected)


# --- The typical duration, and the limit ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("minutes", "typical"),
    [([5, 5], None), ([3, 1, 2], 3), ([4, 3, 2, 1], 4), ([1, 2, 3, 4, 5], 4), ([60, 60, 60, *[1] * 9], 60)],
)
def test_the_typical_duration_is_the_upper_quartile(minutes: list[float], typical: float | None) -> None:
    runs = [good(f"03-{day:02} 18:07", each) for day, each in enumerate(minutes, 1)]
    assert typical_duration(runs, NOW) == (None if typical is None else typical * MINUTE)


def test_only_known_durations_of_30_days_are_typical() -> None:
    now, three = utc("03-31 07:00"), [good("03-30 07:00", 5), good("03-29 07:00", 5)]
    assert typical_duration([*three, good("03-01 07:00:00", 7)], now) == 7 * MINUTE
    for other in (
        good("03-01 06:59:59", 7),
        good("03-31 07:00:01", 7),
        good("03-28 07:00", 7, said=ERROR),
        good("03-28 07:00", 7, start_logged=False),
        good("03-28 07:00", -1),
        unfinished("03-28 07:00"),
    ):
        assert typical_duration([*three, other], now) is None


@pytest.mark.parametrize(
    ("typical", "max_runtime", "limit"),
    [
        (None, 12, 12),
        (0.01, 12, 1),
        (0.1, 12, 1),
        (0.2, 12, 2),
        (1.3, 12, 12),  # ten times would be more than max_runtime_hours
        (14, 12, 28),
        (0.1, 0.5, 0.5),
    ],
)
def test_the_limit_of_a_run(typical: float | None, max_runtime: float, limit: float) -> None:
    rules = Rules(max_runtime=max_runtime * HOUR)
    assert run_limit(None if typical is None else typical * HOUR, rules) == limit * HOUR


# --- Both sides of every boundary ----------------------------------------------------------------------


BACKED_UP, RUNNING, STALLED = good("03-13 18:07"), unfinished("03-14 18:00"), unfinished("03-13 19:00")
SHORT = Rules(window=2 * HOUR, grace=HOUR, max_runtime=HOUR / 2)
CUSTOM = Rules(policies={"Monthly": 744 * HOUR, "Every 6 h": 6 * HOUR})


@pytest.mark.parametrize(
    ("policy", "runs", "rules", "at", "expected"),
    [
        ("Daily", [BACKED_UP], RULES, "03-14 18:07", ["ok", "late"]),
        ("Daily", [BACKED_UP], RULES, "03-14 21:07", ["late", "missed"]),
        ("Daily", [BACKED_UP], Rules(grace=timedelta(0)), "03-14 18:07", ["ok", "missed"]),
        ("Daily", [BACKED_UP], SHORT, "03-13 20:07", ["ok", "late"]),
        ("Daily", [BACKED_UP], SHORT, "03-13 21:07", ["late", "missed"]),
        ("Daily", [unsure("03-13 18:07")], RULES, "03-14 18:07", ["unsure", "late"]),
        ("Daily", [RUNNING], RULES, "03-15 06:00", ["running", "stalled"]),
        ("Daily", [RUNNING], SHORT, "03-14 18:30", ["running", "stalled"]),
        # a running backup is fine until the one before is overdue, and no excuse for one that stalled
        ("Daily", [BACKED_UP, RUNNING], RULES, "03-14 18:07", ["ok", "running"]),
        ("Daily", [BACKED_UP, STALLED, RUNNING], Rules(max_runtime=23.1 * HOUR), "03-14 18:06", ["ok", "stalled"]),
        # a dump of fourteen hours is not dead after thirteen
        ("Daily", [*nights(1, 12, 14 * 60), unfinished("03-13 18:07")], RULES, "03-14 22:07", ["running", "stalled"]),
        # 24 hours are over an hour before the same local time where clocks are set back
        ("Daily", [good("10-24 16:07")], Rules(zone=BERLIN), "10-25 16:07", ["ok", "late"]),
        # a policy of the settings has its own hours and the common grace
        ("monthly", [good("02-01 00:00")], CUSTOM, "03-04 00:00", ["ok", "late"]),
        ("monthly", [good("02-01 00:00")], CUSTOM, "03-04 03:00", ["late", "missed"]),
    ],
)
def test_both_sides_of_a_moment(policy: str, runs: list[Run], rules: Rules, at: str, expected: list[str]) -> None:
    found = [verdict_of(*runs, now=now, policy=policy, rules=rules).status for now in (utc(at) - TICK, utc(at))]
    assert [status.value for status in found] == expected


def test_an_error_is_a_failure_even_if_the_run_has_not_ended() -> None:
    assert verdict_of(BACKED_UP, unfinished("03-14 02:00")._replace(said=ERROR)).status is Status.FAILED


@pytest.mark.parametrize(
    ("created", "daily", "weekly"),
    [
        (NOW + FUTURE_TOLERANCE + TICK, "missed", "missed"),  # a wrong stamp: long ago
        (NOW + FUTURE_TOLERANCE, "new", "new"),
        (NOW - DAY + TICK, "new", "new"),
        (NOW - DAY, "late", "new"),
        (NOW - 27 * HOUR + TICK, "late", "new"),
        (NOW - 27 * HOUR, "missed", "new"),
        (None, "missed", "missed"),
    ],
)
def test_a_container_is_new_until_its_first_backup_is_due(created: datetime | None, daily: str, weekly: str) -> None:
    assert verdict_of(created=created).status.value == daily
    assert verdict_of(created=created, policy="Weekly", rules=Rules(weekly_day=6)).status.value == weekly


def test_a_container_is_not_new_once_a_run_failed_or_succeeded() -> None:
    assert verdict_of(bad("03-14 02:00"), created="03-14 01:00").status is Status.FAILED
    # restored under its old c_id: its runs are what is known of it
    assert verdict_of(BACKED_UP, created="03-14 01:00").status is Status.OK


@pytest.mark.parametrize("state", ["running", " RUNNING\t", "maintenance", "run", "", None])
def test_only_a_container_in_state_running_can_be_late(state: str | None) -> None:
    paused = state not in ("running", " RUNNING\t")
    assert verdict_of(good("03-10 18:07"), state=state).status is (Status.PAUSED if paused else Status.MISSED)
    assert verdict_of(good("03-13 05:00"), state=state).status is (Status.PAUSED if paused else Status.LATE)
    assert verdict_of(BACKED_UP, state=state).status is Status.OK
    assert verdict_of(bad("03-13 18:07"), state=state).status is Status.FAILED


def test_a_duration_is_known_if_both_ends_are_and_never_negative() -> None:
    start = utc("03-13 18:07")
    run = Run(start, "x", ended=start)
    assert run.duration == timedelta(0)
    for unknown in ({"ended": None}, {"start_logged": False}, {"ended": start - TICK}):
        assert run._replace(**unknown).duration is None


# --- Policies ------------------------------------------------------------------------------------------

SPELLINGS: dict[str | None, list[str | None]] = {
    "Daily": ["Daily", " daily ", "DAILY", "\tDaily\n"],
    "Weekly": ["weekly", "WeEkLy"],
    "Never": ["Never", "never ", "None", "none", " NONE"],
    "Monthly": ["Monthly", " monthly"],
    "Every 6 h": ["EVERY 6 H"],
    None: ["Fortnightly", "Daily, Weekly", "Dail", "", "  ", None],
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_spelling_of_policies(name: str | None) -> None:
    for text in SPELLINGS[name]:
        assert known_policy(text, CUSTOM) == name, text
        verdict = verdict_of(policy=text, rules=CUSTOM)
        expected = {None: Status.NO_POLICY, "Never": Status.EXEMPT}.get(name, Status.MISSED)
        assert (verdict.status, verdict.due is not None) == (expected, expected is Status.MISSED)
        assert verdict.policy == (name or (text or "").strip())
    assert known_policy("Monthly", RULES) is None, "it is one of the settings"


def test_one_good_backup_covers_no_longer_than_the_longest_policy_and_the_grace() -> None:
    assert RULES.longest_cover == 7 * DAY + (2 + 24 + 3) * HOUR
    assert CUSTOM.longest_cover == (744 + 3) * HOUR


# --- Weekly --------------------------------------------------------------------------------------------


def weekly_midnight(base: datetime, rules: Rules) -> datetime:
    """The midnight that a Weekly backup with this base is due after."""
    return due_at("Weekly", base, rules) - rules.window


def first_moment_of(day: date, zone: ZoneInfo) -> datetime:
    """The first moment whose local date is `day` or later, found by walking there in quarters of an hour."""
    moment = datetime(day.year, day.month, day.day, tzinfo=UTC) - timedelta(hours=27)
    while moment.astimezone(zone).date() < day:
        moment += timedelta(minutes=15)
    return moment


MOMENTS = st.datetimes(datetime(2005, 1, 1), datetime(2030, 1, 1), timezones=st.just(UTC))
CHANGES = [
    *[("Europe/Berlin", "2026-03-29"), ("Europe/Berlin", "2026-10-25"), ("Africa/Cairo", "2026-10-29")],
    *[("America/Havana", "2026-03-08"), ("America/Havana", "2026-11-01"), ("Australia/Lord_Howe", "2026-04-04")],
    *[("Australia/Lord_Howe", "2026-10-03"), ("America/Sao_Paulo", "2018-02-18"), ("America/Sao_Paulo", "2018-11-04")],
]
NEAR_CHANGES = st.builds(
    lambda change, quarters: (utc(f"{change[1]} 00:00") + quarters * HOUR / 4, change[0]),
    st.sampled_from(CHANGES),
    st.integers(0, 95),
)
WHERE = NEAR_CHANGES | st.tuples(MOMENTS, st.sampled_from(ZONES))


@example(("2026-03-14 00:00", "UTC"), 5)  # strictly after
@example(("2026-03-13 23:59:59.999999", "UTC"), 5)
@example(("2026-10-24 12:00", "Europe/Berlin"), 0)  # clocks are set back after midnight
@example(("2018-11-04 03:00", "America/Sao_Paulo"), 6)  # the Sunday that began at 01:00
@example(("2018-02-18 02:30", "America/Sao_Paulo"), 6)  # 23:30 of Saturday for the second time
@example(("2026-11-01 05:30", "America/Havana"), 6)  # the first hour of Sunday for the second time
@example(("2011-12-29 12:00", "Pacific/Apia"), 5)  # the day before the Friday that was left out
@given(WHERE, st.integers(0, 6))
def test_weekly_midnight_is_the_first_moment_of_that_weekday(where: tuple[datetime | str, str], weekday: int) -> None:
    base, zone = utc(where[0]) if isinstance(where[0], str) else where[0], ZoneInfo(where[1])
    today = base.astimezone(zone).date()
    days = (today + timedelta(days=n) for n in range(-1, 9))
    midnights = [first_moment_of(day, zone) for day in days if day.weekday() == weekday]
    expected = min(midnight for midnight in midnights if midnight > base)
    assert weekly_midnight(base, Rules(zone=zone, weekly_day=weekday)) == expected


# --- Local time ----------------------------------------------------------------------------------------


def test_a_local_time_that_occurs_twice_is_its_first_occurrence() -> None:
    assert utc_from_local(datetime(2026, 10, 25, 2, 30), BERLIN) == utc("10-25 00:30")
    assert utc_from_local(datetime(2026, 10, 25, 3, 0), BERLIN) == utc("10-25 02:00")


def test_a_moment_that_was_asked_for_has_no_tolerance() -> None:
    assert Moment.by_clock(NOW) == Moment(NOW, NOW + FUTURE_TOLERANCE, NOW - DAY, unseen=False)
    assert Moment.as_of(NOW) == Moment(NOW, NOW, NOW - DAY, unseen=True)


# --- Time improves nothing -----------------------------------------------------------------------------

HOURS = st.integers(0, 40 * 24) | st.sampled_from([1, 3, 12, 24, 27, 48, 744])
RUNS = st.builds(
    lambda hours, kind: kind((NOW - hours * HOUR).isoformat()[:19]),
    HOURS,
    st.sampled_from([good, good, unsure, bad, unfinished, unfinished]),
)


@given(
    st.lists(RUNS, max_size=7),
    st.sampled_from(["Daily", "Daily", "Weekly", "Monthly", "Never", "?"]),
    st.sampled_from(["running", "maintenance"]),
    st.sampled_from([1, 3]),  # hours that limit a run whether or not its typical duration is still known
    st.lists(HOURS, min_size=1, max_size=6),
)
def test_more_elapsed_time_never_improves_a_verdict(
    runs: list[Run], policy: str, state: str, max_runtime: int, steps: list[int]
) -> None:
    rules = replace(CUSTOM, max_runtime=max_runtime * HOUR)
    moments = [NOW + step * HOUR for step in sorted([0, *steps])]
    found = [verdict_of(*runs, now=now, policy=policy, state=state, rules=rules).status for now in moments]
    for before, after in pairwise(found):
        assert after.severity >= before.severity, found


@given(st.lists(RUNS, max_size=7), RUNS)
def test_another_attempt_excuses_nothing_until_it_has_succeeded(runs: list[Run], attempt: Run) -> None:
    before = verdict_of(*runs)
    again = verdict_of(*runs, attempt._replace(started=NOW, backup_id="again"))
    if before.status in (Status.FAILED, Status.STALLED) and not attempt.succeeded:
        assert again.severity == 2
