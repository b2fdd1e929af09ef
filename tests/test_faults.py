"""Servers that die, hang, or speak another encoding: the audit ends in time, with one clear line, or copes.

`tests/test_database_errors.py` has what a site can get wrong about its database; here is what goes wrong by itself.
"""

from __future__ import annotations

import io
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest

import admin_db
from tests.builders import TOP, Site
from tests.failures import (
    assert_not_done,
    database_of,
    locked_log,
    meanwhile,
    published,
    wait_until,
    waiting_backends,
    within,
)
from tests.postgres import HOST, Server
from tests.relay import relayed

PROMPTLY = 2.0
"""Seconds within which an audit whose server has gone has ended."""


# --- The server ends in the middle of the reads ---------------------------------------------------------


@pytest.mark.parametrize("number", [1, 2, 3])
def test_the_backend_is_terminated_between_the_reads(site: Site, number: int) -> None:
    good = published(site)
    site.container("without a run")  # judged on its whole log, in a third read
    database = database_of(site)

    def terminate(query: int) -> None:
        if query == number:
            theirs = f"application_name = 'backup_audit' AND datname = '{database.name}' AND state LIKE 'idle%'"
            ended = database.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {theirs}")
            assert ended == [(True,)]

    with relayed(site) as relay, within(PROMPTLY):
        relay.at_query = terminate
        result = site.audit()
    assert_not_done(site, result, good, "connection")


@pytest.mark.parametrize(
    ("function", "problem"),
    [("pg_terminate_backend", "the connection was lost"), ("pg_cancel_backend", "canceling statement")],
)
def test_the_backend_is_stopped_during_a_read(site: Site, function: str, problem: str) -> None:
    good = published(site)
    database = database_of(site)

    def stop() -> None:
        wait_until(lambda: waiting_backends(database))
        for pid in waiting_backends(database):
            database.execute(f"SELECT {function}({pid})")

    with locked_log(site), within(PROMPTLY), meanwhile(stop):
        result = site.audit()
    assert_not_done(site, result, good, problem)


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
        assert_not_done(site, result, good, "connection")
        assert_not_done(site, site.audit(), good, "connection refused")
        server.start()
        good = published(site)


def test_the_connection_breaks_after_any_number_of_bytes(site: Site) -> None:
    published(site)
    chance = random.Random(20260314)  # noqa: S311  # not for secrets
    with relayed(site) as relay:
        assert site.audit("-q").status == 0
        good, whole = site.textfile.read_bytes(), len(relay.heard)
        assert whole > 1000
        for allowance in [0, 1, 9, *(chance.randrange(whole - 300) for _ in range(22))]:
            relay.allowance = allowance
            with within(PROMPTLY):
                result = site.audit()
            assert_not_done(site, result, good, "connection")


# --- The server does not answer -------------------------------------------------------------------------


def test_a_query_that_waits_for_a_lock_ends_with_query_timeout(site: Site) -> None:
    good = published(site)
    site.config(query_timeout=1)
    with locked_log(site), within(1):
        result = site.audit()
    assert_not_done(site, result, good, "the query took longer than query_timeout")
    assert result.err.endswith(": look for locks in pg_stat_activity, or raise query_timeout\n")


@contextmanager
def frozen(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_a_frozen_server_lets_nobody_in_for_connect_timeout(site: Site) -> None:
    good = published(site)
    ((pid_file,),) = database_of(site).execute("SELECT pg_read_file('postmaster.pid')")
    site.config(connect_timeout=1, query_timeout=30)
    with frozen(int(pid_file.split()[0])), within(1):
        assert_not_done(site, site.audit(), good, "no answer within connect_timeout")


def test_a_frozen_query_ends_five_seconds_after_query_timeout(site: Site) -> None:
    good = published(site)
    site.config(connect_timeout=1, query_timeout=1)
    ended = threading.Event()

    def freeze() -> None:
        wait_until(lambda: waiting_backends(database_of(site)))
        with frozen(waiting_backends(database_of(site))[0]):
            assert ended.wait(30)

    with locked_log(site), within(1 + 5), meanwhile(freeze):
        result = site.audit()
        ended.set()
    assert_not_done(site, result, good, "no answer within query_timeout")
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

    with socket.create_server((HOST, 0)) as listener, meanwhile(partial(drip, listener)), within(1):
        port = listener.getsockname()[1]
        site.config(mydb_admin_port=port, connect_timeout=1, libpq_options={"gssencmode": "disable"})
        result = site.audit()
        ended.set()
    assert_not_done(site, result, good, "no answer within connect_timeout")


# --- What an audit changes in its process: nothing -------------------------------------------------------


@pytest.mark.parametrize("fails", [False, True])
def test_after_an_audit_other_connections_work_as_before(site: Site, fails: bool) -> None:
    published(site)
    if fails:
        site.config(admindb_name="nowhere")
    assert site.audit("-q").status == (3 if fails else 0)
    with site.engine.connect() as connection:
        cursor = connection.connection.cursor()
        copied = io.StringIO()
        # with a wait callback of psycopg2, which is one for all connections, this would fail
        cursor.copy_expert("COPY (SELECT name FROM containers ORDER BY id) TO STDOUT", copied)
    assert copied.getvalue() == "sales\nBücher\n"


def test_importing_the_data_layer_changes_nothing() -> None:
    program = """\
import signal, sys, threading, psycopg2.extensions as e, sqlalchemy, sqlalchemy.orm
def state():
    types = dict(e.string_types), dict(e.adapters), dict(e.binary_types)
    signals = [signal.getsignal(number) for number in signal.valid_signals()]
    return e.get_wait_callback(), types, signals, sys.excepthook, threading.active_count(), list(sys.path)
before = state()
import admin_db
assert state() == before
assert {name for name in sys.modules if name.partition(".")[0] in ("audit", "backup_audit", "mydb_config")} == set()
"""
    answer = subprocess.run([sys.executable, "-c", program], cwd=TOP, capture_output=True, check=False)
    assert (answer.returncode, answer.stderr) == (0, b"")


# --- Servers of other encodings --------------------------------------------------------------------------


def literal(raw: bytes) -> str:
    """An SQL literal of these bytes, whatever the encoding of the database."""
    return "E'" + "".join(f"\\x{byte:02x}" for byte in raw) + "'"


SEQUENCES = ["Bücher".encode(), "数据".encode(), b"\xc3", b"\xe6\x95", b"\xed\xa0\x80", b"\xff\xfe"]
READ_AS: dict[str, Callable[[bytes], str]] = {
    "SQL_ASCII": lambda raw: raw.decode("utf-8", "backslashreplace"),
    "LATIN1": lambda raw: raw.decode("latin-1"),
    "WIN1252": lambda raw: raw.decode("cp1252", "backslashreplace"),
}


@pytest.mark.parametrize("client_encoding", [None, "LATIN1"])
@pytest.mark.parametrize("encoding", READ_AS)
def test_names_of_any_bytes(
    postgres: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str, client_encoding: str | None
) -> None:
    names = [b"name " + raw for raw in [*(bytes([byte]) for byte in range(1, 256)), *SEQUENCES]]
    expected = {str(c_id): READ_AS[encoding](raw) for c_id, raw in enumerate(names, 1)}
    if encoding == "WIN1252":
        assert expected[str(0x81)] == "name \\x81", "only what has no equivalent is spelled out"
    database = postgres.create_database(encoding=encoding)
    admin_db.create_tables(database.engine)
    site = Site(database.engine, database.settings, tmp_path, database)
    statements = []
    for c_id, raw in enumerate(names, 1):
        # inside of JSON, only what is neither a control character nor a quote
        owner = raw if raw[-1] >= 32 and raw[-1] not in b'"\\' else b"ada"
        document = literal(b'{"Info": {"BACKUP_FREQ": "Daily", "OWNER": "' + owner + b'"}}')
        name, message = literal(raw), literal(b"pg_dump: error: " + raw)
        statements += [
            f"INSERT INTO containers VALUES ({c_id}, {name}, {document}, now())",
            f"INSERT INTO container_state (c_id, name, state) VALUES ({c_id}, {name}, 'running')",
            "INSERT INTO backups (c_id, name, state, backup_id, backup_type, err_msg, ts)"
            f" VALUES ({c_id}, {name}, 'start', {name}, {name}, {message}, now() - interval '1 hour')",
        ]
    database.execute("; ".join(statements))
    site.config(extra_jobs={"Ärger": "Daily"})
    if client_encoding:
        monkeypatch.setenv("PGCLIENTENCODING", client_encoding)
    result = site.audit("-v")
    assert (result.status, result.err) == (2, "")
    labels = [dict(labels) for metric, labels in site.samples() if metric == "mydb_backup_container_info"]
    assert {label["c_id"]: label["name"] for label in labels} == {**expected, "0": "Ärger"}
    owners = {label["c_id"]: label["owner"] for label in labels if label["owner"] not in ("ada", "")}
    assert len(owners) > 200
    assert owners == {c_id: expected[c_id] for c_id in owners}
    failed = [dict(labels) for metric, labels in site.samples() if metric == "mydb_backup_failure_info"]
    assert len(failed) == len(names)
    assert [c for c in result.out if not c.isprintable() and c != "\n"] == []
    for argv in (("1", "255", "260"), ("--json", "200"), ("--history", "30"), ("--history", "30", "--csv")):
        assert site.audit(*argv).status in (0, 2), argv
    database.drop()
