"""Tests: SIGTERM as a worker takes it: with a message or without, in mid-read, between jobs."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from qml_mp.child.commands import Commands
from qml_mp.core.job import ClaimKey, new_job_id
from qml_mp.errors import JobInterrupted, JobTimeout
from qml_mp.ipc.pipe import Kind, Message, PipeReader, open_pipe, send
from qml_mp.processing.cancel import CancelReason, CancelToken
from tests.until import PATIENCE_S, wait_until

KEY = ClaimKey(job_id=new_job_id(), claim_seq=1)
INTERRUPT = Message(kind=Kind.INTERRUPT, key=KEY, reason=CancelReason.TIMEOUT)


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


def test_nor_does_one_whose_interruption_was_read_before(pipe: tuple[int, int]) -> None:
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


def test_a_signal_that_comes_just_before_a_wait_between_jobs_ends_it(
    pipe: tuple[int, int],
) -> None:
    commands = Commands(PipeReader(pipe[0]))
    commands.install()
    os.kill(os.getpid(), signal.SIGTERM)
    commands.wait(3600)
    assert commands.leaving


def test_a_signal_between_jobs_ends_the_wait(pipe: tuple[int, int]) -> None:
    commands = Commands(PipeReader(pipe[0]))
    commands.install()  # before the fork, so that no signal comes too early
    pid = os.fork()
    if pid == 0:
        signal.alarm(round(PATIENCE_S))
        commands.wait(3600)
        os._exit(100 + commands.leaving)
    wait_until(lambda: ") S " in Path(f"/proc/{pid}/stat").read_text())
    os.kill(pid, signal.SIGTERM)

    _, status = os.waitpid(pid, 0)

    assert os.waitstatus_to_exitcode(status) == 101
