"""Supervisor, pure: which workers wait to be replaced, and which new worker stands for which old one."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable


class Replacing:
    """A queue of worker ids, and the one replacement that is under way."""

    def __init__(self) -> None:
        self._waiting: deque[str] = deque()
        self._old: str | None = None
        self._new: str | None = None

    def ask_for_all(self, worker_ids: Iterable[str]) -> None:
        """Replace all of these, also those that came from a replacement a moment ago."""
        self._waiting = deque(worker_ids)

    def ask_for(self, worker_id: str) -> None:
        """Replace one; asking again changes nothing."""
        if worker_id not in self._waiting and worker_id != self._old:
            self._waiting.append(worker_id)

    def concerns(self, worker_id: str) -> bool:
        """Whether it waits to be replaced, or is the one that just is."""
        return worker_id in self._waiting or worker_id == self._old

    def next_of(self, present: Collection[str]) -> str | None:
        """The next one that is still there; None: nobody waits."""
        while self._waiting and self._waiting[0] not in present:
            self._waiting.popleft()
        return self._waiting[0] if self._waiting else None

    def begin(self, old: str, *, new: str | None) -> None:
        """The worker `new` was forked to take the place of `old`; None: `old` leaves first."""
        self._waiting.remove(old)
        self._old, self._new = old, new

    def predecessor_of(self, worker_id: str) -> str | None:
        """Whose place the worker is to take; None: a place that was free."""
        return self._old if worker_id == self._new else None

    def give_up(self) -> None:
        """The replacement could not boot: those that wait stay."""
        self._waiting.clear()
        self._old = self._new = None
