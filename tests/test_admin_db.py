"""The data layer: engines, sessions, the four tables, and the reads of the audit, on every database."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from datetime import datetime, timedelta
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from psycopg2 import extensions
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError
from sqlalchemy.orm import Session

import admin_db
from admin_db import EARLIEST, LATEST
from models import ActionLog, BackupLog, Base, ContainerRow, ContainerState
from tests.builders import TOP, Site
from tests.db4sci import SECRET
from tests.postgres import ADMIN_USER, SUPERUSER, Server

TS = datetime(2026, 3, 13, 18, 7, 31)
LATER = TS + timedelta(minutes=23)
MODELS: list[type[Any]] = [ContainerRow, ContainerState, ActionLog, BackupLog]
TABLES = {
    "containers": "id int, name text, data json, ts time",
    "container_state": "id int, c_id int, name text, state text, last_state text, observerd text, changed_by text, "
    "ts time",
    "action_log": "id int, c_id int, name text, action text, description text, ts time",
    "backups": "id int, c_id int, name text, state text, backup_id text, backup_type text, url text, command text, "
    "err_msg text, ts time",
}
"""As DB4Sci makes them, in its order; `time` is a time stamp without a zone."""
KINDS = {"INTEGER": "int", "TEXT": "text", "JSON": "json", "JSONB": "json", "DATETIME": "time", "TIMESTAMP": "time"}


@contextmanager
def read_only(site: Site, query_timeout: int = 60, **libpq: str) -> Iterator[sa.Engine]:
    """A read-only engine for a site."""
    url = site.database.url if site.database else site.settings["database_url"]
    libpq |= {"passfile": str(site.settings.get("pgpass_file"))}
    engine = admin_db.make_engine(url, read_only=True, query_timeout=query_timeout, libpq=libpq)
    yield engine
    engine.dispose()


@contextmanager
def reading(site: Site, query_timeout: int = 60, **libpq: str) -> Iterator[Session]:
    """A session as the audit has it."""
    with read_only(site, query_timeout, **libpq) as engine, admin_db.reading_session(engine) as session:
        yield session


# --- The tables ----------------------------------------------------------------------------------------


def test_the_tables_are_the_deployed_ones(any_site: Site) -> None:
    admin_db.create_tables(any_site.engine)  # again: that is harmless
    inspector = sa.inspect(any_site.engine)
    assert set(inspector.get_table_names()) == set(TABLES) == set(Base.metadata.tables)
    for table, expected in TABLES.items():
        columns = inspector.get_columns(table)
        assert ", ".join(f"{column['name']} {KINDS[str(column['type'])]}" for column in columns) == expected
        assert [column["name"] for column in columns if not column["nullable"]] == ["id"]
        assert not any(getattr(column["type"], "timezone", False) for column in columns)
        assert inspector.get_pk_constraint(table)["constrained_columns"] == ["id"]
        assert not inspector.get_foreign_keys(table) + inspector.get_unique_constraints(table)
        assert not inspector.get_check_constraints(table) + inspector.get_indexes(table)
    if any_site.database:
        assert sorted(inspector.get_sequence_names()) == sorted(f"{table}_id_seq" for table in TABLES)


def test_a_row_can_be_added_without_an_id_from_psql_and_where_the_ids_have_no_default(own_site: Site) -> None:
    for table in TABLES:
        own_site.postgres.execute(f"INSERT INTO {table} (name) VALUES ('sales')", user=ADMIN_USER)
        own_site.postgres.execute(f"ALTER TABLE {table} ALTER COLUMN id DROP DEFAULT")
    with own_site.session() as session:
        session.add_all([model(name="sales") for model in MODELS])
        for model in MODELS:
            assert [row.id for row in admin_db.find(session, model)] == [2, 1]


# --- Create, read, update, delete ----------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS)
def test_every_table_can_be_read_updated_and_deleted(sqlite_site: Site, model: type[Any]) -> None:
    with sqlite_site.session() as session:
        session.add_all([model(id=number, name=name) for number, name in enumerate(("sales", "wiki", "sales"), 1)])
    with sqlite_site.session() as session:
        assert [row.id for row in admin_db.find(session, model)] == [3, 2, 1]
        assert [row.id for row in admin_db.find(session, model, limit=1, name="sales")] == [3]
        assert admin_db.update(session, model, 1, name="shop", ts=TS).name == "shop"
    with sqlite_site.session() as session:
        assert (admin_db.get(session, model, 1).name, admin_db.get(session, model, 1).ts) == ("shop", TS)
        assert [admin_db.delete(session, model, name="sales") for _ in range(2)] == [1, 0]
        for read in (admin_db.get, admin_db.update):
            with pytest.raises(LookupError, match=f"{model.__tablename__} has no row with the id 3"):
                read(session, model, 3)
        with pytest.raises(TypeError, match=f"{model.__tablename__} has no column nmae"):
            admin_db.update(session, model, 1, nmae="shop")
        with pytest.raises(TypeError, match="every row would be deleted"):
            admin_db.delete(session, model)
        assert [row.name for row in admin_db.find(session, model)] == ["wiki", "shop"]


def test_given_values_are_stored_and_the_others_have_defaults(any_site: Site) -> None:
    with any_site.session() as session:
        admin_db.add_container(session, "sales", {"Id": 1}, TS)
        admin_db.add_state(session, 7, "sales", "stopped", ts=TS, last_state="y", changed_by="ada")
        admin_db.log_action(session, 7, "sales", "create", description="by hand", ts=TS)
        admin_db.log_backup(session, 7, "sales", "end", "x", TS, backup_type="User", url="s3://x", err_msg="no")
    expected = (
        (1, "sales", {"Id": 1}, TS),
        (1, 7, "sales", "stopped", "y", "stopped", "ada", TS),
        (1, 7, "sales", "create", "by hand", TS),
        (1, 7, "sales", "end", "x", "User", "s3://x", "", "no", TS),
    )
    with any_site.session() as session:
        for model, values in zip(MODELS, expected, strict=True):
            row = admin_db.get(session, model, 1)
            assert tuple(getattr(row, column.name) for column in model.__table__.columns) == values
        state, action = admin_db.add_state(session, None, None), admin_db.log_action(session, None, None, "create")
        for stamp in (state.ts, action.ts, admin_db.add_container(session, None, {}).ts):
            assert abs(any_site.clock().replace(tzinfo=None) - (stamp or TS)) < timedelta(minutes=5), "naive UTC"
        assert (state.state, state.observerd, state.last_state, state.changed_by) == ("running", "running", None, None)
        logged = admin_db.log_backup(session, None, None, "start", None, None)
        assert (logged.backup_type, logged.url, logged.command, logged.err_msg) == ("Daily", "", "", "")


DOCUMENTS: list[Any] = [None, [], "", 7, 0.5, False, {}, {"Info": None}, {"ü\"'\\": [1, 2.5, None, "数据 \x7f\t"]}]


def test_any_document_is_read_as_it_was_written(any_site: Site) -> None:
    ids = [any_site.container(data=data) for data in DOCUMENTS]
    with any_site.session() as session:
        assert [admin_db.get(session, ContainerRow, c_id).data for c_id in ids] == DOCUMENTS
        assert session.scalar(sa.text("SELECT count(*) FROM containers WHERE data IS NULL")) == 1


WEEKLY = {"BACKUP_FREQ": "Weekly"}
INFO_UPDATES: list[tuple[Any, Any]] = [
    (None, {"Info": WEEKLY}),
    ({"Info": {}}, {"Info": WEEKLY}),
    ({"Id": 1, "Info": {"OWNER": "ada", "Port": 1}}, {"Id": 1, "Info": {"OWNER": "ada", **WEEKLY}}),
    ([], None),
    ({"Info": None}, None),
    ({"Info": "BACKUP_FREQ"}, None),
]
"""A document, and what comes of it; None if it has no Info object."""


def test_an_update_of_info_sets_and_removes_keys_and_keeps_the_rest(sqlite_site: Site) -> None:
    for data, expected in INFO_UPDATES:
        c_id = sqlite_site.container(data=data)
        refused = pytest.raises(TypeError, match=f"container {c_id} has no Info object")
        with nullcontext() if expected else refused, sqlite_site.session() as session:
            admin_db.update_info(session, c_id, BACKUP_FREQ="Weekly", Port=None)
        with sqlite_site.session() as session:
            assert admin_db.get(session, ContainerRow, c_id).data == (expected or data)
    with pytest.raises(LookupError, match="4711"), sqlite_site.session() as session:
        admin_db.update_info(session, 4711, BACKUP_FREQ="Weekly")


def test_a_state_change_keeps_the_previous_state_and_is_logged(sqlite_site: Site) -> None:
    with sqlite_site.session() as session:
        for state in ("stopped", "running"):  # of repeated rows the one with the highest id counts
            admin_db.add_state(session, 7, "sales", state, ts=TS)
        admin_db.update_state(session, 7, "maintenance", "ada", LATER)
    with sqlite_site.session() as session:
        newest, other = admin_db.find(session, ContainerState, c_id=7)
        assert (newest.state, newest.last_state, newest.changed_by) == ("maintenance", "running", "ada")
        assert (newest.ts, other.state, other.ts) == (LATER, "stopped", TS)
        (action,) = admin_db.find(session, ActionLog)
        assert (action.c_id, action.name, action.ts) == (7, "sales", LATER)
        assert action.description == "state changed from running to maintenance"
        with pytest.raises(LookupError, match="4711"):
            admin_db.update_state(session, 4711, "maintenance", "ada")


# --- Engines and sessions ------------------------------------------------------------------------------


def test_a_writing_session_that_raises_and_a_reading_session_leave_nothing() -> None:
    engine = admin_db.make_engine("sqlite://")  # a database in memory, gone with its connection
    admin_db.create_tables(engine)
    with pytest.raises(RuntimeError), admin_db.writing_session(engine) as session:  # noqa: PT012
        admin_db.add_container(session, "wiki", {})
        raise RuntimeError
    for _ in range(2):
        with admin_db.reading_session(engine) as session:
            assert admin_db.find(session, ContainerRow) == []
            admin_db.add_container(session, "wiki", {})
    engine.dispose()


def test_an_error_of_the_block_is_not_hidden_by_the_loss_of_the_connection(site: Site) -> None:
    with pytest.raises(RuntimeError), admin_db.reading_session(site.engine) as session:  # noqa: PT012
        pid = session.scalar(sa.text("SELECT pg_backend_pid()"))
        site.postgres.execute(f"SELECT pg_terminate_backend({pid}, 10000)")
        raise RuntimeError


def test_a_read_only_engine_sees_one_snapshot_and_its_errors_show_no_values(any_site: Site) -> None:
    any_site.container("sales")
    if any_site.database is None:  # as busy sites have it: without, a reader keeps the writer waiting
        with closing(sqlite3.connect(any_site.folder / "admin.db")) as connection:
            connection.execute("PRAGMA journal_mode = WAL")
    with read_only(any_site) as engine:
        with admin_db.reading_session(engine) as session:
            assert len(admin_db.read_active_containers(session)) == 1
            any_site.container("wiki")
            assert len(admin_db.read_active_containers(session)) == 1
        with admin_db.reading_session(engine) as session:
            assert len(admin_db.read_active_containers(session)) == 2
        with pytest.raises(DBAPIError, match=r"read.?only") as caught, admin_db.writing_session(engine) as session:
            admin_db.add_container(session, SECRET, {"Info": {"DB_PASS": SECRET}})
    assert SECRET not in str(caught.value)


def test_a_read_only_engine_creates_no_sqlite_file_whatever_its_name(tmp_path: Path) -> None:
    url = sa.URL.create("sqlite", database=str(tmp_path / "a?mode=rwc #1%25.db"))
    engine, writer = admin_db.make_engine(url, read_only=True), admin_db.make_engine(url)
    with pytest.raises(OperationalError, match="unable to open"), admin_db.reading_session(engine) as session:
        admin_db.read_active_containers(session)
    assert list(tmp_path.iterdir()) == []
    admin_db.create_tables(writer)
    with admin_db.reading_session(engine) as session:
        assert admin_db.read_active_containers(session) == []
    assert list(tmp_path.iterdir()) == [Path(str(url.database))]
    engine.dispose()
    writer.dispose()


def test_an_engine_is_for_sqlite_or_postgresql_and_does_not_connect_yet() -> None:
    for scheme in ("postgresql", "postgresql+asyncpg"):
        engine = admin_db.make_engine(f"{scheme}://nobody@192.0.2.1:1/nothing", read_only=True)
        assert (engine.driver, engine.url.password) == ("psycopg2", None)
    for url in ("mysql+pymysql://localhost/x", "no url"):
        with pytest.raises(ArgumentError):
            admin_db.make_engine(url)


def test_a_reading_session_is_read_only_on_the_server_and_has_what_libpq_is_told(site: Site) -> None:
    expected = {"application_name": "x", "work_mem": "5MB", "statement_timeout": "7s", "client_encoding": "UTF8"}
    expected |= {"default_transaction_read_only": "on", "transaction_isolation": "repeatable read"}
    with reading(site, query_timeout=7, application_name="x", options="-c work_mem=5MB") as session:
        assert {name: session.scalar(sa.text(f"SHOW {name}")) for name in expected} == expected


# --- Text of other encodings, and nothing process-wide ---------------------------------------------------

ODD_TEXT = [  # bytes in SQL, how they are read, and what is written and read again
    ("SQL_ASCII", r"caf\xc3\xa9\xff", "café\\xff", "é"),
    ("WIN1252", r"caf\xe9\x81", "café\\x81", "é"),
    ("EUC_TW", r"caf\x8e\xa1\xc4\xc7", "caf口", "口"),  # Python has no such codec, the server converts
]


@pytest.mark.parametrize(("encoding", "sql", "expected", "ours"), ODD_TEXT)
def test_text_is_read_whatever_the_encoding_and_nothing_changes_for_others(
    postgres: Server, tmp_path: Path, encoding: str, sql: str, expected: str, ours: str
) -> None:
    before = [dict(one) for one in (extensions.encodings, extensions.string_types, extensions.adapters)]
    options = f"ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
    database = postgres.create_database(f"in_{encoding}".lower(), options)
    admin_db.create_tables(database.engine)
    site = Site(database.engine, database.settings, tmp_path, database)
    site.run(site.container("x"), TS, LATER)
    site.container("ours", data={"Info": {"OWNER": ours}}, active=False)
    data = f"jsonb_build_object('Info', jsonb_build_object('OWNER', E'{sql}'))"
    with database.engine.begin() as connection:
        connection.exec_driver_sql(f"UPDATE containers SET name = E'{sql}', data = {data} WHERE id = 1")
        connection.exec_driver_sql(f"UPDATE backups SET err_msg = E'{sql}'")
    with reading(site) as session:
        (facts,) = admin_db.read_active_containers(session)
        assert (facts.container_name, facts.owner) == (expected, expected)
        assert [(row.message, row.ts) for row in admin_db.read_log(session, LATER)] == [(expected, LATER)]
        assert [facts.owner for facts in admin_db.read_deleted_containers(session)] == [ours]
    with site.session() as session:
        assert session.scalar(sa.text("SHOW client_encoding")) == "UTF8"
        assert admin_db.get(session, ContainerRow, 2).data == {"Info": {"OWNER": ours}}
    assert [extensions.encodings, extensions.string_types, extensions.adapters] == before
    database.drop()


def test_importing_changes_nothing() -> None:
    code = """
import psycopg2.extensions as pg, sqlite3, sqlalchemy.orm, sqlalchemy.dialects.postgresql
state = lambda: list(map(dict, (pg.encodings, pg.string_types, pg.adapters, sqlite3.adapters, sqlite3.converters)))
before = state()
import admin_db
assert state() == before"""
    subprocess.run([sys.executable, "-c", code], cwd=TOP, check=True, timeout=60)


# --- Time stamps that are not ---------------------------------------------------------------------------

SQLITE_STAMPS: dict[Any, datetime | None] = {
    "2026-03-13 18:07:31": TS,
    "2026-03-13T18:07:31.": TS,
    "2026-03-13 18:07:31.1": TS.replace(microsecond=100_000),
    "2026-03-13 18:07:31.100000000": TS.replace(microsecond=100_000),
    "9999-12-31 23:59:59": LATEST,
    **dict.fromkeys(("0001-01-01 00:00:00", "2026-03-13 18:07:31.x", "2026-03-13 18:07:31+02:00", "", None), None),
}
POSTGRES_STAMPS: dict[Any, datetime | None] = {
    "2026-03-13 18:07:31": TS,
    **dict.fromkeys(("infinity", "294276-12-31 23:59:59"), LATEST),
    **dict.fromkeys(("-infinity", "0001-01-01 00:00:00", None), None),
}


def test_a_stamp_too_late_for_python_is_the_latest_and_what_is_too_early_or_no_time_is_none(any_site: Site) -> None:
    stamps, mark = (POSTGRES_STAMPS, "%s::timestamp") if any_site.database else (SQLITE_STAMPS, "?")
    expected = dict(enumerate(stamps.values(), 1))
    with any_site.engine.begin() as connection:
        for c_id, stamp in enumerate(stamps, 1):
            for row in ("containers (id, ts) VALUES (", "backups (state, backup_id, c_id, ts) VALUES ('end', 'x', "):
                connection.exec_driver_sql(f"INSERT INTO {row}{c_id}, {mark})", (stamp,))
            connection.exec_driver_sql(f"INSERT INTO container_state (c_id) VALUES ({c_id})")
    with reading(any_site) as session:
        assert {facts.c_id: facts.created for facts in admin_db.read_active_containers(session)} == expected
        assert {row.c_id: row.ts for row in admin_db.read_log(session)} == expected
        assert {row.ts for row in admin_db.read_newest_rows(session, 99)} >= set(filter(None, stamps.values()))
        assert admin_db.read_deleted_containers(session, EARLIEST) == []


# --- The log -------------------------------------------------------------------------------------------


def test_the_log_comes_by_container(any_site: Site) -> None:
    with reading(any_site) as session:
        assert admin_db.read_first_stamp(session) is None
    for number, (c_id, ts) in enumerate([(7, TS), (3, LATER), (7, LATER), (3, None), (3, TS), (9, TS)]):
        any_site.row(id=9 - number, c_id=c_id, ts=ts)
    with reading(any_site) as session:
        whole = [(row.c_id, row.ts) for row in admin_db.read_log(session)]
        assert [c_id for c_id, _ in whole] == [3, 3, 3, 7, 7, 9]
        assert set(whole) == {(3, LATER), (3, TS), (3, None), (7, LATER), (7, TS), (9, TS)}
        since = {(row.c_id, row.ts) for row in admin_db.read_log(session, LATER)}
        assert since == {(3, LATER), (7, LATER), (3, None)}, "the undated rows as well"
        assert {row.c_id for row in admin_db.read_log(session, c_ids=[7, 9])} == {7, 9}
        assert [row.ts for row in admin_db.read_newest_rows(session, 2)] == [LATER, LATER]
        for before, first in ((None, TS), (TS, TS), (LATER, None)):
            assert admin_db.read_first_stamp(session, unless_before=before) == first


def test_of_a_long_message_the_beginning_and_the_end_are_read_in_characters(any_site: Site) -> None:
    messages = ["\u00e4" * (length - 3) + "end" for length in (1_000_000, 65_537, 65_536)]
    for days, message in enumerate(messages):
        any_site.row(c_id=7, ts=TS - timedelta(days=days), err_msg=message)
    with reading(any_site) as session:
        found = [(row.message, row.message_end) for row in admin_db.read_log(session)]
        for count in (0, 101):
            assert {row.message for row in admin_db.read_newest_rows(session, 9, count)} == {"\u00e4" * count}
    assert found == [*((one[:32_768], one[-32_768:]) for one in messages[:2]), (messages[2], None)]


# --- Privileges ----------------------------------------------------------------------------------------

READ = {
    "containers": {"id", "name", "data", "ts"},
    "container_state": {"id", "c_id", "name", "state"},
    "backups": {column.name for column in BackupLog.__table__.columns} - {"command"},
}
WRITES = ("INSERT", "UPDATE", "DELETE", "TRUNCATE")


def test_all_columns_that_the_audit_reads_are_tried_and_no_others(sqlite_site: Site) -> None:
    with sqlite_site.session() as session:
        for table, columns in READ.items():
            for column in Base.metadata.tables[table].columns.keys():  # noqa: SIM118  # not a dict
                session.execute(sa.text(f"ALTER TABLE {table} RENAME {column} TO gone"))
                with pytest.raises(DBAPIError, match=column) if column in columns else nullcontext():
                    assert list(admin_db.check_privileges(session)) == list(READ)
                session.execute(sa.text(f"ALTER TABLE {table} RENAME gone TO {column}"))


def test_whether_a_role_may_write_to_what_the_audit_reads(site: Site) -> None:
    url, passfile = site.postgres.url.set(username=SUPERUSER), site.settings["pgpass_file"]
    engine = admin_db.make_engine(url, libpq={"passfile": passfile})
    grants = {"SELECT, REFERENCES ON containers, container_state, backups": False}
    grants |= {f"{privilege} ON {table}": True for privilege, table in product(WRITES, READ)}
    with admin_db.reading_session(engine) as session:  # which commits nothing
        session.execute(sa.text("CREATE ROLE reader; GRANT ALL ON action_log TO reader"))
        for grant, expected in grants.items():
            with session.begin_nested() as savepoint:
                session.execute(sa.text(f"GRANT {grant} TO reader; SET LOCAL ROLE reader"))
                assert admin_db.may_write(session) == expected, grant
                savepoint.rollback()
    engine.dispose()
