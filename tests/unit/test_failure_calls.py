"""The calls for failed jobs that one worker makes: what is done about a function that raises."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from qml_mp import host
from qml_mp.app import QmlApp
from qml_mp.core.job import Job
from qml_mp.core.outcome import ErrorInfo, Failure
from qml_mp.core.server_info import ServerInfo, WorkerInfo
from qml_mp.errors import ConfigurationError
from qml_mp.storage.sqlite.database import SqliteDatabase
from qml_mp.storage.store import Storage
from qml_mp.storage.values import BY_DEFAULT, Fetch

WHO = Fetch(worker_id="w-1", server_id="s#1", queues=(), methods=("f",))
NO = ErrorInfo(type="ValueError", message="no")


START = datetime(2026, 1, 1, tzinfo=UTC)


class HandClock:
    at = START

    def now(self) -> datetime:
        return self.at

    def monotonic(self) -> float:
        return self.at.timestamp()


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def storage(tmp_path: Path, clock: HandClock) -> Iterator[Storage]:
    """A storage with this very process as a worker, and a job that has failed."""
    path = str(tmp_path / "own.db")
    storage = Storage(SqliteDatabase(path, clock=clock, busy_timeout=timedelta(seconds=5)))
    storage.migrate()
    process, now = host.identity(), clock.now()
    storage.register_server(
        ServerInfo(
            id="s#1", name="s", hostname="h", worker_count=1, queues=(), process=process, started_at=now,
            last_heartbeat=now,
        )
    )  # fmt: skip
    storage.register_worker(WorkerInfo(id="w-1", server_id="s#1", number=1, process=process, started_at=now))
    storage.declare_hooks(["f"], calls=True, traces=False)
    storage.enqueue(Job.new("f"))
    claim = storage.fetch_and_lock_job(WHO)
    assert claim is not None
    storage.finish(claim, Failure(error=NO), retention=BY_DEFAULT)
    yield storage
    storage.close()


def test_an_app_has_one_function_for_failures() -> None:
    app = QmlApp("memory://")

    @app.on_failure
    def first(job: Job, error: ErrorInfo) -> None: ...

    assert app.program.on_failure is first
    with pytest.raises(ConfigurationError, match="call both from one function"):
        app.on_failure(first)


def test_a_coroutine_function_is_refused() -> None:
    async def later(job: Job, error: ErrorInfo) -> None: ...

    with pytest.raises(ConfigurationError, match="it must be a plain function"):
        QmlApp("memory://").on_failure(later)  # type: ignore[arg-type]
