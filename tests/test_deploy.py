"""`deploy/`: the audit works under the role, the cron line and the units as they stand there."""

from __future__ import annotations

import configparser
import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy.exc import DBAPIError, ProgrammingError

import backup_audit
from tests.builders import TOP, Site
from tests.conftest import INSTALLATIONS
from tests.postgres import ADMIN_USER, Database, Installation, Servers

DEPLOY = TOP / "deploy"
SCRIPT = DEPLOY / "read_only_role.sql"
SERVICE = DEPLOY / "backup-audit.service"
TIMER = DEPLOY / "backup-audit.timer"
ROLE = "backup_audit"
PASSWORD = "of the role: 'x'"

INSTALLED = "/opt/backup_audit"
"""Where the files of `deploy/` expect Backup Audit, with its virtual environment."""
PYTHON = f"{INSTALLED}/.venv/bin/python"


# --- The role ------------------------------------------------------------------------------------------


@pytest.fixture(params=[pytest.param(one, id=one.id) for one in INSTALLATIONS])
def database(request: pytest.FixtureRequest, servers: Servers) -> Iterator[Database]:
    """An admin database of its own, on every PostgreSQL version there is; afterwards the role is gone."""
    installation: Installation = request.param
    server = servers.get(installation)
    database = server.create_database(template=server.empty_site.name)
    if float(installation.major) < 15:  # as the script's last lines recommend
        database.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
    yield database
    database.drop()
    server.execute(f"DROP ROLE IF EXISTS {ROLE}")


@pytest.fixture
def role(database: Database) -> Database:
    """The same with the role, which has been given a password."""
    create_role(database)
    return database


def create_role(database: Database, user: str = "postgres") -> None:
    database.psql(SCRIPT, user=user)
    quoted = PASSWORD.replace("'", "''")
    database.execute(f"ALTER ROLE {ROLE} PASSWORD '{quoted}'")
    database.server.add_user(ROLE, PASSWORD)


def filled_site(database: Database, folder: Path) -> Site:
    site = Site(database.engine, database.settings, folder, database)
    now = site.clock()
    sales, stock = site.container("sales"), site.container("stock", "Weekly", version=1)
    site.run(sales, now - timedelta(hours=30), now - timedelta(hours=29))
    site.run(sales, now - timedelta(hours=5), now - timedelta(hours=4), error="pg_dump: error: out of memory")
    site.run(stock, now - timedelta(hours=3), now - timedelta(hours=2))
    site.run(0, now - timedelta(hours=2), now - timedelta(hours=1), name="offsite", type="AWS S3")
    site.container("archive", "Never")
    return site


def test_the_whole_audit_runs_under_the_role(role: Database, tmp_path: Path) -> None:
    site = filled_site(role, tmp_path)
    site.config(admin_user=ROLE, extra_jobs={"offsite": "Daily"})
    checked = site.audit("--check-config")
    assert (checked.status, checked.out.splitlines()[-1]) == (0, "All is ready for the first audit.")
    audit = site.audit("--json")
    assert (audit.status, audit.err) == (2, "")
    report = json.loads(audit.out)
    assert report["audit"]["database"].startswith(f"{ROLE}@")
    assert {container["name"]: container["status"] for container in report["containers"]} == {
        "sales": "failed",
        "stock": "ok",
        "archive": "exempt",
        "offsite": "ok",
    }
    assert len(site.samples()) > len(site.samples(site.runfile)) > 0
    assert "out of memory" in site.audit("sales").out


def test_it_finds_what_the_owner_finds(role: Database, tmp_path: Path) -> None:
    site = filled_site(role, tmp_path)
    at = (site.clock() + timedelta(hours=30)).isoformat()  # overdue: the whole history is read
    found = []
    for user in (ADMIN_USER, ROLE):
        site.config(admin_user=user)
        found.append([json.loads(site.audit("--at", at, "--json", *names).out)["containers"] for names in ((), ("1",))])
    assert found[0] == found[1]


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT command FROM backups",
        "SELECT * FROM backups",
        "SELECT url FROM backups",
        "SELECT count(*) FROM action_log",
        "SELECT changed_by FROM container_state",
        "INSERT INTO backups (c_id) VALUES (1)",
        "UPDATE containers SET name = 'x'",
        "DELETE FROM container_state",
        "TRUNCATE backups",
        "SELECT nextval('backups_id_seq')",
    ],
)
def test_nothing_else_is_permitted(role: Database, statement: str) -> None:
    with pytest.raises(ProgrammingError, match="permission denied for"):
        role.execute(f"BEGIN READ WRITE; {statement}", ROLE)


@pytest.mark.parametrize("what", ["TABLE loot (id int)", "SCHEMA loot", "ROLE loot"])
def test_it_cannot_create_anything(role: Database, what: str) -> None:
    with pytest.raises(ProgrammingError, match="permission denied"):
        role.execute(f"BEGIN READ WRITE; CREATE {what}", ROLE)


def test_its_sessions_are_read_only_by_default(role: Database) -> None:
    with pytest.raises(DBAPIError, match="read-only transaction"):
        role.execute("CREATE TABLE loot (id int)", ROLE)
    assert role.execute("SHOW transaction_read_only", ROLE) == [("on",)]


def test_the_script_may_run_again_and_takes_back_what_it_does_not_grant(role: Database) -> None:
    role.execute(f"GRANT SELECT (command), INSERT ON backups TO {ROLE}; GRANT SELECT ON action_log TO {ROLE}")
    assert role.execute("SELECT command FROM backups", ROLE) == []
    create_role(role)
    for table, column in (("backups", "command"), ("action_log", "id")):
        with pytest.raises(ProgrammingError, match="permission denied"):
            role.execute(f"SELECT {column} FROM {table}", ROLE)
    assert role.execute("SELECT err_msg FROM backups", ROLE) == []


def test_the_owner_of_the_database_may_run_the_script(database: Database) -> None:
    database.execute(f"ALTER ROLE {ADMIN_USER} CREATEROLE")
    try:
        create_role(database, ADMIN_USER)
        assert database.execute("SELECT id, data FROM containers", ROLE) == []
    finally:
        database.execute(f"ALTER ROLE {ADMIN_USER} NOCREATEROLE")


def test_the_role_has_no_password_until_it_is_given_one(database: Database) -> None:
    database.psql(SCRIPT)
    query = f"SELECT rolpassword, rolcanlogin, rolconnlimit, rolsuper FROM pg_authid WHERE rolname = '{ROLE}'"
    assert database.execute(query) == [(None, True, 3, False)]


# --- cron ----------------------------------------------------------------------------------------------


@dataclass
class CronLine:
    """The line of `deploy/crontab` that runs something."""

    times: list[str]
    user: str
    command: str


def cron_line() -> CronLine:
    lines = (DEPLOY / "crontab").read_text(encoding="utf-8").splitlines()
    [line] = [line for line in lines if line[:1].isdigit()]
    assert "%" not in line  # cron would take it for the end of the line
    *times, user, command = line.split(None, 6)
    return CronLine(times, user, command)


@pytest.fixture
def installed(sqlite_site: Site, tmp_path: Path) -> Site:
    """A site whose audit is installed in a folder of its own, with its configuration beside it."""
    folder = tmp_path / "opt"
    folder.mkdir()
    for module in TOP.glob("*.py"):
        shutil.copy(module, folder)
    shutil.copy(sqlite_site.config(), folder / "mydb_config.py")
    return sqlite_site


def run_as_cron(command: str, site: Site) -> subprocess.CompletedProcess[str]:
    here = command.replace(PYTHON, shlex.quote(sys.executable))
    here = here.replace(INSTALLED, shlex.quote(str(site.folder / "opt")))
    environment = {"HOME": str(site.folder), "PATH": "/usr/bin:/bin", "SHELL": "/bin/sh", "LOGNAME": "backup_audit"}
    shell = ["/bin/sh", "-c", here]
    return subprocess.run(
        shell, env=environment, stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8", check=False
    )


def test_the_cron_line_is_one() -> None:
    line = cron_line()
    assert line.times[2:] == ["*", "*", "*"]
    assert 0 <= int(line.times[0]) < 60
    assert 0 <= int(line.times[1]) < 24
    assert line.user == "backup_audit"


def test_cron_has_nothing_to_mail_when_all_is_well(installed: Site) -> None:
    sales = installed.container("sales")
    installed.run(sales, installed.clock() - timedelta(hours=2), installed.clock() - timedelta(hours=1))
    done = run_as_cron(cron_line().command, installed)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert installed.textfile.exists()


def test_cron_has_something_to_mail_when_a_container_needs_attention(installed: Site) -> None:
    installed.container("Übung", policy=None)
    done = run_as_cron(cron_line().command, installed)
    assert (done.returncode, done.stderr) == (2, "")
    assert "no_policy" in done.stdout
    assert "Übung" in done.stdout


# --- systemd -------------------------------------------------------------------------------------------


def unit(path: Path) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment, method-assign] # the documented way to keep the case
    parser.read(path, encoding="utf-8")
    return parser


def test_the_commands_use_options_that_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    for command in (cron_line().command, unit(SERVICE)["Service"]["ExecStart"]):
        python, script, *arguments = shlex.split(command)
        assert (python, script) == (PYTHON, f"{INSTALLED}/backup_audit.py")
        assert backup_audit.main([*arguments, "--config", "/nonexistent", "--check-config"]) == 3
        assert "no configuration file /nonexistent" in capsys.readouterr().out  # so far it only comes with good options
        assert (TOP / Path(script).name).exists()


def test_the_service_takes_a_verdict_for_no_failure() -> None:
    assert unit(SERVICE)["Service"]["SuccessExitStatus"] == "1 2"


def test_the_service_may_write_where_the_example_configuration_does() -> None:
    example = (TOP / "mydb_config.example").read_text(encoding="utf-8")
    writable = unit(SERVICE)["Service"]["ReadWritePaths"].removeprefix("-")
    assert f"prometheus_file = '{writable}/backup_audit.prom'" in example


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """A folder with the units, whose program and documentation exist on this machine."""
    folder = tmp_path / "units"
    folder.mkdir()
    for path in (SERVICE, TIMER):
        text = path.read_text(encoding="utf-8").replace(PYTHON, sys.executable).replace(INSTALLED, str(TOP))
        (folder / path.name).write_text(text, encoding="utf-8")
    return folder


def analyze(command: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd-analyze is not installed (Debian: systemd)")
    return subprocess.run(
        [program, command, *arguments], capture_output=True, encoding="utf-8", check=False, timeout=60
    )


def test_systemd_understands_the_units(units: Path) -> None:
    checked = analyze("verify", "--man=no", units / SERVICE.name, units / TIMER.name)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


def test_systemd_finds_the_service_well_protected(units: Path) -> None:
    # in tenths: below 2.0 of 10
    judged = analyze("security", "--offline=true", "--no-pager", "--threshold=20", units / SERVICE.name)
    if "unrecognized option" in judged.stderr:
        pytest.skip("this systemd-analyze judges no unit files")
    assert judged.returncode == 0, judged.stdout[-200:] + judged.stderr
