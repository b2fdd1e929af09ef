"""The Python that runs the program, what it imports, and installations that are broken."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from audit.launch import OLDEST, PACKAGES
from audit.options import VERSION
from tests.builders import TOP, Result, Site
from tests.failures import as_result, assert_complaint, published, unprivileged

PROGRAM = TOP / "backup_audit.py"
BARE = (sys.executable, "-S", "-E")
"""This Python without its packages."""


def run(*words: str | Path, **options: Any) -> Result:
    command = [str(word) for word in words]
    return as_result(subprocess.run(command, capture_output=True, encoding="utf-8", check=False, timeout=60, **options))


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the program in a folder of its own, without a virtual environment; returns the script."""
    folder = tmp_path / "opt"
    shutil.copytree(TOP / "audit", folder / "audit", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("backup_audit.py", "admin_db.py", "models.py"):
        shutil.copy(TOP / name, folder)
    return folder / "backup_audit.py"


def make_environment(copy: Path, python: str = f'exec "{sys.executable}" "$@"') -> Path:
    """A stand-in for a virtual environment beside the program, whose Python is a shell script."""
    path = copy.parent / ".venv" / "bin" / "python"
    path.parent.mkdir(parents=True)
    path.write_text(f"#!/bin/sh\n{python}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


def assert_broken(result: Result, *problems: str) -> None:
    assert (result.status, result.out) == (3, "")
    assert_complaint(result.err)
    for problem in problems:
        assert problem in result.err


# --- Its Python ----------------------------------------------------------------------------------------


def test_a_python_without_the_packages_finds_the_environment_beside_the_program(copy: Path, tmp_path: Path) -> None:
    words = ("--config", tmp_path / "missing.py", "--at", "2026-03-14 07:00", "a b*", "", "--csv")
    missing = run(*BARE, copy, *words)
    assert_broken(missing, f"{sys.executable} lacks {', '.join(PACKAGES)}: run make venv in {copy.parent}\n")
    make_environment(copy, f'printf \'<%s>\' "$@"; exec "{sys.executable}" "$@"')
    link = tmp_path / "link"
    link.symlink_to(copy)
    result, expected = run(*BARE, link, *words, cwd="/"), run(sys.executable, PROGRAM, *words)
    assert result.out == "".join(f"<{word}>" for word in (copy, *words)), "every argument arrives as it was"
    assert (result.status, result.err) == (expected.status, expected.err)


def test_an_environment_that_lacks_the_packages(copy: Path) -> None:
    python = make_environment(copy)
    python.unlink()
    python.symlink_to(Path(sys.executable).resolve())  # not an environment, and without packages
    result = run(*BARE, copy)
    if result.status != 3 or "lacks" not in result.err:
        pytest.skip("the Python beneath this environment has the packages")
    assert_broken(result, f"{python} lacks ", f": run make clean venv in {copy.parent}\n")


@pytest.mark.parametrize("how", ["its Python is gone", "its Python is closed", "its folder is closed"])
def test_an_environment_that_this_user_cannot_run(copy: Path, how: str) -> None:
    python = make_environment(copy)
    home = copy.parent / "home" / "python3"
    home.parent.mkdir()
    if how != "its Python is gone":
        shutil.copy(python, home)
    python.unlink()
    python.symlink_to(home)
    closed = {"its Python is closed": home.parent, "its folder is closed": copy.parent / ".venv"}.get(how)
    if closed:
        closed.chmod(0)
    try:
        result = run(*BARE, copy, **unprivileged())
    finally:
        if closed:
            closed.chmod(0o755)
    reason = "Permission denied" if closed else "No such file or directory"
    shown = python if how == "its folder is closed" else home
    advice = f"umask 022; make -C {copy.parent} clean venv PYTHON=/usr/bin/python3, a Python that every user can run"
    assert_broken(result, f"backup_audit: this user cannot run {shown} ({reason}): run {advice}\n")


def old_pythons() -> list[Path]:
    """The interpreters of this machine that are too old."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path(os.path.expanduser("~"), ".pyenv"))
    found = list(Path("/usr/bin").glob("python3.?"))
    if os.access(pyenv / "versions", os.R_OK | os.X_OK):  # else it is another user's
        found += pyenv.glob("versions/3.*/bin/python3.?")
    return sorted({path.name: path for path in found if int(path.name.rpartition(".")[2]) < OLDEST[1]}.values())


@pytest.mark.parametrize("python", old_pythons() or [None], ids=lambda path: path.name if path else "none")
def test_a_python_that_is_too_old(copy: Path, python: Path | None) -> None:
    if python is None:
        pytest.skip("no old Python on this machine")
    assert_broken(run(python, copy, "--version"), f"is older than Python 3.10: run make venv in {copy.parent}\n")
    make_environment(copy)
    assert run(python, copy, "--version") == Result(0, f"Backup Audit {VERSION}\n", "")


# --- Its imports ---------------------------------------------------------------------------------------


def imported(*words: str | Path) -> set[str]:
    """What Python imports to run the program with these words."""
    result = run(sys.executable, "-X", "importtime", PROGRAM, *words)
    return set(re.findall(r"^import time: .*\| +([\w.]+)$", result.err, re.MULTILINE))


@pytest.mark.parametrize("words", ["--version", "--csv"])
def test_what_needs_no_database_is_answered_before_the_large_imports(words: str) -> None:
    found = imported(words)
    assert "audit.options" in found
    assert found & {*PACKAGES, "admin_db", "audit.settings", "audit.metrics"} == set()


@pytest.mark.parametrize(
    ("words", "own"),
    [
        (["-q"], set()),
        (["--history", "30", "--csv"], {"audit.reports.history_csv"}),
    ],
    ids=str,
)
def test_a_job_imports_what_is_its_own(sqlite_site: Site, words: list[str], own: set[str]) -> None:
    published(sqlite_site)
    found = imported("--config", sqlite_site.folder / "mydb_config.py", *words)
    assert {name for name in found if name.startswith("audit.reports.") or name == "audit.check_config"} == own


# --- Broken installations ------------------------------------------------------------------------------

BREAKAGES = {
    "a package that cannot be imported": ("psycopg2/__init__.py", "import no_such_library", "no_such_library"),
    "a module that is missing": ("audit/log.py", None, "audit.log"),
    "a folder that is missing": ("audit", None, "audit"),
    "half a file": ("audit/launch.py", "import os\ndef require(", "'(' was never closed"),
}


@pytest.mark.parametrize("name", BREAKAGES)
def test_a_broken_installation_never_looks_like_a_verdict(copy: Path, name: str) -> None:
    place, content, problem = BREAKAGES[name]
    path = copy.parent / place
    if content is not None:
        path.parent.mkdir(exist_ok=True)
        path.write_text(content, encoding="utf-8")
    elif path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    assert_broken(run(sys.executable, copy), "the installation is broken (", problem)
