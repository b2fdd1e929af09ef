"""Hostile input: any text in every text column and any JSON in `data`, and passwords wherever DB4Sci has them.

The audit is completed, its exposition parses back to the same names, nothing that a terminal obeys reaches
one, and no password gets out: not in any output or file, not even in a row that the server sends.
"""

from __future__ import annotations

import itertools
import json
import re
from datetime import datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete

from models import ActionLog, BackupLog, Base, ContainerRow, ContainerState
from tests.builders import NOW, Site, parse_samples
from tests.db4sci import SECRET
from tests.failures import database_of
from tests.postgres import clear
from tests.relay import relayed

AT = ("--at", NOW.isoformat())

# --- What a site may hold -------------------------------------------------------------------------------

PIECES = [
    *("\x1b[2J\x1b[31mred\x1b[0m", "\x1b]0;title\x07", "\x1b]8;;http://example.org\x1b\\", "\x9b31m", "\x90q\x9c"),
    *("\x7f\x08\x07\x05", "\r\n", "\r", "\n", "\t", "\x0b\x0c\x1c\x1d\x1e\x1f\x85", "\u2028\u2029", "\u0300\u0301"),
    *("\u202e\u2066\u200b\ufeff\U000e0041", "\U0001f4be数据", '"} 1\nmydb_backup_status{name="forged"} 1\n', '"', "'"),
    *("\\", "\\n", "{}", ",", "# HELP mydb_backup_status forged", "%s %(name)s %%", ":name", "{0} {name}", "--json"),
    *("'; DROP TABLE backups; --", "=cmd|' /C calc'!A0", "pg_dump: error: ", "password=", "s3://user:pass@host", " "),
    *("Daily", "Weekly", "never", "\u00a0", "start", "end", "offsite", "20260313-18:07:31", "x" * 300),
]


def texts(nul: bool) -> st.SearchStrategy[str]:
    """Any text that a database takes; only SQLite takes NUL."""
    characters = st.characters(exclude_categories=["Cs"], exclude_characters="" if nul else "\0")
    return st.lists(st.sampled_from(PIECES) | st.text(characters, max_size=30), max_size=4).map("".join)


def documents(text: st.SearchStrategy[str]) -> st.SearchStrategy[Any]:
    """Any JSON, and what resembles a container's document: the keys that the audit reads, with any JSON there."""
    numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    anything = st.recursive(
        st.none() | st.booleans() | numbers | text,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
        max_leaves=6,
    )
    leaf = text | text | anything
    label_keys = ("BACKUP_FREQ", "backup_freq", "owner", "contact", "password")
    labels = st.fixed_dictionaries({}, optional=dict.fromkeys(label_keys, leaf)) | anything
    keys = ("BACKUP_FREQ", "backup_freq", "OWNER", "CONTACT", "dbengine", "Name")
    info = st.fixed_dictionaries({}, optional={**dict.fromkeys(keys, leaf), "labels": labels})
    config = st.fixed_dictionaries({}, optional={"Labels": labels, "Hostname": leaf})
    whole = st.fixed_dictionaries({"Info": info | info | anything}, optional={"Config": config | anything})
    return (whole | whole | anything).map(with_passwords)


PASSWORD_KEYS = itertools.cycle(["POSTGRES_PASSWORD", "DB_PASS", "password", "MYSQL_ROOT_PASSWORD", "neo4j_pwd"])


def with_passwords(document: Any) -> Any:
    """The document with a password in every object of it."""
    if isinstance(document, list):
        return [with_passwords(item) for item in document]
    if not isinstance(document, dict):
        return document
    planted = {key: with_passwords(value) for key, value in document.items()}
    # an object that stands where the audit expects a text as well: it must not come out as one
    return {**planted, next(PASSWORD_KEYS): SECRET, "credentials": {"password": [SECRET, {"DB_PASS": SECRET}]}}


Rows = tuple[list[tuple[dict[str, Any], dict[str, Any]]], list[dict[str, Any]]]
"""Rows of `containers` and `container_state` in pairs, and rows of `backups`."""


def hostile_rows(nul: bool) -> st.SearchStrategy[Rows]:
    text = texts(nul)
    maybe, moments = st.none() | text | text, st.none() | st.datetimes(datetime(2026, 2, 1), datetime(2026, 3, 14))

    def rows(names: str, **more: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
        return st.fixed_dictionaries({**dict.fromkeys(names.split(), maybe), "ts": moments, **more})

    container = st.tuples(rows("name", data=documents(text)), rows("name state last_state observerd changed_by"))
    log = rows(
        "name backup_type url command err_msg",
        c_id=st.sampled_from([1, 2, 3, 1, 2, 0, None]),
        state=st.sampled_from(["start", "end", "start", "end", None]) | text,
        backup_id=st.sampled_from(["20260313-18:07:31", "20260312-18:07:31"]) | maybe,
    )
    return st.tuples(st.lists(container, min_size=1, max_size=3), st.lists(log, max_size=8))


def put_in(site: Site, rows: Rows) -> dict[str, str]:
    """Fill the tables; returns the names of the active containers by their `c_id`s."""
    names = {}
    with site.session() as session:
        for table in Base.metadata.sorted_tables:
            session.execute(delete(table))
        for c_id, (container, state) in enumerate(rows[0], 1):
            session.add_all([ContainerRow(id=c_id, **container), ContainerState(id=c_id, c_id=c_id, **state)])
            session.add(ActionLog(c_id=c_id, name=container["name"], description=state["changed_by"]))
            names[str(c_id)] = state["name"] or container["name"] or f"c_id {c_id}"
        for row in rows[1]:
            command = f"{row['command'] or ''} -u root -p{SECRET} --password={SECRET}"
            session.add(BackupLog(**{**row, "command": command, "name": row["name"] if row["c_id"] else "offsite"}))
    return names


# --- What is required -----------------------------------------------------------------------------------

OUR_COLOURS = re.compile(r"\x1b\[(?:0|32|33|31;1)m")


def bad_characters(out: str) -> list[str]:
    """What a terminal might obey."""
    return sorted({c for c in OUR_COLOURS.sub("", out) if not c.isprintable() and c != "\n"})


def check_site(site: Site, rows: Rows) -> str:
    """All that is required of an audit of this site; returns all that came out of it."""
    site.config(legacy_metrics=True, extra_jobs={"offsite": "Daily"})
    names = put_in(site, rows)
    heard = []
    for argv in (("-v", "--debug"), ("--json",), ("--history", "30"), (*names,), ("--json", *names), ("nobody's",)):
        result = site.audit(*argv, *AT, terminal=True)
        assert (result.status == 3) == (result.err != "") == (argv == ("nobody's",)), (argv, result)
        assert bad_characters(result.out + result.err) == [], argv
        if "--json" in argv:
            json.loads(result.out)
        heard += [result.out, result.err]
    for argv in (("--output", "-"), ("--history", "30", "--all", "--csv")):
        shown = site.audit(*argv, *AT, terminal=True)
        assert (shown.status < 3, bad_characters(shown.out)) == (True, []), "harmless on a terminal, too"
        heard += [shown.out, shown.err]
    exposition = site.audit("--output", "-", *AT).out  # for a program
    statuses = [dict(labels) for metric, labels in parse_samples(exposition) if metric == "mydb_backup_status"]
    assert {(labels["c_id"], labels["name"]) for labels in statuses} == {*names.items(), ("0", "offsite")}
    assert site.audit("--check-config").status < 3
    assert site.audit("-q").status < 3
    files = [path.read_bytes().decode("utf-8") for path in sorted(site.textfile.parent.iterdir())]
    assert len(files) == 2
    for content in files:
        parse_samples(content)
    return "\n".join([*heard, exposition, *files])


property_settings = settings(
    deadline=None,
    phases=set(Phase) - {Phase.shrink, Phase.explain},  # the sites are small; shrinking would take minutes
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def notable(text: str) -> Rows:
    """A row of each table with this text wherever a text can be."""
    state = dict.fromkeys(("name", "state", "last_state", "observerd", "changed_by"), text)
    data = {"Info": {"BACKUP_FREQ": "Daily", "OWNER": text, "DB_PASS": SECRET}}
    log = dict.fromkeys(("name", "backup_type", "url", "command"), text)
    run = {"c_id": 1, "state": "start", "backup_id": text, "ts": datetime(2026, 3, 13), "err_msg": f"x: error: {text}"}
    return [({"name": text, "data": data}, state)], [{**log, **run}]


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal, where `isatty` says that there is one, that knows colours."""
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")


@given(rows=hostile_rows(nul=True))
@example(rows=notable("\x1b[31m\0\r\n\x1e"))
@example(rows=notable('"\\\n} 1 %s :name {0}'))
@settings(property_settings, max_examples=9)
@pytest.mark.usefixtures("terminal")
def test_anything_in_sqlite(sqlite_site: Site, rows: Rows) -> None:
    assert SECRET not in check_site(sqlite_site, rows)


@given(rows=hostile_rows(nul=False))
@settings(property_settings, max_examples=4)
@pytest.mark.usefixtures("terminal")
def test_anything_in_postgresql(site: Site, rows: Rows) -> None:
    clear(database_of(site))
    with relayed(site) as relay:
        heard = check_site(site, rows)
    assert b"backups" in relay.asked
    assert len(relay.heard) > 1000
    assert SECRET not in heard
    assert SECRET.encode() not in relay.heard
    assert b"command" not in relay.asked


def test_a_traceback_is_harmless(sqlite_site: Site) -> None:
    sqlite_site.container("sales\x1b[2J")
    for word in ("sales2", "nobody\x1b[2J"):  # from the database, and as typed
        result = sqlite_site.audit("--debug", word, terminal=True)
        assert (result.status, bad_characters(result.err)) == (3, [])
        assert "Traceback" in result.err
        assert ("did you mean sales" in result.err) == (word == "sales2")
