"""Client: the way from a job to its row."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import TypeVar
from uuid import UUID
from weakref import ref

from qml_mp.core.job import Job
from qml_mp.core.payload import JsonValue
from qml_mp.ends import JobEnds
from qml_mp.errors import ConfigurationError, shown_type
from qml_mp.handle import JobHandle, job_id_of
from qml_mp.loop_threads import LoopThreads
from qml_mp.processing.tracing import Tracing
from qml_mp.storage.connection import fork_guard
from qml_mp.storage.store import Storage
from qml_mp.storage.values import JobFilter, Retention

T = TypeVar("T")
Rebuilt = Callable[[Job], T]
"""What the stored result of a job stands for; `InvalidJob` when it does not fit."""


class JobClient:
    """Enqueues and finds jobs in one storage."""

    def __init__(self, *, retention: Retention, polling: timedelta, tracing: Tracing | None = None) -> None:
        """`polling`: the longest pause of who waits where no commit can be listened to."""
        self.retention = retention
        self._tracing = tracing
        self._polling = polling
        self._ends: Callable[[], JobEnds | None] = lambda: None
        """Those of the newest handles: not kept longer than these are."""
        self._url: str | None = None
        self._expects_schema = False
        """Whether whoever named the URL has found the schema there."""
        self._storage: Storage | None = None
        self._run: Callable[[Sequence[Job]], list[str]] | None = None
        """What is done with jobs instead (see `inline`)."""
        self._threads = LoopThreads("qml-mp: storage")
        """In which coroutines enqueue."""

    def connect(self, url: str | None, *, expects_schema: bool = False) -> None:
        """From now on use the storage of this URL (None: look the URL up when it is needed). With
        `expects_schema` its schema is never made, as a worker's is there. `ConfigurationError` for a URL that
        is no text."""
        if url is not None:
            _check_url(url)
        self.close()
        with fork_guard().no_forks:
            self._url, self._expects_schema = url, expects_schema
            self._storage = None

    def __reduce__(self) -> tuple[Callable[..., JobClient], tuple[object, ...]]:
        """For the program of a notebook, which is sent to its server: the connection, and who waits, stay."""
        return _client_of, (self.retention, self._polling, self._tracing, self._url)

    @contextmanager
    def attached(
        self,
        url: str,
        storage: Storage | None = None,
        *,
        run: Callable[[Sequence[Job]], list[str]] | None = None,
    ) -> Iterator[None]:
        """Within the block, use the storage of this URL. What is to be enqueued is given to `run`, if there
        is one, which returns ids."""
        _check_url(url)
        before = self._url, self._expects_schema, self._storage, self._run
        self._url, self._expects_schema, self._storage, self._run = url, False, storage, run
        try:
            yield
        finally:
            self.close()
            self._url, self._expects_schema, self._storage, self._run = before

    @property
    def storage(self) -> Storage:
        """The storage; it connects when it is first used, and makes its schema when it has none, unless that
        is expected to be there."""
        storage = self._storage  # read once: another thread may be in `connect`
        if storage is not None:
            return storage
        with fork_guard().no_forks:  # a child could never import what a thread is importing that it has not
            if self._storage is None:
                # Imported here: declaring an app must not cost what a storage does.
                from qml_mp.sources import load_url
                from qml_mp.storage.open import open_storage

                with load_url(code=self._url).told() as url:
                    opened = open_storage(url)
                if self._expects_schema:
                    opened.expect_schema()
                self._storage = opened
            return self._storage

    @property
    def url(self) -> str | None:
        """The URL as given; for `memory://`, that of the one database that it stands for here."""
        if self._url is not None and self._url.startswith("memory:"):
            return self.storage.url
        return self._url

    def enqueue(self, job: Job, *, rebuilt: Rebuilt[T], conn: object | None = None) -> JobHandle[T]:
        """Commit the job, or write it within the caller's transaction when `conn` is given."""
        if self._tracing is not None:
            with self._tracing.sending([job], in_transaction=conn is not None) as sending:
                (to_store,) = sending.jobs
                is_alone = conn is None and self._run is None
                ids = [self._store_alone(to_store)] if is_alone else self._store([to_store], conn)
                sending.stored(ids)
            return self._handles_of([(job.id, job.method)], ids, rebuilt)[0]
        if conn is not None or self._run is not None:
            return self.enqueue_many([job], rebuilt=rebuilt, conn=conn)[0]
        return self._handles_of([(job.id, job.method)], [self._store_alone(job)], rebuilt)[0]

    def enqueue_many(
        self, jobs: Iterable[Job], *, rebuilt: Rebuilt[T], conn: object | None = None
    ) -> list[JobHandle[T]]:
        """All of the jobs or, on any error, none."""
        new = list[tuple[str, str]]()

        def noted() -> Iterator[Job]:
            for job in jobs:
                new.append((job.id, job.method))
                yield job

        if self._tracing is None:
            return self._handles_of(new, self._store(noted(), conn), rebuilt)
        given = list(noted())
        with self._tracing.sending(given, is_batch=True, in_transaction=conn is not None) as sending:
            ids = self._store(sending.jobs, conn)
            sending.stored(ids)
        return self._handles_of(new, ids, rebuilt)

    async def aenqueue(self, job: Job, *, rebuilt: Rebuilt[T], conn: object | None = None) -> JobHandle[T]:
        """`enqueue` without blocking the event loop, save with `conn`: a connection stays in its thread."""
        if conn is not None:
            return self.enqueue(job, rebuilt=rebuilt, conn=conn)
        return await self._threads.call(partial(self.enqueue, job, rebuilt=rebuilt))

    async def aenqueue_many(
        self, jobs: Iterable[Job], *, rebuilt: Rebuilt[T], conn: object | None = None
    ) -> list[JobHandle[T]]:
        """`enqueue_many` likewise."""
        if conn is not None:
            return self.enqueue_many(jobs, rebuilt=rebuilt, conn=conn)
        return await self._threads.call(partial(self.enqueue_many, list(jobs), rebuilt=rebuilt))

    def enqueued(self, method: str | None) -> list[Job]:
        """All jobs of the method (None: of any), oldest first."""
        where, found, after = JobFilter(method=method), list[Job](), None
        while True:
            page = self.storage.list_jobs(where, limit=1000, after=after)
            found += page.jobs
            after = page.next_cursor
            if after is None:
                return found[::-1]

    def handle(self, job_id: str | UUID, *, rebuilt: Rebuilt[T], method: str | None = None) -> JobHandle[T]:
        """The handle of a job, of this method (None: of any), whether or not it exists. Raises `InvalidJob`
        for what is neither text nor an id."""
        return JobHandle(
            job_id_of(job_id),
            storage=self.storage,
            retention=self.retention,
            method=method,
            rebuilt=rebuilt,
            ends=self._ends_of(self.storage),
        )

    def _store(self, jobs: Iterable[Job], conn: object | None) -> list[str]:
        if self._run is not None:
            return self._run(list(jobs))
        if conn is not None:
            return self.storage.enqueue_in(conn, jobs, retention=self.retention)
        return self.storage.enqueue_many(jobs, retention=self.retention)

    def _store_alone(self, job: Job) -> str:
        return self.storage.enqueue(job, retention=self.retention)

    def _handles_of(
        self, new: Sequence[tuple[str, str]], ids: Sequence[str], rebuilt: Rebuilt[T]
    ) -> list[JobHandle[T]]:
        """Of new jobs, each by id and method, for which those with these ids stand."""
        storage, retention = self.storage, self.retention
        ends = self._ends_of(storage)
        return [
            JobHandle(
                job_id,
                storage=storage,
                retention=retention,
                is_new=job_id == new_id,
                method=method,
                rebuilt=rebuilt,
                ends=ends,
            )
            for (new_id, method), job_id in zip(new, ids, strict=True)
        ]

    def _ends_of(self, storage: Storage) -> JobEnds:
        ends = self._ends()
        if ends is None or ends.storage is not storage:
            ends = JobEnds(storage, polling=self._polling)
            self._ends = ref(ends)
        return ends

    def close(self) -> None:
        """Close the connection; harmless when closed. The next use opens another."""
        if self._storage is not None:
            self._storage.close()


def as_stored(job: Job) -> JsonValue:
    """The result of a job of whose function nothing is known."""
    return job.result


def _check_url(url: object) -> None:
    if not isinstance(url, str):  # not shown: it may have a password
        raise ConfigurationError(
            f"The storage URL is of type {shown_type(url)}; it must be text such as sqlite:///jobs.db."
        )


def _client_of(
    retention: Retention, polling: timedelta, tracing: Tracing | None, url: str | None
) -> JobClient:
    client = JobClient(retention=retention, polling=polling, tracing=tracing)
    client.connect(url)
    return client
