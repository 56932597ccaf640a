"""Tests: a cancel of a job that a worker holds and has not begun reaches it, and ends no other job."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from qml_mp.child.commands import Commands
from qml_mp.core.job import ClaimKey, new_job_id
from qml_mp.ipc.pipe import Kind, Message, PipeReader, send
from qml_mp.ipc.slot import Activity, SlotTable, SlotView
from qml_mp.processing.cancel import CancelReason
from qml_mp.supervisor.workers.ladder import Plan
from qml_mp.supervisor.workers.worker_process import WorkerProcess
from tests.unit.stand_ins import stand_in


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A worker's commands, and the worker as its supervisor sees it."""

    commands: Commands
    process: WorkerProcess
    slots: SlotTable


@pytest.fixture
def pair() -> Iterator[Pair]:
    slots = SlotTable(1)
    reading, process = stand_in(slots=slots)
    yield Pair(commands=Commands(PipeReader(reading)), process=process, slots=slots)
    process.channels.close()
    os.close(reading)


def a_key() -> ClaimKey:
    return ClaimKey(job_id=new_job_id(), claim_seq=1)


def a_plan() -> Plan:
    return Plan(reason=CancelReason.CANCELLED, ask_at=1.0, interrupt_at=2.0, kill_at=3.0)


def test_the_worker_learns_at_once_of_a_cancel_of_what_it_has_not_begun(pair: Pair) -> None:
    running, held = a_key(), a_key()
    pair.slots.writer(0).show(SlotView(activity=Activity.RUNNING, key=running))
    pair.process.look(0.0)

    cancel = pair.commands.attend_to(running)
    assert pair.process.cancel(held, a_plan())
    assert not cancel.is_cancelled
    pair.commands.attend_to_nothing()

    assert pair.commands.take_early_cancel(held) == "cancelled from outside"
    assert pair.commands.take_early_cancel(held) is None
    assert pair.commands.take_early_cancel(running) is None


def test_each_of_several_cancels_has_its_ladder_and_begins_it_once(pair: Pair) -> None:
    keys = [a_key() for _ in range(3)]

    assert [pair.process.cancel(key, a_plan()) for key in keys] == [True] * 3

    assert [pair.process.cancel(key, a_plan()) for key in keys] == [False] * 3
    assert all(pair.process.cancel_of(key) == a_plan() for key in keys)
    assert pair.process.cancel_of(a_key()) is None


def test_a_cancel_that_the_supervisor_repeats_once_the_job_runs_reaches_it(pair: Pair) -> None:
    key = a_key()

    cancel = pair.commands.attend_to(key)
    pair.process.cancel(key, a_plan())

    assert cancel.reason is CancelReason.CANCELLED


def test_cancels_of_claims_that_have_ended_are_not_kept_for_ever(pair: Pair) -> None:
    keys = [a_key() for _ in range(300)]

    for key in keys:
        send(
            pair.process.channels.pipe_fd,
            Message(kind=Kind.CANCEL, key=key, reason=CancelReason.CANCELLED),
        )
        pair.commands.look()

    assert pair.commands.take_early_cancel(keys[0]) is None
    assert pair.commands.take_early_cancel(keys[-1]) is not None
