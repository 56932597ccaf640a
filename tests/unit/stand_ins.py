"""Tests: a worker as its supervisor holds it, for which another process stands."""

from __future__ import annotations

import os

from qml_mp.ipc.ended import EndedOutcomes, EndedTable
from qml_mp.ipc.slot import SlotTable
from qml_mp.supervisor.workers.channels import open_channels
from qml_mp.supervisor.workers.fork import Child
from qml_mp.supervisor.workers.worker_process import WorkerProcess


def stand_in(
    *,
    number: int = 1,
    child: Child | None = None,
    slots: SlotTable | None = None,
    ended: EndedOutcomes | None = None,
    forked_at: float = 0.0,
) -> tuple[int, WorkerProcess]:
    """The reading end of its pipe, and the worker "w" in the first slot: this process, if no `child` is
    given. Whoever asks for it closes both."""
    reading, channels = open_channels(ended or EndedTable(1).region(0))
    return reading, WorkerProcess(
        number=number,
        worker_id="w",
        child=child or Child(pid=os.getpid(), pidfd=None, started_ticks=0),
        channels=channels,
        slots=slots or SlotTable(1),
        index=0,
        forked_at=forked_at,
    )
