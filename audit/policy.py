"""The rules: from a container's policy and its runs to one verdict (SPEC section 2).

Everything here is a pure function of its arguments: no clock, no database, no settings file, the standard library
only. Every datetime is aware UTC unless its name says `local`; `now` is always passed in.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta, timezone, tzinfo
from functools import cached_property
from typing import NamedTuple

from audit.messages import DEFAULT_ERROR_PATTERN, DEFAULT_SUCCESS_PATTERN

UTC = timezone.utc
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)
"""Stands in for a creation that is unknown or cannot be right."""

_EPOCH, _LOCAL_EPOCH = LONG_AGO, LONG_AGO.replace(tzinfo=None)

FUTURE_TOLERANCE = timedelta(minutes=5)
"""How far ahead of `now` a time stamp may lie before it counts as wrong."""


class Outcome(str, enum.Enum):
    """What became of one run."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    RUNNING = "running"
    STALLED = "stalled"


class Status(str, enum.Enum):
    """The state of a container's backups, in the order in which the rules are tried."""

    NO_POLICY = "no_policy"
    EXEMPT = "exempt"
    RUNNING = "running"
    FAILED = "failed"
    STALLED = "stalled"
    OK = "ok"
    NEW = "new"
    PAUSED = "paused"
    LATE = "late"
    MISSED = "missed"

    @property
    def severity(self) -> int:
        """0 = OK, 1 = warning, 2 = critical."""
        return _SEVERITY.get(self, 2)


_SEVERITY = dict.fromkeys((Status.EXEMPT, Status.OK, Status.NEW), 0) | dict.fromkeys(
    (Status.RUNNING, Status.PAUSED, Status.LATE), 1
)


@dataclass(frozen=True)
class Rules:
    """The settings that verdicts depend on; the defaults are those of SPEC section 3."""

    zone: tzinfo = UTC
    weekly_day: int = 5  # Monday is 0
    window: timedelta = 24 * HOUR
    grace: timedelta = 6 * HOUR
    max_runtime: timedelta = 24 * HOUR
    policies: Mapping[str, timedelta] = field(default_factory=dict)
    error_pattern: re.Pattern[str] = re.compile(DEFAULT_ERROR_PATTERN)
    success_pattern: re.Pattern[str] = re.compile(DEFAULT_SUCCESS_PATTERN)

    @cached_property
    def policy_names(self) -> dict[str, str]:
        """From the known values of BACKUP_FREQ in lower case to the policies' proper names."""
        names = {"never": "Never", "none": "Never"}
        for name in ("Daily", "Weekly", *self.policies):
            names.setdefault(name.strip().casefold(), name)
        return names

    @property
    def longest_promise(self) -> timedelta:
        """The longest time for which one good backup keeps a container covered."""
        weekly = 7 * DAY + 2 * HOUR  # for clock changes
        return max(weekly + self.window, *self.policies.values(), self.window) + self.grace


class Run(NamedTuple):
    """One backup run: the log rows that share `c_id` and `backup_id`. Runs sort by start, then by `backup_id`."""

    started: datetime
    backup_id: str
    type: str = ""
    ended: datetime | None = None
    error: str | None = None
    """The `err_msg` that reports an error, or None."""
    messages: tuple[str, ...] = ()
    """Each different `err_msg` of its rows that is not empty."""
    start_logged: bool = True
    """False if only `end` rows are known; `started` is then the moment of the end."""

    @property
    def duration(self) -> timedelta | None:
        """The time that the run took, or None if that is unknown. Never negative."""
        if self.ended is None or not self.start_logged or self.ended < self.started:
            return None
        return self.ended - self.started

    def outcome(self, now: datetime, max_runtime: timedelta) -> Outcome:
        """What became of the run, as far as is known at `now`."""
        if self.error is not None:
            return Outcome.FAILED
        if self.ended is not None:
            return Outcome.SUCCEEDED
        return Outcome.RUNNING if now - self.started < max_runtime else Outcome.STALLED


@dataclass(frozen=True)
class Container:
    """A container, or a site-wide job of the setting `extra_jobs` (then `c_id` is 0)."""

    c_id: int | None
    name: str
    policy: str | None = None
    """BACKUP_FREQ as its owner wrote it; None if there is none."""
    engine: str | None = None
    state: str | None = "running"
    owner: str | None = None
    contact: str | None = None
    created: datetime | None = None
    has_metadata: bool = True
    """False if `containers` has no row of this container."""
    deleted: bool = False
    """True if `container_state` has no row of this container."""
    last_logged: datetime | None = None
    """The newest log row of a deleted container."""


@dataclass(frozen=True)
class KnownProblem:
    """A problem that the setting `exceptions` accepts up to a day."""

    until: date
    """The last day, in `db_timezone`."""
    reason: str
    ends: datetime
    """The end of that day, aware UTC."""


@dataclass(frozen=True)
class Verdict:
    """Whether the backup that a container was promised exists at `now`."""

    container: Container
    status: Status
    policy: str
    """The policy's proper name, or its owner's words if it is unknown."""
    now: datetime
    rules: Rules
    due: datetime | None = None
    """The moment by which a newer successful run must have started; None without a schedule."""
    last_run: Run | None = None
    """The newest run, whatever became of it."""
    concluded: Run | None = None
    """The newest run that is not running."""
    last_success: Run | None = None

    @property
    def reason(self) -> str:
        """One plain sentence with the figures that led to the status."""
        return _reason(self)

    @property
    def severity(self) -> int:
        """0 = OK, 1 = warning, 2 = critical."""
        return self.status.severity


def utc_from_local(local: datetime, zone: tzinfo, not_before: datetime | None = None) -> datetime:
    """The moment (aware UTC) that a naive local time of `zone` means.

    A time that occurs twice, when clocks are set back, is its first occurrence, unless that lies before
    `not_before` (the start of the run that this end belongs to) and the second does not.
    """
    if zone is UTC:
        return _EPOCH + (local - _LOCAL_EPOCH)  # `replace` takes six times as long, and this is for every run
    first = local.replace(tzinfo=zone, fold=0).astimezone(UTC)
    if not_before is None or first >= not_before:
        return first
    second = local.replace(tzinfo=zone, fold=1).astimezone(UTC)
    return second if second >= not_before else first


def last_local(moment: datetime, zone: tzinfo) -> datetime:
    """The latest naive local time that `utc_from_local` does not place after `moment`.

    While clocks run through an hour for the second time, that is the end of this hour: all of its times are taken
    for their first occurrence.
    """
    local = moment.astimezone(zone)
    naive = local.replace(tzinfo=None, fold=0)
    if local.fold == 0:
        return naive
    minute = timedelta(minutes=1)
    naive = naive.replace(second=0, microsecond=0)
    while utc_from_local(naive + minute, zone) <= moment:
        naive += minute
    return naive + minute - timedelta.resolution


def known_policy(text: str | None, rules: Rules) -> str | None:
    """The proper name of a backup policy, or None if `text` is not a known value.

    Letter case and surrounding blanks do not matter. `None` (the word) is `Never`.
    """
    return None if text is None else rules.policy_names.get(text.strip().casefold())


def due_at(policy: str, base: datetime, rules: Rules) -> datetime:
    """The moment by which a run newer than `base` must have started, for a scheduled policy."""
    if policy == "Daily":
        return base + rules.window
    if policy == "Weekly":
        return _next_weekly_midnight(base, rules) + rules.window
    return base + rules.policies[policy]


def _next_weekly_midnight(base: datetime, rules: Rules) -> datetime:
    """The first midnight of `weekly_day` in the log's zone strictly after `base`."""
    local = base.astimezone(rules.zone)
    day = datetime(local.year, local.month, local.day)
    day += timedelta(days=(rules.weekly_day - day.weekday()) % 7)
    midnight = utc_from_local(day, rules.zone)
    return midnight if midnight > base else utc_from_local(day + timedelta(days=7), rules.zone)


def base_without_success(container: Container, now: datetime) -> datetime:
    """The moment that a container without a good backup is judged from: its creation, if that can be right."""
    if container.created is None or container.created > now + FUTURE_TOLERANCE:
        return LONG_AGO
    return container.created


def judge(container: Container, runs: Iterable[Run], now: datetime, rules: Rules) -> Verdict:
    """The verdict on one container at `now`, from its runs in any order. SPEC section 2, rule by rule."""
    newest = concluded = success = None
    for run in sorted(runs, reverse=True):
        outcome = run.outcome(now, rules.max_runtime)
        newest = newest or run
        if concluded is None and outcome is not Outcome.RUNNING:
            concluded = run
        if outcome is Outcome.SUCCEEDED:
            success = run
            break
    policy, due = known_policy(container.policy, rules), None
    if policy is not None and policy != "Never":
        due = due_at(policy, success.started if success else base_without_success(container, now), rules)
    status = _status(container, policy, due, (newest, concluded, success), now, rules)
    name = policy or (container.policy or "").strip()
    return Verdict(container, status, name, now, rules, due, newest, concluded, success)


def _status(
    container: Container,
    policy: str | None,
    due: datetime | None,
    runs: tuple[Run | None, Run | None, Run | None],
    now: datetime,
    rules: Rules,
) -> Status:
    newest, concluded, success = runs
    if policy is None:
        return Status.NO_POLICY
    if due is None:
        return Status.EXEMPT
    concluded_well = concluded is not None and concluded is success
    if newest is not concluded and not (concluded_well and now < due):
        return Status.RUNNING
    if concluded is not None and not concluded_well:
        return Status.FAILED if concluded.error is not None else Status.STALLED
    if now < due:
        return Status.OK if success else Status.NEW
    if (container.state or "").strip().casefold() != "running":
        return Status.PAUSED
    return Status.LATE if now < due + rules.grace else Status.MISSED


# --- Reasons -------------------------------------------------------------------------------------------


def _reason(verdict: Verdict) -> str:
    container, status, rules = verdict.container, verdict.status, verdict.rules
    newest, concluded, success = verdict.last_run, verdict.concluded, verdict.last_success
    if status is Status.NO_POLICY:
        return _why_no_policy(container)
    if verdict.due is None:
        return "no backups wanted (policy Never)"
    due = f"due {minute(verdict.due, rules.zone)}"
    if status is Status.RUNNING and newest:
        return f"running since {_since(newest.started, verdict)}; {_what_came_before(verdict)}"
    if status is Status.FAILED and concluded:
        return f"the run of {_since(concluded.started, verdict)} failed: {concluded.error}"
    if status is Status.STALLED and concluded:
        limit = age(rules.max_runtime)
        return f"the run of {_since(concluded.started, verdict)} has not ended; {limit} are allowed"
    if status is Status.OK and success:
        return f"backed up {_since(success.started, verdict)}, next {due}"
    if status is Status.NEW and container.created:
        return f"created {_since(container.created, verdict)}, first backup {due}"
    overdue = _why_overdue(verdict, due)
    return f"state is {container.state or 'unknown'}; {overdue}" if status is Status.PAUSED else overdue


def _why_no_policy(container: Container) -> str:
    if not container.has_metadata:
        return "no metadata: the table containers has no row of this container"
    if container.policy is None:
        return "no backup policy: BACKUP_FREQ is missing or not text"
    return f"unknown backup policy '{container.policy.strip()}'"


def _what_came_before(verdict: Verdict) -> str:
    before, zone = verdict.concluded, verdict.rules.zone
    if before is not None and before is not verdict.last_success:
        outcome = before.outcome(verdict.now, verdict.rules.max_runtime)
        return f"the run before, of {minute(before.started, zone)}, {outcome.value}"
    if verdict.last_success is not None:
        return f"last good backup {minute(verdict.last_success.started, zone)}"
    return "no good backup yet"


def _why_overdue(verdict: Verdict, due: str) -> str:
    rules, created = verdict.rules, verdict.container.created
    if verdict.policy != "Weekly":
        due = f"due every {age(rules.policies.get(verdict.policy, rules.window))}"
    if verdict.last_success is not None:
        return f"no backup since {_since(verdict.last_success.started, verdict, due)}"
    if created is None:
        return f"no backup ever (creation unknown, {due})" if verdict.container.c_id else f"no backup ever ({due})"
    if base_without_success(verdict.container, verdict.now) is LONG_AGO:
        return f"no backup ever, and its creation lies in the future ({minute(created, rules.zone)})"
    return f"no backup ever, created {_since(created, verdict, due)}"


def minute(moment: datetime, zone: tzinfo) -> str:
    """A moment as people read it: `2026-03-13 18:07 UTC`."""
    if moment < LONG_AGO + DAY * 366:
        return "long ago"
    return moment.astimezone(zone).strftime("%Y-%m-%d %H:%M %Z")


def _since(moment: datetime, verdict: Verdict, *more: str) -> str:
    ago = f"{age(verdict.now - moment)} ago" if moment <= verdict.now else f"in {age(moment - verdict.now)}"
    return f"{minute(moment, verdict.rules.zone)} ({', '.join((ago, *more))})"


def age(duration: timedelta) -> str:
    """A duration in hours up to two days, then in days: `36.9 h`, `3.2 days`."""
    if duration <= 2 * DAY:
        return f"{duration / HOUR:.1f}".removesuffix(".0") + " h"
    return f"{duration / DAY:,.1f}".removesuffix(".0") + " days"
