"""Tests, worker: jobs that come to everything that the history counts."""

from __future__ import annotations

from qml_mp import QmlApp, RetryPolicy, WorkerContext

app = QmlApp(retry_policy=RetryPolicy.none())


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
