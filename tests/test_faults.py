"""Servers that die, hang, or answer too slowly: the audit ends in time, with one clear line.

`tests/test_database.py` has what a site can get wrong about its database; here is what goes wrong by itself.
"""

from __future__ import annotations

import io
import os
import random
import signal
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from tests.builders import Site
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


def test_the_backend_is_terminated_between_the_reads(site: Site) -> None:
    good = published(site)
    site.container("without a run")  # judged on its whole log, in one more read
    database = database_of(site)
    theirs = f"application_name = 'backup_audit' AND datname = '{database.name}' AND state LIKE 'idle%'"
    for number in (1, 2, 3):

        def terminate(query: int, number: int = number) -> None:
            if query == number:
                ended = database.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {theirs}")
                assert ended == [(True,)]

        with relayed(site) as relay, within(PROMPTLY):
            relay.at_query = terminate
            result = site.audit()
        assert_not_done(site, result, good, "the server ended the connection")


def test_the_server_crashes_during_a_read(new_server: Callable[..., Server], tmp_path: Path) -> None:
    server = new_server()
    database = server.shared_site
    site = Site(database.engine, database.settings, tmp_path, database)
    good = published(site)

    def crash() -> None:
        wait_until(lambda: waiting_backends(database))
        server.stop(signal.SIGQUIT)

    with locked_log(site), within(PROMPTLY), meanwhile(crash):
        result = site.audit()
    assert_not_done(site, result, good, "connection")
    assert_not_done(site, site.audit(), good, "connection refused")


def test_the_connection_breaks_after_any_number_of_bytes(site: Site) -> None:
    published(site)
    chance = random.Random(20260314)  # noqa: S311  # not for secrets
    with relayed(site) as relay:
        assert site.audit("-q").status == 0
        good, whole = site.textfile.read_bytes(), len(relay.heard)
        assert whole > 1000
        for allowance in [0, 1, 9, *(chance.randrange(whole - 300) for _ in range(7))]:
            relay.allowance = allowance
            with within(PROMPTLY):
                result = site.audit()
            assert_not_done(site, result, good, "the connection was lost")


# --- The server does not answer -------------------------------------------------------------------------


def test_a_query_that_waits_for_a_lock_ends_with_query_timeout_or_is_cancelled(site: Site) -> None:
    good = published(site)
    site.config(query_timeout=1)
    with locked_log(site), within(1):
        result = site.audit()
    assert_not_done(site, result, good, "the query took longer than query_timeout (canceling statement due to st")
    assert result.err.endswith(": look for locks in pg_stat_activity or raise query_timeout\n")
    site.config()

    def cancel() -> None:
        wait_until(lambda: waiting_backends(database_of(site)))
        for pid in waiting_backends(database_of(site)):
            database_of(site).execute(f"SELECT pg_cancel_backend({pid})")

    with locked_log(site), within(PROMPTLY), meanwhile(cancel):
        result = site.audit()
    assert_not_done(site, result, good, "somebody cancelled the query (canceling statement due to user request)")


@contextmanager
def frozen(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


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
    assert result.err.endswith(": check the server and the network\n")


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


def test_after_an_audit_other_connections_work_as_before(site: Site) -> None:
    published(site)
    site.config(admindb_name="nowhere")
    assert site.audit("-q").status == 3
    with site.engine.connect() as connection:
        copied = io.StringIO()
        # with a wait callback of psycopg2, which is one for all connections, this would fail
        connection.connection.cursor().copy_expert("COPY (SELECT name FROM containers ORDER BY id) TO STDOUT", copied)
    assert copied.getvalue() == "sales\nBücher\n"
