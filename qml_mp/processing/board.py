"""Worker: what running jobs say that is written with their outcome: how far they have come, and what follows.

One board for all jobs of a process, by claim, so that a job which says nothing costs nothing.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Protocol

from qml_mp.core.job import PARENT_ID, ClaimKey, Job
from qml_mp.core.new_job import with_changes
from qml_mp.core.outcome import Extras, Failure, Outcome, Retry, Success
from qml_mp.core.progress import Progress
from qml_mp.errors import InvalidJob, shown
from qml_mp.processing.tracing import Tracing
from qml_mp.storage.storable import new_row

MOST_FOLLOW_UPS = 1000
MOST_TEXT_CHARS = 8 * 1024 * 1024


class ShownProgress(Protocol):
    """Where a job's progress is shown while it runs."""

    newest_job: Job | None
    """The one that has said something last; None: none has, as in most processes."""

    def show(self, job: Job, done: float, total: float | None, note: str) -> None:
        """This job has come so far; called in tight loops."""

    def newest_of(self, job: Job) -> Progress | None:
        """What this job has said last; None: nothing."""


class UnseenProgress:
    """For a context that was made by hand: nobody looks."""

    newest_job: Job | None = None

    def show(self, job: Job, done: float, total: float | None, note: str) -> None:
        """Is seen nowhere."""

    def newest_of(self, job: Job) -> Progress | None:  # noqa: ARG002
        """Nothing."""
        return None


class Board:
    """Written by the jobs' code, and read when an attempt has ended."""

    def __init__(self, progress: ShownProgress | None = None, *, tracing: Tracing | None = None) -> None:
        self.progress: ShownProgress = UnseenProgress() if progress is None else progress
        self.follow_ups: dict[ClaimKey, FollowUps] = {}
        self._tracing = tracing
        self._pid = os.getpid()

    def follow(self, job: Job, jobs: tuple[Job, ...]) -> None:
        """Have these enqueued with the success of the job. As `FollowUps.add`; and `InvalidJob` in a process
        that the job has forked, whose memory nobody reads."""
        if os.getpid() != self._pid:
            raise InvalidJob(
                "ctx.then was called in a process that the job has forked; call it in the job's."
            )
        follow_ups = self.follow_ups.setdefault(job.claim_key, FollowUps())
        if self._tracing is None or not jobs:
            follow_ups.add(jobs, parent=job)
            return
        with self._tracing.sending(jobs, is_batch=len(jobs) > 1, parent=job) as sending:
            follow_ups.add(tuple(sending.jobs), parent=job)

    def begin_code(self, job: Job) -> frozenset[str]:
        """The job's own code begins, maybe again, as middleware may call it several times: what it has said
        before follows no more, unlike what middleware has. What does, for `end_code`."""
        follow_ups = self.follow_ups.get(job.claim_key)
        return frozenset() if follow_ups is None else follow_ups.begin_code()

    def end_code(self, job: Job, before: frozenset[str]) -> None:
        """It has ended, before which those followed."""
        follow_ups = self.follow_ups.get(job.claim_key)
        if follow_ups is not None:
            follow_ups.end_code(before)

    def take(self, job: Job) -> Extras | None:
        """What the attempt has said that has ended; None: nothing."""
        follow_ups = self.follow_ups.pop(job.claim_key, None)
        jobs = () if follow_ups is None else follow_ups.jobs()
        progress = self.progress.newest_of(job)
        return Extras(follow_ups=jobs, progress=progress) if jobs or progress is not None else None


def with_extras(outcome: Outcome, extras: Extras | None) -> Outcome:
    """The outcome, with what the job wants to be written with it."""
    if extras is not None and isinstance(outcome, Success):
        return replace(outcome, extras=extras)
    if extras is not None and isinstance(outcome, Retry | Failure) and extras.progress is not None:
        return replace(outcome, extras=replace(extras, follow_ups=()))
    return outcome


class FollowUps:
    """The jobs that one attempt wants to be enqueued with its success."""

    def __init__(self) -> None:
        self._jobs: dict[str, Job] = {}
        self._chars: dict[str, int] = {}
        """Of their texts, by id as the jobs."""
        self._of_code: frozenset[str] = frozenset()
        """Those that the job's own code has said when it ran last."""

    def begin_code(self) -> frozenset[str]:
        """As `Board.begin_code`."""
        for job_id in self._of_code:
            del self._jobs[job_id], self._chars[job_id]
        self._of_code = frozenset()
        return frozenset(self._jobs)

    def end_code(self, before: frozenset[str]) -> None:
        """As `Board.end_code`."""
        self._of_code = frozenset(self._jobs) - before

    def add(self, jobs: tuple[Job, ...], *, parent: Job) -> None:
        """Have them enqueued as well. Raises `InvalidJob` for what cannot be, and adds none of them then."""
        given, chars = dict[str, Job](), dict[str, int]()
        for job in jobs:
            if not isinstance(job, Job):
                raise InvalidJob(f"ctx.then takes jobs, as other.job(...) makes them; this is {shown(job)}.")
            if job.id in given:
                raise InvalidJob(
                    f"ctx.then got the job {job.id} twice; make each by a call of its own, as other.job(...)."
                )
            child = with_changes(job, metadata={**job.metadata, PARENT_ID: parent.id})
            row = new_row(child)  # refused here, where the job can tell of it, and not with its outcome
            given[job.id], chars[job.id] = child, len(row.payload) + len(row.metadata)
        together, all_chars = {**self._jobs, **given}, {**self._chars, **chars}
        if len(together) > MOST_FOLLOW_UPS or sum(all_chars.values()) > MOST_TEXT_CHARS:
            raise InvalidJob(
                f"A job can have {MOST_FOLLOW_UPS} follow-up jobs with {MOST_TEXT_CHARS:,} characters of "
                "payloads and metadata; enqueue more with one follow-up job that does."
            )
        self._jobs, self._chars = together, all_chars

    def jobs(self) -> tuple[Job, ...]:
        """All of them, in order."""
        return tuple(self._jobs.values())
