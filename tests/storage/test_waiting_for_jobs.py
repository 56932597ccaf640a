"""Tests of the storage: programs wait for jobs that others end, on both backends."""

from __future__ import annotations

import asyncio
import gc
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from types import FrameType, SimpleNamespace
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
    watch,
)
from qml_mp.core.job import Claim, Job
from qml_mp.core.outcome import Cancelled, Failure, Outcome, Success
from qml_mp.storage.postgres.connection import PostgresConnection
from qml_mp.storage.postgres.link import Link
from qml_mp.storage.store import Storage
from qml_mp.storage.waiting import EndedWaker
from qml_mp.storage.waits import EndedJobs
from tests.processes.harness import wait_until
from tests.storage.conftest import Raw
from tests.storage.flaky_proxy import FlakyProxy
from tests.storage.helpers import DONE, KEEP, NO, fetch, in_children, patient_url

UNKNOWN = "0190d5c7-a1b2-7c3d-8e4f-0123456789ab"
LIMIT_S = 60.0
LONG_S = 3600.0
only_sqlite = pytest.mark.parametrize("url", ["sqlite"], indirect=True)
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


def ended_within_limit(app: QmlApp, handle: JobHandle) -> dict[str, Job | None]:
    """As seen by who waits for it; without the last look that handles have when their time is over."""
    with watch.Watch(app.storage, polling=timedelta(seconds=0.1)) as waiting:
        waiting.add([handle.id])
        waiting._fresh.clear()  # each look is one at all
        return waiting.next_ended(deadline=time.monotonic() + LIMIT_S)


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


async def first_that_completes(app: QmlApp, handle: JobHandle) -> Any:
    async for each in app.aas_completed([handle], 0):
        return each.result


@pytest.mark.parametrize(
    "wait",
    [
        lambda _, handle: handle.wait(0),
        lambda app, handle: app.wait_all([handle], 0)[0],
        lambda app, handle: next(app.as_completed([handle], 0)).result,
        lambda _, handle: asyncio.run(handle.await_result(0)),
        lambda app, handle: asyncio.run(app.await_all([handle], 0))[0],
        lambda app, handle: asyncio.run(first_that_completes(app, handle)),
    ],
    ids=["wait", "wait_all", "as_completed", "await_result", "await_all", "aas_completed"],
)
def test_a_job_that_ends_between_the_last_look_and_the_end_of_the_time_has_ended(
    app: QmlApp, storage: Storage, monkeypatch: pytest.MonkeyPatch, wait: Callable[[QmlApp, JobHandle], Any]
) -> None:
    [handle], running = enqueued(app, 1), claims(storage, 1)
    look = app.storage.ended_jobs

    def look_and_then_it_ends(job_ids: Collection[str]) -> EndedJobs:
        ended = look(job_ids)
        while running:
            end(storage, running.pop(), success(3))
        return ended

    monkeypatch.setattr(app.storage, "ended_jobs", look_and_then_it_ends)

    assert wait(app, handle) == 3
    assert_no_thread_is_left()


def test_handles_of_two_storages_are_not_waited_for_together(app: QmlApp) -> None:
    other = QmlApp("memory://")
    with closing(other), pytest.raises(ConfigurationError, match="of several storages"):
        app.wait_all([app.handle(UNKNOWN), other.handle(UNKNOWN)])
    with pytest.raises(TypeError, match="Place 0 of the handles is 'a', which is no JobHandle"):
        app.wait_all(["a"])  # type: ignore[arg-type]  # what is tested


def test_a_thousand_handles_cost_hardly_any_statements(app: QmlApp, storage: Storage, seen: Seen) -> None:
    handles = enqueued(app, 1000)

    with pytest.raises(WaitTimeout, match="1000 of the jobs"):
        app.wait_all(handles, timeout=1.2)

    # At 0, 5, 15, 35, 75, 155, 315, 635 and 1200 ms, once more when it begins to listen; as what was enqueued
    # is seen, too, on SQLite.
    assert set(seen.looks) == {1000}
    assert len(seen.looks) <= 12


@pytest.mark.parametrize("fails", [True, False], ids=["and failed", "and found nothing"])
def test_a_look_that_took_long_is_soon_followed_by_another_one(
    app: QmlApp, storage: Storage, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    monkeypatch.setattr(watch, "_WORK_PER_REST", 1e9)  # each look has taken long
    monkeypatch.setattr(watch, "_YOUNG_S", LONG_S)  # it does not listen
    [handle], [claim] = enqueued(app, 1), claims(storage, 1)
    look, looks = app.storage.ended_jobs, iter(range(1000))

    def look_slowly(job_ids: Collection[str]) -> EndedJobs:
        is_second, ended = next(looks) == 1, look(job_ids)
        if is_second:
            end(storage, claim, success(3))
        if is_second and fails:
            monkeypatch.setattr(watch, "_LONGEST_REST_S", LONG_S)  # there is none after a failed look
            raise StorageUnavailable("The server did not reply in time.")
        return ended

    monkeypatch.setattr(app.storage, "ended_jobs", look_slowly)

    assert list(ended_within_limit(app, handle)) == [handle.id]


def test_who_rests_begins_to_listen_all_the_same(
    app: QmlApp, storage: Storage, seen: Seen, beside: Callable[..., Future[Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(watch, "_WORK_PER_REST", 1e9)
    monkeypatch.setattr(watch, "_LONGEST_REST_S", LONG_S)
    [handle], [claim] = enqueued(app, 1), claims(storage, 1)
    begin = app.storage.begin_wait

    def begin_as_it_ends(waiter: str, job_ids: Collection[str], *, ttl: timedelta) -> None:
        end(storage, claim, success(3))  # as nobody listens yet
        begin(waiter, job_ids, ttl=ttl)

    monkeypatch.setattr(app.storage, "begin_wait", begin_as_it_ends)

    waiting = beside(handle.wait, 2 * LIMIT_S)

    assert seen.listens.wait(LIMIT_S)
    assert waiting.result(LIMIT_S) == 3


@only_sqlite
def test_where_gevent_has_taken_epoll_away_a_job_is_waited_for_by_looking(
    app: QmlApp, storage: Storage, seen: Seen, beside: Callable[..., Future[Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.delattr(select, "epoll")
    [handle], [claim] = enqueued(app, 1), claims(storage, 1)

    waiting = beside(handle.wait, LIMIT_S)
    wait_until(lambda: seen.wakers, what="that it would listen")
    end(storage, claim, success(3))

    assert waiting.result(LIMIT_S) == 3


@only_postgres
def test_what_is_said_to_have_ended_is_looked_for_alone(
    app: QmlApp, storage: Storage, seen: Seen, beside: Callable[..., Future[Any]], raw: Raw
) -> None:
    handles, running = enqueued(app, 100), claims(storage, 100)

    waiting = beside(app.wait_all, handles, LIMIT_S)
    assert seen.listens.wait(LIMIT_S)
    for first in range(0, 100, 5):
        looks = len(seen.looks)
        for claim in running[first : first + 5]:
            end(storage, claim)
        wait_until(lambda looks=looks: len(seen.looks) > looks, what="a look")  # type: ignore[misc]
    waiting.result(LIMIT_S)

    # Were each look about all that have not ended, fewer than ten would be about fewer than ten.
    assert sum(jobs < 10 for jobs in seen.looks) > 12
    assert raw.run(f"SELECT count(*) FROM {raw.name('jobs').replace('jobs', 'waits')}") == [(0,)]


@only_postgres
def test_what_has_ended_is_not_told_of_for_ever_by_who_waits_for_more(
    app: QmlApp, storage: Storage, seen: Seen, raw: Raw, beside: Callable[..., Future[Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(watch, "_RENEW_S", 0.05)
    handles, running = enqueued(app, 2), claims(storage, 2)
    waits = f"SELECT job_id FROM {raw.name('jobs').replace('jobs', 'waits')}"
    waiting = beside(app.wait_all, handles, LIMIT_S)
    assert seen.listens.wait(LIMIT_S)

    end(storage, running[0])

    wait_until(lambda: raw.run(waits) == [(handles[1].id,)], what="the end of the other wait")
    end(storage, running[1])
    waiting.result(LIMIT_S)
    assert raw.run(waits) == []


@only_postgres
def test_a_lost_connection_is_opened_again_and_nothing_is_missed(
    app: QmlApp, storage: Storage, seen: Seen, beside: Callable[..., Future[Any]], raw: Raw
) -> None:
    handles, running = enqueued(app, 2), claims(storage, 2)
    waiting = beside(app.wait_all, handles, LIMIT_S)
    assert seen.listens.wait(LIMIT_S)

    seen.listens.clear()
    listening = "query LIKE 'LISTEN%%' AND datname = current_database()"
    raw.run(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {listening} AND pid <> ?", 0)
    end(storage, running[0])
    assert seen.listens.wait(LIMIT_S)
    end(storage, running[1])

    waiting.result(LIMIT_S)


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


@pytest.mark.parametrize(
    ("from_then_on", "is_asked"),
    [("ended_jobs", ["open_ended_waker", "get"]), ("begin_wait", ["ended_jobs", "get"])],
    ids=["the first look", "it listens"],
)
def test_where_nothing_replies_any_more_little_is_asked_once_the_time_is_over(
    app: QmlApp, monkeypatch: pytest.MonkeyPatch, from_then_on: str, is_asked: list[str]
) -> None:
    [handle] = enqueued(app, 1)
    asked, is_silent, ahead_s = list[str](), threading.Event(), [0.0]

    def asks(name: str) -> Callable[..., Any]:
        ask = getattr(app.storage, name)

        def ask_or_wait_in_vain(*given: Any, **named: Any) -> Any:
            if is_silent.is_set():
                asked.append(name)
                ahead_s[0] += LONG_S
                raise StorageUnavailable("The server did not reply in time.")
            answer = ask(*given, **named)
            if name == "ended_jobs":
                ahead_s[0] += LIMIT_S / 2
            if name == from_then_on:
                is_silent.set()
            return answer

        return ask_or_wait_in_vain

    for name in ("ended_jobs", "open_ended_waker", "begin_wait", "end_wait", "get"):
        monkeypatch.setattr(app.storage, name, asks(name))
    monkeypatch.setattr(watch, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + ahead_s[0]))
    monkeypatch.setattr(watch, "_FIRST_PAUSE_S", LONG_S)  # the second look comes after it has begun to listen
    monkeypatch.setattr(watch, "_YOUNG_S", LIMIT_S / 2)  # and the first before, whoever stands still

    with pytest.raises(WaitTimeout, match="did not reply in time"):
        handle.wait(LIMIT_S)

    assert asked == is_asked


@only_postgres
def test_a_schema_that_is_dropped_for_a_restore_is_waited_for(
    app: QmlApp, storage: Storage, seen: Seen, raw: Raw, beside: Callable[..., Future[Any]]
) -> None:
    [handle], [claim] = enqueued(app, 1), claims(storage, 1)
    schema = raw.name("jobs").partition(".")[0].strip('"')
    waiting = beside(handle.wait, LIMIT_S)
    assert seen.listens.wait(LIMIT_S)

    raw.run(f"ALTER SCHEMA {schema} RENAME TO {schema}_kept")
    try:
        looks = len(seen.looks)
        wait_until(lambda: len(seen.looks) > looks + 1, what="a look that was over")
    finally:
        raw.run(f"ALTER SCHEMA {schema}_kept RENAME TO {schema}")
    end(storage, claim, success(3))

    assert waiting.result(LIMIT_S) == 3


@only_postgres
def test_a_schema_that_is_back_by_the_time_it_is_looked_for_ends_no_wait(
    app: QmlApp, storage: Storage, seen: Seen, raw: Raw, beside: Callable[..., Future[Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    [handle], [claim] = enqueued(app, 1), claims(storage, 1)
    schema = raw.name("jobs").partition(".")[0].strip('"')
    is_back, version = threading.Event(), PostgresConnection._version

    def put_back_before(self: PostgresConnection, link: Link) -> int:
        if not is_back.is_set():
            raw.run(f"ALTER SCHEMA {schema}_kept RENAME TO {schema}")
            is_back.set()
        return version(self, link)

    waiting = beside(handle.wait, LIMIT_S)
    assert seen.listens.wait(LIMIT_S)
    monkeypatch.setattr(PostgresConnection, "_version", put_back_before)
    raw.run(f"ALTER SCHEMA {schema} RENAME TO {schema}_kept")
    assert is_back.wait(LIMIT_S)
    end(storage, claim, success(3))

    assert waiting.result(LIMIT_S) == 3


@only_postgres
def test_many_large_results_come_over_a_link_that_is_too_slow_for_all_of_them_at_once(
    url: str, storage: Storage, postgres_url: str
) -> None:
    with FlakyProxy.before(postgres_url) as proxy, closing(QmlApp(proxy.through(url))) as app:
        handles, running = enqueued(app, 6), claims(storage, 6)
        for place, claim in enumerate(running):
            end(storage, claim, success(str(place) * 1_000_000))
        # In the place of the time that a statement has.
        proxy.lose_long_replies(3_500_000)

        async def one_by_one() -> list[Any]:
            return await asyncio.gather(*(handle.await_result(0) for handle in handles))

        results = app.wait_all(handles, 0)
        of_coroutines = [asyncio.run(one_by_one()), asyncio.run(app.await_all(handles, 0))]

    assert [result[0] for result in results] == ["0", "1", "2", "3", "4", "5"]
    assert of_coroutines == [results, results]
    assert_no_thread_is_left()


def test_a_storage_that_cannot_be_asked_at_all_is_told_at_once() -> None:
    with closing(QmlApp("postgresql://nobody@127.0.0.1:1/none")) as app, pytest.raises(StorageUnavailable):
        app.handle(UNKNOWN).wait(LIMIT_S)


def test_a_wait_that_is_interrupted_leaves_nothing(
    app: QmlApp, raw: Raw, seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    [handle] = enqueued(app, 1)
    rings = watch.Watch._rings

    def rings_until_interrupted(self: watch.Watch, *, until: float) -> bool:
        if seen.listens.is_set():
            signal.setitimer(signal.ITIMER_REAL, 0.01)
        try:
            return rings(self, until=until)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(watch.Watch, "_rings", rings_until_interrupted)
    gc.collect()  # what earlier tests have left closes no descriptor meanwhile
    before, fds = signal.signal(signal.SIGALRM, interrupt), set(os.listdir("/proc/self/fd"))
    try:
        with pytest.raises(KeyboardInterrupt):
            handle.wait()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)

    assert seen.listens.is_set()
    assert set(os.listdir("/proc/self/fd")) == fds
    if not raw.is_sqlite:
        assert raw.run(f"SELECT count(*) FROM {raw.name('jobs').replace('jobs', 'waits')}") == [(0,)]


def test_threads_beside_the_first_one_that_waits_share_a_connection(
    app: QmlApp, storage: Storage, seen: Seen
) -> None:
    handles, running = enqueued(app, 12), claims(storage, 12)
    end(storage, running[0], success(0))

    with ThreadPoolExecutor(12) as threads:
        first = threads.submit(handles[1].wait, LIMIT_S)
        assert seen.listens.wait(LIMIT_S)
        others = [threads.submit(handle.wait, LIMIT_S) for handle in (handles[0], *handles[2:-1])]
        wait_until(lambda: seen.announced >= {each.id for each in handles[1:-1]}, what="all waits")
        late = threads.submit(handles[-1].wait, 0.05)
        assert isinstance(late.exception(LIMIT_S), WaitTimeout)
        for place, claim in enumerate(running[1:], 1):
            end(storage, claim, success(place))
        results = [each.result(LIMIT_S) for each in (first, *others)]

    assert results == [1, 0, *range(2, 11)]
    assert seen.wakers <= 2
    assert_no_thread_is_left()


@pytest.mark.parametrize("failing", [(1, 2, 3), (2, 3)], ids=["at a look of its own", "at one of the thread"])
def test_an_outage_is_waited_out_beside_somebody_who_waits(
    app: QmlApp, storage: Storage, seen: Seen, monkeypatch: pytest.MonkeyPatch, failing: tuple[int, ...]
) -> None:
    handles, running = enqueued(app, 3), claims(storage, 3)
    end(storage, running[0], success(0))
    look, looks = app.storage.ended_jobs, iter(range(1000))

    def look_in_an_outage(job_ids: Collection[str]) -> EndedJobs:
        number = -1 if handles[2].id in job_ids else next(looks)
        if number == failing[-1]:
            end(storage, running[1], success(1))
        if number in failing:
            raise StorageUnavailable("The database is restarting.")
        return look(job_ids)

    monkeypatch.setattr(app.storage, "ended_jobs", look_in_an_outage)
    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(handles[2].wait, LIMIT_S)
        assert seen.listens.wait(LIMIT_S)
        try:
            ended = [handle.id for handle in app.as_completed(handles[:2], LIMIT_S)]
        finally:
            end(storage, running[2], success(2))

    assert ended == [handle.id for handle in handles[:2]]
    assert first.result() == 2
    assert_no_thread_is_left()


def test_a_job_may_be_waited_for_among_others_that_are(app: QmlApp, storage: Storage) -> None:
    handles, running = enqueued(app, 2), claims(storage, 2)
    for place, claim in enumerate(running):
        end(storage, claim, success(place))

    assert sorted(handle.wait() for handle in app.as_completed(handles)) == [0, 1]
    for _ in app.as_completed(handles):
        with pytest.raises(WaitTimeout):
            enqueued(app, 1)[0].wait(0.02)
    assert_no_thread_is_left()


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


@only_postgres
def test_a_coroutine_whose_job_has_ended_has_nobody_elses_jobs_looked_for(
    app: QmlApp, storage: Storage, seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    # They are looked for when something is told of them.
    for pause in ("_FIRST_PAUSE_S", "_LOOK_EVERY_S", "_RENEW_S"):
        monkeypatch.setattr(watch, pause, LONG_S)
    handles, running = enqueued(app, 10), claims(storage, 10)

    def all_are_announced() -> bool:
        return seen.announced >= {handle.id for handle in handles}

    async def wait() -> None:
        waits = [asyncio.create_task(handle.await_result(LIMIT_S)) for handle in handles]
        await asyncio.to_thread(wait_until, all_are_announced)
        seen.looks.clear()
        for waiting, claim in zip(waits, running, strict=True):
            await asyncio.to_thread(end, storage, claim)
            await waiting

    asyncio.run(wait())

    # Of all together at most once: for what ended before it was announced.
    assert sum(jobs > 1 for jobs in seen.looks) <= 1
    assert_no_thread_is_left()


@only_postgres
@pytest.mark.parametrize("is_announced", [True, False], ids=["announced", "not announced yet"])
def test_a_coroutine_that_comes_has_nobody_elses_jobs_looked_for(
    app: QmlApp, storage: Storage, seen: Seen, monkeypatch: pytest.MonkeyPatch, is_announced: bool
) -> None:
    for pause in ("_FIRST_PAUSE_S", "_LOOK_EVERY_S", "_RENEW_S"):
        monkeypatch.setattr(watch, pause, LONG_S)
    handles, running = enqueued(app, 15), claims(storage, 15)
    claim_of = {claim.job.id: claim for claim in running}
    many, late, quick, looked_for_since = handles[:10], handles[10:], set[str](), set[str]()
    look = app.storage.ended_jobs

    def look_and_then_the_quick_ones_end(job_ids: Collection[str]) -> EndedJobs:
        announced = seen.announced.intersection(job_ids)
        ended = look(job_ids)
        looked_for_since.update(announced)
        for job_id in quick.intersection(job_ids):
            quick.remove(job_id)
            end(storage, claim_of[job_id])
        return ended

    monkeypatch.setattr(app.storage, "ended_jobs", look_and_then_the_quick_ones_end)

    async def until(condition: Callable[[], bool]) -> None:
        await asyncio.to_thread(wait_until, condition)

    async def wait() -> None:
        waits = [asyncio.create_task(handle.await_result(LIMIT_S)) for handle in many]
        # Of each there is a look as it is announced, which may be the first one too.
        await until(lambda: looked_for_since >= {handle.id for handle in many})
        seen.looks.clear()
        if not is_announced:
            monkeypatch.setattr(watch, "_YOUNG_S", LONG_S)
            monkeypatch.setattr(watch, "_FIRST_PAUSE_S", 0.001)
        for handle in late:
            if not is_announced:
                quick.add(handle.id)
            waiting = asyncio.create_task(handle.await_result(LIMIT_S))
            if is_announced:
                await until(lambda job_id=handle.id: job_id in seen.announced)  # type: ignore[misc]
                await asyncio.to_thread(end, storage, claim_of[handle.id])
            await waiting
        for each in waits:
            each.cancel()

    asyncio.run(wait())

    assert set(seen.looks) == {1}
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


@pytest.mark.parametrize("ends", [True, False], ids=["of a job that ends", "of one that never does"])
def test_a_coroutine_whose_loop_is_closed_under_it_waits_no_more(
    app: QmlApp, storage: Storage, seen: Seen, ends: bool
) -> None:
    [handle], [claim] = enqueued(app, 1), claims(storage, 1)
    loop = asyncio.new_event_loop()
    coroutine = handle.await_result()  # kept: it is not collected, and does not leave so
    waiting = loop.create_task(coroutine)

    while not seen.listens.is_set():
        loop.run_until_complete(asyncio.sleep(0.001))
    loop.close()
    if ends:
        end(storage, claim)

    assert_no_thread_is_left()
    assert not waiting.done()
    with suppress(RuntimeError):  # asyncio's queue asks the loop
        coroutine.close()


def test_an_error_of_the_storage_reaches_every_coroutine() -> None:
    with closing(QmlApp("postgresql://nobody@127.0.0.1:1/none")) as app:

        async def wait() -> list[BaseException | Any]:
            waits = [app.handle(UNKNOWN).await_result() for _ in range(2)]
            return await asyncio.gather(*waits, return_exceptions=True)

        results = asyncio.run(wait())

    assert [isinstance(result, StorageUnavailable) for result in results] == [True, True]
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
