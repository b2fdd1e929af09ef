"""`mydb_config.example`: it loads as it stands, it shows every setting, and what it calls a default is one."""

from __future__ import annotations

import re
from pathlib import Path

from audit.settings import NAMES, Settings, check
from tests.builders import TOP

TEXT = (TOP / "mydb_config.example").read_text(encoding="utf-8")
ACTIVE = ("container_host", "prometheus_file", "pgpass_file")
"""The settings that an installation by the README has to have."""


def loaded(text: str) -> Settings:
    values: dict[str, object] = {}
    exec(text, values)  # noqa: S102  # the example is Python
    return check({name: value for name, value in values.items() if name in NAMES}, Path("/opt/backup_audit"))


def test_it_is_valid_as_it_stands_and_shows_every_setting_once_in_the_order_of_settings() -> None:
    assert loaded(TEXT).connection.display_name == "mydbadmin@db.example.org:32009/mydb_admin"
    assert re.findall(r"(?m)^(?:# )?([a-z_]+) = ", TEXT) == list(NAMES)
    assert re.findall(r"(?m)^([a-z_]+) = ", TEXT) == [name for name in NAMES if name in ACTIVE]


def test_what_it_calls_a_default_is_one() -> None:
    for name in NAMES:
        if name not in ACTIVE:
            uncommented, found = re.subn(rf"(?m)^# ({name} = )", r"\1", TEXT)
            assert (found, loaded(uncommented)) == (1, loaded(TEXT)), name


def test_what_it_suggests_is_accepted() -> None:
    for name, value in (
        ("libpq_options", r"\{'sslmode'.*?\}"),
        ("database_url", r"'sqlite:.*?'"),
        ("database_url", r"'postgresql:.*?'"),
        ("timezone", r"'America/.*?'"),
        ("policies", r"\{'Monthly'.*?\}"),
        ("extra_jobs", r"\{'offsite'.*?\}"),
        ("exceptions", r"\{'bookings'.*?\}"),
        ("success_patterns", r"\[r'\^Emulate.*?\]"),
    ):
        suggested = re.search(value, TEXT)
        assert suggested, value
        assert loaded(f"{TEXT}\n{name} = {suggested[0]}") != loaded(TEXT)
