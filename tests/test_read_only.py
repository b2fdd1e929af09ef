"""The audit cannot write: not as a superuser, not by a mistake of its own, not to an SQLite file."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

import admin_db
from tests.builders import NOW, Site
from tests.failures import assert_complaint, database_of, unprivileged
from tests.postgres import SUPERUSER, url_of


def assert_every_command_works(site: Site) -> None:
    for argv in (["-v"], ["--at", NOW.isoformat()], ["sales"], ["--check-config"], ["--history", "30", "--all"]):
        result = site.audit(*argv)
        assert (result.status < 3, result.err) == (True, ""), argv


# --- PostgreSQL -----------------------------------------------------------------------------------------


def contents(site: Site) -> list[Any]:
    """All that a writer could have changed in the database: rows, sequences, and what there is."""
    execute = database_of(site).execute
    tables = ("containers", "container_state", "action_log", "backups")
    found: list[Any] = [execute(f"SELECT ctid, xmin, * FROM {table} ORDER BY id") for table in tables]
    found += [execute(f"SELECT last_value, is_called FROM {table}_id_seq") for table in tables]
    found += execute("SELECT relname, relkind, relacl::text FROM pg_class WHERE relname !~ '^pg_' ORDER BY oid")
    found += execute("SELECT rolname FROM pg_roles ORDER BY oid")
    found += execute("SELECT count(*) FROM pg_largeobject_metadata")
    return found


INSERT = "INSERT INTO backups (c_id, name) VALUES (1, 'sales')"
READ_ONLY, IN_NO_TRANSACTION = "25006", "25001"
WAYS_AROUND = [
    *(("COMMIT", INSERT), (f"COMMIT; {INSERT}",), (f"SELECT 1; ROLLBACK; {INSERT}",), ("SET TRANSACTION READ WRITE",)),
    *((f"DO $$ BEGIN {INSERT}; END $$",), (f"WITH rows AS ({INSERT} RETURNING id) SELECT id FROM rows",)),
    *(("UPDATE container_state SET state = 'maintenance'",), ("TRUNCATE backups",), ("DROP TABLE action_log",)),
    *(("SELECT 1 AS id INTO report",), ("SELECT setval('backups_id_seq', 100)",), ("CREATE ROLE intruder",)),
    *(("SELECT id FROM backups FOR UPDATE",), ("SELECT lo_create(0)",), ("CREATE INDEX ON backups (c_id)",)),
    *(("COPY backups (c_id) FROM PROGRAM 'echo 1'",), ("VACUUM ANALYZE backups",), ("GRANT ALL ON backups TO PUBLIC",)),
    ("ALTER SYSTEM SET work_mem = '1GB'",),
]


def test_even_as_a_superuser_the_audit_cannot_write(own_site: Site) -> None:
    own_site.run(own_site.container("sales"), "2026-03-13 18:07", "2026-03-13 18:30")
    before = contents(own_site)
    server = database_of(own_site).server
    url = url_of(server.port, database_of(own_site).name, SUPERUSER)
    engine = admin_db.make_engine(url, read_only=True, libpq={"passfile": str(server.passfile)})
    for *first, last in WAYS_AROUND:
        with engine.connect() as connection:
            connection.execute(text("SELECT count(*) FROM backups"))
            for statement in first:
                connection.exec_driver_sql(statement)
            with pytest.raises(DBAPIError) as refused:
                connection.exec_driver_sql(last)
        assert getattr(refused.value.orig, "pgcode", None) in (READ_ONLY, IN_NO_TRANSACTION), last
    engine.dispose()
    own_site.config(admin_user=SUPERUSER)
    assert_every_command_works(own_site)
    assert contents(own_site) == before


# --- SQLite ---------------------------------------------------------------------------------------------


@pytest.fixture
def filed(sqlite_site: Site) -> Site:
    """A site whose SQLite file is in a folder of its own."""
    sqlite_site.run(sqlite_site.container("sales"), "2026-03-13 18:07", "2026-03-13 18:30")
    sqlite_site.engine.dispose()
    folder = sqlite_site.folder / "database"
    folder.mkdir()
    shutil.move(sqlite_site.folder / "admin.db", folder / "admin.db")
    sqlite_site.settings["database_url"] = f"sqlite:///{folder / 'admin.db'}"
    sqlite_site.config()
    return sqlite_site


def database_files(site: Site) -> dict[str, tuple[bytes, int]]:
    """Every file beside the database: its bytes and when it was changed."""
    folder = site.folder / "database"
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in sorted(folder.iterdir())}


def test_a_read_only_file_in_a_read_only_folder(filed: Site) -> None:
    folder, before = filed.folder / "database", database_files(filed)
    (folder / "admin.db").chmod(0o444)
    folder.chmod(0o555)
    answer = filed.process("-v", **unprivileged())
    folder.chmod(0o755)
    assert (answer.returncode < 3, answer.stderr) == (True, "")
    assert database_files(filed) == before


def test_beside_a_writer_in_wal_mode(filed: Site) -> None:
    """Neither the database nor its log is touched; what readers share with writers is SQLite's own."""
    with closing(sqlite3.connect(filed.folder / "database" / "admin.db", isolation_level=None)) as writer:
        writer.execute("PRAGMA journal_mode = WAL")
        writer.execute("BEGIN IMMEDIATE")
        writer.execute("UPDATE container_state SET state = 'maintenance'")
        before = database_files(filed)
        assert_every_command_works(filed)
        after = database_files(filed)
        assert {name: after[name] for name in before if "shm" not in name}.items() <= before.items()
        assert [name for name in set(after) - set(before) if "shm" not in name and after[name][0]] == []
        writer.execute("COMMIT")


def test_a_journal_that_a_crashed_writer_left_and_that_has_to_be_rolled_back_is_refused(filed: Site) -> None:
    folder, crashed = filed.folder / "database", filed.folder / "crashed"
    with closing(sqlite3.connect(folder / "admin.db", isolation_level=None)) as writer:
        writer.execute("PRAGMA cache_size = 1")
        writer.execute("BEGIN EXCLUSIVE")
        writer.execute("CREATE TABLE filler AS SELECT hex(randomblob(100000)) AS x")
        shutil.copytree(folder, crashed)
        writer.execute("ROLLBACK")
    shutil.rmtree(folder)
    crashed.rename(folder)
    before = database_files(filed)
    assert list(before) == ["admin.db", "admin.db-journal"]
    answer = filed.audit()
    assert (answer.status, answer.out) == (3, "")
    assert_complaint(answer.err)
    assert f"backup_audit: {folder / 'admin.db'}: " in answer.err
    assert database_files(filed) == before
