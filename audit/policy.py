"""The rules: from a container's policy and its runs to one verdict (docs/rules.md).

Everything here is a pure function of its arguments: no clock, no database, no settings file, no words for people.
Every datetime is aware UTC unless its name says `local`; `now` is always passed in.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone, tzinfo
from functools import cached_property

from audit.messages import NOTHING_SAID, Meaning, Said

UTC = timezone.utc
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)
"""Stands in for a creation that is unknown or cannot be right."""
_LOCAL_LONG_AGO = LONG_AGO.replace(tzinfo=None)

FUTURE_TOLERANCE = timedelta(minutes=5)
"""How far ahead of `now` a time stamp may lie before it counts as wrong."""
TYPICAL_PERIOD = 30 * DAY
"""The succeeded runs that started so recently make a duration typical."""
LEAST_TYPICAL_RUNS = 3
LEAST_LIMIT = HOUR
SHORTEST_SUSPECTED = timedelta(minutes=1)
"""The least typical duration of which a tenth is suspicious."""


class Outcome(str, enum.Enum):
    """What became of one run."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    RUNNING = "running"
    STALLED = "stalled"


class Status(str, enum.Enum):
    """What a verdict says of a container's backups, in the order in which the rules are tried."""

    NO_POLICY = "no_policy"
    EXEMPT = "exempt"
    FAILED = "failed"
    STALLED = "stalled"
    UNSURE = "unsure"
    OK = "ok"
    NEW = "new"
    RUNNING = "running"
    PAUSED = "paused"
    LATE = "late"
    MISSED = "missed"

    @property
    def severity(self) -> int:
        """0 = OK, 1 = warning, 2 = critical."""
        return _SEVERITY.get(self, 2)


_SEVERITY = dict.fromkeys((Status.EXEMPT, Status.OK, Status.NEW), 0) | dict.fromkeys(
    (Status.UNSURE, Status.RUNNING, Status.PAUSED, Status.LATE), 1
)


class Suspicion(enum.Enum):
    """What is odd about the last good backup, and changes no verdict."""

    SHORT = "short"
    """It took less than a tenth of the typical duration."""
    ENDED_BEFORE_START = "ended_before_start"


@dataclass(frozen=True)
class Rules:
    """The settings that verdicts depend on."""

    zone: tzinfo = UTC
    """That of the DB4Sci host: weekdays, midnights, calendar days, printed times."""
    weekly_day: int = 5  # Monday is 0
    window: timedelta = 24 * HOUR
    grace: timedelta = 3 * HOUR
    max_runtime: timedelta = 12 * HOUR
    policies: Mapping[str, timedelta] = field(default_factory=dict)
    dumps_kept: timedelta | None = None
    """For how long a dump can be restored; None if that is not known."""

    @cached_property
    def policy_names(self) -> dict[str, str]:
        """From the known values of BACKUP_FREQ in lower case to the policies' proper names."""
        names = {"never": "Never", "none": "Never"}
        for name in ("Daily", "Weekly", *self.policies):
            names.setdefault(name.strip().casefold(), name)
        return names

    @property
    def longest_cover(self) -> timedelta:
        """The longest time for which one good backup keeps a container covered."""
        weekly = 7 * DAY + 2 * HOUR  # for clock changes
        return max(weekly + self.window, *self.policies.values(), self.window) + self.grace


@dataclass(frozen=True)
class Moment:
    """The time that an audit is about; made once, and passed down."""

    now: datetime
    latest: datetime
    """The latest stamp that counts."""
    yesterday: datetime
    """24 hours before."""
    hides_later: bool
    """Whether later rows are unseen, as with `--at`; else they are wrong stamps, and reported."""

    @classmethod
    def by_clock(cls, now: datetime) -> Moment:
        """The moment of an audit that runs now, by the server's clock."""
        return cls(now, now + FUTURE_TOLERANCE, now - DAY, hides_later=False)

    @classmethod
    def as_of(cls, now: datetime) -> Moment:
        """A moment that was asked for."""
        return cls(now, now, now - DAY, hides_later=True)


@dataclass(slots=True)
class Run:
    """One backup run: log rows that share `c_id` and `backup_id`, with one start stamp at most."""

    started: datetime
    backup_id: str
    type: str = ""
    ended: datetime | None = None
    said: Said = NOTHING_SAID
    """What its worst message means, and the line that decides."""
    start_logged: bool = True
    """False if only `end` rows are known; `started` is then the moment of the end."""
    url: str = ""
    """Where the log says that the dump went."""
    message: str = ""
    """The messages of its rows, as far as they were kept."""
    is_cut: bool = False
    """Whether a part of one of its messages may be unseen, cut off by DB4Sci or too long to be read whole."""

    @property
    def duration(self) -> timedelta | None:
        """The time that the run took, or None if that is unknown. Never negative."""
        if self.ended is None or not self.start_logged or self.ended < self.started:
            return None
        return self.ended - self.started

    @property
    def failed(self) -> bool:
        """Whether one of its messages is an error."""
        return self.said.meaning is Meaning.ERROR

    @property
    def succeeded(self) -> bool:
        """Whether it ended without an error."""
        return self.ended is not None and not self.failed

    def outcome(self, now: datetime, limit: timedelta) -> Outcome:
        """What became of the run, as far as is known at `now`; `limit` is that of `run_limit`."""
        if self.failed:
            return Outcome.FAILED
        if self.ended is not None:
            return Outcome.SUCCEEDED
        return Outcome.RUNNING if now - self.started < limit else Outcome.STALLED


@dataclass(frozen=True)
class Container:
    """A container, or a site-wide job of the setting `extra_jobs` (then `c_id` is 0)."""

    c_id: int | None
    name: str
    backup_freq: str | None = None
    """The policy as its owner wrote it; None if there is none."""
    engine: str | None = None
    state: str | None = "running"
    owner: str | None = None
    contact: str | None = None
    created: datetime | None = None
    has_metadata: bool = True
    """False if `containers` has no row of this container."""
    deleted: bool = False
    """True if `container_state` has no row of this container."""

    @property
    def is_job(self) -> bool:
        """Whether this is a job of the whole site."""
        return self.c_id == 0


@dataclass(frozen=True)
class Verdict:
    """Whether the backup that a container was promised exists at `now`, and what is left to restore."""

    container: Container
    status: Status
    policy: str
    """The policy's proper name, or its owner's words if it is unknown."""
    now: datetime
    due: datetime | None
    """The deadline for a newer successful run to start; None without a schedule."""
    last_run: Run | None
    """The newest run, whatever became of it."""
    concluded: Run | None
    """The newest run that is not running."""
    last_success: Run | None
    known_good: Run | None
    """The newest succeeded run whose messages are all known to be fine."""
    failures: int
    """The failed and stalled runs since the last success."""
    typical: timedelta | None
    """The typical duration of a run; None if too few are known."""
    limit: timedelta
    """The time after which a run that has not ended is stalled."""
    kept_until: datetime | None
    """Until when the last good dump is kept; None if that is not known."""

    @property
    def severity(self) -> int:
        """0 = OK, 1 = warning, 2 = critical."""
        return self.status.severity

    @property
    def restorable(self) -> Run | None:
        """The last good backup; of an unsure container the last that is known to be good."""
        return self.known_good if self.status is Status.UNSURE else self.last_success

    @property
    def line(self) -> str | None:
        """The line of a message that led to the status; None if none did."""
        run = {Status.FAILED: self.concluded, Status.UNSURE: self.last_success}.get(self.status)
        return None if run is None else run.said.line

    def outcome(self, run: Run) -> Outcome:
        """What became of one of the container's runs."""
        return run.outcome(self.now, self.limit)

    @property
    def suspicion(self) -> Suspicion | None:
        """What is odd about the last good backup."""
        run, typical = self.last_success, self.typical
        if run is None or run.ended is None:
            return None
        if run.ended < run.started:
            return Suspicion.ENDED_BEFORE_START
        if run.duration is None or typical is None or typical < SHORTEST_SUSPECTED:
            return None
        return Suspicion.SHORT if run.duration * 10 < typical else None


def newest_first(runs: Iterable[Run]) -> list[Run]:
    """Runs by their starts, the newest first."""
    return sorted(runs, key=lambda run: (run.started, run.backup_id), reverse=True)


def utc_from_local(local: datetime, zone: tzinfo) -> datetime:
    """The moment (aware UTC) that a naive local time of `zone` means; one that occurs twice is its first occurrence."""
    if zone is UTC:
        return LONG_AGO + (local - _LOCAL_LONG_AGO)  # `replace` takes much longer, and this is for every row
    return local.replace(tzinfo=zone, fold=0).astimezone(UTC)


def known_policy(text: str | None, rules: Rules) -> str | None:
    """The proper name of a backup policy, or None if `text` is not a known value.

    Letter case and surrounding blanks do not matter. `None` (the word) is `Never`.
    """
    return None if text is None else rules.policy_names.get(text.strip().casefold())


def due_at(policy: str, base: datetime, rules: Rules) -> datetime:
    """The deadline for a run newer than `base` to start, for a scheduled policy."""
    if policy == "Daily":
        return base + rules.window
    if policy == "Weekly":
        return _next_weekly_midnight(base, rules) + rules.window
    return base + rules.policies[policy]


def _next_weekly_midnight(base: datetime, rules: Rules) -> datetime:
    """The first midnight of `weekly_day` in the host's zone strictly after `base`."""
    local = base.astimezone(rules.zone)
    day = datetime(local.year, local.month, local.day)
    day += timedelta(days=(rules.weekly_day - day.weekday()) % 7)
    midnight = utc_from_local(day, rules.zone)
    return midnight if midnight > base else utc_from_local(day + timedelta(days=7), rules.zone)


def creation(container: Container, now: datetime) -> datetime:
    """When a container was created, if that is known and can be right; else `LONG_AGO`."""
    if container.created is None or container.created > now + FUTURE_TOLERANCE:
        return LONG_AGO
    return container.created


def typical_duration(runs: Iterable[Run], now: datetime) -> timedelta | None:
    """The upper quartile of the known durations of the last 30 days' succeeded runs; None if there are too few.

    The quartile, because a fault that makes dumps short must not soon look normal.
    """
    since = now - TYPICAL_PERIOD
    durations = (run.duration for run in runs if run.succeeded and since <= run.started <= now)
    known = sorted(duration for duration in durations if duration is not None)
    return known[3 * len(known) // 4] if len(known) >= LEAST_TYPICAL_RUNS else None


def run_limit(typical: timedelta | None, rules: Rules) -> timedelta:
    """How long after its start a run that has not ended counts as running; from then on it is stalled."""
    if typical is None:
        return rules.max_runtime
    return min(max(10 * typical, LEAST_LIMIT), max(rules.max_runtime, 2 * typical))


def judge(container: Container, runs: Sequence[Run], now: datetime, rules: Rules) -> Verdict:
    """The verdict on one container at `now`, from its runs in any order."""
    typical = typical_duration(runs, now)
    limit = run_limit(typical, rules)
    newest = concluded = success = known_good = None
    failures = 0
    for run in newest_first(runs):
        outcome = run.outcome(now, limit)
        newest = newest or run
        if outcome is Outcome.RUNNING:
            continue
        concluded = concluded or run
        if outcome is Outcome.SUCCEEDED:
            success = success or run
            if run.said.meaning is Meaning.FINE:
                known_good = run
                break
        elif success is None:
            failures += 1
    policy, due, kept_until = known_policy(container.backup_freq, rules), None, None
    if policy is not None and policy != "Never":
        due = due_at(policy, success.started if success else creation(container, now), rules)
    if success and rules.dumps_kept is not None and not container.is_job:
        kept_until = success.started + rules.dumps_kept
    return Verdict(
        container=container,
        status=_status(container, policy, due, (newest, concluded, success), now, rules),
        policy=policy or (container.backup_freq or "").strip(),
        now=now,
        due=due,
        last_run=newest,
        concluded=concluded,
        last_success=success,
        known_good=known_good,
        failures=failures,
        typical=typical,
        limit=limit,
        kept_until=kept_until,
    )


def _status(
    container: Container,
    policy: str | None,
    due: datetime | None,
    runs: tuple[Run | None, Run | None, Run | None],
    now: datetime,
    rules: Rules,
) -> Status:
    """The first status that applies."""
    newest, concluded, success = runs
    if policy is None:
        return Status.NO_POLICY
    if due is None:
        return Status.EXEMPT
    if concluded is not None and not concluded.succeeded:
        return Status.FAILED if concluded.failed else Status.STALLED
    if now < due:
        if success is None:
            return Status.NEW
        return Status.OK if success.said.meaning is Meaning.FINE else Status.UNSURE
    if newest is not concluded:
        return Status.RUNNING
    if (container.state or "").strip().casefold() != "running":
        return Status.PAUSED
    return Status.LATE if now < due + rules.grace else Status.MISSED
