#!/usr/bin/env python3
"""Measures the whole audit on large sites, beside other ways to ask the same; bench/README.md tells more.

Starts a PostgreSQL of its own, fills it, measures, prints a table, and removes all of it. Exit status: 0 if
every target is met, 1 if one is missed, 2 if it could not be measured.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psycopg2

BENCH = Path(__file__).resolve().parent
TOP = BENCH.parent
sys.path.insert(0, str(TOP))

from admin_db import create_tables  # noqa: E402
from backup_audit import VERSION  # noqa: E402
from tests.postgres import ADMIN_USER, HOST, Database, Server, installations, started_server  # noqa: E402

SITES = "200x1000,2000x1500,10000x365,2000x300"
QUICK_SITES = "100x60,200x30"
STATES = ("calm", "troubled")
MB = 2**20

YEAR_OF = "2000x1500"
"""The site of which also a year's history is printed."""

IMPORTS = "import sqlalchemy, psycopg2, prometheus_client"

METADATA = "SELECT name, data, ts FROM containers WHERE id = %s"
LAST_ROWS = "SELECT state, backup_id, err_msg, ts FROM backups WHERE c_id = %s ORDER BY ts DESC LIMIT 10"


class BenchError(Exception):
    """The measurement cannot be made, or would mean nothing."""


# --- What is measured ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Size:
    """A site of so many containers, with so many days of history."""

    containers: int
    days: int

    def __str__(self) -> str:
        return f"{self.containers}x{self.days}"

    @classmethod
    def parse(cls, text: str) -> Size:
        """The size that `2000x1500` means. Raises `ValueError`."""
        containers, days = (int(number) for number in text.strip().lower().split("x"))
        if containers < 1 or days < 1:
            raise ValueError(text)
        return cls(containers, days)


@dataclass
class Site:
    """A filled database, and the audit's configuration for it."""

    size: Size
    database: Database
    folder: Path
    rows: int = 0

    @property
    def config(self) -> Path:
        """The audit's `mydb_config.py`."""
        return self.folder / "mydb_config.py"

    @property
    def bare_config(self) -> Path:
        """The same with `history_days = 0`."""
        return self.folder / "without_history.py"

    @property
    def textfile(self) -> Path:
        """What the audit writes."""
        return self.folder / "backup_audit.prom"


@dataclass(frozen=True)
class Sample:
    """One run of one program."""

    seconds: float
    cpu: float
    memory: int


@dataclass
class Figures:
    """All that was measured of one site in one state."""

    size: Size
    state: str
    rows: int
    samples: dict[str, list[Sample]] = field(default_factory=lambda: defaultdict(list))
    """By program, see `commands`."""
    selects: int = 0
    statements: int = 0
    one_by_one: float = 0.0
    """Seconds for all containers, extrapolated from `asked` of them."""
    asked: int = 0
    summary: str = ""

    def seconds(self, program: str) -> float:
        """The median wall time of a program."""
        return statistics.median(sample.seconds for sample in self.samples[program])

    def memory(self, program: str) -> float:
        """The peak memory of a program in MB, in its largest run."""
        return max(sample.memory for sample in self.samples[program]) / MB


@dataclass(frozen=True)
class Target:
    """A promise of the specification, and what became of it."""

    text: str
    state: str
    value: float
    limit: float
    at_least: bool = False
    unit: str = "x"

    @property
    def met(self) -> bool:
        """Whether it was kept."""
        return self.value >= self.limit if self.at_least else self.value <= self.limit


def targets(figures: Sequence[Figures]) -> Iterator[Target]:
    """Those of the targets whose sites were measured. The times are those of calm sites: a container may not be
    called late, missed or new before all of the log has been looked through.
    """
    for state in STATES:
        sites = {str(each.size): each for each in figures if each.state == state}
        for audit in ("bare", "audit") if state == "calm" else ():
            yield from targets_of(audit, state, sites)
        for size, site in sites.items():
            yield Target(f"{size}: SELECT statements", state, site.selects, 6, unit="")
        if year_site := sites.get(YEAR_OF):
            for program, options in (("year", "--history 365"), ("year as CSV", "--history 365 --csv")):
                yield Target(f"{YEAR_OF}: {options}", state, year_site.seconds(program), 5, unit="s")
                yield Target(f"{YEAR_OF}: {options}, peak memory", state, year_site.memory(program), 200, unit="MB")


def targets_of(audit: str, state: str, sites: Mapping[str, Figures]) -> Iterator[Target]:
    """The targets of the nightly audit: of the verdicts alone (`bare`), or with the history metrics (`audit`)."""
    kind = "verdicts alone" if audit == "bare" else "with history"
    if large := sites.get("2000x1500"):
        ratio = large.seconds(audit) / large.seconds("imports")
        yield Target(f"2000x1500, {kind} / imports", state, ratio, 2.5)
        if short := sites.get("2000x300"):
            ratio = large.seconds(audit) / short.seconds(audit)
            yield Target(f"2000x1500 / 2000x300, {kind}", state, ratio, 1.2)
        speed = large.one_by_one / large.seconds(audit)
        yield Target(f"2000x1500, one by one / {kind}", state, speed, 200, at_least=True)
        yield Target(f"2000x1500, {kind}", state, large.seconds(audit), 1, unit="s")
    if wide := sites.get("10000x365"):
        ratio = wide.seconds(audit) / wide.seconds("imports")
        yield Target(f"10000x365, {kind} / imports", state, ratio, 6)
        yield Target(f"10000x365, {kind}, peak memory", state, wide.memory(audit), 150, unit="MB")


# --- The server and its sites --------------------------------------------------------------------------


@contextmanager
def server_of_our_own() -> Iterator[Server]:
    """A PostgreSQL with settings that suit this machine; fills fast, and rests while others measure."""
    if not (found := installations()):
        raise BenchError("no PostgreSQL was found: pip install -r requirements-dev.txt")
    settings = {
        "shared_buffers": f"{min(total_memory() // 4, 2048 * MB) // MB}MB",
        "effective_cache_size": f"{total_memory() // 2 // MB}MB",
        "maintenance_work_mem": "256MB",
        "wal_level": "minimal",
        "max_wal_senders": "0",
        "max_wal_size": "8GB",
        "checkpoint_timeout": "1h",
        "autovacuum": "off",  # the scripts do it at the right moment
        "log_min_messages": "error",
    }
    server = started_server(found[0], settings)
    try:
        yield server
    finally:
        server.remove()


def total_memory() -> int:
    """This machine's memory in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def fill(server: Server, size: Size, folder: Path, history_days: int) -> Site:
    """A database with a calm site of this size."""
    database = server.create_database(f"site_{size}")
    create_tables(database.engine)
    database.engine.dispose()
    run_script(database, "fill.sql", containers=size.containers, days=size.days)
    site = Site(size, database, folder / str(size))
    site.folder.mkdir(parents=True, exist_ok=True)
    for config, days in ((site.config, history_days), (site.bare_config, 0)):
        settings = {**database.settings, "prometheus_file": str(site.textfile), "history_days": days}
        lines = [f"{name} = {value!r}\n" for name, value in settings.items()]
        config.write_text("".join(lines), encoding="utf-8")
    return site


def run_script(database: Database, name: str, **values: object) -> None:
    """Run one of the SQL scripts of this folder."""
    database.psql(BENCH / name, *(f"--set={key}={value}" for key, value in values.items()))


# --- Measuring -----------------------------------------------------------------------------------------


def measure(sites: Sequence[Site], state: str, runs: int, patience: float) -> list[Figures]:
    """All figures of all sites: the programs take turns, so that what else the machine does hits them alike."""
    figures = []
    for site in sites:
        site.rows = site.database.execute("SELECT count(*) FROM backups")[0][0]
        each = Figures(site.size, state, site.rows)
        warm_up(site, each)
        figures.append(each)
    for turn in range(runs):
        say(f"{state}: run {turn + 1} of {runs}")
        for site, each in zip(sites, figures, strict=True):
            for program, command in commands(site).items():
                each.samples[program].append(timed(command, site))
    for site, each in zip(sites, figures, strict=True):
        say(f"{state}: {site.size} one container at a time")
        each.asked, seconds = one_by_one(site, patience)
        each.one_by_one = seconds / each.asked * site.size.containers
    return figures


def commands(site: Site) -> dict[str, list[str]]:
    """What is timed."""
    psql = str(site.database.server.installation.bindir / "psql")
    target = [f"--host={HOST}", f"--port={site.database.server.port}", f"--username={ADMIN_USER}"]
    options = ["--no-psqlrc", "--no-password", "--no-align", "--tuples-only", "--set=ON_ERROR_STOP=1"]
    audit = [sys.executable, str(TOP / "backup_audit.py"), "--config"]
    programs = {
        "bare": [*audit, str(site.bare_config), "-q"],
        "audit": [*audit, str(site.config), "-q"],
        "imports": [sys.executable, "-c", IMPORTS],
        "psql": [psql, *options, *target, f"--dbname={site.database.name}", f"--file={BENCH / 'best.sql'}"],
    }
    if str(site.size) == YEAR_OF:
        programs["year"] = [*audit, str(site.config), "--history", "365"]
        programs["year as CSV"] = [*programs["year"], "--csv"]
    return programs


def timed(command: list[str], site: Site) -> Sample:
    """Run a command through the stopwatch."""
    watch = [sys.executable, "-I", "-S", str(BENCH / "stopwatch.py"), *command]
    answer = run(watch, site)
    complaint, _, figures = answer.stderr.rstrip().rpartition("\n")
    found = json.loads(figures)
    if found.pop("status") not in (0, 1, 2) or complaint.strip():
        raise BenchError(f"{' '.join(command)} failed: {complaint.strip()}")
    return Sample(**found)


def run(command: list[str], site: Site) -> subprocess.CompletedProcess[str]:
    """Run a command in an environment without anything that changes how Python starts."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PG"))}
    environment["PGPASSFILE"] = str(site.database.server.passfile)
    return subprocess.run(  # noqa: S603 - nothing in it comes from outside
        command, env=environment, cwd=site.folder, capture_output=True, text=True, check=False
    )


def warm_up(site: Site, figures: Figures) -> None:
    """Run everything once, count the audit's statements, and see that two ways lead to the same answer."""
    programs = commands(site)
    run(programs["imports"], site)
    figures.selects, figures.statements = count_statements(programs["audit"], site)
    loud = [option for option in programs["audit"] if option != "-q"]
    figures.summary = " ".join(run([*loud, "-v"], site).stdout.strip().rpartition("\n\n")[2].split())
    theirs = dict(re.findall(r"^(\d+)\|(\d+)\.\d+\|", run(programs["psql"], site).stdout, re.MULTILINE))
    metric = r'^mydb_backup_last_success_timestamp_seconds\{[^}]*?c_id="(\d+)"[^}]*\} (\S+)$'
    found = re.findall(metric, site.textfile.read_text("utf-8"), re.MULTILINE)
    ours = {c_id: str(int(float(moment))) for c_id, moment in found}
    if ours != theirs:
        raise BenchError(f"{site.size}: the audit and best.sql differ on {sorted(ours.items() ^ theirs.items())[:4]}")


def count_statements(audit: list[str], site: Site) -> tuple[int, int]:
    """How many SELECT statements and how many statements at all the server gets from one audit."""
    database, log = site.database, site.database.server.folder / "log"
    database.execute(f"ALTER ROLE {ADMIN_USER} SET log_statement = 'all'")
    try:
        before = log.stat().st_size
        answer = run(audit, site)
        with log.open("rb") as lines:
            lines.seek(before)
            logged = lines.read().decode("utf-8", "replace")
    finally:
        database.execute(f"ALTER ROLE {ADMIN_USER} RESET log_statement")
    if answer.returncode not in (0, 1, 2):
        raise BenchError(f"the audit failed: {answer.stderr.strip()}")
    statements = re.findall(r"LOG:  (?:statement|execute \S+): *(\w+)", logged)
    selects = [word for word in statements if word.upper() in ("SELECT", "WITH", "DECLARE")]
    return len(selects), len(statements)


def one_by_one(site: Site, patience: float) -> tuple[int, float]:
    """The obvious way: for each container its metadata, then its last rows. As many as `patience` allows.

    Gives back how many were asked, and the seconds it took; connecting does not count.
    """
    connection = psycopg2.connect(
        host=HOST,
        port=site.database.server.port,
        dbname=site.database.name,
        user=ADMIN_USER,
        passfile=str(site.database.server.passfile),
    )
    try:
        with connection.cursor() as cursor:
            started = time.perf_counter()
            for c_id in range(1, site.size.containers + 1):
                cursor.execute(METADATA, (c_id,))
                cursor.fetchall()
                cursor.execute(LAST_ROWS, (c_id,))
                cursor.fetchall()
                if (seconds := time.perf_counter() - started) > patience:
                    break
    finally:
        connection.close()
    return c_id, seconds


# --- Telling -------------------------------------------------------------------------------------------


def say(text: str) -> None:
    """Tell on stderr what is going on."""
    print(f"bench: {text}", file=sys.stderr, flush=True)


def machine(server: Server) -> list[str]:
    """Where and with what this was measured."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("SQLAlchemy", "psycopg2-binary", "prometheus-client"))
    postgres = server.execute("SHOW server_version")[0][0]
    buffers = server.execute("SHOW shared_buffers")[0][0]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return [
        f"Backup Audit {VERSION}, {date.today().isoformat()}",  # noqa: DTZ011 - the date of whoever runs it
        f"Python {platform.python_version()}, {packages}",
        f"PostgreSQL {postgres} on the same machine, shared_buffers {buffers}",
        f"{cores} cores ({processor()}), {total_memory() / 2**30:.0f} GB, {platform.system()} {platform.machine()}",
        f"load when it began {os.getloadavg()[0]:.1f}",
    ]


def processor() -> str:
    """The processor's name, as far as the system tells."""
    try:
        found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text("utf-8"), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or "unknown"


Table = list[list[str]]
"""Rows of cells; the first row is the head, the first column is text, the others are numbers."""


def figures_table(figures: Sequence[Figures]) -> Table:
    """The figures of each site in each state."""
    table = [["site", "rows", "bare", "audit", "imports", "psql", "one by one", "asked", "peak", "SELECTs"]]
    for each in figures:
        times = [f"{each.seconds(program):.3f} s" for program in ("bare", "audit", "imports", "psql")]
        table.append(
            [
                f"{each.size} {each.state}",
                f"{each.rows:,}",
                *times,
                f"{each.one_by_one:,.{0 if each.one_by_one >= 10 else 2}f} s",
                f"{each.asked:,}",
                f"{each.memory('bare'):.0f}, {each.memory('audit'):.0f} MB",
                f"{each.selects} of {each.statements}",
            ]
        )
    return table


def ratios_table(figures: Sequence[Figures]) -> Table:
    """How the audit compares with the others."""
    table = [["site", "bare / imports", "audit / imports", "audit / psql", "one by one / audit", "spread of audit"]]
    for each in figures:
        audit = each.seconds("audit")
        spread = sorted(sample.seconds for sample in each.samples["audit"])
        table.append(
            [
                f"{each.size} {each.state}",
                f"{each.seconds('bare') / each.seconds('imports'):.2f}",
                f"{audit / each.seconds('imports'):.2f}",
                f"{audit / each.seconds('psql'):.2f}",
                f"{each.one_by_one / audit:,.0f}",
                f"{spread[0]:.3f} to {spread[-1]:.3f} s",
            ]
        )
    return table


def targets_table(found: Sequence[Target]) -> Table:
    """The targets, and which of them are met."""
    table = [["target", "site is", "limit", "measured", ""]]
    for target in found:
        form = ".0f" if target.unit in ("", "MB") or target.limit >= 100 else ".2f"
        sign = ">=" if target.at_least else "<="
        limit = f"{sign} {target.limit:g} {target.unit}".strip()
        measured = f"{target.value:,{form}} {target.unit}".strip()
        table.append([target.text, target.state, limit, measured, "met" if target.met else "MISSED"])
    return table


def as_text(table: Table) -> list[str]:
    """A table for people."""
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    lines = []
    for row in table:
        first, *others = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        lines.append("  ".join([first.strip().ljust(widths[0]), *others]).rstrip())
    lines.insert(1, "-" * max(len(line) for line in lines))
    return lines


def as_markdown(table: Table) -> list[str]:
    """A table for bench/README.md."""
    head, *rows = ("| " + " | ".join(row) + " |" for row in table)
    return [head, "|---|" + "---:|" * (len(table[0]) - 1), *rows]


def document(about: list[str], figures: Sequence[Figures], runs: int, days: int, markdown: bool) -> str:
    """All that was found."""
    layout = as_markdown if markdown else as_text
    heading = "### " if markdown else ""
    note = f"Median of {runs} runs; history_days = {days}; one by one extrapolated from as many as were asked."
    parts = [
        ["  \n".join(about) if markdown else "\n".join(about)],
        [note],
        [f"{heading}Figures", "", *layout(figures_table(figures))],
        [f"{heading}Ratios", "", *layout(ratios_table(figures))],
    ]
    if found := list(targets(figures)):
        parts.append([f"{heading}Targets", "", *layout(targets_table(found))])
    return "\n\n".join("\n".join(part) for part in parts)


def raw(figures: Sequence[Figures]) -> list[dict[str, Any]]:
    """The single measurements, for whoever wants to look closer."""
    return [
        {
            "site": str(each.size),
            "state": each.state,
            "rows": each.rows,
            "summary": each.summary,
            "selects": each.selects,
            "statements": each.statements,
            "one_by_one": {"seconds": each.one_by_one, "asked": each.asked},
            "samples": {name: [vars(sample) for sample in samples] for name, samples in each.samples.items()},
        }
        for each in figures
    ]


# --- The main flow -------------------------------------------------------------------------------------


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Measure the audit of large sites.")
    add = parser.add_argument
    add("--sites", metavar="LIST", help=f"containers x days, with commas between (default: {SITES})")
    add("--runs", type=int, metavar="N", help="measurements of each program (default: 5)")
    add("--history-days", type=int, default=30, metavar="N", help="the audit's setting history_days (default: 30)")
    add("--state", choices=STATES, action="append", help="only sites in this state (default: calm, then troubled)")
    add("--keep", type=Path, metavar="DIR", help="keep configurations, textfiles and single measurements there")
    add("--markdown", action="store_true", help="print Markdown, for bench/README.md")
    add("--quick", action="store_true", help="tiny sites, one run: shows that everything works, measures nothing")
    options = parser.parse_args(argv)
    try:
        sizes = [Size.parse(text) for text in (options.sites or (QUICK_SITES if options.quick else SITES)).split(",")]
    except ValueError:
        parser.error("--sites is a list such as 2000x1500,2000x300")
    options.sizes = list(dict.fromkeys(sizes))
    options.runs = options.runs or (1 if options.quick else 5)
    if options.runs < 1:
        parser.error("--runs must be at least 1")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and tell; gives back the exit status."""
    options = parse(argv)
    with tempfile.TemporaryDirectory(prefix="backup-audit-bench-") as temporary:
        folder = (options.keep or Path(temporary)).resolve()
        try:
            about, figures = bench(options, folder)
        except (BenchError, RuntimeError) as error:
            say(str(error))
            return 2
        print(document(about, figures, options.runs, options.history_days, options.markdown))
        if options.keep:
            (folder / "measurements.json").write_text(json.dumps(raw(figures), indent=2) + "\n", encoding="utf-8")
    return 0 if all(target.met for target in targets(figures)) else 1


def bench(options: argparse.Namespace, folder: Path) -> tuple[list[str], list[Figures]]:
    """Fill all sites and measure them in every state that is wanted."""
    states = options.state or STATES
    with server_of_our_own() as server:
        about = machine(server)
        started = time.perf_counter()
        say(f"filling {', '.join(map(str, options.sizes))}")
        with ThreadPoolExecutor(max_workers=2) as pool:
            sites = list(pool.map(lambda size: fill(server, size, folder, options.history_days), options.sizes))
        say(f"filled in {time.perf_counter() - started:.0f} s")
        figures: list[Figures] = []
        for state in STATES:
            if state == "troubled" and state in states:
                for site in sites:
                    run_script(site.database, "trouble.sql")
            if state in states:
                figures += measure(sites, state, options.runs, 0.2 if options.quick else 10)
    return about, figures


if __name__ == "__main__":
    sys.exit(main())
