"""What the README shows is what happens. `UPDATE_README=1 pytest tests/test_readme.py` renews its output."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

import backup_audit
from audit import metrics
from audit import settings as settings_module
from audit.findings import Audit
from audit.policy import Rules, Status
from audit.settings import Settings
from demo import build
from tests.builders import NOW, TOP
from tests.postgres import Server

README = TOP / "README.md"
TEXT = README.read_text(encoding="utf-8")
OUTPUT = re.compile(r"<!-- demo:(.*?) -->\n```text\n(.*?)```", re.DOTALL)


@pytest.fixture
def demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The demo as `make demo` builds it, at a fixed moment, in the present folder."""
    folder = tmp_path / "demo"
    folder.mkdir()
    shutil.copy(TOP / "demo" / "mydb_config.py", folder)
    with contextlib.redirect_stdout(io.StringIO()):
        build.main([str(folder)], now=NOW)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="utf-8"))
    return folder


def run(demo: Path, arguments: str) -> str:
    """What backup_audit.py prints about the demo."""
    config = demo.relative_to(Path.cwd()) / "mydb_config.py"
    backup_audit.main(["--config", str(config), "--at", NOW.isoformat(), *arguments.split()])
    sys.stdout.seek(0)
    printed = sys.stdout.read().replace(str(backup_audit.PROGRAM), "./backup_audit.py")
    return "\n".join(line.rstrip() for line in printed.splitlines()) + "\n"


@pytest.mark.parametrize("arguments", [match[0] for match in OUTPUT.findall(TEXT)])
def test_the_readme_shows_what_the_demo_prints(demo: Path, arguments: str) -> None:
    printed = run(demo, arguments)
    if os.environ.get("UPDATE_README"):
        block = f"<!-- demo:{arguments} -->\n```text\n{printed}```"
        text = README.read_text(encoding="utf-8")
        renewed = OUTPUT.sub(lambda match: block if match[1] == arguments else match[0], text)
        README.write_text(renewed, encoding="utf-8")
    shown = {match[0]: match[1] for match in OUTPUT.findall(README.read_text(encoding="utf-8"))}
    assert printed == shown[arguments]
    assert max(map(len, printed.splitlines())) <= 80


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_the_template_runs_on_its_own(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    code = re.search(r"<!-- run -->\n```python\n(.*?)```", TEXT, re.DOTALL)
    assert code
    url = f"sqlite:///{tmp_path / 'mine.db'}"
    if kind == "postgresql":
        server: Server = request.getfixturevalue("postgres")
        database = server.create_database()
        password = server.passwords[str(database.engine.url.username)]
        url = database.engine.url.set(password=password).render_as_string(hide_password=False)
        request.addfinalizer(database.drop)
    for name in ("admin_db.py", "models.py"):
        shutil.copy(TOP / name, tmp_path)
    (tmp_path / "mine.py").write_text(f"url = {url!r}\n{code[1]}", encoding="utf-8")
    command = [sys.executable, "-W", "error", "mine.py"]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, encoding="utf-8", check=False, timeout=60)
    assert (ran.stdout, ran.stderr) == ("sales was running\nstate changed from running to maintenance\n", "")


def test_every_setting_status_and_metric_is_in_its_table() -> None:
    rows = set(re.findall(r"^\| `(\w+)(?:\{.*?\})?`", TEXT, re.MULTILINE))
    families = [
        *metrics.audit_families(Audit(NOW, "", Rules(), (), newest_row=NOW)),
        *metrics.run_families(True, 0, 0, 0.0, "1"),
    ]
    wanted = {field.name for field in fields(Settings)}
    wanted |= {status.value for status in Status}
    wanted |= {metric.name for metric in metrics.PER_CONTAINER} | {family.name for family in families}
    assert wanted - rows == set()


def test_every_default_in_the_readme_is_the_default() -> None:
    shown = dict(re.findall(r"^\| `(\w+)` \| `(.*?)` \|", TEXT, re.MULTILINE))
    settings = {field.name: field for field in fields(Settings)}
    defaults = {name: eval(text) for name, text in shown.items() if name in settings}  # noqa: S307  # our own page
    assert len(defaults) > 15
    for name, default in defaults.items():
        required = {"container_host": "x", "prometheus_file": "/x.prom"}
        checked = settings_module.check({**required, name: default}, TOP)
        unset = settings_module.check(required, TOP)
        assert getattr(checked, name) == getattr(unset, name), name


def test_every_file_that_the_readme_links_to_exists() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", TEXT):
        assert (TOP / target).exists(), target
