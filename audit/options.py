"""The command line: its options, and the moment, the period and the containers that they name."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from calendar import monthrange
from collections.abc import Callable, Iterable, Sequence
from datetime import date, datetime, time, tzinfo
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NoReturn

from audit import history, terminal, text
from audit.errors import AuditError
from audit.launch import NOT_DONE
from audit.policy import DAY, UTC, Container, utc_from_local

VERSION = "3.0.0"
DEFAULT_CONFIG = Path(__file__).resolve().parent.parent / "mydb_config.py"

_YEARS = range(1971, 9000)
"""The years that times and time zones can be worked with."""
_MOST_DAYS = 3660
_SUGGESTED = 3
_COMPARED = 100
"""How many characters of a name count for its similarity to another."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are one line, and whose exit status is ours."""

    def error(self, message: str) -> NoReturn:
        """Complain about bad usage on one line, and exit with status 3."""
        terminal.print_error(f"backup_audit: {text.one_line(message)}: see backup_audit.py --help")
        self.exit(NOT_DONE)

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        """Exit with this status, or with 3 if what was printed cannot be written."""
        try:
            terminal.print_lines(())
        except OSError:
            status = NOT_DONE
        sys.exit(status)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options of a command line. Raises `SystemExit` for --help, --version and bad usage."""
    parser = Parser(
        prog="backup_audit.py",
        description="Check that every database container of a DB4Sci site has the backup that its owner chose.",
        epilog="Exit status: 0 all well, 1 warning, 2 critical, 3 the audit could not be done.",
    )
    add = parser.add_argument
    add("containers", nargs="*", metavar="CONTAINER", help="show these in detail: names, c_ids or patterns ('lab-*')")
    settings = "settings (default: mydb_config.py beside this script)"
    add("--config", type=Path, default=DEFAULT_CONFIG, metavar="FILE", help=settings)
    add("--at", metavar="TIME", help="the audit as of that moment (ISO 8601; without offset: in timezone)")
    add("--output", metavar="FILE", help="write the textfile there instead; - is stdout")
    add("--json", action="store_true", help="print the report as JSON")
    periods = "judge the past: the last DAYS (1 to 999), or 2026, 2026-Q1, 2026-03, 2026-03-01..2026-03-31"
    add("--history", metavar="DAYS|PERIOD", help=periods)
    add("--csv", action="store_true", help="with --history: one row a container and day")
    add("--html", metavar="FILE", help="with --history: write a page of evidence to FILE")
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


def parse_time(word: str, zone: tzinfo) -> datetime:
    """The moment (aware UTC) that --at names; without an offset it is local time of `zone`. Raises `AuditError`."""
    try:
        found = datetime.fromisoformat(re.sub(r"[Zz]$", "+00:00", word.strip()))
        if found.year not in _YEARS:
            raise ValueError
    except ValueError:
        raise AuditError(f"--at {word} is not a time", "use ISO 8601, such as 2026-03-14T07:00") from None
    return found.astimezone(UTC) if found.tzinfo else utc_from_local(found, zone)


def parse_period(word: str, now: datetime, zone: tzinfo) -> history.Period:
    """The period that a number of days, a year, a quarter, a month or two dates mean, cut off at `now`.

    Raises `AuditError`.
    """
    word = word.strip()
    if re.fullmatch("[0-9]{1,3}", word) and int(word):
        return history.last_days(int(word), now, zone)
    try:
        first, last = _dates(word)
    except ValueError:
        accepted = "use a number of days (999 at most), 2026, 2026-Q1, 2026-03 or 2026-03-01..2026-03-31"
        raise AuditError(f"--history {word} is not a period", accepted) from None
    start, end = (utc_from_local(datetime.combine(day, time()), zone) for day in (first, last + DAY))
    if start >= end:
        raise AuditError(f"--history {word} contains no time", "put the earlier day first")
    if start >= now:
        raise AuditError(f"--history {word} has not begun", "name a period that has")
    if min(end, now) - start > _MOST_DAYS * DAY:
        raise AuditError(f"--history {word} is too long", f"name a period of {_MOST_DAYS} days at most")
    return history.period_of(start, min(end, now), word, now, zone)


def _dates(word: str) -> tuple[date, date]:
    """The first and the last day of a period. Raises `ValueError`."""
    if dates := re.fullmatch(r"([0-9]{4}-[0-9]{2}-[0-9]{2})\.\.([0-9]{4}-[0-9]{2}-[0-9]{2})", word):
        first, last = date.fromisoformat(dates[1]), date.fromisoformat(dates[2])
    elif months := re.fullmatch(r"([0-9]{4})(?:-([0-9]{2})|-[Qq]([1-4]))?", word):
        year, month, quarter = (int(number or 0) for number in months.groups())
        begin = month or max(3 * quarter - 2, 1)
        end = begin if months[2] else begin + 2 if quarter else 12
        first, last = date(year, begin, 1), date(year, end, monthrange(year, end)[1])
    else:
        raise ValueError
    if first.year not in _YEARS or last.year not in _YEARS:
        raise ValueError
    return first, last


# --- Whom it names ---------------------------------------------------------------------------------------


def select(
    containers: Sequence[Container],
    words: Iterable[str],
    read_deleted: Callable[[], Sequence[Container]] = tuple,
    at: datetime | None = None,
) -> list[Container]:
    """The containers that the words mean, each once: names, `c_id`s or shell patterns, in this order of preference.

    A word that means no active container may mean a deleted one (oldest first), the newest of several with that name.
    As of a moment `at`, one that existed then is meant before one that was made later. Raises `AuditError` for a word
    that means none.
    """
    chosen: dict[Container, None] = {}
    deleted: Sequence[Container] | None = None
    for word in words:
        found = _meant(_existing_at(at, containers), word)
        if not found:
            deleted = read_deleted() if deleted is None else deleted  # one statement, however many words
            known = _existing_at(at, deleted)
            newest = list({container.name: container for container in known}.values())
            found = _meant(newest, word) or [container for container in known if str(container.c_id) == word]
        found = found or _meant(containers, word)
        if not found:
            raise AuditError(*_unknown(word, [*containers, *(deleted or ())]))
        chosen |= dict.fromkeys(found)
    return list(chosen)


def _existing_at(at: datetime | None, containers: Sequence[Container]) -> list[Container]:
    return [one for one in containers if at is None or one.created is None or one.created <= at]


def _meant(containers: Sequence[Container], word: str) -> list[Container]:
    found = [container for container in containers if container.name == word]
    found = found or [container for container in containers if str(container.c_id) == word]
    if not found and _is_pattern(word):
        found = [container for container in containers if fnmatchcase(container.name, word)]
    return found


def _is_pattern(word: str) -> bool:
    return re.search(r"[*?[]", word) is not None


def _unknown(word: str, containers: Iterable[Container]) -> tuple[str, str]:
    close = _close({container.name for container in containers}, word)
    names = " or ".join(text.name(name) for name in close)
    problem = f"no container {'matches' if _is_pattern(word) else 'is called'} {text.name(word)}"
    return problem, f"did you mean {names}?" if close else "-v lists all names"


def _close(names: Iterable[str], word: str) -> list[str]:
    """The names that a mistaken word probably means, letter case aside: beginnings before what is alike."""
    wanted = word.casefold()[:_COMPARED]
    folded = {name: name.casefold()[:_COMPARED] for name in sorted(names)}
    equal = [name for name, each in folded.items() if each == wanted or fnmatchcase(each, wanted)]
    beginning = [name for name, each in folded.items() if wanted and each.startswith(wanted)]
    alike = difflib.get_close_matches(wanted, folded.values(), n=_SUGGESTED)
    return (equal or beginning or [name for name, each in folded.items() if each in alike])[:_SUGGESTED]
