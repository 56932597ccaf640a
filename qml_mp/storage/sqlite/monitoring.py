"""Every process: what people and `--burst` read from SQLite."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import timedelta

from qml_mp.core.outcome import Attempt
from qml_mp.core.state import StateName
from qml_mp.storage.protocol import DueWork, JobFilter, JobPage, LaterWork, MethodStats, QueueStats
from qml_mp.storage.rows import attempt_of, cursor_of, job_of, method_stats_of, read_cursor, state_name_of
from qml_mp.storage.sqlite import sql
from qml_mp.storage.sqlite.instants import from_us, to_us
from qml_mp.storage.sqlite.part import Part
from qml_mp.storage.storable import canonical_id


class MonitoringPart(Part):
    """`Monitoring` of the protocol."""

    def list_jobs(self, where: JobFilter, *, limit: int = 50, after: str | None = None) -> JobPage:
        before_at, before_id = read_cursor(after)
        which = {
            "before_at": to_us(before_at),
            "before_id": before_id,
            "queue": where.queue,
            "method": where.method,
            "limit": limit + 1,  # one more shows whether there is another page
        }
        with self._database.read() as connection:
            rows = connection.execute(sql.list_jobs(where.states), which).fetchall()
        jobs = tuple(job_of(row, from_us) for row in rows[:limit])
        return JobPage(jobs=jobs, next_cursor=cursor_of(jobs[-1]) if len(rows) > limit else None)

    def job_counts(self) -> dict[StateName, int]:
        with self._database.read() as connection:
            rows = connection.execute(sql.JOB_COUNTS).fetchall()
        return dict.fromkeys(StateName, 0) | {state_name_of(row["state"]): row["jobs"] for row in rows}

    def attempts(self, job_id: str) -> tuple[Attempt, ...]:
        with self._database.read() as connection:
            rows = connection.execute(sql.ATTEMPTS, {"id": canonical_id(job_id)}).fetchall()
        return tuple(attempt_of(row, from_us) for row in rows)

    def queue_stats(self) -> list[QueueStats]:
        with self._database.read() as connection:
            rows = connection.execute(sql.QUEUE_STATS).fetchall()
        return [
            QueueStats(
                name=str(row["queue"]),
                enqueued=row["enqueued"],
                processing=row["processing"],
                oldest=self._age(row["oldest_at"]),
            )
            for row in rows
        ]

    def method_stats(self, queues: Sequence[str] = (), *, among: int | None = None) -> list[MethodStats]:
        which = {**self._served(queues), "among": -1 if among is None else among}
        with self._database.read() as connection:
            rows = connection.execute(sql.METHOD_STATS, which).fetchall()
        return [method_stats_of(row) for row in rows]

    def due_work(
        self, queues: Sequence[str], *, methods: Sequence[str] | None = None, server_id: str | None = None
    ) -> DueWork:
        which = {
            **self._served(queues),
            "any_method": methods is None,
            "methods": json.dumps(list(methods or ())),
            "server_id": server_id,
        }
        with self._database.read() as connection:
            row = connection.execute(sql.DUE_WORK, which).fetchone()
        return DueWork(runnable=row["runnable"], waiting=row["waiting"])

    def later_work(self, queues: Sequence[str]) -> LaterWork:
        with self._database.read() as connection:
            row = connection.execute(sql.LATER_WORK, self._served(queues)).fetchone()
        due_at = from_us(row["due_at"])
        return LaterWork(count=row["jobs"], next_due_in=None if due_at is None else due_at - self.now())

    def _served(self, queues: Sequence[str]) -> dict[str, object]:
        return {"all": not queues, "queues": json.dumps(list(queues)), "now": self._now_us()}

    def _age(self, since_us: int | None) -> timedelta | None:
        since = from_us(since_us)
        return None if since is None else max(self.now() - since, timedelta())
