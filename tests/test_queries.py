"""What the audit asks of the server: how often, for what, in what kind of session; and a large site."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, event, insert, select, text

import admin_db
import history
from models import BackupLog, ContainerRow, ContainerState
from policy import Rules, Status
from tests.builders import NOW, SECRET, Result, Site, document, series
from tests.postgres import ADMIN_USER, HOST, SUPERUSER, Server
from tests.test_policy_properties import ERROR, PROGRESS, LogRow, ask_oracle, plain_runs

UTC = timezone.utc
AT = NOW.isoformat()
MOST_SELECTS = 6


# --- A site of any size --------------------------------------------------------------------------------


def fill(site: Site, containers: int, days: int = 40, stride: int = 10_000) -> None:
    """A site whose ids are so far apart that its log counts as a long one; some containers are overdue."""
    with site.session() as session:
        rows: list[dict[str, Any]] = []
        for c_id in range(1, containers + 1):
            name = f"container {c_id}"
            session.add(ContainerRow(id=c_id, name=name, data=document(name), ts=datetime(2025, 1, 15)))
            session.add(ContainerState(c_id=c_id, name=name, state="running"))
            for day in range(days):
                if c_id % 5 == 0 and day == 0:
                    continue  # no backup last night
                start = datetime(2026, 3, 13, 18, c_id % 60) - timedelta(days=day)
                run = {"c_id": c_id, "name": name, "backup_id": f"{start:%Y%m%d-%H:%M:%S}", "command": SECRET}
                rows.append({**run, "state": "start", "ts": start})
                rows.append({**run, "state": "end", "ts": start + timedelta(minutes=20)})
        rows.sort(key=lambda row: row["ts"])
        for number, row in enumerate(rows):
            row["id"] = 1 + number * stride
        session.execute(insert(BackupLog), rows)


def assert_filled(site: Site, containers: int) -> None:
    """Audit the site of `fill`: every fifth container has missed its backup."""
    missed = containers // 5
    assert site.audit("-q", "--at", AT, "--output", site.textfile).status == 2
    samples = site.samples()
    assert samples[series("mydb_backup_containers", status="missed")] == missed
    assert samples[series("mydb_backup_containers", status="ok")] == containers - missed


# --- How many statements -------------------------------------------------------------------------------


@contextmanager
def recorded_statements() -> Iterator[list[str]]:
    """What any engine of this process sends, while the block runs."""
    statements: list[str] = []

    def record(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        statements.append(statement)

    event.listen(Engine, "before_cursor_execute", record)
    try:
        yield statements
    finally:
        event.remove(Engine, "before_cursor_execute", record)


def selects(statements: list[str]) -> list[str]:
    return [one for one in statements if re.match(r"\s*(SELECT|WITH|DECLARE|TABLE|VALUES)\b", one, re.IGNORECASE)]


def test_the_number_of_selects_does_not_grow_with_the_containers(any_site: Site) -> None:
    counts = []
    for containers in (10, 200):
        fill_afresh(any_site, containers)
        with recorded_statements() as statements:
            assert_filled(any_site, containers)
        counts.append(len(selects(statements)))
        assert len(statements) < 12
    assert counts[0] == counts[1]
    assert 1 < counts[0] <= MOST_SELECTS


def fill_afresh(site: Site, containers: int) -> None:
    with site.session() as session:
        for table in ("containers", "container_state", "backups"):
            session.execute(text(f"DELETE FROM {table}"))
    fill(site, containers)


def logged_statements(server: Server, position: int) -> list[str]:
    """The statements in the log of a server with `log_statement=all`, from a position on."""
    with (server.folder / "log").open("rb") as log:
        log.seek(position)
        entries = re.split(r"^(?=audit-test\|)", log.read().decode("utf-8", "replace"), flags=re.MULTILINE)
    matches = [
        re.match(r"audit-test\|(.*?)\|LOG:  (?:statement|execute [^:]+): (.*)", one, re.DOTALL) for one in entries
    ]
    return [match[2] for match in matches if match and match[1] == "backup_audit"]


def test_the_server_counts_the_same(new_server: Callable[..., Server], tmp_path: Path) -> None:
    server = new_server(log_statement="all", log_line_prefix="audit-test|%a|")
    database = server.shared_site
    site = Site(database.engine, database.settings, tmp_path, database)
    counts = []
    for containers in (10, 200):
        fill_afresh(site, containers)
        position = (server.folder / "log").stat().st_size
        assert_filled(site, containers)
        statements = logged_statements(server, position)
        counts.append(len(selects(statements)))
        verbs = {statement.split()[0].upper().rstrip(";") for statement in statements}
        assert verbs <= {"BEGIN", "SELECT", "WITH", "SHOW", "SET", "DECLARE", "FETCH", "CLOSE", "ROLLBACK", "COMMIT"}
    assert counts[0] == counts[1]
    assert 1 < counts[0] <= MOST_SELECTS


def test_an_audit_in_which_all_is_well_needs_no_look_at_the_whole_log(site: Site) -> None:
    fill(site, 10)
    with site.session() as session:
        session.execute(text("DELETE FROM container_state WHERE c_id % 5 = 0"))
    with recorded_statements() as well:
        assert site.audit("-q", "--at", AT).status == 0
    fill_afresh(site, 10)
    with recorded_statements() as overdue:
        assert site.audit("-q", "--at", AT).status == 2
    assert len(selects(well)) < len(selects(overdue))


# --- A large site --------------------------------------------------------------------------------------

LARGE = """
INSERT INTO containers (id, name, data, ts)
SELECT n, 'container ' || n,
       jsonb_build_object('Info', jsonb_build_object('POSTGRES_PASSWORD', :secret, 'BACKUP_FREQ',
           CASE WHEN n % 20 = 17 THEN 'Never' WHEN n % 20 = 18 THEN 'Fortnightly'
                WHEN n % 20 = 19 THEN 'Monthly' WHEN n % 4 = 1 THEN 'Weekly' ELSE 'Daily' END)),
       CASE WHEN n % 50 = 6 THEN timestamp '2026-03-14 01:00' ELSE timestamp '2023-01-01' END
  FROM generate_series(1, :containers) n;

INSERT INTO container_state (c_id, name, state, ts)
SELECT id, name, CASE WHEN id % 13 = 0 THEN 'maintenance' ELSE 'running' END, ts FROM containers;

-- one run a night (a week, for Weekly); what becomes of it is drawn from a hash, and so are the containers
-- that have none for their last nights, or for their last years
WITH nights AS (
    SELECT n, d, timestamp '2026-03-13 18:00' - d * interval '1 day' + n * interval '97 seconds' AS start,
           ('x' || substr(md5(n || ' ' || d), 1, 6))::bit(24)::int % 100 AS luck,
           ('x' || substr(md5('container ' || n), 1, 6))::bit(24)::int AS habit
      FROM generate_series(1, :containers) n, generate_series(0, :days - 1) d
     WHERE n % 50 <> 6
), runs AS (
    SELECT *, to_char(start, 'YYYYMMDD-HH24:MI:SS') AS backup_id FROM nights
     WHERE (n % 4 <> 1 OR extract(isodow FROM start) = 6)
       AND d >= CASE WHEN habit % 10 = 0 THEN 1 WHEN habit % 10 = 1 THEN 9
                     WHEN habit % 10 = 2 THEN habit % :days ELSE 0 END
), rows AS (
    SELECT n, backup_id, 'start' AS state, start AS ts,
           CASE WHEN luck = 0 THEN :error ELSE '' END AS err_msg
      FROM runs WHERE luck <> 1
     UNION ALL
    SELECT n, backup_id, 'end', start + (5 + luck) * interval '1 minute',
           CASE WHEN luck BETWEEN 2 AND 6 THEN :error ELSE :progress END
      FROM runs WHERE luck NOT BETWEEN 7 AND 11
)
INSERT INTO backups (c_id, name, state, backup_id, backup_type, command, err_msg, ts)
SELECT n, 'container ' || n, state, backup_id, 'Daily', :secret, err_msg, ts FROM rows ORDER BY ts, n;
"""


def fill_large(site: Site, containers: int, days: int) -> None:
    """A site of many containers with a long history, made by the server itself."""
    values = {
        "containers": containers,
        "days": days,
        "secret": SECRET,
        "error": ERROR,
        "progress": PROGRESS,
    }
    with site.session() as session:
        for statement in LARGE.split(";\n"):
            if statement.strip():
                session.execute(text(statement).columns(), {k: v for k, v in values.items() if f":{k}" in statement})
    with site.engine.connect() as connection:
        connection.execution_options(isolation_level="AUTOCOMMIT").execute(text("ANALYZE"))


def everything_in(site: Site) -> dict[int | None, list[LogRow]]:
    """The whole log by container, read in the plainest way."""
    rows: dict[int | None, list[LogRow]] = {}
    query = select(BackupLog.c_id, BackupLog.state, BackupLog.backup_id, BackupLog.ts, BackupLog.err_msg)
    with site.session() as session:
        for row in session.execute(query):
            rows.setdefault(row[0], []).append(LogRow(*row))
    return rows


def test_the_verdicts_on_a_large_site_are_those_of_the_oracle(own_site: Site) -> None:
    site = own_site
    site.config(policies={"Monthly": 744})
    rules = Rules(policies={"Monthly": timedelta(hours=744)})
    fill_large(site, containers=200, days=1000)
    with site.session() as session:
        containers = session.execute(
            select(
                ContainerRow.id,
                ContainerRow.data[("Info", "BACKUP_FREQ")].as_string(),
                ContainerState.state,
                ContainerRow.ts,
            ).join(ContainerState, ContainerState.c_id == ContainerRow.id)
        ).all()
    rows = everything_in(site)
    assert len(containers) == 200
    assert sum(map(len, rows.values())) > 250_000
    seen: set[str] = set()
    for now in (NOW, NOW - timedelta(hours=10, minutes=30), datetime(2025, 8, 20, 18, 45, tzinfo=UTC)):
        with recorded_statements() as statements:
            report = json.loads(site.audit("--json", "--at", now.isoformat()).out)
        assert len(selects(statements)) <= MOST_SELECTS
        found = {one["c_id"]: one for one in report["containers"]}
        for c_id, policy, state, created in containers:
            created_at = created.replace(tzinfo=UTC)
            answer = ask_oracle(policy, state, created_at, plain_runs(rows.get(c_id, []), now, UTC), now, rules)
            one = found[c_id]
            assert one["status"] == answer.status, one
            seen.add(answer.status)
            if answer.status in ("no_policy", "exempt"):
                continue  # their runs decide nothing, and are looked for in the recent part only
            assert (one["last_success"] or {}).get("backup_id") == answer.last_success, one
            assert (one["last_run"] or {}).get("backup_id") == answer.last_run, one
            assert one["due"] == (answer.due and answer.due.replace(tzinfo=None).isoformat() + "Z"), one
    assert seen == {status.value for status in Status}


def test_an_old_success_is_found_and_published(site: Site) -> None:
    fill(site, 10)
    c_id = site.container("kept", "Daily", c_id=99)
    started = datetime(2025, 10, 1, 18, 7)
    for log_id, state in ((-20_000, "start"), (-10_000, "end")):  # before all that is in the log
        site.row(id=log_id, c_id=c_id, name="kept", backup_id="x", state=state, ts=started)
    site.audit("-q", "--at", AT, "--output", site.textfile)
    samples = site.samples()
    for metric in ("mydb_backup_last_success_timestamp_seconds", "mydb_backup_last_run_timestamp_seconds"):
        assert samples.get(series(metric, name="kept", c_id="99")) == started.replace(tzinfo=UTC).timestamp(), metric


def broken(*_: object) -> None:
    raise ZeroDivisionError


@pytest.mark.parametrize(
    ("place", "routine", "mistake"),
    [
        (admin_db.AuditReader, "recent", broken),  # in the thread
        (admin_db.AuditReader, "_batches", lambda *_: map(broken, "x")),  # in the thread, when they are fetched
        (history, "covered_ratio", broken),  # beside the thread
    ],
    ids=["recent", "batches", "ratio"],
)
def test_a_mistake_in_or_beside_the_thread_does_not_make_the_audit_wait(
    any_site: Site, monkeypatch: pytest.MonkeyPatch, place: object, routine: str, mistake: Callable[..., object]
) -> None:
    fill(any_site, 10)
    monkeypatch.setattr(place, routine, mistake)
    results: list[Result] = []
    audit = threading.Thread(target=lambda: results.append(any_site.audit("-q", "--at", AT)), daemon=True)
    audit.start()
    audit.join(30)
    assert not audit.is_alive(), "it waits for a read that has failed"
    assert results[0].status == 3
    assert "ZeroDivisionError" in results[0].err


# --- What is asked for ---------------------------------------------------------------------------------


class Wiretap:
    """A relay to a server, on a port of its own, that keeps what is said."""

    def __init__(self, port: int) -> None:
        self.heard = bytearray()
        self.asked = bytearray()
        self._target = port
        self._listener = socket.create_server((HOST, 0))
        self.port = int(self._listener.getsockname()[1])
        self._acceptor = threading.Thread(target=self._accept)
        self._acceptor.start()

    def close(self) -> None:
        """Let no more in, and wait for those who are."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._acceptor.join()
        self._listener.close()

    def _accept(self) -> None:
        relays: list[threading.Thread] = []
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                break
            relays.append(threading.Thread(target=self._serve, args=(client,)))
            relays[-1].start()
        for relay in relays:
            relay.join()

    def _serve(self, client: socket.socket) -> None:
        with client, socket.create_connection((HOST, self._target)) as server:
            answers = threading.Thread(target=self._relay, args=(server, client, self.heard))
            answers.start()
            self._relay(client, server, self.asked)
            answers.join()

    @staticmethod
    def _relay(source: socket.socket, target: socket.socket, tape: bytearray) -> None:
        with contextlib.suppress(OSError):  # a side that has hung up
            while data := source.recv(65536):
                tape += data
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)


@pytest.fixture
def wiretap(postgres: Server) -> Iterator[Wiretap]:
    tap = Wiretap(postgres.port)
    yield tap
    tap.close()


@pytest.mark.parametrize(
    "argv", [("--json",), ("-v",), ("sales",), ("--json", "overdue"), ("--check-config",)], ids=" ".join
)
def test_no_password_ever_leaves_the_server(
    site: Site, postgres: Server, wiretap: Wiretap, argv: tuple[str, ...]
) -> None:
    sales, overdue = site.container("sales", version=1), site.container("overdue", version=2)
    site.run(sales, "2026-03-13 18:07", "2026-03-13 18:30", message="found in an err_msg")
    site.run(overdue, "2026-03-10 18:07", "2026-03-10 18:30")
    word = postgres.passwords[ADMIN_USER].replace("\\", "\\\\").replace(":", "\\:")
    passfile = site.folder / "pgpass"
    passfile.touch(mode=0o600)
    passfile.write_text(f"*:*:*:{ADMIN_USER}:{word}\n", encoding="utf-8")
    site.config(mydb_admin_port=wiretap.port, pgpass_file=str(passfile), libpq_options={"sslmode": "disable"})
    moment = () if argv == ("--check-config",) else ("--at", AT)
    result = site.audit(*argv, *moment)
    assert result.status < 3, result
    assert b"SELECT" in wiretap.asked, "the audit went through the relay"
    if moment:
        assert b"sales" in wiretap.heard
    assert SECRET.encode() not in wiretap.heard
    assert b"POSTGRES_PASSWORD" not in wiretap.heard
    assert b"command" not in wiretap.asked


COLUMNS = {
    "containers": "id, name, data, ts",
    "container_state": "id, c_id, name, state",
    "backups": "id, c_id, name, state, backup_id, backup_type, err_msg, ts",
}


def test_the_columns_that_are_needed_are_enough(own_site: Site) -> None:
    site = own_site
    assert site.database
    fill(site, 10)
    server = site.database.server
    server.execute("DROP ROLE IF EXISTS narrow; CREATE ROLE narrow LOGIN PASSWORD 'narrow'")
    server.add_user("narrow", "narrow")
    try:
        for table, columns in COLUMNS.items():
            site.database.execute(f"GRANT SELECT ({columns}) ON {table} TO narrow")
        site.config(admin_user="narrow")
        assert_filled(site, 10)
        assert site.audit("--at", AT, "container 1", "container 5").status == 2
        assert "FAILED" not in site.audit("--check-config").out
    finally:
        site.database.execute("DROP OWNED BY narrow; DROP ROLE narrow")


# --- The session ---------------------------------------------------------------------------------------


@contextmanager
def at_the_first_read(action: Callable[[Connection], None]) -> Iterator[list[str]]:
    """Do something when the audit has read the containers, and before it reads the log."""
    done: list[str] = []

    def after(connection: Connection, _cursor: object, statement: str, *_: object) -> None:
        if not done and "container_state" in statement:
            done.append(statement)
            action(connection)

    event.listen(Engine, "after_cursor_execute", after)
    try:
        yield done
    finally:
        event.remove(Engine, "after_cursor_execute", after)


SESSION = {
    "transaction_read_only": "on",
    "transaction_isolation": "repeatable read",
    "application_name": "backup_audit",
    "statement_timeout": "7s",
    "client_encoding": "UTF8",
    "jit": "off",
    "parallel_setup_cost": "0",
}


@pytest.mark.parametrize("argv", [(), ("--at", AT), ("sales",), ("--json", "sales")], ids=" ".join)
def test_the_session_of_the_audit(site: Site, argv: tuple[str, ...]) -> None:
    site.config(query_timeout=7)
    site.container("sales")
    found: dict[str, str] = {}

    def look(connection: Connection) -> None:
        for setting in SESSION:
            cursor = connection.connection.cursor()
            cursor.execute(f"SHOW {setting}")
            ((found[setting],),) = cursor.fetchall()
            cursor.close()

    with at_the_first_read(look):
        assert site.audit(*argv).status == 2
    assert found == SESSION


def test_the_planner_is_advised_for_the_audit_only(site: Site) -> None:
    with site.engine.connect() as connection:
        for setting, default in {"parallel_setup_cost": "1000", "parallel_tuple_cost": "0.1"}.items():
            assert connection.exec_driver_sql(f"SHOW {setting}").scalar() == default


WRITES = {
    "insert": "INSERT INTO backups (c_id, name) VALUES (1, 'sales')",
    "update": "UPDATE container_state SET state = 'maintenance'",
    "delete": "DELETE FROM containers",
    "truncate": "TRUNCATE backups",
    "create": "CREATE TABLE report (id int)",
    "drop": "DROP TABLE action_log",
    "sequence": "SELECT nextval('backups_id_seq')",
}


@pytest.mark.parametrize("write", WRITES)
def test_even_a_superuser_cannot_write_in_the_session_of_the_audit(site: Site, postgres: Server, write: str) -> None:
    site.container("sales")
    assert site.database
    url = admin_db.postgres_url(HOST, postgres.port, site.database.name, SUPERUSER)
    engine = admin_db.make_engine(url, read_only=True, libpq={"passfile": str(postgres.passfile)})
    with pytest.raises(admin_db.AdminDBError) as refused, admin_db.audit_session(engine) as session:
        session.execute(text(WRITES[write]))
    assert refused.value.__cause__ is not None
    assert refused.value.__cause__.orig.pgcode == "25006"  # type: ignore[attr-defined]


def test_the_audits_own_session_refuses_to_write(site: Site, postgres: Server) -> None:
    site.config(admin_user=SUPERUSER)
    site.container("sales")

    def write(connection: Connection) -> None:
        connection.execute(text(WRITES["insert"]))

    with at_the_first_read(write) as done:
        result = site.audit()
    assert done
    assert result.status == 3
    assert result.err.startswith("backup_audit: ")
    assert result.err.count("\n") == 1
    with site.session() as session:
        assert session.scalars(select(BackupLog)).all() == []


def test_the_audit_sees_one_snapshot(site: Site) -> None:
    c_id = site.container("sales")
    site.run(c_id, "2026-03-13 18:07", "2026-03-13 18:30")

    def meanwhile(_: Connection) -> None:
        site.run(c_id, "2026-03-14 02:00", "2026-03-14 02:01", error=ERROR)

    with at_the_first_read(meanwhile) as done:
        assert site.audit("-q", "--at", AT).status == 0
    assert done
    assert site.audit("-q", "--at", AT).status == 2


def test_the_audit_leaves_nothing_behind(site: Site) -> None:
    fill(site, 10)
    assert site.database
    site.engine.dispose()
    assert_filled(site, 10)
    sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'backup_audit' AND state <> 'idle'"
    assert site.database.execute(sessions) == [(0,)]
    assert site.database.execute("SELECT count(*) FROM backups") == [(796,)]
