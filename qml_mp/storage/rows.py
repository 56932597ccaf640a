"""Every process: rows read as values, once for all backends; `storable` is the way back.

Those of jobs are read by `job_rows`.

Rows can be written by other programs, so reading trusts none of them: whatever stands in a column,
these functions return a value and raise nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Protocol

from qml_mp.core.acts import Act, ActState, Asker, read_arguments, read_stacks
from qml_mp.core.answers import read_answers
from qml_mp.core.outcome import Attempt, AttemptKind, ErrorInfo, ProcessFacts
from qml_mp.core.payload import JsonValue, decode_json
from qml_mp.core.recurring import RecurringJob
from qml_mp.core.server_info import ProcessIdentity, ServerInfo, WorkerInfo
from qml_mp.core.state import StateName
from qml_mp.errors import InvalidJob

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

# What each reader below needs, as the queries of every backend give it.
ATTEMPT_COLUMNS: Final = """
    claim_seq, kind, worker, pid, started_at, ended_at, error_type, error_message, error_traceback, signal,
    exit_code, peak_rss_bytes, cpu_s
"""
TEMPLATE_COLUMNS: Final = """
    id, cron, tz, method, payload, queue, priority, misfire, overlap, jitter_us, app, enabled, next_run_at,
    waiting_for, last_run_at, last_job_id, created_at, disabled_reason
"""
SERVER_COLUMNS: Final = """
    id, name, hostname, host, pid, started_ticks, worker_count, queues, started_at, last_heartbeat,
    heartbeat_enabled, methods, paused, trouble, answers, acts
"""
ACT_COLUMNS: Final = """
    id, what, subject, server_id, arguments, asked_by, asked_from, asked_at, until, taken_at, ended_at, said
"""
"""Beside state, which is read by the clock too, and answer."""
WORKER_COLUMNS: Final = "id, server_id, number, host, pid, started_ticks, started_at, rss_bytes, epoch"


class Row(Protocol):
    """A row whose columns are read by name, as in a dict."""

    def __getitem__(self, name: str, /) -> Any:
        """The column's value as the driver gives it; instants are read by `Database.instant`."""


Columns = tuple[Any, ...]
"""A row without the names of its columns, in the order in which the query gives them."""

ToInstant = Callable[[object], datetime | None]
"""How a backend's instants are read: an aware UTC datetime, or None for NULL and for nonsense."""


def attempt_of(row: Row, instant: ToInstant) -> Attempt:
    """The attempt of a row of the attempts table."""
    kind = text_of(row["kind"])
    return Attempt(
        kind=AttemptKind(kind) if kind in set(AttemptKind) else AttemptKind.FAILURE,
        claim_seq=int_of(row["claim_seq"]) or 0,
        worker=text_of(row["worker"]),
        pid=int_of(row["pid"]),
        started_at=instant(row["started_at"]) or EPOCH,
        ended_at=instant(row["ended_at"]) or EPOCH,
        error=error_of(row["error_type"], row["error_message"], row["error_traceback"]),
        process=ProcessFacts(
            signal=int_of(row["signal"]),
            exit_code=int_of(row["exit_code"]),
            peak_rss_bytes=int_of(row["peak_rss_bytes"]),
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
        priority=int_of(row["priority"]) or 0,
        tz=text_of(row["tz"]),
        misfire=text_of(row["misfire"]),
        overlap=text_of(row["overlap"]),
        jitter=duration_of(row["jitter_us"]) or timedelta(),
        app=optional_text_of(row["app"]),
        enabled=bool(row["enabled"]),
        next_run_at=instant(row["next_run_at"]),
        waiting_for=instant(row["waiting_for"]),
        last_run_at=instant(row["last_run_at"]),
        last_job_id=optional_text_of(row["last_job_id"]),
        last_job_state=None if row["last_job_state"] is None else state_name_of(row["last_job_state"]),
        created_at=instant(row["created_at"]) or EPOCH,
        disabled_reason=optional_text_of(row["disabled_reason"]),
    )


def server_of(row: Row, instant: ToInstant, *, place: str) -> ServerInfo:
    """The server of a row of the servers table; `place` is as in `process_of`."""
    queues, _ = json_of(row["queues"])
    methods, _ = json_of(row["methods"])
    acts, _ = json_of(row["acts"])
    return ServerInfo(
        id=text_of(row["id"]),
        name=text_of(row["name"]),
        hostname=text_of(row["hostname"]),
        process=process_of(row, place=place),
        worker_count=int_of(row["worker_count"]) or 0,
        queues=tuple(map(str, queues)) if isinstance(queues, list) else (),
        started_at=instant(row["started_at"]) or EPOCH,
        last_heartbeat=instant(row["last_heartbeat"]) or EPOCH,
        heartbeat_enabled=bool(row["heartbeat_enabled"]),
        methods=tuple(map(str, methods)) if isinstance(methods, list) else None,
        paused=bool(row["paused"]),
        trouble=optional_text_of(row["trouble"]),
        answers=read_answers(optional_text_of(row["answers"])),
        acts=tuple(map(str, acts)) if isinstance(acts, list) else (),
    )


def act_of(row: Row, instant: ToInstant) -> Act:
    """The act of a row of the acts table."""
    state = text_of(row["state"])
    return Act(
        id=text_of(row["id"]),
        what=text_of(row["what"]),
        subject=text_of(row["subject"]),
        server_id=optional_text_of(row["server_id"]),
        by=Asker(who=text_of(row["asked_by"]), where=text_of(row["asked_from"])),
        asked_at=instant(row["asked_at"]) or EPOCH,
        state=ActState(state) if state in set(ActState) else ActState.DONE,
        until=instant(row["until"]),
        taken_at=instant(row["taken_at"]),
        ended_at=instant(row["ended_at"]),
        said=optional_text_of(row["said"]),
        stacks=read_stacks(optional_text_of(row["answer"])),
        **read_arguments(optional_text_of(row["arguments"])),
    )


def worker_of(row: Row, instant: ToInstant, *, place: str) -> WorkerInfo:
    """The worker of a row of the workers table; `place` is as in `process_of`."""
    return WorkerInfo(
        id=text_of(row["id"]),
        server_id=text_of(row["server_id"]),
        number=int_of(row["number"]) or 0,
        process=process_of(row, place=place),
        started_at=instant(row["started_at"]) or EPOCH,
        rss_bytes=int_of(row["rss_bytes"]),
        epoch=int_of(row["epoch"]) or 0,
    )


def state_name_of(value: object) -> StateName:
    """The state of a `state` column; the table's CHECK lets no other text in."""
    return StateName(text_of(value))


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


_AT: Final = "@"  # between a host and the place of the storage that a process of it works on


def process_of(row: Row, *, place: str) -> ProcessIdentity:
    """The process that a row names. `place` is that of this storage; a row that names none is of an older
    version."""
    host, _, worked_on = text_of(row["host"]).partition(_AT)
    return ProcessIdentity(
        host=host,
        pid=int_of(row["pid"]) or 0,
        started_ticks=int_of(row["started_ticks"]) or 0,
        works_here=worked_on in ("", place),
    )


def process_columns(process: ProcessIdentity, *, place: str) -> dict[str, object]:
    """The way back: what a row says of a process that works on this storage."""
    host = f"{process.host}{_AT}{place}" if place else process.host
    return {"host": host, "pid": process.pid, "started_ticks": process.started_ticks}


def error_of(type_: object, message: object, traceback: object) -> ErrorInfo | None:
    """The error in three columns; None when the first is NULL."""
    if type_ is None:
        return None
    return ErrorInfo(type=text_of(type_), message=text_of(message), traceback=optional_text_of(traceback))


def text_of(value: object) -> str:
    """The text of a column, whatever is in it; empty for NULL."""
    if type(value) is str and value.isascii():
        return value
    return optional_text_of(value) or ""


def optional_text_of(value: object) -> str | None:
    """The text of a column, whatever is in it; None for NULL."""
    match value:
        case None:
            return None
        case str():
            return value if value.isascii() else value.encode("utf-8", "replace").decode()
        case bytes() | bytearray() | memoryview():  # a text_factory of the caller's
            return bytes(value).decode("utf-8", "replace")
        case _:
            return str(value)


def int_of(value: object) -> int | None:
    """The integer of a column; None for NULL and for what is none."""
    return value if isinstance(value, int) else None


def duration_of(value: object) -> timedelta | None:
    """The duration of a column of microseconds; None for NULL and for what is none."""
    try:
        return timedelta(microseconds=value) if isinstance(value, int) else None
    except OverflowError:
        return timedelta.max
