"""Tests: two programs on one storage, as during a deploy: a job waits for a server that knows its method."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from qml_mp.core.job import Job
from qml_mp.core.state import StateName
from qml_mp.storage.store import Storage
from tests.processes.harness import Server, enqueue, wait_for_state

OTHER_APP = "tests.processes.apps_storage_faults:app"


@pytest.mark.fault(90)
def test_a_job_of_newer_code_waits_for_the_server_that_has_it(
    server: Callable[..., Server], storage: Storage
) -> None:
    old = server("-w", "2").start(ready=2)
    newer_ids = storage.enqueue_many(Job.new("plain", priority=9) for _ in range(50))
    known_ids = [enqueue(storage, "quick") for _ in range(20)]
    for job_id in known_ids:
        wait_for_state(storage, job_id, StateName.SUCCEEDED)
    jobs = [storage.get(job_id) for job_id in newer_ids]
    assert {(job.state_name, job.claim_seq) for job in jobs if job} == {(StateName.ENQUEUED, 0)}

    new = server("-w", "2", app=OTHER_APP).start(ready=2)

    for job_id in newer_ids:
        assert wait_for_state(storage, job_id, StateName.SUCCEEDED).crashes == 0
    runs = [line.job_id for line in new.journal() if line.what == "start"]
    assert sorted(runs) == sorted([*newer_ids, *known_ids])
    assert [old.stop(), new.stop()] == [0, 0]
