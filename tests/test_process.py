"""The program as a process: however it is started, whatever signal it gets, whichever Python runs it."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from socket import create_server
from typing import Any

import pytest

from audit.interpreter import OLDEST, PACKAGES
from tests.builders import TOP, Result, Site, series
from tests.failures import (
    SUCCESS,
    as_result,
    assert_complaint,
    assert_not_done,
    database_of,
    files,
    locked_log,
    published,
    wait_until,
    waiting_backends,
    within,
)
from tests.postgres import ADMIN_USER, HOST
from tests.relay import relayed

PROGRAM = str(TOP / "backup_audit.py")
PROMPTLY = 2.0
"""Seconds within which an audit that is told to stop has ended."""


def run(*words: str | Path, **options: Any) -> Result:
    """Run a program to its end."""
    command = [str(word) for word in words]
    return as_result(subprocess.run(command, capture_output=True, encoding="utf-8", check=False, timeout=60, **options))


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the program in a folder of its own, without a virtual environment; returns the script."""
    folder = tmp_path / "opt"
    shutil.copytree(TOP / "audit", folder / "audit", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("backup_audit.py", "admin_db.py", "models.py"):
        shutil.copy(TOP / name, folder)
    return folder / "backup_audit.py"


# --- SIGTERM, Ctrl-C ----------------------------------------------------------------------------------------

_AT_A_MOMENT = """\
import json, os, runpy, signal, sys
sys.path.insert(0, os.path.dirname(sys.argv[1]))
import backup_audit
from audit import process, textfile
files = {module.__file__ for module in (backup_audit, process, textfile)}
textfile_, runfile, complaints = sys.argv[3:6]
good = open(textfile_, "rb").read()

def run(moment):
    lines = set()
    def trace(frame, event, argument):
        place = frame.f_code.co_filename, frame.f_lineno
        if place[0] in files and event == "line" and place not in lines:
            lines.add(place)
            if len(lines) == moment:
                os.kill(os.getpid(), signal.SIGTERM if moment % 2 else signal.SIGINT)
        return trace if place[0] in files else None
    complain = backup_audit._complain
    def complain_and_get_another(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return complain(*arguments)
    if moment % 3 == 0:
        backup_audit._complain = complain_and_get_another
    os.dup2(os.open(complaints, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    process.prepare()
    process.obey_signals()
    sys.settrace(trace)
    status = backup_audit.main(["--config", sys.argv[2], "-q"])
    sys.settrace(None)
    os._exit(status if len(lines) >= moment else 99)

for moment in range(1, 10_000):
    open(textfile_, "wb").write(good)
    open(runfile, "w").write("of yesterday")
    child = os.fork()
    if not child:
        run(moment)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status == 99:
        break
    run_file, content = open(runfile).read(), open(textfile_, "rb").read()
    names = sorted(os.listdir(os.path.dirname(runfile)))
    print(json.dumps([moment, status, run_file, content.count(b"\\n"), names, open(complaints).read()]), flush=True)
"""
"""Runs the audit in a child, again and again, and sends it a signal at the next line of its main flow each time.

Every third time it gets a second signal while it tells of the first.
"""


def test_a_signal_at_any_moment(sqlite_site: Site) -> None:
    """Exit status and run file agree, the textfile is whole, and one line tells of the signal."""
    good = published(sqlite_site)
    config, complaints = sqlite_site.folder / "mydb_config.py", sqlite_site.folder / "complaints"
    arguments = (PROGRAM, config, sqlite_site.textfile, sqlite_site.runfile, complaints)
    result = run(sys.executable, "-c", _AT_A_MOMENT, *arguments)
    assert (result.status, result.err) == (0, "")
    outcomes = []
    for moment, status, run_file, lines, names, said in map(json.loads, result.out.splitlines()):
        success = [line.split()[1] for line in run_file.splitlines() if line.startswith("mydb_backup_audit_success ")]
        outcome = status, *success
        outcomes.append(outcome)
        how = "SIGTERM" if moment % 2 else "SIGINT"
        if outcome == (0, "1.0"):  # all was done before
            assert said == ""
        else:
            assert said == f"backup_audit: stopped by {how}: run it again\n", moment
        assert (success or run_file) in (["0.0"], ["1.0"], "of yesterday")
        assert lines == good.count(b"\n")
        assert names == files(sqlite_site)
    assert [outcome for outcome, _ in groupby(outcomes)] == [(3,), (3, "0.0"), (0, "1.0")]


@contextmanager
def running(site: Site, script: str | Path = PROGRAM) -> Iterator[subprocess.Popen[str]]:
    """The audit of a site as a process of its own, to be told to stop."""
    words = [sys.executable, str(script), "--config", str(site.folder / "mydb_config.py")]
    pipe = subprocess.PIPE
    program = subprocess.Popen(words, cwd=site.folder, encoding="utf-8", stdout=pipe, stderr=pipe)
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


both_signals = pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT], ids=lambda how: how.name)


@both_signals
def test_a_signal_while_a_query_runs(site: Site, how: signal.Signals) -> None:
    good = published(site)
    with locked_log(site), running(site) as audit:
        wait_until(lambda: waiting_backends(database_of(site)))
        result = stop(audit, how)
    assert_not_done(site, result, good, f"backup_audit: stopped by {how.name}: run it again\n")


@both_signals
@pytest.mark.parametrize("number", [1, 2])
def test_a_signal_while_the_network_swallows_a_query(site: Site, number: int, how: signal.Signals) -> None:
    good = published(site)
    reached, go_on = threading.Event(), threading.Event()

    def hold(query: int) -> None:
        if query == number:
            reached.set()
            go_on.wait(60)

    with relayed(site, query_timeout=60) as relay:
        relay.at_query = hold
        with running(site) as audit:
            assert reached.wait(30)
            result = stop(audit, how)
        go_on.set()
    assert_not_done(site, result, good, how.name)


@both_signals
def test_a_signal_while_the_server_does_not_answer(site: Site, how: signal.Signals) -> None:
    good = published(site)
    with create_server((HOST, 0)) as listener:
        site.config(mydb_admin_port=listener.getsockname()[1], connect_timeout=60)
        with running(site) as audit:
            client, _ = listener.accept()
            with client:
                client.recv(8)  # it asks for TLS, and waits
                result = stop(audit, how)
    assert_not_done(site, result, good, how.name)


@both_signals
def test_a_signal_while_the_program_starts(copy: Path, sqlite_site: Site, how: signal.Signals) -> None:
    good = published(sqlite_site)
    package = copy.parent / "psycopg2"  # found before the real one
    package.mkdir()
    (package / "__init__.py").write_text("print('importing', flush=True); import time; time.sleep(60)", "utf-8")
    with running(sqlite_site, copy) as audit:
        assert audit.stdout
        assert audit.stdout.readline() == "importing\n"
        result = stop(audit, how)
    assert result == Result(3, "", f"backup_audit: stopped by {how.name}: run it again\n")
    assert sqlite_site.textfile.read_bytes() == good


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="needs Linux's /proc to see process titles")
def test_no_password_is_in_a_process_title(site: Site) -> None:
    site.container()
    database = database_of(site)
    password = database.server.passwords[ADMIN_USER]
    site.config(database_url=database.url.set(password=password).render_as_string(hide_password=False))
    with locked_log(site), running(site) as audit:
        wait_until(lambda: waiting_backends(database))
        titles = [Path(f"/proc/{pid}/cmdline").read_text() for pid in (audit.pid, *waiting_backends(database))]
        stop(audit, signal.SIGTERM)
    assert "backup_audit.py" in titles[0]
    assert ADMIN_USER in titles[1]
    assert password.strip("\\:'") not in "".join(titles)


# --- As cron and systemd start it ------------------------------------------------------------------------


CRON = {"LOGNAME": "root", "PATH": "/usr/bin:/bin", "SHELL": "/bin/sh", "LANG": "C"}
ASCII = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PGCLIENTENCODING": "SQL_ASCII"}
LIBPQ = {"PGCLIENTENCODING": "LATIN1", "PGTZ": "America/St_Johns", "PGDATESTYLE": "SQL, DMY", "PGCONNECT_TIMEOUT": "0"}
READ_WRITE = {"PGOPTIONS": "-c default_transaction_read_only=off -c IntervalStyle=sql_standard"}
STARTS: dict[str, tuple[int, dict[str, str], str]] = {
    "an empty environment": (0o077, {}, ""),
    "cron without HOME, odd zone": (0o027, {**CRON, "TZ": "Pacific/Chatham"}, ""),
    "LC_ALL=C, TERM=dumb": (0o000, {**CRON, "LC_ALL": "C", "TERM": "dumb", "TZ": "XYZ-25:59:59"}, ""),
    "POSIX and nothing but ASCII": (0o022, {**ASCII, "TZ": ":no/zone"}, ""),
    "a locale and a HOME that do not exist": (0o077, {"LC_ALL": "xx_YY.KOI9", "HOME": "/nonexistent", "TZ": ""}, ""),
    "variables of libpq": (0o022, {**LIBPQ, **READ_WRITE, "PGAPPNAME": "somebody else"}, ""),
    "stdin and stdout closed": (0o077, CRON, "<&- >&-"),
    "stdin, stdout and stderr closed": (0o000, CRON, "<&- >&- 2>&-"),
    "stderr into a full device": (0o022, CRON, "</dev/null 2>/dev/full"),
}
"""The umask, the whole environment, and redirections in the shell's words."""


@pytest.mark.parametrize("name", STARTS)
def test_the_textfile_is_the_same_however_the_audit_is_started(site: Site, name: str) -> None:
    def without_time(exposition: bytes) -> list[bytes]:
        moving = (b"mydb_backup_audit_timestamp_seconds", b"mydb_backup_covered_ratio{")
        return [line for line in exposition.splitlines() if not line.startswith(moving)]

    good, (umask, env, redirections) = published(site), STARTS[name]
    for path in (site.textfile, site.runfile):
        path.unlink()
    words = ["/bin/sh", "-c", f'exec "$0" "$@" {redirections}', sys.executable, PROGRAM]
    config = ["--config", str(site.folder / "mydb_config.py")]
    assert run(*words, *config, cwd="/", env=env, umask=umask) == Result(0, "", "")
    assert without_time(site.textfile.read_bytes()) == without_time(good)
    for path in (site.textfile, site.runfile):
        assert path.stat().st_mode & 0o7777 == 0o644
    samples = site.samples(site.runfile)
    assert samples[SUCCESS] == 1
    assert abs(samples[series("mydb_backup_audit_clock_skew_seconds")]) < 60


# --- The Python that runs it, and broken installations -----------------------------------------------------


def assert_broken(result: Result, *problems: str) -> None:
    assert (result.status, result.out) == (3, "")
    assert_complaint(result.err)
    for problem in problems:
        assert problem in result.err


BARE = (sys.executable, "-S", "-E")
"""This Python without its packages."""


def make_environment(copy: Path, python: str = f'exec "{sys.executable}" "$@"') -> Path:
    """A stand-in for a virtual environment beside the program, whose Python is a shell script."""
    path = copy.parent / ".venv" / "bin" / "python"
    path.parent.mkdir(parents=True)
    path.write_text(f"#!/bin/sh\n{python}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


def test_a_python_without_the_packages_finds_the_environment_beside_the_program(copy: Path, sqlite_site: Site) -> None:
    published(sqlite_site)
    words = ("--config", sqlite_site.folder / "mydb_config.py", "--at", "2026-03-14 07:00", "a b*", "")
    missing = run(*BARE, copy, *words)
    assert_broken(missing, f"{sys.executable} lacks {', '.join(PACKAGES)}: run make venv in {copy.parent}")
    make_environment(copy)
    link = sqlite_site.folder / "link"
    link.symlink_to(copy)
    expected = run(sys.executable, PROGRAM, *words)
    assert expected.status == 3
    assert "a b*" in expected.err, "every argument arrives as it was"
    assert run(*BARE, link, *words, cwd="/") == expected


def test_a_broken_virtual_environment(copy: Path) -> None:
    python = make_environment(copy)
    python.unlink()
    python.symlink_to(Path(sys.executable).resolve())  # not an environment, and without packages
    result = run(*BARE, copy)
    if result.status != 3 or "lacks" not in result.err:
        pytest.skip("the Python beneath this environment has the packages")
    assert_broken(result, f"{python} lacks ", f": run make clean venv in {copy.parent}")
    python.unlink()
    python.write_text("#!/nonexistent/python\n", encoding="utf-8")
    python.chmod(0o755)
    assert_broken(run(*BARE, copy), f"cannot run {python} (No such file or directory): run make clean venv")


def old_pythons() -> list[Path]:
    """The interpreters of this machine that are too old."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path(pwd.getpwuid(os.getuid()).pw_dir, ".pyenv"))
    found = list(Path("/usr/bin").glob("python3.?"))
    if os.access(pyenv / "versions", os.R_OK | os.X_OK):  # else it is another user's
        found += pyenv.glob("versions/3.*/bin/python3.?")
    return sorted({path.name: path for path in found if int(path.name.rpartition(".")[2]) < OLDEST[1]}.values())


@pytest.mark.parametrize("python", old_pythons() or [None], ids=lambda path: path.name if path else "none")
def test_a_python_that_is_too_old(copy: Path, python: Path | None) -> None:
    if python is None:
        pytest.skip("no old Python on this machine")
    assert_broken(run(python, copy, "--version"), "is older than Python 3.10: run make venv in ")
    make_environment(copy)
    assert run(python, copy, "--version") == run(sys.executable, PROGRAM, "--version")


BREAKAGES = {
    "a package that cannot be imported": ("psycopg2/__init__.py", "import no_such_library", "no_such_library"),
    "a package with a syntax error": ("psycopg2/__init__.py", "def", "SyntaxError"),
    "a module that is missing": ("audit/runs.py", None, "audit.runs"),
    "a folder that is missing": ("audit", None, "audit"),
    "half a file": ("audit/interpreter.py", "import os\ndef require(", "'(' was never closed"),
}


@pytest.mark.parametrize("name", BREAKAGES)
def test_a_broken_installation_never_looks_like_a_verdict(copy: Path, name: str) -> None:
    place, content, problem = BREAKAGES[name]
    path = copy.parent / place
    if content is not None:
        path.parent.mkdir(exist_ok=True)
        path.write_text(content, encoding="utf-8")
    elif path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    assert_broken(run(sys.executable, copy), "the installation is broken (", problem)
