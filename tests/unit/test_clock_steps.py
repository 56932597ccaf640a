"""Tests: when the wall clock counts as set."""

from __future__ import annotations

from contextlib import closing
from datetime import UTC, datetime, timedelta

import pytest

from qml_mp.child.source import AppFacts, NamedProgram
from qml_mp.core.job import Job
from qml_mp.core.state import StateName
from qml_mp.settings import ServerConfig
from qml_mp.storage.open import open_storage
from qml_mp.storage.store import Storage
from qml_mp.supervisor.loops.clock import ClockLoop, ClockSteps
from qml_mp.supervisor.loops.loop import Loop, LoopTable
from qml_mp.supervisor.loops.scheduler import SchedulerLoop
from qml_mp.supervisor.run import Run
from tests.unit.set_clock import SetClock

START = datetime(2026, 3, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)


@pytest.mark.fault(88)
@pytest.mark.parametrize(
    ("looks", "expected"),
    [
        pytest.param([(0, 0), (1, 1), (2, 2)], [True, False, False], id="it runs"),
        pytest.param([(0, 0), (-3600, 1), (-3599, 2)], [True, True, False], id="an hour back"),
        pytest.param([(0, 0), (172800, 1), (2, 2)], [True, False, True], id="two days ahead, and back"),
        pytest.param([(0, 0), (0.9, 1), (1.8, 2)], [True, False, False], id="slewed"),
        pytest.param([(0, 0), (3600, 1)], [True, False], id="suspended"),
    ],
)
def test_a_clock_was_set_back(looks: list[tuple[float, float]], expected: list[bool]) -> None:
    steps = ClockSteps()

    found = []
    for wall_s, monotonic in looks:
        steps.look(wall=START + timedelta(seconds=wall_s), monotonic=monotonic)
        found.append(steps.went_back)
        steps.forget()

    assert found == expected


def test_a_step_is_remembered_until_it_is_forgotten() -> None:
    steps = ClockSteps()
    steps.forget()
    for wall_s, monotonic in ((0, 0), (-3600, 1), (-3599, 2), (-3598, 3)):
        steps.look(wall=START + timedelta(seconds=wall_s), monotonic=monotonic)

    assert steps.went_back


@pytest.mark.parametrize(
    ("looks", "expected"),
    [
        pytest.param([(0, 0), (1, 1), (2, 2)], [True, False, False], id="it runs"),
        pytest.param([(0, 0), (3600, 1), (3601, 2)], [True, True, False], id="an hour ahead"),
        pytest.param([(0, 0), (-3600, 1), (2, 2)], [True, False, True], id="back, and ahead again"),
        pytest.param([(0, 0), (1.1, 1), (2.2, 2)], [True, False, False], id="slewed"),
    ],
)
def test_a_clock_was_set_ahead(looks: list[tuple[float, float]], expected: list[bool]) -> None:
    steps = ClockSteps()

    found = []
    for wall_s, monotonic in looks:
        steps.look(wall=START + timedelta(seconds=wall_s), monotonic=monotonic)
        found.append(steps.went_ahead)

    assert found == expected


class Somebody(Loop):
    """Sets the clock two hours ahead, once: between the first looks of the loops beside it."""

    name = "somebody"

    def __init__(self, run: Run, clock: SetClock) -> None:
        super().__init__(run)
        self._clock = clock

    def tick(self, storage: Storage) -> None:
        self._clock.is_set(2 * HOUR)


@pytest.mark.fault(49)
def test_what_a_step_makes_due_before_the_first_look_at_the_clock_does_not_wait() -> None:
    clock = SetClock()
    with closing(open_storage("memory://", clock=clock)) as storage:
        source = NamedProgram(spec="an:app")
        run = Run(ServerConfig(), source, url=storage.url, facts=AppFacts(), clock=clock)
        scheduler = SchedulerLoop(run, interval=HOUR, is_listening=lambda: True)
        steps = ClockLoop(run, on_one_machine=True, due_by_it=[scheduler])
        loops = [Somebody(run, clock), steps, scheduler]
        table = LoopTable(run, loops, storage=storage, between=lambda _: None)
        job_id = storage.enqueue(Job.new("work", at=clock.now() + HOUR))
        with closing(run.pool):
            table.turn()
            clock.passes(1)
            table.turn()

        job = storage.get(job_id)
        assert job is not None
        assert job.state_name is StateName.ENQUEUED
