"""Tests: the state machine: supervisors and workers act on one storage, and the model says what must come of it.

A worker that is not heard of for a while is one whose next rule comes late: it then acts on a claim
that others may have taken from it. Any operation may fail before its commit or after it; the caller
then repeats it, or dies.
"""

from __future__ import annotations

import copy
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from qml_mp import failpoints
from qml_mp.core.job import Claim, Job
from qml_mp.core.outcome import (
    AttemptKind,
    Cancelled,
    Crash,
    ErrorInfo,
    Failure,
    Outcome,
    ProcessFacts,
    Release,
    Retry,
    Success,
)
from qml_mp.core.server_info import ProcessIdentity, ServerInfo
from qml_mp.core.state import StateName
from qml_mp.errors import InvalidTransition, JobNotFound, StorageUnavailable
from qml_mp.processing.cancel import CancelReason
from qml_mp.storage.protocol import CancelResult, Fetch, Finished, Retention, Storage
from qml_mp.supervisor.settle import Death, settle
from tests.storage.model.model import FAILED_TTL_H, SUCCEEDED_TTL_H, Model, ModelJob
from tests.storage.model.transition_log import faults_of
from tests.storage.model.world import World

_Result = TypeVar("_Result")

NO = ErrorInfo(type="ValueError", message="no")
MAX_CRASHES = 2
KEEP = Retention(
    succeeded_ttl=timedelta(hours=SUCCEEDED_TTL_H), failed_ttl=timedelta(hours=FAILED_TTL_H)
)
OUTCOMES: tuple[Outcome, ...] = (
    Success(result={"ok": True}, duration=timedelta(seconds=1)),
    Retry(error=NO, delay=timedelta(hours=1)),
    Retry(error=NO, delay=timedelta(0), kind=AttemptKind.TIMEOUT),
    Failure(error=NO),
    Cancelled(reason="not wanted"),
    Release(reason="shutdown"),
    Crash(error=NO, rerun_after=timedelta(0)),
    Crash(error=NO, rerun_after=timedelta(hours=1)),
    Crash(error=NO, rerun_after=None),
)
KILLED_FOR = (None, CancelReason.SHUTDOWN, CancelReason.CANCELLED, CancelReason.TIMEOUT)

outcomes = st.sampled_from(OUTCOMES)
queue_sets = st.sampled_from([(), ("a",), ("b",), ("b", "a")])
workers = st.integers(0, 3)
servers = st.integers(0, 1)
# Which storage call of an operation fails, and on which side of its commit; mostly none does.
faults = st.sampled_from(
    [None] * 4 + ["storage.call=raise:1", "storage.committed=raise:1", "storage.committed=raise:2",
     "storage.call=raise:2"]
)  # fmt: skip


class Lost:
    """In place of a reply."""


@dataclass(kw_only=True)
class WorkerView:
    """What one worker process knows."""

    id: str
    server: int
    storage: Storage
    claim: Claim | None = None
    asked: Fetch | None = None
    """A claim whose reply was lost."""
    told: tuple[Claim, Outcome, Fetch | None] | None = None
    """An outcome whose reply was lost."""
    dead: bool = False

    @property
    def is_free(self) -> bool:
        return not self.dead and self.claim is None and self.asked is None and self.told is None

    def forget(self) -> None:
        self.claim = self.asked = self.told = None


class StorageMachine(RuleBasedStateMachine):
    """The rules."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world
        self.name = world.begin()
        self.model = Model()
        self.incarnation = 0
        self.jobs: list[str] = []
        self.client = world.handles[0]
        self.supervisors = world.handles[1:3]
        self.server_ids = ["", ""]
        for number in (0, 1):
            self._register(number)
        self.workers = [
            WorkerView(id=self._new_worker_id(), server=number % 2, storage=world.handles[3 + number])
            for number in range(4)
        ]

    # Clients

    @rule(
        queue=st.sampled_from(["a", "b"]),
        priority=st.sampled_from([0, 0, 7]),
        key=st.sampled_from([None, None, "k"]),
        delay_h=st.sampled_from([None, None, None, -1, 1, 2]),
        age_s=st.integers(0, 2),
        fault=faults,
    )
    def enqueue(
        self, queue: str, priority: int, key: str | None, delay_h: int | None, age_s: int, fault: str | None
    ) -> None:
        job_id = str(uuid.UUID(int=0x0190_0000_0000_7000_8000_0000_0000_0000 + len(self.jobs)))
        created_at = datetime(2030, 1, 1, tzinfo=UTC) - timedelta(seconds=age_s)
        at = None if delay_h is None else self._now() + timedelta(hours=delay_h)
        job = Job.new("work", queue=queue, priority=priority, unique_key=key, at=at, now=created_at)
        job = copy.replace(job, id=job_id) if hasattr(copy, "replace") else _with_id(job, job_id)
        row = ModelJob(
            id=job_id, queue=queue, priority=priority, created_at=created_at, unique_key=key,
            state=StateName.ENQUEUED,
        )  # fmt: skip
        late = delay_h is not None and delay_h <= 0

        def expect(model: Model) -> str:
            return model.enqueue(copy.copy(row), delay_h=None if late else delay_h)

        expected = self._do(fault, lambda: self.client.enqueue(job), expect)
        if isinstance(expected, Lost):
            expected = self._do(None, lambda: self.client.enqueue(job), expect)
        assert expected.got == expected.wanted
        if expected.wanted == job_id:
            self.jobs.append(job_id)

    @precondition(lambda self: self.jobs)
    @rule(data=st.data(), fault=faults)
    def cancel(self, data: st.DataObject, fault: str | None) -> None:
        job_id = data.draw(st.sampled_from(self.jobs))

        def expect(model: Model) -> CancelResult:
            job = model.jobs.get(job_id)
            if job is None:
                return CancelResult.NOT_FOUND
            if job.state is StateName.PROCESSING:
                job.cancel_asked = True
                return CancelResult.REQUESTED
            return CancelResult.DELETED if not job.state.is_final and model.delete(job) else (
                CancelResult.ALREADY_FINAL
            )  # fmt: skip

        done = self._do(
            fault, lambda: self.client.request_cancel(job_id, reason="asked for", retention=KEEP), expect
        )
        assert isinstance(done, Lost) or done.got is done.wanted

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        job_id = data.draw(st.sampled_from(self.jobs))
        self._by_hand(
            job_id,
            lambda: self.client.delete(job_id, reason="by hand", retention=KEEP),
            lambda model, job: model.delete(job),
        )

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def retry(self, data: st.DataObject) -> None:
        job_id = data.draw(st.sampled_from(self.jobs))
        self._by_hand(job_id, lambda: self.client.retry(job_id), lambda model, job: model.retry(job))

    # Workers

    @precondition(lambda self: any(worker.is_free for worker in self.workers))
    @rule(data=st.data(), queues=queue_sets, fault=faults)
    def claim(self, data: st.DataObject, queues: tuple[str, ...], fault: str | None) -> None:
        worker = data.draw(st.sampled_from([worker for worker in self.workers if worker.is_free]))
        self._fetch(worker, self._fetch_of(worker, queues), fault)

    @precondition(lambda self: any(worker.asked for worker in self.workers))
    @rule(data=st.data())
    def repeat_the_claim(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from([worker for worker in self.workers if worker.asked]))
        assert worker.asked is not None
        self._fetch(worker, worker.asked, None)

    @precondition(lambda self: any(worker.claim for worker in self.workers))
    @rule(data=st.data(), outcome=outcomes, queues=st.none() | queue_sets, fault=faults)
    def finish(
        self, data: st.DataObject, outcome: Outcome, queues: tuple[str, ...] | None, fault: str | None
    ) -> None:
        worker = data.draw(st.sampled_from([worker for worker in self.workers if worker.claim]))
        assert worker.claim is not None
        then = None if queues is None else self._fetch_of(worker, queues)
        self._finish(worker, worker.claim, outcome, then, fault)

    @precondition(lambda self: any(worker.told for worker in self.workers))
    @rule(data=st.data())
    def repeat_the_finish(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from([worker for worker in self.workers if worker.told]))
        assert worker.told is not None
        self._finish(worker, *worker.told, None)

    @rule(number=workers)
    def crash(self, number: int) -> None:
        self.workers[number].dead = True

    # Supervisors

    @precondition(lambda self: any(worker.dead for worker in self.workers))
    @rule(data=st.data(), killed_for=st.sampled_from(KILLED_FOR), fault=faults)
    def settle(self, data: st.DataObject, killed_for: CancelReason | None, fault: str | None) -> None:
        worker = data.draw(st.sampled_from([worker for worker in self.workers if worker.dead]))
        death = Death(
            worker_id=worker.id, number=1, pid=1, process=ProcessFacts(signal=9), slot=None,
            killed_for=killed_for,
        )  # fmt: skip

        def expect(model: Model) -> int:
            held = model.held_by(worker.id)
            for job in held:
                model.finish(job.id, job.claim_seq, _judged(job, killed_for))
            return len(held)

        def act() -> int:
            return settle(
                self.supervisors[worker.server], death, max_crashes=MAX_CRASHES, retention=KEEP
            )  # fmt: skip

        done = self._do(fault, act, expect)
        if isinstance(done, Lost):
            done = self._do(None, act, expect)
        assert done.got == done.wanted
        worker.id, worker.dead = self._new_worker_id(), False
        worker.forget()

    @rule(number=servers)
    def heartbeat(self, number: int) -> None:
        known = self.server_ids[number] in self.model.beats_h

        alive = self.supervisors[number].heartbeat_server(self.server_ids[number], worker_rss={})

        assert alive == known
        if known:
            self.model.beats_h[self.server_ids[number]] = self.model.now_h
        else:  # declared dead by its peer: it goes on as a new one, and its workers are new ones too
            self._register(number)

    @rule(number=servers, silent_for_h=st.sampled_from([None, 0.5, 1.5]), fault=faults)
    def reclaim(self, number: int, silent_for_h: float | None, fault: str | None) -> None:
        server_id = self.server_ids[1 - number]
        silent_for = None if silent_for_h is None else timedelta(hours=silent_for_h)

        def expect(model: Model) -> int:
            beat_h = model.beats_h.get(server_id)
            if silent_for_h is not None and (beat_h is None or model.now_h - beat_h <= silent_for_h):
                return 0
            model.beats_h.pop(server_id, None)
            held = [job for job in model.in_state(StateName.PROCESSING) if job.server == server_id]
            return model.release(held)

        done = self._do(
            fault, lambda: self.supervisors[number].reclaim_server(server_id, silent_for=silent_for), expect
        )
        assert isinstance(done, Lost) or done.got == done.wanted

    @rule(number=servers, older_h=st.sampled_from([-0.5, 0.5, 1.5]), spare_own=st.booleans(), fault=faults)
    def requeue_stranded(self, number: int, older_h: float, spare_own: bool, fault: str | None) -> None:
        spared = [self.server_ids[number]] if spare_own else []

        def expect(model: Model) -> int:
            return model.release(
                job
                for job in model.in_state(StateName.PROCESSING)
                if job.server not in spared and model.now_h - job.started_h > older_h
            )

        stale_before = self._now() - timedelta(hours=older_h)
        done = self._do(
            fault,
            lambda: self.supervisors[number].requeue_stranded_jobs(stale_before, spare_servers=spared),
            expect,
        )
        assert isinstance(done, Lost) or done.got == done.wanted

    @rule(number=servers, fault=faults)
    def promote(self, number: int, fault: str | None) -> None:
        def expect(model: Model) -> int:
            due = model.due()
            for job in due:
                model.promote(job)
            return len(due)

        done = self._do(fault, lambda: self.supervisors[number].promote_due(limit=100).count, expect)
        assert isinstance(done, Lost) or done.got == done.wanted

    @precondition(lambda self: self.model.due())
    @rule(number=servers)
    def promote_one(self, number: int) -> None:
        due = self.model.due()

        promoted = self.supervisors[number].promote_due(limit=1)

        assert promoted.count == 1
        assert (promoted.next_due_in == timedelta(0)) == (len(due) > 1)
        rows = self.world.jobs()
        (moved,) = [job for job in due if rows[job.id].state_name is StateName.ENQUEUED]
        assert moved.due_h == min(job.due_h for job in due if job.due_h is not None)
        self.model.promote(moved)

    @rule(number=servers, fault=faults)
    def clean_up(self, number: int, fault: str | None) -> None:
        done = self._do(
            fault, lambda: self.supervisors[number].delete_expired_jobs(limit=100), lambda model: model.clean_up()
        )
        assert isinstance(done, Lost) or done.got == done.wanted

    @rule(hours=st.sampled_from([-1, 1, 1, 2, 9]))
    def step_the_clock(self, hours: int) -> None:
        self.model.now_h += hours
        self.world.step(hours)

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

    def teardown(self) -> None:
        failpoints.arm("")
        log = self.world.log.read()
        assert faults_of(log, self.world.attempts()) == []
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

    # How the rules act

    def _do(
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
            assert before is not None
        finally:
            failpoints.arm("")
        seen = self._seen()
        if fault == "storage.call=raise:1" or seen != _drawn(self.model):
            assert seen == _drawn(before)
            self.model = before
        return Lost()

    def _fetch(self, worker: WorkerView, fetch: Fetch, fault: str | None) -> None:
        def expect(model: Model) -> tuple[str, int] | None:
            held = model.held_by(worker.id)
            job = held[0] if held else model.claim(fetch.worker_id, fetch.server_id, fetch.queues)
            return None if job is None else (job.id, job.claim_seq)

        done = self._do(fault, lambda: _key_of(self._keep(worker, fetch)), expect)
        worker.asked = fetch if isinstance(done, Lost) else None
        assert isinstance(done, Lost) or done.got == done.wanted

    def _keep(self, worker: WorkerView, fetch: Fetch) -> Claim | None:
        worker.claim = worker.storage.fetch_and_lock_job(fetch)
        return worker.claim

    def _finish(
        self, worker: WorkerView, claim: Claim, outcome: Outcome, then: Fetch | None, fault: str | None
    ) -> None:
        repeated = worker.told is not None

        def expect(model: Model) -> tuple[bool, tuple[str, int] | None]:
            accepted = model.finish(claim.job.id, claim.job.claim_seq, outcome)
            if then is None:
                return accepted, None
            held = model.held_by(worker.id) if repeated else []
            job = held[0] if held else model.claim(then.worker_id, then.server_id, then.queues)
            return accepted, None if job is None else (job.id, job.claim_seq)

        finished: list[Finished] = []

        def act() -> tuple[bool, tuple[str, int] | None]:
            finished.append(worker.storage.finish(claim, outcome, retention=KEEP, then=then))
            return finished[0].accepted, _key_of(finished[0].next)

        done = self._do(fault, act, expect)
        if isinstance(done, Lost):
            worker.told, worker.claim = (claim, outcome, then), None
            return
        assert done.got == done.wanted
        worker.told, worker.claim = None, finished[0].next

    def _by_hand(
        self, job_id: str, act: Callable[[], Any], expect: Callable[[Model, ModelJob], bool]
    ) -> None:
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
        for (job_id, claim_seq), kind in self.world.attempts().items():
            attempts.setdefault(job_id, {})[claim_seq] = kind
        return {
            job.id: (job.state_name, job.claim_seq, job.failures, job.crashes, *owners[job.id],
                     attempts.get(job.id, {}))
            for job in self.world.jobs().values()
        }  # fmt: skip

    def _now(self) -> datetime:
        return self.client.now()

    def _fetch_of(self, worker: WorkerView, queues: tuple[str, ...]) -> Fetch:
        return Fetch(worker_id=worker.id, server_id=self.server_ids[worker.server], queues=queues)

    def _new_worker_id(self) -> str:
        self.incarnation += 1
        return f"{self.name}:worker:{self.incarnation}"

    def _register(self, number: int) -> None:
        self.incarnation += 1
        server_id = self.server_ids[number] = f"{self.name}#{self.incarnation}"
        now = self._now()
        self.supervisors[number].register_server(
            ServerInfo(
                id=server_id, name=self.name, hostname="h", started_at=now, last_heartbeat=now,
                process=ProcessIdentity(host="h", pid=1, started_ticks=1), worker_count=2, queues=(),
                heartbeat_enabled=True,
            )
        )  # fmt: skip
        self.model.beats_h[server_id] = self.model.now_h


@dataclass(frozen=True)
class Done[Result]:
    """An operation that was answered, and what the model says the answer is."""

    got: Result
    wanted: Result
