#!/usr/bin/env python3
"""Backup Audit: does every database container of a DB4Sci site have the backup that its owner chose?

Reads the backup log in DB4Sci's administrative database, judges every container, writes the answer as a
Prometheus textfile, and prints what needs attention. It never writes to the database, and it takes no
backup itself. Exit status: 0 all well, 1 the worst verdict is a warning, 2 it is critical, 3 the audit
could not be done.
"""

import sys

try:
    from audit import interpreter

    if __name__ == "__main__":
        interpreter.require(__file__)

    from audit import process

    if __name__ == "__main__":
        process.prepare()
except (ImportError, OSError, SyntaxError) as error:  # only a part of the program is here, or readable
    sys.stderr.write(f"backup_audit: the installation is broken ({error}): install all of it again\n")
    sys.exit(3)  # Python's own 1 would mean "warning"

import argparse
import hashlib
import os
import re
import shlex
import shutil
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import NoReturn

from sqlalchemy.orm import Session

import admin_db
from audit import (
    auditor,
    database,
    history,
    history_page,
    history_report,
    json_report,
    metrics,
    printable,
    report,
    selection,
    textfile,
)
from audit import settings as configuration
from audit.auditor import LogOfSite
from audit.check_config import check_config
from audit.errors import AuditError
from audit.findings import Audit
from audit.policy import UTC, Container, utc_from_local
from audit.settings import Settings, SettingsError

VERSION = "2.0.0"
PROGRAM = Path(__file__).resolve()
DEFAULT_CONFIG = PROGRAM.parent / "mydb_config.py"
NOT_DONE = process.NOT_DONE
MAIL_WIDTH = 60
"""Columns of the report where there is no terminal, as in cron's mail: what a phone shows."""

_Result = tuple[int, Iterable[str]]
"""An exit status, and the lines to print."""


@dataclass
class Run:
    """What the run file tells of this run."""

    publishes: bool
    """Whether this run is to write `prometheus_file`."""
    prometheus_file: Path | None = None
    mode: int = 0o644
    site: str | None = None
    clock_skew: float | None = None

    def record(self, success: bool, duration: float) -> None:
        """Write the run file. Raises `AuditError`."""
        if self.publishes and self.prometheus_file is not None:
            families = metrics.run_families(success, time.time(), duration, self.clock_skew, VERSION)
            content = metrics.exposition(families, self.site)
            textfile.write_in_any_case(textfile.run_file(self.prometheus_file), content, self.mode)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (without the program's name) and return the exit status."""
    started = time.monotonic()
    try:
        options = _parse(argv)
    except SystemExit as exit_:  # --help, --version and bad usage
        return int(exit_.code or 0)
    asked = (options.at, options.output, options.history)
    run = Run(publishes=not options.containers and asked == (None, None, None))
    try:
        status = _attempt(options, run)
        process.ignore_signals()
    except KeyboardInterrupt as error:
        status = _complain(options, f"stopped by {str(error) or 'SIGINT'}: run it again")
    try:
        run.record(status != NOT_DONE, time.monotonic() - started)
    except AuditError as error:
        status = _complain(options, str(error)) if status != NOT_DONE else NOT_DONE
    return status


def _attempt(options: argparse.Namespace, run: Run) -> int:
    """Do what was asked and return the exit status: 3, after a complaint, for whatever goes wrong."""
    try:
        return _do(options, run)
    except SettingsError as error:
        run.prometheus_file, run.mode, run.site = error.prometheus_file, error.textfile_mode, error.site
        return _complain(options, *error.problems)
    except Exception as error:  # noqa: BLE001  # 1, Python's own status, would mean "warning"
        return _complain(options, _describe(error))


def _do(options: argparse.Namespace, run: Run) -> int:
    """Do what was asked, print the answer, and return the exit status."""
    lines: Iterable[str]
    if options.check_config:
        run.publishes = False
        status, lines = check_config(options.config)
    else:
        settings = configuration.load(options.config)
        run.prometheus_file, run.mode, run.site = settings.prometheus_file, settings.textfile_mode, settings.site
        if options.history is not None:
            status, lines = _history(settings, options, run)
        elif options.containers:
            status, lines = _details(settings, options, run)
        else:
            status, lines = _audit(settings, options, run)
    try:
        process.print_lines(lines)
    except OSError as error:
        raise AuditError(f"cannot print the report ({error.strerror})", "check where stdout goes") from error
    return status


# --- What is asked ---------------------------------------------------------------------------------------


def _audit(settings: Settings, options: argparse.Namespace, run: Run) -> _Result:
    """The full audit: read, judge, publish, report."""
    with database.reading(settings) as session:
        log, containers = _begin(session, settings, options, run)
        audit = auditor.audit(log, containers, settings, database.name(settings))
    if options.output == "-":
        return audit.severity, _harmless(_exposition(audit, settings).decode().removesuffix("\n").split("\n"))
    if options.output or not options.at:
        path = Path(options.output) if options.output else settings.prometheus_file
        textfile.write(path, _exposition(audit, settings), settings.textfile_mode)
    if options.json:
        return audit.severity, [json_report.as_json(audit, VERSION)]
    if options.quiet:
        return audit.severity, ()
    style, terminal = _style(settings, MAIL_WIDTH), process.on_terminal()
    return audit.severity, report.table(audit, style, _command(options), everything=options.verbose, terminal=terminal)


def _details(settings: Settings, options: argparse.Namespace, run: Run) -> _Result:
    """The containers named on the command line, with all that led to their verdicts."""
    with database.reading(settings) as session:
        log, containers = _begin(session, settings, options, run)
        chosen = _select(session, containers, options, settings)
        audit = auditor.details(log, chosen, settings, database.name(settings))
    if options.json:
        return audit.severity, [json_report.as_json(audit, VERSION, detailed=True)]
    return audit.severity, () if options.quiet else report.details(audit, _style(settings))


def _history(settings: Settings, options: argparse.Namespace, run: Run) -> _Result:
    """The past of every container over a period, by the rule of the present."""
    with database.reading(settings) as session:
        log, containers = _begin(session, settings, options, run)
        try:
            period = history.parse_period(options.history, log.now, settings.db_timezone)
        except ValueError as error:
            raise AuditError(*str(error).split(": ", 1)) from None
        if period.end < log.now:
            log = LogOfSite(session, log.rules, period.end, asked_for=True)
        if options.all:
            containers = containers + auditor.deleted_containers(session, settings, period.start)
        if options.containers:
            containers = _select(session, containers, options, settings)
        past = auditor.look_back(log, containers, period)
        if options.csv:
            return 0, _harmless(list(history_report.history_csv(past, period, settings.db_timezone)))
        # only the page shows stretches, which hold every failed run
        histories = [found if options.html else replace(found, stretches=()) for found, _ in past]
    if options.json:
        return 0, [history_report.history_json(histories, period)]
    if options.html:
        named = f"named on the command line: {', '.join(options.containers)}" if options.containers else ""
        population = named or ("with those deleted in the period" if options.all else "")
        facts = history_page.facts(settings, database.name(settings), VERSION, datetime.now(UTC), population)
        page = history_page.history_page(histories, period, facts).encode()
        textfile.write(Path(options.html), page, 0o644)
        return 0, [f"{hashlib.sha256(page).hexdigest()}  {options.html}"]
    if options.quiet:
        return 0, ()
    return 0, history_report.history_table(histories, period, database.name(settings), _style(settings))


def _begin(
    session: Session, settings: Settings, options: argparse.Namespace, run: Run
) -> tuple[LogOfSite, list[Container]]:
    """Read the clock and the containers."""
    at = _moment(options.at, settings)
    asked = datetime.now(UTC)
    now = admin_db.read_clock(session)
    run.clock_skew = (asked + (datetime.now(UTC) - asked) / 2 - now).total_seconds()
    containers = auditor.active_containers(session, settings)
    return LogOfSite(session, settings.rules, at or now, asked_for=at is not None), containers


def _select(
    session: Session, containers: list[Container], options: argparse.Namespace, settings: Settings
) -> list[Container]:
    """The containers that the command line names. Raises `AuditError` for a name that fits none."""
    try:
        return selection.select(containers, options.containers)
    except ValueError:
        deleted = auditor.deleted_containers(session, settings)
    try:
        return selection.select(containers, options.containers, deleted, settings.db_timezone)
    except ValueError as error:
        raise AuditError(*str(error).split(": ", 1)) from None


def _moment(text: str | None, settings: Settings) -> datetime | None:
    """The moment of --at, aware UTC."""
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(re.sub(r"[Zz]$", "+00:00", text.strip()))
        if not 1971 <= moment.year <= 8999:
            raise ValueError
    except ValueError:
        raise AuditError(f"--at {text} is not a time", "use ISO 8601, such as 2026-03-14T07:00") from None
    return moment.astimezone(UTC) if moment.tzinfo else utc_from_local(moment, settings.db_timezone)


def _exposition(audit: Audit, settings: Settings) -> bytes:
    return metrics.exposition(metrics.audit_families(audit, settings.legacy_metrics), settings.site)


def _harmless(lines: Iterable[str]) -> Iterator[str]:
    """Lines for programs, byte for byte, in UTF-8; but a terminal must not obey what is in them."""
    if not process.on_terminal():
        process.print_utf8()
    for line in lines:
        if process.on_terminal():
            line = "\n".join(printable.spell_out(part.removesuffix("\r")) for part in line.split("\n"))
        yield line


def _style(settings: Settings, width: int = 80) -> printable.Style:
    """How to print: as the terminal wants it, or in lines of `width` columns where there is none."""
    terminal = process.on_terminal()
    colour = terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") not in (None, "dumb")
    width = shutil.get_terminal_size().columns if terminal else width
    unicode = (getattr(sys.stdout, "encoding", None) or "ascii").lower().replace("-", "").startswith("utf")
    return printable.Style(settings.db_timezone, max(width, 60), colour, ascii=not unicode)


def _command(options: argparse.Namespace) -> str:
    """The command that started this program, as it can be pasted into a shell."""
    here = os.path.exists(PROGRAM.name) and os.path.samefile(PROGRAM.name, PROGRAM)
    words = ["./backup_audit.py" if here else str(PROGRAM)]
    if options.config != DEFAULT_CONFIG:
        words += ["--config", str(options.config)]
    return shlex.join(words)


# --- Errors ----------------------------------------------------------------------------------------------


def _describe(error: Exception) -> str:
    """What kept the audit from being done."""
    if isinstance(error, AuditError):
        return str(error)
    return f"unexpected {type(error).__name__} ({error}): please report it, with what --debug prints"


def _complain(options: argparse.Namespace, *problems: str) -> int:
    if options.debug:
        for line in traceback.format_exc().splitlines():
            process.print_error(printable.spell_out(printable.mask(line)))
    for problem in problems:
        process.print_error(f"backup_audit: {printable.one_line(problem)}")
    return NOT_DONE


# --- The command line ------------------------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are one line, and whose exit status is ours."""

    def error(self, message: str) -> NoReturn:
        """Complain about bad usage on one line, and exit with status 3."""
        process.print_error(f"backup_audit: {printable.one_line(message)}: see backup_audit.py --help")
        self.exit(NOT_DONE)

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        """Exit with this status, or with 3 if what was printed cannot be written."""
        try:
            process.print_lines(())
        except OSError:
            status = NOT_DONE
        sys.exit(status)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="backup_audit.py",
        description="Check that every database container of a DB4Sci site has the backup it was promised.",
        epilog="Exit status: 0 all well, 1 warning, 2 critical, 3 the audit could not be done.",
    )
    add = parser.add_argument
    add("containers", nargs="*", metavar="CONTAINER", help="show these in detail: names, c_ids or patterns ('lab-*')")
    add("--config", type=Path, default=DEFAULT_CONFIG, metavar="FILE", help="settings (default: mydb_config.py here)")
    add("--at", metavar="TIME", help="the audit as of that moment (ISO 8601; without offset: in db_timezone)")
    add("--output", metavar="FILE", help="write the textfile there instead; - is stdout")
    add("--json", action="store_true", help="print the report as JSON")
    add(
        "--history",
        metavar="DAYS|PERIOD",
        help="the last DAYS (1 to 999), or 2026, 2026-Q1, 2026-03, 2026-03-01..2026-03-31",
    )
    add("--csv", action="store_true", help="with --history: one row a container and day")
    add("--html", metavar="FILE", help="with --history: write a page to file as evidence")
    add("--all", action="store_true", help="with --history: also containers deleted in the period")
    talk = parser.add_mutually_exclusive_group()
    talk.add_argument("-v", "--verbose", action="store_true", help="list all containers")
    talk.add_argument("-q", "--quiet", action="store_true", help="print nothing but errors")
    add("--debug", action="store_true", help="show the traceback of an error")
    add("--check-config", action="store_true", help="check settings, connection and files step by step, and stop")
    add("--version", action="version", version=f"Backup Audit {VERSION}")
    options = parser.parse_args(argv)
    problem = _bad_usage(options)
    if problem:
        parser.error(problem)
    return options


def _bad_usage(options: argparse.Namespace) -> str:
    if options.output == "" or options.html == "":
        return "--output and --html need the name of a file"
    if options.output and options.containers:
        return "--output goes with the full audit, not with CONTAINER"
    if options.output == "-" and options.json:
        return "--output - and --json both want stdout"
    if options.history is None and (options.csv or options.html or options.all):
        return "--csv, --html and --all go with --history"
    if options.history is not None and (
        options.output or (options.csv, options.json, bool(options.html)).count(True) > 1
    ):
        return "--history prints one of table, --json, --csv and --html, and writes no textfile"
    return ""


if __name__ == "__main__":
    process.obey_signals()
    sys.exit(main())
