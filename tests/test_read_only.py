"""The audit cannot write: not as a superuser, not by a mistake of its own, not to an SQLite file.

`tests/test_queries.py` shows that single statements are refused; here are the ways around that, and what
must be as before when every command has run.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError

import admin_db
from tests.builders import NOW, Site
from tests.postgres import HOST, SUPERUSER, Server

AT = NOW.isoformat()
COMMANDS: list[tuple[str, ...]] = [
    ("-v",),
    ("--at", AT),
    ("--json",),
    ("sales", "wiki"),
    ("--history", "30", "--all"),
    ("--history", "30", "--csv"),
    ("--check-config",),
]


def fill(site: Site) -> None:
    sales, wiki = site.container("sales"), site.container("wiki", policy="Weekly")
    site.run(sales, "2026-03-13 18:07", "2026-03-13 18:30")
    site.run(wiki, "2026-02-07 18:07", "2026-02-07 18:30")
    site.config()


# --- PostgreSQL -----------------------------------------------------------------------------------------


@pytest.fixture
def superuser(own_site: Site, postgres: Server) -> Iterator[Engine]:
    """The engine of an audit that a site, against all advice, lets log in as a superuser."""
    fill(own_site)
    assert own_site.database
    url = admin_db.postgres_url(HOST, postgres.port, own_site.database.name, SUPERUSER)
    engine = admin_db.make_engine(url, read_only=True, libpq={"passfile": str(postgres.passfile)})
    yield engine
    engine.dispose()


def sqlstate(error: DBAPIError) -> str:
    return str(getattr(error.orig, "pgcode", None))


INSERT = "INSERT INTO backups (c_id, name) VALUES (1, 'sales')"
READ_ONLY = "25006"
WAYS_AROUND = {
    "another transaction": ("COMMIT", INSERT),
    "in one message": (f"COMMIT; {INSERT}",),
    "in one message, rolled back": (f"SELECT 1; ROLLBACK; {INSERT}",),
    "a block": (f"DO $$ BEGIN {INSERT}; END $$",),
    "a statement within a SELECT": (f"WITH rows AS ({INSERT} RETURNING id) SELECT id FROM rows",),
    "a table from a SELECT": ("SELECT 1 AS id INTO report",),
    "a sequence": ("SELECT setval('backups_id_seq', 100)",),
    "a lock": ("SELECT id FROM backups FOR UPDATE",),
    "a large object": ("SELECT lo_create(0)",),
    "a copy": ("COPY backups (c_id) FROM PROGRAM 'echo 1'",),
    "an index": ("CREATE INDEX ON backups (c_id)",),
    "statistics": ("VACUUM ANALYZE backups",),
    "a role": ("CREATE ROLE intruder",),
    "a privilege": ("GRANT ALL ON backups TO PUBLIC",),
    "a setting": ("ALTER SYSTEM SET work_mem = '1GB'",),
}


@pytest.mark.parametrize("way", WAYS_AROUND)
def test_a_superuser_finds_no_way_around(own_site: Site, superuser: Engine, way: str) -> None:
    assert own_site.database
    before = contents(own_site)
    *first, last = WAYS_AROUND[way]
    with superuser.connect() as connection:
        connection.execute(text("SELECT count(*) FROM backups"))
        for statement in first:
            connection.exec_driver_sql(statement)
        with pytest.raises(DBAPIError) as refused:
            connection.exec_driver_sql(last)
    # 25001: not in a transaction at all
    assert sqlstate(refused.value) in (READ_ONLY, "25001")
    assert contents(own_site) == before


def test_the_transaction_of_an_audit_cannot_be_made_writable(own_site: Site, superuser: Engine) -> None:
    with superuser.connect() as connection:
        connection.execute(text("SELECT count(*) FROM backups"))
        with pytest.raises(DBAPIError) as refused:
            connection.exec_driver_sql("SET TRANSACTION READ WRITE")
        assert sqlstate(refused.value) == "25001"
        connection.rollback()
        connection.exec_driver_sql("SET default_transaction_read_only = off")
        connection.commit()
        with pytest.raises(DBAPIError) as refused:
            connection.exec_driver_sql(INSERT)
        assert sqlstate(refused.value) == READ_ONLY


def contents(site: Site) -> list[Any]:
    """All that a writer could have changed in the database: rows, sequences, and what there is."""
    assert site.database
    execute = site.database.execute
    tables = ("containers", "container_state", "action_log", "backups")
    found: list[Any] = [execute(f"SELECT ctid, xmin, * FROM {table} ORDER BY id") for table in tables]
    found += [execute(f"SELECT last_value, is_called FROM {table}_id_seq") for table in tables]
    found += execute("SELECT relname, relkind, relacl::text FROM pg_class WHERE relname !~ '^pg_' ORDER BY oid")
    found += execute("SELECT rolname FROM pg_roles ORDER BY oid")
    found += execute("SELECT count(*) FROM pg_largeobject_metadata")
    return found


def test_every_command_leaves_the_database_as_it_was(own_site: Site, superuser: Engine) -> None:
    before = contents(own_site)
    own_site.config(admin_user=SUPERUSER)
    for argv in COMMANDS:
        result = own_site.audit(*argv)
        assert (result.status < 3, result.err) == (True, ""), argv
    assert contents(own_site) == before


# --- SQLite ---------------------------------------------------------------------------------------------


def tree(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Every file beside the database: its bytes and when it was changed."""
    return {
        path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in sorted(folder.iterdir()) if path.is_file()
    }


@pytest.fixture
def filed(sqlite_site: Site) -> Site:
    """A site whose SQLite file is in a folder of its own."""
    fill(sqlite_site)
    sqlite_site.engine.dispose()
    folder = sqlite_site.folder / "database"
    folder.mkdir()
    shutil.move(sqlite_site.folder / "admin.db", folder / "admin.db")
    sqlite_site.settings["database_url"] = f"sqlite:///{folder / 'admin.db'}"
    sqlite_site.config()
    return sqlite_site


WRITES = [
    INSERT,
    "UPDATE container_state SET state = 'maintenance'",
    "DELETE FROM containers",
    "CREATE TABLE report (id INTEGER)",
    "CREATE INDEX by_container ON backups (c_id)",
    "DROP TABLE action_log",
    "PRAGMA user_version = 7",
]


@pytest.mark.parametrize("write", WRITES)
def test_a_write_to_an_sqlite_file_is_refused(filed: Site, write: str) -> None:
    folder = filed.folder / "database"
    before = tree(folder)
    assert list(before) == ["admin.db"]
    engine = admin_db.make_engine(filed.settings["database_url"], read_only=True)

    def read_and_write() -> None:
        with admin_db.audit_session(engine) as session:
            session.execute(text("SELECT count(*) FROM backups"))
            session.execute(text(write))

    with pytest.raises(admin_db.AdminDBError, match="readonly"):
        read_and_write()
    assert tree(folder) == before


@contextmanager
def sealed(folder: Path) -> Iterator[None]:
    """A folder and its files that nobody may write to; see `without_privileges` for root."""
    for path in (*folder.iterdir(), folder):
        path.chmod(stat.S_IMODE(path.stat().st_mode) & ~0o222)
    try:
        yield
    finally:
        folder.chmod(0o755)
        for path in folder.iterdir():
            path.chmod(0o644)


def without_privileges() -> None:
    """Let root count as any user before permissions; in force from the next exec on."""
    libc = ctypes.CDLL(None)
    for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        libc.prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP


@pytest.mark.parametrize("argv", [("-v",), ("--history", "30", "--all"), ("--check-config",)], ids=" ".join)
def test_every_command_reads_a_read_only_file_in_a_read_only_folder(filed: Site, argv: tuple[str, ...]) -> None:
    folder = filed.folder / "database"
    before = tree(folder)
    with sealed(folder):
        options: dict[str, Any] = {"preexec_fn": without_privileges} if os.geteuid() == 0 else {}
        answer = filed.process(*argv, **options)
        assert (answer.returncode < 3, answer.stderr) == (True, "")
    assert tree(folder) == before


def test_a_database_in_wal_mode_is_left_as_it_was(filed: Site) -> None:
    folder = filed.folder / "database"
    with closing(sqlite3.connect(folder / "admin.db")) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
    before = tree(folder)
    assert list(before) == ["admin.db"]
    for argv in COMMANDS:
        result = filed.audit(*argv)
        assert (result.status < 3, result.err) == (True, ""), argv
    after = tree(folder)
    assert after["admin.db"] == before["admin.db"]
    # what readers share with writers is SQLite's own; there is nothing in the log to be written back
    assert set(after) <= {"admin.db", "admin.db-shm", "admin.db-wal"}
    assert after.get("admin.db-wal", (b"", 0))[0] == b""


def test_a_read_only_database_in_wal_mode_is_read_or_refused_in_words(filed: Site) -> None:
    folder = filed.folder / "database"
    with closing(sqlite3.connect(folder / "admin.db")) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
    before = tree(folder)
    with sealed(folder):
        options: dict[str, Any] = {"preexec_fn": without_privileges} if os.geteuid() == 0 else {}
        answer = filed.process(**options)
    assert (answer.returncode, answer.stdout) == (3, "")
    assert answer.stderr.startswith(f"backup_audit: {folder / 'admin.db'}: ")
    assert answer.stderr.count("\n") == 1
    assert tree(folder) == before


def test_a_writer_in_wal_mode_is_not_disturbed(filed: Site) -> None:
    folder = filed.folder / "database"
    with closing(sqlite3.connect(folder / "admin.db", isolation_level=None)) as writer:
        writer.execute("PRAGMA journal_mode = WAL")
        writer.execute("BEGIN IMMEDIATE")
        writer.execute("UPDATE container_state SET state = 'maintenance'")
        before = tree(folder)
        for argv in COMMANDS:
            result = filed.audit(*argv)
            assert (result.status < 3, result.err) == (True, ""), argv
        after = tree(folder)
        assert {name: after[name] for name in ("admin.db", "admin.db-wal")} == {
            name: before[name] for name in ("admin.db", "admin.db-wal")
        }
        writer.execute("COMMIT")


def test_what_a_crashed_writer_left_is_not_rolled_back_by_the_audit(filed: Site) -> None:
    folder = filed.folder / "database"
    crashed = filed.folder / "crashed"
    with closing(sqlite3.connect(folder / "admin.db", isolation_level=None)) as writer:
        writer.execute("PRAGMA cache_size = 1")
        writer.execute("BEGIN EXCLUSIVE")
        writer.execute("CREATE TABLE filler AS SELECT hex(randomblob(100000)) AS x")
        shutil.copytree(folder, crashed)
        writer.execute("ROLLBACK")
    assert sorted(tree(crashed)) == ["admin.db", "admin.db-journal"]
    before = tree(crashed)
    filed.config(database_url=f"sqlite:///{crashed / 'admin.db'}")
    result = filed.audit()
    assert (result.status, result.out) == (3, "")
    assert result.err.startswith(f"backup_audit: {crashed / 'admin.db'}: ")
    assert result.err.count("\n") == 1
    assert tree(crashed) == before
