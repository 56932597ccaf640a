"""Tests: a worker or a supervisor that dies, or is told to stop, at a named place of its code."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from qml_mp.core.outcome import AttemptKind
from qml_mp.core.state import StateName
from qml_mp.storage.store import Storage
from tests.processes.harness import Server, enqueue, few, is_stopped, state_of, wait_for_state, wait_until
from tests.processes.leaving import leaving_patiently

LIKELIER = "postgres"
MakeServer = Callable[..., Server]
OTHER_FORKS = [("fork.after", 1), ("fork.after", 3), *(("fork.before", number) for number in (1, 2, 3))]
"""Of the guardian, the first worker and the second one."""


@pytest.fixture
def place(server: MakeServer, tmp_path: Path) -> Callable[..., Server]:
    """Makes a server in a folder of its own, in which a failpoint is armed for once."""

    def make(failpoint: str, *flags: str) -> Server:
        one = leaving_patiently(server)(*flags)
        one.program = ("-m", "tests.failpoints", f"{failpoint}@{tmp_path / 'mark'}")
        one.cwd = tmp_path
        return one

    return make


def processes_in(folder: Path) -> list[int]:
    """Whoever has the folder as its current directory: the server's processes, known to it or not."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                if os.readlink(f"/proc/{name}/cwd") == str(folder):
                    found.append(int(name))
            except OSError:
                continue  # it is gone, or a zombie
    return found


def runs(one: Server) -> list[tuple[str, int]]:
    return [(line.job_id, line.claim_seq) for line in one.journal() if line.what == "start"]


@pytest.mark.fault(2)
def test_a_worker_killed_between_claim_and_start_costs_the_job_no_retry(
    place: MakeServer, storage: Storage
) -> None:
    one = place("claim.committed=kill", "-w", "1").start()

    job_id = enqueue(storage, "quick")

    job = wait_for_state(storage, job_id, StateName.SUCCEEDED)
    assert (job.claim_seq, job.failures, job.crashes) == (2, 0, 1)
    assert runs(one) == [(job_id, 2)]  # the first claim never began to run
    assert [attempt.kind for attempt in storage.attempts(job_id)] == [AttemptKind.CRASH]
    assert one.stop() == 0


@pytest.mark.fault(3)
def test_a_worker_killed_before_its_outcome_is_written_does_not_run_the_job_again(
    place: MakeServer, storage: Storage
) -> None:
    one = place("finish.before=kill", "-w", "1").start()

    job_id = enqueue(storage, "quick")

    job = wait_for_state(storage, job_id, StateName.SUCCEEDED)
    assert (job.claim_seq, job.failures, job.crashes, job.result) == (1, 0, 0, 1)
    assert runs(one) == [(job_id, 1)]
    assert storage.attempts(job_id) == ()
    assert one.stop() == 0


@pytest.mark.fault(3)
def test_a_worker_killed_before_anybody_knows_of_its_outcome_has_its_job_run_again(
    place: MakeServer, storage: Storage
) -> None:
    one = place("job.returned=kill", "-w", "1").start()

    job_id = enqueue(storage, "quick")

    job = wait_for_state(storage, job_id, StateName.SUCCEEDED)
    assert (job.claim_seq, job.failures, job.crashes) == (2, 0, 1)
    assert runs(one) == [(job_id, 1), (job_id, 2)]
    (attempt,) = storage.attempts(job_id)
    assert (attempt.kind, attempt.claim_seq) == (AttemptKind.CRASH, 1)
    assert attempt.process.signal == signal.SIGKILL
    assert one.stop() == 0


@pytest.mark.fault(3)
def test_a_worker_killed_right_after_finish_does_not_run_the_job_again_and_gives_back_the_next(
    place: MakeServer, storage: Storage
) -> None:
    first_id, next_id = enqueue(storage, "quick"), enqueue(storage, "quick")
    one = place("finish.committed=kill", "-w", "1").start(ready=None)

    following = wait_for_state(storage, next_id, StateName.SUCCEEDED)

    first = storage.get(first_id)
    assert first is not None
    assert (first.state_name, first.claim_seq, first.crashes) == (StateName.SUCCEEDED, 1, 0)
    # The next job was claimed by the commit that finished the first one, and had not begun.
    assert (following.claim_seq, following.failures) == (2, 0)
    assert runs(one) == [(first_id, 1), (next_id, 2)]
    assert one.stop() == 0


@pytest.mark.parametrize("failpoint", ["finish.before=raise:1", "finish.committed=raise:1"])
def test_an_outcome_is_written_once_though_the_storage_fails_before_or_after_it(
    place: MakeServer, storage: Storage, failpoint: str
) -> None:
    one = place(failpoint, "-w", "1").start()

    job_id = enqueue(storage, "quick")

    assert wait_for_state(storage, job_id, StateName.SUCCEEDED).claim_seq == 1
    wait_until(lambda: "Cannot write an outcome, will try again" in one.log(), what=one.log)
    assert runs(one) == [(job_id, 1)]
    assert one.stop() == 0


@pytest.mark.fault(5)
@few("moment", ["settle.finished"], nightly=["settle.before", "settle.after"])
def test_a_supervisor_killed_while_it_settles_a_death_leaves_the_rest_to_the_next(
    place: MakeServer, storage: Storage, tmp_path: Path, moment: str
) -> None:
    one = place(f"{moment}=kill", "-w", "1").start()
    job_id = enqueue(storage, "nap", seconds=60)
    first = wait_until(lambda: next(iter(one.journal()), None))
    os.kill(first.pid, signal.SIGKILL)
    assert one.wait() == -signal.SIGKILL
    wait_until(lambda: not processes_in(tmp_path), what="the end of every process")
    before = set(runs(one))

    one.start()

    # Claim 2; or 3, when the replacement had 2 in hand as its supervisor died, and had begun it or not.
    wait_until(lambda: ({(job_id, 2), (job_id, 3)} & set(runs(one))) - before, what=one.log)
    job = storage.get(job_id)
    assert job is not None
    # Charged once when the settling had come so far; without a witness nobody is charged.
    assert job.crashes == (0 if moment == "settle.before" else 1)
    one.signal(signal.SIGQUIT)
    assert one.wait() == 6
    assert state_of(storage, job_id) is StateName.ENQUEUED


@pytest.mark.fault(59)
@few("moment, number", [("fork.after", 2)], nightly=OTHER_FORKS)
def test_a_sigterm_while_forking_stops_the_server_and_leaves_no_orphan(
    place: MakeServer, storage: Storage, tmp_path: Path, moment: str, number: int
) -> None:
    one = place(f"supervisor/{moment}=stop:{number}", "-w", "2").start(ready=None)
    wait_until(lambda: (tmp_path / "mark").exists() and is_stopped(one.pid), what=one.log)

    one.signal(signal.SIGTERM)
    one.signal(signal.SIGCONT)

    assert one.wait() == 0, one.log()
    assert processes_in(tmp_path) == []
    assert storage.list_servers() == []
    assert storage.list_workers() == []


@pytest.mark.fault(59)
def test_a_sigterm_while_a_worker_boots_stops_the_server_and_leaves_no_orphan(
    place: MakeServer, storage: Storage, tmp_path: Path
) -> None:
    one = place("boot=stop", "-w", "1", "--shutdown-timeout", "1").start(ready=None)
    wait_until(lambda: (tmp_path / "mark").exists(), what=one.log)

    one.signal(signal.SIGTERM)

    assert one.wait() == 0, one.log()
    assert processes_in(tmp_path) == []
    assert storage.list_servers() == []


@pytest.mark.fault(4)
@pytest.mark.fault(59)
@few("moment, number", [("fork.after", 2)], nightly=OTHER_FORKS)
def test_a_supervisor_killed_while_forking_leaves_no_orphan_and_the_next_one_works(
    place: MakeServer, storage: Storage, tmp_path: Path, moment: str, number: int
) -> None:
    job_id = enqueue(storage, "quick")
    one = place(f"supervisor/{moment}=kill:{number}", "-w", "2").start(ready=None)

    assert one.wait() == -signal.SIGKILL, one.log()

    wait_until(lambda: not processes_in(tmp_path), what="the end of every process")
    one.start()
    wait_for_state(storage, job_id, StateName.SUCCEEDED)
    assert one.stop() == 0
    assert processes_in(tmp_path) == []


@pytest.mark.fault(60)
def test_a_worker_that_dies_while_booting_is_replaced(place: MakeServer, storage: Storage) -> None:
    job_id = enqueue(storage, "quick")

    one = place("boot=kill", "-w", "1").start()

    assert wait_for_state(storage, job_id, StateName.SUCCEEDED).claim_seq == 1
    assert one.stop() == 0
