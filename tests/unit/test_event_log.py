"""Tests: the lines of the log about facts."""

from __future__ import annotations

import logging
from dataclasses import replace
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
)
from qml_mp.events.claims import ended
from qml_mp.events.log import log_event
from qml_mp.storage.row_change import applied, row_change
from qml_mp.storage.values import BY_DEFAULT
from tests.unit.processor_case import NOW, claim_of

CLAIM = claim_of({"password": "hunter2"}, failures=1, crashes=1)
BAD = ErrorInfo(type="ValueError", message="bad", traceback='Traceback:\n  File "x.py"\nValueError: bad\n')
LATE = ErrorInfo(type="JobTimeout", message="The attempt exceeded its time limit of 2s.")
DEAD = ErrorInfo(type="WorkerDied", message="The worker process (pid 7) was killed by SIGKILL.")
TRACE = '\nTraceback:\n  File "x.py"\nValueError: bad'
SOON = timedelta(seconds=2.1)


def after(outcome: Outcome) -> Job:
    return applied(CLAIM.job, row_change(CLAIM.job, outcome, BY_DEFAULT), now=NOW)


def told(outcome: Outcome, caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    event = ended(CLAIM, after(outcome), attempts=5, crashes=3)
    assert event is not None
    with caplog.at_level(logging.DEBUG):
        log_event(event)
    start = f"job {CLAIM.job.id} (f): "
    assert all(record.getMessage().startswith(start) for record in caplog.records)
    return [(record.levelname, record.getMessage().removeprefix(start)) for record in caplog.records]


@pytest.mark.parametrize(
    ("outcome", "level", "line"),
    [
        (
            Retry(error=BAD, delay=SOON),
            "WARNING",
            f"attempt 2 of 5 failed, retry in 2.1s: ValueError: bad{TRACE}",
        ),
        (
            Retry(error=LATE, delay=timedelta(0), kind=AttemptKind.TIMEOUT),
            "WARNING",
            "attempt 2 of 5 passed its time limit, retry at once: "
            "JobTimeout: The attempt exceeded its time limit of 2s.",
        ),
        (Failure(error=BAD), "ERROR", f"failed for good at attempt 2 of 5: ValueError: bad{TRACE}"),
        (
            Failure(error=LATE, kind=AttemptKind.TIMEOUT),
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
    told(Failure(error=BAD), caplog)

    [record] = caplog.records
    fields = vars(record)
    assert (fields["job_id"], fields["worker_id"], fields["attempt"], fields["method"]) == (
        CLAIM.job.id, "w-1", 3, "f",
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
