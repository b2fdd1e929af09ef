"""From findings to metric families, and from those to the text format (monitoring/README.md lists them).

This module judges nothing, reads no clock and writes no file: `textfile` does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Sample
from prometheus_client.registry import Collector

from audit.auditor import Audit, Finding
from audit.policy import Run
from audit.text import mask, one_line, shorten

ERROR_LENGTH = 120
"""How many characters of an error become a label."""


@dataclass(frozen=True)
class _Metric:
    """A family with at most one series a container, labelled with its name and c_id."""

    name: str
    help: str
    value: Callable[[Finding], float | None]
    """The sample's value; None for no series."""
    labels: Mapping[str, Callable[[Finding], str | None]] = field(default_factory=dict)
    """Labels beside name and c_id."""


def _seconds(moment: datetime | None) -> float | None:
    return None if moment is None else moment.timestamp()


def _started(run: Run | None) -> float | None:
    return None if run is None else run.started.timestamp()


def _duration(run: Run | None) -> float | None:
    return None if run is None or run.duration is None else run.duration.total_seconds()


def _line(finding: Finding) -> str | None:
    line = finding.verdict.line
    return None if line is None else shorten(one_line(line), ERROR_LENGTH)


PER_CONTAINER = (
    _Metric(
        "mydb_backup_status",
        "1 for the present status of the container's backups.",
        lambda finding: 1,
        {"status": lambda finding: finding.verdict.status.value},
    ),
    _Metric(
        "mydb_backup_severity",
        "Severity of the status: 0 OK, 1 warning, 2 critical.",
        lambda finding: finding.verdict.severity,
    ),
    _Metric(
        "mydb_backup_last_success_timestamp_seconds",
        "Start of the last succeeded backup run, in seconds since the epoch.",
        lambda finding: _started(finding.verdict.last_success),
    ),
    _Metric(
        "mydb_backup_last_run_timestamp_seconds",
        "Start of the newest backup run, whatever became of it, in seconds since the epoch.",
        lambda finding: _started(finding.verdict.last_run),
    ),
    _Metric(
        "mydb_backup_last_duration_seconds",
        "Duration of the last succeeded backup run.",
        lambda finding: _duration(finding.verdict.last_success),
    ),
    _Metric(
        "mydb_backup_due_timestamp_seconds",
        "Deadline for a newer successful run to start, in seconds since the epoch.",
        lambda finding: _seconds(finding.verdict.due),
    ),
    _Metric(
        "mydb_backup_container_info",
        "Always 1; the labels describe the container.",
        lambda finding: 1,
        {
            "policy": lambda finding: mask(finding.verdict.policy),
            "engine": lambda finding: mask(finding.container.engine or ""),
            "state": lambda finding: mask(finding.container.state or ""),
            "owner": lambda finding: mask(finding.container.owner or ""),
            "contact": lambda finding: mask(finding.container.contact or ""),
        },
    ),
    _Metric(
        "mydb_backup_failure_info",
        "1 for each container whose status is failed or unsure; the label error is the line that decided.",
        lambda finding: None if _line(finding) is None else 1,
        {"error": _line},
    ),
    _Metric(
        "mydb_backup_exception_until_timestamp_seconds",
        "End of the container's accepted exception, in seconds since the epoch, until a week after it.",
        lambda finding: _seconds(finding.exception.ends) if finding.exception else None,
    ),
    _Metric(
        "mydb_backup_covered_ratio",
        "Share of the last history_days in which the container was covered by a backup, from 0 to 1.",
        lambda finding: finding.covered_ratio,
    ),
    _Metric(
        "mydb_backup_typical_duration_seconds",
        "Upper quartile of the durations of the runs that succeeded in the last 30 days.",
        lambda finding: None if finding.verdict.typical is None else finding.verdict.typical.total_seconds(),
    ),
    _Metric(
        "mydb_backup_kept_until_timestamp_seconds",
        "Until when the last good dump is kept, in seconds since the epoch.",
        lambda finding: _seconds(finding.verdict.kept_until),
    ),
)


class _Families(Collector):
    """A collector of families that are made one at a time, while the exposition is written."""

    def __init__(self, families: Iterable[GaugeMetricFamily]) -> None:
        self._families = families

    def collect(self) -> Iterable[GaugeMetricFamily]:
        return self._families


def exposition(families: Iterable[GaugeMetricFamily], site: str | None = None) -> bytes:
    """The families in the text format, from a registry of their own; with `site` each series has that label."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Families(_of_site(family, site) if site else family for family in families))
    return generate_latest(registry)


def _of_site(family: GaugeMetricFamily, site: str) -> GaugeMetricFamily:
    family.samples = [sample._replace(labels={"site": site, **sample.labels}) for sample in family.samples]
    return family


def audit_families(audit: Audit, legacy: bool = False) -> Iterator[GaugeMetricFamily]:
    """What an audit found, as gauges; with `legacy` also under the original Backup Audit's names."""
    labelled = [(_labels(finding), finding) for finding in audit.findings]
    for metric in PER_CONTAINER:
        family = _family(metric, labelled)
        if family.samples:
            yield family
    by_status = {status.value: count for status, count in audit.counts().items()}
    yield _by_label("mydb_backup_containers", "Containers by status.", "status", by_status)
    yield _by_label(
        "mydb_backup_log_rows_ignored",
        "Rows in the recent part of the backup log (undated: in all of it) that no verdict could use.",
        "reason",
        audit.ignored.counts,
    )
    if audit.newest_row is not None:
        yield GaugeMetricFamily(
            "mydb_backup_log_newest_timestamp_seconds",
            "Newest row of the backup log, of any container, future ones aside, in seconds since the epoch.",
            value=audit.newest_row.timestamp(),
        )
    yield GaugeMetricFamily(
        "mydb_backup_audit_timestamp_seconds",
        "The moment that this audit is about, in seconds since the epoch.",
        value=audit.now.timestamp(),
    )
    if legacy:
        yield from _legacy_families(audit)


def execution_families(
    success: bool, at: float, duration: float, clock_skew: float | None, version: str
) -> Iterator[GaugeMetricFamily]:
    """How this execution of the audit went; `at` is this host's clock in seconds since the epoch."""
    yield GaugeMetricFamily("mydb_backup_audit_success", "1 if the last audit was completed, else 0.", value=success)
    yield GaugeMetricFamily(
        "mydb_backup_audit_run_timestamp_seconds",
        "End of the last audit by this host's clock, in seconds since the epoch.",
        value=at,
    )
    yield GaugeMetricFamily("mydb_backup_audit_duration_seconds", "Duration of the last audit.", value=duration)
    if clock_skew is not None:
        yield GaugeMetricFamily(
            "mydb_backup_audit_clock_skew_seconds",
            "This host's clock minus the database server's.",
            value=clock_skew,
        )
    about = "Always 1; the label is this program's version."
    yield _by_label("mydb_backup_audit_info", about, "version", {version: 1})


def _labels(finding: Finding) -> dict[str, str]:
    """What tells a container from all others."""
    c_id = finding.container.c_id
    return {"name": finding.container.name, "c_id": "" if c_id is None else str(c_id)}


def _family(metric: _Metric, labelled: Iterable[tuple[dict[str, str], Finding]]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(metric.name, metric.help)
    for labels, finding in labelled:
        value = metric.value(finding)
        if value is not None:
            if metric.labels:
                labels = labels | {label: text(finding) or "" for label, text in metric.labels.items()}
            family.samples.append(Sample(metric.name, labels, value))  # add_sample takes twice as long
    return family


def _legacy_families(audit: Audit) -> Iterator[GaugeMetricFamily]:
    """The original's four metrics; it knew containers by their names alone, so a name has one series."""
    critical = {"null": 0}
    last: dict[str, Run] = {}
    for finding in audit.findings:
        name, success = finding.container.name, finding.verdict.last_success
        if finding.verdict.severity == 2:
            critical[name] = 1
        if success and (name not in last or last[name].started < success.started):
            last[name] = success
    fine = {name: run for name, run in last.items() if not critical.get(name)}
    durations = {name: _duration(run) for name, run in fine.items()}
    starts = {name: _started(run) for name, run in fine.items()}
    failure = "1 for each container whose backup is in a critical state."
    yield _by_label("mydb_backup_report_date", "Time of this report.", "name", {"reportdate": audit.now.timestamp()})
    yield _by_label("mydb_backup_failure", failure, "name", critical)
    yield _by_label("mydb_backup_duration", "Duration of the last good backup in seconds.", "name", durations)
    yield _by_label("mydb_backup_start", "Start of the last good backup.", "name", starts)


def _by_label(name: str, documentation: str, label: str, values: Mapping[str, float | None]) -> GaugeMetricFamily:
    """A family with a series for each value of one label; None for no series."""
    family = GaugeMetricFamily(name, documentation, labels=[label])
    for text, value in values.items():
        if value is not None:
            family.add_metric([text], value)
    return family
