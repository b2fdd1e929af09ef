"""Reads and checks `mydb_config.py`; the result is one frozen `Settings`, resolved to what the program works with.

The file is Python: it is executed, so that a site may compute a value, but it is asked only for the settings
listed here. This module opens no connection and reads no password.
"""

from __future__ import annotations

import difflib
import os
import re
import traceback
import types
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from audit.messages import Patterns
from audit.policy import DAY, HOUR, UTC, Rules, utc_from_local

WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
UNUSED = ("FQDN_host", "container_ip")
"""Settings of the original Backup Audit that are accepted and have no effect."""
APPLICATION_NAME = "backup_audit"
"""What the server's pg_stat_activity calls an audit."""


@dataclass(frozen=True)
class AcceptedException:
    """A problem of one container that is accepted for a while."""

    until: date
    """The last day on which it is accepted, in `timezone`."""
    reason: str
    ends: datetime
    """The end of that day, aware UTC."""


@dataclass(frozen=True)
class Connection:
    """How to reach the admin database."""

    url: URL
    display_name: str
    """The database as it may stand in a message: `user@host:port/name`, or the path of the SQLite file."""
    password_file: Path | None
    """The file in which libpq looks for the password; None if it needs none."""
    libpq: Mapping[str, Any]
    """Further parameters of libpq."""
    from_url: bool
    """Whether the setting `database_url` says all this."""
    connect_timeout: int  # seconds
    query_timeout: int  # seconds


@dataclass(frozen=True)
class Textfile:
    """The textfile for node_exporter."""

    path: Path
    mode: int
    site: str | None
    """The label `site` of every series; None for no such label."""

    @property
    def run_file(self) -> Path:
        """The sibling that tells of the run itself: `backup_audit_run.prom` for `backup_audit.prom`."""
        return self.path.with_name(f"{self.path.stem}_run.prom")


@dataclass(frozen=True)
class Settings:
    """The settings of a site, checked, in the form in which the program uses them."""

    connection: Connection
    textfile: Textfile
    rules: Rules
    db_timezone: tzinfo
    patterns: Patterns
    extra_jobs: Mapping[str, str]
    exceptions: Mapping[str | int, AcceptedException]
    allow_empty: bool
    history_days: int
    legacy_metrics: bool


class SettingsError(Exception):
    """The configuration cannot be used; `problems` has one line for each thing wrong with it.

    `textfile` is where the run file has to say so; None if that is not known.
    """

    def __init__(self, problems: list[str], textfile: Textfile | None = None) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems
        self.textfile = textfile


def load_settings(path: Path) -> Settings:
    """Read and check a configuration file. Raises `SettingsError` with every problem found in it."""
    with warnings.catch_warnings():  # one of Python's, of a missing r before '\S+', would be a mail every night
        warnings.simplefilter("ignore")
        return check(_execute(path), path.absolute().parent)


def check(values: Mapping[str, Any], folder: Path) -> Settings:
    """Check the values of a configuration; relative textfiles start from `folder`. Raises `SettingsError`."""
    problems: list[str] = []
    refused = set()
    valid = {name: setting.check(setting.default) for name, setting in _SETTINGS.items() if name not in _REQUIRED}
    for name, value in values.items():
        if name in UNUSED:
            continue
        if name not in _SETTINGS:
            problems.append(_unknown(name))
            continue
        try:
            valid[name] = _SETTINGS[name].check(value)
        except ValueError as error:
            refused.add(name)
            problems.append(f"{name} = {_shown(name, value)} is not accepted: {error}")
    required = _REQUIRED if values.get("database_url") is None else ("prometheus_file",)
    problems += [f"{name} is missing: {_REQUIRED[name]}" for name in required if name not in values]
    if "policies" not in refused:
        problems += _unknown_policies(valid)
    textfile = None
    if "prometheus_file" in valid:
        textfile = Textfile(folder / valid["prometheus_file"], valid["textfile_mode"], valid["site"])
    if problems or textfile is None:
        raise SettingsError(problems, textfile)
    return _resolved(valid, textfile)


# --- The file ------------------------------------------------------------------------------------------


def _execute(path: Path) -> dict[str, Any]:
    """The settings that a configuration file assigns, and whatever else it assigns that looks like one."""
    try:
        source = path.read_bytes()
    except FileNotFoundError:
        advice = "cp mydb_config.example mydb_config.py and edit it, or name another file with --config"
        raise SettingsError([f"no configuration file {path}: {advice}"]) from None
    except OSError as error:
        advice = "name a file" if isinstance(error, IsADirectoryError) else "let this user read it"
        raise SettingsError([f"cannot read {path} ({error.strerror}): {advice}"]) from None
    names: dict[str, Any] = {"__file__": str(path)}
    try:
        exec(compile(source, str(path), "exec", dont_inherit=True), names)  # noqa: S102  # the user's own Python
    except (Exception, SystemExit) as error:  # noqa: BLE001  # whatever a site's own file may raise
        raise SettingsError([f"{_place(error, path)}: correct it"]) from None
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
    return name not in _SETTINGS and (name.startswith("_") or isinstance(value, types.ModuleType) or callable(value))


# --- What is said about a setting ----------------------------------------------------------------------


def _unknown(name: str) -> str:
    known = {known.lower(): known for known in (*_SETTINGS, *UNUSED)}
    close = difflib.get_close_matches(name.lower(), known, n=1)
    hint = f"did you mean {known[close[0]]}?" if close else "mydb_config.example lists all settings"
    return f"unknown setting {name}: {hint} (begin the names of your own helpers with _)"


def _shown(name: str, value: Any) -> str:
    """A value as it may stand in a message: a URL or libpq's options may hold a password."""
    if name in ("database_url", "libpq_options"):
        return "..."
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _unknown_policies(valid: Mapping[str, Any]) -> list[str]:
    known = {"daily", "weekly", *(name.casefold() for name in valid["policies"])}
    return [
        f"extra_jobs = {{{job!r}: {policy!r}}} is not accepted: expected Daily, Weekly or a name from policies"
        for job, policy in valid["extra_jobs"].items()
        if policy.casefold() not in known
    ]


# --- From values to what the program works with --------------------------------------------------------


def _resolved(valid: Mapping[str, Any], textfile: Textfile) -> Settings:
    zone, kept = valid["timezone"], valid["dumps_kept_days"]
    return Settings(
        connection=_connection(valid),
        textfile=textfile,
        rules=Rules(
            zone=zone,
            weekly_day=valid["weekly_day"],
            window=valid["window_hours"] * HOUR,
            grace=valid["grace_hours"] * HOUR,
            max_runtime=valid["max_runtime_hours"] * HOUR,
            policies={name: hours * HOUR for name, hours in valid["policies"].items()},
            dumps_kept=None if kept is None else timedelta(days=kept),
        ),
        db_timezone=valid["db_timezone"],
        patterns=Patterns(valid["error_patterns"], valid["success_patterns"]),
        extra_jobs=valid["extra_jobs"],
        exceptions={key: _exception(until, why, zone) for key, (until, why) in valid["exceptions"].items()},
        allow_empty=valid["allow_empty"],
        history_days=valid["history_days"],
        legacy_metrics=valid["legacy_metrics"],
    )


def _exception(until: date, reason: str, zone: tzinfo) -> AcceptedException:
    next_midnight = datetime(until.year, until.month, until.day) + DAY
    return AcceptedException(until, reason, utc_from_local(next_midnight, zone))


def _connection(valid: Mapping[str, Any]) -> Connection:
    url: URL = valid["database_url"] or URL.create(
        "postgresql",
        username=valid["admin_user"],
        host=valid["container_host"],
        port=valid["mydb_admin_port"],
        database=valid["admindb_name"],
    )
    libpq: dict[str, Any] = {"application_name": APPLICATION_NAME, **valid["libpq_options"]}
    password_file = None
    if url.get_backend_name() == "postgresql" and not has_password(url):
        named = libpq.get("passfile") or valid["pgpass_file"] or os.environ.get("PGPASSFILE") or "~/.pgpass"
        password_file = Path(os.path.expanduser(named))  # Path.expanduser fails for a user without a home
        libpq["passfile"] = str(password_file)
    return Connection(
        url=url,
        display_name=_display_name(url),
        password_file=password_file,
        libpq=libpq,
        from_url=valid["database_url"] is not None,
        connect_timeout=valid["connect_timeout"],
        query_timeout=valid["query_timeout"],
    )


def has_password(url: URL) -> bool:
    """Whether a URL holds a password."""
    return url.password is not None or "password" in url.query


def _display_name(url: URL) -> str:
    if url.get_backend_name() == "sqlite":
        return str(url.database)
    if "service" in url.query:
        return f"service {url.query['service']}"
    hosts = url.query.get("host", "localhost")
    place = f"{url.host}:{url.port or 5432}" if url.host else hosts if isinstance(hosts, str) else ",".join(hosts)
    return f"{url.username or ''}@{place}/{url.database or ''}".removeprefix("@").rstrip("/")


# --- One check a setting: returns the value to use, or raises ValueError saying what is accepted --------


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        raise ValueError("expected a non-empty string")
    try:
        value.encode()
    except UnicodeEncodeError:  # of an environment variable in another encoding, for example
        raise ValueError("expected text that UTF-8 can hold") from None
    return value.strip()


def _number(value: Any, least: float, most: float, expected: str, kinds: Any = (int, float)) -> Any:
    if isinstance(value, bool) or not isinstance(value, kinds) or not least <= value <= most:
        raise ValueError(expected)
    return value


def _port(value: Any) -> int:
    if isinstance(value, str) and value.strip().isascii() and value.strip().isdigit():
        value = int(value)
    return int(_number(value, 1, 65535, "expected a port number from 1 to 65535", int))


def _hours(least: float) -> Callable[[Any], float]:
    expected = f"expected a number of hours from {least} to 87600 (ten years)"
    return lambda value: float(_number(value, least, 87_600, expected))


def _whole(least: int, most: int, unit: str) -> Callable[[Any], int]:
    expected = f"expected a whole number of {unit} from {least} to {most}"
    return lambda value: int(_number(value, least, most, expected, int))


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
    return int(_number(value, 0o400, 0o777, "expected file permissions such as 0o644", int))


def _url(value: Any) -> URL:
    expected = "expected a URL such as postgresql://user@host:5432/name or sqlite:////folder/file.db"
    try:
        url = make_url(re.sub("^postgres:", "postgresql:", _text(value)))
    except (ArgumentError, ValueError):  # what they say may quote the password
        raise ValueError(expected) from None
    backend = url.get_backend_name()
    if backend not in ("postgresql", "sqlite") or (backend == "sqlite" and not url.database):
        raise ValueError(expected)
    if "@" in (url.host or ""):
        raise ValueError(f"{expected}; write an @ of the password as %40")
    return url


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


def _patterns(value: Any) -> tuple[re.Pattern[str], ...]:
    if not isinstance(value, (list, tuple)) or not all(isinstance(item, str) and item.strip() for item in value):
        raise ValueError("expected a list of regular expressions, such as [r'^Emulate Docker CLI using podman']")
    return tuple(map(_pattern, value))


def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except (re.error, OverflowError) as error:
        raise ValueError(f"expected regular expressions of Python, not {text!r} ({error})") from None


def _table(expected: str, check_value: Callable[[Any], Any]) -> Callable[[Any], dict[str, Any]]:
    def check_table(value: Any) -> dict[str, Any]:
        if not isinstance(value, dict) or not all(isinstance(key, str) and key.strip() for key in value):
            raise ValueError(expected)
        try:
            return {_text(key): check_value(item) for key, item in value.items()}
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
            day = date.fromisoformat(until) if isinstance(until, str) else until
            if type(day) is not date or not 1971 <= day.year <= 8999:
                raise ValueError
            found[_text(key) if isinstance(key, str) else key] = day, _text(reason)
        except ValueError:
            raise ValueError(f"{expected}, not {key!r}: {entry!r}") from None
    return found


class _Setting(NamedTuple):
    check: Callable[[Any], Any]
    default: Any = None


def _optional(check_value: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value is None else check_value(value)


_REQUIRED = {
    "container_host": "the host name of the admin database",
    "prometheus_file": "the textfile to write, such as '/var/lib/prometheus/node-exporter/backup_audit.prom'",
}
_SETTINGS: dict[str, _Setting] = {
    "container_host": _Setting(_text),
    "prometheus_file": _Setting(_textfile),
    "mydb_admin_port": _Setting(_port, 32009),
    "admindb_name": _Setting(_text, "mydb_admin"),
    "admin_user": _Setting(_text, "mydbadmin"),
    "pgpass_file": _Setting(_optional(_path), None),
    "libpq_options": _Setting(_libpq, {}),
    "database_url": _Setting(_optional(_url), None),
    "connect_timeout": _Setting(_whole(1, 3600, "seconds"), 10),
    "query_timeout": _Setting(_whole(1, 86_400, "seconds"), 60),
    "site": _Setting(_optional(_text), None),
    "textfile_mode": _Setting(_mode, 0o644),
    "timezone": _Setting(_zone, "UTC"),
    "db_timezone": _Setting(_zone, "UTC"),
    "weekly_day": _Setting(_weekday, "Saturday"),
    "window_hours": _Setting(_hours(0.01), 24),
    "grace_hours": _Setting(_hours(0), 3),
    "max_runtime_hours": _Setting(_hours(0.01), 12),
    "policies": _Setting(_policies, {}),
    "extra_jobs": _Setting(_table("expected job names and policies, such as {'offsite': 'Daily'}", _text), {}),
    "dumps_kept_days": _Setting(_optional(_whole(1, 36_500, "days")), None),
    "exceptions": _Setting(_exceptions, {}),
    "error_patterns": _Setting(_patterns, []),
    "success_patterns": _Setting(_patterns, []),
    "allow_empty": _Setting(_flag, False),
    "history_days": _Setting(_whole(0, 3660, "days"), 30),
    "legacy_metrics": _Setting(_flag, False),
}
NAMES = tuple(_SETTINGS)
"""Every setting, in the order of `mydb_config.example`."""
