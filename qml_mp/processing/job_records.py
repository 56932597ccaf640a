"""Worker: a log record that is made inside a job says which job that is."""

from __future__ import annotations

import logging
from contextvars import ContextVar

from qml_mp.core.job import Claim, Job
from qml_mp.events.facts import ClaimFacts

_running: ContextVar[Job | None] = ContextVar("qml_mp_running_job", default=None)
"""Written by the processor before and after the job's code, read where a record is handled. A task of the
job's event loop has it too, and a thread that is given the job's context."""


def note_running(job: Job | None) -> None:
    """From now on this job's code runs; None: no job's."""
    _running.set(job)


def about(claim: Claim) -> dict[str, object]:
    """What a record of ours that is about this claim's attempt carries."""
    return ClaimFacts.of(claim).in_record()


class JobRecords(logging.Filter):
    """Lets every record pass. One made inside a job gets its `job_id`, `method` and `attempt` (counted
    from 1, crashes too), unless it says itself of which job it is. A `method` or `attempt` of its own stays.

    A worker adds it to the handlers of the root logger. Add it to those of other loggers yourself."""

    def filter(self, record: logging.LogRecord) -> bool:
        job = _running.get()
        if job is not None and not hasattr(record, "job_id"):
            given = vars(record)
            given["job_id"] = job.id
            given.setdefault("method", job.method)
            given.setdefault("attempt", job.attempt)
        return True


def mark_records() -> None:
    """Add the filter to the handlers of the root logger; harmless where it was added."""
    for handler in logging.getLogger().handlers:
        if not any(isinstance(each, JobRecords) for each in handler.filters):
            handler.addFilter(JobRecords())
