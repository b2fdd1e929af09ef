"""What a message in the backup log says, line by line (docs/rules.md, "Messages"): fine, an error, or neither.

FINE and ERRORS hold beginnings of lines, one line a rule, by program. `*` stands for the rest of a word (a name, a
number, a path), `{a,b}` for either, `<time>` for a time stamp. TROUBLE holds the words that make any other line an
error. What no table knows is unrecognised. What one site alone has to know belongs in its settings `error_patterns` and
`success_patterns`, which come first. Nothing here reads a database or a clock.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

FINE = """
# DB4Sci
{Executed,Executing} {Postgres,MariaDB,Mongo,MongoDB} {backup to S3:,dump command}
{Executed,Executing} {Postgres,MariaDB,Mongo,MongoDB} dump_all {commands:,globals command:}
{Executed,Executing} command line:
{Command,Executing}: {PGPASSWORD=,pg_dump -,pg_dumpall -,mariadb-dump -,mongodump -}
Backing up {globals to:,to S3:,* database}
Backup completed successfully
Database: *
Dump file: {s3:,/}
to: {s3:,/}
stdout: upload:

# the commands that it runs
{pg_dump,pg_dumpall,mysqldump,mariadb-dump,mongodump,cp,aws} -
aws s3 {cp,mv,sync} {-,/,s3:,* s3:}
docker exec {-,* pg_dump,* mysqldump,* mariadb-dump,* mongodump}
neo4j-admin {dump,backup,database dump,database backup} -
PGPASSWORD=

# PostgreSQL
could not {change directory to,identify current directory}
{pg_dump,pg_dumpall}: {creating,dumping,excluding,executing,finding,finished,flagging,identifying,implied} *
{pg_dump,pg_dumpall}: {last built-in OID,launching,processing,reading,running,saving,setting owner} *
{pg_dump,pg_dumpall}: {detail,hint}:
pg_dump: NOTICE: *
pg_dump: warning: there are circular foreign-key constraints
pg_dump: {You might not be able to restore the dump without,Consider using a full dump instead of}
pg_dump: {warning,[sorter] WARNING}: could not resolve dependency loop among these items:
pg_dump: {warning,[archiver] WARNING}: archive items not in correct section order
pg_dump: {warning,[custom archiver] WARNING}: ftell mismatch with expected position
pg_dump: warning: could not find where to insert IF EXISTS
pg_dump: {warning,WARNING}: {owner of,typtype of}
pg_dump: {,[sorter] }  *
pg_dumpall: warning: {grant of role *,ignoring role grant for missing role}
{DETAIL,HINT,NOTICE}: *
WARNING: {, }database * has {a collation version mismatch,no actual collation version}
WARNING: password file *

# MySQL and MariaDB
-- *
Enter password
{mysql,mysqldump,mariadb-dump}: Deprecated program name
{Warning:,mysql: [Warning],mysqldump: [Warning]} {Using a password on the command line,World-writable config file}
Warning: {A partial dump from,A dump from,Using unique option prefix,version string returned by server is incorrect}
Warning: option * unsigned value
WARNING: {Forcing protocol to,option '--ssl-verify-server-cert' is,option --ssl-verify-server-cert is}
WARNING: --{master-data,dump-slave} is deprecated

# MongoDB
<time> {writing,done dumping,dumping up to,dumped,counted,reading,enqueued,archive prelude,dump phase} *
<time> {connected to:,starting dump,ending dump,finalizing,initializing,not dumping,skipping writing,[#,[.}
<time> the collection * appears to have been dropped after the dump started
<time> WARNING: {On some systems,ignoring unsupported URI parameter}

# Neo4j and Java
{,<time> }INFO {, }[
<time> WARN {, }{* is deprecated,Use of deprecated setting,[* The heap size is,[* The max heap memory}
{Dumping database:,Starting backup of,Performing backup from,Backup complete.,Changed password for user}
{Doing full,Doing incremental} backup
Destination is empty, doing full backup
{Done,Files}: *
{Full,Index structure} {C,c}onsistency {C,c}heck
....................  *
Neo4j {is ,}not running
{OpenJDK,Java *} * Server VM warning: {Option,Ignoring,ignoring,Sharing is only,Unable to get SVE,Using,If the,You have}
{Selecting JVM,Picked up,NOTE: Picked up} *
SLF4J: {Failed to load class,Defaulting to no-operation}
WARNING! You are using an unsupported Java runtime
Please use Oracle
WARNING: Max * open files allowed
WARNING: {A terminally deprecated,A restricted,An illegal reflective access,Illegal reflective access by} *
WARNING: {All illegal access operations will,Please consider reporting this,Use --,sun.reflect.Reflection}

# aws and Python
Completed * {file,of,Byte,KiB,MiB,GiB,TiB,part}
{upload,copy,move}: * to *
{download,delete}: s3:
Note: AWS CLI version 2
/* {CryptographyDeprecation,Deprecation,Future,InsecurePlatform,InsecureRequest,PythonDeprecation}Warning:
/* {ImminentRemoval,NotOpenSSL,PkgResourcesDeprecation,Syntax}Warning:
/* {RequestsDependency,Runtime,SNIMissing,SubjectAltName,User}Warning:
warnings.warn(

# Docker
Container *  {Creat,Runn,Start}
Unable to find image '
WARN[* {* the attribute `version` is obsolete,The * variable is not set,Found orphan containers}
time=* level=warning msg="{The * variable is not set,* `version` is obsolete,Found orphan containers}
WARNING: {The * variable is not set,Found orphan containers,The requested image's platform,Error loading config file:}
WARNING: {No swap limit support,Your kernel does not support,IPv4 forwarding is disabled,bridge-nf-call-ip}

# shells, locales, ssh, sudo
{,-,/bin/}{ba,}sh: {,line * }warning: setlocale:
bash: {cannot set terminal process group,no job control in this shell}
{stdin: is not a tty,mesg: ttyname failed,mesg: cannot open,Pseudo-terminal will not be allocated}
{tput: No value for $TERM,tput: unknown terminal,TERM environment variable not set}
perl: warning: {Setting locale failed,Please check that your locale,Falling back to}
{LANG,LANGUAGE} = *
LC_* = *
are supported and installed on your system
{locale: Cannot set,manpath: can't set the locale}
{groups,whoami}: cannot find name for
sudo: {unable to resolve host,setrlimit(}
gzip: warning: GZIP environment variable
tar: {Removing leading,* socket ignored}
Warning: Permanently added *
"""
"""What DB4Sci and its programs write when all goes well, and their warnings that do no harm."""

ERRORS = """
# These print nothing when all goes well: anything else that they say, in any language, is an error.
{cp,gzip,tar,ssh,mysqldump,mariadb-dump}:
{pg_dump,pg_dumpall}: {[,definition of view,expected ,mismatched number,query ,server version:}
{usage,Usage}:
"""
"""What else is an error, whatever words it has."""

TROUBLE = """
error, errors, erro, errno, exception, exceptions, fatal, fata, panic, traceback, assertion
fail, fails, failed, failing, failure, failures, unsuccessful, unsuccessfully, not successful, not successfully
# what a program cannot do
cannot, can not, can't, could not, couldn't, unable, does not, doesn't, did not, didn't, is not, isn't, are not, aren't
was not, were not, has no, refused, denied, rejected, forbidden, unauthorized, insufficient, insufficent, lacks
unsupported, incompatible, mismatch, conflict, not permitted, not allowed, not authorized, not supported
not implemented, not a, not an, not enough
# what it does not understand
ambiguous, bad, expected argument, expected parameter, expected string, expected but, expression expected, illegal
invalid, malformed, misuse, must, needs, required, requires, syntax, unbound, undefined, unexpected, unexpectedly
unknown, unmatched, unrecognised, unrecognized, wrong, not recognized, not valid
# what it does not find, or finds where it should not
no such, no space, no matching, no reachable, no password, no configuration, no module, no route, no container
no documents, no tty, no pg_hba.conf, missing, nonexistent, not found, not known, not connected, not running, not ready
not available, not active, not enabled, not installed, not exist, not specified, not provided, not set, not reachable
already exists, already running, already in use, already allocated, file exists, in use, busy, stale, lost
is a directory, eof, end of file, is down, is empty, is full, unhealthy, instead of one, skipping file
is starting up, is shutting down, connection slots
# how it ends
abort, aborted, aborting, broken, been closed, was closed, closed before, closed by, closed the, closed unexpectedly
cancelled, canceled, canceling, core dumped, corrupt, corrupted, corruption, crash, crashed, damaged, deadlock
deadline exceeded, died, disk full, exceeded, exceeds, has expired, is expired, signature expired, hangup
inappropriate, incomplete, inconsistencies, inconsistent, interrupt, interrupted, killed, oomkilled, out of disk
out of memory, out of range, out of space, overflow, quota, read-only, reset by peer, segmentation fault
signal received, terminated
terminating connection, timed out, timeout, too few, too large, too long, too many, too old, too big, bigger than
truncated, unavailable, unreachable, non-zero, nonzero
# what pg_dump and shells say in other languages
fehler, fehlgeschlagen, nicht gefunden, erreur, échec, échoué, introuvable, fallo, falló, errore, fallito, ошибка, сбой
错误, 失败, 失敗, エラー, 오류, 실패
"""
"""Words and phrases of trouble. They count where they stand alone: neither in a name (failed-trials, error.log,
error_tracking) nor in a path, nor as a single word in quotes; and not in what calls itself a warning.
"""


class Meaning(enum.IntEnum):
    """What a line says; the greater, the worse."""

    FINE = 0
    UNRECOGNISED = 1
    ERROR = 2


class Said(NamedTuple):
    """What a message says, and the line that decides; None if it is fine."""

    meaning: Meaning
    line: str | None


@dataclass(frozen=True)
class Patterns:
    """A site's own: a line in which one of `errors` finds something is an error, another in which one of `successes`
    does is fine.
    """

    errors: tuple[re.Pattern[str], ...] = ()
    successes: tuple[re.Pattern[str], ...] = ()


NOTHING_SAID = Said(Meaning.FINE, None)


def _lines(table: str) -> Iterator[str]:
    return (line for line in table.strip().split("\n") if line and not line.startswith("# "))


def _each(rule: str) -> Iterator[str]:
    """Yields the rules that one with `{a,b}` stands for."""
    before, brace, rest = rule.partition("{")
    choices, _, after = rest.partition("}")
    if not brace:
        yield rule
        return
    for choice in choices.split(","):
        yield from _each(before + choice + after)


_BEGINNINGS = [each.removesuffix("*") for rule in _lines(FINE) for each in _each(rule)]
_PLAIN = tuple(each for each in _BEGINNINGS if "*" not in each)
_STARRED = [each.split("*") for each in _BEGINNINGS if "*" in each]
_HEADS = tuple({head for head, *_ in _STARRED})
_STARTS = (*_PLAIN, *_HEADS, "Result:", "No errors in dump command.")
_ERRORS = tuple(each for rule in _lines(ERRORS) for each in _each(rule))
_TROUBLE = [f" {words} " for rule in _lines(TROUBLE) for words in rule.split(", ")]

# What stands before a line without a meaning of its own; the folder of a program is one that a rule knows by its name.
_TIME = re.compile(r"\[?\d{4}[-/]\d\d[-/]\d\d[T ]\d\d:\d\d[\d:.,]*(?:Z|[+-]\d\d:?\d\d)?\]?(?:\s+|$)")
_CUT_TIME = re.compile(r"20?|20\d\d?|20\d\d[-/][\dT:.,/+ -]*")
_FOLDER = re.compile(r"/[\w./-]*/(?=(?:pg_dump|pg_dumpall|mysql|mysqldump|mariadb-dump|mongodump|aws|cp|tar|gzip):? )")
# What stands before the output of a program, on the same line: version 2's report, and a prompt without an answer.
_BEFORE_OUTPUT = re.compile(r"(?:No errors in dump command\.)+|Enter password: *(?=\S)")
_COLOUR = re.compile(r"\x1b\[[\d;]*m")
# What calls itself a warning is no error, whatever its words. But aws also warns when it leaves out the dump itself,
# and Java before it gives up.
_WARNING = re.compile(
    r"(?:<time> |time=\S+ |(?!(?:[\w.]*error|exception|fatal|critical|panic):)\S+: (?:line \d+: |\[[\w ()]+\] )?"
    r"|(?:OpenJDK|Java) [\w() -]+)?\[?(?:level=)?(?:warn(?:ing)?\b|(?:note|notice):)(?!: Skipping file|: INFO: os::)",
    re.IGNORECASE,
)
# A line as words with a blank around each, for the words of trouble.
_QUOTED_WORD = re.compile(r"""(["'`])[^\s"'`]*\1""")
_WORD = re.compile(r"""[^\s:;,=()\[\]{}<>!?|"`]+""")
_EDGES = ".'-*"
_NO_TROUBLE = re.compile(
    r" (?:(?:0|no|without|without any) (?:error|failure)s?|(?:errors?|failed|failures?) 0|timeout \d+)(?= )"
)
_NUMBERED = re.compile(
    r" (?:exit(?:ed)?(?: with)?(?: code| status| value)? -?[1-9]|return(?:ed)? (?:code|status|value) -?[1-9]"
    r"|returned -?[1-9]\d* $|signal \d)"
)
_CLASS = re.compile(r"[a-z](?:Error|Exception)(?![\w-])")


def _bare(line: str) -> str:
    """The line without surrounding blanks, and without what version 1 puts before the output of `pg_dump`."""
    return line.strip().removeprefix("Result:").lstrip()


def _begins(line: str, parts: list[str], cut_off: bool) -> bool:
    """Whether a line begins with the parts of a rule, and between each two of them the rest of a word."""
    for part in parts:
        if not line.startswith(part):
            return cut_off and part.startswith(line)
        _, blank, rest = line[len(part) :].partition(" ")
        line = blank + rest
    return True


def _is_fine(line: str, cut_off: bool) -> bool:
    return (
        line.startswith(_PLAIN)
        or (line.startswith(_HEADS) and any(_begins(line, parts, cut_off) for parts in _STARRED))
        or (cut_off and any(rule.startswith(line) for rule in _STARTS))
        or not line.removeprefix("<time>").strip("\"'.=- ")  # a ruler; the end of a statement that is quoted
    )


def _has_trouble(line: str) -> bool:
    words = _WORD.findall(_QUOTED_WORD.sub(" ", line).lower().replace("\u2019", "'"))
    text = _NO_TROUBLE.sub("", f" {' '.join(word.strip(_EDGES) for word in words)} ")
    return any(trouble in text for trouble in _TROUBLE) or bool(_NUMBERED.search(text) or _CLASS.search(line))


def judge_line(line: str, patterns: Patterns = Patterns(), cut_off: bool = False) -> Meaning:
    """Returns what a line says; one that was cut off is fine if it is the beginning of a fine one."""
    line = _bare(line)
    if not line:
        return Meaning.FINE
    for pattern in patterns.errors:
        if pattern.search(line):
            return Meaning.ERROR
    for pattern in patterns.successes:
        if pattern.search(line):
            return Meaning.FINE
    text = (_COLOUR.sub("", line) if "\x1b" in line else line).replace("\t", " ").lstrip("* ")
    if time := _TIME.match(text):
        text = f"<time> {text[time.end() :]}"
    elif folder := _FOLDER.match(text):
        text = text[folder.end() :]
    return _built_in(text, cut_off)


@lru_cache(maxsize=512)  # the same lines come every night
def _built_in(text: str, cut_off: bool) -> Meaning:
    """Returns what the tables say of a line that has been stripped of what varies before it."""
    if before := _BEFORE_OUTPUT.match(text):
        text = text[before.end() :]
    if _is_fine(text, cut_off) or (cut_off and _CUT_TIME.fullmatch(text)):
        return Meaning.FINE
    if not _WARNING.match(text) and (text.startswith(_ERRORS) or _has_trouble(text)):
        return Meaning.ERROR
    return Meaning.UNRECOGNISED


def judge_message(message: str | None, patterns: Patterns = Patterns()) -> Said:
    """Returns what a message says: its first error, else its first unrecognised line."""
    said = NOTHING_SAID
    if not message:
        return said
    lines = message.replace("\r", "\n").split("\n")
    for number, line in enumerate(lines, 1):
        meaning = judge_line(line, patterns, cut_off=number == len(lines))
        if meaning is Meaning.ERROR:
            return Said(meaning, _with_cause(_bare(line), lines[number:], patterns))
        if meaning > said.meaning:
            said = Said(meaning, _bare(line))
    return said


def _with_cause(error: str, others: list[str], patterns: Patterns) -> str:
    """An error; one that only announces another, with the next one."""
    if error.endswith(":") or error.startswith("MariaDB Backup "):
        for line in others:
            if judge_line(line, patterns) is Meaning.ERROR:
                return f"{error} {_bare(line)}"
    return error


# Numbers, and ids such as docker's.
_VARIABLE = re.compile(r"\b(?=[0-9]*[a-f])(?=[a-f]*[0-9])[0-9a-f]{8,}\b|\d+")
_PLACEHOLDERS = {"<name>": r"\S+", "<id>": "[0-9a-f]+", "<number>": r"\d+"}


def _pieces(line: str, name: str) -> list[tuple[str, str]]:
    """The line in pieces: (text, "") for what lines of its kind share, ("", placeholder) for what differs."""
    # The whole word stands for the name in it: no two unknown texts meet in a pattern, so its time is linear.
    own = re.compile(rf"(?<![^\W_]){re.escape(name)}(?![^\W_])") if name else None
    pieces = []
    for word in re.split(r"(\s+)", line):
        if own and own.search(word):
            pieces.append(("", "<name>"))
            continue
        end = 0
        for found in _VARIABLE.finditer(word):
            pieces += [(word[end : found.start()], ""), ("", "<number>" if found[0].isdecimal() else "<id>")]
            end = found.end()
        pieces.append((word[end:], ""))
    has_letters = any(char.isalpha() for text, _ in pieces for char in text)
    return pieces if has_letters else [(line, "")]  # or else it would be of a kind with everything


def kind(line: str, name: str = "") -> str:
    """Returns the line with placeholders for numbers, ids and words that hold the container's own name: lines of one
    kind have one cause.
    """
    return "".join(text or placeholder for text, placeholder in _pieces(_bare(line), name))


def _escaped(char: str) -> str:
    if char in ".^$*+?{}[]\\|()'":
        return f"\\{char}"
    return char if char.isprintable() else char.encode("unicode_escape", "surrogatepass").decode()


def pattern_for(line: str, name: str = "") -> str:
    """Returns a regular expression that fits all lines of this kind, to be pasted as `success_patterns = [r'...']`: the
    line's first 80 characters that they share, or a short line as a whole.
    """
    pattern, room = "^", 80
    for text, placeholder in _pieces(_bare(line), name):
        pattern += _PLACEHOLDERS.get(placeholder, "") + "".join(map(_escaped, text[:room]))
        room -= len(text)
        if room <= 0:
            return pattern
    return pattern if room < 60 else f"{pattern}$"
