"""Tests: when loops are due, beside others that fail, by a clock of the test's own."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

import pytest

from qml_mp.errors import StorageUnavailable, StorageUnreachable
from qml_mp.storage.open import open_storage
from qml_mp.storage.protocol import Storage
from qml_mp.supervisor.loops.loop import Tick, TickTable

SECOND = timedelta(seconds=1)


class HandClock:
    """Stands until it is moved."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.seconds)

    def monotonic(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def storage() -> Iterator[Storage]:
    storage = open_storage("memory://")
    yield storage
    storage.close()


def table(storage: Storage, clock: HandClock, **bodies: Callable[[], None]) -> TickTable:
    """Loops that are due every second, in this order."""

    def tick(name: str, body: Callable[[], None]) -> Tick:
        return Tick(name=name, interval=SECOND, body=lambda _: body())

    ticks = [tick(name, body) for name, body in bodies.items()]
    return TickTable(ticks, storage=storage, clock=clock, rng=random.Random(1))


def levels(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.levelname for record in caplog.records]


class Loop:
    """A loop's body: counts its turns, and raises as long as it has an error to raise."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.turns = 0

    def __call__(self) -> None:
        self.turns += 1
        if self.error is not None:
            raise self.error


def test_a_loop_that_fails_takes_no_turn_from_those_behind_it(storage: Storage, clock: HandClock) -> None:
    failing, healthy = Loop(StorageUnavailable("locked")), Loop()
    loops = table(storage, clock, failing=failing, healthy=healthy)

    for _ in range(60):
        loops.run_due()
        clock.seconds += 1

    assert healthy.turns == 60
    assert 10 <= failing.turns <= 30  # its own pauses have grown to some seconds
    assert not loops.storage_is_down


def test_a_loop_that_is_hastened_by_news_keeps_its_pause_when_it_fails(
    storage: Storage, clock: HandClock
) -> None:
    loop = Loop(StorageUnavailable("locked"))
    tick = Tick(name="one", interval=SECOND, body=lambda _: loop(), hasten_after=timedelta(0))
    loops = TickTable([tick], storage=storage, clock=clock, rng=random.Random(1))

    for _ in range(1000):
        loops.hasten()
        loops.run_due()
        clock.seconds += 0.01

    assert 5 <= loop.turns <= 8  # 0.1, 0.2, 0.4, 0.8, 1.6, 3.2 s and as much again by chance


def test_a_storage_that_cannot_be_reached_is_asked_again_before_any_loop_runs(
    storage: Storage, clock: HandClock
) -> None:
    first, second, without_storage = Loop(), Loop(StorageUnreachable("no reply")), Loop()
    loops = table(storage, clock, first=first, second=second, without_storage=without_storage)

    loops.run_due()
    assert (first.turns, second.turns, without_storage.turns) == (1, 1, 0)
    assert loops.storage_is_down
    loops.run_due()
    assert (first.turns, second.turns, without_storage.turns) == (1, 1, 0)

    second.error = None
    clock.seconds += 1
    loops.run_due()
    assert (first.turns, second.turns, without_storage.turns) == (2, 2, 1)
    assert not loops.storage_is_down


def test_the_log_has_one_line_for_each_change_of_state(
    storage: Storage, clock: HandClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="qml_mp")
    loop = Loop(StorageUnavailable("locked"))
    loops = table(storage, clock, cleanup=loop)

    for error in (*[loop.error] * 20, *[StorageUnavailable("the disk is full")] * 20, None, None):
        loop.error = error
        clock.seconds += 10
        loops.run_due()

    assert levels(caplog) == ["WARNING", "WARNING", "INFO"]
    assert [record.getMessage().partition(" and is tried")[0] for record in caplog.records] == [
        "The cleanup loop failed",
        "The cleanup loop failed",
        "The cleanup loop works again",
    ]


def test_the_log_has_one_line_for_a_storage_that_cannot_be_reached_and_one_for_its_return(
    storage: Storage, clock: HandClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="qml_mp")
    asking, not_asking = Loop(StorageUnreachable("no reply")), Loop()
    loops = table(storage, clock, not_asking=not_asking, asking=asking)

    for _ in range(3):
        clock.seconds += 10
        loops.run("asking")
    asking.error = None
    clock.seconds += 10
    loops.run_due()

    assert [record.getMessage().partition(" and is tried")[0] for record in caplog.records] == [
        "Storage cannot be reached",
        "Storage answers again",
    ]


def test_a_defect_in_a_loop_is_told_with_its_traceback_and_ends_no_other(
    storage: Storage, clock: HandClock, caplog: pytest.LogCaptureFixture
) -> None:
    broken, healthy = Loop(ZeroDivisionError("a defect")), Loop()
    loops = table(storage, clock, broken=broken, healthy=healthy)

    loops.run_due()

    assert healthy.turns == 1
    assert caplog.records[0].exc_info is not None
