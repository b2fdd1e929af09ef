"""Every SQLAlchemy routine: connecting, the four tables' rows, and the reads of the audit.

Nothing connects when this module is imported: `make_engine` prepares, `audit_session` and
`writing_session` connect. The audit itself reads only, in one read-only snapshot; it never calls the
routines that add, update or delete, and it never creates a table. It never selects `containers.data`
whole nor `backups.command`: both hold passwords.
"""

from __future__ import annotations

import codecs
import json
import math
import os
import re
import select as select_
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone, tzinfo
from functools import partial
from itertools import compress
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar, cast
from urllib.parse import quote

import psycopg2
import psycopg2.extensions
from sqlalchemy import (
    CTE,
    URL,
    BigInteger,
    BindParameter,
    ColumnElement,
    DateTime,
    Delete,
    Engine,
    FromClause,
    Integer,
    Select,
    Subquery,
    Text,
    and_,
    bindparam,
    case,
    create_engine,
    delete,
    event,
    extract,
    false,
    func,
    literal,
    make_url,
    null,
    or_,
    select,
    true,
    type_coerce,
)
from sqlalchemy import cast as sql_cast
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.engine import CursorResult
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError
from sqlalchemy.orm import Session
from sqlalchemy.orm.attributes import flag_modified

from models import ActionLog, BackupLog, Base, ContainerRow, ContainerState
from policy import (
    FUTURE_TOLERANCE,
    MICROSECOND,
    UTC,
    Container,
    Past,
    Rules,
    Run,
    Verdict,
    find_error,
    from_microseconds,
    known_policy,
    last_local,
    microseconds,
    utc_from_local,
)

APPLICATION_NAME = "backup_audit"

_Row = TypeVar("_Row")


# --- Connecting ----------------------------------------------------------------------------------------


def make_engine(
    url: str | URL,
    *,
    read_only: bool = False,
    connect_timeout: int = 10,
    query_timeout: int = 60,
    libpq: Mapping[str, Any] | None = None,
) -> Engine:
    """An engine for PostgreSQL (through psycopg2) or SQLite; it connects when it is first used.

    `connect_timeout` and `query_timeout` are seconds; the second is enforced by the server, statement by
    statement. `libpq` holds further connection parameters (`passfile`, `sslmode`, ...). With `read_only`
    every transaction is one repeatable-read snapshot in which the server refuses to write, and an SQLite
    file is neither created nor changed. Raises `sqlalchemy.exc.ArgumentError` for an unusable `url`.
    """
    url = make_url(url)
    if url.get_backend_name() == "sqlite":
        return _sqlite_engine(url, read_only, connect_timeout)
    if url.get_backend_name() != "postgresql":
        raise ArgumentError(f"{url.get_backend_name()} is neither postgresql nor sqlite")
    settings = {"statement_timeout": f"{query_timeout}s"}
    if read_only:
        settings["default_transaction_read_only"] = "on"
    arguments = {
        "connect_timeout": connect_timeout,
        "application_name": APPLICATION_NAME,
        "client_encoding": "utf8",
        "connection_factory": _patient_connections(connect_timeout, query_timeout),
        **(libpq or {}),
    }
    passfile = Path(arguments.get("passfile") or os.environ.get("PGPASSFILE") or os.path.expanduser("~/.pgpass"))
    if passfile.exists() and (not passfile.is_file() or passfile.stat().st_mode & 0o077):
        # libpq will not use it and says so on stderr, for every connection: it need not see it
        arguments["passfile"] = f"{passfile}.ignored"
    options = [str(arguments.get("options", "")), *(f"-c {name}={value}" for name, value in settings.items())]
    arguments["options"] = " ".join(options).strip()
    facts = {"where": f"{url.username or ''}@{url.host}:{url.port or 5432}/{url.database}", "passfile": str(passfile)}
    snapshot = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
    engine = create_engine(
        url.set(drivername="postgresql+psycopg2"),
        connect_args=arguments,
        execution_options={**facts, **(snapshot if read_only else {})},
        use_native_hstore=False,  # saves a query of pg_type on the first connection
        json_serializer=partial(json.dumps, ensure_ascii=False),  # an SQL_ASCII server refuses \\u escapes
        hide_parameters=True,
    )
    event.listen(engine, "connect", _choose_encoding)
    if read_only:
        event.listen(engine, "connect", _advise_planner)
    return engine


def _choose_encoding(connection: psycopg2.extensions.connection, _: object) -> None:
    if connection.info.parameter_status("server_encoding") == "SQL_ASCII":
        connection.set_client_encoding("SQL_ASCII")  # the server would check UTF-8, and fail at other bytes


def _advise_planner(connection: psycopg2.extensions.connection, _: object) -> None:
    """Tell PostgreSQL's planner what it cannot know of the audit's statements."""
    if connection.server_version < 110_000:
        return
    with connection.cursor() as cursor:
        cursor.execute("SET jit = off")  # compiling takes longer than any of them
        # unpacking documents is worth a parallel query, but what the planner sees is a small table
        cursor.execute("SET min_parallel_table_scan_size = 0; SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0")
    connection.commit()


def _lenient_utf8(name: str) -> codecs.CodecInfo | None:
    """A codec that reads UTF-8, and spells out the bytes that are none."""
    if name != "lenient_utf8":
        return None
    return codecs.CodecInfo(codecs.utf_8_encode, lambda raw, _="": codecs.utf_8_decode(raw, "backslashreplace", True))


# a database in SQL_ASCII holds any bytes; psycopg2 itself would insist on ASCII
codecs.register(_lenient_utf8)
psycopg2.extensions.encodings["SQLASCII"] = "lenient_utf8"


def _patient_connections(connect_timeout: int, query_timeout: int) -> type[psycopg2.extensions.connection]:
    """A class of connections that know how long to wait for the server, see `_wait`."""
    # the server itself ends a long statement; those seconds more are for one that cannot even do that
    patience = {"connect_timeout": connect_timeout, "query_timeout": query_timeout + 5, "given_up": False}
    return type("PatientConnection", (psycopg2.extensions.connection,), patience)


def _wait(connection: Any) -> None:
    """Wait for the server, but not for ever, and with an open ear for signals.

    libpq's own waiting would delay Ctrl-C and SIGTERM until the server has answered. A thread hears no
    signals: it looks several times a second whether its waiting has become pointless, see `reading_ahead`.
    """
    connecting = connection.status == psycopg2.extensions.STATUS_SETUP
    patience = getattr(connection, "connect_timeout" if connecting else "query_timeout", None)
    deadline = math.inf if patience is None else time.monotonic() + patience
    while (state := connection.poll()) != psycopg2.extensions.POLL_OK:
        wanted = select_.POLLIN if state == psycopg2.extensions.POLL_READ else select_.POLLOUT
        poll = select_.poll()
        poll.register(connection.fileno(), wanted)
        while not poll.poll(1000 * max(0.0, min(0.2, deadline - time.monotonic()))):
            if time.monotonic() >= deadline:
                raise psycopg2.OperationalError("timeout expired" if connecting else "the server fell silent")
            if getattr(connection, "given_up", False):
                raise psycopg2.OperationalError("given up")


psycopg2.extensions.set_wait_callback(_wait)


def _sqlite_engine(url: URL, read_only: bool, connect_timeout: int) -> Engine:
    mode = "ro" if read_only else "rwc"

    def connect() -> sqlite3.Connection:
        if url.database in (None, "", ":memory:"):
            return sqlite3.connect(":memory:", isolation_level=None)
        target = f"file:{quote(os.path.abspath(str(url.database)))}?mode={mode}"
        # isolation_level None: sqlite3 leaves BEGIN to us, so that several SELECTs share one snapshot
        connection = sqlite3.connect(
            target,
            timeout=connect_timeout,
            isolation_level=None,
            uri=True,
            check_same_thread=False,  # the audit reads the past in a thread of its own, one at a time
        )
        connection.text_factory = lambda raw: raw.decode("utf-8", "backslashreplace")
        return connection

    facts = {"where": str(url.database or ":memory:"), "passfile": ""}
    engine = create_engine("sqlite://", creator=connect, execution_options=facts, hide_parameters=True)
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
    return engine


def postgres_url(host: str, port: int, database: str, user: str) -> URL:
    """The URL of a PostgreSQL database; it names no password, libpq finds that in its password file."""
    return URL.create("postgresql+psycopg2", username=user, host=host, port=port, database=database)


@contextmanager
def audit_session(engine: Engine) -> Iterator[Session]:
    """A session on one snapshot, for an engine made with `read_only`; nothing is ever committed.

    Raises `AdminDBError` for whatever goes wrong between here and the server.
    """
    session = Session(engine)
    try:
        yield session
        session.rollback()
    except SQLAlchemyError as error:
        raise AdminDBError(*_explain(error, engine)) from error
    finally:
        with suppress(SQLAlchemyError):  # of a connection that is lost; what went wrong with it is known already
            session.close()
        engine.dispose()


@contextmanager
def reading_ahead(session: Session) -> Iterator[ThreadPoolExecutor]:
    """A thread for reads whose answers are needed later. If the block raises, nobody waits for the answers."""
    connection: Any = session.connection().connection.driver_connection
    with ThreadPoolExecutor(1) as pool:
        try:
            yield pool
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            if isinstance(connection, sqlite3.Connection):
                connection.interrupt()
            else:
                connection.given_up = True
            raise


@contextmanager
def writing_session(engine: Engine) -> Iterator[Session]:
    """A session that commits at the end of the block, and rolls back if the block raises."""
    with Session(engine) as session, session.begin():
        yield session


class AdminDBError(Exception):
    """The admin database could not be read: `problem` says why, `advice` what to do."""

    def __init__(self, problem: str, advice: str) -> None:
        super().__init__(f"{problem}: {advice}")
        self.problem = problem
        self.advice = advice


_BY_SQLSTATE = {
    "42P01": ("a table is missing", "point admindb_name at DB4Sci's admin database"),
    "42703": ("a column is missing", "check that this is the admin database of a DB4Sci version that is supported"),
    "42501": ("a privilege is missing", "grant it as deploy/read_only_role.sql does"),
    "57014": ("the query took longer than query_timeout", "look for locks in pg_stat_activity, or raise query_timeout"),
    "55P03": ("a table is locked", "look for locks in pg_stat_activity"),
    "57P01": ("the server ended the connection", "see the server's log, and run the audit again"),
    "25006": ("the server refused to write", "this is a mistake of this program: please report it"),
}
_BY_TEXT = (
    ("could not translate host name", "unknown host", "check container_host"),
    ("Connection refused", "the connection was refused", "check mydb_admin_port, and that the server runs"),
    ("the server fell silent", "no answer within query_timeout", "look at the server and the network between"),
    ("timeout expired", "no answer within connect_timeout", "check container_host, mydb_admin_port and the firewall"),
    ("Network is unreachable", "the network is unreachable", "check container_host and the network"),
    ("No route to host", "no route to the host", "check container_host and the network"),
    ("password authentication failed", "the password was refused", "{login_advice}, or admin_user"),
    ("not permitted to log in", "the role may not log in", "ALTER ROLE ... LOGIN, or change admin_user"),
    ("too many connections", "all connections are taken", "see pg_stat_activity, or raise the role's limit"),
    ("permission denied for database", "the role may not connect", "grant it as deploy/read_only_role.sql does"),
    ("invalid response to SSL", "something else than PostgreSQL answers", "check mydb_admin_port"),
    ("expected authentication request", "something else than PostgreSQL answers", "check mydb_admin_port"),
    ("server closed the connection unexpectedly", "the connection was lost", "see the server's log, and run it again"),
    ("invalid connection option", "libpq refuses a parameter", "correct libpq_options"),
    ("sslmode", "libpq refuses a parameter", "correct libpq_options"),
    ("root certificate", "libpq refuses a parameter", "correct libpq_options"),
    ("SSL", "no encrypted connection", "correct libpq_options, or the server's ssl"),
    ("no password supplied", "no password found", "{passfile_advice}"),
    ("no pg_hba.conf entry", "the server does not admit this host or user", "add both to its pg_hba.conf"),
    ("does not exist", "no such database or role", "check admindb_name and admin_user"),
    ("unable to open database file", "cannot open the file", "check the path in database_url"),
    ("no such table", "a table is missing", "point database_url at DB4Sci's admin database"),
    ("no such column", "a column is missing", "check that this is DB4Sci's admin database"),
    ("file is not a database", "this is no SQLite database", "check the path in database_url"),
    ("database is locked", "the database is locked", "run the audit again when the writer has finished"),
)


def _explain(error: SQLAlchemyError, engine: Engine) -> tuple[str, str]:
    """What went wrong, and what to do about it, each on one line and without a password."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    lines = [" ".join(line.split()) for line in str(cause).splitlines()] or [type(cause).__name__]
    # only one line: in the others a server quotes the statement, and with it values
    said = lines[0]
    problem, advice = _BY_SQLSTATE.get(getattr(cause, "pgcode", None) or "", ("", ""))
    if not problem:
        known = ((line, entry) for entry in _BY_TEXT for line in lines if entry[0] in line)
        log = "check database_url" if engine.dialect.name == "sqlite" else "see its log"
        said, (_, problem, advice) = next(known, (said, ("", "the database failed", log)))
    passfile = Path(engine.get_execution_options()["passfile"])
    login_advice = f"correct the user's line in {passfile}"
    if engine.url.password is not None:
        login_advice = "correct the password in database_url"
    advice = advice.format(login_advice=login_advice, passfile_advice=passfile_advice(passfile))
    return f"{describe(engine)}: {problem} ({said})", advice


def describe(engine: Engine) -> str:
    """The database as it may stand in a message: `user@host:port/name`, or the path of an SQLite file."""
    return str(engine.get_execution_options()["where"])


def passfile_advice(passfile: Path) -> str:
    """What keeps libpq from finding a password in its password file; the file itself is not read."""
    line = "host:port:database:user:password"
    try:
        status = passfile.stat()
    except OSError:
        return f"create {passfile} with a line {line} and mode 0600"
    if not passfile.is_file():
        return f"{passfile} is ignored because it is none, name a file"
    if status.st_mode & 0o077:
        return f"{passfile} is ignored because others may read it, chmod 600 {passfile}"
    if not os.access(passfile, os.R_OK):
        return f"make {passfile} readable for this user"
    return f"add a line {line} for exactly this host, port, database and user to {passfile}"


def create_tables(engine: Engine) -> None:
    """Create those of the four tables that do not exist. For demos, tests and templates, never the audit."""
    Base.metadata.create_all(engine)


# --- The four tables: create, read, update, delete -----------------------------------------------------


def _utc_now() -> datetime:
    return datetime.now(timezone.utc).replace(tzinfo=None)


def add_container(session: Session, name: str | None, data: Any, ts: datetime | None = None) -> ContainerRow:
    """Add a container; `ts` is its creation in naive UTC, now if left out."""
    row = ContainerRow(name=name, data=data, ts=ts or _utc_now())
    session.add(row)
    session.flush()
    return row


def get_container(session: Session, c_id: int) -> ContainerRow | None:
    """The container with this id, or None."""
    return session.get(ContainerRow, c_id)


def list_containers(session: Session, name: str | None = None) -> list[ContainerRow]:
    """All containers ever made, oldest first; with `name` only those of this name."""
    query = select(ContainerRow).order_by(ContainerRow.id)
    if name is not None:
        query = query.where(ContainerRow.name == name)
    return list(session.scalars(query))


def update_container(session: Session, c_id: int, *, name: str | None = None, data: Any = None) -> ContainerRow:
    """Change a container's name or its document, whichever is given. Raises `LookupError` if there is none."""
    row = _existing(session.get(ContainerRow, c_id), "container", c_id)
    if name is not None:
        row.name = name
    if data is not None:
        row.data = data
    session.flush()
    return row


def update_info(session: Session, c_id: int, **changes: Any) -> ContainerRow:
    """Set keys of a container's `Info`, for example `BACKUP_FREQ='Weekly'`; None removes a key.

    Raises `LookupError` if there is no such container, `TypeError` if its document or `Info` is no object.
    """
    row = _existing(session.get(ContainerRow, c_id), "container", c_id)
    document = {} if row.data is None else row.data
    info = document.get("Info", {}) if isinstance(document, dict) else None
    if not isinstance(info, dict):
        raise TypeError(f"the document of container {c_id} has no Info object")
    merged = {key: value for key, value in {**info, **changes}.items() if value is not None}
    row.data = {**document, "Info": merged}
    flag_modified(row, "data")
    session.flush()
    return row


def delete_container(session: Session, c_id: int) -> bool:
    """Delete a container's row; its state and its log stay. False if there was none."""
    return _delete(session, delete(ContainerRow).where(ContainerRow.id == c_id))


def add_state(
    session: Session,
    c_id: int | None,
    name: str | None,
    state: str | None = "running",
    changed_by: str | None = None,
    ts: datetime | None = None,
) -> ContainerState:
    """Make a container active; `ts` is naive UTC, now if left out."""
    row = ContainerState(
        c_id=c_id, name=name, state=state, last_state=None, observerd=state, changed_by=changed_by, ts=ts or _utc_now()
    )
    session.add(row)
    session.flush()
    return row


def get_state(session: Session, c_id: int) -> ContainerState | None:
    """The state of an active container, or None; where a `c_id` repeats, the row with the highest id."""
    query = select(ContainerState).where(ContainerState.c_id == c_id).order_by(ContainerState.id.desc())
    return session.scalars(query.limit(1)).first()


def list_states(session: Session, state: str | None = None) -> list[ContainerState]:
    """The states of all active containers; with `state` only of those in it."""
    query = select(ContainerState).order_by(ContainerState.id)
    if state is not None:
        query = query.where(ContainerState.state == state)
    return list(session.scalars(query))


def update_state(
    session: Session, c_id: int, state: str, changed_by: str, ts: datetime | None = None
) -> ContainerState:
    """Move a container into another state, remember the one before, and note it in the action log.

    Raises `LookupError` if no active container has this `c_id`.
    """
    row = _existing(get_state(session, c_id), "active container", c_id)
    row.last_state, row.state = row.state, state
    row.changed_by, row.ts = changed_by, ts or _utc_now()
    description = f"state changed from {row.last_state} to {state} by {changed_by}"
    log_action(session, c_id, row.name, "update_state", description, row.ts)
    return row


def delete_state(session: Session, c_id: int) -> bool:
    """Make a container inactive, as its deletion does. False if it was not active."""
    return _delete(session, delete(ContainerState).where(ContainerState.c_id == c_id))


def log_action(
    session: Session,
    c_id: int | None,
    name: str | None,
    action: str,
    description: str = "",
    ts: datetime | None = None,
) -> ActionLog:
    """Append to the action log; `ts` is naive UTC, now if left out."""
    row = ActionLog(c_id=c_id, name=name, action=action, description=description, ts=ts or _utc_now())
    session.add(row)
    session.flush()
    return row


def list_actions(session: Session, c_id: int | None = None, limit: int = 100) -> list[ActionLog]:
    """The last actions, newest first; with `c_id` only those on this container."""
    query = select(ActionLog).order_by(ActionLog.id.desc()).limit(limit)
    if c_id is not None:
        query = query.where(ActionLog.c_id == c_id)
    return list(session.scalars(query))


def log_backup(
    session: Session,
    c_id: int | None,
    name: str | None,
    state: str | None,
    backup_id: str | None,
    ts: datetime | None,
    *,
    backup_type: str | None = "Daily",
    url: str | None = "",
    command: str | None = "",
    err_msg: str | None = "",
) -> BackupLog:
    """Append the `start` or the `end` of a run to the backup log; `ts` is naive local time of the host."""
    row = BackupLog(
        c_id=c_id,
        name=name,
        state=state,
        backup_id=backup_id,
        backup_type=backup_type,
        url=url,
        command=command,
        err_msg=err_msg,
        ts=ts,
    )
    session.add(row)
    session.flush()
    return row


def list_backups(session: Session, c_id: int, limit: int = 20) -> list[BackupLog]:
    """The last rows of a container's backup log, newest first."""
    query = select(BackupLog).where(BackupLog.c_id == c_id).order_by(BackupLog.id.desc()).limit(limit)
    return list(session.scalars(query))


def _existing(row: _Row | None, what: str, c_id: int) -> _Row:
    if row is None:
        raise LookupError(f"no {what} has the id {c_id}")
    return row


def _delete(session: Session, statement: Delete) -> bool:
    return cast("CursorResult[Any]", session.execute(statement)).rowcount > 0


# --- The audit's reads ---------------------------------------------------------------------------------
#
# The log has no index but its primary key, and it grows for ever. Its ids grow with insertion time, so the
# last days are a range of ids at its end: `AuditReader.site` finds where it begins, `recent` reads it, and
# what it cannot prove (see `Verdict.settled`) `whole` looks up in the whole log, for all such containers at
# once.
#
# Two statements carry one row of facts beside every row of a list (`facts LEFT JOIN list`): that saves a
# round trip, and the facts arrive even where the list is empty.

RECENT_DAYS = 10
"""The least that the recent part of the log covers: a Weekly promise looks eight days back."""
CLOCK_CHANGE = timedelta(hours=2)
"""The most that clocks are set by: within so much, a later local time may be an earlier moment."""
DAILY_REACH = timedelta(days=1, hours=1) + CLOCK_CHANGE
"""How far back the recent part is read for containers whose backups are due within a day: what began more than
a day ago cannot prove that one is fine. The hour is to be safe.
"""
SMALL_LOG = 20_000
"""A log of so few ids is always read whole."""
BATCH = 500
"""So many containers' pasts are fetched at a time."""
PROBES = 64
PROBE_ROWS = 16

_SEPARATOR = "\x1e"  # between the messages of a run; inside of a message it becomes a blank
_BETWEEN_RUNS = 2 * _SEPARATOR  # no message is empty, so between those of one run there is just one
_UNENDED, _UNKNOWN = -1, 0  # in the place of a run's end, see `AuditReader.past`
_CONTAINERS = ContainerRow.__table__.c
_STATES = ContainerState.__table__.c
_LOG = BackupLog.__table__.c
_LOG_COLUMNS = (_LOG.c_id, _LOG.name, _LOG.state, _LOG.backup_id, _LOG.backup_type, _LOG.err_msg, _LOG.ts)

Key = tuple[int | None, str | None]
"""What ties a container to its log rows: `c_id`, and with `c_id` 0 (site-wide jobs) or without also the name."""


@dataclass(frozen=True)
class Site:
    """What the first read finds: the clock, where the recent part of the log begins, the containers."""

    now: datetime
    """The server's clock (this host's for SQLite), or the moment asked for; aware UTC."""
    floor: int | None
    """The recent part of the log are the ids above this one; None if that is the whole log."""
    past_floor: int | None
    """The same for the longer period that was asked for."""
    containers: list[Container]


class Log:
    """A part of the backup log: its runs, and what was ignored in it."""

    def __init__(
        self,
        rows: Iterable[Sequence[Any]],
        rules: Rules,
        *,
        malformed: int = 0,
        future: int = 0,
        newest: datetime | None = None,
        whole: bool = True,
    ) -> None:
        self._rules = rules
        self._errors = _Errors(rules.error_pattern)
        self._rows: dict[Key, list[Sequence[Any]]] = {}
        for row in rows:
            self._rows.setdefault((row[0], row[1]), []).append(row)
        self.malformed = malformed
        self.future = future
        self.newest = newest
        """The newest row that is not in the future, of any container."""
        self.whole = whole
        """Whether this is the whole log."""

    def of(self, container: Container) -> list[Run]:
        """The runs of one container, in any order."""
        return [self._to_run(row) for row in self._rows.get(key_of(container), ())]

    def _to_run(self, row: Sequence[Any]) -> Run:
        _, _, backup_id, kind, start, end, messages, *_ = row
        started = utc_from_local(end if start is None else start, self._rules.zone)
        ended = None if end is None else utc_from_local(end, self._rules.zone, not_before=started)
        return Run(backup_id, kind or "", started, ended, self._errors[messages], start is not None)


def key_of(container: Container) -> Key:
    """The key of a container's rows."""
    return container.c_id, None if container.c_id else container.name


class _Briefing:
    """Turns what `AuditReader.past` reads of a container into its `Past`."""

    def __init__(self, since: datetime, rules: Rules) -> None:
        self._since = microseconds(since)
        self._clock = None if rules.zone is UTC else _LocalClock(rules.zone)
        self._pattern = rules.error_pattern

    def past(self, moments: str, said: str, ids: str | None) -> Past:
        """The runs that started in the period. `moments` are start and end of each; `said` is what each said,
        or just once what all of them said.
        """
        numbers = list(map(int, moments.split()))
        starts, ends = numbers[::2], numbers[1::2]
        names = [] if ids is None else ids.split(_SEPARATOR)
        good = self._good(said, ends)
        if self._clock is not None:
            ends = [self._clock.utc(end, start) if end > 0 else end for start, end in zip(starts, ends, strict=True)]
            starts = [self._clock.utc(start) for start in starts]
        if all(good) and min(starts) >= self._since:
            return Past(starts, ends, names)
        of_period = [start >= self._since for start in starts]
        chosen = [fine and known for fine, known in zip(good, of_period, strict=True)]
        others = [known and not fine for fine, known in zip(good, of_period, strict=True)]
        ends = [max(end, _UNKNOWN) for end in ends]

        def pick(which: list[bool]) -> tuple[list[int], list[int], list[str]]:
            return list(compress(starts, which)), list(compress(ends, which)), list(compress(names, which))

        return Past(*pick(chosen), *pick(others))

    def _good(self, said: str, ends: list[int]) -> list[bool]:
        """Which of the runs succeeded."""
        ended = [end != _UNENDED for end in ends]
        if not self._reports_error(said):  # for almost all containers one look is enough
            return ended
        messages = said.split(_BETWEEN_RUNS)
        if len(messages) == 1:
            messages *= len(ends)
        return [end and not self._reports_error(message) for end, message in zip(ended, messages, strict=True)]

    def _reports_error(self, said: str) -> bool:
        return find_error(said.split(_SEPARATOR), self._pattern) is not None


class _LocalClock:
    """`utc_from_local` for great numbers of times, in microseconds: most days have one offset from UTC."""

    _DAY = timedelta(days=1) // MICROSECOND

    def __init__(self, zone: tzinfo) -> None:
        self._zone = zone
        self._offsets: dict[int, int | None] = {}

    def utc(self, local: int, not_before: int | None = None) -> int:
        """The moment that a local time means; `not_before` is the local start of the run that it ends."""
        day = local // self._DAY
        if day not in self._offsets:
            first, last = self._exact(day * self._DAY), self._exact((day + 1) * self._DAY)
            self._offsets[day] = first - day * self._DAY if last - first == self._DAY else None
        offset = self._offsets[day]
        return local + offset if offset is not None else self._exact(local, not_before)

    def _exact(self, local: int, not_before: int | None = None) -> int:
        start = None if not_before is None else utc_from_local(self._naive(not_before), self._zone)
        return microseconds(utc_from_local(self._naive(local), self._zone, start))

    @staticmethod
    def _naive(local: int) -> datetime:
        return from_microseconds(local).replace(tzinfo=None)


class AuditReader:
    """The audit's reads, on one session and about one moment; each method is one statement.

    Threads may call them: they take turns.
    """

    def __init__(self, session: Session, rules: Rules, at: datetime | None = None) -> None:
        """`at` (aware UTC) takes the place of the server's clock; rows after it are unseen."""
        self.at = at
        self._session = session
        self._rules = rules
        self._postgres = session.connection().dialect.name == "postgresql"
        self._turn = threading.Lock()

    def site(self, past: timedelta = timedelta(0)) -> Site:
        """Read the clock, the containers, and where in the log its recent part and a longer past begin."""
        facts = _facts_of_log(_clock(self._postgres, self.at), past + self._rules.max_runtime).subquery("facts")
        active = ContainerState.__table__.outerjoin(ContainerRow.__table__, _CONTAINERS.id == _STATES.c_id)
        states = _with_documents(active, _STATES.id, _STATES.c_id, self._postgres).subquery("states")
        query = select(facts, states.c.row_id, *_container_columns(states, self._postgres))
        query = query.select_from(facts.outerjoin(states, true())).order_by(states.c.row_id)
        rows = self._all(query)
        now, first, last, *floors = rows[0][:5]
        containers = {}
        for row in rows:
            if row[5] is not None:
                container = _to_container(row[6:])
                containers[container.c_id or (container.c_id, container.name)] = container
        floor, past_floor = (None if last is None else min(floor, last - SMALL_LOG) for floor in floors)
        return Site(
            now=now.replace(tzinfo=UTC),
            floor=floor if floor is not None and floor >= first else None,
            past_floor=past_floor if past_floor is not None and past_floor >= first else None,
            containers=list(containers.values()),
        )

    def deleted(self, site: Site, since: datetime) -> list[Container]:
        """Read those containers that are not active any more, and were logged since a moment."""
        gone = ContainerRow.__table__.outerjoin(ContainerState.__table__, _CONTAINERS.id == _STATES.c_id)
        rows = _with_documents(gone, _CONTAINERS.id, _CONTAINERS.id, self._postgres)
        logged = select(_LOG.c_id).where(self._in_past(site, since))
        rows = rows.where(_STATES.id.is_(None), _CONTAINERS.id.in_(logged))
        query = select(*_container_columns(rows.subquery("gone"), self._postgres))
        return [replace(_to_container(row), state="deleted") for row in self._all(query)]

    def recent(self, site: Site) -> Log:
        """Read the recent part of the log: its runs, and what is ignored in it.

        Of containers whose backups are due within a day, only the runs of the last day are read.
        """
        above: ColumnElement[bool] = true() if site.floor is None else _LOG.id > site.floor
        wanted: ColumnElement[bool] = true()
        if site.floor is not None:
            patient = [container.c_id for container in site.containers if _is_patient(container, self._rules)]
            since = last_local(site.now, self._rules.zone) - DAILY_REACH
            wanted = or_(_LOG.ts >= since, _LOG.c_id == 0, _LOG.c_id.in_(_inline(patient)))
        facts = select(*self._ignored(site.now)).where(above).subquery("facts")
        runs = _runs(_LOG, and_(above, wanted, self._seen(_LOG, site.now))).subquery("runs")
        query = select(runs, facts).select_from(facts.outerjoin(runs, true()))
        rows = self._all(query)
        malformed, future, newest = rows[0][-3:]
        return Log(
            rows if rows[0].backup_id is not None else (),
            self._rules,
            malformed=malformed,
            future=future,
            newest=newest and utc_from_local(newest, self._rules.zone),
            whole=site.floor is None,
        )

    def whole(self, now: datetime, verdicts: Iterable[Verdict]) -> Log:
        """Look into the whole log for what can change these verdicts.

        Of a container whose last success is in sight, only later runs can: those with a row from then on
        (or from ten days before, to be safe) are read, each with all its rows. Of the others every run is
        read. Of all runs that must have the same outcome (same messages, ended or not, young enough to be
        running or not) only the newest comes back: no other can decide.
        """
        known, unknown, since = [], [], now
        for verdict in verdicts:
            success = verdict.last_success
            if success is not None and success.start_logged and verdict.container.c_id:
                known.append(verdict.container.c_id)
                since = min(since, success.started)
            else:
                unknown.append(verdict.container)
        # OFFSET 0 keeps the planner from trying the dearer conditions on every row of the log
        mine = or_(_LOG.c_id.in_(_inline(known)), _of(_LOG, unknown))
        log = select(*_LOG_COLUMNS).where(mine).offset(0).subquery("log").c
        later = func.max(log.ts) >= last_local(since, self._rules.zone) - timedelta(days=RECENT_DAYS)
        grouped = _runs(log, self._seen(log, now)).having(or_(log.c_id.not_in(_inline(known)), later))
        runs = grouped.subquery("runs")

        started = func.coalesce(runs.c.started, runs.c.ended)
        young = started > last_local(now - self._rules.max_runtime, self._rules.zone)
        alike = [runs.c.c_id, runs.c.job, runs.c.messages, runs.c.ended.is_(None), young]
        rank = func.row_number().over(partition_by=alike, order_by=[started.desc(), runs.c.backup_id.desc()])
        ranked = select(runs, rank.label("rank")).subquery("ranked")
        newest = select(*(ranked.c[column.name] for column in runs.c)).where(ranked.c.rank == 1)
        return Log(self._all(newest), self._rules)

    def runs(self, now: datetime, containers: Iterable[Container]) -> Log:
        """Read every run of some containers."""
        return Log(self._all(_runs(_LOG, and_(_of(_LOG, containers), self._seen(_LOG, now)))), self._rules)

    def past(
        self, site: Site, since: datetime, with_ids: bool = False, thread: ThreadPoolExecutor | None = None
    ) -> Iterator[tuple[Key, Callable[[], Past]]]:
        """Read in brief all runs that started since a moment, with `with_ids` also their backup_ids. Gives back
        for each container a function that unpacks its past.

        Packed on the server: each container arrives as one row, see `_Briefing.past`. `site` must have been
        read with a past as long as this. With a thread the rows are fetched ahead, from now on and a few at a
        time; without one all are fetched at once, which is quicker (PostgreSQL plans no parallel query for a
        cursor) where there is nothing to do meanwhile.
        """
        query = self._packed_runs(site, since, with_ids)
        batches = iter([self._all(query)]) if thread is None else _fetched_ahead(self._batches(query), thread)
        briefing = _Briefing(since, self._rules)
        return (((c_id, job), partial(briefing.past, *brief)) for batch in batches for c_id, job, *brief in batch)

    def _packed_runs(self, site: Site, since: datetime, with_ids: bool) -> Select[Any]:
        runs = _runs(_LOG, self._in_past(site, since)).subquery("runs")
        started = func.coalesce(runs.c.started, runs.c.ended)
        ended = case(
            (runs.c.ended.is_(None), _UNENDED),
            (runs.c.started.is_(None), _UNKNOWN),  # an end without a start tells nothing of the duration
            else_=_microseconds(runs.c.ended, self._postgres),
        )
        moments = sql_cast(_microseconds(started, self._postgres), Text) + " " + sql_cast(ended, Text)
        said = func.coalesce(runs.c.messages, "")
        each_said = func.aggregate_strings(said, _BETWEEN_RUNS)
        ids = func.aggregate_strings(func.replace(runs.c.backup_id, _SEPARATOR, " "), _SEPARATOR)
        return (
            select(
                runs.c.c_id,
                runs.c.job,
                func.aggregate_strings(moments, " "),
                case((func.min(said) == func.max(said), func.min(said)), else_=each_said),
                ids if with_ids else null(),
            )
            .where(started >= last_local(since, self._rules.zone) - CLOCK_CHANGE)
            .group_by(runs.c.c_id, runs.c.job)
            .order_by(runs.c.c_id, runs.c.job)
        )

    def _in_past(self, site: Site, since: datetime) -> ColumnElement[bool]:
        above: ColumnElement[bool] = true() if site.past_floor is None else _LOG.id > site.past_floor
        # a run that began before the period and ended in it must be seen to have done so
        recent = _LOG.ts >= last_local(since - self._rules.max_runtime, self._rules.zone)
        return and_(above, recent, self._seen(_LOG, site.now))

    def _all(self, query: Select[Any]) -> Sequence[Any]:
        with self._turn:
            return self._session.connection().execute(query).all()

    def _batches(self, query: Select[Any]) -> Iterator[Sequence[Any]]:
        """The rows, from a server-side cursor. Whoever stops half-way keeps no other thread from its turn."""
        with self._turn:
            batches = self._session.connection().execute(query, execution_options={"yield_per": BATCH}).partitions()
        while True:
            with self._turn:
                batch = next(batches, None)
            if batch is None:
                return
            yield batch

    def _bound(self, now: datetime) -> datetime:
        """The last local time that is seen."""
        return last_local(self.at or now + FUTURE_TOLERANCE, self._rules.zone)

    def _seen(self, log: Any, now: datetime) -> ColumnElement[bool]:
        return _is_sound(log, self._postgres, self._bound(now))

    def _ignored(self, now: datetime) -> Iterator[ColumnElement[Any]]:
        """How many rows are malformed and future, and the newest of the others."""
        sound, bound = _is_sound(_LOG, self._postgres), self._bound(now)
        later = literal(0) if self.at else case((and_(sound, _LOG.ts > bound), 1), else_=0)
        unseen = and_(_LOG.ts > bound, literal(self.at is not None))
        yield func.coalesce(func.sum(case((or_(sound, unseen), 0), else_=1)), 0).label("malformed")
        yield func.coalesce(func.sum(later), 0).label("future")
        yield func.max(case((self._seen(_LOG, now), _LOG.ts))).label("newest")


def _fetched_ahead(batches: Iterable[_Row], thread: ThreadPoolExecutor) -> Iterator[_Row]:
    """The batches, which the thread fetches from now on, however long it takes until they are asked for."""
    fetched: SimpleQueue[_Row | None] = SimpleQueue()

    def fetch() -> None:
        try:
            for batch in batches:
                fetched.put(batch)
        finally:
            fetched.put(None)

    def take() -> Iterator[_Row]:
        while (batch := fetched.get()) is not None:
            yield batch
        fetching.result()  # raises what went wrong

    fetching = thread.submit(fetch)
    return take()


class _Errors(dict[str | None, str | None]):
    """From a run's messages to the one that reports an error, or None; remembers, for messages repeat."""

    def __init__(self, pattern: re.Pattern[str]) -> None:
        super().__init__({None: None})
        self._pattern = pattern

    def __missing__(self, messages: str) -> str | None:
        error = find_error(messages.split(_SEPARATOR), self._pattern)
        self[messages] = error
        return error


_WANTED_KEYS: tuple[tuple[tuple[str, ...], ...], ...] = (
    (
        ("Info", "BACKUP_FREQ"),
        ("Info", "backup_freq"),
        ("Info", "labels", "BACKUP_FREQ"),
        ("Info", "labels", "backup_freq"),
        ("Config", "Labels", "BACKUP_FREQ"),
    ),
    (("Info", "dbengine"),),
    (("Info", "OWNER"), ("Info", "labels", "owner")),
    (("Info", "CONTACT"), ("Info", "labels", "contact")),
)
"""All that is ever read of `containers.data`: policy, engine, owner and contact, each the first that is there."""


def _to_container(row: Sequence[Any]) -> Container:
    c_id, name, container_name, state, created, has_metadata, policy, engine, owner, contact = row
    return Container(
        c_id=c_id,
        name=name or container_name or f"c_id {c_id}",
        policy=policy,
        engine=engine,
        state=state,
        owner=owner,
        contact=contact,
        created=created and created.replace(tzinfo=UTC),
        has_metadata=bool(has_metadata),
    )


def _with_documents(
    table: FromClause, row_id: ColumnElement[Any], c_id: ColumnElement[Any], postgres: bool
) -> Select[Any]:
    """Containers with their documents, which only the server may look into (see `_first_text`)."""
    if postgres:
        # a wide document is stored compressed, and each `data #> path` would unpack it anew: the empty
        # path unpacks it once, and OFFSET 0 keeps the planner from merging that into the outer query
        document: ColumnElement[Any] = type_coerce(_CONTAINERS.data, JSONB())[()]
    else:
        document = type_coerce(case((func.json_valid(_CONTAINERS.data) == 1, _CONTAINERS.data)), Text())
    return (
        select(
            row_id.label("row_id"),
            c_id.label("c_id"),
            _STATES.name,
            _STATES.state,
            _CONTAINERS.id.label("container_id"),
            _CONTAINERS.name.label("container_name"),
            case((_is_moment(_CONTAINERS.ts, postgres), _CONTAINERS.ts)).label("created"),
            document.label("document"),
        )
        .select_from(table)
        .offset(0)
    )


def _container_columns(rows: Subquery, postgres: bool) -> list[ColumnElement[Any]]:
    return [
        rows.c.c_id,
        rows.c.name,
        rows.c.container_name,
        rows.c.state,
        rows.c.created,
        rows.c.container_id.is_not(None),
        *(_first_text(rows.c.document, paths, postgres) for paths in _WANTED_KEYS),
    ]


def _first_text(document: ColumnElement[Any], paths: Iterable[tuple[str, ...]], postgres: bool) -> ColumnElement[Any]:
    """The first of the keys that is a non-empty string; what is not a string never leaves the server."""
    found: list[ColumnElement[Any]] = []
    for path in paths:
        if postgres:
            is_text = func.jsonb_typeof(document[path]) == "string"
            text = document[path].astext
        else:
            json_path = "$." + ".".join(path)
            is_text = func.json_type(document, json_path) == "text"
            text = func.json_extract(document, json_path)
        found.append(case((is_text, func.nullif(text, ""))))
    return found[0] if len(found) == 1 else func.coalesce(*found)


def _clock(postgres: bool, at: datetime | None) -> ColumnElement[datetime]:
    if at is not None:
        return literal(at.astimezone(UTC).replace(tzinfo=None), DateTime())
    if postgres:
        return func.timezone("UTC", func.clock_timestamp(), type_=DateTime())
    return type_coerce(func.strftime("%Y-%m-%d %H:%M:%f000", "now"), DateTime())


def _facts_of_log(clock: ColumnElement[datetime], past: timedelta) -> Select[Any]:
    """One row: the clock, the log's first and last id, and two floors: of the recent part and of the longer past."""
    ends = select(func.min(_LOG.id).label("first"), func.max(_LOG.id).label("last")).cte("ends")
    steps = select(literal(0).label("n")).cte("steps", recursive=True)
    steps = steps.union_all(select(steps.c.n + 1).where(steps.c.n < PROBES))
    recent = earlier = _floor(ends, steps, clock, timedelta(days=RECENT_DAYS), "recent")
    if past > timedelta(days=RECENT_DAYS):
        earlier = _floor(ends, steps, clock, past, "past")
    return select(
        clock.label("now"),
        ends.c.first,
        ends.c.last,
        recent.label("recent_floor"),
        earlier.label("past_floor"),
    )


def _floor(ends: CTE, steps: CTE, clock: ColumnElement[datetime], reach: timedelta, name: str) -> ColumnElement[int]:
    """The id at and below which all rows are older than `reach`.

    The ids are probed at 65 points from end to end, then once more at 65 points between the lowest recent
    point and its neighbour below. Below the floor no probe has found a recent row: old rows that were
    restored late, at the end, do not hide recent ones before them. Gaps in the ids do not matter.
    """
    since = extract("epoch", clock) - (reach + timedelta(days=1)).total_seconds()  # a day for the zone

    def bottom(start: ColumnElement[int], width: ColumnElement[int], table: FromClause, level: str) -> CTE:
        grid = select((start + steps.c.n * width).label("id"), width.label("width")).join_from(table, steps, true())
        points = grid.cte(f"{name}_{level}_points")
        rows = select(_LOG.ts).where(_LOG.id >= points.c.id).order_by(_LOG.id).limit(PROBE_ROWS).correlate(points)
        newest = select(func.max(rows.subquery().c.ts)).scalar_subquery()
        recent_ids = case((extract("epoch", newest) >= since, points.c.id))
        lowest = func.coalesce(func.min(recent_ids), func.max(points.c.id)) - func.max(points.c.width)
        width = (func.max(points.c.width) // PROBES + 1).label("width")
        return select(lowest.label("id"), width).cte(f"{name}_{level}")

    spacing = (sql_cast(ends.c.last, BigInteger) - ends.c.first) // PROBES + 1
    coarse = bottom(ends.c.first, spacing, ends, "coarse")
    fine = bottom(coarse.c.id, coarse.c.width, coarse, "fine")
    return select(fine.c.id - 1).scalar_subquery()


def _is_patient(container: Container, rules: Rules) -> bool:
    """Whether more than the last day of a container's log may be needed to call it fine."""
    policy = known_policy(container.policy, rules)
    if policy is None or policy in ("Never", "Weekly"):
        return True
    return rules.policies.get(policy, rules.window) > timedelta(days=1)


def _inline(ids: Iterable[int | None]) -> BindParameter[Any]:
    """A list of ids written into the statement: thousands of parameters would cost more than the query."""
    return bindparam(None, list(ids), type_=Integer(), expanding=True, literal_execute=True)


def _of(log: Any, containers: Iterable[Container]) -> ColumnElement[bool]:
    """Whether a log row belongs to one of these containers."""
    keys = [key_of(container) for container in containers]
    ids = _inline(c_id for c_id, _ in keys if c_id)
    return or_(log.c_id.in_(ids), and_(log.c_id == 0, log.name.in_([job for c_id, job in keys if c_id == 0])))


def _is_moment(
    column: ColumnElement[Any], postgres: bool, latest: datetime = datetime(9000, 1, 1)
) -> ColumnElement[bool]:
    """Whether a time stamp is one that Python can hold (not infinite, and in SQLite not mere text) up to `latest`."""
    if postgres:
        return column.between(datetime(1900, 1, 1), latest)
    text = type_coerce(column, Text)
    fraction = func.substr(text, 20)
    # "+0 days" makes SQLite count the days anew: alone it would let the 30th of February pass
    is_date = func.strftime("%Y-%m-%d %H:%M:%S", func.substr(text, 1, 19), "+0 days") == func.substr(text, 1, 19)
    is_fraction = or_(fraction == "", and_(fraction.op("GLOB")(".[0-9]*"), fraction.op("NOT GLOB")("?*[^0-9]*")))
    in_time = and_(func.substr(text, 1, 4) >= "1900", column <= latest)
    return func.coalesce(and_(is_date, is_fraction, func.length(text) <= 26, in_time), false())


def _microseconds(column: ColumnElement[Any], postgres: bool) -> ColumnElement[int]:
    """A time stamp as whole microseconds since the epoch, without regard to its zone."""
    if postgres:
        return sql_cast(func.date_part("epoch", column) * 1_000_000, BigInteger)
    fraction = func.substr(func.substr(column, 21) + "000000", 1, 6)
    return extract("epoch", func.substr(column, 1, 19)) * 1_000_000 + sql_cast(fraction, Integer)


def _is_sound(log: Any, postgres: bool, *latest: datetime) -> ColumnElement[bool]:
    """Whether a log row is none of the malformed ones, and no later than `latest`; else false or NULL.

    As plain as can be: of these conditions PostgreSQL's planner knows how many rows they leave.
    """
    return and_(_is_moment(log.ts, postgres, *latest), log.backup_id != "", log.state.in_(("start", "end")))


def _runs(log: Any, rows: ColumnElement[bool]) -> Select[Any]:
    """The log's rows, grouped into runs: earliest start, latest end, and all that was said."""
    job = case((log.c_id == 0, log.name))
    said = func.replace(case((log.err_msg != "", log.err_msg)), _SEPARATOR, " ")
    return (
        select(
            log.c_id,
            job.label("job"),
            log.backup_id,
            func.max(log.backup_type).label("type"),
            func.min(case((log.state == "start", log.ts))).label("started"),
            func.max(case((log.state == "end", log.ts))).label("ended"),
            func.aggregate_strings(said, _SEPARATOR).label("messages"),
        )
        .where(rows, log.c_id.is_not(None))
        .group_by(log.c_id, job, log.backup_id)
    )


# --- What --check-config asks ---------------------------------------------------------------------------


def read_nothing(session: Session) -> Iterator[str]:
    """Ask for no rows of all that the audit reads, to learn whether it may; yields each table that it may."""
    for columns in (
        (_CONTAINERS.id, _CONTAINERS.name, _CONTAINERS.data, _CONTAINERS.ts),
        (_STATES.id, _STATES.c_id, _STATES.name, _STATES.state),
        (_LOG.id, *_LOG_COLUMNS),
    ):
        session.execute(select(*columns).where(false())).all()
        yield columns[0].table.name


def read_clock(session: Session) -> datetime:
    """The server's clock (this host's for SQLite), aware UTC."""
    postgres = session.connection().dialect.name == "postgresql"
    now: datetime = session.execute(select(_clock(postgres, None))).scalar_one()
    return now.replace(tzinfo=UTC)


def read_newest(session: Session) -> datetime | None:
    """The time stamp of the row that was logged last, in the log's naive local time."""
    postgres = session.connection().dialect.name == "postgresql"
    stamp = case((_is_moment(_LOG.ts, postgres), _LOG.ts))
    return session.execute(select(stamp).order_by(_LOG.id.desc()).limit(1)).scalar()
