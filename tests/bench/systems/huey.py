"""Benchmark: Huey on SQLite, with process workers as its guide advises for computing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from tests.bench.place import Place
from tests.bench.system import Backend, Command, Producer, System, console_script
from tests.bench.work import Work, perform


@dataclass(frozen=True, slots=True, kw_only=True)
class Huey(System):
    """`huey_consumer`."""

    package: ClassVar[str | None] = "huey"

    def workers(self, place: Place) -> Sequence[Command]:
        count = str(place.workers)
        return (console_script("huey_consumer", f"{__name__}.app", "-k", "process", "-w", count, "-q"),)


SYSTEMS = (
    Huey(
        name="huey",
        backend=Backend.SQLITE,
        settings="process workers, log off",
        durability="WAL, synchronous=FULL; a claimed job is deleted, and lost with its worker",
        usual_jobs_per_s=2000,
    ),
)


class HueyProducer(Producer):
    """Calls of the task; there is no call for many."""

    def bulk(self, works: Sequence[Work]) -> None:
        for work in works:
            task(**work.arguments())

    def single(self, work: Work) -> None:
        task(**work.arguments())


def producer() -> Producer:
    return HueyProducer()


if Place.is_known():
    from huey import SqliteHuey

    app = SqliteHuey(filename=str(Place.current().file))
    task: Any = app.task(name="perform")(perform)
