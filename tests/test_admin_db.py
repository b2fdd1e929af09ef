"""The data layer: engines, sessions, the four tables, and the reads of the audit, on every database."""

from __future__ import annotations

import io
import json
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg2
import pytest
import sqlalchemy as sa
from psycopg2 import extensions
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError
from sqlalchemy.orm import Session

import admin_db
from models import EARLIEST, LATEST, ActionLog, BackupLog, Base, ContainerRow, ContainerState
from tests.builders import SECRET, TOP, Site
from tests.postgres import ADMIN_USER, HOST, Server

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
"""SPEC section 1, in its order; `time` is a time stamp without a zone."""
KINDS = {"INTEGER": "int", "TEXT": "text", "JSON": "json", "JSONB": "json", "DATETIME": "time", "TIMESTAMP": "time"}


@contextmanager
def reading(site: Site) -> Iterator[sa.Engine]:
    """A read-only engine for a site."""
    url = site.database.url if site.database else site.settings["database_url"]
    engine = admin_db.make_engine(url, read_only=True, libpq={"passfile": site.settings.get("pgpass_file")})
    yield engine
    engine.dispose()


@pytest.fixture
def read_only(any_site: Site) -> Iterator[sa.Engine]:
    with reading(any_site) as engine:
        yield engine


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
    database = own_site.database
    assert database
    for table in TABLES:
        database.execute(f"INSERT INTO {table} (name) VALUES ('sales')", user=ADMIN_USER)
        database.execute(f"ALTER TABLE {table} ALTER COLUMN id DROP DEFAULT")
    with own_site.session() as session:
        session.add_all([model(name="sales") for model in MODELS])
    with own_site.session() as session:
        for model in MODELS:
            assert [row.id for row in admin_db.find(session, model)] == [2, 1]


# --- Create, read, update, delete ----------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS)
def test_every_table_can_be_read_updated_and_deleted(any_site: Site, model: type[Any]) -> None:
    with any_site.session() as session:
        for name in ("sales", "wiki", "sales"):
            session.add(model(name=name))
            session.flush()
    with any_site.session() as session:
        assert [row.id for row in admin_db.find(session, model)] == [3, 2, 1]
        assert [row.id for row in admin_db.find(session, model, name="sales")] == [3, 1]
        assert [row.id for row in admin_db.find(session, model, limit=1, name="sales")] == [3]
        assert admin_db.find(session, model, name="Sales") == admin_db.find(session, model, limit=0) == []
        assert admin_db.update(session, model, 1, name="shop", ts=TS).name == "shop"
    with any_site.session() as session:
        row = admin_db.get(session, model, 1)
        assert (row.id, row.name, row.ts) == (1, "shop", TS)
        assert admin_db.delete(session, model, name="sales") == 1
        assert admin_db.delete(session, model, name="sales") == 0
        with pytest.raises(LookupError, match=f"{model.__tablename__} has no row with the id 3"):
            admin_db.get(session, model, 3)
        with pytest.raises(LookupError, match="the id 3"):
            admin_db.update(session, model, 3, name="shop")
        with pytest.raises(TypeError, match=f"{model.__tablename__} has no column nmae"):
            admin_db.update(session, model, 1, nmae="shop")
    with any_site.session() as session:
        assert [row.name for row in admin_db.find(session, model)] == ["wiki", "shop"]


def test_given_values_are_stored_and_the_others_have_defaults(any_site: Site) -> None:
    columns = {"backup_type": "User", "url": "s3://x", "command": "pg_dump", "err_msg": "\nExecuted:\n"}
    with any_site.session() as session:
        admin_db.add_container(session, "sales", {"Id": 1}, TS)
        admin_db.add_state(session, None, None, None, ts=LATER, last_state="y", changed_by="ada")
        admin_db.log_action(session, 7, "sales", "create", description="by hand", ts=LATER)
        admin_db.log_backup(session, None, None, "end", None, LATER, **columns)
    expected = (
        ("sales", {"Id": 1}, TS),
        (None, None, None, "y", None, "ada", LATER),
        (7, "sales", "create", "by hand", LATER),
    )
    with any_site.session() as session:
        for model, values in zip(MODELS, (*expected, (None, None, "end", None, *columns.values(), LATER)), strict=True):
            row = admin_db.get(session, model, 1)
            assert tuple(getattr(row, column.name) for column in model.__table__.columns) == (1, *values)
        state, action = admin_db.add_state(session, 7, "sales"), admin_db.log_action(session, 7, "sales", "create")
        for stamp in (state.ts, action.ts, admin_db.add_container(session, "sales", {}).ts):
            assert abs(any_site.clock().replace(tzinfo=None) - (stamp or TS)) < timedelta(minutes=5), "naive UTC"
        assert (state.state, state.observerd, state.last_state, state.changed_by) == ("running", "running", None, None)
        logged = admin_db.log_backup(session, 7, "sales", "start", "20260313-18:07:31", TS)
        assert (logged.backup_type, logged.url, logged.command, logged.err_msg) == ("Daily", "", "", "")


DOCUMENTS: list[Any] = [
    None,
    [],
    "Info",
    "",
    7,
    0.5,
    False,
    {},
    {"Info": None},
    {"ü\"'\\": [1, 2.5, None, "数据 \x7f\t"]},
]
NAMES = [None, "", 'o\'brien "x" %s :a', "sales\nline\r\x1e", "\x1b[31m", "数据🦊", "x" * 5000]


def test_any_document_and_any_name_is_read_as_it_was_written(any_site: Site) -> None:
    ids = [any_site.container(data=data) for data in DOCUMENTS]
    named = [any_site.container(name, data={"Info": {"OWNER": name}}) for name in NAMES]
    with any_site.session() as session:
        assert [admin_db.get(session, ContainerRow, c_id).data for c_id in ids] == DOCUMENTS
        assert session.scalar(sa.text("SELECT count(*) FROM containers WHERE data IS NULL")) == 1
        for c_id, name in zip(named, NAMES, strict=True):
            assert [row.id for row in admin_db.find(session, ContainerRow, name=name)] == [c_id]
        found = admin_db.read_active_containers(session)[len(ids) :]
        assert [(one.name, one.container_name, one.owner) for one in found] == [(n, n, n or None) for n in NAMES]


def test_sqlite_stores_nul_and_postgresql_refuses_it(any_site: Site) -> None:
    with pytest.raises(ValueError, match="NUL") if any_site.database else nullcontext():
        any_site.container("a\0b")
    with any_site.session() as session:
        names = [row.name for row in admin_db.find(session, ContainerRow)]
        assert names == ([] if any_site.database else ["a\0b"])


@pytest.mark.parametrize("data", [{"Id": "0d6a", "Info": {"OWNER": "ada", "Port": 1}}, None, {}, {"Info": {}}])
def test_an_update_of_info_sets_and_removes_keys_and_keeps_the_rest(any_site: Site, data: Any) -> None:
    c_id = any_site.container(data=data)
    with any_site.session() as session:
        admin_db.update_info(session, c_id, BACKUP_FREQ="Weekly", Port=None)
    with any_site.session() as session:
        kept = {"OWNER": "ada"} if data and data.get("Id") else {}
        expected = {**(data or {}), "Info": {**kept, "BACKUP_FREQ": "Weekly"}}
        assert admin_db.get(session, ContainerRow, c_id).data == expected
        with pytest.raises(LookupError, match="4711"):
            admin_db.update_info(session, 4711, BACKUP_FREQ="Weekly")


@pytest.mark.parametrize("data", [[], "Info", 7, {"Info": []}, {"Info": None}, {"Info": "BACKUP_FREQ"}])
def test_an_update_of_info_that_is_not_an_object_is_refused(any_site: Site, data: Any) -> None:
    c_id = any_site.container(data=data)
    with pytest.raises(TypeError, match=f"container {c_id} has no Info object"), any_site.session() as session:
        admin_db.update_info(session, c_id, BACKUP_FREQ="Weekly")
    with any_site.session() as session:
        assert admin_db.get(session, ContainerRow, c_id).data == data


def test_a_state_change_keeps_the_previous_state_and_is_logged(any_site: Site) -> None:
    with any_site.session() as session:
        for state in ("stopped", "running"):  # of repeated rows the one with the highest id counts
            admin_db.add_state(session, 7, "sales", state, ts=TS)
        admin_db.update_state(session, 7, "maintenance", "ada", LATER)
    with any_site.session() as session:
        newest, other = admin_db.find(session, ContainerState, c_id=7)
        assert (newest.state, newest.last_state, newest.changed_by) == ("maintenance", "running", "ada")
        assert (newest.ts, other.state, other.ts) == (LATER, "stopped", TS)
        (action,) = admin_db.find(session, ActionLog)
        assert (action.c_id, action.name, action.ts) == (7, "sales", LATER)
        assert action.description == "state changed from running to maintenance"
        with pytest.raises(LookupError, match="4711"):
            admin_db.update_state(session, 4711, "maintenance", "ada")


# --- Engines and sessions ------------------------------------------------------------------------------


def test_a_writing_session_that_raises_leaves_nothing(any_site: Site) -> None:
    c_id = any_site.container("sales")

    def write(session: Session) -> None:
        admin_db.update_state(session, c_id, "maintenance", "ada")
        admin_db.add_container(session, "wiki", {})
        raise RuntimeError

    with pytest.raises(RuntimeError), any_site.session() as session:
        write(session)
    with any_site.session() as session:
        assert [row.name for row in admin_db.find(session, ContainerRow)] == ["sales"]
        assert [row.state for row in admin_db.find(session, ContainerState)] == ["running"]


def test_an_audit_session_commits_nothing_and_leaves_the_engine_to_its_caller() -> None:
    engine = admin_db.make_engine("sqlite://")  # a database in memory, gone with its connection
    admin_db.create_tables(engine)
    with admin_db.writing_session(engine) as session:
        admin_db.add_state(session, 7, "sales")
    for _ in range(2):
        with admin_db.audit_session(engine) as session:
            assert [facts.c_id for facts in admin_db.read_active_containers(session)] == [7]
            admin_db.add_state(session, 8, "wiki")
    engine.dispose()


def test_an_error_of_the_block_is_not_hidden_by_the_loss_of_the_connection(site: Site) -> None:
    def lose(session: Session) -> None:
        pid = session.scalar(sa.text("SELECT pg_backend_pid()"))
        assert site.database
        site.database.execute(f"SELECT pg_terminate_backend({pid}, 10000)")
        raise RuntimeError("of the block")

    with pytest.raises(RuntimeError, match="of the block"), admin_db.audit_session(site.engine) as session:
        lose(session)


def test_a_read_only_engine_refuses_to_write_and_the_error_shows_no_values(read_only: sa.Engine) -> None:
    with pytest.raises(DBAPIError, match=r"read.?only") as caught, admin_db.writing_session(read_only) as session:
        admin_db.add_container(session, SECRET, {"Info": {"DB_PASS": SECRET}})
    assert SECRET not in str(caught.value)


def test_a_read_only_engine_sees_one_snapshot(any_site: Site, read_only: sa.Engine) -> None:
    any_site.container("sales")
    if any_site.database is None:  # as busy sites have it: without, a reader keeps the writer waiting
        with closing(sqlite3.connect(any_site.folder / "admin.db")) as connection:
            connection.execute("PRAGMA journal_mode = WAL")
    with admin_db.audit_session(read_only) as session:
        assert len(admin_db.read_active_containers(session)) == 1
        any_site.container("wiki")
        assert len(admin_db.read_active_containers(session)) == 1
    with admin_db.audit_session(read_only) as session:
        assert len(admin_db.read_active_containers(session)) == 2


def test_a_read_only_engine_creates_no_sqlite_file_whatever_its_name(tmp_path: Path) -> None:
    path = tmp_path / "a?mode=rwc #1%25.db"
    engine = admin_db.make_engine(sa.URL.create("sqlite", database=str(path)), read_only=True)
    with pytest.raises(OperationalError, match="unable to open"), admin_db.audit_session(engine) as session:
        admin_db.read_active_containers(session)
    assert list(tmp_path.iterdir()) == []
    writer = admin_db.make_engine(sa.URL.create("sqlite", database=str(path)))
    admin_db.create_tables(writer)
    with admin_db.audit_session(engine) as session:
        assert admin_db.read_active_containers(session) == []
    assert list(tmp_path.iterdir()) == [path]
    engine.dispose()
    writer.dispose()


def test_an_engine_is_for_sqlite_or_postgresql_and_does_not_connect_yet() -> None:
    for scheme in ("postgresql", "postgresql+psycopg2", "postgresql+asyncpg"):
        engine = admin_db.make_engine(f"{scheme}://nobody@192.0.2.1:1/nothing", read_only=True)
        assert (engine.driver, engine.url.password) == ("psycopg2", None)
    for url in ("mysql+pymysql://localhost/x", "oracle://x", "no url", ""):
        with pytest.raises(ArgumentError):
            admin_db.make_engine(url)


def test_the_session_on_the_server_and_its_timeout(site: Site) -> None:
    assert site.database
    libpq = {"passfile": site.settings["pgpass_file"], "application_name": "x", "options": "-c work_mem=5MB"}
    engine = admin_db.make_engine(site.database.url, read_only=True, query_timeout=1, libpq=libpq)
    with admin_db.audit_session(engine) as session:
        for setting in ("application_name = x", "work_mem = 5MB", "statement_timeout = 1s", "client_encoding = UTF8",
                        "default_transaction_read_only = on", "transaction_isolation = repeatable read"):  # fmt: skip
            name, _, value = setting.partition(" = ")
            assert session.scalar(sa.text(f"SHOW {name}")) == value, setting
        with pytest.raises(OperationalError, match="statement timeout"):
            session.execute(sa.text("SELECT pg_sleep(60)"))
    engine.dispose()


# --- Text of other encodings, and nothing process-wide ---------------------------------------------------

ODD_TEXT = {  # bytes in SQL, and how they are read
    "SQL_ASCII": (r"caf\xc3\xa9\xff", "café\\xff"),
    "WIN1252": (r"caf\xe9\x81", "café\\x81"),
    "LATIN1": (r"caf\xe9\x81", "café\x81"),
    "EUC_TW": (r"caf\x8e\xa1\xc4\xc7", "caf口"),  # Python has no such codec, the server converts
}


@pytest.mark.parametrize("encoding", ODD_TEXT)
def test_text_is_read_whatever_the_encoding(postgres: Server, tmp_path: Path, encoding: str) -> None:
    database = postgres.create_database(encoding=encoding)
    admin_db.create_tables(database.engine)
    site = Site(database.engine, database.settings, tmp_path, database)
    sql, expected = ODD_TEXT[encoding]
    site.run(site.container("x"), TS, LATER)
    freq = "jsonb_build_object('Info', jsonb_build_object('BACKUP_FREQ', 'Daily', 'OWNER', odd))"
    with database.engine.begin() as connection:
        for changes in (f"containers SET name = odd, data = {freq}", "container_state SET name = odd",
                        "backups SET err_msg = odd, backup_type = odd, backup_id = odd"):  # fmt: skip
            connection.exec_driver_sql(f"UPDATE {changes}".replace("odd", f"E'{sql}'"))
    with reading(site) as engine, admin_db.audit_session(engine) as session:
        (facts,) = admin_db.read_active_containers(session)
        (run,) = admin_db.read_runs(session, TS, LATER, LATER)
        assert (facts.name, facts.container_name, facts.owner) == (expected,) * 3
        assert (run.backup_id, run.type, run.started, run.ended) == (expected, expected, TS, LATER)
        assert run.messages == f"{expected}{admin_db.SEPARATOR}{expected}"
    answer = site.audit("--json", "--at", "2026-03-14T07:00Z")
    assert (answer.status, answer.err) == (0, "")
    assert json.loads(answer.out)["containers"][0]["name"] == expected
    database.drop()


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "WIN1252"])
def test_nothing_changes_for_others_in_the_process(postgres: Server, tmp_path: Path, encoding: str) -> None:
    database = postgres.create_database(encoding=encoding)
    admin_db.create_tables(database.engine)
    target = f"host={HOST} port={postgres.port} dbname={database.name} user={ADMIN_USER} passfile={postgres.passfile}"
    before = [dict(one) for one in (extensions.encodings, extensions.string_types, extensions.adapters)]
    with admin_db.writing_session(database.engine) as session:
        c_id = admin_db.add_container(session, "é", {"Info": {"OWNER": "ü"}}).id
        assert session.scalar(sa.text("SHOW client_encoding")) == "UTF8"
    site = Site(database.engine, database.settings, tmp_path, database)
    with reading(site) as engine, admin_db.audit_session(engine) as session, closing(psycopg2.connect(target)) as other:
        assert [facts.container_name for facts in admin_db.read_deleted_containers(session)] == ["é"]
        other.set_client_encoding("UTF8")
        copied = io.StringIO()
        other.cursor().copy_expert("COPY containers (name) TO STDOUT", copied)
        assert copied.getvalue() == "é\n"
    with admin_db.writing_session(database.engine) as session:
        row = admin_db.get(session, ContainerRow, c_id)
        assert (row.name, row.data) == ("é", {"Info": {"OWNER": "ü"}})
    assert [extensions.encodings, extensions.string_types, extensions.adapters] == before
    database.drop()


def test_importing_changes_nothing_and_needs_models_alone() -> None:
    code = f"""
import sys; sys.path[0] = {str(TOP)!r}
import psycopg2.extensions as pg, sqlite3, sqlalchemy.orm, sqlalchemy.dialects.postgresql
state = lambda: list(map(dict, (pg.encodings, pg.string_types, pg.adapters, sqlite3.adapters, sqlite3.converters)))
before, modules = state(), set(sys.modules)
import admin_db
assert state() == before
files = {{name: str(getattr(sys.modules[name], "__file__", "")) for name in set(sys.modules) - modules}}
assert {{name for name, file in files.items() if file.startswith(sys.path[0])}} == {{"admin_db", "models"}}, files"""
    ran = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=60)
    assert (ran.returncode, ran.stderr) == (0, "")


# --- Time stamps that are not ---------------------------------------------------------------------------

TENTH = TS.replace(microsecond=100_000)
Stamps = dict[Any, tuple[datetime | None, datetime | None]]
SQLITE_STAMPS: Stamps = {
    **dict.fromkeys(("2026-03-13 18:07:31", "2026-03-13 18:07:31."), (TS, TS)),
    **dict.fromkeys(("2026-03-13 18:07:31.1", "2026-03-13 18:07:31.100000000"), (TENTH, TENTH)),
    "2026-03-13T18:07:31": (None, TS),
    "9999-12-31 23:59:59": (None, LATEST),
    "0001-01-01 00:00:00": (None, EARLIEST),
    **dict.fromkeys(
        (f"2026-03-13 18:07:31{end}" for end in (".x", ".1x", ".-1", " UTC", "Z", "+02:00", "\n")), (None, None)
    ),
    **dict.fromkeys(("2026-02-30 18:07:31", "2026-03-00 18:07:31", "2026-03-13 18:60:00"), (None, None)),
    **dict.fromkeys(("0000-01-01 00:00:00", "20000-01-01 00:00:00", "٢٠٢٦-03-13 18:07:31", "18:07"), (None, None)),
    **dict.fromkeys(("nonsense", "", "now", None, 0, 1773425220, 2461113.25, b"2026-03-13 18:07:31"), (None, None)),
}
"""What a stamp is as that of a log row up to 2026-03-14, and as that of a container."""
POSTGRES_STAMPS: Stamps = {
    "2026-03-13 18:07:31": (TS, TS),
    **dict.fromkeys(("infinity", "294276-12-31 23:59:59"), (None, LATEST)),
    **dict.fromkeys(("-infinity", "4713-01-01 00:00:00 BC", "0001-01-01 00:00:00"), (None, EARLIEST)),
}


def test_no_time_stamp_ends_a_read(any_site: Site, read_only: sa.Engine) -> None:
    stamps, mark = (POSTGRES_STAMPS, "%s::timestamp") if any_site.database else (SQLITE_STAMPS, "?")
    with any_site.engine.begin() as connection:
        for c_id, stamp in enumerate(stamps, 1):
            for row in ("containers (id, ts) VALUES (", "backups (state, backup_id, c_id, ts) VALUES ('end', 'x', "):
                connection.exec_driver_sql(f"INSERT INTO {row}{c_id}, {mark})", (stamp,))
            connection.exec_driver_sql(f"INSERT INTO container_state (c_id) VALUES ({c_id})")
    with admin_db.audit_session(read_only) as session:
        created = {facts.c_id: facts.created for facts in admin_db.read_active_containers(session)}
        assert created == {c_id: expected for c_id, (_, expected) in enumerate(stamps.values(), 1)}
        for unseen in (False, True):
            read = list(admin_db.read_runs(session, None, TS, datetime(2026, 3, 14), unseen=unseen))
            ends = {run.c_id: run.ended for run in read if run.stray_id is None}
            assert ends == {c_id: end for c_id, (end, _) in enumerate(stamps.values(), 1) if end}
            assert all(run.started is None for run in read)
        assert (admin_db.read_newest_stamp(session) or LATEST) < LATEST
        assert admin_db.read_deleted_containers(session, EARLIEST) == []
