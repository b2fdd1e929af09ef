"""The evidence page: its figures, its safety, and what a browser and validators make of it."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from audit.history import ContainerHistory, Period, Stretch, last_days
from audit.messages import Meaning, Said
from audit.options import VERSION
from audit.policy import DAY, HOUR, UTC, Status
from audit.reports.history_page import STRETCHES_SHOWN, PageFacts, render
from audit.settings import Settings, check
from tests.builders import NOW, Site
from tests.db4sci import SECRET
from tests.findings import past, some_site
from tests.programs import give_up, require
from tests.runs import ERROR, MINUTE, at, bad, doubtful, nights, run, unfinished

VALIDATORS = ("axe-core@4.14.1", "html-validate@9.7.1")
MADE = at("2026-04-01 06:40")
EVIL = "</style><script>alert(1)</script>\"'&amp; $style \u202etxt\u200f \x1b[31m password=" + SECRET
HARMLESS = "</style><script>alert(1)</script>\"'&amp; $style \\u202etxt\\u200f \\x1b[31m password=*****"
BERLIN = {"timezone": "Europe/Berlin"}


def settings(**config: Any) -> Settings:
    fixed = {"database_url": "sqlite:///admin.db", "prometheus_file": "x.prom", "grace_hours": 6}
    return check({**fixed, "max_runtime_hours": 24, **config}, Path("/nowhere"))


def make(histories: Sequence[ContainerHistory], period: Period | int = 9, facts: Any = None, **config: Any) -> str:
    """The page of a period, or of so many days, with the facts and the settings that are given."""
    given = {"version": "3.0", "made": MADE, "ignored": {}, **(facts or {})}
    if isinstance(period, int):
        period = replace(last_days(period, NOW, UTC), log_begins=at("2025-01-01"))
    return render(histories, period, PageFacts(settings(**config), **given))


def body(page: str) -> ElementTree.Element:
    """The body, which is well-formed XML as well."""
    return ElementTree.fromstring(page[page.index("<body>") : page.index("</html>")])  # noqa: S314  # our own page


def text(element: ElementTree.Element) -> str:
    return " ".join("".join(element.itertext()).split())


def texts(page: str, path: str) -> list[str]:
    return [text(element) for element in body(page).findall(path)]


def rows(page: str, table: str) -> list[list[str]]:
    """The text of a table's cells, row by row, without the column headings."""
    return [[text(cell) for cell in row] for row in body(page).findall(f".//table[@class='{table}']/tbody/tr")]


def lines(page: str) -> dict[str, str]:
    """The lines of the days of a page's containers, by their class."""
    return {path.attrib["class"]: path.attrib["d"] for path in body(page).findall(".//td/svg/path")}


# --- Contents ------------------------------------------------------------------------------------------


def test_the_page_of_a_site() -> None:
    page = make(some_site())
    table = rows(page, "history")
    assert table[0] == ["All containers", "86.8 %", "", "4.2 days", "12.5 days", "", "", "", ""]
    assert table[2] == ["gone (deleted)", "28.7 %", "", "2.5 days", "4 days", "23 min", "Daily", "ok", "11"]
    assert table[-1] == ["typo", "-", "no valid backup policy", "-", "-", "-", "Fortnightly", "no_policy", "13"]
    assert [row[0] for row in table[1:]] == [
        "2 containers not covered all the time", "gone (deleted)", "trials",
        "3 containers covered all the time", "survey", "fresh", "sales",
        "2 containers not judged", "scratch", "typo",
    ]  # fmt: skip
    assert texts(page, ".//dl[@class='figures']/div/*") == [
        "of the time covered", "86.8 %", "of 5 containers covered all the time", "3",
        "not covered, all containers together", "4.2 days",
        "of work could have been lost, at worst (survey)", "12.5 days",
        "containers not covered on the worst day, 2026-03-05", "1",
    ]  # fmt: skip
    for whole in body(page).findall(".//table"):
        groups = {int(group.attrib["colspan"]) for group in whole.findall(".//tr[@class='group']/th")}
        assert groups <= {len(whole.findall("thead/tr/th"))}
    counts = {row[0]: row[2] for row in rows(page, "statuses")}
    some = {"ok": "5", "no_policy": "1", "exempt": "1", "all": "7"}
    assert counts == {status.value: "0" for status in Status} | some


def test_a_site_without_anything_to_judge_has_a_page() -> None:
    for page in (make([]), make(some_site()[-1:])):
        assert (rows(page, "stretches"), rows(page, "history")[0][1]) == ([["none", "", "", ""]], "-")


def test_says_what_there_is_to_restore_and_where() -> None:
    unknown = doubtful("13 18:07", url="s3://backups/b")
    histories = [
        past(run("01 18:07", url="s3://backups/c"), bad("13 18:07"), name="c", engine="MariaDB", owner="ada"),
        past(run("12 18:07"), unknown, name="b", c_id=1),
        past(unknown, name="b", c_id=2),
        past(bad("13 18:07"), name="a", c_id=None),
    ]
    doubt = "2026-03-13 18:07 UTC, unrecognised message;"
    assert rows(make(histories), "backups") == [
        ["a", "-", "-", "-", "none in the log", "-", "-"],
        ["b", "1", "-", "-", f"{doubt} known good: 2026-03-12 18:07 UTC", "s3://backups/b", "-"],
        ["b", "2", "-", "-", f"{doubt} none is known to be good", "s3://backups/b", "-"],
        ["c", "7", "MariaDB", "ada", "2026-03-01 18:07 UTC", "s3://backups/c", "-"],
    ]
    for kept, until in ((12, "2026-03-13, expired"), (13, "2026-03-14")):
        rules = settings(dumps_kept_days=kept).rules
        assert rows(make([past(run("01 18:07"), rules=rules)]), "backups")[0][-1] == until


def test_lists_each_stretch_with_its_failed_runs() -> None:
    failure = "2026-03-12 02:00 UTC failed: pg_dump: error: query failed: ERROR: permission denied for table visits"
    assert rows(make([past(run("09 18:07"), bad("12 02:00"), *nights(12), name="a")], 3), "stretches") == [
        ["a 41.1 % covered"],
        ["2026-03-11 07:00 UTC", "2026-03-12 18:30 UTC", "35.5 h", failure],
        ["2026-03-14 00:07 UTC", "2026-03-14 07:00 UTC", "6.9 h", "none"],
    ]


def test_tells_at_most_three_kinds_of_failures_of_a_stretch() -> None:
    start = at("01 00:00")
    cases: dict[tuple[str | None, ...], str] = {
        (None, None): "00:00, and 1 more until 01:00 stalled",
        ("x 1:", None, "x 2:"): "00:00 failed: x 1: | 01:00 stalled | 02:00 failed: x 2:",
        ("x:", "y:", "z:", "z 2:"): "00:00 failed: x: | 01:00 failed: y: | 02:00 failed: z: | and 1 later run",
        ("x 1:", "x 2:", "x 3:"): "00:00, and 2 more until 02:00 failed: x 1:",
        ("x" * 201,): f"00:00 failed: {'x' * 197}...",
    }
    for said, shown in cases.items():
        meant = [Said(Meaning.ERROR, line) if line else Said(Meaning.FINE, None) for line in said]
        runs = tuple(unfinished(start + n * HOUR, said=each) for n, each in enumerate(meant))
        told = " | ".join(texts(make([replace(past(), stretches=(Stretch(start, NOW, runs),))]), ".//td/ul/li"))
        assert told.replace("2026-03-01 ", "").replace(" UTC", "") == shown


def test_of_many_stretches_of_a_container_the_longest_are_listed() -> None:
    starts = [at("01 00:00") + n * HOUR for n in range(STRETCHES_SHOWN + 2)]
    many = tuple(Stretch(start, start + (n + 1) * MINUTE, ()) for n, start in enumerate(starts))
    _, first, *_, last = listed = rows(make([replace(past(), stretches=many)]), "stretches")
    assert (len(listed), first[0]) == (1 + STRETCHES_SHOWN + 1, "2026-03-01 02:00 UTC")
    assert last == ["2 shorter ones", "", "0.1 h", ""]
    assert len(rows(make([replace(past(), stretches=many[2:])]), "stretches")) == 1 + STRETCHES_SHOWN


def test_says_what_it_does_not_prove_with_numbers() -> None:
    unknown = doubtful("12 18:07")
    site, ignored = [past(unknown, run("13 18:07", is_cut=True)), past(unknown)], {"malformed": 2, "undated": 1}

    def said(**given: Any) -> str:
        return texts(make(site, facts={"ignored": ignored}, **given), ".//ul[@class='limits']")[0]

    for limit in ("read from DB4Sci’s log. No dump was opened", "may be cut (at 100 characters, by DB4Sci)"):
        assert limit in text(body(make(site)))
    assert "In the period, 2 runs had a message that the audit does not recognise, and 1 run one that may be" in said()
    assert "The log begins before the period. 3 rows of the part that was read could not be used: 2 malf" in said()
    assert "How long dumps are kept is not known (no dumps_kept_days)" in said()
    assert "a dump is kept for 180 days; nobody looked" in said(dumps_kept_days=180)
    for begins, told in (("05 07:00", "before the period."), ("06 07:00", "2026-03-06 07:00 UTC: nothing before")):
        assert f"The log begins {told}" in said(period=replace(last_days(9, NOW, UTC), log_begins=at(begins)))
    assert "The log has no dated row. 3 rows" in said(period=last_days(9, NOW, UTC))


def test_says_by_what_the_past_was_judged() -> None:
    given: dict[str, Any] = {**BERLIN, "weekly_day": "Sunday", "policies": {"Monthly": 744}, "dumps_kept_days": 180}
    given |= {"extra_jobs": {"offsite": "Daily"}, "error_patterns": ["<boom>", "x, y"]}
    values = [row[1] for row in rows(make([], **given), "settings")]
    assert values[:7] == ["24 h", "6 h", "24 h", "Sunday", "Europe/Berlin", "UTC", "180 days"]
    assert "The past is judged by today’s policies and settings." in text(body(make([])))
    assert values[7:] == ["Monthly 31 days", "offsite Daily", "<boom>x, y", "none"]


def test_lists_the_exceptions_that_are_in_force_at_the_end() -> None:
    exceptions: dict[Any, Any] = {"trials": ("2026-03-14", "frozen, ticket 4711"), "sales": ("2026-03-13", "over")}
    exceptions |= {"gone": ("2026-12-31", "by name"), 11: ("2026-05-01", "by c_id"), "unknown": ("2026-12-31", "x")}
    assert rows(make(some_site(), exceptions=exceptions), "exceptions") == [
        ["gone (deleted)", "ok", "2026-12-31", "by name"],
        ["trials", "ok", "2026-03-14", "frozen, ticket 4711"],
    ]
    assert rows(make(some_site()), "exceptions") == [["none", "", "", ""]]


def test_title_and_period_agree() -> None:
    facts, given = {"population": "lab-*"}, {"site": "lab", **BERLIN}
    for days, end, dates, period in (
        (
            30,
            NOW,
            "2026-02-12 to 2026-03-14",
            "02-12 08:00 CET to 2026-03-14 08:00 CET: 720 hours, in 31 calendar days",
        ),
        (1, at("13 23:00"), "2026-03-13", "03-13 00:00 CET to 2026-03-14 00:00 CET: 24 hours, in 1 calendar day"),
    ):
        page = make([], last_days(days, end, settings(**given).rules.zone), facts, **given)
        assert f"<title>Backup evidence, lab, {dates}</title>" in page
        assert texts(page, "header/p") == [f"lab, {dates}"]
        assert texts(page, "header/dl/div/dd") == [f"2026-{period}", "admin.db", "lab-*", "Europe/Berlin"]


# --- Days ----------------------------------------------------------------------------------------------


def test_draws_a_line_over_the_known_days_and_what_was_not_covered_over_it() -> None:
    page = make([past(*nights(7, 8), bad("10 02:00"), bad("14 02:00"), days=9, begins="06 18:00")])
    assert lines(page).items() >= {"o": "M1 4H10", "f": "M5 4h1M9 4h1", "n": "M6 5.6h3"}.items()
    assert 'aria-label="4 of 9 days ok"' in page
    assert lines(make([past(*nights(5), days=9, deleted=True)]))["o"] == "M0 4H1", "up to its end"
    page = make([past(*nights(*range(10, 13 + (n > 4))), c_id=n) for n in range(20)], 3)
    assert lines(page)["b"] == "M3 8v-2h1V8z", "a bar as high as the share of containers"
    assert 'aria-label="at most 5 of 20 containers not covered"' in page
    page = make([past(*(run(NOW - n * DAY) for n in range(2, 3610)), days=3600)], 3600)
    assert lines(page)["n"] == "M3599 5.6h6.002", "a day is visible among thousands"


def test_labels_the_axis_as_there_is_room() -> None:
    for start, days, labels in (
        ("2026-03-28", 5, "28 Mar, 29 Mar, 30 Mar, 31 Mar, 1 Apr"),
        ("2026-03-01", 35, "2 Mar, 9 Mar, 16 Mar, 23 Mar, 30 Mar"),
        ("2026-03-02", 56, "2 Mar, 16 Mar, 30 Mar, 13 Apr"),
        ("2026-03-02", 57, "Apr"),
        ("2025-09-02", 201, "Oct, 2026"),
        ("2020-06-01", 3660, "2022, 2024, 2026, 2028, 2030"),
    ):
        page = make([], last_days(days, at(f"{start} 00:00") + days * DAY, UTC))
        assert ", ".join(texts(page, ".//svg[@class='axis']/text")) == labels


# --- Evidence ------------------------------------------------------------------------------------------


def test_the_same_input_gives_the_same_page_but_for_the_line_that_says_when() -> None:
    first, second = make(some_site()).splitlines(), make(some_site()[::-1], facts={"made": MADE + DAY}).splitlines()
    (different,) = (one for one, other in zip(first, second, strict=True) if one != other)
    assert different == '<p class="made">Made 2026-04-01 06:40 UTC by Backup Audit 3.0</p>'


def test_foreign_text_is_harmless_wherever_it_stands() -> None:
    failed = bad("13 18:07", EVIL)
    given: dict[str, Any] = {"site": EVIL, "policies": {EVIL: 24}, "extra_jobs": {EVIL: "Daily"}}
    given |= {"exceptions": {EVIL: ("2026-12-31", EVIL)}, "error_patterns": [re.escape(EVIL)]}
    facts: dict[str, Any] = {"name": EVIL, "backup_freq": EVIL.lower(), "engine": EVIL, "owner": EVIL}
    history = past(run("10 18:07", url=EVIL), failed, rules=settings(**given).rules, **facts)
    page = make([history], facts={"population": EVIL}, **given)
    assert not re.search(f"<script|{SECRET}|[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]", page)
    assert page.count("</style>") == 1
    assert texts(page, ".")[0].count(HARMLESS) == 15


def test_every_link_leads_to_one_place_of_the_page() -> None:
    page = make(some_site())
    places = re.findall(r' id="([^"]*)"', page)
    assert len(places) == len(set(places))
    links = set(re.findall(r'href="([^"]*)"', page))
    assert {"#c0", "#c1", "#grid"} <= links <= {f"#{place}" for place in places}


def test_the_program_writes_the_page_with_what_it_knows_of_the_site(sqlite_site: Site) -> None:
    sqlite_site.config(site="lab", **BERLIN)
    c_id = sqlite_site.container("sales")
    sqlite_site.run(c_id, "2026-03-11 18:07", "2026-03-11 18:30")
    sqlite_site.run(c_id, "2026-03-13 18:07", "2026-03-13 18:30", error=ERROR)
    sqlite_site.row(c_id=c_id, state="end", ts=datetime(2026, 3, 13))
    file = sqlite_site.folder / "evidence.html"
    before = os.umask(0o027)
    result = sqlite_site.audit("--history", "9", "--at", NOW.isoformat(), "--all", "--html", file)
    os.umask(before)
    assert file.stat().st_mode & 0o777 == 0o640
    page = file.read_bytes()
    assert (result.status, result.err, result.out) == (0, "", f"{hashlib.sha256(page).hexdigest()}  {file}\n")
    (told,) = texts(page.decode(), ".")
    assert "The log begins 2026-03-11 19:07 CET" in told
    assert "lab, 2026-03-05 to 2026-03-14" in told
    assert "all active containers and those deleted in the period" in told
    assert "1 row of the part that was read could not be used: 0 future, 1 malformed, 0 undated" in told
    assert f"2026-03-13 19:07 CET failed: {' '.join(ERROR.split())}" in told, "in the uncovered stretch"
    made = re.search(rf"Made (\S+ \S+) CES?T by Backup Audit {re.escape(VERSION)}", told)
    assert made
    assert made[1] > "2026-03-14 08:00", "not as of the period"


def test_the_page_of_a_large_site_can_be_mailed() -> None:
    days = [NOW - n * DAY for n in range(1, 365, 2)]
    error = "error, " + "please reduce your request rate, " * 40
    failed = [bad(day, f"{day}: {error}") for day in days]
    worst = past(*failed, *(run(day - DAY - 6 * HOUR) for day in days), days=365)
    assert (len(make([worst] * 20, 365)) - len(make([], 365))) * 100 < 15_000_000, "2,000 of them"


# --- In a browser --------------------------------------------------------------------------------------


def chromium(page: Path, *options: str) -> str:
    """What a browser without a window prints when it opens the page."""
    fixed = ("--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={page.parent / 'profile'}")
    command = [str(require("chromium", "chromium")), *fixed, *options, page.as_uri()]
    return subprocess.run(command, capture_output=True, encoding="utf-8", check=True, timeout=120).stdout


def test_the_page_loads_nothing_and_runs_nothing() -> None:
    page = make(some_site())
    assert not re.search(r"<(script|link|img|iframe|object|embed)\b|\s(on\w+|src|srcset)=|url\(|@import|https?:", page)
    (style,) = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'sha256-{digest}'\"" in page


AXE = """<script>{}</script><script>axe.run().then(({{passes, violations}}) => document.body.innerText = "<result>" +
    JSON.stringify([passes.map(rule => rule.id), violations, document.documentElement.scrollWidth]))</script></body>"""


@pytest.mark.slow
def test_axe_and_html_validate_find_nothing(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    """On the page of a site with a container of each kind, one with an evil name."""
    histories = [past(*nights(*range(1, n)), bad("13 20:00"), days=60, name=f"db-{n}", c_id=n) for n in (2, 9)]
    histories += [past(bad("13 18:07"), days=60, name=EVIL, c_id=50), *some_site(60)]
    exceptions = {"db-2": ("2026-12-31", "frozen")}
    page = make(histories, 60, site="<b>&", exceptions=exceptions, dumps_kept_days=9)
    cache = getattr(pytestconfig, "cache", None)  # keeps them between test runs, for npm takes longer than both
    folder = cache.mkdir(" ".join(VALIDATORS)) if cache else tmp_path
    installed = folder / "node_modules"
    if not (installed / ".package-lock.json").exists():  # which npm writes at the end
        options = ("--no-package-lock", "--ignore-scripts", "--no-audit")
        command = [str(require("npm", "npm")), "install", *options, *VALIDATORS]
        npm = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=300)
        if npm.returncode:
            give_up(f"npm cannot install {VALIDATORS}: {npm.stderr.strip()[-300:]}")
    file = tmp_path / "evidence.html"
    script = AXE.format((installed / "axe-core/axe.min.js").read_text("utf-8"))
    dark_screen = "screen and (prefers-color-scheme: dark)"
    assert dark_screen in page
    for width, dark in ((1280, "print"), (500, "all")):
        seen = page.replace(dark_screen, dark).replace("Content-Security-Policy", "x")
        file.write_text(seen.replace("</body>", script), "utf-8")
        shown = chromium(file, f"--window-size={width},900", "--virtual-time-budget=60000", "--dump-dom")
        passes, violations, needed = json.loads(html.unescape(shown.partition("&lt;result&gt;")[2].partition("<")[0]))
        assert violations == []
        assert {"color-contrast", "html-has-lang", "svg-img-alt"} <= set(passes)
        assert needed <= width
    file.write_text(page, "utf-8")
    command = [str(installed / ".bin/html-validate"), str(file)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (answer.returncode, answer.stdout + answer.stderr) == (0, "")


def test_prints_every_row_whole_under_its_headings(tmp_path: Path) -> None:
    page, pdf = tmp_path / "evidence.html", tmp_path / "evidence.pdf"
    names = [f"first-{n} {'in the middle ' * (n % 4)} last-{n}" for n in range(80)]
    histories = [past(*nights(12), name=name, c_id=n) for n, name in enumerate(names)]
    page.write_text(make(histories, 3, site="lab"), "utf-8")
    chromium(page, "--no-pdf-header-footer", f"--print-to-pdf={pdf}")
    text = subprocess.check_output([require("pdftotext", "poppler-utils"), "-layout", pdf, "-"], encoding="utf-8")
    sheets = text.split("\f")[:-1]
    assert all("Backup evidence, lab, 2026-03-11 to 2026-03-14" in sheet for sheet in sheets)
    assert re.search(rf"Signature.*{len(sheets)} / {len(sheets)}\s*$", sheets[-1], re.DOTALL)
    begun, ended = ([re.findall(rf"{word}-\d+", sheet) for sheet in sheets] for word in ("first", "last"))
    assert [len(found) for found in begun] == [len(found) for found in ended]
    assert sum(map(len, begun)) == 1 + 3 * 80  # the result, the rows of two tables, the headings of the stretches
    continued = (sheet for sheet, found in zip(sheets[1:], begun[1:], strict=True) if found)
    assert all(re.search("c_id|Failed runs", sheet) for sheet in continued)
    assert not any(re.search(r"% covered\s+Backup evidence", sheet) for sheet in sheets)  # a heading without its rows
