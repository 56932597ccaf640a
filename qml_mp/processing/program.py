"""Worker: everything that user code contributes to a server, and what it makes of a claim."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta

from qml_mp.core.job import Claim, Job
from qml_mp.core.outcome import RetryWhenKilled
from qml_mp.core.recurring import RecurringJob
from qml_mp.errors import JobTimeout
from qml_mp.processing.middleware import JobMiddleware, StateChangeHook, TracingMiddleware
from qml_mp.processing.registry import Worker, WorkerRegistry
from qml_mp.processing.retry import RetryPolicy, check_policy
from qml_mp.settings import DEFAULT_QUEUE, ServerConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """What a worker runs. Made by a `QmlApp`, or by hand at the reference's level.

    Lives in the processes that run user code: workers, and hosts that hand it over by forking.
    """

    registry: WorkerRegistry
    retry_policy: RetryPolicy = field(default_factory=RetryPolicy)
    middleware: tuple[JobMiddleware, ...] = field(default_factory=lambda: (TracingMiddleware(),))
    on_state_change: StateChangeHook | None = None
    recurring: tuple[RecurringJob, ...] = ()
    """Templates that the code declares; the supervisor stores them at start."""
    queues: tuple[str, ...] = (DEFAULT_QUEUE,)
    """The queues that its functions and templates put jobs into, unless a call says otherwise."""
    url: str | None = None
    """The storage that the code names, when it does."""
    config: ServerConfig | None = None
    """The settings that the code gives, when it does."""
    attach: Callable[[str], None] | None = None
    """Tells the app, once in each worker and before the first job, the URL of the storage that the
    worker takes jobs from, so that what jobs enqueue goes there too. None: there is no app."""

    def __post_init__(self) -> None:
        check_policy(self.retry_policy, what="retry_policy")


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """What a job says goes first, then what its worker says, then the program or the server."""

    claim: Claim
    worker: Worker | None
    """None: the program has no worker for the method."""
    policy: RetryPolicy
    limit: timedelta
    """The time limit of one attempt."""
    max_crashes: int | None
    """The crash budget; None: the server's."""
    when_killed: RetryWhenKilled
    """Whether and when the job runs again should a limit kill this attempt."""

    @classmethod
    def of(
        cls, claim: Claim, program: Program, *, default_timeout: timedelta, rng: random.Random
    ) -> Execution:
        """The execution of this claim. `rng` gives the jitter of the delays in `when_killed`."""
        job = claim.job
        worker = program.registry.get(job.method)
        policy = (worker.retry_policy if worker else None) or program.retry_policy
        return cls(
            claim=claim,
            worker=worker,
            policy=policy,
            limit=job.timeout or (worker.timeout if worker else None) or default_timeout,
            max_crashes=job.max_crashes or (worker.max_crashes if worker else None),
            when_killed=RetryWhenKilled(
                timeout=_retry_delay(policy, job, JobTimeout(), rng),
                memory=_retry_delay(policy, job, "OutOfMemory", rng),
            ),
        )

    @property
    def job(self) -> Job:
        """The row as the claim left it."""
        return self.claim.job

    @property
    def max_attempts(self) -> int:
        """Attempts that may fail before the job ends Failed, the first included."""
        return self.policy.attempts(max_retries=self.job.max_retries)

    def retry_delay(self, error: BaseException, rng: random.Random) -> timedelta | None:
        """The delay before the next attempt should this one end with `error`; None: the job fails."""
        return _retry_delay(self.policy, self.job, error, rng)


def _retry_delay(
    policy: RetryPolicy, job: Job, error: BaseException | str, rng: random.Random
) -> timedelta | None:
    return policy.decide(failures=job.failures + 1, error=error, max_retries=job.max_retries, rng=rng)
