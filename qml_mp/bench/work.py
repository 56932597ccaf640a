"""Client and worker: work that keeps a core busy for a known time, and bare processes that do it."""

from __future__ import annotations

import os
import time
from array import array
from datetime import timedelta

from qml_mp.bench.signals import signals_held
from qml_mp.bench.stamps import Span, Stamps
from qml_mp.child.prologue import unblock_signals
from qml_mp.supervisor.workers.fork import Child, fork_child, kill_and_reap

_TRIES = 5
_CALIBRATED_TURNS = 1_000
_FACTOR = (1 << 4000) // 7
_PLACE_BYTES = array("i").itemsize  # divides a page of a pipe, so that no reader gets half of one


def work(turns: int) -> None:
    """The same amount for the same number, however long it takes: a core that is shared or slow shows.

    Each turn multiplies a long number. Of a loop with less in a turn two processes can differ by a fifth, for
    seconds, as the processor happens to foresee its branches.
    """
    for _ in range(turns):
        _FACTOR * _FACTOR


def turns_for(duration: timedelta) -> int:
    """How many turns of `work` fill this time here, at the best that a few tries show."""
    best_s = min(_seconds_of(_CALIBRATED_TURNS) for _ in range(_TRIES))
    return max(1, round(_CALIBRATED_TURNS * duration.total_seconds() / best_s))


def run_bare(stamps: Stamps, *, processes: int, jobs: int, turns: int) -> Span:
    """The same jobs in processes that do nothing else: forked, they take the next job from a pipe."""
    stamps.forget(jobs)
    reading, writing = os.pipe()
    children: list[Child] = []
    try:
        with signals_held():
            for _ in range(processes):
                children += [_fork_bare(stamps, turns, reading=reading, writing=writing)]
        with os.fdopen(writing, "wb", closefd=False) as pipe:
            pipe.write(array("i", range(jobs)))
        stamps.wait_for(jobs)
    finally:
        with signals_held():
            for child in children:
                kill_and_reap(child)
            os.close(reading)
            os.close(writing)
    return stamps.span(jobs)


def _fork_bare(stamps: Stamps, turns: int, *, reading: int, writing: int) -> Child:
    places = os.dup(reading)

    def run() -> int:
        unblock_signals()
        while data := os.read(places, _PLACE_BYTES):
            (place,) = array("i", data)
            stamps.begin(place)
            work(turns)
            stamps.end(place)
        return 0

    return fork_child(run, ours=(), theirs={places}, own_fds={reading, writing})


def _seconds_of(turns: int) -> float:
    began_s = time.perf_counter()
    work(turns)
    return time.perf_counter() - began_s
