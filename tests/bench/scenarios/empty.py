"""Benchmark: empty jobs, of which as many wait as can be run."""

from __future__ import annotations

from tests.bench.ground import Ground
from tests.bench.scenario import Column, Metrics, Options, Ratio, Scenario, Target
from tests.bench.system import Backend, System
from tests.bench.throughput import drain

_FEWEST, _MOST = 500, 60_000


def jobs_for(system: System, seconds: float) -> int:
    """So many that a run takes about as long."""
    return min(_MOST, max(_FEWEST, int(system.usual_jobs_per_s * seconds)))


def _measure(ground: Ground, system: System, case: str, options: Options) -> Metrics:
    return drain(ground, system, workers=options.workers, jobs=jobs_for(system, options.seconds))


def _target(system: str, backend: Backend, over: str, at_least: float) -> Target:
    return Target(system=system, backend=backend, metric="jobs_per_s", case="", over=over, at_least=at_least)


SCENARIO = Scenario(
    name="empty",
    title="Empty jobs",
    cases=("",),
    measure=_measure,
    columns=(
        Column(metric="jobs_per_s", heading="jobs/s"),
        Column(metric="share", heading="busiest worker's share", digits=2),
        Column(metric="cpu_us", heading="CPU µs a job"),
        Column(metric="database_cpu_us", heading="PostgreSQL's"),
    ),
    ratios=(
        Ratio(heading="qml-mp ÷ it", metric="jobs_per_s", base="qml-mp", inverted=True),
        Ratio(heading="qml-mp-100 ÷ it", metric="jobs_per_s", base="qml-mp-100", inverted=True),
    ),
    targets=(
        _target("qml-mp-100", Backend.POSTGRES, "pgqueuer-100", 1.0),
        _target("qml-mp-100", Backend.POSTGRES, "oban-100", 2.7),
        _target("qml-mp-100", Backend.SQLITE, "huey", 8.0),
        *(
            _target(f"qml-mp{batch}", backend, f"statements{batch or '-10'}", 0.6)
            for backend in (Backend.POSTGRES, Backend.SQLITE)
            for batch in ("", "-100")
        ),
    ),
)
