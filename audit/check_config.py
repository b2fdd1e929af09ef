"""`--check-config`: a checklist of all that an audit needs, tried step by step; it leaves nothing behind."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from sqlalchemy.orm import Session

import admin_db
from admin_db import PlainRow
from audit import auditor, database, textfile
from audit.errors import AuditError
from audit.launch import NOT_DONE
from audit.log import CUT_LENGTH, STARTS_COMPARED, clock_gap
from audit.policy import FUTURE_TOLERANCE, HOUR, Container, utc_from_local
from audit.settings import Connection, Settings, SettingsError, Textfile, has_password, load_settings
from audit.terminal import user_name
from audit.text import age, duration, first_few, minute, one_line

OLDEST_ROW = 26 * HOUR
"""The age from which the newest log row is suspicious: a nightly job has run since."""
LARGEST_SKEW = timedelta(minutes=1)
ROWS_READ = 200
"""How many of the newest log rows are looked at."""
OK, NOTE, WARN, FAILED = "ok", "note", "WARN", "FAILED"
_STATUS = {OK: 0, NOTE: 0, WARN: 1, FAILED: NOT_DONE}
_READY = "All is ready for the first audit."


class Step(NamedTuple):
    """One line of the checklist."""

    result: str
    """What came of it: a note changes no exit status, a warning lets the audit succeed, but not be trusted."""
    name: str
    text: str


def check_config(config: Path) -> tuple[int, list[str]]:
    """The exit status (0 all is ready, 1 with warnings, 3 the audit would fail), and a line for each step."""
    steps = list(_steps(config))
    lines = [f"{step.result:7} {step.name}: {one_line(step.text)}" for step in steps]
    status = max(_STATUS[step.result] for step in steps)
    return status, lines if status else [*lines, _READY]


def _steps(config: Path) -> Iterator[Step]:
    try:
        settings = load_settings(config)
    except SettingsError as error:
        yield from (Step(FAILED, "settings", problem) for problem in error.problems)
        yield from _protection(config)
        return
    yield Step(OK, "settings", f"{config} is valid")
    yield from _protection(config)
    yield from _database(settings)
    yield from _textfiles(settings.textfile)


def _protection(config: Path) -> Iterator[Step]:
    """Who else can change the configuration, which is executed."""
    path = config.resolve()
    for what, problem in (
        (path, f"others can write {path}, and the audit executes it"),
        (path.parent, f"others can write {path.parent}, and so replace what the audit executes"),
    ):
        try:
            mode = what.stat().st_mode
        except OSError:
            continue
        sticky = stat.S_ISDIR(mode) and mode & stat.S_ISVTX
        if mode & (stat.S_IWGRP | stat.S_IWOTH) and not sticky:
            yield Step(WARN, "settings", f"{problem}: chmod go-w {what}")


# --- The database ----------------------------------------------------------------------------------------


def _database(settings: Settings) -> Iterator[Step]:
    """The steps up to the log; the first one that fails is the last."""
    is_postgres = settings.connection.url.get_backend_name() == "postgresql"
    step = "login" if is_postgres else "file"
    try:
        with database.reading(settings.connection) as session:
            now, skew = database.compare_clocks(session)
            yield from (_login if is_postgres else _file)(session, settings.connection)
            step = "tables"
            yield Step(OK, step, f"{', '.join(admin_db.check_privileges(session))}: all columns can be read")
            if is_postgres:
                yield from _role(session)
            step = "containers"
            containers = auditor.active_containers(session, settings)
            yield Step(OK, step, f"{len(containers)} to audit")
            yield from _unused(session, containers, settings)
            yield _clock(skew)
            step = "log"
            rows = admin_db.read_newest_rows(session, ROWS_READ, CUT_LENGTH + 1)
            yield _newest_row(rows, now, settings)
            yield from _zones(rows, settings)
            yield from _cut_messages(rows)
    except AuditError as error:
        if step == "login" and not _was_answered(error):
            step = "host"
        elif step == "login":
            yield Step(OK, "host", f"the server of {settings.connection.display_name} answers")
        yield Step(FAILED, step, str(error))


def _was_answered(error: AuditError) -> bool:
    """Whether it was a PostgreSQL server that did not want the login."""
    return "FATAL" in error.problem or "no password" in error.problem


def _login(session: Session, connection: Connection) -> Iterator[Step]:
    info = session.connection().connection.dbapi_connection.info  # type: ignore[union-attr]
    is_socket = info.host.startswith("/")
    yield Step(OK, "host", f"{info.host}, port {info.port}, answers: PostgreSQL {info.server_version // 10000}")
    yield Step(OK, "login", f"{info.user} may log in to {info.dbname}, read-only")
    if not info.ssl_in_use and not is_socket:
        advice = "libpq_options = {'sslmode': 'require'} refuses that"
        yield Step(NOTE, "login", f"the connection is not encrypted (TLS): {advice}")
    if has_password(connection.url):
        yield Step(NOTE, "login", "database_url holds the password, which belongs in the password file (pgpass_file)")


def _file(session: Session, connection: Connection) -> Iterator[Step]:
    yield Step(OK, "file", f"{connection.display_name} can be opened")


def _role(session: Session) -> Iterator[Step]:
    if admin_db.may_write(session):
        yield Step(NOTE, "tables", "the role can write to them, too: deploy/read_only_role.sql makes one that cannot")


def _unused(session: Session, containers: Sequence[Container], settings: Settings) -> Iterator[Step]:
    """Keys of settings that fit nothing."""
    exceptions = auditor.unused_exceptions(containers, settings)
    if exceptions:
        yield Step(NOTE, "containers", f"exceptions: no active container is called {first_few(exceptions)}")
    if settings.extra_jobs:
        logged = {row.name for row in admin_db.read_log(session, c_ids=[0])}
        jobs = [name for name in settings.extra_jobs if name not in logged]
        if jobs:
            yield Step(NOTE, "containers", f"extra_jobs: the log has no row of {first_few(jobs)} (c_id 0)")


def _clock(skew: float) -> Step:
    if abs(skew) < LARGEST_SKEW.total_seconds():
        return Step(OK, "clock", f"this host and the server differ by {abs(skew):.1f} s")
    side = "ahead of" if skew > 0 else "behind"
    return Step(WARN, "clock", f"this host is {abs(skew):.0f} s {side} the server: check NTP on both")


# --- The log ---------------------------------------------------------------------------------------------


def _newest_row(rows: Sequence[PlainRow], now: datetime, settings: Settings) -> Step:
    stamps = [utc_from_local(row.ts, settings.db_timezone) for row in rows if row.ts is not None]
    if not stamps:
        return Step(WARN, "log", "the backup log is empty: has DB4Sci's backup job ever run?")
    text = f"newest row {minute(stamps[0], settings.rules.zone)}"
    if stamps[0] > now + FUTURE_TOLERANCE:
        return Step(WARN, "log", f"{text} lies in the future: db_timezone is probably wrong")
    text += f" ({age(now - stamps[0])} ago)"
    if now - stamps[0] > OLDEST_ROW:
        return Step(WARN, "log", f"{text}: DB4Sci's backup job has probably not run since")
    return Step(OK, "log", text)


def _zones(rows: Sequence[PlainRow], settings: Settings) -> Iterator[Step]:
    """Whether the two zones fit the log, where `backup_id` is in local time and `ts` in UTC."""
    starts = [
        (utc_from_local(row.ts, settings.db_timezone), row.backup_id or "")
        for row in rows
        if row.ts and (row.state or "").strip().lower() == "start"
    ]
    gap = clock_gap(starts[:STARTS_COMPARED], settings.rules.zone)
    if gap is not None:
        problem = f"backup_id (in timezone) and ts (in db_timezone) of the newest runs are {duration(gap)} apart"
        advice = "set timezone to that of the DB4Sci host, and db_timezone to that of ts, usually UTC"
        yield Step(WARN, "log", f"{problem}: {advice}")


def _cut_messages(rows: Sequence[PlainRow]) -> Iterator[Step]:
    lengths = [len(row.message or "") for row in rows]
    if CUT_LENGTH in lengths and max(lengths) == CUT_LENGTH:
        problem = f"messages end at {CUT_LENGTH} characters: this DB4Sci cuts them"
        yield Step(NOTE, "log", f"{problem}, and errors behind that do not reach the log")


# --- The textfiles ---------------------------------------------------------------------------------------


def _textfiles(files: Textfile) -> Iterator[Step]:
    user = user_name(os.geteuid())
    for path in (files.path, files.run_file):
        try:
            textfile.try_out(path, files.mode)
        except AuditError as error:
            yield Step(FAILED, "textfile", f"user {user} {error}")
        else:
            yield Step(OK, "textfile", f"user {user} can replace {path}")
    if not files.mode & stat.S_IROTH:
        problem = f"textfile_mode = 0o{files.mode:o} hides the files from node_exporter, unless it is of their group"
        yield Step(WARN, "textfile", f"{problem}: 0o644")
