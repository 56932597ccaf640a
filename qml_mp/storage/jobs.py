"""Every process: jobs as rows, and what moves them from outside of their workers: time, people, recovery."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import NoReturn

from qml_mp.core.job import ClaimKey, Job
from qml_mp.core.outcome import Release
from qml_mp.core.state import StateName
from qml_mp.errors import InvalidJob, InvalidTransition, JobNotFound, StorageError, shown
from qml_mp.storage.database import Operations, RowsRefused, Values
from qml_mp.storage.driver_connection import driver_connection
from qml_mp.storage.given_back import Released, give_back
from qml_mp.storage.job_rows import job_of
from qml_mp.storage.left_out import LeftOut
from qml_mp.storage.row_change import STRANDED
from qml_mp.storage.rows import Row, state_name_of, text_of
from qml_mp.storage.storable import NewRow, canonical_id, new_row, storable_reason
from qml_mp.storage.unique import insert_unique, wishes_of
from qml_mp.storage.values import BY_DEFAULT, CancelRequest, CancelResult, Promoted, Retention

_STRANDED = "releasing stranded jobs"


class JobStore(Operations):
    """Jobs as rows, moved by time, by people and by recovery."""

    def enqueue(self, job: Job, *, retention: Retention = BY_DEFAULT) -> str:
        """Commit a new job (Enqueued or Scheduled as its state says) and return its id.

        When a job that has not ended carries the same `unique_key`, or one that was enqueued with
        `unique_for` holds it still, nothing is written and that job's id is returned; unless `on_conflict` is
        "replace" and no worker has it: then that one is Deleted, and kept as `retention` says. A Scheduled
        job whose instant has passed is stored Enqueued.
        """
        row = new_row(job)
        if job.unique_for is None and self._db.insert("enqueueing a job", row):
            return row.id
        return self._enqueue([row], wishes_of([job]), retention)[0]

    def enqueue_many(self, jobs: Iterable[Job], *, retention: Retention = BY_DEFAULT) -> list[str]:
        """`enqueue` for all in one transaction: all of them or, on any error, none. Ids in order. Raises
        `InvalidJob` for a job that is there twice too."""
        rows, wishes = _new_rows(jobs)  # all of the caller's code has run before anything is locked
        return self._enqueue(rows, wishes, retention) if rows else []

    def enqueue_in(
        self, connection: object, jobs: Iterable[Job], *, retention: Retention = BY_DEFAULT
    ) -> list[str]:
        """`enqueue_many` inside the caller's own open transaction; commits nothing itself.

        `connection` is a driver connection (`sqlite3.Connection` / `psycopg.Connection`), or a session or
        connection of SQLAlchemy with such a driver. Raises `ConfigurationError` when it is of another driver
        or belongs to another database.

        After an error an SQLite transaction is what it was before the call, and can be committed. (A disk
        that is full or fails has SQLite roll all of it back.) On PostgreSQL an error aborts the transaction,
        as that of any statement does: roll it back, or make the call in a `with connection.transaction():`
        of its own, whose savepoint also undoes what another exception interrupts.
        """
        rows, wishes = _new_rows(jobs)
        return self._db.borrow(
            driver_connection(connection),
            lambda transaction: insert_unique(
                self._db.queries.jobs, transaction, rows, wishes, retention=retention
            ),
        )

    def get(self, job_id: str) -> Job | None:
        """The job, or None."""
        which = {"id": canonical_id(job_id)}
        return next(iter(self._read("reading a job", self._db.queries.jobs.get, job_of, which)), None)

    def delete(self, job_id: str, *, reason: str, retention: Retention) -> Job:
        """Make a job that is not running Deleted. Raises `JobNotFound`, or `InvalidTransition`
        (Processing: cancel it instead; Deleted already)."""
        change = _deletion(job_id, reason, retention)
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

    def requeue_stranded_jobs(
        self,
        stale_before: datetime,
        *,
        spare_servers: Collection[str] = (),
        retention: Retention = BY_DEFAULT,
        left_out: LeftOut | None = None,
    ) -> int:
        """Release claims started before `stale_before`, save those of `spare_servers`; how many.

        A job whose cancel was asked for ends Deleted instead, and is kept as `retention` says. `left_out` as
        for `promote_due`.
        """
        which = {"stale_before": stale_before, "spared": list(spare_servers)}
        look = self._db.queries.jobs.stranded
        if self._db.has_one_writer and not self._db.read(_STRANDED, look, which):
            if left_out is not None:
                left_out.keep(())
            return 0
        requeue = partial(self._requeue_stranded, which)
        return give_back(self._db, Release(reason=STRANDED), retention, requeue, left_out=left_out)

    def promote_due(self, *, limit: int, left_out: LeftOut | None = None) -> Promoted:
        """Make Enqueued what is Scheduled or AwaitingRetry and due, at most `limit`, oldest due first.

        Fewer than that and more due at once (`next_due_in` is zero): the others are in somebody else's hands,
        most likely of a server that promotes them. With `left_out`, what the database refuses is left out
        there, and counts as not waiting; without, such a job keeps the others."""
        queries, what = self._db.queries.jobs, "promoting due jobs"
        # When a machine goes down and takes it along, the jobs are still due.
        change = partial(self._change_these, what, queries.promote_these, durable=False)
        again, spared = self._change_again(left_out, change)
        if self._db.has_one_writer:
            wait = self._until_due(self._db.read(what, queries.next_due, spared))
            if wait != timedelta():
                return Promoted(count=again, next_due_in=wait)
        values = {"limit": limit, **spared}
        try:
            with self._db.transaction(what, durable=False) as transaction:
                promoted = transaction.run(queries.promote, values)
                upcoming = transaction.run(queries.next_due, spared).rows
            count = promoted.count
        except StorageError as error:
            count, spared = self._change_apart(what, queries.due, values, change, left_out, error)
            upcoming = partial(self._db.read, what, queries.next_due, spared)
        return Promoted(count=again + count, next_due_in=self._until_due(upcoming()))

    def hasten_jobs_from_the_future(self) -> int:
        """After the clock was set back: an AwaitingRetry job whose last attempt ended in the future becomes
        due after its delay, counted from now, and so does one that a firing made in the future and its jitter
        put off; how many. So does, at once, a call for a failed job or the span of a lost attempt that is put
        off. Other Scheduled jobs keep the instant they were given."""
        what, jobs = "bringing jobs forward", self._db.queries.jobs
        failures, lost_attempts = self._db.queries.failures, self._db.queries.lost_attempts
        look = jobs.any_from_the_future
        if look is not None and not self._db.read(what, look):
            return 0
        with self._db.transaction(what) as transaction:
            early = (jobs.hasten_retries, jobs.hasten_spread, failures.hasten, lost_attempts.hasten)
            hastened = [transaction.run(each) for each in early]
        return sum(result.count for result in hastened)

    def request_cancel(self, job_id: str, *, reason: str, retention: Retention) -> CancelResult:
        """Delete a job that is not running; ask the supervisor of one that runs to end it."""
        queries = self._db.queries.jobs
        change = _deletion(job_id, reason, retention)
        with self._db.transaction("cancelling a job") as transaction:
            found = transaction.run(queries.lock_state, change).first()
            if found is None:
                return CancelResult.NOT_FOUND
            state = state_name_of(found["state"])
            if state.is_final:
                return CancelResult.ALREADY_FINAL
            if state is StateName.PROCESSING:
                transaction.run(queries.request_cancel, change)
                return CancelResult.REQUESTED
            transaction.run(queries.delete, change)
            return CancelResult.DELETED

    def cancel_requests(self, server_id: str) -> list[CancelRequest]:
        """The running jobs of this server that somebody wants cancelled."""
        which = {"server_id": server_id}
        rows = self._db.read("reading cancels", self._db.queries.jobs.cancel_requests, which)
        return [
            CancelRequest(
                key=ClaimKey(job_id=row["id"], claim_seq=row["claim_seq"]),
                method=row["method"],
                attempt=row["failures"] + row["crashes"] + 1,
                worker_id=row["worker_id"],
                reason=row["cancel_reason"],
            )
            for row in rows
        ]

    def delete_expired_jobs(self, *, limit: int, left_out: LeftOut | None = None) -> int:
        """Delete final jobs past `expires_at`, with their attempts, at most `limit`; how many. `left_out` as
        for `promote_due`."""
        queries, what = self._db.queries.jobs, "deleting expired jobs"
        durable = not self._db.has_one_writer  # as `_delete_old` has it
        change = partial(self._change_these, what, queries.delete_these, durable=durable)
        again, spared = self._change_again(left_out, change)
        values = {"limit": limit, **spared}
        try:
            return again + self._delete_old(
                what, any_old=queries.any_expired, query=queries.delete_expired, values=values
            )
        except StorageError as error:
            return again + self._change_apart(what, queries.expired, values, change, left_out, error)[0]

    def _requeue_stranded(self, which: Values, release: Released, left_out: LeftOut | None) -> int:
        with self._db.transaction(_STRANDED, pipelined=left_out is None) as transaction:
            claims = transaction.run(self._db.queries.jobs.stranded, which).rows()
            return release(transaction, self._claims_of(claims))

    def _change_these(self, what: str, query: str, job_ids: Sequence[str], *, durable: bool) -> int:
        """Change these jobs by a commit of their own, since SQLite looks at some constraints only then.

        On PostgreSQL a refusal is raised behind the transaction: one that an error leaves costs the
        connection, and there may be dozens in a row. In SQLite it leaves the transaction, whose commit would
        be written, although nothing has changed, and wake everybody.
        """
        with self._db.transaction(what, pipelined=False, durable=durable) as transaction:
            try:
                return transaction.apart(lambda: transaction.run(query, {"ids": list(job_ids)}).count)
            except RowsRefused as error:
                if self._db.has_one_writer:
                    raise
                refusal = error
        raise refusal

    def _change_again(
        self, left_out: LeftOut | None, change: Callable[[Sequence[str]], int]
    ) -> tuple[int, Values]:
        """How many of those that were left out are changed now, and what is to spare those that still are."""
        if left_out is None:
            return 0, {"spared": []}
        count = left_out.change_again(change, is_refusal=self._db.refuses_rows)
        return count, {"spared": left_out.ids}

    def _change_apart(
        self,
        what: str,
        query: str,
        values: Values,
        change: Callable[[Sequence[str]], int],
        left_out: LeftOut | None,
        error: StorageError,
    ) -> tuple[int, Values]:
        """The same for the jobs that the query gives, after all of them together were refused by this error,
        which is raised when it is none about rows, or when there is no room for more of them."""
        if left_out is None or not left_out.has_room or not self._db.refuses_rows(error):
            raise error
        job_ids = [text_of(row["id"]) for row in self._db.read(what, query, values)]
        count = left_out.change(job_ids, change, is_refusal=self._db.refuses_rows)
        return count, {"spared": left_out.ids}

    def _until_due(self, upcoming: Sequence[Row]) -> timedelta | None:
        return self._between(upcoming[0], "now", "due_at") if upcoming else None

    def _enqueue(self, rows: Sequence[NewRow], wishes: Mapping[str, Job], retention: Retention) -> list[str]:
        # Who is told of a job that has the key is told that it is stored.
        with self._db.transaction("enqueueing jobs", pipelined=False, durable_reads=True) as transaction:
            return insert_unique(self._db.queries.jobs, transaction, rows, wishes, retention=retention)

    def _refuse(self, job_id: str, verb: str, hint: str) -> NoReturn:
        job = self.get(job_id)
        if job is None:
            raise JobNotFound(f"There is no job {job_id}; it may have been deleted after its time to live.")
        raise InvalidTransition(f"Job {job_id} is {job.state_name} and cannot be {verb}. {hint}")


def _deletion(job_id: str, reason: str, retention: Retention) -> Values:
    return {
        "id": canonical_id(job_id),
        "reason": storable_reason(reason),
        "ttl": retention.succeeded_ttl,
    }


def _new_rows(jobs: Iterable[Job]) -> tuple[list[NewRow], dict[str, Job]]:
    """The rows, and `wishes_of` the jobs. The other jobs are let go one by one: to keep a hundred thousand of
    them would take a tenth of the time, as the garbage collector looks at each again and again.

    Raises `InvalidJob` that says which of the jobs cannot be stored, or is there twice.
    """
    rows, wishes, places = list[NewRow](), dict[str, Job](), dict[str, int]()
    for job in jobs:
        try:
            rows.append(new_row(job))
        except InvalidJob as error:
            which = f"The job at place {len(rows)}, {job.id} ({shown(job.method)}), cannot be stored"
            raise InvalidJob(f"{which}: {error}") from error
        here = len(rows) - 1
        place = places.setdefault(job.id, here)
        if place != here:  # they would be one row, and its handles would say that each was written
            raise InvalidJob(
                f"The jobs at places {place} and {here} are one and the same, {job.id} "
                f"({shown(job.method)}); make each by a call of its own, such as f.job(...)."
            )
        if job.unique_key is not None:
            wishes |= wishes_of([job])
    return rows, wishes
