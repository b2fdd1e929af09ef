"""Hostile input: any text in every text column and any JSON in `data`, and passwords wherever DB4Sci has them.

The audit is completed, its exposition parses back to the same names, nothing that a terminal obeys reaches
one, and no password gets out: not in any output or file, not even in a row that the server sends.
"""

from __future__ import annotations

import itertools
import json
import re
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from types import FrameType
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, delete, event
from sqlalchemy.orm import Session

from models import ActionLog, BackupLog, Base, ContainerRow, ContainerState
from tests.builders import NOW, SECRET, Site, parse_samples
from tests.postgres import clear
from tests.test_faults import relayed

AT = NOW.isoformat()
PATIENCE = 3.0
"""Seconds that one command may take about a handful of rows; it takes a small part of one."""

# --- What a site may hold -------------------------------------------------------------------------------

PIECES = [
    "\x1b[2J\x1b[31mred\x1b[0m",
    "\x1b]0;title\x07",
    "\x1b]8;;http://example.org\x1b\\",
    "\x9b31m",
    "\x90q\x9c",
    "\x7f\x08\x07\x05",
    "\r\n",
    "\r",
    "\n",
    "\t",
    "\x0b\x0c\x1c\x1d\x1e\x1f\x85",
    "\u2028\u2029",
    "\u202e\u2066\u200b\ufeff\U000e0041",
    "\u0300\u0301",
    "\U0001f4be数据",
    '"} 1\nmydb_backup_status{name="forged"} 1\n',
    '"',
    "'",
    "\\",
    "\\n",
    "{}",
    ",",
    "# HELP mydb_backup_status forged",
    "%s %(name)s %%",
    ":name",
    "{0} {name}",
    "'; DROP TABLE backups; --",
    "=cmd|' /C calc'!A0",
    "--json",
    "pg_dump: error: ",
    "password=",
    "s3://user:pass@host",
    "Daily",
    "Weekly",
    "never",
    " ",
    "\u00a0",
    "start",
    "end",
    "offsite",
    "20260313-18:07:31",
    "x" * 300,
]


def texts(nul: bool) -> st.SearchStrategy[str]:
    """Any text that a database takes; only SQLite takes NUL."""
    characters = st.characters(exclude_categories=["Cs"], exclude_characters="" if nul else "\0")
    anything = st.text(characters, max_size=30)
    return st.one_of(anything, st.lists(st.sampled_from(PIECES) | anything, max_size=4).map("".join))


def documents(text: st.SearchStrategy[str]) -> st.SearchStrategy[Any]:
    """Any JSON, and what resembles a container's document: the keys that the audit reads, with any JSON there."""
    numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    anything = st.recursive(
        st.none() | st.booleans() | numbers | text,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
        max_leaves=6,
    )
    leaf = text | text | anything
    labels = st.fixed_dictionaries(
        {}, optional=dict.fromkeys(("BACKUP_FREQ", "backup_freq", "owner", "contact", "password"), leaf)
    )
    keys = ("BACKUP_FREQ", "backup_freq", "OWNER", "CONTACT", "dbengine", "Name")
    info = st.fixed_dictionaries({}, optional={**dict.fromkeys(keys, leaf), "labels": labels | anything})
    config = st.fixed_dictionaries({}, optional={"Labels": labels | anything, "Hostname": leaf})
    whole = st.fixed_dictionaries(
        {"Info": info | info | anything}, optional={"Config": config | anything, "Spec": anything}
    )
    return (whole | whole | anything).map(with_passwords)


PASSWORD_KEYS = itertools.cycle(
    ["POSTGRES_PASSWORD", "DB_PASS", "password", "MYSQL_ROOT_PASSWORD", "Passwd", "AWS_SECRET_ACCESS_KEY", "neo4j_pwd"]
)


def with_passwords(document: Any) -> Any:
    """The document with a password in every object of it, and in the environment of the container."""
    if isinstance(document, list):
        return [with_passwords(item) for item in document]
    if not isinstance(document, dict):
        return document
    planted = {key: with_passwords(value) for key, value in document.items()}
    if isinstance(planted.get("Config"), dict):
        planted["Config"]["Env"] = ["PGDATA=/var/lib/postgresql", f"POSTGRES_PASSWORD={SECRET}"]
    if isinstance(planted.get("Spec"), dict):
        planted["Spec"]["TaskTemplate"] = {"ContainerSpec": {"Env": [f"MYSQL_ROOT_PASSWORD={SECRET}"]}}
    # an object that stands where the audit expects a text as well: it must not come out as one
    return {**planted, next(PASSWORD_KEYS): SECRET, "credentials": {"password": [SECRET, {"DB_PASS": SECRET}]}}


@dataclass(frozen=True)
class LogRow:
    """One row of `backups`; `container` is the index of its container, -1 for `c_id` 0, None for NULL."""

    container: int | None
    state: str | None
    backup_id: str | None
    ts: datetime | None
    texts: list[str | None]


@dataclass(frozen=True)
class Hostile:
    """What is in the tables."""

    containers: list[tuple[Any, datetime | None, list[str | None]]]
    """Of each container the document, the creation, and eight texts."""
    log: list[LogRow]


moments = st.none() | st.datetimes(datetime(2026, 2, 1), datetime(2026, 3, 15))


def hostile_sites(nul: bool) -> st.SearchStrategy[Hostile]:
    text = texts(nul)
    maybe = st.none() | text | text
    container = st.tuples(documents(text), moments, st.lists(maybe, min_size=8, max_size=8))
    row = st.builds(
        LogRow,
        st.sampled_from([0, 1, 2, 0, 1, -1, None]),
        st.sampled_from(["start", "end", "start", "end", None]) | text,
        st.sampled_from(["20260313-18:07:31", "20260312-18:07:31"]) | maybe,
        moments,
        st.lists(maybe, min_size=5, max_size=5),
    )
    return st.builds(Hostile, st.lists(container, min_size=1, max_size=3), st.lists(row, max_size=8))


def put_in(site: Site, hostile: Hostile) -> dict[str, str]:
    """Fill the tables; gives back the names of the active containers by their `c_id`s."""
    names = {}
    with site.session() as session:
        for c_id, (data, created, words) in enumerate(hostile.containers, 1):
            name, state_name, state, last_state, observed, changed_by, action, description = words
            session.add(ContainerRow(id=c_id, name=name, data=data, ts=created))
            session.add(
                ContainerState(
                    c_id=c_id,
                    name=state_name,
                    state=state,
                    last_state=last_state,
                    observerd=observed,
                    changed_by=changed_by,
                    ts=created,
                )
            )
            session.add(ActionLog(c_id=c_id, name=name, action=action, description=description, ts=created))
            names[str(c_id)] = state_name or name or f"c_id {c_id}"
        for row in hostile.log:
            name, kind, url, command, err_msg = row.texts
            session.add(
                BackupLog(
                    c_id=None if row.container is None else row.container + 1,
                    name="offsite" if row.container == -1 else name,
                    state=row.state,
                    backup_id=row.backup_id,
                    backup_type=kind,
                    url=url,
                    command=f"{command or ''} -u root -p{SECRET} --password={SECRET}",
                    err_msg=err_msg,
                    ts=row.ts,
                )
            )
    return names


# --- What is required -----------------------------------------------------------------------------------

OUR_COLOURS = re.compile(r"\x1b\[(?:0|32|33|31;1)m")
COMMANDS: list[tuple[str, ...]] = [
    ("-v", "--debug"),
    ("--json",),
    ("--history", "30"),
    ("--history", "30", "--json"),
]


def bad_characters(out: str) -> list[str]:
    """What a terminal might obey."""
    return sorted({c for c in OUR_COLOURS.sub("", out) if not c.isprintable() and c != "\n"})


def check_outputs(site: Site, names: dict[str, str]) -> str:
    """Run every command that prints for people, on a terminal; gives back all that came out."""
    c_ids = tuple(names)
    heard = ""
    for argv in [*COMMANDS, c_ids, ("--json", *c_ids)]:
        result = site.audit(*argv, "--at", AT, terminal=True)
        assert result.status in (0, 1, 2), (argv, result)
        assert result.err == ""
        assert bad_characters(result.out) == [], argv
        if "--json" in argv:
            json.loads(result.out)
        heard += result.out
    unknown = site.audit("nobody is called so", "--at", AT, terminal=True)
    assert unknown.status == 3
    assert unknown.err.count("\n") == 1
    assert bad_characters(unknown.err) == []
    return heard + unknown.err


def check_site(site: Site, hostile: Hostile) -> str:
    """All that is required of an audit of this site; gives back all that came out of it."""
    names = put_in(site, hostile)
    heard = check_outputs(site, names)
    exposition = site.audit("--output", "-", "--at", AT)
    assert exposition.status in (0, 1, 2)
    named = {(dict(labels)["c_id"], dict(labels)["name"]) for labels in labels_of("mydb_backup_status", exposition.out)}
    assert named == {*names.items(), ("0", "offsite")}
    csv = site.audit("--history", "30", "--all", "--csv", "--at", AT)
    assert csv.status == 0

    audited = site.audit("-q", terminal=True)
    assert audited.status in (0, 1, 2)
    assert audited.out + audited.err == ""
    files = [path.read_bytes().decode("utf-8") for path in sorted(site.textfile.parent.iterdir())]
    assert len(files) == 2
    for text in files:
        parse_samples(text)
    return "\n".join([heard, exposition.out, csv.out, csv.err, *files])


def labels_of(metric: str, exposition: str) -> Iterator[frozenset[tuple[str, str]]]:
    return (labels for name, labels in parse_samples(exposition) if name == metric)


@dataclass
class Rows:
    """All rows that SQLite handed out."""

    fetched: list[str] = field(default_factory=list)


@contextmanager
def recorded_rows() -> Iterator[Rows]:
    """Record every row that is fetched from SQLite, below SQLAlchemy."""
    rows = Rows()

    def record(cursor: sqlite3.Cursor, row: tuple[Any, ...]) -> tuple[Any, ...]:
        rows.fetched.append(repr(row))
        return row

    def connected(connection: sqlite3.Connection, _: object) -> None:
        connection.row_factory = record

    event.listen(Engine, "connect", connected)
    try:
        yield rows
    finally:
        event.remove(Engine, "connect", connected)


def empty(session: Session) -> None:
    for table in Base.metadata.sorted_tables:
        session.execute(delete(table))


property_settings = settings(
    deadline=None,
    phases=set(Phase) - {Phase.shrink, Phase.explain},  # the sites are small; shrinking would take minutes
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
NOTABLE = Hostile(
    [
        ({"Info": {"BACKUP_FREQ": "Daily", "OWNER": piece, "POSTGRES_PASSWORD": SECRET}}, None, [piece] * 8)
        for piece in ("\x1b[31m\0\r\n\x1e", '"\\\n} 1', "%s :name {0}")
    ],
    [
        LogRow(
            0,
            "start",
            "20260313-18:07:31",
            datetime(2026, 3, 13, 18, 7),
            ["\x1b[2J", "\x1b[2J", "\0", "\0", "x: error: \x1b[2J"],
        )
    ],
)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal, where `isatty` says that there is one, that knows colours."""
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")


@given(hostile=hostile_sites(nul=True))
@example(hostile=NOTABLE)
@settings(property_settings, max_examples=20)
@pytest.mark.usefixtures("terminal")
def test_anything_in_sqlite(sqlite_site: Site, hostile: Hostile) -> None:
    with sqlite_site.session() as session:
        empty(session)
    sqlite_site.engine.dispose()
    sqlite_site.config(legacy_metrics=True, extra_jobs={"offsite": "Daily"})
    with recorded_rows() as rows:
        heard = check_site(sqlite_site, hostile)
    assert len(rows.fetched) > len(COMMANDS)
    assert SECRET not in heard
    assert SECRET not in "".join(rows.fetched)


@given(hostile=hostile_sites(nul=False))
@settings(property_settings, max_examples=8)
@pytest.mark.usefixtures("terminal")
def test_anything_in_postgresql(site: Site, hostile: Hostile) -> None:
    assert site.database
    clear(site.database)
    with relayed(site) as relay:
        site.config(**relay_settings(site, relay.port), legacy_metrics=True, extra_jobs={"offsite": "Daily"})
        heard = check_site(site, hostile)
    assert len(relay.heard) > 1000
    assert SECRET not in heard
    assert SECRET.encode() not in relay.heard


def relay_settings(site: Site, port: int) -> dict[str, Any]:
    return {
        "mydb_admin_port": port,
        "pgpass_file": str(site.folder / "pgpass"),
        "libpq_options": {"sslmode": "disable"},
    }


# --- On a terminal, even what is meant for programs -----------------------------------------------------

OBEYED = "\x1b]0;title\x07\x1b[2J"


@pytest.mark.parametrize(
    "argv",
    [("--output", "-"), ("--history", "30", "--csv"), ("--history", "30", "--csv", "--all")],
    ids=" ".join,
)
@pytest.mark.usefixtures("terminal")
def test_what_is_meant_for_programs_is_harmless_on_a_terminal(sqlite_site: Site, argv: tuple[str, ...]) -> None:
    c_id = sqlite_site.container(f"sales{OBEYED}", owner=OBEYED, created=NOW - timedelta(days=3))
    sqlite_site.run(c_id, "2026-03-13 18:07", "2026-03-13 18:30", backup_id=f"1{OBEYED}", name=OBEYED, type=OBEYED)
    assert "\x1b" in sqlite_site.audit(*argv, "--at", AT).out, "a program gets it as it is"
    shown = sqlite_site.audit(*argv, "--at", AT, terminal=True)
    assert "sales" in shown.out
    assert "\x1b" not in shown.out
    assert "\x07" not in shown.out


@pytest.mark.parametrize("word", ["sales2", "nobody\x1b[2J"], ids=["from the database", "as typed"])
@pytest.mark.usefixtures("terminal")
def test_a_traceback_is_harmless(sqlite_site: Site, word: str) -> None:
    sqlite_site.container("sales\x1b[2J")
    result = sqlite_site.audit("--debug", word, terminal=True)
    assert result.status == 3
    assert "Traceback" in result.err
    assert ("did you mean sales" in result.err) == (word == "sales2")
    assert bad_characters(result.err) == []


def test_a_traceback_shows_no_password(site: Site) -> None:
    """Of the rows that led to an error, and of the statements."""
    assert site.database
    c_id = site.container("sales", version=1)
    site.run(c_id, "2026-03-13 18:07", "2026-03-13 18:30")
    site.config(database_url=None, admindb_name="nowhere")
    results = [site.audit("--debug")]
    site.config(query_timeout=1, error_pattern="(")
    results.append(site.audit("--debug"))
    site.config(allow_empty=True)
    results.append(site.audit("--debug", "wiki"))
    words = [SECRET, *site.database.server.passwords.values()]
    for result in results:
        assert result.status == 3
        assert "Traceback" in result.err
        assert [word for word in words if word in result.err + result.out] == []


# --- Text that is long ----------------------------------------------------------------------------------


@contextmanager
def no_longer_than(seconds: float) -> Iterator[None]:
    """Ends the test when it takes longer; a regular expression at work can be interrupted."""

    def give_up(number: int, frame: FrameType | None) -> None:
        pytest.fail(f"it takes more than {seconds} seconds", pytrace=False)

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


LONG = ["a", "-", ".", " x", "pass", "secret_", "pwd-", "error", "a.error", "://a:", "\"'", "a: ", "a=", " \t"]


@pytest.mark.parametrize("piece", LONG, ids=ascii)
def test_long_text_takes_no_long_time(sqlite_site: Site, piece: str) -> None:
    text = (piece * 2000)[:2000]
    c_id = sqlite_site.container(text, owner=text, contact=text, state=text, engine=text)
    sqlite_site.run(c_id, "2026-03-13 18:07", "2026-03-13 18:30", error=f"{text}!", type=text, backup_id=text)
    sqlite_site.run(c_id, "2026-03-12 18:07", "2026-03-12 18:30", error=f"pg_dump: error: {text}", message=text)
    with no_longer_than(PATIENCE):
        for argv in (("-v",), (str(c_id),), ("--json", str(c_id)), ("--history", "30")):
            assert sqlite_site.audit(*argv, "--at", AT).status in (0, 2)
