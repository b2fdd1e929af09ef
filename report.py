"""From verdicts to what people and programs read: the table, a container's details, JSON (SPEC section 4).

This module decides nothing and prints nothing; it gives back text. Whatever came out of the database is
made harmless first: control characters and escape sequences are spelt out, passwords are masked.
"""

from __future__ import annotations

import csv
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, tzinfo
from functools import lru_cache
from itertools import accumulate, pairwise, takewhile
from typing import Any

from history import Coverage, PastRun
from policy import (
    HOUR,
    UTC,
    Audit,
    Outcome,
    Run,
    Status,
    Verdict,
    by_start,
    from_microseconds,
    stamp,
)

RUNS_SHOWN = 10
SEVERITIES = ("ok", "warning", "critical")
_COLOURS = {0: "32", 1: "33", 2: "31;1"}
_EPOCH = datetime(1970, 1, 1)
_MERE_TIME = re.compile(r"[0-9][0-9_:.-]*")
"""A backup_id that needs no mask and no quotes, as most are."""
_INDENT = " " * 10
_WORST_FIRST = (
    *(Status.MISSED, Status.FAILED, Status.STALLED, Status.NO_POLICY),
    *(Status.LATE, Status.PAUSED, Status.RUNNING),
    *(Status.NEW, Status.OK, Status.EXEMPT),
)
_SECRET_VALUE = r"""(\\{0,4}"[^"]*"?|\\{0,4}'[^']*'?|(?!(?:YES|NO)\b)\S+)"""  # noqa: S105  # finds them
# every repetition has a limit: the time must not grow with the square of a long name
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


@dataclass(frozen=True)
class Style:
    """How to print for one reader: the zone of times, the width of a line, whether colours are wanted,
    whether long names are cut to fit, and whether only ASCII can be printed.
    """

    zone: tzinfo = UTC
    width: int = 80
    colour: bool = False
    cut: bool = False
    ascii: bool = False


def clean(text: str | None) -> str:
    """Text on one line, with passwords masked and everything that a terminal might obey spelt out."""
    return spell_out(mask(" ".join((text or "").split())))


def spell_out(text: str) -> str:
    """Text in which everything that a terminal might obey is spelt out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def mask(text: str) -> str:
    """Text with whatever looks like a password replaced by `*****`."""
    for pattern in _PASSWORDS:
        text = pattern.sub(r"\1*****", text)
    return text


def table(audit: Audit, style: Style, database: str, window: timedelta, everything: bool = True) -> Iterator[str]:
    """The lines of the report: what concerns the whole site, the containers (worst first), the summary.

    Without `everything` only the containers that need attention are listed, and nothing at all comes
    back where there is nothing to say.
    """
    listed = [verdict for verdict in _sorted(audit.verdicts) if everything or verdict.severity > 0 or verdict.note]
    alarms = list(_site_alarms(audit, style, window))
    if not (everything or listed or alarms):
        return
    for alarm in alarms:
        yield from (_paint(line, 2, style) for line in _wrap(alarm, style.width))
    yield f"Backup Audit of {clean(database)}, {stamp(audit.now, style.zone)}"
    if listed:
        yield ""
        yield from _rows(listed, audit.now, style)
    yield ""
    for line in (*_ignored(audit), summary(audit)):
        yield from _wrap(line, style.width)


def summary(audit: Audit) -> str:
    """The last line of the report: containers by status, worst first."""
    counts = audit.counts()
    parts = [f"{counts[status]} {status.value}" for status in _WORST_FIRST if counts[status]]
    number = len(audit.verdicts)
    return f"{number} container{'s' * (number != 1)}: {', '.join(parts) or 'nothing to audit'}"


def _site_alarms(audit: Audit, style: Style, window: timedelta) -> Iterator[str]:
    if audit.silent(window):
        last = f"since {stamp(audit.newest_row, style.zone)}" if audit.newest_row else "ever"
        yield f"The whole site logged no backup run {last}: DB4Sci's own backup job has probably not run."
    if audit.future:
        yield f"{_rows_of(audit.future)} stamped in the future and ignored: db_timezone is probably wrong."


def _ignored(audit: Audit) -> Iterator[str]:
    if audit.malformed:
        yield (
            f"{_rows_of(audit.malformed)} malformed and ignored (no ts, no backup_id, or a state other than"
            " start and end): see the table backups."
        )


def _rows_of(count: int) -> str:
    return f"{count} recent log row{'s are' if count != 1 else ' is'}"


def _sorted(verdicts: Iterable[Verdict]) -> list[Verdict]:
    def key(verdict: Verdict) -> tuple[int, bool, int, datetime, str]:
        due = verdict.due or datetime.max.replace(tzinfo=UTC)
        return -verdict.severity, not verdict.note, _WORST_FIRST.index(verdict.status), due, verdict.container.name

    return sorted(verdicts, key=key)


def _rows(verdicts: list[Verdict], now: datetime, style: Style) -> Iterator[str]:
    names = [clean(verdict.container.name) for verdict in verdicts]
    name_width = max(9, *(_columns(name) for name in names))
    if style.cut:
        name_width = min(name_width, max(9, style.width - 58))
    zone = now.astimezone(style.zone).tzname() or "local"
    due_title = f"DUE ({zone})"
    yield f"{'STATUS':9} {'C_ID':>5} {_fit('CONTAINER', name_width)} {'POLICY':7} {'LAST GOOD BACKUP':16} {due_title}"
    for name, verdict in zip(names, verdicts, strict=True):
        c_id = "-" if verdict.container.c_id is None else str(verdict.container.c_id)
        success = _minute(verdict.last_success.started if verdict.last_success else None, style.zone)
        due = _minute(verdict.due, style.zone)
        status = _paint(f"{verdict.status.value:9}", verdict.severity, style)
        policy = _fit(clean(verdict.policy) or "-", 7)
        yield f"{status} {c_id:>5} {_fit(name, name_width)} {policy} {success:16} {due:16}".rstrip()
        if verdict.severity > 0:
            yield from _wrap(clean(verdict.reason), style.width, _INDENT)
        if verdict.note:
            yield from _wrap(clean(verdict.note), style.width, _INDENT)


def _wrap(text: str, width: int, indent: str = "") -> Iterator[str]:
    """Text in lines of at most so many columns of a terminal (`textwrap` would count characters)."""
    room = width - len(indent)
    line, taken = "", 0
    for piece in (piece for word in text.split() for piece in _pieces(word, room)):
        columns = _columns(piece)
        if line and taken + 1 + columns > room:
            yield indent + line
            line, taken = "", 0
        line, taken = (f"{line} {piece}", taken + 1 + columns) if line else (piece, columns)
    if line:
        yield indent + line


def _pieces(word: str, room: int) -> Iterator[str]:
    """A word in pieces that fit into a line; mostly one."""
    start = taken = 0
    for place, columns in enumerate(map(_columns, word)):
        if taken + columns > room and place > start:
            yield word[start:place]
            start, taken = place, 0
        taken += columns
    yield word[start:]


def _minute(moment: datetime | None, zone: tzinfo) -> str:
    return moment.astimezone(zone).strftime("%Y-%m-%d %H:%M") if moment else "-"


def _columns(text: str) -> int:
    """How many columns of a terminal a text takes: wide characters two, combining ones none."""
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return len(text) + wide - sum(unicodedata.combining(c) > 0 for c in text)


def _fit(text: str, width: int, end: str = "~") -> str:
    """Text padded to a width; of what is too long the end is cut off, and marked."""
    if _columns(text) > width:
        taken = accumulate(map(_columns, text))
        text = text[: sum(1 for _ in takewhile(lambda columns: columns <= width - len(end), taken))] + end
    return text + " " * (width - _columns(text))


def _paint(text: str, severity: int, style: Style) -> str:
    return f"\033[{_COLOURS[severity]}m{text}\033[0m" if style.colour else text


# --- One container -------------------------------------------------------------------------------------


def details(audit: Audit, histories: Iterable[list[Run]], style: Style, max_runtime: timedelta) -> Iterator[str]:
    """The lines about single containers, with all their runs: the verdict, what led to it, the last runs."""
    for number, (verdict, runs) in enumerate(zip(audit.verdicts, histories, strict=True)):
        if number > 0:
            yield ""
        yield from _facts(verdict, style)
        yield ""
        yield from _run_lines(sorted(runs, key=by_start, reverse=True), audit.now, style, max_runtime)


def _facts(verdict: Verdict, style: Style) -> Iterator[str]:
    container = verdict.container
    c_id = "without a c_id" if container.c_id is None else f"c_id {container.c_id}"
    yield f"{clean(container.name)} ({c_id})"
    owner = clean(container.owner) or "unknown"
    facts = {
        "verdict": f"{verdict.status.value} ({SEVERITIES[verdict.severity]})",
        "reason": clean(verdict.reason),
        "note": clean(verdict.note),
        "policy": clean(verdict.policy) or "none",
        "due": stamp(verdict.due, style.zone) if verdict.due else "never",
        "state": clean(container.state) or "unknown",
        "engine": clean(container.engine) or "unknown",
        "owner": f"{owner}, {clean(container.contact)}" if container.contact else owner,
        "created": stamp(container.created, style.zone) if container.created else "unknown",
    }
    for name, text in facts.items():
        if text:
            first, *rest = _wrap(text, style.width, " " * 11)
            yield f"  {name:9}" + (_paint(first[11:], verdict.severity, style) if name == "verdict" else first[11:])
            yield from rest


def _run_lines(runs: list[Run], now: datetime, style: Style, max_runtime: timedelta) -> Iterator[str]:
    if not runs:
        yield "  no runs in the log"
        return
    zone = now.astimezone(style.zone).tzname() or "local"
    yield f"  the last {min(len(runs), RUNS_SHOWN)} of {len(runs)} runs, times in {zone}"
    yield f"  {'START':16} {'END':16} {'DURATION':>9}  {'TYPE':8} OUTCOME"
    for run in runs[:RUNS_SHOWN]:
        start = _minute(run.started if run.start_logged else None, style.zone)
        outcome = run.outcome(now, max_runtime)
        shown = _paint(outcome.value, {Outcome.SUCCEEDED: 0, Outcome.RUNNING: 1}.get(outcome, 2), style)
        kind = _fit(clean(run.type) or "-", 8)
        yield f"  {start:16} {_minute(run.ended, style.zone):16} {span(run.duration):>9}  {kind} {shown}"
        if run.error:
            yield from _wrap(clean(run.error), style.width, _INDENT)


def span(duration: timedelta | None) -> str:
    """A duration as people say it: `42 s`, `31 min`, `2.5 h`; `-` if it is not known."""
    if duration is None:
        return "-"
    seconds = duration.total_seconds()
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{duration / HOUR:.1f} h"


# --- JSON ----------------------------------------------------------------------------------------------


def as_json(
    audit: Audit, database: str, version: str, max_runtime: timedelta, runs: Iterable[list[Run]] | None = None
) -> str:
    """The report as one JSON document; `runs`, in the order of the verdicts, adds the last ones of each."""
    containers = [_container_document(verdict, audit.now, max_runtime) for verdict in audit.verdicts]
    for document, history in zip(containers, runs or [], strict=runs is not None):
        last = sorted(history, key=by_start, reverse=True)[:RUNS_SHOWN]
        document["runs"] = [_run_document(run, audit.now, max_runtime) for run in last]
    head = {
        "version": version,
        "now": iso(audit.now),
        "database": database,
        "containers": {status.value: count for status, count in audit.counts().items()},
        "rows_ignored": {"future": audit.future, "malformed": audit.malformed},
    }
    return json.dumps({"audit": head, "containers": containers}, indent=2)


def _container_document(verdict: Verdict, now: datetime, max_runtime: timedelta) -> dict[str, Any]:
    container = verdict.container
    return {
        "name": container.name,
        "c_id": container.c_id,
        "policy": verdict.policy,
        "engine": container.engine,
        "state": container.state,
        "owner": container.owner,
        "contact": container.contact,
        "status": verdict.status.value,
        "severity": verdict.severity,
        "reason": mask(verdict.reason),
        "due": iso(verdict.due),
        "last_success": _run_document(verdict.last_success, now, max_runtime),
        "last_run": _run_document(verdict.last_run, now, max_runtime),
    }


def _run_document(run: Run | None, now: datetime, max_runtime: timedelta) -> dict[str, Any] | None:
    if run is None:
        return None
    return {
        "backup_id": mask(run.backup_id),
        "type": run.type,
        "started": iso(run.started),
        "ended": iso(run.ended),
        "duration_seconds": run.duration.total_seconds() if run.duration is not None else None,
        "outcome": run.outcome(now, max_runtime).value,
        "error": mask(run.error) if run.error is not None else None,
    }


def iso(moment: datetime | None) -> str | None:
    """A moment as ISO 8601 in UTC, ending in `Z`; None stays None."""
    if moment is None:
        return None
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat() + "Z"


# --- History -------------------------------------------------------------------------------------------

_GLYPHS = {"ok": "■", "failed": "✗", "none": "·", "before": " "}
_ASCII_GLYPHS = {"ok": "#", "failed": "x", "none": ".", "before": " "}
_OUTCOME_SEVERITY = {"ok": 0, "failed": 2, "none": 1}


def history_table(
    coverages: list[Coverage], start: datetime, end: datetime, style: Style, database: str
) -> Iterator[str]:
    """A line a container with a strip of its slots, oldest first; the worst ratio comes first.

    The first line's dates are those of the strips that have none of their own; a strip that is too long
    for its line goes on in lines of its own.
    """
    glyphs = _ASCII_GLYPHS if style.ascii else _GLYPHS
    days = (end - start) // timedelta(days=1)
    yield f"Backup history of {clean(database)}, {days} days to {stamp(end, style.zone)}"
    yield f"{glyphs['ok']} backed up   {glyphs['failed']} failed   {glyphs['none']} nothing   blank: not made yet"
    yield "One mark a scheduled backup, the newest on the right."
    yield ""
    if not coverages:
        yield "No container has a schedule."
        return
    ordered = sorted(coverages, key=_worst_first)
    width = min(max(9, *(_columns(_history_name(coverage)) for coverage in ordered)), 24 if style.cut else 40)
    common = _scale(ordered, style.width - width - 22)
    yield f"{'RATIO':>5} {_fit('CONTAINER', width)} {'POLICY':7} {'GAP':>6} {_dates(common, style.zone)}".rstrip()
    for coverage in ordered:
        ratio = f"{100 * coverage.covered // coverage.slots} %" if coverage.slots else "-"
        name, policy = _history_name(coverage, width), _fit(clean(coverage.policy), 7)
        yield from _strip(f"{ratio:>5} {name} {policy} {_gap(coverage):>6}", coverage, common, glyphs, style)
    yield ""
    yield from _wrap(_history_summary(ordered), style.width)


def _worst_first(coverage: Coverage) -> tuple[float, timedelta, str]:
    return 2 if coverage.ratio is None else coverage.ratio, -coverage.longest_gap, coverage.container.name


def _history_name(coverage: Coverage, width: int | None = None) -> str:
    """A container's name; cut or padded to a width, if there is one, but not the mark of a deleted one."""
    name = clean(coverage.container.name)
    mark = " (deleted)" if coverage.container.state == "deleted" else ""
    if width is None:
        return name + mark
    return _fit(name, width - len(mark)) + mark if _columns(name + mark) > width else _fit(name + mark, width)


def _gap(coverage: Coverage) -> str:
    days = coverage.longest_gap / timedelta(days=1)
    if days < 2:
        return f"{days * 24:.0f} h"
    return f"{days:.1f} d" if days < 100 else f"{days:.0f} d"


def _scale(coverages: Iterable[Coverage], room: int) -> list[int]:
    """The edges that most strips share, if a strip of them fits into a line; else none."""
    votes = Counter(tuple(coverage.edges) for coverage in coverages)
    common = list(votes.most_common(1)[0][0])
    return common if 12 < len(common) <= room + 1 else []


def _dates(edges: list[int], zone: tzinfo) -> str:
    """The first and the last day of a strip, as far apart as its ends."""
    if not edges:
        return ""
    first, last = (from_microseconds(edge).astimezone(zone).strftime("%m-%d") for edge in (edges[0], edges[-1] - 1))
    return first + last.rjust(len(edges) - 1 - len(first))


def _strip(head: str, coverage: Coverage, common: list[int], glyphs: Mapping[str, str], style: Style) -> Iterator[str]:
    """The line of one container, or the lines; a date is the day on which the slot beside it begins."""
    outcomes, edges = coverage.outcomes, coverage.edges
    marks = [_paint(glyphs[outcome], _OUTCOME_SEVERITY.get(outcome, 0), style) for outcome in outcomes]

    def day(edge: int) -> str:
        return from_microseconds(edge).astimezone(style.zone).strftime("%Y-%m-%d")

    if not outcomes:
        yield f"{head} none due"
    elif edges == common:
        yield f"{head} {''.join(marks)}"
    elif len(outcomes) <= style.width - _columns(head) - 13:
        yield f"{head} {day(edges[0])[5:]} {''.join(marks)} {day(edges[-2])[5:]}"
    else:
        yield head
        room = (style.width - 7 - 2 * 11) // 7 * 7  # whole weeks
        for first in range(0, len(outcomes), room):
            part = marks[first : first + room]
            if set(outcomes[first : first + room]) != {"before"}:
                yield f"{'':7}{day(edges[first])} {''.join(part)} {day(edges[first + len(part) - 1])}"


def _history_summary(coverages: list[Coverage]) -> str:
    slots, covered = sum(c.slots for c in coverages), sum(c.covered for c in coverages)
    gap = max(coverages, key=lambda coverage: coverage.longest_gap)
    share = f"{1000 * covered // slots / 10} %" if slots else "no ratio"
    worst = clean(coverages[0].container.name)
    parts = [
        f"{len(coverages)} container{'s' * (len(coverages) != 1)}",
        f"{slots} slot{'s' * (slots != 1)}",
        f"{covered} covered ({share})",
        f"longest gap {_gap(gap)} ({clean(gap.container.name)})",
        f"worst ratio {worst}" if covered < slots else "no gap in the schedule",
    ]
    return ", ".join(parts)


def history_json(coverages: list[Coverage], start: datetime, end: datetime) -> str:
    """The history as one JSON document (SPEC section 9)."""
    slots, covered = sum(c.slots for c in coverages), sum(c.covered for c in coverages)
    head = {
        "from": iso(start),
        "to": iso(end),
        "days": (end - start) // timedelta(days=1),
        "containers": len(coverages),
        "slots": slots,
        "covered": covered,
        "ratio": covered / slots if slots else None,
    }
    containers = [
        {
            "name": coverage.container.name,
            "c_id": coverage.container.c_id,
            "policy": coverage.policy,
            "slots": coverage.slots,
            "covered": coverage.covered,
            "ratio": coverage.ratio,
            "longest_gap_seconds": coverage.longest_gap.total_seconds(),
            "median_duration_seconds": (
                coverage.median_duration.total_seconds() if coverage.median_duration is not None else None
            ),
            "outcomes": coverage.outcomes,
        }
        for coverage in coverages
    ]
    return json.dumps({"history": head, "containers": containers}, indent=2)


def history_csv(coverages: Iterable[Coverage]) -> Iterator[str]:
    """The history as RFC 4180 lines, one a container and slot; cells that a spreadsheet would run are quoted."""
    columns = ("name", "c_id", "policy", "slot_start", "slot_end", "outcome", "run_started", "run_ended", "backup_id")
    edge = lru_cache(10_000)(_iso)
    yield _csv(*columns) + "\r"  # the printer adds the line feed
    for coverage in coverages:
        who = _csv(_inert(coverage.container.name), coverage.container.c_id, _inert(coverage.policy))
        bounds = pairwise(map(edge, coverage.bounds()))
        for (begin, end), outcome, run in zip(bounds, coverage.outcomes, coverage.runs, strict=True):
            yield f"{who},{begin},{end},{outcome},{_csv_run(run, outcome)}\r"


def _csv_run(run: PastRun | None, outcome: str) -> str:
    if run is None:
        return ",,"
    start, end, backup_id = run
    if outcome == "ok" and not end:
        end = start  # only its end was logged, and is taken for its start
    if not _MERE_TIME.fullmatch(backup_id):
        backup_id = _csv(_inert(mask(backup_id)))
    return f"{_iso(start)},{_iso(end) if end else ''},{backup_id}"


def _csv(*cells: object) -> str:
    """Cells as they stand in a line, quoted where RFC 4180 wants it."""
    line: str = csv.writer(_Echo()).writerow(cells)
    return line.removesuffix("\r\n")


def _iso(moment: int) -> str:
    """`iso` for microseconds since the epoch, thrice as quick: a year of a large site is a million lines."""
    return (_EPOCH + timedelta(microseconds=moment)).isoformat() + "Z"


class _Echo:
    """A file that gives back what is written to it, and so makes `csv.writer` give back lines."""

    def write(self, text: str) -> str:
        """The line itself."""
        return text


def _inert(text: str) -> str:
    """Text that no spreadsheet takes for a formula."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r", "\n") else text
