"""Every process: the outcome of a claim written into an open transaction."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, assert_never

from qml_mp.core.job import Claim
from qml_mp.core.outcome import AttemptKind, Cancelled, Crash, Failure, Outcome, Release, Retry, Success
from qml_mp.core.payload import encode_json
from qml_mp.core.state import StateName
from qml_mp.storage.database import Database, Result, Transaction
from qml_mp.storage.row_change import RowChange, applied, row_change
from qml_mp.storage.rows import job_of, state_name_of
from qml_mp.storage.storable import microseconds, storable_change
from qml_mp.storage.values import Finished, Retention


@dataclass(frozen=True, slots=True, kw_only=True)
class Write:
    """The outcome of a claim, sent. Whether it hit the row is known once its transaction has ended."""

    claim: Claim
    outcome: Outcome
    change: RowChange | None
    """What was sent; None: the claim had been lost before, and nothing was."""
    result: Result | None

    @property
    def written_at(self) -> datetime | None:
        """The database's instant of the write; None: the claim held no more."""
        return None if self.result is None else self.result.written_at


def write_outcome(
    db: Database, transaction: Transaction, claim: Claim, outcome: Outcome, retention: Retention
) -> Write:
    """Send the outcome, guarded by its claim.

    A success takes no round trip of its own. For the others the row is locked and read first, because a
    cancel that was asked for since changes them.
    """
    queries, key = db.queries.claims, _key(claim)
    job = claim.job
    if not isinstance(outcome, Success):
        held = transaction.run(queries.lock, key).first()
        if held is None:
            return Write(claim=claim, outcome=outcome, change=None, result=None)
        job = replace(job, cancel_reason=held["cancel_reason"])
    change = storable_change(row_change(job, outcome, retention))
    values = key | _values(claim, change)
    result = transaction.run(queries.finish, values)
    if change.attempt is not None:
        transaction.run(queries.add_attempt, values)
    return Write(claim=claim, outcome=outcome, change=change, result=result)


def release_all(
    db: Database, transaction: Transaction, claims: Iterable[Claim], release: Release, retention: Retention
) -> int:
    """Give claims back whose rows are locked in the open transaction; how many. A job whose cancel was asked
    for ends Deleted instead, as everywhere."""
    writes = [write_outcome(db, transaction, claim, release, retention) for claim in claims]
    return sum(write.written_at is not None for write in writes)


def finished_by(db: Database, write: Write) -> Finished:
    """What the committed write did. When it hit no row, the row is read back: perhaps an earlier try had
    landed and only its reply was lost."""
    written_at = write.written_at
    if written_at is not None and write.change is not None:
        job = applied(write.claim.job, write.change, now=written_at)
        return Finished(accepted=True, state=write.change.state, job=job)
    rows = db.read("reading a job back", db.queries.claims.read_back, _key(write.claim))
    if not rows or rows[0]["claim_seq"] != write.claim.job.claim_seq:
        return Finished(accepted=False, state=None)
    present = state_name_of(rows[0]["state"])
    done = present is not StateName.PROCESSING and _written_by_this_claim(
        write.outcome, recorded=rows[0]["recorded"], succeeded=bool(rows[0]["succeeded"])
    )
    if not done:
        return Finished(accepted=False, state=None)
    return Finished(accepted=True, state=present, job=job_of(rows[0], db.instant))


def _written_by_this_claim(outcome: Outcome, *, recorded: str | None, succeeded: bool) -> bool:
    """Whether a guarded write that hit no row had been done before, by the same claim.

    For a row that still has the claim's `claim_seq` and is no longer Processing. What moved it on
    is this claim, or somebody who took the claim away. `recorded` is the kind of the claim's attempt in
    the history, `succeeded` whether a success was written. A cancel that was asked for, of which
    nothing is known any more, makes Cancelled of the outcomes after which the job would run again.
    """
    match outcome:
        case Success():
            return succeeded
        case Failure(kind=kind):
            return recorded == kind
        case Retry(kind=kind):
            return recorded in (kind, AttemptKind.CANCELLED)
        case Crash():
            return recorded in (AttemptKind.CRASH, AttemptKind.CANCELLED)
        case Cancelled():
            return recorded == AttemptKind.CANCELLED
        case Release():  # whoever gave the claim back, it is what this one wanted
            return not succeeded and recorded in (None, AttemptKind.CANCELLED)
        case _:
            assert_never(outcome)


def _key(claim: Claim) -> dict[str, Any]:
    return {"id": claim.job.id, "claim_seq": claim.job.claim_seq}


def _values(claim: Claim, change: RowChange) -> dict[str, Any]:
    """For a change made storable. Raises `InvalidJob` for a result too large."""
    error, process = change.error, change.process
    succeeded = change.state is StateName.SUCCEEDED
    return {
        "state": str(change.state),
        "waits": change.state in (StateName.ENQUEUED, StateName.AWAITING_RETRY),
        "delay": (change.delay or timedelta()) if change.state is StateName.AWAITING_RETRY else None,
        "ttl": change.ttl,
        "failures": change.failures,
        "crashes": change.crashes,
        "result": (change.encoded or encode_json(change.result, what="The result")) if succeeded else None,
        "duration_us": None if change.duration is None else microseconds(change.duration),
        "reason": change.reason,
        "failed": error is not None,
        "error_type": error and error.type,
        "error_message": error and error.message,
        "error_traceback": error and error.traceback,
        "kind": change.attempt and str(change.attempt),
        "worker": claim.worker_id,
        "pid": process.pid,
        "signal": process.signal,
        "exit_code": process.exit_code,
        "peak_rss_bytes": process.peak_rss_bytes,
        "cpu_s": process.cpu_s,
    }
