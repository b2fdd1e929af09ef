"""From log rows to runs: time zones, messages, and the rows that no verdict can use (SPEC section 2)."""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime

from admin_db import SEPARATOR, LoggedRun
from audit import messages
from audit.policy import Rules, Run, utc_from_local

FUTURE, MALFORMED, UNDATED = "future", "malformed", "undated"
NEWEST_SHOWN = 3
"""How many ids of ignored rows are named."""


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


class ContainerLog:
    """The log of one container as runs, at the moment of the audit and at an earlier one."""

    def __init__(self, logged: Iterable[LoggedRun], latest: datetime, rules: Rules) -> None:
        """`latest` is the moment (aware UTC) after which a row is future."""
        self.ignored = IgnoredRows()
        self._rules = rules
        self._read: dict[str | None, _Messages] = {None: ((), None)}  # a container's messages repeat every night
        parts: dict[str | None, LoggedRun] = {}
        early: dict[str | None, LoggedRun] = {}
        stamps: list[datetime | None] = []
        for part in logged:
            if part.stray_id is not None:
                reason = _why_stray(part, latest, rules)
                self.ignored.add(reason, [part.stray_id])
                stamps += [part.stamp] if reason == MALFORMED else []
                continue
            if part.is_early:
                early[part.backup_id] = part
            parts[part.backup_id] = _joined(parts[part.backup_id], part) if part.backup_id in parts else part
        runs = {backup_id: self._run(part) for backup_id, part in parts.items()}
        self.runs = list(runs.values())
        """All runs, in any order."""
        self.early_runs = [
            runs[backup_id] if parts[backup_id] is part else self._run(part) for backup_id, part in early.items()
        ]
        """The runs as the log showed them at the earlier moment, in any order."""
        stamps += [part.stamp for part in parts.values()]
        newest = max(filter(None, stamps), default=None)
        self.newest_row = None if newest is None else utc_from_local(newest, rules.zone)
        """The moment (aware UTC) of the newest row that is not future, or None."""

    def _run(self, part: LoggedRun) -> Run:
        zone, start = self._rules.zone, part.started or part.ended
        assert start is not None  # a row with neither is a stray
        started = utc_from_local(start, zone)
        ended = None if part.ended is None else utc_from_local(part.ended, zone, not_before=started)
        found = self._read.get(part.messages)
        if found is None:
            found = self._read[part.messages] = _messages(part.messages or "", self._rules.error_pattern)
        said, error = found
        return Run(started, part.backup_id or "", part.type or "", ended, error, said, part.started is not None)


_Messages = tuple[tuple[str, ...], str | None]
"""The different messages of a run, and the one that reports an error."""


def _messages(joined: str, error_pattern: re.Pattern[str]) -> _Messages:
    said = tuple(dict.fromkeys(joined.split(SEPARATOR)))
    errors = [message for message in said if messages.is_error(message, error_pattern)]
    return said, min(errors, default=None)  # always the same one: the database joins them in any order


def _joined(one: LoggedRun, other: LoggedRun) -> LoggedRun:
    """Both parts of a run as one."""
    return one._replace(
        type=one.type or other.type,
        started=min((part.started for part in (one, other) if part.started), default=None),
        ended=max((part.ended for part in (one, other) if part.ended), default=None),
        messages=SEPARATOR.join(part.messages for part in (one, other) if part.messages) or None,
        stamp=max((part.stamp for part in (one, other) if part.stamp), default=None),
    )


def _why_stray(row: LoggedRun, latest: datetime, rules: Rules) -> str:
    if row.stamp is None:
        return UNDATED
    return FUTURE if utc_from_local(row.stamp, rules.zone) > latest else MALFORMED


def decides(runs: Iterable[Run], since: datetime) -> bool:
    """Whether these runs are enough for a verdict although older rows have not been read.

    They are if they hold a succeeded run, and it and all newer ones have their `start` row in sight and started
    `since` a moment (aware UTC) from which on runs are known as a whole.
    """
    for run in sorted(runs, reverse=True):
        if not run.start_logged or run.started < since:
            return False
        if run.ended is not None and run.error is None:
            return True
    return False


def unrecognised(run: Run, pattern: re.Pattern[str]) -> str | None:
    """The message of a run that is neither an error nor known as fine (`success_pattern`), or None."""
    if run.error is not None:
        return None
    return next((message for message in run.messages if not messages.is_known(message, pattern)), None)


def notes(run: Run, rules: Rules) -> list[str]:
    """What is odd about a run and does not change the verdict."""
    found = []
    if run.ended is not None and run.ended < run.started:
        found.append("its end is stamped before its start: the duration is unknown")
    message = unrecognised(run, rules.success_pattern)
    if message is not None:
        found.append(f'its message is not known as fine: "{message}"')
    return found
