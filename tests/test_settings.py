"""`mydb_config.py`: every mistake in it is named, with the setting, the value and what is accepted."""

from __future__ import annotations

import dataclasses
import os
import re
import warnings
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from audit.policy import UTC
from audit.settings import NAMES, Settings, SettingsError, check, load_settings
from tests.db4sci import SECRET

FOLDER = Path("/srv/audit")
REQUIRED = {"container_host": "db.example.org", "prometheus_file": "audit.prom"}


def checked(**values: Any) -> Settings:
    return check({**REQUIRED, **values}, FOLDER)


def refused(values: dict[str, Any]) -> SettingsError:
    with pytest.raises(SettingsError) as found:
        check(values, FOLDER)
    return found.value


# --- The file ------------------------------------------------------------------------------------------


def loaded(folder: Path, text: str | bytes) -> Settings:
    path = folder / "mydb_config.py"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_settings(path)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "nowhere.py"
    for place, problem in (
        (path, f"no configuration file {path}: cp mydb_config.example mydb_config.py and edit it, or name another"),
        (tmp_path, f"cannot read {tmp_path} (Is a directory): name a file"),
    ):
        with pytest.raises(SettingsError) as found:
            load_settings(place)
        assert found.value.problems[0].startswith(problem)
        assert found.value.textfile is None


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        (b"mydb_admin_port = = 5432", r", line 2 is not valid Python \("),
        (b"policies = {'Monthly': 744\nwindow_hours = 24\n", r", line 2 is not valid Python \("),
        (b"admin_user = '\xff'", r", line 2 is not valid Python \("),
        (b"admin_user = 'my\0dbadmin'", r"(, line 2)? is not valid Python \(source code .*null bytes"),
        (b"_x = 1\nadmin_user = mydbadmin", r", line 3 raised NameError \(name 'mydbadmin' is not defined\)"),
        (b"raise SystemExit(0)", r", line 2 raised SystemExit \(0\)"),
        (b"import json; json.loads('{')", r", line 2 raised JSONDecodeError \("),
    ],
)
def test_a_mistake_in_the_python_names_its_line(tmp_path: Path, lines: bytes, problem: str) -> None:
    with pytest.raises(SettingsError) as found:
        loaded(tmp_path, b"# settings\n" + lines + b"\n")
    (said,) = found.value.problems
    assert re.fullmatch(f"{re.escape(str(tmp_path))}/mydb_config.py{problem}.*: correct it", said)


def test_a_warning_of_python_is_no_mail_every_night(tmp_path: Path) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loaded(
            tmp_path,
            b"container_host = 'db'\nprometheus_file = 'a.prom'\nsuccess_patterns = ['^done \\S+', '[[]ok]', '[[a]x']",
        )
    assert caught == []


def test_what_is_imported_or_begins_with_an_underscore_is_not_a_setting(tmp_path: Path) -> None:
    helpers = """\
import os.path, socket
from socket import gethostname
from pathlib import Path
def half(hours): return hours / 2
_hours = 48
window_hours = half(_hours)
container_host, prometheus_file = gethostname(), Path('textfiles', 'audit.prom')
"""
    settings = loaded(tmp_path, helpers)
    assert settings.rules.window == timedelta(hours=24)
    assert settings.textfile.path == tmp_path / "textfiles" / "audit.prom", "it starts from the file's folder"
    assert settings.textfile.run_file == tmp_path / "textfiles" / "audit_run.prom"
    with pytest.raises(SettingsError) as found:
        loaded(tmp_path, helpers + "from os import environ; admin_user = half")
    environ, forgotten = sorted(found.value.problems, reverse=True)
    assert forgotten.startswith("admin_user = <function half at "), "its parentheses"
    end = "mydb_config.example lists all settings (begin the names of your own helpers with _)"
    assert environ == f"unknown setting environ: {end}"


# --- The values ----------------------------------------------------------------------------------------

TEXT, PATH = "expected a non-empty string", "expected the path of a file"
HOURS = "expected a number of hours from {} to 87600 (ten years)"
BAD_HOURS = [-0.5, "24", None, True, [], 87601, float("nan"), float("inf")]
BAD_NUMBERS = [-1, "10", 2.5, True, []]
DATED = "expected names or c_ids with last day and reason, such as {'sales': ('2026-12-31', 'ticket 4711')}"
PATTERNS = "expected a list of regular expressions, such as [r'^Emulate Docker CLI using podman']"
WEEKDAY = "expected a weekday: its English name, the first three letters, or 0 (Monday) to 6 (Sunday)"
ZONE = "expected the IANA name of a time zone that this machine knows"
BAD_ZONES = ["Mars/Phobos", "", 5, None, "Europe", "../UTC", "/etc/passwd", "UTC+25:00", [], "a\0"]
JOBS = "expected job names and policies, such as {'offsite': 'Daily'}"
URL = "expected a URL such as postgresql://user@host:5432/name or sqlite:////folder/file.db"
BAD_PATTERNS: dict[str, list[Any]] = {
    PATTERNS: [5, None, "^podman", [5], [""], [" "], {"x": 1}],
    "expected regular expressions of Python, not '(' (": [["fine", "("]],
}
BAD: dict[str, dict[str, list[Any]]] = {
    "container_host": {TEXT: [5, "", " ", None, ["db"], b"db"]},
    "prometheus_file": {
        "ends in .prom: node_exporter reads no other files": ["/t/audit.txt", "/t/audit", "/t/.prom", "/t/audit.PROM"],
        PATH: [5, "", " ", None, ["audit.prom"], True, "~nosuchuser/audit.prom", "a\0.prom"],
    },
    "mydb_admin_port": {"expected a port number from 1 to 65535": [0, 65536, *BAD_NUMBERS[2:], None, "x", "-1", "٣٢"]},
    "admindb_name": {TEXT: [5, "", " ", None, [], "a\0b"]},
    "admin_user": {TEXT: [5, "", " ", None, []]},
    "pgpass_file": {PATH: [5, "", " ", [], False, "a\0b"], "its ~user does not exist here": ["~nosuchuser/x"]},
    "libpq_options": {
        "such as {'sslmode': 'verify-full'}": [5, "sslmode", None, {5: "x"}, {"": "x"}, {"sslmode": None}],
        "no password here: put it into the password file (pgpass_file)": [{"password": SECRET}],
    },
    "database_url": {
        URL: [
            5, "", "sales", "sqlite:admin.db", "sqlite://admin.db", "sqlite://", f"postgresql:/root:{SECRET}@db/x",
            f"mysql+pymysql://root:{SECRET}@db/x", [SECRET],
            *(f"postgresql://root:{SECRET}@{host}/x" for host in (f"db:{SECRET}@x", "db:port", "[::1", "db:5432:5432")),
        ],
        "write an @ of the password as %40": [f"postgresql://root:p@{SECRET}@db/x"],
    },
    "connect_timeout": {"expected a whole number of seconds from 1 to 3600": [0, 3601, None, *BAD_NUMBERS]},
    "query_timeout": {"expected a whole number of seconds from 1 to 86400": [0, 86401, None, *BAD_NUMBERS]},
    "site": {TEXT: [5, "", " ", True], "expected text that UTF-8 can hold": ["Z\udcfcrich"]},
    "textfile_mode": {"expected file permissions such as 0o644": ["0644", 644, 0, -1, 128, True, None, 420.0]},
    "timezone": {ZONE: BAD_ZONES},
    "db_timezone": {ZONE: BAD_ZONES},
    "weekly_day": {WEEKDAY: ["Caturday", "Sa", 7, -1, "7", "-1", 5.0, True, None, "", ["Sat"]]},
    "window_hours": {HOURS.format(0.01): [0, *BAD_HOURS]},
    "grace_hours": {HOURS.format(0): BAD_HOURS},
    "max_runtime_hours": {HOURS.format(0.01): [0, *BAD_HOURS]},
    "policies": {
        "such as {'Monthly': 744}": [5, [], None, "x", {"x": "744"}, {"x": 0}, {"x": None}, {5: 744}, {" ": 744}],
        "is built in and cannot be changed": [{"Daily": 24}, {" weekly": 24}, {"never": 24}, {"NONE": 24}],
    },
    "extra_jobs": {
        JOBS: [5, None, "offsite", ["offsite"], {"offsite": 5}, {"offsite": ""}, {"": "Daily"}, {"\udcfc": "Daily"}],
        "expected Daily, Weekly or a name from policies": [{"offsite": "Fortnightly"}, {"offsite": "Never"}],
    },
    "dumps_kept_days": {"expected a whole number of days from 1 to 36500": [0, 36501, *BAD_NUMBERS]},
    "exceptions": {
        DATED: [
            5, None, [], {"x": "2026-12-31"}, {True: ("2026-12-31", "y")}, {1.5: ("2026-12-31", "y")},
            {"x": ("2026-12-31",)}, {"x": ("soon", "y")}, {"x": (None, "y")}, {"x": ("2026-12-31", "")},
            {"x": ("2026-12-31", 5)}, {"x": ("9999-12-31", "y")}, {"x": (datetime(2026, 12, 31), "y")},
        ]
    },
    "error_patterns": BAD_PATTERNS,
    "success_patterns": BAD_PATTERNS,
    "allow_empty": {"expected True or False": ["yes", 1, 0, None]},
    "history_days": {"expected a whole number of days from 0 to 3660": [3661, None, *BAD_NUMBERS]},
    "legacy_metrics": {"expected True or False": ["yes", 1, 0, None]},
}  # fmt: skip
"""For each setting what it accepts, and values that it does not."""


@pytest.mark.parametrize("setting", NAMES)
def test_a_bad_value_is_shown_with_what_is_accepted(setting: str) -> None:
    for accepted, values in BAD[setting].items():
        for value in values:
            (said,) = refused({**REQUIRED, setting: value}).problems
            text = "..." if setting in ("libpq_options", "database_url") else repr(value)
            shown = text if len(text) <= 60 else f"{text[:57]}..."
            job = f"{setting} = {value!r} is not accepted: "  # of one job of several
            assert said.startswith((f"{setting} = {shown} is not accepted: ", job))
            assert accepted in said, value
            assert SECRET not in said


def test_every_problem_is_reported_at_once_with_the_textfile_of_the_site() -> None:
    first = {setting: next(iter(kinds.values()))[0] for setting, kinds in BAD.items()}
    valid = {"prometheus_file": "audit.prom", "site": "north", "textfile_mode": 0o600}
    error = refused({**first, **valid, "grace_hour": 6})
    told = [problem.partition(" = ")[0] for problem in error.problems]
    assert sorted(told[:-1]) == sorted(set(first) - set(valid))
    (only,) = refused({**REQUIRED, "policies": {"Monthly": "744"}, "extra_jobs": {"offsite": "Monthly"}}).problems
    assert only.startswith("policies = "), "nothing follows from it"
    assert told[-1].startswith("unknown setting grace_hour: did you mean grace_hours?")
    assert error.textfile
    assert dataclasses.astuple(error.textfile) == (FOLDER / "audit.prom", 0o600, "north")


def test_required_settings_and_those_of_the_original_that_have_no_effect() -> None:
    """Defaults: `tests/test_example_config.py`."""
    missing = [problem.partition(" is missing: ")[0] for problem in refused({}).problems]
    assert missing == ["container_host", "prometheus_file"]
    assert [problem[:15] for problem in refused({"database_url": "sqlite:///x"}).problems] == ["prometheus_file"]
    assert checked(FQDN_host="db.example.org", container_ip="192.0.2.17") == checked()


@pytest.mark.parametrize("setting", NAMES)
def test_a_misspelt_setting_gets_a_hint(setting: str) -> None:
    camel = "".join(word.title() for word in setting.split("_"))
    swapped = setting[:2] + setting[3] + setting[2] + setting[4:]
    for misspelt in {swapped, setting.upper(), camel, f"{setting}s", setting.removesuffix("s")} - {setting}:
        (said,) = refused({**REQUIRED, misspelt: 5}).problems
        assert said.startswith(f"unknown setting {misspelt}: did you mean {setting}?"), misspelt


# --- What they become ----------------------------------------------------------------------------------


def test_values_at_the_bounds_become_rules() -> None:
    rules = checked(window_hours=0.01, grace_hours=0, max_runtime_hours=87600, dumps_kept_days=36500).rules
    assert (rules.window, rules.grace) == (timedelta(seconds=36), timedelta(0))
    assert (rules.max_runtime, rules.dumps_kept) == (timedelta(hours=87600), timedelta(days=36500))
    for day, number in {"saturday": 5, "SUN": 6, " Mon ": 0, 0: 0, 6: 6, "6": 6}.items():
        assert checked(weekly_day=day).rules.weekly_day == number
    settings = checked(policies={" Monthly ": 744}, extra_jobs={"offsite": " monthly "})
    assert settings.rules.policies == {"Monthly": timedelta(hours=744)}
    assert settings.extra_jobs == {"offsite": "monthly"}
    assert [checked(history_days=days).history_days for days in (0, 3660)] == [0, 3660]
    assert [checked(textfile_mode=mode).textfile.mode for mode in (0o400, 0o777)] == [0o400, 0o777]
    waits = checked(connect_timeout=3600, query_timeout=86400).connection
    assert (waits.connect_timeout, waits.query_timeout) == (3600, 86400)


def test_the_zone_of_the_host_and_that_of_the_log() -> None:
    settings = checked(timezone="America/Chicago", exceptions={" sales ": ("2026-03-07", " frozen ")})
    assert (settings.rules.zone, settings.db_timezone) == (ZoneInfo("America/Chicago"), UTC)
    exception = settings.exceptions["sales"]
    assert (exception.until, exception.reason) == (date(2026, 3, 7), "frozen")
    assert exception.ends == datetime(2026, 3, 8, 6, tzinfo=UTC), "the midnight of Chicago, before its clocks change"
    settings = checked(timezone=" utc ", db_timezone="Europe/Berlin", exceptions={7: (date(2026, 3, 7), "frozen")})
    assert (settings.rules.zone, settings.db_timezone) == (UTC, ZoneInfo("Europe/Berlin"))
    assert settings.exceptions[7].ends == datetime(2026, 3, 8, tzinfo=UTC)


def test_patterns_are_taken_as_they_are() -> None:
    patterns = checked(error_patterns=[r" lost$", "(?i)tape"], success_patterns=(r"^done ",)).patterns
    assert [pattern.pattern for pattern in patterns.errors] == [" lost$", "(?i)tape"]
    assert [pattern.pattern for pattern in patterns.successes] == ["^done "]


@pytest.mark.parametrize(
    ("values", "name", "needs_password"),
    [
        ({"mydb_admin_port": " 5432 ", "admin_user": "u"}, "u@db.example.org:5432/mydb_admin", True),
        ({"container_host": "a,b", "admindb_name": "x"}, "mydbadmin@a,b:32009/x", True),
        ({"database_url": f"postgres://u:{SECRET}@db/x"}, "u@db:5432/x", False),
        ({"database_url": f"postgresql://u@db:1/x?password={SECRET}"}, "u@db:1/x", False),
        ({"database_url": "postgresql+psycopg2://db"}, "db:5432", True),
        ({"database_url": "postgresql://u@/x?host=a:1&host=b:2"}, "u@a:1,b:2/x", True),
        ({"database_url": "postgresql:///x?host=/run/postgresql"}, "/run/postgresql/x", True),
        ({"database_url": "postgresql://?service=db4sci"}, "service db4sci", True),
        ({"database_url": "sqlite:////srv/admin.db"}, "/srv/admin.db", False),
    ],
)
def test_the_connection_is_named_without_its_password(values: dict[str, Any], name: str, needs_password: bool) -> None:
    for options in ({}, {"sslmode": "require", "application_name": "x"}):
        connection = checked(**values, pgpass_file="/etc/pgpass", libpq_options=options).connection
        assert (connection.display_name, connection.from_url) == (name, "database_url" in values)
        assert connection.password_file == (Path("/etc/pgpass") if needs_password else None)
        passfile = {"passfile": "/etc/pgpass"} if needs_password else {}
        assert connection.libpq == {"application_name": "backup_audit", **options, **passfile}


def test_the_password_file_is_that_of_libpq_if_no_other_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert checked(pgpass_file="~/x").connection.password_file == Path(os.environ["HOME"], "x")
    assert checked().connection.password_file == Path(os.environ["HOME"], ".pgpass")
    with monkeypatch.context() as without_home:
        without_home.delenv("HOME")
        without_home.setattr(os, "getuid", lambda: 54321)
        assert checked().connection.password_file == Path("~/.pgpass"), "where it is not found"
    monkeypatch.setenv("PGPASSFILE", "/etc/other")
    assert checked(pgpass_file=None).connection.password_file == Path("/etc/other")
    named = checked(pgpass_file="/x", libpq_options={"passfile": "/y"}).connection
    assert (named.password_file, named.libpq["passfile"]) == (Path("/y"), "/y")
