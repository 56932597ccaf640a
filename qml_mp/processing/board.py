"""Worker: what running jobs say that is written with their outcome: how far they have come, and what follows.

One board for all jobs of a process, by claim, so that a job which says nothing costs nothing.
"""

from __future__ import annotations

import os
import threading
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
    """Written by the jobs' code, in any thread of it, and read when an attempt has ended."""

    def __init__(self, progress: ShownProgress | None = None, *, tracing: Tracing | None = None) -> None:
        self.progress: ShownProgress = UnseenProgress() if progress is None else progress
        self.follow_ups: dict[ClaimKey, FollowUps] = {}
        self._tracing = tracing
        self._pid = os.getpid()
        self._running = set[ClaimKey]()
        """Those whose attempt has begun and not ended."""
        self._is_told = False
        """Whether attempts begin and end here. With a context that was made by hand nobody tells."""
        self._lock = threading.RLock()
        """Held by who reads and writes `follow_ups`, and while an attempt ends that has said something. One
        that its holder may take again, since a signal handler of the job may say something while the job
        does. A forked process takes it never: there the thread that holds it may not exist."""

    def begin(self, key: ClaimKey) -> None:
        """An attempt begins; `take` ends it."""
        self._running.add(key)
        self._is_told = True

    def follow(self, job: Job, jobs: tuple[Job, ...]) -> None:
        """Have these enqueued with the success of the job. Raises `InvalidJob` for what cannot be, and has
        none of them enqueued then; and in a process that the job has forked, whose memory nobody reads, and
        in a thread that the job has left behind when its attempt has ended."""
        if self._is_copy():
            raise InvalidJob(
                "ctx.then was called in a process that the job has forked; call it in the job's."
            )
        if self._tracing is None or not jobs:
            self._add(_checked(jobs, parent=job), job)
            return
        with self._tracing.sending(jobs, is_batch=len(jobs) > 1, parent=job) as sending:
            self._add(_checked(tuple(sending.jobs), parent=job), job)

    def begin_code(self, job: Job) -> frozenset[str]:
        """The job's own code begins, maybe again, as middleware may call it several times: what it has said
        before follows no more, unlike what middleware has. What does, for `end_code`."""
        if self._is_copy():
            return frozenset()
        with self._lock:
            follow_ups = self.follow_ups.get(job.claim_key)
            return frozenset() if follow_ups is None else follow_ups.begin_code()

    def end_code(self, job: Job, before: frozenset[str]) -> None:
        """It has ended, before which those followed."""
        if self._is_copy():
            return
        with self._lock:
            follow_ups = self.follow_ups.get(job.claim_key)
            if follow_ups is not None:
                follow_ups.end_code(before)

    def take(self, job: Job, key: ClaimKey) -> Extras | None:
        """What the attempt has said that ends now; None: nothing."""
        self._running.discard(key)  # first: what `_add` enters from here on, it takes back itself
        jobs = self._end(key) if self.follow_ups and not self._is_copy() else ()
        progress = None if self.progress.newest_job is None else self.progress.newest_of(job)
        return Extras(follow_ups=jobs, progress=progress) if jobs or progress is not None else None

    def _add(self, given: _Said, job: Job) -> None:
        key = job.claim_key
        with self._lock:
            # Before the look at what runs: `take` waits for the lock only where it finds something.
            follow_ups = self.follow_ups.setdefault(key, FollowUps())
            if self._is_told and key not in self._running:
                if not follow_ups.jobs():
                    self.follow_ups.pop(key, None)  # a signal handler may have been here meanwhile
                raise InvalidJob(
                    "ctx.then was called after the attempt had ended; have the job wait for the thread that "
                    "calls it."
                )
            follow_ups.add(given)

    def _end(self, key: ClaimKey) -> tuple[Job, ...]:
        with self._lock:
            follow_ups = self.follow_ups.pop(key, None)
            return () if follow_ups is None else follow_ups.jobs()

    def _is_copy(self) -> bool:
        return os.getpid() != self._pid


def with_extras(outcome: Outcome, extras: Extras | None) -> Outcome:
    """The outcome, with what the job wants to be written with it."""
    if extras is not None and isinstance(outcome, Success):
        return replace(outcome, extras=extras)
    if extras is not None and isinstance(outcome, Retry | Failure) and extras.progress is not None:
        return replace(outcome, extras=replace(extras, follow_ups=()))
    return outcome


_Said = dict[str, tuple[Job, int]]
"""Jobs by id, each with the characters of its texts."""


class FollowUps:
    """The jobs that one attempt wants to be enqueued with its success."""

    def __init__(self) -> None:
        self._said: _Said = {}
        self._of_code: frozenset[str] = frozenset()
        """Those that the job's own code has said when it ran last."""

    def begin_code(self) -> frozenset[str]:
        """As `Board.begin_code`."""
        for job_id in self._of_code:
            self._said.pop(job_id, None)
        self._of_code = frozenset()
        return frozenset(self._said)

    def end_code(self, before: frozenset[str]) -> None:
        """As `Board.end_code`."""
        self._of_code = frozenset(self._said) - before

    def add(self, given: _Said) -> None:
        """Have them enqueued as well. Raises `InvalidJob` for too many, and adds none of them then."""
        together = {**self._said, **given}
        if len(together) > MOST_FOLLOW_UPS or sum(chars for _, chars in together.values()) > MOST_TEXT_CHARS:
            raise InvalidJob(
                f"A job can have {MOST_FOLLOW_UPS} follow-up jobs with {MOST_TEXT_CHARS:,} characters of "
                "payloads and metadata; enqueue more with one follow-up job that does."
            )
        self._said.update(given)

    def jobs(self) -> tuple[Job, ...]:
        """All of them, in order."""
        return tuple(job for job, _ in self._said.values())


def _checked(jobs: tuple[Job, ...], *, parent: Job) -> _Said:
    """What is to follow, naming its parent; `InvalidJob` for what cannot be enqueued."""
    given: _Said = {}
    for job in jobs:
        if not isinstance(job, Job):
            raise InvalidJob(f"ctx.then takes jobs, as other.job(...) makes them; this is {shown(job)}.")
        if job.id in given:
            raise InvalidJob(
                f"ctx.then got the job {job.id} twice; make each by a call of its own, as other.job(...)."
            )
        child = with_changes(job, metadata={**job.metadata, PARENT_ID: parent.id})
        row = new_row(child)  # refused here, where the job can tell of it, and not with its outcome
        given[job.id] = child, len(row.payload) + len(row.metadata)
    return given
