"""Worker, supervisor: what becomes of a claim, as a fact.

An end is read off the row before and after, so that it says what is stored, also where a cancel that was
asked for, or the storage itself, has changed what the attempt came to.
"""

from __future__ import annotations

from datetime import timedelta

from qml_mp.core.job import Claim, Job
from qml_mp.core.outcome import AttemptKind
from qml_mp.core.state import AwaitingRetry, Deleted, Enqueued, Failed
from qml_mp.events.facts import (
    AttemptFailed,
    ClaimFacts,
    ClaimLost,
    JobCancelled,
    JobFact,
    JobReleased,
    WorkerStopped,
)


def ended(
    claim: Claim,
    job: Job | None,
    *,
    attempts: int | None = None,
    crashes: int | None = None,
    dead_worker: WorkerStopped | None = None,
) -> JobFact | None:
    """How the claim ended whose row is `job` now, or that it was lost (`job` is None). None: with a success,
    or the row has gone on, and does not tell any more.

    `attempts` and `crashes` are the budgets, where they are known; `dead_worker` is given by a supervisor
    that ends the claim in its name.
    """
    facts = ClaimFacts.of(claim)
    if job is None:
        return ClaimLost(claim=facts, dead_worker=dead_worker)
    crashed = job.crashes > claim.job.crashes
    runs_in: timedelta | None = None
    match job.state:
        case Deleted(reason=reason):
            return JobCancelled(claim=facts, reason=reason)
        case Enqueued() if not crashed:
            return JobReleased(claim=facts)
        case Enqueued():
            runs_in = timedelta()
        case AwaitingRetry(scheduled_at=at, retry_at=due):
            runs_in = due - at
        case Failed():
            pass
        case _:
            return None
    is_timeout = job.last_error is not None and job.last_error.type == "JobTimeout"
    kind = AttemptKind.TIMEOUT if is_timeout else AttemptKind.FAILURE
    return AttemptFailed(
        claim=facts,
        kind=AttemptKind.CRASH if crashed else kind,
        count=job.crashes if crashed else job.failures,
        budget=crashes if crashed else attempts,
        error=job.last_error,
        runs_in=runs_in,
    )
