"""Properties of the past (SPEC section 9): `history` and its reads against a naive reading of the rules.

The oracle of this file works with datetimes and plain loops, and asks of every slot and every run anew what
the specification says of it. It shares no code with the program.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta, timezone
from itertools import pairwise
from statistics import median
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, assume, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy import text

from admin_db import _LocalClock, create_tables, make_engine
from history import Coverage, PastRun, cover, covered_ratio, slot_edges, suspiciously_short, typical_duration
from models import BackupLog
from policy import Container, Past, Rules, utc_from_local
from tests.builders import Site
from tests.postgres import clear

UTC = timezone.utc
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
TICK = timedelta(microseconds=1)
NOW = datetime(2026, 3, 14, 7, 0, tzinfo=UTC)

ZONES = (
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "America/Havana",  # midnight occurs twice in autumn, and is left out in spring
    "America/Sao_Paulo",  # left out midnight until 2018
    "Africa/Cairo",  # leaves out midnight in spring, and returns to 23:00 in autumn
    "Australia/Lord_Howe",  # half an hour of daylight saving
    "Asia/Kathmandu",
    "Pacific/Chatham",
)
WITH_DST = [
    ("Europe/Berlin", 2026),
    ("America/Sao_Paulo", 2018),
    ("Australia/Lord_Howe", 2026),
    ("America/Havana", 2026),
]
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


# --- The oracle ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Backup:
    """A run as the oracle sees it."""

    started: datetime
    ended: datetime | None
    good: bool
    timed: bool = True
    """Whether its duration is known."""


@dataclass(frozen=True)
class Slot:
    """The moments from one to another; which of these two belongs to it depends on the policy."""

    start: datetime
    end: datetime
    weekly: bool

    def __contains__(self, when: datetime) -> bool:
        return self.start <= when < self.end if self.weekly else self.start < when <= self.end

    def is_before(self, created: datetime) -> bool:
        """Whether it ended before that moment: all of its moments lie earlier."""
        return self.end <= created if self.weekly else self.end < created


def earliest(local: datetime, zone: str) -> datetime:
    """The first moment at which the clocks of a zone show a local time, or have just left it out."""
    guess = local.replace(tzinfo=UTC)
    offsets = sorted(
        {(guess + n * HOUR).astimezone(ZoneInfo(zone)).utcoffset() or timedelta(0) for n in range(-26, 27)}
    )
    moments = sorted(guess - offset for offset in offsets)
    shown = [when for when in moments if when.astimezone(ZoneInfo(zone)).replace(tzinfo=None) == local]
    if shown:
        return shown[0]
    later = [when for when in moments if when.astimezone(ZoneInfo(zone)).replace(tzinfo=None) > local]
    return later[0]


def first_moment(day: date, zone: str) -> datetime:
    return earliest(datetime(day.year, day.month, day.day), zone)


def weekly_slots(start: datetime, end: datetime, zone: str, weekday: int, window: timedelta) -> Iterator[Slot]:
    day = (start - 2 * DAY).date()
    while day <= (end + 2 * DAY).date():
        if day.weekday() == weekday:
            midnight = first_moment(day, zone)
            if start <= midnight and midnight + window <= end:
                yield Slot(midnight, first_moment(day + 7 * DAY, zone), weekly=True)
        day += DAY


def hourly_slots(start: datetime, end: datetime, length: timedelta) -> list[Slot]:
    slots: list[Slot] = []
    while end - (len(slots) + 1) * length >= start:
        slots.append(Slot(end - (len(slots) + 1) * length, end - len(slots) * length, weekly=False))
    return slots[::-1]


def outcome_of(slot: Slot, runs: list[Backup], created: datetime | None) -> str:
    if created is not None and slot.is_before(created):
        return "before"
    inside = [run for run in runs if run.started in slot]
    if any(run.good for run in inside):
        return "ok"
    return "failed" if inside else "none"


def gap_of(runs: list[Backup], created: datetime | None, start: datetime, end: datetime) -> timedelta:
    since = start if created is None or created < start else created
    longest = timedelta(0)
    while since < end:
        following = [run.started for run in runs if run.good and since < run.started < end]
        until = min(following, default=end)
        longest = max(longest, until - since)
        since = until
    return longest


def expected(slots: list[Slot], runs: list[Backup], created: datetime | None, period: tuple[datetime, datetime]) -> Any:
    """What the JSON says of a container, but for its name, number and policy."""
    outcomes = [outcome_of(slot, runs, created) for slot in slots]
    counted = [outcome for outcome in outcomes if outcome != "before"]
    covered = len([outcome for outcome in counted if outcome == "ok"])
    start, end = period
    durations = [
        (run.ended - run.started) // TICK
        for run in runs
        if run.good and run.timed and run.ended is not None and start <= run.started <= end
    ]
    return {
        "slots": len(counted),
        "covered": covered,
        "ratio": covered / len(counted) if counted else None,
        "longest_gap_seconds": gap_of(runs, created, start, end).total_seconds(),
        "median_duration_seconds": median(durations) / 10**6 if durations else None,
        "outcomes": outcomes,
    }


# --- Pasts of all kinds --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A container, its past and the period that is asked about."""

    policy: str
    runs: list[Backup]
    created: datetime | None
    start: datetime
    end: datetime
    zone: str
    weekday: int
    window: timedelta
    special: timedelta

    @property
    def rules(self) -> Rules:
        zone = UTC if self.zone == "UTC" else ZoneInfo(self.zone)
        return Rules(zone=zone, weekly_day=self.weekday, window=self.window, policies={"Special": self.special})

    def slots(self) -> list[Slot]:
        if self.policy == "Weekly":
            return list(weekly_slots(self.start, self.end, self.zone, self.weekday, self.window))
        return hourly_slots(self.start, self.end, self.special if self.policy == "Special" else self.window)

    def expected(self) -> Any:
        return expected(self.slots(), self.runs, self.created, (self.start, self.end))

    def edges(self) -> list[int]:
        return slot_edges(self.policy, self.start, self.end, self.rules)

    def container(self) -> Container:
        return Container(7, "sales", policy=self.policy, created=self.created)

    def coverage(self) -> Coverage:
        return cover(self.container(), self.policy, in_brief(self.runs), self.edges(), self.start, self.end)


def micros(when: datetime) -> int:
    return (when - EPOCH) // TICK


def brief(run: Backup) -> PastRun:
    known = run.ended is not None and run.timed
    return micros(run.started), micros(run.ended) if known and run.ended else 0, ""


def in_brief(runs: list[Backup]) -> Past:
    past = Past()
    for run in runs:
        start, end, backup_id = brief(run)
        (past.starts if run.good else past.other_starts).append(start)
        (past.ends if run.good else past.other_ends).append(end)
        (past.ids if run.good else past.other_ids).append(backup_id)
    return past


def found(coverage: Coverage) -> Any:
    """A coverage as the JSON shows it."""
    duration = coverage.median_duration
    return {
        "slots": coverage.slots,
        "covered": coverage.covered,
        "ratio": coverage.ratio,
        "longest_gap_seconds": coverage.longest_gap.total_seconds(),
        "median_duration_seconds": duration.total_seconds() if duration is not None else None,
        "outcomes": coverage.outcomes,
    }


@st.composite
def cases(draw: st.DrawFn, policies: tuple[str, ...] = ("Daily", "Weekly", "Special")) -> Case:
    end = draw(st.datetimes(datetime(2017, 1, 1), datetime(2030, 1, 1), timezones=st.just(UTC)))
    end = draw(st.sampled_from([end, end.replace(minute=0, second=0, microsecond=0)]))
    days = draw(st.sampled_from([1, 2, 7, 8, 14, 21, 30, 45]))
    frame = Case(
        policy=draw(st.sampled_from(policies)),
        runs=[],
        created=None,
        start=end - days * DAY,
        end=end,
        zone=draw(st.sampled_from(ZONES)),
        weekday=draw(st.integers(0, 6)),
        window=draw(st.sampled_from([5, 24, 30])) * HOUR,
        special=draw(st.sampled_from([6, 36, 100, 744])) * HOUR,
    )
    moments = instants(frame)
    created = draw(st.none() | moments)
    # some start at the same moment only in the test that is about that
    runs = st.lists(backups(moments), max_size=25, unique_by=lambda run: run.started)
    return replace(frame, created=created, runs=draw(runs))


def instants(case: Case) -> st.SearchStrategy[datetime]:
    """Moments in and around the period, most often at the edges of slots."""
    span = (case.end - case.start) // TICK
    anywhere = st.integers(-3 * span // 10, span).map(lambda n: case.start + n * TICK)
    edges = [edge for slot in case.slots() for edge in (slot.start, slot.end)] or [case.start]
    edges = [edge for edge in (*edges, case.start, case.end) if edge <= case.end]
    near = st.builds(lambda edge, n: min(edge + n * TICK, case.end), st.sampled_from(edges), st.integers(-1, 1))
    return near | anywhere


@st.composite
def backups(draw: st.DrawFn, moments: st.SearchStrategy[datetime]) -> Backup:
    """Runs that ended, never ended, or of which only the end is known."""
    started = draw(moments)
    kind = draw(st.sampled_from(["ended", "ended", "unended", "end only"]))
    ended = started + draw(st.integers(0, 10**5)) * timedelta(seconds=1)
    good = kind != "unended" and draw(st.booleans())
    if kind == "ended":
        return Backup(started, ended, good)
    return Backup(started, started if kind == "end only" else None, good, timed=False)


def distinct_starts(runs: list[Backup]) -> bool:
    return len({run.started for run in runs}) == len(runs)


# --- cover ---------------------------------------------------------------------------------------------


@given(case=cases())
@hypothesis_settings(max_examples=400)
def test_a_coverage_is_what_the_rules_say(case: Case) -> None:
    assert found(case.coverage()) == case.expected()


@given(case=cases(), twins=st.integers(1, 3))
def test_runs_that_start_at_the_same_moment(case: Case, twins: int) -> None:
    assume(case.runs)
    again = []
    for run in case.runs[:twins]:
        again.append(Backup(run.started, run.started + HOUR, run.good))
        again.append(Backup(run.started, run.started if run.good else None, run.good, timed=False))
    twice = replace(case, runs=[*case.runs, *again])
    assert found(twice.coverage()) == twice.expected()


@given(case=cases())
def test_the_slots_are_those_of_the_rules(case: Case) -> None:
    shift = 0 if case.policy == "Weekly" else 1  # a slot ends with the moment before the next edge
    slots = case.slots()
    edges = case.edges()
    assert [edge - shift for edge in edges[:-1]] == [micros(slot.start) for slot in slots]
    assert [edge - shift for edge in edges[1:]] == [micros(slot.end) for slot in slots]


@given(case=cases())
def test_covered_never_exceeds_the_slots(case: Case) -> None:
    coverage = case.coverage()
    assert 0 <= coverage.covered <= coverage.slots <= len(coverage.outcomes) == len(coverage.edges) - 1
    assert coverage.ratio is None or 0 <= coverage.ratio <= 1
    assert timedelta(0) <= coverage.longest_gap <= case.end - case.start
    assert coverage.median_duration is None or coverage.median_duration >= timedelta(0)


@given(case=cases(), data=st.data())
def test_a_further_success_never_lowers_a_ratio_nor_lengthens_a_gap(case: Case, data: st.DataObject) -> None:
    more = data.draw(backups(instants(case)))
    extended = replace(case, runs=[*case.runs, replace(more, good=True, ended=more.started, timed=True)])
    assume(distinct_starts(extended.runs))
    before, after = case.coverage(), extended.coverage()
    assert after.slots == before.slots
    assert after.covered >= before.covered
    assert after.longest_gap <= before.longest_gap


@given(case=cases(), data=st.data())
def test_a_further_failure_changes_neither_ratio_nor_gap(case: Case, data: st.DataObject) -> None:
    more = data.draw(backups(instants(case)))
    extended = replace(case, runs=[*case.runs, replace(more, good=False)])
    assume(distinct_starts(extended.runs))
    before, after = case.coverage(), extended.coverage()
    assert (after.ratio, after.longest_gap, after.median_duration) == (
        before.ratio,
        before.longest_gap,
        before.median_duration,
    )


@given(case=cases(), shuffle=st.randoms())
def test_the_order_of_the_runs_does_not_matter(case: Case, shuffle: random.Random) -> None:
    shuffled = list(case.runs)
    shuffle.shuffle(shuffled)
    assert replace(case, runs=shuffled).coverage() == case.coverage()


@given(case=cases(), where=st.floats(0, 1, exclude_min=True, exclude_max=True))
def test_a_perfect_past_is_covered_wholly_and_no_past_not_at_all(case: Case, where: float) -> None:
    perfect = []
    for slot in case.slots():
        started = min(slot.start + TICK + (slot.end - slot.start - 2 * TICK) * where, case.end)
        assume(started in slot)
        perfect.append(Backup(started, started, good=True))
    assume(perfect)
    assume(case.created is None or not case.slots()[-1].is_before(case.created))
    assert replace(case, runs=perfect).coverage().ratio == 1
    assert replace(case, runs=[]).coverage().ratio == 0
    assert replace(case, runs=[replace(run, good=False) for run in perfect]).coverage().ratio == 0


@given(case=cases())
@hypothesis_settings(max_examples=300)
def test_the_ratio_of_the_nightly_audit_is_that_of_the_history(case: Case) -> None:
    assert covered_ratio(case.container(), in_brief(case.runs), case.edges()) == case.coverage().ratio


@given(case=cases())
def test_the_run_of_a_slot_is_the_last_one_that_settles_it(case: Case) -> None:
    coverage = case.coverage()
    for slot, outcome, run in zip(case.slots(), coverage.outcomes, coverage.runs, strict=True):
        inside = [one for one in case.runs if one.started in slot]
        if outcome in ("none", "before"):
            assert run is None
        else:
            last = max((one for one in inside if one.good is (outcome == "ok")), key=lambda one: one.started)
            assert run == brief(last)


@given(case=cases())
def test_a_past_without_backup_ids_tells_the_same_but_for_the_runs(case: Case) -> None:
    bare = replace(in_brief(case.runs), ids=[], other_ids=[])
    coverage = cover(case.container(), case.policy, bare, case.edges(), case.start, case.end)
    assert coverage.runs == [None] * len(coverage.outcomes)
    assert replace(coverage, runs=case.coverage().runs) == case.coverage()


# --- A year of slots -----------------------------------------------------------------------------------


def year(zone: str, number: int) -> tuple[datetime, datetime]:
    return first_moment(date(number, 1, 1), zone), first_moment(date(number + 1, 1, 1), zone)


@pytest.mark.parametrize(("zone", "number"), WITH_DST)
@pytest.mark.parametrize("weekday", range(7))
def test_a_year_over_daylight_saving_has_one_weekly_slot_a_week(zone: str, number: int, weekday: int) -> None:
    start, end = year(zone, number)
    rules = Rules(zone=ZoneInfo(zone), weekly_day=weekday)
    edges = slot_edges("Weekly", start, end, rules)
    local = [(EPOCH + edge * TICK).astimezone(ZoneInfo(zone)).date() for edge in edges]
    days = [date(number, 1, 1) + n * DAY for n in range((date(number + 1, 1, 1) - date(number, 1, 1)).days)]
    weeks = [day for day in days if day.weekday() == weekday]
    assert local == [*weeks, weeks[-1] + 7 * DAY]
    assert edges == [micros(first_moment(day, zone)) for day in local]
    lengths = {later - earlier for earlier, later in pairwise(edges)}
    assert len(lengths) == 3  # most are 168 hours, and one each is shorter and longer by the change of clocks


@pytest.mark.parametrize(("zone", "number"), WITH_DST)
@pytest.mark.parametrize("policy", ["Daily", "Hourly"])
def test_a_year_over_daylight_saving_has_slots_of_equal_length(zone: str, number: int, policy: str) -> None:
    start, end = year(zone, number)
    edges = slot_edges(policy, start, end, Rules(zone=ZoneInfo(zone), policies={"Hourly": HOUR}))
    assert len(edges) - 1 == (end - start) // (DAY if policy == "Daily" else HOUR)
    assert {later - earlier for earlier, later in pairwise(edges)} == {(DAY if policy == "Daily" else HOUR) // TICK}
    assert edges[-1] == micros(end) + 1


@pytest.mark.parametrize(("zone", "number"), WITH_DST)
def test_a_nightly_backup_by_the_local_clock_covers_a_year_over_daylight_saving(zone: str, number: int) -> None:
    start, end = year(zone, number)
    nights = [start.date() + n * DAY for n in range(-1, 366)]
    starts = [earliest(datetime(night.year, night.month, night.day, 20, 7), zone) for night in nights]
    past = in_brief([Backup(started, started + HOUR, good=True) for started in starts if start <= started <= end])
    rules = Rules(zone=ZoneInfo(zone), weekly_day=6)
    for policy in ("Daily", "Weekly"):
        edges = slot_edges(policy, start, end, rules)
        coverage = cover(Container(7, "sales", policy=policy), policy, past, edges, start, end)
        assert coverage.ratio == 1
        assert coverage.longest_gap <= 25 * HOUR


@given(
    zone=st.sampled_from(ZONES),
    weekday=st.integers(0, 6),
    end=st.datetimes(datetime(2010, 1, 1), datetime(2035, 1, 1), timezones=st.just(UTC)),
    days=st.integers(1, 800),
)
def test_weekly_slots_follow_each_other_without_overlap_or_hole(
    zone: str, weekday: int, end: datetime, days: int
) -> None:
    edges = slot_edges("Weekly", end - days * DAY, end, Rules(zone=ZoneInfo(zone), weekly_day=weekday))
    lengths = [(later - earlier) * TICK for earlier, later in pairwise(edges)]
    assert all(7 * DAY - 2 * HOUR <= length <= 7 * DAY + 2 * HOUR for length in lengths)
    assert abs(len(lengths) - days / 7) <= 2


@given(
    zone=st.sampled_from(ZONES),
    end=st.datetimes(datetime(2015, 1, 1), datetime(2030, 1, 1), timezones=st.just(UTC)),
    days=st.integers(7, 60),
    policy=st.sampled_from(["Daily", "Weekly", "Special"]),
    offset=st.floats(0, 1, exclude_max=True),
)
def test_every_moment_of_the_slots_lies_in_exactly_one(
    zone: str, end: datetime, days: int, policy: str, offset: float
) -> None:
    rules = Rules(zone=ZoneInfo(zone), policies={"Special": 7 * HOUR})
    edges = slot_edges(policy, end - days * DAY, end, rules)
    assume(len(edges) > 1)
    when = edges[0] + int((edges[-1] - edges[0]) * offset)
    holding = [k for k in range(len(edges) - 1) if edges[k] <= when < edges[k + 1]]
    assert len(holding) == 1
    container = Container(7, "sales", policy=policy)
    coverage = cover(container, policy, Past([when], [when], [""]), edges, end - days * DAY, end)
    assert [k for k, outcome in enumerate(coverage.outcomes) if outcome == "ok"] == holding


# --- Durations -----------------------------------------------------------------------------------------


@given(
    seconds=st.lists(st.none() | st.integers(0, 100_000), max_size=14),
    shuffle=st.randoms(),
)
def test_the_typical_duration_is_the_median_of_five_or_more_before_the_last(
    seconds: list[int | None], shuffle: random.Random
) -> None:
    runs = [
        Backup(NOW + n * DAY, NOW + n * DAY + timedelta(seconds=took or 0), good=True) for n, took in enumerate(seconds)
    ]
    runs = [replace(run, timed=took is not None) for run, took in zip(runs, seconds, strict=True)]
    shuffle.shuffle(runs)
    known = [took for took in seconds[:-1] if took is not None]
    typical = typical_duration(in_brief(runs))
    assert typical == (timedelta(seconds=median(known)) if len(known) >= 5 else None)


@given(took=st.integers(0, 10**10), typical=st.integers(0, 10**11))
@example(took=6 * 10**6 - 1, typical=6 * 10**7)
@example(took=6 * 10**6, typical=6 * 10**7)
@example(took=0, typical=6 * 10**7 - 1)
@example(took=0, typical=0)
def test_suspicious_is_less_than_a_tenth_of_a_typical_minute_or_more(took: int, typical: int) -> None:
    expected = typical >= 60 * 10**6 and 10 * took < typical
    assert suspiciously_short(took * TICK, typical * TICK) is expected


def test_what_is_not_known_is_not_suspicious() -> None:
    assert not suspiciously_short(None, HOUR)
    assert not suspiciously_short(timedelta(0), None)


# --- Local time ----------------------------------------------------------------------------------------

TRANSITIONS = [
    ("Europe/Berlin", datetime(2026, 3, 29, 2)),
    ("Europe/Berlin", datetime(2026, 10, 25, 2)),
    ("America/New_York", datetime(2026, 11, 1, 1)),
    ("America/Havana", datetime(2026, 3, 8)),
    ("America/Havana", datetime(2026, 11, 1)),
    ("America/Sao_Paulo", datetime(2018, 11, 4)),
    ("America/Sao_Paulo", datetime(2018, 2, 17, 23)),
    ("Africa/Cairo", datetime(2026, 4, 24)),
    ("Africa/Cairo", datetime(2026, 10, 29, 23)),
    ("Australia/Lord_Howe", datetime(2026, 4, 5, 1, 30)),
    ("Australia/Lord_Howe", datetime(2026, 10, 4, 2)),
    ("Pacific/Apia", datetime(2011, 12, 30)),  # left out the whole day
    ("Asia/Pyongyang", datetime(2015, 8, 14, 23, 30)),
]


def local_times() -> st.SearchStrategy[tuple[str, list[datetime]]]:
    """A zone, and local times within two days of a change of its clocks."""
    seconds = st.integers(-2 * 86400, 2 * 86400) | st.integers(-7200, 7200)
    return st.tuples(st.sampled_from(TRANSITIONS), st.lists(seconds, min_size=1, max_size=8)).map(
        lambda pair: (pair[0][0], [pair[0][1] + timedelta(seconds=n) for n in pair[1]])
    )


def naive_micros(local: datetime) -> int:
    return micros(local.replace(tzinfo=UTC))


@given(where=local_times())
@hypothesis_settings(max_examples=400)
def test_the_fast_clock_agrees_with_the_exact_one(where: tuple[str, list[datetime]]) -> None:
    zone, times = where
    clock = _LocalClock(ZoneInfo(zone))
    for local in times:
        assert clock.utc(naive_micros(local)) == micros(utc_from_local(local, ZoneInfo(zone)))


@given(where=local_times())
@hypothesis_settings(max_examples=400)
def test_the_fast_clock_agrees_about_the_end_of_a_run(where: tuple[str, list[datetime]]) -> None:
    zone, times = where
    clock = _LocalClock(ZoneInfo(zone))
    for start in times:
        started = utc_from_local(start, ZoneInfo(zone))
        for end in times:
            expected = utc_from_local(end, ZoneInfo(zone), started)
            assert clock.utc(naive_micros(end), not_before=naive_micros(start)) == micros(expected)


def test_the_fast_clock_agrees_hour_by_hour_over_decades() -> None:
    for zone in ZONES:
        clock = _LocalClock(ZoneInfo(zone))
        for hours in range(0, 60 * 365 * 24, 37):
            local = datetime(1975, 1, 1) + hours * HOUR
            assert clock.utc(naive_micros(local)) == micros(utc_from_local(local, ZoneInfo(zone))), (zone, local)


# --- End to end, on both databases ---------------------------------------------------------------------

GOOD_MESSAGES = (
    "",
    None,
    "\nExecuted Postgres dump_all commands:\npg_dump --dbname failed-trials --username pgdba  -F c -f /var/l",
)
BAD_MESSAGES = (
    "pg_dump: error: query failed: ERROR:  permission denied for table visits",
    "MariaDB Backup error.  Container: sales\nError message: upload failed: - to s3://...",
)


@dataclass(frozen=True)
class LoggedRun:
    """A run as it is written to the log: which rows, when, and with which messages."""

    c_id: int
    name: str
    started: datetime
    ended: datetime
    rows: str
    """`start`, `end` or `both`."""
    messages: tuple[str | None, str | None]


@dataclass(frozen=True)
class LoggedSite:
    """A site of three containers, an extra job, and what its log holds."""

    now: datetime
    zone: str
    weekday: int
    days: int
    created: dict[int, datetime | None]
    policies: dict[int, str]
    runs: list[LoggedRun]
    order: random.Random

    def schedule(self, c_id: int) -> list[Slot]:
        start = self.now - self.days * DAY
        if self.policies[c_id] == "Weekly":
            return list(weekly_slots(start, self.now, self.zone, self.weekday, DAY))
        return hourly_slots(start, self.now, 36 * HOUR if self.policies[c_id] == "Special" else DAY)

    def backups(self, c_id: int) -> Iterator[Backup]:
        """The runs of a container that the rules see in the period."""
        for run in self.runs:
            if run.c_id == c_id:
                seen = run_as_read(run, self.zone, self.now)
                if seen is not None and seen.started >= self.now - self.days * DAY:
                    yield seen

    def expected(self) -> dict[int, Any]:
        period = (self.now - self.days * DAY, self.now)
        return {
            c_id: {
                "policy": policy,
                **expected(self.schedule(c_id), list(self.backups(c_id)), self.created[c_id], period),
            }
            for c_id, policy in self.policies.items()
        }


def run_as_read(run: LoggedRun, zone: str, now: datetime) -> Backup | None:
    """What a reader makes of the rows of a run: local times, as of `now`; None if there is nothing to be seen."""
    start = earliest(in_zone(run.started, zone), zone) if run.rows != "end" else None
    end = earliest(in_zone(run.ended, zone), zone) if run.rows != "start" else None
    if start is not None and end is not None and end < start:
        end = run.ended  # the second occurrence, else it would end before it started
    if start is not None and start > now:
        start = None
    if end is not None and end > now:
        end = None
    if start is None and end is None:
        return None
    first = run.messages[0] if start is not None else None
    last = run.messages[1] if end is not None else None
    good = end is not None and first not in BAD_MESSAGES and last not in BAD_MESSAGES
    began = start or end
    assert began is not None
    return Backup(began, end, good, timed=start is not None)


def in_zone(when: datetime, zone: str) -> datetime:
    return when.astimezone(ZoneInfo(zone)).replace(tzinfo=None, fold=0)


@st.composite
def logged_sites(draw: st.DrawFn) -> LoggedSite:
    days = draw(st.sampled_from([3, 8, 30]))
    now = draw(st.sampled_from([NOW, datetime(2026, 11, 2, 7, 0, tzinfo=UTC)]))
    start = now - days * DAY
    seconds = st.integers(-3600 * 30, days * 86400).map(lambda n: start + timedelta(seconds=n))
    edges = st.builds(lambda k, n: now - k * DAY + timedelta(seconds=n), st.integers(0, days), st.integers(-1, 1))
    moments = (seconds | edges).filter(lambda when: when <= now)
    lengths = st.integers(0, 3600 * 40).map(lambda n: timedelta(seconds=n))
    messages = st.sampled_from([*GOOD_MESSAGES, *GOOD_MESSAGES, *BAD_MESSAGES])
    created = st.none() | moments
    names = {1: "sales", 2: "stock", 3: "archive", 4: "offsite"}
    policies = {1: "Daily", 2: "Weekly", 3: "Special", 0: "Daily"}

    def logged(
        c_id: int, started: datetime, length: timedelta, rows: str, said: tuple[str | None, str | None]
    ) -> LoggedRun:
        return LoggedRun(c_id, names.get(c_id, "offsite"), started, started + length, rows, said)

    ways = st.sampled_from(["both", "both", "both", "start", "end"])
    runs = st.builds(logged, st.sampled_from([0, 1, 2, 3]), moments, lengths, ways, st.tuples(messages, messages))
    return LoggedSite(
        now=now,
        zone=draw(st.sampled_from(["UTC", "America/Havana", "Australia/Lord_Howe", "Europe/Berlin"])),
        weekday=draw(st.integers(0, 6)),
        days=days,
        created={0: None, **{c_id: draw(created) for c_id in (1, 2, 3)}},
        policies=policies,
        runs=draw(st.lists(runs, max_size=40, unique_by=lambda run: (run.c_id, run.started))),
        order=draw(st.randoms(use_true_random=False)),
    )


def emptied(site: Site) -> Site:
    if site.database is not None:
        clear(site.database)
    else:
        with site.session() as session:
            for table in ("containers", "container_state", "backups"):
                session.execute(text(f"DELETE FROM {table}"))
    return site


def write(site: Site, logged: LoggedSite) -> None:
    """Write the site's rows; those of the log in an order of their own."""
    for c_id, name in ((1, "sales"), (2, "stock"), (3, "archive")):
        site.container(name, logged.policies[c_id], c_id=c_id, created=logged.created[c_id])
    rows = []
    for number, run in enumerate(logged.runs):
        for state, when, message in (
            ("start", run.started, run.messages[0]),
            ("end", run.ended, run.messages[1]),
        ):
            if run.rows in (state, "both"):
                key = {"c_id": run.c_id, "name": run.name, "backup_id": f"run {number}", "backup_type": "Daily"}
                rows.append(BackupLog(**key, state=state, ts=in_zone(when, logged.zone), err_msg=message))
    logged.order.shuffle(rows)
    with site.session() as session:
        session.add_all(rows)
    site.config(
        db_timezone=logged.zone,
        weekly_day=WEEKDAYS[logged.weekday],
        policies={"Special": 36},
        extra_jobs={"offsite": "Daily"},
    )


def told(site: Site, now: datetime, days: int) -> Any:
    result = site.audit("--history", str(days), "--at", now.isoformat(), "--json")
    assert (result.status, result.err) == (0, "")
    return json.loads(result.out)


@given(logged=logged_sites())
@hypothesis_settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_both_databases_tell_what_the_rules_say(
    site: Site, tmp_path_factory: pytest.TempPathFactory, logged: LoggedSite
) -> None:
    lite = _sqlite(tmp_path_factory)
    by_id = {}
    for place in (site, lite):
        write(emptied(place), logged)
        by_id[place is site] = told(place, logged.now, logged.days)
    lite.engine.dispose()
    assert by_id[True] == by_id[False]
    facts = {
        container["c_id"]: {key: container[key] for key in container if key not in ("name", "c_id")}
        for container in by_id[True]["containers"]
    }
    assert facts == logged.expected()


def _sqlite(folders: pytest.TempPathFactory) -> Site:
    folder = folders.mktemp("sqlite")
    url = f"sqlite:///{folder / 'admin.db'}"
    engine = make_engine(url)
    create_tables(engine)
    return Site(engine, {"database_url": url}, folder)
