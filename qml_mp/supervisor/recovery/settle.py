"""Supervisor: finish the claims of a dead worker on its behalf, in one write.

What had ended is written as it ended. What the worker had not begun goes back uncharged, and so does what it
has taken back of several jobs: one of them has left a transaction open, and nobody knows which. A new worker
runs them again, the first one by itself, so that sooner or later the guilty one is alone. What is left is the
one claim that it had in hand, which is judged by its death.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta

from qml_mp import failpoints
from qml_mp.core.job import Claim, ClaimKey
from qml_mp.core.outcome import (
    AttemptKind,
    Cancelled,
    ErrorInfo,
    Failure,
    Outcome,
    ProcessFacts,
    Release,
    Retry,
    judge_crash,
    not_storable,
)
from qml_mp.errors import OutcomeRefused, StorageError, StorageUnreachable
from qml_mp.events.claims import ended
from qml_mp.events.emitter import Emitter
from qml_mp.events.facts import ClaimFacts, ClaimLost
from qml_mp.ipc.slot import SlotView
from qml_mp.processing.cancel import CancelReason
from qml_mp.storage.store import Storage
from qml_mp.storage.values import Retention
from qml_mp.supervisor.recovery.counting import Counting
from qml_mp.supervisor.recovery.sweep import MOST_UNAVAILABLE, each_by_itself
from qml_mp.supervisor.workers.death import Death
from qml_mp.supervisor.workers.totals import EndTotals
from qml_mp.units import format_size

_NOT_BEGUN = Release(reason="the worker died before it began the job", not_begun=True)
_TAKEN_BACK = "it, or a job that its worker ran beside it, left a transaction open"


@dataclass(frozen=True, slots=True, kw_only=True)
class _End:
    """What is written about a claim."""

    claim: Claim
    outcome: Outcome
    max_crashes: int


def settle(
    storage: Storage,
    death: Death,
    *,
    max_crashes: int,
    retention: Retention,
    events: Emitter,
    counting: Counting | None = None,
) -> int:
    """Remove the worker's row, and finish every claim that it holds; how many claims there were.

    The row first: a statement that the worker sent before its death may still claim a job as long
    as the row is there. Safe to repeat: each write is guarded by its claim. Raises `StorageError`
    when not all of it could be written.
    """
    failpoints.hit("settle.before")
    claims = storage.deregister_worker(death.worker_id)
    counting = counting or Counting(death, EndTotals())
    in_hand = counting.in_hand(lambda: _in_hand(death, claims))
    counting.count_rest(storage, held={claim.key for claim in claims})

    ends = [_end(death, claim, is_in_hand=claim.key == in_hand, max_crashes=max_crashes) for claim in claims]
    writer = _Writer(storage=storage, death=death, retention=retention, events=events, counting=counting)
    writer.write_all(ends)
    # What the worker had sent may have been written since its claims were read, and was then found written.
    counting.count_rest(storage, held=())
    for lost in _lost(storage, death, {claim.key for claim in claims}):
        events.emit(ClaimLost(claim=lost, dead_worker=death.stopped()))
    failpoints.hit("settle.after")
    return len(claims)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Writer:
    """Writes what becomes of the claims of a dead worker, counts it, and tells of it."""

    storage: Storage
    death: Death
    retention: Retention
    events: Emitter
    counting: Counting

    def write_all(self, ends: Sequence[_End]) -> None:
        """Together. What storage refuses about one of them keeps no other waiting."""
        if not ends:
            return
        try:
            self._write(ends)
        except StorageUnreachable:
            raise
        except StorageError:
            each_by_itself(ends, self._write_alone, most_unavailable=MOST_UNAVAILABLE)

    def _write_alone(self, end: _End) -> None:
        try:
            self._write([end])
        except OutcomeRefused as error:
            if end.claim.key not in self.death.ended:
                raise
            self._write([replace(end, outcome=not_storable(error))])

    def _write(self, ends: Sequence[_End]) -> None:
        for end in ends:
            self.counting.note_write(end.claim, end.outcome)
        outcomes = [(end.claim, end.outcome) for end in ends]
        written = self.storage.exchange(outcomes, fetch=None, limit=0, retention=self.retention).finished
        failpoints.hit("settle.finished")
        for end, finished in zip(ends, written, strict=True):
            self.counting.note_written(end.claim, end.outcome, finished)
        worker = self.death.stopped()
        for end, finished in zip(ends, written, strict=True):
            event = ended(end.claim, finished.job, crashes=end.max_crashes, dead_worker=worker)
            if event is not None:
                self.events.emit(event)


def _lost(storage: Storage, death: Death, held: Collection[ClaimKey]) -> Iterator[ClaimFacts]:
    """The claims whose jobs had ended in it, and which somebody has given away before that was written."""
    ended = [
        key for key, outcome in death.ended.items() if key not in held and not isinstance(outcome, Release)
    ]
    for key, recorded in storage.recorded_claims(ended).items():
        if recorded.ending is None:
            job = recorded.job
            yield ClaimFacts(
                job_id=job.id, method=job.method, claim_seq=key.claim_seq, attempt=job.attempt,
                worker_id=death.worker_id,
            )  # fmt: skip


def _in_hand(death: Death, claims: Sequence[Claim]) -> Claim | None:
    """The claim that the worker had begun, and of which nothing else is known: its job has ended, and what
    came of that was not kept; or it had taken this one, as it has shown, or as it is the only one.

    It may die between the two moments, also of the job's own retry policy, and must not do so for ever
    uncharged. Where it had taken none, all that are left go back, also one that the hook is told of. So do
    several of which nothing was kept.
    """
    left = [claim for claim in claims if claim.key not in death.ended and claim.key not in death.not_begun]
    not_kept = death.not_kept
    if len(not_kept) > 1:
        return None
    if not_kept or not death.has_taken:
        return next((claim for claim in left if claim.key in not_kept), None)
    shown = [claim for claim in left if death.slot.key == claim.key]
    is_the_only_one = len(left) == 1 and not death.has_unread_reply
    return next(iter(shown or (left if is_the_only_one else ())), None)


def _end(death: Death, claim: Claim, *, is_in_hand: bool, max_crashes: int) -> _End:
    budget = claim.job.max_crashes or _slot_of(death, claim).max_crashes or max_crashes
    outcome = death.ended.get(claim.key)
    if outcome is None:
        outcome = _judge(death, claim, max_crashes=budget) if is_in_hand else _given_back(death, claim)
    return _End(claim=claim, outcome=outcome, max_crashes=budget)


def _given_back(death: Death, claim: Claim) -> Release:
    return Release(reason=_TAKEN_BACK, process=death.process) if claim.key in death.not_kept else _NOT_BEGUN


def _judge(death: Death, claim: Claim, *, max_crashes: int) -> Outcome:
    """What the death means for the claim that the worker had in hand."""
    if death.killed_key is not None and death.killed_key != claim.key:
        return Release(reason="the worker was killed for the job before", not_begun=True)
    if death.killed_for is None and death.was_orderly:
        return Release(reason="the worker left before it knew of the job", not_begun=True)
    retry, peak = _slot_of(death, claim).retry, format_size(death.process.peak_rss_bytes or 0)
    stack = death.stack.of(claim.key)
    match death.killed_for:
        case CancelReason.SHUTDOWN | CancelReason.ORPHANED:
            return Release(reason="the server stopped", process=death.process)
        case CancelReason.CANCELLED:
            return Cancelled(reason="cancelled from outside", process=death.process)
        case CancelReason.TIMEOUT:
            message = "The job passed its time limit, did not end when asked, and was killed."
            error = ErrorInfo(type="JobTimeout", message=message, traceback=stack)
            return _failed(error, retry.timeout, AttemptKind.TIMEOUT, death.process)
        case CancelReason.MEMORY:
            message = f"The worker was killed above the hard memory limit; its peak was {peak}."
            error = ErrorInfo(type="OutOfMemory", message=message, traceback=stack)
            return _failed(error, retry.memory, AttemptKind.FAILURE, death.process)
        case None:
            message = f"The worker process (pid {death.process.pid}) {death.how}."
            if death.oom_killed:
                message += f" The kernel's OOM killer ended it: memory ran out (its peak was {peak})."
            if death.slot.text:
                message += f" {death.slot.text}"
            error = ErrorInfo(type="WorkerDied", message=message, traceback=stack)
            return judge_crash(
                crashes_before=claim.job.crashes,
                max_crashes=max_crashes,
                error=error,
                process=death.process,
            )


def _slot_of(death: Death, claim: Claim) -> SlotView:
    """What the worker said of this claim: an empty view when it was on another."""
    return death.slot if death.slot.key == claim.key else SlotView()


def _failed(
    error: ErrorInfo, retry_in: timedelta | None, kind: AttemptKind, process: ProcessFacts
) -> Retry | Failure:
    """A killed attempt that counts as a failure."""
    if retry_in is None:
        return Failure(error=error, kind=kind, process=process)
    return Retry(error=error, delay=retry_in, kind=kind, process=process)
