"""Text for people: harmless, without passwords, as long as it may be, and in plain sentences."""

from __future__ import annotations

import ast
import re
import time
from dataclasses import replace
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from audit import text
from audit.policy import DAY, HOUR, LONG_AGO, UTC, Status
from audit.text import mask, one_line, shorten
from tests.builders import NOW
from tests.db4sci import SECRET
from tests.findings import FROZEN, failed, finding, ignored, ok, quick
from tests.runs import UNKNOWN, at, bad, doubtful, run, unfinished

# --- Harmless ------------------------------------------------------------------------------------------


def test_what_a_terminal_obeys_is_spelled_out_and_the_rest_stays() -> None:
    characters = map(chr, (*range(0x1_0000), *range(0xE_0000, 0xE_0200)))
    assert text.harmless("".join(characters)).isprintable()
    for given, line in {
        "\x1b[31mred\x07 a\u202eb \ud800": r"\x1b[31mred\x07 a\u202eb \ud800",
        "B\u00fccher \u6570\u636e\u5e93 \U0001f4be": "B\u00fccher \u6570\u636e\u5e93 \U0001f4be",
        "\n pg_dump:\t error\r\n\n more \u2028\x85": "pg_dump: error more",
        None: "",
    }.items():
        assert one_line(given) == one_line(line) == line


# --- Passwords -----------------------------------------------------------------------------------------

PASSWORDS = [
    "password=hunTer2", "PASSWORD: hunTer2", "password='hunTer2'", 'password="with blanks hunTer2"',
    'password="cut off after 100 characters hunTer2', "password=com,ma;semi&colon-hunTer2",
    "POSTGRES_PASSWORD=hunTer2", "AWS_SECRET_ACCESS_KEY=hunTer2/abc+def", "NEO4J_AUTH=neo4j/hunTer2",
    '{"DB_PASS": "hunTer2"}', "{'POSTGRES_PASSWORD': 'hunTer2'}", '{\\"DB_PASS\\": \\"hunTer2\\"}',
    "mysqldump -u root -phunTer2 sales", "mysqldump -u root --password hunTer2 sales", "passphrase=hunTer2",
    "mongodump -u admin -p hunTer2 --db shop", "mongodump --username admin --password 'hunTer2'",
    "postgresql://pgdba:hunTer2@db:32015/sales", "mongodb://admin:p@hunTer2@db:27017/admin", "redis://:hunTer2@db/0",
    "ALTER USER pgdba PASSWORD 'hunTer2'", "GRANT ALL ON sales.* TO root IDENTIFIED BY 'hunTer2'",
]  # fmt: skip
NO_PASSWORDS = [
    "pg_dump -h db -p 32015 sales", "mysqldump -h db -P 32015 -u root", "passfile=/root/.pgpass",
    "pg_dump: error: password authentication failed for user",
    "Access denied for user 'root'@'db' (using password: YES)",
    "s3://site-backups/sales/20260313-18:07:31", "2026-03-13T18:09:11.402+0000 Failed: no reachable servers",
]  # fmt: skip


@pytest.mark.parametrize("bad", PASSWORDS)
def test_passwords_are_masked_and_a_cut_leaves_no_part_of_one(bad: str) -> None:
    for shown in (mask(bad), mask(f"a\n{bad}\nb"), one_line(f"pg_dump: error: failed: {bad}")):
        assert SECRET not in shown
        assert "*****" in shown
        assert mask(shown) == shown, "what is masked stays as it is"
    assert text.setting(bad, "sales") == "", "a pattern would hold it"
    bad = bad.replace(SECRET, "\u017d" * 7)
    for visible in range(len(bad)):
        assert "\u017d" not in one_line("x" * (text.LONGEST - visible - 1) + f" {bad} and much more")


def test_other_text_is_not_masked() -> None:
    assert [mask(good) for good in NO_PASSWORDS] == NO_PASSWORDS


REPEATED = ["a", "-", ".", " x", "pass", "pass ", "password=", "secret_", "pwd-", "://a:", "://u:p@", "-p ", '"', "\\"]


def test_masking_takes_time_in_proportion_to_the_length() -> None:
    for unit in (*REPEATED, "identified by ", '_auth\\"', "a: ", " \t"):
        started = time.process_time()
        mask(unit * (50_000 // len(unit)))
        assert time.process_time() - started < 2, unit  # mostly 0.1 s; with the square of the length, half a minute


# --- As long as it may be --------------------------------------------------------------------------------


def test_long_text_ends_in_dots() -> None:
    for limit, cut in ((8, lambda said: shorten(said, 8)), (40, text.name), (200, text.message)):
        assert (cut("n" * limit), cut("n" * (limit + 1))) == ("n" * limit, "n" * (limit - 3) + "...")
    assert one_line("n" * 4_000) == "n" * 4_000
    assert one_line("n" * 9_000_000) == "n" * 4_000 + "..."


# --- Figures -------------------------------------------------------------------------------------------


def test_durations_ages_and_ratios() -> None:
    durations = {0: "0 s", 119: "119 s", 120: "2 min", 7199: "120 min", 7200: "2 h", 9000: "2.5 h"}
    assert {seconds: text.duration(timedelta(seconds=seconds)) for seconds in durations} == durations
    ages = {0: "0 h", 36.88: "36.9 h", 48: "48 h", 48.1: "2 days", 76.8: "3.2 days", 24_000: "1,000 days"}
    assert {hours: text.age(timedelta(hours=hours)) for hours in ages} == ages
    ratios = {None: "-", 0.0: "0.0 %", 0.57: "57.0 %", 0.2999: "29.9 %", 1 - 1e-15: "99.9 %", 1.0: "100.0 %"}
    assert {ratio: text.percent(ratio) for ratio in ratios} == ratios, "rounded down"


def test_times_are_of_the_zone_and_name_it() -> None:
    zone = ZoneInfo("Asia/Kathmandu")
    assert text.minute(at("13 18:30"), zone) == "2026-03-14 00:15 +0545"
    assert [text.minute(moment, zone) for moment in (None, LONG_AGO + DAY)] == ["unknown", "long ago"]
    assert text.since(NOW + HOUR, NOW, UTC) == "2026-03-14 08:00 UTC (in 1 h)"
    assert text.iso(at("13 18:07").astimezone(zone)) == "2026-03-13T18:07:00Z"
    assert text.iso(None) is None
    reason = text.reason(failed().verdict, zone)
    assert re.findall(r"[\d:]+ \+0545", reason) == ["07:45 +0545", "23:52 +0545"]


# --- Sentences -----------------------------------------------------------------------------------------

GOOD, BROKEN, BAD = run("12 18:07"), unfinished("13 18:07"), bad("13 18:07", "bad")
STRANGE, AGAIN = doubtful("13 18:07", "huh"), unfinished("14 06:50")
LEFT = "good backup 2026-03-12 18:07 UTC (36.9 h ago)"
THE_RUN = "the run of 2026-03-13 18:07 UTC (12.9 h ago)"
UNSURE = f"{THE_RUN} ended with an unrecognised message: huh"
AT_WORK = "running since 2026-03-14 06:50 UTC (0.2 h ago)"
OVERDUE = "Daily backup overdue by 12.9 h"

WITH_A_GOOD_BACKUP = {
    "no metadata: the table containers has no row of this container": finding(
        "x", GOOD, backup_freq=None, has_metadata=False
    ),
    "unknown backup policy 'Dialy'": finding("x", GOOD, backup_freq=" Dialy "),
    f"{THE_RUN} failed: bad": finding("x", GOOD, BAD),
    f"{THE_RUN} has not ended; it usually takes 4 min, so the limit is 1 h": finding(
        "x", *[run(f"{day:02} 18:07", 4) for day in range(1, 13)], BROKEN
    ),
    f"{AT_WORK}; {OVERDUE}": finding("x", GOOD, AGAIN),
    f"state is maintenance; {OVERDUE}": finding("x", GOOD, state="maintenance"),
    OVERDUE: finding("x", GOOD),
    "deleted": finding("x", GOOD, deleted=True),
}
WITHOUT_ONE = {
    "no backup policy: BACKUP_FREQ is missing or not text": finding(backup_freq=None),
    f"{THE_RUN} failed: bad; 2 in a row; running again since 2026-03-14 06:50 UTC": finding(
        "x", unfinished("13 02:00"), BAD, AGAIN
    ),
    f"{THE_RUN} has not ended; the limit is 12 h; 2 in a row": finding("x", BROKEN, unfinished("12 18:07")),
    "Daily backup overdue by 48 h": finding(created=at("11 07:00")),
    "Daily backup overdue by 2 h": finding(created=at("13 05:00")),
    "Daily backup overdue, creation lies in the future (2031-01-01 00:00 UTC)": finding(
        created=datetime(2031, 1, 1, tzinfo=UTC)
    ),
    "state is unknown; Daily backup overdue, creation unknown": finding(created=None, state=None),
    "never run": finding(c_id=0, created=None),
    f"{AT_WORK}; its first run": finding("x", AGAIN, c_id=0, created=None),
}
REASONS = {
    **{f"{said}; last {LEFT}": found for said, found in WITH_A_GOOD_BACKUP.items()},
    **{f"{said}; no good backup in the log": found for said, found in WITHOUT_ONE.items()},
    f"{UNSURE}; last known {LEFT}": finding("x", GOOD, STRANGE),
    f"{UNSURE}; no known good backup in the part of the log that was read": finding("x", STRANGE),
    f"{THE_RUN} failed: bad; last {LEFT}, whose message is unrecognised": finding(
        "x", doubtful("12 18:07", "huh"), BAD
    ),
    "backed up 2026-03-13 18:07 UTC (12.9 h ago), next due 2026-03-14 18:07 UTC": ok(),
    "created 2026-03-14 01:00 UTC (6 h ago), first due 2026-03-15 01:00 UTC": finding(created=at("14 01:00")),
    "backups disabled (policy Never)": finding(backup_freq="none"),
}


def test_reasons_have_the_figures_and_say_what_is_left_to_restore() -> None:
    for said, found in REASONS.items():
        assert text.reason(found.verdict, UTC) == text.reason(found.verdict, UTC, 200) == said
    assert {found.status for found in REASONS.values()} == {*Status, None}


def test_the_quoted_message_is_whole_or_cut_and_always_masked() -> None:
    said = "bad password=hunTer2\x07 " + "e" * 5_000
    for one in (failed(error=said), finding("x", GOOD, backup_freq=said), finding("x", GOOD, state=said)):
        whole, cut = text.reason(one.verdict, UTC), text.reason(one.verdict, UTC, 200)
        assert f"bad password=***** {'e' * 5_000}" in whole
        assert len(cut) < 400
        assert "bad password=***** eee" in cut, "a password ends at a blank"
    accepted = text.exception(failed(more={"exception": replace(FROZEN, reason=said)}))
    assert accepted == f"accepted until 2026-12-31 (bad password=***** {'e' * 178}...)"


def test_nothing_is_said_of_an_exception_or_an_expiry_that_is_not_there() -> None:
    assert text.exception(failed()) == text.expiry(failed(), UTC) == ""


def test_what_is_odd_about_the_last_good_backup() -> None:
    for said, one in {
        "took 2 s, typically 31 min: check the dump": quick(),
        "the last good backup ended before it started, by its stamps: its duration is unknown": finding(
            "x", run("13 18:07", -7)
        ),
    }.items():
        assert text.suspicion(one.verdict) == said


def test_an_unrecognised_line_becomes_a_setting_that_python_reads_and_that_finds_it() -> None:
    assert text.setting(UNKNOWN, "sales") == "success_patterns = [r'^Emulate Docker CLI using podman']"
    for line in ("\x1b[31mred\u202e", "l" * 500):
        setting = text.setting(line, "sales")
        (pattern,) = ast.literal_eval(setting.removeprefix("success_patterns = "))
        assert setting.isprintable()
        assert re.search(pattern, line)


def test_ignored_rows_have_a_hint_and_the_newest_ids() -> None:
    rows = ignored(future=[9], malformed=[5, 9, 7], undated=[1, 2, 3, 4])
    sentences = [
        "1 future log row ignored (stamped later than now; id 9): db_timezone is probably wrong.",
        "3 malformed log rows ignored (no backup_id, or a state other than start and end; ids 9, 7, 5): "
        "look at the table backups.",
        "4 undated log rows ignored (no ts; newest ids 4, 3, 2): look at the table backups.",
    ]
    assert list(text.ignored(rows)) == sentences
    assert list(text.ignored(rows, "undated")) == sentences[2:]
    assert list(text.ignored(ignored())) == []
