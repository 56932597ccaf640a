"""Tests: workers that die, by whatever hand, and what becomes of their jobs."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from qml_mp.core.job import Job
from qml_mp.core.outcome import AttemptKind
from qml_mp.core.state import Failed, StateName
from qml_mp.storage.store import Storage
from tests.processes.cgroup import small_memory
from tests.processes.harness import Server, enqueue, few, is_gone, wait_for_state, wait_until

LIKELIER = "postgres"
MakeServer = Callable[..., Server]
GATED = "tests.processes.apps_storage_faults:app"


@pytest.mark.fault(1)
def test_a_killed_workers_job_runs_again_and_its_attempt_is_kept(
    server: MakeServer, storage: Storage, tmp_path: Path
) -> None:
    one, gate = server("-w", "2", app=GATED).start(ready=2), tmp_path / "gate"
    job_id = enqueue(storage, "gated", gate=str(gate))
    first = wait_until(lambda: next((line for line in one.journal() if line.what == "start"), None))

    os.kill(first.pid, signal.SIGKILL)
    gate.touch()

    job = wait_for_state(storage, job_id, StateName.SUCCEEDED)
    assert (job.claim_seq, job.crashes, job.failures) == (2, 1, 0)
    (attempt,) = storage.attempts(job_id)
    assert attempt.kind is AttemptKind.CRASH
    assert attempt.pid == first.pid
    assert attempt.process.signal == signal.SIGKILL
    assert attempt.process.peak_rss_bytes
    assert attempt.process.peak_rss_bytes > 1_000_000
    wait_until(lambda: len(one.worker_pids()) == 2, what="the replacement")
    assert first.pid not in one.worker_pids().values()
    assert one.stop() == 0


@pytest.mark.fault(9)
def test_a_worker_that_the_oom_killer_ends_is_a_crash_that_says_so(
    server: MakeServer, storage: Storage
) -> None:
    one = server("-w", "1", QML_MP_MAX_CRASHES="1").start()

    with small_memory(32 * 1024 * 1024) as entrance:
        job_id = enqueue(storage, "outgrow_a_group", entrance=str(entrance), mib=200)
        job = wait_for_state(storage, job_id, StateName.FAILED)

    assert (job.crashes, job.failures) == (1, 0)
    (attempt,) = storage.attempts(job_id)
    assert (attempt.kind, attempt.process.signal) == (AttemptKind.CRASH, signal.SIGKILL)
    assert attempt.error is not None
    assert "OOM killer" in attempt.error.message
    assert attempt.process.peak_rss_bytes
    assert attempt.process.peak_rss_bytes > 32 * 1024 * 1024
    wait_for_state(storage, enqueue(storage, "quick"), StateName.SUCCEEDED)
    assert one.stop() == 0


@pytest.mark.fault(10)
@few("exit_code", [0], nightly=[1, 80])
def test_a_job_that_exits_its_process_is_never_a_success(
    server: MakeServer, storage: Storage, exit_code: int
) -> None:
    one = server("-w", "1", QML_MP_MAX_CRASHES="1").start()

    job_id = enqueue(storage, "die", exit_code=exit_code)

    job = wait_for_state(storage, job_id, StateName.FAILED)
    (attempt,) = storage.attempts(job_id)
    assert attempt.process.exit_code == exit_code
    assert job.crashes == 1
    assert one.stop() == 0


@pytest.mark.fault(12)
@pytest.mark.fault(61)
def test_a_job_that_kills_every_worker_is_dead_after_three_crashes_while_others_flow(
    server: MakeServer, storage: Storage
) -> None:
    one = server("-w", "2").start()
    poison_id = enqueue(storage, "die", signal_number=int(signal.SIGSEGV))

    others = [enqueue(storage, "quick", busy_s=0.005) for _ in range(100)]

    for job_id in others:
        assert wait_for_state(storage, job_id, StateName.SUCCEEDED).crashes == 0
    poison = wait_for_state(storage, poison_id, StateName.FAILED)
    assert isinstance(poison.state, Failed)
    assert poison.state.exception is not None
    assert poison.state.exception.type == "WorkerCrashed"
    assert (poison.crashes, poison.failures) == (3, 0)
    assert [attempt.process.signal for attempt in storage.attempts(poison_id)] == [signal.SIGSEGV] * 3
    assert one.stop() == 0


def test_a_job_that_forks_and_lets_both_copies_return_ends_once(server: MakeServer, storage: Storage) -> None:
    one = server("-w", "1").start()
    (worker,) = one.worker_pids().values()

    job_id = enqueue(storage, "split")
    after_id = enqueue(storage, "quick")

    assert wait_for_state(storage, job_id, StateName.SUCCEEDED).claim_seq == 1
    assert wait_for_state(storage, after_id, StateName.SUCCEEDED).claim_seq == 1
    assert [line.pid for line in one.journal()] == [worker, worker]
    assert one.stop() == 0


@pytest.mark.fault(70)
def test_a_killed_guardian_is_replaced_and_no_worker_is_harmed(server: MakeServer, storage: Storage) -> None:
    one = server("-w", "1").start()
    workers = one.worker_pids()
    first = wait_until(lambda: guardian_of(one.pid))

    os.kill(first, signal.SIGKILL)

    second = wait_until(lambda: (pid := guardian_of(one.pid)) != first and pid)
    assert one.worker_pids() == workers
    assert one.stop() == 0
    assert is_gone(second)


def guardian_of(supervisor: int) -> int | None:
    """The pid of the supervisor's guardian, by its title."""
    children = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
    return next((int(child) for child in children if title_of(child).startswith("qml-mp: guardian")), None)


def title_of(pid: str) -> str:
    """Empty when the process has gone since its pid was listed."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


@few("method", ["die_at_most_twice"], nightly=["die_once_only"])
def test_a_functions_own_crash_budget_holds_also_for_jobs_enqueued_by_name(
    server: MakeServer, storage: Storage, method: str
) -> None:
    one = server("-w", "1").start()

    job = wait_for_state(storage, enqueue(storage, method), StateName.FAILED)

    assert job.crashes == {"die_once_only": 1, "die_at_most_twice": 2}[method]
    assert one.stop() == 0


def test_a_jobs_own_crash_budget_wins(server: MakeServer, storage: Storage) -> None:
    one = server("-w", "1").start()

    job_id = storage.enqueue(Job.new("die_at_most_twice", max_crashes=1))

    assert wait_for_state(storage, job_id, StateName.FAILED).crashes == 1
    assert one.stop() == 0
