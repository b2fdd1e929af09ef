"""`--check-config`: a checklist of all that an audit needs, tried step by step; it leaves nothing behind."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path

import admin_db
from audit import auditor, database, textfile
from audit import settings as configuration
from audit.errors import AuditError
from audit.policy import FUTURE_TOLERANCE, HOUR, UTC, age, minute, utc_from_local
from audit.printable import one_line
from audit.process import NOT_DONE
from audit.settings import Settings, SettingsError

OLDEST_ROW = 26 * HOUR
"""The age from which the newest log row is suspicious: a nightly job has run since."""
CLOCK_DIFFERENCE = timedelta(minutes=1)
READABLE_BY_OTHERS = 0o004


class Doubt(Exception):
    """A step that lets the audit succeed, but not be trusted."""


def check_config(config: Path) -> tuple[int, list[str]]:
    """The exit status (0 all is ready, 1 with warnings, 3 the audit would fail), and a line for each step."""
    try:
        settings = configuration.load(config)
    except SettingsError as error:
        return NOT_DONE, [_line("FAILED", "settings", problem) for problem in error.problems]
    lines = [_line("ok", "settings", f"{config} is valid")]
    lines += [*_database_steps(settings), *_textfile_steps(settings)]
    if any(line.startswith("FAILED") for line in lines):
        return NOT_DONE, lines
    if any(line.startswith("WARN") for line in lines):
        return 1, lines
    return 0, [*lines, "All is ready for the first audit."]


def _line(result: str, step: str, text: str) -> str:
    return f"{result:7} {step}: {one_line(text)}"


def _tried(step: str, attempt: Callable[[], str]) -> str:
    try:
        return _line("ok", step, attempt())
    except Doubt as warning:
        return _line("WARN", step, str(warning))


def _database_steps(settings: Settings) -> Iterator[str]:
    """The steps up to the log; the first one that fails is the last."""
    step = "host"
    try:
        if settings.database_url is None:
            yield _line("ok", step, _reach(settings))
        step = "login"
        with database.reading(settings) as session:
            asked = datetime.now(UTC)
            now = admin_db.read_clock(session)
            yield _line("ok", step, f"{database.name(settings)} accepts the login, read-only")
            step = "tables"
            yield _line("ok", step, f"{', '.join(admin_db.check_privileges(session))}: all columns can be read")
            step = "containers"
            count = len(auditor.active_containers(session, settings))
            yield _line("ok", step, f"{count} to audit")
            yield _tried("clock", lambda: _compare_clocks(asked, now))
            step = "log"
            newest = admin_db.read_newest_stamp(session)
            yield _tried(step, lambda: _judge_newest(newest, now, settings))
    except AuditError as error:
        yield _line("FAILED", step, str(error))


def _reach(settings: Settings) -> str:
    host, port = settings.container_host, settings.mydb_admin_port
    if host.startswith("/"):
        return f"{host} is a folder of sockets"
    try:
        socket.create_connection((host, port), settings.connect_timeout).close()
    except (OSError, UnicodeError) as error:  # the latter for a name that cannot be a host's
        problem = f"cannot reach {host}:{port} ({error})"
        raise AuditError(problem, "check container_host, mydb_admin_port and the firewall") from None
    return f"{host}:{port} can be reached"


def _compare_clocks(here: datetime, server: datetime) -> str:
    skew = here - server
    if abs(skew) < CLOCK_DIFFERENCE:
        return f"this host and the server differ by {abs(skew).total_seconds():.1f} s"
    side = "ahead of" if here > server else "behind"
    raise Doubt(f"this host is {abs(skew).total_seconds():.0f} s {side} the server: check NTP on both")


def _judge_newest(newest: datetime | None, now: datetime, settings: Settings) -> str:
    if newest is None:
        raise Doubt("the backup log is empty: has DB4Sci's backup job ever run?")
    moment = utc_from_local(newest, settings.db_timezone)
    text = f"newest row {minute(moment, settings.db_timezone)}"
    if moment > now + FUTURE_TOLERANCE:
        raise Doubt(f"{text} lies in the future: db_timezone is probably wrong")
    text += f" ({age(now - moment)} ago)"
    if now - moment > OLDEST_ROW:
        raise Doubt(f"{text}: DB4Sci's backup job has probably not run since")
    return text


def _textfile_steps(settings: Settings) -> Iterator[str]:
    for path in (settings.prometheus_file, textfile.run_file(settings.prometheus_file)):
        try:
            textfile.attempt(path, settings.textfile_mode)
        except AuditError as error:
            yield _line("FAILED", "textfile", str(error))
        else:
            yield _line("ok", "textfile", f"{path} can be written")
    if not settings.textfile_mode & READABLE_BY_OTHERS:
        mode = f"textfile_mode = 0o{settings.textfile_mode:o}"
        yield _line(
            "WARN", "textfile", f"{mode} hides the files from node_exporter, unless it is of their group: 0o644"
        )
