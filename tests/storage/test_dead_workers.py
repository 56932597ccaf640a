"""Tests of the storage: what a dead worker held is settled in one write, and charged once."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest

from qml_mp.core.job import Claim, Job
from qml_mp.core.outcome import AttemptKind, ProcessFacts, Release, Success
from qml_mp.core.payload import MAX_PAYLOAD_BYTES
from qml_mp.core.state import StateName
from qml_mp.events.emitter import new_emitter
from qml_mp.ipc.ended import Uncounted
from qml_mp.ipc.slot import Activity, SlotView
from qml_mp.storage.store import Storage
from qml_mp.supervisor.recovery.settle import settle
from qml_mp.supervisor.workers.death import Death
from tests.storage.claimer import FETCH, register
from tests.storage.helpers import DONE, KEEP, present

TOO_LARGE = Success(result="x" * (MAX_PAYLOAD_BYTES + 1), duration=timedelta())


@pytest.fixture
def claims(storage: Storage) -> Sequence[Claim]:
    register(storage)
    storage.enqueue_many([Job.new("work") for _ in range(6)])
    return storage.exchange((), fetch=FETCH, limit=6, retention=KEEP).claims


def death_of(claims: Sequence[Claim], **said: Any) -> Death:
    """Of their worker, which had ended the first two, and had the third in hand."""
    return Death(
        worker_id="w-1",
        number=1,
        process=ProcessFacts(pid=4242, exit_code=1),
        slot=SlotView(activity=Activity.RUNNING, key=claims[2].key),
        has_taken=True,
        **said,
    )


def states(storage: Storage, claims: Sequence[Claim]) -> list[StateName]:
    return [present(storage, claim).state_name for claim in claims]


def crashes(storage: Storage, claims: Sequence[Claim]) -> list[int]:
    return [present(storage, claim).crashes for claim in claims]


ENDED = [StateName.SUCCEEDED, StateName.SUCCEEDED, *[StateName.ENQUEUED] * 4]


def test_all_that_a_dead_worker_held_is_one_write(storage: Storage, claims: Sequence[Claim]) -> None:
    death = death_of(claims, ended={claim.key: DONE for claim in claims[:2]})

    assert settle(storage, death, max_crashes=3, retention=KEEP, events=new_emitter()) == 6

    assert states(storage, claims) == ENDED
    assert crashes(storage, claims) == [0, 0, 1, 0, 0, 0]
    assert storage.list_workers() == []


@pytest.mark.fault(81)
def test_an_outcome_of_it_that_storage_refuses_is_a_failure_and_the_others_are_as_they_came(
    storage: Storage, claims: Sequence[Claim]
) -> None:
    death = death_of(claims, ended={claims[0].key: TOO_LARGE, claims[1].key: DONE})

    settle(storage, death, max_crashes=3, retention=KEEP, events=new_emitter())

    assert states(storage, claims) == [StateName.FAILED, *ENDED[1:]]
    assert [attempt.kind for attempt in storage.attempts(claims[0].job.id)] == [AttemptKind.FAILURE]
    assert crashes(storage, claims) == [0, 0, 1, 0, 0, 0]


# Which claim of a dead worker is charged with its death.

NOT_BEGUN = Release(reason="not begun", not_begun=True)
NOT_KEPT = Uncounted(method="work", queue="default", waited_us=1, ran_us=1, outcome=None)


@pytest.fixture
def three_claims(storage: Storage) -> tuple[Claim, ...]:
    register(storage)
    storage.enqueue_many([Job.new("work"), Job.new("work"), Job.new("work")])
    return storage.exchange((), fetch=FETCH, limit=3, retention=KEEP).claims


def charged(storage: Storage, three_claims: tuple[Claim, ...], **said: Any) -> list[int]:
    """The places of the three_claims that the death of their worker is charged to."""
    death = Death(worker_id="w-1", number=1, process=ProcessFacts(pid=4242, exit_code=1), **said)
    settle(storage, death, max_crashes=3, retention=KEEP, events=new_emitter())
    return [place for place, claim in enumerate(three_claims) if present(storage, claim).crashes]


def running(claim: Claim) -> SlotView:
    return SlotView(activity=Activity.RUNNING, key=claim.key)


@pytest.mark.parametrize("taken", [0, 1, 2])
def test_a_claim_that_is_shown_is_charged_if_the_worker_had_taken_it(
    storage: Storage, three_claims: tuple[Claim, ...], taken: int
) -> None:
    assert charged(storage, three_claims, slot=running(three_claims[taken]), has_taken=True) == [taken]


def test_a_claim_that_is_shown_because_it_goes_back_is_not_charged(
    storage: Storage, three_claims: tuple[Claim, ...]
) -> None:
    ended = {three_claims[1].key: NOT_BEGUN}

    assert charged(storage, three_claims, slot=running(three_claims[2]), ended=ended) == []


def test_of_several_jobs_that_have_ended_of_which_nothing_was_kept_none_is_charged(
    storage: Storage, three_claims: tuple[Claim, ...]
) -> None:
    not_kept = {claim.key: NOT_KEPT for claim in three_claims[:2]}

    assert (
        charged(storage, three_claims, uncounted=not_kept, slot=running(three_claims[1]), has_taken=True)
        == []
    )
    assert [present(storage, claim).state_name for claim in three_claims] == [StateName.ENQUEUED] * 3
