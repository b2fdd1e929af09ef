"""What the audit asks of the server: how often, for what, and in what kind of session."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, delete, event, insert

from audit.policy import DAY, HOUR
from models import BackupLog, Base, ContainerRow, ContainerState
from tests.builders import NOW, SECRET, Site, document
from tests.postgres import Server
from tests.relay import relayed

AT = ("--at", NOW.isoformat())
ERROR = "pg_dump: error: query failed: ERROR:  permission denied for table visits"
CATALOG = 2
"""The SELECTs of a connection that SQLAlchemy makes."""
SELECTS = {"calm": 3, "outage": 3, "ordinary": 4}
"""The clock, the containers, the days read, and the whole log of those that these days do not decide."""


def fill(site: Site, containers: int, state: str) -> None:
    """A site of 40 nights; where all is not well, of every five containers one is as it should be."""
    rows: list[dict[str, Any]] = []
    with site.session() as session:
        for table in Base.metadata.tables.values():
            session.execute(delete(table))
        for c_id in range(1, containers + 1):
            kind = c_id % 5 if state == "ordinary" else 0
            name, policy = f"container {c_id}", "Never" if c_id % 10 == 5 else "Daily"
            created = NOW - (HOUR if kind == 4 else 400 * DAY)
            session.add(ContainerRow(id=c_id, name=name, data=document(name, policy), ts=created.replace(tzinfo=None)))
            session.add(ContainerState(c_id=c_id, name=name, state="running"))
            last = NOW - (2 if state == "outage" or kind == 1 else 200 if kind == 2 else 0) * DAY - 13 * HOUR
            for night in range(40 if kind != 4 and policy != "Never" else 0):
                start = (last - night * DAY).replace(tzinfo=None, second=c_id % 60)
                message = ERROR if kind == 3 and night == 0 else f"2026-03-13T18:07:31.402+0000\twriting {c_id}.{night}"
                run = {"c_id": c_id, "name": name, "backup_id": f"{start:%Y%m%d-%H:%M:%S}", "command": SECRET}
                rows.append({**run, "state": "start", "ts": start, "err_msg": ""})
                rows.append({**run, "state": "end", "ts": start + HOUR / 3, "err_msg": message})
        session.execute(insert(BackupLog), sorted(rows, key=lambda row: row["ts"]))


def counts(site: Site, *argv: str) -> dict[str, int]:
    """The containers by status, where there are any."""
    report = json.loads(site.audit("--json", *AT, *argv).out)
    return {status: count for status, count in report["audit"]["containers"].items() if count}


# --- How many statements, and which --------------------------------------------------------------------


def sent(server: Server, position: int) -> list[str]:
    """What audits sent to a server with `log_statement=all`, from a position in its log on."""
    with (server.folder / "log").open("rb") as log:
        log.seek(position)
        entries = re.split(r"^(?=audit-test\|)", log.read().decode("utf-8", "replace"), flags=re.MULTILINE)
    pattern = re.compile(r"audit-test\|backup_audit\|LOG:  (?:statement|execute [^:]+): (.*)", re.DOTALL)
    return [match[1] for one in entries if (match := pattern.match(one))]


def selects(statements: list[str]) -> list[str]:
    return [one for one in statements if re.match(r"\s*(SELECT|WITH|DECLARE|TABLE|VALUES)\b", one, re.IGNORECASE)]


def assert_right_for_the_log(statements: list[str]) -> None:
    """The log is read by time stamp and never by id, as a stream, and without what holds passwords."""
    readers = [one for one in statements if re.search(r"\bbackups\b", one)]
    for statement in readers:
        assert re.match(r"DECLARE .* CURSOR .* ORDER BY backups\.c_id\s*$", statement, re.DOTALL), statement
        assert re.search(r"WHERE (?:\(*backups\.ts (?:>=|<=|BETWEEN) |backups\.c_id IN )", statement), statement
        assert not re.search(r"\bid\s*(?:[<>=]|IN\b|BETWEEN\b)|ORDER BY backups\.id", statement), statement
    for statement in statements:
        assert not re.search(r"\b(command|url)\b", statement), statement
        assert not re.search(r"\bdata\b(?! #> )", statement), statement


EXPECTED: dict[str, Callable[[int], dict[str, int]]] = {
    "calm": lambda n: {"exempt": n, "ok": 9 * n},
    "outage": lambda n: {"exempt": n, "missed": 9 * n},
    "ordinary": lambda n: {"exempt": n, "ok": n, "missed": 4 * n, "failed": 2 * n, "new": 2 * n},
}


def test_the_number_of_selects_is_the_same_for_any_number_of_containers(
    new_server: Callable[..., Server], tmp_path: Path
) -> None:
    server = new_server(log_statement="all", log_line_prefix="audit-test|%a|")
    database = server.shared_site
    site = Site(database.engine, database.settings, tmp_path, database)
    for state, expected in EXPECTED.items():
        for containers in (10, 200):
            fill(site, containers, state)
            position = (server.folder / "log").stat().st_size
            assert counts(site) == expected(containers // 10)
            statements = sent(server, position)
            verbs = {statement.split()[0].rstrip(";").upper() for statement in statements}
            assert verbs <= {"BEGIN", "SELECT", "SHOW", "SET", "DECLARE", "FETCH", "CLOSE", "ROLLBACK"}
            assert len(selects(statements)) == SELECTS[state] + CATALOG <= 6
            assert_right_for_the_log(statements)
    batches = [int(match[1]) for one in statements if (match := re.match(r"FETCH FORWARD (\d+)", one))]
    assert max(batches) <= 10_000
    assert "backups.c_id IN (" in [one for one in statements if "DECLARE" in one][-1], "only of the undecided ones"
    position = (server.folder / "log").stat().st_size
    for argv in (["container 1", "container 2"], ["--history", "30", "--all"], ["--check-config"]):
        site.audit(*argv, *(AT if argv != ["--check-config"] else ()))
    for statement in sent(server, position):
        assert not re.search(r"\b(command|url)\b", statement), statement


@pytest.mark.parametrize(
    "argv", [("--json",), ("-v",), ("--json", "sales"), ("--history", "30"), ("--check-config",)], ids=" ".join
)
def test_no_password_ever_leaves_the_server(site: Site, argv: tuple[str, ...]) -> None:
    for version, name in enumerate(("sales", "overdue"), start=1):
        c_id = site.container(name, version=version)
        site.run(c_id, NOW - 13 * version * HOUR, NOW - 12 * version * HOUR, message="found in an err_msg")
    with relayed(site) as relay:
        result = site.audit(*argv, *(AT if argv != ("--check-config",) else ()))
    assert result.status < 3, result
    assert b"SELECT" in relay.asked, "the audit went through the relay"
    assert (b"found in an err_msg" in relay.heard) is (argv != ("--check-config",))
    assert SECRET.encode() not in relay.heard
    assert b"POSTGRES_PASSWORD" not in relay.heard


# --- The session ---------------------------------------------------------------------------------------


@contextmanager
def at_the_first_read(action: Callable[[Connection], None]) -> Iterator[list[str]]:
    """Do something when the audit has read the containers, and before it reads the log."""
    done: list[str] = []

    def after(connection: Connection, _cursor: object, statement: str, *_: object) -> None:
        if not done and "container_state" in statement:
            done.append(statement)
            action(connection)

    event.listen(Engine, "after_cursor_execute", after)
    try:
        yield done
    finally:
        event.remove(Engine, "after_cursor_execute", after)


SESSION = {
    "transaction_read_only": "on",
    "transaction_isolation": "repeatable read",
    "application_name": "backup_audit",
    "statement_timeout": "7s",
    "client_encoding": "UTF8",
}


@pytest.mark.parametrize("argv", [(), AT, ("sales",), ("--json", "sales"), ("--history", "9")], ids=" ".join)
def test_the_session_of_the_audit(site: Site, argv: tuple[str, ...]) -> None:
    site.config(query_timeout=7)
    site.container("sales")
    found: dict[str, str] = {}

    def look(connection: Connection) -> None:
        for setting in SESSION:
            cursor = connection.connection.cursor()
            cursor.execute(f"SHOW {setting}")
            ((found[setting],),) = cursor.fetchall()
            cursor.close()

    with at_the_first_read(look):
        assert site.audit(*argv).status < 3
    assert found == SESSION


def test_the_audit_sees_one_snapshot_and_leaves_no_transaction_behind(site: Site) -> None:
    c_id = site.container("sales")
    site.run(c_id, NOW - 13 * HOUR, NOW - 12 * HOUR)

    def meanwhile(_: Connection) -> None:
        site.run(c_id, NOW - 5 * HOUR, NOW - 4 * HOUR, error=ERROR)

    with at_the_first_read(meanwhile) as done:
        assert counts(site) == {"ok": 1}
    assert done
    assert counts(site) == {"failed": 1}
    assert site.database
    sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'backup_audit' AND state <> 'idle'"
    assert site.database.execute(sessions) == [(0,)]
