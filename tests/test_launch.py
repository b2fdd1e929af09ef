"""The Python that runs the program, what it imports, and installations that are broken."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from audit.launch import OLDEST, PACKAGES
from audit.options import VERSION
from tests.builders import TOP, Result, Site, unprivileged
from tests.failed_audits import assert_complaint, publish_good_audit

PROGRAM = TOP / "backup_audit.py"
BARE = (sys.executable, "-S", "-E")
"""This Python without its packages."""


def run(*words: str | Path, **options: Any) -> Result:
    command = [str(word) for word in words]
    return Result.of(subprocess.run(command, capture_output=True, encoding="utf-8", check=False, timeout=60, **options))


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the program in a folder of its own, without a virtual environment; returns the script."""
    folder = tmp_path / "opt"
    shutil.copytree(TOP / "audit", folder / "audit", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("backup_audit.py", "admin_db.py", "models.py"):
        shutil.copy(TOP / name, folder)
    return folder / "backup_audit.py"


def make_environment(copy: Path) -> Path:
    """A stand-in for a virtual environment beside the program: its Python shows its arguments first."""
    path = copy.parent / ".venv" / "bin" / "python"
    path.parent.mkdir(parents=True)
    path.write_text(f'#!/bin/sh\nprintf "<%s>" "$@"; exec "{sys.executable}" "$@"\n', encoding="utf-8")
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
    lacks = f"{sys.executable} lacks {', '.join(PACKAGES)}: run make venv in {copy.parent}\n"
    assert_broken(run(*BARE, copy, *words), lacks)
    make_environment(copy)
    link = tmp_path / "link"
    link.symlink_to(copy)
    result, expected = run(*BARE, link, *words, cwd="/"), run(sys.executable, PROGRAM, *words)
    assert result.out == "".join(f"<{word}>" for word in (copy, *words)), "every argument arrives as it was"
    assert (result.status, result.err) == (expected.status, expected.err)


def test_an_environment_that_lacks_the_packages_or_that_this_user_cannot_run(copy: Path) -> None:
    python, home = make_environment(copy), copy.parent / "home"
    python.unlink()
    python.symlink_to(sys.executable)
    assert_broken(run(python, *BARE[1:], copy), f"{python} lacks ", f": run make clean venv in {copy.parent}\n")
    python.unlink()
    python.symlink_to(home / "python3")
    advice = f"umask 022; make -C {copy.parent} clean venv PYTHON=/usr/bin/python3, a Python that every user can run"
    problem = f"backup_audit: this user cannot run {home}/python3 ({{}}): run {advice}\n"
    assert_broken(run(*BARE, copy), problem.format("No such file or directory"))
    home.mkdir(mode=0)
    closed = run(*BARE, copy, **unprivileged())
    home.rmdir()
    assert_broken(closed, problem.format("Permission denied"))


def old_pythons() -> list[Path]:
    """The interpreters of this machine that are too old."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path(pwd.getpwuid(os.getuid()).pw_dir, ".pyenv"))
    found = list(Path("/usr/bin").glob("python3.?"))
    if os.access(pyenv / "versions", os.R_OK | os.X_OK):  # else it is another user's
        found += pyenv.glob("versions/3.*/bin/python3.?")
    return sorted({path.name: path for path in found if int(path.name.rpartition(".")[2]) < OLDEST[1]}.values())


def test_a_python_that_is_too_old(copy: Path) -> None:
    pythons = old_pythons()
    if not pythons:
        pytest.skip("no old Python on this machine")
    for python in pythons:
        assert_broken(run(python, copy, "--version"), f"is older than Python 3.10: run make venv in {copy.parent}\n")
    make_environment(copy)
    assert run(pythons[0], copy, "--version") == Result(0, f"<{copy}><--version>Backup Audit {VERSION}\n", "")


def test_the_script_is_started_by_its_name_from_any_folder_and_has_its_configuration_beside_it(copy: Path) -> None:
    path = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    assert_broken(run(copy, cwd="/", env=path), f"no configuration file {copy.with_name('mydb_config.py')}: cp ")


# --- Its imports ---------------------------------------------------------------------------------------

_JOBS = """\
import json, runpy, sys
program, *jobs = sys.argv[1:]
for job in jobs:
    sys.argv = [program, *json.loads(job)]
    try:
        runpy.run_path(program, run_name="__main__")
    except SystemExit:
        print(json.dumps(sorted(sys.modules)), file=sys.stderr)
"""
"""Runs the program several times in one process; after each, it lists on stderr what is imported."""


def test_a_job_imports_what_is_its_own(sqlite_site: Site) -> None:
    publish_good_audit(sqlite_site)
    config = ["--config", str(sqlite_site.folder / "mydb_config.py")]
    jobs = (["--version"], [*config, "-q"], [*config, "--history", "30", "--csv"])
    said = run(sys.executable, "-c", _JOBS, PROGRAM, *map(json.dumps, jobs), cwd=TOP).err
    version, audit, history = (set(json.loads(line)) for line in said.splitlines())
    assert "audit.options" in version
    assert version & {*PACKAGES, "admin_db", "audit.settings", "audit.metrics"} == set(), "no large import"
    assert {*PACKAGES, "audit.metrics"} <= audit
    reports = [{name for name in found if name.startswith("audit.reports.")} for found in (audit, history)]
    assert reports == [set(), {"audit.reports.history_csv"}]
    assert "audit.check_config" not in history


# --- Broken installations ------------------------------------------------------------------------------


def test_a_broken_installation_never_looks_like_a_verdict(copy: Path) -> None:
    (copy.parent / "sqlalchemy.py").write_text("import no_such_library", encoding="utf-8")
    broken = "the installation is broken ("
    assert_broken(run(sys.executable, copy), broken, "no_such_library")
    (copy.parent / "audit" / "launch.py").write_text("import os\ndef require(", encoding="utf-8")
    assert_broken(run(sys.executable, copy), broken, "'(' was never closed")
    shutil.rmtree(copy.parent / "audit")
    assert_broken(run(sys.executable, copy), broken, "'audit'")
