"""Every process: waiting for the ends of jobs.

Whoever ends a job tells those who wait for it, if there are any. It cannot know of one that has begun to wait
in the same moment, and other programs tell nobody: so a waiter looks again now and then.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import timedelta

from qml_mp.core.job import Job
from qml_mp.storage.database import Part
from qml_mp.storage.job_rows import job_of
from qml_mp.storage.storable import canonical_id
from qml_mp.storage.waiting import EndedWaker

_MOST_IDS = 1000
"""In one statement."""


class Waits(Part):
    """The ends of jobs, looked for and told."""

    def ended_jobs(self, job_ids: Collection[str]) -> dict[str, Job | None]:
        """Of these jobs those that have ended, by the id as given; None: there is no such job (any more).
        Each spelling of one id is answered."""
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
            for row in self._db.read("looking for ended jobs", self._db.queries.waits.ended, which):
                job = None if row["id"] is None else job_of(row, self._db.instant)
                ended.update(dict.fromkeys(as_given[row["asked_id"]], job))
        return ended

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
