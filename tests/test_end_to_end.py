"""The whole way, with the real programs: audit, textfiles, node_exporter, Prometheus, Alertmanager.

Two sites, north and south, share a host and a folder of textfiles, and have the same containers.
First both are audited, then the audit of north fails. The rules are those of monitoring/ as they are.
"""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple

import pytest
import yaml

from tests.builders import TOP, Site, parse_samples
from tests.programs import ask, happens, require, scrape_textfiles, textfile_exporter, web_server

pytestmark = pytest.mark.slow

MONITORING = TOP / "monitoring"

Alert = tuple[str, ...]
"""What an alert is called, the site, the container and its status."""


def identity(alert: dict[str, Any]) -> Alert:
    return tuple(alert["labels"].get(name, "") for name in ("alertname", "site", "name", "status"))


# --- The sites ---------------------------------------------------------------------------------------------

STRANGE = 'sälés "prod" \\ {{ $value }}\n%d'
STATUSES = {STRANGE: "failed", "freezer": "missed"}
"""The containers that are critical, on both sites."""


def fill(site: Site) -> None:
    now, error = site.clock(), "Backup of S3\nError message: upload failed: - to s3://"
    for name, owner, contact, message, *ago in (
        ("orders", "ada", "ada@example.org", "", 4),
        (STRANGE, "ada", "ada@example.com", error, 28, 3),
        ("freezer", "genomics", "freezer@example.org", "", 76),
    ):
        c_id = site.container(name, owner=owner, contact=contact)
        for hours in ago:
            started = now - timedelta(hours=hours)
            site.run(c_id, started, started + timedelta(hours=0.5), message=message if hours == ago[-1] else "")


def audit(site: Site, name: str, status: int, **settings: Any) -> None:
    """Audit the site under a name; must end with this exit status."""
    site.config(site=name, prometheus_file=str(site.textfile.with_name(f"{name}.prom")), **settings)
    assert site.audit("-q").status == status


def expected(site: str) -> frozenset[Alert]:
    return frozenset(("MyDBBackupCritical", site, name, status) for name, status in STATUSES.items())


# --- The programs ------------------------------------------------------------------------------------------


class Mail(NamedTuple):
    """What Alertmanager sent to a receiver."""

    receiver: str
    status: str
    """`firing`, `resolved`, or both, of its alerts."""
    alerts: frozenset[Alert]


@contextmanager
def mailbox(received: list[Mail]) -> Iterator[str]:
    """A web server that keeps what Alertmanager sends; yields its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            alerts = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["alerts"]
            statuses = {alert["status"] for alert in alerts}
            received.append(Mail(self.path.strip("/"), "/".join(sorted(statuses)), frozenset(map(identity, alerts))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, args=(0.05,)).start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


def alertmanager_config(mailbox: str) -> Any:
    """alertmanager.example.yml, whose receivers all hand over to the mailbox, and soon."""
    config = yaml.safe_load((MONITORING / "alertmanager.example.yml").read_text("utf-8"))
    config["route"] |= {"group_wait": "1s", "group_interval": "1s"}
    for receiver in config["receivers"]:
        receiver.pop("email_configs", None)
        receiver["webhook_configs"] = [{"url": f"http://{mailbox}/{receiver['name']}"}]
    return config | {"templates": []}


def prometheus_config(exporter: str, alertmanager: str) -> Any:
    return {
        "global": {"scrape_interval": "2s", "scrape_timeout": "2s", "evaluation_interval": "1s"},
        "rule_files": [str(MONITORING / "alerts.yml")],
        "scrape_configs": [{"job_name": "node", "static_configs": [{"targets": [exporter]}]}],
        "alerting": {"alertmanagers": [{"static_configs": [{"targets": [alertmanager]}]}]},
    }


def server(program: Path, folder: Path, config: Any, storage: str, *options: str) -> AbstractContextManager[str]:
    """A server of Prometheus' with a configuration; yields its address."""
    path = folder / f"{program.name}.yml"
    path.write_text(json.dumps(config), "utf-8")  # JSON is YAML as well
    options = (f"--config.file={path}", f"{storage}={folder / program.name}", *options)
    return web_server(folder / f"{program.name}.log", "/-/ready", program, *options)


# --- The test ----------------------------------------------------------------------------------------------


def test_from_the_log_to_a_mail(sqlite_site: Site) -> None:
    prometheus, alertmanager = (require(name, name) for name in ("prometheus", "prometheus-alertmanager"))
    folder, textfiles = sqlite_site.folder, sqlite_site.textfile
    received: list[Mail] = []

    def mails(number: int) -> Counter[Mail]:
        """The mails since the last call: wait for so many, and whether there are more."""
        happens(lambda: len(received) >= number)
        time.sleep(1.5)
        found, received[:] = Counter(received), []
        return found

    def firing() -> dict[Alert, dict[str, str]]:
        """The alerts that Prometheus has found, with their texts."""
        alerts = ask(watcher, "/api/v1/alerts")["data"]["alerts"]
        return {identity(one): one["annotations"] for one in alerts if one["state"] == "firing"}

    fill(sqlite_site)
    for name in ("north", "south"):
        audit(sqlite_site, name, 2)
    samples = [parse_samples(file.read_text("utf-8")) for file in textfiles.parent.iterdir()]
    served = parse_samples(scrape_textfiles(textfiles.parent, folder / "exporter.log"))
    assert sum(map(len, samples)) == sum(metric.startswith("mydb_") for metric, _ in served), "no series is lost"
    with (
        mailbox(received) as box,
        textfile_exporter(textfiles.parent, folder / "exporter.log") as exporter,
        server(alertmanager, folder, alertmanager_config(box), "--storage.path", "--cluster.listen-address=") as teller,
        server(prometheus, folder, prometheus_config(exporter, teller), "--storage.tsdb.path") as watcher,
    ):
        north, south = expected("north"), expected("south")
        happens(lambda: firing().keys() == north | south)
        assert firing().keys() == north | south
        assert_texts(firing())
        # one mail an audit for the team, and one for the owner of both sites' freezer
        freezer = frozenset(one for one in north | south if "freezer" in one)
        told = [("backup-team", north), ("backup-team", south), ("genomics", freezer), ("owner", freezer)]
        assert mails(len(told)) == Counter(Mail(receiver, "firing", alerts) for receiver, alerts in told)

        audit(sqlite_site, "north", 3, database_url="sqlite:////nowhere/admin.db")
        failed = ("MyDBBackupAuditFailed", "north", "", "")
        happens(lambda: failed in firing())
        alone = Mail("backup-team", "firing", frozenset({failed}))
        assert mails(1) == Counter([alone]), "nobody hears that all is well"
        assert firing().keys() == north | south | {failed}
        alerts = ask(teller, "/api/v2/alerts")
        suppressed = {identity(one) for one in alerts if one["status"]["state"] == "suppressed"}
        assert suppressed == north, "the other site is told as ever"


def assert_texts(alerts: dict[Alert, dict[str, str]]) -> None:
    """The alerts say why and what is left, in whole sentences."""
    for texts in alerts.values():
        for text in texts.values():
            assert not re.search(r"<error|<no value>|\{\{|%!|NaN|  ", text.replace(STRANGE, "strange")), text
    said = {name: texts["description"] for (_, _, name, _), texts in alerts.items()}
    assert '"Error message: upload failed: - to s3://"' in said[STRANGE]
    assert re.search(r"Last good backup .* UTC \(1d 4h ", said[STRANGE])
