"""The past by the rule of the present (docs/rules.md, "History"): was a container covered, moment by moment?

Everything here is a pure function of its arguments, as in `policy`: no clock, no database, no output. Every datetime
is aware UTC.
"""

from __future__ import annotations

import enum
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, time, timedelta, tzinfo
from functools import cached_property
from itertools import pairwise

from audit.messages import Meaning
from audit.policy import (
    DAY,
    LONG_AGO,
    Container,
    Outcome,
    Rules,
    Run,
    Verdict,
    creation,
    due_at,
    judge,
    newest_first,
    utc_from_local,
)

NOTHING = timedelta(0)

_Span = tuple[datetime, datetime, datetime]
"""A part of the counted time with one base: its start, its end, and the base."""


class DayOutcome(str, enum.Enum):
    """What a calendar day looks like for one container."""

    OK = "ok"
    FAILED = "failed"
    NONE = "none"
    BEFORE = "before"


@dataclass(frozen=True)
class Day:
    """A calendar day of the host's `timezone`, as far as it lies in a period."""

    date: date
    start: datetime
    end: datetime


@dataclass(frozen=True)
class Period:
    """The time that a history is about."""

    start: datetime
    end: datetime
    label: str
    """As it was asked for: `30 days`, `2026-Q1`."""
    days: tuple[Day, ...]
    """Oldest first, without a gap; the first and the last may be parts of days."""
    now: datetime
    """When it was asked for: a creation after that moment is a wrong stamp."""
    log_begins: datetime | None = None
    """The first dated row of the site's log, whether or not it lies in the period; None if there is none."""

    @cached_property
    def _starts(self) -> list[datetime]:
        return [day.start for day in self.days]

    @property
    def begins_within(self) -> datetime | None:
        """When the log begins, if that is within the period: of the time before nothing is known."""
        begins = self.log_begins
        return begins if begins is not None and self.start < begins < self.end else None

    def place(self, moment: datetime) -> int | None:
        """The place of the day that a moment lies in; None outside the period."""
        return bisect_right(self._starts, moment) - 1 if self.start <= moment < self.end else None

    def days_until(self, end: datetime) -> tuple[Day, ...]:
        """The days that begin before a moment."""
        return self.days[: bisect_left(self._starts, end)]


@dataclass(frozen=True, slots=True)
class Stretch:
    """A stretch of time in which a container was not covered."""

    start: datetime
    end: datetime
    runs: tuple[Run, ...]
    """The failed and stalled runs since the last good backup, oldest first, without those too old to have helped."""


@dataclass(frozen=True)
class ContainerHistory:
    """How one container fared over a period."""

    verdict: Verdict
    """At the period's end, or at a deleted container's last log row."""
    counted: timedelta = NOTHING
    """The time that counts: since the container is known, and in a deleted one up to its last log row."""
    covered: timedelta = NOTHING
    outcomes: tuple[DayOutcome, ...] = ()
    """One a day of the period, fewer in a deleted container; none without a schedule."""
    uncovered_by_day: tuple[timedelta, ...] = ()
    """The uncovered time of each of these days."""
    stretches: tuple[Stretch, ...] = ()
    """When it was not covered, oldest first."""
    worst_age: timedelta | None = None
    """The greatest age of the last good backup: the most work that could have been lost. None if that is unknown."""
    median_duration: timedelta | None = None
    """Of the succeeded runs that started in the period."""
    unrecognised: int = 0
    """The runs of the period with an unrecognised message."""
    cut: int = 0
    """The runs of the period with a message that may be cut off."""

    @property
    def container(self) -> Container:
        """The container that it is about."""
        return self.verdict.container

    @property
    def uncovered(self) -> timedelta:
        """The counted time in which the container was not covered."""
        return self.counted - self.covered

    @property
    def ratio(self) -> float | None:
        """Covered time by counted time; None if no time counts."""
        return self.covered / self.counted if self.counted else None


# --- Periods -------------------------------------------------------------------------------------------


def last_days(count: int, now: datetime, zone: tzinfo) -> Period:
    """The last `count` times 24 hours."""
    return period_of(now - count * DAY, now, f"{count} day{'s' * (count != 1)}", now, zone)


def period_of(start: datetime, end: datetime, label: str, now: datetime, zone: tzinfo) -> Period:
    """The period from `start` to `end`, with its days in `zone`; `label` is how it was asked for, `now` when."""
    first, last = (moment.astimezone(zone).date() for moment in (start, end))
    # and one day more: where clocks are set back over midnight, the hour that is repeated belongs to the new day
    dates = [first + DAY * number for number in range((last - first).days + 3)]
    midnights = [utc_from_local(datetime.combine(day, time()), zone) for day in dates]
    bounds = ((max(begin, start), min(after, end)) for begin, after in pairwise(midnights))
    days = (Day(day, begin, after) for day, (begin, after) in zip(dates, bounds, strict=False) if begin < after)
    return Period(start, end, label, tuple(days), now)


# --- Coverage ------------------------------------------------------------------------------------------


def look_back(container: Container, runs: Sequence[Run], period: Period, rules: Rules) -> ContainerHistory:
    """How a container fared, from its runs in any order: all that the log showed at the end of the period.

    A creation after the period's end leaves nothing to count; one after the moment of asking is unknown.
    """
    known = _known_since(container, runs, period.now, period.log_begins)
    start = max(period.start, known)
    end = min(_last_row(runs, period.start), period.end) if container.deleted else period.end
    verdict, days = judge(container, runs, end, rules), period.days_until(end)
    bad = [run for run in reversed(newest_first(runs)) if verdict.outcome(run) in (Outcome.FAILED, Outcome.STALLED)]
    in_period = [run for run in runs if period.start <= run.started < period.end]
    facts = ContainerHistory(
        verdict=verdict,
        unrecognised=sum(run.said.meaning is Meaning.UNRECOGNISED for run in in_period),
        cut=sum(run.is_cut for run in in_period),
    )
    if verdict.due is None or start >= end:
        count = 0 if verdict.due is None else len(days)
        before, none = (DayOutcome.BEFORE,) * count, (NOTHING,) * count
        return replace(facts, outcomes=before, uncovered_by_day=none)
    spans = list(_spans(known, runs, start, end))
    stretches = _stretches(verdict.policy, spans, bad, rules)
    uncovered = _by_day(stretches, days, period)
    durations = (run.duration for run in in_period if run.succeeded)
    return replace(
        facts,
        counted=end - start,
        covered=end - start - sum(uncovered, NOTHING),
        outcomes=_outcomes(days, start, uncovered, {period.place(run.started) for run in bad}),
        uncovered_by_day=tuple(uncovered),
        stretches=stretches,
        worst_age=_worst_age(spans),
        median_duration=_median(duration for duration in durations if duration is not None),
    )


def _known_since(container: Container, runs: Iterable[Run], now: datetime, log_begins: datetime | None) -> datetime:
    """From when on the log can prove anything of a container: before, nothing counts."""
    if container.is_job:
        return min((run.started for run in runs), default=now)
    return max(creation(container, now), log_begins or LONG_AGO)


def _last_row(runs: Iterable[Run], default: datetime) -> datetime:
    return max((max(run.started, run.ended or run.started) for run in runs), default=default)


def _spans(known: datetime, runs: Iterable[Run], start: datetime, end: datetime) -> Iterator[_Span]:
    """The time in spans with one base each: the start of the newest run that had succeeded by then, or the beginning of
    what is known.
    """
    base = newest = known
    # a run that ended before it started, by a wrong clock, counts from its start: no base lies in the future
    good = ((max(run.started, run.ended), run.started) for run in runs if run.ended is not None and not run.failed)
    for succeeded, started in sorted(good):
        if succeeded >= end:
            break
        if started > newest:
            if succeeded > start:
                yield start, succeeded, base
                start = succeeded
            base = newest = started
    yield start, end, base


def _lapses(policy: str, spans: Iterable[_Span], rules: Rules) -> Iterator[_Span]:
    """The uncovered part of each span that has one, and the moment since when a run would have covered its start."""
    for since, until, base in spans:
        lapse = due_at(policy, base, rules) + rules.grace
        if lapse < until:
            since = max(since, lapse)
            yield since, until, since - (lapse - base)


def _stretches(policy: str, spans: Iterable[_Span], bad: Sequence[Run], rules: Rules) -> tuple[Stretch, ...]:
    """The uncovered time in one piece where one span's follows upon another's."""
    found: list[_Span] = []
    for since, until, run_since in _lapses(policy, spans, rules):
        if found and found[-1][1] == since:
            since, _, run_since = found.pop()
        found.append((since, until, run_since))
    starts = [run.started for run in bad]
    return tuple(
        Stretch(since, until, tuple(bad[bisect_left(starts, run_since) : bisect_left(starts, until)]))
        for since, until, run_since in found
    )


def _worst_age(spans: Iterable[_Span]) -> timedelta | None:
    """The greatest age of a base; None if there was a time without one."""
    worst = max(until - base for _, until, base in spans)
    return None if any(base == LONG_AGO for _, _, base in spans) else worst


def _by_day(stretches: Iterable[Stretch], days: Sequence[Day], period: Period) -> list[timedelta]:
    """The uncovered time of each day."""
    uncovered = [NOTHING] * len(days)
    for stretch in stretches:
        place = period.place(stretch.start) or 0
        while place < len(days) and days[place].start < stretch.end:
            uncovered[place] += min(stretch.end, days[place].end) - max(stretch.start, days[place].start)
            place += 1
    return uncovered


def _outcomes(
    days: Sequence[Day], start: datetime, uncovered: Sequence[timedelta], bad_days: Collection[int | None]
) -> tuple[DayOutcome, ...]:
    outcomes = []
    for place, day in enumerate(days):
        if day.end <= start:
            outcomes.append(DayOutcome.BEFORE)
        elif not uncovered[place]:
            outcomes.append(DayOutcome.OK)
        else:
            outcomes.append(DayOutcome.FAILED if place in bad_days else DayOutcome.NONE)
    return tuple(outcomes)


def _median(durations: Iterable[timedelta]) -> timedelta | None:
    ordered = sorted(durations)
    half = len(ordered) // 2
    return (ordered[half] + ordered[-half - 1]) / 2 if ordered else None


# --- The site as a whole ---------------------------------------------------------------------------------


def totals(histories: Iterable[ContainerHistory]) -> tuple[timedelta, float | None]:
    """The uncovered time of all containers, and covered by counted time of all; None if no time counts."""
    counted = uncovered = NOTHING
    for history in histories:
        counted, uncovered = counted + history.counted, uncovered + history.uncovered
    return uncovered, (counted - uncovered) / counted if counted else None


def worst_first(histories: Iterable[ContainerHistory]) -> list[ContainerHistory]:
    """Histories by ratio, then by the worst age of a backup, then by name; those without a ratio come last."""

    def key(history: ContainerHistory) -> tuple[float, timedelta, str, int]:
        ratio, container = history.ratio, history.container
        return 2 if ratio is None else ratio, -(history.worst_age or NOTHING), container.name, container.c_id or 0

    return sorted(histories, key=key)
