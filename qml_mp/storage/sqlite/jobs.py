"""Every process: jobs as rows in SQLite."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from datetime import datetime
from typing import Any, NoReturn

from qml_mp.core.job import Job
from qml_mp.errors import InvalidTransition, JobNotFound
from qml_mp.storage.protocol import Retention
from qml_mp.storage.rows import job_of
from qml_mp.storage.sqlite import sql
from qml_mp.storage.sqlite.errors import translated
from qml_mp.storage.sqlite.foreign import check_schema_through, checked
from qml_mp.storage.sqlite.instants import from_us, to_us
from qml_mp.storage.sqlite.part import Part
from qml_mp.storage.storable import canonical_id, new_row, storable_reason


class JobsPart(Part):
    """`JobStore` of the protocol."""

    def enqueue(self, job: Job) -> str:
        return self.enqueue_many((job,))[0]

    def enqueue_many(self, jobs: Iterable[Job]) -> list[str]:
        rows = self._rows(jobs)  # all of the caller's code has run before the lock is taken
        if not rows:
            return []
        with self._database.write() as connection:
            return [insert_job(connection.cursor(), row) for row in rows]

    def enqueue_in(self, connection: object, jobs: Iterable[Job]) -> list[str]:
        rows = self._rows(jobs)
        theirs = checked(connection, self._database)
        try:
            cursor = theirs.cursor()
            cursor.row_factory = None  # the caller's own would shape our rows
            check_schema_through(cursor, self._database)
            return [insert_job(cursor, row) for row in rows]
        except sqlite3.Error as error:
            raise translated(error, self._database.path) from error

    def get(self, job_id: str) -> Job | None:
        with self._database.read() as connection:
            row = connection.execute(sql.GET_JOB, {"id": canonical_id(job_id)}).fetchone()
        return None if row is None else job_of(row, from_us)

    def delete(self, job_id: str, *, reason: str, retention: Retention) -> Job:
        with self._database.write() as connection:
            now = self.now()
            change = {
                "id": canonical_id(job_id),
                "now": to_us(now),
                "expires_at": to_us(now + retention.succeeded_ttl),
                "reason": storable_reason(reason),
            }
            row = connection.execute(sql.DELETE_JOB, change).fetchone()
        if row is None:
            self._refuse(job_id, "deleted", "A running job is cancelled instead: `qml-mp jobs cancel`.")
        return job_of(row, from_us)

    def retry(self, job_id: str) -> Job:
        hint = "Only a failed job can be retried."
        row = None
        with self._database.write() as connection:
            change = {"id": canonical_id(job_id), "now": self._now_us()}
            try:
                row = connection.execute(sql.RETRY_JOB, change).fetchone()
            except sqlite3.IntegrityError:
                hint = "Another job that has not ended carries the same unique_key."
        if row is None:
            self._refuse(job_id, "retried", hint)
        return job_of(row, from_us)

    def _rows(self, jobs: Iterable[Job]) -> list[dict[str, Any]]:
        now = self.now()
        return [sqlite_row(new_row(job, now=now)) for job in jobs]

    def _refuse(self, job_id: str, verb: str, hint: str) -> NoReturn:
        job = self.get(job_id)
        if job is None:
            raise JobNotFound(f"There is no job {job_id}; it may have been deleted after its time to live.")
        raise InvalidTransition(f"Job {job_id} is {job.state_name} and cannot be {verb}. {hint}")


def insert_job(cursor: sqlite3.Cursor, row: dict[str, Any]) -> str:
    """Insert the row inside the open transaction; the id of the job that stands for it now."""
    if cursor.execute(sql.INSERT_JOB, row).rowcount == 0:
        live = cursor.execute(sql.LIVE_WITH_KEY, {"unique_key": row["unique_key"]}).fetchone()
        if live is not None:
            return live[0] if isinstance(live[0], str) else bytes(live[0]).decode()
    job_id: str = row["id"]
    return job_id


def sqlite_row(row: dict[str, Any]) -> dict[str, Any]:
    """The row with its instants as SQLite holds them."""
    return {name: to_us(value) if isinstance(value, datetime) else value for name, value in row.items()}
