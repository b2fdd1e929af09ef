"""The history as CSV, for spreadsheets: a row a container and day."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Iterator
from datetime import timedelta

from audit.history import ContainerHistory, Period
from audit.text import harmless, mask

SECOND = timedelta(seconds=1)

_COLUMNS = ("name", "c_id", "policy", "day", "outcome", "uncovered_seconds")
_FORMULA = ("=", "+", "-", "@", "＝", "＋", "－", "＠")
"""How a cell begins that a spreadsheet would compute."""


def render(histories: Iterable[ContainerHistory], period: Period) -> Iterator[str]:
    """The lines of the file, as they are printed: the titles, then each container's rows; without a schedule one
    row without a day.

    RFC 4180, without a byte order mark: programs would take it for a part of the first title. Uncovered seconds are
    rounded up.
    """
    days = [day.date.isoformat() for day in period.days]
    yield _csv([_COLUMNS])
    for history in histories:
        who = (_cell(history.container.name), history.container.c_id, _cell(history.verdict.policy))
        by_day = zip(days, history.outcomes, history.uncovered_by_day, strict=False)  # fewer in a deleted container
        rows = [(*who, day, outcome.value, math.ceil(uncovered / SECOND)) for day, outcome, uncovered in by_day]
        yield _csv(rows or [(*who, "", "", "")])


def _csv(rows: Iterable[Iterable[object]]) -> str:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue().removesuffix("\n")  # the printer adds it


def _cell(text: str) -> str:
    """Foreign text without passwords and control characters, and which no spreadsheet takes for a formula."""
    text = harmless(mask(text))
    return f"'{text}" if text.startswith(_FORMULA) else text
