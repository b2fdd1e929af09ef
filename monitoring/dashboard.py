"""Builds dashboard.json, the Grafana dashboard of Backup Audit, with the Grafana Foundation SDK.

    python monitoring/dashboard.py            writes dashboard.json beside this file
    python monitoring/dashboard.py --check    exits 1 if dashboard.json is not what this file builds

The dashboard has no uid, no id and no fixed datasource, so that it imports into any Grafana. It never talks
to Grafana or Prometheus, and needs no recording rule of alerts.yml.

The queries follow one rule: what an audit found counts only while that audit is current. Otherwise a panel
shows "unknown" or nothing, because node_exporter serves the last textfile for ever.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from grafana_foundation_sdk.builders import (
    common,
    dashboard,
    prometheus,
    stat,
    statushistory,
    table,
    timeseries,
)
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as c
from grafana_foundation_sdk.models import dashboard as m
from grafana_foundation_sdk.models import units
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

TARGET = Path(__file__).with_name("dashboard.json")
PROMETHEUS = m.DataSourceRef(type_val="prometheus", uid="${datasource}")

# Worst last: the position is the number that stands for the status in the history panel.
STATUS_COLOURS = {
    "ok": "green",
    "new": "light-green",
    "exempt": "light-blue",
    "paused": "blue",
    "running": "light-yellow",
    "late": "yellow",
    "no_policy": "light-red",
    "stalled": "orange",
    "failed": "red",
    "missed": "dark-red",
}
UNKNOWN_COLOUR = "purple"
SEVERITIES = {
    "0": ("ok", "green"),
    "1": ("warning", "yellow"),
    "2": ("critical", "red"),
    "3": ("unknown", UNKNOWN_COLOUR),
}

# ---- Queries ------------------------------------------------------------------------------------------

STALE_SECONDS = 26 * 3600  # as in alerts.yml
HOST = 'instance=~"$instance"'
KEY = "job, instance, name, c_id"
AUDITED_AT = f"mydb_backup_audit_timestamp_seconds{{{HOST}}}"
DETAILS = "engine, policy, owner, contact"

# Audit hosts that know nothing about today: stale, failed, or seen in the last week and lost since.
BLIND = (
    f"(time() - {AUDITED_AT} > {STALE_SECONDS}"
    f" or time() - mydb_backup_audit_run_timestamp_seconds{{{HOST}}} > {STALE_SECONDS}"
    f" or mydb_backup_audit_success{{{HOST}}} == 0"
    f" or (present_over_time({AUDITED_AT}[7d]) unless on (job, instance) {AUDITED_AT}))"
)

# One series for each container that the filters select, of current audits only.
CONTAINERS = (
    f'(mydb_backup_container_info{{{HOST},engine=~"$engine",policy=~"$policy",owner=~"$owner"}}'
    f" unless on (job, instance) {BLIND})"
)


def selected(expr: str) -> str:
    """The series of expr that belong to selected containers."""
    return f"({expr}) and on ({KEY}) {CONTAINERS}"


def described(expr: str) -> str:
    """The series of expr that belong to selected containers, with the labels that describe them."""
    return f"({expr}) * on ({KEY}) group_left ({DETAILS}) {CONTAINERS}"


def known(expr: str) -> str:
    """expr, one number, or -1 ("unknown") if any selected audit host is blind or there is none."""
    return f"({expr}) and on () {AUDITED_AT} unless on () {BLIND} or on () vector(-1)"


def containers_of(severity: int) -> str:
    """The number of selected containers of that severity; 0, not nothing, if there is none."""
    count = f"count({selected(f'mydb_backup_severity == {severity}')})"
    return known(f"{count} or on () 0 * count({AUDITED_AT})")


def attention(expr: str) -> str:
    """The series of expr that belong to containers with a problem, described and with their status."""
    with_status = f"({expr}) * on ({KEY}) group_left (status) (mydb_backup_status == 1)"
    return f"{described(with_status)} and on ({KEY}) (mydb_backup_severity > 0)"


def blind_row(expr: str) -> str:
    """expr, labelled as a row of the table of problems: the audit that stopped is one itself."""
    named = f'label_replace({expr}, "name", "(the audit itself)", "", "")'
    return f'label_replace({named}, "status", "unknown", "", "")'


def status_numbers() -> str:
    """For every container, the number of its status, as numbered by STATUS_COLOURS."""
    numbered = (
        f'{number} * (mydb_backup_status{{status="{status}"}} == 1)' for number, status in enumerate(STATUS_COLOURS)
    )
    return f"max without (status) ({' or '.join(numbered)})"


def last_to_typical() -> str:
    """Last over typical duration, where a typical one takes a minute or more: below, it means nothing."""
    return "mydb_backup_last_duration_seconds / (mydb_backup_typical_duration_seconds >= 60)"


# ---- Pieces of panels ---------------------------------------------------------------------------------


def instant(expr: str, ref: str = "A") -> prometheus.Dataquery:
    """A query for the present value, as a table."""
    return prometheus.Dataquery().expr(expr).ref_id(ref).instant().format(PromQueryFormat.TABLE).datasource(PROMETHEUS)


def over_time(expr: str, legend: str) -> prometheus.Dataquery:
    """A query for the whole time range of the dashboard."""
    return prometheus.Dataquery().expr(expr).ref_id("A").range().legend_format(legend).datasource(PROMETHEUS)


def mapping(texts: Mapping[str, tuple[str, str]]) -> m.ValueMap:
    """A value mapping: value -> (text, colour)."""
    return m.ValueMap(
        options={
            value: m.ValueMappingResult(text=text, color=colour, index=index)
            for index, (value, (text, colour)) in enumerate(texts.items())
        }
    )


def nothing_is(text: str) -> m.SpecialValueMap:
    """A value mapping for an empty cell."""
    return m.SpecialValueMap(
        options=m.DashboardSpecialValueMapOptions(
            match=m.SpecialValueMatch.NULL, result=m.ValueMappingResult(text=text)
        )
    )


def status_names() -> m.ValueMap:
    """The mapping for a column that holds status names."""
    names = {status: (status, colour) for status, colour in STATUS_COLOURS.items()}
    return mapping({**names, "unknown": ("unknown", UNKNOWN_COLOUR)})


def threshold_steps(*steps: tuple[float | None, str]) -> dashboard.ThresholdsConfig:
    """Thresholds from (lowest value, colour); None is the lowest of all."""
    return (
        dashboard.ThresholdsConfig()
        .mode(m.ThresholdsMode.ABSOLUTE)
        .steps([m.Threshold(value=value, color=colour) for value, colour in steps])
    )


def prop(name: str, value: object) -> m.DynamicConfigValue:
    """One property of a column."""
    return m.DynamicConfigValue(id_val=name, value=value)


def coloured() -> m.DynamicConfigValue:
    """The property that colours the background of a cell."""
    return prop("custom.cellOptions", c.TableColoredBackgroundCellOptions())


def columns(panel: table.Panel, names: Mapping[str, str]) -> table.Panel:
    """Joins the panel's queries into one table of these columns (field -> heading), in this order."""
    hidden = dict.fromkeys({"Time", "job", "__name__", "contact", "c_id", "state"} - set(names), True)
    options = {
        "renameByName": dict(names),
        "indexByName": {field: index for index, field in enumerate(names)},
        "excludeByName": dict(sorted(hidden.items())),
    }
    return (
        panel.with_transformation(m.DataTransformerConfig(id_val="merge", options={}))
        .with_transformation(m.DataTransformerConfig(id_val="organize", options=options))
        .filterable(True)
    )


def sorted_by(panel: table.Panel, *orders: tuple[str, bool]) -> table.Panel:
    """Sorts a table by (heading, descending)."""
    return panel.sort_by([common.TableSortByFieldState().display_name(name).desc(desc) for name, desc in orders])


def big_number(title: str, expr: str, width: int, description: str) -> stat.Panel:
    """A stat panel: one big coloured figure, "unknown" where the query says -1."""
    return (
        stat.Panel()
        .title(title)
        .description(description)
        .datasource(PROMETHEUS)
        .with_target(instant(expr))
        .span(width)
        .height(5)
        .graph_mode(c.BigValueGraphMode.NONE)
        .color_mode(c.BigValueColorMode.BACKGROUND)
        .text_mode(c.BigValueTextMode.VALUE)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .mappings([mapping({"-1": ("unknown", UNKNOWN_COLOUR)})])
        .no_value("unknown")
    )


def new_table(title: str, description: str, width: int, height: int) -> table.Panel:
    """An empty table panel."""
    return table.Panel().title(title).description(description).datasource(PROMETHEUS).span(width).height(height)


# ---- Panels -------------------------------------------------------------------------------------------


def summary_panels() -> list[stat.Panel]:
    """The first row, which tells whether everything is backed up, and how old that answer is."""
    blind = "Unknown while a selected audit host has no current audit."
    critical = big_number("Critical", containers_of(2), 5, f"Containers without a good backup. {blind}")
    warning = big_number("Warning", containers_of(1), 5, f"Containers to keep an eye on. {blind}")
    fine = big_number("Fine", containers_of(0), 5, f"Containers backed up as their owners chose. {blind}")
    last_known = f"last_over_time({AUDITED_AT}[7d])"
    age = big_number(
        "Age of the audit",
        f"max(time() - {last_known}) or on () vector(-1)",
        5,
        "Time since the last complete audit, of the audit host where it is oldest.",
    )
    run = big_number(
        "Last audit run",
        f"min(mydb_backup_audit_success{{{HOST}}}) or on () vector(-1)",
        4,
        "Whether the last run of the audit completed on every selected audit host.",
    )
    outcomes = {"-1": ("unknown", UNKNOWN_COLOUR), "0": ("failed", "red"), "1": ("completed", "green")}
    return [
        critical.unit(units.Short).thresholds(threshold_steps((None, "green"), (1, "red"))),
        warning.unit(units.Short).thresholds(threshold_steps((None, "green"), (1, "yellow"))),
        fine.unit(units.Short).thresholds(threshold_steps((None, "green"))),
        age.unit(units.Seconds)
        .decimals(1)
        .thresholds(threshold_steps((None, "green"), (25 * 3600, "yellow"), (STALE_SECONDS, "red"))),
        run.unit(units.Short).mappings([mapping(outcomes)]).thresholds(threshold_steps((None, "red"), (1, "green"))),
    ]


def attention_panel() -> table.Panel:
    """The containers that need attention, worst first."""
    no_audit = f"3 * absent({AUDITED_AT})"
    last_audit = f"1000 * last_over_time({AUDITED_AT}[7d]) and on (job, instance) {BLIND}"
    severity = f"{attention('mydb_backup_severity')} or {blind_row(f'3 + 0 * {BLIND}')} or {blind_row(no_audit)}"
    # Grafana's "from now" unit counts in milliseconds.
    success = f"{attention('1000 * mydb_backup_last_success_timestamp_seconds')} or {blind_row(last_audit)}"
    overdue = attention("time() - mydb_backup_due_timestamp_seconds > 0")
    panel = (
        new_table(
            "Containers that need attention",
            "Worst first. An audit that stopped stands in the first line, and hides its containers.",
            24,
            10,
        )
        .with_target(instant(severity, "A"))
        .with_target(instant(success, "B"))
        .with_target(instant(overdue, "C"))
        .no_value("Nothing needs attention.")
        .override_by_name(
            "Severity",
            [prop("mappings", [mapping(SEVERITIES)]), coloured(), prop("custom.width", 100)],
        )
        .override_by_name("Status", [prop("mappings", [status_names()]), coloured()])
        .override_by_name(
            "Last success",
            [prop("unit", units.DateTimeFromNow), prop("mappings", [nothing_is("never")])],
        )
        .override_by_name("Overdue by", [prop("unit", units.Seconds), prop("decimals", 1)])
    )
    names = {
        "Value #A": "Severity",
        "status": "Status",
        "name": "Container",
        "engine": "Engine",
        "policy": "Policy",
        "owner": "Owner",
        "contact": "Contact",
        "Value #B": "Last success",
        "Value #C": "Overdue by",
        "c_id": "c_id",
        "instance": "Audit host",
    }
    return sorted_by(columns(panel, names), ("Severity", True), ("Overdue by", True))


def history_panel() -> statushistory.Panel:
    """The status of every container over the last 30 days."""
    numbers = {str(number): (status, colour) for number, (status, colour) in enumerate(STATUS_COLOURS.items())}
    steps = [(float(number), colour) for number, colour in enumerate(STATUS_COLOURS.values())]
    return (
        statushistory.Panel()
        .title("Status over the last 30 days")
        .description("The verdict that stood at the time. A gap: no current audit, or no such container.")
        .datasource(PROMETHEUS)
        .with_target(over_time(selected(status_numbers()), "{{name}} #{{c_id}}"))
        .span(24)
        .height(12)
        .time_from("30d")
        .interval("6h")  # 120 columns: Grafana refuses to draw many more
        .per_page(25)
        .row_height(0.85)
        .col_width(0.95)
        .show_value(c.VisibilityMode.NEVER)
        .unit(units.Short)
        .mappings([mapping(numbers)])
        .thresholds(threshold_steps((None, "green"), *steps[1:]))
        .color_scheme(dashboard.FieldColor().mode(m.FieldColorModeId.THRESHOLDS))
        .legend(common.VizLegendOptions().show_legend(False))
    )


def coverage_panel() -> table.Panel:
    """The share of scheduled backups that exist, lowest first."""
    gauge = c.TableBarGaugeCellOptions(mode=c.BarGaugeDisplayMode.BASIC)
    panel = (
        new_table(
            "Coverage",
            "Share of the scheduled backups of the last history_days (30 by default) that exist.",
            10,
            11,
        )
        .with_target(instant(described("mydb_backup_covered_ratio")))
        .thresholds(threshold_steps((None, "red"), (0.9, "yellow"), (0.97, "green")))
        .override_by_name(
            "Covered",
            [
                prop("unit", units.PercentUnit),
                prop("min", 0),
                prop("max", 1),
                prop("decimals", 0),
                prop("custom.cellOptions", gauge),
            ],
        )
    )
    names = {
        "name": "Container",
        "engine": "Engine",
        "policy": "Policy",
        "owner": "Owner",
        "instance": "Audit host",
        "Value": "Covered",
    }
    return sorted_by(columns(panel, names), ("Covered", False))


def duration_panel() -> table.Panel:
    """How long the last backup took, against a typical one; suspiciously short ones first."""
    seconds = [prop("unit", units.Seconds), prop("decimals", 1)]
    bounds = threshold_steps((None, "red"), (0.1, "green"), (3, "yellow")).build()
    panel = (
        new_table(
            "Durations",
            "Last and typical (median) duration. Below 10 % of typical, check the dump.",
            14,
            11,
        )
        .with_target(instant(described("mydb_backup_last_duration_seconds"), "A"))
        .with_target(instant(described("mydb_backup_typical_duration_seconds"), "B"))
        .with_target(instant(described(last_to_typical()), "C"))
        .override_by_name("Last", seconds)
        .override_by_name("Typical", seconds)
        .override_by_name(
            "Last / typical",
            [prop("unit", units.PercentUnit), prop("decimals", 0), prop("thresholds", bounds), coloured()],
        )
    )
    names = {
        "name": "Container",
        "engine": "Engine",
        "policy": "Policy",
        "owner": "Owner",
        "instance": "Audit host",
        "Value #A": "Last",
        "Value #B": "Typical",
        "Value #C": "Last / typical",
    }
    return sorted_by(columns(panel, names), ("Last / typical", False))


def trend_panel() -> timeseries.Panel:
    """How many containers had which status, over time."""
    panel = (
        timeseries.Panel()
        .title("Containers by status")
        .description("A gap: no current audit.")
        .datasource(PROMETHEUS)
        .with_target(over_time(f"count by (status) ({selected('mydb_backup_status == 1')})", "{{status}}"))
        .span(24)
        .height(8)
        .unit(units.Short)
        .min(0)
        .decimals(0)
        .interval("1h")
        .fill_opacity(60)
        .line_width(1)
        .stacking(common.StackingConfig().mode(c.StackingMode.NORMAL))
        .thresholds(threshold_steps((None, "green")))
    )
    for status, colour in STATUS_COLOURS.items():
        panel.override_by_name(status, [prop("color", {"mode": "fixed", "fixedColor": colour})])
    return panel


def audit_panel() -> table.Panel:
    """The audit itself, one line an audit host."""
    ignored = f"sum without (reason) (mydb_backup_log_rows_ignored{{{HOST}}})"
    age = threshold_steps((None, "green"), (25 * 3600, "yellow"), (STALE_SECONDS, "red")).build()
    some = threshold_steps((None, "green"), (1, "yellow")).build()
    skew = threshold_steps((None, "yellow"), (-300, "green"), (300, "yellow")).build()
    seconds = [prop("unit", units.Seconds), prop("decimals", 1)]
    outcome = mapping({"0": ("failed", "red"), "1": ("completed", "green")})
    panel = (
        new_table("The audit itself", "One line an audit host.", 24, 6)
        .with_target(instant(f"time() - last_over_time({AUDITED_AT}[7d])", "A"))
        .with_target(instant(f"mydb_backup_audit_success{{{HOST}}}", "B"))
        .with_target(instant(f"mydb_backup_audit_duration_seconds{{{HOST}}}", "C"))
        .with_target(instant(f"mydb_backup_audit_clock_skew_seconds{{{HOST}}}", "D"))
        .with_target(instant(f"time() - mydb_backup_log_newest_timestamp_seconds{{{HOST}}}", "E"))
        .with_target(instant(ignored, "F"))
        .with_target(instant(f"mydb_backup_audit_info{{{HOST}}}", "G"))
        .override_by_name("Age", [*seconds, prop("thresholds", age), coloured()])
        .override_by_name("Last run", [prop("mappings", [outcome]), coloured()])
        .override_by_name("Took", seconds)
        .override_by_name("Clock difference", [*seconds, prop("thresholds", skew), coloured()])
        .override_by_name("Newest log row", seconds)
        .override_by_name("Log rows ignored", [prop("thresholds", some), coloured()])
        .override_by_name("Value #G", [prop("custom.hidden", True)])
    )
    names = {
        "instance": "Audit host",
        "job": "Job",
        "Value #A": "Age",
        "Value #B": "Last run",
        "Value #C": "Took",
        "Value #D": "Clock difference",
        "Value #E": "Newest log row",
        "Value #F": "Log rows ignored",
        "version": "Version",
    }
    return columns(panel, names)


# ---- The dashboard ------------------------------------------------------------------------------------


def variable(name: str, label: str, source: str) -> dashboard.QueryVariable:
    """A filter: the values that the label of that name takes in the series of source."""
    query: dict[str, object] = {"query": f"label_values({source}, {name})", "refId": "StandardVariableQuery"}
    return (
        dashboard.QueryVariable(name)
        .label(label)
        .datasource(PROMETHEUS)
        .query(query)
        .refresh(m.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(m.VariableSort.ALPHABETICAL_CASE_INSENSITIVE_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")  # also matches what has no such label
        .current(m.VariableOption(selected=True, text="All", value="$__all"))
    )


def new_dashboard() -> dashboard.Dashboard:
    """The dashboard with its filters, without panels."""
    containers = f"mydb_backup_container_info{{{HOST}}}"
    return (
        dashboard.Dashboard("Backup Audit")
        .description("Does every database container of the site have the backup that its owner chose?")
        .tags(["backup", "db4sci"])
        .time("now-30d", "now")
        .timezone("browser")
        .refresh("5m")
        .tooltip(m.DashboardCursorSync.CROSSHAIR)
        .with_variable(dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
        .with_variable(variable("instance", "Audit host", "mydb_backup_audit_timestamp_seconds"))
        .with_variable(variable("engine", "Engine", containers))
        .with_variable(variable("policy", "Policy", containers))
        .with_variable(variable("owner", "Owner", containers))
    )


def build() -> str:
    """The text of dashboard.json."""
    board = new_dashboard()
    panels: Sequence[stat.Panel | table.Panel | statushistory.Panel | timeseries.Panel] = [
        *summary_panels(),
        attention_panel(),
        history_panel(),
        coverage_panel(),
        duration_panel(),
        trend_panel(),
        audit_panel(),
    ]
    for number, panel in enumerate(panels, start=1):
        board.with_panel(panel.id(number))
    return json.dumps(board.build(), cls=JSONEncoder, indent=2, sort_keys=True) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Writes or checks dashboard.json; the exit status."""
    parser = argparse.ArgumentParser(description="Builds the Grafana dashboard of Backup Audit.")
    parser.add_argument("--check", action="store_true", help="compare with dashboard.json, write nothing")
    args = parser.parse_args(argv)
    if not args.check:
        TARGET.write_text(build(), encoding="utf-8")
        return 0
    if TARGET.is_file() and TARGET.read_text(encoding="utf-8") == build():
        return 0
    print(f"{TARGET.name} is not what {Path(__file__).name} builds: run it without --check", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
