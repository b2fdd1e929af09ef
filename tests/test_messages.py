r"""What messages say: real lines of DB4Sci, the dump programs, docker and shells, whole and cut off.

The samples stand one to a line, with `\n`, `\r`, `\t` and `\e` for a line end, a tab, an escape.
"""

from __future__ import annotations

import ast
import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audit.messages import TROUBLE, Meaning, Patterns, Said, judge_line, judge_message, kind, pattern_for

CUT = 100
"""How much some versions of DB4Sci keep of a message."""


def samples(block: str) -> list[object]:
    """The samples of a block as parameters; lines with a `#` are headings."""
    lines = [line for line in block.strip().split("\n") if not line.startswith("# ")]
    for sign, char in (("\\n", "\n"), ("\\r", "\r"), ("\\t", "\t"), ("\\e", "\x1b")):
        lines = [line.replace(sign, char) for line in lines]
    return [pytest.param(line, id=re.sub(r"\W+", " ", line).strip()[:60]) for line in lines]


FAILED = samples(r"""
# DB4Sci: what it says itself
MariaDB Backup error.  Container: sales\nError message: upload failed: - to s3://site-backups/sales/2026
Backing up to S3: s3://b/sales.sql\nCommand: pg_dumpall -g\n\nBackup command failed (exit code 1):
# pg_dump: new and old labels
pg_dump: error: query failed: ERROR:  permission denied for table visits
pg_dump: Dumping the contents of table "visits" failed: PQgetResult() failed.
pg_dump: server version: 13.4 (Debian 13.4-1.pgdg100+1); pg_dump version: 12.8
pg_dump: schema with OID 2200 does not exist
could not change directory to "/root": Permission denied\npg_dumpall: error: too many command-line ar
pg_dump: query to get data of sequence "visits_id_seq" returned 0 rows (expected 1)
pg_dump: definition of view "v" appears to be empty (length zero)
pg_dump: expected 1 check constraint on table "t" but found 0
pg_dump: mismatched number of configurations and conditions for extension
# pg_dump and shells: other languages
pg_dump: [归档 (db)] 与数据库 "postgres" 联接失败: 无法联接到服务器: 不是目录
./db_smart_backup.sh: line 328:  : commande introuvable
# mysqldump and mariadb-dump: anything but known warnings
mysqldump: Table gone away
Enter password: mysqldump: Got error: 1045: "Access denied for user 'root'@'localhost'"
mysqldump: [Warning] Using a password on the command line interface can be insecure.\nmysqldump: Couldn't
# mongodump: behind a time stamp
2019-03-02T18:09:11.402-0800\tFailed: error connecting to db server: no reachable servers
time="2018-04-10T02:21:00Z" level=error msg="Backup of shop"
2019-03-02T18:09:11.402-0800\tsignal 'terminated' received; forcefully terminating
# neo4j-admin and Java: names of exceptions, and a warning that is none
stopped.\nUnmatched arguments from index 0: 'dump', '--database=neo4j', '--to=/backups/neo4j_2024-05-
java.lang.OutOfMemoryError: Java heap space
OpenJDK 64-Bit Server VM warning: INFO: os::commit_memory(0x0, 1, 0) failed; error='Cannot allocate
# aws: a dump that was left out is no warning
warning: Skipping file /data/backup/xxxxx.tgz/. File does not exist.
Completed 8.0 MiB/~8.0 MiB (4.9 MiB/s) with ~1 file(s) remaining\rupload failed: - to s3://site-backups/x
# docker and podman
the input device is not a TTY
Error response from daemon: Container mycontainer is paused, unpause the container before exec
# cp, gzip, tar, ssh: whatever they say
cp: 'a' and 'b' are the same file
/bin/cp: cannot stat '/data/it's failed/graph.db': No such file or directory
# shells
sh: 1: mysqldump: not found
backup.sh: 2: set: Illegal option -o pipefail
The program 'mongodump' is currently not installed. You can install it by typing:\napt install mongod
# Python
Traceback (most recent call last):\n  File "/opt/mydb/backup.py", line 88, in run
# exit codes and bare words, in any case and colour
exit status 137
backup process returned 2
Backup FAILED
# a name or an error before it makes no warning
ERROR: warning: Backup command failed (exit code 1):
Error: WARNING: disk is full
FATAL: warning: x
panic: warning: x
CRITICAL: Warning: x failed
java.io.IOException: Error: Warning: x
Backing up 2 database(s):\nNo errors in dump command.No errors in dump command.pg_dump: error: connection
\e[31merror\e[0m: odd
""")

FINE = samples(r"""
# DB4Sci: every beginning that it writes
\nExecuted Postgres dump_all commands:\npg_dump --dbname sales --username pgdba  -F c -f /var/lib/pos
\nExecuting Postgres backup to S3: s3://site-backups\nExecuting Postgres dump_all globals command: pg_du
\nExecuted MariaDB dump command:\n    mariadb-dump -h db -P 32015 -u root -pxxxxx --single-transaction
\nExecuting Mongo backup to S3: s3://b\nExecuting: mongodump --username dbaas\n     to: s3://b/archive
\nBacking up globals to: s3://b/x.sql\nBacking up to S3: s3://b/x.sql\nCommand: pg_dumpall -g --host db\n
\nBacking up 2 database(s):\n\nDatabase: sales written to: s3://b/x.dump\nBackup completed successfully\n
Dump file: s3://b/sales.sql
Backing up 2 database(s):\nNo errors in dump command.No errors in dump command.
# names that hold words of trouble
pg_dump --dbname error_tracking --username pgdba\npg_dump --dbname failed-trials -f /error/failed.dump
upload: ./failed.dump to s3://error/failed.dump
pg_dump: dumping contents of table public.failed
# pg_dump: progress and harmless warnings, with the lines that follow them
pg_dump: last built-in OID is 16383\npg_dump: identifying extension members\npg_dump: reading schemas
pg_dumpall: executing SELECT pg_catalog.set_config('search_path', '', false);
could not change directory to "/root": Permission denied
pg_dump: warning: there are circular foreign-key constraints on this table:\npg_dump: detail: failed\npg_dump: hint: x
pg_dump: NOTICE: there are circular foreign-key constraints on this table:\npg_dump:   failed
pg_dump: Consider using a full dump instead of x
pg_dump: warning: could not find where to insert IF EXISTS in statement "-- *not* dropping schema\n"
pg_dump: [sorter] WARNING: could not resolve dependency loop among these items:\npg_dump: [sorter]   TABLE error
pg_dump: [custom archiver] WARNING: ftell mismatch with expected position -- ftell used
pg_dump: NOTICE:  hypertable data are in the chunks, no data will be copied\nDETAIL:  Data for hypertables
pg_dump: WARNING: owner of schema "lab" appears to be invalid
pg_dumpall: warning: grant of role "a" to "b" has invalid grantor OID 16389
WARNING:  database "sales" has a collation version mismatch\nDETAIL:  It was created using 2.31\nHINT:  Rebuild
NOTICE:  table "errors" does not exist, skipping
# mysqldump and mariadb-dump
-- Connecting to localhost...\nEnter password:\n-- Retrieving table structure for table failed_jobs...
mysqldump: [Warning] Using a password on the command line interface can be insecure.
Warning: A partial dump from a server that has GTIDs will by default include the GTIDs of all transactions
WARNING: option --ssl-verify-server-cert is disabled, because of an insecure passwordless login.
/usr/bin/mysqldump: Deprecated program name. It will be removed in a future release
# mongodump: spaces or tabs behind the stamp
2019-03-02T18:09:11.402-0800\twriting admin.system.users to \n2019-03-02T18:09:11.404-0800\tdone dumping x
2020-04-30T13:44:26.360+0200    archive prelude MeasurementCenterDB.3e7805c7d60644e087ff2629eaf52137
2017-05-18T10:48:54.790+0200\t\tdumped 0 oplog entries
2025-03-24T06:25:15.324+0000\t[#######################.]  admin.errors  8084604534/8137760000  (99.3%)
2021-06-13T13:56:51.445+0100\tthe collection shop.tmp appears to have been dropped after the dump started
2023-02-21T03:07:24.980+0000\t\n2023-02-21T03:07:27.980+0000\tdone dumping a.b
2021-06-13T13:56:51.445+0100\tWARNING: On some systems, a password provided directly in a connection string
# neo4j-admin and Java
2024-11-06 01:10:53.902+0000 INFO  [o.n.c.d.DumpCommand] Starting dump of database 'failed'\nDone: 39 files
Full Consistency Check\n....................  10%\n....................  20%
WARNING: Max 1024 open files allowed, minimum of 40000 recommended. See the Neo4j manual.\n
WARNING! You are using an unsupported Java runtime.\n* Please use Oracle(R) Java(TM) 17
2018-03-31 10:29:13.151+0000 WARN  dbms.connector.bolt.address is deprecated. Replaced by dbms.conne
OpenJDK 64-Bit Server VM warning: Options -Xverify:none and -noverify were deprecated in JDK 13
Selecting JVM - Version:11.0.20, Name:OpenJDK 64-Bit Server VM\nPicked up JAVA_TOOL_OPTIONS: -Xmx1g
# aws and Python
Completed 1 MiB/~2 MiB (4.9 MiB/s) with ~2 file(s) remaining\rCompleted 2 MiB/~2 MiB with ~1 file(s) remaining\r
upload: - to s3://objects/probe.txt
/usr/local/lib/python3.12/site-packages/awscli/compat.py:462: SyntaxWarning: invalid escape sequence
/usr/lib/python3.9/site-packages/urllib3/connectionpool.py:1013: InsecureRequestWarning: Unverified\n  warnings.warn(
# docker
WARN[0000] /home/db/docker-compose.yml: the attribute `version` is obsolete
WARN[0000] The "DATA_DIR" variable is not set. Defaulting to a blank string.
WARNING: Error loading config file: /root/.docker/config.json: permission denied
# shells and locales
bash: cannot set terminal process group (-1): Inappropriate ioctl for device\nbash: no job control in this shell
perl: warning: Setting locale failed.\n\tLC_ALL = "x"\n    are supported and installed on your system.
/bin/bash: warning: setlocale: LC_ALL: cannot change locale (en_US.UTF-8)
sudo: unable to resolve host db1: Name or service not known
Warning: Permanently added 'failed' (ED25519) to the list of known hosts.
""")

UNRECOGNISED = samples(r"""
# what nobody has ever seen, alone or among lines that are fine
Disk is 100% used
dump size 0 bytes
\nExecuted Postgres dump_all commands:\npg_dump --dbname sales -F c\nResult: something odd\n
Completed 8.0 MiB/~8.0 MiB (4.9 MiB/s) with ~1 file(s) remaining\rsomething odd
pg_dump: something odd
# unknown warnings, whatever their words
pg_dump: warning: something failed
WARN[0000] no such thing
backup.sh: line 3: warning: here-document not found
# errors that did not happen
exit status 0
0 errors
errors: 0, failed: 0
connect timeout 30
# words of trouble in names, paths and quotes
odd: failed-trials error.log error_tracking /backup/failed s3://error/x "failed" 'error' `fatal` failed/x
""")


def version_1(name: str, result: str = "") -> str:
    """A message of version 1: a command and its output for each of three databases; `result` is that of the second."""
    command = f"pg_dump --dbname {name} --username pgdba  -F c -f /var/lib/postgresql/backup/{name}.dump\nResult: "
    return f"\nExecuted Postgres dump_all commands:\n{command}\n{command}{result}\n{command}\n"


@pytest.mark.parametrize("message", FAILED)
def test_a_failure_is_an_error_wherever_it_stands(message: str) -> None:
    assert judge_message(message[:CUT]).meaning is Meaning.ERROR
    assert judge_message(version_1("sales", message)).meaning is Meaning.ERROR


@pytest.mark.parametrize("message", FINE)
def test_a_good_night_is_fine_and_stays_so_wherever_it_is_cut(message: str) -> None:
    for length in range(len(message) + 1):
        assert judge_message(message[:length]) == Said(Meaning.FINE, None), message[:length]
    assert judge_message(version_1("sales", message)).meaning is Meaning.FINE
    assert judge_message(f"{message}\nodd") == Said(Meaning.UNRECOGNISED, "odd")


@pytest.mark.parametrize("message", UNRECOGNISED)
def test_what_nobody_knows_is_neither_fine_nor_an_error(message: str) -> None:
    assert judge_message(message).meaning is Meaning.UNRECOGNISED
    assert judge_message(version_1("sales", message)).meaning is Meaning.UNRECOGNISED


def test_each_word_of_trouble_counts_where_it_stands_alone_and_not_in_a_name() -> None:
    rules = [rule for rule in TROUBLE.strip().split("\n") if not rule.startswith("# ")]
    for words in ", ".join(rules).split(", "):
        for line in (f"odd {words}", f"ODD: {words.upper()}!", f"(odd={words})", f"{words}. odd"):
            assert judge_line(line) is Meaning.ERROR, line
        if " " not in words:
            assert judge_line(f"odd /{words} x-{words} {words}_x {words}.log '{words}'") is Meaning.UNRECOGNISED, words


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_the_first_error_decides_else_the_first_unrecognised_line(end: str) -> None:
    lines = ["upload: - to s3://b/x", "Result:  odd \t", "odder", "  pg_dump: error: a", "pg_dump: error: b"]
    assert judge_message(end.join(lines)) == Said(Meaning.ERROR, "pg_dump: error: a")
    assert judge_message(end.join(lines[:3])) == Said(Meaning.UNRECOGNISED, "odd")
    for fine in (None, "", end, f" \t{end}\x0b \u2003", lines[0]):
        assert judge_message(fine) == Said(Meaning.FINE, None)


def test_an_error_that_only_announces_another_is_quoted_with_the_next_one() -> None:
    failed, cause = "ERROR: Backup command failed (exit code 2):", "mariadb-dump: Got error: 1045: Access denied"
    assert judge_message(f"{failed}\n\nodd\n {cause}\n{failed}") == Said(Meaning.ERROR, f"{failed} {cause}")
    for without in ("", "\n \n", "\nmongodump --username dbaas -p 12345678", "\nBackup completed successfully"):
        assert judge_message(failed + without).line == failed, "what is fine is no cause, and may hold a password"
    version_2 = "MariaDB Backup error.  Container: sales"
    assert judge_message(f"{version_2}\nError message: {cause}").line == f"{version_2} Error message: {cause}"


def test_only_a_last_line_may_be_cut_off() -> None:
    for line in ("Executing Postgres dump_all globals comma", "2026-03-13T18:0", "W", "Resul", "/usr/bin/mysqld"):
        assert judge_message(f"Enter password:\n{line}").meaning is Meaning.FINE
        assert judge_message(f"{line}\n") == Said(Meaning.UNRECOGNISED, line)
    assert judge_message("pg_dump: error").meaning is Meaning.ERROR


def test_a_sites_patterns_come_first_and_its_errors_before_its_successes() -> None:
    errors = (re.compile("^tape .* offline"), re.compile("sales"))
    site = Patterns(errors, successes=(re.compile("^tape"), re.compile("failed 3")))
    for line, meaning in (
        ("Result: tape 7 is offline", Meaning.ERROR),
        ("pg_dump --dbname sales", Meaning.ERROR),  # built in as fine
        ("Result: tape 7 is full", Meaning.FINE),  # built in as an error
        ("the tape failed 3 times", Meaning.FINE),
        ("the tape failed 4 times", Meaning.ERROR),
    ):
        assert judge_message(f"tape 1\n{line}\ntape 2", site).meaning is meaning, line


@given(st.text(st.characters(exclude_characters="\r\n"), min_size=1))
@settings(max_examples=30)
def test_no_name_makes_a_good_night_an_error(name: str) -> None:
    stamp = "2026-03-13T18:07:31.402+0000\t"
    dump = f"{version_1(name)}Database: {name} written to: s3://b/{name}\nDump file: s3://b/{name}\n"
    message = f"{dump}{stamp}writing {name}.x to /{name}\n{stamp}done dumping {name}.x (1 document)"
    assert judge_message(message).meaning is Meaning.FINE


def test_lines_of_one_kind_differ_in_numbers_ids_and_their_own_name() -> None:
    line = "tape {} of 2026-03-{} holds /backup/{}/{}_db.dump, checked by 5475adea1a2d7c{}"
    sales, stocks = line.format(7, 13, "sales", "sales", "58"), line.format(812, "09", "x.y-z", "x.y-z", "deadbeef")
    assert kind(sales, "sales") == kind(f"Result: {stocks} ", "x.y-z")
    assert re.search(pattern_for(sales, "sales"), stocks)
    assert kind(sales) != kind(stocks)
    assert kind("tape lost", "sales") != kind("tape full", "sales")
    assert kind("wholesales 1", "sales") == kind("wholesales 2", "les") != kind("wholestocks 1", "stocks")


@pytest.mark.parametrize(
    ("line", "pattern"),
    [
        ("Emulate Docker CLI using podman", "^Emulate Docker CLI using podman"),
        ("Result: tape 7 of sales is almost full (99%)", r"^tape \d+ of \S+ is almost full \(\d+%\)"),
        ("it's \\ü\t\x00 ", r"^it\'s \\ü\t\x00$"),
        ("OK", "^OK$"),  # not everything that begins so
        ("12", "^12$"),  # not every number
        ("sales", "^sales$"),
        ("odd " * 100, "^" + "odd " * 20),
    ],
)
def test_the_pattern_to_paste_can_be_read(line: str, pattern: str) -> None:
    assert pattern_for(line, "sales") == pattern


@given(st.text(max_size=120), st.sampled_from(["", "sales", "a", "7", "é"]))
@settings(max_examples=60)
def test_a_pasted_pattern_is_valid_python_and_makes_the_line_fine(text: str, name: str) -> None:
    said = judge_message(text)
    if said.line is not None:
        pattern = ast.literal_eval(f"r'{pattern_for(said.line, name)}'")
        assert judge_line(said.line, Patterns(successes=(re.compile(pattern),))) is Meaning.FINE
        assert not re.search(pattern, "Disk is 100% used")


UNITS = "a| a|a/|a:| '|\"|[#|/x/|warning:|(-|\t|\n|x\n|error-|\x1b[|2026-03-13|Database:|pg_dump --\n|OpenJDK -"
"""Units of a long line, or of many lines, that could make a regular expression slow."""


@pytest.mark.parametrize("unit", UNITS.split("|"), ids=ascii)
def test_the_time_grows_with_the_length_of_a_message_and_not_with_its_square(unit: str) -> None:
    def seconds(size: int) -> float:
        message = (unit * (size // len(unit) + 1))[:size] + " odd"
        started = time.process_time()
        said = judge_message(message)
        if said.line is not None:
            re.search(pattern_for(said.line, "a"), kind(said.line, "a"))
        return time.process_time() - started

    short, long = (min(seconds(size) for _ in range(2)) for size in (4_000, 32_000))
    assert long < 24 * max(short, 0.002)  # 8 times as long; 8 squared is 64
