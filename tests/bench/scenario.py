"""Benchmark: what a scenario measures, and what came of it."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from tests.bench.ground import Ground
from tests.bench.system import Backend, System

Metrics = Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What was asked for at the command line."""

    workers: int
    seconds: float
    """How long a run should take on a system that is as fast as it was at first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A metric as the table shows it."""

    metric: str
    heading: str
    digits: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """How a metric of each system compares with that of one of them, in the same round."""

    heading: str
    metric: str
    base: str
    """Its name."""
    inverted: bool = False
    """False: of the system over the base; True: of the base over the system."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What the project wants of itself."""

    system: str
    backend: Backend
    metric: str
    case: str
    over: str | None = None
    """The metric is divided by that of this system, round by round; None: it stands for itself."""
    at_least: float | None = None
    at_most: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One kind of measurement, in one or more cases that differ by a number."""

    name: str
    title: str
    cases: Sequence[str]
    measure: Callable[[Ground, System, str, Options], Metrics]
    columns: Sequence[Column]
    fits: Callable[[System], bool] = lambda _: True
    ratios: Sequence[Ratio] = ()
    targets: Sequence[Target] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One run."""

    scenario: str
    case: str
    system: str
    backend: Backend
    round: int
    metrics: Metrics


@dataclass(kw_only=True, eq=False)
class Samples:
    """All of them, of one scenario or several."""

    items: list[Sample] = field(default_factory=list)

    def of(self, scenario: str, case: str, system: str, backend: Backend) -> list[Sample]:
        """In the order of the rounds. What lies in no database is compared on every backend."""
        return [
            one
            for one in self.items
            if (one.scenario, one.case, one.system) == (scenario, case, system)
            and one.backend in (backend, Backend.NONE)
        ]

    def median(self, samples: Sequence[Sample], metric: str) -> float | None:
        """None: there is none."""
        values = [one.metrics[metric] for one in samples if metric in one.metrics]
        return statistics.median(values) if values else None

    def ratio(self, samples: Sequence[Sample], base: Sequence[Sample], metric: str) -> float | None:
        """The median of the ratios of the same round."""
        by_round = {one.round: one.metrics.get(metric) for one in base}
        ratios = [
            one.metrics[metric] / of_base
            for one in samples
            if metric in one.metrics and (of_base := by_round.get(one.round))
        ]
        return statistics.median(ratios) if ratios else None
