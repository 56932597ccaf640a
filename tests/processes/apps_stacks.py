"""Tests: the app whose jobs are asked for their stacks, and outlive that, or die."""

from __future__ import annotations

import os
from pathlib import Path

from qml_mp import QmlApp, RetryPolicy, WorkerContext
from tests.processes.journal import note
from tests.until import wait_at

app = QmlApp(retry_policy=RetryPolicy.none())


@app.job()
def gated(ctx: WorkerContext, gate: str) -> int:
    """Wait for the gate."""
    note(ctx, "start")
    wait_at(Path(gate))
    return os.getpid()


@app.job(max_crashes=1)
def fall(ctx: WorkerContext, signal_number: int) -> None:
    """Die of the signal."""
    os.kill(os.getpid(), signal_number)
