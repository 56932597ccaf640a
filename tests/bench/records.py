"""Benchmark: when each job ran, in a run with records."""

from __future__ import annotations

import time
from dataclasses import dataclass

from tests.bench.ground import Run, RunFailed
from tests.bench.place import Place
from tests.bench.work import RECORD

_LOOK_EVERY_S = 0.002


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One job that ran, by the monotonic clock."""

    seq: int
    began_ns: int
    ended_ns: int


def read_records(place: Place) -> list[Record]:
    """In the order in which they ended."""
    try:
        data = place.records.read_bytes()
    except FileNotFoundError:
        return []
    return [Record(seq=seq, began_ns=began, ended_ns=ended) for seq, began, ended in RECORD.iter_unpack(data)]


def wait_for_records(run: Run, count: int, *, within_s: float) -> None:
    """Until so many jobs have ended; raises `RunFailed` when that takes too long."""
    deadline = time.monotonic() + within_s
    path, wanted = run.place.records, count * RECORD.size
    while not (path.exists() and path.stat().st_size >= wanted):
        if time.monotonic() > deadline:
            done = len(read_records(run.place))
            raise RunFailed(f"{done} of {count} jobs ran within {within_s} s. {run.log()}")
        time.sleep(_LOOK_EVERY_S)  # between two looks: what is measured is not asked
