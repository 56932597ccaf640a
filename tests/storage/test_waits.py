"""Tests of the storage: the ends of jobs, looked for by those who wait, and told to them."""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import timedelta
from typing import Any

import pytest

from qml_mp.core.job import Claim, Job
from qml_mp.core.outcome import Cancelled, Failure, Outcome, Retry
from qml_mp.core.state import StateName
from qml_mp.storage.store import Storage
from qml_mp.storage.waiting import EndedWaker
from tests.storage.conftest import Raw
from tests.storage.helpers import DONE, HOUR, KEEP, NO, claim_new, fetch, finish_and_fetch, job_in
from tests.until import PATIENCE_S

UNKNOWN = "0190d5c7-a1b2-7c3d-8e4f-0123456789ab"
only_postgres = pytest.mark.parametrize("url", ["postgres"], indirect=True)


@pytest.fixture
def waker(opened: Callable[[], Storage]) -> Iterator[EndedWaker]:
    """Of another process than the one that ends jobs."""
    waiting = opened()
    waiting.migrate()
    found = waiting.open_ended_waker()
    assert found is not None
    with closing(found):
        yield found


def told_of(waker: EndedWaker, job_id: str, *, within_s: float = PATIENCE_S) -> bool:
    """Whether it is told that this job, or that any may have ended."""
    deadline = time.monotonic() + within_s
    while (left_s := deadline - time.monotonic()) > 0:
        if select.select([waker.fileno()], [], [], left_s)[0]:
            told = waker.drain()
            if told is None or job_id in told:
                return True
    return False


def begin(storage: Storage, *job_ids: str, waiter: str = "me") -> None:
    storage.begin_wait(waiter, job_ids, ttl=HOUR)


def test_what_has_ended_and_what_is_not_there_is_found_among_many(storage: Storage) -> None:
    jobs = {state: job_in(storage, state).job.id for state in StateName}
    ids = [*jobs.values(), UNKNOWN, "no id at all", "order-1", "", jobs[StateName.FAILED].upper()]

    found = storage.ended_jobs(ids)

    ended = found.jobs
    assert found.is_all
    assert {job_id: job and job.state_name for job_id, job in ended.items()} == {
        jobs[StateName.SUCCEEDED]: StateName.SUCCEEDED,
        jobs[StateName.FAILED]: StateName.FAILED,
        jobs[StateName.FAILED].upper(): StateName.FAILED,
        jobs[StateName.DELETED]: StateName.DELETED,
        UNKNOWN: None,
        "no id at all": None,
        "order-1": None,
        "": None,
    }
    assert ended[jobs[StateName.SUCCEEDED]] == storage.get(jobs[StateName.SUCCEEDED])


def test_more_jobs_are_looked_for_than_one_statement_takes(storage: Storage) -> None:
    ids = storage.enqueue_many([Job.new("work") for _ in range(1001)])
    claim = storage.fetch_and_lock_job(fetch())
    assert claim is not None
    storage.finish(claim, DONE, retention=KEEP)

    assert set(storage.ended_jobs([*ids, UNKNOWN]).jobs) == {claim.job.id, UNKNOWN}


@pytest.mark.parametrize("outcome", [DONE, Failure(error=NO), Cancelled(reason="no")], ids=type)
@pytest.mark.parametrize("together", ["alone", "with a claim", "with another outcome"])
def test_who_waits_is_told_of_the_end_however_it_is_written(
    storage: Storage, waker: EndedWaker, outcome: Outcome, together: str
) -> None:
    claim, other = claim_new(storage), claim_new(storage)
    begin(storage, claim.job.id)

    match together:
        case "alone":
            storage.finish(claim, outcome, retention=KEEP)
        case "with a claim":
            finish_and_fetch(storage, claim, outcome, fetch())
        case _:
            both = [(claim, outcome), (other, Retry(error=NO, delay=HOUR))]
            storage.exchange(both, fetch=fetch(), limit=5, retention=KEEP)

    assert told_of(waker, claim.job.id)


def test_who_waits_is_told_of_a_deletion(storage: Storage, waker: EndedWaker) -> None:
    ids = storage.enqueue_many([Job.new("work"), Job.new("work")])
    begin(storage, *ids)

    storage.delete(ids[0], reason="no", retention=KEEP)
    assert told_of(waker, ids[0])

    storage.request_cancel(ids[1], reason="no", retention=KEEP)
    assert told_of(waker, ids[1])


@only_postgres
def test_of_jobs_for_which_nobody_waits_nothing_is_told(storage: Storage, waker: EndedWaker) -> None:
    """A NOTIFY has commits wait for each other."""
    waited, other, retried = (claim_new(storage) for _ in range(3))
    begin(storage, waited.job.id, retried.job.id)
    begin(storage, other.job.id, waiter="you")
    storage.end_wait("you", [other.job.id])

    storage.finish(other, DONE, retention=KEEP)
    storage.finish(retried, Retry(error=NO, delay=HOUR), retention=KEEP)
    storage.finish(waited, DONE, retention=KEEP)

    told: set[str] = set()
    while waited.job.id not in told:
        assert select.select([waker.fileno()], [], [], PATIENCE_S)[0]
        told |= set(waker.drain() or ())
    assert told == {waited.job.id}


@only_postgres
def test_all_that_an_exchange_has_ended_is_told_at_once_and_of_too_many_that_any_may_have(
    storage: Storage, waker: EndedWaker
) -> None:
    def end(count: int) -> list[Claim]:
        storage.enqueue_many([Job.new("work") for _ in range(count)])
        claims = storage.exchange([], fetch=fetch(), limit=count, retention=KEEP).claims
        begin(storage, *(claim.job.id for claim in claims))
        storage.exchange([(claim, DONE) for claim in claims], fetch=None, limit=0, retention=KEEP)
        assert select.select([waker.fileno()], [], [], PATIENCE_S)[0]
        return list(claims)

    few = end(100)
    assert waker.drain() == {claim.job.id for claim in few}
    end(300)
    assert waker.drain() is None


@only_postgres
def test_a_wait_that_was_never_ended_is_forgotten(storage: Storage, raw: Raw) -> None:
    """Its waiter was killed."""
    begin(storage, UNKNOWN)
    storage.begin_wait("gone", [UNKNOWN], ttl=timedelta(milliseconds=1))
    time.sleep(0.002)  # the database's clock, which no test can set

    assert storage.delete_expired_locks(limit=10) == 0

    waits = raw.name("jobs").replace("jobs", "waits")
    assert raw.run(f"SELECT waiter FROM {waits}") == [("me",)]


@only_postgres
def test_a_wait_that_somebody_is_changing_holds_up_no_cleanup(
    storage: Storage, raw: Raw, connect: Callable[[], Any]
) -> None:
    for waiter in ("gone", "renewing"):
        storage.begin_wait(waiter, [UNKNOWN], ttl=timedelta(milliseconds=1))
    time.sleep(0.002)  # the database's clock, which no test can set
    waits = raw.name("jobs").replace("jobs", "waits")
    connect().execute(f"SELECT 1 FROM {waits} WHERE waiter = 'renewing' FOR UPDATE")

    assert storage.delete_expired_locks(limit=10) == 0

    assert raw.run(f"SELECT waiter FROM {waits}") == [("renewing",)]


@pytest.mark.parametrize("way", ["one", "in a list", "in the caller's transaction"])
def test_whoever_waits_for_a_job_that_is_replaced_is_told(
    storage: Storage, waker: EndedWaker, connect: Callable[[], Any], way: str
) -> None:
    old, new = (Job.new("work", unique_key="k", on_conflict="replace") for _ in range(2))
    storage.enqueue(old)
    begin(storage, old.id)
    waker.drain()

    if way == "one":
        storage.enqueue(new)
    elif way == "in a list":
        storage.enqueue_many([Job.new("work"), new])
    else:
        connection = connect()
        connection.execute("BEGIN" if storage.url.startswith("sqlite") else "SELECT 1")
        storage.enqueue_in(connection, [new])
        connection.commit()

    assert told_of(waker, old.id)
