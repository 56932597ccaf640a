"""Tests of the storage: rows and outcomes that it refuses are told apart, and hinder nobody else."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from qml_mp.core.job import Claim, Job
from qml_mp.core.limits import LimitKind
from qml_mp.core.outcome import Failure, Outcome, Retry, Success
from qml_mp.core.state import StateName
from qml_mp.errors import ConfigurationError, InvalidJob, OutcomeRefused, StorageError
from qml_mp.storage.store import Storage
from qml_mp.storage.values import Fetch, Retention
from tests.storage.conftest import Raw
from tests.storage.helpers import DONE, KEEP, NO, fetch, finish_and_fetch, open_sqlite, present, set_limit

FETCHES = [fetch(), fetch("default"), fetch("default", "other")]


def full(raw: Raw) -> int:
    """The number of claims beyond which a row cannot count."""
    return 2**63 - 1 if raw.is_sqlite else 2**31 - 1


def claimed(storage: Storage, which: Fetch) -> Claim:
    claim = storage.fetch_and_lock_job(which)
    assert claim is not None
    return claim


@pytest.mark.fault(81)
@pytest.mark.parametrize("which", FETCHES, ids=["all queues", "one queue", "several queues"])
def test_rows_that_cannot_be_claimed_are_failed_and_passed(storage: Storage, raw: Raw, which: Fetch) -> None:
    bad_ids = [raw.add_job(claim_seq=full(raw), priority=9) for _ in range(3)]
    good_id = storage.enqueue(Job.new("work"))
    behind_id = raw.add_job(claim_seq=full(raw), priority=-9)

    claim = claimed(storage, which)

    assert claim.job.id == good_id
    assert present(storage, behind_id).state_name is StateName.ENQUEUED
    for job_id in bad_ids:
        job = present(storage, job_id)
        assert job.state_name is StateName.FAILED
        assert job.last_error is not None
        assert job.last_error.type == "UnclaimableRow"
        assert "cannot be claimed" in job.last_error.message
        assert job.expires_at is not None
    [kind] = storage.failure_kinds()
    assert (kind.count, kind.key is None) == (3, False)
    assert finish_and_fetch(storage, claim, DONE, which)[0].accepted
    assert present(storage, behind_id).state_name is StateName.FAILED


@pytest.mark.fault(81)
@pytest.mark.parametrize("is_limited", [False, True])
@pytest.mark.parametrize("odd", ["claim_seq", "id"])
def test_a_row_that_cannot_be_claimed_is_kept_as_long_as_whoever_claims_says(
    storage: Storage, raw: Raw, odd: str, is_limited: bool
) -> None:
    if is_limited:
        set_limit(storage, LimitKind.QUEUE, "default", max_running=5)
    job_id = raw.add_job(claim_seq=full(raw)) if odd == "claim_seq" else raw.add_job(id="0" * 36)
    long = Retention(succeeded_ttl=timedelta(days=1), failed_ttl=timedelta(days=90))

    assert storage.fetch_and_lock_job(replace(fetch(), retention=long)) is None

    [(days,)] = raw.run(
        "SELECT (expires_at - finished_at) / 86400000000 FROM {jobs} WHERE id = ?"
        if raw.is_sqlite
        else "SELECT extract(day FROM expires_at - finished_at)::int FROM {jobs} WHERE id = ?",
        job_id,
    )
    assert days == 90


@pytest.mark.fault(81)
def test_an_outcome_is_written_although_the_next_job_cannot_be_claimed(storage: Storage, raw: Raw) -> None:
    storage.enqueue_many([Job.new("work", priority=5), Job.new("work")])
    claim = claimed(storage, fetch())
    bad_id = raw.add_job(claim_seq=full(raw), priority=9)

    finished, next_claim = finish_and_fetch(storage, claim, DONE, fetch())

    assert finished.accepted
    assert present(storage, claim).state_name is StateName.SUCCEEDED
    assert present(storage, bad_id).state_name is StateName.FAILED
    assert next_claim is not None
    assert next_claim.job.state_name is StateName.PROCESSING


@pytest.mark.fault(81)
@pytest.mark.parametrize("then", [None, fetch()], ids=["alone", "with the next claim"])
def test_an_outcome_that_cannot_be_stored_is_told_from_all_else(storage: Storage, then: Fetch | None) -> None:
    storage.enqueue_many([Job.new("work"), Job.new("work")])
    claim = claimed(storage, fetch())
    too_large = Success(result="x" * 2**21, duration=timedelta(seconds=1))

    with pytest.raises(OutcomeRefused):
        finish_and_fetch(storage, claim, too_large, then)

    assert [held.job.id for held in storage.claims()] == [claim.job.id]
    assert storage.finish(claim, Failure(error=NO), retention=KEEP).state is StateName.FAILED


@pytest.mark.fault(81)
def test_a_constraint_on_the_outcome_is_a_refusal_of_it(storage: Storage, raw: Raw) -> None:
    storage.enqueue(Job.new("work"))
    claim = claimed(storage, fetch())
    if raw.is_sqlite:
        raw.run("CREATE UNIQUE INDEX one ON qml_jobs (state) WHERE state = 'succeeded'")
        raw.add_job(state="succeeded")
    else:
        raw.run("ALTER TABLE {jobs} ADD CHECK (state <> 'succeeded')")

    with pytest.raises(OutcomeRefused):
        storage.finish(claim, DONE, retention=KEEP)

    assert storage.finish(claim, Failure(error=NO), retention=KEEP).state is StateName.FAILED


@pytest.mark.fault(81)
def test_a_trigger_of_the_users_that_refuses_is_no_refusal_of_the_outcome(storage: Storage, raw: Raw) -> None:
    storage.enqueue(Job.new("work"))
    claim = claimed(storage, fetch())
    raw.refuse("UPDATE", "jobs", saying="not now")

    with pytest.raises(StorageError) as caught:
        storage.finish(claim, DONE, retention=KEEP)

    assert not isinstance(caught.value, OutcomeRefused)
    raw.run("DROP TRIGGER no" + ("" if raw.is_sqlite else " ON {jobs}"))
    assert storage.finish(claim, DONE, retention=KEEP).accepted


@pytest.mark.fault(81)
def test_a_row_whose_counts_are_full_can_still_end(storage: Storage, raw: Raw) -> None:
    job_id = raw.add_job(failures=full(raw), crashes=full(raw))
    claim = claimed(storage, fetch())
    values = (job_id, 1, "failure", "w", raw.instant(storage.now()), raw.instant(storage.now()))
    raw.run(
        "INSERT INTO {attempts} (job_id, claim_seq, kind, worker, started_at, ended_at) "
        "VALUES (?, ?, ?, ?, ?, ?)",
        *values,
    )

    finished = storage.finish(claim, Failure(error=NO), retention=KEEP)

    assert finished.state is StateName.FAILED
    assert present(storage, job_id).failures == full(raw)
    assert len(storage.attempts(job_id)) == 1


def test_the_error_for_which_sqlite_rolls_everything_back_is_the_one_that_is_told(
    tmp_path: Path,
) -> None:
    with closing(open_sqlite(tmp_path / "jobs.db")) as storage:
        storage.enqueue(Job.new("work"))
        with closing(sqlite3.connect(tmp_path / "jobs.db")) as other:
            other.execute(
                "CREATE TRIGGER gone BEFORE UPDATE ON qml_jobs BEGIN SELECT RAISE(ROLLBACK, 'gone'); END"
            )

        with pytest.raises(StorageError, match="gone"), storage._db.transaction("trying") as transaction:
            transaction.refusal_of("UPDATE qml_jobs SET priority = 1", {})

        assert sum(storage.job_counts().values()) == 1


def test_a_duration_that_no_column_holds_is_named_and_nothing_is_written(storage: Storage) -> None:
    with pytest.raises(InvalidJob, match="timeout is 86400000000000s"):
        storage.enqueue_many([Job.new("work"), Job.new("work", timeout=timedelta.max)])
    with pytest.raises(ConfigurationError, match="ttl is"):
        storage.acquire_lock("resource", "owner", timedelta.max)

    assert set(storage.job_counts().values()) == {0}
    assert storage.acquire_lock("resource", "another owner", timedelta(seconds=1))


@pytest.mark.parametrize(
    "outcome",
    [Success(result=1, duration=timedelta.max), Retry(error=NO, delay=timedelta.max)],
    ids=["duration", "delay"],
)
def test_an_outcome_with_a_duration_that_no_column_holds_is_refused(
    storage: Storage, outcome: Outcome
) -> None:
    job_id = storage.enqueue(Job.new("work"))
    claim = claimed(storage, fetch())

    with pytest.raises(OutcomeRefused):
        storage.finish(claim, outcome, retention=KEEP)

    assert (present(storage, job_id).state_name, storage.attempts(job_id)) == (StateName.PROCESSING, ())
    assert storage.finish(claim, Failure(error=NO), retention=KEEP).accepted
