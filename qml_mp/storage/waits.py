"""Every process: waiting for the ends of jobs.

Whoever ends a job tells those who wait for it, if there are any. It cannot know of one that has begun to wait
in the same moment, and other programs tell nobody: so a waiter looks again now and then.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import timedelta

from qml_mp.core.job import Job
from qml_mp.storage.database import Operations
from qml_mp.storage.job_rows import job_of
from qml_mp.storage.rows import int_of
from qml_mp.storage.storable import canonical_id
from qml_mp.storage.waiting import EndedWaker

_MOST_IDS = 1000
"""In one statement."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EndedJobs:
    """What a look for ended jobs has found."""

    jobs: dict[str, Job | None]
    """By the id as given; None: there is no such job (any more)."""
    is_all: bool
    """False: others have ended too, and the next look has some of them."""


class Waits(Operations):
    """The ends of jobs, looked for and told."""

    def ended_jobs(self, job_ids: Collection[str]) -> EndedJobs:
        """Of these jobs those that have ended. Each spelling of one id is answered.

        Results that are large together do not come at once, where that would take longer than a statement
        may: whoever wants the others asks again without those that have come."""
        as_given: dict[str, list[str]] = {}
        ended: dict[str, Job | None] = {}
        for job_id in job_ids:
            stored = canonical_id(job_id)
            if stored is None:  # no job can have it
                ended[job_id] = None
            else:
                as_given.setdefault(stored, []).append(job_id)
        asked = sorted(as_given)
        for start in range(0, len(asked), _MOST_IDS):
            which = {"ids": asked[start : start + _MOST_IDS]}
            rows = self._db.read("looking for ended jobs", self._db.queries.waits.ended, which)
            for row in rows:
                job = None if row["id"] is None else job_of(row, self._db.instant)
                ended.update(dict.fromkeys(as_given[row["asked_id"]], job))
            if rows and int_of(rows[0]["found"]) not in (None, len(rows)):
                return EndedJobs(jobs=ended, is_all=False)
        return EndedJobs(jobs=ended, is_all=True)

    def open_ended_waker(self) -> EndedWaker | None:
        """A source of wake-ups for who waits for the ends of jobs; None where there is none and polling must
        do. What it tells of are the waits that were begun."""
        return self._db.open_ended_waker()

    def begin_wait(self, waiter: str, job_ids: Collection[str], *, ttl: timedelta) -> None:
        """Have the ends of these jobs be told for so long; again: for so long from now on. `waiter` is a name
        that nobody else has."""
        begin = self._db.queries.waits.begin
        if begin is None or not job_ids:
            return
        # In one order, as two who wait for the same jobs. Lost with the machine, it is of no use any more.
        with self._db.transaction("beginning to wait", durable=False) as transaction:
            transaction.run(begin, {"waiter": waiter, "ids": _stored(job_ids), "ttl": ttl})

    def end_wait(self, waiter: str, job_ids: Collection[str]) -> None:
        """Have them not be told to this waiter any more; harmless when they were not."""
        end = self._db.queries.waits.end
        if end is None or not job_ids:
            return
        with self._db.transaction("ending a wait", durable=False) as transaction:
            transaction.run(end, {"waiter": waiter, "ids": _stored(job_ids)})


def _stored(job_ids: Collection[str]) -> list[str]:
    return sorted(filter(None, map(canonical_id, job_ids)))
