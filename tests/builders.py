"""Sites in a few lines: rows of the admin database, a configuration for it, and the audit run on it.

Tests say `site.container('sales', 'Daily')` and `site.run(c_id, '2026-03-13 18:07', '2026-03-13 18:30')`;
most rows are written by `admin_db`'s own routines.
"""

from __future__ import annotations

import ctypes
import io
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from datetime import datetime, timezone, tzinfo
from pathlib import Path
from typing import Any, Final

from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import Engine, func, select
from sqlalchemy.orm import Session

import admin_db
from models import BackupLog, ContainerRow
from tests.db4sci import CREATED, SECRET, document
from tests.postgres import Database

TOP = Path(__file__).resolve().parent.parent
"""Where `backup_audit.py` stands."""
NOW = datetime(2026, 3, 14, 7, 0, tzinfo=timezone.utc)
"""The moment of the audit where a test does not say another (`--at`); a Saturday, as in docs/rules.md."""
UNSET: Final = object()
Sample = tuple[str, frozenset[tuple[str, str]]]
"""The name of a metric and its labels."""


def series(metric: str, **labels: str) -> Sample:
    """The key of a sample in what `Site.samples` returns."""
    return metric, frozenset(labels.items())


@dataclass(frozen=True)
class Result:
    """What a run of `backup_audit.py` came to."""

    status: int
    out: str
    err: str

    @classmethod
    def of(cls, process: subprocess.CompletedProcess[str]) -> Result:
        return cls(process.returncode, process.stdout, process.stderr)


@dataclass
class Site:
    """An admin database of its own for one test, and a folder for the configuration and the textfiles."""

    engine: Engine
    settings: dict[str, Any]
    """The part of `mydb_config.py` that says where the database is."""
    folder: Path
    database: Database | None = None
    """The PostgreSQL database; None for SQLite."""
    zone: tzinfo = timezone.utc
    """The zone of `backups.ts`: aware datetimes are written as its local time."""
    names: dict[int, str | None] = field(default_factory=dict)

    @property
    def postgres(self) -> Database:
        """The PostgreSQL database of a site that has one."""
        assert self.database
        return self.database

    @property
    def textfile(self) -> Path:
        """The `prometheus_file` of the configuration."""
        return self.folder / "textfiles" / "backup_audit.prom"

    @property
    def runfile(self) -> Path:
        """The sibling of `textfile` that says how the audit itself went."""
        return self.textfile.with_name("backup_audit_run.prom")

    # --- Rows ---

    @contextmanager
    def session(self) -> Iterator[Session]:
        """A session on the database that commits at the end of the block."""
        with admin_db.writing_session(self.engine) as session:
            yield session

    def clock(self) -> datetime:
        """The database server's clock, which is `now` of an audit without `--at`; aware UTC."""
        if self.database is None:
            return datetime.now(timezone.utc)
        with self.session() as session:
            now: datetime = session.execute(select(func.now())).scalar_one()
        return now.astimezone(timezone.utc)

    def container(
        self,
        name: str | None = "sales",
        policy: Any = "Daily",
        *,
        created: datetime | str | None = CREATED,
        state: str | None = "running",
        engine: str = "Postgres",
        owner: str | None = "ada",
        contact: str | None = "ada@example.org",
        version: int = 2,
        data: Any = UNSET,
        c_id: int | None = None,
        active: bool = True,
        metadata: bool = True,
        state_name: Any = UNSET,
    ) -> int:
        """Add a container and its state, and return its `c_id`.

        `data` replaces the whole document. With `active=False` there is no `container_state` row, with
        `metadata=False` no `containers` row (then give a `c_id`). `state_name` is the name in `container_state` where
        that differs.
        """
        if data is UNSET:
            data = document(name, policy, engine=engine, owner=owner, contact=contact, version=version)
        when = None if created is None else _naive(created, timezone.utc)
        with self.session() as session:
            if metadata:
                row = ContainerRow(id=c_id, name=name, data=data, ts=when)
                session.add(row)
                session.flush()
                c_id = row.id
            assert c_id is not None
            if active:
                shown = name if state_name is UNSET else state_name
                admin_db.add_state(session, c_id, shown, state, changed_by="admin", ts=when)
        self.names[c_id] = name
        return c_id

    def run(
        self,
        c_id: int,
        started: datetime | str,
        ended: datetime | str | None = None,
        *,
        error: str = "",
        type: str | None = "Daily",
        backup_id: str | None = None,
        name: Any = UNSET,
        message: str | None = "",
    ) -> str:
        """Log one backup run, its `start` row and, if it `ended`, its `end` row; returns the `backup_id`.

        `error` goes to the last of these rows; `message` is the `err_msg` of a row without error. Naive times are
        those of the log.
        """
        times = {"start": _naive(started, self.zone)} | ({"end": _naive(ended, self.zone)} if ended else {})
        backup_id = f"{times['start']:%Y%m%d-%H:%M:%S}" if backup_id is None else backup_id
        name = self.names.get(c_id) if name is UNSET else name
        more = {"url": f"s3://site-backups/{c_id}/{backup_id}", "command": f"mariadb-dump -u root -p{SECRET}"}
        with self.session() as session:
            for state, ts in times.items():
                said = error if error and state == list(times)[-1] else message
                admin_db.log_backup(session, c_id, name, state, backup_id, ts, backup_type=type, err_msg=said, **more)
        return backup_id

    def row(self, **columns: Any) -> int:
        """Write one row of the backup log as it is given, and return its id; what is left out is NULL."""
        with self.session() as session:
            row = BackupLog(**columns)
            session.add(row)
            session.flush()
            return row.id

    # --- The audit ---

    def config(self, **overrides: Any) -> Path:
        """Write a `mydb_config.py` for this site; None leaves a setting out. `audit` and `process` use the last one."""
        settings = {**self.settings, "prometheus_file": str(self.textfile), **overrides}
        self.textfile.parent.mkdir(exist_ok=True)
        lines = [f"{name} = {value!r}\n" for name, value in settings.items() if value is not None]
        path = self.folder / "mydb_config.py"
        path.write_text("".join(lines), encoding="utf-8")
        return path

    def audit(self, *argv: str | Path, terminal: bool = False) -> Result:
        """Run `backup_audit.main` in this process; on this site, unless `argv` names a `--config`."""
        import backup_audit  # imported late, so that the data layer can be tested without it

        out, err = _Stream(terminal), _Stream(terminal)
        with redirect_stdout(out), redirect_stderr(err):
            try:
                status: object = backup_audit.main(self._arguments(argv))
            except SystemExit as end:
                status = end.code or 0
        assert isinstance(status, int)
        return Result(status, out.text(), err.text())

    def process(
        self, *argv: str | Path, env: Mapping[str, str] | None = None, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run `backup_audit.py` as cron would; `env` is added to the environment, `options` are subprocess.run's."""
        command = [sys.executable, str(TOP / "backup_audit.py"), *self._arguments(argv)]
        given: dict[str, Any] = {"stdin": subprocess.DEVNULL, "capture_output": True, "timeout": 120}
        given |= {"cwd": self.folder, "encoding": "utf-8", **options}
        return subprocess.run(command, env={**os.environ, **(env or {})}, check=False, **given)

    def _arguments(self, argv: tuple[str | Path, ...]) -> list[str]:
        words = [str(word) for word in argv]
        if any(word.partition("=")[0] == "--config" for word in words):
            return words
        path = self.folder / "mydb_config.py"
        return ["--config", str(path if path.exists() else self.config()), *words]

    def samples(self, path: Path | None = None) -> dict[Sample, float]:
        """The samples of a textfile (the configured one, if none is given), each series once."""
        return parse_samples((path or self.textfile).read_bytes().decode("utf-8"))


def parse_samples(exposition: str) -> dict[Sample, float]:
    """The samples of an exposition. Raises `AssertionError` if a series occurs twice: the second would be lost."""
    samples: dict[Sample, float] = {}
    for family in text_string_to_metric_families(exposition):
        for sample in family.samples:
            key = series(sample.name, **sample.labels)
            assert key not in samples, f"{key} occurs twice"
            samples[key] = sample.value
    return samples


def files(site: Site) -> list[str]:
    """What lies in the folder of the textfiles, temporary files included."""
    return sorted(path.name for path in site.textfile.parent.iterdir())


def tree(folder: Path) -> dict[str, tuple[int, ...]]:
    """What lies in a folder, and what tells whether it was touched; works for files that nobody may read."""
    found = {}
    for path in (folder, *folder.rglob("*")):
        about = path.lstat()
        touched = (about.st_ino, about.st_size, about.st_mtime_ns) if path.is_file() else ()
        found[str(path.relative_to(folder))] = (about.st_mode, *touched)
    return found


def unprivileged() -> dict[str, Any]:
    """Options of a process in which permissions count for root as well."""
    if os.geteuid() != 0:
        return {}
    libc = ctypes.CDLL(None)

    def drop() -> None:
        for capability in (1, 2, 3):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER
            libc.prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP: in force from the exec on

    return {"preexec_fn": drop}


def _naive(when: datetime | str, zone: tzinfo) -> datetime:
    """A time as a zone's clock shows it; naive ones, and text such as `2026-03-13 18:07`, are that already."""
    when = datetime.fromisoformat(when) if isinstance(when, str) else when
    return when if when.tzinfo is None else when.astimezone(zone).replace(tzinfo=None)


class _Stream(io.TextIOWrapper):
    """Stands in for stdout: UTF-8 text with a buffer beneath, like the real one."""

    def __init__(self, terminal: bool) -> None:
        self._terminal = terminal
        super().__init__(io.BytesIO(), encoding="utf-8", newline="", write_through=True)

    def isatty(self) -> bool:
        return self._terminal

    def text(self) -> str:
        self.seek(0)
        return self.read()
