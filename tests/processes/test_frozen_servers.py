"""Tests: servers that are stopped for longer than `dead_server_timeout`, beside others, and go on."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from qml_mp.core.state import StateName
from qml_mp.storage.store import Storage
from tests.nightly.ground import descendants
from tests.processes.cgroup import no_strikes
from tests.processes.harness import (
    Server,
    enqueue,
    is_gone,
    stop_between_writes,
    wait_for_state,
    wait_until,
)
from tests.processes.journal import Line
from tests.processes.pid_namespace import CONTAINER, kill_container, need_namespaces
from tests.storage.flaky_proxy import FlakyProxy

MakeServer = Callable[..., Server]
Pair = tuple[Server, Server]
GATED = "tests.processes.apps_storage_faults:app"
DECLARED_DEAD = "A peer declared this server dead"
IN_FAILPOINTS = ("-m", "tests.failpoints")
BEATS = {
    "QML_MP_ENABLE_HEARTBEAT": "yes",
    "QML_MP_HEARTBEAT_INTERVAL": "0.2",
    "QML_MP_DEAD_SERVER_TIMEOUT": "6",  # one that waits for a processor is not to be taken for dead
}

pytestmark = pytest.mark.fault(7)
across_machines = pytest.mark.parametrize("url", ["postgres"], indirect=True)


@pytest.fixture
def pair(server: MakeServer, tmp_path: Path) -> Pair:
    """Two servers with logs and journals of their own."""
    one, two = server("-w", "1", app=GATED, **BEATS), server("-w", "1", app=GATED, **BEATS)
    one.folder, two.folder = tmp_path / "one", tmp_path / "two"
    for each in (one, two):
        each.folder.mkdir()
    return one, two


def run_of(one: Server, *, what: str = "start") -> Line:
    """The first such line of its jobs."""
    return wait_until(lambda: next((line for line in one.journal() if line.what == what), None), what=one.log)


def named(one: Server, storage: Storage) -> str:
    """The id of its present run."""
    return next(row.id for row in storage.list_servers() if row.process.pid == one.pid)


def assert_goes_on_as_another(frozen: Server, storage: Storage, *, was: str) -> None:
    """It says so, and works."""
    wait_until(lambda: DECLARED_DEAD in frozen.log(), what=frozen.log)
    wait_until(lambda: was not in {row.id for row in storage.list_servers()}, what="the end of the old row")
    wait_until(lambda: len(storage.list_workers()) == 2, what=f"its new worker: {frozen.log()}")
    assert len(storage.list_servers()) == 2


def test_of_a_stopped_server_of_this_host_the_workers_are_killed_before_others_run_its_jobs(
    pair: Pair, storage: Storage, tmp_path: Path
) -> None:
    frozen, other = pair
    frozen.start()
    job_id = enqueue(storage, "gated", gate=str(tmp_path / "gate"))
    worker = run_of(frozen).pid
    was = named(frozen, storage)
    other.start()

    stop_between_writes(storage, frozen.pid)

    second = run_of(other)
    assert is_gone(worker)
    assert second.claim_seq == 2
    assert not is_gone(frozen.pid)
    assert "is there and sends no heartbeats" in other.log()
    frozen.signal(signal.SIGCONT)
    assert_goes_on_as_another(frozen, storage, was=was)
    (tmp_path / "gate").touch()
    job = wait_for_state(storage, job_id, StateName.SUCCEEDED)
    assert (job.claim_seq, job.failures, job.crashes) == (2, 0, 0)
    assert frozen.stop() == other.stop() == 0


@no_strikes()
def test_a_worker_that_a_peer_kills_is_charged_to_no_job_when_its_supervisor_goes_on_before_it_reclaims(
    pair: Pair, storage: Storage, tmp_path: Path
) -> None:
    frozen, _ = pair
    frozen.start()
    job_id = enqueue(storage, "gated", gate=str(tmp_path / "gate"))
    worker = run_of(frozen).pid
    stop_between_writes(storage, frozen.pid)

    def is_silent_for_long_enough() -> bool:
        (row,) = storage.list_servers()
        return storage.now() - row.last_heartbeat > timedelta(seconds=6)

    wait_until(is_silent_for_long_enough, what="its silence")
    os.kill(worker, signal.SIGKILL)  # as a peer does that reclaims a moment later
    frozen.signal(signal.SIGCONT)

    (tmp_path / "gate").touch()
    job = wait_for_state(storage, job_id, StateName.SUCCEEDED)
    assert (job.claim_seq, job.failures, job.crashes) == (2, 0, 0)
    assert frozen.stop() == 0


def test_what_had_ended_in_a_stopped_worker_is_refused_and_counted_when_its_server_goes_on(
    pair: Pair, storage: Storage, tmp_path: Path
) -> None:
    frozen, other = pair
    frozen.program = (*IN_FAILPOINTS, f"worker/outcome.recorded=stop@{tmp_path / 'once'}")
    frozen.start()
    job_id = enqueue(storage, "gated", gate=str(tmp_path / "gate"))
    worker = run_of(frozen).pid
    was = named(frozen, storage)

    stop_between_writes(storage, frozen.pid)
    (tmp_path / "gate").touch()
    wait_until((tmp_path / "once").exists, what="the stop of the worker")
    other.start()  # not before: it ends the worker, also one that has not come so far

    job = wait_for_state(storage, job_id, StateName.SUCCEEDED)
    assert (job.claim_seq, job.crashes) == (2, 0)
    assert is_gone(worker)
    frozen.signal(signal.SIGCONT)
    assert_goes_on_as_another(frozen, storage, was=was)
    wait_until(lambda: f"Job {job_id} of worker 1" in frozen.log(), what=frozen.log)
    assert "is somebody else's now" in frozen.log()
    assert frozen.stop() == other.stop() == 0


@across_machines
def test_a_server_of_another_host_that_was_stopped_has_its_late_finish_refused_and_its_workers_ended(
    pair: Pair, storage: Storage, tmp_path: Path
) -> None:
    need_namespaces()
    frozen, other = pair
    frozen.prefix = CONTAINER
    frozen.start(ready=None)
    job_id = enqueue(storage, "gated", gate=str(tmp_path / "gate"))
    run_of(frozen)
    (row,) = storage.list_servers()
    other.start()
    stopped = descendants(frozen.pid)  # supervisor, guardian and worker

    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    assert run_of(other).claim_seq == 2
    (tmp_path / "gate").touch()
    job = wait_for_state(storage, job_id, StateName.SUCCEEDED)
    supervisor, *others = stopped
    for pid in others:  # the worker, while its supervisor knows of nothing
        os.kill(pid, signal.SIGCONT)

    assert (job.claim_seq, job.failures, job.crashes) == (2, 0, 0)
    wait_until(lambda: f"The claim of job {job_id} was lost" in frozen.log(), what=frozen.log)
    os.kill(supervisor, signal.SIGCONT)
    assert_goes_on_as_another(frozen, storage, was=row.id)
    wait_until(lambda: is_gone(others[-1]), what="the end of its worker")
    kill_container(frozen)
    assert other.stop() == 0


@across_machines
@pytest.mark.fault(34)
@pytest.mark.fault(37)
def test_a_server_of_another_host_that_was_cut_off_runs_its_job_to_the_end_and_is_refused(
    pair: Pair, storage: Storage, postgres_url: str, tmp_path: Path
) -> None:
    need_namespaces()
    cut_off, other = pair
    cut_off.prefix = CONTAINER
    with FlakyProxy.before(postgres_url) as proxy:
        cut_off.url = proxy.through(cut_off.url)
        cut_off.start(ready=None)
        job_id = enqueue(storage, "gated", gate=str(tmp_path / "gate"))
        run_of(cut_off)
        (row,) = storage.list_servers()
        other.start()

        proxy.go_silent()
        assert run_of(other).claim_seq == 2
        (tmp_path / "gate").touch()
        job = wait_for_state(storage, job_id, StateName.SUCCEEDED)
        run_of(cut_off, what="end")
        proxy.speak()

        assert (job.claim_seq, job.failures, job.crashes) == (2, 0, 0)
        assert_goes_on_as_another(cut_off, storage, was=row.id)
        assert wait_for_state(storage, job_id, StateName.SUCCEEDED).claim_seq == 2
        kill_container(cut_off)
        assert other.stop() == 0
