"""What the README shows is what happens. `UPDATE_README=1 pytest tests/test_readme.py` renews its output."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import sys
from dataclasses import fields
from pathlib import Path

import pytest

import backup_audit
import metrics
import settings as settings_module
from demo import build
from policy import Audit, Rules, Status
from settings import Settings
from tests.builders import NOW, TOP
from tests.postgres import Server

README = TOP / "README.md"
TEXT = README.read_text(encoding="utf-8")
OUTPUT = re.compile(r"<!-- demo: (.*?) -->\n```text\n(.*?)```", re.DOTALL)


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
    backup_audit.main(["--config", str(demo / "mydb_config.py"), "--at", NOW.isoformat(), *arguments.split()])
    sys.stdout.seek(0)
    return "\n".join(line.rstrip() for line in sys.stdout.read().splitlines()) + "\n"


@pytest.mark.parametrize("arguments", [match[0] for match in OUTPUT.findall(TEXT)])
def test_the_readme_shows_what_the_demo_prints(demo: Path, arguments: str) -> None:
    printed = run(demo, arguments)
    if os.environ.get("UPDATE_README"):
        block = f"<!-- demo: {arguments} -->\n```text\n{printed}```"
        text = README.read_text(encoding="utf-8")
        renewed = OUTPUT.sub(lambda match: block if match[1] == arguments else match[0], text)
        README.write_text(renewed, encoding="utf-8")
    shown = {match[0]: match[1] for match in OUTPUT.findall(README.read_text(encoding="utf-8"))}
    assert printed == shown[arguments]
    assert max(map(len, printed.splitlines())) <= 80


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_the_template_runs(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    code = re.search(r"<!-- run -->\n```python\n(.*?)```", TEXT, re.DOTALL)
    assert code
    url = f"sqlite:///{tmp_path / 'mine.db'}"
    if kind == "postgresql":
        server: Server = request.getfixturevalue("postgres")
        database = server.create_database()
        password = server.passwords[str(database.engine.url.username)]
        url = database.engine.url.set(password=password).render_as_string(hide_password=False)
        request.addfinalizer(database.drop)
    names = {"url": url}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code[1], names)  # noqa: S102  # our own page
    names["engine"].dispose()  # type: ignore[attr-defined]
    assert printed.getvalue() == "sales was running\nstate changed from running to maintenance by ada\n"


def test_every_setting_status_and_metric_is_in_its_table() -> None:
    rows = set(re.findall(r"^\| `(\w+)(?:\{.*?\})?`", TEXT, re.MULTILINE))
    families = [
        *metrics.container_families([], Rules()),
        *metrics.audit_families(Audit(NOW, [], newest_row=NOW)),
        *metrics.run_families(True, 0, 0, 0.0, "1"),
    ]
    wanted = {field.name for field in fields(Settings)}
    wanted |= {status.value for status in Status}
    wanted |= {metric.name for metric in (*metrics.PER_CONTAINER, *metrics.FROM_PAST)} | {
        family.name for family in families
    }
    assert wanted - rows == set()


def test_every_default_in_the_readme_is_the_default() -> None:
    shown = dict(re.findall(r"^\| `(\w+)` \| `(.*?)` \|", TEXT, re.MULTILINE))
    settings = {field.name: field for field in fields(Settings)}
    defaults = {name: eval(text) for name, text in shown.items() if name in settings}  # noqa: S307  # our own page
    assert len(defaults) > 15
    for name, default in defaults.items():
        checked = settings_module.check({"container_host": "x", "prometheus_file": "/x.prom", name: default})
        unset = settings_module.check({"container_host": "x", "prometheus_file": "/x.prom"})
        assert getattr(checked, name) == getattr(unset, name), name


def test_every_file_that_the_readme_links_to_exists() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", TEXT):
        assert (TOP / target).exists(), target
