"""The details of single containers: first what a restore needs, then what led to the verdict, and the last runs.

It decides no verdict and prints nothing; it yields lines.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import tzinfo

from audit import text
from audit.auditor import Audit, Finding
from audit.messages import Meaning
from audit.policy import Outcome, Run, Status
from audit.text import DETAILED_MESSAGE_LENGTH, Style

_WORDS = ("", " (warning)", " (critical)")
_SEVERITIES = {Outcome.SUCCEEDED: 0, Outcome.RUNNING: 1}
_INDENT = 14


def render(audit: Audit, style: Style) -> Iterator[str]:
    """The lines about single containers, with an empty line between two of them."""
    for number, finding in enumerate(audit.findings):
        if number > 0:
            yield ""
        c_id = "without a c_id" if finding.container.c_id is None else f"c_id {finding.container.c_id}"
        yield f"{text.name(finding.container.name)} ({c_id})"
        for title, fact in (*_restore(finding, style.zone), *_facts(finding, style.zone)):
            severity = finding.severity if title == "verdict" else None
            yield from _fact(title, fact, severity, style)
        yield ""
        yield from _runs(finding, style.zone, style)


def _fact(title: str, fact: str, severity: int | None, style: Style) -> Iterator[str]:
    first = f"  {title:12}"
    if title in ("dump", "if harmless") and _INDENT + len(fact) > style.width:
        yield from (first.rstrip(), fact)  # it is to be pasted: a line of its own, unbroken
    elif severity is not None:
        yield first + text.paint(fact, severity, style)  # it is short
    else:
        yield from text.beside(first, fact, style.width, _INDENT)


def _restore(finding: Finding, zone: tzinfo) -> Iterator[tuple[str, str]]:
    """What anybody needs who is about to restore."""
    verdict = finding.verdict
    if finding.status is None:
        yield "verdict", "none: the container was deleted"
    else:
        before = f"; was {finding.yesterday.value} 24 h ago" if finding.yesterday and finding.change else ""
        yield "verdict", f"{finding.status.value}{_WORDS[finding.severity]}{before}"
    yield "reason", text.reason(verdict, zone, DETAILED_MESSAGE_LENGTH)
    if finding.status is Status.UNSURE and verdict.line:
        yield "if harmless", text.setting(verdict.line, finding.container.name) or "add its pattern to success_patterns"
    good, known = verdict.last_success, verdict.known_good
    if good:
        doubt = ", its message is unrecognised" if good is not known else ""
        yield "last good", _span(good, zone) + doubt
        yield "dump", text.one_line(good.url) or "the log does not say where"
    if known and known is not good:
        yield "known good", _span(known, zone)
        yield "dump", text.one_line(known.url) or "the log does not say where"
    if verdict.kept_until:
        yield "kept until", text.since(verdict.kept_until, verdict.now, zone)


def _span(run: Run, zone: tzinfo) -> str:
    """From when to when a run went on, and how long."""
    start = text.minute(run.started, zone) if run.start_logged else "an unknown start"
    return f"{start} to {text.minute(run.ended, zone)} ({text.duration(run.duration)})"


def _facts(finding: Finding, zone: tzinfo) -> Iterator[tuple[str, str]]:
    container, verdict = finding.container, finding.verdict
    yield "policy", text.message(verdict.policy) or "none"
    if finding.status is Status.EXEMPT:
        yield "due", "never"
    elif finding.status:
        yield "due", text.minute(verdict.due, zone)
    if finding.exception:
        yield "exception", text.exception(finding)
    yield "owner", ", ".join(filter(None, map(text.message, (container.owner, container.contact)))) or "unknown"
    yield "state", "deleted" if container.deleted else text.message(container.state) or "unknown"
    yield "engine", text.message(container.engine) or "unknown"
    yield "created", text.minute(container.created, zone)
    if verdict.suspicion:
        yield "note", text.suspicion(verdict)
    for sentence in text.ignored(finding.ignored):
        yield "log", sentence


def _runs(finding: Finding, zone: tzinfo, style: Style) -> Iterator[str]:
    runs, verdict = finding.runs, finding.verdict
    if not runs:
        yield "  no runs in the log"
        return
    yield f"  the last {min(len(runs), text.RUNS_SHOWN)} of {text.count(len(runs), 'run')}, times in {zone}"
    yield f"  {'START':16} {'END':11} {'DURATION':>8}  {'TYPE':8} OUTCOME"
    for run in runs[: text.RUNS_SHOWN]:
        start, end = text.stamp(run.started if run.start_logged else None, zone), text.stamp(run.ended, zone)[-11:]
        outcome = verdict.outcome(run)
        kind = text.shorten(text.one_line(run.type) or "-", 8)
        word = text.paint(outcome.value, _SEVERITIES.get(outcome, 2), style)
        yield f"  {start:16} {end:11} {text.duration(run.duration):>8}  {kind:8} {word}"
        if run.said.line is not None:
            unknown = "unrecognised: " if run.said.meaning is Meaning.UNRECOGNISED else ""
            yield from text.wrap(unknown + text.message(run.said.line, DETAILED_MESSAGE_LENGTH), style.width, " " * 6)
