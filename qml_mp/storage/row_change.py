"""Every process: an outcome translated, once for all backends, into what changes in the job's row."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import assert_never

from qml_mp.core.job import Job
from qml_mp.core.outcome import (
    AttemptKind,
    Cancelled,
    Crash,
    ErrorInfo,
    Failure,
    Outcome,
    ProcessFacts,
    Release,
    Retry,
    Success,
)
from qml_mp.core.payload import JsonValue
from qml_mp.core.state import (
    AwaitingRetry,
    Deleted,
    Enqueued,
    Failed,
    JobState,
    Processing,
    StateName,
    Succeeded,
)
from qml_mp.storage.values import Retention

STRANDED = "Stranded by a server that is gone."
"""Why claims are released of whose owners nothing is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowChange:
    """What `finish` writes; `delay` and `ttl` are added to the database's clock."""

    state: StateName
    delay: timedelta | None = None
    """AwaitingRetry: until it is due."""
    ttl: timedelta | None = None
    """Final states: until it expires."""
    failures: int = 0
    crashes: int = 0
    result: JsonValue = None
    duration: timedelta | None = None
    error: ErrorInfo | None = None
    """Replaces `last_error`; None leaves it."""
    reason: str | None = None
    keeps_age: bool = False
    """Enqueued: it was never begun, and has waited all the time."""
    attempt: AttemptKind | None = None
    """The kind under which the attempt enters the history; None: it does not."""
    process: ProcessFacts = ProcessFacts()


def unclaimable(why: str) -> ErrorInfo:
    """The error of a job whose row refuses to be claimed: it must not stay at the head of its queue."""
    return ErrorInfo(
        type="UnclaimableRow",
        message=f"The row of this job cannot be claimed: {' '.join(why.split())} Another program has "
        "written it so; set its columns right in the database, then retry the job.",
    )


def server_gone(server_id: str) -> str:
    """Why the claims of one server are released."""
    return f"The server {server_id} is gone."


def row_change(job: Job, outcome: Outcome, retention: Retention) -> RowChange:
    """The change that the outcome makes; a cancel that was asked for wins over running again."""
    if job.cancel_reason is not None and isinstance(outcome, Retry | Crash | Release):
        outcome = Cancelled(reason=job.cancel_reason, process=outcome.process)
    match outcome:
        case Success(result=result, duration=duration, not_stored=not_stored):
            return RowChange(
                state=StateName.SUCCEEDED, ttl=retention.succeeded_ttl, result=result,
                duration=duration, reason=not_stored,
            )  # fmt: skip
        case Retry(error=error, delay=delay, kind=kind, process=process):
            return RowChange(
                state=StateName.AWAITING_RETRY,
                delay=delay,
                failures=1,
                error=error,
                attempt=kind,
                process=process,
            )
        case Failure(error=error, kind=kind, process=process):
            return RowChange(
                state=StateName.FAILED, ttl=retention.failed_ttl, failures=1, error=error, attempt=kind,
                process=process,
            )  # fmt: skip
        case Cancelled(reason=reason, process=process):
            return RowChange(
                state=StateName.DELETED, ttl=retention.succeeded_ttl, reason=job.cancel_reason or reason,
                attempt=AttemptKind.CANCELLED, process=process,
            )  # fmt: skip
        case Release(reason=reason, not_begun=not_begun, process=process):
            return RowChange(state=StateName.ENQUEUED, reason=reason, keeps_age=not_begun, process=process)
        case Crash(error=error, rerun_after=delay, process=process):
            runs_again = StateName.AWAITING_RETRY if delay else StateName.ENQUEUED
            return RowChange(
                state=StateName.FAILED if delay is None else runs_again,
                delay=delay or None,
                ttl=retention.failed_ttl if delay is None else None,
                crashes=1,
                error=error,
                attempt=AttemptKind.CRASH,
                process=process,
            )
        case _:
            assert_never(outcome)


def applied(job: Job, change: RowChange, *, now: datetime) -> Job:
    """The row after the change: what reading it back would give. `now` is the instant of the write."""
    failures = job.failures + change.failures
    error = change.error or job.last_error
    due_at = _later(now, change.delay or timedelta())
    waits = change.state is StateName.AWAITING_RETRY
    return replace(
        job,
        state=_state_after(job, change, now=now, due_at=due_at, failures=failures, error=error),
        failures=failures,
        crashes=job.crashes + change.crashes,
        last_error=error,
        cancel_reason=None,
        run_at=due_at if waits else None,
        finished_at=now if change.state.is_final else None,
        expires_at=None if change.ttl is None else _later(now, change.ttl),
    )


def _later(now: datetime, by: timedelta) -> datetime:
    """The instant, or the end of Python's calendar, which is not that of every database."""
    try:
        return now + by
    except OverflowError:
        return datetime.max.replace(tzinfo=UTC)


def _state_after(
    job: Job, change: RowChange, *, now: datetime, due_at: datetime, failures: int, error: ErrorInfo | None
) -> JobState:
    match change.state:
        case StateName.SUCCEEDED:
            return Succeeded(
                succeeded_at=now,
                duration=change.duration or timedelta(),
                result=change.result,
                not_stored=change.reason,
            )
        case StateName.FAILED:
            return Failed(failed_at=now, exception=error, retry_count=failures)
        case StateName.AWAITING_RETRY:
            return AwaitingRetry(
                scheduled_at=now, retry_at=due_at, retry_count=failures, last_exception=error
            )
        case StateName.DELETED:
            return Deleted(deleted_at=now, reason=change.reason)
        case StateName.ENQUEUED:
            since = job.state.enqueued_at if isinstance(job.state, Processing) else None
            since = since if change.keeps_age else None
            return Enqueued(enqueued_at=since or now, queue=job.queue)
        case StateName.SCHEDULED | StateName.PROCESSING:
            raise AssertionError(f"no claim ends in {change.state}")
        case _:
            assert_never(change.state)
