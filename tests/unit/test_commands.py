"""Tests: SIGTERM as a worker takes it: with a message or without, in mid-read, between jobs."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from qml_mp.child.commands import Commands
from qml_mp.child.prologue import cut_off_descendants
from qml_mp.core.job import ClaimKey, new_job_id
from qml_mp.errors import JobInterrupted, JobTimeout
from qml_mp.ipc.pipe import Kind, Message, PipeReader, open_pipe, send
from qml_mp.processing.cancel import CancelReason, CancelToken
from tests.until import PATIENCE_S, wait_until

KEY = ClaimKey(job_id=new_job_id(), claim_seq=1)
INTERRUPT = Message(kind=Kind.INTERRUPT, key=KEY, reason=CancelReason.TIMEOUT)
FORKS: dict[str, Callable[[], object]] = {
    "os": lambda: os.fork() or os._exit(0),
    "multiprocessing": lambda: multiprocessing.get_context("fork").Process(target=str).start(),
    "subprocess": lambda: subprocess.run(["true"], preexec_fn=str, check=True),
}


class Reader(PipeReader):
    """In whose first read the signal comes, before it has found anything."""

    is_new = True

    def read(self) -> list[Message]:
        if self.is_new:
            self.is_new = False
            os.kill(os.getpid(), signal.SIGTERM)
        return super().read()


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    before = signal.getsignal(signal.SIGTERM)
    reading, writing = open_pipe()
    yield reading, writing
    signal.signal(signal.SIGTERM, before)
    os.close(reading)
    os.close(writing)


def begin(commands: Commands) -> CancelToken:
    commands.install()
    return commands.attend_to(KEY)


def test_a_signal_that_comes_while_a_job_looks_whether_it_should_end_means_leave(
    pipe: tuple[int, int],
) -> None:
    commands = Commands(Reader(pipe[0]))
    token = begin(commands)

    with commands.user_code():
        assert not token.is_cancelled

    assert commands.leaving


def test_a_signal_in_mid_read_that_brings_an_interruption_does_not(pipe: tuple[int, int]) -> None:
    commands = Commands(Reader(pipe[0]))
    token = begin(commands)
    send(pipe[1], INTERRUPT)

    with pytest.raises(JobTimeout), commands.user_code():
        _ = token.is_cancelled

    assert not commands.leaving


def test_nor_does_one_whose_interruption_was_read_before(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qml_mp.child.commands._SIGNAL_WITHIN_S", PATIENCE_S)
    commands = Commands(PipeReader(pipe[0]))
    token = begin(commands)
    send(pipe[1], INTERRUPT)
    with pytest.raises(JobInterrupted), commands.user_code():
        token.wait(None)

    os.kill(os.getpid(), signal.SIGTERM)
    is_leaving = [commands.leaving]
    os.kill(os.getpid(), signal.SIGTERM)
    is_leaving.append(commands.leaving)

    assert is_leaving == [False, True]


def test_one_after_a_job_that_has_ended_before_its_interruption_was_raised_means_leave(
    pipe: tuple[int, int],
) -> None:
    commands = Commands(PipeReader(pipe[0]))
    token = begin(commands)
    send(pipe[1], INTERRUPT)
    assert token.is_cancelled
    commands.attend_to_nothing()

    for _ in ("that of the interruption", "another"):
        os.kill(os.getpid(), signal.SIGTERM)

    assert commands.leaving


def test_a_signal_that_comes_just_before_a_wait_between_jobs_ends_it(
    pipe: tuple[int, int],
) -> None:
    commands = Commands(PipeReader(pipe[0]))
    commands.install()
    os.kill(os.getpid(), signal.SIGTERM)
    commands.wait(3600)
    assert commands.leaving


def test_a_job_that_begins_once_the_end_of_the_supervisor_was_seen_is_told_of_it() -> None:
    reading, writing = open_pipe()
    commands = Commands(PipeReader(reading))
    os.close(writing)
    commands.look()

    token = commands.attend_to(KEY)

    assert token.reason is CancelReason.ORPHANED
    os.close(reading)


def test_an_event_loop_that_the_app_ends_at_sigterm_goes_on_in_a_job_that_is_to_be_finished(
    pipe: tuple[int, int],
) -> None:
    heard: list[str] = []

    async def job() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(3):  # the loop hears of signals where it looks at its descriptors
            await asyncio.sleep(0)

    commands = Commands(PipeReader(pipe[0]))
    commands.install()
    with closing(asyncio.new_event_loop()) as loop:
        loop.add_signal_handler(signal.SIGTERM, heard.append, "SIGTERM")
        commands.install()

        loop.run_until_complete(job())

    assert commands.leaving
    assert heard == []


def main_thread_waits(pid: int) -> bool:
    """Whether it is within a call. A signal that came just before would not end that."""
    return ") S " in Path(f"/proc/{pid}/stat").read_text()


def test_a_signal_between_jobs_ends_the_wait(pipe: tuple[int, int]) -> None:
    commands = Commands(PipeReader(pipe[0]))
    commands.install()  # before the fork, so that no signal comes too early
    pid = os.fork()
    if pid == 0:
        signal.alarm(round(PATIENCE_S))
        commands.wait(3600)
        os._exit(100 + commands.leaving)
    wait_until(lambda: main_thread_waits(pid))
    os.kill(pid, signal.SIGTERM)

    _, status = os.waitpid(pid, 0)

    assert os.waitstatus_to_exitcode(status) == 101


def exit_code_of(main: Callable[[], bool]) -> int:
    """0: it was so. In a process of its own, because what is called at forks cannot be taken back."""
    pid = os.fork()
    if pid == 0:
        signal.alarm(round(PATIENCE_S))
        try:
            os._exit(0 if main() else 1)
        finally:
            os._exit(2)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def sigterm_here() -> None:
    """To this thread, which gets it once it does not block it any more. One to the process, which this thread
    blocks at a fork, would go to any other thread there is, whenever that comes to run; and a test before may
    have begun an exporter that starts its thread anew in each copy of the process."""
    signal.pthread_kill(threading.get_ident(), signal.SIGTERM)


@pytest.mark.parametrize("moment", ["before", "after_in_parent"])
@pytest.mark.parametrize("fork", FORKS.values(), ids=FORKS)
def test_an_interruption_during_a_fork_is_raised_when_the_fork_is_over(
    pipe: tuple[int, int], fork: Callable[[], object], moment: str
) -> None:
    """Python passes over what is raised in a function that it calls at a fork."""

    def main() -> bool:
        seen = []

        def interrupt() -> None:
            send(pipe[1], INTERRUPT)
            sigterm_here()
            seen.append("undisturbed")

        os.register_at_fork(**{moment: interrupt})
        commands = Commands(PipeReader(pipe[0]))
        cut_off_descendants(fds=pipe, detach=commands.detach)
        begin(commands)
        commands.forks.watch()
        with pytest.raises(JobTimeout), commands.user_code():  # noqa: PT012
            fork()
            seen.append("over")
        return seen == ["undisturbed"] and not commands.leaving

    assert exit_code_of(main) == 0


def test_an_interruption_during_a_fork_of_another_thread_ends_the_call_of_the_main_one(
    pipe: tuple[int, int],
) -> None:
    def main() -> bool:
        handled = threading.Event()

        def interrupt() -> None:
            wait_until(lambda: main_thread_waits(os.getpid()))
            send(pipe[1], INTERRUPT)
            os.kill(os.getpid(), signal.SIGTERM)
            handled.wait()  # by the main thread, which goes on with its call
            wait_until(lambda: main_thread_waits(os.getpid()))

        class Handling(Commands):
            def look(self) -> bool:
                was_any = super().look()
                if was_any:
                    handled.set()
                return was_any

        os.register_at_fork(before=interrupt)
        commands = Handling(PipeReader(pipe[0]))
        cut_off_descendants(fds=pipe, detach=commands.detach)
        begin(commands)
        commands.forks.watch()
        forking = threading.Thread(target=FORKS["os"])
        with pytest.raises(JobTimeout), commands.user_code():  # noqa: PT012
            forking.start()
            time.sleep(2 * PATIENCE_S)  # until the interruption, or the alarm
        return True

    assert exit_code_of(main) == 0


def test_an_interruption_during_a_fork_within_a_fork_is_raised_when_both_are_over(
    pipe: tuple[int, int],
) -> None:
    def main() -> bool:
        seen: list[str] = []

        def fork_once() -> None:
            if not seen:
                seen.append("forks")
                FORKS["os"]()
                send(pipe[1], INTERRUPT)
                sigterm_here()
                FORKS["os"]()
                seen.append("undisturbed")

        os.register_at_fork(before=fork_once)
        commands = Commands(PipeReader(pipe[0]))
        cut_off_descendants(fds=pipe, detach=commands.detach)
        begin(commands)
        commands.forks.watch()
        with pytest.raises(JobTimeout), commands.user_code():  # noqa: PT012
            FORKS["os"]()
            seen.append("over")
        return seen == ["forks", "undisturbed"] and not signal.pthread_sigmask(signal.SIG_BLOCK, [])

    assert exit_code_of(main) == 0


def test_a_copy_that_a_job_forks_is_not_interrupted_in_its_place(pipe: tuple[int, int]) -> None:
    def main() -> bool:
        def interrupt() -> None:
            send(pipe[1], INTERRUPT)
            sigterm_here()

        os.register_at_fork(before=interrupt)
        commands = Commands(PipeReader(pipe[0]))
        cut_off_descendants(fds=pipe, detach=commands.detach)
        token = begin(commands)
        commands.forks.watch()
        with pytest.raises(JobTimeout), commands.user_code():  # noqa: PT012
            if os.fork() == 0:
                os._exit(100 + token.is_cancelled)
        return os.waitstatus_to_exitcode(os.wait()[1]) == 100

    assert exit_code_of(main) == 0
