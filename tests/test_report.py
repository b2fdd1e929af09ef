"""The report on a site: what a sysadmin reads first, and what cron mails."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from dataclasses import replace
from datetime import timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from audit.auditor import BrokenNight, Finding
from audit.policy import DAY, HOUR, Rules, Status
from audit.reports.site import table
from audit.text import Style
from tests.builders import NOW
from tests.findings import (
    ENDED,
    FROZEN,
    UNKNOWN,
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
    stalled,
    unsure,
)
from tests.test_text import HOSTILE, SECRET

COMMAND = "sudo -u backup_audit /opt/backup_audit/backup_audit.py"
REFUSED = 'pg_dumpall: error: connection to server at "10.0.0.1", port {} failed: Connection refused'
STATUSES = "|".join((*(status.value for status in Status), "expired", "expiring"))


def mail(*findings: Finding, width: int = 80, command: str = COMMAND, **more: Any) -> list[str]:
    """The report as cron mails it; `more` are further fields of the audit, or say for whom the report is."""
    reader = {name: more.pop(name) for name in ("everything", "terminal") if name in more}
    return list(table(site(*findings, **more), Style(width=width), command, **reader))


def told(lines: Iterable[str]) -> str:
    """The lines as one, so that it does not matter where they were broken."""
    return " ".join(" ".join(lines).split())


def paragraphs(lines: Iterable[str]) -> list[tuple[str, str, str]]:
    """Mark, status and text of each paragraph."""
    found: list[tuple[str, str, str]] = []
    for line in lines:
        first = re.fullmatch(rf"(NEW|   ) ({STATUSES}) +(\S.*)", line)
        if first:
            found.append((first[1].strip(), first[2], first[3]))
        elif line.startswith(" " * 14) and found:
            found[-1] = (*found[-1][:2], f"{found[-1][2]} {line.strip()}")
    return found


def names(lines: Iterable[str]) -> list[tuple[str, str]]:
    """Mark and name of each paragraph about one container."""
    return [(mark, text.partition(":")[0]) for mark, _, text in paragraphs(lines)]


# --- The whole, as it is read ---------------------------------------------------------------------------


def test_the_mail_of_an_ordinary_morning_has_the_new_problem_first_and_fits_a_phone() -> None:
    old = (missed("survey", c_id=2), mistyped("plasmid-catalog", c_id=3), missed("bookings", c_id=4))
    back = finding("staff-wiki", run("09 18:07"), run("13 18:07"), c_id=5)
    assert mail(*old, failed("consent-records"), back, ok("trials", c_id=6), width=60) == [
        "6 containers: 1 failed, 2 missed, 1 no_policy, 2 ok",
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
        "    missed    survey: Daily backup overdue by 2.5 days; last",
        "              good backup 2026-03-10 18:07 UTC (3.5 days",
        "              ago)",
        "    no_policy plasmid-catalog: unknown backup policy",
        "              'Fortnightly'; no good backup in the log",
        "",
        "To see the last runs of one:",
        f"{COMMAND} consent-records",
    ]


def test_a_calm_night_is_a_headline_on_a_terminal_and_sends_no_mail() -> None:
    calm = (ok(), finding("new", created=at("14 01:00")), finding("scratch", policy="Never"))
    assert mail(*calm) == []
    assert mail(*calm, terminal=True) == [
        "3 containers: 1 ok, 1 new, 1 exempt",
        "No container needs attention; -v lists all.",
        "Backup Audit of mydbadmin@db.example.org:32009/mydb_admin, 2026-03-14 07:00 UTC",
    ]
    assert told(mail(everything=True)).startswith("0 containers: nothing to audit")


def test_v_lists_every_container_in_a_table_worst_first() -> None:
    lines = mail(*of_every_status(), finding("n" * 40, run("13 19:00")), width=60, everything=True)
    begin = next(place for place, line in enumerate(lines) if line.startswith("STATUS"))
    assert lines[begin : begin + 11] == [
        "STATUS    LAST GOOD BACKUP DUE         POLICY      CONTAINER",
        "missed    2026-03-12 18:07 03-13 18:07 Daily       c-missed",
        "failed    -                01-16 09:30 Daily       c-failed",
        "stalled   -                01-16 09:30 Daily       c-stalled",
        "no_policy -                -           Fortnightly",
        "          c-no_policy",
        "late      2026-03-13 05:00 03-14 05:00 Daily       c-late",
        "unsure    2026-03-13 18:07 03-14 18:07 Daily       c-unsure",
        "paused    2026-03-10 18:07 03-11 18:07 Daily       c-paused",
        "running   2026-03-13 06:50 03-14 06:50 Daily       c-running",
        "ok        2026-03-13 18:07 03-14 18:07 Daily       c-ok",
    ]
    assert "No container needs attention." in mail(ok(), everything=True)


@pytest.mark.parametrize("width", [60, 120])
@pytest.mark.parametrize("everything", [False, True])
def test_every_line_is_harmless_and_masked_and_fits_but_for_what_is_to_be_pasted(width: int, everything: bool) -> None:
    bad = f"{HOSTILE[0]} password={SECRET} {HOSTILE[5]}"
    findings = [make(name) for name in ("sales", "x" * 300, "a b c", "-v") for make in (ok, missed, stalled)]
    findings += [missed(name, more={"exception": FROZEN}) for name in ("sales", "x" * 300)]
    findings += [
        *(*of_every_status(), unsure("p", "podman: " + "long " * 30)),
        finding(bad, run("13 18:07", message=bad, type=bad, backup_id=bad)),
        *(failed(f"{bad} {number}", error=bad) for number in range(4)),
        *(unsure(f"{bad} u{number}", line=bad) for number in range(2)),
        failed(f"{bad} f", error=f"other {bad}", more={"exception": replace(ENDED, reason=bad)}),
        finding(f"{bad} p", run("10 18:07"), state=bad),
        missed(f"{bad} 3", more={"exception": replace(FROZEN, reason=bad)}),
        mistyped(f"{bad} 4", policy=bad),
    ]
    for more in (
        {"database": f"{bad} {'d' * 90}", "broken_night": BrokenNight(bad, at("13 18:20"))},
        {"newest_row": None, "unused_exceptions": (bad, *("k" * 90,) * 2)},
    ):
        lines = mail(*findings, width=width, everything=everything, **more)
        longer = [line for line in lines if len(line) > width and not line.startswith((COMMAND, "success_patterns"))]
        assert longer == [line for line in lines if not line.isprintable()] == []
        assert SECRET not in told(lines).replace(" ", "")
        assert sum(len(line) > width - 20 for line in lines) > 10, "there is no need for shorter lines"


# --- The headline --------------------------------------------------------------------------------------


def test_the_headline_counts_the_containers_by_status_and_the_accepted_ones_apart() -> None:
    lines = mail(*of_every_status(), missed("frozen", more={"exception": FROZEN}), width=200)
    counts = (
        "1 failed, 1 stalled, 2 missed (1 accepted), 1 no_policy, 1 late, 1 unsure, 1 paused, 1 running, 1 ok, 1 new"
    )
    assert lines[0] == f"12 containers: {counts}, 1 exempt"


def test_the_headline_names_what_has_changed_and_else_does_not_sound_like_an_all_clear() -> None:
    back = [finding(f"back-{number}", run("09 18:07"), run("13 18:07")) for number in range(4)]
    worse, frozen = finding("worse", run("12 05:00")), missed("frozen", more={"exception": FROZEN})
    for findings, said in (
        (back[:1], "No container needs attention; -v lists all. Last 24 hours: 1 recovered (back-0)."),
        (
            [failed("new-0"), failed("new-1"), worse, *back],
            "Last 24 hours: 2 new problems (new-0, new-1), 1 changed (worse), "
            "4 recovered (back-0, back-1, back-2 and 1 more).",
        ),
        ([missed(), frozen], "Nothing has changed in 24 hours: 1 container still needs attention."),
        ([missed("a"), missed("b"), frozen], "Nothing has changed in 24 hours: 2 containers still need attention."),
    ):
        assert mail(*findings, width=200, terminal=True)[1] == said
    assert "(2.1 days ago); was late 24 h ago" in told(mail(worse)), "a change that is neither is told, too"


def test_the_headline_comes_again_after_a_long_list() -> None:
    for rows, again in ((20, False), (21, True)):
        lines = mail(*(mistyped(f"c-{number:02}") for number in range(rows)), width=120)
        assert (lines[-2:] == lines[:2]) == again


def test_a_silent_site_is_the_headline_and_what_it_explains_is_a_line() -> None:
    findings = [*(missed(f"m-{number}") for number in range(30)), finding("l", run("13 05:00")), failed(), ok("o")]
    night, newest = BrokenNight("graph", at("13 18:20")), NOW - DAY - timedelta(seconds=1)
    assert "m-0" in told(mail(*findings, newest_row=NOW - DAY))
    lines = mail(*findings, newest_row=newest, broken_night=night)
    assert told(lines[:2]) == (
        "The whole site logged no backup run since 2026-03-13 06:59 UTC (24 h ago): "
        "DB4Sci's own backup job has probably not run."
    )
    assert names(lines) == [("NEW", "sales")]
    assert "30 missed and 1 late, as the whole site is silent: -v lists them." in lines
    assert "graph" not in told(lines), "silence goes before a night that broke off"
    verbose = mail(*findings, newest_row=newest, everything=True)
    assert sum(bool(re.search(r" m-\d+$", line)) for line in verbose) == 30
    assert mail(missed(), newest_row=None)[0].startswith("The whole site logged no backup run: "), "never a run"


def test_a_night_that_broke_off_and_zones_that_do_not_fit_are_the_headline() -> None:
    stopped = (
        r"DB4Sci's backup job probably stopped at graph\x07: its run of 2026-03-13 18:20 UTC never ended, and none"
    )
    night = BrokenNight("graph\x07", at("13 18:20"))
    assert told(mail(missed(), broken_night=night)).startswith(f"{stopped} has begun since. 1 container")
    gap = "backup_id and ts of the newest runs are 8 h apart: timezone or db_timezone is probably wrong."
    assert told(mail(ok(), clock_gap=8 * HOUR)).startswith(gap), "also of a calm night"
    assert told(mail(ok(), ignored=ignored(future=[9]))).startswith("1 future log row ignored")


# --- The containers that need attention ----------------------------------------------------------------


def test_each_problem_is_told_once_the_worst_first_and_what_is_new_before_what_is_old() -> None:
    findings = [*of_every_status(), failed("fresh"), missed("stale")]
    for everything in (False, True):
        lines = mail(*reversed(findings), everything=everything)
        assert names(lines) == [
            *(("NEW", name) for name in ("fresh", "c-missed")),
            *(("", name) for name in ("c-failed", "c-stalled", "stale", "c-no_policy")),
            ("NEW", "c-late"),
            *(("", name) for name in ("c-unsure", "c-paused", "c-running")),
        ]
        assert all("good backup" in text for _, _, text in paragraphs(lines))


def test_of_many_with_the_same_status_the_first_20_are_listed() -> None:
    for number, more in ((20, ""), (21, "and 1 more: -v lists them")):
        findings = [missed(f"lab-{place}") for place in range(number)] + [
            failed(f"real-{place:02}", f"{'abcdefghijklmnopqrst'[place]} failed") for place in range(20)
        ]
        lines = mail(*findings, ok(), width=60)
        listed = [name for _, name in names(lines)]
        assert listed[:20] == [f"real-{place:02}" for place in range(20)], "real failures do not drown"
        assert [name[:4] for name in listed[20:40]] == ["lab-"] * 20
        assert (told(lines).count("-v lists them"), more in told(lines)) == (bool(more), True)
        assert len(paragraphs(mail(*findings, everything=True))) == number + 20


def test_however_many_fail_of_a_few_causes_the_report_is_a_page() -> None:
    findings = [failed(f"f-{place}", f"{'abcdefgh'[place % 8]} went wrong: failed") for place in range(200)]
    findings += [make(f"{make.__name__}-{place}") for place in range(50) for make in (stalled, unsure)]
    assert len(mail(*findings)) < 60


def test_containers_that_failed_with_the_same_error_are_one_paragraph() -> None:
    alike = [failed(f"lab-{port}", REFUSED.format(port)) for port in (32_010, 32_011)]
    old = finding("lab-old", run("10 18:07"), run("12 20:00", error=REFUSED.format(1)))
    never = finding("lab-never", run("12 20:00", error=REFUSED.format(2)))
    other = failed("other", "Failed: no reachable servers")
    assert len(paragraphs(mail(*alike, other))) == 3, "two are told one by one"
    together, apart = sorted(paragraphs(mail(*alike, old, never, other)), key=lambda one: len(one[2]), reverse=True)
    assert together == (
        "NEW",
        "failed",
        "4 containers, 2 new (lab-32010, lab-32011, lab-never and 1 more): failed with the same error: "
        f"{REFUSED.format(32010)}; oldest last good backup 2026-03-10 18:07 UTC (3.5 days ago), of lab-old; "
        "1 with no good backup in the log",
    )
    assert apart[2].startswith("other: ")
    assert "(lab-32010, lab-32011, lab-never, lab-old)" in told(mail(*alike, old, never, everything=True))
    assert "3 containers, all new (" in told(mail(*alike, failed("lab-3", REFUSED.format(3))))
    nights = [run("10 18:07"), run("11 20:00", error=REFUSED.format(1))]
    ((mark, _, text),) = paragraphs(mail(*(finding(f"o-{number}", *nights) for number in range(3))))
    assert (mark, text.partition(" with")[0]) == ("", "3 containers (o-0, o-1, o-2): failed")


def test_runs_that_stalled_within_24_hours_are_one_paragraph() -> None:
    night = [stalled(f"lab-{hour}", f"13 {hour}:07") for hour in (16, 17, 18)]
    assert len(paragraphs(mail(*night[:2]))) == 2
    before, almost = (finding(name, run(f"12 18:07:0{name}", None)) for name in "01")
    (_, status, text), (_, _, other) = paragraphs(mail(*night, before))
    assert (status, text) == (
        "stalled",
        "3 containers, all new (lab-16, lab-17, lab-18): the runs that started from 2026-03-13 16:07 UTC to "
        "2026-03-13 18:07 UTC have not ended; oldest last good backup 2026-03-12 18:07 UTC (36.9 h ago), of lab-16",
    )
    assert other.startswith("0: "), "24 hours apart is another night"
    (one,) = paragraphs(mail(*night, almost))
    assert one[2].startswith("4 containers")


def test_unsure_containers_come_with_the_setting_that_teaches_their_line() -> None:
    alike = [unsure("lab-1", "lab-1: copied 7 of 7"), unsure("lab-2", "lab-2: copied 12 of 12")]
    lines = mail(*alike, unsure("wiki"))
    (_, _, text), (_, _, other) = paragraphs(lines)
    assert text == (
        "2 containers, all new (lab-1, lab-2): the same unrecognised message: lab-1: copied 7 of 7; oldest last known "
        "good backup 2026-03-12 18:07 UTC (36.9 h ago), of lab-1; if that is harmless, add its pattern to the "
        "configuration:"
    )
    settings = [line for line in lines if line.startswith("success_patterns")]
    assert settings[1] == "success_patterns = [r'^Emulate Docker CLI using podman']"
    assert all(re.search(re.search(r"r'(.*)'", settings[0])[1], f"lab-{n}: copied {n} of {n}") for n in (1, 22))  # type: ignore[index]
    assert f"ended with an unrecognised message: {UNKNOWN}; last known good backup" in other
    assert "if that is" not in told(mail(unsure("secret", f"password={SECRET} strange"))), "a pattern would hold it"


def test_ambiguous_names_have_a_c_id() -> None:
    lines = told(mail(failed("twin", c_id=11), missed("twin", c_id=12), failed("x" * 41), mistyped("y" * 40)))
    for name in ("twin (c_id 11):", "twin (c_id 12):", f"{'x' * 37}... (c_id 7):", f"{'y' * 40}:"):
        assert name in lines


def test_the_report_ends_with_a_command_that_works_when_it_is_pasted() -> None:
    words = {"lab-4": "lab-4", "it's": "'it'\"'\"'s'", "a*": "'a*'", "red\x1b[31m": "4", "-v": "4", "twin": "4"}
    for name, word in words.items():
        last = mail(failed(name, c_id=4), ok("twin"))[-1]
        assert last.removeprefix("To see the last runs of one: ") == f"{COMMAND} {word}"
        assert shlex.split(word)[0] in (name, "4")
    assert mail(failed("offsite", c_id=0))[-1].endswith(f"{COMMAND} offsite")
    assert mail(failed(), command=f"{COMMAND} --config b.py")[-1] == f"{COMMAND} --config b.py sales", "unbroken"


# --- The last good dumps, exceptions, and what else there is to say -------------------------------------


def test_dumps_that_expire_have_a_paragraph_with_the_date_whatever_is_accepted() -> None:
    rules = Rules(dumps_kept=timedelta(days=30))
    days = {"gone": 40, "soon": 27, "later": 20, "frozen": 35, "forgotten": 70}
    accepted = {name: {"exception": FROZEN} for name in ("frozen", "forgotten")}
    made = {
        name: finding(name, run(NOW - timedelta(days=age)), rules=rules, more=accepted.get(name))
        for name, age in days.items()
    }
    lines = mail(*made.values(), rules=rules)
    assert "3 containers still need attention. Last good dumps: 2 expired, 1 expiring." in told(lines)
    begin, end = lines.index("Last good dumps that have expired or soon will:"), lines.index("Accepted exceptions:")
    dump, nothing = "the last good dump, of 2026-02", "nothing is left to restore"
    assert [(status, text) for _, status, text in paragraphs(lines[begin:end])] == [
        ("expired", f"gone: {dump}-02 07:00 UTC, expired 2026-03-04 07:00 UTC (10 days ago): {nothing}"),
        ("expired", f"frozen: {dump}-07 07:00 UTC, expired 2026-03-09 07:00 UTC (5 days ago): {nothing}"),
        ("expiring", f"soon: {dump}-15 07:00 UTC, expires 2026-03-17 07:00 UTC (in 3 days)"),
    ]
    excused = {text.partition(":")[0]: text for _, _, text in paragraphs(lines[end:])}
    assert excused["forgotten"].endswith("expired 2026-02-02 07:00 UTC (40 days ago): nothing is left to restore")
    assert "nothing is left" not in excused["frozen"]
    alone = mail(made["frozen"], ok("trials"), rules=rules)
    assert alone[1] == "Last good dumps: 1 expired.", "not: no container needs attention"
    assert alone[-1].endswith(" frozen")
    assert mail(made["forgotten"], rules=rules) == []


def test_an_accepted_problem_is_in_a_group_of_its_own() -> None:
    accepted = failed("bookings", more={"exception": FROZEN})
    assert mail(accepted, ok("trials")) == [], "cron's mail does not repeat what is known"
    lines = mail(accepted, missed(), width=300)
    assert lines[1] == "Nothing has changed in 24 hours: 1 container still needs attention."
    assert names(lines) == [("", "sales"), ("", "bookings")]
    group = lines[lines.index("Accepted exceptions:") + 1]
    assert group.endswith("(36.9 h ago); accepted until 2026-12-31 (frozen for the paper, ticket 4711)")
    well = told(mail(missed(), ok("bookings", more={"exception": FROZEN})))
    assert "ok bookings: accepted until 2026-12-31" in well


def test_an_ended_exception_is_mentioned_and_its_problem_counts_again() -> None:
    lines = mail(missed("bookings", more={"exception": ENDED}))
    assert names(lines) == [("", "bookings")]
    assert "Accepted exceptions:" not in lines
    assert "The exception of bookings ended on 2026-03-12 (moved to another host)." in lines
    both = mail(*(ok(name, more={"exception": ENDED}) for name in ("a", "b")))
    assert both[0] == "2 containers: 2 ok", "also where nothing needs attention"
    assert both[-1] == "The exception of a, b ended on 2026-03-12 (moved to another host)."


def test_keys_of_exceptions_and_rows_that_fit_nothing_are_notes_and_no_news() -> None:
    odd: dict[str, Any] = {"unused_exceptions": ("old", "older\x1b", "oldest", "12")}
    odd["ignored"] = ignored(malformed=[5, 9, 7], undated=[1])
    assert mail(ok(), **odd) == []
    notes = told(mail(missed(), **odd)).partition("(3.5 days ago)")[2]
    assert "ids 9, 7, 5" in notes
    assert "1 undated log row ignored (no ts; id 1)" in notes
    assert r"keys that fit no container: correct or remove old, older\x1b, oldest and 1 more." in notes


def test_a_suspicion_is_worth_a_look_and_not_a_problem() -> None:
    note = "took 2 s, typically 31 min: check the dump"
    nights = [run(f"{day:02} 18:07", 31) for day in range(1, 13)]
    odd = finding("quick", *nights, run("13 18:07", 0.03))
    lines = mail(odd, ok("trials"))
    assert lines[:2] == ["2 containers: 2 ok", "No container needs attention; -v lists all."]
    assert lines[-2:] == ["Worth a look:", f"    ok        quick: {note}"]
    assert mail(finding("never", *odd.runs, policy="Never")) == [], "nobody waits for that dump"
    spoilt = finding("quick", *nights, run("13 18:07", 0.03), run("14 02:00", error="bad"))
    assert note in paragraphs(mail(spoilt))[0][2]
    assert "Worth a look:" not in mail(spoilt, replace(odd, exception=FROZEN))


# --- Whom it is printed for ----------------------------------------------------------------------------


@pytest.mark.parametrize("everything", [False, True])
def test_colours_change_nothing_but_the_colour(everything: bool) -> None:
    night = site(*of_every_status(), newest_row=None, ignored=ignored(future=[1]))
    plain, coloured = (
        "\n".join(table(night, Style(width=60, colour=colour), COMMAND, everything)) for colour in (False, True)
    )
    assert re.sub(r"\x1b\[[\d;]*m", "", coloured) == plain
    assert "\x1b" not in plain
    painted = re.findall(rf"\x1b\[([\d;]+)m({STATUSES}) *\x1b", coloured)
    of_severity = {Status(word).severity: colour for colour, word in painted}
    assert len(set(of_severity.values())) == len(of_severity) == 2 + everything, "each severity has a colour"


def test_times_are_in_the_zone_of_the_site_and_name_it() -> None:
    rules = Rules(zone=ZoneInfo("Asia/Kathmandu"))
    night = (finding("a", run("12 23:30"), rules=rules), finding("b", run("13 23:30"), rules=rules))
    lines = mail(*night, rules=rules, width=120, everything=True, broken_night=BrokenNight("a", at("13 18:20")))
    assert "its run of 2026-03-14 00:05 +0545 never ended" in lines[0]
    assert lines[3].endswith(", 2026-03-14 12:45 +0545")
    for said in (
        "2026-03-13 05:15 +0545 (31.5 h ago)",
        "All containers, times in Asia/Kathmandu:",
        "2026-03-14 05:15 03-15 05:15 Daily",
    ):
        assert said in told(lines)
    silent = mail(*night, rules=rules, newest_row=NOW - 2 * DAY)
    assert "since 2026-03-12 12:45 +0545 (48 h ago)" in told(silent)
