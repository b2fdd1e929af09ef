"""The alert rules, their runbook and the dashboard, checked with promtool and amtool."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import metrics
from policy import Audit, Rules
from tests.builders import NOW, TOP, Site

MONITORING = Path(__file__).parent.parent / "monitoring"
RUNBOOK_BASE = "https://runbook.example.org/README.md"

OUR_METRICS = {metric.name for metric in (*metrics.PER_CONTAINER, *metrics.FROM_PAST)} | {
    family.name
    for family in (
        *metrics.container_families([], Rules()),
        *metrics.audit_families(Audit(NOW, [], newest_row=NOW)),
        *metrics.run_families(True, 0, 0, 0.0, "1"),
    )
}
NODE_EXPORTER_METRICS = {"node_textfile_scrape_error"}

HOST = {"job": "node", "instance": "audit1:9100"}

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


def headings() -> dict[str, str]:
    """The runbook's headings, by the anchor that GitHub, GitLab and others give them."""
    texts = re.findall(r"^#+ +(.+)$", (MONITORING / "README.md").read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", text.lower()).replace(" ", "-"): text for text in texts}


def dashboard() -> dict[str, Any]:
    board: dict[str, Any] = json.loads((MONITORING / "dashboard.json").read_text("utf-8"))
    return board


def panel(title: str) -> dict[str, Any]:
    (found,) = (panel for panel in dashboard()["panels"] if panel["title"] == title)
    assert isinstance(found, dict)
    return found


def query(title: str, ref: str = "A", **chosen: str) -> str:
    """A panel's query as Grafana sends it: with the chosen filters, else with all values."""
    (expr,) = (target["expr"] for target in panel(title)["targets"] if target["refId"] == ref)
    return re.sub(r"\$(\w+)", lambda match: chosen.get(match[1], ".*"), expr)


def queries() -> Iterator[tuple[str, str]]:
    """Every panel's title and query, with all values chosen in the filters."""
    for found in dashboard()["panels"]:
        for target in found["targets"]:
            yield found["title"], query(found["title"], target["refId"])


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
    return [
        series(
            "mydb_backup_container_info", 1, name=name, c_id=c_id, **{"engine": "Postgres", "policy": "Daily"} | labels
        ),
        series("mydb_backup_status", 1, name=name, c_id=c_id, status=status),
        series("mydb_backup_severity", severity, name=name, c_id=c_id),
        series("mydb_backup_due_timestamp_seconds", -3600, name=name, c_id=c_id),
        series("mydb_backup_last_success_timestamp_seconds", -90000, name=name, c_id=c_id),
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


# ---- Alerts ---------------------------------------------------------------------------------------------------


def test_prometheus_accepts_the_rules(require_program: Find) -> None:
    promtool = require_program("promtool")
    run(promtool, "check", "rules", "alerts.yml")


def test_every_alert_fires_and_clears_when_it_should(require_program: Find) -> None:
    promtool = require_program("promtool")
    run(promtool, "test", "rules", "alerts_test.yml")


@pytest.mark.parametrize("name", alerts())
def test_an_alert_is_tested_before_and_while_and_after_it_fires(name: str) -> None:
    for test in load("alerts_test.yml")["tests"]:
        firing = [bool(case["exp_alerts"]) for case in test.get("alert_rule_test", []) if case["alertname"] == name]
        if firing[:1] == firing[-1:] == [False] and any(firing):
            return
    pytest.fail(f"no test of alerts_test.yml sees {name} first quiet, then firing, then quiet again")


@pytest.mark.parametrize(("name", "alert"), alerts().items())
def test_an_alert_has_the_form_that_the_site_relies_on(name: str, alert: dict[str, Any]) -> None:
    assert re.fullmatch(r"MyDBBackup[A-Z]\w+", name)
    assert alert["labels"].keys() == {"severity"}
    assert alert["labels"]["severity"] in ("critical", "warning", "info")
    assert alert["annotations"].keys() == {"summary", "description", "runbook_url"}
    assert alert["annotations"]["summary"].endswith(".")
    assert "Next step: " in alert["annotations"]["description"]


@pytest.mark.parametrize(("name", "alert"), alerts().items())
def test_runbook_url_leads_to_the_alerts_own_heading(name: str, alert: dict[str, Any]) -> None:
    base, _, anchor = alert["annotations"]["runbook_url"].partition("#")
    assert base == RUNBOOK_BASE
    assert headings()[anchor] == name


def test_the_runbook_tells_of_every_alert_what_a_person_needs() -> None:
    sections = re.split(r"^### +", (MONITORING / "README.md").read_text("utf-8"), flags=re.MULTILINE)[1:]
    assert [section.split("\n", 1)[0] for section in sections] == list(alerts())
    for section in sections:
        name = section.split("\n", 1)[0]
        assert f"*{alerts()[name]['labels']['severity']}*" in section
        for part in ("- **At stake**", "- **Look**", "psql", "- **Do**", "- **Clears**"):
            assert part in section, f"{name}: {part}"


def test_every_psql_line_of_the_runbook_works(site: Site) -> None:
    lines = re.findall(r"""psql -A?t?c (["'])(.+?)\1""", (MONITORING / "README.md").read_text("utf-8"))
    assert len(lines) >= len(alerts()) - 1
    with site.engine.connect() as connection:
        for _, sql in lines:
            connection.exec_driver_sql(sql)


def test_the_runbook_names_the_unit_that_deploy_installs() -> None:
    units = re.findall(r"journalctl -u (backup[\w.-]+)", (MONITORING / "README.md").read_text("utf-8"))
    assert units
    assert all((TOP / "deploy" / unit).exists() for unit in units)


def test_the_sed_line_of_the_runbook_sets_every_runbook_url() -> None:
    (line,) = re.findall(r"^sed -i ('.+') alerts\.yml alerts_test\.yml$", (MONITORING / "README.md").read_text(), re.M)
    for name in ("alerts.yml", "alerts_test.yml"):
        changed = run("sed", line.strip("'"), name)
        assert "runbook_url: https://wiki.example.org/backup-audit#mydbbackupfailed" in changed
        assert f"runbook_url: {RUNBOOK_BASE}" not in changed


def test_the_prometheus_configuration_of_the_runbook_is_valid(require_program: Find, tmp_path: Path) -> None:
    promtool = require_program("promtool")
    (config,) = re.findall(r"^```yaml\n(.+?)^```", (MONITORING / "README.md").read_text("utf-8"), re.M | re.S)
    file = tmp_path / "prometheus.yml"
    file.write_text(config, "utf-8")
    run(promtool, "check", "config", "--syntax-only", file)


def test_alerts_use_metrics_that_exist() -> None:
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    used = metrics_in((MONITORING / "alerts.yml").read_text("utf-8"))
    assert used <= OUR_METRICS | NODE_EXPORTER_METRICS | recorded
    assert recorded <= used


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
    ],
)
def test_joins_tell_hosts_jobs_and_site_wide_jobs_apart(
    alert: str, status: str, metric: str, value: float, elsewhere: float, require_program: Find, tmp_path: Path
) -> None:
    promtool = require_program("promtool")
    # the same container under a second job, on a second host, another with its c_id, another with its name
    bad = HOST | {"name": "offsite", "c_id": "0"}
    others = [bad | {"job": "again"}, bad | {"instance": "audit2:9100"}, bad | {"name": "archive"}, bad | {"c_id": "5"}]
    site = [one for host in (bad, *others[:2]) for one in audit(job=host["job"], instance=host["instance"])]
    for labels in (bad, *others):
        owner = "genomics" if labels is bad else "clinic"
        site += [
            series("mydb_backup_container_info", 1, **labels, owner=owner),
            series("mydb_backup_status", 1, **labels, status=status if labels is bad else "ok"),
            series(metric, value if labels is bad else elsewhere, **labels),
            series("mydb_backup_typical_duration_seconds", 600, **labels),
        ]
    fired = expect(
        f'sum by (job, instance, name, c_id, owner) (ALERTS{{alertname="MyDBBackup{alert}"}})',
        (bad | {"owner": "genomics"}, 1),
    )
    check_expressions(promtool, tmp_path, site, fired)


def host(labels: dict[str, str], age: int = 0, success: int = 1, missed: int = 1, silent: int = 0) -> list[Series]:
    """An audit host with a missed and a late container, a log as long silent as said, and rows from the future."""
    one, two = labels | {"name": "sales", "c_id": "7"}, labels | {"name": "wiki", "c_id": "9"}
    return [
        *audit(age, success, **labels),
        series("mydb_backup_containers", missed, **labels, status="missed"),
        series("mydb_backup_log_newest_timestamp_seconds", -age - silent, **labels),
        series("mydb_backup_log_rows_ignored", 1, **labels, reason="future"),
        series("mydb_backup_container_info", 1, **one),
        series("mydb_backup_status", 1, **one, status="missed"),
        series("mydb_backup_due_timestamp_seconds", -1, **one),
        series("mydb_backup_container_info", 1, **two),
        series("mydb_backup_status", 1, **two, status="late"),
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
        ({"silent": 2 * DAY}, {SILENT, FUTURE}, {"silent": 2 * DAY, "missed": 0}, {MISSED, LATE, FUTURE}),
        ({"silent": 2 * DAY}, {SILENT, FUTURE}, {"silent": 2 * DAY, "age": 2 * DAY}, {STALE}),
        ({"age": 2 * DAY}, {STALE}, {"success": 0}, {FAILED}),
    ],
)
def test_what_happens_on_one_audit_host_is_not_taken_for_another(
    here: dict[str, int],
    here_fires: set[str],
    there: dict[str, int],
    there_fires: set[str],
    require_program: Find,
    tmp_path: Path,
) -> None:
    promtool = require_program("promtool")
    others = [HOST | {"job": "again"}, HOST | {"instance": "audit2:9100"}]
    site = [*host(HOST, **here), *(one for other in others for one in host(other, **there))]
    fires = [(HOST, here_fires), *((other, there_fires) for other in others)]
    samples = [(labels | {"alertname": alert}, 1.0) for labels, names in fires for alert in names]
    check_expressions(promtool, tmp_path, site, expect("count by (job, instance, alertname) (ALERTS)", *samples))


def test_alertmanager_accepts_the_example(require_program: Find) -> None:
    amtool = require_program("amtool")
    run(amtool, "check-config", "alertmanager.example.yml")


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


@pytest.mark.skipif(sys.version_info < (3, 11), reason="the Grafana Foundation SDK needs Python 3.11")
def test_dashboard_json_is_what_dashboard_py_builds() -> None:
    run(sys.executable, "dashboard.py", "--check")


def datasources(part: Any) -> Iterator[dict[str, str]]:
    """Every reference to a datasource in a part of the dashboard."""
    for child in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
        yield from datasources(child)
    if isinstance(part, dict) and "datasource" in part:
        yield part["datasource"]


def test_the_dashboard_imports_anywhere() -> None:
    board = dashboard()
    assert not board.keys() & {"id", "uid", "__inputs", "version"}
    assert board["templating"]["list"][0]["type"] == "datasource"
    assert {source["uid"] for source in datasources(board)} == {"${datasource}"}
    assert len({found["id"] for found in board["panels"]}) == len(board["panels"])


def test_every_panel_is_explained_and_has_no_raw_numbers() -> None:
    for found in dashboard()["panels"]:
        assert found["description"].endswith("."), found["title"]
        assert '"unit"' in json.dumps(found["fieldConfig"]), found["title"]


def test_dashboard_queries_use_metrics_that_exist() -> None:
    assert metrics_in(json.dumps(dashboard())) <= OUR_METRICS


def test_every_container_query_obeys_every_filter() -> None:
    names = [variable["name"] for variable in dashboard()["templating"]["list"][1:]]
    assert names == ["instance", "engine", "policy", "owner"]
    for found in dashboard()["panels"]:
        for target in found["targets"]:
            wanted = (
                names if found["title"] not in ("Age of the audit", "Last audit run", "The audit itself") else names[:1]
            )
            assert all(f'{name}=~"${name}"' in target["expr"] for name in wanted), found["title"]


def test_prometheus_accepts_every_query(require_program: Find, tmp_path: Path) -> None:
    promtool = require_program("promtool")
    panel_rules = [{"record": f"panel:query:{number}", "expr": expr} for number, (_, expr) in enumerate(queries())]
    file = tmp_path / "panels.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": panel_rules}]}), "utf-8")
    run(promtool, "check", "rules", file)


BAD = container("sales", "missed", 2, owner="genomics")
GOOD = container("wiki", "ok", 0, c_id="2", engine="MariaDB", policy="Weekly")
FIGURES = ("Critical", "Warning", "Fine")


def figures(*values: float, **chosen: str) -> list[dict[str, Any]]:
    """What the three counting panels are to show."""
    return [expect(query(title, **chosen), ({}, value)) for title, value in zip(FIGURES, values, strict=True)]


def test_figures_count_what_the_filters_select(require_program: Find, tmp_path: Path) -> None:
    site = [*audit(), *BAD, *GOOD]
    check_expressions(
        require_program("promtool"),
        tmp_path,
        site,
        *figures(1, 0, 1),
        *figures(0, 0, 1, engine="MariaDB"),
        *figures(0, 0, 1, policy="Weekly"),
        *figures(1, 0, 0, owner="genomics"),
        *figures(0, 0, 0, engine="Neo4j"),
        *figures(-1, -1, -1, instance="audit9:9100"),
        expect(query("Age of the audit"), ({}, 1800)),
        expect(query("Last audit run"), ({}, 1)),
    )


@pytest.mark.parametrize(
    "site",
    [
        pytest.param([], id="no-audit"),
        pytest.param(audit(age=26 * 3600), id="stale"),
        pytest.param(audit(success=0), id="failed"),
        pytest.param([*audit(), *audit(age=26 * 3600, instance="audit2:9100")], id="one-of-two-stale"),
        pytest.param(
            [
                *audit(),
                {
                    "series": 'mydb_backup_audit_timestamp_seconds{job="node",instance="lost:9100"}',
                    "values": "0 0 stale",
                },
            ],
            id="one-of-two-lost",
        ),
    ],
)
def test_figures_are_unknown_without_a_current_audit(site: list[Series], require_program: Find, tmp_path: Path) -> None:
    check_expressions(require_program("promtool"), tmp_path, [*site, *BAD, *GOOD], *figures(-1, -1, -1))


def test_the_table_shows_problems_and_not_what_is_fine(require_program: Find, tmp_path: Path) -> None:
    title = "Containers that need attention"
    row = HOST | {
        "name": "sales",
        "c_id": "1",
        "status": "missed",
        "engine": "Postgres",
        "policy": "Daily",
        "owner": "genomics",
    }
    check_expressions(
        require_program("promtool"),
        tmp_path,
        [*audit(), *BAD, *GOOD],
        expect(query(title, "A"), (row, 2)),
        expect(query(title, "B"), (row, -90000 * 1000)),
        expect(query(title, "C"), (row, 3600 + 1800)),
        expect(query("Status over the last 30 days", owner="genomics"), ({**HOST, "name": "sales", "c_id": "1"}, 9)),
        expect(query("Status over the last 30 days", engine="MariaDB"), ({**HOST, "name": "wiki", "c_id": "2"}, 0)),
    )


def test_an_audit_that_stopped_is_the_first_row_of_the_table(require_program: Find, tmp_path: Path) -> None:
    title = "Containers that need attention"
    promtool = require_program("promtool")
    row = HOST | {"name": "(the audit itself)", "status": "unknown"}
    stopped = [*audit(age=26 * 3600), *BAD, *GOOD]
    check_expressions(
        promtool,
        tmp_path,
        stopped,
        expect(query(title, "A"), (row, 3)),
        expect(query(title, "B"), (row, -26 * 3600 * 1000)),
        expect(query("Status over the last 30 days")),
        expect(query("Containers by status")),
        expect(query("Age of the audit"), ({}, 26 * 3600 + 1800)),
    )
    nothing = {"name": "(the audit itself)", "status": "unknown"}
    check_expressions(promtool, tmp_path, [], expect(query(title, "A"), (nothing, 3)))
