"""The rules of SPEC section 2 by example: its table, both sides of every boundary, local time, error messages."""

from __future__ import annotations

import re
import time
from datetime import date, datetime, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from policy import (
    DEFAULT_ERROR_PATTERN,
    FUTURE_TOLERANCE,
    Audit,
    Container,
    Outcome,
    Rules,
    Run,
    Status,
    Verdict,
    due_at,
    find_error,
    judge,
    known_policy,
    last_local,
    next_weekly_midnight,
    utc_from_local,
)
from tests.builders import Site, series

UTC = timezone.utc
HOUR = timedelta(hours=1)
TICK = timedelta(microseconds=1)
SATURDAY = 5
RULES = Rules(weekly_day=SATURDAY, window=24 * HOUR, grace=6 * HOUR, max_runtime=24 * HOUR)
NOW = datetime(2026, 3, 14, 7, 0, tzinfo=UTC)

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


def utc(text: str) -> datetime:
    """A moment of 2026 from `03-13 18:07`, or a full one."""
    full = text if re.match(r"\d{4}-", text) else f"2026-{text}"
    return datetime.fromisoformat(full).replace(tzinfo=UTC)


def good(started: str, ended: str | None = None) -> Run:
    start = utc(started)
    return Run(started, "Daily", start, utc(ended) if ended else start + timedelta(minutes=23))


def bad(started: str) -> Run:
    ended = utc(started) + timedelta(minutes=1)
    return Run(started, "Daily", utc(started), ended, error="pg_dump: error: query failed")


def unfinished(started: str) -> Run:
    return Run(started, "Daily", utc(started))


def container(
    policy: str | None = "Daily", created: str | None = "2025-01-15 09:30", state: str = "running"
) -> Container:
    return Container(7, "sales", policy=policy, state=state, created=utc(created) if created else None)


def verdict_of(*runs: Run, now: datetime = NOW, rules: Rules = RULES, **facts: Any) -> Verdict:
    return judge(container(**facts), runs, now, rules)


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


SEVERITIES = {
    "no_policy": 2,
    "exempt": 0,
    "running": 1,
    "failed": 2,
    "stalled": 2,
    "ok": 0,
    "new": 0,
    "paused": 1,
    "late": 1,
    "missed": 2,
}


def test_every_status_has_the_severity_of_the_specification() -> None:
    assert {status.value: status.severity for status in Status} == SEVERITIES


def test_the_worst_severity_is_that_of_the_audit() -> None:
    verdicts = [verdict_of(good("03-13 18:07")), verdict_of(good("03-13 05:00"))]
    assert Audit(NOW, verdicts).severity == 1
    assert Audit(NOW, [*verdicts, verdict_of(policy=None)]).severity == 2
    assert Audit(NOW, []).severity == 0


# --- Reasons carry the figures -------------------------------------------------------------------------


def test_the_reason_of_the_specification() -> None:
    verdict = verdict_of(good("03-13 18:07"), now=utc("03-15 07:00"))
    assert verdict.status is Status.MISSED
    assert verdict.reason == "no backup since 2026-03-13 18:07 UTC (36.9 h ago, due every 24 h)"


@pytest.mark.parametrize(
    ("runs", "facts", "figures"),
    [
        pytest.param([good("03-13 18:07")], {}, ["2026-03-13 18:07 UTC", "12.9 h"], id="ok"),
        pytest.param([good("03-12 18:07")], {}, ["2026-03-12 18:07 UTC", "36.9 h", "24 h"], id="missed"),
        pytest.param([good("03-13 05:00")], {}, ["2026-03-13 05:00 UTC", "26 h", "24 h"], id="late"),
        pytest.param([unfinished("03-13 18:07")], {}, ["2026-03-13 18:07 UTC", "12.9 h"], id="running"),
        pytest.param([bad("03-14 02:00")], {}, ["2026-03-14 02:00 UTC", "query failed"], id="failed"),
        pytest.param([unfinished("03-12 18:07")], {}, ["2026-03-12 18:07 UTC", "36.9 h", "24 h"], id="stalled"),
        pytest.param([], {"created": "03-14 01:00"}, ["2026-03-14 01:00 UTC"], id="new"),
        pytest.param([], {"created": "03-10 01:00"}, ["2026-03-10 01:00 UTC", "24 h"], id="missed, never backed up"),
        pytest.param([good("03-10 18:07")], {"state": "maintenance"}, ["maintenance", "2026-03-10 18:07"], id="paused"),
        pytest.param([], {"policy": "Fortnightly"}, ["Fortnightly"], id="unknown policy"),
        pytest.param([], {"policy": None}, ["BACKUP_FREQ"], id="no policy"),
        pytest.param([], {"policy": "None"}, ["Never"], id="exempt"),
    ],
)
def test_a_reason_carries_the_figures_that_led_to_it(
    runs: list[Run], facts: dict[str, Any], figures: list[str]
) -> None:
    reason = verdict_of(*runs, **facts).reason
    assert [figure for figure in figures if figure not in reason] == [], reason
    assert "\n" not in reason


def test_a_reason_names_moments_in_the_zone_of_the_log() -> None:
    rules = Rules(zone=BERLIN)
    assert "2026-03-12 19:07 CET" in verdict_of(good("03-12 18:07"), rules=rules).reason
    summer = verdict_of(good("07-10 18:07"), now=utc("07-12 07:00"), rules=rules)
    assert "2026-07-10 20:07 CEST" in summer.reason


def test_a_weekly_reason_does_not_claim_a_period_of_the_window() -> None:
    reason = verdict_of(good("03-07 18:07"), now=utc("03-15 07:00"), policy="Weekly").reason
    assert "2026-03-07 18:07 UTC" in reason
    assert "24 h" not in reason


def test_a_container_without_metadata_says_so() -> None:
    verdict = judge(Container(7, "c_id 7", has_metadata=False), [], NOW, RULES)
    assert verdict.status is Status.NO_POLICY
    assert "no metadata" in verdict.reason


# --- Both sides of every boundary ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (utc("03-14 18:07") - TICK, Status.OK),
        (utc("03-14 18:07"), Status.LATE),
        (utc("03-15 00:07") - TICK, Status.LATE),
        (utc("03-15 00:07"), Status.MISSED),
    ],
)
def test_window_and_grace(now: datetime, expected: Status) -> None:
    verdict = verdict_of(good("03-13 18:07"), now=now)
    assert verdict.status is expected
    assert verdict.due == utc("03-14 18:07")


def test_without_grace_nothing_is_late() -> None:
    rules = Rules(grace=timedelta(0))
    assert verdict_of(good("03-13 07:00"), rules=rules).status is Status.MISSED
    assert verdict_of(good("03-13 07:00"), now=NOW - TICK, rules=rules).status is Status.OK


def test_window_grace_and_max_runtime_come_from_the_settings() -> None:
    rules = Rules(window=2 * HOUR, grace=HOUR, max_runtime=HOUR / 2)
    for now, status in (("01:59", Status.OK), ("02:00", Status.LATE), ("02:59", Status.LATE), ("03:00", Status.MISSED)):
        assert verdict_of(good("03-14 00:00"), now=utc(f"03-14 {now}"), rules=rules).status is status
    assert verdict_of(unfinished("03-14 06:31"), rules=rules).status is Status.RUNNING
    assert verdict_of(unfinished("03-14 06:30"), rules=rules).status is Status.STALLED


@pytest.mark.parametrize(
    ("now", "expected"),
    [(utc("03-14 18:07") - TICK, Status.RUNNING), (utc("03-14 18:07"), Status.STALLED)],
)
def test_max_runtime(now: datetime, expected: Status) -> None:
    verdict = verdict_of(good("03-12 18:07"), unfinished("03-13 18:07"), now=now)
    assert verdict.status is expected
    assert verdict.last_run is not None
    assert verdict.last_run.outcome(now, RULES.max_runtime).value == expected.value
    assert verdict.last_success is not None
    assert verdict.last_success.started == utc("03-12 18:07")


def test_a_running_backup_is_fine_until_the_one_before_is_overdue() -> None:
    runs = good("03-13 18:07"), unfinished("03-14 18:00")
    assert verdict_of(*runs, now=utc("03-14 18:07") - TICK).status is Status.OK
    assert verdict_of(*runs, now=utc("03-14 18:07")).status is Status.RUNNING


def test_a_running_first_backup_is_running_however_young_the_container() -> None:
    assert verdict_of(unfinished("03-14 06:50"), created="03-14 06:00").status is Status.RUNNING


def test_a_stalled_run_behind_a_running_one_does_not_let_the_container_be_ok() -> None:
    runs = good("03-13 18:07"), unfinished("03-13 19:00"), unfinished("03-14 18:00")
    assert verdict_of(*runs, now=utc("03-14 18:05")).status is Status.OK
    rules = Rules(max_runtime=12 * HOUR)
    assert verdict_of(*runs, now=utc("03-14 18:05"), rules=rules).status is Status.RUNNING


def test_a_failed_run_counts_as_failed_whether_or_not_it_ended() -> None:
    broken = Run("x", "Daily", utc("03-14 02:00"), error="pg_dump: error: query failed")
    assert broken.outcome(NOW, 24 * HOUR) is Outcome.FAILED
    assert verdict_of(good("03-13 18:07"), broken).status is Status.FAILED


def test_any_type_of_backup_will_do() -> None:
    for kind in ("Daily", "Weekly", "User", "Admin", "NA", ""):
        run = Run("x", kind, utc("03-13 18:07"), utc("03-13 18:30"))
        assert verdict_of(run).status is Status.OK


def test_a_failed_or_stalled_run_does_not_move_the_due_moment() -> None:
    assert verdict_of(good("03-13 18:07"), bad("03-14 02:00")).due == utc("03-14 18:07")
    assert verdict_of(good("03-11 18:07"), unfinished("03-12 18:07")).due == utc("03-12 18:07")


@pytest.mark.parametrize(
    ("created", "expected"),
    [
        ("03-13 07:00:00.000001", Status.NEW),
        ("03-13 07:00", Status.LATE),
        ("03-13 01:00:00.000001", Status.LATE),
        ("03-13 01:00", Status.MISSED),
        (None, Status.MISSED),  # creation unknown: long ago
    ],
)
def test_a_container_is_new_for_one_window(created: str | None, expected: Status) -> None:
    assert verdict_of(created=created).status is expected


def test_a_container_is_not_new_once_a_run_failed() -> None:
    assert verdict_of(bad("03-14 02:00"), created="03-14 01:00").status is Status.FAILED


def test_a_success_before_the_creation_still_counts() -> None:
    # a container restored under its old c_id: its runs are what is known of it
    assert verdict_of(good("03-13 18:07"), created="03-14 01:00").status is Status.OK


@pytest.mark.parametrize("state", ["maintenance", "", "Running ", None])
def test_only_a_container_in_state_running_can_be_late(state: str | None) -> None:
    runs = [good("03-10 18:07")]
    verdict = judge(Container(7, "sales", policy="Daily", state=state), runs, NOW, RULES)
    assert verdict.status is Status.PAUSED
    fresh = judge(Container(7, "sales", policy="Daily", state=state), [good("03-13 18:07")], NOW, RULES)
    assert fresh.status is Status.OK
    failed = judge(Container(7, "sales", policy="Daily", state=state), [bad("03-13 18:07")], NOW, RULES)
    assert failed.status is Status.FAILED


def test_an_end_without_a_start_is_a_run_of_unknown_duration() -> None:
    run = Run("x", "Daily", utc("03-13 18:30"), utc("03-13 18:30"), start_logged=False)
    verdict = verdict_of(run)
    assert verdict.status is Status.OK
    assert verdict.due == utc("03-14 18:30")
    assert run.duration is None


def test_rows_of_the_next_five_minutes_count_and_later_ones_do_not(sqlite_site: Site) -> None:
    site = sqlite_site
    slack = timedelta(seconds=60)  # the audit reads the clock a moment after we did
    soon, future = site.container("soon"), site.container("future")
    now = site.clock().replace(microsecond=0)
    site.run(soon, now + FUTURE_TOLERANCE - slack, now + FUTURE_TOLERANCE - slack)
    site.run(future, now + FUTURE_TOLERANCE + slack, now + FUTURE_TOLERANCE + slack)
    assert site.audit("-q").status == 2
    samples = site.samples()
    assert samples[series("mydb_backup_status", name="soon", c_id=str(soon), status="ok")] == 1
    assert samples[series("mydb_backup_status", name="future", c_id=str(future), status="missed")] == 1
    assert samples[series("mydb_backup_log_rows_ignored", reason="future")] == 2
    assert timedelta(minutes=5) == FUTURE_TOLERANCE


# --- Policies ------------------------------------------------------------------------------------------

CUSTOM = Rules(policies={"Monthly": 744 * HOUR, "Every 6 h": 6 * HOUR})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Daily", "Daily"),
        (" daily ", "Daily"),
        ("DAILY", "Daily"),
        ("\tDaily\n", "Daily"),
        ("weekly", "Weekly"),
        ("WeEkLy", "Weekly"),
        ("Never", "Never"),
        ("never ", "Never"),
        ("None", "Never"),
        ("none", "Never"),
        (" NONE", "Never"),
        ("Monthly", "Monthly"),
        (" monthly", "Monthly"),
        ("EVERY 6 H", "Every 6 h"),
        ("Fortnightly", None),
        ("Daily, Weekly", None),
        ("Dail", None),
        ("", None),
        ("  ", None),
        (None, None),
    ],
)
def test_spelling_of_policies(text: str | None, expected: str | None) -> None:
    assert known_policy(text, CUSTOM) == expected
    verdict = verdict_of(policy=text, rules=CUSTOM)
    if expected is None:
        assert verdict.status is Status.NO_POLICY
        assert verdict.due is None
    elif expected == "Never":
        assert verdict.status is Status.EXEMPT
        assert verdict.due is None
    else:
        assert verdict.status is Status.MISSED
        assert verdict.policy == expected


def test_a_policy_of_the_settings_is_unknown_without_them() -> None:
    assert known_policy("Monthly", RULES) is None


def test_a_policy_of_the_settings_has_its_own_hours_and_the_common_grace() -> None:
    last = good("02-01 00:00")
    due = utc("02-01 00:00") + 744 * HOUR
    for now, status in (
        (due - TICK, Status.OK),
        (due, Status.LATE),
        (due + 6 * HOUR - TICK, Status.LATE),
        (due + 6 * HOUR, Status.MISSED),
    ):
        verdict = verdict_of(last, now=now, rules=CUSTOM, policy="monthly")
        assert (verdict.status, verdict.due) == (status, due)
    assert "744 h" in verdict_of(last, now=due, rules=CUSTOM, policy="monthly").reason


# --- Weekly --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weekday", range(7))
@pytest.mark.parametrize("day", range(1, 9))
def test_weekly_due_on_every_weekday(weekday: int, day: int) -> None:
    rules = Rules(weekly_day=weekday)
    base = datetime(2026, 3, day, 18, 7, tzinfo=UTC)
    midnight = next_weekly_midnight(base, rules)
    assert midnight.weekday() == weekday
    assert midnight.time() == datetime(2026, 1, 1).time()
    assert timedelta(0) < midnight - base <= timedelta(days=7)
    assert due_at("Weekly", base, rules) == midnight + 24 * HOUR


@pytest.mark.parametrize(
    ("base", "midnight"),
    [
        (utc("03-14 00:00") - TICK, "03-14 00:00"),
        (utc("03-14 00:00"), "03-21 00:00"),  # strictly after
        (utc("03-14 00:00") + TICK, "03-21 00:00"),
        (utc("03-13 23:59:59"), "03-14 00:00"),
    ],
)
def test_both_sides_of_the_weekly_midnight(base: datetime, midnight: str) -> None:
    assert next_weekly_midnight(base, RULES) == utc(midnight)


@pytest.mark.parametrize(
    ("zone", "weekday", "base", "midnight"),
    [
        # the day begins at local midnight, which is not that of UTC
        pytest.param("Europe/Berlin", 5, "2026-03-13 22:59", "2026-03-13 23:00", id="Berlin, before"),
        pytest.param("Europe/Berlin", 5, "2026-03-13 23:00", "2026-03-20 23:00", id="Berlin, at midnight"),
        # clocks go forward on Sunday 2026-03-29 and back on Sunday 2026-10-25, after midnight
        pytest.param("Europe/Berlin", 6, "2026-03-28 12:00", "2026-03-28 23:00", id="Berlin, the day it goes forward"),
        pytest.param("Europe/Berlin", 0, "2026-03-28 12:00", "2026-03-29 22:00", id="Berlin, after going forward"),
        pytest.param("Europe/Berlin", 6, "2026-10-24 12:00", "2026-10-24 22:00", id="Berlin, the day it goes back"),
        pytest.param("Europe/Berlin", 0, "2026-10-24 12:00", "2026-10-25 23:00", id="Berlin, after going back"),
        # Sunday 2018-11-04 began at 01:00
        pytest.param("America/Sao_Paulo", 6, "2018-11-03 12:00", "2018-11-04 03:00", id="Sao Paulo, no midnight"),
        pytest.param("America/Sao_Paulo", 6, "2018-11-04 02:59", "2018-11-04 03:00", id="Sao Paulo, just before"),
        pytest.param("America/Sao_Paulo", 6, "2018-11-04 03:00", "2018-11-11 02:00", id="Sao Paulo, at the gap"),
        # Saturday 2018-02-17 had 25 hours: 23:00 to 24:00 came twice
        pytest.param("America/Sao_Paulo", 6, "2018-02-18 01:30", "2018-02-18 03:00", id="Sao Paulo, first 23:30"),
        pytest.param("America/Sao_Paulo", 6, "2018-02-18 02:30", "2018-02-18 03:00", id="Sao Paulo, second 23:30"),
        # Friday 2026-04-24 begins at 01:00; Thursday 2026-10-29 has 25 hours
        pytest.param("Africa/Cairo", 4, "2026-04-23 12:00", "2026-04-23 22:00", id="Cairo, no midnight"),
        pytest.param("Africa/Cairo", 4, "2026-10-29 20:30", "2026-10-29 22:00", id="Cairo, first 23:30"),
        pytest.param("Africa/Cairo", 4, "2026-10-29 21:30", "2026-10-29 22:00", id="Cairo, second 23:30"),
        # Sunday 2026-03-08 begins at 01:00; the first hour of Sunday 2026-11-01 comes twice
        pytest.param("America/Havana", 6, "2026-03-07 12:00", "2026-03-08 05:00", id="Havana, no midnight"),
        pytest.param("America/Havana", 6, "2026-11-01 03:59", "2026-11-01 04:00", id="Havana, before both midnights"),
        pytest.param("America/Havana", 6, "2026-11-01 04:00", "2026-11-08 05:00", id="Havana, at the first"),
        pytest.param("America/Havana", 6, "2026-11-01 05:30", "2026-11-08 05:00", id="Havana, after the second"),
        # half an hour: +10:30 and +11
        pytest.param("Australia/Lord_Howe", 0, "2026-04-05 00:00", "2026-04-05 13:30", id="Lord Howe, back by half"),
        pytest.param("Australia/Lord_Howe", 0, "2026-10-04 00:00", "2026-10-04 13:00", id="Lord Howe, forward by half"),
        # Friday 2011-12-30 was left out
        pytest.param("Pacific/Apia", 5, "2011-12-29 12:00", "2011-12-30 10:00", id="Apia, after the missing day"),
    ],
)
def test_weekly_midnight_in_zones(zone: str, weekday: int, base: str, midnight: str) -> None:
    rules = Rules(zone=ZoneInfo(zone), weekly_day=weekday)
    assert next_weekly_midnight(utc(base), rules) == utc(midnight)
    assert due_at("Weekly", utc(base), rules) == utc(midnight) + 24 * HOUR


def first_moment_of(day: date, zone: ZoneInfo) -> datetime:
    """The first moment whose local date is `day` or later, found by walking there in quarters of an hour."""
    moment = datetime(day.year, day.month, day.day, tzinfo=UTC) - timedelta(hours=27)
    while moment.astimezone(zone).date() < day:
        moment += timedelta(minutes=15)
    return moment


@given(
    base=st.datetimes(datetime(2005, 1, 1), datetime(2030, 1, 1), timezones=st.just(UTC)),
    zone=st.sampled_from(ZONES).map(ZoneInfo),
    weekday=st.integers(0, 6),
)
def test_weekly_midnight_is_the_first_moment_of_that_weekday(base: datetime, zone: ZoneInfo, weekday: int) -> None:
    today = base.astimezone(zone).date()
    days = (today + timedelta(days=n) for n in range(-1, 9))
    midnights = [first_moment_of(day, zone) for day in days if day.weekday() == weekday]
    expected = min(midnight for midnight in midnights if midnight > base)
    assert next_weekly_midnight(base, Rules(zone=zone, weekly_day=weekday)) == expected


def test_a_daily_backup_at_the_same_local_time_is_never_late_by_more_than_the_change_of_clocks() -> None:
    rules = Rules(zone=BERLIN)
    started = utc_from_local(datetime(2026, 10, 24, 18, 7), BERLIN)  # the night before clocks go back
    next_one = utc_from_local(datetime(2026, 10, 25, 18, 7), BERLIN)
    verdict = verdict_of(Run("x", "Daily", started, started), now=next_one, rules=rules)
    assert verdict.due == started + 24 * HOUR
    assert verdict.status is Status.LATE  # an hour over, within grace
    assert next_one - started == 25 * HOUR


# --- Local time ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("zone", "local", "expected"),
    [
        ("Europe/Berlin", "2026-03-29 01:59:59", "2026-03-29 00:59:59"),
        ("Europe/Berlin", "2026-03-29 03:00:00", "2026-03-29 01:00:00"),
        ("Europe/Berlin", "2026-10-25 01:59:59", "2026-10-24 23:59:59"),
        ("Europe/Berlin", "2026-10-25 02:00:00", "2026-10-25 00:00:00"),  # twice: the first
        ("Europe/Berlin", "2026-10-25 02:59:59", "2026-10-25 00:59:59"),
        ("Europe/Berlin", "2026-10-25 03:00:00", "2026-10-25 02:00:00"),
        ("America/New_York", "2026-03-08 01:59:59", "2026-03-08 06:59:59"),
        ("America/New_York", "2026-03-08 03:00:00", "2026-03-08 07:00:00"),
        ("America/New_York", "2026-11-01 01:30:00", "2026-11-01 05:30:00"),
        ("America/New_York", "2026-11-01 02:00:00", "2026-11-01 07:00:00"),
        ("Australia/Lord_Howe", "2026-04-05 01:29:59", "2026-04-04 14:29:59"),
        ("Australia/Lord_Howe", "2026-04-05 01:30:00", "2026-04-04 14:30:00"),
        ("Australia/Lord_Howe", "2026-04-05 02:00:00", "2026-04-04 15:30:00"),
        ("Australia/Lord_Howe", "2026-10-04 02:30:00", "2026-10-03 15:30:00"),
        ("UTC", "2026-03-29 02:30:00", "2026-03-29 02:30:00"),
    ],
)
def test_utc_from_local_on_both_sides_of_a_change_of_clocks(zone: str, local: str, expected: str) -> None:
    moment = utc_from_local(datetime.fromisoformat(local), ZoneInfo(zone))
    assert moment == utc(expected)
    assert moment.utcoffset() == timedelta(0)


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
    assert Run("x", "Daily", started, ended).duration == timedelta(minutes=minutes)


def test_the_second_occurrence_is_not_taken_where_it_does_not_help() -> None:
    # an end row that really is before its start stays there: both occurrences lie before
    started = utc_from_local(datetime(2026, 10, 25, 12, 0), BERLIN)
    ended = utc_from_local(datetime(2026, 10, 25, 2, 30), BERLIN, not_before=started)
    assert ended == utc("2026-10-25 00:30")
    run = Run("x", "Daily", started, ended)
    assert run.duration is None
    assert run.outcome(started + HOUR, 24 * HOUR) is Outcome.SUCCEEDED


MOMENTS = st.datetimes(datetime(2005, 1, 1), datetime(2030, 1, 1), timezones=st.just(UTC))
NEAR_CHANGES = st.sampled_from(
    [
        (utc(f"{day} 00:00") + timedelta(minutes=15 * n), zone)
        for zone, day in (
            ("Europe/Berlin", "2026-03-29"),
            ("Europe/Berlin", "2026-10-25"),
            ("America/Havana", "2026-03-08"),
            ("America/Havana", "2026-11-01"),
            ("Australia/Lord_Howe", "2026-04-04"),
            ("Australia/Lord_Howe", "2026-10-03"),
            ("America/Sao_Paulo", "2018-02-18"),
            ("America/Sao_Paulo", "2018-11-04"),
        )
        for n in range(96)
    ]
)


@given(st.one_of(NEAR_CHANGES, st.tuples(MOMENTS, st.sampled_from(ZONES))))
def test_last_local_is_the_latest_local_time_that_is_not_after_the_moment(where: tuple[datetime, str]) -> None:
    moment, zone = where[0], ZoneInfo(where[1])
    local = last_local(moment, zone)
    assert local.tzinfo is None
    assert utc_from_local(local, zone) <= moment
    for step in (TICK, timedelta(seconds=1), timedelta(minutes=29), HOUR, HOUR + TICK, 2 * HOUR, 25 * HOUR):
        assert utc_from_local(local + step, zone) > moment


@given(st.one_of(NEAR_CHANGES, st.tuples(MOMENTS, st.sampled_from(ZONES))))
def test_a_row_written_at_a_moment_is_seen_from_that_moment_on(where: tuple[datetime, str]) -> None:
    moment, zone = where[0], ZoneInfo(where[1])
    written = moment.astimezone(zone).replace(tzinfo=None, fold=0)
    assert written <= last_local(moment, zone)
    assert utc_from_local(written, zone) <= moment
    assert moment - utc_from_local(written, zone) <= HOUR


@given(
    start=st.one_of(NEAR_CHANGES, st.tuples(MOMENTS, st.sampled_from(ZONES))),
    minutes=st.integers(-3000, 3000),
)
def test_no_duration_is_negative(start: tuple[datetime, str], minutes: int) -> None:
    moment, zone = start[0], ZoneInfo(start[1])
    local_start = moment.astimezone(zone).replace(tzinfo=None, fold=0)
    started = utc_from_local(local_start, zone)
    ended = utc_from_local(local_start + timedelta(minutes=minutes), zone, not_before=started)
    duration = Run("x", "Daily", started, ended).duration
    assert duration is None or duration >= timedelta(0)
    really = (started + timedelta(minutes=max(minutes, 0))).astimezone(zone).replace(tzinfo=None, fold=0)
    after = utc_from_local(really, zone, not_before=started)
    assert after >= started, "a run that ended after it started has a duration"


def test_runs_over_both_changes_of_clocks_end_to_end(sqlite_site: Site) -> None:
    site = sqlite_site
    site.config(db_timezone="Europe/Berlin")
    spring, autumn, backwards = (site.container(name) for name in ("spring", "autumn", "backwards"))
    site.run(spring, "2026-03-29 01:50", "2026-03-29 03:10")
    site.run(autumn, "2026-10-25 02:50", "2026-10-25 02:10")
    site.run(backwards, "2026-10-25 12:00", "2026-10-25 11:00")
    assert site.audit("-q", "--at", "2026-10-25T12:30+01:00", "--output", site.textfile).status == 2
    samples = site.samples()

    def value(metric: str, name: str, c_id: int) -> float | None:
        return samples.get(series(metric, name=name, c_id=str(c_id)))

    duration = "mydb_backup_last_duration_seconds"
    assert value(duration, "spring", spring) == 20 * 60
    assert value(duration, "autumn", autumn) == 20 * 60
    assert value(duration, "backwards", backwards) is None
    started = "mydb_backup_last_success_timestamp_seconds"
    assert value(started, "spring", spring) == utc("2026-03-29 00:50").timestamp()
    assert value(started, "autumn", autumn) == utc("2026-10-25 00:50").timestamp()
    assert value(started, "backwards", backwards) == utc("2026-10-25 11:00").timestamp()


def test_during_the_second_passage_of_an_hour_its_rows_are_seen(sqlite_site: Site) -> None:
    site = sqlite_site
    site.config(db_timezone="Europe/Berlin")
    c_id = site.container("sales")
    site.run(c_id, "2026-10-25 02:50", "2026-10-25 02:10")  # 00:50 to 01:10 UTC
    assert site.audit("-q", "--at", "2026-10-25T00:09:59Z", "--output", site.textfile).status == 2
    assert site.audit("-q", "--at", "2026-10-25T01:15Z", "--output", site.textfile).status == 0
    assert site.samples()[series("mydb_backup_status", name="sales", c_id=str(c_id), status="ok")] == 1


# --- err_msg -------------------------------------------------------------------------------------------

POSTGRES_PROGRESS = "\nExecuted Postgres dump_all commands:\npg_dump --dbname {} --username pgdba  -F c -f /var/lib/pos"

HARMLESS = [
    # SPEC section 1
    "",
    POSTGRES_PROGRESS.format("sales"),
    "\nExecuting Postgres backup to S3: s3://site-backups\nExecuting Postgres dump_all globals command: pg_du",
    "\nExecuted MariaDB dump command:\n    mariadb-dump -h db -P 32015 -u root -pxxxxx --single-transaction",
    "2019-03-02T18:09:11.402-0800\twriting admin.system.users to \n2019-03-02T18:09:11.404-0800\tdone dumpin",
    POSTGRES_PROGRESS.format("error_tracking"),
    POSTGRES_PROGRESS.format("failed-trials"),
    # names that look like errors, in the messages of section 1
    *(POSTGRES_PROGRESS.format(name) for name in ("error", "failed", "FATAL", "exception", "denied")),
    *(POSTGRES_PROGRESS.format(name) for name in ("no such file", '"fatal: error"', "'failed'")),
    "\nExecuting Postgres backup to S3: s3://site-backups/failed\nExecuting Postgres dump_all globals command:",
    "\nExecuting Postgres backup to S3: s3://error-budget\nExecuting Postgres dump_all globals command: pg_du",
    "\nExecuted MariaDB dump command:\n    mariadb-dump -h failed -P 32015 -u root -pxxxxx --single-transac",
    "\nExecuted MariaDB dump command:\n    mariadb-dump -h error -P 32015 -u root -pxxxxx --databases errors",
    "2019-03-02T18:09:11.402-0800\twriting failed.error to \n2019-03-02T18:09:11.404-0800\tdone dumping fail",
    # pg_dump --verbose
    "pg_dump: last built-in OID is 16383\npg_dump: reading extensions\npg_dump: identifying extension members",
    "pg_dump: saving encoding = UTF8\npg_dump: saving standard_conforming_strings = on",
    'pg_dump: dumping contents of table "public.error_log"',
    'pg_dump: dumping contents of table "public.failed"',
    "pg_dump: dumping contents of table public.failed_jobs",
    "pg_dump: dumping contents of table public.failed",
    "pg_dump: dumping contents of table public.errors",
    'pg_dump: creating TABLE "public.errors"',
    "pg_dump: creating INDEX public.failed",
    "pg_dump: warning: there are circular foreign-key constraints on this table:\npg_dump: detail: visits",
    "pg_dump: hint: You might not be able to restore the dump without using --disable-triggers",
    "pg_dump: warning: could not resolve dependency loop among these items:",
    "pg_dump: NOTICE: there are circular foreign-key constraints on this table:",
    # mysqldump, mariadb-dump
    "mysqldump: [Warning] Using a password on the command line interface can be insecure.",
    "Warning: A partial dump from a server that has GTIDs will by default include the GTIDs of all transactio",
    "-- Warning: Skipping the data of table mysql.event. Specify the --events option explicitly.",
    "mysqldump: Deprecated program name. It will be removed in a future release, use '/usr/bin/mariadb-dump'",
    "-- Connecting to db...\n-- Retrieving table structure for table errors...\n-- Sending SELECT query...",
    # aws s3
    "Completed 256.0 KiB/1.2 MiB (1.1 MiB/s) with 1 file(s) remaining",
    "upload: ./sales.dump to s3://site-backups/sales/20260313/sales.dump",
    "upload: - to s3://site-backups/error_tracking/20260313/failed-trials.dump",
    "upload: ./sales.dump to s3://site-backups/failed/error/sales.dump",
    # mongodump, with its progress bar
    "2026-03-13T18:07:31.402+0000\tdone dumping shop.failed_payments (1234 documents)",
    "2026-03-13T18:07:31.402+0000\twriting shop.errors to archive on stdout",
    "2026-03-13T18:07:31.402+0000\t[##########..............]  shop.errors  101/2000  (5.1%)",
    # neo4j-admin
    "Doing full backup...\n2026-03-13 18:07:31.402+0000 INFO  [o.n.b.v.OnlineBackup] Start receiving store files",
    "Done: 34 files, 1.195GiB processed.",
    "Warning: Permanently added 'db' (ED25519) to the list of known hosts.",
]

ERRORS = [
    # SPEC section 1
    "MariaDB Backup error.  Container: sales\nError message: upload failed: - to s3://site-backups/sales/2026",
    "MariaDB Backup exception. Container: sales\nException: [Errno 2] No such file or directory: 'mariadb-dum",
    'pg_dump: [archiver (db)] connection to database "sales" failed: FATAL:  the database system is starting',
    "2019-03-02T18:09:11.402-0800\tFailed: error connecting to db server: no reachable servers",
    "/bin/cp: cannot stat '/data/databases/graph.db': No such file or directory",
    "pg_dump: error: query failed: ERROR:  permission denied for table visits",
    'OCI runtime exec failed: exec failed: container_linux.go:345: starting container process caused "exec: ',
    # the same after a message of progress
    "\nExecuted Postgres dump_all commands:\npg_dump: error: query failed: ERROR:  permission denied for table",
    # pg_dump, pg_dumpall, psql
    'pg_dump: error: connection to server at "db" (192.0.2.7), port 32042 failed: Connection refused',
    'pg_dumpall: could not connect to database "template1": FATAL:  password authentication failed for user',
    "pg_dump: [custom archiver] could not write to output file: No space left on device",
    'pg_dump: Dumping the contents of table "visits" failed: PQgetResult() failed.',
    "pg_dump: error: Error message from server: ERROR:  invalid page in block 17 of relation base/16384/16402",
    "pg_dump: server version: 16.2; pg_dump version: 12.3\npg_dump: aborting because of server version mismatch",
    "psql: FATAL:  sorry, too many clients already",
    # mysqldump, mariadb-dump, mysql
    "mysqldump: Got error: 1045: \"Access denied for user 'root'@'localhost' (using password: YES)\" when trying",
    "mariadb-dump: Got error: 2002: \"Can't connect to local server through socket '/run/mysqld/mysqld.sock'\"",
    "mysqldump: Error 2013: Lost connection to MySQL server during query when dumping table `visits` at row:",
    "mysqldump: Couldn't execute 'FLUSH TABLES': Access denied; you need (at least one of) the RELOAD",
    "mysqldump: Got errno 28 on write",
    "ERROR 1045 (28000): Access denied for user 'root'@'192.0.2.7' (using password: YES)",
    "ERROR 2002 (HY000): Can't connect to MySQL server on 'db' (115)",
    # aws s3
    "upload failed: - to s3://site-backups/x An error occurred (AccessDenied) when calling the PutObject operation",
    "fatal error: Unable to locate credentials",
    'Unable to locate credentials. You can configure credentials by running "aws configure".',
    "An error occurred (NoSuchBucket) when calling the PutObject operation: The specified bucket does not exist",
    "botocore.exceptions.ClientError: An error occurred (403) when calling the HeadObject operation: Forbidden",
    # mongodump
    "2026-03-13T18:09:11.402+0000\tFailed: can't create session: could not connect to server: connection() error",
    "2026-03-13T18:09:11.402+0000\terror dumping metadata: error writing metadata for shop.visits to disk",
    # neo4j-admin
    "command failed: The database is in use -- stop Neo4j and try again.",
    "java.lang.OutOfMemoryError: Java heap space",
    'Exception in thread "main" java.lang.NullPointerException',
    # the shell and what runs it
    "bash: pg_dump: command not found",
    "sh: 1: aws: not found",
    "Killed",
    "Segmentation fault (core dumped)",
    "gzip: stdout: No space left on device",
    "tar: /data/databases/graph.db: Cannot open: Permission denied",
    'Traceback (most recent call last):\n  File "/opt/mydb/backup.py", line 88, in run\n',
    "subprocess.CalledProcessError: Command 'pg_dump' returned non-zero exit status 1.",
    "ConnectionRefusedError: [Errno 111] Connection refused",
    # docker
    "Error: No such container: sales",
    "Error response from daemon: Container 4f66ad9a is not running",
    "docker: Error response from daemon: No such container: sales.",
    "rpc error: code = Unknown desc = task not found",
    "Got permission denied while trying to connect to the Docker daemon socket at unix:///var/run/docker.sock",
]


def first_words(message: str) -> str:
    return " ".join(message.split())[:60] or "empty"


@pytest.mark.parametrize("message", HARMLESS, ids=first_words)
def test_a_message_of_progress_is_no_error(message: str) -> None:
    assert find_error([message], RULES.error_pattern) is None
    assert find_error(["", message, message], RULES.error_pattern) is None


@pytest.mark.parametrize("message", ERRORS, ids=first_words)
def test_a_message_of_failure_is_an_error(message: str) -> None:
    assert find_error([message[:100]], RULES.error_pattern) == message[:100]
    assert find_error([POSTGRES_PROGRESS.format("sales"), message], RULES.error_pattern) == message


@given(message=st.from_regex(DEFAULT_ERROR_PATTERN))
@example(message="no \u017fuch file")
@example(message="k\u0131lled")
@hypothesis_settings(max_examples=500)
def test_the_quick_look_overlooks_no_error(message: str) -> None:
    """Every message that the pattern finds, letters included that only a careless case folding takes for ASCII."""
    assert find_error([message], re.compile(DEFAULT_ERROR_PATTERN)) == message


HOSTILE_NAMES = [
    "error",
    "failed",
    "Fatal",
    "exception",
    "backup-error",
    "no such table",
    "it's failed",
    '"failed"',
    "error failed denied",
    "fehler\u00fc\u2603",
    "\x1b[31merror\x1b[0m",
]


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_a_name_of_a_database_never_makes_a_good_dump_an_error(name: str) -> None:
    for message in (
        POSTGRES_PROGRESS.format(name),
        f"\nExecuted MariaDB dump command:\n    mariadb-dump -h db -P 32015 -u root -pxxxxx {name}",
        f"2026-03-13T18:07:31.402+0000\tdone dumping {name}.visits (1234 documents)",
    ):
        assert find_error([message[:100]], RULES.error_pattern) is None, message


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_a_name_of_a_database_never_hides_an_error(name: str) -> None:
    for message in (
        f"MariaDB Backup error.  Container: {name}\nError message: upload failed: - to s3://",
        f'pg_dump: error: connection to database "{name}" failed: FATAL:  the database system is starting up',
        f"/bin/cp: cannot stat '/data/{name}/graph.db': No such file or directory",
    ):
        assert find_error([message], RULES.error_pattern) == message, message


def test_an_error_in_version_1s_start_row_is_found_although_the_end_row_looks_fine(sqlite_site: Site) -> None:
    c_id = sqlite_site.container("sales")
    sqlite_site.run(c_id, "2026-03-13 18:07", "2026-03-13 18:30", error=ERRORS[0], error_at_start=True)
    assert sqlite_site.audit("-q", "--at", NOW.isoformat(), "--output", sqlite_site.textfile).status == 2
    assert sqlite_site.samples()[series("mydb_backup_status", name="sales", c_id=str(c_id), status="failed")] == 1


def test_the_error_pattern_of_the_settings_replaces_the_built_in_one(sqlite_site: Site) -> None:
    sqlite_site.config(error_pattern="(?i)gone wrong")
    ours, builtin = sqlite_site.container("ours"), sqlite_site.container("built-in")
    sqlite_site.run(ours, "2026-03-13 18:07", "2026-03-13 18:30", error="it has Gone Wrong")
    sqlite_site.run(builtin, "2026-03-13 18:07", "2026-03-13 18:30", error=ERRORS[5])
    sqlite_site.audit("-q", "--at", NOW.isoformat(), "--output", sqlite_site.textfile)
    samples = sqlite_site.samples()
    assert samples[series("mydb_backup_status", name="ours", c_id=str(ours), status="failed")] == 1
    assert samples[series("mydb_backup_status", name="built-in", c_id=str(builtin), status="ok")] == 1


@pytest.mark.parametrize(
    "message",
    [
        pytest.param("a" * 100_000, id="one long word"),
        pytest.param("a." * 50_000 + "!", id="dots"),
        pytest.param("pg_dump: " + "'" * 100_000, id="apostrophes"),
        pytest.param("pg_dump: " + "\"a' " * 30_000, id="unbalanced quotes"),
        pytest.param("pg_dump: " + "x " * 50_000 + "fail", id="many words"),
        pytest.param("pg_dump: " * 12_000, id="many programs"),
        pytest.param("-" * 100_000 + "Z", id="almost a time"),
        pytest.param("2" * 50_000 + " " * 50_000 + "x", id="a time and blanks"),
        pytest.param("2026-03-13T18:07:31.402+0000" + "\n" * 100_000, id="a time and empty lines"),
        pytest.param("\n" * 100_000, id="empty lines"),
        pytest.param(" " * 100_000, id="blanks"),
        pytest.param("\t" * 50_000 + "x\n" + " " * 50_000, id="tabs and blanks"),
        pytest.param("exec " * 20_000, id="exec"),
        pytest.param("a b c d e " * 10_000, id="words before exec"),
        pytest.param("x: " + "erro" * 25_000, id="almost errors"),
        pytest.param("MariaDB Backup " * 7_000, id="almost a backup error"),
    ],
)
def test_a_long_hostile_message_is_searched_quickly(message: str) -> None:
    pattern = re.compile(DEFAULT_ERROR_PATTERN)
    started = time.process_time()
    find_error([message], pattern)
    assert time.process_time() - started < 2  # a few milliseconds, unless it takes hours
