"""Tests: what is told of workers that died before they were ready, and when another is tried."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from signal import SIGKILL

import pytest

from qml_mp.child.source import NamedProgram
from qml_mp.core.outcome import ProcessFacts
from qml_mp.events.emitter import new_emitter
from qml_mp.processing.cancel import CancelReason
from qml_mp.supervisor.probe import Probe
from qml_mp.supervisor.workers.boots import Boots
from qml_mp.supervisor.workers.death import Death
from qml_mp.supervisor.workers.worker_process import WorkerProcess
from tests.unit.hand_clock import HandClock
from tests.unit.stand_ins import stand_in
from tests.until import wait_until

TOO_SLOW = "It was not ready in time (boot_timeout) and was killed."
DEATH = Death(
    worker_id="w", number=1, process=ProcessFacts(pid=4242, signal=SIGKILL),
    killed_for=CancelReason.SHUTDOWN, is_too_slow=True,
)  # fmt: skip


@contextmanager
def slow_worker() -> Iterator[WorkerProcess]:
    reading, worker = stand_in()
    worker.is_too_slow = True
    yield worker
    worker.channels.close()
    os.close(reading)


def test_a_replacement_that_boots_too_slowly_is_told_as_that_and_not_as_a_kill() -> None:
    boots = Boots(new_emitter())
    boots.succeeded()

    with slow_worker() as worker:
        boots.failed(worker, DEATH, old_works_on=True)

    assert boots.error == TOO_SLOW
    assert boots.trouble() == f"New workers cannot boot: {TOO_SLOW}"


def test_first_workers_that_all_boot_too_slowly_are_told_as_that() -> None:
    boots = Boots(new_emitter())

    with slow_worker() as worker:
        for _ in range(5):
            assert boots.error is None
            boots.failed(worker, DEATH, old_works_on=False)

    assert boots.error == f"5 workers in a row died while booting. {TOO_SLOW}"


def test_code_that_is_looked_at_is_not_too_slow_because_everything_stood_still(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: HandClock
) -> None:
    gate = tmp_path / "gate"
    (tmp_path / "gated_app.py").write_text(
        "from pathlib import Path\n"
        "from qml_mp import QmlApp\n"
        "from tests.until import wait_at\n"
        f"wait_at(Path({str(gate)!r}))\n"
        "app = QmlApp('memory://')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    asked = Probe(NamedProgram(spec="gated_app:app"), timeout=timedelta(minutes=1), clock=clock)

    with ExitStack() as stack:
        stack.callback(asked.end)
        asked.look()
        clock.seconds += 3600  # as of a container that was paused
        asked.look()
        gate.touch()
        facts = wait_until(asked.look, what="what the app gives")

    assert facts.url == "memory://"


def test_the_pause_doubles_up_to_its_longest_and_stays_there_for_ever() -> None:
    boots = Boots(new_emitter())
    pauses = list[float]()

    for _ in range(2000):
        boots.was_useless(100.0)
        pauses.append(boots.next_at() - 100.0)

    assert pauses[:5] == [0.5, 1.0, 2.0, 4.0, 4.5]
    assert set(pauses[5:]) == {4.5}
    assert not boots.allow_another(104.0, booting=0)
    assert boots.allow_another(104.5, booting=0)


def test_the_pause_doubles_for_workers_that_die_idle_each_soon_after_it_was_ready() -> None:
    boots = Boots(new_emitter())
    pauses, troubles = list[float](), list[str | None]()

    for _ in range(6):
        boots.succeeded()
        boots.was_useless(100.0, was_ready=True)
        pauses.append(boots.next_at() - 100.0)
        troubles.append(boots.trouble())

    assert pauses == [0.5, 1.0, 2.0, 4.0, 4.5, 4.5]
    assert troubles[:4] == 4 * [None]
    assert troubles[4] == "Workers die soon after they are ready, without a job; the log says how"


def test_the_pause_ends_with_a_worker_that_came_later_and_lives_on() -> None:
    boots = Boots(new_emitter())

    boots.was_useless(100.0, was_ready=True)
    boots.succeeded()
    boots.was_of_use(ready_at=99.0)
    before = boots.useless
    boots.was_of_use(ready_at=101.0)

    assert (before, boots.useless) == (1, 0)


def test_threads_that_bar_a_fork_last_where_they_do_so_again_and_again_whatever_died_before() -> None:
    boots = Boots(new_emitter())
    for _ in range(4):
        boots.succeeded()
        boots.was_useless(100.0, was_ready=True)

    lasting = [boots.was_barred("a thread", 100.0) for _ in range(4)]
    boots.was_useless(100.0)  # one was forked
    lasting += [boots.was_barred("a thread", 100.0) for _ in range(5)]

    assert lasting == [*8 * [False], True]
