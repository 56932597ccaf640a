"""Tests of the storage: what time brings: promotion, expiry, and jobs that were left behind."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from qml_mp.clock import SystemClock
from qml_mp.core.job import Job
from qml_mp.core.outcome import Retry
from qml_mp.core.recurring import RecurringJob
from qml_mp.core.state import StateName
from qml_mp.storage.open import open_storage
from qml_mp.storage.store import Storage
from qml_mp.storage.values import Promoted
from tests.storage.conftest import Raw
from tests.storage.helpers import (
    DONE,
    HOUR,
    KEEP,
    NO,
    claim_new,
    fetch,
    in_an_hour,
    in_children,
    job_in,
    open_patiently,
    present,
)


def test_the_next_due_instant_is_told(storage: Storage) -> None:
    storage.enqueue(Job.new("work", at=in_an_hour() + HOUR))
    storage.enqueue(Job.new("work", at=in_an_hour()))

    promoted = storage.promote_due(limit=10)

    assert promoted.count == 0
    assert promoted.next_due_in is not None
    assert timedelta(minutes=59) < promoted.next_due_in <= HOUR


def test_no_job_becomes_runnable_before_its_time(storage: Storage) -> None:
    at = storage.now() + timedelta(seconds=0.9)
    storage.enqueue(Job.new("work", at=at))

    while storage.promote_due(limit=10).count == 0:
        assert storage.fetch_and_lock_job(fetch()) is None

    assert storage.now() >= at
    assert storage.fetch_and_lock_job(fetch()) is not None


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


# What is due is made runnable, whatever else goes on.


def make_due(raw: Raw) -> None:
    raw.age("jobs", "run_at", 2 * HOUR)


def counts(storage: Storage) -> tuple[int, int]:
    """How many jobs are Scheduled, and how many Enqueued."""
    found = storage.job_counts()
    return found[StateName.SCHEDULED], found[StateName.ENQUEUED]


def test_several_schedulers_promote_each_job_once(
    url: str, storage: Storage, raw: Raw, tmp_path: Path
) -> None:
    storage.enqueue_many(Job.new("work", at=in_an_hour()) for _ in range(2000))
    make_due(raw)
    storage.close()

    def promote(place: int) -> Callable[[], None]:
        def until_nothing_waits() -> None:
            with closing(open_patiently(url)) as mine:
                promoted = 0
                while (batch := mine.promote_due(limit=100)).next_due_in is not None or batch.count:
                    promoted += batch.count
            (tmp_path / f"promoted-{place}").write_text(str(promoted))

        return until_nothing_waits

    statuses = in_children([promote(place) for place in range(3)])

    assert statuses == [0] * 3
    assert counts(storage) == (0, 2000)
    assert sum(int((tmp_path / f"promoted-{place}").read_text()) for place in range(3)) == 2000


# A wall clock that is set back fires nothing twice and loses nothing.

DAY = timedelta(days=1)
DAILY = "0 8 * * *"


class HandClock(SystemClock):
    """Wall time that is set by hand."""

    def __init__(self) -> None:
        self.instant = datetime(2026, 3, 1, 12, tzinfo=UTC)

    def now(self) -> datetime:
        return self.instant


@pytest.mark.fault(88)
def test_a_clock_two_days_ahead_and_back_fires_nothing_twice_and_goes_on(tmp_path: Path) -> None:
    clock = HandClock()  # of SQLite alone: that of PostgreSQL is its server's
    storage = open_storage(f"sqlite:///{tmp_path}/jobs.db", clock=clock)
    storage.upsert_recurring_job(RecurringJob.new("daily", DAILY, "work", now=clock.now()))
    begin, fired = clock.now(), []

    for day in (0, 1, 3, 1, 2, 3, 4, 5):
        clock.instant = begin + day * DAY
        fired += [day for _ in storage.fire_due_recurring().jobs]
    storage.close()

    # The firing of day 2 came on day 3, and the next one comes when the clock reaches its day.
    assert fired == [1, 3, 4, 5]


@pytest.mark.fault(88)
def test_a_retry_that_a_clock_ahead_has_put_off_runs_when_the_clock_reaches_it(tmp_path: Path) -> None:
    clock = HandClock()
    with closing(open_storage(f"sqlite:///{tmp_path}/jobs.db", clock=clock)) as storage:
        claim = claim_new(storage)
        begin, clock.instant = clock.now(), clock.now() + DAY
        storage.finish(claim, Retry(error=NO, delay=timedelta(minutes=5)), retention=KEEP)

        promoted = []
        for since in (timedelta(), DAY, DAY + timedelta(minutes=5)):
            clock.instant = begin + since
            promoted.append(storage.promote_due(limit=10).count)

    assert promoted == [0, 0, 1]
