"""Text for people: harmless, without passwords, as long as it may be, and in plain sentences."""

from __future__ import annotations

import ast
import re
import time
from dataclasses import replace
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit import text
from audit.auditor import Finding
from audit.policy import DAY, HOUR, LONG_AGO, UTC, Rules, Status, Suspicion
from audit.text import Style, beside, mask, one_line, shorten, wrap
from tests.builders import NOW
from tests.findings import ENDED, FROZEN, RULES, UNKNOWN, at, failed, finding, ignored, ok, run

# --- Harmless ------------------------------------------------------------------------------------------

HOSTILE = [
    *("\x1b[2J\x1b[31mred", "\x1b]0;title\x07", "back\x08space \x7f", "\x9b31m C1", "next \x85 line \u2028 separator"),
    *("\u202eevil\u202c", "\u2066isolate\u2069", "zero\u200bwidth\u200d \ufeffmark \u061c\u200f", "tag \U000e0041"),
    *("surrogate \ud800", "two\r\nlines\x0band\ttabs"),
]


def test_what_a_terminal_obeys_is_spelled_out_and_the_rest_stays() -> None:
    for bad in HOSTILE:
        assert one_line(bad).isprintable()
        assert text.setting(bad, "sales").isprintable()
    assert one_line("\x1b[31mred\x07 a\u202eb") == r"\x1b[31mred\x07 a\u202eb"
    assert one_line("B\u00fccher \u6570\u636e\u5e93 \U0001f4be") == "B\u00fccher \u6570\u636e\u5e93 \U0001f4be"
    assert one_line("\n pg_dump:\t error\r\n\n more ") == "pg_dump: error more"
    assert one_line(None) == one_line(" \n") == ""


@given(st.text(max_size=60))
def test_any_text_becomes_one_harmless_line_and_stays_so(any_text: str) -> None:
    line = one_line(any_text)
    assert line.isprintable()
    assert one_line(line) == line


# --- Passwords -----------------------------------------------------------------------------------------

SECRET = "hunTer2"
PASSWORDS = [
    *("password=hunTer2", "PASSWORD: hunTer2", "password='hunTer2'", 'password="with blanks hunTer2"'),
    *(
        'password="cut off after 100 characters hunTer2',
        "password=com,ma;semi&colon-hunTer2",
        "POSTGRES_PASSWORD=hunTer2",
    ),
    *('{"DB_PASS": "hunTer2"}', "{'POSTGRES_PASSWORD': 'hunTer2'}", '{\\"DB_PASS\\": \\"hunTer2\\"}'),
    *("mysqldump -u root -phunTer2 sales", "mysqldump -u root --password hunTer2 sales"),
    *("mongodump -u admin -p hunTer2 --db shop", "mongodump --username admin --password 'hunTer2'"),
    *("postgresql://pgdba:hunTer2@db:32015/sales", "mongodb://admin:p@hunTer2@db:27017/admin", "redis://:hunTer2@db/0"),
    *("AWS_SECRET_ACCESS_KEY=hunTer2/abc+def", "NEO4J_AUTH=neo4j/hunTer2", "passphrase=hunTer2"),
    *("ALTER USER pgdba PASSWORD 'hunTer2'", "GRANT ALL ON sales.* TO root IDENTIFIED BY 'hunTer2'"),
]
NO_PASSWORDS = [
    *("pg_dump -h db -p 32015 sales", "mysqldump -h db -P 32015 -u root", "passfile=/root/.pgpass"),
    "pg_dump: error: password authentication failed for user",
    "Access denied for user 'root'@'db' (using password: YES)",
    *("s3://site-backups/sales/20260313-18:07:31", "2026-03-13T18:09:11.402+0000 Failed: no reachable servers"),
]


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


LONG = ["a", "-", ".", " x", "pass", "pass ", "password=", "secret_", "pwd-", "://a:", "://u:p@", "-p ", '"', "\\"]


@pytest.mark.parametrize("unit", [*LONG, "identified by ", '_auth\\"', "a: ", " \t"], ids=ascii)
def test_masking_takes_time_in_proportion_to_the_length(unit: str) -> None:
    started = time.process_time()
    mask(unit * (100_000 // len(unit)))
    assert time.process_time() - started < 3  # it takes 0.2 s at the most; with the square of the length, hours


# --- As long as it may be --------------------------------------------------------------------------------


def test_a_message_of_megabytes_costs_little_and_is_cut() -> None:
    started = time.process_time()
    line = one_line("pg_dump: error: x\n" * 300_000)
    assert time.process_time() - started < 0.5
    assert line.startswith("pg_dump: error: x pg_dump: error: x")
    assert line.endswith("...")
    for length, dots in ((text.LONGEST, ""), (text.LONGEST + 1, "...")):
        assert one_line("x" * length) == "x" * text.LONGEST + dots


def test_long_text_ends_in_dots() -> None:
    assert (shorten("12345678", 8), shorten("123456789", 8)) == ("12345678", "12345...")
    assert (text.name("n" * 40), text.name("n" * 41)) == ("n" * 40, "n" * 37 + "...")
    assert (text.message("n" * 200), text.message("n" * 201)) == ("n" * 200, "n" * 197 + "...")


def test_lines_break_between_words_where_they_can_and_names_are_not_broken() -> None:
    assert wrap("one two three", 9, "  ") == ["  one two", "  three"]
    assert wrap("lab-4-postgres lab-5", 14) == ["lab-4-postgres", "lab-5"]
    assert wrap("abcdefgh", 6, "  ") == ["  abcd", "  efgh"]
    assert list(beside("title ", "one two three", 13, 6)) == ["title one two", "      three"]
    assert list(beside("title ", "", 13, 6)) == ["title "]


def test_colours_are_optional() -> None:
    assert text.paint("ok", 0, Style()) == "ok"
    painted = [text.paint("x", severity, Style(colour=True)) for severity in (0, 1, 2)]
    assert len(set(painted)) == 3
    assert all(one.startswith("\x1b[") and one.endswith("x\x1b[0m") for one in painted)


def test_numbers_of_things_and_ratios_rounded_down() -> None:
    assert [text.count(number, "run") for number in (0, 1, 2)] == ["0 runs", "1 run", "2 runs"]
    assert [text.first_few([*"abcd"][:number]) for number in (1, 3, 4)] == ["a", "a, b, c", "a, b, c and 1 more"]
    ratios = {None: "-", 0.0: "0.0 %", 0.57: "57.0 %", 0.2999: "29.9 %", 1 - 1e-15: "99.9 %", 1.0: "100.0 %"}
    assert {ratio: text.percent(ratio) for ratio in ratios} == ratios


# --- Times ---------------------------------------------------------------------------------------------


def test_durations_and_ages_have_a_unit_that_fits() -> None:
    durations = {0: "0 s", 119: "119 s", 120: "2 min", 7199: "120 min", 7200: "2 h", 9000: "2.5 h"}
    assert {seconds: text.duration(timedelta(seconds=seconds)) for seconds in durations} == durations
    assert text.duration(None) == "-"
    ages = {0: "0 h", 36.88: "36.9 h", 48: "48 h", 48.1: "2 days", 76.8: "3.2 days", 24_000: "1,000 days"}
    assert {hours: text.age(timedelta(hours=hours)) for hours in ages} == ages


def test_times_are_of_the_zone_and_name_it() -> None:
    zone = ZoneInfo("Asia/Kathmandu")
    assert text.minute(at("13 18:07"), UTC) == "2026-03-13 18:07 UTC"
    assert text.minute(at("13 18:30"), zone) == "2026-03-14 00:15 +0545"
    assert [text.minute(moment, zone) for moment in (None, LONG_AGO + DAY)] == ["unknown", "long ago"]
    assert text.since(NOW + HOUR, NOW, UTC) == "2026-03-14 08:00 UTC (in 1 h)"
    assert text.iso(at("13 18:07").astimezone(zone)) == "2026-03-13T18:07:00Z"
    assert text.iso(None) is None
    reason = text.reason(failed().verdict, Rules(zone=zone))
    assert re.findall(r"[\d:]+ \+0545", reason) == ["07:45 +0545", "23:52 +0545"]


# --- Sentences -----------------------------------------------------------------------------------------

NONE, LEFT = "no good backup in the log", "last good backup 2026-03-12 18:07 UTC (36.9 h ago)"
OVERDUE = "Daily backup overdue by 12.9 h"
OF_LAST_NIGHT = "the run of 2026-03-13 18:07 UTC (12.9 h ago)"
AT_WORK = "running since 2026-03-14 06:50 UTC (0.2 h ago)"
NIGHTS = [run(f"{day:02} 18:07", 4) for day in range(1, 13)]
GOOD, BROKEN, BAD = run("12 18:07"), run("13 18:07", None), run("13 18:07", error="bad")
STRANGE, AGAIN = run("13 18:07", unknown="huh"), run("14 06:50", None)

REASONS: dict[str, tuple[Finding, str]] = {
    "no metadata": (
        finding("x", GOOD, policy=None, has_metadata=False),
        f"no metadata: the table containers has no row of this container; {LEFT}",
    ),
    "no policy": (finding(policy=None), f"no backup policy: BACKUP_FREQ is missing or not text; {NONE}"),
    "mistyped policy": (finding("x", GOOD, policy=" Dialy "), f"unknown backup policy 'Dialy'; {LEFT}"),
    "exempt": (finding(policy="none"), "backups disabled (policy Never)"),
    "failed": (finding("x", GOOD, BAD), f"{OF_LAST_NIGHT} failed: bad; {LEFT}"),
    "failed again, and running": (
        finding("x", GOOD, run("13 02:00", None), BAD, AGAIN),
        f"{OF_LAST_NIGHT} failed: bad; 2 in a row; running again since 2026-03-14 06:50 UTC; {LEFT}",
    ),
    "failed after an unsure one": (
        finding("x", run("12 18:07", unknown="huh"), BAD),
        f"{OF_LAST_NIGHT} failed: bad; {LEFT}, whose message is unrecognised",
    ),
    "stalled": (
        finding("x", BROKEN, run("12 18:07", None)),
        f"{OF_LAST_NIGHT} has not ended; the limit is 12 h; 2 in a row; {NONE}",
    ),
    "stalled, and its typical duration is known": (
        finding("x", *NIGHTS, BROKEN),
        f"{OF_LAST_NIGHT} has not ended; usually 4 min, so the limit is 1 h; {LEFT}",
    ),
    "unsure": (
        finding("x", GOOD, STRANGE),
        f"{OF_LAST_NIGHT} ended with an unrecognised message: huh; {LEFT.replace('good', 'known good')}",
    ),
    "never sure": (
        finding("x", STRANGE),
        f"{OF_LAST_NIGHT} ended with an unrecognised message: huh; no known good backup as far as the log was read",
    ),
    "ok": (ok(), "backed up 2026-03-13 18:07 UTC (12.9 h ago), next due 2026-03-14 18:07 UTC"),
    "new": (finding(created=at("14 01:00")), "created 2026-03-14 01:00 UTC (6 h ago), first due 2026-03-15 01:00 UTC"),
    "running": (finding("x", GOOD, AGAIN), f"{AT_WORK}; {OVERDUE}; {LEFT}"),
    "paused": (finding("x", GOOD, state="maintenance"), f"state is maintenance; {OVERDUE}; {LEFT}"),
    "late": (
        finding("x", run("13 05:00")),
        "Daily backup overdue by 2 h; last good backup 2026-03-13 05:00 UTC (26 h ago)",
    ),
    "missed": (finding("x", GOOD), f"{OVERDUE}; {LEFT}"),
    "missed since its creation": (finding(created=at("11 07:00")), f"Daily backup overdue by 48 h; {NONE}"),
    "created in the future": (
        finding(created=datetime(2031, 1, 1, tzinfo=UTC)),
        f"Daily backup overdue, creation lies in the future (2031-01-01 00:00 UTC); {NONE}",
    ),
    "creation unknown": (
        finding(created=None, state=None),
        f"state is unknown; Daily backup overdue, creation unknown; {NONE}",
    ),
    "a job without a run": (finding(c_id=0, created=None), f"never run; {NONE}"),
    "a job's first run": (finding("x", AGAIN, c_id=0, created=None), f"{AT_WORK}; its first run; {NONE}"),
    "deleted": (finding("x", GOOD, deleted=True), f"deleted; {LEFT}"),
}


@pytest.mark.parametrize("case", REASONS)
def test_reasons_have_the_figures_and_say_what_is_left_to_restore(case: str) -> None:
    found, expected = REASONS[case]
    assert text.reason(found.verdict, RULES) == text.reason(found.verdict, RULES, 200) == expected
    assert {found.status for found, _ in REASONS.values()} == {*Status, None}


def test_the_quoted_message_is_whole_or_cut_and_always_masked() -> None:
    said = "bad password=hunTer2\x07 " + "e" * 5_000
    for one in (failed(error=said), finding("x", GOOD, policy=said), finding("x", GOOD, state=said)):
        whole, cut = text.reason(one.verdict, RULES), text.reason(one.verdict, RULES, 200)
        assert f"bad password=***** {'e' * 5_000}" in whole
        assert len(cut) < 400
        assert "bad password=***** eee" in cut, "a password ends at a blank"


def test_an_exception_says_until_when_and_why() -> None:
    accepted = failed(more={"exception": FROZEN})
    assert text.exception(accepted) == "accepted until 2026-12-31 (frozen for the paper, ticket 4711)"
    assert text.exception(failed(more={"exception": ENDED})) == "ended on 2026-03-12 (moved to another host)"
    assert text.exception(failed()) == ""
    long = failed(more={"exception": replace(FROZEN, reason="r\n" * 300)})
    assert len(text.exception(long)) == len("accepted until 2026-12-31 ()") + 200


def test_suspicions() -> None:
    short = finding("x", *[run(f"{day:02} 18:07", 31) for day in range(1, 12)], run("13 18:07", 0.03)).verdict
    assert [text.suspicion(one, short) for one in short.suspicions] == ["took 2 s, typically 31 min: check the dump"]
    backwards = finding("x", run("13 18:07", -7)).verdict
    assert backwards.suspicions == [Suspicion.ENDED_BEFORE_START]
    assert text.suspicion(backwards.suspicions[0], backwards).startswith("the last good backup ended before it started")


def test_the_expiry_of_a_dump_has_its_date() -> None:
    good = "the last good dump, of 2026-03-12 18:07 UTC,"
    for days, expected in (
        (3, f"{good} expires 2026-03-15 18:07 UTC (in 35.1 h)"),
        (1, f"{good} expired 2026-03-13 18:07 UTC (12.9 h ago): nothing is left to restore"),
    ):
        rules = Rules(dumps_kept=timedelta(days=days))
        assert text.expiry(finding("x", GOOD, rules=rules), rules) == expected
    assert text.expiry(finding("x", GOOD), RULES) == ""


def test_an_unrecognised_line_becomes_a_setting_that_python_reads_and_that_finds_it() -> None:
    assert text.setting(UNKNOWN, "sales") == "success_patterns = [r'^Emulate Docker CLI using podman']"
    for line in (UNKNOWN, "it's 100% [done] at C:\\tmp\\", 'a "quoted" $x ^ y', "\x1b[31mred", "l" * 500):
        name, _, value = text.setting(line, "sales").partition(" = ")
        (pattern,) = ast.literal_eval(value)
        assert name == "success_patterns"
        assert re.search(pattern, line)
        assert not re.search(pattern, "another line")


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
