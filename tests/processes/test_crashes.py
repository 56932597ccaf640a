"""Tests: workers that die, by whatever hand: their jobs, what had ended in them, and what follows."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from qml_mp import host
from qml_mp.core.job import Job
from qml_mp.core.outcome import Attempt, AttemptKind
from qml_mp.core.state import Failed, StateName
from qml_mp.storage.store import Storage
from qml_mp.storage.values import JobFilter
from qml_mp.supervisor.recovery.sign_of_guardian import hold_sign, is_held
from tests.processes.cgroup import small_memory
from tests.processes.harness import Server, enqueue, few, is_gone, is_stopped, wait_for_state, wait_until

LIKELIER = "postgres"
MakeServer = Callable[..., Server]
GATED = "tests.processes.apps_storage_faults:app"


@pytest.mark.fault(1)
def test_a_killed_workers_job_runs_again_and_its_attempt_is_kept(
    server: MakeServer, storage: Storage, tmp_path: Path
) -> None:
    one, gate = server("-w", "2", app=GATED).start(ready=2), tmp_path / "gate"
    job_id = enqueue(storage, "gated", gate=str(gate))
    first = one.wait_until_running()

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


APP = "tests.processes.apps_stacks:app"
DEATHS = few("death", [signal.SIGSEGV], nightly=[signal.SIGKILL])


def fallen(storage: Storage, death: signal.Signals) -> Attempt:
    job_id = enqueue(storage, "fall", signal_number=int(death))
    wait_for_state(storage, job_id, StateName.FAILED)
    (attempt,) = storage.attempts(job_id)
    return attempt


def assert_is_its_own(attempt: Attempt, death: signal.Signals) -> None:
    """No process writes its stack when it is killed by SIGKILL, and each does when it dies of SIGSEGV."""
    assert attempt.process.signal == death
    assert attempt.error is not None
    if death is signal.SIGKILL:
        assert attempt.error.traceback is None
    else:
        told = str(attempt.error.traceback)
        assert told.startswith("Fatal Python error: Segmentation fault")
        assert told.count("most recent call last") == 1
        assert " in fall" in told


@DEATHS
def test_a_death_after_all_stacks_were_printed_tells_nothing_of_the_job_that_ran_then(
    server: MakeServer, storage: Storage, tmp_path: Path, death: signal.Signals
) -> None:
    one = server("-w", "1", app=APP).start()
    job_id = enqueue(storage, "gated", gate=str(tmp_path / "gate"))
    wait_until(one.journal)
    wait_until(lambda: "Worker 1 is ready" in one.log())  # or it would not be asked
    asked = 0

    def is_printed() -> bool:
        """A worker that waits for a processor is printed without a stack."""
        nonlocal asked
        log = one.log()
        if "in gated" not in log and log.count(", gated):") == asked:
            one.signal(signal.SIGUSR1)
            asked += 1
        return "in gated" in log

    wait_until(is_printed, what=one.log)
    (tmp_path / "gate").touch()
    worker = wait_for_state(storage, job_id, StateName.SUCCEEDED).result

    attempt = fallen(storage, death)

    assert attempt.pid == worker
    assert_is_its_own(attempt, death)
    assert one.stop() == 0


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


@pytest.mark.fault(4)
def test_what_had_ended_in_a_worker_killed_at_the_deadline_is_written_when_its_server_is_killed_leaving(
    server: Callable[..., Server], storage: Storage, tmp_path: Path
) -> None:
    one = server("-w", "1", "--shutdown-timeout", "1")
    armed = f"worker/finish.before=stop@{tmp_path / 'mark'};supervisor/settle.before=kill"
    one.program = ("-m", "tests.failpoints", armed)
    one.start()
    [worker] = one.worker_pids().values()
    job_id = enqueue(storage, "quick")
    wait_until(lambda: is_stopped(worker), what=one.log)

    assert one.stop() == -signal.SIGKILL, one.log()

    assert wait_for_state(storage, job_id, StateName.SUCCEEDED).claim_seq == 1


@pytest.mark.skipif(sys.platform != "linux", reason="there are no such names of sockets")
@pytest.mark.fault(4)
def test_a_killed_servers_jobs_wait_for_its_guardian(server: MakeServer, storage: Storage) -> None:
    app = "tests.nightly.apps:app"
    # No grace: a second signal that came half a second after the first would have the worker release its job.
    one = server("-w", "1", app=app, QML_MP_ORPHAN_GRACE="0").start(ready=1)
    supervisor = host.identity(one.pid)
    wait_until(lambda: is_held(supervisor), what="the guardian's sign")
    job_id = enqueue(storage, "fatal_once")
    wait_until(one.journal, what=one.log)
    one.signal(signal.SIGKILL)
    one.wait()
    sign = wait_until(lambda: hold_sign(supervisor), what="the end of the guardian")

    two = server("-w", "1", app=app).start(ready=1)
    assert storage.list_servers()
    assert [claim.key.claim_seq for claim in storage.claims()] == [1]
    sign.close()
    assert wait_for_state(storage, job_id, StateName.SUCCEEDED).claim_seq == 2
    assert two.stop() == 0
