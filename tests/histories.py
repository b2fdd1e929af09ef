"""Runs and their history in a few lines, for tests of the rules and of what shows the past.

Tests say `past(run("12 18:07"), bad("13 18:07"), days=9)`: days are of March 2026, and the period ends at `NOW`.
"""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from audit.history import ContainerHistory, last_days, look_back
from audit.messages import Meaning, Said
from audit.policy import HOUR, UTC, Container, Rules, Run
from tests.builders import NOW

MINUTE = timedelta(minutes=1)
TICK = timedelta.resolution
NOTHING = timedelta(0)
RULES = Rules(grace=6 * HOUR, max_runtime=24 * HOUR, policies={"Monthly": 744 * HOUR})
ERROR = Said(Meaning.ERROR, "pg_dump: error: query failed: ERROR:  permission denied for table visits")
UNKNOWN = Said(Meaning.UNRECOGNISED, "Disk is 100% used")


def at(text: str) -> datetime:
    """A moment of March 2026 from `13 18:07`, or a full one."""
    full = text if re.match(r"\d{4}-", text) else f"2026-03-{text}"
    return datetime.fromisoformat(full).replace(tzinfo=UTC)


CLOCK_CHANGES = [
    ("UTC", at("14 00:00")),
    ("Europe/Berlin", at("29 01:00")),
    ("Europe/Berlin", at("2026-10-25 01:00")),
    ("America/Sao_Paulo", at("2018-11-04 03:00")),  # leaves out midnight
    ("America/Havana", at("2026-11-01 05:00")),  # midnight occurs twice
    ("Africa/Cairo", at("2026-10-29 21:00")),  # returns from midnight to 23:00
    ("Australia/Lord_Howe", at("2026-04-04 15:00")),  # half an hour
    ("Asia/Kathmandu", at("14 18:15")),
    ("Pacific/Apia", at("2011-12-30 10:00")),  # leaves out a Friday
]


def run(started: str | datetime, ended: str | None = "", minutes: float = 23, **more: Any) -> Run:
    """A good run that took so many minutes, if its end is not given; None is a run without an end."""
    begin = at(started) if isinstance(started, str) else started
    end = None if ended is None else at(ended) if ended else begin + minutes * MINUTE
    return Run(begin, f"{begin:%Y%m%d-%H:%M:%S}", ended=end)._replace(**more)


def bad(started: str) -> Run:
    return run(started, said=ERROR)


def nights(*dates: int, minutes: float = 23) -> list[Run]:
    return [run(f"{date:02} 18:07", minutes=minutes) for date in dates]


def past(
    *runs: Run, days: int = 3, end: datetime = NOW, rules: Rules = RULES, begins: str | None = None, **facts: Any
) -> ContainerHistory:
    """The history of a Daily container made long ago, but for the facts that are given; the log `begins` then."""
    given: dict[str, Any] = {"c_id": 7, "name": "sales", "policy": "Daily", "created": at("2025-01-15 09:30")} | facts
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
