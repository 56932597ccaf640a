"""Worker: what a job may know about its own run, and what it may return."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal, NoReturn

from qml_mp.core.job import Job
from qml_mp.core.outcome import ErrorInfo
from qml_mp.core.payload import JsonValue
from qml_mp.core.progress import MOST
from qml_mp.errors import ConfigurationError, shown
from qml_mp.field_docs import with_fields_in_doc
from qml_mp.frozen import maker
from qml_mp.processing.board import Board
from qml_mp.processing.cancel import CancelToken
from qml_mp.processing.retry import is_a


@with_fields_in_doc
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
    board: Board = field(default_factory=Board, repr=False, compare=False)
    """Where `progress` and `then` say it."""

    def progress(self, done: float, total: float | None = None, note: str = "") -> None:
        """Say how far the job has come: so much of so much (None: nobody knows), and where it is.

        It is a few stores in memory, about a microsecond, so call it as often as you like, in a tight loop
        too. Within a second `workers list`, `jobs show` and `handle.progress` have it. It is kept when the
        attempt has ended; the next one begins without. Of a note the first 300 bytes are kept.

        Raises `ConfigurationError` for what is no number from 0 to 2**53, or no text.
        """
        try:
            if 0 <= done <= MOST and (total is None or 0 <= total <= MOST):
                self.board.progress.show(self.job, done, total, note)
                return
        except (TypeError, ValueError, AttributeError, struct.error):
            pass  # not numbers, or no text
        raise ConfigurationError(
            f"ctx.progress was given done={shown(done)}, total={shown(total)}, note={shown(note)}; done and "
            "total are numbers from 0 to 2**53 (total may be None), and note is text."
        )

    def then(self, *jobs: Job) -> None:
        """Enqueue these jobs with the success of this one: in the same commit, or not at all.

        `ctx.then(other.job("a.png"))`; several calls add up, in any threads that the job waits for, and a job
        that an earlier call has named follows once. When the attempt fails, is cancelled or runs
        again, nothing is enqueued; neither is anything once the claim is lost to somebody else. A `delay` is
        counted from the making of the job. Where a unique key has a job already, that one is kept. The
        metadata of each names this job as its `parent_id`.

        Raises `InvalidJob` at once for what cannot be enqueued, for a job that one call names twice, for more
        than 1000 jobs or 8 MiB in all, in a process that the job has forked, and once the attempt has ended,
        in a thread that the job has left behind.
        Should storage refuse a job all the same, this one ends failed, with an error that says so, and none
        is enqueued.
        """
        self.board.follow(self.job, jobs)

    @staticmethod
    def of(
        job: Job, *, started_at: datetime, cancel: CancelToken, board: Board | None = None
    ) -> WorkerContext:
        """The context of the attempt that begins with this row."""
        return _new_context(
            job=job,
            attempt=job.attempt,
            previous_exception=job.last_error,
            started_at=started_at,
            cancel=cancel,
            board=Board() if board is None else board,
        )


_new_context = maker(WorkerContext)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerResult:
    """Built with `success`, `retry` or `failure`. Returning a plain value means `success(value)`."""

    kind: Literal["succeeded", "retry", "failed"]
    result: object = None
    metadata: Mapping[str, JsonValue] = field(default_factory=dict)
    error: str | BaseException | None = None
    retry_at: datetime | None = None

    @classmethod
    def success(cls, result: object = None, metadata: Mapping[str, JsonValue] | None = None) -> WorkerResult:
        """The job is done. `metadata` is for the middleware; it is not stored."""
        return cls(kind="succeeded", result=result, metadata=dict(metadata or {}))

    @classmethod
    def retry(cls, error: str | BaseException, retry_at: datetime | None = None) -> WorkerResult:
        """The attempt failed and wants another, at `retry_at` (aware) or when the policy says.

        The attempts that the policy or the job allows bound it; the policy's lists do not apply.
        """
        return cls(kind="retry", error=error, retry_at=retry_at)

    @classmethod
    def failure(cls, error: str | BaseException) -> WorkerResult:
        """The job can never succeed; it ends Failed whatever the policy says."""
        return cls(kind="failed", error=error)


def checked(said: WorkerResult) -> WorkerResult:
    """What the job returned, `retry_at` plain and in UTC; its `result` is read elsewhere.

    Raises `TypeError`, or whatever an instant of the job's own class raises: call it as user code.
    """
    if said.kind not in ("succeeded", "retry", "failed"):
        _reject("kind", said.kind, '"succeeded", "retry" or "failed"')
    if said.error is not None and not is_a(said.error, (str, BaseException)):
        _reject("error", said.error, "text or an exception")
    if said.retry_at is None:
        return said
    if not is_a(said.retry_at, datetime) or said.retry_at.utcoffset() is None:
        _reject("retry_at", said.retry_at, "an aware datetime")
    return WorkerResult(kind=said.kind, error=said.error, retry_at=_plain_utc(said.retry_at))


def _plain_utc(at: datetime) -> datetime:
    """The instant without a class or a time zone of the job's own, whose code would run unguarded."""
    try:
        utc = at.astimezone(UTC)
    except OverflowError:  # it is within a day of an end of the calendar, where its own time is as good
        utc = at
    return datetime(utc.year, utc.month, utc.day, utc.hour, utc.minute, utc.second, utc.microsecond, UTC)


def _reject(name: str, value: object, wanted: str) -> NoReturn:
    raise TypeError(f"WorkerResult.{name} is a {type(value).__name__}; it must be {wanted}.")
