"""Properties of the verdicts, against an oracle that was written from SPEC section 2 alone.

The oracle is slow and plain on purpose: it keeps everything in lists, and goes through the table of the
specification row by row. `tests/test_queries.py` uses it as well, on the whole log of a large site.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone, tzinfo
from itertools import pairwise
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy import delete, event, insert

import admin_db
from models import BackupLog, Base, ContainerRow, ContainerState
from policy import Container, Rules, Run, Status, judge
from report import clean
from tests.builders import Site, document

UTC = timezone.utc
HOUR = timedelta(hours=1)
MINUTE = timedelta(minutes=1)
TICK = timedelta(microseconds=1)
NOW = datetime(2026, 3, 14, 7, 0, tzinfo=UTC)
ERROR = "pg_dump: error: query failed: ERROR:  permission denied for table visits"
PROGRESS = "\nExecuted Postgres dump_all commands:\npg_dump --dbname error_tracking --username pgdba  -F c -f /var/"


# --- The oracle ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LogRow:
    """A row of `backups`, as far as it can matter."""

    c_id: int | None
    state: str | None
    backup_id: str | None
    ts: datetime | None
    err_msg: str | None = ""
    name: str | None = None


@dataclass(frozen=True)
class PlainRun:
    """A run as the specification tells it."""

    backup_id: str
    started: datetime
    has_end: bool
    reports_error: bool


@dataclass(frozen=True)
class Answer:
    """What the specification says about a container; `due` is None where it does not say a moment."""

    status: str
    due: datetime | None
    last_success: str | None
    last_run: str | None


def moment_of(local: datetime, zone: tzinfo) -> datetime:
    """A local time as the specification reads it: the first occurrence."""
    return local.replace(tzinfo=zone, fold=0).astimezone(UTC)


def plain_runs(rows: Iterable[LogRow], last_seen: datetime, zone: tzinfo) -> list[PlainRun]:
    """The runs in the rows of one container that are neither malformed nor after `last_seen`."""
    usable = [row for row in rows if row.ts is not None and row.backup_id and row.state in ("start", "end")]
    seen = [row for row in usable if row.ts is not None and moment_of(row.ts, zone) <= last_seen]
    rows_of: dict[str, list[LogRow]] = {}
    for row in seen:
        rows_of.setdefault(str(row.backup_id), []).append(row)
    runs = []
    for backup_id, own in sorted(rows_of.items()):
        starts = [moment_of(row.ts, zone) for row in own if row.state == "start" and row.ts]
        ends = [moment_of(row.ts, zone) for row in own if row.state == "end" and row.ts]
        started = min(starts) if starts else max(ends)
        runs.append(PlainRun(backup_id, started, bool(ends), any(row.err_msg == ERROR for row in own)))
    return runs


def outcome_of(run: PlainRun, now: datetime, rules: Rules) -> str:
    if run.reports_error:
        return "failed"
    if run.has_end:
        return "succeeded"
    if run.started > now - rules.max_runtime:
        return "running"
    return "stalled"


def due_after(policy: str, base: datetime, rules: Rules) -> datetime:
    if policy == "daily":
        return base + rules.window
    if policy == "weekly":
        first = base.astimezone(rules.zone).date()
        days = [first + timedelta(days=n) for n in range(16)]
        midnights = [
            moment_of(datetime(day.year, day.month, day.day), rules.zone)
            for day in days
            if day.weekday() == rules.weekly_day
        ]
        return min(midnight for midnight in midnights if midnight > base) + rules.window
    return base + {name.lower(): hours for name, hours in rules.policies.items()}[policy]


def ask_oracle(
    policy: str | None,
    state: str | None,
    created: datetime | None,
    runs: Sequence[PlainRun],
    now: datetime,
    rules: Rules,
) -> Answer:
    """The table of statuses of SPEC section 2, from top to bottom."""
    by_start = sorted(runs, key=lambda run: run.started)
    outcomes = [outcome_of(run, now, rules) for run in by_start]
    newest = outcomes[-1] if outcomes else None
    not_running = [outcome for outcome in outcomes if outcome != "running"]
    concluded = not_running[-1] if not_running else None
    successes = [run for run in by_start if outcome_of(run, now, rules) == "succeeded"]
    last_run = by_start[-1].backup_id if by_start else None
    last_success = successes[-1].backup_id if successes else None

    word = (policy or "").strip().lower()
    scheduled = ["daily", "weekly", *[name.lower() for name in rules.policies]]
    if word not in [*scheduled, "never", "none"]:
        return Answer("no_policy", None, last_success, last_run)
    if word in ("never", "none"):
        return Answer("exempt", None, last_success, last_run)

    base = successes[-1].started if successes else created
    due = due_after(word, base, rules) if base else None
    in_time = due is not None and now < due
    almost = due is not None and now < due + rules.grace
    table = [
        ("running", newest == "running" and not (concluded == "succeeded" and in_time)),
        ("failed", concluded == "failed"),
        ("stalled", concluded == "stalled"),
        ("ok", in_time and bool(successes)),
        ("new", in_time),
        ("paused", state != "running"),
        ("late", almost),
        ("missed", True),
    ]
    return Answer(next(status for status, applies in table if applies), due, last_success, last_run)


# --- judge and the oracle ------------------------------------------------------------------------------

RULES = st.builds(
    Rules,
    zone=st.sampled_from([UTC, ZoneInfo("Europe/Berlin"), ZoneInfo("America/Havana"), ZoneInfo("Asia/Kathmandu")]),
    weekly_day=st.integers(0, 6),
    window=st.sampled_from([24 * HOUR, 2 * HOUR, 26.5 * HOUR]),
    grace=st.sampled_from([6 * HOUR, timedelta(0), 48 * HOUR]),
    max_runtime=st.sampled_from([24 * HOUR, HOUR, 72 * HOUR]),
    policies=st.just({"Monthly": 744 * HOUR}),
)
POLICIES = st.sampled_from(
    ["Daily", "Daily", "Daily", "Weekly", "Weekly", " weekly ", "MONTHLY", "Never", "none", "Fortnightly", "", None]
)
STATES = st.sampled_from(["running", "running", "running", "maintenance", None])
AGES = st.one_of(
    st.integers(-4, 60 * 24 * 40).map(lambda minutes: minutes * MINUTE),
    # on and beside the boundaries
    st.builds(
        lambda hours, ticks: hours * HOUR + ticks * TICK,
        st.sampled_from([0, 1, 2, 6, 8, 24, 26.5, 30, 32.5, 48, 72, 74, 744, 750]),
        st.integers(-1, 1),
    ),
)
CREATIONS = st.one_of(st.none(), AGES.map(lambda age: NOW - age))


@st.composite
def histories(draw: st.DrawFn) -> list[Run]:
    """Runs that all started at different moments, the newest at most some minutes after NOW."""
    ages = draw(st.lists(AGES, max_size=7, unique=True))
    runs = []
    for number, age in enumerate(ages):
        kind = draw(st.sampled_from(["ok", "ok", "end only", "open", "open", "failed", "broken"]))
        started = NOW - age
        ended = None if kind in ("open", "broken") else started + (0 if kind == "end only" else 23) * MINUTE
        error = ERROR if kind in ("failed", "broken") else None
        run_type = draw(st.sampled_from(["Daily", "Weekly", "User", "Admin", "NA", ""]))
        runs.append(Run(f"run {number}", run_type, started, ended, error, kind != "end only"))
    return runs


@hypothesis_settings(max_examples=500)
@given(histories(), POLICIES, STATES, CREATIONS, RULES, st.one_of(st.just(timedelta(0)), AGES))
def test_judge_agrees_with_the_oracle(
    runs: list[Run], policy: str | None, state: str | None, created: datetime | None, rules: Rules, later: timedelta
) -> None:
    now = NOW + later
    verdict = judge(Container(7, "sales", policy=policy, state=state, created=created), runs, now, rules)
    plain = [PlainRun(run.backup_id, run.started, run.ended is not None, run.error is not None) for run in runs]
    answer = ask_oracle(policy, state, created, plain, now, rules)
    assert verdict.status.value == answer.status, verdict.reason
    assert (verdict.last_success.backup_id if verdict.last_success else None) == answer.last_success
    assert (verdict.last_run.backup_id if verdict.last_run else None) == answer.last_run
    if answer.due is not None:
        assert verdict.due == answer.due
    elif answer.status in ("no_policy", "exempt"):
        assert verdict.due is None
    else:  # neither a success nor a creation is known
        assert verdict.due is not None
        assert verdict.due < now - 24 * 365 * HOUR
    assert verdict.reason


@given(histories(), POLICIES, STATES, CREATIONS, RULES, st.randoms(use_true_random=False))
def test_the_order_of_the_runs_does_not_matter(
    runs: list[Run], policy: str | None, state: str | None, created: datetime | None, rules: Rules, random: Any
) -> None:
    container = Container(7, "sales", policy=policy, state=state, created=created)
    shuffled = random.sample(runs, len(runs))
    assert judge(container, shuffled, NOW, rules) == judge(container, runs, NOW, rules)


BECOMES = {
    Status.NO_POLICY: {Status.NO_POLICY},
    Status.EXEMPT: {Status.EXEMPT},
    Status.FAILED: {Status.FAILED},
    Status.STALLED: {Status.STALLED},
    Status.RUNNING: {Status.RUNNING, Status.STALLED},
    # a backup that ran beside the last good one is noticed when that one is overdue, or when it stalls
    Status.OK: {Status.OK, Status.RUNNING, Status.STALLED, Status.PAUSED, Status.LATE, Status.MISSED},
    Status.NEW: {Status.NEW, Status.PAUSED, Status.LATE, Status.MISSED},
    Status.PAUSED: {Status.PAUSED},
    Status.LATE: {Status.LATE, Status.MISSED},
    Status.MISSED: {Status.MISSED},
}
"""What a status may turn into when time passes and nothing is logged."""


def test_no_status_turns_into_a_better_one() -> None:
    assert set(BECOMES) == set(Status)
    assert all(after.severity >= before.severity for before, turns in BECOMES.items() for after in turns)


@given(histories(), POLICIES, STATES, CREATIONS, RULES, st.lists(AGES.map(abs), min_size=1, max_size=6))
def test_more_elapsed_time_never_improves_a_verdict(
    runs: list[Run],
    policy: str | None,
    state: str | None,
    created: datetime | None,
    rules: Rules,
    steps: list[timedelta],
) -> None:
    container = Container(7, "sales", policy=policy, state=state, created=created)
    statuses = [judge(container, runs, NOW + step, rules).status for step in sorted([timedelta(0), *steps])]
    for before, after in pairwise(statuses):
        assert after in BECOMES[before], statuses


@given(histories(), POLICIES, CREATIONS, RULES)
def test_in_the_end_every_promise_is_broken(
    runs: list[Run], policy: str | None, created: datetime | None, rules: Rules
) -> None:
    container = Container(7, "sales", policy=policy, created=created)
    status = judge(container, runs, NOW + 400 * 24 * HOUR, rules).status
    assert status in (Status.EXEMPT, Status.NO_POLICY, Status.FAILED, Status.STALLED, Status.MISSED)


# --- Text from the database ----------------------------------------------------------------------------

ANY_TEXT = st.text(st.characters(), max_size=30)
HOSTILE_TEXT = st.one_of(
    ANY_TEXT,
    st.text(st.sampled_from("\x00\x01\x07\x1b[31m\x7f\x85\x9b\r\n\t\u2028\u202e\u2066\ufeff\U000e0041a "), max_size=30),
)


@given(st.lists(HOSTILE_TEXT, min_size=5, max_size=5), CREATIONS, st.booleans())
def test_a_clean_reason_has_no_control_character(texts: list[str], created: datetime | None, failed: bool) -> None:
    name, policy, state, backup_id, message = texts
    rules = Rules(policies={"Monthly": 744 * HOUR})
    error = f"{ERROR}{message}" if failed else None
    for known in ("Daily", "Weekly", policy):
        for runs in ([], [Run(backup_id, message, NOW - 30 * HOUR, NOW - 29 * HOUR, error)]):
            container = Container(7, name, policy=known, state=state, created=created)
            shown = clean(judge(container, runs, NOW, rules).reason)
            assert shown.isprintable()
            assert "\n" not in shown


# --- Through the database ------------------------------------------------------------------------------

FIRST = datetime(2026, 1, 30)
"""The first moment of the random logs; 43 days and 7 hours before NOW."""


@dataclass(frozen=True)
class Promise:
    """An active container of a random site."""

    c_id: int
    policy: str | None
    state: str | None
    created: datetime | None
    """Naive UTC."""


@pytest.fixture(scope="module")
def small_site(tmp_path_factory: pytest.TempPathFactory) -> Iterable[Site]:
    """An SQLite site that the examples of this module take turns with."""
    folder: Path = tmp_path_factory.mktemp("site")
    url = f"sqlite:///{folder / 'admin.db'}"
    engine = admin_db.make_engine(url)
    event.listen(engine, "connect", lambda connection, _: connection.execute("PRAGMA synchronous = OFF"))
    admin_db.create_tables(engine)
    yield Site(engine, {"database_url": url}, folder)
    engine.dispose()


def fill(site: Site, promises: Iterable[Promise], rows: Sequence[LogRow], stride: int = 1) -> None:
    """Replace all that is in the database. With a `stride` the ids of the log have gaps, as if it were long."""
    with site.session() as session:
        for table in Base.metadata.tables.values():
            session.execute(delete(table))
        for one in promises:
            data = document(f"c{one.c_id}", one.policy)
            session.add(ContainerRow(id=one.c_id, name=f"c{one.c_id}", data=data, ts=one.created))
            session.add(ContainerState(c_id=one.c_id, name=f"c{one.c_id}", state=one.state, ts=one.created))
        values = [
            {
                "id": 1 + number * stride,
                "c_id": row.c_id,
                "name": row.name or f"c{row.c_id}",
                "state": row.state,
                "backup_id": row.backup_id,
                "backup_type": "Daily",
                "err_msg": row.err_msg,
                "ts": row.ts,
            }
            for number, row in enumerate(rows)
        ]
        if values:
            session.execute(insert(BackupLog), values)


def audit(site: Site, now: datetime) -> dict[int, dict[str, Any]]:
    """The JSON documents of all containers, by c_id."""
    result = site.audit("--json", "--at", now.isoformat())
    assert result.err == ""
    report = json.loads(result.out)
    return {one["c_id"]: one for one in report["containers"]}


def one_of_each(c_ids: Sequence[int]) -> st.SearchStrategy[list[Promise]]:
    creations = st.one_of(st.none(), st.integers(0, 43 * 24 * 60).map(lambda minutes: FIRST + minutes * MINUTE))
    return st.tuples(*(st.builds(Promise, st.just(c_id), POLICIES, STATES, creations) for c_id in c_ids)).map(list)


@st.composite
def logs(draw: st.DrawFn, c_ids: Sequence[int | None], most: int = 24) -> list[LogRow]:
    """Rows in the order in which they were written; no two at the same minute, backup_ids meet now and then."""
    minutes = draw(st.lists(st.integers(0, 43 * 24 * 60 + 7 * 60), max_size=most, unique=True))
    rows = []
    for minute in sorted(minutes):
        c_id = draw(st.sampled_from(c_ids))
        state = draw(st.sampled_from(["start", "start", "end", "end", "end", "END", None]))
        backup_id = draw(st.sampled_from(["a", "b", "c", "d", "e", "f", "g", "", None]))
        message = draw(st.sampled_from(["", None, PROGRESS, PROGRESS, ERROR]))
        rows.append(LogRow(c_id, state, backup_id, FIRST + minute * MINUTE, message))
    return rows


def scheduled(document: dict[str, Any]) -> dict[str, Any]:
    """A container's document; without its runs if no backup is due, since they decide nothing then."""
    if document["status"] not in ("no_policy", "exempt"):
        return document
    return {key: value for key, value in document.items() if key not in ("last_success", "last_run")}


STRIDES = st.sampled_from([1, 3_000, 30_000])
MOMENTS = st.integers(10 * 24 * 60, 43 * 24 * 60 + 7 * 60).map(
    lambda minutes: (FIRST + minutes * MINUTE).replace(tzinfo=UTC)
)
CONFIGURED = Rules(weekly_day=5)


def assert_right(
    documents: dict[int, dict[str, Any]], promises: list[Promise], rows: list[LogRow], now: datetime
) -> None:
    for one in promises:
        runs = plain_runs([row for row in rows if row.c_id == one.c_id], now, UTC)
        created = one.created.replace(tzinfo=UTC) if one.created else None
        answer = ask_oracle(one.policy, one.state, created, runs, now, CONFIGURED)
        found = documents[one.c_id]
        assert found["status"] == answer.status, found
        if answer.status in ("no_policy", "exempt"):
            continue  # their runs decide nothing; a test in test_queries.py is about them
        assert (found["last_success"] or {}).get("backup_id") == answer.last_success, found
        assert (found["last_run"] or {}).get("backup_id") == answer.last_run, found
        if answer.due:
            assert found["due"] == answer.due.replace(tzinfo=None).isoformat() + "Z"


@hypothesis_settings(max_examples=120)
@given(one_of_each([1, 2, 3]), logs([1, 2, 3, 9, 0, None]), MOMENTS, STRIDES)
def test_the_audit_of_a_random_log_agrees_with_the_oracle(
    small_site: Site, promises: list[Promise], rows: list[LogRow], now: datetime, stride: int
) -> None:
    fill(small_site, promises, rows, stride)
    assert_right(audit(small_site, now), promises, rows, now)


@hypothesis_settings(max_examples=40)
@given(one_of_each([1, 2, 3]), logs([1]), logs([2, 3, 9, 0, None]), MOMENTS, STRIDES)
def test_one_containers_rows_never_change_anothers_verdict(
    small_site: Site,
    promises: list[Promise],
    own: list[LogRow],
    foreign: list[LogRow],
    now: datetime,
    stride: int,
) -> None:
    fill(small_site, promises[:1], own, stride)
    alone = audit(small_site, now)[1]
    together = sorted([*own, *foreign], key=lambda row: row.ts or FIRST)
    fill(small_site, promises, together, stride)
    assert scheduled(audit(small_site, now)[1]) == scheduled(alone)


@hypothesis_settings(max_examples=40)
@given(one_of_each([1, 2, 3]), logs([1, 2, 3, 9]), MOMENTS, st.randoms(use_true_random=False))
def test_the_order_of_the_rows_does_not_matter(
    small_site: Site, promises: list[Promise], rows: list[LogRow], now: datetime, random: Any
) -> None:
    fill(small_site, promises, rows)
    in_order = audit(small_site, now)
    fill(small_site, random.sample(promises, len(promises)), random.sample(rows, len(rows)))
    assert audit(small_site, now) == in_order


@hypothesis_settings(max_examples=40)
@given(one_of_each([1, 2]), logs([1, 2]), MOMENTS, STRIDES)
def test_all_containers_together_and_one_by_one_get_the_same_verdicts(
    small_site: Site, promises: list[Promise], rows: list[LogRow], now: datetime, stride: int
) -> None:
    fill(small_site, promises, rows, stride)
    together = audit(small_site, now)
    for c_id, expected in together.items():
        result = small_site.audit("--json", "--at", now.isoformat(), f"c{c_id}")
        (single,) = json.loads(result.out)["containers"]
        runs = single.pop("runs")
        assert scheduled(single) == scheduled(expected)
        assert result.status == expected["severity"]
        starts = [run["started"] for run in runs]
        assert starts == sorted(starts, reverse=True)
        assert runs[:1] == ([single["last_run"]] if single["last_run"] else [])
