"""The two textfiles: replaced in one step, whatever happens, with their permissions."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from audit import textfile
from audit.errors import AuditError
from tests.builders import TOP, Result, Site, files, tree
from tests.failed_audits import LAST_GOOD, assert_not_done, fill_disk, publish_good_audit, small_disk

MODE = 0o644
WAYS: dict[str, Callable[[Path], None]] = {
    "write": lambda path: textfile.write(path, b"new\n", MODE),
    "overwrite": lambda path: textfile.overwrite(path, b"new\n", MODE),
    "try_out": lambda path: textfile.try_out(path, MODE),
}


def problems(path: Path, *ways: str) -> set[str]:
    """What is wrong with ways to write (with all, if none is named); nothing if one works."""
    said = set()
    for way in ways or WAYS:
        try:
            WAYS[way](path)
            said.add("")
        except AuditError as error:
            said.add(str(error))
    return said


# --- Permissions, and where the files go -----------------------------------------------------------------


def test_a_file_has_its_mode_whatever_the_umask(tmp_path: Path) -> None:
    path = tmp_path / "audit.prom"
    for mask, mode in ((0o077, 0o644), (0o777, 0o640), (0, 0o644), (0o022, 0o664)):
        for write in (textfile.write, textfile.overwrite):
            for content in (b"made\n", b"replaced\n"):
                before = os.umask(mask)
                write(path, content, mode)
                os.umask(before)
                assert (stat.S_IMODE(path.stat().st_mode), path.read_bytes()) == (mode, content)
                path.chmod(0o600)
            path.unlink()


def test_both_files_are_where_and_as_the_configuration_says(sqlite_site: Site) -> None:
    sqlite_site.container()
    sqlite_site.config(prometheus_file=str(sqlite_site.textfile.parent / "other.name.prom"), textfile_mode=0o664)
    assert sqlite_site.audit("-q") == Result(2, "", "")
    assert files(sqlite_site) == ["other.name.prom", "other.name_run.prom"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in sqlite_site.textfile.parent.iterdir()} == {0o664}


def test_a_folder_that_is_missing_and_what_is_not_a_regular_file(tmp_path: Path) -> None:
    folder = tmp_path / "missing"
    path = folder / "audit.prom"
    assert problems(path) == {f"cannot write {path} (No such file or directory): create the folder {folder}"}
    folder.write_text("", encoding="utf-8")
    assert problems(path) == {f"cannot write {path} (Not a directory): {folder} must be a folder"}
    directory, fifo, device = (tmp_path / name for name in ("folder", "fifo", "device"))
    directory.mkdir()
    os.mkfifo(fifo)
    device.symlink_to("/dev/null")  # a link, since making a device takes root
    before = tree(tmp_path)
    assert problems(directory) == {f"cannot write {directory} (Is a directory): name a file, not a folder"}
    for odd in (fifo, device):
        assert problems(odd) == {
            f"cannot write {odd} (not a regular file): name a regular file, not a link or a device"
        }
    assert tree(tmp_path) == before, "nothing is replaced, and nothing left behind"


def test_a_link_is_neither_replaced_nor_followed(tmp_path: Path) -> None:
    """It may be /dev/stdout, or lead the audit of root to a file of somebody else."""
    path, target = tmp_path / "audit.prom", tmp_path / "elsewhere.prom"
    target.write_bytes(LAST_GOOD)
    path.symlink_to(target)
    assert problems(path) == {f"cannot write {path} (not a regular file): name a regular file, not a link or a device"}
    assert (path.is_symlink(), target.read_bytes()) == (True, LAST_GOOD)


# --- Folders and files of somebody else, full disks ---------------------------------------------------------


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")
def test_a_folder_or_file_of_somebody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a sticky folder everybody can make files, but only their owner, the folder's owner and root replace them."""
    nobody = 65534
    monkeypatch.chdir(tmp_path)  # whose parents that user may not enter
    path = Path("audit.prom")

    def said(of_folder: int, of_file: int | None, *ways: str, user: int = nobody, mode: int = 0o1777) -> set[str]:
        path.unlink(missing_ok=True)
        if of_file is not None:
            path.write_bytes(b"of old\n")
            os.chown(path, of_file, of_file)
            path.chmod(0o666)
        os.chown(tmp_path, of_folder, of_folder)
        tmp_path.chmod(mode)
        os.seteuid(user)
        try:
            return problems(path, *(ways or ("try_out", "write")))
        finally:
            os.seteuid(0)

    assert said(0, None) == said(0, nobody) == said(nobody, 0) == said(nobody, nobody, user=0) == {""}
    assert said(0, 0, mode=0o777) == {""}
    denied = "cannot write audit.prom (Permission denied): let this user write to the folder ."
    assert said(0, nobody, mode=0o755) == {denied}
    advice = "the folder is sticky and the file another user's: delete it, or name another folder"
    assert said(0, 0) == {f"cannot write audit.prom (Operation not permitted): {advice}"}
    assert said(0, 0, "overwrite") == {""}, "it cannot be replaced, but be written to"
    assert (path.read_bytes(), path.stat().st_uid, os.listdir()) == (b"new\n", 0, ["audit.prom"])


def test_a_full_disk(sqlite_site: Site) -> None:
    """The run file of the good run before is overwritten in place: its success 1 would be a lie."""
    sqlite_site.config()
    with small_disk(sqlite_site.textfile.parent):
        good = publish_good_audit(sqlite_site)
        filler = fill_disk(sqlite_site.textfile.parent)
        result = sqlite_site.audit()
        (said,) = problems(sqlite_site.runfile, "try_out")
        assert said.endswith("(No space left on device): make room on its disk")
        filler.unlink()
        assert_not_done(sqlite_site, result, good, f"cannot write {sqlite_site.textfile} (No space left on device): ")
        sqlite_site.runfile.unlink()
        filler = fill_disk(sqlite_site.textfile.parent)
        assert sqlite_site.audit().err.count("\n") == 1, "one complaint, also without room for a run file"
        filler.unlink()
        assert files(sqlite_site) == [sqlite_site.textfile.name]


# --- One step: readers, kills, two at once ------------------------------------------------------------------

_WRITER = """\
import itertools, pathlib, sys
from audit import textfile
for number in itertools.count():
    textfile.write(pathlib.Path(sys.argv[1]), b"%s %d\\n" % (sys.argv[2].encode(), number) * 5000, 0o644)
"""
"""Replaces a textfile, again and again, until it is killed."""


def test_a_reader_sees_whole_files_of_writers_that_are_killed(tmp_path: Path) -> None:
    path = tmp_path / "audit.prom"
    textfile.write(path, LAST_GOOD, MODE)
    seen: set[bytes] = set()
    names, deadline = set[str](), time.monotonic() + 30

    def read_until(number: int, writer: bytes) -> None:
        """Read until so many files of a writer have been seen."""
        while sum(content.startswith(writer) for content in seen) < number:
            assert time.monotonic() < deadline
            names.update(os.listdir(tmp_path))
            seen.add(path.read_bytes())

    first, second = (subprocess.Popen([sys.executable, "-c", _WRITER, path, word], cwd=TOP) for word in "ab")
    try:
        read_until(4, b"a")
        read_until(4, b"b")
        first.kill()  # while the other goes on
        read_until(len(seen) + 4, b"b")
    finally:
        for writer in (first, second):
            writer.kill()
            writer.wait()
    seen.add(path.read_bytes())
    for content in seen - {LAST_GOOD}:
        lines = content.splitlines(keepends=True)
        assert (len(lines), len(set(lines))) == (5000, 1)
    assert {name for name in names if not name.endswith(".tmp")} == {path.name}


def test_temporary_files_that_killed_audits_left_are_removed_after_an_hour(tmp_path: Path) -> None:
    path, now = tmp_path / "audit.prom", time.time()
    young = [tmp_path / f".{path.name}.{age}.tmp" for age in ("0", "3540")]
    stale = [tmp_path / f".{path.name}.{age}.tmp" for age in ("3601", "90000")]
    foreign = [tmp_path / name for name in (".other.prom.ab.tmp", "apt.prom", "audit.prom.tmp", ".audit.prom.x")]
    for leftover in young + stale + foreign:
        leftover.write_bytes(LAST_GOOD)
        age = float(leftover.name.split(".")[3]) if leftover in young + stale else 90_000
        os.utime(leftover, times=(now - age, now - age))
    textfile.write(path, b"new\n", MODE)
    assert sorted(tmp_path.iterdir()) == sorted([path, *young, *foreign])
    assert {leftover.read_bytes() for leftover in young + foreign} == {LAST_GOOD}
