"""`--check-config`: says "All is ready" only if the first audit would succeed and could be trusted."""

from __future__ import annotations

import os
import pwd
import re
import threading
from datetime import timedelta
from tempfile import TemporaryDirectory
from zoneinfo import ZoneInfo

import pytest

import admin_db
from tests.builders import Site, tree
from tests.db4sci import SECRET
from tests.failed_audits import LAST_GOOD, passwords
from tests.postgres import ADMIN_USER, HOST, SUPERUSER
from tests.relay import Relay

STEPS = ["settings", "host", "login", "tables", "containers", "clock", "log", "textfile", "textfile"]
READY = "All is ready for the first audit."
HOUR, MINUTE = timedelta(hours=1), timedelta(minutes=1)
USER = pwd.getpwuid(os.geteuid()).pw_name
EXPECTED_NOTES = ("the connection is not encrypted", "the role can write")
"""What the checklist notes of every PostgreSQL site of the tests."""

Step = tuple[str, str, str]


def checklist(site: Site) -> tuple[int, list[Step]]:
    """The exit status, and the lines as (result, step, text), without the notes that are expected; checks that
    nothing is left behind.
    """
    before = tree(site.folder)
    result = site.audit("--check-config")
    assert tree(site.folder) == before
    assert result.err == ""
    assert [word for word in passwords(site) if word in result.out] == []
    lines = result.out.splitlines()
    assert (lines[-1] == READY) == (result.status == 0)
    found = [re.fullmatch(r"(ok|note|WARN|FAILED) +(\w+): (\S.*)", line) for line in lines if line != READY]
    steps = [(match[1], match[2], match[3]) for match in found if match]
    assert len(steps) == len(found), result.out
    assert result.status == max({"FAILED": 3, "WARN": 1}.get(step[0], 0) for step in steps)
    return result.status, [step for step in steps if step[0] != "note" or not step[2].startswith(EXPECTED_NOTES)]


def odd(site: Site) -> list[Step]:
    """The steps that are not ok."""
    return [step for step in checklist(site)[1] if step[0] != "ok"]


def failed(site: Site, after: str) -> str:
    """The text of the one step that fails; the steps of the database end with it, those of the textfiles follow."""
    status, steps = checklist(site)
    assert status == 3
    ((_, step, text),) = [one for one in steps if one[0] == "FAILED"]
    expected = [*STEPS[: STEPS.index(after) + 1], step, *STEPS[-2:]]
    assert [one[1] for one in steps] == (STEPS if step == "textfile" else expected)
    return text


@pytest.fixture
def ready(sqlite_site: Site) -> Site:
    """A site whose checklist has nothing to complain about."""
    return made_ready(sqlite_site)


def made_ready(site: Site) -> Site:
    site.run(site.container(), site.clock() - HOUR)
    site.config()
    return site


def test_all_is_ready(any_site: Site) -> None:
    made_ready(any_site)
    any_site.textfile.write_bytes(LAST_GOOD)
    status, steps = checklist(any_site)
    assert (status, {step[0] for step in steps}) == (0, {"ok"})
    first = ["settings", "file"] if any_site.database is None else STEPS[:3]
    assert [step for _, step, _ in steps] == [*first, *STEPS[3:]]
    texts = {step: text for _, step, text in steps}
    assert texts["settings"] == f"{any_site.folder / 'mydb_config.py'} is valid"
    assert texts["tables"] == "containers, container_state, backups: all columns can be read"
    assert texts["containers"] == "1 to audit"
    assert texts["textfile"] == f"user {USER} can replace {any_site.runfile}"
    assert any_site.textfile.read_bytes() == LAST_GOOD


# --- What makes the audit fail --------------------------------------------------------------------------


def test_every_problem_of_the_settings(ready: Site) -> None:
    ready.config(grace_hours=-1, database_url=f"mysql://root:{SECRET}@db/x", weekly_dai=5)
    assert [step[:2] for step in checklist(ready)[1]] == [("FAILED", "settings")] * 3
    (ready.folder / "mydb_config.py").write_text("weekly_day = 'Satur")
    ((_, _, text),) = odd(ready)
    assert "is not valid Python (" in text


def test_the_way_to_the_server_the_password_and_the_privileges(own_site: Site) -> None:
    own_site.config(container_host="db..example.invalid")
    assert "unknown host" in failed(own_site, after="settings")
    path = own_site.folder / "pgpass"
    path.write_text(f"*:*:*:*:{SECRET}", encoding="utf-8")
    for mode, problem in ((0o644, "others may read it: chmod 600"), (0o600, "the password was refused")):
        path.chmod(mode)
        own_site.config(pgpass_file=str(path))
        assert problem in failed(own_site, after="host")
    made_ready(own_site).config(container_host=f"db..example.invalid,{HOST}")
    status, steps = checklist(own_site)
    answers = f"{HOST}, port {own_site.postgres.server.port}, answers: PostgreSQL "
    assert status == 0
    assert steps[1][2].startswith(answers)
    own_site.config(libpq_options={"options": "-c post_auth_delay=1"}, admin_user=SUPERUSER)
    ((result, _, text),) = [step for step in checklist(own_site)[1] if step[1] == "clock"]
    assert result == "ok", "a slow login is no difference of clocks"
    assert float(text.removeprefix("this host and the server differ by ").removesuffix(" s")) < 0.4
    own_site.config()
    assert "\nnote    login: the connection is not encrypted (TLS)" in own_site.audit("--check-config").out
    own_site.postgres.execute(f"REVOKE SELECT ON backups FROM {ADMIN_USER}", SUPERUSER)
    assert "a privilege is missing" in failed(own_site, after="login")


def test_a_socket_and_a_service(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    made_ready(site)
    database, port, folder = site.postgres, site.postgres.server.port, site.folder
    password = database.server.passwords[ADMIN_USER].replace("\\", r"\\").replace(":", r"\:")
    path = folder / "pgpass"
    path.write_text(f"*:*:*:*:{password}\n", encoding="utf-8")
    path.chmod(0o600)
    service = f"[db4sci]\nhost={HOST}\nport={port}\ndbname={database.name}\nuser={ADMIN_USER}\n"
    (folder / "services").write_text(service, encoding="utf-8")
    monkeypatch.setenv("PGSERVICEFILE", str(folder / "services"))
    # the path of a socket has 107 bytes at most, and other folders may be deep
    short = TemporaryDirectory(dir="/tmp")
    with short as place, Relay(port, f"{place}/.s.PGSQL.{port}") as relay:
        threading.Thread(target=relay.serve_forever, args=(0.01,)).start()
        for settings, host, notes in (
            ({**site.settings, "container_host": place}, place, 0),
            ({**dict.fromkeys(site.settings), "database_url": "postgresql://?service=db4sci"}, HOST, 1),
        ):
            site.config(**{**settings, "pgpass_file": str(path)})
            status, steps = checklist(site)
            assert (status, {step[0] for step in steps}) == (0, {"ok"})
            assert steps[1][2].startswith(f"{host}, port {port}, answers: PostgreSQL ")
            assert site.audit("--check-config").out.count("not encrypted") == notes, "a socket needs no TLS"
        relay.shutdown()


def test_no_active_container(site: Site) -> None:
    site.container(active=False)
    site.config()
    assert failed(site, after="tables").startswith("no active container in ")
    site.config(allow_empty=True)
    assert odd(site) == [("WARN", "log", "the backup log is empty: has DB4Sci's backup job ever run?")]
    site.config(**dict.fromkeys(site.settings), database_url=f"sqlite:///{site.folder / 'missing.db'}")
    assert [step[:2] for step in odd(site)] == [("FAILED", "file")]


# --- The textfiles --------------------------------------------------------------------------------------


def test_textfiles_that_cannot_be_written(ready: Site) -> None:
    folder = ready.folder / "missing"
    ready.config(prometheus_file=str(folder / "audit.prom"))
    for _, _, text in odd(ready):
        assert text.endswith(f" (No such file or directory): create the folder {folder}")
    ready.config()
    ready.runfile.mkdir()
    text = f"user {USER} cannot write {ready.runfile} (Is a directory): name a file, not a folder"
    assert odd(ready) == [("FAILED", "textfile", text)]


def test_textfiles_that_others_cannot_read(ready: Site) -> None:
    for mode, problems in (
        (0o604, []),
        (0o640, [("WARN", "textfile_mode = 0o640 hides the files from node_exporter")]),
    ):
        ready.config(textfile_mode=mode)
        assert [(result, text[:56]) for result, _, text in odd(ready)] == problems


# --- What makes it untrustworthy ------------------------------------------------------------------------


def test_a_configuration_that_others_can_write(ready: Site) -> None:
    path = ready.folder / "mydb_config.py"
    for mode, written in ((0o600, False), (0o755, False), (0o664, True), (0o606, True)):
        path.chmod(mode)
        text = f"others can write {path}, and the audit executes it: chmod go-w {path}"
        assert odd(ready) == ([("WARN", "settings", text)] if written else [])
    path.chmod(0o644)
    for mode, written in ((0o1777, False), (0o775, True)):  # in a folder of the second kind it could be replaced
        ready.folder.chmod(mode)
        assert [step[:2] for step in odd(ready)] == [("WARN", "settings")] * written


def test_the_newest_row_by_time_and_not_by_id(sqlite_site: Site) -> None:
    c_id, now = sqlite_site.container(), sqlite_site.clock()
    sqlite_site.config()
    for ago, problem in (
        (26 * HOUR + MINUTE, " (26 h ago): DB4Sci's backup job has probably not run since"),
        (26 * HOUR - MINUTE, ""),
        (-4 * MINUTE, ""),
        (-6 * MINUTE, "lies in the future: db_timezone is probably wrong"),
    ):
        sqlite_site.run(c_id, now - ago)
        sqlite_site.run(c_id, now - 60 * 24 * HOUR)  # a higher id
        status, steps = checklist(sqlite_site)
        result, _, text = steps[-3]
        assert text.startswith(f"newest row {now - ago:%Y-%m-%d %H:%M} UTC")
        assert (status, result) == ((1, "WARN") if problem else (0, "ok"))
        assert problem in text


def test_clocks_that_differ(ready: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    read_clock = admin_db.read_clock
    for minutes, result, said in ((0.9, "ok", "differ by"), (-1.1, "WARN", "s behind"), (60, "WARN", "s ahead of")):
        monkeypatch.setattr(admin_db, "read_clock", lambda session, skew=minutes * MINUTE: read_clock(session) - skew)
        ((found, _, text),) = [step for step in checklist(ready)[1] if step[1] == "clock"]
        assert found == result
        assert f" {said} " in text


KOLKATA = {"timezone": "Asia/Kolkata"}
LOCAL = {"timezone": "Asia/Kolkata", "db_timezone": "Asia/Kolkata"}


@pytest.mark.parametrize(
    ("host", "ts_in", "settings", "problem"),
    [
        ("Asia/Kolkata", "UTC", KOLKATA, ""),
        ("Asia/Kolkata", "Asia/Kolkata", LOCAL, ""),
        ("Asia/Kolkata", "UTC", {}, "5.5 h apart"),
        ("Asia/Kolkata", "Asia/Kolkata", KOLKATA, "5.5 h apart"),
        ("America/Phoenix", "UTC", {}, "7 h apart"),
    ],
)  # fmt: skip
def test_zones_that_do_not_fit_the_log(
    sqlite_site: Site, host: str, ts_in: str, settings: dict[str, str], problem: str
) -> None:
    c_id, now = sqlite_site.container(), sqlite_site.clock()
    sqlite_site.zone = ZoneInfo(ts_in)
    for days in range(12):
        started = now - (days * 24 + 8) * HOUR
        local = started.astimezone(ZoneInfo(host))
        wrong = days > 6 or days == 3  # four of the newest ten fit nothing, and older ones do not count
        sqlite_site.run(c_id, started, backup_id=f"{local - wrong * HOUR:%Y-%m-%d_%H:%M:%S}")
        sqlite_site.run(0, started, started, backup_id=f"{local:%Y%m%d}", name="offsite")
    sqlite_site.config(**settings)
    steps = [step for step in odd(sqlite_site) if "apart" in step[2]]
    assert [step[:2] for step in steps] == [("WARN", "log")] * bool(problem)
    advice = "set timezone to that of the DB4Sci host, and db_timezone to that of ts, usually UTC"
    assert not problem or (problem in steps[0][2] and advice in steps[0][2])
    nightly = " ".join(sqlite_site.audit("-v").out.split())
    told = f"backup_id and ts of the newest runs are {problem}: timezone or db_timezone is probably wrong."
    assert (told in nightly) == bool(problem)


# --- What is worth a note -------------------------------------------------------------------------------


def test_keys_that_fit_nothing(ready: Site) -> None:
    ready.run(0, ready.clock() - HOUR, name="offsite")
    accepted = ("2026-12-31", "ticket 4711")
    ready.config(
        exceptions={"sales": accepted, 1: accepted, "salse": accepted, 7: accepted},
        extra_jobs={"offsite": "Daily", "ofsite": "Daily"},
    )
    exceptions, jobs = odd(ready)
    assert exceptions == ("note", "containers", "exceptions: no active container is called salse, 7")
    assert jobs == ("note", "containers", "extra_jobs: the log has no row of ofsite (c_id 0)")


def test_messages_that_end_at_100_characters(ready: Site) -> None:
    for length, noted in ((99, False), (5, False), (100, True), (101, False)):
        ready.run(1, ready.clock() - HOUR, message="x" * length)
        assert [step[:2] for step in odd(ready)] == [("note", "log")] * noted


def test_a_password_in_the_url_is_noted(site: Site) -> None:
    made_ready(site)
    database = site.postgres
    url = database.url.set(password=database.server.passwords[ADMIN_USER]).render_as_string(hide_password=False)
    site.config(**dict.fromkeys(site.settings), database_url=url)
    ((result, step, text),) = odd(site)
    assert (result, step, text.partition(",")[0]) == ("note", "login", "database_url holds the password")
