"""Client: where the handles of one storage wait for the ends of their jobs."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from functools import partial
from typing import Protocol

from qml_mp.awaiting import Awaiting, OfThread
from qml_mp.clock import growing_pauses
from qml_mp.core.job import Job
from qml_mp.errors import StorageUnavailable
from qml_mp.loop_threads import LoopThreads
from qml_mp.storage.store import Storage
from qml_mp.watch import Watch

logger = logging.getLogger(__name__)


class Waiting(Protocol):
    """For the ends of some jobs."""

    def next_ended(self, *, deadline: float) -> dict[str, Job | None]:
        """As `Watch.next_ended`."""


class JobEnds:
    """The storage, and how it is waited for."""

    def __init__(self, storage: Storage, *, polling: timedelta = timedelta(seconds=1)) -> None:
        """`polling`: the longest pause where no commit can be listened to."""
        self.storage = storage
        self._watch = partial(Watch, storage, polling=polling)
        self._first = threading.Lock()
        """Held by the thread that waits by itself; nobody waits for it."""
        self.awaiting = Awaiting(self._watch)
        """For coroutines."""
        self.threads = LoopThreads("qml-mp: storage")
        """In which these have a job looked at."""

    @contextmanager
    def wait(self, job_ids: Iterable[str]) -> Iterator[Waiting]:
        """In the thread that calls this: a program with a single one is not given another. Who comes while
        somebody waits already shares a thread, and its connection, with others of that kind."""
        if self._first.acquire(blocking=False):
            try:
                with self._watch() as watch:
                    watch.add(job_ids)
                    yield watch
            finally:
                self._first.release()
        else:
            with closing(_Shared(self, job_ids)) as shared:
                yield shared


class _Shared:
    """Waits by the shared thread, unless a first look finds something. Like a `Watch`, it raises only for the
    first look of all."""

    def __init__(self, ends: JobEnds, job_ids: Iterable[str]) -> None:
        self._ends = ends
        self._open = set(job_ids)
        self._subscription: OfThread | None = None
        self._has_looked = False
        self._pauses: Iterator[float] | None = None
        """Between two tries, while the storage cannot be asked."""

    def next_ended(self, *, deadline: float) -> dict[str, Job | None]:
        while True:
            try:
                ended = self._look_or_wait(deadline)
            except StorageUnavailable as problem:
                if not self._has_looked:
                    raise
                self.close()  # of a thread whose own first look it was, there is nothing more to come
                if time.monotonic() >= deadline:
                    return {}
                self._rest(problem, deadline)
            else:
                self._pauses = None
                self._open -= ended.keys()
                return ended

    def close(self) -> None:
        """Harmless when closed already."""
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            subscription.close()

    def _look_or_wait(self, deadline: float) -> dict[str, Job | None]:
        if self._subscription is None:
            ended = self._ends.storage.ended_jobs(self._open).jobs
            self._has_looked = True
            if ended or time.monotonic() >= deadline:
                return ended
            self._subscription = OfThread(self._ends.awaiting, self._open)
        return self._subscription.next_ended(deadline=deadline)

    def _rest(self, problem: StorageUnavailable, deadline: float) -> None:
        if self._pauses is None:
            logger.warning("While waiting for jobs: %s It is asked again and again.", problem)
            self._pauses = growing_pauses()
        time.sleep(max(0.0, min(next(self._pauses), deadline - time.monotonic())))
