"""Benchmark: Procrastinate, by its command line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from tests.bench.place import Place
from tests.bench.system import Backend, Command, Producer, System, console_script
from tests.bench.work import Work, perform

_CONCURRENCY = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Procrastinate(System):
    """`procrastinate worker`, one process for each worker."""

    package: ClassVar[str | None] = "procrastinate"

    def install(self, place: Place) -> Sequence[Command]:
        return (console_script("procrastinate", "--app", f"{__name__}.app", "schema", "--apply"),)

    def workers(self, place: Place) -> Sequence[Command]:
        command = console_script(
            "procrastinate", "--app", f"{__name__}.app", "--log-level", "warning",
            "worker", "--concurrency", str(_CONCURRENCY),
        )  # fmt: skip
        return (command,) * place.workers


SYSTEMS = (
    Procrastinate(
        name="procrastinate",
        backend=Backend.POSTGRES,
        settings=f"concurrency={_CONCURRENCY}, async psycopg, log off",
        durability="fsync, synchronous_commit=on",
        usual_jobs_per_s=300,
    ),
)


class ProcrastinateProducer(Producer):
    """`batch_defer` and `defer`, synchronous."""

    def __init__(self) -> None:
        app.open()

    def bulk(self, works: Sequence[Work]) -> None:
        task.batch_defer(*(work.arguments() for work in works))

    def single(self, work: Work) -> None:
        task.defer(**work.arguments())

    def close(self) -> None:
        app.close()


def producer() -> Producer:
    return ProcrastinateProducer()


if Place.is_known():
    from procrastinate import App, PsycopgConnector

    async def run_work(seq: int, ms: float, how: str) -> None:
        perform(seq, ms, how)

    app = App(connector=PsycopgConnector(conninfo=Place.current().url))
    task: Any = app.task(name="perform")(run_work)
