"""The bounded reads come to the same verdicts as reading the whole log, whatever the order of its rows.

The audit reads the end of the log, and looks into the rest only for what that part cannot prove. Here its
bounds are made so tight that they cut these small logs, and its verdicts are compared with those that
`judge` reaches on every row, grouped by plain Python.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, insert, select

import admin_db
from backup_audit import judge_site
from models import BackupLog, ContainerRow, ContainerState
from policy import UTC, Container, Rules, Run, Status, Verdict, find_error, judge
from settings import Settings
from tests.builders import CREATED, NOW, Site

RULES = Rules()
LOCAL_NOW = NOW.replace(tzinfo=None)
FAILED = "pg_dump: error: query failed: ERROR:  permission denied for table visits"
FINE = "\nExecuted Postgres dump_all commands:\npg_dump --dbname sales --username pgdba"
ORDERS = ("insertion", "restored", "by container", "starts first", "ends first", "backwards", "shuffled")


@dataclass(frozen=True)
class Log:
    """A random site: a policy for each container, and rows of the log in the order of their ids."""

    policies: list[str]
    rows: list[dict[str, Any]]
    order: str


@st.composite
def logs(draw: st.DrawFn) -> Log:
    policies = draw(st.lists(st.sampled_from(["Daily", "Weekly", "Never", "Dialy"]), min_size=1, max_size=5))
    chance = random.Random(draw(st.integers(0, 2**32)))  # noqa: S311  # no secret
    rows = [row for c_id, policy in enumerate(policies, 1) for row in _past(c_id, policy, chance)]
    order = draw(st.sampled_from(ORDERS))
    rows = _arranged(rows, order, chance)
    row_id = chance.choice([-50, 1, 2**31 - 10_000_000])
    for row in rows:
        row["id"] = row_id
        row_id += chance.choice([1, 1, 1, 2, 1000])
    return Log(policies, rows, order)


def _past(c_id: int, policy: str, chance: random.Random) -> Iterator[dict[str, Any]]:
    """The rows of a container's runs, over a time and with troubles of their own."""
    newest = chance.choice([0, 0, 0, 1, 2, 5, 12, 40, 200])
    oldest = newest + chance.choice([0, 1, 3, 20, 60, 400])
    step = 7 if policy == "Weekly" else 1
    for days in range(newest, oldest, step * chance.choice([1, 1, 3])):
        start = LOCAL_NOW - timedelta(days=days, hours=chance.uniform(0, 30))
        trouble = chance.choice(["", "", "", "", "failed", "failed at start", "unfinished", "end only", "long"])
        key = f"{start:%Y%m%d-%H:%M:%S}-{chance.randrange(1000)}"
        length = timedelta(hours=chance.uniform(20, 60)) if trouble == "long" else timedelta(minutes=31)
        if trouble != "end only":
            yield _row(c_id, key, "start", start, FAILED if trouble == "failed at start" else "")
        if trouble != "unfinished" and start + length <= LOCAL_NOW:
            yield _row(c_id, key, "end", start + length, FAILED if trouble == "failed" else FINE)


def _row(c_id: int, backup_id: str, state: str, ts: datetime, err_msg: str) -> dict[str, Any]:
    return {"c_id": c_id, "backup_id": backup_id, "state": state, "ts": ts, "err_msg": err_msg, "backup_type": "Daily"}


def _arranged(rows: list[dict[str, Any]], order: str, chance: random.Random) -> list[dict[str, Any]]:
    """The rows in the order of their ids: as they were logged, or as somebody brought them back."""
    rows = sorted(rows, key=lambda row: row["ts"])
    if order == "restored":  # an old part was lost, and came back behind the newest rows
        first, last = sorted(chance.randrange(len(rows) + 1) for _ in range(2))
        return rows[:first] + rows[last:] + rows[first:last]
    if order == "shuffled":
        return chance.sample(rows, len(rows))
    keys = {
        "by container": lambda row: row["c_id"],
        "starts first": lambda row: row["state"] == "end",
        "ends first": lambda row: row["state"] == "start",
    }
    return rows[::-1] if order == "backwards" else sorted(rows, key=keys.get(order, lambda row: 0))


def _store(site: Site, log: Log) -> None:
    with site.session() as session:
        for model in (BackupLog, ContainerState, ContainerRow):
            session.execute(delete(model))
        for c_id, policy in enumerate(log.policies, 1):
            session.execute(insert(ContainerRow).values(id=c_id, data={"Info": {"BACKUP_FREQ": policy}}, ts=CREATED))
            session.execute(insert(ContainerState).values(id=c_id, c_id=c_id, name=f"c{c_id}", state="running"))
        if log.rows:
            session.execute(insert(BackupLog), log.rows)


def _bounded(site: Site) -> list[Verdict]:
    """The verdicts of the real audit."""
    url = site.engine.url if site.database else f"sqlite:///{site.settings['database_url'].split('///')[1]}"
    libpq = {"passfile": site.settings["pgpass_file"]} if site.database else {}
    engine = admin_db.make_engine(url, read_only=True, libpq=libpq)
    options = Settings(container_host="", prometheus_file=Path("x.prom"), history_days=0)
    with admin_db.audit_session(engine) as session:
        reader = admin_db.AuditReader(session, RULES, NOW)
        site_ = reader.site()
        return judge_site(reader, site_, reader.recent(site_), options).verdicts


def _plain(site: Site, log: Log) -> list[Verdict]:
    """The verdicts on every row of the log, grouped without any SQL."""
    grouped: dict[tuple[int, str], list[Any]] = defaultdict(list)
    with site.session() as session:
        for row in session.execute(select(BackupLog.__table__)):
            grouped[row.c_id, row.backup_id].append(row)
    runs: dict[int, list[Run]] = defaultdict(list)
    for (c_id, backup_id), rows in grouped.items():
        starts = [row.ts.replace(tzinfo=UTC) for row in rows if row.state == "start"]
        ends = [row.ts.replace(tzinfo=UTC) for row in rows if row.state == "end"]
        error = find_error([row.err_msg for row in rows], RULES.error_pattern)
        started = min(starts) if starts else max(ends)
        runs[c_id].append(Run(backup_id, "Daily", started, max(ends, default=None), error, bool(starts)))
    return [
        judge(Container(c_id, f"c{c_id}", policy, created=CREATED.replace(tzinfo=UTC)), runs[c_id], NOW, RULES)
        for c_id, policy in enumerate(log.policies, 1)
    ]


def _essence(verdict: Verdict) -> tuple[object, ...]:
    """What the two ways of reading must agree on."""
    if verdict.status in (Status.EXEMPT, Status.NO_POLICY):
        return verdict.container.name, verdict.status  # their runs are looked for in the recent part alone
    return verdict.container.name, verdict.status, verdict.due, verdict.last_run, verdict.last_success, verdict.reason


@pytest.fixture
def tight(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """No log is small enough to be read whole."""
    monkeypatch.setattr(admin_db, "SMALL_LOG", 0)
    return monkeypatch


def _compare(site: Site, log: Log) -> None:
    _store(site, log)
    assert [*map(_essence, _bounded(site))] == [*map(_essence, _plain(site, log))]


FIXTURES = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


@settings(max_examples=80, suppress_health_check=FIXTURES)
@given(log=logs())
def test_the_bounded_reads_are_exact_on_sqlite(sqlite_site: Site, tight: pytest.MonkeyPatch, log: Log) -> None:
    _compare(sqlite_site, log)


@settings(max_examples=25, suppress_health_check=FIXTURES)
@given(log=logs())
def test_the_bounded_reads_are_exact_on_postgresql(site: Site, tight: pytest.MonkeyPatch, log: Log) -> None:
    _compare(site, log)


@settings(max_examples=50, suppress_health_check=FIXTURES)
@given(log=logs().filter(lambda log: log.order in ("insertion", "restored", "by container", "starts first")))
def test_few_probes_are_enough_where_ids_grow_with_time(sqlite_site: Site, tight: pytest.MonkeyPatch, log: Log) -> None:
    tight.setattr(admin_db, "PROBES", 4)
    tight.setattr(admin_db, "PROBE_ROWS", 2)
    _compare(sqlite_site, log)


def test_the_bounds_do_cut_such_logs(sqlite_site: Site, tight: pytest.MonkeyPatch) -> None:
    """The tests above would prove nothing if these logs were read whole."""
    rows = [
        _row(1, f"run-{days}", state, LOCAL_NOW - timedelta(days=days, hours=1), "")
        for days in range(300, -1, -1)
        for state in ("start", "end")
    ]
    for number, row in enumerate(rows, 1):
        row["id"] = number
    _store(sqlite_site, Log(["Daily"], rows, "insertion"))
    engine = admin_db.make_engine(sqlite_site.settings["database_url"], read_only=True)
    with admin_db.audit_session(engine) as session:
        reader = admin_db.AuditReader(session, RULES, NOW)
        site = reader.site()
        log = reader.recent(site)
    assert site.floor is not None
    assert 500 < site.floor < 600
    assert 1 <= len(log.of(site.containers[0])) < 10
