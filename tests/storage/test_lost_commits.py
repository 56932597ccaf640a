"""Tests of the storage: what a supervisor gave back or settled is so again when a failover has lost that."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Any

import pytest

from qml_mp import failpoints
from qml_mp.child.claims import Claims
from qml_mp.child.commands import Commands
from qml_mp.child.held import Held
from qml_mp.child.source import AppFacts, NamedProgram
from qml_mp.core.history import Ending, SeriesKey
from qml_mp.core.job import Claim, ClaimKey, Job
from qml_mp.core.outcome import Release
from qml_mp.core.state import Processing, StateName
from qml_mp.errors import StorageError, StorageUnavailable, StorageUnreachable
from qml_mp.events.emitter import new_emitter
from qml_mp.events.facts import JobCancelled
from qml_mp.ipc.ended import EndedOutcomes, EndedTable
from qml_mp.ipc.pipe import Kind, Message, PipeReader, open_pipe, send
from qml_mp.ipc.slot import SlotTable
from qml_mp.ipc.tickets import TicketPipe
from qml_mp.settings import ServerConfig
from qml_mp.storage.store import Storage
from qml_mp.supervisor.loops.settle import SettleLoop
from qml_mp.supervisor.loops.unshown_claims import UnshownClaimsLoop
from qml_mp.supervisor.run import Run
from qml_mp.supervisor.workers.totals import EndTotals
from tests.storage.claimer import FETCH, register, worker
from tests.storage.conftest import Raw
from tests.storage.helpers import DONE, KEEP, claim_new, fetch, present
from tests.storage.helpers import register as register_server

GIVEN_BACK = Release(reason="the job before took long", not_begun=True)
OPERATIONS = range(1, 7)  # more than there are
at_each_place = pytest.mark.parametrize("place", ["storage.call", "storage.committed"])
at_each_operation = pytest.mark.parametrize("number", OPERATIONS)


def until_it_works(
    action: Callable[[], object], *, fails: str, at: int, error: type[StorageError] = StorageUnreachable
) -> None:
    """Storage fails so at the place, when it comes by for that time."""
    passes = 0

    def hit(name: str) -> None:
        nonlocal passes
        passes += name == fails
        if name == fails and passes == at:
            raise error("once")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(failpoints, "hit", hit)
        with suppress(StorageUnavailable):
            action()
            return
        action()


@dataclass(kw_only=True)
class Worker:
    """One with a claim in hand, which has ended, beside two whose tickets its supervisor has taken. Storage
    does not know, or not any more, that these were given back."""

    claims: Claims
    held: Held
    taken: Sequence[Claim]
    shared: EndedOutcomes
    told: list[object]
    """The facts that it has told."""
    is_told_to_look: Callable[[], None]
    """By its supervisor: it has a claim which it does not show."""

    def looks(self) -> None:
        """As it does once it was told to."""
        self.claims.fetch(limit=5, trust_s=float("inf"))

    def begins(self) -> set[ClaimKey]:
        """What it begins of what it holds."""
        return {claim.key for claim in iter(self.held.next, None)}

    def ends(self) -> set[ClaimKey]:
        """What it begins and ends of what it holds."""
        claims = list(iter(self.held.next, None))
        self.claims.exchange([(claim, DONE) for claim in claims], limit=0)
        return {claim.key for claim in claims}


def next_of(claim: Claim) -> ClaimKey:
    """The next claim of its job."""
    return ClaimKey(job_id=claim.job.id, claim_seq=claim.job.claim_seq + 1)


@pytest.fixture
def one(storage: Storage) -> Iterator[Worker]:
    register(storage)
    storage.enqueue_many(Job.new("work", {"n": number}) for number in range(3))
    (reading, writing), told = open_pipe(), list[object]()
    commands = Commands(PipeReader(reading))

    def is_told_to_look() -> None:
        send(writing, Message(kind=Kind.DOUBT))
        commands.look()

    with closing(TicketPipe()) as tickets:
        held, shared = Held(tickets, slot=SlotTable(1).writer(0)), EndedTable(1).region(0)
        claims = Claims(
            storage,
            fetch=FETCH,
            info=worker(),
            held=held,
            shared=shared,
            commands=commands,
            events=new_emitter(told.append),
        )
        claims.fetch(limit=3, trust_s=float("inf"))
        taken = list(held._claims)[1:]
        tickets.take_all()
        in_hand = held.next()
        assert in_hand is not None
        claims.exchange([(in_hand, DONE)], limit=0)
        assert held.next() is None
        is_told_to_look()
        yield Worker(
            claims=claims, held=held, taken=taken, shared=shared, told=told, is_told_to_look=is_told_to_look
        )
    os.close(reading)
    os.close(writing)


@at_each_place
@at_each_operation
def test_what_was_taken_from_a_worker_goes_back_and_is_begun_under_its_next_claim_alone(
    one: Worker, place: str, number: int
) -> None:
    until_it_works(one.looks, fails=place, at=number)

    assert one.begins() == {next_of(claim) for claim in one.taken}


@at_each_place
@at_each_operation
def test_what_storage_does_not_take_back_just_then_is_begun_once_the_worker_was_told_again(
    one: Worker, place: str, number: int
) -> None:
    until_it_works(one.looks, fails=place, at=number, error=StorageUnavailable)
    begun = one.ends()

    one.is_told_to_look()
    one.looks()

    assert begun | one.begins() == {next_of(claim) for claim in one.taken}


@pytest.mark.parametrize("url", ["postgres"], indirect=True)  # SQLite locks no rows
def test_one_whose_row_is_locked_keeps_the_worker_from_no_other_job(
    one: Worker, storage: Storage, connect: Callable[[], Any], raw: Raw
) -> None:
    other = storage.enqueue(Job.new("work"))
    with closing(connect()) as somebody:
        somebody.autocommit = False
        jobs, locked = raw.name("jobs"), [claim.job.id for claim in one.taken]
        somebody.execute(f"SELECT 1 FROM {jobs} WHERE id = ANY(%s) FOR UPDATE", [locked])

        one.looks()

        assert one.ends() == {ClaimKey(job_id=other, claim_seq=1)}
        somebody.rollback()
    one.is_told_to_look()
    one.looks()
    assert one.begins() == {next_of(claim) for claim in one.taken}


def test_what_its_supervisor_gives_back_in_the_same_moment_is_taken_from_nobody_who_has_it_by_then(
    one: Worker, storage: Storage, opened: Callable[[], Storage], monkeypatch: pytest.MonkeyPatch
) -> None:
    other, (first, second) = opened(), one.taken
    register_server(other, "b#1", "w-2")
    calls: list[str] = []

    def hit(name: str) -> None:
        if name != "storage.call":
            return
        calls.append(name)
        if len(calls) == 2:  # it has read what is its own
            assert other.finish(first, GIVEN_BACK, retention=KEEP).accepted
            assert other.fetch_and_lock_job(fetch(worker="w-2", server="b#1")) is not None

    monkeypatch.setattr(failpoints, "hit", hit)
    one.looks()

    assert one.begins() == {next_of(second)}
    job = present(storage, first)
    assert isinstance(job.state, Processing)
    assert (job.state.worker_id, job.claim_seq) == ("w-2", 2)


def test_one_that_the_database_refuses_to_give_back_keeps_neither_the_others_nor_the_worker(
    one: Worker, storage: Storage, raw: Raw
) -> None:
    first, second = one.taken
    raw.refuse("UPDATE", "jobs", saying="stays", when=f"NEW.state = 'enqueued' AND NEW.id = '{first.job.id}'")

    one.looks()

    assert one.begins() == {next_of(second)}
    assert present(storage, first).state_name is StateName.PROCESSING
    raw.allow("jobs")


def test_one_that_somebody_wants_cancelled_ends_so_and_that_is_told_and_counted_once(
    one: Worker, storage: Storage
) -> None:
    first, _ = one.taken
    storage.request_cancel(first.job.id, reason="not wanted", retention=KEEP)
    totals = EndTotals()
    totals.follow("w-1", one.shared.counts)

    one.looks()
    totals.add_returned(first, storage.finish(first, GIVEN_BACK, retention=KEEP))  # as its supervisor does

    assert present(storage, first).state_name is StateName.DELETED
    cancelled = [fact.claim.job_id for fact in one.told if isinstance(fact, JobCancelled)]
    assert cancelled == [first.job.id]
    totals.look()
    assert totals.numbers.keys() == {SeriesKey(method="work", queue="default", ending=Ending.CANCELLED)}
    assert totals.ended == 1


@pytest.fixture
def run(storage: Storage) -> Iterator[Run]:
    run = Run(ServerConfig(), NamedProgram(spec="an:app"), url=storage.url, facts=AppFacts())
    with closing(run.pool):
        yield run


@at_each_place
@at_each_operation
def test_a_claim_of_a_worker_that_was_settled_goes_back_with_its_row(
    storage: Storage, run: Run, place: str, number: int
) -> None:
    server_id = run.registration.id
    register_server(storage, server_id, "dead")
    claims = [claim_new(storage, worker="dead", server=server_id) for _ in range(2)]
    loop = UnshownClaimsLoop(run, settling=SettleLoop(run))
    loop.tick(storage)
    assert {present(storage, claim).state_name for claim in claims} == {StateName.PROCESSING}

    until_it_works(lambda: loop.tick(storage), fails=place, at=number)

    jobs = [present(storage, claim) for claim in claims]
    assert {(job.state_name, job.claim_seq, job.crashes) for job in jobs} == {(StateName.ENQUEUED, 1, 0)}
    assert storage.list_workers() == []


def test_a_claim_that_the_database_refuses_keeps_no_other_of_a_dead_worker_and_is_tried_again(
    storage: Storage, run: Run, raw: Raw
) -> None:
    server_id = run.registration.id
    register_server(storage, server_id, "dead", "dead too")
    claims = [claim_new(storage, worker="dead", server=server_id) for _ in range(3)]
    claims += [claim_new(storage, worker="dead too", server=server_id)]
    refused, *others = claims
    raw.refuse(
        "UPDATE", "jobs", saying="stays", when=f"NEW.state = 'enqueued' AND NEW.id = '{refused.job.id}'"
    )
    loop = UnshownClaimsLoop(run, settling=SettleLoop(run))
    loop.tick(storage)

    with pytest.raises(StorageError, match="stays"):
        loop.tick(storage)

    assert {present(storage, claim).state_name for claim in others} == {StateName.ENQUEUED}
    assert present(storage, refused).state_name is StateName.PROCESSING
    raw.allow("jobs")
    loop.tick(storage)
    assert present(storage, refused).state_name is StateName.ENQUEUED
