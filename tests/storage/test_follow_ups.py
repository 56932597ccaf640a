"""Tests of the storage: jobs that are enqueued with the success of another, in its commit or not at all."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta
from itertools import count
from typing import Any

import pytest

from qml_mp.core.job import Job
from qml_mp.core.outcome import Extras, Failure, Success
from qml_mp.core.state import StateName
from qml_mp.errors import StorageUnavailable
from qml_mp.storage.outcomes import Outcomes
from qml_mp.storage.store import Storage
from qml_mp.storage.values import JobFilter
from tests import failpoints
from tests.storage.conftest import Raw
from tests.storage.helpers import (
    DONE,
    HOUR,
    KEEP,
    NO,
    before_query,
    claim_some,
    fetch,
    in_children,
    interrupt,
    open_patiently,
    present,
    states,
)
from tests.until import wait_until


def followed_by(*jobs: Job) -> Success:
    return Success(result=1, duration=timedelta(seconds=1), extras=Extras(follow_ups=jobs))


def next_job(**options: object) -> Job:
    return Job.new("next", {"path": "a.png"}, queue="later", **options)  # type: ignore[arg-type]


def following(storage: Storage) -> list[Job]:
    """All that are there, oldest first."""
    return list(reversed(storage.list_jobs(JobFilter(method="next")).jobs))


def test_they_are_enqueued_with_the_success_and_claimed_by_whoever_comes(storage: Storage) -> None:
    held = claim_some(storage, 3)
    chained = [next_job(priority=3, timeout=timedelta(seconds=9), max_retries=2), next_job(delay=HOUR)]
    outcomes: Outcomes = [
        (held[0], DONE),
        (held[1], followed_by(*chained)),
        (held[2], Failure(error=NO)),
    ]

    exchanged = storage.exchange(outcomes, fetch=fetch("later"), limit=5, retention=KEEP)

    assert [done.accepted for done in exchanged.finished] == [True] * 3
    assert [done.job for done in exchanged.finished] == [present(storage, claim) for claim in held]
    assert states(storage, held) == [StateName.SUCCEEDED, StateName.SUCCEEDED, StateName.FAILED]
    [claimed] = exchanged.claims
    job = claimed.job
    assert (job.id, job.payload, job.priority) == (chained[0].id, {"path": "a.png"}, 3)
    assert (job.timeout, job.max_retries) == (timedelta(seconds=9), 2)
    assert [each.state_name for each in following(storage)] == [StateName.PROCESSING, StateName.SCHEDULED]
    assert following(storage)[1].run_at == chained[1].run_at


def test_nothing_follows_a_claim_that_was_lost(storage: Storage) -> None:
    lost, kept = claim_some(storage, 2)
    storage.finish(lost, Failure(error=NO), retention=KEEP)
    chained = next_job()

    exchanged = storage.exchange(
        [(lost, followed_by(next_job())), (kept, followed_by(chained))], fetch=None, limit=0, retention=KEEP
    )

    assert [done.accepted for done in exchanged.finished] == [False, True]
    assert [job.id for job in following(storage)] == [chained.id]


def test_a_unique_key_that_another_job_has_keeps_that_one(storage: Storage) -> None:
    [claim] = claim_some(storage, 1)
    earlier = storage.enqueue(next_job(unique_key="k"))
    chained = [next_job(unique_key="k"), next_job(unique_key="free", unique_for=HOUR)]

    [done] = storage.exchange([(claim, followed_by(*chained))], fetch=None, limit=0, retention=KEEP).finished

    assert done.state is StateName.SUCCEEDED
    assert [job.id for job in following(storage)] == [earlier, chained[1].id]
    assert storage.enqueue(next_job(unique_key="free", unique_for=HOUR)) == chained[1].id


@pytest.mark.fault(36)
def test_repeated_after_a_lost_reply_they_are_enqueued_once(
    storage: Storage,
    reset_failpoints: None,
) -> None:
    held = claim_some(storage, 2)
    chained = [next_job(), next_job(unique_key="k")]
    outcomes = [(claim, followed_by(job)) for claim, job in zip(held, chained, strict=True)]

    failpoints.arm("storage.committed=raise:1")
    with pytest.raises(StorageUnavailable):
        storage.exchange(outcomes, fetch=None, limit=0, retention=KEEP)
    failpoints.arm("")
    storage.delete(chained[0].id, reason="it has run meanwhile", retention=KEEP)
    storage.delete(chained[1].id, reason="and its key is free", retention=KEEP)
    again = storage.exchange(outcomes, fetch=None, limit=0, retention=KEEP)

    assert [done.state for done in again.finished] == [StateName.SUCCEEDED] * 2
    assert [job.id for job in following(storage)] == [job.id for job in chained]


def test_interrupted_before_any_query_nothing_has_happened(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = claim_some(storage, 3)
    chained = [next_job(unique_key="k", unique_for=HOUR), next_job()]
    outcomes: Outcomes = [(held[0], followed_by(*chained)), (held[1], DONE), (held[2], Failure(error=NO))]

    for number in count(1):
        with monkeypatch.context() as patched:
            before_query(storage, number, interrupt, patched)
            try:
                exchanged = storage.exchange(outcomes, fetch=fetch(), limit=2, retention=KEEP)
                break
            except StorageUnavailable:
                pass
        assert states(storage, held) == [StateName.PROCESSING] * 3
        assert following(storage) == []

    assert number > 5  # the locks, the failure and its attempt, the key
    assert [done.accepted for done in exchanged.finished] == [True] * 3
    assert [job.id for job in following(storage)] == [job.id for job in chained]


@pytest.mark.parametrize("url", ["postgres"], indirect=True)
def test_a_job_that_follows_itself_and_one_that_replaces_it_do_not_wait_for_each_other(
    storage: Storage, raw: Raw, url: str, connect: Callable[[], Any]
) -> None:
    def wanted() -> Job:
        return next_job(unique_key="k", on_conflict="replace")

    storage.enqueue(Job.new("work", unique_key="k"))
    [claim] = storage.exchange((), fetch=fetch(), limit=1, retention=KEEP).claims
    producer = connect()
    with ThreadPoolExecutor(1) as thread, closing(open_patiently(url)) as worker:
        storage.enqueue_in(producer, [wanted()])  # has the key until its commit
        outcomes = [(claim, followed_by(wanted()))]
        done = thread.submit(worker.exchange, outcomes, fetch=None, limit=0, retention=KEEP)
        waiting = "SELECT 1 FROM pg_stat_activity WHERE ? = ANY(pg_blocking_pids(pid))"
        wait_until(lambda: raw.run(waiting, producer.info.backend_pid), what="a worker that waits")
        storage.enqueue_in(producer, [wanted()])
        producer.commit()

        assert [each.accepted for each in done.result().finished] == [True]


@pytest.mark.parametrize("place", ["before they are enqueued", "committed"])
def test_a_process_that_is_killed_leaves_the_success_with_them_or_neither(
    url: str, storage: Storage, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    [claim] = claim_some(storage, 1)
    chained = next_job(unique_key="k", on_conflict="replace")
    outcomes = [(claim, followed_by(chained))]
    storage.close()

    def exchange() -> None:
        with closing(open_patiently(url)) as mine:
            if place == "committed":
                failpoints.arm("storage.committed=kill:1")
            else:  # the key is held by the first query after the lock
                before_query(mine, 2, lambda: os.kill(os.getpid(), signal.SIGKILL), monkeypatch)
            mine.exchange(outcomes, fetch=None, limit=0, retention=KEEP)

    [status] = in_children([exchange])

    assert os.WTERMSIG(status) == signal.SIGKILL
    was_written = place == "committed"
    assert (present(storage, claim).state_name is StateName.SUCCEEDED) is was_written
    assert [job.id for job in following(storage)] == ([chained.id] if was_written else [])
    storage.exchange(outcomes, fetch=None, limit=0, retention=KEEP)
    assert present(storage, claim).state_name is StateName.SUCCEEDED
    assert [job.id for job in following(storage)] == [chained.id]
