"""`deploy/`: the audit works under the role, the cron line and the units as they stand there."""

from __future__ import annotations

import configparser
import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy.exc import DBAPIError, ProgrammingError

import backup_audit
from tests.builders import TOP, Result, Site
from tests.conftest import EVERY_SERVER
from tests.failures import as_result
from tests.postgres import ADMIN_USER, Database, Installation, Servers

DEPLOY = TOP / "deploy"
ROLE_SCRIPT = DEPLOY / "read_only_role.sql"
UNITS = [DEPLOY / name for name in ("backup-audit.service", "backup-audit@.service")]
TIMERS = [path.with_suffix(".timer") for path in UNITS]
ROLE = "backup_audit"
PASSWORD = "of the role: 'x'"
PROGRAM = "/opt/backup_audit/backup_audit.py"
"""Where the files of `deploy/` expect the program."""


# --- The role ------------------------------------------------------------------------------------------


@pytest.fixture(params=EVERY_SERVER)
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


def create_role(database: Database, user: str = "postgres") -> None:
    database.psql(ROLE_SCRIPT, user=user)
    quoted = PASSWORD.replace("'", "''")
    database.execute(f"ALTER ROLE {ROLE} PASSWORD '{quoted}'")
    database.server.add_user(ROLE, PASSWORD)


def test_every_command_runs_under_the_role_and_finds_what_the_owner_finds(database: Database, tmp_path: Path) -> None:
    create_role(database)
    site = Site(database.engine, database.settings, tmp_path, database)
    now = site.clock()
    sales, stock = site.container("sales"), site.container("stock", "Weekly", version=1)
    site.run(sales, now - timedelta(hours=30), now - timedelta(hours=29))
    site.run(sales, now - timedelta(hours=5), now - timedelta(hours=4), error="pg_dump: error: out of memory")
    site.run(stock, now - timedelta(hours=3), now - timedelta(hours=2))
    site.run(0, now - timedelta(hours=2), now - timedelta(hours=1), name="offsite", type="AWS S3")
    site.container("archive", "Never")
    site.run(site.container("gone", active=False), now - timedelta(hours=70), now - timedelta(hours=69))
    later = (now + timedelta(hours=50)).isoformat()  # overdue: the whole history is read
    commands = [
        *(("--json",), ("--json", "--at", later), ("--json", "sales", "offsite"), ("gone",), ("nobody",)),
        *(("--json", "--history", "30", "--all"), ("--history", "2026-01", "--csv"), ("--check-config",)),
    ]
    found: list[list[Result]] = []
    for user in (ADMIN_USER, ROLE):
        site.config(admin_user=user, extra_jobs={"offsite": "Daily"})
        assert site.audit("-q") == Result(2, "", "")
        found.append([site.audit(*argv) for argv in commands])
    assert [result.status for result in found[1]] == [2, 2, 2, 3, 3, 0, 0, 0]
    owner, role = (json.loads(results[0].out) for results in found)
    assert (owner["containers"], role["audit"]["database"][:13]) == (role["containers"], f"{ROLE}@")
    for of_owner, of_role in zip(*(results[1:3] for results in found), strict=True):
        assert json.loads(of_owner.out)["containers"] == json.loads(of_role.out)["containers"]
    statuses = {container["name"]: container["status"] for container in role["containers"]}
    assert statuses == {"sales": "failed", "stock": "ok", "archive": "exempt", "offsite": "ok"}


FORBIDDEN = [
    *("SELECT command FROM backups", "SELECT * FROM backups", "SELECT url FROM backups"),
    *("SELECT count(*) FROM action_log", "SELECT changed_by FROM container_state"),
    *("INSERT INTO backups (c_id) VALUES (1)", "UPDATE containers SET name = 'x'", "DELETE FROM container_state"),
    *("TRUNCATE backups", "SELECT nextval('backups_id_seq')"),
    *("CREATE TABLE loot (id int)", "CREATE SCHEMA loot", "CREATE ROLE loot"),
]


def test_the_role_may_do_nothing_else(database: Database) -> None:
    create_role(database)
    database.execute(f"GRANT SELECT (command), INSERT ON backups TO {ROLE}; GRANT SELECT ON action_log TO {ROLE}")
    assert database.execute("SELECT command FROM backups", ROLE) == []
    create_role(database)  # once more takes back what the script does not grant
    for statement in FORBIDDEN:
        with pytest.raises(ProgrammingError, match="permission denied"):
            database.execute(f"BEGIN READ WRITE; {statement}", ROLE)
    with pytest.raises(DBAPIError, match="read-only transaction"):
        database.execute("CREATE TABLE loot (id int)", ROLE)
    assert database.execute("SELECT err_msg FROM backups", ROLE) == []


def test_the_owner_of_the_database_may_make_the_role(database: Database) -> None:
    database.execute(f"ALTER ROLE {ADMIN_USER} CREATEROLE")
    try:
        database.psql(ROLE_SCRIPT, user=ADMIN_USER)
        query = f"SELECT rolpassword, rolcanlogin, rolconnlimit, rolsuper FROM pg_authid WHERE rolname = '{ROLE}'"
        assert database.execute(query) == [(None, True, 3, False)], "no password until it is given one"
    finally:
        database.execute(f"ALTER ROLE {ADMIN_USER} NOCREATEROLE")


# --- cron ----------------------------------------------------------------------------------------------


def cron_line() -> tuple[list[str], str, str]:
    """When, as whom and what the line of `deploy/crontab` runs."""
    lines = (DEPLOY / "crontab").read_text(encoding="utf-8").splitlines()
    [line] = [line for line in lines if line[:1].isdigit()]
    assert "%" not in line, "cron would take it for the end of the line"
    *times, user, command = line.split(None, 6)
    return times, user, command


def test_the_cron_line(sqlite_site: Site, tmp_path: Path) -> None:
    times, user, command = cron_line()
    assert (times[2:], user) == (["*", "*", "*"], "backup_audit")
    assert int(times[0]) < 60
    assert int(times[1]) < 24
    folder = tmp_path / "opt"
    shutil.copytree(TOP / "audit", folder / "audit")
    for name in ("backup_audit.py", "admin_db.py", "models.py"):
        shutil.copy(TOP / name, folder)
    (folder / ".venv").symlink_to(sys.prefix)
    shutil.copy(sqlite_site.config(), folder / "mydb_config.py")
    here = command.replace(PROGRAM, shlex.quote(str(folder / "backup_audit.py")))
    environment = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "SHELL": "/bin/sh", "LOGNAME": "backup_audit"}

    def run_as_cron() -> Result:
        options = {"capture_output": True, "encoding": "utf-8", "check": False}
        return as_result(subprocess.run(["/bin/sh", "-c", here], env=environment, **options))  # type: ignore[call-overload]

    started = sqlite_site.clock() - timedelta(hours=2)
    sqlite_site.run(sqlite_site.container("sales"), started, started + timedelta(hours=1))
    assert run_as_cron() == Result(0, "", ""), "nothing to mail"
    sqlite_site.container("Übung", policy=None)
    mail = run_as_cron()
    assert (mail.status, mail.err) == (2, "")
    assert "no_policy Übung: " in " ".join(mail.out.split())
    assert f"{folder / 'backup_audit.py'} 'Übung'" in mail.out, "a command that works when it is pasted"


# --- systemd -------------------------------------------------------------------------------------------


def unit(path: Path) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment, method-assign] # the documented way to keep the case
    parser.read(path, encoding="utf-8")
    return parser


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_the_services(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    service = unit(path)["Service"]
    script, *arguments = shlex.split(service["ExecStart"])
    assert script == PROGRAM
    if "@" in path.name:
        assert arguments == ["--config", "/etc/backup_audit/%i.py"]
    assert backup_audit.main([*arguments, "--config", "/nonexistent", "--check-config"]) == 3
    assert "no configuration file /nonexistent" in capsys.readouterr().out, "it only gets so far with good options"
    assert service["SuccessExitStatus"] == "1 2", "a verdict is not a failure"
    example = (TOP / "mydb_config.example").read_text(encoding="utf-8")
    writable = service["ReadWritePaths"].removeprefix("-")
    assert f"prometheus_file = '{writable}/backup_audit.prom'" in example
    assert {**service, "ExecStart": ""} == {**unit(UNITS[0])["Service"], "ExecStart": ""}, "both are protected alike"


def analyze(command: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd-analyze is not installed (Debian: systemd)")
    words = [program, command, *arguments]
    return subprocess.run(words, capture_output=True, encoding="utf-8", check=False, timeout=60)


@pytest.mark.parametrize("instance", ["", "north"])
def test_systemd_understands_the_units_and_finds_them_well_protected(tmp_path: Path, instance: str) -> None:
    paths = []
    for path in (UNITS + TIMERS)[bool(instance) :: 2]:
        paths.append(tmp_path / path.name.replace("@", f"@{instance}"))
        paths[-1].write_text(path.read_text("utf-8").replace("/opt/backup_audit", str(TOP)), encoding="utf-8")
    checked = analyze("verify", "--man=no", *paths)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")
    judged = analyze("security", "--offline=true", "--no-pager", "--threshold=20", paths[0])  # tenths: 2.0 of 10
    if "unrecognized option" in judged.stderr:
        pytest.skip("this systemd-analyze judges no unit files")
    assert judged.returncode == 0, judged.stdout[-200:] + judged.stderr
