"""The evidence page: the history of a site as one HTML document that people can read, print and file.

The document needs no script and loads nothing; the policy that it states forbids browsers both. Whatever comes from
the database is put on one line, without passwords, escaped, and isolated from the text around it. The frame is in
`history_page.html`, the looks are in `history_page.css`.
"""

from __future__ import annotations

import base64
import calendar
import hashlib
import html
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import groupby, islice
from pathlib import Path
from string import Template

from audit import messages
from audit.auditor import exception_of
from audit.history import ContainerHistory, DayOutcome, Period, Stretch, totals, worst_first
from audit.policy import HOUR, Container, Rules, Run, Status, Verdict
from audit.settings import Settings
from audit.text import NOT_JUDGED, age, count, duration, log_begins, message, minute, percent

STRETCHES_SHOWN = 8
"""How many stretches of a container are listed, the longest ones; the page of a large site must stay small."""
FAILURES_SHOWN = 3
"""How many kinds of failed runs of a stretch are listed, each with its number."""
NARROWEST = 1 / 600
"""The least part of a strip that an uncovered day takes, to be visible among thousands of days."""

_UNCOVERED = (DayOutcome.FAILED, DayOutcome.NONE)
_MARKS = {DayOutcome.FAILED: ("f", "4"), DayOutcome.NONE: ("n", "5.6")}
"""The class of an uncovered day's line in a strip, and where it runs in the strip's height of 8."""


@dataclass(frozen=True)
class PageFacts:
    """What the page says besides the histories: its origin, and how the past was judged."""

    settings: Settings
    version: str
    made: datetime
    """Aware. Of two pages with the same content, only the line that begins with `<p class="made">` differs."""
    ignored: Mapping[str, int]
    """How many log rows no verdict could use, by reason."""
    population: str = "all active containers"
    """Which containers were asked for."""

    @property
    def rules(self) -> Rules:
        """What the past was judged by."""
        return self.settings.rules


def render(histories: Iterable[ContainerHistory], period: Period, about: PageFacts) -> str:
    """A complete HTML document."""
    ordered = worst_first(histories)
    gaps = [history for history in ordered if history.uncovered]
    fields = {
        **_origin(period, about),
        **_result(ordered, gaps, period),
        **_limits(ordered, period, about),
        **_population(ordered),
        **_settings(about.settings),
        "axis": _axis(period),
        "containers": "".join(_containers(ordered, gaps, len(period.days))),
        "backups": "".join(_backup(history.verdict, about.rules) for history in sorted(ordered, key=_by_name)),
        "most": str(STRETCHES_SHOWN),
        "stretches": "".join(_all_stretches(gaps, about.rules)),
        "exceptions": "".join(_exceptions(ordered, period, about.settings)),
    }
    return _template("history_page.html").substitute(fields)


def _template(name: str) -> Template:
    return Template(Path(__file__).with_name(name).read_text("utf-8"))


def _text(text: str | None) -> str:
    """Foreign text as HTML."""
    return f"<bdi>{html.escape(message(text), quote=False)}</bdi>"


def _name(container: Container) -> str:
    return _text(container.name) + " (deleted)" * container.deleted


def _row(*cells: str) -> str:
    """A row of a table; its first cell is its heading."""
    heading, *others = cells
    return f'<tr><th scope="row">{heading}</th>{"".join(f"<td>{cell}</td>" for cell in others)}</tr>\n'


def _group(title: str, columns: int) -> str:
    """The heading of a group of rows."""
    return f'<tr class="group"><th colspan="{columns}" scope="rowgroup">{title}</th></tr>\n'


def _by_name(history: ContainerHistory) -> tuple[str, int]:
    return history.container.name, history.container.c_id or 0


# --- The site as a whole -------------------------------------------------------------------------------


def _origin(period: Period, about: PageFacts) -> dict[str, str]:
    site, database = about.settings.textfile.site, about.settings.connection.display_name
    first, last = period.days[0].date, period.days[-1].date
    dates = f"{first} to {last}" if first < last else str(first)
    title = message(", ".join(part for part in ("Backup evidence", site, dates) if part))
    style = _template("history_page.css").substitute(title="".join(f"\\{ord(letter):x} " for letter in title))
    hours = f"{(period.end - period.start) / HOUR:,.1f}".removesuffix(".0")
    return {
        "title": html.escape(title),
        "style": style,
        "style_digest": base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
        "subject": _text(site or database),
        "dates": dates,
        "start": minute(period.start, about.rules.zone),
        "end": minute(period.end, about.rules.zone),
        "length": f"{hours} hours, in {count(len(period.days), 'calendar day')}",
        "database": _text(database),
        "population": _text(about.population),
        "made": minute(about.made, about.rules.zone),
        "version": html.escape(about.version),
    }


def _result(histories: list[ContainerHistory], gaps: list[ContainerHistory], period: Period) -> dict[str, str]:
    uncovered, ratio = totals(histories)
    judged = sum(1 for history in histories if history.counted)
    worst_age, worst = max(((h.worst_age, h.container.name) for h in histories if h.worst_age), default=(None, ""))
    by_day = [0] * len(period.days)
    for history in gaps:
        for place, outcome in enumerate(history.outcomes):
            by_day[place] += outcome in _UNCOVERED
    most = max(by_day)
    return {
        "ratio": percent(ratio),
        "judged": str(judged),
        "always_covered": str(judged - len(gaps)),
        "uncovered": age(uncovered),
        "worst_age": age(worst_age),
        "worst_name": f" ({_text(worst)})" if worst_age else "",
        "worst_day": f", {period.days[by_day.index(most)].date}" if most else "",
        "worst_day_count": str(most),
        "bars": _bars(by_day, judged),
    }


def _limits(histories: list[ContainerHistory], period: Period, about: PageFacts) -> dict[str, str]:
    """The numbers behind what the page does not prove."""
    kept = about.rules.dumps_kept
    return {
        "log_begins": log_begins(period, about.rules.zone) or "The log begins before the period.",
        "unrecognised": count(sum(history.unrecognised for history in histories), "run"),
        "cut": count(sum(history.cut for history in histories), "run"),
        "ignored": count(sum(about.ignored.values()), "row"),
        "ignored_by_reason": ", ".join(f"{number} {reason}" for reason, number in about.ignored.items()),
        "kept": "How long dumps are kept is not known (no dumps_kept_days): a dump named here may be gone."
        if kept is None
        else f"By the settings, a dump is kept for {age(kept)}; nobody looked whether it still exists.",
    }


def _population(histories: list[ContainerHistory]) -> dict[str, str]:
    counts = Counter(history.verdict.status for history in histories)
    deleted = sum(history.container.deleted for history in histories)
    return {
        **{status.value: str(counts[status]) for status in Status},
        "all": str(len(histories)),
        "deleted": f"{deleted} of them deleted" if deleted else "",
    }


def _settings(settings: Settings) -> dict[str, str]:
    rules, patterns = settings.rules, settings.patterns
    return {
        "window": age(rules.window),
        "grace": age(rules.grace),
        "max_runtime": age(rules.max_runtime),
        "weekly_day": calendar.day_name[rules.weekly_day],
        "zone": html.escape(str(rules.zone)),
        "db_zone": html.escape(str(settings.db_timezone)),
        "dumps_kept": "not known" if rules.dumps_kept is None else age(rules.dumps_kept),
        "policies": _listed(f"{_text(name)} {age(each)}" for name, each in rules.policies.items()),
        "extra_jobs": _listed(f"{_text(name)} {_text(policy)}" for name, policy in settings.extra_jobs.items()),
        "error_patterns": _listed(_text(pattern.pattern) for pattern in patterns.errors),
        "success_patterns": _listed(_text(pattern.pattern) for pattern in patterns.successes),
    }


def _listed(values: Iterable[str]) -> str:
    items = "".join(f"<li>{value}</li>" for value in values)
    return f"<ul>{items}</ul>" if items else "none"


def _exceptions(histories: list[ContainerHistory], period: Period, settings: Settings) -> list[str]:
    """The accepted exceptions that were in force at the period's end."""
    rows = []
    for history in histories:
        exception = exception_of(history.container, period.end, settings)
        if exception and period.end < exception.ends:
            status = history.verdict.status.value
            rows.append(_row(_name(history.container), status, str(exception.until), _text(exception.reason)))
    return rows or [_row("none", "", "", "")]


# --- The containers ------------------------------------------------------------------------------------


def _containers(histories: list[ContainerHistory], gaps: list[ContainerHistory], days: int) -> Iterator[str]:
    whole = [history for history in histories if history.counted and not history.uncovered]
    others = [history for history in histories if not history.counted]
    for group, title in ((gaps, "not covered all the time"), (whole, "covered all the time"), (others, "not judged")):
        if group:
            heading = f"{count(len(group), 'container')} {title}"
            yield f"<tbody>{_group(heading, columns=9)}"
            yield from (_container(history, number, days) for number, history in enumerate(group))
            yield "</tbody>\n"


def _container(history: ContainerHistory, number: int, days: int) -> str:
    container, verdict, outcomes = history.container, history.verdict, history.outcomes
    name = _name(container)
    return _row(
        f'<a href="#c{number}">{name}</a>' if history.uncovered else name,
        percent(history.ratio),
        _strip(outcomes, days) if outcomes else NOT_JUDGED.get(verdict.status, ""),
        age(history.uncovered if history.counted else None),
        age(history.worst_age),
        duration(history.median_duration),
        _text(verdict.policy) if verdict.policy else "none",
        verdict.status.value,
        "-" if container.c_id is None else str(container.c_id),
    )


def _backup(verdict: Verdict, rules: Rules) -> str:
    """What there is to restore of a container at the period's end, and where the log says it is."""
    container, run, kept_until = verdict.container, verdict.last_success, ""
    if verdict.kept_until is not None:
        day = f"{verdict.kept_until.astimezone(rules.zone):%Y-%m-%d}"
        kept_until = day if verdict.now < verdict.kept_until else f"<b>{day}, expired</b>"
    return _row(
        _name(container),
        "-" if container.c_id is None else str(container.c_id),
        _text(container.engine) if container.engine else "-",
        _text(container.owner) if container.owner else "-",
        _last_good(verdict, rules),
        _text(run.url) if run and run.url else "-",
        kept_until or "-",
    )


def _last_good(verdict: Verdict, rules: Rules) -> str:
    run, known_good = verdict.last_success, verdict.known_good
    if run is None:
        return "none in the log"
    started = minute(run.started, rules.zone)
    if run is known_good:
        return started
    known = f"known good: {minute(known_good.started, rules.zone)}" if known_good else "none is known to be good"
    return f"{started}, unrecognised message; {known}"


# --- Days ----------------------------------------------------------------------------------------------


def _strip(outcomes: Sequence[DayOutcome], days: int) -> str:
    """A line through the known days, a tall block over a failed day, a low one over a day without a run."""
    lines = {"f": "", "n": ""}
    place, least = 0, days * NARROWEST
    for outcome, group in groupby(outcomes):
        length = len(list(group))
        if outcome in _MARKS:
            kind, height = _MARKS[outcome]
            lines[kind] += f"M{place} {height}h{max(length, least):.4g}"
        place += length
    before = outcomes.count(DayOutcome.BEFORE)
    paths = f'<path class="o" d="M{before} 4H{place}"/>' if before < place else ""
    paths += "".join(f'<path class="{kind}" d="{line}"/>' for kind, line in lines.items() if line)
    return _drawing(days, f"{outcomes.count(DayOutcome.OK)} of {count(place - before, 'day')} ok", paths)


def _bars(counts: list[int], judged: int) -> str:
    """For each day a bar as high as the share of the containers that were not covered."""
    heights = [max(0.5, 8 * number / judged) if number else 0 for number in counts]
    bars = "".join(f"M{place} 8v-{height:.3g}h1V8z" for place, height in enumerate(heights) if height)
    label = f"at most {max(counts)} of {count(judged, 'container')} not covered"
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
    number = len(period.days)
    days = 1 if number <= 5 else 7 if number <= 35 else 14
    months = next(months for months in (1, 3, 6, 12, 24) if number <= 200 * months)
    for place, day in enumerate(day.date for day in period.days):
        if number <= 56 and day.toordinal() % days == 1 % days:  # day 1 was a Monday
            yield place, f"{day.day} {day:%b}"
        elif number > 56 and day.day == 1 and (12 * day.year + day.month - 1) % months == 0:
            yield place, f"{day:%Y}" if day.month == 1 else f"{day:%b}"


# --- Uncovered stretches -------------------------------------------------------------------------------


def _all_stretches(gaps: list[ContainerHistory], rules: Rules) -> Iterator[str]:
    for number, history in enumerate(gaps):
        title = f"{_name(history.container)} <small>{percent(history.ratio)} covered</small>"
        longest = sorted(history.stretches, key=lambda stretch: stretch.start - stretch.end)
        shown, others = longest[:STRETCHES_SHOWN], longest[STRETCHES_SHOWN:]
        yield f'<tbody id="c{number}">{_group(title, columns=4)}'
        for stretch in sorted(shown, key=lambda stretch: stretch.start):
            yield _stretch(stretch, history.container.name, rules)
        if others:
            lost = sum((stretch.end - stretch.start for stretch in others), timedelta())
            yield _row(f"{len(others)} shorter ones", "", age(lost), "")
        yield "</tbody>\n"
    if not gaps:
        yield f"<tbody>{_row('none', '', '', '')}</tbody>\n"


def _stretch(stretch: Stretch, name: str, rules: Rules) -> str:
    runs = "".join(f"<li>{line}</li>" for line in _failures(stretch.runs, name, rules))
    return _row(
        minute(stretch.start, rules.zone),
        minute(stretch.end, rules.zone),
        age(stretch.end - stretch.start),
        f"<ul>{runs}</ul>" if runs else "none",
    )


def _failures(runs: Sequence[Run], name: str, rules: Rules) -> Iterator[str]:
    """The first failed runs; runs in a row that say the same, numbers aside, are one entry."""
    left = len(runs)
    for _, alike in islice(groupby(runs, lambda run: messages.kind(run.said.line or "", name)), FAILURES_SHOWN):
        first, *more = alike
        left -= 1 + len(more)
        said = f"failed: {_text(first.said.line)}" if first.failed else "stalled"
        again = f", and {len(more)} more until {minute(more[-1].started, rules.zone)}" if more else ""
        yield f"{minute(first.started, rules.zone)}{again} {said}"
    if left:
        yield f"and {count(left, 'later run')}"
