"""Tests: of the claims that a worker has asked for and not read, only those go back that it cannot begin."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import timedelta

import pytest

from qml_mp.core.job import ClaimKey, new_job_id
from qml_mp.core.outcome import Success
from qml_mp.ipc.tickets import reply_ticket
from qml_mp.supervisor.workers.unread_replies import claims_not_read, note_taken_reply
from qml_mp.supervisor.workers.worker_process import WorkerProcess
from tests.unit.stand_ins import stand_in

DONE = Success(result=None, duration=timedelta())
IN_HAND, BEFORE, BEHIND = (ClaimKey(job_id=new_job_id(), claim_seq=1) for _ in range(3))
HELD = (BEFORE, IN_HAND, BEHIND)


@pytest.fixture
def worker() -> Iterator[WorkerProcess]:
    """It runs a job, has asked for the next ones with what came of the last, and has lost their ticket."""
    reading, worker = stand_in()
    worker.channels.ended.append(BEFORE, DONE)
    worker.slots.writer(0).show_unread(3, in_hand=IN_HAND, patience_s=0.1)
    worker.taken = {reply_ticket(3)}
    note_taken_reply(worker)
    yield worker
    worker.channels.close()
    os.close(reading)


def test_what_is_neither_in_hand_nor_ended_came_with_the_reply(worker: WorkerProcess) -> None:
    assert claims_not_read(worker, HELD) == {BEHIND}


def test_a_worker_that_keeps_its_ticket_keeps_its_claims(worker: WorkerProcess) -> None:
    worker.slots.writer(0).show_unread(4, in_hand=BEHIND, patience_s=0.1)  # of the next one
    note_taken_reply(worker)

    assert claims_not_read(worker, HELD) == set()


def test_a_worker_that_has_come_to_its_reply_gives_back_by_itself(worker: WorkerProcess) -> None:
    worker.slots.writer(0).show_read()

    assert claims_not_read(worker, HELD) == set()


def test_a_worker_that_has_read_its_reply_and_lost_no_ticket_before_keeps_its_claims(
    worker: WorkerProcess,
) -> None:
    worker.taken_reply = 0
    worker.slots.writer(0).show_read()

    assert claims_not_read(worker, HELD) == set()


def test_a_reply_that_is_read_while_somebody_looks_is_left_alone(
    worker: WorkerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = worker.channels.ended.keys

    def keys_late() -> frozenset[ClaimKey]:
        found = keys()
        worker.slots.writer(0).show_read()
        return found

    monkeypatch.setattr(worker.channels.ended, "keys", keys_late)

    assert claims_not_read(worker, HELD) == set()
