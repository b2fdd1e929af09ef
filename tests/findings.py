"""Findings in a few lines, for tests of what formats them.

Tests say `finding("sales", run("12 18:07"), run("13 18:07", error="pg_dump: error: ..."))`; days are of March 2026, the
audit runs at `NOW`, and the verdicts are those of the real rules.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import date, datetime, timedelta
from typing import Any

from audit.auditor import Audit, Finding
from audit.log import IgnoredRows
from audit.messages import Meaning, Said
from audit.policy import DAY, HOUR, UTC, Container, Rules, Run, judge
from audit.settings import AcceptedException
from tests.builders import NOW

RULES = Rules()
FINE = "\nExecuted Postgres dump_all commands:\npg_dump --dbname sales --username pgdba  -F c"
ERROR = "pg_dump: error: query failed: ERROR:  permission denied for table visits"
UNKNOWN = "Emulate Docker CLI using podman"
SECRET = "hunTer2"
BAD = f"\x1b[2J\x1b[31mred password={SECRET} \u202eevil\u202c"
"""What a terminal would obey, a password, and what would reorder the line."""
CREATED = datetime(2025, 1, 15, 9, 30, tzinfo=UTC)
FROZEN = AcceptedException(date(2026, 12, 31), "frozen for the paper, ticket 4711", datetime(2027, 1, 1, tzinfo=UTC))
ENDED = AcceptedException(date(2026, 3, 12), "moved to another host", datetime(2026, 3, 13, tzinfo=UTC))


def at(text: str) -> datetime:
    """A moment of March 2026, from text such as `13 18:07`."""
    return datetime.fromisoformat(f"2026-03-{text}").replace(tzinfo=UTC)


def run(
    started: str | datetime,
    minutes: float | None = 23,
    error: str | None = None,
    message: str = FINE,
    unknown: str | None = None,
    **more: Any,
) -> Run:
    """A run that started at `13 18:07` and took so many minutes, if it has ended.

    The first line of `error` is an error, that of `unknown` unrecognised; any other `message` is fine.
    """
    begin = at(started) if isinstance(started, str) else started
    said = Said(Meaning.FINE, None)
    if error or unknown:
        message = error or unknown or ""
        said = Said(Meaning.ERROR if error else Meaning.UNRECOGNISED, message.partition("\n")[0])
    return Run(
        begin,
        f"{begin:%Y%m%d-%H:%M:%S}",
        "Daily",
        ended=None if minutes is None else begin + timedelta(minutes=minutes),
        said=said,
        url="" if minutes is None else f"s3://site-backups/prod/{begin:%Y-%m-%d}",
        message=message,
    )._replace(**more)


def finding(
    name: str = "sales", *runs: Run, c_id: int | None = 7, more: Any = None, rules: Rules = RULES, **facts: Any
) -> Finding:
    """What the audit finds of a container with these runs; `more` are further fields of the finding."""
    given = {"policy": "Daily", "engine": "Postgres", "owner": "ada", "contact": "ada@example.org", "created": CREATED}
    container = Container(c_id, name, **{**given, **facts})
    yesterday = None
    if container.created and container.created <= NOW - DAY:
        early = [one for one in runs if one.started <= NOW - DAY]
        seen = [one if one.ended and one.ended <= NOW - DAY else one._replace(ended=None) for one in early]
        yesterday = judge(container, seen, NOW - DAY, rules).status
    newest_first = tuple(sorted(runs, reverse=True))
    return Finding(judge(container, runs, NOW, rules), yesterday, **{"runs": newest_first, **(more or {})})


def ok(name: str = "sales", **facts: Any) -> Finding:
    return finding(name, run("12 18:07"), run("13 18:07"), **facts)


def missed(name: str = "sales", **facts: Any) -> Finding:
    """A container that has had the same problem for days."""
    return finding(name, run("10 18:07"), **facts)


def failed(name: str = "sales", error: str = ERROR, **facts: Any) -> Finding:
    """A container that was ok 24 hours ago."""
    return finding(name, run("12 18:07"), run("14 02:00", error=error), **facts)


def stalled(name: str = "sales", started: str = "13 18:07", **facts: Any) -> Finding:
    return finding(name, run("11 18:07"), run("12 18:07"), run(started, None), **facts)


def unsure(name: str = "sales", line: str = UNKNOWN, **facts: Any) -> Finding:
    return finding(name, run("12 18:07"), run("13 18:07", unknown=line), **facts)


def quick(*later: Run, **facts: Any) -> Finding:
    """A container whose run of last night took 2 s, and its others 31 min."""
    nights = [run(f"{day:02} 18:07", 31) for day in range(1, 13)]
    return finding("quick", *nights, run("13 18:07", 0.03), *later, **facts)


def of_every_status() -> list[Finding]:
    """A container `c-STATUS` of each status, with 1, 2, 3... as `c_id`s."""
    return [
        finding("c-no_policy", policy="Fortnightly", c_id=1),
        finding("c-exempt", policy="Never", c_id=2),
        finding("c-failed", run("14 02:00", error=ERROR), c_id=3),
        finding("c-stalled", run("12 18:07", None), c_id=4),
        finding("c-unsure", run("13 18:07", unknown=UNKNOWN), c_id=5),
        finding("c-ok", run("13 18:07"), c_id=6),
        finding("c-new", created=at("14 01:00"), c_id=7),
        finding("c-running", run("13 06:50"), run("14 06:50", None), c_id=8),
        finding("c-paused", run("10 18:07"), state="maintenance", c_id=9),
        finding("c-late", run("13 05:00"), c_id=10),
        finding("c-missed", run("12 18:07"), c_id=11),
    ]


def hostile() -> list[Finding]:
    """Containers with hostile text wherever a finding has room for text."""
    odd = run("10 18:07", message=BAD, type=BAD, backup_id=BAD, url=f"s3://{BAD}")
    return [
        finding(BAD, odd, state=BAD, engine=BAD, owner=BAD, contact=BAD),
        *(failed(f"{BAD} {number}", error=BAD) for number in range(4)),
        *(unsure(f"{BAD} u{number}", line=f"{BAD} {'long ' * 30}") for number in range(2)),
        missed(f"{BAD} a", more={"exception": replace(FROZEN, reason=BAD)}),
        failed(f"{BAD} e", error=f"other {BAD}", more={"exception": replace(ENDED, reason=BAD)}),
        finding(f"{BAD} p", policy=BAD),
        *(missed(name) for name in ("x" * 300, "a b c", "-v")),
    ]


def site(*findings: Finding, **more: Any) -> Audit:
    """An audit of these containers, on a site that is not silent."""
    facts: dict[str, Any] = {"now": NOW, "database": "mydbadmin@db.example.org:32009/mydb_admin", "rules": RULES}
    return Audit(**facts | {"newest_row": NOW - HOUR} | more, findings=findings)


def ignored(**ids: list[int]) -> IgnoredRows:
    """Rows with these ids, by reason."""
    rows = IgnoredRows()
    for reason, some in ids.items():
        rows.add(reason, some, len(some))
    return rows
