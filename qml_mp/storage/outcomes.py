"""Every process: outcomes of claims written into an open transaction."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any, assert_never

from qml_mp.core.failure_kinds import failure_key
from qml_mp.core.history import microseconds_of
from qml_mp.core.job import Claim, ClaimKey, Job
from qml_mp.core.lost_attempt import RELEASED, facts_of_lost
from qml_mp.core.outcome import (
    AttemptKind,
    Cancelled,
    Crash,
    Failure,
    Outcome,
    Release,
    Retry,
    Success,
    extras_of,
)
from qml_mp.core.state import StateName
from qml_mp.frozen import maker
from qml_mp.storage.database import Database, Result, Transaction, Values
from qml_mp.storage.follow_ups import enqueue_follow_ups, keep_their_keys
from qml_mp.storage.job_rows import job_of
from qml_mp.storage.progress import progress_rows
from qml_mp.storage.row_change import RowChange, applied, row_change
from qml_mp.storage.rows import Row, duration_of, state_name_of, text_of
from qml_mp.storage.storable import microseconds, storable_change, storable_reason
from qml_mp.storage.values import Finished, Retention

Outcomes = Sequence[tuple[Claim, Outcome]]

_new_finished = maker(Finished)


class Writing:
    """Outcomes on their way into storage: the successes all by one query, the others one by one.

    Raises `InvalidJob` for a result that cannot be stored.
    """

    def __init__(self, db: Database, finished: Outcomes, retention: Retention) -> None:
        self._db = db
        self._retention = retention
        self._finished = finished
        self._changes: dict[ClaimKey, RowChange] = {}
        """Of the others."""
        self._successes = 0
        self._has_extras = False
        rows: dict[str, dict[str, Any]] = {}
        for claim, outcome in finished:
            if isinstance(outcome, Success):
                self._successes += 1
                self._has_extras = self._has_extras or outcome.extras is not None
                row = _success_row(claim, outcome)
                other = rows.get(claim.job.id)
                # Of two claims of one job the older is lost.
                if other is None or other["claim_seq"] < claim.job.claim_seq:
                    rows[claim.job.id] = row
        self.rows: Sequence[Values] = [rows[job_id] for job_id in sorted(rows)]
        """What `succeed` is run with, each, in the order in which everybody locks jobs."""
        self.values: Values = {"ttl": retention.succeeded_ttl}  # and for all of them
        self._succeeded: Result | None = None
        self._results: dict[ClaimKey, Result] = {}
        """Of the others."""

    @property
    def is_of_successes(self) -> bool:
        """Whether `succeed` writes all of it."""
        return self._successes == len(self._finished) and not self._has_extras

    def commit(self, what: str, succeed: str, *, check: Callable[[], None] | None = None) -> None:
        """Write them in a transaction of their own; `succeed` is the query for successes alone. `check`: as
        for `exchange`."""
        if self.is_of_successes and check is None:
            self.sent_by(self._db.write_each(what, succeed, self.rows, self.values))
        else:
            with self._db.transaction(what) as transaction:
                if check is not None:
                    check()
                self.send(transaction, succeed)

    def send(self, transaction: Transaction, succeed: str | None = None) -> None:
        """Send all of it; `succeed` as for `commit`.

        The rows of the others are locked and read first, because a cancel that was asked for since changes
        them, and so are those of successes after which other jobs follow, because these depend on whether the
        claim holds. With them all, so that all are locked in one order.
        """
        claims, jobs = self._db.queries.claims, self._db.queries.jobs
        asked: Mapping[ClaimKey, Row] = {}
        if self._has_extras:
            keep_their_keys(jobs, transaction, self._finished)
        if not self.is_of_successes:
            rows = transaction.run(claims.lock, {"ids": [claim.job.id for claim, _ in self._finished]}).rows()
            held = {(row["id"], row["claim_seq"], text_of(row["worker_id"])): row for row in rows}
            asked = {
                claim.key: held[fence]
                for claim, _ in self._finished
                if (fence := (claim.job.id, claim.job.claim_seq, claim.worker_id)) in held
            }
            enqueue_follow_ups(jobs, transaction, self._finished, asked, self._retention, freed=False)
            self._note_progress(transaction, asked)
            for claim, outcome in self._finished:
                if claim.key in asked and not isinstance(outcome, Success):
                    job = replace(claim.job, cancel_reason=asked[claim.key]["cancel_reason"])
                    change = storable_change(row_change(job, outcome, self._retention))
                    self._changes[claim.key] = change
                    self._results[claim.key] = write_change(self._db, transaction, claim, change)
        if self.rows:
            self.sent_by(transaction.run_each(succeed or claims.succeed, self.rows, self.values))
        if self._has_extras:
            enqueue_follow_ups(jobs, transaction, self._finished, asked, self._retention, freed=True)

    def _note_progress(self, transaction: Transaction, held: Collection[ClaimKey]) -> None:
        said = {
            claim.key: extras.progress
            for claim, outcome in self._finished
            if claim.key in held and (extras := extras_of(outcome)) is not None
            if extras.progress is not None
        }
        if said:
            transaction.run_each(self._db.queries.jobs.note_progress, progress_rows(said))

    def sent_by(self, succeeded: Result) -> None:
        """The successes were sent by a query that does what `succeed` does."""
        self._succeeded = succeeded

    def finished(self) -> tuple[Finished, ...]:
        """What was committed, in the order given.

        The rows of those that have hit none are read back: perhaps an earlier try had landed and only its
        reply was lost. Of the successes it is known how many these are; of any at all, all are read.
        """
        succeeded = self._succeeded
        all_succeeded = succeeded is not None and succeeded.count == self._successes
        succeeded_at = succeeded.written_at if succeeded is not None and all_succeeded else None
        done = [self._hit(claim, outcome, succeeded_at) for claim, outcome in self._finished]
        if succeeded_at is not None and self.is_of_successes:
            return tuple(filter(None, done))  # each of them
        missed = {claim.job.id for (claim, _), hit in zip(self._finished, done, strict=True) if hit is None}
        present = {}
        if missed:
            read_back, which = self._db.queries.claims.read_back, {"ids": sorted(missed)}
            present = {row["id"]: row for row in self._db.read("reading jobs back", read_back, which)}
        return tuple(
            hit or self._written_before(claim, outcome, present.get(claim.job.id))
            for (claim, outcome), hit in zip(self._finished, done, strict=True)
        )

    def _hit(self, claim: Claim, outcome: Outcome, succeeded_at: datetime | None) -> Finished | None:
        """None: it has hit no row, for all that is known."""
        if isinstance(outcome, Success):
            if succeeded_at is None:
                return None
            row = partial(_succeeded, claim.job, outcome, self._retention, succeeded_at)
            return _new_finished(accepted=True, state=StateName.SUCCEEDED, row=row)
        change = self._changes.get(claim.key)
        written_at = None if change is None else self._results[claim.key].written_at
        if change is None or written_at is None:
            return None
        row = partial(applied, claim.job, change, now=written_at)
        return Finished(accepted=True, state=change.state, row=row)

    def _written_before(self, claim: Claim, outcome: Outcome, row: Row | None) -> Finished:
        lost = Finished(accepted=False, state=None)
        if row is None or row["claim_seq"] != claim.job.claim_seq:
            return lost
        present = state_name_of(row["state"])
        if present is StateName.PROCESSING or not _written_by_this_claim(claim, outcome, row):
            return lost
        job = partial(job_of, row, self._db.instant)
        was_written = not (isinstance(outcome, Success) and self._has_just_written(row))
        return Finished(accepted=True, state=present, was_written=was_written, row=job)

    def _has_just_written(self, row: Row) -> bool:
        """Whether the success that was read back is one of those that this very commit has written."""
        written_at = None if self._succeeded is None else self._succeeded.written_at
        return written_at is not None and self._db.instant(row["finished_at"]) == written_at


def write_change(
    db: Database, transaction: Transaction, claim: Claim, change: RowChange, *, is_lost: bool = False
) -> Result:
    """Send an outcome other than success, guarded by its claim. `is_lost`: nobody knows what became of the
    worker; it is known to be dead where the change tells of its process."""
    values = _values(claim, change)
    result = transaction.run(db.queries.claims.finish, values)
    if change.attempt is not None:
        transaction.run(db.queries.claims.add_attempt, values)
    if change.state is StateName.FAILED:
        transaction.run(db.queries.failures.note, values)
    if is_lost or change.process.pid is not None:
        transaction.run(db.queries.lost_attempts.note, {**_key_of(claim), "facts": _facts(claim, change)})
    return result


def _key_of(claim: Claim) -> dict[str, object]:
    return {"id": claim.job.id, "claim_seq": claim.job.claim_seq, "method": claim.job.method}


def _facts(claim: Claim, change: RowChange) -> str:
    return facts_of_lost(
        claim,
        ended_as=RELEASED if change.attempt is None else str(change.attempt),
        state=change.state,
        reason=change.reason or "",
        error=change.error,
        process=change.process,
        delay=change.delay,
    )


def _written_by_this_claim(claim: Claim, outcome: Outcome, row: Row) -> bool:
    """Whether a guarded write that hit no row had been done before, by the same claim.

    For a row that still has the claim's `claim_seq` and is no longer Processing. What moved it on is this
    claim, or somebody who took it away; or, after a restore, another claim of that number: an attempt in the
    history names its worker, and a success has a duration of its own. A cancel that was asked for, of which
    nothing is known any more, makes Cancelled of the outcomes after which the job would run again.
    """
    recorded: str | None = row["recorded"]
    ran = duration_of(row["duration_us"])
    if recorded is not None and text_of(row["recorded_of"]) != claim.worker_id:
        return False
    match outcome:
        case Success(duration=duration):  # as in shared memory, from where it may have been written
            return ran is not None and microseconds_of(ran) == microseconds_of(duration)
        case Failure(kind=kind):
            return recorded == kind
        case Retry(kind=kind):
            return recorded in (kind, AttemptKind.CANCELLED)
        case Crash():
            return recorded in (AttemptKind.CRASH, AttemptKind.CANCELLED)
        case Cancelled():
            return recorded == AttemptKind.CANCELLED
        case Release():  # whoever gave the claim back, it is what this one wanted
            return ran is None and recorded in (None, AttemptKind.CANCELLED)
        case _:
            assert_never(outcome)


def order_of_locks(finished: tuple[Claim, Outcome]) -> tuple[str, int]:
    """As everybody locks several jobs, so that no two wait for each other."""
    job = finished[0].job
    return job.id, job.claim_seq


def _succeeded(job: Job, success: Success, retention: Retention, now: datetime) -> Job:
    """The row after it."""
    return applied(job, storable_change(row_change(job, success, retention)), now=now)


def _success_row(claim: Claim, success: Success) -> dict[str, Any]:
    return {
        "id": claim.job.id,
        "claim_seq": claim.job.claim_seq,
        "result": success.result_text(),
        "duration_us": microseconds(success.duration),
        "reason": storable_reason(success.not_stored),
        "held_by": claim.worker_id,
    }


def _values(claim: Claim, change: RowChange) -> Values:
    """For a change made storable."""
    error, process = change.error, change.process
    return {
        "id": claim.job.id,
        "claim_seq": claim.job.claim_seq,
        "state": str(change.state),
        "waits": change.state in (StateName.ENQUEUED, StateName.AWAITING_RETRY),
        "keeps_age": change.keeps_age,
        "delay": (change.delay or timedelta()) if change.state is StateName.AWAITING_RETRY else None,
        "ttl": change.ttl,
        "failures": change.failures,
        "crashes": change.crashes,
        "reason": change.reason,
        "failed": error is not None,
        "error_type": error and error.type,
        "error_message": error and error.message,
        "error_traceback": error and error.traceback,
        "error_key": error and failure_key(claim.job.method, error.type, error.traceback),
        "kind": change.attempt and str(change.attempt),
        "worker": claim.worker_id,
        "pid": process.pid,
        "signal": process.signal,
        "exit_code": process.exit_code,
        "peak_rss_bytes": process.peak_rss_bytes,
        "cpu_s": process.cpu_s,
    }
