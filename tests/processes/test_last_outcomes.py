"""Tests: what the guardian of a killed server writes of its dead workers, when there is no room for a fork or
the server was about to write it itself."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from qml_mp.core.state import StateName
from qml_mp.storage.store import Storage
from tests.processes.harness import Server, enqueue, is_stopped, wait_for_state, wait_until

pytestmark = pytest.mark.fault(4)


def test_what_had_ended_in_a_worker_killed_at_the_deadline_is_written_when_its_server_is_killed_leaving(
    server: Callable[..., Server], storage: Storage, tmp_path: Path
) -> None:
    one = server("-w", "1", "--shutdown-timeout", "1")
    armed = f"worker/finish.before=stop@{tmp_path / 'mark'};supervisor/settle.before=kill"
    one.program = ("-m", "tests.failpoints", armed)
    one.start()
    [worker] = one.worker_pids().values()
    job_id = enqueue(storage, "quick")
    wait_until(lambda: is_stopped(worker), what=one.log)

    assert one.stop() == -signal.SIGKILL, one.log()

    assert wait_for_state(storage, job_id, StateName.SUCCEEDED).claim_seq == 1
