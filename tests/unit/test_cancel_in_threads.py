"""Tests: `ctx.cancel` in several threads of a job, and in those that outlive it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from qml_mp.child.commands import Commands
from qml_mp.core.job import ClaimKey, new_job_id
from qml_mp.ipc.pipe import Kind, Message, PipeReader, open_pipe, send
from qml_mp.processing.cancel import CancelReason
from tests.until import PATIENCE_S


class Worker:
    """A worker's commands, and its supervisor's end of the pipe."""

    def __init__(self) -> None:
        self.reading, self.writing = open_pipe()
        self.commands = Commands(PipeReader(self.reading))

    def tell(self, kind: Kind, key: ClaimKey | None = None, reason: CancelReason | None = None) -> None:
        assert send(self.writing, Message(kind=kind, key=key, reason=reason))

    def cancel(self, key: ClaimKey) -> None:
        self.tell(Kind.CANCEL, key, CancelReason.CANCELLED)


@pytest.fixture
def worker() -> Iterator[Worker]:
    worker = Worker()
    yield worker
    os.close(worker.reading)
    os.close(worker.writing)


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as threads:
        yield threads


def a_key() -> ClaimKey:
    return ClaimKey(job_id=new_job_id(), claim_seq=1)


def in_thread(function: Callable[[], Any]) -> threading.Thread:
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    return thread


def test_several_threads_of_a_job_wait_at_a_time(worker: Worker, threads: ThreadPoolExecutor) -> None:
    key = a_key()
    cancel = worker.commands.attend_to(key)

    waits = [threads.submit(cancel.wait, PATIENCE_S) for _ in range(8)]
    worker.cancel(key)

    assert [wait.result(PATIENCE_S) for wait in waits] == [True] * 8


def test_a_thread_that_outlives_its_job_takes_nothing_of_what_comes_for_others(worker: Worker) -> None:
    cancel = worker.commands.attend_to(a_key())
    thread = in_thread(lambda: cancel.wait(None))
    worker.commands.attend_to_nothing()
    thread.join(PATIENCE_S)
    waiting_again = in_thread(lambda: cancel.wait(0.01))

    next_key = a_key()
    next_cancel = worker.commands.attend_to(next_key)
    worker.tell(Kind.LEAVE)
    worker.cancel(next_key)
    seen_of_the_old = cancel.is_cancelled, cancel.wait(None), cancel.wait(0.01)
    waiting_again.join(PATIENCE_S)

    assert not thread.is_alive()
    assert not waiting_again.is_alive()
    assert seen_of_the_old == (False, False, False)
    assert not worker.commands.leaving  # it was not read
    assert next_cancel.wait(PATIENCE_S)
    assert not cancel.is_cancelled
