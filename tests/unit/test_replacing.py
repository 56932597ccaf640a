"""Tests: whose turn it is to be replaced, which places want a worker, and when the old one leaves first."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from qml_mp.core.job import ClaimKey, new_job_id
from qml_mp.ipc.ended import EndedTable
from qml_mp.ipc.slot import Activity, SlotTable, SlotView
from qml_mp.supervisor.workers.channels import open_channels
from qml_mp.supervisor.workers.fork import Child
from qml_mp.supervisor.workers.replacing import Replacing, has_to_leave_first, missing_numbers
from qml_mp.supervisor.workers.worker_process import WorkerProcess

MakeWorker = Callable[..., WorkerProcess]
NOW = 1000.0


@pytest.fixture
def worker() -> Iterator[MakeWorker]:
    """Makes workers that are ready: idle, or in a job that began so many seconds ago."""
    slots, ended = SlotTable(8), EndedTable(8)
    with ExitStack() as stack:

        def make(
            name: str, *, number: int = 1, busy_for: float | None = None, leaves: bool = False
        ) -> WorkerProcess:
            reading, channels = open_channels(ended.region(0))
            stack.callback(channels.close)
            stack.callback(os.close, reading)
            child = Child(pid=1, pidfd=None, started_ticks=0)
            made = WorkerProcess(
                number=number, worker_id=name, child=child, channels=channels, slots=slots, index=0,
                forked_at=0.0,
            )  # fmt: skip
            made.ready_at, made.leaving = 0.0, leaves
            if busy_for is None:
                made.last = SlotView(activity=Activity.IDLE)
            else:
                key, since_ns = ClaimKey(job_id=new_job_id(), claim_seq=1), int((NOW - busy_for) * 1e9)
                made.last = SlotView(activity=Activity.RUNNING, key=key, since_ns=since_ns)
            return made

        yield make


def test_idle_workers_are_replaced_in_their_order_before_busy_ones_and_the_longest_job_waits_last(
    worker: MakeWorker,
) -> None:
    present = [
        worker("hours", busy_for=7200), worker("first"), worker("moment", busy_for=0.1), worker("second"),
        worker("leaves", leaves=True), worker("minute", busy_for=60),
    ]  # fmt: skip
    replacing, turns = Replacing(), []
    replacing.ask_for_all(each.worker_id for each in present)

    while old := replacing.next_of(present):
        turns.append(old.worker_id)
        replacing.begin(old.worker_id, new=None)

    assert turns == ["first", "second", "moment", "minute", "hours"]


@pytest.mark.parametrize(
    ("numbers", "leaving", "missing"),
    [
        ([1, 2, 3], [], []),
        ([2], [], [1, 3]),
        ([1, 2, 2, 3], [2], []),  # its place is taken
        ([1, 2, 3], [2], [2]),
        ([1, 1, 2, 3], [1, 2], []),  # one too many as it is
        ([2, 3], [2], [1, 2]),
        ([1, 2, 3, 4, 5], [4, 5], []),
        ([1, 2, 4, 5], [4, 5], [3]),
    ],
)  # fmt: skip
def test_a_place_wants_a_worker_when_all_that_it_has_leave_and_there_is_one_too_many_at_most(
    worker: MakeWorker, numbers: list[int], leaving: list[int], missing: list[int]
) -> None:
    left, workers = list(leaving), []
    for number in numbers:
        leaves = number in left
        if leaves:
            left.remove(number)
        workers.append(worker("w", number=number, leaves=leaves))

    assert missing_numbers(workers, size=3) == missing


@pytest.mark.parametrize(
    ("is_full", "old_busy_for", "left_busy_for", "staying", "first"),
    [
        (False, None, None, 2, False),
        (True, None, None, 2, True),
        (True, 60, None, 2, True),
        (False, None, [60], 2, True),
        (False, None, [60, 3600], 2, True),
        (False, None, [0.1], 2, False),  # it is gone in a moment
        (False, None, [60, 0.1], 2, False),
        (False, 0.1, [60], 2, False),
        (False, None, [60], 1, False),  # its place is not taken yet
    ],
)
def test_an_idle_worker_leaves_first_while_one_too_many_is_in_a_long_job(
    worker: MakeWorker,
    is_full: bool,
    old_busy_for: float | None,
    left_busy_for: list[float] | None,
    staying: int,
    first: bool,
) -> None:
    old = worker("old", busy_for=old_busy_for)
    others = [worker("other") for _ in range(staying - 1)]
    left = [worker("left", busy_for=busy_for, leaves=True) for busy_for in left_busy_for or []]

    assert has_to_leave_first(old, [old, *others, *left], size=2, is_full=is_full, now=NOW) is first
