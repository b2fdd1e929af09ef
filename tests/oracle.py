"""What the audit has to say of a site, worked out a second time: from docs/rules.md alone, plainly, without its code.

The oracle reads every row of every table and forgets nothing, so it cannot miss a row for having read too little.
It never reads a clock: it answers for a moment, as `--at` does, and does not see what was written later.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from itertools import pairwise
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

from sqlalchemy import Engine, text

ERROR = "pg_dump: error: query failed: ERROR:  permission denied for table visits"
UNKNOWN = "Disk is 100% used"
"""Beside the empty line the only ones that the oracle can judge."""
JUDGED = {"": "fine", ERROR: "error", UNKNOWN: "unrecognised"}

POLICY_KEYS = ("Info.BACKUP_FREQ", "Info.backup_freq", "Info.labels.BACKUP_FREQ", "Info.labels.backup_freq")
LONG_AGO = datetime(1970, 1, 1, tzinfo=timezone.utc)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)

Key = tuple[int, str]
"""The `c_id` and the name: all jobs of the site share the `c_id` 0."""


@dataclass(frozen=True)
class Rules:
    """The settings that decide verdicts; all times are hours, `weekly_day` 0 is Monday."""

    window: float = 24
    grace: float = 3
    max_runtime: float = 12
    weekly_day: int = 5
    policies: Mapping[str, float] = field(default_factory=dict)
    extra_jobs: Mapping[str, str] = field(default_factory=dict)
    timezone: str = "UTC"
    db_timezone: str = "UTC"

    def due(self, policy: str | None, base: datetime) -> datetime | None:
        """When a newer good backup must have started, after one that started at `base`; None if never."""
        if policy in (None, "never", "none"):
            return None
        if policy != "weekly":
            return base + {"daily": self.window, **self.policies}[policy] * HOUR
        zone = ZoneInfo(self.timezone)
        days = [base.astimezone(zone).date() + number * DAY for number in range(9)]
        midnights = [datetime(day.year, day.month, day.day, tzinfo=zone).astimezone(timezone.utc) for day in days]
        weekly = [each for each in midnights if each.astimezone(zone).weekday() == self.weekly_day and each > base]
        return weekly[0] + self.window * HOUR


class Row(NamedTuple):
    """A row of the log that is neither undated nor malformed; `ts` is UTC, `state` is `start` or `end`."""

    ts: datetime
    state: str
    backup_id: str
    message: str


@dataclass
class Run:
    """A run; `error` and `unrecognised` are the first such lines of its messages."""

    started: datetime
    ended: datetime | None = None
    has_start: bool = False
    error: str | None = None
    unrecognised: str | None = None

    @property
    def duration(self) -> timedelta | None:
        """From start to end; None if either is missing, or if it ended before it started."""
        return self.ended - self.started if self.has_start and self.ended and self.ended >= self.started else None

    def outcome(self, now: datetime, limit: timedelta) -> str:
        """`failed`, `succeeded`, `running` or `stalled`."""
        if self.error is not None:
            return "failed"
        return "succeeded" if self.ended else "running" if now - self.started < limit else "stalled"


class Subject(NamedTuple):
    """A container or an extra job; `policy` is None if it is not a known one, `created` if that is unknown."""

    policy: str | None
    state: str
    created: datetime | None
    log: Key


class Verdict(NamedTuple):
    """What there is to say of a container; `line` is that for which it is `failed` or `unsure`."""

    status: str
    due: datetime | None
    last_success: Run | None
    last_run: Run | None
    last_outcome: str | None
    failures_in_a_row: int
    typical: timedelta | None
    line: str | None


class Oracle:
    """All rows of a site, and the rules that it is judged by."""

    def __init__(self, engine: Engine, rules: Rules) -> None:
        self.rules = rules
        with engine.connect() as db:
            containers = {row.id: row for row in db.execute(text("SELECT * FROM containers"))}
            states = {row.c_id: row for row in db.execute(text("SELECT * FROM container_state ORDER BY id"))}
            log = db.execute(text("SELECT * FROM backups ORDER BY id")).all()
        self.stamps: dict[Key, list[datetime]] = {}
        self.log: dict[Key, list[Row]] = {}
        for row in log:
            ts, state = _utc(row.ts, ZoneInfo(rules.db_timezone)), (row.state or "").strip().lower()
            key = (row.c_id, "" if row.c_id else row.name)
            if ts is None:
                continue
            self.stamps.setdefault(key, []).append(ts)
            if row.backup_id is not None and state in ("start", "end"):
                self.log.setdefault(key, []).append(Row(ts, state, row.backup_id, row.err_msg or ""))
        self.subjects: dict[Key, Subject] = {}
        for c_id, active in states.items():
            made = containers.get(c_id)
            name = active.name or (made and made.name) or f"c_id {c_id}"
            created = _utc(made.ts, timezone.utc) if made else None
            policy = self._known(_policy(made.data) if made else None)
            self.subjects[c_id, name] = Subject(policy, active.state or "", created, (c_id, ""))
        for name, freq in rules.extra_jobs.items():
            self.subjects[0, name] = Subject(self._known(freq), "running", None, (0, name))

    def _known(self, policy: str | None) -> str | None:
        name = (policy or "").strip().lower()
        return name if name in ("daily", "weekly", "never", "none", *self.rules.policies) else None

    def runs(self, log: Key, at: datetime) -> list[Run]:
        """The runs of a container that its rows tell of until then, oldest first."""
        by_id: dict[str, list[Run]] = {}
        for row in sorted(self.log.get(log, []), key=lambda row: (row.ts, row.state == "end")):
            if row.ts > at:
                break
            runs = by_id.setdefault(row.backup_id, [])
            if not runs or (row.state == "start" and runs[-1].has_start and runs[-1].started != row.ts):
                runs.append(Run(row.ts))
            run = runs[-1]
            if row.state == "start" or not run.has_start:
                run.started = row.ts
            if row.state == "start":
                run.has_start = True
            else:
                run.ended = row.ts
            for line in row.message.split("\n"):
                kind = JUDGED[line.removeprefix("Result: ")]
                run.error = line if run.error is None and kind == "error" else run.error
                run.unrecognised = line if run.unrecognised is None and kind == "unrecognised" else run.unrecognised
        return sorted((run for runs in by_id.values() for run in runs), key=lambda run: run.started)

    def limit(self, runs: list[Run], at: datetime) -> tuple[timedelta, timedelta | None]:
        """How long a run may take, and the typical duration, if known."""
        good = [run for run in _good(runs) if run.started >= at - 30 * DAY]
        durations = sorted(run.duration for run in good if run.duration is not None)
        most = self.rules.max_runtime * HOUR
        if len(durations) < 3:
            return most, None
        typical = durations[3 * len(durations) // 4]
        return min(max(10 * typical, HOUR), max(most, 2 * typical)), typical

    def verdicts(self, at: datetime, asked: datetime | None = None) -> dict[Key, Verdict]:
        """The verdict of every container that was there at that moment, as it looked when it was asked for."""
        judged = {key: self._verdict(subject, at, asked) for key, subject in self.subjects.items()}
        return {key: verdict for key, verdict in judged.items() if verdict}

    def _verdict(self, subject: Subject, at: datetime, asked: datetime | None) -> Verdict | None:
        runs, created = self.runs(subject.log, at), self._creation(subject, asked) if asked else subject.created
        if created and created > at and not runs:
            return None
        limit, typical = self.limit(runs, at)
        outcomes = [(run, run.outcome(at, limit)) for run in runs]
        good = max(_good(runs), key=lambda run: run.started, default=None)
        since = [outcome for run, outcome in outcomes if not good or run.started > good.started]
        last, last_outcome = outcomes[-1] if runs else (None, None)
        concluded, outcome = next((each for each in reversed(outcomes) if each[1] != "running"), (None, ""))
        due = self.rules.due(subject.policy, good.started if good else self._creation(subject, at))
        if due is None:
            status = "exempt" if subject.policy else "no_policy"
        elif outcome in ("failed", "stalled"):
            status = outcome
        elif at < due:
            status = "new" if not good else "ok" if good.unrecognised is None else "unsure"
        elif last_outcome == "running":
            status = "running"
        elif subject.state.strip().lower() != "running":
            status = "paused"
        else:
            status = "late" if at < due + self.rules.grace * HOUR else "missed"
        failures = since.count("failed") + since.count("stalled")
        lines = {"failed": concluded.error if concluded else None, "unsure": good.unrecognised if good else None}
        return Verdict(status, due, good, last, last_outcome, failures, typical, lines.get(status))

    def _creation(self, subject: Subject, at: datetime) -> datetime:
        known = subject.created and subject.created <= at + timedelta(minutes=5)
        return subject.created if known and subject.created else LONG_AGO

    def history(self, at: datetime, days: float) -> dict[Key, tuple[float, timedelta] | None]:
        """The covered ratio of the last `days` x 24 hours and the worst age, None where no time counts."""
        site = [ts for stamps in self.stamps.values() for ts in stamps]
        answer: dict[Key, tuple[float, timedelta] | None] = {}
        for key, subject in self.subjects.items():
            begins = min(site if key[0] else self.stamps.get(subject.log, []), default=at)
            known = max(begins, self._creation(subject, at))
            counted = self.rules.due(subject.policy, known) and max(known, at - days * DAY) < at
            answer[key] = self._coverage(subject, known, max(known, at - days * DAY), at) if counted else None
        return answer

    def _coverage(self, subject: Subject, known: datetime, start: datetime, at: datetime) -> tuple[float, timedelta]:
        good = [run for run in _good(self.runs(subject.log, at)) if run.ended]
        # no run succeeds before it began, and what was before the container is known does not count
        ended = [(max(run.ended, run.started), run.started) for run in good if run.ended and run.started >= known]
        covered = worst = timedelta(0)
        for begin, end in pairwise(sorted({start, at, *(moment for moment, _ in ended if start < moment < at)})):
            base = max((started for moment, started in ended if moment <= begin), default=known)
            due = self.rules.due(subject.policy, base)
            if due:
                covered += max(min(due + self.rules.grace * HOUR, end) - begin, timedelta(0))
            worst = max(worst, end - base)
        return covered / (at - start), worst


def _good(runs: list[Run]) -> list[Run]:
    return [run for run in runs if run.ended and run.error is None]


def _utc(stamp: Any, zone: ZoneInfo | timezone) -> datetime | None:
    """A stamp of the database as UTC; None if it is none. SQLite keeps text."""
    try:
        local = datetime.fromisoformat(stamp) if isinstance(stamp, str) else stamp
    except ValueError:
        return None
    return local and local.replace(tzinfo=zone).astimezone(timezone.utc)


def _policy(document: Any) -> str | None:
    document = json.loads(document) if isinstance(document, str) else document
    for path in (*POLICY_KEYS, "Config.Labels.BACKUP_FREQ"):
        value = document
        for key in path.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        if isinstance(value, str) and value:
            return value
    return None
