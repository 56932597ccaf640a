"""Tests: what is told of workers that died before they were ready, and when another is tried."""

from __future__ import annotations

from qml_mp.events.emitter import new_emitter
from qml_mp.supervisor.workers.boots import Boots


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


def test_the_pause_ends_with_a_worker_that_came_later_and_lives_on() -> None:
    boots = Boots(new_emitter())

    boots.was_useless(100.0, was_ready=True)
    boots.succeeded()
    boots.was_of_use(ready_at=99.0)
    before = boots.useless
    boots.was_of_use(ready_at=101.0)

    assert (before, boots.useless) == (1, 0)
