"""Client: the way from a job to its row. Opens the storage when it is first needed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from qml_mp.core.job import (
    Job,
    check_max_crashes,
    check_max_retries,
    check_metadata,
    check_priority,
    check_timeout,
    check_unique_key,
)
from qml_mp.core.payload import EncodedJson, JsonValue
from qml_mp.errors import InvalidJob, shown
from qml_mp.handle import JobHandle
from qml_mp.settings import check_queue_name
from qml_mp.storage.forks import fork_guard
from qml_mp.storage.protocol import Retention, Storage
from qml_mp.units import Duration, parse_duration

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True, kw_only=True)
class EnqueueOptions:
    """How one job is enqueued; None: as the function or the default says.

    Raises `InvalidJob` or `ConfigurationError` naming the option for what no job can have.
    """

    delay: Duration | None = None
    """Run so much later."""
    at: datetime | None = None
    """Run at that instant (aware)."""
    queue: str | None = None
    priority: int | None = None
    max_retries: int | None = None
    """Retries after the first attempt; 0: none."""
    max_crashes: int | None = None
    timeout: Duration | None = None
    """Limit of one attempt."""
    unique_key: str | None = None
    metadata: Mapping[str, JsonValue] | None = None
    conn: object | None = None
    """The caller's own sqlite3 or psycopg connection, in whose transaction the row is written."""

    def __post_init__(self) -> None:
        if self.delay is not None:
            if self.at is not None:
                raise InvalidJob("delay and at are both given; a job can have one of them.")
            parse_duration(self.delay, what="delay")
        if self.queue is not None:
            check_queue_name(self.queue)
        if self.priority is not None:
            check_priority(self.priority)
        check_max_retries(self.max_retries)
        check_max_crashes(self.max_crashes)
        read_timeout(self.timeout)
        check_unique_key(self.unique_key)
        if self.metadata is not None:
            check_metadata(self.metadata)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobDefaults:
    """What the decorator of a function said about all of its jobs."""

    queue: str = "default"
    priority: int = 0
    max_retries: int | None = None


def read_timeout(timeout: Duration | None) -> timedelta | None:
    """A time limit as the edges accept it; raises `InvalidJob` or `ConfigurationError`."""
    return None if timeout is None else check_timeout(parse_duration(timeout, what="timeout"))


def build_job(
    method: str, payload: JsonValue | EncodedJson, options: EnqueueOptions, defaults: JobDefaults
) -> Job:
    """The job of a call. Raises `InvalidJob` or `ConfigurationError`, as `Job.new` does."""
    now = datetime.now(UTC)
    at = options.at
    if options.delay is not None:
        at = _later(now, options.delay)
    return Job.new(
        method,
        payload,
        queue=defaults.queue if options.queue is None else options.queue,
        priority=defaults.priority if options.priority is None else options.priority,
        max_retries=defaults.max_retries if options.max_retries is None else options.max_retries,
        max_crashes=options.max_crashes,
        metadata=options.metadata,
        timeout=read_timeout(options.timeout),
        unique_key=options.unique_key,
        at=at,
        now=now,
    )


class JobClient:
    """Enqueues and finds jobs in one storage."""

    def __init__(self, *, retention: Retention) -> None:
        self._retention = retention
        self._url: str | None = None
        self._storage: Storage | None = None

    def connect(self, url: str | None) -> None:
        """From now on use the storage of this URL (None: look the URL up when it is needed)."""
        self.close()
        with fork_guard().no_forks:
            self._url = url
            self._storage = None

    @property
    def storage(self) -> Storage:
        """The storage; it connects when it is first used, and makes its schema when it has none."""
        storage = self._storage  # read once: another thread may be in `connect`
        if storage is not None:
            return storage
        with fork_guard().no_forks:  # a child could never import what a thread is importing that it has not
            if self._storage is None:
                self._storage = _open(self._url)
            return self._storage

    @property
    def url(self) -> str | None:
        """The URL as given; for `memory://`, that of the one database that it stands for here."""
        if self._url is not None and self._url.startswith("memory:"):
            return self.storage.url
        return self._url

    def enqueue(self, job: Job, *, conn: object | None = None) -> JobHandle:
        """Commit the job, or write it within the caller's transaction when `conn` is given."""
        if conn is not None:
            return self.enqueue_many([job], conn=conn)[0]
        return self.handle(self.storage.enqueue(job))

    def enqueue_many(self, jobs: Iterable[Job], *, conn: object | None = None) -> list[JobHandle]:
        """All of the jobs or, on any error, none."""
        storage = self.storage
        ids = storage.enqueue_many(jobs) if conn is None else storage.enqueue_in(conn, jobs)
        return [self.handle(job_id) for job_id in ids]

    async def aenqueue(self, job: Job, *, conn: object | None = None) -> JobHandle:
        """`enqueue` without blocking the event loop, save with `conn`: a connection stays in its thread."""
        if conn is not None:
            return self.enqueue(job, conn=conn)
        return await asyncio.to_thread(self.enqueue, job)

    async def aenqueue_many(self, jobs: Iterable[Job], *, conn: object | None = None) -> list[JobHandle]:
        """`enqueue_many` likewise."""
        if conn is not None:
            return self.enqueue_many(jobs, conn=conn)
        return await asyncio.to_thread(self.enqueue_many, list(jobs))

    def handle(self, job_id: str) -> JobHandle:
        """The handle of a job, whether or not it exists."""
        return JobHandle(job_id, storage=self.storage, retention=self._retention)

    def close(self) -> None:
        """Close the connection; harmless when closed. The next use opens another."""
        if self._storage is not None:
            self._storage.close()


def _open(url: str | None) -> Storage:
    # Imported here: declaring an app must not cost what a storage does.
    from qml_mp.sources import load_url
    from qml_mp.storage.open import open_storage

    return open_storage(load_url(url))


def _later(now: datetime, delay: Duration) -> datetime:
    try:
        return now + parse_duration(delay, what="delay")
    except OverflowError:
        raise InvalidJob(f"delay is {shown(delay)}, which is past the end of the calendar.") from None
