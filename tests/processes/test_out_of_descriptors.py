"""Tests: a supervisor with few descriptors runs with the workers that it can have, and says so."""

from __future__ import annotations

import resource
import signal
from collections.abc import Callable

import pytest

from qml_mp.core.state import StateName
from qml_mp.storage.store import Storage
from tests.processes.harness import Server, enqueue, wait_for_state, wait_until
from tests.processes.test_descriptors import settled_count

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
    before = settled_count(one)
    killers = [enqueue(storage, "die", signal_number=int(signal.SIGKILL)) for _ in range(3)]
    others = [enqueue(storage, "quick") for _ in range(10)]
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


@pytest.mark.nightly
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


@pytest.mark.nightly
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


@pytest.mark.nightly
@pytest.mark.fault(84)
def test_a_burst_with_few_descriptors_ends(server: MakeServer, storage: Storage) -> None:
    job_id = enqueue(storage, "quick")
    one = server("-w", "30", "--burst")
    one.prefix = FEW
    one.start(ready=None)

    assert one.wait() == 0
    wait_for_state(storage, job_id, StateName.SUCCEEDED)
