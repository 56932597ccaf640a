"""Every process: what people and `--burst` read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from qml_mp.core.outcome import Attempt
from qml_mp.core.state import StateName
from qml_mp.errors import ConfigurationError
from qml_mp.storage.database import Operations, Values
from qml_mp.storage.job_rows import job_of
from qml_mp.storage.rows import attempt_of, optional_text_of, state_name_of, text_of
from qml_mp.storage.storable import canonical_id
from qml_mp.storage.values import (
    FAILED_STATES,
    FailureKind,
    JobFilter,
    LaterWork,
    MethodStats,
    QueueStats,
)

_ANY_JOB = JobFilter()
_BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)
_END_OF_TIME = datetime(9999, 12, 30, tzinfo=UTC)


class Monitoring(Operations):
    """Reads for people and for `--burst`."""

    def failure_kinds(
        self,
        where: JobFilter = _ANY_JOB,
        *,
        limit: int = 50,
        among: int | None = None,
        newest_first: bool = False,
    ) -> list[FailureKind]:
        """Failed jobs, and those that wait for a retry, by kind: the one with the most jobs first, or with
        `newest_first` that which came last; so, too, it is chosen which are given.

        With `among`, at most one more than so many are counted of each kind and state, in the index alone:
        what it costs does then not grow with the table. The filter may then restrict states, method, `since`
        and `until` alone; `ConfigurationError` otherwise.
        """
        states = [state for state in where.each_state() if state in FAILED_STATES]
        if not states:
            return []
        where = replace(where, states=states)
        which = {**where.values(), "limit": limit}
        which["newest_first"] = newest_first
        queries = self._db.queries.monitoring
        if among is None:
            rows = self._db.read("grouping failures", queries.failure_kinds(where), which)
        else:
            if not where.values().keys() <= {"method", "since", "until_time"}:
                raise ConfigurationError("Kinds are counted by state, method, since and until alone.")
            span = {"since": where.since or _BEGINNING, "until_time": where.until or _END_OF_TIME}
            query = queries.failure_kinds_among(where)
            rows = self._db.read("grouping failures", query, {**which, **span, "most": among + 1})
        return [
            FailureKind(
                count=row["jobs"],
                newest=job_of(row, self._db.instant),
                last_at=self._db.instant(row["last_at"]) or _BEGINNING,
                key=optional_text_of(row["kind"]),
            )
            for row in rows
        ]

    def job_counts(self, *, among: int | None = None) -> dict[StateName, int]:
        """Number of jobs in each of the seven states (0 included). With `among`, at most one more than so
        many are counted of each: what it costs does then not grow with the table."""
        queries = self._db.queries.monitoring
        if among is None:
            rows = self._db.read("counting jobs", queries.job_counts)
        else:
            rows = self._db.read("counting jobs", queries.job_counts_among, {"most": among + 1})
        return dict.fromkeys(StateName, 0) | {state_name_of(row["state"]): row["jobs"] for row in rows}

    def attempts(self, job_id: str, *, newest: int | None = None) -> tuple[Attempt, ...]:
        """The attempts of the job that did not succeed, or so many of the newest, oldest first."""
        which = {"id": canonical_id(job_id), "newest": newest}
        query = self._db.queries.monitoring.attempts
        return tuple(reversed(self._read("reading a job's attempts", query, attempt_of, which)))

    def queue_stats(self, *, among: int | None = None) -> list[QueueStats]:
        """Queues by name.

        With `among`, at most one more than so many jobs are counted of each queue. The oldest is that of the
        first of each method and priority by when they were created, which a retry does not change: of ten,
        and where a queue has few methods and priorities of up to a thousand; a thousand of these are looked
        at. Of queues that have nothing but jobs for later those are told that are among so many due next.
        What it costs does then not grow with the backlog, though with the number of queues.
        """
        queries = self._db.queries.monitoring
        if among is None:
            rows = self._db.read("reading the queues", queries.queue_stats)
        else:
            rows = self._db.read("reading the queues", queries.queue_stats_among, {"most": among + 1})
        return [
            QueueStats(
                name=text_of(row["queue"]),
                enqueued=row["enqueued"],
                processing=row["processing"],
                held=row["held"],
                oldest=self._between(row, "oldest_at", "now"),
                is_oldest_of_some=bool(row["has_more"]),
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

    def due_count(self, queues: Sequence[str], *, methods: Sequence[str] | None = None) -> int:
        """How many Scheduled and AwaitingRetry jobs are due by now in the queues (empty: all) that are not
        paused; of these methods alone, unless they are None."""
        query = self._db.queries.monitoring.due_count
        count: int = self._db.read("counting what is due", query, _due(queues, methods))[0]["jobs"]
        return count

    def has_due_work(
        self,
        queues: Sequence[str],
        *,
        methods: Sequence[str] | None = None,
        server_id: str | None = None,
        with_waiting: bool = True,
    ) -> bool:
        """Whether anything is left to run in the queues (empty: all): Enqueued jobs and, only `with_waiting`,
        those that are due, of these methods (None: of all) where the queue is not paused; and what this
        server runs (None: any server). However many there are, it ends with the first."""
        which = {**_due(queues, methods), "server_id": server_id, "with_waiting": with_waiting}
        query = self._db.queries.monitoring.has_due_work
        return bool(self._db.read("looking for what is left to run", query, which)[0]["found"])

    def later_work(
        self,
        queues: Sequence[str],
        *,
        methods: Sequence[str] | None = None,
        paused: bool = True,
        within: timedelta | None = None,
    ) -> LaterWork:
        """What will be due in the queues (empty: all), without `paused` in those alone that are not; of
        these methods alone, unless they are None. With `within` it is what will be due in so long, and its
        cost does not grow with what is due after that."""
        which = {
            "queues": list(queues),
            "methods": None if methods is None else list(methods),
            "paused": paused,
            "within": within,
        }
        row = self._db.read("counting what will be due", self._db.queries.monitoring.later_work, which)[0]
        return LaterWork(count=row["jobs"], next_due_in=self._between(row, "now", "due_at"))


def _due(queues: Sequence[str], methods: Sequence[str] | None) -> Values:
    return {"queues": list(queues), "methods": None if methods is None else list(methods)}
