"""From verdicts to metric families, and from those to the two textfiles (SPEC sections 5 and 6).

A textfile is replaced in one step: whoever reads it sees the old one or the new one, whole. This module
judges nothing and reads no clock but the run's own.
"""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Sample
from prometheus_client.registry import Collector

from policy import Audit, Container, Rules, Run, Verdict, policy_name

_STALE_TEMPORARY = 3600
"""Seconds after which a temporary file that a killed audit left behind is removed."""


@dataclass(frozen=True)
class _Metric:
    """A family with at most one series a container, labelled with its name and c_id."""

    name: str
    help: str
    value: Callable[[Verdict], float | None]
    """The sample's value; None for no series."""
    labels: Mapping[str, Callable[[Verdict], str]] = field(default_factory=dict)
    """Labels beside name and c_id."""


def _seconds(moment: datetime | None) -> float | None:
    return None if moment is None else moment.timestamp()


def _started(run: Run | None) -> float | None:
    return None if run is None else run.started.timestamp()


def _duration(run: Run | None) -> float | None:
    return None if run is None or run.duration is None else run.duration.total_seconds()


PER_CONTAINER = (
    _Metric(
        "mydb_backup_status",
        "1 for the present status of the container's backups.",
        lambda verdict: 1,
        {"status": lambda verdict: verdict.status.value},
    ),
    _Metric(
        "mydb_backup_severity",
        "How bad the status is: 0 OK, 1 warning, 2 critical.",
        lambda verdict: verdict.severity,
    ),
    _Metric(
        "mydb_backup_last_success_timestamp_seconds",
        "Start of the last succeeded backup run, in seconds since the epoch.",
        lambda verdict: _started(verdict.last_success),
    ),
    _Metric(
        "mydb_backup_last_run_timestamp_seconds",
        "Start of the newest backup run, whatever became of it, in seconds since the epoch.",
        lambda verdict: _started(verdict.last_run),
    ),
    _Metric(
        "mydb_backup_last_duration_seconds",
        "Duration of the last succeeded backup run.",
        lambda verdict: _duration(verdict.last_success),
    ),
    _Metric(
        "mydb_backup_due_timestamp_seconds",
        "When a newer successful run must have started, in seconds since the epoch.",
        lambda verdict: _seconds(verdict.due),
    ),
)

FROM_PAST = (
    _Metric(
        "mydb_backup_covered_ratio",
        "Share of the scheduled backups of the last history_days that exist, from 0 to 1.",
        lambda verdict: verdict.covered_ratio,
    ),
    _Metric(
        "mydb_backup_typical_duration_seconds",
        "Median duration of the succeeded runs before the last one, over the last history_days.",
        lambda verdict: verdict.typical_duration.total_seconds() if verdict.typical_duration is not None else None,
    ),
)


class _Families(Collector):
    """A collector of families that are made one at a time, while the exposition is written."""

    def __init__(self, families: Iterable[GaugeMetricFamily]) -> None:
        self._families = families

    def collect(self) -> Iterable[GaugeMetricFamily]:
        return self._families


def exposition(families: Iterable[GaugeMetricFamily]) -> bytes:
    """The families in the text format, from a registry of their own."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Families(families))
    return generate_latest(registry)


def container_families(containers: Iterable[Container], rules: Rules) -> Iterator[GaugeMetricFamily]:
    """What is known of the containers before their runs are."""
    about = "Always 1; the labels describe the container."
    info = GaugeMetricFamily("mydb_backup_container_info", about)
    for (name, c_id), container in {_series(container): container for container in containers}.items():
        labels = {
            "name": name,
            "c_id": c_id,
            "policy": _label_value(policy_name(container, rules)),
            "engine": _label_value(container.engine),
            "state": _label_value(container.state),
            "owner": _label_value(container.owner),
            "contact": _label_value(container.contact),
        }
        info.add_sample(info.name, labels, 1)
    yield info


def audit_families(audit: Audit, legacy: bool = False) -> Iterator[GaugeMetricFamily]:
    """What an audit found, as gauges; with `legacy` also under the original Backup Audit's names."""
    labelled = _label(audit.verdicts)
    yield from (_family(metric, labelled) for metric in PER_CONTAINER)
    by_status = GaugeMetricFamily("mydb_backup_containers", "Containers by status.", labels=["status"])
    for status, count in audit.counts().items():
        by_status.add_metric([status.value], count)
    yield by_status
    ignored = GaugeMetricFamily(
        "mydb_backup_log_rows_ignored",
        "Rows in the recent part of the backup log that no verdict could use.",
        labels=["reason"],
    )
    ignored.add_metric(["future"], audit.future)
    ignored.add_metric(["malformed"], audit.malformed)
    yield ignored
    if audit.newest_row is not None:
        yield GaugeMetricFamily(
            "mydb_backup_log_newest_timestamp_seconds",
            "Newest row of the backup log, of any container, in seconds since the epoch.",
            value=audit.newest_row.timestamp(),
        )
    yield GaugeMetricFamily(
        "mydb_backup_audit_timestamp_seconds",
        "The moment that this audit is about, in seconds since the epoch.",
        value=audit.now.timestamp(),
    )
    if legacy:
        yield from _legacy_families(audit)


def past_families(audit: Audit) -> Iterator[GaugeMetricFamily]:
    """What the past adds, for the containers of which it is known."""
    labelled = _label(audit.verdicts)
    for metric in FROM_PAST:
        family = _family(metric, labelled)
        if family.samples:
            yield family


def run_families(
    success: bool, at: float, duration: float, clock_skew: float | None, version: str
) -> Iterator[GaugeMetricFamily]:
    """How a run of the audit itself went; `at` is this host's clock in seconds since the epoch."""
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
    info = GaugeMetricFamily("mydb_backup_audit_info", about, labels=["version"])
    info.add_metric([version], 1)
    yield info


def _series(container: Container) -> tuple[str, str]:
    """The labels name and c_id."""
    return _label_value(container.name), "" if container.c_id is None else str(container.c_id)


def _label(verdicts: Iterable[Verdict]) -> list[tuple[dict[str, str], Verdict]]:
    """Each verdict with its labels name and c_id. No two pairs are equal, the worst verdict wins:
    node_exporter would keep the first of two equal series and lose the other without a word.
    """
    labelled: dict[tuple[str, str], Verdict] = {}
    for verdict in verdicts:
        key = _series(verdict.container)
        if key not in labelled or labelled[key].severity < verdict.severity:
            labelled[key] = verdict
    return [({"name": name, "c_id": c_id}, verdict) for (name, c_id), verdict in labelled.items()]


def _label_value(text: str | None) -> str:
    """Text as a label value: anything but half of a surrogate pair, which UTF-8 cannot hold."""
    if not text or text.isascii():
        return text or ""
    return text.encode("utf-8", "replace").decode("utf-8")


def _family(metric: _Metric, labelled: Iterable[tuple[dict[str, str], Verdict]]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(metric.name, metric.help)
    for labels, verdict in labelled:
        value = metric.value(verdict)
        if value is not None:
            if metric.labels:
                labels = labels | {label: text(verdict) for label, text in metric.labels.items()}
            family.samples.append(Sample(metric.name, labels, value))  # add_sample takes twice as long
    return family


def _legacy_families(audit: Audit) -> Iterator[GaugeMetricFamily]:
    """The original's four metrics; it knew containers by their names alone, so a name has one series."""
    critical = {"null": 0}
    last: dict[str, Run] = {}
    for verdict in audit.verdicts:
        name = _label_value(verdict.container.name)
        if verdict.severity == 2:
            critical[name] = 1
        success = verdict.last_success
        if success and (name not in last or last[name].started < success.started):
            last[name] = success
    fine = {name: run for name, run in last.items() if not critical.get(name)}
    yield _by_name("mydb_backup_report_date", "Time of this report.", {"reportdate": audit.now.timestamp()})
    yield _by_name("mydb_backup_failure", "1 for each container whose backup is in a critical state.", critical)
    durations = {name: _duration(run) for name, run in fine.items()}
    yield _by_name("mydb_backup_duration", "Duration of the last good backup in seconds.", durations)
    yield _by_name("mydb_backup_start", "Start of the last good backup.", {n: _started(run) for n, run in fine.items()})


def _by_name(name: str, documentation: str, values: Mapping[str, float | None]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, documentation, labels=["name"])
    for label, value in values.items():
        if value is not None:
            family.add_metric([label], value)
    return family


# --- The files -----------------------------------------------------------------------------------------


def run_file(prometheus_file: Path) -> Path:
    """The sibling that tells of the run itself: `backup_audit_run.prom` for `backup_audit.prom`."""
    return prometheus_file.with_name(f"{prometheus_file.stem}_run.prom")


def write_textfile(path: Path, content: bytes, mode: int) -> None:
    """Replace a textfile in one step. Raises `OSError`; the old file then stays as it was.

    prometheus-client's own `write_to_textfile` would leave the permissions to cron's umask.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if path.exists() and not path.is_file():  # a rename would replace even a device
        raise OSError(errno.EINVAL, "it is not a regular file")
    _remove_stale_temporaries(path)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def _remove_stale_temporaries(path: Path) -> None:
    for leftover in path.parent.iterdir():
        if leftover.name.startswith(f".{path.name}.") and leftover.suffix == ".tmp":
            with contextlib.suppress(OSError):
                if time.time() - leftover.stat().st_mtime > _STALE_TEMPORARY:
                    leftover.unlink()
