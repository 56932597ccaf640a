"""Benchmark: from a committed enqueue to the start of the job, on a server that has nothing else to do."""

from __future__ import annotations

import random
import time

from tests.bench.ground import Ground, RunFailed
from tests.bench.records import Record, read_records, wait_for_records
from tests.bench.scenario import Column, Metrics, Options, Scenario, Target
from tests.bench.system import Backend, Kind, System
from tests.nightly.report import quantile

_WARM_UP_JOBS = 20
_PAUSE_S = (0.015, 0.035)
_WITHIN_S = 60.0


def _measure(ground: Ground, system: System, case: str, options: Options) -> Metrics:
    jobs = max(50, int(options.seconds / (sum(_PAUSE_S) / 2)))
    rng = random.Random(jobs)
    stamps: list[tuple[int, int]] = []
    with ground.run(system, workers=options.workers, has_records=True) as run:
        run.start_workers()
        for done in range(_WARM_UP_JOBS):  # the first shows that the workers have booted
            run.enqueue(1, how="single")
            wait_for_records(run, done + 1, within_s=_WITHIN_S)
        for _ in range(jobs):
            time.sleep(rng.uniform(*_PAUSE_S))  # so that all workers are idle when the next one comes
            stamps += run.enqueue(1, how="single")
        wait_for_records(run, _WARM_UP_JOBS + jobs, within_s=_WITHIN_S)
        records = {record.seq: record for record in read_records(run.place)}
    if len(records) != _WARM_UP_JOBS + jobs:
        raise RunFailed(f"{_WARM_UP_JOBS + jobs} jobs were enqueued, and {len(records)} ran.")
    started = [records[_WARM_UP_JOBS + turn] for turn in range(jobs)]
    return _metrics(stamps, started)


def _metrics(stamps: list[tuple[int, int]], started: list[Record]) -> Metrics:
    committed = [(job.began_ns - ended) / 1e6 for (_, ended), job in zip(stamps, started, strict=True)]
    called = [(job.began_ns - began) / 1e6 for (began, _), job in zip(stamps, started, strict=True)]
    return {
        "p50_ms": quantile(committed, 0.5),
        "p99_ms": quantile(committed, 0.99),
        "max_ms": max(committed),
        "from_call_p50_ms": quantile(called, 0.5),
        "enqueue_p50_ms": quantile([(ended - began) / 1e6 for began, ended in stamps], 0.5),
    }


SCENARIO = Scenario(
    name="latency",
    title="Latency on an idle server, from the return of enqueue to the start of the job, in ms",
    cases=("",),
    fits=lambda system: system.kind is not Kind.LIMIT,
    measure=_measure,
    columns=(
        Column(metric="p50_ms", heading="p50", digits=2),
        Column(metric="p99_ms", heading="p99", digits=2),
        Column(metric="max_ms", heading="max", digits=1),
        Column(metric="from_call_p50_ms", heading="p50 from the call", digits=2),
        Column(metric="enqueue_p50_ms", heading="enqueue p50", digits=2),
    ),
    targets=(
        Target(system="qml-mp", backend=Backend.POSTGRES, metric="p50_ms", case="", over="oban", at_most=1.0),
        Target(system="qml-mp", backend=Backend.POSTGRES, metric="p99_ms", case="", over="oban", at_most=1.0),
        Target(system="qml-mp", backend=Backend.SQLITE, metric="p50_ms", case="", at_most=1.0),
        Target(system="qml-mp", backend=Backend.SQLITE, metric="p99_ms", case="", at_most=8.0),
    ),
)
