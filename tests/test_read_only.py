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
from tests.builders import NOW, Site, tree, unprivileged
from tests.failed_audits import complaint_of_failed_audit
from tests.postgres import SUPERUSER


def assert_every_command_works(site: Site) -> None:
    for argv in (["-v"], ["--at", NOW.isoformat()], ["sales"], ["--check-config"], ["--history", "30", "--all"]):
        result = site.audit(*argv)
        assert result.err == "", argv
        assert result.status < 3, argv


def contents(site: Site) -> list[Any]:
    """What a writer could have changed in the database: rows, sequences, and what there is."""
    execute = site.postgres.execute
    tables = ("containers", "container_state", "action_log", "backups")
    rows = [execute(f"SELECT ctid, xmin, * FROM {table} ORDER BY id") for table in tables]
    sequences = [execute(f"SELECT last_value, is_called FROM {table}_id_seq") for table in tables]
    return [rows, sequences, execute("SELECT relname, relacl::text FROM pg_class WHERE relname !~ '^pg_' ORDER BY oid")]


INSERT = "INSERT INTO backups (c_id, name) VALUES (1, 'sales')"
WAYS_AROUND = [
    [INSERT],
    ["COMMIT", INSERT],
    [f"SELECT 1; ROLLBACK; {INSERT}"],
    ["SET TRANSACTION READ WRITE"],
    [f"DO $$ BEGIN {INSERT}; END $$"],
    ["SELECT setval('backups_id_seq', 100)"],
    ["CREATE INDEX ON backups (c_id)"],
]


def test_even_as_a_superuser_the_audit_cannot_write(own_site: Site) -> None:
    own_site.run(own_site.container("sales"), "2026-03-13 18:07", "2026-03-13 18:30")
    before = contents(own_site)
    url = own_site.postgres.url.set(username=SUPERUSER)
    engine = admin_db.make_engine(url, read_only=True, libpq={"passfile": own_site.settings["pgpass_file"]})
    for *first, last in WAYS_AROUND:
        with engine.connect() as connection:
            connection.execute(text("SELECT count(*) FROM backups"))
            for statement in first:
                connection.exec_driver_sql(statement)
            with pytest.raises(DBAPIError, match=r"read-only transaction|must be set before any query"):
                connection.exec_driver_sql(last)
    engine.dispose()
    own_site.config(admin_user=SUPERUSER)
    assert_every_command_works(own_site)
    assert contents(own_site) == before


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


def test_a_read_only_file_in_a_read_only_folder(filed: Site) -> None:
    folder = filed.folder / "database"
    (folder / "admin.db").chmod(0o444)
    folder.chmod(0o555)
    before = tree(folder)
    answer = filed.process("-v", **unprivileged())
    after = tree(folder)
    folder.chmod(0o755)
    assert answer.stderr == ""
    assert answer.returncode < 3
    assert after == before


def test_beside_a_writer_in_wal_mode_neither_the_database_nor_its_log_is_touched(filed: Site) -> None:
    folder = filed.folder / "database"
    with closing(sqlite3.connect(folder / "admin.db", isolation_level=None)) as writer:
        writer.execute("PRAGMA journal_mode = WAL")
        writer.execute("BEGIN IMMEDIATE")
        writer.execute("UPDATE container_state SET state = 'maintenance'")
        before = tree(folder)
        assert_every_command_works(filed)
        shared = {"admin.db-shm": ()}  # readers note in it what they read
        assert tree(folder) | shared == before | shared
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
    assert (folder / "admin.db-journal").exists()
    assert complaint_of_failed_audit(filed).startswith(f"backup_audit: {folder / 'admin.db'}: ")  # and all is as it was
