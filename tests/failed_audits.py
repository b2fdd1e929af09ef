"""Audits that fail: what they have in common, and what makes them fail."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import text

from tests.builders import Result, Site, files, series, tree
from tests.db4sci import SECRET
from tests.postgres import Database

LAST_GOOD = b"# the last good audit\n"
SUCCESS = series("mydb_backup_audit_success")


def complaint_of_failed_audit(site: Site) -> str:
    """What a failing audit says on stderr. It must have touched nothing in the site's folder but the run file."""
    site.config()
    site.textfile.write_bytes(LAST_GOOD)
    before = tree(site.folder)
    result = site.audit()
    assert_not_done(site, result, LAST_GOOD)
    site.runfile.unlink()
    assert tree(site.folder) == before
    return result.err


def assert_complaint(complaint: str) -> None:
    """One line names the program, the problem and what to do about it; it is not a surprise."""
    assert re.fullmatch(r"backup_audit: (?!unexpected)\S.*: \S.*\n", complaint), complaint


def assert_not_done(site: Site, result: Result, good: bytes, problem: str = "") -> None:
    """The audit failed: the textfile is as it was, the run file says so, and no other file is there."""
    assert (result.status, result.out) == (3, "")
    assert_complaint(result.err)
    assert problem in result.err
    assert site.textfile.read_bytes() == good
    assert site.samples(site.runfile)[SUCCESS] == 0
    assert files(site) == [site.textfile.name, site.runfile.name]


def publish_good_audit(site: Site) -> bytes:
    """The textfile after an audit of a site that is well, made with two containers if it is empty."""
    if not site.names:
        now = site.clock()
        for name in ("sales", "Bücher"):
            c_id = site.container(name)
            for days in range(3):
                started = now - timedelta(days=days, hours=10)
                site.run(c_id, started, started + timedelta(minutes=20))
    site.config()
    assert site.audit("-q") == Result(0, "", "")
    return site.textfile.read_bytes()


def passwords(site: Site) -> list[str]:
    """All that must never come out."""
    server = site.database.server if site.database else None
    return [SECRET, *(word.lstrip("\\:'") for word in (server.passwords.values() if server else ()))]


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """A file system of 256 kB, mounted on a folder; skips the test where that is not permitted."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "backup-audit-test", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a file system is not permitted")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def fill_disk(folder: Path) -> Path:
    """Leave no room on the disk of a folder; returns the file that takes it."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(b"x" * 4096)
    return filler


# --- Servers that make an audit wait ---------------------------------------------------------------------


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
    audits = f"application_name = 'backup_audit' AND datname = '{database.name}'"
    query = f"SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND {audits}"
    return [pid for (pid,) in database.server.execute(query)]


@contextmanager
def within(seconds: float, slack: float = 6) -> Iterator[None]:
    """Fails if the block takes longer than promised, and beyond that longer than a busy machine may take."""
    begun = time.monotonic()
    yield
    assert time.monotonic() - begun < seconds + slack


@contextmanager
def meanwhile(action: Callable[[], object]) -> Iterator[None]:
    """Do something beside the block, and raise here what it raises."""
    with ThreadPoolExecutor(1) as other:
        future = other.submit(action)
        yield
        future.result()
