"""Worker: claim, run, finish, and the next one, until told to leave.

Storage that does not answer is waited for with growing pauses, and the worker keeps reading
its pipe meanwhile. An outcome in hand is written as soon as storage answers; only a lost claim ends that.
"""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta

from qml_mp import failpoints, host
from qml_mp.child.exits import WorkerExit
from qml_mp.child.hygiene import Descriptors, Hygiene
from qml_mp.child.outages import Outages
from qml_mp.child.token import Commands
from qml_mp.core.job import Claim, Job
from qml_mp.core.outcome import (
    AttemptKind,
    Cancelled,
    ErrorInfo,
    Failure,
    Outcome,
    Release,
    Retry,
    RetryWhenKilled,
)
from qml_mp.core.server_info import WorkerInfo
from qml_mp.core.state import StateName
from qml_mp.errors import OutcomeRefused, StorageError, StorageUnavailable
from qml_mp.ipc.slot import Activity, SlotWriter
from qml_mp.processing.errors_text import describe_anything
from qml_mp.processing.middleware import StateChange, StateChangeHook
from qml_mp.processing.processor import JobProcessor
from qml_mp.processing.transition_log import log_transition
from qml_mp.storage.protocol import Fetch, Finished, Retention, Storage

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopLimits:
    """When an idle worker looks, and after what it asks to be replaced."""

    polling_interval: timedelta
    retention: Retention
    max_jobs: int | None = None
    max_memory_bytes: int | None = None


class WorkerLoop:
    """The life of a booted worker."""

    def __init__(
        self,
        *,
        fetch: Fetch,
        storage: Storage,
        info: WorkerInfo,
        processor: JobProcessor,
        commands: Commands,
        slot: SlotWriter,
        limits: LoopLimits,
        on_state_change: StateChangeHook | None,
        show_title: Callable[[str], None],
        hygiene: Hygiene,
        pid: int,
    ) -> None:
        self._fetch = fetch
        self._storage = storage
        self._info = info
        self._is_registered = False
        self._processor = processor
        self._commands = commands
        self._slot = slot
        self._limits = limits
        self._on_state_change = on_state_change
        self._show_title = show_title
        self._hygiene = hygiene
        self._pid = pid
        self._jobs_done = 0
        self._spoiled: str | None = None
        self._outages = Outages(worker_id=fetch.worker_id, wait=commands.wait)
        self._in_doubt = False
        """Whether this worker may hold a claim of which it does not know. No length of time ends it."""
        self._found: deque[Claim] = deque()
        """Claims that it held without knowing; they are next."""

    def run(self) -> WorkerExit:
        """Work until told to leave, orphaned, or used up."""
        claim: Claim | None = None
        self._commands.look()  # it may have been forked while claims are paused
        while True:
            if claim is None and self._found:
                claim = self._found.popleft()
            if claim is None:
                reason = self._reason_to_leave()
                if reason is not None:
                    return reason
                claim = self._next_claim()
            elif self._commands.leaving or self._commands.paused or self._spoiled is not None:
                self._give_back(claim)
                claim = None
            else:
                claim = self._work(claim)
            self._commands.look()

    def _give_back(self, claim: Claim) -> None:
        """Release a claim that came too late to be run: two transitions, and the hook is told of both."""
        self._announce(claim, claim.job, old=StateName.ENQUEUED)
        self._settle(claim, Release(reason="the worker was told to leave"), then=None)

    def _reason_to_leave(self) -> WorkerExit | None:
        if self._commands.leaving:
            return WorkerExit.LEFT
        if self._spoiled is not None:
            logger.warning("Worker %s leaves: %s", self._fetch.worker_id, self._spoiled)
            return WorkerExit.RECYCLED
        return None

    def _is_used_up(self) -> bool:
        """Past its limits. It only says so: the supervisor replaces one worker at a time."""
        limits = self._limits
        if limits.max_jobs is not None and self._jobs_done >= limits.max_jobs:
            return True
        if limits.max_memory_bytes is None:
            return False
        return (host.rss_bytes(self._pid) or 0) > limits.max_memory_bytes

    def _next_claim(self) -> Claim | None:
        """Ask for a job; when there is none, wait until woken or the poll is due."""
        claim = None
        try:
            self._register()
            self._slot.show(Activity.FETCHING)
            self._end_doubt()
            if not (self._commands.paused or self._found):
                self._in_doubt = True  # until the reply is here
                claim = self._storage.fetch_and_lock_job(self._fetch)
                self._in_doubt = False
        except StorageError as error:
            self._outages.failed("claim a job", error)
            return None
        self._outages.ended()
        if claim is None and not self._found:
            self._slot.show(Activity.IDLE)
            self._show_title("idle")
            self._commands.wait(self._limits.polling_interval.total_seconds())
        return claim

    def _end_doubt(self) -> None:
        """Make void what was sent before, and take over what it has claimed."""
        if self._commands.doubted:
            self._commands.doubted, self._in_doubt = False, True
        if not self._in_doubt:
            return
        renewed = self._storage.renew_epoch(self._fetch.worker_id)
        if renewed is None:  # registered anew, it must not have the epoch of what was sent before
            self._is_registered = False
            self._info = replace(self._info, epoch=self._fetch.epoch + 1)
            raise StorageUnavailable("The row of this worker is gone from the registry.")
        self._fetch = replace(self._fetch, epoch=renewed.epoch)
        self._in_doubt = False
        self._found = deque(renewed.claims)
        for claim in renewed.claims:
            logger.info(
                "Found the claim of job %s, whose reply had been lost",
                claim.job.id,
                extra={"job_id": claim.job.id, "worker_id": claim.worker_id, "attempt": claim.job.claim_seq},
            )

    def _register(self) -> None:
        """Before the first claim: whoever finds it after our death must know whom to kill first."""
        if not self._is_registered:
            self._is_registered = self._storage.register_worker(self._info)
        if not self._is_registered:
            raise StorageUnavailable("A peer declared this server dead; its supervisor will see to it.")

    def _work(self, claim: Claim) -> Claim | None:
        """Run the job, write what came of it, and return the next claim from the same commit."""
        job = claim.job
        failpoints.hit("claim.committed")
        retry = self._processor.retry_when_killed(job)
        with self._commands.attending(claim.key) as cancel:
            self._show_title(job.method)
            self._announce(claim, job, old=StateName.ENQUEUED)
            self._show_job(Activity.RUNNING, claim, retry)
            self._hygiene.before_job(self._storage.descriptors())
            outcome = self._processor.run(claim, cancel)
        self._tidy_up()
        if _was_ended(outcome) and host.shares_its_group(self._pid) is not False:
            # Nobody waits for them any more; the supervisor kills the group of a worker that left.
            self._spoiled = self._spoiled or "a job that was ended has left processes"
        self._show_job(Activity.FINISHING, claim, retry)
        self._jobs_done += 1
        self._slot.count_job()
        self._commands.look()
        if self._is_used_up():
            self._slot.ask_to_be_replaced()
        return self._settle(claim, outcome, then=self._fetch if self._wants_more() else None)

    def _wants_more(self) -> bool:
        """Whether the next claim can be asked for together with the outcome in hand."""
        has_to_stop = self._commands.leaving or self._commands.paused or self._spoiled is not None
        return not (has_to_stop or self._in_doubt or self._commands.doubted or self._found)

    def _tidy_up(self) -> None:
        """After user code, before anything is written: is this still our process as it was?"""
        if os.getpid() != self._pid:
            os._exit(0)  # the job forked and let the copy return: it is no worker
        match self._hygiene.descriptors(self._storage.descriptors()):
            case Descriptors.REPLACED:
                # The connection to storage may be somebody else's file now: not one byte more.
                self._slot.say("The job closed or replaced descriptors of the worker.")
                os._exit(WorkerExit.BROKEN)
            case Descriptors.SOME_CLOSED:
                self._storage.close()  # its number may be gone; the next use opens another
            case Descriptors.OURS:
                pass
        self._spoiled = self._hygiene.restore()

    def _show_job(self, activity: Activity, claim: Claim, retry: RetryWhenKilled) -> None:
        self._slot.show_job(
            activity,
            claim.key,
            method=claim.job.method,
            since_ns=time.monotonic_ns(),
            limit=self._processor.limit(claim.job),
            retry=retry,
            max_crashes=self._processor.max_crashes(claim.job),
        )

    def _settle(self, claim: Claim, outcome: Outcome, *, then: Fetch | None) -> Claim | None:
        finished = self._finish(claim, outcome, then=then)
        if finished is None:
            return None
        if not finished.accepted:
            logger.warning(
                "The claim of job %s was lost; its outcome was not written",
                claim.job.id,
                extra={"job_id": claim.job.id, "worker_id": claim.worker_id, "attempt": claim.job.claim_seq},
            )
        elif finished.job is not None:
            log_transition(logger, claim, finished.job, attempts=self._processor.max_attempts(claim.job))
            self._announce(claim, finished.job, old=StateName.PROCESSING)
        return finished.next

    def _finish(self, claim: Claim, outcome: Outcome, *, then: Fetch | None) -> Finished | None:
        """Write the outcome, as often as it takes; None when the worker must leave before it could.

        With the next claim at first, then alone: what hinders the one must not hinder the other.
        """
        is_as_it_came = True
        while True:
            try:
                failpoints.hit("finish.before")
                self._in_doubt = self._in_doubt or then is not None  # until the reply is here
                finished = self._storage.finish(claim, outcome, retention=self._limits.retention, then=then)
                failpoints.hit("finish.committed")
                if then is not None:
                    self._in_doubt = False
                self._outages.ended()
                return finished
            except StorageError as error:
                was_alone, then = then is None, None
                if isinstance(error, OutcomeRefused) and is_as_it_came:
                    is_as_it_came = False  # a second refusal would be of the sentence below
                    outcome = _refused(error)
                elif was_alone or isinstance(error, StorageUnavailable):
                    self._wait_to_write_again(error)
                    if self._commands.orphaned:
                        return None  # nobody is left to wait for; the claim is recovered by whoever finds it

    def _wait_to_write_again(self, error: StorageError) -> None:
        if isinstance(error, StorageUnavailable) and self._storage.is_locked_by_this_process():
            self._slot.say("The job has left a transaction open, in which nobody else can write.")
            os._exit(WorkerExit.BROKEN)  # which ends the transaction
        self._outages.failed("write an outcome", error)

    def _announce(self, claim: Claim, job: Job, *, old: StateName) -> None:
        """Call the hook with the row as the transition left it. It is user code: it may raise anything, and
        it may hang, for which it has the time limit of the job to itself; a worker that is killed for it
        loses no job."""
        if self._on_state_change is None:
            return
        self._show_job(Activity.RUNNING, claim, self._processor.retry_when_killed(claim.job))
        try:
            self._on_state_change(StateChange(job=replace(job), old=old, new=job.state_name))
        except BaseException as error:
            told = describe_anything(error)
            logger.error(
                "The state-change hook failed: %s: %s\n%s",
                told.type,
                told.message,
                told.traceback or "",
                extra={"job_id": claim.job.id},
            )


def _refused(error: OutcomeRefused) -> Failure:
    """In place of an outcome that no storage will ever take: keep the job from running for ever."""
    message = f"The outcome could not be stored: {error}"
    return Failure(error=ErrorInfo(type=type(error).__name__, message=message))


def _was_ended(outcome: Outcome) -> bool:
    """Whether the job was ended from outside, and may not have cleaned up."""
    match outcome:
        case Cancelled() | Release():
            return True
        case Retry(kind=kind) | Failure(kind=kind):
            return kind is AttemptKind.TIMEOUT
        case _:
            return False
