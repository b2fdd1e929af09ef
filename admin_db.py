"""Every SQLAlchemy routine: engines, sessions, the rows of the four tables, and the reads of the audit.

Nothing connects when this module is imported, and nothing outside of it changes. `make_engine` prepares,
`audit_session` and `writing_session` connect. The audit reads only: in one read-only snapshot, never
`containers.data` whole and never `backups.command`, because both hold passwords. This module imports `models`
alone: both are a template for a project of your own.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from functools import partial
from typing import Any, NamedTuple, TypeVar, cast
from urllib.parse import quote

import psycopg2.extensions
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Session

from models import EARLIEST, LATEST, ActionLog, BackupLog, Base, ContainerRow, ContainerState, LooseTime

_Row = TypeVar("_Row", bound=Base)

# --- Engines and sessions ------------------------------------------------------------------------------


def make_engine(
    url: str | sa.URL,
    *,
    read_only: bool = False,
    connect_timeout: int = 10,
    query_timeout: int = 60,
    libpq: Mapping[str, Any] | None = None,
) -> sa.Engine:
    """An engine for PostgreSQL (through psycopg2) or SQLite; it connects when it is first used.

    `connect_timeout` and `query_timeout` are seconds; the server enforces the second for each statement. `libpq`
    holds further connection parameters (`passfile`, `sslmode`, ...). With `read_only` every transaction is one
    repeatable-read snapshot in which the server refuses to write, text that is not valid in the server's encoding
    is spelled out instead of refused, and an SQLite file is neither created nor changed. Raises `ArgumentError`.
    """
    url = sa.make_url(url)
    if url.get_backend_name() == "sqlite":
        return _sqlite_engine(url, read_only, connect_timeout)
    if url.get_backend_name() != "postgresql":
        raise sa.exc.ArgumentError(f"{url.get_backend_name()} is neither postgresql nor sqlite")
    arguments = {"connect_timeout": connect_timeout, "client_encoding": "utf8", **(libpq or {})}
    options = f"{arguments.get('options', '')} -c statement_timeout={query_timeout}s"
    arguments["options"] = options + (" -c default_transaction_read_only=on" if read_only else "")
    engine = sa.create_engine(
        url.set(drivername="postgresql+psycopg2"),
        connect_args=arguments,
        execution_options={"isolation_level": "REPEATABLE READ", "postgresql_readonly": True} if read_only else {},
        use_native_hstore=False,  # saves a query of pg_type on the first connection
        json_serializer=partial(json.dumps, ensure_ascii=False),  # a server in SQL_ASCII refuses \\u escapes
        hide_parameters=True,
    )
    if read_only:
        sa.event.listen(engine, "connect", _accept_any_bytes)
    return engine


def _accept_any_bytes(connection: psycopg2.extensions.connection, _: object) -> None:
    """Take text from the server as it is stored: a byte without an equivalent in UTF-8 must not end the read."""
    encoding = connection.info.parameter_status("server_encoding") or "UTF8"
    codec = "utf-8" if encoding == "SQL_ASCII" else psycopg2.extensions.encodings.get(encoding)
    if encoding != "UTF8" and codec:  # the server converts what Python has no codec for
        connection.set_client_encoding("SQL_ASCII")  # no conversion
        psycopg2.extensions.register_type(psycopg2.extensions.BYTES, connection)
        connection.cursor_factory = type("Cursor", (_DecodingCursor,), {"codec": codec})


class _DecodingCursor(psycopg2.extensions.cursor):
    """A cursor that decodes bytes itself, and spells out those that mean nothing in the server's encoding."""

    codec = "utf-8"

    def _decoded(self, row: Sequence[Any]) -> tuple[Any, ...]:
        return tuple(v.decode(self.codec, "backslashreplace") if isinstance(v, bytes) else v for v in row)

    def fetchone(self) -> tuple[Any, ...] | None:
        return next(map(self._decoded, super().fetchmany(1)), None)

    def fetchmany(self, size: int | None = None) -> list[tuple[Any, ...]]:
        return [self._decoded(row) for row in super().fetchmany(self.arraysize if size is None else size)]

    def fetchall(self) -> list[tuple[Any, ...]]:
        return [self._decoded(row) for row in super().fetchall()]


def _sqlite_engine(url: sa.URL, read_only: bool, timeout: int) -> sa.Engine:
    path = "" if url.database in (None, "", ":memory:") else quote(os.path.abspath(str(url.database)))
    target = f"file:{path}?mode={'ro' if read_only else 'rwc'}" if path else ":memory:"

    def connect() -> sqlite3.Connection:
        # isolation_level None: sqlite3 leaves BEGIN to us, so that several SELECTs share one snapshot
        connection = sqlite3.connect(target, timeout=timeout, isolation_level=None, uri=True)
        connection.text_factory = lambda raw: raw.decode("utf-8", "backslashreplace")
        return connection

    engine = sa.create_engine("sqlite://", creator=connect, hide_parameters=True)
    sa.event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
    return engine


@contextmanager
def audit_session(engine: sa.Engine) -> Iterator[Session]:
    """A session that commits nothing: one snapshot, if the engine was made with `read_only`."""
    session = Session(engine)
    try:
        yield session
    finally:
        with suppress(sa.exc.SQLAlchemyError):  # of a lost connection; what the block raised says more
            session.close()


@contextmanager
def writing_session(engine: sa.Engine) -> Iterator[Session]:
    """A session that commits at the end of the block, and rolls back if the block raises."""
    with Session(engine) as session, session.begin():
        yield session


def create_tables(engine: sa.Engine) -> None:
    """Create those of the four tables that do not exist. For demos, tests and templates, never the audit."""
    Base.metadata.create_all(engine)


# --- The four tables: create, read, update, delete -----------------------------------------------------


def get(session: Session, table: type[_Row], row_id: int) -> _Row:
    """The row of a table with this id. Raises `LookupError` if it does not exist."""
    for row in find(session, table, id=row_id):
        return row
    raise LookupError(f"{table.__tablename__} has no row with the id {row_id}")


def find(session: Session, table: type[_Row], limit: int | None = None, **columns: Any) -> list[_Row]:
    """The rows of a table with these values, newest first."""
    return list(session.scalars(sa.select(table).filter_by(**columns).order_by(sa.desc("id")).limit(limit)))


def update(session: Session, table: type[_Row], row_id: int, **columns: Any) -> _Row:
    """Set columns of a row. Raises `LookupError` if it does not exist, `TypeError` for an unknown column."""
    row = get(session, table, row_id)
    for name, value in columns.items():
        if name not in table.__table__.columns:
            raise TypeError(f"{table.__tablename__} has no column {name}")
        setattr(row, name, value)
    session.flush()
    return row


def delete(session: Session, table: type[_Row], **columns: Any) -> int:
    """Delete the rows of a table with these values; returns how many there were. Raises `TypeError` without a value."""
    if not columns:
        raise TypeError("name at least one column: without any, every row would be deleted")
    return cast("sa.CursorResult[Any]", session.execute(sa.delete(table).filter_by(**columns))).rowcount


def add_container(session: Session, name: str | None, data: Any, ts: datetime | None = None) -> ContainerRow:
    """Add a container; `ts` is its creation in naive UTC, now if left out."""
    return _add(session, ContainerRow(name=name, data=data, ts=ts or _utc_now()))


def update_info(session: Session, c_id: int, **changes: Any) -> ContainerRow:
    """Set keys of a container's `Info`, for example `BACKUP_FREQ='Weekly'`; None removes a key.

    Raises `LookupError` if the container does not exist, `TypeError` if its document or `Info` is not an object.
    """
    row = get(session, ContainerRow, c_id)
    document = {} if row.data is None else row.data
    info = document.get("Info", {}) if isinstance(document, dict) else None
    if not isinstance(info, dict):
        raise TypeError(f"the document of container {c_id} has no Info object")
    row.data = {**document, "Info": {key: value for key, value in (info | changes).items() if value is not None}}
    session.flush()
    return row


def add_state(
    session: Session, c_id: int | None, name: str | None, state: str | None = "running", **columns: Any
) -> ContainerState:
    """Make a container active; `ts` is naive UTC, now if left out."""
    values = {"observerd": state, "ts": _utc_now(), **columns}
    return _add(session, ContainerState(c_id=c_id, name=name, state=state, **values))


def update_state(
    session: Session, c_id: int, state: str, changed_by: str, ts: datetime | None = None
) -> ContainerState:
    """Move a container into another state, keep the one before in `last_state`, and note it in the action log.

    `ts` is naive UTC, now if left out. Where a `c_id` repeats, the row with the highest id counts. Raises
    `LookupError` if there is none.
    """
    for row in find(session, ContainerState, limit=1, c_id=c_id):
        row.last_state, row.state, row.changed_by, row.ts = row.state, state, changed_by, ts or _utc_now()
        change = f"state changed from {row.last_state} to {state}"
        log_action(session, c_id, row.name, "update_state", description=change, ts=row.ts)
        return row
    raise LookupError(f"no active container has the id {c_id}")


def log_action(session: Session, c_id: int | None, name: str | None, action: str, **columns: Any) -> ActionLog:
    """Append to the action log; `ts` is naive UTC, now if left out."""
    return _add(session, ActionLog(c_id=c_id, name=name, action=action, **{"ts": _utc_now(), **columns}))


def log_backup(
    session: Session, c_id: int | None, name: str | None, state: str | None, backup_id: Any, ts: Any, **columns: Any
) -> BackupLog:
    """Append the `start` or `end` row of a run to the backup log; `ts` is naive local time of the DB4Sci host."""
    values = {"backup_type": "Daily", "url": "", "command": "", "err_msg": "", **columns}
    return _add(session, BackupLog(c_id=c_id, name=name, state=state, backup_id=backup_id, ts=ts, **values))


def _add(session: Session, row: _Row) -> _Row:
    session.add(row)
    session.flush()  # fills in the id
    return row


def _utc_now() -> datetime:
    return datetime.now(timezone.utc).replace(tzinfo=None)


# --- The audit's reads ---------------------------------------------------------------------------------
_CONTAINERS = ContainerRow.__table__.c
_STATES = ContainerState.__table__.c
_LOG = BackupLog.__table__.c


class ContainerFacts(NamedTuple):
    """What the audit knows of a container; texts are None where they are missing, empty or not text."""

    c_id: int | None
    name: str | None
    container_name: str | None
    state: str | None
    created: datetime | None  # containers.ts, naive UTC
    container_id: int | None  # None if `containers` has no row of this container
    backup_freq: str | None
    engine: str | None
    owner: str | None
    contact: str | None
    last_logged: datetime | None  # of a deleted container: its newest log row, naive local time of the DB4Sci host


SEPARATOR = "\x1e"  # between the messages of a run


class LoggedRun(NamedTuple):
    """The log rows of one run, or a stray row of none. Times are naive local times of the DB4Sci host."""

    c_id: int | None
    name: str | None  # where `c_id` is 0, else None
    backup_id: str | None
    is_early: bool  # whether the rows are stamped up to `early`; a run can have a part before it and one after it
    type: str | None
    started: datetime | None  # the earliest `start` row
    ended: datetime | None  # the latest `end` row
    messages: str | None  # err_msg of all rows, with SEPARATOR between them
    stray_id: int | None  # id of a row without time stamp, `backup_id` or proper `state`, or stamped after `latest`
    stamp: datetime | None  # the latest time stamp


_KEYS = (
    "Info.BACKUP_FREQ Info.backup_freq Info.labels.BACKUP_FREQ Info.labels.backup_freq Config.Labels.BACKUP_FREQ",
    "Info.dbengine",
    "Info.OWNER Info.labels.owner",
    "Info.CONTACT Info.labels.contact",
)
"""All that is read of `containers.data`: backup_freq, engine, owner and contact, each the first that is there."""


def read_clock(session: Session) -> datetime:
    """The server's clock (this host's for SQLite), aware UTC."""
    if _is_postgres(session):
        now: datetime = session.scalars(sa.select(sa.func.clock_timestamp())).one()
        return now.astimezone(timezone.utc)
    session.connection()  # a file that cannot be opened is found out here as well
    return datetime.now(timezone.utc)


def read_active_containers(session: Session) -> list[ContainerFacts]:
    """The containers that `container_state` knows, in the order of its ids; a `c_id` may repeat."""
    tables = ContainerState.__table__.outerjoin(ContainerRow.__table__, _CONTAINERS.id == _STATES.c_id)
    return _read_containers(session, tables, _STATES.id, _STATES.c_id)


def read_deleted_containers(session: Session, since: datetime | None = None) -> list[ContainerFacts]:
    """The containers that `container_state` does not know; with `since`, those logged since a naive local time."""
    log = sa.select(_LOG.c_id, sa.func.max(_LOG.ts).label("ts")).group_by(_LOG.c_id).subquery().c
    tables = ContainerRow.__table__.outerjoin(ContainerState.__table__, _CONTAINERS.id == _STATES.c_id)
    tables = tables.outerjoin(log.ts.table, _CONTAINERS.id == log.c_id)
    logged = sa.true() if since is None else log.ts >= since
    return _read_containers(
        session, tables, _CONTAINERS.id, _CONTAINERS.id, _STATES.id.is_(None), logged, last_logged=log.ts
    )


def read_runs(
    session: Session,
    since: datetime | None,
    early: datetime,
    latest: datetime,
    *,
    unseen: bool = False,
    c_ids: Iterable[int] = (),
) -> Iterator[LoggedRun]:
    """The runs logged since a time (None: ever), of all containers or of some, by `c_id`, and the undated rows.

    All times are naive local times. A run with rows up to `early` and rows after it comes in two parts. Rows after
    `latest` are strays, or left out if they are `unseen`.
    """
    bounds = [] if since is None else [_LOG.ts >= since]
    bounds += [_LOG.ts <= latest] if unseen else []
    where = [sa.or_(sa.and_(*bounds), _LOG.ts.is_(None))] if bounds else []
    if c_ids:  # written into the statement: thousands of parameters would cost more than the query
        ids = sa.bindparam(None, list(c_ids), type_=sa.Integer(), expanding=True, literal_execute=True)
        where.append(_LOG.c_id.in_(ids))
    return _runs(session, early, latest, *where)


def read_newest_stamp(session: Session) -> datetime | None:
    """The time stamp of the newest log row (naive local time), however high its id is; None for an empty log."""
    newest = _readable(sa.func.max(_LOG.ts), _is_postgres(session))
    return cast("datetime | None", session.scalar(sa.select(newest).where(_LOG.ts < LATEST)))


def check_privileges(session: Session) -> Iterator[str]:
    """Read no rows of all that the audit reads, to learn whether it may; yields each table that it may read."""
    for columns in (
        (_CONTAINERS.id, _CONTAINERS.name, _CONTAINERS.data, _CONTAINERS.ts),
        (_STATES.id, _STATES.c_id, _STATES.name, _STATES.state),
        (_LOG.id, _LOG.c_id, _LOG.name, _LOG.state, _LOG.backup_id, _LOG.backup_type, _LOG.err_msg, _LOG.ts),
    ):
        session.execute(sa.select(*columns).where(sa.false())).all()
        yield columns[0].table.name


def _is_postgres(session: Session) -> bool:
    return session.get_bind().dialect.name == "postgresql"


def _read_containers(
    session: Session,
    tables: sa.FromClause,
    row_id: sa.ColumnElement[Any],
    c_id: sa.ColumnElement[Any],
    *where: Any,
    last_logged: sa.ColumnElement[Any] | None = None,
) -> list[ContainerFacts]:
    postgres = _is_postgres(session)
    if postgres:
        # a wide document is stored compressed, and each `data #> path` would unpack it anew: the empty path
        # unpacks it once, and OFFSET 0 keeps the planner from merging that into the outer query
        document: sa.ColumnElement[Any] = sa.type_coerce(_CONTAINERS.data, JSONB())[()]
    else:
        document = sa.type_coerce(sa.case((sa.func.json_valid(_CONTAINERS.data) == 1, _CONTAINERS.data)), sa.Text())
    columns = [
        *(row_id.label("row_id"), c_id.label("c_id"), _text(_STATES.name).label("name")),
        *(_text(_CONTAINERS.name).label("container_name"), _text(_STATES.state).label("state")),
        *(_readable(_CONTAINERS.ts, postgres).label("created"), _CONTAINERS.id.label("container_id")),
        document.label("document"),
        (sa.null() if last_logged is None else _readable(last_logged, postgres)).label("last_logged"),
    ]
    rows = sa.select(*columns).select_from(tables).where(*where).offset(0).subquery()
    plain = [rows.c[name] for name in ("c_id", "name", "container_name", "state", "created", "container_id")]
    texts = [_first_text(rows.c.document, keys, postgres) for keys in _KEYS]
    query = sa.select(*plain, *texts, rows.c.last_logged).order_by(rows.c.row_id)
    return [ContainerFacts(*row) for row in session.execute(query)]


def _first_text(document: sa.ColumnElement[Any], keys: str, postgres: bool) -> sa.ColumnElement[Any]:
    """The first of the keys that is a non-empty string; what is not a string never leaves the server."""
    found: list[sa.ColumnElement[Any]] = []
    for key in keys.split():
        if postgres:
            value = document[tuple(key.split("."))]
            is_text, text = sa.func.jsonb_typeof(value) == "string", value.astext
        else:
            is_text = sa.func.json_type(document, f"$.{key}") == "text"
            text = sa.func.json_extract(document, f"$.{key}")
        found.append(sa.case((is_text, sa.func.nullif(text, ""))))
    return sa.func.coalesce(*found, sa.null())


def _runs(session: Session, early: datetime, latest: datetime, *where: sa.ColumnElement[bool]) -> Iterator[LoggedRun]:
    postgres = _is_postgres(session)
    plain = sa.func.lower(sa.func.trim(_LOG.state, " \t\r\n"))
    state = sa.case((_LOG.state.in_(("start", "end")), _LOG.state), else_=plain)  # few rows need the slow functions
    counts = _LOG.ts.between(EARLIEST, latest)
    sound = sa.and_(_is_time(_LOG.ts, postgres), counts, _LOG.backup_id != "", state.in_(("start", "end")))
    key = [
        _LOG.c_id.label("c_id"),
        sa.case((_LOG.c_id == 0, _text(_LOG.name))).label("name"),
        _text(_LOG.backup_id).label("backup_id"),
        (_LOG.ts <= early).label("is_early"),
        sa.case((sound, sa.null()), else_=_LOG.id).label("stray_id"),
    ]
    query = (
        sa.select(
            *key[:4],
            sa.func.max(_text(_LOG.backup_type)),
            _readable(sa.func.min(sa.case((state == "start", _LOG.ts))), postgres),
            _readable(sa.func.max(sa.case((state == "end", _LOG.ts))), postgres),
            sa.func.aggregate_strings(sa.func.nullif(_LOG.err_msg, ""), SEPARATOR),
            key[4],
            _readable(sa.func.max(_LOG.ts), postgres),
        )
        .where(*where)
        .group_by(*key)
        .order_by(_LOG.c_id)
    )
    return map(LoggedRun._make, session.connection().execute(query, execution_options={"yield_per": 5_000}))


def _text(column: sa.ColumnElement[Any]) -> sa.ColumnElement[str]:
    """A column as text; SQLite keeps any value in it."""
    return sa.cast(column, sa.Text)


def _is_time(column: sa.ColumnElement[Any], postgres: bool) -> sa.ColumnElement[bool]:
    """Whether a time stamp is one; SQLite keeps any text."""
    if postgres:
        return column.is_not(None)
    # "+0 days" makes SQLite count the days anew: alone it would let the 30th of February pass
    text = sa.type_coerce(column, sa.Text)
    second, fraction = sa.func.substr(text, 1, 19), sa.func.substr(text, 20)
    is_fraction = sa.and_(fraction.op("GLOB")(".*"), sa.not_(fraction.op("GLOB")(".*[^0-9]*")))
    is_second = sa.func.strftime("%Y-%m-%d %H:%M:%S", second, "+0 days") == second
    return sa.and_(is_second, sa.or_(fraction == "", is_fraction))


def _readable(column: sa.ColumnElement[Any], postgres: bool) -> sa.ColumnElement[Any]:
    """A time stamp that Python can hold: PostgreSQL knows others, too."""
    if postgres:
        return sa.case((column > LATEST, LATEST), (column < EARLIEST, EARLIEST), else_=column)
    return sa.type_coerce(column, LooseTime())
