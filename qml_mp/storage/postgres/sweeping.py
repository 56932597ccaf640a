"""Supervisor, client: what moves jobs from outside of their workers: time, cancels, cleanup, recovery."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime

from qml_mp.core.job import ClaimKey
from qml_mp.storage.postgres import sql
from qml_mp.storage.postgres.claims import release_all
from qml_mp.storage.postgres.part import Part, claims_from
from qml_mp.storage.protocol import BY_DEFAULT, CancelRequest, CancelResult, Promoted, Retention
from qml_mp.storage.row_change import STRANDED
from qml_mp.storage.rows import state_name_of
from qml_mp.storage.storable import canonical_id, storable_reason


class SweepingPart(Part):
    """The rest of `JobLocker` of the protocol."""

    def requeue_stranded_jobs(
        self,
        stale_before: datetime,
        *,
        spare_servers: Collection[str] = (),
        retention: Retention = BY_DEFAULT,
    ) -> int:
        which = {"stale_before": stale_before, "spared": list(spare_servers)}
        with self._database.transaction("releasing stranded jobs") as transaction:
            stranded = claims_from(transaction.execute(sql.LOCK_STRANDED, which))
            return release_all(transaction, stranded, reason=STRANDED, retention=retention)

    def promote_due(self, *, limit: int) -> Promoted:
        with self._database.transaction("promoting due jobs") as transaction:
            promoted = transaction.execute(sql.PROMOTE_DUE, {"limit": limit})
            upcoming = transaction.execute(sql.NEXT_DUE)
        next_due = upcoming.fetchone()
        return Promoted(
            count=promoted.fetchall()[0]["count"],
            next_due_in=None if next_due is None else next_due["next_due_in"],
        )

    def hasten_retries_from_the_future(self) -> int:
        (row,) = self._database.rows("bringing retries forward", sql.HASTEN_RETRIES)
        count: int = row["count"]
        return count

    def request_cancel(self, job_id: str, *, reason: str, retention: Retention) -> CancelResult:
        change = {
            "id": canonical_id(job_id),
            "reason": storable_reason(reason),
            "ttl": retention.succeeded_ttl,
        }
        with self._database.transaction("cancelling a job") as transaction:
            # Locked, so that a claim or an end of the job comes wholly before or after this.
            found = transaction.execute(sql.LOCK_STATE, change).fetchone()
            if found is None:
                return CancelResult.NOT_FOUND
            if state_name_of(found["state"]).is_final:
                return CancelResult.ALREADY_FINAL
            deleted = transaction.execute(sql.CANCEL_WAITING, change)
            transaction.execute(sql.REQUEST_CANCEL, change)
        return CancelResult.DELETED if deleted.rowcount else CancelResult.REQUESTED

    def cancel_requests(self, server_id: str) -> list[CancelRequest]:
        rows = self._database.read("reading cancels", sql.CANCEL_REQUESTS, {"server_id": server_id})
        return [
            CancelRequest(
                key=ClaimKey(job_id=row["id"], claim_seq=row["claim_seq"]),
                worker_id=row["worker_id"],
                reason=row["cancel_reason"],
            )
            for row in rows
        ]

    def delete_expired_jobs(self, *, limit: int) -> int:
        return len(self._database.rows("deleting expired jobs", sql.DELETE_EXPIRED_JOBS, {"limit": limit}))
