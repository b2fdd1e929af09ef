"""The Python that runs the program. Written for old versions as well, which have to be told that they are too old."""

import importlib.util
import os
import sys

OLDEST = (3, 10)
PACKAGES = ("sqlalchemy", "psycopg2", "prometheus_client")
NOT_DONE = 3
"""The exit status of an audit that could not be done; Python's own 1 would mean "warning"."""


def require(program: str) -> None:
    """Start `program` again with the virtual environment beside it if this Python cannot run it.

    Without one, says so on one line and exits with status 3.
    """
    problem = _problem()
    if not problem:
        return
    folder = os.path.dirname(os.path.realpath(program))
    environment = os.path.join(folder, ".venv", "bin")
    python = os.path.join(environment, "python")
    runs_it = os.path.realpath(os.path.dirname(sys.executable)) == os.path.realpath(environment)
    if runs_it or not os.access(python, os.X_OK):
        give_up(f"{sys.executable} {problem}: run make {'clean ' if runs_it else ''}venv in {folder}")
    arguments = [python, os.path.realpath(program)] + sys.argv[1:]  # noqa: RUF005  # old syntax
    try:
        os.execv(python, arguments)  # noqa: S606  # no shell
    except OSError as error:
        give_up(f"cannot run {python} ({error.strerror}): run make clean venv in {folder}")


def _problem() -> str:
    if sys.version_info < OLDEST:
        return "is older than Python {}.{}".format(*OLDEST)
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    return f"lacks {', '.join(missing)}" if missing else ""


def give_up(message: str) -> None:
    """End the process with one line on stderr and exit status 3, whatever state it is in."""
    try:
        os.write(2, f"backup_audit: {message}\n".encode(errors="backslashreplace"))
    finally:
        os._exit(NOT_DONE)
