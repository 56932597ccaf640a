"""Client: what `top` shows, as it was at a moment, and how fast it changes between two."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from qml_mp.host import cpu_seconds, is_alive
from qml_mp.storage.store import Storage
from qml_mp.storage.values import FailureKind
from qml_mp.views.history import ended_in_a_minute
from qml_mp.views.servers import WorkerView
from qml_mp.views.snapshot import Counting, Snapshot, look

_MOST_KINDS = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A moment."""

    at: float
    """On the monotonic clock."""
    now: datetime
    """By the clock of the storage."""
    seen: Snapshot
    failures: Sequence[FailureKind]
    """The newest first."""
    most_of_kind: int | None
    """At most one more than so many were counted of each, and state; None: all."""
    cpu_s: Mapping[str, float]
    """By worker, what processes of this machine have used so far."""
    ended_per_minute: int | None
    """See `views.history.ended_in_a_minute`. Rows do not tell: as many are deleted as come."""

    @property
    def workers(self) -> list[tuple[str, WorkerView]]:
        """Each with the name of its server."""
        return [(server.info.name, worker) for server in self.seen.servers for worker in server.workers]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Between two samples. Empty when there was only one."""

    growth_per_s: Mapping[str, float]
    """By queue, of what waits there; negative: it shrinks. Without those that were not counted to the end,
    whose number says nothing of it."""
    cpu_percent: Mapping[str, float]
    """By worker, of one core."""


def take_sample(storage: Storage, counting: Counting, *, at: float) -> Sample:
    """Look at everything once."""
    seen = look(storage, counting)
    most_of_kind, kinds = counting.counted(
        lambda among: (among, storage.failure_kinds(limit=_MOST_KINDS, among=among, newest_first=True))
    )
    workers = [worker.info for server in seen.servers for worker in server.workers]
    used = {
        worker.id: cpu_seconds(worker.process.pid) for worker in workers if is_alive(worker.process) is True
    }
    return Sample(
        at=at,
        now=storage.now(),
        seen=seen,
        failures=kinds,
        most_of_kind=most_of_kind,
        cpu_s={worker_id: seconds for worker_id, seconds in used.items() if seconds is not None},
        ended_per_minute=ended_in_a_minute(storage),
    )


def rates_between(before: Sample | None, now: Sample) -> Rates:
    """What has changed, per second."""
    if before is None or now.at <= before.at:
        return Rates(growth_per_s={}, cpu_percent={})
    passed = now.at - before.at
    waited = {queue.stats.name: queue.stats.enqueued for queue in before.seen.queues}
    not_counted = {
        queue.stats.name for seen in (before.seen, now.seen) for queue in seen.queues if seen.has_more(queue)
    }
    return Rates(
        growth_per_s={
            queue.stats.name: (queue.stats.enqueued - waited.get(queue.stats.name, 0)) / passed
            for queue in now.seen.queues
            if queue.stats.name not in not_counted
        },
        cpu_percent={
            worker_id: max(0.0, 100 * (used - before.cpu_s[worker_id]) / passed)
            for worker_id, used in now.cpu_s.items()
            if worker_id in before.cpu_s
        },
    )
