#!/usr/bin/env python3
"""Backup Audit: does every database container of a DB4Sci site have the backup that its owner chose?

Reads the backup log in DB4Sci's administrative database, judges every container, writes the answer as a
Prometheus textfile, and prints what needs attention. It never writes to the database, and it takes no
backup itself. Exit status: 0 all well, 1 the worst verdict is a warning, 2 it is critical, 3 the audit
could not be done.
"""

from __future__ import annotations

import gc
import signal
import sys
from types import FrameType
from typing import NoReturn


def _stop_early(number: int, frame: FrameType | None) -> NoReturn:
    sys.stderr.write(f"backup_audit: stopped by {signal.Signals(number).name}: run it again\n")
    sys.exit(3)


if __name__ == "__main__":  # before the large imports
    gc.disable()  # a process of a second has no use for it, and it costs a tenth
    signal.signal(signal.SIGINT, _stop_early)
    signal.signal(signal.SIGTERM, _stop_early)

import argparse
import contextlib
import difflib
import errno
import io
import os
import re
import shutil
import socket
import time
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from sqlalchemy import Engine
from sqlalchemy.exc import ArgumentError

import admin_db
import history
import metrics
import report
import settings as configuration
from history import Coverage
from policy import (
    UTC,
    Audit,
    Container,
    Past,
    Rules,
    Verdict,
    from_microseconds,
    judge,
    known_policy,
    stamp,
    utc_from_local,
)
from settings import Settings, SettingsError

VERSION = "1.0.0"
NOT_DONE = 3
DEFAULT_CONFIG = Path(__file__).resolve().parent / "mydb_config.py"


_Result = tuple[int, Iterable[str]]
"""An exit status, and the lines to print."""


class NotDone(Exception):
    """The audit cannot be completed; the text is `<problem>: <what to do>`."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are one line, and whose exit status is ours."""

    def error(self, message: str) -> NoReturn:
        """Complain about bad usage on one line, and exit with status 3."""
        self.exit(NOT_DONE, f"backup_audit: {report.clean(message)}: see backup_audit.py --help\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (without the program's name); gives back the exit status."""
    started = time.monotonic()
    try:
        options = _parse(argv)
    except SystemExit as exit_:  # --help, --version and bad usage
        return int(exit_.code or 0)
    status = NOT_DONE
    try:
        status, lines = _check_config(options) if options.check_config else _run(options, started)
        for line in lines:
            print(line)
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        # `| head` has read enough: what the interpreter flushes at its end must find a listener
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        return _complain(options, f"cannot print the report ({error.strerror}): check where stdout goes")
    except (KeyboardInterrupt, Exception) as error:  # noqa: BLE001  # see _describe
        return _complain(options, _describe(error))
    return status


def _describe(error: BaseException) -> str:
    """What kept the audit from being done; an exit status of 1, Python's own, would mean "warning"."""
    if isinstance(error, (NotDone, admin_db.AdminDBError)):
        return str(error)
    if isinstance(error, KeyboardInterrupt):
        return f"stopped by {str(error) or 'SIGINT'}: run it again"
    return f"unexpected {type(error).__name__} ({error}): please report it, with what --debug prints"


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="backup_audit.py",
        description="Check that every database container of a DB4Sci site has the backup it was promised.",
        epilog="Exit status: 0 all well, 1 warning, 2 critical, 3 the audit could not be done.",
    )
    add = parser.add_argument
    add("containers", nargs="*", metavar="CONTAINER", help="show these containers in detail (name or c_id)")
    add("--config", type=Path, default=DEFAULT_CONFIG, metavar="FILE", help="settings (default: mydb_config.py here)")
    add("--at", metavar="TIME", help="the audit as of that moment (ISO 8601; without offset: in db_timezone)")
    add("--output", metavar="FILE", help="write the textfile there instead; - is stdout")
    add("--json", action="store_true", help="print the report as JSON")
    add("--history", type=_days, metavar="DAYS", help="show how the last DAYS look, one mark a scheduled backup")
    add("--csv", action="store_true", help="with --history: one row a container and scheduled backup")
    add("--all", action="store_true", help="with --history: also containers that were deleted since")
    talk = parser.add_mutually_exclusive_group()
    talk.add_argument("-v", "--verbose", action="store_true", help="always list all containers")
    talk.add_argument("-q", "--quiet", action="store_true", help="print nothing but errors")
    add("--debug", action="store_true", help="show the traceback of an error")
    add("--check-config", action="store_true", help="check settings, connection and files step by step, and stop")
    add("--version", action="version", version=f"Backup Audit {VERSION}")
    options = parser.parse_args(argv)
    if options.output == "":
        parser.error("--output needs the name of a file, or -")
    if options.output and options.containers:
        parser.error("--output goes with the full audit, not with CONTAINER")
    if options.output == "-" and options.json:
        parser.error("--output - and --json both want stdout")
    if (options.csv or options.all) and options.history is None:
        parser.error("--csv and --all go with --history")
    if options.history is not None and (options.output or (options.csv and options.json)):
        parser.error("--history prints one of table, --json and --csv, and writes no textfile")
    return options


def _days(text: str) -> int:
    days = int(text) if text.isascii() and text.isdigit() else 0
    if not 1 <= days <= 3660:
        raise argparse.ArgumentTypeError(f"{text} is not a number of days from 1 to 3660")
    return days


@dataclass
class _RunRecord:
    """What the run file will tell of this run."""

    prometheus_file: Path | None = None
    mode: int = 0o644
    success: bool = False
    clock_skew: float | None = None


def _run(options: argparse.Namespace, started: float) -> _Result:
    """Do what was asked. Whatever keeps it from being done becomes one line, and a failure in the run file."""
    record = _RunRecord()
    lines: Iterable[str] = ()
    try:
        settings = configuration.load(options.config)
        record.prometheus_file, record.mode = settings.prometheus_file, settings.textfile_mode
        if options.history is not None:
            status, lines = _history(settings, options)
        elif options.containers:
            status, lines = _details(settings, options)
        else:
            status, lines = _audit(settings, options, record)
        record.success = True
    except SettingsError as error:
        record.prometheus_file = error.prometheus_file
        status = _complain(options, *error.problems)
    except (KeyboardInterrupt, Exception) as error:  # noqa: BLE001  # see _describe
        status = _complain(options, _describe(error))
    asked_for_else = (options.at, options.output, options.containers or None, options.history)
    publishing = all(option is None for option in asked_for_else)
    if publishing and record.prometheus_file:
        try:
            _write_run_file(record, started)
        except NotDone as error:
            status = _complain(options, str(error)) if record.success else NOT_DONE
        except KeyboardInterrupt as error:
            status, lines = _complain(options, _describe(error)) if record.success else NOT_DONE, ()
            record.success = False
            _write_run_file(record, started)
    return status, lines


def _complain(options: argparse.Namespace, *problems: str) -> int:
    if options.debug and sys.exc_info()[0] is not None:
        lines = traceback.format_exc().splitlines()
        print(*(report.spell_out(report.mask(line)) for line in lines), sep="\n", file=sys.stderr)
    with contextlib.suppress(OSError):  # the run file must still be written where nobody listens
        for problem in problems:
            print(f"backup_audit: {report.clean(problem)}", file=sys.stderr)
    return NOT_DONE


# --- The audit -----------------------------------------------------------------------------------------


def _audit(settings: Settings, options: argparse.Namespace, record: _RunRecord) -> _Result:
    """The full audit: read, judge, publish, report."""
    engine, rules = _engine(settings), settings.rules
    publishing, content = options.at is None or bool(options.output), b""
    with admin_db.audit_session(engine) as session, admin_db.reading_ahead(session) as thread:
        reader = admin_db.AuditReader(session, rules, _moment(options.at, settings))
        site = _read_site(reader, settings, record)
        # two reads, one after the other: the server works ahead while the textfile and the verdicts are made
        recent = thread.submit(reader.recent, site)
        pasts: _Pasts = ()
        if settings.history_days:
            pasts = reader.past(site, site.now - timedelta(days=settings.history_days), thread=thread)
        if publishing:
            content = metrics.exposition(metrics.container_families(_audited(site, settings), rules))
        audit = judge_site(reader, site, recent.result(), settings)
        if publishing:
            content += metrics.exposition(metrics.audit_families(audit, settings.legacy_metrics))
        _remember_all(audit.verdicts, pasts, _edges(site.now, settings), rules)
    if content:
        content = metrics.exposition(metrics.past_families(audit)) + content
    if options.output == "-":
        return audit.severity, _for_programs(content.decode().removesuffix("\n").split("\n"))
    if content:
        _write(Path(options.output) if options.output else settings.prometheus_file, settings.textfile_mode, content)
    database = admin_db.describe(engine)
    if options.json:
        return audit.severity, [report.as_json(audit, database, VERSION, rules.max_runtime)]
    if options.quiet:
        return audit.severity, ()
    everything = options.verbose or _is_terminal()
    return audit.severity, report.table(audit, _style(settings), database, rules.window, everything)


def _read_site(reader: admin_db.AuditReader, settings: Settings, record: _RunRecord) -> admin_db.Site:
    """Read the containers and the server's clock, and compare that with ours."""
    asked = datetime.now(UTC)
    site = reader.site(timedelta(days=settings.history_days))
    if not reader.at:
        record.clock_skew = (asked + (datetime.now(UTC) - asked) / 2 - site.now).total_seconds()
    if not site.containers and not settings.allow_empty:
        raise NotDone("no active container in the admin database: check admindb_name, or set allow_empty = True")
    return site


def judge_site(reader: admin_db.AuditReader, site: admin_db.Site, log: admin_db.Log, settings: Settings) -> Audit:
    """Judge every container, from the recent log where that is enough, else from the whole."""
    rules = settings.rules
    verdicts = [judge(container, log.of(container), site.now, rules) for container in _audited(site, settings)]
    doubtful = [] if log.whole else [verdict for verdict in verdicts if not verdict.settled]
    if doubtful:
        whole = reader.whole(site.now, doubtful)
        verdicts = [
            verdict if verdict.settled else judge(verdict.container, whole.of(verdict.container), site.now, rules)
            for verdict in verdicts
        ]
    return Audit(site.now, verdicts, log.malformed, log.future, log.newest)


_Pasts = Iterable[tuple[admin_db.Key, Callable[[], Past]]]

_Edges = dict[str, list[int]]
"""The edges of the slots of every policy."""


def _edges(now: datetime, settings: Settings) -> _Edges:
    """The slots of the last `history_days`."""
    start, rules = now - timedelta(days=settings.history_days), settings.rules
    return {policy: history.slot_edges(policy, start, now, rules) for policy in ("Daily", "Weekly", *rules.policies)}


def _remember(verdict: Verdict, past: Past, edges: _Edges, rules: Rules) -> None:
    """Add to a verdict what the past tells."""
    if verdict.policy in edges:
        verdict.covered_ratio = history.covered_ratio(verdict.container, past, edges[verdict.policy])
    verdict.typical_duration = typical = history.typical_duration(past)
    took = verdict.last_success.duration if verdict.last_success else None
    if history.suspiciously_short(took, typical):
        verdict.note = f"took {report.span(took)}, typically {report.span(typical)}: check the dump"


def _remember_all(verdicts: Iterable[Verdict], pasts: _Pasts, edges: _Edges, rules: Rules) -> None:
    """Add to each verdict what the past tells, as it arrives."""
    waiting = {admin_db.key_of(verdict.container): verdict for verdict in verdicts}
    for key, past in pasts:
        if verdict := waiting.pop(key, None):
            _remember(verdict, past(), edges, rules)
    for verdict in waiting.values():
        _remember(verdict, Past(), edges, rules)


def _audited(site: admin_db.Site, settings: Settings) -> list[Container]:
    """The active containers and the extra jobs, which are audited as if they were containers."""
    jobs = {(0, name): Container(0, name, policy) for name, policy in settings.extra_jobs.items()}
    return [c for c in site.containers if (c.c_id, c.name) not in jobs] + list(jobs.values())


def _details(settings: Settings, options: argparse.Namespace) -> _Result:
    """The containers named on the command line, with all that led to their verdicts."""
    rules = settings.rules
    engine = _engine(settings)
    with admin_db.audit_session(engine) as session:
        reader = admin_db.AuditReader(session, rules, _moment(options.at, settings))
        site = reader.site()
        chosen = _choose(_audited(site, settings), options.containers)
        log = reader.runs(site.now, chosen)
    edges, start = _edges(site.now, settings), site.now - timedelta(days=settings.history_days)
    histories = [log.of(container) for container in chosen]
    verdicts = []
    for container, runs in zip(chosen, histories, strict=True):
        verdicts.append(judge(container, runs, site.now, rules))
        _remember(verdicts[-1], history.brief(runs, start), edges, rules)
    audit = Audit(site.now, verdicts)
    if options.json:
        database = admin_db.describe(engine)
        return audit.severity, [report.as_json(audit, database, VERSION, rules.max_runtime, histories)]
    if options.quiet:
        return audit.severity, ()
    return audit.severity, report.details(audit, histories, _style(settings), rules.max_runtime)


def _history(settings: Settings, options: argparse.Namespace) -> _Result:
    """How the past of every container with a schedule looks."""
    rules, days = settings.rules, timedelta(days=options.history)
    engine = _engine(settings)
    with admin_db.audit_session(engine) as session:
        reader = admin_db.AuditReader(session, rules, _moment(options.at, settings))
        site = reader.site(days)
        start = site.now - days
        deleted = reader.deleted(site, start) if options.all else []
        gone = {container.c_id for container in deleted}
        containers = [c for c in _audited(site, settings) if c.c_id not in gone] + deleted
        if options.containers:
            containers = _choose(containers, options.containers)
        pasts = dict(reader.past(site, start, with_ids=options.csv))
    coverages = _cover(containers, gone, pasts, start, site.now, rules)
    database = admin_db.describe(engine)
    if options.quiet:
        return 0, ()
    if options.csv:
        return 0, _for_programs(report.history_csv(coverages))
    if options.json:
        return 0, [report.history_json(list(coverages), start, site.now)]
    return 0, report.history_table(list(coverages), start, site.now, _style(settings), database)


def _cover(
    containers: Iterable[Container],
    gone: Collection[int | None],
    pasts: dict[admin_db.Key, Callable[[], Past]],
    start: datetime,
    end: datetime,
    rules: Rules,
) -> Iterator[Coverage]:
    """The coverage of all that have a schedule; of those that are gone, up to their last log row."""
    edges: dict[tuple[str, datetime], list[int]] = {}
    for container in containers:
        policy, until = known_policy(container.policy, rules), end
        if policy in (None, "Never"):
            continue
        past = pasts.pop(admin_db.key_of(container), Past)()
        if container.c_id in gone:
            if not past.last_row():
                continue
            until = from_microseconds(past.last_row())
        if (policy, until) not in edges:
            edges[policy, until] = history.slot_edges(policy, start, until, rules)
        yield history.cover(container, policy, past, edges[policy, until], start, until)


def _choose(containers: list[Container], wanted: Iterable[str]) -> list[Container]:
    chosen: list[Container] = []
    for word in wanted:
        found = [c for c in containers if c.name == word] or [c for c in containers if c.c_id and str(c.c_id) == word]
        if not found:
            names = sorted({container.name for container in containers})
            close = difflib.get_close_matches(word, names, n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(close)}?" if close else "run backup_audit.py -v for all names"
            raise NotDone(f"no active container is called {word}: {hint}")
        chosen += [container for container in found if container not in chosen]
    return chosen


def _moment(text: str | None, settings: Settings) -> datetime | None:
    """The moment of --at, aware UTC."""
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(re.sub(r"[Zz]$", "+00:00", text.strip()))
        if not 1971 <= moment.year <= 8999:
            raise ValueError
    except ValueError:
        raise NotDone(f"--at {text} is no time: use ISO 8601, such as 2026-03-14T07:00") from None
    return moment.astimezone(UTC) if moment.tzinfo else utc_from_local(moment, settings.db_timezone)


def _engine(settings: Settings) -> Engine:
    libpq = dict(settings.libpq_options)
    if settings.pgpass_file:
        libpq["passfile"] = str(settings.pgpass_file)
    url = settings.database_url or admin_db.postgres_url(
        settings.container_host, settings.mydb_admin_port, settings.admindb_name, settings.admin_user
    )
    try:
        return admin_db.make_engine(
            url,
            read_only=True,
            connect_timeout=settings.connect_timeout,
            query_timeout=settings.query_timeout,
            libpq=libpq,
        )
    except (ArgumentError, ValueError):
        raise NotDone("database_url cannot be understood: write it as postgresql://user@host:port/name") from None


# --- Files and terminal --------------------------------------------------------------------------------


def _write(path: Path, mode: int, content: bytes) -> None:
    try:
        metrics.write_textfile(path, content, mode)
    except OSError as error:
        advice = {
            FileNotFoundError: f"create the folder {path.parent}",
            NotADirectoryError: f"{path.parent} must be a folder",
            PermissionError: f"let this user write to the folder {path.parent}",
            IsADirectoryError: "name a file, not a folder",
        }.get(type(error), "name another file" if error.errno == errno.EINVAL else "check the folder and its disk")
        raise NotDone(f"cannot write {path} ({error.strerror}): {advice}") from error


def _write_run_file(record: _RunRecord, started: float) -> None:
    assert record.prometheus_file
    families = metrics.run_families(record.success, time.time(), time.monotonic() - started, record.clock_skew, VERSION)
    _write(metrics.run_file(record.prometheus_file), record.mode, metrics.exposition(families))


def _for_programs(lines: Iterable[str]) -> Iterable[str]:
    """What is meant for programs, byte for byte; but a terminal must not obey what is in it."""
    if not _is_terminal():
        return lines
    return (report.spell_out(line.removesuffix("\r")) + "\r" * line.endswith("\r") for line in lines)


def _is_terminal() -> bool:
    return sys.stdout is not None and sys.stdout.isatty()


def _style(settings: Settings) -> report.Style:
    terminal = _is_terminal()
    colour = terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") not in (None, "dumb")
    width = shutil.get_terminal_size().columns if terminal else 80
    unicode = (getattr(sys.stdout, "encoding", None) or "ascii").lower().replace("-", "").startswith("utf")
    return report.Style(settings.db_timezone, max(width, 60), colour, cut=terminal, ascii=not unicode)


# --- --check-config ------------------------------------------------------------------------------------


def _check_config(options: argparse.Namespace) -> _Result:
    """Try, step by step, all that an audit needs, and change nothing. The first step that fails is the last."""
    lines = []
    steps = iter(_STEPS)
    step = next(steps)
    try:
        for result in _checks(options.config):
            if result is not None:
                lines.append(f"ok      {step}: {report.clean(result)}")
            step = next(steps, step)
    except SettingsError as error:
        return NOT_DONE, [f"FAILED  settings: {report.clean(problem)}" for problem in error.problems]
    except (NotDone, admin_db.AdminDBError) as error:
        return NOT_DONE, [*lines, f"FAILED  {step}: {report.clean(str(error))}"]
    return 0, [*lines, "All is ready for the first audit."]


_STEPS = ("settings", "host", "login", "tables", "clock", "log", "textfile")


def _checks(config: Path) -> Iterator[str | None]:
    """The result of each of the steps, as they are done; None for one that there is nothing to say about."""
    settings = configuration.load(config)
    yield f"{config} is valid"
    engine = _engine(settings)
    yield _reach(settings) if settings.database_url is None else None
    with admin_db.audit_session(engine) as session:
        asked = datetime.now(UTC)
        server = admin_db.read_clock(session)
        yield f"{admin_db.describe(engine)} lets us in, read-only"
        tables = ", ".join(admin_db.read_nothing(session))
        yield f"{tables}: all columns can be read"
        yield _compare_clocks(asked, server)
        newest = admin_db.read_newest(session)
        yield _judge_newest(newest, server, settings)
    yield _probe_folder(settings.prometheus_file)


def _reach(settings: Settings) -> str:
    host, port = settings.container_host, settings.mydb_admin_port
    if host.startswith("/"):
        return f"{host} is a folder of sockets"
    try:
        socket.create_connection((host, port), settings.connect_timeout).close()
    except (OSError, UnicodeError) as error:  # the latter for a name that cannot be one of a host
        problem = f"{host}:{port} cannot be reached ({error})"
        raise NotDone(f"{problem}: check container_host, mydb_admin_port and the firewall") from None
    return f"{host}:{port} can be reached"


def _compare_clocks(here: datetime, server: datetime) -> str:
    skew = (here - server).total_seconds()
    if abs(skew) < 60:
        return f"this host and the server differ by {abs(skew):.1f} s"
    return f"this host is {abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} the server: check NTP on both"


def _judge_newest(newest: datetime | None, now: datetime, settings: Settings) -> str:
    if newest is None:
        return "the backup log is empty, or its last row has no time stamp"
    moment = utc_from_local(newest, settings.db_timezone)
    text = f"newest row {stamp(moment, settings.db_timezone)}"
    if moment > now + timedelta(minutes=5):
        return f"{text} lies in the future: db_timezone is probably wrong"
    return f"{text} ({(now - moment) / timedelta(hours=1):.1f} h ago)"


def _probe_folder(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        raise NotDone(f"the folder {folder} does not exist: create it, and let this user write to it")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise NotDone(f"the folder {folder} is not writable: let this user write to it")
    if path.exists() and not path.is_file():
        raise NotDone(f"{path} is not a regular file: name another")
    return f"{path} can be written"


# --- As a program --------------------------------------------------------------------------------------


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    for again in (signal.SIGINT, signal.SIGTERM):
        signal.signal(again, _stop_again)
    raise KeyboardInterrupt(signal.Signals(number).name)


def _stop_again(number: int, frame: FrameType | None) -> NoReturn:
    for again in (signal.SIGINT, signal.SIGTERM):  # the rest is short, and has to be done
        signal.signal(again, signal.SIG_IGN)
    raise KeyboardInterrupt(signal.Signals(number).name)


def _prepare_process() -> None:
    """Make ready for cron and systemd: closed standard streams, an ASCII locale, being told to stop."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:  # else a socket or the textfile would get the number of stdout
            os.open(os.devnull, os.O_RDWR)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    signal.signal(signal.SIGINT, _stop)
    signal.signal(signal.SIGTERM, _stop)


if __name__ == "__main__":
    _prepare_process()
    status = main()
    gc.freeze()  # or the interpreter would look through all that is left, at its end
    sys.exit(status)
