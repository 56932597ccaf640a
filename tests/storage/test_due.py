"""Tests of the storage: what time brings: promotion, expiry, and jobs that were left behind."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest

from qml_mp.core.job import Claim, Job
from qml_mp.core.outcome import Retry
from qml_mp.core.state import StateName
from qml_mp.storage.store import Storage
from qml_mp.storage.values import Promoted
from tests.storage.conftest import Raw
from tests.storage.helpers import DONE, HOUR, KEEP, NO, claim_new, fetch, in_an_hour, job_in, present


def test_nothing_is_due_in_an_empty_storage(storage: Storage) -> None:
    assert storage.promote_due(limit=10) == Promoted(count=0, next_due_in=None)


def test_the_next_due_instant_is_told(storage: Storage) -> None:
    storage.enqueue(Job.new("work", at=in_an_hour() + HOUR))
    storage.enqueue(Job.new("work", at=in_an_hour()))

    promoted = storage.promote_due(limit=10)

    assert promoted.count == 0
    assert promoted.next_due_in is not None
    assert timedelta(minutes=59) < promoted.next_due_in <= HOUR


def test_due_jobs_become_enqueued(storage: Storage, raw: Raw) -> None:
    scheduled = storage.enqueue(Job.new("work", at=in_an_hour()))
    retrying = claim_new(storage)
    storage.finish(retrying, Retry(error=NO, delay=HOUR), retention=KEEP)
    later = storage.enqueue(Job.new("work", at=in_an_hour() + timedelta(days=3)))
    raw.age("jobs", "run_at", timedelta(days=1))

    promoted = storage.promote_due(limit=10)

    states = [present(storage, job_id).state_name for job_id in (scheduled, retrying.job.id, later)]
    assert promoted.count == 2
    assert promoted.next_due_in is not None
    assert promoted.next_due_in > timedelta(days=1)
    assert states == [StateName.ENQUEUED, StateName.ENQUEUED, StateName.SCHEDULED]
    again = storage.fetch_and_lock_job(fetch(retrying.job.queue))
    assert again is not None
    assert (again.job.claim_seq, again.job.failures, again.job.last_error) == (2, 1, NO)


def test_promotion_takes_the_longest_due_first_up_to_its_limit(storage: Storage, raw: Raw) -> None:
    ids = storage.enqueue_many(Job.new("work", at=in_an_hour() + n * HOUR) for n in (3, 1, 2))
    raw.age("jobs", "run_at", timedelta(days=1))

    promoted = storage.promote_due(limit=2)

    states = [present(storage, job_id).state_name for job_id in ids]
    assert promoted == Promoted(count=2, next_due_in=timedelta())
    assert states == [StateName.SCHEDULED, StateName.ENQUEUED, StateName.ENQUEUED]


def test_jobs_past_their_time_to_live_are_deleted_with_their_history(storage: Storage, raw: Raw) -> None:
    ended = [job_in(storage, state) for state in StateName if state.is_final]
    kept = job_in(storage, StateName.SUCCEEDED)
    for claim in ended:
        past = raw.instant(datetime.now(UTC) - HOUR)
        raw.run("UPDATE {jobs} SET expires_at = ? WHERE id = ?", past, claim.job.id)

    deleted = storage.delete_expired_jobs(limit=10)

    assert deleted == 3
    assert [storage.get(claim.job.id) for claim in ended] == [None] * 3
    assert storage.get(kept.job.id) is not None
    assert raw.run("SELECT count(*) FROM {attempts}") == [(0,)]
    assert storage.delete_expired_jobs(limit=10) == 0


def test_expiry_deletes_no_more_than_its_limit(storage: Storage, raw: Raw) -> None:
    for _ in range(5):
        job_in(storage, StateName.SUCCEEDED)
    raw.age("jobs", "expires_at", timedelta(days=1))

    assert [storage.delete_expired_jobs(limit=2) for _ in range(4)] == [2, 2, 1, 0]


@pytest.mark.fault(73)
@pytest.mark.parametrize("state", [state for state in StateName if not state.is_final])
def test_expiry_spares_a_job_that_has_not_ended_whatever_its_row_says(
    storage: Storage, raw: Raw, state: StateName
) -> None:
    claim = job_in(storage, state)
    raw.run("UPDATE {jobs} SET expires_at = ?", raw.instant(datetime.now(UTC) - HOUR))

    assert storage.delete_expired_jobs(limit=10) == 0
    assert present(storage, claim).state_name is state


def test_claims_are_found_by_worker_by_server_and_altogether(storage: Storage) -> None:
    one = claim_new(storage, worker="w-1", server="s#1")
    two = claim_new(storage, worker="w-2", server="s#1")
    three = claim_new(storage, worker="w-3", server="s#2")
    ended = claim_new(storage, worker="w-1", server="s#1")
    storage.finish(ended, DONE, retention=KEEP)

    assert [claim.key for claim in storage.claims_of_worker("w-1")] == [one.key]
    assert [claim.key for claim in storage.claims_of_server("s#1")] == [one.key, two.key]
    assert [claim.key for claim in storage.claims()] == [one.key, two.key, three.key]
    assert storage.claims_of_worker("w-9") == storage.claims_of_server("s#9") == []


@pytest.mark.parametrize(
    "look",
    [
        pytest.param(Storage.claims, id="all"),
        pytest.param(partial(Storage.claims_of_server, server_id="server#1"), id="of a server"),
        pytest.param(partial(Storage.claims_of_worker, worker_id="worker-1"), id="of a worker"),
        pytest.param(partial(Storage.deregister_worker, worker_id="worker-1"), id="of a dead worker"),
    ],
)
def test_nobody_who_looks_at_the_claims_of_others_reads_their_payloads(
    storage: Storage, look: Callable[[Storage], list[Claim]]
) -> None:
    storage.enqueue(Job.new("work", "x" * 100_000, metadata={"trace": "1"}))
    held = storage.fetch_and_lock_job(fetch("default"))
    assert held is not None

    [found] = look(storage)

    assert (found.key, found.worker_id, found.server_id) == (held.key, held.worker_id, held.server_id)
    assert (found.job.started_at, found.job.metadata) == (held.job.started_at, {"trace": "1"})
    assert (found.job.payload, found.payload_chars) == (None, 0)


def test_stranded_jobs_are_released_save_fresh_ones_and_those_of_spared_servers(
    storage: Storage, raw: Raw
) -> None:
    stranded = claim_new(storage, server="gone#1")
    spared = claim_new(storage, server="alive#1")
    raw.age("jobs", "started_at", HOUR)
    fresh = claim_new(storage, server="gone#1")

    count = storage.requeue_stranded_jobs(
        datetime.now(UTC) - timedelta(minutes=30), spare_servers=["alive#1", "other#1"]
    )

    job = present(storage, stranded)
    assert count == 1
    assert (job.state_name, job.claim_seq, job.failures, job.crashes) == (StateName.ENQUEUED, 1, 0, 0)
    assert [claim.key for claim in storage.claims()] == [spared.key, fresh.key]
