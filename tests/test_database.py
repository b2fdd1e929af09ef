"""What can go wrong with the database: one line names the problem, its cause and the next step."""

from __future__ import annotations

import socket
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from sqlalchemy import create_engine
from sqlalchemy.exc import OperationalError

import admin_db
from audit import database, settings
from audit.errors import AuditError
from audit.settings import Connection
from tests.builders import Site, unprivileged
from tests.db4sci import SECRET
from tests.failed_audits import assert_complaint, complaint_of_failed_audit, meanwhile, passwords, within
from tests.postgres import ADMIN_USER, HOST


def connection_of(site: Site, **values: Any) -> Connection:
    if "database_url" in values:
        values = {**dict.fromkeys(site.settings), **values}
    given = {name: value for name, value in (site.settings | values).items() if value is not None}
    return settings.check({**given, "prometheus_file": "audit.prom"}, site.folder).connection


def refused(site: Site, **values: Any) -> tuple[str, str]:
    """The problem, and what to do about it, of reading a site with these settings."""
    with pytest.raises(AuditError) as found, database.reading(connection_of(site, **values)) as session:
        list(admin_db.check_privileges(session))
    assert_complaint(f"backup_audit: {found.value}\n")
    assert [word for word in passwords(site) if word in str(found.value)] == []
    return found.value.problem, found.value.advice


def refused_without_rights(site: Site) -> str:
    """What the audit says in a process in which permissions count."""
    answer = site.process("-q", **unprivileged())
    assert_complaint(answer.stderr)
    assert answer.returncode == 3
    return answer.stderr.removesuffix("\n")


# --- What is said ------------------------------------------------------------------------------------------

AT = 'connection to server at "db", port 32009 failed: '
NO_ENTRY = f'{AT}FATAL:  no pg_hba.conf entry for host "::1", user "u", database "d", {{}}'
REFUSED = f'{AT}FATAL:  password authentication failed for user "u"'
TLS, PLAIN = NO_ENTRY.format("SSL encryption"), NO_ENTRY.format("no encryption")
WITHOUT_ROOT = "Either provide the file, or change sslmode to disable server certificate verification."
LOST, TAKEN = "the connection was lost", "all connections are taken"
SAID = [
    (f"{TLS}\n{PLAIN}", "the server does not admit this host or user", "add a line for both to its pg_hba.conf"),
    (f"{REFUSED}\n{PLAIN}", "the password was refused", "check admin_user, and the password in /etc/pgpass"),
    (f"{TLS}\n{REFUSED}", "the password was refused", "check admin_user"),
    (f"{AT}FATAL:  pg_hba.conf rejects connection for host", "rejects this host", "reject line of its pg_hba.conf"),
    (f'{AT}FATAL:  Peer authentication failed for user "u"', "to another user", "run the audit as that user"),
    (f"{AT}FATAL:  sorry, too many clients already", TAKEN, "max_connections"),
    (f"{AT}FATAL:  the database system is starting up", "the server is starting", "again in a minute"),
    (f"{AT}FATAL:  the database system is shutting down", "the server is shutting down", "start it again"),
    ("FATAL:  terminating connection due to administrator command\nSSL connection has been closed unexpectedly",
     "the server ended the connection", "see the server's log"),
    ("SSL connection has been closed unexpectedly", LOST, "see the server's log"),
    ("canceling statement due to conflict with recovery", "the standby ended", "max_standby_streaming_delay"),
    ('could not write to file "base/pgsql_tmp/x": No space left on device', "disk is full", "make room on it"),
    (f'{AT}root certificate file "/x/root.crt" does not exist\n{WITHOUT_ROOT}', "a file for TLS", "check /x/root.crt,"),
    (f"{AT}SSL error: certificate verify failed", "is not trusted", "correct sslrootcert in libpq_options"),
    (f'{AT}server certificate for "x" does not match host name "y"', "is another host's", "correct container_host"),
    (f"{AT}server does not support SSL, but SSL was required", "disagree about TLS", "sslmode in libpq_options"),
    (f"{AT}SSL error: tlsv1 alert protocol version", "no encrypted connection", "correct libpq_options"),
    ('definition of service "db4sci" not found', "the service is not defined", "define [db4sci] in ~/.pg_service.conf"),
    ('service file "/x" not found', "the service is not defined", "create /x"),
    (f"{AT}Network is unreachable", "network unreachable", "check container_host and the network"),
    (f"{AT}No route to host", "no route to the host", "check container_host and the network"),
    ('connection to server on socket "/x/.s.PGSQL.5432" failed: Permission denied', "the socket", "let it search"),
    (f"{AT}received unencrypted data after SSL response", "the answer is not PostgreSQL's", "check mydb_admin_port"),
    ('invalid dsn: invalid connection option "sslmod"', "libpq refuses a parameter", "correct libpq_options"),
    ('invalid port number: "99999"', "no such port", "correct mydb_admin_port"),
    (f'{AT}FATAL:  role "u" is not permitted to log in', "the role may not log in", "or change admin_user"),
    (f'{AT}FATAL:  permission denied for database "d"', "the role may not connect", "run deploy/read_only_role.sql"),
    (f'{AT}FATAL:  database "d" does not exist', "no such database or role", "check admindb_name and admin_user"),
    ("FATAL:  unsupported startup parameter: options", "PgBouncer refuses", "connect to PostgreSQL itself"),
    ("FATAL:  no such database: mydb_admin", "no such database", "check admindb_name"),
    ("FATAL:  no such user: u", "PgBouncer does not know the role", "auth_file"),
    ("FATAL:  no more connections allowed (max_client_conn)", "all connections of PgBouncer", "SHOW POOLS"),
    ("server login has been failing, try again later (server_login_retry)", "cannot reach", "see PgBouncer's log"),
    ("something new\nand more", "the database failed (something new)", "see its log"),
]  # fmt: skip
"""What libpq, PostgreSQL and PgBouncer say, to the letter, the problem, and the next step."""


def test_the_most_exact_cause_is_named_whatever_else_is_said() -> None:
    values = {"container_host": "db", "prometheus_file": "x.prom", "pgpass_file": "/etc/pgpass"}
    connection = settings.check(values, Path("/srv")).connection
    for said, problem, step in SAID:
        error = OperationalError("SELECT", None, psycopg2.OperationalError(said))
        found = database.from_database(error, connection)
        assert problem in found.problem, said
        assert step in found.advice, said
        assert found.problem.startswith("mydbadmin@db:32009/mydb_admin: "), said
    url = settings.check({"database_url": "postgresql://db", "prometheus_file": "x.prom"}, Path("/srv")).connection
    error = OperationalError("SELECT", None, psycopg2.OperationalError(f"{AT}Connection refused"))
    assert database.from_database(error, url).advice == "check database_url, and that the server runs"


# --- The way to the server -----------------------------------------------------------------------------


def test_unknown_hosts_closed_ports_sockets_and_other_servers(site: Site) -> None:
    with socket.create_server((HOST, 0), backlog=0) as server:
        port = server.getsockname()[1]

        def answer() -> None:
            with server.accept()[0] as connection:
                connection.recv(8)  # the request for TLS: what has been read does not reset the connection
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        with meanwhile(answer):
            said, advice = refused(site, mydb_admin_port=port, libpq_options={"gssencmode": "disable"})
        assert said.startswith(f"{ADMIN_USER}@{HOST}:{port}/mydb_admin: the answer is not PostgreSQL's (")
    said, advice = refused(site, mydb_admin_port=port)  # nobody listens any more
    assert "connection refused (" in said
    assert advice == "check mydb_admin_port, and that the server runs"
    # libpq tries one host after the other; the last one is not a name at all, so that nobody is asked for it
    said, advice = refused(site, container_host=f"{HOST},db..example.invalid", mydb_admin_port=port)
    assert "unknown host (" in said
    assert advice == "check container_host"
    assert "no server at this socket (" in refused(site, container_host="/no/such/folder")[0]
    assert "disagree about TLS (" in refused(site, libpq_options={"sslmode": "require"})[0]
    with database.reading(connection_of(site, container_host=f"db..example.invalid,{HOST}")) as session:
        assert list(admin_db.check_privileges(session))


# --- The password --------------------------------------------------------------------------------------


def test_a_password_that_is_wrong_or_is_not_found(site: Site) -> None:
    server, path = site.postgres.server, site.folder / "pgpass"
    place = f"{HOST}:{server.port}/mydb_admin"

    def refusal(line: str = f"*:*:*:*:{SECRET}", mode: int = 0o600, **values: Any) -> tuple[str, str]:
        path.write_text(f"{line}\n", encoding="utf-8")
        path.chmod(mode)
        return refused(site, pgpass_file=str(path), **values)

    said, advice = refusal(admin_user="stranger")
    assert said.startswith(f"stranger@{place}: the password was refused (")
    assert advice == f"check admin_user, and the password in {path}"
    url = site.postgres.url.set(password=SECRET).render_as_string(hide_password=False)
    assert refused(site, database_url=url)[1] == "check database_url, and the password in database_url"
    for mode in (0o640, 0o602):
        said, advice = refusal(mode=mode)
        assert "no password found (" in said
        assert advice == f"libpq ignores {path} because others may read it: chmod 600 {path}"
    for line in (f"{HOST}:1:*:{ADMIN_USER}:{SECRET}", ""):
        start = f"compare {ADMIN_USER}@{place} with the lines of {path} ("
        assert refusal(line)[1].startswith(start), "so that a typo is seen"
    path.chmod(0)
    site.config(pgpass_file=str(path))
    assert refused_without_rights(site).endswith(f"): let this user read {path}")
    path.unlink()
    step = f"create {path} with a line host:port:database:user:password and mode 0600"
    assert refused(site, pgpass_file=str(path))[1] == step
    path.mkdir(0o700)
    assert refused(site, pgpass_file=str(path))[1] == f"{path} is not a file: set pgpass_file to one"


# --- The database --------------------------------------------------------------------------------------


def test_missing_tables_columns_and_privileges(own_site: Site) -> None:
    execute, name = own_site.postgres.execute, own_site.postgres.name
    checks = f"check that {name} "
    no_schema = "ALTER SCHEMA public OWNER TO postgres; REVOKE USAGE ON SCHEMA public FROM PUBLIC"
    for change, problem, step in (
        ("ALTER TABLE backups RENAME TO gone", 'a table is missing (relation "backups"', checks),
        ("ALTER TABLE gone RENAME TO backups; ALTER TABLE backups RENAME url TO gone", "a column is missing (", checks),
        (f"REVOKE SELECT ON containers FROM {ADMIN_USER}", "a privilege is missing (", "run deploy/read_only_role.sql"),
        (no_schema, "a table is missing (", checks),
    ):
        execute(change)
        said, advice = refused(own_site)
        assert problem in said
        assert advice.startswith(step)
    assert advice.endswith("that the role may use its schema")


# --- SQLite --------------------------------------------------------------------------------------------

OPEN_FILE = "check the path in database_url, and that this user may read it; in WAL mode, also write to its folder"


def test_a_file_that_is_not_an_admin_database(tmp_path: Path) -> None:
    path = tmp_path / "admin.db"
    nowhere = Site(create_engine("sqlite://"), {"database_url": f"sqlite:///{path}"}, tmp_path)
    said = complaint_of_failed_audit(nowhere)  # checks as well that no file is made
    assert "cannot open the file (" in said
    assert said.endswith(f"): {OPEN_FILE}\n")
    for content, problem, step in (
        (b"this is a text, not a database. " * 100, "not an SQLite database", "check the path in database_url"),
        (b"SQLite format 3\0" + b"\xff" * 4096, "not an SQLite database", "check the path in database_url"),
        (b"", "a table is missing", "check that database_url names DB4Sci's admin database"),
    ):
        path.write_bytes(content)
        found, advice = refused(nowhere)
        assert f"{path}: {problem} (" in found
        assert advice == step


def test_an_sqlite_file_that_cannot_be_used(sqlite_site: Site) -> None:
    with sqlite_site.engine.connect() as connection, within(1, slack=2):
        connection.exec_driver_sql("COMMIT")
        connection.exec_driver_sql("BEGIN EXCLUSIVE")
        assert "the database is locked (" in refused(sqlite_site, connect_timeout=1)[0]
    with sqlite_site.engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE backups RENAME COLUMN err_msg TO message")
    assert "a column is missing (no such column: " in refused(sqlite_site)[0]


def test_wal_mode_in_a_folder_that_cannot_be_written(sqlite_site: Site) -> None:
    folder = sqlite_site.folder / "db4sci"
    folder.mkdir()
    path = (sqlite_site.folder / "admin.db").rename(folder / "admin.db")
    with closing(sqlite3.connect(path)) as writer:
        writer.execute("PRAGMA journal_mode = WAL")
    sqlite_site.config(database_url=f"sqlite:///{path}")
    folder.chmod(0o555)
    said = refused_without_rights(sqlite_site)
    folder.chmod(0o755)
    assert f"{path}: cannot open the file (" in said
    assert said.endswith(f"): {OPEN_FILE}")
    path.chmod(0)
    assert refused_without_rights(sqlite_site).endswith(f"): {OPEN_FILE}")
