"""The history as a table for people: a line a container with a mark a day, and what it all comes to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

from audit.history import ContainerHistory, DayOutcome, Period, totals, worst_first
from audit.text import (
    NAME_LENGTH,
    NOT_JUDGED,
    Style,
    age,
    count,
    log_begins,
    minute,
    one_line,
    paint,
    percent,
    shorten,
    wrap,
)

LEAST_NAME_LENGTH = 16
POLICY_LENGTH = 12

_MARKS = {DayOutcome.OK: "■", DayOutcome.FAILED: "✗", DayOutcome.NONE: "·", DayOutcome.BEFORE: " "}
_ASCII_MARKS = {DayOutcome.OK: "#", DayOutcome.FAILED: "x", DayOutcome.NONE: ".", DayOutcome.BEFORE: " "}
_SEVERITIES = {DayOutcome.OK: 0, DayOutcome.FAILED: 2, DayOutcome.NONE: 1}


def render(histories: Sequence[ContainerHistory], period: Period, database: str, style: Style) -> Iterator[str]:
    """The lines of the history, worst ratio first.

    Every strip has the same calendar; strips that are too long for this follow in lines of whole weeks.
    """
    begin, end = minute(period.start, style.zone), minute(period.end, style.zone)
    judged = worst_first(history for history in histories if history.outcomes)
    yield from wrap(f"Backup history of {one_line(database)}, {period.label}: {begin} to {end}", style.width)
    if judged:
        yield ""
        yield from _rows(judged, period, style)
        yield from ("", *_legend(style))
    yield ""
    for sentence in _sentences(histories, judged, style, period):
        yield from wrap(sentence, style.width)


def _rows(judged: Sequence[ContainerHistory], period: Period, style: Style) -> Iterator[str]:
    """The lines of the heading and of each container: its strip of days is beside it if there is room, else below."""
    rows = [("COVERED", "POLICY", "WORST AGE"), *map(_cells, judged)]
    covered, policy, oldest = (max(map(len, column)) for column in zip(*rows, strict=True))
    room = style.width - covered - policy - oldest - 3
    scale = _scale(period)
    longest = max(len("CONTAINER"), *(len(_name(history)) for history in judged))
    beside = room - 1 - max(len(period.days), len(scale))
    fits = beside >= min(longest, LEAST_NAME_LENGTH)
    width = min(longest, beside if fits else room)
    names = ["CONTAINER", *(_name(history, width) for history in judged)]
    lines = [
        f"{row[0]:>{covered}} {name:{width}} {row[1]:{policy}} {row[2]:>{oldest}}"
        for row, name in zip(rows, names, strict=True)
    ]
    if fits:
        strips = [scale, *(_strip(history.outcomes, style) for history in judged)]
        yield from (f"{line} {strip}".rstrip() for line, strip in zip(lines, strips, strict=True))
        return
    yield lines[0]
    for line, history in zip(lines[1:], judged, strict=True):
        yield line
        yield from _weeks(history.outcomes, period, style)


def _cells(history: ContainerHistory) -> tuple[str, str, str]:
    policy = shorten(one_line(history.verdict.policy), POLICY_LENGTH)
    return percent(history.ratio), policy, age(history.worst_age)


def _name(history: ContainerHistory, length: int = NAME_LENGTH) -> str:
    """A container's name in at most so many characters; a deleted one keeps its mark."""
    mark = " (deleted)" if history.container.deleted else ""
    return shorten(one_line(history.container.name), length - len(mark)) + mark


def _scale(period: Period) -> str:
    """The date of every seventh day above its mark."""
    days = len(period.days)
    return "  ".join(f"{period.days[place].date:%m-%d}" for place in range(0, max(days - 4, 1), 7))


def _strip(outcomes: Iterable[DayOutcome], style: Style) -> str:
    marks, strip = _ASCII_MARKS if style.ascii else _MARKS, ""
    for outcome, alike in groupby(outcomes):
        text = marks[outcome] * len(list(alike))
        strip += paint(text, _SEVERITIES[outcome], style) if outcome in _SEVERITIES else text
    return strip


def _weeks(outcomes: Sequence[DayOutcome], period: Period, style: Style) -> Iterator[str]:
    """A strip in lines of whole weeks, each with its first day, without the lines before the container is known."""
    room = (style.width - 18) // 7 * 7
    for first in range(0, len(outcomes), room):
        part = outcomes[first : first + room]
        if set(part) != {DayOutcome.BEFORE}:
            yield f"{'':7}{period.days[first].date} {_strip(part, style)}"


def _legend(style: Style) -> Iterator[str]:
    ok, failed, none, _ = (_ASCII_MARKS if style.ascii else _MARKS).values()
    yield f"{ok} covered all day              {failed} not covered, a run failed"
    yield f"{none} not covered, no run failed   blank: not known"


def _sentences(
    histories: Sequence[ContainerHistory],
    judged: Sequence[ContainerHistory],
    style: Style,
    period: Period,
) -> Iterator[str]:
    """What the table means, what it comes to, and who is not in it."""
    yield (
        "A container is covered while its newest good backup is recent enough for its policy, grace included. "
        "Judged by today's policies and settings."
    )
    yield from filter(None, [log_begins(period, style.zone)])
    others: dict[str, list[str]] = {}
    for history in histories:
        if not history.outcomes:
            heading = NOT_JUDGED.get(history.verdict.status, "deleted before this period").capitalize()
            others.setdefault(heading, []).append(_name(history))
    for heading, names in others.items():
        yield f"{heading}: {', '.join(names)}."
    yield _summary(histories, judged)


def _summary(histories: Sequence[ContainerHistory], judged: Sequence[ContainerHistory]) -> str:
    containers = count(len(histories), "container")
    counted = [history for history in judged if history.counted]
    if len(counted) < len(histories):
        containers += f", {len(counted)} judged"
    uncovered, ratio = totals(histories)
    if ratio is None:
        return f"{containers}."
    if not uncovered:
        return f"{containers}: covered all the time."
    whole = sum(not history.uncovered for history in counted)
    return (
        f"{containers}: {percent(ratio)} of the time covered, {age(uncovered)} in all not covered. "
        f"{whole} covered all the time. Worst: {_name(judged[0])}."
    )
