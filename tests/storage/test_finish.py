"""Tests of the storage: what each outcome writes, and that a lost claim writes nothing."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

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
from qml_mp.core.server_info import ProcessIdentity, WorkerInfo
from qml_mp.core.state import AwaitingRetry, Deleted, Enqueued, Failed, StateName, Succeeded
from qml_mp.storage.store import Storage
from qml_mp.storage.values import Fetch, Finished
from tests.storage.conftest import Raw
from tests.storage.helpers import DONE, HOUR, KEEP, NO, claim_new, fetch, finish_and_fetch, present
from tests.storage.test_registry import server

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


@every_outcome
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


@pytest.mark.parametrize(
    "name", [name for name, outcome in OUTCOMES.items() if not isinstance(outcome, Release)]
)
@with_or_without_next
def test_what_came_of_that_workers_claim_is_not_taken_for_an_outcome_of_the_lost_one(
    storage: Storage, raw: Raw, name: str, which: Fetch | None
) -> None:
    """As `finish` does for a reply that was lost."""
    lost = claim_new(storage)
    newer = claim_again_after_restore(storage, raw, lost)
    outcome = OUTCOMES[name]
    its_own = replace(outcome, duration=HOUR) if isinstance(outcome, Success) else outcome
    assert storage.finish(newer, its_own, retention=KEEP).accepted

    finished, _ = finish_and_fetch(storage, lost, outcome, which)

    assert finished == Finished(accepted=False, state=None)
    assert storage.finish(newer, its_own, retention=KEEP).was_written


def test_of_several_successes_only_that_of_the_lost_claim_changes_nothing(storage: Storage, raw: Raw) -> None:
    claims = [claim_new(storage) for _ in range(7)]
    newer = claim_again_after_restore(storage, raw, claims[3])

    ends = [(claim, DONE) for claim in claims]
    finished = storage.exchange(ends, fetch=None, limit=0, retention=KEEP).finished

    assert [done.accepted for done in finished] == [claim is not claims[3] for claim in claims]
    assert [claim.worker_id for claim in storage.claims()] == [newer.worker_id]


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
