"""`--check-config`: says "All is ready" only if the first audit would succeed and could be trusted (SPEC section 4)."""

from __future__ import annotations

import re
import socket
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.builders import SECRET, Site
from tests.failures import (
    LAST_GOOD,
    as_result,
    database_of,
    fill_disk,
    locked_log,
    passwords,
    small_disk,
    tree,
    unprivileged,
    within,
)
from tests.postgres import ADMIN_USER, HOST, SUPERUSER

STEPS = ["settings", "host", "login", "tables", "containers", "clock", "log", "textfile", "textfile"]
READY = "All is ready for the first audit."
HOUR = timedelta(hours=1)

Step = tuple[str | Any, ...]


def checklist(site: Site, *argv: str | Path, process: dict[str, Any] | None = None) -> tuple[int, list[Step]]:
    """The exit status, and the lines as (result, step, text); checks that nothing is left behind."""
    before = tree(site.folder)
    argv = ("--check-config", *argv)
    result = site.audit(*argv) if process is None else as_result(site.process(*argv, **process))
    assert tree(site.folder) == before
    assert result.err == ""
    assert [word for word in passwords(site) if word in result.out] == []
    lines = result.out.splitlines()
    assert (lines[-1] == READY) == (result.status == 0)
    found = [re.fullmatch(r"(ok|WARN|FAILED) +(\w+): (\S.*)", line) for line in lines if line != READY]
    steps = [match.groups() for match in found if match]
    assert len(steps) == len(found), result.out
    assert result.status == max({"FAILED": 3, "WARN": 1, "ok": 0}[step[0]] for step in steps)
    return result.status, steps


def failed(site: Site, after: str) -> str:
    """The text of the one step that fails; the steps of the database end with it, those of the textfiles follow."""
    status, steps = checklist(site)
    assert status == 3
    ((_, step, text),) = [one for one in steps if one[0] == "FAILED"]
    expected = [*STEPS[: STEPS.index(after) + 1], step, *STEPS[-2:]]
    assert [one[1] for one in steps] == (STEPS if step == "textfile" else expected)
    return text


@pytest.fixture
def ready(site: Site) -> Site:
    """A site whose checklist has nothing to complain about."""
    site.run(site.container(), site.clock() - HOUR)
    site.config()
    return site


def test_all_is_ready(any_site: Site) -> None:
    any_site.run(any_site.container(), any_site.clock() - HOUR)
    path = any_site.config()
    any_site.textfile.write_bytes(LAST_GOOD)
    status, steps = checklist(any_site)
    assert status == 0
    assert [step for _, step, _ in steps] == [step for step in STEPS if any_site.database or step != "host"]
    texts = {step: text for _, step, text in steps}
    assert texts["settings"] == f"{path} is valid"
    assert texts["tables"] == "containers, container_state, backups: all columns can be read"
    assert texts["containers"] == "1 to audit"
    assert texts["textfile"] == f"{any_site.runfile} can be written"
    assert any_site.textfile.read_bytes() == LAST_GOOD


# --- What makes the audit fail --------------------------------------------------------------------------


def test_every_problem_of_the_settings(ready: Site) -> None:
    ready.config(grace_hours=-1, database_url=f"mysql://root:{SECRET}@db/x", weekly_dai=5)
    status, steps = checklist(ready)
    assert (status, [step[:2] for step in steps]) == (3, [("FAILED", "settings")] * 3)
    status, [(_, _, text)] = checklist(ready, "--config", ready.folder / "nowhere.py")
    assert text.startswith("no configuration file ")
    ready.config(database_url="postgresql://db.example.org:port/mydb_admin")
    assert "database_url is not a URL" in failed(ready, after="settings")


def test_hosts_and_ports(ready: Site) -> None:
    for host in ("db.example.invalid", "db..example.invalid", f"{'d' * 64}.invalid"):
        ready.config(container_host=host)
        text = failed(ready, after="settings")
        assert text.startswith(f"cannot reach {host}:")
        assert text.endswith(": check container_host, mydb_admin_port and the firewall")
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        port = taken.getsockname()[1]
        ready.config(mydb_admin_port=port, connect_timeout=1)
        assert failed(ready, after="settings").startswith(f"cannot reach {HOST}:{port} (")
        taken.listen()
        with within(1):
            assert "no answer within connect_timeout" in failed(ready, after="host")


def test_passwords_and_privileges(own_site: Site) -> None:
    own_site.container()
    path = own_site.folder / "pgpass"
    path.write_text(f"*:*:*:*:{SECRET}", encoding="utf-8")
    for mode, problem in ((0o644, "others may read it: chmod 600"), (0o600, "the password was refused")):
        path.chmod(mode)
        own_site.config(pgpass_file=str(path))
        assert problem in failed(own_site, after="host")
    own_site.config()
    database_of(own_site).execute(f"REVOKE ALL ON backups FROM {ADMIN_USER}", SUPERUSER)
    assert "a privilege is missing" in failed(own_site, after="login")


def test_a_locked_table(ready: Site) -> None:
    ready.config(query_timeout=1)
    with locked_log(ready), within(1):
        assert "query_timeout" in failed(ready, after="login")


def test_no_active_container(site: Site) -> None:
    site.container(active=False)
    site.config()
    assert failed(site, after="tables").startswith("no active container in ")
    site.config(allow_empty=True)
    status, steps = checklist(site)
    assert status == 1
    assert steps[-3] == ("WARN", "log", "the backup log is empty: has DB4Sci's backup job ever run?")


def test_a_missing_sqlite_file(sqlite_site: Site) -> None:
    sqlite_site.config(database_url=f"sqlite:///{sqlite_site.folder / 'missing.db'}")
    status, steps = checklist(sqlite_site)
    assert (status, steps[1][:2]) == (3, ("FAILED", "login"))


def test_folders_that_are_missing_or_not_writable(ready: Site) -> None:
    folder = ready.textfile.parent
    ready.textfile.write_bytes(LAST_GOOD)
    folder.chmod(0o555)
    try:
        status, steps = checklist(ready, process=unprivileged())
    finally:
        folder.chmod(0o755)
    problem = f"(Permission denied): let this user write to the folder {folder}"
    paths = (ready.textfile, ready.runfile)
    assert (status, steps[-2:]) == (3, [("FAILED", "textfile", f"cannot write {path} {problem}") for path in paths])
    folder = ready.folder / "missing"
    ready.config(prometheus_file=str(folder / "audit.prom"))
    status, steps = checklist(ready)
    assert status == 3
    for _, _, text in steps[-2:]:
        assert text.endswith(f" (No such file or directory): create the folder {folder}")


@pytest.mark.parametrize("of", ["textfile", "runfile"])
def test_a_folder_in_the_place_of_a_textfile(ready: Site, of: str) -> None:
    path: Path = getattr(ready, of)
    path.mkdir()
    assert failed(ready, after="log") == f"cannot write {path} (Is a directory): name a file, not a folder"


def test_a_full_disk(ready: Site) -> None:
    with small_disk(ready.textfile.parent):
        assert checklist(ready)[0] == 0
        fill_disk(ready.textfile.parent)
        status, steps = checklist(ready)
        assert status == 3
        for _, _, text in steps[-2:]:
            assert text.endswith(" (No space left on device): make room on its disk")


# --- What makes it untrustworthy ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ago", "zone", "problem"),
    [
        (26 * HOUR - HOUR / 60, "UTC", ""),
        (26 * HOUR + HOUR / 60, "UTC", "DB4Sci's backup job has probably not run since"),
        (-4 * HOUR / 60, "UTC", ""),
        (-6 * HOUR / 60, "UTC", "lies in the future: db_timezone is probably wrong"),
        (HOUR, "America/Chicago", "lies in the future: db_timezone is probably wrong"),
    ],
)
def test_the_newest_row_by_time_and_not_by_id(any_site: Site, ago: timedelta, zone: str, problem: str) -> None:
    c_id, now = any_site.container(), any_site.clock()
    any_site.config(db_timezone=zone)
    any_site.run(c_id, now - ago)
    any_site.run(c_id, now - 60 * 24 * HOUR)  # a higher id
    status, steps = checklist(any_site)
    result, _, text = steps[-3]
    assert text.startswith(f"newest row {now - ago:%Y-%m-%d %H:%M} ")
    assert (status, result) == ((1, "WARN") if problem else (0, "ok"))
    assert problem in text


@pytest.mark.parametrize(("mode", "hidden"), [(0o644, False), (0o604, False), (0o640, True), (0o600, True)])
def test_textfiles_that_others_cannot_read(ready: Site, mode: int, hidden: bool) -> None:
    ready.config(textfile_mode=mode)
    status, steps = checklist(ready)
    assert status == hidden
    assert len(steps) == len(STEPS) + hidden
    assert not hidden or steps[-1][2].startswith(f"textfile_mode = 0o{mode:o} hides the files from node_exporter")
