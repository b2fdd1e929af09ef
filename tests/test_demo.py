"""The demo shows every status, whenever it is built, and gives nothing away."""

from __future__ import annotations

import json
import shutil
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from admin_db import make_engine
from audit.policy import UTC, Status
from demo import build
from tests.builders import TOP, Site

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


def built(folder: Path, now: datetime | None) -> Site:
    """A demo as of a moment, or of the clock, with fewer nights: the oldest story began 33 nights ago."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "NIGHTS", 34)
        assert build.main([str(folder)], now) == 0
    shutil.copy(DEMO / "mydb_config.py", folder)
    return Site(make_engine(f"sqlite:///{folder / 'admin.db'}"), {}, folder)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return built(tmp_path_factory.mktemp("demo"), NOW)


def audit(demo: Site, now: datetime | None, *argv: str, status: int = 2) -> str:
    """What an audit of the demo prints as of a moment, or of the clock."""
    result = demo.audit(*argv, *(("--at", now.isoformat()) if now else ()))
    assert (result.status, result.err) == (status, "")
    return result.out


def containers(demo: Site, now: datetime | None, *argv: str, status: int = 2) -> dict[str, Any]:
    """The containers of the JSON report by name."""
    return {each["name"]: each for each in json.loads(audit(demo, now, "--json", *argv, status=status))["containers"]}


def statuses(demo: Site, now: datetime | None) -> dict[str, str]:
    return {name: container["status"] for name, container in containers(demo, now).items()}


def test_every_status_and_every_engine_occurs_and_what_it_teaches(demo: Site) -> None:
    assert set(VERDICTS.values()) == {status.value for status in Status}
    found = containers(demo, NOW)
    assert {name: each["status"] for name, each in found.items()} == VERDICTS
    assert {each["engine"] for each in found.values()} == {"Postgres", "MariaDB", "MongoDB", "Neo4j", None}
    assert "permission denied for table visits" in found["consent-records"]["reason"]
    assert found["survey"]["failures_in_a_row"] == 5
    assert "took 1 s, typically 32 min" in found["genome-variants"]["note"]
    assert found["sample-tracking"]["status_yesterday"] == "failed"
    assert found["bookings"]["exception"]["reason"] == "frozen for the paper, ticket 4711"
    bookings, glacier = (found[name]["kept_until"] for name in ("bookings", "glacier-cores"))
    assert bookings < NOW.isoformat() < glacier < (NOW + timedelta(days=7)).isoformat()
    report = " ".join(audit(demo, NOW, "-v").split())
    for text in ("no reachable servers", "success_patterns", "1 malformed log row ignored"):
        assert text in report


@pytest.mark.parametrize(
    "now",
    [
        datetime(2026, 11, 1, 9, 59, tzinfo=UTC),  # the second 01:59 in Los Angeles
        datetime(2027, 1, 2, 7, 59, tzinfo=UTC),  # a minute before Saturday
        None,  # whatever the clock says
    ],
    ids=str,
)
def test_the_verdicts_are_the_same_whenever_it_is_built(tmp_path: Path, now: datetime | None) -> None:
    demo = built(tmp_path / "new", now)
    assert statuses(demo, now) == VERDICTS
    if now:
        assert statuses(demo, now + timedelta(hours=1)) == VERDICTS
    else:
        assert demo.runfile.exists()


def test_the_demos_history_shows_the_night_that_broke_off(demo: Site) -> None:
    history = containers(demo, NOW, "--history", "30", status=0)
    day = (NOW - timedelta(days=9)).date() - datetime.fromisoformat(history["survey"]["first_day"]).date()
    outcomes = {name: history[name]["outcomes"][day.days] for name in ("staff-wiki", "flow-cytometry", "offsite")}
    assert outcomes == {"staff-wiki": "ok", "flow-cytometry": "none", "offsite": "none"}
    assert history["weather-stations"]["outcomes"].count("before") in (9, 10)
