"""Tests: log, metrics and history name the same cause of a worker's death."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from qml_mp.core.state import StateName
from qml_mp.storage.store import Storage
from tests.processes.cgroup import no_strikes
from tests.processes.harness import Server, enqueue, stop_between_writes, wait_for_state, wait_until
from tests.processes.side import scrape, served_at

MakeServer = Callable[..., Server]
BEATS = {
    "QML_MP_ENABLE_HEARTBEAT": "yes",
    "QML_MP_HEARTBEAT_INTERVAL": "0.2",
    "QML_MP_DEAD_SERVER_TIMEOUT": "3",
}


def deaths_at(page: str) -> dict[str, float]:
    """Deaths of workers by cause, those that there were."""
    name = "qml_mp_worker_deaths_total cause="
    return {key.removeprefix(name): n for key, n in scrape(page).items() if key.startswith(name) and n}


# Takes as long as the server must be silent, until peers may take it for dead.
@pytest.mark.fault(7)
@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
@no_strikes()
def test_of_a_worker_that_a_peer_killed_log_and_metrics_say_what_its_job_is_told(
    server: MakeServer, storage: Storage, tmp_path: Path
) -> None:
    one = server(
        "-w", "1", "--metrics", "127.0.0.1:0", app="tests.processes.apps_storage_faults:app", **BEATS
    ).start()
    job_id = enqueue(storage, "gated", gate=str(tmp_path / "gate"))
    [begun] = wait_until(one.journal, what=one.log)
    page = served_at(one)
    stop_between_writes(storage, one.pid)

    def is_silent_for_long_enough() -> bool:
        (row,) = storage.list_servers()
        return storage.now() - row.last_heartbeat > timedelta(seconds=3)

    wait_until(is_silent_for_long_enough, what="its silence")
    os.kill(begun.pid, signal.SIGKILL)  # as a peer does that takes this server for dead
    one.signal(signal.SIGCONT)
    (tmp_path / "gate").touch()

    job = wait_for_state(storage, job_id, StateName.SUCCEEDED)
    assert (job.claim_seq, job.crashes) == (2, 0)
    assert f"(pid {begun.pid}): it was killed by SIGKILL, since a peer took this server for dead" in one.log()
    deaths = wait_until(lambda: deaths_at(page), what="the death in the metrics")
    assert deaths == {"orphaned": 1}
    assert one.stop() == 0
