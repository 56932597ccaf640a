"""Tests: where the system does not tell which kernel a server runs on, its host's name proves nothing."""

from __future__ import annotations

import signal
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from qml_mp.core.state import StateName
from qml_mp.storage.store import Storage
from tests.processes.harness import Server, enqueue, few, wait_for_state, wait_until
from tests.processes.pid_namespace import nameless, need_namespaces

LIKELIER = "postgres"
MakeServer = Callable[..., Server]
GATED = "tests.processes.apps_storage_faults:app"
_BEATS = {"QML_MP_HEARTBEAT_INTERVAL": "0.5"}

pytestmark = few("hiding", ["pids only"], nightly=["no proc"])


@pytest.fixture(autouse=True)
def _needs(hiding: str) -> None:
    need_namespaces(nameless(hiding))


@pytest.fixture
def two(server: MakeServer, hiding: str) -> tuple[Server, Server]:
    """Servers in two containers of one name, neither of which has the other's pids."""
    servers = []
    for name, after_pids in (("one", 0), ("two", 30)):
        each = server("-w", "1", "--server-name", name, app=GATED, **_BEATS)
        each.prefix = nameless(hiding, after_pids=after_pids)
        servers.append(each)
    one, other = servers
    return one, other


@pytest.mark.nightly
def test_servers_on_hosts_of_one_name_leave_each_others_jobs_alone(
    two: tuple[Server, Server], storage: Storage, tmp_path: Path
) -> None:
    for each in two:
        each.start(ready=None)
    job_id = enqueue(storage, "gated", gate=str(tmp_path / "gate"))

    wait_until(lambda: have_looked_around(storage), what=f"their looks; {two[0].log()}")

    (tmp_path / "gate").touch()
    job = wait_for_state(storage, job_id, StateName.SUCCEEDED)
    assert [line.what for line in two[0].journal()] == ["start", "end"]
    assert (job.claim_seq, job.failures, job.crashes) == (1, 0, 0)
    assert "Killing" not in two[0].log()
    assert "is dead" not in two[0].log()


def have_looked_around(storage: Storage) -> bool:
    """Whether both have run for longer than the time between two looks for dead neighbours."""
    rows = storage.list_servers()
    ran = [row.last_heartbeat - row.started_at for row in rows]
    return {row.name for row in rows} == {"one", "two"} and min(ran) > timedelta(seconds=6)


def test_the_jobs_of_one_that_died_run_again_after_its_silence(
    two: tuple[Server, Server], storage: Storage, tmp_path: Path
) -> None:
    dead, other = two
    for each in two:
        each.environment = {**each.environment, "QML_MP_DEAD_SERVER_TIMEOUT": "2"}
    dead.start(ready=None)
    job_id = enqueue(storage, "gated", gate=str(tmp_path / "gate"))
    wait_until(dead.journal, what=f"the start of the job; {dead.log()}")
    other.start(ready=None)
    assert dead.process is not None
    dead.signal(signal.SIGKILL)  # of `unshare`, with which all in there ends
    dead.wait()

    wait_until(lambda: len(other.journal()) > 1, what=f"its second start; {other.log()}")

    (tmp_path / "gate").touch()
    assert wait_for_state(storage, job_id, StateName.SUCCEEDED).claim_seq == 2
