"""What the options of the command line do: files, exit statuses, containers by name, other moments."""

from __future__ import annotations

import json
import os
import pwd
import re
from datetime import date, datetime

import pytest

from tests.builders import NOW, TOP, Result, Site
from tests.db4sci import DB4Sci, Failure
from tests.failures import SUCCESS, assert_complaint, failure, files, published

AT = ("--at", NOW.isoformat())


def of_every_severity(site: Site) -> None:
    """Three containers, whose names tell the verdict."""
    for name, started in {"ok": "2026-03-13 18:07", "late": "2026-03-13 05:00", "missed": "2026-03-12 18:07"}.items():
        site.run(site.container(name), started, started)


# --- Files and exit statuses -----------------------------------------------------------------------------


def test_only_the_nightly_audit_writes_files(sqlite_site: Site) -> None:
    sqlite_site.container()
    nothing = (AT, ("sales",), ("--json", "sales"), ("--output", "-"), ("--history", "30"), ("--check-config",))
    for argv in (*nothing, ("--version",), ("nobody",), ("--frobnicate",)):
        sqlite_site.audit(*argv)
        assert files(sqlite_site) == []
    elsewhere = sqlite_site.textfile.with_name("elsewhere.prom")
    assert sqlite_site.audit("-q", *AT, "--output", elsewhere) == Result(2, "", "")
    assert files(sqlite_site) == ["elsewhere.prom"]
    assert sqlite_site.audit("--json").status == 2
    assert files(sqlite_site) == ["backup_audit.prom", "backup_audit_run.prom", "elsewhere.prom"]


def test_a_moment_or_period_that_is_none(sqlite_site: Site) -> None:
    sqlite_site.container()
    for text in ("", "nonsense"):
        for more in ((), ("sales",), ("--history", "30"), ("--output", "audit.prom")):
            assert "is not a time: use ISO 8601" in failure(sqlite_site, "--at", text, *more, publishes=False)
    for text in ("", "0", "x", "2026-13", "2026-03-31..2026-03-01"):
        assert "--history" in failure(sqlite_site, f"--history={text}", publishes=False)


def test_exit_statuses_and_how_much_is_printed(sqlite_site: Site) -> None:
    of_every_severity(sqlite_site)
    expected = {("ok",): 0, ("ok", "late"): 1, ("ok", "missed"): 2, (): 2, ("nobody",): 3, ("--history", "30"): 0}
    for argv, status in expected.items():
        shown, quiet = sqlite_site.audit(*AT, *argv), sqlite_site.audit("-q", *AT, *argv)
        assert (shown.status, quiet.status) == (status, status)
        assert (bool(shown.out), quiet.out) == (status < 3, "")
        assert (shown.err, bool(shown.err)) == (quiet.err, status == 3)
    assert sqlite_site.process(*AT, "late").returncode == 1


def test_a_calm_site_has_nothing_to_mail(sqlite_site: Site) -> None:
    published(sqlite_site)
    assert sqlite_site.audit() == Result(0, "", "")
    assert sqlite_site.audit(terminal=True).out.startswith("2 containers: ")
    assert "sales" in sqlite_site.audit("-v").out


def test_a_folder_that_has_been_deleted_may_be_the_current_one(sqlite_site: Site) -> None:
    of_every_severity(sqlite_site)
    folder = sqlite_site.folder / "gone"
    folder.mkdir()
    answer = sqlite_site.process("-v", *AT, cwd=folder, preexec_fn=folder.rmdir)
    assert (answer.returncode, answer.stderr) == (2, "")
    assert f"{TOP / 'backup_audit.py'} --config {sqlite_site.folder / 'mydb_config.py'} missed" in answer.stdout


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to another user")
@pytest.mark.parametrize("uid", [65534, 54321])
def test_what_root_fails_at_says_nothing_about_another_users_audit(sqlite_site: Site, uid: int) -> None:
    published(sqlite_site)
    os.chown(sqlite_site.runfile, uid, uid)
    before = sqlite_site.runfile.read_bytes()
    sqlite_site.config(database_url="sqlite:////nowhere/x.db")
    result = sqlite_site.audit()
    problem, *more = result.err.splitlines(keepends=True)
    user = pwd.getpwuid(uid).pw_name if uid == 65534 else str(uid)
    told = f"{sqlite_site.runfile} belongs to {user} and stays as it is: run the audit with sudo -u {user}"
    assert more == [f"backup_audit: {told}\n"]
    assert_complaint(problem)
    assert (result.status, result.out, sqlite_site.runfile.read_bytes()) == (3, "", before)
    os.chown(sqlite_site.runfile, 0, 0)
    assert sqlite_site.audit().err == problem
    assert sqlite_site.samples(sqlite_site.runfile)[SUCCESS] == 0


# --- Containers by name ----------------------------------------------------------------------------------


def test_details_come_in_the_order_asked_for(any_site: Site) -> None:
    of_every_severity(any_site)
    exempt = any_site.container("exempt", "Never")
    asked = ("missed", "ok", str(exempt), "late", "ok")
    heads = re.findall(r"^(\S+) \(c_id \d+\)", any_site.audit(*AT, *asked).out, re.MULTILINE)
    assert heads == ["missed", "ok", "exempt", "late"]
    found = json.loads(any_site.audit("--json", *AT, *asked).out)["containers"]
    assert [container["name"] for container in found] == heads


@pytest.mark.parametrize("argv", [(), ("--history", "30")], ids=["detail", "history"])
def test_an_unknown_container(any_site: Site, argv: tuple[str, ...]) -> None:
    for name in ("sales", "sales-archive", "wiki\x1b[2J"):
        any_site.container(name)
    any_site.container("gone", active=False)
    advice = {
        "sale": "did you mean sales or sales-archive?",
        "hydrogen": "-v lists all names",
        "wiki": "did you mean wiki\\x1b[2J?",
    }
    for name, hint in advice.items():
        said = failure(any_site, *argv, "sales", "gone", name, publishes=False)
        assert said == f"backup_audit: no container is called {name}: {hint}\n"


def test_what_is_left_of_a_deleted_container(any_site: Site) -> None:
    """Two of one name, and the one that was deleted last counts; at an earlier moment, an earlier dump."""
    host = DB4Sci(any_site.engine, timezone="UTC")
    for created, nights in (("2025-01-01", (1, 2)), ("2026-03-03", (4, 5, 6))):
        host.create("gone", created=datetime.fromisoformat(created))
        for night in nights:
            host.night(date(2026, 3, night), {"gone": Failure.CONNECTION} if night == 6 else {})
        host.delete("gone", datetime(2026, 3, nights[-1], 20))
    host.create("sales")
    host.night(date(2026, 3, 13))

    def told(*argv: str) -> tuple[object, ...]:
        result = any_site.audit("--json", *argv)
        (found,) = json.loads(result.out)["containers"]
        last = found["last_success"] or {"started": None, "url": None}
        return result.status, found["c_id"], found["status"], found["severity"], last["started"], last["url"]

    url = "s3://site-backups/prod/gone/gone_2026-03-0{}_18-07-00"
    assert told(*AT, "gone") == (0, 2, None, 0, "2026-03-05T18:07:05Z", url.format(5))
    assert told("--at", "2026-03-05T12:00", "gone") == (0, 2, None, 0, "2026-03-04T18:07:05Z", url.format(4))
    assert told(*AT, "1") == (0, 1, None, 0, "2026-03-02T18:07:05Z", url.format(2))
    shown = any_site.audit(*AT, "gone")
    assert (shown.status, shown.err) == (0, "")
    assert url.format(5) in shown.out
    assert any_site.audit(*AT, "--history", "30", "gone").status == 0
