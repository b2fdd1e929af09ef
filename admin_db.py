"""Every SQLAlchemy routine: engines, sessions, the rows of the four tables, and the reads of the audit.

Nothing connects when this module is imported, and no settings of the process change. `make_engine` prepares,
`reading_session` and `writing_session` connect. The audit reads only: in one read-only snapshot, never
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

from models import ActionLog, BackupLog, Base, ContainerRow, ContainerState

_Row = TypeVar("_Row", bound=Base)

EARLIEST, LATEST = datetime(1900, 1, 1), datetime(9000, 1, 1)
"""The years that Python and its time zones can handle; PostgreSQL keeps time stamps beyond them."""
LONGEST_MESSAGE = 65_536
"""Of a longer message the first and the last half as many characters are read."""
ROWS_AT_ONCE = 500
"""How many log rows are fetched at a time: memory must not follow the length of messages."""

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
def reading_session(engine: sa.Engine) -> Iterator[Session]:
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
    """Append the `start` or `end` row of a run to the backup log; `ts` is naive UTC."""
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


class PlainRow(NamedTuple):
    """A row of the backup log, without `command`."""

    id: int
    c_id: int | None
    name: str | None
    state: str | None
    backup_id: str | None
    type: str | None
    url: str | None
    ts: datetime | None  # naive, as it stands there
    message: str | None  # err_msg; of a very long one the beginning
    message_end: str | None  # the end of a very long one, else None


_FREQ_KEYS = ("Info.BACKUP_FREQ", "Info.backup_freq", "Info.labels.BACKUP_FREQ", "Info.labels.backup_freq")
_KEYS = (
    (*_FREQ_KEYS, "Config.Labels.BACKUP_FREQ"),
    ("Info.dbengine",),
    ("Info.OWNER", "Info.labels.owner"),
    ("Info.CONTACT", "Info.labels.contact"),
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
    """The containers that `container_state` does not know, oldest first; with `since`, those logged since (naive)."""
    tables = ContainerRow.__table__.outerjoin(ContainerState.__table__, _CONTAINERS.id == _STATES.c_id)
    where = [_STATES.id.is_(None)]
    if since is not None:
        where.append(_CONTAINERS.id.in_(sa.select(_LOG.c_id).where(_LOG.ts >= since)))
    return _read_containers(session, tables, _CONTAINERS.id, _CONTAINERS.id, *where)


def read_log(session: Session, since: datetime | None = None, c_ids: Iterable[int] | None = None) -> Iterator[PlainRow]:
    """The log rows stamped since a naive time (None: ever) and the undated ones, of all containers or of some.

    They come streamed, in the order of `c_id`; to sort them by time as well takes a server three times as long.
    """
    is_long, half = sa.func.length(_LOG.err_msg) > LONGEST_MESSAGE, LONGEST_MESSAGE // 2
    query = sa.select(
        *_row_columns(session),
        sa.case((is_long, sa.func.substr(_LOG.err_msg, 1, half)), else_=_LOG.err_msg),
        sa.case((is_long, sa.func.substr(_LOG.err_msg, sa.func.length(_LOG.err_msg) - half + 1))),
    ).order_by(_LOG.c_id)
    if since is not None:
        query = query.where(sa.or_(_LOG.ts >= since, _LOG.ts.is_(None)))
    if c_ids is not None:  # written into the statement: thousands of parameters would cost more than the query
        ids = sa.bindparam(None, list(c_ids), type_=sa.Integer(), expanding=True, literal_execute=True)
        query = query.where(_LOG.c_id.in_(ids))
    result = session.connection().execute(query, execution_options={"yield_per": ROWS_AT_ONCE})
    for rows in result.partitions():
        yield from map(PlainRow._make, rows)


def read_first_stamp(session: Session, unless_before: datetime | None = None) -> datetime | None:
    """The stamp of the log's first dated row (naive); None for a log without one.

    With `unless_before` also None if there is a row before that moment, which is found out much faster.
    """
    first = sa.select(_readable(sa.func.min(_LOG.ts), _is_postgres(session))).where(_LOG.ts >= EARLIEST)
    if unless_before is None:
        return session.scalar(first)
    # EXISTS (SELECT *) would need the privilege on every column
    older = sa.select(_LOG.id).where(_LOG.ts >= EARLIEST, _LOG.ts < unless_before).exists()
    return session.scalar(sa.select(sa.case((older, sa.null()), else_=first.scalar_subquery())))


def read_newest_rows(
    session: Session, limit: int, characters: int = 0, until: datetime | None = None
) -> list[PlainRow]:
    """The newest dated log rows up to a naive time, newest first, each with so many characters of its message."""
    message = sa.func.substr(_LOG.err_msg, 1, characters)
    query = sa.select(*_row_columns(session), message, sa.null()).where(_LOG.ts >= EARLIEST)
    if until is not None:
        query = query.where(_LOG.ts <= until)
    return list(map(PlainRow._make, session.execute(query.order_by(_LOG.ts.desc()).limit(limit))))


def _row_columns(session: Session) -> tuple[sa.ColumnElement[Any], ...]:
    """The columns of a `PlainRow` without the message."""
    ts = _readable(_LOG.ts, _is_postgres(session))
    return _LOG.id, _LOG.c_id, _LOG.name, _LOG.state, _LOG.backup_id, _LOG.backup_type, _LOG.url, ts


def check_privileges(session: Session) -> Iterator[str]:
    """Read no rows of all that the audit reads, to learn whether it may; yields each table that it may read."""
    for columns in (
        (_CONTAINERS.id, _CONTAINERS.name, _CONTAINERS.data, _CONTAINERS.ts),
        (_STATES.id, _STATES.c_id, _STATES.name, _STATES.state),
        tuple(column for column in _LOG if column.name != "command"),
    ):
        session.execute(sa.select(*columns).where(sa.false())).all()
        yield columns[0].table.name


def may_write(session: Session) -> bool:
    """Whether the role could write to what the audit reads, if it tried. For PostgreSQL."""
    tables = (_CONTAINERS.id.table, _STATES.id.table, _LOG.id.table)
    writes = "INSERT, UPDATE, DELETE, TRUNCATE"
    return bool(session.scalar(sa.select(sa.or_(*(sa.func.has_table_privilege(one.name, writes) for one in tables)))))


def _is_postgres(session: Session) -> bool:
    return session.get_bind().dialect.name == "postgresql"


def _read_containers(
    session: Session, tables: sa.FromClause, row_id: sa.ColumnElement[Any], c_id: sa.ColumnElement[Any], *where: Any
) -> list[ContainerFacts]:
    postgres = _is_postgres(session)
    if postgres:
        # a wide document is stored compressed, and each `data #> path` would unpack it anew: the empty path
        # unpacks it once, and OFFSET 0 keeps the planner from merging that into the outer query
        document: sa.ColumnElement[Any] = sa.type_coerce(_CONTAINERS.data, JSONB())[()]
    else:
        document = sa.type_coerce(sa.case((sa.func.json_valid(_CONTAINERS.data) == 1, _CONTAINERS.data)), sa.Text())
    columns = [
        *(row_id.label("row_id"), c_id.label("c_id"), _STATES.name.label("name")),
        *(_CONTAINERS.name.label("container_name"), _STATES.state.label("state")),
        *(_readable(_CONTAINERS.ts, postgres).label("created"), _CONTAINERS.id.label("container_id")),
        document.label("document"),
    ]
    rows = sa.select(*columns).select_from(tables).where(*where).offset(0).subquery()
    plain = [rows.c[name] for name in ("c_id", "name", "container_name", "state", "created", "container_id")]
    texts = [_first_text(rows.c.document, keys, postgres) for keys in _KEYS]
    query = sa.select(*plain, *texts).order_by(rows.c.row_id)
    return [ContainerFacts(*row) for row in session.execute(query)]


def _first_text(document: sa.ColumnElement[Any], keys: Sequence[str], postgres: bool) -> sa.ColumnElement[Any]:
    """The first of the keys that is a non-empty string; what is not a string never leaves the server."""
    found: list[sa.ColumnElement[Any]] = []
    for key in keys:
        if postgres:
            value = document[tuple(key.split("."))]
            is_text, text = sa.func.jsonb_typeof(value) == "string", value.astext
        else:
            is_text = sa.func.json_type(document, f"$.{key}") == "text"
            text = sa.func.json_extract(document, f"$.{key}")
        found.append(sa.case((is_text, sa.func.nullif(text, ""))))
    return sa.func.coalesce(*found, sa.null())


def _readable(column: sa.ColumnElement[Any], postgres: bool) -> sa.ColumnElement[Any]:
    """A time stamp that Python can hold: PostgreSQL knows others, too. Before `EARLIEST` it is NULL."""
    if postgres:
        return sa.case((column > LATEST, LATEST), (column >= EARLIEST, column))
    return sa.type_coerce(column, _LooseTime())


class _LooseTime(sa.TypeDecorator[datetime]):
    """A time stamp as SQLite may hold it, which keeps any text: None if it is not a time."""

    impl = sa.Text
    cache_ok = True

    def process_result_value(self, value: Any, dialect: sa.Dialect) -> datetime | None:
        """The time stamp, no later than `LATEST`; None before `EARLIEST`."""
        whole, _, fraction = str(value).partition(".")
        try:
            moment = datetime.fromisoformat(whole).replace(microsecond=int(fraction[:6].ljust(6, "0")))
        except ValueError:
            return None
        return min(moment, LATEST) if moment.tzinfo is None and moment >= EARLIEST else None
