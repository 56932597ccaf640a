"""Tests: the judgement of a crash, what each outcome changes in the row, and the ladder of a stop."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qml_mp.core.job import Job
from qml_mp.core.outcome import (
    AttemptKind,
    Cancelled,
    Crash,
    ErrorInfo,
    Failure,
    Outcome,
    ProcessFacts,
    Release,
    Retry,
    Success,
    judge_crash,
)
from qml_mp.core.state import StateName
from qml_mp.storage.row_change import RowChange, row_change
from qml_mp.storage.values import Retention
from qml_mp.supervisor.workers.ladder import Graces, Plan, Rung

ERROR = ErrorInfo(type="SIGKILL", message="killed")
FACTS = ProcessFacts(signal=9)
RETENTION = Retention(succeeded_ttl=timedelta(hours=1), failed_ttl=timedelta(hours=2))
JOB = Job.new("resize", now=datetime(2025, 3, 1, tzinfo=UTC))


def crash(crashes_before: int, *, max_crashes: int = 3) -> Crash:
    return judge_crash(crashes_before=crashes_before, max_crashes=max_crashes, error=ERROR, process=FACTS)


def test_a_first_crash_runs_again_at_once() -> None:
    assert crash(0) == Crash(error=ERROR, rerun_after=timedelta(0), process=FACTS)


def test_later_crashes_wait_longer_up_to_a_minute() -> None:
    delays = [crash(n, max_crashes=100).rerun_after for n in range(12)]

    assert delays[:4] == [timedelta(seconds=s) for s in (0, 1, 2, 4)]
    assert delays == sorted(delays)  # type: ignore[type-var]  # None would fail the comparison
    assert delays[-1] == timedelta(minutes=1)
    assert crash(1_000_000, max_crashes=2_000_000).rerun_after == timedelta(minutes=1)


def test_the_crash_that_spends_the_budget_ends_the_job_as_worker_crashed() -> None:
    verdict = crash(2)

    assert verdict.rerun_after is None
    assert verdict.error.type == "WorkerCrashed"
    assert verdict.error.message == ERROR.message


@pytest.mark.parametrize(
    ("outcome", "change"),
    [
        (
            Success(result=[1], duration=timedelta(seconds=3)),
            RowChange(
                state=StateName.SUCCEEDED, ttl=timedelta(hours=1), result=[1], duration=timedelta(seconds=3)
            ),
        ),
        (
            Retry(error=ERROR, delay=timedelta(seconds=4), kind=AttemptKind.TIMEOUT),
            RowChange(
                state=StateName.AWAITING_RETRY, delay=timedelta(seconds=4), failures=1, error=ERROR,
                attempt=AttemptKind.TIMEOUT,
            ),
        ),
        (
            Failure(error=ERROR),
            RowChange(
                state=StateName.FAILED, ttl=timedelta(hours=2), failures=1, error=ERROR,
                attempt=AttemptKind.FAILURE,
            ),
        ),
        (
            Cancelled(reason="by hand"),
            RowChange(
                state=StateName.DELETED, ttl=timedelta(hours=1), reason="by hand",
                attempt=AttemptKind.CANCELLED,
            ),
        ),
        (Release(reason="shutdown"), RowChange(state=StateName.ENQUEUED, reason="shutdown")),
        (
            Crash(error=ERROR, rerun_after=timedelta(0), process=FACTS),
            RowChange(
                state=StateName.ENQUEUED, crashes=1, error=ERROR, attempt=AttemptKind.CRASH, process=FACTS
            ),
        ),
        (
            Crash(error=ERROR, rerun_after=timedelta(seconds=2), process=FACTS),
            RowChange(
                state=StateName.AWAITING_RETRY, delay=timedelta(seconds=2), crashes=1, error=ERROR,
                attempt=AttemptKind.CRASH, process=FACTS,
            ),
        ),
        (
            Crash(error=ERROR, rerun_after=None, process=FACTS),
            RowChange(
                state=StateName.FAILED, ttl=timedelta(hours=2), crashes=1, error=ERROR,
                attempt=AttemptKind.CRASH, process=FACTS,
            ),
        ),
    ],
)  # fmt: skip
def test_an_outcome_changes_the_row_as_designed(outcome: Outcome, change: RowChange) -> None:
    assert row_change(JOB, outcome, RETENTION) == change


@pytest.mark.parametrize(
    "outcome",
    [
        Retry(error=ERROR, delay=timedelta(0)),
        Crash(error=ERROR, rerun_after=None, process=FACTS),
        Release(reason="shutdown"),
    ],
)
def test_a_cancel_that_was_asked_for_wins_over_running_again(outcome: Outcome) -> None:
    asked = replace(JOB, cancel_reason="not needed any more")

    change = row_change(asked, outcome, RETENTION)

    assert change.state is StateName.DELETED
    assert change.reason == "not needed any more"


@pytest.mark.parametrize("outcome", [Success(result=None, duration=timedelta(0)), Failure(error=ERROR)])
def test_a_job_that_ended_by_itself_stays_as_it_ended_despite_a_cancel(outcome: Outcome) -> None:
    asked = replace(JOB, cancel_reason="too late")

    assert row_change(asked, outcome, RETENTION) == row_change(JOB, outcome, RETENTION)


durations = st.floats(min_value=0, max_value=1e6).map(lambda seconds: timedelta(seconds=seconds))


def graces(*, shutdown_timeout: timedelta, term_grace: timedelta = timedelta(seconds=5)) -> Graces:
    return Graces(cancel_grace=timedelta(seconds=2), term_grace=term_grace, shutdown_timeout=shutdown_timeout)


@pytest.mark.fault(92)
@pytest.mark.parametrize(
    ("promised_s", "interrupted_after_s"),
    [(0, 0), (1, 0.75), (3, 2.25), (4, 3), (5, 3.75), (6, 4.5), (20, 15), (30, 25), (600, 595)],
)
def test_a_stop_interrupts_in_the_last_part_of_the_time_that_was_promised(
    promised_s: float, interrupted_after_s: float
) -> None:
    plan = graces(shutdown_timeout=timedelta(seconds=promised_s)).shutdown(stopped=100.0)

    assert plan.ask_at == 100.0
    assert plan.interrupt_at == pytest.approx(100.0 + interrupted_after_s)
    assert plan.kill_at == pytest.approx(100.0 + promised_s)


@pytest.mark.fault(92)
@given(promised=durations, term_grace=durations, share=st.floats(min_value=0, max_value=0.74))
def test_a_job_that_uses_less_than_three_quarters_of_the_promised_time_is_only_asked(
    promised: timedelta, term_grace: timedelta, share: float
) -> None:
    plan = graces(shutdown_timeout=promised, term_grace=term_grace).shutdown(stopped=0.0)

    assert plan.ask_at <= plan.interrupt_at <= plan.dump_stack_at <= plan.kill_at
    if promised:
        assert plan.rung(share * promised.total_seconds()) is Rung.ASK


seconds = st.floats(min_value=0, max_value=60)


def climbed(plan: Plan, *, looks: Iterable[float]) -> dict[Rung, float]:
    """When each rung is taken by a supervisor that looks so long after each of its looks."""
    now, taken_at = plan.ask_at, dict[Rung, float]()
    for pause_s in looks:
        now += pause_s
        rung = plan.begun(taken_at, now).rung(now)
        taken_at.setdefault(rung, now)
    return taken_at


@given(cancel_grace=st.floats(1, 60), term_grace=st.floats(1, 60), pauses=st.lists(seconds, max_size=20))
def test_whenever_it_is_looked_at_no_rung_is_left_out_and_each_has_its_time(
    cancel_grace: float, term_grace: float, pauses: list[float]
) -> None:
    some = Graces(
        cancel_grace=timedelta(seconds=cancel_grace),
        term_grace=timedelta(seconds=term_grace),
        shutdown_timeout=timedelta(),
    )
    plan = some.timeout(at=100.0)

    at = climbed(plan, looks=[*pauses, *[100.0] * 4])

    rungs = [Rung.ASK, Rung.INTERRUPT, Rung.DUMP_STACK, Rung.KILL]
    assert list(at) == rungs
    least_s = [plan.interrupt_at - plan.ask_at, plan.dump_stack_at - plan.interrupt_at]
    least_s.append(plan.kill_at - plan.dump_stack_at)
    for (before, after), wanted_s in zip(pairwise(rungs), least_s, strict=True):
        assert at[after] - at[before] >= wanted_s - 1e-6


def test_what_is_looked_at_in_time_is_killed_at_its_instant() -> None:
    plan = graces(shutdown_timeout=timedelta()).cancel(asked=100.0)

    at = climbed(plan, looks=[0.0, *[0.125] * 80])

    assert at == {Rung.ASK: 100.0, Rung.INTERRUPT: 102.0, Rung.DUMP_STACK: 106.0, Rung.KILL: 107.0}


def test_a_claim_that_was_asked_before_for_another_reason_has_the_time_of_the_new_one() -> None:
    plan = graces(shutdown_timeout=timedelta()).timeout(at=100.0)

    assert plan.begun({Rung.ASK: 40.0}, 100.0) == plan


def test_the_instants_of_a_stop_stay_whenever_it_is_looked_at() -> None:
    plan = graces(shutdown_timeout=timedelta(seconds=30)).shutdown(stopped=100.0)

    assert plan.begun({}, 129.0) == plan
