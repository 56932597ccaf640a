"""Tests: a server on an SQLite file whose clock another program can set, and what runs there.

`python -m tests.processes.stepped_clock URL OFFSET_FILE`: its wall time is off by the seconds in the file.
"""

from __future__ import annotations

import sys
from datetime import datetime, timedelta
from pathlib import Path

from qml_mp import QmlApp, RetryPolicy, ServerConfig, WorkerContext
from qml_mp.child.source import NamedProgram
from qml_mp.clock import SystemClock
from qml_mp.storage.open import open_storage
from qml_mp.supervisor.server import Supervisor
from tests.processes.journal import note
from tests.until import wait_at

app = QmlApp()


@app.job()
def tick(ctx: WorkerContext) -> None:
    """What the template runs."""
    note(ctx, "tick")


@app.job(retry=RetryPolicy.fixed(timedelta(seconds=4), jitter=0.0, max_attempts=2))
def flaky(ctx: WorkerContext) -> None:
    """Fail at the first attempt."""
    note(ctx, f"attempt {ctx.attempt}")
    if ctx.attempt == 1:
        raise ValueError("the first time")


@app.job(timeout=timedelta(minutes=10), retry=RetryPolicy.none())
def wait_for(ctx: WorkerContext, gate: str) -> None:
    """Wait until the file is there."""
    note(ctx, "start")
    wait_at(Path(gate))


class SteppedClock(SystemClock):
    """The clock of this machine, off by what the file says."""

    def __init__(self, offset: Path) -> None:
        self._offset = offset

    def now(self) -> datetime:
        return super().now() + timedelta(seconds=float(self._offset.read_text()))


if __name__ == "__main__":
    url, offset = sys.argv[1:]
    storage = open_storage(url, clock=SteppedClock(Path(offset)))
    source = NamedProgram(spec="tests.processes.stepped_clock:app")
    config = ServerConfig(worker_count=1, scheduler_poll_interval=timedelta(hours=1))  # no poll helps
    sys.exit(Supervisor(config, storage, source).run())
