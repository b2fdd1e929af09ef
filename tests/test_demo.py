"""The demo shows every status, whenever it is built, and gives nothing away."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import backup_audit
from audit.policy import UTC, Status
from demo import build
from tests.builders import TOP, parse_samples, series
from tests.db4sci import SECRET

NOW = datetime(2026, 3, 14, 14, 40, tzinfo=UTC)  # a Saturday, before the Weekly backups
DEMO = TOP / "demo"

VERDICTS = {
    **dict.fromkeys(("flow-cytometry", "plate-reader", "weather-stations", "consent-records"), "failed"),
    "survey": "stalled",
    "freezer-inventory": "missed",
    **dict.fromkeys(("plasmid-catalog", "test-import"), "no_policy"),
    "sensor-data": "late",
    "microscopy": "running",
    **dict.fromkeys(("lipidomics", "metabolomics"), "unsure"),
    **dict.fromkeys(("glacier-cores", "bookings"), "paused"),
    "cohort-2026": "new",
    **dict.fromkeys(("scratch-graph", "teaching-sandbox"), "exempt"),
    **dict.fromkeys(("publications", "field-photos", "staff-wiki", "sample-tracking", "protein-graph"), "ok"),
    **dict.fromkeys(("genome-variants", "lab-notebook", "offsite"), "ok"),
}
"""What the demo is there to show."""
MOMENTS = [
    datetime(2026, 3, 8, 20, 15, tzinfo=UTC),  # clocks went forward in the night
    datetime(2026, 11, 1, 9, 59, tzinfo=UTC),  # the second 01:59 in Los Angeles
    datetime(2027, 1, 2, 7, 59, tzinfo=UTC),  # a minute before Saturday
    None,
]
"""The last is that of the clock."""


@dataclass
class Demo:
    """A demo, the moment of which it was built for, and what the audit prints of it."""

    folder: Path
    capture: pytest.CaptureFixture[str]
    now: datetime | None = NOW

    def audit(self, *argv: str, status: int = 2) -> str:
        """Audit the demo as of its moment, or of the clock, and return what is printed."""
        config, at = str(self.folder / "mydb_config.py"), ("--at", self.now.isoformat()) if self.now else ()
        assert backup_audit.main(["--config", config, *at, *argv]) == status
        captured = self.capture.readouterr()
        assert captured.err == ""
        return captured.out

    def containers(self, *argv: str, status: int = 2) -> dict[str, Any]:
        """The containers of the JSON report by name."""
        return {each["name"]: each for each in json.loads(self.audit("--json", *argv, status=status))["containers"]}

    def statuses(self) -> dict[str, str]:
        return {name: container["status"] for name, container in self.containers().items()}


def built(folder: Path, now: datetime | None) -> Path:
    assert build.main([str(folder)], now) == 0
    shutil.copy(DEMO / "mydb_config.py", folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tmp_path_factory.mktemp("demo"), NOW)


@pytest.fixture
def demo(folder: Path, capsys: pytest.CaptureFixture[str]) -> Demo:
    return Demo(folder, capsys)


def test_every_status_and_every_engine_occurs(demo: Demo) -> None:
    containers = demo.containers()
    assert demo.statuses() == VERDICTS
    assert set(VERDICTS.values()) == {status.value for status in Status}
    assert {each["engine"] for each in containers.values()} == {"Postgres", "MariaDB", "MongoDB", "Neo4j", None}
    assert json.loads(demo.audit("--json"))["audit"]["rows_ignored"] == {"future": 0, "malformed": 1, "undated": 0}


@pytest.mark.parametrize("now", MOMENTS, ids=str)
def test_the_verdicts_are_the_same_whenever_it_is_built(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, now: datetime | None
) -> None:
    monkeypatch.setattr(build, "NIGHTS", 34)  # quicker, and the oldest story began 33 nights ago
    demo = Demo(built(tmp_path / "new", now), capsys, now)
    assert capsys.readouterr().out.startswith("Built a demo site: 34 nights, ")
    assert demo.statuses() == VERDICTS
    if demo.now:
        demo.now += timedelta(hours=1)
        assert demo.statuses() == VERDICTS
    else:
        files = {path.name for path in (demo.folder / "textfiles").iterdir()}
        assert files == {"backup_audit.prom", "backup_audit_run.prom"}


def test_what_it_teaches(demo: Demo) -> None:
    containers = demo.containers()
    assert "permission denied for table visits" in containers["consent-records"]["reason"]
    assert containers["survey"]["failures_in_a_row"] == 5
    assert "took 1 s, typically 32 min" in containers["genome-variants"]["note"]
    assert containers["sample-tracking"]["status_yesterday"] == "failed"
    assert containers["bookings"]["exception"]["reason"] == "frozen for the paper, ticket 4711"
    bookings, glacier = (containers[name]["kept_until"] for name in ("bookings", "glacier-cores"))
    assert bookings < NOW.isoformat() < glacier < (NOW + timedelta(days=7)).isoformat()
    report = demo.audit("-v")
    assert "no reachable servers" in " ".join(report.split())
    assert "success_patterns" in report
    assert max(len(line) for line in report.splitlines() if "--config" not in line) <= 80  # a command is not broken


def test_a_night_broke_off(demo: Demo) -> None:
    demo.now = NOW - timedelta(days=9, hours=8.5)
    assert "backup job probably stopped at protein-graph" in demo.audit()
    demo.now = NOW
    history = demo.containers("--history", "30", status=0)
    day = (NOW - timedelta(days=9)).date() - datetime.fromisoformat(history["survey"]["first_day"]).date()
    outcomes = {name: history[name]["outcomes"][day.days] for name in ("staff-wiki", "flow-cytometry", "offsite")}
    assert outcomes == {"staff-wiki": "ok", "flow-cytometry": "none", "offsite": "none"}
    assert history["weather-stations"]["outcomes"].count("before") in (9, 10)


def test_passwords_are_planted_and_never_come_out(demo: Demo, tmp_path: Path) -> None:
    with closing(sqlite3.connect(demo.folder / "admin.db")) as connection:
        query = "SELECT count(*) FROM {} WHERE {} LIKE ?"
        for table, column, least in (("containers", "data", 20), ("backups", "command", 1500)):
            [(planted,)] = connection.execute(query.format(table, column), [f"%{SECRET}%"])
            assert planted >= least
    page, textfile = tmp_path / "evidence.html", tmp_path / "backup_audit.prom"
    told = [demo.audit("-v", "--output", str(textfile)), demo.audit(*VERDICTS, "--json")]
    told.append(demo.audit("pilot-study", status=0))
    demo.audit("--history", "30", "--html", str(page), status=0)
    told += [page.read_text(encoding="utf-8"), textfile.read_text(encoding="utf-8")]
    assert all(len(text) > 200 and SECRET not in text for text in told)
    samples = parse_samples(told[-1])
    assert all(samples[series("mydb_backup_containers", status=status.value)] > 0 for status in Status)


def test_the_script_runs_in_any_folder_with_what_the_program_needs(tmp_path: Path) -> None:
    command = [sys.executable, "-X", "importtime", str(DEMO / "build.py"), "--help"]
    script = subprocess.run(command, cwd=tmp_path, capture_output=True, encoding="utf-8", check=True, timeout=120)
    loaded = {line.rpartition("|")[2].strip() for line in script.stderr.splitlines()}
    assert not {"pytest", "hypothesis", "tests.postgres"} & loaded
    assert "tests.db4sci" in loaded
    assert script.stdout.startswith("usage: build.py")
