"""The findings of an audit: of every container its verdict, what has changed, and what is left to restore.

Plain frozen data for those who format it, and the functions that work it out from the log of a site.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from sqlalchemy.orm import Session

import admin_db
from admin_db import ContainerFacts
from audit import history
from audit.errors import AuditError
from audit.history import ContainerHistory, Period
from audit.log import ContainerLog, IgnoredRows, NewestRun, SiteLog, clock_gap, key_of
from audit.policy import DAY, UTC, Container, Outcome, Rules, Run, Status, Verdict, creation, judge, newest_first
from audit.settings import AcceptedException, Settings

REMINDER = 7 * DAY
"""For how long the report says that an exception has ended."""
EXPIRY_WARNING = 7 * DAY
"""How long before the last good dump expires there is a warning."""
EXPIRY_ACCEPTED = 30 * DAY
"""How long an expired dump is reported if the container's problem is accepted."""
TURN_EXPECTED = 7 * DAY
"""A container whose last run began at most this long before the one that never ended was waiting for its turn."""


class Change(str, enum.Enum):
    """How a container's status differs from 24 hours ago."""

    NEW_PROBLEM = "new problem"
    RECOVERED = "recovered"
    CHANGED = "changed"


@dataclass(frozen=True)
class Finding:
    """What the audit found of one container."""

    verdict: Verdict
    yesterday: Status | None = None
    """The status of 24 hours ago; None if the container did not exist then."""
    exception: AcceptedException | None = None
    """The container's exception, if it is in force or ended within the last week."""
    covered_ratio: float | None = None
    """The share of the last `history_days` in which the container was covered, from 0 to 1; None if none counts."""
    runs: tuple[Run, ...] = ()
    """All runs, newest first; only for the detail view."""
    ignored: IgnoredRows = field(default_factory=IgnoredRows)
    """The container's log rows that no verdict could use; only for the detail view."""

    @property
    def container(self) -> Container:
        """The container that it is about."""
        return self.verdict.container

    @property
    def status(self) -> Status | None:
        """The verdict's status; None for a deleted container, which nobody is promised a backup of."""
        return None if self.container.deleted else self.verdict.status

    @property
    def severity(self) -> int:
        """0 = OK, 1 = warning, 2 = critical."""
        return self.status.severity if self.status else 0

    @property
    def is_accepted(self) -> bool:
        """Whether an exception is in force, so that a problem does not count."""
        return self.exception is not None and self.verdict.now < self.exception.ends

    @property
    def is_problem(self) -> bool:
        """Whether the container needs attention."""
        return self.severity > 0 and not self.is_accepted

    @property
    def is_overdue(self) -> bool:
        """Whether the status is late or missed, and no exception accepts that; what is paused or running is excused."""
        return self.status in (Status.LATE, Status.MISSED) and not self.is_accepted

    @property
    def expiry_severity(self) -> int:
        """0 = nothing to tell, 1 = the last good dump expires soon, 2 = it has expired (docs/rules.md, "Retention").

        An exception does not accept that nothing is left, but then it is reported for a month only.
        """
        kept_until, now = self.verdict.kept_until, self.verdict.now
        if kept_until is None or self.status in (None, Status.OK, Status.EXEMPT) or now < kept_until - EXPIRY_WARNING:
            return 0
        if self.is_accepted and now >= kept_until + EXPIRY_ACCEPTED:
            return 0
        return 2 if now >= kept_until else 1

    @property
    def change(self) -> Change | None:
        """How the status differs from 24 hours ago; None if it does not."""
        before, now = self.yesterday or Status.NEW, self.status
        if now is None or before is now or (self.yesterday is None and now.severity == 0):
            return None
        if (before.severity == 0) == (now.severity == 0):
            return Change.CHANGED
        return Change.NEW_PROBLEM if before.severity == 0 else Change.RECOVERED


@dataclass(frozen=True)
class Audit:
    """All that one audit found."""

    now: datetime
    """The moment that every verdict is about, aware UTC."""
    database: str
    """The admin database, as it may stand in a message: it names no password."""
    rules: Rules
    findings: tuple[Finding, ...]
    ignored: IgnoredRows = field(default_factory=IgnoredRows)
    newest_row: datetime | None = None
    """The newest log row of the whole site that is not future, aware UTC."""
    broken_night: NewestRun | None = None
    """The run at which the backup job probably stopped, where that left others without a backup."""
    clock_gap: timedelta | None = None
    """How far `backup_id` and `ts` of the newest runs are apart, if the zones do not fit the log."""
    unused_exceptions: tuple[str, ...] = ()
    """Keys of the setting `exceptions` that fit no container."""

    @property
    def severity(self) -> int:
        """The worst severity of what is not accepted, and of dumps that expire: 0 = OK, 1 = warning, 2 = critical."""
        problems = (finding.severity for finding in self.findings if finding.is_problem)
        return max([0, *problems, *(finding.expiry_severity for finding in self.findings)])

    @property
    def silent(self) -> bool:
        """Whether the whole site logged no run within `window_hours`, and backups are overdue."""
        newest, overdue = self.newest_row, any(finding.is_overdue for finding in self.findings)
        return overdue and (newest is None or self.now - newest > self.rules.window)

    def counts(self) -> dict[Status, int]:
        """Containers by status; every status is there."""
        statuses = [finding.status for finding in self.findings]
        return {status: statuses.count(status) for status in Status}


def by_change(findings: Iterable[Finding], change: Change) -> list[Finding]:
    """The findings that differ from yesterday in this way, accepted problems aside."""
    return [finding for finding in findings if finding.change is change and not finding.is_accepted]


# --- Who is audited --------------------------------------------------------------------------------------


def active_containers(session: Session, settings: Settings) -> list[Container]:
    """The active containers and the extra jobs, which are audited as if they were containers.

    Raises `AuditError` for an admin database without active containers, unless the setting `allow_empty` accepts it.
    """
    found = {key_of(one): one for one in map(_container, admin_db.read_active_containers(session))}  # the last counts
    if not found:
        _refuse_empty(settings)
    jobs = [Container(0, name, policy) for name, policy in settings.extra_jobs.items()]
    return list((found | {key_of(job): job for job in jobs}).values())


def _refuse_empty(settings: Settings, when: str = "") -> None:
    """No container at all is not "all is well"."""
    if not settings.allow_empty:
        problem = f"no active container in {settings.connection.display_name}{when}"
        raise AuditError(problem, "check that it is DB4Sci's admin database, or set allow_empty if the site is empty")


def deleted_containers(session: Session, since: datetime | None = None) -> list[Container]:
    """The containers that are not active any more, oldest first; with `since` (naive, as in the log) those logged
    since.
    """
    return [replace(_container(facts), deleted=True) for facts in admin_db.read_deleted_containers(session, since)]


def _container(facts: ContainerFacts) -> Container:
    return Container(
        c_id=facts.c_id,
        name=facts.name or facts.container_name or f"c_id {facts.c_id}",
        backup_freq=facts.backup_freq,
        engine=facts.engine,
        state=facts.state,
        owner=facts.owner,
        contact=facts.contact,
        created=facts.created.replace(tzinfo=UTC) if facts.created else None,
        has_metadata=facts.container_id is not None,
    )


# --- What is found ---------------------------------------------------------------------------------------


def audit(log: SiteLog, containers: Sequence[Container], settings: Settings) -> Audit:
    """The full audit: a finding for every container."""
    period = history.last_days(settings.history_days, log.moment.now, log.rules.zone)
    if settings.history_days:
        period = replace(period, log_begins=log.begins(unless_before=period.start - log.rules.longest_cover))
    found = []
    for container, own_log in log.read(containers, log.moment.yesterday, period.start):
        if _is_seen(container, own_log, log):
            past = history.look_back(container, own_log.runs, period, log.rules)
            found.append(replace(_finding(past.verdict, own_log, log, settings), covered_ratio=past.ratio))
    findings = _in_order(found, containers)
    if containers and all(finding.container.is_job for finding in findings):
        _refuse_empty(settings, " at that moment")
    return Audit(
        now=log.moment.now,
        database=settings.connection.display_name,
        rules=log.rules,
        findings=findings,
        ignored=log.ignored,
        newest_row=log.newest_row,
        broken_night=_broken_night(log.newest_run, findings),
        clock_gap=clock_gap(log.starts, log.rules.zone),
        unused_exceptions=unused_exceptions([finding.container for finding in findings], settings),
    )


def details(log: SiteLog, containers: Sequence[Container], settings: Settings) -> Audit:
    """The audit of some containers, deleted ones among them, with all of their runs."""
    ignored, found = IgnoredRows(), []
    for container, own_log in log.read_whole(containers, log.moment.yesterday):
        if _is_seen(container, own_log, log):
            verdict = judge(container, own_log.runs, log.moment.now, log.rules)
            runs = tuple(newest_first(own_log.runs))
            found.append(replace(_finding(verdict, own_log, log, settings), runs=runs, ignored=own_log.ignored))
            ignored.add_all(own_log.ignored)
    return Audit(log.moment.now, settings.connection.display_name, log.rules, _in_order(found, containers), ignored)


def _is_seen(container: Container, own_log: ContainerLog, log: SiteLog) -> bool:
    """Whether the container existed at the moment that was asked for."""
    created, moment = container.created, log.moment
    return not moment.hides_later or bool(own_log.runs) or created is None or created <= moment.now


def _in_order(findings: Iterable[Finding], containers: Sequence[Container]) -> tuple[Finding, ...]:
    order = {key_of(container): place for place, container in enumerate(containers)}
    return tuple(sorted(findings, key=lambda finding: order[key_of(finding.container)]))


def _finding(verdict: Verdict, own_log: ContainerLog, log: SiteLog, settings: Settings) -> Finding:
    container, moment = verdict.container, log.moment
    existed = own_log.runs_then or creation(container, moment.now) <= moment.yesterday
    yesterday = judge(container, own_log.runs_then, moment.yesterday, log.rules).status if existed else None
    return Finding(verdict, yesterday, exception_of(container, moment.now, settings))


def exception_of(container: Container, now: datetime, settings: Settings) -> AcceptedException | None:
    """The exception that is in force, or ended so recently that the report still says so."""
    keys = (container.c_id, container.name)
    found = [settings.exceptions[key] for key in keys if key is not None and key in settings.exceptions]
    latest = max(found, key=lambda exception: exception.ends, default=None)
    return latest if latest and now < latest.ends + REMINDER else None


def unused_exceptions(containers: Iterable[Container], settings: Settings) -> tuple[str, ...]:
    """The keys of the setting `exceptions` that fit no container."""
    known = {key for container in containers for key in (container.name, container.c_id)}
    return tuple(str(key) for key in settings.exceptions if key not in known)


def _broken_night(newest: NewestRun | None, findings: Iterable[Finding]) -> NewestRun | None:
    if newest is None or newest.outcome is not Outcome.STALLED or newest.is_job:
        return None
    for finding in findings:
        last = finding.verdict.last_run
        if finding.is_overdue and last and newest.started - TURN_EXPECTED <= last.started <= newest.started:
            return newest
    return None


def histories(log: SiteLog, containers: Sequence[Container], period: Period) -> Iterator[ContainerHistory]:
    """The history of each container over a period that ends with the audit's moment."""
    for container, own_log in log.read(containers, period.start, period.start):
        if own_log.runs or (_is_seen(container, own_log, log) and not container.deleted):
            yield history.look_back(container, own_log.runs, period, log.rules)
