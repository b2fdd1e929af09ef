"""The two textfiles: replaced in one step, whatever happens, with their permissions (SPEC section 6)."""

from __future__ import annotations

import os
import random
import resource
import shutil
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from tests.builders import TOP, Site, parse_samples, series
from tests.failures import (
    LAST_GOOD,
    SUCCESS,
    as_result,
    assert_complaint,
    assert_not_done,
    database_of,
    failure,
    files,
    fill_disk,
    locked_log,
    meanwhile,
    published,
    small_disk,
    unprivileged,
    wait_until,
    waiting_backends,
)


@pytest.fixture
def auditable(sqlite_site: Site) -> Site:
    """A site whose audit succeeds with a critical verdict, but for where the textfile is to go."""
    sqlite_site.container()
    sqlite_site.config()
    return sqlite_site


# --- Permissions ---------------------------------------------------------------------------------------


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@pytest.mark.parametrize("mask", [0o077, 0o027, 0o000, 0o777], ids=oct)
@pytest.mark.parametrize("mode", [None, 0o640, 0o664], ids=str)
def test_the_files_have_their_mode_whatever_the_umask(auditable: Site, mask: int, mode: int | None) -> None:
    auditable.config(textfile_mode=mode)
    for _ in range(2):  # made, and replaced
        with umask(mask):
            auditable.audit("-q")
        for path in (auditable.textfile, auditable.runfile):
            assert stat.S_IMODE(path.stat().st_mode) == (mode or 0o644)
            path.chmod(0o600)
    auditable.config(textfile_mode=mode, database_url="sqlite:////nowhere/x.db")
    with umask(mask):
        assert auditable.audit().status == 3
    assert stat.S_IMODE(auditable.runfile.stat().st_mode) == (mode or 0o644), "of a failed run as well"


# --- Where the files go ----------------------------------------------------------------------------------


def test_where_the_files_go(auditable: Site) -> None:
    auditable.config(prometheus_file=str(auditable.textfile.parent / "other.name.prom"))
    auditable.audit("-q")
    assert files(auditable) == ["other.name.prom", "other.name_run.prom"]
    folder = auditable.folder / "missing"
    auditable.config(prometheus_file=str(folder / "audit.prom"))
    problem = f"backup_audit: cannot write {folder / 'audit.prom'} "
    said = failure(auditable, publishes=False)
    assert said == f"{problem}(No such file or directory): create the folder {folder}\n"
    folder.write_text("", encoding="utf-8")
    assert failure(auditable, publishes=False) == f"{problem}(Not a directory): {folder} must be a folder\n"


@pytest.mark.parametrize("mode", [0o555, 0o444, 0o666, 0o000], ids=oct)
def test_a_folder_that_is_not_writable(auditable: Site, mode: int) -> None:
    folder = auditable.textfile.parent
    auditable.textfile.write_bytes(LAST_GOOD)
    folder.chmod(mode)
    try:
        result = as_result(auditable.process(**unprivileged()))
    finally:
        folder.chmod(0o755)
    assert (result.status, result.out) == (3, "")
    problem = f"cannot write {auditable.textfile} (Permission denied)"
    assert result.err == f"backup_audit: {problem}: let this user write to the folder {folder}\n"
    assert files(auditable) == [auditable.textfile.name]
    assert auditable.textfile.read_bytes() == LAST_GOOD


@pytest.mark.parametrize("kind", ["folder", "fifo", "device"])
@pytest.mark.parametrize("of", ["textfile", "runfile"])
def test_what_is_not_a_regular_file_is_never_replaced(auditable: Site, of: str, kind: str) -> None:
    path: Path = getattr(auditable, of)
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    else:  # a link, since making a device takes root; the audit follows it to see what it is
        path.symlink_to("/dev/null")
    before = path.lstat()
    result = auditable.audit()
    assert result.status == 3
    assert result.err.startswith(f"backup_audit: cannot write {path} (")
    assert_complaint(result.err)
    assert (path.lstat().st_mode, path.lstat().st_ino) == (before.st_mode, before.st_ino)
    if of == "textfile":
        assert auditable.samples(auditable.runfile)[SUCCESS] == 0


def test_an_output_that_cannot_be_written(auditable: Site) -> None:
    for target in ("missing/audit.prom", ".", "textfiles", "/dev/null", "/dev/full"):
        path = auditable.folder / target
        said = failure(auditable, "--output", path, publishes=False)
        assert f"cannot write {path} (" in said
        assert said.rpartition("): ")[2].startswith("create the folder" if "missing" in target else "name ")


def test_a_link_to_a_file_is_replaced(auditable: Site) -> None:
    target = auditable.folder / "elsewhere.prom"
    for _ in range(2):  # a dangling link, and a good one
        auditable.textfile.symlink_to(target)
        assert auditable.audit("-q").status == 2
        assert not auditable.textfile.is_symlink()
        auditable.textfile.rename(target)


def test_the_folder_vanishes_during_the_audit(site: Site) -> None:
    published(site)
    locked = threading.Event()

    def hold() -> None:
        with locked_log(site):
            locked.set()
            wait_until(lambda: waiting_backends(database_of(site)))
            shutil.rmtree(site.textfile.parent)

    with meanwhile(hold):
        assert locked.wait(30)
        result = site.audit()
    assert (result.status, result.out) == (3, "")
    assert_complaint(result.err)
    assert result.err.endswith(f": create the folder {site.textfile.parent}\n")


# --- Disks that are full, files of somebody else -----------------------------------------------------------


def test_the_textfile_is_larger_than_allowed(sqlite_site: Site) -> None:
    good = published(sqlite_site)
    limit = 2048
    assert len(good) > limit > sqlite_site.runfile.stat().st_size

    def allow_small_files_only() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    result = as_result(sqlite_site.process("-q", preexec_fn=allow_small_files_only))
    assert_not_done(sqlite_site, result, good, f"cannot write {sqlite_site.textfile} (File too large)")


def test_a_full_disk(sqlite_site: Site) -> None:
    """The run file of the good run before is overwritten in place: its success 1 would be a lie."""
    sqlite_site.config()
    with small_disk(sqlite_site.textfile.parent):
        good = published(sqlite_site)
        inode = sqlite_site.runfile.stat().st_ino
        filler = fill_disk(sqlite_site.textfile.parent)
        result = sqlite_site.audit()
        assert sqlite_site.runfile.stat().st_ino == inode
        filler.unlink()
        assert_not_done(sqlite_site, result, good, f"cannot write {sqlite_site.textfile} (No space left on device): ")
        assert sqlite_site.audit().status == 0
        sqlite_site.runfile.unlink()
        filler = fill_disk(sqlite_site.textfile.parent)
        result = sqlite_site.audit()
        filler.unlink()
        assert (result.status, result.err.count("\n")) == (3, 1), "there is no run file to overwrite, and no room"
        assert files(sqlite_site) == [sqlite_site.textfile.name]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to somebody else")
def test_files_of_somebody_else_in_a_sticky_folder(sqlite_site: Site) -> None:
    good = published(sqlite_site)
    folder = sqlite_site.textfile.parent
    for path in (sqlite_site.textfile, sqlite_site.runfile, folder):
        os.chown(path, 65534, 65534)
    folder.chmod(0o1777)
    sqlite_site.runfile.chmod(0o666)  # cannot be replaced either, but be written to
    result = as_result(sqlite_site.process("-q", **unprivileged()))
    assert_not_done(sqlite_site, result, good, f"cannot write {sqlite_site.textfile} (Operation not permitted)")
    assert sqlite_site.textfile.stat().st_uid == 65534


# --- One step: readers, kills, two at once ------------------------------------------------------------------


class Reader:
    """Reads the two textfiles over and over, as node_exporter does, and keeps every content that it sees."""

    def __init__(self, site: Site) -> None:
        self._folder = site.textfile.parent
        self._families = {path: families(path.read_bytes()) for path in (site.textfile, site.runfile)}
        self._seen: dict[Path, set[bytes]] = {path: set() for path in self._families}
        self._names: set[str] = set()
        self._ended = threading.Event()
        self._thread = ThreadPoolExecutor(1)
        self._reading = self._thread.submit(self._read)

    def _read(self) -> None:
        while not self._ended.wait(0.001):
            self._names.update(os.listdir(self._folder))
            for path, seen in self._seen.items():
                seen.add(path.read_bytes())

    def assert_whole(self, at_least: int) -> None:
        """Every content was a whole audit, of which there were some, and no other file looked like a textfile."""
        self._ended.set()
        self._reading.result()  # raises if a file was not there
        self._thread.shutdown()
        assert {name for name in self._names if name.endswith(".prom")} == {path.name for path in self._families}
        for path, contents in self._seen.items():
            assert len(contents) >= at_least
            for content in contents:
                assert content.endswith(b"\n")
                assert families(content) == self._families[path]
                parse_samples(content.decode("utf-8"))


def families(exposition: bytes) -> list[bytes]:
    """The families of an exposition that has at least one sample of its last one."""
    lines = exposition.splitlines()
    found = [line.split()[2] for line in lines if line.startswith(b"# TYPE ")]
    assert lines[-1].startswith(found[-1])
    return found


def start(site: Site) -> subprocess.Popen[bytes]:
    config = str(site.folder / "mydb_config.py")
    command = [sys.executable, str(TOP / "backup_audit.py"), "--config", config, "-q"]
    return subprocess.Popen(command, cwd=site.folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def kill(site: Site, seconds: float | None) -> bool:
    """Start an audit and kill it, after a time or when its temporary file appears; whether it was still alive."""
    begun = time.monotonic()
    with start(site) as audit:
        while audit.poll() is None and (
            time.monotonic() < begun + seconds
            if seconds is not None
            else not any(name.endswith(".tmp") for name in files(site))
        ):
            time.sleep(0 if seconds is None else 0.001)
        audit.kill()
    return audit.returncode < 0


def test_an_audit_killed_at_any_moment_leaves_whole_files(sqlite_site: Site) -> None:
    published(sqlite_site)
    chance = random.Random(20260314)  # noqa: S311  # not for secrets
    begun = time.monotonic()
    with start(sqlite_site) as first:
        first.wait()
    life = time.monotonic() - begun
    # most of a life is the start of Python, where nothing can break: most moments are near its end
    moments = [life * chance.uniform(*(0, 1.2) if number % 3 == 0 else (0.7, 1.2)) for number in range(30)]
    reader = Reader(sqlite_site)
    with ThreadPoolExecutor(2) as two:
        killed = list(two.map(partial(kill, sqlite_site), moments))
    assert killed.count(True) >= 2
    assert any(kill(sqlite_site, None) and len(files(sqlite_site)) > 2 for _ in range(6)), "caught while it wrote"
    reader.assert_whole(at_least=2)
    for leftover in sqlite_site.textfile.parent.glob(".*.tmp"):
        leftover.unlink()
    assert sqlite_site.process("-q").returncode == 0
    assert len(files(sqlite_site)) == 2


def test_six_audits_at_the_same_time(sqlite_site: Site) -> None:
    published(sqlite_site)
    reader = Reader(sqlite_site)
    audits = [start(sqlite_site) for _ in range(6)]
    assert [audit.wait(120) for audit in audits] == [0] * 6
    reader.assert_whole(at_least=2)
    assert sqlite_site.samples()[series("mydb_backup_containers", status="ok")] == 2
    assert sqlite_site.samples(sqlite_site.runfile)[SUCCESS] == 1
    assert len(files(sqlite_site)) == 2


def test_temporary_files_that_killed_audits_left_are_removed_after_an_hour(sqlite_site: Site) -> None:
    published(sqlite_site)
    folder, now = sqlite_site.textfile.parent, time.time()
    names = (sqlite_site.textfile.name, sqlite_site.runfile.name)
    stale = [folder / f".{name}.abc123.tmp" for name in names]
    young = [folder / f".{name}.def456.tmp" for name in names]
    foreign = [folder / name for name in (".other.prom.abc123.tmp", "apt.prom", f"{names[0]}.tmp", f".{names[0]}.x")]
    for path in stale + young + foreign:
        path.write_bytes(LAST_GOOD)
        os.utime(path, times=(now - 3550, now - 3550) if path in young else (now - 3660, now - 3660))
    assert sqlite_site.audit("-q").status == 0
    assert files(sqlite_site) == sorted([*names, *(path.name for path in young + foreign)])
    assert {path.read_bytes() for path in young + foreign} == {LAST_GOOD}
