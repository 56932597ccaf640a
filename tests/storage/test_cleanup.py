"""Tests of the storage and the loop on it: expired jobs are deleted in small batches, each wholly or not."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, nullcontext
from datetime import UTC, datetime, timedelta
from itertools import count, pairwise

import pytest

from qml_mp.clock import SystemClock
from qml_mp.core.history import Ending
from qml_mp.core.job import Job
from qml_mp.core.state import StateName
from qml_mp.errors import StorageError, StorageUnavailable
from qml_mp.storage.store import Storage
from qml_mp.supervisor.loops.cleanup import CleanupLoop
from qml_mp.supervisor.run import Run
from tests import failpoints
from tests.storage.conftest import Raw
from tests.storage.helpers import (
    DONE,
    KEEP,
    claim_new,
    fetch,
    in_children,
    job_in,
    open_patiently,
    server_run,
)
from tests.storage.test_exchange import before_query, interrupt

EXPIRED = 6
LIMIT = 4


def expire(storage: Storage, raw: Raw, number: int) -> None:
    """So many jobs that have ended and expired, each with an attempt."""
    for _ in range(number):
        job_in(storage, StateName.FAILED)
    raw.age("jobs", "expires_at", timedelta(days=1))


def left(raw: Raw) -> tuple[int, int]:
    """How many jobs there are, and how many attempts."""
    [(jobs,)], [(attempts,)] = (raw.run(f"SELECT count(*) FROM {{{each}}}") for each in ("jobs", "attempts"))
    return jobs, attempts


def committed(raw: Raw, action: str) -> str:
    """The failpoint behind the commit of a batch; on SQLite a look comes before."""
    return f"storage.committed={action}:{2 if raw.is_sqlite else 1}"


class FastClock(SystemClock):
    """Goes as all others, and can be put forward."""

    ahead_s = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self.ahead_s


@pytest.fixture
def clock() -> FastClock:
    """The server's."""
    return FastClock()


@pytest.fixture
def run(storage: Storage, clock: FastClock) -> Iterator[Run]:
    with server_run(storage, clock=clock) as run:
        yield run


@pytest.fixture
def cleanup(run: Run) -> CleanupLoop:
    """Its loop."""
    return CleanupLoop(run, interval=timedelta(minutes=1))


def test_interrupted_before_any_of_its_queries_a_batch_has_deleted_nothing(
    storage: Storage, raw: Raw, monkeypatch: pytest.MonkeyPatch
) -> None:
    expire(storage, raw, EXPIRED)

    for number in count(1):
        with monkeypatch.context() as patched:
            until_then = before_query(storage, number, interrupt, patched)
            try:
                deleted = storage.delete_expired_jobs(limit=LIMIT)
                break
            except StorageUnavailable:
                assert until_then() == 0
        assert left(raw) == (EXPIRED, EXPIRED)

    assert number > 1
    assert deleted == LIMIT
    assert left(raw) == (EXPIRED - LIMIT, EXPIRED - LIMIT)


@pytest.mark.parametrize("failpoint", ["before the query", "after the commit"])
def test_a_supervisor_that_is_killed_while_it_deletes_leaves_whole_jobs_and_the_next_goes_on(
    url: str, storage: Storage, raw: Raw, monkeypatch: pytest.MonkeyPatch, failpoint: str
) -> None:
    expire(storage, raw, EXPIRED)
    storage.close()

    def delete() -> None:
        with closing(open_patiently(url)) as mine:
            if failpoint == "after the commit":
                failpoints.arm(committed(raw, "kill"))
            else:
                before_query(mine, 1, lambda: os.kill(os.getpid(), signal.SIGKILL), monkeypatch)
            mine.delete_expired_jobs(limit=LIMIT)

    [status] = in_children([delete])

    assert os.WTERMSIG(status) == signal.SIGKILL
    is_committed = failpoint == "after the commit"
    assert left(raw) == ((EXPIRED - LIMIT,) * 2 if is_committed else (EXPIRED,) * 2)
    assert storage.delete_expired_jobs(limit=100) == (EXPIRED - LIMIT if is_committed else EXPIRED)
    assert left(raw) == (0, 0)


def test_a_reply_that_is_lost_is_no_reason_not_to_go_on(storage: Storage, raw: Raw) -> None:
    expire(storage, raw, EXPIRED)
    failpoints.arm(committed(raw, "raise"))
    try:
        with pytest.raises(StorageUnavailable):
            storage.delete_expired_jobs(limit=LIMIT)
    finally:
        failpoints.arm("")

    assert storage.delete_expired_jobs(limit=100) == EXPIRED - LIMIT
    assert left(raw) == (0, 0)


def test_many_are_deleted_in_batches_with_pauses_and_locks_at_the_end(
    storage: Storage, raw: Raw, cleanup: CleanupLoop
) -> None:
    ids = storage.enqueue_many(Job.new("work") for _ in range(130))
    held = storage.exchange((), fetch=fetch(), limit=100, retention=KEEP).claims
    held += storage.exchange((), fetch=fetch(), limit=100, retention=KEEP).claims
    storage.exchange([(claim, DONE) for claim in held], fetch=None, limit=0, retention=KEEP)
    raw.age("jobs", "expires_at", timedelta(days=1))
    storage.acquire_lock("report", "somebody", timedelta(0))
    loop, pauses, jobs = cleanup, list[timedelta | None](), [len(ids)]

    while not pauses or pauses[-1] is not None:
        assert raw.run("SELECT count(*) FROM {locks}") == [(1,)]
        pauses.append(loop.tick(storage))
        jobs.append(left(raw)[0])

    assert jobs[-1] == 0
    assert all(before - after <= 50 for before, after in pairwise(jobs))
    assert all(pause is not None and pause > timedelta() for pause in pauses[:-1])
    assert len(pauses) > 2
    assert raw.run("SELECT count(*) FROM {locks}") == [(0,)]


def end(storage: Storage, raw: Raw, number: int) -> None:
    """So many jobs that have ended and expired, none with an attempt."""
    jobs = [Job.new("work") for _ in range(number)]
    storage.enqueue_many(jobs)
    ids, states = [job.id for job in jobs], [StateName.ENQUEUED]
    storage.delete_many(ids, states=states, until=storage.now(), reason="not wanted", retention=KEEP)
    raw.age("jobs", "expires_at", timedelta(days=1))


def test_as_many_are_deleted_as_the_workers_here_end(
    storage: Storage, raw: Raw, cleanup: CleanupLoop, run: Run
) -> None:
    end(storage, raw, 700)
    deleted = []

    for ended in (0, 10, 100, 1_000, 0):
        for _ in range(ended):
            run.pool.totals.add(method="a", queue="b", ending=Ending.SUCCEEDED, waited_us=1, ran_us=1)
        before = left(raw)[0]
        cleanup.tick(storage)
        deleted.append(before - left(raw)[0])

    assert deleted == [25, 25, 150, 250, 25]


def test_what_else_is_too_old_goes_once_in_each_interval_however_many_jobs_are_left(
    storage: Storage, raw: Raw, cleanup: CleanupLoop, clock: FastClock
) -> None:
    end(storage, raw, 200)
    storage.acquire_lock("report", "somebody", timedelta(0))

    assert cleanup.tick(storage) is not None
    assert raw.run("SELECT count(*) FROM {locks}") == [(1,)]
    clock.ahead_s = 61.0
    assert cleanup.tick(storage) is not None

    assert raw.run("SELECT count(*) FROM {locks}") == [(0,)]
    assert left(raw)[0] == 150


def test_what_gets_too_old_later_goes_in_the_next_interval(
    storage: Storage, raw: Raw, cleanup: CleanupLoop, clock: FastClock
) -> None:
    for _ in range(2):
        for table in OLD:
            add_old(raw, table, 1)
        clock.ahead_s += 61.0

        assert cleanup.tick(storage) is None
        assert rows_left(raw) == {}


OLD: dict[str, dict[str, object]] = {
    "history": {"step_s": 60, "writer": "a#1", "claims": 1, "totals": "{}", "queues": "{}", "methods": "{}"},
    "locks": {"owner": "somebody"},
    "failure_callbacks": {"claim_seq": 1, "method": "work"},
    "lost_attempts": {"claim_seq": 1, "method": "work", "facts": "{}"},
    "acts": {"what": "pause queue", "subject": "images", "asked_by": "a", "asked_from": "b", "state": "done"},
}
"""What cleanup deletes beside jobs, without what tells rows apart and when they are from."""
OF_ROW = {"history": "writer", "locks": "resource", "acts": "id"}
SINCE = {
    "history": ["begins_at"],
    "locks": ["expires_at"],
    "failure_callbacks": ["due_at"],
    "lost_attempts": ["ended_at", "due_at"],
    "acts": ["asked_at"],
}


def add_old(raw: Raw, table: str, number: int) -> None:
    """So many rows that are too old, or whose job is gone."""
    since = raw.instant(datetime.now(UTC) - timedelta(days=1000))
    for each in range(number):
        row = OLD[table] | dict.fromkeys(SINCE[table], since) | {OF_ROW.get(table, "job_id"): f"{each:05}"}
        places = ", ".join("?" * len(row))
        raw.run(f"INSERT INTO {{{table}}} ({', '.join(row)}) VALUES ({places})", *row.values())


def rows_left(raw: Raw) -> dict[str, int]:
    """How many rows the tables have, of those that have any."""
    counts = {table: raw.run(f"SELECT count(*) FROM {{{table}}}")[0][0] for table in ("jobs", *OLD)}
    return {table: count for table, count in counts.items() if count}


@pytest.mark.parametrize("table", OLD)
def test_of_what_else_is_too_old_a_batch_is_deleted_at_a_time_until_nothing_is_left(
    storage: Storage, raw: Raw, cleanup: CleanupLoop, table: str
) -> None:
    most = 250 if table == "failure_callbacks" else 100
    number = 2 * most + 1
    add_old(raw, table, number)
    left = [number]

    while cleanup.tick(storage) is not None:
        left.append(rows_left(raw)[table])

    assert left == [number, number - most, number - 2 * most]
    assert rows_left(raw) == {}


def refused_for(table: str) -> AbstractContextManager[object]:
    """Jobs that are refused are left out one by one, and what else is refused ends the tick."""
    return nullcontext() if table == "jobs" else pytest.raises(StorageError, match="not this")


@pytest.mark.parametrize("table", ["jobs", *OLD])
def test_what_cannot_be_deleted_keeps_nothing_else_from_its_time(
    storage: Storage, raw: Raw, cleanup: CleanupLoop, clock: FastClock, table: str
) -> None:
    raw.refuse("DELETE", table, saying="not this")
    end(storage, raw, 30)
    for each in OLD:
        add_old(raw, each, 1)
    refused = rows_left(raw)[table]

    for _ in range(3):
        clock.ahead_s += 61.0
        with refused_for(table):
            cleanup.tick(storage)
    assert rows_left(raw) == {table: refused}

    raw.allow(table)
    clock.ahead_s += 61.0
    while cleanup.tick(storage) is not None:
        pass
    assert rows_left(raw) == {}


@pytest.mark.parametrize("table", ["jobs", "locks", "acts"])
def test_what_cannot_be_deleted_for_a_moment_costs_the_rest_no_more_than_one_round(
    storage: Storage, raw: Raw, cleanup: CleanupLoop, clock: FastClock, table: str
) -> None:
    raw.refuse("DELETE", table, saying="not this")
    end(storage, raw, 3)
    add_old(raw, "locks", 1)
    add_old(raw, "acts", 1)
    clock.ahead_s = 61.0
    with refused_for(table):
        cleanup.tick(storage)
    raw.allow(table)
    clock.ahead_s += 1.0

    pauses = [cleanup.tick(storage) for _ in range(3)]

    assert rows_left(raw) == {}
    assert pauses[1:] == [None, None]


def test_jobs_flow_while_others_are_deleted(url: str, storage: Storage, raw: Raw) -> None:
    expire(storage, raw, 40)
    ids = storage.enqueue_many(Job.new("new", queue="new") for _ in range(200))
    storage.close()

    def delete() -> None:
        with closing(open_patiently(url)) as mine:
            while mine.delete_expired_jobs(limit=2):
                pass

    def work(name: str) -> Callable[[], None]:
        def until_there_is_nothing() -> None:
            with closing(open_patiently(url)) as mine:
                which = fetch("new", worker=name)
                while held := mine.exchange((), fetch=which, limit=3, retention=KEEP).claims:
                    mine.exchange([(claim, DONE) for claim in held], fetch=None, limit=0, retention=KEEP)

        return until_there_is_nothing

    statuses = in_children([delete, delete, work("w-1"), work("w-2")])

    assert statuses == [0] * 4
    assert left(raw) == (200, 0)
    states = {job.state_name for job in map(storage.get, ids) if job is not None}
    assert states == {StateName.SUCCEEDED}


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_the_file_reuses_the_space_of_what_was_deleted(url: str, storage: Storage, raw: Raw) -> None:
    def fill_and_delete() -> int:
        claim = claim_new(storage)
        storage.finish(claim, DONE, retention=KEEP)
        storage.enqueue_many(Job.new("work", {"text": "x" * 2000}) for _ in range(200))
        raw.run("UPDATE {jobs} SET state = 'succeeded', expires_at = 1")
        while storage.delete_expired_jobs(limit=100):
            pass
        raw.run("PRAGMA wal_checkpoint(TRUNCATE)")
        return os.path.getsize(url.removeprefix("sqlite:///"))

    first, *others = (fill_and_delete() for _ in range(4))

    assert max(others) <= 1.1 * first


@pytest.mark.parametrize("url", ["postgres"], indirect=True)
def test_a_job_that_somebody_keeps_locked_keeps_no_other_from_being_deleted(
    storage: Storage, raw: Raw, connect: Callable[[], object]
) -> None:
    expire(storage, raw, EXPIRED)
    other = connect()
    other.execute(f"SELECT id FROM {raw.name('jobs')} ORDER BY expires_at LIMIT 1 FOR UPDATE")  # type: ignore[attr-defined]

    assert storage.delete_expired_jobs(limit=100) == EXPIRED - 1
    other.rollback()  # type: ignore[attr-defined]
    assert storage.delete_expired_jobs(limit=100) == 1
