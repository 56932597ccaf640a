"""Tests: what a worker of short jobs holds is compared with what it shows, at little cost."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta
from typing import Any, cast

import pytest

from qml_mp.core.job import Claim
from qml_mp.core.outcome import Outcome, Success
from qml_mp.core.payload import MAX_PAYLOAD_BYTES
from qml_mp.ipc import ended
from qml_mp.ipc.pipe import PipeReader
from qml_mp.ipc.slot import Activity, SlotView
from qml_mp.storage.store import Storage
from qml_mp.storage.values import CancelRequest
from qml_mp.supervisor.loops.cancel import CancelLoop
from qml_mp.supervisor.loops.settle import SettleLoop
from qml_mp.supervisor.loops.unshown_claims import UnshownClaimsLoop
from qml_mp.supervisor.run import Run
from qml_mp.supervisor.workers.worker_process import WorkerProcess
from tests.storage.helpers import DONE, KEEP, claim_new
from tests.unit.hand_clock import HandClock
from tests.unit.processor_case import keys_of
from tests.unit.stand_ins import stand_in, stand_in_of

TOO_LARGE = Success(result="x" * 2 * MAX_PAYLOAD_BYTES, duration=timedelta())


@pytest.fixture
def worker(run: Run) -> Iterator[WorkerProcess]:
    with stand_in_of(run) as worker:
        yield worker


@pytest.fixture
def loop(run: Run) -> UnshownClaimsLoop:
    return UnshownClaimsLoop(run, settling=SettleLoop(run))


@pytest.fixture
def claims(storage: Storage, run: Run) -> list[Claim]:
    return [claim_new(storage, worker="w", server=run.registration.id) for _ in range(4)]


def test_only_what_is_neither_in_hand_nor_ended_is_asked_for(
    loop: UnshownClaimsLoop,
    storage: Storage,
    worker: WorkerProcess,
    claims: list[Claim],
    caplog: pytest.LogCaptureFixture,
) -> None:
    in_hand, has_ended, has_ended_large, unknown = claims
    assert worker.channels.ended.append(has_ended.key, DONE)
    assert not worker.channels.ended.append(has_ended_large.key, TOO_LARGE)
    worker.slots.writer(0).show(SlotView(activity=Activity.RUNNING, key=in_hand.key))

    loop.tick(storage)
    assert not caplog.messages  # it may just have begun
    loop.tick(storage)
    loop.tick(storage)

    assert caplog.messages == [
        f"Worker 1 does not show its claim of job {unknown.job.id}; it is told to look"
    ]
    assert keys_of(caplog.records[0]) == (unknown.job.id, unknown.job.method, 1, "w")


def test_no_outcome_is_made_of_what_has_ended(
    loop: UnshownClaimsLoop,
    storage: Storage,
    worker: WorkerProcess,
    claims: list[Claim],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With large results that takes longer, for all claims of all workers, than the pause between looks."""
    made: list[bytes] = []

    def make(body: bytes, *, is_plain: bool, ran_us: int) -> Outcome:
        made.append(body)
        return DONE

    monkeypatch.setattr(ended, "outcome_of", make)
    for claim in claims[1:]:
        assert worker.channels.ended.append(claim.key, DONE)
    worker.slots.writer(0).show(SlotView(activity=Activity.RUNNING, key=claims[0].key))

    loop.tick(storage)
    loop.tick(storage)

    assert not made
    worker.channels.ended.read()
    assert len(made) == len(claims[1:])


def test_a_worker_that_still_does_not_show_it_is_told_again_and_the_log_is_not(
    loop: UnshownClaimsLoop,
    storage: Storage,
    run: Run,
    clock: HandClock,
    claims: list[Claim],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Storage may have refused to take it back, or somebody has locked its row."""
    run.clock = clock
    with ExitStack() as stack:
        reading, worker = stand_in()
        stack.callback(os.close, reading)
        stack.callback(worker.channels.close)
        stack.callback(run.pool._workers.clear)
        run.pool._workers["w"] = worker
        worker.slots.writer(0).show(SlotView(activity=Activity.RUNNING, key=claims[0].key))
        told, counts = PipeReader(reading), list[int]()
        for clock.seconds in (0.0, 5.0, 10.0, 60.0, 65.0, 70.0):
            loop.tick(storage)
            counts.append(len(told.read()))

    assert counts == [0, 1, 0, 0, 1, 0]
    assert len(caplog.messages) == 3


def test_that_a_job_is_being_cancelled_is_told_with_its_attempt(
    storage: Storage, run: Run, worker: WorkerProcess, claims: list[Claim], caplog: pytest.LogCaptureFixture
) -> None:
    in_hand, *_ = claims
    worker.slots.writer(0).show(SlotView(activity=Activity.RUNNING, key=in_hand.key))
    worker.look(0.0)
    storage.request_cancel(in_hand.job.id, reason="not wanted", retention=KEEP)

    with caplog.at_level(logging.INFO):
        CancelLoop(run).tick(storage)

    [told] = caplog.records
    assert told.message == f"Cancelling job {in_hand.job.id}"
    assert keys_of(told) == (in_hand.job.id, in_hand.job.method, 1, "w")


class Waiting:
    """The storage, which is waited for so long that a worker dies meanwhile and is reaped."""

    def __init__(self, storage: Storage, run: Run) -> None:
        self._storage = storage
        self._run = run

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)

    def cancel_requests(self, server_id: str) -> list[CancelRequest]:
        found = self._storage.cancel_requests(server_id)
        self._run.pool._workers.clear()
        return found


def test_a_cancel_is_not_written_to_the_pipe_of_a_worker_that_was_reaped_meanwhile(
    storage: Storage, run: Run, worker: WorkerProcess, claims: list[Claim]
) -> None:
    in_hand, held, *_ = claims
    worker.slots.writer(0).show(SlotView(activity=Activity.RUNNING, key=in_hand.key))
    worker.look(0.0)
    storage.request_cancel(held.job.id, reason="not wanted", retention=KEEP)

    CancelLoop(run).tick(cast(Any, Waiting(storage, run)))

    assert worker.cancel_of(held.key) is None
