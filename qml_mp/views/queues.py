"""Client and web process: queues with what waits in them, and what holds it back: paused, limits, rates."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from qml_mp.core.limits import Limit, LimitKind, Standing
from qml_mp.core.payload import JsonValue
from qml_mp.storage.store import Storage
from qml_mp.storage.values import QueueStats
from qml_mp.units import format_duration, in_seconds
from qml_mp.views.servers import ServerView, able_servers


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueView:
    """A queue with what holds it back."""

    stats: QueueStats
    limit: Limit
    servers: int
    """How many live servers take jobs of it."""

    def to_json(self) -> dict[str, JsonValue]:
        """An entry of `queues` in the JSON of `status`."""
        return {
            "name": self.stats.name,
            "enqueued": self.stats.enqueued,
            "processing": self.stats.processing,
            "held": self.stats.held,
            "oldest_s": in_seconds(self.stats.oldest),
            **({"oldest_of_some": True} if self.stats.is_oldest_of_some else {}),
            "servers": self.servers,
            **limit_to_json(self.limit),
        }


def view_queues(
    storage: Storage,
    servers: Sequence[ServerView] = (),
    *,
    among: int | None = None,
    also: Collection[str] = (),
) -> list[QueueView]:
    """Queues by name that hold jobs which have not ended, or that are limited, and `also` these, beside these
    servers. With `among` it is what `queue_stats` says of it."""
    able = able_servers(servers)
    limits = {each.limit.name: each.limit for each in storage.standings() if is_queue(each)}
    stats = {each.name: each for each in storage.queue_stats(among=among)}
    return [
        QueueView(
            stats=stats.get(name) or QueueStats(name=name, enqueued=0, processing=0, held=0, oldest=None),
            limit=limits.get(name) or Limit(kind=LimitKind.QUEUE, name=name),
            servers=sum(server.serves(name) for server in able),
        )
        for name in sorted({*stats, *limits, *also})
    ]


def served_queues(servers: Sequence[ServerView]) -> set[str]:
    """Those that live servers name; one that serves all queues names none."""
    return {name for server in able_servers(servers) for name in server.queues}


def up_to(count: int, most: int | None) -> str:
    """Of a count that went to one more than `most`: "12", "100000+"."""
    return str(count) if most is None or count <= most else f"{most}+"


def oldest_in_words(stats: QueueStats) -> str | None:
    """How long the oldest job waits: "12m", "12m+" where one that was not looked at may wait longer; None:
    there is none."""
    if stats.oldest is None:
        return None
    return f"{format_duration(stats.oldest)}{'+' if stats.is_oldest_of_some else ''}"


def is_queue(standing: Standing) -> bool:
    """Whether it is of a queue, and not of a method."""
    return standing.limit.kind is LimitKind.QUEUE


def limit_of(storage: Storage, queue: str) -> Limit:
    """What holds the queue back."""
    limits = (each.limit for each in storage.standings() if is_queue(each) and each.limit.name == queue)
    return next(limits, Limit(kind=LimitKind.QUEUE, name=queue))


def limit_to_json(limit: Limit) -> dict[str, JsonValue]:
    """What all JSON of a limit has."""
    return {
        "paused": limit.paused,
        "max_running": limit.max_running,
        "rate": None if limit.rate is None else str(limit.rate),
    }


def limit_in_words(limit: Limit) -> str | None:
    """None: there is none."""
    words = ["paused"] if limit.paused else []
    if limit.max_running is not None:
        words.append(f"{limit.max_running} running")
    if limit.rate is not None:
        words.append(str(limit.rate))
    return ", ".join(words) or None
