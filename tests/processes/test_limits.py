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
from tests.nightly.ground import pause
from tests.processes.harness import (
    Server,
    enqueue,
    is_gone,
    is_stopped,
    left_in_registry,
    stop_between_writes,
    wait_for_state,
    wait_until,
)

MEMORY_APP = "tests.processes.apps_outcomes:app"
MakeServer = Callable[..., Server]

# The first worker, which is the second to import it, waits until the supervisor is stopped, which sees it
# first with a job in hand then. Workers that are forked once "grown" is there use 200 MiB.
QUICK_APP = """
import os, pathlib, time
from qml_mp import QmlApp, RetryPolicy
from tests.until import wait_at

folder = pathlib.Path(__file__).parent
imports = os.open(folder / "imports", os.O_RDWR | os.O_CREAT | os.O_APPEND)
os.write(imports, b".")
if os.fstat(imports).st_size == 2:
    fresh = folder / "first.new"
    fresh.write_text(str(os.getpid()))
    fresh.rename(folder / "first")
    wait_at(folder / "stopped")
ballast = bytearray(b"x") * (200 << 20) if (folder / "grown").exists() else b""
app = QmlApp(retry_policy=RetryPolicy.none())

@app.job()
def work():
    (folder / "begun").touch()
    while not (folder / "gate").exists():
        time.sleep(0.01)
"""

# Both workers wait until the supervisor is stopped. Worker 2 cannot boot then, once the other one has a job.
TWO_APP = """
import os, pathlib
import setproctitle
from qml_mp import QmlApp
from tests.until import wait_at

folder = pathlib.Path(__file__).parent
title = setproctitle.getproctitle()
if title.startswith("qml-mp: worker 1"):
    wait_at(folder / "stopped")
if title.startswith("qml-mp: worker 2") and not (folder / "stopped").exists():
    (folder / "boots").touch()
    wait_at(folder / "begun")
    (folder / "dies").write_text(str(os.getpid()))
    raise MemoryError
app = QmlApp()

@app.job()
def work():
    fresh = folder / "begun.new"
    fresh.write_text(str(os.getpid()))
    fresh.rename(folder / "begun")
    wait_at(folder / "gate")
    return os.getpid()
"""


def test_a_worker_is_replaced_after_its_number_of_jobs(server: MakeServer, storage: Storage) -> None:
    one = server("-w", "1", "--max-jobs", "1").start()
    workers = one.worker_pids()

    ids = [enqueue(storage, "quick") for _ in range(3)]
    for job_id in ids:
        wait_for_state(storage, job_id, StateName.SUCCEEDED)

    wait_until(lambda: one.worker_pids().keys() == {1} and one.worker_pids() != workers, what=one.log)
    assert all((job.crashes, job.failures) == (0, 0) for job in map(storage.get, ids) if job)
    # A claim that reaches a worker after it was told to leave is given back: it never ran there.
    assert sorted(line.job_id for line in one.journal() if line.what == "start") == sorted(ids)
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
    one = server("-w", "1", "--max-memory-hard", "150MiB")
    mark, gate = tmp_path / "mark", tmp_path / "gate"
    one.program = ("-m", "tests.failpoints", f"worker/finish.before=stop:1@{mark}")
    worker = one.start().worker_pids()[1]
    job_id = enqueue(storage, "keep_memory_at_the_end", gate=str(gate), mib=200)
    wait_until(one.journal, what="the start")
    one.signal(signal.SIGSTOP)  # or it may see the memory before the job has ended
    gate.touch()
    wait_until(lambda: mark.exists() and is_stopped(worker), what="the write of the outcome")

    one.signal(signal.SIGCONT)
    pause(0.5)  # time for several looks
    os.kill(worker, signal.SIGCONT)

    assert wait_for_state(storage, job_id, StateName.SUCCEEDED, StateName.FAILED).claim_seq == 1
    assert not storage.attempts(job_id)
    wait_until(lambda: one.worker_pids().get(1, worker) != worker, what=one.log)
    assert "killing it" not in one.log()
    assert "leaves: a job or a hook has left more memory in use than max_memory_hard" in one.log()
    assert one.stop() == 0


@pytest.mark.parametrize(
    ("method", "ends_as"),
    [
        ("eat_memory_unless_time_runs_out", StateName.AWAITING_RETRY),  # never_retry=("JobTimeout",)
        ("eat_memory_once", StateName.FAILED),  # never_retry=("OutOfMemory",)
    ],
)
def test_whether_a_job_above_the_hard_limit_runs_again_is_asked_of_its_policy_as_out_of_memory(
    server: MakeServer, storage: Storage, method: str, ends_as: StateName
) -> None:
    one = server("-w", "1", "--max-memory-hard", "150MiB", app=MEMORY_APP).start()

    job_id = enqueue(storage, method, mib=300)

    job = wait_for_state(storage, job_id, ends_as)
    assert job.error is not None
    assert (job.error.type, job.failures, job.crashes) == ("OutOfMemory", 1, 0)
    assert one.stop() == 0


@pytest.mark.parametrize("flag", ["--max-memory", "--max-memory-hard"])
def test_a_limit_below_what_an_idle_worker_uses_is_refused_at_start(
    server: MakeServer, storage: Storage, flag: str
) -> None:
    one = server("-w", "2", flag, "5MiB").start(ready=None)

    assert one.wait() == 2
    assert "less than what a worker uses" in one.log()
    assert left_in_registry(storage, one.log()) == []


@pytest.mark.parametrize(
    "flags",
    [
        ("--max-memory", "5MiB"),
        ("--max-memory-hard", "5MiB"),
        ("--max-memory-hard", "5MiB", "--burst"),
    ],
    ids=" ".join,
)
def test_a_start_that_is_refused_for_its_limit_charges_no_job_however_quick_the_first_worker_is(
    server: MakeServer, storage: Storage, tmp_path: Path, flags: tuple[str, ...]
) -> None:
    job_ids = [enqueue(storage, "work") for _ in range(3)]
    one = start_with_a_quick_worker(server, storage, tmp_path, *flags)

    one.signal(signal.SIGCONT)

    assert one.wait() == 2, one.log()
    assert "qml-mp: error: The memory limit of 5.0 MiB is less than what a worker uses" in one.log()
    assert "Stopping now (its memory limit cannot be kept)" in one.log()
    assert not (tmp_path / "begun").exists()
    for job in map(storage.get, job_ids):
        assert job is not None
        assert (job.state_name, job.claim_seq, job.failures) == (StateName.ENQUEUED, 0, 0)
    assert left_in_registry(storage, one.log()) == []


def test_a_later_worker_above_the_soft_limit_works_also_where_the_first_ones_were_never_seen_idle(
    server: MakeServer, storage: Storage, tmp_path: Path
) -> None:
    first_id = enqueue(storage, "work")
    one = start_with_a_quick_worker(server, storage, tmp_path, "--max-memory", "150MiB")
    one.signal(signal.SIGCONT)
    wait_until(lambda: len(one.worker_pids()) == 1, what=one.log)
    (tmp_path / "grown").touch()

    os.kill(one.worker_pids()[1], signal.SIGKILL)  # during its job

    (tmp_path / "gate").touch()
    assert wait_for_state(storage, first_id, StateName.SUCCEEDED).crashes == 1
    wait_for_state(storage, enqueue(storage, "work"), StateName.SUCCEEDED)
    assert one.stop() == 0


def test_a_first_worker_that_cannot_boot_ends_no_server_whose_other_one_has_a_job_in_hand_unseen(
    server: MakeServer, storage: Storage, tmp_path: Path
) -> None:
    boots, begun, gate, dies = (tmp_path / name for name in ("boots", "begun", "gate", "dies"))
    (tmp_path / "two_app.py").write_text(TWO_APP)
    job_id = enqueue(storage, "work")
    one = server("-w", "2", app="two_app:app", PYTHONPATH=str(tmp_path)).start(ready=None)
    wait_until(boots.exists, what=one.log)
    stop_between_writes(storage, one.pid)
    (tmp_path / "stopped").touch()
    wait_until(lambda: begun.exists() and dies.exists(), what=one.log)
    wait_until(lambda: is_gone(int(dies.read_text() or "0")), what=one.log)

    one.signal(signal.SIGCONT)

    wait_until(lambda: "exited with code 3" in one.log(), what=one.log)
    gate.touch()
    job = wait_for_state(storage, job_id, StateName.SUCCEEDED)
    assert (job.claim_seq, job.result) == (1, int(begun.read_text()))
    wait_until(lambda: len(one.worker_pids()) == 2, what=one.log)
    assert one.stop() == 0


def start_with_a_quick_worker(server: MakeServer, storage: Storage, folder: Path, *flags: str) -> Server:
    """One that is stopped from its first worker's boot on, until that has begun a job or is gone."""
    (folder / "quick_app.py").write_text(QUICK_APP)
    one = server("-w", "1", *flags, app="quick_app:app", PYTHONPATH=str(folder)).start(ready=None)
    first = folder / "first"
    wait_until(first.exists, what=one.log)
    stop_between_writes(storage, one.pid)
    (folder / "stopped").touch()
    wait_until(lambda: (folder / "begun").exists() or is_gone(int(first.read_text())), what=one.log)
    return one
