"""The program as a process: however it is started, whoever reads what it prints, whatever signal it gets."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from socket import create_server
from typing import TextIO

import pytest

import backup_audit
from audit import terminal, textfile
from tests.builders import NOW, TOP, Result, Site, series
from tests.failed_audits import SUCCESS, assert_not_done, locked_log, publish_good_audit, waiting_backends, within
from tests.postgres import ADMIN_USER, HOST
from tests.programs import wait_until

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


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="needs Linux's /proc to see process titles")
def test_a_waiting_audit_shows_no_password_in_a_process_title_and_ends_at_a_signal(site: Site) -> None:
    good, database = publish_good_audit(site), site.postgres
    password = database.server.passwords[ADMIN_USER]
    url = database.url.set(password=password).render_as_string(hide_password=False)
    site.config(**dict.fromkeys(site.settings), database_url=url)
    with locked_log(site), running(site) as audit:
        wait_until(lambda: waiting_backends(database))
        titles = [Path(f"/proc/{pid}/cmdline").read_text() for pid in (audit.pid, *waiting_backends(database))]
        result = stop(audit, signal.SIGTERM)
    assert "backup_audit.py" in titles[0]
    assert ADMIN_USER in titles[1]
    assert password.strip("\\:'") not in "".join(titles)
    assert_not_done(site, result, good, "backup_audit: stopped by SIGTERM: run it again\n")


def test_a_signal_while_the_server_does_not_answer(site: Site) -> None:
    good = publish_good_audit(site)
    with create_server((HOST, 0)) as listener:
        site.config(mydb_admin_port=listener.getsockname()[1], connect_timeout=60)
        with running(site) as audit:
            client, _ = listener.accept()
            with client:
                client.recv(8)  # it asks for TLS, and waits
                result = stop(audit, signal.SIGINT)
    assert_not_done(site, result, good, "backup_audit: stopped by SIGINT: run it again\n")


def prepare(stdout: TextIO) -> None:
    """Prepare this process, with another stdout, as the program prepares its own."""
    with redirect_stdout(stdout), redirect_stderr(io.StringIO()):
        terminal.prepare()


@pytest.fixture
def _signals_afterwards() -> Iterator[None]:
    """What the process does at a signal is as before when the test has ended."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def signal_before(function: str, number: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have this process get a signal just before a function of `textfile` writes."""
    write = getattr(textfile, function)

    def signalled(*arguments: object) -> None:
        os.kill(os.getpid(), number)
        write(*arguments)

    monkeypatch.setattr(textfile, function, signalled)


@pytest.mark.usefixtures("_signals_afterwards")
def test_a_signal_before_the_run_file_is_ignored(sqlite_site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    publish_good_audit(sqlite_site)
    signal_before("overwrite", signal.SIGINT, monkeypatch)
    prepare(io.StringIO())
    assert sqlite_site.audit("-q") == Result(0, "", "")
    assert sqlite_site.samples(sqlite_site.runfile)[SUCCESS] == 1


@pytest.mark.usefixtures("_signals_afterwards")
def test_a_signal_before_the_textfile_fails_the_run(sqlite_site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    good = publish_good_audit(sqlite_site)
    signal_before("write", signal.SIGTERM, monkeypatch)
    prepare(io.StringIO())
    assert_not_done(sqlite_site, sqlite_site.audit(), good, "backup_audit: stopped by SIGTERM: run it again\n")


# --- As cron and systemd start it ------------------------------------------------------------------------

ODD = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PGCLIENTENCODING": "SQL_ASCII"}
ODD |= {"TERM": "dumb", "TZ": ":no/zone", "HOME": "/nonexistent", "LOGNAME": "root"}
ODD |= {"PGTZ": "America/St_Johns", "PGDATESTYLE": "SQL, DMY", "PGCONNECT_TIMEOUT": "0", "PGAPPNAME": "another"}
ODD |= {"PGOPTIONS": "-c default_transaction_read_only=off -c IntervalStyle=sql_standard"}


def without_time(exposition: bytes) -> list[bytes]:
    moving = (b"mydb_backup_audit_timestamp_seconds", b"mydb_backup_covered_ratio{")
    return [line for line in exposition.splitlines() if not line.startswith(moving)]


@pytest.mark.parametrize(
    ("umask", "env"),
    [(0o077, {}), (0, ODD)],
    ids=["an empty environment", "nothing but ASCII, an odd zone, variables of libpq"],
)
def test_the_textfile_is_the_same_however_the_audit_is_started(site: Site, umask: int, env: dict[str, str]) -> None:
    good = publish_good_audit(site)
    for path in (site.textfile, site.runfile):
        path.unlink()
    command = [sys.executable, PROGRAM, "--config", str(site.folder / "mydb_config.py")]
    ran = subprocess.run(command, cwd="/", env=env, umask=umask, capture_output=True, encoding="utf-8", check=False)
    assert Result.of(ran) == Result(0, "", "")
    assert without_time(site.textfile.read_bytes()) == without_time(good)
    assert [path.stat().st_mode & 0o7777 for path in (site.textfile, site.runfile)] == [0o644, 0o644]
    samples = site.samples(site.runfile)
    assert samples[SUCCESS] == 1
    assert abs(samples[series("mydb_backup_audit_clock_skew_seconds")]) < 60


# --- Terminals, pipes and full devices ---------------------------------------------------------------------


def test_to_ask_for_the_umask_does_not_change_it() -> None:
    before = os.umask(0o027)
    found = [terminal.umask(), terminal.umask(), os.umask(before)]
    assert found == [0o027] * 3


def test_colours_are_for_terminals_that_want_them(sqlite_site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    sqlite_site.container()

    def shown(terminal: bool = True, **variables: str) -> str:
        for variable, value in ({"TERM": "xterm", "NO_COLOR": "", "COLUMNS": "80"} | variables).items():
            monkeypatch.setenv(variable, value)
        return sqlite_site.audit("-v", *AT, terminal=terminal).out

    coloured, plain = shown(), shown(NO_COLOR="1")
    assert re.sub(r"\x1b\[[\d;]*m", "", coloured) == plain == shown(TERM="dumb") != coloured
    assert "\x1b" not in plain + shown(terminal=False)


def audit_into(stdout: TextIO | None, site: Site, *words: str) -> int:
    """Audit a site in this process, with another stdout; returns the exit status."""
    with redirect_stdout(stdout):
        return backup_audit.main(["--config", str(site.folder / "mydb_config.py"), *words])


def audit_into_a_full_device(site: Site, *words: str) -> int:
    with open("/dev/full", "w", encoding="utf-8") as full:
        return audit_into(full, site, *words)


def test_head_ends_the_report_quietly(sqlite_site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    publish_good_audit(sqlite_site)
    for buffering in (1, -1):  # the first line fails, and the last one
        reader, writer = os.pipe()
        os.close(reader)
        with open(writer, "w", buffering, encoding="utf-8") as pipe:
            assert audit_into(pipe, sqlite_site, "-v") == 0
    assert capsys.readouterr().err == ""
    assert sqlite_site.samples(sqlite_site.runfile)[SUCCESS] == 1


def test_a_report_that_cannot_be_printed_is_a_failed_run(sqlite_site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    good = publish_good_audit(sqlite_site)
    problem = "backup_audit: cannot print the report ({}): check where stdout goes\n"
    for words in ("--output -", "--history 30", "--check-config", "sales", "-v"):
        assert sqlite_site.samples(sqlite_site.runfile)[SUCCESS] == 1
        assert audit_into_a_full_device(sqlite_site, *words.split()) == 3
        assert capsys.readouterr().err == problem.format("No space left on device")
    assert sqlite_site.samples(sqlite_site.runfile)[SUCCESS] == 0
    assert audit_into_a_full_device(sqlite_site, "--version") == 3
    assert audit_into(None, sqlite_site, "-v") == 3, "closed before the program began"
    assert capsys.readouterr().err == problem.format("Bad file descriptor")
    assert audit_into(None, sqlite_site, "-q") == 0
    with open("/dev/full", "w", encoding="utf-8") as full, redirect_stderr(full):
        assert audit_into_a_full_device(sqlite_site, "-v") == 3, "nobody can hear why"
    with redirect_stderr(None):
        assert audit_into_a_full_device(sqlite_site, "-v") == 3
    assert capsys.readouterr() == ("", ""), "without stderr nothing goes to stdout"
    assert without_time(sqlite_site.textfile.read_bytes()) == without_time(good)


@pytest.mark.usefixtures("_signals_afterwards")
def test_any_name_can_be_printed_in_any_encoding(sqlite_site: Site) -> None:
    name = "Bücher 数据 \U0001f4be"
    sqlite_site.run(sqlite_site.container(name), "2026-03-13 18:07", "2026-03-13 18:30")
    sqlite_site.config()

    def printed(encoding: str, *words: str) -> bytes:
        out = io.BytesIO()
        with io.TextIOWrapper(out, encoding=encoding) as stdout:
            prepare(stdout)
            assert audit_into(stdout, sqlite_site, *words, *AT) == 0
            return out.getvalue()

    assert rb"\u6570" in printed("ascii", "-v")
    assert rb"\u6570" in printed("latin-1", "--history", "30")
    assert name.encode() in printed("ascii", "--history", "30", "--csv"), "programs read UTF-8"
    sqlite_site.container(data={"Info": {"BACKUP_FREQ": "Daily\ud800"}})
    for argv in (("-v",), ("--history", "30", "--csv"), ("--output", "-")):
        assert sqlite_site.audit(*argv, *AT).err == "", "what UTF-8 cannot say is spelled out"
