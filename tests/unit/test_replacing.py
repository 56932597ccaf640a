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
from qml_mp.supervisor.workers.replacing import Replacing
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
