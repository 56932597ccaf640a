"""Client and worker: names and attributes of spans, by the conventions for messaging systems.

https://opentelemetry.io/docs/specs/semconv/messaging/messaging-spans/: an enqueue is a "send" by a PRODUCER,
an attempt a "process" by a CONSUMER. What these do not name begins with "qml_mp.".
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import assert_never

from opentelemetry.trace import Span, Status, StatusCode
from opentelemetry.util.types import AttributeValue

from qml_mp.core.job import Job
from qml_mp.core.lost_attempt import RELEASED, LostAttempt
from qml_mp.core.outcome import (
    AttemptKind,
    Cancelled,
    Crash,
    ErrorInfo,
    Failure,
    Outcome,
    Release,
    Retry,
    Success,
)
from qml_mp.core.state import StateName

Attributes = dict[str, AttributeValue]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

ENQUEUE = "enqueue"
PROCESS = "process"


def name_of(operation: str, queue: str | None) -> str:
    """ "process images": the operation and where to; several queues have no name together."""
    return operation if queue is None else f"{operation} {queue}"


def of_sending(jobs: Sequence[Job], *, is_batch: bool, parent: Job | None) -> Attributes:
    """What is known before they are stored."""
    found: Attributes = {
        "messaging.system": "qml_mp",
        "messaging.operation.name": ENQUEUE,
        "messaging.operation.type": "send",
    }
    method = _only({job.method for job in jobs})
    for name, value in (("messaging.destination.name", queue_of(jobs)), ("qml_mp.method", method)):
        if value is not None:
            found[name] = value
    if is_batch:
        found["messaging.batch.message_count"] = len(jobs)
    elif jobs:
        found["messaging.message.id"] = jobs[0].id
    if parent is not None:
        found["qml_mp.parent_id"] = parent.id
    return found


def of_attempt(
    *, job_id: str, queue: str, method: str, attempt: int, claim_seq: int, worker_id: str
) -> Attributes:
    """What is known when it begins."""
    return {
        "messaging.system": "qml_mp",
        "messaging.operation.name": PROCESS,
        "messaging.operation.type": "process",
        "messaging.destination.name": queue,
        "messaging.message.id": job_id,
        "messaging.client.id": worker_id,
        "qml_mp.method": method,
        "qml_mp.attempt": attempt,
        "qml_mp.claim_seq": claim_seq,
    }


def queue_of(jobs: Sequence[Job]) -> str | None:
    """Where all of them go to; None: to several."""
    return _only({job.queue for job in jobs})


def tell_outcome(span: Span, outcome: Outcome) -> None:
    """What came of an attempt, by its own worker. `qml_mp.outcome` is how the attempt ended,
    `qml_mp.job.state` what becomes of the job, unless somebody else changes that before it is written."""
    match outcome:
        case Success():
            _tell(span, "succeeded", StateName.SUCCEEDED)
        case Retry(error=error, kind=kind, delay=delay):
            _tell(span, kind, StateName.AWAITING_RETRY)
            span.set_attribute("qml_mp.retry_in_s", delay.total_seconds())
            _tell_error(span, error)
        case Failure(error=error, kind=kind):
            _tell(span, kind, StateName.FAILED)
            _tell_error(span, error)
        case Cancelled(reason=reason):
            _tell(span, AttemptKind.CANCELLED, StateName.DELETED)
            _tell_end(span, AttemptKind.CANCELLED, reason)
        case Release(reason=reason):  # nobody's fault, and it runs again
            _tell(span, RELEASED, StateName.ENQUEUED)
            span.set_attribute("qml_mp.reason", reason)
        case Crash(error=error):
            _tell(span, AttemptKind.CRASH, StateName.ENQUEUED)
            _tell_error(span, error)
        case _:
            assert_never(outcome)


def tell_loss(span: Span, lost: LostAttempt) -> None:
    """What came of an attempt whose worker is dead. It is an error, whatever becomes of the job."""
    _tell(span, lost.ended_as, lost.state)
    process = lost.process
    known = {
        "process.pid": process.pid,
        "qml_mp.worker.signal": process.signal,
        "qml_mp.worker.exit_code": process.exit_code,
        "qml_mp.worker.peak_rss_bytes": process.peak_rss_bytes,
        "qml_mp.worker.cpu_s": process.cpu_s,
        "qml_mp.retry_in_s": None if lost.delay is None else lost.delay.total_seconds(),
    }
    span.set_attributes({name: value for name, value in known.items() if value is not None})
    span.set_attribute("qml_mp.worker.died", True)
    if lost.error is not None:
        _tell_error(span, lost.error, at_ns=nanoseconds(lost.ended_at))
    else:
        _tell_end(span, lost.ended_as, lost.reason)


def nanoseconds(instant: datetime) -> int:
    """Since 1970, as spans have it."""
    return (instant - _EPOCH) // timedelta(microseconds=1) * 1000


def _tell(span: Span, ended_as: str, state: StateName) -> None:
    span.set_attribute("qml_mp.outcome", str(ended_as))
    span.set_attribute("qml_mp.job.state", str(state))


def _tell_error(span: Span, error: ErrorInfo, *, at_ns: int | None = None) -> None:
    """As `record_exception` would; the text is what is stored of it, with the user's frames."""
    told: Attributes = {"exception.type": error.type, "exception.message": error.message}
    if error.traceback:
        told["exception.stacktrace"] = error.traceback
    span.add_event("exception", told, at_ns)
    _tell_end(span, error.type, f"{error.type}: {error.message}", is_told=True)


def _tell_end(span: Span, error_type: str, description: str, *, is_told: bool = False) -> None:
    span.set_attribute("error.type", str(error_type))
    span.set_status(Status(StatusCode.ERROR, description))
    if not is_told:
        span.set_attribute("qml_mp.reason", description)


def _only(names: set[str]) -> str | None:
    """The one that there is; None: there are several."""
    return names.pop() if len(names) == 1 else None
