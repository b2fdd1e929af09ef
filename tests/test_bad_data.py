"""Bad data: broken rows cost nobody but their own container its verdict, and no two series collide.

Every site has a healthy neighbour. `audited` checks that it stays so, that all views agree, and that no password
comes out.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import reduce
from itertools import product
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from sqlalchemy import JSON

from models import ContainerState
from tests.builders import NOW, Sample, Site, series
from tests.db4sci import SECRET

NEIGHBOUR = "neighbour"
STARTED, ENDED = "2026-03-13 18:07", "2026-03-13 18:30"
AT = NOW.isoformat()
START = {"state": "start", "backup_id": "20260313-18:07:00", "ts": datetime(2026, 3, 13, 18, 7)}
END = {"state": "end", "backup_id": "20260313-18:07:00", "ts": datetime(2026, 3, 13, 18, 30)}
EARLIER = datetime(2026, 3, 13, 17, 0)
ERROR = "pg_dump: error: connection lost"


@dataclass(frozen=True)
class Report:
    """What an audit says of a site, in JSON and in the textfile."""

    containers: list[dict[str, Any]]
    """Without the neighbour."""
    samples: dict[Sample, float]
    ignored: dict[str, int]  # log rows, by reason

    def statuses(self) -> dict[str, str]:
        """The status of every container, by name."""
        return {container["name"]: container["status"] for container in self.containers}


def neighbour(site: Site, started: datetime | str = STARTED, ended: datetime | str = ENDED) -> None:
    """A container of which nothing is wrong."""
    site.run(site.container(NEIGHBOUR), started, ended)


def audited(site: Site, at: str | None = AT, **config: Any) -> Report:
    """Audit a site in every form there is, as of a moment or now, and return what it says."""
    if NEIGHBOUR not in site.names.values():
        neighbour(site)
    if config or not (site.folder / "mydb_config.py").exists():
        site.config(**config)
    when = ("--at", at) if at else ()
    textfile = site.textfile.with_name("as_of.prom") if at else site.textfile
    result = site.audit("--json", *when, *(("--output", textfile) if at else ()))
    assert result.err == ""
    document = json.loads(result.out)
    samples = site.samples(textfile)
    healthy = [container for container in document["containers"] if container["name"] == NEIGHBOUR]
    assert [container["status"] for container in healthy] == ["ok"]
    assert result.status == max(container["severity"] for container in document["containers"])
    published = [value for (name, _), value in samples.items() if name == "mydb_backup_status"]
    assert published == [1.0] * len(document["containers"]), "every container has its own series"
    for reason, count in document["audit"]["rows_ignored"].items():
        assert samples[series("mydb_backup_log_rows_ignored", reason=reason)] == count
    said = textfile.read_text("utf-8") + result.out
    for argv, status in ((("-v",), result.status), ((NEIGHBOUR,), 0), (("--history", "30"), 0)):
        form = site.audit(*when, *argv)
        assert (form.status, form.err) == (status, "")
        said += form.out
    assert SECRET not in said
    others = [container for container in document["containers"] if container["name"] != NEIGHBOUR]
    ignored = {reason: count for reason, count in document["audit"]["rows_ignored"].items() if count}
    return Report(others, samples, ignored)


def execute(site: Site, sql: str, *parameters: object) -> None:
    """SQL that the models would not let through; `?` stands for a parameter."""
    with site.engine.begin() as connection:
        connection.exec_driver_sql(sql.replace("?", "%s") if site.database else sql, parameters)


# --- containers.data -----------------------------------------------------------------------------------


NESTED = json.loads('{"Info": [' * 200 + '"Daily"' + "]}" * 200)
DOCUMENTS: list[Any] = [
    *(None, JSON.NULL, [{"Info": {"BACKUP_FREQ": "Daily"}}], "Daily", "", -0.5, True, {}, NESTED),
    *({"Info": value} for value in (None, 5, SECRET, ["BACKUP_FREQ", "Daily"], [{"BACKUP_FREQ": "Daily"}])),
    *({"Info": {"labels": value}} for value in (SECRET, ["BACKUP_FREQ=Daily"], {"owner": {"x": SECRET}})),
    *({"Info": {"BACKUP_FREQ": value}} for value in (5, ["Daily", SECRET], {"Daily": SECRET}, "")),
    *({"Config": value} for value in ("Daily", {"Labels": SECRET}, {"Labels": ["BACKUP_FREQ=Daily"]})),
    *({"info": {"BACKUP_FREQ": "Daily"}}, {"Info.BACKUP_FREQ": "Daily"}),
    {"Info": {"DB_PASS": SECRET, "OWNER": [SECRET], "CONTACT": {"x": SECRET}}, "Config": {"Env": [SECRET]}},
]


def test_documents_without_a_policy(any_site: Site) -> None:
    for number, data in enumerate(DOCUMENTS):
        any_site.run(any_site.container(f"document {number}", data=data), STARTED, ENDED)
    report = audited(any_site)
    assert [container["status"] for container in report.containers] == ["no_policy"] * len(DOCUMENTS)
    for container in report.containers:
        assert container["reason"].startswith("no backup policy: BACKUP_FREQ is missing or not text; last good backup")
        assert container["last_success"]["duration_seconds"] == 23 * 60
        assert (container["engine"], container["owner"], container["contact"]) == (None, None, None)


PLACES = "Info.BACKUP_FREQ Info.backup_freq Info.labels.BACKUP_FREQ Info.labels.backup_freq Config.Labels.BACKUP_FREQ"


def with_policies(values: Iterable[Any]) -> dict[str, Any]:
    """A document with these values where a policy may stand, in turn; `...` leaves one out."""
    document: dict[str, Any] = {}
    for place, value in zip(PLACES.split(), values, strict=True):
        *folders, key = place.split(".")
        inner = reduce(lambda outer, folder: outer.setdefault(folder, {}), folders, document)
        inner |= {} if value is ... else {key: value}
    return document


def test_the_first_place_with_text_has_the_policy(any_site: Site) -> None:
    earlier: list[Any] = [..., None, "", 5, {}, ["Weekly"], False]
    for first in range(5):
        for before in earlier:
            any_site.container(data=with_policies([before] * first + ["Daily"] + ["Never"] * (4 - first)))
    any_site.container(data=with_policies(["  ", "Daily", "Daily", "Daily", "Daily"]))
    policies = [container["policy"] for container in audited(any_site).containers]
    assert policies == ["Daily"] * 5 * len(earlier) + [""]


NOT_JSON: list[Any] = [
    *(b'{"Info": {"BACKUP_FREQ": "Daily"', b"{'Info': {'BACKUP_FREQ': 'Daily'}}", b'{"Info": NaN}', b"\xff\xfe", b""),
    *(b'{"Info": {"BACKUP_FREQ": "Daily"}} x', b'{"Info": {"BACKUP_FREQ": "\\ud800"}}', b"[" * 100_000, 5, None),
]


def test_documents_that_are_not_json_in_sqlite(sqlite_site: Site) -> None:
    for data, value in product(NOT_JSON, ("?", "CAST(? AS TEXT)")):
        c_id = sqlite_site.container()
        execute(sqlite_site, f"UPDATE containers SET data = {value} WHERE id = {c_id}", data)
    assert [one["status"] for one in audited(sqlite_site).containers] == ["no_policy"] * 2 * len(NOT_JSON)


# --- c_id, name and state -------------------------------------------------------------------------------


def add_states(site: Site, *rows: dict[str, Any]) -> None:
    """Rows of `container_state` as they are given."""
    with site.session() as session:
        session.add_all([ContainerState(**row) for row in rows])


def test_c_id_0_is_a_container_and_the_jobs_of_the_site(any_site: Site) -> None:
    any_site.container("zero", c_id=0)
    any_site.run(any_site.container("moon"), STARTED, ENDED)  # not the job of this name
    for name in ("zero", "offsite", None, ""):
        any_site.run(0, STARTED, ENDED, name=name)
    for name in ("unlisted", "Offsite", None, ""):
        any_site.run(0, STARTED, ENDED, name=name, error=ERROR)
    any_site.run(0, STARTED, ENDED, name="cloud", error="upload failed: - to s3://site-backups", type="AWS S3")
    jobs = {"offsite": " daily", "cloud": "Weekly", "moon": "Daily", "mars": "Weekly"}
    report = audited(any_site, extra_jobs=jobs)
    statuses = {one["name"]: one["status"] for one in report.containers if one["c_id"] == 0}
    assert statuses == {"zero": "ok", "offsite": "ok", "cloud": "failed", "moon": "missed", "mars": "missed"}
    assert [one["status"] for one in report.containers if one["c_id"]] == ["ok"]
    moon, mars = (one for one in report.containers if one["status"] == "missed")
    assert "1970" not in moon["reason"] + mars["reason"] + any_site.audit("--at", AT, "moon", "mars").out
    assert set(audited(any_site, extra_jobs={}).statuses()) == {"zero", "moon"}


def test_a_repeated_c_id_counts_once_with_its_highest_id(sqlite_site: Site) -> None:
    sales, other = sqlite_site.container("sales"), sqlite_site.container("other")
    add_states(sqlite_site, {"c_id": sales, "name": "renamed", "state": "maintenance"}, {"c_id": other})
    found = [(one["name"], one["status"], one["state"]) for one in audited(sqlite_site).containers]
    assert found == [("renamed", "paused", "maintenance"), ("other", "paused", None)]


def test_orphans_and_what_is_gone(any_site: Site) -> None:
    any_site.run(any_site.container("sales", active=False), STARTED, ENDED, error=ERROR)
    any_site.run(99999, STARTED, name="sales")
    any_site.run(any_site.container("sales"), STARTED, ENDED)
    for c_id in (4711, -1, 2**31 - 1, -(2**31)):
        any_site.container("orphan", c_id=c_id, metadata=False)
        any_site.run(c_id, STARTED, ENDED)
    add_states(any_site, *({"name": name} for name in ("first", "second", "second", None, "")))
    any_site.row(**END, name="first")
    sales, *others = audited(any_site).containers
    assert (sales["name"], sales["status"]) == ("sales", "ok")
    assert {(one["status"], one["reason"][:11]) for one in others} == {("no_policy", "no metadata")}
    assert {one["name"] for one in others} == {"orphan", "first", "second", "c_id None"}


def test_names(sqlite_site: Site) -> None:
    long = ("n" * 5_000, "ü" * 5_000, "two words " * 500, "pass" * 1_250, "--password" * 500, "p:" * 2_500)
    expected = {}
    for state_name, name, shown in (
        *(("state", "container", "state"), ("state", None, "state"), ("", "container", "container")),
        *((None, "container", "container"), (None, None, None), ("", "", None)),
        *((name, name, name) for name in long),
    ):
        c_id = sqlite_site.container(name, state_name=state_name)
        sqlite_site.run(c_id, STARTED, ENDED)
        expected[c_id] = shown or f"c_id {c_id}"
    report = audited(sqlite_site)
    assert {container["c_id"]: container["name"] for container in report.containers} == expected
    for c_id, name in expected.items():
        assert report.samples[series("mydb_backup_severity", name=name, c_id=str(c_id))] == 0


# --- The log -------------------------------------------------------------------------------------------


def both(**columns: Any) -> list[dict[str, Any]]:
    """The rows of a run, with other values in some columns."""
    return [{**START, **columns}, {**END, **columns}]


ROWS: dict[str, tuple[list[dict[str, Any]], str, float | None, int, int]] = {
    # rows; status, duration in minutes, malformed rows, undated rows
    "no ts": (both(ts=None), "missed", None, 0, 2),
    "no backup_id": (both(backup_id=None), "missed", None, 2, 0),
    "a malformed error": ([START, {**END, "state": None, "err_msg": ERROR}, END], "ok", 23, 1, 0),
    "an undated error": ([START, {**END, "ts": None, "err_msg": ERROR}, END], "ok", 23, 0, 1),
    "all NULL": ([{}], "missed", None, 0, 1),
    "start without ts": ([{**START, "ts": None}, END], "ok", None, 0, 1),
    "end without ts": ([START, {**END, "ts": None}], "stalled", None, 0, 1),
    "end before start": ([START, {**END, "ts": EARLIER}], "ok", None, 0, 0),
    "end alone": ([END], "ok", None, 0, 0),
    "odd id": (both(backup_id=" \x1e'\"\n" + "x" * 5000), "ok", 23, 0, 0),
    "odd order and names": ([{**END, "name": "a"}, {**START, "name": None}], "ok", 23, 0, 0),
    "same second": ([*both(), *both(backup_id="z", err_msg=ERROR)], "failed", 23, 0, 0),
}


def test_rows_of_the_log(sqlite_site: Site) -> None:
    for name, (rows, *_) in ROWS.items():
        for c_id in (sqlite_site.container(name), 99999, 0, None):  # a container, one that is gone, a job, nothing
            for row in rows:
                sqlite_site.row(**{"c_id": c_id, "name": name, "backup_type": "Daily", **row})
    report = audited(sqlite_site)
    found = {}
    for container in report.containers:
        seconds = (container["last_success"] or {}).get("duration_seconds")
        found[container["name"]] = (container["status"], None if seconds is None else seconds / 60)
        assert ("ended before it started" in (container["note"] or "")) == (container["name"] == "end before start")
        details = sqlite_site.audit("--at", AT, str(container["c_id"])).out
        for reason, rows_ignored in zip(("malformed", "undated"), ROWS[container["name"]][3:], strict=True):
            assert (f"{rows_ignored} {reason} log row" in " ".join(details.split())) == bool(rows_ignored)
    assert found == {name: (status, minutes) for name, (_, status, minutes, *_) in ROWS.items()}
    malformed, undated = (sum(row[column] for row in ROWS.values()) for column in (3, 4))  # type: ignore[misc]
    assert report.ignored == {"malformed": malformed * 4, "undated": undated * 4}


# --- Messages ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_megabytes_of_messages(sqlite_site: Site) -> None:
    neighbour(sqlite_site)
    fine = "\nExecuted Postgres dump_all commands:\n"
    messages = {
        "many lines": (f"{fine * 50_000}{ERROR}", "failed", ERROR),
        "one": ("x" * 5_000_000, "unsure", "x" * 99),
    }
    for name, (message, *_) in messages.items():
        c_id = sqlite_site.container(name)
        for row in (START, {**END, "err_msg": message}):
            sqlite_site.row(**row, c_id=c_id)
    begin = time.monotonic()
    report = audited(sqlite_site)
    assert time.monotonic() - begin < 30, "four audits, and megabytes of messages in each"
    for container in report.containers:
        _, status, line = messages[container["name"]]
        assert (container["status"], line in container["reason"]) == (status, True)
        assert (container["last_run"]["error"] or "") == (line if status == "failed" else "")
        assert 0 < len(container["last_run"]["message"]) <= 65_600
        assert len(sqlite_site.audit("--at", AT, container["name"]).out) < 3_500


# --- Time stamps ---------------------------------------------------------------------------------------


def now_at(site: Site) -> datetime:
    """The database's clock, and an audited neighbour as of then."""
    now = site.clock().replace(microsecond=0)
    neighbour(site, now - timedelta(hours=1), now - timedelta(minutes=50))
    return now


def test_rows_from_the_future(sqlite_site: Site) -> None:
    now = now_at(sqlite_site)
    hour, minute = timedelta(hours=1), timedelta(minutes=1)
    inside, outside, far, ends = (sqlite_site.container(name) for name in ("inside", "outside", "far", "ends"))
    sqlite_site.run(inside, now + 4 * minute, now + 4 * minute)
    assert "db_timezone" not in sqlite_site.audit("-v").out
    sqlite_site.run(outside, now + 7 * minute, now + 7 * minute, error=ERROR)
    sqlite_site.run(far, now + 9999 * hour, now + 9999 * hour)
    sqlite_site.run(ends, now - hour, now + hour)
    report = audited(sqlite_site, at=None)
    assert report.statuses() == {"inside": "ok", "outside": "missed", "far": "missed", "ends": "running"}
    assert report.ignored == {"future": 5}
    assert "db_timezone is probably wrong" in " ".join(sqlite_site.audit("-v").out.split())
    assert report.samples[series("mydb_backup_log_newest_timestamp_seconds")] == (now + 4 * minute).timestamp()


def test_as_of_a_moment_what_was_created_later_is_unknown(sqlite_site: Site) -> None:
    for seconds in (0, 1):
        sqlite_site.container(f"{seconds}", created=NOW + timedelta(seconds=seconds))
    assert audited(sqlite_site).statuses() == {"0": "new"}


ODD_STAMPS: dict[bool, list[Any]] = {
    True: ["infinity", "-infinity", "20000-01-01", "9999-12-31 23:59:59", "0044-03-15 12:00:00 BC", "0001-01-01"],
    False: ["nonsense", "", "2026-02-30 18:07:00", "2026-03-13 18:07:00+02:00", "9999-12-31 23:59:59", 5, b"\xff"],
}


@pytest.mark.parametrize(("at", "zone"), [(AT, "America/Chicago"), (None, "Europe/Berlin")], ids=["at", "now"])
def test_odd_stamps_and_creations(any_site: Site, at: str | None, zone: str) -> None:
    any_site.zone, odd = ZoneInfo(zone), ODD_STAMPS[any_site.database is not None]
    now = NOW if at else any_site.clock()
    neighbour(any_site, now - timedelta(hours=2), now - timedelta(hours=1))
    mark = "?::timestamp" if any_site.database else "?"
    for stamp in odd:
        c_id = any_site.container()
        execute(any_site, f"UPDATE containers SET ts = {mark} WHERE id = {c_id}", stamp)
        for state in ("start", "end"):
            row = f"INSERT INTO backups (c_id, state, backup_id, ts) VALUES ({c_id}, '{state}', 'x', {mark})"
            execute(any_site, row, stamp)
    report = audited(any_site, at, db_timezone=zone)
    assert at or len(report.containers) == len(odd)  # as of a moment, what was created later is left out
    assert all((one["status"], one["last_run"]) == ("missed", None) for one in report.containers)
    assert any_site.audit("--check-config").status in (0, 1)


def test_creations(sqlite_site: Site) -> None:
    now = now_at(sqlite_site)
    ages = {None: "missed", -400 * 24: "missed", -0.2: "missed", -0.05: "new", 1: "new", 24 * 400: "missed"}
    expected = {}
    for policy, (hours, status) in product(("Daily", "Weekly"), ages.items()):
        created = None if hours is None else now - timedelta(hours=hours)
        sqlite_site.container(f"{policy} created {hours} h ago", policy, created=created)
        expected[f"{policy} created {hours} h ago"] = status
    report = audited(sqlite_site, at=None)
    assert report.statuses() == expected
    reasons = [one["reason"] for one in report.containers if "-9600 h" in one["name"]]
    assert ["creation lies in the future" in reason for reason in reasons] == [True, True]


# --- The server's session ------------------------------------------------------------------------------


SESSION = [
    *("timezone = 'America/Los_Angeles'", "datestyle = 'SQL, DMY'", "standard_conforming_strings = off"),
    *("default_transaction_isolation = 'serializable'", "client_encoding = 'LATIN1'"),
]


def test_settings_of_the_database_do_not_matter(own_site: Site) -> None:
    assert own_site.database
    for setting in SESSION:
        own_site.database.execute(f'ALTER DATABASE "{own_site.database.name}" SET {setting}')
    own_site.engine.dispose()
    now = now_at(own_site)
    own_site.container("fresh", created=now - timedelta(hours=1))
    own_site.run(own_site.container("future"), now + timedelta(minutes=10), now + timedelta(minutes=10))
    report = audited(own_site, at=None)
    assert report.statuses() == {"fresh": "new", "future": "missed"}
    assert report.ignored == {"future": 2}
    assert abs(own_site.samples(own_site.runfile)[series("mydb_backup_audit_clock_skew_seconds")]) < 60
