"""The report on a site: what a sysadmin reads first, and what cron mails."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from audit import text
from audit.auditor import Finding
from audit.log import NewestRun
from audit.policy import DAY, HOUR, Outcome, Rules, Status
from audit.reports.site import render
from audit.text import Style
from tests import findings
from tests.builders import NOW
from tests.findings import ENDED, FROZEN, audit_of, failed, finding, ignored, missed, ok, stalled, unsure
from tests.runs import UNKNOWN, at, bad, run, unfinished

COMMAND = "sudo -u backup_audit /opt/backup_audit/backup_audit.py"
REFUSED = 'pg_dumpall: error: connection to server at "10.0.0.1", port {} failed: Connection refused'
KATHMANDU = Rules(zone=ZoneInfo("Asia/Kathmandu"))
STATUSES = "|".join((*(status.value for status in Status), "expired", "expiring"))


def mail(
    *found: Finding, width: int = 1_000, everything: bool = False, terminal: bool = False, **more: Any
) -> list[str]:
    """The report as cron mails it, mostly a paragraph a line; `more` are fields of the audit."""
    audit = findings.audit_of(*found, **more)
    return list(render(audit, Style(audit.rules.zone, width), COMMAND, everything, terminal))


def paragraphs(lines: Iterable[str]) -> list[tuple[str, ...]]:
    """Mark, status and text of each paragraph."""
    found = (re.fullmatch(rf"(NEW|) +({STATUSES}) +(\S.*)", line) for line in lines)
    return [one.groups() for one in found if one]


def names(lines: Iterable[str]) -> list[tuple[str, str]]:
    """Mark and name of each paragraph about one container."""
    return [(mark, told.partition(":")[0]) for mark, _, told in paragraphs(lines)]


# --- The whole, as it is read ---------------------------------------------------------------------------


def test_the_mail_of_an_ordinary_morning_has_the_new_problem_first_and_fits_a_phone() -> None:
    old = (finding("plasmid-catalog", backup_freq="Fortnightly"), missed("bookings"))
    back = finding("staff-wiki", run("09 18:07"), run("13 18:07"))
    every = (*old, failed("consent-records"), back, ok("trials"))
    assert mail(*every, terminal=True) == mail(*every), "a terminal shows the same"
    assert mail(*old, failed("consent-records"), back, ok("trials"), width=60) == [
        "5 containers: 1 failed, 1 missed, 1 no_policy, 2 ok",
        "Last 24 hours: 1 new problem (consent-records), 1 recovered",
        "(staff-wiki).",
        "Backup Audit of mydbadmin@db.example.org:32009/mydb_admin,",
        "2026-03-14 07:00 UTC",
        "",
        "NEW failed    consent-records: the run of 2026-03-14 02:00",
        "              UTC (5 h ago) failed: pg_dump: error: query",
        "              failed: ERROR: permission denied for table",
        "              visits; last good backup 2026-03-12 18:07 UTC",
        "              (36.9 h ago)",
        "    missed    bookings: Daily backup overdue by 2.5 days;",
        "              last good backup 2026-03-10 18:07 UTC (3.5",
        "              days ago)",
        "    no_policy plasmid-catalog: unknown backup policy",
        "              'Fortnightly'; no good backup in the log",
        "",
        "To see a container's last runs:",
        f"{COMMAND} consent-records",
    ]


def test_a_calm_night_is_a_headline_on_a_terminal_and_sends_no_mail() -> None:
    calm = (ok(), finding("new", created=at("14 01:00")), finding("scratch", backup_freq="Never"))
    assert mail(*calm) == []
    assert mail(*calm, terminal=True, rules=KATHMANDU) == [
        "3 containers: 1 ok, 1 new, 1 exempt",
        "No container needs attention; -v lists all.",
        "Backup Audit of mydbadmin@db.example.org:32009/mydb_admin, 2026-03-14 12:45 +0545",
    ]
    assert mail(everything=True)[:2] == ["0 containers: nothing to audit", "No container needs attention."]


def test_v_lists_every_container_in_a_table_worst_first() -> None:
    exempt, mistyped = finding("scratch", backup_freq="Never"), finding("plasmid-catalog", backup_freq="Fortnightly")
    undated = finding("undated", created=None)
    found = (exempt, ok("trials"), mistyped, missed("bookings"), undated)
    lines = mail(*found, width=60, everything=True, rules=KATHMANDU)
    begin = lines.index("All containers, times in Asia/Kathmandu:")
    assert lines[begin + 1 : lines.index("", begin)] == [
        "STATUS    LAST GOOD BACKUP DUE         POLICY      CONTAINER",
        "missed    -                -           Daily       undated",
        "missed    2026-03-10 23:52 03-11 23:52 Daily       bookings",
        "no_policy -                -           Fortnightly",
        "          plasmid-catalog",
        "ok        2026-03-13 23:52 03-14 23:52 Daily       trials",
        "exempt    -                -           Never       scratch",
    ]


# --- The headline --------------------------------------------------------------------------------------


def test_the_headline_names_what_has_changed_and_else_does_not_sound_like_an_all_clear() -> None:
    back = [finding(f"back-{number}", run("09 18:07"), run("13 18:07")) for number in range(4)]
    worse, frozen = finding("worse", run("12 05:00")), missed("frozen", more={"exception": FROZEN})
    for found, said in (
        (back[:1], "No container needs attention; -v lists all. Last 24 hours: 1 recovered (back-0)."),
        (
            [failed("new-0"), failed("new-1"), worse, *back],
            "Last 24 hours: 2 new problems (new-0, new-1), 1 changed (worse), "
            "4 recovered (back-0, back-1, back-2 and 1 more).",
        ),
        ([missed(), frozen], "Nothing has changed in 24 hours: 1 container still needs attention."),
        ([missed("a"), missed("b"), frozen], "Nothing has changed in 24 hours: 2 containers still need attention."),
    ):
        assert mail(*found, terminal=True)[1] == said
    assert paragraphs(mail(worse))[0][2].endswith("(2.1 days ago); was late 24 h ago"), (
        "a change that is neither is told, too"
    )


def test_a_silent_site_is_the_headline_and_what_it_explains_is_a_line() -> None:
    overdue = [missed("m-0"), missed("m-1"), finding("late", run("13 05:00"))]
    assert len(names(mail(*overdue, newest_row=NOW - DAY))) == 3
    silent: dict[str, Any] = {
        "newest_row": at("13 06:59"),
        "broken_night": NewestRun("graph", at("13 18:20"), Outcome.STALLED),
    }
    lines = mail(*overdue, failed(), **silent, rules=KATHMANDU)
    since, why = " since 2026-03-13 12:44 +0545 (24 h ago)", "DB4Sci's own backup job has probably not run."
    assert lines[0] == f"The whole site logged no backup run{since}: {why}"
    assert lines[1].startswith("4 containers: "), "silence goes before a night that broke off"
    assert names(lines) == [("NEW", "sales")]
    assert "2 missed and 1 late while the whole site is silent: -v lists them." in lines
    assert "2 missed and 1 late while the whole site is silent." in mail(*overdue, **silent, everything=True)
    assert mail(missed(), newest_row=None)[0] == f"The whole site logged no backup run: {why}"


def test_a_night_that_broke_off_and_zones_that_do_not_fit_are_the_headline() -> None:
    assert mail(missed(), broken_night=NewestRun("graph", at("13 18:20"), Outcome.STALLED), rules=KATHMANDU)[0] == (
        "DB4Sci's backup job probably stopped at graph: its run of 2026-03-14 00:05 +0545 never ended, "
        "and none has begun since."
    )
    gap = "backup_id and ts of the newest runs are 8 h apart: timezone or db_timezone is probably wrong."
    assert mail(ok(), clock_gap=8 * HOUR)[0] == gap, "also of a calm night"
    assert mail(ok(), ignored=ignored(future=[9]))[0].startswith("1 future log row ignored")


# --- The containers that need attention ----------------------------------------------------------------


def test_each_problem_is_told_once_the_worst_first_and_what_is_new_before_what_is_old() -> None:
    found = [*findings.of_every_status(), failed("fresh"), missed("stale")]
    for everything in (False, True):
        lines = mail(*reversed(found), everything=everything)
        assert names(lines) == [
            *(("NEW", name) for name in ("fresh", "c-missed")),
            *(("", name) for name in ("c-failed", "c-stalled", "stale", "c-no_policy")),
            ("NEW", "c-late"),
            *(("", name) for name in ("c-unsure", "c-paused", "c-running")),
        ]
        assert all("good backup" in told for _, _, told in paragraphs(lines))


def test_of_many_with_the_same_status_the_first_20_are_listed_and_the_headline_again() -> None:
    twenty = [("", f"m-{place:02}") for place in range(20)]
    found = [missed(name) for _, name in twenty]
    lines = mail(*found)
    assert names(lines) == twenty
    assert lines[:2] != lines[-2:]
    lines = mail(*found, missed("m-20"), finding("n", backup_freq=None))
    assert names(lines) == [*twenty, ("", "and 1 more"), ("", "n")]
    assert "    missed    and 1 more: -v lists them" in lines
    assert lines[:2] == lines[-2:]
    assert names(mail(*found, missed("m-20"), everything=True)) == [*twenty, ("", "m-20")]


def test_containers_that_failed_with_the_same_error_are_one_paragraph() -> None:
    new = [failed(f"lab-{port}", REFUSED.format(port)) for port in (1, 2, 3)]
    old = [finding(name, run("10 18:07"), bad("12 20:00", REFUSED.format(4))) for name in ("o-1", "o-2", "o-3")]
    never = finding("never", bad("12 20:00", REFUSED.format(5)))
    other = failed("other", "Failed: no reachable servers")
    assert names(mail(*new[:2], other)) == [("NEW", "lab-1"), ("NEW", "lab-2"), ("NEW", "other")], "two are no group"
    together, apart = paragraphs(mail(*new[:2], old[0], never, other))
    assert together == (
        "NEW",
        "failed",
        "4 containers, 2 new (lab-1, lab-2, never and 1 more): failed with the same error: "
        f"{REFUSED.format(1)}; oldest last good backup 2026-03-10 18:07 UTC (3.5 days ago), of o-1; "
        "1 with no good backup in the log",
    )
    assert apart[2].startswith("other: ")
    for found, everything, first in (
        ([*new[:2], old[0], never], True, ("NEW", "4 containers, 2 new (lab-1, lab-2, never, o-1)")),
        (new, False, ("NEW", "3 containers, all new (lab-1, lab-2, lab-3)")),
        (old, False, ("", "3 containers (o-1, o-2, o-3)")),
    ):
        assert names(mail(*found, everything=everything)) == [first]


def test_runs_that_stalled_within_24_hours_are_one_paragraph() -> None:
    night = [stalled(f"lab-{hour}", f"13 {hour}:07") for hour in (16, 17, 18)]
    before, almost = (finding(name, unfinished(f"12 18:07:0{name}")) for name in "01")
    together, apart = paragraphs(mail(*night, before, rules=KATHMANDU))
    assert together == (
        "NEW",
        "stalled",
        "3 containers, all new (lab-16, lab-17, lab-18): the runs that started from 2026-03-13 21:52 +0545 to "
        "2026-03-13 23:52 +0545 have not ended; oldest last good backup 2026-03-12 23:52 +0545 (36.9 h ago), of lab-16",
    )
    assert apart[2].startswith("0: "), "24 hours apart is another night"
    assert len(paragraphs(mail(*night, almost))) == 1
    assert len(paragraphs(mail(*night[:2]))) == 2


def test_unsure_containers_come_with_the_setting_that_makes_their_line_fine() -> None:
    lines = mail(unsure("lab-1", "lab-1: copied 7 of 7"), unsure("lab-2", "lab-2: copied 12 of 12"), unsure("wiki"))
    together, apart = (said for _, _, said in paragraphs(lines))
    assert together == (
        "2 containers, all new (lab-1, lab-2): the same unrecognised message: lab-1: copied 7 of 7; oldest last known "
        "good backup 2026-03-12 18:07 UTC (36.9 h ago), of lab-1; if that is harmless, add its pattern to the "
        "configuration:"
    )
    assert apart.startswith("wiki: ")
    settings = [line for line in lines if line.startswith("success_patterns")]
    assert settings == [text.setting("lab-1: copied 7 of 7", "lab-1"), text.setting(UNKNOWN, "wiki")]
    assert "if that is" not in "".join(mail(unsure(line="password=x strange"))), "a pattern would hold it"


def test_ambiguous_names_have_a_c_id() -> None:
    found = (failed("twin", c_id=11), missed("twin", c_id=12), missed("x" * 41), missed("y" * 40))
    shown = [name for _, name in names(mail(*found))]
    assert shown == ["twin (c_id 11)", "twin (c_id 12)", f"{'x' * 37}... (c_id 7)", "y" * 40]


def test_the_report_ends_with_a_command_that_works_when_it_is_pasted() -> None:
    words = {"lab-4": "lab-4", "it's": "'it'\"'\"'s'", "a*": "'a*'", "red\x1b[31m": "4", "-v": "4", "twin": "4"}
    for name, word in words.items():
        assert mail(failed(name, c_id=4), ok("twin"))[-1] == f"To see a container's last runs: {COMMAND} {word}"
        assert shlex.split(word)[0] in (name, "4")
    assert mail(failed("offsite", c_id=0))[-1].endswith(f"{COMMAND} offsite")


# --- The last good dumps, exceptions, and what else there is to say -------------------------------------


def test_dumps_that_expire_have_a_paragraph_with_the_date_whatever_is_accepted() -> None:
    rules, accepted = Rules(dumps_kept=30 * DAY), {"exception": FROZEN}
    gone, soon, later = (finding(f"{age} days", run(NOW - age * DAY), rules=rules) for age in (40, 27, 20))
    frozen, forgotten = (finding(f"{age} days", run(NOW - age * DAY), rules=rules, more=accepted) for age in (35, 70))
    lines = mail(gone, soon, later, frozen, forgotten, rules=rules)
    assert lines[1].endswith("3 containers still need attention. Last good dumps: 2 expired, 1 expiring.")
    begin, end = lines.index("Last good dumps that have expired or soon will:"), lines.index("Accepted exceptions:")
    dump, nothing = "the last good dump, of 2026-02", "nothing is left to restore"
    assert paragraphs(lines[begin:end]) == [
        ("", "expired", f"40 days: {dump}-02 07:00 UTC, expired 2026-03-04 07:00 UTC (10 days ago): {nothing}"),
        ("", "expired", f"35 days: {dump}-07 07:00 UTC, expired 2026-03-09 07:00 UTC (5 days ago): {nothing}"),
        ("", "expiring", f"27 days: {dump}-15 07:00 UTC, expires 2026-03-17 07:00 UTC (in 3 days)"),
    ]
    told_again = [told.partition(":")[0] for _, _, told in paragraphs(lines[end:]) if nothing in told]
    assert told_again == ["70 days"], "it has no paragraph of its own any more"
    alone = mail(frozen, ok("trials"), rules=rules)
    assert alone[1] == "Last good dumps: 1 expired.", "not: no container needs attention"
    assert alone[-1].endswith(" '35 days'")
    assert mail(forgotten, rules=rules) == []


def test_an_accepted_problem_is_in_a_group_of_its_own() -> None:
    accepted, fine = failed("bookings", more={"exception": FROZEN}), ok("wiki", more={"exception": FROZEN})
    assert mail(accepted, fine) == [], "cron's mail does not repeat what is known"
    lines = mail(accepted, missed(), missed("b", more={"exception": FROZEN}), fine)
    assert lines[0] == "4 containers: 1 failed (1 accepted), 2 missed (1 accepted), 1 ok"
    assert names(lines) == [("", name) for name in ("sales", "bookings", "b", "wiki")]
    place, until = lines.index("Accepted exceptions:"), "accepted until 2026-12-31 (frozen for the paper, ticket 4711)"
    assert lines[place + 1].endswith(f"(36.9 h ago); {until}")
    assert lines[place + 3] == f"    ok        wiki: {until}"


def test_an_ended_exception_is_mentioned_and_its_problem_counts_again() -> None:
    lines = mail(missed("a", more={"exception": ENDED}), ok("b", more={"exception": ENDED}))
    assert names(lines) == [("", "a")]
    assert "Accepted exceptions:" not in lines
    assert "The exception of a, b ended on 2026-03-12 (moved to another host)." in lines
    assert mail(ok(more={"exception": ENDED}))[0] == "1 container: 1 ok", "also where nothing needs attention"


def test_keys_of_exceptions_and_rows_that_fit_nothing_are_notes_and_no_news() -> None:
    odd: dict[str, Any] = {"unused_exceptions": ("old", "older", "oldest", "12")}
    odd["ignored"] = ignored(malformed=[5], undated=[1])
    assert mail(ok(), **odd) == []
    malformed, undated, keys = mail(missed(), **odd)[-5:-2]
    assert malformed.startswith("1 malformed log row ignored")
    assert undated.startswith("1 undated log row ignored")
    assert keys.endswith("keys that fit no container: correct or remove old, older, oldest and 1 more.")


def test_a_suspicion_is_worth_a_look_and_not_a_problem() -> None:
    note = "took 2 s, typically 31 min: check the dump"
    lines = mail(findings.quick(), ok("trials"))
    assert lines[:2] == ["2 containers: 2 ok", "No container needs attention; -v lists all."]
    assert lines[-2:] == ["Worth a look:", f"    ok        quick: {note}"]
    assert audit_of(findings.quick()).severity == 0, "the exit status is that of a calm night"
    assert mail(findings.quick(backup_freq="Never")) == [], "nobody waits for that dump"
    spoilt = mail(findings.quick(bad("14 02:00", "bad")))
    assert note in paragraphs(spoilt)[0][2]
    assert "Worth a look:" not in [*spoilt, *mail(missed(), findings.quick(more={"exception": FROZEN}))]


# --- Whom it is printed for ----------------------------------------------------------------------------


@pytest.mark.parametrize("everything", [False, True])
def test_colours_change_nothing_but_the_colour(everything: bool) -> None:
    night = audit_of(*findings.of_every_status(), newest_row=None, ignored=ignored(future=[1]))
    plain, coloured = (
        "\n".join(render(night, Style(width=60, colour=colour), COMMAND, everything)) for colour in (False, True)
    )
    assert re.sub(r"\x1b\[[\d;]*m", "", coloured) == plain
    assert "\x1b" not in plain
    painted = re.findall(rf"\x1b\[([\d;]+)m({STATUSES}) *\x1b", coloured)
    of_severity = {Status(word).severity: colour for colour, word in painted}
    assert len(set(of_severity.values())) == len(of_severity) == 2 + everything, "each severity has a colour"
