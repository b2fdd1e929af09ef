"""Fixtures: PostgreSQL servers, and empty sites on them and on SQLite."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path

import pytest
from hypothesis import settings
from sqlalchemy import event

from admin_db import create_tables, make_engine
from tests.builders import Site
from tests.postgres import INSTALLATIONS, Database, Installation, Server, clear, started_server

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
def servers(_neutral_environment: None) -> Iterator[Callable[[Installation], Server]]:
    """The server of an installation, which is started when it is first needed."""
    with ExitStack() as running:

        @cache
        def start(installation: Installation) -> Server:
            server = started_server(installation)
            running.callback(server.remove)
            return server

        yield start


@pytest.fixture(scope="session")
def postgres(servers: Callable[[Installation], Server]) -> Server:
    """The main PostgreSQL server: the newest version of the wheel."""
    if not INSTALLATIONS:
        pytest.fail("no PostgreSQL programs: pip install -r requirements-dev.txt")
    return servers(INSTALLATIONS[0])


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


def _on_postgres(database: Database, folder: Path) -> Site:
    return Site(database.engine, database.settings, folder, database)
