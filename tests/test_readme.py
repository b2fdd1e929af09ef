"""What the README shows is what happens. `UPDATE_README=1 pytest tests/test_readme.py` renews its output."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
from contextlib import redirect_stdout
from datetime import datetime
from pathlib import Path

import pytest

import backup_audit
from audit.policy import UTC
from demo import build
from tests.builders import TOP

NOW = datetime(2026, 3, 14, 14, 40, tzinfo=UTC)
"""The moment at which the demo that the README shows is built."""
README = TOP / "README.md"
TEXT = README.read_text(encoding="utf-8")
OUTPUT = re.compile(r"<!-- demo: (.*?)\| head -n (\d+) -->\n```text\n(.*?)```", re.DOTALL)
"""A command line, how many lines of its output are shown, and these."""
LEFT_OUT = "[...]\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that holds the demo as `make demo` builds it."""
    demo = tmp_path_factory.mktemp("readme") / "demo"
    demo.mkdir()
    shutil.copy(TOP / "demo" / "mydb_config.py", demo)
    with redirect_stdout(io.StringIO()):
        build.main([str(demo)], now=NOW)
    return demo.parent


def first_lines(arguments: str, number: int) -> str:
    """The first lines of what backup_audit.py prints about the demo in the present folder."""
    with redirect_stdout(io.TextIOWrapper(io.BytesIO(), encoding="utf-8")) as out:
        backup_audit.main(["--config", "demo/mydb_config.py", "--at", NOW.isoformat(), *arguments.split()])
    out.seek(0)
    lines = [line.rstrip() + "\n" for line in out]
    return "".join(lines[:number]) + LEFT_OUT * (number < len(lines))


@pytest.mark.parametrize(("arguments", "number"), [(found[0], int(found[1])) for found in OUTPUT.findall(TEXT)])
def test_the_readme_shows_what_the_demo_prints(
    arguments: str, number: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    printed = first_lines(arguments, number)
    if os.environ.get("UPDATE_README"):
        block = f"<!-- demo: {arguments}| head -n {number} -->\n```text\n{printed}```"
        text = README.read_text(encoding="utf-8")
        renewed = OUTPUT.sub(lambda match: block if match[1] == arguments else match[0], text)
        README.write_text(renewed, encoding="utf-8")
    shown = {found[0]: found[2] for found in OUTPUT.findall(README.read_text(encoding="utf-8"))}
    assert printed == shown[arguments]
    assert max(map(len, printed.splitlines())) <= 80


def test_the_template_runs_on_its_own(tmp_path: Path) -> None:
    code = re.search(r"<!-- run -->\n```python\n(.*?)```", TEXT, re.DOTALL)
    assert code
    for name in ("admin_db.py", "models.py"):
        shutil.copy(TOP / name, tmp_path)
    (tmp_path / "mine.py").write_text(f"url = 'sqlite:///mine.db'\n{code[1]}", encoding="utf-8")
    command = [sys.executable, "-W", "error", "mine.py"]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, encoding="utf-8", check=False, timeout=60)
    assert (ran.stdout, ran.stderr) == ("sales was running\n", "")


def test_the_files_that_decide_are_as_long_as_it_says() -> None:
    claims = re.findall(r"\((audit/\w+\.py)\) \((\d+) lines\)", TEXT)
    assert len(claims) == TEXT.count(" lines)") == 5
    for name, claim in claims:
        length = len((TOP / name).read_text(encoding="utf-8").splitlines())
        assert abs(length - int(claim)) <= length / 10, f"{name} has {length} lines"
