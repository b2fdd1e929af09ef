"""Reads the log of a site and judges each container as its runs stream past (SPEC section 8).

One read takes every row stamped in the last days, by time stamp and never by id. A container with a good backup in
that part is decided: every row of the log has been passed over, so nothing newer can hide. The others are judged
on all of their rows, in one more read.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from itertools import groupby
from operator import itemgetter

from sqlalchemy.orm import Session

import admin_db
from admin_db import ContainerFacts, LoggedRun
from audit import database, history
from audit.errors import AuditError
from audit.findings import REMINDED, Audit, Finding
from audit.history import ContainerHistory, Period
from audit.policy import (
    DAY,
    FUTURE_TOLERANCE,
    UTC,
    Container,
    KnownProblem,
    Rules,
    Run,
    Verdict,
    judge,
    known_policy,
    last_local,
    utc_from_local,
)
from audit.printable import duration_text
from audit.runs import ContainerLog, IgnoredRows, decides, unrecognised
from audit.settings import Settings

YESTERDAY = DAY
"""How far back the audit looks to say what has changed."""
LEAST_READ = 10 * DAY
"""The least of the log that an audit reads, however short the promises are."""
CLOCK_CHANGE = timedelta(hours=2)
"""The most that clocks are set back or forward: rows near the ends of a read are read to be safe."""

_Key = tuple[int | None, str | None]
"""What ties a container to its log rows: `c_id`, and the name where that is 0 (a site-wide job) or missing."""


@dataclass
class LogOfSite:
    """The log of a site, read container by container.

    `now` is the moment of the audit (aware UTC); if it was `asked_for` (`--at`), later rows are unseen.
    """

    session: Session
    rules: Rules
    now: datetime
    asked_for: bool = False
    ignored: IgnoredRows = field(default_factory=IgnoredRows)
    """The rows of the last days that no verdict could use, of all containers; known when all is read."""
    newest_row: datetime | None = None
    """The newest row that is not future, of all containers; known when all is read."""

    @property
    def latest(self) -> datetime:
        """The moment after which no row counts."""
        return self.now if self.asked_for else self.now + FUTURE_TOLERANCE

    def containers(
        self, containers: Iterable[Container], reach: timedelta, early: datetime
    ) -> Iterator[tuple[Container, ContainerLog]]:
        """Each container with its log: the last days (`reach`, and the length of a run more) if these decide the
        verdicts of now and of an earlier moment, else all of it.
        """
        waiting = {key_of(container): container for container in containers}
        undecided = []
        sure = self.now - max(reach, LEAST_READ)  # the rows of later runs are in sight, as far as these may last
        since = self._local(sure - self.rules.max_runtime - CLOCK_CHANGE)
        for key, runs in _by_container(self._read(since, early)):
            log = self._log(runs)
            self.ignored.add_all(log.ignored)
            container = waiting.pop(key, None)
            if container is None:
                continue
            if self._needs_no_more(container, early) or (decides(log.runs, sure) and decides(log.early_runs, sure)):
                yield container, log
            else:
                undecided.append(container)
        for container in waiting.values():
            if self._needs_no_more(container, early):
                yield container, self._log(())
            else:
                undecided.append(container)
        yield from self.whole(undecided, early)

    def whole(self, containers: Iterable[Container], early: datetime) -> Iterator[tuple[Container, ContainerLog]]:
        """Each container with all of its log."""
        waiting = {key_of(container): container for container in containers}
        c_ids = {c_id for c_id, _ in waiting if isinstance(c_id, int)}  # SQLite keeps any value
        for key, runs in _by_container(self._read(None, early, c_ids) if c_ids else ()):
            log = self._log(runs)
            if key in waiting:
                yield waiting.pop(key), log
        for container in waiting.values():
            yield container, self._log(())

    def _log(self, runs: Iterable[LoggedRun]) -> ContainerLog:
        log = ContainerLog(runs, self.latest, self.rules)
        self.newest_row = max((moment for moment in (self.newest_row, log.newest_row) if moment), default=None)
        return log

    def _read(self, since: datetime | None, early: datetime, c_ids: Collection[int] = ()) -> Iterator[LoggedRun]:
        bounds = (self._local(early), self._local(self.latest))
        return admin_db.read_runs(self.session, since, *bounds, unseen=self.asked_for, c_ids=c_ids)

    def _local(self, moment: datetime) -> datetime:
        return last_local(moment, self.rules.zone)

    def _needs_no_more(self, container: Container, early: datetime) -> bool:
        """Whether old runs change nothing: nothing was promised, and nobody asks whether the container existed."""
        return known_policy(container.policy, self.rules) == "Never" and not _created_later(container, early)


def key_of(container: Container) -> _Key:
    """What ties a container to its log rows."""
    return container.c_id, None if container.c_id else container.name


def _by_container(runs: Iterable[LoggedRun]) -> Iterator[tuple[_Key, Iterable[LoggedRun]]]:
    """Runs that come in the order of `c_id`, container by container. Site-wide jobs (`c_id` 0) are told apart by
    name.
    """
    for c_id, some in groupby(runs, itemgetter(0)):
        if c_id:
            yield (c_id, None), some
        elif c_id == 0:
            by_name = sorted(some, key=lambda run: run.name or "")
            yield from (((0, name), job) for name, job in groupby(by_name, itemgetter(1)))
        else:
            yield (None, None), some


# --- What is asked of a site ----------------------------------------------------------------------------


def active_containers(session: Session, settings: Settings) -> list[Container]:
    """The active containers and the extra jobs, which are audited as if they were containers.

    Raises `AuditError` for an admin database without active containers, unless the setting `allow_empty` accepts it.
    """
    found: dict[_Key, Container] = {}
    for facts in admin_db.read_active_containers(session):  # if a c_id repeats, the last row counts
        container = _container(facts)
        found[key_of(container)] = container
    if not found and not settings.allow_empty:
        problem = f"no active container in {database.name(settings)}"
        raise AuditError(problem, "check that it is DB4Sci's admin database, or set allow_empty if the site is empty")
    jobs = [Container(0, name, policy) for name, policy in settings.extra_jobs.items()]
    return list((found | {key_of(job): job for job in jobs}).values())


def deleted_containers(session: Session, settings: Settings, since: datetime | None = None) -> list[Container]:
    """The containers that are not active any more; with `since` (aware UTC) those that were logged since then."""
    local = since and last_local(since - CLOCK_CHANGE, settings.db_timezone)
    found = []
    for facts in admin_db.read_deleted_containers(session, local):
        last_logged = facts.last_logged and utc_from_local(facts.last_logged, settings.db_timezone)
        found.append(replace(_container(facts), deleted=True, last_logged=last_logged))
    return found


def _container(facts: ContainerFacts) -> Container:
    return Container(
        c_id=facts.c_id,
        name=facts.name or facts.container_name or f"c_id {facts.c_id}",
        policy=facts.backup_freq,
        engine=facts.engine,
        state=facts.state,
        owner=facts.owner,
        contact=facts.contact,
        created=facts.created.replace(tzinfo=UTC) if facts.created else None,
        has_metadata=facts.container_id is not None,
    )


def audit(log: LogOfSite, containers: Sequence[Container], settings: Settings, database: str) -> Audit:
    """The full audit: a finding for every container."""
    reach = settings.rules.longest_promise + max(timedelta(days=settings.history_days), YESTERDAY)
    logs = log.containers(containers, reach, early=log.now - YESTERDAY)
    return _audit(log, containers, logs, settings, database)


def details(log: LogOfSite, containers: Sequence[Container], settings: Settings, database: str) -> Audit:
    """The audit of some containers, with all of their runs."""
    logs = log.whole(containers, early=log.now - YESTERDAY)
    return _audit(log, containers, logs, settings, database, detailed=True)


def _audit(
    log: LogOfSite,
    containers: Sequence[Container],
    logs: Iterable[tuple[Container, ContainerLog]],
    settings: Settings,
    database: str,
    detailed: bool = False,
) -> Audit:
    """The findings of containers, in the order of the containers."""
    findings = [
        _finding(container, own_log, log.now, settings, detailed)
        for container, own_log in logs
        if not (log.asked_for and _created_later(container, log.now) and not own_log.runs)
    ]
    order = {key_of(container): place for place, container in enumerate(containers)}
    findings.sort(key=lambda finding: order[key_of(finding.container)])
    names = {finding.container.name for finding in findings} | {finding.container.c_id for finding in findings}
    unused = () if detailed else tuple(str(key) for key in settings.exceptions if key not in names)
    return Audit(log.now, database, settings.rules, tuple(findings), log.ignored, log.newest_row, unused)


def _created_later(container: Container, now: datetime) -> bool:
    return container.created is not None and container.created > now


def _finding(container: Container, log: ContainerLog, now: datetime, settings: Settings, detailed: bool) -> Finding:
    rules, runs, then = settings.rules, log.runs, now - YESTERDAY
    verdict = judge(container, runs, now, rules)
    before = log.early_runs
    existed = not _created_later(container, then) or before
    start, ratio, typical = now - timedelta(days=settings.history_days), None, None
    if settings.history_days:
        ratio = history.covered_ratio(container, runs, start, now, rules)
        typical = history.typical_duration(runs, start)
    recent = [run for run in runs if run.started > now - rules.window]
    return Finding(
        verdict=verdict,
        yesterday=judge(container, before, then, rules) if existed else None,
        known_problem=_known_problem(container, now, settings),
        notes=tuple(_notes(verdict, typical)),
        unrecognised=sum(unrecognised(run, rules.success_pattern) is not None for run in recent),
        covered_ratio=ratio,
        typical_duration=typical,
        runs=tuple(sorted(runs, reverse=True)) if detailed else (),
        ignored=log.ignored if detailed else IgnoredRows(),
    )


def _known_problem(container: Container, now: datetime, settings: Settings) -> KnownProblem | None:
    """The exception that is in force, or ended so lately that the report still says so."""
    keys = (container.c_id, container.name)
    found = [settings.exceptions[key] for key in keys if key is not None and key in settings.exceptions]
    latest = max(found, key=lambda problem: problem.ends, default=None)
    return latest if latest and now < latest.ends + REMINDED else None


def _notes(verdict: Verdict, typical: timedelta | None) -> Iterator[str]:
    success = verdict.last_success
    if success is None:
        return
    if history.suspicious_duration(success.duration, typical):
        yield f"took {duration_text(success.duration)}, typically {duration_text(typical)}: check the dump"
    if success.ended is not None and success.ended < success.started:
        yield "the end of its last good backup is stamped before its start: check the clock of the DB4Sci host"


def look_back(
    log: LogOfSite, containers: Sequence[Container], period: Period
) -> Iterator[tuple[ContainerHistory, list[Run]]]:
    """The history of each container over a period that ends with `log.now`, and the runs that it is made of."""
    reach = log.now - period.start + log.rules.longest_promise
    for container, own_log in log.containers(containers, reach, early=period.start):
        runs = own_log.runs
        if runs or not (container.deleted or (log.asked_for and _created_later(container, log.now))):
            yield history.look_back(container, runs, period, log.rules), runs
