"""The past of a site by example (docs/rules.md, "History"): the rule, days, figures, periods, and the program."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from audit.history import ContainerHistory, last_days, look_back
from audit.policy import DAY, HOUR, UTC, Container, Run
from tests.builders import NOW, Site
from tests.findings import LENIENT, NOTHING, past
from tests.runs import MINUTE, TICK, at, bad, doubtful, nights, run, unfinished

BERLIN = ZoneInfo("Europe/Berlin")


def letters(history: ContainerHistory) -> str:
    """The outcomes: o(k), f(ailed), - (none), b(efore)."""
    return "".join(outcome.value[0] for outcome in history.outcomes).replace("n", "-")


def spans(history: ContainerHistory) -> list[tuple[datetime, datetime]]:
    return [(stretch.start, stretch.end) for stretch in history.stretches]


# --- The rule ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "base", "zone", "lapse"),
    [
        ("Daily", "13 01:00", UTC, "14 07:00"),
        ("Monthly", "2026-02-10 18:00", UTC, "14 00:00"),
        ("Weekly", "07 18:07", UTC, "15 06:00"),
        ("Weekly", "24 18:07", BERLIN, "29 05:00"),  # clocks change in these six hours of grace
    ],
)
def test_covered_is_up_to_due_and_grace(policy: str, base: str, zone: Any, lapse: str) -> None:
    given: dict[str, Any] = {"backup_freq": policy, "rules": replace(LENIENT, zone=zone)}
    for runs, facts in (([run(base)], given), ([], {**given, "created": at(base)})):
        last, late = (past(*runs, end=end, **facts) for end in (at(lapse), at(lapse) + TICK))
        assert at(lapse) not in [end for _, end in spans(last)]
        assert spans(late)[-1] == (at(lapse), at(lapse) + TICK)
        assert (letters(late)[-1], late.ratio == 1) == ("-", False)


# --- Days ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("runs", "expected"),
    [
        pytest.param([], "----", id="no run"),
        pytest.param([*nights(10), bad("11 18:07"), *nights(12, 13)], "o-oo", id="failed on a day that was covered"),
        pytest.param([*nights(10), unfinished("12 00:30"), *nights(12, 13)], "ofoo", id="stalled by the end of all"),
        pytest.param([bad("12 00:00"), *nights(12, 13)], "-foo", id="failed at midnight"),
        pytest.param([bad("11 23:59"), *nights(12, 13)], "f-oo", id="failed before midnight"),
        pytest.param([bad("11 06:59"), *nights(13)], "---o", id="failed before the period"),
        pytest.param([bad("11 07:00"), *nights(13)], "f--o", id="failed as the period begins"),
        pytest.param([unfinished(NOW - DAY)], "--f-", id="stalled"),
        pytest.param([unfinished(NOW - DAY + TICK)], "----", id="running"),
    ],
)
def test_the_outcomes_of_days(runs: list[Run], expected: str) -> None:
    assert letters(past(*runs)) == expected


@pytest.mark.parametrize(
    ("begins", "created", "known", "expected"),
    [
        (None, "12 00:00", "12 00:00", "bo--"),  # covered until due and grace after its creation
        (None, "11 23:59:59", "11 23:59:59", "oo--"),
        (None, "14 06:59:59", "14 06:59:59", "bbbo"),
        (None, "14 07:05", "14 07:05", "bbbb"),
        (None, "14 07:05:01", None, "----"),  # a wrong stamp makes no container new
        (None, None, None, "----"),
        ("12 00:00", None, "12 00:00", "bo--"),  # after the first row of the log
        ("12 00:00", "13 12:00", "13 12:00", "bboo"),
        ("09 00:00", "2025-01-15 09:30", "09 00:00", "----"),
    ],
)
def test_before_a_container_is_known_nothing_counts(
    begins: str | None, created: str | None, known: str | None, expected: str
) -> None:
    history = past(begins=begins, created=created and at(created))
    since = max(at(known or "11 07:00"), at("11 07:00"))
    assert (letters(history), history.counted) == (expected, max(NOW - since, NOTHING))
    assert (history.ratio is None) is (not history.counted)
    assert history.worst_age == (NOW - at(known) if known and history.counted else None)


def test_a_container_created_after_the_period_does_not_count_but_a_wrong_stamp_is_unknown() -> None:
    period = replace(last_days(2, at("14 00:00"), UTC), now=at("2026-04-01 00:00"))
    for created, expected in (("20 00:00", "bb"), ("2026-04-01 00:06", "--")):
        assert letters(look_back(Container(7, "sales", "Daily", created=at(created)), [], period, LENIENT)) == expected


# --- Figures -------------------------------------------------------------------------------------------


def test_the_median_duration_is_that_of_the_succeeded_runs_of_the_period() -> None:
    runs = [run("10 18:07", 300), run("11 18:07", 10), run("12 18:07", 20), bad("12 20:00")]
    assert past(*runs).median_duration == 15 * MINUTE
    assert past(*runs, run("13 18:07")).median_duration == 20 * MINUTE
    assert past(run("13 18:07", start_logged=False), run(NOW, minutes=0)).median_duration is None
    on_the_edge = run(NOW - 3 * DAY, minutes=0), run(NOW - 3 * DAY - TICK, ended=NOW.isoformat()[:19])
    assert past(*on_the_edge).median_duration == NOTHING


def test_a_stretch_shows_the_bad_runs_since_the_last_good_backup_that_could_have_helped() -> None:
    history = past(run("09 18:07"), bad("09 18:00"), *nights(10), bad("11 18:07"), *nights(12), bad("12 19:00"))
    assert spans(history) == [(at("12 00:07"), at("12 18:30")), (at("14 00:07"), NOW)]
    assert [stretch.runs for stretch in history.stretches] == [(bad("11 18:07"),), (bad("12 19:00"),)]
    older, recent = bad("10 00:59"), bad("10 01:00")  # which would have covered up to the start of the period
    assert past(*nights(8), older, recent, bad("14 07:00")).stretches[0].runs == (recent,)


@pytest.mark.parametrize(("policy", "status"), [("Never", "exempt"), (" none ", "exempt"), (None, "no_policy")])
def test_without_a_schedule_there_are_no_outcomes_and_no_ratio(policy: str | None, status: str) -> None:
    history = past(*nights(10), backup_freq=policy)
    assert (history.verdict.status.value, history.outcomes, history.ratio, history.stretches) == (status, (), None, ())


def test_a_deleted_container_counts_up_to_its_last_row() -> None:
    history = past(*nights(10, 11), bad("12 20:00"), deleted=True)  # nothing of the 13th counts
    assert (letters(history), history.uncovered, history.verdict.status.value) == ("oo", NOTHING, "failed")
    assert history.counted == at("12 20:23") - at("11 07:00")
    before = past(run("10 18:07", ended="11 07:00"), deleted=True)
    assert (letters(before), before.counted) == ("", NOTHING)


def test_a_job_of_the_site_is_known_from_its_own_first_row() -> None:
    job: dict[str, Any] = {"c_id": 0, "name": "offsite", "created": None, "begins": "2025-01-15 09:30"}
    assert letters(past(run("12 18:07"), run("13 18:07"), **job)) == "booo"
    assert letters(past(bad("12 18:07"), run("14 05:00"), **job)) == "boo-"
    assert (letters(past(**job)), past(**job).ratio) == ("bbbb", None)


def test_unrecognised_and_cut_messages_of_the_period_are_counted() -> None:
    before = doubtful("11 06:00", is_cut=True)
    history = past(before, doubtful("12 18:07"), run("13 18:07", is_cut=True))
    assert (history.unrecognised, history.cut) == (1, 1)


# --- The program ---------------------------------------------------------------------------------------


def asked(site: Site, *argv: str) -> str:
    """What `--history` prints as of NOW; it must succeed, however bad the past."""
    result = site.audit("--history", "9", "--at", NOW.isoformat(), *argv)
    assert (result.status, result.err) == (0, "")
    return result.out


def test_the_whole_population_is_in_every_form(sqlite_site: Site) -> None:
    sqlite_site.config(policies={"Monthly": 744}, extra_jobs={"offsite": "Daily"})
    policies = {"sales": "Daily", "trials": "Weekly", "survey": "monthly", "scratch": "Never", "typo": "x"}
    for name, policy in policies.items():
        c_id = sqlite_site.container(name, policy)
        for start in (at(f"{date:02} 18:07") for date in (6, 7, 8, 11, 12, 13)):
            sqlite_site.run(c_id, start, start + HOUR)
    sqlite_site.run(0, NOW - HOUR, NOW - MINUTE, name="offsite")
    table, document = asked(sqlite_site), json.loads(asked(sqlite_site, "--json"))
    rows = list(csv.DictReader(asked(sqlite_site, "--csv").splitlines(), strict=True))
    found = {one["name"]: one["outcomes"] for one in document["containers"]}
    assert found["sales"] == ["before", *["ok"] * 3, *["none"] * 3, *["ok"] * 3]
    assert found.keys() == {*policies, "offsite"} == {row["name"] for row in rows}
    for name, outcomes in found.items():
        assert [row["outcome"] for row in rows if row["name"] == name] == (outcomes or [""])
        assert name in table
    assert asked(sqlite_site, "-q") == ""


def test_a_past_period_is_judged_as_of_its_end(sqlite_site: Site) -> None:
    c_id = sqlite_site.container("sales")
    for start in (at("01 18:07") + night * DAY for night in range(13)):
        sqlite_site.run(c_id, start, start + HOUR)
    sqlite_site.run(c_id, "2026-03-08 23:50", "2026-03-09 00:10", error="pg_dump: error: query failed")
    sqlite_site.container("later", created="2026-03-10 09:00")
    for at_now in ([], ["--at", NOW.isoformat()]):
        result = sqlite_site.audit("--history", "2026-03-03..2026-03-08", "--json", *at_now)
        [sales] = json.loads(result.out)["containers"]
        assert (sales["status"], sales["outcomes"], sales["first_day"]) == ("ok", ["ok"] * 6, "2026-03-03")
