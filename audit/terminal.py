"""The process as its user meets it: signals, standard streams, its user. Standard library only."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import pwd
import signal
import sys
from collections.abc import Iterable
from types import FrameType
from typing import NoReturn, TextIO

_STOPS = (signal.SIGINT, signal.SIGTERM)


def prepare() -> None:
    """Obey signals, and print what the locale cannot say as escapes.

    From now on the first SIGINT or SIGTERM raises `KeyboardInterrupt` with its name; further ones are ignored.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    for number in _STOPS:
        signal.signal(number, _stop)


def ignore_signals() -> None:
    """From now on ignore the signals that `prepare` obeys: what is left is short, and has to be done."""
    for number in _STOPS:
        if signal.getsignal(number) is _stop:
            signal.signal(number, signal.SIG_IGN)


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    ignore_signals()
    raise KeyboardInterrupt(signal.Signals(number).name)


def is_terminal() -> bool:
    """Whether a terminal shows what is printed."""
    return sys.stdout is not None and sys.stdout.isatty()


def user_name(uid: int) -> str:
    """The name of a user, or the number of one without a name, as in a container."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def umask() -> int:
    """The permissions that this user keeps from others in a new file."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def print_utf8() -> None:
    """From now on print UTF-8, whatever the locale."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")


def print_lines(lines: Iterable[str]) -> None:
    """Print lines and flush them. Raises `OSError` if that fails, but not if the reader (`| head`) has read enough."""
    try:
        for line in lines:
            if sys.stdout is None:  # closed before the program began
                raise OSError(errno.EBADF, os.strerror(errno.EBADF))
            print(line)
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        if sys.stdout is not None:
            _discard(sys.stdout)
        if not isinstance(error, BrokenPipeError):
            raise


def print_error(message: str) -> None:
    """Print a line to stderr; if nobody can read it, the exit status has to do."""
    if sys.stderr is None:
        return
    try:
        print(message, file=sys.stderr, flush=True)
    except OSError:
        _discard(sys.stderr)


def _discard(stream: TextIO) -> None:
    """Drop what is left in a buffer: writing it would fail once more, with status 120, when the interpreter ends."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
