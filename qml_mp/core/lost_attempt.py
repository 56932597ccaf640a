"""Anywhere: an attempt that its worker could not end, and which others have ended for it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from typing import Any

from qml_mp.core.job import Claim, ClaimKey
from qml_mp.core.outcome import ErrorInfo, ProcessFacts
from qml_mp.core.state import StateName

TRACEPARENT, TRACESTATE = "traceparent", "tracestate"
"""In the metadata of a job: the context of the span that it was enqueued in, as W3C writes it."""
MOST_LINK_CHARS = 512
"""Of each of the two."""
RELEASED = "released"
"""How an attempt ended whose claim was given back, charged to no budget."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LostAttempt:
    """As whoever ended it knew it, so that its span can be exported long after, by a process that was not
    there."""

    job_id: str
    claim_seq: int
    method: str
    queue: str
    attempt: int
    worker_id: str
    started_at: datetime
    """When the job was claimed: when its code began, nobody knows."""
    ended_at: datetime
    """When it was ended for the worker, soon after the death."""
    ended_as: str
    """An `AttemptKind`, or "released"."""
    state: StateName
    """What became of the job."""
    reason: str
    error: ErrorInfo | None
    """None: it was cancelled or released."""
    process: ProcessFacts = ProcessFacts()
    delay: timedelta | None = None
    """After which the job runs again."""
    metadata: dict[str, str] = field(default_factory=dict)
    """Of the job: what of it leads to the span of its enqueueing."""

    @property
    def key(self) -> ClaimKey:
        """The claim that it was."""
        return ClaimKey(job_id=self.job_id, claim_seq=self.claim_seq)


def facts_of_lost(
    claim: Claim,
    *,
    ended_as: str,
    state: StateName,
    reason: str,
    error: ErrorInfo | None,
    process: ProcessFacts,
    delay: timedelta | None,
) -> str:
    """What is kept of an attempt that ends now, as JSON; the instant of the end is the storage's to say."""
    job = claim.job
    return json.dumps(
        {
            "method": job.method,
            "queue": job.queue,
            "attempt": job.attempt,
            "worker_id": claim.worker_id,
            "started_at": (job.started_at or job.created_at).isoformat(),
            "ended_as": ended_as,
            "state": str(state),
            "reason": reason,
            "error": None if error is None else asdict(error),
            "process": asdict(process),
            "delay_s": None if delay is None else delay.total_seconds(),
            "metadata": {
                key: value for key in (TRACEPARENT, TRACESTATE) if _leads(value := job.metadata.get(key))
            },
        }
    )


def lost_attempt_of(facts: str, *, key: ClaimKey, ended_at: datetime) -> LostAttempt:
    """The way back."""
    given: dict[str, Any] = json.loads(facts)
    delay_s, error = given.pop("delay_s"), given.pop("error")
    return LostAttempt(
        **{
            **given,
            "started_at": datetime.fromisoformat(given["started_at"]),
            "state": StateName(given["state"]),
            "process": ProcessFacts(**given["process"]),
        },
        job_id=key.job_id,
        claim_seq=key.claim_seq,
        ended_at=ended_at,
        error=None if error is None else ErrorInfo(**error),
        delay=None if delay_s is None else timedelta(seconds=delay_s),
    )


def _leads(value: object) -> bool:
    return isinstance(value, str) and len(value) <= MOST_LINK_CHARS
