"""Tests: claims of which no worker knows, however they came about, do not stay Processing."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from qml_mp.core.job import Claim, Job
from qml_mp.core.state import StateName
from qml_mp.storage.store import Storage
from qml_mp.storage.values import Fetch
from tests.processes.harness import Server, enqueue, wait_for_state, wait_until

LIKELIER = "postgres"
APP = "tests.processes.apps_storage_faults:app"
QUEUE = "elsewhere"  # which the server does not serve, so that it comes by a job of it in no other way


def claim_for(storage: Storage, worker_id: str, server_id: str, *, registered: bool) -> Claim:
    """A claim in the name of a worker, behind its back."""
    storage.enqueue(Job.new("plain", queue=QUEUE))
    fetch = Fetch(worker_id=worker_id, server_id=server_id, queues=(QUEUE,), registered=registered)
    claim = storage.fetch_and_lock_job(fetch)
    assert claim is not None
    return claim


@pytest.mark.nightly
@pytest.mark.fault(77)
def test_an_idle_worker_is_told_of_a_claim_that_it_does_not_know_and_runs_it(
    server: Callable[..., Server], storage: Storage
) -> None:
    one = server("-w", "1", app=APP).start()
    wait_for_state(storage, enqueue(storage, "plain"), StateName.SUCCEEDED)
    (worker,) = storage.list_workers()

    claim = claim_for(storage, worker.id, worker.server_id, registered=True)

    job = wait_for_state(storage, claim.job.id, StateName.SUCCEEDED)
    assert (job.claim_seq, job.crashes) == (1, 0)
    # The worker is told first, and may be through with the job before its supervisor goes on.
    wait_until(lambda: f"does not show its claim of job {claim.job.id}" in one.log(), what=one.log)
    assert f"Found the claim of job {claim.job.id}" in one.log()
    assert [info.id for info in storage.list_workers()] == [worker.id]
    # It goes on under its new epoch.
    wait_for_state(storage, enqueue(storage, "plain"), StateName.SUCCEEDED)
    assert one.stop() == 0


@pytest.mark.nightly
@pytest.mark.fault(77)
def test_a_claim_of_a_worker_that_is_gone_is_given_back_uncharged(
    server: Callable[..., Server], storage: Storage
) -> None:
    one = server("-w", "1", app=APP).start()
    (worker,) = storage.list_workers()

    claim = claim_for(storage, f"{worker.server_id}:worker:9.9", worker.server_id, registered=False)

    job = wait_for_state(storage, claim.job.id, StateName.ENQUEUED)
    assert (job.claim_seq, job.crashes, job.failures) == (1, 0, 0)
    wait_until(lambda: "which is gone, is enqueued" in one.log(), what=one.log)
    assert one.stop() == 0
