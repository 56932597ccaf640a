"""Tests: supervisors that share a storage: one that was stopped, cut off or killed, and what its peers do."""

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
from tests.processes.harness import (
    Server,
    enqueue,
    is_gone,
    left_in_registry,
    row_of,
    stop_between_writes,
    wait_for_a_beat,
    wait_for_state,
    wait_until,
)
from tests.processes.pid_namespace import CONTAINER, kill_container, need_namespaces
from tests.storage.flaky_proxy import FlakyProxy
from tests.storage_rows import move_server_elsewhere

LIKELIER = "postgres"
MakeServer = Callable[..., Server]
GATED = "tests.processes.apps_storage_faults:app"
across_machines = pytest.mark.parametrize("url", ["postgres"], indirect=True)
TIMEOUT = timedelta(seconds=4)  # a server that has to wait for a processor is not to be taken for dead
HEARTBEAT = {
    "QML_MP_ENABLE_HEARTBEAT": "yes",
    "QML_MP_HEARTBEAT_INTERVAL": "0.1",
    "QML_MP_DEAD_SERVER_TIMEOUT": str(TIMEOUT.total_seconds()),
}


def silent_ids(storage: Storage) -> set[str]:
    """The servers that a peer would take for dead."""
    return {row.id for row in storage.silent_servers(own_id="nobody", timeout=TIMEOUT)}


@pytest.mark.fault(7)
def test_a_server_that_was_declared_dead_while_it_slept_ends_its_jobs_and_goes_on_as_another(
    server: MakeServer, storage: Storage
) -> None:
    one = server("-w", "1", QML_MP_HEARTBEAT_INTERVAL="0.2").start()
    job_id = enqueue(storage, "spin")
    first = one.wait_until_running().pid
    (before,) = storage.list_servers()
    stop_between_writes(storage, one.pid)

    assert storage.reclaim_server(before.id, silent_for=None) == 1
    os.kill(one.pid, signal.SIGCONT)

    wait_until(lambda: is_gone(first), what="the end of the job that is others' now")
    (after,) = wait_until(storage.list_servers, what="the new run")
    assert after.id != before.id
    one.wait_until_running(claim_seq=2)
    job = storage.get(job_id)
    assert job is not None
    assert (job.failures, job.crashes) == (0, 0)
    one.signal(signal.SIGQUIT)
    assert one.wait() == 6
    assert left_in_registry(storage, one.log()) == []


@pytest.mark.fault(5)
def test_a_living_server_takes_over_from_one_of_its_host_that_died(
    server: MakeServer, storage: Storage
) -> None:
    one = server("-w", "1", QML_MP_ORPHAN_GRACE="600").start()
    job_id = enqueue(storage, "spin")
    first = one.wait_until_running().pid
    two = server("-w", "1", QML_MP_ORPHAN_GRACE="0.1").start()

    os.kill(one.pid, signal.SIGKILL)
    one.wait()

    second = two.wait_until_running(claim_seq=2)
    assert second.job_id == job_id
    assert is_gone(first)
    job = storage.get(job_id)
    assert job is not None
    assert (job.failures, job.crashes) == (0, 0)
    two.signal(signal.SIGQUIT)
    assert two.wait() == 6


@pytest.mark.nightly
@pytest.mark.fault(4)
def test_a_job_of_a_killed_supervisor_may_end_in_its_grace_although_another_server_sees_the_death_at_once(
    server: MakeServer, storage: Storage, tmp_path: Path
) -> None:
    one = server("-w", "1", app=GATED, QML_MP_ORPHAN_GRACE="600").start()
    job_id = enqueue(storage, "gated", gate=str(tmp_path / "gate"))
    one.wait_until_running()
    was = row_of(one, storage).id
    two = server("-w", "1", app=GATED, QML_MP_ORPHAN_GRACE="600").start()

    os.kill(one.pid, signal.SIGKILL)
    wait_until(lambda: f"Server {was} of this host is dead" in two.log(), what=two.log)
    (tmp_path / "gate").touch()

    assert wait_for_state(storage, job_id, StateName.SUCCEEDED).claim_seq == 1
    wait_until(lambda: len(storage.list_servers()) == 1, what="the end of the dead one's row")
    assert two.stop() == 0


@pytest.mark.nightly
@across_machines
@pytest.mark.fault(4)
def test_a_job_of_a_killed_supervisor_has_ended_before_a_server_of_another_machine_runs_it_again(
    server: MakeServer, storage: Storage
) -> None:
    late = {**HEARTBEAT, "QML_MP_DEAD_SERVER_TIMEOUT": "12"}  # a third of it is what the job's end may take
    one = server("-w", "1", QML_MP_ORPHAN_GRACE="60", **late).start()
    enqueue(storage, "stubborn")
    first = one.wait_until_running().pid
    move_server_elsewhere(storage, row_of(one, storage).id)
    two = server("-w", "1", **late).start()

    os.kill(one.pid, signal.SIGKILL)

    two.wait_until_running(claim_seq=2)
    assert is_gone(first)
    two.signal(signal.SIGQUIT)
    assert two.wait() == 6


@across_machines
@pytest.mark.fault(8)
def test_a_server_that_slept_does_not_take_the_jobs_of_peers_that_slept_with_it(
    server: MakeServer, storage: Storage, tmp_path: Path
) -> None:
    # Some 10 s: it has to be awake for longer than the timeout before it sleeps for longer than that.
    one = server("-w", "1", "-q", "nothing", app=GATED, **HEARTBEAT).start()
    two = server("-w", "1", app=GATED, **HEARTBEAT).start()
    job_id = enqueue(storage, "gated", gate=str(tmp_path / "gate"))
    two.wait_until_running()
    rows = {row_of(one, storage).id, row_of(two, storage).id}
    for row_id in rows:
        move_server_elsewhere(storage, row_id)
    # Awake for longer than the timeout, so that it is the sleep alone that keeps it from judging.
    began = storage.now()
    wait_until(lambda: row_of(one, storage).last_heartbeat - began > 1.5 * TIMEOUT, what="an old lease")

    for sleeper in (one, two):
        stop_between_writes(storage, sleeper.pid)
    wait_until(lambda: silent_ids(storage) == rows, what="the silence of both")
    one.signal(signal.SIGCONT)
    wait_for_a_beat(one, storage)
    wait_for_a_beat(one, storage)
    two.signal(signal.SIGCONT)
    wait_for_a_beat(two, storage)

    assert {row_of(one, storage).id, row_of(two, storage).id} == rows
    (tmp_path / "gate").touch()
    assert wait_for_state(storage, job_id, StateName.SUCCEEDED).claim_seq == 1
    assert one.stop() == two.stop() == 0


@pytest.mark.nightly
@across_machines
@pytest.mark.fault(8)
def test_a_server_that_starts_judges_silent_peers_once_it_has_been_heard_as_long_itself(
    server: MakeServer, storage: Storage, tmp_path: Path
) -> None:
    dead = server("-w", "1", app=GATED, QML_MP_ORPHAN_GRACE="0.1", **HEARTBEAT).start()
    job_id = enqueue(storage, "gated", gate=str(tmp_path / "gate"))
    first = dead.wait_until_running().pid
    move_server_elsewhere(storage, row_of(dead, storage).id)
    dead.clean_up()
    wait_until(lambda: is_gone(first), what="the end of the orphan")
    wait_until(lambda: silent_ids(storage), what="the silence")

    one = server("-w", "1", app=GATED, **HEARTBEAT, QML_MP_STALE_PROCESSING_AFTER="0").start()
    own = row_of(one, storage)

    (tmp_path / "gate").touch()
    job = wait_for_state(storage, job_id, StateName.SUCCEEDED)
    assert job.claim_seq == 2
    assert (job.failures, job.crashes) == (0, 0)
    assert job.started_at is not None
    assert job.started_at - own.started_at >= TIMEOUT
    assert one.stop() == 0


Pair = tuple[Server, Server]
DECLARED_DEAD = "A peer declared this server dead"
IN_FAILPOINTS = ("-m", "tests.failpoints")
BEATS = {
    "QML_MP_ENABLE_HEARTBEAT": "yes",
    "QML_MP_HEARTBEAT_INTERVAL": "0.2",
    "QML_MP_DEAD_SERVER_TIMEOUT": "4",  # one that waits for a processor is not to be taken for dead
}


@pytest.fixture
def pair(server: MakeServer, tmp_path: Path) -> Pair:
    """Two servers with logs and journals of their own."""
    one, two = server("-w", "1", app=GATED, **BEATS), server("-w", "1", app=GATED, **BEATS)
    one.folder, two.folder = tmp_path / "one", tmp_path / "two"
    for each in (one, two):
        each.folder.mkdir()
    return one, two


def named(one: Server, storage: Storage) -> str:
    """The id of its present run."""
    return next(row.id for row in storage.list_servers() if row.process.pid == one.pid)


def assert_goes_on_as_another(frozen: Server, storage: Storage, *, was: str) -> None:
    """It says so, and works."""
    wait_until(lambda: DECLARED_DEAD in frozen.log(), what=frozen.log)
    wait_until(lambda: was not in {row.id for row in storage.list_servers()}, what="the end of the old row")
    wait_until(lambda: len(storage.list_workers()) == 2, what=f"its new worker: {frozen.log()}")
    assert len(storage.list_servers()) == 2


@pytest.mark.fault(7)
def test_of_a_stopped_server_of_this_host_the_workers_are_killed_before_others_run_its_jobs(
    pair: Pair, storage: Storage, tmp_path: Path
) -> None:
    # Some 7 s: the same.
    frozen, other = pair
    frozen.start()
    job_id = enqueue(storage, "gated", gate=str(tmp_path / "gate"))
    worker = frozen.wait_until_running().pid
    was = named(frozen, storage)
    other.start()

    stop_between_writes(storage, frozen.pid)

    second = other.wait_until_running()
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


@pytest.mark.fault(7)
@pytest.mark.nightly
def test_what_had_ended_in_a_stopped_worker_is_refused_and_counted_when_its_server_goes_on(
    pair: Pair, storage: Storage, tmp_path: Path
) -> None:
    frozen, other = pair
    frozen.program = (*IN_FAILPOINTS, f"worker/outcome.recorded=stop@{tmp_path / 'once'}")
    frozen.start()
    job_id = enqueue(storage, "gated", gate=str(tmp_path / "gate"))
    worker = frozen.wait_until_running().pid
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


@pytest.mark.fault(7)
@pytest.mark.nightly
@across_machines
def test_a_server_of_another_host_that_was_stopped_has_its_late_finish_refused_and_its_workers_ended(
    pair: Pair, storage: Storage, tmp_path: Path
) -> None:
    need_namespaces()
    frozen, other = pair
    frozen.prefix = CONTAINER
    frozen.start(ready=None)
    job_id = enqueue(storage, "gated", gate=str(tmp_path / "gate"))
    frozen.wait_until_running()
    (row,) = storage.list_servers()
    other.start()
    stopped = descendants(frozen.pid)  # supervisor, guardian and worker

    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    assert other.wait_until_running().claim_seq == 2
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


@pytest.mark.fault(7)
@across_machines
@pytest.mark.fault(34)
@pytest.mark.fault(37)
def test_a_server_of_another_host_that_was_cut_off_runs_its_job_to_the_end_and_is_refused(
    pair: Pair, storage: Storage, postgres_url: str, tmp_path: Path
) -> None:
    # Some 8 s: the peer waits for `dead_server_timeout`, which must outlast a moment without a processor.
    need_namespaces()
    cut_off, other = pair
    cut_off.prefix = CONTAINER
    with FlakyProxy.before(postgres_url) as proxy:
        cut_off.url = proxy.through(cut_off.url)
        cut_off.start(ready=None)
        job_id = enqueue(storage, "gated", gate=str(tmp_path / "gate"))
        cut_off.wait_until_running()
        (row,) = storage.list_servers()
        other.start()

        proxy.go_silent()
        assert other.wait_until_running().claim_seq == 2
        (tmp_path / "gate").touch()
        job = wait_for_state(storage, job_id, StateName.SUCCEEDED)
        wait_until(lambda: "end" in [line.what for line in cut_off.journal()], what=cut_off.log)
        proxy.speak()

        assert (job.claim_seq, job.failures, job.crashes) == (2, 0, 0)
        assert_goes_on_as_another(cut_off, storage, was=row.id)
        assert wait_for_state(storage, job_id, StateName.SUCCEEDED).claim_seq == 2
        kill_container(cut_off)
        assert other.stop() == 0
