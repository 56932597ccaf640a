"""Benchmark: Celery on Redis, with its prefork pool."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from tests.bench.place import Place
from tests.bench.system import Backend, Command, Producer, System, console_script
from tests.bench.work import Work, perform


@dataclass(frozen=True, slots=True, kw_only=True)
class Celery(System):
    """`celery worker`."""

    package: ClassVar[str | None] = "celery"

    def workers(self, place: Place) -> Sequence[Command]:
        command = console_script(
            "celery", "-A", f"{__name__}:app", "worker", "-c", str(place.workers), "-l", "WARNING",
            "--without-gossip", "--without-mingle", "--without-heartbeat",
        )  # fmt: skip
        return (command,)


SYSTEMS = (
    Celery(
        name="celery",
        backend=Backend.REDIS,
        settings="prefork, ignore_result, no gossip, log off",
        durability="none: Redis with its defaults, acknowledged when claimed",
        usual_jobs_per_s=800,
    ),
)


class CeleryProducer(Producer):
    """`delay`; there is no call for many."""

    def bulk(self, works: Sequence[Work]) -> None:
        for work in works:
            task.delay(**work.arguments())

    def single(self, work: Work) -> None:
        task.delay(**work.arguments())


def producer() -> Producer:
    return CeleryProducer()


if Place.is_known():
    from celery import Celery as App

    app = App(broker=Place.current().url)
    app.conf.task_ignore_result = True
    app.conf.broker_connection_retry_on_startup = True
    task: Any = app.task(name="perform")(perform)
