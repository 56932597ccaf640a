"""Tests: functions that become jobs, and what a worker would do with them."""

from __future__ import annotations

from datetime import date

from qml_mp import (
    Job,
    QmlApp,
    WorkerContext,
)
from qml_mp.core.job import Claim
from qml_mp.core.outcome import Outcome
from qml_mp.core.payload import JsonValue
from qml_mp.processing.registry import Worker
from qml_mp.storage.values import BY_DEFAULT, Fetch, JobFilter

RETENTION = BY_DEFAULT


def resize(ctx: WorkerContext, path: str, width: int = 800) -> dict[str, int]:
    return {path: width + ctx.attempt}


def on_day(day: date) -> None: ...


def digest() -> None: ...


class Echo(Worker):
    method_name = "echo"

    def execute(self, job: Job, context: WorkerContext) -> JsonValue:
        return [job.payload, context.attempt]


def finish(app: QmlApp, outcome: Outcome, *, queue: str = "default") -> None:
    """What a worker does with the next job."""
    claim = begin(app, queue=queue)
    assert app.storage.finish(claim, outcome, retention=RETENTION).accepted


def begin(app: QmlApp, *, queue: str = "default") -> Claim:
    """The next job runs now."""
    claim = app.storage.fetch_and_lock_job(Fetch(worker_id="w-1", server_id="s#1", queues=(queue,)))
    assert claim is not None
    return claim


def count(app: QmlApp) -> int:
    return len(app.storage.list_jobs(JobFilter()).jobs)
