"""Client and web process: the history as people are shown it: a range of time in periods, and what came
of jobs in each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import MappingProxyType

from qml_mp.core.history import Ending, Tally, sum_of
from qml_mp.storage.history import MINUTE, HistoryPoint, floor_to, step_of
from qml_mp.storage.store import Storage

SPANS: Mapping[str, timedelta] = MappingProxyType(
    {"1h": timedelta(hours=1), "24h": timedelta(hours=24), "7d": timedelta(days=7)}
)
"""The ranges that can be asked for."""
WITHOUT_SUCCESS = (Ending.FAILED, Ending.CRASHED, Ending.RETRIED)
_WRITTEN_WITHIN = timedelta(seconds=15)  # servers write every ten


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryView:
    """A range up to now."""

    step: timedelta
    points: Sequence[HistoryPoint]
    """One for each period of the range, also where nothing ended."""

    @property
    def total(self) -> Tally:
        return sum_of(point.total for point in self.points)

    def count(self, *endings: Ending) -> int:
        return sum(point.count(*endings) for point in self.points)


def view_history(storage: Storage, span: timedelta, *, queue: str | None, method: str | None) -> HistoryView:
    """The range of this length up to now; of a queue, a method, or a method in a queue alone."""
    now, step = storage.now(), step_of(span)
    until = floor_to(step, now) + step
    since = until - span
    found = storage.history(step, since=since, until=until, queue=queue, method=method)
    return HistoryView(step=step, points=_filled(found, since, until, step))


def ended_in_a_minute(storage: Storage) -> int | None:
    """How many jobs servers have seen end in the newest whole minute of which they have written; None: they
    have counted nothing there, as those do that keep no history."""
    until = floor_to(MINUTE, storage.now() - _WRITTEN_WITHIN)
    points = storage.history(MINUTE, since=until - MINUTE, until=until)
    endings = [ending for ending in Ending if ending.is_final]
    return sum(point.count(*endings) for point in points) if points else None


def _filled(
    points: Sequence[HistoryPoint], since: datetime, until: datetime, step: timedelta
) -> list[HistoryPoint]:
    there = {point.begins_at: point for point in points}
    instants = (since + number * step for number in range((until - since) // step))
    return [there.get(at) or HistoryPoint(begins_at=at) for at in instants]
