"""Writes what DB4Sci writes: its containers, its nights, and what each failure leaves of them.

    host = DB4Sci(engine, version=1, timezone="America/Los_Angeles")
    host.create("sales", "Postgres", "Daily", owner="ada")
    host.night(date(2026, 3, 12))
    host.night(date(2026, 3, 13), {"sales": Failure.CONNECTION})

Versions 1 and 2.0.4 are known. Nothing is left to chance, and no clock is read. The demo is built with it as well,
so it needs no more than the program itself.
"""

from __future__ import annotations

import enum
import random
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta, timezone
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

from sqlalchemy import Engine
from sqlalchemy.orm import Session

import admin_db
from models import ContainerState

UTC = timezone.utc
CREATED = datetime(2025, 1, 15, 9, 30, tzinfo=UTC)
BUCKET = "s3://site-backups/prod"
SECRET = "hunTer2"
"""Every password in `containers.data` and `backups.command`: it must never come out."""
BEGINS = {1: "18:07", 2: "01:05"}
"""When the nightly job begins, by version."""
GLOBALS = timedelta(seconds=5)
"""Version 1 dumps the globals of a Postgres before it logs the `start`."""


class Failure(enum.Enum):
    """What can go wrong; what it leaves in the log depends on the engine and the version."""

    CONNECTION = "the server refuses the connection"
    COPY = "a file to copy is missing"
    BUCKET = "the bucket is not set"
    GLOBALS = "pg_dumpall of the globals fails"
    ONE_DATABASE = "pg_dump of one of its databases fails"
    DENIED = "the dump program is denied access"
    UPLOAD = "aws writes an error to stderr"
    STDOUT = "aws writes to stdout"
    DUMP = "mongodump fails"
    GONE = "the container is gone"
    EXEC = "docker cannot execute the dump program"
    DOCKER = "docker's API refuses to start it"


class Trace(NamedTuple):
    """What one backup leaves in the log; `{good}` is what a good one says, `{partly}` one that lacks a database."""

    start: str | None = ""
    end: str | None = "{good}"
    """The messages of the rows; None if there is no such row."""
    seconds: float | None = None
    """From `start` to `end`; None is the container's usual time."""
    ends_night: bool = False


BROKEN_OFF = Trace(end=None, seconds=0)
UNNOTICED = Trace(seconds=1)  # the error goes to stderr, which nobody keeps
NO_ROWS = Trace(start=None, end=None, seconds=0)
REFUSED = (
    'pg_dumpall: error: connection to server at "10.0.0.1", port 32010 failed: Connection refused\n'
    "\tIs the server running on that host and accepting TCP/IP connections?\n"
)
PERMISSION = (
    "pg_dump: error: query failed: ERROR:  permission denied for table visits\n"
    "pg_dump: detail: Query was: LOCK TABLE public.visits IN ACCESS SHARE MODE\n"
)
NOT_FOUND = (
    'OCI runtime exec failed: exec failed: container_linux.go:345: starting container process caused "exec:'
    ' \\"mongodump\\": executable file not found in $PATH": unknown\n'
)

FAILURES: dict[tuple[str, int], dict[Failure, Trace]] = {
    ("Postgres", 1): {
        Failure.CONNECTION: BROKEN_OFF,
        Failure.COPY: BROKEN_OFF,
        Failure.BUCKET: Trace(end=None),  # the dumps are done
        Failure.GLOBALS: Trace(start=REFUSED),
        Failure.ONE_DATABASE: Trace(end="{partly}"),
    },
    ("Postgres", 2): {
        Failure.CONNECTION: BROKEN_OFF,
        Failure.GLOBALS: BROKEN_OFF,
        Failure.ONE_DATABASE: Trace(end="{partly}"),  # cut off before the error
    },
    ("MariaDB", 1): dict.fromkeys((Failure.DENIED, Failure.UPLOAD), UNNOTICED)
    | {Failure.STDOUT: BROKEN_OFF, Failure.BUCKET: NO_ROWS},
    ("MariaDB", 2): dict.fromkeys((Failure.DENIED, Failure.UPLOAD, Failure.STDOUT, Failure.BUCKET), UNNOTICED),
    ("MongoDB", 1): {
        Failure.DUMP: Trace(end="{time}\tFailed: error connecting to db server: no reachable servers\n", seconds=30),
        Failure.GONE: Trace(end="Error: exec_command client.inspect_containter; {name}", seconds=0),
        Failure.EXEC: Trace(end=NOT_FOUND, seconds=0),
        Failure.DOCKER: BROKEN_OFF,
        Failure.BUCKET: NO_ROWS,
    },
    ("Neo4j", 1): {Failure.COPY: BROKEN_OFF._replace(ends_night=True)},
    ("offsite", 1): {Failure.STDOUT: BROKEN_OFF, Failure.UPLOAD: UNNOTICED},
}


@dataclass
class Container:
    """What DB4Sci knows of a container."""

    c_id: int
    name: str
    engine: str
    policy: str | None
    created: datetime
    minutes: float
    """The usual duration of a backup."""
    databases: tuple[str, ...]
    state: str = "running"


class DB4Sci:
    """A host on which DB4Sci runs. Its days and naive times are local ones of the host."""

    def __init__(
        self,
        engine: Engine,
        version: int = 1,
        timezone: str = "America/Los_Angeles",
        *,
        begins: str | None = None,
        until: datetime | None = None,
        jitter: float = 0,
        offsite_minutes: float = 0,
    ) -> None:
        """`begins` is the local time of the nightly job. Rows later than `until` (aware) are not written yet.

        Durations vary by the share `jitter`.
        """
        self.engine, self.version, self.zone = engine, version, ZoneInfo(timezone)
        self.begins = time.fromisoformat(begins or BEGINS[version])
        self.until, self.jitter = until, jitter
        self.containers: dict[str, Container] = {}
        self.offsite = Container(0, "offsite", "offsite", None, CREATED, offsite_minutes, ())

    # --- Containers ---

    def create(
        self,
        name: str,
        engine: str = "Postgres",
        policy: str | None = "Daily",
        *,
        owner: str = "ada",
        created: datetime = CREATED,
        minutes: float = 4,
        databases: tuple[str, ...] = (),
        migrated: bool = False,
    ) -> int:
        """Create a container, which is backed up from then on, in the order of creation; returns its `c_id`."""
        created = self._aware(created)
        utc = created.replace(tzinfo=None)
        data = document(name, policy, engine=engine, owner=owner, version=self.version, migrated=migrated)
        with admin_db.writing_session(self.engine) as session:
            c_id: int = admin_db.add_container(session, name, data, utc).id
            admin_db.add_state(session, c_id, name, last_state="created", changed_by="DBaaS", ts=utc)
            admin_db.log_action(session, c_id, name, "create", ts=self._local(created))
        self.containers[name] = Container(c_id, name, engine, policy, created, minutes, databases or (name,))
        return c_id

    def set_state(self, name: str, state: str, when: datetime) -> None:
        """Move a container into another state: version 1 backs up what is `running`."""
        self.containers[name].state = state
        with admin_db.writing_session(self.engine) as session:
            admin_db.update_state(session, self.containers[name].c_id, state, "admin", self._local(when))

    def delete(self, name: str, when: datetime) -> None:
        """Delete a container: `containers` and the log keep it."""
        c_id = self.containers.pop(name).c_id
        with admin_db.writing_session(self.engine) as session:
            admin_db.delete(session, ContainerState, c_id=c_id)
            admin_db.log_action(session, c_id, name, "delete", ts=self._local(when))

    # --- Backups ---

    def night(self, day: date, what: Mapping[str, Failure | str] | None = None) -> None:
        """Run the job that begins on a local day.

        `what` is what goes wrong, by container: a failure, or a message of a run that ends as usual.
        """
        what = what or {}
        assert what.keys() <= {*self.containers, "offsite"}
        when = self._aware(datetime.combine(day, self.begins))
        with admin_db.writing_session(self.engine) as session:
            for container in self.containers.values():
                if container.created <= when and self._is_wanted(container, when):
                    kind = str(container.policy) if self.version == 1 else "Admin"
                    when, goes_on = self._back_up(session, container, when, kind, what.get(container.name))
                    if not goes_on:
                        return
            self._back_up_offsite(session, when, what.get("offsite"))

    def by_hand(self, name: str, when: datetime, what: Failure | str | None = None) -> None:
        """Back up one container; version 1 runs `offsite` after it."""
        container, when = self.containers[name], self._aware(when)
        with admin_db.writing_session(self.engine) as session:
            kind = str(container.policy) if self.version == 1 else "User"
            when, goes_on = self._back_up(session, container, when, kind, what)
            if goes_on:
                self._back_up_offsite(session, when, None)

    def _is_wanted(self, container: Container, when: datetime) -> bool:
        """Whether the nightly job backs a container up; the weekday is tested when its turn comes."""
        if container.policy == "Weekly" and when.astimezone(self.zone).weekday() != 5:
            return False
        if self.version == 1:
            return container.state == "running" and container.policy in ("Daily", "Weekly")
        return container.engine == "Postgres" and container.policy not in (None, "None")

    def _back_up_offsite(self, session: Session, when: datetime, what: Failure | str | None) -> None:
        if self.version == 1:
            self._back_up(session, self.offsite, when, "AWS S3", what)

    def _back_up(
        self, session: Session, container: Container, when: datetime, kind: str, what: Failure | str | None
    ) -> tuple[datetime, bool]:
        """Log one backup; returns when the next one can begin, and whether the job goes on."""
        trace = self._trace(container, what)
        started = when + GLOBALS if (container.engine, self.version) == ("Postgres", 1) else when
        local = when.astimezone(self.zone)
        backup_id = local.strftime("%Y%m%d-%H:%M:%S" if self.version == 1 else "%Y-%m-%d_%H:%M:%S")
        if container is self.offsite:
            backup_id = backup_id[:8]
        usual = 60 * container.minutes * (1 + self.jitter * random.Random(f"{container.name} {local}").uniform(-1, 1))  # noqa: S311
        ended = started + timedelta(seconds=round(usual if trace.seconds is None else trace.seconds))
        words = {"name": container.name, "time": _mongo_time(local)}
        words["good"] = self._said(container, backup_id, local)
        words["partly"] = self._said(container, backup_id, local, PERMISSION)
        rest = {"backup_type": kind, "command": COMMAND}
        for state, message, ts in (("start", trace.start, started), ("end", trace.end, ended)):
            if message is not None and (self.until is None or ts <= self.until):
                rest["url"] = self._url(container, local, backup_id, state)
                rest["err_msg"] = message.format(**words)[: None if self.version == 1 else 100]
                stamp = ts.astimezone(UTC).replace(tzinfo=None)
                admin_db.log_backup(session, container.c_id, container.name, state, backup_id, stamp, **rest)
        return ended, not trace.ends_night

    def _trace(self, container: Container, what: Failure | str | None) -> Trace:
        if (container.engine, self.version) == ("MongoDB", 2):
            return BROKEN_OFF  # always
        if isinstance(what, Failure):
            return FAILURES[container.engine, self.version][what]
        return Trace() if what is None else Trace(end=what.replace("{", "{{").replace("}", "}}"))

    def _url(self, container: Container, local: datetime, backup_id: str, state: str) -> str:
        """Where the dump goes."""
        if container is self.offsite:
            return BUCKET
        if self.version == 2:
            return f"{BUCKET}/mydb/{container.name}/{backup_id}/"
        folder = f"{BUCKET}/{container.name}/{_folder(container, local)}"
        dump = f"{folder}/dump{backup_id}.sql" if container.engine == "MariaDB" else folder
        return dump if state == "end" else ""

    def _said(self, container: Container, backup_id: str, local: datetime, result: str = "") -> str:
        """The message of a good backup; `result` is what `pg_dump` printed of the database in the middle."""
        if container.engine == "MongoDB":
            stamp = _mongo_time(local)
            return f"{stamp}\twriting admin.system.users to \n{stamp}\tdone dumping admin.system.users (2 documents)\n"
        if container.engine != "Postgres":
            return ""
        if self.version == 2:
            return (
                f"\nExecuting Postgres backup to S3: {BUCKET}\nExecuting Postgres dump_all globals command: pg_dumpall"
                f" -g\nBacking up globals to: mydb/{container.name}/{backup_id}/{container.name}_globals.sql\n{result}"
            )
        target = f"/var/lib/postgresql/backup/{_folder(container, local)}/{container.name}"
        message = "\nExecuted Postgres dump_all commands:\n"
        for number, name in enumerate(container.databases):
            printed = result if number == len(container.databases) // 2 else ""
            message += f"pg_dump --dbname {name} --username pgdba  -F c -f {target}_{name}.dump\nResult: {printed}\n"
        return message

    def _local(self, when: datetime) -> datetime:
        return when if when.tzinfo is None else when.astimezone(self.zone).replace(tzinfo=None)

    def _aware(self, when: datetime) -> datetime:
        return (when.replace(tzinfo=self.zone) if when.tzinfo is None else when).astimezone(UTC)


COMMAND = f"PGPASSWORD='{SECRET}' pg_dump --host 10.0.0.1; mysqldump --password={SECRET}; mongodump --password {SECRET}"
"""What is logged as `command`: reason enough never to read that column."""


def document(
    name: str | None,
    policy: Any = "Daily",
    *,
    engine: str = "Postgres",
    owner: str | None = "ada",
    contact: str | None = "",
    version: int = 2,
    migrated: bool = False,
) -> dict[str, Any]:
    """`containers.data`, passwords included: docker-inspect's (version 1) or a swarm service's. None leaves a key out.

    A container that was migrated from version 1 to 2 has its policy among the labels.
    """
    contact = f"{owner}@example.org" if contact == "" else contact
    environment = ["DB_USER=dbuser", f"{engine.upper()}_PASSWORD={SECRET}"]
    info: dict[str, Any] = {"Name": name, "dbengine": engine, "DB_USER": name, "DB_PASS": SECRET, "Port": 32042}
    if version == 1:
        labels = {"OWNER": owner, "CONTACT": contact, "BACKUP_FREQ": policy}
        config = {"Image": f"{engine.lower()}:12", "Env": environment, "Labels": _given(labels)}
        state = {"Status": "running", "Running": True, "ExitCode": 0, "Error": ""}
        return {"Name": f"/{name}", "State": state, "Config": config, "Info": _given(info | labels)}
    labels = {"owner": owner, "contact": contact, "backup_freq": policy if migrated else None}
    info |= {"backup_freq": None if migrated else policy, "POSTGRES_PASSWORD": SECRET, "labels": _given(labels)}
    task = {"ContainerSpec": {"Image": f"{engine.lower()}:16", "Env": environment}}
    return {"ID": "k3ozb0v5q8xw1c2n7m4p9t6sy", "Spec": {"Name": name, "TaskTemplate": task}, "Info": _given(info)}


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _folder(container: Container, local: datetime) -> str:
    return f"{container.name}_{local:%Y-%m-%d_%H-%M-%S}"


def _mongo_time(local: datetime) -> str:
    return f"{local:%Y-%m-%dT%H:%M:%S}.402{local:%z}"
