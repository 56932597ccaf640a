"""Supervisor, client: what moves jobs from outside of their workers: time, cancels, cleanup, recovery."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta

from qml_mp.core.job import ClaimKey
from qml_mp.core.outcome import Release
from qml_mp.core.state import StateName
from qml_mp.storage.database import Part
from qml_mp.storage.outcomes import release_all
from qml_mp.storage.row_change import STRANDED
from qml_mp.storage.rows import Row, state_name_of
from qml_mp.storage.storable import canonical_id, storable_reason
from qml_mp.storage.values import BY_DEFAULT, CancelRequest, CancelResult, Promoted, Retention


class Sweeping(Part):
    """Jobs moved by time, by people and by recovery."""

    def requeue_stranded_jobs(
        self,
        stale_before: datetime,
        *,
        spare_servers: Collection[str] = (),
        retention: Retention = BY_DEFAULT,
    ) -> int:
        """Release claims started before `stale_before`, save those of `spare_servers`; how many.

        A job whose cancel was asked for ends Deleted instead, and is kept as `retention` says.
        """
        stranded, what = self._db.queries.jobs.stranded, "releasing stranded jobs"
        which = {"stale_before": stale_before, "spared": list(spare_servers)}
        if self._db.has_one_writer and not self._db.read(what, stranded, which):
            return 0
        with self._db.transaction(what) as transaction:
            claims = self._claims_of(transaction.run(stranded, which).rows())
            return release_all(self._db, transaction, claims, Release(reason=STRANDED), retention)

    def promote_due(self, *, limit: int) -> Promoted:
        """Make Enqueued what is Scheduled or AwaitingRetry and due, at most `limit`, oldest due first."""
        queries, what = self._db.queries.jobs, "promoting due jobs"
        if self._db.has_one_writer:
            wait = self._until_due(self._db.read(what, queries.next_due))
            if wait != timedelta():
                return Promoted(count=0, next_due_in=wait)
        with self._db.transaction(what) as transaction:
            promoted = transaction.run(queries.promote, {"limit": limit})
            upcoming = transaction.run(queries.next_due)
        return Promoted(count=promoted.count, next_due_in=self._until_due(upcoming.rows()))

    def hasten_retries_from_the_future(self) -> int:
        """After the clock was set back: an AwaitingRetry job whose last attempt ended in the future becomes
        due after its delay, counted from now; how many. Scheduled jobs keep the instant they were given."""
        return self._db.write("bringing retries forward", self._db.queries.jobs.hasten_retries).count

    def request_cancel(self, job_id: str, *, reason: str, retention: Retention) -> CancelResult:
        """Delete a job that is not running; ask the supervisor of one that runs to end it."""
        queries = self._db.queries.jobs
        change = {
            "id": canonical_id(job_id),
            "reason": storable_reason(reason),
            "ttl": retention.succeeded_ttl,
        }
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
                worker_id=row["worker_id"],
                reason=row["cancel_reason"],
            )
            for row in rows
        ]

    def delete_expired_jobs(self, *, limit: int) -> int:
        """Delete final jobs past `expires_at`, at most `limit`; how many."""
        queries, what = self._db.queries.jobs, "deleting expired jobs"
        if self._db.has_one_writer and not self._db.read(what, queries.any_expired):
            return 0
        return self._db.write(what, queries.delete_expired, {"limit": limit}).count

    def _until_due(self, upcoming: Sequence[Row]) -> timedelta | None:
        return self._between(upcoming[0], "now", "due_at") if upcoming else None
