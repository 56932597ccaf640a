"""Every process: jobs as rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any, NoReturn

from qml_mp.core.job import Job
from qml_mp.errors import InvalidTransition, JobNotFound, StorageError, StorageUnavailable
from qml_mp.storage.database import Part, Transaction
from qml_mp.storage.queries import JobQueries
from qml_mp.storage.rows import job_of, text_of
from qml_mp.storage.storable import canonical_id, new_row, storable_reason
from qml_mp.storage.values import Retention

_TRIES = 5

NewRow = dict[str, Any]


class JobStore(Part):
    """Jobs as rows."""

    def enqueue(self, job: Job) -> str:
        """Commit a new job (Enqueued or Scheduled as its state says) and return its id.

        When a job that has not ended carries the same `unique_key`, nothing is written and that
        job's id is returned. A Scheduled job whose instant has passed is stored Enqueued.
        """
        rows = [new_row(job)]
        if self._db.insert("enqueueing a job", self._db.queries.jobs.insert, rows):
            return str(rows[0]["id"])
        return self._enqueue(rows)[0]

    def enqueue_many(self, jobs: Iterable[Job]) -> list[str]:
        """`enqueue` for all in one transaction: all of them or, on any error, none. Ids in order."""
        rows = [new_row(job) for job in jobs]  # all of the caller's code has run before anything is locked
        return self._enqueue(rows) if rows else []

    def enqueue_in(self, connection: object, jobs: Iterable[Job]) -> list[str]:
        """`enqueue_many` inside the caller's own open transaction; commits nothing itself.

        `connection` is a driver connection (`sqlite3.Connection` / `psycopg.Connection`). Raises
        `ConfigurationError` when it is of another driver or belongs to another database.
        """
        rows = [new_row(job) for job in jobs]
        with self._db.borrowed(connection) as transaction:
            return _insert(self._db.queries.jobs, transaction, rows)

    def get(self, job_id: str) -> Job | None:
        """The job, or None."""
        which = {"id": canonical_id(job_id)}
        return next(iter(self._read("reading a job", self._db.queries.jobs.get, job_of, which)), None)

    def delete(self, job_id: str, *, reason: str, retention: Retention) -> Job:
        """Make a job that is not running Deleted. Raises `JobNotFound`, or `InvalidTransition`
        (Processing: cancel it instead; Deleted already)."""
        change = {
            "id": canonical_id(job_id),
            "reason": storable_reason(reason),
            "ttl": retention.succeeded_ttl,
        }
        row = self._db.write("deleting a job", self._db.queries.jobs.delete, change).first()
        if row is None:
            self._refuse(job_id, "deleted", "A running job is cancelled instead: `qml-mp jobs cancel`.")
        return job_of(row, self._db.instant)

    def retry(self, job_id: str) -> Job:
        """Make a Failed job Enqueued by hand, its failures and crashes set back to 0 and its
        `expires_at` cleared. Raises `JobNotFound` or `InvalidTransition`."""
        row, hint = None, "Only a failed job can be retried."
        which = {"id": canonical_id(job_id)}
        try:
            row = self._db.write("retrying a job", self._db.queries.jobs.retry, which).first()
        except StorageError as error:
            if not self._db.refuses_values(error):
                raise
            hint = "Another job that has not ended carries the same unique_key."
        if row is None:
            self._refuse(job_id, "retried", hint)
        return job_of(row, self._db.instant)

    def _enqueue(self, rows: Sequence[NewRow]) -> list[str]:
        with self._db.transaction("enqueueing jobs") as transaction:
            return _insert(self._db.queries.jobs, transaction, rows)

    def _refuse(self, job_id: str, verb: str, hint: str) -> NoReturn:
        job = self.get(job_id)
        if job is None:
            raise JobNotFound(f"There is no job {job_id}; it may have been deleted after its time to live.")
        raise InvalidTransition(f"Job {job_id} is {job.state_name} and cannot be {verb}. {hint}")


def insert_firing(
    queries: JobQueries, transaction: Transaction, job: Job, *, recurring_id: str, fire_at: datetime | None
) -> bool:
    """Insert the job of a template's firing; False: this firing has its job already."""
    row = new_row(job) | {"recurring_id": recurring_id, "fire_at": fire_at}
    return bool(transaction.insert(queries.insert, [row]))


def _insert(queries: JobQueries, transaction: Transaction, rows: Sequence[NewRow]) -> list[str]:
    """Insert in the order given; for each row the id of the job that stands for it now.

    That is the row's own id, or the id of the job that has not ended and carries the same key.
    """
    stands_for: dict[str, str] = {}
    missing = rows
    for _ in range(_TRIES):
        stands_for.update((job_id, job_id) for job_id in transaction.insert(queries.insert, missing))
        missing = [row for row in missing if row["id"] not in stands_for]
        if missing:
            stands_for.update(_holders(queries, transaction, missing))
            missing = [row for row in missing if row["id"] not in stands_for]
        if not missing:
            return [stands_for[row["id"]] for row in rows]
        # The job that held a key ended between the two queries: the key is free again.
    raise StorageUnavailable("Unique keys changed hands too quickly to enqueue; try again.")


def _holders(
    queries: JobQueries, transaction: Transaction, missing: Sequence[NewRow]
) -> Iterator[tuple[str, str]]:
    keys = [row["unique_key"] for row in missing if row["unique_key"] is not None]
    found = transaction.run(queries.holders, {"ids": [row["id"] for row in missing], "keys": keys}).rows()
    ids = {text_of(row["id"]) for row in found}
    by_key = {text_of(row["unique_key"]): text_of(row["id"]) for row in found if row["is_live"]}
    for row in missing:
        if row["id"] in ids:
            yield row["id"], row["id"]
        elif row["unique_key"] in by_key:
            yield row["id"], by_key[row["unique_key"]]
