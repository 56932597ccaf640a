"""Client: the way from a job to its row. Opens the storage when it is first needed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from qml_mp.core.job import Job
from qml_mp.handle import JobHandle
from qml_mp.storage.connection import fork_guard
from qml_mp.storage.store import Storage
from qml_mp.storage.values import Retention


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
