"""Tests: a supervisor whose workers are all busy rests after a commit until one of them has nothing to do."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from qml_mp.child.source import AppFacts, NamedProgram
from qml_mp.core.job import ClaimKey, Job, new_job_id
from qml_mp.ipc.bell import Bell
from qml_mp.ipc.slot import Activity, SlotView
from qml_mp.settings import ServerConfig
from qml_mp.storage.open import open_storage
from qml_mp.supervisor.loops.loop import LoopTable
from qml_mp.supervisor.parts.storage_listener import StorageListener
from qml_mp.supervisor.run import Run
from tests.unit.hand_clock import HandClock
from tests.unit.stand_ins import stand_in


@pytest.fixture
def bell() -> Iterator[Bell]:
    bell = Bell()
    yield bell
    bell.close()


def test_a_bell_is_rung_only_for_who_listens(bell: Bell) -> None:
    bell.ring()
    assert not bell.was_rung()

    bell.listen()
    bell.ring()
    bell.ring()
    assert bell.was_rung()
    assert not bell.was_rung()

    bell.stop_listening()
    bell.ring()
    assert not bell.was_rung()


def test_a_bell_that_nobody_hears_holds_up_no_worker(bell: Bell) -> None:
    bell.listen()
    os.write(bell.ringing_fd, bytes(65536))  # as much as there is room for

    bell.ring()

    while bell.was_rung():
        pass
    os.close(bell.fd)
    bell.ring()
    bell.fd = os.open(os.devnull, os.O_RDONLY)


class Supervisor:
    """Its listener, a worker that is no process, and somebody else who writes to the storage."""

    def __init__(self, url: str, clock: HandClock) -> None:
        self.clock = clock
        self.storage, self.other = open_storage(url), open_storage(url)
        self.run = Run(
            ServerConfig(worker_count=1),
            NamedProgram(spec="an:app"),
            url=url,
            facts=AppFacts(),
            clock=clock,
        )
        self.pool = self.run.pool
        self._reading, self.worker = stand_in(slots=self.pool.slots)
        self.worker.note_ready(0.0)
        self.pool._workers["w"] = self.worker
        self._slot = self.pool.slots.writer(0)
        loops = LoopTable(self.run, [], storage=self.storage, between=lambda _: None)
        self.listener = StorageListener(self.run, self.storage, loops=loops)

    def show(self, activity: Activity) -> None:
        """Of the worker."""
        key = ClaimKey(job_id=new_job_id(), claim_seq=1)
        self._slot.show(SlotView(activity=activity, key=key if activity is Activity.RUNNING else None))

    def enqueue(self) -> None:
        self.other.enqueue(Job.new("work", {}))

    def is_resting(self) -> bool:
        return self.listener.fds() == [self.pool.bell.fd]

    def was_woken(self) -> bool:
        """Since this was asked last."""
        try:
            return bool(os.read(self._reading, 4096))
        except BlockingIOError:
            return False

    def turn_when_told(self) -> None:
        """Wait for what the supervisor would wait for, and take a turn."""
        self.clock.seconds += 0.02  # it is quiet for a moment after each commit
        ready = select.select(self.listener.fds(), [], [], 60)[0]
        assert ready, "nobody told of it"
        self.listener.turn()

    def close(self) -> None:
        """All of it."""
        self.run.all_parts.close()
        self.listener.close()
        self.pool.close()
        self.worker.channels.close()
        os.close(self._reading)
        self.storage.close()
        self.other.close()


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Supervisor]:
    supervisor = Supervisor(f"sqlite:///{tmp_path / 'jobs.db'}", HandClock())
    yield supervisor
    supervisor.close()


@pytest.mark.skipif(sys.platform != "linux", reason="files tell nothing of their changes")
class TestOfASupervisor:
    def test_it_rests_after_each_commit_while_all_workers_are_busy(self, supervisor: Supervisor) -> None:
        supervisor.show(Activity.RUNNING)
        supervisor.listener.turn()
        assert supervisor.is_resting()  # it may have missed something, and has looked

        supervisor.clock.seconds = supervisor.listener.next_at()
        supervisor.listener.turn()
        assert not supervisor.is_resting()

        supervisor.enqueue()
        while not supervisor.is_resting():
            supervisor.turn_when_told()
        assert not supervisor.was_woken()

    def test_a_worker_that_has_nothing_to_do_any_more_ends_its_rest(self, supervisor: Supervisor) -> None:
        supervisor.show(Activity.RUNNING)
        supervisor.listener.turn()
        supervisor.show(Activity.IDLE)
        supervisor.pool.bell.ring()
        supervisor.turn_when_told()
        assert not supervisor.is_resting()

        supervisor.enqueue()
        while not supervisor.was_woken():
            supervisor.turn_when_told()

        assert not supervisor.is_resting()

    def test_a_commit_during_its_rest_is_seen_at_the_end_of_it(self, supervisor: Supervisor) -> None:
        supervisor.show(Activity.RUNNING)
        supervisor.listener.turn()
        supervisor.enqueue()
        supervisor.show(Activity.IDLE)

        supervisor.clock.seconds = supervisor.listener.next_at()  # nobody has rung
        supervisor.listener.turn()
        while not supervisor.was_woken():
            supervisor.turn_when_told()
