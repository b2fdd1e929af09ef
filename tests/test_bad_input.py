"""Bad input: every problem is named on one line together with what to do, and the last good audit stays."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from sqlalchemy import create_engine

from settings import Settings
from tests.builders import NOW, SECRET, TOP, Result, Site, series
from tests.postgres import ADMIN_USER, HOST, SUPERUSER

LAST_GOOD = b"# the last good audit\n"
SETTINGS = [field.name for field in fields(Settings)]
AT = ("--at", NOW.isoformat())

Tree: TypeAlias = dict[str, tuple[int, ...]]


# --- What all failures have in common ------------------------------------------------------------------


def failure(
    site: Site, *argv: str | Path, publishes: bool = True, lines: int = 1, process: Mapping[str, Any] | None = None
) -> str:
    """What a failing audit says on stderr, after all that every failure has in common has been checked.

    With `publishes` the run file tells of the failure; without, nothing at all is written. `process` runs
    the audit as a process of its own, with these options.
    """
    if not (site.folder / "mydb_config.py").exists():
        site.config()
    if publishes:
        site.textfile.write_bytes(LAST_GOOD)
        site.runfile.unlink(missing_ok=True)

    def audit(*words: str | Path) -> Result:
        if process is None:
            return site.audit(*words)
        answer = site.process(*words, **process)
        return Result(answer.returncode, answer.stdout, answer.stderr)

    before = tree(site.folder)
    plain = audit(*argv)
    after = tree(site.folder)
    assert (plain.status, plain.out) == (3, "")
    said = plain.err.splitlines()
    assert len(said) == lines, plain.err
    for line in said:
        assert re.fullmatch(r"backup_audit: \S.*: \S.*", line)
    if publishes:
        assert after.pop("textfiles/backup_audit_run.prom")
        assert site.samples(site.runfile)[series("mydb_backup_audit_success")] == 0
        assert site.textfile.read_bytes() == LAST_GOOD
    assert after == before

    debug = audit(*argv, "--debug")
    assert (debug.status, debug.out) == (3, "")
    assert "Traceback (most recent call last)" in debug.err
    assert debug.err.endswith(plain.err)
    for password in passwords(site):
        assert password not in plain.err
        assert password not in debug.err
    return plain.err


def passwords(site: Site) -> list[str]:
    """All that must never come out."""
    server = site.database.server if site.database else None
    return [SECRET, *(word.lstrip("\\:'") for word in (server.passwords.values() if server else ()))]


def tree(folder: Path, with_folders: bool = False) -> Tree:
    """What lies in a folder, and what tells whether it was touched; works for files that nobody may read."""
    found: Tree = {}
    for path in sorted([folder, *folder.rglob("*")]):
        about = path.lstat()
        touched = (about.st_ino, about.st_size, about.st_mtime_ns)
        found[str(path.relative_to(folder))] = (about.st_mode, *(touched if with_folders or path.is_file() else ()))
    return found


def restricted() -> dict[str, Any]:
    """Options of a process in which permissions count for root as well."""
    if os.geteuid() != 0:
        return {}
    libc = ctypes.CDLL(None)

    def drop() -> None:
        for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
            libc.prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP: in force from the exec on

    return {"preexec_fn": drop}


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


# --- The configuration file ----------------------------------------------------------------------------


def test_no_configuration_file(nowhere: Site) -> None:
    path = nowhere.folder / "nowhere.py"
    said = failure(nowhere, "--config", path, publishes=False)
    assert f"no configuration file {path}: cp mydb_config.example mydb_config.py" in said
    assert "--config" in said


def test_no_configuration_file_beside_the_program(nowhere: Site) -> None:
    program = nowhere.folder / "backup_audit"
    program.mkdir()
    for module in TOP.glob("*.py"):
        if module.name != "mydb_config.py":
            shutil.copy(module, program)
    answer = subprocess.run(
        [sys.executable, program / "backup_audit.py"], capture_output=True, text=True, check=False, cwd=nowhere.folder
    )
    assert (answer.returncode, answer.stdout) == (3, "")
    assert answer.stderr.startswith(f"backup_audit: no configuration file {program / 'mydb_config.py'}: cp ")
    assert answer.stderr.count("\n") == 1


def test_a_folder_as_configuration_file(nowhere: Site) -> None:
    said = failure(nowhere, "--config", nowhere.folder, publishes=False)
    assert f"cannot read {nowhere.folder} (Is a directory): " in said
    assert "name a file" in said.rpartition(": ")[2]


def test_an_unreadable_configuration_file(nowhere: Site) -> None:
    path = nowhere.config()
    path.chmod(0)
    said = failure(nowhere, publishes=False, process=restricted())
    assert said == f"backup_audit: cannot read {path} (Permission denied): make it readable for this user\n"


@pytest.mark.parametrize(
    ("line", "number"),
    [
        ("mydb_admin_port = = 5432", 2),
        ("weekly_day = 'Satur", 2),
        ("  grace_hours = 6", 2),
        ("policies = {'Monthly': 744\nwindow_hours = 24\n", 2),
        ("admin_user = '\udcff'", 2),
        ("# fine\nadmin_user = db.example.org.'", 3),
    ],
)
def test_a_syntax_error_names_its_line(nowhere: Site, line: str, number: int) -> None:
    path = nowhere.config()
    text = f"prometheus_file = {str(nowhere.textfile)!r}\n{line}\n"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    said = failure(nowhere, publishes=False)
    assert f"{path}, line {number} is not valid Python" in said
    assert said.rstrip().endswith(": correct this line")


def test_a_null_byte_in_the_configuration(nowhere: Site) -> None:
    path = nowhere.config()
    path.write_bytes(path.read_bytes() + b"admin_user = 'my\0dbadmin'\n")
    said = failure(nowhere, publishes=False)
    assert f"{path}" in said
    assert "not valid Python" in said
    assert "null bytes" in said


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("window_hours = 24 / 0", "line {} raised ZeroDivisionError (division by zero)"),
        ("admin_user = mydbadmin", "line {} raised NameError (name 'mydbadmin' is not defined)"),
        ("import no_such_module_anywhere", "line {} raised ModuleNotFoundError (No module named"),
        ("admin_user = open('/nowhere/user').read()", "line {} raised FileNotFoundError (["),
        ("raise RuntimeError('two\\nlines')", "line {} raised RuntimeError (two lines)"),
        ("import json; policies = json.loads('{')", "line {} raised JSONDecodeError ("),
        ("raise SystemExit(0)", "line {} raised SystemExit (0)"),
        ("import sys; sys.exit()", "line {} raised SystemExit ("),
        (f"raise ValueError('password={SECRET}')", "line {} raised ValueError (password=*****"),
    ],
)
def test_a_configuration_that_raises_names_the_line(nowhere: Site, line: str, problem: str) -> None:
    path = add_to_config(nowhere, line)
    if SECRET in line:
        # a traceback shows the raising line of the file itself, if the file has it
        assert problem.format(3) in nowhere.audit().err
        assert SECRET not in nowhere.audit().err
        return
    said = failure(nowhere, publishes=False)
    assert f"{path}, {problem.format(3)}" in said
    assert said.rstrip().endswith(": correct this line")


@pytest.mark.parametrize("setting", ["container_host", "prometheus_file"])
def test_a_required_setting_is_missing(nowhere: Site, setting: str) -> None:
    given = {"container_host": "db.example.org", "prometheus_file": str(nowhere.textfile), setting: None}
    nowhere.config(**{"database_url": None, **given})
    said = failure(nowhere, publishes=setting != "prometheus_file")
    assert said.startswith(f"backup_audit: {setting} is missing: ")


def test_an_empty_configuration_names_all_that_is_required(nowhere: Site) -> None:
    nowhere.config().write_text("", encoding="utf-8")
    said = failure(nowhere, publishes=False, lines=2)
    assert "container_host is missing: " in said
    assert "prometheus_file is missing: " in said


def test_a_database_url_replaces_the_host(sqlite_site: Site) -> None:
    sqlite_site.container()
    sqlite_site.config(container_host=None)
    assert sqlite_site.audit("-q", *AT).status == 2


TEXT = "expected a non-empty string"
PORT = "expected a port number from 1 to 65535"
PATH = "expected the path of a file"
LIBPQ = "expected libpq parameters and their values, such as {'sslmode': 'verify-full'}"
URL = "expected a SQLAlchemy URL that begins with postgresql:// or sqlite:///"
PROM = "expected a path that ends in .prom"
MODE = "expected file permissions such as 0o644"
DAY = "expected a weekday: its English name, the first three letters, or 0 (Monday) to 6 (Sunday)"
ZONE = "expected the IANA name of a time zone"
HOURS = "expected a number of hours from 0.01 to 87600"
GRACE = "expected a number of hours from 0 to 87600"
POLICIES = "expected names and hours, such as {'Monthly': 744}"
JOBS = "expected job names and policies, such as {'offsite': 'Daily'}"
JOB = "expected Daily, Weekly or a name from policies"
PATTERN = "expected a Python regular expression"
FLAG = "expected True or False"
CONNECT = "expected a whole number of seconds from 1 to 3600"
QUERY = "expected a whole number of seconds from 1 to 86400"
HISTORY = "expected a whole number of days from 0 to 3660"

BAD_VALUES: dict[str, dict[str, list[str]]] = {
    "container_host": {TEXT: ["5", "''", "' '", "None", "['db']", "b'db'"]},
    "prometheus_file": {
        PROM: ["'/tmp/audit.txt'", "'/tmp/audit'", "'/tmp/audit.prom.tmp'", "'/tmp/.prom'", "'/tmp/audit.PROM'"],
        PATH: ["5", "''", "' '", "None", "['audit.prom']", "True"],
    },
    "mydb_admin_port": {
        PORT: ["0", "65536", "-1", "'x'", "''", "'-1'", "'54 32'", "5432.0", "True", "None", "[]", "'٣٢٠٠٩'"]
    },
    "admindb_name": {TEXT: ["5", "''", "' '", "None", "[]"]},
    "admin_user": {TEXT: ["5", "''", "' '", "None", "[]"]},
    "pgpass_file": {PATH: ["5", "''", "' '", "[]", "False"]},
    "libpq_options": {
        LIBPQ: ["5", "'sslmode'", "None", "['sslmode']", "{5: 'x'}", "{'': 'x'}", "{'sslmode': None}", "{'port': []}"],
        "no password here: put it into the password file (pgpass_file)": [f"{{'password': {SECRET!r}}}"],
    },
    "database_url": {
        URL: [
            "5",
            "''",
            "'sales'",
            "'sqlite:admin.db'",
            f"'mysql://root:{SECRET}@db.example.org/mydb_admin'",
            f"'mysql+pymysql://root:{SECRET}@db.example.org/mydb_admin'",
            f"'postgresql+asyncpg://root:{SECRET}@db.example.org/mydb_admin'",
            f"'postgresql:/root:{SECRET}@db.example.org/mydb_admin'",
            f"'root:{SECRET}@db.example.org'",
            f"['postgresql://root:{SECRET}@db.example.org/mydb_admin']",
        ]
    },
    "textfile_mode": {MODE: ["'0644'", "644", "0", "-1", "128", "True", "None", "420.0"]},
    "weekly_day": {DAY: ["'Caturday'", "'Sa'", "7", "-1", "'7'", "'-1'", "5.0", "True", "None", "''", "['Sat']"]},
    "db_timezone": {
        ZONE: ["'Mars/Phobos'", "''", "5", "None", "'Europe'", "'../UTC'", "'/etc/localtime'", "'UTC+25:00'", "[]"]
    },
    "window_hours": {HOURS: ["0", "-24", "'24'", "None", "True", "[]", "87601", "float('nan')", "float('inf')"]},
    "grace_hours": {GRACE: ["-0.5", "'6'", "None", "True", "[]", "87601", "float('nan')", "float('inf')"]},
    "max_runtime_hours": {HOURS: ["0", "-24", "'24'", "None", "True", "[]", "87601", "float('nan')", "float('inf')"]},
    "policies": {
        POLICIES: [
            *("5", "[]", "None", "'Monthly'", "['Monthly']", "{'Monthly': '744'}", "{'Monthly': 0}", "{'Monthly': -1}"),
            *("{'Monthly': None}", "{5: 744}", "{'': 744}", "{' ': 744}", "{'Daily': 24}", "{' weekly': 24}"),
            *("{'never': 24}", "{'NONE': 24}"),
        ]
    },
    "extra_jobs": {
        JOBS: [
            "5",
            "None",
            "'offsite'",
            "['offsite']",
            "{'offsite': 5}",
            "{'offsite': ''}",
            "{'': 'Daily'}",
            "{0: 'x'}",
        ],
        JOB: ["{'offsite': 'Fortnightly'}", "{'offsite': 'Never'}"],
    },
    "error_pattern": {PATTERN: ["'('", "'[a-'", "'*'", "'(?P<x'"], TEXT: ["5", "None", "''", "b'error'"]},
    "connect_timeout": {CONNECT: ["0", "-1", "3601", "'10'", "2.5", "True", "None"]},
    "query_timeout": {QUERY: ["0", "-1", "86401", "'60'", "2.5", "True", "None"]},
    "allow_empty": {FLAG: ["'yes'", "1", "0", "None", "'False'"]},
    "history_days": {HISTORY: ["-1", "3661", "'30'", "2.5", "True", "None"]},
    "legacy_metrics": {FLAG: ["'yes'", "1", "0", "None", "'False'"]},
}
"""For each setting what it accepts, and values, as the file has them, that it does not."""

HIDDEN = ("libpq_options", "database_url")
"""Settings whose values may hold a password."""


def test_every_setting_has_bad_values() -> None:
    assert list(BAD_VALUES) == SETTINGS


@pytest.mark.parametrize(
    ("setting", "value", "accepted"),
    [
        (setting, value, accepted)
        for setting, kinds in BAD_VALUES.items()
        for accepted, values in kinds.items()
        for value in values
    ],
)
def test_a_bad_value_is_shown_with_what_is_accepted(nowhere: Site, setting: str, value: str, accepted: str) -> None:
    add_to_config(nowhere, f"{setting} = {value}")
    said = failure(nowhere, publishes=setting != "prometheus_file")
    shown = "..." if setting in HIDDEN else re.sub(r"float\('(\w+)'\)", r"\1", value)
    assert said.startswith(f"backup_audit: {setting} = {shown}: ")
    assert accepted in said


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize(
    "misspell",
    [
        pytest.param(lambda name: name[:-1], id="cut"),
        pytest.param(lambda name: name[:3] + name[4] + name[3] + name[5:], id="swapped"),
        pytest.param(str.upper, id="upper"),
        pytest.param(lambda name: name.replace("_", "") + "_", id="joined"),
        pytest.param(lambda name: "".join(word.title() for word in name.split("_")), id="camel"),
        pytest.param(lambda name: name + "s", id="plural"),
    ],
)
def test_a_misspelt_setting_gets_a_hint(nowhere: Site, setting: str, misspell: Callable[[str], str]) -> None:
    add_to_config(nowhere, f"{misspell(setting)} = 5")
    said = failure(nowhere)
    assert said == f"backup_audit: unknown setting {misspell(setting)}: did you mean {setting}?\n"


def test_a_misspelt_required_setting_is_unknown_and_missing(nowhere: Site) -> None:
    path = nowhere.config(prometheus_file=None)
    path.write_text(path.read_text("utf-8") + f"prometheus_flie = {str(nowhere.textfile)!r}\n", encoding="utf-8")
    said = failure(nowhere, publishes=False, lines=2)
    assert "unknown setting prometheus_flie: did you mean prometheus_file?\n" in said
    assert "prometheus_file is missing: " in said


def test_an_unknown_setting_that_resembles_none(nowhere: Site) -> None:
    add_to_config(nowhere, "smtp = 'mail.example.org'")
    assert "unknown setting smtp: remove it, or see mydb_config.example" in failure(nowhere)


def test_every_problem_is_reported_at_once(nowhere: Site) -> None:
    first = {setting: next(iter(kinds.values()))[0] for setting, kinds in BAD_VALUES.items()}
    first["extra_jobs"] = "{'offsite': 'Fortnightly'}"
    del first["prometheus_file"]
    add_to_config(nowhere, *(f"{setting} = {value}" for setting, value in first.items()), "grace_hour = 6")
    said = failure(nowhere, lines=len(first) + 1).splitlines()
    for setting in first:
        assert sum(line.startswith(f"backup_audit: {setting} = ") for line in said) == 1
    assert "backup_audit: unknown setting grace_hour: did you mean grace_hours?" in said


def test_a_long_value_is_cut(nowhere: Site) -> None:
    add_to_config(nowhere, f"weekly_day = {'day ' * 1000!r}")
    assert len(failure(nowhere)) < 250


@pytest.mark.parametrize(
    "host", [f"db.example.org:{SECRET}@x", "db.example.org:port", "[::1", "db.example.org:5432:5432"]
)
def test_a_url_that_is_not_understood_does_not_show_its_password(nowhere: Site, host: str) -> None:
    add_to_config(nowhere, f"database_url = 'postgresql://mydbadmin:{SECRET}@{host}/mydb_admin'")
    said = failure(nowhere)
    assert "database_url" in said
    assert "postgresql://" in said.rpartition(": ")[2]


def test_a_password_in_a_working_url_is_not_shown(site: Site) -> None:
    assert site.database
    url = site.database.url.set(password=SECRET)
    site.config(**dict.fromkeys(site.settings), database_url=url.render_as_string(hide_password=False))
    said = failure(site)
    assert f"{ADMIN_USER}@{HOST}:{url.port}/{url.database}: the password was refused" in said
    assert "database_url" in said


# --- The way to the server -----------------------------------------------------------------------------


@contextmanager
def listening(answer: bytes | None) -> Iterator[int]:
    """A port that accepts connections, gives this answer to what it is told, and closes; None: says nothing."""
    with socket.create_server((HOST, 0)) as server:
        port = int(server.getsockname()[1])
        if answer is None:
            yield port
            return
        thread = threading.Thread(target=_serve, args=(server, answer), daemon=True)
        thread.start()
        yield port
        server.shutdown(socket.SHUT_RDWR)
        thread.join(10)


def _serve(server: socket.socket, answer: bytes) -> None:
    while True:
        try:
            connection, _ = server.accept()
        except OSError:
            return
        with connection:
            connection.recv(8)  # the request for TLS: what has been read does not reset the connection
            connection.sendall(answer)


def test_an_unknown_host(site: Site) -> None:
    site.config(container_host="db..example.invalid")  # no name at all, so that nobody is asked for it
    said = failure(site)
    assert "db..example.invalid" in said
    assert "unknown host" in said
    assert said.rstrip().endswith(": check container_host")


def test_a_closed_port(site: Site) -> None:
    with socket.socket() as taken:  # bound, and not listening
        taken.bind((HOST, 0))
        port = taken.getsockname()[1]
        site.config(mydb_admin_port=port)
        said = failure(site)
    assert f"{HOST}:{port}" in said
    assert "the connection was refused" in said
    assert "check mydb_admin_port" in said.rpartition(": ")[2]


def test_a_port_that_accepts_and_says_nothing(site: Site) -> None:
    with listening(None) as port:
        site.config(mydb_admin_port=port, connect_timeout=1)
        begin = time.monotonic()
        said = failure(site)
        assert 1.9 < time.monotonic() - begin < 15, "two audits, of one second or a little more each"
    assert "no answer within connect_timeout" in said
    assert "check container_host, mydb_admin_port and the firewall" in said


def test_a_port_that_hangs_up(site: Site) -> None:
    with listening(b"") as port:
        site.config(mydb_admin_port=port, connect_timeout=2)
        said = failure(site)
    assert f"{HOST}:{port}" in said
    assert "the connection was lost" in said


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-OpenSSH_9.2\r\n"])
def test_a_port_where_something_else_answers(site: Site, answer: bytes) -> None:
    with listening(answer) as port:
        site.config(mydb_admin_port=port, connect_timeout=2)
        said = failure(site)
    assert f"{HOST}:{port}" in said
    assert "mydb_admin_port" in said.rpartition(": ")[2]


def test_a_server_that_stopped(new_server: Callable[..., Any], tmp_path: Path) -> None:
    server = new_server()
    database = server.create_database()
    site = Site(database.engine, database.settings, tmp_path, database)
    server.stop()
    assert "the connection was refused" in failure(site)


@pytest.mark.parametrize(
    "options", [{"sslmod": "require"}, {"sslmode": "verry-full"}, {"sslmode": "verify-full"}, {"sslrootcert": "/x"}]
)
def test_libpq_options_that_do_not_work(site: Site, options: dict[str, str]) -> None:
    if "sslrootcert" in options:
        options = {**options, "sslmode": "verify-ca"}
    site.config(libpq_options=options)
    said = failure(site)
    assert "libpq_options" in said.rpartition(": ")[2]


# --- The password --------------------------------------------------------------------------------------


def write_passfile(site: Site, line: str, mode: int = 0o600, name: str = "pgpass") -> Path:
    """A password file; in its line, `{port}` and `{password}` are the right ones."""
    assert site.database
    server = site.database.server
    password = server.passwords[ADMIN_USER].replace("\\", "\\\\").replace(":", "\\:")
    path = site.folder / name
    path.write_text(line.format(port=server.port, password=password) + "\n", encoding="utf-8")
    path.chmod(mode)
    return path


RIGHT = f"{HOST}:{{port}}:*:{ADMIN_USER}:{{password}}"


def test_the_right_password_file(site: Site) -> None:
    site.container()
    site.config(pgpass_file=str(write_passfile(site, RIGHT)))
    answer = site.process(*AT, "-q")
    assert (answer.returncode, answer.stderr) == (2, "")


def test_a_wrong_password(site: Site) -> None:
    path = write_passfile(site, f"{HOST}:{{port}}:*:{ADMIN_USER}:{SECRET}")
    site.config(pgpass_file=str(path))
    said = failure(site, process={})
    assert "the password was refused" in said
    assert str(path) in said.rpartition(": ")[2]


@pytest.mark.parametrize(
    "line",
    [
        f"db.example.org:{{port}}:*:{ADMIN_USER}:{{password}}",
        f"{HOST}:1:*:{ADMIN_USER}:{{password}}",
        f"{HOST}:{{port}}:another:{ADMIN_USER}:{{password}}",
        f"{HOST}:{{port}}:*:somebody:{{password}}",
        f"# {RIGHT}",
        f"{HOST} {{port}} * {ADMIN_USER} {{password}}",
        "",
    ],
    ids=["host", "port", "database", "user", "comment", "blanks", "empty"],
)
def test_no_line_of_the_password_file_matches(site: Site, line: str) -> None:
    path = write_passfile(site, line)
    site.config(pgpass_file=str(path))
    said = failure(site, process={})
    assert "no password found" in said
    advice = said.rpartition("): ")[2]
    assert advice.startswith("add a line host:port:database:user:password ")
    assert str(path) in advice


@pytest.mark.parametrize("how", ["setting", "PGPASSFILE", "home"])
@pytest.mark.parametrize("mode", [None, 0o644, 0o640, 0o604, 0o660], ids=str)
def test_a_password_file_that_is_missing_or_open_to_others(site: Site, how: str, mode: int | None) -> None:
    path = site.folder / ".pgpass"
    if mode is not None:
        write_passfile(site, RIGHT, mode, ".pgpass")
    site.config(pgpass_file=str(path) if how == "setting" else None)
    env = {"setting": {}, "PGPASSFILE": {"PGPASSFILE": str(path)}, "home": {"HOME": str(site.folder)}}[how]
    said = failure(site, process={"env": env})
    assert "no password found" in said
    advice = said.rstrip().rpartition("): ")[2]
    if mode is None:
        assert advice == f"create {path} with a line host:port:database:user:password and mode 0600"
    else:
        assert advice == f"{path} is ignored because others may read it, chmod 600 {path}"


def test_a_password_file_that_this_user_may_not_read(site: Site) -> None:
    path = write_passfile(site, RIGHT, 0o000)
    site.config(pgpass_file=str(path))
    said = failure(site, process=restricted())
    assert said.rstrip().endswith(f"): make {path} readable for this user")


def test_a_password_file_that_is_a_folder(site: Site) -> None:
    path = site.folder / "pgpass"
    path.mkdir(mode=0o700)
    site.config(pgpass_file=str(path))
    said = failure(site, process={})
    assert "no password found" in said
    assert "name a file" in said.rpartition("): ")[2]


# --- The database --------------------------------------------------------------------------------------


def test_a_missing_database(site: Site) -> None:
    site.config(admindb_name="nowhere")
    said = failure(site)
    assert 'database "nowhere" does not exist' in said
    assert "admindb_name" in said.rpartition(": ")[2]


def test_a_missing_role(site: Site) -> None:
    # the server does not tell a missing role from a wrong password
    site.config(admin_user="stranger", pgpass_file=str(write_passfile(site, f"*:*:*:stranger:{SECRET}")))
    said = failure(site)
    assert "stranger@" in said
    assert "the password was refused" in said
    assert "admin_user" in said.rpartition(": ")[2]


@pytest.mark.parametrize("table", ["containers", "container_state", "backups"])
def test_a_missing_table(own_site: Site, table: str) -> None:
    assert own_site.database
    own_site.database.execute(f"DROP TABLE {table}")
    said = failure(own_site)
    assert "a table is missing" in said
    assert f'"{table}"' in said
    assert "admindb_name" in said.rpartition(": ")[2]


def test_the_audit_does_not_need_the_action_log(own_site: Site) -> None:
    assert own_site.database
    own_site.container()
    own_site.database.execute("DROP TABLE action_log")
    assert own_site.audit("-q", *AT).status == 2


@pytest.mark.parametrize(
    ("table", "column"),
    [
        *(("containers", column) for column in ("data", "ts", "name")),
        *(("container_state", column) for column in ("c_id", "name", "state")),
        *(("backups", column) for column in ("c_id", "name", "state", "backup_id", "backup_type", "err_msg", "ts")),
    ],
)
def test_a_missing_column(own_site: Site, table: str, column: str) -> None:
    assert own_site.database
    own_site.container()
    own_site.database.execute(f"ALTER TABLE {table} DROP COLUMN {column}")
    said = failure(own_site)
    assert "a column is missing" in said
    assert column in said


@pytest.mark.parametrize(
    ("revoke", "what"),
    [
        *(
            (f"REVOKE ALL ON {table} FROM {ADMIN_USER}", table)
            for table in ("containers", "container_state", "backups")
        ),
        (f"REVOKE ALL ON backups FROM {ADMIN_USER}; GRANT SELECT (id, ts) ON backups TO {ADMIN_USER}", "backups"),
    ],
)
def test_no_privilege_on_a_table(own_site: Site, revoke: str, what: str) -> None:
    assert own_site.database
    own_site.container()
    own_site.database.execute(revoke)
    said = failure(own_site)
    assert "a privilege is missing" in said
    assert f"permission denied for table {what}" in said
    assert "deploy/read_only_role.sql" in said.rpartition(": ")[2]


@pytest.fixture
def stranger(own_site: Site) -> Iterator[Site]:
    """A site whose configuration names a role that has no privilege at all."""
    assert own_site.database
    server, name = own_site.database.server, "stranger"
    server.execute(f"CREATE ROLE {name} LOGIN PASSWORD '{SECRET}'")
    own_site.settings = {
        **own_site.settings,
        "admin_user": name,
        "pgpass_file": str(write_passfile(own_site, f"*:*:*:{name}:{SECRET}")),
    }
    yield own_site
    server.execute(f"DROP OWNED BY {name}; DROP ROLE {name}")


def test_a_role_that_may_not_read(stranger: Site) -> None:
    said = failure(stranger)
    assert "a privilege is missing" in said
    assert "deploy/read_only_role.sql" in said.rpartition(": ")[2]


def test_a_role_that_may_not_connect_to_the_database(stranger: Site) -> None:
    assert stranger.database
    stranger.database.execute(f'REVOKE CONNECT ON DATABASE "{stranger.database.name}" FROM PUBLIC')
    said = failure(stranger)
    assert "permission denied for database" in said
    assert "deploy/read_only_role.sql" in said.rpartition(": ")[2]


def test_a_role_that_may_not_log_in(stranger: Site) -> None:
    assert stranger.database
    stranger.database.execute("ALTER ROLE stranger NOLOGIN")
    said = failure(stranger)
    assert "not permitted to log in" in said
    assert "LOGIN" in said.rpartition(": ")[2]


def test_a_role_without_a_free_connection(stranger: Site) -> None:
    assert stranger.database
    stranger.database.execute("ALTER ROLE stranger CONNECTION LIMIT 0")
    said = failure(stranger)
    assert "too many connections" in said
    assert "pg_stat_activity" in said.rpartition(": ")[2]


def test_a_locked_table_ends_with_the_query_timeout(site: Site) -> None:
    site.container()
    site.config(query_timeout=1)
    with site.engine.begin() as connection:
        connection.exec_driver_sql("LOCK TABLE backups IN ACCESS EXCLUSIVE MODE")
        begin = time.monotonic()
        said = failure(site)
        assert time.monotonic() - begin < 15, "two audits, of one second or a little more each"
    assert "the query took longer than query_timeout" in said
    assert "pg_stat_activity" in said.rpartition(": ")[2]


def test_no_active_container(any_site: Site) -> None:
    any_site.container(active=False)
    said = failure(any_site)
    assert "no active container in the admin database" in said
    assert "allow_empty = True" in said.rpartition(": ")[2]


# --- SQLite --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["missing.db", "no folder/admin.db"])
def test_a_missing_sqlite_file_is_not_created(nowhere: Site, place: str) -> None:
    path = nowhere.folder / place
    nowhere.config(database_url=f"sqlite:///{path}")
    said = failure(nowhere)
    assert f"{path}: cannot open the file" in said
    assert "database_url" in said.rpartition(": ")[2]
    assert not path.exists()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"this is a text, and no database. " * 100, "this is no SQLite database"),
        (b"SQLite format 3\0" + b"\xff" * 4096, "this is no SQLite database"),
        (b"", "a table is missing"),
        (None, ""),  # how SQLite puts it depends on its version
    ],
    ids=["text", "broken", "empty", "folder"],
)
def test_a_file_that_is_no_admin_database(nowhere: Site, content: bytes | None, problem: str) -> None:
    path = nowhere.folder / "admin.db"
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    said = failure(nowhere)
    assert f"{path}: {problem}" in said
    assert "database_url" in said.rpartition(": ")[2]


def test_an_unreadable_sqlite_file(sqlite_site: Site) -> None:
    path = sqlite_site.folder / "admin.db"
    path.chmod(0)
    said = failure(sqlite_site, process=restricted())
    assert f"{path}: cannot open the file" in said
    assert "database_url" in said.rpartition(": ")[2]


@pytest.mark.parametrize(
    ("change", "problem", "what"),
    [
        ("DROP TABLE backups", "a table is missing", "backups"),
        ("ALTER TABLE backups RENAME COLUMN err_msg TO message", "a column is missing", "err_msg"),
    ],
)
def test_an_sqlite_file_without_a_table_or_column(sqlite_site: Site, change: str, problem: str, what: str) -> None:
    sqlite_site.container()
    with sqlite_site.engine.begin() as connection:
        connection.exec_driver_sql(change)
    said = failure(sqlite_site)
    assert problem in said
    assert what in said
    assert "DB4Sci's admin database" in said.rpartition(": ")[2]


def test_an_sqlite_url_with_too_few_slashes(nowhere: Site) -> None:
    nowhere.config(database_url="sqlite://admin.db")
    said = failure(nowhere)
    assert "database_url" in said
    assert "sqlite:///" in said


# --- The textfile --------------------------------------------------------------------------------------


@pytest.fixture
def auditable(sqlite_site: Site) -> Site:
    """A site whose audit succeeds, but for where the textfile is to go."""
    sqlite_site.container()
    return sqlite_site


def test_the_folder_of_the_textfile_is_missing(auditable: Site) -> None:
    folder = auditable.folder / "missing"
    auditable.config(prometheus_file=str(folder / "audit.prom"))
    said = failure(auditable, publishes=False)
    assert f"cannot write {folder / 'audit.prom'} (No such file or directory): create the folder {folder}\n" in said


def test_a_file_in_the_place_of_the_folder(auditable: Site) -> None:
    folder = auditable.folder / "file"
    folder.write_text("", encoding="utf-8")
    auditable.config(prometheus_file=str(folder / "audit.prom"))
    said = failure(auditable, publishes=False)
    assert f"cannot write {folder / 'audit.prom'} (Not a directory): {folder} must be a folder\n" in said


@pytest.mark.parametrize("mode", [0o555, 0o444, 0o666, 0o000], ids=oct)
def test_a_folder_that_is_not_writable(auditable: Site, mode: int) -> None:
    folder = auditable.folder / "locked"
    folder.mkdir()
    auditable.config(prometheus_file=str(folder / "audit.prom"))
    (folder / "audit.prom").write_bytes(LAST_GOOD)
    folder.chmod(mode)
    try:
        answer = auditable.process(**restricted())
        debug = auditable.process("--debug", **restricted())
    finally:
        folder.chmod(0o755)
    assert (answer.returncode, answer.stdout) == (3, "")
    assert answer.stderr == (
        f"backup_audit: cannot write {folder / 'audit.prom'} (Permission denied): "
        f"let this user write to the folder {folder}\n"
    )
    assert "Traceback" in debug.stderr
    assert [path.name for path in folder.iterdir()] == ["audit.prom"]
    assert (folder / "audit.prom").read_bytes() == LAST_GOOD


def test_a_folder_in_the_place_of_the_textfile(auditable: Site) -> None:
    auditable.config()
    auditable.textfile.mkdir()
    before = tree(auditable.folder)
    answer = auditable.audit()
    assert (answer.status, answer.out) == (3, "")
    assert answer.err.startswith(f"backup_audit: cannot write {auditable.textfile} (")
    assert answer.err.count("\n") == 1
    assert "name" in answer.err.rpartition("): ")[2]
    assert auditable.samples(auditable.runfile)[series("mydb_backup_audit_success")] == 0
    auditable.runfile.unlink()
    assert tree(auditable.folder) == before


def test_a_folder_in_the_place_of_the_run_file(auditable: Site) -> None:
    auditable.config()
    auditable.runfile.mkdir()
    answer = auditable.audit("-q")
    assert (answer.status, answer.out) == (3, "")
    assert answer.err.startswith(f"backup_audit: cannot write {auditable.runfile} (")
    assert answer.err.count("\n") == 1


@pytest.mark.parametrize("target", ["missing/audit.prom", ".", "textfiles", "/dev/null"])
def test_an_output_that_cannot_be_written(auditable: Site, target: str) -> None:
    auditable.config()
    path = auditable.folder / target
    said = failure(auditable, "--output", path, publishes=False)
    assert f"cannot write {path} (" in said
    advice = said.rpartition("): ")[2]
    assert "create the folder" in advice if target.startswith("missing") else "name" in advice


# --- The command line ----------------------------------------------------------------------------------

BAD_USAGE = [
    (["--frobnicate"], "unrecognized arguments: --frobnicate"),
    (["-x"], "unrecognized arguments: -x"),
    (["--config"], "argument --config: expected one argument"),
    (["--at"], "argument --at: expected one argument"),
    (["--output"], "argument --output: expected one argument"),
    (["--history"], "argument --history: expected one argument"),
    (["--json=yes"], "argument --json: ignored explicit argument 'yes'"),
    (["-v", "-q"], "not allowed with argument"),
    (["--quiet", "--verbose"], "not allowed with argument"),
    (["--output", "audit.prom", "sales"], "--output goes with the full audit, not with CONTAINER"),
    (["--output", "-", "sales"], "--output goes with the full audit, not with CONTAINER"),
    (["--output", "-", "--json"], "--output - and --json both want stdout"),
    (["--csv"], "--csv and --all go with --history"),
    (["--all"], "--csv and --all go with --history"),
    (["--csv", "sales"], "--csv and --all go with --history"),
    (["--history", "30", "--output", "audit.prom"], "--history prints one of table, --json and --csv"),
    (["--history", "30", "--json", "--csv"], "--history prints one of table, --json and --csv"),
    *(
        (["--history", days], f"argument --history: {days} is not a number of days from 1 to 3660")
        for days in ("0", "-1", "x", "3661", "1.5", "30d", "٣")
    ),
    (["--history", ""], "is not a number of days from 1 to 3660"),
    (["--output", ""], "--output"),
]


@pytest.mark.parametrize(("argv", "problem"), BAD_USAGE, ids=[" ".join(argv) for argv, _ in BAD_USAGE])
def test_bad_usage(auditable: Site, argv: list[str], problem: str) -> None:
    auditable.config()
    auditable.textfile.write_bytes(LAST_GOOD)
    before = tree(auditable.folder, with_folders=True)
    answer = auditable.audit(*argv)
    assert (answer.status, answer.out) == (3, "")
    assert re.fullmatch(r"backup_audit: .+: see backup_audit\.py --help\n", answer.err)
    assert problem in answer.err
    assert "Traceback" not in answer.err
    assert tree(auditable.folder, with_folders=True) == before


@pytest.mark.parametrize(
    "argv",
    [
        *(["", " ", "nonsense", "07:00", "2026-13-01", "2026-02-30", "2026-03-14T25:00", "14.03.2026"]),
        *(["0000-01-01", "0001-01-01", "1970-01-01", "9000-01-01", "9999-12-31T23:59:59-12:00", "20260-01-01"]),
        *(["2026-03-14T07:00+99:00", "yesterday\x1b[31m"]),
        *(["nonsense sales", "nonsense --history 30", "nonsense --output audit.prom"]),
    ],
)
def test_an_impossible_moment(auditable: Site, argv: str) -> None:
    auditable.config()
    auditable.textfile.write_bytes(LAST_GOOD)
    before = tree(auditable.folder, with_folders=True)
    said = failure(auditable, "--at", *(argv.split() if "nonsense" in argv else [argv]), publishes=False)
    assert "--at" in said
    assert "use ISO 8601, such as 2026-03-14T07:00" in said
    assert "\x1b" not in said
    assert tree(auditable.folder, with_folders=True) == before


@pytest.mark.parametrize("argv", [(), ("--history", "30")], ids=["detail", "history"])
@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("sale", "did you mean sales?"),
        ("Sales", "did you mean sales?"),
        ("salse", "did you mean sales?"),
        ("999", "run backup_audit.py -v for all names"),
        ("hydrogen", "run backup_audit.py -v for all names"),
        ("", "run backup_audit.py -v for all names"),
    ],
)
def test_an_unknown_container(any_site: Site, argv: tuple[str, ...], name: str, advice: str) -> None:
    any_site.container("sales")
    any_site.container("sales-archive", "Never")
    said = failure(any_site, *argv, name, publishes=False)
    assert f"no active container is called {name}: " in said
    assert advice in said or (advice.startswith("did") and "did you mean sales or sales-archive?" in said)


def test_one_unknown_container_among_known_ones(sqlite_site: Site) -> None:
    sqlite_site.container("sales")
    assert "no active container is called hydrogen: " in failure(sqlite_site, "sales", "hydrogen", publishes=False)


# --- --check-config ------------------------------------------------------------------------------------

STEPS = ["settings", "host", "login", "tables", "clock", "log", "textfile"]
"""The steps of the checklist; SQLite has no host to reach."""


def everything(site: Site) -> list[object]:
    """All rows of the database, and on PostgreSQL also who wrote them when, and what else there is."""
    hidden = ", xmin, ctid" if site.database else ""
    queries = [
        f"SELECT *{hidden} FROM {t} ORDER BY id" for t in ("containers", "container_state", "action_log", "backups")
    ]
    if site.database:
        queries.append("SELECT oid, relname, relfilenode FROM pg_class ORDER BY oid")
    with site.engine.connect() as connection:
        return [[tuple(map(str, row)) for row in connection.exec_driver_sql(query)] for query in queries]


def checklist(site: Site, *argv: str | Path, **process: Any) -> tuple[list[str], str]:
    """The steps that went well, and the line of the one that failed, if any; checks that nothing changed."""
    before = tree(site.folder, with_folders=True)
    if process:
        answer = site.process("--check-config", *argv, **process)
        result = Result(answer.returncode, answer.stdout, answer.stderr)
    else:
        result = site.audit("--check-config", *argv)
    assert tree(site.folder, with_folders=True) == before
    assert result.err == ""
    for password in passwords(site):
        assert password not in result.out
    lines = result.out.splitlines()
    good = [match[1] for line in lines if (match := re.fullmatch(r"ok      (\w+): \S.*", line))]
    if result.status == 0:
        assert lines[len(good) :] == ["All is ready for the first audit."]
        return good, ""
    assert result.status == 3
    assert len(lines) == len(good) + 1, result.out
    assert re.fullmatch(r"FAILED  \S.*: \S.*", lines[-1])
    return good, lines[-1]


def test_the_checklist_of_a_good_site(any_site: Site) -> None:
    c_id = any_site.container()
    now = any_site.clock()
    any_site.run(c_id, now.replace(microsecond=0))
    any_site.config()
    any_site.textfile.write_bytes(LAST_GOOD)
    before = everything(any_site)
    good, failed = checklist(any_site)
    assert good == [step for step in STEPS if any_site.database or step != "host"]
    assert failed == ""
    assert everything(any_site) == before
    assert any_site.textfile.read_bytes() == LAST_GOOD


def test_the_checklist_of_an_empty_site(any_site: Site) -> None:
    any_site.config()
    good, failed = checklist(any_site)
    assert (good[-2:], failed) == (["log", "textfile"], "")
    assert "ok      log: the backup log is empty" in any_site.audit("--check-config").out


def test_the_checklist_tells_a_wrong_zone(sqlite_site: Site) -> None:
    sqlite_site.config(db_timezone="America/Chicago")
    sqlite_site.run(sqlite_site.container(), sqlite_site.clock().replace(microsecond=0))
    assert "lies in the future: db_timezone is probably wrong" in sqlite_site.audit("--check-config").out


def test_the_checklist_shows_every_problem_of_the_settings(nowhere: Site) -> None:
    add_to_config(nowhere, "grace_hours = -1", f"database_url = 'mysql://root:{SECRET}@db/x'", "weekly_dai = 5")
    answer = nowhere.audit("--check-config")
    assert (answer.status, answer.err) == (3, "")
    lines = answer.out.splitlines()
    assert len(lines) == 3
    assert all(re.fullmatch(r"FAILED  settings: \S.*: \S.*", line) for line in lines)
    assert SECRET not in answer.out


def test_the_checklist_without_a_configuration_file(nowhere: Site) -> None:
    good, failed = checklist(nowhere, "--config", nowhere.folder / "nowhere.py")
    assert good == []
    assert failed.startswith("FAILED  settings: no configuration file ")


def test_the_checklist_at_a_url_that_is_not_understood(nowhere: Site) -> None:
    add_to_config(nowhere, "database_url = 'postgresql://db.example.org:port/mydb_admin'")
    _, failed = checklist(nowhere)
    assert "database_url" in failed


@pytest.mark.parametrize("host", ["db.example.invalid", "db..example.invalid", f"{'d' * 64}.invalid"])
def test_the_checklist_at_an_unknown_host(site: Site, host: str) -> None:
    site.config(container_host=host)
    good, failed = checklist(site)
    assert good == STEPS[:1]
    assert failed.startswith(f"FAILED  host: {host}:")
    assert "check container_host" in failed


def test_the_checklist_at_a_closed_port(site: Site) -> None:
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        site.config(mydb_admin_port=taken.getsockname()[1])
        good, failed = checklist(site)
    assert good == STEPS[:1]
    assert failed.startswith(f"FAILED  host: {HOST}:")
    assert "check container_host, mydb_admin_port and the firewall" in failed


def test_the_checklist_at_a_port_that_says_nothing(site: Site) -> None:
    with listening(None) as port:
        site.config(mydb_admin_port=port, connect_timeout=1)
        good, failed = checklist(site)
    assert good == STEPS[:2]
    assert failed.startswith("FAILED  login: ")
    assert "no answer within connect_timeout" in failed


def test_the_checklist_at_a_wrong_password(site: Site) -> None:
    site.config(pgpass_file=str(write_passfile(site, f"*:*:*:*:{SECRET}")))
    good, failed = checklist(site)
    assert good == STEPS[:2]
    assert failed.startswith("FAILED  login: ")
    assert "the password was refused" in failed


def test_the_checklist_at_a_password_file_that_others_may_read(site: Site) -> None:
    path = write_passfile(site, RIGHT, 0o644)
    site.config(pgpass_file=str(path))
    good, failed = checklist(site, env={})
    assert good == STEPS[:2]
    assert failed.startswith("FAILED  login: ")
    assert failed.endswith(f": {path} is ignored because others may read it, chmod 600 {path}")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("DROP TABLE containers", "a table is missing"),
        ("ALTER TABLE backups DROP COLUMN err_msg", "a column is missing"),
        (f"REVOKE ALL ON backups FROM {ADMIN_USER}", "a privilege is missing"),
    ],
)
def test_the_checklist_at_tables_that_cannot_be_read(own_site: Site, change: str, problem: str) -> None:
    assert own_site.database
    own_site.config()
    own_site.database.execute(change, SUPERUSER)
    good, failed = checklist(own_site)
    assert good == STEPS[:3]
    assert failed.startswith("FAILED  tables: ")
    assert problem in failed


def test_the_checklist_at_a_missing_sqlite_file(nowhere: Site) -> None:
    nowhere.config()
    good, failed = checklist(nowhere)
    assert good == STEPS[:1]
    assert failed.startswith("FAILED  login: ")
    assert not (nowhere.folder / "admin.db").exists()


def test_the_checklist_at_a_missing_folder(sqlite_site: Site) -> None:
    folder = sqlite_site.folder / "missing"
    sqlite_site.config(prometheus_file=str(folder / "audit.prom"))
    good, failed = checklist(sqlite_site)
    assert good[-1] == "log"
    assert failed.startswith(f"FAILED  textfile: the folder {folder} does not exist: create it")


def test_the_checklist_at_a_folder_that_is_not_writable(sqlite_site: Site) -> None:
    sqlite_site.config()
    sqlite_site.textfile.parent.chmod(0o555)
    try:
        good, failed = checklist(sqlite_site, env={}, **restricted())
    finally:
        sqlite_site.textfile.parent.chmod(0o755)
    assert good[-1] == "log"
    assert failed.startswith(f"FAILED  textfile: the folder {sqlite_site.textfile.parent} is not writable: let ")


def test_the_checklist_at_a_folder_in_the_place_of_the_textfile(sqlite_site: Site) -> None:
    sqlite_site.config()
    sqlite_site.textfile.mkdir()
    good, failed = checklist(sqlite_site)
    assert good[-1] == "log"
    assert failed.startswith(f"FAILED  textfile: {sqlite_site.textfile} is not a regular file: name another")


def test_a_checklist_for_a_locked_table_ends_with_the_query_timeout(site: Site) -> None:
    site.config(query_timeout=1)
    with site.engine.begin() as connection:
        connection.exec_driver_sql("LOCK TABLE backups IN ACCESS EXCLUSIVE MODE")
        good, failed = checklist(site)
    assert good == STEPS[:3]
    assert failed.startswith("FAILED  tables: ")
    assert "query_timeout" in failed
