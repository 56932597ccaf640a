"""Worker: the jobs that a running job wants to be enqueued with its success."""

from __future__ import annotations

from dataclasses import replace

from qml_mp.core.job import Job
from qml_mp.errors import InvalidJob, shown
from qml_mp.storage.storable import new_row

MOST_FOLLOW_UPS = 1000
MOST_TEXT_CHARS = 8 * 1024 * 1024
PARENT_ID = "parent_id"


class FollowUps:
    """Of one attempt. Written by the job's code, read once when it has returned. Without a constructor,
    because every attempt makes one."""

    _jobs: dict[str, Job] | None = None
    """By id, in order; None: there are none, as in most attempts."""
    _text_chars = 0

    def add(self, jobs: tuple[Job, ...], *, parent: Job) -> None:
        """Have them enqueued as well. Raises `InvalidJob` for what cannot be, and adds none of them then."""
        given, chars = {}, self._text_chars
        for job in jobs:
            if not isinstance(job, Job):
                raise InvalidJob(f"ctx.then takes jobs, as other.job(...) makes them; this is {shown(job)}.")
            child = replace(job, metadata={**job.metadata, PARENT_ID: parent.id})
            row = new_row(child)  # refused here, where the job can tell of it, and not with its outcome
            chars += len(row.payload) + len(row.metadata)
            given[job.id] = child
        together = {**(self._jobs or {}), **given}
        if len(together) > MOST_FOLLOW_UPS or chars > MOST_TEXT_CHARS:
            raise InvalidJob(
                f"A job can have {MOST_FOLLOW_UPS} follow-up jobs with {MOST_TEXT_CHARS:,} characters of "
                "payloads and metadata; enqueue more with one follow-up job that does."
            )
        self._jobs, self._text_chars = together, chars

    def take(self) -> tuple[Job, ...]:
        """All of them."""
        return () if self._jobs is None else tuple(self._jobs.values())
