"""`mydb_config.py`: every mistake in it is named, with the setting, the value and what is accepted (SPEC section 3)."""

from __future__ import annotations

import ast
import os
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine

from audit.policy import UTC
from audit.printable import one_line
from audit.settings import Settings, SettingsError, check, load
from tests.builders import SECRET, Site, series
from tests.failures import SUCCESS, failure, unprivileged

SETTINGS = [field.name for field in fields(Settings)]


@pytest.fixture
def nowhere(tmp_path: Path) -> Site:
    """A site without a database, for failures that come before it is asked for anything."""
    return Site(create_engine("sqlite://"), {"database_url": f"sqlite:///{tmp_path / 'admin.db'}"}, tmp_path)


def add_to_config(site: Site, *lines: str) -> Path:
    """The configuration of a site, with further lines; the last assignment of a setting counts."""
    path = site.config()
    with path.open("a", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in lines)
    return path


def problems(site: Site, *lines: str) -> list[str]:
    """What is wrong with the configuration of a site with these further lines."""
    with pytest.raises(SettingsError) as found:
        load(add_to_config(site, *lines))
    return found.value.problems


# --- The file ------------------------------------------------------------------------------------------


def test_no_configuration_file(nowhere: Site) -> None:
    path = nowhere.folder / "nowhere.py"
    said = failure(nowhere, "--config", path, publishes=False)
    assert f"no configuration file {path}: cp mydb_config.example mydb_config.py and edit it, or " in said
    assert "--config" in said


def test_a_file_that_cannot_be_read(nowhere: Site) -> None:
    said = failure(nowhere, "--config", nowhere.folder, publishes=False)
    assert said == f"backup_audit: cannot read {nowhere.folder} (Is a directory): name a file\n"
    path = nowhere.folder / "closed" / "mydb_config.py"
    path.parent.mkdir()
    path.touch(0)
    for mode in (0o755, 0):  # of the folder: this user may not read the file, or not even find it
        path.parent.chmod(mode)
        audit = nowhere.process("--config", path, **unprivileged())
        checked = nowhere.process("--config", path, "--check-config", **unprivileged())
        path.parent.chmod(0o755)
        problem = f"cannot read {path} (Permission denied): let this user read it\n"
        assert (audit.returncode, audit.stdout, audit.stderr) == (3, "", f"backup_audit: {problem}")
        assert (checked.returncode, checked.stdout, checked.stderr) == (3, f"FAILED  settings: {problem}", "")


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("mydb_admin_port = = 5432", "line {} is not valid Python ("),
        ("weekly_day = 'Satur", "line {} is not valid Python ("),
        ("  grace_hours = 6", "line {} is not valid Python ("),
        ("policies = {'Monthly': 744\nwindow_hours = 24\n", "line {} is not valid Python ("),
        ("admin_user = '\udcff'", "line {} is not valid Python ("),  # not UTF-8
        ("window_hours = 24 / 0", "line {} raised ZeroDivisionError (division by zero)"),
        ("admin_user = mydbadmin", "line {} raised NameError (name 'mydbadmin' is not defined)"),
        ("import no_such_module_anywhere", "line {} raised ModuleNotFoundError (No module named"),
        ("admin_user = open('/nowhere/user').read()", "line {} raised FileNotFoundError (["),
        ("raise RuntimeError('two\\nlines')", "line {} raised RuntimeError (two lines)"),
        ("raise SystemExit(0)", "line {} raised SystemExit (0)"),
        ("import json; json.loads('{')", "line {} raised JSONDecodeError ("),
    ],
)
def test_a_mistake_in_the_python_names_its_line(nowhere: Site, line: str, problem: str) -> None:
    path = nowhere.config()
    path.write_bytes(path.read_bytes() + line.encode("utf-8", "surrogateescape") + b"\n")
    said = failure(nowhere, publishes=False)
    assert f"{path}, {problem.format(3)}" in said
    assert said.endswith("): correct it\n")


def test_an_exception_that_quotes_a_password(nowhere: Site) -> None:
    add_to_config(nowhere, f"_text = 'password={SECRET} is wrong'", "raise ValueError(_text)")
    assert "line 4 raised ValueError (password=***** is wrong): " in failure(nowhere, publishes=False)


def test_a_null_byte(nowhere: Site) -> None:
    path = nowhere.config()
    path.write_bytes(path.read_bytes() + b"admin_user = 'my\0dbadmin'\n")
    said = failure(nowhere, publishes=False)
    assert re.search(rf"{path}(, line \d+)? is not valid Python \(source code .* null bytes\): ", said)


def test_what_is_imported_or_begins_with_an_underscore_is_not_a_setting(nowhere: Site) -> None:
    path = add_to_config(
        nowhere,
        *("import os.path, socket", "from socket import gethostname", "from pathlib import Path"),
        *("def half(hours): return hours / 2", "_hours = 48", "window_hours = half(_hours)"),
        "container_host, admin_user = gethostname(), 'x'; prometheus_file = Path('audit.prom')",
    )
    assert load(path).window_hours == 24
    assert problems(nowhere, "from os import environ") == [
        "unknown setting environ: mydb_config.example lists all settings (begin the names of your own helpers with _)"
    ]
    forgotten = "from getpass import getuser; admin_user = getuser"  # its parentheses
    assert problems(nowhere, forgotten)[0].startswith("admin_user = <function getuser at ")


def test_a_relative_textfile_starts_from_the_folder_of_the_configuration(sqlite_site: Site) -> None:
    sqlite_site.container()
    path = sqlite_site.config(prometheus_file="textfiles/backup_audit.prom")
    for config, cwd in ((path, "/"), (path.name, path.parent), (f"../{path.name}", sqlite_site.textfile.parent)):
        assert sqlite_site.process("--config", config, "-q", cwd=cwd).returncode == 2
        assert sqlite_site.samples()[series("mydb_backup_containers", status="missed")] == 1
        assert sqlite_site.samples(sqlite_site.runfile)[SUCCESS] == 1
        sqlite_site.textfile.unlink()


# --- The values ----------------------------------------------------------------------------------------

TEXT = "expected a non-empty string"
PATH = "expected the path of a file"
HOURS = "expected a number of hours from {} to 87600 (ten years)"
BAD_HOURS = "-0.5 | '24' | None | True | [] | 87601 | float('nan') | float('inf')"
BAD_SECONDS = "0 | -1 | 86401 | '10' | 2.5 | True | None"
PATTERN = {"expected a Python regular expression (": "'(' | '[a-' | '*' | '(?P<x'", TEXT: "5 | None | ''"}
FLAG = {"expected True or False": "'yes' | 1 | 0 | None"}

BAD_VALUES: dict[str, dict[str, str]] = {
    "container_host": {TEXT: "5 | '' | ' ' | None | ['db'] | b'db'"},
    "prometheus_file": {
        "expected a path that ends in .prom: node_exporter reads no other files": (
            "'/tmp/audit.txt' | '/tmp/audit' | '/tmp/audit.prom.tmp' | '/tmp/.prom' | '/tmp/audit.PROM'"
        ),
        PATH: "5 | '' | ' ' | None | ['audit.prom'] | True | '~nosuchuser/audit.prom' | 'a\\0.prom'",
    },
    "mydb_admin_port": {
        "expected a port number from 1 to 65535": (
            "0 | 65536 | -1 | 'x' | '' | '-1' | '54 32' | 5432.0 | True | None | [] | '٣٢٠٠٩'"
        )
    },
    "admindb_name": {TEXT: "5 | '' | ' ' | None | [] | 'a\\0b'"},
    "admin_user": {TEXT: "5 | '' | ' ' | None | []"},
    "pgpass_file": {
        PATH: "5 | '' | ' ' | [] | False | 'a\\0b'",
        "its ~user does not exist here": "'~nosuchuser/x'",
    },
    "libpq_options": {
        "expected libpq parameters and their values, such as {'sslmode': 'verify-full'}": (
            "5 | 'sslmode' | None | ['sslmode'] | {5: 'x'} | {'': 'x'} | {'sslmode': None} | {'port': []}"
        ),
        "no password here: put it into the password file (pgpass_file)": f"{{'password': {SECRET!r}}}",
    },
    "database_url": {
        "expected a SQLAlchemy URL that begins with postgresql:// or sqlite:///": (
            f"5 | '' | 'sales' | 'sqlite:admin.db' | 'sqlite://admin.db' | 'postgresql:/root:{SECRET}@db/x'"
            f" | 'mysql+pymysql://root:{SECRET}@db/x' | 'postgresql+asyncpg://root:{SECRET}@db/x' | ['{SECRET}']"
        )
    },
    "site": {TEXT: "5 | '' | ' ' | True"},
    "textfile_mode": {"expected file permissions such as 0o644": "'0644' | 644 | 0 | -1 | 128 | True | None | 420.0"},
    "weekly_day": {
        "expected a weekday: its English name, the first three letters, or 0 (Monday) to 6 (Sunday)": (
            "'Caturday' | 'Sa' | 7 | -1 | '7' | '-1' | 5.0 | True | None | '' | ['Sat']"
        )
    },
    "db_timezone": {
        "expected the IANA name of a time zone that this machine knows": (
            "'Mars/Phobos' | '' | 5 | None | 'Europe' | '../UTC' | '/etc/passwd' | 'UTC+25:00' | [] | 'a\\0'"
        )
    },
    "window_hours": {HOURS.format(0.01): f"0 | {BAD_HOURS}"},
    "grace_hours": {HOURS.format(0): BAD_HOURS},
    "max_runtime_hours": {HOURS.format(0.01): f"0 | {BAD_HOURS}"},
    "policies": {
        "expected names and hours, such as {'Monthly': 744}": (
            "5 | [] | None | 'x' | ['x'] | {'x': '744'} | {'x': 0} | {'x': -1} | {'x': None} | {5: 744} | {' ': 744}"
        ),
        "is built in and cannot be changed": "{'Daily': 24} | {' weekly': 24} | {'never': 24} | {'NONE': 24}",
    },
    "extra_jobs": {
        "expected job names and policies, such as {'offsite': 'Daily'}": (
            "5 | None | 'offsite' | ['offsite'] | {'offsite': 5} | {'offsite': ''} | {'': 'Daily'}"
        ),
        "expected Daily, Weekly or a name from policies": "{'offsite': 'Fortnightly'} | {'offsite': 'Never'}",
    },
    "error_pattern": PATTERN,
    "success_pattern": PATTERN,
    "exceptions": {
        "expected names or c_ids with last day and reason, such as {'sales': ('2026-12-31', 'ticket 4711')}": (
            "5 | None | [] | {'x': '2026-12-31'} | {'x': ('2026-12-31',)} | {'x': ('soon', 'y')} | {'x': (None, 'y')}"
            " | {'x': ('2026-12-31', '')} | {'x': ('2026-12-31', 5)} | {'x': ('9999-12-31', 'y')}"
            " | {True: ('2026-12-31', 'y')} | {1.5: ('2026-12-31', 'y')}"
        )
    },
    "connect_timeout": {"expected a whole number of seconds from 1 to 3600": f"3601 | {BAD_SECONDS}"},
    "query_timeout": {"expected a whole number of seconds from 1 to 86400": BAD_SECONDS},
    "allow_empty": FLAG,
    "legacy_metrics": FLAG,
    "history_days": {"expected a whole number of days from 0 to 3660": "-1 | 3661 | '30' | 2.5 | True | None"},
}
"""For each setting what it accepts, and values, as the file has them, that it does not."""


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_bad_value_is_shown_with_what_is_accepted(nowhere: Site, setting: str) -> None:
    for accepted, values in BAD_VALUES[setting].items():
        for value in values.split(" | "):
            (said,) = problems(nowhere, f"{setting} = {value}")
            hidden = setting in ("libpq_options", "database_url")
            shown = re.sub(r"float\('(\w+)'\)", r"\1", value)
            shown = "..." if hidden else repr(ast.literal_eval(shown)) if shown not in ("nan", "inf") else shown
            assert said.startswith(f"{setting} = {shown if len(shown) <= 60 else shown[:57] + '...'} is not accepted: ")
            assert accepted in said, value
            assert one_line(said) == said, "it is shown as it is: nothing in it looks like a password"


GOOD_VALUES: list[tuple[str, dict[str, Any]]] = [
    ("mydb_admin_port", {"1": 1, "65535": 65535, "' 5432 '": 5432}),
    ("weekly_day", {"'saturday'": 5, "'SUN'": 6, "0": 0, "'6'": 6}),
    ("db_timezone", {"'UTC'": UTC, "' utc '": UTC}),
    ("window_hours", {"0.01": 0.01, "87600": 87600}),
    ("grace_hours", {"0": 0, "87600": 87600}),
    ("history_days", {"0": 0, "3660": 3660}),
    ("textfile_mode", {"0o400": 0o400, "0o777": 0o777}),
    ("connect_timeout", {"1": 1, "3600": 3600}),
    ("query_timeout", {"1": 1, "86400": 86400}),
    ("policies", {"{' Monthly ': 744}": {"Monthly": 744}}),
    ("extra_jobs", {"{'offsite': ' weekly '}": {"offsite": "weekly"}}),
    ("database_url", {"'postgres://db/x'": "postgresql://db/x", "None": None}),
    ("pgpass_file", {"'/x'": Path("/x"), "None": None}),
    ("site", {"' north '": "north", "None": None}),
]


def test_good_values_at_the_bounds(nowhere: Site) -> None:
    for setting, values in GOOD_VALUES:
        for written, value in values.items():
            assert (
                getattr(load(add_to_config(nowhere, f"{setting} = {written}", "container_host = 'db'")), setting)
                == value
            )
    home = load(add_to_config(nowhere, "pgpass_file = '~/x'")).pgpass_file
    assert home == Path(os.environ["HOME"], "x")


def test_required_settings(nowhere: Site) -> None:
    with pytest.raises(SettingsError) as found:
        check({}, nowhere.folder)
    assert [problem.partition(" is missing: ")[0] for problem in found.value.problems] == [
        "container_host",
        "prometheus_file",
    ]
    assert check({"database_url": "sqlite:///x", "prometheus_file": "x.prom"}, Path("/srv")).container_host == ""


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_misspelt_setting_gets_a_hint(nowhere: Site, setting: str) -> None:
    camel = "".join(word.title() for word in setting.split("_"))
    swapped = setting[:2] + setting[3] + setting[2] + setting[4:]
    for misspelt in (swapped, setting.upper(), camel, setting + "s"):
        if misspelt != setting:
            (said,) = problems(nowhere, f"{misspelt} = 5")
            assert said.startswith(f"unknown setting {misspelt}: did you mean {setting}?"), misspelt


def test_every_problem_is_reported_at_once_and_in_the_run_file_of_the_site(nowhere: Site) -> None:
    first = {setting: next(iter(kinds.values())).split(" | ")[0] for setting, kinds in BAD_VALUES.items()}
    for setting in ("prometheus_file", "site", "textfile_mode"):
        del first[setting]
    lines = [f"{setting} = {value}" for setting, value in first.items()]
    add_to_config(nowhere, *lines, "grace_hour = 6", "site = 'north'", "textfile_mode = 0o600")
    result = nowhere.audit()
    assert (result.status, result.out) == (3, "")
    told = [line.removeprefix("backup_audit: ").partition(" = ")[0] for line in result.err.splitlines()]
    assert sorted(told[:-1]) == sorted(first)
    assert told[-1].startswith("unknown setting grace_hour: did you mean grace_hours?")
    assert nowhere.samples(nowhere.runfile)[series("mydb_backup_audit_success", site="north")] == 0
    assert nowhere.runfile.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("host", [f"db:{SECRET}@x", "db:port", "[::1", "db:5432:5432"])
def test_a_url_that_is_not_understood_does_not_show_its_password(nowhere: Site, host: str) -> None:
    add_to_config(nowhere, f"database_url = 'postgresql://mydbadmin:{SECRET}@{host}/mydb_admin'")
    said = failure(nowhere)
    assert said.startswith("backup_audit: database_url is not a URL")
