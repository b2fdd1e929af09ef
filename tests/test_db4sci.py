"""The writer of the tests leaves the rows that DB4Sci was seen to leave."""

from __future__ import annotations

from datetime import date, datetime

import admin_db
from models import BackupLog
from tests.builders import Site
from tests.db4sci import DB4Sci, Failure


def log(site: Site) -> list[BackupLog]:
    with site.session() as session:
        rows = admin_db.find(session, BackupLog)[::-1]
        session.expunge_all()
    return rows


def shown(rows: list[BackupLog]) -> list[str]:
    return [f"{row.name} {row.state} {row.backup_id} {row.ts} {row.backup_type} {row.url}" for row in rows]


def test_what_a_backup_leaves(sqlite_site: Site) -> None:
    for version, engine, failure, expected in (
        (1, "Postgres", None, ["start", "end \nExecuted Postgres"]),
        (1, "Postgres", Failure.CONNECTION, ["start"]),
        (1, "Postgres", Failure.GLOBALS, ["start pg_dumpall: error:", "end \nExecuted Postgres"]),
        (1, "MariaDB", Failure.DENIED, ["start", "end"]),
        (1, "MariaDB", Failure.BUCKET, []),
        (1, "MongoDB", Failure.GONE, ["start", "end Error: exec_command"]),
        (2, "Postgres", Failure.ONE_DATABASE, ["start", "end \nExecuting Postgres"]),
        (2, "MongoDB", None, ["start"]),
    ):
        host = DB4Sci(sqlite_site.engine, version)
        c_id = host.create("sales", engine)
        host.by_hand("sales", datetime(2026, 11, 24, 18, 7), failure)
        left = [row for row in log(sqlite_site) if row.c_id == c_id]
        assert [f"{row.state} {row.err_msg}"[: len(told)] for row, told in zip(left, expected, strict=True)] == expected
        assert all(len(row.err_msg or "") <= 100 for row in left) or version == 1


def test_nights_of_version_1(sqlite_site: Site) -> None:
    host, bucket = DB4Sci(sqlite_site.engine, begins="23:50"), "s3://site-backups/prod"
    host.create("sales", databases=("a", "b", "c"), minutes=17)
    host.create("cache", "MongoDB", "Never")
    host.create("wiki", "MariaDB", "Weekly", minutes=9)
    host.create("graph", "Neo4j")
    host.night(date(2026, 3, 12), {"sales": Failure.ONE_DATABASE, "graph": Failure.COPY})
    host.night(date(2026, 3, 13))  # Friday: it is Saturday when the turn of a weekly container comes
    rows = log(sqlite_site)
    assert [row.name for row in rows[:3]] == ["sales", "sales", "graph"], "and the night ends"
    assert [line for line in str(rows[1].err_msg).splitlines() if line.startswith("Result: ")] == [
        "Result: ",
        "Result: pg_dump: error: query failed: ERROR:  permission denied for table visits",
        "Result: ",
    ]
    assert shown(rows[3:]) == [
        "sales start 20260313-23:50:00 2026-03-14 06:50:05 Daily ",
        f"sales end 20260313-23:50:00 2026-03-14 07:07:05 Daily {bucket}/sales/sales_2026-03-13_23-50-00",
        "wiki start 20260314-00:07:05 2026-03-14 07:07:05 Weekly ",
        "wiki end 20260314-00:07:05 2026-03-14 07:16:05 Weekly"
        f" {bucket}/wiki/wiki_2026-03-14_00-07-05/dump20260314-00:07:05.sql",
        "graph start 20260314-00:16:05 2026-03-14 07:16:05 Daily ",
        f"graph end 20260314-00:16:05 2026-03-14 07:20:05 Daily {bucket}/graph/graph_2026-03-14_00-16-05",
        f"offsite start 20260314 2026-03-14 07:20:05 AWS S3 {bucket}",
        f"offsite end 20260314 2026-03-14 07:20:05 AWS S3 {bucket}",
    ]


def test_a_night_of_version_2(sqlite_site: Site) -> None:
    host = DB4Sci(sqlite_site.engine, 2, "Europe/Berlin")
    host.create("survey", "MariaDB")
    for policy in ("None", "Never"):  # never is not what it says
        host.create(policy.lower(), policy=policy)
    host.set_state("never", "maintenance", datetime(2026, 11, 20, 9))
    host.night(date(2026, 11, 24))
    url = "s3://site-backups/prod/mydb/never/2026-11-24_01:05:00/"
    assert shown(log(sqlite_site)) == [
        f"never start 2026-11-24_01:05:00 2026-11-24 00:05:00 Admin {url}",
        f"never end 2026-11-24_01:05:00 2026-11-24 00:09:00 Admin {url}",
    ]
