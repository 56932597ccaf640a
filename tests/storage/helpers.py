"""Tests of the storage: jobs, claims and processes as the tests speak of them."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
import uuid
import warnings
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from psycopg.errors import QueryCanceled

from qml_mp import host
from qml_mp.clock import SystemClock
from qml_mp.core.job import Claim, Job
from qml_mp.core.limits import Limit, LimitKind
from qml_mp.core.outcome import ErrorInfo, Failure, Outcome, Retry, Success
from qml_mp.core.server_info import ServerInfo, WorkerInfo
from qml_mp.core.state import StateName
from qml_mp.errors import StorageError, StorageUnavailable
from qml_mp.storage.open import open_storage
from qml_mp.storage.postgres.errors import translate
from qml_mp.storage.postgres.target import parse_target
from qml_mp.storage.sqlite.connection import SqliteConnection
from qml_mp.storage.sqlite.database import SqliteDatabase
from qml_mp.storage.store import Storage
from qml_mp.storage.values import Fetch, Finished, Retention
from qml_mp.storage.waiting import DEFAULT_PATIENCE
from tests.until import PATIENCE_S

KEEP = Retention(succeeded_ttl=timedelta(hours=1), failed_ttl=timedelta(hours=2))
HOUR = timedelta(hours=1)
NO = ErrorInfo(type="ValueError", message="no", traceback="Traceback: no")
DONE = Success(result={"ok": True}, duration=timedelta(seconds=1.5))


def open_sqlite(path: Path, *, patience: timedelta = DEFAULT_PATIENCE) -> Storage:
    """The storage in the file, whatever is in its name."""
    return Storage(SqliteDatabase(str(path), clock=SystemClock(), busy_timeout=patience))


def sqlite_connection(storage: Storage) -> SqliteConnection:
    """What a storage in a file uses it through."""
    assert isinstance(storage._db, SqliteDatabase)
    return storage._db.connection


def too_long() -> StorageError:
    """What the storage raises where PostgreSQL had no time for all the work of a statement."""
    error = QueryCanceled("canceling statement due to statement timeout")
    return translate(error, what="counting jobs", target=parse_target("postgresql://h/db"))


def enqueued(storage: Storage, method: str) -> str | None:
    """The id of a job; None while the storage cannot be reached."""
    with suppress(StorageUnavailable):
        return storage.enqueue(Job.new(method))
    return None


def open_patiently(url: str, *, application_name: str = "qml-mp") -> Storage:
    """The storage as one of several that wait for each other: none gives up, however slow the machine is."""
    patience = timedelta(seconds=PATIENCE_S)
    return open_storage(patient_url(url), application_name=application_name, patience=patience)


def patient_url(url: str) -> str:
    """With time to connect for a machine that is busy or stands still. A schema stays what it names last."""
    has_time = f"connect_timeout={PATIENCE_S:.0f}"
    if not url.startswith("postgresql:") or has_time in url:
        return url
    if "schema=" in url:
        return url.replace("schema=", f"{has_time}&schema=")
    return f"{url}{'&' if '?' in url else '?'}{has_time}"


def in_schema(server_url: str, schema: str) -> str:
    """The URL of the schema on that server."""
    return f"{server_url}{'&' if '?' in server_url else '?'}{urlencode({'schema': schema})}"


def in_an_hour() -> datetime:
    return datetime.now(UTC) + HOUR


def fetch(*queues: str, worker: str = "worker-1", server: str = "server#1") -> Fetch:
    return Fetch(worker_id=worker, server_id=server, queues=queues)


def claim_new(
    storage: Storage, *, worker: str = "worker-1", server: str = "server#1", **options: Any
) -> Claim:
    """A claim of a fresh job, from a queue that holds no other."""
    queue = f"only-{uuid.uuid4()}"
    storage.enqueue(Job.new("work", {"n": 1}, queue=queue, **options))
    claim = storage.fetch_and_lock_job(fetch(queue, worker=worker, server=server))
    assert claim is not None
    return claim


def job_in(storage: Storage, state: StateName) -> Claim:
    """A fresh job brought into the state, as the claim of it that a process may still hold."""
    if state in (StateName.ENQUEUED, StateName.SCHEDULED):
        at = in_an_hour() if state is StateName.SCHEDULED else None
        job = Job.new("work", {"n": 1}, queue=f"only-{uuid.uuid4()}", at=at)
        storage.enqueue(job)
        return Claim(job=job, worker_id="worker-1", server_id="server#1")
    claim = claim_new(storage)
    outcomes: dict[StateName, Outcome] = {
        StateName.AWAITING_RETRY: Retry(error=NO, delay=HOUR),
        StateName.SUCCEEDED: DONE,
        StateName.FAILED: Failure(error=NO),
        StateName.DELETED: DONE,
    }
    if state in outcomes:
        storage.finish(claim, outcomes[state], retention=KEEP)
    if state is StateName.DELETED:
        storage.delete(claim.job.id, reason="not wanted", retention=KEEP)
    return claim


def finish_and_fetch(
    storage: Storage, claim: Claim, outcome: Outcome, which: Fetch | None
) -> tuple[Finished, Claim | None]:
    """Write the outcome, and claim the next job in the same commit."""
    exchanged = storage.exchange([(claim, outcome)], fetch=which, limit=1, retention=KEEP)
    return exchanged.finished[0], next(iter(exchanged.claims), None)


def present(storage: Storage, claim_or_id: Claim | str) -> Job:
    """The job as it is now; fails when it is gone."""
    job = storage.get(claim_or_id if isinstance(claim_or_id, str) else claim_or_id.job.id)
    assert job is not None
    return job


def in_children(actions: Iterable[Callable[[], object]], *, within_s: float = 60.0) -> list[int]:
    """Run each action in a forked process of its own, all at once; their exit statuses as `waitpid` has them.

    An action that raises exits with 1 and prints its traceback. What outlives the limit is killed.
    """
    children = [fork(action) for action in actions]
    deadline = time.monotonic() + within_s
    statuses = []
    for pid in children:
        done, status = os.waitpid(pid, os.WNOHANG)
        while not done and time.monotonic() < deadline:
            time.sleep(0.002)  # between two looks: `waitpid` has no time limit
            done, status = os.waitpid(pid, os.WNOHANG)
        if not done:
            os.kill(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
        statuses.append(status)
    return statuses


def fork(action: Callable[[], object]) -> int:
    """Run the action in a forked process, as `in_children` does, and do not wait for its end; its pid."""
    with warnings.catch_warnings():
        # Of other threads. Those of the test have ended, and pytest-xdist's own harms no child.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        status = 1
        try:
            action()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return pid


def set_limit(storage: Storage, kind: LimitKind, name: str, **limit: Any) -> None:
    """Have `max_running` or `rate` of the queue or method be this, and leave the other as it is."""
    storage.limit(Limit(kind=kind, name=name, **limit), only=tuple(limit))


def register(storage: Storage, server_id: str, *worker_ids: str) -> None:
    """A server with these workers, which live as long as this process."""
    now, process = datetime.now(UTC), host.identity()
    storage.register_server(
        ServerInfo(
            id=server_id, name="server", hostname="h", process=process, worker_count=len(worker_ids),
            queues=(), started_at=now, last_heartbeat=now,
        )
    )  # fmt: skip
    for worker_id in worker_ids:
        storage.register_worker(
            WorkerInfo(id=worker_id, server_id=server_id, number=1, process=process, started_at=now)
        )


def claim_some(storage: Storage, number: int, *, which: Fetch | None = None) -> tuple[Claim, ...]:
    """Claims of so many new jobs, all there are."""
    storage.enqueue_many(Job.new("work", n) for n in range(number))
    claims = storage.exchange((), fetch=which or fetch(), limit=number, retention=KEEP).claims
    assert len(claims) == number
    return claims


def states(storage: Storage, claims: Iterable[Claim]) -> list[StateName]:
    """The states of their jobs."""
    return [present(storage, claim).state_name for claim in claims]


def interrupt() -> None:
    """For `before_query`: the storage is away from there on."""
    raise StorageUnavailable("no more")


def before_query(
    storage: Storage, number: int, act: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> Callable[[], int]:
    """Act before the query of this number that the storage runs in a transaction; how many are left until
    then. The one place in these tests that knows how a storage runs its queries."""
    port: Any = sys.modules[type(storage._db).__module__]
    run = port._Transaction.run
    left = number

    def run_or_act(*arguments: Any) -> Any:
        nonlocal left
        left -= 1
        if left == 0:
            act()
        return run(*arguments)

    monkeypatch.setattr(port._Transaction, "run", run_or_act)
    return lambda: left


WAITING = "SELECT 1 FROM pg_stat_activity WHERE application_name = ? AND wait_event_type = 'Lock'"
"""Whether a session of this name waits for a lock; of PostgreSQL."""
