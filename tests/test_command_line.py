"""The command line as a program: options, exit statuses, and what reaches terminals, pipes and closed streams."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
import threading
from collections.abc import Mapping

import pytest

from backup_audit import VERSION
from models import ContainerState
from tests.builders import NOW, TOP, Result, Site, series
from tests.failures import SUCCESS, assert_complaint, failure, files, published, tree

AT = ("--at", NOW.isoformat())


def of_every_severity(site: Site) -> None:
    """Three containers, whose names tell the verdict."""
    for name, started in {"ok": "2026-03-13 18:07", "late": "2026-03-13 05:00", "missed": "2026-03-12 18:07"}.items():
        site.run(site.container(name), started, started)


# --- Options -------------------------------------------------------------------------------------------

HISTORY_ONLY = "--csv, --html and --all go with --history"
ONE_FORM = "--history prints one of table, --json, --csv and --html"
BAD_USAGE = {
    "--frobnicate": "unrecognized arguments: --frobnicate",
    "--config": "argument --config: expected one argument",
    "--at": "argument --at: expected one argument",
    "--json=yes": "argument --json: ignored explicit argument 'yes'",
    "-v -q": "not allowed with argument",
    "--quiet --verbose": "not allowed with argument",
    "--output=": "--output and --html need the name of a file",
    "--history 30 --html=": "--output and --html need the name of a file",
    "--output audit.prom sales": "--output goes with the full audit, not with CONTAINER",
    "--output - --json": "--output - and --json both want stdout",
    **dict.fromkeys(("--csv", "--all sales", "--html x"), HISTORY_ONLY),
    **dict.fromkeys(("--history 30 --output x", "--history 30 --json --csv", "--history 30 --csv --html x"), ONE_FORM),
    "x --nonsense\x1b[31m": "unrecognized arguments: --nonsense\\x1b[31m",
}


@pytest.mark.parametrize("words", BAD_USAGE, ids=ascii)
def test_bad_usage(sqlite_site: Site, words: str) -> None:
    sqlite_site.config()
    before = tree(sqlite_site.folder)
    answer = sqlite_site.audit(*words.split(" "))
    assert (answer.status, answer.out) == (3, "")
    assert_complaint(answer.err)
    assert answer.err.endswith(": see backup_audit.py --help\n")
    assert BAD_USAGE[words] in answer.err
    assert tree(sqlite_site.folder) == before


IMPOSSIBLE = [
    *("", " ", "nonsense", "07:00", "2026-13-01", "2026-02-30", "2026-03-14T25:00", "14.03.2026", "0000-01-01"),
    *("1970-12-31", "9000-01-01", "9999-12-31T23:59:59-12:00", "20260-01-01", "2026-03-14T07:00+99:00", "x\x1b[31m"),
]


def test_impossible_moments_and_periods(sqlite_site: Site) -> None:
    sqlite_site.container()
    for text in IMPOSSIBLE:
        for more in ((), ("sales",), ("--history", "30"), ("--output", "audit.prom")):
            said = failure(sqlite_site, "--at", text, *more, publishes=False)
            assert said.endswith(" is not a time: use ISO 8601, such as 2026-03-14T07:00\n")
    for text in ("", "0", "-1", "x", "1.5", "2026-13", "2026-03-31..2026-03-01"):
        assert "--history" in failure(sqlite_site, f"--history={text}", publishes=False)


MOMENTS = {
    "2026-03-14T07:00": "2026-03-14T01:15:00Z",  # in db_timezone
    "2026-03-14 07:00:30": "2026-03-14T01:15:30Z",
    "2026-03-14": "2026-03-13T18:15:00Z",
    "2026-03-14T07:00Z": "2026-03-14T07:00:00Z",
    "2026-03-14T07:00:00-02:30": "2026-03-14T09:30:00Z",
    "1971-01-01T12:00Z": "1971-01-01T12:00:00Z",
    "8999-12-31T00:00Z": "8999-12-31T00:00:00Z",
}


def test_moments(sqlite_site: Site) -> None:
    sqlite_site.container()
    sqlite_site.config(db_timezone="Asia/Kathmandu")
    for written, now in MOMENTS.items():
        assert json.loads(sqlite_site.audit("--at", written, "--json").out)["audit"]["now"] == now


def test_version_and_help(sqlite_site: Site) -> None:
    assert sqlite_site.audit("--version") == Result(0, f"Backup Audit {VERSION}\n", "")
    help_ = sqlite_site.audit("--help")
    assert (help_.status, help_.err) == (0, "")
    for option in ("--config", "--at", "--output", "--json", "--history", "--csv", "--html", "--all", "--check-config"):
        assert f"{option} " in help_.out


def test_only_the_nightly_audit_writes_files(sqlite_site: Site) -> None:
    sqlite_site.container()
    for argv in (AT, ("sales",), ("--json", "sales"), ("--output", "-"), ("--history", "30"), ("--version",), ("x",)):
        sqlite_site.audit(*argv)
        assert files(sqlite_site) == []


# --- Containers by name ----------------------------------------------------------------------------------


def test_details_come_in_the_order_asked_for(any_site: Site) -> None:
    of_every_severity(any_site)
    exempt = any_site.container("exempt", "Never")
    asked = ("missed", "ok", str(exempt), "late", "ok")
    heads = re.findall(r"^(\S+) \(c_id \d+\)$", any_site.audit(*AT, *asked).out, re.MULTILINE)
    assert heads == ["missed", "ok", "exempt", "late"]
    found = json.loads(any_site.audit("--json", *AT, *asked).out)["containers"]
    assert [container["name"] for container in found] == heads


@pytest.mark.parametrize("argv", [(), ("--history", "30")], ids=["detail", "history"])
def test_an_unknown_container(any_site: Site, argv: tuple[str, ...]) -> None:
    for name in ("sales", "sales-archive", "wiki\x1b[2J"):
        any_site.container(name)
    gone = any_site.container("gone", active=False)
    any_site.run(gone, "2026-03-01 18:07", "2026-03-01 18:30")
    advice = {
        "sale": "did you mean sales or sales-archive?",
        "hydrogen": "-v lists all names",
        "wiki": "did you mean wiki\\x1b[2J?",
    }
    for name, hint in advice.items():
        said = failure(any_site, *argv, "sales", name, publishes=False)
        assert said == f"backup_audit: no active container is called {name}: {hint}\n"
    assert failure(any_site, *argv, "gone", publishes=False) == (
        "backup_audit: gone (c_id 4) was deleted after its last backup run, of 2026-03-01 18:30 UTC: "
        "--history DAYS --all shows its past\n"
    )


# --- Exit statuses, and how much is printed ---------------------------------------------------------------


def test_exit_statuses(sqlite_site: Site) -> None:
    of_every_severity(sqlite_site)
    expected = {("ok",): 0, ("ok", "late"): 1, ("ok", "missed"): 2, (): 2, ("nobody",): 3, ("--frobnicate",): 3}
    for argv, status in expected.items():
        assert sqlite_site.audit(*AT, *argv).status == status
        assert sqlite_site.audit(*AT, "-q", *argv).status == status
    assert sqlite_site.process(*AT, "late").returncode == 1
    assert sqlite_site.audit(*AT, "--history", "30").status == 0, "history is not a verdict"


def test_what_a_terminal_and_cron_get(sqlite_site: Site) -> None:
    of_every_severity(sqlite_site)
    verbose, mail = sqlite_site.audit("-v", *AT).out, sqlite_site.audit(*AT).out
    assert re.findall(r"^ok .* ok$", verbose, re.MULTILINE)
    assert "missed" in mail
    assert not re.findall(r"^ok ", mail, re.MULTILINE)
    for argv in ((), ("missed",), ("--history", "30")):
        assert sqlite_site.audit("-q", *AT, *argv).out == ""
    assert "no active container" in sqlite_site.audit("-q", *AT, "nobody").err
    for name in ("late", "missed"):
        c_id = next(c_id for c_id, other in sqlite_site.names.items() if other == name)
        sqlite_site.run(c_id, "2026-03-14 02:00", "2026-03-14 02:10")
    assert sqlite_site.audit(*AT) == Result(0, "", ""), "all is well: cron has nothing to mail"
    assert sqlite_site.audit(*AT, terminal=True).out.startswith("3 containers: ")


# --- Terminals -------------------------------------------------------------------------------------------


def on_terminal(site: Site, *argv: str, env: Mapping[str, str] | None = None) -> Result:
    """Run the program with a terminal for its stdout."""
    master, slave = pty.openpty()
    received: list[bytes] = []

    def read() -> None:
        while True:
            try:
                chunk = os.read(master, 4096)
            except OSError:  # how Linux says that the other side is closed
                return
            if not chunk:
                return
            received.append(chunk)

    reader = threading.Thread(target=read)
    reader.start()
    env = {"TERM": "xterm", "COLUMNS": "80", **(env or {})}
    try:
        done = site.process(*argv, env=env, capture_output=False, stdout=slave, stderr=subprocess.PIPE)
    finally:
        os.close(slave)
        reader.join()
        os.close(master)
    return Result(done.returncode, b"".join(received).decode("utf-8").replace("\r\n", "\n"), done.stderr)


def test_colours_are_for_terminals_that_want_them(sqlite_site: Site) -> None:
    of_every_severity(sqlite_site)
    result = on_terminal(sqlite_site, "-v", *AT)
    assert (result.status, result.err) == (2, "")
    coloured = dict(re.findall(r"\x1b\[([1-9][\d;]*)m(\w+)", result.out))
    assert len(coloured) == 3, "each severity has its own colour"
    assert result.out.count("\x1b[0m") == len(re.findall(r"\x1b\[[1-9][\d;]*m", result.out))
    plain = re.sub(r"\x1b\[[\d;]*m", "", result.out)
    assert on_terminal(sqlite_site, "-v", *AT, env={"NO_COLOR": "1"}).out == plain
    assert on_terminal(sqlite_site, "-v", *AT, env={"TERM": "dumb"}).out == plain
    assert on_terminal(sqlite_site, "-v", *AT, env={"NO_COLOR": ""}).out == result.out, "empty does not count"
    assert "\x1b" not in on_terminal(sqlite_site, "--json", *AT).out
    assert "\x1b" not in sqlite_site.process("-v", *AT, env={"TERM": "xterm"}).stdout, "a pipe"


# --- Pipes, files and closed streams -----------------------------------------------------------------------


@pytest.mark.parametrize("lines", [0, 1, 10])
def test_head_ends_the_report_quietly(sqlite_site: Site, lines: int) -> None:
    site = sqlite_site
    with site.session() as session:  # several times what a pipe holds
        session.add_all(ContainerState(c_id=n, name=f"c {n} {'x' * 150}", state="running") for n in range(600))
    command = [sys.executable, str(TOP / "backup_audit.py"), "--config", str(site.config()), "-v"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as program:
        assert program.stdout
        assert program.stderr
        for _ in range(lines):
            program.stdout.readline()
        program.stdout.close()
        complaints = program.stderr.read()
        assert program.wait(60) == 2
    assert complaints == b""
    assert site.samples()[series("mydb_backup_containers", status="no_policy")] == 600
    assert site.samples(site.runfile)[SUCCESS] == 1


@pytest.mark.parametrize(
    "argv",
    [("-v",), ("--output", "-"), ("--history", "30"), ("--check-config",), ("sales",), ("--help",), ("--version",)],
    ids=" ".join,
)
def test_a_report_that_cannot_be_printed_is_not_done(sqlite_site: Site, argv: tuple[str, ...]) -> None:
    published(sqlite_site)
    with open("/dev/full", "w") as full:
        answer = sqlite_site.process(*argv, stdout=full, stderr=subprocess.PIPE, capture_output=False)
    assert answer.returncode == 3
    if argv[0] not in ("--help", "--version"):
        complaint = "backup_audit: cannot print the report (No space left on device): check where stdout goes\n"
        assert answer.stderr == complaint
    assert sqlite_site.samples(sqlite_site.runfile)[SUCCESS] == (0 if argv == ("-v",) else 1)


@pytest.mark.parametrize("argv", [(), ("--frobnicate",), ("--debug",)], ids=str)
@pytest.mark.parametrize("where", ["2>/dev/full", "2>&-", "<&- >&- 2>&-", ">/dev/full 2>/dev/full"])
def test_a_complaint_that_nobody_can_read(sqlite_site: Site, where: str, argv: tuple[str, ...]) -> None:
    good = published(sqlite_site)
    config = str(sqlite_site.config(database_url="sqlite:////nowhere/x.db"))
    words = ["/bin/sh", "-c", f'exec "$0" "$@" {where}', sys.executable, str(TOP / "backup_audit.py")]
    answer = subprocess.run([*words, "--config", config, *argv], capture_output=True, check=False)
    assert (answer.returncode, answer.stdout, answer.stderr) == (3, b"", b"")
    assert sqlite_site.textfile.read_bytes() == good
    assert sqlite_site.samples(sqlite_site.runfile)[SUCCESS] == (1 if argv == ("--frobnicate",) else 0)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_any_name_can_be_printed_in_any_encoding(sqlite_site: Site, encoding: str) -> None:
    sqlite_site.run(sqlite_site.container("Bücher 数据 \U0001f4be"), "2026-03-13 18:07", "2026-03-13 18:30")
    env = {"PYTHONIOENCODING": encoding}
    for argv in (("-v",), ("--history", "30"), ("--json",)):
        answer = sqlite_site.process(*argv, *AT, env=env, encoding=encoding)
        assert (answer.returncode, answer.stderr) == (0, "")
        assert "\\u6570" in answer.stdout
    for words in (("--output", "-"), ("--history", "30", "--csv")):
        assert "Bücher 数据 \U0001f4be" in sqlite_site.process(*words, *AT, env=env).stdout, "programs read UTF-8"


def test_a_folder_that_has_been_deleted_may_be_the_current_one(sqlite_site: Site) -> None:
    sqlite_site.container()
    folder = sqlite_site.folder / "gone"
    folder.mkdir()
    answer = sqlite_site.process("-v", *AT, cwd=folder, preexec_fn=folder.rmdir)
    assert (answer.returncode, answer.stderr) == (2, "")
    assert f"{TOP / 'backup_audit.py'} --config {sqlite_site.folder / 'mydb_config.py'} sales" in answer.stdout
