"""The history as table, JSON and CSV."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from audit.history import ContainerHistory, last_days, worst_first
from audit.policy import DAY, HOUR, UTC
from audit.reports import history_csv, history_json, history_table
from audit.text import Style
from tests.builders import NOW
from tests.db4sci import SECRET
from tests.findings import LENIENT, past, some_site
from tests.runs import TICK, at, bad, nights, run

EVIL = f"evil\x1b[2J\u202e password={SECRET}\n"
NAMES = ("sales", "x" * 300, EVIL)


def shown(histories: Sequence[ContainerHistory], days: int = 9, begins: str = "2025-01-01", **style: Any) -> list[str]:
    period = replace(last_days(days, NOW, UTC), log_begins=at(begins) if begins else None)
    return list(history_table.render(histories, period, "mydbadmin@db:32009/mydb_admin", Style(**style)))


# --- The table -----------------------------------------------------------------------------------------


def test_the_table_has_the_least_covered_first_and_explains_its_marks() -> None:
    assert shown(some_site()) == [
        "Backup history of mydbadmin@db:32009/mydb_admin, 9 days: 2026-03-05 07:00 UTC to",
        "2026-03-14 07:00 UTC",
        "",
        "COVERED CONTAINER      POLICY  WORST AGE 03-05",
        " 28.7 % gone (deleted) Daily      4 days ···■",
        " 80.3 % trials         Daily      3 days ■■■■✗·■■■■",
        "100.0 % survey         Monthly 12.5 days ■■■■■■■■■■",
        "100.0 % fresh          Daily      24.4 h        ■■■",
        "100.0 % sales          Daily      24.4 h ■■■■■■■■■■",
        "",
        "■ covered all day              ✗ not covered, a run failed",
        "· not covered, no run failed   blank: not known",
        "",
        "A container is covered while its newest good backup is recent enough for its",
        "policy, grace included. Judged by today's policies and settings.",
        "Backups disabled: scratch.",
        "No valid backup policy: typo.",
        "7 containers, 5 judged: 86.8 % of the time covered, 4.2 days in all not covered.",
        "3 covered all the time. Worst: gone (deleted).",
    ]


def test_the_table_says_since_when_the_log_proves_anything() -> None:
    lines = shown(some_site(begins="06 07:00"), begins="06 07:00")
    assert "The log begins 2026-03-06 07:00 UTC: nothing before that is known." in lines
    assert "100.0 % sales          Daily      24.4 h  ■■■■■■■■■" in lines
    assert not [line for line in shown(some_site(), begins="05 07:00") if "The log" in line]
    assert "The log has no dated row." in shown(some_site(), begins="")


def test_colours_and_ascii_say_the_same() -> None:
    lines, colours = shown(some_site()), shown(some_site(), colour=True)
    assert [re.sub(r"\x1b\[[\d;]*m", "", line) for line in colours] == lines
    assert "\x1b[32m■■■■\x1b[0m\x1b[31;1m✗\x1b[0m\x1b[33m·\x1b[0m" in "\n".join(colours)
    assert shown(some_site(), ascii=True) == [line.translate(str.maketrans("■✗·", "#x.")) for line in lines]


def test_a_long_strip_continues_in_lines_of_whole_weeks() -> None:
    lines = shown(some_site(99), days=99, width=64)
    trials, fresh = (next(n for n, line in enumerate(lines) if f" {name} " in line) for name in ("trials", "fresh"))
    assert lines[trials + 1 : trials + 4] == [
        "       2025-12-05 " + "·" * 42,
        "       2026-01-16 " + "·" * 42,
        "       2026-02-27 ···■■■■■■■✗·■■■■",
    ]
    assert lines[fresh + 1] == f"       2026-02-27 {'':13}■■■", "a line of blanks is left out"


def test_a_month_is_one_line_of_80_columns_with_a_date_a_week() -> None:
    site = [past(*nights(*range(1, 14)), days=30, name=name) for name in ("plasmid-catalog-of-2026", "sales")]
    header, *rows = shown(site, days=30)[3:6]
    assert header == "COVERED CONTAINER              POLICY  WORST AGE 02-12  02-19  02-26  03-05"
    assert {row[7:31] for row in rows if len(row) == 80} == {" plasmid-catalog-of-... ", f" {'sales':22} "}
    assert [len(shown(site, days=30, width=width)) for width in (80, 74, 73)] == [14, 14, 16]


@pytest.mark.parametrize(("width", "days"), [(60, 9), (60, 365), (200, 30)])
def test_no_line_is_wider_than_the_terminal(width: int, days: int) -> None:
    rules = replace(LENIENT, policies={"Every second month of the year": 1488 * HOUR})
    kinds: list[dict[str, Any]] = [{"backup_freq": "Never"}, {}, {"deleted": True}]
    facts = [
        {"name": name, "backup_freq": "Every second month of the year", **kind} for name in NAMES for kind in kinds
    ]
    lines = shown([past(*nights(5, 9), days=days, rules=rules, **each) for each in facts], days=days, width=width)
    assert [line for line in lines if len(line) > width or line != line.rstrip() or not line.isprintable()] == []
    assert SECRET not in "".join(lines)
    assert sum("(deleted)" in line for line in lines if re.match(r" *\d+\.\d %", line)) == len(NAMES)


def test_the_worst_ratio_comes_first_and_of_equal_ones_the_worst_age() -> None:
    histories = [past(name="b"), past(name="a"), past(name="older", created=at("2020-01-01 00:00")), past(created=NOW)]
    histories += [past(*nights(9, 10, 11, 12, 13), name="fine"), past(*nights(9, 10, 11, 12), name="nearly")]
    assert [one.container.name for one in worst_first(histories)] == ["older", "a", "b", "nearly", "fine", "sales"]


def test_the_summary_of_other_sites() -> None:
    fine = past(*nights(9, 10, 11, 12, 13))
    for histories, text in (
        ([], "0 containers."),
        ([past(backup_freq="Never")], "1 container, 0 judged."),
        ([fine], "1 container: covered all the time."),
        ([fine, fine, past(created=NOW)], "3 containers, 2 judged: covered all the time."),
        ([fine, past(run("01 18:07"), deleted=True)], "Deleted before this period: sales (deleted)."),
    ):
        assert text in shown(histories)


# --- JSON and CSV --------------------------------------------------------------------------------------


def test_the_json_document_has_figures_and_outcomes_and_null_where_there_is_none() -> None:
    period, (_, trials, *_, scratch, typo) = last_days(9, NOW, UTC), some_site()
    document = json.loads(history_json.render([trials, scratch, typo], period))
    assert document["history"] == {
        "from": "2026-03-05T07:00:00Z",
        "to": "2026-03-14T07:00:00Z",
        "log_begins": None,
        "days": 10,
        "containers": 3,
        "ratio": 1 - 152580 / (9 * 86400),
        "uncovered_seconds": 152580,
    }
    assert document["containers"][0] == {
        "name": "trials",
        "c_id": 8,
        "policy": "Daily",
        "status": "ok",
        "first_day": "2026-03-05",
        "ratio": 1 - 152580 / (9 * 86400),
        "uncovered_seconds": 152580,
        "worst_age_seconds": 260580,
        "median_duration_seconds": 1380,
        "outcomes": [*["ok"] * 4, "failed", "none", *["ok"] * 4],
    }
    others = [(one["status"], one["ratio"], one["outcomes"]) for one in document["containers"][1:]]
    assert others == [("exempt", None, []), ("no_policy", None, [])]
    for begins, said in ((period.start, None), (period.start + TICK, "2026-03-05T07:00:00.000001Z"), (NOW, None)):
        head = json.loads(history_json.render([], replace(period, log_begins=begins)))["history"]
        assert (head["log_begins"], head["ratio"]) == (said, None), "the log begins in the period, or it is not news"


def rows_of(*histories: ContainerHistory) -> list[list[str]]:
    """The rows of the CSV of three days, read as programs read them."""
    text = "".join(f"{lines}\n" for lines in history_csv.render(iter(histories), last_days(3, NOW, UTC)))
    titles, *rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    assert titles == ["name", "c_id", "policy", "day", "outcome", "uncovered_seconds"]
    assert text.count("\n") == text.count("\r\n") == 1 + len(rows)
    return rows


def test_the_csv_has_a_row_for_each_container_and_day() -> None:
    sales = past(*nights(10), bad("12 00:30"), run("12 18:07"))
    assert rows_of(
        sales, past(name="scratch", backup_freq="Never"), past(run("11 12:00"), name="gone", deleted=True)
    ) == [
        ["sales", "7", "Daily", "2026-03-11", "ok", "0"],
        ["sales", "7", "Daily", "2026-03-12", "failed", "66180"],
        ["sales", "7", "Daily", "2026-03-13", "ok", "0"],
        ["sales", "7", "Daily", "2026-03-14", "none", "24780"],
        ["scratch", "7", "Never", "", "", ""],
        ["gone", "7", "Daily", "2026-03-11", "none", "19380"],
    ]
    assert [row[4] for row in rows_of(past(begins="13 07:00"))] == ["before", "before", "ok", "ok"]
    end = NOW + TICK
    *_, lines = history_csv.render([past(run("13 01:00"), days=1, end=end)], last_days(1, end, UTC))
    assert lines.splitlines()[-1] == "sales,7,Daily,2026-03-14,none,1", "uncovered is never rounded to covered"


def test_no_cell_of_the_csv_is_a_formula_or_breaks_a_line_and_other_names_survive() -> None:
    for name in ("=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "\uff1d1", "\uff20x", EVIL):
        for row in rows_of(past(name=name, backup_freq=name, rules=replace(LENIENT, policies={name.strip(): DAY}))):
            assert not [cell for cell in row if cell[:1] in "=+@\uff1d\uff0b\uff0d\uff20-" and cell]
            assert "".join(row).isprintable()
            assert SECRET not in "".join(row)
    for name in ("sales", 'a"b', "a,b", "a;b", "caf\u00e9", "'x", "0042", "1e5"):
        assert {row[0] for row in rows_of(past(name=name))} == {name}
