"""Tests: one storage of either backend, as the state machine of the model acts on it.

SQLite gets a clock of its own. PostgreSQL has the server's, so for it the rows move instead: into
the past when the clock is to step forward, which for the storage is the same.
"""

from __future__ import annotations

import time
from contextlib import ExitStack, closing
from datetime import UTC, datetime, timedelta
from typing import Any

from qml_mp.core.job import Job
from qml_mp.storage.open import open_storage
from qml_mp.storage.store import Storage
from qml_mp.storage.values import JobFilter
from tests.audit import Audit
from tests.storage.conftest import Raw

BEGINNING = datetime(2030, 1, 1, tzinfo=UTC)
_INSTANTS = {
    "jobs": ("run_at", "started_at", "expires_at", "enqueued_at", "finished_at"),
    "servers": ("last_heartbeat",),
}
_HANDLES = 8


class HandClock:
    """A wall clock that goes when it is told to."""

    def __init__(self) -> None:
        self.instant = BEGINNING

    def now(self) -> datetime:
        return self.instant

    def monotonic(self) -> float:
        return time.monotonic()


class World:
    """The storage, opened once for each process that the model has, and its tables."""

    def __init__(self, url: str, raw: Raw, stack: ExitStack) -> None:
        self.clock = HandClock()
        self.audit = stack.enter_context(closing(Audit(url)))
        self._raw = raw
        self._url = url
        self._stack = stack
        self.audit.install()
        self._run = 0
        self.handles: list[Storage] = []
        self.begin()

    def begin(self) -> str:
        """Empty every table; a name for this run, which sets its ids apart from those before."""
        self._run += 1
        for table in ("attempts", "jobs", "servers", "workers"):
            self._raw.run(f"DELETE FROM {{{table}}}")
        self.audit.clear()
        self.clock.instant = BEGINNING
        if not self.handles:
            self.handles = [
                self._stack.enter_context(closing(open_storage(self._url, clock=self.clock)))
                for _ in range(_HANDLES)
            ]
        return f"run{self._run}"

    def step(self, hours: float) -> None:
        """The clock of the database steps."""
        by = timedelta(hours=hours)
        if self._raw.is_sqlite:
            self.clock.instant += by
            return
        for table, columns in _INSTANTS.items():
            moved = ", ".join(f"{column} = {column} - ?" for column in columns)
            self._raw.run(f"UPDATE {{{table}}} SET {moved}", *[by] * len(columns))

    def jobs(self) -> dict[str, Job]:
        """All rows, as the storage reads them."""
        page = self.handles[0].list_jobs(JobFilter(), limit=1000)
        assert page.next_cursor is None
        return {job.id: job for job in page.jobs}

    def owners(self) -> dict[str, tuple[Any, ...]]:
        """Of each row: who holds it, and whether its end was asked for."""
        rows = self._raw.run(
            "SELECT id, worker_id, server_id, cancel_reason IS NOT NULL, run_at IS NOT NULL, "
            "expires_at IS NOT NULL FROM {jobs}"
        )
        return {row[0]: (row[1], row[2], bool(row[3]), bool(row[4]), bool(row[5])) for row in rows}
