"""Tests: facts about claims, and the lines of the log about them."""

from __future__ import annotations

import logging
from dataclasses import asdict, replace
from datetime import timedelta

import pytest

from qml_mp.core.job import Job
from qml_mp.core.outcome import (
    AttemptKind,
    Cancelled,
    Crash,
    ErrorInfo,
    Failure,
    Outcome,
    Release,
    Retry,
    Success,
)
from qml_mp.core.state import Scheduled
from qml_mp.events.claims import ended
from qml_mp.events.facts import AttemptFailed, ClaimFacts
from qml_mp.events.log import log_event
from qml_mp.storage.row_change import applied, row_change
from qml_mp.storage.values import BY_DEFAULT
from tests.unit.processor_case import NOW, claim_of

TWO_S = timedelta(seconds=2)
BAD = ErrorInfo(type="ValueError", message="bad")
LATE = ErrorInfo(type="JobTimeout", message="late")
CLAIM = claim_of({"password": "hunter2"}, failures=1, started_at=NOW)


def failed(outcome: Outcome) -> AttemptFailed:
    job = applied(CLAIM.job, row_change(CLAIM.job, outcome, BY_DEFAULT), now=NOW + TWO_S)
    event = ended(CLAIM, job, attempts=5, crashes=3)
    assert isinstance(event, AttemptFailed)
    return event


def test_a_claim_says_whose_it_is_and_no_payload() -> None:
    claim = ClaimFacts.of(CLAIM)

    assert (claim.method, claim.worker_id, claim.claim_seq, claim.attempt) == ("f", "w-1", 1, 2)
    assert "hunter2" not in str(asdict(claim))


def test_a_success_is_the_traces_to_tell() -> None:
    outcome = Success(result="hunter2", duration=TWO_S)
    job = applied(CLAIM.job, row_change(CLAIM.job, outcome, BY_DEFAULT), now=NOW + TWO_S)

    assert ended(CLAIM, job) is None


@pytest.mark.parametrize(
    ("outcome", "kind", "count", "runs_in"),
    [
        (Retry(error=BAD, delay=TWO_S), AttemptKind.FAILURE, (2, 5), TWO_S),
        (Failure(error=BAD), AttemptKind.FAILURE, (2, 5), None),
        (Failure(error=LATE, kind=AttemptKind.TIMEOUT), AttemptKind.TIMEOUT, (2, 5), None),
        (Crash(error=BAD, rerun_after=timedelta(0)), AttemptKind.CRASH, (1, 3), timedelta(0)),
        (Crash(error=BAD, rerun_after=TWO_S), AttemptKind.CRASH, (1, 3), TWO_S),
        (Crash(error=BAD, rerun_after=None), AttemptKind.CRASH, (1, 3), None),
    ],
)
def test_a_failed_attempt_says_why_which_it_is_and_when_the_job_runs_again(
    outcome: Outcome, kind: AttemptKind, count: tuple[int, int], runs_in: timedelta | None
) -> None:
    event = failed(outcome)

    assert (event.kind, (event.count, event.budget), event.runs_in) == (kind, count, runs_in)


def test_a_row_that_has_gone_on_since_tells_nothing() -> None:
    later = replace(CLAIM.job, state=Scheduled(scheduled_at=NOW, enqueue_at=NOW))

    assert ended(CLAIM, later) is None


CRASHED_CLAIM = claim_of({"password": "hunter2"}, failures=1, crashes=1)
TRACED = ErrorInfo(type="ValueError", message="bad", traceback='Traceback:\n  File "x.py"\nValueError: bad\n')
TOLD_LATE = ErrorInfo(type="JobTimeout", message="The attempt exceeded its time limit of 2s.")
DEAD = ErrorInfo(type="WorkerDied", message="The worker process (pid 7) was killed by SIGKILL.")
TRACE = '\nTraceback:\n  File "x.py"\nValueError: bad'
SOON = timedelta(seconds=2.1)


def after(outcome: Outcome) -> Job:
    return applied(CRASHED_CLAIM.job, row_change(CRASHED_CLAIM.job, outcome, BY_DEFAULT), now=NOW)


def told(outcome: Outcome, caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    event = ended(CRASHED_CLAIM, after(outcome), attempts=5, crashes=3)
    assert event is not None
    with caplog.at_level(logging.DEBUG):
        log_event(event)
    start = f"job {CRASHED_CLAIM.job.id} (f): "
    assert all(record.getMessage().startswith(start) for record in caplog.records)
    return [(record.levelname, record.getMessage().removeprefix(start)) for record in caplog.records]


@pytest.mark.parametrize(
    ("outcome", "level", "line"),
    [
        (
            Retry(error=TRACED, delay=SOON),
            "WARNING",
            f"attempt 2 of 5 failed, retry in 2.1s: ValueError: bad{TRACE}",
        ),
        (
            Retry(error=TOLD_LATE, delay=timedelta(0), kind=AttemptKind.TIMEOUT),
            "WARNING",
            "attempt 2 of 5 passed its time limit, retry at once: "
            "JobTimeout: The attempt exceeded its time limit of 2s.",
        ),
        (Failure(error=TRACED), "ERROR", f"failed for good at attempt 2 of 5: ValueError: bad{TRACE}"),
        (
            Failure(error=TOLD_LATE, kind=AttemptKind.TIMEOUT),
            "ERROR",
            "failed for good at attempt 2 of 5: JobTimeout: The attempt exceeded its time limit of 2s.",
        ),
        (
            Crash(error=DEAD, rerun_after=timedelta(0)),
            "WARNING",
            "crash 2 of 3, runs again at once: "
            "WorkerDied: The worker process (pid 7) was killed by SIGKILL.",
        ),
        (
            Crash(error=DEAD, rerun_after=SOON),
            "WARNING",
            "crash 2 of 3, runs again in 2.1s: "
            "WorkerDied: The worker process (pid 7) was killed by SIGKILL.",
        ),
        (
            Crash(error=replace(DEAD, type="WorkerCrashed"), rerun_after=None),
            "ERROR",
            "failed for good at crash 2 of 3: "
            "WorkerCrashed: The worker process (pid 7) was killed by SIGKILL.",
        ),
        (Cancelled(reason="not wanted"), "INFO", "cancelled: not wanted"),
        (Release(reason="shutdown"), "INFO", "given back, uncharged"),
    ],
)  # fmt: skip
def test_the_line_says_what_happened_and_what_happens_next(
    outcome: Outcome, level: str, line: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert told(outcome, caplog) == [(level, line)]


def test_the_record_carries_its_keys_and_never_the_payload(caplog: pytest.LogCaptureFixture) -> None:
    told(Failure(error=TRACED), caplog)

    [record] = caplog.records
    fields = vars(record)
    assert (fields["job_id"], fields["worker_id"], fields["attempt"], fields["method"]) == (
        CRASHED_CLAIM.job.id, "w-1", 3, "f",
    )  # fmt: skip
    assert fields["traceback"] == TRACE.strip()
    assert "hunter2" not in str(fields)


def test_a_long_error_is_cut_to_its_head_and_the_tail_of_its_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    error = ErrorInfo(type="E", message="m" * 9_000, traceback="head" + "t" * 60_000 + "tail")

    [(_, line)] = told(Failure(error=error), caplog)

    assert len(line) < 5_200
    assert line.endswith("tail")
