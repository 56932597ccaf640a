"""Every process: who waits while the storage has not replied, and for how long."""

from __future__ import annotations

from typing import Protocol


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
