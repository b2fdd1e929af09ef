"""Servers that die, hang, or answer too slowly: the audit ends in time, with one clear line.

`tests/test_database.py` has what a site can get wrong about its database; here is what goes wrong by itself.
"""

from __future__ import annotations

import os
import signal
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress

import pytest

from audit import database
from tests.builders import Result, Site
from tests.failed_audits import assert_not_done, locked_log, meanwhile, publish_good_audit, waiting_backends, within
from tests.postgres import HOST
from tests.programs import wait_until
from tests.relay import relayed

PROMPTLY = 2.0
"""Seconds within which an audit whose server has gone has ended."""


# --- The server ends in the middle of the reads ---------------------------------------------------------


def test_the_connection_is_terminated_between_the_reads_or_breaks_after_any_number_of_bytes(site: Site) -> None:
    publish_good_audit(site)
    site.container("without a run")  # judged on its whole log, in one more read
    theirs = f"application_name = 'backup_audit' AND datname = '{site.postgres.name}' AND state LIKE 'idle%'"
    terminate = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {theirs}"
    with relayed(site) as relay:
        assert site.audit("-q").status == 2
        good, whole = site.textfile.read_bytes(), len(relay.heard)
        for number in (1, 2, 3):
            relay.at_query = {number: lambda: site.postgres.execute(terminate)}
            with within(PROMPTLY):
                result = site.audit()
            assert_not_done(site, result, good, "the server ended the connection")
        relay.at_query = {}
        for allowance in (0, 1, 9, *range(100, whole - 300, whole // 7)):
            relay.allowance = allowance
            with within(PROMPTLY):
                result = site.audit()
            assert_not_done(site, result, good, "the connection was lost")


# --- The server does not answer -------------------------------------------------------------------------


def audit_of_a_locked_log(site: Site, act: Callable[[int], object]) -> Result:
    """What an audit comes to whose query waits for a lock, when `act` has got the process id of its backend."""

    def wait_and_act() -> None:
        wait_until(lambda: waiting_backends(site.postgres))
        act(waiting_backends(site.postgres)[0])

    with locked_log(site), within(PROMPTLY, slack=2), meanwhile(wait_and_act):
        return site.audit()


def test_a_query_that_waits_ends_with_query_timeout_or_when_it_is_ended(site: Site) -> None:
    good = publish_good_audit(site)

    def call(function: str) -> Callable[[int], object]:
        return lambda pid: site.postgres.execute(f"SELECT {function}({pid})")

    result = audit_of_a_locked_log(site, call("pg_cancel_backend"))
    assert_not_done(site, result, good, "somebody cancelled the query (canceling statement due to user request)")
    result = audit_of_a_locked_log(site, call("pg_terminate_backend"))
    assert_not_done(site, result, good, "the server ended the connection")
    site.config(query_timeout=1)
    result = audit_of_a_locked_log(site, lambda pid: None)
    assert_not_done(site, result, good, "the query took longer than query_timeout (canceling statement due to st")
    assert result.err.endswith(": look for locks in pg_stat_activity or raise query_timeout\n")


def test_a_frozen_query_ends_some_seconds_after_query_timeout(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    good = publish_good_audit(site)
    site.config(query_timeout=1)
    monkeypatch.setattr(database, "AFTER_QUERY_TIMEOUT", 1)
    frozen = []

    def freeze(pid: int) -> None:
        os.kill(pid, signal.SIGSTOP)
        frozen.append(pid)

    try:
        result = audit_of_a_locked_log(site, freeze)
    finally:
        for pid in frozen:
            os.kill(pid, signal.SIGCONT)
    assert_not_done(site, result, good, "no answer within query_timeout")
    assert result.err.endswith(": check the server and the network\n")


def test_a_server_that_answers_byte_by_byte_ends_with_connect_timeout(site: Site) -> None:
    good = publish_good_audit(site)
    ended = threading.Event()

    def drip() -> None:
        client, _ = listener.accept()
        with client, suppress(OSError):
            client.sendall(b"N")  # no TLS
            client.recv(4096)
            client.sendall(b"R" + struct.pack("!i", 2000))  # a long answer about the login
            while not ended.wait(0.05):
                client.sendall(b"\0")

    with socket.create_server((HOST, 0)) as listener, meanwhile(drip), within(1, slack=2):
        port = listener.getsockname()[1]
        site.config(mydb_admin_port=port, connect_timeout=1, libpq_options={"gssencmode": "disable"})
        result = site.audit()
        ended.set()
    assert_not_done(site, result, good, "no answer within connect_timeout")
