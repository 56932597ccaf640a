"""Client: an empty storage beside another one, for measurements, which leaves nothing behind."""

from __future__ import annotations

from typing import Protocol


class Scratch(Protocol):
    """Nobody else's, and only for as long as it is wanted.

    What a killed process has left of its own is removed by the next one that is made beside the same storage.
    It belongs to the process that made it: a lock that ends with that process says so.
    """

    @property
    def url(self) -> str:
        """What opens it."""

    @property
    def place(self) -> str:
        """What was made, for people: a schema's or a folder's name."""

    @property
    def caveats(self) -> tuple[str, ...]:
        """What the database is set to that makes a commit less than durable, in sentences."""

    def remove(self) -> None:
        """Remove it with all that is in it; harmless when it is gone. Nobody may use it any more.

        Raises `StorageError` when that fails.
        """
