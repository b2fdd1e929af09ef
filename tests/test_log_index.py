"""`deploy/log_index.sql`: the index can be made, made again, used, mended and dropped as the file says."""

from __future__ import annotations

import re

import pytest
from psycopg2.errors import UniqueViolation

from tests.builders import TOP, Site
from tests.postgres import ADMIN_USER

SCRIPT = TOP / "deploy" / "log_index.sql"
[DROP] = re.findall(r"-c '(DROP INDEX .*)'", SCRIPT.read_text("utf-8"))

NIGHTS = """
    INSERT INTO backups (c_id, name, state, backup_id, command, err_msg, ts)
    SELECT c_id, 'lab_' || c_id, 'start', night, repeat('pg_dump ', 40), '', night + c_id * interval '1 second'
    FROM generate_series(timestamp '2026-01-01', '2026-07-19', '1 day') AS night, generate_series(1, 250) AS c_id
"""
LAST_DAYS = "EXPLAIN SELECT c_id FROM backups WHERE ts >= '2026-07-10' OR ts IS NULL ORDER BY c_id"


def test_the_index_can_be_made_again_is_used_and_can_be_mended_and_dropped(own_site: Site) -> None:
    database = own_site.postgres

    def plan() -> str:
        return "\n".join(line for (line,) in database.execute(LAST_DAYS))

    database.execute(NIGHTS)
    database.execute("VACUUM ANALYZE backups")
    assert "Seq Scan" in plan()
    for _ in range(2):
        assert re.search(r"kB \| t$", database.psql(SCRIPT, user=ADMIN_USER), re.MULTILINE)
    assert plan().count("Bitmap Index Scan on backups_ts") == 2, "for dated rows and for undated ones"
    assert database.execute("SELECT reloptions FROM pg_class WHERE relname = 'backups_ts'") == [(["autosummarize=on"],)]
    database.execute(DROP, user=ADMIN_USER)
    assert "Seq Scan" in plan()
    with pytest.raises(UniqueViolation):  # it fails half-way, as an interrupted one does
        database.execute("CREATE UNIQUE INDEX CONCURRENTLY backups_ts ON backups (c_id)", user=ADMIN_USER)
    assert re.search(r"\| f$", database.psql(SCRIPT, user=ADMIN_USER), re.MULTILINE)
    database.execute(DROP, user=ADMIN_USER)
    assert re.search(r"kB \| t$", database.psql(SCRIPT, user=ADMIN_USER), re.MULTILINE)
