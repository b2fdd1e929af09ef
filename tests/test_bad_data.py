"""Bad data: broken rows cost nobody but their own container its verdict, and no two series collide.

Every test has a healthy neighbour. `audited` checks that it stays so, that all views agree, and that no
password comes out.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from sqlalchemy import JSON

import admin_db
from admin_db import AuditReader
from models import ContainerState
from policy import Container, Rules
from tests.builders import NOW, SECRET, Sample, Site, series
from tests.postgres import Server

BERLIN = ZoneInfo("Europe/Berlin")
NEIGHBOUR = "neighbour"
STARTED, ENDED = "2026-03-13 18:07", "2026-03-13 18:30"
AT = NOW.isoformat()


@dataclass(frozen=True)
class Report:
    """What an audit says of a site, in JSON and in the textfile."""

    audit: dict[str, Any]
    containers: list[dict[str, Any]]
    samples: dict[Sample, float]

    def of(self, c_id: int | None) -> dict[str, Any]:
        """The only container with this c_id."""
        (found,) = (container for container in self.containers if container["c_id"] == c_id)
        return found

    def statuses(self) -> dict[str, str]:
        """The status of every container but the neighbour, by name."""
        return {c["name"]: c["status"] for c in self.containers if c["name"] != NEIGHBOUR}

    def ignored(self, reason: str) -> float:
        """How many log rows were ignored, for this reason."""
        return self.samples[series("mydb_backup_log_rows_ignored", reason=reason)]


def neighbour(site: Site, started: datetime | str = STARTED, ended: datetime | str = ENDED) -> int:
    """A container of which nothing is wrong."""
    c_id = site.container(NEIGHBOUR)
    site.run(c_id, started, ended)
    return c_id


def audited(site: Site, at: str | None = AT, **config: Any) -> Report:
    """Audit a site in every form there is, as of a moment or now, and return what it says."""
    if config or not (site.folder / "mydb_config.py").exists():
        site.config(**config)
    when = ("--at", at) if at else ()
    textfile = site.textfile.with_name("as_of.prom") if at else site.textfile
    result = site.audit("--json", *when, *(("--output", textfile) if at else ()))
    assert result.err == ""
    document = json.loads(result.out)
    containers = document["containers"]
    report = Report(document["audit"], containers, site.samples(textfile))
    assert result.status == max(container["severity"] for container in containers)

    published = {key: value for key, value in report.samples.items() if key[0] == "mydb_backup_status"}
    assert set(published.values()) == {1.0}
    assert len(published) == len(containers), "every container has its own series"
    said = textfile.read_bytes() + result.out.encode()
    for argv in (("-v",), (NEIGHBOUR,), ("--history", "30")):
        form = site.audit(*when, *argv)
        assert form.err == ""
        assert form.status in ((result.status,) if argv == ("-v",) else (0,))
        said += form.out.encode()
    assert SECRET.encode() not in said
    assert report_of_neighbour(report)["status"] == "ok"
    return report


def report_of_neighbour(report: Report) -> dict[str, Any]:
    """What is said of the neighbour."""
    (found,) = (container for container in report.containers if container["name"] == NEIGHBOUR)
    return found


def add_state(site: Site, **columns: Any) -> None:
    """A row of `container_state` as it is given."""
    with site.session() as session:
        session.add(ContainerState(**columns))


def execute(site: Site, sql: str, *parameters: object) -> None:
    """SQL that the models would not let through."""
    with site.engine.begin() as connection:
        connection.exec_driver_sql(sql, parameters)


# --- containers.data -----------------------------------------------------------------------------------


def nested(depth: int) -> dict[str, Any]:
    """Objects and lists within each other."""
    value: Any = "Daily"
    for _ in range(depth):
        value = {"Info": [value]}
    return {"Info": value, "Config": value}


DOCUMENTS: dict[str, Any] = {
    "SQL NULL": None,
    "null": JSON.NULL,
    "empty list": [],
    "list": [{"Info": {"BACKUP_FREQ": "Daily"}}],
    "string": "Daily",
    "empty string": "",
    "number": 17,
    "fraction": -0.5,
    "boolean": True,
    "empty object": {},
    "Info null": {"Info": None},
    "Info list": {"Info": ["BACKUP_FREQ", "Daily"]},
    "Info list of objects": {"Info": [{"BACKUP_FREQ": "Daily"}]},
    "Info string": {"Info": "Daily"},
    "Info number": {"Info": 5},
    "Info empty": {"Info": {}},
    "info in lower case": {"info": {"BACKUP_FREQ": "Daily"}},
    "labels null": {"Info": {"labels": None}},
    "labels list": {"Info": {"labels": ["BACKUP_FREQ=Daily"]}},
    "labels string": {"Info": {"labels": "BACKUP_FREQ=Daily"}},
    "labels number": {"Info": {"labels": 5}},
    "Config null": {"Config": None},
    "Config string": {"Config": "Daily"},
    "Labels list": {"Config": {"Labels": ["BACKUP_FREQ=Daily"]}},
    "key with a dot": {"Info.BACKUP_FREQ": "Daily"},
    "deep": nested(200),
    "passwords": {"Info": {"DB_PASS": SECRET, "labels": [SECRET]}, "Config": {"Env": [f"PASSWORD={SECRET}"]}},
}


def test_documents_without_a_policy(any_site: Site) -> None:
    neighbour(any_site)
    for name, data in DOCUMENTS.items():
        any_site.run(any_site.container(name, data=data), STARTED, ENDED)
    report = audited(any_site)
    assert report.statuses() == dict.fromkeys(DOCUMENTS, "no_policy")
    for container in report.containers:
        if container["name"] != NEIGHBOUR:
            assert container["reason"] == "no backup policy: BACKUP_FREQ is missing or not text"
            assert container["last_success"]["duration_seconds"] == 23 * 60
            assert (container["engine"], container["owner"], container["contact"]) == (None, None, None)


VALUES: dict[str, tuple[Any, str, str]] = {
    "number": (5, "no_policy", "BACKUP_FREQ is missing or not text"),
    "zero": (0, "no_policy", "BACKUP_FREQ is missing or not text"),
    "boolean": (True, "no_policy", "BACKUP_FREQ is missing or not text"),
    "null": (None, "no_policy", "BACKUP_FREQ is missing or not text"),
    "empty": ("", "no_policy", "BACKUP_FREQ is missing or not text"),
    "blanks": ("  ", "no_policy", "unknown backup policy ''"),
    "blanks around": (" daily ", "ok", "backed up"),
    "tab and newline": ("\tDAILY\n", "ok", "backed up"),
    "unknown": ("Fortnightly", "no_policy", "unknown backup policy 'Fortnightly'"),
    "two": ("Daily Weekly", "no_policy", "unknown backup policy 'Daily Weekly'"),
    "list": (["Daily", SECRET], "no_policy", "BACKUP_FREQ is missing or not text"),
    "object": ({"Daily": SECRET, "password": SECRET}, "no_policy", "BACKUP_FREQ is missing or not text"),
    "long": ("Daily" * 100, "no_policy", "unknown backup policy 'DailyDaily"),
    "never": ("never", "exempt", "no backups wanted"),
    "none": (" NONE ", "exempt", "no backups wanted"),
    "weekly": ("weekly", "ok", "backed up"),
}


def test_values_of_a_policy(any_site: Site) -> None:
    neighbour(any_site)
    for name, (value, _, _) in VALUES.items():
        c_id = any_site.container(name, data={"Info": {"BACKUP_FREQ": value, "DB_PASS": SECRET}})
        any_site.run(c_id, STARTED, ENDED)
    report = audited(any_site)
    assert report.statuses() == {name: status for name, (_, status, _) in VALUES.items()}
    for container in report.containers:
        if container["name"] != NEIGHBOUR:
            assert VALUES[container["name"]][2] in container["reason"]


PLACES = (
    ("Info", "BACKUP_FREQ"),
    ("Info", "backup_freq"),
    ("Info", "labels", "BACKUP_FREQ"),
    ("Info", "labels", "backup_freq"),
    ("Config", "Labels", "BACKUP_FREQ"),
)
"""Where a policy may stand, the first that counts first."""


def with_policies(values: Iterable[Any]) -> dict[str, Any]:
    """A document with these values at the places in turn; `...` leaves one out."""
    document: dict[str, Any] = {}
    for place, value in zip(PLACES, values, strict=True):
        if value is not ...:
            *folders, key = place
            inner = document
            for folder in folders:
                inner = inner.setdefault(folder, {})
            inner[key] = value
    return document


def test_the_first_place_of_a_policy_counts(any_site: Site) -> None:
    neighbour(any_site)
    expected = {}
    earlier: tuple[Any, ...] = (..., None, "", 5, {}, ["Weekly"], False)
    for first, place in enumerate(PLACES):
        for before in earlier:
            values = [before] * first + ["Daily"] + ["Never"] * (len(PLACES) - first - 1)
            name = f"{'.'.join(place)} after {before}"
            any_site.container(name, data=with_policies(values))
            expected[name] = "Daily"
    # blanks are a text: what follows does not count
    any_site.container("blanks", data=with_policies(["  ", "Daily", "Daily", "Daily", "Daily"]))
    expected["blanks"] = ""
    policies = {container["name"]: (container["policy"] or "").strip() for container in audited(any_site).containers}
    assert policies == {**expected, NEIGHBOUR: "Daily"}


@pytest.mark.parametrize("version", [1, 2])
def test_engine_owner_and_contact_that_are_no_text(any_site: Site, version: int) -> None:
    neighbour(any_site)
    data = {"Info": {"BACKUP_FREQ": "Daily", "dbengine": 5, "OWNER": [SECRET], "CONTACT": {"password": SECRET}}}
    if version == 2:
        data["Info"]["labels"] = {"owner": "ada", "contact": ["ada"]}
    c_id = any_site.container("sales", data=data)
    any_site.run(c_id, STARTED, ENDED)
    container = audited(any_site).of(c_id)
    assert container["status"] == "ok"
    owner = "ada" if version == 2 else None
    assert (container["engine"], container["owner"], container["contact"]) == (None, owner, None)


TEXTS = {
    "cut": b'{"Info": {"BACKUP_FREQ": "Daily"',
    "empty": b"",
    "blanks": b"  ",
    "words": b"not JSON at all",
    "single quotes": b"{'Info': {'BACKUP_FREQ': 'Daily'}}",
    "trailing": b'{"Info": {"BACKUP_FREQ": "Daily"}} x',
    "two bytes": b"\xff\xfe",
    "NaN": b'{"Info": NaN}',
    "deep": b"[" * 100_000,
}


def test_text_that_is_no_json_in_sqlite(sqlite_site: Site) -> None:
    neighbour(sqlite_site)
    for name, text in TEXTS.items():
        c_id = sqlite_site.container(name)
        sqlite_site.run(c_id, STARTED, ENDED)
        execute(sqlite_site, "UPDATE containers SET data = CAST(? AS TEXT) WHERE id = ?", text, c_id)
    report = audited(sqlite_site)
    assert report.statuses() == dict.fromkeys(TEXTS, "no_policy")


def test_data_that_is_no_text_in_sqlite(sqlite_site: Site) -> None:
    neighbour(sqlite_site)
    values: dict[str, object] = {"blob": b"\x00\xff\x10", "blob of JSON": b'{"Info": 5}', "integer": 5, "real": 0.5}
    for name, value in values.items():
        execute(sqlite_site, "UPDATE containers SET data = ? WHERE id = ?", value, sqlite_site.container(name))
    assert audited(sqlite_site).statuses() == dict.fromkeys(values, "no_policy")


def test_text_that_is_no_utf8_in_sqlite(sqlite_site: Site) -> None:
    neighbour(sqlite_site)
    c_id = sqlite_site.container("caf")
    data = b'{"Info": {"BACKUP_FREQ": "Daily", "OWNER": "J\xf6rg", "CONTACT": "\\ud800", "dbengine": "\xff"}}'
    execute(sqlite_site, "UPDATE containers SET data = CAST(? AS TEXT) WHERE id = ?", data, c_id)
    execute(sqlite_site, "UPDATE container_state SET name = CAST(? AS TEXT), state = CAST(? AS TEXT) WHERE c_id = ?",
            b"caf\xe9", b"running\xff", c_id)  # fmt: skip
    sqlite_site.run(c_id, STARTED, ENDED, backup_id="id")
    execute(
        sqlite_site,
        "UPDATE backups SET backup_id = CAST(? AS TEXT), backup_type = CAST(? AS TEXT), name = CAST(? AS TEXT), "
        "err_msg = CAST(? AS TEXT) WHERE c_id = ?",
        *(b"2026\xe9", b"Daily\xff", b"caf\xe9", b"\ndone \xff\xfe", c_id),
    )
    container = audited(sqlite_site).of(c_id)
    assert container["status"] == "ok"
    assert container["name"].startswith("caf")


def test_half_of_a_surrogate_pair_as_policy_in_sqlite(sqlite_site: Site) -> None:
    neighbour(sqlite_site)
    c_id = sqlite_site.container("sales")
    execute(sqlite_site, "UPDATE containers SET data = ? WHERE id = ?", r'{"Info": {"BACKUP_FREQ": "\ud800"}}', c_id)
    assert audited(sqlite_site).of(c_id)["status"] == "no_policy"


# --- c_id and names ------------------------------------------------------------------------------------


def test_containers_without_a_c_id(any_site: Site) -> None:
    neighbour(any_site)
    for name in ("first", "second", "second", None, None, ""):
        add_state(any_site, c_id=None, name=name, state="running")
    for state, ts in (("start", STARTED), ("end", ENDED)):
        any_site.row(c_id=None, name="first", state=state, backup_id="x", ts=datetime.fromisoformat(ts))
    report = audited(any_site)
    names = {container["name"] for container in report.containers if container["c_id"] is None}
    assert names >= {"first", "second"}
    assert set(report.statuses().values()) == {"no_policy"}
    assert all("no metadata" in c["reason"] for c in report.containers if c["c_id"] is None)


def test_c_id_0_is_a_container_like_others(any_site: Site) -> None:
    neighbour(any_site)
    any_site.container("zero", c_id=0)
    any_site.run(0, STARTED, ENDED)
    any_site.run(0, "2026-03-14 02:00", "2026-03-14 02:10", name="offsite", error="upload failed: x", type="AWS S3")
    report = audited(any_site)
    assert report.of(0)["status"] == "ok"
    assert report.of(0)["name"] == "zero"


@pytest.mark.parametrize("metadata", [True, False])
def test_c_id_0_beside_an_extra_job_of_the_same_name(any_site: Site, metadata: bool) -> None:
    neighbour(any_site)
    any_site.container("offsite", "Never", c_id=0, metadata=metadata)
    any_site.run(0, STARTED, ENDED, type="AWS S3")
    report = audited(any_site, extra_jobs={"offsite": "Daily"})
    assert report.statuses() == {"offsite": "ok"}
    assert report.of(0)["policy"] == "Daily"


def test_c_id_0_beside_an_extra_job_of_another_name(any_site: Site) -> None:
    neighbour(any_site)
    any_site.container("zero", c_id=0)
    any_site.run(0, STARTED, ENDED, name="offsite")
    assert audited(any_site, extra_jobs={"offsite": "Daily"}).statuses() == {"zero": "missed", "offsite": "ok"}


def test_a_repeated_c_id_counts_once_with_its_highest_id(any_site: Site) -> None:
    neighbour(any_site)
    c_id = any_site.container("sales")
    add_state(any_site, c_id=c_id, name="renamed", state="maintenance", ts=datetime(2020, 1, 1))
    other = any_site.container("other")
    add_state(any_site, c_id=other, name=None, state=None, ts=None)
    report = audited(any_site)
    assert report.statuses() == {"renamed": "paused", "other": "paused"}
    assert (report.of(c_id)["state"], report.of(other)["state"]) == ("maintenance", None)


@pytest.mark.parametrize("c_id", [4711, -1, 2**31 - 1, -(2**31)])
def test_a_container_without_metadata(any_site: Site, c_id: int) -> None:
    neighbour(any_site)
    any_site.container("orphan", c_id=c_id, metadata=False)
    any_site.run(c_id, STARTED, ENDED)
    container = audited(any_site).of(c_id)
    assert container["status"] == "no_policy"
    assert container["reason"].startswith("no metadata")


def test_a_c_id_that_is_no_integer_in_sqlite(sqlite_site: Site) -> None:
    neighbour(sqlite_site)
    for c_id in ("x", 1.5, "1; DROP TABLE backups"):
        execute(sqlite_site, "INSERT INTO container_state (c_id, name, state) VALUES (?, 'odd', 'running')", c_id)
        execute(
            sqlite_site,
            "INSERT INTO backups (c_id, name, state, backup_id, ts) VALUES (?, 'odd', 'end', 'x', ?)",
            *(c_id, f"{STARTED}:00"),
        )
    assert set(audited(sqlite_site).statuses().values()) == {"no_policy"}


def test_log_rows_of_containers_that_are_gone(any_site: Site) -> None:
    neighbour(any_site)
    gone = any_site.container("sales", active=False)
    any_site.run(gone, STARTED, ENDED, error="pg_dump: error: connection lost")
    any_site.run(99999, STARTED, name="sales")
    c_id = any_site.container("sales")
    any_site.run(c_id, STARTED, ENDED)
    assert audited(any_site).statuses() == {"sales": "ok"}


NAMES: list[tuple[str | None, str | None, str | None]] = [
    # container_state.name, containers.name, expected (None: "c_id <n>")
    ("state", "container", "state"),
    (None, "container", "container"),
    ("", "container", "container"),
    ("state", None, "state"),
    ("state", "", "state"),
    (None, None, None),
    ("", "", None),
    ("", None, None),
]


def test_names(any_site: Site) -> None:
    neighbour(any_site)
    expected = {}
    for state_name, name, shown in NAMES:
        c_id = any_site.container(name, state_name=state_name)
        any_site.run(c_id, STARTED, ENDED)
        expected[c_id] = shown or f"c_id {c_id}"
    report = audited(any_site)
    assert {c["c_id"]: c["name"] for c in report.containers if c["name"] != NEIGHBOUR} == expected
    assert {c["status"] for c in report.containers} == {"ok"}
    for c_id, name in expected.items():
        assert report.samples[series("mydb_backup_severity", name=name, c_id=str(c_id))] == 0


def test_very_long_names(any_site: Site) -> None:
    neighbour(any_site)
    names = ("n" * 10_000, "ü" * 10_000, "two words " * 1000, "pass" * 2500, "--password" * 1000, "p:" * 5000)
    ids = {name: any_site.container(name) for name in names}
    for c_id in ids.values():
        any_site.run(c_id, STARTED, ENDED)
    begin = time.monotonic()
    report = audited(any_site)
    assert time.monotonic() - begin < 20, "four audits of seven containers"
    assert report.statuses() == dict.fromkeys(names, "ok")
    for name, c_id in ids.items():
        assert report.samples[series("mydb_backup_severity", name=name, c_id=str(c_id))] == 0


def test_containers_of_the_same_name_have_their_own_verdicts(any_site: Site) -> None:
    neighbour(any_site)
    good, bad, twin = (any_site.container(name) for name in ("sales", "sales", NEIGHBOUR.upper()))
    any_site.run(good, STARTED, ENDED)
    any_site.run(bad, STARTED, ENDED, error="pg_dump: error: connection lost")
    any_site.run(twin, "2026-03-10 18:07", "2026-03-10 18:30")
    report = audited(any_site, legacy_metrics=True)
    assert [report.of(c_id)["status"] for c_id in (good, bad, twin)] == ["ok", "failed", "missed"]
    assert report.samples[series("mydb_backup_failure", name="sales")] == 1
    answer = any_site.audit("--at", AT, "--json", "sales")
    assert {c["c_id"] for c in json.loads(answer.out)["containers"]} == {good, bad}


def test_a_name_that_looks_like_the_stand_in_of_another(any_site: Site) -> None:
    neighbour(any_site)
    nameless = any_site.container(None)
    any_site.run(nameless, STARTED, ENDED)
    named = any_site.container(f"c_id {nameless}")
    report = audited(any_site)
    assert [report.of(c_id)["status"] for c_id in (nameless, named)] == ["ok", "missed"]
    assert report.of(nameless)["name"] == report.of(named)["name"]


@pytest.mark.parametrize("state", ["maintenance", "stopped", "", None, "RUNNING", "stopped" * 500])
def test_states_other_than_running(any_site: Site, state: str | None) -> None:
    neighbour(any_site)
    overdue, fresh = any_site.container("overdue", state=state), any_site.container("fresh", state=state)
    any_site.run(overdue, "2026-03-10 18:07", "2026-03-10 18:30")
    any_site.run(fresh, STARTED, ENDED)
    report = audited(any_site)
    assert report.statuses() == {"overdue": "paused", "fresh": "ok"}
    assert report.of(overdue)["state"] == state


# --- The log -------------------------------------------------------------------------------------------

START = {"state": "start", "backup_id": "20260313-18:07:00", "ts": datetime(2026, 3, 13, 18, 7)}
END = {"state": "end", "backup_id": "20260313-18:07:00", "ts": datetime(2026, 3, 13, 18, 30)}
LATER = {"ts": datetime(2026, 3, 13, 19, 0)}
EARLIER = {"ts": datetime(2026, 3, 13, 17, 0)}

ROWS: dict[str, tuple[list[dict[str, Any]], str, int | None, int]] = {
    # rows; status, duration in minutes, malformed rows
    "nothing": ([], "missed", None, 0),
    "whole": ([START, END], "ok", 23, 0),
    "no ts": ([{**START, "ts": None}, {**END, "ts": None}], "missed", None, 2),
    "no backup_id": ([{**START, "backup_id": None}, {**END, "backup_id": None}], "missed", None, 2),
    "empty backup_id": ([{**START, "backup_id": ""}, {**END, "backup_id": ""}], "missed", None, 2),
    "no state": ([{**START, "state": None}, {**END, "state": None}], "missed", None, 2),
    "empty state": ([{**START, "state": ""}, {**END, "state": ""}], "missed", None, 2),
    "other states": ([{**START, "state": "START"}, {**END, "state": "end "}], "missed", None, 2),
    "another state between": ([START, {**END, "state": "upload"}, END], "ok", 23, 1),
    "a malformed error": ([START, {**END, "state": None, "err_msg": "Failed: x"}, END], "ok", 23, 1),
    "all NULL": ([{}], "missed", None, 1),
    "start without ts": ([{**START, "ts": None}, END], "ok", None, 1),
    "end without ts": ([START, {**END, "ts": None}], "running", None, 1),
    "doubled": ([START, START, END, END], "ok", 23, 0),
    "doubled, apart": ([{**START, **EARLIER}, START, END, {**END, **LATER}], "ok", 120, 0),
    "end logged first": ([END, START], "ok", 23, 0),
    "end before start": ([START, {**END, **EARLIER}], "ok", None, 0),
    "end alone": ([END], "ok", None, 0),
    "ends alone": ([END, {**END, **LATER}], "ok", None, 0),
    "start alone": ([START], "running", None, 0),
    "no time between": ([START, {**END, "ts": START["ts"]}], "ok", 0, 0),
    "other ids": ([START, {**END, "backup_id": "2026-03-13_18:07:00"}], "ok", None, 0),
    "odd id": ([{**START, "backup_id": " \x1e'\"\n"}, {**END, "backup_id": " \x1e'\"\n"}], "ok", 23, 0),
    "long id": ([{**START, "backup_id": "x" * 5000}, {**END, "backup_id": "x" * 5000}], "ok", 23, 0),
    "other names": ([{**START, "name": "a"}, {**END, "name": None}], "ok", 23, 0),
    "other types": ([{**START, "backup_type": "User"}, {**END, "backup_type": None}], "ok", 23, 0),
}


def test_rows_of_the_log(any_site: Site) -> None:
    neighbour(any_site)
    expected = {}
    for name, (rows, status, minutes, _) in ROWS.items():
        c_id = any_site.container(name)
        for row in rows:
            any_site.row(**{"c_id": c_id, "name": name, "backup_type": "Daily", **row})
        expected[name] = (status, None if minutes is None else minutes * 60)
    any_site.row()  # not even a c_id
    report = audited(any_site)
    found = {
        container["name"]: (container["status"], (container["last_success"] or {}).get("duration_seconds"))
        for container in report.containers
        if container["name"] != NEIGHBOUR
    }
    assert found == expected
    assert report.ignored("malformed") == sum(malformed for *_, malformed in ROWS.values()) + 1
    assert report.audit["rows_ignored"] == {"malformed": report.ignored("malformed"), "future": 0}
    assert "malformed" in any_site.audit("--at", AT, "-v").out


def test_the_same_second_for_two_containers(any_site: Site) -> None:
    neighbour(any_site)
    good, bad, running = (any_site.container(name) for name in ("good", "bad", "running"))
    any_site.run(bad, STARTED, ENDED, error="pg_dump: error: connection lost")
    any_site.run(running, STARTED)
    any_site.run(good, STARTED, ENDED)
    assert audited(any_site).statuses() == {"good": "ok", "bad": "failed", "running": "running"}


def test_two_runs_that_start_in_the_same_second(any_site: Site) -> None:
    neighbour(any_site)
    c_id = any_site.container("sales")
    any_site.run(c_id, STARTED, ENDED, backup_id="1", type="User")
    any_site.run(c_id, STARTED, ENDED, backup_id="2", error="pg_dump: error: connection lost")
    report = audited(any_site)
    assert report.of(c_id)["status"] == "failed"
    assert report.of(c_id)["last_success"]["backup_id"] == "1"


@pytest.mark.parametrize("place", [0, 1, 2, 3])
def test_one_message_of_several_that_reports_an_error(any_site: Site, place: int) -> None:
    neighbour(any_site)
    c_id = any_site.container("sales")
    progress = "\nExecuted Postgres dump_all commands:\npg_dump --dbname sales --username pgdba  -F c -f /var/"
    error = f"MariaDB Backup exception. Container: sales\nException: password={SECRET}"
    for number, row in enumerate((START, START, END, END)):
        any_site.row(**{**row, "c_id": c_id, "err_msg": error if number == place else progress})
    container = audited(any_site).of(c_id)
    assert container["status"] == "failed"
    assert container["last_run"]["error"].startswith("MariaDB Backup exception. Container: sales")


def test_messages_of_one_run_do_not_add_up_to_an_error(any_site: Site) -> None:
    neighbour(any_site)
    c_id = any_site.container("sales")
    any_site.row(**START, c_id=c_id, err_msg="connection")
    any_site.row(**END, c_id=c_id, err_msg="refused")
    assert audited(any_site, error_pattern="(?s)connection.*refused").of(c_id)["status"] == "ok"


def test_a_separator_within_a_message(any_site: Site) -> None:
    neighbour(any_site)
    c_id = any_site.container("sales")
    any_site.row(**START, c_id=c_id, err_msg="\x1e\x1e\x1f\x00"[:3])
    any_site.row(**END, c_id=c_id, err_msg="dumping \x1eFailed: is a name")
    assert audited(any_site).of(c_id)["status"] == "ok"


# --- Time stamps ---------------------------------------------------------------------------------------


def now_at(site: Site) -> datetime:
    """The database's clock, and an audited neighbour as of then."""
    now = site.clock().replace(microsecond=0)
    neighbour(site, now - timedelta(hours=1), now - timedelta(minutes=50))
    return now


@pytest.mark.parametrize(
    ("ahead", "status", "future"),
    [(timedelta(minutes=4), "ok", 0), (timedelta(minutes=6), "missed", 2), (timedelta(days=400), "missed", 2)],
    ids=["just inside", "just outside", "far"],
)
def test_rows_from_the_future(any_site: Site, ahead: timedelta, status: str, future: int) -> None:
    now = now_at(any_site)
    c_id = any_site.container("sales")
    any_site.run(c_id, now + ahead, now + ahead)
    report = audited(any_site, at=None)
    assert report.of(c_id)["status"] == status
    assert (report.ignored("future"), report.ignored("malformed")) == (future, 0)
    assert ("db_timezone is probably wrong" in " ".join(any_site.audit("-v").out.split())) == bool(future)
    assert report.samples[series("mydb_backup_log_newest_timestamp_seconds")] < (now + timedelta(minutes=5)).timestamp()


def test_an_end_from_the_future_leaves_the_run_unended(any_site: Site) -> None:
    now = now_at(any_site)
    c_id = any_site.container("sales")
    any_site.run(c_id, now - timedelta(hours=1), now + timedelta(hours=1))
    report = audited(any_site, at=None)
    assert report.of(c_id)["status"] == "running"
    assert report.ignored("future") == 1


def test_as_of_a_moment_nothing_is_future_and_later_rows_are_unseen(any_site: Site) -> None:
    neighbour(any_site)
    c_id = any_site.container("sales")
    any_site.run(c_id, "2026-03-13 18:07", "2026-03-14 07:00:01")
    any_site.run(c_id, "2026-03-14 07:02", "2026-03-14 07:03")
    any_site.run(any_site.container("edge"), "2026-03-14 06:00", "2026-03-14 07:00:00")
    any_site.row(c_id=c_id, ts=datetime(2026, 3, 15))  # malformed, and unseen as well
    report = audited(any_site)
    assert report.statuses() == {"sales": "running", "edge": "ok"}
    assert report.audit["rows_ignored"] == {"malformed": 0, "future": 0}


ODD_MOMENTS = ["infinity", "-infinity", "20000-01-01 00:00:00", "0044-03-15 12:00:00 BC", "0001-01-01 00:00:00"]


@pytest.mark.parametrize("moment", ODD_MOMENTS)
@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/Chicago"])
@pytest.mark.parametrize("at", [True, False], ids=["at", "now"])
def test_moments_that_python_does_not_know(site: Site, moment: str, zone: str, at: bool) -> None:
    if at:
        neighbour(site)
    else:
        site.zone = ZoneInfo(zone)
        now_at(site)
    c_id = site.container("sales")
    for state in ("start", "end"):
        execute(
            site,
            "INSERT INTO backups (c_id, name, state, backup_id, ts) VALUES (%s, 'sales', %s, 'x', %s::timestamp)",
            *(c_id, state, moment),
        )
    report = audited(site, at=AT if at else None, db_timezone=zone)
    assert report.of(c_id)["status"] == "missed"
    assert report.of(c_id)["last_run"] is None


@pytest.mark.parametrize("moment", ODD_MOMENTS)
@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", "America/Chicago"])
def test_the_checklist_where_the_last_row_has_such_a_moment(site: Site, moment: str, zone: str) -> None:
    execute(site, "INSERT INTO backups (ts) VALUES (%s::timestamp)", moment)
    site.config(db_timezone=zone)
    answer = site.audit("--check-config")
    assert (answer.status, answer.err) == (0, "")


@pytest.mark.parametrize("moment", ODD_MOMENTS)
def test_a_log_of_nothing_but_such_moments(site: Site, moment: str) -> None:
    c_id = site.container("sales")
    execute(
        site,
        "INSERT INTO backups (c_id, name, state, backup_id, ts) VALUES (%s, 'sales', 'end', 'x', %s::timestamp)",
        *(c_id, moment),
    )
    site.config()
    answer = site.audit("-v")
    assert (answer.status, answer.err) == (2, "")
    assert "1 missed" in answer.out


ODD_TEXTS = [
    *("nonsense", "", "zzz", "now", "2026", "2026-03-13", "18:07", "2026-03-13 18:07:00 UTC", "2026-03-13 18:07:00Z"),
    *("2026-03-13 18:07:00+00:00", "2026-03-13 18:07:00+02:00", "2026-03-13 18:07:00.", "2026-03-13 18:07:00.x"),
    *(
        "2026-02-30 18:07:00",
        "2026-03-13 24:00:00",
        "2026-03-13 18:60:00",
        "2026-13-13 18:07:00",
        "2026-03-00 18:07:00",
    ),
    *("0000-01-01 00:00:00", "0001-01-01 00:00:00", "9999-12-31 23:59:59", "20000-01-01 00:00:00", "13.03.2026 18:07"),
    *("-4712-01-01 00:00:00", "2026-03-13 18:07:00\n", "  2026-03-13 18:07:00", "٢٠٢٦-03-13 18:07:00"),
]


@pytest.mark.parametrize("text", ODD_TEXTS)
def test_a_ts_that_is_no_moment_in_sqlite(sqlite_site: Site, text: str) -> None:
    neighbour(sqlite_site)
    c_id = sqlite_site.container("sales")
    for state in ("start", "end"):
        execute(
            sqlite_site,
            "INSERT INTO backups (c_id, name, state, backup_id, ts) VALUES (?, 'sales', ?, 'x', ?)",
            *(c_id, state, text),
        )
    report = audited(sqlite_site, db_timezone="Europe/Berlin")
    # some of these may be understood
    assert report.of(c_id)["status"] in (("ok", "missed") if text.strip().startswith("2026-03-13") else ("missed",))


@pytest.mark.parametrize("text", ODD_TEXTS)
def test_the_checklist_where_the_last_row_has_such_a_ts(sqlite_site: Site, text: str) -> None:
    execute(sqlite_site, "INSERT INTO backups (ts) VALUES (?)", text)
    sqlite_site.config(db_timezone="Europe/Berlin")
    answer = sqlite_site.audit("--check-config")
    assert (answer.status, answer.err) == (0, "")


@pytest.mark.parametrize("value", [0, 20260313, 1773425220, 2461113.25, b"2026-03-13 18:07:00", b"\xff"], ids=repr)
def test_a_ts_that_is_no_text_in_sqlite(sqlite_site: Site, value: object) -> None:
    neighbour(sqlite_site)
    c_id = sqlite_site.container("sales")
    execute(sqlite_site, "INSERT INTO backups (c_id, state, backup_id, ts) VALUES (?, 'end', 'x', ?)", *(c_id, value))
    assert audited(sqlite_site).of(c_id)["status"] in ("ok", "missed")


def test_fractions_of_a_second_in_sqlite(sqlite_site: Site) -> None:
    neighbour(sqlite_site)
    for fraction in (".1", ".12", ".123", ".123456"):
        c_id = sqlite_site.container(fraction)
        for state, minute in (("start", "07"), ("end", "30")):
            execute(
                sqlite_site,
                "INSERT INTO backups (c_id, state, backup_id, ts) VALUES (?, ?, 'x', ?)",
                *(c_id, state, f"2026-03-13 18:{minute}:00{fraction}"),
            )
    report = audited(sqlite_site)
    assert {(c["status"], c["last_success"]["duration_seconds"]) for c in report.containers} == {("ok", 23 * 60)}


CREATIONS: dict[str | None, str] = {
    None: "missed",
    "2026-03-14 01:00:00": "new",
    "2026-03-10 01:00:00": "missed",
    "2030-01-01 00:00:00": "new",
    "1970-01-01 00:00:00": "missed",
    "1800-01-01 00:00:00": "missed",
    "0001-01-01 00:00:00": "missed",
}
ODD_CREATIONS = {
    True: ["infinity", "-infinity", "20000-01-01 00:00:00", "0044-03-15 12:00:00 BC"],
    False: ["nonsense", "", "2026-02-30 18:07:00", "2026-03-13 24:00:00", "0000-01-01 00:00:00", "20260313"],
}


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/Chicago"])
@pytest.mark.parametrize("policy", ["Daily", "Weekly"])
def test_odd_creations(any_site: Site, zone: str, policy: str) -> None:
    neighbour(any_site)
    expected = dict(CREATIONS)
    expected.update((moment, "missed") for moment in ODD_CREATIONS[any_site.database is not None])
    mark = "%s" if any_site.database else "?"
    cast = "::timestamp" if any_site.database else ""
    for moment in expected:
        c_id = any_site.container(f"created {moment}", policy)
        execute(any_site, f"UPDATE containers SET ts = {mark}{cast} WHERE id = {c_id}", moment)
    statuses = audited(any_site, db_timezone=zone).statuses()
    if policy == "Weekly":  # the first backup of whoever was created on Tuesday is due by Sunday
        expected["2026-03-10 01:00:00"] = "new"
    assert statuses == {f"created {moment}": status for moment, status in expected.items()}


@pytest.mark.parametrize("zone", ["America/Chicago", "Asia/Tokyo"])
def test_moments_at_the_end_of_time(any_site: Site, zone: str) -> None:
    neighbour(any_site)
    daily, weekly = any_site.container("daily"), any_site.container("weekly", "Weekly")
    for c_id in (daily, weekly):
        any_site.run(c_id, datetime(9999, 12, 31, 23, 0), datetime(9999, 12, 31, 23, 59, 59))
        any_site.run(c_id, datetime(8999, 12, 31, 23, 0), datetime(8999, 12, 31, 23, 59, 59))
    assert audited(any_site, db_timezone=zone).statuses() == {"daily": "missed", "weekly": "missed"}
    assert any_site.audit("-q", "--at", "8999-12-31T23:59:59Z").err == ""
    assert any_site.audit("-q", "--at", "1971-01-01T00:00:00Z").err == ""


# --- Changes of clocks ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Change:
    """A run near a change of clocks in Berlin: its local times, and what they mean."""

    started: str
    ended: str
    started_utc: str
    minutes: float | None


# clocks go from 02:00 to 03:00 at 2026-03-29 01:00 UTC, and from 03:00 to 02:00 at 2026-10-25 01:00 UTC
SPRING = {
    "before": Change("2026-03-29 01:30", "2026-03-29 01:50", "2026-03-29T00:30:00Z", 20),
    "over": Change("2026-03-29 01:50", "2026-03-29 03:10", "2026-03-29T00:50:00Z", 20),
    "after": Change("2026-03-29 03:10", "2026-03-29 03:30", "2026-03-29T01:10:00Z", 20),
    "long": Change("2026-03-28 23:00", "2026-03-29 04:00", "2026-03-28T22:00:00Z", 240),
    "to the second": Change("2026-03-29 01:59:59", "2026-03-29 03:00:00", "2026-03-29T00:59:59Z", 1 / 60),
    # a host whose zone is another one: 02:30 did not exist
    "in the gap": Change("2026-03-29 02:10", "2026-03-29 02:40", "2026-03-29T01:10:00Z", 30),
    "into the gap": Change("2026-03-29 01:50", "2026-03-29 02:30", "2026-03-29T00:50:00Z", 40),
    "out of the gap": Change("2026-03-29 02:30", "2026-03-29 03:10", "2026-03-29T01:30:00Z", None),
}
AUTUMN = {
    "before": Change("2026-10-25 01:30", "2026-10-25 01:50", "2026-10-24T23:30:00Z", 20),
    "into": Change("2026-10-25 01:50", "2026-10-25 02:10", "2026-10-24T23:50:00Z", 20),
    "over": Change("2026-10-25 01:50", "2026-10-25 03:10", "2026-10-24T23:50:00Z", 140),
    "within, first": Change("2026-10-25 02:10", "2026-10-25 02:50", "2026-10-25T00:10:00Z", 40),
    "within, back": Change("2026-10-25 02:50", "2026-10-25 02:10", "2026-10-25T00:50:00Z", 20),
    "the same minute": Change("2026-10-25 02:30", "2026-10-25 02:30", "2026-10-25T00:30:00Z", 0),
    "out": Change("2026-10-25 02:50", "2026-10-25 03:10", "2026-10-25T00:50:00Z", 80),
    "after": Change("2026-10-25 03:10", "2026-10-25 03:30", "2026-10-25T02:10:00Z", 20),
    "long": Change("2026-10-24 23:00", "2026-10-25 04:00", "2026-10-24T21:00:00Z", 360),
    "backwards": Change("2026-10-25 05:00", "2026-10-25 04:30", "2026-10-25T04:00:00Z", None),
}


@pytest.mark.parametrize(
    ("changes", "at"),
    [(SPRING, "2026-03-29T12:00+02:00"), (AUTUMN, "2026-10-25T12:00+01:00")],
    ids=["spring", "autumn"],
)
def test_runs_at_a_change_of_clocks(any_site: Site, changes: Mapping[str, Change], at: str) -> None:
    day = datetime.fromisoformat(at).date()
    neighbour(any_site, f"{day} 05:00", f"{day} 05:30")
    for name, change in changes.items():
        any_site.run(any_site.container(name), change.started, change.ended)
    report = audited(any_site, at=at, db_timezone="Europe/Berlin")
    found = {c["name"]: c for c in report.containers if c["name"] != NEIGHBOUR}
    for name, change in changes.items():
        run = found[name]["last_success"]
        assert run["started"] == change.started_utc, name
        expected = None if change.minutes is None else round(change.minutes * 60)
        assert run["duration_seconds"] == expected, name
    assert set(report.statuses().values()) == {"ok"}
    assert report.audit["rows_ignored"] == {"malformed": 0, "future": 0}


@pytest.mark.parametrize(
    ("at", "status"),
    [
        ("2026-10-25T00:30:00Z", "running"),  # 02:30 for the first time: 02:40 is still to come
        ("2026-10-25T00:40:00Z", "ok"),
        ("2026-10-25T00:59:59Z", "ok"),
        ("2026-10-25T01:00:00Z", "ok"),
        ("2026-10-25T01:30:00Z", "ok"),  # 02:30 for the second time
        ("2026-10-25T02:30:00Z", "ok"),
        ("2026-10-25T02:30:00+02:00", "running"),
        ("2026-10-25T02:30:00+01:00", "ok"),
        ("2026-10-25T02:30", "running"),  # without offset: the first occurrence
    ],
)
def test_an_audit_in_the_doubled_hour(any_site: Site, at: str, status: str) -> None:
    neighbour(any_site, "2026-10-24 18:00", "2026-10-24 18:30")
    c_id = any_site.container("sales", created=datetime(2026, 10, 24, 23, tzinfo=timezone.utc))
    any_site.run(c_id, "2026-10-25 02:20", "2026-10-25 02:40")
    assert audited(any_site, at=at, db_timezone="Europe/Berlin").of(c_id)["status"] == status


@pytest.mark.parametrize(
    ("now", "local", "future"),
    [
        ("2026-10-25T00:30", "2026-10-25 02:34", 0),
        ("2026-10-25T00:30", "2026-10-25 02:36", 1),
        ("2026-10-25T00:58", "2026-10-25 02:02", 0),  # written after the change, by a clock that is ahead
        ("2026-10-25T01:00", "2026-10-25 02:00", 0),
        ("2026-10-25T01:00", "2026-10-25 02:59", 0),  # written before the change
        ("2026-10-25T01:30", "2026-10-25 02:30", 0),
        ("2026-10-25T01:30", "2026-10-25 02:59", 0),
        ("2026-10-25T01:30", "2026-10-25 03:01", 1),
        ("2026-10-25T02:00", "2026-10-25 03:04", 0),
        ("2026-10-25T02:00", "2026-10-25 03:06", 1),
        ("2026-03-29T00:59", "2026-03-29 03:03", 0),
        ("2026-03-29T00:59", "2026-03-29 03:05", 1),
        ("2026-03-29T01:00", "2026-03-29 03:04", 0),
        ("2026-03-29T01:00", "2026-03-29 03:06", 1),
    ],
)
def test_rows_of_the_doubled_hour_are_not_future(any_site: Site, now: str, local: str, future: int) -> None:
    # without --at `now` is the server's clock, which nobody sets for a test: it is replaced after it was read
    c_id = any_site.container("sales")
    any_site.run(c_id, local)
    rules = Rules(zone=BERLIN)
    with any_site.session() as session:
        reader = AuditReader(session, rules)
        moment = datetime.fromisoformat(now).replace(tzinfo=timezone.utc)
        log = reader.recent(replace(reader.site(), now=moment))
    assert (log.future, log.malformed) == (future, 0)
    assert len(log.of(Container(c_id, "sales"))) == 1 - future


# --- The server's session ------------------------------------------------------------------------------


def check_session(site: Site) -> None:
    """An audit of now and one of then on a server with odd settings."""
    now = now_at(site)
    fresh = site.container("fresh", created=now - timedelta(hours=1))
    future = site.container("future")
    site.run(future, now + timedelta(minutes=10), now + timedelta(minutes=10))
    report = audited(site, at=None)
    assert report.of(fresh)["status"] == "new"
    assert report.of(future)["status"] == "missed"
    assert report.ignored("future") == 2
    audited_now = datetime.fromisoformat(report.audit["now"].replace("Z", "+00:00"))
    assert timedelta(0) <= audited_now - now < timedelta(minutes=2)
    assert abs(site.samples(site.runfile)[series("mydb_backup_audit_clock_skew_seconds")]) < 60
    then = site.container("then")
    site.run(then, STARTED, ENDED)
    as_of = json.loads(site.audit("--json", "--at", AT).out)
    (found,) = (container for container in as_of["containers"] if container["name"] == "then")
    assert (found["status"], found["last_success"]["started"]) == ("ok", "2026-03-13T18:07:00Z")
    assert site.audit("--check-config").status == 0


def test_the_time_zone_of_the_server_does_not_matter(new_server: Callable[..., Server], tmp_path: Path) -> None:
    server = new_server(timezone="Asia/Tokyo")
    database = server.create_database()
    admin_db.create_tables(database.engine)
    check_session(Site(database.engine, database.settings, tmp_path, database))
    database.engine.dispose()


@pytest.mark.parametrize(
    "setting",
    [
        *("timezone = 'America/Los_Angeles'", "timezone = 'Pacific/Kiritimati'", "datestyle = 'SQL, DMY'"),
        *("datestyle = 'German'", "intervalstyle = 'sql_standard'", "standard_conforming_strings = off"),
        *("default_transaction_read_only = on", "default_transaction_isolation = 'serializable'"),
        *("client_encoding = 'LATIN1'", "bytea_output = 'escape'", "extra_float_digits = -5"),
    ],
)
def test_settings_of_the_database_do_not_matter(own_site: Site, setting: str) -> None:
    assert own_site.database
    for variable in (setting, "default_transaction_read_only = off") if "read_only" not in setting else ():
        own_site.database.execute(f'ALTER DATABASE "{own_site.database.name}" SET {variable}')
    if "read_only" in setting:
        own_site.database.execute(f"ALTER ROLE {own_site.settings['admin_user']} RESET ALL")
    own_site.engine.dispose()
    check_session(own_site)


# --- Extra jobs ----------------------------------------------------------------------------------------


def test_extra_jobs(any_site: Site) -> None:
    neighbour(any_site)
    both: dict[str, Any] = {"backup_id": "20260313-18:07:00", "type": "AWS S3"}
    any_site.run(0, STARTED, ENDED, name="offsite", **both)
    any_site.run(0, STARTED, ENDED, name="tape", error="upload failed: - to s3://site-backups", **both)
    any_site.run(0, STARTED, ENDED, name=None, error="Failed: x", **both)
    any_site.run(0, STARTED, ENDED, name="unlisted", error="Failed: x", **both)
    any_site.run(0, STARTED, ENDED, name="Offsite", error="Failed: x", **both)
    report = audited(any_site, extra_jobs={"offsite": " daily", "tape": "Weekly", "moon": "Daily"})
    assert report.statuses() == {"offsite": "ok", "tape": "failed", "moon": "missed"}
    assert {container["c_id"] for container in report.containers if container["name"] != NEIGHBOUR} == {0}


def test_rows_of_c_id_0_without_extra_jobs(any_site: Site) -> None:
    neighbour(any_site)
    any_site.run(0, STARTED, ENDED, name="offsite", error="upload failed: - to s3://site-backups")
    any_site.run(0, "2026-03-13 18:07:01", name=None)
    assert audited(any_site).statuses() == {}


def test_an_extra_job_of_the_name_of_a_container(any_site: Site) -> None:
    c_id = neighbour(any_site)
    any_site.config(extra_jobs={NEIGHBOUR: "Daily"})
    answer = any_site.audit("--json", "--at", AT, "--output", any_site.textfile)
    statuses = {container["c_id"]: container["status"] for container in json.loads(answer.out)["containers"]}
    assert statuses == {c_id: "ok", 0: "missed"}
    assert len([key for key in any_site.samples() if key[0] == "mydb_backup_status"]) == 2


# --- All at once ---------------------------------------------------------------------------------------


def test_a_site_full_of_bad_data(any_site: Site) -> None:
    now = now_at(any_site)
    for data in DOCUMENTS.values():
        any_site.container("sales", data=data)
    for value, _, _ in VALUES.values():
        any_site.container(None, data={"Info": {"BACKUP_FREQ": value}}, state=None, created=None)
    for c_id, name in ((None, None), (0, None), (0, "sales"), (99999, ""), (None, "sales")):
        add_state(any_site, c_id=c_id, name=name)
    for rows, _, _, _ in ROWS.values():
        for row in rows:
            for c_id in (None, 0, 2, 3, 99999):
                any_site.row(**{"c_id": c_id, "name": "sales", **row})
    any_site.row(c_id=2, ts=now + timedelta(days=9999))
    any_site.config(extra_jobs={"sales": "Daily", "moon": "Weekly"}, legacy_metrics=True, db_timezone="Europe/Berlin")
    answer = any_site.audit("-v")
    assert (answer.status, answer.err) == (2, "")
    assert SECRET not in answer.out + any_site.textfile.read_text("utf-8")
    assert any_site.samples()[series("mydb_backup_status", name="neighbour", c_id="1", status="ok")] == 1
