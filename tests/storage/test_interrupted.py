"""Tests of the storage: an exception that a signal's handler raises, anywhere in an operation.

A test raises it at the first place where Python looks for signals, then at the second one, and so on until
the operation is over before that. Of a loop the first passes count: what is open at a place of it is the same
in all others. Each exception is kept, and with it all that its traceback refers to.
"""

from __future__ import annotations

import dis
import gc
import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from qml_mp.core.job import Job
from qml_mp.storage.sqlite import inserting
from qml_mp.storage.storable import new_row
from qml_mp.storage.store import Storage
from tests.storage.conftest import Raw
from tests.storage.helpers import DONE, KEEP, fetch, open_sqlite, sqlite_connection
from tests.until import PATIENCE_S

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


def get(storage: Storage, job_id: str) -> Operation:
    return lambda: storage.get(job_id)


def pause(storage: Storage, job_id: str) -> Operation:
    return lambda: storage.set_paused("elsewhere", True)


def enqueue(storage: Storage, job_id: str) -> Operation:
    return lambda: storage.enqueue(Job.new("one"))


def enqueue_many(storage: Storage, job_id: str) -> Operation:
    return lambda: storage.enqueue_many([Job.new("three") for _ in range(3)])


def fetch_one(storage: Storage, job_id: str) -> Operation:
    return lambda: storage.fetch_and_lock_job(fetch("default"))


def exchange(storage: Storage, job_id: str) -> Operation:
    storage.enqueue(Job.new("work"))
    claim = storage.fetch_and_lock_job(fetch("default"))
    assert claim is not None
    return lambda: storage.exchange([(claim, DONE)], fetch=fetch("default"), limit=1, retention=KEEP)


def send_exchange(storage: Storage, job_id: str) -> Operation:
    if not storage.can_send_exchange:
        return lambda: None
    return lambda: storage.send_exchange([], fetch=fetch("default"), limit=1, retention=KEEP)()


def look_for_commits(storage: Storage, job_id: str) -> Operation:
    def look() -> None:
        storage.commit_mark()
        waker = storage.open_waker() if storage.is_on_one_machine else None
        if waker is not None:
            waker.drain()
            waker.close()

    return look


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


@pytest.mark.parametrize(
    "prepare", [get, pause, enqueue, enqueue_many, fetch_one, exchange, send_exchange, look_for_commits]
)
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
    with storage._db.transaction("writing") as transaction:
        held.clear()  # what they have kept is finalised now
        gc.collect()
        transaction.insert([new_row(Job.new("last"))])
    assert raw.run("SELECT count(*) FROM {jobs} WHERE method = 'last'") == [(1,)]


def test_wherever_a_signal_interrupts_the_storing_of_many_jobs_their_checks_hold_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inserting, "_MANY_ROWS", 3)  # as of five hundred, in fewer steps
    held: list[KeyboardInterrupt] = []
    with closing(open_sqlite(tmp_path / "jobs.db")) as storage:
        job_id = storage.enqueue(Job.new("work"))

        def interrupted(nth: int) -> bool:
            interrupting, operation = Interrupting(nth), enqueue_many(storage, job_id)
            try:
                interrupting.run(operation)
            except KeyboardInterrupt as error:
                held.append(error)
            return interrupting.left <= 0

        with ThreadPoolExecutor(1) as thread:
            for nth in range(1, 100_000):
                if not thread.submit(interrupted, nth).result():
                    break
                with sqlite_connection(storage).read() as connection:
                    ignored = connection.execute("PRAGMA ignore_check_constraints").fetchone()[0]
                assert not ignored, nth

        assert len(held) > 50
        held.clear()
