"""Tests: the app whose jobs are asked for their stacks, and outlive that, or die."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from pathlib import Path

from qml_mp import JobInterrupted, QmlApp, RetryPolicy, WorkerContext
from tests.processes.journal import note
from tests.until import wait_at

app = QmlApp(retry_policy=RetryPolicy.none())


@app.job()
def gated(ctx: WorkerContext, gate: str) -> int:
    """Wait for the gate."""
    note(ctx, "start")
    wait_at(Path(gate))
    return os.getpid()


@app.job(timeout="100ms", retry=RetryPolicy.fixed(delay=timedelta(0), max_attempts=1000))
def outlast(ctx: WorkerContext) -> int:
    """Go on after the interruption until this worker's stack is written, and then return. It is tried again
    where the kill comes before that."""
    try:
        time.sleep(600)  # until it is interrupted
    except JobInterrupted:
        while not has_written_its_stack():
            time.sleep(0.002)  # between two looks
    return os.getpid()


@app.job(max_crashes=1)
def fall(ctx: WorkerContext, signal_number: int) -> None:
    """Die of the signal."""
    os.kill(os.getpid(), signal_number)


def has_written_its_stack() -> bool:
    """Whether there is anything in this process's stack file."""
    fds = [int(each.name) for each in Path("/proc/self/fd").iterdir()]
    return any(os.fstat(fd).st_size for fd in fds if "qml-mp-stack" in link_of(fd))


def link_of(fd: int) -> str:
    """Empty for one that was open for the listing alone."""
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except FileNotFoundError:
        return ""
