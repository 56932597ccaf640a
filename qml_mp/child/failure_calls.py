"""Worker: calls the program's function for jobs that have failed, between two jobs."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from uuid import NAMESPACE_OID, uuid5

from qml_mp import failpoints
from qml_mp.child.reports import Display, StateChanges
from qml_mp.child.told_once import ToldOnce
from qml_mp.core.job import Claim
from qml_mp.core.outcome import ErrorInfo
from qml_mp.errors import StorageError
from qml_mp.processing.errors_text import describe_anything
from qml_mp.processing.job_records import note_running
from qml_mp.processing.middleware import FailureHook
from qml_mp.processing.own_context import in_own_context
from qml_mp.processing.program import Execution
from qml_mp.settings import ServerConfig
from qml_mp.storage.failures import FailureCallback
from qml_mp.storage.passing_over import is_uuid
from qml_mp.storage.store import Storage
from qml_mp.storage.values import Fetch

logger = logging.getLogger(__name__)

_LIMIT = timedelta(minutes=1)
_MOST_TRIES = 5
_FIRST_PAUSE = timedelta(seconds=5)
_PAUSE_GROWTH = 4  # to 320 s; for a longer one see `FailureQueries.hasten`
_LOOK_EVERY_S = 1.0
_TO_WRITE = timedelta(seconds=30)  # what is left of a lease when the limit has killed whoever holds it


class FailureCalls:
    """Those that this worker makes, one at a time. The function is user code: it may raise, and a worker that
    it holds up beyond its limit is killed as by a job."""

    def __init__(
        self,
        storage: Storage,
        hook: FailureHook | None,
        *,
        fetch: Fetch,
        resolve: Callable[[Claim], Execution],
        display: Display,
        changes: StateChanges,
        config: ServerConfig,
    ) -> None:
        """`hook` leaves the process as it was. `fetch` says who this worker is, and what methods it knows."""
        self._storage = storage
        self._hook = hook
        self._fetch = fetch
        self._resolve = resolve
        self._display = display
        self._changes = changes
        self._lease = _LIMIT + config.cancel_grace + config.term_grace + _TO_WRITE
        self._next_at = 0.0
        self._may_be_more = False
        self._log = ToldOnce("Calls for failed jobs")

    @property
    def wait_s(self) -> float:
        """How long an idle worker waits until it looks again, unless it is woken."""
        return max(0.0, self._next_at - time.monotonic()) if self._may_be_more else float("inf")

    @property
    def is_due(self) -> bool:
        """Whether to look for one now. A job of this worker that has failed is told at once."""
        return self._hook is not None and (self._changes.has_failed or time.monotonic() >= self._next_at)

    def make_one(self) -> None:
        """Make the call that is due for longest, if there is any. No job is in hand and none is unwritten."""
        if self._hook is None:
            return
        began_at = time.monotonic()
        self._changes.has_failed = False
        try:
            callback = self._storage.take_failure_callback(
                self._fetch.worker_id, self._fetch.methods or (), lease=self._lease
            )
            if callback is not None:
                self._make(callback, self._hook)
        except StorageError as error:
            callback = None
            self._log.refused(error)
        else:
            self._log.worked()
        now, self._may_be_more = time.monotonic(), callback is not None
        self._next_at = now + (_LOOK_EVERY_S if callback is None else now - began_at)  # half of it for jobs

    def _make(self, callback: FailureCallback, hook: FailureHook) -> None:
        job = callback.job
        extra = {"job_id": job.id, "method": job.method, "worker_id": self._fetch.worker_id}
        if callback.tries > _MOST_TRIES:  # each of the others was killed
            self._storage.end_failure_callback(callback)
            logger.error("on_failure of job %s is given up: no call came to its end", job.id, extra=extra)
            return
        failpoints.hit("callback.taken")
        raised = self._call(callback, hook)
        failpoints.hit("callback.called")
        if raised is None:
            self._storage.end_failure_callback(callback)
            return
        trace = extra["traceback"] = (raised.traceback or "").rstrip()
        problem = f"{raised.type}: {raised.message}\n{trace}"
        if callback.tries >= _MOST_TRIES:
            self._storage.end_failure_callback(callback)
            logger.error("on_failure of job %s failed, and is given up: %s", job.id, problem, extra=extra)
        else:
            pause = _FIRST_PAUSE * _PAUSE_GROWTH ** (callback.tries - 1)
            self._storage.postpone_failure_callback(callback, delay=pause)
            text = "on_failure of job %s failed, and is called again in %s s: %s"
            logger.error(text, job.id, round(pause.total_seconds()), problem, extra=extra)

    def _call(self, callback: FailureCallback, hook: FailureHook) -> ErrorInfo | None:
        """What it raised; None: nothing."""
        job = replace(callback.job)  # of which it may make what it likes
        # The supervisor is shown a key, which has a UUID; the job may have failed for that its id is none.
        shown_id = job.id if is_uuid(job.id) else str(uuid5(NAMESPACE_OID, job.id))
        claim = Claim(
            job=replace(job, id=shown_id, claim_seq=callback.claim_seq),
            worker_id=self._fetch.worker_id,
            server_id=self._fetch.server_id,
        )
        execution = self._resolve(claim)
        limited = replace(execution, terms=replace(execution.terms, limit=_LIMIT))
        self._display.running(limited, is_over=True)
        note_running(job)
        try:
            in_own_context(hook, job, callback.error)
            return None
        except BaseException as error:
            return describe_anything(error)
        finally:
            note_running(None)
            self._display.finishing()
