"""Tests: how the state machine acts on storage and model at once, and what it holds against both."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Generic, TypeVar

from hypothesis.stateful import RuleBasedStateMachine, invariant

from qml_mp.core.job import Claim
from qml_mp.core.outcome import AttemptKind, Outcome, Release
from qml_mp.core.server_info import ProcessIdentity, ServerInfo, WorkerInfo
from qml_mp.core.state import StateName
from qml_mp.errors import InvalidTransition, JobNotFound, StorageUnavailable
from qml_mp.storage.store import Storage
from qml_mp.storage.values import Fetch, Retention
from tests import failpoints
from tests.faults import faults_of_transitions
from tests.storage.model.model import FAILED_TTL_H, SUCCEEDED_TTL_H, Model, ModelJob
from tests.storage.model.world import World

_Result = TypeVar("_Result")

PROCESS = ProcessIdentity(host="h", pid=1, started_ticks=1)
KEEP = Retention(succeeded_ttl=timedelta(hours=SUCCEEDED_TTL_H), failed_ttl=timedelta(hours=FAILED_TTL_H))


class Lost:
    """In place of a reply."""


@dataclass(frozen=True, kw_only=True)
class Done(Generic[_Result]):
    """An operation that was answered, and what the model says the answer is."""

    got: _Result
    wanted: _Result


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a worker asks for: so many claims of these."""

    fetch: Fetch
    limit: int


Key = tuple[str, int]
Ends = tuple[tuple[Claim, Outcome], ...]


@dataclass(kw_only=True)
class WorkerView:
    """What one worker process knows."""

    id: str
    server: int
    storage: Storage
    held: list[Claim] = field(default_factory=list)
    """Claims whose outcome is open, and of which it has not been told that they were given back."""
    asked: Asked | None = None
    """Claims whose reply was lost: they may have been made, and may yet be."""
    told: Ends = ()
    """Outcomes that it has to write again: the reply was lost, or its supervisor has written them."""
    epoch: int = 0
    dead: bool = False

    @property
    def is_free(self) -> bool:
        return not self.dead and not self.held and self.asked is None and not self.told

    @property
    def has_claims(self) -> bool:
        return not self.dead and bool(self.held)

    @property
    def repeats(self) -> bool:
        return not self.dead and (self.asked is not None or bool(self.told))

    def drop(self, claims: Iterable[Claim]) -> None:
        """They are not this worker's to act on any more."""
        gone = {claim.key for claim in claims}
        self.held = [claim for claim in self.held if claim.key not in gone]

    def forget(self) -> None:
        self.held, self.asked, self.told, self.epoch = [], None, (), 0


class Acting(RuleBasedStateMachine):
    """The processes, and what each of them knows. Rules are in `machine`."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world
        self.name = world.begin()
        self.model = Model()
        self.incarnation = 0
        self.jobs: list[str] = []
        self.added = 0
        self.ghosts: list[tuple[WorkerView, Claim]] = []
        self.client = world.handles[0]
        self.supervisors = world.handles[1:3]
        self.server_ids = ["", ""]
        self.workers = [
            WorkerView(id=self.new_worker_id(), server=number % 2, storage=world.handles[3 + number])
            for number in range(4)
        ]
        self.settled: list[Fetch] = []
        """What workers have sent whose end is settled."""
        self.void: list[Asked] = []
        """What workers have sent before they raised their epoch."""
        for number in (0, 1):
            self.register(number)

    def do(
        self, fault: str | None, act: Callable[[], _Result], expect: Callable[[Model], _Result]
    ) -> Done[_Result] | Lost:
        """Act on storage and model. When the reply is lost, the storage must have done all of it or
        nothing, and the model follows."""
        before = copy.deepcopy(self.model) if fault else None
        wanted = expect(self.model)
        failpoints.arm(fault or "")
        try:
            return Done(got=act(), wanted=wanted)
        except StorageUnavailable:
            if before is None:
                raise
        finally:
            failpoints.arm("")
        assert before is not None
        seen = self._seen()
        if fault == "storage.call=raise:1" or seen != _drawn(self.model):
            assert seen == _drawn(before)
            self.model = before
        return Lost()

    def do_surely(
        self, fault: str | None, act: Callable[[], _Result], expect: Callable[[Model], _Result]
    ) -> Done[_Result]:
        """The same, repeated by the caller when the reply is lost."""
        done = self.do(fault, act, expect)
        if isinstance(done, Lost):
            done = self.do(None, act, expect)
        assert isinstance(done, Done)
        return done

    def fetch(self, worker: WorkerView, asked: Asked, fault: str | None) -> None:
        def act() -> list[Key]:
            worker.held = self.claim_now(worker.storage, asked)
            return keys_of(worker.held)

        done = self.do(fault, act, lambda model: _claimed(model, asked))

        if isinstance(done, Lost):
            worker.held, worker.asked = [], asked
        assert isinstance(done, Lost) or done.got == done.wanted

    def claim_now(self, storage: Storage, asked: Asked) -> list[Claim]:
        if asked.limit > 1:
            return list(storage.exchange((), fetch=asked.fetch, limit=asked.limit, retention=KEEP).claims)
        claim = storage.fetch_and_lock_job(asked.fetch)
        return [] if claim is None else [claim]

    def renew_epoch(self, worker: WorkerView, fault: str | None) -> None:
        """As a worker does after a lost reply, before it asks for another claim."""

        def expect(model: Model) -> tuple[int | None, set[tuple[str, int]]]:
            epoch = model.renew(worker.id)
            held = [] if epoch is None else model.held_by(worker.id)
            return epoch, {(job.id, job.claim_seq) for job in held}

        found: list[Claim] = []

        def act() -> tuple[int | None, set[tuple[str, int]]]:
            renewed = worker.storage.renew_epoch(worker.id)
            if renewed is None:
                return None, set()
            found.extend(renewed.claims)
            return renewed.epoch, {(claim.key.job_id, claim.key.claim_seq) for claim in found}

        done = self.do(fault, act, expect)
        if isinstance(done, Lost):
            return
        assert done.got == done.wanted
        if done.got[0] is None:  # it goes on when it is registered anew, under an epoch that is new too
            worker.epoch += 1
            return
        if worker.asked is not None:
            self.void.append(worker.asked)
        worker.asked, worker.epoch, worker.held = None, done.got[0], found

    def exchange(self, worker: WorkerView, ends: Ends, then: Asked | None, fault: str | None) -> None:
        """Write these outcomes, and claim what is asked for in the same commit."""

        def expect(model: Model) -> tuple[list[bool], list[Key]]:
            accepted = [model.finish(*_key_of(claim), outcome) for claim, outcome in ends]
            return accepted, [] if then is None else _claimed(model, then)

        claims: list[Claim] = []

        def act() -> tuple[list[bool], list[Key]]:
            fetch, limit = (None, 1) if then is None else (then.fetch, then.limit)
            done = worker.storage.exchange(ends, fetch=fetch, limit=limit, retention=KEEP)
            claims.extend(done.claims)
            return [finished.accepted for finished in done.finished], keys_of(claims)

        done = self.do(fault, act, expect)
        worker.drop(claim for claim, _ in ends)
        written = {claim.key for claim, _ in ends}
        others = tuple((claim, outcome) for claim, outcome in worker.told if claim.key not in written)
        if isinstance(done, Lost):
            worker.told, worker.asked = (*others, *ends), then or worker.asked
            return
        assert done.got == done.wanted
        worker.told = others
        worker.held += claims

    def give_back(self, worker: WorkerView, claims: list[Claim], fault: str | None) -> None:
        """As its supervisor does who has taken their tickets."""
        supervisor, keys = self.supervisors[worker.server], {claim.key for claim in claims}
        release = Release(reason="given back")

        def expect(model: Model) -> None:
            for key in keys:
                model.finish(key.job_id, key.claim_seq, release)

        def act() -> None:
            found = [claim for claim in supervisor.claims_of_worker(worker.id) if claim.key in keys]
            supervisor.exchange([(claim, release) for claim in found], fetch=None, limit=0, retention=KEEP)

        self.do_surely(fault, act, expect)
        worker.drop(claims)

    def write_for(self, worker: WorkerView, ends: Ends, fault: str | None) -> None:
        """As its supervisor does while the worker is in a long job; the worker writes them all the same."""
        supervisor = self.supervisors[worker.server]

        def expect(model: Model) -> list[bool]:
            return [model.finish(*_key_of(claim), outcome) for claim, outcome in ends]

        def act() -> list[bool]:
            done = supervisor.exchange(ends, fetch=None, limit=0, retention=KEEP)
            return [finished.accepted for finished in done.finished]

        done = self.do_surely(fault, act, expect)

        assert done.got == done.wanted
        worker.drop(claim for claim, _ in ends)
        worker.told += ends

    def replace(self, worker: WorkerView) -> None:
        """Another worker takes its place; what the old one held, it may yet act on."""
        self.ghosts += [(copy.copy(worker), claim) for claim in worker.held]
        self.settled.append(self.fetch_of(worker, ()))
        worker.id, worker.dead = self.new_worker_id(), False
        worker.forget()
        self.register_worker(worker)

    def by_hand(self, job_id: str, act: Callable[[], Any], expect: Callable[[Model, ModelJob], bool]) -> None:
        job = self.model.jobs.get(job_id)
        allowed = job is not None and expect(self.model, job)
        try:
            act()
        except JobNotFound:
            assert job is None
        except InvalidTransition:
            assert job is not None
            assert not allowed
        else:
            assert allowed

    def _seen(self) -> dict[str, tuple[object, ...]]:
        """The rows as `_drawn` gives those of the model."""
        owners = self.world.owners()
        attempts: dict[str, dict[int, AttemptKind]] = {}
        for (job_id, claim_seq), kind in self.world.audit.attempts().items():
            attempts.setdefault(job_id, {})[claim_seq] = kind
        return {
            job.id: (job.state_name, job.claim_seq, job.failures, job.crashes, *owners[job.id],
                     attempts.get(job.id, {}))
            for job in self.world.jobs().values()
        }  # fmt: skip

    def now(self) -> datetime:
        return self.client.now()

    def fetch_of(self, worker: WorkerView, queues: tuple[str, ...]) -> Fetch:
        server_id = self.server_ids[worker.server]
        return Fetch(
            worker_id=worker.id, server_id=server_id, queues=queues, registered=True, epoch=worker.epoch
        )

    def new_worker_id(self) -> str:
        self.incarnation += 1
        return f"{self.name}:worker:{self.incarnation}"

    def register(self, number: int) -> None:
        self.incarnation += 1
        server_id = self.server_ids[number] = f"{self.name}#{self.incarnation}"
        now = self.now()
        self.supervisors[number].register_server(
            ServerInfo(
                id=server_id, name=self.name, hostname="h", started_at=now, last_heartbeat=now,
                process=PROCESS, worker_count=2, queues=(), heartbeat_enabled=True,
            )
        )  # fmt: skip
        self.model.beats_h[server_id] = self.model.now_h
        for worker in self.workers:
            if worker.server == number:
                self.register_worker(worker)

    def register_worker(self, worker: WorkerView) -> None:
        """Done when its server has not been declared dead."""
        server_id = self.server_ids[worker.server]
        info = WorkerInfo(
            id=worker.id, server_id=server_id, number=1, process=PROCESS, started_at=self.now(),
            epoch=worker.epoch,
        )  # fmt: skip
        registered = worker.storage.register_worker(info)
        assert registered == (server_id in self.model.beats_h)
        if registered:
            kept = self.model.epochs[worker.id] if worker.id in self.model.workers else 0
            self.model.epochs[worker.id] = max(kept, worker.epoch)
            self.model.workers[worker.id] = server_id

    # What holds after every rule

    @invariant()
    def the_storage_is_as_the_model_says(self) -> None:
        assert self._seen() == _drawn(self.model)

    @invariant()
    def the_live_claims_are_those_of_the_model(self) -> None:
        live = {job.id: job for job in self.model.in_state(StateName.PROCESSING)}
        claims = self.client.claims()
        assert {claim.key.job_id: claim.key.claim_seq for claim in claims} == {
            job.id: job.claim_seq for job in live.values()
        }
        assert len(claims) == len(live)  # one each

    @invariant()
    def the_workers_are_those_of_the_model(self) -> None:
        found = {worker.id: worker.epoch for worker in self.client.list_workers()}
        assert found == {worker: self.model.epochs[worker] for worker in self.model.workers}

    def teardown(self) -> None:
        failpoints.arm("")
        log = self.world.audit.transitions()
        assert list(faults_of_transitions(log, self.world.audit.attempts())) == []
        ends = [one for one in log if one.old is StateName.PROCESSING]
        tally, live = self.model.tally, len(self.model.in_state(StateName.PROCESSING))
        assert sum(one.new is StateName.PROCESSING for one in log) == tally.claims
        assert len(ends) + live == tally.claims
        assert sum(one.failures for one in ends) == tally.failures
        assert sum(one.crashes for one in ends) == tally.crashes
        assert sum(one.new is StateName.SUCCEEDED for one in ends) == tally.succeeded
        assert tally.claims == (
            tally.succeeded + tally.failures + tally.crashes + tally.cancelled + tally.releases + live
        )


def keys_of(claims: Iterable[Claim]) -> list[Key]:
    return [_key_of(claim) for claim in claims]


def _key_of(claim: Claim) -> Key:
    return claim.key.job_id, claim.key.claim_seq


def _claimed(model: Model, asked: Asked) -> list[Key]:
    """What the model says that this claims."""
    fetch = asked.fetch
    jobs = model.claim(fetch.worker_id, fetch.server_id, fetch.queues, fetch.epoch, asked.limit)
    return [(job.id, job.claim_seq) for job in jobs]


def _drawn(model: Model) -> dict[str, tuple[object, ...]]:
    """The rows of the model, to be compared."""
    return {
        job.id: (job.state, job.claim_seq, job.failures, job.crashes, job.worker, job.server,
                 job.cancel_asked, job.due_h is not None, job.expires_h is not None, job.attempts)
        for job in model.jobs.values()
    }  # fmt: skip
