"""Client: the whole system as it is at a moment."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from qml_mp.errors import StorageUnavailable, StorageUnreachable
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


def look(storage: Storage, *, most: int | None = None) -> Snapshot:
    """At the whole system. All jobs are counted where the storage has time for it, and where it has not, or
    with `most`, up to a number."""
    servers = view_servers(storage)
    return counted(lambda among: _look(storage, servers, most=among), most=most)


def counted(count: Callable[[int | None], _T], *, most: int | None) -> _T:
    """What this counts among so many; without `most` among all (None), where the storage has time for it."""
    if most is None:
        try:
            return count(None)
        except StorageUnreachable:
            raise
        except StorageUnavailable:
            most = MOST_COUNTED
    return count(most)


def _look(storage: Storage, servers: Sequence[ServerView], *, most: int | None) -> Snapshot:
    return Snapshot(
        counts={str(state): count for state, count in storage.job_counts(among=most).items()},
        queues=view_queues(storage, servers, among=most),
        servers=servers,
        methods=storage.method_stats(among=most),
        most=most,
        most_of_queue=most,
    )
