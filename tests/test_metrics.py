"""What Prometheus gets: every family of SPEC section 5. How the files are written is in `tests/test_textfile.py`."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from audit.metrics import ERROR_LENGTH
from audit.policy import Status
from backup_audit import VERSION
from models import ContainerState
from tests.builders import NOW, SECRET, Sample, Site, parse_samples, series
from tests.test_hostile import PIECES

UTC = timezone.utc
IGNORED = "mydb_backup_log_rows_ignored"
ERROR = "pg_dump: error: query failed: ERROR:  permission denied for table visits"


def families(*lines: str) -> dict[str, frozenset[str]]:
    """The labels of metric families, from lines of a name and its labels; container stands for name and c_id."""
    words = [line.replace("container", "name c_id").split() for line in lines]
    return {f"mydb_backup_{name}": frozenset(labels) for name, *labels in words}


AUDIT_FAMILIES = families(
    *("status container status", "severity container", "last_success_timestamp_seconds container"),
    *("last_run_timestamp_seconds container", "last_duration_seconds container", "due_timestamp_seconds container"),
    *("failure_info container error", "exception_until_timestamp_seconds container", "covered_ratio container"),
    *("typical_duration_seconds container", "log_rows_ignored reason", "messages_unrecognised"),
    *("log_newest_timestamp_seconds", "audit_timestamp_seconds"),
) | {
    "mydb_backup_containers": frozenset({"status"}),
    "mydb_backup_container_info": frozenset({"name", "c_id", "policy", "engine", "state", "owner", "contact"}),
}
RUN_FAMILIES = families(
    *("audit_success", "audit_run_timestamp_seconds", "audit_duration_seconds", "audit_clock_skew_seconds"),
    "audit_info version",
)
LEGACY_FAMILIES = families("report_date name", "failure name", "duration name", "start name")


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


def publish(site: Site, *argv: str) -> dict[Sample, float]:
    """The samples of an audit at NOW."""
    result = site.audit("-q", "--at", NOW.isoformat(), "--output", site.textfile, *argv)
    assert result.err == ""
    assert result.status < 3
    return site.samples()


def labels_of(samples: dict[Sample, float], metric: str) -> list[dict[str, str]]:
    return [dict(labels) for name, labels in samples if name == metric]


SPECIAL: dict[Status, dict[str, Any]] = {
    Status.NO_POLICY: {"policy": "Fortnightly"},
    Status.EXEMPT: {"policy": "Never"},
    Status.NEW: {"created": "2026-03-14 01:00"},
    Status.PAUSED: {"state": "maintenance"},
}


def one_of_every_status(site: Site) -> dict[str, int]:
    """A site in which every status occurs once; the c_ids by status."""
    ids = {status.value: site.container(f"is {status.value}", **SPECIAL.get(status, {})) for status in Status}
    site.run(ids["running"], "2026-03-14 06:50")
    site.run(ids["failed"], "2026-03-14 02:00", "2026-03-14 02:01", error=ERROR)
    site.run(ids["stalled"], "2026-03-12 18:07")
    for day in range(8, 14):  # enough for a typical duration
        site.run(ids["ok"], f"2026-03-{day:02} 18:07", f"2026-03-{day:02} 18:{43 - day}")
    site.run(ids["paused"], "2026-03-10 18:07", "2026-03-10 18:30")
    site.run(ids["late"], "2026-03-13 05:00", "2026-03-13 05:30")
    site.run(ids["missed"], "2026-03-12 18:07", "2026-03-12 18:30")
    site.config(exceptions={"is missed": ("2026-12-31", "ticket 4711")})
    return ids


# --- The families --------------------------------------------------------------------------------------


def test_every_status_is_published(any_site: Site) -> None:
    ids = one_of_every_status(any_site)
    samples = publish(any_site)
    for status in Status:
        name, c_id = f"is {status.value}", str(ids[status.value])
        assert samples[series("mydb_backup_status", name=name, c_id=c_id, status=status.value)] == 1
        assert samples[series("mydb_backup_severity", name=name, c_id=c_id)] == status.severity
        assert samples[series("mydb_backup_containers", status=status.value)] == 1
    assert len(labels_of(samples, "mydb_backup_status")) == len(Status)


@pytest.mark.parametrize("name", [None, "north", 'n\u00f6rdlich "1"\\'])
def test_the_families_their_labels_and_no_series_twice(sqlite_site: Site, name: str | None) -> None:
    one_of_every_status(sqlite_site)
    sqlite_site.config(legacy_metrics=True, site=name, exceptions={"is missed": ("2026-12-31", "ticket 4711")})
    audit = publish(sqlite_site)
    assert sqlite_site.audit("-q").status == 2
    run = sqlite_site.samples(sqlite_site.runfile)
    both = sqlite_site.textfile.read_text("utf-8") + sqlite_site.runfile.read_text("utf-8")
    assert len(parse_samples(both)) == len(both.splitlines()) - both.count("\n# ") - 1
    for samples, expected in ((audit, {**AUDIT_FAMILIES, **LEGACY_FAMILIES}), (run, RUN_FAMILIES)):
        assert {dict(labels).get("site") for _, labels in samples} == {name}
        found = {(family, frozenset(dict(labels)) - {"site"}) for family, labels in samples}
        assert found == set(expected.items())


def test_every_family_is_a_gauge_with_help_and_without_timestamps(sqlite_site: Site) -> None:
    one_of_every_status(sqlite_site)
    sqlite_site.config(legacy_metrics=True, exceptions={"is missed": ("8999-12-31", "x")})
    sqlite_site.audit("-q")
    both = sqlite_site.textfile.read_text("utf-8") + sqlite_site.runfile.read_text("utf-8")
    found = list(text_string_to_metric_families(both))
    optional = {"mydb_backup_failure_info", "mydb_backup_typical_duration_seconds"}
    names = [family.name for family in found]
    assert {*names, *optional} == {*AUDIT_FAMILIES, *RUN_FAMILIES, *LEGACY_FAMILIES}
    assert len(set(names)) == len(names)
    for family in found:
        assert family.type == "gauge", family.name
        assert family.documentation.endswith("."), family.name
        assert all(sample.timestamp is None for sample in family.samples), family.name


@pytest.mark.parametrize("version", [1, 2])
def test_the_values_of_a_container_that_is_fine(any_site: Site, version: int) -> None:
    facts: dict[str, Any] = {"engine": "MariaDB", "owner": "grace", "contact": "g@example.org"}
    c_id = any_site.container("sales", " daily ", version=version, **facts)
    any_site.run(c_id, "2026-03-12 18:07", "2026-03-12 18:45")
    any_site.run(c_id, "2026-03-13 18:07", "2026-03-13 18:30")
    any_site.run(c_id, "2026-03-14 06:50")
    samples = publish(any_site)
    values = {
        "severity": 0,
        "last_success_timestamp_seconds": at("2026-03-13 18:07"),
        "last_run_timestamp_seconds": at("2026-03-14 06:50"),
        "last_duration_seconds": 23 * 60,
        "due_timestamp_seconds": at("2026-03-14 18:07"),
    }
    for metric, value in values.items():
        assert samples[series(f"mydb_backup_{metric}", name="sales", c_id=str(c_id))] == value
    assert samples[series("mydb_backup_audit_timestamp_seconds")] == NOW.timestamp()
    info = {"name": "sales", "c_id": str(c_id), "policy": "Daily", "state": "running", **facts}
    assert labels_of(samples, "mydb_backup_container_info") == [info]


def test_unknown_values_have_no_series(any_site: Site) -> None:
    site = any_site
    for name in ("exempt", "unknown policy", "failed only", "end only"):
        c_id = site.container(name, {"exempt": "Never", "unknown policy": "Fortnightly"}.get(name, "Daily"))
        if name == "end only":
            site.row(c_id=c_id, backup_id="x", state="end", ts=datetime(2026, 3, 13, 18, 30))
        else:
            error = ERROR if name == "failed only" else ""
            site.run(c_id, "2026-03-13 18:07", "2026-03-13 18:30", error=error)
    site.container("never run", data=None, state=None)
    samples = publish(site)

    def has(metric: str) -> set[str]:
        return {labels["name"] for labels in labels_of(samples, f"mydb_backup_{metric}")}

    everybody = {"exempt", "unknown policy", "failed only", "end only", "never run"}
    assert has("last_success_timestamp_seconds") == everybody - {"never run", "failed only"}
    assert has("last_run_timestamp_seconds") == everybody - {"never run"}
    assert has("last_duration_seconds") == {"exempt", "unknown policy"}
    assert has("due_timestamp_seconds") == {"failed only", "end only"}
    assert has("failure_info") == {"failed only"}
    assert has("status") == has("severity") == has("container_info") == everybody
    end_only = series("mydb_backup_last_success_timestamp_seconds", name="end only", c_id="4")
    assert samples[end_only] == at("2026-03-13 18:30")
    (bare,) = [info for info in labels_of(samples, "mydb_backup_container_info") if info["name"] == "never run"]
    assert {bare[label] for label in ("policy", "engine", "state", "owner", "contact")} == {""}


def test_an_empty_site(any_site: Site) -> None:
    any_site.config(allow_empty=True)
    samples = publish(any_site)
    assert {dict(labels)["status"] for name, labels in samples if name == "mydb_backup_containers"} == set(Status)
    assert {value for key, value in samples.items() if key[0] in ("mydb_backup_containers", IGNORED)} == {0}
    assert {labels["reason"] for labels in labels_of(samples, IGNORED)} == {"future", "malformed", "undated"}
    assert labels_of(samples, "mydb_backup_status") == []
    assert series("mydb_backup_log_newest_timestamp_seconds") not in samples


def test_ignored_rows_are_counted_by_reason(any_site: Site) -> None:
    site = any_site
    c_id, now = site.container("sales"), site.clock().replace(tzinfo=None, microsecond=0)
    site.run(c_id, now - timedelta(hours=2), now - timedelta(hours=1))
    sound = {"c_id": c_id, "backup_id": "x", "state": " END ", "ts": now - timedelta(minutes=5), "err_msg": ""}
    site.row(**{**sound, "c_id": 77})  # of any container; letter case and blanks do not matter
    for spoilt in ({"backup_id": None}, {"backup_id": ""}, {"state": None}, {"state": "ended"}):
        site.row(**{**sound, **spoilt, "err_msg": ERROR})
    for ahead in (timedelta(minutes=6), timedelta(hours=5), timedelta(days=400)):
        site.row(**{**sound, "ts": now + ahead, "err_msg": ERROR})
    for undated in ({}, {"c_id": None}):
        site.row(**{**sound, "ts": None, **undated, "err_msg": ERROR})
    assert site.audit("-q").status == 0
    samples = site.samples()
    for reason, count in {"malformed": 4, "future": 3, "undated": 2}.items():
        assert samples[series(IGNORED, reason=reason)] == count
    newest = samples[series("mydb_backup_log_newest_timestamp_seconds")]
    assert newest == (now - timedelta(minutes=5)).replace(tzinfo=UTC).timestamp()
    assert samples[series("mydb_backup_audit_timestamp_seconds")] == pytest.approx(site.clock().timestamp(), abs=60)


ERRORS = {
    "MariaDB Backup error.  Container: x\nError message: y": "MariaDB Backup error. Container: x Error message: y",
    f"x: error: password={SECRET} \x1b[2J": "x: error: password=***** \\x1b[2J",
    f"error: {'x' * 113}": f"error: {'x' * 113}",
    f"error: {'x' * 114}": f"error: {'x' * 110}...",
}


def test_the_error_of_a_failed_container(sqlite_site: Site) -> None:
    for error in ERRORS:
        for ended in ("2026-03-13 18:30", None):
            c_id = sqlite_site.container("sales", version=1)
            sqlite_site.run(c_id, "2026-03-13 18:07", ended, error=error)
    recovered = sqlite_site.container("recovered")
    sqlite_site.run(recovered, "2026-03-13 18:07", "2026-03-13 18:30", error=ERROR)
    sqlite_site.run(recovered, "2026-03-13 21:00", "2026-03-13 21:30")
    found = labels_of(publish(sqlite_site), "mydb_backup_failure_info")
    assert [labels["error"] for labels in found] == [label for label in ERRORS.values() for _ in range(2)]
    assert {len(label) <= ERROR_LENGTH == 120 for label in ERRORS.values()} == {True}
    assert SECRET not in sqlite_site.textfile.read_text("utf-8")


def test_an_exception_until_a_week_after_its_end(sqlite_site: Site) -> None:
    metric, sales = "mydb_backup_exception_until_timestamp_seconds", {"name": "sales", "c_id": "1"}
    sqlite_site.container("sales")
    sqlite_site.container("fine", "Never")
    until = {"sales": ("2026-03-15", "ticket 4711"), 2: ("2030-01-01", "not needed"), "unknown": ("2030-01-01", "x")}
    sqlite_site.config(db_timezone="Europe/Berlin", exceptions=until)
    for now, in_force, told in (
        *(("2026-03-15T23:59:59", True, True), ("2026-03-16T00:00", False, True)),
        *(("2026-03-22T23:59:59", False, True), ("2026-03-23T00:00", False, False)),
    ):
        result = sqlite_site.audit("-q", "--at", now, "--output", sqlite_site.textfile)
        assert result.status == (0 if in_force else 2)
        samples = sqlite_site.samples()
        assert samples.get(series(metric, **sales)) == (at("2026-03-15 23:00") if told else None), "the end of the day"
        assert len(labels_of(samples, metric)) == 1 + told
        assert samples[series("mydb_backup_severity", **sales)] == 2, "the verdict stays what it is"


def test_unrecognised_messages_are_counted(any_site: Site) -> None:
    c_id, other = any_site.container("sales"), any_site.container("wiki")
    any_site.run(c_id, "2026-03-13 07:00", "2026-03-13 07:10", message="Tape drive is on holiday")  # 24 hours ago
    any_site.run(c_id, "2026-03-13 07:01", "2026-03-13 07:11", message="Tape drive is on holiday")
    any_site.run(c_id, "2026-03-13 18:07", "2026-03-13 18:30", message="")
    any_site.run(c_id, "2026-03-13 19:07", "2026-03-13 19:30", error=ERROR, message="Tape drive is on holiday")
    any_site.run(other, "2026-03-14 06:50", message="Tape drive is on holiday")
    assert publish(any_site)[series("mydb_backup_messages_unrecognised")] == 2
    any_site.config(success_pattern="^Tape drive|^$")
    assert publish(any_site)[series("mydb_backup_messages_unrecognised")] == 0


def test_history_days_turns_the_metrics_of_the_past_off(sqlite_site: Site) -> None:
    ids = one_of_every_status(sqlite_site)
    labels = {"name": "is ok", "c_id": str(ids["ok"])}
    samples = publish(sqlite_site)
    assert 0 < samples[series("mydb_backup_covered_ratio", **labels)] < 1
    assert samples[series("mydb_backup_typical_duration_seconds", **labels)] == 26 * 60
    sqlite_site.config(history_days=0)
    past = {"mydb_backup_covered_ratio", "mydb_backup_typical_duration_seconds"}
    assert past.isdisjoint(name for name, _ in publish(sqlite_site))


def test_containers_of_one_name_and_without_a_c_id(any_site: Site) -> None:
    fine, bad = any_site.container("sales"), any_site.container("sales")
    any_site.run(fine, "2026-03-13 18:07", "2026-03-13 18:30")
    any_site.run(bad, "2026-03-13 18:07", "2026-03-13 18:30", error=ERROR)
    with any_site.session() as session:
        session.add_all(
            ContainerState(c_id=None, name=name, state="running") for name in ("lost", "lost", "sales", None)
        )
    samples = publish(any_site)  # fails if a series occurs twice
    assert samples[series("mydb_backup_status", name="sales", c_id=str(fine), status="ok")] == 1
    assert samples[series("mydb_backup_status", name="sales", c_id=str(bad), status="failed")] == 1
    lost = [labels for labels in labels_of(samples, "mydb_backup_status") if labels["status"] == "no_policy"]
    assert {(labels["name"], labels["c_id"]) for labels in lost} >= {("lost", ""), ("sales", "")}


def test_an_extra_job_is_a_container_with_c_id_0(site: Site) -> None:
    site.config(extra_jobs={"offsite": "Daily", "vaults": "Weekly"})
    site.container("offsite", "Never")
    site.run(0, "2026-03-13 20:00", "2026-03-13 21:00", name="offsite", type="AWS S3")
    site.run(0, "2026-03-12 20:00", "2026-03-12 21:00", name="something else", error=ERROR)
    samples = publish(site)
    assert samples[series("mydb_backup_status", name="offsite", c_id="0", status="ok")] == 1
    assert samples[series("mydb_backup_status", name="vaults", c_id="0", status="missed")] == 1
    assert samples[series("mydb_backup_last_duration_seconds", name="offsite", c_id="0")] == 3600


def test_output_to_stdout_is_the_textfile_and_nothing_else(sqlite_site: Site) -> None:
    one_of_every_status(sqlite_site)
    samples = publish(sqlite_site)
    result = sqlite_site.audit("--at", NOW.isoformat(), "--output", "-")
    assert result.out == sqlite_site.textfile.read_text("utf-8")
    assert result.out.endswith("\n")
    assert parse_samples(result.out) == samples
    assert not sqlite_site.runfile.exists()


# --- The original's metrics ----------------------------------------------------------------------------


def test_legacy_metrics(any_site: Site) -> None:
    one_of_every_status(any_site)
    any_site.config(legacy_metrics=True)
    samples = publish(any_site)
    assert samples[series("mydb_backup_report_date", name="reportdate")] == NOW.timestamp()

    failures = {name: samples[series("mydb_backup_failure", name=name)] for name in names(samples, "failure")}
    critical = {f"is {status.value}": 1.0 for status in Status if status.severity == 2}
    assert failures == {"null": 0, **critical}

    succeeded = {"is ok": "2026-03-13 18:07", "is paused": "2026-03-10 18:07", "is late": "2026-03-13 05:00"}
    assert names(samples, "start") == names(samples, "duration") == set(succeeded)
    for name, start in succeeded.items():
        assert samples[series("mydb_backup_start", name=name)] == at(start)
    assert samples[series("mydb_backup_duration", name="is ok")] == 23 * 60


def names(samples: dict[Sample, float], legacy: str) -> set[str]:
    return {labels["name"] for labels in labels_of(samples, f"mydb_backup_{legacy}")}


def test_a_legacy_name_has_one_series(sqlite_site: Site) -> None:
    sqlite_site.config(legacy_metrics=True)
    runs = {"both fine": ("18:10", "18:20"), "mixed": ("18:20", "18:30"), "null": ("18:30",), "reportdate": ("18:40",)}
    for name, ends in runs.items():
        for end in ends:
            error = "" if name == "both fine" or (name, end) == ("mixed", "18:20") else ERROR
            sqlite_site.run(sqlite_site.container(name), "2026-03-13 18:00", f"2026-03-13 {end}", error=error)
    late = sqlite_site.container("both fine")
    sqlite_site.run(late, "2026-03-13 19:00", "2026-03-13 19:25")
    samples = publish(sqlite_site)  # fails if a series occurs twice
    failures = {"mixed": 1, "null": 1, "reportdate": 1}  # not hidden behind the original's placeholder
    assert {name: samples[series("mydb_backup_failure", name=name)] for name in names(samples, "failure")} == failures
    assert samples[series("mydb_backup_report_date", name="reportdate")] == NOW.timestamp()
    assert names(samples, "start") == {"both fine"}
    assert samples[series("mydb_backup_start", name="both fine")] == at("2026-03-13 19:00")
    assert samples[series("mydb_backup_duration", name="both fine")] == 25 * 60


# --- The run file --------------------------------------------------------------------------------------


def test_the_run_file_after_success(any_site: Site) -> None:
    any_site.container("sales")
    before = any_site.clock()
    assert any_site.audit("-q").status == 2, "a critical verdict is a successful audit"
    samples = any_site.samples(any_site.runfile)
    assert {name: frozenset(dict(labels)) for name, labels in samples} == RUN_FAMILIES
    assert samples[series("mydb_backup_audit_success")] == 1
    assert samples[series("mydb_backup_audit_info", version=VERSION)] == 1
    assert 0 < samples[series("mydb_backup_audit_duration_seconds")] < 60
    assert samples[series("mydb_backup_audit_run_timestamp_seconds")] == pytest.approx(before.timestamp(), abs=60)
    assert abs(samples[series("mydb_backup_audit_clock_skew_seconds")]) < 5


def fail(site: Site) -> None:
    """Make an audit that cannot reach its database."""
    site.config(**{**site.settings, "database_url": "sqlite:////nowhere/x.db"}, site="north")
    assert site.audit().status == 3


def test_the_run_file_after_a_failure(sqlite_site: Site) -> None:
    fail(sqlite_site)
    samples = sqlite_site.samples(sqlite_site.runfile)
    assert samples[series("mydb_backup_audit_success", site="north")] == 0
    assert {name for name, _ in samples} == set(RUN_FAMILIES) - {"mydb_backup_audit_clock_skew_seconds"}


def test_the_clock_skew_stays_known_when_the_audit_fails_later(site: Site) -> None:
    assert site.audit().status == 3  # no active container
    samples = site.samples(site.runfile)
    assert samples[series("mydb_backup_audit_success")] == 0
    assert abs(samples[series("mydb_backup_audit_clock_skew_seconds")]) < 5


# --- promtool and node_exporter ------------------------------------------------------------------------


def test_promtool_finds_nothing(sqlite_site: Site, check_metrics: Callable[[Path], str]) -> None:
    sqlite_site.config(allow_empty=True)
    assert sqlite_site.audit("-q").status == 0
    assert check_metrics(sqlite_site.textfile) == ""
    one_of_every_status(sqlite_site)
    sqlite_site.config(legacy_metrics=True, site="north", exceptions={"is missed": ("8999-12-31", "ticket 4711")})
    publish(sqlite_site)
    sqlite_site.audit("-q")
    assert check_metrics(sqlite_site.textfile) == check_metrics(sqlite_site.runfile) == ""
    fail(sqlite_site)
    assert check_metrics(sqlite_site.runfile) == ""


def test_node_exporter_serves_every_sample(
    sqlite_site: Site, node_exporter: Callable[[Path], str], check_metrics: Callable[[Path], str]
) -> None:
    """Of a good audit, and of the failed one after it; node_exporter drops whole files, and series, without a word."""
    for name in [*PIECES, "n" * 200, '\u00e4\u6570\U0001f4be\\"\n' * 33, "\uffff\U0010ffff\ue000"]:
        c_id = sqlite_site.container(name, owner=name, contact=name)
        sqlite_site.run(c_id, "2026-03-13 18:07", "2026-03-13 18:30")
        sqlite_site.run(c_id, "2026-03-13 19:07", "2026-03-13 19:30", error=f"error: {name}")
    sqlite_site.config(legacy_metrics=True, site="north")
    sqlite_site.audit("-q")
    for failed in (False, True):
        if failed:
            fail(sqlite_site)
        expected = {**sqlite_site.samples(), **sqlite_site.samples(sqlite_site.runfile)}
        assert len(labels_of(expected, "mydb_backup_status")) == len(PIECES) + 3
        served = parse_samples(node_exporter(sqlite_site.textfile.parent))
        assert served[series("node_textfile_scrape_error")] == 0
        assert {key: value for key, value in served.items() if key[0].startswith("mydb_")} == expected
        assert check_metrics(sqlite_site.textfile) == ""
