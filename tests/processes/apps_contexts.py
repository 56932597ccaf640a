"""Tests: the app whose jobs change the context that they run in."""

from __future__ import annotations

import decimal
import os
from contextvars import ContextVar
from decimal import Decimal
from pathlib import Path

from qml_mp import ErrorInfo, Job, QmlApp, RetryPolicy, WorkerContext
from qml_mp.processing.middleware import CallNext
from tests.processes.journal import JOURNAL

PRECISION = "TESTS_PRECISION"
"""The environment variable with the digits that the app itself asks for, as it is imported."""
if PRECISION in os.environ:
    decimal.getcontext().prec = int(os.environ[PRECISION])

tenant: ContextVar[str] = ContextVar("tenant", default="nobody")
caller: ContextVar[str] = ContextVar("caller", default="nobody")


def say_who_calls(job: Job, context: WorkerContext, call_next: CallNext) -> object:
    """As middleware for traces and logs does, that has no end of its own."""
    caller.set(job.method)
    return call_next(job, context)


app = QmlApp(retry_policy=RetryPolicy.none(), middleware=[say_who_calls])


@app.job()
def change() -> list[object]:
    decimal.getcontext().prec = 3
    tenant.set("another's")
    return _found()


@app.job()
async def change_in_a_task() -> list[object]:
    decimal.getcontext().prec = 3
    tenant.set("another's")
    return _found()


@app.job()
def look() -> list[object]:
    return _found()


@app.job()
async def look_in_a_task() -> list[object]:
    return _found()


@app.on_failure
def change_more(job: Job, error: ErrorInfo) -> None:
    decimal.getcontext().prec = 2
    tenant.set("the hook's")
    Path(os.environ[JOURNAL]).with_name("told").touch()


@app.job()
def fail() -> None:
    raise ValueError("so that the hook is called")


def _found() -> list[object]:
    return [str(Decimal(1) / Decimal(7)), tenant.get(), caller.get()]
