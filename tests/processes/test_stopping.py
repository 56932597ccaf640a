"""Tests: how `qml-mp start` ends: gracefully, at the deadline, and when the supervisor itself is killed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from qml_mp.core.state import StateName
from qml_mp.storage.store import Storage
from tests.processes.harness import (
    Server,
    enqueue,
    few,
    is_gone,
    left_in_registry,
    state_of,
    wait_for_state,
    wait_until,
)

LEAVES_PATIENTLY = True
MakeServer = Callable[..., Server]


def test_sigterm_lets_the_running_job_finish_and_exits_0(server: MakeServer, storage: Storage) -> None:
    one = server("-w", "2").start()
    job_id = enqueue(storage, "nap", seconds=0.5)
    one.wait_until_running(job_id)

    code = one.stop()

    assert code == 0, one.log()
    assert state_of(storage, job_id) is StateName.SUCCEEDED
    assert left_in_registry(storage, one.log()) == []


@pytest.mark.fault(13)
def test_a_job_that_ignores_sigterm_is_killed_at_the_deadline_and_given_back_uncharged(
    server: MakeServer, storage: Storage
) -> None:
    one = server("-w", "1", "--shutdown-timeout", "2").start()
    job_id = enqueue(storage, "stubborn")
    worker = one.wait_until_running(job_id).pid

    code = one.stop()

    assert code == 6, one.log()
    assert is_gone(worker)
    job = storage.get(job_id)
    assert job is not None
    assert (job.state_name, job.failures, job.crashes) == (StateName.ENQUEUED, 0, 0)
    assert storage.attempts(job_id) == ()
    assert storage.claims() == []


def test_a_job_in_a_python_loop_is_interrupted_before_the_deadline_and_unwinds(
    server: MakeServer, storage: Storage
) -> None:
    one = server("-w", "1", "--shutdown-timeout", "4").start()  # it spins for three quarters of them
    job_id = enqueue(storage, "spin")
    one.wait_until_running(job_id)

    code = one.stop()

    assert code == 0, one.log()
    job = storage.get(job_id)
    assert job is not None
    assert (job.state_name, job.failures, job.crashes) == (StateName.ENQUEUED, 0, 0)
    assert [line.what for line in one.journal()] == ["start", "end"]


@pytest.mark.fault(92)
@few("promised_s", [4], nightly=[10])  # less than `term_grace`, and more
def test_a_job_may_use_most_of_the_time_that_stopping_promised(
    server: MakeServer, storage: Storage, promised_s: int
) -> None:
    one = server("-w", "1", "--shutdown-timeout", str(promised_s), QML_MP_TERM_GRACE="9").start()
    job_id = enqueue(storage, "nap", seconds=60)
    one.wait_until_running(job_id)

    told_ns = time.monotonic_ns()
    code = one.stop()

    interrupted_ns = [line.at_ns for line in one.journal() if line.what == "end"]
    assert interrupted_ns or code == 6  # where it was killed, it has used all of it
    assert all((at_ns - told_ns) / 1e9 >= 0.75 * promised_s for at_ns in interrupted_ns)
    assert state_of(storage, job_id) is StateName.ENQUEUED


@pytest.mark.fault(92)
@few("promised_s", [4], nightly=[10])
def test_a_job_that_ends_within_the_time_that_stopping_promised_succeeds(
    server: MakeServer, storage: Storage, promised_s: int
) -> None:
    one = server("-w", "1", "--shutdown-timeout", str(promised_s), QML_MP_TERM_GRACE="9").start()
    job_id = enqueue(storage, "nap", seconds=0.2 * promised_s)
    one.wait_until_running(job_id)

    code = one.stop()

    assert code == 0, one.log()
    job = storage.get(job_id)
    assert job is not None
    assert (job.state_name, job.claim_seq) == (StateName.SUCCEEDED, 1)


@pytest.mark.fault(93)
def test_a_job_longer_than_the_drain_is_given_back_and_the_server_is_gone(
    server: MakeServer, storage: Storage
) -> None:
    one = server("-w", "1", "--shutdown-timeout", "4", QML_MP_TERM_GRACE="3").start()
    job_id = enqueue(storage, "nap", seconds=60)
    worker = one.wait_until_running(job_id).pid

    code = one.stop()

    assert code == 0, one.log()
    assert is_gone(worker)
    job = storage.get(job_id)
    assert job is not None
    assert (job.state_name, job.failures, job.crashes) == (StateName.ENQUEUED, 0, 0)
    assert left_in_registry(storage, one.log()) == []


@pytest.mark.fault(56)
def test_a_second_sigterm_kills_now_and_gives_the_job_back(server: MakeServer, storage: Storage) -> None:
    one = server("-w", "1", "--shutdown-timeout", "600").start()
    job_id = enqueue(storage, "stubborn")
    one.wait_until_running(job_id)
    one.signal(signal.SIGTERM)
    wait_until(lambda: "Stopping (SIGTERM)" in one.log(), what=one.log)

    def has_stopped_now() -> bool:
        one.signal(signal.SIGTERM)  # until half a second has passed it is one with the first
        return "Stopping now (SIGTERM)" in one.log()

    wait_until(has_stopped_now, what=one.log)

    assert one.wait() == 6, one.log()
    assert state_of(storage, job_id) is StateName.ENQUEUED


def test_sigquit_stops_now(server: MakeServer, storage: Storage) -> None:
    one = server("-w", "1", "--shutdown-timeout", "600").start()
    job_id = enqueue(storage, "nap", seconds=600)
    one.wait_until_running(job_id)

    one.signal(signal.SIGQUIT)

    assert one.wait() == 6, one.log()
    assert state_of(storage, job_id) is StateName.ENQUEUED


@pytest.mark.fault(55)
def test_a_hundred_signals_at_once_let_the_job_end_as_one_does(server: MakeServer, storage: Storage) -> None:
    """A terminal signals its whole group, and a wrapper passes on what it got."""
    came_at_once = False
    while not came_at_once:  # this process may have to wait for a processor in between
        one = server("-w", "1", "--shutdown-timeout", "600").start()
        job_id = enqueue(storage, "nap", seconds=1)
        one.wait_until_running(job_id)
        one_said, began = len(one.log()), time.monotonic()
        for number in (signal.SIGINT, signal.SIGTERM) * 50:
            os.kill(one.pid, number)
        wait_until(partial(has_none_pending, one.pid), what="the delivery of all")
        came_at_once = time.monotonic() - began < 0.4  # what comes after half a second is another wish
        code = one.wait()

    assert code == 0, one.log()
    assert "Stopping now" not in one.log()[one_said:]
    assert state_of(storage, job_id) is StateName.SUCCEEDED


def has_none_pending(pid: int) -> bool:
    """Whether no signal waits for the process to get a processor."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return not any(int(line.split()[1], 16) for line in lines if line.startswith(("SigPnd", "ShdPnd")))


@pytest.mark.fault(4)
def test_no_worker_outlives_a_killed_supervisor_and_the_next_one_runs_the_jobs_again(
    server: MakeServer, storage: Storage
) -> None:
    one = server("-w", "3", QML_MP_ORPHAN_GRACE="1").start(ready=3)
    loop_id = enqueue(storage, "spin")
    one.wait_until_running(loop_id)
    holder_id = enqueue(storage, "spin_in_c")
    one.wait_until_running(holder_id)
    workers = list(one.worker_pids().values())
    assert len(workers) == 3

    os.kill(one.pid, signal.SIGKILL)
    one.wait()

    wait_until(lambda: all(is_gone(pid) for pid in workers), what="the death of all workers")
    two = server("-w", "3", "--shutdown-timeout", "1").start()
    for job_id in (loop_id, holder_id):
        wait_until(lambda job_id=job_id: two.starts().count(job_id) == 2, what=two.log)  # type: ignore[misc]
    assert two.stop() == 6, two.log()
    assert all(job.crashes == 0 for job in (storage.get(loop_id), storage.get(holder_id)) if job)


@pytest.mark.fault(4)
def test_idle_workers_leave_at_once_when_their_supervisor_is_killed(
    server: MakeServer, storage: Storage
) -> None:
    one = server("-w", "3", QML_MP_ORPHAN_GRACE="600").start(ready=3)
    busy_id = enqueue(storage, "spin_in_c")
    holder = one.wait_until_running(busy_id).pid
    idle = [pid for pid in one.worker_pids().values() if pid != holder]

    os.kill(one.pid, signal.SIGKILL)
    one.wait()

    wait_until(lambda: all(is_gone(pid) for pid in idle), what="the leave of idle workers")
    assert not is_gone(holder)  # so that they did not leave for the holder's death
    os.killpg(holder, signal.SIGKILL)


@pytest.mark.fault(4)
def test_an_orphaned_job_is_interrupted_before_it_is_killed(server: MakeServer, storage: Storage) -> None:
    one = server("-w", "1", QML_MP_ORPHAN_GRACE="4").start()
    job_id = enqueue(storage, "nap", seconds=60)
    worker = one.wait_until_running(job_id).pid

    os.kill(one.pid, signal.SIGKILL)
    one.wait()

    wait_until(lambda: is_gone(worker), what="the end of the worker")
    assert [line.what for line in one.journal()] == ["start", "end"]  # its `finally` has run


@pytest.mark.fault(4)
def test_an_orphaned_job_that_heeds_its_token_finishes_within_the_grace(
    server: MakeServer, storage: Storage
) -> None:
    one = server("-w", "1", QML_MP_ORPHAN_GRACE="60").start()
    job_id = enqueue(storage, "heed")
    worker = one.wait_until_running(job_id).pid

    os.kill(one.pid, signal.SIGKILL)
    one.wait()

    job = wait_for_state(storage, job_id, StateName.SUCCEEDED)
    assert job.result == "orphaned"
    wait_until(lambda: is_gone(worker), what="the leave of the worker")


@pytest.mark.fault(4)
@pytest.mark.fault(17)
def test_what_a_job_has_started_dies_with_its_worker_also_when_nobody_supervises(
    server: MakeServer, storage: Storage
) -> None:
    one = server("-w", "1", QML_MP_ORPHAN_GRACE="600").start()
    worker = one.wait_until_running(enqueue(storage, "parent_of_the_stubborn")).pid
    child = next(int(line.what.split()[1]) for line in one.journal() if line.what.startswith("child "))

    os.kill(one.pid, signal.SIGKILL)
    os.kill(worker, signal.SIGKILL)
    one.wait()

    wait_until(lambda: is_gone(child), what="the end of the subprocess")


@pytest.mark.fault(5)
def test_after_the_death_of_everybody_the_next_server_runs_the_job_at_once(
    server: MakeServer, storage: Storage
) -> None:
    one = server("-w", "1").start()
    job_id = enqueue(storage, "nap", seconds=30)
    worker = one.wait_until_running(job_id).pid
    os.kill(one.pid, signal.SIGKILL)
    os.killpg(worker, signal.SIGKILL)
    one.wait()
    began = time.monotonic_ns()

    two = server("-w", "1", "--shutdown-timeout", "0").start()

    wait_until(
        lambda: any(line.at_ns > began and line.what == "start" for line in two.journal()), what=two.log
    )
    assert two.stop() == 6


@pytest.mark.fault(53)
def test_two_servers_of_one_name_share_no_claim(server: MakeServer, storage: Storage) -> None:
    one = server("-w", "1").start()
    two = server("-w", "1").start()

    ids = [enqueue(storage, "quick", busy_s=0.01) for _ in range(40)]
    for job_id in ids:
        wait_for_state(storage, job_id, StateName.SUCCEEDED)

    servers = storage.list_servers()
    assert len({info.id for info in servers}) == 2
    assert {info.name for info in servers} == {"qml-server"}
    # A busy machine may make a claim go back; nobody has taken one from another.
    runs = one.starts()
    assert sorted(runs) == sorted(ids)
    assert "was lost" not in one.log()
    assert one.stop() == two.stop() == 0
