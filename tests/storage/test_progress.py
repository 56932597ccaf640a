"""Tests of the storage: how far jobs have come, written about claims that hold and about nothing else."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from qml_mp.core.job import Claim, Job
from qml_mp.core.outcome import Extras, Failure, Outcome, Release, Retry, Success
from qml_mp.core.progress import Progress
from qml_mp.core.state import StateName
from qml_mp.storage.store import Storage
from tests.storage.helpers import HOUR, KEEP, NO, claim_some, fetch, present

HALF = Progress(done=1, total=2, note="half")
ALL = Progress(done=2, total=2)


def progress(storage: Storage, claim: Claim) -> Progress | None:
    return storage.progress_of([claim.job.id]).get(claim.job.id)


def again(storage: Storage, claim: Claim) -> Claim:
    """The next claim of the same job, which is the only one that waits."""
    newer = storage.fetch_and_lock_job(fetch())
    assert newer is not None
    assert newer.job.id == claim.job.id
    return newer


def test_what_was_noted_last_is_read_of_each_job(storage: Storage) -> None:
    held = claim_some(storage, 3)
    before = [present(storage, claim) for claim in held]

    assert storage.note_progress({held[0].key: HALF, held[2].key: Progress(done=0.5, note="a\0ä\ud800")}) == 2
    assert storage.note_progress({held[0].key: ALL}) == 1

    found = storage.progress_of([claim.job.id for claim in held])
    assert found == {held[0].job.id: ALL, held[2].job.id: Progress(done=0.5, note="a\ufffdä?")}
    assert [present(storage, claim) for claim in held] == before
    assert storage.progress_of([]) == storage.progress_of(["no id"]) == {}
    assert storage.note_progress({}) == 0


def test_a_claim_that_is_lost_or_over_is_left_alone_and_the_next_one_begins_without(storage: Storage) -> None:
    [claim] = claim_some(storage, 1)
    storage.note_progress({claim.key: HALF})
    storage.finish(claim, Release(reason="shutdown"), retention=KEEP)

    assert storage.note_progress({claim.key: ALL}) == 0  # given back
    newer = again(storage, claim)
    assert progress(storage, claim) is None
    assert storage.note_progress({claim.key: ALL}) == 0  # another's
    assert progress(storage, claim) is None
    assert storage.note_progress({newer.key: HALF}) == 1
    storage.finish(newer, Failure(error=NO), retention=KEEP)
    assert storage.note_progress({newer.key: ALL}) == 0  # ended
    assert progress(storage, claim) == HALF


@pytest.mark.parametrize(
    "outcome",
    [
        Success(result=1, duration=timedelta(1), extras=Extras(progress=ALL)),
        Success(result=1, duration=timedelta(1), extras=Extras(progress=ALL, follow_ups=(Job.new("work"),))),
        Failure(error=NO, extras=Extras(progress=ALL)),
        Retry(error=NO, delay=HOUR, extras=Extras(progress=ALL)),
    ],
    ids=["success", "with a follow-up", "failure", "retry"],
)
def test_what_was_said_last_is_written_with_the_outcome(storage: Storage, outcome: Outcome) -> None:
    lost, kept, plain = claim_some(storage, 3)
    storage.note_progress({lost.key: HALF, kept.key: HALF, plain.key: HALF})
    storage.finish(lost, Release(reason="shutdown"), retention=KEEP)
    storage.delete(lost.job.id, reason="not wanted", retention=KEEP)
    done = Success(result=None, duration=timedelta())

    exchanged = storage.exchange(
        [(lost, outcome), (kept, outcome), (plain, done)], fetch=fetch(), limit=2, retention=KEEP
    )

    assert [each.accepted for each in exchanged.finished] == [False, True, True]
    assert [progress(storage, claim) for claim in (lost, kept, plain)] == [HALF, ALL, HALF]
    assert [each.job for each in exchanged.finished[1:]] == [present(storage, kept), present(storage, plain)]


def test_it_goes_with_the_success_alone_through_a_lost_reply(storage: Storage) -> None:
    [claim] = claim_some(storage, 1)
    outcome = Success(result=1, duration=timedelta(1), extras=Extras(progress=ALL))

    first = storage.finish(claim, outcome, retention=KEEP)
    second = storage.finish(claim, replace(outcome, extras=Extras(progress=HALF)), retention=KEEP)

    assert (first.state, second.state, second.was_written) == (
        StateName.SUCCEEDED,
        StateName.SUCCEEDED,
        True,
    )
    assert progress(storage, claim) == ALL


def test_many_are_noted_together_and_each_by_its_own_claim(storage: Storage) -> None:
    held = claim_some(storage, 31)
    storage.finish(held[3], Failure(error=NO), retention=KEEP)
    said = {claim.key: Progress(done=n, total=31) for n, claim in enumerate(held)}

    assert storage.note_progress(said) == 30

    found = storage.progress_of([claim.job.id for claim in held])
    assert found == {key.job_id: one for key, one in said.items() if key != held[3].key}
