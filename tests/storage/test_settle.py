"""Tests of the storage: all that a dead worker held is written at once, and what is refused of it keeps no
other waiting."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest

from qml_mp.core.job import Claim, Job
from qml_mp.core.outcome import AttemptKind, ProcessFacts, Success
from qml_mp.core.payload import MAX_PAYLOAD_BYTES
from qml_mp.core.state import StateName
from qml_mp.errors import StorageUnavailable
from qml_mp.events.emitter import new_emitter
from qml_mp.ipc.slot import Activity, SlotView
from qml_mp.storage.store import Storage
from qml_mp.supervisor.recovery.counting import Counting
from qml_mp.supervisor.recovery.settle import settle
from qml_mp.supervisor.workers.death import Death
from qml_mp.supervisor.workers.totals import EndTotals
from tests.storage.claimer import FETCH, register
from tests.storage.helpers import DONE, KEEP, present

TOO_LARGE = Success(result="x" * (MAX_PAYLOAD_BYTES + 1), duration=timedelta())


@pytest.fixture
def claims(storage: Storage) -> Sequence[Claim]:
    register(storage)
    storage.enqueue_many([Job.new("work") for _ in range(6)])
    return storage.exchange((), fetch=FETCH, limit=6, retention=KEEP).claims


@pytest.fixture
def writes(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many outcomes each write has had."""
    exchange, counts = storage.exchange, list[int]()

    def counted(finished: Sequence[Any], **how: Any) -> Any:
        counts.append(len(finished))
        return exchange(finished, **how)

    monkeypatch.setattr(storage, "exchange", counted)
    return counts


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


def test_all_that_a_dead_worker_held_is_one_write(
    storage: Storage, claims: Sequence[Claim], writes: list[int]
) -> None:
    death = death_of(claims, ended={claim.key: DONE for claim in claims[:2]})

    assert settle(storage, death, max_crashes=3, retention=KEEP, events=new_emitter()) == 6

    assert writes == [6]
    assert states(storage, claims) == ENDED
    assert crashes(storage, claims) == [0, 0, 1, 0, 0, 0]
    assert storage.list_workers() == []


@pytest.mark.fault(81)
def test_an_outcome_of_it_that_storage_refuses_is_a_failure_and_the_others_are_as_they_came(
    storage: Storage, claims: Sequence[Claim], writes: list[int]
) -> None:
    death = death_of(claims, ended={claims[0].key: TOO_LARGE, claims[1].key: DONE})

    settle(storage, death, max_crashes=3, retention=KEEP, events=new_emitter())

    assert states(storage, claims) == [StateName.FAILED, *ENDED[1:]]
    assert [attempt.kind for attempt in storage.attempts(claims[0].job.id)] == [AttemptKind.FAILURE]
    assert crashes(storage, claims) == [0, 0, 1, 0, 0, 0]


@pytest.mark.fault(5)
@pytest.mark.parametrize("is_committed", [False, True])
@pytest.mark.parametrize("number", range(7))
def test_a_settlement_of_which_replies_are_lost_charges_the_job_in_hand_alone_and_once(
    storage: Storage,
    claims: Sequence[Claim],
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    is_committed: bool,
) -> None:
    """Of the write of all, and of the write of one of them by itself, which are tried then."""
    exchange, writes, lost = storage.exchange, list[int](), (0, 1 + number)

    def cut(finished: Sequence[Any], **how: Any) -> Any:
        place = len(writes)
        writes.append(len(finished))
        if is_committed or place not in lost:
            exchanged = exchange(finished, **how)
        if place in lost:
            raise StorageUnavailable("the reply is lost")
        return exchanged

    monkeypatch.setattr(storage, "exchange", cut)
    death = death_of(claims, ended={claim.key: DONE for claim in claims[:2]})
    counting = Counting(death, EndTotals())

    def try_it() -> None:
        settle(storage, death, max_crashes=3, retention=KEEP, events=new_emitter(), counting=counting)

    if number < len(claims):
        with pytest.raises(StorageUnavailable):
            try_it()
    try_it()

    assert states(storage, claims) == ENDED
    assert crashes(storage, claims) == [0, 0, 1, 0, 0, 0]
    assert writes == [6, *[1] * 6, *([] if is_committed or number == 6 else [1])]


@pytest.mark.fault(43)
def test_a_settlement_that_is_held_up_does_not_wait_for_each_claim(
    storage: Storage, claims: Sequence[Claim], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by a lock of the whole table, of which each write finds out by waiting."""
    writes = list[int]()

    def held_up(finished: Sequence[Any], **_: Any) -> Any:
        writes.append(len(finished))
        raise StorageUnavailable("a lock")

    monkeypatch.setattr(storage, "exchange", held_up)

    with pytest.raises(StorageUnavailable):
        settle(storage, death_of(claims), max_crashes=3, retention=KEEP, events=new_emitter())

    assert writes == [6, 1, 1]
