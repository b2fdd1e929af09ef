"""The evidence page: the history of a site as one HTML document that people can read, print and file.

The document needs no script and loads nothing; the policy that it states forbids browsers both. Whatever came out of
the database is put on one line, without passwords, escaped, and isolated from the text around it. This module decides
nothing, reads no clock and writes no file: the frame is in `history_page.html`, the looks are in `history_page.css`.
"""

from __future__ import annotations

import base64
import calendar
import hashlib
import html
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import groupby, islice
from pathlib import Path
from string import Template

from audit.history import ContainerHistory, DayOutcome, Period, Stretch
from audit.history_report import percent, totals, worst_first
from audit.messages import DEFAULT_ERROR_PATTERN
from audit.policy import DAY, UTC, Rules, Run, Status, age, minute
from audit.printable import duration_text, one_line, shorten
from audit.settings import Settings

MESSAGE_SHOWN = 200
RUNS_SHOWN = 3
"""How many failed runs of a stretch are listed, those with the same message counted once."""
STRETCHES_SHOWN = 10_000
"""How many stretches the page has room for; only a site where nearly nothing works has more."""
NARROWEST = 1 / 600
"""The least part of a strip that an uncovered day takes, to be visible among thousands of days."""

_UNCOVERED = (DayOutcome.FAILED, DayOutcome.NONE)
_MARKS = {DayOutcome.OK: ("o", 4), DayOutcome.FAILED: ("f", 4), DayOutcome.NONE: ("n", 6)}
"""The class of each outcome's line in a strip, and where it runs in the strip's height of 8."""
_NOT_JUDGED = {Status.NO_POLICY: "no valid backup policy", Status.EXEMPT: "no backups wanted"}
_NUMBER = re.compile(r"[0-9]+")
_NOT_KNOWN = "–"


@dataclass(frozen=True)
class PageFacts:
    """What the page says of its origin and of how the past was judged."""

    site: str | None
    database: str
    version: str
    made: datetime
    """Aware. Of two pages with the same content, only the line that begins with `<p class="made">` differs."""
    rules: Rules
    population: str = "all active containers"
    """Which containers were asked for."""


def facts(settings: Settings, database: str, version: str, made: datetime, population: str = "") -> PageFacts:
    """The facts of a page about a site with these settings, made at an aware moment."""
    return PageFacts(settings.site, database, version, made, settings.rules, population or PageFacts.population)


def history_page(histories: Iterable[ContainerHistory], period: Period, about: PageFacts) -> str:
    """A complete HTML document."""
    ordered = worst_first(histories)
    gaps = [history for history in ordered if history.uncovered]
    fields = {
        **_facts(period, about),
        **_result(ordered, gaps, period),
        **_population(ordered),
        **_settings(about.rules),
        "axis": _axis(period),
        "containers": "".join(_containers(ordered, gaps, len(period.days))),
        "stretches": "".join(_all_stretches(gaps, about.rules)),
    }
    return _template("history_page.html").substitute(fields)


def _template(name: str) -> Template:
    return Template(Path(__file__).with_name(name).read_text("utf-8"))


# --- Text and figures ----------------------------------------------------------------------------------


def _text(text: str | None) -> str:
    """Foreign text as HTML."""
    return f"<bdi>{html.escape(shorten(one_line(text), MESSAGE_SHOWN))}</bdi>"


def _many(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'s' * (count != 1)}"


def _moment(moment: datetime, rules: Rules) -> str:
    exact = moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return f'<time datetime="{exact}">{minute(moment, rules.zone)}</time>'


def _ratio(ratio: float | None) -> str:
    return _NOT_KNOWN if ratio is None else _figure(ratio, percent(ratio))


def _duration(duration: timedelta | None) -> str:
    if duration is None:
        return _NOT_KNOWN
    text = duration_text(duration) if duration else "0 h"
    if duration > 2 * DAY:
        text = f"{duration / DAY:,.{int(duration < 1000 * DAY)}f} d"
    return _figure(duration.total_seconds(), text)


def _figure(value: float, text: str) -> str:
    """A number for people and, exactly, for programs; its unit has a place of its own, so that digits line up."""
    number, unit = text.split(" ")
    return f'<data value="{value!r}">{number} <span>{unit}</span></data>'


# --- The site as a whole -------------------------------------------------------------------------------


def _facts(period: Period, about: PageFacts) -> dict[str, str]:
    title = shorten(", ".join(one_line(part) for part in ("Backup evidence", about.site, period.label) if part), 70)
    style = _template("history_page.css").substitute(title="".join(f"\\{ord(letter):x} " for letter in title))
    return {
        "title": html.escape(title),
        "style": style,
        "style_digest": base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
        "subject": _text(about.site or about.database),
        "period": _text(period.label),
        "start": _moment(period.start, about.rules),
        "end": _moment(period.end, about.rules),
        "days": _many(len(period.days), "day"),
        "database": _text(about.database),
        "population": _text(about.population),
        "made": _moment(about.made, about.rules),
        "version": html.escape(about.version),
    }


def _result(histories: list[ContainerHistory], gaps: list[ContainerHistory], period: Period) -> dict[str, str]:
    _, uncovered, ratio = totals(histories)
    judged = sum(1 for history in histories if history.counted)
    worst_age, worst = max(((h.worst_age, h.container.name) for h in histories if h.worst_age), default=(None, ""))
    by_day = _uncovered_by_day(gaps, period)
    most = max(by_day, default=0)
    return {
        "ratio": _ratio(ratio),
        "judged": f"{judged:,}",
        "always_covered": f"{judged - len(gaps):,}",
        "uncovered": _duration(uncovered),
        "worst_age": _duration(worst_age),
        "worst_name": f" ({_text(worst)})" if worst_age else "",
        "worst_day": f", <time>{period.days[by_day.index(most)].date}</time>" if most else "",
        "worst_day_count": f"{most:,}",
        "bars": _bars(by_day, judged),
        **{f"days_{kind.value}": f"{sum(h.outcomes.count(kind) for h in gaps):,}" for kind in _UNCOVERED},
    }


def _uncovered_by_day(gaps: Iterable[ContainerHistory], period: Period) -> list[int]:
    """How many containers were not covered, for each day of the period."""
    counts = [0] * len(period.days)
    for history in gaps:
        for number, outcome in enumerate(history.outcomes):
            counts[number] += outcome in _UNCOVERED
    return counts


def _population(histories: list[ContainerHistory]) -> dict[str, str]:
    counts = Counter(history.status for history in histories)
    deleted = sum(history.container.deleted for history in histories)
    return {
        **{status.value: f"{counts[status]:,}" for status in Status},
        "all": f"{len(histories):,}",
        "deleted": f"{deleted:,} of them deleted" if deleted else "",
    }


def _settings(rules: Rules) -> dict[str, str]:
    built_in = rules.error_pattern.pattern == DEFAULT_ERROR_PATTERN
    return {
        "window": age(rules.window),
        "grace": age(rules.grace),
        "max_runtime": age(rules.max_runtime),
        "weekly_day": calendar.day_name[rules.weekly_day],
        "zone": html.escape(str(rules.zone)),
        "policies": ", ".join(f"{_text(name)} {age(each)}" for name, each in rules.policies.items()) or "none",
        "error_pattern": "built in" if built_in else _text(rules.error_pattern.pattern),
    }


# --- Days ----------------------------------------------------------------------------------------------


def _containers(histories: list[ContainerHistory], gaps: list[ContainerHistory], days: int) -> Iterator[str]:
    whole = [history for history in histories if history.counted and not history.uncovered]
    others = [history for history in histories if not history.counted]
    for group, title in ((gaps, "not covered all the time"), (whole, "covered all the time"), (others, "not judged")):
        if group:
            heading = f"{_many(len(group), 'container')} {title}"
            yield f'<tbody><tr class="group"><th colspan="11" scope="rowgroup">{heading}</th></tr>\n'
            yield from (_container(history, number, days) for number, history in enumerate(group))
            yield "</tbody>\n"


def _container(history: ContainerHistory, number: int, days: int) -> str:
    container, outcomes = history.container, history.outcomes
    name = _text(container.name) + " (deleted)" * container.deleted
    cells = (
        _ratio(history.ratio),
        _strip(outcomes, days) if outcomes else _NOT_JUDGED.get(history.status, ""),
        *(f"{outcomes.count(kind):,}" if outcomes else _NOT_KNOWN for kind in _UNCOVERED),
        _duration(history.uncovered if history.counted else None),
        _duration(history.worst_age),
        _duration(history.median_duration),
        _text(history.policy) if history.policy else "none",
        history.status.value,
        _NOT_KNOWN if container.c_id is None else str(container.c_id),
    )
    heading = f'<a href="#c{number}">{name}</a>' if history.uncovered else name
    return _row(f'<th scope="row">{heading}</th>', cells)


def _row(heading: str, cells: Iterable[str]) -> str:
    return f"<tr>{heading}{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>\n"


def _strip(outcomes: Sequence[DayOutcome], days: int) -> str:
    """A line through the days that are ok, a tall block for a failed day, a low one for a day without a run."""
    lines: dict[DayOutcome, list[str]] = {}
    place, least = 0, days * NARROWEST
    for outcome, group in groupby(outcomes):
        length = len(list(group))
        if outcome in _MARKS:
            width = max(length, least) if outcome in _UNCOVERED else length
            lines.setdefault(outcome, []).append(f"M{place} {_MARKS[outcome][1]}h{width:.4g}")
        place += length
    paths = "".join(f'<path class="{_MARKS[outcome][0]}" d="{"".join(line)}"/>' for outcome, line in lines.items())
    judged = len(outcomes) - outcomes.count(DayOutcome.BEFORE)
    return _drawing(days, f"{outcomes.count(DayOutcome.OK)} of {_many(judged, 'day')} ok", paths)


def _bars(counts: list[int], judged: int) -> str:
    """For each day a bar as high as the share of the containers that were not covered."""
    heights = [max(0.5, 8 * count / judged) if count else 0 for count in counts]
    bars = "".join(f"M{place} 8v-{height:.3g}h1V8z" for place, height in enumerate(heights) if height)
    label = f"at most {max(counts, default=0):,} of {_many(judged, 'container')} not covered"
    return _drawing(len(counts), label, f'<path class="b" d="{bars}"/>')


def _drawing(width: int, label: str, paths: str) -> str:
    box = f'viewBox="0 0 {width} 8" preserveAspectRatio="none"'
    return f'<svg {box} role="img" aria-label="{label}"><use href="#grid"/>{paths}</svg>'


def _axis(period: Period) -> str:
    """The labels above the strips, and the grid that all of them show."""
    ticks, percents = list(_ticks(period)), 100 / len(period.days)
    grid = "".join(f"M{place} 0v8" for place, _ in ticks)
    labels = "".join(f'<text x="{place * percents:.4g}%" y="11">{label}</text>' for place, label in ticks)
    return f'<svg class="axis" aria-hidden="true"><defs><path id="grid" d="{grid}"/></defs>{labels}</svg>'


def _ticks(period: Period) -> Iterator[tuple[int, str]]:
    """The places and labels of the days that the axis names, seven at most: Mondays or firsts of a month."""
    count = len(period.days)
    days = 1 if count <= 5 else 7 if count <= 35 else 14
    months = next(months for months in (1, 3, 6, 12, 24) if count <= 200 * months)
    for place, day in enumerate(day.date for day in period.days):
        if count <= 56 and day.toordinal() % days == 1 % days:  # day 1 was a Monday
            yield place, f"{day.day} {day:%b}"
        elif count > 56 and day.day == 1 and (12 * day.year + day.month - 1) % months == 0:
            yield place, f"{day:%Y}" if day.month == 1 else f"{day:%b}"


# --- Uncovered stretches -------------------------------------------------------------------------------


def _all_stretches(gaps: list[ContainerHistory], rules: Rules) -> Iterator[str]:
    most = STRETCHES_SHOWN
    while sum(min(len(history.stretches), most) for history in gaps) > STRETCHES_SHOWN:
        most //= 2
    for number, history in enumerate(gaps):
        yield from _stretches(history, number, most, rules)
    if not gaps:
        yield '<tbody><tr><td colspan="4">none</td></tr></tbody>\n'


def _stretches(history: ContainerHistory, number: int, most: int, rules: Rules) -> Iterator[str]:
    stretches: Sequence[Stretch] = history.stretches
    facts = f"{_ratio(history.ratio)} covered"
    if len(stretches) > most:
        facts += f", the {most:,} longest of {len(stretches):,} stretches"
        longest = sorted(stretches, key=lambda stretch: stretch.start - stretch.end)[:most]
        stretches = sorted(longest, key=lambda stretch: stretch.start)
    heading = f"{_text(history.container.name)} <small>{facts}</small>"
    yield f'<tbody id="c{number}"><tr class="group"><th colspan="4" scope="rowgroup">{heading}</th></tr>\n'
    for stretch in stretches:
        runs = "".join(_runs(stretch.runs, rules))
        cells = (
            _moment(stretch.start, rules),
            _moment(stretch.end, rules),
            _duration(stretch.end - stretch.start),
            f"<ul>{runs}</ul>" if runs else "none",
        )
        yield _row("", cells)
    yield "</tbody>\n"


def _runs(runs: Sequence[Run], rules: Rules) -> Iterator[str]:
    """List items of the first runs; runs in a row whose messages differ only in numbers are one item."""
    left = len(runs)
    for _, alike in islice(groupby(runs, key=_kind), RUNS_SHOWN):
        first, *more = alike
        left -= 1 + len(more)
        what = "stalled" if first.error is None else "failed"
        again = f", and {len(more):,} more until {_moment(more[-1].started, rules)}" if more else ""
        message = "" if first.error is None else f": {_text(first.error)}"
        yield f"<li>{_moment(first.started, rules)} {what}{again}{message}</li>"
    if left:
        yield f"<li>and {_many(left, 'later run')}</li>"


def _kind(run: Run) -> str | None:
    return None if run.error is None else _NUMBER.sub("0", run.error[: 2 * MESSAGE_SHOWN])
