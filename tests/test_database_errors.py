"""What a site can get wrong about its database: one line names the problem, its cause and the next step."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import create_engine

from tests.builders import NOW, SECRET, Site
from tests.failures import database_of, failure, unprivileged, within
from tests.postgres import ADMIN_USER, HOST

AT = ("--at", NOW.isoformat())


def advice(said: str) -> str:
    """What to do, which follows the problem and its cause."""
    return said.rstrip().rpartition("): ")[2]


# --- The way to the server -----------------------------------------------------------------------------


@contextmanager
def listening(answer: bytes | None) -> Iterator[int]:
    """A port that accepts connections, answers the first words, and closes; None: says nothing."""

    def serve() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            with connection:
                connection.recv(8)  # the request for TLS: what has been read does not reset the connection
                connection.sendall(answer or b"")

    with socket.create_server((HOST, 0)) as server:
        thread = threading.Thread(target=serve)
        if answer is not None:
            thread.start()
        yield int(server.getsockname()[1])
        if answer is not None:
            server.shutdown(socket.SHUT_RDWR)
            thread.join(10)


@pytest.mark.parametrize(
    ("answer", "problem", "next_step"),
    [
        (None, "no answer within connect_timeout", "check container_host, mydb_admin_port and the firewall"),
        (b"", "the connection was lost", "see the server's log, and run it again"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "the answer is not PostgreSQL's", "check mydb_admin_port"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "", "check mydb_admin_port"),  # S means that TLS may begin
    ],
    ids=["says nothing", "hangs up", "HTTP", "SSH"],
)
def test_a_port_where_something_else_listens(site: Site, answer: bytes | None, problem: str, next_step: str) -> None:
    with listening(answer) as port, within(2):
        site.config(mydb_admin_port=port, connect_timeout=1)
        said = failure(site)
    assert f"{HOST}:{port}" in said
    assert problem in said
    assert next_step in advice(said)


def test_an_unknown_host_and_a_closed_port(site: Site) -> None:
    site.config(container_host="db..example.invalid")  # not a name at all, so that nobody is asked for it
    said = failure(site)
    assert re.search(r"db\.\.example\.invalid:\d+/\S+: unknown host \(", said)
    assert advice(said) == "check container_host"
    with socket.socket() as taken:  # bound, and not listening
        taken.bind((HOST, 0))
        site.config(mydb_admin_port=taken.getsockname()[1])
        said = failure(site)
    assert "connection refused" in said
    assert advice(said) == "check mydb_admin_port, and that the server runs"


@pytest.mark.parametrize("mode", [None, "verry-full", "verify-full", "verify-ca"])
def test_libpq_options_that_do_not_work(site: Site, mode: str | None) -> None:
    site.config(libpq_options={"sslmode": mode, "sslrootcert": "/x"} if mode else {"sslmod": "require"})
    assert advice(failure(site)).startswith("correct libpq_options")


# --- The password --------------------------------------------------------------------------------------

RIGHT = f"{HOST}:{{port}}:mydb_admin:{ADMIN_USER}:{{password}}"


def write_passfile(site: Site, line: str, mode: int = 0o600, name: str = "pgpass") -> Path:
    """A password file; in its line, `{port}` and `{password}` are the right ones."""
    server = database_of(site).server
    password = server.passwords[ADMIN_USER].replace("\\", "\\\\").replace(":", "\\:")
    path = site.folder / name
    path.write_text(line.format(port=server.port, password=password) + "\n", encoding="utf-8")
    path.chmod(mode)
    return path


def test_the_right_password_file(site: Site) -> None:
    site.container()
    site.config(pgpass_file=str(write_passfile(site, RIGHT)))
    answer = site.process(*AT, "-q")
    assert (answer.returncode, answer.stderr) == (2, "")


@pytest.mark.parametrize("user", [ADMIN_USER, "stranger", None], ids=["password", "role", "URL"])
def test_a_wrong_password_or_role(site: Site, user: str | None) -> None:
    """The server does not tell a wrong password from a role that does not exist."""
    path: Path | str = write_passfile(site, f"*:*:*:*:{SECRET}")
    if user:
        site.config(admin_user=user, pgpass_file=str(path))
    else:
        url, path = database_of(site).url.set(password=SECRET), "database_url"
        site.config(**dict.fromkeys(site.settings), database_url=url.render_as_string(hide_password=False))
    said = failure(site)
    assert re.search(rf"{user or ADMIN_USER}@{HOST}:\d+/mydb_admin: the password was refused", said)
    assert advice(said) == f"check admin_user, and the password in {path}"


@pytest.mark.parametrize(
    "line",
    [
        *(f"db.example.org:{{port}}:*:{ADMIN_USER}:{{password}}", f"{HOST}:1:*:{ADMIN_USER}:{{password}}"),
        *(f"{HOST}:{{port}}:mydb_admim:{ADMIN_USER}:{{password}}", f"{HOST}:{{port}}:*:somebody:{{password}}"),
        *(f"# {RIGHT}", f"{HOST} {{port}} * {ADMIN_USER} {{password}}", ""),
    ],
    ids=["host", "port", "database", "user", "comment", "blanks", "empty"],
)
def test_no_line_of_the_password_file_fits(site: Site, line: str) -> None:
    path = write_passfile(site, line)
    site.config(pgpass_file=str(path))
    said = failure(site)
    assert "no password found" in said
    place = f"{ADMIN_USER}@{HOST}:{database_of(site).server.port}/mydb_admin"
    assert f"compare {place} with the lines of {path} (" in said, "so that a typo on either side is seen"


@pytest.mark.parametrize("how", ["setting", "PGPASSFILE", "HOME"])
def test_a_password_file_that_libpq_does_not_use(
    site: Site, how: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    home = site.folder / "home"
    home.mkdir()
    path = home / ".pgpass"
    site.config(pgpass_file=str(path) if how == "setting" else None)
    if how != "setting":
        monkeypatch.setenv(how, str(path if how == "PGPASSFILE" else home))

    def step() -> str:
        said = failure(site)
        assert "no password found" in said
        assert capfd.readouterr().err == "", "libpq itself has nothing to say"
        return advice(said)

    assert step() == f"create {path} with a line host:port:database:user:password and mode 0600"
    for mode in (0o644, 0o640, 0o602):
        write_passfile(site, RIGHT, mode, "home/.pgpass")
        assert step() == f"libpq ignores {path} because others may read it: chmod 600 {path}"
    path.unlink()
    path.mkdir(0o700)
    assert step() == f"{path} is not a file: set pgpass_file to one"


def test_a_password_file_that_this_user_may_not_read(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    home = site.folder / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    site.config(pgpass_file=None)
    path = write_passfile(site, RIGHT, 0, "home/.pgpass")
    assert advice(failure(site, process=unprivileged())) == f"let this user read {path}"
    home.chmod(0)
    try:  # `failure` could not look into the folder either
        audit = site.process(**unprivileged())
        checked = site.process("--check-config", **unprivileged())
    finally:
        home.chmod(0o755)
    assert (audit.returncode, audit.stdout, audit.stderr.count("\n")) == (3, "", 1)
    assert advice(audit.stderr) == f"let this user search the folder {home}, or set pgpass_file"
    assert (checked.returncode, checked.stderr) == (3, "")
    assert f"FAILED  login: {audit.stderr.removeprefix('backup_audit: ')}" in checked.stdout
    assert checked.stdout.splitlines()[-1].startswith("ok      textfile: "), "the checklist goes on"


# --- The database --------------------------------------------------------------------------------------

COLUMNS = {
    "containers": ("data", "ts", "name"),
    "container_state": ("c_id", "name", "state"),
    "backups": ("c_id", "name", "state", "backup_id", "backup_type", "err_msg", "ts"),
}


def test_missing_databases_tables_and_columns(own_site: Site) -> None:
    own_site.container()
    database = database_of(own_site)
    for table, columns in COLUMNS.items():
        for column in (None, *columns):
            old, new = (f"{column} TO gone", f"gone TO {column}") if column else ("TO gone", f"TO {table}")
            database.execute(f"ALTER TABLE {table} RENAME {old}")
            said = failure(own_site)
            database.execute(f"ALTER TABLE {table if column else 'gone'} RENAME {new}")
            assert f"a {'column' if column else 'table'} is missing" in said
            assert (column or table) in said
            assert f"check that {database.name} " in said
    database.execute("DROP TABLE action_log")
    assert own_site.audit("-q", *AT).status == 2, "the audit does not need it"
    own_site.config(admindb_name="nowhere")
    said = failure(own_site)
    assert 'database "nowhere" does not exist' in said
    assert advice(said) == "check admindb_name and admin_user"


SCRIPT = "run deploy/read_only_role.sql again"


@pytest.mark.parametrize(
    ("change", "problem", "next_step"),
    [
        ("SELECT 1", "a privilege is missing", SCRIPT),
        ("GRANT SELECT ON containers, container_state TO stranger", "permission denied for table backups", SCRIPT),
        ("GRANT SELECT (id, ts) ON containers TO stranger", "permission denied for table container", SCRIPT),
        ("REVOKE USAGE ON SCHEMA public FROM PUBLIC", "a table is missing", "that the role may use its schema"),
        ("REVOKE CONNECT ON DATABASE {} FROM PUBLIC", "the role may not connect", SCRIPT),
        ("ALTER ROLE stranger NOLOGIN", "the role may not log in", "ALTER ROLE ... LOGIN"),
        ("ALTER ROLE stranger CONNECTION LIMIT 0", "all connections are taken", "see pg_stat_activity"),
    ],
    ids=["table", "one table", "column", "schema", "database", "login", "connections"],
)
def test_a_role_without_privileges(own_site: Site, change: str, problem: str, next_step: str) -> None:
    own_site.container()
    database = database_of(own_site)
    database.server.execute(f"CREATE ROLE stranger LOGIN PASSWORD '{SECRET}'")
    try:
        database.execute(change.format(database.name))
        own_site.config(admin_user="stranger", pgpass_file=str(write_passfile(own_site, f"*:*:*:stranger:{SECRET}")))
        said = failure(own_site)
    finally:
        database.execute("DROP OWNED BY stranger; DROP ROLE stranger")
    assert problem in said
    assert next_step in advice(said)


def test_no_active_container(any_site: Site) -> None:
    any_site.container(active=False)
    for argv in ((), ("--history", "30"), ("--history", "30", "--csv"), ("--history", "30", "--all"), ("sales",)):
        said = failure(any_site, *argv, publishes=not argv)
        assert re.search(r"no active container in \S+: check that it is DB4Sci's admin database, or set allow_", said)
    any_site.config(allow_empty=True)
    assert any_site.audit().status == 0


# --- SQLite --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"this is a text, not a database. " * 100, "not an SQLite database"),
        (b"SQLite format 3\0" + b"\xff" * 4096, "not an SQLite database"),
        (b"", "a table is missing"),
        (None, "cannot open the file"),
    ],
    ids=["text", "broken", "empty", "missing"],
)
def test_a_file_that_is_not_an_admin_database(tmp_path: Path, content: bytes | None, problem: str) -> None:
    path = tmp_path / "admin.db"
    nowhere = Site(create_engine("sqlite://"), {"database_url": f"sqlite:///{path}"}, tmp_path)
    if content is not None:
        path.write_bytes(content)
    said = failure(nowhere)  # checks as well that no file is made
    assert f"{path}: {problem}" in said
    assert "database_url" in advice(said)
    path.unlink(missing_ok=True)
    path.mkdir()
    assert "database_url" in advice(failure(nowhere)), "a folder"


def test_an_sqlite_file_that_cannot_be_used(sqlite_site: Site) -> None:
    sqlite_site.container()
    sqlite_site.config(connect_timeout=1)
    path = sqlite_site.folder / "admin.db"
    path.chmod(0)
    assert f"{path}: cannot open the file" in failure(sqlite_site, process=unprivileged())
    path.chmod(0o644)
    with sqlite_site.engine.connect() as connection, within(2):
        connection.exec_driver_sql("COMMIT")
        connection.exec_driver_sql("BEGIN EXCLUSIVE")
        assert "the database is locked" in failure(sqlite_site)
    with sqlite_site.engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE backups RENAME COLUMN err_msg TO message")
    assert "a column is missing (no such column: " in failure(sqlite_site)
    with sqlite_site.engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE backups")
    said = failure(sqlite_site)
    assert "a table is missing (no such table: backups)" in said
    assert advice(said) == "check that database_url names DB4Sci's admin database"
