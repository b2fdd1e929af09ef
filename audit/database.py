"""The admin database that the settings name: how to connect to it, and what to call it in a message."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import URL, Engine, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.orm import Session

import admin_db
from audit import errors, process
from audit.errors import AuditError
from audit.settings import Settings

APPLICATION_NAME = "backup_audit"


@contextmanager
def reading(settings: Settings) -> Iterator[Session]:
    """A read-only session, one snapshot. Raises `AuditError` for whatever goes wrong with the database."""
    engine = _engine(settings)
    try:
        with (
            process.interruptible_waits(settings.connect_timeout, settings.query_timeout),
            admin_db.audit_session(engine) as session,
        ):
            yield session
    except SQLAlchemyError as error:
        raise errors.from_database(error, name(settings), password_file(settings)) from error
    finally:
        engine.dispose()


def name(settings: Settings) -> str:
    """The database as it may stand in a message: `user@host:port/name`, or the path of an SQLite file."""
    url = _url(settings)
    if url.get_backend_name() == "sqlite":
        return str(url.database or ":memory:")
    return f"{url.username or ''}@{url.host}:{url.port or 5432}/{url.database}"


def password_file(settings: Settings) -> Path | None:
    """The password file that libpq looks into; None if it does not need one."""
    url = _url(settings)
    if url.get_backend_name() == "sqlite" or url.password is not None:
        return None
    named = settings.libpq_options.get("passfile") or settings.pgpass_file or os.environ.get("PGPASSFILE")
    return Path(named or os.path.expanduser("~/.pgpass"))


def _url(settings: Settings) -> URL:
    if settings.database_url is None:
        return URL.create(
            "postgresql",
            username=settings.admin_user,
            host=settings.container_host,
            port=settings.mydb_admin_port,
            database=settings.admindb_name,
        )
    try:
        return make_url(settings.database_url)
    except (ArgumentError, ValueError):
        advice = "write it as postgresql://user@host:port/name"
        raise AuditError("database_url is not a URL", advice) from None


def _engine(settings: Settings) -> Engine:
    libpq, passfile = {"application_name": APPLICATION_NAME, **settings.libpq_options}, password_file(settings)
    if passfile is not None:
        # libpq complains on stderr, once a connection, about a file that it will not use: it need not see it
        libpq["passfile"] = f"{passfile}.ignored" if errors.state_of(passfile) else str(passfile)
    try:
        return admin_db.make_engine(
            _url(settings),
            read_only=True,
            connect_timeout=settings.connect_timeout,
            query_timeout=settings.query_timeout,
            libpq=libpq,
        )
    except (ArgumentError, ValueError):
        raise AuditError("database_url is not a URL of PostgreSQL or SQLite", "correct it") from None
