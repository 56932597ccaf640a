"""Benchmark: what is left of the speed while history, metrics and the page are on and somebody looks.

Runs with and without them take turns, and the machine's other work hits both. History is written every ten
seconds, so that `--seconds` should be more.
"""

from __future__ import annotations

import statistics
from dataclasses import replace

from tests.bench.ground import Drained, Ground, RunFailed
from tests.bench.scenario import Column, Metrics, Options, Scenario, Target
from tests.bench.system import Backend, System, program
from tests.bench.systems.qml import QmlMp, url_of
from tests.bench.throughput import MOST_JOBS
from tests.bench.watch import TooShort
from tests.bench.window import pause

_FEWEST = 2000
_TURNS = (False, True, True, False)


def _measure(ground: Ground, system: System, case: str, options: Options) -> Metrics:
    assert isinstance(system, QmlMp)
    jobs = max(_FEWEST, int(system.usual_jobs_per_s * options.seconds))
    drained = [
        (is_watched, _drain(ground, replace(system, is_watched=is_watched), jobs, options.workers))
        for is_watched in _TURNS
    ]
    metrics = {}
    for is_watched, name in ((True, "with"), (False, "without")):
        runs = [each for was_watched, each in drained if was_watched is is_watched]
        metrics[name] = statistics.mean(each.timing.jobs_per_s for each in runs)
        metrics[f"cpu_us_{name}"] = statistics.mean(each.cpu_us or 0.0 for each in runs)
    return {**metrics, "kept": metrics["with"] / metrics["without"]}


def _drain(ground: Ground, system: QmlMp, jobs: int, workers: int) -> Drained:
    """Again with more jobs when they are over too soon."""
    try:
        return _drain_once(ground, system, jobs, workers)
    except TooShort:
        if jobs >= MOST_JOBS:
            raise
        return _drain(ground, system, 4 * jobs, workers)


def _drain_once(ground: Ground, system: QmlMp, jobs: int, workers: int) -> Drained:
    with ground.run(system, workers=workers) as run:
        run.enqueue(jobs)
        run.settle()
        url = url_of(system.backend, run.place)
        pause(url)
        window = run.start(program("tests.bench.window", "look", url, *["page"] * bool(system.is_watched)))
        drained = run.drain(jobs)
        if system.is_watched and not window.is_running():
            raise RunFailed(f"The page was not read. {run.log()}")
    return drained


SCENARIO = Scenario(
    name="history",
    title="Empty jobs with history, metrics and the page, which is read four times a second, and without",
    cases=("",),
    fits=lambda system: isinstance(system, QmlMp) and system.batch is None,
    measure=_measure,
    columns=(
        Column(metric="with", heading="jobs/s with"),
        Column(metric="without", heading="without"),
        Column(metric="kept", heading="with ÷ without", digits=3),
        Column(metric="cpu_us_with", heading="CPU µs a job with", digits=1),
        Column(metric="cpu_us_without", heading="without", digits=1),
    ),
    targets=tuple(
        Target(system="qml-mp", backend=backend, metric="kept", case="", at_least=0.97)
        for backend in (Backend.POSTGRES, Backend.SQLITE)
    ),
)
