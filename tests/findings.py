"""Findings and histories in a few lines, for tests of what formats them.

Tests say `finding("sales", run("12 18:07"), bad("13 18:07"))` and `past(run("12 18:07"), days=9)`; the audit runs at
`NOW`, where the period ends, and the verdicts are those of the real rules.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import date, datetime, timedelta
from typing import Any

from audit.auditor import Audit, Finding
from audit.history import ContainerHistory, last_days, look_back
from audit.log import IgnoredRows
from audit.policy import DAY, HOUR, UTC, Container, Rules, Run, judge, newest_first
from audit.settings import AcceptedException
from tests.builders import NOW
from tests.db4sci import CREATED, SECRET
from tests.runs import ERROR, RULES, UNKNOWN, at, bad, doubtful, nights, run, unfinished

BAD = f"\x1b[2J\x1b[31mred password={SECRET} \u202eevil\u202c"
"""What a terminal would obey, a password, and what would reorder the line."""
PIECES = [
    *("\x1b[2J\x1b[31mred\x1b[0m", "\x1b]0;title\x07", "\x1b]8;;http://example.org\x1b\\", "\x9b31m", "\x90q\x9c"),
    *("\x7f\x08\x07\x05", "\r\n", "\r", "\n", "\t", "\x0b\x0c\x1c\x1d\x1e\x1f\x85", "\u2028\u2029", "\u0300\u0301"),
    *("\u202e\u2066\u200b\ufeff\U000e0041", "\U0001f4be数据", '"} 1\nmydb_backup_status{name="forged"} 1\n', '"', "'"),
    *("\\", "\\n", "{}", ",", "# HELP mydb_backup_status forged", "%s %(name)s %%", ":name", "{0} {name}", "--json"),
    *("'; DROP TABLE backups; --", "=cmd|' /C calc'!A0", "pg_dump: error: ", "password=", "s3://user:pass@host", " "),
    *("Daily", "Weekly", "never", "\u00a0", "start", "end", "offsite", "20260313-18:07:31", "x" * 300),
]
"""What some program could obey, or mistake for something of its own."""
FROZEN = AcceptedException(date(2026, 12, 31), "frozen for the paper, ticket 4711", datetime(2027, 1, 1, tzinfo=UTC))
ENDED = AcceptedException(date(2026, 3, 12), "moved to another host", datetime(2026, 3, 13, tzinfo=UTC))
NOTHING = timedelta(0)
LENIENT = Rules(grace=6 * HOUR, max_runtime=24 * HOUR, policies={"Monthly": 744 * HOUR})


def finding(
    name: str = "sales", *runs: Run, c_id: int | None = 7, more: Any = None, rules: Rules = RULES, **facts: Any
) -> Finding:
    """What the audit finds of a container with these runs; `more` are further fields of the finding."""
    given = {
        "backup_freq": "Daily",
        "engine": "Postgres",
        "owner": "ada",
        "contact": "ada@example.org",
        "created": CREATED,
    }
    container = Container(c_id, name, **{**given, **facts})
    yesterday = None
    if container.created and container.created <= NOW - DAY:
        early = [one for one in runs if one.started <= NOW - DAY]
        seen = [one if one.ended and one.ended <= NOW - DAY else replace(one, ended=None) for one in early]
        yesterday = judge(container, seen, NOW - DAY, rules).status
    found = tuple(newest_first(runs))
    return Finding(judge(container, runs, NOW, rules), yesterday, **{"runs": found, **(more or {})})


def ok(name: str = "sales", **facts: Any) -> Finding:
    return finding(name, run("12 18:07"), run("13 18:07"), **facts)


def missed(name: str = "sales", **facts: Any) -> Finding:
    """A container that has had the same problem for days."""
    return finding(name, run("10 18:07"), **facts)


def failed(name: str = "sales", error: str = ERROR, **facts: Any) -> Finding:
    """A container that was ok 24 hours ago."""
    return finding(name, run("12 18:07"), bad("14 02:00", error), **facts)


def stalled(name: str = "sales", started: str = "13 18:07", **facts: Any) -> Finding:
    return finding(name, run("11 18:07"), run("12 18:07"), unfinished(started), **facts)


def unsure(name: str = "sales", line: str = UNKNOWN, **facts: Any) -> Finding:
    return finding(name, run("12 18:07"), doubtful("13 18:07", line), **facts)


def quick(*later: Run, **facts: Any) -> Finding:
    """A container whose run of last night took 2 s, and its others 31 min."""
    return finding("quick", *nights(*range(1, 13), minutes=31), run("13 18:07", 0.03), *later, **facts)


def of_every_status() -> list[Finding]:
    """A container `c-STATUS` of each status, with 1, 2, 3... as `c_id`s."""
    return [
        finding("c-no_policy", backup_freq="Fortnightly", c_id=1),
        finding("c-exempt", backup_freq="Never", c_id=2),
        finding("c-failed", bad("14 02:00"), c_id=3),
        finding("c-stalled", unfinished("12 18:07"), c_id=4),
        finding("c-unsure", doubtful("13 18:07"), c_id=5),
        finding("c-ok", run("13 18:07"), c_id=6),
        finding("c-new", created=at("14 01:00"), c_id=7),
        finding("c-running", run("13 06:50"), unfinished("14 06:50"), c_id=8),
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
        finding(f"{BAD} p", backup_freq=BAD),
        *(missed(name) for name in ("x" * 300, "a b c", "-v")),
    ]


def audit_of(*findings: Finding, **more: Any) -> Audit:
    """An audit of these containers, on a site that is not silent."""
    facts: dict[str, Any] = {"now": NOW, "database": "mydbadmin@db.example.org:32009/mydb_admin", "rules": RULES}
    return Audit(**facts | {"newest_row": NOW - HOUR} | more, findings=findings)


def ignored(**ids: list[int]) -> IgnoredRows:
    """Rows with these ids, by reason."""
    rows = IgnoredRows()
    for reason, some in ids.items():
        rows.add(reason, some, len(some))
    return rows


def past(
    *runs: Run, days: int = 3, end: datetime = NOW, rules: Rules = LENIENT, begins: str | None = None, **facts: Any
) -> ContainerHistory:
    """The history of a Daily container made long ago, but for the facts that are given; the log `begins` then."""
    given: dict[str, Any] = {"c_id": 7, "name": "sales", "backup_freq": "Daily", "created": CREATED} | facts
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
        past(*every[:1], name="survey", backup_freq="monthly", c_id=10, **log),
        past(*nights(1, 2, 3, 7, 8), name="gone", c_id=11, deleted=True, state=None, **log),
        past(name="scratch", backup_freq="Never", c_id=12, **log),
        past(name="typo", backup_freq="Fortnightly", c_id=13, **log),
    ]
