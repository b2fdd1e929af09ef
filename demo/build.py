"""Builds the demo: a small admin database in SQLite, with a past of 60 days, for Backup Audit to look at.

    python demo/build.py [FOLDER]

The database, `admin.db` in FOLDER (this folder, if none is named), is made anew each time, through
`admin_db`'s own routines. It is placed relative to the clock, so that the audit comes to the same verdicts
whenever it is built; apart from the clock nothing in it is left to chance.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import admin_db  # noqa: E402
from models import ContainerRow, ContainerState  # noqa: E402

DAY = timedelta(days=1)
HOUR = timedelta(hours=1)
MINUTE = timedelta(minutes=1)

NIGHTS = 60
OUTAGE = 17
"""The night (0 is the last one) in which nothing could be uploaded."""
BUCKET = "s3://site-backups"
MESSAGE_LENGTH = 100
"""DB4Sci keeps so much of a message."""
SECRET = "hunter2-"  # noqa: S105 - opens nothing
"""Every password of the demo begins like this: none of them may ever come out of the audit."""


@dataclass(frozen=True)
class Happening:
    """What became of the run of one night, where it was not an ordinary one."""

    ended: bool = True
    error: str = ""
    error_at_start: bool = False
    """Version 1 notes some errors in the `start` row, beside an `end` row that looks fine."""
    seconds: float | None = None
    """The duration, where it is not the usual one."""


OK = Happening()
UNFINISHED = Happening(ended=False)
UPLOAD_FAILED = Happening(
    error="{engine} Backup error.  Container: {name}\nError message: upload failed: - to " + BUCKET + "/{name}/{id}"
)
NO_SERVER = Happening(error="{time}\tFailed: error connecting to db server: no reachable servers")
STARTING = Happening(
    error='pg_dump: [archiver (db)] connection to database "{name}" failed: FATAL:  the database system is starting up'
)
DENIED = Happening(
    error="pg_dump: error: query failed: ERROR:  permission denied for table consent_forms", error_at_start=True
)


@dataclass(frozen=True)
class Plan:
    """A container of the demo, and how its nights went."""

    name: str
    engine: str
    policy: str | None
    owner: str
    version: int
    """1: the document is docker-inspect's; 2: that of a swarm service."""
    age: float
    """Days since its creation."""
    start: float
    """Minutes from the beginning of the night to its backup."""
    minutes: float
    """The usual duration of a backup."""
    nights: Mapping[int, Happening | None] = field(default_factory=dict)
    """The nights that were not ordinary, counted from the last one, which is 0; None: no run."""
    by_hand: Mapping[int, str] = field(default_factory=dict)
    """Further good runs in the afternoon after a night, and their type."""
    state: str = "running"
    deleted: float | None = None
    """Days since its deletion."""
    c_id: int | None = None

    @property
    def scheduled(self) -> str:
        """The policy as DB4Sci understands it; empty if it never backs this container up."""
        word = (self.policy or "").strip().capitalize()
        return word if word in ("Daily", "Weekly") else ""


def no_runs(*nights: int) -> dict[int, Happening | None]:
    """Nights without a run."""
    return dict.fromkeys(nights)


PLANS = (
    # one for each status that asks for attention
    Plan("freezer-inventory", "MariaDB", "Daily", "maria", 1, 812.38, 40, 9, no_runs(0, 1, 2, 33)),
    Plan("survey", "MariaDB", "Daily", "jonas", 2, 455.62, 12, 17, {0: UPLOAD_FAILED, 24: UPLOAD_FAILED}),
    Plan("consent-records", "Postgres", "Daily", "data-office", 1, 903.41, 21, 6, {0: DENIED, 1: DENIED}, {4: "User"}),
    Plan("protein-graph", "Neo4j", "Daily", "amara", 2, 240.57, 33, 48, {0: None, 1: UNFINISHED, 28: UNFINISHED}),
    Plan("plasmid-catalog", "Postgres", "Dialy", "tomas", 2, 74.35, 0, 0),
    Plan("test-import", "MongoDB", None, "lin", 1, 130.66, 0, 0),
    Plan("sensor-data", "MongoDB", "Daily", "field-station", 2, 390.44, 270, 25, no_runs(0)),
    Plan("bookings", "MariaDB", "daily ", "reception", 1, 1310.52, 15, 3, no_runs(0, 1, 2, 3), state="maintenance"),
    Plan("microscopy", "MongoDB", "Daily", "imaging-core", 2, 620.39, 180, 335, {0: UNFINISHED, 9: NO_SERVER}),
    # the healthy crowd
    Plan("cohort-2026", "Postgres", "Daily", "ines", 2, 0.2, 30, 1),
    Plan("genome-variants", "Postgres", "Daily", "genomics", 2, 505.61, 55, 31, {0: Happening(seconds=2)}),
    Plan("sample-tracking", "Postgres", "Daily", "maria", 2, 1015.48, 3, 12, {41: STARTING}, {6: "Admin"}),
    Plan("lab-notebook", "Postgres", "Daily", "wei", 2, 733.36, 6, 22, no_runs(*range(20, 24))),
    Plan("flow-cytometry", "MongoDB", "Daily", "imaging-core", 1, 288.55, 24, 14, {11: NO_SERVER}),
    Plan("citation-network", "Neo4j", "Weekly", "library", 2, 351.43, 75, 64),
    Plan(
        "publications", "MariaDB", "Weekly", "library", 1, 1204.59, 90, 8, dict.fromkeys(range(14, 21), UPLOAD_FAILED)
    ),
    Plan("field-photos", "MongoDB", "Weekly", "field-station", 2, 167.37, 105, 140),
    Plan("staff-wiki", "MariaDB", "Daily", "helpdesk", 1, 1450.64, 9, 4),
    Plan("rna-expression", "Postgres", "Daily", "genomics", 2, 20.46, 48, 19),
    Plan("teaching-sandbox", "Postgres", "Never", "jonas", 1, 96.53, 0, 0),
    Plan("scratch-graph", "Neo4j", "none", "amara", 2, 58.42, 0, 0),
    # deleted since: only the log and the table containers remember it
    Plan("pilot-study", "Postgres", "Daily", "ines", 2, 140.58, 27, 5, deleted=25),
)
OFFSITE = Plan("offsite", "", "Daily", "", 1, 1450.64, 300, 38, no_runs(22), c_id=0)
"""The nightly copy of all dumps, which is logged like a container with the `c_id` 0."""


@dataclass(frozen=True)
class Entry:
    """One row that goes into the backup log."""

    ts: datetime
    c_id: int
    name: str
    state: str
    backup_id: str | None
    backup_type: str
    url: str = ""
    command: str = ""
    err_msg: str = ""


def main(argv: Sequence[str] | None = None, now: datetime | None = None) -> int:
    """Build the demo of the command line `argv` as of `now` (aware; the clock's, if left out); returns 0."""
    parser = argparse.ArgumentParser(prog="build.py", description="Build the demo's admin database.")
    parser.add_argument("folder", nargs="?", type=Path, default=HERE, metavar="FOLDER", help="default: demo/")
    folder: Path = parser.parse_args(argv).folder
    (folder / "textfiles").mkdir(parents=True, exist_ok=True)
    database = folder / "admin.db"
    database.unlink(missing_ok=True)
    rows = build(database, now or datetime.now(timezone.utc))
    print(f"Built a demo site: {NIGHTS} nights, {rows:,} rows of backup log, an outage and a few other scars.\n")
    return 0


def build(database: Path, now: datetime) -> int:
    """Fill a new SQLite file with the demo as of `now`; returns the number of rows in its backup log."""
    local = now.astimezone(timezone.utc).replace(tzinfo=None, microsecond=0)
    engine = admin_db.make_engine(f"sqlite:///{database}")
    admin_db.create_tables(engine)
    try:
        with admin_db.writing_session(engine) as session:
            ids = {plan.name: add_container(session, plan, local) for plan in sorted(PLANS, key=lambda p: -p.age)}
            entries = [entry for plan in PLANS for entry in past(plan, ids[plan.name], local)]
            entries += [*past(OFFSITE, 0, local), malformed(ids["staff-wiki"], local)]
            # as the log grows: the order of the ids is that of the time stamps
            for entry in sorted(entries, key=lambda entry: entry.ts):
                admin_db.log_backup(session, **vars(entry))
    finally:
        engine.dispose()
    return len(entries)


# --- Containers ----------------------------------------------------------------------------------------


def add_container(session: Session, plan: Plan, now: datetime) -> int:
    """Create a container as DB4Sci does, with its state and its lines of the action log; returns its `c_id`."""
    created = now - plan.age * DAY
    form = docker_inspect if plan.version == 1 else swarm_service
    row: ContainerRow = admin_db.add_container(session, plan.name, form(plan, created), created)
    admin_db.add_state(session, row.id, plan.name, changed_by=plan.owner, ts=created)
    admin_db.log_action(session, row.id, plan.name, "create", description=f"created by {plan.owner}", ts=created)
    if plan.state != "running":
        admin_db.update_state(session, row.id, plan.state, "admin", now - 4 * DAY)
    if plan.deleted is not None:
        admin_db.delete(session, ContainerState, c_id=row.id)
        deleted = now - plan.deleted * DAY
        admin_db.log_action(session, row.id, plan.name, "delete", description=f"deleted by {plan.owner}", ts=deleted)
    return row.id


def docker_inspect(plan: Plan, created: datetime) -> dict[str, Any]:
    """`containers.data` of version 1."""
    labels = {"OWNER": plan.owner, "CONTACT": f"{plan.owner}@example.org"}
    if plan.policy is not None:
        labels["BACKUP_FREQ"] = plan.policy
    secret = SECRET + plan.name
    info = {"Name": plan.name, "dbengine": plan.engine, "DB_USER": plan.owner, "DB_PASS": secret, **labels}
    return {
        "Name": f"/{plan.name}",
        "Created": f"{created.isoformat()}Z",
        "State": {"Status": "running", "Running": True, "ExitCode": 0, "Error": ""},
        "Config": {
            "Image": f"{plan.engine.lower()}:12",
            "Env": [f"DB_USER={plan.owner}", f"{plan.engine.upper()}_PASSWORD={secret}"],
            "Labels": labels,
        },
        "HostConfig": {"RestartPolicy": {"Name": "on-failure", "MaximumRetryCount": 5}},
        "Info": info,
    }


def swarm_service(plan: Plan, created: datetime) -> dict[str, Any]:
    """`containers.data` of version 2."""
    labels = {"owner": plan.owner, "contact": f"{plan.owner}@example.org"}
    if plan.policy is not None:
        labels["backup_freq"] = plan.policy
    secret = SECRET + plan.name
    environment = [f"DB_USER={plan.owner}", f"{plan.engine.upper()}_PASSWORD={secret}"]
    return {
        "CreatedAt": f"{created.isoformat()}Z",
        "Spec": {
            "Name": plan.name,
            "TaskTemplate": {"ContainerSpec": {"Image": f"{plan.engine.lower()}:16", "Env": environment}},
        },
        "Info": {"Name": plan.name, "dbengine": plan.engine, "POSTGRES_PASSWORD": secret, "labels": labels},
    }


# --- Their past ----------------------------------------------------------------------------------------


def night_of(now: datetime, number: int) -> datetime:
    """The beginning of a night's backups; that of night 0 lies between 6 and 7 hours back."""
    return (now - 6 * HOUR).replace(minute=0, second=0) - number * DAY


def past(plan: Plan, c_id: int, now: datetime) -> Iterator[Entry]:
    """All that the log knows of a container. Weekly backups run in the nights that begin on a Saturday."""
    chance = random.Random(plan.name)  # noqa: S311 - durations, not secrets
    for number in reversed(range(NIGHTS)):
        spread = chance.gauss(1, 0.08)
        started = night_of(now, number) + plan.start * MINUTE + timedelta(seconds=chance.randrange(50))
        happening = plan.nights.get(number, UPLOAD_FAILED if number == OUTAGE else OK)
        wanted = plan.scheduled == "Daily" or (plan.scheduled == "Weekly" and night_of(now, number).weekday() == 5)
        if not wanted or not exists(plan, started, now):
            continue
        seconds = plan.minutes * 60 * spread
        if happening:
            yield from run(plan, c_id, started, seconds, happening, plan.scheduled)
        if number in plan.by_hand:
            yield from run(plan, c_id, started + 10 * HOUR, seconds, OK, plan.by_hand[number])


def exists(plan: Plan, moment: datetime, now: datetime) -> bool:
    """Whether the container existed at a moment."""
    return now - plan.age * DAY <= moment and (plan.deleted is None or moment < now - plan.deleted * DAY)


def run(plan: Plan, c_id: int, started: datetime, seconds: float, what: Happening, kind: str) -> Iterator[Entry]:
    """The rows of one run: its `start`, and its `end` if it ended."""
    backup_id = f"{started:%Y%m%d-%H:%M:%S}" if plan.version == 1 else f"{started:%Y-%m-%d_%H:%M:%S}"
    ended = started + timedelta(seconds=round(seconds if what.seconds is None else what.seconds))
    if what.error and not what.error_at_start:
        ended = started + timedelta(seconds=min(seconds, 90))
    error = what.error.format(
        name=plan.name, engine=plan.engine or "S3", id=backup_id, time=f"{ended.isoformat(timespec='milliseconds')}Z"
    )
    said = "" if error and not what.error_at_start else message(plan, backup_id, ended)
    first, last = (error, said) if what.error_at_start else ("", error or said)
    url = f"{BUCKET}/{plan.name}/{backup_id}"
    rest = {"url": url, "command": command(plan, url), "backup_type": kind if c_id else "AWS S3"}
    yield Entry(started, c_id, plan.name, "start", backup_id, err_msg=first[:MESSAGE_LENGTH], **rest)
    if what.ended:
        yield Entry(ended, c_id, plan.name, "end", backup_id, err_msg=last[:MESSAGE_LENGTH], **rest)


def message(plan: Plan, backup_id: str, ended: datetime) -> str:
    """What DB4Sci notes as `err_msg` of a run that went well."""
    if plan.engine == "Postgres" and plan.version == 1:
        return (
            f"\nExecuted Postgres dump_all commands:\npg_dump --dbname {plan.name} --username pgdba  -F c"
            f" -f /var/lib/postgresql/backup/{plan.name}_{backup_id}/{plan.name}.dump"
        )
    if plan.engine == "Postgres":
        return f"\nExecuting Postgres backup to S3: {BUCKET}\nExecuting Postgres dump_all globals command: pg_dumpall"
    if plan.engine == "MariaDB":
        return "\nExecuted MariaDB dump command:\n    mariadb-dump -h db -P 32015 -u root -pxxxxx --single-transaction"
    if plan.engine == "MongoDB":
        time = ended.isoformat(timespec="milliseconds")
        return f"{time}+0000\twriting admin.system.users to \n{time}+0000\tdone dumping admin.system.users"
    return ""


def command(plan: Plan, url: str) -> str:
    """What DB4Sci notes as `command`; the password in it is one more reason never to read this column."""
    secret = SECRET + plan.name
    return {
        "Postgres": f"PGPASSWORD={secret} pg_dumpall -h db --globals-only | aws s3 cp - {url}",
        "MariaDB": f"mariadb-dump -h db -u root -p{secret} --single-transaction --all-databases | aws s3 cp - {url}",
        "MongoDB": f"mongodump --host db --username root --password {secret} --archive | aws s3 cp - {url}",
        "Neo4j": f"neo4j-admin backup --from=bolt://neo4j:{secret}@db --to=/backup | aws s3 sync /backup {url}",
    }.get(plan.engine, f"aws s3 sync /backups {url}")


def malformed(c_id: int, now: datetime) -> Entry:
    """A row that belongs to no run, for it has no `backup_id`."""
    return Entry(night_of(now, 2) + 9 * MINUTE, c_id, "staff-wiki", "start", None, "Daily")


if __name__ == "__main__":
    sys.exit(main())
