"""Benchmark: Oban for Python, by its command line, which its guide recommends for production."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from tests.bench.place import Place
from tests.bench.system import Backend, Command, Producer, System, console_script
from tests.bench.work import Work, perform


@dataclass(frozen=True, slots=True, kw_only=True)
class Oban(System):
    """`oban start`, one process for each worker."""

    limit: int

    package: ClassVar[str | None] = "oban"

    def install(self, place: Place) -> Sequence[Command]:
        return (console_script("oban", "install", "--dsn", place.url),)

    def workers(self, place: Place) -> Sequence[Command]:
        command = console_script(
            "oban", "start", "--dsn", place.url, "--queues", f"default:{self.limit}",
            "--log-level", "WARNING",
            "--cron-modules", __name__,  # or it would search the whole folder for modules with cron jobs
        )  # fmt: skip
        return (command,) * place.workers


SYSTEMS = tuple(
    Oban(
        name="oban" if limit == 10 else f"oban-{limit}",
        backend=Backend.POSTGRES,
        limit=limit,
        settings=f"queue limit {limit}, uvloop, log off",
        durability="fsync, synchronous_commit=on",
        usual_jobs_per_s=2500 if limit == 10 else 6000,
    )
    for limit in (10, 100)
)


class ObanProducer(Producer):
    """`Oban.enqueue_many` and `Oban.enqueue`, on the default pool."""

    def __init__(self, url: str) -> None:
        from oban import Oban as Client

        self._runner = asyncio.Runner()
        self._pool = self._runner.run(Client.create_pool(url))
        self._client = Client(pool=self._pool)

    def bulk(self, works: Sequence[Work]) -> None:
        self._runner.run(self._client.enqueue_many(work_job.new(**work.arguments()) for work in works))

    def single(self, work: Work) -> None:
        self._runner.run(self._client.enqueue(work_job.new(**work.arguments())))

    def close(self) -> None:
        self._runner.run(self._pool.close())
        self._runner.close()


def producer() -> Producer:
    return ObanProducer(Place.current().url)


if Place.is_known():
    from oban import job

    def run_work(seq: int, ms: float, how: str) -> None:
        perform(seq, ms, how)

    work_job: Any = job()(run_work)
