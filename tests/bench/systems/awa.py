"""Benchmark: awa, a queue whose core is written in Rust, with Python handlers."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from tests.bench.place import Place
from tests.bench.system import Backend, Command, Producer, System
from tests.bench.work import Work, perform

_QUEUE = "default"
_MAX_WORKERS = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Awa(System):
    """A program with an `AsyncClient`, one process for each worker, since handlers share an interpreter."""

    package: ClassVar[str | None] = "awa-pg"

    def install(self, place: Place) -> Sequence[Command]:
        return (self.program("install"),)

    def workers(self, place: Place) -> Sequence[Command]:
        return (self.program("work"),) * place.workers


SYSTEMS = (
    Awa(
        name="awa",
        backend=Backend.POSTGRES,
        settings=f"max_workers={_MAX_WORKERS} (its default) a process, async handler",
        durability="fsync, synchronous_commit=on",
        usual_jobs_per_s=2000,
    ),
)


def install() -> None:
    """Make the tables, and start a worker once: the first one switches a fresh database to queue storage."""
    asyncio.run(_install())


async def _install() -> None:
    from awa import AsyncClient

    client = AsyncClient(Place.current().url)
    await client.migrate()
    await _start(client)
    await client.shutdown()


def work() -> None:
    """Run jobs until SIGTERM."""
    asyncio.run(_work())


async def _work() -> None:
    from awa import AsyncClient

    client = AsyncClient(Place.current().url)
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    await _start(client)
    await stopped.wait()
    await client.shutdown()


async def _start(client: Any) -> None:
    async def handle(job: Any) -> None:
        perform(job.args.seq, job.args.ms, job.args.how)

    client.task(Work, queue=_QUEUE)(handle)
    await client.start([(_QUEUE, _MAX_WORKERS)])


class AwaProducer(Producer):
    """`enqueue_many_copy` and `insert`."""

    def __init__(self, url: str) -> None:
        from awa import AsyncClient

        self._runner = asyncio.Runner()
        self._client = AsyncClient(url)

    def bulk(self, works: Sequence[Work]) -> None:
        self._runner.run(self._bulk(works))

    async def _bulk(self, works: Sequence[Work]) -> None:
        await self._client.enqueue_many_copy(list(works), queue=_QUEUE)

    def single(self, work: Work) -> None:
        self._runner.run(self._single(work))

    async def _single(self, work: Work) -> None:
        await self._client.insert(work, queue=_QUEUE)


def producer() -> Producer:
    return AwaProducer(Place.current().url)
