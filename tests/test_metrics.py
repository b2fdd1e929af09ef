"""What Prometheus gets: every family of monitoring/README.md. How files are written is in `tests/test_textfile.py`."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

import admin_db
from audit.auditor import Finding
from audit.metrics import audit_families, execution_families, exposition
from audit.options import VERSION
from audit.policy import DAY, HOUR, Rules, Status
from tests import findings
from tests.builders import NOW, TOP, Sample, Site, parse_samples, series
from tests.db4sci import SECRET
from tests.findings import FROZEN, PIECES, audit_of, failed, finding, ignored, missed, of_every_status, ok, unsure
from tests.programs import promtool_check_metrics, scrape_textfiles
from tests.runs import at, bad, run, unfinished

OF_AUDIT, OF_RUN = (
    {
        name: frozenset(labels.replace(",", " ").split())
        for name, labels in re.findall(r"^\| `(mydb_backup_\w+)` \|(.*?)\|", part, re.MULTILINE)
    }
    for part in (TOP / "monitoring" / "README.md").read_text("utf-8").split("In its sibling")
)
"""The labels of the families that the tables of the page list."""
LEGACY = {f"mydb_backup_{name}": frozenset({"name"}) for name in ("report_date", "failure", "duration", "start")}
NIGHTS = tuple(run(f"{day:02} 18:07", 33 - day) for day in range(8, 14))
"""Enough for a typical duration."""


def samples_of(*found: Finding, legacy: bool = False, **more: Any) -> dict[Sample, float]:
    """The samples of an audit at NOW. Fails if a series occurs twice."""
    return parse_samples(exposition(audit_families(audit_of(*found, **more), legacy)).decode())


def of_every_family() -> list[Finding]:
    """A container of each status, and one that has every series but that of an error."""
    kept, more = Rules(dumps_kept=10 * DAY), {"exception": FROZEN, "covered_ratio": 0.75}
    return [*of_every_status(), finding("sales", *NIGHTS, unfinished("14 06:50"), c_id=20, rules=kept, more=more)]


def labels_of(samples: dict[Sample, float], metric: str) -> list[dict[str, str]]:
    return [dict(labels) for name, labels in samples if name == f"mydb_backup_{metric}"]


def names(samples: dict[Sample, float], metric: str) -> set[str]:
    return {labels["name"] for labels in labels_of(samples, metric)}


# --- The families --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [None, 'n\u00f6rdlich "1"\\'])
def test_the_page_lists_every_family_with_its_labels(name: str | None) -> None:
    audit = audit_families(audit_of(*of_every_family()), legacy=True)
    both = exposition(audit, name) + exposition(execution_families(True, 1.5, 2, 0.5, VERSION), name)
    found = list(text_string_to_metric_families(both.decode()))
    expected = {**OF_AUDIT, **OF_RUN, **LEGACY}
    assert len(found) == len(expected)
    for family in found:
        labels = expected[family.name] | ({"site"} if name else set())
        for sample in family.samples:
            assert set(sample.labels) == labels
            assert sample.labels.get("site") == name
            assert sample.timestamp is None
        assert (family.type, family.documentation[-1]) == ("gauge", "."), family.name


def test_the_values_of_containers_and_of_the_audit() -> None:
    samples = samples_of(*of_every_family(), ignored=ignored(malformed=[1, 2], future=[3]))
    for c_id, status in enumerate(one.verdict.status for one in findings.of_every_status()):
        labels = {"name": f"c-{status.value}", "c_id": str(c_id + 1)}
        assert samples[series("mydb_backup_status", **labels, status=status.value)] == 1
        assert samples[series("mydb_backup_severity", **labels)] == status.severity
    assert len(labels_of(samples, "status")) == len(Status) + 1
    values = {
        "last_success_timestamp_seconds": at("13 18:07").timestamp(),
        "last_run_timestamp_seconds": at("14 06:50").timestamp(),
        "last_duration_seconds": 20 * 60,
        "typical_duration_seconds": 24 * 60,
        "due_timestamp_seconds": at("14 18:07").timestamp(),
        "kept_until_timestamp_seconds": at("23 18:07").timestamp(),
        "covered_ratio": 0.75,
        "exception_until_timestamp_seconds": FROZEN.ends.timestamp(),
    }
    for metric, value in values.items():
        assert samples[series(f"mydb_backup_{metric}", name="sales", c_id="20")] == value, metric
    facts = {"policy": "Daily", "engine": "Postgres", "state": "running", "owner": "ada", "contact": "ada@example.org"}
    assert samples[series("mydb_backup_container_info", name="sales", c_id="20", **facts)] == 1
    assert samples[series("mydb_backup_audit_timestamp_seconds")] == NOW.timestamp()
    assert samples[series("mydb_backup_log_newest_timestamp_seconds")] == NOW.timestamp() - 3600
    for reason, count in {"malformed": 2, "future": 1, "undated": 0}.items():
        assert samples[series("mydb_backup_log_rows_ignored", reason=reason)] == count
    for status in Status:
        assert samples[series("mydb_backup_containers", status=status.value)] == 1 + (status is Status.OK)
    assert names(samples, "failure_info") == {"c-failed", "c-unsure"}


def test_every_status_is_counted_also_at_0_and_an_ended_exception_has_its_end() -> None:
    samples = samples_of(missed(c_id=1, more={"exception": findings.ENDED}))
    counts = {status.value: samples[series("mydb_backup_containers", status=status.value)] for status in Status}
    assert counts == {**dict.fromkeys(counts, 0), "missed": 1}
    ends = series("mydb_backup_exception_until_timestamp_seconds", name="sales", c_id="1")
    assert samples[ends] == findings.ENDED.ends.timestamp()


def test_unknown_values_have_no_series() -> None:
    unknown: dict[str, Any] = dict.fromkeys(("backup_freq", "engine", "state", "owner", "contact"))
    samples = samples_of(
        ok("exempt", backup_freq="Never"),
        finding("failed only", bad("13 18:07", "pg_dump: error: x")),
        finding("never run", **unknown),
        finding("end only", run("13 18:07", start_logged=False)),
        newest_row=None,
    )
    everybody = {"exempt", "failed only", "never run", "end only"}
    assert names(samples, "status") == names(samples, "severity") == names(samples, "container_info") == everybody
    assert names(samples, "last_run_timestamp_seconds") == everybody - {"never run"}
    assert names(samples, "last_success_timestamp_seconds") == {"exempt", "end only"}
    assert names(samples, "last_duration_seconds") == {"exempt"}
    assert names(samples, "due_timestamp_seconds") == {"failed only", "end only"}
    assert names(samples, "failure_info") == {"failed only"}
    of_nobody = {"covered_ratio", "typical_duration_seconds", "kept_until_timestamp_seconds"}
    for metric in (*of_nobody, "exception_until_timestamp_seconds", "log_newest_timestamp_seconds"):
        assert not labels_of(samples, metric)
    (bare,) = [info for info in labels_of(samples, "container_info") if info["name"] == "never run"]
    assert {text for label, text in bare.items() if label not in ("name", "c_id")} == {""}


def test_the_line_that_decided_is_a_label_of_120_characters_at_most() -> None:
    recovered = finding("recovered", bad("13 18:07", "x: error"), run("13 21:00"), c_id=3)
    for line, label in {
        "MariaDB Backup error.  Container: \x1b[2J": "MariaDB Backup error. Container: \\x1b[2J",
        "e" * 120: "e" * 120,
        "e" * 121: "e" * 117 + "...",
        "x: password=hunTer2": "x: password=*****",
    }.items():
        samples = samples_of(failed("sales", line, c_id=1), unsure("wiki", line, c_id=2), recovered)
        expected = [{"name": "sales", "c_id": "1", "error": label}, {"name": "wiki", "c_id": "2", "error": label}]
        assert labels_of(samples, "failure_info") == expected


def test_no_label_has_a_password() -> None:
    facts: dict[str, Any] = dict.fromkeys(("backup_freq", "engine", "state", "owner", "contact"), findings.BAD)
    samples = samples_of(finding("all facts", **facts), failed("sales", findings.BAD), unsure("wiki", findings.BAD))
    assert SECRET not in repr(samples)
    assert repr(samples).count("password=*****") == len(facts) + 2


def test_containers_of_one_name_have_a_series_each() -> None:
    samples = samples_of(ok(c_id=0), failed(c_id=2), missed("", c_id=None))
    statuses = {(one["c_id"], one["name"]): one["status"] for one in labels_of(samples, "status")}
    assert statuses == {("0", "sales"): "ok", ("2", "sales"): "failed", ("", ""): "missed"}


def test_legacy_metrics_have_one_series_a_name() -> None:
    later, accepted = finding("both fine", run("13 19:00", 25), c_id=2), {"exception": FROZEN}
    twice = ok("both fine", c_id=1), later, ok("both fine", c_id=3), ok("mixed", c_id=4), failed("mixed", c_id=5)
    samples = samples_of(*twice, failed("null"), failed("reportdate", more=accepted), *of_every_status(), legacy=True)
    assert samples[series("mydb_backup_report_date", name="reportdate")] == NOW.timestamp()
    critical = {"mixed", "reportdate", *(f"c-{status.value}" for status in Status if status.severity == 2)}
    failure = {name: samples[series("mydb_backup_failure", name=name)] for name in names(samples, "failure")}
    assert failure == dict.fromkeys(critical | {"null"}, 1), "null is not hidden behind the original's placeholder"
    fine = {"both fine", "c-unsure", "c-ok", "c-running", "c-paused", "c-late"}
    assert names(samples, "start") == names(samples, "duration") == fine
    assert samples[series("mydb_backup_start", name="both fine")] == at("13 19:00").timestamp()
    assert samples[series("mydb_backup_duration", name="both fine")] == 25 * 60
    assert samples_of(legacy=True)[series("mydb_backup_failure", name="null")] == 0


# --- The files that an audit writes ---------------------------------------------------------------------


def fail(site: Site) -> dict[Sample, float]:
    """The run file of an audit that cannot reach its database."""
    site.config(**{**site.settings, "database_url": "sqlite:////nowhere/x.db"}, site="north")
    assert site.audit().status == 3
    return site.samples(site.runfile)


def test_the_files_of_an_audit_that_was_completed_and_of_one_that_was_not(
    sqlite_site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server's clock is an hour behind this host's."""
    monkeypatch.setattr(admin_db, "read_clock", lambda session: sqlite_site.clock() - HOUR)
    assert sqlite_site.audit().status == 3, "no active container"
    samples = sqlite_site.samples(sqlite_site.runfile)
    assert samples[series("mydb_backup_audit_success")] == 0
    assert {name for name, _ in samples} == OF_RUN.keys(), "the clocks were compared before the failure"
    sqlite_site.container("sales")
    before = sqlite_site.clock()
    assert sqlite_site.audit("-q").status == 2, "a critical verdict is a successful audit"
    samples = sqlite_site.samples(sqlite_site.runfile)
    assert {name for name, _ in samples} == OF_RUN.keys()
    assert samples[series("mydb_backup_audit_success")] == 1
    assert samples[series("mydb_backup_audit_info", version=VERSION)] == 1
    assert {name for name, _ in sqlite_site.samples()} <= OF_AUDIT.keys(), "no legacy metrics unless they are asked for"
    assert 0 < samples[series("mydb_backup_audit_duration_seconds")] < 60
    assert samples[series("mydb_backup_audit_run_timestamp_seconds")] == pytest.approx(before.timestamp(), abs=60)
    assert samples[series("mydb_backup_audit_clock_skew_seconds")] == pytest.approx(3600, abs=5)
    of_audit = sqlite_site.samples()[series("mydb_backup_audit_timestamp_seconds")]
    assert of_audit == pytest.approx(before.timestamp() - 3600, abs=60)
    samples = fail(sqlite_site)
    assert samples[series("mydb_backup_audit_success", site="north")] == 0
    assert {name for name, _ in samples} == OF_RUN.keys() - {"mydb_backup_audit_clock_skew_seconds"}


def test_node_exporter_serves_every_sample_and_promtool_finds_nothing(sqlite_site: Site, tmp_path: Path) -> None:
    """Of a failed audit and the good one before it; node_exporter drops whole files, and series, without a word."""
    for name in ["fine", *PIECES, "n" * 200, '\u00e4\u6570\U0001f4be\\"\n' * 33, "\uffff\U0010ffff\ue000"]:
        c_id, now = sqlite_site.container(name, owner=name, contact=name), sqlite_site.clock()
        for hours in (9, 8, 7):
            sqlite_site.run(c_id, now - timedelta(hours=hours), now - timedelta(hours=hours - 1))
        if name != "fine":
            sqlite_site.run(c_id, now - timedelta(hours=6), now - timedelta(hours=5), error=f"error: {name}")
    accepted = {"fine": ("2999-12-31", "for ever")}
    sqlite_site.config(legacy_metrics=True, site="north", dumps_kept_days=30, exceptions=accepted)
    sqlite_site.audit("-q")
    assert promtool_check_metrics(sqlite_site.textfile) == promtool_check_metrics(sqlite_site.runfile) == ""
    expected = sqlite_site.samples()
    assert {name for name, _ in expected} == {*OF_AUDIT, *LEGACY}
    assert len(labels_of(expected, "failure_info")) == len(PIECES) + 3
    assert parse_samples(sqlite_site.audit("--output", "-").out).keys() == expected.keys()
    expected |= fail(sqlite_site)
    served = parse_samples(scrape_textfiles(sqlite_site.textfile.parent, tmp_path / "node_exporter.log"))
    assert served[series("node_textfile_scrape_error")] == 0
    assert all(("site", "north") in labels for _, labels in expected)
    assert {key: value for key, value in served.items() if key[0].startswith("mydb_")} == expected
