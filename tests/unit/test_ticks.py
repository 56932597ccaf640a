"""Tests: when loops are due, beside others that fail, by a clock of the test's own."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from datetime import timedelta
from functools import partial

import pytest

from qml_mp.child.source import AppFacts, NamedProgram
from qml_mp.core.outcome import ProcessFacts
from qml_mp.errors import StorageUnavailable, StorageUnreachable
from qml_mp.events.retrying import Retrying
from qml_mp.settings import ServerConfig
from qml_mp.storage.store import Storage
from qml_mp.supervisor.loops.description import DescriptionLoop
from qml_mp.supervisor.loops.loop import Loop, LoopTable
from qml_mp.supervisor.loops.settle import SettleLoop
from qml_mp.supervisor.membership import stay
from qml_mp.supervisor.parts.server_report import ServerReports
from qml_mp.supervisor.run import Run
from qml_mp.supervisor.workers.death import Death
from tests.storage.helpers import register, sqlite_connection
from tests.unit.hand_clock import HandClock

SECOND = timedelta(seconds=1)
MakeTable = Callable[..., LoopTable]


@pytest.fixture
def reaching(run: Run) -> Retrying:
    return run.reaching


@pytest.fixture
def run(storage: Storage, clock: HandClock) -> Iterator[Run]:
    source = NamedProgram(spec="an:app")
    run = Run(ServerConfig(), source, url=storage.url, facts=AppFacts(), clock=clock, rng=random.Random(1))
    with closing(run.pool):
        yield run


class Counting(Loop):
    """Is due every second, counts its ticks, and raises as long as it has an error to raise."""

    interval = SECOND

    def __init__(
        self,
        run: Run,
        error: Exception | None = None,
        *,
        name: str = "one",
        hasten_after: timedelta | None = None,
    ) -> None:
        self.name = name
        super().__init__(run)
        self.hasten_after = hasten_after
        self.error = error
        self.ticks = 0

    def tick(self, storage: Storage) -> None:
        self.ticks += 1
        if self.error is not None:
            raise self.error


@pytest.fixture
def counting(run: Run) -> Callable[..., Counting]:
    return partial(Counting, run)


@pytest.fixture
def table(run: Run, storage: Storage) -> MakeTable:
    """A table of loops, in this order."""

    def make(*loops: Loop) -> LoopTable:
        return LoopTable(run, loops, storage=storage, between=lambda _: None)

    return make


def levels(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.levelname for record in caplog.records]


def test_a_loop_that_fails_takes_no_turn_from_those_behind_it(
    counting: Callable[..., Counting], table: MakeTable, clock: HandClock, reaching: Retrying
) -> None:
    failing, healthy = counting(StorageUnavailable("locked")), counting()
    loops = table(failing, healthy)

    for _ in range(60):
        loops.turn()
        clock.seconds += 1

    assert healthy.ticks == 60
    assert 20 <= failing.ticks <= 40  # its own pauses have grown to more than a second
    assert not reaching.is_failing


def test_a_loop_that_is_hastened_by_commits_keeps_its_pause_when_it_fails(
    counting: Callable[..., Counting], table: MakeTable, clock: HandClock
) -> None:
    loop = counting(StorageUnavailable("locked"), hasten_after=timedelta(0))
    loops = table(loop)

    for _ in range(1000):
        loops.hasten()
        loops.turn()
        clock.seconds += 0.01

    assert 8 <= loop.ticks <= 14  # 0.1, 0.2, 0.4, 0.8, 1, 1 s … and half as much again by chance


@pytest.fixture
def settling(
    run: Run, storage: Storage, clock: HandClock, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., SettleLoop]:
    """Has these workers to settle, which are dead. Storage takes a second for each, as a slow one does, or
    one in which somebody has locked their rows; it refuses some."""
    register(storage, "server#1")
    settling, remove = SettleLoop(run), storage.deregister_worker

    def make(*workers: str, refused: Sequence[str] = ()) -> SettleLoop:
        def remove_slowly(worker_id: str) -> object:
            clock.seconds += 1
            if worker_id in refused:
                raise StorageUnavailable("locked")
            return remove(worker_id)

        monkeypatch.setattr(storage, "deregister_worker", remove_slowly)
        for worker_id in workers:
            settling.remember(Death(worker_id=worker_id, number=1, process=ProcessFacts(pid=1)))
        return settling

    return make


@pytest.mark.fault(82)
def test_dead_workers_that_are_settled_slowly_leave_the_other_loops_their_turn(
    settling: Callable[..., SettleLoop], counting: Callable[..., Counting], table: MakeTable
) -> None:
    loop, heartbeat = settling("a", "b", "c"), counting()
    loops = table(loop, heartbeat)

    seen = []
    for _ in range(3):
        loops.turn()
        seen.append((loop.count, heartbeat.ticks))

    assert seen == [(2, 1), (1, 2), (0, 3)]


@pytest.mark.fault(43)
def test_dead_workers_that_storage_refuses_slowly_leave_the_others_their_turn(
    settling: Callable[..., SettleLoop], table: MakeTable
) -> None:
    """Longer than the pause before each is tried again."""
    loop = settling("a", "b", "c", "d", refused=["a", "b", "c"])
    loops = table(loop)

    for _ in range(4):
        loops.turn()

    assert loop.unsettled_ids == {"a", "b", "c"}


@pytest.mark.fault(82)
def test_a_server_that_stays_in_the_registry_settles_all_dead_workers_however_slowly(
    settling: Callable[..., SettleLoop], storage: Storage
) -> None:
    """It has one look: no other loop waits for its turn."""
    loop = settling("a", "b", "c", "d")

    stay(storage, settling=loop)

    assert loop.count == 0


def test_a_dead_worker_that_cannot_be_settled_is_told_as_a_loop_that_fails(
    run: Run, storage: Storage, table: MakeTable, clock: HandClock
) -> None:
    """Until it is settled; that another could be is no success of the whole."""
    refused, other = "refused", "other"
    register(storage, "server#1", refused, other)
    with sqlite_connection(storage).write() as connection:
        connection.execute(
            f"CREATE TRIGGER no BEFORE DELETE ON qml_workers WHEN OLD.id = '{refused}'"
            " BEGIN SELECT RAISE(ABORT, 'no'); END"
        )
    settling = SettleLoop(run)
    for worker_id in (refused, other):
        settling.remember(Death(worker_id=worker_id, number=1, process=ProcessFacts(pid=1)))
    loops, reports = table(settling), ServerReports(run, loops=[settling])
    clock.seconds = 5.0

    for _ in range(3):
        loops.turn()
        [told] = reports.make().loops
        clock.seconds += 60

    assert settling.unsettled_ids == {refused}
    assert (told.failing_since, told.succeeded_at) == (5.0, None)

    with sqlite_connection(storage).write() as connection:
        connection.execute("DROP TRIGGER no")
    loops.turn()

    [told] = reports.make().loops
    assert settling.unsettled_ids == set()
    assert (told.failing_since, told.succeeded_at is None) == (None, False)


def test_a_storage_that_cannot_be_reached_is_asked_again_before_any_loop_runs(
    counting: Callable[..., Counting], table: MakeTable, clock: HandClock, reaching: Retrying
) -> None:
    first, second, without_storage = counting(), counting(StorageUnreachable("no reply")), counting()
    loops = table(first, second, without_storage)

    loops.turn()
    assert (first.ticks, second.ticks, without_storage.ticks) == (1, 1, 0)
    assert reaching.is_failing
    loops.turn()
    assert (first.ticks, second.ticks, without_storage.ticks) == (1, 1, 0)

    second.error = None
    clock.seconds += 1
    loops.turn()
    assert (first.ticks, second.ticks, without_storage.ticks) == (2, 2, 1)
    assert not reaching.is_failing


def test_no_loop_runs_after_the_one_during_which_a_stop_has_left_no_time_for_storage(
    counting: Callable[..., Counting], table: MakeTable, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = counting(), counting()
    loops = table(first, second)
    monkeypatch.setattr(first, "tick", lambda _: run.stop.begin(now=True, why="a test"))

    loops.turn()

    assert second.ticks == 0


def test_the_log_has_one_line_for_each_change_of_state(
    counting: Callable[..., Counting], table: MakeTable, clock: HandClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="qml_mp")
    loop = counting(StorageUnavailable("locked"), name="cleanup")
    loops = table(loop)

    for error in (*[loop.error] * 20, *[StorageUnavailable("the disk is full")] * 20, None, None):
        loop.error = error
        clock.seconds += 10
        loops.turn()

    assert levels(caplog) == ["WARNING", "WARNING", "INFO"]
    assert [record.getMessage().partition(" and is tried")[0] for record in caplog.records] == [
        "The cleanup loop failed",
        "The cleanup loop failed",
        "The cleanup loop works again",
    ]


def test_the_log_has_one_line_for_a_storage_that_cannot_be_reached_and_one_for_its_return(
    counting: Callable[..., Counting],
    table: MakeTable,
    storage: Storage,
    clock: HandClock,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level(logging.INFO, logger="qml_mp")
    asking, not_asking = counting(StorageUnreachable("no reply")), counting()
    loops = table(not_asking, asking)

    def refuse() -> None:
        raise StorageUnreachable("no reply")

    with monkeypatch.context() as patch:
        patch.setattr(storage, "list_servers", refuse)
        for _ in range(3):
            clock.seconds += 10
            loops.turn()
    asking.error = None
    clock.seconds += 10
    loops.turn()

    assert [record.getMessage().partition(" and is tried")[0] for record in caplog.records] == [
        "Storage cannot be reached",
        "Storage answers again",
    ]


def test_a_defect_in_a_loop_is_told_with_its_traceback_and_ends_no_other(
    counting: Callable[..., Counting], table: MakeTable, caplog: pytest.LogCaptureFixture
) -> None:
    broken, healthy = counting(ZeroDivisionError("a defect")), counting()

    table(broken, healthy).turn()

    assert healthy.ticks == 1
    assert caplog.records[0].exc_info is not None


def test_a_server_that_goes_on_as_another_tells_its_timeout_at_once(
    run: Run, storage: Storage, table: MakeTable
) -> None:
    loops = table(DescriptionLoop(run, others=[]))
    run.registration.register(storage)
    loops.turn()

    run.registration.renew_id()
    run.registration.register(storage)
    loops.turn()

    assert storage.told_timeouts()[run.registration.id] == timedelta(minutes=1)
