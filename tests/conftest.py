"""Fixtures: PostgreSQL servers, empty sites on them and on SQLite, and the programs around."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path

import pytest
from hypothesis import settings
from sqlalchemy import event

from admin_db import create_tables, make_engine
from tests.builders import Site
from tests.postgres import Database, Installation, Server, clear, installations, started_server
from tests.programs import find_program, promtool_check_metrics, scrape_textfiles

CI = os.environ.get("CI", "").lower() in ("true", "1")
INSTALLATIONS = installations()
MAIN_AND_OLDEST = [
    pytest.param(one, id=f"pg{one.major}", marks=[pytest.mark.slow] if number else [])
    for number, one in enumerate(INSTALLATIONS[:1] + sorted(INSTALLATIONS[1:], key=lambda one: float(one.major))[:1])
]
"""The oldest is slow: what differs between versions of PostgreSQL is not looked for with each Python."""
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


@contextmanager
def _starting() -> Iterator[Callable[[Installation], Server]]:
    """Starts servers, which end with the block."""
    with ExitStack() as running:

        def start(installation: Installation) -> Server:
            server = started_server(installation)
            running.callback(server.remove)
            return server

        yield start


@pytest.fixture(scope="session")
def servers(_neutral_environment: None) -> Iterator[Callable[[Installation], Server]]:
    """The server of an installation, which is started when it is first needed."""
    with _starting() as start:
        yield cache(start)


@pytest.fixture(scope="session")
def postgres(servers: Callable[[Installation], Server]) -> Server:
    """The main PostgreSQL server: the newest version of the wheel."""
    if not INSTALLATIONS:
        pytest.fail("no PostgreSQL programs: pip install -r requirements-dev.txt")
    return servers(INSTALLATIONS[0])


@pytest.fixture
def new_server() -> Iterator[Callable[[], Server]]:
    """Starts servers for a test that breaks them."""
    with _starting() as start:
        yield lambda: start(INSTALLATIONS[0])


@pytest.fixture
def site(postgres: Server, tmp_path: Path) -> Site:
    """An empty site on the main PostgreSQL server. Its tables are shared: leave their definition alone."""
    clear(postgres.shared_site)
    return _on_postgres(postgres.shared_site, tmp_path)


@pytest.fixture
def own_site(postgres: Server, tmp_path: Path) -> Iterator[Site]:
    """An empty site in a database of its own, for tests that alter tables, roles or settings."""
    database = postgres.create_site()
    yield _on_postgres(database, tmp_path)
    database.drop()


@pytest.fixture
def sqlite_site(tmp_path: Path) -> Iterator[Site]:
    """An empty site in an SQLite file."""
    url = f"sqlite:///{tmp_path / 'admin.db'}"
    engine = make_engine(url)
    event.listen(engine, "connect", lambda connection, _: connection.execute("PRAGMA synchronous = OFF"))
    create_tables(engine)
    yield Site(engine, {"database_url": url}, tmp_path)
    engine.dispose()


@pytest.fixture(params=["sqlite_site", pytest.param("site", id="postgresql")])
def any_site(request: pytest.FixtureRequest) -> Site:
    """An empty site on SQLite, and on the main PostgreSQL server."""
    found: Site = request.getfixturevalue(request.param)
    return found


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


def _on_postgres(database: Database, folder: Path) -> Site:
    return Site(database.engine, database.settings, folder, database)
