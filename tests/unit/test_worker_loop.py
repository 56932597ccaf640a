"""Tests: what a worker claims with its outcomes, by how long jobs take. The clock moves as a test says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

import qml_mp.child.held
import qml_mp.child.loop
import qml_mp.child.outcomes
from qml_mp.child.claims import Claims
from qml_mp.child.exits import WorkerExit
from qml_mp.child.held import Held
from qml_mp.child.loop import WorkerLoop
from qml_mp.child.outcomes import Outcomes
from qml_mp.child.runner import NOT_BEGUN
from qml_mp.core.job import Claim, ClaimKey, Job
from qml_mp.core.outcome import Outcome, Success
from qml_mp.core.state import StateName
from qml_mp.errors import StorageUnavailable
from qml_mp.events.emitter import new_emitter
from qml_mp.ipc.ended import EndedTable
from qml_mp.ipc.slot import SlotTable
from qml_mp.ipc.tickets import TicketPipe
from qml_mp.processing.program import Execution
from qml_mp.settings import ServerConfig
from qml_mp.storage.open import open_storage
from qml_mp.storage.store import Storage
from qml_mp.storage.values import Exchanged, Fetch, Retention
from tests.storage.claimer import FETCH, register, worker
from tests.storage.helpers import KEEP
from tests.unit.test_unwritten_outcomes import TERMS

JOB_S = 0.0029
"""As what is held is to be worth 45 ms, so long a job makes it 15 at a time."""
BATCH = 15
JOBS = 200


class Recorder:
    """The storage, which notes the exchanges, and can lose the reply to one after its commit."""

    can_send_exchange = False

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self.exchanges: list[tuple[int, int]] = []
        """How many outcomes each had, and how many jobs it asked for."""
        self.loses_reply_to: tuple[int, int] | None = None
        self.most_that_come: int | None = None
        """More jobs than these at a time never come within the time for a reply."""
        self.failed: list[int] = []
        """How many jobs each exchange asked for that failed for it."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)

    def exchange(
        self,
        finished: Sequence[tuple[Claim, Outcome]],
        *,
        fetch: Fetch | None,
        limit: int,
        retention: Retention,
    ) -> Exchanged:
        if self.most_that_come is not None and limit > self.most_that_come:
            self.failed.append(limit)
            raise StorageUnavailable("the reply does not come in time")
        done = self._storage.exchange(finished, fetch=fetch, limit=limit, retention=retention)
        self.exchanges.append((len(finished), limit))
        if self.exchanges[-1] == self.loses_reply_to:
            self.loses_reply_to = None
            raise StorageUnavailable("the reply is lost")
        return done


@dataclass(kw_only=True)
class Around:
    """What is around the loop but storage: jobs that take their time, and nobody who wants anything."""

    now: float = 1000.0
    between_s: float = 0.0
    """From the end of a job to the next one, while others have the processor."""
    ran: list[ClaimKey] = field(default_factory=list)
    spoiled: str | None = None
    wants_to_call: bool = False
    calls_in_s: float = 60.0
    paused: bool = False
    orphaned: bool = False
    doubted: bool = False
    takes_long: bool = False
    """The hook."""
    has_hook: bool = False
    tickets: TicketPipe = field(default_factory=TicketPipe)

    @property
    def leaving(self) -> bool:
        return len(self.ran) >= JOBS

    def resolve(self, claim: Claim) -> Execution:
        return Execution(claim=claim, terms=TERMS)

    def run(self, execution: Execution) -> Outcome:
        self.ran.append(execution.claim.key)
        self.now += JOB_S
        return Success(result=None, duration=timedelta(seconds=JOB_S))

    def give_back(self, _: Execution) -> Outcome:
        return NOT_BEGUN

    def finishing(self) -> None:
        self.now += self.between_s

    def take_doubt(self) -> bool:
        return False

    def __getattr__(self, name: str) -> Any:
        if name not in {
            *("catch_up", "end_attempt", "look", "look_now_and_then", "wait", "fetching", "idle"),
            *("finished", "before_storage", "check_transaction"),
        }:
            raise AttributeError(name)
        return lambda *_, **__: None


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[Recorder]:
    with closing(open_storage(f"sqlite:///{tmp_path}/jobs.db")) as real:
        register(real)
        real.enqueue_many(Job.new("m") for _ in range(JOBS + BATCH))
        yield Recorder(real)


def run(storage: Recorder, around: Around, monkeypatch: pytest.MonkeyPatch, *, most_held: int = 100) -> None:
    """Let a worker run the jobs."""
    around_it, tickets, slots = cast(Any, around), around.tickets, SlotTable(1)
    held = Held(tickets, slot=slots.writer(0), has_hook=around.has_hook)
    shared = EndedTable(1).region(0)
    claims = Claims(
        cast(Any, storage),
        fetch=FETCH,
        info=worker(),
        held=held,
        shared=shared,
        commands=around_it,
        events=new_emitter(),
    )
    outcomes = Outcomes(claims, shared=shared, changes=around_it, commands=around_it, hygiene=around_it)
    loop = WorkerLoop(
        claims=claims,
        held=held,
        runner=around_it,
        outcomes=outcomes,
        commands=around_it,
        display=around_it,
        config=ServerConfig(fetch_batch_size=most_held),
    )
    for module in (qml_mp.child.loop, qml_mp.child.outcomes, qml_mp.child.held):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: around.now))
    assert loop.run() is WorkerExit.LEFT
    tickets.close()


def test_one_exchange_writes_a_batch_and_claims_the_next(
    storage: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(storage, Around(), monkeypatch)

    assert storage.exchanges[:8] == [(0, 1), (1, 2), (2, 4), (4, 8), (8, BATCH), *[(BATCH, BATCH)] * 3]


def test_outcomes_that_cannot_wait_for_the_last_jobs_of_a_batch_claim_the_next_one(
    storage: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(storage, Around(between_s=0.001), monkeypatch)

    steady = storage.exchanges[5:-1]
    assert len(steady) > 10
    assert set(steady) == {(13, 13)}


def test_two_jobs_are_few_in_a_small_batch_too(storage: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    run(storage, Around(between_s=0.011), monkeypatch, most_held=6)

    steady = storage.exchanges[5:-1]
    assert len(steady) > 10
    assert set(steady) == {(4, 4)}


def test_outcomes_that_cannot_wait_are_written_alone_while_many_jobs_are_left(
    storage: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(storage, Around(between_s=0.003), monkeypatch)

    assert storage.exchanges[5:9] == [(9, 0), (6, BATCH), (9, 0), (6, BATCH)]


def test_what_a_lost_reply_has_brought_does_not_wait_for_the_jobs_that_were_left(
    storage: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.loses_reply_to = (13, 13)
    around = Around(between_s=0.001)

    run(storage, around, monkeypatch)

    lost = storage.exchanges.index((13, 13))
    # Those outcomes again, then the two that were left go back, and what was claimed is found.
    assert storage.exchanges[lost : lost + 3] == [(13, 13), (13, 0), (2, 0)]
    begun = {key.job_id: key.claim_seq for key in around.ran}
    assert len(begun) == len(around.ran) == JOBS
    assert sorted(begun.values())[-2:] == [2, 2]
    assert sum(begun.values()) == JOBS + 2
    counts = storage.job_counts()
    assert (counts[StateName.SUCCEEDED], counts[StateName.PROCESSING]) == (JOBS, 0)


def test_a_worker_whose_claim_failed_asks_for_one_job_and_not_for_as_many_for_ever(
    storage: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Meeting(Around):
        """From the fiftieth job on, no more than two come in time."""

        def run(self, execution: Execution) -> Outcome:
            if len(self.ran) == 50:
                storage.most_that_come = 2
            return super().run(execution)

        def wait(self, _: float) -> None:
            assert len(storage.failed) < 1000, "no progress"

    run(storage, Meeting(), monkeypatch)

    # The outcomes were written without a claim, and the next claim failed by itself.
    assert storage.failed[:2] == [BATCH, BATCH]
    assert storage.exchanges[storage.exchanges.index((BATCH, 0)) + 1] == (0, 1)


class Telling(Around):
    """Its hook notes whether anything that is held meanwhile is out of the reach of the supervisor, which
    takes all that it can."""

    def __init__(self, storage: Recorder) -> None:
        super().__init__(has_hook=True)
        self._storage = storage
        self.kept: list[ClaimKey] = []

    def finished(self, *_: object, **__: object) -> None:
        taken = self.tickets.take_all()
        held = self._storage.claims_of_worker(FETCH.worker_id)
        self.kept += [claim.key for claim in held if claim.key not in taken]
        for claim in held:
            if claim.key in taken:
                self._storage.finish(claim, NOT_BEGUN, retention=KEEP)


def test_while_a_hook_is_told_of_what_has_ended_all_that_is_held_can_go_to_others(
    storage: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    around = Telling(storage)

    run(storage, around, monkeypatch)

    assert around.kept == []
    assert len(set(around.ran)) == JOBS


def test_beside_a_hook_that_takes_long_no_job_is_claimed_before_it_was_told(
    storage: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(storage, Around(has_hook=True, takes_long=True), monkeypatch)

    with_outcomes = [limit for count, limit in storage.exchanges if count]
    assert set(with_outcomes) == {0}
