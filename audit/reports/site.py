"""The report on a site: what concerns all of it, what has changed, and the containers that need attention.

It decides no verdict and prints nothing; it yields lines.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, tzinfo
from functools import cached_property
from operator import itemgetter
from typing import NamedTuple

from audit import messages, text
from audit.auditor import Audit, Change, Finding, by_change
from audit.log import FUTURE, MALFORMED, UNDATED
from audit.policy import DAY, Run, Status
from audit.text import Style

LISTED = 20
"""How many paragraphs of one status are listed, and after how many lines of a list the headline is repeated."""
TOGETHER = 3
"""From this many on, containers with one cause share a paragraph."""

# what failed says why, and has to be looked at one by one; what was missed often has one cause
_WORST_FIRST = (
    *(Status.FAILED, Status.STALLED, Status.MISSED, Status.NO_POLICY),
    *(Status.LATE, Status.UNSURE, Status.PAUSED, Status.RUNNING),
    *(Status.OK, Status.NEW, Status.EXEMPT),
)
_EXPIRES = {1: "expiring", 2: "expired"}


class Paragraph(NamedTuple):
    """What is said of one container, or of several with the same cause."""

    mark: str
    word: str
    severity: int
    sentence: str
    setting: str = ""
    """A line to paste into the configuration."""


def render(audit: Audit, style: Style, command: str, everything: bool = False, terminal: bool = False) -> Iterator[str]:
    """The lines of the report on a site: the headline, then what needs attention, worst first.

    `command` is what starts the audit when it is pasted into a shell. With `everything` all containers are listed.
    Where there is nothing to tell, a `terminal` gets the headline and cron nothing.
    """
    report = _Report(audit, style, command, everything)
    if terminal or everything or report.has_news:
        yield from report.lines()


@dataclass(frozen=True)
class _Report:
    audit: Audit
    style: Style
    command: str
    everything: bool

    @property
    def zone(self) -> tzinfo:
        return self.style.zone

    @property
    def has_news(self) -> bool:
        """Whether there is anything that people should hear of without asking."""
        of_site = self.audit.silent or self.audit.ignored.counts[FUTURE] or self.audit.clock_gap is not None
        return bool(of_site) or any(map(_is_news, self.audit.findings))

    @cached_property
    def problems(self) -> list[Finding]:
        """The containers that need attention, worst first, new ones before old ones."""
        return _sorted(finding for finding in self.audit.findings if finding.is_problem)

    @cached_property
    def listed(self) -> list[Finding]:
        """The problems, without those that the silence of the site explains."""
        silent = self.audit.silent
        return [finding for finding in self.problems if not (silent and finding.is_overdue)]

    @cached_property
    def expiring(self) -> list[Finding]:
        """The containers whose last good dump has expired or does soon, the oldest dump first."""
        found = [finding for finding in self.audit.findings if finding.expiry_severity]
        return sorted(found, key=lambda one: (one.verdict.kept_until or one.verdict.now, one.container.name))

    @cached_property
    def repeated_names(self) -> set[str]:
        """What more than one container is called."""
        names = Counter(finding.container.name for finding in self.audit.findings)
        return {name for name, times in names.items() if times > 1}

    def lines(self) -> Iterator[str]:
        """The headline, the lists, the notes, and the headline again where the first one is out of sight."""
        headline, findings = list(self._headline()), self.audit.findings
        yield from headline
        moment = text.minute(self.audit.now, self.zone)
        yield from self._wrapped(f"Backup Audit of {text.one_line(self.audit.database)}, {moment}")
        accepted = _sorted(one for one in findings if one.is_accepted)
        causes = list(_causes(self.listed))
        single = {cause[0].container for cause in causes if len(cause) == 1}  # their problem says it
        odd = _sorted(one for one in findings if _is_suspicious(one) and one.container not in single)
        length = 0
        for block in (
            [*self._list(map(self._together, causes)), *self._unlisted()],
            list(self._list(map(self._expiry, self.expiring), "Last good dumps that have expired or soon will:")),
            list(self._list(map(self._single, accepted), "Accepted exceptions:")),
            list(self._list(map(self._suspicion, odd), "Worth a look:")),
            list(self._rows()) if self.everything else [],
        ):
            yield from ["", *block] if block else []
            length += len(block)
        for block in (list(self._notes()), list(self._next_step()), headline if length > LISTED else []):
            yield from ["", *block] if block else []

    def _wrapped(self, sentence: str) -> list[str]:
        return text.wrap(sentence, self.style.width)

    # --- The headline ---

    def _headline(self) -> Iterator[str]:
        for alarm in self._alarms():
            yield from (text.paint(line, 2, self.style) for line in self._wrapped(alarm))
        yield from (text.paint(line, self.audit.severity, self.style) for line in self._wrapped(self._summary()))
        yield from self._wrapped(self._changes())

    def _alarms(self) -> Iterator[str]:
        """What concerns the whole site."""
        audit, newest, night = self.audit, self.audit.newest_row, self.audit.broken_night
        if audit.silent:
            since = f" since {text.since(newest, audit.now, self.zone)}" if newest else ""
            yield f"The whole site logged no backup run{since}: DB4Sci's own backup job has probably not run."
        elif night:
            name, started = text.name(night.name), text.minute(night.started, self.zone)
            yield (
                f"DB4Sci's backup job probably stopped at {name}: its run of {started} never ended, "
                "and none has begun since."
            )
        yield from text.ignored(audit.ignored, FUTURE)
        if audit.clock_gap is not None:
            gap = text.duration(audit.clock_gap)
            yield f"backup_id and ts of the newest runs are {gap} apart: timezone or db_timezone is probably wrong."

    def _summary(self) -> str:
        findings, counts = self.audit.findings, self.audit.counts()
        accepted = Counter(one.status for one in findings if one.is_accepted and one.severity)
        parts = [
            f"{counts[status]} {status.value}" + (f" ({accepted[status]} accepted)" if accepted[status] else "")
            for status in _WORST_FIRST
            if counts[status]
        ]
        return f"{text.count(len(findings), 'container')}: {', '.join(parts) or 'nothing to audit'}"

    def _changes(self) -> str:
        """What is different from 24 hours ago, and what has not changed: no news must not sound like an all-clear."""
        new, changed = by_change(self.problems, Change.NEW_PROBLEM), by_change(self.problems, Change.CHANGED)
        recovered = by_change(self.audit.findings, Change.RECOVERED)
        changes = [f"{text.count(len(new), 'new problem')} ({self._names(new)})"] if new else []
        changes += [f"{len(changed)} changed ({self._names(changed)})"] if changed else []
        changes += [f"{len(recovered)} recovered ({self._names(recovered)})"] if recovered else []
        sentences = [f"Last 24 hours: {', '.join(changes)}."] if changes else []
        if self.expiring:
            numbers = Counter(_EXPIRES[one.expiry_severity] for one in self.expiring)
            sentences.append(f"Last good dumps: {', '.join(f'{number} {word}' for word, number in numbers.items())}.")
        elif not self.problems:
            sentences.insert(0, f"No container needs attention{'' if self.everything else '; -v lists all'}.")
        if self.problems and not changes:
            number = len(self.problems)
            still = "1 container still needs" if number == 1 else f"{number} containers still need"
            sentences.insert(0, f"Nothing has changed in 24 hours: {still} attention.")
        return " ".join(sentences)

    def _names(self, findings: Iterable[Finding]) -> str:
        return text.first_few([self._name(finding) for finding in findings])

    def _name(self, finding: Finding) -> str:
        """The name, with the `c_id` where what is printed of the name does not tell which container is meant."""
        name, whole = text.name(finding.container.name), finding.container.name
        return f"{name} (c_id {finding.container.c_id})" if whole in self.repeated_names or whole != name else name

    # --- Paragraphs ---

    def _list(self, paragraphs: Iterable[Paragraph], title: str = "") -> Iterator[str]:
        """The paragraphs; of many with the same status only the first."""
        paragraphs = list(paragraphs)
        if paragraphs and title:
            yield title
        total = Counter(paragraph.word for paragraph in paragraphs)
        seen: Counter[str] = Counter()
        for paragraph in paragraphs:
            word = paragraph.word
            seen[word] += 1
            if self.everything or seen[word] <= LISTED:
                yield from self._paragraph(paragraph)
            elif seen[word] == LISTED + 1:
                more = f"and {total[word] - LISTED} more: -v lists them"
                yield from self._paragraph(Paragraph("", word, paragraph.severity, more))

    def _paragraph(self, paragraph: Paragraph) -> Iterator[str]:
        word = text.paint(f"{paragraph.word:9}", paragraph.severity, self.style)
        yield from text.beside(f"{paragraph.mark:3} {word} ", paragraph.sentence, self.style.width)
        if paragraph.setting:
            yield paragraph.setting  # from the first column on, and unbroken: it is to be pasted

    def _together(self, cause: list[Finding]) -> Paragraph:
        """The paragraph about containers with the same cause; mostly one."""
        first = cause[0]
        line = first.verdict.line if first.status is Status.UNSURE else None
        setting = text.setting(line, first.container.name) if line else ""
        one = self._single(first) if len(cause) == 1 else self._group(cause)
        advice = "; if that is harmless, add its pattern to the configuration:" if setting else ""
        return one._replace(sentence=one.sentence + advice, setting=setting)

    def _group(self, cause: list[Finding]) -> Paragraph:
        names, new = [self._name(finding) for finding in cause], len(by_change(cause, Change.NEW_PROBLEM))
        of_them = "" if not new else ", all new" if new == len(cause) else f", {new} new"
        which = ", ".join(names) if self.everything else text.first_few(names)
        told = "; ".join((self._what(cause), *self._left(cause)))
        sentence = f"{len(cause)} containers{of_them} ({which}): {told}"
        return Paragraph("NEW" if new else "", *_status(cause[0]), sentence)

    def _what(self, cause: list[Finding]) -> str:
        starts = sorted(run.started for run in map(_stalled_run, cause) if run)
        if starts:
            first, last = (text.minute(moment, self.zone) for moment in (starts[0], starts[-1]))
            return f"the runs that started from {first} to {last} have not ended"
        same = "failed with the same error" if cause[0].status is Status.FAILED else "the same unrecognised message"
        return f"{same}: {text.message(cause[0].verdict.line)}"

    def _left(self, cause: list[Finding]) -> Iterator[str]:
        """What there is to restore of several containers."""
        good = [(run.started, one) for one in cause if (run := one.verdict.restorable)]
        if good:
            _, oldest = min(good, key=itemgetter(0))
            yield f"oldest {text.left_to_restore(oldest.verdict, self.zone)}, of {self._name(oldest)}"
        for one in [one for one in cause if not one.verdict.restorable][:1]:
            yield f"{len(cause) - len(good)} with {text.left_to_restore(one.verdict, self.zone)}"

    def _single(self, finding: Finding) -> Paragraph:
        mark = "NEW" if finding.is_problem and finding.change is Change.NEW_PROBLEM else ""
        told = "; ".join(self._sentences(finding))
        return Paragraph(mark, *_status(finding), f"{self._name(finding)}: {told}")

    def _sentences(self, finding: Finding) -> Iterator[str]:
        verdict = finding.verdict
        if finding.severity:
            yield text.reason(verdict, self.zone, text.MESSAGE_LENGTH)
        if finding.change is Change.CHANGED and finding.yesterday:
            yield f"was {finding.yesterday.value} 24 h ago"
        if verdict.suspicion:
            yield text.suspicion(verdict)
        if finding.is_accepted:
            yield text.exception(finding)
            if (
                finding.severity
                and not finding.expiry_severity
                and verdict.kept_until
                and verdict.kept_until <= verdict.now
            ):
                yield text.expiry(finding, self.zone)

    def _suspicion(self, finding: Finding) -> Paragraph:
        return Paragraph("", *_status(finding), f"{self._name(finding)}: {text.suspicion(finding.verdict)}")

    def _expiry(self, finding: Finding) -> Paragraph:
        told = f"{self._name(finding)}: {text.expiry(finding, self.zone)}"
        return Paragraph("", _EXPIRES[finding.expiry_severity], finding.expiry_severity, told)

    def _unlisted(self) -> Iterator[str]:
        if self.audit.silent:
            overdue = Counter(finding.verdict.status.value for finding in self.problems if finding.is_overdue)
            numbers = " and ".join(f"{number} {status}" for status, number in overdue.items())
            more = "" if self.everything else f": -v lists {'them' if overdue.total() > 1 else 'it'}"
            yield from self._wrapped(f"{numbers} while the whole site is silent{more}.")

    # --- All containers ---

    def _rows(self) -> Iterator[str]:
        """A row a container, worst first. The name comes last: its length moves nothing."""
        findings = _sorted(self.audit.findings)
        titles = ("STATUS", "LAST GOOD BACKUP", "DUE", "POLICY")
        rows = [titles, *map(self._cells, findings)]
        yield f"All containers, times in {self.zone}:"
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        yield from self._row(titles, widths, "CONTAINER")
        for row, finding in zip(rows[1:], findings, strict=True):
            yield from self._row(row, widths, self._name(finding), finding.severity)

    def _row(self, cells: Sequence[str], widths: list[int], name: str, severity: int | None = None) -> Iterator[str]:
        status, *others = map(str.ljust, cells, widths)
        word = status if severity is None else text.paint(status, severity, self.style)
        yield from text.beside(f"{word} ", " ".join((*others, name)), self.style.width, len(status) + 1)

    def _cells(self, finding: Finding) -> tuple[str, ...]:
        verdict = finding.verdict
        good = text.stamp(verdict.last_success.started if verdict.last_success else None, self.zone)
        due = text.stamp(verdict.due, self.zone)[-11:]  # without the year
        return verdict.status.value, good, due, text.shorten(text.one_line(verdict.policy), 12) or "-"

    # --- What else there is to say ---

    def _notes(self) -> Iterator[str]:
        audit = self.audit
        notes = list(text.ignored(audit.ignored, MALFORMED, UNDATED))
        ended: dict[str, list[Finding]] = {}
        for finding in filter(_exception_ended, audit.findings):
            ended.setdefault(text.exception(finding), []).append(finding)
        notes += [f"The exception of {self._names(findings)} {what}." for what, findings in ended.items()]
        if audit.unused_exceptions:
            keys = text.first_few([text.name(key) for key in audit.unused_exceptions])
            notes.append(f"The setting exceptions has keys that fit no container: correct or remove {keys}.")
        for note in notes:
            yield from self._wrapped(note)

    def _next_step(self) -> Iterator[str]:
        for finding in (self.listed or self.expiring)[:1]:
            name, c_id = text.name(finding.container.name), finding.container.c_id
            by_id = c_id and (self._name(finding) != name or name.startswith("-"))
            command = f"{self.command} {c_id if by_id else shlex.quote(name)}"
            line = f"To see a container's last runs: {command}"
            # a command that is broken in two does not work when it is pasted
            yield from [line] if len(line) <= self.style.width else ["To see a container's last runs:", command]


def _sorted(findings: Iterable[Finding]) -> list[Finding]:
    def key(finding: Finding) -> tuple[int, bool, int, float, str]:
        verdict, is_old = finding.verdict, finding.change is not Change.NEW_PROBLEM
        due = verdict.due.timestamp() if verdict.due else 0
        return -verdict.severity, is_old, _WORST_FIRST.index(verdict.status), due, finding.container.name

    return sorted(findings, key=key)


def _status(finding: Finding) -> tuple[str, int]:
    return finding.verdict.status.value, finding.severity


def _stalled_run(finding: Finding) -> Run | None:
    return finding.verdict.concluded if finding.status is Status.STALLED else None


def _causes(findings: Sequence[Finding]) -> Iterator[list[Finding]]:
    """The findings, those with the same cause together, in the order in which they come."""
    nights = _nights([run.started for run in map(_stalled_run, findings) if run])
    keys: list[object] = []
    causes: dict[object, list[Finding]] = {}
    for place, finding in enumerate(findings):
        line, run = finding.verdict.line, _stalled_run(finding)
        key: object = place
        if line is not None:
            key = finding.status, messages.kind(line, finding.container.name)
        elif run:
            key = finding.status, nights[run.started]
        keys.append(key)
        causes.setdefault(key, []).append(finding)
    for key, finding in zip(keys, findings, strict=True):
        cause = causes[key]
        if len(cause) < TOGETHER and finding.status is not Status.UNSURE:
            yield [finding]
        elif finding is cause[0]:
            yield cause


def _nights(starts: list[datetime]) -> dict[datetime, datetime]:
    """From each start to the newest of those less than 24 hours after it."""
    nights: dict[datetime, datetime] = {}
    newest = None
    for start in sorted(starts, reverse=True):
        if newest is None or newest - start >= DAY:
            newest = start
        nights[start] = newest
    return nights


def _is_news(finding: Finding) -> bool:
    return finding.is_problem or finding.expiry_severity > 0 or _is_suspicious(finding) or _exception_ended(finding)


def _is_suspicious(finding: Finding) -> bool:
    return finding.status is not Status.EXEMPT and not finding.is_accepted and finding.verdict.suspicion is not None


def _exception_ended(finding: Finding) -> bool:
    return finding.exception is not None and not finding.is_accepted
