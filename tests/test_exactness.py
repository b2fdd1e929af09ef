"""The audit's verdicts are those of a plain full read, whatever is wrong with the data (SPEC sections 2 and 8).

Each seed is a site: some containers with their logs, in which faults are made at random. The oracle reads all of it
and knows SPEC section 2 alone. One thing is exempt (SPEC section 8): where the rows of a run lie further apart than
`max_runtime_hours`, and some within the days read but others not, those others are left out of the site.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from random import Random
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy import delete, insert

from models import BackupLog, Base, ContainerRow, ContainerState
from tests import oracle
from tests.builders import NOW, Site
from tests.oracle import UTC, Terms, hours

DAY, HOUR = timedelta(days=1), timedelta(hours=1)
ERROR = "pg_dump: error: query failed: ERROR:  permission denied for table visits"
FINE = "\nExecuted Postgres dump_all commands:\npg_dump --dbname error_tracking --username pgdba  -F c -f /var/"
POLICIES = ("Daily", "Daily", "Daily", " daily\n", "Weekly", "Weekly", "Monthly", "Never", "NONE", "Dialy", "", None)
PLACES = ("Info BACKUP_FREQ", "Info labels backup_freq", "Config Labels BACKUP_FREQ")
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Setting:
    """Settings of a site, and moments of its audit; how many days its audit reads in any case."""

    terms: Terms
    moments: list[datetime]
    history_days: int
    days_read: float

    def config(self) -> dict[str, Any]:
        lengths = {f"{name}_hours": getattr(self.terms, name) for name in ("window", "grace", "max_runtime")}
        same = {name: getattr(self.terms, name) for name in ("weekly_day", "policies", "extra_jobs")}
        other = {"db_timezone": str(self.terms.zone), "error_pattern": self.terms.error}
        return {**lengths, **same, **other, "history_days": self.history_days}


def moments(*texts: str) -> list[datetime]:
    return [datetime.fromisoformat(text).replace(tzinfo=UTC) for text in texts]


JOBS = {"offsite": "Daily", "tape": "Weekly"}
BERLIN, SAO_PAULO = ZoneInfo("Europe/Berlin"), ZoneInfo("America/Sao_Paulo")
# around the changes of clocks: 02:40 comes twice in October
IN_BERLIN = moments("2026-03-29 00:30", "2026-03-29 04:00", "2025-10-26 00:40", "2025-10-26 01:40", "2025-10-26 23:00")
# 01:00 of a Sunday that had no midnight; 23:30 for the first and for the second time
IN_SAO_PAULO = moments("2018-11-04 03:00", "2018-02-18 01:30", "2018-02-18 02:30", "2018-02-19 04:00")
HASTY = Terms(SAO_PAULO, 6, window=25.5, grace=0, max_runtime=2, extra_jobs=JOBS)
SETTINGS = [
    Setting(Terms(ZoneInfo("UTC"), extra_jobs=JOBS), [NOW], 0, 10),  # the least that is read
    Setting(Terms(BERLIN, 6, policies={"monthly": 744}, extra_jobs=JOBS), IN_BERLIN, 30, 31 + 0.25 + 30),
    Setting(HASTY, IN_SAO_PAULO, 6, 7 + 25.5 / 24 + 6),
]


# --- Random logs ---------------------------------------------------------------------------------------


def history(chance: Random, now: datetime, days_read: float, every: int) -> Rows:
    """The log of a container up to its last run, which may be long ago; stamps are aware."""
    edge = days_read + chance.choice((-1.5, -0.1, 0, 0.1, 1, 1.2, 2))
    silent = chance.choice((0, 0, 0, 0, 0.5, 1, 1.25, 2, 3, 6.5, 8, 9, edge, edge, 180))
    last = now - silent * DAY - chance.uniform(0, 24) * HOUR
    rows: Rows = []
    for number in range(chance.choice((0, 1, 2, 3, 12))):
        started = last - number * every * DAY - chance.uniform(0, 3) * HOUR
        ended = started + chance.choice((0, 0.2, 1, 5, 26)) * HOUR
        run = {"backup_id": f"{started:%Y%m%d-%H:%M:%S}", "backup_type": "User"}
        if chance.random() < 0.9:  # else a gap
            rows.append({**run, "state": "start", "ts": started, "err_msg": chance.choice((None, "", FINE))})
            if chance.random() < 0.85:
                message = ERROR if chance.random() < 0.2 else FINE
                rows.append({**run, "state": "end", "ts": ended, "err_msg": message})
    return rows


def spoil(chance: Random, rows: Rows, days_read: float) -> None:
    """Make a fault in a row of a log."""
    row = chance.choice(rows)
    far = chance.choice((0.01, 0.5, 3, 10, days_read + 2)) * DAY
    moved = row["ts"] and row["ts"] + chance.uniform(-1, 1) * far
    match chance.randrange(9):
        case 0:
            row[chance.choice(("c_id", "name", "state", "backup_id", "backup_type", "err_msg", "ts"))] = None
        case 1:
            row["ts"] = moved
        case 2:
            rows.append({**row, "ts": moved, "err_msg": chance.choice((row["err_msg"], ERROR))})
        case 3:
            rows.append({**row, "state": chance.choice(("start", "end")), "ts": moved})
        case 4 if len(rows) > 1:
            rows.remove(row)
        case 5 if row["state"]:
            row["state"] = chance.choice((f" {row['state'].upper()}\t", f"{row['state'].title()}\r\n", "", "upload"))
        case 6:
            row["backup_id"] = chance.choice(("", " ", chance.choice(rows)["backup_id"]))
        case 7:
            row["c_id"] = chance.choice((0, 1, 99))
        case _:
            row["err_msg"] = chance.choice((ERROR, f"{FINE}\n{ERROR}", "Failed: unknown to this pattern"))


def without_exempt(rows: Rows, now: datetime, setting: Setting) -> Rows:
    """The rows without those that the module's docstring exempts."""
    runs: dict[Any, list[datetime]] = {}
    for row in rows:
        if row["ts"]:
            runs.setdefault((row["c_id"], row["backup_id"], row["c_id"] == 0 and row["name"]), []).append(row["ts"])
    read_since = now - setting.days_read * DAY
    surely_unread = read_since - hours(setting.terms.max_runtime) - DAY

    def stays(row: dict[str, Any]) -> bool:
        stamps = runs.get((row["c_id"], row["backup_id"], row["c_id"] == 0 and row["name"]), [])
        if row["ts"] is None or min(stamps) >= read_since or max(stamps) < surely_unread:
            return True
        return bool(max(stamps) - row["ts"] <= hours(setting.terms.max_runtime))

    return [row for row in rows if stays(row)]


# --- Random sites --------------------------------------------------------------------------------------


@dataclass
class Tables:
    """The rows of a site."""

    containers: Rows
    states: Rows
    log: Rows

    def write(self, site: Site) -> None:
        """Replace all that is in the database; the log's ids follow the order of its rows."""
        with site.session() as session:
            for table in Base.metadata.tables.values():
                session.execute(delete(table))
            log = [{"id": 7 * number, **row} for number, row in enumerate(self.log)]
            for model, rows in ((ContainerRow, self.containers), (ContainerState, self.states), (BackupLog, log)):
                if rows:
                    session.execute(insert(model), rows)


def random_tables(chance: Random, now: datetime, setting: Setting, containers: int = 12) -> Tables:
    tables, log = Tables([], [], []), Rows()
    outage = now - 2 * DAY if chance.random() < 0.2 else None
    for c_id, name in [*((0, job) for job in JOBS), *((c_id, f"c{c_id}") for c_id in range(1, containers + 1))]:
        policy = chance.choice(POLICIES)
        if c_id:
            add_container(chance, tables, c_id, policy, now)
        every = {"weekly": 7, "monthly": 31}.get((policy or "").lower(), 1)
        rows = history(chance, now, setting.days_read, every)
        rows = [{"c_id": c_id, "name": name, **row} for row in rows]
        for _ in range(chance.choice((0, 0, 1, 1, 2, 4)) if rows else 0):
            spoil(chance, rows, setting.days_read)
        log += [row for row in rows if not (outage and row["ts"] and row["ts"] > outage)]
    log = without_exempt(log, now, setting)
    by_time = sorted(log, key=lambda row: row["ts"] or now)
    log = chance.choice((by_time, by_time[::-1], log, log[::-1], chance.sample(log, len(log))))
    for row in log:
        local = row["ts"] and row["ts"].astimezone(setting.terms.zone).replace(tzinfo=None)
        microsecond = chance.choice((0, 0, 100_000, 123_456))
        tables.log.append({**row, "ts": local and local.replace(microsecond=microsecond)})
    return tables


def add_container(chance: Random, tables: Tables, c_id: int, policy: str | None, now: datetime) -> None:
    """The rows of a container, with or without faults."""
    data: Any = policy
    for key in reversed(chance.choice(PLACES).split()):
        data = {key: data}
    age = chance.choice((400, 400, 400, 27 / 24, 3 / 24, -2 / 24 / 60, -400)) * DAY
    row = {"id": c_id, "name": f"c{c_id}", "data": data, "ts": (now - age).replace(tzinfo=None)}
    state = chance.choice(("running", "running", " RUNNING\t", "maintenance"))
    active = {"c_id": c_id, "name": f"c{c_id}", "state": state}
    for columns, names in ((row, ("name", "data", "ts")), (active, ("name", "state"))):
        if chance.random() < 0.15:
            columns[chance.choice(names)] = None
    if chance.random() < 0.95:
        tables.containers.append(row)
    tables.states += [{**active, "state": "Maintenance"}] * (chance.random() < 0.1)
    tables.states.append(active)
    tables.states += [{**active, "c_id": None}] * (chance.random() < 0.05)


def drawn(seed: int, now: datetime | None = None, **more: int) -> tuple[Random, Setting, datetime, Tables]:
    """A random site, and a random moment if none is given."""
    chance = Random(seed)  # noqa: S311  # draws test data
    setting = chance.choice(SETTINGS)
    now = now or chance.choice(setting.moments)
    return chance, setting, now, random_tables(chance, now, setting, **more)


# --- The audit beside the oracle -----------------------------------------------------------------------


@dataclass
class Audited:
    """What an audit says: its moment, its containers by `c_id` or as extra jobs by name, and the ignored rows."""

    now: datetime
    found: dict[int | str, dict[str, Any]]
    ignored: dict[str, int]

    def statuses(self, column: str = "status") -> dict[int | str, str]:
        return {key: one[column] for key, one in self.found.items() if one[column] is not None}


def audited(site: Site, at: datetime | None = None) -> Audited:
    result = site.audit("--json", *(("--at", at.isoformat()) if at else ()))
    assert (result.err, result.status < 3) == ("", True)
    document = json.loads(result.out)
    now = datetime.fromisoformat(document["audit"]["now"].replace("Z", "+00:00"))
    containers = {one["c_id"] or one["name"]: one for one in document["containers"] if one["c_id"] is not None}
    return Audited(now, containers, document["audit"]["rows_ignored"])


def assert_right(site: Site, setting: Setting, audit: Audited, *, at: bool) -> None:
    """Compare an audit with the oracle, as of its moment and as of 24 hours before."""
    terms, now = setting.terms, audit.now
    expected = oracle.verdicts(site.engine, now, terms, at=at)
    assert audit.statuses() == {key: one.status for key, one in expected.items()}
    for key, one in audit.found.items():
        if one["status"] == "exempt":
            continue  # old runs that no verdict depends on are not looked for
        answer, runs = expected[key], [(one[name] or {}).get("backup_id") for name in ("last_success", "last_run")]
        assert runs == [answer.last_success, answer.last_run], one
        if answer.due is None or answer.due > oracle.LONG_AGO + 365 * DAY:
            assert one["due"] == (answer.due and f"{answer.due.replace(tzinfo=None).isoformat()}Z"), one
    then = oracle.verdicts(site.engine, now - DAY, terms, at=True)
    assert audit.statuses("status_yesterday") == {key: one.status for key, one in then.items()}
    read_since = now - setting.days_read * DAY
    least = oracle.ignored(site.engine, read_since, now, terms, at=at)
    most = oracle.ignored(site.engine, read_since - hours(terms.max_runtime) - DAY, now, terms, at=at)
    for reason, count in audit.ignored.items():
        assert least[reason] <= count <= most[reason], reason


def check(site: Site, seed: int, **more: Any) -> None:
    """Audit a random site as of a moment, and as of 24 hours before."""
    _, setting, now, tables = drawn(seed, **more)
    tables.write(site)
    site.config(**setting.config())
    audit, then = audited(site, now), audited(site, now - DAY)
    assert_right(site, setting, audit, at=True)
    of_both = {key: status for key, status in then.statuses().items() if key in audit.found}
    assert audit.statuses("status_yesterday") == of_both


def check_now(site: Site, seed: int) -> None:
    """Audit a random site by the clock, with rows of the future."""
    _, setting, _, tables = drawn(seed, site.clock())
    tables.write(site)
    site.config(**setting.config())
    assert_right(site, setting, audited(site), at=False)


SEEDS = st.integers(0, 2**32 - 1)
ON_ONE_SITE = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]  # every example replaces all rows


@pytest.mark.slow
@given(SEEDS)
@hypothesis_settings(max_examples=100, suppress_health_check=ON_ONE_SITE)
def test_the_verdicts_of_a_random_site_are_those_of_a_full_read(sqlite_site: Site, seed: int) -> None:
    check(sqlite_site, seed)


@given(SEEDS)
@hypothesis_settings(max_examples=40, suppress_health_check=ON_ONE_SITE)
def test_the_verdicts_of_this_moment_are_those_of_a_full_read(sqlite_site: Site, seed: int) -> None:
    check_now(sqlite_site, seed)


@pytest.mark.slow
@given(SEEDS)
@hypothesis_settings(max_examples=25, suppress_health_check=ON_ONE_SITE)
def test_the_verdicts_on_postgresql_are_those_of_a_full_read(site: Site, seed: int) -> None:
    check(site, seed)
    check_now(site, seed)


@pytest.mark.slow
def test_the_verdicts_of_a_large_site_are_those_of_a_full_read(site: Site) -> None:
    check(site, 1, containers=2_500)
    with site.session() as session:
        assert session.query(BackupLog).count() > 12_000, "more than one batch of runs"


def without_texts(found: Any) -> Any:
    """What is said of a container, without the texts that follow the order of its rows."""
    if not isinstance(found, dict):
        return found
    return {key: without_texts(value) for key, value in found.items() if key not in ("error", "message", "reason")}


@given(SEEDS)
@hypothesis_settings(max_examples=40, suppress_health_check=ON_ONE_SITE)
def test_neither_the_order_of_rows_nor_other_containers_matter(sqlite_site: Site, seed: int) -> None:
    chance, setting, now, tables = drawn(seed)
    sqlite_site.config(**setting.config())
    tables.write(sqlite_site)
    before = audited(sqlite_site, now)
    replace(tables, containers=tables.containers[::-1], log=chance.sample(tables.log, len(tables.log))).write(
        sqlite_site
    )
    after = audited(sqlite_site, now)
    assert (without_texts(after.found), after.ignored) == (without_texts(before.found), before.ignored)
    only = chance.choice([row["c_id"] for row in tables.states if row["c_id"]])
    own = [[row for row in rows if row["c_id"] == only] for rows in (tables.states, tables.log)]
    Tables([row for row in tables.containers if row["id"] == only], *own).write(sqlite_site)
    assert audited(sqlite_site, now).found.get(only) == before.found.get(only)
