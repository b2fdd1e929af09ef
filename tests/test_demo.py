"""The demo shows every status, whenever it is built, and gives nothing away."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
from collections import Counter
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

NOW = datetime(2026, 3, 11, 15, 42, 7, tzinfo=UTC)  # a Wednesday
DEMO = TOP / "demo"

VERDICTS = {
    "freezer-inventory": "missed",
    "consent-records": "failed",
    "survey": "failed",
    "protein-graph": "stalled",
    "plasmid-catalog": "no_policy",
    "test-import": "no_policy",
    "sensor-data": "late",
    "bookings": "paused",
    "microscopy": "running",
    "cohort-2026": "new",
    **dict.fromkeys(("scratch-graph", "teaching-sandbox"), "exempt"),
    **dict.fromkeys(("sample-tracking", "lab-notebook", "staff-wiki", "flow-cytometry", "rna-expression"), "ok"),
    **dict.fromkeys(("genome-variants", "citation-network", "field-photos", "publications", "offsite"), "ok"),
}
"""What the demo is there to show."""


@dataclass
class Demo:
    """A demo of its own for a test, and what the audit prints of it."""

    folder: Path
    capture: pytest.CaptureFixture[str]
    now: datetime = NOW

    def build(self, now: datetime = NOW) -> None:
        self.now = now
        shutil.copy(DEMO / "mydb_config.py", self.folder)
        assert build.main([str(self.folder)], now) == 0
        self.capture.readouterr()

    def audit(self, *argv: str, status: int = 2) -> str:
        """Audit the demo as of the moment it was built for, and return what is printed."""
        config = str(self.folder / "mydb_config.py")
        partly = set(argv) & {"--history", *VERDICTS}
        textfile = [] if partly else ["--output", str(self.textfile)]
        assert backup_audit.main(["--config", config, "--at", self.now.isoformat(), *textfile, *argv]) == status
        captured = self.capture.readouterr()
        assert captured.err == ""
        return captured.out

    def report(self) -> dict[str, Any]:
        report: dict[str, Any] = json.loads(self.audit("--json"))
        return report

    @property
    def textfile(self) -> Path:
        return self.folder / "textfiles" / "backup_audit.prom"

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(self.folder / "admin.db")) as connection:
            return connection.execute(query).fetchall()


@pytest.fixture
def demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Demo:
    demo = Demo(tmp_path, capsys)
    demo.build()
    return demo


def statuses(demo: Demo) -> dict[str, str]:
    return {container["name"]: container["status"] for container in demo.report()["containers"]}


def week() -> list[datetime]:
    """Moments on every weekday, at all times of the day; and the first and last minutes of the weekly day."""
    days = [NOW + number * timedelta(hours=27) for number in range(7)]
    return days + [datetime(2026, 3, day, *clock, tzinfo=UTC) for day in (14, 15) for clock in ((0, 0), (23, 59))]


# --- What it shows -------------------------------------------------------------------------------------


def test_every_status_and_every_engine_occurs(demo: Demo) -> None:
    report = demo.report()
    assert {container["status"] for container in report["containers"]} == {status.value for status in Status}
    assert {container["engine"] for container in report["containers"]} == {
        *("Postgres", "MariaDB", "MongoDB", "Neo4j"),
        None,  # the extra job
    }
    assert len(report["containers"]) >= 20
    assert Counter(container["status"] for container in report["containers"]).most_common(1)[0][0] == "ok"
    assert report["audit"]["rows_ignored"] == {"future": 0, "malformed": 1, "undated": 0}


def test_the_textfile_counts_every_status(demo: Demo) -> None:
    demo.audit("-q")
    samples = parse_samples(demo.textfile.read_text(encoding="utf-8"))
    assert all(samples[series("mydb_backup_containers", status=status.value)] > 0 for status in Status)
    assert series("mydb_backup_status", name="offsite", c_id="0", status="ok") in samples


def test_both_generations_of_metadata_occur(demo: Demo) -> None:
    documents = [json.loads(data) for (data,) in demo.rows("SELECT data FROM containers")]
    first = [document for document in documents if "Env" in document.get("Config", {})]
    second = [document for document in documents if "labels" in document["Info"]]
    assert min(len(first), len(second)) >= 5
    assert len(first) + len(second) == len(documents)


@pytest.mark.parametrize("now", week(), ids=lambda now: f"{now:%a-%H:%M}")
def test_the_verdicts_are_the_same_whenever_it_is_built(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], now: datetime
) -> None:
    demo = Demo(tmp_path, capsys)
    demo.build(now)
    assert statuses(demo) == VERDICTS


def test_the_verdicts_last_for_an_hour(demo: Demo) -> None:
    demo.now += timedelta(hours=1)
    assert statuses(demo) == VERDICTS


def test_the_demo_is_reproducible(demo: Demo) -> None:
    query = "SELECT * FROM backups ORDER BY id"
    before = demo.rows(query)
    demo.build()
    assert demo.rows(query) == before


def test_the_log_holds_60_nights_in_the_order_of_time(demo: Demo) -> None:
    stamps = [datetime.fromisoformat(ts) for (ts,) in demo.rows("SELECT ts FROM backups ORDER BY id")]
    assert stamps == sorted(stamps)
    assert timedelta(days=59) < stamps[-1] - stamps[0] < timedelta(days=61)
    assert stamps[-1] <= NOW.replace(tzinfo=None)


def test_one_last_backup_was_suspiciously_short(demo: Demo) -> None:
    runs = json.loads(demo.audit("--json", "genome-variants", status=0))["containers"][0]["runs"]
    last, *others = [run["duration_seconds"] for run in runs]
    assert last == 2
    assert all(1400 < seconds < 2400 for seconds in others)
    assert "took 2 s, typically 31 min: check the dump" in " ".join(demo.audit("-v").split())


def test_its_history_has_scars(demo: Demo) -> None:
    history = json.loads(demo.audit("--history", "30", "--json", status=0))
    containers = {container["name"]: container for container in history["containers"]}
    assert set(containers) == set(VERDICTS)  # the whole population
    outcomes = {name: container["outcomes"] for name, container in containers.items() if container["outcomes"]}
    night = len(outcomes["staff-wiki"]) - build.OUTAGE  # the day on which the backup of that night was missing
    assert {outcomes[name][night - 1] for name in ("staff-wiki", "sample-tracking", "survey")} <= {"none", "failed"}
    assert len(outcomes["staff-wiki"]) - outcomes["staff-wiki"].count("ok") in (
        1,
        2,
    )  # from morning into the next night
    assert outcomes["rna-expression"].count("before") in (9, 10)
    assert "failed" in outcomes["microscopy"]
    assert containers["publications"]["ratio"] < 0.8
    assert containers["cohort-2026"]["ratio"] == 1
    assert containers["scratch-graph"]["ratio"] is None


def test_an_accepted_exception_is_shown_apart(demo: Demo) -> None:
    bookings = next(one for one in demo.report()["containers"] if one["name"] == "bookings")
    assert bookings["exception"]["reason"] == "frozen for the paper, ticket 4711"
    before, _, after = demo.audit().partition("Accepted exceptions:")
    assert "bookings" in after
    assert "bookings" not in before


def test_a_deleted_container_is_remembered_by_the_log_alone(demo: Demo) -> None:
    [(c_id,)] = demo.rows("SELECT id FROM containers WHERE name = 'pilot-study'")
    assert demo.rows(f"SELECT * FROM container_state WHERE c_id = {c_id}") == []
    assert len(demo.rows(f"SELECT * FROM backups WHERE c_id = {c_id}")) > 40


# --- How it reads --------------------------------------------------------------------------------------


def test_containers_fit_into_80_columns(demo: Demo) -> None:
    lines = [line for line in demo.audit("-v").splitlines() if "--config" not in line]  # a command is not broken
    assert max(map(len, lines)) <= 80


def test_the_details_of_a_failed_container_name_the_error(demo: Demo) -> None:
    details = demo.audit("consent-records")
    assert "permission denied for table consent_forms" in " ".join(details.split())
    assert max(len(line) for line in details.splitlines()) <= 80


# --- What it keeps to itself ---------------------------------------------------------------------------


def test_passwords_are_planted_and_never_come_out(demo: Demo) -> None:
    planted = demo.rows(
        f"SELECT name FROM containers WHERE data LIKE '%{build.SECRET}%' UNION ALL"
        f" SELECT name FROM backups WHERE command LIKE '%{build.SECRET}%'"
    )
    assert len(planted) > 1000
    names = [plan.name for plan in build.PLANS if plan.deleted is None]
    told = [demo.audit("-v"), demo.audit("--json"), demo.audit(*names), demo.audit(*names, "--json")]
    told.append(demo.textfile.read_text(encoding="utf-8"))
    assert all("consent-records" in text and build.SECRET not in text for text in told)


# --- As it is run --------------------------------------------------------------------------------------


def test_built_by_the_script_it_shows_the_same_now(tmp_path: Path) -> None:
    folder = tmp_path / "made" / "by the script"
    built = run_script(DEMO / "build.py", folder, cwd=tmp_path)
    assert (built.returncode, built.stderr) == (0, "")
    assert built.stdout.startswith("Built a demo site: 60 nights, ")
    shutil.copy(DEMO / "mydb_config.py", folder)
    audited = run_script(TOP / "backup_audit.py", "--config", folder / "mydb_config.py", "--json", cwd=tmp_path)
    assert (audited.returncode, audited.stderr) == (2, "")
    assert {c["name"]: c["status"] for c in json.loads(audited.stdout)["containers"]} == VERDICTS
    assert sorted(path.name for path in (folder / "textfiles").iterdir()) == [
        "backup_audit.prom",
        "backup_audit_run.prom",
    ]


def run_script(script: Path, *arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, script, *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, encoding="utf-8", check=False, timeout=120)
