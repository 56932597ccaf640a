"""Tests: limits on a worker's jobs and memory, and that replacing workers is never felt."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from qml_mp.core.outcome import AttemptKind
from qml_mp.core.state import StateName
from qml_mp.storage.store import Storage
from tests.processes.harness import (
    Server,
    enqueue,
    few,
    is_stopped,
    left_in_registry,
    wait_for_a_beat,
    wait_for_state,
    wait_until,
)

MEMORY_APP = "tests.processes.apps_outcomes:app"
MakeServer = Callable[..., Server]


def test_a_worker_is_replaced_after_its_number_of_jobs(server: MakeServer, storage: Storage) -> None:
    one = server("-w", "1", "--max-jobs", "1").start()
    workers = one.worker_pids()

    ids = [enqueue(storage, "quick") for _ in range(3)]
    for job_id in ids:
        wait_for_state(storage, job_id, StateName.SUCCEEDED)

    wait_until(lambda: one.worker_pids().keys() == {1} and one.worker_pids() != workers, what=one.log)
    assert all((job.crashes, job.failures) == (0, 0) for job in map(storage.get, ids) if job)
    # A claim that reaches a worker after it was told to leave is given back: it never ran there.
    assert sorted(one.starts()) == sorted(ids)
    assert one.stop() == 0


def test_a_worker_above_the_soft_memory_limit_finishes_its_job_and_is_replaced(
    server: MakeServer, storage: Storage
) -> None:
    one = server("-w", "1", "--max-memory", "150MiB").start()
    workers = one.worker_pids()

    job_id = enqueue(storage, "keep_memory", mib=200)

    assert wait_for_state(storage, job_id, StateName.SUCCEEDED).claim_seq == 1
    wait_until(lambda: one.worker_pids().keys() == {1} and one.worker_pids() != workers, what=one.log)
    assert one.stop() == 0


@pytest.mark.fault(9)
def test_a_job_above_the_hard_memory_limit_is_killed_and_fails_with_the_figures(
    server: MakeServer, storage: Storage
) -> None:
    one = server("-w", "1", "--max-memory-hard", "150MiB").start()

    job_id = enqueue(storage, "eat_memory", mib=300)

    job = wait_for_state(storage, job_id, StateName.FAILED)
    assert (job.failures, job.crashes) == (1, 0)
    (attempt,) = storage.attempts(job_id)
    assert attempt.kind is AttemptKind.FAILURE
    assert attempt.error is not None
    assert attempt.error.type == "OutOfMemory"
    assert attempt.process.peak_rss_bytes
    assert attempt.process.peak_rss_bytes > 150 * 1024 * 1024
    assert one.stop() == 0


@pytest.mark.fault(9)
def test_a_worker_above_the_hard_limit_whose_job_has_ended_writes_what_came_of_it_and_leaves(
    server: MakeServer, storage: Storage, tmp_path: Path
) -> None:
    one = server("-w", "1", "--max-memory-hard", "150MiB", QML_MP_HEARTBEAT_INTERVAL="0.5")
    mark, gate = tmp_path / "mark", tmp_path / "gate"
    one.program = ("-m", "tests.failpoints", f"worker/finish.before=stop:1@{mark}")
    worker = one.start().worker_pids()[1]
    job_id = enqueue(storage, "keep_memory_at_the_end", gate=str(gate), mib=200)
    wait_until(one.journal, what="the start")
    one.signal(signal.SIGSTOP)  # or it may see the memory before the job has ended
    gate.touch()
    wait_until(lambda: mark.exists() and is_stopped(worker), what="the write of the outcome")

    one.signal(signal.SIGCONT)
    for _ in range(2):  # between which it looks several times
        wait_for_a_beat(one, storage)
    os.kill(worker, signal.SIGCONT)

    assert wait_for_state(storage, job_id, StateName.SUCCEEDED, StateName.FAILED).claim_seq == 1
    assert not storage.attempts(job_id)
    wait_until(lambda: one.worker_pids().get(1, worker) != worker, what=one.log)
    assert "killing it" not in one.log()
    assert "leaves: a job or a hook has left more memory in use than max_memory_hard" in one.log()
    assert one.stop() == 0


def test_whether_a_job_above_the_hard_limit_runs_again_is_asked_of_its_policy_as_out_of_memory(
    server: MakeServer, storage: Storage
) -> None:
    one = server("-w", "1", "--max-memory-hard", "150MiB", app=MEMORY_APP).start()

    job_id = enqueue(storage, "eat_memory_once", mib=300)  # never_retry=("OutOfMemory",)

    job = wait_for_state(storage, job_id, StateName.FAILED)
    assert job.error is not None
    assert (job.error.type, job.failures, job.crashes) == ("OutOfMemory", 1, 0)
    assert one.stop() == 0


@few("flag", ["--max-memory"], nightly=["--max-memory-hard"])
def test_a_limit_below_what_an_idle_worker_uses_is_refused_at_start(
    server: MakeServer, storage: Storage, flag: str
) -> None:
    one = server("-w", "2", flag, "5MiB").start(ready=None)

    assert one.wait() == 2
    assert "less than what a worker uses" in one.log()
    assert left_in_registry(storage, one.log()) == []
