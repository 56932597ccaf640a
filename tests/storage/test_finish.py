"""Tests of the storage: what each outcome writes, and that a lost claim writes nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from qml_mp import JobHandle, QmlApp, ResultNotStored
from qml_mp.core.job import Claim, Job
from qml_mp.core.outcome import (
    AttemptKind,
    Cancelled,
    Crash,
    ErrorInfo,
    Failure,
    Outcome,
    ProcessFacts,
    Release,
    Retry,
    Success,
)
from qml_mp.core.payload import JsonValue
from qml_mp.core.server_info import ProcessIdentity, WorkerInfo
from qml_mp.core.state import AwaitingRetry, Deleted, Enqueued, Failed, StateName, Succeeded
from qml_mp.errors import ConfigurationError, InvalidJob, OutcomeRefused
from qml_mp.storage.store import Storage
from qml_mp.storage.values import Fetch, Finished
from tests.storage.conftest import Raw
from tests.storage.helpers import DONE, HOUR, KEEP, NO, claim_new, fetch, finish_and_fetch, present
from tests.storage.test_registry import server
from tests.unit.processor_case import run

DIED = ProcessFacts(signal=11, exit_code=None, peak_rss_bytes=123456789, cpu_s=1.25)
OUTCOMES: dict[str, Outcome] = {
    "success": DONE,
    "retry": Retry(error=NO, delay=HOUR),
    "failure": Failure(error=NO),
    "cancelled": Cancelled(reason="not wanted"),
    "release": Release(reason="shutdown"),
    "release, not begun": Release(reason="the job before took long", not_begun=True),
    "crash, run again at once": Crash(error=NO, rerun_after=timedelta(), process=DIED),
    "crash, run again later": Crash(error=NO, rerun_after=HOUR, process=DIED),
    "crash, budget spent": Crash(error=NO, rerun_after=None, process=DIED),
}
every_outcome = pytest.mark.parametrize("outcome", OUTCOMES.values(), ids=OUTCOMES.keys())


def test_a_success_keeps_its_result_and_expires(storage: Storage) -> None:
    claim = claim_new(storage)

    finished = storage.finish(claim, DONE, retention=KEEP)

    job = present(storage, claim)
    assert finished == Finished(accepted=True, state=StateName.SUCCEEDED)
    assert isinstance(job.state, Succeeded)
    assert job.result == {"ok": True}
    assert job.state.duration == timedelta(seconds=1.5)
    assert job.finished_at is not None
    assert job.expires_at == job.finished_at + KEEP.succeeded_ttl
    assert storage.attempts(job.id) == ()


def test_a_retry_waits_and_is_charged_as_a_failure(storage: Storage) -> None:
    claim = claim_new(storage)

    finished = storage.finish(
        claim, Retry(error=NO, delay=HOUR, kind=AttemptKind.TIMEOUT), retention=KEEP
    )  # fmt: skip

    job = present(storage, claim)
    assert finished == Finished(accepted=True, state=StateName.AWAITING_RETRY)
    assert isinstance(job.state, AwaitingRetry)
    assert job.run_at == job.state.retry_at
    assert timedelta(minutes=59) < job.state.retry_at - datetime.now(UTC) <= HOUR
    assert (job.failures, job.crashes, job.state.retry_count, job.error) == (1, 0, 1, NO)
    assert job.expires_at is None
    [attempt] = storage.attempts(job.id)
    assert (attempt.kind, attempt.claim_seq, attempt.error) == (AttemptKind.TIMEOUT, 1, NO)
    assert attempt.worker == "worker-1"
    assert attempt.started_at == claim.job.started_at
    assert attempt.ended_at >= attempt.started_at


def test_a_failure_ends_the_job(storage: Storage) -> None:
    claim = claim_new(storage)

    finished = storage.finish(claim, Failure(error=NO), retention=KEEP)

    job = present(storage, claim)
    assert finished == Finished(accepted=True, state=StateName.FAILED)
    assert isinstance(job.state, Failed)
    assert (job.failures, job.state.retry_count, job.state.exception) == (1, 1, NO)
    assert job.expires_at == job.state.failed_at + KEEP.failed_ttl
    assert [attempt.kind for attempt in storage.attempts(job.id)] == [AttemptKind.FAILURE]


def test_a_cancel_deletes_the_job_with_its_reason(storage: Storage) -> None:
    claim = claim_new(storage)

    storage.finish(claim, Cancelled(reason="not wanted", process=DIED), retention=KEEP)

    job = present(storage, claim)
    assert isinstance(job.state, Deleted)
    assert job.state.reason == "not wanted"
    assert (job.failures, job.crashes) == (0, 0)
    [attempt] = storage.attempts(job.id)
    assert (attempt.kind, attempt.process) == (AttemptKind.CANCELLED, DIED)


def test_a_release_is_charged_to_no_budget(storage: Storage) -> None:
    claim = claim_new(storage)

    storage.finish(claim, Release(reason="shutdown"), retention=KEEP)

    job = present(storage, claim)
    assert isinstance(job.state, Enqueued)
    assert (job.failures, job.crashes, job.claim_seq) == (0, 0, 1)
    assert storage.attempts(job.id) == ()
    assert storage.claims() == []


@pytest.mark.parametrize(
    ("rerun_after", "state"),
    [(timedelta(), StateName.ENQUEUED), (HOUR, StateName.AWAITING_RETRY), (None, StateName.FAILED)],
)
def test_a_crash_is_charged_to_its_own_budget(
    storage: Storage, rerun_after: timedelta | None, state: StateName
) -> None:
    claim = claim_new(storage)
    process = ProcessIdentity(host="h", pid=4242, started_ticks=1)
    worker = WorkerInfo(
        id=claim.worker_id, server_id="server#1", number=1, process=process, started_at=datetime.now(UTC)
    )
    storage.register_server(server("server#1"))
    storage.register_worker(worker)

    storage.finish(claim, Crash(error=NO, rerun_after=rerun_after, process=DIED), retention=KEEP)

    job = present(storage, claim)
    assert (job.state_name, job.failures, job.crashes, job.last_error) == (state, 0, 1, NO)
    [attempt] = storage.attempts(job.id)
    assert (attempt.kind, attempt.process, attempt.pid) == (AttemptKind.CRASH, DIED, 4242)


def test_each_attempt_is_kept_in_order(storage: Storage) -> None:
    claim: Claim | None = claim_new(storage)
    for outcome in ("crash, run again at once", "release", "crash, run again at once", "failure"):
        assert claim is not None
        storage.finish(claim, OUTCOMES[outcome], retention=KEEP)
        job_id, queue = claim.job.id, claim.job.queue
        claim = storage.fetch_and_lock_job(fetch(queue))

    job = present(storage, job_id)

    assert [(a.claim_seq, a.kind) for a in storage.attempts(job_id)] == [
        (1, AttemptKind.CRASH),
        (3, AttemptKind.CRASH),
        (4, AttemptKind.FAILURE),
    ]
    assert (job.claim_seq, job.failures, job.crashes) == (4, 1, 2)


@every_outcome
def test_finishing_clears_the_owner(storage: Storage, outcome: Outcome) -> None:
    claim = claim_new(storage)

    storage.finish(claim, outcome, retention=KEEP)

    assert storage.claims_of_worker("worker-1") == storage.claims_of_server("server#1") == []


@pytest.mark.fault(36)
@every_outcome
def test_repeating_a_finish_whose_reply_was_lost_is_harmless(storage: Storage, outcome: Outcome) -> None:
    claim = claim_new(storage)
    first = storage.finish(claim, outcome, retention=KEEP)
    job, attempts = present(storage, claim), storage.attempts(claim.job.id)

    again = storage.finish(claim, outcome, retention=KEEP)

    assert again == first
    assert again.accepted
    assert (first.was_written, again.was_written) == (False, True)
    assert present(storage, claim) == job
    assert storage.attempts(claim.job.id) == attempts


@every_outcome
def test_a_stale_claim_changes_nothing(storage: Storage, outcome: Outcome) -> None:
    stale = claim_new(storage)
    storage.finish(stale, Release(reason="handed on"), retention=KEEP)
    newer = storage.fetch_and_lock_job(fetch(stale.job.queue, worker="worker-2"))
    assert newer is not None
    before = present(storage, newer)

    finished = storage.finish(stale, outcome, retention=KEEP)

    assert finished == Finished(accepted=False, state=None)
    assert present(storage, newer) == before
    assert storage.attempts(newer.job.id) == ()
    assert storage.finish(newer, DONE, retention=KEEP).accepted


def claim_again_after_restore(storage: Storage, raw: Raw, lost: Claim) -> Claim:
    """Another worker's claim of the job, in a storage that does not know of the one that is lost."""
    raw.run(
        "UPDATE {jobs} SET state = 'enqueued', claim_seq = 0, started_at = NULL, worker_id = NULL,"
        " server_id = NULL WHERE id = ?",
        lost.job.id,
    )
    newer = storage.fetch_and_lock_job(fetch(lost.job.queue, worker="worker-2"))
    assert newer is not None
    assert newer.key == lost.key
    return newer


with_or_without_next = pytest.mark.parametrize(
    "which", [None, fetch("next")], ids=["alone", "with the next claim"]
)


@pytest.mark.parametrize("outcome", [DONE, OUTCOMES["retry"]], ids=["success", "retry"])
@with_or_without_next
def test_a_claim_whose_number_another_worker_has_since_a_restore_changes_nothing(
    storage: Storage, raw: Raw, outcome: Outcome, which: Fetch | None
) -> None:
    lost = claim_new(storage)
    newer = claim_again_after_restore(storage, raw, lost)
    before = present(storage, newer)

    finished, _ = finish_and_fetch(storage, lost, outcome, which)

    assert finished == Finished(accepted=False, state=None)
    assert present(storage, newer) == before
    assert storage.attempts(newer.job.id) == ()
    assert storage.finish(newer, DONE, retention=KEEP).accepted


def test_a_claim_that_was_taken_back_cannot_succeed(storage: Storage) -> None:
    claim = claim_new(storage)
    storage.requeue_stranded_jobs(datetime.now(UTC) + HOUR)
    before = present(storage, claim)

    finished = storage.finish(claim, DONE, retention=KEEP)

    assert finished == Finished(accepted=False, state=None)
    assert present(storage, claim) == before


def test_a_claim_of_a_job_that_is_gone_is_lost(storage: Storage) -> None:
    claim = claim_new(storage)
    unknown = Claim(job=Job.new("work"), worker_id="worker-1", server_id="server#1")

    finished, next_claim = finish_and_fetch(storage, unknown, DONE, fetch(claim.job.queue))

    assert finished == Finished(accepted=False, state=None)
    assert next_claim is None


@every_outcome
def test_the_next_job_is_claimed_with_the_finish(storage: Storage, outcome: Outcome) -> None:
    claim = claim_new(storage)
    following = storage.enqueue(Job.new("work", queue="next"))

    _, next_claim = finish_and_fetch(storage, claim, outcome, fetch("next", worker="worker-1"))
    _, last = finish_and_fetch(storage, claim, outcome, fetch("next", worker="worker-1"))

    assert next_claim is not None
    assert (next_claim.job.id, next_claim.job.claim_seq) == (following, 1)
    assert next_claim.job == present(storage, following)
    assert last is None


def test_a_released_job_can_be_claimed_in_the_same_commit(storage: Storage) -> None:
    claim = claim_new(storage)

    _, next_claim = finish_and_fetch(storage, claim, Release(reason="r"), fetch(claim.job.queue))

    assert next_claim is not None
    assert (next_claim.job.id, next_claim.job.claim_seq) == (claim.job.id, 2)


@pytest.mark.fault(31)
def test_error_texts_are_made_storable_and_cut(storage: Storage) -> None:
    claim = claim_new(storage)
    error = ErrorInfo(type="E\0", message="\ud800" + "ä" * 50_000, traceback="x" * 200_000 + "\0the cause")

    storage.finish(claim, Failure(error=error), retention=KEEP)

    stored = present(storage, claim).last_error
    assert stored is not None
    assert stored.traceback is not None
    assert len(stored.message.encode()) <= 8 * 1024
    assert len(stored.traceback.encode()) <= 64 * 1024
    assert stored.traceback.endswith("the cause")
    assert storage.attempts(claim.job.id)[0].error == stored


@pytest.mark.parametrize("result", [None, 0, "", [], {"ä": [1, 2.5, None, True]}, "x" * 500_000])
def test_any_json_result_is_read_back(storage: Storage, result: object) -> None:
    claim = claim_new(storage)

    storage.finish(claim, type(DONE)(result=result, duration=HOUR), retention=KEEP)  # type: ignore[arg-type]

    assert present(storage, claim).result == result


# `finish` tells the row as it left it, exactly as reading it back would.


@every_outcome
def test_finish_tells_the_row_after_the_write(storage: Storage, outcome: Outcome) -> None:
    claim = claim_new(storage, unique_key="a", metadata={"by": "test"}, max_retries=3)

    finished, _ = finish_and_fetch(storage, claim, outcome, fetch("another"))

    assert finished.job == present(storage, claim)
    assert finished.job is not None
    assert finished.job.state_name is finished.state


@every_outcome
def test_a_repeat_after_a_lost_reply_tells_the_row_as_it_stands(storage: Storage, outcome: Outcome) -> None:
    claim = claim_new(storage)
    storage.finish(claim, outcome, retention=KEEP)

    finished = storage.finish(claim, outcome, retention=KEEP)

    assert finished.accepted
    assert finished.job == present(storage, claim)


def test_a_lost_claim_tells_no_row(storage: Storage) -> None:
    claim = claim_new(storage)
    storage.finish(claim, DONE, retention=KEEP)

    finished = storage.finish(claim, Failure(error=NO), retention=KEEP)

    assert finished == Finished(accepted=False, state=None)
    assert finished.job is None


# A result that could not be stored is told from every result that was.

WHY = "InvalidJob: The result is 2,000,000 bytes of JSON; the limit is 1,048,576."
DROPPED = Success(result=None, duration=timedelta(seconds=1), not_stored=WHY)


def test_a_result_that_could_not_be_stored_is_raised_and_not_returned(storage: Storage) -> None:
    claim = claim_new(storage)
    storage.finish(claim, DROPPED, retention=KEEP)
    handle = JobHandle(claim.job.id, storage=storage)

    asks: list[Callable[[], JsonValue]] = [lambda: handle.wait(0), lambda: handle.result]
    for ask in asks:
        with pytest.raises(ResultNotStored) as told:
            ask()
        assert (told.value.job_id, told.value.reason) == (claim.job.id, WHY)
        assert str(told.value) == (
            f"The job {claim.job.id} (work) succeeded, but its result was not stored: {WHY}"
        )
    assert handle.state is StateName.SUCCEEDED


def test_the_json_of_the_job_says_why_there_is_no_result(storage: Storage) -> None:
    claim = claim_new(storage)
    storage.finish(claim, DROPPED, retention=KEEP)

    printed = present(storage, claim).to_json()

    assert (printed["state"], printed["result"], printed["result_not_stored"]) == ("succeeded", None, WHY)


@pytest.mark.parametrize(
    "result", [None, {"qml_mp_dropped_result": "mine"}, {"result_not_stored": "mine"}, {"reason": WHY}, WHY]
)
def test_no_result_of_a_users_looks_like_one_that_was_dropped(storage: Storage, result: JsonValue) -> None:
    claim = claim_new(storage)
    storage.finish(claim, Success(result=result, duration=timedelta(seconds=1)), retention=KEEP)

    assert JobHandle(claim.job.id, storage=storage).wait(0) == result
    assert "result_not_stored" not in present(storage, claim).to_json()


def test_a_result_that_cannot_be_read_back_is_not_returned_as_none(storage: Storage, raw: Raw) -> None:
    claim = claim_new(storage)
    storage.finish(claim, Success(result=3, duration=timedelta(seconds=1)), retention=KEEP)
    raw.run("UPDATE {jobs} SET result = ? WHERE id = ?", json.dumps({"a": 1})[:-1], claim.job.id)

    with pytest.raises(ResultNotStored, match="not readable JSON"):
        JobHandle(claim.job.id, storage=storage).wait(0)


# No retry, so many, and "the policy decides" are three things in one column.


@pytest.mark.parametrize("max_retries", [None, 0, 1, 2**31 - 1])
def test_max_retries_is_read_back_as_it_was_written(storage: Storage, max_retries: int | None) -> None:
    claim = claim_new(storage, max_retries=max_retries)

    assert claim.job.max_retries == max_retries
    assert present(storage, claim).max_retries == max_retries


@pytest.mark.parametrize("made_by", ["a firing", "hand", "name alone"])
def test_a_job_whose_row_says_nothing_is_retried_as_often_as_its_function_says(
    storage: Storage, made_by: str
) -> None:
    app = QmlApp()

    @app.recurring("0 3 1 * *")
    @app.job(max_retries=0)
    def charge_customers() -> None:
        raise OSError("half way")

    storage.upsert_recurring_job(app.program.recurring[0])
    match made_by:
        case "a firing":
            storage.set_recurring_enabled(
                "charge_customers", True, next_run_at=datetime(2025, 1, 1, tzinfo=UTC)
            )
            storage.fire_due_recurring()
        case "hand":
            storage.run_recurring_now("charge_customers")
        case "name alone":
            storage.enqueue(Job.new("charge_customers"))
    claim = storage.fetch_and_lock_job(fetch("default"))
    assert claim is not None
    storage.finish(claim, run(app.registry.get("charge_customers"), claim), retention=KEEP)

    job = present(storage, claim)
    assert (job.state_name, job.failures) == (StateName.FAILED, 1)


# Rows and outcomes that it refuses are told apart, and hinder nobody else.

FETCHES = [fetch(), fetch("default", "other")]


def full(raw: Raw) -> int:
    """The number of claims beyond which a row cannot count."""
    return 2**63 - 1 if raw.is_sqlite else 2**31 - 1


def claimed(storage: Storage, which: Fetch) -> Claim:
    claim = storage.fetch_and_lock_job(which)
    assert claim is not None
    return claim


@pytest.mark.fault(81)
@pytest.mark.parametrize("which", FETCHES, ids=["all queues", "several queues"])
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
@pytest.mark.parametrize("then", [None, fetch()], ids=["alone", "with the next claim"])
def test_an_outcome_that_cannot_be_stored_is_told_from_all_else(storage: Storage, then: Fetch | None) -> None:
    storage.enqueue_many([Job.new("work"), Job.new("work")])
    claim = claimed(storage, fetch())
    too_large = Success(result="x" * 2**21, duration=timedelta(seconds=1))

    with pytest.raises(OutcomeRefused):
        finish_and_fetch(storage, claim, too_large, then)

    assert [held.job.id for held in storage.claims()] == [claim.job.id]
    assert storage.finish(claim, Failure(error=NO), retention=KEEP).state is StateName.FAILED


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
