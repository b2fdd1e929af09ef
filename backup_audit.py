#!/usr/bin/env python3
"""Backup Audit: does every database container of a DB4Sci site have the backup that its owner chose?

Reads the backup log in DB4Sci's administrative database, judges every container, writes the answer as a
Prometheus textfile, and prints what needs attention. It never writes to the database, and it takes no
backup itself. Exit status: 0 all well, 1 the worst verdict is a warning, 2 it is critical, 3 the audit
could not be done.
"""

import sys

try:
    from audit import launch

    if __name__ == "__main__":
        launch.require(__file__)

    from audit import options, terminal

    if __name__ == "__main__":
        options.parse(sys.argv[1:])  # --help, --version and bad usage end here, before the large imports

    import argparse
    import hashlib
    import os
    import shlex
    import shutil
    import time
    import traceback
    from collections.abc import Iterable, Iterator, Sequence
    from dataclasses import dataclass, replace
    from datetime import datetime
    from pathlib import Path

    from sqlalchemy.orm import Session

    from audit import auditor, database, metrics, text, textfile
    from audit.auditor import Audit
    from audit.errors import AuditError
    from audit.history import ContainerHistory, Period
    from audit.launch import NOT_DONE
    from audit.log import RowReader, SiteLog
    from audit.options import DEFAULT_CONFIG, VERSION
    from audit.policy import UTC, Container, Moment
    from audit.settings import Settings, SettingsError, Textfile, load_settings
except (ImportError, OSError, SyntaxError) as error:  # only a part of the program is here, or readable
    sys.stderr.write(f"backup_audit: the installation is broken ({error}): install all of it again, make clean venv\n")
    sys.exit(3)  # Python's own 1 would mean "warning"

PROGRAM = Path(__file__).resolve()
MAIL_WIDTH = 60
"""Columns of the report where there is no terminal, as in cron's mail: what a phone shows."""

_Result = tuple[int, Iterable[str]]
"""An exit status, and the lines to print."""


@dataclass
class Execution:
    """What the run file tells of this execution of the program."""

    writes_run_file: bool
    """Whether it is the plain audit, which alone writes `prometheus_file` and the run file."""
    textfile: Textfile | None = None
    clock_skew: float | None = None

    def record(self, status: int, duration: float) -> None:
        """Write the run file. Raises `AuditError`."""
        if not self.writes_run_file or self.textfile is None:
            return
        families = metrics.execution_families(status != NOT_DONE, time.time(), duration, self.clock_skew, VERSION)
        path, mode = self.textfile.run_file, self.textfile.mode
        owner = textfile.owner(path)
        if status == NOT_DONE and os.geteuid() == 0 and owner not in (None, "root"):
            # root has no password file, and only tried the command: the audit itself is not broken
            told = f"{path} belongs to {owner} and stays as it is: run the audit with sudo -u {owner}"
            terminal.print_error(f"backup_audit: {text.one_line(told)}")
            return
        textfile.overwrite(path, metrics.exposition(families, self.textfile.site), mode)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (without the program's name) and return the exit status."""
    started = time.monotonic()
    try:
        args = options.parse(argv)
    except SystemExit as exit_:
        return int(exit_.code or 0)
    asked = (args.at, args.output, args.history)
    execution = Execution(writes_run_file=not (args.containers or args.check_config) and asked == (None, None, None))
    try:
        status = _do_or_complain(args, execution)
        terminal.ignore_signals()
    except KeyboardInterrupt as error:
        status = _complain(args, f"stopped by {str(error) or 'SIGINT'}: run it again")
    try:
        execution.record(status, time.monotonic() - started)
    except AuditError as error:
        if status != NOT_DONE:  # else one complaint is enough
            status = _complain(args, str(error))
    return status


def _do_or_complain(args: argparse.Namespace, execution: Execution) -> int:
    """Do what was asked and return the exit status: 3, after a complaint, for whatever goes wrong."""
    try:
        status, lines = _do(args, execution)
        try:
            terminal.print_lines(lines)
        except OSError as error:
            raise AuditError(f"cannot print the report ({error.strerror})", "check where stdout goes") from error
        return status
    except SettingsError as error:
        execution.textfile = error.textfile
        return _complain(args, *error.problems)
    except AuditError as error:
        return _complain(args, str(error))
    except Exception as error:  # noqa: BLE001  # 1, Python's own status, would mean "warning"
        problem = f"unexpected {type(error).__name__} ({error}): please report it, with what --debug prints"
        return _complain(args, problem)


def _do(args: argparse.Namespace, execution: Execution) -> _Result:
    """Do what was asked."""
    if args.check_config:
        from audit.check_config import check_config

        return check_config(args.config)
    settings = load_settings(args.config)
    execution.textfile = settings.textfile
    at = None if args.at is None else options.parse_time(args.at, settings.rules.zone)
    with database.reading(settings.connection) as session:
        now, execution.clock_skew = database.compare_clocks(session)
        moment = Moment.by_clock(now) if at is None else Moment.as_of(at)
        containers = auditor.active_containers(session, settings)
        if args.history is not None:
            return _history(session, settings, args, moment, containers)
        log = _log(session, settings, moment, keeps_messages=args.json)
        if args.containers:
            audit = auditor.details(log, _select(session, containers, args, at), settings)
            if not audit.findings:
                raise AuditError(f"no such container existed at {args.at}", "name a later moment with --at")
        else:
            audit = auditor.audit(log, containers, settings)
    return (_report_details if args.containers else _publish_and_report)(audit, settings, args)


def _log(session: Session, settings: Settings, moment: Moment, keeps_messages: bool = False) -> SiteLog:
    return SiteLog(session, settings.rules, RowReader(moment, settings.db_timezone, settings.patterns, keeps_messages))


def _select(
    session: Session, containers: Sequence[Container], args: argparse.Namespace, at: datetime | None
) -> list[Container]:
    """The containers that the command line names."""
    return options.select(containers, args.containers, lambda: auditor.deleted_containers(session), at)


# --- The audit of now ------------------------------------------------------------------------------------


def _publish_and_report(audit: Audit, settings: Settings, args: argparse.Namespace) -> _Result:
    """Write the textfile of the full audit, and report."""
    families = metrics.audit_families(audit, settings.legacy_metrics)
    if args.output == "-":
        exposition = metrics.exposition(families, settings.textfile.site).decode()
        return audit.severity, _for_programs(exposition.removesuffix("\n").split("\n"))
    if args.output or not args.at:
        path = Path(args.output) if args.output else settings.textfile.path
        textfile.write(path, metrics.exposition(families, settings.textfile.site), settings.textfile.mode)
    if args.json:
        return audit.severity, _document(audit)
    if args.quiet:
        return audit.severity, ()
    from audit.reports import site

    lines = site.render(
        audit, _style(settings, MAIL_WIDTH), _command(args), args.verbose, terminal=terminal.is_terminal()
    )
    return audit.severity, lines


def _report_details(audit: Audit, settings: Settings, args: argparse.Namespace) -> _Result:
    """The containers named on the command line, with all that led to their verdicts."""
    if args.json:
        return audit.severity, _document(audit, detailed=True)
    from audit.reports import details

    return audit.severity, () if args.quiet else details.render(audit, _style(settings))


def _document(audit: Audit, detailed: bool = False) -> Iterable[str]:
    from audit.reports import document

    return [document.render(audit, VERSION, detailed)]


# --- The past --------------------------------------------------------------------------------------------


def _history(
    session: Session, settings: Settings, args: argparse.Namespace, moment: Moment, containers: list[Container]
) -> _Result:
    """The past of every container over a period, by the rule of the present."""
    period = options.parse_period(args.history, moment.now, settings.rules.zone)
    log = _log(session, settings, Moment.as_of(period.end) if period.end < moment.now else moment)
    period = replace(period, log_begins=log.begins())
    if args.all:
        containers = containers + auditor.deleted_containers(session, log.log_time_before(period.start))
    if args.containers:
        containers = _select(session, containers, args, period.end if log.moment.hides_later else None)
    found = auditor.histories(log, containers, period)
    # only the page shows the stretches, which hold every failed run
    past = list(found if args.html else (replace(one, stretches=()) for one in found))
    if args.csv:
        from audit.reports import history_csv

        return 0, _for_programs(history_csv.render(past, period))
    if args.html:
        return _evidence(past, period, settings, args, log)
    if args.json:
        from audit.reports import history_json

        return 0, [history_json.render(past, period)]
    if args.quiet:
        return 0, ()
    from audit.reports import history_table

    lines = list(history_table.render(past, period, settings.connection.display_name, _style(settings)))
    if terminal.is_terminal() and len(lines) >= shutil.get_terminal_size().lines:
        lines.append("The worst come first: to see them, add | less")
    return 0, lines


def _evidence(
    past: list[ContainerHistory], period: Period, settings: Settings, args: argparse.Namespace, log: SiteLog
) -> _Result:
    """Write the page of evidence, and print its digest."""
    from audit.reports import history_page

    population = "all active containers" + (" and those deleted in the period" if args.all else "")
    if args.containers:
        population = f"named on the command line: {', '.join(args.containers)}"
    facts = history_page.PageFacts(settings, VERSION, datetime.now(UTC), log.ignored.counts, population)
    page = history_page.render(past, period, facts).encode()
    textfile.write(Path(args.html), page, 0o666 & ~terminal.umask())
    return 0, [f"{hashlib.sha256(page).hexdigest()}  {args.html}"]


# --- How it is printed -----------------------------------------------------------------------------------


def _for_programs(lines: Iterable[str]) -> Iterator[str]:
    """Lines for programs, byte for byte, in UTF-8; but a terminal must not obey what is in them."""
    if not terminal.is_terminal():
        terminal.print_utf8()
        yield from lines
        return
    for line in lines:
        yield "\n".join(text.harmless(part.removesuffix("\r")) for part in line.split("\n"))


def _style(settings: Settings, width: int = 80) -> text.Style:
    """How to print: as the terminal wants it, or in lines of `width` columns where there is none."""
    on_terminal = terminal.is_terminal()
    colour = on_terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") not in (None, "dumb")
    width = shutil.get_terminal_size().columns if on_terminal else width
    unicode = (getattr(sys.stdout, "encoding", None) or "ascii").lower().replace("-", "").startswith("utf")
    return text.Style(settings.rules.zone, max(width, 60), colour, ascii=not unicode)


def _command(args: argparse.Namespace) -> str:
    """The command that started this program, as it can be pasted into a shell; from a mail, by root."""
    words, config = [str(PROGRAM)], args.config.absolute()
    user = terminal.user_name(os.geteuid())
    if terminal.is_terminal():
        here = os.path.exists(PROGRAM.name) and os.path.samefile(PROGRAM.name, PROGRAM)
        words, config = ["./backup_audit.py"] if here else words, args.config
    elif os.geteuid() != 0 and not user.isdecimal():  # sudo takes no user without a name
        words = ["sudo", "-u", user, *words]
    if args.config != DEFAULT_CONFIG:
        words += ["--config", str(config)]
    return shlex.join(words)


def _complain(args: argparse.Namespace, *problems: str) -> int:
    if args.debug:
        for line in traceback.format_exc().splitlines():
            terminal.print_error(text.harmless(text.mask(line)))
    for problem in problems:
        terminal.print_error(f"backup_audit: {text.one_line(problem)}")
    return NOT_DONE


if __name__ == "__main__":
    terminal.prepare()
    sys.exit(main())
