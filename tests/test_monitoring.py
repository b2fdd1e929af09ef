"""The alert rules, their mails and their runbook, checked with promtool and amtool."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from audit.policy import Status
from tests.builders import TOP, Site
from tests.postgres import ROLE, read_only_role
from tests.programs import require
from tests.promtool import (
    ANCHORS,
    DAY,
    HOST,
    MONITORING,
    OLD,
    RUNBOOK,
    RUNBOOK_URL,
    Case,
    Series,
    audit_series,
    check,
    container_series,
    expect,
    input_series,
    output_of,
    promtool,
)

COMMAND = "/opt/backup_audit/backup_audit.py"
OTHER_AUDITS = [{"job": "again"}, {"instance": "audit2:9100"}, {"site": "south"}]
"""What differs in an audit of a second job, of a second host, and of a second site on the same host."""
RULE_TESTS = ("alerts_test.yml", "days_test.yml")


@cache
def load(name: str) -> Any:
    """A YAML file of the folder, which nobody changes."""
    return yaml.safe_load((MONITORING / name).read_text("utf-8"))


RULES: list[dict[str, Any]] = load("alerts.yml")["groups"][0]["rules"]
"""The rules that find something; those of the dashboard have a group of their own."""
ALERTS = {rule["alert"]: rule for rule in RULES if "alert" in rule}


def sections(chapter: str) -> dict[str, str]:
    """The sections of a chapter of the runbook, by their headings."""
    (found,) = (part for part in RUNBOOK.split("\n## ") if part.startswith(f"{chapter}\n"))
    return {part.split("\n", 1)[0]: part for part in found.split("\n### ")[1:]}


STATUSES = {severity: {each.value for each in Status if each.severity == severity} for severity in (1, 2)}


# ---- The rules ------------------------------------------------------------------------------------------------


def test_prometheus_accepts_the_rules() -> None:
    assert "SUCCESS" in promtool("check", "rules", "--lint=all", "--lint-fatal", "alerts.yml")


def test_every_alert_fires_and_clears_when_it_should() -> None:
    promtool("test", "rules", *RULE_TESTS)


def test_every_alert_is_tested_before_and_while_it_fires() -> None:
    assert len(ALERTS) == sum("alert" in rule for rule in RULES), "an alert's name is used twice"
    cases = [case for file in RULE_TESTS for test in load(file)["tests"] for case in test.get("alert_rule_test", [])]
    for name in ALERTS.keys() - {"MyDBBackupContainersVanished"}:
        firing = [bool(case["exp_alerts"]) for case in cases if case["alertname"] == name]
        assert not firing[0], name
        assert any(firing), name


@pytest.mark.parametrize(("name", "alert"), ALERTS.items())
def test_an_alert_has_the_form_that_routes_and_mails_rely_on(name: str, alert: dict[str, Any]) -> None:
    assert re.fullmatch(r"MyDBBackup[A-Z]\w+", name)
    assert alert["labels"].keys() - {"status"} == {"severity", "scope"}
    assert alert["labels"]["scope"] in ("audit", "site", "container")
    texts = alert["annotations"]
    assert texts.keys() == {"summary", "description", "next_step", "runbook_url"}
    command = texts["next_step"].partition(COMMAND)
    if command[1]:
        assert command[0].endswith("sudo -u backup_audit ")
        configured = "{{- with $labels.site }} --config /etc/backup_audit/{{ . }}.py{{ end }} "
        assert re.fullmatch(r" ?" + re.escape(configured) + r"(-[\w-]+)?({{ \$labels.c_id }})?", command[2])
    assert COMMAND not in texts["summary"] + texts["description"], "owners get these"
    base, _, target = texts["runbook_url"].partition("#")
    of_status = name in ("MyDBBackupCritical", "MyDBBackupWarning")
    assert (base, target in ANCHORS, target == "{{ $labels.status }}") == (RUNBOOK_URL, not of_status, of_status)


def test_critical_and_warning_share_a_text_and_tell_of_every_status() -> None:
    critical, warning = ALERTS["MyDBBackupCritical"], ALERTS["MyDBBackupWarning"]
    assert critical["annotations"] == warning["annotations"]
    for alert, severity in ((critical, 2), (warning, 1)):
        (pattern,) = re.findall(r'status=~"([\w|]+)"', alert["expr"])
        assert set(pattern.split("|")) == STATUSES[severity]
        assert all(f'"{status}" }}}}' in critical["annotations"]["summary"] for status in STATUSES[severity])


def test_every_join_and_every_query_of_a_text_matches_the_site() -> None:
    for rule in RULES:
        for matching in re.findall(r"(?:\bon|\bby) \(([^)]*)\)", rule["expr"]):
            of_host = "node_textfile" in rule["expr"] or "exported_site" in rule["expr"]
            assert not matching or of_host or matching.startswith("job, instance, site"), rule
        asked = rule.get("annotations", {}).get("description", "")
        assert asked.count("job=%q,instance=%q,site=%q") == asked.count("job=%q"), rule


KINDS = {status: ("Critical" if status in STATUSES[2] else "Warning") for status in STATUSES[1] | STATUSES[2]}
KINDS |= {"short": "SuspiciouslyShort", "dump_expired": "DumpExpired", "dump_expires": "DumpExpires"}


def status_and_metrics(kind: str, ill: bool) -> tuple[str, dict[str, float | str]]:
    """The status of a container and its further metrics, for what is wrong with it or not."""
    if kind == "short":
        return "ok", {"last_duration_seconds": 1 if ill else 600, "typical_duration_seconds": 600}
    if kind.startswith("dump"):
        kept = {"dump_expires": 6 * DAY, "dump_expired": -31 * DAY}[kind]
        return "failed", {"kept_until_timestamp_seconds": kept if ill else 90 * DAY}
    return (kind if ill else "ok"), {"due_timestamp_seconds": -3 * DAY}


def test_joins_distinguish_audits_and_site_wide_jobs(tmp_path: Path) -> None:
    """Of each kind one job is ill. The others are well; or they are all as bad, and accepted."""
    sites = []
    for home, accepted in ((HOST, False), (HOST, True), (HOST | {"site": "north"}, False)):
        kinds = [kind for kind in KINDS if not (accepted and kind == "dump_expires")]  # no exception hides that
        elsewhere = [home | other for other in OTHER_AUDITS]
        inputs = audit_series(home, 3 * len(kinds))
        inputs += [one for each in elsewhere for one in audit_series(each, len(kinds))]
        cases = []
        for kind in kinds:
            bad = home | {"name": kind, "c_id": "0"}
            others = [bad | other for other in OTHER_AUDITS] + [bad | {"name": f"{kind} 2"}, bad | {"c_id": "5"}]
            for labels in (bad, *others):
                status, metrics = status_and_metrics(kind, ill=accepted or labels is bad)
                if accepted and labels is not bad:
                    metrics["exception_until_timestamp_seconds"] = DAY
                owner = "genomics" if labels is bad else "clinic"
                inputs += container_series(labels, status, owner, "Postgres", **metrics)
            fired = f'ALERTS{{alertname="MyDBBackup{KINDS[kind]}", name=~"{kind}( 2)?"}}'
            fired = f"sum by (job, instance, site, name, c_id, owner) ({fired})"
            cases.append(expect(fired, (bad | {"owner": "genomics"}, 1)))
        sites.append((inputs, cases))
    check(tmp_path, *sites)


SITES: list[tuple[dict[str, Any], set[str], dict[str, Any], set[str]]] = [
    ({}, {"Critical", "Warning"}, {"age": 2 * DAY, "success": 0}, {"AuditFailed"}),
    ({}, {"Critical", "Warning"}, {"age": OLD}, {"AuditStale"}),
    ({}, {"Critical", "Warning"}, {"run_age": OLD}, {"AuditStale"}),
    ({"silent": 2 * DAY}, {"SiteSilent"}, {}, {"Critical", "Warning"}),
    ({"silent": 2 * DAY}, {"SiteSilent"}, {"silent": 2 * DAY, "age": OLD}, {"AuditStale"}),
    ({"age": OLD}, {"AuditStale"}, {"success": 0}, {"AuditFailed"}),
    ({"containers": 3}, {"Critical", "Warning"}, {"containers": 1}, {"SeriesLost"}),
]
"""Here, and what fires; there, and what fires. Each site has a missed and a late container."""


def test_findings_of_one_audit_are_not_attributed_to_another(tmp_path: Path) -> None:
    sites = []
    for here, here_fires, there, there_fires in SITES:
        samples, inputs = [], []
        for other in ({}, *OTHER_AUDITS):
            home, state, fires = HOST | other, there if other else here, there_fires if other else here_fires
            inputs += audit_series(home, **{"containers": 2, **state})
            inputs += container_series(home | {"name": "sales", "c_id": "7"}, "missed")
            inputs += container_series(home | {"name": "wiki", "c_id": "9"}, "late")
            samples += [(home | {"alertname": f"MyDBBackup{alert}"}, 1.0) for alert in fires]
        sites.append((inputs, [expect("count by (job, instance, site, alertname) (ALERTS)", *samples)]))
    check(tmp_path, *sites)


def test_a_family_that_node_exporter_drops_is_noticed(tmp_path: Path) -> None:
    whole = [*audit_series(HOST, 1), *container_series(HOST | {"name": "sales", "c_id": "7"}, "failed")]
    fired = [expect("count by (alertname) (ALERTS)", ({"alertname": "MyDBBackupSeriesLost"}, 1))]
    families = (f"mydb_backup_{name}{{" for name in ("status", "severity", "container_info", "containers"))
    rests = ([each for each in whole if not each["series"].startswith(family)] for family in families)
    check(tmp_path, *((rest, fired) for rest in rests))


def vanishing(before: int, after: int) -> list[Series]:
    """A site of which containers go after the first of two days; a step is half a day."""
    stamps = dict.fromkeys(("audit_timestamp_seconds", "audit_run_timestamp_seconds"), f"0x1 {DAY}x1")
    inputs = input_series(HOST, audit_success="1x3", **stamps)
    inputs += input_series(HOST | {"status": "ok"}, containers=f"{before}x1 {after}x1")
    for number in range(before):
        of_it = HOST | {"name": f"lab-{number:02}", "c_id": str(number)}
        values = "1x3" if number < after else "1x1 stale"
        inputs += input_series(of_it, severity=values, container_info=values)
        inputs += input_series(of_it | {"status": "ok"}, status=values)
    return inputs


def test_containers_vanish_when_three_and_a_quarter_of_them_go(tmp_path: Path) -> None:
    sites = []
    for before, after, gone in (
        (12, 9, ""),  # exactly a quarter
        (5, 3, ""),  # two only
        (5, 2, "lab-02, lab-03, lab-04."),
        (22, 0, ", ".join(f"lab-{number:02}" for number in range(20)) + ", ... (22 in all)."),
    ):
        texts = ALERTS["MyDBBackupContainersVanished"]["annotations"] | {
            "summary": f"{before - after} containers are no longer audited by audit1:9100.",
            "description": "Within two days, their rows disappeared from DB4Sci's table container_state. If the "
            f"databases still run, nobody watches their backups. Gone: {gone}",
        }
        fired = {"exp_labels": HOST | {"severity": "critical", "scope": "site"}, "exp_annotations": texts}
        cases: list[Case] = [
            {"alertname": "MyDBBackupContainersVanished", "eval_time": at, "exp_alerts": expected}
            for at, expected in (("12h", []), ("24h", [fired] if gone else []))
        ]
        sites.append((vanishing(before, after), cases))
    check(tmp_path, *sites, step="12h")


# ---- Alertmanager ---------------------------------------------------------------------------------------------


def test_alertmanager_accepts_the_example() -> None:
    output_of(require("amtool", "prometheus-alertmanager"), "check-config", "alertmanager.example.yml")
    config = load("alertmanager.example.yml")
    assert re.fullmatch(r"\d+h", config["route"]["repeat_interval"])
    assert 24 < int(config["route"]["repeat_interval"][:-1]) < 120, "longer than a day, shorter than its memory"
    assert "repeat_interval" not in json.dumps(config["route"]["routes"])


@pytest.mark.parametrize(
    ("labels", "receivers"),
    [
        ("scope=container severity=critical contact=ada@example.org owner=ada", "owner,backup-team"),
        ("scope=container severity=critical contact=ada@example.org owner=genomics", "owner,genomics,backup-team"),
        ("scope=container severity=critical contact=ada@example.com owner=ada", "backup-team"),
        ("scope=container severity=critical", "backup-team"),
        ("scope=container severity=warning contact=ada@example.org owner=genomics", "backup-team"),
        ("scope=container severity=info contact=ada@example.org owner=genomics", "backup-team"),
        ("scope=site severity=critical contact=ada@example.org", "backup-team"),
        ("scope=audit severity=critical", "backup-team"),
    ],
)
def test_owners_hear_what_is_critical_about_their_own(labels: str, receivers: str) -> None:
    config = "--config.file=alertmanager.example.yml"
    said = output_of(require("amtool", "prometheus-alertmanager"), "config", "routes", "test", config, *labels.split())
    assert said.strip() == receivers


def alert(name: str, severity: str, status: str, firing: bool = True) -> dict[str, Any]:
    return {
        "status": "firing" if firing else "resolved",
        "labels": {"name": name, "severity": severity, "status": status, "owner": "ada", "alertname": "MyDBBackupX"},
        "annotations": {
            "summary": f"{name} of ada: {status}.",
            "description": f"About {name}.",
            "next_step": f"sudo -u backup_audit {COMMAND} {name}",
            "runbook_url": f"{RUNBOOK_URL}#{status}",
        },
        "startsAt": "2026-03-14T07:01:00Z",
    }


def mail(folder: Path, part: str, alerts: Sequence[dict[str, Any]]) -> str:
    """A part of a mail about these alerts, as Alertmanager makes it."""
    data = folder / "data.json"
    data.write_text(json.dumps({"alerts": alerts, "commonLabels": {"site": "north"}, "groupLabels": {}}), "utf-8")
    text = f'--template.text={{{{ template "backup_audit.{part}" . }}}}'
    amtool = require("amtool", "prometheus-alertmanager")
    made = output_of(amtool, "template", "render", "--template.glob=mail.tmpl", text, f"--template.data={data}")
    return made.removesuffix("\n")


SALES = alert("sales", "critical", "failed")
WIKI = alert("wiki", "warning", "late")
MANY = [alert(f"db{number}", "critical", "missed") for number in range(40)]
OVER = alert("graph", "critical", "no_policy", firing=False)


@pytest.mark.parametrize(
    ("part", "alerts", "subject"),
    [
        ("team", [WIKI, SALES], "Backups of north: 1 critical, 1 warning: sales (ada) failed, wiki (ada) late"),
        ("team", [WIKI, OVER], "Backups of north: 1 warning: wiki (ada) late"),
        ("team", [OVER], "Backups of north: no alert left, over: graph (ada) no policy"),
        ("team", MANY, f"Backups of north: 40 critical: {', '.join(f'db{n} (ada) missed' for n in range(4))}, ..."),
        ("owner", [SALES, OVER], "Your database sales of ada: failed."),
        ("owner", [SALES, SALES, *MANY[:2]], "Your databases need attention: sales, db0, db1"),
        ("owner", [OVER], "Your databases: no problem left with the backup of graph"),
    ],
)
def test_a_subject_says_what_and_whose(part: str, alerts: list[dict[str, Any]], subject: str, tmp_path: Path) -> None:
    assert mail(tmp_path, f"{part}.subject", alerts) == subject


def test_the_teams_mail_says_what_next(tmp_path: Path) -> None:
    text = mail(tmp_path, "team.text", [WIKI, SALES, OVER])
    assert text.index("CRITICAL") < text.index("sales of ada") < text.index("WARNING") < text.index("wiki of ada")
    for each in (SALES, WIKI):
        assert all(words in text for words in each["annotations"].values())
    assert "* graph (ada) no policy, since 2026-03-14 07:01 UTC" in text.partition("OVER")[2]
    many = mail(tmp_path, "team.text", MANY)
    assert many.count("Next: ") == 30
    assert "40 in all" in many


def test_an_owners_mail_has_no_command(tmp_path: Path) -> None:
    without = alert("notes", "critical", "no_policy")
    text = mail(tmp_path, "owner.text", [SALES, without, OVER])
    assert not re.search(r"sudo|/opt|http", text)
    assert "sales of ada: failed.\n  About sales.\n  Next: the backup team has been told." in text
    assert "About notes.\n  Next: tell the backup team how often" in text
    assert "Over: graph no policy." in text


# ---- The runbook ----------------------------------------------------------------------------------------------


def test_the_runbook_explains_every_alert_and_every_status() -> None:
    of_statuses, of_alerts = sections("A container"), sections("The other alerts")
    del of_statuses["The night that broke off"]
    severities = dict.fromkeys(STATUSES[2], "critical") | dict.fromkeys(STATUSES[1], "warning")
    assert of_statuses.keys() == severities.keys()
    assert of_alerts.keys() == ALERTS.keys() - {"MyDBBackupCritical", "MyDBBackupWarning"}
    assert f"{len(ALERTS)} alerts" in RUNBOOK
    for name, section in (of_statuses | of_alerts).items():
        severity = severities.get(name) or ALERTS[name]["labels"]["severity"]
        assert f"*{'warning' if '{{' in severity else severity}*" in section, name
        for part in ("- **At stake**", "- **Look**", "- **Do**", "- **Clears**"):
            assert part in section, f"{name}: {part}"


def test_rules_and_dashboard_use_metrics_that_the_runbook_lists_or_the_rules_record() -> None:
    """What it lists is what an audit publishes: `tests/test_metrics.py`."""
    listed = set(re.findall(r"^\| `(mydb_backup_\w+)` \|", RUNBOOK, re.MULTILINE))
    rules = [rule for group in load("alerts.yml")["groups"] for rule in group["rules"]]
    recorded = {rule["record"] for rule in rules if "record" in rule}
    text = json.dumps([rule | {"record": ""} for rule in rules]) + (MONITORING / "dashboard.json").read_text("utf-8")
    used = set(re.findall(r"\b(?:mydb_backup|node_textfile)_[\w:]*[a-z]|\bmydb_backup:[\w:]+", text))
    assert recorded <= used
    assert used - recorded - {"mydb_backup_audit", "node_textfile_scrape_error"} <= listed


def test_every_psql_line_of_the_runbook_works_under_the_read_only_role(own_site: Site, tmp_path: Path) -> None:
    lines = re.findall(r"""psql -A?t?c (["'])(.+?)\1""", RUNBOOK)
    assert len(lines) >= 9
    script = tmp_path / "runbook.sql"
    script.write_text("".join(f"{sql};\n" for _, sql in lines), "utf-8")
    with read_only_role(own_site.postgres):
        own_site.postgres.psql(script, user=ROLE)


def test_the_commands_of_alerts_and_runbook_have_options_that_exist(sqlite_site: Site) -> None:
    known = sqlite_site.audit("--help").out
    text = RUNBOOK + (MONITORING / "alerts.yml").read_text("utf-8")
    lines = re.findall(re.escape(COMMAND) + r"([^`|\n]*(?:\n +\{\{-[^\n]*)?)", text)
    options = {option for line in lines for option in re.findall(r"(?<= )--?[a-z][a-z-]*", line)}
    assert options >= {"--at", "--json", "--config", "--check-config", "-v"}
    assert all(re.search(rf"{option}\b", known) for option in options)


def test_the_list_after_the_loss_of_the_server(tmp_path: Path) -> None:
    (query,) = re.findall(r"^jq -r '(.+)' containers\.json$", RUNBOOK, re.MULTILINE)
    good = {"started": "2026-03-12T18:07:00Z", "url": "s3://b/sales/"}
    containers = [
        {"name": "sales", "engine": "Postgres", "last_success": good},
        {"name": "offsite", "engine": None, "last_success": good | {"url": None}},
        {"name": "cohort", "engine": "Neo4j", "last_success": None},
    ]
    document = tmp_path / "containers.json"
    document.write_text(json.dumps({"audit": {}, "containers": containers}), "utf-8")
    assert output_of(require("jq", "jq"), "-r", query, document).splitlines() == [
        "sales\tPostgres\t2026-03-12T18:07:00Z\ts3://b/sales/",
        "offsite\t\t2026-03-12T18:07:00Z\t",
        "cohort\tNeo4j\tno good backup\t",
    ]


def test_the_runbook_names_the_unit_that_deploy_installs() -> None:
    units = re.findall(r"journalctl -u (backup[\w.-]+)", RUNBOOK)
    assert units
    assert all((TOP / "deploy" / unit).exists() for unit in units)


def test_the_prometheus_configuration_of_the_runbook_is_valid(tmp_path: Path) -> None:
    (config,) = re.findall(r"^ *```yaml\n(.+?)^ *```", RUNBOOK, re.M | re.S)
    file = tmp_path / "prometheus.yml"
    file.write_text(config, "utf-8")
    promtool("check", "config", "--syntax-only", file)
