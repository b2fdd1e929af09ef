"""What Prometheus gets: every family of SPEC section 5, and the files of section 6."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from backup_audit import VERSION
from models import ContainerState
from policy import Status
from tests.builders import NOW, SECRET, Sample, Site, parse_samples, series

UTC = timezone.utc
HOUR = 3600.0
ERROR = "pg_dump: error: query failed: ERROR:  permission denied for table visits"

AUDIT_FAMILIES = {
    "mydb_backup_status": {"name", "c_id", "status"},
    "mydb_backup_severity": {"name", "c_id"},
    "mydb_backup_last_success_timestamp_seconds": {"name", "c_id"},
    "mydb_backup_last_run_timestamp_seconds": {"name", "c_id"},
    "mydb_backup_last_duration_seconds": {"name", "c_id"},
    "mydb_backup_due_timestamp_seconds": {"name", "c_id"},
    "mydb_backup_container_info": {"name", "c_id", "policy", "engine", "state", "owner", "contact"},
    "mydb_backup_containers": {"status"},
    "mydb_backup_log_rows_ignored": {"reason"},
    "mydb_backup_log_newest_timestamp_seconds": set(),
    "mydb_backup_audit_timestamp_seconds": set(),
}
RUN_FAMILIES = {
    "mydb_backup_audit_success": set(),
    "mydb_backup_audit_run_timestamp_seconds": set(),
    "mydb_backup_audit_duration_seconds": set(),
    "mydb_backup_audit_clock_skew_seconds": set(),
    "mydb_backup_audit_info": {"version"},
}
HISTORY_FAMILIES = {"mydb_backup_covered_ratio", "mydb_backup_typical_duration_seconds"}
LEGACY_FAMILIES = {"mydb_backup_report_date", "mydb_backup_failure", "mydb_backup_duration", "mydb_backup_start"}
FAMILIES_OF_A_CONTAINER = [name for name, labels in AUDIT_FAMILIES.items() if {"name", "c_id"} <= labels]


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


def one_of_every_status(site: Site) -> dict[str, int]:
    """A site in which every status occurs once; the c_ids by status."""
    ids = {status.value: site.container(f"is {status.value}") for status in Status if status not in SPECIAL}
    ids |= {status.value: site.container(f"is {status.value}", **facts) for status, facts in SPECIAL.items()}  # type: ignore[arg-type]
    site.run(ids["running"], "2026-03-14 06:50")
    site.run(ids["failed"], "2026-03-14 02:00", "2026-03-14 02:01", error=ERROR)
    site.run(ids["stalled"], "2026-03-12 18:07")
    site.run(ids["ok"], "2026-03-13 18:07", "2026-03-13 18:30")
    site.run(ids["paused"], "2026-03-10 18:07", "2026-03-10 18:30")
    site.run(ids["late"], "2026-03-13 05:00", "2026-03-13 05:30")
    site.run(ids["missed"], "2026-03-12 18:07", "2026-03-12 18:30")
    return ids


SPECIAL: dict[Status, dict[str, str]] = {
    Status.NO_POLICY: {"policy": "Fortnightly"},
    Status.EXEMPT: {"policy": "Never"},
    Status.NEW: {"created": "2026-03-14 01:00"},
    Status.PAUSED: {"state": "maintenance"},
}


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


def test_the_families_and_labels_are_those_of_the_specification(site: Site) -> None:
    one_of_every_status(site)
    samples = publish(site)
    found = {name: {label for label, _ in labels} for name, labels in samples}
    assert {name: labels for name, labels in found.items() if name not in HISTORY_FAMILIES} == AUDIT_FAMILIES


def test_every_family_is_a_gauge_with_help_and_without_timestamps(site: Site) -> None:
    site.config(legacy_metrics=True)
    one_of_every_status(site)
    site.audit("-q")
    families = [
        family
        for path in (site.textfile, site.runfile)
        for family in text_string_to_metric_families(path.read_text("utf-8"))
    ]
    assert {family.name for family in families} >= {*AUDIT_FAMILIES, *RUN_FAMILIES, *LEGACY_FAMILIES}
    for family in families:
        assert family.type == "gauge", family.name
        assert family.documentation.endswith("."), family.name
        assert all(sample.timestamp is None for sample in family.samples), family.name
    assert len({family.name for family in families}) == len(families)


def test_the_values_of_a_container_that_is_fine(any_site: Site) -> None:
    c_id = any_site.container("sales", "Daily", engine="MariaDB", owner="ada", contact="ada@example.org")
    any_site.run(c_id, "2026-03-12 18:07", "2026-03-12 18:45")
    any_site.run(c_id, "2026-03-13 18:07", "2026-03-13 18:30")
    any_site.run(c_id, "2026-03-14 06:50")
    samples = publish(any_site)

    def value(metric: str) -> float:
        return samples[series(metric, name="sales", c_id=str(c_id))]

    assert value("mydb_backup_severity") == 0
    assert value("mydb_backup_last_success_timestamp_seconds") == at("2026-03-13 18:07")
    assert value("mydb_backup_last_run_timestamp_seconds") == at("2026-03-14 06:50")
    assert value("mydb_backup_last_duration_seconds") == 23 * 60
    assert value("mydb_backup_due_timestamp_seconds") == at("2026-03-14 18:07")
    assert samples[series("mydb_backup_log_newest_timestamp_seconds")] == at("2026-03-14 06:50")
    assert samples[series("mydb_backup_audit_timestamp_seconds")] == NOW.timestamp()
    (info,) = labels_of(samples, "mydb_backup_container_info")
    assert info == {
        "name": "sales",
        "c_id": str(c_id),
        "policy": "Daily",
        "engine": "MariaDB",
        "state": "running",
        "owner": "ada",
        "contact": "ada@example.org",
    }


@pytest.mark.parametrize("version", [1, 2])
def test_the_info_of_both_generations_of_metadata(site: Site, version: int) -> None:
    c_id = site.container("graph", " weekly ", version=version, engine="Neo4j", owner="grace", contact="g@example.org")
    (info,) = labels_of(publish(site), "mydb_backup_container_info")
    assert info == {
        "name": "graph",
        "c_id": str(c_id),
        "policy": "Weekly",
        "engine": "Neo4j",
        "state": "running",
        "owner": "grace",
        "contact": "g@example.org",
    }


def test_what_is_unknown_about_a_container_is_an_empty_label(site: Site) -> None:
    site.container("bare", data=None, state=None)
    (info,) = labels_of(publish(site), "mydb_backup_container_info")
    assert {info[label] for label in ("policy", "engine", "state", "owner", "contact")} == {""}


def test_there_is_no_series_where_there_is_nothing_to_say(any_site: Site) -> None:
    site = any_site
    never_run, exempt = site.container("never run"), site.container("exempt", "Never")
    unknown, end_only = site.container("unknown policy", "Fortnightly"), site.container("end only")
    failed = site.container("failed only")
    site.run(exempt, "2026-03-13 18:07", "2026-03-13 18:30")
    site.run(unknown, "2026-03-13 18:07", "2026-03-13 18:30")
    site.run(failed, "2026-03-13 18:07", "2026-03-13 18:30", error=ERROR)
    site.row(c_id=end_only, backup_id="x", state="end", ts=datetime(2026, 3, 13, 18, 30))
    samples = publish(site)

    def has(metric: str) -> set[str]:
        return {labels["name"] for labels in labels_of(samples, metric)}

    everybody = {"never run", "exempt", "unknown policy", "end only", "failed only"}
    assert has("mydb_backup_last_success_timestamp_seconds") == everybody - {"never run", "failed only"}
    assert has("mydb_backup_last_run_timestamp_seconds") == everybody - {"never run"}
    assert has("mydb_backup_last_duration_seconds") == {"exempt", "unknown policy"}
    assert has("mydb_backup_due_timestamp_seconds") == everybody - {"exempt", "unknown policy"}
    for metric in ("mydb_backup_status", "mydb_backup_severity", "mydb_backup_container_info"):
        assert has(metric) == everybody
    assert samples[series("mydb_backup_last_success_timestamp_seconds", name="end only", c_id=str(end_only))] == at(
        "2026-03-13 18:30"
    )
    assert never_run


def test_an_empty_log_has_no_newest_row(any_site: Site) -> None:
    any_site.container("sales")
    samples = publish(any_site)
    assert series("mydb_backup_log_newest_timestamp_seconds") not in samples
    assert samples[series("mydb_backup_log_rows_ignored", reason="future")] == 0
    assert samples[series("mydb_backup_log_rows_ignored", reason="malformed")] == 0


def test_the_newest_row_is_that_of_any_container(site: Site) -> None:
    sales = site.container("sales")
    site.run(sales, "2026-03-13 18:07", "2026-03-13 18:30")
    site.row(c_id=None, name="gone", backup_id="x", state="start", ts=datetime(2026, 3, 14, 6, 0))
    assert publish(site)[series("mydb_backup_log_newest_timestamp_seconds")] == at("2026-03-14 06:00")


def test_every_status_is_counted_even_where_there_is_no_container(any_site: Site) -> None:
    any_site.config(allow_empty=True)
    samples = publish(any_site)
    counts = {status.value: samples[series("mydb_backup_containers", status=status.value)] for status in Status}
    assert counts == dict.fromkeys(counts, 0)
    assert len(labels_of(samples, "mydb_backup_containers")) == len(Status)
    assert labels_of(samples, "mydb_backup_status") == []


def test_ignored_rows_are_counted(any_site: Site) -> None:
    site = any_site
    c_id = site.container("sales")
    now = site.clock().replace(tzinfo=None, microsecond=0)
    site.run(c_id, now - timedelta(hours=2), now - timedelta(hours=1))
    sound = {"c_id": c_id, "backup_id": "x", "state": "end", "ts": now - timedelta(minutes=5)}
    for spoilt in ({"ts": None}, {"backup_id": None}, {"backup_id": ""}, {"state": None}, {"state": "END"}):
        site.row(**{**sound, **spoilt, "err_msg": ERROR})
    site.row(**{**sound, "ts": now + timedelta(hours=5), "err_msg": ERROR})
    site.row(**{**sound, "ts": now + timedelta(days=400)})
    assert site.audit("-q").status == 0
    samples = site.samples()
    assert samples[series("mydb_backup_log_rows_ignored", reason="malformed")] == 5
    assert samples[series("mydb_backup_log_rows_ignored", reason="future")] == 2
    assert (
        samples[series("mydb_backup_log_newest_timestamp_seconds")]
        == (now - timedelta(hours=1)).replace(tzinfo=UTC).timestamp()
    )
    assert samples[series("mydb_backup_audit_timestamp_seconds")] == pytest.approx(site.clock().timestamp(), abs=60)


def test_two_containers_of_one_name_have_their_own_series(any_site: Site) -> None:
    fine, bad = any_site.container("sales"), any_site.container("sales")
    any_site.run(fine, "2026-03-13 18:07", "2026-03-13 18:30")
    any_site.run(bad, "2026-03-13 18:07", "2026-03-13 18:30", error=ERROR)
    samples = publish(any_site)
    assert samples[series("mydb_backup_status", name="sales", c_id=str(fine), status="ok")] == 1
    assert samples[series("mydb_backup_status", name="sales", c_id=str(bad), status="failed")] == 1


def test_containers_without_a_c_id_never_collide(any_site: Site) -> None:
    ok = any_site.container("sales")
    any_site.run(ok, "2026-03-13 18:07", "2026-03-13 18:30")
    with any_site.session() as session:
        session.add_all(
            [
                ContainerState(c_id=None, name="lost", state="running"),
                ContainerState(c_id=None, name="lost", state="running"),
                ContainerState(c_id=None, name="other", state="running"),
                ContainerState(c_id=None, name=None, state="running"),
            ]
        )
    samples = publish(any_site)
    lost = [labels for labels in labels_of(samples, "mydb_backup_status") if labels["status"] == "no_policy"]
    assert sorted(labels["name"] for labels in lost)[-2:] == ["lost", "other"]
    assert {labels["c_id"] for labels in lost} == {""}
    assert samples[series("mydb_backup_status", name="sales", c_id=str(ok), status="ok")] == 1


def test_an_extra_job_is_a_container_with_c_id_0(any_site: Site) -> None:
    site = any_site
    site.config(extra_jobs={"offsite": "Daily", "vaults": "Weekly"})
    site.container("offsite", "Never")
    site.run(0, "2026-03-13 20:00", "2026-03-13 21:00", name="offsite", type="AWS S3")
    site.run(0, "2026-03-12 20:00", "2026-03-12 21:00", name="something else", error=ERROR)
    samples = publish(site)
    assert samples[series("mydb_backup_status", name="offsite", c_id="0", status="ok")] == 1
    assert samples[series("mydb_backup_status", name="vaults", c_id="0", status="missed")] == 1
    assert samples[series("mydb_backup_last_duration_seconds", name="offsite", c_id="0")] == HOUR


def test_no_password_reaches_a_textfile(any_site: Site) -> None:
    for version in (1, 2):
        c_id = any_site.container(f"sales {version}", version=version)
        any_site.run(c_id, "2026-03-13 18:07", "2026-03-13 18:30", error=f"{ERROR} --password={SECRET}")
    publish(any_site)
    assert SECRET not in any_site.textfile.read_text("utf-8")


def test_output_to_stdout_is_the_textfile_and_nothing_else(site: Site) -> None:
    one_of_every_status(site)
    samples = publish(site)
    result = site.audit("--at", NOW.isoformat(), "--output", "-")
    assert result.out == site.textfile.read_text("utf-8")
    assert result.out.endswith("\n")
    assert parse_samples(result.out) == samples
    assert not site.runfile.exists()


# --- The original's metrics ----------------------------------------------------------------------------


def test_without_legacy_metrics_there_are_none(site: Site) -> None:
    one_of_every_status(site)
    assert LEGACY_FAMILIES.isdisjoint(name for name, _ in publish(site))


def test_legacy_metrics(any_site: Site) -> None:
    any_site.config(legacy_metrics=True)
    one_of_every_status(any_site)
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


def test_legacy_metrics_of_a_site_that_is_well(site: Site) -> None:
    site.config(legacy_metrics=True)
    c_id = site.container("sales")
    site.run(c_id, "2026-03-13 18:07", "2026-03-13 18:30")
    samples = publish(site)
    assert names(samples, "failure") == {"null"}
    assert samples[series("mydb_backup_failure", name="null")] == 0
    assert names(samples, "start") == {"sales"}


def test_a_legacy_name_has_one_series(site: Site) -> None:
    site.config(legacy_metrics=True)
    older, newer, fine, broken = (site.container(name) for name in ("both fine", "both fine", "mixed", "mixed"))
    site.run(older, "2026-03-13 10:00", "2026-03-13 10:10")
    site.run(newer, "2026-03-13 18:00", "2026-03-13 18:20")
    site.run(fine, "2026-03-13 18:00", "2026-03-13 18:20")
    site.run(broken, "2026-03-13 18:00", "2026-03-13 18:20", error=ERROR)
    samples = publish(site)  # fails if a series occurs twice
    assert samples[series("mydb_backup_failure", name="mixed")] == 1
    assert names(samples, "start") == {"both fine"}
    assert samples[series("mydb_backup_start", name="both fine")] == at("2026-03-13 18:00")
    assert samples[series("mydb_backup_duration", name="both fine")] == 20 * 60


@pytest.mark.parametrize("name", ["null", "reportdate"])
def test_a_container_may_bear_a_legacy_name(site: Site, name: str) -> None:
    site.config(legacy_metrics=True)
    c_id = site.container(name)
    site.run(c_id, "2026-03-13 18:07", "2026-03-13 18:30", error=ERROR)
    samples = publish(site)
    # no series twice, and a failure is not hidden behind the original's placeholder
    assert samples[series("mydb_backup_failure", name="null")] == (1 if name == "null" else 0)
    assert samples[series("mydb_backup_report_date", name="reportdate")] == NOW.timestamp()
    assert samples[series("mydb_backup_status", name=name, c_id=str(c_id), status="failed")] == 1


# --- The run file --------------------------------------------------------------------------------------


def test_the_run_file_after_success(any_site: Site) -> None:
    c_id = any_site.container("sales")
    before = any_site.clock()
    any_site.run(c_id, before - timedelta(hours=2), before - timedelta(hours=1))
    assert any_site.audit().status == 0
    samples = any_site.samples(any_site.runfile)
    assert {name: {label for label, _ in labels} for name, labels in samples} == RUN_FAMILIES
    assert samples[series("mydb_backup_audit_success")] == 1
    assert samples[series("mydb_backup_audit_info", version=VERSION)] == 1
    assert 0 < samples[series("mydb_backup_audit_duration_seconds")] < 60
    assert samples[series("mydb_backup_audit_run_timestamp_seconds")] == pytest.approx(before.timestamp(), abs=60)
    assert abs(samples[series("mydb_backup_audit_clock_skew_seconds")]) < 5


def test_a_critical_verdict_is_still_a_successful_audit(site: Site) -> None:
    site.container("sales")
    assert site.audit("-q").status == 2
    assert site.samples(site.runfile)[series("mydb_backup_audit_success")] == 1


def test_the_run_file_is_named_after_the_textfile(site: Site) -> None:
    site.container("sales")
    other = site.folder / "other.name.prom"
    site.config(prometheus_file=str(other))
    site.audit("-q")
    assert sorted(path.name for path in site.folder.glob("*.prom")) == ["other.name.prom", "other.name_run.prom"]


def fail(site: Site) -> None:
    """Make an audit that cannot reach its database."""
    unreachable = {"container_host": "127.0.0.1", "mydb_admin_port": 1, "database_url": None}
    site.config(**unreachable)
    result = site.audit()
    assert result.status == 3
    assert result.out == ""
    assert result.err.startswith("backup_audit: ")
    assert result.err.count("\n") == 1


def test_a_failure_keeps_the_textfile_and_says_so_in_the_run_file(any_site: Site) -> None:
    one_of_every_status(any_site)
    any_site.audit("-q")
    last_good, modified = any_site.textfile.read_bytes(), any_site.textfile.stat()
    fail(any_site)
    assert any_site.textfile.read_bytes() == last_good
    assert any_site.textfile.stat().st_mtime_ns == modified.st_mtime_ns
    assert any_site.textfile.stat().st_ino == modified.st_ino
    samples = any_site.samples(any_site.runfile)
    assert samples[series("mydb_backup_audit_success")] == 0
    assert samples[series("mydb_backup_audit_info", version=VERSION)] == 1
    assert series("mydb_backup_audit_run_timestamp_seconds") in samples
    assert series("mydb_backup_audit_duration_seconds") in samples
    assert series("mydb_backup_audit_clock_skew_seconds") not in samples


def test_a_failure_before_the_first_success_writes_the_run_file_only(site: Site) -> None:
    fail(site)
    assert [path.name for path in site.textfile.parent.iterdir()] == [site.runfile.name]


def test_the_clock_skew_stays_known_when_the_audit_fails_later(site: Site) -> None:
    assert site.audit().status == 3  # no active container
    samples = site.samples(site.runfile)
    assert samples[series("mydb_backup_audit_success")] == 0
    assert abs(samples[series("mydb_backup_audit_clock_skew_seconds")]) < 5


def test_bad_configuration_is_told_in_the_run_file_if_the_textfile_is_known(site: Site) -> None:
    site.container("sales")
    site.audit("-q")
    site.config(window_hours="a day")
    assert site.audit().status == 3
    assert site.samples(site.runfile)[series("mydb_backup_audit_success")] == 0


@pytest.mark.parametrize(
    "argv",
    [
        ("--at", "2026-03-14T07:00Z"),
        ("sales",),
        ("--json", "sales"),
        ("--output", "-"),
        ("--check-config",),
        ("--version",),
        ("--no-such-option",),
    ],
    ids=" ".join,
)
def test_what_is_not_the_nightly_audit_writes_no_file(site: Site, argv: tuple[str, ...]) -> None:
    site.container("sales")
    site.audit(*argv)
    assert list(site.textfile.parent.iterdir()) == []


# --- The files -----------------------------------------------------------------------------------------


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("mask", [0o077, 0o027, 0o000, 0o777])
@pytest.mark.parametrize("mode", [None, 0o640, 0o664])
def test_the_textfiles_have_their_mode_whatever_the_umask(sqlite_site: Site, mask: int, mode: int | None) -> None:
    site = sqlite_site
    site.config(textfile_mode=mode)
    site.container("sales")
    expected = mode or 0o644
    for _ in range(2):  # made, and replaced
        with umask(mask):
            site.audit("-q")
        assert (mode_of(site.textfile), mode_of(site.runfile)) == (expected, expected)
        site.textfile.chmod(0o600)


def test_a_failure_gives_the_run_file_its_mode_as_well(site: Site) -> None:
    with umask(0o077):
        fail(site)
    assert mode_of(site.runfile) == 0o644


def test_nothing_but_the_two_files_is_left_in_the_folder(site: Site) -> None:
    site.container("sales")
    for _ in range(3):
        site.audit("-q")
    assert sorted(path.name for path in site.textfile.parent.iterdir()) == [site.textfile.name, site.runfile.name]


def test_a_reader_always_sees_a_whole_file_and_never_a_temporary_one(sqlite_site: Site) -> None:
    site = sqlite_site
    for number in range(60):
        site.container(f"container {number}")
    site.audit("-q")
    ended = threading.Event()
    seen: set[str] = set()
    torn: list[bytes] = []

    def read() -> None:
        while not ended.is_set():
            for path in site.textfile.parent.iterdir():
                seen.add(path.name)
            content = site.textfile.read_bytes()
            if not content.endswith(b"\n") or b"mydb_backup_audit_timestamp_seconds " not in content:
                torn.append(content)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for _ in range(25):
            site.audit("-q")
    finally:
        ended.set()
        reader.join()
    assert torn == []
    assert {name for name in seen if name.endswith(".prom")} == {site.textfile.name, site.runfile.name}


def test_the_temporary_file_is_beside_the_textfile_and_is_no_prom(
    sqlite_site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    renamed: list[tuple[Path, Path]] = []
    replace = os.replace

    def spy(source: str | Path, target: str | Path) -> None:
        renamed.append((Path(source), Path(target)))
        replace(source, target)

    monkeypatch.setattr(os, "replace", spy)
    sqlite_site.container("sales")
    sqlite_site.audit("-q")
    assert [target for _, target in renamed] == [sqlite_site.textfile, sqlite_site.runfile]
    for source, target in renamed:
        assert source.parent == target.parent
        assert source.suffix != ".prom"


def test_audits_at_the_same_time_do_no_harm(sqlite_site: Site) -> None:
    site = sqlite_site
    for number in range(20):
        site.container(f"container {number}")
    config = str(site.config())
    workers = [threading.Thread(target=lambda: site.process("--config", config, "-q")) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert site.samples()[series("mydb_backup_containers", status="missed")] == 20
    assert site.samples(site.runfile)[series("mydb_backup_audit_success")] == 1
    assert len(list(site.textfile.parent.iterdir())) == 2


def test_a_symlink_keeps_what_it_points_to_readable(sqlite_site: Site) -> None:
    site = sqlite_site
    site.container("sales")
    site.config()
    target = site.folder / "elsewhere.prom"
    target.write_text("# the old one\n", encoding="utf-8")
    site.textfile.symlink_to(target)
    assert site.audit("-q").status == 2
    assert site.samples()[series("mydb_backup_containers", status="missed")] == 1
    assert target.exists()


def test_a_dangling_symlink_is_no_obstacle(sqlite_site: Site) -> None:
    sqlite_site.container("sales")
    sqlite_site.config()
    sqlite_site.textfile.symlink_to(sqlite_site.folder / "nowhere.prom")
    assert sqlite_site.audit("-q").status == 2
    assert sqlite_site.samples()[series("mydb_backup_containers", status="missed")] == 1


@pytest.mark.parametrize("kind", ["folder", "fifo", "device"])
def test_what_is_no_regular_file_is_never_replaced(sqlite_site: Site, kind: str) -> None:
    site = sqlite_site
    site.container("sales")
    site.config()
    if kind == "folder":
        site.textfile.mkdir()
    elif kind == "fifo":
        os.mkfifo(site.textfile)
    else:  # a link, since making a device takes root; the audit follows it to see what it is
        site.textfile.symlink_to("/dev/null")
    before = site.textfile.lstat()
    result = site.audit()
    assert result.status == 3
    assert result.err.count("\n") == 1
    assert str(site.textfile) in result.err
    assert (site.textfile.lstat().st_mode, site.textfile.lstat().st_ino) == (before.st_mode, before.st_ino)
    assert site.samples(site.runfile)[series("mydb_backup_audit_success")] == 0


def test_output_to_a_device_is_refused(sqlite_site: Site) -> None:
    sqlite_site.container("sales")
    device = sqlite_site.folder / "device.prom"
    device.symlink_to("/dev/null")  # by a link, so that a mistake would do no harm
    result = sqlite_site.audit("--output", device)
    assert result.status == 3
    assert str(device) in result.err
    assert device.is_symlink()


# --- promtool and node_exporter ------------------------------------------------------------------------


def test_promtool_has_nothing_to_say(any_site: Site, check_metrics: Callable[[Path], str]) -> None:
    one_of_every_status(any_site)
    any_site.audit("-q")
    assert check_metrics(any_site.textfile) == ""
    assert check_metrics(any_site.runfile) == ""
    fail(any_site)
    assert check_metrics(any_site.runfile) == ""


def test_promtool_has_nothing_to_say_about_an_empty_site(site: Site, check_metrics: Callable[[Path], str]) -> None:
    site.config(allow_empty=True)
    assert site.audit("-q").status == 0
    assert check_metrics(site.textfile) == ""


def test_promtool_has_nothing_to_say_about_legacy_metrics(site: Site, check_metrics: Callable[[Path], str]) -> None:
    site.config(legacy_metrics=True)
    one_of_every_status(site)
    site.audit("-q")
    assert check_metrics(site.textfile) == ""


AWKWARD_NAMES = [
    'quote "sales"',
    "apostrophe's",
    "back\\slash",
    "ends with a backslash\\",
    '\\"',
    "\\n is no newline",
    "new\nline",
    "\nfirst and last\n",
    "carriage\rreturn",
    "both\r\nof them",
    "tab\tbed",
    "  blanks  ",
    '{name="x"} 1',
    "# HELP me",
    "comma, equals=",
    "emoji \U0001f4be\U0001f469\u200d\U0001f4bb",
    "B\u00fccher \u6570\u636e \u0627\u0644\u0645",
    "start of heading \x01",
    "escape \x1b[31m",
    "delete \x7f",
    "next line \x85",
    "line separator \u2028 and \u2029",
    "vertical \x0b tab, form \x0c feed",
    "separators \x1c\x1d\x1e\x1f",
    "byte order mark \ufeff",
    "bidi \u202etxet\u202c",
    "noncharacter \uffff \U0010ffff",
    "private use \ue000",
    "percent %s %% %(name)s $HOME ${HOME} `id`",
    "x",
]


def containers_with_awkward_names(site: Site, total: int = 200) -> dict[int, str]:
    """Containers of which some bear awkward names, and all have the same in owner and contact."""
    chosen = (
        AWKWARD_NAMES
        + ["n" * 200, '\u00e4\u6570\U0001f4be\\"\n' * 33]
        + [f"container {number}" for number in range(total - len(AWKWARD_NAMES) - 2)]
    )
    ids = {}
    for name in chosen:
        c_id = site.container(name, owner=name, contact=name)
        site.run(c_id, "2026-03-13 18:07", "2026-03-13 18:30")
        ids[c_id] = name
    return ids


def test_names_of_all_kinds_parse_back(any_site: Site, check_metrics: Callable[[Path], str]) -> None:
    ids = containers_with_awkward_names(any_site, total=60)
    samples = publish(any_site)
    for c_id, name in ids.items():
        for metric in FAMILIES_OF_A_CONTAINER:
            found = [labels for labels in labels_of(samples, metric) if labels["c_id"] == str(c_id)]
            assert [labels["name"] for labels in found] == [name], metric
        (info,) = [one for one in labels_of(samples, "mydb_backup_container_info") if one["c_id"] == str(c_id)]
        assert (info["owner"], info["contact"]) == (name, name)
    assert check_metrics(any_site.textfile) == ""


def test_node_exporter_serves_every_sample(
    site: Site, node_exporter: Callable[[Path], str], check_metrics: Callable[[Path], str]
) -> None:
    ids = containers_with_awkward_names(site)
    site.config(legacy_metrics=True)
    site.audit("-q")
    expected = {**site.samples(), **site.samples(site.runfile)}
    assert len([key for key in expected if key[0] == "mydb_backup_status"]) == len(ids) == 200
    served = parse_samples(node_exporter(site.textfile.parent))
    assert served[series("node_textfile_scrape_error")] == 0
    files = {Path(dict(labels)["file"]).name for name, labels in served if name == "node_textfile_mtime_seconds"}
    assert files == {site.textfile.name, site.runfile.name}
    ours = {key: value for key, value in served.items() if key[0].startswith("mydb_")}
    assert {key for key in expected if key not in ours} == set(), "lost or altered by node_exporter"
    assert ours == expected
    assert check_metrics(site.textfile) == ""


def test_node_exporter_serves_what_a_failed_audit_leaves(site: Site, node_exporter: Callable[[Path], str]) -> None:
    one_of_every_status(site)
    site.audit("-q")
    fail(site)
    expected = {**site.samples(), **site.samples(site.runfile)}
    served = parse_samples(node_exporter(site.textfile.parent))
    assert served[series("node_textfile_scrape_error")] == 0
    assert {key: value for key, value in served.items() if key[0].startswith("mydb_")} == expected
