"""Histories in a few lines, for tests of what shows the past.

Tests say `past(run("12 18:07"), bad("13 18:07"), days=9)`: the period ends at `NOW`.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from audit.history import ContainerHistory, last_days, look_back
from audit.policy import HOUR, Container, Rules, Run
from tests.builders import NOW
from tests.db4sci import CREATED
from tests.runs import at, bad, nights

NOTHING = timedelta(0)
LENIENT = Rules(grace=6 * HOUR, max_runtime=24 * HOUR, policies={"Monthly": 744 * HOUR})


def past(
    *runs: Run, days: int = 3, end: datetime = NOW, rules: Rules = LENIENT, begins: str | None = None, **facts: Any
) -> ContainerHistory:
    """The history of a Daily container made long ago, but for the facts that are given; the log `begins` then."""
    given: dict[str, Any] = {"c_id": 7, "name": "sales", "policy": "Daily", "created": CREATED} | facts
    period = replace(last_days(days, end, rules.zone), log_begins=at(begins) if begins else None)
    return look_back(Container(**given), runs, period, rules)


def some_site(days: int = 9, begins: str | None = None) -> list[ContainerHistory]:
    """Five judged containers, and two others."""
    every = nights(*range(1, 14))
    log: dict[str, Any] = {"days": days, "begins": begins}
    return [
        past(*every, **log),
        past(*every[:7], bad("09 00:30"), *every[9:], name="trials", c_id=8, **log),
        past(*every, name="fresh", c_id=9, created=at("12 12:00"), **log),
        past(*every[:1], name="survey", policy="monthly", c_id=10, **log),
        past(*nights(1, 2, 3, 7, 8), name="gone", c_id=11, deleted=True, state=None, **log),
        past(name="scratch", policy="Never", c_id=12, **log),
        past(name="typo", policy="Fortnightly", c_id=13, **log),
    ]
