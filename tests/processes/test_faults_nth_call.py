"""Tests: somebody dies at the first, second, third … call of the storage, until none is left to die at."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from qml_mp.storage.store import Storage
from tests.audit import Audit
from tests.processes.journal import read_journal
from tests.processes.nth_call import FEW, MANY, Stage, play
from tests.processes.supervisors import Supervisors, supervisors

MOST_CALLS = 200


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


@pytest.mark.fault(2)
@pytest.mark.fault(3)
@pytest.mark.fault(5)
@pytest.mark.parametrize("side", ["call", "committed"])
@pytest.mark.parametrize("role", ["worker", "supervisor"])
@pytest.mark.parametrize("methods", [FEW, MANY], ids=["few", "many"])
def test_whoever_dies_at_whichever_call_of_the_storage_nothing_is_lost_or_run_twice_at_once(
    stage: Stage, role: str, side: str, methods: tuple[str, ...]
) -> None:
    # With many jobs a supervisor makes the same calls, more often: of these each third is enough, before it
    # others than after it.
    step = 3 if (role, methods) == ("supervisor", MANY) else 1
    first = 2 if (step, side) == (3, "committed") else 1
    for number in range(first, MOST_CALLS, step):
        faults = play(stage, f"{role}/storage.{side}=kill:{number}", methods)

        assert faults == [], f"{role}, {side} {number}"
        if not stage.mark.exists():
            break
    assert not stage.mark.exists(), "the scenario never came to its end unharmed"
    assert number > 5  # somebody did die
    if stage.storage.url.startswith("sqlite:"):
        with closing(sqlite3.connect(stage.storage.url.removeprefix("sqlite:///"))) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


@pytest.mark.fault(36)
@pytest.mark.fault(81)
@pytest.mark.parametrize("side", ["call", "committed"])
def test_a_worker_whose_storage_fails_at_whichever_call_loses_nothing_and_runs_nothing_again(
    stage: Stage, side: str
) -> None:
    for number in range(1, MOST_CALLS):
        faults = play(stage, f"worker/storage.{side}=raise:{number}", MANY)

        assert faults == [], f"{side} {number}"
        assert runs(stage) == len(MANY) + MANY.count("flaky")
        if not stage.mark.exists():
            break
    assert not stage.mark.exists(), "the scenario never came to its end unharmed"
    assert number > 5


@pytest.mark.fault(2)
@pytest.mark.fault(3)
@pytest.mark.fault(36)
@pytest.mark.parametrize("url", ["postgres"], indirect=True)
@pytest.mark.parametrize(
    ("place", "action"),
    [
        ("storage.call", "kill"),
        ("storage.call", "raise"),
        ("storage.committed", "raise"),
        ("exchange.received", "kill"),
    ],
)
def test_a_worker_that_claims_while_its_jobs_run_loses_nothing_at_whichever_call(
    stage: Stage, place: str, action: str
) -> None:
    stage = replace(stage, claims_while_jobs_run=True)
    for number in range(2, MOST_CALLS, 2):
        faults = play(stage, f"worker/{place}={action}:{number}", MANY)

        assert faults == [], f"{place} {number}"
        if not stage.mark.exists():
            break
    assert not stage.mark.exists(), "the scenario never came to its end unharmed"
    assert number > 2


@pytest.mark.fault(2)
@pytest.mark.fault(3)
@pytest.mark.parametrize("number", [1, 2, 3, 5, 9, 14])
@pytest.mark.parametrize(
    ("place", "runs_again"),
    [
        ("claims.committed", 0),
        ("tickets.written", 0),
        ("claim.committed", 0),
        ("job.returned", 1),
        ("outcome.recorded", 0),
        ("finish.before", 0),
        ("finish.committed", 0),
    ],
)
def test_a_worker_killed_at_whichever_place_of_a_batch_has_no_job_run_again_that_had_ended(
    stage: Stage, place: str, runs_again: int, number: int
) -> None:
    faults = play(stage, f"worker/{place}=kill:{number}", MANY)

    assert faults == []
    came_by = stage.mark.exists()
    assert runs(stage) == len(MANY) + MANY.count("flaky") + (runs_again if came_by else 0)
    assert came_by or number > 3


def runs(stage: Stage) -> int:
    """How many runs have begun."""
    return sum(line.what == "start" for line in read_journal(stage.journal))
