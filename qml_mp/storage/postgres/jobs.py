"""Every process: jobs as rows in PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

import psycopg
from psycopg.rows import DictRow

from qml_mp.core.job import Job
from qml_mp.errors import InvalidTransition, JobNotFound
from qml_mp.storage.postgres import sql
from qml_mp.storage.postgres.connection import ProcessConnection, Transaction
from qml_mp.storage.postgres.errors import translate
from qml_mp.storage.postgres.foreign import ForeignConnections
from qml_mp.storage.postgres.inserting import Run, insert_rows, postgres_row
from qml_mp.storage.postgres.part import Part, job_from
from qml_mp.storage.protocol import Retention
from qml_mp.storage.storable import canonical_id, storable_reason


class JobsPart(Part):
    """`JobStore` of the protocol."""

    def __init__(self, database: ProcessConnection) -> None:
        super().__init__(database)
        self._foreign = ForeignConnections(database)

    def enqueue(self, job: Job) -> str:
        return insert_rows(self._run_alone, [postgres_row(job)])[0]

    def enqueue_many(self, jobs: Iterable[Job]) -> list[str]:
        rows = [
            postgres_row(job) for job in jobs
        ]  # all of the caller's code has run before anything is locked
        if not rows:
            return []
        with self._database.transaction("enqueueing jobs") as transaction:
            return insert_rows(running_in(transaction), rows)

    def enqueue_in(self, connection: object, jobs: Iterable[Job]) -> list[str]:
        rows = [postgres_row(job) for job in jobs]
        try:
            theirs = self._foreign.checked(connection)
            cursor = self._foreign.cursor(theirs)

            def run(template: str, params: Mapping[str, object]) -> Sequence[DictRow]:
                return cursor.execute(
                    self._database.statements[template], self._database.bound(params)
                ).fetchall()

            return insert_rows(run, rows)
        except psycopg.Error as error:
            what = "enqueueing in the caller's transaction"
            raise translate(error, what=what, target=self._database.target) from error

    def get(self, job_id: str) -> Job | None:
        rows = self._database.read("reading a job", sql.GET_JOB, {"id": canonical_id(job_id)})
        return job_from(rows[0]) if rows else None

    def delete(self, job_id: str, *, reason: str, retention: Retention) -> Job:
        change = {
            "id": canonical_id(job_id),
            "reason": storable_reason(reason),
            "ttl": retention.succeeded_ttl,
        }
        rows = self._database.rows("deleting a job", sql.DELETE_JOB, change)
        if not rows:
            self._refuse(job_id, "deleted", "A running job is cancelled instead: `qml-mp jobs cancel`.")
        return job_from(rows[0])

    def retry(self, job_id: str) -> Job:
        which = self._database.bound({"id": canonical_id(job_id)})
        rows: list[DictRow] = []
        hint = "Only a failed job can be retried."
        with self._database.use("retrying a job") as link:
            try:
                rows = link.execute(self._database.statements[sql.RETRY_JOB], which).fetchall()
            except psycopg.errors.UniqueViolation:
                hint = "Another job that has not ended carries the same unique_key."
        if not rows:
            self._refuse(job_id, "retried", hint)
        return job_from(rows[0])

    def _run_alone(self, template: str, params: Mapping[str, object]) -> Sequence[Mapping[str, Any]]:
        return self._database.rows("enqueueing a job", template, params)

    def _refuse(self, job_id: str, verb: str, hint: str) -> NoReturn:
        job = self.get(job_id)
        if job is None:
            raise JobNotFound(f"There is no job {job_id}; it may have been deleted after its time to live.")
        raise InvalidTransition(f"Job {job_id} is {job.state_name} and cannot be {verb}. {hint}")


def running_in(transaction: Transaction) -> Run:
    """The way to run statements of an insertion in an open transaction."""

    def run(template: str, params: Mapping[str, object]) -> Sequence[Mapping[str, Any]]:
        return transaction.execute(template, params).fetchall()

    return run
