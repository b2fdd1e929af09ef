"""Properties of the past (SPEC section 9), against the verdicts of the audit, asked again every five minutes.

All moments of a case lie on a grid of five minutes, and so do the midnights of all zones: what holds at a moment of
the grid holds up to the next one, and nothing is lost by asking at these moments only.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, time, timedelta
from itertools import groupby, pairwise
from statistics import median
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from audit.history import (
    ContainerHistory,
    DayOutcome,
    Period,
    covered_ratio,
    last_days,
    look_back,
    parse_period,
    suspicious_duration,
    typical_duration,
)
from audit.policy import DAY, HOUR, LONG_AGO, UTC, Container, Outcome, Rules, Run, Verdict, judge

GRID = timedelta(minutes=5)
NOTHING, SECOND = timedelta(0), timedelta(seconds=1)
CLOCK_CHANGES = [
    ("UTC", "2026-03-14 00:00"),
    ("Europe/Berlin", "2026-03-29 01:00"),
    ("Europe/Berlin", "2026-10-25 01:00"),
    ("America/New_York", "2026-11-01 06:00"),
    ("America/Sao_Paulo", "2018-11-04 03:00"),  # leaves out midnight
    ("America/Sao_Paulo", "2018-02-18 02:00"),  # returns from midnight to 23:00
    ("America/Havana", "2026-11-01 05:00"),  # midnight occurs twice
    ("Asia/Beirut", "2026-03-28 22:00"),  # leaves out midnight
    ("Africa/Cairo", "2026-10-29 21:00"),  # returns from midnight to 23:00
    ("Australia/Lord_Howe", "2026-04-04 15:00"),  # half an hour
    ("Asia/Kathmandu", "2026-03-14 18:15"),
    ("Pacific/Apia", "2011-12-30 10:00"),  # leaves out a Friday
]


@dataclass(frozen=True)
class Case:
    """A container with its runs, a period, and the settings to judge by."""

    container: Container
    runs: list[Run]
    period: Period
    rules: Rules

    def history(self) -> ContainerHistory:
        return look_back(self.container, self.runs, self.period, self.rules)


def steps(count: int) -> st.SearchStrategy[timedelta]:
    return st.integers(0, count).map(lambda number: number * GRID)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Cases around a change of clocks, in which what a run says is as likely as not to matter."""
    zone_name, change = draw(st.sampled_from(CLOCK_CHANGES))
    zone, around = ZoneInfo(zone_name), datetime.fromisoformat(change).replace(tzinfo=UTC)
    hours = st.sampled_from([HOUR, 6 * HOUR, 24 * HOUR, 30 * HOUR])
    rules = Rules(
        zone=zone,
        weekly_day=draw(st.integers(0, 6)),
        window=draw(hours),
        grace=draw(st.sampled_from([NOTHING, HOUR, 6 * HOUR])),
        max_runtime=draw(hours),
        policies={"Often": 8 * HOUR, "Monthly": 744 * HOUR},
        error_pattern=re.compile("unused"),
        success_pattern=re.compile("unused"),
    )
    period = last_days(draw(st.integers(1, 3)), around + draw(steps(2 * 288)), zone)
    if draw(st.booleans()):
        day = around.astimezone(zone).date()
        period = parse_period(f"{day}..{day + DAY}", around + 30 * DAY, zone)
    end = period.end
    moments = st.builds(lambda before: end - before, steps(10 * 288))
    runs = []
    for number in range(draw(st.integers(0, 8))):
        started, took = draw(moments), draw(steps(12) | steps(480))
        ended = None if started + took > end or draw(st.integers(0, 4)) == 0 else started + took
        error = "pg_dump: error" if ended and draw(st.integers(0, 3)) == 0 else None
        run = Run(started, str(draw(st.integers(0, 3))) + str(number), "Daily", ended, error)
        whole = ended is None or draw(st.integers(0, 4)) > 0
        runs.append(run if whole else run._replace(started=ended or started, start_logged=False))
    created = draw(st.none() | moments | st.sampled_from([end - 400 * DAY, end + DAY]))
    policy = draw(st.sampled_from(["Daily", "Weekly", "Often", " monthly "]))
    return Case(Container(7, "sales", policy, created=created, deleted=draw(st.booleans())), runs, period, rules)


# --- The verdicts, moment by moment --------------------------------------------------------------------


def as_seen(run: Run, now: datetime) -> Run | None:
    """A run as the log showed it at a moment."""
    if run.started > now:
        return None
    return run if run.ended is None or run.ended <= now else run._replace(ended=None, error=None)


def verdict_at(case: Case, now: datetime) -> Verdict:
    seen = [as_seen(run, now) for run in case.runs]
    return judge(case.container, [run for run in seen if run], now, case.rules)


def counted(case: Case) -> list[datetime]:
    """The moments of the grid that count."""
    start, end = case.period.start, case.period.end
    if case.container.created is not None and case.container.created <= (case.period.now or end):
        start = max(start, case.container.created)
    if case.container.deleted:
        end = max((run.ended or run.started for run in case.runs), default=start)
    return [start + number * GRID for number in range(max(0, (end - start) // GRID))]


def is_covered(verdict: Verdict) -> bool:
    return verdict.due is not None and verdict.now < verdict.due + verdict.rules.grace


def base_of(verdict: Verdict) -> datetime | None:
    if verdict.last_success:
        return verdict.last_success.started
    created = verdict.container.created
    return created if created and created <= verdict.now else None


def bad_runs(case: Case) -> list[Run]:
    outcomes = ((run, run.outcome(case.period.end, case.rules.max_runtime)) for run in sorted(case.runs))
    return [run for run, outcome in outcomes if outcome in (Outcome.FAILED, Outcome.STALLED)]


@given(cases())
def test_a_container_was_covered_when_its_verdict_said_so(case: Case) -> None:
    verdicts = [verdict_at(case, moment) for moment in counted(case)]
    uncovered = [verdict.now for verdict in verdicts if not is_covered(verdict)]
    history, container = case.history(), case.container
    assert history.counted == len(verdicts) * GRID
    assert history.covered == (len(verdicts) - len(uncovered)) * GRID
    assert history.uncovered == sum((stretch.end - stretch.start for stretch in history.stretches), NOTHING)
    assert [moment for moment in uncovered if not any(s.start <= moment < s.end for s in history.stretches)] == []
    assert all(one.end < other.start for one, other in pairwise(history.stretches))
    ratio = (len(verdicts) - len(uncovered)) / len(verdicts) if verdicts else None
    assert history.ratio == ratio
    bases = [base_of(verdict) for verdict in verdicts]
    ages = [verdict.now + GRID - base for verdict, base in zip(verdicts, bases, strict=True) if base]
    assert history.worst_age == (max(ages) if verdicts and None not in bases else None)
    if not container.deleted:
        assert history.status is verdict_at(case, case.period.end).status
        if case.period.now == case.period.end:
            assert covered_ratio(container, case.runs, case.period.start, case.period.end, case.rules) == ratio


@given(cases())
def test_a_day_is_what_the_verdicts_of_its_moments_say(case: Case) -> None:
    zone, verdicts = case.rules.zone, [verdict_at(case, moment) for moment in counted(case)]
    outcomes, lost = {}, {}
    for day, some in groupby(verdicts, lambda verdict: verdict.now.astimezone(zone).date()):
        uncovered = [verdict for verdict in some if not is_covered(verdict)]
        bad = any(
            run.started.astimezone(zone).date() == day and case.period.start <= run.started < case.period.end
            for run in bad_runs(case)
        )
        outcomes[day] = DayOutcome.OK if not uncovered else DayOutcome.FAILED if bad else DayOutcome.NONE
        lost[day] = len(uncovered) * GRID
    history, days = case.history(), [day.date for day in case.period.days]
    found = dict(zip(days, history.outcomes, strict=False))
    assert {day: outcome for day, outcome in found.items() if outcome is not DayOutcome.BEFORE} == outcomes
    assert {day: dict(zip(days, history.uncovered_by_day, strict=False))[day] for day in outcomes} == lost
    assert sorted(history.outcomes, key=lambda outcome: outcome is not DayOutcome.BEFORE) == list(history.outcomes)
    assert case.container.deleted or len(history.outcomes) == len(days)


@given(cases())
def test_a_stretch_names_the_bad_runs_since_the_last_good_backup(case: Case) -> None:
    for stretch in case.history().stretches:
        verdict = verdict_at(case, stretch.start)
        assert verdict.due
        base = verdict.last_success.started if verdict.last_success else base_of(verdict) or LONG_AGO
        recent = stretch.start - (verdict.due + case.rules.grace - base)  # a run since then would have covered it
        assert stretch.runs == tuple(run for run in bad_runs(case) if recent <= run.started < stretch.end)
        assert base <= recent or base == LONG_AGO


# --- Days and periods ----------------------------------------------------------------------------------

zones = st.sampled_from(sorted({zone for zone, _ in CLOCK_CHANGES} | {"America/St_Johns"})).map(ZoneInfo)


@example(ZoneInfo("America/St_Johns"), datetime(2005, 10, 30, 3), 2)  # in the hour that was repeated over midnight
@given(zones, st.datetimes(datetime(1975, 1, 1), datetime(2037, 1, 1)), st.integers(1, 800))
def test_the_days_of_a_period_follow_each_other_without_a_gap(zone: ZoneInfo, now: datetime, count: int) -> None:
    period = last_days(count, now.replace(tzinfo=UTC), zone)
    assert (period.start, period.end) == (period.days[0].start, period.days[-1].end)
    assert period.end - period.start == count * DAY
    assert all(one.end == other.start and one.date < other.date for one, other in pairwise(period.days))
    for place, day in enumerate(period.days):
        assert HOUR * 22 <= day.end - day.start <= HOUR * 26 or place in (0, len(period.days) - 1)
        assert day.start < day.end
        assert place == 0 or day.start == datetime.combine(day.date, time(), zone).astimezone(UTC)
        assert period.place(day.start) == period.place(day.end - timedelta.resolution) == place


# --- Durations -----------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 10_000), max_size=12))
def test_the_typical_duration_is_the_median_of_five_or_more_before_the_last(seconds: list[int]) -> None:
    since, count = datetime(2026, 3, 1, tzinfo=UTC), len(seconds)
    runs = [Run(since + place * DAY, "", "", since + place * DAY + took * SECOND) for place, took in enumerate(seconds)]
    runs += [run._replace(backup_id="failed", error="x", ended=run.started) for run in runs]
    runs += [
        Run(since - GRID, "before", "", since),
        Run(since + GRID, "end only", "", since + GRID, start_logged=False),
    ]
    expected = median(seconds[:-1]) * SECOND if count > 5 else None
    assert typical_duration(reversed(runs), since) == expected


@pytest.mark.parametrize(
    ("took", "typical", "suspicious"),
    [
        *((59.999, 600, True), (60, 600, False), (6000, 600, False), (6000.001, 600, True), (0, 60, True)),
        *((0, 59.999, False), (5.999, 60, True), (6, 60, False), (None, 600, False), (60, None, False)),
    ],
)
def test_suspicious_is_less_than_a_tenth_of_a_typical_minute_or_more_or_ten_times_as_much(
    took: float | None, typical: float | None, suspicious: bool
) -> None:
    durations = [None if seconds is None else seconds * SECOND for seconds in (took, typical)]
    assert suspicious_duration(*durations) is suspicious
