"""Every process: jobs as rows in SQLite."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable
from datetime import datetime
from typing import Any, NoReturn

from qml_mp.core.job import Job
from qml_mp.errors import ConfigurationError, InvalidTransition, JobNotFound, SchemaMismatch
from qml_mp.storage.migrate import check_version
from qml_mp.storage.protocol import Retention
from qml_mp.storage.rows import job_of
from qml_mp.storage.sqlite import sql
from qml_mp.storage.sqlite.errors import translated
from qml_mp.storage.sqlite.instants import from_us, to_us
from qml_mp.storage.sqlite.part import Part
from qml_mp.storage.sqlite.schema import MIGRATIONS
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
        theirs = self._checked(connection)
        try:
            cursor = theirs.cursor()
            cursor.row_factory = None  # the caller's own would shape our rows
            self._check_schema_through(cursor)
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

    def _checked(self, connection: object) -> sqlite3.Connection:
        """The caller's connection, if it can carry our rows into the caller's transaction."""
        if not isinstance(connection, sqlite3.Connection):
            raise ConfigurationError(
                f"The connection is a {type(connection).__name__}; this app's storage is "
                f"{self._database.where()}, so it must be a sqlite3.Connection to that file."
            )
        try:
            cursor = connection.cursor()
            cursor.row_factory = None
            names = [row[2] for row in cursor.execute("PRAGMA database_list") if row[1] in ("main", b"main")]
        except sqlite3.Error as error:
            raise ConfigurationError(f"The connection cannot be used: {error}") from error
        if not names or not self._is_ours(names[0]):
            raise ConfigurationError(
                f"The connection belongs to {os.fsdecode(names[0] or b'') or 'a database without a file'}; "
                f"this app's storage is {self._database.where()}. Use a connection to that file."
            )
        if not connection.in_transaction and _commits_by_itself(connection):
            raise ConfigurationError(
                "The connection has no open transaction and commits each statement by itself; "
                "execute BEGIN before enqueueing in it."
            )
        return connection

    def _is_ours(self, path: str | bytes | None) -> bool:
        try:
            return bool(path) and os.path.samefile(os.fsdecode(path or b""), self._database.path)
        except OSError:
            return False

    def _check_schema_through(self, cursor: sqlite3.Cursor) -> None:
        if not cursor.execute(sql.HAS_VERSIONS).fetchone()[0]:
            if cursor.connection.in_transaction:
                raise SchemaMismatch(
                    f"The open transaction sees no schema of qml-mp in {self._database.where()}. "
                    "Run `qml-mp migrate` once (or app.storage.migrate()), before the transaction begins."
                )
            self._database.migrate()
        check_version(
            MIGRATIONS, found=cursor.execute(sql.VERSION).fetchone()[0] or 0, where=self._database.where()
        )


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


def _commits_by_itself(connection: sqlite3.Connection) -> bool:
    # Python 3.12 added `autocommit`; its default, -1, leaves it to `isolation_level` as before.
    autocommit = getattr(connection, "autocommit", -1)
    return autocommit is True or (autocommit is not False and connection.isolation_level is None)
