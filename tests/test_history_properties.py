"""Properties of the past (docs/rules.md, "History"), against the verdicts of the audit, asked again and again.

All moments of a case lie on a grid of a quarter of an hour, and so do the midnights of its zones: what holds at a
moment of the grid holds up to the next one, and nothing is lost by asking at these moments only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import date, datetime, time, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

from hypothesis import example, given, settings
from hypothesis import strategies as st

from audit.history import ContainerHistory, Period, last_days, look_back
from audit.messages import Meaning, Said
from audit.policy import DAY, HOUR, LONG_AGO, UTC, Container, Outcome, Rules, Run, Verdict, due_at, judge
from tests.findings import NOTHING
from tests.runs import CLOCK_CHANGES, ERROR, TICK

GRID = timedelta(minutes=15)
FINE = Said(Meaning.FINE, None)


@dataclass(frozen=True)
class Case:
    """A container with its runs, a period, and the settings to judge by."""

    container: Container
    runs: list[Run]
    period: Period
    rules: Rules

    @property
    def known(self) -> datetime:
        """From when on the log proves anything of the container; long ago, if nothing says so."""
        created, now = self.container.created, self.period.now
        return max(created if created and created <= now else LONG_AGO, self.period.log_begins or LONG_AGO)

    @property
    def end(self) -> datetime:
        """The end of the time that counts."""
        rows = [max(run.started, run.ended or run.started) for run in self.runs]
        return max(rows, default=self.period.start) if self.container.deleted else self.period.end

    def verdict(self, now: datetime) -> Verdict:
        """What an audit at a moment says, from the log as it was then."""
        begun = (run for run in self.runs if run.started <= now)
        seen = [run if run.ended and run.ended <= now else replace(run, ended=None, said=FINE) for run in begun]
        return judge(self.container, seen, now, self.rules)

    def base(self, verdict: Verdict) -> datetime:
        """The newest success, or the moment from which the container is known: what was before does not count."""
        return max(verdict.last_success.started if verdict.last_success else LONG_AGO, self.known)

    def lapse(self, verdict: Verdict) -> datetime:
        """From when on the container is not covered, unless another run succeeds."""
        return due_at(verdict.policy, self.base(verdict), self.rules) + self.rules.grace

    def bad_runs(self) -> list[Run]:
        """The runs that have failed or stalled by the end, oldest first."""
        verdict = judge(self.container, self.runs, self.end, self.rules)
        ordered = sorted(self.runs, key=lambda run: (run.started, run.backup_id))
        return [run for run in ordered if verdict.outcome(run) in (Outcome.FAILED, Outcome.STALLED)]


def steps(hours: int) -> st.SearchStrategy[timedelta]:
    return st.integers(0, hours * 4).map(lambda number: number * GRID)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Cases around a change of clocks, in which what a run says is as likely as not to matter."""
    zone, change = draw(st.sampled_from(CLOCK_CHANGES))
    hours = st.sampled_from([HOUR, 6 * HOUR, 24 * HOUR, 30 * HOUR])
    rules = Rules(
        zone=ZoneInfo(zone),
        weekly_day=draw(st.integers(0, 6)),
        window=draw(hours),
        grace=draw(st.sampled_from([NOTHING, HOUR, 6 * HOUR])),
        max_runtime=draw(hours),
        policies={"Often": 8 * HOUR, "Monthly": 744 * HOUR},
    )
    end = change + draw(steps(48))
    moments = steps(240).map(lambda before: end - before)
    runs = []
    for number in range(draw(st.integers(0, 8))):
        started, took = draw(moments), draw(steps(1) | steps(40))
        ended = None if started + took > end or draw(st.integers(0, 4)) == 0 else started + took
        said = Said(Meaning.ERROR, ERROR) if ended and draw(st.integers(0, 3)) == 0 else FINE
        run = Run(started, str(number), ended=ended, said=said)
        whole = ended is None or draw(st.integers(0, 4)) > 0
        runs.append(run if whole else replace(run, started=ended or started, start_logged=False))
    period = replace(
        last_days(draw(st.integers(1, 3)), end, rules.zone),
        now=draw(st.sampled_from([end, end + 30 * DAY])),
        log_begins=draw(st.none() | moments | st.just(end - 300 * DAY)),
    )
    created = draw(st.none() | moments | st.sampled_from([end - 400 * DAY, end + DAY]))
    policy = draw(st.sampled_from(["Daily", "Weekly", "Often", " monthly "]))
    return Case(Container(7, "sales", policy, created=created, deleted=draw(st.booleans())), runs, period, rules)


@given(cases())
@settings(max_examples=100)
def test_the_past_is_what_the_verdicts_of_its_moments_say(case: Case) -> None:
    history = look_back(case.container, case.runs, case.period, case.rules)
    start = max(case.period.start, case.known)
    moments = [start + number * GRID for number in range(max(0, (case.end - start) // GRID))]
    verdicts = [case.verdict(moment) for moment in moments]
    uncovered = [verdict.now for verdict in verdicts if case.lapse(verdict) <= verdict.now]
    assert history.counted == len(moments) * GRID
    assert history.covered == (len(moments) - len(uncovered)) * GRID
    bases = [case.base(verdict) for verdict in verdicts]
    ages = [moment + GRID - base for moment, base in zip(moments, bases, strict=True)]
    assert history.worst_age == (None if LONG_AGO in bases else max(ages, default=None))
    assert case.container.deleted or history.verdict.status is case.verdict(case.period.end).status
    the_days_agree(case, history, moments, uncovered)
    the_stretches_agree(case, history, moments, uncovered)


def the_days_agree(case: Case, history: ContainerHistory, moments: list[datetime], uncovered: list[datetime]) -> None:
    def by_date(some: Iterable[datetime]) -> Counter[date]:
        return Counter(moment.astimezone(case.rules.zone).date() for moment in some)

    known, lost = by_date(moments), by_date(uncovered)
    bad = by_date(run.started for run in case.bad_runs() if case.period.start <= run.started < case.period.end)
    days = [day.date for day in case.period.days_until(case.end)]
    uncovered_days = {day: "failed" if bad[day] else "none" for day in lost}
    outcomes = [uncovered_days.get(day, "ok") if known[day] else "before" for day in days]
    assert [outcome.value for outcome in history.outcomes] == outcomes
    assert list(history.uncovered_by_day) == [lost[day] * GRID for day in days]


def the_stretches_agree(
    case: Case, history: ContainerHistory, moments: list[datetime], uncovered: list[datetime]
) -> None:
    stretches = history.stretches
    assert all(one.end < other.start for one, other in pairwise(stretches))
    assert uncovered == [moment for moment in moments if any(one.start <= moment < one.end for one in stretches)]
    for stretch in stretches:
        verdict = case.verdict(stretch.start)
        recent = stretch.start - (case.lapse(verdict) - case.base(verdict))  # a run since then would have covered it
        assert list(stretch.runs) == [run for run in case.bad_runs() if recent <= run.started < stretch.end]


# --- Periods -------------------------------------------------------------------------------------------

zones = st.sampled_from(sorted({zone for zone, _ in CLOCK_CHANGES} | {"America/St_Johns"})).map(ZoneInfo)


@example(ZoneInfo("America/St_Johns"), datetime(2005, 10, 30, 3), 2)  # in the hour that was repeated over midnight
@given(zones, st.datetimes(datetime(1975, 1, 1), datetime(2037, 1, 1)), st.integers(1, 800))
def test_the_days_of_a_period_follow_each_other_without_a_gap(zone: ZoneInfo, now: datetime, count: int) -> None:
    period = last_days(count, now.replace(tzinfo=UTC), zone)
    assert (period.start, period.end) == (period.days[0].start, period.days[-1].end)
    assert period.end - period.start == count * DAY
    assert all(one.end == other.start and one.date < other.date for one, other in pairwise(period.days))
    for place, day in enumerate(period.days):
        assert day.start < day.end
        assert place == 0 or day.start == datetime.combine(day.date, time(), zone).astimezone(UTC)
        assert period.place(day.start) == period.place(day.end - TICK) == place
