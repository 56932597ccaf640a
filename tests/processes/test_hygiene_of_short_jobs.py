"""Tests: a job of a moment, of which not everything is looked at, leaves nothing behind either."""

from __future__ import annotations

import faulthandler
import locale
import os
import resource
import signal
import sys
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import cast

import pytest

from qml_mp.child.exits import WorkerExit
from qml_mp.child.hygiene import Hygiene, StandardStreams
from qml_mp.core.outcome import Success
from qml_mp.ipc.pipe import open_pipe
from qml_mp.ipc.slot import SlotTable
from qml_mp.ipc.stack import open_stack_file, write_stacks_to
from qml_mp.storage.store import Storage
from qml_mp.supervisor.workers.fork import fork_child, reap
from tests.processes.harness import wait_until

DONE = Success(result=None, duration=timedelta(0))
Change = Callable[[], object]


@pytest.fixture(autouse=True)
def every_job_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine, too."""
    monkeypatch.setattr("qml_mp.child.hygiene._SHORT_NS", 10**15)


class NoStorage:
    """A storage that is closed."""

    def descriptors(self) -> frozenset[int]:
        return frozenset()


class OneWorker:
    """A process like a worker's, which has run the first job of the method "f"."""

    def __init__(self, slots: SlotTable) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        self.pipe_fd, _ = open_pipe()
        stack_fd = open_stack_file()
        write_stacks_to(stack_fd)
        self.hygiene = Hygiene(
            cast(Storage, NoStorage()),
            slot=slots.writer(0),
            pipe_fds={self.pipe_fd},
            stack_fd=stack_fd,
            streams=StandardStreams(),
        )
        self.run(lambda: None)

    def run(self, change: Change) -> None:
        """Run a job of a moment that does this."""
        self.hygiene.before_job()
        change()
        self.hygiene.after_job("f", DONE)


def exit_code_of(
    main: Callable[[OneWorker], object], *, slots: SlotTable | None = None, limit: Change = lambda: None
) -> int | None:
    """How a process ends that is such a worker, within this limit, and does this; 0: without an error."""

    def child() -> int:
        limit()
        main(OneWorker(slots or SlotTable(1)))
        return 0

    facts = wait_until(partial(reap, fork_child(child, ours=(), theirs=())), what="the child's end")
    return facts.exit_code


def surroundings() -> dict[str, object]:
    """What a job finds."""
    return {
        "directory": os.getcwd(),
        "umask": os.umask(0o022),
        "group": os.getpgrp(),
        "environment": dict(os.environ),
        "handlers": [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)],
        "mask": signal.pthread_sigmask(signal.SIG_BLOCK, []),
        "timers": [signal.getitimer(timer) for timer in (signal.ITIMER_REAL, signal.ITIMER_PROF)],
        "locale": locale.setlocale(locale.LC_ALL),
        "print": (sys.stdout, sys.stderr),
        "streams": [os.fstat(fd).st_ino for fd in range(3)],
        "stacks": faulthandler.is_enabled(),
        "files": resource.getrlimit(resource.RLIMIT_NOFILE),
    }


def replace_stream(fd: int) -> None:
    reading, _ = os.pipe()
    os.dup2(reading, fd)


def lower_limit() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (600, most))


@pytest.mark.fault(23)
@pytest.mark.parametrize(
    "change",
    [
        lambda: os.chdir("/"),
        lambda: os.umask(0o077),
        lambda: os.setpgid(0, os.getpgid(os.getppid())),
        lambda: os.environ.update(ANOTHER="1"),
        lambda: setattr(os, "environ", {}),
        lambda: signal.signal(signal.SIGUSR1, signal.SIG_IGN),
        lambda: signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM]),
        lambda: signal.alarm(60),
        lambda: locale.setlocale(locale.LC_ALL, "C"),
        lambda: setattr(sys, "stdout", None),
        lambda: os.close(1),
        faulthandler.disable,
    ],
    ids=range(12),
)
def test_what_the_next_job_would_be_hurt_by_is_put_back_at_once(change: Change) -> None:
    def main(worker: OneWorker) -> None:
        before = surroundings()
        worker.run(lambda: None)
        worker.run(change)
        assert surroundings() == before

    assert exit_code_of(main) == 0


@pytest.mark.fault(23)
@pytest.mark.parametrize(
    "change",
    [
        lower_limit,
        lambda: signal.setitimer(signal.ITIMER_PROF, 60),
        partial(replace_stream, 0),
        partial(replace_stream, 1),
        partial(replace_stream, 2),
    ],
    ids=range(5),
)
def test_the_rest_is_put_back_before_storage_is_used_and_then_after_every_job(change: Change) -> None:
    def main(worker: OneWorker) -> None:
        before = surroundings()
        worker.run(change)
        worker.run(lambda: None)
        worker.hygiene.before_storage()
        assert surroundings() == before

        worker.run(lambda: None)
        worker.run(change)
        assert surroundings() == before

    assert exit_code_of(main) == 0


@pytest.mark.fault(19)
def test_a_worker_of_which_a_job_has_closed_a_descriptor_ends_before_another_job_runs() -> None:
    slots = SlotTable(1)

    code = exit_code_of(lambda worker: worker.run(lambda: os.close(worker.pipe_fd)), slots=slots)

    view = slots.read(0)
    assert view is not None
    assert (code, view.text) == (WorkerExit.BROKEN, "The job closed or replaced descriptors of the worker.")


@pytest.mark.fault(20)
def test_a_worker_of_which_a_job_has_replaced_a_descriptor_ends_before_storage_is_used() -> None:
    def main(worker: OneWorker) -> None:
        worker.run(lambda: os.dup2(0, worker.pipe_fd))
        worker.run(lambda: None)
        worker.hygiene.before_storage()

    slots = SlotTable(1)

    code = exit_code_of(main, slots=slots)

    view = slots.read(0)
    assert view is not None
    assert (code, view.text) == (
        WorkerExit.BROKEN,
        "This job or one right before it closed or replaced descriptors of the worker.",
    )


def test_a_copy_of_the_worker_that_a_job_lets_return_is_none() -> None:
    def main(worker: OneWorker) -> None:
        def fork() -> None:
            if child := os.fork():
                assert os.waitpid(child, 0) == (child, 0)

        worker.run(fork)
        worker.run(fork)
        if os.getpid() != worker.hygiene._pid:
            os._exit(1)

    assert exit_code_of(main) == 0


@pytest.mark.fault(22)
def test_a_worker_that_jobs_leave_short_of_descriptors_says_so_before_storage_is_used() -> None:
    def open_nearly_all() -> None:
        while os.open(os.devnull, os.O_RDONLY) < 580:  # the process that forks has some of its own
            pass

    def main(worker: OneWorker) -> None:
        worker.run(open_nearly_all)
        worker.hygiene.before_storage()
        assert worker.hygiene.spoiled == "jobs have left nearly all of its 600 descriptors open"

    assert exit_code_of(main, limit=lower_limit) == 0
