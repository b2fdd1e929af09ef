"""Faults on the real parts: servers that die or hang, full disks, signals, and the odd ways to be started.

Whatever happens, a fault ends the audit within the configured time with exit status 3 and one clear line,
leaves the last good textfile as it was, and shows in the run file. `tests/test_bad_input.py` has what a
site can get wrong; here is what goes wrong by itself.
"""

from __future__ import annotations

import ctypes
import os
import random
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

import admin_db
from models import ContainerRow, ContainerState
from tests.builders import TOP, Result, Site, document, parse_samples, series
from tests.postgres import ADMIN_USER, HOST, Database, Server

SLACK = 6.0
"""Seconds beyond those promised that a busy machine may take."""
PROMPTLY = 2.0
"""Seconds within which an audit that is told to stop has ended."""

NAMES = [
    "sales",
    "wiki",
    "Bücher",
    "données",
    'quo"te',
    "back\\slash",
    "two\nlines",
    "数据",
    "\x1b[31mred",
    "a b",
    "x" * 90,
]


def fill(site: Site, containers: int = 12) -> None:
    """Containers whose backups are fine, by the server's clock."""
    now = site.clock().replace(tzinfo=None)
    names = [*NAMES, *(f"container-{number}" for number in range(len(NAMES), containers))]
    with site.session() as session:
        for c_id, name in enumerate(names[:containers], 1):
            session.add(ContainerRow(id=c_id, name=name, data=document(name), ts=now - timedelta(days=100)))
            session.add(ContainerState(c_id=c_id, name=name, state="running", ts=now))
            for days in range(3):
                started = now - timedelta(days=days, hours=10, minutes=c_id)
                moments = {"start": started, "end": started + timedelta(minutes=20 + c_id)}
                for state, moment in moments.items():
                    admin_db.log_backup(session, c_id, name, state, f"{started:%Y%m%d-%H:%M:%S}", moment)
            site.names[c_id] = name
    site.config()


def published(site: Site) -> bytes:
    """The textfile after an audit of a site that is well."""
    if not site.names:
        fill(site)
    result = site.audit("-q")
    assert result == Result(0, "", "")
    return site.textfile.read_bytes()


def assert_not_done(site: Site, result: Result, good: bytes, *, told: bool = True) -> None:
    """The audit failed as SPEC section 6 has it; `told` says whether the run file can have been written."""
    assert (result.status, result.out) == (3, "")
    assert_one_line(result.err)
    assert site.textfile.read_bytes() == good
    if told:
        assert site.samples(site.runfile)[series("mydb_backup_audit_success")] == 0
    assert sorted(path.name for path in site.textfile.parent.iterdir()) == [site.textfile.name, site.runfile.name]


def assert_one_line(complaint: str) -> None:
    assert complaint.startswith("backup_audit: ")
    assert complaint.endswith("\n")
    assert complaint.count("\n") == 1
    assert "Traceback" not in complaint
    assert not complaint.startswith("backup_audit: unexpected"), "named, not just caught"
    assert complaint.count(": ") >= 2, "the problem, and what to do about it"


@contextmanager
def within(seconds: float) -> Iterator[None]:
    begun = time.monotonic()
    yield
    assert time.monotonic() - begun < seconds + SLACK


@contextmanager
def meanwhile(action: Callable[[], object]) -> Iterator[None]:
    """Do something beside the block, and raise here what it raises."""
    with ThreadPoolExecutor(1) as other:
        future = other.submit(action)
        yield
        future.result()


def wait_until(ready: Callable[[], object], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.01)


def database_of(site: Site) -> Database:
    assert site.database
    return site.database


@contextmanager
def locked_log(site: Site) -> Iterator[None]:
    """An ACCESS EXCLUSIVE lock on `backups`: whoever reads it waits."""
    with site.engine.connect() as connection:
        connection.execute(text("LOCK TABLE backups IN ACCESS EXCLUSIVE MODE"))
        try:
            yield
        finally:
            connection.invalidate()  # closes it, even if the server has gone


def waiting_backends(database: Database) -> list[int]:
    """The process ids of the server's processes that serve an audit and wait for a lock."""
    waiting = (
        "SELECT pid FROM pg_stat_activity WHERE application_name = 'backup_audit' AND wait_event_type = 'Lock'"
        f" AND datname = '{database.name}'"
    )
    return [pid for (pid,) in database.server.execute(waiting)]


# --- The server ends in the middle of the reads ---------------------------------------------------------


class Relay:
    """The network between an audit and its server: it can do something at a query, or break at a byte."""

    def __init__(self, port: int) -> None:
        self.heard = bytearray()
        """All that the server said."""
        self.allowance: int | None = None
        """The bytes that the server may still say before the connection breaks."""
        self.at_query: Callable[[int], None] = lambda number: None
        """Called before a query of the log is passed on, with its number."""
        self._queries = 0
        self._target = port
        self._listener = socket.create_server((HOST, 0))
        self.port = int(self._listener.getsockname()[1])
        self._acceptor = threading.Thread(target=self._accept)
        self._acceptor.start()

    def close(self) -> None:
        """Let no more in, and wait for those who are."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._acceptor.join()
        self._listener.close()

    def __enter__(self) -> Relay:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._queries = 0
            with client, socket.create_connection((HOST, self._target)) as server:
                answers = threading.Thread(target=self._answer, args=(server, client))
                answers.start()
                self._ask(client, server)
                answers.join()

    def _ask(self, client: socket.socket, server: socket.socket) -> None:
        with suppress(OSError):  # a side that has hung up
            while data := client.recv(65536):
                if data[:1] == b"Q" and b"backups" in data:
                    self._queries += 1
                    self.at_query(self._queries)
                server.sendall(data)
            server.shutdown(socket.SHUT_WR)

    def _answer(self, server: socket.socket, client: socket.socket) -> None:
        with suppress(OSError):
            while data := server.recv(65536):
                self.heard += data
                if self.allowance is not None:
                    data = data[: self.allowance]
                    self.allowance -= len(data)
                client.sendall(data)
                if self.allowance == 0:
                    break
        for side in (client, server):
            with suppress(OSError):
                side.shutdown(socket.SHUT_RDWR)


@contextmanager
def relayed(site: Site, query_timeout: int = 5) -> Iterator[Relay]:
    """A relay that the site's configuration goes through from now on."""
    server = database_of(site).server
    word = server.passwords[ADMIN_USER].replace("\\", "\\\\").replace(":", "\\:")
    passfile = site.folder / "pgpass"
    passfile.touch(mode=0o600)
    passfile.write_text(f"*:*:*:{ADMIN_USER}:{word}\n", encoding="utf-8")
    with Relay(server.port) as relay:
        site.config(
            mydb_admin_port=relay.port, pgpass_file=str(passfile), connect_timeout=5, query_timeout=query_timeout
        )
        yield relay


@pytest.mark.parametrize("number", [1, 2, 3])
def test_the_backend_is_terminated_between_the_reads(site: Site, number: int) -> None:
    good = published(site)
    database = database_of(site)

    def terminate(query: int) -> None:
        if query == number:
            theirs = (
                f"application_name = 'backup_audit' AND datname = '{database.name}' AND state = 'idle in transaction'"
            )
            ended = database.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {theirs}")
            assert ended == [(True,)]

    with relayed(site) as relay, within(5):
        relay.at_query = terminate
        result = site.audit()
    assert_not_done(site, result, good)
    assert "connection" in result.err


def test_the_backend_is_terminated_during_a_read(site: Site) -> None:
    good = published(site)
    database = database_of(site)

    def terminate() -> None:
        wait_until(lambda: waiting_backends(database))
        for pid in waiting_backends(database):
            database.execute(f"SELECT pg_terminate_backend({pid})")

    with locked_log(site), within(PROMPTLY), meanwhile(terminate):
        result = site.audit()
    assert_not_done(site, result, good)
    assert "connection" in result.err
    assert "see the server's log" in result.err


def test_an_administrator_cancels_the_query(site: Site) -> None:
    good = published(site)
    database = database_of(site)

    def cancel() -> None:
        wait_until(lambda: waiting_backends(database))
        for pid in waiting_backends(database):
            database.execute(f"SELECT pg_cancel_backend({pid})")

    with locked_log(site), within(PROMPTLY), meanwhile(cancel):
        result = site.audit()
    assert_not_done(site, result, good)


def test_the_server_stops_during_a_read(new_server: Callable[..., Server], tmp_path: Path) -> None:
    server = new_server()
    database = server.shared_site
    site = Site(database.engine, database.settings, tmp_path, database)
    good = published(site)
    for how in (signal.SIGINT, signal.SIGQUIT):  # a fast shutdown, a crash

        def stop(how: signal.Signals = how) -> None:
            wait_until(lambda: waiting_backends(database))
            server.stop(how)

        with locked_log(site), within(PROMPTLY), meanwhile(stop):
            result = site.audit()
        assert_not_done(site, result, good)
        assert "connection" in result.err
        with within(PROMPTLY):
            result = site.audit()
        assert_not_done(site, result, good)
        assert "the connection was refused" in result.err
        server.start()
        good = published(site)


def test_the_connection_breaks_after_any_number_of_bytes(site: Site) -> None:
    good = published(site)
    chance = random.Random(20260314)  # noqa: S311  # not for secrets
    with relayed(site) as relay:
        assert site.audit("-q").status == 0
        good, whole = site.textfile.read_bytes(), len(relay.heard)
        assert whole > 2000
        for allowance in [0, 1, 9, *(chance.randrange(whole - 300) for _ in range(22))]:
            relay.allowance = allowance
            with within(5):
                result = site.audit()
            assert_not_done(site, result, good)
            assert "connection" in result.err


# --- The server does not answer -------------------------------------------------------------------------


def test_a_query_that_waits_for_a_lock_ends_with_query_timeout(site: Site) -> None:
    good = published(site)
    site.config(query_timeout=1)
    with locked_log(site), within(1):
        result = site.audit()
    assert_not_done(site, result, good)
    assert "query_timeout" in result.err


def test_a_frozen_server_lets_nobody_in_for_connect_timeout(site: Site) -> None:
    good = published(site)
    ((pid_file,),) = database_of(site).execute("SELECT pg_read_file('postmaster.pid')")
    postmaster = int(pid_file.split()[0])
    site.config(connect_timeout=1, query_timeout=30)
    os.kill(postmaster, signal.SIGSTOP)
    try:
        with within(1):
            result = site.audit()
    finally:
        os.kill(postmaster, signal.SIGCONT)
    assert_not_done(site, result, good)
    assert "no answer within connect_timeout" in result.err


def test_a_frozen_query_ends_five_seconds_after_query_timeout(site: Site) -> None:
    good = published(site)
    database = database_of(site)
    site.config(connect_timeout=1, query_timeout=1)
    frozen: list[int] = []

    def freeze() -> None:
        wait_until(lambda: waiting_backends(database))
        frozen.extend(waiting_backends(database))
        os.kill(frozen[0], signal.SIGSTOP)

    try:
        with locked_log(site), within(1 + 5), meanwhile(freeze):
            result = site.audit()
    finally:
        for pid in frozen:
            os.kill(pid, signal.SIGCONT)
    assert_not_done(site, result, good)
    assert "query_timeout" in result.err
    assert "connect_timeout" not in result.err
    assert "firewall" not in result.err


def test_a_server_that_answers_byte_by_byte_ends_with_connect_timeout(site: Site) -> None:
    good = published(site)

    ended = threading.Event()

    def drip(listener: socket.socket) -> None:
        client, _ = listener.accept()
        with client, suppress(OSError):
            client.sendall(b"N")  # no TLS
            client.recv(4096)
            client.sendall(b"R" + struct.pack("!i", 2000))  # a long answer about the login
            while not ended.wait(0.05):
                client.sendall(b"\0")

    with socket.create_server((HOST, 0)) as listener, meanwhile(partial(drip, listener)):
        port = listener.getsockname()[1]
        site.config(mydb_admin_port=port, connect_timeout=1, libpq_options={"gssencmode": "disable"})
        with within(1):
            result = site.audit()
        ended.set()
    assert_not_done(site, result, good)
    assert "no answer within connect_timeout" in result.err


# --- The disk and the folder of the textfile -------------------------------------------------------------


def as_result(answer: subprocess.CompletedProcess[str]) -> Result:
    return Result(answer.returncode, answer.stdout, answer.stderr)


def test_the_textfile_is_larger_than_allowed(site: Site) -> None:
    good = published(site)
    limit = 4096
    assert len(good) > limit

    def allow_small_files_only() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    result = as_result(site.process("-q", preexec_fn=allow_small_files_only))
    assert_not_done(site, result, good)
    assert f"cannot write {site.textfile} (File too large)" in result.err


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 kB, mounted where `Site` has its textfiles."""
    folder = tmp_path / "textfiles"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "backup-audit-test", str(folder)]
    try:
        mounted = subprocess.run(mount, stdin=subprocess.DEVNULL, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("mounting a file system is not permitted")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_the_disk_of_the_textfile_is_full(small_disk: Path, site: Site) -> None:
    good = published(site)
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(b"x" * 4096)
    run_file = site.runfile.read_bytes()

    result = site.audit()
    assert site.runfile.read_bytes() == run_file
    os.truncate(filler, filler.stat().st_size - 4096)  # room for the run file only
    second = site.audit()
    filler.unlink()
    assert_not_done(site, second, good)
    assert_not_done(site, result, good, told=False)
    assert f"cannot write {site.textfile} (No space left on device)" in result.err
    assert site.audit() == Result(0, "", "")


def test_a_device_that_is_full_as_output(site: Site) -> None:
    good = published(site)
    result = site.audit("--output", "/dev/full")
    assert_not_done(site, result, good, told=False)
    assert "/dev/full" in result.err
    assert not Path("/dev/full").is_file()


@pytest.mark.parametrize("argv", [("-v",), ("--output", "-"), ("--history", "30")], ids=" ".join)
def test_a_report_that_cannot_be_printed_is_an_audit_that_was_not_done(site: Site, argv: tuple[str, ...]) -> None:
    published(site)
    with open("/dev/full", "w") as full:
        answer = site.process(*argv, stdout=full, stderr=subprocess.PIPE, capture_output=False)
    assert answer.returncode == 3
    assert_one_line(answer.stderr)


def test_a_complaint_that_cannot_be_printed_is_still_in_the_run_file(site: Site) -> None:
    published(site)
    site.config(admindb_name="nowhere")
    with open("/dev/full", "w") as full:
        answer = site.process(stdout=subprocess.PIPE, stderr=full, capture_output=False)
    assert answer.returncode == 3
    assert site.samples(site.runfile)[series("mydb_backup_audit_success")] == 0


def test_the_folder_vanishes_during_the_audit(site: Site) -> None:
    published(site)
    database = database_of(site)
    unlock = threading.Event()
    locked = threading.Event()

    def hold() -> None:
        with locked_log(site):
            locked.set()
            assert unlock.wait(30)

    def remove_folder() -> None:
        wait_until(lambda: waiting_backends(database))
        shutil.rmtree(site.textfile.parent)
        unlock.set()

    with meanwhile(hold):
        assert locked.wait(30)
        with meanwhile(remove_folder):
            result = site.audit()
    assert (result.status, result.out) == (3, "")
    assert_one_line(result.err)
    assert result.err.endswith(f": create the folder {site.textfile.parent}\n")
    assert not site.textfile.parent.exists()


def without_privileges() -> None:
    """Let root count as any user before permissions; in force from the next exec on."""
    libc = ctypes.CDLL(None)
    for capability in (1, 2, 3):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER
        libc.prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to somebody else")
def test_a_textfile_of_somebody_else_in_a_sticky_folder(site: Site) -> None:
    good = published(site)
    folder = site.textfile.parent
    for path in (site.textfile, folder):
        os.chown(path, 65534, 65534)
    folder.chmod(0o1777)
    result = as_result(site.process("-q", preexec_fn=without_privileges))
    assert_not_done(site, result, good)
    assert f"cannot write {site.textfile} (" in result.err
    assert "not permitted" in result.err
    assert site.textfile.stat().st_uid == 65534


# --- SIGKILL, SIGTERM, Ctrl-C ----------------------------------------------------------------------------

_PAUSING = """\
import builtins, os, runpy, signal, sys, time

program, place, numbers, marker = sys.argv[1:5]
sys.argv[:] = sys.argv[4:]
sys.path.insert(0, os.path.dirname(program))
signal.signal(signal.SIGINT, signal.default_int_handler)  # the tests may run where Ctrl-C is ignored
calls, numbers, seconds = 0, numbers.split(","), 60

def pause():
    global calls, seconds
    calls += 1
    if str(calls) in numbers:
        open(f"{marker}.{calls}", "w").close()
        length, seconds = seconds, 1  # a second pause is over by itself, should its signal be ignored
        time.sleep(length)

class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == place:
            pause()

def pausing(function):
    def paused(*args, **options):
        pause()
        return function(*args, **options)
    return paused

if place == "print":
    builtins.print = pausing(print)
elif place in ("fsync", "replace"):
    setattr(os, place, pausing(getattr(os, place)))
else:
    sys.meta_path.insert(0, Finder)
runpy.run_path(program, run_name="__main__")
"""
"""Runs a program that pauses in a call of `fsync`, `replace` or `print`, or at the import of a module."""


@dataclass
class Paused:
    """An audit as a process that pauses at certain places, to be told to stop there."""

    site: Site
    program: subprocess.Popen[str]
    marker: Path

    def reach(self, number: int = 1) -> None:
        """Wait until it pauses for the given time."""
        marker = self.marker.with_name(f"{self.marker.name}.{number}")
        wait_until(lambda: marker.exists() or self.program.poll() is not None)
        assert marker.exists(), self.program.communicate()

    def stop(self, how: signal.Signals) -> Result:
        """Send the signal, and give back how it ended, which takes no longer than promised."""
        self.program.send_signal(how)
        with within(PROMPTLY):
            out, err = self.program.communicate(timeout=50)
        return Result(self.program.returncode, out, err)


@contextmanager
def paused(site: Site, place: str = "nowhere", numbers: str = "1", *argv: str) -> Iterator[Paused]:
    marker = site.folder / "pause"
    config = str(site.folder / "mydb_config.py")
    script = [sys.executable, "-c", _PAUSING, str(TOP / "backup_audit.py"), place, numbers, str(marker)]
    program = subprocess.Popen(
        [*script, "--config", config, *argv],
        cwd=site.folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )
    try:
        yield Paused(site, program, marker)
    finally:
        program.kill()
        program.communicate()


both_signals = pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT], ids=lambda how: how.name)


@both_signals
def test_a_signal_while_a_query_runs(site: Site, how: signal.Signals) -> None:
    good = published(site)
    with locked_log(site), paused(site) as audit:
        wait_until(lambda: waiting_backends(database_of(site)))
        result = audit.stop(how)
    assert_not_done(site, result, good)
    assert how.name in result.err


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="needs Linux's /proc to see process titles")
def test_no_password_is_in_a_process_title(site: Site) -> None:
    database = database_of(site)
    password = database.server.passwords[ADMIN_USER]
    site.config(database_url=database.url.set(password=password).render_as_string(hide_password=False))
    with locked_log(site), paused(site) as audit:
        wait_until(lambda: waiting_backends(database))
        titles = [Path(f"/proc/{pid}/cmdline").read_text() for pid in (audit.program.pid, *waiting_backends(database))]
        audit.stop(signal.SIGTERM)
    assert "backup_audit.py" in titles[0]
    assert ADMIN_USER in titles[1]
    assert password.strip("\\:'") not in "".join(titles)


@both_signals
@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_signal_while_the_network_swallows_a_query(site: Site, number: int, how: signal.Signals) -> None:
    """The third query, of the past, is waited for in a thread of its own."""
    good = published(site)
    reached, go_on = threading.Event(), threading.Event()

    def hold(query: int) -> None:
        if query == number:
            reached.set()
            go_on.wait(60)

    with relayed(site, query_timeout=60) as relay:
        relay.at_query = hold
        try:
            with paused(site) as audit:
                assert reached.wait(30)
                result = audit.stop(how)
        finally:
            go_on.set()
    assert_not_done(site, result, good)
    assert how.name in result.err


@both_signals
def test_a_signal_while_the_server_does_not_answer(site: Site, how: signal.Signals) -> None:
    good = published(site)
    with socket.create_server((HOST, 0)) as listener:
        site.config(mydb_admin_port=listener.getsockname()[1], connect_timeout=60)
        with paused(site) as audit:
            client, _ = listener.accept()
            with client:
                client.recv(8)  # it asks for TLS, and waits
                result = audit.stop(how)
    assert_not_done(site, result, good)
    assert how.name in result.err


@both_signals
@pytest.mark.parametrize("place", ["fsync", "replace"])
def test_a_signal_while_the_textfile_is_written(site: Site, place: str, how: signal.Signals) -> None:
    good = published(site)
    with paused(site, place) as audit:
        audit.reach()
        assert len(list(site.textfile.parent.iterdir())) == 3, "the temporary file is there"
        result = audit.stop(how)
    assert_not_done(site, result, good)
    assert how.name in result.err


@both_signals
def test_a_signal_while_the_run_file_is_written(site: Site, how: signal.Signals) -> None:
    published(site)
    with paused(site, "fsync", "2", "-q") as audit:
        audit.reach(2)
        result = audit.stop(how)
    assert (result.status, result.out) == (3, "")
    assert_one_line(result.err)
    assert sorted(path.name for path in site.textfile.parent.iterdir()) == [site.textfile.name, site.runfile.name]


@both_signals
def test_a_signal_while_the_report_is_printed(site: Site, how: signal.Signals) -> None:
    published(site)
    with paused(site, "print", "3", "-v") as audit:
        audit.reach(3)
        result = audit.stop(how)
    assert result.status == 3
    assert_one_line(result.err)


@both_signals
def test_a_second_signal_while_the_first_is_obeyed(site: Site, how: signal.Signals) -> None:
    good = published(site)
    with paused(site, "fsync", "1,2", "-q") as audit:
        audit.reach(1)
        audit.program.send_signal(how)
        audit.reach(2)  # the run file is about to tell of the failure
        result = audit.stop(how)
    assert_not_done(site, result, good)
    assert how.name in result.err


@both_signals
def test_a_signal_while_the_program_starts(site: Site, how: signal.Signals) -> None:
    good = published(site)
    with paused(site, "psycopg2", "1") as audit:
        audit.reach()
        result = audit.stop(how)
    assert result.status in (3, -how), "an audit that was not done, or a process that ended by the signal"
    assert "Traceback" not in result.err
    assert result.err.count("\n") <= 1
    assert site.textfile.read_bytes() == good


class Reader:
    """Reads the two textfiles over and over, as node_exporter does, and keeps every content that it sees."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._families = {path: families(path.read_bytes()) for path in (site.textfile, site.runfile)}
        self._seen: dict[Path, set[bytes]] = {site.textfile: set(), site.runfile: set()}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._read)
        self._problem: OSError | None = None

    def __enter__(self) -> Reader:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _read(self) -> None:
        try:
            while not self._ended.wait(0.001):
                for path, seen in self._seen.items():
                    seen.add(path.read_bytes())
        except OSError as problem:
            self._problem = problem

    def assert_whole(self, containers: int) -> int:
        """Every content was a whole audit; gives back how many different ones there were."""
        assert self._problem is None, "the files are always there"
        for path, contents in self._seen.items():
            for content in contents:
                assert content.endswith(b"\n")
                assert families(content) == self._families[path]
                parse_samples(content.decode("utf-8"))
        audits = self._seen[self._site.textfile]
        for content in audits:
            samples = parse_samples(content.decode("utf-8"))
            assert samples[series("mydb_backup_containers", status="ok")] == containers
            assert sum(metric == "mydb_backup_status" for metric, _ in samples) == containers
        return len(audits)


def families(exposition: bytes) -> list[bytes]:
    """The families of an exposition that has at least one sample of its last one."""
    lines = exposition.splitlines()
    found = [line.split()[2] for line in lines if line.startswith(b"# TYPE ")]
    assert lines[-1].startswith(found[-1])
    return found


def start(site: Site, *argv: str) -> subprocess.Popen[bytes]:
    config = str(site.folder / "mydb_config.py")
    command = [sys.executable, str(TOP / "backup_audit.py"), "--config", config, *argv]
    nowhere: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
    return subprocess.Popen(command, cwd=site.folder, **nowhere)


def kill_after(site: Site, seconds: float) -> bool:
    """Start an audit and kill it; whether it was still alive."""
    with start(site, "-q") as audit:
        time.sleep(seconds)
        audit.kill()
    return audit.returncode == -signal.SIGKILL


def kill_while_writing(site: Site) -> bool:
    """Start an audit and kill it when its temporary file appears; whether it left that behind."""
    folder = site.textfile.parent
    with start(site, "-q") as audit:
        while audit.poll() is None and not any(name.endswith(".tmp") for name in os.listdir(folder)):
            pass
        audit.kill()
    return any(name.endswith(".tmp") for name in os.listdir(folder))


def test_a_killed_audit_never_leaves_half_a_file(site: Site) -> None:
    published(site)
    folder = site.textfile.parent
    chance = random.Random(20260314)  # noqa: S311  # not for secrets
    begun = time.monotonic()
    with start(site, "-q") as first:
        first.wait()
    life = time.monotonic() - begun
    # most of a life is the start of Python, where nothing can break: half of the moments are near its end
    moments = [chance.uniform(0, 1.1) for _ in range(20)] + [chance.uniform(0.75, 1.1) for _ in range(20)]
    with Reader(site) as reader, ThreadPoolExecutor(2) as two:
        killed = list(two.map(lambda moment: kill_after(site, moment * life), moments))
    with Reader(site) as second_reader:
        caught = [kill_while_writing(site) for _ in range(6)]
        for leftover in folder.glob(".*.tmp"):
            leftover.unlink()
    assert killed.count(True) >= 10
    assert len(caught) == 6
    assert reader.assert_whole(12) >= 1
    assert second_reader.assert_whole(12) >= 1

    assert site.process("-q").returncode == 0
    assert sorted(path.name for path in folder.iterdir()) == [site.textfile.name, site.runfile.name]


def test_what_killed_audits_left_is_removed_after_an_hour(site: Site) -> None:
    good = published(site)
    folder = site.textfile.parent
    old, other = time.time() - 3660, time.time() - 3000
    stale = [folder / f".{path.name}.abc123.tmp" for path in (site.textfile, site.runfile)]
    fresh = [folder / f".{path.name}.def456.tmp" for path in (site.textfile, site.runfile)]
    foreign = [folder / name for name in (".other.prom.abc123.tmp", "apt.prom", f"{site.textfile.name}.tmp", ".hidden")]
    for path, moment in [*((p, old) for p in stale + foreign), *((p, other) for p in fresh)]:
        path.write_bytes(good)
        os.utime(path, (moment, moment))
    assert site.audit("-q").status == 0
    assert sorted(folder.iterdir()) == sorted([site.textfile, site.runfile, *fresh, *foreign])


def test_six_audits_at_the_same_time(site: Site) -> None:
    published(site)
    with Reader(site) as reader:
        audits = [start(site) for _ in range(6)]
        statuses = [audit.wait(120) for audit in audits]
    assert statuses == [0] * 6
    reader.assert_whole(12)
    assert site.samples()[series("mydb_backup_containers", status="ok")] == 12
    assert site.samples(site.runfile)[series("mydb_backup_audit_success")] == 1
    assert sorted(path.name for path in site.textfile.parent.iterdir()) == [site.textfile.name, site.runfile.name]


# --- As cron and systemd start it ------------------------------------------------------------------------


@dataclass(frozen=True)
class Start:
    """How the audit is started."""

    umask: int = 0o022
    env: Mapping[str, str] | None = None
    """The whole environment; that of the tests if there is none."""
    redirections: str = ""
    """In the shell's words."""


CRON = {"LOGNAME": "root", "PATH": "/usr/bin:/bin", "SHELL": "/bin/sh", "LANG": "C"}
STARTS = {
    "an empty environment, umask 077": Start(0o077, {}),
    "cron without HOME, umask 027, odd zone": Start(0o027, {**CRON, "TZ": "Pacific/Chatham"}),
    "LC_ALL=C, TERM=dumb, umask 000": Start(0o000, {**CRON, "LC_ALL": "C", "TERM": "dumb", "TZ": "XYZ-25:59:59"}),
    "POSIX and nothing but ASCII": Start(
        0o022,
        {
            "LC_ALL": "POSIX",
            "PYTHONUTF8": "0",
            "PYTHONCOERCECLOCALE": "0",
            "TZ": ":no/zone",
            "PGCLIENTENCODING": "SQL_ASCII",
        },
    ),
    "a locale and a HOME that do not exist": Start(
        0o077, {"LC_ALL": "xx_YY.KOI9", "HOME": "/nonexistent", "TZ": "", "TERM": ""}
    ),
    "variables of libpq": Start(
        0o022,
        {
            "PGCLIENTENCODING": "LATIN1",
            "PGTZ": "America/St_Johns",
            "PGDATESTYLE": "SQL, DMY",
            "PGOPTIONS": "-c default_transaction_read_only=off -c IntervalStyle=sql_standard",
            "PGAPPNAME": "somebody else",
            "PGCONNECT_TIMEOUT": "0",
        },
    ),
    "stdin and stdout closed": Start(0o077, CRON, "<&- >&-"),
    "stdin, stdout and stderr closed": Start(0o000, CRON, "<&- >&- 2>&-"),
    "all into a full device": Start(0o022, CRON, "</dev/null 2>/dev/full"),
}


def without_time(exposition: bytes) -> list[bytes]:
    return [line for line in exposition.splitlines() if b"mydb_backup_audit_timestamp_seconds" not in line]


@pytest.mark.parametrize("name", STARTS)
def test_the_textfile_is_the_same_however_the_audit_is_started(site: Site, name: str) -> None:
    how = STARTS[name]
    good = published(site)
    for path in (site.textfile, site.runfile):
        path.unlink()
    config = str(site.folder / "mydb_config.py")
    answer = subprocess.run(
        [
            "/bin/sh",
            "-c",
            f'exec "$0" "$@" {how.redirections}',
            sys.executable,
            str(TOP / "backup_audit.py"),
            "--config",
            config,
        ],
        cwd="/",
        env=how.env,
        umask=how.umask,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, b"", b"")
    assert without_time(site.textfile.read_bytes()) == without_time(good)
    for path in (site.textfile, site.runfile):
        assert path.stat().st_mode & 0o7777 == 0o644
    assert site.samples(site.runfile)[series("mydb_backup_audit_success")] == 1
    assert abs(site.samples(site.runfile)[series("mydb_backup_audit_clock_skew_seconds")]) < 60


@pytest.mark.parametrize("redirections", ["<&- >&-", "<&- >&- 2>&-"])
def test_a_failure_is_told_in_the_run_file_where_nobody_listens(site: Site, redirections: str) -> None:
    good = published(site)
    config = str(site.config(admindb_name="nowhere"))
    answer = subprocess.run(
        [
            "/bin/sh",
            "-c",
            f'exec "$0" "$@" {redirections}',
            sys.executable,
            str(TOP / "backup_audit.py"),
            "--config",
            config,
        ],
        cwd="/",
        env={},
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert answer.returncode == 3
    assert answer.stdout == b""
    assert_not_done(site, Result(3, "", answer.stderr.decode() or "backup_audit: x: y\n"), good)


# --- Servers of other encodings --------------------------------------------------------------------------


@contextmanager
def encoded_site(server: Server, encoding: str, folder: Path) -> Iterator[Site]:
    database = server.create_database(encoding=encoding)
    admin_db.create_tables(database.engine)
    yield Site(database.engine, database.settings, folder, database)
    database.drop()


def literal(raw: bytes) -> str:
    """An SQL literal of these bytes, whatever the encoding of the database."""
    return "E'" + "".join(f"\\x{byte:02x}" for byte in raw) + "'"


EVERY_BYTE = [bytes([byte]) for byte in range(1, 256)]
SEQUENCES = [
    "Bücher".encode(),
    "数据".encode(),
    b"\xc3",
    b"\xe6\x95",
    b"\xed\xa0\x80",
    b"\xff\xfe",
    b"\xf8\x88\x80\x80\x80",
]
READ_AS: dict[str, Callable[[bytes], str]] = {
    "SQL_ASCII": lambda raw: raw.decode("utf-8", "backslashreplace"),
    "LATIN1": lambda raw: raw.decode("latin-1"),
}


@pytest.mark.parametrize("client_encoding", [None, "LATIN1"])
@pytest.mark.parametrize("encoding", READ_AS)
def test_names_of_any_bytes(
    postgres: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    encoding: str,
    client_encoding: str | None,
) -> None:
    names = [b"name " + raw for raw in EVERY_BYTE + SEQUENCES]
    with encoded_site(postgres, encoding, tmp_path) as site:
        rows, states, runs = [], [], []
        for c_id, raw in enumerate(names, 1):
            # inside of JSON, only what is neither a control character nor a quote
            owner = raw if raw[-1] >= 32 and raw[-1] not in b'"\\' else b"ada"
            document = literal(b'{"Info": {"BACKUP_FREQ": "Daily", "OWNER": "' + owner + b'"}}')
            rows.append(f"({c_id}, {literal(raw)}, {document}::jsonb, now())")
            states.append(f"({c_id}, {c_id}, {literal(raw)}, 'running')")
            message, started = literal(b"pg_dump: error: " + raw), "now() - interval '1 hour'"
            runs.append(f"({c_id}, {literal(raw)}, 'start', {literal(raw)}, {literal(raw)}, {message}, {started})")
        database = database_of(site)
        database.execute(f"INSERT INTO containers (id, name, data, ts) VALUES {', '.join(rows)}")
        database.execute(f"INSERT INTO container_state (id, c_id, name, state) VALUES {', '.join(states)}")
        columns = "c_id, name, state, backup_id, backup_type, err_msg, ts"
        database.execute(f"INSERT INTO backups ({columns}) VALUES {', '.join(runs)}")
        site.config(extra_jobs={"Ärger": "Daily"})
        if client_encoding:
            monkeypatch.setenv("PGCLIENTENCODING", client_encoding)
        result = site.audit("-v")
        assert (result.status, result.err) == (2, "")
        expected = {str(c_id): READ_AS[encoding](raw) for c_id, raw in enumerate(names, 1)}
        labels = [dict(labels) for metric, labels in site.samples() if metric == "mydb_backup_container_info"]
        found = {label["c_id"]: label for label in labels}
        assert {c_id: label["name"] for c_id, label in found.items()} == {**expected, "0": "Ärger"}
        owners = {c_id: label["owner"] for c_id, label in found.items() if label["owner"] not in ("ada", "")}
        assert len(owners) > 200
        assert owners == {c_id: expected[c_id] for c_id in owners}
        failed = {dict(labels).get("status") for metric, labels in site.samples() if metric == "mydb_backup_status"}
        assert failed == {"failed", "missed"}
        assert [c for c in result.out if not c.isprintable() and c != "\n"] == []
        for argv in (("1", "255", "262"), ("--json", "200"), ("--history", "30"), ("--history", "30", "--csv")):
            assert site.audit(*argv).status in (0, 2), argv
