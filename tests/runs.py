"""Backup runs in a few lines, for tests of the rules and of what shows them.

Tests say `run("12 18:07"), bad("13 18:07", "pg_dump: error: ..."), unfinished("14 06:50")`; days are of March 2026.
"""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from audit.messages import Meaning, Said
from audit.policy import UTC, Rules, Run

MINUTE = timedelta(minutes=1)
TICK = timedelta.resolution
RULES = Rules()
FINE = "\nExecuted Postgres dump_all commands:\npg_dump --dbname sales --username pgdba  -F c"
ERROR = "pg_dump: error: query failed: ERROR:  permission denied for table visits"
UNKNOWN = "Emulate Docker CLI using podman"


def at(text: str) -> datetime:
    """A moment of March 2026 from `13 18:07`, or a full one."""
    full = text if re.match(r"\d{4}-", text) else f"2026-03-{text}"
    return datetime.fromisoformat(full).replace(tzinfo=UTC)


def run(started: str | datetime, minutes: float = 23, *, ended: str = "", **more: Any) -> Run:
    """A good run that took so many minutes, if its end is not given; `more` are further fields."""
    begin = at(started) if isinstance(started, str) else started
    usual = Run(
        begin,
        f"{begin:%Y%m%d-%H:%M:%S}",
        "Daily",
        ended=at(ended) if ended else begin + minutes * MINUTE,
        url=f"s3://site-backups/prod/{begin:%Y-%m-%d}",
        message=FINE,
    )
    return replace(usual, **more)


def bad(started: str | datetime, message: str = ERROR, minutes: float = 23, **more: Any) -> Run:
    """A run with a message whose first line is an error."""
    return run(started, minutes, message=message, said=Said(Meaning.ERROR, message.partition("\n")[0]), **more)


def doubtful(started: str | datetime, message: str = UNKNOWN, minutes: float = 23, **more: Any) -> Run:
    """A run with a message whose first line is unrecognised."""
    return run(started, minutes, message=message, said=Said(Meaning.UNRECOGNISED, message.partition("\n")[0]), **more)


def unfinished(started: str | datetime, **more: Any) -> Run:
    """A run that has no end, and said nothing wrong."""
    return replace(run(started, url="", **more), ended=None)


def nights(*days: int, minutes: float = 23) -> list[Run]:
    """Good runs of these days of March."""
    return [run(f"{day:02} 18:07", minutes) for day in days]


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
