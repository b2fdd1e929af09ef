"""`deploy/read_only_role.sql`: under its role the audit finds what the owner finds, and nobody finds a password.

On the main PostgreSQL and the oldest one there is: what a role may do differs between versions.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg2
import pytest

from tests.builders import NOW, Site
from tests.db4sci import SECRET, document
from tests.postgres import (
    ADMIN_USER,
    MAIN_AND_OLDEST,
    ROLE,
    ROLE_REMOVAL,
    ROLE_SCRIPT,
    SUPERUSER,
    Installation,
    Server,
    read_only_role,
)
from tests.programs import ProgramError

LIST = (SECRET,)
ODD_DOCUMENTS = {
    "null": None,
    "text": {"Info": SECRET, "Config": {"Labels": SECRET}},
    "lists": {
        "Info": {
            **dict.fromkeys(("BACKUP_FREQ", "backup_freq", "dbengine", "OWNER", "CONTACT"), LIST),
            "labels": dict.fromkeys(("BACKUP_FREQ", "backup_freq", "owner", "contact"), LIST),
        },
        "Config": {"Labels": {"BACKUP_FREQ": LIST}},
    },
    "object for a policy": {"Info": {"BACKUP_FREQ": {"DB_PASS": SECRET}, "backup_freq": "Daily", "OWNER": None}},
    "labels": {"Info": {"BACKUP_FREQ": "", "labels": {"BACKUP_FREQ": "Weekly", "contact": "Zoë"}}},
    "labels of Config": {"Config": {"Labels": {"BACKUP_FREQ": "Never"}}},
}


@pytest.fixture(params=MAIN_AND_OLDEST)
def site_with_passwords(
    request: pytest.FixtureRequest, servers: Callable[[Installation], Server], tmp_path: Path
) -> Iterator[Site]:
    """A site with passwords in tables, files and statistics, and the role."""
    server = servers(request.param)
    database = server.create_site()
    site = Site(database.engine, database.settings, tmp_path, database)
    for name, data in ODD_DOCUMENTS.items():
        site.container(name, data=data)
    for name in ("sales", "stock"):  # the same document, so that it is among the most common values
        site.run(site.container(name, data=document("sales", version=1)), "2026-03-13 18:07", "2026-03-13 18:30")
    database.execute("ANALYZE")
    with read_only_role(database):
        yield site
    database.drop()


def seen_by(site: Site, user: str, *statements: str) -> str:
    """All that a role gets to see when it sends statements: rows, notices and errors."""
    database, seen = site.postgres, list[object]()
    with database.server.connected(database.name, user) as connection, connection.cursor() as cursor:
        for statement in ("SET default_transaction_read_only = off", *statements):
            try:
                cursor.execute(statement)
                seen += cursor.fetchall() if cursor.description else []
            except psycopg2.Error as error:
                seen.append(str(error))
        return repr((seen, connection.notices))


def test_the_audit_finds_what_it_finds_as_the_owner(site_with_passwords: Site) -> None:
    database = site_with_passwords.postgres
    database.execute(f'ALTER DATABASE "{database.name}" SET search_path = public')  # the role's own path counts
    wiki, gone = site_with_passwords.container("wiki", "Weekly"), site_with_passwords.container("gone", active=False)
    site_with_passwords.run(wiki, "2026-03-13 18:07", "2026-03-13 18:30", error="pg_dump: error: no")
    site_with_passwords.run(0, "2026-03-13 20:07", "2026-03-13 20:30", name="offsite", type="AWS S3")
    site_with_passwords.run(gone, "2026-03-11 18:07", "2026-03-11 18:30")
    found = []
    for user in (ADMIN_USER, ROLE):
        site_with_passwords.config(admin_user=user, extra_jobs={"offsite": "Daily"})
        checklist = site_with_passwords.audit("--check-config").out
        assert "FAILED" not in checklist
        assert ("note    tables: the role can write to them" in checklist) == (user == ADMIN_USER)
        words = (["--json"], ["--output", "-"], ["sales", "gone", "*o*"], ["--history", "30", "--all", "--json"])
        results = [site_with_passwords.audit("--at", NOW.isoformat(), *argv) for argv in words]
        found.append([(result.status, result.out.replace(f"{user}@", ""), result.err) for result in results])
    assert found[0] == found[1]
    report = {one["name"]: one for one in json.loads(found[1][0][1])["containers"]}
    statuses = [report[name]["status"] for name in ("wiki", "sales", "offsite", "text")]
    assert statuses == ["failed", "ok", "ok", "no_policy"]
    policies = [report[name]["policy"] for name in ("object for a policy", "labels", "labels of Config")]
    assert policies == ["Daily", "Weekly", "Never"]


LEAK = """CREATE FUNCTION pg_temp.leak(jsonb, jsonb DEFAULT NULL) RETURNS bool LANGUAGE plpgsql COST 0.0000001
          AS $$ BEGIN RAISE NOTICE '%', $1; RETURN true; END $$"""
LIKE = "CREATE OPERATOR pg_temp.=== (PROCEDURE = pg_temp.leak, LEFTARG = jsonb, RIGHTARG = jsonb, RESTRICT = eqsel)"
WAYS_TO_A_PASSWORD = [
    ["SELECT data FROM containers"],
    ["SELECT containers FROM public.containers TABLESAMPLE SYSTEM (100)"],
    ["SELECT command FROM backups"],
    [LEAK, "SELECT id FROM containers WHERE pg_temp.leak(data)"],
    [LEAK, LIKE, "EXPLAIN SELECT id FROM containers WHERE data OPERATOR(pg_temp.===) '{}'"],  # asks the statistics
    ["SELECT most_common_vals::text FROM pg_stats WHERE tablename = 'containers'"],
    [f"SET ROLE {ADMIN_USER}", "SELECT data FROM public.containers"],
    ["BEGIN", "UPDATE public.containers SET name = name RETURNING data"],
    ["BEGIN", "CREATE OR REPLACE VIEW backup_audit.containers AS SELECT * FROM public.containers", "TABLE containers"],
    [f"BEGIN; GRANT SELECT ON public.containers TO {ROLE}; GRANT {ADMIN_USER} TO {ROLE}", "TABLE public.containers"],
]
OF_A_CONTAINER = {
    "Info": {
        "BACKUP_FREQ": "Daily",
        "dbengine": "Postgres",
        "OWNER": "ada",
        "CONTACT": "ada@example.org",
        "backup_freq": None,
        "labels": dict.fromkeys(("BACKUP_FREQ", "backup_freq", "owner", "contact")),
    },
    "Config": {"Labels": {"BACKUP_FREQ": "Daily"}},
}
"""All that the view shows of a document of version 1."""
FORBIDDEN = [
    "SELECT count(*) FROM action_log",
    "SELECT changed_by FROM container_state",
    "INSERT INTO backups (c_id) VALUES (1)",
    "INSERT INTO containers (name) VALUES ('x')",
    "DELETE FROM container_state",
    "SELECT nextval('backups_id_seq')",
    f"CREATE TABLE {ROLE}.loot (id int)",
    "CREATE ROLE loot",
]


def test_no_way_leads_to_a_password_or_to_a_change(site_with_passwords: Site) -> None:
    for statements in WAYS_TO_A_PASSWORD:
        assert SECRET in seen_by(site_with_passwords, SUPERUSER, *statements), "it is no way at all"
        assert SECRET not in seen_by(site_with_passwords, ROLE, *statements)
    allowed = "SELECT data #>> '{Info,dbengine}', url, err_msg FROM containers, backups LIMIT 0"
    assert seen_by(site_with_passwords, ROLE, allowed) == "([], [])"
    view = f"SELECT DISTINCT data FROM {ROLE}.containers WHERE name IN ('sales', 'stock')"
    assert site_with_passwords.postgres.execute(view) == [(OF_A_CONTAINER,)]
    for statement in FORBIDDEN:
        said = seen_by(site_with_passwords, ROLE, statement)
        assert re.search("permission denied|cannot insert into view", said), said
    reset = "RESET default_transaction_read_only"
    assert "read-only transaction" in seen_by(site_with_passwords, ROLE, reset, "CREATE TABLE x ()")


VERSION_2_0 = f"""
    DROP SCHEMA {ROLE} CASCADE;
    GRANT SELECT (id, name, data, ts) ON containers TO {ROLE};
    GRANT INSERT ON backups TO {ROLE};
    GRANT CREATE ON SCHEMA public TO PUBLIC;
"""
TRAP = """
    CREATE FUNCTION public.leak(jsonb, jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT $1';
    CREATE OPERATOR public.-> (PROCEDURE = public.leak, LEFTARG = jsonb, RIGHTARG = jsonb)
"""
WAYS_AROUND = {
    f"GRANT {ADMIN_USER} TO {ROLE}": f"REVOKE {ADMIN_USER} FROM {ROLE}",
    f"ALTER ROLE {ROLE} CREATEROLE": f"ALTER ROLE {ROLE} NOCREATEROLE",
    "GRANT SELECT ON containers TO PUBLIC": "REVOKE SELECT ON containers FROM PUBLIC",
    "GRANT SELECT (command) ON backups TO PUBLIC": "REVOKE SELECT (command) ON backups FROM PUBLIC",
}


def test_run_again_it_takes_back_old_grants_and_refuses_a_role_with_a_way_around(site_with_passwords: Site) -> None:
    site_with_passwords.postgres.execute(VERSION_2_0)
    assert SECRET in seen_by(site_with_passwords, ROLE, "SELECT data FROM containers", TRAP)
    for way, back in WAYS_AROUND.items():
        site_with_passwords.postgres.execute(way)
        with pytest.raises(ProgramError, match="backup_audit can read passwords"):
            site_with_passwords.postgres.psql(ROLE_SCRIPT)
        site_with_passwords.postgres.execute(back)
    site_with_passwords.postgres.psql(ROLE_SCRIPT)
    for table in ("containers", "public.containers"):
        assert SECRET not in seen_by(site_with_passwords, ROLE, f"SELECT data FROM {table}")
    assert "permission denied" in seen_by(site_with_passwords, ROLE, "INSERT INTO backups (c_id) VALUES (1)")


def test_a_superuser_removes_it_and_the_owner_of_the_database_may_make_it(site_with_passwords: Site) -> None:
    database = site_with_passwords.postgres
    owner = f"SELECT viewowner FROM pg_views WHERE schemaname = '{ROLE}'"
    role = f"SELECT rolpassword, rolcanlogin, rolconnlimit, rolsuper FROM pg_authid WHERE rolname = '{ROLE}'"
    assert database.execute(owner) == [(ADMIN_USER,)]
    for statement in ROLE_REMOVAL:
        database.execute(statement)
    assert database.execute(owner) + database.execute(role) == []
    database.execute(f"ALTER ROLE {ADMIN_USER} CREATEROLE")
    try:
        database.psql(ROLE_SCRIPT, user=ADMIN_USER)
    finally:
        database.execute(f"ALTER ROLE {ADMIN_USER} NOCREATEROLE")
    assert database.execute(owner) == [(ADMIN_USER,)]
    assert database.execute(role) == [(None, True, 3, False)], "no password until it is given one"
