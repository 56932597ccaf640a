"""Every process: rows read as values, once for all backends; `storable` is the way back.

Rows can be written by other programs, so reading trusts none of them: whatever stands in a column,
these functions return a value and raise nothing. An unreadable payload is said in `payload_error`.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Protocol, assert_never

from qml_mp.core.answers import read_answers
from qml_mp.core.job import NO_RETRIES, Claim, Job
from qml_mp.core.outcome import Attempt, AttemptKind, ErrorInfo, ProcessFacts
from qml_mp.core.payload import JsonValue, decode_json
from qml_mp.core.recurring import RecurringJob
from qml_mp.core.server_info import ProcessIdentity, ServerInfo, WorkerInfo
from qml_mp.core.state import (
    AwaitingRetry,
    Deleted,
    Enqueued,
    Failed,
    JobState,
    Processing,
    Scheduled,
    StateName,
    Succeeded,
)
from qml_mp.errors import InvalidJob

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

# What each reader below needs, as the queries of every backend give it.
JOB_COLUMNS: Final = """
    id, method, queue, priority, state, payload, metadata, result, max_retries, max_crashes, timeout_us,
    unique_key, created_at, enqueued_at, run_at, started_at, finished_at, expires_at, duration_us, worker_id,
    server_id, claim_seq, failures, crashes, last_error_type, last_error_message, last_error_traceback,
    reason, cancel_reason
"""
ATTEMPT_COLUMNS: Final = """
    claim_seq, kind, worker, pid, started_at, ended_at, error_type, error_message, error_traceback, signal,
    exit_code, peak_rss_bytes, cpu_s
"""
TEMPLATE_COLUMNS: Final = """
    id, cron, tz, method, payload, queue, misfire, overlap, jitter_us, app, enabled, next_run_at, waiting_for,
    last_run_at, last_job_id, created_at, disabled_reason
"""
SERVER_COLUMNS: Final = """
    id, name, hostname, host, pid, started_ticks, worker_count, queues, started_at, last_heartbeat,
    heartbeat_enabled, methods, paused, trouble, answers
"""
WORKER_COLUMNS: Final = "id, server_id, number, host, pid, started_ticks, started_at, rss_bytes, epoch"


class Row(Protocol):
    """A row whose columns are read by name, as in a dict."""

    def __getitem__(self, name: str, /) -> Any:
        """The column's value as the driver gives it; instants are read by `Database.instant`."""


ToInstant = Callable[[object], datetime | None]
"""How a backend's instants are read: an aware UTC datetime, or None for NULL and for nonsense."""


def job_of(row: Row, instant: ToInstant) -> Job:
    """The job of a row of the jobs table, whatever the row holds."""
    return _job(row, instant, _state(row, instant))


def claim_of(row: Row, instant: ToInstant) -> Claim:
    """The claim of a row that is Processing."""
    state, payload = _processing(row, instant), row["payload"]
    return Claim(
        job=_job(row, instant, state),
        worker_id=state.worker_id,
        server_id=state.server_name,
        payload_chars=len(payload) if isinstance(payload, str | bytes) else 0,
    )


def _job(row: Row, instant: ToInstant, state: JobState) -> Job:
    payload, payload_error = json_of(row["payload"])
    metadata, _ = json_of(row["metadata"])
    return Job(
        id=text_of(row["id"]),
        method=text_of(row["method"]),
        payload=payload,
        payload_error=payload_error,
        metadata=metadata if isinstance(metadata, dict) else {},
        state=state,
        queue=text_of(row["queue"]),
        priority=_int(row["priority"]) or 0,
        max_retries=_max_retries(_int(row["max_retries"])),
        max_crashes=_int(row["max_crashes"]),
        timeout=_duration(row["timeout_us"]),
        unique_key=_optional_text(row["unique_key"]),
        created_at=instant(row["created_at"]) or _EPOCH,
        expires_at=instant(row["expires_at"]),
        run_at=instant(row["run_at"]),
        started_at=instant(row["started_at"]),
        finished_at=instant(row["finished_at"]),
        claim_seq=_int(row["claim_seq"]) or 0,
        failures=_int(row["failures"]) or 0,
        crashes=_int(row["crashes"]) or 0,
        last_error=_last_error(row),
        cancel_reason=_optional_text(row["cancel_reason"]),
    )


def attempt_of(row: Row, instant: ToInstant) -> Attempt:
    """The attempt of a row of the attempts table."""
    kind = text_of(row["kind"])
    return Attempt(
        kind=AttemptKind(kind) if kind in set(AttemptKind) else AttemptKind.FAILURE,
        claim_seq=_int(row["claim_seq"]) or 0,
        worker=text_of(row["worker"]),
        pid=_int(row["pid"]),
        started_at=instant(row["started_at"]) or _EPOCH,
        ended_at=instant(row["ended_at"]) or _EPOCH,
        error=_error(row["error_type"], row["error_message"], row["error_traceback"]),
        process=ProcessFacts(
            signal=_int(row["signal"]),
            exit_code=_int(row["exit_code"]),
            peak_rss_bytes=_int(row["peak_rss_bytes"]),
            cpu_s=row["cpu_s"] if isinstance(row["cpu_s"], int | float) else None,
        ),
    )


def template_of(row: Row, instant: ToInstant) -> RecurringJob:
    """The template of a row of the recurring jobs table; an unreadable payload reads as None."""
    payload, _ = json_of(row["payload"])
    return RecurringJob(
        id=text_of(row["id"]),
        cron=text_of(row["cron"]),
        method=text_of(row["method"]),
        payload=payload,
        queue=text_of(row["queue"]),
        tz=text_of(row["tz"]),
        misfire=text_of(row["misfire"]),
        overlap=text_of(row["overlap"]),
        jitter=_duration(row["jitter_us"]) or timedelta(),
        app=_optional_text(row["app"]),
        enabled=bool(row["enabled"]),
        next_run_at=instant(row["next_run_at"]),
        waiting_for=instant(row["waiting_for"]),
        last_run_at=instant(row["last_run_at"]),
        last_job_id=_optional_text(row["last_job_id"]),
        last_job_state=None if row["last_job_state"] is None else state_name_of(row["last_job_state"]),
        created_at=instant(row["created_at"]) or _EPOCH,
        disabled_reason=_optional_text(row["disabled_reason"]),
    )


def server_of(row: Row, instant: ToInstant) -> ServerInfo:
    """The server of a row of the servers table."""
    queues, _ = json_of(row["queues"])
    methods, _ = json_of(row["methods"])
    return ServerInfo(
        id=text_of(row["id"]),
        name=text_of(row["name"]),
        hostname=text_of(row["hostname"]),
        process=_process(row),
        worker_count=_int(row["worker_count"]) or 0,
        queues=tuple(map(str, queues)) if isinstance(queues, list) else (),
        started_at=instant(row["started_at"]) or _EPOCH,
        last_heartbeat=instant(row["last_heartbeat"]) or _EPOCH,
        heartbeat_enabled=bool(row["heartbeat_enabled"]),
        methods=tuple(map(str, methods)) if isinstance(methods, list) else None,
        paused=bool(row["paused"]),
        trouble=_optional_text(row["trouble"]),
        answers=read_answers(_optional_text(row["answers"])),
    )


def worker_of(row: Row, instant: ToInstant) -> WorkerInfo:
    """The worker of a row of the workers table."""
    return WorkerInfo(
        id=text_of(row["id"]),
        server_id=text_of(row["server_id"]),
        number=_int(row["number"]) or 0,
        process=_process(row),
        started_at=instant(row["started_at"]) or _EPOCH,
        rss_bytes=_int(row["rss_bytes"]),
        epoch=_int(row["epoch"]) or 0,
    )


def state_name_of(value: object) -> StateName:
    """The state of a `state` column; the table's CHECK lets no other text in."""
    return StateName(text_of(value))


def _state(row: Row, instant: ToInstant) -> JobState:
    created_at = instant(row["created_at"]) or _EPOCH
    waiting_since = instant(row["enqueued_at"]) or created_at
    finished_at = instant(row["finished_at"]) or created_at
    name = state_name_of(row["state"])
    match name:
        case StateName.ENQUEUED:
            return Enqueued(enqueued_at=waiting_since, queue=text_of(row["queue"]))
        case StateName.SCHEDULED:
            return Scheduled(
                scheduled_at=waiting_since,
                enqueue_at=instant(row["run_at"]) or created_at,
                reason=_optional_text(row["reason"]),
            )
        case StateName.PROCESSING:
            return _processing(row, instant)
        case StateName.AWAITING_RETRY:
            return AwaitingRetry(
                scheduled_at=waiting_since,
                retry_at=instant(row["run_at"]) or created_at,
                retry_count=_int(row["failures"]) or 0,
                last_exception=_last_error(row),
            )
        case StateName.SUCCEEDED:
            result, problem = json_of(row["result"])
            return Succeeded(
                succeeded_at=finished_at,
                duration=_duration(row["duration_us"]) or timedelta(),
                result=result,
                not_stored=_optional_text(row["reason"]) or problem,
            )
        case StateName.FAILED:
            return Failed(
                failed_at=finished_at,
                exception=_last_error(row),
                retry_count=_int(row["failures"]) or 0,
            )
        case StateName.DELETED:
            return Deleted(deleted_at=finished_at, reason=_optional_text(row["reason"]))
        case _:
            assert_never(name)


def _processing(row: Row, instant: ToInstant) -> Processing:
    created_at = instant(row["created_at"]) or _EPOCH
    return Processing(
        started_at=instant(row["started_at"]) or created_at,
        worker_id=text_of(row["worker_id"]),
        server_name=text_of(row["server_id"]),
        enqueued_at=instant(row["enqueued_at"]) or created_at,
    )


def json_of(value: object) -> tuple[JsonValue, str | None]:
    """A JSON column: the value and None, or None and why it cannot be read."""
    try:
        match value:
            case None:
                return None, None
            case "{}":  # the metadata of most jobs, and many a payload
                return {}, None
            case str() | bytes():
                return decode_json(value), None
            case _:
                raise InvalidJob(f"The stored JSON is of type {type(value).__name__}, not text.")
    except InvalidJob as error:
        return None, str(error)


def _process(row: Row) -> ProcessIdentity:
    return ProcessIdentity(
        host=text_of(row["host"]), pid=_int(row["pid"]) or 0, started_ticks=_int(row["started_ticks"]) or 0
    )


def _last_error(row: Row) -> ErrorInfo | None:
    return _error(row["last_error_type"], row["last_error_message"], row["last_error_traceback"])


def _error(type_: object, message: object, traceback: object) -> ErrorInfo | None:
    if type_ is None:
        return None
    return ErrorInfo(type=text_of(type_), message=text_of(message), traceback=_optional_text(traceback))


def text_of(value: object) -> str:
    """The text of a column, whatever is in it; empty for NULL."""
    if type(value) is str and value.isascii():
        return value
    return _optional_text(value) or ""


def _optional_text(value: object) -> str | None:
    match value:
        case None:
            return None
        case str():
            return value if value.isascii() else value.encode("utf-8", "replace").decode()
        case bytes():
            return value.decode("utf-8", "replace")
        case _:
            return str(value)


def _int(value: object) -> int | None:
    return value if isinstance(value, int) else None


def _max_retries(value: int | None) -> int | None:
    """The way back of `storable`; 0, and what means nothing, leaves it to the policy."""
    return 0 if value == NO_RETRIES else value if value is not None and value > 0 else None


def _duration(value: object) -> timedelta | None:
    try:
        return timedelta(microseconds=value) if isinstance(value, int) else None
    except OverflowError:
        return timedelta.max
