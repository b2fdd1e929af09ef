"""The past as people and programs read it: a table with a mark a day, JSON and CSV (SPEC section 9).

This module decides nothing and prints nothing.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta, tzinfo
from itertools import groupby

from audit.history import NOTHING, ContainerHistory, DayOutcome, Period
from audit.json_report import iso
from audit.policy import Run, Status, age, minute
from audit.printable import Style, columns, cut, fit, mask, one_line, paint, spell_out, wrap

NAME_COLUMNS = 40
LEAST_NAME_COLUMNS = 16
POLICY_COLUMNS = 12
SECOND = timedelta(seconds=1)

_MARKS = {DayOutcome.OK: "■", DayOutcome.FAILED: "✗", DayOutcome.NONE: "·", DayOutcome.BEFORE: " "}
_ASCII_MARKS = {DayOutcome.OK: "#", DayOutcome.FAILED: "x", DayOutcome.NONE: ".", DayOutcome.BEFORE: " "}
_SEVERITIES = {DayOutcome.OK: 0, DayOutcome.FAILED: 2, DayOutcome.NONE: 1}
_NOT_JUDGED = {Status.EXEMPT: "No backups wanted", Status.NO_POLICY: "No valid policy, so not judged"}
_MERE_TIME = re.compile("[0-9][0-9:_-]*")
_CSV_COLUMNS = (
    *("name", "c_id", "policy", "day", "outcome", "uncovered_seconds"),
    *("run_started", "run_ended", "backup_id"),
)


def totals(histories: Iterable[ContainerHistory]) -> tuple[timedelta, timedelta, float | None]:
    """The counted time of all containers, the uncovered time, and the ratio of all (None if no time counts)."""
    counted = uncovered = NOTHING
    for history in histories:
        counted, uncovered = counted + history.counted, uncovered + history.uncovered
    return counted, uncovered, (counted - uncovered) / counted if counted else None


def worst_first(histories: Iterable[ContainerHistory]) -> list[ContainerHistory]:
    """Histories by ratio, then by the worst age of a backup, then by name; those without a ratio come last."""

    def key(history: ContainerHistory) -> tuple[float, timedelta, str, int]:
        ratio, container = history.ratio, history.container
        return 2 if ratio is None else ratio, -(history.worst_age or NOTHING), container.name, container.c_id or 0

    return sorted(histories, key=key)


def percent(ratio: float | None) -> str:
    """A ratio as `99.9 %`, rounded down: only what is whole is `100.0 %`. Without a ratio `-`."""
    if ratio is None:
        return "-"
    tenths = min(int(ratio * 1000), 1000 if ratio == 1 else 999)
    return f"{tenths / 10:.1f} %"


# --- The table -----------------------------------------------------------------------------------------


def history_table(histories: Sequence[ContainerHistory], period: Period, database: str, style: Style) -> Iterator[str]:
    """The lines of the history for people: a line a container with a mark a day, oldest first; worst ratio first.

    Every strip has the same calendar; strips that are too long for this follow in lines of whole weeks.
    """
    begin, end = minute(period.start, style.zone), minute(period.end, style.zone)
    judged = worst_first(history for history in histories if history.outcomes)
    yield from wrap(f"Backup history of {one_line(database)}, {period.label}: {begin} to {end}", style.width)
    if judged:
        yield from ("", *_strips(judged, period, style), "", *_legend(style))
    yield ""
    for text in _remarks(histories, judged):
        yield from wrap(text, style.width)


def _strips(judged: Sequence[ContainerHistory], period: Period, style: Style) -> Iterator[str]:
    """The containers, each with its strip of days: beside it if there is room, else below it."""
    rows = [("COVERED", "POLICY", "WORST AGE"), *map(_cells, judged)]
    covered, policy, oldest = (max(map(columns, column)) for column in zip(*rows, strict=True))
    room = style.width - covered - policy - oldest - 3
    longest = min(max(9, *(columns(_name(history, NAME_COLUMNS)) for history in judged)), NAME_COLUMNS)
    scale = _scale(period)
    beside = room - 1 - max(len(period.days), len(scale))
    fits = beside >= min(longest, LEAST_NAME_COLUMNS)
    width = min(longest, beside if fits else room)
    names = ["CONTAINER", *(_name(history, width) for history in judged)]
    lines = [
        f"{row[0]:>{covered}} {fit(name, width)} {fit(row[1], policy)} {row[2]:>{oldest}}"
        for row, name in zip(rows, names, strict=True)
    ]
    yield f"{lines[0]} {scale if fits else ''}".rstrip()
    for history, line in zip(judged, lines[1:], strict=True):
        if fits:
            yield f"{line} {_strip(history.outcomes, style)}".rstrip()
        else:
            yield line
            yield from _weeks(history.outcomes, period, style)


def _cells(history: ContainerHistory) -> tuple[str, str, str]:
    oldest = "-" if history.worst_age is None else age(history.worst_age)
    return percent(history.ratio), cut(one_line(history.policy), POLICY_COLUMNS), oldest


def _name(history: ContainerHistory, width: int) -> str:
    """A container's name in at most so many columns; a deleted one keeps its mark."""
    mark = " (deleted)" if history.container.deleted else ""
    return cut(one_line(history.container.name), width - len(mark)) + mark


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
    """A strip in lines of whole weeks, each with its first day, without the lines before the creation."""
    room = (style.width - 18) // 7 * 7
    for first in range(0, len(outcomes), room):
        part = outcomes[first : first + room]
        if set(part) != {DayOutcome.BEFORE}:
            yield f"{'':7}{period.days[first].date} {_strip(part, style)}"


def _legend(style: Style) -> Iterator[str]:
    ok, failed, none, _ = (_ASCII_MARKS if style.ascii else _MARKS).values()
    yield f"{ok} covered all day        {failed} not, and a run failed"
    yield f"{none} not, no run failed     blank: did not exist"


def _remarks(histories: Sequence[ContainerHistory], judged: Sequence[ContainerHistory]) -> Iterator[str]:
    """What the table comes to, what it means, and who is not in it."""
    yield (
        "A container is covered while its newest good backup is recent enough for its policy, grace included. "
        "Judged by today's policies and settings."
    )
    yield _summary(histories, judged)
    others: dict[str, list[str]] = {}
    for history in histories:
        if not history.outcomes:
            heading = _NOT_JUDGED.get(history.status, "Deleted before this period")
            others.setdefault(heading, []).append(_name(history, NAME_COLUMNS))
    yield from (f"{heading}: {', '.join(names)}." for heading, names in others.items())


def _summary(histories: Sequence[ContainerHistory], judged: Sequence[ContainerHistory]) -> str:
    count = f"{len(histories):,} container{'s' * (len(histories) != 1)}"
    counted = [history for history in judged if history.counted]
    if len(counted) < len(histories):
        count += f", {len(counted):,} judged"
    _, uncovered, ratio = totals(histories)
    if ratio is None:
        return f"{count}."
    if not uncovered:
        return f"{count}: covered all the time."
    whole = sum(not history.uncovered for history in counted)
    worst = _name(judged[0], NAME_COLUMNS)
    return (
        f"{count}: {percent(ratio)} of the time covered, {age(uncovered)} in all not covered. "
        f"{whole:,} covered all the time. Worst: {worst}."
    )


# --- JSON ----------------------------------------------------------------------------------------------


def history_json(histories: Iterable[ContainerHistory], period: Period) -> str:
    """The history as one JSON document, a line a container. Texts are whole, with passwords masked."""
    histories = list(histories)
    _, uncovered, ratio = totals(histories)
    head = {
        "from": iso(period.start),
        "to": iso(period.end),
        "days": len(period.days),
        "containers": len(histories),
        "ratio": ratio,
        "uncovered_seconds": uncovered.total_seconds(),
    }
    containers = ",\n".join(json.dumps(_container(history, period)) for history in histories)
    return f'{{"history": {json.dumps(head)},\n"containers": [\n{containers}\n]}}'


def _container(history: ContainerHistory, period: Period) -> dict[str, object]:
    return {
        "name": history.container.name,
        "c_id": history.container.c_id,
        "policy": mask(history.policy),
        "status": history.status.value,
        "first_day": period.days[0].date.isoformat(),
        "ratio": history.ratio,
        "uncovered_seconds": history.uncovered.total_seconds(),
        "worst_age_seconds": _seconds(history.worst_age),
        "median_duration_seconds": _seconds(history.median_duration),
        "outcomes": [outcome.value for outcome in history.outcomes],
    }


def _seconds(duration: timedelta | None) -> float | None:
    return None if duration is None else duration.total_seconds()


# --- CSV -----------------------------------------------------------------------------------------------


def history_csv(past: Iterable[tuple[ContainerHistory, list[Run]]], period: Period, zone: tzinfo) -> Iterator[str]:
    """The CSV: its first line, then those of each container, one a day; without a schedule one, without a day.

    RFC 4180 in UTF-8, without a byte order mark: programs would take it for a part of the first title. Times are local
    times of `zone` with their offset, so that they fit the day beside them and mean one moment. Uncovered seconds
    are rounded up. What a spreadsheet would run, and what would break a line, is defused.
    """
    days = [day.date.isoformat() for day in period.days]
    yield _csv([_CSV_COLUMNS])
    for history, runs in past:
        who = (_text(history.container.name), history.container.c_id, _text(history.policy))
        shown = _run_of_each_day(runs, period)
        cells = zip(days, history.outcomes, history.uncovered_by_day, strict=False)
        rows = [
            (*who, day, outcome, math.ceil(uncovered / SECOND) if uncovered else 0, *_run_cells(shown.get(place), zone))
            for place, (day, outcome, uncovered) in enumerate(cells)
        ]
        yield _csv(rows or [(*who, "", "", "", "", "", "")])


def _run_of_each_day(runs: Iterable[Run], period: Period) -> dict[int | None, Run]:
    """By the place of a day: the last succeeded run that started on it, else the last run."""
    found: dict[int | None, Run] = {}
    for run in sorted(runs):
        place = period.place(run.started)
        if place not in found or _succeeded(run) or not _succeeded(found[place]):
            found[place] = run
    return found


def _succeeded(run: Run) -> bool:
    return run.ended is not None and run.error is None


def _run_cells(run: Run | None, zone: tzinfo) -> tuple[str, str, str]:
    if run is None:
        return "", "", ""
    ended = "" if run.ended is None else run.ended.astimezone(zone).isoformat()
    return run.started.astimezone(zone).isoformat(), ended, _text(run.backup_id)


def _csv(rows: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue().removesuffix("\n")  # the printer adds it


def _text(text: str) -> str:
    """Foreign text without passwords and control characters, and which no spreadsheet takes for a formula."""
    if _MERE_TIME.fullmatch(text):  # as nearly every backup_id: nothing to look for
        return text
    text = spell_out(mask(text))
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "＝", "＋", "－", "＠") else text
