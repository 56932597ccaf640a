"""Client: the whole system as it is at a moment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qml_mp.storage.store import Storage
from qml_mp.storage.values import MethodStats
from qml_mp.views.queues import QueueView, view_queues
from qml_mp.views.servers import ServerView, view_servers


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
    """At most one more than so many jobs were counted of each queue; None: all."""


def look(storage: Storage) -> Snapshot:
    """At the whole system."""
    servers = view_servers(storage)
    return Snapshot(
        counts={str(state): count for state, count in storage.job_counts().items()},
        queues=view_queues(storage, servers),
        servers=servers,
        methods=storage.method_stats(),
    )
