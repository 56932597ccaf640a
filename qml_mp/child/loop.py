"""Worker: claim, run, settle, and the next one, until told to leave.

Storage that does not answer is waited for with growing pauses, and the worker keeps reading
its pipe meanwhile. An outcome in hand is written as soon as storage answers; only a lost claim ends that.
"""

from __future__ import annotations

import logging
import os
import random

from qml_mp import failpoints, host
from qml_mp.child.claims import Claims
from qml_mp.child.commands import Commands
from qml_mp.child.exits import WorkerExit
from qml_mp.child.hygiene import Hygiene
from qml_mp.child.reports import Display, StateChanges
from qml_mp.core.job import Claim
from qml_mp.core.outcome import ErrorInfo, Failure, Outcome, Release
from qml_mp.errors import OutcomeRefused, StorageError, StorageUnavailable
from qml_mp.processing.processor import JobProcessor
from qml_mp.processing.program import Execution
from qml_mp.settings import ServerConfig
from qml_mp.storage.values import Finished

logger = logging.getLogger(__name__)

_OWN_LOOK = 60  # times the interval: the supervisor looks for all its idle workers, as long as it can


class WorkerLoop:
    """The life of a booted worker."""

    def __init__(
        self,
        *,
        claims: Claims,
        processor: JobProcessor,
        commands: Commands,
        display: Display,
        changes: StateChanges,
        hygiene: Hygiene,
        config: ServerConfig,
    ) -> None:
        self._claims = claims
        self._processor = processor
        self._commands = commands
        self._display = display
        self._changes = changes
        self._hygiene = hygiene
        self._config = config
        self._max_jobs = _with_jitter(config.max_jobs)

    def run(self) -> WorkerExit:
        """Work until told to leave, orphaned, or used up."""
        self._commands.look()  # it may have been forked while claims are paused
        while True:
            if self._claims.held:
                execution = self._processor.resolve(self._claims.held.popleft())
                outcome = self._give_back(execution) if self._has_to_stop() else self._run(execution)
                finished = self._finish(execution.claim, outcome)
                if finished is not None:
                    self._changes.finished(execution, finished)
            else:
                reason = self._reason_to_leave()
                if reason is not None:
                    return reason
                self._claim()
            self._commands.look()

    def _reason_to_leave(self) -> WorkerExit | None:
        if self._commands.leaving:
            return WorkerExit.LEFT
        if self._hygiene.spoiled is not None:
            logger.warning("Worker %s leaves: %s", self._claims.worker_id, self._hygiene.spoiled)
            return WorkerExit.RECYCLED
        return None

    def _has_to_stop(self) -> bool:
        return self._commands.leaving or self._commands.paused or self._hygiene.spoiled is not None

    def _claim(self) -> None:
        """Ask for a job; when there is none, wait until woken or the poll is due."""
        try:
            self._claims.register()
            self._display.fetching()
            self._claims.fetch()
        except StorageError as error:
            self._wait_to_try_again("claim a job", error)
            return
        self._claims.tries.worked()
        if not self._claims.held:
            self._display.idle()
            self._commands.wait(_OWN_LOOK * self._config.polling_interval.total_seconds())

    def _give_back(self, execution: Execution) -> Outcome:
        """The claim came too late to be run. It is two transitions, and the hook is told of both."""
        self._changes.claimed(execution)
        return Release(reason="the worker was told to leave")

    def _run(self, execution: Execution) -> Outcome:
        """Run the job, and have the process as it was before."""
        failpoints.hit("claim.committed")
        slot = self._display.slot
        with self._commands.attending(execution.claim.key) as cancel:
            self._changes.claimed(execution)
            self._display.running(execution)
            self._hygiene.before_job()
            outcome = self._processor.run(execution, cancel)
        self._hygiene.after_job(execution.job.method, outcome)
        self._display.finishing()
        slot.jobs_done += 1
        self._commands.look()
        if self._is_used_up():
            slot.used_up = True  # it only says so: the supervisor replaces one worker at a time
        return outcome

    def _is_used_up(self) -> bool:
        if self._max_jobs is not None and self._display.slot.jobs_done >= self._max_jobs:
            return True
        if self._config.max_memory is None:
            return False
        return (host.rss_bytes(os.getpid()) or 0) > self._config.max_memory

    def _finish(self, claim: Claim, outcome: Outcome) -> Finished | None:
        """Write the outcome, as often as it takes; None when the worker must leave before it could.

        Together with the next claim at first, then alone: an error of the claim must not keep the outcome.
        """
        self._hygiene.before_storage()
        is_as_it_came = True
        and_next = self._claims.can_ask and not self._has_to_stop()
        while True:
            try:
                finished = self._claims.finish(claim, outcome, and_next=and_next)
                self._claims.tries.worked()
                return finished
            except StorageError as error:
                was_alone, and_next = not and_next, False
                if isinstance(error, OutcomeRefused) and is_as_it_came:
                    is_as_it_came = False  # a second refusal would be of the sentence below
                    outcome = _refused(error)
                elif was_alone or isinstance(error, StorageUnavailable):
                    if isinstance(error, StorageUnavailable):
                        self._hygiene.check_transaction()
                    self._wait_to_try_again("write an outcome", error)
                    if self._commands.orphaned:
                        return None  # nobody is left to wait for; the claim is recovered by whoever finds it

    def _wait_to_try_again(self, what: str, error: StorageError) -> None:
        """Or less long, when the supervisor has something to say."""
        self._commands.wait(self._claims.tries.failed(f"Cannot {what}", error))


def _refused(error: OutcomeRefused) -> Failure:
    """In place of an outcome that storage always refuses, so that the job does not run for ever."""
    message = f"The outcome could not be stored: {error}"
    return Failure(error=ErrorInfo(type=type(error).__name__, message=message))


def _with_jitter(max_jobs: int | None) -> int | None:
    """Up to a tenth more, so that workers started together are not replaced together. An app may have seeded
    the random source that all share."""
    return None if max_jobs is None else max_jobs + random.Random().randint(0, max_jobs // 10)
