"""Tests: `ctx.cancel` in several threads of a job, and in those that outlive it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from qml_mp.child.commands import Commands
from qml_mp.core.job import ClaimKey, new_job_id
from qml_mp.errors import JobInterrupted
from qml_mp.ipc.pipe import Kind, Message, PipeReader, open_pipe, send
from qml_mp.processing.cancel import CancelReason
from tests.until import PATIENCE_S, wait_until


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
def sigterm() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


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


def test_the_main_thread_waits_beside_others(worker: Worker, threads: ThreadPoolExecutor) -> None:
    for _ in range(50):
        key = a_key()
        cancel = worker.commands.attend_to(key)
        waits = [threads.submit(cancel.wait, None) for _ in range(4)]
        telling = threads.submit(worker.cancel, key)

        assert cancel.wait(None)

        telling.result(PATIENCE_S)
        assert [wait.result(PATIENCE_S) for wait in waits] == [True] * 4
        worker.commands.attend_to_nothing()


def test_a_thread_learns_of_a_cancel_that_the_main_thread_has_read(worker: Worker) -> None:
    key = a_key()
    cancel = worker.commands.attend_to(key)
    worker.cancel(key)
    worker.commands.look()

    thread = in_thread(lambda: cancel.wait(None))
    thread.join(PATIENCE_S)

    assert not thread.is_alive()


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


def test_what_a_thread_reads_is_not_lost_to_the_main_thread(worker: Worker) -> None:
    cancel = worker.commands.attend_to(a_key())
    held = a_key()
    worker.tell(Kind.PAUSE)
    worker.tell(Kind.LEAVE)
    worker.tell(Kind.DOUBT)
    worker.cancel(held)

    in_thread(lambda: cancel.is_cancelled).join(PATIENCE_S)

    commands = worker.commands
    assert commands.paused
    assert commands.leaving
    assert commands.take_doubt()
    assert commands.take_early_cancel(held) == "cancelled from outside"


@pytest.mark.usefixtures("sigterm")
def test_an_interrupt_that_a_thread_has_read_is_raised_in_the_main_thread(worker: Worker) -> None:
    worker.commands.install()
    key = a_key()
    cancel = worker.commands.attend_to(key)
    seen: list[object] = []

    def look() -> None:
        try:
            seen.append(cancel.is_cancelled)
        except BaseException as error:
            seen.append(error)

    def job() -> None:
        with worker.commands.user_code():
            worker.tell(Kind.INTERRUPT, key, CancelReason.CANCELLED)
            in_thread(look).join(PATIENCE_S)
            os.kill(os.getpid(), signal.SIGTERM)  # as it follows an interrupt
            wait_until(lambda: False, what="the exception")

    with pytest.raises(JobInterrupted):
        job()

    assert seen == [True]
    assert not worker.commands.leaving


@pytest.mark.usefixtures("sigterm")
def test_a_handler_of_the_job_may_look_while_the_job_waits(worker: Worker) -> None:
    key = a_key()
    cancel = worker.commands.attend_to(key)
    seen: list[bool] = []

    def look(*_: object) -> None:
        seen.append(cancel.wait(0.001))
        worker.cancel(key)

    signal.signal(signal.SIGTERM, look)
    in_thread(lambda: os.kill(os.getpid(), signal.SIGTERM))

    assert cancel.wait(PATIENCE_S)
    assert seen == [False]
