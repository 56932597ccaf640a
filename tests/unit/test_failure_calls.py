"""The calls for failed jobs that one worker makes: what is done about a function that raises."""

from __future__ import annotations

import json
import logging
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from qml_mp import host
from qml_mp.app import QmlApp
from qml_mp.child.between_jobs import BetweenJobs
from qml_mp.child.commands import Commands
from qml_mp.child.failure_calls import FailureCalls
from qml_mp.child.lost_attempts import LostAttemptExport
from qml_mp.child.reports import Display, StateChanges
from qml_mp.core.job import Job
from qml_mp.core.outcome import ErrorInfo, Failure
from qml_mp.core.server_info import ServerInfo, WorkerInfo
from qml_mp.embedding.log_format import JsonFormatter
from qml_mp.errors import ConfigurationError
from qml_mp.events.emitter import new_emitter
from qml_mp.ipc.bell import Bell
from qml_mp.ipc.pipe import Kind, Message, PipeReader, open_pipe, send
from qml_mp.ipc.slot import Activity, SlotTable
from qml_mp.processing.middleware import FailureHook
from qml_mp.settings import ServerConfig
from qml_mp.storage.sqlite.database import SqliteDatabase
from qml_mp.storage.store import Storage
from qml_mp.storage.values import BY_DEFAULT, Fetch
from tests.unit.processor_case import processor_of
from tests.until import wait_until

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


def test_the_function_gets_the_job_and_its_error_and_runs_under_a_limit(
    make: Callable[[FailureHook], FailureCalls], slots: SlotTable
) -> None:
    seen = []

    def hook(job: Job, error: ErrorInfo) -> None:
        shown = slots.read(0)
        assert shown is not None
        seen.append((job.method, job.claim_seq, error, shown.activity, shown.limit, shown.is_over))

    calls = make(hook)
    was_due = calls.is_due
    calls.make_one()
    calls.make_one()

    assert was_due
    assert seen == [("f", 1, NO, Activity.RUNNING, timedelta(minutes=1), True)]
    after = slots.read(0)
    assert after is not None
    assert after.activity is Activity.FINISHING


@pytest.mark.parametrize("odd", ["-" + "a" * 35, "--" + "a" * 34])
def test_the_function_is_called_for_a_row_that_failed_because_its_id_is_no_uuid(
    make: Callable[[FailureHook], FailureCalls], storage: Storage, slots: SlotTable, tmp_path: Path, odd: str
) -> None:
    seen = []

    def hook(job: Job, error: ErrorInfo) -> None:
        shown = slots.read(0)
        assert shown is not None
        seen.append((job.id, "Its id is not a UUID." in error.message, shown.activity))

    calls = make(hook)
    calls.make_one()  # of the job that has failed before
    storage.enqueue(Job.new("f"))
    with closing(sqlite3.connect(tmp_path / "own.db")) as connection, connection:
        connection.execute("UPDATE qml_jobs SET id = ? WHERE state = 'enqueued'", [odd])
    assert storage.fetch_and_lock_job(WHO) is None

    calls.make_one()

    assert seen[1:] == [(odd, True, Activity.RUNNING)]
    assert not storage.has_failure_callbacks(["f"])


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


def test_what_storage_refuses_of_the_calls_is_told_once_until_it_works_again(
    make: Callable[[FailureHook], FailureCalls], caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    seen = []
    calls = make(lambda *told: seen.append(told))

    with closing(sqlite3.connect(tmp_path / "own.db")) as connection:
        refused = "BEGIN SELECT RAISE(ABORT, 'refused by the test'); END"
        connection.execute(f"CREATE TRIGGER no BEFORE UPDATE ON qml_failure_callbacks {refused}")
        for _ in range(3):
            calls.make_one()
        connection.execute("DROP TRIGGER no")
    calls.make_one()

    assert len(seen) == 1
    [told] = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert "Calls for failed jobs wait for storage: " in told
    assert "refused by the test" in told


def test_one_that_never_came_to_its_end_is_given_up(
    make: Callable[[FailureHook], FailureCalls], storage: Storage, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(5):  # as when each worker was killed in it
        assert storage.take_failure_callback("w-1", ["f"], lease=timedelta()) is not None
    seen = []

    calls = make(lambda *told: seen.append(told))
    calls.make_one()
    calls.make_one()

    assert seen == []
    assert [record.message for record in caplog.records if "no call came to its end" in record.message]
    assert storage.take_failure_callback("w-1", ["f"], lease=timedelta()) is None


def test_a_paused_worker_makes_no_call_and_waits_until_it_is_woken(
    make: Callable[[FailureHook], FailureCalls], storage: Storage
) -> None:
    reading, writing = open_pipe()
    commands, calls = Commands(PipeReader(reading)), make(lambda *_: None)
    lost = LostAttemptExport(storage, None, fetch=WHO, look=commands.look)
    between = BetweenJobs(calls, lost, commands=commands)
    calls.make_one()  # and there may be another
    wait_until(lambda: calls.is_due)

    seen = []
    for kind in (Kind.PAUSE, Kind.WAKE):
        send(writing, Message(kind=kind))
        commands.look()
        seen.append((between.is_due, between.wait_s))

    assert seen == [(False, float("inf")), (True, 0.0)]
    os.close(reading)
    os.close(writing)


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
