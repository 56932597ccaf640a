"""Tests: a worker that hangs where no job runs is ended. A program that does nothing stands for one."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import closing

import pytest

from qml_mp.child.source import AppFacts, NamedProgram
from qml_mp.ipc.slot import Activity, SlotView
from qml_mp.settings import ServerConfig
from qml_mp.supervisor.parts.stuck import StuckWorkers
from qml_mp.supervisor.run import Run
from qml_mp.supervisor.workers.fork import Child
from tests.unit.hand_clock import HandClock
from tests.unit.stand_ins import stand_in
from tests.until import PATIENCE_S


class Hanging:
    """A worker of a pool that shows this and then nothing new, and the supervisor's looks at it."""

    def __init__(self, run: Run, clock: HandClock, pid: int) -> None:
        self._run, self._clock = run, clock
        self._stuck = StuckWorkers(run)
        child = Child(pid=pid, pidfd=None, started_ticks=0)
        self._reading, self._worker = stand_in(
            child=child, slots=run.pool.slots, ended=run.pool.ended.region(0)
        )
        self._worker.note_ready(0.0)
        run.pool._workers["w"] = self._worker

    def show(self, activity: Activity) -> None:
        self._run.pool.slots.writer(0).show(SlotView(activity=activity))
        self._worker.look(self._clock.monotonic())

    def look(self, times: int) -> None:
        for _ in range(times):
            self._clock.seconds += 5.0
            self._stuck.turn()

    def close(self) -> None:
        self._run.pool._workers.clear()
        self._worker.channels.close()
        os.close(self._reading)


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process
        process.kill()


@pytest.fixture
def hanging(clock: HandClock, process: subprocess.Popen[bytes]) -> Iterator[Hanging]:
    run = Run(ServerConfig(), NamedProgram(spec="an:app"), url="memory://", facts=AppFacts(), clock=clock)
    with closing(run.pool), closing(Hanging(run, clock, process.pid)) as hanging:
        yield hanging


@pytest.mark.fault(6)
@pytest.mark.parametrize("activity", [Activity.FETCHING, Activity.FINISHING])
def test_a_worker_that_hangs_before_or_after_its_jobs_is_killed_and_not_for_the_looks_that_nobody_made(
    hanging: Hanging, clock: HandClock, process: subprocess.Popen[bytes], activity: Activity
) -> None:
    hanging.show(activity)
    hanging.look(3)
    clock.seconds += 3600.0  # the supervisor was stopped itself
    hanging.look(3)
    assert process.poll() is None

    hanging.look(60)

    assert process.wait(PATIENCE_S) == -signal.SIGKILL
