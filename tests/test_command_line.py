"""What the options of the command line do: files, exit statuses, containers by name, other moments."""

from __future__ import annotations

import json
import os
import pwd
import re
import shlex

import pytest

from audit import auditor
from tests.builders import NOW, TOP, Result, Site, files
from tests.db4sci import SECRET
from tests.failed_audits import SUCCESS, assert_complaint, publish_good_audit

AT = ("--at", NOW.isoformat())


def of_every_severity(site: Site) -> None:
    """Three containers, whose names tell the verdict."""
    for name, started in {"ok": "2026-03-13 18:07", "late": "2026-03-13 05:00", "missed": "2026-03-12 18:07"}.items():
        site.run(site.container(name), started, started)


# --- Files and exit statuses -----------------------------------------------------------------------------


def test_only_the_nightly_audit_writes_files(sqlite_site: Site) -> None:
    sqlite_site.container()
    nothing = (AT, ("sales",), ("--json", "sales"), ("--output", "-"), ("--history", "30"), ("--check-config",))
    for argv in (*nothing, ("--version",), ("nobody",), ("--frobnicate",), ("--at", "nonsense"), ("--history=",)):
        sqlite_site.audit(*argv)
        assert files(sqlite_site) == []
    elsewhere = sqlite_site.textfile.with_name("elsewhere.prom")
    assert sqlite_site.audit("-q", *AT, "--output", elsewhere) == Result(2, "", "")
    assert files(sqlite_site) == ["elsewhere.prom"]
    assert sqlite_site.audit("--json").status == 2
    assert files(sqlite_site) == ["backup_audit.prom", "backup_audit_run.prom", "elsewhere.prom"]


def test_exit_statuses_and_how_much_is_printed(sqlite_site: Site) -> None:
    of_every_severity(sqlite_site)
    expected = {("ok",): 0, ("ok", "late"): 1, ("ok", "missed"): 2, (): 2, ("ok", "nobody"): 3}
    expected |= {("--history", "30"): 0, ("--history", "30", "ok", "nobody"): 3}
    for argv, status in expected.items():
        shown, quiet = sqlite_site.audit(*AT, *argv), sqlite_site.audit("-q", *AT, *argv)
        assert (shown.status, bool(shown.out), bool(shown.err)) == (status, status < 3, status == 3)
        assert quiet == Result(status, "", shown.err)


def test_a_calm_site_has_nothing_to_mail(sqlite_site: Site) -> None:
    publish_good_audit(sqlite_site)
    assert sqlite_site.audit() == Result(0, "", "")
    assert sqlite_site.audit(terminal=True).out.startswith("2 containers: ")
    assert "sales" in sqlite_site.audit("-v").out


def test_the_command_to_paste_is_that_of_the_user_and_folder_it_is_meant_for(
    sqlite_site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mail is read by root; who sees a terminal is the user already."""
    sqlite_site.container("sales", policy=None)
    program, config = str(TOP / "backup_audit.py"), str(sqlite_site.config())
    for folder, user, terminal, start in (
        ("/", 1, False, ["sudo", "-u", pwd.getpwuid(1).pw_name, program]),
        ("/", 54321, False, [program]),
        ("/", 0, False, [program]),
        ("/", 1, True, [program]),
        (TOP, 1, True, ["./backup_audit.py"]),
        (TOP, 54321, False, [program]),
    ):
        monkeypatch.chdir(folder)
        monkeypatch.setattr(os, "geteuid", lambda user=user: user)
        last = sqlite_site.audit(*AT, terminal=terminal).out.splitlines()[-1]
        assert shlex.split(last.partition("runs: ")[2] or last) == [*start, "--config", config, "sales"]
    monkeypatch.chdir(sqlite_site.folder)
    for terminal, named in ((True, "mydb_config.py"), (False, config)):
        words = sqlite_site.audit(*AT, "--config", "mydb_config.py", terminal=terminal).out.split()
        assert words[-3:] == ["--config", named, "sales"], "the reader of a mail is in another folder"


def test_lines_are_as_wide_as_the_terminal_but_60_columns_at_least(
    sqlite_site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    sqlite_site.container("sales")
    sqlite_site.container("wiki", "ab " * 90)
    for columns, width in ((40, 60), (60, 60), (75, 75), (110, 110)):
        monkeypatch.setenv("COLUMNS", str(columns))
        for argv in (("-v",), ("wiki",), ("--history", "200")):
            lines = sqlite_site.audit(*AT, *argv, terminal=True).out.splitlines()
            longest = max(len(line) for line in lines if "backup_audit.py" not in line)
            assert width - 10 < longest <= width, (columns, argv)


def test_a_fault_of_the_configuration_or_the_program_is_a_failed_run(
    sqlite_site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError(f"password={SECRET}\nin two lines")

    publish_good_audit(sqlite_site)
    sqlite_site.config(grace_hours=-1)
    assert sqlite_site.audit().err.startswith("backup_audit: grace_hours = -1 is not accepted: ")
    assert sqlite_site.samples(sqlite_site.runfile)[SUCCESS] == 0
    good = publish_good_audit(sqlite_site)
    monkeypatch.setattr(auditor, "audit", broken)
    what = "unexpected ZeroDivisionError (password=***** in two lines)"
    told = f"backup_audit: {what}: please report it, with what --debug prints\n"
    assert sqlite_site.audit() == Result(3, "", told)
    assert sqlite_site.textfile.read_bytes() == good
    assert sqlite_site.samples(sqlite_site.runfile)[SUCCESS] == 0
    debug = sqlite_site.audit("--debug")
    assert ("Traceback" in debug.err, SECRET in debug.err, debug.err.endswith(told)) == (True, False, True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to another user")
def test_what_root_fails_at_says_nothing_about_another_users_audit(
    sqlite_site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_good_audit(sqlite_site)
    os.chown(sqlite_site.runfile, 54321, 54321)
    publish_good_audit(sqlite_site)  # what root completes is recorded without a word
    before = sqlite_site.runfile.read_bytes()
    sqlite_site.config(database_url="sqlite:////nowhere/x.db")
    os.chown(sqlite_site.runfile, 54321, 54321)
    theirs = sqlite_site.audit()
    assert (theirs.status, theirs.out, sqlite_site.runfile.read_bytes()) == (3, "", before)
    monkeypatch.setattr(os, "geteuid", lambda: 54322)  # another user's audit that fails is no trial
    assert sqlite_site.audit().err.count("\n") == 1
    assert sqlite_site.samples(sqlite_site.runfile)[SUCCESS] == 0
    monkeypatch.undo()
    os.chown(sqlite_site.runfile, 0, 0)
    ours = sqlite_site.audit().err
    assert_complaint(ours)
    told = f"{sqlite_site.runfile} belongs to 54321 and stays as it is: run the audit with sudo -u 54321"
    assert theirs.err == f"{ours}backup_audit: {told}\n"
    assert sqlite_site.samples(sqlite_site.runfile)[SUCCESS] == 0


# --- Containers by name ----------------------------------------------------------------------------------


def test_details_come_in_the_order_asked_for(sqlite_site: Site) -> None:
    of_every_severity(sqlite_site)
    asked = ("missed", "1", "late", "ok")
    heads = re.findall(r"^(\S+) \(c_id \d+\)", sqlite_site.audit(*AT, *asked).out, re.MULTILINE)
    found = json.loads(sqlite_site.audit("--json", *AT, *asked).out)["containers"]
    assert heads == [container["name"] for container in found] == ["missed", "ok", "late"]


def test_what_is_left_of_a_deleted_container(sqlite_site: Site) -> None:
    """Of two of one name, the one that was made last counts; at an earlier moment, an earlier dump."""
    for nights in ((1, 2), (4, 5)):
        c_id = sqlite_site.container("gone", active=False)
        for night in nights:
            sqlite_site.run(c_id, f"2026-03-0{night} 18:07", f"2026-03-0{night} 18:30")
    sqlite_site.run(c_id, "2026-03-06 18:07", "2026-03-06 18:30", error="pg_dump: error: connection refused")
    sqlite_site.container("sales")
    for argv, c_id, night in (
        ((*AT, "gone"), 2, 5),
        (("--at", "2026-03-05T12:00", "gone"), 2, 4),
        ((*AT, "1"), 1, 2),
    ):
        result = sqlite_site.audit("--json", *argv)
        (found,) = json.loads(result.out)["containers"]
        assert (result.status, found["status"], found["severity"], found["c_id"]) == (0, None, 0, c_id)
        assert found["last_success"]["url"] == f"s3://site-backups/{c_id}/2026030{night}-18:07:00"
        assert found["last_success"]["url"] in sqlite_site.audit(*argv).out
    assert sqlite_site.audit(*AT, "--history", "30", "gone").status == 0
    sqlite_site.container("gone", created="2026-03-13 12:00")
    for moment, c_id in (("2026-03-13T11:59", 2), ("2026-03-13T12:00", 4)):
        (found,) = json.loads(sqlite_site.audit("--json", "--at", moment, "gone").out)["containers"]
        assert found["c_id"] == c_id, "an active one counts from its creation on"


def test_a_history_that_is_longer_than_the_terminal_says_how_to_see_the_worst(
    sqlite_site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("sales", "trials", "wiki"):
        sqlite_site.container(name)
    lines = sqlite_site.audit("--history", "9", terminal=True).out.splitlines()
    for height, hints in ((len(lines), 1), (len(lines) + 1, 0)):
        monkeypatch.setenv("LINES", str(height))
        shown = sqlite_site.audit("--history", "9", terminal=True).out.splitlines()
        assert len(shown) == len(lines) + hints
        assert shown[-1].endswith("| less") == bool(hints)
