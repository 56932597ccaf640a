"""Tests: where the system does not tell which kernel a server runs on, its host's name proves nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from qml_mp.core.state import StateName
from qml_mp.storage.store import Storage
from tests.nightly.ground import descendants
from tests.processes.harness import ROOT, Server, enqueue, is_gone, wait_for_state, wait_until
from tests.processes.pid_namespace import NAMELESS, nameless, need_namespaces
from tests.processes.side import title

MakeServer = Callable[..., Server]
GATED = "tests.processes.apps_storage_faults:app"
_BEATS = {"QML_MP_HEARTBEAT_INTERVAL": "0.5"}
_LOOK = """
import json, subprocess
from dataclasses import replace
from qml_mp import host
child = subprocess.Popen(["sleep", "60"])
process = host.identity(child.pid)
child.kill()
child.wait()
earlier = replace(host.identity(), started_ticks=host.identity().started_ticks - 1)
asked = [(host.identity(), False), (process, False), (process, True), (earlier, False)]
told = [host.is_alive(who, is_local=is_local) for who, is_local in asked]
print(json.dumps([told, host.is_of_another_boot(replace(process, host="a-boot:pid:[1]"))]))
"""

pytestmark = pytest.mark.parametrize("hiding", NAMELESS)


@pytest.fixture(autouse=True)
def _needs(hiding: str) -> None:
    need_namespaces(nameless(hiding))


def test_a_process_that_is_not_seen_is_dead_only_for_those_who_know_that_it_was_here(hiding: str) -> None:
    done = subprocess.run(
        [*nameless(hiding), sys.executable, "-c", _LOOK],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True,
    )  # fmt: skip

    own = True if hiding == "pids only" else None
    assert json.loads(done.stdout) == [[own, None, False, None], False]


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


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_the_guardian_of_a_killed_one_sees_that_its_workers_have_ended(
    server: MakeServer, storage: Storage, hiding: str
) -> None:
    one = server("-w", "1", app=GATED, QML_MP_ORPHAN_GRACE="10m")
    one.prefix = nameless(hiding, outlive=True)
    one.start(ready=None)
    wait_until(storage.list_workers, what=f"its worker; {one.log()}")
    guardian = wait_until(
        lambda: next((each for each in descendants(one.pid)[2:] if "guardian" in title(each)), None),
        what="its guardian",
    )
    _, supervisor, *below = descendants(one.pid)

    os.kill(supervisor, signal.SIGKILL)

    wait_until(lambda: is_gone(guardian), what="the end of the guardian, long before the grace is over")
    assert all(map(is_gone, below))
