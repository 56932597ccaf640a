"""Callbacks of failures: stored with the failure, one worker's at a time, kept until called."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest

from qml_mp.core.job import Claim
from qml_mp.core.outcome import Crash, ErrorInfo, Failure, Outcome, ProcessFacts, Release, Retry
from qml_mp.core.state import StateName
from qml_mp.storage.failures import FailureCallback
from qml_mp.storage.store import Storage
from tests.storage.conftest import Raw
from tests.storage.helpers import DONE, HOUR, KEEP, NO, claim_new, present, register

LEASE = timedelta(minutes=2)
DIED = ErrorInfo(type="WorkerCrashed", message="It was killed by SIGKILL.")


@pytest.fixture
def workers(storage: Storage) -> tuple[str, str]:
    """Two that are registered, of code that wants callbacks of the method "work"."""
    register(storage, "server#1", "worker-1", "worker-2")
    storage.declare_hooks(["work"], calls=True, traces=False)
    return "worker-1", "worker-2"


def take(storage: Storage, worker: str = "worker-1") -> FailureCallback | None:
    return storage.take_failure_callback(worker, ["work"], lease=LEASE)


def taken(storage: Storage, worker: str = "worker-1") -> FailureCallback:
    callback = take(storage, worker)
    assert callback is not None
    return callback


def failed_job(storage: Storage, outcome: Outcome | None = None) -> Claim:
    claim = claim_new(storage)
    storage.finish(claim, outcome or Failure(error=NO), retention=KEEP)
    return claim


@pytest.mark.parametrize(
    ("outcome", "error"),
    [
        (Failure(error=NO), NO),
        (Crash(error=DIED, rerun_after=None, process=ProcessFacts(pid=1, signal=9)), DIED),
    ],
)
def test_a_failure_is_to_be_called_with_its_error(
    storage: Storage, workers: tuple[str, str], outcome: Outcome, error: ErrorInfo
) -> None:
    claim = failed_job(storage, outcome)

    callback = taken(storage)

    assert present(storage, claim).state_name is StateName.FAILED
    assert (callback.job.id, callback.error, callback.tries) == (claim.job.id, error, 1)
    assert callback.job == present(storage, claim)
    assert storage.end_failure_callback(callback)
    assert take(storage) is None


@pytest.mark.parametrize("outcome", [DONE, Retry(error=NO, delay=HOUR)])
def test_what_has_not_failed_for_good_is_not(
    storage: Storage, workers: tuple[str, str], outcome: Outcome
) -> None:
    failed_job(storage, outcome)

    assert not storage.has_failure_callbacks(["work"])


def test_a_claim_that_was_lost_writes_none(storage: Storage, workers: tuple[str, str]) -> None:
    claim = claim_new(storage)
    storage.finish(claim, Release(reason="its server seemed dead"), retention=KEEP)

    assert not storage.finish(claim, Failure(error=NO), retention=KEEP).accepted

    assert take(storage) is None


def test_an_outcome_that_is_written_again_after_a_lost_reply_is_called_once(
    storage: Storage, workers: tuple[str, str]
) -> None:
    claim = failed_job(storage)
    storage.end_failure_callback(taken(storage))

    assert storage.finish(claim, Failure(error=NO), retention=KEEP).was_written

    assert take(storage) is None


def test_only_methods_whose_code_wants_it_are_noted(storage: Storage, workers: tuple[str, str]) -> None:
    changed = [
        storage.declare_hooks(["work"], calls=True, traces=False),
        storage.declare_hooks(["work", "other"], calls=False, traces=False),
        storage.declare_hooks(["work", "other"], calls=False, traces=False),
    ]
    failed_job(storage)
    storage.declare_hooks(["work"], calls=True, traces=False)

    assert changed == [False, True, False]
    assert take(storage) is None
    failed_job(storage)
    assert storage.take_failure_callback("worker-1", ["other"], lease=LEASE) is None
    assert take(storage) is not None


def test_one_is_one_workers_at_a_time(storage: Storage, workers: tuple[str, str]) -> None:
    failed_job(storage)

    first = taken(storage, "worker-1")

    assert take(storage, "worker-2") is None
    assert not storage.has_failure_callbacks(["work"])
    assert storage.end_failure_callback(first)


def test_that_of_a_worker_that_is_gone_is_anothers_at_once_and_its_end_is_fenced(
    storage: Storage, workers: tuple[str, str]
) -> None:
    failed_job(storage)
    first = taken(storage, "worker-1")
    storage.deregister_worker("worker-1")

    second = taken(storage, "worker-2")

    assert (second.job, second.tries) == (first.job, 2)
    assert not storage.end_failure_callback(first)
    assert not storage.postpone_failure_callback(first, delay=timedelta())
    assert storage.end_failure_callback(second)


def test_one_that_did_not_work_comes_again_later(storage: Storage, workers: tuple[str, str]) -> None:
    failed_job(storage)
    assert storage.postpone_failure_callback(taken(storage), delay=HOUR)
    later = take(storage)
    failed_job(storage)
    assert storage.postpone_failure_callback(taken(storage), delay=timedelta())

    assert later is None
    assert taken(storage).tries == 2


@pytest.mark.parametrize("is_tried", [True, False], ids=["after a try", "before any"])
@pytest.mark.parametrize("by", ["delete", "cancel"])
def test_what_a_person_deletes_or_cancels_is_not_called_any_more(
    storage: Storage, workers: tuple[str, str], by: str, is_tried: bool
) -> None:
    def end(job_id: str) -> None:
        if by == "delete":
            storage.delete(job_id, reason="a person", retention=KEEP)
        else:
            storage.retry(job_id)
            storage.request_cancel(job_id, reason="a person", retention=KEEP)

    gone, other = failed_job(storage), failed_job(storage)
    if is_tried:
        for callback in (taken(storage), taken(storage)):
            storage.postpone_failure_callback(callback, delay=timedelta())

    end(gone.job.id)

    assert taken(storage).job.id == other.job.id
    assert take(storage) is None
    assert storage.forget_failure_callbacks(limit=10).deleted == 0
    end(failed_job(storage).job.id)
    assert storage.forget_failure_callbacks(limit=10).deleted == 1


def test_a_job_that_has_expired_stays_until_it_was_told(
    storage: Storage, workers: tuple[str, str], raw: Raw
) -> None:
    claim = failed_job(storage)
    raw.age("jobs", "expires_at", timedelta(days=30))
    deleted = [storage.delete_expired_jobs(limit=10)]
    storage.postpone_failure_callback(taken(storage), delay=timedelta())
    deleted.append(storage.delete_expired_jobs(limit=10))

    callback = taken(storage)
    deleted.append(storage.delete_expired_jobs(limit=10))
    storage.end_failure_callback(callback)
    deleted.append(storage.delete_expired_jobs(limit=10))

    assert (callback.job.id, callback.tries) == (claim.job.id, 2)
    assert deleted == [0, 0, 0, 1]


def test_a_job_that_has_expired_goes_when_nobody_wanted_to_be_told_for_a_day(
    storage: Storage, workers: tuple[str, str], raw: Raw
) -> None:
    failed_job(storage)
    raw.age("jobs", "expires_at", timedelta(days=30))
    raw.age("failure_callbacks", "due_at", timedelta(days=1))

    assert storage.delete_expired_jobs(limit=10) == 1
    assert storage.forget_failure_callbacks(limit=10).deleted == 1


def test_a_job_that_was_retried_since_is_told_with_the_error_of_then(
    storage: Storage, workers: tuple[str, str]
) -> None:
    claim = failed_job(storage)
    storage.retry(claim.job.id)

    callback = taken(storage)

    assert callback.job.state_name is StateName.ENQUEUED
    assert (callback.error, callback.claim_seq) == (NO, 1)


def test_of_several_workers_each_takes_another(
    storage: Storage, workers: tuple[str, str], opened: Callable[[], Storage]
) -> None:
    claims = {failed_job(storage).job.id for _ in range(4)}
    other = opened()

    taken_ids = [
        taken(each, worker).job.id for each, worker in 2 * [(storage, "worker-1"), (other, "worker-2")]
    ]

    assert sorted(taken_ids) == sorted(claims)
