"""Words, ages and times for people: plain sentences from verdicts, harmless to a terminal, without passwords.

Whatever comes from the database reaches a terminal only through this module. It decides nothing and prints nothing.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, tzinfo
from typing import TYPE_CHECKING

from audit import messages
from audit.policy import DAY, HOUR, LONG_AGO, UTC, Container, Run, Status, Suspicion, Verdict, creation

if TYPE_CHECKING:  # types alone: who prints an error needs no SQLAlchemy
    from audit.auditor import Finding
    from audit.history import Period
    from audit.log import IgnoredRows

LONGEST = 4_000
"""How many characters of a text are looked at to put it on one line."""
NAME_LENGTH = 40
MESSAGE_LENGTH = 200
DETAILED_MESSAGE_LENGTH = 1_000
RUNS_SHOWN = 10
"""How many runs the details of a container show."""
NAMED = 3
"""How many names a sentence lists."""

NOT_JUDGED = {Status.EXEMPT: "backups disabled", Status.NO_POLICY: "no valid backup policy"}
"""Why a history does not judge a container."""
_DOTS = "..."
_MASKED = "*****"
_COLOURS = {0: "32", 1: "33", 2: "31;1"}
_SECRET_VALUE = r"""(\\{0,4}"[^"]*"?|\\{0,4}'[^']*'?|(?!(?:YES|NO)\b)\S+)"""  # noqa: S105  # finds them
# every repetition is limited or ends the match, so that the time grows with the length of a text and not its square
_PASSWORDS = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        # password=..., "DB_PASS": "...", PASSWORD '...', but not MySQL's (using password: YES)
        r"""((?:password|passwd|passphrase|pass|pwd|secret|token|access_key|_auth)(?!\w{0,9}fil)\w{0,40}\\{0,4}["']?"""
        rf"""(?:\s{{0,9}}[=:]\s{{0,9}}|\s{{1,9}}(?=["'])))(?!\*){_SECRET_VALUE}""",
        rf"(--password\s{{1,9}}|identified\s(?:with\s\S{{1,60}}\s)?by\s(?:password\s)?)(?!\*){_SECRET_VALUE}",
        r"((?<!\S)-p)([^\s-]\S*)",  # mysqldump's -pSECRET
        r"((?<!\S)-p\s{1,9})(?!\d{1,9}(?!\S))([^\s-]\S*)",  # mongodump's -p SECRET, but not pg_dump's -p 5432
        r"(://[^\s:/@]{0,99}:)(\S{1,200})(?=@)",  # scheme://user:SECRET@host
    )
)
_IGNORED = {
    "future": ("stamped later than now", "db_timezone is probably wrong"),
    "malformed": ("no backup_id, or a state other than start and end", "look at the table backups"),
    "undated": ("no ts", "look at the table backups"),
}


@dataclass(frozen=True)
class Style:
    """How to print for one reader."""

    zone: tzinfo = UTC
    """The zone of times."""
    width: int = 80
    """Characters of a line."""
    colour: bool = False
    ascii: bool = False
    """Whether nothing but ASCII can be printed."""


# --- Harmless ------------------------------------------------------------------------------------------


def one_line(text: str | None) -> str:
    """Text on one line, harmless to a terminal and with passwords masked; the beginning of a very long text."""
    text = (text or "").lstrip()
    folded = " ".join(text[:LONGEST].split())
    if len(text) <= LONGEST:
        return harmless(mask(folded))
    # the end may cut a password in two: with an @ after it, the first half is recognised by every pattern
    return harmless(mask(f"{folded}@").removesuffix("@")) + _DOTS


def harmless(text: str) -> str:
    """Text in which whatever a terminal might obey, or reorder a line for, is spelled out as in Python source."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def mask(text: str) -> str:
    """Text with whatever looks like a password replaced by `*****`."""
    for pattern in _PASSWORDS:
        text = pattern.sub(rf"\1{_MASKED}", text)
    return text


# --- As long as it may be --------------------------------------------------------------------------------


def shorten(text: str, limit: int) -> str:
    """Text of at most `limit` characters; what is cut off is replaced by `...`."""
    return text if len(text) <= limit else text[: limit - len(_DOTS)] + _DOTS


def name(text: str | None) -> str:
    """A name as it is printed: on one line, and cut at 40 characters."""
    return shorten(one_line(text), NAME_LENGTH)


def message(text: str | None, limit: int = MESSAGE_LENGTH) -> str:
    """A message, or any other text of the database, as it is printed."""
    return shorten(one_line(text), limit)


def wrap(text: str, width: int, indent: str = "") -> list[str]:
    """Text in lines of at most `width` characters, each with the indent."""
    return textwrap.wrap(text, width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)


def beside(title: str, text: str, width: int, indent: int = 14) -> Iterator[str]:
    """Text in lines of at most `width` characters, the first behind a title that takes `indent` of them."""
    first, *rest = wrap(text, width, " " * indent) or [" " * indent]
    yield title + first[indent:]
    yield from rest


def paint(text: str, severity: int, style: Style) -> str:
    """Text in the colour of a severity, for a reader who wants colours."""
    return f"\033[{_COLOURS[severity]}m{text}\033[0m" if style.colour else text


def count(number: int, noun: str) -> str:
    """A number of things: `1 container`, `3 containers`."""
    return f"{number} {noun}{'s' * (number != 1)}"


def first_few(names: Sequence[str]) -> str:
    """The first names, and how many more there are: `a, b, c and 4 more`."""
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")


# --- Times ---------------------------------------------------------------------------------------------


def minute(moment: datetime | None, zone: tzinfo) -> str:
    """A moment as people read it: `2026-03-13 18:07 UTC`; `unknown`, or `long ago`."""
    if moment is None:
        return "unknown"
    if _is_long_ago(moment):
        return "long ago"
    return moment.astimezone(zone).strftime("%Y-%m-%d %H:%M %Z")


def _is_long_ago(moment: datetime) -> bool:
    """Whether a moment comes from a creation that is unknown."""
    return moment < LONG_AGO + 366 * DAY


def stamp(moment: datetime | None, zone: tzinfo) -> str:
    """A moment in a column of moments, without the zone: `2026-03-13 18:07`; `-` for none, and for long ago."""
    if moment is None or _is_long_ago(moment):
        return "-"
    return moment.astimezone(zone).strftime("%Y-%m-%d %H:%M")


def iso(moment: datetime | None) -> str | None:
    """A moment for programs: ISO 8601 in UTC, ending in `Z`; None stays None."""
    return None if moment is None else moment.astimezone(UTC).replace(tzinfo=None).isoformat() + "Z"


def age(duration: timedelta | None) -> str:
    """A duration in hours up to two days, then in days: `36.9 h`, `3.2 days`; `-` if that is unknown."""
    if duration is None:
        return "-"
    return f"{_number(duration / HOUR)} h" if duration <= 2 * DAY else f"{_number(duration / DAY)} days"


def duration(duration: timedelta | None) -> str:
    """How long something took: `42 s`, `31 min`, `2.5 h`; `-` if that is unknown."""
    if duration is None:
        return "-"
    seconds = duration.total_seconds()
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{_number(duration / HOUR)} h"


def since(moment: datetime, now: datetime, zone: tzinfo) -> str:
    """A moment and its age: `2026-03-12 18:07 UTC (36.9 h ago)`."""
    ago = f"{age(now - moment)} ago" if moment <= now else f"in {age(moment - now)}"
    return f"{minute(moment, zone)} ({ago})"


def log_begins(period: Period, zone: tzinfo) -> str:
    """When the log begins, or that it has no dated row; an empty text if it begins before a period."""
    begins = period.log_begins
    if begins is None:
        return "The log has no dated row."
    if begins <= period.start:
        return ""
    return f"The log begins {minute(begins, zone)}: nothing before that is known."


def percent(ratio: float | None) -> str:
    """A ratio as `99.9 %`, rounded down: only what is whole is `100.0 %`; `-` without a ratio."""
    if ratio is None:
        return "-"
    return f"{min(int(ratio * 1000), 1000 if ratio == 1 else 999) / 10:.1f} %"


def _number(value: float) -> str:
    return f"{value:,.1f}".removesuffix(".0")


# --- Sentences about a container ------------------------------------------------------------------------


def reason(verdict: Verdict, zone: tzinfo, quote_length: int | None = None) -> str:
    """Why the verdict is what it is, with the figures, and what there is to restore if it is a problem.

    `quote_length` cuts what is quoted of the database; without it that is whole, and not made harmless.
    """
    if verdict.container.deleted:
        return f"deleted; {left_to_restore(verdict, zone)}"
    said = "; ".join(_why(verdict, zone, quote_length))
    return f"{said}; {left_to_restore(verdict, zone)}" if verdict.severity else said


def _why(verdict: Verdict, zone: tzinfo, quote_length: int | None) -> Iterator[str]:
    status, run, success = verdict.status, verdict.concluded, verdict.last_success
    if status is Status.NO_POLICY:
        yield _why_no_policy(verdict.container, quote_length)
    elif verdict.due is None:
        yield "backups disabled (policy Never)"
    elif status is Status.FAILED and run:
        yield f"the run of {_since(run, verdict, zone)} failed: {_quoted(verdict.line, quote_length)}"
        yield from _in_a_row(verdict, zone)
    elif status is Status.STALLED and run:
        usually = f"it usually takes {duration(verdict.typical)}, so " if verdict.typical is not None else ""
        yield f"the run of {_since(run, verdict, zone)} has not ended; {usually}the limit is {age(verdict.limit)}"
        yield from _in_a_row(verdict, zone)
    elif status is Status.UNSURE and success:
        ended = f"the run of {_since(success, verdict, zone)} ended with an"
        yield f"{ended} unrecognised message: {_quoted(verdict.line, quote_length)}"
    elif status is Status.OK and success:
        yield f"backed up {_since(success, verdict, zone)}, next due {minute(verdict.due, zone)}"
    elif status is Status.NEW:
        created = creation(verdict.container, verdict.now)
        yield f"created {since(created, verdict.now, zone)}, first due {minute(verdict.due, zone)}"
    else:
        if status is Status.PAUSED:
            yield f"state is {_quoted(verdict.container.state or 'unknown', quote_length)}"
        if status is Status.RUNNING and verdict.last_run:
            yield f"running since {_since(verdict.last_run, verdict, zone)}"
        yield _overdue(verdict, verdict.due, zone)


def _why_no_policy(container: Container, quote_length: int | None) -> str:
    if not container.has_metadata:
        return "no metadata: the table containers has no row of this container"
    if container.backup_freq is None:
        return "no backup policy: BACKUP_FREQ is missing or not text"
    return f"unknown backup policy '{_quoted(container.backup_freq.strip(), quote_length)}'"


def _in_a_row(verdict: Verdict, zone: tzinfo) -> Iterator[str]:
    if verdict.failures > 1:
        yield f"{verdict.failures} in a row"
    if verdict.last_run and verdict.last_run is not verdict.concluded:
        yield f"running again since {minute(verdict.last_run.started, zone)}"


def _overdue(verdict: Verdict, due: datetime, zone: tzinfo) -> str:
    container = verdict.container
    if verdict.last_success or creation(container, verdict.now) > LONG_AGO:
        return f"{verdict.policy} backup overdue by {age(verdict.now - due)}"
    if container.is_job:
        return "its first run" if verdict.last_run else "never run"
    if container.created is None:
        return f"{verdict.policy} backup overdue, creation unknown"
    created = minute(container.created, zone)
    return f"{verdict.policy} backup overdue, creation lies in the future ({created})"


def left_to_restore(verdict: Verdict, zone: tzinfo) -> str:
    """What there is to restore: `last good backup 2026-03-12 18:07 UTC (36.9 h ago)`, or that there is none.

    For an unsure container that is the last backup known to be good.
    """
    run, is_unsure = verdict.restorable, verdict.status is Status.UNSURE
    if run is None:
        return "no known good backup in the part of the log that was read" if is_unsure else "no good backup in the log"
    doubt = "" if run is verdict.known_good else ", whose message is unrecognised"
    return f"last {'known ' * is_unsure}good backup {_since(run, verdict, zone)}{doubt}"


def exception(finding: Finding) -> str:
    """Until when a problem is accepted, or was, and why; nothing without an exception."""
    if finding.exception is None:
        return ""
    when = "accepted until" if finding.is_accepted else "ended on"
    return f"{when} {finding.exception.until} ({message(finding.exception.reason)})"


def suspicion(verdict: Verdict) -> str:
    """What is odd about the last good backup; nothing if all is well with it."""
    if verdict.suspicion is None or verdict.last_success is None:
        return ""
    if verdict.suspicion is Suspicion.ENDED_BEFORE_START:
        return "the last good backup ended before it started, by its stamps: its duration is unknown"
    return f"took {duration(verdict.last_success.duration)}, typically {duration(verdict.typical)}: check the dump"


def expiry(finding: Finding, zone: tzinfo) -> str:
    """When the last good dump expires, or expired; nothing if nobody knows."""
    verdict = finding.verdict
    if verdict.kept_until is None or verdict.last_success is None:
        return ""
    good = minute(verdict.last_success.started, zone)
    until = since(verdict.kept_until, verdict.now, zone)
    if verdict.kept_until <= verdict.now:
        return f"the last good dump, of {good}, expired {until}: nothing is left to restore"
    return f"the last good dump, of {good}, expires {until}"


def setting(line: str, container: str) -> str:
    """The setting that makes an unrecognised line fine, as one line of Python to be pasted.

    Empty for a line that holds a password.
    """
    return f"success_patterns = [r'{messages.pattern_for(line, container)}']" if mask(line) == line else ""


def ignored(rows: IgnoredRows, *reasons: str) -> Iterator[str]:
    """A sentence for each of these reasons (by default all) for which log rows were ignored."""
    for why in reasons or _IGNORED:
        number, ids = rows.counts[why], rows.newest.get(why, [])
        if number:
            what, hint = _IGNORED[why]
            newest = f"{'newest ' * (number > len(ids))}id{'s' * (len(ids) != 1)} {', '.join(map(str, ids))}"
            yield f"{count(number, f'{why} log row')} ignored ({what}; {newest}): {hint}."


def _since(run: Run, verdict: Verdict, zone: tzinfo) -> str:
    return since(run.started, verdict.now, zone)


def _quoted(text: str | None, length: int | None) -> str:
    return mask(text or "") if length is None else message(text, length)
