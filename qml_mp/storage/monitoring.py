"""Every process: what people and `--burst` read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

from qml_mp.core.job import Job, check_job_id
from qml_mp.core.outcome import Attempt
from qml_mp.core.state import StateName
from qml_mp.errors import ConfigurationError, InvalidJob
from qml_mp.storage.database import Part
from qml_mp.storage.job_rows import job_of
from qml_mp.storage.rows import attempt_of, state_name_of, text_of
from qml_mp.storage.storable import canonical_id
from qml_mp.storage.values import DueWork, FailureKind, JobFilter, JobPage, LaterWork, MethodStats, QueueStats

_ANY_JOB = JobFilter()
_FAILED_STATES = (StateName.FAILED, StateName.AWAITING_RETRY)
_BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)
_END_OF_TIME = datetime.max.replace(tzinfo=UTC)


class Monitoring(Part):
    """Reads for people and for `--burst`."""

    def list_jobs(self, where: JobFilter, *, limit: int = 50, after: str | None = None) -> JobPage:
        """Newest first (`created_at`, `id`); `after` is the `next_cursor` of the page before."""
        before_at, before_id = _read_cursor(after)
        which = {
            "before_at": before_at,
            "before_id": before_id,
            **where.values(),
            "limit": limit + 1,  # one more shows whether there is another page
        }
        query = self._db.queries.monitoring.list_jobs(where)
        found = self._read("listing jobs", query, job_of, which)
        jobs = tuple(found[:limit])
        return JobPage(jobs=jobs, next_cursor=_cursor_of(jobs[-1]) if len(found) > limit else None)

    def failure_kinds(self, where: JobFilter = _ANY_JOB, *, limit: int = 50) -> list[FailureKind]:
        """Failed jobs, and those that wait for a retry, by kind: the one with the most jobs first."""
        states = [state for state in where.each_state() if state in _FAILED_STATES]
        if not states:
            return []
        query = self._db.queries.monitoring.failure_kinds(replace(where, states=states))
        which = {**where.values(), "limit": limit}
        rows = self._db.read("grouping failures", query, which)
        return [
            FailureKind(
                count=row["jobs"],
                newest=job_of(row, self._db.instant),
                last_at=self._db.instant(row["last_at"]) or _BEGINNING,
            )
            for row in rows
        ]

    def job_counts(self) -> dict[StateName, int]:
        """Number of jobs in each of the seven states (0 included)."""
        rows = self._db.read("counting jobs", self._db.queries.monitoring.job_counts)
        return dict.fromkeys(StateName, 0) | {state_name_of(row["state"]): row["jobs"] for row in rows}

    def attempts(self, job_id: str) -> tuple[Attempt, ...]:
        """The attempts of the job that did not succeed, oldest first."""
        which = {"id": canonical_id(job_id)}
        query = self._db.queries.monitoring.attempts
        return tuple(self._read("reading a job's attempts", query, attempt_of, which))

    def queue_stats(self) -> list[QueueStats]:
        """Queues by name."""
        rows = self._db.read("reading the queues", self._db.queries.monitoring.queue_stats)
        return [
            QueueStats(
                name=text_of(row["queue"]),
                enqueued=row["enqueued"],
                processing=row["processing"],
                held=row["held"],
                oldest=self._between(row, "oldest_at", "now"),
            )
            for row in rows
        ]

    def method_stats(self, queues: Sequence[str] = (), *, among: int | None = None) -> list[MethodStats]:
        """Enqueued jobs of the queues (empty: all) by queue and method.

        With `among`, at most so many are counted of each method of a queue: its cost does then not grow with
        the backlog.
        """
        which = {"queues": list(queues), "among": among}
        rows = self._db.read("counting methods", self._db.queries.monitoring.method_stats, which)
        return [
            MethodStats(queue=text_of(row["queue"]), method=text_of(row["method"]), enqueued=row["enqueued"])
            for row in rows
        ]

    def due_work(
        self, queues: Sequence[str], *, methods: Sequence[str] | None = None, server_id: str | None = None
    ) -> DueWork:
        """What is left to run in the queues (empty: all) that are not paused; of these methods alone, unless
        they are None; of the Processing jobs those of this server alone, unless it is None."""
        which = {
            "queues": list(queues),
            "methods": None if methods is None else list(methods),
            "server_id": server_id,
        }
        row = self._db.read("counting what is left to run", self._db.queries.monitoring.due_work, which)[0]
        return DueWork(runnable=row["runnable"], waiting=row["waiting"])

    def later_work(self, queues: Sequence[str], *, methods: Sequence[str] | None = None) -> LaterWork:
        """What will be due in the queues (empty: all); of these methods alone, unless they are None."""
        which = {"queues": list(queues), "methods": None if methods is None else list(methods)}
        row = self._db.read("counting what will be due", self._db.queries.monitoring.later_work, which)[0]
        return LaterWork(count=row["jobs"], next_due_in=self._between(row, "now", "due_at"))


def _cursor_of(last: Job) -> str:
    """Where a page of a listing ended."""
    return f"{last.created_at.isoformat()}/{last.id}"


def _read_cursor(cursor: str | None) -> tuple[datetime, str]:
    """`created_at` and id before which the next page starts; without a cursor, the end of time.

    Raises `ConfigurationError` for text that no page gave.
    """
    if cursor is None:
        return _END_OF_TIME, ""
    created_at, _, job_id = cursor.partition("/")
    try:
        return datetime.fromisoformat(created_at).astimezone(UTC), check_job_id(job_id)
    except (ValueError, InvalidJob, OverflowError):
        raise ConfigurationError(
            f"{cursor[:80]!r} is not a place in a listing; pass the next_cursor of a page, or nothing."
        ) from None
