"""Worker, supervisor: the one line in which the log tells what became of an attempt that did not succeed.

It is read off the row before and after, so that it says what is stored, also where a cancel that was
asked for, or the storage itself, has changed what the attempt came to.
"""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import Final

from qml_mp.core.job import Claim, Job
from qml_mp.core.outcome import ErrorInfo
from qml_mp.core.state import AwaitingRetry, Deleted, Enqueued, Failed
from qml_mp.units import format_duration

_MAX_MESSAGE_CHARS: Final = 1000
_MAX_TRACEBACK_CHARS: Final = 4000


def log_transition(
    logger: logging.Logger, claim: Claim, job: Job, *, attempts: int | None = None, crashes: int | None = None
) -> None:
    """Tell how the claim ended whose row is `job` now: WARNING when it failed and runs again, ERROR when it
    failed for good, INFO when it was cancelled or given back. That it succeeded is the tracing's to tell.

    `attempts` and `crashes` are the budgets, where they are known. The payload is never told.
    """
    what = f"attempt {job.failures}{_of(attempts)}"
    crashed = job.crashes > claim.job.crashes
    if crashed:
        what = f"crash {job.crashes}{_of(crashes)}"
    match job.state:
        case Failed():
            level, told = logging.ERROR, f"failed for good at {what}: {_error(job.last_error)}"
        case AwaitingRetry(scheduled_at=since, retry_at=due) if crashed:
            level, told = logging.WARNING, f"{what}, runs again {_in(due - since)}: {_error(job.last_error)}"
        case AwaitingRetry(scheduled_at=since, retry_at=due):
            how = "passed its time limit" if _is_timeout(job.last_error) else "failed"
            level, told = (
                logging.WARNING,
                f"{what} {how}, retry {_in(due - since)}: {_error(job.last_error)}",
            )
        case Enqueued() if crashed:
            level, told = logging.WARNING, f"{what}, runs again at once: {_error(job.last_error)}"
        case Deleted(reason=reason):
            level, told = logging.INFO, f"cancelled: {reason}"
        case Enqueued():
            level, told = logging.INFO, "given back, uncharged"
        case _:
            return  # it succeeded
    logger.log(
        level,
        "job %s (%s): %s",
        job.id,
        job.method,
        told,
        extra={
            "job_id": job.id,
            "worker_id": claim.worker_id,
            "attempt": claim.job.failures + claim.job.crashes + 1,
            "method": job.method,
        },
    )


def _of(budget: int | None) -> str:
    return "" if budget is None else f" of {budget}"


def _in(delay: timedelta) -> str:
    return f"in {format_duration(delay)}" if delay > timedelta() else "at once"


def _is_timeout(error: ErrorInfo | None) -> bool:
    return error is not None and error.type == "JobTimeout"


def _error(error: ErrorInfo | None) -> str:
    """Type and message on the line, the traceback below it; of what is long, the part that tells most."""
    if error is None:
        return "no error is known"
    message = error.message
    if len(message) > _MAX_MESSAGE_CHARS:
        message = f"{message[:_MAX_MESSAGE_CHARS]}…"
    if not error.traceback:
        return f"{error.type}: {message}"
    trace = error.traceback.rstrip()
    if len(trace) > _MAX_TRACEBACK_CHARS:
        trace = f"…{trace[-_MAX_TRACEBACK_CHARS:]}"
    return f"{error.type}: {message}\n{trace}"
