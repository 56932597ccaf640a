"""Worker: what a job may know about its own run."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from qml_mp.core.job import Job
from qml_mp.core.outcome import ErrorInfo
from qml_mp.processing.cancel import CancelToken


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerContext:
    """Given to `Worker.execute`, and to the parameter of a function that is annotated with it."""

    job: Job
    attempt: int
    """1 for the first; failures and crashes count, releases do not."""
    previous_exception: ErrorInfo | None
    """What ended the attempt before this one; None on the first."""
    started_at: datetime
    cancel: CancelToken

    @classmethod
    def of(cls, job: Job, *, started_at: datetime, cancel: CancelToken) -> WorkerContext:
        """The context of the attempt that begins with this row."""
        return cls(
            job=job,
            attempt=job.failures + job.crashes + 1,
            previous_exception=job.last_error,
            started_at=started_at,
            cancel=cancel,
        )
