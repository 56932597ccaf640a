"""Worker: the fence around user code."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol


class UserCodeGuard(Protocol):
    """Says when user code runs.

    `JobInterrupted` and `JobTimeout` may be raised asynchronously (from a signal handler) between
    enter and exit of `user_code()`, and nowhere else. Entered several times for one job, never nested.
    """

    def user_code(self) -> AbstractContextManager[None]: ...
