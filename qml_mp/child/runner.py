"""Worker: one job run, and the process as it was before."""

from __future__ import annotations

import os
import random

from qml_mp import failpoints, host
from qml_mp.child.between_jobs import BetweenJobs
from qml_mp.child.commands import Commands
from qml_mp.child.hygiene import Hygiene
from qml_mp.child.reports import Display, StateChanges
from qml_mp.core.job import Claim
from qml_mp.core.outcome import Cancelled, Outcome, Release
from qml_mp.processing.processor import JobProcessor
from qml_mp.processing.program import Execution
from qml_mp.settings import ServerConfig

NOT_BEGUN = Release(reason="the worker gave it back before it began", not_begun=True)


class Runner:
    """Makes one outcome of each claim. Does not write it."""

    def __init__(
        self,
        processor: JobProcessor,
        *,
        commands: Commands,
        display: Display,
        changes: StateChanges,
        hygiene: Hygiene,
        between: BetweenJobs,
        config: ServerConfig,
    ) -> None:
        self._processor = processor
        self._commands = commands
        self._display = display
        self._changes = changes
        self._hygiene = hygiene
        self._end_attempt = hygiene.guarding(processor.end_attempt, name="tracing")
        self._between = between
        self._max_jobs = _with_jitter(config.max_jobs)
        self._max_memory = config.max_memory

    @property
    def spoiled(self) -> str | None:
        """Why no other job may run in this process."""
        return self._hygiene.spoiled

    def catch_up(self) -> None:
        """Before storage is used after jobs: the process is as it was, or `spoiled`."""
        self._hygiene.before_storage()

    @property
    def wants_to_call(self) -> bool:
        """Whether it is time to call the program's function for a failed job, or to export the spans of dead
        workers, should there be any."""
        return self._between.is_due

    @property
    def calls_in_s(self) -> float:
        """How long an idle worker waits for the next such time."""
        return self._between.wait_s

    def call(self) -> None:
        """Do so."""
        self._between.look()

    def resolve(self, claim: Claim) -> Execution:
        """What the run of the claim needs."""
        return self._processor.resolve(claim)

    def run(self, execution: Execution) -> Outcome:
        """Run the job, unless somebody has asked before for its end."""
        failpoints.hit("claim.committed")
        key = execution.claim.key
        cancelled = self._commands.take_early_cancel(key)
        if cancelled is not None:
            self._changes.claimed(execution, begins=False)
            return Cancelled(reason=cancelled)
        cancel = self._commands.attend_to(key)
        try:
            self._changes.claimed(execution)
            self._display.running(execution)
            self._hygiene.before_job()
            outcome = self._processor.run(execution, cancel)
        finally:
            self._commands.attend_to_nothing()
        self._hygiene.after_job(execution.job.method, outcome)
        failpoints.hit("job.returned")
        slot = self._display.slot
        slot.jobs_done += 1
        if self._is_used_up():
            slot.used_up = True  # it only says so: the supervisor replaces one worker at a time
        return outcome

    def end_attempt(self, execution: Execution, outcome: Outcome) -> None:
        """Tell whatever follows the program's jobs that the newest one has ended; its outcome is kept by now.
        It may hang, as the hook for changes of state may: it has the time limit of the job to itself, and a
        worker that is killed for it loses no job."""
        if self._processor.attempt is not None and self._end_attempt is not None:
            self._display.running(execution, is_over=True)
            self._end_attempt(outcome)

    def give_back(self, execution: Execution) -> Outcome:
        """The claim came too late to be run. It is two transitions, and the hook is told of both."""
        self._changes.given_back(execution)
        return NOT_BEGUN

    def _is_used_up(self) -> bool:
        if self._max_jobs is not None and self._display.slot.jobs_done >= self._max_jobs:
            return True
        if self._max_memory is None:
            return False
        return (host.rss_bytes(os.getpid()) or 0) > self._max_memory


def _with_jitter(max_jobs: int | None) -> int | None:
    """Up to a tenth more, so that workers started together are not replaced together. An app may have seeded
    the random source that all share."""
    return None if max_jobs is None else max_jobs + random.Random().randint(0, max_jobs // 10)
