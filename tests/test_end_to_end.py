"""The whole way, with the real programs: audit, textfiles, node_exporter, Prometheus, Alertmanager.

Two sites, north and south, share a host and a folder of textfiles, and have the same containers in every status.
First both are audited, then the audit of north fails. The rules are those of monitoring/ as they are.
"""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple

import pytest
import yaml

from audit.policy import Status
from tests.builders import TOP, Site, parse_samples
from tests.programs import alertmanager_server, ask, prometheus_server, textfile_exporter

pytestmark = pytest.mark.slow

MONITORING = TOP / "monitoring"
SITES = ("north", "south")
PATIENCE = 30.0
"""Seconds in which anything that is to happen has happened."""
GROUP_WAIT = 2.0
"""Seconds in which Alertmanager collects what goes into one mail."""

Labels = frozenset[tuple[str, str]]


def labels_of(alert: dict[str, Any]) -> Labels:
    """The labels of an alert by which people find and route it."""
    return frozenset((name, value) for name, value in alert["labels"].items() if name != "state")


# --- The site ----------------------------------------------------------------------------------------------


class Case(NamedTuple):
    """A container (or the site-wide job `offsite`) with its past, its status, and the alert that is expected."""

    name: str
    status: Status
    runs: tuple[tuple[float, float | None, str], ...] = ()
    """Hours since each run started, how many it took (None if it never ended), and its message."""
    alert: str = ""
    policy: str = "Daily"
    owner: str | None = "ada"
    contact: str | None = "ada@example.org"
    created: float = 9000
    """Hours since its creation."""
    state: str = "running"


def good(*hours: float) -> tuple[tuple[float, float, str], ...]:
    """Good runs, which took half an hour."""
    return tuple((ago, 0.5, "") for ago in hours)


NIGHTS = tuple(range(200, 4, -24))
FAILED = "Executing Postgres backup to S3\nError message: upload failed: - to s3://"
STRANGE = 'sälés "prod" \\ {{ $value }}\n%d'
CASES = (
    Case("orders", Status.OK, good(*NIGHTS)),
    Case("cohort", Status.NEW, created=2),
    Case("sandbox", Status.EXEMPT, policy="Never"),
    Case("variants", Status.OK, (*good(*NIGHTS), (2, 0.001, "")), "SuspiciouslyShort"),
    Case(STRANGE, Status.FAILED, (*good(28), (3, 0.5, FAILED)), "Critical", contact="ada@example.com"),
    Case("survey", Status.UNSURE, ((3, 0.5, "Backup skipped"),), "Warning"),
    Case("proteins", Status.STALLED, (*good(52), (28, None, "")), "Critical"),
    Case("freezer", Status.MISSED, good(76), "Critical", owner="genomics", contact="freezer@example.org"),
    Case("sensors", Status.LATE, good(26), "Warning", owner="genomics", contact=None),
    Case("microscopy", Status.RUNNING, (*good(30), (4, None, "")), "Warning"),
    Case("plasmids", Status.NO_POLICY, (), "Critical", policy="Dialy", owner="bo", contact=None),
    Case("bookings", Status.PAUSED, good(100), "Warning", state="maintenance"),
    Case("frozen", Status.MISSED, good(120)),
    Case("offsite", Status.MISSED, good(76), "Critical", owner=None, contact=None),
)
SETTINGS = {"extra_jobs": {"offsite": "Daily"}, "exceptions": {"frozen": ("2999-12-31", "frozen for a paper")}}
SEVERITY = {"Critical": "critical", "Warning": "warning", "SuspiciouslyShort": "info"}


def fill(site: Site) -> None:
    now = site.clock()
    for case in CASES:
        c_id = 0
        if case.name != "offsite":
            created = now - timedelta(hours=case.created)
            more = {"owner": case.owner, "contact": case.contact, "state": case.state}
            c_id = site.container(case.name, case.policy, created=created, **more)  # type: ignore[arg-type]
        for ago, hours, message in case.runs:
            started = now - timedelta(hours=ago)
            ended = None if hours is None else started + timedelta(hours=hours)
            site.run(c_id, started, ended, name=case.name, message=message)


def expected(site: str, host: dict[str, str]) -> set[Labels]:
    """The labels of all alerts about the containers of a site."""
    found = set()
    for c_id, case in enumerate(CASES, 1):
        if case.alert:
            labels = {"alertname": f"MyDBBackup{case.alert}", "severity": SEVERITY[case.alert], "scope": "container"}
            labels |= {"name": case.name, "c_id": str(c_id), "policy": case.policy, "engine": "Postgres"}
            labels |= {"owner": case.owner or "", "contact": case.contact or "", "site": site, **host}
            labels["status"] = "short" if case.alert == "SuspiciouslyShort" else case.status.value
            if case.name == "offsite":
                labels |= {"c_id": "0", "engine": ""}
            found.add(frozenset((name, value) for name, value in labels.items() if value))
    return found


# --- The programs ------------------------------------------------------------------------------------------


class Mail(NamedTuple):
    """What Alertmanager sent to a receiver."""

    receiver: str
    status: str
    """`firing`, `resolved`, or both, of its alerts."""
    alerts: frozenset[Labels]


@contextmanager
def mailbox(received: list[Mail]) -> Iterator[str]:
    """A web server that keeps what Alertmanager sends; yields its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            alerts = frozenset(map(labels_of, sent["alerts"]))
            statuses = {alert["status"] for alert in sent["alerts"]}
            received.append(Mail(self.path.strip("/"), "/".join(sorted(statuses)), alerts))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def alertmanager_config(mailbox: str) -> dict[str, Any]:
    """alertmanager.example.yml, whose receivers all hand over to the mailbox, and soon."""
    config: dict[str, Any] = yaml.safe_load((MONITORING / "alertmanager.example.yml").read_text("utf-8"))
    config["route"] |= {"group_wait": f"{GROUP_WAIT:.0f}s", "group_interval": "1s"}
    config["receivers"] = [
        {"name": receiver["name"], "webhook_configs": [{"url": f"http://{mailbox}/{receiver['name']}"}]}
        for receiver in config["receivers"]
    ]
    return config | {"templates": [str(MONITORING / name) for name in config["templates"]]}


def prometheus_config(exporter: str, alertmanager: str) -> dict[str, Any]:
    return {
        "global": {"scrape_interval": "2s", "scrape_timeout": "2s", "evaluation_interval": "1s"},
        "rule_files": [str(MONITORING / "alerts.yml")],
        "scrape_configs": [{"job_name": "node", "static_configs": [{"targets": [exporter]}]}],
        "alerting": {"alertmanagers": [{"static_configs": [{"targets": [alertmanager]}]}]},
    }


@dataclass
class Chain:
    """All programs, and the sites that they watch."""

    site: Site
    exporter: str
    prometheus: str
    alertmanager: str
    received: list[Mail]

    @property
    def host(self) -> dict[str, str]:
        """The labels that Prometheus gives to all that it scrapes."""
        return {"job": "node", "instance": self.exporter}

    def audited(self, name: str, status: int, **settings: Any) -> None:
        """Audit the site under a name; must end with this exit status."""
        textfile = self.site.textfile.with_name(f"{name}.prom")
        self.site.config(site=name, prometheus_file=str(textfile), **SETTINGS, **settings)
        answer = self.site.audit("-q")
        assert answer.status == status, answer.err

    def scraped(self) -> dict[Labels, float]:
        """What Prometheus has of the textfiles."""
        answer = ask(self.prometheus, "/api/v1/query", ("query", '{__name__=~"mydb_backup_[^:]+"}'))
        return {frozenset(one["metric"].items()): float(one["value"][1]) for one in answer["data"]["result"]}

    def published(self) -> dict[Labels, float]:
        """What Prometheus is to have of them."""
        samples = (parse_samples(file.read_text("utf-8")) for file in self.site.textfile.parent.iterdir())
        return {
            frozenset({**self.host, "__name__": metric, **{key: text for key, text in labels if text}}.items()): value
            for each in samples
            for (metric, labels), value in each.items()
        }

    def firing(self) -> dict[Labels, dict[str, str]]:
        """The alerts that Prometheus has found, with their texts."""
        alerts = ask(self.prometheus, "/api/v1/alerts")["data"]["alerts"]
        return {labels_of(one): one["annotations"] for one in alerts if one["state"] == "firing"}

    def suppressed(self) -> set[Labels]:
        """The alerts of which Alertmanager tells nobody."""
        alerts = ask(self.alertmanager, "/api/v2/alerts")
        return {labels_of(one) for one in alerts if one["status"]["state"] == "suppressed"}

    def mails(self, number: int) -> list[Mail]:
        """The mails since the last call: wait for so many, and whether there are more."""
        wait_for(lambda: len(self.received) >= number)
        time.sleep(GROUP_WAIT + 1)
        found, self.received[:] = list(self.received), []
        return found


def wait_for(ready: Callable[[], bool]) -> None:
    """Look again and again. If it takes too long, what is asserted afterwards tells what is missing."""
    deadline = time.monotonic() + PATIENCE
    while not ready() and time.monotonic() < deadline:
        time.sleep(0.1)


@pytest.fixture
def chain(sqlite_site: Site, require_program: Callable[[str], Path]) -> Iterator[Chain]:
    """Everything running, after the audits of both sites."""
    names = ("prometheus-node-exporter", "prometheus", "prometheus-alertmanager")
    exporter, prometheus, alertmanager = map(require_program, names)
    chain, folder = Chain(sqlite_site, "", "", "", []), sqlite_site.folder
    fill(sqlite_site)
    for name in SITES:
        chain.audited(name, 2)
    with ExitStack() as running:
        start = running.enter_context
        received = start(mailbox(chain.received))
        chain.exporter = start(textfile_exporter(exporter, sqlite_site.textfile.parent, folder / "exporter.log"))
        config, data, log = (folder / f"alertmanager.{kind}" for kind in ("yml", "data", "log"))
        config.write_text(yaml.safe_dump(alertmanager_config(received)), "utf-8")
        chain.alertmanager = start(alertmanager_server(alertmanager, config, data, log))
        config, data, log = (folder / f"prometheus.{kind}" for kind in ("yml", "data", "log"))
        config.write_text(yaml.safe_dump(prometheus_config(chain.exporter, chain.alertmanager)), "utf-8")
        chain.prometheus = start(prometheus_server(prometheus, config, data, log))
        yield chain


# --- The test ----------------------------------------------------------------------------------------------


def test_from_the_log_to_a_mail(chain: Chain) -> None:
    assert {case.status for case in CASES} == set(Status)
    north, south = (expected(name, chain.host) for name in SITES)
    wait_for(lambda: chain.firing().keys() == north | south)
    wait_for(lambda: chain.scraped() == chain.published())  # on a busy machine a scrape may time out
    assert chain.scraped() == chain.published(), "both have the same containers, and no series is lost"
    alerts = chain.firing()
    assert alerts.keys() == north | south
    assert_texts(alerts)
    # one mail an audit for the team; owners hear what is critical about their own containers, of both sites at once
    freezer, proteins = (frozenset(one for one in alerts if ("name", name) in one) for name in ("freezer", "proteins"))
    mails = [("backup-team", frozenset(north)), ("backup-team", frozenset(south)), ("genomics", freezer)]
    mails += [("owner", freezer), ("owner", proteins)]
    assert Counter(chain.mails(len(mails))) == Counter(Mail(receiver, "firing", of) for receiver, of in mails)

    chain.audited("north", 3, database_url="sqlite:////nowhere/admin.db")
    labels = {"alertname": "MyDBBackupAuditFailed", "severity": "critical", "scope": "audit", "site": "north"}
    failed = frozenset((labels | chain.host).items())
    wait_for(lambda: failed in chain.firing())
    assert chain.mails(1) == [Mail("backup-team", "firing", frozenset({failed}))], "nobody hears that all is well"
    assert chain.firing().keys() == north | south | {failed}
    assert chain.suppressed() == north, "the other site is told as ever"


def assert_texts(alerts: dict[Labels, dict[str, str]]) -> None:
    """The alerts say why and what is left, in whole sentences."""
    for texts in alerts.values():
        for text in texts.values():
            assert not re.search(r"<error|<no value>|\{\{|%!|NaN|  ", text.replace(STRANGE, "strange")), text
    said = {dict(labels)["name"]: texts["description"] for labels, texts in alerts.items()}
    assert '"Error message: upload failed: - to s3://"' in said[STRANGE]
    assert re.search(r"Last good backup .* UTC \(1d 4h ", said[STRANGE])
    assert '"Backup skipped"' in said["survey"]
    assert "No good backup in the log." in said["plasmids"]
