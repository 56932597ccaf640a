"""Supervisor: finish the claims of a dead worker on its behalf, as often as it takes to be heard."""

from __future__ import annotations

import logging
import signal
from dataclasses import dataclass
from datetime import timedelta

from qml_mp import failpoints
from qml_mp.child.exits import WorkerExit
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
)
from qml_mp.ipc.slot import Activity, SlotView
from qml_mp.processing.cancel import CancelReason
from qml_mp.processing.transition_log import log_transition
from qml_mp.storage.protocol import Retention, Storage
from qml_mp.supervisor.retrying import each_by_itself
from qml_mp.units import format_size

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Death:
    """What is known of a worker that is proved dead."""

    worker_id: str
    number: int
    process: ProcessFacts
    slot: SlotView | None
    """The last thing it said; None when it died saying it."""
    killed_for: CancelReason | None = None
    """Why we killed it; None: it died by itself."""
    killed_key: ClaimKey | None = None
    """The claim that the kill was meant for; None: whatever it held."""
    oom_killed: bool = False
    """The kernel's OOM killer struck at the time of its death, and we did not kill it."""
    stack: str | None = None
    """Its last Python stack, where it could be had."""

    @property
    def was_orderly(self) -> bool:
        """It left as designed and said that no job was in hand: a claim that it still holds came with a lost
        reply. Not told by its exit code alone, which any job can give."""
        is_leaving = self.slot is not None and self.slot.activity is Activity.LEAVING
        return is_leaving and self.process.exit_code in (WorkerExit.LEFT, WorkerExit.RECYCLED)

    @property
    def how(self) -> str:
        """ "left as told", "was killed by SIGKILL": for people."""
        if not self.was_orderly:
            return how_it_died(self.process)
        return "left as told" if self.process.exit_code == WorkerExit.LEFT else "left to be replaced"

    @property
    def left_nothing(self) -> bool:
        """It came to its own end with no claim that it knew of. Its exit code alone does not tell: a job can
        leave with any."""
        return self.was_orderly and self.slot is not None and self.slot.activity is Activity.LEAVING

    @property
    def was_busy(self) -> bool:
        """It had a job in hand."""
        return self.slot is not None and self.slot.activity in (Activity.RUNNING, Activity.FINISHING)


def settle(storage: Storage, death: Death, *, max_crashes: int, retention: Retention) -> int:
    """Remove the worker's row, and finish every claim that it holds; how many claims there were.

    The row first: a statement that the worker sent before its death may still claim a job as long
    as the row is there. Safe to repeat: each write is guarded by its claim. Raises `StorageError`
    when not all of it could be written.
    """
    failpoints.hit("settle.before")
    storage.deregister_worker(death.worker_id)
    claims = storage.claims_of_worker(death.worker_id)
    each_by_itself(
        claims, lambda claim: _finish(storage, death, claim, max_crashes=max_crashes, retention=retention)
    )
    failpoints.hit("settle.after")
    return len(claims)


def _finish(storage: Storage, death: Death, claim: Claim, *, max_crashes: int, retention: Retention) -> None:
    outcome = judge(death, claim, max_crashes=max_crashes)
    finished = storage.finish(claim, outcome, retention=retention)
    failpoints.hit("settle.finished")
    if finished.job is not None:
        budget = _crash_budget(death, claim, max_crashes)
        log_transition(logger, claim, finished.job, crashes=budget)
        return
    logger.warning(
        "Job %s of worker %s (pid %s), which %s, is somebody else's now",
        claim.job.id,
        death.number,
        death.process.pid,
        death.how,
        extra={"job_id": claim.job.id, "worker_id": death.worker_id, "attempt": claim.job.claim_seq},
    )


def judge(death: Death, claim: Claim, *, max_crashes: int) -> Outcome:
    """What the death means for a claim that the worker held."""
    if death.killed_key is not None and death.killed_key != claim.key:
        return Release(reason="the worker was killed for the job before")
    if death.killed_for is None and death.was_orderly:
        return Release(reason="the worker left before it knew of the job")
    match death.killed_for:
        case CancelReason.SHUTDOWN | CancelReason.ORPHANED:
            return Release(reason="the server stopped")
        case CancelReason.CANCELLED:
            return Cancelled(reason="cancelled from outside", process=death.process)
        case CancelReason.TIMEOUT:
            message = "The job passed its time limit, did not end when asked, and was killed."
            error = ErrorInfo(type="JobTimeout", message=message, traceback=death.stack)
            delay = _slot_of(death, claim).retry.timeout
            return _failed(error, delay, AttemptKind.TIMEOUT, death.process)
        case CancelReason.MEMORY:
            peak = format_size(death.process.peak_rss_bytes or 0)
            message = f"The worker was killed above the hard memory limit; its peak was {peak}."
            error = ErrorInfo(type="OutOfMemory", message=message, traceback=death.stack)
            delay = _slot_of(death, claim).retry.memory
            return _failed(error, delay, AttemptKind.FAILURE, death.process)
        case None:
            message = f"The worker process (pid {death.process.pid}) {death.how}."
            if death.oom_killed:
                peak = format_size(death.process.peak_rss_bytes or 0)
                message += f" The kernel's OOM killer ended it: memory ran out (its peak was {peak})."
            if death.slot is not None and death.slot.text:
                message += f" {death.slot.text}"
            error = ErrorInfo(type="WorkerDied", message=message, traceback=death.stack)
            return judge_crash(
                crashes_before=claim.job.crashes,
                max_crashes=_crash_budget(death, claim, max_crashes),
                error=error,
                process=death.process,
            )


def how_it_died(process: ProcessFacts) -> str:
    """ "was killed by SIGKILL", "exited with code 1": for people."""
    if process.signal is not None:
        try:
            return f"was killed by {signal.Signals(process.signal).name}"
        except ValueError:
            return f"was killed by signal {process.signal}"
    if process.exit_code is not None:
        return f"exited with code {process.exit_code}"
    return "died in a way that was not told"


def _slot_of(death: Death, claim: Claim) -> SlotView:
    """What the worker said of this claim: an empty view when it was on another or died writing."""
    return death.slot if death.slot is not None and death.slot.key == claim.key else SlotView()


def _crash_budget(death: Death, claim: Claim, of_server: int) -> int:
    return claim.job.max_crashes or _slot_of(death, claim).max_crashes or of_server


def _failed(
    error: ErrorInfo, retry_in: timedelta | None, kind: AttemptKind, process: ProcessFacts
) -> Retry | Failure:
    """A killed attempt that counts as a failure."""
    if retry_in is None:
        return Failure(error=error, kind=kind, process=process)
    return Retry(error=error, delay=retry_in, kind=kind, process=process)
