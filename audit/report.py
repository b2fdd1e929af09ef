"""From findings to what people read: the report on a site, and the details of single containers (SPEC section 4).

This module decides no verdict and prints nothing; it yields lines. Whatever comes out of the database is made
harmless first.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, tzinfo
from functools import cached_property
from itertools import accumulate

from audit import runs as log
from audit.findings import Audit, Change, Finding, by_change
from audit.policy import Outcome, Run, Status, age, minute
from audit.printable import Style, columns, cut, duration_text, fit, one_line, paint, shorten, wrap

NAME_COLUMNS = 40
MESSAGE_LENGTH = 200
DETAILED_MESSAGE_LENGTH = 1_000
LISTED = 20
"""How many containers of one status are listed, and after how many lines of them the headline is repeated."""
NAMED = 3
"""How many containers a sentence names."""
RUNS_SHOWN = 10

_INDENT = " " * 14
_SEVERITIES = ("", " (warning)", " (critical)")
# what failed says why, and has to be looked at one by one; what was missed often has one cause
_WORST_FIRST = (
    *(Status.FAILED, Status.STALLED, Status.MISSED, Status.NO_POLICY),
    *(Status.LATE, Status.PAUSED, Status.RUNNING),
    *(Status.OK, Status.NEW, Status.EXEMPT),
)
_IGNORED = {
    log.FUTURE: ("stamped later than now", "db_timezone is probably wrong"),
    log.MALFORMED: ("no backup_id, or a state other than start and end", "look at the table backups"),
    log.UNDATED: ("no ts", "look at the table backups"),
}


def table(audit: Audit, style: Style, program: str, everything: bool = False, terminal: bool = False) -> Iterator[str]:
    """The lines of the report on a site: the headline, then what needs attention, worst first.

    `program` is what starts the audit when it is pasted into a shell. With `everything` all containers are listed.
    Where there is nothing to tell, a `terminal` gets the headline and cron nothing.
    """
    report = _Report(audit, style, program, everything)
    if terminal or everything or report.has_news:
        yield from report.lines()


@dataclass(frozen=True)
class _Report:
    audit: Audit
    style: Style
    program: str
    everything: bool

    @property
    def has_news(self) -> bool:
        """Whether there is anything that people should hear of without asking."""
        audit = self.audit
        doubts = audit.silent or audit.unrecognised > 0 or audit.ignored.counts[log.FUTURE] > 0
        return doubts or any(one.is_problem or _is_odd(one) or _has_ended(one) for one in audit.findings)

    @cached_property
    def problems(self) -> list[Finding]:
        """The containers that need attention, worst first, new ones before old ones."""
        return _sorted(finding for finding in self.audit.findings if finding.is_problem)

    @cached_property
    def listed(self) -> list[Finding]:
        """The problems without those that have one cause in common: on a silent site, the backup job's absence."""
        if self.everything or not self.audit.silent:
            return self.problems
        return [one for one in self.problems if one.verdict.status not in (Status.MISSED, Status.LATE)]

    @cached_property
    def repeated_names(self) -> set[str]:
        """What more than one container is called."""
        names = Counter(finding.container.name for finding in self.audit.findings)
        return {name for name, times in names.items() if times > 1}

    def lines(self) -> Iterator[str]:
        """The headline, the lists, the notes, and the headline again where the first one is out of sight."""
        headline, findings = list(self._headline()), self.audit.findings
        yield from headline
        moment = minute(self.audit.now, self.style.zone)
        yield from wrap(f"Backup Audit of {one_line(self.audit.database)}, {moment}", self.style.width)
        others = [one for one in findings if not (one.is_problem or one.accepted)]
        length = 0
        for block in (
            [*self._list(self.listed), *self._unlisted()],
            list(self._list(_sorted(one for one in findings if one.accepted), "Accepted exceptions:")),
            [] if self.everything else list(self._list(_sorted(filter(_is_odd, findings)), "Worth a look:")),
            list(self._others(others)) if self.everything and others else [],
        ):
            yield from ["", *block] if block else []
            length += len(block)
        for block in (list(self._notes()), list(self._next_step()), headline if length > LISTED else []):
            yield from ["", *block] if block else []

    # --- The headline ---

    def _headline(self) -> Iterator[str]:
        audit, style = self.audit, self.style
        for alarm in [*self._silence(), *_ignored(audit.ignored, log.FUTURE)]:
            yield from (paint(line, 2, style) for line in wrap(alarm, style.width))
        yield from (paint(line, audit.severity, style) for line in wrap(self._summary(), style.width))
        yield from wrap(self._changes(), style.width)

    def _silence(self) -> Iterator[str]:
        newest, since = self.audit.newest_row, ""
        if newest is not None:
            since = f" since {minute(newest, self.style.zone)} ({age(self.audit.now - newest)} ago)"
        if self.audit.silent:
            yield f"The whole site logged no backup run{since}: DB4Sci's own backup job has probably not run."

    def _summary(self) -> str:
        accepted = Counter(one.verdict.status for one in self.audit.findings if one.accepted and one.verdict.severity)
        counts, number = self.audit.counts(), len(self.audit.findings)
        parts = [
            f"{counts[status]} {status.value}" + (f" ({accepted[status]} accepted)" if accepted[status] else "")
            for status in _WORST_FIRST
            if counts[status]
        ]
        return f"{_count(number, 'container')}: {', '.join(parts) or 'nothing to audit'}"

    def _changes(self) -> str:
        new = by_change(self.problems, Change.NEW)
        recovered = by_change(self.audit.findings, Change.RECOVERED)
        changes = ["no new problem"] if self.problems and not new else []
        if new:
            changes.append(f"{_count(len(new), 'new problem')} ({self._names(new)})")
        if recovered:
            changes.append(f"{len(recovered)} recovered ({self._names(recovered)})")
        calm = "" if self.problems else f"No container needs attention{'' if self.everything else '; -v lists all'}. "
        return calm + (f"Last 24 hours: {', '.join(changes)}." if changes else "")

    def _names(self, findings: Iterable[Finding]) -> str:
        return _first_few([self._called(finding) for finding in findings])

    def _called(self, finding: Finding) -> str:
        """The name, with the `c_id` where what is printed of the name does not tell which container is meant."""
        name, whole = _name(finding), finding.container.name
        return f"{name} (c_id {finding.container.c_id})" if whole in self.repeated_names or whole != name else name

    # --- The lists ---

    def _list(self, findings: list[Finding], title: str = "") -> Iterator[str]:
        """A paragraph a container; of many with the same status only the first."""
        if findings and title:
            yield title
        total = Counter(finding.verdict.status for finding in findings)
        seen: Counter[Status] = Counter()
        for finding in findings:
            status = finding.verdict.status
            seen[status] += 1
            if self.everything or seen[status] <= LISTED:
                mark = "NEW" if finding.is_problem and finding.change is Change.NEW else ""
                yield from self._paragraph(mark, status, f"{self._called(finding)}: {self._told(finding)}")
            elif seen[status] == LISTED + 1:
                yield from self._paragraph("", status, f"and {total[status] - LISTED} more: -v lists them")

    def _paragraph(self, mark: str, status: Status, text: str) -> Iterator[str]:
        first, *rest = wrap(text, self.style.width, _INDENT)
        yield f"{mark:3} {paint(f'{status.value:9}', status.severity, self.style)} {first.removeprefix(_INDENT)}"
        yield from rest

    def _told(self, finding: Finding) -> str:
        reason = [_reason(finding, MESSAGE_LENGTH)] if finding.verdict.severity > 0 else []
        return "; ".join([*reason, *self._remarks(finding)])

    def _remarks(self, finding: Finding) -> Iterator[str]:
        if finding.change is Change.OTHERWISE and finding.yesterday:
            yield f"was {finding.yesterday.status.value} 24 h ago"
        yield from (shorten(one_line(note), MESSAGE_LENGTH) for note in finding.notes)
        if self.everything and finding.unrecognised:
            yield shorten(one_line(_unrecognised(finding)), MESSAGE_LENGTH)
        if finding.accepted:
            yield _exception(finding)

    def _unlisted(self) -> Iterator[str]:
        unlisted = Counter(finding.verdict.status.value for finding in self.problems)
        unlisted.subtract(finding.verdict.status.value for finding in self.listed)
        numbers = " and ".join(f"{count} {status}" for status, count in unlisted.items() if count)
        if numbers:
            yield from wrap(f"{numbers}, as the whole site is silent: -v lists them.", self.style.width)

    def _others(self, others: list[Finding]) -> Iterator[str]:
        """A row a container that needs no attention. The name comes last: whatever its width, it moves nothing."""
        others.sort(key=lambda one: (_WORST_FIRST.index(one.verdict.status), one.container.name.casefold()))
        zone, style = self.style.zone, self.style
        titles = ("STATUS", "LAST GOOD BACKUP", f"DUE ({_zone_name(self.audit.now, zone)})", "POLICY", "C_ID")
        rows = [_cells(finding, zone) for finding in others]
        room = max(10, style.width - max([9, *(columns(_name(finding)) for finding in others)]))
        widths = [max(map(columns, column)) for column in zip(titles, *rows, strict=True)]
        widths = widths[: sum(end <= room for end in accumulate(width + 1 for width in widths))]
        yield " ".join([*map(fit, titles, widths), "CONTAINER"])
        for finding, row in zip(others, rows, strict=True):
            status, *more = map(fit, row, widths)
            yield " ".join([paint(status, finding.verdict.severity, style), *more, _name(finding)])
            for remark in self._remarks(finding):
                yield from wrap(remark, self.style.width, " " * (len(status) + 1))

    # --- What else there is to say ---

    def _notes(self) -> Iterator[str]:
        audit, notes = self.audit, []
        if audit.unrecognised:
            where = "" if self.everything else "see -v; "
            advice = f"{where}teach it with success_pattern or error_pattern"
            notes.append(f"{_count(audit.unrecognised, 'run')} ended with a message that is not known: {advice}.")
        notes += _ignored(audit.ignored, log.MALFORMED, log.UNDATED)
        ended: dict[str, list[Finding]] = {}
        for finding in filter(_has_ended, audit.findings):
            ended.setdefault(_exception(finding), []).append(finding)
        notes += [f"The exception of {self._names(findings)} {what}." for what, findings in ended.items()]
        if audit.unused_exceptions:
            keys = _first_few([cut(one_line(key), NAME_COLUMNS) for key in audit.unused_exceptions])
            notes.append(f"The setting exceptions has keys that fit no container: correct or remove {keys}.")
        for note in notes:
            yield from wrap(note, self.style.width)

    def _next_step(self) -> Iterator[str]:
        for finding in self.listed[:1]:
            name, c_id = _name(finding), finding.container.c_id
            by_id = c_id and (self._called(finding) != name or name.startswith("-"))
            command = f"{self.program} {c_id if by_id else shlex.quote(name)}"
            text = f"To see the last runs of one: {command}"
            # a command that is broken in two does not work when it is pasted
            yield from [text] if columns(text) <= self.style.width else ["To see the last runs of one:", command]


def _sorted(findings: Iterable[Finding]) -> list[Finding]:
    def key(finding: Finding) -> tuple[int, bool, int, float, str]:
        verdict, is_old = finding.verdict, finding.change is not Change.NEW
        due = verdict.due.timestamp() if verdict.due else 0
        return -verdict.severity, is_old, _WORST_FIRST.index(verdict.status), due, finding.container.name

    return sorted(findings, key=key)


def _is_odd(finding: Finding) -> bool:
    return bool(finding.notes) and not finding.is_problem and not finding.accepted


def _has_ended(finding: Finding) -> bool:
    return finding.known_problem is not None and not finding.accepted


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _name(finding: Finding) -> str:
    return cut(one_line(finding.container.name), NAME_COLUMNS)


def _first_few(names: list[str]) -> str:
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")


def _reason(finding: Finding, limit: int) -> str:
    """Why the verdict is what it is, with at most `limit` characters of the message that led to it."""
    verdict = finding.verdict
    error = (verdict.concluded.error or "") if verdict.status is Status.FAILED and verdict.concluded else ""
    head = shorten(one_line(verdict.reason.removesuffix(error)), limit)
    return f"{head} {shorten(one_line(error), limit)}" if error else head


def _unrecognised(finding: Finding) -> str:
    """What to note about a message that is not known as fine, if it is one of the runs that led to the verdict."""
    verdict = finding.verdict
    for run in (verdict.last_run, verdict.last_success):
        if run and log.unrecognised(run, verdict.rules.success_pattern) is not None:
            return log.notes(run, verdict.rules)[-1]
    return "the message of a run before the last one is not known as fine"


def _exception(finding: Finding) -> str:
    known = finding.known_problem
    assert known
    when = "accepted until" if finding.accepted else "ended on"
    return f"{when} {known.until} ({shorten(one_line(known.reason), MESSAGE_LENGTH)})"


def _ignored(ignored: log.IgnoredRows, *reasons: str) -> Iterator[str]:
    """A sentence for each of these reasons for which rows were ignored."""
    for reason in reasons:
        count, ids = ignored.counts[reason], ignored.newest.get(reason, [])
        if count:
            what, hint = _IGNORED[reason]
            newest = f"{'newest ' * (count > len(ids))}id{'s' * (len(ids) != 1)} {', '.join(map(str, ids))}"
            yield f"{_count(count, f'{reason} log row')} ignored ({what}; {newest}): {hint}."


def _cells(finding: Finding, zone: tzinfo) -> tuple[str, ...]:
    verdict, c_id = finding.verdict, finding.container.c_id
    success = verdict.last_success.started if verdict.last_success else None
    policy = cut(one_line(verdict.policy), 12)
    return verdict.status.value, _minute(success, zone), _minute(verdict.due, zone), policy, str(c_id or 0)


def _minute(moment: datetime | None, zone: tzinfo) -> str:
    return moment.astimezone(zone).strftime("%Y-%m-%d %H:%M") if moment else "-"


def _zone_name(moment: datetime, zone: tzinfo) -> str:
    return moment.astimezone(zone).tzname() or "local"


# --- Single containers ---------------------------------------------------------------------------------


def details(audit: Audit, style: Style) -> Iterator[str]:
    """The lines about single containers: the verdict and what led to it, and the last runs."""
    for number, finding in enumerate(audit.findings):
        if number > 0:
            yield ""
        c_id = "without a c_id" if finding.container.c_id is None else f"c_id {finding.container.c_id}"
        yield f"{_name(finding)} ({c_id})"
        for title, text in _facts(finding, style.zone):
            first, *rest = (line.removeprefix(_INDENT) for line in wrap(text, style.width, _INDENT))
            painted = paint(first, finding.verdict.severity, style) if title == "verdict" else first
            yield f"  {title:12}{painted}"
            yield from (_INDENT + line for line in rest)
        yield ""
        yield from _run_lines(finding, style)


def _facts(finding: Finding, zone: tzinfo) -> Iterator[tuple[str, str]]:
    container, verdict, yesterday = finding.container, finding.verdict, finding.yesterday
    before = f"; was {yesterday.status.value} 24 h ago" if yesterday and finding.change else ""
    yield "verdict", f"{verdict.status.value}{_SEVERITIES[verdict.severity]}{before}"
    yield "reason", _reason(finding, DETAILED_MESSAGE_LENGTH)
    yield "policy", _fact(verdict.policy) or "none"
    yield "due", minute(verdict.due, zone) if verdict.due else "never"
    if finding.known_problem:
        yield "exception", _exception(finding)
    for note in finding.notes:
        yield "note", shorten(one_line(note), DETAILED_MESSAGE_LENGTH)
    yield "state", _fact(container.state) or "unknown"
    yield "engine", _fact(container.engine) or "unknown"
    yield "owner", ", ".join(filter(None, map(_fact, (container.owner, container.contact)))) or "unknown"
    yield "created", minute(container.created, zone) if container.created else "unknown"
    for sentence in _ignored(finding.ignored, *_IGNORED):
        yield "log", sentence


def _fact(text: str | None) -> str:
    return shorten(one_line(text), MESSAGE_LENGTH)


def _run_lines(finding: Finding, style: Style) -> Iterator[str]:
    runs, verdict = finding.runs, finding.verdict
    if not runs:
        yield "  no runs in the log"
        return
    zone = _zone_name(verdict.now, style.zone)
    yield f"  the last {min(len(runs), RUNS_SHOWN)} of {_count(len(runs), 'run')}, times in {zone}"
    yield f"  {'START':16} {'END':11} {'DURATION':>8}  {'TYPE':8} OUTCOME"
    for run in runs[:RUNS_SHOWN]:
        start = _minute(run.started if run.start_logged else None, style.zone)
        end = _minute(run.ended, style.zone)[-11:]
        outcome = run.outcome(verdict.now, verdict.rules.max_runtime)
        severity = {Outcome.SUCCEEDED: 0, Outcome.RUNNING: 1}.get(outcome, 2)
        kind = fit(one_line(run.type) or "-", 8)
        yield f"  {start:16} {end:11} {duration_text(run.duration):>8}  {kind} {paint(outcome.value, severity, style)}"
        for text in _messages(run, finding, style.width - 6):
            yield from wrap(text, style.width, " " * 6)


def _messages(run: Run, finding: Finding, line: int) -> Iterator[str]:
    """What the run's rows say: in full what is wrong with it or unknown, the rest as far as it fits on one line."""
    rules = finding.verdict.rules
    for text in ([run.error] if run.error else []) + log.notes(run, rules):
        yield shorten(one_line(text), DETAILED_MESSAGE_LENGTH)
    told = (run.error, log.unrecognised(run, rules.success_pattern))
    yield from (cut(one_line(message), line) for message in run.messages[:3] if message not in told)
