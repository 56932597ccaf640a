"""Client: where the handles of one storage wait for the ends of their jobs."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import TYPE_CHECKING

from qml_mp.storage.store import Storage
from qml_mp.watch import Watch

if TYPE_CHECKING:
    from qml_mp.awaiting import Awaiting


class JobEnds:
    """The storage, and how it is waited for."""

    def __init__(self, storage: Storage, *, polling: timedelta = timedelta(seconds=1)) -> None:
        """`polling`: the longest pause where no commit can be listened to."""
        self.storage = storage
        self._polling = polling
        self._awaiting: Awaiting | None = None

    def watch(self, job_ids: Iterable[str] = (), *, bell_fd: int | None = None) -> Watch:
        """Waits for these jobs."""
        watch = Watch(self.storage, polling=self._polling, bell_fd=bell_fd)
        watch.add(job_ids)
        return watch

    @property
    def awaiting(self) -> Awaiting:
        """The same for coroutines."""
        if self._awaiting is None:
            from qml_mp.awaiting import Awaiting  # not before there is a coroutine: it brings asyncio

            self._awaiting = Awaiting(self.watch)
        return self._awaiting
