"""The rules of the past: slots, coverage, gaps, typical duration (SPEC section 9).

Everything here is a pure function of its arguments, as in `policy`: no clock, no database, no output.
Moments are whole microseconds since the epoch (UTC), because a year of a large site is a million of them.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise

from policy import HOUR, MICROSECOND, Container, Past, PastRun, Rules, microseconds, next_weekly_midnight

OK, FAILED, NONE, BEFORE = "ok", "failed", "none", "before"

TYPICAL_RUNS = 5
"""So many succeeded runs before the last one make a duration typical."""
SUSPICIOUS_SHARE = 0.1
"""A last run that took less than this share of a typical duration (of a minute or more) is suspicious."""


@dataclass(frozen=True)
class Coverage:
    """How one container's past looks: one slot a scheduled backup."""

    container: Container
    policy: str
    edges: list[int]
    """Slot k begins at edge k and ends right before edge k + 1; oldest first."""
    outcomes: list[str]
    """`ok`, `failed`, `none` or `before` (the container was made), slot by slot."""
    runs: list[PastRun | None]
    """For each slot the run that settles it: the last one that succeeded, else the last one."""
    longest_gap: timedelta
    """The longest stretch without the start of a succeeded run."""
    median_duration: timedelta | None
    """Of the succeeded runs of the period whose duration is known."""

    @property
    def slots(self) -> int:
        """The slots that count: all but those before the container was made."""
        return len(self.outcomes) - self.outcomes.count(BEFORE)

    @property
    def covered(self) -> int:
        """The slots in which a succeeded run started."""
        return self.outcomes.count(OK)

    @property
    def ratio(self) -> float | None:
        """The share of the slots that is covered; None without slots."""
        return self.covered / self.slots if self.slots else None


def slot_edges(policy: str, start: datetime, end: datetime, rules: Rules) -> list[int]:
    """The edges of a policy's slots in the period from `start` to `end`, oldest first.

    Daily, and a policy of h hours: slots of h hours, back from `end`, as many as fit; the moment of `end`
    belongs to the last one. Weekly: from midnight to midnight of `weekly_day`, for each such midnight in
    the period that is `window_hours` old.
    """
    if policy != "Weekly":
        span = rules.policies.get(policy, rules.window) // MICROSECOND
        last = microseconds(end)
        count = (last - microseconds(start)) // span
        return [last + 1 - k * span for k in range(count, -1, -1)]
    midnights = []
    midnight = next_weekly_midnight(start - MICROSECOND, rules)
    while midnight + rules.window <= end:
        midnights.append(midnight)
        midnight = next_weekly_midnight(midnight, rules)
    return [microseconds(edge) for edge in (*midnights, midnight)]


def cover(container: Container, policy: str, past: Past, edges: list[int], start: datetime, end: datetime) -> Coverage:
    """How a container's past looks over the period from `start` to `end`, with the slots of its policy."""
    count = len(edges) - 1
    runs: list[PastRun | None] = [None] * count
    outcomes = [NONE] * count
    for outcome, group in ((FAILED, past.others), (OK, past.succeeded)):
        for run in sorted(group):
            slot = bisect_right(edges, run[0]) - 1
            if 0 <= slot < count:
                runs[slot], outcomes[slot] = run, outcome
    created = microseconds(container.created) if container.created else None
    if created is not None:
        for slot in range(count):
            if edges[slot + 1] <= created:
                runs[slot], outcomes[slot] = None, BEFORE
    first, last = max(microseconds(start), created or 0), microseconds(end)
    within = [run for run in past.succeeded if microseconds(start) <= run[0] <= last]
    gap = longest_gap(past, first, last) * MICROSECOND
    return Coverage(container, policy, edges, outcomes, runs, gap, _median(_durations(within)))


def covered_ratio(container: Container, past: Past, edges: list[int]) -> float | None:
    """`cover(...).ratio` without the details, for the nightly audit of all containers."""
    first = bisect_right(edges, microseconds(container.created)) - 1 if container.created else 0
    first = max(first, 0)
    slots = len(edges) - 1 - first
    if slots <= 0:
        return None
    covered = {bisect_right(edges, run[0]) - 1 for run in past.succeeded}
    return sum(first <= slot < len(edges) - 1 for slot in covered) / slots


def longest_gap(past: Past, first: int, last: int) -> int:
    """The longest stretch (in microseconds) from `first` to `last` in which no succeeded run started."""
    starts = sorted(run[0] for run in past.succeeded if first < run[0] < last)
    edges = [first, *starts, max(first, last)]
    return max(later - earlier for earlier, later in pairwise(edges))


def typical_duration(past: Past) -> timedelta | None:
    """The median duration of the succeeded runs before the last one; None if there are fewer than five."""
    before = sorted(past.succeeded)[:-1]
    return _median(_durations(before)) if len(_durations(before)) >= TYPICAL_RUNS else None


def suspiciously_short(duration: timedelta | None, typical: timedelta | None) -> bool:
    """Whether the last run took so much less time than usual that its dump may be empty."""
    if duration is None or typical is None or typical < HOUR / 60:
        return False
    return duration < typical * SUSPICIOUS_SHARE


def _durations(runs: list[PastRun]) -> list[int]:
    return [end - start for start, end, _ in runs if end is not None and end >= start]


def _median(durations: list[int]) -> timedelta | None:
    if not durations:
        return None
    ordered = sorted(durations)
    half = len(ordered) // 2
    return (ordered[half] + ordered[-half - 1]) * MICROSECOND / 2
