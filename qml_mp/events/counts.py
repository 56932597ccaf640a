"""Supervisor: how often has happened what metrics count, since the start of the run."""

from __future__ import annotations

from collections import Counter

from qml_mp.core.history import MOST_NAMES, OTHER
from qml_mp.events.facts import ClaimLost, Event, TemplateFired, TryFailed, WorkerStopped


class EventCounts:
    """A subscriber; what it has counted only grows."""

    def __init__(self) -> None:
        self.deaths: Counter[str] = Counter()
        """Of workers, by cause."""
        self.storage_errors = 0
        """Tries that failed because of storage, and loops that it refused something."""
        self.lost_claims = 0
        self.firings: Counter[str] = Counter()
        """Of recurring templates, by method."""

    def count(self, event: Event) -> None:
        """Told of each fact."""
        match event:
            case WorkerStopped(cause=cause):
                self.deaths[cause] += 1
            case TryFailed():
                self.storage_errors += 1
            case ClaimLost():
                self.lost_claims += 1
            case TemplateFired(method=method):
                self.firings[within(self.firings, method)] += 1
            case _:
                pass


def within(counted: Counter[str], name: str) -> str:
    """The name to count under, of which there are not more and more: each is a series of whoever keeps
    metrics."""
    return name if name in counted or len(counted) < MOST_NAMES else OTHER
