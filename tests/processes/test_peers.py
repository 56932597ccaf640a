"""Tests: supervisors that share a storage, and what one does that was declared dead by another."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest

from qml_mp.storage.protocol import Storage
from tests.processes.harness import Server, enqueue, is_gone, wait_until

MakeServer = Callable[..., Server]


@pytest.mark.fault(7)
def test_a_server_that_was_declared_dead_while_it_slept_ends_its_jobs_and_goes_on_as_another(
    server: MakeServer, storage: Storage
) -> None:
    one = server("-w", "1", QML_MP_HEARTBEAT_INTERVAL="0.2").start()
    job_id = enqueue(storage, "spin")
    first = wait_until(lambda: next((line.pid for line in one.journal() if line.what == "start"), None))
    (before,) = storage.list_servers()
    os.kill(one.pid, signal.SIGSTOP)

    assert storage.reclaim_server(before.id, silent_for=None) == 1
    os.kill(one.pid, signal.SIGCONT)

    wait_until(lambda: is_gone(first), what="the end of the job that is others' now")
    (after,) = wait_until(storage.list_servers, what="the new run")
    assert after.id != before.id
    wait_until(lambda: any(line.claim_seq == 2 for line in one.journal()), what="the second run")
    job = storage.get(job_id)
    assert job is not None
    assert (job.failures, job.crashes) == (0, 0)
    one.signal(signal.SIGQUIT)
    assert one.wait() == 6
    assert storage.list_servers() == []


@pytest.mark.fault(5)
def test_a_living_server_takes_over_from_one_of_its_host_that_died(
    server: MakeServer, storage: Storage
) -> None:
    one = server("-w", "1", QML_MP_ORPHAN_GRACE="60").start()
    job_id = enqueue(storage, "spin")
    first = wait_until(lambda: next((line.pid for line in one.journal() if line.what == "start"), None))
    two = server("-w", "1").start()

    os.kill(one.pid, signal.SIGKILL)
    one.wait()

    second = wait_until(lambda: next((line for line in two.journal() if line.claim_seq == 2), None))
    assert second.job_id == job_id
    assert is_gone(first)
    job = storage.get(job_id)
    assert job is not None
    assert (job.failures, job.crashes) == (0, 0)
    two.signal(signal.SIGQUIT)
    assert two.wait() == 6
