"""Properties of the rules: they agree with the oracle at and beside every boundary, and time improves nothing."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from audit.policy import DAY, FUTURE_TOLERANCE, HOUR, UTC, Container, Rules, Run, Status, Verdict, judge
from tests import oracle
from tests.builders import NOW
from tests.oracle import PlainRun, Terms, hours

TICK = timedelta(microseconds=1)
MONTHLY = {"Monthly": 744 * HOUR}
ZONES = [UTC, ZoneInfo("Europe/Berlin"), ZoneInfo("America/Havana"), ZoneInfo("Asia/Kathmandu")]
POLICIES = st.sampled_from(
    ["Daily", "Daily", "Daily", "Weekly", "Weekly", " weekly ", "MONTHLY", "Never", "none", "Fortnightly", "", None]
)
STATES = st.sampled_from(["running", "running", " Running", "maintenance", None])
BOUNDARIES = (-1 / 12, 0, 1, 2, 6, 8, 24, 26.5, 30, 32.5, 48, 72, 74, 744, 750)
AGES = st.one_of(
    st.integers(-4, 60 * 24 * 40).map(lambda minutes: timedelta(minutes=minutes)),
    st.builds(lambda number, ticks: number * HOUR + ticks * TICK, st.sampled_from(BOUNDARIES), st.integers(-1, 1)),
)


@dataclass(frozen=True)
class Case:
    """What a verdict is made of."""

    container: Container
    runs: list[Run]
    rules: Rules

    def verdict(self, now: datetime) -> Verdict:
        return judge(self.container, self.runs, now, self.rules)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    runs = []
    for number, age in enumerate(draw(st.lists(AGES, max_size=7))):
        kind = draw(st.sampled_from(["ok", "ok", "end only", "open", "open", "failed", "broken"]))
        started = NOW - age
        ended = None if kind in ("open", "broken") else started + (0 if kind == "end only" else 23) * HOUR / 60
        error = "pg_dump: error" if kind in ("failed", "broken") else None
        runs.append(Run(started, f"run {number}", "User", ended, error, start_logged=kind != "end only"))
    created = draw(st.none() | AGES.map(lambda age: NOW - age) | st.just(NOW + 400 * DAY))
    rules = Rules(
        zone=draw(st.sampled_from(ZONES)),
        weekly_day=draw(st.integers(0, 6)),
        window=draw(st.sampled_from([24, 2, 26.5])) * HOUR,
        grace=draw(st.sampled_from([6, 0, 48])) * HOUR,
        max_runtime=draw(st.sampled_from([24, 1, 72])) * HOUR,
        policies=MONTHLY,
    )
    return Case(Container(7, "sales", draw(POLICIES), state=draw(STATES), created=created), runs, rules)


@hypothesis_settings(max_examples=500)
@given(cases(), st.just(timedelta(0)) | AGES)
def test_a_verdict_is_that_of_the_oracle(case: Case, later: timedelta) -> None:
    now, container, rules = NOW + later, case.container, case.rules
    verdict = case.verdict(now)
    plain = [PlainRun(run.started, run.backup_id, run.ended is not None, run.error is not None) for run in case.runs]
    lengths = {name: getattr(rules, name) / HOUR for name in ("window", "grace", "max_runtime")}
    terms = Terms(rules.zone, rules.weekly_day, **lengths, policies={"monthly": 744})
    answer = oracle.answer(container.policy, container.state, container.created, plain, now, terms)
    success, last = verdict.last_success, verdict.last_run
    found = (verdict.status.value, success.backup_id if success else None, last.backup_id if last else None)
    assert found == (answer.status, answer.last_success, answer.last_run), verdict.reason
    if answer.due is None or answer.due > oracle.LONG_AGO + 365 * DAY:
        assert verdict.due == answer.due
    else:
        assert verdict.due is not None
        assert verdict.due < now - hours(365 * 24)
    assert verdict.reason


@given(cases(), st.randoms(use_true_random=False))
def test_the_order_of_the_runs_does_not_matter(case: Case, random: object) -> None:
    shuffled = random.sample(case.runs, len(case.runs))  # type: ignore[attr-defined]
    assert judge(case.container, shuffled, NOW, case.rules) == case.verdict(NOW)


BECOMES = {
    Status.NO_POLICY: {Status.NO_POLICY},
    Status.EXEMPT: {Status.EXEMPT},
    Status.FAILED: {Status.FAILED},
    Status.STALLED: {Status.STALLED},
    Status.RUNNING: {Status.RUNNING, Status.STALLED},
    # a backup that ran beside the last good one is noticed when that one is overdue, or when it stalls
    Status.OK: {Status.OK, Status.RUNNING, Status.STALLED, Status.PAUSED, Status.LATE, Status.MISSED},
    Status.NEW: {Status.NEW, Status.PAUSED, Status.LATE, Status.MISSED},
    Status.PAUSED: {Status.PAUSED},
    Status.LATE: {Status.LATE, Status.MISSED},
    Status.MISSED: {Status.MISSED},
}
"""What a status may turn into when time passes and nothing is logged."""


def test_no_status_turns_into_a_better_one() -> None:
    assert set(BECOMES) == set(Status)
    assert all(after.severity >= before.severity for before, turns in BECOMES.items() for after in turns)


@given(cases(), st.lists(AGES.map(abs), min_size=1, max_size=6))
def test_more_elapsed_time_never_improves_a_verdict(case: Case, steps: list[timedelta]) -> None:
    if case.container.created and case.container.created > NOW + FUTURE_TOLERANCE:  # right one day
        return
    statuses = [case.verdict(NOW + step).status for step in sorted([timedelta(0), *steps])]
    for before, after in pairwise(statuses):
        assert after in BECOMES[before], statuses


@given(cases())
def test_without_new_runs_every_promise_is_broken_in_the_end(case: Case) -> None:
    status = case.verdict(NOW + 900 * DAY).status
    assert status in (Status.EXEMPT, Status.NO_POLICY, Status.FAILED, Status.STALLED, Status.PAUSED, Status.MISSED)
