"""Every process: claims in PostgreSQL, and the ends of them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

import psycopg

from qml_mp.core.job import Claim
from qml_mp.core.outcome import ErrorInfo, Outcome, Release, Success
from qml_mp.core.state import StateName
from qml_mp.errors import InvalidJob, OutcomeRefused, StorageError
from qml_mp.storage.postgres import sql
from qml_mp.storage.postgres.connection import Cursor, Transaction
from qml_mp.storage.postgres.errors import refuses_values
from qml_mp.storage.postgres.instants import from_column
from qml_mp.storage.postgres.link import Link
from qml_mp.storage.postgres.outcome_values import attempt_values, finish_values
from qml_mp.storage.postgres.part import Part, claims_from, job_from
from qml_mp.storage.protocol import BY_DEFAULT, Fetch, Finished, Retention
from qml_mp.storage.row_change import RowChange, applied, row_change, unclaimable
from qml_mp.storage.rows import state_name_of
from qml_mp.storage.storable import storable_change, written_by_this_claim

logger = logging.getLogger(__name__)

_MOST_PASSED = 100
"""Jobs that cannot be claimed and are passed over before a claim is given up until the next time."""


class ClaimsPart(Part):
    """Taking and finishing claims, of `JobLocker` of the protocol."""

    def fetch_and_lock_job(self, fetch: Fetch) -> Claim | None:
        for _ in range(_MOST_PASSED):
            try:
                rows = self._database.rows("claiming a job", *_claim_statement(fetch))
                return next(iter(claims_from(rows)), None)
            except StorageError as error:
                if not refuses_values(error):
                    raise
                self._fail_unclaimable(fetch)
        return None

    def finish(
        self, claim: Claim, outcome: Outcome, *, retention: Retention, then: Fetch | None = None
    ) -> Finished:
        try:
            return self._finish(claim, outcome, retention, then)
        except (InvalidJob, StorageError) as error:
            if not (isinstance(error, InvalidJob) or refuses_values(error)):
                raise
            if then is None:
                raise OutcomeRefused(str(error)) from error
        # One of the two was refused. The outcome first, so that it does not depend on the other.
        finished = self.finish(claim, outcome, retention=retention)
        return replace(finished, next=self.fetch_and_lock_job(then))

    def claims_of_worker(self, worker_id: str) -> list[Claim]:
        return self._claims(sql.CLAIMS_OF_WORKER, {"worker_id": worker_id})

    def claims_of_server(self, server_id: str) -> list[Claim]:
        return self._claims(sql.CLAIMS_OF_SERVER, {"server_id": server_id})

    def claims(self) -> list[Claim]:
        return self._claims(sql.CLAIMS, {})

    def _finish(self, claim: Claim, outcome: Outcome, retention: Retention, then: Fetch | None) -> Finished:
        claimed: Cursor | None = None
        with self._database.transaction("finishing a job") as transaction:
            write = _write(transaction, claim, outcome, retention)
            if then is not None:
                claimed = transaction.execute(*_claim_statement(then))
        next_claim = None if claimed is None else next(iter(claims_from(claimed.fetchall())), None)
        return replace(self._finished(claim, outcome, write), next=next_claim)

    def _fail_unclaimable(self, fetch: Fetch) -> None:
        """Set Failed the best job, if it is proved to be one that cannot be claimed. Another worker may
        have done so meanwhile: the best job is then another one, and stays as it is."""
        statements, bound = self._database.statements, self._database.bound
        candidate, params = _candidate_statement(fetch)
        with self._database.use("passing over a job that cannot be claimed") as link, link.transaction():
            row = link.execute(statements[candidate], bound(params)).fetchone()
            if row is None:
                return
            params |= row
            problem = self._why_unclaimable(link, params)
            if problem is None:
                return
            params |= {"type": problem.type, "message": problem.message, "ttl": BY_DEFAULT.failed_ttl}
            link.execute(statements[sql.FAIL_CANDIDATE], bound(params))
        logger.error("Job %s is failed: %s", row["id"], problem.message, extra={"job_id": row["id"]})

    def _why_unclaimable(self, link: Link, params: dict[str, Any]) -> ErrorInfo | None:
        """What refuses a claim of this very row; None: it can be claimed."""
        try:
            with link.transaction(force_rollback=True):
                link.execute(self._database.statements[sql.CLAIM_CANDIDATE], self._database.bound(params))
        except psycopg.Error as error:
            if not refuses_values(error):
                raise
            return unclaimable(f"{error.diag.message_primary}.")
        return None

    def _claims(self, statement: str, which: Mapping[str, object]) -> list[Claim]:
        return claims_from(self._database.read("reading claims", statement, which))

    def _finished(self, claim: Claim, outcome: Outcome, write: _Write) -> Finished:
        """What the committed write did. When it hit no row, the row is read back: perhaps an earlier
        try had landed and only its reply was lost."""
        written_at = write.written_at()
        if written_at is not None:
            job = applied(claim.job, write.change, now=written_at)
            return Finished(accepted=True, state=write.change.state, job=job)
        rows = self._database.read("reading a job back", sql.READ_BACK, {"id": claim.job.id})
        if not rows or rows[0]["claim_seq"] != claim.job.claim_seq:
            return Finished(accepted=False, state=None)
        present = state_name_of(rows[0]["state"])
        done = present is not StateName.PROCESSING and written_by_this_claim(
            outcome, recorded=rows[0]["recorded"], succeeded=rows[0]["succeeded"]
        )
        if not done:
            return Finished(accepted=False, state=None)
        return Finished(accepted=True, state=present, job=job_from(rows[0]))


class _Write:
    """A guarded write that was sent; whether it hit the row is known once its transaction has ended."""

    def __init__(self, change: RowChange, cursor: Cursor | None) -> None:
        self.change = change
        self._cursor = cursor

    def written_at(self) -> datetime | None:
        """The database's instant of the write; None: the claim held no more."""
        row = self._cursor.fetchone() if self._cursor is not None else None
        return None if row is None or row["count"] != 1 else from_column(row["now"])


def _write(transaction: Transaction, claim: Claim, outcome: Outcome, retention: Retention) -> _Write:
    """Send the outcome in the open transaction. Success takes no round trip of its own; for the
    others the row is locked and read first, because a cancel that was asked for changes them."""
    key: dict[str, Any] = {"id": claim.job.id, "claim_seq": claim.job.claim_seq}
    if isinstance(outcome, Success):
        change = storable_change(row_change(claim.job, outcome, retention))
        return _Write(change, transaction.execute(sql.FINISH, key | finish_values(change)))
    locked = transaction.execute(sql.LOCK_CLAIM, key).fetchone()
    job = replace(claim.job, cancel_reason=None if locked is None else locked["cancel_reason"])
    change = storable_change(row_change(job, outcome, retention))
    if locked is None:
        return _Write(change, None)
    cursor = transaction.execute(sql.FINISH, key | finish_values(change))
    if change.attempt is not None:
        transaction.execute(sql.INSERT_ATTEMPT, key | attempt_values(claim, change))
    return _Write(change, cursor)


def release_all(transaction: Transaction, claims: list[Claim], *, reason: str, retention: Retention) -> int:
    """Give claims back whose rows are locked in the open transaction; how many."""
    release = Release(reason=reason)
    writes = [_write(transaction, claim, release, retention) for claim in claims]
    return sum(write.written_at() is not None for write in writes)


def _candidate_statement(fetch: Fetch) -> tuple[str, dict[str, Any]]:
    """What chooses as the claim does, and locks what it has chosen."""
    claim, params = _claim_statement(fetch)
    return sql.CANDIDATE_OF[claim], params


def _claim_statement(fetch: Fetch) -> tuple[str, dict[str, Any]]:
    owner: dict[str, Any] = {
        "worker_id": fetch.worker_id,
        "server_id": fetch.server_id,
        "registered": fetch.registered,
        "epoch": fetch.epoch,
        "methods": None if fetch.methods is None else list(fetch.methods),
    }
    match fetch.queues:
        case ():
            return sql.CLAIM_FROM_ALL, owner
        case (queue,):
            return sql.CLAIM_FROM_ONE, {**owner, "queue": queue}
        case several:
            return sql.CLAIM_FROM_SEVERAL, {**owner, "queues": list(several)}
