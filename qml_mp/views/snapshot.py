"""Client and web process: the whole system as it is at a moment."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from qml_mp.errors import StorageUnavailable
from qml_mp.storage.store import Storage
from qml_mp.storage.values import MethodStats
from qml_mp.views.queues import QueueView, view_queues
from qml_mp.views.servers import ServerView, view_servers

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What is there at a moment."""

    counts: Mapping[str, int]
    queues: Sequence[QueueView]
    servers: Sequence[ServerView]
    methods: Sequence[MethodStats]
    """That wait."""
    most: int | None = None
    """At most so many jobs were counted of each method of a queue; None: all."""
    most_of_queue: int | None = None
    """At most one more than so many jobs were counted of each queue, and of each state; None: all."""

    def has_more(self, queue: QueueView) -> bool:
        """Whether more jobs wait in this queue than were counted, perhaps."""
        return self.most_of_queue is not None and queue.stats.enqueued > self.most_of_queue


MOST_COUNTED: Final = 100_000
"""Of a storage that has more jobs than it counts in time."""
_ALL_AGAIN_S = 300.0
"""Such a try costs the storage, and those who look, all the seconds that a statement has."""


class Counting:
    """How far jobs are counted, look after look: all, and up to a number for some minutes after the storage
    had no time for all."""

    def __init__(self, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._all_at: float | None = None
        """When all are counted again; None: they are."""

    def counted(self, count: Callable[[int | None], _T]) -> _T:
        """What this counts among so many, or all (None). What else fails is raised: a lock that was waited
        for would be waited for once more."""
        if self._all_at is None or self._monotonic() >= self._all_at:
            try:
                return count(None)
            except StorageUnavailable as error:
                if not error.took_too_long:
                    raise
                self._all_at = self._monotonic() + _ALL_AGAIN_S
        return count(MOST_COUNTED)


def look(storage: Storage, counting: Counting) -> Snapshot:
    """At the whole system."""
    servers = view_servers(storage)
    return counting.counted(lambda among: _look(storage, servers, most=among))


def _look(storage: Storage, servers: Sequence[ServerView], *, most: int | None) -> Snapshot:
    return Snapshot(
        counts={str(state): count for state, count in storage.job_counts(among=most).items()},
        queues=view_queues(storage, servers, among=most),
        servers=servers,
        methods=storage.method_stats(among=most),
        most=most,
        most_of_queue=most,
    )
