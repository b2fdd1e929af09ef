"""Finds the Python that runs the program. Old versions can read this file: it tells them that they are too old."""

import importlib.util
import os
import sys

OLDEST = (3, 10)
PACKAGES = ("sqlalchemy", "psycopg2", "prometheus_client")
NOT_DONE = 3
"""The exit status of an audit that could not be done; Python's own 1 would mean "warning"."""


def require(program: str) -> None:
    """Start `program` again with the virtual environment beside it if this Python cannot run it.

    Without one that works, says so on one line and exits with status 3.
    """
    problem = _problem()
    if not problem:
        return
    folder = os.path.dirname(os.path.realpath(program))
    environment = os.path.join(folder, ".venv", "bin")
    python = os.path.join(environment, "python")
    if os.path.realpath(os.path.dirname(sys.executable)) == os.path.realpath(environment):
        give_up(f"{sys.executable} {problem}: run make clean venv in {folder}")
    if not os.path.lexists(os.path.join(folder, ".venv")):
        give_up(f"{sys.executable} {problem}: run make venv in {folder}")
    try:
        os.execv(python, [python, os.path.realpath(program)] + sys.argv[1:])  # noqa: RUF005, S606  # old syntax, no shell
    except OSError as error:  # a Python that is gone, in a home that this user may not enter, or under a umask of 077
        advice = f"run umask 022; make -C {folder} clean venv PYTHON=/usr/bin/python3, a Python that every user can run"
        give_up(f"this user cannot run {os.path.realpath(python)} ({error.strerror}): {advice}")


def _problem() -> str:
    if sys.version_info < OLDEST:
        return "is older than Python {}.{}".format(*OLDEST)
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    return f"lacks {', '.join(missing)}" if missing else ""


def give_up(message: str) -> None:
    """End the process with one line on stderr and exit status 3."""
    try:
        sys.stderr.write(f"backup_audit: {message}\n")
        sys.stderr.flush()
    finally:
        os._exit(NOT_DONE)
