"""Tests, worker: jobs that come to everything that the history counts."""

from __future__ import annotations

from qml_mp import QmlApp, RetryPolicy, WorkerContext
from qml_mp.ipc import ended

app = QmlApp(retry_policy=RetryPolicy.none())
ended.REGION_BYTES = 64 * 1024  # of the worker that loads this: less than a result may have


@app.job()
def brief() -> int:
    """End at once."""
    return 1


@app.job()
def fail() -> None:
    """Fail for good."""
    raise ValueError("no")


@app.job(retry=RetryPolicy.fixed(max_attempts=1000, delay=0.01))
def again(ctx: WorkerContext) -> int:
    """Fail at the first attempt that is charged to nobody else."""
    if ctx.job.failures == 0:
        raise ValueError("not yet")
    return 2


@app.job()
def large() -> str:
    """Return more than there is room for in shared memory."""
    return "x" * (ended.REGION_BYTES + 1)
