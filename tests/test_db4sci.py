"""The writer of the tests leaves the rows that DB4Sci was seen to leave."""

from __future__ import annotations

from datetime import date, datetime

import pytest

import admin_db
from models import BackupLog
from tests.builders import Site
from tests.db4sci import DB4Sci, Failure


def log(site: Site) -> list[BackupLog]:
    with site.session() as session:
        rows = admin_db.find(session, BackupLog)[::-1]
        session.expunge_all()
    return rows


@pytest.mark.parametrize(
    ("version", "engine", "failure", "rows"),
    [
        (1, "Postgres", None, ["start", "end \nExecuted Postgres"]),
        (1, "Postgres", Failure.CONNECTION, ["start"]),
        (1, "Postgres", Failure.GLOBALS, ["start pg_dumpall: error:", "end \nExecuted Postgres"]),
        (1, "MariaDB", Failure.DENIED, ["start", "end"]),
        (1, "MariaDB", Failure.BUCKET, []),
        (1, "MongoDB", Failure.GONE, ["start", "end Error: exec_command"]),
        (2, "Postgres", Failure.ONE_DATABASE, ["start", "end \nExecuting Postgres"]),
        (2, "MongoDB", None, ["start"]),
    ],
)
def test_what_a_backup_leaves(
    sqlite_site: Site, version: int, engine: str, failure: Failure | None, rows: list[str]
) -> None:
    host = DB4Sci(sqlite_site.engine, version)
    c_id = host.create("sales", engine)
    host.by_hand("sales", datetime(2026, 11, 24, 18, 7), failure)
    left = [row for row in log(sqlite_site) if row.c_id == c_id]
    assert [f"{row.state} {row.err_msg}"[: len(told)] for row, told in zip(left, rows, strict=True)] == rows
    assert all(len(row.err_msg or "") <= 100 for row in left) or version == 1


def test_a_night_of_version_1(sqlite_site: Site) -> None:
    host = DB4Sci(sqlite_site.engine)
    host.create("sales", databases=("a", "b", "c"), minutes=17)
    host.create("wiki", "MariaDB", "Weekly")
    host.create("cache", "MongoDB", "Never")
    host.create("survey", "MariaDB", minutes=9)
    host.create("graph", "Neo4j")
    host.night(date(2026, 11, 23))
    host.night(date(2026, 11, 24), {"sales": Failure.ONE_DATABASE, "graph": Failure.COPY})
    bucket = "s3://site-backups/prod"
    rows = log(sqlite_site)
    assert [(row.name, row.state, row.backup_id, str(row.ts), row.url) for row in rows[6:]] == [
        ("offsite", "start", "20261123", "2026-11-24 02:37:05", bucket),
        ("offsite", "end", "20261123", "2026-11-24 02:37:05", bucket),
        ("sales", "start", "20261124-18:07:00", "2026-11-25 02:07:05", ""),
        ("sales", "end", "20261124-18:07:00", "2026-11-25 02:24:05", f"{bucket}/sales/sales_2026-11-24_18-07-00"),
        ("survey", "start", "20261124-18:24:05", "2026-11-25 02:24:05", ""),
        (
            *("survey", "end", "20261124-18:24:05", "2026-11-25 02:33:05"),
            f"{bucket}/survey/survey_2026-11-24_18-24-05/dump20261124-18:24:05.sql",
        ),
        ("graph", "start", "20261124-18:33:05", "2026-11-25 02:33:05", ""),  # and the night ends
    ]
    assert [line for line in str(rows[9].err_msg).splitlines() if line.startswith("Result: ")] == [
        "Result: ",
        "Result: pg_dump: error: query failed: ERROR:  permission denied for table visits",
        "Result: ",
    ]
    assert {row.backup_type for row in rows} == {"Daily", "AWS S3"}


def test_the_weekday_is_that_of_the_host_when_the_turn_comes(sqlite_site: Site) -> None:
    host = DB4Sci(sqlite_site.engine, begins="23:50")
    host.create("sales", "MariaDB", minutes=15)
    host.create("wiki", "MariaDB", "Weekly")
    for day in range(9, 16):  # Monday to Sunday
        host.night(date(2026, 3, day))
    [started] = [row for row in log(sqlite_site) if row.name == "wiki" and row.state == "start"]
    assert (started.backup_id, str(started.ts)) == ("20260314-00:05:00", "2026-03-14 07:05:00")  # Friday's night


def test_a_night_of_version_2(sqlite_site: Site) -> None:
    host = DB4Sci(sqlite_site.engine, 2, "Europe/Berlin")
    for name, policy in (("sales", "Daily"), ("cache", "Never"), ("idle", "None")):
        host.create(name, policy=policy)
    host.create("survey", "MariaDB")
    host.set_state("sales", "maintenance", datetime(2026, 11, 20, 9))
    host.night(date(2026, 11, 24))
    rows = log(sqlite_site)
    assert [row.name for row in rows] == ["sales", "sales", "cache", "cache"]
    assert {(row.backup_id, row.backup_type, row.url) for row in rows[:2]} == {
        ("2026-11-24_01:05:00", "Admin", "s3://site-backups/prod/mydb/sales/2026-11-24_01:05:00/")
    }
    assert str(rows[0].ts) == "2026-11-24 00:05:00"
