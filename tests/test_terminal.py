"""The program as a process: however it is started, whoever reads what it prints, whatever signal it gets."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from socket import create_server

import pytest

import backup_audit
from audit import terminal
from models import ContainerState
from tests.builders import NOW, TOP, Result, Site, series
from tests.failures import (
    SUCCESS,
    as_result,
    assert_not_done,
    database_of,
    locked_log,
    published,
    wait_until,
    waiting_backends,
    within,
)
from tests.postgres import ADMIN_USER, HOST

PROGRAM = str(TOP / "backup_audit.py")
AT = ("--at", NOW.isoformat())
PROMPTLY = 2.0
"""Seconds within which an audit that is told to stop has ended."""

# --- Signals -------------------------------------------------------------------------------------------


@contextmanager
def running(site: Site, *words: str) -> Iterator[subprocess.Popen[str]]:
    """The audit of a site as a process of its own."""
    command = [sys.executable, PROGRAM, "--config", str(site.folder / "mydb_config.py"), *words]
    pipe = subprocess.PIPE
    program = subprocess.Popen(command, cwd=site.folder, encoding="utf-8", stdout=pipe, stderr=pipe)
    try:
        yield program
    finally:
        program.kill()
        program.communicate()


def stop(program: subprocess.Popen[str], how: signal.Signals) -> Result:
    """Send the signal, and return how the program ended, which takes no longer than promised."""
    program.send_signal(how)
    with within(PROMPTLY):
        out, err = program.communicate(timeout=50)
    return Result(program.returncode, out, err)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT], ids=lambda how: how.name)
def test_a_signal_while_a_query_runs(site: Site, how: signal.Signals) -> None:
    good = published(site)
    with locked_log(site), running(site) as audit:
        wait_until(lambda: waiting_backends(database_of(site)))
        result = stop(audit, how)
    assert_not_done(site, result, good, f"backup_audit: stopped by {how.name}: run it again\n")


def test_a_signal_while_the_server_does_not_answer(site: Site) -> None:
    good = published(site)
    with create_server((HOST, 0)) as listener:
        site.config(mydb_admin_port=listener.getsockname()[1], connect_timeout=60)
        with running(site) as audit:
            client, _ = listener.accept()
            with client:
                client.recv(8)  # it asks for TLS, and waits
                result = stop(audit, signal.SIGINT)
    assert_not_done(site, result, good, "SIGINT")


_SIGNALLED = """\
import os, signal, sys
import backup_audit
from audit import terminal
from audit import terminal, textfile
def with_signal(function, number):
    def signalled(*arguments):
        os.kill(os.getpid(), number)
        return function(*arguments)
    return signalled
if "first" in sys.argv.pop(1):
    textfile.write = with_signal(textfile.write, signal.SIGTERM)
textfile.overwrite = with_signal(textfile.overwrite, signal.SIGINT)
terminal.prepare()
sys.exit(backup_audit.main(sys.argv[1:]))
"""
"""An audit that gets a signal before it writes the textfile, if its first word says so, and one before the run file."""


@pytest.mark.parametrize("when", ["at the end", "first, and again at the end"])
def test_a_signal_at_the_end_changes_nothing(sqlite_site: Site, when: str) -> None:
    good = published(sqlite_site)
    command = [sys.executable, "-c", _SIGNALLED, when, "--config", str(sqlite_site.folder / "mydb_config.py")]
    result = as_result(subprocess.run(command, cwd=TOP, capture_output=True, encoding="utf-8", check=False))
    if when == "at the end":
        assert result == Result(0, "", "")
        assert sqlite_site.samples(sqlite_site.runfile)[SUCCESS] == 1
    else:
        assert_not_done(sqlite_site, result, good, "backup_audit: stopped by SIGTERM: run it again\n")


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="needs Linux's /proc to see process titles")
def test_no_password_is_in_a_process_title(site: Site) -> None:
    site.container()
    database = database_of(site)
    password = database.server.passwords[ADMIN_USER]
    site.config(database_url=database.url.set(password=password).render_as_string(hide_password=False))
    with locked_log(site), running(site) as audit:
        wait_until(lambda: waiting_backends(database))
        titles = [Path(f"/proc/{pid}/cmdline").read_text() for pid in (audit.pid, *waiting_backends(database))]
    assert "backup_audit.py" in titles[0]
    assert ADMIN_USER in titles[1]
    assert password.strip("\\:'") not in "".join(titles)


# --- As cron and systemd start it ------------------------------------------------------------------------

CRON = {"LOGNAME": "root", "PATH": "/usr/bin:/bin", "SHELL": "/bin/sh", "LANG": "C"}
ASCII = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PGCLIENTENCODING": "SQL_ASCII"}
LIBPQ = {"PGTZ": "America/St_Johns", "PGDATESTYLE": "SQL, DMY", "PGCONNECT_TIMEOUT": "0", "PGAPPNAME": "another"}
LIBPQ |= {"PGOPTIONS": "-c default_transaction_read_only=off -c IntervalStyle=sql_standard"}
STARTS: dict[str, tuple[int, dict[str, str]]] = {
    "an empty environment": (0o077, {}),
    "cron without HOME, odd zone": (0o027, {**CRON, "TZ": "Pacific/Chatham"}),
    "POSIX and nothing but ASCII": (0o022, {**ASCII, "TERM": "dumb", "TZ": ":no/zone"}),
    "no such locale, variables of libpq": (0o000, {"LC_ALL": "xx_YY.KOI9", "HOME": "/nonexistent", **LIBPQ}),
}
"""The umask, and the whole environment."""


def without_time(exposition: bytes) -> list[bytes]:
    moving = (b"mydb_backup_audit_timestamp_seconds", b"mydb_backup_covered_ratio{")
    return [line for line in exposition.splitlines() if not line.startswith(moving)]


@pytest.mark.parametrize("name", STARTS)
def test_the_textfile_is_the_same_however_the_audit_is_started(site: Site, name: str) -> None:
    good, (umask, env) = published(site), STARTS[name]
    for path in (site.textfile, site.runfile):
        path.unlink()
    command = [sys.executable, PROGRAM, "--config", str(site.folder / "mydb_config.py")]
    ran = subprocess.run(command, cwd="/", env=env, umask=umask, capture_output=True, encoding="utf-8", check=False)
    assert as_result(ran) == Result(0, "", "")
    assert without_time(site.textfile.read_bytes()) == without_time(good)
    assert [path.stat().st_mode & 0o7777 for path in (site.textfile, site.runfile)] == [0o644, 0o644]
    samples = site.samples(site.runfile)
    assert samples[SUCCESS] == 1
    assert abs(samples[series("mydb_backup_audit_clock_skew_seconds")]) < 60


# --- Terminals, pipes and full devices ---------------------------------------------------------------------


def test_colours_are_for_terminals_that_want_them(sqlite_site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, started in {"ok": "2026-03-13 18:07", "late": "2026-03-13 05:00", "missed": "2026-03-12 18:07"}.items():
        sqlite_site.run(sqlite_site.container(name), started, started)
    shown = {}
    monkeypatch.setenv("COLUMNS", "80")  # a pseudo-terminal has none, which Python 3.10 believes
    for variable in ("TERM=xterm", "NO_COLOR=", "NO_COLOR=1", "TERM=dumb"):
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv(*variable.split("="))
        shown[variable] = sqlite_site.audit("-v", *AT, terminal=True).out
    coloured = shown["TERM=xterm"]
    assert coloured == shown["NO_COLOR="], "empty does not count"
    assert len(dict(re.findall(r"\x1b\[([1-9][\d;]*)m(\w+)", coloured))) == 3, "each severity has its own colour"
    assert coloured.count("\x1b[0m") == len(re.findall(r"\x1b\[[1-9][\d;]*m", coloured))
    assert re.sub(r"\x1b\[[\d;]*m", "", coloured) == shown["NO_COLOR=1"] == shown["TERM=dumb"]
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR")
    assert "\x1b" not in sqlite_site.audit("-v", *AT).out, "a pipe"
    master, slave = pty.openpty()
    try:
        assert sqlite_site.process("-v", *AT, cwd=Path.cwd(), capture_output=False, stdout=slave).returncode == 2
        assert os.read(master, 65536).decode().replace("\r\n", "\n") == coloured
    finally:
        os.close(slave)
        os.close(master)


def test_head_ends_the_report_quietly(sqlite_site: Site) -> None:
    with sqlite_site.session() as session:  # several times what a pipe holds
        session.add_all(ContainerState(c_id=n, name=f"c {n} {'x' * 150}", state="running") for n in range(900))
    sqlite_site.config()
    with running(sqlite_site, "-v") as program:
        assert program.stdout
        assert "900 containers" in program.stdout.readline()
        program.stdout.close()
        assert program.wait(60) == 2
        assert program.stderr
        assert program.stderr.read() == ""
    assert sqlite_site.samples()[series("mydb_backup_containers", status="no_policy")] == 900
    assert sqlite_site.samples(sqlite_site.runfile)[SUCCESS] == 1


@pytest.mark.parametrize("words", ["-v", "--output -", "--history 30", "--check-config", "sales", "--version"])
def test_a_report_that_cannot_be_printed_is_a_failed_run(
    sqlite_site: Site, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    published(sqlite_site)
    argv = ["--config", str(sqlite_site.folder / "mydb_config.py"), *words.split()]
    with open("/dev/full", "w", encoding="utf-8") as full, redirect_stdout(full):
        assert backup_audit.main(argv) == 3
    problem = "backup_audit: cannot print the report (No space left on device): check where stdout goes\n"
    assert capsys.readouterr().err == ("" if words == "--version" else problem)
    assert sqlite_site.samples(sqlite_site.runfile)[SUCCESS] == (0 if words == "-v" else 1)


@pytest.mark.parametrize("database", [True, False])
def test_a_process_that_nobody_can_hear(sqlite_site: Site, database: bool) -> None:
    good = published(sqlite_site)
    if not database:
        sqlite_site.config(database_url="sqlite:////nowhere/x.db")
    with open("/dev/full", "w", encoding="utf-8") as full:
        answer = sqlite_site.process("-v", stdout=full, stderr=full, capture_output=False)
    assert answer.returncode == 3
    assert without_time(sqlite_site.textfile.read_bytes()) == without_time(good)
    assert sqlite_site.samples(sqlite_site.runfile)[SUCCESS] == 0


def test_any_name_can_be_printed_in_any_encoding(sqlite_site: Site) -> None:
    name = "Bücher 数据 \U0001f4be"
    sqlite_site.run(sqlite_site.container(name), "2026-03-13 18:07", "2026-03-13 18:30")
    for encoding, argv in (("ascii", ("-v",)), ("latin-1", ("--history", "30"))):
        answer = sqlite_site.process(*argv, *AT, env={"PYTHONIOENCODING": encoding}, encoding=encoding)
        assert (answer.returncode, answer.stderr) == (0, "")
        assert "\\u6570" in answer.stdout
    answer = sqlite_site.process("--history", "30", "--csv", *AT, env={"PYTHONIOENCODING": "ascii"})
    assert (answer.returncode, name in answer.stdout) == (0, True), "programs read UTF-8"


def test_what_utf8_cannot_say_is_spelled_out(sqlite_site: Site) -> None:
    sqlite_site.container(data={"Info": {"BACKUP_FREQ": "Daily\ud800"}})
    for argv in (("-v",), ("--history", "30", "--csv"), ("--output", "-")):
        assert sqlite_site.audit(*argv, *AT).err == ""


def test_without_stderr_nothing_goes_to_stdout(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    terminal.print_error("backup_audit: x")
    assert capsys.readouterr().out == ""
