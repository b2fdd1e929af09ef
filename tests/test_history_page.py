"""The evidence page: its figures, its safety, and what a browser and validators make of it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import date, datetime, timedelta, timezone, tzinfo
from pathlib import Path
from typing import Any, NoReturn
from xml.etree import ElementTree
from zoneinfo import ZoneInfo

import pytest

from audit.history import ContainerHistory, Period, Stretch, look_back, parse_period
from audit.history_page import STRETCHES_SHOWN, PageFacts, history_page
from audit.policy import Container, Rules, Run, Status
from tests.browser import Browser, running_browser
from tests.builders import Site
from tests.programs import find_program

UTC = timezone.utc
DAY = timedelta(days=1)
HOUR = timedelta(hours=1)
START = datetime(2026, 1, 1, tzinfo=UTC)
MADE = datetime(2026, 4, 1, 6, 40, 12, tzinfo=UTC)
RULES = Rules(grace=timedelta(0))
VALIDATORS = Path(__file__).with_name("validators")
EVIL = "</style><script>alert(1)</script>\"'&amp; $style \u202etxt\u200f \x1b[31m"
RIGHT_TO_LEFT = "שרה"


def past(name: str, days: str, c_id: int = 7, policy: str = "Daily", error: str = "upload failed") -> ContainerHistory:
    """A container's past, a letter a day.

    `o` is covered by a good run at midnight; `f` and `n` are not covered at all, `f` with a failed run at midnight;
    `b` is before its creation.
    """
    created = START + (days.count("b") or -9) * DAY
    runs = []
    for at, letter in zip((START + n * DAY for n in range(len(days))), days, strict=True):
        if letter in "of":
            runs.append(Run(at, f"{at:%Y%m%d}", ended=at, error=f"{error} {at:%Y-%m-%d}" if letter == "f" else None))
    return look_back(Container(c_id, name, policy, created=created), runs, period(len(days)), RULES)


def period(days: int, start: date = date(2026, 1, 1), zone: tzinfo = UTC, label: str = "2026-Q1") -> Period:
    whole = parse_period(f"{start}..{start + (days - 1) * DAY}", datetime(2099, 1, 1, tzinfo=UTC), zone)
    return replace(whole, label=label)


def facts(**more: Any) -> PageFacts:
    known = {"site": "lab", "database": "mydb_admin on db:32009", "version": "2.0", "made": MADE, "rules": RULES}
    return PageFacts(**{**known, **more})


def make(histories: Sequence[ContainerHistory], days: int = 10, **more: Any) -> str:
    return history_page(histories, period(days), facts(**more))


def body(page: str) -> ElementTree.Element:
    """The body, which is well-formed XML as well."""
    return ElementTree.fromstring(page[page.index("<body>") : page.index("</html>")])  # noqa: S314  # our own page


def text_of(element: ElementTree.Element) -> str:
    return " ".join("".join(element.itertext()).split())


def rows(page: str, table: str) -> list[list[str]]:
    """The text of a table's cells, row by row, without the column headings."""
    return [[text_of(cell) for cell in row] for row in body(page).findall(f".//table[@class='{table}']/tbody/tr")]


def paths(page: str) -> dict[str, str]:
    """The lines of the days of a page's containers, by their class."""
    return {path.attrib["class"]: path.attrib["d"] for path in body(page).findall(".//td/svg/path")}


SMALL = (
    past("sales", "oooooooooo", 1),
    replace(past("survey", "ooffnooooo", 2), status=Status.FAILED, median_duration=timedelta(seconds=1051)),
    past("wiki", "bbbooooonn", 3),
    past("sensor <data>", "oooofooooo", 4, error="password=hunter2 rejected:"),
    replace(past("old", "oooooooooo"), container=Container(5, RIGHT_TO_LEFT, deleted=True)),
    past("typo", "nnnnnnnnnn", 6, policy="Dialy"),
    past("scratch", "nnnnnnnnnn", 7, policy="Never"),
)


# --- Contents ------------------------------------------------------------------------------------------


def test_lists_the_worst_container_first_and_the_whole_population() -> None:
    table = rows(make(SMALL), "history")
    assert [row[0] for row in table] == [
        "All containers",
        *("3 containers not covered all the time", "survey", "wiki", "sensor <data>"),
        *("2 containers covered all the time", "sales", f"{RIGHT_TO_LEFT} (deleted)"),
        *("2 containers not judged", "scratch", "typo"),
    ]
    assert table[2] == ["survey", "70.0 %", "", "2", "1", "3.0 d", "4.0 d", "18 min", "Daily", "failed", "2"]
    assert table[0] == ["All containers", "87.2 %", "", "3", "3", "6.0 d", "4.0 d", "", "", "", ""]
    assert table[-1] == ["typo", "–", "no valid backup policy", "–", "–", "–", "–", "–", "Dialy", "no_policy", "6"]


def test_counts_every_status_and_all() -> None:
    counts = {row[0]: row[2] for row in rows(make(SMALL), "statuses")}
    assert set(counts) == {status.value for status in Status} | {"all"}
    some = {name: count for name, count in counts.items() if count != "0"}
    assert some == {"missed": "4", "failed": "1", "no_policy": "1", "exempt": "1", "all": "7"}


def test_says_what_matters_in_the_result() -> None:
    figures = body(make(SMALL)).findall(".//dl[@class='figures']/div")
    assert {text_of(figure[0]): text_of(figure[1]) for figure in figures} == {
        "of the time covered": "87.2 %",
        "of 5 containers covered all the time": "2",
        "not covered, all containers together": "6.0 d",
        "of work could have been lost, at worst (survey)": "4.0 d",
        "containers not covered on the worst day, 2026-01-05": "2",
    }


def test_lists_each_stretch_with_its_failed_runs() -> None:
    assert rows(make(SMALL), "stretches") == [
        ["survey 70.0 % covered"],
        [
            *("2026-01-03 00:00 UTC", "2026-01-06 00:00 UTC", "3.0 d"),
            "2026-01-03 00:00 UTC failed, and 1 more until 2026-01-04 00:00 UTC: upload failed 2026-01-03",
        ],
        ["wiki 71.4 % covered"],
        ["2026-01-09 00:00 UTC", "2026-01-11 00:00 UTC", "48.0 h", "none"],
        ["sensor <data> 90.0 % covered"],
        [
            *("2026-01-05 00:00 UTC", "2026-01-06 00:00 UTC", "24.0 h"),
            "2026-01-05 00:00 UTC failed: password=***** rejected: 2026-01-05",
        ],
    ]


@pytest.mark.parametrize(
    ("errors", "shown"),
    [
        ([None, None], "00:00 stalled, and 1 more until 01:00"),
        (["x 1:", None, "x 2:"], "00:00 failed: x 1: | 01:00 stalled | 02:00 failed: x 2:"),
        (
            ["x:", "y:", "z:", "z:", "x:"],
            "00:00 failed: x: | 01:00 failed: y: | 02:00 failed, and 1 more until 03:00: z: | and 1 later run",
        ),
        (["x" * 200], f"00:00 failed: {'x' * 200}"),
        (["x" * 201], f"00:00 failed: {'x' * 197}..."),
    ],
)
def test_lists_three_kinds_of_failures_of_a_stretch(errors: list[str | None], shown: str) -> None:
    runs = tuple(Run(START + n * HOUR, str(n), error=error) for n, error in enumerate(errors))
    page = make([replace(past("a", "n"), stretches=(Stretch(START, START + DAY, runs),))], 1)
    items = [text_of(item) for item in body(page).iter("li")]
    assert " | ".join(items).replace("2026-01-01 ", "").replace(" UTC", "") == shown


def test_shows_the_longest_stretches_if_there_is_no_room_for_all() -> None:
    half = STRETCHES_SHOWN // 2
    many = [Stretch(START + n * HOUR, START + n * HOUR + n * timedelta(seconds=1), ()) for n in range(1, half + 2)]

    def shown(*counts: int) -> list[list[str]]:
        return rows(make([replace(past("a", "n"), stretches=tuple(many[:count])) for count in counts], 1), "stretches")

    assert len(shown(half, half)) == STRETCHES_SHOWN + 2
    assert len(shown(half + 1, half - 1)) == STRETCHES_SHOWN + 2
    crowded = shown(half + 1, half)
    assert len(crowded) == STRETCHES_SHOWN + 2
    assert crowded[0][0].endswith(f" covered, the {half:,} longest of {half + 1:,} stretches")
    assert [row[0] for row in crowded[1:3]] == ["2026-01-01 02:00 UTC", "2026-01-01 03:00 UTC"]


@pytest.mark.parametrize(
    ("late", "ratio", "uncovered"),
    [
        (timedelta(0), "100.0 %", "0 h"),
        (timedelta(seconds=1), "99.9 %", "1 s"),
        (timedelta(days=2), "80.0 %", "48.0 h"),
        (timedelta(days=2, hours=3), "78.7 %", "2.1 d"),
        (timedelta(days=10), "0.0 %", "10.0 d"),
    ],
)
def test_rounds_a_ratio_down_and_shows_time_with_its_unit(late: timedelta, ratio: str, uncovered: str) -> None:
    ends = [START + late + n * DAY for n in range(11)]
    runs = [Run(end, str(end), ended=end) for end in ends]
    history = look_back(Container(1, "a", "Daily", created=START - DAY), runs, period(10), RULES)
    row = rows(make([history]), "history")[2]
    assert (row[1], row[5]) == (ratio, uncovered)


@pytest.mark.parametrize(
    ("start", "days", "labels"),
    [
        (date(2026, 3, 28), 5, ["28 Mar", "29 Mar", "30 Mar", "31 Mar", "1 Apr"]),
        (date(2026, 3, 28), 6, ["30 Mar"]),
        (date(2026, 3, 1), 35, ["2 Mar", "9 Mar", "16 Mar", "23 Mar", "30 Mar"]),
        (date(2026, 3, 1), 36, ["2 Mar", "16 Mar", "30 Mar"]),
        (date(2026, 3, 2), 56, ["2 Mar", "16 Mar", "30 Mar", "13 Apr"]),
        (date(2026, 3, 2), 57, ["Apr"]),
        (date(2025, 9, 2), 200, ["Oct", "Nov", "Dec", "2026", "Feb", "Mar"]),
        (date(2025, 9, 2), 201, ["Oct", "2026"]),
        (date(2020, 6, 1), 3660, ["2022", "2024", "2026", "2028", "2030"]),
    ],
)
def test_labels_the_axis_as_there_is_room(start: date, days: int, labels: list[str]) -> None:
    page = history_page([past("a", "o")], period(days, start), facts())
    assert [text.text for text in body(page).findall(".//svg[@class='axis']/text")] == labels


def test_draws_one_line_for_days_with_the_same_outcome() -> None:
    page = make([past("a", "bbooofnnof")])
    assert 'aria-label="4 of 8 days ok"' in page
    marks = paths(page)
    assert marks == {"b": marks["b"], "o": "M2 4h3M8 4h1", "f": "M5 4h1M9 4h1", "n": "M6 6h2"}


def test_draws_a_container_that_was_deleted_up_to_its_end() -> None:
    page = make([past("a", "oof")])
    assert paths(page)["f"] == "M2 4h1"
    assert page.count('viewBox="0 0 10 8"') == 2


@pytest.mark.parametrize(("good_days", "line"), [(599, "M599 4h1"), (3659, "M3659 4h6.1")])
def test_a_bad_day_is_visible_among_thousands(good_days: int, line: str) -> None:
    assert paths(make([past("a", "o" * good_days + "f")], good_days + 1))["f"] == line


def test_a_bar_is_as_high_as_the_share_of_uncovered_containers() -> None:
    page = make([past(str(n), "of" if n < 5 else "oo", n) for n in range(20)], 2)
    assert paths(page)["b"] == "M1 8v-2h1V8z"
    assert 'aria-label="at most 5 of 20 containers not covered"' in page


def test_shows_what_was_asked_for_and_the_settings_that_decided() -> None:
    zone, policies = ZoneInfo("Europe/Berlin"), {"Monthly": 744 * HOUR}
    rules = Rules(zone=zone, weekly_day=6, grace=3 * HOUR, policies=policies, error_pattern=re.compile("<boom>"))
    page = history_page([past("a", "o")], period(1, zone=zone), facts(rules=rules, population="lab-*"))
    assert {row[0]: row[1] for row in rows(page, "settings")} == {
        "window_hours": "24 h",
        "grace_hours": "3 h",
        "max_runtime_hours": "24 h",
        "weekly_day": "Sunday",
        "db_timezone": "Europe/Berlin",
        "policies": "Monthly 31 days",
        "error_pattern": "<boom>",
    }
    assert [text_of(fact) for fact in body(page).findall("header/dl/div/dd")] == [
        "2026-01-01 00:00 CET to 2026-01-02 00:00 CET, 1 day",
        "mydb_admin on db:32009",
        "lab-*",
        "Europe/Berlin",
    ]


@pytest.mark.parametrize("histories", [[], SMALL[-1:]])
def test_a_site_without_anything_to_judge_has_a_page(histories: list[ContainerHistory]) -> None:
    page = make(histories, site=None)
    assert rows(page, "stretches") == [["none"]]
    assert rows(page, "history")[0][1] == "–"
    assert "<title>Backup evidence, 2026-Q1</title>" in page


# --- Evidence ------------------------------------------------------------------------------------------


def test_the_same_input_gives_the_same_page_but_for_the_line_that_says_when() -> None:
    first, second = make(SMALL).splitlines(), make(SMALL[::-1], made=MADE + DAY).splitlines()
    (different,) = (one for one, other in zip(first, second, strict=True) if one != other)
    assert different.startswith('<p class="made">')
    assert ">2026-04-01 06:40 UTC</time> by Backup Audit 2.0<" in different


@pytest.mark.parametrize("where", ["name", "error", "policy", "label", "site", "database", "population"])
def test_foreign_text_is_escaped(where: str) -> None:
    evil = {where: EVIL + " password=hunter2"}
    history = past(evil.get("name", "a"), "f", error=evil.get("error", "x:"))
    history = replace(history, policy=evil.get("policy", "Daily"))
    about = evil if where in ("site", "database", "population") else {}
    page = history_page([history], period(1, label=evil.get("label", "2026")), facts(**about))
    assert "<script" not in page
    assert "hunter2" not in page
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]", page)
    assert page.count("</style>") == 1
    shown = "</style><script>alert(1)</script>\"'&amp; $style \\u202etxt\\u200f \\x1b[31m password=*****"
    assert shown in text_of(body(page))


def test_foreign_text_is_isolated_from_the_direction_of_ours() -> None:
    page = make([past(RIGHT_TO_LEFT, "f", error=RIGHT_TO_LEFT)], 1)
    assert page.count(RIGHT_TO_LEFT) == page.count(f"<bdi>{RIGHT_TO_LEFT}") == 4  # result, row, stretches, message


def test_every_link_leads_to_one_place_of_the_page() -> None:
    page = make(SMALL)
    places = re.findall(r' id="([^"]*)"', page)
    assert len(places) == len(set(places))
    links = set(re.findall(r'href="([^"]*)"', page))
    assert {"#c0", "#c1", "#c2", "#grid"} <= links <= {f"#{place}" for place in places}


# --- In a browser --------------------------------------------------------------------------------------


def need(*names: str) -> Path:
    """The first of these programs that is installed. Without one the test is skipped, but fails under CI."""
    found = [path for path in map(find_program, names) if path]
    if not found:
        give_up(f"{names[0]} is not installed (Debian: chromium, poppler-utils, nodejs, npm)")
    return found[0]


def give_up(reason: str) -> NoReturn:
    if os.environ.get("CI", "").lower() in ("true", "1"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with running_browser(need("chromium", "chromium-browser"), tmp_path_factory.mktemp("browser")) as running:
        yield running


@pytest.fixture(scope="module")
def validators(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with html-validate and axe-core."""
    folder = tmp_path_factory.mktemp("validators")
    for file in VALIDATORS.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    command = [str(need("npm")), "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    npm = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=300)
    if npm.returncode:
        give_up(f"npm cannot install html-validate and axe-core: {npm.stderr.strip()[-300:]}")
    return folder


@pytest.fixture(scope="module")
def evidence(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a site with 20 containers, some with evil names."""
    histories = [past(f"db-{n}", f"{'o' * 4 * n}fn{'o' * 88}"[:90], n) for n in range(1, 16)]
    histories += [past(EVIL, "b" * 20 + "f" * 70, 50, error=EVIL), past(RIGHT_TO_LEFT, "o" * 90, 51), *SMALL[4:]]
    path = tmp_path_factory.mktemp("evidence") / "evidence.html"
    path.write_text(make(histories, 90, site="<b>&"), "utf-8")
    return path


def test_nothing_leaves_the_page_and_nothing_is_said_on_the_console(browser: Browser, evidence: Path) -> None:
    browser.open(evidence)
    assert browser.requests == [evidence.as_uri()]
    assert browser.console == []
    assert browser.evaluate("document.scripts.length") == 0
    assert browser.evaluate("getComputedStyle(document.body).fontVariantNumeric") == "tabular-nums"


def test_the_page_forbids_loading_and_scripts(browser: Browser, evidence: Path) -> None:
    browser.open(evidence)
    browser.evaluate("document.body.setAttribute('onclick', 'document.title = 1'), document.body.click()")
    browser.evaluate("document.body.append(Object.assign(document.createElement('img'), {src: 'other.png'}))")
    assert str(browser.console).count("Content Security Policy") >= 2
    assert browser.evaluate("document.title").startswith("Backup evidence")


def test_the_figures_in_the_browser_are_those_of_the_json(browser: Browser, sqlite_site: Site) -> None:
    for name, nights in {"a<b>": range(1, 20), "often & late": (2, 3, 7, 11), "none": ()}.items():
        c_id = sqlite_site.container(name, created="2026-01-05 12:00" if name == "none" else "2025-01-01 00:00")
        for night in nights:
            sqlite_site.run(c_id, f"2026-01-{night:02} 18:07:31", f"2026-01-{night:02} 18:{night + 10}:00")
    sqlite_site.container("never", "Never")
    asked = ("--at", "2026-01-15 07:00", "--history", "2026-01-02..2026-01-13")
    page = sqlite_site.folder / "evidence.html"
    assert sqlite_site.audit(*asked, "--html", page).status == 0
    document = json.loads(sqlite_site.audit(*asked, "--json").out)
    browser.open(page)
    shown = browser.evaluate(
        "[...document.querySelectorAll('.history tbody tr:not(.group)')].map(row => [row.cells[0].innerText,"
        " ...[1, 5, 6, 7].map(n => row.cells[n].querySelector('data')).map(data => data && Number(data.value))])"
    )
    figures = ("name", "ratio", "uncovered_seconds", "worst_age_seconds", "median_duration_seconds")
    expected = [[container[figure] for figure in figures] for container in document["containers"]]
    judged = [container for container in expected if container[1] is not None]
    assert sorted(shown[1:]) == sorted([*judged, ["never", None, None, None, None]])
    assert len(judged) == 3
    assert shown[0][1:3] == [document["history"]["ratio"], document["history"]["uncovered_seconds"]]


def test_the_marks_of_days_differ_in_shape(browser: Browser, evidence: Path) -> None:
    browser.open(evidence)
    heights = "['o', 'f', 'n'].map(mark => getComputedStyle(document.querySelector('path.' + mark)).strokeWidth)"
    assert browser.evaluate(heights) == ["1.6px", "8px", "4px"]


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (400, "light")])
def test_axe_finds_nothing(browser: Browser, evidence: Path, validators: Path, width: int, scheme: str) -> None:
    browser.open(evidence)
    browser.look(width, scheme)
    browser.evaluate((validators / "node_modules/axe-core/axe.min.js").read_text("utf-8"))
    results = browser.evaluate("axe.run().then(({passes, violations}) => ({passes, violations}))")
    assert results["violations"] == []
    assert {"color-contrast", "html-has-lang", "svg-img-alt"} <= {rule["id"] for rule in results["passes"]}
    assert browser.evaluate("document.documentElement.scrollWidth") <= width


def test_html_validate_finds_nothing(evidence: Path, validators: Path) -> None:
    (validators / "evidence.html").write_bytes(evidence.read_bytes())
    command = [str(validators / "node_modules/.bin/html-validate"), "evidence.html"]
    answer = subprocess.run(command, cwd=validators, capture_output=True, text=True, check=False, timeout=60)
    assert (answer.returncode, answer.stdout + answer.stderr) == (0, "")


def test_prints_every_row_whole_under_its_headings(browser: Browser, tmp_path: Path) -> None:
    pdftotext = need("pdftotext")
    page, pdf = tmp_path / "evidence.html", tmp_path / "evidence.pdf"
    names = [f"first-{n} {'in the middle ' * (n % 4)} last-{n}" for n in range(300)]
    page.write_text(make([past(name, "of", n) for n, name in enumerate(names)], 2), "utf-8")
    browser.open(page)
    browser.print_to(pdf)
    text = subprocess.run([str(pdftotext), "-layout", str(pdf), "-"], capture_output=True, check=True).stdout.decode()
    sheets = text.split("\f")[:-1]
    assert all("Backup evidence, lab, 2026-Q1" in sheet for sheet in sheets)
    assert f"{len(sheets)} / {len(sheets)}" in sheets[-1]
    assert "Signature" in sheets[-1]
    begun, ended = ([re.findall(rf"{word}-\d+", sheet) for sheet in sheets] for word in ("first", "last"))
    assert [len(found) for found in begun] == [len(found) for found in ended]
    assert sum(map(len, begun)) == 1 + 300 + 300  # the result, the rows, the headings of the stretches
    assert all(re.search("c_id|Failed runs", sheet) for sheet, found in zip(sheets, begun, strict=True) if found)
    assert not any(re.search(r"% covered\s+Backup evidence", sheet) for sheet in sheets)  # a heading without its rows


@pytest.mark.slow
@pytest.mark.parametrize("days", ["o" * 180 + "fon" + "o" * 182, "fo" * 182 + "f"], ids=["ordinary", "worst"])
def test_the_page_of_a_large_site_opens_quickly(browser: Browser, tmp_path: Path, days: str) -> None:
    one = past("", days, error="ServiceUnavailable: " + "reduce your request rate, " * 40)
    histories = [replace(one, container=Container(n, f"container-{n}")) for n in range(2000)]
    begun = time.perf_counter()
    page = tmp_path / "evidence.html"
    page.write_text(make(histories, 365), "utf-8")
    assert time.perf_counter() - begun < 20
    assert page.stat().st_size < 15_000_000
    browser.open(page)
    assert browser.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd") < 10_000  # milliseconds
    assert browser.evaluate("document.querySelectorAll('.history tbody tr:not(.group, .all)').length") == 2000
