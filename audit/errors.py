"""What keeps an audit from being done, in plain words: the problem, its exact cause, the next step (SPEC section 6)."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy.exc import DBAPIError, SQLAlchemyError


class AuditError(Exception):
    """The audit cannot be completed: `problem` says why, `advice` what to do about it."""

    def __init__(self, problem: str, advice: str) -> None:
        super().__init__(f"{problem}: {advice}")
        self.problem = problem
        self.advice = advice


_WRONG_DATABASE = "check that {database} is DB4Sci's admin database, and that the role may use its schema"
_RUN_ROLE_SQL = "run deploy/read_only_role.sql again"
_BY_SQLSTATE = {
    "42P01": ("a table is missing", _WRONG_DATABASE),
    "42703": ("a column is missing", "check that {database} belongs to a DB4Sci version that is supported"),
    "42501": ("a privilege is missing", _RUN_ROLE_SQL),
    "57014": ("the query took longer than query_timeout", "look for locks in pg_stat_activity, or raise query_timeout"),
    "55P03": ("a table is locked", "look for locks in pg_stat_activity"),
    "57P01": ("the server ended the connection", "see the server's log, and run the audit again"),
    "25006": ("the server refused to write", "this is a bug: please report it"),
}
_BY_TEXT = (
    ("could not translate host name", "unknown host", "check container_host"),
    ("Connection refused", "connection refused", "check mydb_admin_port, and that the server runs"),
    ("the server fell silent", "no answer within query_timeout", "check the server and the network"),
    ("timeout expired", "no answer within connect_timeout", "check container_host, mydb_admin_port and the firewall"),
    ("Network is unreachable", "network unreachable", "check container_host and the network"),
    ("No route to host", "no route to the host", "check container_host and the network"),
    ("password authentication failed", "the password was refused", "check admin_user, and the password in {password}"),
    ("not permitted to log in", "the role may not log in", "ALTER ROLE ... LOGIN, or change admin_user"),
    ("too many connections", "all connections are taken", "see pg_stat_activity, or raise the role's limit"),
    ("permission denied for database", "the role may not connect", _RUN_ROLE_SQL),
    ("invalid response to SSL", "the answer is not PostgreSQL's", "check mydb_admin_port"),
    ("expected authentication request", "the answer is not PostgreSQL's", "check mydb_admin_port"),
    ("server closed the connection unexpectedly", "the connection was lost", "see the server's log, and run it again"),
    ("invalid connection option", "libpq refuses a parameter", "correct libpq_options"),
    ("sslmode", "libpq refuses a parameter", "correct libpq_options"),
    ("root certificate", "libpq refuses a parameter", "correct libpq_options"),
    ("SSL", "no encrypted connection", "correct libpq_options, or the server's ssl"),
    ("no password supplied", "no password found", "{no_password}"),
    ("no pg_hba.conf entry", "the server does not admit this host or user", "add both to its pg_hba.conf"),
    ("does not exist", "no such database or role", "check admindb_name and admin_user"),
    ("unable to open database file", "cannot open the file", "check the path in database_url"),
    ("no such table", "a table is missing", "check that database_url names DB4Sci's admin database"),
    ("no such column", "a column is missing", "check that database_url names DB4Sci's admin database"),
    ("disk I/O error", "cannot read the file", "check the path in database_url, and the disk"),
    ("file is not a database", "not an SQLite database", "check the path in database_url"),
    ("database is locked", "the database is locked", "run the audit again when the writer has finished"),
)


def from_database(error: SQLAlchemyError, database: str, password_file: Path | None) -> AuditError:
    """What went wrong between here and the database. `password_file` is None where libpq reads none."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    lines = [" ".join(line.split()) for line in str(cause).splitlines()] or [type(cause).__name__]
    message = lines[0]  # in the other lines a server quotes the statement, and with it values
    problem, advice = _BY_SQLSTATE.get(getattr(cause, "pgcode", None) or "", ("", ""))
    if not problem:
        known = ((line, entry) for entry in _BY_TEXT for line in lines if entry[0] in line)
        message, (_, problem, advice) = next(known, (message, ("", "the database failed", "see its log")))
    advice = advice.format(
        database=database.rpartition("/")[2],
        password=password_file or "database_url",
        no_password=_why_no_password(password_file, database),
    )
    return AuditError(f"{database}: {problem} ({message})", advice)


def _why_no_password(password_file: Path | None, database: str) -> str:
    """What keeps libpq from finding a password in its password file; the file itself is not read."""
    if password_file is None:
        return "add it to database_url, or use a password file"
    state = state_of(password_file)
    if state:
        return state
    return (
        f"compare {database} with the lines of {password_file} (host:port:database:user:password), each to the letter"
    )


def state_of(password_file: Path) -> str:
    """Why libpq does not use a password file and what to do about it; empty if it does."""
    try:
        status = password_file.stat()
    except PermissionError:
        return f"let this user search the folder {password_file.parent}, or set pgpass_file"
    except (OSError, ValueError):
        return f"create {password_file} with a line host:port:database:user:password and mode 0600"
    if not password_file.is_file():
        return f"{password_file} is not a file: set pgpass_file to one"
    if status.st_mode & 0o077:
        return f"libpq ignores {password_file} because others may read it: chmod 600 {password_file}"
    try:
        with open(password_file, "rb"):
            return ""
    except OSError:
        return f"let this user read {password_file}"
