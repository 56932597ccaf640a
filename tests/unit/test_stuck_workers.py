"""Tests: a worker that hangs where no job runs is ended, and one that waits or works is not."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import timedelta

import pytest

from qml_mp.child.source import AppFacts, NamedProgram
from qml_mp.core.outcome import ProcessFacts
from qml_mp.ipc.pipe import MESSAGE_BYTES, Kind, Message, decode, send
from qml_mp.ipc.slot import Activity, SlotView
from qml_mp.settings import ServerConfig
from qml_mp.supervisor.parts.stuck import StuckWorkers
from qml_mp.supervisor.run import Run
from qml_mp.supervisor.workers.fork import fork_child, reap
from tests.processes.harness import is_stopped
from tests.unit.hand_clock import HandClock
from tests.unit.stand_ins import stand_in
from tests.until import wait_until

LOOKS = 60
WAKE = Message(kind=Kind.WAKE)


class Hanging:
    """A worker of a pool that does nothing at all, and the supervisor's looks at it."""

    def __init__(self, run: Run, clock: HandClock) -> None:
        self.run = run
        self._clock = clock
        self._stuck = StuckWorkers(run)
        self._end: ProcessFacts | None = None
        child = fork_child(_hang, ours=(), theirs=())
        self.reading, self.worker = stand_in(
            child=child, slots=run.pool.slots, ended=run.pool.ended.region(0)
        )
        self._writer = run.pool.slots.writer(0)
        self.worker.note_ready(0.0)
        run.pool._workers["w"] = self.worker

    def show(self, activity: Activity) -> None:
        self._writer.show(SlotView(activity=activity))
        self.worker.look(self._clock.monotonic())

    def look(self, *, while_it: Callable[[], object] = lambda: None, looks: int = LOOKS) -> None:
        for _ in range(looks):
            self._clock.seconds += 5.0
            while_it()
            self._stuck.turn()

    def read(self) -> list[Message]:
        """Do read the pipe, as a worker does that waits for storage."""
        try:
            return decode(os.read(self.reading, MESSAGE_BYTES * 8))
        except BlockingIOError:
            return []

    def lives(self) -> bool:
        """Also when a SIGKILL would only be on its way: what has got one is not stopped any more."""
        pid = self.worker.child.pid
        os.kill(pid, signal.SIGSTOP)
        wait_until(lambda: self.has_ended() or is_stopped(pid), what="its end or its stop")
        if not self.has_ended():
            os.kill(pid, signal.SIGCONT)
        return not self.has_ended()

    def has_ended(self) -> bool:
        self._end = self._end or reap(self.worker.child)
        return self._end is not None

    def is_killed(self) -> bool:
        wait_until(self.has_ended, what="its end")
        return self._end is not None and self._end.signal == signal.SIGKILL

    def close(self) -> None:
        if not self.has_ended():
            self.worker.child.kill()
            wait_until(self.has_ended, what="its end")
        self.worker.channels.close()
        os.close(self.reading)


def _hang() -> int:
    while True:
        signal.pause()


@pytest.fixture
def hanging(clock: HandClock) -> Iterator[Hanging]:
    run = Run(ServerConfig(), NamedProgram(spec="an:app"), url="memory://", facts=AppFacts(), clock=clock)
    with closing(run.pool):
        hanging = Hanging(run, clock)
        yield hanging
        run.pool._workers.clear()
        hanging.close()


@pytest.mark.fault(6)
@pytest.mark.parametrize("activity", [Activity.FETCHING, Activity.FINISHING])
def test_a_worker_that_hangs_before_or_after_its_jobs_is_killed(hanging: Hanging, activity: Activity) -> None:
    hanging.show(activity)

    hanging.look()

    assert hanging.is_killed()


@pytest.mark.fault(6)
def test_an_idle_worker_that_hangs_is_killed_once_there_is_a_job_for_it(hanging: Hanging) -> None:
    hanging.show(Activity.IDLE)
    hanging.look()
    assert hanging.lives()
    assert hanging.read() == []  # it was not disturbed

    send(hanging.worker.channels.pipe_fd, WAKE)
    hanging.look()

    assert hanging.is_killed()


@pytest.mark.fault(6)
def test_an_idle_worker_that_hangs_as_soon_as_it_has_read_that_there_is_a_job_is_killed(
    hanging: Hanging, clock: HandClock
) -> None:
    hanging.show(Activity.IDLE)
    hanging.worker.wake(clock.monotonic())
    assert [message.kind for message in hanging.read()] == [Kind.WAKE]

    hanging.look()

    assert hanging.is_killed()


def test_a_worker_that_waits_for_storage_is_asked_and_left_alone(hanging: Hanging) -> None:
    asked: list[Message] = []
    hanging.show(Activity.FINISHING)

    hanging.look(while_it=lambda: asked.extend(hanging.read()))

    assert {message.kind for message in asked} == {Kind.PROBE}
    assert hanging.lives()


def test_a_worker_that_shows_something_new_is_left_alone(hanging: Hanging) -> None:
    send(hanging.worker.channels.pipe_fd, WAKE)

    hanging.look(while_it=lambda: hanging.show(Activity.FETCHING))

    assert hanging.lives()


def test_a_worker_may_take_as_long_as_spans_may_take_to_be_exported(hanging: Hanging) -> None:
    hanging.run.registration.flush_timeout = timedelta(minutes=10)
    hanging.show(Activity.FETCHING)

    hanging.look()
    assert hanging.lives()
    hanging.look(looks=120)

    assert hanging.is_killed()


def test_a_worker_in_a_job_has_the_limit_of_the_job_alone(hanging: Hanging) -> None:
    hanging.show(Activity.RUNNING)
    send(hanging.worker.channels.pipe_fd, WAKE)

    hanging.look()

    assert hanging.lives()


def test_a_supervisor_that_was_stopped_itself_has_not_looked_meanwhile(
    hanging: Hanging, clock: HandClock
) -> None:
    hanging.show(Activity.FETCHING)
    hanging.look(looks=3)

    clock.seconds += 3600.0
    hanging.look(looks=3)

    assert hanging.lives()
