"""Tests: servers whose processes cannot be looked up from here are judged by their heartbeats, or by age."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from qml_mp import host
from qml_mp.core.server_info import ProcessIdentity
from qml_mp.core.state import StateName
from qml_mp.storage.store import Storage
from tests.processes.harness import (
    ROOT,
    Server,
    enqueue,
    few,
    is_gone,
    left_in_registry,
    wait_for_state,
    wait_until,
)
from tests.processes.hidden_proc import as_another_user, need_another_user
from tests.processes.pid_namespace import CONTAINER, kill_container, need_namespaces
from tests.storage_rows import change_server

MakeServer = Callable[..., Server]
GATED = "tests.processes.apps_storage_faults:app"
on_one_machine = pytest.mark.parametrize("url", ["sqlite"], indirect=True)


def contained(server: MakeServer, **environment: str) -> Server:
    """A server in a pid namespace of its own."""
    one = server("-w", "1", app=GATED, **environment)
    one.prefix = CONTAINER
    return one.start(ready=None)


def finish(storage: Storage, folder: Path, job_id: str, *, claim_seq: int) -> None:
    """Let the job end, uncharged, in its run of this number."""
    (folder / "gate").touch()
    job = wait_for_state(storage, job_id, StateName.SUCCEEDED)
    assert (job.claim_seq, job.failures, job.crashes) == (claim_seq, 0, 0)


@on_one_machine
@pytest.mark.fault(74)
@few("elsewhere", [[]], nightly=[list(CONTAINER)])
def test_a_job_of_a_server_that_died_in_another_pid_namespace_runs_again(
    server: MakeServer, storage: Storage, tmp_path: Path, elsewhere: list[str]
) -> None:
    # Some 10 s: without a process to look at, only silence tells that it is dead.
    need_namespaces()
    dead = contained(server)
    job_id = enqueue(storage, "gated", gate=str(tmp_path / "gate"))
    dead.wait_until_running(claim_seq=1)
    kill_container(dead)

    one = server("-w", "1", app=GATED, QML_MP_STALE_PROCESSING_AFTER="1s")
    one.prefix = tuple(elsewhere)  # in a container it has the very pids of the dead one
    one.start(ready=None)

    one.wait_until_running(claim_seq=2)
    finish(storage, tmp_path, job_id, claim_seq=2)
    if elsewhere:
        kill_container(one)
    else:
        assert one.stop() == 0
        assert left_in_registry(storage, one.log()) == []


@pytest.mark.nightly
@on_one_machine
@pytest.mark.fault(74)
def test_a_job_of_a_server_of_an_earlier_boot_runs_again_at_whatever_age(
    server: MakeServer, storage: Storage, tmp_path: Path
) -> None:
    dead = server("-w", "1", app=GATED, QML_MP_ORPHAN_GRACE="0.1").start()
    job_id = enqueue(storage, "gated", gate=str(tmp_path / "gate"))
    worker = dead.wait_until_running(claim_seq=1).pid
    dead.clean_up()
    wait_until(lambda: is_gone(worker), what="the end of the orphan")
    (row,) = storage.list_servers()
    change_server(storage, row.id, host=f"an-earlier-boot:{row.process.host.partition(':')[2]}")

    one = server("-w", "1", app=GATED).start()

    one.wait_until_running(claim_seq=2)
    finish(storage, tmp_path, job_id, claim_seq=2)
    assert one.stop() == 0
    assert left_in_registry(storage, one.log()) == []


@pytest.mark.nightly
@on_one_machine
@pytest.mark.fault(74)
@pytest.mark.parametrize("boot", ["this", "another"])
def test_a_living_server_in_another_pid_namespace_keeps_its_job_however_soon_claims_count_as_stale(
    server: MakeServer, storage: Storage, tmp_path: Path, boot: str
) -> None:
    need_namespaces()
    alive = contained(server, QML_MP_STALE_PROCESSING_AFTER="0")
    job_id = enqueue(storage, "gated", gate=str(tmp_path / "gate"))
    alive.wait_until_running(claim_seq=1)
    if boot == "another":  # as some sandboxes give one to each container
        (row,) = storage.list_servers()
        change_server(storage, row.id, host="another-boot:pid:[1]")

    one = server("-w", "1", app=GATED, QML_MP_STALE_PROCESSING_AFTER="0").start()
    wait_until(lambda: has_judged(one, storage), what="that it may judge")

    assert [line.claim_seq for line in one.journal()] == [1]
    finish(storage, tmp_path, job_id, claim_seq=1)
    assert len(storage.list_servers()) == 2
    assert one.stop() == 0
    kill_container(alive)


def has_judged(one: Server, storage: Storage) -> bool:
    """Whether it has been heard for longer than the silence after which it takes an unseen peer for dead."""
    (row,) = (row for row in storage.list_servers() if row.process.pid == one.pid)
    return row.last_heartbeat - row.started_at > timedelta(seconds=15)


_LOOK = """
import json, sys
from qml_mp import host
from qml_mp.core.server_info import ProcessIdentity
process = ProcessIdentity(**json.loads(sys.argv[1]))
print(json.dumps([host.is_alive(process), host.rss_bytes(process.pid)]))
"""


def seen_by_another_user(process: ProcessIdentity) -> object:
    """Whether it is alive, and its memory, as told to a user from whom /proc hides it."""
    command = [
        *as_another_user(),
        sys.executable,
        "-c",
        _LOOK,
        json.dumps(dataclasses.asdict(process)),
    ]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


@pytest.mark.fault(78)
def test_a_living_process_that_proc_hides_is_not_known_to_be_alive_or_dead() -> None:
    need_another_user()

    assert seen_by_another_user(host.identity()) == [None, None]


@pytest.mark.fault(78)
def test_a_process_that_is_gone_is_dead_also_where_proc_hides_processes() -> None:
    need_another_user()
    child = subprocess.Popen(["sleep", "60"])
    process = host.identity(child.pid)
    child.kill()
    child.wait()

    assert seen_by_another_user(process) == [False, None]


@pytest.mark.fault(78)
@pytest.mark.parametrize("url", ["postgres"], indirect=True)
def test_a_server_does_not_take_the_jobs_of_one_that_proc_hides_from_it(
    url: str, storage: Storage, open_folder: Path
) -> None:
    # Some 7 s: it has to look for dead neighbours once, which it does every 5 s.
    need_another_user()
    flags, beats = ("-w", "1"), {"QML_MP_HEARTBEAT_INTERVAL": "0.5"}
    one = Server(url=url, app=GATED, folder=open_folder, flags=flags)
    two = Server(
        url=url, app=GATED, folder=open_folder, flags=flags, environment=beats, prefix=as_another_user()
    )
    try:
        one.start()
        job_id = enqueue(storage, "gated", gate=str(open_folder / "gate"))
        wait_until(one.journal, what="the start of the job")

        two.start()
        wait_until(lambda: has_looked_around(two, storage), what="a look at its neighbours")

        (open_folder / "gate").touch()
        job = wait_for_state(storage, job_id, StateName.SUCCEEDED)
        assert [line.what for line in one.journal()] == ["start", "end"]
        assert (job.claim_seq, job.failures, job.crashes) == (1, 0, 0)
        assert len(storage.list_servers()) == 2
        assert two.stop() == one.stop() == 0, one.log()
    finally:
        for server in (one, two):
            server.clean_up()


def has_looked_around(server: Server, storage: Storage) -> bool:
    """Whether it has run for longer than the time between two looks for dead neighbours."""
    (row,) = (row for row in storage.list_servers() if row.process.pid == server.pid)
    return row.last_heartbeat - row.started_at > timedelta(seconds=6)
