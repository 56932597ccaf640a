"""Tests: a job of a moment, of which not everything is looked at, leaves nothing behind either."""

from __future__ import annotations

import asyncio
import ctypes
import faulthandler
import gc
import io
import locale
import logging
import logging.config
import os
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import cast

import pytest

from qml_mp.child.exits import WorkerExit
from qml_mp.child.folder import CurrentFolder
from qml_mp.child.hygiene import Hygiene
from qml_mp.child.prologue import prctl
from qml_mp.child.streams import StandardStreams
from qml_mp.core.outcome import AttemptKind, Cancelled, ErrorInfo, Failure, Outcome, Success
from qml_mp.host import thread_count
from qml_mp.ipc.pipe import open_pipe
from qml_mp.ipc.slot import SlotTable
from qml_mp.ipc.stack import open_stack_file, write_stacks_to
from qml_mp.storage.store import Storage
from qml_mp.supervisor.workers.fork import fork_child, reap
from tests.processes.harness import wait_until

DONE = Success(result=None, duration=timedelta(0))
LATE = ErrorInfo(type="JobTimeout", message="late")
Change = Callable[[], object]
PR_GET_PDEATHSIG = 2
LOGGING = """
[loggers]
keys=root
[handlers]
keys=
[formatters]
keys=
[logger_root]
level=CRITICAL
handlers=
"""
AS_ROOT = pytest.mark.skipif(os.getuid() != 0, reason="only root can change it and put it back")


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

    def __init__(self, slots: SlotTable, *, max_memory_hard: int | None = None) -> None:
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
            folder=CurrentFolder(),
            max_memory_hard=max_memory_hard,
        )
        self.run(lambda: None)

    def run(self, change: Change, outcome: Outcome = DONE) -> None:
        """Run a job of a moment that does this, and of which this comes."""
        self.hygiene.before_job()
        change()
        self.hygiene.after_job("f", outcome)


def exit_code_of(
    main: Callable[[OneWorker], object], *, slots: SlotTable | None = None, limit: Change = lambda: None
) -> int | None:
    """How a process ends that is such a worker, within this limit, and does this; 0: without an error."""

    def child() -> int:
        limit()
        # A span processor of an earlier test begins a thread after each fork, which ends at once where that
        # was shut down: until then a job could be taken for one that has left none.
        wait_until(lambda: thread_count() == 1, what="the end of threads that came with the fork")
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
        "ids": (os.getresuid(), os.getresgid(), os.getgroups()),
        "processors": os.sched_getaffinity(0),
        "niceness": os.getpriority(os.PRIO_PROCESS, 0),
        "Python": (sys.getrecursionlimit(), socket.getdefaulttimeout(), gc.isenabled()),
        "logging": (logging.root.manager.disable, logging.root.level, list(logging.root.handlers)),
        "our loggers": [logging.getLogger(name).disabled for name in ("qml_mp.events.log", "qml_mp.child")],
        "time zone": time.tzname,
        "print": (sys.stdin, sys.stdout, sys.stderr),
        "streams": [os.fstat(fd).st_ino for fd in range(3)],
        "stacks": faulthandler.is_enabled(),
        "files": resource.getrlimit(resource.RLIMIT_NOFILE),
    }


def replace_stream(fd: int) -> None:
    reading, _ = os.pipe()
    os.dup2(reading, fd)


def lower_limit(limit: int = 600) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, most))


def set_time_zone() -> None:
    os.environ["TZ"] = "Asia/Tokyo"
    time.tzset()


def open_socket_as(fd: int) -> None:
    os.dup2(socket.socket().detach(), fd)
    os.set_blocking(fd, False)


def wake_up_by(fd: int) -> None:
    open_socket_as(fd)
    signal.set_wakeup_fd(fd)


class OnlyWrites:
    """What an app may put in the place of `sys.stdout`."""

    def write(self, text: str) -> int:
        return len(text)


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
        lambda: delattr(sys, "stdout"),
        lambda: os.close(1),
        lambda: setattr(sys, "stdin", io.StringIO("yes")),
        faulthandler.disable,
        set_time_zone,
        partial(lower_limit, 3),
        partial(sys.setrecursionlimit, 5000),
        partial(socket.setdefaulttimeout, 3),
        partial(logging.disable, logging.CRITICAL),
        partial(logging.config.dictConfig, {"version": 1}),
        lambda: logging.config.fileConfig(io.StringIO(LOGGING)),
        partial(logging.root.setLevel, 60),
        gc.disable,
        pytest.param(partial(os.seteuid, 1000), marks=AS_ROOT),
        pytest.param(partial(os.setresuid, 1000, 1000, 0), marks=AS_ROOT),
        pytest.param(partial(os.setegid, 1000), marks=AS_ROOT),
    ],
    ids=range(26),
)
def test_what_the_next_job_would_be_hurt_by_is_put_back_at_once(change: Change) -> None:
    def main(worker: OneWorker) -> None:
        before = surroundings()
        worker.run(lambda: None)
        worker.run(change)
        assert surroundings() == before

    assert exit_code_of(main) == 0


def test_our_loggers_are_put_back_where_the_app_has_silenced_the_one_above_them_for_good() -> None:
    def main(worker: OneWorker) -> None:
        worker.run(partial(logging.config.dictConfig, {"version": 1}))
        assert logging.getLogger("qml_mp").disabled
        assert not logging.getLogger("qml_mp.events.log").disabled

    silence = partial(setattr, logging.getLogger("qml_mp"), "disabled", True)
    assert exit_code_of(main, limit=silence) == 0


def test_a_handler_and_a_level_that_let_more_through_are_left_to_the_next_job() -> None:
    programs, jobs = logging.NullHandler(), logging.NullHandler()

    def main(worker: OneWorker) -> None:
        worker.run(partial(logging.root.addHandler, jobs))
        worker.run(partial(logging.root.setLevel, 1))
        worker.run(partial(logging.root.removeHandler, programs))
        assert logging.root.level == 1
        assert logging.root.handlers == [programs, jobs]

    assert exit_code_of(main, limit=lambda: setattr(logging.root, "handlers", [programs])) == 0


def wake_up_fd() -> int:
    fd = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(fd)
    return fd


@pytest.mark.parametrize("fd", [-1, 580])
def test_a_loop_that_the_app_has_set_up_hears_of_signals_again_after_a_job_with_one_of_its_own(
    fd: int,
) -> None:
    def set_it_up() -> None:
        if fd > 0:
            wake_up_by(fd)

    def main(worker: OneWorker) -> None:
        worker.run(lambda: None)
        for change in (partial(wake_up_by, 581), partial(signal.set_wakeup_fd, -1)):
            worker.run(change)
            assert wake_up_fd() == fd

    assert exit_code_of(main, limit=set_it_up) == 0


@pytest.mark.parametrize("forget", [partial(signal.set_wakeup_fd, -1), lambda: None], ids=["closed", "lost"])
def test_no_signal_is_written_to_a_file_that_has_the_number_of_what_the_apps_loop_heard_by(
    forget: Change,
) -> None:
    def main(worker: OneWorker) -> None:
        def put_another_in_its_place() -> None:
            forget()
            open_socket_as(580)

        worker.run(put_another_in_its_place)
        assert wake_up_fd() == -1
        worker.run(partial(wake_up_by, 581))
        assert wake_up_fd() == -1
        assert worker.hygiene.spoiled is None

    assert exit_code_of(main, limit=partial(wake_up_by, 580)) == 0


def run_a_loop() -> None:
    asyncio.run(asyncio.sleep(0))


def close_the_loop_that_is_set() -> None:
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    loop.close()


@pytest.mark.parametrize("change", [run_a_loop, close_the_loop_that_is_set])
def test_the_event_loop_that_the_app_or_a_job_has_set_is_found_by_plain_jobs_after_one_with_its_own(
    change: Change,
) -> None:
    def set_new() -> None:
        asyncio.set_event_loop(asyncio.new_event_loop())

    def main(worker: OneWorker) -> None:
        for _ in range(2):
            before = asyncio.get_event_loop()
            worker.run(change)
            assert asyncio.get_event_loop() is before
            worker.run(set_new)
            assert asyncio.get_event_loop() is not before

    assert exit_code_of(main, limit=set_new) == 0


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="none is made for who asks")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("change", [run_a_loop, close_the_loop_that_is_set])
def test_an_event_loop_is_made_for_plain_jobs_that_ask_for_one_after_one_with_its_own(change: Change) -> None:
    def main(worker: OneWorker) -> None:
        worker.run(change)
        worker.run(lambda: asyncio.get_event_loop().run_until_complete(asyncio.sleep(0)))
        made = asyncio.get_event_loop()
        worker.run(change)
        assert asyncio.get_event_loop() is made

        worker.run(made.close)
        assert asyncio.get_event_loop() is not made

    assert exit_code_of(main) == 0


def test_a_handler_of_sigterm_that_c_code_has_set_in_a_job_is_gone_before_storage_is_used() -> None:
    heard: list[int] = []

    def main(worker: OneWorker) -> None:
        with open(os.devnull, "w") as null:
            worker.run(partial(faulthandler.register, signal.SIGTERM, file=null))
            worker.hygiene.before_storage()
            os.kill(os.getpid(), signal.SIGTERM)
        assert heard == [signal.SIGTERM]

    def listen() -> None:
        signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))

    assert exit_code_of(main, limit=listen) == 0


@pytest.mark.fault(23)
@pytest.mark.parametrize(
    "change",
    [
        lower_limit,
        lambda: signal.setitimer(signal.ITIMER_PROF, 60),
        partial(replace_stream, 0),
        partial(replace_stream, 1),
        partial(replace_stream, 2),
        lambda: os.sched_setaffinity(0, {max(os.sched_getaffinity(0))}),
        pytest.param(partial(os.nice, 3), marks=AS_ROOT),
        pytest.param(partial(os.setgroups, [1000]), marks=AS_ROOT),
    ],
    ids=range(8),
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


@pytest.mark.parametrize("is_short", [True, False])
@pytest.mark.parametrize("beside", [lambda: None, lower_limit, lambda: os.chdir("/")], ids=range(3))
def test_a_dump_with_an_exit_that_a_job_has_ordered_is_called_off(
    beside: Change, is_short: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qml_mp.child.hygiene._SHORT_NS", 10**15 if is_short else 0)

    def main(worker: OneWorker) -> None:
        def order() -> None:
            beside()
            faulthandler.dump_traceback_later(1000, exit=True)

        worker.run(order)
        wait_until(lambda: thread_count() == 1, what="the end of the thread that exits")

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
        "The job or a job right before it closed or replaced descriptors of the worker.",
    )


@pytest.mark.parametrize("fork_itself", [os.fork, ctypes.PyDLL(None).fork], ids=["Python", "C"])
def test_a_copy_of_the_worker_that_a_job_lets_return_is_none(fork_itself: Callable[[], int]) -> None:
    def main(worker: OneWorker) -> None:
        def fork() -> None:
            if child := fork_itself():
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


@pytest.mark.parametrize(
    "outcome", [Cancelled(reason="not wanted"), Failure(error=LATE, kind=AttemptKind.TIMEOUT)]
)
def test_a_worker_in_which_a_job_that_was_ended_has_left_a_thread_takes_no_other(outcome: Outcome) -> None:
    """It would go on beside the next attempt."""

    def leave_a_thread() -> None:
        threading.Thread(target=threading.Event().wait, daemon=True).start()

    def main(worker: OneWorker) -> None:
        worker.run(leave_a_thread, Failure(error=LATE))  # nobody has ended it: it may be a pool for all jobs
        worker.run(lambda: None, outcome)
        assert worker.hygiene.spoiled is None

        worker.run(leave_a_thread, outcome)
        assert worker.hygiene.spoiled == "a job that was ended has left threads"

    assert exit_code_of(main) == 0


def test_a_worker_in_which_a_job_left_more_memory_than_the_hard_limit_takes_no_other() -> None:
    """Or the next job would be killed for it."""

    def main(_: OneWorker) -> None:
        worker = OneWorker(SlotTable(1), max_memory_hard=10**12)
        assert worker.hygiene.spoiled is None

        worker = OneWorker(SlotTable(1), max_memory_hard=1)
        assert worker.hygiene.spoiled == "a job or a hook has left more memory in use than max_memory_hard"

    assert exit_code_of(main) == 0


@pytest.mark.parametrize("is_short", [True, False])
@pytest.mark.parametrize("stream", [OnlyWrites(), None], ids=["one that only writes", "none"])
def test_an_app_may_print_to_what_it_likes(
    stream: object, is_short: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qml_mp.child.hygiene._SHORT_NS", 10**15 if is_short else 0)
    monkeypatch.setattr(sys, "stdout", stream)

    def main(worker: OneWorker) -> None:
        worker.run(lambda: None)
        worker.run(lambda: setattr(sys, "stdout", sys.stderr))
        worker.hygiene.before_storage()
        assert sys.stdout is stream
        assert worker.hygiene.spoiled is None

    assert exit_code_of(main) == 0


def close_stdout() -> None:
    sys.stdout.close()


def detach_stdout() -> None:
    assert sys.__stdout__ is not None
    sys.stdout = sys.__stdout__
    sys.stdout.detach()


@pytest.mark.parametrize("change", [close_stdout, detach_stdout])
def test_where_nothing_can_be_printed_any_more_no_other_job_runs(change: Change) -> None:
    with open(os.devnull, "w") as null:

        def main(worker: OneWorker) -> None:
            worker.run(change)
            assert "sys.stdout or sys.stderr is closed" in str(worker.hygiene.spoiled)

        def begin() -> None:
            vars(sys).update(stdout=null, __stdout__=null)

        assert exit_code_of(main, limit=begin) == 0


def test_where_a_job_has_closed_what_input_reads_no_other_job_runs() -> None:
    with open(os.devnull) as null:

        def main(worker: OneWorker) -> None:
            worker.run(lambda: sys.stdin.close())
            assert "sys.stdin, sys.stdout or sys.stderr is closed" in str(worker.hygiene.spoiled)

        assert exit_code_of(main, limit=lambda: setattr(sys, "stdin", null)) == 0


def test_an_app_may_close_what_print_writes_to() -> None:
    def main(worker: OneWorker) -> None:
        worker.run(lambda: None)
        worker.hygiene.before_storage()
        assert worker.hygiene.spoiled is None

    assert exit_code_of(main, limit=close_stdout) == 0


def test_what_a_job_has_put_in_the_place_of_a_function_makes_the_worker_leave() -> None:
    def broken(*_: object) -> None:
        raise LookupError("of the job")

    def main(worker: OneWorker) -> None:
        worker.run(lambda: setattr(os, "umask", broken))
        assert "cannot be put back: of the job" in str(worker.hygiene.spoiled)

    assert exit_code_of(main) == 0


@AS_ROOT
def test_a_process_that_was_another_users_for_a_while_still_ends_with_its_parent() -> None:
    def main(worker: OneWorker) -> None:
        told = ctypes.c_int()
        worker.run(partial(os.seteuid, 1000))
        assert prctl()(PR_GET_PDEATHSIG, cast(int, ctypes.byref(told)), 0, 0, 0) == 0
        assert told.value == signal.SIGTERM

    assert exit_code_of(main) == 0


@AS_ROOT
def test_a_worker_that_is_another_users_for_good_takes_no_other_job_and_is_as_it_was_else() -> None:
    def main(worker: OneWorker) -> None:
        def change() -> None:
            os.setuid(1000)
            os.chdir("/")
            signal.signal(signal.SIGTERM, signal.SIG_IGN)

        before = surroundings()
        worker.run(change)
        assert "is another user's or group's for good" in str(worker.hygiene.spoiled)
        assert {**surroundings(), "ids": 0} == {**before, "ids": 0}

    assert exit_code_of(main, limit=lambda: os.chdir("/tmp")) == 0


def test_a_worker_whose_folder_is_gone_comes_back_to_it(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()

    def main(worker: OneWorker) -> None:
        before = os.stat(".").st_ino
        worker.run(lambda: os.rmdir(home))
        worker.run(lambda: os.chdir("/"))
        worker.hygiene.before_storage()
        assert worker.hygiene.spoiled is None
        assert os.stat(".").st_ino == before

    assert exit_code_of(main, limit=lambda: os.chdir(home)) == 0


def test_a_worker_that_becomes_ready_where_its_folder_is_gone_comes_back_to_it_too(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()

    def begin() -> None:
        os.chdir(home)
        home.rmdir()

    def main(worker: OneWorker) -> None:
        before = os.stat(".").st_ino
        worker.run(lambda: os.chdir("/"))
        assert worker.hygiene.spoiled is None
        assert os.stat(".").st_ino == before

    assert exit_code_of(main, limit=begin) == 0
