"""Tests: standard output and error that nobody reads, or that are gone, stop neither jobs nor server."""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta

import pytest

from qml_mp.core.job import Job
from qml_mp.core.outcome import AttemptKind
from qml_mp.core.state import StateName
from qml_mp.storage.store import Storage
from tests.processes.harness import Server, enqueue, left_in_registry, wait_for_state, wait_until
from tests.processes.leaving import leaving_patiently

MakeServer = Callable[..., Server]
QUICK = {"QML_MP_CANCEL_GRACE": "0.3", "QML_MP_TERM_GRACE": "0.5"}
FAULTS = "tests.processes.apps_faults:app"


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """The smallest pipe there is; the test closes its reading end or keeps it, and need not read."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    yield reading, writing
    for fd in (reading, writing):
        with suppress(OSError):
            os.close(fd)


@pytest.mark.fault(21)
def test_a_job_that_floods_a_pipe_that_nobody_reads_blocks_itself_alone(
    server: MakeServer, storage: Storage, pipe: tuple[int, int]
) -> None:
    one = leaving_patiently(server)("-w", "2", app=FAULTS, **QUICK)
    one.output = pipe[1]
    one.start(ready=2)
    limit = timedelta(seconds=0.5)

    job_id = storage.enqueue(Job.new("print_lines", {"lines": 100}, timeout=limit))

    wait_until(lambda: one.journal())
    others = [enqueue(storage, "quick") for _ in range(10)]
    for other in others:
        wait_for_state(storage, other, StateName.SUCCEEDED)
    wait_for_state(storage, job_id, StateName.FAILED)
    (attempt,) = storage.attempts(job_id)
    assert attempt.kind is AttemptKind.TIMEOUT
    one.signal(signal.SIGTERM)
    assert one.wait() == 0
    assert left_in_registry(storage, log="") == []


@pytest.mark.fault(21)
def test_lines_that_the_log_could_not_take_are_counted(
    server: MakeServer, storage: Storage, pipe: tuple[int, int]
) -> None:
    reading, writing = pipe
    one = server("-w", "1", app=FAULTS)
    one.output = writing
    one.start()
    fill(writing)
    wait_for_state(storage, enqueue(storage, "quick"), StateName.SUCCEEDED)
    os.set_blocking(reading, False)
    drain(reading)

    wait_for_state(storage, enqueue(storage, "quick"), StateName.SUCCEEDED)

    # The worker's lines about the start and the end of the first job.
    assert b"(2 lines were dropped here, because nobody read them)" in drain(reading)
    assert one.stop() == 0


def fill(writing: int) -> None:
    """Leave no room in the pipe, through a description of our own that does not block."""
    own = os.open(f"/proc/self/fd/{writing}", os.O_WRONLY | os.O_NONBLOCK)
    with suppress(BlockingIOError):
        while True:
            os.write(own, b"-")
    os.close(own)


def drain(fd: int) -> bytes:
    """What is in the pipe now."""
    with suppress(BlockingIOError):
        return os.read(fd, 65536)
    return b""


@pytest.mark.fault(21)
def test_without_a_reader_of_its_output_a_server_works_on(
    server: MakeServer, storage: Storage, pipe: tuple[int, int]
) -> None:
    reading, writing = pipe
    one = server("-w", "1", app=FAULTS)
    one.output = writing
    one.start()
    workers = one.worker_pids()
    os.close(reading)
    os.close(writing)

    printing = enqueue(storage, "print_lines", lines=100)
    quiet = enqueue(storage, "quick")

    job = wait_for_state(storage, printing, StateName.FAILED)
    assert job.last_error is not None
    assert job.last_error.type == "BrokenPipeError"  # as in any program
    assert wait_for_state(storage, quiet, StateName.SUCCEEDED).result in workers.values()
    assert one.worker_pids() == workers
    assert one.stop() == 0
