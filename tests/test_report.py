"""What people read: the table, the details of a container, JSON, exit statuses (SPEC section 4)."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
import time
import unicodedata
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

import pytest

from backup_audit import VERSION
from models import ContainerState
from policy import Status
from report import clean, mask
from tests.builders import NOW, SECRET, TOP, Result, Site, series

AT = NOW.isoformat()
ERROR = "pg_dump: error: query failed: ERROR:  permission denied for table visits"
ESCAPE = "\x1b["
WORST_FIRST = [2, 2, 2, 2, 1, 1, 1, 0, 0, 0]


def of_every_status(site: Site) -> dict[str, int]:
    """A site in which every status occurs once; the c_ids by status, which is also the container's name."""
    facts: dict[str, dict[str, Any]] = {status.value: {} for status in Status}
    facts["no_policy"] = {"policy": "Fortnightly"}
    facts["exempt"] = {"policy": "Never"}
    facts["new"] = {"created": "2026-03-14 01:00"}
    facts["paused"] = {"state": "maintenance"}
    ids = {status: site.container(f"c-{status}", **given) for status, given in facts.items()}
    site.run(ids["running"], "2026-03-14 06:50")
    site.run(ids["failed"], "2026-03-14 02:00", "2026-03-14 02:01", error=ERROR)
    site.run(ids["stalled"], "2026-03-12 18:07")
    site.run(ids["ok"], "2026-03-13 18:07", "2026-03-13 18:30")
    site.run(ids["paused"], "2026-03-10 18:07", "2026-03-10 18:30")
    site.run(ids["late"], "2026-03-13 05:00", "2026-03-13 05:30")
    site.run(ids["missed"], "2026-03-12 18:07", "2026-03-12 18:30")
    return ids


def good_site(site: Site, *names: str) -> list[int]:
    ids = [site.container(name) for name in names or ("sales", "trials")]
    for c_id in ids:
        site.run(c_id, "2026-03-13 18:07", "2026-03-13 18:30")
    return ids


def rows_of(out: str) -> dict[str, str]:
    """The rows of the table by the status that they begin with."""
    statuses = {status.value for status in Status}
    lines = [re.sub(r"\x1b\[[\d;]*m", "", line) for line in out.splitlines()]
    return {line.split()[0]: line for line in lines if line.split() and line.split()[0] in statuses}


def summary_of(out: str) -> str:
    """The summary, with which the report ends; it may go over two lines."""
    start = re.search(r"\d+ containers?: [^:]*$", " ".join(out.split()))
    return start[0] if start else ""


def columns(text: str) -> int:
    """The columns of a terminal that a text takes."""
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in ("W", "F") else 1 for c in text
    )


def on_terminal(site: Site, *argv: str, env: Mapping[str, str] | None = None, width: int = 80) -> Result:
    """Run the program with a terminal for its stdout."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    received: list[bytes] = []

    def read() -> None:
        while True:
            try:
                chunk = os.read(master, 4096)
            except OSError:  # how Linux says that the other side is closed
                return
            if not chunk:
                return
            received.append(chunk)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        done = site.process(
            *argv,
            env={"TERM": "xterm", **(env or {})},
            capture_output=False,
            stdout=slave,
            stderr=subprocess.PIPE,
        )
    finally:
        os.close(slave)
        reader.join()
        os.close(master)
    return Result(done.returncode, b"".join(received).decode("utf-8").replace("\r\n", "\n"), done.stderr)


# --- The table -----------------------------------------------------------------------------------------


def test_the_table_fits_80_columns(site: Site) -> None:
    of_every_status(site)
    for number in range(20):
        good_site(site, f"clinical-trial-{number}")
    site.container("assay_results_2024", "Weekly", created="2026-03-13")
    result = site.audit("-v", "--at", AT)
    heading, *lines = result.out.splitlines()  # the heading names the database, by its path here
    assert heading.endswith("2026-03-14 07:00 UTC")
    assert [line for line in lines if columns(line) > 80 and "31 containers: " not in line] == []
    assert summary_of(result.out).startswith("31 containers: ")
    assert set(rows_of(result.out)) == {status.value for status in Status}


def test_a_row_shows_the_facts(site: Site) -> None:
    ids = of_every_status(site)
    row = rows_of(site.audit("-v", "--at", AT).out)["late"].split()
    assert row == ["late", str(ids["late"]), "c-late", "Daily", "2026-03-13", "05:00", "2026-03-14", "05:00"]


def test_the_worst_comes_first(site: Site) -> None:
    of_every_status(site)
    order = list(rows_of(site.audit("-v", "--at", AT).out))
    assert [Status(status).severity for status in order] == WORST_FIRST


def test_every_container_that_needs_attention_says_why(site: Site) -> None:
    of_every_status(site)
    lines = " ".join(site.audit("-v", "--at", AT).out.split())
    assert "no backup since 2026-03-12 18:07 UTC (36.9 h ago, due every 24 h)" in lines
    assert "pg_dump: error: query failed" in lines
    assert "Fortnightly" in lines
    assert "maintenance" in lines


def test_the_last_line_counts_the_containers_by_status(site: Site) -> None:
    ids = of_every_status(site)
    good_site(site, "another")
    summary = summary_of(site.audit("-v", "--at", AT).out)
    counted = {status: int(count) for count, status in re.findall(r"(\d+) (\w+)", summary)}
    assert counted == {"containers": 11, **dict.fromkeys(ids, 1), "ok": 2}


def test_times_are_in_the_zone_of_the_log_and_name_it(site: Site) -> None:
    site.config(db_timezone="Asia/Kathmandu")
    c_id = site.container("sales")
    site.run(c_id, "2026-03-13 05:00", "2026-03-13 05:30")
    result = site.audit("--at", "2026-03-14T07:00")  # without offset: in db_timezone
    assert "2026-03-14 07:00 +0545" in result.out
    assert "no backup since 2026-03-13 05:00 +0545 (26 h ago" in " ".join(result.out.split())
    assert json.loads(site.audit("--json", "--at", "2026-03-14T07:00").out)["audit"]["now"] == "2026-03-14T01:15:00Z"
    assert "+0545" in site.audit("--at", "2026-03-14T07:00", "sales").out


# --- Whom it prints for --------------------------------------------------------------------------------


def test_cron_hears_nothing_when_all_is_well(any_site: Site) -> None:
    good_site(any_site)
    any_site.container("exempt", "Never")
    any_site.container("new", created="2026-03-14 01:00")
    assert any_site.audit("--at", AT) == Result(0, "", "")


def test_cron_hears_only_of_those_that_need_attention(any_site: Site) -> None:
    of_every_status(any_site)
    result = any_site.audit("--at", AT)
    assert result.status == 2
    assert set(rows_of(result.out)) == {status.value for status in Status if status.severity > 0}
    assert summary_of(result.out).startswith("10 containers: ")


def test_verbose_lists_all_and_quiet_nothing(site: Site) -> None:
    of_every_status(site)
    assert set(rows_of(site.audit("-v", "--at", AT).out)) == {status.value for status in Status}
    assert site.audit("-q", "--at", AT) == Result(2, "", "")
    assert site.audit("-q", "--at", AT, "c-ok") == Result(0, "", "")


def test_verbose_and_quiet_exclude_each_other(site: Site) -> None:
    result = site.audit("-v", "-q")
    assert (result.status, result.out) == (3, "")
    assert result.err.splitlines()[-1].startswith("backup_audit: ")


def test_quiet_still_prints_errors(site: Site) -> None:
    result = site.audit("-q")
    assert (result.status, result.out) == (3, "")
    assert "no active container" in result.err


def test_a_terminal_gets_all_containers_in_colour(sqlite_site: Site) -> None:
    of_every_status(sqlite_site)
    result = on_terminal(sqlite_site, "--at", AT)
    assert (result.status, result.err) == (2, "")
    assert set(rows_of(result.out)) == {status.value for status in Status}
    coloured = dict.fromkeys(re.findall(r"\x1b\[([\d;]+)m(\w+)", result.out))
    assert {word for _, word in coloured} >= {status.value for status in Status}
    colours = {Status(word).severity: colour for colour, word in coloured if word in rows_of(result.out)}
    assert len(set(colours.values())) == 3, "each severity has its own colour"
    assert result.out.count(f"{ESCAPE}0m") == len(re.findall(r"\x1b\[[1-9][\d;]*m", result.out))


@pytest.mark.parametrize("env", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_no_colour_where_it_is_not_wanted(sqlite_site: Site, env: dict[str, str]) -> None:
    of_every_status(sqlite_site)
    for argv in (("--at", AT), ("--at", AT, "c-failed")):
        result = on_terminal(sqlite_site, *argv, env=env)
        assert result.status == 2
        assert "\x1b" not in result.out
        assert result.out


def test_an_empty_no_color_does_not_count(sqlite_site: Site) -> None:
    of_every_status(sqlite_site)
    assert ESCAPE in on_terminal(sqlite_site, "--at", AT, env={"NO_COLOR": ""}).out


def test_no_colour_in_a_pipe_or_a_file(sqlite_site: Site) -> None:
    of_every_status(sqlite_site)
    for argv in (("-v", "--at", AT), ("--at", AT, "c-failed"), ("--json", "--at", AT)):
        result = sqlite_site.process(*argv, env={"TERM": "xterm"})
        assert result.returncode == 2
        assert "\x1b" not in result.stdout


def test_json_and_the_exposition_are_never_coloured(sqlite_site: Site) -> None:
    of_every_status(sqlite_site)
    for argv in (("--json", "--at", AT), ("--output", "-", "--at", AT)):
        assert "\x1b" not in on_terminal(sqlite_site, *argv).out


def test_long_names_are_cut_on_a_terminal_and_whole_in_a_mail(sqlite_site: Site) -> None:
    long, wide = "long-" * 30, "\u6570\u636e" * 20
    good_site(sqlite_site, long, wide, "sales")
    out = on_terminal(sqlite_site, "--at", AT, env={"NO_COLOR": "1"}).out
    rows = [line for line in out.splitlines() if line.startswith("ok ")]
    assert len(rows) == 3
    assert [row for row in rows if columns(row) > 80] == []
    mail = sqlite_site.audit("-v", "--at", AT).out
    assert long in mail
    assert wide in mail


def test_wide_and_combining_characters_keep_the_columns_in_line(site: Site) -> None:
    good_site(
        site,
        "sales",
        "\u6570\u636e\u5e93",
        "\uc720\ub2c8\ucf54\ub4dc",
        "cafe\u0301",
        "B\u00fccher",
        "\uff34\uff45\uff53\uff54",
    )
    rows = [line for line in site.audit("-v", "--at", AT).out.splitlines() if line.startswith("ok ")]
    assert len(rows) == 6
    assert len({columns(row.partition(" Daily ")[0]) for row in rows}) == 1


# --- What concerns the whole site ----------------------------------------------------------------------


def test_a_silent_site_comes_first_as_one_line(any_site: Site) -> None:
    of_every_status(any_site)
    loud = any_site.audit("--at", AT)
    assert "whole site" not in loud.out
    silent = any_site.audit("--at", "2026-03-15T06:50:01Z")
    first = silent.out.splitlines()[0]
    assert "2026-03-14 06:50 UTC" in first
    assert "DB4Sci" in first
    assert silent.status == 2


def test_both_sides_of_silence(site: Site) -> None:
    good_site(site)
    assert "whole site" not in site.audit("--at", "2026-03-14T18:30:00Z", "-v").out
    assert "whole site" in site.audit("--at", "2026-03-14T18:30:01Z", "-v").out.splitlines()[0]


def test_a_silent_site_is_told_even_where_every_container_is_well(site: Site) -> None:
    site.container("exempt", "Never")
    result = site.audit("--at", AT)
    assert result.status == 0
    assert "whole site" in result.out.splitlines()[0]
    weekly = site.container("weekly", "Weekly")
    site.run(weekly, "2026-03-07 18:07", "2026-03-07 18:30")
    assert "2026-03-07 18:30 UTC" in site.audit("--at", AT).out.splitlines()[0]


def test_malformed_rows_are_told_with_a_hint(any_site: Site) -> None:
    (c_id, _) = good_site(any_site)
    for spoilt in ({"ts": None}, {"backup_id": None}, {"state": "finish"}):
        row = {"c_id": c_id, "backup_id": "x", "state": "end", "ts": datetime(2026, 3, 14, 1, 0)}
        any_site.row(**{**row, **spoilt})
    out = any_site.audit("-v", "--at", AT).out
    assert re.search(r"3 .*rows.* malformed", out)
    assert "rows_ignored" not in out
    ignored = json.loads(any_site.audit("--json", "--at", AT).out)["audit"]["rows_ignored"]
    assert ignored == {"future": 0, "malformed": 3}


def test_future_rows_are_told_with_the_setting_that_is_probably_wrong(any_site: Site) -> None:
    c_id = any_site.container("sales")
    now = any_site.clock().replace(tzinfo=None)
    any_site.run(c_id, now - timedelta(hours=2), now - timedelta(hours=1))
    assert any_site.audit() == Result(0, "", "")
    any_site.run(c_id, now + timedelta(hours=2), now + timedelta(hours=3))
    result = any_site.audit()
    assert result.status == 0
    assert re.search(r"2 .*rows.*future.*db_timezone", result.out)
    assert json.loads(any_site.audit("--json").out)["audit"]["rows_ignored"] == {"future": 2, "malformed": 0}


def test_with_at_no_row_counts_as_future(any_site: Site) -> None:
    (c_id, _) = good_site(any_site)
    any_site.run(c_id, "2026-03-14 08:00", "2026-03-14 08:30", error=ERROR)
    assert any_site.audit("--at", AT) == Result(0, "", "")
    assert any_site.audit("--at", "2026-03-14T08:30:00Z").status == 2


# --- The details of a container ------------------------------------------------------------------------


def test_the_details_show_the_last_ten_runs_newest_first(any_site: Site) -> None:
    c_id = any_site.container("sales")
    for day in range(1, 13):
        any_site.run(c_id, f"2026-03-{day:02} 18:07", f"2026-03-{day:02} 18:{29 + day}", type="Weekly")
    any_site.run(c_id, "2026-03-13 18:07", "2026-03-13 19:41", error=ERROR, type="User")
    any_site.run(c_id, "2026-03-14 06:50")
    result = any_site.audit("--at", AT, "sales")
    assert result.status == 1
    assert result.err == ""
    runs = re.findall(r"^  (2026-03-\d\d \d\d:\d\d) ", result.out, re.MULTILINE)
    assert runs == ["2026-03-14 06:50", "2026-03-13 18:07", *(f"2026-03-{day:02} 18:07" for day in range(12, 4, -1))]
    running, failed, good = (line.split() for line in re.findall(r"^  2026-03-.*$", result.out, re.MULTILINE)[:3])
    assert running[-1] == "running"
    assert failed[:4] == ["2026-03-13", "18:07", "2026-03-13", "19:41"]
    assert failed[-2:] == ["User", "failed"]
    assert good[2:] == ["2026-03-12", "18:41", "34", "min", "Weekly", "succeeded"]
    assert "permission denied for table" in result.out


def test_the_details_tell_the_verdict_and_its_reason(site: Site) -> None:
    ids = of_every_status(site)
    for status, c_id in ids.items():
        out = site.audit("--at", AT, f"c-{status}").out
        assert f"c-{status} (c_id {c_id})" in out.splitlines()[0]
        for title in ("verdict", "reason", "policy", "due"):
            assert re.search(rf"^ *{title}: *\S|^ *{title} +\S", out, re.MULTILINE), (status, title)
        assert re.search(rf"^ *verdict:? +{status}\b", out, re.MULTILINE)
    assert "2026-03-14 05:00 UTC" in site.audit("--at", AT, "c-late").out


def test_a_container_without_runs_says_so(site: Site) -> None:
    site.container("sales")
    assert "no run" in site.audit("--at", AT, "sales").out


def test_several_containers_in_the_order_asked_for(any_site: Site) -> None:
    ids = of_every_status(any_site)
    result = any_site.audit("--at", AT, "c-ok", "c-late", str(ids["exempt"]), "c-ok")
    assert result.status == 1
    heads = re.findall(r"^(\S+) \(c_id \d+\)$", result.out, re.MULTILINE)
    assert heads == ["c-ok", "c-late", "c-exempt"]


def test_a_name_that_two_containers_bear_shows_both(site: Site) -> None:
    ids = good_site(site, "sales", "sales")
    assert re.findall(r"c_id (\d+)\)", site.audit("--at", AT, "sales").out) == [str(c_id) for c_id in ids]


def test_a_name_goes_before_a_c_id(site: Site) -> None:
    first = site.container("other")
    second = site.container(str(first))
    assert f"c_id {second})" in site.audit("--at", AT, str(first)).out
    assert f"c_id {first})" not in site.audit("--at", AT, str(first)).out


def test_an_unknown_name_is_an_error_with_close_matches(any_site: Site) -> None:
    of_every_status(any_site)
    result = any_site.audit("--at", AT, "c-ok", "c-stalle")
    assert (result.status, result.out) == (3, "")
    assert result.err.startswith("backup_audit: ")
    assert result.err.count("\n") == 1
    assert "c-stalle" in result.err
    assert "c-stalled" in result.err
    far = any_site.audit("--at", AT, "zzz")
    assert far.status == 3
    assert "zzz" in far.err
    assert "99999" in any_site.audit("--at", AT, "99999").err


def test_hostile_names_in_an_error_are_harmless(site: Site) -> None:
    site.container("sales\x1b[2J\u202e")
    err = site.audit("--at", AT, "sales\x1b[2J").err
    assert err.rstrip("\n").isprintable()
    assert "did you mean" in err


def test_the_details_write_no_textfile(site: Site) -> None:
    good_site(site)
    site.audit("sales")
    assert list(site.textfile.parent.iterdir()) == []


def test_the_details_of_an_extra_job(any_site: Site) -> None:
    any_site.config(extra_jobs={"offsite": "Daily"})
    any_site.container("offsite", "Never")
    any_site.run(0, "2026-03-13 20:00", "2026-03-13 21:00", name="offsite", type="AWS S3")
    result = any_site.audit("--at", AT, "offsite")
    assert "AWS S3" in result.out
    assert "offsite (c_id 0)" in result.out
    assert len(json.loads(any_site.audit("--json", "--at", AT, "offsite").out)["containers"]) == 2


# --- JSON ----------------------------------------------------------------------------------------------

TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z"
CONTAINER_KEYS = [
    *("name", "c_id", "policy", "engine", "state", "owner", "contact", "status", "severity", "reason", "due"),
    *("last_success", "last_run"),
]
RUN_KEYS = ["backup_id", "type", "started", "ended", "duration_seconds", "outcome", "error"]


def assert_run(run: Any) -> None:
    assert list(run) == RUN_KEYS
    assert isinstance(run["backup_id"], str)
    assert isinstance(run["type"], str)
    assert re.fullmatch(TIME, run["started"])
    assert run["ended"] is None or re.fullmatch(TIME, run["ended"])
    assert run["duration_seconds"] is None or run["duration_seconds"] >= 0
    assert run["outcome"] in ("succeeded", "failed", "running", "stalled")
    assert run["error"] is None or isinstance(run["error"], str)


def test_the_json_document_is_that_of_the_specification(any_site: Site) -> None:
    ids = of_every_status(any_site)
    result = any_site.audit("--json", "--at", AT)
    assert (result.status, result.err) == (2, "")
    report = json.loads(result.out)
    assert list(report) == ["audit", "containers"]
    head = report["audit"]
    assert list(head) == ["version", "now", "database", "containers", "rows_ignored"]
    assert head["version"] == VERSION
    assert head["now"] == "2026-03-14T07:00:00Z"
    assert head["containers"] == dict.fromkeys(ids, 1)
    assert head["rows_ignored"] == {"future": 0, "malformed": 0}
    assert isinstance(head["database"], str)
    assert {one["status"]: one["c_id"] for one in report["containers"]} == ids
    for one in report["containers"]:
        assert list(one) == CONTAINER_KEYS
        assert one["severity"] == Status(one["status"]).severity
        assert one["due"] is None or re.fullmatch(TIME, one["due"])
        assert isinstance(one["reason"], str)
        for run in (one["last_success"], one["last_run"]):
            if run is not None:
                assert_run(run)


def test_the_values_of_a_json_container(any_site: Site) -> None:
    c_id = any_site.container("sales", " daily ", engine="MariaDB", owner="ada", contact="ada@example.org")
    any_site.run(c_id, "2026-03-12 18:07:31", "2026-03-12 18:30")
    any_site.run(c_id, "2026-03-13 18:07:31", error=ERROR, type="User")
    (one,) = json.loads(any_site.audit("--json", "--at", AT).out)["containers"]
    assert "permission denied" in one.pop("reason")
    assert one == {
        "name": "sales",
        "c_id": c_id,
        "policy": "Daily",
        "engine": "MariaDB",
        "state": "running",
        "owner": "ada",
        "contact": "ada@example.org",
        "status": "failed",
        "severity": 2,
        "due": "2026-03-13T18:07:31Z",
        "last_success": {
            "backup_id": "20260312-18:07:31",
            "type": "Daily",
            "started": "2026-03-12T18:07:31Z",
            "ended": "2026-03-12T18:30:00Z",
            "duration_seconds": 1349,
            "outcome": "succeeded",
            "error": None,
        },
        "last_run": {
            "backup_id": "20260313-18:07:31",
            "type": "User",
            "started": "2026-03-13T18:07:31Z",
            "ended": None,
            "duration_seconds": None,
            "outcome": "failed",
            "error": ERROR,
        },
    }


def test_json_of_a_container_of_which_little_is_known(any_site: Site) -> None:
    with any_site.session() as session:
        session.add(ContainerState(c_id=None, name="lost", state=None))
    (one,) = json.loads(any_site.audit("--json", "--at", AT).out)["containers"]
    assert (one["name"], one["c_id"], one["status"]) == ("lost", None, "no_policy")
    assert {one[key] for key in ("engine", "state", "owner", "contact", "due", "last_success", "last_run")} == {None}


def test_json_times_are_utc_whatever_the_zone_of_the_log(site: Site) -> None:
    site.config(db_timezone="America/New_York")
    c_id = site.container("sales")
    site.run(c_id, "2026-03-13 18:07", "2026-03-13 18:30")
    (one,) = json.loads(site.audit("--json", "--at", AT).out)["containers"]
    assert one["last_run"]["started"] == "2026-03-13T22:07:00Z"
    assert one["due"] == "2026-03-14T22:07:00Z"


def test_json_details_have_the_runs_newest_first(any_site: Site) -> None:
    c_id = any_site.container("sales")
    for day in range(1, 14):
        any_site.run(c_id, f"2026-03-{day:02} 18:07", f"2026-03-{day:02} 18:30")
    any_site.row(c_id=c_id, backup_id="end only", state="end", ts=datetime(2026, 3, 14, 1, 0), backup_type=None)
    (one,) = json.loads(any_site.audit("--json", "--at", AT, "sales").out)["containers"]
    assert list(one) == [*CONTAINER_KEYS, "runs"]
    for run in one["runs"]:
        assert_run(run)
    starts = [run["started"] for run in one["runs"]]
    assert starts == ["2026-03-14T01:00:00Z", *(f"2026-03-{day:02}T18:07:00Z" for day in range(13, 4, -1))]
    assert one["runs"][0]["duration_seconds"] is None
    assert one["runs"][0] == one["last_run"]


def test_json_is_printed_whole_and_the_textfile_written(site: Site) -> None:
    c_id = site.container("sales")
    now = site.clock()
    site.run(c_id, now - timedelta(hours=2), now - timedelta(hours=1))
    result = site.audit("--json")
    assert result.status == 0
    assert json.loads(result.out)["audit"]["containers"]["ok"] == 1
    assert site.samples()[series("mydb_backup_containers", status="ok")] == 1


# --- Harmless and without passwords --------------------------------------------------------------------

HOSTILE = [
    "\x1b[2J\x1b[31mred",
    "\x1b]0;title\x07",
    "bell \x07",
    "back\x08space",
    "delete \x7f",
    "\x9b31m C1",
    "next \x85 line",
    "separator \u2028 here",
    "\u202eevil\u202c",
    "\u2066isolate\u2069",
    "\ufeffmark",
    "tag \U000e0041",
    "two\nlines",
    "carriage\rreturn",
    "\ttab",
]


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_what_comes_from_the_database_cannot_command_a_terminal(site: Site, text: str) -> None:
    failed = site.container(text, owner=text, contact=text, engine=text, state=text)
    site.run(failed, "2026-03-13 18:07", "2026-03-13 18:30", error=f"{ERROR} {text}", type=text)
    site.container(f"{text} 2", policy=f"p{text}")
    outputs = [
        site.audit("-v", "--at", AT).out,
        site.audit("--at", AT, text, f"{text} 2").out,
        site.audit("--at", AT, f"{text} 3").err,
        site.audit("--json", "--at", AT).out,
    ]
    for out in outputs:
        assert out
        bad = [c for line in out.split("\n") for c in line if not c.isprintable()]
        assert bad == []


def test_control_characters_are_spelt_out() -> None:
    assert clean("\x1b[31mred\x07") == "\\x1b[31mred\\x07"
    assert clean("a\u202eb") == "a\\u202eb"
    assert clean("B\u00fccher \u6570\u636e \U0001f4be") == "B\u00fccher \u6570\u636e \U0001f4be"
    assert clean(None) == ""


def test_the_database_in_the_heading_is_harmless_too(site: Site) -> None:
    good_site(site)
    assert "\x1b" not in site.audit("-v", "--at", AT).out


PASSWORDS = [
    "password=hunTer2",
    "password = hunTer2",
    "PASSWORD: hunTer2",
    "password='hunTer2'",
    'password="hunTer2"',
    'password="with blanks hunTer2"',
    'password="cut off after 100 characters hunTer2',
    "password=com,ma;semi&colon-hunTer2",
    "POSTGRES_PASSWORD=hunTer2",
    "PGPASSWORD=hunTer2 pg_dump -h db",
    "MYSQL_PWD=hunTer2 mysqldump",
    "MYSQL_ROOT_PASSWORD=hunTer2",
    '{"DB_PASS": "hunTer2"}',
    "{'POSTGRES_PASSWORD': 'hunTer2'}",
    '{\\"DB_PASS\\": \\"hunTer2\\"}',
    "mysqldump -u root -phunTer2 sales",
    "mysqldump -u root -p'hunTer2' sales",
    "mysqldump -u root --password=hunTer2 sales",
    "mysqldump -u root --password hunTer2 sales",
    "mongodump -u admin -p hunTer2 --db shop",
    "mongodump --username admin --password 'hunTer2'",
    "postgresql://pgdba:hunTer2@db:32015/sales",
    "mongodb://admin:p@hunTer2@db:27017/admin",
    "mongodb+srv://admin:hunTer2@db/admin",
    "AWS_SECRET_ACCESS_KEY=hunTer2/abc+def",
    "aws_secret_access_key = hunTer2",
    "AWS_SESSION_TOKEN=hunTer2",
    "NEO4J_AUTH=neo4j/hunTer2",
    "ALTER USER pgdba PASSWORD 'hunTer2'",
    "GRANT ALL ON sales.* TO root IDENTIFIED BY 'hunTer2'",
    "passphrase=hunTer2",
]


@pytest.mark.parametrize("text", PASSWORDS)
def test_passwords_are_masked(sqlite_site: Site, text: str) -> None:
    site = sqlite_site
    c_id = site.container("sales")
    site.run(c_id, "2026-03-13 18:07", "2026-03-13 18:30", error=f"pg_dump: error: failed: {text}")
    outputs = {
        "report": site.audit("-v", "--at", AT).out,
        "detail": site.audit("--at", AT, "sales").out,
        "JSON": site.audit("--json", "--at", AT).out,
        "JSON detail": site.audit("--json", "--at", AT, "sales").out,
    }
    assert [where for where, out in outputs.items() if "hunTer2" in out] == []
    assert all("pg_dump: error: failed" in " ".join(out.split()) for out in outputs.values())


@pytest.mark.parametrize(
    "text",
    [
        "pg_dump -h db -p 32015 sales",
        "mysqldump -h db -P 32015 -u root",
        "pg_dump: error: password authentication failed for user",
        "no password supplied",
        "s3://site-backups/sales/20260313-18:07:31",
        "2026-03-13T18:09:11.402+0000 Failed: no reachable servers",
        "connection to server at db, port 32042 failed",
    ],
)
def test_what_is_no_password_stays(text: str) -> None:
    assert mask(text) == text


def test_no_password_of_the_metadata_or_the_commands_is_printed(any_site: Site) -> None:
    for version in (1, 2):
        c_id = any_site.container(f"sales{version}", version=version)
        any_site.run(c_id, "2026-03-13 18:07", error=ERROR)
    for argv in (["-v"], ["--json"], ["sales1", "sales2"], ["--json", "sales1"], ["--debug"], ["--output", "-"]):
        result = any_site.audit("--at", AT, *argv)
        assert result.out
        assert SECRET not in result.out + result.err


# --- As a program --------------------------------------------------------------------------------------


def test_exit_statuses(any_site: Site) -> None:
    good_site(any_site)
    assert any_site.audit("--at", AT).status == 0
    late = any_site.container("late")
    any_site.run(late, "2026-03-13 05:00", "2026-03-13 05:30")
    assert any_site.audit("--at", AT).status == 1
    any_site.container("missed")
    assert any_site.audit("--at", AT).status == 2
    assert any_site.audit("--at", AT, "sales").status == 0
    assert any_site.audit("--at", AT, "sales", "late").status == 1
    assert any_site.audit("--at", AT, "sales", "missed").status == 2
    assert any_site.audit("--at", AT, "nobody").status == 3
    assert any_site.audit("--at", "yesterday").status == 3
    assert any_site.audit("--no-such-option").status == 3


def test_the_program_exits_as_main_says(sqlite_site: Site) -> None:
    good_site(sqlite_site)
    assert sqlite_site.process("--at", AT).returncode == 0
    late = sqlite_site.container("late")
    sqlite_site.run(late, "2026-03-13 05:00", "2026-03-13 05:30")
    assert sqlite_site.process("--at", AT).returncode == 1
    sqlite_site.container("missed")
    assert sqlite_site.process("--at", AT).returncode == 2
    bad = sqlite_site.process("--at", AT, "nobody")
    assert (bad.returncode, bad.stdout) == (3, "")
    assert bad.stderr.startswith("backup_audit: ")


def test_version_and_help(site: Site) -> None:
    version = site.audit("--version")
    assert (version.status, version.out.strip().split()[-1]) == (0, VERSION)
    help_ = site.audit("--help")
    assert help_.status == 0
    for option in ("--config", "--at", "--output", "--json", "--check-config", "--version", "--debug", "-v", "-q"):
        assert option in help_.out


@pytest.mark.parametrize("lines", [0, 1, 10])
def test_head_ends_the_report_quietly(sqlite_site: Site, lines: int) -> None:
    site = sqlite_site
    for number in range(600):  # several times what a pipe holds
        site.container(f"container-{number}-{'x' * 150}", policy="Fortnightly")
    site.config()
    command = [sys.executable, str(TOP / "backup_audit.py"), "--config", str(site.folder / "mydb_config.py"), "-v"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as program:
        assert program.stdout
        assert program.stderr
        for _ in range(lines):
            program.stdout.readline()
        program.stdout.close()
        complaints = program.stderr.read()
        assert program.wait(60) == 2
    assert complaints == b""
    assert site.samples()[series("mydb_backup_containers", status="no_policy")] == 600
    assert site.samples(site.runfile)[series("mydb_backup_audit_success")] == 1


def test_a_closed_stdout_is_no_obstacle(sqlite_site: Site) -> None:
    good_site(sqlite_site)
    config = str(sqlite_site.config())
    script = 'exec "$0" "$@" >&- 2>&-'
    command = ["/bin/sh", "-c", script, sys.executable, str(TOP / "backup_audit.py"), "--config", config, "-v"]
    assert subprocess.run(command, check=False).returncode == 2
    assert sqlite_site.samples()[series("mydb_backup_containers", status="missed")] == 2


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_any_name_can_be_printed_in_any_encoding(sqlite_site: Site, encoding: str) -> None:
    good_site(sqlite_site, "\u6570\u636e \U0001f4be")
    result = sqlite_site.process("-v", "--at", AT, env={"PYTHONIOENCODING": encoding})
    assert (result.returncode, result.stderr) == (0, "")
    assert "\\u6570" in result.stdout if encoding != "utf-8" else "\u6570" in result.stdout


@pytest.mark.parametrize(
    "unit", ["a", "pass", "password=", "://a:", "://u:p@", "-p ", '"', "\\", "identified by ", "_auth\\"]
)
def test_masking_does_not_take_long(unit: str) -> None:
    started = time.process_time()
    mask(unit * (100_000 // len(unit)))
    assert time.process_time() - started < 5
