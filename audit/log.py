"""Rows of the backup log to runs, and the log of a site, streamed container by container (docs/rules.md, "Runs").

One read takes every row stamped in the last days, by time stamp and never by id. A container with a good backup in
that part is decided: every row of the log has been passed over, so nothing newer can hide. The others are judged on
all of their rows, in one more read.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta, tzinfo
from itertools import groupby
from operator import attrgetter
from typing import NamedTuple

from sqlalchemy.orm import Session

import admin_db
from admin_db import PlainRow
from audit import messages
from audit.messages import Patterns, Said
from audit.policy import (
    TYPICAL_PERIOD,
    Container,
    Moment,
    Outcome,
    Rules,
    Run,
    newest_first,
    run_limit,
    typical_duration,
    utc_from_local,
)

FUTURE, MALFORMED, UNDATED = "future", "malformed", "undated"
NEWEST_SHOWN = 3
"""How many ids of ignored rows are named."""
CUT_LENGTH = 100
"""Some versions of DB4Sci cut a message here: what follows never reached the log."""
CLOCK_CHANGE = timedelta(hours=2)
"""The most that clocks are set back or forward: every read begins this much earlier, to be safe."""
STARTS_COMPARED = 10
LARGEST_GAP = timedelta(minutes=15)
"""How far `backup_id` and `ts` of a start row may be apart if both zones are right."""

_LOCAL_TIME = re.compile(r"(\d{4})-?(\d\d)-?(\d\d)[-_](\d\d):(\d\d):(\d\d)")

_Key = tuple[int | None, str | None]
"""What ties a container to its log rows: `c_id`, and the name where that is 0 (a site-wide job)."""
Start = tuple[datetime, str]
"""The stamp (aware UTC) of a run's start row, and its `backup_id`."""


@dataclass
class IgnoredRows:
    """The log rows that no verdict can use, by reason."""

    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys((FUTURE, MALFORMED, UNDATED), 0))
    newest: dict[str, list[int]] = field(default_factory=dict)
    """The ids of the newest rows of each reason, newest first."""

    def add(self, reason: str, row_ids: Iterable[int], count: int = 1) -> None:
        """Count rows of one reason, of which the newest have these ids."""
        self.counts[reason] += count
        self.newest[reason] = heapq.nlargest(NEWEST_SHOWN, (*self.newest.get(reason, ()), *row_ids))

    def add_all(self, others: IgnoredRows) -> None:
        """Count the rows of another part of the log as well."""
        for reason, row_ids in others.newest.items():
            self.add(reason, row_ids, others.counts[reason])


# --- From rows to runs -----------------------------------------------------------------------------------


class Entry(NamedTuple):
    """A row that verdicts can use; entries sort as their runs happened."""

    stamp: datetime
    is_end: bool
    row_id: int
    backup_id: str
    type: str
    url: str
    said: Said
    message: str = ""
    is_cut: bool = False


def fold(entries: Iterable[Entry]) -> list[Run]:
    """The runs of one container from its entries in any order; by their first entries, the oldest first.

    Entries of one `backup_id` are a run; a start begins another one if there has been a start with another stamp.
    """
    runs: list[Run] = []
    newest: dict[str, Run] = {}
    for stamp, is_end, _, backup_id, kind, url, said, message, is_cut in sorted(entries):
        run = newest.get(backup_id)
        if run is None or (not is_end and run.start_logged and run.started != stamp):
            run = newest[backup_id] = Run(stamp, backup_id, start_logged=False)
            runs.append(run)
        if not run.start_logged:
            run.started, run.start_logged = stamp, not is_end
        if is_end:
            run.ended = stamp
        if said.meaning > run.said.meaning:
            run.said = said
        run.type = run.type or kind
        run.url = url or run.url
        run.is_cut = run.is_cut or is_cut
        if message and f"\n{message}\n" not in f"\n{run.message}\n":
            run.message = f"{run.message}\n{message}" if run.message else message
    return runs


@dataclass
class ContainerLog:
    """The log of one container."""

    runs: list[Run] = field(default_factory=list)
    runs_then: list[Run] = field(default_factory=list)
    """The runs as the log showed them at an earlier moment."""
    ignored: IgnoredRows = field(default_factory=IgnoredRows)
    newest_row: datetime | None = None
    """The newest row that is not future, aware UTC."""
    last_name: str | None = None
    """What the newest row calls the container."""


@dataclass(frozen=True)
class RowReader:
    """How the rows of a log are understood."""

    moment: Moment
    log_zone: tzinfo
    """That of `backups.ts`."""
    patterns: Patterns = field(default_factory=Patterns)
    keeps_messages: bool = False
    """Whether whole messages are asked for; else only the lines that decide are kept."""

    def read(self, rows: Iterable[PlainRow], then: datetime) -> ContainerLog:
        """The log of one container, from its rows in any order, now and as it was `then`."""
        log = ContainerLog()
        entries: list[Entry] = []
        for row in rows:
            if row.ts is None:
                log.ignored.add(UNDATED, [row.id])
                continue
            stamp = utc_from_local(row.ts, self.log_zone)
            if stamp > self.moment.latest:
                if not self.moment.hides_later:
                    log.ignored.add(FUTURE, [row.id])
                continue
            if log.newest_row is None or stamp > log.newest_row:
                log.newest_row, log.last_name = stamp, row.name
            entry = self._entry(row, stamp)
            if entry is None:
                log.ignored.add(MALFORMED, [row.id])
                continue
            entries.append(entry)
        log.runs = fold(entries)
        log.runs_then = fold(entry for entry in entries if entry.stamp <= then)
        return log

    def _entry(self, row: PlainRow, stamp: datetime) -> Entry | None:
        """The entry of a row; None if the row is malformed."""
        state = (row.state or "").strip().casefold()
        if not row.backup_id or state not in ("start", "end"):
            return None
        message = row.message or "" if row.message_end is None else _without_break(row.message or "", row.message_end)
        said = messages.judge_message(message, self.patterns)
        is_cut = len(message) == CUT_LENGTH or row.message_end is not None
        kept = message if self.keeps_messages else ""
        return Entry(stamp, state == "end", row.id, row.backup_id, row.type or "", row.url or "", said, kept, is_cut)


def _without_break(beginning: str, end: str) -> str:
    """What has been read of a very long message, without the two lines that are broken."""
    head, _, broken = beginning.rpartition("\n")
    cut, _, tail = end.partition("\n")
    return "\n".join((head or broken, tail or cut))


def clock_gap(starts: Collection[Start], zone: tzinfo) -> timedelta | None:
    """How far `backup_id` (local time of `zone`) and stamp of most start rows are apart; None if they fit.

    Ids without a time of day are left aside.
    """
    gaps = sorted(gap for gap in (_gap(stamp, backup_id, zone) for stamp, backup_id in starts) if gap is not None)
    wrong = [gap for gap in gaps if gap > LARGEST_GAP]
    return wrong[len(wrong) // 2] if 2 * len(wrong) > len(gaps) else None


def _gap(stamp: datetime, backup_id: str, zone: tzinfo) -> timedelta | None:
    found = _LOCAL_TIME.fullmatch(backup_id.strip())
    if not found:
        return None
    try:
        local = datetime(*map(int, found.groups()), tzinfo=zone)  # type: ignore[arg-type,misc]
    except ValueError:
        return None
    return min(abs(local.replace(fold=occurrence) - stamp) for occurrence in (0, 1))


# --- The log of a site -----------------------------------------------------------------------------------


class NewestRun(NamedTuple):
    """The newest run of a site, whatever container it is of."""

    name: str
    """That of its container."""
    started: datetime
    outcome: Outcome
    is_job: bool = False
    """Whether it is of a job of the whole site, which comes last."""


@dataclass
class SiteLog:
    """The log of a site, read container by container. What it says of the whole site is known at the end of `read`."""

    session: Session
    rules: Rules
    reader: RowReader
    ignored: IgnoredRows = field(default_factory=IgnoredRows)
    """The rows that no verdict could use: the undated ones, and those of the days that were read."""
    newest_row: datetime | None = None
    """The newest row that is not future, aware UTC."""
    newest_run: NewestRun | None = None
    starts: list[Start] = field(default_factory=list)
    """Those of the newest runs, newest first."""

    @property
    def moment(self) -> Moment:
        """The time that the audit is about."""
        return self.reader.moment

    def begins(self, unless_before: datetime | None = None) -> datetime | None:
        """The stamp of the first dated row, aware UTC; None if it lies before `unless_before`, or there is none."""
        first = admin_db.read_first_stamp(self.session, unless_before and self.log_time_before(unless_before))
        return first and utc_from_local(first, self.reader.log_zone)

    def read(
        self, containers: Iterable[Container], then: datetime, history_from: datetime
    ) -> Iterator[tuple[Container, ContainerLog]]:
        """Each container with its log: the last days, if they decide both verdicts (of now, and of the earlier moment
        `then`) and the history since `history_from`; else all of its rows.
        """
        waiting = {key_of(container): container for container in containers}
        undecided = []
        # all rows of a run that started later are read
        whole_from = min(history_from - self.rules.longest_cover, then - TYPICAL_PERIOD)
        read_from = self.log_time_before(whole_from - self.rules.max_runtime)
        for key, rows in _by_container(admin_db.read_log(self.session, read_from)):
            log = self.reader.read(rows, then)
            container = waiting.pop(key, None)
            self._note(log, container, is_job=key[0] == 0)
            if container is None:
                continue
            if _is_decided(container, log, whole_from, history_from):
                yield container, log
            else:
                undecided.append(container)
        if self.newest_row is None:  # the whole site has been silent for so long
            newest = admin_db.read_newest_rows(self.session, 1, until=self.log_time_before(self.moment.latest))
            self.newest_row = next((utc_from_local(row.ts, self.reader.log_zone) for row in newest if row.ts), None)
        yield from self.read_whole([*undecided, *waiting.values()], then)

    def read_whole(self, containers: Iterable[Container], then: datetime) -> Iterator[tuple[Container, ContainerLog]]:
        """Each container with all of its log."""
        waiting = {key_of(container): container for container in containers}
        c_ids = {c_id for c_id, _ in waiting if c_id is not None}
        for key, rows in _by_container(admin_db.read_log(self.session, c_ids=c_ids) if c_ids else ()):
            container = waiting.pop(key, None)
            if container is not None:
                yield container, self.reader.read(rows, then)
        for container in waiting.values():
            yield container, ContainerLog()

    def log_time_before(self, moment: datetime) -> datetime:
        """A naive time of the log that is not after a moment, whatever clocks were changed in between."""
        return (moment - CLOCK_CHANGE).astimezone(self.reader.log_zone).replace(tzinfo=None)

    def _note(self, log: ContainerLog, container: Container | None, is_job: bool) -> None:
        """Keep what is known of the site as a whole."""
        self.ignored.add_all(log.ignored)
        if log.newest_row and (self.newest_row is None or log.newest_row > self.newest_row):
            self.newest_row = log.newest_row
        starts = [(run.started, run.backup_id) for run in log.runs if run.start_logged]
        self.starts = heapq.nlargest(STARTS_COMPARED, [*self.starts, *starts[-STARTS_COMPARED:]])
        newest = max(log.runs, key=lambda run: run.started, default=None)
        if newest and (self.newest_run is None or newest.started > self.newest_run.started):
            limit = run_limit(typical_duration(log.runs, self.moment.now), self.rules)
            name = container.name if container else log.last_name or "an unknown container"
            self.newest_run = NewestRun(name, newest.started, newest.outcome(self.moment.now, limit), is_job)


def key_of(container: Container) -> _Key:
    """What ties a container to its log rows."""
    return container.c_id, None if container.c_id else container.name


def _by_container(rows: Iterable[PlainRow]) -> Iterator[tuple[_Key, Iterable[PlainRow]]]:
    """Rows that come in the order of `c_id`, container by container. Site-wide jobs are told apart by name."""
    for c_id, some in groupby(rows, attrgetter("c_id")):
        if c_id == 0:
            by_name = sorted(some, key=lambda row: row.name or "")
            yield from (((0, name), job) for name, job in groupby(by_name, attrgetter("name")))
        else:
            yield (c_id, None), some


def _is_decided(container: Container, log: ContainerLog, whole_from: datetime, history_from: datetime) -> bool:
    """Whether older rows can change nothing."""
    if container.is_job and not any(run.started <= history_from for run in log.runs):
        return False  # a job is known from its own first row
    return _has_success(log.runs, whole_from) and _has_success(log.runs_then, whole_from)


def _has_success(runs: Iterable[Run], whole_from: datetime) -> bool:
    """Whether the newest succeeded run is known for certain: it and all newer ones are in sight as a whole."""
    for run in newest_first(runs):
        if not run.start_logged or run.started < whole_from:
            return False
        if run.succeeded:
            return True
    return False
