"""Tests: a worker whose registration storage has lost, or what its supervisor has written about its claims,
as a crash or a failover loses the newest commits."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from qml_mp.core.state import StateName
from qml_mp.storage.store import Storage
from tests.processes.harness import Server, enqueue, few, result_of, wait_for_state, wait_until
from tests.storage_rows import run_raw

APP = "tests.processes.apps_storage_faults:app"
OFTEN = {"QML_MP_POLLING_INTERVAL": "10ms"}  # a worker looks after itself every so many of these


@few("lose", ["DELETE FROM [workers]"], nightly=["UPDATE [workers] SET epoch = epoch - 1"])
def test_a_worker_that_storage_has_forgotten_is_registered_again_and_claims(
    server: Callable[..., Server], storage: Storage, lose: str
) -> None:
    one = server("-w", "1", app=APP, **OFTEN).start()
    workers = one.worker_pids()
    assert result_of(storage, "plain") == "plain"

    run_raw(storage, lose.replace("[workers]", table(storage, "workers")))

    assert result_of(storage, "plain") == "plain"
    wait_until(lambda: "Storage has lost the row or the newest epoch" in one.log(), what=one.log)
    assert one.worker_pids() == workers
    assert one.stop() == 0


def table(storage: Storage, name: str) -> str:
    """As `run_raw` has it."""
    return f"qml_{name}" if storage.url.startswith("sqlite:") else f"{{s}}{name}"


@pytest.mark.nightly
def test_a_claim_of_a_dead_worker_goes_back_again_when_storage_has_lost_how_it_was_settled(
    server: Callable[..., Server], storage: Storage, tmp_path: Path
) -> None:
    one = server("-w", "1", app=APP).start()
    gate = tmp_path / "gate"
    job_id = enqueue(storage, "gated", gate=str(gate))
    wait_until(one.journal, what=one.log)
    [dead] = storage.list_workers()
    workers, attempts = table(storage, "workers"), table(storage, "attempts")
    run_raw(storage, f"CREATE TABLE {{s}}kept AS SELECT * FROM {workers}")
    os.kill(dead.process.pid, signal.SIGKILL)
    gate.touch()
    job = wait_for_state(storage, job_id, StateName.SUCCEEDED)
    assert (job.claim_seq, job.crashes) == (2, 1)

    run_raw(storage, f"INSERT INTO {workers} SELECT * FROM {{s}}kept")
    run_raw(storage, f"DELETE FROM {attempts} WHERE job_id = '{job_id}'")
    run_raw(
        storage,
        "UPDATE {jobs} SET state = 'processing', claim_seq = 1, crashes = 0, result = NULL, "
        "duration_us = NULL, finished_at = NULL, expires_at = NULL, started_at = created_at, "
        f"worker_id = '{dead.id}', server_id = '{dead.server_id}' WHERE id = '{job_id}'",
    )

    job = wait_for_state(storage, job_id, StateName.SUCCEEDED)
    assert (job.claim_seq, job.crashes) == (2, 0)
    assert "which is gone, is enqueued" in one.log()
    assert dead.id not in {worker.id for worker in storage.list_workers()}
    assert one.stop() == 0
    run_raw(storage, "DROP TABLE {s}kept")
