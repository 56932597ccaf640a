"""Tests: somebody dies, or fails, at every single call of the storage, and at the places of a batch one after
the other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product

from tests.soak.ground import fresh_ground
from tests.soak.nth_call import (
    BATCH_NUMBERS,
    BATCH_PLACES,
    CLAIMING_POINTS,
    FEW,
    MANY,
    Stage,
    least_runs,
    play,
    play_each,
    runs,
)
from tests.soak.report import Row
from tests.soak.scenario import Task
from tests.soak.supervisors import Supervisors, supervisors


@dataclass(frozen=True, slots=True, kw_only=True)
class _Series:
    """A failpoint that strikes at its first time, its second one, and so on."""

    point: str
    methods: tuple[str, ...]
    numbers: tuple[int, ...] | None = None
    """These alone, of which some may come after the end; None: all, until nothing strikes."""
    sure: int = 5
    """Up to this number it strikes in any case."""
    more_runs: int | None = None
    """How many runs more than without a fault there are when it has struck; None: as many as it takes."""
    claims_while_jobs_run: bool = False


@dataclass(kw_only=True, eq=False)
class _Tally:
    """Of all series."""

    plays: int = 0
    strikes: int = 0
    broken: list[str] = field(default_factory=list)


def run_calls(task: Task) -> Row:
    """The count is of the rounds, each of which is all there is; nothing in it is left to chance."""
    tally, done = _Tally(), 0
    with supervisors() as source:
        for _ in task.turns(task.count):
            for series in _all_series(task.backend):
                _play_series(task, source, series, tally)
                if task.time_is_up:
                    break
            else:
                done += 1
    return task.row(
        done=done,
        kills=tally.strikes,
        figures=f"{tally.plays} plays, {tally.strikes} of them with a death or a failure",
        broken=tuple(tally.broken),
    )


def _all_series(backend: str) -> Iterator[_Series]:
    for methods, role, side in product((FEW, MANY), ("worker", "supervisor"), ("call", "committed")):
        yield _Series(point=f"{role}/storage.{side}=kill", methods=methods)
    for side in ("call", "committed"):
        yield _Series(point=f"worker/storage.{side}=raise", methods=MANY, more_runs=0)
    for place, more_runs in BATCH_PLACES.items():
        yield _Series(
            point=f"worker/{place}=kill", methods=MANY, numbers=BATCH_NUMBERS, sure=3, more_runs=more_runs
        )
    if backend == "postgres":
        for place, action in CLAIMING_POINTS:
            yield _Series(point=f"worker/{place}={action}", methods=MANY, sure=2, claims_while_jobs_run=True)


def _play_series(task: Task, source: Supervisors, series: _Series, tally: _Tally) -> None:
    """On a storage of its own, until its end or that of the time."""
    with fresh_ground(task.backend, task.postgres_url, seed=task.seed) as ground:
        stage = Stage(
            storage=ground.storage, audit=ground.audit, folder=ground.folder, supervisors=source,
            claims_while_jobs_run=series.claims_while_jobs_run,
        )  # fmt: skip
        for number, faults in _plays(stage, series):
            has_struck = stage.mark.exists()
            tally.plays, tally.strikes = tally.plays + 1, tally.strikes + has_struck
            faults += [] if has_struck or number > series.sure else ["nothing has struck"]
            faults += _faults_of_runs(stage, series, has_struck=has_struck)
            tally.broken += [
                f"{series.point}:{number}, {len(series.methods)} jobs: {each}" for each in faults
            ]
            if task.time_is_up:
                break
        if (found := ground.audit.integrity()) != "ok":
            tally.broken.append(f"integrity_check after {series.point}: {found}")


def _plays(stage: Stage, series: _Series) -> Iterator[tuple[int, list[str]]]:
    if series.numbers is None:
        return play_each(stage, series.point, series.methods)
    return ((each, play(stage, f"{series.point}:{each}", series.methods)) for each in series.numbers)


def _faults_of_runs(stage: Stage, series: _Series, *, has_struck: bool) -> list[str]:
    if series.more_runs is None:
        return []
    begun, wanted = runs(stage), least_runs(series.methods) + series.more_runs * has_struck
    return [] if begun == wanted else [f"{begun} runs have begun, not {wanted}"]
