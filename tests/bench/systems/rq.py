"""Benchmark: RQ on Redis, which forks for every job."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from tests.bench.place import Place
from tests.bench.system import Backend, Command, Producer, System, console_script
from tests.bench.work import Work, perform


@dataclass(frozen=True, slots=True, kw_only=True)
class Rq(System):
    """`rq worker-pool`."""

    package: ClassVar[str | None] = "rq"

    def workers(self, place: Place) -> Sequence[Command]:
        options = ("--url", place.url, "--num-workers", str(place.workers), "--logging-level", "WARNING")
        return (console_script("rq", "worker-pool", "default", *options),)


SYSTEMS = (
    Rq(
        name="rq",
        backend=Backend.REDIS,
        settings="worker-pool, a fork for every job, log off",
        durability="none: Redis with its defaults",
        usual_jobs_per_s=100,
    ),
)


class RqProducer(Producer):
    """`Queue.enqueue_many` and `Queue.enqueue`."""

    def __init__(self, url: str) -> None:
        from redis import Redis
        from rq import Queue

        self._queue = Queue(connection=Redis.from_url(url))

    def bulk(self, works: Sequence[Work]) -> None:
        self._queue.enqueue_many([self._queue.prepare_data(perform, kwargs=w.arguments()) for w in works])

    def single(self, work: Work) -> None:
        self._queue.enqueue(perform, kwargs=work.arguments())


def producer() -> Producer:
    return RqProducer(Place.current().url)
