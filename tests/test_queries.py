"""What the audit asks of the server: how often, and for what."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy import delete, insert

from audit.policy import DAY, HOUR
from models import BackupLog, Base, ContainerRow, ContainerState
from tests.builders import NOW, Site
from tests.db4sci import SECRET, document
from tests.postgres import Server

AT = ("--at", NOW.isoformat())
ERROR = "pg_dump: error: query failed: ERROR:  permission denied for table visits"
CATALOG = 2
"""The SELECTs of a connection that SQLAlchemy makes."""
SELECTS = 5
"""The clock, the containers, when the log begins, the days read, and the log of those that these do not decide."""


def fill(site: Site, containers: int, state: str) -> None:
    """A site of 20 nights; where all is not well, of every five containers one is as it should be."""
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
            for night in range(20 if kind != 4 and policy != "Never" else 0):
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
    readers = [one for one in statements if re.search(r"\bbackups\b", one) and "min(backups.ts)" not in one]
    for statement in readers:
        assert re.match(r"DECLARE .* CURSOR .* ORDER BY backups\.c_id\s*$", statement, re.DOTALL)
        assert re.search(r"WHERE (?:\(*backups\.ts >= |backups\.c_id IN )", statement), statement
        assert not re.search(r"\bid\s*(?:[<>=]|IN\b|BETWEEN\b)|ORDER BY backups\.id", statement), statement
    for statement in statements:
        assert not re.search(r"\bcommand\b", statement), statement
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
        for containers in (10, 60):
            fill(site, containers, state)
            position = (server.folder / "log").stat().st_size
            assert counts(site) == expected(containers // 10)
            statements = sent(server, position)
            verbs = {statement.split()[0].rstrip(";").upper() for statement in statements}
            assert verbs <= {"BEGIN", "SELECT", "SHOW", "SET", "DECLARE", "FETCH", "CLOSE", "ROLLBACK"}
            assert len(selects(statements)) == SELECTS + CATALOG <= 7
            begun = [one.strip() for one in statements if one.startswith("BEGIN")]
            assert begun == ["BEGIN", "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"], (
                "one snapshot, after the catalog"
            )
            assert statements[-1].strip(" \n;") == "ROLLBACK", "no transaction is left behind"
            assert_right_for_the_log(statements)
    batches = [int(match[1]) for one in statements if (match := re.match(r"FETCH FORWARD (\d+)", one))]
    assert max(batches) <= 1_000
    assert "backups.c_id IN (" in [one for one in statements if "DECLARE" in one][-1], "only of the undecided ones"
    position = (server.folder / "log").stat().st_size
    for argv in (["container 1", "container 2"], ["--history", "30", "--all"], ["--check-config"]):
        site.audit(*argv, *(AT if argv != ["--check-config"] else ()))
    for statement in sent(server, position):
        assert not re.search(r"\bcommand\b", statement), statement
