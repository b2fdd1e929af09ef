"""The rules of the past: slots, coverage, gaps, typical duration (SPEC section 9).

Everything here is a pure function of its arguments, as in `policy`: no clock, no database, no output.
Moments are whole microseconds since the epoch (UTC), because a year of a large site is a million of them.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise

from policy import HOUR, MICROSECOND, Container, Past, Rules, Run, microseconds, next_weekly_midnight

PastRun = tuple[int, int, str]
"""A run in brief: start, end (0 if unknown) and backup_id, as in `Past`."""

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
    """For each slot the run that settles it: the last one that succeeded, else the last one. Only known if the
    past came with the `backup_id`s.
    """
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

    def bounds(self) -> list[int]:
        """Where the slots begin and end, in microseconds, for people: (begin, end], but [begin, end) for Weekly."""
        shift = 0 if self.policy == "Weekly" else 1
        return [edge - shift for edge in self.edges]

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
    failed = (FAILED, past.other_starts, past.other_ends, past.other_ids)
    for outcome, starts, ends, ids in (failed, (OK, past.starts, past.ends, past.ids)):
        for run in sorted(zip(starts, ends, ids or [""] * len(starts), strict=True)):
            slot = bisect_right(edges, run[0]) - 1
            if 0 <= slot < count:
                outcomes[slot] = outcome
                runs[slot] = run if ids else None
    first_slot = _first_slot(container, edges)
    for slot in range(min(first_slot, count)):
        runs[slot], outcomes[slot] = None, BEFORE
    first, last = microseconds(start), microseconds(end)
    durations = [e - s for s, e in zip(past.starts, past.ends, strict=True) if e >= s and first <= s <= last]
    born = first if container.created is None else max(first, microseconds(container.created))
    gap = longest_gap(past, born, last) * MICROSECOND
    return Coverage(container, policy, edges, outcomes, runs, gap, _median(durations))


def covered_ratio(container: Container, past: Past, edges: list[int]) -> float | None:
    """`cover(...).ratio` without the details, for the nightly audit of all containers."""
    first, count = _first_slot(container, edges), len(edges) - 1
    if first >= count:
        return None
    covered = {bisect_right(edges, start) for start in past.starts}  # counted from 1
    return len(covered.intersection(range(first + 1, count + 1))) / (count - first)


def _first_slot(container: Container, edges: list[int]) -> int:
    """The first slot that had not ended when the container was made."""
    if container.created is None:
        return 0
    return max(0, bisect_right(edges, microseconds(container.created)) - 1)


def longest_gap(past: Past, first: int, last: int) -> int:
    """The longest stretch (in microseconds) from `first` to `last` in which no succeeded run started."""
    starts = sorted(start for start in past.starts if first < start < last)
    edges = [first, *starts, max(first, last)]
    return max(later - earlier for earlier, later in pairwise(edges))


def typical_duration(past: Past) -> timedelta | None:
    """The median duration of the succeeded runs before the last one; None if there are fewer than five."""
    if len(past.starts) <= TYPICAL_RUNS:
        return None
    last_start, last_end = max(zip(past.starts, past.ends, strict=True))
    durations = [end - start for start, end in zip(past.starts, past.ends, strict=True) if end >= start]
    if last_end >= last_start:
        durations.remove(last_end - last_start)
    return _median(durations) if len(durations) >= TYPICAL_RUNS else None


def brief(runs: Iterable[Run], since: datetime) -> Past:
    """Those of a container's runs that started since a moment, in brief."""
    past = Past()
    for run in runs:
        if run.started >= since and run.ended is not None and run.error is None:
            past.starts.append(microseconds(run.started))
            past.ends.append(microseconds(run.ended) if run.start_logged else 0)
            past.ids.append(run.backup_id)
        elif run.started >= since:
            past.other_starts.append(microseconds(run.started))
            past.other_ends.append(microseconds(run.ended) if run.ended else 0)
            past.other_ids.append(run.backup_id)
    return past


def suspiciously_short(duration: timedelta | None, typical: timedelta | None) -> bool:
    """Whether the last run took so much less time than usual that its dump may be empty."""
    if duration is None or typical is None or typical < HOUR / 60:
        return False
    return duration < typical * SUSPICIOUS_SHARE


def _median(durations: list[int]) -> timedelta | None:
    if not durations:
        return None
    ordered = sorted(durations)
    half = len(ordered) // 2
    return (ordered[half] + ordered[-half - 1]) * MICROSECOND / 2
