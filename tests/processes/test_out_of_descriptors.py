"""Tests: a supervisor with few descriptors runs with the workers that it can have, and says so."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from qml_mp.core.state import StateName
from qml_mp.ipc.ended import EndedTable
from qml_mp.storage.store import Storage
from qml_mp.supervisor.workers.channels import open_channels
from tests.processes.apps_faults import open_files
from tests.processes.harness import Server, enqueue, wait_for_state, wait_until
from tests.processes.test_descriptors import settled_count
from tests.storage.test_out_of_descriptors import free_descriptors

MakeServer = Callable[..., Server]
# For four workers and three descriptors more: while storage is slow to answer, a fork finds the connection to
# it open, and is not to find less room than the others.
FEW = ("bash", "-c", 'ulimit -Sn 67; exec "$@"', "bash")
SAID = "No descriptors are left for another worker"


def whole_as_far_as_it_goes(one: Server) -> dict[int, int]:
    """The workers, once the server has said that there is room for no more and all that it has are ready."""
    wait_until(lambda: SAID in one.log(), what=one.log)
    running = int(one.log().rpartition(f"{SAID}: ")[2].split()[0])
    return wait_until(lambda: workers if len(workers := one.worker_pids()) >= running else None, what=one.log)


@pytest.mark.fault(84)
def test_a_server_with_few_descriptors_runs_with_fewer_workers_says_so_once_and_works_on(
    server: MakeServer, storage: Storage
) -> None:
    one = server("-w", "30", QML_MP_MAX_CRASHES="1")
    one.prefix = FEW
    one.start()

    workers = whole_as_far_as_it_goes(one)

    assert 3 <= len(workers) < 30
    before = settled_count(one, looks=100)
    killers = [enqueue(storage, "die", signal_number=int(signal.SIGKILL)) for _ in range(10)]
    others = [enqueue(storage, "quick") for _ in range(50)]
    for job_id in others:
        wait_for_state(storage, job_id, StateName.SUCCEEDED)
    for job_id in killers:
        wait_for_state(storage, job_id, StateName.FAILED)
    wait_until(lambda: len(one.worker_pids()) == len(workers), what="the replacements")
    wait_until(lambda: settled_count(one) == before, what="the same count")
    assert one.log().count(SAID) == 1
    (shown,) = storage.list_servers()
    assert shown.trouble is not None
    assert "Fewer workers run than are wanted" in shown.trouble
    assert one.stop() == 0


@pytest.mark.fault(84)
def test_a_server_with_few_descriptors_replaces_its_workers_all_the_same(
    server: MakeServer, storage: Storage
) -> None:
    one = server("-w", "30")
    one.prefix = FEW
    one.start()
    workers = whole_as_far_as_it_goes(one)

    one.signal(signal.SIGHUP)

    wait_until(
        lambda: len(new := one.worker_pids()) == len(workers) and not {*new.values()} & {*workers.values()},
        what="new workers alone",
    )
    assert one.log().count(SAID) == 1
    assert one.stop() == 0


@pytest.mark.fault(84)
def test_workers_for_whom_there_was_no_room_start_when_there_is(server: MakeServer, storage: Storage) -> None:
    one = server("-w", "14")
    one.prefix = FEW
    one.start()
    assert len(whole_as_far_as_it_goes(one)) < 14

    hard = resource.prlimit(one.pid, resource.RLIMIT_NOFILE)[1]
    resource.prlimit(one.pid, resource.RLIMIT_NOFILE, (min(hard, 256), hard))

    wait_until(lambda: len(one.worker_pids()) == 14, what=one.log)
    wait_until(lambda: "All workers that are wanted run again" in one.log(), what=one.log)
    assert one.stop() == 0


@pytest.mark.fault(84)
def test_a_burst_with_few_descriptors_ends(server: MakeServer, storage: Storage) -> None:
    job_id = enqueue(storage, "quick")
    one = server("-w", "30", "--burst")
    one.prefix = FEW
    one.start(ready=None)

    assert one.wait() == 0
    wait_for_state(storage, job_id, StateName.SUCCEEDED)


@pytest.mark.fault(84)
@pytest.mark.parametrize("count", range(5))
def test_a_stack_file_that_cannot_be_opened_leaves_no_pipe_behind(count: int, tmp_path: Path) -> None:
    before, region = open_files(), EndedTable(1).region(0)

    with free_descriptors(count), pytest.raises(OSError, match="Too many open files"):
        open_channels(region)

    assert open_files() == before
    reading, channels = open_channels(region)
    channels.close()
    os.close(reading)
