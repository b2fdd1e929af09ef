"""Text for people: harmless, without passwords, and as wide as it may be."""

from __future__ import annotations

import time
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit import printable
from audit.printable import Style, columns, cut, duration_text, fit, mask, one_line, paint, shorten, wrap

WIDE = "\u6570\u636e\u5e93"
ACCENTED = "cafe\u0301"
TO_THE_LEFT = "\u0645\u0628\u064a\u0639\u0627\u062a"

# --- Harmless ------------------------------------------------------------------------------------------

HOSTILE = [
    "\x1b[2J\x1b[31mred",
    "\x1b]0;title\x07",
    "back\x08space \x7f",
    "\x9b31m C1",
    "next \x85 line \u2028 separator",
    "\u202eevil\u202c",
    "\u2066isolate\u2069",
    "zero\u200bwidth\u200d \ufeffmark \u061c\u200f",
    "tag \U000e0041",
    "surrogate \ud800",
    "two\r\nlines\x0band\ttabs",
]


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_no_control_sequence_reaches_the_terminal(text: str) -> None:
    assert one_line(text).isprintable()


def test_what_is_harmful_is_spelled_out_and_the_rest_stays() -> None:
    assert one_line("\x1b[31mred\x07 a\u202eb") == r"\x1b[31mred\x07 a\u202eb"
    assert one_line(f"B\u00fccher {WIDE} \U0001f4be {ACCENTED}") == f"B\u00fccher {WIDE} \U0001f4be {ACCENTED}"
    assert one_line("\n pg_dump:\t error\r\n\n more ") == "pg_dump: error more"
    assert one_line(None) == one_line(" \n") == ""


@given(st.text(max_size=60))
def test_any_text_becomes_one_harmless_line_and_stays_so(text: str) -> None:
    line = one_line(text)
    assert line.isprintable()
    assert one_line(line) == line


# --- Passwords -----------------------------------------------------------------------------------------

SECRET = "hunTer2"
PASSWORDS = [
    "password=hunTer2",
    "password = hunTer2",
    "PASSWORD: hunTer2",
    "password='hunTer2'",
    'password="hunTer2"',
    'password="with blanks hunTer2"',
    'password="cut off after 100 characters hunTer2',
    "password=com,ma;semi&colon-hunTer2",
    "POSTGRES_PASSWORD=hunTer2",
    "PGPASSWORD=hunTer2 pg_dump -h db",
    "MYSQL_PWD=hunTer2 mysqldump",
    "MYSQL_ROOT_PASSWORD=hunTer2",
    '{"DB_PASS": "hunTer2"}',
    "{'POSTGRES_PASSWORD': 'hunTer2'}",
    '{\\"DB_PASS\\": \\"hunTer2\\"}',
    "mysqldump -u root -phunTer2 sales",
    "mysqldump -u root -p'hunTer2' sales",
    "mysqldump -u root --password=hunTer2 sales",
    "mysqldump -u root --password hunTer2 sales",
    "mongodump -u admin -p hunTer2 --db shop",
    "mongodump --username admin --password 'hunTer2'",
    "postgresql://pgdba:hunTer2@db:32015/sales",
    "mongodb://admin:p@hunTer2@db:27017/admin",
    "mongodb+srv://admin:hunTer2@db/admin",
    "redis://:hunTer2@db/0",
    "AWS_SECRET_ACCESS_KEY=hunTer2/abc+def",
    "aws_secret_access_key = hunTer2",
    "AWS_SESSION_TOKEN=hunTer2",
    "NEO4J_AUTH=neo4j/hunTer2",
    "ALTER USER pgdba PASSWORD 'hunTer2'",
    "GRANT ALL ON sales.* TO root IDENTIFIED BY 'hunTer2'",
    "passphrase=hunTer2",
]


@pytest.mark.parametrize("text", PASSWORDS)
def test_passwords_are_masked(text: str) -> None:
    for shown in (mask(text), mask(f"a\n{text}\nb"), one_line(f"pg_dump: error: failed: {text}")):
        assert SECRET not in shown
        assert "*****" in shown
        assert mask(shown) == shown, "what is masked stays as it is"


@pytest.mark.parametrize("text", PASSWORDS)
def test_a_cut_through_a_password_leaves_no_part_of_it(text: str) -> None:
    text = text.replace(SECRET, "\u017d" * 7)
    for visible in range(len(text)):
        line = one_line("x" * (printable.LONGEST - visible - 1) + f" {text} and much more")
        assert "\u017d" not in line


@pytest.mark.parametrize(
    "text",
    [
        "pg_dump -h db -p 32015 sales",
        "mysqldump -h db -P 32015 -u root",
        "pg_dump: error: password authentication failed for user",
        "Access denied for user 'root'@'db' (using password: YES)",
        "no password supplied",
        "passfile=/root/.pgpass",
        "s3://site-backups/sales/20260313-18:07:31",
        "2026-03-13T18:09:11.402+0000 Failed: no reachable servers",
        "connection to server at db, port 32042 failed",
    ],
)
def test_other_text_is_not_masked(text: str) -> None:
    assert mask(text) == text


LONG = ["a", "-", ".", " x", "pass", "pass ", "password=", "secret_", "pwd-", "://a:", "://u:p@", "-p ", '"', "\\"]


@pytest.mark.parametrize("unit", [*LONG, "identified by ", '_auth\\"', "a: ", " \t"], ids=ascii)
def test_masking_takes_time_in_proportion_to_the_length(unit: str) -> None:
    started = time.process_time()
    mask(unit * (200_000 // len(unit)))
    assert time.process_time() - started < 5  # it takes 0.2 s at the most; with the square of the length, hours


def test_a_message_of_megabytes_costs_little() -> None:
    started = time.process_time()
    line = one_line("pg_dump: error: x\n" * 300_000)
    assert time.process_time() - started < 0.5
    assert line.startswith("pg_dump: error: x pg_dump: error: x")
    assert line.endswith("...")
    assert len(line) <= printable.LONGEST + 3


def test_both_sides_of_the_longest_line() -> None:
    assert one_line("x" * printable.LONGEST) == "x" * printable.LONGEST
    assert one_line("x" * (printable.LONGEST + 1)) == "x" * printable.LONGEST + "..."


# --- Lengths and widths --------------------------------------------------------------------------------


COLUMNS = {"sales": 5, WIDE: 6, ACCENTED: 4, TO_THE_LEFT: 6, "\uff34\uff45": 4, "\U0001f4be": 2, "e\u20dd": 1, "": 0}


@pytest.mark.parametrize(("text", "width"), [*COLUMNS.items(), ("\u1112\u1161\u11ab", 2)], ids=ascii)
def test_columns(text: str, width: int) -> None:
    assert columns(text) == width


def test_long_text_ends_in_dots() -> None:
    assert (shorten("12345678", 8), shorten("123456789", 8)) == ("12345678", "12345...")
    assert (cut("12345678", 8), cut("123456789", 8)) == ("12345678", "12345...")
    assert (cut(WIDE, 6), cut(WIDE, 5)) == (WIDE, "\u6570...")
    assert cut("\u0301" * 40 + "e", 10) == "\u0301" * 40 + "...", "combining characters do not go on without end"
    assert (fit("ab", 4), fit(WIDE, 8), fit("abcdef", 5)) == ("ab  ", f"{WIDE}  ", "ab...")


any_text = st.lists(st.sampled_from([*"ab   ", *WIDE, *ACCENTED, *TO_THE_LEFT, "-" * 30]), max_size=80).map("".join)


@given(any_text, st.integers(6, 60))
def test_cut_and_fit_keep_to_the_width(text: str, width: int) -> None:
    assert columns(cut(text, width)) <= width
    assert columns(fit(text, width)) == width
    assert columns(text) > width or cut(text, width) == text or len(text) > 4 * width


@given(any_text, st.integers(16, 60), st.sampled_from(["", " " * 14]))
def test_wrapped_lines_fit_and_lose_nothing(text: str, width: int, indent: str) -> None:
    lines = list(wrap(text, width, indent))
    assert all(columns(line) <= width and line.startswith(indent) for line in lines)
    assert "".join("".join(lines).split()) == "".join(text.split())


def test_wrapping_breaks_between_words_where_it_can() -> None:
    assert list(wrap("one two three", 9, "  ")) == ["  one two", "  three"]
    assert list(wrap("one two three", 8, "  ")) == ["  one", "  two", "  three"]
    assert list(wrap("abcdefgh", 6, "  ")) == ["  abcd", "  efgh"]
    assert list(wrap(f"a {WIDE}", 6)) == ["a", WIDE]
    assert list(wrap(" ", 10)) == []


def test_a_number_stays_with_its_unit() -> None:
    assert list(wrap("1 failed, 2 missed", 11)) == ["1 failed,", "2 missed"]
    assert list(wrap("a day (36.9 h ago)", 14)) == ["a day (36.9 h", "ago)"]
    assert list(wrap("a day (36.9 h ago)", 12)) == ["a day", "(36.9 h ago)"]


def test_colours_are_optional() -> None:
    assert paint("ok", 0, Style()) == "ok"
    painted = [paint("x", severity, Style(colour=True)) for severity in (0, 1, 2)]
    assert len(set(painted)) == 3
    assert all(text.startswith("\x1b[") and text.endswith("x\x1b[0m") for text in painted)


DURATIONS = [(0, "0 s"), (119, "119 s"), (120, "2 min"), (7199, "120 min"), (7200, "2.0 h"), (360_000, "100.0 h")]


@pytest.mark.parametrize(("seconds", "text"), DURATIONS)
def test_durations(seconds: int, text: str) -> None:
    assert duration_text(timedelta(seconds=seconds)) == text
    assert duration_text(None) == "-"
