"""What a message in the backup log says: an error, known as fine, or neither (SPEC section 2).

The two patterns know how DB4Sci and the programs that it runs write their messages. They look at one line at a time.
A name chosen by a user may hold any word: a line that begins as progress, a command or a warning is no error, whatever
follows. In any other line, trouble in plain words is an error.
"""

from __future__ import annotations

import re


def _any_of(*lines: str) -> str:
    """An alternation of phrases ("; " between them), by first letter: much faster to search than one after another."""
    rests: dict[str, list[str]] = {}
    for phrase in "; ".join(lines).split("; "):
        rests.setdefault(phrase[0], []).append(phrase[1:])
    return "|".join(f"(?-i:[{letter}{letter.upper()}])(?:{'|'.join(rest)})" for letter, rest in rests.items())


def _beginning_of(*texts: str) -> str:
    """An alternation of what is left of texts that were cut off: the first letter, the first two, and so on."""
    return "|".join("(?:".join(map(re.escape, text)) + ")?" * (len(text) - 1) for text in texts)


# What may stand before a line: an indentation, version 1's "Result: ", a time stamp.
_STAMP = r"\d[\d:.,T/+-]{7,30}Z?(?: [\d:.,+-]{8,20})?[ \t]+"
_BEFORE = rf"[ \t]{{0,8}}(?:{_any_of('result: ?; stdout: ?')})?(?:{_STAMP})?"
_PG_DUMP_STEPS = (
    "reading|saving|dumping contents of|dumping database|finding|flagging|identifying|last built-in OID is|creating"
    "|processing|launching|finished|setting owner|executing|running|excluding|implied|detail:|hint:| "
)
_MONGODUMP_STEPS = (
    "writing|done dumping|dumping up to|dumped|counted|reading|enqueued|archive prelude|dump phase|starting dump"
    "|ending dump|finalizing|initializing|not dumping"
)
_CUT_STEP = _beginning_of(*(f"{step} " for step in _MONGODUMP_STEPS.split("|")))
_MONGODUMP = rf"{_STAMP}(?:\[[#.]+\]|(?:{_MONGODUMP_STEPS}) |(?:{_CUT_STEP})\Z)"
_OPTION = r"(?:[\w.]+ ){0,3}--?\w"
_COMMAND = rf"(?:[\w./-]*/)?(?:pg_dump|pg_dumpall|mysqldump|mariadb-dump|mongodump|neo4j-admin|aws|cp|docker) {_OPTION}"
_PROGRESS = _any_of(
    # DB4Sci
    r"execut(?:ed|ing) (?:\w+ (?:backup to S3|dump(?:_all)?(?: globals)? comm?ands?)|command line):",
    r"to: \S*/; backing up (?:globals to:|to S3:|\d+ ?[databse()]*(?::|\Z)); dump file: \S*/",
    r"database: (?:[^\r\n]* written to: |\S+\t to \t|(?<=[\s\S]{60})[^\r\n]*\Z); backup completed successfully\.?$",
    # the commands that it runs
    rf"pg_dump(?:all)? {_OPTION}; mysqldump {_OPTION}; mariadb-dump {_OPTION}; mongodump {_OPTION}; cp {_OPTION}",
    rf"neo4j-admin {_OPTION}; aws {_OPTION}; docker {_OPTION}; /{_COMMAND}; command: {_COMMAND}; executing: {_COMMAND}",
    # pg_dump, mysqldump, mongodump, aws s3, neo4j-admin
    rf"pgpassword=; pg_dump(?:all)?: (?:\[[\w ()]+\] )?(?:{_PG_DUMP_STEPS}) ",
    r"--[ \r\n]; connected to: ; upload: \S*[./-]; download: \S*/; copy: \S*/; move: \S*/; delete: \S*/; completed \d",
    r"info +\[[\w.]+\] (?:start|finish|using |cop); done: \d; doing (?:full|incremental) backup; files: \d",
    r"selecting JVM; picked up \w+: ",
)
_WARNINGS = (
    r"(?:[\w./-]{1,40}: (?:line \d+: )?){0,2}(?:\[[\w ()]+\] )?\[?(?:warn(?:ing)?|notice|note|hint|detail)[]:\[(]"
    r"(?! skipping file)"
    r"|warn +\[|OpenJDK [\w -]+ warning: (?!info: os::)|(?:time=\S+ )?level=warning|\S+dump: deprecated program name"
    # harmless noise of shells, docker and others
    r"|bash: (?:cannot set terminal process group|no job control)|mesg: |stdin: is not a tty|unable to find image '"
    r"|sudo: unable to resolve host|locale: cannot set|neo4j (?:is )?not running|container \S+  \w"
)

_TROUBLE = _any_of(
    # "error", but not "no errors" or "errors: 0"
    *(
        rf"{word}(?<!\b0 {word})(?<!\bno {word})(?<!without {word})(?:s|ed|ures?|ing)?(?!: ?0\b)"
        for word in ("error", "fail")
    ),
    r"errno; erro\[; fata\[; exceptions?; fatal; panic; traceback; assertion; unsuccessful; usage:",
    # what a program cannot do
    "cannot; can not; can't; could not; couldn't; unable; does not; doesn't; did not; didn't; is not; isn't; are not",
    "was not; were not; has no; refused; denied; rejected; forbidden; unauthorized; insuffici?ent; lacks; unsupported",
    "incompatible; mismatch; conflict",
    # what it does not understand
    "invalid; illegal; bad; wrong; malformed; ambiguous; unmatched; unknown; unrecogni[sz]ed; unexpected(?:ly)?",
    "expected (?:argument|parameter|string|but); expression expected; undefined; unbound; missing; misuse; must; needs",
    "requires; is required; are required; syntax",
    # what it does not find, or finds where it should not
    "no (?:such|space|matching|reachable|password|configuration|module|route|container|documents|tty)",
    "not (?:found|permitted|allowed|authori[sz]ed|supported|implemented|known|connected|running|ready|empty|valid)",
    "not (?:available|active|enabled|installed|recogni[sz]ed|exist|specified|provided|set|reachable|an?)",
    "nonexistent; file exists; already (?:exists|running|in use|allocated); in use; busy; lost; eof; is a directory",
    "not successful(?:ly)?; is (?:down|empty|full); unhealthy; query returned; instead of one; the command was",
    "skipping file",
    # how it ends
    r"killed; terminat(?:ed|ing connection); abort(?:ed|ing)?; interrupt(?:ed)?; cancell?(?:ed|ing); crash(?:ed)?",
    r"died; signal \d+; hangup; core dumped; segmentation fault; out of (?:memory|range|disk|space); disk full; quota",
    r"read-only; timed out; timeout(?![ :=]+\d); has expired; signature expired; exceed(?:s|ed); reset by peer; broken",
    r"too ?(?:many|long|large|big|few|old)\w*; overflow; deadlock; unreachable; unavailable; inappropriate; stale",
    "closed (?:unexpectedly|by|before|the|file); been closed; was closed; corrupt(?:ed|ion)?; damaged; truncated",
    "inconsisten(?:t|cies); incomplete",
    r"non-?zero (?:exit|return); returned -?[1-9]\d*$; return(?:ed)? ?(?:code|status|value)[ :=(]+-?[1-9]\d*",
    r"exit(?:ed)?(?: with)?(?: ?code| status| value)?[ :=(]+-?[1-9]\d*",
)
_TROUBLE_WHATEVER_FOLLOWS = _any_of(
    r"cp: ; mysqldump: ; mariadb-dump: ; pg_dump: \[[\w ()]+\] ; line \d+: ; server version: [^;\r\n]{1,80};\spg_dump"
)
_CUT_WARNING = _beginning_of("[Warning]", "[Note]", "WARNING:", "NOTICE:", "Deprecated program name", " ")
_TROUBLE_HERE = (
    # not within a name, such as failed-trials, error.log or "it's failed"
    rf"""\b(?=[a-z]{{2}})(?:(?<![/-])(?<!\w\.)(?:{_TROUBLE})(?![\w-]|\.\w|["'`/])"""
    rf"|(?:{_TROUBLE_WHATEVER_FOLLOWS})(?!(?:{_CUT_WARNING})?\Z))|\B(?-i:Error|Exception)(?::|$)"
)

# Most lines are progress, so that is looked for first; warnings only where there are words of trouble. No part looks at
# a line more than once, so the time grows with the length of a message, whatever it holds.
DEFAULT_ERROR_PATTERN = (
    rf"(?im)(?:^|\r)(?=[^\r\n]{{3}})(?!{_MONGODUMP}|{_BEFORE}(?:{_PROGRESS}))"
    rf"(?=[^\r\n]*?(?:{_TROUBLE_HERE}))(?!{_BEFORE}(?:{_WARNINGS}))"
)
"""Marks an `err_msg` as an error; a Python regular expression to search for, which users may extend with `|...`."""

_KNOWN_BESIDES = (
    r"pg_dump: (?:\[[\w ()]+\] )?(?:warning|notice): (?:there are circular|could not resolve dependency loop)"
    r"|pg_dump: (?:warning: could not find where to insert IF EXISTS|\[custom archiver\] WARNING: ftell mismatch)"
    r"|pg_dump: (?:You might not be able to restore|Consider using a full dump)|\"$"
    r"|(?:mysqldump: \[)?warning(?:\]|:) (?:Using a password|A partial dump from a server that has GTIDs)"
    r"|warning: (?:--master-data is deprecated|Max \d+ open files|On some systems, a password| ?database .* collation)"
    r"|(?:detail|hint):  |\S+dump: Deprecated program name|warn\[\d+\] .*(?:the attribute `ver|variable is not set)"
    r"|enter password[\w ]*: ?$|info +\[|(?:index structure|full) consistency check$|\.+ +\d+%"
)
_CUT_OFF = _beginning_of(
    *(f"pg_dump: {step} " for step in _PG_DUMP_STEPS.split("|")),
    *("pg_dump: warning: there are circular", "pg_dump: warning: could not find where"),
    *("Executing Postgres dump_all globals command:", "Backing up globals to:", "Backing up to S3:", "Result: "),
    *("Command: pg_dumpall -", "Command: pg_dump --d", "Command: mariadb-dump -", "Command: mongodump --u"),
    *("Executing: mongodump --u", "pg_dump --dbname ", "mariadb-dump -", "Dump file: s3:/", "to: s3:/", "Database: "),
    *("Backup completed successfully", "mysqldump: [Warning] Using a password", "upload: ", "Completed "),
    *("INFO  [", "Done: ", "-- "),
)
# The last alternative is a time stamp that was cut off.
_KNOWN_LINE = rf"{_MONGODUMP}|{_BEFORE}(?:$|\r|{_PROGRESS}|{_KNOWN_BESIDES}|(?:{_CUT_OFF})\Z)|\d[\d:.T+ -]{{0,30}}\Z"

DEFAULT_SUCCESS_PATTERN = rf"(?im)\A(?![\s\S]*?(?:^|(?<=\r))(?!{_KNOWN_LINE}))"
"""Marks an `err_msg` as known to be fine, in the same way: none of its lines is unknown; the last may be cut off."""


def is_error(message: str | None, pattern: re.Pattern[str]) -> bool:
    """Whether a message reports an error."""
    return message is not None and pattern.search(message) is not None


def is_known(message: str | None, pattern: re.Pattern[str]) -> bool:
    """Whether a message is known to be fine, unless it is an error."""
    return message is None or not message.strip() or pattern.search(message) is not None
