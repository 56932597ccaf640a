"""Tests: a job that leaves its worker's process group is ended by everything that ends a job."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta

import pytest

from qml_mp.core.job import Job
from qml_mp.core.outcome import AttemptKind
from qml_mp.core.state import StateName
from qml_mp.storage.store import Storage
from tests.processes.harness import (
    Server,
    enqueue,
    few,
    is_gone,
    is_stopped,
    result_of,
    wait_for_state,
    wait_until,
)
from tests.processes.test_crashes import guardian_of

LEAVES_PATIENTLY = True
MakeServer = Callable[..., Server]
LEFTOVERS = "tests.processes.apps_leftovers:app"
QUICK = {"QML_MP_CANCEL_GRACE": "0.3", "QML_MP_TERM_GRACE": "0.5", "QML_MP_ORPHAN_GRACE": "0.5"}
IN_A_GROUP_OF_ITS_OWN = (
    sys.executable, "-c", "import os, sys; os.setpgid(0, 0); os.execv(sys.argv[1], sys.argv[1:])",
)  # fmt: skip
"""So that the escaped jobs do not end up in the group of the tests."""


@pytest.fixture
def one(server: MakeServer) -> Server:
    """A server of one worker."""
    one = server("-w", "1", "--shutdown-timeout", "1", app=LEFTOVERS, **QUICK)
    one.prefix = IN_A_GROUP_OF_ITS_OWN
    return one.start()


@pytest.fixture
def bystander(one: Server) -> Iterator[subprocess.Popen[bytes]]:
    """Another process of the supervisor's group, as in a shell's pipeline."""
    process = subprocess.Popen(["sleep", "600"], process_group=one.pid)
    yield process
    process.kill()
    process.wait()


def escaped(one: Server) -> int:
    """The pid of the worker whose job has left its group."""
    pid = one.wait_until_running().pid
    assert os.getpgid(pid) == one.pid
    return pid


@pytest.mark.fault(79)
def test_its_time_limit_kills_a_job_that_has_joined_the_supervisors_group_and_nobody_else(
    one: Server, storage: Storage, bystander: subprocess.Popen[bytes]
) -> None:
    job_id = storage.enqueue(Job.new("escape", timeout=timedelta(seconds=3)))
    worker = escaped(one)

    job = wait_for_state(storage, job_id, StateName.FAILED)

    assert is_gone(worker)
    (attempt,) = storage.attempts(job_id)
    assert attempt.kind is AttemptKind.TIMEOUT
    assert (job.failures, job.crashes) == (1, 0)
    assert result_of(storage, "quick") != worker
    assert bystander.poll() is None
    assert one.stop() == 0


@pytest.mark.fault(79)
@few("signals", [["QUIT"]], nightly=[["TERM"], ["TERM", "TERM"]])
def test_a_stop_ends_a_job_that_has_joined_the_supervisors_group(
    one: Server, storage: Storage, bystander: subprocess.Popen[bytes], signals: list[str]
) -> None:
    job_id = enqueue(storage, "escape")
    worker = escaped(one)

    for name in signals:
        one.signal(signal.Signals[f"SIG{name}"])

    assert one.wait() == 6
    assert is_gone(worker)
    wait_for_state(storage, job_id, StateName.ENQUEUED)
    assert bystander.poll() is None


@pytest.mark.fault(79)
def test_the_guardian_of_a_killed_supervisor_ends_a_job_that_has_joined_its_group(
    one: Server, storage: Storage, bystander: subprocess.Popen[bytes]
) -> None:
    enqueue(storage, "escape")
    worker = escaped(one)

    os.kill(one.pid, signal.SIGKILL)
    one.wait()

    wait_until(lambda: is_gone(worker), what="the end of the worker")
    assert bystander.poll() is None


@pytest.mark.nightly
@pytest.mark.fault(79)
def test_the_next_server_ends_a_job_that_has_outlived_its_supervisor_outside_of_its_group(
    one: Server, storage: Storage, server: MakeServer, bystander: subprocess.Popen[bytes]
) -> None:
    job_id = enqueue(storage, "escape")
    worker = escaped(one)
    guardian = wait_until(lambda: guardian_of(one.pid))
    os.kill(one.pid, signal.SIGSTOP)  # or it would have another guardian
    wait_until(lambda: is_stopped(one.pid))
    os.kill(guardian, signal.SIGKILL)
    os.kill(one.pid, signal.SIGKILL)
    one.wait()
    assert not is_gone(worker)

    other = server("-w", "1", app=LEFTOVERS, **QUICK)
    other.prefix = IN_A_GROUP_OF_ITS_OWN
    other.start()

    assert wait_for_state(storage, job_id, StateName.SUCCEEDED).claim_seq == 2
    assert is_gone(worker)
    assert bystander.poll() is None
    assert other.stop() == 0


@pytest.mark.fault(79)
@pytest.mark.fault(23)
def test_a_worker_is_put_back_into_its_own_group_after_a_job_that_left_it(
    one: Server, storage: Storage
) -> None:
    worker = result_of(storage, "change_group")

    assert result_of(storage, "group") == [worker, worker]
    assert one.stop() == 0
