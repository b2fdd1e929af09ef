"""What one audit found, before anybody formats it: plain frozen data and the questions that reports ask of it."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from audit.policy import DAY, Container, KnownProblem, Rules, Run, Status, Verdict
from audit.runs import IgnoredRows

REMINDED = 7 * DAY
"""For how long the report says that an exception has ended."""


class Change(str, enum.Enum):
    """How a container's status differs from 24 hours ago."""

    NEW = "new"
    RECOVERED = "recovered"
    OTHERWISE = "changed"


@dataclass(frozen=True)
class Finding:
    """What the audit found of one container."""

    verdict: Verdict
    yesterday: Verdict | None = None
    """The verdict of 24 hours ago; None if the container did not exist then."""
    known_problem: KnownProblem | None = None
    """The container's exception, if it is in force or ended within the last week."""
    notes: tuple[str, ...] = ()
    """What is odd, and changes no verdict."""
    unrecognised: int = 0
    """The runs of the last `window_hours` whose message is neither an error nor known as fine."""
    covered_ratio: float | None = None
    """The share of the last `history_days` in which the container was covered, from 0 to 1; None if none counts."""
    typical_duration: timedelta | None = None
    """The median duration of the succeeded runs before the last one; None if there are not enough."""
    runs: tuple[Run, ...] = ()
    """All runs, newest first; only for the detail view."""
    ignored: IgnoredRows = field(default_factory=IgnoredRows)
    """The container's log rows that no verdict could use; only for the detail view."""

    @property
    def container(self) -> Container:
        """The container itself."""
        return self.verdict.container

    @property
    def accepted(self) -> bool:
        """Whether an exception is in force, so that a problem does not count."""
        return self.known_problem is not None and self.verdict.now < self.known_problem.ends

    @property
    def is_problem(self) -> bool:
        """Whether the container needs attention."""
        return self.verdict.severity > 0 and not self.accepted

    @property
    def change(self) -> Change | None:
        """How the status differs from 24 hours ago; None if it does not."""
        before = self.yesterday.status if self.yesterday else Status.NEW
        if before is self.verdict.status or (self.yesterday is None and self.verdict.severity == 0):
            return None
        if (before.severity == 0) == (self.verdict.severity == 0):
            return Change.OTHERWISE
        return Change.NEW if before.severity == 0 else Change.RECOVERED


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
    unused_exceptions: tuple[str, ...] = ()
    """Keys of the setting `exceptions` that fit no container."""

    @property
    def severity(self) -> int:
        """The worst severity, accepted problems aside: 0 = OK, 1 = warning, 2 = critical."""
        return max((finding.verdict.severity for finding in self.findings if finding.is_problem), default=0)

    @property
    def unrecognised(self) -> int:
        """The runs of the last `window_hours` whose message is neither an error nor known as fine."""
        return sum(finding.unrecognised for finding in self.findings)

    @property
    def silent(self) -> bool:
        """Whether the whole site logged no run within `window_hours`: then the backup job itself did not run."""
        return self.newest_row is None or self.now - self.newest_row > self.rules.window

    def counts(self) -> dict[Status, int]:
        """Containers by status; every status is there."""
        statuses = [finding.verdict.status for finding in self.findings]
        return {status: statuses.count(status) for status in Status}


def by_change(findings: Iterable[Finding], change: Change) -> list[Finding]:
    """The findings that differ from yesterday in this way, accepted problems aside."""
    return [finding for finding in findings if finding.change is change and not finding.accepted]
