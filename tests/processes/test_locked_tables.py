"""Tests: a server while somebody locks or alters the tables of its PostgreSQL database, and after."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from psycopg import sql

from qml_mp.core.job import Job
from qml_mp.core.state import StateName
from qml_mp.storage.store import Storage
from tests.processes.harness import Server, wait_for_a_beat, wait_for_state, wait_until

pytestmark = pytest.mark.parametrize("url", ["postgres"], indirect=True)

HELD_UP = "lock timeout"


@contextmanager
def locked_jobs(url: str) -> Iterator[None]:
    """Nobody else can read or write a job within the block."""
    server, _, schema = url.rpartition("?schema=")
    with psycopg.connect(server, autocommit=True) as admin, admin.transaction():
        table = sql.Identifier(schema, "jobs")
        admin.execute(sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(table))
        yield


def runs(one: Server) -> Counter[str]:
    return Counter(line.job_id for line in one.journal() if line.what == "start")


@pytest.mark.nightly
@pytest.mark.fault(76)
def test_an_idle_server_runs_what_became_due_behind_a_lock(
    server: Callable[..., Server], storage: Storage, url: str
) -> None:
    one = server("-v", "-w", "1").start()
    soon = datetime.now(UTC) + timedelta(seconds=2)
    ids = storage.enqueue_many(Job.new("quick", {}, at=soon) for _ in range(4))

    with locked_jobs(url):
        wait_until(lambda: one.log().count(HELD_UP) >= 4, what=one.log)

    for job_id in ids:
        wait_for_state(storage, job_id, StateName.SUCCEEDED)
    assert runs(one) == dict.fromkeys(ids, 1)
    wait_for_a_beat(one, storage)
    assert one.stop() == 0


@pytest.mark.fault(76)
def test_no_finished_job_fails_or_runs_again_for_a_lock(
    server: Callable[..., Server], storage: Storage, url: str
) -> None:
    # Some 15 s: three waits for a lock have to end first, and each is as long as a worker is patient.
    ids = storage.enqueue_many(Job.new("nap", {"seconds": 0.2}, max_crashes=1) for _ in range(12))
    one = server("-v", "-w", "1").start()
    wait_until(lambda: len(runs(one)) >= 4, what=one.log)

    with locked_jobs(url):  # until the driver has come to prepare statements that cannot be prepared now
        wait_until(lambda: one.log().count("Cannot write an outcome") >= 3, what=one.log)

    for job_id in ids:
        wait_for_state(storage, job_id, StateName.SUCCEEDED)
    assert runs(one) == dict.fromkeys(ids, 1)
    assert one.stop() == 0


@pytest.mark.fault(83)
def test_columns_added_while_jobs_run_cost_nothing(
    server: Callable[..., Server], storage: Storage, url: str
) -> None:
    one = server("-w", "2").start(ready=2)
    ids = storage.enqueue_many(Job.new("quick", {"busy_s": 0.05}, max_crashes=1) for _ in range(60))
    wait_until(lambda: len(runs(one)) > 20, what=one.log)

    address, _, schema = url.rpartition("?schema=")
    with psycopg.connect(address, autocommit=True) as admin:
        for table in ("jobs", "attempts", "workers", "servers", "recurring_jobs"):
            name = sql.Identifier(schema, table)
            admin.execute(sql.SQL("ALTER TABLE {} ADD COLUMN note text DEFAULT 'none'").format(name))

    for job_id in ids:
        wait_for_state(storage, job_id, StateName.SUCCEEDED)
    assert runs(one) == dict.fromkeys(ids, 1)
    assert one.stop() == 0
    assert "cached plan" not in one.log()
    assert "Cannot" not in one.log()
