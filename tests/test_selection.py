"""Which containers the words of a command line mean."""

from __future__ import annotations

from datetime import datetime

import pytest

from audit.policy import UTC, Container
from audit.selection import select

NAMES = ["sales", "lab-4-postgres", "lab-40", "seqdb", "twin", "twin", "12", "odd[1]", "Lab-5"]
SITE = [Container(c_id, name) for c_id, name in enumerate(NAMES, 1)]
JOB, LOST = Container(0, "offsite"), Container(None, "lost")
LOGGED = datetime(2026, 3, 1, 18, 7, tzinfo=UTC)
GONE = [Container(70, "old-lab"), Container(71, "old-lab", last_logged=LOGGED), Container(72, "older")]


def chosen(*words: str) -> list[int | None]:
    return [container.c_id for container in select([*SITE, JOB, LOST], words, GONE)]


def problem(word: str) -> str:
    with pytest.raises(ValueError) as caught:
        select([*SITE, JOB, LOST], ["sales", word], GONE)
    return str(caught.value)


@pytest.mark.parametrize(
    ("words", "c_ids"),
    [
        (["sales"], [1]),
        (["seqdb", "2", "sales", "seqdb", "1"], [4, 2, 1]),
        (["twin"], [5, 6]),
        (["lab-*"], [2, 3]),
        (["lab-??", "*db"], [3, 4]),
        (["[Ll]ab-[0-9]"], [9]),
        (["sales", "s*"], [1, 4]),
        (["offsite"], [0]),
        (["lost"], [None]),
    ],
)
def test_names_c_ids_and_patterns_in_the_order_asked_for(words: list[str], c_ids: list[int | None]) -> None:
    assert chosen(*words) == c_ids


def test_a_name_comes_before_a_c_id_and_before_a_pattern() -> None:
    assert chosen("12") == [7]
    assert chosen("odd[1]") == [8]
    many = [*SITE, *(Container(c_id, f"more-{c_id}") for c_id in range(10, 14))]
    assert [container.name for container in select(many, ["12", "13"])] == ["12", "more-13"]


CLOSE = {
    "lab-4": "lab-4-postgres or lab-40",
    "SEQDB": "seqdb",
    "LAB-4-P": "lab-4-postgres",
    "seqbd": "seqdb",
    "lab-5": "Lab-5",
    "LAB-*": "Lab-5 or lab-4-postgres or lab-40",
}


@pytest.mark.parametrize(("word", "suggestion"), CLOSE.items())
def test_an_unknown_word_gets_close_matches_letter_case_aside(word: str, suggestion: str) -> None:
    verb = "matches" if "*" in word else "is called"
    assert problem(word) == f"no active container {verb} {word}: did you mean {suggestion}?"


@pytest.mark.parametrize("word", ["zzzzz", "99999", ""])
def test_without_a_close_match_the_report_has_all_names(word: str) -> None:
    assert problem(word).endswith(f" is called {word}: -v lists all names")


@pytest.mark.parametrize("word", ["old-lab", "71", "*-lab"])
def test_a_deleted_container_is_called_deleted(word: str) -> None:
    shown = "old-lab (c_id 71) was deleted after its last backup run, of 2026-03-01 18:07 UTC"
    assert problem(word) == f"{shown}: --history DAYS --all shows its past"
    assert problem("older") == "older (c_id 72) was deleted: --history DAYS --all shows its past"


def test_an_error_is_one_harmless_line() -> None:
    evil = [Container(1, "sales\x1b]0;\u202e" + "x" * 5_000)]
    with pytest.raises(ValueError) as caught:
        select(evil, ["SALES\x1b"])
    shown = r"sales\x1b]0;\u202e" + "x" * 19 + "..."
    assert str(caught.value) == rf"no active container is called SALES\x1b: did you mean {shown}?"
    with pytest.raises(ValueError) as caught:
        select([], ["1"], evil)
    assert str(caught.value).startswith(f"{shown} (c_id 1) was deleted: ")
