"""Tests: a program that lets the firing loops of a supervisor tick, by a clock that the test sets.

python -m tests.nightly.firing_loops URL CLOCK LOOP SEED PARENT
"""

from __future__ import annotations

import logging
import mmap
import os
import random
import select
import struct
import sys
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

from qml_mp.child.source import AppFacts, LoadedProgram
from qml_mp.clock import Clock
from qml_mp.core.outcome import Success
from qml_mp.errors import StorageUnavailable
from qml_mp.processing.program import Program
from qml_mp.processing.registry import WorkerRegistry
from qml_mp.settings import ServerConfig
from qml_mp.storage.open import open_storage
from qml_mp.storage.store import Storage
from qml_mp.storage.values import BY_DEFAULT, Fetch
from qml_mp.supervisor.loops.clock import ClockLoop
from qml_mp.supervisor.loops.recurring import RecurringLoop
from qml_mp.supervisor.run import Run
from tests.until import wait_until

LOOPS = 3
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_US = timedelta(microseconds=1)
_LOOK_EVERY_S = 0.0005
_LAYOUT = struct.Struct(f"=qq{LOOPS}q")


class SharedClock(Clock):
    """Wall time and monotonic time of all processes that have the file, and how far each loop has come."""

    def __init__(self, path: Path) -> None:
        with path.open("a+b") as file:
            file.truncate(_LAYOUT.size)
            self._memory = mmap.mmap(file.fileno(), _LAYOUT.size)

    def now(self) -> datetime:
        return _EPOCH + self._read(0) * _US

    def monotonic(self) -> float:
        return self.turn / 1e6

    @property
    def turn(self) -> int:
        """The monotonic time in microseconds."""
        return self._read(1)

    def set(self, wall: datetime, *, turn: int) -> None:
        """By the test alone."""
        self._write(0, (wall - _EPOCH) // _US)
        self._write(1, turn)

    def done(self, loop: int) -> int:
        """The newest turn that the loop has done."""
        return self._read(2 + loop)

    def mark_done(self, loop: int, turn: int) -> None:
        """By the loop alone."""
        self._write(2 + loop, turn)

    def _read(self, place: int) -> int:
        return int(struct.unpack_from("=q", self._memory, 8 * place)[0])

    def _write(self, place: int, value: int) -> None:
        struct.pack_into("=q", self._memory, 8 * place, value)


def run_loops(url: str, place: Path, *, loop: int, seed: str, parent: int) -> None:
    """In each turn of the clock let the loops tick and end some jobs, until killed or the test is gone."""
    test = os.pidfd_open(parent)
    logging.disable(logging.WARNING)  # that the clock was set back, each time
    clock, rng = SharedClock(place), random.Random(seed)
    source = LoadedProgram(program=Program(registry=WorkerRegistry()))
    run = Run(ServerConfig(), source, url=url, facts=AppFacts(), clock=clock)
    recurring = RecurringLoop(run, interval=timedelta(seconds=5))
    steps = ClockLoop(run, on_one_machine=True, due_by_it=[recurring])
    is_sqlite = url.startswith("sqlite")
    with closing(open_storage(url, clock=clock) if is_sqlite else open_storage(url)) as storage:
        while True:
            turn = clock.turn
            if turn == clock.done(loop):
                if select.select([test], [], [], _LOOK_EVERY_S)[0]:
                    return
                continue
            try:
                steps.tick(storage)
                _fire(recurring, storage)
                _end_some_jobs(storage, f"worker-{loop}", rng)
            except StorageUnavailable:  # as long as others are at it; the next look is at the same turn
                continue
            clock.mark_done(loop, turn)


def _fire(recurring: RecurringLoop, storage: Storage) -> None:
    """Until nothing is due, as a server does: what another holds is left to it, and what one held that was
    killed is free only once the database has seen that. The clock shows whole seconds, as firings have: what
    is not due is due in one at the earliest."""

    def nothing_is_due() -> bool:
        again_in = recurring.tick(storage)
        return again_in is None or again_in >= timedelta(seconds=1)

    wait_until(nothing_is_due, what="the end of what is due")


def _end_some_jobs(storage: Storage, worker: str, rng: random.Random) -> None:
    """What an earlier process of the loop held is held on."""
    for claim in storage.claims_of_worker(worker):
        if rng.random() < 0.3:
            storage.finish(claim, Success(result=None, duration=timedelta()), retention=BY_DEFAULT)
    storage.fetch_and_lock_job(Fetch(worker_id=worker, server_id="server", queues=("overlapping",)))


if __name__ == "__main__":
    url, place, loop, seed, parent = sys.argv[1:]
    run_loops(url, Path(place), loop=int(loop), seed=seed, parent=int(parent))
