"""Benchmark: how long claims take while a great many expired jobs are deleted, and without that."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import struct
import sys
import time
from collections.abc import Sequence
from datetime import timedelta

import psycopg

from qml_mp.core.job import Claim, Job
from qml_mp.core.outcome import Outcome, Success
from qml_mp.storage.open import open_storage
from qml_mp.storage.values import BY_DEFAULT, Fetch
from tests.bench.forked import fork_loops, wait_for_all
from tests.bench.ground import Ground, Run
from tests.bench.place import Place
from tests.bench.scenario import Column, Metrics, Options, Scenario, Target
from tests.bench.system import Backend, System, program
from tests.bench.systems.qml import url_of
from tests.soak.report import quantile

_ROWS = 1_000_000
_ATTEMPTS_OF_EACH = 10
"""Of so many rows one has an attempt."""
_TURN_S = 15.0
_BOOT_S = 2.0
_LONGEST_S = 1200.0
_PAUSE_S = 0.004
_REFILL = 50
_SAMPLE = struct.Struct("=qq")
_DONE = Success(result=None, duration=timedelta(milliseconds=1))

# Ids that grow with time, as those of jobs do.
_IDS = {
    Backend.SQLITE: "printf('%08x-%04x-7000-8000-%012x', {ms} + n / 10 >> 16, {ms} + n / 10 & 65535, n)",
    Backend.POSTGRES: "concat_ws('-', lpad(to_hex({ms} + n / 10 >> 16), 8, '0'),"
    " lpad(to_hex({ms} + n / 10 & 65535), 4, '0'), '7000', '8000', lpad(to_hex(n), 12, '0'))",
}
_COLUMNS = """
    id, method, queue, state, payload, result, created_at, enqueued_at, started_at, finished_at, expires_at,
    duration_us, claim_seq
"""
_VALUES = """'old', 'default', 'succeeded', '{{"path": "a/b/c.png"}}', '{{"bytes": 1234}}', """
_ATTEMPT = "job_id, claim_seq, kind, worker, started_at, ended_at"
_FILL = {
    Backend.SQLITE: (
        f"""
        WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {{rows}})
        INSERT INTO qml_jobs ({_COLUMNS})
        SELECT {_IDS[Backend.SQLITE]}, {_VALUES} {{ms}} * 1000, {{ms}} * 1000, {{ms}} * 1000, {{ms}} * 1000,
               {{ms}} * 1000 + n, 1000, 1
        FROM numbers
        """,
        f"""
        INSERT INTO qml_attempts ({_ATTEMPT})
        SELECT id, 1, 'failure', 'w', started_at, finished_at FROM qml_jobs WHERE rowid % {{each}} = 0
        """,
    ),
    Backend.POSTGRES: (
        f"""
        INSERT INTO qml_mp.jobs ({_COLUMNS})
        SELECT {_IDS[Backend.POSTGRES]}, {_VALUES} now(), now(), now(), now(),
               to_timestamp({{ms}} / 1e3 + n / 1e6), 1000, 1
        FROM generate_series(1, {{rows}}) AS n
        """,
        f"""
        INSERT INTO qml_mp.attempts ({_ATTEMPT})
        SELECT id, 1, 'failure', 'w', started_at, finished_at FROM qml_mp.jobs
        WHERE extract(microsecond FROM expires_at)::int % {{each}} = 0
        """,
    ),
}
_LEFT = {
    Backend.SQLITE: "SELECT count(*) FROM qml_jobs WHERE method = 'old'",
    Backend.POSTGRES: "SELECT count(*) FROM qml_mp.jobs WHERE method = 'old'",
}


_ANY_LEFT = {  # the same at once, by an index
    Backend.SQLITE: """
        SELECT count(*) FROM (
            SELECT 1 FROM qml_jobs INDEXED BY qml_jobs_expiring
            WHERE (state = 'succeeded' OR state = 'failed' OR state = 'deleted') AND expires_at < {now}
            LIMIT 1)
    """,
    Backend.POSTGRES: """
        SELECT count(*) FROM (
            SELECT FROM qml_mp.jobs
            WHERE state IN ('succeeded', 'failed', 'deleted') AND expires_at < now() LIMIT 1) AS one
    """,
}


def _measure(ground: Ground, system: System, case: str, options: Options) -> Metrics:
    expired_at_ms = time.time_ns() // 10**6 - 24 * 3600 * 1000
    rows, turn_s = int(_ROWS * options.seconds), max(1.0, _TURN_S * options.seconds)
    with ground.run(system, workers=options.workers) as run:
        for statement in _FILL[system.backend]:
            _run(run, statement.format(rows=rows, each=_ATTEMPTS_OF_EACH, ms=expired_at_ms))
        run.settle()
        run.start(program(__name__, "loops", url_of(system.backend, run.place)))
        time.sleep(_BOOT_S)  # not measured, as the server's beginning below
        off, on = [_pass(turn_s)], [_deleting(run, turn_s)]
        off.append(_pass(turn_s))
        left = _left(run)
        on.append(_deleting(run, _LONGEST_S))
        began, ended = on[-1]
        samples = _samples(run.place)
        return {
            **_of("off", samples, off),
            **_of("on", samples, on),
            "p99_ratio": quantile(_within(samples, on), 0.99) / quantile(_within(samples, off), 0.99),
            "deleted_per_s": left / (ended - began),
            "left": _left(run),
        }


def _pass(seconds: float) -> tuple[float, float]:
    began = time.monotonic()
    time.sleep(seconds)  # what is measured meanwhile writes itself down
    return began, time.monotonic()


def _deleting(run: Run, longest_s: float) -> tuple[float, float]:
    """A server without workers deletes what has expired, until nothing is left; from when to when."""
    command = (
        sys.executable, "-m", "qml_mp", "-A", "tests.bench.systems.qml:app", "--url",
        url_of(run.system.backend, run.place), "start", "--workers", "0", "--cleanup",
    )  # fmt: skip
    server = run.start(command)
    time.sleep(_BOOT_S)  # as above, so that both passes are the same
    began = time.monotonic()
    any_left = _ANY_LEFT[run.system.backend].format(now=time.time_ns() // 1000)
    while _run(run, any_left)[0][0] and time.monotonic() < began + longest_s:
        time.sleep(min(longest_s / 10, 0.5))  # between two looks, which cost what is measured
    ended = time.monotonic()
    server.interrupt()
    server.finish()
    return began, ended


def _run(run: Run, statement: str) -> Sequence[tuple[int]]:
    if run.system.backend is Backend.POSTGRES:
        with psycopg.connect(run.place.url, autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []
    with contextlib.closing(sqlite3.connect(run.place.file, timeout=60, isolation_level=None)) as file:
        return file.execute(statement).fetchall()


def _left(run: Run) -> int:
    return _run(run, _LEFT[run.system.backend])[0][0]


def _samples(place: Place) -> list[tuple[int, int]]:
    """When each claim began, and how long it took, in ns."""
    found = []
    for path in place.folder.glob("claims-*"):
        data = path.read_bytes()
        found += list(_SAMPLE.iter_unpack(data[: len(data) // _SAMPLE.size * _SAMPLE.size]))
    return found


def _within(samples: Sequence[tuple[int, int]], spans: Sequence[tuple[float, float]]) -> list[float]:
    return [took / 1e6 for at, took in samples if any(began <= at / 1e9 < ended for began, ended in spans)]


def _of(name: str, samples: Sequence[tuple[int, int]], spans: Sequence[tuple[float, float]]) -> Metrics:
    ms = _within(samples, spans)
    return {
        f"{name}_p50_ms": quantile(ms, 0.5),
        f"{name}_p99_ms": quantile(ms, 0.99),
        f"{name}_max_ms": max(ms),
    }


def loops(url: str) -> None:
    """Fork processes that claim and finish a job now and then, until they are ended."""
    place = Place.current()
    wait_for_all(fork_loops(place.workers, lambda number: _claim(url, place, f"w{number}")))


def _claim(url: str, place: Place, name: str) -> None:
    storage = open_storage(url)
    which = Fetch(worker_id=name, server_id="s", queues=(name,), methods=("new",))
    output = os.open(place.folder / f"claims-{name}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    held: list[tuple[Claim, Outcome]] = []
    while True:
        began = time.monotonic_ns()
        claims = storage.exchange(held, fetch=which, limit=1, retention=BY_DEFAULT).claims
        os.write(output, _SAMPLE.pack(began, time.monotonic_ns() - began))
        held = [(claim, _DONE) for claim in claims]
        if not claims:
            storage.enqueue_many(Job.new("new", queue=name) for _ in range(_REFILL))
        time.sleep(_PAUSE_S)  # the pace that is asked for


def _target(backend: Backend) -> Target:
    return Target(system="qml-mp", backend=backend, metric="p99_ratio", case="", at_most=2.0)


SCENARIO = Scenario(
    name="cleanup",
    title="Claims while 1,000,000 expired jobs (times --seconds) are deleted, in ms",
    cases=("",),
    fits=lambda system: system.name == "qml-mp",
    measure=_measure,
    columns=(
        Column(metric="off_p50_ms", heading="without a cleanup, p50", digits=2),
        Column(metric="off_p99_ms", heading="p99", digits=2),
        Column(metric="on_p50_ms", heading="while it deletes, p50", digits=2),
        Column(metric="on_p99_ms", heading="p99", digits=2),
        Column(metric="on_max_ms", heading="max", digits=1),
        Column(metric="p99_ratio", heading="p99 over p99", digits=2),
        Column(metric="deleted_per_s", heading="deleted/s"),
    ),
    targets=tuple(map(_target, (Backend.POSTGRES, Backend.SQLITE))),
)
