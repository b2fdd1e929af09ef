"""The rules of docs/rules.md, beyond its table: both sides of every boundary, weekly midnights, local time."""

from __future__ import annotations

from dataclasses import replace
from datetime import date, datetime, timedelta
from itertools import pairwise, permutations
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from audit.policy import (
    DAY,
    FUTURE_TOLERANCE,
    HOUR,
    UTC,
    Container,
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
from tests.db4sci import CREATED
from tests.runs import CLOCK_CHANGES, ERROR, MINUTE, RULES, TICK, UNKNOWN, at, bad, doubtful, nights, run, unfinished

CUSTOM = Rules(policies={"Monthly": 744 * HOUR, "Every 6 h": 6 * HOUR})
BERLIN = ZoneInfo("Europe/Berlin")
BACKED_UP = run("13 18:07")


def verdict_of(*runs: Run, now: datetime = NOW, rules: Rules = RULES, **facts: Any) -> Verdict:
    """The verdict on a Daily container made long ago, but for the facts that are given."""
    given = {"c_id": 7, "backup_freq": "Daily", "created": CREATED, **facts}
    return judge(Container(name="sales", **given), runs, now, rules)


# --- What a verdict says -------------------------------------------------------------------------------


def test_a_verdict_has_the_runs_that_it_is_made_of_in_any_order() -> None:
    runs = run("10 18:07"), doubtful("11 18:07"), bad("12 18:07"), unfinished("14 06:00")
    for order in permutations(runs):
        verdict = verdict_of(*order)
        assert (verdict.known_good, verdict.last_success, verdict.concluded, verdict.last_run) == runs
        assert verdict.due == at("12 18:07"), "neither a failed nor a running one moves it"
        assert (verdict.failures, verdict.line) == (1, ERROR)
        assert [verdict.outcome(run).value for run in runs] == ["succeeded", "succeeded", "failed", "running"]


@pytest.mark.parametrize(
    ("runs", "failures"),
    [
        ([bad("12 18:07"), run("13 18:07")], 0),
        ([run("10 18:07"), bad("11 18:07"), unfinished("12 18:07"), unfinished("14 06:50")], 2),
        ([unfinished(f"{day} 18:07") for day in (11, 12, 13)], 3),
    ],
)
def test_failures_in_a_row_are_those_since_the_last_success(runs: list[Run], failures: int) -> None:
    assert verdict_of(*runs).failures == failures


def test_the_line_that_decides_is_that_of_a_failed_or_an_unsure_one() -> None:
    assert verdict_of(doubtful("13 18:07")).line == UNKNOWN
    assert verdict_of(doubtful("10 18:07")).line is None, "it is missed, whatever the run said"


def test_a_dump_is_kept_from_its_start_on() -> None:
    rules = replace(RULES, dumps_kept=180 * DAY)
    last = run("10 18:07"), bad("13 18:07")
    assert verdict_of(*last, rules=rules).kept_until == at("10 18:07") + 180 * DAY
    assert verdict_of(*last).kept_until is None
    assert verdict_of(last[1], rules=rules).kept_until is None
    assert verdict_of(last[0], doubtful("12 18:07"), rules=rules).kept_until == at("12 18:07") + 180 * DAY
    assert verdict_of(*last, rules=rules, c_id=0).kept_until is None, "a job of the site has no dump"


@pytest.mark.parametrize(
    ("typical", "last", "expected"),
    [
        (60, 5.9, Suspicion.SHORT),
        (60, 6, None),
        (1, 0.05, Suspicion.SHORT),
        (0.99, 0.05, None),  # of a typical duration below a minute nothing is short
        (60, -1, Suspicion.ENDED_BEFORE_START),
    ],
)
def test_the_suspicion_about_the_last_good_backup(typical: float, last: float, expected: Suspicion | None) -> None:
    verdict = verdict_of(*nights(*range(1, 13), minutes=typical), run("13 18:07", minutes=last))
    assert (verdict.status, verdict.suspicion) == (Status.OK, expected)


# --- The typical duration, and the limit ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("minutes", "typical"),
    [([5, 5], None), ([3, 1, 2], 3), ([4, 3, 2, 1], 4), ([1, 2, 3, 4, 5], 4), ([60, 60, 60, *[1] * 9], 60)],
)
def test_the_typical_duration_is_the_upper_quartile(minutes: list[float], typical: float | None) -> None:
    runs = [run(f"{day:02} 18:07", minutes=each) for day, each in enumerate(minutes, 1)]
    assert typical_duration(runs, NOW) == (None if typical is None else typical * MINUTE)


def test_only_known_durations_of_30_days_are_typical() -> None:
    now, two = at("31 07:00"), [run("30 07:00"), run("29 07:00")]
    for edge in (run("01 07:00"), run(now)):
        assert typical_duration([*two, edge], now) == 23 * MINUTE
    useless = (
        bad("28 07:00"),
        run("28 07:00", start_logged=False),
        run("28 07:00", minutes=-1),
        unfinished("28 07:00"),
    )
    for other in (run(at("01 07:00") - TICK), run(now + TICK), *useless):
        assert typical_duration([*two, other], now) is None


@pytest.mark.parametrize(
    ("typical", "max_runtime", "limit"),
    [
        (None, 12, 12),
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


def test_a_duration_is_known_if_both_ends_are_and_never_negative() -> None:
    assert run("13 18:07", minutes=0).duration == timedelta(0)
    for unknown in (unfinished("13 18:07"), run("13 18:07", start_logged=False), run("13 18:07", ended="13 18:06:59")):
        assert unknown.duration is None


# --- Both sides of every boundary ----------------------------------------------------------------------


RUNNING, STALLED = unfinished("14 18:00"), unfinished("13 19:00")
SHORT = Rules(window=2 * HOUR, grace=HOUR, max_runtime=HOUR / 2)
LONG = Rules(max_runtime=23.1 * HOUR)
NO_GRACE = Rules(grace=timedelta(0))
IN_BERLIN = Rules(zone=BERLIN)
TAKES_14_HOURS = [*nights(1, 2, 3, 12, minutes=840), STALLED]
FEBRUARY, AUTUMN = run("2026-02-01 00:00"), run("2026-10-24 16:07")


@pytest.mark.parametrize(
    ("policy", "runs", "rules", "moment", "expected"),
    [
        pytest.param("Daily", [BACKED_UP], RULES, "14 18:07", ["ok", "late"], id="window"),
        pytest.param("Daily", [BACKED_UP], RULES, "14 21:07", ["late", "missed"], id="grace"),
        pytest.param("Daily", [BACKED_UP], NO_GRACE, "14 18:07", ["ok", "missed"], id="no grace"),
        pytest.param("Daily", [BACKED_UP], SHORT, "13 20:07", ["ok", "late"], id="short window"),
        pytest.param("Daily", [BACKED_UP], SHORT, "13 21:07", ["late", "missed"], id="short grace"),
        pytest.param("Daily", [doubtful("13 18:07")], RULES, "14 18:07", ["unsure", "late"], id="unsure, window"),
        pytest.param("Daily", [RUNNING], RULES, "15 06:00", ["running", "stalled"], id="limit"),
        pytest.param("Daily", [RUNNING], SHORT, "14 18:30", ["running", "stalled"], id="short limit"),
        pytest.param("Daily", [BACKED_UP, RUNNING], RULES, "14 18:07", ["ok", "running"], id="running excuses late"),
        pytest.param("Daily", [BACKED_UP, STALLED, RUNNING], LONG, "14 18:06", ["ok", "stalled"], id="not stalled"),
        pytest.param("Daily", TAKES_14_HOURS, RULES, "14 23:00", ["running", "stalled"], id="twice the typical time"),
        pytest.param("Daily", [AUTUMN], IN_BERLIN, "2026-10-25 16:07", ["ok", "late"], id="24 h, clocks set back"),
        pytest.param("monthly", [FEBRUARY], CUSTOM, "04 00:00", ["ok", "late"], id="hours of a policy"),
        pytest.param("monthly", [FEBRUARY], CUSTOM, "04 03:00", ["late", "missed"], id="and the common grace"),
    ],
)
def test_a_status_changes_exactly_when_window_grace_or_limit_is_over(
    policy: str, runs: list[Run], rules: Rules, moment: str, expected: list[str]
) -> None:
    sides = at(moment) - TICK, at(moment)
    assert [verdict_of(*runs, now=now, backup_freq=policy, rules=rules).status.value for now in sides] == expected


def test_a_run_with_an_error_failed_whether_or_not_it_ended() -> None:
    assert verdict_of(BACKED_UP, bad("14 02:00")).status is Status.FAILED
    assert verdict_of(BACKED_UP, replace(bad("14 02:00"), ended=None)).status is Status.FAILED


def test_an_unrecognised_message_of_a_run_that_has_not_ended_changes_nothing() -> None:
    for started, status in (("13 18:07", Status.STALLED), ("14 06:50", Status.OK)):
        assert verdict_of(run("13 18:06"), replace(doubtful(started), ended=None)).status is status
    assert verdict_of(doubtful("13 18:07"), unfinished("14 06:50")).status is Status.UNSURE, "nor does another attempt"


@pytest.mark.parametrize("kind", ["User", "Admin", "Weekly", "AWS S3", "failed", ""])
def test_a_good_backup_is_a_good_backup_whoever_asked_for_it(kind: str) -> None:
    assert verdict_of(run("13 18:07", type=kind)).status is Status.OK


@pytest.mark.parametrize(
    ("created", "daily", "weekly"),
    [
        (NOW + FUTURE_TOLERANCE + TICK, "missed", "missed"),  # a wrong stamp: long ago
        (NOW + FUTURE_TOLERANCE, "new", "new"),
        (NOW - DAY + TICK, "new", "new"),
        (NOW - DAY, "late", "new"),
        (NOW - 27 * HOUR, "missed", "new"),
        (None, "missed", "missed"),
    ],
)
def test_a_container_is_new_until_its_first_backup_is_due(created: datetime | None, daily: str, weekly: str) -> None:
    assert verdict_of(created=created).status.value == daily
    assert verdict_of(created=created, backup_freq="Weekly", rules=Rules(weekly_day=6)).status.value == weekly


def test_a_container_is_not_new_once_a_run_failed_or_succeeded() -> None:
    assert verdict_of(bad("14 02:00"), created=at("14 01:00")).status is Status.FAILED
    assert verdict_of(BACKED_UP, created=at("14 01:00")).status is Status.OK, "restored under its old c_id"


@pytest.mark.parametrize("state", ["running", " RUNNING\t", "maintenance", "run", "", None])
def test_only_a_container_in_state_running_is_late_or_missed_others_are_paused(state: str | None) -> None:
    paused = state not in ("running", " RUNNING\t")
    assert verdict_of(run("10 18:07"), state=state).status is (Status.PAUSED if paused else Status.MISSED)
    assert verdict_of(run("13 05:00"), state=state).status is (Status.PAUSED if paused else Status.LATE)
    assert verdict_of(BACKED_UP, state=state).status is Status.OK
    assert verdict_of(bad("13 18:07"), state=state).status is Status.FAILED


# --- Policies ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "texts"),
    [
        ("Daily", ["Daily", " daily ", "DAILY", "\tDaily\n"]),
        ("Weekly", ["weekly", "WeEkLy"]),
        ("Never", ["Never", "never ", "None", "none", " NONE"]),
        ("Monthly", ["Monthly", " monthly"]),
        ("Every 6 h", ["EVERY 6 H"]),
        (None, ["Fortnightly", "Daily, Weekly", "Dail", "", "  ", None]),
    ],
)
def test_a_policy_may_have_any_letter_case_and_blanks_around_it(name: str | None, texts: list[str | None]) -> None:
    status = {None: Status.NO_POLICY, "Never": Status.EXEMPT}.get(name, Status.MISSED)
    for text in texts:
        verdict = verdict_of(backup_freq=text, rules=CUSTOM)
        assert (verdict.status, verdict.policy) == (status, name or (text or "").strip())
        assert (verdict.due is not None) is (status is Status.MISSED)
    assert known_policy("Monthly", RULES) is None, "it is one of the settings"


def test_one_good_backup_covers_no_longer_than_the_longest_policy_and_the_grace() -> None:
    assert RULES.longest_cover == 7 * DAY + (2 + 24 + 3) * HOUR
    assert CUSTOM.longest_cover == (744 + 3) * HOUR


# --- Local time ----------------------------------------------------------------------------------------


def first_moment_of(day: date, zone: ZoneInfo) -> datetime:
    """The first moment whose local date is `day` or later, found by walking there in quarters of an hour."""
    moment = datetime(day.year, day.month, day.day, tzinfo=UTC) - timedelta(hours=27)
    while moment.astimezone(zone).date() < day:
        moment += timedelta(minutes=15)
    return moment


@example(("UTC", at("14 00:00")), timedelta(0), 5)  # strictly after
@example(("UTC", at("14 00:00")), -TICK, 5)
@example(("America/Sao_Paulo", at("2018-02-18 02:30")), timedelta(0), 6)  # 23:30 of Saturday for the second time
@example(("America/Havana", at("2026-11-01 05:30")), timedelta(0), 6)  # the first hour of Sunday, again
@given(
    st.sampled_from(CLOCK_CHANGES),
    st.timedeltas(-8 * DAY, 2 * DAY) | st.integers(-32, 96).map(lambda number: number * HOUR / 4),
    st.integers(0, 6),
)
def test_a_weekly_backup_is_due_after_the_first_moment_of_that_weekday(
    where: tuple[str, datetime], later: timedelta, weekday: int
) -> None:
    zone, base = ZoneInfo(where[0]), where[1] + later
    today = base.astimezone(zone).date()
    days = (today + timedelta(days=n) for n in range(-1, 9))
    midnights = [first_moment_of(day, zone) for day in days if day.weekday() == weekday]
    rules = Rules(zone=zone, weekly_day=weekday)
    assert due_at("Weekly", base, rules) == min(midnight for midnight in midnights if midnight > base) + rules.window


def test_a_local_time_that_occurs_twice_is_its_first_occurrence() -> None:
    assert utc_from_local(datetime(2026, 10, 25, 2, 30), BERLIN) == at("2026-10-25 00:30")
    assert utc_from_local(datetime(2026, 10, 25, 3, 0), BERLIN) == at("2026-10-25 02:00")


# --- Time improves nothing -----------------------------------------------------------------------------

HOURS = st.integers(0, 40 * 24) | st.sampled_from([1, 3, 12, 24, 27, 48, 744])
RUNS = st.builds(
    lambda hours, kind: kind((NOW - hours * HOUR).isoformat()[:19]),
    HOURS,
    st.sampled_from([run, run, doubtful, bad, unfinished, unfinished]),
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
    found = [verdict_of(*runs, now=now, backup_freq=policy, state=state, rules=rules).status for now in moments]
    for before, after in pairwise(found):
        assert after.severity >= before.severity, found
