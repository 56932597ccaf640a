"""Tests of the storage and the loops on it: what is due is made runnable, whatever else goes on."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest

from qml_mp.child.source import AppFacts, NamedProgram
from qml_mp.core.job import Job
from qml_mp.core.state import StateName
from qml_mp.settings import ServerConfig
from qml_mp.storage.open import open_storage
from qml_mp.storage.store import Storage
from qml_mp.supervisor.loops.loop import Loop, LoopTable
from qml_mp.supervisor.loops.scheduler import SchedulerLoop
from qml_mp.supervisor.run import Run
from qml_mp.supervisor.urgent import STORAGE_PATIENCE
from tests.storage.conftest import Raw
from tests.storage.helpers import DONE, HOUR, KEEP, fetch, in_an_hour, in_children, open_patiently

MANY = 10_000
INTERVAL = timedelta(seconds=30)
POLLING = timedelta(seconds=20)
MakeScheduler = Callable[..., SchedulerLoop]


@pytest.fixture
def scheduler() -> Iterator[MakeScheduler]:
    """Makes the loop of a server that has this storage."""
    config, source = ServerConfig(polling_interval=POLLING), NamedProgram(spec="an:app")
    with ExitStack() as stack:

        def make(storage: Storage, *, is_listening: bool = True) -> SchedulerLoop:
            run = Run(config, source, url=storage.url, facts=AppFacts(), rng=random.Random(1))
            stack.enter_context(closing(run.pool))
            return SchedulerLoop(run, interval=INTERVAL, is_listening=lambda: is_listening)

        yield make


def make_due(raw: Raw) -> None:
    raw.age("jobs", "run_at", 2 * HOUR)


def counts(storage: Storage) -> tuple[int, int]:
    """How many jobs are Scheduled, and how many Enqueued."""
    found = storage.job_counts()
    return found[StateName.SCHEDULED], found[StateName.ENQUEUED]


def test_ten_thousand_that_are_due_at_one_instant_are_made_runnable_in_bounded_batches(
    storage: Storage, raw: Raw, scheduler: MakeScheduler
) -> None:
    storage.enqueue_many(Job.new("work", at=in_an_hour()) for _ in range(MANY))
    make_due(raw)
    loop, left = scheduler(storage), [MANY]
    sooner: list[timedelta | None] = [timedelta()]

    while sooner[-1] == timedelta():
        sooner.append(loop.tick(storage))
        left.append(counts(storage)[0])

    assert left[-1] == 0
    assert sooner[-1] is None
    assert max(before - after for before, after in pairwise(left)) <= 500
    assert len(left) <= 101


def test_several_schedulers_promote_each_job_once(
    url: str, storage: Storage, raw: Raw, tmp_path: Path
) -> None:
    storage.enqueue_many(Job.new("work", at=in_an_hour()) for _ in range(2000))
    make_due(raw)
    storage.close()

    def promote(place: int) -> Callable[[], None]:
        def until_nothing_waits() -> None:
            with closing(open_patiently(url)) as mine:
                promoted = 0
                while (batch := mine.promote_due(limit=100)).next_due_in is not None or batch.count:
                    promoted += batch.count
            (tmp_path / f"promoted-{place}").write_text(str(promoted))

        return until_nothing_waits

    statuses = in_children([promote(place) for place in range(3)])

    assert statuses == [0] * 3
    assert counts(storage) == (0, 2000)
    assert sum(int((tmp_path / f"promoted-{place}").read_text()) for place in range(3)) == 2000


@pytest.mark.parametrize("url", ["postgres"], indirect=True)
def test_what_another_server_is_just_promoting_is_left_to_it_for_a_moment(
    storage: Storage, raw: Raw, connect: Callable[[], object], scheduler: MakeScheduler
) -> None:
    storage.enqueue_many(Job.new("work", at=in_an_hour()) for _ in range(3))
    make_due(raw)
    other = connect()
    other.execute(f"SELECT id FROM {raw.name('jobs')} FOR UPDATE")  # type: ignore[attr-defined]
    loop = scheduler(storage)

    while_it_does = loop.tick(storage)
    other.rollback()  # type: ignore[attr-defined]
    afterwards = loop.tick(storage)

    assert while_it_does is not None
    assert timedelta() < while_it_does < timedelta(seconds=1)
    assert afterwards is None
    assert counts(storage) == (0, 3)


def test_where_commits_wake_nobody_it_looks_as_often_as_for_other_jobs(
    storage: Storage, scheduler: MakeScheduler
) -> None:
    listening, blind = scheduler(storage), scheduler(storage, is_listening=False)
    found = [loop.tick(storage) for loop in (listening, blind)]
    storage.enqueue(Job.new("work", at=datetime.now(UTC) + POLLING / 2))
    found += [loop.tick(storage) for loop in (listening, blind)]

    assert found[:2] == [None, POLLING]
    assert found[2] is not None
    assert found[3] is not None
    assert timedelta() < found[3] <= found[2] <= POLLING / 2


def test_a_job_for_an_earlier_instant_is_seen_before_the_one_that_was_waited_for(
    storage: Storage, opened: Callable[[], Storage], scheduler: MakeScheduler
) -> None:
    storage.enqueue(Job.new("work", at=in_an_hour()))
    loop = scheduler(storage)
    loop.run(storage)
    waits_until = loop.due_at()

    opened().enqueue(Job.new("work", at=datetime.now(UTC) + timedelta(minutes=10)))
    loop.hasten()

    assert loop.due_at() < waits_until
    assert timedelta(minutes=5) < (loop.tick(storage) or INTERVAL) <= timedelta(minutes=10)


@pytest.fixture
def claimers(url: str, storage: Storage) -> Iterator[Callable[[int], None]]:
    """Forks processes that claim and finish without a pause; they are killed at the end."""
    pids: list[int] = []

    def fork(number: int) -> None:
        storage.close()
        for place in range(number):
            pid = os.fork()
            if pid == 0:
                _claim_for_ever(url, place)
            pids.append(pid)

    yield fork
    for pid in pids:
        os.kill(pid, 9)
        os.waitpid(pid, 0)


def _claim_for_ever(url: str, place: int) -> None:
    try:
        mine = open_storage(url)
        while True:
            mine.enqueue_many(Job.new("work", queue=f"busy-{place}") for _ in range(5))
            held = mine.exchange((), fetch=fetch(f"busy-{place}"), limit=5, retention=KEEP).claims
            mine.exchange([(claim, DONE) for claim in held], fetch=None, limit=0, retention=KEEP)
    finally:
        os._exit(1)


def test_due_jobs_are_made_runnable_while_storage_is_busy_with_claims(
    url: str, storage: Storage, raw: Raw, claimers: Callable[[int], None], scheduler: MakeScheduler
) -> None:
    storage.enqueue_many(Job.new("due", at=in_an_hour()) for _ in range(500))
    raw.run("UPDATE {jobs} SET run_at = ?", raw.instant(datetime.now(UTC) - HOUR))
    claimers(3)

    with closing(open_storage(url, patience=STORAGE_PATIENCE)) as mine:  # as a supervisor has it
        loop = scheduler(mine)
        table = LoopTable(loop._run, [loop], storage=mine, between=lambda _: None)
        looks = 0
        while counts(storage)[0] and looks < 100_000:
            table.turn()
            looks += 1

    assert counts(storage)[0] == 0


class Slow(Loop):
    """Takes so long, by a clock of the test's own, that something else becomes due."""

    name = "slow"
    interval = INTERVAL

    def __init__(self, run: Run, *, meanwhile: Callable[[], None], order: list[str]) -> None:
        super().__init__(run)
        self._meanwhile = meanwhile
        self._order = order

    def tick(self, storage: Storage) -> None:
        self._order.append("slow")
        self._meanwhile()


def test_a_job_that_becomes_due_while_the_supervisor_is_busy_waits_for_one_loop_at_most(
    storage: Storage, raw: Raw, scheduler: MakeScheduler
) -> None:
    loop, order = scheduler(storage), list[str]()

    def look(storage: Storage) -> timedelta | None:
        order.append("scheduler")
        return SchedulerLoop.tick(loop, storage)

    loop.tick = look  # type: ignore[method-assign]
    first = Slow(loop._run, meanwhile=lambda: None, order=order)

    def become_due() -> None:
        raw.age("jobs", "run_at", 2 * HOUR)
        loop._due_at = 0.0

    second, third = (Slow(loop._run, meanwhile=what, order=order) for what in (become_due, lambda: None))
    storage.enqueue(Job.new("work", at=in_an_hour()))

    LoopTable(loop._run, [loop, first, second, third], storage=storage, between=lambda _: None).turn()

    assert order == ["scheduler", "slow", "slow", "scheduler", "slow"]
    assert counts(storage) == (0, 1)
