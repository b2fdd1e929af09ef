"""`mydb_config.example`: it loads as it stands, it shows every setting, and what it calls a default is one."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from audit import settings
from audit.settings import Settings
from tests.builders import TOP

EXAMPLE = TOP / "mydb_config.example"
TEXT = EXAMPLE.read_text(encoding="utf-8")
NAMES = [field.name for field in fields(Settings)]
REQUIRED = ("container_host", "prometheus_file")
OPTIONAL = [name for name in NAMES if name not in REQUIRED]

ORIGINAL = """\
container_host = 'db.example.org'
FQDN_host = 'db.example.org'
container_ip = '192.0.2.17'
mydb_admin_port = '32010'
prometheus_file = '/var/lib/prometheus/node-exporter/mydb_backups.prom'
admindb_name = 'mydb_admin'
admin_user = 'mydbadmin'
"""
"""A configuration file of the original Backup Audit: its seven settings, the port as text."""


def load(folder: Path, text: str) -> Settings:
    path = folder / "mydb_config.py"
    path.write_text(text, encoding="utf-8")
    return settings.load(path)


def uncommented(name: str) -> str:
    """The example with the default of one setting uncommented, and the import that it may need."""
    text, found = re.subn(rf"(?m)^# ({name} = )", r"\1", TEXT)
    assert found == 1, f"{name} is shown {found} times"
    return text.replace("# from audit import", "from audit import")


def test_the_example_is_valid_as_it_stands(tmp_path: Path) -> None:
    loaded = load(tmp_path, TEXT)
    assert loaded == Settings("db.example.org", Path("/var/lib/prometheus/node-exporter/backup_audit.prom"))


@pytest.mark.parametrize("name", REQUIRED)
def test_required_settings_stand_uncommented(name: str) -> None:
    assert re.search(rf"(?m)^{name} = ", TEXT)


def test_the_example_shows_every_setting_once_in_the_order_of_settings() -> None:
    assert re.findall(r"(?m)^(?:# )?([a-z_]+) = ", TEXT) == NAMES


@pytest.mark.parametrize("name", OPTIONAL)
def test_a_default_in_the_example_is_the_default(name: str, tmp_path: Path) -> None:
    assert getattr(load(tmp_path, uncommented(name)), name) == getattr(load(tmp_path, TEXT), name)


def test_all_defaults_can_be_uncommented_together(tmp_path: Path) -> None:
    text = re.sub(r"(?m)^# ([a-z_]+ = |from audit import)", r"\1", TEXT)
    assert load(tmp_path, text) == load(tmp_path, TEXT)


def test_the_hint_on_extending_error_pattern_works(tmp_path: Path) -> None:
    hint = re.search(r"messages.DEFAULT_ERROR_PATTERN \+ r'.*?'", TEXT)
    assert hint
    text = re.sub(r"(?m)^(error_pattern = ).*$", lambda match: match[1] + hint[0], uncommented("error_pattern"))
    pattern = load(tmp_path, text).error_pattern
    assert pattern.search("tape drive is offline")
    assert pattern.search("pg_dump: error: query failed: ERROR:  permission denied for table visits")
    assert not pattern.search("the tape drive is online")


def test_lines_fit_a_screen() -> None:
    assert max(len(line) for line in TEXT.splitlines()) <= 120


def test_a_file_of_the_original_loads_unchanged(tmp_path: Path) -> None:
    loaded = load(tmp_path, ORIGINAL)
    textfile = Path("/var/lib/prometheus/node-exporter/mydb_backups.prom")
    assert loaded == Settings("db.example.org", textfile, mydb_admin_port=32010)
