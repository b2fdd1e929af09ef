"""Fixtures: PostgreSQL servers, empty sites on them and on SQLite, and the programs around."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from sqlalchemy import event

from admin_db import create_tables, make_engine
from tests.builders import Site
from tests.postgres import Database, Installation, Server, Servers, clear, installations, started_server
from tests.programs import find_program, promtool_check_metrics, scrape_textfiles

CI = os.environ.get("CI", "").lower() in ("true", "1")
INSTALLATIONS = installations()
EVERY_SERVER = [
    pytest.param(one, id=one.id, marks=[pytest.mark.slow] if number else []) for number, one in enumerate(INSTALLATIONS)
]
"""All but the first are slow: what differs between versions of PostgreSQL is not looked for with each Python."""
EVERY_DATABASE = [pytest.param(None, id="sqlite"), *EVERY_SERVER]
TERMINAL_VARIABLES = ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "TERM")

settings.register_profile("tests", deadline=None, print_blob=True, derandomize=True)
settings.register_profile("search", parent=settings.get_profile("tests"), derandomize=False)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "tests"))  # `search` draws new examples each time


@pytest.fixture(scope="session", autouse=True)
def _neutral_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing of the machine decides a test: no libpq variables, no home, no terminal, another time zone."""
    patch = pytest.MonkeyPatch()
    for name in list(os.environ):
        if name.startswith(("PG", "LC_", "PYTHON")) or name in TERMINAL_VARIABLES:
            patch.delenv(name)
    patch.setenv("LANG", "C.UTF-8")
    patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
    patch.setenv("TZ", "TEST-05:45")  # 5:45 ahead of UTC: local time taken for UTC shows
    patch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    time.tzset()
    umask = os.umask(0o022)
    yield
    os.umask(umask)
    patch.undo()
    time.tzset()


@pytest.fixture(scope="session")
def servers(_neutral_environment: None) -> Iterator[Servers]:
    """The PostgreSQL servers of this test run, each started when it is first needed."""
    running = Servers()
    try:
        yield running
    finally:
        running.remove()


@pytest.fixture(scope="session")
def postgres(servers: Servers) -> Server:
    """The main PostgreSQL server: the newest version of the wheel."""
    return servers.get(_main_installation())


@pytest.fixture
def new_server() -> Iterator[Callable[..., Server]]:
    """Makes further servers, `new_server(**settings)`, for tests that stop, break or reconfigure theirs."""
    made: list[Server] = []

    def make(**server_settings: str) -> Server:
        made.append(started_server(_main_installation(), server_settings))
        return made[-1]

    yield make
    for server in made:
        server.remove()


@pytest.fixture
def site(postgres: Server, tmp_path: Path) -> Site:
    """An empty site on the main PostgreSQL server. Its tables are shared: leave their definition alone."""
    return _shared(postgres, tmp_path)


@pytest.fixture
def own_site(postgres: Server, tmp_path: Path) -> Iterator[Site]:
    """An empty site in a database of its own, for tests that alter tables, roles or settings."""
    database = postgres.create_database(template=postgres.empty_site.name)
    yield _on_postgres(database, tmp_path)
    database.drop()


@pytest.fixture
def sqlite_site(tmp_path: Path) -> Iterator[Site]:
    """An empty site in an SQLite file."""
    yield from _on_sqlite(tmp_path)


@pytest.fixture(params=EVERY_DATABASE[:2])
def any_site(request: pytest.FixtureRequest, servers: Servers, tmp_path: Path) -> Iterator[Site]:
    """An empty site on SQLite, and on the main PostgreSQL server."""
    yield from _on_any(request.param, servers, tmp_path)


@pytest.fixture(params=EVERY_DATABASE)
def every_site(request: pytest.FixtureRequest, servers: Servers, tmp_path: Path) -> Iterator[Site]:
    """An empty site on SQLite, and on every PostgreSQL version there is: for what differs between versions."""
    yield from _on_any(request.param, servers, tmp_path)


def _on_any(installation: Installation | None, servers: Servers, tmp_path: Path) -> Iterator[Site]:
    if installation is None:
        yield from _on_sqlite(tmp_path)
    else:
        yield _shared(servers.get(installation), tmp_path)


@pytest.fixture
def require_program() -> Callable[[str], Path]:
    """Finds a program by its name; the test is skipped where it is missing, but fails under CI."""

    def find(name: str) -> Path:
        found = find_program(name)
        if found is not None:
            return found
        message = f"{name} is not installed (Debian: prometheus, prometheus-node-exporter)"
        if CI:
            pytest.fail(message)
        pytest.skip(message)

    return find


@pytest.fixture
def check_metrics(require_program: Callable[[str], Path]) -> Callable[[Path], str]:
    """What `promtool check metrics` says about a textfile; nothing is what it should say."""
    promtool = require_program("promtool")
    return lambda textfile: promtool_check_metrics(promtool, textfile)


@pytest.fixture
def node_exporter(require_program: Callable[[str], Path], tmp_path: Path) -> Callable[[Path], str]:
    """What a real node_exporter serves at /metrics when its textfile collector reads a folder."""
    program = require_program("prometheus-node-exporter")
    return lambda directory: scrape_textfiles(program, directory, tmp_path / "node_exporter.log")


def _main_installation() -> Installation:
    if not INSTALLATIONS:
        pytest.fail("no PostgreSQL programs: pip install -r requirements-dev.txt")
    return INSTALLATIONS[0]


def _shared(server: Server, folder: Path) -> Site:
    clear(server.shared_site)
    return _on_postgres(server.shared_site, folder)


def _on_postgres(database: Database, folder: Path) -> Site:
    return Site(database.engine, database.settings, folder, database)


def _on_sqlite(folder: Path) -> Iterator[Site]:
    url = f"sqlite:///{folder / 'admin.db'}"
    engine = make_engine(url)
    event.listen(engine, "connect", lambda connection, _: connection.execute("PRAGMA synchronous = OFF"))
    create_tables(engine)
    yield Site(engine, {"database_url": url}, folder)
    engine.dispose()
