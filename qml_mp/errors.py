"""Anywhere: every error that qml-mp raises, with what it means to the caller.

All derive from `QmlError`, except the two that are raised *inside* a running job: those derive
from `BaseException`, so that an `except Exception` in user code does not swallow a time limit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

_MAX_SHOWN_CHARS = 200


def shown(value: object) -> str:
    """`repr(value)` as an error's text can hold it: bounded, and of any value at all (an integer of 5,000
    digits has no repr, and a class of the user's may raise in its own). A duration in seconds: who has
    written "0" or "90s" knows no `timedelta`."""
    if isinstance(value, timedelta):
        return f"{value.total_seconds():.15g}s"
    try:
        text = repr(value)
    except Exception:
        return f"a value of type {type(value).__name__} that cannot be shown"
    return text if len(text) <= _MAX_SHOWN_CHARS else f"{text[:_MAX_SHOWN_CHARS]}…"


def shown_type(value: object) -> str:
    """The type of a value with its module, as code names it: several libraries have a `Connection`."""
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


class QmlError(Exception):
    """Base of all errors of qml-mp. The text says what, where and what to do next. Pickles and copies keep
    it with its attributes, so that it can leave a process pool."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _made_again, (type(self), self.args), vars(self)


def _made_again(kind: type[QmlError], args: tuple[Any, ...]) -> QmlError:
    """Without its `__init__`, which may want more than `args`."""
    error = kind.__new__(kind, *args)
    error.args = args
    return error


class ConfigurationError(QmlError):
    """A setting, argument or definition is wrong; nothing was started or written.

    `field` is the name of the setting or option, as code writes it; None where there is none.
    """

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class ServerAlreadyRunning(ConfigurationError):
    """`start()` or `run()` on a server that is running."""


class AppImportError(QmlError):
    """The user's app (`module:attribute`) cannot be imported, or is not a `QmlApp`."""


class WorkerBootError(QmlError):
    """No worker could boot, so the server stopped. The text holds the worker's own error."""


class InvalidJob(QmlError, ValueError):
    """A job that cannot be stored or run as given: payload, name, delay. Nothing was written."""

    field: str | None = None
    """The option that is wrong, where it is one."""


@contextlib.contextmanager
def about_field(field: str) -> Iterator[None]:
    """A `ConfigurationError` or `InvalidJob` from within carries this field."""
    try:
        yield
    except (ConfigurationError, InvalidJob) as error:
        error.field = field
        raise


class UnknownMethod(InvalidJob):
    """No function or worker is registered for the method name."""


class JobNotFound(QmlError, LookupError):
    """No job has this id (it may have been deleted after its time to live)."""


class RecurringNotFound(QmlError, LookupError):
    """No recurring template has this id."""


class InvalidTransition(QmlError):
    """The job's present state does not allow the change; the job is as it was."""


class JobFailed(QmlError):
    """An awaited job ended `failed` or `deleted`. `job_id` and `state` say which and how."""

    def __init__(self, message: str, *, job_id: str, state: str) -> None:
        super().__init__(message)
        self.job_id = job_id
        self.state = state


class ResultNotStored(QmlError):
    """The job succeeded, and what it returned could not be stored: no JSON, or too large. It is not lost
    for want of a second try: running the job again gives the same. `reason` says why."""

    def __init__(self, message: str, *, job_id: str, reason: str) -> None:
        super().__init__(message)
        self.job_id = job_id
        self.reason = reason


class ResultMismatch(QmlError):
    """The job succeeded, and what is stored of its result does not fit the function's return annotation:
    the code has changed since, or the function returned something else; or the job is not of the function
    whose handle it is, as one of another method had the unique key. `value` is the JSON as stored."""

    def __init__(self, message: str, *, job_id: str, value: object) -> None:
        super().__init__(message)
        self.job_id = job_id
        self.value = value


class WaitTimeout(QmlError, TimeoutError):
    """The time to wait for jobs was over before they ended. They go on."""


class LockNotAcquired(QmlError, TimeoutError):
    """Another process held the named lock for as long as was waited."""


class LockLost(QmlError):
    """A named lock was not held any more: its time to live had passed, by the storage's clock. Another may
    have it, or have had it meanwhile."""


class StorageError(QmlError):
    """The storage refused or failed an operation; nothing of that operation was written."""


class StorageUnavailable(StorageError):
    """The storage cannot be reached or used now: no server, locked, full or read-only.

    Retrying later can help. For a commit whose reply was lost this is raised too: the write may
    have landed, which is why every guarded write can be repeated harmlessly.
    """

    took_too_long: bool = False
    """Whether it reached the storage, and had more to do than a statement has time for."""


class StorageUnreachable(StorageUnavailable):
    """The storage as a whole cannot be reached: no connection, a lost one, no reply, no file.

    Whatever else is tried now would fail in the same way; a lock or a missing right, which concern
    one operation, are not told so.
    """


class OutcomeRefused(StorageError):
    """The storage refuses what came of a job: a value that it cannot hold, a constraint. Another outcome
    of the same job may be written; the same one never will. `job_id` and `claim_seq` say of which claim."""

    def __init__(self, message: str, *, job_id: str, claim_seq: int) -> None:
        super().__init__(message)
        self.job_id = job_id
        self.claim_seq = claim_seq


class SchemaMismatch(StorageError):
    """The schema in the storage is newer or older than this code; nothing was written."""


class JobInterrupted(BaseException):
    """Raised inside a running job when it is cancelled or the worker must leave. Let it pass."""


class JobTimeout(JobInterrupted):
    """Raised inside a running job that has used up its time limit. Let it pass."""
