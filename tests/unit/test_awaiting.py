"""Tests: the thread that waits for jobs, and those whom it tells."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from queue import SimpleQueue

import pytest

from qml_mp.awaiting import Awaiting, Subscription
from qml_mp.core.job import new_job_id
from qml_mp.storage.open import open_storage
from qml_mp.watch import Watch
from tests.until import PATIENCE_S, wait_until

NewWatch = Callable[..., Watch]


@pytest.fixture
def new_watch(tmp_path: Path) -> Iterator[NewWatch]:
    storage = open_storage(f"sqlite:///{tmp_path / 'jobs.db'}")
    storage.migrate()
    yield lambda *, bell_fd: Watch(storage, polling=timedelta(seconds=1), bell_fd=bell_fd)
    storage.close()


class Compared(Subscription):
    """Counts how often one of all is compared with another."""

    times = 0

    def __init__(self, told: SimpleQueue[object]) -> None:
        super().__init__([new_job_id()])
        self._told = told

    def __eq__(self, other: object) -> bool:
        Compared.times += 1
        return self is other

    def __hash__(self) -> int:
        return id(self)

    def tell(self, told: object) -> None:
        self._told.put(told)


def test_those_who_come_and_leave_are_not_looked_for_among_each_other(new_watch: NewWatch) -> None:
    may_begin = threading.Event()
    told: SimpleQueue[object] = SimpleQueue()

    def new_watch_once_all_are_there(*, bell_fd: int) -> Watch:
        may_begin.wait()
        return new_watch(bell_fd=bell_fd)

    awaiting = Awaiting(new_watch_once_all_are_there)
    many = [Compared(told) for _ in range(100)]
    for each in many:
        awaiting.join(each)
    may_begin.set()
    answers = [told.get(timeout=PATIENCE_S) for _ in many]  # that there is no such job
    for each in many:
        awaiting.leave(each)

    wait_until(lambda: not waiting_threads(), what="the end of the thread")
    assert all(type(answer) is dict for answer in answers)
    assert Compared.times == 0


def test_a_thread_whose_start_was_interrupted_closes_nothing_that_is_not_its_own(
    new_watch: NewWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, may_begin = threading.Thread.start, threading.Event()
    told: SimpleQueue[object] = SimpleQueue()

    def start_and_be_interrupted(thread: threading.Thread) -> None:
        start(thread)
        raise KeyboardInterrupt

    def new_watch_later(*, bell_fd: int) -> Watch:
        may_begin.wait()
        return new_watch(bell_fd=bell_fd)

    awaiting = Awaiting(new_watch_later)
    with monkeypatch.context() as ctrl_c:
        ctrl_c.setattr(threading.Thread, "start", start_and_be_interrupted)
        with pytest.raises(KeyboardInterrupt):
            awaiting.join(Compared(told))
    own = os.pipe()  # gets the numbers of the bell
    may_begin.set()
    wait_until(lambda: not waiting_threads(), what="the end of the thread")

    assert all(stat.S_ISFIFO(os.fstat(fd).st_mode) for fd in own)
    for fd in own:
        os.close(fd)
    another = Compared(told)
    awaiting.join(another)
    assert type(told.get(timeout=PATIENCE_S)) is dict
    awaiting.leave(another)
    wait_until(lambda: not waiting_threads(), what="the end of the other thread")


FORKS = """
import os, sys, threading, time
from qml_mp import QmlApp
from qml_mp.awaiting import Awaiting, OfThread
from qml_mp.core.job import new_job_id

app = QmlApp("sqlite:///" + sys.argv[1])
awaiting = app.enqueue("work").ends.awaiting

def told():
    id = new_job_id()
    return OfThread(awaiting, [id]).next_ended(deadline=time.monotonic() + 20) == {id: None}

is_paused, goes_on, all_told = threading.Event(), threading.Event(), []

def slow(frame, event, _):  # one who has just found that the process is another one
    if frame.f_code is Awaiting.begin_in_child.__code__ and awaiting._pid == os.getpid():
        sys.settrace(None)
        frame.f_trace = None
        is_paused.set()
        assert goes_on.wait(60)
    return slow

def first():
    sys.settrace(slow)
    all_told.append(told())
    is_paused.set()

assert told()
pid = os.fork()
if pid == 0:
    thread = threading.Thread(target=first)
    thread.start()
    assert is_paused.wait(60)
    id = new_job_id()
    second = OfThread(awaiting, [id])
    goes_on.set()
    thread.join()
    all_told.append(second.next_ended(deadline=time.monotonic() + 20) == {id: None})
    print(all_told, flush=True)
    os._exit(0)
os.waitpid(pid, 0)
app.close()
"""


def test_threads_of_a_copy_of_the_process_that_wait_there_first_are_all_told(tmp_path: Path) -> None:
    # From 3.12 on, a fork beside a thread warns, such as the one that waits for jobs.
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORKS, str(tmp_path / "jobs.db")]
    run = subprocess.run(command, capture_output=True, text=True, check=False)

    assert (run.stdout, run.stderr) == ("[True, True]\n", "")


def waiting_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "qml-mp: waiting for jobs"]
