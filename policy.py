"""The rules: from a container's promise and its runs to one verdict (SPEC section 2).

Everything here is a pure function of its arguments. This module reads no clock, no database and no
settings file, and it imports the standard library only. Every datetime is aware UTC unless its name
says `local`; `now` is always passed in.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone, tzinfo
from functools import cached_property

UTC = timezone.utc
HOUR = timedelta(hours=1)
MICROSECOND = timedelta.resolution
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
LONG_AGO = EPOCH
"""Stands in for the creation of a container whose creation is not known."""

FUTURE_TOLERANCE = timedelta(minutes=5)
"""How far ahead of `now` a log row may be stamped before it counts as future."""

# `err_msg` is not empty on success: it then holds the beginning of a progress message, in which names
# chosen by users appear ("failed-trials", "error_tracking"). So a word alone proves nothing; its place in
# the line does.
_TROUBLE = (
    r"(?:errors?|errno|exception|fatal|panic|failed|failure|cannot|can't|can not|couldn't|could not|unable to|invalid"
    r"|denied|refused|no such|not found|no space left|out of memory|killed|abort(?:ed|ing)|timed? ?out)"
)
_QUOTED_OR_PLAIN = r"""(?:[^"'\n]|"[^"\n]*"|'[^'\n]*')*?"""
_ERROR_LINES = (
    # MariaDB Backup error.  Container: sales
    r"\w+ backup (?:error|exception|failed|failure)\b",
    # Exception: ..., botocore.exceptions.ClientError: ..., FATAL: ..., rpc error: ..., upload failed: ...
    r"(?:\w+ ){0,4}(?:error|failed):|(?:error message|[\w.]*(?:error|exception)|fatal|failure|panic)[ \t]*:",
    r"(?:an error occurred|error response from|error \d+ \(|exception in thread|traceback \(most recent)",
    # pg_dump: error: ..., /bin/cp: cannot stat ..., but no word in quotes or in a name, and no mere warning
    rf"[\w./-]+: (?!\W*(?:warning|note|info)\b){_QUOTED_OR_PLAIN}(?<![\w./-]){_TROUBLE}(?![\w.-])",
    # mongodump's time stamp, a tab, Failed: ...
    r"[\d:.T+-]{19,}Z?\s+(?:failed|error|fatal|panic)\b",
    r"(?:no such|no space left|unable to|could not|cannot|(?:got )?permission denied|access denied)\b",
    r"(?:killed$|segmentation fault)",
)
DEFAULT_ERROR_PATTERN = rf"(?im)^[ \t]*(?:{'|'.join(_ERROR_LINES)})"
"""Marks an `err_msg` as an error; a Python regular expression, searched for in each message."""


class Outcome(str, enum.Enum):
    """What became of one run."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    RUNNING = "running"
    STALLED = "stalled"


class Status(str, enum.Enum):
    """What a container's backups look like now, in the order in which the rules are tried."""

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
        return _SEVERITY[self]


_SEVERITY = {
    Status.NO_POLICY: 2,
    Status.EXEMPT: 0,
    Status.RUNNING: 1,
    Status.FAILED: 2,
    Status.STALLED: 2,
    Status.OK: 0,
    Status.NEW: 0,
    Status.PAUSED: 1,
    Status.LATE: 1,
    Status.MISSED: 2,
}


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

    @cached_property
    def policy_names(self) -> dict[str, str]:
        """From the known values of BACKUP_FREQ in lower case to the policies' proper names."""
        names = {"never": "Never", "none": "Never"}
        for name in ("Daily", "Weekly", *self.policies):
            names.setdefault(name.strip().casefold(), name)
        return names


@dataclass(frozen=True)
class Run:
    """One backup run: the log rows that share `c_id` and `backup_id`."""

    backup_id: str
    type: str
    started: datetime
    ended: datetime | None = None
    error: str | None = None
    """The `err_msg` that reports an error, or None."""
    start_logged: bool = True
    """False if only `end` rows are known; `started` is then the moment of the end."""

    @property
    def duration(self) -> timedelta | None:
        """How long the run took; None if that is not known. Never negative."""
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
class Past:
    """A container's runs over a longer period, in brief and in any order.

    Moments are whole microseconds since the epoch (UTC): a year of a large site is a million runs. The
    lists of starts, ends and ids belong together, place by place; an unknown end is 0.
    """

    starts: list[int] = field(default_factory=list)
    """Of the runs that succeeded; those that did not are in `other_starts` and so on."""
    ends: list[int] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    """The `backup_id`s; empty if they were not asked for."""
    other_starts: list[int] = field(default_factory=list)
    other_ends: list[int] = field(default_factory=list)
    other_ids: list[str] = field(default_factory=list)

    def last_row(self) -> int:
        """The moment of the newest log row of these runs; 0 without any."""
        return max((*self.starts, *self.ends, *self.other_starts, *self.other_ends), default=0)


@dataclass(frozen=True)
class Container:
    """An active container, or a site-wide job of the setting `extra_jobs` (then `c_id` is 0)."""

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


@dataclass(slots=True)
class Verdict:
    """Whether the backup that a container was promised exists.

    `judge` decides; the last three fields are filled in by whoever also looks at the past.
    """

    container: Container
    status: Status
    policy: str
    """See `policy_name`."""
    now: datetime
    rules: Rules
    due: datetime | None = None
    """The moment by which a newer successful run must have started; None without a schedule."""
    last_run: Run | None = None
    """The newest run, whatever became of it."""
    concluded: Run | None = None
    """The newest run that is not running."""
    last_success: Run | None = None
    note: str | None = None
    """A suspicion that is not a status."""
    covered_ratio: float | None = None
    """The share of the scheduled backups of the last `history_days` that exist; None without any."""
    typical_duration: timedelta | None = None
    """The median duration of the succeeded runs before the last one, if there are enough."""

    @property
    def reason(self) -> str:
        """Why, in one plain sentence with the figures that led to the status."""
        return _reason(self)

    @property
    def severity(self) -> int:
        """0 = OK, 1 = warning, 2 = critical."""
        return self.status.severity

    @property
    def settled(self) -> bool:
        """Whether this verdict may stand when only the recent part of the log has been read.

        Only a good backup that is wholly in sight proves anything from a part of the log; so does a
        promise that was never made. All else (late, missed, new, failed, ...) may look different once
        the whole history has been read.
        """
        if self.status in (Status.EXEMPT, Status.NO_POLICY):
            return True
        return self.status is Status.OK and self.last_success is not None and self.last_success.start_logged


@dataclass(frozen=True)
class Audit:
    """All that one audit found, before anybody formats it."""

    now: datetime
    """The moment that every verdict is about."""
    verdicts: list[Verdict]
    malformed: int = 0
    """Log rows ignored because they have no time, no backup_id or no proper state."""
    future: int = 0
    """Log rows ignored because they are stamped more than five minutes after `now`."""
    newest_row: datetime | None = None
    """The newest log row of the whole site that is not in the future."""

    @property
    def severity(self) -> int:
        """The worst severity of all: 0 = OK, 1 = warning, 2 = critical."""
        return max((verdict.severity for verdict in self.verdicts), default=0)

    def counts(self) -> dict[Status, int]:
        """Containers by status; every status is there."""
        counts = dict.fromkeys(Status, 0)
        for verdict in self.verdicts:
            counts[verdict.status] += 1
        return counts

    def silent(self, window: timedelta) -> bool:
        """Whether the whole site logged nothing for so long: then the backup job itself has not run."""
        return self.newest_row is None or self.now - self.newest_row > window


def microseconds(moment: datetime) -> int:
    """A moment (aware) as whole microseconds since the epoch."""
    return (moment - EPOCH) // MICROSECOND


def from_microseconds(count: int) -> datetime:
    """The moment (aware UTC) so many microseconds after the epoch."""
    return EPOCH + count * MICROSECOND


def utc_from_local(local: datetime, zone: tzinfo, not_before: datetime | None = None) -> datetime:
    """The moment (aware UTC) that a naive local time of `zone` means.

    A time that occurs twice, when clocks go back, is its first occurrence, unless that lies before
    `not_before` (the start of the run that this end belongs to) and the second does not.
    """
    if zone is UTC:
        return local.replace(tzinfo=UTC)
    first = local.replace(tzinfo=zone, fold=0).astimezone(UTC)
    if not_before is None or first >= not_before:
        return first
    second = local.replace(tzinfo=zone, fold=1).astimezone(UTC)
    return second if second >= not_before else first


def last_local(moment: datetime, zone: tzinfo) -> datetime:
    """The latest naive local time that `utc_from_local` does not place after `moment`.

    While the clock runs through an hour for the second time, that is the end of this hour: all of its
    times are taken for their first occurrence.
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
    """The proper name of a backup policy, or None if `text` is none of the known values.

    Letter case and surrounding blanks do not matter. `None` (the word) is `Never`.
    """
    return None if text is None else rules.policy_names.get(text.strip().casefold())


def policy_name(container: Container, rules: Rules) -> str:
    """The proper name of a container's policy (`Daily` for ` daily `), or its owner's words if it is unknown."""
    return known_policy(container.policy, rules) or (container.policy or "").strip()


def due_at(policy: str, base: datetime, rules: Rules) -> datetime:
    """The moment by which a run newer than `base` must have started, for a scheduled policy."""
    if policy == "Daily":
        return base + rules.window
    if policy == "Weekly":
        return next_weekly_midnight(base, rules) + rules.window
    return base + rules.policies[policy]


def next_weekly_midnight(base: datetime, rules: Rules) -> datetime:
    """The first midnight of `weekly_day` in the log's zone strictly after `base`."""
    local = base.astimezone(rules.zone)
    day = datetime(local.year, local.month, local.day)
    day += timedelta(days=(rules.weekly_day - day.weekday()) % 7)
    midnight = utc_from_local(day, rules.zone)
    return midnight if midnight > base else utc_from_local(day + timedelta(days=7), rules.zone)


_TROUBLE_STEMS = (
    *("err", "xcept", "fa", "pan", "can", "could", "unable", "nval", "den", "refu"),
    *("no ", "not f", "lled", "abort", "out", "trac"),
)
"""One of these is in every message that `DEFAULT_ERROR_PATTERN` finds; to look for them is much quicker. They do
without i and s: to a regular expression without regard to case, a dotless i and a long s are the same letters.
"""


def find_error(messages: Sequence[str], pattern: re.Pattern[str]) -> str | None:
    """The first of some messages that reports an error, or None."""
    if pattern.pattern == DEFAULT_ERROR_PATTERN:
        text = "\n".join(messages).lower()
        if not any(map(text.__contains__, _TROUBLE_STEMS)):
            return None
    return next(filter(pattern.search, messages), None)


def by_start(run: Run) -> tuple[datetime, str]:
    """The order of runs: by start, and by `backup_id` where two started at the same moment."""
    return run.started, run.backup_id


def judge(container: Container, runs: Iterable[Run], now: datetime, rules: Rules) -> Verdict:
    """The verdict on one container at `now`, from its runs in any order. SPEC section 2, rule by rule."""
    newest = concluded = success = None
    newest_outcome = concluded_outcome = None
    for run in sorted(runs, key=by_start, reverse=True):
        outcome = run.outcome(now, rules.max_runtime)
        if newest is None:
            newest, newest_outcome = run, outcome
        if concluded is None and outcome is not Outcome.RUNNING:
            concluded, concluded_outcome = run, outcome
        if outcome is Outcome.SUCCEEDED:
            success = run
            break

    policy = known_policy(container.policy, rules)
    due = None
    if policy is not None and policy != "Never":
        due = due_at(policy, success.started if success else container.created or LONG_AGO, rules)

    if policy is None:
        status = Status.NO_POLICY
    elif due is None:
        status = Status.EXEMPT
    elif newest_outcome is Outcome.RUNNING and not (concluded_outcome is Outcome.SUCCEEDED and now < due):
        status = Status.RUNNING
    elif concluded_outcome is Outcome.FAILED:
        status = Status.FAILED
    elif concluded_outcome is Outcome.STALLED:
        status = Status.STALLED
    elif now < due:
        status = Status.OK if success else Status.NEW
    elif container.state != "running":
        status = Status.PAUSED
    else:
        status = Status.LATE if now < due + rules.grace else Status.MISSED
    return Verdict(container, status, policy_name(container, rules), now, rules, due, newest, concluded, success)


# --- Reasons -------------------------------------------------------------------------------------------


def _reason(verdict: Verdict) -> str:
    container, status, rules = verdict.container, verdict.status, verdict.rules
    newest, concluded, success = verdict.last_run, verdict.concluded, verdict.last_success
    if status is Status.NO_POLICY:
        return _why_no_policy(container)
    if verdict.due is None:
        return "no backups wanted (policy Never)"
    due = stamp(verdict.due, rules.zone)
    if status is Status.RUNNING and newest:
        return f"running since {_since(newest.started, verdict)}; {_what_came_before(verdict)}"
    if status is Status.FAILED and concluded:
        return f"the run of {_since(concluded.started, verdict)} failed: {concluded.error}"
    if status is Status.STALLED and concluded:
        limit = _hours(rules.max_runtime)
        return f"the run of {_since(concluded.started, verdict)} has not ended, {limit} are allowed"
    if status is Status.OK and success:
        return f"backed up {_since(success.started, verdict)}, next due {due}"
    if status is Status.NEW:
        return f"created {_since(container.created or LONG_AGO, verdict)}, first backup due {due}"
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
    if before is not None:
        outcome = before.outcome(verdict.now, verdict.rules.max_runtime)
        if outcome is not Outcome.SUCCEEDED:
            return f"the run before, of {stamp(before.started, zone)}, {outcome.value}"
    if verdict.last_success is not None:
        return f"last good backup {stamp(verdict.last_success.started, zone)}"
    return "no good backup yet"


def _why_overdue(verdict: Verdict, due: str) -> str:
    rules, created = verdict.rules, verdict.container.created
    schedule = f"due {due}"
    if verdict.policy != "Weekly":
        schedule = f"due every {_hours(rules.policies.get(verdict.policy, rules.window))}"
    if verdict.last_success is not None:
        started = verdict.last_success.started
        return f"no backup since {stamp(started, rules.zone)} ({_ago(started, verdict.now)}, {schedule})"
    if created is None:
        return f"no backup ever ({schedule})"
    return f"no backup ever, created {stamp(created, rules.zone)} ({_ago(created, verdict.now)}, {schedule})"


def stamp(moment: datetime, zone: tzinfo) -> str:
    """A moment as people read it: `2026-03-13 18:07 UTC`."""
    return moment.astimezone(zone).strftime("%Y-%m-%d %H:%M %Z")


def _since(moment: datetime, verdict: Verdict) -> str:
    return f"{stamp(moment, verdict.rules.zone)} ({_ago(moment, verdict.now)})"


def _ago(moment: datetime, now: datetime) -> str:
    if moment > now:
        return f"in {_hours(moment - now)}"
    return f"{_hours(now - moment)} ago"


def _hours(span: timedelta) -> str:
    hours = span / HOUR
    if hours >= 1000:
        return f"{hours / 24:,.0f} days"
    return f"{hours:.1f}".removesuffix(".0") + " h"
