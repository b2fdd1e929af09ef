"""The report on a site and the details of a container, from findings (SPEC section 4)."""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Iterable
from dataclasses import replace
from datetime import date, datetime, timedelta
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from audit.findings import Audit, Finding
from audit.policy import DAY, HOUR, UTC, Container, KnownProblem, Rules, Run, Status, judge
from audit.printable import Style, columns
from audit.report import details, table
from audit.runs import FUTURE, MALFORMED, UNDATED, IgnoredRows
from tests.builders import NOW
from tests.test_printable import HOSTILE, PASSWORDS, SECRET, TO_THE_LEFT, WIDE

RULES = Rules(success_pattern=re.compile(r"\A\s*Executed"))
FINE = "\nExecuted Postgres dump_all commands:\npg_dump --dbname sales --username pgdba  -F c"
ERROR = "pg_dump: error: query failed: ERROR:  permission denied for table visits"
PROGRAM = "/opt/backup_audit/backup_audit.py"
CREATED = datetime(2025, 1, 15, 9, 30, tzinfo=UTC)
FROZEN = KnownProblem(date(2026, 12, 31), "frozen for the paper, ticket 4711", datetime(2027, 1, 1, tzinfo=UTC))
ENDED = KnownProblem(date(2026, 3, 12), "moved to another host", datetime(2026, 3, 13, tzinfo=UTC))


def at(text: str) -> datetime:
    """A moment of March 2026, from text such as `13 18:07`."""
    return datetime.fromisoformat(f"2026-03-{text}").replace(tzinfo=UTC)


def run(started: str, minutes: float | None = 23, error: str | None = None, message: str = FINE, **more: Any) -> Run:
    """A run that started at `13 18:07` and took so many minutes, if it has ended."""
    begin = at(started)
    ended = None if minutes is None else begin + timedelta(minutes=minutes)
    said = (error,) if error else (message,) if message else ()
    return Run(begin, f"{begin:%Y%m%d-%H:%M:%S}", "Daily", ended, error, said)._replace(**more)


def finding(name: str = "sales", *runs: Run, c_id: int | None = 7, more: Any = None, **facts: Any) -> Finding:
    """What the audit finds of a container with these runs; `more` are further fields of the finding."""
    given = {"policy": "Daily", "engine": "Postgres", "owner": "ada", "contact": "ada@example.org", "created": CREATED}
    container = Container(c_id, name, **{**given, **facts})
    yesterday = None
    if container.created and container.created <= NOW - DAY:
        seen = [one if one.ended and one.ended <= NOW - DAY else one._replace(ended=None, error=None) for one in runs]
        yesterday = judge(container, [one for one in seen if one.started <= NOW - DAY], NOW - DAY, RULES)
    newest_first = tuple(sorted(runs, reverse=True))
    return Finding(judge(container, runs, NOW, RULES), yesterday, **{"runs": newest_first, **(more or {})})


def ok(name: str = "sales", **facts: Any) -> Finding:
    return finding(name, run("12 18:07"), run("13 18:07"), **facts)


def missed(name: str = "sales", **facts: Any) -> Finding:
    """A container that has had a problem for days."""
    return finding(name, run("10 18:07"), **facts)


def failed(name: str = "sales", error: str = ERROR, **facts: Any) -> Finding:
    """A container that had no problem 24 hours ago."""
    return finding(name, run("12 18:07"), run("14 02:00", error=error), **facts)


def unknown(name: str = "sales", policy: str = "Fortnightly", **facts: Any) -> Finding:
    """A container whose problem is told in one line."""
    return finding(name, policy=policy, **facts)


def of_every_status() -> list[Finding]:
    facts: dict[str, Any] = {
        "ok": {"runs": [run("13 18:07")]},
        "exempt": {"policy": "Never"},
        "new": {"created": at("14 01:00")},
        "running": {"runs": [run("14 06:50", None)]},
        "failed": {"runs": [run("14 02:00", error=ERROR)]},
        "stalled": {"runs": [run("12 18:07", None)]},
        "paused": {"runs": [run("10 18:07")], "state": "maintenance"},
        "late": {"runs": [run("13 05:00")]},
        "missed": {"runs": [run("12 18:07")]},
        "no_policy": {"policy": "Fortnightly"},
    }
    found = [
        finding(f"c-{status}", *given.pop("runs", ()), c_id=c_id, **given)
        for c_id, (status, given) in enumerate(facts.items(), 1)
    ]
    assert [one.verdict.status.value for one in found] == list(facts)
    return found


def site(*findings: Finding, **more: Any) -> Audit:
    """An audit of these containers, on a site that is not silent."""
    facts: dict[str, Any] = {"now": NOW, "database": "mydbadmin@db.example.org:32009/mydb_admin", "rules": RULES}
    return Audit(**facts | {"newest_row": NOW - HOUR} | more, findings=findings)


def ignored(**ids: list[int]) -> IgnoredRows:
    rows = IgnoredRows()
    for reason, some in ids.items():
        rows.add(reason, some, len(some))
    return rows


def cron(audit: Audit, width: int = 80, everything: bool = False, program: str = PROGRAM) -> list[str]:
    """The report as a mail has it."""
    return list(table(audit, Style(width=width), program, everything))


def text(lines: Iterable[str]) -> str:
    """The lines as one, so that it does not matter where they were broken."""
    return " ".join(" ".join(lines).split())


def listed(lines: Iterable[str]) -> list[tuple[str, str, str]]:
    """Mark, status and name of each paragraph."""
    statuses = "|".join(status.value for status in Status)
    found = (re.match(rf"(NEW|   ) ({statuses}) +(?!and )(\S.*?):", line) for line in lines)
    return [(match[1].strip(), match[2], match[3]) for match in found if match]


# --- The whole, as it is read ---------------------------------------------------------------------------


def test_the_mail_of_an_ordinary_morning_has_the_new_problem_first_and_fits_a_phone() -> None:
    old = (missed("survey", c_id=2), unknown("plasmid-catalog", c_id=3), missed("bookings", c_id=4))
    back = finding("staff-wiki", run("09 18:07"), run("13 18:07"), c_id=5)
    assert cron(site(*old, failed("consent-records"), back, ok("trials", c_id=6)), width=60) == [
        "6 containers: 1 failed, 2 missed, 1 no_policy, 2 ok",
        "Last 24 hours: 1 new problem (consent-records), 1 recovered",
        "(staff-wiki).",
        "Backup Audit of mydbadmin@db.example.org:32009/mydb_admin,",
        "2026-03-14 07:00 UTC",
        "",
        "NEW failed    consent-records: the run of 2026-03-14 02:00",
        "              UTC (5 h ago) failed: pg_dump: error: query",
        "              failed: ERROR: permission denied for table",
        "              visits",
        "    missed    bookings: no backup since 2026-03-10 18:07 UTC",
        "              (3.5 days ago, due every 24 h)",
        "    missed    survey: no backup since 2026-03-10 18:07 UTC",
        "              (3.5 days ago, due every 24 h)",
        "    no_policy plasmid-catalog: unknown backup policy",
        "              'Fortnightly'",
        "",
        "To see the last runs of one:",
        "/opt/backup_audit/backup_audit.py consent-records",
    ]


def test_a_calm_night_is_a_headline_on_a_terminal_and_sends_no_mail() -> None:
    calm = site(ok(), finding("new", created=at("14 01:00")), finding("scratch", policy="Never"))
    assert cron(calm) == []
    assert list(table(calm, Style(), PROGRAM, terminal=True)) == [
        "3 containers: 1 ok, 1 new, 1 exempt",
        "No container needs attention; -v lists all.",
        "Backup Audit of mydbadmin@db.example.org:32009/mydb_admin, 2026-03-14 07:00 UTC",
    ]
    assert cron(calm, everything=True)[3:] == [
        "",
        "STATUS LAST GOOD BACKUP DUE (UTC)        POLICY C_ID CONTAINER",
        "ok     2026-03-13 18:07 2026-03-14 18:07 Daily  7    sales",
        "new    -                2026-03-15 01:00 Daily  7    new",
        "exempt -                -                Never  7    scratch",
    ]
    assert "0 containers: nothing to audit" in text(cron(site(), everything=True))


NAMES = ["sales", "clinical-trial-4", "x" * 300, WIDE * 30, "cafe\u0301" * 10, TO_THE_LEFT * 9, "a b c", "-v"]


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("everything", [False, True])
def test_every_line_fits(width: int, everything: bool) -> None:
    more = {"notes": ("took 2 s, typically 31 min: check the dump",), "known_problem": FROZEN}
    per_name = (ok, missed, failed, unknown)
    findings = [make(name, c_id=c_id) for c_id, name in enumerate(NAMES, 1) for make in per_name]
    findings += [missed(name, more=more) for name in NAMES] + of_every_status()
    silent = site(*findings, database=WIDE * 40, newest_row=None, unused_exceptions=tuple(NAMES))
    for audit in (site(*findings, database="d" * 90), silent):
        lines = cron(audit, width, everything)
        assert [line for line in lines if columns(line) > width] == []
        assert sum(len(line) > width - 20 for line in lines) > 10, "there is no need for shorter lines"
    assert [line for line in details(site(*findings), Style(width=width)) if columns(line) > width] == []


# --- The headline --------------------------------------------------------------------------------------


def test_the_headline_counts_the_containers_by_status_and_the_accepted_ones_apart() -> None:
    lines = cron(site(*of_every_status(), missed("frozen", more={"known_problem": FROZEN})), 200)
    assert lines[0] == (
        "11 containers: 1 failed, 1 stalled, 2 missed (1 accepted), 1 no_policy, "
        "1 late, 1 paused, 1 running, 1 ok, 1 new, 1 exempt"
    )


def test_the_headline_names_what_is_new_and_what_recovered() -> None:
    recovered = [finding(f"back-{number}", run("09 18:07"), run("13 18:07")) for number in range(4)]
    names = "back-0, back-1, back-2 and 1 more"
    assert cron(site(missed(), *recovered))[1] == f"Last 24 hours: no new problem, 4 recovered ({names})."
    assert cron(site(missed()))[1] == "Last 24 hours: no new problem."
    new = [failed(f"new-{number}") for number in range(3)]
    assert cron(site(*new))[1] == "Last 24 hours: 3 new problems (new-0, new-1, new-2)."
    assert cron(site(*recovered)) == []
    calm = list(table(site(recovered[0]), Style(), PROGRAM, terminal=True))
    assert calm[1] == "No container needs attention; -v lists all. Last 24 hours: 1 recovered (back-0)."


@pytest.mark.parametrize(("rows", "again"), [(19, False), (20, True)])
def test_the_headline_comes_again_after_more_than_20_lines(rows: int, again: bool) -> None:
    late = finding("a", run("13 05:00"))
    lines = cron(site(late, *(unknown(f"c-{number}") for number in range(rows))), 120)
    assert len(listed(lines)) == rows + 1
    assert (lines[-2:] == lines[:2]) == again


@pytest.mark.parametrize(("newest", "is_silent"), [(NOW - DAY, False), (NOW - DAY - timedelta(seconds=1), True)])
def test_a_silent_site_is_the_headline(newest: datetime, is_silent: bool) -> None:
    findings = [missed(f"m-{number}") for number in range(900)] + [finding("l", run("13 05:00")), failed(), ok("o")]
    lines = cron(site(*findings, newest_row=newest))
    assert ("m-0" in text(lines)) != is_silent
    if is_silent:
        assert text(lines[:2]) == (
            "The whole site logged no backup run since 2026-03-13 06:59 UTC (24 h ago): "
            "DB4Sci's own backup job has probably not run."
        )
        assert listed(lines) == [("NEW", "failed", "sales")]
        assert "900 missed and 1 late, as the whole site is silent: -v lists them." in lines
        assert len(listed(cron(site(*findings, newest_row=newest), everything=True))) == 902
        assert cron(site(ok(), newest_row=None))[0].startswith("The whole site logged no backup run: "), "never a run"


# --- The containers that need attention ----------------------------------------------------------------


def test_the_worst_comes_first_and_what_is_new_before_what_is_old() -> None:
    findings = [*of_every_status(), failed("fresh"), missed("stale")]
    order = [(mark, name) for mark, _, name in listed(cron(site(*reversed(findings))))]
    assert order == [
        *(("NEW", name) for name in ("fresh", "c-missed")),
        *(("", name) for name in ("c-failed", "c-stalled", "stale", "c-no_policy")),
        *(("NEW", name) for name in ("c-late",)),
        *(("", name) for name in ("c-paused", "c-running")),
    ]


def test_every_container_is_listed_once_and_those_that_need_attention_say_why() -> None:
    findings = of_every_status()
    for everything in (False, True):
        lines = cron(site(*findings), 200, everything)
        assert lines == list(table(site(*findings), Style(width=200), PROGRAM, everything, terminal=True))
        told = " ".join(lines[3:-1])
        for one in findings:
            assert told.count(one.container.name) == (everything or one.is_problem)
            assert (f"{one.container.name}: {' '.join(one.verdict.reason.split())}" in told) == one.is_problem


def test_other_status_changes_are_mentioned() -> None:
    lines = text(cron(site(finding("a", run("12 05:00")))))
    assert "(2.1 days ago, due every 24 h); was late 24 h ago" in lines


@pytest.mark.parametrize(("number", "more"), [(20, ""), (21, "and 1 more: -v lists them"), (990, "and 970 more: ")])
def test_of_many_with_the_same_status_the_first_20_are_listed(number: int, more: str) -> None:
    findings = [missed(f"lab-{place}") for place in range(number)] + [failed(f"real-{place}") for place in range(20)]
    lines = cron(site(*findings, *(ok(f"fine-{place}") for place in range(2_000 - number - 20))), 60)
    names = [name for _, _, name in listed(lines)]
    assert names[:20] == sorted(f"real-{place}" for place in range(20)), "real failures do not drown"
    assert [name[:4] for name in names[20:]] == ["lab-"] * 20
    assert more in text(lines)
    assert ("-v lists them" in text(lines)) == bool(more)
    assert len(listed(cron(site(*findings), everything=True))) == number + 20


def test_990_problems_of_one_kind_are_a_page() -> None:
    assert len(cron(site(*(missed(f"lab-{place}-postgres") for place in range(990))), 60)) < 60


def test_ambiguous_names_have_a_c_id() -> None:
    lines = text(cron(site(failed("twin", c_id=11), failed("twin", c_id=12), failed("x" * 41), failed("y" * 40)), 120))
    for name in ("twin (c_id 11):", "twin (c_id 12):", f"{'x' * 37}... (c_id 7):", f"{'y' * 40}:"):
        assert name in lines


@pytest.mark.parametrize("length", [200, 201])
def test_messages_are_cut_at_200_characters(length: int) -> None:
    long = "e" * length
    strange = finding("s", run("13 18:07", message=long), more={"unrecognised": 1})
    known = replace(FROZEN, reason=long)
    findings = [failed(error=long), ok("n", more={"notes": (long,)}), strange, missed(more={"known_problem": known})]
    shown = re.findall(r"e{9,}(?:\.{3})?", " ".join(cron(site(*findings), 400, everything=True)))
    whole = long if length == 200 else "e" * 197 + "..."
    note = 'its message is not known as fine: "'
    assert shown == [whole, whole, whole, "e" * (197 - len(note)) + "..."]


def test_a_message_of_megabytes_costs_little() -> None:
    huge = "pg_dump: error: x\n" * 300_000
    night = site(failed(error=huge), ok(more={"notes": (huge,)}), unknown(policy=huge), ok(huge, state=huge))
    started = time.process_time()
    assert len(cron(night, everything=True)) < 40
    assert len(list(details(night, Style()))) < 150
    assert time.process_time() - started < 2


@pytest.mark.parametrize(
    ("name", "c_id", "program", "command"),
    [
        ("lab-4", 4, PROGRAM, f"{PROGRAM} lab-4"),
        ("it's", 4, PROGRAM, f"{PROGRAM} 'it'\"'\"'s'"),
        ("a*", 4, f"{PROGRAM} --config b.py", f"{PROGRAM} --config b.py 'a*'"),
        ("red\x1b[31m", 4, PROGRAM, f"{PROGRAM} 4"),
        ("-v", 4, PROGRAM, f"{PROGRAM} 4"),
        ("twin", 4, PROGRAM, f"{PROGRAM} 4"),
        ("offsite", 0, PROGRAM, f"{PROGRAM} offsite"),
        ("lab-4", 4, "/" + "p" * 90, f"/{'p' * 90} lab-4"),
    ],
)
def test_the_report_ends_with_a_command_that_works_when_it_is_pasted(
    name: str, c_id: int, program: str, command: str
) -> None:
    last = cron(site(failed(name, c_id=c_id), ok("twin")), program=program)[-1]
    assert last.removeprefix("To see the last runs of one: ") == command
    assert shlex.split(command)[-1] in (name, str(c_id))


# --- Accepted exceptions, and what else there is to say -------------------------------------------------


def test_an_accepted_problem_is_in_a_group_of_its_own() -> None:
    accepted = failed("bookings", more={"known_problem": FROZEN})
    assert cron(site(accepted, ok("trials"))) == [], "cron's mail does not repeat what is known"
    lines = cron(site(accepted, missed()), 250)
    assert lines[1] == "Last 24 hours: no new problem."
    assert listed(lines) == [("", "missed", "sales"), ("", "failed", "bookings")]
    group = lines[lines.index("Accepted exceptions:") + 1]
    assert group.endswith("visits; accepted until 2026-12-31 (frozen for the paper, ticket 4711)")
    well = text(cron(site(missed(), ok("bookings", more={"known_problem": FROZEN}))))
    assert "ok bookings: accepted until 2026-12-31" in well


def test_an_ended_exception_is_mentioned_and_its_problem_counts_again() -> None:
    lines = cron(site(missed("bookings", more={"known_problem": ENDED})))
    assert listed(lines) == [("", "missed", "bookings")]
    assert "Accepted exceptions:" not in lines
    detail = list(details(site(missed(more={"known_problem": ENDED})), Style()))
    assert "  exception   ended on 2026-03-12 (moved to another host)" in detail
    assert "The exception of bookings ended on 2026-03-12 (moved to another host)." in lines
    both = [ok(name, more={"known_problem": ENDED}) for name in ("a", "b")]
    told = cron(site(*both))
    assert told[0] == "2 containers: 2 ok", "also where nothing needs attention"
    assert told[-1] == "The exception of a, b ended on 2026-03-12 (moved to another host)."


def test_exceptions_that_fit_no_container_are_one_note() -> None:
    keys = ("old", "older\x1b", "oldest", "12")
    assert cron(site(ok(), unused_exceptions=keys)) == []
    note = r"keys that fit no container: correct or remove old, older\x1b, oldest and 1 more."
    assert cron(site(missed(), unused_exceptions=keys), 120)[-3].endswith(note)


IGNORED = [
    (FUTURE, [9], "future log row ignored (stamped later than now; id 9): db_timezone is probably wrong."),
    (
        MALFORMED,
        [5, 9, 7],
        "(no backup_id, or a state other than start and end; ids 9, 7, 5): look at the table backups.",
    ),
    (UNDATED, [1, 2, 3, 4], "undated log rows ignored (no ts; newest ids 4, 3, 2): look at the table backups."),
]


@pytest.mark.parametrize(("reason", "ids", "sentence"), IGNORED)
def test_ignored_rows_are_reported_with_a_hint_and_the_newest_ids(reason: str, ids: list[int], sentence: str) -> None:
    rows = ignored(**{reason: ids})
    assert f"{len(ids)} {reason} log row" in text(cron(site(missed(), ignored=rows)))
    assert sentence in text(cron(site(missed(), ignored=rows)))
    assert sentence in text(details(site(ok(more={"ignored": rows})), Style()))
    assert bool(cron(site(ok(), ignored=rows))) == (reason == FUTURE), "a wrong zone spoils all verdicts"


def test_unrecognised_messages_are_one_line_and_listed_with_v() -> None:
    strange = finding("strange", run("13 18:07", message="wrote 5 of 5"), more={"unrecognised": 1})
    gone = ok("gone-by", more={"unrecognised": 36})
    night = site(strange, gone, ok("known"))
    advice = "teach it with success_pattern or error_pattern."
    assert cron(night, 120)[-1] == f"37 runs ended with a message that is not known: see -v; {advice}"
    assert "wrote" not in text(cron(night))
    lines = cron(night, 120, everything=True)
    assert lines[-1] == f"37 runs ended with a message that is not known: {advice}"
    below = {line.split()[-1]: next_ for line, next_ in pairwise(lines) if line}
    assert below["strange"].strip() == 'its message is not known as fine: "wrote 5 of 5"'
    assert below["gone-by"].strip() == "the message of a run before the last one is not known as fine"
    assert below["known"].endswith("strange")
    assert cron(site(strange), 120)[-1] == f"1 run ended with a message that is not known: see -v; {advice}"


def test_a_suspicion_is_worth_a_look_and_not_a_problem() -> None:
    note = "took 2 s, typically 31 min: check the dump"
    odd = ok("quick", more={"notes": (note,)})
    lines = cron(site(odd, ok("trials")))
    assert lines[:2] == ["2 containers: 2 ok", "No container needs attention; -v lists all."]
    assert lines[-2:] == ["Worth a look:", f"    ok        quick: {note}"]
    assert f"       {note}" in cron(site(odd), everything=True)
    assert f"due every 24 h); {note}" in text(cron(site(missed(more={"notes": (note,)}))))


# --- Whom it is printed for ----------------------------------------------------------------------------


@pytest.mark.parametrize("width", [60, 120])
def test_colours_change_nothing_but_the_colour(width: int) -> None:
    night = site(*of_every_status(), newest_row=None, ignored=ignored(future=[1]))
    plain, coloured = Style(width=width), Style(width=width, colour=True)
    for everything in (False, True):
        lines = list(table(night, coloured, PROGRAM, everything))
        assert re.sub(r"\x1b\[[\d;]*m", "", "\n".join(lines)) == "\n".join(table(night, plain, PROGRAM, everything))
    lines += details(night, coloured)
    painted = re.findall(r"\x1b\[([\d;]+)m(\w+)", "\n".join(lines))
    colours = {Status(word).severity: colour for colour, word in painted if word in {status.value for status in Status}}
    assert len({*colours.values()}) == 3, "each severity has a colour of its own"
    assert not any("\x1b" in line for line in [*details(night, plain), *table(night, plain, PROGRAM, True)])


def test_times_are_in_the_zone_of_the_log_and_name_it() -> None:
    zone = ZoneInfo("Asia/Kathmandu")
    rules = replace(RULES, zone=zone)
    container = Container(7, "sales", "Daily", created=CREATED)
    verdicts = [judge(container, [run(start)], NOW, rules) for start in ("12 23:30", "13 23:30")]
    night = site(*(Finding(verdict, verdict, runs=(run("13 23:30"),)) for verdict in verdicts), rules=rules)
    lines = list(table(night, Style(zone, 120), PROGRAM, everything=True))
    assert lines[2].endswith(", 2026-03-14 12:45 +0545")
    assert "no backup since 2026-03-13 05:15 +0545 (31.5 h ago" in text(lines)
    assert "DUE (+0545)" in text(lines)
    assert "2026-03-14 05:15 2026-03-15 05:15 Daily" in text(lines)
    detail = list(details(night, Style(zone)))
    assert "  the last 1 of 1 run, times in +0545" in detail
    assert "  2026-03-14 05:15 03-14 05:38" in "\n".join(detail)


@pytest.mark.parametrize(
    ("width", "length", "title"), [(80, 27, "C_ID"), (60, 12, "POLICY"), (60, 19, "DUE"), (60, 36, "LAST")]
)
def test_long_names_push_out_columns(width: int, length: int, title: str) -> None:
    for name in ("n" * length, "n" * (length + 1)):
        *_, titles, row = cron(site(ok(name)), width, everything=True)
        assert row.endswith(f" {name}")
        assert (title in titles) == (len(name) == length)
        assert titles.index("CONTAINER") == row.index(name)


@pytest.mark.parametrize("bad", [*HOSTILE, *PASSWORDS], ids=ascii)
def test_the_report_is_harmless_and_masks_passwords(bad: str) -> None:
    known = replace(FROZEN, reason=bad)
    facts: dict[str, Any] = dict.fromkeys(("engine", "owner", "contact", "state"), bad)
    spoilt = run("13 18:07", message=bad, type=bad, backup_id=bad)
    findings = [
        finding(bad, spoilt, more={"notes": (bad,), "unrecognised": 1}, **facts),
        failed(f"{bad} 2", error=f"pg_dump: error: {bad}", **facts),
        missed(f"{bad} 3", more={"known_problem": known}, **facts),
        unknown(f"{bad} 4", policy=bad, more={"known_problem": replace(ENDED, reason=bad)}, **facts),
    ]
    night = site(*findings, database=bad, unused_exceptions=(bad,))
    for lines in (cron(night), cron(night, everything=True), list(details(night, Style()))):
        assert [line for line in lines if not line.isprintable()] == []
        assert SECRET not in text(lines).replace(" ", "")


# --- The details of a container ------------------------------------------------------------------------


def test_the_details_of_a_container() -> None:
    more = {"notes": ("took 2 s, typically 31 min: check the dump",), "known_problem": FROZEN}
    error = f"{ERROR}\npg_dump: detail: Query was: LOCK TABLE public.visits IN ACCESS SHARE MODE"
    runs = (run("12 18:07", 94), run("13 18:07", 190, error, type="User"), run("14 06:50", None))
    end_only = run("11 18:07", 0, message="wrote 5 of 5", start_logged=False, type="")
    assert list(details(site(finding("sales", end_only, *runs, more=more)), Style(width=60))) == [
        "sales (c_id 7)",
        "  verdict     running (warning); was ok 24 h ago",
        "  reason      running since 2026-03-14 06:50 UTC (0.2 h",
        "              ago); the run before, of 2026-03-13 18:07 UTC,",
        "              failed",
        "  policy      Daily",
        "  due         2026-03-13 18:07 UTC",
        "  exception   accepted until 2026-12-31 (frozen for the",
        "              paper, ticket 4711)",
        "  note        took 2 s, typically 31 min: check the dump",
        "  state       running",
        "  engine      Postgres",
        "  owner       ada, ada@example.org",
        "  created     2025-01-15 09:30 UTC",
        "",
        "  the last 4 of 4 runs, times in UTC",
        "  START            END         DURATION  TYPE     OUTCOME",
        "  2026-03-14 06:50 -                  -  Daily    running",
        "      Executed Postgres dump_all commands: pg_dump --dbna...",
        "  2026-03-13 18:07 03-13 21:17    3.2 h  User     failed",
        "      pg_dump: error: query failed: ERROR: permission denied",
        "      for table visits pg_dump: detail: Query was: LOCK",
        "      TABLE public.visits IN ACCESS SHARE MODE",
        "  2026-03-12 18:07 03-12 19:41   94 min  Daily    succeeded",
        "      Executed Postgres dump_all commands: pg_dump --dbna...",
        "  -                03-11 18:07        -  -        succeeded",
        '      its message is not known as fine: "wrote 5 of 5"',
    ]


def test_unknown_facts_of_a_container_say_unknown() -> None:
    lost = Container(None, "lost", None, state=None, has_metadata=False)
    lines = list(details(site(Finding(judge(lost, [], NOW, RULES))), Style()))
    assert lines[0] == "lost (without a c_id)"
    assert lines[1] == "  verdict     no_policy (critical)"
    unknowns = dict.fromkeys(("state", "engine", "owner", "created"), "unknown")
    assert dict(line.split() for line in lines[3:9]) == {"policy": "none", "due": "never"} | unknowns
    assert lines[-1] == "  no runs in the log"


def test_the_details_show_the_last_ten_runs_newest_first() -> None:
    runs = [run(f"{day:02} 18:07") for day in range(1, 13)]
    lines = list(details(site(finding("sales", *runs), finding("offsite", c_id=0)), Style()))
    days = [line.split()[0] for line in lines if line.startswith("  2026")]
    assert days == [f"2026-03-{day:02}" for day in range(12, 2, -1)]
    assert "  the last 10 of 12 runs, times in UTC" in lines
    assert lines[lines.index("offsite (c_id 0)") - 1] == ""


def test_messages_are_cut_at_1000_characters_in_the_details() -> None:
    for length in (1_000, 1_001):
        found = failed(error="e" * length)
        shown = [line.strip() for line in details(site(found), Style()) if re.search("e{9}|e[.]{3}$", line)]
        message = "e" * 1_000 if length == 1_000 else "e" * 997 + "..."
        assert "".join(shown) == message * 2, "in the reason and at the run"


def test_every_message_of_a_run_is_shown_and_what_is_wrong_with_it_in_full() -> None:
    early = Run(at("13 18:07"), "1", "Daily", at("13 18:00"), None, (FINE, "wrote\n5 of 5"))
    broken = Run(at("12 18:07"), "2", "Daily", at("12 18:30"), ERROR, (ERROR, FINE, "Executed it"))
    lines = [line.strip() for line in details(site(finding("sales", early, broken)), Style(width=120))]
    assert lines[lines.index("2026-03-13 18:07 03-13 18:00        -  Daily    succeeded") + 1 :] == [
        "its end is stamped before its start: the duration is unknown",
        'its message is not known as fine: "wrote 5 of 5"',
        " ".join(FINE.split()),
        "2026-03-12 18:07 03-12 18:30   23 min  Daily    failed",
        " ".join(ERROR.split()),
        " ".join(FINE.split()),
        "Executed it",
    ]
