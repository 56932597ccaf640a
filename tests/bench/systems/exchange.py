"""Benchmark, limits: the project's own storage in forked loops, without its supervisor and its worker.

What lies between the bare statements and this is the cost of the storage's layer; what lies between this and
the project is that of watching over jobs.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import ClassVar

from qml_mp.core.job import Claim
from qml_mp.core.outcome import Outcome, Success
from qml_mp.storage.open import open_storage
from qml_mp.storage.values import BY_DEFAULT, Fetch
from tests.bench.forked import fork_loops, wait_for_all
from tests.bench.place import Place
from tests.bench.system import Backend, Command, Kind, System
from tests.bench.systems.qml import DURABILITY, QmlProducer, migration, url_of
from tests.bench.work import perform


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange(System):
    """Forked loops that call `Storage.exchange` with `batch` jobs at a time."""

    batch: int

    kind: ClassVar[Kind] = Kind.LIMIT

    def install(self, place: Place) -> Sequence[Command]:
        return (migration(self.backend, place),)

    def workers(self, place: Place) -> Sequence[Command]:
        return (self.program("loops", url_of(self.backend, place), str(self.batch)),)

    def environment(self) -> dict[str, str]:
        return {"QML_BENCH_BACKEND": self.backend}


SYSTEMS = tuple(
    Exchange(
        name=f"exchange-{batch}",
        backend=backend,
        batch=batch,
        settings=f"the project's Storage.exchange, {batch} jobs at a time",
        durability=durability,
        usual_jobs_per_s=7000 if batch == 10 else 15_000,
    )
    for backend, durability in DURABILITY.items()
    for batch in (10, 100)
)


def loops(url: str, batch: str) -> None:
    """Fork, and wait until nothing is left."""
    pids = fork_loops(Place.current().workers, lambda place: _loop(url, int(batch), f"w{place}"))
    wait_for_all(pids)


def _loop(url: str, batch: int, worker_id: str) -> None:
    storage = open_storage(url)
    fetch = Fetch(worker_id=worker_id, server_id="s", queues=("default",), methods=("perform",))
    finished: list[tuple[Claim, Outcome]] = []
    while claims := storage.exchange(finished, fetch=fetch, limit=batch, retention=BY_DEFAULT).claims:
        finished = [(claim, _outcome_of(claim)) for claim in claims]


def _outcome_of(claim: Claim) -> Outcome:
    arguments = claim.job.payload
    assert isinstance(arguments, dict)
    perform(**arguments)  # type: ignore[arg-type]  # as they were enqueued
    return Success(result=None, duration=timedelta(microseconds=10))


def producer() -> QmlProducer:
    return QmlProducer(url_of(Backend(os.environ["QML_BENCH_BACKEND"]), Place.current()))
