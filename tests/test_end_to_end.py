"""The whole way, with the real programs: database, audit, node_exporter, Prometheus, Alertmanager, dashboard.

It is a play in four scenes on one stage, in this order: a site with containers in every status; an audit that
fails; a site that fell silent, beside a textfile that nobody can read; and no textfiles at all. Each scene is
a fixture that notes what was to be seen, so the tests may run in any order. A second, shorter play has two sites
that share a host.
"""

from __future__ import annotations

import json
import re
import shlex
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import yaml

from audit.policy import Status
from tests.builders import TOP, Sample, Site, parse_samples, series
from tests.conftest import CI
from tests.postgres import Server
from tests.programs import alertmanager_server, ask, find_program, prometheus_server, textfile_exporter

pytestmark = pytest.mark.slow

MONITORING = TOP / "monitoring"
JOB = "node"
FASTER = {"5m": "1s", "10m": "1s", "15m": "2s"}
"""What the times that the rules wait or look back become here; the longest stays the longest."""
ROUNDS = 5
"""Evaluations, one a second, after which no waiting time of the rules can be left."""
LONGEST = 20.0
"""Seconds in which anything that is to happen has happened."""
GROUP_INTERVAL = 1.0
MONTH = 30 * 86400

Alert = dict[str, Any]
Labels = dict[str, str]
Labelled = frozenset[tuple[str, str]]
"""The labels of an alert, as part of a set."""
Mail = tuple[str, str, Labelled]
"""The receiver of an alert, `firing` or `resolved`, and the alert's labels."""
Answer = list[dict[str, Any]]


# --- The site ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Past:
    """One run, in hours before the audit."""

    started: float
    hours: float | None = 0.25
    """Its duration; None if it never ended."""
    error: str = ""
    error_at_start: bool = False


FAILED = Past(3, error="MariaDB Backup error.  Container: survey\nError message: upload failed: - to s3://")


def nightly(*nights: int, hours: float = 0.5) -> tuple[Past, ...]:
    """Good runs, one a night; the nights are counted from the last one, which is 0."""
    return tuple(Past(4 + 24 * night, hours) for night in sorted(nights, reverse=True))


@dataclass(frozen=True)
class Case:
    """A container (or a site-wide job) with its past, its status, and the alerts that are expected of it."""

    name: str
    status: Status
    runs: tuple[Past, ...] = ()
    alert: str = ""
    """The alert, without its prefix, in the first scene; empty for none."""
    silent_alert: str = ""
    """The alert after the whole log has become two days older."""
    accepted: bool = False
    """Whether an exception is in force."""
    engine: str = "Postgres"
    policy: str | None = "Daily"
    owner: str | None = "ada"
    contact: str | None = "ada@example.org"
    version: int = 2
    created: float = 9000
    """Hours since its creation."""
    state: str = "running"
    job: bool = False
    metadata: bool = True

    @property
    def described(self) -> Labels:
        """The labels of an alert that are to tell people whose container it is."""
        words = {"engine": self.engine, "policy": self.policy, "owner": self.owner, "contact": self.contact}
        return {name: word for name, word in words.items() if word}


STRANGE = 'sälés "prod" \\ {{ $value }}\n%d'

CASES = (
    Case("orders", Status.OK, nightly(*range(9))),
    Case("library", Status.OK, nightly(0), policy="Weekly", engine="MongoDB", owner="bo", contact="bo@example.org"),
    Case("cohort", Status.NEW, created=2),
    Case("sandbox", Status.EXEMPT, policy="Never", engine="Neo4j"),
    Case(
        "variants",
        Status.OK,
        (*nightly(*range(1, 9)), Past(2, hours=0.001)),
        "SuspiciouslyShort",
        "SuspiciouslyShort",
        owner="genomics",
        contact="genomics@example.org",
    ),
    # two containers of one name
    Case("wiki", Status.OK, nightly(0, 1), engine="MariaDB", version=1),
    Case(
        "wiki", Status.FAILED, (*nightly(1, 2), FAILED), "Failed", "Failed", engine="MariaDB", contact="ada@example.com"
    ),
    Case(STRANGE, Status.FAILED, (*nightly(1), FAILED), "Failed", "Failed", owner="bo", contact="bo@example.org"),
    Case(
        "survey",
        Status.FAILED,
        (Past(3, error=FAILED.error, error_at_start=True),),
        "Failed",
        "Failed",
        engine="MariaDB",
        owner=None,
        contact=None,
        version=1,
    ),
    Case("proteins", Status.STALLED, (*nightly(2), Past(28, None)), "Stalled", "Stalled", engine="Neo4j"),
    Case("freezer", Status.MISSED, nightly(3), "Missed", owner="genomics", contact="freezer@example.com"),
    Case("unborn", Status.MISSED, (), "Missed", policy="Weekly", engine="MongoDB"),
    Case("archive", Status.MISSED, nightly(40), "Missed", policy="Monthly"),
    Case("sensors", Status.LATE, (Past(26),), "Late", engine="MongoDB", owner="genomics", contact=None),
    Case("microscopy", Status.RUNNING, (Past(30), Past(4, None)), "StillRunning", "Stalled", engine="MongoDB"),
    Case("plasmids", Status.NO_POLICY, (), "NoPolicy", "NoPolicy", policy="Dialy", owner="bo", contact=None),
    Case(
        "orphan",
        Status.NO_POLICY,
        (),
        "NoPolicy",
        "NoPolicy",
        engine="",
        policy=None,
        owner=None,
        contact=None,
        metadata=False,
    ),
    Case("bookings", Status.PAUSED, nightly(4), "Paused", "Paused", engine="MariaDB", state="maintenance"),
    Case("recess", Status.PAUSED, (Past(30),), "", "Paused", state="maintenance"),
    Case("frozen", Status.MISSED, nightly(5), owner="genomics", contact=None, accepted=True),
    # two jobs, which share c_id 0
    Case("offsite", Status.MISSED, nightly(3), "Missed", engine="", owner=None, contact=None, job=True),
    Case("tapes", Status.OK, nightly(0), policy="Weekly", engine="", owner=None, contact=None, job=True),
)
SETTINGS = {
    "policies": {"Monthly": 744},
    "extra_jobs": {case.name: case.policy for case in CASES if case.job},
    "exceptions": {case.name: ("2999-12-31", "frozen for a paper") for case in CASES if case.accepted},
}
SEVERITY = {
    "AuditFailed": "critical",
    "AuditAbsent": "critical",
    "TextfileError": "warning",
    "SiteSilent": "critical",
    "LogRowsFromFuture": "warning",
    "LogRowsIgnored": "info",
    "Failed": "critical",
    "Stalled": "critical",
    "Missed": "critical",
    "Late": "warning",
    "StillRunning": "warning",
    "NoPolicy": "critical",
    "Paused": "warning",
    "SuspiciouslyShort": "info",
    "CoverageLow": "info",
}
MORE_LABELS = {"LogRowsFromFuture": {"reason": "future"}, "LogRowsIgnored": {"reason": "malformed"}}
FOUND = ("LogRowsFromFuture", "LogRowsIgnored")
"""The alerts about the log in the first scene."""


def fill(site: Site) -> list[int]:
    """Write all cases into the database, relative to its clock; returns the `c_id` of each."""
    now = site.clock()

    def ago(hours: float) -> datetime:
        return now - timedelta(hours=hours)

    ids = [0 if case.job else add(site, case, ago(case.created)) for case in CASES]
    runs = [(run, case, c_id) for case, c_id in zip(CASES, ids, strict=True) for run in case.runs]
    for run, case, c_id in sorted(runs, key=lambda item: -item[0].started):
        ended = None if run.hours is None else ago(run.started - run.hours)
        site.run(c_id, ago(run.started), ended, name=case.name, error=run.error, error_at_start=run.error_at_start)
    site.row(c_id=ids[0], name="orders", state="start", ts=ago(1).replace(tzinfo=None))  # malformed: no backup_id
    site.run(ids[0], ago(-5), ago(-5.5))  # from the future
    return ids


def add(site: Site, case: Case, created: datetime) -> int:
    """Make the container of a case."""
    return site.container(
        case.name,
        case.policy,
        created=created,
        state=case.state,
        engine=case.engine,
        owner=case.owner,
        contact=case.contact,
        version=case.version,
        metadata=case.metadata,
        c_id=None if case.metadata else 9999,
    )


# --- The stage ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scene:
    """What was to be seen when everything had settled."""

    alerts: list[Alert]
    """Those that are firing, as Prometheus tells them."""
    shown: dict[tuple[str, str], Answer]
    """What the dashboard shows: the answers to its queries, by panel and refId."""
    mails: list[tuple[str, Alert]]
    """All that Alertmanager has sent since the last scene, with the receiver."""
    low: list[int] = field(default_factory=list)
    """The cases whose coverage was low."""


@dataclass
class Mailbox:
    """A web server that keeps what Alertmanager sends to its receivers."""

    address: str = ""
    received: list[tuple[str, Alert]] = field(default_factory=list)

    @contextmanager
    def open(self) -> Iterator[Mailbox]:
        received = self.received

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                payload = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                group = payload["groupLabels"]
                received.extend((self.path.strip("/"), {**alert, "group": group}) for alert in payload["alerts"])
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                """Say nothing."""

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
            thread.start()
            self.address = f"127.0.0.1:{server.server_port}"
            try:
                yield self
            finally:
                server.shutdown()
                thread.join()


@dataclass
class Monitor:
    """An audit host, its Prometheus and its Alertmanager."""

    textfiles: Path
    exporter: str
    prometheus: str
    mailbox: Mailbox
    noted: int = field(default=0, init=False)
    """How many mails belong to scenes that are over."""

    @property
    def host(self) -> Labels:
        """The labels that Prometheus gives to all that it scrapes from the audit host."""
        return {"job": JOB, "instance": self.exporter}

    def ask(self, path: str, *parameters: tuple[str, str]) -> Any:
        answer = ask(self.prometheus, f"/api/v1/{path}", *parameters)
        assert answer["status"] == "success", answer
        assert not answer.get("warnings"), answer
        return answer["data"]

    def query(self, expr: str) -> Answer:
        found: Answer = self.ask("query", ("query", expr))["result"]
        return found

    def firing(self) -> list[Alert]:
        return [alert for alert in self.ask("alerts")["alerts"] if alert["state"] == "firing"]

    def run_stamps(self) -> list[float]:
        """When each audit last ran, by the textfiles; of equal series node_exporter keeps that of the first file."""
        found: dict[Sample, float] = {}
        for file in sorted(self.textfiles.glob("*_run.prom"), reverse=True):
            found |= parse_samples(file.read_text("utf-8"))
        name = "mydb_backup_audit_run_timestamp_seconds"
        return sorted(value for key, value in found.items() if key[0] == name)

    def watch(self, awaited: set[Mail]) -> Scene:
        """Wait until Prometheus knows the present textfiles and has drawn all conclusions, and look around.

        Waits for the `awaited` mails too; whatever else Alertmanager sends is noted all the same.
        """
        known = self.run_stamps()

        def scraped() -> bool:
            found = self.query("mydb_backup_audit_run_timestamp_seconds")
            return sorted(float(sample["value"][1]) for sample in found) == known

        wait_for("a scrape", scraped)
        since, evaluations = time.time(), set()

        def concluded() -> bool:
            for group in self.ask("rules")["groups"]:
                moment = re.sub(r"\.\d+", "", group["lastEvaluation"].replace("Z", "+00:00"))
                if datetime.fromisoformat(moment).timestamp() > since:
                    evaluations.add(group["lastEvaluation"])
            return len(evaluations) >= ROUNDS

        wait_for("the rules", concluded)
        alerts = self.firing()
        shown = {(title, ref): self.result(target) for title, ref, target in targets()}
        quiet = time.monotonic() + 2 * GROUP_INTERVAL  # that nothing else is sent, only time can tell

        def delivered() -> bool:
            return awaited <= news(self.mailbox.received[self.noted :]) and time.monotonic() > quiet

        wait_for("the mails", delivered)
        new = self.mailbox.received[self.noted :]
        self.noted += len(new)
        return Scene(alerts, shown, new)

    def result(self, target: dict[str, Any], **chosen: str) -> Answer:
        """What Grafana gets for a query of the dashboard, with `chosen` values in the filters, else all."""
        expr = interpolate(target["expr"], target["step"], chosen)
        assert target["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        if target["instant"]:
            return self.query(expr)
        assert target["range"]
        now = int(time.time())
        times = (("start", str(now - MONTH)), ("end", str(now)), ("step", str(target["step"])))
        found: Answer = self.ask("query_range", ("query", expr), *times)["result"]
        return found


@dataclass
class Stage(Monitor):
    """The same with the site that it watches."""

    site: Site
    ids: list[int]

    def expected(
        self, *names: str, cases: Callable[[Case], str] = lambda case: "", low: Iterable[int] = ()
    ) -> set[Labelled]:
        """The labels of these alerts about the audit or the site, and of those that containers raise.

        `low` are the positions of the cases whose coverage is low.
        """
        about: list[tuple[Labels, str]] = [(MORE_LABELS.get(name, {}), name) for name in names]
        for position, (case, c_id) in enumerate(zip(CASES, self.ids, strict=True)):
            labels = {"name": case.name, "c_id": str(c_id), **case.described}
            about += [(labels, alert) for alert in (cases(case), "CoverageLow" if position in low else "") if alert]
        return {
            frozenset({**self.host, **labels, "alertname": f"MyDBBackup{name}", "severity": SEVERITY[name]}.items())
            for labels, name in about
        }

    def low_coverage(self) -> list[int]:
        """The positions of the cases that the last audit found covered less than 95 % of the time."""
        ratios = self.site.samples()
        keys = ({"name": case.name, "c_id": str(c_id)} for case, c_id in zip(CASES, self.ids, strict=True))
        covered = [ratios.get(series("mydb_backup_covered_ratio", **key), 1) for key in keys]
        return [position for position, ratio in enumerate(covered) if ratio < 0.95 and not CASES[position].accepted]


def news(received: list[tuple[str, Alert]]) -> set[Mail]:
    return {(receiver, alert["status"], frozenset(alert["labels"].items())) for receiver, alert in received}


def wait_for(what: str, ready: Callable[[], bool]) -> None:
    """Look again and again; fails if it takes too long."""
    deadline = time.monotonic() + LONGEST
    while not ready():
        if time.monotonic() > deadline:
            pytest.fail(f"waited {LONGEST:.0f} seconds for {what}")
        time.sleep(0.05)


def faster_rules() -> str:
    """alerts.yml with short waiting times."""
    return re.sub(
        r"(\n +(?:for|keep_firing_for): |last_over_time\(\S+\[)(\w+)(?=\n|\])",
        lambda found: found[1] + FASTER[found[2]],
        (MONITORING / "alerts.yml").read_text("utf-8"),
    )


def alertmanager_config(mailbox: str) -> dict[str, Any]:
    """alertmanager.example.yml, whose receivers all hand over to the mailbox, and at once."""
    config: dict[str, Any] = yaml.safe_load((MONITORING / "alertmanager.example.yml").read_text("utf-8"))
    config["route"] |= {"group_wait": "0s", "group_interval": f"{GROUP_INTERVAL:.0f}s"}
    config["receivers"] = [
        {"name": receiver["name"], "webhook_configs": [{"url": f"http://{mailbox}/{receiver['name']}"}]}
        for receiver in config["receivers"]
    ]
    return config


def prometheus_config(rules: Path, exporter: str, alertmanager: str) -> dict[str, Any]:
    return {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(rules)],
        "scrape_configs": [{"job_name": JOB, "static_configs": [{"targets": [exporter]}]}],
        "alerting": {"alertmanagers": [{"static_configs": [{"targets": [alertmanager]}]}]},
    }


def program(name: str) -> Path:
    """Like the fixture `require_program`, for a whole module."""
    found = find_program(name)
    if found is None:
        message = f"{name} is not installed (Debian: prometheus, prometheus-node-exporter, prometheus-alertmanager)"
        if CI:
            pytest.fail(message)
        pytest.skip(message)
    return found


# --- The dashboard -----------------------------------------------------------------------------------------


def dashboard() -> dict[str, Any]:
    board: dict[str, Any] = json.loads((MONITORING / "dashboard.json").read_text("utf-8"))
    return board


def targets() -> list[tuple[str, str, dict[str, Any]]]:
    """Every query of every panel: the panel's title, its refId, and the query with its `step` in seconds."""
    found = []
    for panel in (panel for panel in dashboard()["panels"] if panel["type"] != "row"):
        number, unit = re.fullmatch(r"(\d+)([smh])", panel.get("interval", "1h")).groups()  # type: ignore[union-attr]
        step = int(number) * {"s": 1, "m": 60, "h": 3600}[unit]
        found += [(panel["title"], target["refId"], {**target, "step": step}) for target in panel["targets"]]
    return found


def interpolate(expr: str, step: int, chosen: dict[str, str]) -> str:
    """A query as Grafana sends it: without a choice, a filter stands for its allValue."""
    filters = [variable for variable in dashboard()["templating"]["list"] if variable["type"] == "query"]
    values = {variable["name"]: variable["allValue"] for variable in filters}
    values |= {"__interval": f"{step}s", "__rate_interval": f"{max(4, step)}s", "__range": f"{MONTH}s"}
    # in a regular expression, which stands in a string
    values |= {name: re.sub(r"[\\^$*+?.()|{}\[\]]", r"\\\\\g<0>", value) for name, value in chosen.items()}
    return re.sub(r"\$(?:\{(\w+)\}|([a-z_]\w*))", lambda found: values[found[1] or found[2]], expr)


# --- The scenes --------------------------------------------------------------------------------------------


@contextmanager
def monitored(textfiles: Path, folder: Path) -> Iterator[Monitor]:
    """All programs running, and watching the textfiles; their own files are in `folder`."""
    names = ("prometheus-node-exporter", "prometheus", "prometheus-alertmanager")
    exporter, prometheus, alertmanager = map(program, names)
    with ExitStack() as running:
        mailbox = running.enter_context(Mailbox().open())
        exporting = running.enter_context(textfile_exporter(exporter, textfiles, folder / "exporter.log"))
        config = folder / "alertmanager.yml"
        config.write_text(yaml.safe_dump(alertmanager_config(mailbox.address)), "utf-8")
        alerting = running.enter_context(
            alertmanager_server(alertmanager, config, folder / "alertmanager", folder / "alertmanager.log")
        )
        rules = folder / "alerts.yml"
        rules.write_text(faster_rules(), "utf-8")
        config = folder / "prometheus.yml"
        config.write_text(yaml.safe_dump(prometheus_config(rules, exporting, alerting)), "utf-8")
        monitoring = running.enter_context(
            prometheus_server(prometheus, config, folder / "prometheus", folder / "prometheus.log")
        )
        yield Monitor(textfiles, exporting, monitoring, mailbox)


@contextmanager
def new_site(postgres: Server, folder: Path) -> Iterator[Site]:
    """An empty site in a database of its own."""
    folder.mkdir(exist_ok=True)
    database = postgres.create_database(template=postgres.empty_site.name)
    try:
        yield Site(database.engine, database.settings, folder, database)
    finally:
        database.drop()


@contextmanager
def unreachable(site: Site) -> Iterator[None]:
    """Nobody can connect to the site's database."""
    assert site.database
    server, name = site.database.server, site.database.name
    server.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
    try:
        yield
    finally:
        server.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')


def audited(site: Site, status: int) -> None:
    """Run the audit, which must end with this exit status."""
    answer = site.process()
    assert answer.returncode == status, answer.stderr


def two_days_later(site: Site) -> None:
    """Nothing was logged for two days."""
    assert site.database
    site.database.execute("UPDATE backups SET ts = ts - interval '48 hours'")


@pytest.fixture(scope="module")
def stage(postgres: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """Everything running, and no audit yet."""
    folder = tmp_path_factory.mktemp("end-to-end")
    with new_site(postgres, folder) as site:
        site.config(**SETTINGS)
        with monitored(site.textfile.parent, folder) as monitor:
            yield Stage(monitor.textfiles, monitor.exporter, monitor.prometheus, monitor.mailbox, site, fill(site))


@dataclass(frozen=True)
class FirstScene(Scene):
    """The first scene, which is looked at more closely."""

    of_host: dict[tuple[str, str], Answer] = field(default_factory=dict)
    """What the dashboard shows for the audit host, chosen by its name."""
    of_genomics: dict[tuple[str, str], Answer] = field(default_factory=dict)
    """What it shows for one owner."""
    filters: dict[str, list[str]] = field(default_factory=dict)
    """What the filters offer."""


@pytest.fixture(scope="module")
def every_status(stage: Stage) -> FirstScene:
    """The audit of a site with containers in every status."""
    audited(stage.site, 2)
    low = stage.low_coverage()
    scene = stage.watch(mails(stage.expected(*FOUND, cases=lambda case: case.alert, low=low)))
    filters = {}
    for variable in dashboard()["templating"]["list"]:
        if variable["type"] == "query":
            found = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"])
            assert found, variable
            filters[variable["name"]] = stage.ask(f"label/{found[2]}/values", ("match[]", interpolate(found[1], 1, {})))
    return FirstScene(
        scene.alerts,
        scene.shown,
        scene.mails,
        low,
        {(title, ref): stage.result(target, instance=stage.exporter) for title, ref, target in targets()},
        {(title, ref): stage.result(target, owner="genomics") for title, ref, target in targets()},
        filters,
    )


@pytest.fixture(scope="module")
def failed_audit(stage: Stage, every_status: FirstScene) -> Scene:
    """The next audit cannot reach the database."""
    with unreachable(stage.site):
        audited(stage.site, 3)
        return stage.watch(mails(stage.expected("AuditFailed")))


@pytest.fixture(scope="module")
def silent_site(stage: Stage, failed_audit: Scene) -> Scene:
    """The audit works again, and nothing was logged for two days. A textfile of somebody else's is broken."""
    two_days_later(stage.site)
    stage.site.textfile.with_name("other.prom").write_text("no metric\n", "utf-8")
    audited(stage.site, 2)
    low = stage.low_coverage()
    awaited = mails(stage.expected("SiteSilent", "TextfileError")) | mails(stage.expected("AuditFailed"), "resolved")
    return replace(stage.watch(awaited), low=low)


@pytest.fixture(scope="module")
def no_textfiles(stage: Stage, silent_site: Scene) -> Scene:
    """The folder is empty."""
    for textfile in stage.site.textfile.parent.iterdir():
        textfile.unlink()
    return stage.watch(mails(stage.expected("AuditAbsent")))


# --- The tests ---------------------------------------------------------------------------------------------


def labels(alerts: list[Alert]) -> set[Labelled]:
    found = {frozenset(alert["labels"].items()) for alert in alerts}
    assert len(found) == len(alerts)
    return found


def mails(alerts: set[Labelled], status: str = "firing") -> set[Mail]:
    """Which receivers of alertmanager.example.yml are to hear of which alerts."""
    sent = set()
    for alert in alerts:
        known = dict(alert)
        sent.add(("backup-team", status, alert))
        if known.get("contact", "").endswith("@example.org"):
            sent.add(("owner", status, alert))
        if known.get("owner") == "genomics":
            sent.add(("genomics", status, alert))
    return sent


def test_only_the_waiting_times_of_the_rules_differ_here() -> None:
    rules = [yaml.safe_load(text) for text in ((MONITORING / "alerts.yml").read_text("utf-8"), faster_rules())]
    for rule in (rule for content in rules for group in content["groups"] for rule in group["rules"]):
        for waiting in ("for", "keep_firing_for"):
            if waiting in rule:
                assert rule.pop(waiting) in (*FASTER, *FASTER.values())
        rule["expr"] = re.sub(r"\[(15m|2s)\]", "[...]", rule["expr"])
    assert rules[0] == rules[1]


def test_the_site_has_every_status() -> None:
    assert {case.status for case in CASES} == set(Status)


def test_the_alerts_of_every_status_fire_and_no_others(stage: Stage, every_status: FirstScene) -> None:
    expected = stage.expected(*FOUND, cases=lambda case: case.alert, low=every_status.low)
    assert labels(every_status.alerts) == expected


@pytest.mark.parametrize("name", ["every_status", "failed_audit", "silent_site", "no_textfiles"])
def test_every_alert_has_complete_texts(name: str, request: pytest.FixtureRequest) -> None:
    scene: Scene = request.getfixturevalue(name)
    for alert in scene.alerts:
        for text in alert["annotations"].values():
            plain = text.replace(STRANGE, "strange")
            assert not re.search(r"<error|<no value>|\{\{|%!|NaN", plain), text
            assert "  " not in plain, text


def test_an_alert_tells_of_the_last_good_backup(every_status: FirstScene) -> None:
    described = {
        (alert["labels"]["name"], alert["labels"]["engine"]): alert["annotations"]["description"]
        for alert in every_status.alerts
        if alert["labels"]["alertname"] == "MyDBBackupFailed"
    }
    assert "started 3h 0m" in described["wiki", "MariaDB"]
    assert "The last good backup started 1d 4h 0m" in described["wiki", "MariaDB"]
    assert "The last good backup started 1d 4h 0m" in described[STRANGE, "Postgres"]
    assert "owner unknown" in described["survey", "MariaDB"]
    assert "There is no good backup." in described["survey", "MariaDB"]


def test_owners_hear_only_about_their_own_containers(every_status: FirstScene) -> None:
    assert news(every_status.mails) == mails(labels(every_status.alerts))
    for receiver, alert in every_status.mails:
        if receiver == "owner":
            assert alert["group"]["contact"] == alert["labels"]["contact"]


@pytest.mark.parametrize(("title", "ref"), [(title, ref) for title, ref, _ in targets()])
def test_every_query_of_the_dashboard_returns_data(title: str, ref: str, every_status: FirstScene) -> None:
    assert every_status.shown[title, ref]
    assert every_status.of_host[title, ref]
    assert every_status.of_genomics[title, ref]


def test_every_legend_names_labels_that_exist(every_status: FirstScene) -> None:
    for title, ref, target in targets():
        for label in re.findall(r"\{\{(\w+)\}\}", target.get("legendFormat", "")):
            known = (label in found["metric"] for found in every_status.shown[title, ref])
            assert all(known) or label == "site", title


def figure(scene: dict[tuple[str, str], Answer], title: str) -> float:
    (found,) = scene[title, "A"]
    return float(found["value"][1])


def test_the_dashboard_counts_right(every_status: FirstScene) -> None:
    for severity, title in enumerate(("Fine", "Warning", "Critical")):
        found = [case for case in CASES if case.status.severity == severity and not case.accepted]
        assert figure(every_status.shown, title) == figure(every_status.of_host, title) == len(found)
        assert figure(every_status.of_genomics, title) == sum(case.owner == "genomics" for case in found)
    assert figure(every_status.shown, "Accepted") == sum(case.accepted for case in CASES)
    assert figure(every_status.shown, "Last audit run") == 1
    assert 0 <= figure(every_status.shown, "Age of the audit") < 60
    (ignored,) = every_status.shown["The audit itself", "F"]
    assert float(ignored["value"][1]) == 3  # two from the future, one malformed


def test_the_dashboard_lists_what_needs_attention(every_status: FirstScene) -> None:
    rows = every_status.shown["Containers that need attention", "A"]
    listed = sorted((row["metric"]["name"], row["metric"]["status"], float(row["value"][1])) for row in rows)
    assert listed == sorted(
        (case.name, case.status.value, case.status.severity)
        for case in CASES
        if case.status.severity and not case.accepted
    )


def test_the_filters_list_existing_values(stage: Stage, every_status: FirstScene) -> None:
    assert {name: set(values) for name, values in every_status.filters.items()} == {
        "job": {JOB},
        "instance": {stage.exporter},
        "site": set(),
        "engine": {"Postgres", "MariaDB", "MongoDB", "Neo4j"},
        "policy": {"Daily", "Weekly", "Monthly", "Never", "Dialy"},
        "owner": {"ada", "bo", "genomics"},
    }


def test_a_failed_audit_suppresses_the_alerts_of_containers(stage: Stage, failed_audit: Scene) -> None:
    assert labels(failed_audit.alerts) == stage.expected("AuditFailed")


def test_a_failed_audit_tells_nobody_that_all_is_well(stage: Stage, failed_audit: Scene) -> None:
    assert news(failed_audit.mails) == mails(stage.expected("AuditFailed"))


def test_the_dashboard_shows_no_data_after_a_failed_audit(failed_audit: Scene) -> None:
    assert [figure(failed_audit.shown, title) for title in ("Critical", "Warning", "Fine")] == [-1, -1, -1]
    assert figure(failed_audit.shown, "Last audit run") == 0
    (row,) = failed_audit.shown["Containers that need attention", "A"]
    assert row["metric"]["name"] == "(the audit itself)"
    assert not failed_audit.shown["Coverage", "A"]


def test_a_silent_site_suppresses_missed_and_late(stage: Stage, silent_site: Scene) -> None:
    expected = stage.expected(
        "SiteSilent", "TextfileError", "LogRowsIgnored", cases=lambda case: case.silent_alert, low=silent_site.low
    )
    assert labels(silent_site.alerts) == expected


def test_suppressed_alerts_send_no_resolved_mail(stage: Stage, silent_site: Scene) -> None:
    resolved = {mail for mail in news(silent_site.mails) if mail[1] == "resolved"}
    assert resolved == mails(stage.expected("AuditFailed"), "resolved")


def test_missing_textfiles_suppress_the_alerts_of_containers(stage: Stage, no_textfiles: Scene) -> None:
    assert labels(no_textfiles.alerts) == stage.expected("AuditAbsent")
    resolved = {mail for mail in news(no_textfiles.mails) if mail[1] == "resolved"}
    assert resolved <= mails(stage.expected("TextfileError"), "resolved")  # which really is


def test_the_dashboard_shows_no_data_without_textfiles(no_textfiles: Scene) -> None:
    assert [figure(no_textfiles.shown, title) for title in ("Critical", "Warning", "Fine")] == [-1, -1, -1]


def test_the_command_in_an_alert_works_when_it_is_pasted(stage: Stage, every_status: FirstScene) -> None:
    texts = [alert["annotations"]["description"] for alert in every_status.alerts]
    commands = {text.partition("/opt/backup_audit/backup_audit.py ")[2] for text in texts}
    assert len(commands) > 10
    for command in sorted(commands - {"", "-v"}):  # which publishes
        answer = stage.site.audit(*shlex.split(command))
        assert answer.status < 3, f"{command}: {answer.err}"


# --- Two sites on one host ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class TwoSites:
    """What was to be seen of the sites north and south, whose containers have the same names and ids."""

    monitor: Monitor
    expected: dict[Labelled, float]
    """The samples of all textfiles of the first scene, and what Prometheus had of them."""
    scraped: dict[Labelled, float]
    both: Scene
    north_failed: Scene
    """The audit of north cannot reach its database."""
    north_silent: Scene
    """It works again, and the log of north has been silent for two days."""
    unnamed: Scene
    """Both audits publish without a site."""

    def firing(self, scene: Scene) -> set[tuple[str, str, str]]:
        """Site, alert and container of what is firing."""
        found = [alert["labels"] for alert in scene.alerts]
        return {(each.get("site", ""), each["alertname"][10:], each.get("name", "")) for each in found}


def labelled(metric: str, labels: Labels) -> Labelled:
    return frozenset({"__name__": metric, **labels}.items())


@pytest.fixture(scope="module")
def two_sites(postgres: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoSites]:
    """Sites in two databases, whose audits share a host and the folder of the textfiles."""
    folder = tmp_path_factory.mktemp("two-sites")
    textfiles = folder / "textfiles"
    textfiles.mkdir()
    with ExitStack() as running:
        north, south = (running.enter_context(new_site(postgres, folder / name)) for name in ("north", "south"))
        for site, error in ((north, "disk full"), (south, "no such host")):
            assert [site.container(name) for name in ("sales", "wiki", "mail")] == [1, 2, 3]
            now = site.clock()
            site.run(1, now - timedelta(hours=3), now - timedelta(hours=2), error=f"Error message: {error}")
            site.run(2, now - timedelta(hours=80), now - timedelta(hours=79))
            site.run(3, now - timedelta(hours=3), now - timedelta(hours=2))
        accepted = {"wiki": ("2999-12-31", "moves to south")}
        north.config(site="north", prometheus_file=str(textfiles / "a.prom"), history_days=0, exceptions=accepted)
        south.config(site="south", prometheus_file=str(textfiles / "b.prom"), history_days=0)
        monitor = running.enter_context(monitored(textfiles, folder))
        host = monitor.host

        audited(north, 2)
        audited(south, 2)
        both = monitor.watch(set())
        published = [parse_samples(file.read_text("utf-8")) for file in textfiles.glob("*.prom")]
        expected = {
            labelled(metric, {**host, **dict(labels)}): value
            for samples in published
            for (metric, labels), value in samples.items()
        }
        answer = monitor.query('{__name__=~"mydb_backup_[^:]+"}')
        scraped = {frozenset(each["metric"].items()): float(each["value"][1]) for each in answer}

        with unreachable(north):
            audited(north, 3)
            failed = mails({alert_labels(host, "AuditFailed", site="north")})
            north_failed = monitor.watch(failed)
        two_days_later(north)
        audited(north, 2)
        silent = mails({alert_labels(host, "SiteSilent", site="north")})
        north_silent = monitor.watch(silent)

        for site, file in ((north, "a.prom"), (south, "b.prom")):
            site.config(prometheus_file=str(textfiles / file), history_days=0)
            audited(site, 2)
        yield TwoSites(monitor, expected, scraped, both, north_failed, north_silent, monitor.watch(set()))


def alert_labels(host: Labels, name: str, **labels: str) -> Labelled:
    return frozenset({**host, "alertname": f"MyDBBackup{name}", "severity": SEVERITY[name], **labels}.items())


SOUTH = {("south", "Failed", "sales"), ("south", "Missed", "wiki")}


def test_every_series_of_both_sites_is_there(two_sites: TwoSites) -> None:
    assert two_sites.expected == two_sites.scraped
    assert {dict(each).get("site") for each in two_sites.scraped} == {"north", "south"}


def test_alerts_of_a_site_stay_its_own(two_sites: TwoSites) -> None:
    assert two_sites.firing(two_sites.both) == {("north", "Failed", "sales"), *SOUTH}
    texts = {
        alert["labels"]["site"]: " ".join(alert["annotations"].values())
        for alert in two_sites.both.alerts
        if alert["labels"]["name"] == "sales"
    }
    for site, error in (("north", "disk full"), ("south", "no such host")):
        assert f"(site {site})" in texts[site]
        assert error in texts[site]
        assert f"backup_audit.py --config /etc/backup_audit/{site}.py 1" in texts[site]


def test_an_audit_that_fails_silences_its_own_site_only(two_sites: TwoSites) -> None:
    assert two_sites.firing(two_sites.north_failed) == {("north", "AuditFailed", ""), *SOUTH}
    failed = mails({alert_labels(two_sites.monitor.host, "AuditFailed", site="north")})
    assert news(two_sites.north_failed.mails) == failed


def test_a_fresh_alert_is_sent_as_soon_as_the_audit_is_good_again(two_sites: TwoSites) -> None:
    host = two_sites.monitor.host
    assert ("north", "SiteSilent", "") in two_sites.firing(two_sites.north_silent)
    assert two_sites.firing(two_sites.north_silent) >= SOUTH
    resolved = {mail for mail in news(two_sites.north_silent.mails) if mail[1] == "resolved"}
    assert resolved == mails({alert_labels(host, "AuditFailed", site="north")}, "resolved")


def test_audits_without_a_site_in_one_folder_collide(two_sites: TwoSites) -> None:
    assert ("", "SiteCollision", "") in two_sites.firing(two_sites.unnamed)
    for scene in (two_sites.both, two_sites.north_failed, two_sites.north_silent):
        assert ("", "SiteCollision", "") not in two_sites.firing(scene)
