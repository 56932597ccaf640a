"""The calls for failed jobs that one worker makes: what is done about a function that raises."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from qml_mp import host
from qml_mp.child.failure_calls import FailureCalls
from qml_mp.child.reports import Display, StateChanges
from qml_mp.core.job import Job
from qml_mp.core.outcome import ErrorInfo, Failure
from qml_mp.core.server_info import ServerInfo, WorkerInfo
from qml_mp.embedding.log_format import JsonFormatter
from qml_mp.events.emitter import new_emitter
from qml_mp.ipc.bell import Bell
from qml_mp.ipc.slot import SlotTable
from qml_mp.processing.middleware import FailureHook
from qml_mp.settings import ServerConfig
from qml_mp.storage.sqlite.database import SqliteDatabase
from qml_mp.storage.store import Storage
from qml_mp.storage.values import BY_DEFAULT, Fetch
from tests.unit.processor_case import processor_of

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


@pytest.fixture
def slots() -> SlotTable:
    return SlotTable(1)


@pytest.fixture
def make(storage: Storage, slots: SlotTable) -> Iterator[Callable[[FailureHook], FailureCalls]]:
    bell, events = Bell(), new_emitter()

    def make(hook: FailureHook) -> FailureCalls:
        display = Display(slots.writer(0), bell=bell, title="a test")
        return FailureCalls(
            storage, hook, fetch=WHO, resolve=processor_of(lambda: None).resolve, display=display,
            changes=StateChanges(None, display=display, events=events), config=ServerConfig(),
        )  # fmt: skip

    yield make
    bell.close()


def test_a_function_that_raises_is_called_five_times_in_all(
    make: Callable[[FailureHook], FailureCalls], clock: HandClock, storage: Storage,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    at = []

    def hook(job: Job, error: ErrorInfo) -> None:
        at.append((clock.at - START).total_seconds())
        raise SystemExit("not today")

    calls = make(hook)
    for _ in range(1000):
        calls.make_one()
        clock.at += timedelta(seconds=1)

    assert at == [0, 5, 25, 105, 425]
    records = [record for record in caplog.records if record.levelno == logging.ERROR]
    messages = [record.message for record in records]
    assert len(messages) == 5
    assert "called again in 5 s: SystemExit: not today\nTraceback" in messages[0]
    assert "is given up: SystemExit: not today\nTraceback" in messages[-1]
    for line in (json.loads(JsonFormatter().format(record)) for record in records):
        assert (line["method"], line["worker_id"]) == ("f", "w-1")
        assert line["message"].endswith(": SystemExit: not today")
        assert line["traceback"].startswith("Traceback")
