"""Every process: new jobs put into PostgreSQL, through whichever connection."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import islice
from typing import Any

from qml_mp.core.job import Job
from qml_mp.errors import StorageUnavailable
from qml_mp.storage.postgres import sql
from qml_mp.storage.storable import new_row

Run = Callable[[str, Mapping[str, object]], Sequence[Mapping[str, Any]]]
"""Runs a statement of `sql` with its values and gives its rows."""

_ROWS_PER_STATEMENT = 2000
"""Keeps a statement well below statement_timeout and its values below a few megabytes."""
_TRIES = 5
_COLUMNS = (
    "id", "method", "queue", "priority", "payload", "metadata", "max_retries", "max_crashes", "timeout_us",
    "unique_key", "created_at", "run_at", "reason", "recurring_id", "fire_at",
)  # fmt: skip
# Before every instant: whether a scheduled job is due already is for the server's clock to say.
_UNDECIDED = datetime.min.replace(tzinfo=UTC)


def postgres_row(job: Job) -> dict[str, Any]:
    """The columns of a new job; raises `InvalidJob` when it cannot be stored."""
    return new_row(job, now=_UNDECIDED)


def insert_rows(run: Run, rows: Iterable[dict[str, Any]]) -> list[str]:
    """Insert in the order given; for each row the id of the job that stands for it now.

    That is the row's own id, or the id of the job that has not ended and carries the same key.
    """
    ids: list[str] = []
    waiting = iter(rows)
    while batch := list(islice(waiting, _ROWS_PER_STATEMENT)):
        stands_for = _insert_batch(run, batch)
        ids.extend(stands_for[row["id"]] for row in batch)
    return ids


def insert_firing(run: Run, row: dict[str, Any]) -> bool:
    """Insert the job of a recurring template; False: this firing has its job already."""
    return bool(run(sql.INSERT_JOBS, _columns([row]))[0]["ids"])


def _insert_batch(run: Run, batch: list[dict[str, Any]]) -> dict[str, str]:
    stands_for: dict[str, str] = {}
    missing = {row["id"]: row for row in batch}
    for _ in range(_TRIES):
        added = run(sql.INSERT_JOBS, _columns(missing.values()))[0]["ids"]
        stands_for.update((job_id, job_id) for job_id in added)
        missing = {job_id: row for job_id, row in missing.items() if job_id not in stands_for}
        if missing:
            stands_for.update(_holders(run, missing))
            missing = {job_id: row for job_id, row in missing.items() if job_id not in stands_for}
        if not missing:
            return stands_for
        # The job that held a key ended between the two statements: the key is free again.
    raise StorageUnavailable("Unique keys changed hands too quickly to enqueue; try again.")


def _holders(run: Run, missing: Mapping[str, dict[str, Any]]) -> Iterator[tuple[str, str]]:
    keys = [row["unique_key"] for row in missing.values() if row["unique_key"] is not None]
    found = run(sql.HOLDERS, {"ids": list(missing), "keys": keys})
    ids = {row["id"] for row in found}
    by_key = {row["unique_key"]: row["id"] for row in found if row["is_live"]}
    for job_id, row in missing.items():
        if job_id in ids:
            yield job_id, job_id
        elif row["unique_key"] in by_key:
            yield job_id, by_key[row["unique_key"]]


def _columns(rows: Iterable[dict[str, Any]]) -> dict[str, list[Any]]:
    rows = list(rows)
    return {name: [row[name] for row in rows] for name in _COLUMNS}
