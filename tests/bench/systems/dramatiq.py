"""Benchmark: Dramatiq on Redis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from tests.bench.place import Place
from tests.bench.system import Backend, Command, Producer, System, console_script
from tests.bench.work import Work, perform


@dataclass(frozen=True, slots=True, kw_only=True)
class Dramatiq(System):
    """`dramatiq`."""

    package: ClassVar[str | None] = "dramatiq"

    def workers(self, place: Place) -> Sequence[Command]:
        return (console_script("dramatiq", __name__, "--processes", str(place.workers), "--threads", "1"),)


SYSTEMS = (
    Dramatiq(
        name="dramatiq",
        backend=Backend.REDIS,
        settings="one thread a process",
        durability="none: Redis with its defaults",
        usual_jobs_per_s=1000,
    ),
)


class DramatiqProducer(Producer):
    """`send`; there is no call for many."""

    def bulk(self, works: Sequence[Work]) -> None:
        for work in works:
            actor.send(**work.arguments())

    def single(self, work: Work) -> None:
        actor.send(**work.arguments())


def producer() -> Producer:
    return DramatiqProducer()


if Place.is_known():
    import dramatiq
    from dramatiq.brokers.redis import RedisBroker

    dramatiq.set_broker(RedisBroker(url=Place.current().url))
    actor: Any = dramatiq.actor(actor_name="perform")(perform)
