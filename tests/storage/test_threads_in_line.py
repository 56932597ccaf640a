"""Tests of the storage: threads of one process that stand in line for a storage that cannot be had."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from qml_mp import QmlApp
from qml_mp.clock import SystemClock
from qml_mp.core.job import Job
from qml_mp.errors import StorageUnavailable, StorageUnreachable
from qml_mp.loop_threads import LoopThreads
from qml_mp.storage import connection as connections
from qml_mp.storage import waiting
from qml_mp.storage.open import open_storage
from qml_mp.storage.postgres import connection as postgres
from qml_mp.storage.postgres.link import Link, open_link
from qml_mp.storage.sqlite.database import SqliteDatabase
from qml_mp.storage.store import Storage
from qml_mp.storage.values import JobFilter
from tests.storage.helpers import in_children, open_sqlite
from tests.until import PATIENCE_S

THREADS = 8


@pytest.fixture
def all_have_come(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set once so many threads have begun an operation."""
    event, came = threading.Event(), list[int]()

    class Counted(connections.Operation):
        def __init__(self) -> None:
            super().__init__()
            came.append(self.thread)
            if len(came) == THREADS:
                event.set()

    monkeypatch.setattr(connections, "Operation", Counted)
    return event


class HeldClock(SystemClock):
    """Goes on once all have come, and then in pauses alone: else a machine that stands still right before the
    first look at a deadline would have nobody pause."""

    def __init__(self, all_have_come: threading.Event) -> None:
        self._all_have_come = all_have_come
        self._at: float | None = None

    def monotonic(self) -> float:
        assert self._all_have_come.wait(PATIENCE_S)
        if self._at is None:
            self._at = super().monotonic()
        return self._at

    def go_on(self) -> None:
        """After a pause."""
        self._at = None


def failures(enqueue: Callable[[], Any]) -> list[type[BaseException] | None]:
    """What that came to in each of the threads."""
    with ThreadPoolExecutor(THREADS) as threads:
        calls = [threads.submit(enqueue) for _ in range(THREADS)]
        errors = [call.exception(2 * PATIENCE_S) for call in calls]
    return [None if error is None else type(error) for error in errors]


def test_threads_that_wait_while_no_connection_can_be_made_are_told_of_that_one(
    all_have_come: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = list[int]()

    def open_link_once_all_are_there(*given: Any) -> Link:
        tries.append(threading.get_ident())
        assert all_have_come.wait(PATIENCE_S)
        return open_link(*given)

    monkeypatch.setattr(postgres, "open_link", open_link_once_all_are_there)
    with closing(open_storage("postgresql://nobody@127.0.0.1:1/none")) as storage:
        failed = failures(lambda: storage.enqueue(Job.new("work")))

        assert failed == [StorageUnreachable] * THREADS
        assert len(tries) <= 2  # the first one began before the others had come

        before = len(tries)
        with pytest.raises(StorageUnreachable, match="is not available for connecting"):
            storage.enqueue(Job.new("work"))
        assert len(tries) == before + 1  # who comes later tries again


def test_threads_that_wait_while_another_one_waits_for_a_lock_in_vain_try_once(
    tmp_path: Path, all_have_come: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, paused, pause = tmp_path / "jobs.db", list[int](), waiting.pause_before_next_try
    with closing(open_sqlite(path)) as first:
        first.migrate()

    def noted(wait: waiting.StorageWait | None) -> None:
        paused.append(threading.get_ident())
        pause(wait)
        clock.go_on()

    monkeypatch.setattr("qml_mp.storage.sqlite.connection.pause_before_next_try", noted)
    clock, patience = HeldClock(all_have_come), timedelta(seconds=1)
    with (
        closing(sqlite3.connect(path, isolation_level=None)) as other,
        closing(Storage(SqliteDatabase(str(path), clock=clock, busy_timeout=patience))) as storage,
    ):
        other.execute("BEGIN IMMEDIATE")
        failed = failures(lambda: storage.enqueue(Job.new("work")))

        assert failed == [StorageUnavailable] * THREADS
        assert len(set(paused)) == 1

        other.rollback()
        storage.enqueue(Job.new("work"))


@pytest.mark.parametrize("calls", [3, 100])  # all have a thread; most wait for one
def test_coroutines_that_were_cancelled_before_the_storage_was_at_it_enqueue_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: int
) -> None:
    path, pause, one_waits = tmp_path / "jobs.db", waiting.pause_before_next_try, threading.Event()

    def noted(wait: waiting.StorageWait | None) -> None:
        one_waits.set()
        pause(wait)

    async def main(app: QmlApp) -> list[object]:
        asked = [asyncio.create_task(app.aenqueue("work")) for _ in range(calls)]
        while not one_waits.is_set():
            await asyncio.sleep(0.001)
        for task in asked:
            task.cancel()
        ends = await asyncio.gather(*asked, return_exceptions=True)
        other.rollback()
        return [type(end) for end in ends]

    app = QmlApp(f"sqlite:///{path}")
    app.storage.migrate()
    monkeypatch.setattr("qml_mp.storage.sqlite.connection.pause_before_next_try", noted)
    with closing(sqlite3.connect(path, isolation_level=None)) as other, closing(app):
        other.execute("BEGIN IMMEDIATE")

        assert asyncio.run(main(app)) == [asyncio.CancelledError] * calls

        assert len(app.storage.list_jobs(JobFilter(), limit=calls).jobs) == 1  # which it was at


def test_coroutines_that_wait_for_a_thread_count_that_as_their_own_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, pause = tmp_path / "jobs.db", waiting.pause_before_next_try
    all_have_come, waited = threading.Event(), list[Any]()
    with closing(open_sqlite(path)) as first:
        first.migrate()

    def noted(wait: waiting.StorageWait | None) -> None:
        if database.connection.running not in waited:
            waited.append(database.connection.running)
        pause(wait)
        clock.go_on()

    async def main() -> list[object]:
        threads = LoopThreads("qml-mp: of a test")
        enqueue = partial(storage.enqueue, Job.new("work"))
        asked = [asyncio.create_task(threads.call(enqueue)) for _ in range(100)]
        await asyncio.sleep(0)
        all_have_come.set()
        return [type(end) for end in await asyncio.gather(*asked, return_exceptions=True)]

    monkeypatch.setattr("qml_mp.storage.sqlite.connection.pause_before_next_try", noted)
    clock = HeldClock(all_have_come)
    database = SqliteDatabase(str(path), clock=clock, busy_timeout=timedelta(seconds=1))
    with closing(sqlite3.connect(path, isolation_level=None)) as other, closing(Storage(database)) as storage:
        other.execute("BEGIN IMMEDIATE")

        assert asyncio.run(main()) == [StorageUnavailable] * 100

    assert len(waited) == 1  # though not so many have a thread at a time


def test_coroutines_of_a_child_that_is_forked_while_calls_are_under_way_have_threads_of_their_own() -> None:
    threads, has_begun, may_end = LoopThreads("qml-mp: of a test"), threading.Event(), threading.Event()

    def ask() -> None:
        has_begun.set()
        may_end.wait(PATIENCE_S)

    async def main() -> list[int]:
        asking = asyncio.create_task(threads.call(ask))
        while not has_begun.is_set():
            await asyncio.sleep(0.001)
        statuses = in_children([lambda: asyncio.run(threads.call(lambda: None))])
        may_end.set()
        await asking
        return statuses

    assert asyncio.run(main()) == [0]
