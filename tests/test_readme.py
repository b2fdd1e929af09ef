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


def test_the_readme_shows_what_the_demo_prints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    demo = tmp_path / "demo"
    demo.mkdir()
    shutil.copy(TOP / "demo" / "mydb_config.py", demo)
    build.main([str(demo)], now=NOW)
    monkeypatch.chdir(tmp_path)

    def renewed(block: re.Match[str]) -> str:
        arguments, number, shown = block[1], int(block[2]), block[3]
        with redirect_stdout(io.TextIOWrapper(io.BytesIO(), encoding="utf-8")) as out:
            backup_audit.main(["--config", "demo/mydb_config.py", "--at", NOW.isoformat(), *arguments.split()])
        out.seek(0)
        lines = [line.rstrip() + "\n" for line in out]
        assert max(map(len, lines[:number])) <= 80 + len("\n")
        return block[0].replace(shown, "".join(lines[:number]) + LEFT_OUT * (number < len(lines)))

    assert len(OUTPUT.findall(TEXT)) == 4
    expected = OUTPUT.sub(renewed, TEXT)
    if os.environ.get("UPDATE_README"):
        README.write_text(expected, encoding="utf-8")
    else:
        assert expected == TEXT


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
