"""Tests: the app of the storage faults: a job that needs two attempts, and some that fit the faults."""

from __future__ import annotations

from pathlib import Path

from qml_mp import QmlApp, RetryPolicy, WorkerContext
from tests.processes.journal import note, sole_run
from tests.until import wait_at

app = QmlApp(retry_policy=RetryPolicy.fixed(0, jitter=0.0, max_attempts=3))


@app.job()
def plain(ctx: WorkerContext) -> str:
    """Succeed."""
    with sole_run(ctx):
        return "plain"


@app.job()
def flaky(ctx: WorkerContext) -> str:
    """Fail the first time that it comes to its end, and succeed the second time."""
    with sole_run(ctx):
        if ctx.job.failures == 0:
            raise ValueError("the first time")
        return "flaky"


@app.job()
def gated(ctx: WorkerContext, gate: str) -> str:
    """Wait until the file is there."""
    note(ctx, "start")
    wait_at(Path(gate))
    note(ctx, "end")
    return "opened"


@app.job()
def read_the_database_file(ctx: WorkerContext, path: str) -> int:
    """What a job must not do to an SQLite file: open it beside SQLite, read, and close it again."""
    note(ctx, "start")
    length = len(Path(path).read_bytes())  # closing it drops every lock that this process has on it
    note(ctx, "end")
    return length
