#!/usr/bin/env python3
"""Measures the whole audit on large sites, in three states, with and without the index; see bench/README.md.

Starts a PostgreSQL of its own, fills it, measures, prints tables, and removes all of it. Exit status: 0 if
every target is met, 1 if one is missed, 2 if it could not be measured.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import date
from importlib.metadata import version
from pathlib import Path

BENCH = Path(__file__).resolve().parent
TOP = BENCH.parent
sys.path.insert(0, str(TOP))

from admin_db import create_tables  # noqa: E402
from tests.postgres import ADMIN_USER, Database, Server, installations, started_server  # noqa: E402

LARGE, MANY, SHORT = "2000x1500", "10000x365", "2000x300"
"""The sites of the targets: so many containers, so many days of history."""
WIDE, LONG = "2000x1500-wide", "15x30-long"
"""The large site with documents of 20 kB instead of some kilobytes; a small one with messages of 1.1 MB."""
ALL_SITES = ",".join((LARGE, MANY, SHORT, WIDE, LONG))
QUICK_SITES = "300x40,100x60-wide,5x30-long"
PARTS = {"wide": 24}
"""How many parts of each kind a document has; else 3."""

STATES = ("calm", "ordinary", "outage")
"""Each but the first is made of the one before, by the script of its name."""

IMPORTS = [sys.executable, "-c", "import sqlalchemy, psycopg2, prometheus_client"]
AUDIT = [sys.executable, str(TOP / "backup_audit.py"), "--config", "mydb_config.py"]
HISTORY = {"table": [], "CSV": ["--csv"], "JSON": ["--json"], "HTML": ["--html", "history.html"]}
"""The formats of `--history 365`."""
MB = 2**20
MEMORY = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // MB
"""This machine's, in MB."""


# --- What is measured ----------------------------------------------------------------------------------


@dataclass
class Site:
    """A filled database, and a folder with the audit's configuration for it."""

    name: str
    database: Database
    folder: Path
    rows: int
    index: str = ""
    """The index's size, and the time that it took to make."""


@dataclass
class Result:
    """What was measured of one program, on one site in one state."""

    site: Site
    state: str
    index: str
    """`with` or `without` it."""
    program: str
    command: list[str]
    seconds: list[float] = field(default_factory=list)
    imports: list[float] = field(default_factory=list)
    """Seconds for importing the packages, just before."""
    peak: float = 0
    """Memory in MB, of the largest run."""
    selects: int = 0
    found: str = ""
    """The containers by status."""

    @property
    def median(self) -> float:
        """The median wall time in seconds."""
        return statistics.median(self.seconds)

    @property
    def ratio(self) -> float:
        """How many times as long as importing the packages it takes."""
        return self.median / statistics.median(self.imports)


@dataclass(frozen=True)
class Target:
    """A target, and what was measured in each case."""

    text: str
    index: str
    limit: float
    unit: str
    measured: dict[str, float]

    @property
    def worst(self) -> tuple[str, float]:
        """The case that decides, and its figure."""
        return max(self.measured.items(), key=lambda item: item[1])

    @property
    def excess(self) -> float:
        """By which part of the limit it is missed; 0 or less if it is met."""
        return self.worst[1] / self.limit - 1


def targets(results: Sequence[Result]) -> list[Target]:
    """The targets of all that was measured."""
    found = []
    audits = [each for each in results if each.program == "audit"]
    for index, limits in (("with", (4, 12, 1.15)), ("without", (5.5, 14, 1.6))):
        large, many, short = (
            {each.state: each for each in audits if (each.site.name, each.index) == (site, index)}
            for site in (LARGE, MANY, SHORT)
        )
        growth = {state: large[state].median / short[state].median for state in large.keys() & short.keys()}
        found += [
            Target(f"{LARGE} / imports", index, limits[0], "x", {state: each.ratio for state, each in large.items()}),
            Target(f"{MANY} / imports", index, limits[1], "x", {state: each.ratio for state, each in many.items()}),
            Target(f"{LARGE} / {SHORT}", index, limits[2], "x", growth),
        ]
    for name in HISTORY:
        text = f"{LARGE} --history 365, {name}"
        years = [each for each in results if (each.site.name, each.program) == (LARGE, name)]
        found.append(Target(text, "with", 8, "s", {each.state: each.median for each in years}))
        found.append(Target(text, "with", 200, "MB", {each.state: each.peak for each in years}))
    cases = {f"{each.site.name} {each.state}, {each.index}": each for each in audits}
    peaks = {case: each.peak for case, each in cases.items()}
    selects: dict[str, float] = {case: each.selects for case, each in cases.items()}
    found.append(Target("every audit, peak memory", "both", 150, "MB", peaks))
    found.append(Target("every audit, SELECT statements", "both", 7, "", selects))
    return [target for target in found if target.measured]


# --- The server and its sites --------------------------------------------------------------------------


@contextmanager
def server_of_our_own() -> Iterator[Server]:
    """A PostgreSQL with settings that suit this machine; fills fast, and rests while others measure."""
    if not (found := installations()):
        raise RuntimeError("no PostgreSQL was found: pip install -r requirements-dev.txt")
    settings = {
        "shared_buffers": f"{min(MEMORY // 4, 2048)}MB",
        "effective_cache_size": f"{MEMORY // 2}MB",
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


def fill(server: Server, name: str, folder: Path) -> Site:
    """A new database with a calm site."""
    size, _, kind = name.partition("-")
    containers, days = size.split("x")
    database = server.create_database(f"site_{name}".replace("-", "_"))
    create_tables(database.engine)
    database.engine.dispose()
    variables = {"containers": containers, "days": days, "parts": PARTS.get(kind, 3)}
    database.psql(BENCH / "fill.sql", *(f"--set={key}={value}" for key, value in variables.items()))
    if kind == "long":
        database.psql(BENCH / "long_messages.sql")
    site = Site(name, database, folder / name, rows=database.execute("SELECT count(*) FROM backups")[0][0])
    site.folder.mkdir()
    settings = {**database.settings, "prometheus_file": "backup_audit.prom"}
    lines = (f"{key} = {value!r}\n" for key, value in settings.items())
    (site.folder / "mydb_config.py").write_text("".join(lines), encoding="utf-8")
    return site


def create_index(site: Site) -> None:
    """Make the index as a site does."""
    started = time.perf_counter()
    site.database.psql(TOP / "deploy" / "log_index.sql", user=ADMIN_USER)
    size = site.database.execute("SELECT pg_size_pretty(pg_relation_size('backups_ts'))")[0][0]
    site.index = f"{size} in {time.perf_counter() - started:.1f} s"


# --- Measuring -----------------------------------------------------------------------------------------


def measure_all(sites: Sequence[Site], states: Iterable[str], runs: int) -> list[Result]:
    """Measure calm sites in each of these states, without the index and with it; at last the first site's history."""
    results = []
    for state in STATES:
        if state != STATES[0]:
            for site in sites:
                site.database.psql(BENCH / f"{state}.sql")
        if state not in states:
            continue
        without = [Result(site, state, "without", "audit", [*AUDIT, "-q"]) for site in sites]
        measure(without, runs)
        for site in sites:
            create_index(site)
        with_index = [replace(each, index="with", seconds=[], imports=[], peak=0) for each in without]
        year = [*AUDIT, "--history", "365"]
        # a year is a year in any state: the last one will do
        formats = HISTORY if state == STATES[-1] else ()
        histories = [Result(sites[0], state, "with", name, [*year, *HISTORY[name]]) for name in formats]
        measure(with_index + histories, runs)
        for one, other in zip(without, with_index, strict=True):
            one.site.database.execute("DROP INDEX backups_ts")
            if one.found != other.found:
                raise RuntimeError(f"{one.site.name}: the audit finds {one.found}, but {other.found} with the index")
        results += without + with_index + histories
    return results


def measure(results: Sequence[Result], runs: int) -> None:
    """The programs take turns, so that what else the machine does hits them alike."""
    for turn in range(runs + 1):
        say(f"{results[0].state}, {results[0].index} index: {f'run {turn} of {runs}' if turn else 'warming up'}")
        for each in results:
            if turn:
                each.imports.append(run(IMPORTS, each.site)[0])
                seconds, memory = run(each.command, each.site)
                each.seconds.append(seconds)
                each.peak = max(each.peak, memory)
            else:
                warm_up(each)


def warm_up(program: Result) -> None:
    """Run it once; note how many SELECT statements the server gets, and what the last audit found."""
    database = program.site.database
    log = database.server.folder / "log"
    before = log.stat().st_size
    database.execute(f"ALTER ROLE {ADMIN_USER} SET log_statement = 'all'")
    run(program.command, program.site)
    database.execute(f"ALTER ROLE {ADMIN_USER} RESET log_statement")
    logged = log.read_bytes()[before:].decode("utf-8", "replace")
    selects = r"LOG:  (?:statement|execute \S+):\s*(?:SELECT|WITH|DECLARE)\b"
    program.selects = len(re.findall(selects, logged, re.IGNORECASE))
    textfile = (program.site.folder / "backup_audit.prom").read_text("utf-8")
    counts = re.findall(r'^mydb_backup_containers\{status="(\w+)"\} ([1-9]\d*)', textfile, re.MULTILINE)
    program.found = ", ".join(f"{number} {status}" for status, number in counts)


def run(command: list[str], site: Site) -> tuple[float, float]:
    """Run a program; returns its wall time in seconds and its peak memory in MB. Raises `RuntimeError` if it fails.

    Linux counts the memory of the starting process as the program's. An audit needs more, so that does no harm.
    """
    # nothing that changes how Python starts
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PG"))}
    with tempfile.TemporaryFile() as errors:
        started = time.perf_counter()
        process = subprocess.Popen(  # noqa: S603 - nothing in it comes from outside
            command, env=environment, cwd=site.folder, stdout=subprocess.DEVNULL, stderr=errors
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        errors.seek(0)
        complaint = errors.read().decode("utf-8", "replace").strip()
    if process.returncode not in (0, 1, 2) or complaint:
        raise RuntimeError(f"{' '.join(command)} exits {process.returncode}: {complaint}")
    return seconds, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / MB


# --- Telling -------------------------------------------------------------------------------------------


def say(text: str) -> None:
    """Tell on stderr what is going on."""
    print(f"bench: {text}", file=sys.stderr, flush=True)


def machine(server: Server) -> str:
    """Where and with what this is measured."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("SQLAlchemy", "psycopg2-binary", "prometheus-client"))
    postgres, buffers = (server.execute(f"SHOW {name}")[0][0] for name in ("server_version", "shared_buffers"))
    return (
        f"{date.today().isoformat()}; Python {platform.python_version()}, {packages}; "  # noqa: DTZ011 - of this place
        f"PostgreSQL {postgres} on the same machine, shared_buffers {buffers}; "
        f"{os.cpu_count()} cores, {MEMORY / 1024:.0f} GB, load {os.getloadavg()[0]:.1f} at the beginning"
    )


def tables(sites: Sequence[Site], results: Sequence[Result]) -> Iterator[list[list[str]]]:
    """The sites, the audits, the histories and the targets; the first row of each table is its head."""
    yield [["site", "log rows", "index made"], *([site.name, f"{site.rows:,}", site.index] for site in sites)]
    audits = [["site", "state", "index", "audit", "fastest", "slowest", "/ imports", "peak", "SELECTs", "found"]]
    histories = [["--history 365", "state", "index", "time", "fastest", "slowest", "/ imports", "peak"]]
    for each in sorted(results, key=lambda each: sites.index(each.site)):
        times = [f"{seconds:.2f} s" for seconds in (each.median, min(each.seconds), max(each.seconds))]
        row = [each.state, each.index, *times, f"{each.ratio:.1f} x", f"{each.peak:.0f} MB"]
        if each.program == "audit":
            audits.append([each.site.name, *row, str(each.selects), each.found])
        else:
            histories.append([each.program, *row])
    promises = [["target", "index", "limit", "measured", "worst in", ""]]
    for target in targets(results):
        case, value = target.worst
        measured = f"{value:.{2 if target.unit in ('x', 's') else 0}f} {target.unit}"
        verdict = f"missed by {target.excess:.0%}" if target.excess > 0 else "met"
        promises.append([target.text, target.index, f"{target.limit:g} {target.unit}", measured, case, verdict])
    yield from (table for table in (audits, histories, promises) if len(table) > 1)


def as_markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table, for people and for bench/README.md."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [" | ".join(map(str.ljust, row, widths)) for row in rows]
    lines.insert(1, " | ".join("-" * width for width in widths))
    return "\n".join(f"| {line} |" for line in lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and tell; returns the exit status."""
    parser = argparse.ArgumentParser(description="Measure the audit of large sites.")
    add = parser.add_argument
    add("--sites", metavar="LIST", help=f"containers x days, with commas between (default: {ALL_SITES})")
    add("--state", choices=STATES, action="append", help="only sites in this state (default: all three)")
    add("--runs", type=int, metavar="N", help="measurements of each program (default: 5)")
    add("--quick", action="store_true", help="tiny sites, one run: shows that everything works, measures nothing")
    options = parser.parse_args(argv)
    names = (options.sites or (QUICK_SITES if options.quick else ALL_SITES)).split(",")
    runs = options.runs or (1 if options.quick else 5)
    if runs < 1 or not all(re.fullmatch(r"[1-9]\d*x[1-9]\d*(-wide|-long)?", name) for name in names):
        parser.error("--sites is a list such as 2000x1500,2000x300, --runs at least 1")
    try:
        with tempfile.TemporaryDirectory(prefix="backup-audit-bench-") as folder, server_of_our_own() as server:
            about = machine(server)
            say(f"filling {', '.join(names)}")
            with ThreadPoolExecutor(max_workers=2) as pool:
                sites = list(pool.map(lambda name: fill(server, name, Path(folder)), dict.fromkeys(names)))
            results = measure_all(sites, options.state or STATES, runs)
    except RuntimeError as error:
        say(str(error))
        return 2
    print(about, f"Median of {runs} runs.", *map(as_markdown, tables(sites, results)), sep="\n\n")
    return 1 if any(target.excess > 0 for target in targets(results)) else 0


if __name__ == "__main__":
    sys.exit(main())
