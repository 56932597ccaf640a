"""Tests of the storage: all that a dead worker held is written at once, and what is refused of it keeps no
other waiting."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest

from qml_mp.core.history import Ending, tally_of
from qml_mp.core.job import Claim, Job
from qml_mp.core.outcome import AttemptKind, Outcome, ProcessFacts, Release, Retry, Success
from qml_mp.core.payload import MAX_PAYLOAD_BYTES
from qml_mp.core.state import StateName
from qml_mp.errors import StorageUnavailable, StorageUnreachable
from qml_mp.events.emitter import Emitter, new_emitter
from qml_mp.events.facts import ClaimFacts, ClaimLost
from qml_mp.ipc.ended import Uncounted
from qml_mp.ipc.slot import Activity, SlotView
from qml_mp.storage.store import Storage
from qml_mp.supervisor.recovery.counting import Counting
from qml_mp.supervisor.recovery.settle import settle
from qml_mp.supervisor.workers.death import Death
from qml_mp.supervisor.workers.totals import EndTotals
from tests.storage.claimer import FETCH, register
from tests.storage.conftest import Raw
from tests.storage.helpers import DONE, KEEP, NO, fetch, present

TOO_LARGE = Success(result="x" * (MAX_PAYLOAD_BYTES + 1), duration=timedelta())
AWAY = Release(reason="the server was taken for dead")


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


@pytest.fixture
def operations(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How many the storage has made so far."""
    database, made = storage._db, list[str]()

    def count(name: str) -> None:
        operation = getattr(database, name)

        def counted(*arguments: Any, **how: Any) -> Any:
            made.append(name)
            return operation(*arguments, **how)

        monkeypatch.setattr(database, name, counted)

    for name in ("read", "write", "write_each", "transaction", "insert"):
        count(name)
    return lambda: len(made)


@dataclass(frozen=True)
class Ended:
    """A worker that had ended all it held when it died, and what was told of it."""

    death: Death
    totals: EndTotals
    counting: Counting
    events: Emitter
    told: list[Any]

    @property
    def counted(self) -> dict[Ending, int]:
        self.totals.look()
        return {key.ending: tally_of(numbers).count for key, numbers in self.totals.numbers.items()}

    @property
    def lost(self) -> list[ClaimLost]:
        return [event for event in self.told if isinstance(event, ClaimLost)]


def worker_that_ended(claims: Sequence[Claim], outcomes: Sequence[Outcome]) -> Ended:
    """It has counted none of them."""
    ended = {claim.key: outcome for claim, outcome in zip(claims, outcomes, strict=True)}
    uncounted = {
        claim.key: Uncounted(method="work", queue="default", waited_us=1, ran_us=1, outcome=ended[claim.key])
        for claim in claims
    }
    death = Death(
        worker_id="w-1",
        number=1,
        process=ProcessFacts(pid=4242, signal=9),
        ended=ended,
        uncounted=uncounted,
    )
    totals, told = EndTotals(), list[Any]()
    return Ended(
        death=death,
        totals=totals,
        counting=Counting(death, totals),
        events=new_emitter(told.append),
        told=told,
    )


def settle_it(storage: Storage, one: Ended) -> int:
    return settle(storage, one.death, max_crashes=3, retention=KEEP, events=one.events, counting=one.counting)


@pytest.mark.fault(82)
@pytest.mark.parametrize("what", ["is written", "was given away", "is held", "is all of it"])
def test_what_settling_a_worker_asks_of_storage_does_not_grow_with_the_jobs_that_it_had_ended(
    storage: Storage, operations: Callable[[], int], what: str
) -> None:
    """As long as it takes, no heartbeat is sent: a slow database has peers take the server for dead."""
    asked = []
    for number in (3, 60):
        register(storage)
        storage.enqueue_many([Job.new("work") for _ in range(number)])
        claims = storage.exchange((), fetch=FETCH, limit=number, retention=KEEP).claims
        third = number // 3
        written, given_away = {
            "is written": (claims, ()),
            "was given away": ((), claims),
            "is held": ((), ()),
            "is all of it": (claims[:third], claims[third : 2 * third]),
        }[what]
        one = worker_that_ended(claims, [DONE] * number)
        storage.exchange([(claim, DONE) for claim in written], fetch=None, limit=0, retention=KEEP)
        storage.exchange([(claim, AWAY) for claim in given_away], fetch=None, limit=0, retention=KEEP)
        before = operations()

        settle_it(storage, one)

        asked.append(operations() - before)
        assert sum(one.counted.values()) == number - len(given_away)
        assert len(one.lost) == len(given_away)
        for claim in given_away:
            storage.delete(claim.job.id, reason="not wanted", retention=KEEP)

    assert asked[0] == asked[1]


def ended_in_all_ways(storage: Storage, raw: Raw, claims: Sequence[Claim]) -> Ended:
    """A claim each: written as a success; as a retry, and its job claimed since; given away; given back by
    itself; of a job that is gone; and not written, which storage refuses."""
    retry, not_begun = Retry(error=NO, delay=timedelta()), Release(reason="not begun", not_begun=True)
    one = worker_that_ended(claims, [DONE, retry, DONE, not_begun, DONE, TOO_LARGE])
    written: Sequence[Outcome] = [DONE, retry, AWAY, not_begun, DONE]
    for claim, outcome in zip(claims[:5], written, strict=True):
        storage.finish(claim, outcome, retention=KEEP)
    raw.run("DELETE FROM {jobs} WHERE id = ?", claims[4].job.id)
    storage.promote_due(limit=9)
    storage.exchange((), fetch=fetch(worker="w-2"), limit=9, retention=KEEP)
    return one


def assert_is_told_and_counted_once(storage: Storage, claims: Sequence[Claim], one: Ended) -> None:
    assert one.counted == {Ending.SUCCEEDED: 1, Ending.RETRIED: 1, Ending.FAILED: 1}
    [lost] = one.lost
    assert lost.claim == ClaimFacts.of(claims[2])
    assert (lost.claim.claim_seq, lost.claim.worker_id) == (1, "w-1")
    assert lost.dead_worker is not None
    assert lost.dead_worker.pid == 4242
    assert present(storage, claims[2]).claim_seq == 2
    assert present(storage, claims[5]).state_name is StateName.FAILED


def test_what_had_ended_in_a_dead_worker_is_counted_and_what_it_has_lost_is_told(
    storage: Storage, raw: Raw, claims: Sequence[Claim]
) -> None:
    one = ended_in_all_ways(storage, raw, claims)

    assert settle_it(storage, one) == 1

    assert_is_told_and_counted_once(storage, claims, one)


@pytest.mark.fault(5)
@pytest.mark.parametrize("is_done", [False, True])
@pytest.mark.parametrize(
    ("operation", "number"),
    [("deregister_worker", 0), ("exchange", 2), *(("recorded_claims", number) for number in range(3))],
)
def test_that_is_so_whatever_storage_does_not_answer_to(
    storage: Storage,
    raw: Raw,
    claims: Sequence[Claim],
    monkeypatch: pytest.MonkeyPatch,
    operation: str,
    number: int,
    is_done: bool,
) -> None:
    """Of the writes it is the last: both before are refused."""
    one = ended_in_all_ways(storage, raw, claims)
    ask, asked = getattr(storage, operation), list[bool]()

    def cut(*arguments: Any, **how: Any) -> Any:
        asked.append(True)
        is_cut = len(asked) == number + 1
        answer = ask(*arguments, **how) if is_done or not is_cut else None
        if is_cut:
            raise StorageUnreachable("the reply is lost")
        return answer

    monkeypatch.setattr(storage, operation, cut)
    with pytest.raises(StorageUnreachable):
        settle_it(storage, one)

    settle_it(storage, one)

    assert_is_told_and_counted_once(storage, claims, one)
