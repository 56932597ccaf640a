"""Tests: of the claims that a worker holds, those alone are begun or given back that are still its own."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from qml_mp.child.held import Held
from qml_mp.core.job import Claim, ClaimKey, Job, new_job_id
from qml_mp.ipc.slot import SlotTable, mark_of
from qml_mp.ipc.tickets import TicketPipe, reply_ticket

IN_HAND = ClaimKey(job_id=new_job_id(), claim_seq=1)
"""What runs when others are asked for."""


@pytest.fixture
def tickets() -> Iterator[TicketPipe]:
    pipe = TicketPipe()
    yield pipe
    pipe.close()


@pytest.fixture
def slots() -> SlotTable:
    return SlotTable(1)


@pytest.fixture
def held(tickets: TicketPipe, slots: SlotTable) -> Held:
    return Held(tickets, slot=slots.writer(0))


def claims_of(count: int) -> list[Claim]:
    jobs = [replace(Job.new("m", now=datetime.now(UTC)), claim_seq=1) for _ in range(count)]
    return [Claim(job=job, worker_id="w", server_id="s") for job in jobs]


def begun(held: Held) -> list[Claim]:
    found = []
    while (claim := held.next()) is not None:
        found.append(claim)
    return found


def test_what_nobody_takes_is_begun_in_its_order(held: Held) -> None:
    claims = claims_of(5)

    held.hold(claims)

    assert begun(held) == claims
    assert held.taken == set()


def test_a_single_claim_needs_no_ticket(held: Held, tickets: TicketPipe) -> None:
    claims = claims_of(1)

    held.hold(claims)

    assert tickets.take() is None
    assert begun(held) == claims


def test_what_the_supervisor_has_taken_is_not_begun_and_remembered(held: Held, tickets: TicketPipe) -> None:
    claims = claims_of(5)
    held.hold(claims)
    first, second = held.next(), held.next()

    taken = tickets.take_all()

    assert [first, second] == claims[:2]
    assert held.next() is None
    assert held.taken == set(taken) == {claim.key for claim in claims[2:]}


def test_tickets_that_were_taken_from_the_front_do_not_keep_the_rest(held: Held, tickets: TicketPipe) -> None:
    claims = claims_of(5)
    held.hold(claims)

    tickets.take()
    tickets.take()

    assert begun(held) == [claims[0], *claims[3:]]
    assert held.taken == {claim.key for claim in claims[1:3]}


def test_only_what_is_still_the_workers_is_given_back(held: Held, tickets: TicketPipe) -> None:
    claims = claims_of(4)
    held.hold(claims)
    tickets.take()

    assert held.take_back() == [claims[0], *claims[2:]]
    assert held.taken == {claims[1].key}
    assert len(held) == 0
    assert tickets.take() is None
    assert held.next() is None


@pytest.mark.parametrize("taken", [False, True])
def test_what_comes_behind_others_is_begun_after_them_and_by_its_ticket(
    held: Held, tickets: TicketPipe, taken: bool
) -> None:
    claims = claims_of(4)
    held.hold(claims[:1])  # which needs no ticket

    held.hold(claims[1:])
    found = tickets.take_all() if taken else []

    assert begun(held) == (claims[:1] if taken else claims)
    assert held.taken == set(found) == {claim.key for claim in claims[1:] if taken}


def test_claims_for_whose_tickets_there_is_no_room_are_begun_without(held: Held, tickets: TicketPipe) -> None:
    for number in (100, 1):
        while tickets.write([claim.key for claim in claims_of(number)]):
            pass
    claims = claims_of(3)
    held.hold(claims)
    tickets.take_all()

    assert begun(held) == claims


def test_a_ticket_of_no_claim_is_passed_over(held: Held, tickets: TicketPipe) -> None:
    tickets.write([claims_of(1)[0].key])
    claims = claims_of(3)
    held.hold(claims)

    assert begun(held) == claims


def test_claims_are_stale_when_their_worker_was_stopped(held: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    began_s = time.monotonic()
    held.hold(claims_of(2))
    monkeypatch.setattr(time, "monotonic", lambda: began_s + 60)

    found = [held.is_stale]  # the first begins at once, as a single one does
    held.next()
    found.append(held.is_stale)
    held.next()
    found.append(held.is_stale)

    assert found == [False, True, False]


def test_what_a_reply_brings_is_begun_by_the_worker_that_keeps_its_ticket(
    held: Held, tickets: TicketPipe, slots: SlotTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    claims = claims_of(3)
    monkeypatch.setattr(time, "monotonic", lambda: 60.0)  # this process is not stopped meanwhile

    assert held.expect(IN_HAND, patience_s=0.25)
    assert (slots.unread(0), slots.patience_s(0)) == (1, 0.25)
    assert slots.in_hand(0) == mark_of(IN_HAND)
    held.arrived()
    held.hold(claims)

    assert slots.unread(0) == 0
    assert not held.is_stale
    assert begun(held) == claims


def test_what_a_reply_brings_whose_ticket_was_taken_goes_back(
    held: Held, tickets: TicketPipe, slots: SlotTable
) -> None:
    claims = claims_of(3)
    held.expect(IN_HAND, patience_s=0.1)

    assert tickets.take_all() == [reply_ticket(slots.unread(0))]
    held.arrived()
    held.hold(claims)

    assert held.is_stale
    assert tickets.take_all() == [claim.key for claim in claims]  # of the first one too
    assert held.take_back() == []
    held.hold(claims)
    assert not held.is_stale


def test_what_is_found_of_a_lost_reply_goes_back_if_its_ticket_was_taken(
    held: Held, tickets: TicketPipe
) -> None:
    held.expect(IN_HAND, patience_s=0.1)
    tickets.take_all()
    held.arrived()  # the reply is lost, and nothing is held before storage was asked

    held.hold(claims_of(1))

    assert held.is_stale


def test_a_reply_without_claims_leaves_nothing_to_go_back(held: Held, tickets: TicketPipe) -> None:
    held.expect(IN_HAND, patience_s=0.1)
    tickets.take_all()
    held.arrived()
    held.hold(())

    held.hold(claims_of(1))

    assert not held.is_stale


def test_each_reply_has_a_ticket_of_its_own(held: Held, tickets: TicketPipe, slots: SlotTable) -> None:
    held.expect(IN_HAND, patience_s=0.1)
    first = tickets.take_all()
    held.arrived()
    held.hold(())
    held.expect(IN_HAND, patience_s=0.1)

    assert tickets.take_all() != first
    assert slots.unread(0) == 2


def test_what_a_reply_brings_to_a_worker_that_was_stopped_goes_back(
    held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    began_s = time.monotonic()
    held.expect(IN_HAND, patience_s=0.1)
    monkeypatch.setattr(time, "monotonic", lambda: began_s + 60)
    held.arrived()
    held.hold(claims_of(1))

    assert held.is_stale


def test_without_room_for_its_ticket_no_reply_is_expected(
    held: Held, tickets: TicketPipe, slots: SlotTable
) -> None:
    for number in (100, 1):
        while tickets.write([claim.key for claim in claims_of(number)]):
            pass

    assert not held.expect(IN_HAND, patience_s=0.1)
    assert slots.unread(0) == 0
