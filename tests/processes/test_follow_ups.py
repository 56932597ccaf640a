"""Tests: a job that has others follow dies with its worker at any moment of its end: they follow once."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from qml_mp.core.state import StateName
from qml_mp.storage.store import Storage
from qml_mp.storage.values import JobFilter
from tests.processes.harness import Server, enqueue, is_stopped, wait_for_state, wait_until

TOO_LONG_FOR_SHARED_MEMORY = 1_030_000


@pytest.mark.fault(2)
@pytest.mark.parametrize(
    ("moment", "chars", "runs"),
    [
        ("outcome.recorded", 1, 1),
        ("finish.before", TOO_LONG_FOR_SHARED_MEMORY, 2),
    ],
)
def test_what_follows_is_enqueued_once_whenever_the_worker_dies(
    server: Callable[..., Server], storage: Storage, tmp_path: Path, moment: str, chars: int, runs: int
) -> None:
    one = server("-w", "1")
    one.program = ("-m", "tests.failpoints", f"worker/{moment}=kill@{tmp_path / 'mark'}")
    one.start(ready=None)

    first_id = enqueue(storage, "lead", followers=2, chars=chars)

    first = wait_for_state(storage, first_id, StateName.SUCCEEDED)
    assert (first.claim_seq, first.crashes) == (runs, runs - 1)
    wait_until(lambda: storage.job_counts()[StateName.SUCCEEDED] == 3, what=one.log)
    followers = storage.list_jobs(JobFilter(method="quick")).jobs
    assert [job.metadata["parent_id"] for job in followers] == [first_id] * 2
    assert sum(line.job_id == first_id for line in one.journal()) == runs
    assert one.stop() == 0


@pytest.mark.fault(4)
def test_what_follows_is_enqueued_by_the_guardian_when_worker_and_supervisor_die_at_a_time(
    server: Callable[..., Server], storage: Storage, tmp_path: Path
) -> None:
    one = server("-w", "1")
    one.program = ("-m", "tests.failpoints", f"worker/outcome.recorded=stop@{tmp_path / 'mark'}")
    one.start()
    [worker] = one.worker_pids().values()

    first_id = enqueue(storage, "lead", followers=2, chars=1)
    wait_until(lambda: is_stopped(worker), what=one.log)
    one.signal(signal.SIGSTOP)  # or it would see the death of the worker
    os.kill(worker, signal.SIGKILL)
    one.signal(signal.SIGKILL)
    one.wait()

    first = wait_for_state(storage, first_id, StateName.SUCCEEDED)  # nobody serves the storage now
    assert (first.claim_seq, first.crashes) == (1, 0)
    followers = storage.list_jobs(JobFilter(method="quick")).jobs
    assert [job.state_name for job in followers] == [StateName.ENQUEUED] * 2
    assert [job.metadata["parent_id"] for job in followers] == [first_id] * 2
