"""Tests, worker: the app whose jobs run in the storms."""

from __future__ import annotations

import collections
import itertools
import os
import signal
import time
from pathlib import Path

from qml_mp import QmlApp, RetryPolicy, WorkerContext
from tests.processes.journal import JOURNAL, note, sole_run
from tests.until import wait_at

app = QmlApp(retry_policy=RetryPolicy.none())


@app.job()
def unit(ctx: WorkerContext, busy_s: float = 0.0) -> int:
    """So much computing; returns the number of the claim, which the judge compares with the row's."""
    with sole_run(ctx):
        _compute(busy_s)
    return ctx.job.claim_seq


@app.job()
def doze(ctx: WorkerContext, seconds: float) -> int:
    """Take so long without computing."""
    with sole_run(ctx):
        time.sleep(seconds)  # the job's own work
    return ctx.job.claim_seq


@app.job(retry=RetryPolicy.fixed(0, jitter=0.0, max_attempts=3))
def unsure(ctx: WorkerContext) -> int:
    """Fail the first time that it comes to its end, and succeed the second time."""
    with sole_run(ctx):
        if ctx.job.failures == 0:
            raise ValueError("the first time")
    return ctx.job.claim_seq


@app.job()
def fatal_once(ctx: WorkerContext) -> int:
    """Compute until the worker is killed; the second run returns at once."""
    with sole_run(ctx):
        if ctx.job.claim_seq == 1:
            _compute(600)
    return ctx.job.claim_seq


@app.job()
def suicide(ctx: WorkerContext) -> int:
    """Kill the own process at the first run."""
    if ctx.job.claim_seq == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return ctx.job.claim_seq


@app.job()
def poison() -> None:
    """Kill the own process at every run."""
    os.kill(os.getpid(), signal.SIGKILL)


@app.job()
def leave_with(code: int) -> None:
    """Leave the own process with this exit code at every run."""
    os._exit(code)


@app.job()
def gated(ctx: WorkerContext) -> int:
    """Wait until the test has opened the job's gate. Holds no lock: a process that is stopped, and
    goes on when its job is another's, makes two runs overlap on purpose."""
    note(ctx, "start")
    wait_at(gate_of(ctx.job.id))
    note(ctx, "end")
    return ctx.job.claim_seq


def gate_of(job_id: str) -> Path:
    """The file whose existence lets the job end; beside the journal."""
    return Path(os.environ[JOURNAL]).with_name(f"gate-{job_id}")


def note_of(job_id: str) -> Path:
    """A file that a job may write; beside the journal."""
    return Path(os.environ[JOURNAL]).with_name(f"note-{job_id}")


@app.job()
def sleeper(ctx: WorkerContext) -> None:
    """Sleep in the kernel for ever."""
    with sole_run(ctx):
        time.sleep(600)  # for ever: the test ends it


@app.job()
def spinner(ctx: WorkerContext) -> None:
    """A Python loop for ever."""
    with sole_run(ctx):
        _compute(600)


@app.job()
def holder(ctx: WorkerContext) -> None:
    """A loop in C that holds the interpreter lock for ever."""
    with sole_run(ctx):
        collections.deque(itertools.repeat(None), maxlen=0)


@app.job()
def stubborn(ctx: WorkerContext) -> None:
    """Ignore SIGTERM and every exception, for ever."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with sole_run(ctx):
        while True:
            try:
                time.sleep(600)  # for ever, whatever is raised
            except BaseException:
                continue


def _compute(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass
