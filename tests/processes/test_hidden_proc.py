"""Tests: what is not shown is not dead: processes of other users behind a /proc that hides them."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from qml_mp import host
from qml_mp.core.server_info import ProcessIdentity
from qml_mp.core.state import StateName
from qml_mp.storage.store import Storage
from tests.processes.harness import ROOT, Server, enqueue, wait_for_state, wait_until
from tests.processes.hidden_proc import as_another_user, need_another_user

GATED = "tests.processes.apps_storage_faults:app"
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
