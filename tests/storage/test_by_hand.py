"""Tests of the storage: what people do to jobs: delete, retry, cancel."""

from __future__ import annotations

from datetime import timedelta

import pytest

from qml_mp.core.job import Job
from qml_mp.core.outcome import AttemptKind, Cancelled, Crash, Failure, Outcome
from qml_mp.core.state import Deleted, Enqueued, StateName
from qml_mp.errors import InvalidTransition, JobNotFound
from qml_mp.storage.store import Storage
from qml_mp.storage.values import CancelResult
from tests.storage.helpers import DONE, HOUR, KEEP, NO, claim_new, fetch, in_an_hour, job_in, present
from tests.storage.test_finish import OUTCOMES

NOWHERE = ["8bcfee79-316d-4807-a888-a527740c8fd3", "no id"]


@pytest.mark.parametrize("job_id", NOWHERE)
def test_a_job_that_is_not_there_cannot_be_changed(storage: Storage, job_id: str) -> None:
    with pytest.raises(JobNotFound):
        storage.delete(job_id, reason="r", retention=KEEP)
    with pytest.raises(JobNotFound):
        storage.retry(job_id)
    assert storage.request_cancel(job_id, reason="r", retention=KEEP) is CancelResult.NOT_FOUND


def test_a_deleted_job_says_why_and_expires(storage: Storage) -> None:
    job_id = storage.enqueue(Job.new("work"))

    job = storage.delete(job_id, reason="a mistake\0", retention=KEEP)

    assert job == present(storage, job_id)
    assert isinstance(job.state, Deleted)
    assert job.state.reason is not None
    assert job.state.reason.startswith("a mistake")
    assert job.expires_at == job.state.deleted_at + KEEP.succeeded_ttl
    assert storage.fetch_and_lock_job(fetch()) is None


def test_a_failed_job_retried_by_hand_starts_afresh(storage: Storage) -> None:
    claim = claim_new(storage)
    storage.finish(claim, Failure(error=NO), retention=KEEP)

    job = storage.retry(claim.job.id)

    assert job == present(storage, claim)
    assert isinstance(job.state, Enqueued)
    assert (job.failures, job.crashes, job.expires_at) == (0, 0, None)
    assert len(storage.attempts(job.id)) == 1
    again = storage.fetch_and_lock_job(fetch(job.queue))
    assert again is not None
    assert again.job.claim_seq == 2


def test_the_newest_attempts_are_given_where_not_all_are_asked_for(storage: Storage) -> None:
    job = Job.new("work", queue="often")
    storage.enqueue(job)
    for _ in range(3):
        claim = storage.fetch_and_lock_job(fetch(job.queue))
        assert claim is not None
        storage.finish(claim, Failure(error=NO), retention=KEEP)
        storage.retry(job.id)

    numbers = {
        newest: [attempt.claim_seq for attempt in storage.attempts(job.id, newest=newest)]
        for newest in (None, 2, 9)
    }

    assert numbers == {None: [1, 2, 3], 2: [2, 3], 9: [1, 2, 3]}


def test_a_retry_by_hand_gives_way_to_a_live_job_with_the_same_unique_key(storage: Storage) -> None:
    claim = claim_new(storage, unique_key="k")
    storage.finish(claim, Failure(error=NO), retention=KEEP)
    storage.enqueue(Job.new("work", unique_key="k"))

    with pytest.raises(InvalidTransition, match=r"unique.key"):
        storage.retry(claim.job.id)

    assert present(storage, claim).state_name is StateName.FAILED


@pytest.mark.parametrize("state", [StateName.ENQUEUED, StateName.SCHEDULED, StateName.AWAITING_RETRY])
def test_cancelling_a_waiting_job_deletes_it(storage: Storage, state: StateName) -> None:
    claim = job_in(storage, state)

    result = storage.request_cancel(claim.job.id, reason="changed my mind", retention=KEEP)

    job = present(storage, claim)
    assert result is CancelResult.DELETED
    assert isinstance(job.state, Deleted)
    assert job.state.reason == "changed my mind"
    assert job.expires_at is not None


@pytest.mark.parametrize("state", [StateName.SUCCEEDED, StateName.FAILED, StateName.DELETED])
def test_cancelling_an_ended_job_changes_nothing(storage: Storage, state: StateName) -> None:
    claim = job_in(storage, state)
    before = present(storage, claim)

    result = storage.request_cancel(claim.job.id, reason="r", retention=KEEP)

    assert result is CancelResult.ALREADY_FINAL
    assert present(storage, claim) == before


def test_the_supervisor_is_told_of_which_attempt_a_cancel_is(storage: Storage) -> None:
    crashed = claim_new(storage)
    storage.finish(crashed, Crash(error=NO, rerun_after=timedelta()), retention=KEEP)
    claim = storage.fetch_and_lock_job(fetch(crashed.job.queue))
    assert claim is not None

    storage.request_cancel(claim.job.id, reason="too slow", retention=KEEP)

    [request] = storage.cancel_requests("server#1")
    assert (request.key, request.method, request.attempt) == (claim.key, "work", 2)


def test_cancelling_a_running_job_asks_its_supervisor(storage: Storage) -> None:
    claim = claim_new(storage, server="server#1", worker="worker-1")
    claim_new(storage, server="server#1", worker="worker-2")
    other = claim_new(storage, server="server#2")
    storage.request_cancel(other.job.id, reason="other", retention=KEEP)

    result = storage.request_cancel(claim.job.id, reason="too slow", retention=KEEP)

    [request] = storage.cancel_requests("server#1")
    assert result is CancelResult.REQUESTED
    assert (request.key, request.worker_id, request.reason) == (claim.key, "worker-1", "too slow")
    assert present(storage, claim).state_name is StateName.PROCESSING
    assert present(storage, claim).cancel_reason == "too slow"
    assert storage.cancel_requests("server#3") == []


@pytest.mark.parametrize("name", ["retry", "release", "crash, run again at once"])
def test_a_cancel_that_was_asked_for_wins_over_running_again(storage: Storage, name: str) -> None:
    outcome: Outcome = OUTCOMES[name]
    claim = claim_new(storage)  # as the worker holds it: it does not know of the request
    storage.request_cancel(claim.job.id, reason="too slow", retention=KEEP)

    finished = storage.finish(claim, outcome, retention=KEEP)
    again = storage.finish(claim, outcome, retention=KEEP)

    job = present(storage, claim)
    assert finished.state is StateName.DELETED
    assert isinstance(job.state, Deleted)
    assert job.state.reason == "too slow"
    assert job.cancel_reason is None
    assert [attempt.kind for attempt in storage.attempts(job.id)] == [AttemptKind.CANCELLED]
    assert again == finished
    assert storage.cancel_requests("server#1") == []


def test_a_result_that_comes_after_the_cancel_is_not_written(storage: Storage) -> None:
    claim = claim_new(storage)
    storage.request_cancel(claim.job.id, reason="too slow", retention=KEEP)
    storage.finish(claim, Cancelled(reason="too slow"), retention=KEEP)

    late = storage.finish(claim, DONE, retention=KEEP)

    job = present(storage, claim)
    assert not late.accepted
    assert (job.state_name, job.result) == (StateName.DELETED, None)


@pytest.mark.parametrize(("outcome", "state"), [(DONE, "succeeded"), (Failure(error=NO), "failed")])
def test_a_job_that_ends_before_its_cancel_arrives_keeps_its_end(
    storage: Storage, outcome: Outcome, state: str
) -> None:
    claim = claim_new(storage)
    storage.request_cancel(claim.job.id, reason="too late", retention=KEEP)

    storage.finish(claim, outcome, retention=KEEP)

    assert present(storage, claim).state_name == state
    assert present(storage, claim).cancel_reason is None


def test_a_cancelled_job_that_is_stranded_ends_deleted(storage: Storage) -> None:
    claim = claim_new(storage)
    storage.request_cancel(claim.job.id, reason="too slow", retention=KEEP)

    storage.requeue_stranded_jobs(in_an_hour() + HOUR)

    job = present(storage, claim)
    assert isinstance(job.state, Deleted)
    assert job.state.reason == "too slow"
    assert job.expires_at is not None
