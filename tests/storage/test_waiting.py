"""Tests of the storage: other things that happen in a process while its storage has not replied."""

from __future__ import annotations

import asyncio
import dis
import gc
import select
import sqlite3
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from qml_mp import QmlApp
from qml_mp.core.job import Job
from qml_mp.errors import StorageUnavailable, StorageUnreachable
from qml_mp.storage.open import open_storage
from qml_mp.storage.store import Storage
from qml_mp.storage.values import JobFilter
from tests.storage.conftest import Raw
from tests.storage.flaky_proxy import FlakyProxy
from tests.storage.helpers import DONE, KEEP, fetch, in_children
from tests.until import PATIENCE_S


class Patient:
    """Waits as it should, calls `meanwhile` each time before, and gives up when told to."""

    def __init__(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        self.give_up_at = float("inf")
        self.waits = self.calls = 0
        self._meanwhile = meanwhile

    def wait(self, fd: int, *, reading: bool, writing: bool, until: float) -> tuple[bool, bool]:
        self.waits += 1
        self._meanwhile()
        timeout_s = max(0.0, min(until, self.give_up_at) - time.monotonic())
        readable, writable, _ = select.select([fd] * reading, [fd] * writing, [], timeout_s)
        return bool(readable), bool(writable)

    def call_blocking(self, call: Callable[[], str], *, until: float) -> str:
        self.calls += 1
        return '"no such host"'  # as told by `call`; no test asks real name servers

    def pause(self, seconds: float) -> None:
        self.waits += 1
        self._meanwhile()
        time.sleep(seconds)  # the pause that the storage asks for


@pytest.fixture
def proxy(postgres_url: str) -> Iterator[FlakyProxy]:
    with FlakyProxy.before(postgres_url) as running:
        yield running


@pytest.fixture
def through_proxy(url: str, proxy: FlakyProxy) -> Iterator[Storage]:
    """A storage that is reached through the proxy."""
    with closing(open_storage(proxy.through(url))) as storage:
        yield storage


only_postgres = pytest.mark.parametrize("url", ["postgres"], indirect=True)


def test_a_storage_works_as_usual_while_somebody_else_waits_for_it(storage: Storage) -> None:
    patient = Patient()
    storage.wait_with(patient)

    assert storage.list_servers() == []
    assert storage.acquire_lock("one", "me", timedelta(seconds=60))
    storage.close()
    assert not storage.acquire_lock("one", "you", timedelta(seconds=60))

    waits = patient.waits
    storage.wait_with(None)
    assert storage.release_lock("one", "me")
    assert patient.waits == waits


@only_postgres
def test_a_reply_that_does_not_come_is_given_up_at_the_instant_that_was_named(
    through_proxy: Storage, proxy: FlakyProxy
) -> None:
    patient = Patient()
    through_proxy.wait_with(patient)
    through_proxy.list_servers()
    proxy.go_silent()

    patient.give_up_at = time.monotonic() + 0.1
    with pytest.raises(StorageUnreachable, match="no time left"):
        through_proxy.list_servers()


@only_postgres
def test_nothing_is_sent_once_it_has_been_given_up(storage: Storage) -> None:
    patient = Patient()
    storage.wait_with(patient)
    storage.list_servers()
    waits = patient.waits

    patient.give_up_at = time.monotonic()
    with pytest.raises(StorageUnreachable, match="no time left"):
        storage.acquire_lock("one", "me", timedelta(seconds=60))

    assert patient.waits == waits
    patient.give_up_at = float("inf")
    assert storage.acquire_lock("one", "you", timedelta(seconds=60))  # nobody has it


@pytest.mark.usefixtures("time_for_work")
def test_in_a_forked_copy_of_the_process_nobody_else_waits(
    url: str, connect: Callable[[], sqlite3.Connection]
) -> None:
    patient = Patient()
    with closing(open_storage(url, patience=timedelta(seconds=0.05))) as storage:
        storage.migrate()
        storage.close()
        storage.wait_with(patient)

        def use_it() -> None:
            if url.startswith("sqlite"):  # which waits for somebody else's lock alone
                other = connect()
                other.isolation_level = None
                other.execute("BEGIN IMMEDIATE")
                with pytest.raises(StorageUnavailable):
                    storage.acquire_lock("one", "me", timedelta(seconds=60))
            else:
                storage.list_servers()
            assert patient.waits == 0

        assert in_children([use_it]) == [0]


# Threads of one process that stand in line for a storage that cannot be had.


def test_coroutines_that_were_cancelled_before_the_storage_was_at_it_enqueue_nothing(
    tmp_path: Path,
) -> None:
    path, calls, one_waits = tmp_path / "jobs.db", 3, threading.Event()

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
    app.storage.wait_with(Patient(meanwhile=one_waits.set))
    with closing(sqlite3.connect(path, isolation_level=None)) as other, closing(app):
        other.execute("BEGIN IMMEDIATE")

        assert asyncio.run(main(app)) == [asyncio.CancelledError] * calls

        assert len(app.storage.list_jobs(JobFilter(), limit=calls).jobs) == 1  # which it was at


# An exception that a signal's handler raises, anywhere in an operation.

_CODE = ("/qml_mp/storage/", "/contextlib.py")
_LOOKS_AFTER = frozenset(
    number for name, number in dis.opmap.items() if name.startswith(("CALL", "JUMP_BACKWARD"))
)
_PASSES = 2
"""How often a place counts that is reached by the same calls. Three jobs of many columns come by most of
their places again and again, and on PostgreSQL each interruption costs a connection."""

Operation = Callable[[], object]


class Interrupting:
    """Raises KeyboardInterrupt at the nth place where Python looks for signals."""

    def __init__(self, nth: int) -> None:
        self.left = nth
        self._before: dict[FrameType, int] = {}
        self._ways: dict[FrameType, int] = {}
        """A number for the calls that have led to the frame."""
        self._passes: Counter[tuple[int, int]] = Counter()

    def run(self, operation: Operation) -> None:
        before = sys.gettrace()
        gc.disable()  # what it finalises is others', and nobody is told what is raised in there
        sys.settrace(self._called)
        try:
            operation()
        finally:
            sys.settrace(before)
            gc.enable()

    def _called(self, frame: FrameType, event: str, arg: Any) -> Any:
        if not any(part in frame.f_code.co_filename for part in _CODE):
            return None
        frame.f_trace_lines, frame.f_trace_opcodes = False, True
        self._before.pop(frame, None)
        self._ways[frame] = self._way_to(frame)
        self._look(frame)
        return self._stepped

    def _stepped(self, frame: FrameType, event: str, arg: Any) -> Any:
        if event == "opcode":
            before = self._before.get(frame)
            self._before[frame] = frame.f_code.co_code[frame.f_lasti]
            if before in _LOOKS_AFTER:
                self._look(frame)
        return self._stepped

    def _look(self, frame: FrameType) -> None:
        place = (self._ways[frame], frame.f_lasti)
        self._passes[place] += 1
        if self._passes[place] > _PASSES:
            return
        self.left -= 1
        if not self.left:
            self._before.clear()
            self._ways.clear()
            raise KeyboardInterrupt

    def _way_to(self, frame: FrameType) -> int:
        steps: list[object] = [frame.f_code]
        caller = frame.f_back
        while caller is not None and caller not in self._ways:
            steps += [caller.f_lasti, caller.f_code]
            caller = caller.f_back
        if caller is not None:
            steps += [caller.f_lasti, self._ways[caller]]
        return hash(tuple(steps))


def enqueue_many(storage: Storage, job_id: str) -> Operation:
    return lambda: storage.enqueue_many([Job.new("three") for _ in range(3)])


def exchange(storage: Storage, job_id: str) -> Operation:
    storage.enqueue(Job.new("work"))
    claim = storage.fetch_and_lock_job(fetch("default"))
    assert claim is not None
    return lambda: storage.exchange([(claim, DONE)], fetch=fetch("default"), limit=1, retention=KEEP)


def assert_nothing_is_locked(raw: Raw) -> None:
    """As another program finds it: the rows can be written, and whoever had locks has let go of them."""
    if raw.is_sqlite:
        raw.run("PRAGMA busy_timeout = 0")
        raw.run("BEGIN IMMEDIATE")
    else:
        raw.run(f"SET lock_timeout = '{PATIENCE_S:.0f}s'")
        raw.run("BEGIN")
        raw.run("LOCK TABLE {jobs} IN ACCESS EXCLUSIVE MODE")
    raw.run("ROLLBACK")


@pytest.mark.parametrize("prepare", [enqueue_many, exchange])
def test_wherever_a_signal_interrupts_an_operation_it_leaves_nothing_open(
    storage: Storage, raw: Raw, prepare: Callable[[Storage, str], Operation]
) -> None:
    job_id = storage.enqueue(Job.new("work"))
    held: list[KeyboardInterrupt] = []

    def interrupted(nth: int) -> bool:
        """Whether the operation was, at this place."""
        interrupting, operation = Interrupting(nth), prepare(storage, job_id)
        try:
            interrupting.run(operation)
        except KeyboardInterrupt as error:
            storage.request_cancel("not-there", reason="no", retention=KEEP)
            held.append(error)
        return interrupting.left <= 0

    # In a thread that ends with the test: what a trace raises between two steps can have its thread believe
    # that another exception is being handled, and the tests behind this one would have that as a context.
    with ThreadPoolExecutor(1) as thread, ThreadPoolExecutor(1) as another:
        for nth in range(1, 100_000):
            if not thread.submit(interrupted, nth).result():
                break
            assert_nothing_is_locked(raw)
            assert another.submit(storage.get, job_id).result(timeout=PATIENCE_S) is not None

    assert raw.run("SELECT count(*) FROM {jobs} WHERE method = 'three'")[0][0] % 3 == 0
    held.clear()  # what they have kept is finalised now
    gc.collect()
    storage.enqueue(Job.new("last"))
    assert raw.run("SELECT count(*) FROM {jobs} WHERE method = 'last'") == [(1,)]
