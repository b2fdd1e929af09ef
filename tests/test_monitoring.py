"""The alert rules, their runbook and the dashboard, checked with promtool and amtool."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.builders import TOP, Site

MONITORING = TOP / "monitoring"
RULE_TESTS = ("alerts_test.yml", "vanished_test.yml")
RUNBOOK_BASE = "https://runbook.example.org/README.md"
COMMAND = "/opt/backup_audit/backup_audit.py"
NODE_EXPORTER_METRICS = {"node_textfile_scrape_error", "node_textfile_mtime_seconds"}

HOST = {"job": "node", "instance": "audit1:9100"}
OTHER_AUDITS = [HOST | {"job": "again"}, HOST | {"instance": "audit2:9100"}, HOST | {"site": "south"}]
"""An audit of a second job, of a second host, and of a second site on the same host."""

Find = Callable[[str], Path]
Series = dict[str, str]


def run(*command: str | Path) -> str:
    """The output of a command that must succeed, run in the folder of the rules."""
    answer = subprocess.run(
        command, cwd=MONITORING, capture_output=True, text=True, encoding="utf-8", check=False, timeout=120
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return answer.stdout


def load(name: str) -> Any:
    """A YAML file of the folder."""
    return yaml.safe_load((MONITORING / name).read_text("utf-8"))


def rules() -> list[dict[str, Any]]:
    groups = load("alerts.yml")["groups"]
    assert len(groups) == 1
    return list(groups[0]["rules"])


def alerts() -> dict[str, dict[str, Any]]:
    found = {rule["alert"]: rule for rule in rules() if "alert" in rule}
    assert len(found) == sum("alert" in rule for rule in rules()), "an alert's name is used twice"
    return found


def readme() -> str:
    return (MONITORING / "README.md").read_text("utf-8")


def headings() -> dict[str, str]:
    """The runbook's headings, by the anchor that GitHub, GitLab and others give them."""
    texts = re.findall(r"^#+ +(.+)$", readme(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", text.lower()).replace(" ", "-"): text for text in texts}


def dashboard() -> dict[str, Any]:
    board: dict[str, Any] = json.loads((MONITORING / "dashboard.json").read_text("utf-8"))
    return board


def panels() -> list[dict[str, Any]]:
    """All panels but the rows' headings."""
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def panel(title: str) -> dict[str, Any]:
    (found,) = (panel for panel in panels() if panel["title"] == title)
    return found


def variables() -> dict[str, dict[str, Any]]:
    """The filters of the dashboard, without that of the datasource."""
    return {one["name"]: one for one in dashboard()["templating"]["list"] if one["type"] == "query"}


def interpolate(text: str, **chosen: str) -> str:
    """A query as Grafana sends it: with the chosen filters, else with all values."""
    values = {name: variable["allValue"] for name, variable in variables().items()} | chosen
    return re.sub(r"\$([a-z]+)", lambda match: values[match[1]], text)


def query(title: str, ref: str = "A", **chosen: str) -> str:
    (expr,) = (target["expr"] for target in panel(title)["targets"] if target["refId"] == ref)
    return interpolate(expr, **chosen)


def metrics_in(text: str) -> set[str]:
    return set(re.findall(r"\b(?:mydb_backup|node_textfile)[\w:]*", text))


# ---- Small sites for promtool -------------------------------------------------------------------------------


def labels_of(**labels: str) -> str:
    return "{" + ", ".join(f"{name}={json.dumps(value)}" for name, value in labels.items()) + "}"


def series(metric: str, value: float, **labels: str) -> Series:
    """A series that has this value for an hour, on the audit host audit1 unless the labels say otherwise."""
    return {
        "series": metric + labels_of(**HOST | labels),
        "values": f"{value}+0x60",
    }


def audit(age: float = 0, success: int = 1, **labels: str) -> list[Series]:
    """The series of an audit that ran `age` seconds before the test begins."""
    return [
        series("mydb_backup_audit_timestamp_seconds", -age, **labels),
        series("mydb_backup_audit_run_timestamp_seconds", -age, **labels),
        series("mydb_backup_audit_success", success, **labels),
    ]


def container(name: str, status: str, severity: int, c_id: str = "1", **labels: str) -> list[Series]:
    audit = {label: labels.pop(label) for label in ("instance", "site") if label in labels}
    key = {"name": name, "c_id": c_id} | audit
    return [
        series("mydb_backup_container_info", 1, **key, **{"engine": "Postgres", "policy": "Daily"} | labels),
        series("mydb_backup_status", 1, **key, status=status),
        series("mydb_backup_severity", severity, **key),
        series("mydb_backup_due_timestamp_seconds", -3600, **key),
        series("mydb_backup_last_success_timestamp_seconds", -90000, **key),
        series("mydb_backup_covered_ratio", 0.5 if severity else 1, **key),
    ]


def expect(expr: str, *samples: tuple[dict[str, str], float]) -> dict[str, Any]:
    """What an expression returns half an hour after the beginning."""
    found = [{"labels": labels_of(**labels), "value": value} for labels, value in samples]
    return {"expr": expr, "eval_time": "30m", "exp_samples": found}


def check_expressions(promtool: Path, folder: Path, site: Iterable[Series], *expected: dict[str, Any]) -> None:
    test = {"interval": "1m", "input_series": list(site), "promql_expr_test": list(expected)}
    file = folder / "expressions_test.yml"
    content = {"rule_files": [str(MONITORING / "alerts.yml")], "evaluation_interval": "1m", "tests": [test]}
    file.write_text(yaml.safe_dump(content), "utf-8")
    run(promtool, "test", "rules", file)


@pytest.fixture
def published(site: Site) -> set[str]:
    """The names of all metrics that the audit publishes, each at least once, in both textfiles."""
    now = site.clock()
    c_id = site.container("sales")
    for day in range(9, 0, -1):
        site.run(c_id, now - timedelta(days=day), now - timedelta(days=day, hours=-1))
    site.run(c_id, now - timedelta(hours=2), now - timedelta(hours=1), error="pg_dump: error: out of memory")
    site.config(exceptions={"sales": (f"{now + timedelta(days=9):%Y-%m-%d}", "frozen")})
    answer = site.audit()
    assert answer.status < 3, answer.err
    texts = (file.read_text("utf-8") for file in (site.textfile, site.runfile))
    return {name for text in texts for name in re.findall(r"^# TYPE (\w+)", text, re.MULTILINE)}


# ---- Alerts ---------------------------------------------------------------------------------------------------


def test_prometheus_accepts_the_rules(require_program: Find) -> None:
    promtool = require_program("promtool")
    said = run(promtool, "check", "rules", "--lint=all", "--lint-fatal", "alerts.yml")
    assert "SUCCESS" in said
    assert len(said.splitlines()) == 3, said


@pytest.mark.slow
@pytest.mark.parametrize("file", RULE_TESTS)
def test_every_alert_fires_and_clears_when_it_should(file: str, require_program: Find) -> None:
    promtool = require_program("promtool")
    run(promtool, "test", "rules", file)


@pytest.mark.parametrize("name", alerts())
def test_an_alert_is_tested_before_and_while_and_after_it_fires(name: str) -> None:
    for test in (test for file in RULE_TESTS for test in load(file)["tests"]):
        firing = [bool(case["exp_alerts"]) for case in test.get("alert_rule_test", []) if case["alertname"] == name]
        if firing[:1] == firing[-1:] == [False] and any(firing):
            return
    pytest.fail(f"no test sees {name} first quiet, then firing, then quiet again")


@pytest.mark.parametrize(("name", "alert"), alerts().items())
def test_an_alert_has_the_form_that_the_site_relies_on(name: str, alert: dict[str, Any]) -> None:
    assert re.fullmatch(r"MyDBBackup[A-Z]\w+", name)
    assert alert["labels"].keys() == {"severity"}
    assert alert["labels"]["severity"] in ("critical", "warning", "info")
    assert alert["annotations"].keys() == {"summary", "description", "runbook_url"}
    assert alert["annotations"]["summary"].endswith(".")
    assert "Next step: " in alert["annotations"]["description"]


def test_every_join_and_every_query_of_a_text_matches_the_site() -> None:
    for rule in rules():
        for matching in re.findall(r"(?:\bon|\bby) \(([^)]*)\)", rule["expr"]):
            of_host = "node_textfile" in rule["expr"] or "exported_site" in rule["expr"]
            assert not matching or of_host or matching.startswith("job, instance, site"), rule
        asked = rule.get("annotations", {}).get("description", "")
        assert asked.count("job=%q,instance=%q,site=%q") == asked.count("job=%q"), rule


def test_a_command_in_an_alert_ends_its_text_and_carries_the_configuration() -> None:
    described = [alert["annotations"]["description"] for alert in alerts().values()]
    commands = [text.partition(COMMAND)[2] for text in described if COMMAND in text]
    assert len(commands) > 8
    for rest in commands:
        configured = "{{- with $labels.site }} --config /etc/backup_audit/{{ . }}.py{{ end }} "
        assert re.fullmatch(r" ?" + re.escape(configured) + r"(-[\w -]+)?({{ \$labels.c_id }})?", rest), rest


def test_the_commands_of_alerts_and_runbook_have_options_that_exist(site: Site) -> None:
    known = site.process("--help").stdout
    texts = (readme(), (MONITORING / "alerts.yml").read_text("utf-8"))
    lines = [line for text in texts for line in re.findall(re.escape(COMMAND) + r"([^`\n]*(?:\n +\{\{-[^\n]*)?)", text)]
    options = {option for line in lines for option in re.findall(r"(?<= )--?[a-z][a-z-]*", line)}
    assert options == {"--config", "--check-config", "--history", "-v"}
    assert all(re.search(rf"{option}\b", known) for option in options)


@pytest.mark.parametrize(("name", "alert"), alerts().items())
def test_runbook_url_leads_to_the_alerts_own_heading(name: str, alert: dict[str, Any]) -> None:
    base, _, anchor = alert["annotations"]["runbook_url"].partition("#")
    assert base == RUNBOOK_BASE
    assert headings()[anchor] == name


def test_the_runbook_explains_every_alert() -> None:
    sections = re.split(r"^###? +", readme().partition("## The alerts")[2], flags=re.MULTILINE)[1:-1]
    assert [section.split("\n", 1)[0] for section in sections] == list(alerts())
    assert f"{len(alerts())} alerts" in readme()
    for section in sections:
        name = section.split("\n", 1)[0]
        assert f"*{alerts()[name]['labels']['severity']}* · " in section
        for part in ("- **At stake**", "- **Look**", "- **Do**", "- **Clears**"):
            assert part in section, f"{name}: {part}"


def test_every_psql_line_of_the_runbook_works_under_the_read_only_role(own_site: Site, tmp_path: Path) -> None:
    lines = re.findall(r"""psql -A?t?c (["'])(.+?)\1""", readme())
    assert len(lines) >= 10
    database = own_site.database
    assert database
    database.psql(TOP / "deploy" / "read_only_role.sql")
    script = tmp_path / "runbook.sql"
    script.write_text("SET ROLE backup_audit;\n" + "".join(f"{sql};\n" for _, sql in lines), "utf-8")
    database.psql(script)
    script.write_text("DROP OWNED BY backup_audit; DROP ROLE backup_audit;", "utf-8")
    database.psql(script)


def test_the_runbook_names_the_unit_that_deploy_installs() -> None:
    units = re.findall(r"journalctl -u (backup[\w.-]+)", readme())
    assert units
    assert all((TOP / "deploy" / unit).exists() for unit in units)


def test_the_sed_line_of_the_runbook_sets_every_address_of_the_runbook() -> None:
    (line,) = re.findall(r"^sed -i ('.+') \*\.yml dashboard\.py dashboard\.json$", readme(), re.M)
    for name in ("alerts.yml", *RULE_TESTS, "dashboard.py", "dashboard.json"):
        changed = run("sed", line.strip("'"), name)
        assert "https://wiki.example.org/backup-audit" in changed
        assert RUNBOOK_BASE not in changed


def test_the_prometheus_configuration_of_the_runbook_is_valid(require_program: Find, tmp_path: Path) -> None:
    promtool = require_program("promtool")
    (config,) = re.findall(r"^```yaml\n(.+?)^```", readme(), re.M | re.S)
    file = tmp_path / "prometheus.yml"
    file.write_text(config, "utf-8")
    run(promtool, "check", "config", "--syntax-only", file)


def test_alerts_and_dashboard_use_metrics_that_exist(published: set[str]) -> None:
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    used = metrics_in((MONITORING / "alerts.yml").read_text("utf-8"))
    assert recorded <= used
    assert used - recorded <= published | NODE_EXPORTER_METRICS
    assert metrics_in(json.dumps(dashboard())) <= published


@pytest.mark.parametrize(
    ("alert", "status", "metric", "value", "elsewhere"),
    [
        ("Failed", "failed", "mydb_backup_last_run_timestamp_seconds", -9000, -9000),
        ("Stalled", "stalled", "mydb_backup_last_run_timestamp_seconds", -9000, -9000),
        ("Missed", "missed", "mydb_backup_due_timestamp_seconds", -9000, -9000),
        ("Late", "late", "mydb_backup_due_timestamp_seconds", -9000, -9000),
        ("StillRunning", "running", "mydb_backup_last_run_timestamp_seconds", -9000, -9000),
        ("NoPolicy", "no_policy", "mydb_backup_due_timestamp_seconds", -9000, -9000),
        ("Paused", "paused", "mydb_backup_due_timestamp_seconds", -900000, -900000),
        ("SuspiciouslyShort", "ok", "mydb_backup_last_duration_seconds", 1, 600),
        ("CoverageLow", "ok", "mydb_backup_covered_ratio", 0.5, 1),
        ("ExceptionEnded", "ok", "mydb_backup_exception_until_timestamp_seconds", 0, -900000),
    ],
)
@pytest.mark.parametrize("accepted", [False, True])
@pytest.mark.parametrize("home", [HOST, HOST | {"site": "north"}], ids=["unnamed", "named"])
def test_joins_distinguish_audits_and_site_wide_jobs(
    home: dict[str, str],
    accepted: bool,
    alert: str,
    status: str,
    metric: str,
    value: float,
    elsewhere: float,
    require_program: Find,
    tmp_path: Path,
) -> None:
    """The others are well, or they are all as bad and accepted."""
    promtool = require_program("promtool")
    bad = home | {"name": "offsite", "c_id": "0"}
    elsewhere_audited = [home | other for other in OTHER_AUDITS if other != home]
    others = [bad | other for other in elsewhere_audited] + [bad | {"name": "archive"}, bad | {"c_id": "5"}]
    site = [one for each in (home, *elsewhere_audited) for one in audit(0, 1, **each)]
    for labels in (bad, *others):
        ill = labels is bad or (accepted and alert != "ExceptionEnded")
        site += [
            series("mydb_backup_container_info", 1, **labels, owner="genomics" if labels is bad else "clinic"),
            series("mydb_backup_status", 1, **labels, status=status if ill else "ok"),
            series(metric, value if ill else elsewhere, **labels),
            series("mydb_backup_typical_duration_seconds", 600, **labels),
        ]
        if ill and labels is not bad:
            site.append(series("mydb_backup_exception_until_timestamp_seconds", 86400, **labels))
    fired = expect(
        f'sum by (job, instance, site, name, c_id, owner) (ALERTS{{alertname="MyDBBackup{alert}"}})',
        (bad | {"owner": "genomics"}, 1),
    )
    check_expressions(promtool, tmp_path, site, fired)


def host(labels: dict[str, str], age: int = 0, success: int = 1, well: int = 0, silent: int = 0) -> list[Series]:
    """An audit of a missed and a late container, a log as long silent as said, and rows from the future."""
    one, two = labels | {"name": "sales", "c_id": "7"}, labels | {"name": "wiki", "c_id": "9"}
    return [
        *audit(age, success, **labels),
        series("mydb_backup_log_newest_timestamp_seconds", -age - silent, **labels),
        series("mydb_backup_log_rows_ignored", 1, **labels, reason="future"),
        series("mydb_backup_container_info", 1, **one),
        series("mydb_backup_status", 1, **one, status="ok" if well else "missed"),
        series("mydb_backup_due_timestamp_seconds", -1, **one),
        series("mydb_backup_container_info", 1, **two),
        series("mydb_backup_status", 1, **two, status="ok" if well else "late"),
        series("mydb_backup_due_timestamp_seconds", -1, **two),
    ]


DAY = 86400
FUTURE, MISSED, LATE = "MyDBBackupLogRowsFromFuture", "MyDBBackupMissed", "MyDBBackupLate"
SILENT, FAILED, STALE = "MyDBBackupSiteSilent", "MyDBBackupAuditFailed", "MyDBBackupAuditStale"


@pytest.mark.parametrize(
    ("here", "here_fires", "there", "there_fires"),
    [
        ({}, {MISSED, LATE, FUTURE}, {"age": 2 * DAY, "success": 0}, {FAILED}),
        ({}, {MISSED, LATE, FUTURE}, {"age": 2 * DAY}, {STALE}),
        ({"silent": 2 * DAY}, {SILENT, FUTURE}, {}, {MISSED, LATE, FUTURE}),
        ({"silent": 2 * DAY}, {SILENT, FUTURE}, {"silent": 2 * DAY, "well": 1}, {FUTURE}),
        ({"silent": 2 * DAY}, {SILENT, FUTURE}, {"silent": 2 * DAY, "age": 2 * DAY}, {STALE}),
        ({"age": 2 * DAY}, {STALE}, {"success": 0}, {FAILED}),
    ],
)
def test_findings_of_one_audit_are_not_attributed_to_another(
    here: dict[str, int],
    here_fires: set[str],
    there: dict[str, int],
    there_fires: set[str],
    require_program: Find,
    tmp_path: Path,
) -> None:
    promtool = require_program("promtool")
    site = [*host(HOST, **here), *(one for other in OTHER_AUDITS for one in host(other, **there))]
    fires = [(HOST, here_fires), *((other, there_fires) for other in OTHER_AUDITS)]
    samples = [(labels | {"alertname": alert}, 1.0) for labels, names in fires for alert in names]
    check_expressions(promtool, tmp_path, site, expect("count by (job, instance, site, alertname) (ALERTS)", *samples))


def test_of_many_vanished_containers_twenty_are_named(require_program: Find, tmp_path: Path) -> None:
    names = [f"lab-{number:02}" for number in range(1, 23)]
    key = labels_of(**HOST)
    site = [
        {"series": f"mydb_backup_audit_timestamp_seconds{key}", "values": "0+0x23 86400+0x23"},
        {"series": f"mydb_backup_containers{labels_of(**HOST, status='ok')}", "values": "22+0x23 0+0x23"},
    ]
    for name in names:
        status = labels_of(**HOST, name=name, c_id=name[-2:], status="ok")
        site.append({"series": f"mydb_backup_status{status}", "values": "1+0x23 stale"})
    alert = alerts()["MyDBBackupContainersVanished"]["annotations"]
    described = (
        "Within two days, their rows disappeared from DB4Sci's table container_state. If the databases still run, "
        f"nobody watches their backups. Gone: {', '.join(names[:20])}, ... (22 in all). Next step: "
        f"{alert['description'].partition('Next step: ')[2]}"
    )
    texts = {"summary": "22 containers are no longer audited by audit1:9100.", "description": described}
    expected = {"exp_labels": HOST | {"severity": "critical"}, "exp_annotations": alert | texts}
    case = {"alertname": "MyDBBackupContainersVanished", "eval_time": "24h", "exp_alerts": [expected]}
    test = {"interval": "1h", "input_series": site, "alert_rule_test": [case]}
    content = {"rule_files": [str(MONITORING / "alerts.yml")], "evaluation_interval": "1h", "tests": [test]}
    file = tmp_path / "many_test.yml"
    file.write_text(yaml.safe_dump(content), "utf-8")
    run(require_program("promtool"), "test", "rules", file)


def test_alertmanager_accepts_the_example(require_program: Find) -> None:
    amtool = require_program("amtool")
    run(amtool, "check-config", "alertmanager.example.yml")


def test_inhibition_stays_within_a_site() -> None:
    for rule in load("alertmanager.example.yml")["inhibit_rules"]:
        assert rule["equal"] == ["job", "instance", "site"]


@pytest.mark.parametrize(
    ("labels", "receivers"),
    [
        (["alertname=MyDBBackupFailed", "owner=clinic", "contact=clinic@example.org"], "owner,backup-team"),
        (["alertname=MyDBBackupFailed", "owner=genomics"], "genomics,backup-team"),
        (["alertname=MyDBBackupFailed", "contact=someone@example.com"], "backup-team"),
        (["alertname=MyDBBackupAuditStale"], "backup-team"),
    ],
)
def test_the_alertmanager_example_routes_by_owner(labels: list[str], receivers: str, require_program: Find) -> None:
    amtool = require_program("amtool")
    routed = run(amtool, "config", "routes", "test", "--config.file=alertmanager.example.yml", *labels)
    assert routed.strip() == receivers


# ---- Dashboard --------------------------------------------------------------------------------------------------
#
# Grafana's dashboard-linter has a rule of the same name for each test whose name ends in _rule.


@pytest.mark.skipif(sys.version_info < (3, 11), reason="the Grafana Foundation SDK needs Python 3.11")
def test_dashboard_json_is_what_dashboard_py_builds() -> None:
    run(sys.executable, "dashboard.py", "--check")


def test_the_dashboard_imports_anywhere() -> None:
    board = dashboard()
    assert not board.keys() & {"id", "uid", "__inputs", "version"}
    assert len({found["id"] for found in board["panels"]}) == len(board["panels"])


def test_template_datasource_rule() -> None:
    (source,) = (one for one in dashboard()["templating"]["list"] if one["type"] == "datasource")
    assert (source["name"], source["label"], source["query"]) == ("datasource", "Data source", "prometheus")


@pytest.mark.parametrize("name", ["job", "instance"])
def test_template_job_and_instance_rule(name: str) -> None:
    variable = variables()[name]
    assert (variable["label"], variable["multi"], variable["allValue"]) == (name.title(), True, ".+")


def test_template_label_promql_rule(require_program: Find, tmp_path: Path) -> None:
    sources = [re.fullmatch(r"label_values\((.+), (\w+)\)", one["query"]["query"]) for one in variables().values()]
    assert [source and source[2] for source in sources] == list(variables())
    check_syntax(require_program("promtool"), tmp_path, [interpolate(source[1]) for source in sources if source])


def test_template_on_time_change_reload_rule() -> None:
    assert {one["refresh"] for one in variables().values()} == {2}


def test_uneditable_dashboard_rule() -> None:
    assert dashboard()["editable"] is False


def datasources(part: Any) -> Iterator[dict[str, str]]:
    """Every reference to a datasource in a part of the dashboard."""
    for child in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
        yield from datasources(child)
    if isinstance(part, dict) and "datasource" in part:
        yield part["datasource"]


def test_panel_datasource_rule() -> None:
    assert {source["uid"] for source in datasources(dashboard())} == {"${datasource}"}
    assert all("datasource" in part for found in panels() for part in (found, *found["targets"]))


def test_panel_title_description_rule() -> None:
    for found in panels():
        assert found["title"]
        assert found["description"].endswith("."), found["title"]


def test_panel_units_rule() -> None:
    for found in panels():
        units = [found["fieldConfig"]["defaults"]["unit"]]
        for override in found["fieldConfig"]["overrides"]:
            units += [each["value"] for each in override["properties"] if each["id"] == "unit"]
        assert set(units) <= {"short", "s", "percentunit", "dateTimeFromNow", "dateTimeAsSystem"}, found["title"]


def test_panel_no_targets_rule() -> None:
    assert all(found["targets"] for found in panels())


def check_syntax(promtool: Path, folder: Path, queries: list[str]) -> None:
    made = [{"record": f"panel:query:{number}", "expr": expr} for number, expr in enumerate(queries)]
    file = folder / "panels.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": made}]}), "utf-8")
    run(promtool, "check", "rules", file)


def test_target_promql_rule(require_program: Find, tmp_path: Path) -> None:
    queries = [query(found["title"], target["refId"]) for found in panels() for target in found["targets"]]
    check_syntax(require_program("promtool"), tmp_path, queries)


def test_target_rate_interval_and_counter_agg_rule() -> None:
    """There is no counter, so nothing to take a rate of."""
    assert not re.search(r"rate\(|increase\(|_total\b", json.dumps(panels()))


@pytest.mark.parametrize("name", ["job", "instance", "site"])
def test_target_job_and_instance_and_site_rule(name: str) -> None:
    for expr in (target["expr"] for found in panels() for target in found["targets"]):
        for metric, matchers in re.findall(r"\b(mydb_backup_\w+)(\{[^}]*\})?", expr):
            assert f'{name}=~"${name}"' in matchers, f"{metric} in {expr}"


def test_every_container_query_obeys_every_filter() -> None:
    of_audits = {"Age of the audit", "Last audit run", "The audit itself"}
    for found in panels():
        for target in found["targets"]:
            if found["title"] not in of_audits and (found["title"], target["refId"]) != ("Sites", "E"):
                assert all(f'{name}=~"${name}"' in target["expr"] for name in variables()), found["title"]


def test_tables_of_containers_lead_to_the_runbook() -> None:
    for title in ("Containers that need attention", "Coverage", "Durations"):
        links = re.findall(r'"url": "([^"]+)"', json.dumps(panel(title)["fieldConfig"]))
        assert links, title
        for base, _, anchor in (link.partition("#") for link in links):
            assert base == RUNBOOK_BASE
            assert anchor in {*headings(), "${__data.fields.anchor}"}


BAD = container("sales", "missed", 2, owner="genomics")
GOOD = container("wiki", "ok", 0, c_id="2", engine="MariaDB", policy="Weekly")
SOUTH = [*audit(site="south"), *container("sales", "late", 1, site="south", owner="clinic")]
FIGURES = ("Critical", "Warning", "Accepted", "Fine")


def figures(*values: float, **chosen: str) -> list[dict[str, Any]]:
    """What the counting panels are to show."""
    return [expect(query(title, **chosen), ({}, value)) for title, value in zip(FIGURES, values, strict=True)]


def test_figures_count_what_the_filters_select(require_program: Find, tmp_path: Path) -> None:
    check_expressions(
        require_program("promtool"),
        tmp_path,
        [*audit(), *BAD, *GOOD, *SOUTH],
        *figures(1, 1, 0, 1),
        *figures(0, 0, 0, 1, engine="MariaDB"),
        *figures(0, 0, 0, 1, policy="Weekly"),
        *figures(1, 0, 0, 0, owner="genomics"),
        *figures(0, 1, 0, 0, site="south"),
        *figures(0, 0, 0, 0, engine="Neo4j"),
        *figures(-1, -1, -1, -1, instance="audit9:9100"),
        *figures(-1, -1, -1, -1, job="again"),
        expect(query("Age of the audit"), ({}, 1800)),
        expect(query("Last audit run"), ({}, 1)),
    )


def test_accepted_problems_stand_apart(require_program: Find, tmp_path: Path) -> None:
    accepted = series("mydb_backup_exception_until_timestamp_seconds", 86400, name="sales", c_id="1")
    ended = series("mydb_backup_exception_until_timestamp_seconds", 60, name="sales", c_id="1", site="south")
    row = HOST | {"name": "sales", "c_id": "1", "status": "missed"}
    described = {"engine": "Postgres", "policy": "Daily", "owner": "genomics"}
    check_expressions(
        require_program("promtool"),
        tmp_path,
        [*audit(), *BAD, *GOOD, *SOUTH, accepted, ended],
        *figures(0, 1, 1, 1),
        expect(query("Accepted problems"), (row | described, 86400 * 1000)),
        expect(f"count({query('Containers that need attention')})", ({}, 1)),
    )


def test_a_line_a_site(require_program: Find, tmp_path: Path) -> None:
    south, east = HOST | {"site": "south"}, HOST | {"site": "east"}
    stale = [*audit(age=26 * 3600, site="east"), *container("sales", "ok", 0, site="east")]
    check_expressions(
        require_program("promtool"),
        tmp_path,
        [*audit(), *BAD, *GOOD, *SOUTH, *stale],
        expect(query("Sites", "A"), (HOST, 9), (south, 5), (east, 10)),
        expect(query("Sites", "B"), (HOST, 1)),
        expect(query("Sites", "C"), (south, 1)),
        expect(query("Sites", "D"), (HOST, 0.75), (south, 0.5)),
        expect(query("Sites", "E"), (HOST, 1800), (south, 1800), (east, 26 * 3600 + 1800)),
        expect(query("Sites", "A", site="south"), (south, 5)),
    )


LOST = {"series": 'mydb_backup_audit_timestamp_seconds{job="node",instance="lost:9100"}', "values": "0 0 stale"}


@pytest.mark.parametrize(
    "site",
    [
        pytest.param([], id="no-audit"),
        pytest.param(audit(age=26 * 3600), id="stale"),
        pytest.param(audit(success=0), id="failed"),
        pytest.param([*audit(), *audit(age=26 * 3600, site="south")], id="one-of-two-stale"),
        pytest.param([*audit(), LOST], id="one-of-two-lost"),
    ],
)
def test_figures_are_unknown_without_a_current_audit(site: list[Series], require_program: Find, tmp_path: Path) -> None:
    check_expressions(require_program("promtool"), tmp_path, [*site, *BAD, *GOOD], *figures(-1, -1, -1, -1))


def test_the_table_shows_problems_and_not_what_is_fine(require_program: Find, tmp_path: Path) -> None:
    title = "Containers that need attention"
    key = {**HOST, "name": "sales", "c_id": "1"}
    described = {"status": "missed", "engine": "Postgres", "policy": "Daily", "owner": "genomics"}
    row = key | described | {"anchor": "mydbbackupmissed"}
    check_expressions(
        require_program("promtool"),
        tmp_path,
        [*audit(), *BAD, *GOOD],
        expect(query(title, "A"), (row, 2)),
        expect(query(title, "B"), (row, -90000 * 1000)),
        expect(query(title, "C"), (row, 3600 + 1800)),
        expect(query("Status over the last 30 days", owner="genomics"), (key, 9)),
        expect(query("Status over the last 30 days", engine="MariaDB"), ({**HOST, "name": "wiki", "c_id": "2"}, 0)),
    )


@pytest.mark.parametrize("status", ["no_policy", "failed", "stalled", "missed", "late", "running", "paused"])
def test_every_status_that_needs_attention_leads_to_its_alert(
    status: str, require_program: Find, tmp_path: Path
) -> None:
    found = f"group by (anchor) ({query('Containers that need attention')})"
    (anchor,) = (each for each in headings() if re.fullmatch(f"mydbbackup(still)?{status.replace('_', '')}", each))
    site = [*audit(), *container("sales", status, 1)]
    check_expressions(require_program("promtool"), tmp_path, site, expect(found, ({"anchor": anchor}, 1)))


def test_an_audit_that_stopped_is_the_first_row_of_the_table(require_program: Find, tmp_path: Path) -> None:
    title = "Containers that need attention"
    promtool = require_program("promtool")
    nothing = {"name": "(the audit itself)", "status": "unknown", "anchor": "the-alerts"}
    stopped = [*audit(age=26 * 3600), *BAD, *GOOD]
    check_expressions(
        promtool,
        tmp_path,
        stopped,
        expect(query(title, "A"), (HOST | nothing, 3)),
        expect(query(title, "B"), (HOST | nothing, -26 * 3600 * 1000)),
        expect(query("Status over the last 30 days")),
        expect(query("Containers by status")),
        expect(query("Age of the audit"), ({}, 26 * 3600 + 1800)),
    )
    check_expressions(promtool, tmp_path, [], expect(query(title, "A"), (nothing, 3)))
