"""The details of single containers: first what a restore needs."""

from __future__ import annotations

import re
from zoneinfo import ZoneInfo

from audit.auditor import Finding
from audit.policy import DAY, Container, Rules, judge
from audit.reports.details import render
from audit.text import Style
from tests import findings
from tests.builders import NOW
from tests.db4sci import SECRET
from tests.findings import FROZEN, audit_of, failed, finding, unsure
from tests.runs import ERROR, RULES, bad, doubtful, run, unfinished


def shown(*found: Finding, width: int = 80, rules: Rules = RULES) -> list[str]:
    return list(render(audit_of(*found, rules=rules), Style(rules.zone, width)))


def facts(one: Finding, rules: Rules = RULES) -> dict[str, str]:
    """What is said of the container, by title."""
    lines = (re.fullmatch(r"  ([a-z ]{12})(.*)", line) for line in shown(one, width=300, rules=rules))
    return {line[1].strip(): line[2] for line in lines if line}


def test_the_details_of_a_container_begin_with_what_a_restore_needs() -> None:
    rules = Rules(zone=ZoneInfo("Asia/Kathmandu"), dumps_kept=180 * DAY)
    error = f"{ERROR}\nmore"
    runs = (run("12 18:07", 94), bad("13 18:07", error, 190, type="By hand, now"), unfinished("14 06:50"))
    end_only = doubtful("11 18:07", "wrote 5 of 5", 0, start_logged=False, type="")
    more = {"exception": FROZEN, "ignored": findings.ignored(malformed=[3])}
    assert shown(finding("sales", end_only, *runs, more=more, rules=rules), width=60, rules=rules) == [
        "sales (c_id 7)",
        "  verdict     failed (critical); was ok 24 h ago",
        "  reason      the run of 2026-03-13 23:52 +0545 (12.9 h ago)",
        "              failed: pg_dump: error: query failed: ERROR:",
        "              permission denied for table visits; running",
        "              again since 2026-03-14 12:35 +0545; last good",
        "              backup 2026-03-12 23:52 +0545 (36.9 h ago)",
        "  last good   2026-03-12 23:52 +0545 to 2026-03-13 01:26",
        "              +0545 (94 min)",
        "  dump        s3://site-backups/prod/2026-03-12",
        "  kept until  2026-09-08 23:52 +0545 (in 178.5 days)",
        "  policy      Daily",
        "  due         2026-03-13 23:52 +0545",
        "  exception   accepted until 2026-12-31 (frozen for the",
        "              paper, ticket 4711)",
        "  owner       ada, ada@example.org",
        "  state       running",
        "  engine      Postgres",
        "  created     2025-01-15 15:15 +0545",
        "  log         1 malformed log row ignored (no backup_id, or",
        "              a state other than start and end; id 3): look",
        "              at the table backups.",
        "",
        "  the last 4 of 4 runs, times in Asia/Kathmandu",
        "  START            END         DURATION  TYPE     OUTCOME",
        "  2026-03-14 12:35 -                  -  Daily    running",
        "  2026-03-13 23:52 03-14 03:02    3.2 h  By ha... failed",
        "      pg_dump: error: query failed: ERROR: permission denied",
        "      for table visits",
        "  2026-03-12 23:52 03-13 01:26   94 min  Daily    succeeded",
        "  -                03-11 23:52        -  -        succeeded",
        "      unrecognised: wrote 5 of 5",
    ]


def test_the_place_of_a_dump_can_be_pasted_whatever_its_length() -> None:
    for url, line in (("s3://" + "x" * 41, "  dump        s3://" + "x" * 41), ("s3://" + "x" * 42,) * 2):
        assert line in shown(finding("sales", run("13 18:07", url=url)), width=60)
    assert facts(finding("sales", run("13 18:07", url="")))["dump"] == "the log does not say where"
    assert "dump" not in facts(finding())


def test_an_unsure_container_shows_also_the_last_dump_known_to_be_good() -> None:
    lines = shown(unsure(), width=60)
    begin = lines.index("  last good   2026-03-13 18:07 UTC to 2026-03-13 18:30 UTC")
    assert lines[begin - 2 : begin + 5] == [
        "  if harmless",
        "success_patterns = [r'^Emulate Docker CLI using podman']",
        "  last good   2026-03-13 18:07 UTC to 2026-03-13 18:30 UTC",
        "              (23 min), its message is unrecognised",
        "  dump        s3://site-backups/prod/2026-03-13",
        "  known good  2026-03-12 18:07 UTC to 2026-03-12 18:30 UTC",
        "              (23 min)",
    ]
    assert lines[begin + 5] == "  dump        s3://site-backups/prod/2026-03-12"
    secret = unsure(line=f"strange password={SECRET}")
    assert facts(secret)["if harmless"] == "add its pattern to success_patterns"


def test_a_deleted_container_is_shown_as_deleted_and_without_a_verdict() -> None:
    rules = Rules(dumps_kept=30 * DAY)
    told = facts(failed("gone", deleted=True, rules=rules), rules=rules)
    assert told["verdict"] == "none: the container was deleted"
    assert told["reason"] == "deleted; last good backup 2026-03-12 18:07 UTC (36.9 h ago)"
    assert (told["state"], told["dump"]) == ("deleted", "s3://site-backups/prod/2026-03-12")
    assert told["kept until"] == "2026-04-11 18:07 UTC (in 28.5 days)"
    assert "due" not in told


def test_a_verdict_has_its_severity_and_what_was_before_and_a_suspicion_is_a_note() -> None:
    severities = {0: "", 1: " (warning)", 2: " (critical)"}
    for one in findings.of_every_status():
        told = facts(one)
        verdict, _, before = told["verdict"].partition("; ")
        assert verdict == f"{one.verdict.status.value}{severities[one.severity]}"
        assert bool(before) == (one.change is not None and one.yesterday is not None)
        assert {"c-exempt": "never", "c-no_policy": "unknown"}.get(one.container.name, told["due"]) == told["due"]
    assert facts(findings.quick())["note"] == "took 2 s, typically 31 min: check the dump"


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
        in_reason, of_run = (line for line in shown(failed(error="e" * length), width=2_000) if "eee" in line)
        assert f"failed: {cut}; last" in in_reason
        assert of_run.strip() == cut
