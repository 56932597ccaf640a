"""Benchmark: PgQueuer, as its own benchmark and tuning guide use it: asyncpg, uvloop, async entrypoints."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from tests.bench.place import Place
from tests.bench.system import Backend, Command, Producer, System, console_script
from tests.bench.work import Work, perform


@dataclass(frozen=True, slots=True, kw_only=True)
class PgQueuer(System):
    """`PgQueuer.run`, one process for each worker."""

    batch: int

    package: ClassVar[str | None] = "pgqueuer"

    def install(self, place: Place) -> Sequence[Command]:
        connection = ("--pg-dsn", place.url)
        return (console_script("pgq", *connection, "install"), console_script("pgq", *connection, "autovac"))

    def workers(self, place: Place) -> Sequence[Command]:
        return (self.program("work", str(self.batch)),) * place.workers


SYSTEMS = tuple(
    PgQueuer(
        name="pgqueuer" if batch == 10 else f"pgqueuer-{batch}",
        backend=Backend.POSTGRES,
        batch=batch,
        settings=f"batch_size={batch}, autovac, asyncpg, uvloop",
        durability="fsync, synchronous_commit=on, tables durable; an ended job is buffered for up to 100 ms",
        usual_jobs_per_s=5000 if batch == 10 else 15_000,
    )
    for batch in (10, 100)
)


def work(batch: str) -> None:
    """Run jobs until SIGTERM. Not by `pgq run`, which in 1.6.0 fails beside typer 0.29 before it begins."""
    import uvloop

    uvloop.run(_work(int(batch)))


async def _work(batch: int) -> None:
    import asyncpg
    from pgqueuer import PgQueuer as Manager

    manager = Manager.from_asyncpg_connection(await asyncpg.connect(Place.current().url))

    async def fetch(job: Any) -> None:
        perform(**json.loads(job.payload))

    manager.entrypoint("perform")(fetch)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, manager.shutdown.set)
    await manager.run(batch_size=batch)


class PgQueuerProducer(Producer):
    """`Queries.enqueue`, which takes lists too."""

    def __init__(self, url: str) -> None:
        import asyncpg
        from pgqueuer.db import AsyncpgDriver
        from pgqueuer.queries import Queries

        self._runner = asyncio.Runner()
        self._connection = self._runner.run(asyncpg.connect(url))
        self._queries = Queries(AsyncpgDriver(self._connection))

    def bulk(self, works: Sequence[Work]) -> None:
        payloads = [_payload(work) for work in works]
        self._runner.run(self._queries.enqueue(["perform"] * len(works), payloads, [0] * len(works)))

    def single(self, work: Work) -> None:
        self._runner.run(self._queries.enqueue("perform", _payload(work)))

    def close(self) -> None:
        self._runner.run(self._connection.close())
        self._runner.close()


def producer() -> Producer:
    return PgQueuerProducer(Place.current().url)


def _payload(work: Work) -> bytes:
    return json.dumps(work.arguments()).encode()
