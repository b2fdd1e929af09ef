"""The admin database: connecting to it, waiting for it, and what can go wrong with it, in plain words."""

from __future__ import annotations

import re
import select
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from typing import Any

import psycopg2.extensions
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.orm import Session

import admin_db
from audit.errors import AuditError
from audit.policy import UTC
from audit.settings import Connection

AFTER_QUERY_TIMEOUT = 5
"""How many seconds longer than query_timeout we wait: for a server that does not end the statement itself."""


@contextmanager
def reading(connection: Connection) -> Iterator[Session]:
    """A read-only session, one snapshot. Raises `AuditError` for whatever goes wrong with the database."""
    timeouts = {"connect_timeout": connection.connect_timeout, "query_timeout": connection.query_timeout}
    try:
        with ExitStack() as stack:
            engine = admin_db.make_engine(connection.url, read_only=True, libpq=connection.libpq, **timeouts)
            stack.callback(engine.dispose)
            stack.enter_context(interruptible_waits(**timeouts))
            yield stack.enter_context(admin_db.reading_session(engine))
    except SQLAlchemyError as error:
        raise from_database(error, connection) from error


def compare_clocks(session: Session) -> tuple[datetime, float]:
    """The time by the server's clock, aware UTC, and the seconds that this host's is ahead of it.

    Connects first: a slow login is no difference of clocks.
    """
    session.connection()
    asked = datetime.now(UTC)
    now = admin_db.read_clock(session)
    here = asked + (datetime.now(UTC) - asked) / 2
    return now, (here - now).total_seconds()


@contextmanager
def interruptible_waits(connect_timeout: int, query_timeout: int) -> Iterator[None]:
    """In this block psycopg2 waits for the server at most this long (seconds), and a signal ends a wait.

    libpq itself would wait for ever for a server that falls silent, and hold back Ctrl-C until it answers.
    """

    def wait(connection: Any) -> None:
        connecting = connection.status == psycopg2.extensions.STATUS_SETUP
        deadline = time.monotonic() + (connect_timeout if connecting else query_timeout + AFTER_QUERY_TIMEOUT)
        state = connection.poll()
        while state != psycopg2.extensions.POLL_OK:
            waiting = select.poll()
            reads = state == psycopg2.extensions.POLL_READ
            waiting.register(connection.fileno(), select.POLLIN if reads else select.POLLOUT)
            if not waiting.poll(1000 * max(0.0, deadline - time.monotonic())):
                raise psycopg2.OperationalError("timeout expired" if connecting else "the server fell silent")
            state = connection.poll()

    psycopg2.extensions.set_wait_callback(wait)
    try:
        yield
    finally:
        psycopg2.extensions.set_wait_callback(None)


# --- What can go wrong -----------------------------------------------------------------------------------


def _why_no_password(connection: Connection) -> str:
    """What keeps libpq from finding a password in its password file, and what to do; the file itself is not read."""
    path = connection.password_file
    if path is None:
        return "add it to database_url, or use a password file"
    try:
        mode = path.stat().st_mode
    except PermissionError:
        return f"let this user search the folder {path.parent}, or set pgpass_file"
    except OSError:
        return f"create {path} with a line host:port:database:user:password and mode 0600"
    if not path.is_file():
        return f"{path} is not a file: set pgpass_file to one"
    if mode & 0o077:
        return f"libpq ignores {path} because others may read it: chmod 600 {path}"
    try:
        path.open("rb").close()
    except OSError:
        return f"let this user read {path}"
    form = "host:port:database:user:password"
    return f"compare {connection.display_name} with the lines of {path} ({form}), each to the letter"


_RUN_ROLE_SQL = "run deploy/read_only_role.sql again"
_SEE_ACTIVITY = "see pg_stat_activity, or raise max_connections or the role's limit"
_RUN_AGAIN = "see the server's log, and run the audit again"
_NOT_PGBOUNCER = "connect to PostgreSQL itself, not to PgBouncer"
_PROBLEMS: tuple[tuple[str, str, str | Callable[[Connection], str]], ...] = (
    # what the server says of the audit's statements, by SQLSTATE
    ("^42P01", "a table is missing",
     "check that {name} is DB4Sci's admin database, and that the role may use its schema"),
    ("^42703", "a column is missing", "check that {name} belongs to a DB4Sci version that is supported"),
    ("^42501", "a privilege is missing", _RUN_ROLE_SQL),
    ("^55P03", "a table is locked", "look for locks in pg_stat_activity"),
    ("conflict with recovery", "the standby ended the query", "raise its max_standby_streaming_delay"),
    ("due to user request", "somebody cancelled the query", "run the audit again"),
    ("^57014", "the query took longer than query_timeout", "look for locks in pg_stat_activity or raise query_timeout"),
    ("No space left on device", "the server's disk is full", "make room on it"),
    # what it, or a PgBouncer before it, says of itself
    ("terminating connection", "the server ended the connection", _RUN_AGAIN),
    ("system is (starting up|in recovery|not)", "the server is starting", "run the audit again in a minute"),
    ("system is shutting down", "the server is shutting down", "start it again, and run the audit again"),
    ("too many (clients|connections)|remaining connection slots", "all connections are taken", _SEE_ACTIVITY),
    ("no more connections allowed|query_wait_timeout", "all connections of PgBouncer are taken", "see its SHOW POOLS"),
    ("unsupported startup parameter", "PgBouncer refuses query_timeout", _NOT_PGBOUNCER),
    ("server_login_retry|client_login_timeout", "PgBouncer cannot reach PostgreSQL", "see PgBouncer's log"),
    # why it refuses the login: of a refusal with TLS and one without, the one that has got further
    ("(password|SASL) authentication failed", "the password was refused",
     "check {user}, and the password in {password}"),
    ("no such user", "PgBouncer does not know the role", "add the role to PgBouncer's auth_file"),
    ("(Peer|Ident) authentication failed", "the server admits this role to another user",
     "run the audit as that user, or let pg_hba.conf ask for a password"),
    ("no password supplied", "no password found", _why_no_password),
    ("not permitted to log in", "the role may not log in", "ALTER ROLE ... LOGIN, or change {user}"),
    ("permission denied for database", "the role may not connect", _RUN_ROLE_SQL),
    ("(database|role) \".*\" does not exist|no such database", "no such database or role", "check {dbname} and {user}"),
    ("no pg_hba.conf entry", "the server does not admit this host or user", "add a line for both to its pg_hba.conf"),
    ("pg_hba.conf rejects", "the server rejects this host or user", "change the reject line of its pg_hba.conf"),
    # what libpq makes of its parameters
    ("definition of service \"(.*)\" not found", "the service is not defined",
     "define [{0}] in ~/.pg_service.conf, or in the file that PGSERVICEFILE names"),
    ("service file \"(.*)\" not found", "the service is not defined", "create {0}, or correct PGSERVICEFILE"),
    ("(?:certificate|private key) file \"(.*?)\"", "libpq cannot use a file for TLS",
     "check {0}, which sslrootcert, sslcert or sslkey in {options} names"),
    ("certificate verify failed", "the server's certificate is not trusted", "correct sslrootcert in {options}"),
    ("does not match host name", "the server's certificate is another host's", "correct {host}, or the certificate"),
    ("invalid port number", "no such port", "correct {port}"),
    ("invalid connection option|invalid .* value|sslmode|hosts and ports|port numbers",
     "libpq refuses a parameter", "correct {options}"),
    # the way to the server
    ("could not translate host name", "unknown host", "check {host}"),
    ("on socket .*(No such file|Connection refused)", "no server at this socket", "check {address}, and that it runs"),
    ("on socket .*Permission denied", "this user may not use the socket", "let it search the socket's folder"),
    ("Connection refused", "connection refused", "check {port}, and that the server runs"),
    ("the server fell silent", "no answer within query_timeout", "check the server and the network"),
    ("timeout expired", "no answer within connect_timeout", "check {address} and the firewall"),
    ("Network is unreachable", "network unreachable", "check {host} and the network"),
    ("No route to host", "no route to the host", "check {host} and the network"),
    ("invalid response to SSL|unencrypted data after SSL|expected authentication|wrong version number",
     "the answer is not PostgreSQL's", "check {port}"),
    ("does not support SSL|(SSL|TLS) (connection )?required", "the server and {options} disagree about TLS",
     "correct sslmode in {options}, or the server's ssl"),
    ("closed the connection|closed unexpectedly|EOF|eof while|reset by peer|Broken pipe|not open|crashed",
     "the connection was lost", _RUN_AGAIN),
    ("SSL", "no encrypted connection", "correct {options}, or the server's ssl"),
    # SQLite
    ("unable to open database file|readonly database", "cannot open the file",
     "check the path in database_url, and that this user may read it; in WAL mode, also write to its folder"),
    ("no such table", "a table is missing", "check that database_url names DB4Sci's admin database"),
    ("no such column", "a column is missing", "check that database_url names DB4Sci's admin database"),
    ("disk I/O error", "cannot read the file", "check the path in database_url, and the disk"),
    ("not a database|malformed", "not an SQLite database", "check the path in database_url"),
    ("database is locked", "the database is locked", "run the audit again when the writer has finished"),
)  # fmt: skip
"""What is found in an error's text, which begins with its SQLSTATE if it has one; the problem; what to do.

The first counts. The most exact come first: on a server with TLS any failure can add a line about SSL.
"""
_UNKNOWN = ("", "the database failed", "see its log")
_FROM_URL = dict.fromkeys(("host", "port", "address", "dbname", "user"), "database_url") | {
    "options": "database_url and libpq_options"
}
_FROM_SETTINGS = {
    "host": "container_host",
    "port": "mydb_admin_port",
    "address": "container_host, mydb_admin_port",
    "dbname": "admindb_name",
    "user": "admin_user",
    "options": "libpq_options",
}


def from_database(error: SQLAlchemyError, connection: Connection) -> AuditError:
    """An error of the database, as problem and advice."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    state = getattr(cause, "pgcode", None) or ""
    lines = [" ".join(line.split()) for line in str(cause).splitlines()] or [type(cause).__name__]
    if state:  # in the other lines the server quotes the statement
        lines = [f"{state} {lines[0]}"]
    tried = ((re.search(entry[0], line), entry) for entry in _PROBLEMS for line in lines)
    match, (_, problem, advice) = next((one for one in tried if one[0]), (None, _UNKNOWN))
    words = _FROM_URL if connection.from_url else _FROM_SETTINGS
    words = words | {
        "name": connection.display_name.rpartition("/")[2],
        "password": str(connection.password_file or "database_url"),
    }
    message = (match.string if match else lines[0]).removeprefix(f"{state} ")
    said = f"{connection.display_name}: {problem.format(**words)} ({message})"
    if not isinstance(advice, str):
        return AuditError(said, advice(connection))
    return AuditError(said, advice.format(*(match.groups() if match else ()), **words))
