"""What the pages and the code refer to exists, the examples of docs/rules.md are right, and `make monitoring` works."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from audit.messages import Meaning, Said
from audit.policy import HOUR, UTC, Container, Rules, Run, Status, judge
from tests.builders import TOP

PAGES = sorted(path for path in (*TOP.glob("*.md"), *TOP.glob("*/*.md")) if not path.parent.name.startswith("."))
FOLDERS = ("", ".ci/", "audit/", "audit/reports/", "bench/", "demo/", "deploy/", "docs/", "monitoring/", "tests/")
SUFFIXES = {".md", ".py", ".sql", ".yml", ".html", ".css", ".example", ".tmpl", ".service", ".timer", ".conf"}
FILES = sorted(
    path
    for folder in FOLDERS
    for path in TOP.glob(f"{folder}*")
    if path.suffix in SUFFIXES or path.name in ("Makefile", "crontab", "run")
)
PAGE = "docs/rules.md"
RULES = (TOP / PAGE).read_text(encoding="utf-8")
MADE_BY_THE_DEMO = ("demo/evidence.html", "demo/admin.db", "demo/textfiles")


def headings(page: Path) -> list[str]:
    """The headings of a page, as they are printed."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return [heading.strip() for heading in re.findall(r"^#+ +(.+)$", text, re.MULTILINE)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(TOP)))
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", page.read_text(encoding="utf-8")):
        file, _, fragment = target.partition("#")
        other = (page.parent / file).resolve() if file else page
        assert other.exists(), target
        if fragment:
            anchors = [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings(other)]
            assert fragment in anchors, target


def test_every_reference_leads_somewhere() -> None:
    sections, missing = set(headings(TOP / PAGE)), []
    for file in FILES:
        text = file.read_text(encoding="utf-8")
        missing += [name for name in re.findall(rf'{re.escape(PAGE)},\s+"(.+?)"', text) if name not in sections]
        missing += re.findall(r"\bSPE" r"C\b|\bDB4SCI\.md", text)  # pages that only its makers have
        if file.name != "CHANGELOG.md":  # it also tells of files that are gone
            paths = re.findall(r"(?<![\w/.@-])((?:audit|bench|demo|deploy|docs|monitoring|tests)/[\w/@.-]*\w)", text)
            missing += [path for path in paths if not path.startswith(MADE_BY_THE_DEMO) and not (TOP / path).exists()]
        assert missing == [], file.name


def test_the_table_of_files_is_complete() -> None:
    text = (TOP / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([\w/]+\.py)`", text))
    program = {str(path.relative_to(TOP)) for path in (*TOP.glob("*.py"), *TOP.glob("audit/*.py"))}
    reports = {path.name for path in TOP.glob("audit/reports/*.py")}
    assert (program | reports) - named == {"audit/__init__.py", "__init__.py"} | ({"mydb_config.py"} & program)


SAID = {
    "ok": Said(Meaning.FINE, None),
    "failed": Said(Meaning.ERROR, "pg_dump: error: query failed"),
    "unrecognised": Said(Meaning.UNRECOGNISED, "Disk is 100% used"),
}
EXAMPLES = re.findall(r"^\| (Daily|Weekly) \| (.+?) \| (.+?) \| `(\w+)` \|", RULES, re.MULTILINE)


def moment(text: str) -> datetime:
    """A moment of 2026, from `03-13 18:07`."""
    return datetime.fromisoformat(f"2026-{text}").replace(tzinfo=UTC)


def runs_of(text: str) -> Iterator[Run]:
    """The runs of one entry, such as `ok 03-13 18:07-18:30`; without an end they took 23 minutes."""
    if nights := re.fullmatch(r"ok (\S+) on 03-(\d\d) to 03-(\d\d)", text):
        for night in range(int(nights[2]), int(nights[3]) + 1):
            yield from runs_of(f"ok 03-{night:02} {nights[1]}")
        return
    found = re.fullmatch(r"(\w+) (\d\d-\d\d) (\d\d:\d\d)(?:-(\d\d:\d\d))?", text)
    assert found, text
    word, day, begin, end = found.groups()
    started = moment(f"{day} {begin}")
    ended = moment(f"{day} {end}") if end else started + timedelta(minutes=23)
    yield Run(started, text) if word == "begun" else Run(started, text, ended=ended, said=SAID[word])


@pytest.mark.parametrize(("policy", "told", "now", "status"), EXAMPLES)
def test_the_examples_of_the_rules_are_right(policy: str, told: str, now: str, status: str) -> None:
    facts = {"created": "01-01 00:00", "state": "running"}
    runs = []
    for entry in told.split("; "):
        word, _, rest = entry.partition(" ")
        if word in facts:
            facts[word] = rest
        else:
            runs += list(runs_of(entry))
    container = Container(7, "sales", policy, state=facts["state"], created=moment(facts["created"]))
    rules = Rules(window=24 * HOUR, grace=6 * HOUR, max_runtime=12 * HOUR)
    for each in now.split(" to "):
        assert judge(container, runs, moment(each), rules).status.value == status


def test_the_rules_name_every_status_in_its_order_and_most_by_example() -> None:
    shown = re.findall(r"^\| `(\w+)` \| .+ \| (\d) \|$", RULES, re.MULTILINE)
    assert shown == [(status.value, str(status.severity)) for status in Status]
    assert len(EXAMPLES) == 22
    assert {example[3] for example in EXAMPLES} == {status.value for status in Status} - {"no_policy", "exempt"}


def test_make_monitoring_writes_copies_that_lead_to_the_sites_own_runbook(tmp_path: Path) -> None:
    def make(**variables: str) -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if name not in ("RUNBOOK", "OUT", "MAKEFLAGS")}
        command = ["make", "monitoring", *(f"{name}={value}" for name, value in variables.items())]
        options: dict[str, Any] = {"cwd": TOP, "env": environment, "umask": 0o077, "encoding": "utf-8"}
        return subprocess.run(command, capture_output=True, check=False, **options)

    out, runbook = tmp_path / "my rules", "https://wiki.example.org/backups?page=a&v=1"
    for given in ({"RUNBOOK": runbook}, {"OUT": str(out)}):
        refused = make(**given)
        assert refused.returncode == 2
        assert "usage: make monitoring RUNBOOK=" in refused.stderr
    assert list(tmp_path.iterdir()) == []
    made = make(RUNBOOK=runbook, OUT=str(out))
    assert (made.returncode, made.stderr) == (0, "")
    files = [path for path in out.rglob("*") if path.is_file()]
    assert {path.stat().st_mode & 0o777 for path in files} == {0o644}, "Prometheus reads them"
    assert [path.name for path in out.glob("*.yml")] == ["backup_audit.yml"], "it may load all of OUT/*.yml"
    copies = {path.name: path.read_text("utf-8") for path in files}
    assert copies.keys() == {"backup_audit.yml", "dashboard.json", "alertmanager.example.yml", "mail.tmpl"}
    for name, copy in copies.items():
        original = (TOP / "monitoring" / name.replace("backup_audit", "alerts")).read_text("utf-8")
        assert copy == original.replace("https://runbook.example.org/README.md", runbook)
    assert f"{runbook}#mydbbackupauditfailed" in copies["backup_audit.yml"]
