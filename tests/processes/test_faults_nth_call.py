"""Tests: somebody dies at the first, second, third … call of the storage, until none is left to die at."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from qml_mp.storage.store import Storage
from tests.audit import Audit
from tests.processes.nth_call import (
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
from tests.processes.supervisors import Supervisors, supervisors


@pytest.fixture(scope="session")
def supervisor_source() -> Iterator[Supervisors]:
    """Where supervisors come from, for all tests of this run."""
    with supervisors() as one:
        yield one


@pytest.fixture
def stage(storage: Storage, tmp_path: Path, supervisor_source: Supervisors) -> Iterator[Stage]:
    storage.migrate()
    with closing(Audit(storage.url)) as audit:
        audit.install()
        yield Stage(storage=storage, audit=audit, folder=tmp_path, supervisors=supervisor_source)


@pytest.mark.nightly
@pytest.mark.fault(2)
@pytest.mark.fault(3)
@pytest.mark.fault(5)
@pytest.mark.parametrize("url", ["sqlite", "postgres"], indirect=True)
@pytest.mark.parametrize("side", ["call", "committed"])
@pytest.mark.parametrize("role", ["worker", "supervisor"])
@pytest.mark.parametrize("methods", [FEW, MANY], ids=["few", "many"])
def test_whoever_dies_at_whichever_call_of_the_storage_nothing_is_lost_or_run_twice_at_once(
    stage: Stage, role: str, side: str, methods: tuple[str, ...]
) -> None:
    for number, faults in play_each(stage, f"{role}/storage.{side}=kill", methods):
        assert faults == [], f"{role}, {side} {number}"

    assert not stage.mark.exists()
    assert number > 5  # somebody did die
    assert stage.audit.integrity() == "ok"


@pytest.mark.nightly
@pytest.mark.fault(36)
@pytest.mark.fault(81)
@pytest.mark.parametrize("side", ["call", "committed"])
def test_a_worker_whose_storage_fails_at_whichever_call_loses_nothing_and_runs_nothing_again(
    stage: Stage, side: str
) -> None:
    for number, faults in play_each(stage, f"worker/storage.{side}=raise", MANY):
        assert faults == [], f"{side} {number}"
        assert runs(stage) == least_runs(MANY)

    assert not stage.mark.exists()
    assert number > 5


@pytest.mark.nightly
@pytest.mark.fault(2)
@pytest.mark.fault(3)
@pytest.mark.fault(36)
@pytest.mark.parametrize("url", ["postgres"], indirect=True)
@pytest.mark.parametrize(("place", "action"), CLAIMING_POINTS)
def test_a_worker_that_claims_while_its_jobs_run_loses_nothing_at_whichever_call(
    stage: Stage, place: str, action: str
) -> None:
    stage = replace(stage, claims_while_jobs_run=True)
    for number, faults in play_each(stage, f"worker/{place}={action}", MANY):
        assert faults == [], f"{place} {number}"

    assert not stage.mark.exists()
    assert number > 2


@pytest.mark.fault(2)
@pytest.mark.fault(3)
@pytest.mark.parametrize(("place", "runs_again"), BATCH_PLACES.items())
def test_a_worker_killed_at_whichever_place_of_a_batch_has_no_job_run_again_that_had_ended(
    stage: Stage, place: str, runs_again: int
) -> None:
    for number in BATCH_NUMBERS:
        faults = play(stage, f"worker/{place}=kill:{number}", MANY)

        assert faults == [], f"{place} {number}"
        came_by = stage.mark.exists()
        assert runs(stage) == least_runs(MANY) + (runs_again if came_by else 0), f"{place} {number}"
        assert came_by or number > 3
