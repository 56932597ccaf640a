"""Tests: what a storage has to do, as a model in plain Python. Knows no SQL; time is a number of hours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import assert_never

from qml_mp.core.outcome import (
    AttemptKind,
    Cancelled,
    Crash,
    Failure,
    Outcome,
    Release,
    Retry,
    Success,
)
from qml_mp.core.state import StateName

SUCCEEDED_TTL_H = 10.0
FAILED_TTL_H = 20.0


@dataclass(kw_only=True)
class ModelJob:
    """One row."""

    id: str
    queue: str
    priority: int
    created_at: datetime
    unique_key: str | None
    state: StateName
    due_h: float | None = None
    claim_seq: int = 0
    failures: int = 0
    crashes: int = 0
    worker: str | None = None
    server: str | None = None
    started_h: float = 0.0
    cancel_asked: bool = False
    expires_h: float | None = None
    attempts: dict[int, AttemptKind] = field(default_factory=dict)
    succeeded_by: int | None = None
    """The claim whose success was written."""

    def end(self, state: StateName, *, now_h: float) -> None:
        self.state = state
        self.due_h = None
        ttl_h = FAILED_TTL_H if state is StateName.FAILED else SUCCEEDED_TTL_H
        self.expires_h = now_h + ttl_h


@dataclass(kw_only=True)
class Tally:
    """How claims began and ended."""

    claims: int = 0
    succeeded: int = 0
    failures: int = 0
    crashes: int = 0
    cancelled: int = 0
    releases: int = 0


@dataclass(kw_only=True)
class Model:
    """All rows, and the hour."""

    now_h: float = 0.0
    jobs: dict[str, ModelJob] = field(default_factory=dict)
    beats_h: dict[str, float] = field(default_factory=dict)
    """Registered servers, and when each last said that it lives."""
    workers: dict[str, str] = field(default_factory=dict)
    """Registered workers, and the server of each."""
    epochs: dict[str, int] = field(default_factory=dict)
    """Of every worker that ever was: what it sent under a lower one claims nothing."""
    tally: Tally = field(default_factory=Tally)

    def enqueue(self, job: ModelJob, *, delay_h: float | None) -> str:
        holder = self.holder(job.unique_key)
        if job.id in self.jobs:
            return job.id
        if holder is not None:
            return holder.id
        if delay_h is not None:
            job.state, job.due_h = StateName.SCHEDULED, self.now_h + delay_h
        self.jobs[job.id] = job
        return job.id

    def holder(self, key: str | None) -> ModelJob | None:
        """The job that has not ended and carries the key."""
        with_key = (job for job in self.jobs.values() if key is not None and job.unique_key == key)
        return next((job for job in with_key if not job.state.is_final), None)

    def best(self, queues: tuple[str, ...]) -> list[ModelJob]:
        """The jobs in the order in which claims hand them out."""
        runnable = [job for job in self.in_state(StateName.ENQUEUED) if not queues or job.queue in queues]
        return sorted(runnable, key=lambda job: (-job.priority, job.created_at, job.id))

    def claim(
        self, worker: str, server: str, queues: tuple[str, ...], epoch: int, limit: int
    ) -> list[ModelJob]:
        may_claim = worker in self.workers and self.epochs[worker] == epoch
        jobs = self.best(queues)[:limit] if may_claim else []
        for job in jobs:
            job.state, job.worker, job.server = StateName.PROCESSING, worker, server
            job.claim_seq += 1
            job.started_h = self.now_h
        self.tally.claims += len(jobs)
        return jobs

    def renew(self, worker: str) -> int | None:
        """The next epoch of a registered worker."""
        if worker not in self.workers:
            return None
        self.epochs[worker] += 1
        return self.epochs[worker]

    def finish(self, job_id: str, claim_seq: int, outcome: Outcome) -> bool:
        """Whether the outcome is (or had been) written by this very claim."""
        job = self.jobs.get(job_id)
        if job is None or job.claim_seq != claim_seq:
            return False
        if job.state is not StateName.PROCESSING:
            return _was_written(job, outcome)
        if job.cancel_asked and isinstance(outcome, Retry | Crash | Release):
            outcome = Cancelled(reason="asked for")
        job.worker = job.server = None
        job.cancel_asked = False
        self._write(job, outcome)
        return True

    def promote(self, job: ModelJob) -> None:
        job.state, job.due_h = StateName.ENQUEUED, None

    def due(self) -> list[ModelJob]:
        return [job for job in self.jobs.values() if job.due_h is not None and job.due_h <= self.now_h]

    def promote_all(self) -> int:
        due = self.due()
        for job in due:
            self.promote(job)
        return len(due)

    def delete(self, job: ModelJob) -> bool:
        """Whether it could be deleted."""
        if job.state in (StateName.PROCESSING, StateName.DELETED):
            return False
        job.end(StateName.DELETED, now_h=self.now_h)
        return True

    def retry(self, job: ModelJob) -> bool:
        """Whether it could be retried by hand."""
        if job.state is not StateName.FAILED or self.holder(job.unique_key) is not None:
            return False
        job.state, job.failures, job.crashes, job.expires_h = StateName.ENQUEUED, 0, 0, None
        return True

    def release(self, which: Callable[[ModelJob], bool]) -> int:
        """Give back those claims; how many."""
        held = [job for job in self.in_state(StateName.PROCESSING) if which(job)]
        for job in held:
            self.finish(job.id, job.claim_seq, Release(reason="gone"))
        return len(held)

    def remove_server(self, server: str) -> None:
        """Of the registry, with its workers."""
        self.beats_h.pop(server, None)
        self.workers = {worker: owner for worker, owner in self.workers.items() if owner != server}

    def clean_up(self) -> int:
        expired = [
            job.id for job in self.jobs.values() if job.expires_h is not None and job.expires_h <= self.now_h
        ]
        for job_id in expired:
            del self.jobs[job_id]
        return len(expired)

    def in_state(self, *states: StateName) -> list[ModelJob]:
        return [job for job in self.jobs.values() if job.state in states]

    def held_by(self, worker: str) -> list[ModelJob]:
        return [job for job in self.in_state(StateName.PROCESSING) if job.worker == worker]

    def _write(self, job: ModelJob, outcome: Outcome) -> None:
        match outcome:
            case Success():
                job.end(StateName.SUCCEEDED, now_h=self.now_h)
                job.succeeded_by = job.claim_seq
                self.tally.succeeded += 1
            case Retry(delay=delay, kind=kind):
                job.state, job.due_h = StateName.AWAITING_RETRY, self.now_h + delay.total_seconds() / 3600
                job.failures += 1
                job.attempts[job.claim_seq] = kind
                self.tally.failures += 1
            case Failure(kind=kind):
                job.end(StateName.FAILED, now_h=self.now_h)
                job.failures += 1
                job.attempts[job.claim_seq] = kind
                self.tally.failures += 1
            case Cancelled():
                job.end(StateName.DELETED, now_h=self.now_h)
                job.attempts[job.claim_seq] = AttemptKind.CANCELLED
                self.tally.cancelled += 1
            case Release():
                job.state = StateName.ENQUEUED
                self.tally.releases += 1
            case Crash(rerun_after=rerun_after):
                job.crashes += 1
                job.attempts[job.claim_seq] = AttemptKind.CRASH
                self.tally.crashes += 1
                if rerun_after is None:
                    job.end(StateName.FAILED, now_h=self.now_h)
                elif rerun_after:
                    job.state = StateName.AWAITING_RETRY
                    job.due_h = self.now_h + rerun_after.total_seconds() / 3600
                else:
                    job.state = StateName.ENQUEUED
            case _:
                assert_never(outcome)


def _was_written(job: ModelJob, outcome: Outcome) -> bool:
    """Of a claim that ended before: whether it was this outcome that ended it.

    A cancel that was asked for makes Cancelled of some outcomes, and has been forgotten since.
    """
    kind = job.attempts.get(job.claim_seq)
    match outcome:
        case Success():
            return job.succeeded_by == job.claim_seq
        case Failure(kind=own):
            return kind is own
        case Retry(kind=own):
            return kind in (own, AttemptKind.CANCELLED)
        case Crash():
            return kind in (AttemptKind.CRASH, AttemptKind.CANCELLED)
        case Cancelled():
            return kind is AttemptKind.CANCELLED
        case Release():
            return job.succeeded_by != job.claim_seq and kind in (None, AttemptKind.CANCELLED)
        case _:
            assert_never(outcome)
