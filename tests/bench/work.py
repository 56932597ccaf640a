"""Benchmark, every process: the job body, which is the same in every system.

It does its work and then appends one byte to a file, whose growth the watcher times. The byte tells the
processes apart, so that the watcher knows when all of them have begun, and how even their shares are.
"""

from __future__ import annotations

import ctypes
import functools
import os
import struct
import time
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path

from tests.bench.place import Place

RECORD = struct.Struct("=qqq")
"""In a run with records: the number of the job, its start and its end (`time.monotonic_ns`)."""

_FACTOR = (1 << 4000) // 7
"""Its product takes some 6 µs."""
_CALIBRATION_S = 0.3
_CALIBRATION_TURNS = 1000
_LAST_NUMBER = 255


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """The arguments of one job."""

    seq: int
    ms: float = 0.0
    how: str = "spin"
    """spin: compute. sleep: wait in the kernel. hold: the same, and keep the interpreter lock meanwhile."""

    def arguments(self) -> dict[str, object]:
        """As keywords of `perform`."""
        return {"seq": self.seq, "ms": self.ms, "how": self.how}


def perform(seq: int, ms: float, how: str) -> None:
    """What every job runs."""
    output = _output()
    began_ns = time.monotonic_ns()
    if ms:
        match how:
            case "spin":
                spin(int(ms * output.turns_per_ms))
            case "sleep":
                time.sleep(ms / 1000)  # the job's own work
            case "hold":
                _hold(ms)
            case _:
                raise ValueError(how)
    if output.records is not None:
        os.write(output.records, RECORD.pack(seq, began_ns, time.monotonic_ns()))
    os.write(output.log, output.byte)


def spin(turns: int) -> None:
    """Compute: so many products of a long number with itself, which is the same work however the time is
    shared out, and keeps the interpreter lock as Python does.

    Not an empty loop: of two processes that run the same one side by side, forked at once from one parent,
    one takes up to 1.4 times as long as the other, for seconds, as the branches happen to be foreseen.
    Products differ by 3 %.
    """
    for _ in repeat(None, turns):
        _FACTOR * _FACTOR


def calibrate(*, seconds: float) -> int:
    """Turns of `spin` that take a millisecond here when nothing else runs; seen in less time when a run is
    asked to be shorter than usual."""
    best, deadline = 0.0, time.perf_counter() + _CALIBRATION_S * min(1.0, seconds)
    while not best or time.perf_counter() < deadline:
        began = time.perf_counter()
        spin(_CALIBRATION_TURNS)
        best = max(best, _CALIBRATION_TURNS / (time.perf_counter() - began))
    return int(best / 1000)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Output:
    log: int
    records: int | None
    byte: bytes
    turns_per_ms: int


@functools.cache
def _output() -> _Output:
    """The files of this run, opened once a process, at its first job."""
    place = Place.current()
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
    return _Output(
        log=os.open(place.bytes, flags, 0o644),
        records=os.open(place.records, flags, 0o644) if place.has_records else None,
        byte=bytes((_number_of_this_process(place.folder),)),
        turns_per_ms=place.turns_per_ms,
    )


def _number_of_this_process(folder: Path) -> int:
    """0 for the first process that runs a job; all beyond the last that fits in a byte share that."""
    for number in range(_LAST_NUMBER):
        try:
            os.close(os.open(folder / f"process-{number}", os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            continue
        return number
    return _LAST_NUMBER


def _hold(ms: float) -> None:
    ctypes.PyDLL(None).usleep(int(ms * 1000))  # PyDLL: unlike CDLL it keeps the interpreter lock
