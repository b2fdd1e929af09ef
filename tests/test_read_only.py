"""The audit cannot write: not as a superuser, not by a mistake of its own, not to an SQLite file."""

from __future__ import annotations

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
from tests.builders import NOW, Result, Site
from tests.failures import as_result, assert_complaint, database_of, unprivileged
from tests.postgres import SUPERUSER, Server, url_of

COMMANDS: list[tuple[str, ...]] = [
    *(("-v",), ("--at", NOW.isoformat()), ("--json",), ("sales", "wiki"), ("--check-config",)),
    *(("--history", "30", "--all"), ("--history", "30", "--csv")),
]


def fill(site: Site) -> None:
    sales, wiki = site.container("sales"), site.container("wiki", policy="Weekly")
    site.run(sales, "2026-03-13 18:07", "2026-03-13 18:30")
    site.run(wiki, "2026-02-07 18:07", "2026-02-07 18:30")
    site.config()


def assert_every_command_works(site: Site) -> None:
    for argv in COMMANDS:
        result = site.audit(*argv)
        assert (result.status < 3, result.err) == (True, ""), argv


# --- PostgreSQL -----------------------------------------------------------------------------------------


@pytest.fixture
def superuser(own_site: Site, postgres: Server) -> Iterator[Engine]:
    """The engine of an audit that a site, against all advice, lets log in as a superuser."""
    fill(own_site)
    url = url_of(postgres.port, database_of(own_site).name, SUPERUSER)
    engine = admin_db.make_engine(url, read_only=True, libpq={"passfile": str(postgres.passfile)})
    yield engine
    engine.dispose()


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


def test_even_a_superuser_cannot_write(own_site: Site, superuser: Engine) -> None:
    before = contents(own_site)
    for *first, last in WAYS_AROUND:
        with superuser.connect() as connection:
            connection.execute(text("SELECT count(*) FROM backups"))
            for statement in first:
                connection.exec_driver_sql(statement)
            with pytest.raises(DBAPIError) as refused:
                connection.exec_driver_sql(last)
        assert getattr(refused.value.orig, "pgcode", None) in (READ_ONLY, IN_NO_TRANSACTION), last
    assert contents(own_site) == before


def test_every_command_leaves_the_database_as_it_was(own_site: Site, superuser: Engine) -> None:
    before = contents(own_site)
    own_site.config(admin_user=SUPERUSER)
    assert_every_command_works(own_site)
    assert contents(own_site) == before


# --- SQLite ---------------------------------------------------------------------------------------------


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


def database_files(site: Site) -> dict[str, tuple[bytes, int]]:
    """Every file beside the database: its bytes and when it was changed."""
    folder = site.folder / "database"
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in sorted(folder.iterdir())}


@contextmanager
def sealed(folder: Path) -> Iterator[None]:
    """A folder and its files that nobody may write to, who is not root."""
    paths = [*folder.iterdir(), folder]
    for path in paths:
        path.chmod(stat.S_IMODE(path.stat().st_mode) & ~0o222)
    yield
    for path in paths:
        path.chmod(0o755)


@pytest.mark.parametrize(
    "write", [INSERT, "DELETE FROM containers", "CREATE TABLE report (id INTEGER)", "PRAGMA user_version = 7"]
)
def test_a_write_to_an_sqlite_file_is_refused(filed: Site, write: str) -> None:
    before = database_files(filed)
    engine = admin_db.make_engine(filed.settings["database_url"], read_only=True)
    with pytest.raises(DBAPIError, match="readonly"), admin_db.audit_session(engine) as session:
        session.execute(text(write))
    engine.dispose()
    assert database_files(filed) == before


def test_a_read_only_file_in_a_read_only_folder(filed: Site) -> None:
    before = database_files(filed)
    with sealed(filed.folder / "database"):
        for argv in (("-v",), ("--history", "30", "--all"), ("--check-config",)):
            answer = filed.process(*argv, **unprivileged())
            assert (answer.returncode < 3, answer.stderr) == (True, "")
    assert database_files(filed) == before


@pytest.mark.parametrize("writing", [False, True])
def test_wal_mode(filed: Site, writing: bool) -> None:
    """Neither the database nor the log of a writer at work is touched; what readers share is SQLite's own."""
    with closing(sqlite3.connect(filed.folder / "database" / "admin.db", isolation_level=None)) as writer:
        writer.execute("PRAGMA journal_mode = WAL")
        if writing:
            writer.execute("BEGIN IMMEDIATE")
            writer.execute("UPDATE container_state SET state = 'maintenance'")
        before = database_files(filed)
        assert_every_command_works(filed)
        after = database_files(filed)
        assert {name: after[name] for name in before if "shm" not in name}.items() <= before.items()
        assert [name for name in set(after) - set(before) if "shm" not in name and after[name][0]] == []
        if writing:
            writer.execute("COMMIT")


def test_a_file_that_cannot_be_read_without_a_write_is_refused(filed: Site) -> None:
    """A sealed database in WAL mode, and a journal that a crashed writer left and that has to be rolled back."""
    folder, crashed = filed.folder / "database", filed.folder / "crashed"

    def assert_refused(answer: Result) -> None:
        assert (answer.status, answer.out) == (3, "")
        assert_complaint(answer.err)
        assert f"backup_audit: {folder / 'admin.db'}: " in answer.err

    with closing(sqlite3.connect(folder / "admin.db", isolation_level=None)) as writer:
        writer.execute("PRAGMA cache_size = 1")
        writer.execute("BEGIN EXCLUSIVE")
        writer.execute("CREATE TABLE filler AS SELECT hex(randomblob(100000)) AS x")
        shutil.copytree(folder, crashed)
        writer.execute("ROLLBACK")
        writer.execute("PRAGMA journal_mode = WAL")
    before = database_files(filed)
    with sealed(folder):
        assert_refused(as_result(filed.process(**unprivileged())))
    assert database_files(filed) == before
    shutil.rmtree(folder)
    crashed.rename(folder)
    before = database_files(filed)
    assert list(before) == ["admin.db", "admin.db-journal"]
    assert_refused(filed.audit())
    assert database_files(filed) == before
