"""Worker: how a running job learns that it should end."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from enum import StrEnum

from qml_mp.errors import JobInterrupted, JobTimeout


class CancelReason(StrEnum):
    """Why a job is asked to end."""

    CANCELLED = "cancelled"
    """Somebody cancelled this job; it ends Deleted."""
    TIMEOUT = "timeout"
    """The attempt has used up its time limit; the retry policy decides."""
    SHUTDOWN = "shutdown"
    """The server stops; a job that does not finish in time runs again, uncharged."""
    MEMORY = "memory"
    """Its worker exceeded the hard memory limit and is killed without being asked."""
    ORPHANED = "orphaned"
    """The supervisor is gone; the job runs again under another one, uncharged."""


UserCode = Callable[[], AbstractContextManager[None]]
"""`with user_code():` user code runs. Only there may a signal handler raise `JobInterrupted` or `JobTimeout`.
Entered several times for one job, never nested."""

Poll = Callable[[float | None], tuple[CancelReason, str] | None]
"""Looks for a request to end: reason and message, or None. The argument is how long to wait for
one in seconds: 0 only looks, None waits without a limit."""


class CancelToken:
    """What a job asks whether it should end: `ctx.cancel`.

    Each look at a token that is not cancelled yet costs one system call, so a tight loop may look
    every few milliseconds of work. Once cancelled, a token stays so, with its first reason. Any thread of the
    job may look and wait; `JobTimeout` and `JobInterrupted`, which end a job, are raised in the main one.
    When the attempt is over, its token stays as it was then, and who waits for it without a limit returns.
    """

    __slots__ = ("_poll", "_request")

    def __init__(self, poll: Poll) -> None:
        self._poll = poll
        self._request: tuple[CancelReason, str] | None = None

    @classmethod
    def never(cls) -> CancelToken:
        """A token that nobody cancels, for calling a job function by hand and for tests."""
        return cls(_wait_in_vain)

    @property
    def is_cancelled(self) -> bool:
        """Whether the job should end now."""
        return self.wait(0)

    @property
    def reason(self) -> CancelReason | None:
        """Why the job should end; None while it should go on."""
        self.wait(0)
        return None if self._request is None else self._request[0]

    @property
    def message(self) -> str | None:
        """The reason in words; None while the job should go on."""
        self.wait(0)
        return None if self._request is None else self._request[1]

    def raise_if_cancelled(self) -> None:
        """Raise `JobTimeout` or `JobInterrupted` when the job should end; let it pass."""
        if self.wait(0) and self._request is not None:
            reason, message = self._request
            raise (JobTimeout if reason is CancelReason.TIMEOUT else JobInterrupted)(message)

    def wait(self, timeout: float | None) -> bool:
        """Sleep up to `timeout` seconds (None: without a limit); True as soon as the job should end."""
        if self._request is None:
            self._request = self._poll(timeout)
        return self._request is not None


def _wait_in_vain(timeout_s: float | None) -> None:
    if timeout_s != 0:
        threading.Event().wait(timeout_s)
