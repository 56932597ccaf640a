"""Tests: a processor with one worker, and claims to run on it."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from qml_mp.core.job import Claim, Job
from qml_mp.core.outcome import ErrorInfo, Failure, Outcome, Retry
from qml_mp.core.payload import JsonValue
from qml_mp.core.state import Processing
from qml_mp.processing.board import ShownProgress
from qml_mp.processing.cancel import CancelReason, CancelToken, UserCode
from qml_mp.processing.middleware import JobMiddleware
from qml_mp.processing.processor import JobProcessor
from qml_mp.processing.program import Program
from qml_mp.processing.registry import FunctionWorker, Worker, WorkerRegistry
from qml_mp.processing.retry import RetryPolicy

NOW = datetime(2025, 3, 1, 12, tzinfo=UTC)
STEADY = RetryPolicy.fixed(10, max_attempts=3, jitter=0)
TEN_S = timedelta(seconds=10)


class SteppingClock:
    """The wall stands still; every look at the monotonic clock is 2 seconds after the one before."""

    def __init__(self) -> None:
        self.looks = 0

    def now(self) -> datetime:
        return NOW

    def monotonic(self) -> float:
        self.looks += 1
        return 2.0 * self.looks


def processor_of(
    worker: Worker | Callable[..., Any] | None,
    *,
    middleware: tuple[JobMiddleware, ...] = (),
    policy: RetryPolicy = STEADY,
    user_code: UserCode = nullcontext,
    progress: ShownProgress | None = None,
) -> JobProcessor:
    registry = WorkerRegistry()
    if worker is not None:
        registry.register(worker if isinstance(worker, Worker) else FunctionWorker(worker, method_name="f"))
    return JobProcessor(
        Program(registry=registry, retry_policy=policy, middleware=middleware),
        default_timeout=timedelta(minutes=5),
        user_code=user_code,
        clock=SteppingClock(),
        rng=random.Random(1),
        progress=progress,
    )


def claim_of(payload: JsonValue = None, **fields: Any) -> Claim:
    state = Processing(started_at=NOW, worker_id="w-1", server_name="s#1")
    job = replace(Job.new("f", payload, now=NOW), state=state, claim_seq=1, **fields)
    return Claim(job=job, worker_id="w-1", server_id="s#1")


def keys_of(record: logging.LogRecord) -> tuple[object, ...]:
    """What a record says of the attempt that it is about."""
    return tuple(getattr(record, name, None) for name in ("job_id", "method", "attempt", "worker_id"))


def cancelled(reason: CancelReason, message: str = "enough") -> CancelToken:
    return CancelToken(lambda _: (reason, message))


def run(
    worker: Worker | Callable[..., Any] | None,
    claim: Claim | None = None,
    cancel: CancelToken | None = None,
    **options: Any,
) -> Outcome:
    processor = processor_of(worker, **options)
    return processor.run(processor.resolve(claim or claim_of()), cancel or CancelToken.never())


def error_of(outcome: Outcome) -> ErrorInfo:
    assert isinstance(outcome, Retry | Failure)
    return outcome.error


def raising(error: BaseException) -> Callable[[], None]:
    def f() -> None:
        raise error

    return f


def returning(value: object) -> Callable[[], object]:
    return lambda: value
