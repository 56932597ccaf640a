"""Benchmark: FlexiQ (once taskito), a queue whose core is written in Rust, on SQLite with prefork workers."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from tests.bench.place import Place
from tests.bench.system import Backend, Command, Producer, System, console_script
from tests.bench.work import Work, perform


@dataclass(frozen=True, slots=True, kw_only=True)
class Flexiq(System):
    """`flexiq worker --pool prefork`."""

    batch: int | None

    package: ClassVar[str | None] = "flexiq"

    def workers(self, place: Place) -> Sequence[Command]:
        return (console_script("flexiq", "worker", "--app", f"{__name__}:queue", "--pool", "prefork"),)

    def environment(self) -> Mapping[str, str]:
        return {} if self.batch is None else {"QML_BENCH_BATCH": str(self.batch)}


SYSTEMS = tuple(
    Flexiq(
        name="flexiq" if batch is None else f"flexiq-{batch}",
        backend=Backend.SQLITE,
        batch=batch,
        settings="prefork" if batch is None else f"prefork, scheduler_batch_size={batch}, push_dispatch",
        durability="WAL, synchronous=NORMAL",
        usual_jobs_per_s=500,
    )
    for batch in (None, 100)
)


class FlexiqProducer(Producer):
    """`enqueue_many` and `delay`."""

    def bulk(self, works: Sequence[Work]) -> None:
        queue.enqueue_many("perform", args_list=[()] * len(works), kwargs_list=[w.arguments() for w in works])

    def single(self, work: Work) -> None:
        task.delay(**work.arguments())


def producer() -> Producer:
    return FlexiqProducer()


if Place.is_known():
    from flexiq import Queue

    _batch = os.environ.get("QML_BENCH_BATCH")
    queue = Queue(
        db_path=str(Place.current().file),
        workers=Place.current().workers,
        scheduler_batch_size=None if _batch is None else int(_batch),
        push_dispatch=None if _batch is None else True,
    )
    task: Any = queue.task(name="perform")(perform)
