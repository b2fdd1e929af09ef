"""The verdicts of a site by a plain full read, written from SPEC section 2 alone.

Slow and plain on purpose: no code is the program's, every row of every table is read, and the table of statuses is
gone through from top to bottom. Local times that clocks skip are not in the specification, and nobody's log has them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone, tzinfo
from typing import Any

from sqlalchemy import Engine, text

UTC = timezone.utc
LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)
TOLERANCE = timedelta(minutes=5)
PLACES_OF_A_POLICY = (
    ("Info", "BACKUP_FREQ"),
    ("Info", "backup_freq"),
    ("Info", "labels", "BACKUP_FREQ"),
    ("Info", "labels", "backup_freq"),
    ("Config", "Labels", "BACKUP_FREQ"),
)


@dataclass(frozen=True)
class Terms:
    """The settings that a verdict depends on, in hours; names in lower case."""

    zone: tzinfo = UTC
    weekly_day: int = 5
    window: float = 24
    grace: float = 6
    max_runtime: float = 24
    policies: Mapping[str, float] = field(default_factory=dict)
    extra_jobs: Mapping[str, str] = field(default_factory=dict)
    error: str = r"(?im)^pg_dump: error:"


@dataclass(frozen=True)
class PlainRun:
    """A run as the specification tells it."""

    started: datetime
    backup_id: str
    has_end: bool
    is_error: bool

    def outcome(self, now: datetime, terms: Terms) -> str:
        if self.is_error:
            return "failed"
        if self.has_end:
            return "succeeded"
        return "running" if now - self.started < hours(terms.max_runtime) else "stalled"


@dataclass(frozen=True)
class Answer:
    """What the specification says of a container; the runs are named by their `backup_id`."""

    status: str
    due: datetime | None = None
    last_success: str | None = None
    last_run: str | None = None


def hours(number: float) -> timedelta:
    return timedelta(hours=number)


def ignored(engine: Engine, since: datetime, now: datetime, terms: Terms, *, at: bool) -> dict[str, int]:
    """The log rows that no verdict can use: the undated ones, and the others stamped since a moment."""
    counts = {"future": 0, "malformed": 0, "undated": 0}
    with engine.connect() as connection:
        for row in connection.execute(text("SELECT state, backup_id, ts FROM backups")):
            local = local_time(row.ts)
            moment = local and moment_of(local, terms.zone)
            if moment is None:
                counts["undated"] += 1
            elif moment > now + (timedelta(0) if at else TOLERANCE):
                counts["future"] += not at
            elif moment >= since and (not row.backup_id or str(row.state).strip().lower() not in ("start", "end")):
                counts["malformed"] += 1
    return counts


def verdicts(engine: Engine, now: datetime, terms: Terms, *, at: bool) -> dict[int | str, Answer]:
    """The answers on all containers by `c_id`, and on the extra jobs by name; with `at`, as `--at` has it."""
    with engine.connect() as connection:
        containers = {row.id: row for row in connection.execute(text("SELECT id, data, ts FROM containers"))}
        states = list(connection.execute(text("SELECT c_id, state FROM container_state ORDER BY id")))
        log: dict[tuple[int | None, str | None], list[Any]] = {}
        for row in connection.execute(text("SELECT c_id, name, state, backup_id, err_msg, ts FROM backups")):
            log.setdefault((row.c_id, row.name if row.c_id == 0 else None), []).append(row)
    latest = now if at else now + TOLERANCE
    answers: dict[int | str, Answer] = {}
    for c_id, state in {row.c_id: row.state for row in states if row.c_id}.items():
        runs = runs_of(log.get((c_id, None), []), latest, terms)
        container = containers.get(c_id)
        created = local_time(container.ts) if container else None
        born = created.replace(tzinfo=UTC) if created else None
        if not (at and born and born > now and not runs):
            policy = policy_of(container.data) if container else None
            answers[c_id] = answer(policy, state, born, runs, now, terms)
    for name, policy in terms.extra_jobs.items():
        runs = runs_of(log.get((0, name), []), latest, terms)
        answers[name] = answer(policy, "running", None, runs, now, terms)
    return answers


def local_time(value: Any) -> datetime | None:
    """A naive time stamp; SQLite has it as text."""
    if value is None or isinstance(value, datetime):
        return value
    return datetime.fromisoformat(re.sub(r"\.(\d+)$", lambda match: f".{match[1]:0<6}", str(value)))


def policy_of(data: Any) -> str | None:
    document = json.loads(data) if isinstance(data, str) else data
    for path in PLACES_OF_A_POLICY:
        value: Any = document
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        if isinstance(value, str) and value:
            return value
    return None


def moment_of(local: datetime, zone: tzinfo, not_before: datetime | None = None) -> datetime:
    """A local time that occurs twice is its first occurrence, unless the run would then end before it started."""
    first, second = (local.replace(tzinfo=zone, fold=fold).astimezone(UTC) for fold in (0, 1))
    return second if not_before is not None and first < not_before <= second else first


def runs_of(rows: Iterable[Any], latest: datetime, terms: Terms) -> list[PlainRun]:
    """The runs in the rows of one container, without the undated, malformed, future and unseen ones."""
    by_id: dict[str, list[tuple[str, datetime, str]]] = {}
    for row in rows:
        ts, state = local_time(row.ts), (row.state or "").strip().lower()
        if ts is not None and row.backup_id and state in ("start", "end") and moment_of(ts, terms.zone) <= latest:
            by_id.setdefault(row.backup_id, []).append((state, ts, row.err_msg or ""))
    runs = []
    for backup_id, own in by_id.items():
        starts = [moment_of(ts, terms.zone) for state, ts, _ in own if state == "start"]
        ends = [moment_of(ts, terms.zone) for state, ts, _ in own if state == "end"]
        is_error = any(re.search(terms.error, message) for _, _, message in own)
        runs.append(PlainRun(min(starts) if starts else max(ends), backup_id, bool(ends), is_error))
    return runs


def due_after(policy: str, base: datetime, terms: Terms) -> datetime:
    if policy == "daily":
        return base + hours(terms.window)
    if policy != "weekly":
        return base + hours(terms.policies[policy])
    today = base.astimezone(terms.zone).date()
    days = [datetime(today.year, today.month, today.day) + timedelta(days=number) for number in range(9)]
    midnights = [moment_of(day, terms.zone) for day in days if day.weekday() == terms.weekly_day]
    return min(midnight for midnight in midnights if midnight > base) + hours(terms.window)


def answer(
    policy: str | None, state: str | None, born: datetime | None, runs: Sequence[PlainRun], now: datetime, terms: Terms
) -> Answer:
    """The table of statuses of SPEC section 2, from top to bottom."""
    by_start = sorted(runs, key=lambda run: (run.started, run.backup_id))
    outcomes = [run.outcome(now, terms) for run in by_start]
    good = [run for run, outcome in zip(by_start, outcomes, strict=True) if outcome == "succeeded"]
    concluded = next((outcome for outcome in reversed(outcomes) if outcome != "running"), None)
    found = (good[-1].backup_id if good else None, by_start[-1].backup_id if by_start else None)

    word = (policy or "").strip().lower()
    if word not in ("daily", "weekly", "never", "none", *terms.policies):
        return Answer("no_policy", None, *found)
    if word in ("never", "none"):
        return Answer("exempt", None, *found)
    if born is None or born > now + TOLERANCE:
        born = LONG_AGO
    due = due_after(word, good[-1].started if good else born, terms)
    table = [
        ("running", outcomes[-1:] == ["running"] and not (concluded == "succeeded" and now < due)),
        ("failed", concluded == "failed"),
        ("stalled", concluded == "stalled"),
        ("ok", now < due and bool(good)),
        ("new", now < due),
        ("paused", (state or "").strip().lower() != "running"),
        ("late", now < due + hours(terms.grace)),
        ("missed", True),
    ]
    return Answer(next(status for status, applies in table if applies), due, *found)
