"""Client: how each figure is measured, within about the time that it is given."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from qml_mp.bench.figures import EfficiencyFigures, Spread, StorageFigures, ThroughputFigures
from qml_mp.bench.server import BenchServer, bench_server
from qml_mp.bench.stamps import MOST_JOBS, Stamps
from qml_mp.bench.work import run_bare, turns_for
from qml_mp.core.job import Job
from qml_mp.storage.store import Storage

_NOBODYS_QUEUE = "nobodys"
"""Of jobs that are enqueued to see how long that takes."""
_BULK_JOBS = 1_000
_SAMPLES = range(20, 10_000)
_BULK_SAMPLES = range(1, 50)
"""Of `_BULK_JOBS` rows each, which somebody's disk has to hold meanwhile."""
_FIRST_ROUND_PER_WORKER = 25
_GROWTH = 4
_FEWEST_JOBS_PER_WORKER = 4
_ROUNDS = 3
_PAUSES_S = (0.01, 0.04)  # of different lengths, or they would keep time with a poll of the server


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What all of them use."""

    storage: Storage
    """An empty one, for this alone."""
    stamps: Stamps
    workers: int


def measure_storage(bench: Bench, within: timedelta, *, caveats: tuple[str, ...]) -> StorageFigures:
    """Reads, commits of one job and commits of many, a third of the time each."""
    storage, third = bench.storage, within / 3
    job_id = storage.enqueue(_nobodys_job())
    read = _times_s(lambda: storage.get(job_id), third, _SAMPLES)
    commit = _times_s(lambda: storage.enqueue(_nobodys_job()), third, _SAMPLES)
    bulk = _times_s(
        lambda: storage.enqueue_many(_nobodys_job() for _ in range(_BULK_JOBS)), third, _BULK_SAMPLES
    )
    return StorageFigures(
        read=Spread.of(read),
        commit=Spread.of(commit),
        bulk_per_s=_BULK_JOBS / statistics.median(bulk),
        caveats=caveats,
    )


def measure_throughput(bench: Bench, within: timedelta, *, batch: int) -> ThroughputFigures:
    """Rounds of empty jobs, each larger than the one before; the last one counts."""
    deadline = time.monotonic() + within.total_seconds()
    with bench_server(bench.storage, bench.stamps, workers=bench.workers, batch=batch) as server:
        jobs = _FIRST_ROUND_PER_WORKER * bench.workers
        while True:
            began_at = time.monotonic()
            span = server.run(jobs)
            took_s = time.monotonic() - began_at
            if jobs == MOST_JOBS or time.monotonic() + _GROWTH * took_s > deadline:
                return ThroughputFigures(batch=batch, jobs=jobs, jobs_per_s=jobs / span.length_s)
            jobs = min(MOST_JOBS, _GROWTH * jobs)


def measure_latency(bench: Bench, within: timedelta) -> Spread:
    """Jobs enqueued one by one, with pauses in which the server has nothing to do."""
    deadline = time.monotonic() + within.total_seconds()
    latencies_s: list[float] = []
    with bench_server(bench.storage, bench.stamps, workers=bench.workers) as server:
        while time.monotonic() < deadline or len(latencies_s) < _SAMPLES.start:
            time.sleep(random.uniform(*_PAUSES_S))
            latencies_s.append(server.latency_s())
    return Spread.of(latencies_s)


def measure_efficiency(
    bench: Bench, within: timedelta, *, lengths: tuple[timedelta, ...]
) -> tuple[EfficiencyFigures, ...]:
    """For each length of a job, rounds by bare processes and by the workers in turns, so that what else the
    machine does hits both."""
    with bench_server(bench.storage, bench.stamps, workers=bench.workers) as server:
        return tuple(_efficiency(bench, server, length, within / len(lengths)) for length in lengths)


def _efficiency(bench: Bench, server: BenchServer, length: timedelta, within: timedelta) -> EfficiencyFigures:
    deadline = time.monotonic() + within.total_seconds()
    workers, turns = bench.workers, turns_for(length)
    per_worker = max(_FEWEST_JOBS_PER_WORKER, within // (2 * _ROUNDS * length))
    jobs = min(MOST_JOBS, workers * per_worker)
    ratios: list[float] = []
    overheads_s: list[float] = []
    while not ratios or (len(ratios) < _ROUNDS and time.monotonic() < deadline):
        bare_s = run_bare(bench.stamps, processes=workers, jobs=jobs, turns=turns).length_s
        own_s = server.run(jobs, turns=turns).length_s
        ratios.append(bare_s / own_s)
        overheads_s.append((own_s - bare_s) * workers / jobs)
    return EfficiencyFigures(
        length=length,
        jobs=jobs,
        ratio=statistics.median(ratios),
        overhead=timedelta(seconds=max(0.0, statistics.median(overheads_s))),
    )


def _times_s(action: Callable[[], object], within: timedelta, samples: range) -> list[float]:
    """How long the action takes, over and over; so many times at least and at most."""
    deadline = time.monotonic() + within.total_seconds()
    times_s: list[float] = []
    while len(times_s) < samples.start or (time.monotonic() < deadline and len(times_s) < samples.stop):
        began_s = time.perf_counter()
        action()
        times_s.append(time.perf_counter() - began_s)
    return times_s


def _nobodys_job() -> Job:
    return Job.new("bench", {"place": 0, "turns": 0}, queue=_NOBODYS_QUEUE)
