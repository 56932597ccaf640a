"""Tests: what a fact about a claim says, read off the row before and after."""

from __future__ import annotations

from dataclasses import asdict, replace
from datetime import timedelta

import pytest

from qml_mp.core.outcome import AttemptKind, Crash, ErrorInfo, Failure, Outcome, Retry, Success
from qml_mp.core.state import Scheduled
from qml_mp.events.claims import ended
from qml_mp.events.facts import AttemptFailed, ClaimFacts
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
