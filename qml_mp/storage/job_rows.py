"""Every process: rows of the jobs table read as jobs and claims, once for all backends.

As in `rows`, whatever stands in a column, a value is returned and nothing raised. An unreadable payload is
said in `payload_error`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import timedelta
from operator import itemgetter
from typing import Final, assert_never

from qml_mp.core.job import NO_RETRIES, Claim, Job, make_job
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
from qml_mp.frozen import maker
from qml_mp.storage.rows import (
    EPOCH,
    Columns,
    Row,
    ToInstant,
    duration_of,
    error_of,
    int_of,
    json_of,
    optional_text_of,
    state_name_of,
    text_of,
)

CLAIM_COLUMNS: Final = """
    id, method, queue, priority, payload, metadata, max_retries, max_crashes, timeout_us, unique_key,
    created_at, enqueued_at, run_at, started_at, finished_at, expires_at, claim_seq, failures, crashes,
    last_error_type, last_error_message, last_error_traceback, cancel_reason
"""
"""What `new_claims` needs, in this order."""
JOB_COLUMNS: Final = f"{CLAIM_COLUMNS.rstrip()}, state, result, duration_us, worker_id, server_id, reason"
"""What `job_of` and `claim_of` need, as the queries of every backend give it."""

_LONG: Final = {
    "payload": "NULL",
    # Whole as far as it is short: it leads to the span of the enqueueing (`LostAttempt`).
    "metadata": "CASE WHEN length({of}metadata) <= 8000 THEN {of}metadata ELSE 'null' END",
    "last_error_type": "NULL",
    "last_error_message": "NULL",
    "last_error_traceback": "NULL",
    "result": "NULL",
}

_VALUES: Final = {"payload": "NULL", "metadata": "'null'", "result": "NULL"}

_claim_columns = itemgetter(*(name.strip() for name in CLAIM_COLUMNS.split(",")))

_MOST_CRASHES = 2**31 - 1  # that a job can ask for; SQLite holds any number

Owner = tuple[str, str]
"""The ids of the worker and of the server that hold a claim."""

# Every job that is run is made by these.
_new_claim = maker(Claim)
_new_processing = maker(Processing)


def released_columns(*, of: str = "") -> str:
    """`JOB_COLUMNS` without what is long, of a table that goes by the name `of`, which has its dot.

    For those who look at all claims there are, or end those of a server or of a worker. All come in one
    reply, for which there is little time; with their payloads it might never come whole over a slow line.
    """
    return _columns_without(_LONG, of)


def example_columns(*, of: str = "") -> str:
    """`JOB_COLUMNS` without what the job was given, and gave, each of which may have a mebibyte: of a job
    that is shown for many."""
    return _columns_without(_VALUES, of)


def job_of(row: Row, instant: ToInstant) -> Job:
    """The job of a row, whatever the row holds."""
    return _job(_claim_columns(row), instant, _state(row, instant))


def claim_of(row: Row, instant: ToInstant) -> Claim:
    """The claim of a row that is Processing."""
    return _claim(_claim_columns(row), instant, _owner_of(row))


def new_claims(rows: Iterable[Columns], instant: ToInstant, owner: Owner) -> list[Claim]:
    """The claims that this owner has just made, of rows that begin with `CLAIM_COLUMNS`; NULLs are none."""
    return [_claim(columns, instant, owner) for columns in rows if columns[0] is not None]


def _columns_without(left_out: Mapping[str, str], of: str) -> str:
    """What stands instead of each is its value."""
    names = (name.strip() for name in JOB_COLUMNS.split(","))
    return ", ".join(
        f"{left_out[name].format(of=of)} AS {name}" if name in left_out else f"{of}{name}" for name in names
    )


def _claim(columns: Columns, instant: ToInstant, owner: Owner) -> Claim:
    worker_id, server_id = owner
    payload = columns[4]
    return _new_claim(
        job=_job(columns, instant, owner),
        worker_id=worker_id,
        server_id=server_id,
        payload_chars=len(payload) if isinstance(payload, str | bytes) else 0,
    )


def _job(columns: Columns, instant: ToInstant, state: JobState | Owner) -> Job:
    """Whose state is Processing, where its owner is given instead."""
    (
        job_id, method, queue, priority, payload_text, metadata_text, max_retries, max_crashes, timeout_us,
        unique_key, created, enqueued, run, started, finished, expires, claim_seq, failures, crashes,
        error_type, error_message, error_traceback, cancel_reason, *_,
    ) = columns  # fmt: skip
    created_at, started_at = instant(created) or EPOCH, instant(started)
    if isinstance(state, tuple):
        state = _new_processing(
            started_at=started_at or created_at,
            worker_id=state[0],
            server_name=state[1],
            enqueued_at=instant(enqueued) or created_at,
        )
    payload, payload_error = json_of(payload_text)
    metadata, _ = json_of(metadata_text)
    return make_job(
        id=text_of(job_id),
        method=text_of(method),
        payload=payload,
        payload_error=payload_error,
        metadata=metadata if isinstance(metadata, dict) else {},
        state=state,
        queue=text_of(queue),
        priority=int_of(priority) or 0,
        max_retries=_max_retries(int_of(max_retries)),
        max_crashes=_max_crashes(int_of(max_crashes)),
        timeout=duration_of(timeout_us),
        unique_key=optional_text_of(unique_key),
        created_at=created_at,
        expires_at=instant(expires),
        run_at=instant(run),
        started_at=started_at,
        finished_at=instant(finished),
        claim_seq=int_of(claim_seq) or 0,
        failures=int_of(failures) or 0,
        crashes=int_of(crashes) or 0,
        last_error=error_of(error_type, error_message, error_traceback),
        cancel_reason=optional_text_of(cancel_reason),
    )


def _max_retries(value: int | None) -> int | None:
    """The way back of `storable`; 0, and what means nothing, leaves it to the policy."""
    return 0 if value == NO_RETRIES else value if value is not None and value > 0 else None


def _max_crashes(value: int | None) -> int | None:
    """What no job can ask for leaves it to the server; the slot of its worker has no room for it."""
    return value if value is not None and 0 < value <= _MOST_CRASHES else None


def _owner_of(row: Row) -> Owner:
    return text_of(row["worker_id"]), text_of(row["server_id"])


def _state(row: Row, instant: ToInstant) -> JobState | Owner:
    created_at = instant(row["created_at"]) or EPOCH
    waiting_since = instant(row["enqueued_at"]) or created_at
    finished_at = instant(row["finished_at"]) or created_at
    error = error_of(row["last_error_type"], row["last_error_message"], row["last_error_traceback"])
    name = state_name_of(row["state"])
    match name:
        case StateName.ENQUEUED:
            return Enqueued(enqueued_at=waiting_since, queue=text_of(row["queue"]))
        case StateName.SCHEDULED:
            return Scheduled(
                scheduled_at=waiting_since,
                enqueue_at=instant(row["run_at"]) or created_at,
                reason=optional_text_of(row["reason"]),
            )
        case StateName.PROCESSING:
            return _owner_of(row)
        case StateName.AWAITING_RETRY:
            return AwaitingRetry(
                scheduled_at=waiting_since,
                retry_at=instant(row["run_at"]) or created_at,
                retry_count=int_of(row["failures"]) or 0,
                last_exception=error,
            )
        case StateName.SUCCEEDED:
            result, problem = json_of(row["result"])
            return Succeeded(
                succeeded_at=finished_at,
                duration=duration_of(row["duration_us"]) or timedelta(),
                result=result,
                not_stored=optional_text_of(row["reason"]) or problem,
            )
        case StateName.FAILED:
            return Failed(failed_at=finished_at, exception=error, retry_count=int_of(row["failures"]) or 0)
        case StateName.DELETED:
            return Deleted(deleted_at=finished_at, reason=optional_text_of(row["reason"]))
        case _:
            assert_never(name)
