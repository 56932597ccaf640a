"""Tests: the signals by which people steer a supervisor, and the loss of its terminal."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from qml_mp.core.state import StateName
from qml_mp.storage.store import Storage
from tests.processes.harness import Server, enqueue, is_gone, is_stopped, state_of, wait_for_state, wait_until
from tests.processes.side import children, title

MakeServer = Callable[..., Server]
TAKE_TERMINAL = (
    sys.executable, "-c",
    "import fcntl, os, signal, sys, termios; os.setsid(); fcntl.ioctl(1, termios.TIOCSCTTY, 0);"
    " signal.signal(signal.SIGHUP, signal.SIG_DFL); os.execvp(sys.argv[1], sys.argv[1:])",
)  # fmt: skip
IGNORE_HANGUPS = (  # as nohup does
    sys.executable, "-c",
    "import os, signal, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN);"
    " os.execvp(sys.argv[1], sys.argv[1:])",
)  # fmt: skip
LEAD_GROUP = (sys.executable, "-c", "import os, sys; os.setpgid(0, 0); os.execvp(sys.argv[1], sys.argv[1:])")


def test_ttin_adds_a_worker_and_ttou_removes_one_after_its_job(server: MakeServer, storage: Storage) -> None:
    one = server("-w", "1").start()

    one.signal(signal.SIGTTIN)

    wait_until(lambda: len(one.worker_pids()) == 2, what="a second worker")
    ids = [enqueue(storage, "nap", seconds=0.5) for _ in range(2)]
    for job_id in ids:
        one.wait_until_running(job_id)
    one.signal(signal.SIGTTOU)
    for job_id in ids:
        assert wait_for_state(storage, job_id, StateName.SUCCEEDED).claim_seq == 1
    wait_until(lambda: list(one.worker_pids()) == [1], what="the leave of the second worker")
    assert one.stop() == 0


def test_usr1_prints_the_stack_of_every_worker(server: MakeServer, storage: Storage) -> None:
    one = server("-w", "3").start(ready=3)
    wait_until(lambda: one.log().count("is ready") == 3, what=one.log)  # its supervisor knows of it too
    for method in ("spin_in_c", "nap"):
        arguments = {"seconds": 30} if method == "nap" else {}
        job_id = enqueue(storage, method, **arguments)
        one.wait_until_running(job_id)

    one.signal(signal.SIGUSR1)

    wait_until(lambda: one.log().count("most recent call last") == 3, what=one.log)
    log = one.log()
    assert " in spin_in_c" in log
    assert " in nap" in log
    assert "idle):" in log
    one.signal(signal.SIGQUIT)
    one.wait()


def test_usr2_pauses_claims_also_of_new_workers_and_a_second_one_resumes_them(
    server: MakeServer, storage: Storage
) -> None:
    one = server("-w", "1").start()
    running = enqueue(storage, "nap", seconds=0.3)
    one.wait_until_running(running)

    one.signal(signal.SIGUSR2)

    wait_until(lambda: "Claims are paused" in one.log())
    wait_for_state(storage, running, StateName.SUCCEEDED)
    waiting = [enqueue(storage, "quick") for _ in range(3)]
    one.signal(signal.SIGTTIN)
    wait_until(lambda: len(one.worker_pids()) == 2, what="a second worker")
    (first, second) = one.worker_pids().values()
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: second in (now := one.worker_pids().values()) and first not in now and len(now) == 2)
    wait_until(lambda: one.log().count("is ready") == 3)
    assert {state_of(storage, job_id) for job_id in waiting} == {StateName.ENQUEUED}, one.log()
    one.signal(signal.SIGUSR2)
    for job_id in waiting:
        wait_for_state(storage, job_id, StateName.SUCCEEDED)
    assert one.stop() == 0


def test_a_new_worker_claims_nothing_while_claims_are_paused_however_soon_it_is_there(
    server: MakeServer, storage: Storage, tmp_path: Path
) -> None:
    mark = tmp_path / "mark"
    mark.touch()
    one = server("-w", "1")
    one.program = ("-m", "tests.failpoints", f"supervisor/fork.after=stop@{mark}")
    one.start()
    one.signal(signal.SIGUSR2)
    wait_until(lambda: "Claims are paused" in one.log())
    waiting = enqueue(storage, "quick")
    mark.unlink()

    one.signal(signal.SIGTTIN)
    wait_until(lambda: is_stopped(one.pid))  # it has forked the worker, and does nothing else
    wait_until(lambda: any(re.search("worker 2/.* idle$", title(pid)) for pid in children(one.pid)))
    found = state_of(storage, waiting)
    one.signal(signal.SIGCONT)

    assert found is StateName.ENQUEUED
    one.signal(signal.SIGUSR2)
    wait_for_state(storage, waiting, StateName.SUCCEEDED)
    assert one.stop() == 0


@pytest.mark.fault(57)
def test_ctrl_c_reaches_the_supervisor_and_no_worker(server: MakeServer, storage: Storage) -> None:
    one = server("-w", "2")
    one.prefix = LEAD_GROUP
    one.start(ready=2)
    job_id = enqueue(storage, "nap", seconds=0.5)
    one.wait_until_running(job_id)

    os.killpg(one.pid, signal.SIGINT)

    assert one.wait() == 0, one.log()
    assert wait_for_state(storage, job_id, StateName.SUCCEEDED).claim_seq == 1
    assert one.log().count("Stopping (SIGINT)") == 1


@pytest.mark.fault(58)
def test_a_server_whose_terminal_is_closed_stops_and_its_job_is_finished(
    server: MakeServer, storage: Storage
) -> None:
    terminal, output = os.openpty()
    one = server("-w", "2")
    one.output, one.prefix = output, TAKE_TERMINAL
    one.start(ready=2)
    os.close(output)
    workers = one.worker_pids().values()
    job_id = enqueue(storage, "nap", seconds=0.5)
    one.wait_until_running(job_id)

    os.close(terminal)

    assert one.wait() == 0
    assert wait_for_state(storage, job_id, StateName.SUCCEEDED).claim_seq == 1
    assert all(is_gone(pid) for pid in workers)


@pytest.mark.fault(58)
def test_a_server_that_was_started_to_ignore_hangups_outlives_its_terminal(
    server: MakeServer, storage: Storage
) -> None:
    terminal, output = os.openpty()
    one = server("-w", "1")
    one.output, one.prefix = output, (*TAKE_TERMINAL, *IGNORE_HANGUPS)
    one.start()
    os.close(output)
    (worker,) = one.worker_pids().values()

    os.close(terminal)

    # A server without a terminal takes the hangup for what SIGHUP means elsewhere.
    wait_until(lambda: (now := one.worker_pids()) and worker not in now.values(), what="new workers")
    wait_for_state(storage, enqueue(storage, "quick"), StateName.SUCCEEDED)
    assert one.stop() == 0
