"""Attempts whose worker died: kept in the commit that ends them, until a worker has exported their spans."""

from __future__ import annotations

from datetime import timedelta

import pytest

from qml_mp.core.job import Job
from qml_mp.core.lost_attempt import LostAttempt
from qml_mp.core.outcome import Cancelled, Crash, ErrorInfo, Failure, Outcome, ProcessFacts, Release
from qml_mp.core.state import StateName
from qml_mp.storage.store import Storage
from tests.storage.conftest import Raw
from tests.storage.helpers import KEEP, claim_new, fetch, present, register

LEASE = timedelta(minutes=1)
DEAD = ProcessFacts(pid=4711, signal=9, peak_rss_bytes=1 << 20, cpu_s=0.5)
DIED = ErrorInfo(type="WorkerDied", message="It was killed by SIGKILL.")


@pytest.fixture(autouse=True)
def _workers(storage: Storage) -> None:
    """Two that are registered, of code that traces the method "work"."""
    register(storage, "server#1", "worker-1", "worker-2")
    storage.declare_hooks(["work"], calls=False, traces=True)


def take(storage: Storage, worker: str = "worker-1") -> list[LostAttempt]:
    return storage.take_lost_attempts(worker, ["work"], lease=LEASE)


def crash(storage: Storage) -> str:
    """The id of a job whose attempt is kept from now on."""
    claim = claim_new(storage)
    storage.finish(claim, Failure(error=DIED, process=DEAD), retention=KEEP)
    return claim.job.id


def take_in_next_server(storage: Storage) -> list[LostAttempt]:
    """By the worker of a server that starts now."""
    register(storage, "server#2", "worker-3")
    return take(storage, "worker-3")


@pytest.mark.parametrize(
    ("outcome", "ended_as", "state"),
    [
        (Crash(error=DIED, rerun_after=timedelta(), process=DEAD), "crash", StateName.ENQUEUED),
        (Crash(error=DIED, rerun_after=None, process=DEAD), "crash", StateName.FAILED),
        (Cancelled(reason="why", process=DEAD), "cancelled", StateName.DELETED),
        (Release(reason="the server stopped", process=DEAD), "released", StateName.ENQUEUED),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else value,
)
def test_whoever_ends_an_attempt_for_a_dead_worker_keeps_what_is_known_of_it(
    storage: Storage, outcome: Outcome, ended_as: str, state: StateName
) -> None:
    claim = claim_new(storage)

    storage.finish(claim, outcome, retention=KEEP)

    (lost,) = take(storage)
    job = present(storage, claim.job.id)
    assert (lost.key, lost.method, lost.queue) == (claim.key, "work", claim.job.queue)
    assert (lost.ended_as, lost.state, lost.process) == (ended_as, state, DEAD)
    assert job.state_name is state
    assert lost.started_at == claim.job.started_at
    assert lost.ended_at >= lost.started_at
    assert lost.attempt == 1
    has_error = not isinstance(outcome, Cancelled | Release)
    assert lost.error == (DIED if has_error else None)
    assert lost.reason or has_error


def test_those_of_a_server_that_is_gone_are_kept_too(storage: Storage) -> None:
    job_id = storage.enqueue(Job.new("work", metadata={"traceparent": "00-" + "1" * 49, "other": "x" * 999}))
    claim = storage.fetch_and_lock_job(fetch())
    assert claim is not None

    assert storage.reclaim_server("server#1", silent_for=None, retention=KEEP) == 1

    assert take(storage) == []  # the workers are gone with it
    (lost,) = take_in_next_server(storage)
    assert (lost.job_id, lost.ended_as, lost.state) == (job_id, "released", StateName.ENQUEUED)
    assert "server#1" in lost.reason
    assert lost.metadata == {"traceparent": "00-" + "1" * 49}


def test_each_is_one_workers_at_a_time_until_it_is_ended(storage: Storage) -> None:
    storage.finish(claim_new(storage), Failure(error=DIED, process=DEAD), retention=KEEP)

    first, second = take(storage, "worker-1"), take(storage, "worker-2")
    storage.deregister_worker("worker-1")
    third = take(storage, "worker-2")

    assert (len(first), second) == (1, [])
    assert third == first
    keys = [first[0].key]
    assert [storage.end_lost_attempts(worker, keys) for worker in ("worker-1", "worker-2")] == [0, 1]
    assert take(storage, "worker-2") == []


def test_those_that_nobody_exported_for_a_day_are_forgotten_in_batches(storage: Storage, raw: Raw) -> None:
    for _ in range(3):
        crash(storage)
    raw.age("lost_attempts", "ended_at", timedelta(days=1, seconds=1))
    young = crash(storage)

    assert [storage.forget_lost_attempts(limit=2) for _ in range(3)] == [2, 1, 0]
    assert [lost.key.job_id for lost in take(storage)] == [young]
