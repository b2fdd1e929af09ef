"""Properties of the past (docs/rules.md, "History"), against the verdicts of the audit, asked again every five minutes.

All moments of a case lie on a grid of five minutes, and so do the midnights of all zones: what holds at a moment of
the grid holds up to the next one, and nothing is lost by asking at these moments only.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from datetime import datetime, time, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

from hypothesis import example, given, settings
from hypothesis import strategies as st

from audit.history import (
    ContainerHistory,
    DayOutcome,
    Period,
    covered_ratio,
    last_days,
    look_back,
    parse_period,
)
from audit.messages import Meaning, Said
from audit.policy import DAY, HOUR, LONG_AGO, UTC, Container, Outcome, Rules, Run, Verdict, due_at, judge, newest_first

GRID = timedelta(minutes=5)
NOTHING = timedelta(0)
ERROR, FINE = Said(Meaning.ERROR, "pg_dump: error: query failed"), Said(Meaning.FINE, None)
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
        said = ERROR if ended and draw(st.integers(0, 3)) == 0 else FINE
        run = Run(started, str(draw(st.integers(0, 3))) + str(number), "Daily", ended, said)
        whole = ended is None or draw(st.integers(0, 4)) > 0
        runs.append(run if whole else run._replace(started=ended or started, start_logged=False))
    created = draw(st.none() | moments | st.sampled_from([end - 400 * DAY, end + DAY]))
    period = replace(period, log_begins=draw(st.none() | moments | st.just(end - 300 * DAY)))
    policy = draw(st.sampled_from(["Daily", "Weekly", "Often", " monthly "]))
    return Case(Container(7, "sales", policy, created=created, deleted=draw(st.booleans())), runs, period, rules)


# --- The verdicts, moment by moment --------------------------------------------------------------------


def as_seen(run: Run, now: datetime) -> Run | None:
    """A run as the log showed it at a moment."""
    if run.started > now:
        return None
    return run if run.ended is None or run.ended <= now else run._replace(ended=None, said=FINE)


def verdict_at(case: Case, now: datetime) -> Verdict:
    seen = [as_seen(run, now) for run in case.runs]
    return judge(case.container, [run for run in seen if run], now, case.rules)


def counted(case: Case) -> list[datetime]:
    """The moments of the grid that count."""
    start, end = max(case.period.start, known(case) or LONG_AGO), case.period.end
    if case.container.deleted:
        end = max((run.ended or run.started for run in case.runs), default=start)
    return [start + number * GRID for number in range(max(0, (end - start) // GRID))]


def known(case: Case) -> datetime | None:
    """From when on the log proves anything of the container; None if nothing says so."""
    created = case.container.created
    if created and created > (case.period.now or case.period.end):
        created = None
    return max((moment for moment in (created, case.period.log_begins) if moment), default=None)


def is_covered(verdict: Verdict, case: Case) -> bool:
    base = base_of(verdict, case)
    return base is not None and verdict.now < due_at(verdict.policy, base, case.rules) + case.rules.grace


def base_of(verdict: Verdict, case: Case) -> datetime | None:
    """The newest success, or the moment from which the container is known: what was before does not count."""
    started = verdict.last_success.started if verdict.last_success else None
    return max((moment for moment in (started, known(case)) if moment), default=None)


def bad_runs(case: Case) -> list[Run]:
    end = case.period.end
    if case.container.deleted:
        end = max((max(run.started, run.ended or run.started) for run in case.runs), default=case.period.start)
    verdict = judge(case.container, case.runs, min(end, case.period.end), case.rules)
    outcomes = ((run, verdict.outcome(run)) for run in reversed(newest_first(case.runs)))
    return [run for run, outcome in outcomes if outcome in (Outcome.FAILED, Outcome.STALLED)]


@given(cases())
@settings(max_examples=150)
def test_the_past_is_what_the_verdicts_of_its_moments_say(case: Case) -> None:
    history, period = case.history(), case.period
    verdicts = [verdict_at(case, moment) for moment in counted(case)]
    uncovered = [verdict.now for verdict in verdicts if not is_covered(verdict, case)]
    assert history.counted == len(verdicts) * GRID
    assert history.covered == (len(verdicts) - len(uncovered)) * GRID
    assert history.ratio == ((len(verdicts) - len(uncovered)) / len(verdicts) if verdicts else None)
    bases = [base_of(verdict, case) for verdict in verdicts]
    ages = [verdict.now + GRID - base for verdict, base in zip(verdicts, bases, strict=True) if base]
    assert history.worst_age == (max(ages) if verdicts and None not in bases else None)
    if not case.container.deleted:
        assert history.verdict.status is verdict_at(case, period.end).status
        if period.now == period.end:
            bounds = period.start, period.end
            ratio = covered_ratio(case.container, case.runs, *bounds, case.rules, log_begins=period.log_begins)
            assert ratio == history.ratio
    the_days_agree(case, history, uncovered)
    the_stretches_agree(case, history, uncovered)


def the_days_agree(case: Case, history: ContainerHistory, uncovered: list[datetime]) -> None:
    zone, days = case.rules.zone, [day.date for day in case.period.days]
    dates = {moment.astimezone(zone).date() for moment in counted(case)}
    lost = Counter(moment.astimezone(zone).date() for moment in uncovered)
    bad = {run.started.astimezone(zone).date() for run in bad_runs(case) if case.period.place(run.started) is not None}
    found = dict(zip(days, zip(history.outcomes, history.uncovered_by_day, strict=True), strict=False))
    assert {day for day, (outcome, _) in found.items() if outcome is not DayOutcome.BEFORE} == dates
    for day in dates:
        outcome = DayOutcome.OK if not lost[day] else DayOutcome.FAILED if day in bad else DayOutcome.NONE
        assert found[day] == (outcome, lost[day] * GRID)
    assert sorted(history.outcomes, key=lambda outcome: outcome is not DayOutcome.BEFORE) == list(history.outcomes)
    assert case.container.deleted or len(history.outcomes) == len(days)


def the_stretches_agree(case: Case, history: ContainerHistory, uncovered: list[datetime]) -> None:
    stretches = history.stretches
    assert history.uncovered == sum((stretch.end - stretch.start for stretch in stretches), NOTHING)
    assert [moment for moment in uncovered if not any(one.start <= moment < one.end for one in stretches)] == []
    assert all(one.end < other.start for one, other in pairwise(stretches))
    for stretch in stretches:
        verdict = verdict_at(case, stretch.start)
        base = base_of(verdict, case) or LONG_AGO
        due = due_at(verdict.policy, base, case.rules)
        recent = stretch.start - (due + case.rules.grace - base)  # a run since then would have covered it
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
