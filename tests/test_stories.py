"""What DB4Sci leaves behind on bad nights, and what the audit says of it the morning after."""

from __future__ import annotations

import ast
import json
import re
from datetime import date, datetime, timedelta
from typing import Any

import pytest

from tests.builders import Result, Site, series
from tests.db4sci import DB4Sci, Failure

DAY = timedelta(days=1)
FIRST = date(2026, 11, 2)
"""The first night of each story, a Monday."""
SETTINGS = {"timezone": "America/Los_Angeles", "extra_jobs": {"offsite": "Daily"}}


def morning(number: int, hour: str = "06:40") -> str:
    """The morning after the night of this number, counted from 1."""
    return f"{FIRST + number * DAY}T{hour}"


def nights(host: DB4Sci, first: int, last: int, *what: Any) -> None:
    """The nights from one number to another, with the same failures."""
    for number in range(first, last + 1):
        host.night(FIRST + (number - 1) * DAY, *what)


def audit(site: Site, at: str, *argv: str, **config: Any) -> Result:
    site.config(**{**SETTINGS, **config})
    result = site.audit("--at", at, *argv)
    assert result.err == ""
    return result


def containers_by_name(site: Site, at: str, **config: Any) -> dict[str, dict[str, Any]]:
    """What the audit says of each container."""
    report = json.loads(audit(site, at, "--json", **config).out)
    return {container["name"]: container for container in report["containers"]}


STALLED = ("stalled", "has not ended")
AFTER_GOOD_NIGHTS: dict[int, dict[tuple[str, Failure], tuple[str, str]]] = {
    1: {
        ("Postgres", Failure.CONNECTION): STALLED,
        ("Postgres", Failure.BUCKET): STALLED,
        ("Postgres", Failure.GLOBALS): ("failed", "pg_dumpall: error: connection to server"),
        ("Postgres", Failure.ONE_DATABASE): ("failed", "permission denied for table visits"),
        ("MariaDB", Failure.STDOUT): STALLED,
        ("MariaDB", Failure.DENIED): ("ok", "took 1 s, typically 4 min"),  # but for its duration it looks fine
        ("MariaDB", Failure.BUCKET): ("missed", "overdue"),
        ("MongoDB", Failure.DUMP): ("failed", "no reachable servers"),
        ("MongoDB", Failure.GONE): ("failed", "inspect_containter"),
        ("MongoDB", Failure.EXEC): ("failed", "OCI runtime exec failed"),
        ("MongoDB", Failure.DOCKER): STALLED,
        ("Neo4j", Failure.COPY): STALLED,
    },
    2: {
        ("Postgres", Failure.CONNECTION): STALLED,
        ("Postgres", Failure.GLOBALS): STALLED,
        ("Postgres", Failure.ONE_DATABASE): ("ok", ""),  # the message is cut off before the error
    },
}


@pytest.mark.parametrize("version", AFTER_GOOD_NIGHTS)
def test_every_failure_after_good_nights(sqlite_site: Site, version: int) -> None:
    host, failures = DB4Sci(sqlite_site.engine, version), {}
    for engine, failure in AFTER_GOOD_NIGHTS[version]:
        host.create(f"{engine} {failure.name}", engine, databases=("a", "b", "c"))
        failures[f"{engine} {failure.name}"] = failure
    nights(host, 1, 5)
    nights(host, 6, 6, failures)
    containers = containers_by_name(sqlite_site, morning(6 if version == 1 else 5))  # version 2 begins after midnight
    for (engine, failure), (status, word) in AFTER_GOOD_NIGHTS[version].items():
        container = containers[f"{engine} {failure.name}"]
        assert container["status"] == status, failure
        assert word in f"{container['reason']} {container['note']}"
        assert status == "ok" or "last good backup 2026-11-0" in container["reason"]


def test_however_many_nights_break_off_a_container_stays_stalled(sqlite_site: Site) -> None:
    """One whose backup never worked, and one that had good nights."""
    host = DB4Sci(sqlite_site.engine)
    host.create("never")
    host.create("sales")
    nights(host, 1, 3, {"never": Failure.CONNECTION})
    nights(host, 4, 16, dict.fromkeys(("never", "sales"), Failure.CONNECTION))
    for number in (4, 16):
        containers = containers_by_name(sqlite_site, morning(number))
        never, sales = containers["never"], containers["sales"]
        assert (never["status"], never["failures_in_a_row"]) == ("stalled", number)
        assert "no good backup in the log" in never["reason"]
        assert (sales["status"], sales["failures_in_a_row"]) == ("stalled", number - 3)
        assert "last good backup 2026-11-04 18:07 PST" in sales["reason"]
    assert containers_by_name(sqlite_site, morning(16, "19:00"))["sales"]["status"] == "stalled", "whatever runs now"


def test_two_copies_of_a_day_are_two_runs(sqlite_site: Site) -> None:
    """Whoever backs up one container by hand starts `offsite` as well, and its `backup_id` is the day."""
    host = DB4Sci(sqlite_site.engine, offsite_minutes=10)
    host.create("sales")
    nights(host, 1, 5)
    host.by_hand("sales", datetime(2026, 11, 6, 20, 0))
    offsite = containers_by_name(sqlite_site, morning(5, "09:30"))["offsite"]
    assert (offsite["status"], offsite["last_success"]["duration_seconds"]) == ("ok", 600)
    assert offsite["last_success"]["started"] == "2026-11-07T04:04:05Z"
    sqlite_site.row(c_id=0, name="offsite", state="start", backup_id="20261106", ts=datetime(2026, 11, 7, 5, 0))
    offsite = containers_by_name(sqlite_site, morning(5, "23:30"))["offsite"]
    assert (offsite["status"], offsite["failures_in_a_row"]) == ("stalled", 1), "the second copy broke off"


def test_a_night_that_ends_at_graph(sqlite_site: Site) -> None:
    host = DB4Sci(sqlite_site.engine)
    for name, engine in (("sales", "Postgres"), ("graph", "Neo4j"), ("after", "MongoDB"), ("last", "MariaDB")):
        host.create(name, engine)
    nights(host, 1, 9)
    nights(host, 10, 10, {"graph": Failure.COPY})
    statuses = {name: one["status"] for name, one in containers_by_name(sqlite_site, morning(10)).items()}
    late = dict.fromkeys(("after", "last", "offsite"), "missed")
    assert statuses == {"sales": "ok", "graph": "stalled", **late}
    headline = " ".join(audit(sqlite_site, morning(10)).out.split("\n\n")[0].split())
    assert "DB4Sci's backup job probably stopped at graph: its run of 2026-11-11 18:11 PST never ended" in headline
    nights(host, 11, 11)
    assert "stopped at" not in audit(sqlite_site, morning(11)).out


def test_the_line_that_failed_is_quoted_and_not_the_nine_that_went_well(sqlite_site: Site) -> None:
    host = DB4Sci(sqlite_site.engine)
    c_id = host.create("manydbs", databases=tuple(f"db{number}" for number in range(10)))
    nights(host, 1, 1, {"manydbs": Failure.ONE_DATABASE})
    line = "pg_dump: error: query failed: ERROR: permission denied for table visits"
    assert line in " ".join(audit(sqlite_site, morning(1)).out.split())
    last = json.loads(audit(sqlite_site, morning(1), "--json", "--output", str(sqlite_site.textfile)).out)
    run = last["containers"][0]["last_run"]
    assert (" ".join(run["error"].split()), run["message"].count("pg_dump --dbname")) == (line, 10)
    assert sqlite_site.samples()[series("mydb_backup_failure_info", name="manydbs", c_id=str(c_id), error=line)] == 1


def test_a_weekly_backup_of_saturday_night_whose_utc_stamp_is_friday(sqlite_site: Site) -> None:
    host, berlin = DB4Sci(sqlite_site.engine, 2, "Europe/Berlin", begins="00:30"), {"timezone": "Europe/Berlin"}
    host.create("wiki", policy="Weekly")
    nights(host, 1, 10)
    host.create("sales", created=datetime(2026, 11, 1, 9, 0))
    nights(host, 11, 20)
    for day in (19, 20, 21):
        assert containers_by_name(sqlite_site, f"2026-11-{day}T06:40", **berlin)["wiki"]["status"] == "ok"
    history = audit(sqlite_site, "2026-11-21T06:40", "--history", "12", "--json", "wiki", **berlin)
    assert json.loads(history.out)["history"]["ratio"] == 1
    for day, status in ((21, "ok"), (22, "missed")):
        sales = containers_by_name(sqlite_site, f"2026-11-{day}T06:40", **berlin)["sales"]
        assert sales["status"] == status, "the first night"


def test_a_message_that_nobody_knows_is_a_warning_until_its_line_is_pasted(sqlite_site: Site) -> None:
    lines = ("Disk is 100% used", "dump size 0 bytes", "Emulate Docker CLI using podman. It's r'\\d'")
    host = DB4Sci(sqlite_site.engine)
    for line in lines:
        host.create(line[:6], "MariaDB")
    nights(host, 1, 1, {line[:6]: line for line in lines})
    result = audit(sqlite_site, morning(1))
    settings = re.findall(r"success_patterns = (.*)", result.out)
    assert (result.status, len(settings)) == (1, len(lines))
    patterns = [pattern for setting in settings for pattern in ast.literal_eval(setting)]
    assert audit(sqlite_site, morning(1), success_patterns=patterns).status == 0
    errors = containers_by_name(sqlite_site, morning(1), error_patterns=["(?i)disk|size 0|podman"], extra_jobs={})
    told = {(container["status"], container["last_run"]["error"]) for container in errors.values()}
    assert told == {("failed", line) for line in lines}


def test_a_paused_database_whose_last_dump_expires(sqlite_site: Site) -> None:
    """Its dump is kept for 180 days from its start, whatever the state."""
    host = DB4Sci(sqlite_site.engine)
    host.create("archive")
    nights(host, 1, 1)
    host.set_state("archive", "maintenance", datetime(2026, 11, 3, 9, 0))
    for day, status in ((173, 1), (174, 1), (180, 1), (181, 2)):
        result = audit(sqlite_site, morning(day, "18:30"), dumps_kept_days=180, extra_jobs={})
        assert (result.status, "2027-05-01" in result.out) == (status, day > 173)
    archive = containers_by_name(sqlite_site, morning(181, "18:30"), dumps_kept_days=180)["archive"]
    assert (archive["status"], archive["kept_until"]) == ("paused", "2027-05-02T02:07:05Z")
