"""The data layer: every routine of `admin_db` that creates, reads, updates or deletes, on every database."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, func, inspect, select, text
from sqlalchemy.exc import ArgumentError, OperationalError

import admin_db
from models import Base, ContainerRow
from tests.builders import Site
from tests.postgres import ADMIN_USER, HOST, SUPERUSER, Server

TS = datetime(2026, 3, 13, 18, 7, 31)
LATER = TS + timedelta(minutes=23)

TABLES = {
    "containers": {"id": "int", "name": "text", "data": "json", "ts": "timestamp"},
    "container_state": {
        "id": "int",
        "c_id": "int",
        "name": "text",
        "state": "text",
        "last_state": "text",
        "observerd": "text",
        "changed_by": "text",
        "ts": "timestamp",
    },
    "action_log": {
        "id": "int",
        "c_id": "int",
        "name": "text",
        "action": "text",
        "description": "text",
        "ts": "timestamp",
    },
    "backups": {
        "id": "int",
        "c_id": "int",
        "name": "text",
        "state": "text",
        "backup_id": "text",
        "backup_type": "text",
        "url": "text",
        "command": "text",
        "err_msg": "text",
        "ts": "timestamp",
    },
}
"""SPEC section 1, in its order."""

TYPE_NAMES = {
    "postgresql": {"int": "INTEGER", "text": "TEXT", "json": "JSONB", "timestamp": "TIMESTAMP"},
    "sqlite": {"int": "INTEGER", "text": "TEXT", "json": "JSON", "timestamp": "DATETIME"},
}


# --- The tables ----------------------------------------------------------------------------------------


def test_the_tables_have_the_columns_of_the_deployed_ones(any_site: Site) -> None:
    inspector = inspect(any_site.engine)
    names = TYPE_NAMES[any_site.engine.dialect.name]
    assert set(inspector.get_table_names()) == set(TABLES)
    for table, columns in TABLES.items():
        found = {column["name"]: str(column["type"]) for column in inspector.get_columns(table)}
        assert found == {name: names[kind] for name, kind in columns.items()}, table
        assert list(found) == list(columns), table


def test_every_column_but_the_id_may_be_null(any_site: Site) -> None:
    for table in TABLES:
        for column in inspect(any_site.engine).get_columns(table):
            assert column["nullable"] == (column["name"] != "id"), (table, column["name"])


def test_the_tables_have_no_constraints_and_no_index_but_the_primary_key(any_site: Site) -> None:
    inspector = inspect(any_site.engine)
    for table in TABLES:
        assert inspector.get_pk_constraint(table)["constrained_columns"] == ["id"]
        assert inspector.get_foreign_keys(table) == []
        assert inspector.get_unique_constraints(table) == []
        assert inspector.get_check_constraints(table) == []
        assert inspector.get_indexes(table) == []


def test_the_timestamps_have_no_time_zone(postgres: Server) -> None:
    zoned = postgres.shared_site.execute(
        "SELECT table_name FROM information_schema.columns WHERE table_schema = 'public' "
        "AND data_type = 'timestamp with time zone'"
    )
    assert zoned == []


def test_the_sequences_have_the_names_of_the_deployed_ones(postgres: Server) -> None:
    sequences = inspect(postgres.shared_site.engine).get_sequence_names()
    assert sorted(sequences) == sorted(f"{table}_id_seq" for table in TABLES)


def test_creating_the_tables_again_is_harmless(any_site: Site) -> None:
    c_id = any_site.container("sales")
    admin_db.create_tables(any_site.engine)
    with any_site.session() as session:
        assert _existing(admin_db.get_container(session, c_id)).name == "sales"


@pytest.mark.parametrize("table", TABLES)
def test_a_row_can_be_inserted_without_an_id_from_psql(site: Site, table: str) -> None:
    for _ in range(2):
        _database(site).execute(f"INSERT INTO {table} (name) VALUES ('sales')", user=ADMIN_USER)
    assert _database(site).execute(f"SELECT id, name FROM {table} ORDER BY id") == [(1, "sales"), (2, "sales")]


def test_rows_can_be_added_where_the_ids_have_no_default(own_site: Site) -> None:
    for table in TABLES:
        _database(own_site).execute(f"ALTER TABLE {table} ALTER COLUMN id DROP DEFAULT")
    with own_site.session() as session:
        assert admin_db.add_container(session, "sales", {}).id == 1
        assert admin_db.add_state(session, 1, "sales").id == 1
        assert admin_db.log_action(session, 1, "sales", "create").id == 1
        assert admin_db.log_backup(session, 1, "sales", "start", "20260313-18:07:31", TS).id == 1


def test_ids_grow_with_insertion(any_site: Site) -> None:
    with any_site.session() as session:
        ids = [admin_db.log_backup(session, 1, "sales", "start", str(number), TS).id for number in range(5)]
    assert ids == sorted(set(ids))


# --- containers ----------------------------------------------------------------------------------------


def test_a_container_is_read_as_it_was_added(any_site: Site) -> None:
    data = {"Info": {"dbengine": "Postgres", "labels": {"owner": "ada"}}, "Nested": [1, 2.5, None, True, "ü\"'\\"]}
    with any_site.session() as session:
        c_id = admin_db.add_container(session, "sales", data, TS).id
    with any_site.session() as session:
        row = _existing(admin_db.get_container(session, c_id))
        assert (row.id, row.name, row.data, row.ts) == (c_id, "sales", data, TS)


@pytest.mark.parametrize("data", [None, [], ["Info"], "Info", 7, {}, {"Info": None}])
def test_a_container_may_have_any_document(any_site: Site, data: Any) -> None:
    with any_site.session() as session:
        c_id = admin_db.add_container(session, "sales", data).id
    with any_site.session() as session:
        assert _existing(admin_db.get_container(session, c_id)).data == data


def test_a_missing_document_is_an_sql_null(any_site: Site) -> None:
    any_site.container("sales", data=None)
    with any_site.session() as session:
        query = text("SELECT count(*) FROM containers WHERE data IS NULL")
        assert session.execute(query).scalar_one() == 1


@pytest.mark.parametrize("name", [None, "", 'o\'brien "x"', "sales\nline", "\x1b[31mred", "データ🦊", "x" * 200])
def test_a_name_is_any_text(any_site: Site, name: str | None) -> None:
    with any_site.session() as session:
        c_id = admin_db.add_container(session, name, {}).id
        admin_db.add_state(session, c_id, name)
    with any_site.session() as session:
        assert _existing(admin_db.get_container(session, c_id)).name == name
        assert _existing(admin_db.get_state(session, c_id)).name == name


def test_a_container_added_without_a_time_is_of_now_in_naive_utc(any_site: Site) -> None:
    with any_site.session() as session:
        c_id = admin_db.add_container(session, "sales", {}).id
    now = any_site.clock().replace(tzinfo=None)
    with any_site.session() as session:
        created = _existing(admin_db.get_container(session, c_id)).ts
        assert created is not None
        assert abs(now - created) < timedelta(minutes=5)


def test_an_unknown_container_is_none(any_site: Site) -> None:
    with any_site.session() as session:
        assert admin_db.get_container(session, 4711) is None


def test_containers_are_listed_oldest_first_all_or_by_name(any_site: Site) -> None:
    with any_site.session() as session:
        for name in ("sales", "wiki", "sales"):
            admin_db.add_container(session, name, {})
    with any_site.session() as session:
        assert [row.name for row in admin_db.list_containers(session)] == ["sales", "wiki", "sales"]
        ids = [row.id for row in admin_db.list_containers(session, "sales")]
        assert ids == sorted(ids)
        assert len(ids) == 2
        assert admin_db.list_containers(session, "Sales") == []


def test_a_containers_name_and_document_are_updated_each_by_itself(any_site: Site) -> None:
    c_id = any_site.container("sales", data={"Info": {"Port": 1}})
    with any_site.session() as session:
        admin_db.update_container(session, c_id, name="shop")
    with any_site.session() as session:
        row = admin_db.update_container(session, c_id, data={"Info": {"Port": 2}})
        assert (row.name, row.data) == ("shop", {"Info": {"Port": 2}})
    with any_site.session() as session:
        row = _existing(admin_db.get_container(session, c_id))
        assert (row.name, row.data) == ("shop", {"Info": {"Port": 2}})


def test_an_update_of_info_sets_and_removes_keys_and_keeps_the_rest(any_site: Site) -> None:
    c_id = any_site.container(data={"Id": "0d6a", "Info": {"OWNER": "ada", "BACKUP_FREQ": "Daily", "Port": 1}})
    with any_site.session() as session:
        admin_db.update_info(session, c_id, BACKUP_FREQ="Weekly", Port=None, CONTACT="ada@example.org")
    with any_site.session() as session:
        info = {"OWNER": "ada", "BACKUP_FREQ": "Weekly", "CONTACT": "ada@example.org"}
        assert _existing(admin_db.get_container(session, c_id)).data == {"Id": "0d6a", "Info": info}


@pytest.mark.parametrize("data", [None, {}, {"Info": {}}])
def test_an_update_of_info_makes_it_where_there_is_none(any_site: Site, data: Any) -> None:
    c_id = any_site.container(data=data)
    with any_site.session() as session:
        admin_db.update_info(session, c_id, BACKUP_FREQ="Weekly")
    with any_site.session() as session:
        assert _existing(admin_db.get_container(session, c_id)).data == {"Info": {"BACKUP_FREQ": "Weekly"}}


@pytest.mark.parametrize("data", [[], "Info", 7, {"Info": []}, {"Info": "BACKUP_FREQ"}])
def test_an_update_of_info_that_is_no_object_is_refused(any_site: Site, data: Any) -> None:
    c_id = any_site.container(data=data)
    with pytest.raises(TypeError, match=f"container {c_id} has no Info object"), any_site.session() as session:
        admin_db.update_info(session, c_id, BACKUP_FREQ="Weekly")
    with any_site.session() as session:
        assert _existing(admin_db.get_container(session, c_id)).data == data


@pytest.mark.parametrize(
    "update",
    [
        lambda session: admin_db.update_container(session, 4711, name="shop"),
        lambda session: admin_db.update_info(session, 4711, BACKUP_FREQ="Weekly"),
        lambda session: admin_db.update_state(session, 4711, "maintenance", "ada"),
    ],
    ids=["container", "info", "state"],
)
def test_an_update_of_what_is_not_there_names_the_id(any_site: Site, update: Callable[..., Any]) -> None:
    with pytest.raises(LookupError, match="4711"), any_site.session() as session:
        update(session)
    with any_site.session() as session:
        assert admin_db.list_actions(session) == []


def test_a_deleted_container_leaves_its_state_and_its_log(any_site: Site) -> None:
    c_id = any_site.container("sales")
    other = any_site.container("wiki")
    any_site.run(c_id, TS, LATER)
    with any_site.session() as session:
        assert admin_db.delete_container(session, c_id) is True
    with any_site.session() as session:
        assert [row.id for row in admin_db.list_containers(session)] == [other]
        assert admin_db.get_state(session, c_id) is not None
        assert len(admin_db.list_backups(session, c_id)) == 2
        assert admin_db.delete_container(session, c_id) is False


def test_a_container_deleted_in_a_session_that_knows_it_is_gone_there_too(any_site: Site) -> None:
    c_id = any_site.container("sales")
    with any_site.session() as session:
        assert admin_db.get_container(session, c_id) is not None
        assert admin_db.delete_container(session, c_id) is True
        assert admin_db.get_container(session, c_id) is None


# --- container_state -----------------------------------------------------------------------------------


def test_a_new_state_is_also_the_observed_one_and_has_none_before(any_site: Site) -> None:
    with any_site.session() as session:
        admin_db.add_state(session, 7, "sales", "running", changed_by="ada", ts=TS)
    with any_site.session() as session:
        row = _existing(admin_db.get_state(session, 7))
        assert (row.c_id, row.name, row.state, row.observerd) == (7, "sales", "running", "running")
        assert (row.last_state, row.changed_by, row.ts) == (None, "ada", TS)


def test_of_repeated_states_the_highest_id_counts(any_site: Site) -> None:
    with any_site.session() as session:
        admin_db.add_state(session, 7, "sales", "running")
        last = admin_db.add_state(session, 7, "sales", "maintenance").id
    with any_site.session() as session:
        row = _existing(admin_db.get_state(session, 7))
        assert (row.id, row.state) == (last, "maintenance")


def test_a_container_that_is_not_active_has_no_state(any_site: Site) -> None:
    c_id = any_site.container(active=False)
    with any_site.session() as session:
        assert admin_db.get_state(session, c_id) is None


def test_states_are_listed_all_or_by_state(any_site: Site) -> None:
    with any_site.session() as session:
        for c_id, state in ((3, "running"), (1, "maintenance"), (2, "running")):
            admin_db.add_state(session, c_id, f"db{c_id}", state)
    with any_site.session() as session:
        assert [row.c_id for row in admin_db.list_states(session)] == [3, 1, 2]
        assert [row.c_id for row in admin_db.list_states(session, "running")] == [3, 2]
        assert admin_db.list_states(session, "stopped") == []


def test_an_update_of_a_state_remembers_the_one_before(any_site: Site) -> None:
    c_id = any_site.container("sales", state="running", created=TS)
    with any_site.session() as session:
        admin_db.update_state(session, c_id, "maintenance", "ada", LATER)
    with any_site.session() as session:
        row = _existing(admin_db.get_state(session, c_id))
        assert (row.state, row.last_state, row.changed_by, row.ts) == ("maintenance", "running", "ada", LATER)


def test_an_update_of_a_state_is_noted_in_the_action_log(any_site: Site) -> None:
    c_id = any_site.container("sales", state="running")
    with any_site.session() as session:
        admin_db.update_state(session, c_id, "maintenance", "ada", LATER)
    with any_site.session() as session:
        (action,) = admin_db.list_actions(session, c_id)
        assert (action.c_id, action.name, action.ts) == (c_id, "sales", LATER)
        assert action.description is not None
        assert all(word in action.description for word in ("running", "maintenance", "ada"))


def test_a_state_update_that_is_rolled_back_is_not_in_the_action_log(any_site: Site) -> None:
    c_id = any_site.container("sales", state="running")
    with any_site.session() as session:
        admin_db.update_state(session, c_id, "maintenance", "ada")
        session.rollback()
    with any_site.session() as session:
        assert _existing(admin_db.get_state(session, c_id)).state == "running"
        assert admin_db.list_actions(session) == []


def test_a_deleted_state_takes_its_duplicates_along_but_no_other(any_site: Site) -> None:
    with any_site.session() as session:
        for c_id in (7, 7, 8):
            admin_db.add_state(session, c_id, "sales")
    with any_site.session() as session:
        assert admin_db.delete_state(session, 7) is True
    with any_site.session() as session:
        assert [row.c_id for row in admin_db.list_states(session)] == [8]
        assert admin_db.delete_state(session, 7) is False


# --- action_log and backups ----------------------------------------------------------------------------


def test_actions_are_listed_newest_first_and_no_more_than_asked_for(any_site: Site) -> None:
    with any_site.session() as session:
        for number in range(5):
            admin_db.log_action(session, number % 2, "sales", f"action {number}", "by hand", TS)
    with any_site.session() as session:
        assert [row.action for row in admin_db.list_actions(session, limit=3)] == ["action 4", "action 3", "action 2"]
        assert [row.action for row in admin_db.list_actions(session, 1)] == ["action 3", "action 1"]
        row = admin_db.list_actions(session)[0]
        assert (row.c_id, row.name, row.description, row.ts) == (0, "sales", "by hand", TS)


def test_a_row_of_the_backup_log_is_read_as_it_was_written(any_site: Site) -> None:
    with any_site.session() as session:
        admin_db.log_backup(
            session,
            7,
            "sales",
            "end",
            "20260313-18:07:31",
            LATER,
            backup_type="User",
            url="s3://site-backups/sales",
            command="pg_dump",
            err_msg="\nExecuted Postgres dump_all commands:\n",
        )
    with any_site.session() as session:
        (row,) = admin_db.list_backups(session, 7)
        assert (row.c_id, row.name, row.state, row.backup_id) == (7, "sales", "end", "20260313-18:07:31")
        assert (row.backup_type, row.url, row.command) == ("User", "s3://site-backups/sales", "pg_dump")
        assert (row.err_msg, row.ts) == ("\nExecuted Postgres dump_all commands:\n", LATER)


def test_a_row_of_the_backup_log_may_lack_everything(any_site: Site) -> None:
    with any_site.session() as session:
        row = admin_db.log_backup(
            session, None, None, None, None, None, backup_type=None, url=None, command=None, err_msg=None
        )
        number = row.id
    any_site.row(c_id=7)
    with any_site.session() as session:
        values = session.execute(text("SELECT * FROM backups WHERE id = :id"), {"id": number}).mappings().one()
        assert {value for name, value in values.items() if name != "id"} == {None}
        assert admin_db.list_backups(session, 7)[0].err_msg is None


def test_the_last_rows_of_one_container_are_listed_newest_first(any_site: Site) -> None:
    for day in range(1, 6):
        any_site.run(7, datetime(2026, 3, day, 18), datetime(2026, 3, day, 19))
        any_site.run(8, datetime(2026, 3, day, 18))
    with any_site.session() as session:
        rows = admin_db.list_backups(session, 7, limit=3)
        assert [(row.state, row.backup_id) for row in rows] == [
            ("end", "20260305-18:00:00"),
            ("start", "20260305-18:00:00"),
            ("end", "20260304-18:00:00"),
        ]
        assert len(admin_db.list_backups(session, 8)) == 5
        assert admin_db.list_backups(session, 9) == []


# --- Engines and sessions ------------------------------------------------------------------------------


def test_a_writing_session_that_raises_leaves_nothing(any_site: Site) -> None:
    def add_and_fail() -> None:
        with any_site.session() as session:
            admin_db.add_container(session, "sales", {})
            raise RuntimeError

    with pytest.raises(RuntimeError):
        add_and_fail()
    with any_site.session() as session:
        assert admin_db.list_containers(session) == []


def test_an_audit_session_may_not_write(any_site: Site) -> None:
    engine = _audit_engine(any_site)
    with pytest.raises(admin_db.AdminDBError, match=r"read.?only"), admin_db.audit_session(engine) as session:
        admin_db.add_container(session, "sales", {})
    engine.dispose()


def test_an_audit_session_sees_one_snapshot(any_site: Site) -> None:
    any_site.container("sales")
    if any_site.database is None:  # as busy SQLite sites have it: without, a reader keeps the writer waiting
        with sqlite3.connect(any_site.folder / "admin.db") as connection:
            connection.execute("PRAGMA journal_mode = WAL")
        connection.close()
    engine = _audit_engine(any_site)
    count = select(func.count()).select_from(ContainerRow)
    with admin_db.audit_session(engine) as session:
        assert session.execute(count).scalar_one() == 1
        any_site.container("wiki")
        assert session.execute(count).scalar_one() == 1
    with admin_db.audit_session(engine) as session:
        assert session.execute(count).scalar_one() == 2
    engine.dispose()


def test_making_an_engine_connects_to_nothing() -> None:
    assert admin_db.make_engine("postgresql://nobody@192.0.2.1:1/nothing").pool.status()


@pytest.mark.parametrize("url", ["mysql://localhost/x", "no url", ""])
def test_an_engine_is_made_for_postgresql_and_sqlite_only(url: str) -> None:
    with pytest.raises(ArgumentError):
        admin_db.make_engine(url)


def test_an_audit_never_creates_an_sqlite_file(tmp_path: Path) -> None:
    engine = admin_db.make_engine(f"sqlite:///{tmp_path / 'absent.db'}", read_only=True)
    with pytest.raises(admin_db.AdminDBError, match="database_url"), admin_db.audit_session(engine) as session:
        session.execute(select(1))
    assert list(tmp_path.iterdir()) == []


def test_the_server_ends_a_statement_that_takes_too_long(site: Site) -> None:
    engine = admin_db.make_engine(
        _database(site).url, query_timeout=1, libpq={"passfile": site.settings["pgpass_file"]}
    )
    with pytest.raises(admin_db.AdminDBError, match="query_timeout"), admin_db.audit_session(engine) as session:
        session.execute(text("SELECT pg_sleep(20)"))
    engine.dispose()


def test_the_server_knows_the_audit_by_its_name(site: Site) -> None:
    engine = _audit_engine(site)
    with admin_db.audit_session(engine) as session:
        assert session.execute(text("SHOW application_name")).scalar_one() == "backup_audit"
        assert session.execute(text("SHOW transaction_read_only")).scalar_one() == "on"
        assert session.execute(text("SHOW transaction_isolation")).scalar_one() == "repeatable read"
    engine.dispose()


def test_the_servers_of_the_tests_ask_for_a_password(postgres: Server) -> None:
    empty = postgres.folder / "no_passwords"
    empty.touch(mode=0o600)
    engine = admin_db.make_engine(postgres.shared_site.url, libpq={"passfile": str(empty)})
    with pytest.raises(OperationalError, match="no password supplied"):
        engine.connect()
    assert postgres.execute("SELECT current_user") == [(SUPERUSER,)]
    assert postgres.execute("SELECT host(inet_server_addr())") == [(HOST,)]


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
def test_names_survive_databases_of_other_encodings(postgres: Server, tmp_path: Path, encoding: str) -> None:
    database = postgres.create_database(encoding=encoding)
    admin_db.create_tables(database.engine)
    site = Site(database.engine, database.settings, tmp_path, database)
    c_id = site.container("é", data={"Info": {}})
    with site.session() as session:
        assert _existing(admin_db.get_container(session, c_id)).name == "é"
    database.drop()


def test_every_table_of_the_models_is_one_of_the_four() -> None:
    assert set(Base.metadata.tables) == set(TABLES)


def test_listing_does_not_write(any_site: Site) -> None:
    any_site.container("sales")
    statements: list[str] = []

    def note(_c: Any, _u: Any, statement: str, *_rest: Any) -> None:
        statements.append(statement)

    event.listen(any_site.engine, "before_cursor_execute", note)
    with any_site.session() as session:
        admin_db.list_containers(session)
        admin_db.list_states(session)
        admin_db.list_actions(session)
        admin_db.list_backups(session, 1)
    event.remove(any_site.engine, "before_cursor_execute", note)
    assert {statement.split()[0] for statement in statements} <= {"SELECT", "BEGIN"}


def _audit_engine(site: Site) -> Any:
    if site.database is None:
        return admin_db.make_engine(site.settings["database_url"], read_only=True)
    return admin_db.make_engine(
        site.database.url, read_only=True, libpq={"passfile": str(site.database.server.passfile)}
    )


def _existing(row: Any) -> Any:
    assert row is not None
    return row


def _database(site: Site) -> Any:
    assert site.database is not None
    return site.database
