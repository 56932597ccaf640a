"""Supervisor: what has come of claims since the start of this run, added up over all its workers.

Each claim is counted once: by the worker that ran it, when its end is written, whoever has written it; or
here, when a dead worker could not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from qml_mp.core.history import (
    MOST_NAMES,
    OTHER,
    RAN_AT,
    Ending,
    SeriesKey,
    numbers_of_one,
    waited_us,
)
from qml_mp.core.job import Claim
from qml_mp.core.state import StateName
from qml_mp.ipc.counts import CountsSeen, EndCounts
from qml_mp.storage.values import Finished


class EndTotals:
    """Only ever grows. Mutable; owned by the supervisor's one thread."""

    def __init__(self) -> None:
        self._numbers: dict[SeriesKey, list[int]] = {}
        self.ended = 0
        """How many claims that is, as of the newest look."""
        self._pairs: set[tuple[str, str]] = set()
        self._seen: dict[str, tuple[EndCounts, CountsSeen]] = {}
        """By worker."""

    @property
    def numbers(self) -> Mapping[SeriesKey, Sequence[int]]:
        """Those of a tally, as of the newest look, of at most `MOST_NAMES` pairs of a method and a queue, and
        of all others together as `OTHER`; not to be changed."""
        return MappingProxyType(self._numbers)

    def follow(self, worker_id: str, counts: EndCounts) -> None:
        """Read these from now on: a worker was forked that counts there."""
        self._seen[worker_id] = counts, CountsSeen.nothing()

    def look(self) -> None:
        """Take in what the workers have counted since the last time."""
        for counts, seen in self._seen.values():
            self._take_in(counts, seen)

    def part_from(self, worker_id: str) -> None:
        """Take in what this worker has counted, which is dead now."""
        counts, seen = self._seen.pop(worker_id)
        self._take_in(counts, seen)

    def add(self, *, method: str, queue: str, ending: Ending, waited_us: int, ran_us: int) -> None:
        """Count a claim in the name of a dead worker."""
        key = SeriesKey(method=method, queue=queue, ending=ending)
        self._add(key, numbers_of_one(waited_us=waited_us, ran_us=ran_us))

    def add_returned(self, claim: Claim, finished: Finished) -> None:
        """Count a claim that was given back before it began, if that has ended the job: somebody wanted it
        cancelled."""
        if finished.accepted and not finished.was_written and finished.state is StateName.DELETED:
            job = claim.job
            self.add(
                method=job.method,
                queue=job.queue,
                ending=Ending.CANCELLED,
                waited_us=waited_us(job),
                ran_us=0,
            )

    def _take_in(self, counts: EndCounts, seen: CountsSeen) -> None:
        for key, more in counts.read(seen):
            self._add(key, more)

    def _add(self, key: SeriesKey, more: Sequence[int]) -> None:
        self.ended += sum(more[RAN_AT:])
        pair = key.method, key.queue
        if pair not in self._pairs:
            if len(self._pairs) < MOST_NAMES:
                self._pairs.add(pair)
            else:
                key = SeriesKey(method=OTHER, queue=OTHER, ending=key.ending)
        before = self._numbers.get(key)
        self._numbers[key] = (
            list(more) if before is None else [a + b for a, b in zip(before, more, strict=True)]
        )
