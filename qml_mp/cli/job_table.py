"""Client: jobs as a table: of each what one looks for in its state, and no line wider than the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final, assert_never

from qml_mp.cli.fitting import fitted, terminal_width
from qml_mp.cli.output import age, compact_json, local_time, print_table, short
from qml_mp.core.job import Job
from qml_mp.core.outcome import ErrorInfo
from qml_mp.core.server_info import number_of_worker
from qml_mp.core.state import AwaitingRetry, Deleted, Enqueued, Failed, Processing, Scheduled, Succeeded
from qml_mp.printable import printable

AMONG: Final = 20_000
"""Of each state so many are looked at for a table, which keeps it at some tenths of a second."""
_METHOD_CHARS: Final = 40
_DETAIL_CHARS: Final = 100
"""Where there is no terminal whose width could be kept."""
_ERROR_CHARS: Final = 72
"""Of an error with an instant behind it."""
_LEAST: Final = {"DETAILS": 20, "METHOD": 12}
_NARROWEST_WITH_METHODS: Final = 78
_FAR: Final = timedelta(days=180)
"""From now on, or ago: the day alone could be taken for that of another year."""


def print_jobs(jobs: Sequence[Job]) -> None:
    """The table on stdout."""
    print_table(*table_of(jobs, width=terminal_width(), now=datetime.now(UTC)))


def table_of(
    jobs: Sequence[Job], *, width: int | None, now: datetime
) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
    """Headers and rows whose lines have at most so many characters (None: as they come). In however narrow a
    terminal, id, state and a part of the rest stay."""
    columns = {
        "ID": [job.id for job in jobs],
        "STATE": [str(job.state_name) for job in jobs],
        "METHOD": [short(printable(job.method), _METHOD_CHARS) for job in jobs],
        "QUEUE": [printable(job.queue) for job in jobs],
        "PRIO": [str(job.priority) for job in jobs],
        "CREATED": [local_time(job.created_at) or "" for job in jobs],
        "DETAILS": [printable(detail_of(job)) for job in jobs],
    }
    if width is None:
        columns["DETAILS"] = [short(detail, _DETAIL_CHARS) for detail in columns["DETAILS"]]
    elif width < _NARROWEST_WITH_METHODS:
        methods = columns.pop("METHOD")
        columns["DETAILS"] = [
            f"{method} {detail}" for method, detail in zip(methods, columns["DETAILS"], strict=True)
        ]
    headers, rows = fitted(columns, width=width, drop=("PRIO", "QUEUE", "CREATED"), shrink=_LEAST)
    if "METHOD" in headers:
        rows = [(*row[:-1], _with_instant(row[-1], job, now)) for row, job in zip(rows, jobs, strict=True)]
    return headers, rows


def detail_of(job: Job) -> str:
    """When it is due, how long it took, what failed, who runs it."""
    payload = compact_json(job.payload)
    match job.state:
        case Enqueued():
            return payload
        case Scheduled(enqueue_at=due_at):
            return f"due {local_time(due_at)} {payload}"
        case Processing(worker_id=worker_id, server_name=server, started_at=started_at):
            number = number_of_worker(worker_id)
            return f"worker {number} of {server.partition('#')[0]} since {local_time(started_at)} {payload}"
        case AwaitingRetry(retry_at=retry_at, last_exception=error):
            # The error first: where the line is cut, the state has said already that it is tried again.
            return f"{short(_error(error), _ERROR_CHARS)}, retry {local_time(retry_at)}"
        case Succeeded(duration=duration, not_stored=not_stored):
            return f"took {age(duration)} " + (payload if not_stored is None else "(result not stored)")
        case Failed(exception=error):
            return _error(error)
        case Deleted(reason=reason):
            return reason or payload
        case _:
            assert_never(job.state)


def _with_instant(detail: str, job: Job, now: datetime) -> str:
    """The detail; where its end was cut off with a part of the instant at which the job is due, that instant
    alone, as much of it as there is room for."""
    match job.state:
        case Scheduled(enqueue_at=due_at) if str(local_time(due_at)) not in detail:
            is_far = abs(due_at - now) >= _FAR
            told = due_at.astimezone().strftime("%Y-%m-%d" if is_far else "%m-%d %H:%M")
            in_words = f"due {told}"
            return short(in_words if len(in_words) <= len(detail) else told, len(detail))
        case _:
            return detail


def _error(error: ErrorInfo | None) -> str:
    return "no error is known" if error is None else f"{error.type}: {error.message}"
