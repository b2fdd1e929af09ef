r"""The built-in patterns on real messages of DB4Sci, the dump programs, docker and shells, whole and cut off.

The messages are written one to a line, with `\n` and `\t` where they have a line end and a tab.
"""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audit.messages import DEFAULT_ERROR_PATTERN, DEFAULT_SUCCESS_PATTERN, is_error, is_known

ERROR = re.compile(DEFAULT_ERROR_PATTERN)
SUCCESS = re.compile(DEFAULT_SUCCESS_PATTERN)
CUT = 100
"""Some versions of DB4Sci keep only so many characters of a message."""


def messages(lines: str) -> list[str]:
    return [
        line.replace("\\n", "\n").replace("\\r", "\r").replace("\\t", "\t").replace("\\x20", " ")
        for line in lines.strip("\n").split("\n")
    ]


def first_words(message: str) -> str:
    return re.sub(r"\W+", " ", message).strip()[:60] or "empty"


FAILED = messages(r"""
MariaDB Backup error.  Container: sales\nError message: upload failed: - to s3://site-backups/sales/2026
MariaDB Backup exception. Container: sales\nException: [Errno 2] No such file or directory: 'mariadb-dum
Error: MyDB Postgres Backup; psycopg2 connect:  container: sales, message: timeout expired,connect string
Backing up to S3: s3://b/sales.sql\nCommand: pg_dumpall -g\n\nBackup command failed (exit code 1):
Unexpected error during backup: x
pg_dump: [archiver (db)] connection to database "sales" failed: FATAL:  the database system is starting
pg_dump: [archiver (db)] connection to database "msedb" failed: fe_sendauth: no password supplied
pg_dump: [archiver (db)] query failed: ERROR:  invalid byte sequence for encoding "UTF8": 0xee 0xb6 0x29
pg_dump: [custom archiver] could not open output file "C:/Users/.../AppData/Local/Temp/db_dump.backu
pg_dump: [directory archiver] no output directory specified
pg_dump: error: query failed: ERROR:  permission denied for table visits
pg_dump: error: connection to server on socket "/var/run/postgresql/.s.PGSQL.5432" failed: No such f
pg_dump: error: could not translate host name "dokku-postgres-postgres-zulip" to address: Temporary
pg_dump: error: Dumping the contents of table "statuses" failed: PQgetResult() failed.\npg_dump: deta
pg_dump: Dumping the contents of table "visits" failed: PQgetResult() failed.
pg_dump: SQL command failed\npg_dump: Error message from server: ERROR:  bogus varattno for OUTER var
pg_dump: server version: 9.3.1; pg_dump version: 9.1.5\npg_dump: aborting because of server version m
pg_dump: server version: 13.4 (Debian 13.4-1.pgdg100+1); pg_dump version: 12.8
pg_dump: schema with OID 2200 does not exist
pg_dump: query returned 2 rows instead of one: SELECT tableoid
Container db is unhealthy
pg_dump: too many command-line arguments (first is "foo")
pg_dump: [parallel archiver] a worker process died unexpectedly
could not find a "pg_dump" to execute\npg_dump: error: no matching tables were found\n
pg_dumpall: could not connect to database "template1": FATAL:  password authentication failed for us
pg_dumpall: error: could not connect to database "template1": could not translate host name "db" to
popen failure: Cannot allocate memory\npg_dumpall: error: The program "pg_dump" is needed by pg_dumpa
Error: You must install at least one postgresql-client-<version> package
psql: FATAL:  sorry, too many clients already
mysqldump: unknown variable 'column-statistics=0'
mysqldump: [ERROR] unknown option '--foo'.
mysqldump: ambiguous option '--skip' (skip-add-drop-table, skip-lock)
mysqldump: Got errno 32 on write
mysqldump: Got error: 1044: Access denied for user 'wordpress'@'localhost' to database 'wordpress' w
mysqldump: Got error: 2026: "TLS/SSL error: SSL is required, but the server does not support it" whe
mysqldump: Couldn't find table: "foo"
mysqldump: Got packet bigger than 'max_allowed_packet' bytes
mysqldump: user has insufficent privileges to SHOW CREATE PROCEDURE `x`!
mysqldump: [Warning] Using a password on the command line interface can be insecure.\nmysqldump: Couldn't
mariadb-dump: Error 1412: Table definition has changed, please retry transaction when dumping table
mariadb-dump: Got error: 1049: "Unknown database 'test'" when selecting the database
mariadb-dump: Couldn't execute 'SHOW FUNCTION STATUS WHERE Db = 'filerun'': Column count of mysql.pr
error: Found option without preceding group in config file: /etc/my.cnf at line: 1
ERROR 2005 (HY000): Unknown MySQL server host 'db' (-2)
2019-03-02T18:09:11.402-0800\tFailed: error connecting to db server: no reachable servers
2024-05-27T20:36:43.166+0800    Failed: error creating intents to dump: error getting collections fo
Failed: error getting oplog start: error getting recent oplog entry: mongo: no docume
2018-11-07T06:10:28.476+0000\tpositional arguments not allowed: [false]
error parsing command line options: illegal argument combination: cannot specify --db and --uri
couldn't connect to [localhost] couldn't connect to server localhost:27017
assertion: 18 { code: 18, ok: 0.0, errmsg: "auth fails" }
stopped.\nUnmatched arguments from index 0: 'dump', '--database=neo4j', '--to=/backups/neo4j_2024-05-
Failed to dump database 'neo4j': The database is in use. Stop database 'neo4j' and try again.
2024-10-15 09:27:10.966+0000 ERROR [o.n.c.d.DumpCommand] Dump failed for databases: 'neo4j'
command failed: Backup failed: Channel has been closed
command failed: archive already exists: /backups/neo4j.dump
Full Consistency Check\n....................  90%\n...................Failed to do consistency check
Missing required option: '--to=<path>'
Expected parameter for option '--database' but found '--to'
usage: neo4j-admin dump [--database=<name>] --to=<destination-path>
java.lang.OutOfMemoryError: Java heap space
org.neo4j.cli.CommandFailedException: Consistency checking
OpenJDK 64-Bit Server VM warning: INFO: os::commit_memory(0x0, 1, 0) failed; error='Cannot allocate
warning: Skipping file /data/backup/xxxxx.tgz/. File does not exist.
upload failed: - to s3://<BUCKET_NAME>/empty.dat An error occurred (MalformedXML) when calling the C
Completed 8.0 MiB/~8.0 MiB (4.9 MiB/s) with ~1 file(s) remaining\rupload failed: - to s3://site-backups/x
fatal error: Could not connect to the endpoint URL: "https://xxx.s3.None.amazonaws.com/?prefix=&enco
Unable to locate credentials. You can configure credentials by running "aws configure".
An error occurred (ExpiredToken) when calling the PutObject operation: The provided token has expired
Partial credentials found in env, missing: AWS_SECRET_ACCESS_KEY
The user-provided path ./x does not exist.
The config profile (prod) could not be found
You must specify a region. You can also configure your region by running "aws configure".
'NoneType' object is not iterable
the input device is not a TTY
FATA[0000] cannot enable tty mode on non tty input
Error response from daemon: Container mycontainer is paused, unpause the container before exec
Error: No such container: sales
service "db" is not running
no configuration file provided: not found
unknown shorthand flag: 'T' in -T
Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon running?
OCI runtime exec failed: exec failed: container_linux.go:345: starting container process caused "exec
OCI runtime exec failed: exec failed: unable to start container process: exec: "--": executable file
command terminated with exit code 1
context deadline exceeded
service "pg-gvm-migrator" didn't complete successfully: exit 1
/bin/cp: cannot stat '/data/databases/graph.db': No such file or directory
cp: cannot open '/var/lib/dynatrace/oneagent/agent/config/deployment.conf' for reading: permission d
cp: 'a' and 'b' are the same file
cp: -r not specified; omitting directory 'x'
cp: skipping file 'x', as it was replaced while being copied
sh: 1: mysqldump: not found
local_backup_script.sh: line 55: mysqldump: command not found
./db_smart_backup.sh: line 328:  : commande introuvable
backup.sh: line 3: PGPASS: unbound variable
/bin/sh: 1: cannot create /x/y: Directory nonexistent
line 5: 12345 Killed                  pg_dump -U x
Killed
Segmentation fault (core dumped)
sudo: no tty present and no askpass program specified
Command 'x' died with <Signals.SIGKILL: 9>.
Traceback (most recent call last):\n  File "/opt/mydb/backup.py", line 88, in run
ConnectionRefusedError: [Errno 111] Connection refused
500 Server Error: Internal Server Error ("Container x is not running")
[Errno 32] Broken pipe
Read-only file system
Connection refused
Connection timed out
Backup FAILED
Backup was not successful
ERROR
exit status 137
Exited (137)
backup process returned 2
Finished with 2 errors
""")

FINE = messages(r"""
\nExecuted Postgres dump_all commands:\npg_dump --dbname sales --username pgdba  -F c -f /var/lib/pos
\nExecuted Postgres dump_all commands:\npg_dump --dbname error_tracking --username pgdba  -F c -f /var/
\nExecuted Postgres dump_all commands:\npg_dump --dbname failed-trials --username pgdba  -F c -f /var/l
\nExecuting Postgres backup to S3: s3://site-backups\nExecuting Postgres dump_all globals command: pg_du
\nExecuted MariaDB dump command:\n    mariadb-dump -h db -P 32015 -u root -pxxxxx --single-transaction
2019-03-02T18:09:11.402-0800\twriting admin.system.users to \n2019-03-02T18:09:11.404-0800\tdone dumpin
Enter password for mongo user:\n\n2024-10-14T18:43:55.425+0000    writing admin.system.users to dump/a
2021-01-12T17:41:16.940+0800    writing admin.system.users to\n2021-01-12T17:41:16.941+0800    done d
2020-04-30T13:44:26.360+0200    archive prelude MeasurementCenterDB.3e7805c7d60644e087ff2629eaf52137
2021-06-13T13:56:51.445+0100\tWARNING: On some systems, a password provided directly in a connection
2025-03-24T06:25:15.324+0000\t[#######################.]  admin.errors  8084604534/8137760000  (99.3%)
2026-03-13T18:07:31.402+0000\tdone dumping shop.error_log (42 documents)
2026-03-13T18:07:31.402+0000\twriting admin.failed to /dump/error/failed.bson
2024-11-06 01:10:53.902+0000 INFO  [o.n.c.d.DumpCommand] Starting dump of database 'failed'\nDone: 39
2020-11-26 19:44:07.329+0000 INFO  [c.n.b.i.BackupOutputMonitor] Start receiving store files\n2020-11
Doing full backup...\n2018-07-21 23:23:57.500+0000 INFO [o.n.c.s.StoreCopyClient] Copying neostore
Full Consistency Check\n....................  10%\n....................  20%
WARNING: Max 1024 open files allowed, minimum of 40000 recommended. See the Neo4j manual.\n
WARN[0000] /home/db/docker-compose.yml: the attribute `version` is obsolete
WARN[0000] The "DATA_DIR" variable is not set. Defaulting to a blank string.
Completed 88.0 MiB/~2.5 GiB (4.9 MiB/s) with ~256 file(s) remaining (calculating...)\n
upload: - to s3://objects/probe.txt
upload: ./failed.dump to s3://error/failed.dump
pg_dump: reading publication membership\npg_dump: reading subscriptions\npg_dump: reading large object
pg_dump: saving encoding = UTF8\npg_dump: saving standard_conforming_strings = on\npg_dump: saving sea
pg_dump: last built-in OID is 16383\npg_dump: identifying extension members\npg_dump: reading schemas
pg_dump: dumping contents of table "public.errors"\npg_dump: dumping contents of table public.failed
pg_dump: [custom archiver] WARNING: ftell mismatch with expected position -- ftell used
pg_dump: warning: there are circular foreign-key constraints on this table:\npg_dump: detail: hyperta
pg_dump: warning: there are circular foreign-key constraints on this table:\npg_dump:   failed\npg
pg_dump: NOTICE: there are circular foreign-key constraints on this table:\npg_dump:   observation\npg
pg_dump: warning: could not find where to insert IF EXISTS in statement "-- *not* dropping schema, s
pg_dump: [sorter] WARNING: could not resolve dependency loop among these items:\npg_dump: [sorter]   TABLE error
pg_dumpall: executing SELECT pg_catalog.set_config('search_path', '', false);
pg_dumpall: running ""/usr/lib/postgresql/9.6/bin/pg_dump"  -v -Fp 'dbname=error'"
WARNING: database "template1" has a collation version mismatch
WARNING:  database "sales" has a collation version mismatch\nDETAIL:  The database was created using
-- Connecting to localhost...\nEnter password:\n-- main : logs flushed successfully!\n-- Starting trans
-- Connecting to localhost...\n-- Retrieving table structure for table failed_jobs...\n-- Sending SELECT qu
mysqldump: [Warning] Using a password on the command line interface can be insecure.
WARNING: --master-data is deprecated and will be removed in a future version. Use --source-data inst
Warning: A partial dump from a server that has GTIDs will by default include the GTIDs of all transa
/usr/bin/mysqldump: Deprecated program name. It will be removed in a future release, use '/usr/bin/ma
""")

NOT_KNOWN = messages(r"""
something odd happened
tape drive is offline
pg_dump: something odd
pg_dump: warning: something odd
\nExecuted Postgres dump_all commands:\nsomething odd
\nExecuted Postgres dump_all commands:\npg_dump --dbname sales -F c\nResult: something odd\n
2026-03-13T18:07:31.402+0000\tdone dumping shop.visits (42 documents)\nsomething odd\n
2026-03-13T18:07:31.402+0000\tsomething odd
Completed 8.0 MiB/~8.0 MiB (4.9 MiB/s) with ~1 file(s) remaining\rsomething odd
WARN[0000] something odd
pg_dump: err
exit status 0
0 errors
Backup finished without errors
errors: 0, failed: 0
perl: warning: Setting locale failed.
NOTICE:  table "errors" does not exist, skipping
WARNING: Error loading config file: /root/.docker/config.json: permission denied
2023-07-18 14:30:05.467+0000 WARN  [o.n.k.i.JvmChecker] The heap size is not configured
bash: cannot set terminal process group (-1): Inappropriate ioctl for device
Unable to find image 'postgres:13' locally\n13: Pulling from library/postgres
OpenJDK 64-Bit Server VM warning: Unable to get SVE vector length on this system. Disabling SVE.
Warning: Permanently added 'failed' (ED25519) to the list of known hosts.
""")
"""Neither an error nor known."""

NAMES = ["error", "failed", "no such table", "it's failed", '"failed"', "x: error: y", "\x1b[31merror\x1b[0m", "☃ ü"]


def version_1(name: str, results: dict[int, str], databases: int = 50) -> str:
    """A message of version 1 that is kept whole: a command and its output for each database."""
    command = f"pg_dump --dbname {name} --username pgdba  -F c -f /var/lib/postgresql/backup/{name}.dump\nResult: "
    outputs = (results.get(number, "") for number in range(databases))
    return "\nExecuted Postgres dump_all commands:\n" + "".join(f"{command}{output}\n" for output in outputs)


def version_2(name: str) -> str:
    """A message of version 2 that is kept whole."""
    s3 = f"s3://site-backups/{name}"
    upload = f"Backing up to S3: {s3}.dump\nCommand: pg_dump --dbname {name} -F c\n\nBackup completed successfully\n"
    return (
        f"\nExecuting Postgres backup to S3: {s3}\nBacking up globals to: {s3}_globals.sql\n{upload}"
        f"\nBacking up 2 database(s):\n\nDatabase: {name} written to: {s3}.dump\n{upload}"
    )


CIRCULAR = """\
pg_dump: warning: there are circular foreign-key constraints on this table:
pg_dump: detail: failed
pg_dump: hint: You might not be able to restore the dump without using --disable-triggers or temporarily dropping
"""
IF_EXISTS = """\
pg_dump: warning: could not find where to insert IF EXISTS in statement "-- *not* dropping schema, since initdb does
"
"""


@pytest.mark.parametrize("message", FAILED, ids=first_words)
def test_a_failure_is_an_error(message: str) -> None:
    assert is_error(message[:CUT], ERROR)
    assert is_error(version_1("sales", {0: CIRCULAR, 25: message}), ERROR)
    assert is_error(version_2("sales") + "\nDatabase: sales\nError: " + message, ERROR)


@pytest.mark.parametrize("message", [*FINE, *NOT_KNOWN], ids=first_words)
def test_a_fine_message_is_not_an_error(message: str) -> None:
    assert not is_error(message, ERROR)
    assert not is_error(version_1("sales", {25: message}), ERROR)


@pytest.mark.parametrize("message", ["", *FINE], ids=first_words)
def test_a_fine_message_is_known_and_no_cut_makes_it_an_error(message: str) -> None:
    assert is_known(message, SUCCESS)
    assert not is_known(f"something odd\n{message}", SUCCESS)
    assert not is_known(f"{message}\nsomething odd", SUCCESS)
    assert not any(is_error(message[:length], ERROR) for length in range(len(message)))


@pytest.mark.parametrize("message", NOT_KNOWN, ids=first_words)
def test_an_unclassifiable_message_is_unrecognised(message: str) -> None:
    assert not is_known(message, SUCCESS)


@pytest.mark.parametrize("message", [None, "", " \t", "\n\n"])
def test_an_empty_message_is_fine(message: str | None) -> None:
    assert not is_error(message, ERROR)
    assert is_known(message, SUCCESS)


@given(name=st.sampled_from(NAMES) | st.text(st.characters(exclude_characters="\r\n"), min_size=1))
@settings(max_examples=60)
def test_neither_names_nor_cuts_turn_a_fine_message_into_an_error(name: str) -> None:
    dump = f"\nExecuted MariaDB dump command:\n    mariadb-dump -h db -u {name} -pxxxxx\nDump file: s3://b/{name}\n"
    stamp = "2026-03-13T18:07:31.402+0000\t"
    mongo = f"{stamp}writing {name}.x to /{name}\n{stamp}done dumping {name}.x (1 document)"
    for message in (version_1(name, {1: CIRCULAR, 2: IF_EXISTS}, databases=4), version_2(name), dump, mongo):
        assert is_known(message, SUCCESS), message
        for length in range(len(message)):
            assert not is_error(message[:length], ERROR), message[:length]


def test_a_last_line_that_was_cut_off_is_known() -> None:
    for message in (version_1("sales", {1: CIRCULAR}, databases=3), version_2("sales")):
        unknown = [message[:length] for length in range(70, len(message)) if not is_known(message[:length], SUCCESS)]
        assert unknown == []


@pytest.mark.parametrize("name", NAMES)
def test_a_name_never_hides_an_error(name: str) -> None:
    for message in (
        f"MariaDB Backup error.  Container: {name}\nError message: upload failed: - to s3://",
        f'pg_dump: error: connection to database "{name}" failed: FATAL:  the database system is starting up',
        f"/bin/cp: cannot stat '/data/{name}/graph.db': No such file or directory",
        version_1(name, {3: "pg_dump: error: connection to server failed"}),
    ):
        assert is_error(message, ERROR), message


def test_users_extend_the_patterns() -> None:
    error = re.compile(DEFAULT_ERROR_PATTERN + r"|^tape drive is offline")
    success = re.compile(DEFAULT_SUCCESS_PATTERN + r"|^tape \d+ holds good data")
    assert is_error("dumped\nTape drive is offline", error)
    assert not is_error("the tape drive is offline", error)
    assert is_known("tape 7 holds good data", success)
    assert not is_known("tape seven holds good data", success)
    assert all(is_error(message, error) for message in FAILED)
    assert all(is_known(message, success) for message in FINE)


HOSTILE = messages(
    r"""
a|a\x20|ab\x20|a/|a:\x20|2026-03-13\x20|\x20|\t|\n|\r|x\n|abc\n|"|'\x20|[#|pg_dump: [|pg_dump: reading x\n|-- bad\n
warning: bad\n|erro\x20|Error|0 errors\x20|Database:\x20|Database: to\x20|Result: \n|exit code\x20|timeout\x20
server version:\x20|executing\x20|upload: x\r|2026-03-13T18:07:31.402+0000\twriting failed\n|..  1%\n
""".replace("|", "\n")
)


def seconds(message: str) -> float:
    """The processor time of a search for each pattern: the better of two."""
    times = []
    for _ in range(2):
        started = time.process_time()
        is_error(message, ERROR)
        is_known(message, SUCCESS)
        times.append(time.process_time() - started)
    return min(times)


@pytest.mark.parametrize("unit", HOSTILE, ids=repr)
def test_the_time_grows_with_the_length_of_a_hostile_message_and_not_with_its_square(unit: str) -> None:
    for end in ("", " bad"):
        short, long = (unit * (size // len(unit)) + end for size in (12_500, 100_000))
        assert seconds(long) < 24 * max(seconds(short), 0.001), repr(end)  # 8 times as long; 8 squared is 64
