"""Client: a real server with the jobs of the measurements, for as long as one of them takes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta

from qml_mp import host
from qml_mp.app import QmlApp
from qml_mp.bench.signals import signals_held
from qml_mp.bench.stamps import Span, Stamps
from qml_mp.bench.work import work
from qml_mp.embedding.background_server import BackgroundJobServer
from qml_mp.errors import StorageError
from qml_mp.processing.retry import RetryPolicy
from qml_mp.settings import ServerConfig
from qml_mp.storage.store import Storage

_SHUTDOWN = timedelta(seconds=5)
_ORPHANS_WITHIN_S = 2 * ServerConfig().orphan_grace.total_seconds()
_LOOK_EVERY_S = 0.02
_DEFAULT_BATCH = ServerConfig().fetch_batch_size


class BenchServer:
    """A running server, and the only one that enqueues for it."""

    def __init__(self, server: BackgroundJobServer, storage: Storage, app: QmlApp, stamps: Stamps) -> None:
        self._server = server
        self._storage = storage
        self._app = app
        self._stamps = stamps

    def run(self, jobs: int, *, turns: int = 0) -> Span:
        """Enqueue so many jobs in one transaction, and wait until all have ended.

        Raises `QmlError` when the server is gone or runs none of them for half a minute.
        """
        self._stamps.forget(jobs)
        self._storage.enqueue_many(
            self._app.make_job("bench", {"place": place, "turns": turns}) for place in range(jobs)
        )
        self._stamps.wait_for(jobs, runs=self._server.is_running)
        return self._stamps.span(jobs)

    def latency_s(self) -> float:
        """Enqueue one job; how long after its commit it began. 0 when that was before the reply came."""
        self._stamps.forget(1)
        self._storage.enqueue(self._app.make_job("bench", {"place": 0, "turns": 0}))
        committed_at = time.monotonic()
        self._stamps.wait_for(1, runs=self._server.is_running)
        return max(0.0, self._stamps.span(1).began_s - committed_at)


@contextmanager
def bench_server(
    storage: Storage, stamps: Stamps, *, workers: int, batch: int = _DEFAULT_BATCH
) -> Iterator[BenchServer]:
    """A server with so many workers, each of which claims at most `batch` jobs in one commit; all other
    settings are the default ones. Afterwards it is gone."""
    app = _app(stamps)
    config = ServerConfig(
        server_name="bench", worker_count=workers, fetch_batch_size=batch, shutdown_timeout=_SHUTDOWN
    )
    server = BackgroundJobServer(config, storage, app.program)
    try:
        with signals_held():
            server.start()
        bench = BenchServer(server, storage, app, stamps)
        bench.run(2 * workers)  # the first jobs of a process are no measure
        yield bench
    finally:
        with signals_held():
            server.stop()
            _outwait_orphans(storage)


def _outwait_orphans(storage: Storage) -> None:
    """After a server that was killed, until its workers have noticed: nothing they use may go before them."""
    with suppress(StorageError):
        workers = [worker.process for worker in storage.list_workers()]  # none when the server has stopped
        give_up_at = time.monotonic() + _ORPHANS_WITHIN_S
        while any(host.is_alive(worker) for worker in workers) and time.monotonic() < give_up_at:
            time.sleep(_LOOK_EVERY_S)


def _app(stamps: Stamps) -> QmlApp:
    app = QmlApp(retry_policy=RetryPolicy.none())

    @app.job()
    def bench(place: int, turns: int) -> None:
        stamps.begin(place)
        work(turns)
        stamps.end(place)

    return app
