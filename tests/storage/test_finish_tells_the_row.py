"""Tests of the storage: `finish` tells the row as it left it, exactly as reading it back would."""

from __future__ import annotations

from dataclasses import replace

from qml_mp.core.outcome import ErrorInfo, Failure, Outcome, Retry
from qml_mp.core.state import StateName
from qml_mp.storage.store import Storage
from qml_mp.storage.values import Finished
from tests.storage.helpers import DONE, HOUR, KEEP, NO, claim_new, fetch, finish_and_fetch, present
from tests.storage.test_finish import every_outcome


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


def test_the_row_told_of_a_second_attempt_counts_the_first(storage: Storage) -> None:
    claim = claim_new(storage)
    storage.finish(claim, Retry(error=NO, delay=HOUR * 0), retention=KEEP)
    storage.promote_due(limit=1)
    second = storage.fetch_and_lock_job(fetch(claim.job.queue))
    assert second is not None

    finished = storage.finish(second, Failure(error=replace(NO, message="again")), retention=KEEP)

    assert finished.job == present(storage, claim)
    assert finished.job is not None
    assert (finished.job.failures, finished.job.claim_seq) == (2, 2)


def test_the_row_told_of_a_job_whose_cancel_was_asked_for_is_deleted(storage: Storage) -> None:
    claim = claim_new(storage)
    storage.request_cancel(claim.job.id, reason="not wanted", retention=KEEP)

    finished = storage.finish(claim, Retry(error=NO, delay=HOUR), retention=KEEP)

    assert finished.state is StateName.DELETED
    assert finished.job == present(storage, claim)


def test_the_row_told_has_texts_as_they_were_stored(storage: Storage) -> None:
    error = ErrorInfo(type="E\0" + "x" * 1000, message="\ud800" * 10_000, traceback="\0" * 100_000)
    claim = claim_new(storage)

    finished = storage.finish(claim, Failure(error=error), retention=KEEP)

    assert finished.job == present(storage, claim)


def test_a_lost_claim_tells_no_row(storage: Storage) -> None:
    claim = claim_new(storage)
    storage.finish(claim, DONE, retention=KEEP)

    finished = storage.finish(claim, Failure(error=NO), retention=KEEP)

    assert finished == Finished(accepted=False, state=None)
    assert finished.job is None
