"""Every process: what people and `--burst` read from PostgreSQL."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from qml_mp.core.outcome import Attempt
from qml_mp.core.state import StateName
from qml_mp.storage.postgres import sql_around
from qml_mp.storage.postgres.instants import from_column
from qml_mp.storage.postgres.part import Part, job_from
from qml_mp.storage.protocol import DueWork, JobFilter, JobPage, LaterWork, MethodStats, QueueStats
from qml_mp.storage.rows import attempt_of, cursor_of, method_stats_of, read_cursor, state_name_of
from qml_mp.storage.storable import canonical_id


class MonitoringPart(Part):
    """`Monitoring` of the protocol."""

    def list_jobs(self, where: JobFilter, *, limit: int = 50, after: str | None = None) -> JobPage:
        before_at, before_id = read_cursor(after)
        which = {
            "before_at": before_at,
            "before_id": before_id,
            "queue": where.queue,
            "method": where.method,
            "limit": limit + 1,  # one more shows whether there is another page
        }
        rows = self._database.read("listing jobs", sql_around.list_jobs(where.states), which)
        jobs = tuple(job_from(row) for row in rows[:limit])
        return JobPage(jobs=jobs, next_cursor=cursor_of(jobs[-1]) if len(rows) > limit else None)

    def job_counts(self) -> dict[StateName, int]:
        rows = self._database.read("counting jobs", sql_around.JOB_COUNTS)
        return dict.fromkeys(StateName, 0) | {state_name_of(row["state"]): row["jobs"] for row in rows}

    def attempts(self, job_id: str) -> tuple[Attempt, ...]:
        which = {"id": canonical_id(job_id)}
        rows = self._database.read("reading a job's attempts", sql_around.ATTEMPTS, which)
        return tuple(attempt_of(row, from_column) for row in rows)

    def queue_stats(self) -> list[QueueStats]:
        rows = self._database.read("reading the queues", sql_around.QUEUE_STATS)
        return [
            QueueStats(
                name=row["queue"],
                enqueued=row["enqueued"],
                processing=row["processing"],
                oldest=row["oldest"] if row["oldest"] is None else max(row["oldest"], timedelta()),
            )
            for row in rows
        ]

    def method_stats(self, queues: Sequence[str] = (), *, among: int | None = None) -> list[MethodStats]:
        which = {"queues": list(queues), "among": among}
        rows = self._database.read("counting methods", sql_around.METHOD_STATS, which)
        return [method_stats_of(row) for row in rows]

    def due_work(
        self, queues: Sequence[str], *, methods: Sequence[str] | None = None, server_id: str | None = None
    ) -> DueWork:
        which = {
            "queues": list(queues),
            "methods": None if methods is None else list(methods),
            "server_id": server_id,
        }
        row = self._database.read("counting what is left to run", sql_around.DUE_WORK, which)[0]
        return DueWork(runnable=row["runnable"], waiting=row["waiting"])

    def later_work(self, queues: Sequence[str]) -> LaterWork:
        which = {"queues": list(queues)}
        row = self._database.read("counting what will be due", sql_around.LATER_WORK, which)[0]
        return LaterWork(count=row["jobs"], next_due_in=row["next_due_in"])
