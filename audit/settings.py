"""Reads and checks `mydb_config.py`; the result is one frozen `Settings`.

The file is Python: it is executed, so that a site may compute a value, but it is asked only for the settings
listed here. This module opens no connection and reads no password.
"""

from __future__ import annotations

import difflib
import os
import re
import traceback
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from datetime import date, datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from audit.messages import DEFAULT_ERROR_PATTERN, DEFAULT_SUCCESS_PATTERN
from audit.policy import DAY, UTC, KnownProblem, Rules, utc_from_local

WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
UNUSED = ("FQDN_host", "container_ip")
"""Settings of the original Backup Audit that are accepted and have no effect."""


class SettingsError(Exception):
    """The configuration cannot be used; `problems` has one line for each thing wrong with it.

    The other attributes are what the run file, which tells of the failure, takes from those settings that are valid.
    """

    def __init__(self, problems: list[str], valid: Mapping[str, Any]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems
        self.prometheus_file: Path | None = valid.get("prometheus_file")
        self.textfile_mode: int = valid.get("textfile_mode", Settings.textfile_mode)
        self.site: str | None = valid.get("site")


@dataclass(frozen=True)
class Settings:
    """The settings of SPEC section 3, checked, in the order of `mydb_config.example`."""

    container_host: str
    prometheus_file: Path
    mydb_admin_port: int = 32009
    admindb_name: str = "mydb_admin"
    admin_user: str = "mydbadmin"
    pgpass_file: Path | None = None
    libpq_options: Mapping[str, Any] = field(default_factory=dict)
    database_url: str | None = None
    site: str | None = None
    textfile_mode: int = 0o644
    weekly_day: int = 5
    db_timezone: tzinfo = UTC
    window_hours: float = 24
    grace_hours: float = 6
    max_runtime_hours: float = 24
    policies: Mapping[str, float] = field(default_factory=dict)
    extra_jobs: Mapping[str, str] = field(default_factory=dict)
    error_pattern: re.Pattern[str] = re.compile(DEFAULT_ERROR_PATTERN)
    success_pattern: re.Pattern[str] = re.compile(DEFAULT_SUCCESS_PATTERN)
    exceptions: Mapping[str | int, KnownProblem] = field(default_factory=dict)
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
            success_pattern=self.success_pattern,
        )


def load(path: Path) -> Settings:
    """Read and check a configuration file. Raises `SettingsError` with every problem found in it."""
    return check(_execute(path), path.absolute().parent)


def check(values: Mapping[str, Any], folder: Path) -> Settings:
    """Check the values of a configuration; relative textfiles start from `folder`. Raises `SettingsError`."""
    problems: list[str] = []
    valid: dict[str, Any] = {}
    for name, value in values.items():
        if name in UNUSED or (value is None and name in ("pgpass_file", "database_url", "site")):
            continue
        if name not in _CHECKS:
            problems.append(_unknown(name))
            continue
        try:
            valid[name] = _CHECKS[name](value)
        except ValueError as error:
            problems.append(f"{name} = {_shown(name, value)} is not accepted: {error}")
    if values.get("database_url") is not None:
        valid.setdefault("container_host", "")
    for name in ("container_host", "prometheus_file"):
        if name not in valid and name not in values:
            problems.append(f"{name} is missing: {_REQUIRED[name]}")
    problems += _contradictions(valid)
    if "prometheus_file" in valid:
        valid["prometheus_file"] = folder / valid["prometheus_file"]
    if problems:
        raise SettingsError(problems, valid)
    zone = valid.get("db_timezone", UTC)
    exceptions = valid.get("exceptions", {}).items()
    valid["exceptions"] = {key: _known_problem(until, reason, zone) for key, (until, reason) in exceptions}
    return Settings(**valid)


def _execute(path: Path) -> dict[str, Any]:
    try:
        source = path.read_bytes()
    except FileNotFoundError:
        advice = "cp mydb_config.example mydb_config.py and edit it, or name another file with --config"
        raise SettingsError([f"no configuration file {path}: {advice}"], {}) from None
    except OSError as error:
        advice = "name a file" if isinstance(error, IsADirectoryError) else "let this user read it"
        raise SettingsError([f"cannot read {path} ({error.strerror}): {advice}"], {}) from None
    names: dict[str, Any] = {"__file__": str(path)}
    try:
        exec(compile(source, str(path), "exec"), names)  # noqa: S102  # the file is the user's own Python
    except (Exception, SystemExit) as error:  # noqa: BLE001  # whatever a site's own file may raise
        raise SettingsError([f"{_place(error, path)}: correct it"], {}) from None
    return {name: value for name, value in names.items() if not _is_helper(name, value)}


def _place(error: BaseException, path: Path) -> str:
    """What is wrong with a configuration file, and in which line."""
    if isinstance(error, SyntaxError):
        where = f"{path}, line {error.lineno}" if error.lineno else str(path)
        return f"{where} is not valid Python ({error.msg})"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    if not lines:  # a NUL byte, before Python 3.11.4
        return f"{path} is not valid Python ({error})"
    return f"{path}, line {lines[-1]} raised {type(error).__name__} ({error})"


def _is_helper(name: str, value: Any) -> bool:
    """Whether a name in the file only helps to compute a setting: begins with `_`, or was imported or defined."""
    return name not in _CHECKS and (name.startswith("_") or isinstance(value, types.ModuleType) or callable(value))


def _unknown(name: str) -> str:
    close = difflib.get_close_matches(name, [*_CHECKS, *UNUSED], n=1) or difflib.get_close_matches(
        name.lower(), _CHECKS, n=1
    )
    hint = f"did you mean {close[0]}?" if close else "mydb_config.example lists all settings"
    return f"unknown setting {name}: {hint} (begin the names of your own helpers with _)"


def _shown(name: str, value: Any) -> str:
    """A value as it may stand in a message: a URL or libpq's options may hold a password."""
    if name in ("database_url", "libpq_options"):
        return "..."
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _contradictions(valid: Mapping[str, Any]) -> list[str]:
    known = {"daily", "weekly", *(name.strip().casefold() for name in valid.get("policies", {}))}
    return [
        f"extra_jobs = {{{job!r}: {policy!r}}} is not accepted: expected Daily, Weekly or a name from policies"
        for job, policy in valid.get("extra_jobs", {}).items()
        if policy.strip().casefold() not in known
    ]


def _known_problem(until: date, reason: str, zone: tzinfo) -> KnownProblem:
    next_midnight = datetime(until.year, until.month, until.day) + DAY
    return KnownProblem(until, reason, utc_from_local(next_midnight, zone))


# --- One check a setting: returns the value to use, or raises ValueError saying what is accepted --------


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip() or "\0" in value:
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
    if "\0" in str(value):
        raise ValueError("expected the path of a file, without NUL characters")
    try:
        return Path(value).expanduser()
    except RuntimeError:
        raise ValueError("expected the path of a file; its ~user does not exist here") from None


def _textfile(value: Any) -> Path:
    path = _path(value)
    if path.suffix != ".prom":
        raise ValueError("expected a path that ends in .prom: node_exporter reads no other files")
    return path


def _mode(value: Any) -> int:
    return int(_number(value, 0o400, 0o777, "expected file permissions such as 0o644", whole=True))


def _url(value: Any) -> str:
    if not isinstance(value, str) or not re.match(r"postgres(?:ql)?(?:\+psycopg2)?://|sqlite:///.", value):
        raise ValueError("expected a SQLAlchemy URL that begins with postgresql:// or sqlite:///")
    return re.sub(r"^postgres:", "postgresql:", value)


def _weekday(value: Any) -> int:
    if isinstance(value, str):
        matches = [n for n, day in enumerate(WEEKDAYS) if value.strip().lower() in (day, day[:3], str(n))]
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


def _exceptions(value: Any) -> dict[str | int, tuple[date, str]]:
    expected = "expected names or c_ids with last day and reason, such as {'sales': ('2026-12-31', 'ticket 4711')}"
    if not isinstance(value, dict):
        raise ValueError(expected)
    found: dict[str | int, tuple[date, str]] = {}
    for key, entry in value.items():
        if isinstance(key, bool) or not isinstance(key, (str, int)) or not isinstance(entry, (tuple, list)):
            raise ValueError(expected)
        try:
            until, reason = entry
            found[key] = date.fromisoformat(until) if isinstance(until, str) else until, _text(reason)
        except ValueError:
            raise ValueError(f"{expected}, not {key!r}: {entry!r}") from None
        if type(found[key][0]) is not date or not 1971 <= found[key][0].year <= 8999:
            raise ValueError(f"{expected}, not {key!r}: {entry!r}")
    return found


_CHECKS: dict[str, Callable[[Any], Any]] = {
    "container_host": _text,
    "prometheus_file": _textfile,
    "mydb_admin_port": _port,
    "admindb_name": _text,
    "admin_user": _text,
    "pgpass_file": _path,
    "libpq_options": _libpq,
    "database_url": _url,
    "site": _text,
    "textfile_mode": _mode,
    "weekly_day": _weekday,
    "db_timezone": _zone,
    "window_hours": _hours(0.01),
    "grace_hours": _hours(0),
    "max_runtime_hours": _hours(0.01),
    "policies": _policies,
    "extra_jobs": _table("expected job names and policies, such as {'offsite': 'Daily'}", _text),
    "error_pattern": _pattern,
    "success_pattern": _pattern,
    "exceptions": _exceptions,
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
