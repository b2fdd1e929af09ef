"""Writing the textfiles that node_exporter reads.

A textfile is replaced in one step: whoever reads it, or kills the audit, sees the old one or the new one, whole.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from audit.errors import AuditError
from audit.terminal import user_name

STALE_AFTER = 3600
"""Seconds after which a temporary file that a killed audit left behind is removed."""
_TRIED_SIZE = 64 * 1024


def write(path: Path, content: bytes, mode: int) -> None:
    """Replace a textfile in one step, whatever the umask. Raises `AuditError`; the old file then stays as it was."""
    try:
        _replace(path, content, mode)
    except OSError as error:
        raise _not_written(path, error) from error


def overwrite(path: Path, content: bytes, mode: int) -> None:
    """As `write`, but where the file cannot be replaced, it is overwritten in place: for the run file, of which a
    stale `success 1` would be worse than half a file. Raises `AuditError`.
    """
    try:
        _replace(path, content, mode)
    except OSError as error:
        try:
            with open(path, "r+b", buffering=0, opener=_open_private) as file:
                file.write(content)  # first, for a full disk has no room but the file's own
                file.truncate()
        except OSError:
            raise _not_written(path, error) from error


def try_out(path: Path, mode: int) -> None:
    """Try to write a textfile and leave nothing behind. Raises `AuditError` as `write` would."""
    try:
        with _temporary(path, b"#" * _TRIED_SIZE, mode):
            if _is_protected(path):
                raise OSError(errno.EPERM, os.strerror(errno.EPERM))
    except OSError as error:
        raise _not_written(path, error) from error


def owner(path: Path) -> str | None:
    """The name of the user to whom a file belongs; None if there is no such file."""
    try:
        return user_name(path.stat().st_uid)
    except OSError:
        return None


def _is_protected(path: Path) -> bool:
    """Whether this user may create files in the folder, but not replace this one: it is another's, in a sticky one."""
    folder, user = path.parent.stat(), os.geteuid()
    return path.exists() and bool(folder.st_mode & stat.S_ISVTX) and user not in (0, folder.st_uid, path.stat().st_uid)


def _replace(path: Path, content: bytes, mode: int) -> None:
    with _temporary(path, content, mode) as temporary:
        os.replace(temporary, path)


@contextlib.contextmanager
def _temporary(path: Path, content: bytes, mode: int) -> Iterator[Path]:
    """A file beside `path` with this content; unless it is renamed in the block, it is removed after it."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if path.is_symlink() or (path.exists() and not path.is_file()):  # a rename would replace even /dev/stdout
        raise OSError(errno.EINVAL, "not a regular file")
    _remove_stale_temporaries(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:  # a signal from here on leaves no file behind
        with open(temporary, "xb", opener=_open_private) as file:
            file.write(content)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        yield temporary
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)


def _remove_stale_temporaries(path: Path) -> None:
    for leftover in path.parent.iterdir():
        if leftover.name.startswith(f".{path.name}.") and leftover.suffix == ".tmp":
            with contextlib.suppress(OSError):
                if time.time() - leftover.stat().st_mtime > STALE_AFTER:
                    leftover.unlink()


def _not_written(path: Path, error: OSError) -> AuditError:
    advice = {
        errno.ENOENT: f"create the folder {path.parent}",
        errno.ENOTDIR: f"{path.parent} must be a folder",
        errno.EACCES: f"let this user write to the folder {path.parent}",
        errno.EPERM: "the folder is sticky and the file another user's: delete it, or name another folder",
        errno.EISDIR: "name a file, not a folder",
        errno.EINVAL: "name a regular file, not a link or a device",
        errno.ENOSPC: "make room on its disk",
    }.get(error.errno or 0, "check the folder and its disk")
    return AuditError(f"cannot write {path} ({error.strerror})", advice)
