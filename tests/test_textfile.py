"""The two textfiles: replaced in one step, whatever happens, with their permissions."""

from __future__ import annotations

import os
import pwd
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from audit import textfile
from audit.errors import AuditError
from tests.builders import TOP, Result, Site
from tests.failures import (
    LAST_GOOD,
    assert_not_done,
    files,
    fill_disk,
    published,
    small_disk,
)

MODE = 0o644
WAYS: dict[str, Callable[[Path], None]] = {
    "write": lambda path: textfile.write(path, b"new\n", MODE),
    "overwrite": lambda path: textfile.overwrite(path, b"new\n", MODE),
    "try_out": lambda path: textfile.try_out(path, MODE),
}
every_way = pytest.mark.parametrize("way", WAYS)


def problem(way: str, path: Path) -> str:
    """What is wrong with a way to write; nothing if it works. Where it fails, it leaves nothing behind."""
    before = sorted(path.parent.iterdir()) if path.parent.is_dir() else []
    try:
        WAYS[way](path)
    except AuditError as error:
        left, said = sorted(path.parent.iterdir()) if path.parent.is_dir() else [], str(error)
    else:
        return ""
    assert left == before
    return said


# --- Permissions ---------------------------------------------------------------------------------------


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@pytest.mark.parametrize("mask", [0o077, 0o000, 0o777], ids=oct)
@pytest.mark.parametrize("mode", [0o644, 0o640, 0o664], ids=oct)
def test_a_file_has_its_mode_whatever_the_umask(tmp_path: Path, mask: int, mode: int) -> None:
    path = tmp_path / "audit.prom"
    for write in (textfile.write, textfile.overwrite):
        for content in (b"made\n", b"replaced\n"):
            with umask(mask):
                write(path, content, mode)
            assert (stat.S_IMODE(path.stat().st_mode), path.read_bytes()) == (mode, content)
            path.chmod(0o600)


# --- Where the files go ----------------------------------------------------------------------------------


def test_both_files_are_where_and_as_the_configuration_says(sqlite_site: Site) -> None:
    sqlite_site.container()
    sqlite_site.config(prometheus_file=str(sqlite_site.textfile.parent / "other.name.prom"), textfile_mode=0o664)
    assert sqlite_site.audit("-q") == Result(2, "", "")
    assert files(sqlite_site) == ["other.name.prom", "other.name_run.prom"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in sqlite_site.textfile.parent.iterdir()} == {0o664}


@every_way
def test_a_folder_that_is_missing(tmp_path: Path, way: str) -> None:
    folder = tmp_path / "missing"
    path = folder / "audit.prom"
    assert problem(way, path) == f"cannot write {path} (No such file or directory): create the folder {folder}"
    folder.write_text("", encoding="utf-8")
    assert problem(way, path) == f"cannot write {path} (Not a directory): {folder} must be a folder"


@every_way
@pytest.mark.parametrize("kind", ["folder", "fifo", "device"])
def test_what_is_not_a_regular_file_is_never_replaced(tmp_path: Path, kind: str, way: str) -> None:
    path = tmp_path / "audit.prom"
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    else:  # a link, since making a device takes root
        path.symlink_to("/dev/null")
    before = path.lstat()
    reason = (
        "Is a directory): name a file, not a folder" if kind == "folder" else "not a regular file): name another file"
    )
    assert problem(way, path) == f"cannot write {path} ({reason}"
    assert (path.lstat().st_mode, path.lstat().st_ino) == (before.st_mode, before.st_ino)


def test_a_link_to_a_file_is_replaced(tmp_path: Path) -> None:
    path, target = tmp_path / "audit.prom", tmp_path / "elsewhere.prom"
    for content in (None, b"of somebody\n"):  # a dangling link, and a good one
        if content:
            target.write_bytes(content)
        path.symlink_to(target)
        textfile.write(path, b"new\n", MODE)
        assert (path.is_symlink(), path.read_bytes()) == (False, b"new\n")
        assert not target.exists() if content is None else target.read_bytes() == content
        path.unlink()


def test_whose_a_file_is(tmp_path: Path) -> None:
    path = tmp_path / "audit.prom"
    assert textfile.owner(path) is None
    path.touch()
    assert textfile.owner(path) == pwd.getpwuid(os.geteuid()).pw_name
    if os.geteuid() == 0:
        os.chown(path, 54321, 54321)
        assert textfile.owner(path) == "54321", "nobody has this number"


# --- Folders and files of somebody else, full disks ---------------------------------------------------------


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")
def test_a_folder_or_file_of_somebody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a sticky folder everybody can make files, but only their owner, the folder's owner and root replace them."""
    nobody = 65534
    monkeypatch.chdir(tmp_path)  # whose parents that user may not enter
    path = Path("audit.prom")

    def problems(of_folder: int, of_file: int | None, user: int = nobody, mode: int = 0o1777) -> set[str]:
        path.unlink(missing_ok=True)
        if of_file is not None:
            path.write_bytes(b"of old\n")
            os.chown(path, of_file, of_file)
        os.chown(tmp_path, of_folder, of_folder)
        tmp_path.chmod(mode)
        os.seteuid(user)
        try:
            return {problem("try_out", path), problem("write", path)}
        finally:
            os.seteuid(0)

    works: list[tuple[int, int | None]] = [(0, None), (0, nobody), (nobody, 0)]
    assert [problems(*each) for each in works] == [{""}] * 3
    assert problems(0, 0, mode=0o777) == problems(nobody, nobody, user=0) == {""}
    advice = "the folder is sticky and the file another user's: delete it, or name another folder"
    denied = {"cannot write audit.prom (Permission denied): let this user write to the folder ."}
    assert problems(0, nobody, mode=0o755) == denied
    assert problems(0, 0) == {f"cannot write audit.prom (Operation not permitted): {advice}"}
    path.chmod(0o666)  # cannot be replaced, but be written to
    os.seteuid(nobody)
    try:
        textfile.overwrite(path, b"new\n", MODE)
    finally:
        os.seteuid(0)
    assert (path.read_bytes(), path.stat().st_uid, os.listdir()) == (b"new\n", 0, ["audit.prom"])


def test_a_full_disk(sqlite_site: Site) -> None:
    """The run file of the good run before is overwritten in place: its success 1 would be a lie."""
    sqlite_site.config()
    with small_disk(sqlite_site.textfile.parent):
        good = published(sqlite_site)
        inode = sqlite_site.runfile.stat().st_ino
        filler = fill_disk(sqlite_site.textfile.parent)
        result = sqlite_site.audit()
        assert sqlite_site.runfile.stat().st_ino == inode
        with pytest.raises(AuditError, match=r"No space left on device\): make room on its disk$"):
            textfile.try_out(sqlite_site.runfile, MODE)
        filler.unlink()
        assert_not_done(sqlite_site, result, good, f"cannot write {sqlite_site.textfile} (No space left on device): ")
        textfile.try_out(sqlite_site.runfile, MODE)
        assert sqlite_site.audit().status == 0
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
    ended, seen, names = threading.Event(), set(), set()

    def read() -> None:
        while not ended.is_set():
            names.update(os.listdir(tmp_path))
            seen.add(path.read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for attempt in range(4):  # two at once; one is killed while the other writes
            command = [sys.executable, "-c", _WRITER, str(path)]
            with (
                subprocess.Popen([*command, f"first {attempt}"], cwd=TOP) as first,
                subprocess.Popen([*command, f"second {attempt}"], cwd=TOP) as second,
            ):
                deadline = time.monotonic() + 30
                for writer, name in ((first, b"first"), (second, b"second")):
                    while not path.read_bytes().startswith(b"%s %d" % (name, attempt)):
                        assert time.monotonic() < deadline
                    time.sleep(0.003 * attempt)
                    writer.kill()
    finally:
        ended.set()
        reader.join()
    assert len(seen) > 8
    for content in seen:
        lines = content.splitlines(keepends=True)
        assert content == LAST_GOOD or (len(lines), len(set(lines))) == (5000, 1)
    assert {name for name in names if name.endswith(".prom")} == {path.name}
    assert {name for name in names if not name.endswith((".prom", ".tmp"))} == set()


def test_temporary_files_that_killed_audits_left_are_removed_after_an_hour(tmp_path: Path) -> None:
    path, now = tmp_path / "audit.prom", time.time()
    young = [tmp_path / f".{path.name}.{age}.tmp" for age in ("0", "3540")]
    stale = [tmp_path / f".{path.name}.{age}.tmp" for age in ("3601", "7200", "90000")]
    foreign = [tmp_path / name for name in (".other.prom.ab.tmp", "apt.prom", "audit.prom.tmp", ".audit.prom.x")]
    for leftover in young + stale + foreign:
        leftover.write_bytes(LAST_GOOD)
        age = float(leftover.name.split(".")[3]) if leftover in young + stale else 90_000
        os.utime(leftover, times=(now - age, now - age))
    textfile.write(path, b"new\n", MODE)
    assert sorted(tmp_path.iterdir()) == sorted([path, *young, *foreign])
    assert {leftover.read_bytes() for leftover in young + foreign} == {LAST_GOOD}
