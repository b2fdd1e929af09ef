"""The details of single containers: first what a restore needs."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from audit.auditor import Finding
from audit.policy import Container, Rules, judge
from audit.reports.details import details
from audit.text import Style
from tests.builders import NOW
from tests.findings import (
    ENDED,
    ERROR,
    FROZEN,
    RULES,
    at,
    failed,
    finding,
    ignored,
    missed,
    mistyped,
    of_every_status,
    ok,
    run,
    site,
    unsure,
)
from tests.test_text import HOSTILE, SECRET


def shown(*findings: Finding, width: int = 80, rules: Rules = RULES) -> list[str]:
    return list(details(site(*findings, rules=rules), Style(width=width)))


def facts(*findings: Finding, width: int = 300, rules: Rules = RULES) -> dict[str, str]:
    """What is said of the container, by title."""
    lines = (re.fullmatch(r"  ([a-z ]{12})(.*)", line) for line in shown(*findings, width=width, rules=rules))
    return {found[1].strip(): found[2] for found in lines if found}


def test_the_details_of_a_container_begin_with_what_a_restore_needs() -> None:
    runs = (run("12 18:07", 94), run("13 18:07", 190, f"{ERROR}\nmore", type="By hand, now"), run("14 06:50", None))
    end_only = run("11 18:07", 0, unknown="wrote 5 of 5", start_logged=False, type="")
    rules = Rules(dumps_kept=timedelta(days=180))
    more = {"exception": FROZEN, "ignored": ignored(malformed=[3])}
    assert shown(finding("sales", end_only, *runs, more=more, rules=rules), width=60, rules=rules) == [
        "sales (c_id 7)",
        "  verdict     failed (critical); was ok 24 h ago",
        "  reason      the run of 2026-03-13 18:07 UTC (12.9 h ago)",
        "              failed: pg_dump: error: query failed: ERROR:",
        "              permission denied for table visits; running",
        "              again since 2026-03-14 06:50 UTC; last good",
        "              backup 2026-03-12 18:07 UTC (36.9 h ago)",
        "  last good   2026-03-12 18:07 UTC to 2026-03-12 19:41 UTC",
        "              (94 min)",
        "  dump        s3://site-backups/prod/2026-03-12",
        "  kept until  2026-09-08 18:07 UTC (in 178.5 days)",
        "  policy      Daily",
        "  due         2026-03-13 18:07 UTC",
        "  exception   accepted until 2026-12-31 (frozen for the",
        "              paper, ticket 4711)",
        "  owner       ada, ada@example.org",
        "  state       running",
        "  engine      Postgres",
        "  created     2025-01-15 09:30 UTC",
        "  log         1 malformed log row ignored (no backup_id, or",
        "              a state other than start and end; id 3): look",
        "              at the table backups.",
        "",
        "  the last 4 of 4 runs, times in UTC",
        "  START            END         DURATION  TYPE     OUTCOME",
        "  2026-03-14 06:50 -                  -  Daily    running",
        "  2026-03-13 18:07 03-13 21:17    3.2 h  By ha... failed",
        "      pg_dump: error: query failed: ERROR: permission denied",
        "      for table visits",
        "  2026-03-12 18:07 03-12 19:41   94 min  Daily    succeeded",
        "  -                03-11 18:07        -  -        succeeded",
        "      unrecognised: wrote 5 of 5",
    ]


def test_the_place_of_a_dump_can_be_pasted_whatever_its_length() -> None:
    for url, line in (("s3://" + "x" * 41, "  dump        s3://" + "x" * 41), ("s3://" + "x" * 200,) * 2):
        assert line in shown(finding("sales", run("13 18:07", url=url)), width=60)
    assert facts(finding("sales", run("13 18:07", url="")))["dump"] == "the log does not say where"
    assert "dump" not in facts(finding())


def test_an_unsure_container_shows_also_the_last_dump_known_to_be_good() -> None:
    lines, told = shown(unsure(), width=60), facts(unsure())
    places = {line.split()[1]: number for number, line in enumerate(lines) if line.startswith("  dump")}
    assert list(places) == ["s3://site-backups/prod/2026-03-13", "s3://site-backups/prod/2026-03-12"]
    known = lines.index("  known good  2026-03-12 18:07 UTC to 2026-03-12 18:30 UTC")
    first, second = places.values()
    assert first < known < second
    assert told["last good"].endswith("(23 min), its message is unrecognised")
    pattern = "success_patterns = [r'^Emulate Docker CLI using podman']"
    assert (told["if harmless"], pattern in lines) == (pattern, True), "unbroken"
    secret = facts(unsure(line=f"strange password={SECRET}"))
    assert secret["if harmless"] == "add its pattern to success_patterns"
    assert "if harmless" not in facts(failed())


def test_a_deleted_container_is_shown_as_deleted_and_without_a_verdict() -> None:
    rules = Rules(dumps_kept=timedelta(days=30))
    told = facts(failed("gone", deleted=True, rules=rules), rules=rules)
    assert told["verdict"] == "none: the container was deleted"
    assert told["reason"] == "deleted; last good backup 2026-03-12 18:07 UTC (36.9 h ago)"
    assert (told["state"], told["dump"]) == ("deleted", "s3://site-backups/prod/2026-03-12")
    assert told["kept until"] == "2026-04-11 18:07 UTC (in 28.5 days)"
    assert "due" not in told


def test_verdict_due_exception_and_suspicion() -> None:
    severities = {0: "", 1: " (warning)", 2: " (critical)"}
    for one in of_every_status():
        verdict, _, before = facts(one)["verdict"].partition("; ")
        assert verdict == f"{one.verdict.status.value}{severities[one.severity]}"
        assert bool(before) == (one.change is not None and one.yesterday is not None)
    assert (facts(finding(policy="Never"))["due"], facts(mistyped())["due"]) == ("never", "unknown")
    odd = finding("quick", *[run(f"{day:02} 18:07", 31) for day in range(1, 13)], run("13 18:07", 0.03))
    assert facts(odd)["note"] == "took 2 s, typically 31 min: check the dump"
    assert facts(missed(more={"exception": ENDED}))["exception"] == "ended on 2026-03-12 (moved to another host)"


def test_unknown_facts_say_unknown() -> None:
    lost = Container(None, "lost", None, state=None, has_metadata=False)
    lines = shown(Finding(judge(lost, [], NOW, RULES)))
    assert lines[0] == "lost (without a c_id)"
    unknowns = dict.fromkeys(("due", "state", "engine", "owner", "created"), "unknown")
    assert dict(line.split() for line in lines[4:10]) == {"policy": "none"} | unknowns
    assert lines[-1] == "  no runs in the log"


def test_the_last_ten_runs_are_shown_newest_first_with_an_empty_line_between_containers() -> None:
    lines = shown(finding("sales", *[run(f"{day:02} 18:07") for day in range(1, 13)]), finding("offsite", c_id=0))
    days = [line.split()[0] for line in lines if line.startswith("  2026")]
    assert days == [f"2026-03-{day:02}" for day in range(12, 2, -1)]
    assert "  the last 10 of 12 runs, times in UTC" in lines
    assert lines[lines.index("offsite (c_id 0)") - 1] == ""


def test_messages_are_cut_at_1000_characters() -> None:
    for length, cut in ((1_000, "e" * 1_000), (1_001, "e" * 997 + "...")):
        lines = shown(failed(error="e" * length))
        parts = (line for line in lines if re.search("e{9}|e[.]{3}", line))
        said = "".join(re.sub(r"^.*failed: |;.*", "", line).strip() for line in parts)
        assert said == cut * 2, "in the reason and at the run"


def test_times_are_in_the_zone_of_the_site() -> None:
    rules = Rules(zone=ZoneInfo("Asia/Kathmandu"), dumps_kept=timedelta(days=1))
    lines = shown(finding("a", run("13 23:30"), rules=rules, created=at("01 20:00")), rules=rules)
    assert "  last good   2026-03-14 05:15 +0545 to 2026-03-14 05:38 +0545 (23 min)" in lines
    assert "  due         2026-03-15 05:15 +0545" in lines
    assert "  kept until  2026-03-15 05:15 +0545 (in 16.5 h)" in lines
    assert "  created     2026-03-02 01:45 +0545" in lines
    assert lines[-3:] == [
        "  the last 1 of 1 run, times in Asia/Kathmandu",
        "  START            END         DURATION  TYPE     OUTCOME",
        "  2026-03-14 05:15 03-14 05:38   23 min  Daily    succeeded",
    ]


def test_colours_change_nothing_but_the_colour() -> None:
    night = site(*of_every_status())
    plain, coloured = ("\n".join(details(night, Style(width=60, colour=colour))) for colour in (False, True))
    assert re.sub(r"\x1b\[[\d;]*m", "", coloured) == plain
    verdicts = dict(re.findall(r"verdict     \x1b\[([\d;]+)m(\w+)", coloured))
    outcomes = dict(re.findall(r"(?m)\x1b\[([\d;]+)m(\w+)\x1b\[0m$", coloured))
    assert len(verdicts) == len(outcomes) == 3
    assert "\x1b" not in plain


@pytest.mark.parametrize("width", [60, 120])
def test_every_line_fits_and_is_harmless_and_masked(width: int) -> None:
    bad = f"{HOSTILE[0]} password={SECRET} {HOSTILE[5]} {'long ' * 30}"
    text: dict[str, Any] = {"engine": bad, "owner": bad, "contact": bad, "state": bad}
    spoilt = run("13 18:07", error=bad, type=bad, backup_id=bad)
    odd = run("12 18:07", unknown=bad, url=f"s3://{SECRET}@{bad}"[:5] + bad)
    findings = (finding(bad, odd, spoilt, **text), unsure(line=bad), mistyped(bad, policy=bad), ok("x" * 300))
    lines = shown(*findings, width=width)
    assert [line for line in lines if not line.isprintable()] == []
    assert SECRET not in "".join(lines).replace(" ", "")
    assert [line for line in lines if len(line) > width and not line.startswith("s3:")] == []
