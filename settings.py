"""Reads and checks `mydb_config.py`, and gives back one frozen `Settings`.

The file is Python: it is executed, so that a site may compute a value, but it is only ever asked for the
settings listed here. This module opens no connection and reads no password.
"""

from __future__ import annotations

import difflib
import os
import re
import traceback
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from datetime import timedelta, tzinfo
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from policy import DEFAULT_ERROR_PATTERN, UTC, Rules

DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
UNUSED = ("FQDN_host", "container_ip")
"""Settings of the original Backup Audit that are accepted and have no effect."""


class SettingsError(Exception):
    """The configuration cannot be used; `problems` has one line for each thing wrong with it."""

    def __init__(self, problems: list[str], prometheus_file: Path | None = None) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems
        self.prometheus_file = prometheus_file
        """Where the failure can be told, if at least this setting is good."""


@dataclass(frozen=True)
class Settings:
    """The settings of SPEC section 3, checked; the field order is the order of `mydb_config.example`."""

    container_host: str
    prometheus_file: Path
    mydb_admin_port: int = 32009
    admindb_name: str = "mydb_admin"
    admin_user: str = "mydbadmin"
    pgpass_file: Path | None = None
    libpq_options: Mapping[str, Any] = field(default_factory=dict)
    database_url: str | None = None
    textfile_mode: int = 0o644
    weekly_day: int = 5
    db_timezone: tzinfo = UTC
    window_hours: float = 24
    grace_hours: float = 6
    max_runtime_hours: float = 24
    policies: Mapping[str, float] = field(default_factory=dict)
    extra_jobs: Mapping[str, str] = field(default_factory=dict)
    error_pattern: re.Pattern[str] = re.compile(DEFAULT_ERROR_PATTERN)
    connect_timeout: int = 10
    query_timeout: int = 60
    allow_empty: bool = False
    history_days: int = 30
    legacy_metrics: bool = False

    @property
    def rules(self) -> Rules:
        """Those settings that verdicts depend on."""
        return Rules(
            zone=self.db_timezone,
            weekly_day=self.weekly_day,
            window=timedelta(hours=self.window_hours),
            grace=timedelta(hours=self.grace_hours),
            max_runtime=timedelta(hours=self.max_runtime_hours),
            policies={name: timedelta(hours=hours) for name, hours in self.policies.items()},
            error_pattern=self.error_pattern,
        )


def load(path: Path) -> Settings:
    """Read and check a configuration file. Raises `SettingsError` with every problem found in it."""
    return check(_execute(path))


def check(values: Mapping[str, Any]) -> Settings:
    """Check the values of a configuration. Raises `SettingsError` with every problem found."""
    problems: list[str] = []
    good: dict[str, Any] = {}
    for name, value in values.items():
        if name in UNUSED or (value is None and name in ("pgpass_file", "database_url")):
            continue
        if name not in _CHECKS:
            problems.append(_unknown(name))
            continue
        try:
            good[name] = _CHECKS[name](value)
        except ValueError as error:
            problems.append(f"{name} = {_shown(name, value)}: {error}")
    if values.get("database_url") is not None:
        good.setdefault("container_host", "")
    for name in ("container_host", "prometheus_file"):
        if name not in good and name not in values:
            problems.append(f"{name} is missing: {_REQUIRED[name]}")
    problems += _contradictions(good)
    if problems:
        raise SettingsError(problems, good.get("prometheus_file"))
    return Settings(**good)


def _execute(path: Path) -> dict[str, Any]:
    try:
        source = path.read_bytes()
    except FileNotFoundError:
        advice = "cp mydb_config.example mydb_config.py and edit it, or name another by --config"
        raise SettingsError([f"no configuration file {path}: {advice}"]) from None
    except IsADirectoryError as error:
        raise SettingsError([f"cannot read {path} ({error.strerror}): name a file"]) from None
    except OSError as error:
        raise SettingsError([f"cannot read {path} ({error.strerror}): make it readable for this user"]) from None
    names: dict[str, Any] = {"__file__": str(path)}
    try:
        exec(compile(source, str(path), "exec"), names)  # noqa: S102  # the file is the user's own Python
    except SyntaxError as error:
        where = f"{path}, line {error.lineno}" if error.lineno else str(path)
        raise SettingsError([f"{where} is not valid Python ({error.msg}): correct this line"]) from None
    except (Exception, SystemExit) as error:  # noqa: BLE001  # whatever a site's own file may raise
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        problem = f"{path}, line {lines[-1]} raised {type(error).__name__} ({error}): correct this line"
        raise SettingsError([problem]) from None
    return {name: value for name, value in names.items() if _is_setting(name, value)}


def _is_setting(name: str, value: Any) -> bool:
    """Whether a name in the file is meant as a setting: not what it imported or defined to compute one."""
    return not name.startswith("_") and not isinstance(value, (types.ModuleType, types.FunctionType, type))


def _unknown(name: str) -> str:
    close = difflib.get_close_matches(name, [*_CHECKS, *UNUSED], n=1) or difflib.get_close_matches(
        name.lower(), _CHECKS, n=1
    )
    hint = f"did you mean {close[0]}?" if close else "remove it, or see mydb_config.example for all settings"
    return f"unknown setting {name}: {hint}"


def _shown(name: str, value: Any) -> str:
    """A value as it may stand in a message: a URL or libpq's options may hold a password."""
    if name in ("database_url", "libpq_options"):
        return "..."
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _contradictions(good: Mapping[str, Any]) -> list[str]:
    problems = []
    if "extra_jobs" not in good:
        return []
    known = {"daily", "weekly", *(name.strip().casefold() for name in good.get("policies", {}))}
    for job, name in good["extra_jobs"].items():
        if name.strip().casefold() not in known:
            problems.append(f"extra_jobs = {{{job!r}: {name!r}}}: expected Daily, Weekly or a name from policies")
    return problems


# --- One check a setting: gives the value to use, or raises ValueError saying what is accepted ----------


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError("expected a non-empty string")
    return value.strip()


def _port(value: Any) -> int:
    return int(_number(value, 1, 65535, "expected a port number from 1 to 65535", whole=True, or_text=True))


def _number(value: Any, least: float, most: float, expected: str, whole: bool = False, or_text: bool = False) -> float:
    if or_text and isinstance(value, str) and value.strip().isascii() and value.strip().isdigit():
        value = int(value)
    kinds = int if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not least <= value <= most:
        raise ValueError(expected)
    return value


def _hours(least: float) -> Callable[[Any], float]:
    expected = f"expected a number of hours from {least} to 87600 (ten years)"
    return lambda value: _number(value, least, 87_600, expected)


def _whole(least: int, most: int, unit: str) -> Callable[[Any], int]:
    expected = f"expected a whole number of {unit} from {least} to {most}"
    return lambda value: int(_number(value, least, most, expected, whole=True))


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("expected True or False")
    return value


def _path(value: Any) -> Path:
    if not isinstance(value, (str, os.PathLike)) or not str(value).strip():
        raise ValueError("expected the path of a file")
    return Path(value).expanduser()


def _textfile(value: Any) -> Path:
    path = _path(value)
    if path.suffix != ".prom":
        raise ValueError("expected a path that ends in .prom: node_exporter reads no other files")
    return path.absolute()


def _mode(value: Any) -> int:
    return int(_number(value, 0o400, 0o777, "expected file permissions such as 0o644", whole=True))


def _url(value: Any) -> str:
    if not isinstance(value, str) or not re.match(r"postgres(?:ql)?(?:\+psycopg2)?://|sqlite:///.", value):
        raise ValueError("expected a SQLAlchemy URL that begins with postgresql:// or sqlite:///")
    return re.sub(r"^postgres:", "postgresql:", value)


def _weekday(value: Any) -> int:
    if isinstance(value, str):
        matches = [n for n, day in enumerate(DAYS) if value.strip().lower() in (day, day[:3], str(n))]
        if matches:
            return matches[0]
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 6:
        return value
    raise ValueError("expected a weekday: its English name, the first three letters, or 0 (Monday) to 6 (Sunday)")


def _zone(value: Any) -> tzinfo:
    if isinstance(value, str) and value.strip().upper() == "UTC":
        return UTC
    try:
        return ZoneInfo(_text(value))
    except (ValueError, OSError, KeyError):  # ZoneInfoNotFoundError is a KeyError
        expected = "expected the IANA name of a time zone that this machine knows, such as 'Europe/Berlin'"
        raise ValueError(expected) from None


def _pattern(value: Any) -> re.Pattern[str]:
    try:
        return re.compile(_text(value))
    except re.error as error:
        raise ValueError(f"expected a Python regular expression ({error})") from None


def _table(expected: str, check_value: Callable[[Any], Any]) -> Callable[[Any], dict[str, Any]]:
    def check_table(value: Any) -> dict[str, Any]:
        if not isinstance(value, dict) or not all(isinstance(key, str) and key.strip() for key in value):
            raise ValueError(expected)
        try:
            return {key.strip(): check_value(item) for key, item in value.items()}
        except ValueError:
            raise ValueError(expected) from None

    return check_table


def _policies(value: Any) -> dict[str, float]:
    expected = "expected names and hours, such as {'Monthly': 744}"
    table = _table(expected, _hours(0.01))(value)
    for name in table:
        if name.casefold() in ("daily", "weekly", "never", "none"):
            raise ValueError(f"{name} is built in and cannot be changed; {expected}")
    return table


def _libpq(value: Any) -> dict[str, Any]:
    expected = "expected libpq parameters and their values, such as {'sslmode': 'verify-full'}"
    if isinstance(value, dict) and "password" in value:
        raise ValueError("no password here: put it into the password file (pgpass_file)")
    if not isinstance(value, dict) or not all(isinstance(v, (str, int)) for v in value.values()):
        raise ValueError(expected)
    return _table(expected, lambda item: item)(value)


_CHECKS: dict[str, Callable[[Any], Any]] = {
    "container_host": _text,
    "prometheus_file": _textfile,
    "mydb_admin_port": _port,
    "admindb_name": _text,
    "admin_user": _text,
    "pgpass_file": _path,
    "libpq_options": _libpq,
    "database_url": _url,
    "textfile_mode": _mode,
    "weekly_day": _weekday,
    "db_timezone": _zone,
    "window_hours": _hours(0.01),
    "grace_hours": _hours(0),
    "max_runtime_hours": _hours(0.01),
    "policies": _policies,
    "extra_jobs": _table("expected job names and policies, such as {'offsite': 'Daily'}", _text),
    "error_pattern": _pattern,
    "connect_timeout": _whole(1, 3600, "seconds"),
    "query_timeout": _whole(1, 86_400, "seconds"),
    "allow_empty": _flag,
    "history_days": _whole(0, 3660, "days"),
    "legacy_metrics": _flag,
}
_REQUIRED = {
    "container_host": "the host name of the admin database",
    "prometheus_file": "the textfile to write, such as '/var/lib/prometheus/node-exporter/backup_audit.prom'",
}
assert set(_CHECKS) == {f.name for f in fields(Settings)}
