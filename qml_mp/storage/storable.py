"""Every process: values made ready to be written, once for all backends; `rows` is the way back."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import NamedTuple

from qml_mp.core.job import NO_RETRIES, Job, check_is_job, check_job_id
from qml_mp.core.outcome import ErrorInfo
from qml_mp.core.payload import encode_json
from qml_mp.core.state import Enqueued, Scheduled
from qml_mp.errors import ConfigurationError, InvalidJob, shown
from qml_mp.storage.row_change import RowChange

MAX_MESSAGE_BYTES = 8 * 1024
MAX_TRACEBACK_BYTES = 64 * 1024
_MAX_TYPE_BYTES = 500
_LONGEST = timedelta(microseconds=2**63 - 1)
_MICROSECOND = timedelta(microseconds=1)


class NewRow(NamedTuple):
    """The columns of a new job. A tuple, because each of a hundred thousand in a second is bound by position:
    first what every job has, then what most leave out."""

    id: str
    method: str
    queue: str
    priority: int
    payload: str
    metadata: str
    max_retries: int
    max_crashes: int | None
    timeout_us: int | None
    created_at: datetime
    unique_key: str | None
    run_at: datetime | None
    """Makes it Scheduled unless it has passed by the database's clock."""
    reason: str | None
    recurring_id: str | None = None
    fire_at: datetime | None = None


def new_row(job: Job) -> NewRow:
    """The row of a new job. Raises `InvalidJob` when it cannot be stored, `TypeError` when it is no job."""
    payload = check_is_job(job).payload_text()
    run_at: datetime | None = None
    reason: str | None = None
    match job.state:
        case Enqueued():
            pass
        case Scheduled(enqueue_at=run_at, reason=reason):
            pass
        case _:
            raise InvalidJob(
                f"Job {job.id} is {job.state_name}; only an Enqueued or Scheduled job can be new."
            )
    return NewRow(
        check_job_id(job.id),
        job.method,
        job.queue,
        job.priority,
        payload,
        encode_json(dict(job.metadata), what="metadata") if job.metadata else "{}",
        _max_retries_column(job.max_retries),
        job.max_crashes,
        None if job.timeout is None else microseconds(job.timeout),
        job.created_at,
        job.unique_key,
        run_at,
        storable_reason(reason),
    )


def _max_retries_column(max_retries: int | None) -> int:
    if max_retries is None:
        return 0
    return max_retries or NO_RETRIES


def storable_text(text: str, *, max_bytes: int, keep_tail: bool = False) -> str:
    """The text as every backend can store it: no NUL, no lone surrogate, cut to `max_bytes` of UTF-8."""
    raw = text.replace("\0", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace")
    if len(raw) <= max_bytes:
        return raw.decode()
    mark = b"[... cut ...]"
    room = max_bytes - len(mark)
    cut = mark + raw[-room:] if keep_tail else raw[:room] + mark
    return cut.decode("utf-8", "ignore")


def storable_error(error: ErrorInfo | None) -> ErrorInfo | None:
    """The error with its texts made storable; of a traceback the tail is kept, where the cause stands."""
    if error is None:
        return None
    traceback = error.traceback
    return ErrorInfo(
        type=storable_text(error.type, max_bytes=_MAX_TYPE_BYTES),
        message=storable_text(error.message, max_bytes=MAX_MESSAGE_BYTES),
        traceback=None
        if traceback is None
        else storable_text(traceback, max_bytes=MAX_TRACEBACK_BYTES, keep_tail=True),
    )


def storable_change(change: RowChange) -> RowChange:
    """The change with its texts made storable, so that it says what the row will hold."""
    if change.error is None and change.reason is None:
        return change
    return replace(change, error=storable_error(change.error), reason=storable_reason(change.reason))


def storable_reason(reason: str | None) -> str | None:
    """A reason made storable. `ConfigurationError` for what is no text."""
    if reason is None:  # of most jobs
        return None
    if not isinstance(reason, str):
        raise ConfigurationError(f"reason is {shown(reason)}; it must be text.")
    return storable_text(reason, max_bytes=MAX_MESSAGE_BYTES)


def canonical_id(job_id: str) -> str | None:
    """The job id as stored; None when the text is no job id, so that no job can have it."""
    try:
        return check_job_id(job_id)
    except InvalidJob:
        return None


def microseconds(duration: timedelta) -> int:
    """The duration in whole microseconds. Raises `InvalidJob` when they are too many for a column."""
    if not -_LONGEST <= duration <= _LONGEST:
        raise InvalidJob(f"A duration of {duration} cannot be stored; the longest is {_LONGEST}.")
    return duration // _MICROSECOND
