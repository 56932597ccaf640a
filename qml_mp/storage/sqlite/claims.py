"""Every process: claims in SQLite and every write that they guard."""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import Collection, Iterable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from qml_mp.core.job import Claim, ClaimKey
from qml_mp.core.outcome import Outcome, Release
from qml_mp.core.payload import encode_json
from qml_mp.core.state import StateName
from qml_mp.errors import InvalidJob, OutcomeRefused
from qml_mp.storage.protocol import (
    BY_DEFAULT,
    CancelRequest,
    CancelResult,
    Fetch,
    Finished,
    Promoted,
    Retention,
)
from qml_mp.storage.row_change import STRANDED, RowChange, applied, row_change, unclaimable
from qml_mp.storage.rows import claim_of, job_of, state_name_of
from qml_mp.storage.sqlite import sql
from qml_mp.storage.sqlite.errors import refuses_values, translated
from qml_mp.storage.sqlite.instants import from_us, to_us
from qml_mp.storage.sqlite.part import Part
from qml_mp.storage.storable import (
    canonical_id,
    microseconds,
    storable_change,
    storable_reason,
    written_by_this_claim,
)

logger = logging.getLogger(__name__)

_MOST_PASSED = 100
"""Jobs that cannot be claimed and are passed over before a claim is given up until the next time."""


class ClaimsPart(Part):
    """`JobLocker` of the protocol."""

    def fetch_and_lock_job(self, fetch: Fetch) -> Claim | None:
        look = sql.BEST_OF_SERVED if fetch.queues else sql.BEST_OF_ALL
        with self._database.read() as connection:
            if connection.execute(look, _wanted(fetch)).fetchone() is None:
                return None
        with self._database.write() as connection:
            return self._claim(connection, fetch)

    def finish(
        self, claim: Claim, outcome: Outcome, *, retention: Retention, then: Fetch | None = None
    ) -> Finished:
        with self._database.write() as connection:
            finished = self._finish(connection, claim, outcome, retention)
            if then is None:
                return finished
            return replace(finished, next=self._claim(connection, then))

    def claims_of_worker(self, worker_id: str) -> list[Claim]:
        return self._claims(sql.CLAIMS_OF_WORKER, {"worker_id": worker_id})

    def claims_of_server(self, server_id: str) -> list[Claim]:
        return self._claims(sql.CLAIMS_OF_SERVER, {"server_id": server_id})

    def claims(self) -> list[Claim]:
        return self._claims(sql.CLAIMS, {})

    def requeue_stranded_jobs(
        self,
        stale_before: datetime,
        *,
        spare_servers: Collection[str] = (),
        retention: Retention = BY_DEFAULT,
    ) -> int:
        which = {"stale_before": to_us(stale_before), "spared": json.dumps(list(spare_servers))}
        if not self._claims(sql.STRANDED, which):
            return 0
        with self._database.write() as connection:
            stranded = [claim_of(row, from_us) for row in connection.execute(sql.STRANDED, which)]
            return self._release(connection, stranded, reason=STRANDED, retention=retention)

    def promote_due(self, *, limit: int) -> Promoted:
        count = 0
        if self._until_next_due() == timedelta():
            with self._database.write() as connection:
                due = {"now": self._now_us(), "limit": limit}
                count = connection.execute(sql.PROMOTE, due).rowcount
        return Promoted(count=count, next_due_in=self._until_next_due())

    def hasten_retries_from_the_future(self) -> int:
        with self._database.write() as connection:
            return connection.execute(sql.HASTEN_RETRIES, {"now": self._now_us()}).rowcount

    def request_cancel(self, job_id: str, *, reason: str, retention: Retention) -> CancelResult:
        with self._database.write() as connection:
            now = self.now()
            change = {
                "id": canonical_id(job_id),
                "now": to_us(now),
                "expires_at": to_us(now + retention.succeeded_ttl),
                "reason": storable_reason(reason),
            }
            if connection.execute(sql.CANCEL_WAITING, change).rowcount:
                return CancelResult.DELETED
            if connection.execute(sql.REQUEST_CANCEL, change).rowcount:
                return CancelResult.REQUESTED
            found = connection.execute(sql.PRESENT, {"id": change["id"], "claim_seq": None}).fetchone()
            return CancelResult.NOT_FOUND if found is None else CancelResult.ALREADY_FINAL

    def cancel_requests(self, server_id: str) -> list[CancelRequest]:
        with self._database.read() as connection:
            rows = connection.execute(sql.CANCEL_REQUESTS, {"server_id": server_id}).fetchall()
        return [
            CancelRequest(
                key=ClaimKey(job_id=row["id"], claim_seq=row["claim_seq"]),
                worker_id=row["worker_id"],
                reason=row["cancel_reason"],
            )
            for row in rows
        ]

    def delete_expired_jobs(self, *, limit: int) -> int:
        with self._database.read() as connection:
            if not connection.execute(sql.ANY_EXPIRED, {"now": self._now_us()}).fetchone()[0]:
                return 0
        with self._database.write() as connection:
            return connection.execute(sql.DELETE_EXPIRED, {"now": self._now_us(), "limit": limit}).rowcount

    def _release(
        self, connection: sqlite3.Connection, claims: Iterable[Claim], *, reason: str, retention: Retention
    ) -> int:
        """Give the claims back, uncharged, inside the open transaction; how many. A job whose cancel
        was asked for ends Deleted instead, as everywhere."""
        release = Release(reason=reason)
        return sum(self._finish(connection, claim, release, retention).accepted for claim in claims)

    def _claim(self, connection: sqlite3.Connection, fetch: Fetch) -> Claim | None:
        statement = sql.CLAIM_FROM_SERVED if fetch.queues else sql.CLAIM_FROM_ALL
        owner = {
            "worker_id": fetch.worker_id,
            "server_id": fetch.server_id,
            "registered": fetch.registered,
            "epoch": fetch.epoch,
            "now": self._now_us(),
        }
        for _ in range(_MOST_PASSED):
            try:
                rows = connection.execute(statement, owner | _wanted(fetch)).fetchall()
                return claim_of(rows[0], from_us) if rows else None
            except sqlite3.Error as error:
                if not refuses_values(error):
                    raise
                self._fail_unclaimable(connection, fetch, error)
        return None

    def _fail_unclaimable(self, connection: sqlite3.Connection, fetch: Fetch, why: sqlite3.Error) -> None:
        """Set Failed the job that the claim has just chosen, in the same transaction."""
        best = sql.BEST_OF_SERVED if fetch.queues else sql.BEST_OF_ALL
        (job_id,) = connection.execute(best, _wanted(fetch)).fetchone()
        now, problem = self.now(), unclaimable(f"{why}.")
        change = {
            "id": job_id,
            "now": to_us(now),
            "expires_at": to_us(now + BY_DEFAULT.failed_ttl),
            "type": problem.type,
            "message": problem.message,
        }
        connection.execute(sql.FAIL_UNCLAIMABLE, change)
        logger.error("Job %s is failed: %s", job_id, problem.message, extra={"job_id": job_id})

    def _finish(
        self, connection: sqlite3.Connection, claim: Claim, outcome: Outcome, retention: Retention
    ) -> Finished:
        try:
            return self._write_outcome(connection, claim, outcome, retention)
        except (InvalidJob, UnicodeEncodeError) as error:
            raise OutcomeRefused(str(error)) from error
        except sqlite3.Error as error:
            if refuses_values(error):
                raise OutcomeRefused(str(translated(error, self._database.path))) from error
            raise

    def _write_outcome(
        self, connection: sqlite3.Connection, claim: Claim, outcome: Outcome, retention: Retention
    ) -> Finished:
        key = {"id": claim.job.id, "claim_seq": claim.job.claim_seq}
        # Read under the write lock: the request may have come since the claim was handed out.
        asked = connection.execute(sql.CANCEL_REASON, key).fetchone()
        job = replace(claim.job, cancel_reason=asked[0] if asked else None)
        change = storable_change(row_change(job, outcome, retention))
        now = self.now()
        if connection.execute(sql.FINISH, key | _finish_values(change, now)).rowcount:
            if change.attempt is not None:
                connection.execute(sql.ADD_ATTEMPT, key | _attempt_values(claim, change, now))
            return Finished(accepted=True, state=change.state, job=applied(claim.job, change, now=now))
        present = connection.execute(sql.PRESENT, key).fetchone()
        if present is None or present["claim_seq"] != claim.job.claim_seq:
            return Finished(accepted=False, state=None)
        state = state_name_of(present["state"])
        done = state is not StateName.PROCESSING and written_by_this_claim(
            outcome, recorded=present["recorded"], succeeded=bool(present["succeeded"])
        )
        if not done:
            return Finished(accepted=False, state=None)
        return Finished(accepted=True, state=state, job=job_of(present, from_us))

    def _claims(self, statement: str, which: dict[str, Any]) -> list[Claim]:
        with self._database.read() as connection:
            rows = connection.execute(statement, which).fetchall()
        return [claim_of(row, from_us) for row in rows]

    def _until_next_due(self) -> timedelta | None:
        with self._database.read() as connection:
            due_at = from_us(connection.execute(sql.NEXT_DUE).fetchone()[0])
        return None if due_at is None else max(due_at - self.now(), timedelta())


def _wanted(fetch: Fetch) -> dict[str, str | None]:
    methods = None if fetch.methods is None else json.dumps(fetch.methods)
    return {"methods": methods, **({"queues": json.dumps(fetch.queues)} if fetch.queues else {})}


def _finish_values(change: RowChange, now: datetime) -> dict[str, Any]:
    waiting = change.state in (StateName.ENQUEUED, StateName.AWAITING_RETRY)
    succeeded = change.state is StateName.SUCCEEDED
    return {
        "state": str(change.state),
        "result": encode_json(change.result, what="The result") if succeeded else None,
        "duration_us": None if change.duration is None else microseconds(change.duration),
        "finished_at": None if waiting else to_us(now),
        "enqueued_at": to_us(now) if waiting else None,
        "expires_at": None if change.ttl is None else to_us(now + change.ttl),
        "run_at": to_us(now + (change.delay or timedelta()))
        if change.state is StateName.AWAITING_RETRY
        else None,
        "failures": change.failures,
        "crashes": change.crashes,
        "reason": change.reason,
        **_error_values(change),
    }


def _attempt_values(claim: Claim, change: RowChange, now: datetime) -> dict[str, Any]:
    return {
        "kind": None if change.attempt is None else str(change.attempt),
        "worker": claim.worker_id,
        "pid": change.process.pid,
        "started_at": to_us(claim.job.started_at or now),
        "now": to_us(now),
        "signal": change.process.signal,
        "exit_code": change.process.exit_code,
        "peak_rss_bytes": change.process.peak_rss_bytes,
        "cpu_s": change.process.cpu_s,
        **_error_values(change),
    }


def _error_values(change: RowChange) -> dict[str, Any]:
    error = change.error
    return {
        "has_error": error is not None,
        "error_type": error and error.type,
        "error_message": error and error.message,
        "error_traceback": error and error.traceback,
    }
