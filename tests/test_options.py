"""The command line: which options go together, which moment they name, and which containers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from zoneinfo import ZoneInfo

import pytest

from audit import options
from audit.errors import AuditError
from audit.options import VERSION, parse_period, parse_time, select
from audit.policy import UTC, Container
from tests.builders import NOW
from tests.runs import at

BERLIN = ZoneInfo("Europe/Berlin")

# --- Options -------------------------------------------------------------------------------------------

HISTORY_ONLY = "--csv, --html and --all go with --history"
ONE_FORM = "--history prints one of table, --json, --csv and --html, and writes no textfile"
NO_FILE = "--output and --html need the name of a file"
BAD_USAGE = {
    "--frobnicate": "unrecognized arguments: --frobnicate",
    "-v -q": "argument -q/--quiet: not allowed with argument -v/--verbose",
    "--output audit.prom sales": "--output goes with the full audit, not with CONTAINER",
    "--output - --json": "--output - and --json both want stdout",
    **dict.fromkeys(("--output=", "--history 30 --html="), NO_FILE),
    **dict.fromkeys(("--csv", "--all sales", "--html x"), HISTORY_ONLY),
    **dict.fromkeys(("--history 30 --output x", "--history 30 --json --csv", "--history 30 --csv --html x"), ONE_FORM),
    "x --nonsense\x1b[31m": "unrecognized arguments: --nonsense\\x1b[31m",
}


def end_of_parsing(words: str) -> object:
    with pytest.raises(SystemExit) as ended:
        options.parse(words.split(" "))
    return ended.value.code


def test_what_goes_together_and_what_does_not(capsys: pytest.CaptureFixture[str]) -> None:
    for words, problem in BAD_USAGE.items():
        assert end_of_parsing(words) == 3
        assert capsys.readouterr() == ("", f"backup_audit: {problem}: see backup_audit.py --help\n")
    for words in ("--history 30 sales --all --json", "--output x --json", "--at x --output -", "--history 30 --csv -q"):
        assert options.parse(words.split(" ")) is not None


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert end_of_parsing("--version") == 0
    assert capsys.readouterr() == (f"Backup Audit {VERSION}\n", "")
    assert end_of_parsing("--help") == 0
    shown = capsys.readouterr().out
    for option in ("--config", "--at", "--output", "--json", "--history", "--csv", "--html", "--all", "--check-config"):
        assert f"{option} " in shown


# --- The moment ----------------------------------------------------------------------------------------

MOMENTS = {
    " 2026-03-14 07:00:30": "2026-03-14T01:15:30+00:00",  # local time
    "2026-03-14": "2026-03-13T18:15:00+00:00",
    "2026-03-14T07:00:00-02:30": "2026-03-14T09:30:00+00:00",
    "1971-01-01T12:00z": "1971-01-01T12:00:00+00:00",
    "8999-12-31T00:00Z": "8999-12-31T00:00:00+00:00",
}
IMPOSSIBLE = [
    "", "nonsense", "07:00", "2026-02-30", "14.03.2026", "1970-12-31", "9000-01-01", "9999-12-31T23:59:59-12:00",
    "2026-03-14T07:00+99:00", "x\x1b[31m",
]  # fmt: skip


def test_a_moment_is_local_unless_it_has_an_offset() -> None:
    for written, expected in MOMENTS.items():
        found = parse_time(written, ZoneInfo("Asia/Kathmandu"))
        assert (found.isoformat(), found.tzinfo) == (expected, UTC)
    for written in IMPOSSIBLE:
        with pytest.raises(AuditError) as caught:
            parse_time(written, UTC)
        assert str(caught.value) == f"--at {written} is not a time: use ISO 8601, such as 2026-03-14T07:00"


# --- The period ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "start", "end", "days"),
    [
        ("1", "13 07:00", "14 07:00", 2),
        (" 030 ", "2026-02-12 07:00", "14 07:00", 31),
        ("2024", "2023-12-31 23:00", "2024-12-31 23:00", 366),
        ("2025-Q4", "2025-09-30 22:00", "2025-12-31 23:00", 92),
        ("2025-q1", "2024-12-31 23:00", "2025-03-31 22:00", 90),
        ("2026-02", "2026-01-31 23:00", "2026-02-28 23:00", 28),
        ("2026-03-14..2090-03-14", "13 23:00", "14 07:00", 1),
        ("2016-03-07..2026-03-31", "2016-03-06 23:00", "14 07:00", 3660),
    ],
)
def test_a_period_is_whole_local_days_cut_off_at_now(text: str, start: str, end: str, days: int) -> None:
    period = parse_period(text, NOW, BERLIN)
    assert (period.start, period.end, len(period.days), period.now) == (at(start), at(end), days, NOW)
    assert period.label == {"1": "1 day", " 030 ": "30 days"}.get(text, text)


@pytest.mark.parametrize(
    ("texts", "problem"),
    [
        (("", "0", "-1", "x"), "is not a period: use a number of days (999 at most), 2026, 2026-Q1, 2026-03 or "),
        (("1.5", "1825", "9999", "2026-Q5", "2026-13", "2026-3", "\u0663\u0660"), "is not a period"),
        (("2026-02-01..2026-02-30", "2026-03-01..", "20260301..20260302", "2026-01-01..9999-12-31"), "is not a period"),
        (("2026-03-12..2026-03-11", "2011-12-30..2011-12-30"), "contains no time: put the earlier day first"),
        (("2027", "2026-03-15..2026-03-16"), "has not begun: name a period that has"),
        (("2016-03-05..2026-03-31",), "is too long: name a period of 3660 days at most"),
    ],
)
def test_a_bad_period_says_what_is_accepted(texts: Sequence[str], problem: str) -> None:
    for text in texts:
        with pytest.raises(AuditError, match=re.escape(f"--history {text} {problem}")):
            parse_period(text, at("14 11:00"), ZoneInfo("Pacific/Apia"))  # midnight; it left out a day


# --- The containers ------------------------------------------------------------------------------------

NAMES = ["sales", "lab-4-postgres", "lab-40", "seqdb", "twin", "twin", "12", "odd[1]", "Lab-5"]
SITE = [*(Container(c_id, name) for c_id, name in enumerate(NAMES, 1)), Container(0, "offsite")]
SITE.append(Container(None, "lost"))
GONE = [Container(c_id, name, deleted=True) for c_id, name in ((70, "old-lab"), (71, "old-lab"), (72, "older"))]


@pytest.mark.parametrize(
    ("words", "c_ids"),
    [
        (["seqdb", "2", "sales", "seqdb", "1"], [4, 2, 1]),
        (["twin"], [5, 6]),
        (["lab-??", "*db"], [3, 4]),
        (["[Ll]ab-[0-9]"], [9]),
        (["sales", "s*"], [1, 4]),
        (["offsite", "lost"], [0, None]),
        (["12"], [7]),  # a name before a c_id
        (["odd[1]"], [8]),  # a name before a pattern
        (["old-lab"], [71]),  # of those deleted, the newest
        (["70"], [70]),  # but any by its c_id
        (["old*", "sales"], [71, 72, 1]),
    ],
)
def test_names_c_ids_and_patterns_in_the_order_asked_for(words: list[str], c_ids: list[int | None]) -> None:
    assert [container.c_id for container in select(SITE, words, lambda: GONE)] == c_ids


def test_deleted_containers_are_read_once_and_only_if_needed() -> None:
    reads = []

    def read() -> Sequence[Container]:
        reads.append("once")
        return GONE

    select(SITE, ["sales", "12", "lab-*"], read)
    select([*SITE, Container(73, "older")], ["older"], read)
    assert reads == [], "an active one of that name"
    select(SITE, ["older", "old-lab"], read)
    assert reads == ["once"]


CLOSE = {
    "lab-4": "did you mean lab-4-postgres or lab-40?",
    "SEQDB": "did you mean seqdb?",
    "LAB-4-P": "did you mean lab-4-postgres?",
    "seqbd": "did you mean seqdb?",
    "LAB-*": "did you mean Lab-5 or lab-4-postgres or lab-40?",
    **dict.fromkeys(("zzzzz", "99999", "", "s" * 150), "-v lists all names"),
}


def test_an_unknown_word_gets_close_matches_letter_case_aside() -> None:
    for word, advice in CLOSE.items():
        with pytest.raises(AuditError) as caught:
            select(SITE, ["sales", word], lambda: GONE)
        verb = "matches" if "*" in word else "is called"
        shown = word if len(word) <= 40 else word[:37] + "..."
        assert str(caught.value) == f"no container {verb} {shown}: {advice}"


def test_an_error_is_one_harmless_line() -> None:
    with pytest.raises(AuditError) as caught:
        select([Container(1, "sales\x1b]0;\u202e" + "x" * 5_000)], ["SALES\x1b"])
    shown = r"sales\x1b]0;\u202e" + "x" * 19 + "..."
    assert str(caught.value) == rf"no container is called SALES\x1b: did you mean {shown}?"
