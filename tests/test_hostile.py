"""Hostile input: any text in every text column, and passwords wherever DB4Sci has them.

The audit is completed, its exposition parses back to the same names, nothing that a terminal obeys reaches
one, and no password gets out: not in any output or file, not even in a row that the server sends.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable
from datetime import datetime
from typing import Any

import pytest

from audit.log import NewestRun
from audit.policy import Outcome
from audit.reports import details
from audit.reports import site as site_report
from audit.reports.document import render
from audit.text import Style
from models import ActionLog, BackupLog, ContainerRow, ContainerState
from tests import findings
from tests.builders import NOW, Site, parse_samples
from tests.db4sci import SECRET
from tests.findings import BAD, PIECES, audit_of
from tests.relay import relayed

AT = ("--at", NOW.isoformat())
OUR_COLOURS = re.compile(r"\x1b\[(?:0|32|33|31;1)m")


def put_in(site: Site, texts: Iterable[str]) -> dict[str, str]:
    """Two containers for each text, which is in all of their columns; returns the names by their `c_id`s.

    One more has an object with a password wherever the audit looks for a text.
    """
    names = {"1000": "odd"}
    info: dict[str, Any]
    with site.session() as session:
        info = {key: {"owner": [SECRET]} for key in ("BACKUP_FREQ", "OWNER", "CONTACT", "dbengine", "labels")}
        session.add(ContainerRow(id=1000, name="odd", data={"Info": info, "Config": {"Labels": info}}))
        session.add(ContainerState(id=1000, c_id=1000))
        for c_id, (text, policy) in enumerate(itertools.product(texts, ("Daily", None)), 1):
            names[str(c_id)] = text
            info = {"BACKUP_FREQ": policy or text, "OWNER": text, "CONTACT": text, "dbengine": text, "DB_PASS": SECRET}
            state = dict.fromkeys(("name", "state", "last_state", "observerd", "changed_by"), text)
            session.add(ContainerRow(id=c_id, name=text, data={"Info": info, "Config": {"Env": [SECRET]}}))
            session.add(ContainerState(id=c_id, c_id=c_id, **state))
            session.add(ActionLog(c_id=c_id, name=text, description=text))
            row = {"c_id": c_id, "name": text, "backup_type": text, "url": text, "ts": datetime(2026, 3, 13, 20)}
            row["command"] = f"{text} -u root -p{SECRET} --password={SECRET}"
            said = {"start": "", "end": f"x: error: {text}" if policy else text, text: text}
            session.add_all(
                BackupLog(**row, backup_id=f"20260313 {text}", state=state, err_msg=message)
                for state, message in said.items()
            )
        session.add(BackupLog(c_id=0, name="offsite", state="start", backup_id="20260313", ts=datetime(2026, 3, 13)))
    return names


def bad_characters(out: str) -> list[str]:
    """What a terminal might obey."""
    return sorted({c for c in OUR_COLOURS.sub("", out) if not c.isprintable() and c != "\n"})


def check_site(site: Site, texts: Iterable[str]) -> str:
    """All that is required of an audit of these texts; returns all that came out of it."""
    site.config(legacy_metrics=True, extra_jobs={"offsite": "Daily"})
    names = put_in(site, texts)
    heard = []
    for argv in (
        *(("-v", "--debug"), ("--json",), ("--history", "30"), tuple(names), ("--json", *names), ("nobody's",)),
        *(("--output", "-"), ("--history", "30", "--all", "--csv")),
    ):
        result = site.audit(*argv, *AT, terminal=True)
        assert (result.status == 3) == (result.err != "") == (argv == ("nobody's",)), (argv, result.err)
        assert bad_characters(result.out + result.err) == [], argv
        if "--json" in argv:
            json.loads(result.out)
        heard += [result.out, result.err]
    exposition = site.audit("--output", "-", *AT).out  # for a program
    statuses = [dict(labels) for metric, labels in parse_samples(exposition) if metric == "mydb_backup_status"]
    assert {(labels["c_id"], labels["name"]) for labels in statuses} == {*names.items(), ("0", "offsite")}
    assert site.audit("--check-config").status < 3
    assert site.audit("-q").status == 2
    files = [path.read_bytes().decode("utf-8") for path in (site.textfile, site.runfile)]
    for content in files:
        parse_samples(content)
    return "\n".join([*heard, exposition, *files])


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal, where `isatty` says that there is one, that knows colours."""
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")


@pytest.mark.usefixtures("terminal")
def test_any_text_in_sqlite(sqlite_site: Site) -> None:
    assert SECRET not in check_site(sqlite_site, [*PIECES, "\x1b[31m\0\r\n\x1e"])


@pytest.mark.usefixtures("terminal")
def test_any_text_in_postgresql(site: Site) -> None:
    with relayed(site) as relay:
        heard = check_site(site, PIECES)
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


def test_a_report_has_no_password_nothing_that_a_terminal_obeys_and_lines_that_fit() -> None:
    night, keys = NewestRun(BAD, NOW, Outcome.STALLED), (BAD, "k" * 90, "k" * 90)
    broken_off = audit_of(*findings.hostile(), database=BAD, broken_night=night)
    silent = audit_of(*findings.hostile(), newest_row=None, unused_exceptions=keys)
    style = Style(width=60)
    lines = [
        *site_report.render(broken_off, style, "audit"),
        *site_report.render(silent, style, "audit", everything=True),
    ]
    lines += details.render(silent, style)
    to_paste = ("audit ", "success_patterns", "s3:")
    assert [line for line in lines if len(line) > 60 and not line.startswith(to_paste)] == []
    assert bad_characters("\n".join(lines)) == []
    assert SECRET not in "".join(lines).replace(" ", ""), "also where a line was broken"
    document = json.loads(render(silent, "1", detailed=True))
    assert SECRET not in json.dumps([{**one, "name": ""} for one in document["containers"]])
