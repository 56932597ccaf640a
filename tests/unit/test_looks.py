"""Supervisor: what ends the wait between two turns of everybody, and what is done meanwhile."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from qml_mp.clock import SystemClock
from qml_mp.core.job import ClaimKey
from qml_mp.core.outcome import RetryWhenKilled
from qml_mp.ipc.pipe import Kind, PipeReader, open_pipe
from qml_mp.ipc.slot import SlotTable, packed_terms
from qml_mp.ipc.tickets import TicketPipe
from qml_mp.supervisor.looks import Looks
from qml_mp.supervisor.loops.held_claims import HeldClaims
from qml_mp.supervisor.part import Part, Parts
from qml_mp.supervisor.parts.job_limits import Pusher
from qml_mp.supervisor.workers.ladder import Graces
from qml_mp.supervisor.workers.worker_process import WorkerProcess

RUNNING = ClaimKey(job_id="01890000-0000-7000-8000-000000000001", claim_seq=1)
HELD = ClaimKey(job_id="01890000-0000-7000-8000-000000000002", claim_seq=1)
LONG_S = 60.0


class Other(Part):
    """Any other part, which wants a turn at an instant."""

    def __init__(self) -> None:
        self.at = SystemClock().monotonic() + LONG_S
        self.turns = 0

    def next_at(self) -> float:
        return self.at

    def turn(self) -> None:
        self.turns += 1


class Scene:
    """A worker in a job, that holds another claim behind it and was looked at."""

    def __init__(self, tickets: TicketPipe, reader: PipeReader, writing_fd: int) -> None:
        slots = SlotTable(1)
        self.slot = slots.writer(0)
        self.reader = reader
        channels: Any = SimpleNamespace(
            tickets=tickets, pipe_fd=writing_fd, ended=SimpleNamespace(has_unwritten=False)
        )
        child: Any = SimpleNamespace(pid=os.getpid())
        self.worker = WorkerProcess(
            number=1, worker_id="w", child=child, channels=channels, slots=slots, index=0, forked_at=0.0
        )
        long = timedelta(seconds=LONG_S)
        run: Any = SimpleNamespace(
            pool=[self.worker],
            clock=SystemClock(),
            stop=SimpleNamespace(plan=None, has_begun=False),
            graces=Graces(cancel_grace=long, term_grace=long, shutdown_timeout=long),
            all_parts=Parts(),
            registration=SimpleNamespace(flush_timeout=timedelta()),
        )
        held, limits = HeldClaims(run), Parts()
        limits.add(Pusher(run))
        self.other = Other()
        run.all_parts.add(limits, held, self.other)
        self.looks = Looks(run, held=held, limits=limits)
        self.run(limit=timedelta(hours=1))
        assert tickets.write([HELD]) == 1
        self.worker.look(run.clock.monotonic())
        held.turn()

    def run(self, *, limit: timedelta, in_s: float = 0.0) -> None:
        """The worker says that it begins a job, now or in so long; below 0: that it has begun."""
        terms = packed_terms(method="any", limit=limit, retry=RetryWhenKilled(), max_crashes=None)
        now_ns = int((SystemClock().monotonic() + in_s) * 1e9)
        self.slot.show_running(RUNNING, since_ns=now_ns, terms=terms)

    @property
    def is_before_the_other(self) -> bool:
        return SystemClock().monotonic() < self.other.at


@pytest.fixture
def scene() -> Iterator[Scene]:
    tickets = TicketPipe()
    reading, writing = open_pipe()
    yield Scene(tickets, PipeReader(reading), writing)
    tickets.close()
    os.close(reading)
    os.close(writing)


def test_what_is_held_behind_a_long_job_is_taken_before_anybody_else_has_a_turn(scene: Scene) -> None:
    scene.looks.wait()

    assert scene.worker.taken == {HELD}
    assert scene.is_before_the_other
    assert scene.other.turns == 0


def test_a_time_limit_that_has_passed_is_told_at_the_same_look(scene: Scene) -> None:
    scene.run(limit=timedelta(milliseconds=1), in_s=-0.002)  # so that the first look comes after it

    scene.looks.wait()

    assert [message.kind for message in scene.reader.read()] == [Kind.CANCEL]
    assert scene.is_before_the_other


def test_a_worker_that_is_used_up_ends_the_wait(scene: Scene) -> None:
    scene.slot.used_up = True
    scene.slot.jobs_done += 1  # or, when the look comes late, it would be taken for stuck
    scene.run(limit=timedelta(hours=1), in_s=LONG_S)  # or what is held would be taken

    scene.looks.wait()

    assert scene.worker.last.used_up
    assert not scene.worker.taken
    assert scene.is_before_the_other


def test_the_instant_of_another_part_ends_it(scene: Scene) -> None:
    scene.other.at = SystemClock().monotonic()

    scene.looks.wait()

    assert not scene.worker.taken
