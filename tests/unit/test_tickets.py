"""Tests: a ticket comes to one reader alone, whole, however many there are."""

from __future__ import annotations

import os
import select
import struct
import time
from collections.abc import Iterator

import pytest

from qml_mp.core.job import ClaimKey, new_job_id
from qml_mp.ipc.tickets import MOST_HELD, TICKET_BYTES, TicketPipe
from tests.until import PATIENCE_S


@pytest.fixture
def pipe() -> Iterator[TicketPipe]:
    pipe = TicketPipe()
    yield pipe
    pipe.close()


def keys_of(count: int) -> list[ClaimKey]:
    return [ClaimKey(job_id=new_job_id(), claim_seq=number) for number in range(1, count + 1)]


def test_tickets_are_taken_in_their_order_until_there_is_none(pipe: TicketPipe) -> None:
    keys = keys_of(MOST_HELD)

    assert pipe.write(keys) == MOST_HELD

    assert [pipe.take() for _ in keys] == [key.packed for key in keys]
    assert pipe.take() is None
    assert pipe.take_all() == []


def test_a_full_pipe_takes_whole_tickets_or_none(pipe: TicketPipe) -> None:
    written: list[ClaimKey] = []
    while True:
        keys = keys_of(MOST_HELD)
        count = pipe.write(keys)
        written += keys[:count]
        if count < MOST_HELD:
            break

    assert pipe.write(keys_of(MOST_HELD)) == 0
    assert pipe.take_all() == written


def test_two_readers_at_once_get_each_ticket_once_and_whole(pipe: TicketPipe) -> None:
    keys = keys_of(MOST_HELD)
    going, told = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:  # a supervisor, that takes all it finds
        try:
            os.set_blocking(going[0], False)
            taken = 0
            while True:
                found = len([key for key in pipe.take_all() if key in keys])
                if found and not taken:
                    os.write(told[1], b"x")
                taken += found
                try:
                    os.read(going[0], 1)
                    break
                except BlockingIOError:
                    continue
            os.write(told[1], struct.pack("<q", taken + len(pipe.take_all())))
        finally:
            os._exit(0)
    mine = rounds = 0
    deadline = time.monotonic() + PATIENCE_S  # of the other one, which may begin late
    while rounds < 300 or (time.monotonic() < deadline and not select.select([told[0]], [], [], 0)[0]):
        pipe.write(keys)
        rounds, last = rounds + 1, 0
        while (ticket := pipe.take()) is not None:
            key = ClaimKey.unpacked(ticket)
            assert key == keys[key.claim_seq - 1]
            assert key.claim_seq > last  # those in between are the supervisor's
            last, mine = key.claim_seq, mine + 1

    os.write(going[1], b"x")
    assert os.read(told[0], 1) == b"x"
    (theirs,) = struct.unpack("<q", os.read(told[0], 8))
    os.waitpid(pid, 0)
    for fd in (*going, *told):
        os.close(fd)
    assert mine + theirs == rounds * MOST_HELD
    assert mine > 0
    assert theirs > 0


def test_bytes_that_are_no_ticket_harm_nobody(pipe: TicketPipe) -> None:
    (writing,) = pipe.fds - {pipe.reading_fd}
    os.write(writing, b"x" * (TICKET_BYTES // 2))

    assert pipe.take() is None

    os.write(writing, b"x" * (TICKET_BYTES // 2))
    assert pipe.take_all() == []
