"""Tests: the judgement of a crash, and what each outcome changes in the row."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

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
