"""Benchmark: this project."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from qml_mp import QmlApp
from qml_mp.storage.open import open_storage
from tests.bench.place import Place
from tests.bench.system import Backend, Command, Kind, Producer, System, program
from tests.bench.work import Work, perform

_UNTRACED = "QML_BENCH_UNTRACED"
"""Set: without the lines that jobs log; those of the peers are off too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QmlMp(System):
    """`qml-mp start`."""

    batch: int | None = None

    kind: ClassVar[Kind] = Kind.PROJECT
    package: ClassVar[str | None] = "qml-mp"

    def install(self, place: Place) -> Sequence[Command]:
        return (migration(self.backend, place),)

    def workers(self, place: Place) -> Sequence[Command]:
        start = ("-A", f"{__name__}:app", "--url", url_of(self.backend, place), "start")
        return ((sys.executable, "-m", "qml_mp", *start, "--workers", str(place.workers)),)

    def environment(self) -> Mapping[str, str]:
        tuned = {} if self.batch is None else {"QML_MP_FETCH_BATCH_SIZE": str(self.batch), _UNTRACED: "1"}
        return {"QML_BENCH_BACKEND": self.backend, **tuned}


DURABILITY = {
    Backend.POSTGRES: "fsync, synchronous_commit=on",
    Backend.SQLITE: "WAL, synced after each commit, before it is acknowledged",
}
SYSTEMS = tuple(
    QmlMp(
        name="qml-mp" if batch is None else f"qml-mp-{batch}",
        backend=backend,
        batch=batch,
        settings="defaults" if batch is None else f"fetch_batch_size={batch}, log of jobs off",
        durability=durability,
        usual_jobs_per_s=8000 if batch is None else 15_000,
    )
    for backend, durability in DURABILITY.items()
    for batch in (None, 100)
)


def url_of(backend: Backend, place: Place) -> str:
    """The storage of the run, with time to connect for a machine that stands still."""
    if backend is not Backend.POSTGRES:
        return f"sqlite:///{place.file}"
    return f"{place.url}{'&' if '?' in place.url else '?'}connect_timeout=60"


def migration(backend: Backend, place: Place) -> Command:
    """What makes the project's tables."""
    return program(__name__, "migrate", url_of(backend, place))


def migrate(url: str) -> None:
    """Make the tables."""
    storage = open_storage(url)
    storage.migrate()
    storage.close()


class QmlProducer(Producer):
    """`enqueue_many` and `enqueue`."""

    def __init__(self, url: str) -> None:
        self._app = QmlApp(url)
        self._job = self._app.job("perform")(perform)

    def bulk(self, works: Sequence[Work]) -> None:
        self._app.enqueue_many(self._job.job(work.seq, work.ms, work.how) for work in works)

    def single(self, work: Work) -> None:
        self._job.enqueue(work.seq, work.ms, work.how)

    def close(self) -> None:
        self._app.close()


def producer() -> Producer:
    return QmlProducer(url_of(Backend(os.environ["QML_BENCH_BACKEND"]), Place.current()))


app = QmlApp(middleware=() if _UNTRACED in os.environ else None)
app.job("perform")(perform)
