"""Benchmark: jobs due at random instants: how late each is made runnable, and how long it then queues."""

from __future__ import annotations

import contextlib
import random
import sqlite3
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta

import psycopg

from qml_mp import QmlApp
from tests.bench.ground import Ground, Run, RunFailed
from tests.bench.records import read_records, wait_for_records
from tests.bench.scenario import Column, Metrics, Options, Scenario, Target
from tests.bench.system import Backend, System
from tests.bench.systems.qml import url_of
from tests.bench.work import perform
from tests.soak.report import quantile

_WITHIN_S = 20.0
_JOBS = 200
_FILLER_MS = 30.0
_AHEAD_S = 1.0
_IDLE, _BUSY = "idle server", "all workers busy"
_PATIENCE_S = 120.0


def _measure(ground: Ground, system: System, case: str, options: Options) -> Metrics:
    within_s, jobs = _WITHIN_S * options.seconds, max(20, int(_JOBS * options.seconds))
    with ground.run(system, workers=options.workers, has_records=True) as run:
        run.start_workers()
        for done in range(20):  # the first shows that the workers have booted
            run.enqueue(1, how="single")
            wait_for_records(run, done + 1, within_s=_PATIENCE_S)
        fillers = 0
        if case == _BUSY:
            fillers = int(options.workers * (within_s + 2 * _AHEAD_S) * 1000 / _FILLER_MS)
            run.enqueue(fillers, [(_FILLER_MS, "sleep")])
        due_at = _schedule(run, jobs=jobs, within_s=within_s)
        wait_for_records(run, 20 + fillers + jobs, within_s=_PATIENCE_S + within_s)
        return _metrics(run, due_at)


def _schedule(run: Run, *, jobs: int, within_s: float) -> Mapping[int, datetime]:
    """Enqueue them at once, in front of what waits; the instant of each by its number, which is below 0."""
    rng = random.Random(jobs)
    start = datetime.now(UTC) + timedelta(seconds=_AHEAD_S)
    due_at = {-n: start + timedelta(seconds=rng.uniform(0, within_s)) for n in range(1, jobs + 1)}
    with contextlib.closing(QmlApp(url_of(run.system.backend, run.place))) as app:
        job = app.job("perform")(perform)
        app.enqueue_many(job.using(at=at, priority=1).job(seq, 0.0, "spin") for seq, at in due_at.items())
    return due_at


def _metrics(run: Run, due_at: Mapping[int, datetime]) -> Metrics:
    wall_ns = time.time_ns() - time.monotonic_ns()
    began_s = {record.seq: (record.began_ns + wall_ns) / 1e9 for record in read_records(run.place)}
    runnable_s = _runnable_s(run)
    if len(runnable_s) != len(due_at):
        raise RunFailed(f"{len(due_at)} jobs were scheduled, and {len(runnable_s)} are there.")
    start = [began_s[seq] - at.timestamp() for seq, at in due_at.items()]
    late = [runnable_s[seq] - at.timestamp() for seq, at in due_at.items()]
    queued = [began_s[seq] - runnable_s[seq] for seq in due_at]
    return {**_of("start", start), **_of("late", late), **_of("queued", queued)}


def _of(name: str, seconds: Sequence[float]) -> Metrics:
    ms = [1000 * value for value in seconds]
    return {
        f"{name}_p50_ms": quantile(ms, 0.5), f"{name}_p99_ms": quantile(ms, 0.99), f"{name}_max_ms": max(ms)
    }  # fmt: skip


def _runnable_s(run: Run) -> dict[int, float]:
    """When each scheduled job was made runnable, by its number."""
    if run.system.backend is Backend.POSTGRES:
        with psycopg.connect(run.place.url) as connection:
            rows = connection.execute("""
                SELECT (payload::json ->> 'seq')::int, extract(epoch FROM enqueued_at)::float8
                FROM qml_mp.jobs WHERE priority = 1
            """).fetchall()
    else:
        with contextlib.closing(sqlite3.connect(run.place.file)) as connection:
            rows = connection.execute("""
                SELECT json_extract(payload, '$.seq'), enqueued_at / 1e6 FROM qml_jobs WHERE priority = 1
            """).fetchall()
    return dict(rows)


def _target(backend: Backend, case: str, metric: str, at_most: float) -> Target:
    return Target(system="qml-mp", backend=backend, metric=metric, case=case, at_most=at_most)


SCENARIO = Scenario(
    name="due",
    title="Jobs scheduled at random instants, in ms (start = late + queued)",
    cases=(_IDLE, _BUSY),
    fits=lambda system: system.name == "qml-mp",
    measure=_measure,
    columns=(
        Column(metric="start_p50_ms", heading="start after the instant, p50", digits=1),
        Column(metric="start_p99_ms", heading="p99", digits=1),
        Column(metric="start_max_ms", heading="max", digits=1),
        Column(metric="late_p50_ms", heading="late: made runnable, p50", digits=1),
        Column(metric="late_p99_ms", heading="p99", digits=1),
        Column(metric="queued_p50_ms", heading="queued for a worker, p50", digits=1),
        Column(metric="queued_p99_ms", heading="p99", digits=1),
    ),
    targets=tuple(
        _target(backend, case, metric, at_most)
        for backend in (Backend.POSTGRES, Backend.SQLITE)
        for case, metric, at_most in (
            (_IDLE, "start_p50_ms", 10.0),
            (_IDLE, "start_p99_ms", 50.0),
            (_BUSY, "late_p50_ms", 10.0),
            (_BUSY, "late_p99_ms", 50.0),
        )
    ),
)
