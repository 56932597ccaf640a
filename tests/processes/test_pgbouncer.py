"""Tests: a server whose PostgreSQL is reached through a real PgBouncer in transaction mode."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta

import pytest

from qml_mp.core.job import Job
from qml_mp.core.state import StateName
from qml_mp.storage.store import Storage
from tests.pgbouncer import PgBouncer, PgBouncerError, pgbouncer
from tests.processes.harness import Server, enqueue, left_in_registry, wait_for_state, wait_until

pytestmark = pytest.mark.parametrize("url", ["postgres"], indirect=True)


@pytest.fixture
def pooler(postgres_url: str) -> Iterator[PgBouncer]:
    """One with fewer sessions than a server with two workers has connections."""
    try:
        with pgbouncer(postgres_url, pool_size=2) as running:
            yield running
    except PgBouncerError as error:
        pytest.fail(str(error), pytrace=False)


def test_a_server_behind_a_pooler_runs_every_job_once_and_recovers(
    server: Callable[..., Server], storage: Storage, url: str, pooler: PgBouncer
) -> None:
    storage.migrate()
    one = server("-w", "2", QML_MP_POLLING_INTERVAL="0.2")
    one.url = pooler.before(url)
    one.start(ready=2)
    producer = one.storage
    ids = producer.enqueue_many(Job.new("quick", {}) for _ in range(100))
    late_id = producer.enqueue(Job.new("quick", {}, delay=timedelta(seconds=0.5)))
    fatal_id = enqueue(producer, "spin")
    spinning = wait_until(
        lambda: next((line for line in one.journal() if line.job_id == fatal_id), None), what=one.log
    )

    os.kill(spinning.pid, signal.SIGKILL)

    wait_until(lambda: sum(line.job_id == fatal_id for line in one.journal()) == 2, what=one.log)
    producer.close()
    for job_id in (*ids, late_id):
        assert wait_for_state(storage, job_id, StateName.SUCCEEDED).crashes == 0
    runs = Counter(line.job_id for line in one.journal() if line.what == "start")
    assert {runs[job_id] for job_id in (*ids, late_id)} == {1}
    assert "A pooler stands before" in one.log()
    one.signal(signal.SIGQUIT)
    assert one.wait() == 6
    assert left_in_registry(storage, one.log()) == []
