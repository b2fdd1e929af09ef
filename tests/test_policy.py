"""The rules of SPEC section 2 by example: its table, both sides of every boundary, weekly midnights, local time."""

from __future__ import annotations

import re
from datetime import date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit.policy import (
    DAY,
    FUTURE_TOLERANCE,
    HOUR,
    UTC,
    Container,
    Outcome,
    Rules,
    Run,
    Status,
    Verdict,
    age,
    due_at,
    judge,
    known_policy,
    last_local,
    utc_from_local,
)
from tests.builders import NOW

TICK = timedelta(microseconds=1)
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
ERROR = "pg_dump: error: query failed"


def utc(text: str) -> datetime:
    """A moment of 2026 from `03-13 18:07`, or a full one."""
    full = text if re.match(r"\d{4}-", text) else f"2026-{text}"
    return datetime.fromisoformat(full).replace(tzinfo=UTC)


def good(started: str, ended: str | None = None, **more: Any) -> Run:
    start = utc(started)
    return Run(start, started, ended=utc(ended) if ended else start + timedelta(minutes=23), **more)


def bad(started: str) -> Run:
    return good(started, error=ERROR)


def unfinished(started: str) -> Run:
    return Run(utc(started), started)


def verdict_of(*runs: Run, now: datetime = NOW, rules: Rules = RULES, **facts: Any) -> Verdict:
    """The verdict on a Daily container; its creation may be text."""
    facts = {"c_id": 7, "policy": "Daily", "created": utc("2025-01-15 09:30"), **facts}
    if isinstance(facts["created"], str):
        facts["created"] = utc(facts["created"])
    return judge(Container(name="sales", **facts), runs, now, rules)


# --- The table of section 2 ----------------------------------------------------------------------------

EXAMPLES = [
    ("Daily", [good("03-13 18:07", "03-13 18:30")], "03-14 07:00", {}, "ok"),
    ("Daily", [good("03-12 18:07")], "03-14 07:00", {}, "missed"),
    ("Daily", [good("03-13 05:00")], "03-14 07:00", {}, "late"),
    ("Daily", [good("03-13 07:00:00")], "03-14 07:00:00", {}, "late"),
    ("Daily", [good("03-12 18:07"), unfinished("03-13 18:07")], "03-14 07:00", {}, "running"),
    ("Daily", [good("03-13 18:07"), unfinished("03-14 06:50")], "03-14 07:00", {}, "ok"),
    ("Daily", [good("03-13 18:07"), bad("03-14 02:00")], "03-14 07:00", {}, "failed"),
    ("Daily", [good("03-11 18:07"), unfinished("03-12 18:07")], "03-14 07:00", {}, "stalled"),
    ("Daily", [bad("03-13 18:07"), unfinished("03-14 06:50")], "03-14 07:00", {}, "running"),
    ("Daily", [bad("03-13 18:07"), good("03-13 21:00")], "03-14 07:00", {}, "ok"),
    ("Daily", [], "03-14 07:00", {"created": "03-14 01:00"}, "new"),
    ("Daily", [good("03-10 18:07")], "03-14 07:00", {"state": "maintenance"}, "paused"),
    ("Weekly", [good("03-07 18:07")], "03-14 07:00", {}, "ok"),
    ("Weekly", [good("03-07 18:07")], "03-15 05:00", {}, "late"),
    ("Weekly", [good("03-07 18:07")], "03-15 07:00", {}, "missed"),
    ("Weekly", [good("03-07 18:07"), good("03-10 12:00")], "03-15 07:00", {}, "missed"),
    ("Weekly", [good("03-14 18:07")], "03-15 07:00", {}, "ok"),
    *(("Weekly", [good("03-14 18:07")], f"03-{day} 23:59", {}, "ok") for day in range(15, 22)),
]


@pytest.mark.parametrize(("policy", "runs", "now", "facts", "expected"), EXAMPLES)
def test_the_examples_of_the_specification(
    policy: str, runs: list[Run], now: str, facts: dict[str, Any], expected: str
) -> None:
    verdict = verdict_of(*runs, now=utc(now), policy=policy, **facts)
    assert verdict.status.value == expected, verdict.reason
    assert verdict_of(*reversed(runs), now=utc(now), policy=policy, **facts) == verdict


def test_every_status_has_the_severity_of_the_specification() -> None:
    by_severity = {0: {"exempt", "ok", "new"}, 1: {"running", "paused", "late"}}
    by_severity[2] = {"no_policy", "failed", "stalled", "missed"}
    expected = {status: severity for severity, statuses in by_severity.items() for status in statuses}
    assert {status.value: status.severity for status in Status} == expected


# --- Reasons carry the figures -------------------------------------------------------------------------


def test_the_reason_of_the_specification() -> None:
    verdict = verdict_of(good("03-13 18:07"), now=utc("03-15 07:00"))
    assert verdict.status is Status.MISSED
    assert verdict.reason == "no backup since 2026-03-13 18:07 UTC (36.9 h ago, due every 24 h)"


OVERDUE = "no backup since 10 18:07 UTC (3.5 days ago, due every 24 h)"


@pytest.mark.parametrize(
    ("runs", "more", "reason"),
    [
        ([good("03-13 18:07")], {}, "backed up 13 18:07 UTC (12.9 h ago), next due 14 18:07 UTC"),
        ([bad("03-14 02:00")], {}, f"the run of 14 02:00 UTC (5 h ago) failed: {ERROR}"),
        ([unfinished("03-12 18:07")], {}, "the run of 12 18:07 UTC (36.9 h ago) has not ended; 24 h are allowed"),
        ([], {"created": "03-14 01:00"}, "created 14 01:00 UTC (6 h ago), first backup due 15 01:00 UTC"),
        ([], {"created": "03-10 01:00"}, "no backup ever, created 10 01:00 UTC (4.2 days ago, due every 24 h)"),
        ([], {"created": None}, "no backup ever (creation unknown, due every 24 h)"),
        ([], {"created": None, "c_id": 0}, "no backup ever (due every 24 h)"),  # an extra job is never created
        ([], {"created": "03-15 00:00"}, "no backup ever, and its creation lies in the future (15 00:00 UTC)"),
        ([good("03-10 18:07")], {"state": "maintenance"}, f"state is maintenance; {OVERDUE}"),
        ([good("03-10 18:07")], {"state": None}, f"state is unknown; {OVERDUE}"),
        # the window is not the period of a Weekly backup
        ([good("03-01 18:07")], {"policy": "Weekly"}, "no backup since 01 18:07 UTC (12.5 days ago, due 08 00:00 UTC)"),
        ([], {"policy": "Never"}, "no backups wanted (policy Never)"),
        ([], {"policy": " Fortnightly "}, "unknown backup policy 'Fortnightly'"),
        ([], {"policy": None}, "no backup policy: BACKUP_FREQ is missing or not text"),
        (
            [],
            {"policy": None, "has_metadata": False},
            "no metadata: the table containers has no row of this container",
        ),
    ],
)
def test_a_reason_has_the_figures_that_led_to_the_status(runs: list[Run], more: dict[str, Any], reason: str) -> None:
    assert verdict_of(*runs, **more).reason.replace("2026-03-", "") == reason


@pytest.mark.parametrize(
    ("before", "words"),
    [
        ([], "no good backup yet"),
        ([good("03-12 18:07")], "last good backup 2026-03-12 18:07 UTC"),
        ([good("03-11 18:07"), bad("03-12 18:07")], "the run before, of 2026-03-12 18:07 UTC, failed"),
        ([bad("03-11 18:07"), good("03-12 18:07")], "last good backup 2026-03-12 18:07 UTC"),
        ([unfinished("03-12 18:07")], "the run before, of 2026-03-12 18:07 UTC, stalled"),
        ([good("03-12 18:07"), unfinished("03-14 05:00")], "last good backup 2026-03-12 18:07 UTC"),
    ],
)
def test_a_running_backup_says_what_came_before(before: list[Run], words: str) -> None:
    verdict = verdict_of(*before, unfinished("03-14 06:00"))
    assert verdict.status is Status.RUNNING
    assert verdict.reason == f"running since 2026-03-14 06:00 UTC (1 h ago); {words}"


def test_a_reason_names_moments_in_the_zone_of_the_log() -> None:
    rules = Rules(zone=BERLIN)
    assert "2026-03-12 19:07 CET" in verdict_of(good("03-12 18:07"), rules=rules).reason
    assert "2026-07-10 20:07 CEST" in verdict_of(good("07-10 18:07"), now=utc("07-12 07:00"), rules=rules).reason


@pytest.mark.parametrize(
    ("duration", "text"),
    [(48 * HOUR, "48 h"), (48 * HOUR + TICK, "2 days"), (2519 * DAY, "2,519 days"), (HOUR / 2, "0.5 h")],
)
def test_an_age_is_in_hours_up_to_two_days(duration: timedelta, text: str) -> None:
    assert age(duration) == text


# --- Both sides of every boundary ----------------------------------------------------------------------


def statuses(*runs: Run, at: datetime, **more: Any) -> list[str]:
    """The status just before a moment, and at it."""
    return [verdict_of(*runs, now=now, **more).status.value for now in (at - TICK, at)]


BACKED_UP, RUNNING, STALLED = good("03-13 18:07"), unfinished("03-14 18:00"), unfinished("03-13 19:00")
SHORT = Rules(window=2 * HOUR, grace=HOUR, max_runtime=HOUR / 2)


@pytest.mark.parametrize(
    ("runs", "rules", "at", "expected"),
    [
        ([BACKED_UP], RULES, "03-14 18:07", ["ok", "late"]),
        ([BACKED_UP], RULES, "03-15 00:07", ["late", "missed"]),
        ([BACKED_UP], Rules(grace=timedelta(0)), "03-14 18:07", ["ok", "missed"]),
        ([BACKED_UP], SHORT, "03-13 20:07", ["ok", "late"]),
        ([BACKED_UP], SHORT, "03-13 21:07", ["late", "missed"]),
        ([RUNNING], RULES, "03-15 18:00", ["running", "stalled"]),
        ([RUNNING], SHORT, "03-14 18:30", ["running", "stalled"]),
        # a running backup is fine until the one before is overdue, and if no other is stalled
        ([BACKED_UP, RUNNING], RULES, "03-14 18:07", ["ok", "running"]),
        ([BACKED_UP, STALLED, RUNNING], Rules(max_runtime=23.1 * HOUR), "03-14 18:06", ["ok", "running"]),
    ],
)
def test_both_sides_of_a_moment(runs: list[Run], rules: Rules, at: str, expected: list[str]) -> None:
    assert statuses(*runs, at=utc(at), rules=rules) == expected


def test_a_verdict_has_the_runs_that_it_is_made_of() -> None:
    runs = good("03-11 18:07"), bad("03-12 18:07"), unfinished("03-13 18:07")
    verdict = verdict_of(*runs)
    assert (verdict.last_run, verdict.concluded, verdict.last_success) == runs[::-1]
    assert verdict.due == utc("03-12 18:07"), "neither a failed nor a running one moves it"


def test_a_running_first_backup_is_running_however_young_the_container() -> None:
    assert verdict_of(unfinished("03-14 06:50"), created="03-14 06:00").status is Status.RUNNING


@pytest.mark.parametrize("ended", [None, utc("03-14 02:01")])
def test_an_error_is_a_failure_whether_or_not_the_run_ended(ended: datetime | None) -> None:
    broken = Run(utc("03-14 02:00"), "x", ended=ended, error=ERROR)
    assert broken.outcome(NOW, 24 * HOUR) is Outcome.FAILED
    assert verdict_of(BACKED_UP, broken).status is Status.FAILED


@pytest.mark.parametrize(
    ("created", "daily", "weekly"),
    [
        (NOW + FUTURE_TOLERANCE + TICK, "missed", "missed"),  # a wrong stamp: long ago
        (NOW + FUTURE_TOLERANCE, "new", "new"),
        (NOW - DAY + TICK, "new", "new"),
        (NOW - DAY, "late", "new"),
        (NOW - 30 * HOUR + TICK, "late", "new"),
        (NOW - 30 * HOUR, "missed", "new"),
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


@pytest.mark.parametrize(
    ("state", "paused"),
    [("running", False), (" RUNNING\t", False), ("maintenance", True), ("run", True), ("", True), (None, True)],
)
def test_only_a_container_in_state_running_can_be_late(state: str | None, paused: bool) -> None:
    assert verdict_of(good("03-10 18:07"), state=state).status is (Status.PAUSED if paused else Status.MISSED)
    assert verdict_of(good("03-13 05:00"), state=state).status is (Status.PAUSED if paused else Status.LATE)
    assert verdict_of(BACKED_UP, state=state).status is Status.OK
    assert verdict_of(bad("03-13 18:07"), state=state).status is Status.FAILED


def test_a_duration_is_known_if_both_ends_are_and_never_negative() -> None:
    start = utc("03-13 18:07")
    assert Run(start, "x", ended=start).duration == timedelta(0)
    for unknown in (
        Run(start, "x"),
        Run(start, "x", ended=start, start_logged=False),
        Run(start, "x", ended=start - TICK),
    ):
        assert unknown.duration is None


# --- Policies ------------------------------------------------------------------------------------------

CUSTOM = Rules(policies={"Monthly": 744 * HOUR, "Every 6 h": 6 * HOUR})


SPELLINGS: dict[str | None, list[str | None]] = {
    "Daily": ["Daily", " daily ", "DAILY", "\tDaily\n"],
    "Weekly": ["weekly", "WeEkLy"],
    "Never": ["Never", "never ", "None", "none", " NONE"],
    "Monthly": ["Monthly", " monthly"],
    "Every 6 h": ["EVERY 6 H"],
    None: ["Fortnightly", "Daily, Weekly", "Dail", "", "  ", None],
}


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in SPELLINGS.items() for text in texts])
def test_spelling_of_policies(name: str | None, text: str | None) -> None:
    assert known_policy(text, CUSTOM) == name
    verdict = verdict_of(policy=text, rules=CUSTOM)
    expected = {None: Status.NO_POLICY, "Never": Status.EXEMPT}.get(name, Status.MISSED)
    assert (verdict.status, verdict.due is not None) == (expected, expected is Status.MISSED)
    assert verdict.policy == (name or (text or "").strip())


def test_a_policy_of_the_settings_is_unknown_without_them() -> None:
    assert known_policy("Monthly", RULES) is None


def test_a_policy_of_the_settings_has_its_own_hours_and_the_common_grace() -> None:
    more: dict[str, Any] = {"rules": CUSTOM, "policy": "monthly"}
    last, due = good("02-01 00:00"), utc("02-01 00:00") + 744 * HOUR
    assert statuses(last, at=due, **more) == ["ok", "late"]
    assert statuses(last, at=due + 6 * HOUR, **more) == ["late", "missed"]
    assert "due every 31 days" in verdict_of(last, now=due, **more).reason


# --- Weekly --------------------------------------------------------------------------------------------


def weekly_midnight(base: datetime, rules: Rules) -> datetime:
    """The midnight that a Weekly backup with this base is due after."""
    return due_at("Weekly", base, rules) - rules.window


@pytest.mark.parametrize(
    ("zone", "weekday", "base", "midnight"),
    [
        ("UTC", 5, "2026-03-14 00:00", "2026-03-21 00:00"),  # strictly after
        ("UTC", 5, "2026-03-13 23:59:59.999999", "2026-03-14 00:00"),
        ("Europe/Berlin", 5, "2026-03-13 22:59", "2026-03-13 23:00"),
        ("Europe/Berlin", 5, "2026-03-13 23:00", "2026-03-20 23:00"),
        # clocks go forward on Sunday 2026-03-29 and back on Sunday 2026-10-25, after midnight
        ("Europe/Berlin", 0, "2026-03-28 12:00", "2026-03-29 22:00"),
        ("Europe/Berlin", 0, "2026-10-24 12:00", "2026-10-25 23:00"),
        # Sunday 2018-11-04 began at 01:00
        ("America/Sao_Paulo", 6, "2018-11-04 02:59", "2018-11-04 03:00"),
        ("America/Sao_Paulo", 6, "2018-11-04 03:00", "2018-11-11 02:00"),
        # Saturday 2018-02-17 had 25 hours: 23:30 came twice
        ("America/Sao_Paulo", 6, "2018-02-18 01:30", "2018-02-18 03:00"),
        ("America/Sao_Paulo", 6, "2018-02-18 02:30", "2018-02-18 03:00"),
        # the first hour of Sunday 2026-11-01 comes twice
        ("America/Havana", 6, "2026-11-01 03:59", "2026-11-01 04:00"),
        ("America/Havana", 6, "2026-11-01 04:00", "2026-11-08 05:00"),
        ("America/Havana", 6, "2026-11-01 05:30", "2026-11-08 05:00"),
        # Friday 2011-12-30 was left out
        ("Pacific/Apia", 5, "2011-12-29 12:00", "2011-12-30 10:00"),
    ],
)
def test_weekly_midnight_in_zones(zone: str, weekday: int, base: str, midnight: str) -> None:
    rules = Rules(zone=ZoneInfo(zone), weekly_day=weekday)
    assert weekly_midnight(utc(base), rules) == utc(midnight)


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


@given(WHERE, st.integers(0, 6))
def test_weekly_midnight_is_the_first_moment_of_that_weekday(where: tuple[datetime, str], weekday: int) -> None:
    base, zone = where[0], ZoneInfo(where[1])
    today = base.astimezone(zone).date()
    days = (today + timedelta(days=n) for n in range(-1, 9))
    midnights = [first_moment_of(day, zone) for day in days if day.weekday() == weekday]
    expected = min(midnight for midnight in midnights if midnight > base)
    assert weekly_midnight(base, Rules(zone=zone, weekly_day=weekday)) == expected


def test_a_daily_backup_at_the_same_local_time_is_at_most_late_where_clocks_are_set_back() -> None:
    started = utc_from_local(datetime(2026, 10, 24, 18, 7), BERLIN)
    next_one = utc_from_local(datetime(2026, 10, 25, 18, 7), BERLIN)
    assert next_one - started == 25 * HOUR
    verdict = verdict_of(Run(started, "x", ended=started), now=next_one, rules=Rules(zone=BERLIN))
    assert (verdict.due, verdict.status) == (started + 24 * HOUR, Status.LATE)


# --- Local time ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "end", "minutes"),
    [
        ("2026-10-25 01:50", "2026-10-25 02:10", 20),  # before and into the first passage
        ("2026-10-25 02:10", "2026-10-25 02:50", 40),  # both in the first
        ("2026-10-25 02:50", "2026-10-25 02:10", 20),  # from the first into the second
        ("2026-10-25 02:50", "2026-10-25 03:10", 80),  # from the first to after both
        ("2026-03-29 01:50", "2026-03-29 03:10", 20),  # over the gap
    ],
)
def test_durations_over_a_change_of_clocks(start: str, end: str, minutes: int) -> None:
    started = utc_from_local(datetime.fromisoformat(start), BERLIN)
    ended = utc_from_local(datetime.fromisoformat(end), BERLIN, not_before=started)
    assert Run(started, "x", ended=ended).duration == timedelta(minutes=minutes)


def test_the_second_occurrence_is_not_taken_where_it_does_not_help() -> None:
    # an end row that really is before its start stays there: both occurrences lie before
    local = datetime(2026, 10, 25, 2, 30)
    assert utc_from_local(local, BERLIN, not_before=utc("2026-10-25 11:00")) == utc("2026-10-25 00:30")


@given(WHERE)
def test_last_local_is_the_latest_local_time_that_is_not_after_the_moment(where: tuple[datetime, str]) -> None:
    moment, zone = where[0], ZoneInfo(where[1])
    local = last_local(moment, zone)
    assert local.tzinfo is None
    assert utc_from_local(local, zone) <= moment
    for step in (TICK, timedelta(seconds=1), timedelta(minutes=29), HOUR, HOUR + TICK, 2 * HOUR, 25 * HOUR):
        assert utc_from_local(local + step, zone) > moment


@given(WHERE)
def test_a_row_written_at_a_moment_is_of_that_moment_or_of_the_first_that_had_its_local_time(
    where: tuple[datetime, str],
) -> None:
    moment, zone = where[0], ZoneInfo(where[1])
    written = moment.astimezone(zone)
    local = written.replace(tzinfo=None, fold=0)
    assert local <= last_local(moment, zone)
    first = utc_from_local(local, zone)
    assert first.utcoffset() == timedelta(0)
    assert timedelta(0) <= moment - first <= HOUR * written.fold
    assert first.astimezone(zone).replace(tzinfo=None, fold=0) == local


@given(WHERE, st.integers(-3000, 3000))
def test_no_duration_is_negative(where: tuple[datetime, str], minutes: int) -> None:
    moment, zone = where[0], ZoneInfo(where[1])
    local_start = moment.astimezone(zone).replace(tzinfo=None, fold=0)
    started = utc_from_local(local_start, zone)
    ended = utc_from_local(local_start + timedelta(minutes=minutes), zone, not_before=started)
    duration = Run(started, "x", ended=ended).duration
    assert duration is None or duration >= timedelta(0)
    really = (started + timedelta(minutes=max(minutes, 0))).astimezone(zone).replace(tzinfo=None, fold=0)
    after = utc_from_local(really, zone, not_before=started)
    assert after >= started, "a run that ended after it started has a duration"
