"""What the audit asks of the server: how often, and for what."""

from __future__ import annotations

import re

from audit.policy import DAY, HOUR
from tests.builders import NOW, Site
from tests.postgres import ADMIN_USER, clear

AT = ("--at", NOW.isoformat())
SELECTS_OF_SQLALCHEMY = 2
"""About the server, in the first connection of an engine."""
SELECTS, SELECTS_OF_HISTORY = 5, 6
"""The clock, the containers, when the log begins, the days read, and the log of those that these do not decide; the
history reads the deleted containers, too."""
MOST_SELECTS = 7
"""Of a history of a site that has been silent for so long that its newest row is looked for."""


def fill(site: Site, tens: int) -> None:
    """Tens of containers: of ten four have no backup of last night, two failed, and two are new."""
    clear(site.postgres)
    for number in range(10 * tens):
        kind = number % 5
        policy = "Never" if number % 10 == 0 else "Daily"
        c_id = site.container(f"lab {number}", policy, created=NOW - HOUR if kind == 4 else None)
        if policy == "Daily" and kind != 4:
            started = NOW - 13 * HOUR - (2 * DAY if kind in (1, 2) else 0 * DAY)
            site.run(c_id, started, started + HOUR, error="pg_dump: error: no" if kind == 3 else "")


def log_of(site: Site) -> str:
    """The log of the site's server."""
    return (site.postgres.server.folder / "log").read_text("utf-8")


def statements_of_audits(log: str) -> list[str]:
    """What audits sent to a server that logs every statement."""
    pattern = re.compile(r"\|backup_audit\|LOG:  (?:statement|execute [^:]+): (.*)", re.DOTALL)
    entries = re.split(r"^(?=\|)", log, flags=re.MULTILINE)
    return [match[1].strip(" \n;") for one in entries if (match := pattern.match(one))]


def assert_right_for_the_log(statements: list[str]) -> None:
    """The log is read by time stamp and never by id, and as a stream."""
    readers = [one for one in statements if re.search(r"\bbackups\b", one) and "min(backups.ts)" not in one]
    assert readers
    for statement in readers:
        assert re.match(r"DECLARE .* CURSOR .* ORDER BY backups\.c_id$", statement, re.DOTALL)
        assert re.search(r"WHERE (?:\(*backups\.ts >= |backups\.c_id IN )", statement), statement
        assert not re.search(r"\bid\s*(?:[<>=]|IN\b|BETWEEN\b)|ORDER BY backups\.id", statement), statement
    batches = [int(match[1]) for one in statements if (match := re.match(r"FETCH FORWARD (\d+)", one))]
    assert max(batches) <= 1_000


def test_the_number_of_selects_is_the_same_for_any_number_of_containers(own_site: Site) -> None:
    name = own_site.postgres.name
    own_site.postgres.execute(f"ALTER ROLE {ADMIN_USER} IN DATABASE {name} SET log_statement = 'all'")
    for tens in (1, 3):
        fill(own_site, tens)
        before = len(log_of(own_site))
        assert own_site.audit("--history", "30", "--all", *AT).status == 0
        verbs = [one.split()[0].upper() for one in statements_of_audits(log_of(own_site)[before:])]
        assert verbs.count("SELECT") + verbs.count("DECLARE") == SELECTS_OF_HISTORY + SELECTS_OF_SQLALCHEMY
        before = len(log_of(own_site))
        assert own_site.audit("-q", *AT).status == 2
        statements = statements_of_audits(log_of(own_site)[before:])
        verbs = [statement.split()[0].upper() for statement in statements]
        assert set(verbs) <= {"BEGIN", "SELECT", "SHOW", "SET", "DECLARE", "FETCH", "CLOSE", "ROLLBACK"}
        assert verbs.count("SELECT") + verbs.count("DECLARE") == SELECTS + SELECTS_OF_SQLALCHEMY
        begun = [one for one in statements if one.startswith("BEGIN")]
        assert begun == ["BEGIN", "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"], "one snapshot"
        assert verbs[-1] == "ROLLBACK", "no transaction is left behind"
        assert_right_for_the_log(statements)
        last = [one for one in statements if "DECLARE" in one][-1]
        undecided = re.findall(r"\d+", last.partition("backups.c_id IN (")[2].partition(")")[0])
        assert len(undecided) == 6 * tens, "those that are missed had a good backup: decided"
    before = len(log_of(own_site))
    years_later = (NOW + 1000 * DAY).isoformat()
    assert own_site.audit("--history", "30", "--all", "--at", years_later).status == 0
    verbs = [one.split()[0].upper() for one in statements_of_audits(log_of(own_site)[before:])]
    assert verbs.count("SELECT") + verbs.count("DECLARE") == MOST_SELECTS + SELECTS_OF_SQLALCHEMY
    for argv in (("lab 1", "lab 2", *AT), ("--check-config",)):
        assert own_site.audit(*argv).status < 3
    for statement in statements_of_audits(log_of(own_site)):
        assert not re.search(r"\bcommand\b", statement), "it can hold a password"
        assert not re.search(r"\bdata\b(?! #> )", statement) or "WHERE false" in statement, "it holds passwords"
