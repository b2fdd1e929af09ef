"""The process itself: signals, standard streams, and waiting for the server. Standard library only."""

from __future__ import annotations

import contextlib
import io
import os
import select
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from types import FrameType, TracebackType
from typing import Any, NoReturn, TextIO

from audit import interpreter

NOT_DONE = interpreter.NOT_DONE
_STOPS = (signal.SIGINT, signal.SIGTERM)


def prepare() -> None:
    """Make the process ready for cron and systemd, before the large imports.

    Whatever goes wrong before the audit begins ends with one line on stderr and exit status 3.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:  # closed: a socket or the textfile must not get the number of stdout
            os.open(os.devnull, os.O_RDWR)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    sys.excepthook = _give_up
    for number in _STOPS:
        signal.signal(number, _stop_at_once)


def _stop_at_once(number: int, frame: FrameType | None) -> None:
    interpreter.give_up(f"stopped by {signal.Signals(number).name}: run it again")


def _give_up(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if isinstance(error, KeyboardInterrupt):  # before the audit begins
        interpreter.give_up(f"stopped by {str(error) or 'SIGINT'}: run it again")
    problem = f"the installation is broken ({kind.__name__}: {' '.join(str(error).split())})"
    interpreter.give_up(f"{problem}: run make clean venv")


# --- Signals -------------------------------------------------------------------------------------------


def obey_signals() -> None:
    """From now on the first SIGINT or SIGTERM raises `KeyboardInterrupt` with its name; further ones are ignored."""
    for number in _STOPS:
        signal.signal(number, _stop)


def ignore_signals() -> None:
    """From now on ignore the signals that `obey_signals` obeys: what is left is short, and has to be done."""
    for number in _STOPS:
        if signal.getsignal(number) is _stop:
            signal.signal(number, signal.SIG_IGN)


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    ignore_signals()
    raise KeyboardInterrupt(signal.Signals(number).name)


# --- Standard streams ----------------------------------------------------------------------------------


def on_terminal() -> bool:
    """Whether a terminal shows what is printed."""
    return sys.stdout is not None and sys.stdout.isatty()


def print_utf8() -> None:
    """From now on print UTF-8, whatever the locale."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")


def print_lines(lines: Iterable[str]) -> None:
    """Print lines and flush them. Raises `OSError` if that fails, but not if the reader (`| head`) has read enough."""
    try:
        for line in lines:
            print(line)
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
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


# --- Waiting for the server ----------------------------------------------------------------------------


@contextlib.contextmanager
def interruptible_waits(connect_timeout: int, query_timeout: int) -> Iterator[None]:
    """In this block psycopg2 waits for the server at most this long (seconds), and a signal ends a wait.

    libpq itself would wait for ever for a server that falls silent, and hold back Ctrl-C until it answers.
    """
    import psycopg2.extensions  # not before `prepare`

    def wait(connection: Any) -> None:
        connecting = connection.status == psycopg2.extensions.STATUS_SETUP
        # the server itself ends a long statement; the seconds more are for one that cannot even do that
        deadline = time.monotonic() + (connect_timeout if connecting else query_timeout + 5)
        state = connection.poll()
        while state != psycopg2.extensions.POLL_OK:
            waiting = select.poll()
            reads = state == psycopg2.extensions.POLL_READ
            waiting.register(connection.fileno(), select.POLLIN if reads else select.POLLOUT)
            if not waiting.poll(1000 * max(0.0, deadline - time.monotonic())):
                raise psycopg2.OperationalError("timeout expired" if connecting else "the server fell silent")
            state = connection.poll()

    psycopg2.extensions.set_wait_callback(wait)
    try:
        yield
    finally:
        psycopg2.extensions.set_wait_callback(None)
