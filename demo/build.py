"""Builds the demo: the admin database of a small site, with a past of 60 nights, for Backup Audit to look at.

    python demo/build.py [FOLDER]

The database, `admin.db` in FOLDER (this folder, if none is named), is made anew each time. Version 1 of DB4Sci writes
most of it, version 2 the part that has been migrated. All is placed relative to the clock, so that the audit comes to
the same verdicts whenever it is built; apart from the clock nothing in it is left to chance.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from datetime import date, datetime, timedelta, timezone
from pathlib import Path
from zoneinfo import ZoneInfo

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import admin_db  # noqa: E402
from tests.db4sci import DB4Sci, Failure  # noqa: E402

ZONE = "America/Los_Angeles"
DAY = timedelta(days=1)
HOUR = timedelta(hours=1)
NIGHTS = 60
JITTER = 0.08

UNKNOWN = "Reading from the replica on store-07, 3 shards\n"
"""What the dump of two containers has said since they moved, and nobody has taught the audit."""
DATABASES = tuple(f"{name}_{year}" for name in ("consent", "visits") for year in range(2021, 2026))

# name, engine, policy, owner, days since its creation, minutes of a backup
VERSION_1 = (
    # Weekly backups come first: late in the queue they would run on the day after
    ("publications", "MariaDB", "Weekly", "library", 1204.6, 8),
    ("field-photos", "MongoDB", "Weekly", "field-station", 1167.4, 24),
    ("staff-wiki", "MariaDB", "Daily", "helpdesk", 1050.6, 4),
    ("bookings", "MariaDB", "Daily", "reception", 1010.5, 3),
    ("consent-records", "Postgres", "Daily", "data-office", 903.4, 6),
    ("freezer-inventory", "MariaDB", "Daily", "maria", 812.4, 9),
    ("glacier-cores", "Postgres", "Daily", "field-station", 777.2, 7),
    ("sample-tracking", "Postgres", "Daily", "maria", 715.5, 12),
    ("protein-graph", "Neo4j", "Daily", "amara", 640.6, 18),
    ("flow-cytometry", "MongoDB", "Daily", "imaging-core", 588.6, 14),
    ("plate-reader", "MongoDB", "Daily", "imaging-core", 530.7, 11),
    ("genome-variants", "MariaDB", "Daily", "genomics", 505.6, 31),
    ("survey", "Postgres", "Daily", "jonas", 455.6, 17),
    ("sensor-data", "MongoDB", "Daily", "field-station", 390.4, 15),
    ("lipidomics", "MongoDB", "Daily", "wei", 240.6, 16),
    ("metabolomics", "MongoDB", "Daily", "wei", 239.5, 13),
    ("test-import", "MongoDB", None, "lin", 130.7, 1),
    ("teaching-sandbox", "Postgres", "Never", "jonas", 96.5, 1),
    ("plasmid-catalog", "Postgres", "Dialy", "tomas", 74.4, 1),
    ("pilot-study", "Postgres", "Daily", "ines", 140.6, 5),
    ("weather-stations", "MongoDB", "Daily", "field-station", 20.5, 10),
    ("cohort-2026", "Postgres", "Daily", "ines", 0.2, 1),
)
VERSION_2 = (
    ("lab-notebook", "Postgres", "Daily", "wei", 733.4, 22),
    ("scratch-graph", "Neo4j", "None", "amara", 58.4, 1),
    ("microscopy", "Postgres", "Daily", "imaging-core", 620.4, 150),
)
NO_SERVER = dict.fromkeys(("flow-cytometry", "plate-reader", "weather-stations"), Failure.DUMP)
WENT_WRONG: dict[int, dict[str, Failure | str]] = {
    0: {**NO_SERVER, "genome-variants": Failure.DENIED},
    1: {"sample-tracking": Failure.GLOBALS},
    9: {"protein-graph": Failure.COPY},  # the night ends there
    14: {"offsite": Failure.STDOUT},
    24: {"flow-cytometry": Failure.EXEC},
    31: {"protein-graph": Failure.COPY},
    41: {"staff-wiki": Failure.STDOUT},
}
"""By night; 0 is the last one."""
ONGOING: dict[str, tuple[int, Failure | str]] = {
    "consent-records": (2, Failure.ONE_DATABASE),
    "survey": (5, Failure.CONNECTION),
    "lipidomics": (1, UNKNOWN),
    "metabolomics": (1, UNKNOWN),
}
"""What goes wrong since so many nights."""
OUTAGE = 17
"""The night without any backup."""
MAINTENANCE = {"bookings": (33, 0), "glacier-cores": (27, 0), "freezer-inventory": (3, 2), "sensor-data": (1, 8)}
"""Since how many nights a container was not running, and how many hours ago that ended (0: it did not)."""
PILOT_STUDY_DELETED = 25


def main(argv: Sequence[str] | None = None, now: datetime | None = None) -> int:
    """Build the demo of the command line `argv` as of `now` (aware; the clock's, if left out); returns 0."""
    parser = argparse.ArgumentParser(prog="build.py", description="Build the demo's admin database.")
    parser.add_argument("folder", nargs="?", type=Path, default=HERE, metavar="FOLDER", help="default: demo/")
    folder: Path = parser.parse_args(argv).folder
    (folder / "textfiles").mkdir(parents=True, exist_ok=True)
    database = folder / "admin.db"
    database.unlink(missing_ok=True)
    build(database, now or datetime.now(timezone.utc))
    print(f"Built a demo site: {NIGHTS} nights, an outage, two nights that broke off, and a few other scars.\n")
    return 0


def build(database: Path, now: datetime) -> None:
    """Fill a new SQLite file with the demo as of `now`."""
    engine = admin_db.make_engine(f"sqlite:///{database}")
    admin_db.create_tables(engine)
    try:
        old_day, begins = job_before(now, 13)
        old = DB4Sci(engine, 1, ZONE, begins=begins, until=now, jitter=JITTER, offsite_minutes=38)
        for name, kind, policy, owner, age, minutes in VERSION_1:
            databases = DATABASES if name == "consent-records" else ()
            old.create(name, kind, policy, owner=owner, created=now - age * DAY, minutes=minutes, databases=databases)
        new_day, begins = job_before(now, 6)
        new = DB4Sci(engine, 2, ZONE, begins=begins, until=now, jitter=JITTER)
        for name, kind, policy, owner, age, minutes in VERSION_2:
            new.create(name, kind, policy, owner=owner, created=now - age * DAY, minutes=minutes, migrated=age > 600)
        for number in reversed(range(NIGHTS)):
            before = now - 22 * HOUR - number * DAY
            change_states(old, number, before)
            if number == 0:
                new.containers["microscopy"].minutes = 600  # it is still running
            if number != OUTAGE:
                old.night(old_day - number * DAY, what_went_wrong(number))
                new.night(new_day - number * DAY)
            if number == 6:
                old.by_hand("sample-tracking", now - 6 * HOUR - number * DAY)
            if number == 1:
                old.by_hand("sensor-data", now - 25.5 * HOUR)
        for name, (_, hours) in MAINTENANCE.items():
            if hours:
                old.set_state(name, "running", now - hours * HOUR)
        add_malformed_row(old, now)
    finally:
        engine.dispose()


def job_before(now: datetime, hours: int) -> tuple[date, str]:
    """The day on which a nightly job began between `hours` and an hour more before `now`, and at what local time.

    It begins 7 minutes past, so that the Weekly backups, which take less than 50, never run past midnight.
    """
    began = (now - hours * HOUR - timedelta(minutes=7)).astimezone(ZoneInfo(ZONE))
    return began.date(), f"{began:%H}:07"


def what_went_wrong(number: int) -> dict[str, Failure | str]:
    """What went wrong in a night."""
    ongoing = {name: what for name, (nights, what) in ONGOING.items() if number < nights}
    return {**WENT_WRONG.get(number, {}), **ongoing}


def change_states(host: DB4Sci, number: int, before: datetime) -> None:
    """Take containers into maintenance, and delete one, before a night."""
    for name, (nights, _) in MAINTENANCE.items():
        if number == nights - 1:
            host.set_state(name, "maintenance", before)
    if number == PILOT_STUDY_DELETED:
        host.delete("pilot-study", before)


def add_malformed_row(host: DB4Sci, now: datetime) -> None:
    """Log a row that belongs to no run, for it has no `backup_id`."""
    c_id = host.containers["staff-wiki"].c_id
    with admin_db.writing_session(host.engine) as session:
        stamp = (now - 2 * DAY).astimezone(timezone.utc).replace(tzinfo=None)
        admin_db.log_backup(session, c_id, "staff-wiki", "start", None, stamp)


if __name__ == "__main__":
    sys.exit(main())
