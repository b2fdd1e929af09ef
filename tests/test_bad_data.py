"""Bad data: broken rows cost nobody but their own container its verdict, and no two series collide.

Every site has a healthy neighbour. `audited` checks that it stays so, that all views agree, and that no password
comes out.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from sqlalchemy import JSON

from models import ContainerState
from tests.builders import NOW, Sample, Site, series
from tests.db4sci import SECRET

STARTED, ENDED = datetime(2026, 3, 13, 18, 7), datetime(2026, 3, 13, 18, 30)
AT = NOW.isoformat()
START = {"state": "start", "backup_id": "20260313-18:07:00", "ts": STARTED}
END = {"state": "end", "backup_id": "20260313-18:07:00", "ts": ENDED}
ERROR = "pg_dump: error: connection lost"
HOUR, MINUTE = timedelta(hours=1), timedelta(minutes=1)


@dataclass(frozen=True)
class Report:
    """What an audit says of a site, in JSON and in the textfile."""

    containers: list[dict[str, Any]]
    """Without the neighbour."""
    samples: dict[Sample, float]
    ignored: dict[str, int]
    """Log rows, by reason."""

    def statuses(self) -> dict[str, str]:
        """The status of every container, by name."""
        return {container["name"]: container["status"] for container in self.containers}


def audited(site: Site, at: str | None = AT, **config: Any) -> Report:
    """Audit a site in every form there is, as of a moment or now, and return what it says."""
    now = datetime.fromisoformat(at) if at else site.clock().replace(microsecond=0)
    neighbour = site.container("neighbour")
    site.run(neighbour, now - HOUR, now - HOUR / 2)
    site.config(**config)
    when = ("--at", at) if at else ()
    textfile = site.textfile.with_name("as_of.prom") if at else site.textfile
    result = site.audit("--json", *when, *(("--output", textfile) if at else ()))
    assert result.err == ""
    document = json.loads(result.out)
    assert [one["status"] for one in document["containers"] if one["c_id"] == neighbour] == ["ok"]
    assert result.status == max(container["severity"] for container in document["containers"])
    samples = site.samples(textfile)
    published = [value for (name, _), value in samples.items() if name == "mydb_backup_status"]
    assert published == [1.0] * len(document["containers"]), "every container has its own series"
    ignored = {reason: count for reason, count in document["audit"]["rows_ignored"].items() if count}
    for reason, count in ignored.items():
        assert samples[series("mydb_backup_log_rows_ignored", reason=reason)] == count
    said = textfile.read_text("utf-8") + result.out
    for argv, status in (("-v",), result.status), (("--history", "30"), 0):
        form = site.audit(*when, *argv)
        assert (form.status, form.err) == (status, "")
        said += form.out
    assert SECRET not in said
    return Report([one for one in document["containers"] if one["c_id"] != neighbour], samples, ignored)


def execute(site: Site, sql: str, *parameters: object) -> None:
    """SQL that the models would not let through; `?` stands for a parameter."""
    with site.engine.begin() as connection:
        connection.exec_driver_sql(sql.replace("?", "%s") if site.database else sql, parameters)


# --- containers.data -----------------------------------------------------------------------------------


NESTED = json.loads('{"Info": [' * 200 + '"Daily"' + "]}" * 200)
DOCUMENTS: list[Any] = [
    None, JSON.NULL, [{"Info": {"BACKUP_FREQ": "Daily"}}], "Daily", "", -0.5, True, {}, NESTED,
    *({"Info": value} for value in (None, 5, SECRET, ["BACKUP_FREQ", "Daily"], [{"BACKUP_FREQ": "Daily"}])),
    *({"Info": {"labels": value}} for value in (SECRET, ["BACKUP_FREQ=Daily"], {"owner": {"x": SECRET}})),
    *({"Info": {"BACKUP_FREQ": value}} for value in (5, ["Daily", SECRET], {"Daily": SECRET}, "")),
    *({"Config": value} for value in ("Daily", {"Labels": SECRET}, {"Labels": ["BACKUP_FREQ=Daily"]})),
    {"info": {"BACKUP_FREQ": "Daily"}}, {"Info.BACKUP_FREQ": "Daily"},
    {"Info": {"DB_PASS": SECRET, "OWNER": [SECRET], "CONTACT": {"x": SECRET}}, "Config": {"Env": [SECRET]}},
]  # fmt: skip


def test_documents_without_a_policy(any_site: Site) -> None:
    for data in DOCUMENTS:
        any_site.run(any_site.container(data=data), STARTED, ENDED)
    report = audited(any_site)
    assert [container["status"] for container in report.containers] == ["no_policy"] * len(DOCUMENTS)
    for container in report.containers:
        assert container["reason"].startswith("no backup policy: BACKUP_FREQ is missing or not text; last good backup")
        assert container["last_success"]["duration_seconds"] == 23 * 60
        assert (container["engine"], container["owner"], container["contact"]) == (None, None, None)


def test_the_first_place_with_text_has_the_policy(any_site: Site) -> None:
    def add(*policies: Any) -> None:
        """A container with these values in the places where a policy may stand, in turn."""
        upper, lower, label_upper, label_lower, config = policies
        labels = {"BACKUP_FREQ": label_upper, "backup_freq": label_lower}
        info = {"BACKUP_FREQ": upper, "backup_freq": lower, "labels": labels}
        any_site.container(data={"Info": info, "Config": {"Labels": {"BACKUP_FREQ": config}}})

    no_texts: list[Any] = [None, "", 5, {}, ["Weekly"], False]
    for before in no_texts:
        for place in range(5):
            add(*[before] * place, "Daily", *["Never"] * (4 - place))
    add("  ", "Daily", "Daily", "Daily", "Daily")
    any_site.container(data={"Config": {"Labels": {"BACKUP_FREQ": "Daily"}}})
    policies = [container["policy"] for container in audited(any_site).containers]
    assert policies == ["Daily"] * 5 * len(no_texts) + ["", "Daily"]


def test_owner_and_contact_are_those_of_info_before_those_of_its_labels(any_site: Site) -> None:
    labels = {"owner": "label", "contact": "label@example.org"}
    found = ("info", "info@example.org"), tuple(labels.values())
    for owner, contact in (*found[:1], ("", ""), (None, 5)):
        any_site.container(data={"Info": {"OWNER": owner, "CONTACT": contact, "labels": labels, "dbengine": "Neo4j"}})
    any_site.container(data={"Info": {"labels": labels, "dbengine": "Neo4j"}})
    report = audited(any_site)
    assert [(one["owner"], one["contact"]) for one in report.containers] == [found[0], *found[1:] * 3]
    assert {one["engine"] for one in report.containers} == {"Neo4j"}


NOT_JSON: list[Any] = [
    b'{"Info": {"BACKUP_FREQ": "Daily"', b"{'Info': {'BACKUP_FREQ': 'Daily'}}", b'{"Info": NaN}', b"\xff\xfe", b"",
    b'{"Info": {"BACKUP_FREQ": "Daily"}} x', b'{"Info": {"BACKUP_FREQ": "\\ud800"}}', b"[" * 100_000, 5, None,
]  # fmt: skip


@pytest.mark.parametrize("value", ["?", "CAST(? AS TEXT)"])
def test_documents_that_are_not_json_in_sqlite(sqlite_site: Site, value: str) -> None:
    for data in NOT_JSON:
        execute(sqlite_site, f"UPDATE containers SET data = {value} WHERE id = {sqlite_site.container()}", data)
    assert [one["status"] for one in audited(sqlite_site).containers] == ["no_policy"] * len(NOT_JSON)


# --- c_id, name and state -------------------------------------------------------------------------------


def add_states(site: Site, *rows: dict[str, Any]) -> None:
    """Rows of `container_state` as they are given."""
    with site.session() as session:
        session.add_all([ContainerState(**row) for row in rows])


def test_c_id_0_is_a_container_and_the_jobs_of_the_site(sqlite_site: Site) -> None:
    sqlite_site.container("zero", c_id=0)
    sqlite_site.run(sqlite_site.container("moon"), STARTED, ENDED)  # not the job of this name
    for name in ("zero", "offsite", None, ""):
        sqlite_site.run(0, STARTED, ENDED, name=name)
    for name in ("unlisted", "Offsite", None, "", "cloud"):
        sqlite_site.run(0, STARTED, ENDED, name=name, error=ERROR)
    report = audited(sqlite_site, extra_jobs={"offsite": " daily", "cloud": "Weekly", "moon": "Daily"})
    statuses = {one["name"]: one["status"] for one in report.containers if one["c_id"] == 0}
    assert statuses == {"zero": "ok", "offsite": "ok", "cloud": "failed", "moon": "missed"}
    [moon, job] = [one for one in report.containers if one["name"] == "moon"]
    assert moon["status"] == "ok"
    assert "never run" in job["reason"]
    assert "1970" not in sqlite_site.audit("--at", AT, "moon").out


def test_orphans_and_what_is_gone(any_site: Site) -> None:
    any_site.run(any_site.container("sales", active=False), STARTED, ENDED, error=ERROR)
    any_site.run(99999, STARTED, name="sales")
    sales = any_site.container("sales")
    any_site.run(sales, STARTED, ENDED)
    add_states(any_site, {"c_id": sales, "name": "renamed", "state": "Running"})  # the highest id counts
    for c_id in (4711, -1, 2**31 - 1, -(2**31)):
        any_site.container("orphan", c_id=c_id, metadata=False)
        any_site.run(c_id, STARTED, ENDED)
    add_states(any_site, *({"name": name} for name in ("first", "second", "second", None, "")))
    any_site.row(**END, name="first")
    renamed, *others = audited(any_site).containers
    assert (renamed["name"], renamed["status"], renamed["state"]) == ("renamed", "ok", "Running")
    assert {(one["status"], one["reason"][:11]) for one in others} == {("no_policy", "no metadata")}
    assert {one["name"] for one in others} == {"orphan", "first", "second", "c_id None"}


def test_a_name_comes_from_state_then_container_then_c_id(sqlite_site: Site) -> None:
    expected = {}
    for state_name, name, shown in (
        *(("state", "container", "state"), ("state", None, "state"), ("", "container", "container")),
        *((None, "container", "container"), (None, None, None), ("", "", None)),
        *((name, name, name) for name in ("ü" * 5_000, "two words " * 500, "--password" * 500, "p:" * 2_500)),
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


ROWS: dict[str, tuple[list[dict[str, Any]], str, float | None]] = {
    # rows; status, duration in minutes
    "no ts": (both(ts=None), "missed", None),
    "no backup_id": (both(backup_id=None), "missed", None),
    "a malformed error": ([START, {**END, "state": None, "err_msg": ERROR}, END], "ok", 23),
    "an undated error": ([START, {**END, "ts": None, "err_msg": ERROR}, END], "ok", 23),
    "all NULL": ([{}], "missed", None),
    "start without ts": ([{**START, "ts": None}, END], "ok", None),
    "end without ts": ([START, {**END, "ts": None}], "stalled", None),
    "end before start": ([START, {**END, "ts": STARTED - HOUR}], "ok", None),
    "odd id": (both(backup_id=" \x1e'\"\n" + "x" * 5000), "ok", 23),
    "odd order and names": ([{**END, "name": "a"}, {**START, "name": None}], "ok", 23),
    "same second": ([*both(), *both(backup_id="z", err_msg=ERROR)], "failed", 23),
}


def test_broken_rows_of_the_log_are_ignored_and_counted(sqlite_site: Site) -> None:
    for name, (rows, *_) in ROWS.items():
        for c_id in (sqlite_site.container(name), 99999, 0, None):  # a container, one that is gone, a job, nothing
            for row in rows:
                sqlite_site.row(**{"c_id": c_id, "name": name, **row})
    report, found = audited(sqlite_site), {}
    for container in report.containers:
        seconds = (container["last_success"] or {}).get("duration_seconds")
        found[container["name"]] = (container["status"], None if seconds is None else seconds / 60)
        assert ("ended before it started" in (container["note"] or "")) == (container["name"] == "end before start")
    assert found == {name: (status, minutes) for name, (_, status, minutes) in ROWS.items()}
    assert report.ignored == {"malformed": 3 * 4, "undated": 6 * 4}


# --- Time stamps ---------------------------------------------------------------------------------------


def test_rows_from_the_future(sqlite_site: Site) -> None:
    now = sqlite_site.clock().replace(microsecond=0)
    runs = {
        "inside": (now + 4 * MINUTE, now + 4 * MINUTE, "ok"),
        "outside": (now + 7 * MINUTE, now + 7 * MINUTE, "missed"),
        "far": (now + 9999 * HOUR, now + 9999 * HOUR, "missed"),
        "ends": (now - HOUR, now + HOUR, "running"),
    }
    for name, (started, ended, _) in runs.items():
        sqlite_site.run(sqlite_site.container(name), started, ended)
    report = audited(sqlite_site, at=None)
    assert report.statuses() == {name: status for name, (*_, status) in runs.items()}
    assert report.ignored == {"future": 5}
    assert report.samples[series("mydb_backup_log_newest_timestamp_seconds")] == (now + 4 * MINUTE).timestamp()


ODD_STAMPS: dict[bool, list[Any]] = {
    True: ["infinity", "-infinity", "20000-01-01", "9999-12-31 23:59:59", "0044-03-15 12:00:00 BC", "0001-01-01"],
    False: ["nonsense", "", "2026-02-30 18:07:00", "2026-03-13 18:07:00+02:00", "9999-12-31 23:59:59", 5, b"\xff"],
}


@pytest.mark.parametrize(("at", "zone"), [(AT, "America/Chicago"), (None, "Europe/Berlin")], ids=["at", "now"])
def test_odd_stamps_and_creations(any_site: Site, at: str | None, zone: str) -> None:
    any_site.zone, odd = ZoneInfo(zone), ODD_STAMPS[any_site.database is not None]
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


SESSION = [
    "timezone = 'America/Los_Angeles'", "datestyle = 'SQL, DMY'", "standard_conforming_strings = off",
    "default_transaction_isolation = 'serializable'", "client_encoding = 'LATIN1'",
]  # fmt: skip


def test_settings_of_the_database_do_not_matter(own_site: Site) -> None:
    for setting in SESSION:
        own_site.postgres.execute(f'ALTER DATABASE "{own_site.postgres.name}" SET {setting}')
    own_site.engine.dispose()
    now = own_site.clock()
    own_site.container("fresh", created=now - HOUR)
    own_site.run(own_site.container("future"), now + 10 * MINUTE, now + 10 * MINUTE)
    report = audited(own_site, at=None)
    assert report.statuses() == {"fresh": "new", "future": "missed"}
    assert report.ignored == {"future": 2}
    assert abs(own_site.samples(own_site.runfile)[series("mydb_backup_audit_clock_skew_seconds")]) < 60
