"""Every process: waiting for a storage's reply, and for word of new work in it."""

from __future__ import annotations

from datetime import timedelta
from typing import Protocol

DEFAULT_PATIENCE = timedelta(seconds=5)
"""How long one operation waits for a lock of somebody else, unless its storage was opened for less."""


class StorageWait(Protocol):
    """Waits in the storage's stead, for a process that must do other things meanwhile.

    It must never use the storage itself: the operation that waits has not ended.
    """

    @property
    def give_up_at(self) -> float:
        """The monotonic instant from which on nothing is sent and no reply is waited for."""

    def wait(self, fd: int, *, reading: bool, writing: bool, until: float) -> tuple[bool, bool]:
        """Whether the descriptor can be read and written now; neither when the monotonic instant
        `until` has come first."""

    def pause(self, seconds: float) -> None:
        """Let so much time pass, at most a moment: somebody else's lock is about to be tried again."""


class Waker(Protocol):
    """Tells a supervisor that there may be new work. Holds no storage handle across a fork:
    the supervisor closes it before forking and opens another after."""

    def fileno(self) -> int:
        """Readable when something was committed."""

    def drain(self) -> bool:
        """Read everything there is, without waiting; whether there may be new work. Raises
        `StorageUnavailable` when the connection behind it is lost: close it, open another later."""

    def close(self) -> None:
        """Harmless when closed already."""
