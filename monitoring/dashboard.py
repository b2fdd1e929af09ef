"""Builds dashboard.json, the Grafana dashboard of Backup Audit, with the Grafana Foundation SDK.

    python monitoring/dashboard.py            writes dashboard.json beside this file
    python monitoring/dashboard.py --check    exits 1 if dashboard.json is not what this file builds

The dashboard has no uid, no id and no fixed datasource, so that it imports into any Grafana. It never talks
to Grafana or Prometheus, and needs no recording rule of alerts.yml.

The queries follow one rule: what an audit found counts only while that audit is current. Otherwise a panel
shows "unknown" or nothing, because node_exporter serves the last textfile for ever. Every selector matches
job, instance and site; a site without a name has no such label, which `.*` matches too.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
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
RUNBOOK = "https://runbook.example.org/README.md"
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
AUDIT = "job, instance, site"
KEY = f"{AUDIT}, name, c_id"
DETAILS = "engine, policy, owner, contact"
UNKNOWN = len(STATUS_COLOURS)  # the number of an unknown status, worse than all others


def metric(name: str, *matchers: str) -> str:
    """A selector of one of the audit's metrics, narrowed by the filters of the dashboard."""
    filters = ('job=~"$job"', 'instance=~"$instance"', 'site=~"$site"', *matchers)
    return f"mydb_backup_{name}{{{','.join(filters)}}}"


AUDITED_AT = metric("audit_timestamp_seconds")
STATUS = metric("status")

# Audits that know nothing about today: stale, failed, or seen in the last week and lost since.
BLIND = (
    f"(time() - {AUDITED_AT} > {STALE_SECONDS}"
    f" or time() - {metric('audit_run_timestamp_seconds')} > {STALE_SECONDS}"
    f" or {metric('audit_success')} == 0"
    f" or (present_over_time({AUDITED_AT}[7d]) unless on ({AUDIT}) {AUDITED_AT}))"
)

# One series for each container that the filters select, of current audits only. topk, here and for the status,
# because one container described twice would make every join fail.
DESCRIBED_AS = ('engine=~"$engine"', 'policy=~"$policy"', 'owner=~"$owner"')
CONTAINERS = f"topk by ({KEY}) (1, {metric('container_info', *DESCRIBED_AS)} unless on ({AUDIT}) {BLIND})"

# Containers whose problem is accepted at present.
ACCEPTED = f"({metric('exception_until_timestamp_seconds')} > time())"


def selected(expr: str) -> str:
    """The series of expr that belong to selected containers."""
    return f"({expr}) and on ({KEY}) {CONTAINERS}"


def described(expr: str) -> str:
    """The series of expr that belong to selected containers, with the labels that describe them."""
    return f"({expr}) * on ({KEY}) group_left ({DETAILS}) {CONTAINERS}"


def not_accepted(expr: str) -> str:
    """The series of expr without those of containers whose problem is accepted at present."""
    return f"({expr}) unless on ({KEY}) {ACCEPTED}"


def known(expr: str) -> str:
    """expr, one number, or -1 ("unknown") if any selected audit is blind or there is none."""
    return f"({expr}) and on () {AUDITED_AT} unless on () {BLIND} or on () vector(-1)"


def count_of(expr: str) -> str:
    """The number of series of expr that belong to selected containers; 0, not nothing, if there is none."""
    return known(f"count({selected(expr)}) or on () 0 * count({AUDITED_AT})")


def of_severity(severity: int) -> str:
    """The containers of that severity, without accepted problems."""
    return not_accepted(f"{metric('severity')} == {severity}")


def with_status(expr: str) -> str:
    """The series of expr that belong to selected containers, described and with their status."""
    return described(f"({expr}) * on ({KEY}) group_left (status) topk by ({KEY}) (1, {STATUS} == 1)")


def attention(expr: str) -> str:
    """The series of expr that belong to containers that need attention, described and with their status."""
    problems = not_accepted(f"{metric('severity')} > 0")
    return f"{with_status(expr)} and on ({KEY}) ({problems})"


def blind_row(expr: str) -> str:
    """expr, labelled as a row of the table of problems: the audit that stopped is one itself."""
    named = f'label_replace({expr}, "name", "(the audit itself)", "", "")'
    return f'label_replace({named}, "status", "unknown", "", "")'


def with_anchor(expr: str) -> str:
    """Adds a label `anchor` to expr: where the runbook explains its status."""
    for pattern, anchor in (
        ("(.+)", "mydbbackup$1"),
        ("no_policy", "mydbbackupnopolicy"),
        ("running", "mydbbackupstillrunning"),
        ("unknown", "the-alerts"),
    ):
        expr = f'label_replace({expr}, "anchor", "{anchor}", "status", "{pattern}")'
    return expr


def status_numbers() -> str:
    """For every container, the number of its status, as numbered by STATUS_COLOURS."""
    selectors = ((number, f'status="{status}"') for number, status in enumerate(STATUS_COLOURS))
    numbered = (f"{number} * ({metric('status', selector)} == 1)" for number, selector in selectors)
    return f"max without (status) ({' or '.join(numbered)})"


def last_to_typical() -> str:
    """Last over typical duration, where a typical one takes a minute or more: below, it means nothing."""
    return f"{metric('last_duration_seconds')} / ({metric('typical_duration_seconds')} >= 60)"


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


def numbered_statuses() -> dict[str, tuple[str, str]]:
    """The statuses by the number that a query gives them, as text and colour."""
    statuses = (*STATUS_COLOURS.items(), ("unknown", UNKNOWN_COLOUR))
    return {str(number): named for number, named in enumerate(statuses)}


def threshold_steps(*steps: tuple[float | None, str]) -> dashboard.ThresholdsConfig:
    """Thresholds from (lowest value, colour); None is the lowest of all."""
    return (
        dashboard.ThresholdsConfig()
        .mode(m.ThresholdsMode.ABSOLUTE)
        .steps([m.Threshold(value=value, color=colour) for value, colour in steps])
    )


def age_steps() -> dashboard.ThresholdsConfig:
    """Thresholds for the age of an audit: yellow when the next one is late, red when it is stale."""
    return threshold_steps((None, "green"), (25 * 3600, "yellow"), (STALE_SECONDS, "red"))


def prop(name: str, value: object) -> m.DynamicConfigValue:
    """One property of a column."""
    return m.DynamicConfigValue(id_val=name, value=value)


def coloured() -> m.DynamicConfigValue:
    """The property that colours the background of a cell."""
    return prop("custom.cellOptions", c.TableColoredBackgroundCellOptions())


def seconds() -> list[m.DynamicConfigValue]:
    """The properties of a column of durations."""
    return [prop("unit", units.Seconds), prop("decimals", 1)]


def columns(panel: table.Panel, names: Mapping[str, str]) -> table.Panel:
    """Joins the panel's queries into one table of these columns (field -> heading), in this order."""
    hidden = dict.fromkeys({"Time", "job", "__name__", "contact", "c_id", "reason"} - set(names), True)
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


def big_number(title: str, expr: str, description: str) -> stat.Panel:
    """A stat panel: one big coloured figure, "unknown" where the query says -1."""
    return (
        stat.Panel()
        .title(title)
        .description(description)
        .datasource(PROMETHEUS)
        .with_target(instant(expr))
        .span(4)
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
    panel = table.Panel().title(title).description(description).datasource(PROMETHEUS)
    return panel.span(width).height(height).unit(units.Short)


def runbook(anchor: str) -> m.DynamicConfigValue:
    """The property that links the cells of a column to a section of the runbook."""
    return prop("links", [{"title": "Runbook", "url": f"{RUNBOOK}#{anchor}", "targetBlank": True}])


# ---- Panels -------------------------------------------------------------------------------------------


def summary_panels() -> list[stat.Panel]:
    """The first row, which tells whether everything is backed up, and how old that answer is."""
    blind = "Unknown while a selected audit is not current."
    problem = f"{metric('severity')} > 0 and on ({KEY}) {ACCEPTED}"
    critical = big_number("Critical", count_of(of_severity(2)), f"Containers without a good backup. {blind}")
    warning = big_number("Warning", count_of(of_severity(1)), f"Containers to keep an eye on. {blind}")
    accepted = big_number("Accepted", count_of(problem), f"Containers whose problem an exception accepts. {blind}")
    fine = big_number(
        "Fine", count_of(f"{metric('severity')} == 0"), f"Containers backed up as their owners chose. {blind}"
    )
    age = big_number(
        "Age of the audit",
        f"max(time() - last_over_time({AUDITED_AT}[7d])) or on () vector(-1)",
        "Time since the last complete audit, of the site where it is oldest.",
    )
    run = big_number(
        "Last audit run",
        f"min({metric('audit_success')}) or on () vector(-1)",
        "Whether the last run of every selected audit completed.",
    )
    outcomes = {"-1": ("unknown", UNKNOWN_COLOUR), "0": ("failed", "red"), "1": ("completed", "green")}
    return [
        critical.unit(units.Short).thresholds(threshold_steps((None, "green"), (1, "red"))),
        warning.unit(units.Short).thresholds(threshold_steps((None, "green"), (1, "yellow"))),
        accepted.unit(units.Short).thresholds(threshold_steps((None, "green"), (1, "blue"))),
        fine.unit(units.Short).thresholds(threshold_steps((None, "green"))),
        age.unit(units.Seconds).decimals(1).thresholds(age_steps()),
        run.unit(units.Short).mappings([mapping(outcomes)]).thresholds(threshold_steps((None, "red"), (1, "green"))),
    ]


def sites_panel() -> table.Panel:
    """The sites, one line each, worst first."""
    worst = f"max by ({AUDIT}) ({selected(not_accepted(status_numbers()))})"
    panel = (
        new_table("Sites", "One line a site, worst first. Accepted problems do not count.", 24, 6)
        .with_target(instant(f"{worst} or {UNKNOWN} + 0 * {BLIND}", "A"))
        .with_target(instant(f"count by ({AUDIT}) ({selected(of_severity(2))})", "B"))
        .with_target(instant(f"count by ({AUDIT}) ({selected(of_severity(1))})", "C"))
        .with_target(instant(f"avg by ({AUDIT}) ({selected(metric('covered_ratio'))})", "D"))
        .with_target(instant(f"time() - last_over_time({AUDITED_AT}[7d])", "E"))
        .override_by_name("Worst status", [prop("mappings", [mapping(numbered_statuses())]), coloured()])
        .override_by_name("Coverage", [prop("unit", units.PercentUnit), prop("decimals", 1)])
        .override_by_name("Age of the audit", [*seconds(), prop("thresholds", age_steps().build()), coloured()])
    )
    names = {
        "site": "Site",
        "Value #A": "Worst status",
        "Value #B": "Critical",
        "Value #C": "Warning",
        "Value #D": "Coverage",
        "Value #E": "Age of the audit",
        "instance": "Audit host",
    }
    return sorted_by(columns(panel, names), ("Worst status", True), ("Critical", True))


def attention_panel() -> table.Panel:
    """The containers that need attention, worst first."""
    no_audit = f"3 * absent({AUDITED_AT})"
    last_audit = f"1000 * last_over_time({AUDITED_AT}[7d]) and on ({AUDIT}) {BLIND}"
    severity = f"{attention(metric('severity'))} or {blind_row(f'3 + 0 * {BLIND}')} or {blind_row(no_audit)}"
    # Grafana's "from now" unit counts in milliseconds.
    success = attention(f"1000 * {metric('last_success_timestamp_seconds')}")
    overdue = attention(f"time() - {metric('due_timestamp_seconds')} > 0")
    panel = (
        new_table(
            "Containers that need attention",
            "Worst first. An audit that stopped stands in the first line, and hides its containers.",
            24,
            10,
        )
        .with_target(instant(with_anchor(severity), "A"))
        .with_target(instant(with_anchor(f"{success} or {blind_row(last_audit)}"), "B"))
        .with_target(instant(with_anchor(overdue), "C"))
        .no_value("Nothing needs attention.")
        .override_by_name("Severity", [prop("mappings", [mapping(SEVERITIES)]), coloured(), prop("custom.width", 100)])
        .override_by_name(
            "Status", [prop("mappings", [status_names()]), coloured(), runbook("${__data.fields.anchor}")]
        )
        .override_by_name(
            "Last success", [prop("unit", units.DateTimeFromNow), prop("mappings", [nothing_is("never")])]
        )
        .override_by_name("Overdue by", seconds())
        .override_by_name("anchor", [prop("custom.hidden", True)])
    )
    names = {
        "Value #A": "Severity",
        "status": "Status",
        "site": "Site",
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


def accepted_panel() -> table.Panel:
    """The containers whose problem is accepted, the next to end first."""
    until = with_status(f"1000 * {ACCEPTED} and on ({KEY}) ({metric('severity')} > 0)")
    panel = (
        new_table("Accepted problems", "Exceptions in force: these containers raise no alert until then.", 24, 5)
        .with_target(instant(until))
        .no_value("No problem is accepted.")
        .override_by_name("Status", [prop("mappings", [status_names()]), coloured()])
        .override_by_name("Until", [prop("unit", "dateTimeAsSystem")])
    )
    names = {
        "status": "Status",
        "site": "Site",
        "name": "Container",
        "engine": "Engine",
        "policy": "Policy",
        "owner": "Owner",
        "instance": "Audit host",
        "Value": "Until",
    }
    return sorted_by(columns(panel, names), ("Until", False))


def history_panel() -> statushistory.Panel:
    """The status of every container over the last 30 days."""
    steps = [(float(number), colour) for number, colour in enumerate(STATUS_COLOURS.values())]
    return (
        statushistory.Panel()
        .title("Status over the last 30 days")
        .description("The verdict that stood at the time. A gap: no current audit, or no such container.")
        .datasource(PROMETHEUS)
        .with_target(over_time(selected(status_numbers()), "{{name}} #{{c_id}} {{site}}"))
        .span(24)
        .height(12)
        .time_from("30d")
        .interval("6h")  # 120 columns: Grafana refuses to draw many more
        .per_page(25)
        .row_height(0.85)
        .col_width(0.95)
        .show_value(c.VisibilityMode.NEVER)
        .unit(units.Short)
        .mappings([mapping(numbered_statuses())])
        .thresholds(threshold_steps((None, "green"), *steps[1:]))
        .color_scheme(dashboard.FieldColor().mode(m.FieldColorModeId.THRESHOLDS))
        .legend(common.VizLegendOptions().show_legend(False))
    )


def coverage_panel() -> table.Panel:
    """The share of the time in which a good backup was recent enough for the policy, lowest first."""
    gauge = c.TableBarGaugeCellOptions(mode=c.BarGaugeDisplayMode.BASIC)
    covered = [prop("unit", units.PercentUnit), prop("min", 0), prop("max", 1), prop("decimals", 1)]
    panel = (
        new_table(
            "Coverage",
            "Share of the last history_days (30 by default) in which a good backup was recent enough.",
            10,
            11,
        )
        .with_target(instant(described(metric("covered_ratio"))))
        .thresholds(threshold_steps((None, "red"), (0.95, "yellow"), (0.99, "green")))
        .override_by_name("Covered", [*covered, prop("custom.cellOptions", gauge), runbook("mydbbackupcoveragelow")])
    )
    names = {
        "site": "Site",
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
    bounds = threshold_steps((None, "red"), (0.1, "green"), (3, "yellow")).build()
    ratio = [prop("unit", units.PercentUnit), prop("decimals", 0), prop("thresholds", bounds), coloured()]
    panel = (
        new_table(
            "Durations",
            "Last and typical (median) duration. Below 10 % of typical, check the dump.",
            14,
            11,
        )
        .with_target(instant(described(metric("last_duration_seconds")), "A"))
        .with_target(instant(described(metric("typical_duration_seconds")), "B"))
        .with_target(instant(described(last_to_typical()), "C"))
        .override_by_name("Last", seconds())
        .override_by_name("Typical", seconds())
        .override_by_name("Last / typical", [*ratio, runbook("mydbbackupsuspiciouslyshort")])
    )
    names = {
        "site": "Site",
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
        .with_target(over_time(f"count by (status) ({selected(f'{STATUS} == 1')})", "{{status}}"))
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
    """The audit itself, one line a site."""
    some = threshold_steps((None, "green"), (1, "yellow")).build()
    skew = threshold_steps((None, "yellow"), (-300, "green"), (300, "yellow")).build()
    outcome = mapping({"0": ("failed", "red"), "1": ("completed", "green")})
    panel = (
        new_table("The audit itself", "One line a site.", 24, 6)
        .with_target(instant(f"time() - last_over_time({AUDITED_AT}[7d])", "A"))
        .with_target(instant(metric("audit_success"), "B"))
        .with_target(instant(metric("audit_duration_seconds"), "C"))
        .with_target(instant(metric("audit_clock_skew_seconds"), "D"))
        .with_target(instant(f"time() - {metric('log_newest_timestamp_seconds')}", "E"))
        .with_target(instant(f"sum without (reason) ({metric('log_rows_ignored')})", "F"))
        .with_target(instant(metric("messages_unrecognised"), "G"))
        .with_target(instant(metric("audit_info"), "H"))
        .override_by_name("Age", [*seconds(), prop("thresholds", age_steps().build()), coloured()])
        .override_by_name("Last run", [prop("mappings", [outcome]), coloured()])
        .override_by_name("Took", seconds())
        .override_by_name("Clock difference", [*seconds(), prop("thresholds", skew), coloured()])
        .override_by_name("Newest log row", seconds())
        .override_by_name("Log rows ignored", [prop("thresholds", some), coloured()])
        .override_by_name("Unknown messages", [prop("thresholds", some), coloured()])
        .override_by_name("Value #H", [prop("custom.hidden", True)])
    )
    names = {
        "site": "Site",
        "instance": "Audit host",
        "job": "Job",
        "Value #A": "Age",
        "Value #B": "Last run",
        "Value #C": "Took",
        "Value #D": "Clock difference",
        "Value #E": "Newest log row",
        "Value #F": "Log rows ignored",
        "Value #G": "Unknown messages",
        "version": "Version",
    }
    return columns(panel, names)


# ---- The dashboard ------------------------------------------------------------------------------------


def variable(name: str, source: str, all_values: str = ".*") -> dashboard.QueryVariable:
    """A filter: the values that the label of that name takes in the series of source.

    By default, "All" also means what has no such label.
    """
    query: dict[str, object] = {"query": f"label_values({source}, {name})", "refId": "StandardVariableQuery"}
    return (
        dashboard.QueryVariable(name)
        .label(name.title())
        .datasource(PROMETHEUS)
        .query(query)
        .refresh(m.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(m.VariableSort.ALPHABETICAL_CASE_INSENSITIVE_ASC)
        .multi(True)
        .include_all(True)
        .all_value(all_values)
        .current(m.VariableOption(selected=True, text="All", value="$__all"))
    )


def new_dashboard() -> dashboard.Dashboard:
    """The dashboard with its filters, without panels."""
    info = metric("container_info")
    runbook_link = dashboard.DashboardLink("Runbook").type(m.DashboardLinkType.LINK).url(RUNBOOK).target_blank(True)
    return (
        dashboard.Dashboard("Backup Audit")
        .description("Does every database container of every site have the backup that its owner chose?")
        .tags(["backup", "db4sci"])
        .link(runbook_link)
        .readonly()
        .time("now-30d", "now")
        .timezone("browser")
        .refresh("5m")
        .tooltip(m.DashboardCursorSync.CROSSHAIR)
        .with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
        .with_variable(variable("job", "mydb_backup_audit_success", ".+"))
        .with_variable(variable("instance", 'mydb_backup_audit_success{job=~"$job"}', ".+"))
        .with_variable(variable("site", 'mydb_backup_audit_success{job=~"$job",instance=~"$instance"}'))
        .with_variable(variable("engine", info))
        .with_variable(variable("policy", info))
        .with_variable(variable("owner", info))
    )


def rows() -> Iterator[tuple[str, Sequence[stat.Panel | table.Panel | statushistory.Panel | timeseries.Panel]]]:
    """The panels by the row that they stand in."""
    yield "All sites", summary_panels()
    yield "Site by site", [sites_panel()]
    yield (
        "Containers",
        [
            attention_panel(),
            accepted_panel(),
            history_panel(),
            coverage_panel(),
            duration_panel(),
            trend_panel(),
        ],
    )
    yield "Audits", [audit_panel()]


def build() -> str:
    """The text of dashboard.json."""
    board = new_dashboard()
    ids = count(1)
    for title, panels in rows():
        board.with_row(dashboard.Row(title).id(next(ids)))
        for panel in panels:
            board.with_panel(panel.id(next(ids)))
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
