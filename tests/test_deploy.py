"""`deploy/`: the cron lines and the units do what their comments say. The role has a file of its own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest

import backup_audit
from tests.builders import TOP, Result, Site
from tests.programs import require

DEPLOY = TOP / "deploy"
PROGRAM = "/opt/backup_audit/backup_audit.py"
"""Where the files of `deploy/` expect the program."""


# --- cron ----------------------------------------------------------------------------------------------

DEAD_MANS_SWITCH, PLAIN = re.findall(r"^(?:#   )?(\d.*)$", (DEPLOY / "crontab").read_text("utf-8"), re.MULTILINE)


def run_as_cron(line: str, program: str) -> Result:
    """What cron mails of a line of `/etc/cron.d`, with another program in the place of ours."""
    assert "%" not in line, "cron would take it for the end of the line"
    minute, hour, *every, user, command = line.split(None, 6)
    assert (every, user) == (["*", "*", "*"], "backup_audit")
    assert int(minute) < 60
    assert int(hour) < 24
    words = ["/bin/sh", "-c", command.replace(PROGRAM, program)]
    environment = {"HOME": "/", "PATH": "/usr/bin:/bin", "SHELL": "/bin/sh", "LOGNAME": "backup_audit"}
    return Result.of(subprocess.run(words, env=environment, capture_output=True, encoding="utf-8", check=False))


def test_cron_mails_nothing_but_problems(sqlite_site: Site) -> None:
    program = f"{sys.executable} {TOP / 'backup_audit.py'} --config {sqlite_site.config()}"
    started = sqlite_site.clock() - timedelta(hours=2)
    sqlite_site.run(sqlite_site.container("sales"), started, started + timedelta(hours=1))
    assert run_as_cron(PLAIN, program) == Result(0, "", "")
    sqlite_site.container("Übung", policy=None)
    mail = run_as_cron(PLAIN, program)
    assert (mail.status, mail.err) == (2, "")
    assert "no_policy Übung: " in " ".join(mail.out.split())


def test_the_dead_mans_switch_reports_a_failure_only_if_the_audit_was_not_done(tmp_path: Path) -> None:
    """A file in the place of the service: its text is what the service answers, and curl complains of any other."""
    require("curl", "curl")
    line = DEAD_MANS_SWITCH.replace("https://ping.example.org/UUID", f"file://{tmp_path}")
    for status, ping in ((0, "0"), (2, "0"), (3, "3"), (127, "127")):
        answer = tmp_path / ping
        answer.write_text("OK", encoding="ascii")
        assert run_as_cron(line, f"(exit {status})") == Result(0, "", ""), "nothing to mail"
        answer.unlink()
        assert f"curl: (37) Couldn't open file {answer}" in run_as_cron(line, f"(exit {status})").err


# --- systemd -------------------------------------------------------------------------------------------


def test_the_services_run_an_audit_whose_verdict_is_no_failure(capsys: pytest.CaptureFixture[str]) -> None:
    service, drop_in = ((DEPLOY / name).read_text("utf-8") for name in ("backup-audit.service", "backup-audit@.conf"))
    for command in re.findall(r"^ExecStart=(.+)$", service + drop_in, re.MULTILINE):
        program, *arguments = command.split()
        assert program == PROGRAM
        assert backup_audit.main([*arguments, "--config", "/nonexistent", "--check-config"]) == 3
        assert "no configuration file /nonexistent" in capsys.readouterr().out, "it only gets so far with good options"
    assert "\nSuccessExitStatus=1 2\n" in service
    assert (folder := re.search(r"^ReadWritePaths=-?(.*)$", service, re.MULTILINE))
    assert f"prometheus_file = '{folder[1]}/backup_audit.prom'" in (TOP / "mydb_config.example").read_text("utf-8")


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed (Debian: systemd)")
def test_systemd_understands_the_units_and_finds_them_well_protected(tmp_path: Path) -> None:
    for source, *targets in (  # as the comment in backup-audit.service says
        ("backup-audit.service", "backup-audit.service", "backup-audit@.service"),
        ("backup-audit.timer", "backup-audit.timer", "backup-audit@.timer"),
        ("backup-audit@.conf", "backup-audit@.service.d/site.conf"),
    ):
        for target in targets:
            (tmp_path / target).parent.mkdir(exist_ok=True)
            text = (DEPLOY / source).read_text("utf-8").replace("/opt/backup_audit", str(TOP))
            (tmp_path / target).write_text(text, "utf-8")
    services = "backup-audit.service backup-audit@north.service"
    verify = f"verify --man=no {services} backup-audit.timer backup-audit@north.timer"
    for command in (verify, f"security --offline=true --threshold=20 {services}"):
        words, environment = ["systemd-analyze", "--no-pager", *command.split()], {"SYSTEMD_UNIT_PATH": f"{tmp_path}:"}
        answer = subprocess.run(words, env=os.environ | environment, capture_output=True, encoding="utf-8", check=False)
        if "unrecognized option" in answer.stderr:
            pytest.skip("this systemd-analyze judges no unit files")
        assert (answer.returncode, answer.stderr) == (0, ""), answer.stdout
