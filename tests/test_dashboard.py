"""The Grafana dashboard: its form, and what Prometheus answers to its queries.

The linter is Grafana's dashboard-linter.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from audit.policy import Status
from tests.promtool import (
    ANCHORS,
    DAY,
    HOST,
    MONITORING,
    OLD,
    RUNBOOK_URL,
    Case,
    Labels,
    Series,
    audit_series,
    check,
    container_series,
    expect,
    input_series,
    promtool,
    written,
)

TEXT = (MONITORING / "dashboard.json").read_text("utf-8")
BOARD: dict[str, Any] = json.loads(TEXT)
PANELS: dict[str, dict[str, Any]] = {panel["title"]: panel for panel in BOARD["panels"]}
TARGETS = [(title, target) for title, panel in PANELS.items() for target in panel["targets"]]
QUERIES: dict[tuple[str, str], str] = {(title, target["refId"]): target["expr"] for title, target in TARGETS}
SOURCE, *FILTERS = BOARD["templating"]["list"]
TABLES = [title for title, panel in PANELS.items() if panel["type"] == "table"]
RULES = (MONITORING / "alerts.yml").read_text("utf-8")


def test_it_is_what_an_import_needs() -> None:
    assert json.dumps(BOARD, indent=2, ensure_ascii=False) + "\n" == TEXT
    assert BOARD["id"] is None
    assert len(PANELS) == len(BOARD["panels"]) == len({panel["id"] for panel in BOARD["panels"]})
    (asked,) = BOARD["__inputs"]
    assert SOURCE["current"]["value"] == f"${{{asked['name']}}}"
    needed = {("panel", panel["type"]) for panel in BOARD["panels"]}
    needed |= {("datasource", asked["pluginId"]), ("grafana", "grafana")}
    assert {(one["type"], one["id"]) for one in BOARD["__requires"]} == needed


def test_linter_rules_of_targets() -> None:
    """Of job and instance; besides, a query is short enough to be edited, and obeys every filter."""
    for (title, ref), expr in QUERIES.items():
        selectors = re.findall(r"\bmydb_backup[\w:]+(\{[^}]*\})?", expr)
        assert selectors, (title, ref)
        assert all(f'{name}=~"${name}"' in each for each in selectors for name in ("job", "instance", "site")), expr
        assert len(expr) < 300, (title, ref)
        of_audit = title == "Audit" or (title == "Sites" and ref > "D")
        assert of_audit or all(f'{one["name"]}=~"${one["name"]}"' in expr for one in FILTERS), (title, ref)


def test_every_status_has_its_number_and_its_colour() -> None:
    numbers = dict(re.findall(r'(\d+) \* mydb_backup_status\{status="(\w+)"\}', RULES))
    (mapping,) = PANELS["Status over 30 days"]["fieldConfig"]["defaults"]["mappings"]
    assert {number: result["text"] for number, result in mapping["options"].items()} == numbers
    assert sorted(numbers.values()) == sorted(status.value for status in Status)
    groups = [each["matcher"]["options"] for each in PANELS["Containers by status"]["fieldConfig"]["overrides"]]
    for number, status in numbers.items():
        found = [bool(re.search(group[1:-1], status)) for group in groups]
        assert found == [Status(status).severity == severity for severity in range(3)], number


def test_headings_and_overrides_name_columns_that_exist() -> None:
    for title in TABLES:
        panel = PANELS[title]
        options = panel["transformations"][1]["options"]
        columns = options["renameByName"]
        values = {name for name in (*columns, *options["excludeByName"]) if name.startswith("Value")}
        assert values == {f"Value #{target['refId']}" for target in panel["targets"]}, title
        assert list(columns) == list(options["indexByName"]), title
        named = [override["matcher"] for override in panel["fieldConfig"]["overrides"]]
        patterns = [re.escape(one["options"]) + "$" if one["id"] == "byName" else one["options"][1:-1] for one in named]
        patterns += [sort["displayName"] for sort in panel["options"]["sortBy"]]
        assert all(any(re.search(each, heading) for heading in columns.values()) for each in patterns), title


def test_links_lead_to_sections_of_the_runbook() -> None:
    links = set(re.findall(rf'"url": "{RUNBOOK_URL}#?(.*)"', TEXT))
    assert links - ANCHORS == {"", "${__value.raw}"}  # the latter in the column of statuses
    assert {status.value for status in Status if status.severity} <= ANCHORS


# ---- What Prometheus answers ----------------------------------------------------------------------------------


def filtered(expr: str, **chosen: str) -> str:
    """A query as Grafana sends it: with the chosen filters, else with all values."""
    values = {one["name"]: one["allValue"] for one in FILTERS} | chosen
    return re.sub(r"\$([a-z]+)", lambda match: values[match[1]], expr)


def panel_returns(title: str, ref: str, *samples: tuple[Labels, float], around: str = "{}", **chosen: str) -> Case:
    """What a panel's query returns, 15 minutes after the audit."""
    return expect(around.format(filtered(QUERIES[title, ref], **chosen)), *samples)


def typical_container(key: Labels, status: str, owner: str = "bo", engine: str = "Postgres") -> list[Series]:
    """A container with its last success a day before the audit; the dump is kept for three more."""
    found = container_series(
        key,
        status,
        owner,
        engine,
        covered_ratio=0.5 if Status(status).severity else 1,
        due_timestamp_seconds=3600 if status == "failed" else -3600,
        last_success_timestamp_seconds=-DAY,
        kept_until_timestamp_seconds=3 * DAY,
        last_duration_seconds=30,
        typical_duration_seconds=60,
    )
    return found + (input_series(key | {"error": "disk full"}, failure_info=1) if status == "failed" else [])


AGE = 900
"""The age of the audit in seconds when Prometheus is asked."""
SOUTH = HOST | {"site": "south"}
SALES, WIKI = HOST | {"name": "sales", "c_id": "1"}, HOST | {"name": "wiki", "c_id": "2"}
LATE = SOUTH | {"name": "sales", "c_id": "1"}
DESCRIBED = SALES | {"engine": "Postgres", "policy": "Daily", "owner": "genomics"}
CONTAINERS = [*typical_container(SALES, "failed", "genomics"), *typical_container(WIKI, "ok", engine="MariaDB")]
NORTH = [*audit_series(HOST, 2), *CONTAINERS]
TWO_SITES = [*NORTH, *audit_series(SOUTH, 1), *typical_container(LATE, "late", "clinic")]
PROBLEMS, DUMPS, ALL = "Containers that need attention", "Last good dumps that expire", "All containers"


def figures(*values: float, **chosen: str) -> list[Case]:
    """What is counted as critical, warning, accepted and fine."""
    return [panel_returns("Containers", ref, ({}, value), **chosen) for ref, value in zip("ABCD", values, strict=True)]


def test_the_rules_behind_it() -> None:
    promtool("test", "rules", MONITORING / "dashboard_test.yml")


def test_figures_count_what_the_filters_select(tmp_path: Path) -> None:
    found = [
        *figures(1, 1, 0, 1),
        *figures(0, 0, 0, 1, engine="MariaDB"),
        *figures(1, 0, 0, 0, owner="genomics"),
        *figures(0, 1, 0, 0, site="south"),
        *figures(-1, -1, -1, -1, policy="Weekly"),
        *figures(-1, -1, -1, -1, job="again"),
        panel_returns("Audit", "A", ({}, AGE)),
        panel_returns("Audit", "B", ({}, 1)),
        panel_returns("Containers by status", "A", *(({"status": each}, 1) for each in ("failed", "ok", "late"))),
    ]
    check(tmp_path, (TWO_SITES, found))


def test_without_a_current_audit_nothing_is_known(tmp_path: Path) -> None:
    lost = {"series": 'mydb_backup_audit_timestamp_seconds{job="node", instance="lost"}', "values": "-1 stale"}
    blind = [
        CONTAINERS,
        [*audit_series(HOST, 2, OLD), *CONTAINERS],
        [*audit_series(HOST, 2, success=0), *CONTAINERS],
        [*NORTH, *audit_series(SOUTH, 1, OLD)],
        [*NORTH, lost],
    ]
    unknown = [*figures(-1, -1, -1, -1), panel_returns(PROBLEMS, "A", ({}, 1), around="count(({}) == 4)")]
    row = HOST | {"name": "(the audit itself)", "status": "unknown"}
    hidden = [panel_returns(*place) for place in QUERIES if place[0] in (DUMPS, ALL, "Containers by status")]
    stopped = [panel_returns(PROBLEMS, "A", (row, 4)), *hidden]
    age = [panel_returns("Audit", "A", ({}, AGE + 1))]
    check(tmp_path, *((site, unknown) for site in blind), (blind[1], stopped), (blind[-1], age))


def test_problems_are_shown_and_not_what_is_fine(tmp_path: Path) -> None:
    ends = ((LATE, DAY), (SALES, -1), (WIKI, DAY))
    exceptions = [one for key, until in ends for one in input_series(key, exception_until_timestamp_seconds=until)]
    found = [
        *figures(1, 0, 1, 1),
        panel_returns(PROBLEMS, "A", (DESCRIBED | {"status": "failed"}, 3), owner="genomics"),
        panel_returns(PROBLEMS, "B", (SALES, -DAY * 1000), (LATE, -DAY * 1000)),
        panel_returns(PROBLEMS, "C", (SALES | {"error": "disk full"}, 1)),
        panel_returns(PROBLEMS, "D", (LATE, 3600 + AGE)),
        panel_returns(PROBLEMS, "E", (SALES, 3 * DAY * 1000), (LATE, 3 * DAY * 1000)),
        panel_returns(PROBLEMS, "F", (LATE, DAY * 1000)),
        panel_returns("Status over 30 days", "A", (SALES, 9), (LATE, 5), around="0 + ({})"),
        panel_returns(DUMPS, "A", (DESCRIBED | {"status": "dump_expires"}, 0), owner="genomics"),
        panel_returns(DUMPS, "B", (SALES, 3 * DAY * 1000), (LATE, 3 * DAY * 1000)),
        panel_returns(ALL, "C", (SALES, 0.5), (LATE, 0.5), (WIKI, 1)),
        panel_returns(ALL, "F", (WIKI, 0.5), engine="MariaDB"),
    ]
    check(tmp_path, ([*TWO_SITES, *exceptions], found))


def test_answers_for_a_table_have_no_metric_name(tmp_path: Path) -> None:
    """Grafana merges them into rows where their labels agree; the name would keep them apart."""
    books = SOUTH | {"name": "books", "c_id": "3"}
    paused = [*typical_container(books, "paused"), *input_series(books, exception_until_timestamp_seconds=DAY)]
    nameless = "group by (__name__) ({})"
    found = [panel_returns(*place, ({}, 1), around=nameless) for place in QUERIES if place[0] in TABLES]
    check(tmp_path, ([*NORTH, *audit_series(SOUTH, 2), *typical_container(LATE, "late"), *paused], found))


def test_a_line_a_site(tmp_path: Path) -> None:
    east = HOST | {"site": "east"}
    found = [
        panel_returns("Sites", "A", (HOST, 3), (SOUTH, 2), (east, 4)),
        panel_returns("Sites", "A", (HOST, 0), (east, 4), engine="MariaDB"),
        panel_returns("Sites", "B", (HOST, 1)),
        panel_returns("Sites", "C", (SOUTH, 1)),
        panel_returns("Sites", "D", (HOST, 0.75), (SOUTH, 0.5)),
        panel_returns("Sites", "E", (HOST, AGE), (SOUTH, AGE), (east, OLD + AGE)),
        panel_returns("Sites", "G", (SOUTH, 3600 + AGE), site="south"),
        panel_returns("Sites", "H", (HOST, 2), (SOUTH, 2), (east, 2)),
        panel_returns("Sites", "J", (SOUTH | {"version": "3"}, 1), site="south"),
    ]
    check(tmp_path, ([*TWO_SITES, *audit_series(east, 1, OLD)], found))


def test_the_past_of_what_is_a_problem_now(tmp_path: Path) -> None:
    """A query over a range of time, as a subquery; the end of the range is what `@ end()` means in both."""
    inputs = []
    for key, levels, numbers in ((SALES, "0 3", "8 9"), (WIKI, "3 0", "10 10")):
        inputs += [{"series": f"mydb_backup:attention:level{written(key)}", "values": levels}]
        inputs += [{"series": f"mydb_backup:status:number{written(key)}", "values": numbers}]
    found = [
        panel_returns("Status over 30 days", "A", (SALES, value), around=f"{function}_over_time(({{}})[15m:15m])")
        for function, value in (("count", 2), ("min", 8), ("max", 9))
    ]
    check(tmp_path, (inputs, found))
