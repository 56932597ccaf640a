"""Tests: a worker whose registration storage has lost, or what its supervisor has written about its claims,
as a crash or a failover loses the newest commits."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from qml_mp.core.job import Job, new_job_id
from qml_mp.core.state import StateName
from qml_mp.storage.store import Storage
from tests.processes.harness import Server, enqueue, result_of, wait_for_state, wait_until
from tests.processes.test_held_claims import have_succeeded, is_the_only_claim
from tests.storage_rows import run_raw

APP = "tests.processes.apps_storage_faults:app"
OFTEN = {"QML_MP_POLLING_INTERVAL": "10ms"}  # a worker looks after itself every so many of these


@pytest.mark.parametrize(
    "lose",
    [
        pytest.param("DELETE FROM [workers]", id="its row"),
        pytest.param("UPDATE [workers] SET epoch = epoch - 1", id="its newest epoch"),
    ],
)
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


def enqueue_around_a_gate(storage: Storage, folder: Path) -> tuple[list[str], str]:
    """Jobs of which one, the second of these, waits for its gate, and nothing tells before that it will."""
    jobs = [replace(Job.new("gated"), id=new_job_id()) for _ in range(60)]
    gated = jobs[30].id
    for job in jobs:
        if job.id != gated:
            gate_of(folder, job.id).touch()
    return storage.enqueue_many(jobs), gated


def has_begun(one: Server, job_id: str) -> bool:
    return any(line.job_id == job_id for line in one.journal())


def gate_of(folder: Path, job_id: str) -> Path:
    return folder / f"gate-{job_id}"


def test_what_was_taken_from_a_worker_goes_back_again_when_storage_has_lost_that_it_has(
    server: Callable[..., Server], storage: Storage, tmp_path: Path
) -> None:
    one = server("-w", "1", app="tests.processes.apps_held:app").start()
    lost: set[str] = set()
    while not lost:  # what is given back before it is claimed with others cannot be lost
        ids, gated = enqueue_around_a_gate(storage, tmp_path)
        wait_until(partial(has_begun, one, gated), what=one.log)
        wait_until(partial(is_the_only_claim, storage, gated), what=one.log)
        of_gated = "(SELECT {column} FROM {{jobs}} WHERE id = '{gated}')"
        columns = ("worker_id", "server_id", "started_at")
        as_it_was = ", ".join(f"{each} = {of_gated.format(column=each, gated=gated)}" for each in columns)
        lose = f"UPDATE {{jobs}} SET state = 'processing', {as_it_was}"
        run_raw(storage, f"{lose} WHERE state = 'enqueued' AND claim_seq = 1")
        lost = {claim.job.id for claim in storage.claims()} - {gated}
        gate_of(tmp_path, gated).touch()

        wait_until(partial(have_succeeded, storage, ids), what=one.log)

    starts = Counter(line.job_id for line in one.journal() if line.what == "start")
    assert {starts[job_id] for job_id in ids} == {1}
    assert one.stop() == 0


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
