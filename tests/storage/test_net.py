"""Tests of the storage: promises that no other test shows. Each kills a mutant (tests/mutants)."""

from __future__ import annotations

from contextlib import closing
from datetime import timedelta

import psycopg
import pytest

from qml_mp.core.job import Job
from qml_mp.core.limits import LimitKind
from qml_mp.core.outcome import ErrorInfo, Failure
from qml_mp.core.state import Enqueued
from qml_mp.storage.open import open_storage
from qml_mp.storage.store import Storage
from qml_mp.storage.values import JobFilter
from tests.storage.conftest import Raw, server_of
from tests.storage.helpers import KEEP, claim_new, fetch, present, set_limit
from tests.until import wait_until


@pytest.mark.parametrize("url", ["postgres"], indirect=True)  # SQLite has one writer, and locks no row
def test_a_job_that_somebody_has_locked_is_passed_over(storage: Storage, raw: Raw, url: str) -> None:
    locked, free = storage.enqueue_many([Job.new("work"), Job.new("work")])
    with (
        closing(open_storage(url, patience=timedelta(seconds=1))) as worker,
        psycopg.connect(server_of(url)) as other,
    ):
        other.execute(f"SELECT FROM {raw.name('jobs')} WHERE id = %s FOR UPDATE", [locked])

        claim = worker.fetch_and_lock_job(fetch())

    assert claim is not None
    assert claim.job.id == free


def test_a_job_for_later_is_enqueued_at_its_instant_and_not_before(storage: Storage) -> None:
    job = Job.new("work", delay=timedelta(seconds=0.5))
    storage.enqueue(job)

    wait_until(lambda: storage.promote_due(limit=1).count)

    state = present(storage, job.id).state
    assert isinstance(state, Enqueued)
    assert state.enqueued_at is not None
    assert job.run_at is not None
    assert state.enqueued_at >= job.run_at


def test_a_limit_holds_for_all_servers_together(storage: Storage) -> None:
    storage.enqueue_many([Job.new("work"), Job.new("work")])
    set_limit(storage, LimitKind.METHOD, "work", max_running=1)

    first = storage.fetch_and_lock_job(fetch(worker="a-1", server="a"))
    second = storage.fetch_and_lock_job(fetch(worker="b-1", server="b"))

    assert first is not None
    assert second is None


def test_a_quote_in_what_is_looked_for_is_a_quote(storage: Storage) -> None:
    claim = claim_new(storage)
    error = ErrorInfo(type="ValueError", message='it\'s "so" -- x')
    storage.finish(claim, Failure(error=error), retention=KEEP)

    found = storage.list_jobs(JobFilter(error='it\'s "so" --')).jobs
    others = storage.list_jobs(JobFilter(error="' OR 1 = 1 --")).jobs

    assert [job.id for job in found] == [claim.job.id]
    assert list(others) == []
