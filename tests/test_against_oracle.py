"""The audit agrees with tests/oracle.py on random sites, whatever part of the log it reads.

A seed makes a site, the same one each time. With `HYPOTHESIS_PROFILE=search` there are more seeds, and new ones.
"""

from __future__ import annotations

import json
import os
import random
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from sqlalchemy import delete, insert

from models import BackupLog, Base, ContainerRow, ContainerState
from tests.builders import Site, series
from tests.db4sci import document
from tests.oracle import DAY, ERROR, HOUR, UNKNOWN, Key, Oracle, Rules

SEARCH = os.environ.get("HYPOTHESIS_PROFILE") == "search"
SEEDS = random.SystemRandom().sample(range(10**6), 60) if SEARCH else range(3)
SECOND = timedelta(seconds=1)
ZONES = ("UTC", "Europe/Berlin", "America/Los_Angeles")
CLOCKS_CHANGE = tuple(datetime(2026, *day, tzinfo=timezone.utc) for day in ((3, 8), (3, 29), (10, 25), (11, 1)))
POLICIES = [*["Daily"] * 6, *["daily ", "Weekly", " WEEKLY", "Monthly", "Quarterly", "Never", "None", "Dialy", ""]]
FINE = (None, "", "\n", "\nResult: \n")
WRONG = (ERROR, f"\n\nResult: {ERROR}\n", f"{UNKNOWN}\nResult: {ERROR}")
DOUBTFUL = (UNKNOWN, f"\nResult: {UNKNOWN}\n")
COMMON = ("good", "wrong", "never ended", "wrong at start", "wrong, never ended", "doubtful", "no start")


@dataclass
class RandomSite:
    """The rows of a random site before they are written; a `c_id` of 0 or less is a job of the whole site."""

    rng: random.Random
    rules: Rules
    at: datetime
    days: int
    containers: list[dict[str, Any]] = field(default_factory=list)
    states: list[dict[str, Any]] = field(default_factory=list)
    log: list[dict[str, Any]] = field(default_factory=list)

    def write(self, site: Site) -> Oracle:
        """Replace all rows of the site, configure it by these rules, and return the oracle of it."""
        tables: tuple[tuple[type[Base], list[dict[str, Any]]], ...]
        tables = (ContainerRow, self.containers), (ContainerState, self.states), (BackupLog, self.log)
        with site.engine.begin() as db:
            for table, rows in tables:
                db.execute(delete(table))
                db.execute(insert(table), [{"id": number, **row} for number, row in enumerate(rows, 1)])
        rules = vars(self.rules)
        hours = {f"{name}_hours": rules[name] for name in ("window", "grace", "max_runtime")}
        same = {name: rules[name] for name in ("weekly_day", "extra_jobs", "timezone", "db_timezone")}
        policies = {name.title(): each for name, each in self.rules.policies.items()}
        site.config(**hours, **same, policies=policies, history_days=self.days)
        return Oracle(site.engine, self.rules)

    def add(self, c_id: int, ts: datetime | None, state: str | None, backup_id: str | None, message: Any = "") -> None:
        """Log a row, stamped with the local time of the log's zone."""
        local = ts and ts.astimezone(ZoneInfo(self.rules.db_timezone)).replace(tzinfo=None, fold=0)
        row = {"c_id": max(c_id, 0), "name": f"job{-c_id}" if c_id <= 0 else f"db{c_id}", "state": state, "ts": local}
        kind = self.rng.choice(("Daily", "Admin", None))
        self.log.append({**row, "backup_id": backup_id, "backup_type": kind, "err_msg": message})

    def moment(self) -> datetime:
        """A moment as long before `at` as some rule counts, a day more for yesterday's verdict, or a second less."""
        rules, rng, policies = self.rules, self.rng, list(self.rules.policies.values())
        read = max(168 + rules.window, *policies) + rules.max_runtime + 24 * self.days
        hours = [
            1, 2 / 3, 28, rules.max_runtime,  # limits of runs: the least, ten times 4 min, twice 14 h, the usual
            720, 744, 744 + rules.max_runtime, 24 * self.days, read,  # what is typical, the history, what is read
            168, *policies, *[rules.window, rules.window + rules.grace] * 2,  # due, and missed
            rng.uniform(0, 30), rng.uniform(0, 1500),
        ]  # fmt: skip
        near = rng.choice((-1, 0, 1, rng.randrange(-9000, 9000))) * SECOND
        return self.at - round((rng.choice(hours) + rng.choice((0, 0, 24))) * 3600) * SECOND + near

    def run(self, c_id: int, start: datetime, took: timedelta, kind: str, taken: set[datetime]) -> None:
        """Log a run of this kind; nothing if another run of the container has a row of the same stamp."""
        rng = self.rng
        first = rng.choice(WRONG if kind in ("wrong at start", "wrong, never ended") else FINE)
        last = rng.choice(WRONG if kind == "wrong" else DOUBTFUL if kind == "doubtful" else FINE)
        rows = [(start, "start", first), (start + took, "end", last)]
        if kind == "no start":
            del rows[0]
        elif kind.endswith("never ended"):
            del rows[1]
        stamps = {ts.astimezone(ZoneInfo(self.rules.db_timezone)).replace(tzinfo=None) for ts, *_ in rows}
        if not stamps & taken:
            taken |= stamps
            backup_id = f"{start.astimezone(ZoneInfo(self.rules.timezone)):{'%Y%m%d' if c_id <= 0 else '%Y%m%d-%X'}}"
            for ts, state, message in rows:
                self.add(c_id, ts, rng.choice((state, state, f" {state.upper()} ")), backup_id, message)

    def nights(self, c_id: int, step: int) -> None:
        """Log regular nights up to some day, and then what happened near the boundaries."""
        rng, taken = self.rng, set[datetime]()
        # ten times that is less than an hour, an hour, more, and more than most max_runtime; twice the last is, too
        took = rng.choice((0, 5, 240, 360, 432, 3600, 5000, 14 * 3600)) * SECOND
        ago = rng.choice((rng.uniform(0, 24), self.rules.window + rng.uniform(0, self.rules.grace)))  # the latter: late
        evening = self.at - round(ago * 3600) * SECOND
        usual = rng.choice(("good", "good", "good", "doubtful"))
        first, last = rng.choice((0, 0, 4, 20, 45, 80)), rng.choice((0, 0, 1, 1, 2, 5, 9, 35))  # nights ago
        for day in range(first, last, -step):
            kind = rng.choice(COMMON) if rng.random() < 0.05 else usual
            self.run(c_id, evening - (day - 1) * DAY, took + rng.choice((0, 0, 7)) * SECOND, kind, taken)
        for _ in range(rng.choice((0, 0, 0, 1, 1, 2, 5))):  # at some boundary, also that of a run's limit
            start = rng.choice((self.moment(), self.moment(), self.at - 10 * took, self.at - 2 * took - SECOND))
            # the usual time, the limit, suspiciously short, and any
            long = rng.choice((took, took, 10 * took, 10 * SECOND, rng.randrange(100_000) * SECOND))
            self.run(c_id, start, long, rng.choice((*["good"] * 4, *COMMON)), taken)
        for day in range(rng.choice((0, 0, 0, 2, 12))):  # what goes wrong night after night
            self.run(c_id, evening - day * DAY - SECOND, took, rng.choice(COMMON[1:3]), taken)
        if c_id > 0 and rng.random() < 0.2:  # rows that say nothing
            self.add(c_id, self.moment(), rng.choice((None, "", "begin")), "x", ERROR)
            self.add(c_id, self.moment(), rng.choice(("start", "end")), None, ERROR)
            self.add(c_id, None, "end", "x", ERROR)


def random_site(seed: int, containers: int = 30) -> RandomSite:
    """The site of this seed."""
    rng = random.Random(seed)  # noqa: S311 - examples, not secrets
    rules = Rules(
        window=rng.choice((24, 24, 26.5, 12)),
        grace=rng.choice((3, 6, 0.5)),
        max_runtime=rng.choice((12, 12, 2, 24)),
        weekly_day=rng.randrange(7),
        policies={"monthly": 744, "quarterly": rng.choice((2208, 100))},
        extra_jobs={"job0": "Daily"},
        timezone=rng.choice(ZONES),
        db_timezone=rng.choice(("UTC", *ZONES)),
    )
    at = rng.choice(CLOCKS_CHANGE) + rng.randrange(4 * 86400) * SECOND
    made = RandomSite(rng, rules, at, rng.choice((7, 30, 60)))
    for c_id in range(1, containers + 1):
        policy = rng.choice(POLICIES)
        # unknown, long ago, at some boundary, as late as clocks may differ, and a wrong stamp
        created = rng.choice((None, *[at - 400 * DAY] * 4, made.moment(), made.moment(), at + 300 * SECOND, at + HOUR))
        if rng.random() < 0.1:
            created = made.moment()  # and no run
        else:
            made.nights(c_id, 7 if policy in ("Weekly", " WEEKLY") else 1)
        if rng.random() < 0.95:  # else a state without a container
            data = document(f"db{c_id}", policy, version=rng.choice((1, 2)))
            row = {"id": c_id, "name": f"db{c_id}", "data": data, "ts": created and created.replace(tzinfo=None)}
            made.containers.append(row)
        for _ in range(rng.choice((0, *[1] * 9, 2))):  # deleted, active, and active with a row too many
            state = rng.choice(("running", "running", " Running ", "maintenance", None))
            made.states.append({"c_id": c_id, "name": rng.choice((f"db{c_id}", f"db{c_id}", None)), "state": state})
    made.nights(0, 1)
    made.nights(-1, 1)  # a job that is not in extra_jobs
    if rng.random() < 0.3:
        made.add(containers + 1, at - 100 * DAY, "begin", None)  # the log of the site begins before all runs
    rng.shuffle(made.log)  # ids say nothing
    return made


def by_audit(site: Site, at: datetime, days: int) -> dict[Key, dict[str, Any]]:
    """What the audit says of each container as of that moment, in the form of `by_oracle`."""

    def audit(*argv: str) -> dict[Key, dict[str, Any]]:
        done = site.audit("--json", "--at", at.isoformat(), *argv)
        assert done.status < 3, done.err
        return {(each["c_id"] or 0, each["name"]): each for each in json.loads(done.out)["containers"]}

    answer, past = audit("--output", str(site.textfile)), audit("--history", str(days))
    samples = site.samples()
    infos = [dict(labels) for metric, labels in samples if metric == "mydb_backup_failure_info"]
    lines = {(int(info["c_id"]), info["name"]): info["error"] for info in infos}
    for key, container in answer.items():
        good, last = container["last_success"], container["last_run"]
        labels = {"name": key[1], "c_id": str(key[0])}
        answer[key] = {
            "status": container["status"],
            "yesterday": container["status_yesterday"],
            "failures in a row": container["failures_in_a_row"],
            "due": since_known(utc(container["due"])),
            "last success": good and (utc(good["started"]), utc(good["ended"]), good["duration_seconds"]),
            "last run": last and (utc(last["started"]), last["outcome"]),
            "line": lines.get(key),
            "typical": samples.get(series("mydb_backup_typical_duration_seconds", **labels)),
            "metric of the ratio": samples.get(series("mydb_backup_covered_ratio", **labels)),
            "ratio": past[key]["ratio"],
            "worst age": past[key]["worst_age_seconds"],
        }
    return answer


def by_oracle(oracle: Oracle, at: datetime, days: int) -> dict[Key, dict[str, Any]]:
    """What the oracle says of each container."""
    before, history, answer = oracle.verdicts(at - DAY, at), oracle.history(at, days), {}
    for key, verdict in oracle.verdicts(at).items():
        good, last, past = verdict.last_success, verdict.last_run, history[key]
        ratio = past and pytest.approx(past[0], abs=1e-6)
        answer[key] = {
            "status": verdict.status,
            "yesterday": before[key].status if key in before else None,
            "failures in a row": verdict.failures_in_a_row,
            "due": since_known(verdict.due),
            "last success": good and (good.started, good.ended, seconds(good.duration)),
            "last run": last and (last.started, verdict.last_outcome),
            "line": verdict.line and " ".join(verdict.line.removeprefix("Result: ").split()),
            "typical": seconds(verdict.typical),
            "metric of the ratio": ratio,
            "ratio": ratio,
            "worst age": past and pytest.approx(past[1].total_seconds(), abs=1),
        }
    return answer


def utc(stamp: str | None) -> datetime | None:
    return datetime.fromisoformat(stamp.replace("Z", "+00:00")) if stamp else None


def since_known(due: datetime | None) -> datetime | None:
    """The moment, but for one that is reckoned from an unknown creation."""
    return due if due and due.year > 2000 else None


def seconds(duration: timedelta | None) -> float | None:
    return None if duration is None else duration.total_seconds()


def agree(site: Site, made: RandomSite, at: datetime) -> None:
    """Assert that audit and oracle say the same of each container."""
    oracle = made.write(site)
    want, got = by_oracle(oracle, at, made.days), by_audit(site, at, made.days)
    assert got.keys() == want.keys()
    wrong = {key: (want[key], got[key]) for key in want if want[key] != got[key]}
    assert wrong == {}, f"as of {at}"


@pytest.mark.parametrize("seed", SEEDS)
def test_verdicts_and_figures_are_those_of_a_full_read(sqlite_site: Site, seed: int) -> None:
    made = random_site(seed)
    for at in (made.at, made.moment() if seed % 2 else made.at + made.rng.uniform(1, 1500) * HOUR):
        agree(sqlite_site, made, at)


def test_postgresql_is_read_alike(site: Site) -> None:
    made = random_site(SEEDS[0], containers=15)
    agree(site, made, made.at)
