"""Tests of the storage: programs wait for jobs that others end, and are told of the ends."""

from __future__ import annotations

import asyncio
import select
import threading
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest

from qml_mp import (
    ConfigurationError,
    JobFailed,
    JobHandle,
    JobNotFound,
    QmlApp,
    ResultNotStored,
    StorageUnavailable,
    WaitTimeout,
)
from qml_mp.core.job import Claim, Job
from qml_mp.core.outcome import Cancelled, Failure, Outcome, Retry, Success
from qml_mp.core.state import StateName
from qml_mp.storage.store import Storage
from qml_mp.storage.waiting import EndedWaker
from qml_mp.storage.waits import EndedJobs
from tests.processes.harness import wait_until
from tests.storage.conftest import Raw
from tests.storage.flaky_proxy import FlakyProxy
from tests.storage.helpers import (
    DONE,
    HOUR,
    KEEP,
    NO,
    claim_new,
    fetch,
    finish_and_fetch,
    in_children,
    job_in,
    patient_url,
)
from tests.until import PATIENCE_S

UNKNOWN = "0190d5c7-a1b2-7c3d-8e4f-0123456789ab"
LIMIT_S = 60.0
only_postgres = pytest.mark.parametrize("url", ["postgres"], indirect=True)


@dataclass
class Seen:
    """What the storage of the waiting program is asked for."""

    looks: list[int] = field(default_factory=list)
    """How many jobs each was about."""
    has_looked: threading.Event = field(default_factory=threading.Event)
    """One of them was answered."""
    listens: threading.Event = field(default_factory=threading.Event)
    """From now on whoever ends a job says so."""
    announced: set[str] = field(default_factory=set)
    """The jobs of which this holds."""
    wakers: int = 0
    """How often it began to listen."""


@pytest.fixture
def app(url: str, storage: Storage) -> Iterator[QmlApp]:  # makes the schema
    """The program that waits."""
    with closing(QmlApp(patient_url(url))) as app:
        yield app


@pytest.fixture
def seen(app: QmlApp, monkeypatch: pytest.MonkeyPatch) -> Seen:
    return seen_from(app, monkeypatch)


def seen_from(app: QmlApp, monkeypatch: pytest.MonkeyPatch) -> Seen:
    """From now on, of this program."""
    seen, storage = Seen(), app.storage
    ended_jobs, begin_wait, open_waker = storage.ended_jobs, storage.begin_wait, storage.open_ended_waker

    def look(job_ids: Collection[str]) -> EndedJobs:
        seen.looks.append(len(job_ids))
        ended = ended_jobs(job_ids)
        seen.has_looked.set()
        return ended

    def begin(waiter: str, job_ids: Collection[str], *, ttl: timedelta) -> None:
        begin_wait(waiter, job_ids, ttl=ttl)
        seen.announced |= set(job_ids)
        seen.listens.set()

    def open_ended_waker() -> EndedWaker | None:
        seen.wakers += 1
        return open_waker()

    monkeypatch.setattr(storage, "open_ended_waker", open_ended_waker)
    monkeypatch.setattr(storage, "ended_jobs", look)
    monkeypatch.setattr(storage, "begin_wait", begin)
    return seen


@pytest.fixture
def beside() -> Iterator[Callable[..., Future[Any]]]:
    """Runs a call in another thread."""
    with ThreadPoolExecutor() as threads:
        yield threads.submit


def enqueued(app: QmlApp, count: int) -> list[JobHandle]:
    return list(app.enqueue_many(Job.new("work", n) for n in range(count)))


def claims(other: Storage, count: int) -> list[Claim]:
    """Of the jobs in the order in which they were enqueued."""
    taken = other.exchange([], fetch=fetch(), limit=count, retention=KEEP).claims
    return sorted(taken, key=lambda claim: str(claim.job.payload).zfill(9))


def success(result: Any) -> Success:
    return Success(result=result, duration=timedelta(seconds=1))


def end(other: Storage, claim: Claim, outcome: Outcome = DONE) -> None:
    assert other.finish(claim, outcome, retention=KEEP).accepted


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        (success({"a": 1}), None),
        (Success(result=None, duration=timedelta(0), not_stored="too large"), ResultNotStored),
        (Failure(error=NO), JobFailed),
        (Cancelled(reason="not needed"), JobFailed),
    ],
    ids=["succeeded", "succeeded without its result", "failed", "cancelled"],
)
def test_a_waiter_that_listens_sees_how_a_job_ends(
    app: QmlApp,
    storage: Storage,
    seen: Seen,
    beside: Callable[..., Future[Any]],
    outcome: Outcome,
    expected: type[Exception] | None,
) -> None:
    [handle], [claim] = enqueued(app, 1), claims(storage, 1)

    waiting = beside(handle.wait, LIMIT_S)
    assert seen.listens.wait(LIMIT_S)
    end(storage, claim, outcome)

    if expected is None:
        assert waiting.result(LIMIT_S) == {"a": 1}
    else:
        assert isinstance(waiting.exception(LIMIT_S), expected)


def test_a_job_that_is_deleted_or_removed_while_it_is_waited_for_ends_the_wait(
    app: QmlApp, storage: Storage, seen: Seen, raw: Raw, beside: Callable[..., Future[Any]]
) -> None:
    deleted, removed = enqueued(app, 2)

    waiting = beside(app.wait_all, [deleted, removed], LIMIT_S, return_exceptions=True)
    assert seen.listens.wait(LIMIT_S)
    storage.delete(deleted.id, reason="not needed", retention=KEEP)
    raw.run("DELETE FROM {jobs} WHERE id = ?", removed.id)

    first, second = waiting.result(LIMIT_S)
    assert isinstance(first, JobFailed)
    assert "was deleted: not needed" in str(first)
    assert isinstance(second, JobNotFound)


def test_a_job_that_ends_at_once_is_seen_without_listening(
    app: QmlApp, storage: Storage, seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "qml_mp.watch._YOUNG_S", LIMIT_S
    )  # this process may stand still before its first look
    [handle], [claim] = enqueued(app, 1), claims(storage, 1)
    end(storage, claim, success(3))

    assert handle.wait(LIMIT_S) == 3
    with pytest.raises(WaitTimeout, match="still enqueued after 0s; it goes on"):
        enqueued(app, 1)[0].wait(0)
    with pytest.raises(JobNotFound):
        app.handle(UNKNOWN).wait(LIMIT_S)
    with pytest.raises(JobNotFound):
        app.handle("no id").wait(LIMIT_S)

    assert seen.looks == [1, 1, 1, 1]
    assert not seen.listens.is_set()


def test_the_results_of_many_come_in_the_order_of_their_handles(
    app: QmlApp, storage: Storage, seen: Seen, beside: Callable[..., Future[Any]]
) -> None:
    handles, running = enqueued(app, 5), claims(storage, 5)
    end(storage, running[3], success(3))

    waiting = beside(app.wait_all, [*handles, handles[1]], LIMIT_S)
    assert seen.listens.wait(LIMIT_S)
    for place in (4, 1, 0, 2):
        end(storage, running[place], success(place))

    assert waiting.result(LIMIT_S) == [0, 1, 2, 3, 4, 1]
    assert app.wait_all([]) == []


def test_the_first_failure_among_many_is_raised_at_once_or_stands_in_its_place(
    app: QmlApp, storage: Storage
) -> None:
    handles, running = enqueued(app, 3), claims(storage, 3)
    end(storage, running[1], Failure(error=NO))

    with pytest.raises(JobFailed) as failed:
        app.wait_all(handles)  # of which two never end
    assert failed.value.job_id == handles[1].id

    end(storage, running[0], success("a"))
    with pytest.raises(WaitTimeout, match=rf"^1 of the jobs, such as {handles[2].id}, were not seen to end"):
        app.wait_all(handles, 0, return_exceptions=True)

    end(storage, running[2], success("c"))
    results = app.wait_all([*handles, app.handle(UNKNOWN)], return_exceptions=True)
    assert [results[0], results[2]] == ["a", "c"]
    assert [type(results[1]), type(results[3])] == [JobFailed, JobNotFound]


def test_handles_come_as_their_jobs_end(
    app: QmlApp, storage: Storage, seen: Seen, beside: Callable[..., Future[Any]]
) -> None:
    handles, running = enqueued(app, 3), claims(storage, 3)
    order: list[int] = []

    def wait() -> None:
        for handle in app.as_completed(handles, LIMIT_S):
            order.append(handles.index(handle))
            if len(order) < 3:
                end(storage, running[2 - len(order)])

    waiting = beside(wait)
    assert seen.listens.wait(LIMIT_S)
    end(storage, running[2])

    waiting.result(LIMIT_S)
    assert order == [2, 1, 0]


def test_as_completed_ends_when_the_time_is_over(app: QmlApp, storage: Storage) -> None:
    handles = enqueued(app, 2)
    end(storage, claims(storage, 1)[0])

    ends = app.as_completed(handles, timeout=0)

    assert next(ends).state == "succeeded"
    with pytest.raises(WaitTimeout):
        next(ends)


def test_handles_of_two_storages_are_not_waited_for_together(app: QmlApp) -> None:
    other = QmlApp("memory://")
    with closing(other), pytest.raises(ConfigurationError, match="of several storages"):
        app.wait_all([app.handle(UNKNOWN), other.handle(UNKNOWN)])
    with pytest.raises(TypeError, match="Place 0 of the handles is 'a', which is no JobHandle"):
        app.wait_all(["a"])  # type: ignore[arg-type]  # what is tested


@only_postgres
def test_a_lost_connection_is_opened_again_and_nothing_is_missed(
    app: QmlApp, storage: Storage, seen: Seen, beside: Callable[..., Future[Any]], raw: Raw
) -> None:
    handles, running = enqueued(app, 2), claims(storage, 2)
    waiting = beside(app.wait_all, handles, LIMIT_S)
    assert seen.listens.wait(LIMIT_S)

    seen.listens.clear()
    schema = raw.name("jobs").partition(".")[0].strip('"')
    listening = f"query LIKE 'LISTEN%%{schema}%%'"
    raw.run(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {listening} AND pid <> ?", 0)
    end(storage, running[0])
    assert seen.listens.wait(LIMIT_S)
    end(storage, running[1])

    waiting.result(LIMIT_S)


@pytest.mark.nightly  # takes all of its 20 s: far more than the cut may take on a slow machine
@only_postgres
def test_an_outage_is_waited_out_and_the_time_limit_is_kept(
    url: str, storage: Storage, raw: Raw, postgres_url: str, beside: Callable[..., Future[Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    first = threading.Event()

    def wait_for_both() -> None:
        for handle in app.as_completed(handles, 20.0):  # far more than the cut takes
            assert handle.result == 1
            first.set()

    with FlakyProxy.before(postgres_url) as proxy, closing(QmlApp(proxy.through(url))) as app:
        handles, running = enqueued(app, 2), claims(storage, 2)
        seen = seen_from(app, monkeypatch)

        waiting = beside(wait_for_both)
        assert seen.has_looked.wait(LIMIT_S)  # who stands still before it listens first
        waits = f"SELECT job_id FROM {raw.name('jobs').replace('jobs', 'waits')}"
        wait_until(lambda: len(raw.run(waits)) == 2, what="that it listens")
        proxy.cut()
        end(storage, running[0], success(1))
        assert first.wait(LIMIT_S)
        proxy.close()

        with pytest.raises(WaitTimeout, match=rf"^1 of the jobs, such as {handles[1].id}"):
            waiting.result(LIMIT_S)
        with pytest.raises(StorageUnavailable):  # of a first look it is told
            handles[1].wait(0)


def test_a_storage_that_cannot_be_asked_at_all_is_told_at_once() -> None:
    with closing(QmlApp("postgresql://nobody@127.0.0.1:1/none")) as app, pytest.raises(StorageUnavailable):
        app.handle(UNKNOWN).wait(LIMIT_S)


def test_coroutines_wait_together_in_one_thread_over_one_connection(
    app: QmlApp, storage: Storage, seen: Seen
) -> None:
    handles, running = enqueued(app, 50), claims(storage, 50)

    async def wait() -> tuple[list[Any], int]:
        waits = [asyncio.create_task(handle.await_result(LIMIT_S)) for handle in handles]
        await asyncio.to_thread(seen.listens.wait, LIMIT_S)
        threads = sum(thread.name == "qml-mp: waiting for jobs" for thread in threading.enumerate())
        for place, claim in enumerate(running):
            await asyncio.to_thread(end, storage, claim, success(place))
        return await asyncio.gather(*waits), threads

    assert asyncio.run(wait()) == (list(range(50)), 1)
    assert_no_thread_is_left()


def test_who_leaves_leaves_the_others_waiting_for_the_same_job(
    app: QmlApp, storage: Storage, seen: Seen
) -> None:
    [handle, other], [claim, _] = enqueued(app, 2), claims(storage, 2)

    async def wait() -> Any:
        leaving = asyncio.create_task(app.await_all([handle, other]))
        staying = asyncio.create_task(app.await_all([handle], LIMIT_S))
        await asyncio.to_thread(seen.listens.wait, LIMIT_S)
        leaving.cancel()
        with suppress(asyncio.CancelledError):
            await leaving
        await asyncio.to_thread(end, storage, claim, success("a"))
        return await staying

    assert asyncio.run(wait()) == ["a"]
    assert_no_thread_is_left()


def test_the_forms_for_coroutines_do_what_the_others_do(app: QmlApp, storage: Storage) -> None:
    handles, running = enqueued(app, 3), claims(storage, 3)
    end(storage, running[2], success(2))
    end(storage, running[0], success(0))

    async def wait() -> None:
        assert await handles[0].await_result(0) == 0
        with pytest.raises(WaitTimeout, match="still processing"):
            await handles[1].await_result(0)
        with pytest.raises(WaitTimeout, match="1 of the jobs"):
            await app.await_all(handles, 0.01)
        with pytest.raises(JobNotFound):
            await app.handle(UNKNOWN).await_result()
        ended = [handle async for handle in app.aas_completed([handles[0], handles[2]])]
        assert ended == [handles[0], handles[2]]
        waiting = asyncio.create_task(app.await_all(handles, return_exceptions=True))
        await asyncio.to_thread(end, storage, running[1], Failure(error=NO))
        zero, one, two = await waiting
        assert (zero, type(one), two) == (0, JobFailed, 2)
        assert await app.await_all([]) == []

    asyncio.run(wait())
    assert_no_thread_is_left()


def test_a_coroutine_that_is_cancelled_waits_no_more(app: QmlApp, seen: Seen) -> None:
    handles = enqueued(app, 2)

    async def wait() -> None:
        waiting = [asyncio.create_task(handle.await_result()) for handle in handles]
        await asyncio.to_thread(seen.listens.wait, LIMIT_S)
        for each in waiting:
            each.cancel()
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(result) for result in results] == [asyncio.CancelledError] * 2

    asyncio.run(wait())
    assert_no_thread_is_left()


def test_a_forked_child_waits_by_itself(
    app: QmlApp, storage: Storage, seen: Seen, beside: Callable[..., Future[Any]]
) -> None:
    """The thread that its parent's coroutines have is not there."""
    handles, running = enqueued(app, 2), claims(storage, 2)
    end(storage, running[0], success("a"))
    waiting = beside(asyncio.run, handles[1].await_result(LIMIT_S))
    assert seen.listens.wait(LIMIT_S)

    statuses = in_children([lambda: asyncio.run(handles[0].await_result(LIMIT_S))])

    end(storage, running[1], success("b"))
    assert (statuses, waiting.result(LIMIT_S)) == ([0], "b")


@only_postgres
def test_a_child_forked_amid_a_wait_goes_on_with_it(
    app: QmlApp, storage: Storage, seen: Seen, beside: Callable[..., Future[Any]]
) -> None:
    """What it listens to is its parent's."""
    handles, running = enqueued(app, 2), claims(storage, 2)

    def end_once_it_listens(claim: Claim) -> None:
        assert seen.listens.wait(LIMIT_S)
        end(storage, claim)

    beside(end_once_it_listens, running[0])
    ends = app.as_completed(handles, LIMIT_S)
    assert next(ends) == handles[0]

    def go_on() -> None:
        seen.listens.clear()
        threading.Thread(target=end_once_it_listens, args=[running[1]], daemon=True).start()
        assert next(ends) == handles[1]

    assert in_children([go_on]) == [0]


def assert_no_thread_is_left() -> None:
    deadline = time.monotonic() + LIMIT_S
    while any(thread.name == "qml-mp: waiting for jobs" for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        select.select([], [], [], 0.002)


# The ends of jobs, looked for by those who wait, and told to them.


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


@pytest.mark.parametrize("outcome", [DONE, Failure(error=NO)], ids=type)
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
def test_a_wait_that_was_never_ended_is_forgotten(storage: Storage, raw: Raw) -> None:
    """Its waiter was killed."""
    begin(storage, UNKNOWN)
    storage.begin_wait("gone", [UNKNOWN], ttl=timedelta(milliseconds=1))
    time.sleep(0.002)  # the database's clock, which no test can set

    assert storage.delete_expired_locks(limit=10) == 0

    waits = raw.name("jobs").replace("jobs", "waits")
    assert raw.run(f"SELECT waiter FROM {waits}") == [("me",)]


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
