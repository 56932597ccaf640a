"""Tests of the storage: what a worker holds beside a long job goes back, whatever becomes of some of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from datetime import timedelta
from typing import Any

import pytest

from qml_mp.child.source import AppFacts, NamedProgram
from qml_mp.core.job import Claim, Job
from qml_mp.core.state import StateName
from qml_mp.errors import StorageUnavailable
from qml_mp.settings import ServerConfig
from qml_mp.storage.open import open_storage
from qml_mp.storage.store import Storage
from qml_mp.supervisor.loops.held_claims import HeldClaims
from qml_mp.supervisor.loops.returning import ReturnLoop
from qml_mp.supervisor.run import Run
from qml_mp.supervisor.workers.worker_process import WorkerProcess
from tests.storage.conftest import Raw
from tests.storage.helpers import KEEP, fetch, patient_url, present
from tests.unit.stand_ins import stand_in_of

HASTE = timedelta(seconds=1)
only_postgres = pytest.mark.parametrize("url", ["postgres"], indirect=True)  # SQLite locks no rows


@pytest.fixture
def hasty(url: str, storage: Storage, time_for_work: None) -> Iterator[Storage]:
    """As a supervisor has it, which does not wait for a lock for long."""
    storage.migrate()
    with closing(open_storage(patient_url(url), patience=HASTE)) as opened:
        yield opened


@pytest.fixture
def run(storage: Storage) -> Iterator[Run]:
    run = Run(ServerConfig(), NamedProgram(spec="an:app"), url=storage.url, facts=AppFacts())
    with closing(run.pool):
        yield run


@pytest.fixture
def worker(run: Run) -> Iterator[WorkerProcess]:
    with stand_in_of(run) as worker:
        yield worker


@pytest.fixture
def taken(storage: Storage, worker: WorkerProcess) -> Sequence[Claim]:
    """Claims of the worker whose tickets the supervisor has taken."""
    storage.enqueue_many(Job.new("work", {"n": number}) for number in range(5))
    claims = storage.exchange((), fetch=fetch(worker="w"), limit=5, retention=KEEP).claims
    worker.taken.update(claim.key for claim in claims)
    return claims


def waiting(storage: Storage, claims: Sequence[Claim]) -> list[int]:
    """The places of those that wait again."""
    return [
        place
        for place, claim in enumerate(claims)
        if present(storage, claim).state_name is StateName.ENQUEUED
    ]


@only_postgres
def test_a_row_that_somebody_has_locked_keeps_nothing_else_from_going_back(
    storage: Storage,
    hasty: Storage,
    raw: Raw,
    connect: Callable[[], Any],
    run: Run,
    worker: WorkerProcess,
    taken: Sequence[Claim],
) -> None:
    loop = ReturnLoop(run, held=HeldClaims(run))
    somebody = connect()
    somebody.execute(f"SELECT FROM {raw.name('jobs')} WHERE id = %s FOR UPDATE", [taken[2].job.id])

    with pytest.raises(StorageUnavailable):
        loop.tick(hasty)
    beside_it = waiting(storage, taken)
    somebody.rollback()
    loop.tick(hasty)

    assert beside_it == [0, 1, 3, 4]
    assert waiting(storage, taken) == [0, 1, 2, 3, 4]
    assert worker.taken == set()
