"""Tests: the state machine: supervisors and workers act on one storage; the model says what must come of it.

A worker that is not heard of for a while is one whose next rule comes late: it then acts on a claim
that others may have taken from it. Any operation may fail before its commit or after it; the caller
then repeats it, or dies.
"""

from __future__ import annotations

import copy
import uuid
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule

from qml_mp.core.job import ClaimKey, Job
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
from qml_mp.core.state import StateName
from qml_mp.events.emitter import new_emitter
from qml_mp.ipc.slot import Activity, SlotView
from qml_mp.processing.cancel import CancelReason
from qml_mp.storage.values import CancelResult
from qml_mp.supervisor.recovery.settle import settle
from qml_mp.supervisor.workers.death import Death
from tests.storage.model.acting import KEEP, Acting, Asked, Ends, Lost, WorkerView, keys_of
from tests.storage.model.model import Model, ModelJob

NO = ErrorInfo(type="ValueError", message="no")
MAX_CRASHES = 2
EPOCH = datetime(2030, 1, 1, tzinfo=UTC)
OUTCOMES: tuple[Outcome, ...] = (
    *[Success(result={"ok": True}, duration=timedelta(seconds=1))] * 3,
    Retry(error=NO, delay=timedelta(hours=1)),
    Retry(error=NO, delay=timedelta(0), kind=AttemptKind.TIMEOUT),
    Failure(error=NO),
    Cancelled(reason="not wanted"),
    Release(reason="shutdown"),
    Crash(error=NO, rerun_after=timedelta(0)),
    Crash(error=NO, rerun_after=timedelta(hours=1)),
    Crash(error=NO, rerun_after=None),
)
FATES = ("ended", "ticket", "begun")
KILLED_FOR = (None, None, CancelReason.SHUTDOWN, CancelReason.CANCELLED, CancelReason.TIMEOUT)

outcomes = st.sampled_from(OUTCOMES)
queue_sets = st.sampled_from([(), (), ("a",), ("b", "a")])
limits = st.sampled_from([1, 1, 2, 3, 20])
servers = st.integers(0, 1)
# Which storage call of an operation fails, and on which side of its commit; mostly none does.
faults = st.sampled_from(
    [None] * 8
    + ["storage.call=raise:1", "storage.call=raise:2"]
    + ["storage.committed=raise:1", "storage.committed=raise:2"]
)


@dataclass(frozen=True, kw_only=True)
class NewJob:
    """What a client wants done."""

    queue: str
    priority: int
    key: str | None
    delay_h: int | None
    age_s: int


new_jobs = st.builds(
    NewJob,
    queue=st.sampled_from(["a", "b"]),
    priority=st.sampled_from([0, 0, 7]),
    key=st.sampled_from([None, None, None, "k"]),
    delay_h=st.sampled_from([None, None, None, None, -1, 1, 2]),
    age_s=st.integers(0, 2),
)


class StorageMachine(Acting):
    """The rules."""

    # Clients

    @initialize(wanted=st.lists(new_jobs, min_size=2, max_size=12))
    def begin_with_some_jobs(self, wanted: list[NewJob]) -> None:
        for one in wanted:
            self.enqueue_one(one, None)

    @rule(wanted=new_jobs, fault=faults)
    def enqueue(self, wanted: NewJob, fault: str | None) -> None:
        self.enqueue_one(wanted, fault)

    def enqueue_one(self, wanted: NewJob, fault: str | None) -> None:
        job_id = str(uuid.UUID(int=0x0190_0000_0000_7000_8000_0000_0000_0000 + self.added))
        at = None if wanted.delay_h is None else self.now() + timedelta(hours=wanted.delay_h)
        job = Job.new(
            "work", queue=wanted.queue, priority=wanted.priority, unique_key=wanted.key, at=at,
            now=EPOCH - timedelta(seconds=wanted.age_s),
        )  # fmt: skip
        job = replace(job, id=job_id)
        row = ModelJob(
            id=job_id, queue=job.queue, priority=job.priority, created_at=job.created_at,
            unique_key=job.unique_key, state=StateName.ENQUEUED,
        )  # fmt: skip
        delay_h = None if wanted.delay_h is None or wanted.delay_h <= 0 else wanted.delay_h

        done = self.do_surely(
            fault,
            lambda: self.client.enqueue(job),
            lambda model: model.enqueue(copy.copy(row), delay_h=delay_h),
        )

        assert done.got == done.wanted
        self.added += 1
        if done.wanted == job_id:
            self.jobs.append(job_id)

    @precondition(lambda self: self.jobs)
    @rule(data=st.data(), fault=faults)
    def cancel(self, data: st.DataObject, fault: str | None) -> None:
        job_id = data.draw(st.sampled_from(self.jobs))

        def expect(model: Model) -> CancelResult:
            job = model.jobs.get(job_id)
            if job is None:
                return CancelResult.NOT_FOUND
            if job.state.is_final:
                return CancelResult.ALREADY_FINAL
            if model.delete(job):
                return CancelResult.DELETED
            job.cancel_asked = True
            return CancelResult.REQUESTED

        done = self.do(
            fault, lambda: self.client.request_cancel(job_id, reason="asked for", retention=KEEP), expect
        )

        assert isinstance(done, Lost) or done.got is done.wanted

    @precondition(lambda self: self.jobs)
    @rule(data=st.data(), retry=st.sampled_from([True, True, False]))
    def change_by_hand(self, data: st.DataObject, retry: bool) -> None:
        job_id = data.draw(st.sampled_from(self.jobs))
        if retry:
            self.by_hand(job_id, lambda: self.client.retry(job_id), lambda model, job: model.retry(job))
        else:
            self.by_hand(
                job_id,
                lambda: self.client.delete(job_id, reason="by hand", retention=KEEP),
                lambda model, job: model.delete(job),
            )

    # Workers

    @precondition(lambda self: any(worker.is_free for worker in self.workers))
    @rule(data=st.data(), queues=queue_sets, limit=limits, fault=faults)
    def claim(self, data: st.DataObject, queues: tuple[str, ...], limit: int, fault: str | None) -> None:
        worker = data.draw(st.sampled_from([worker for worker in self.workers if worker.is_free]))
        self.fetch(worker, Asked(fetch=self.fetch_of(worker, queues), limit=limit), fault)

    @precondition(lambda self: any(worker.is_free for worker in self.workers))
    @rule(queues=queue_sets, limit=limits)
    def claim_with_all(self, queues: tuple[str, ...], limit: int) -> None:
        for worker in self.workers:
            if worker.is_free:
                self.fetch(worker, Asked(fetch=self.fetch_of(worker, queues), limit=limit), None)

    @precondition(lambda self: any(worker.repeats for worker in self.workers))
    @rule(data=st.data(), fault=faults)
    def act_on_what_was_not_answered(self, data: st.DataObject, fault: str | None) -> None:
        worker = data.draw(st.sampled_from([worker for worker in self.workers if worker.repeats]))
        if worker.told:
            self.exchange(worker, worker.told, None, None)
        else:
            self.renew_epoch(worker, fault)

    @precondition(lambda self: any(worker.asked is not None for worker in self.workers))
    @rule(data=st.data())
    def make_claims_late(self, data: st.DataObject) -> None:
        """As a database server does that was frozen when a worker asked."""
        asked = data.draw(st.sampled_from([worker.asked for worker in self.workers if worker.asked]))

        made = self.claim_now(self.client, asked)

        fetch = asked.fetch
        jobs = self.model.claim(fetch.worker_id, fetch.server_id, fetch.queues, fetch.epoch, asked.limit)
        assert keys_of(made) == [(job.id, job.claim_seq) for job in jobs]

    @precondition(lambda self: self.void)
    @rule(data=st.data())
    def make_claims_too_late(self, data: st.DataObject) -> None:
        """The same, after the worker has raised its epoch."""
        assert self.claim_now(self.client, data.draw(st.sampled_from(self.void))) == []

    @precondition(lambda self: any(worker.is_free for worker in self.workers))
    @rule(data=st.data())
    def doubt_without_a_reason(self, data: st.DataObject) -> None:
        """As a worker does when its supervisor tells it to."""
        self.renew_epoch(data.draw(st.sampled_from([one for one in self.workers if one.is_free])), None)

    @precondition(lambda self: any(worker.has_claims for worker in self.workers))
    @rule(data=st.data(), queues=st.none() | queue_sets, limit=limits, with_told=st.booleans(), fault=faults)
    def finish_some(
        self,
        data: st.DataObject,
        queues: tuple[str, ...] | None,
        limit: int,
        with_told: bool,
        fault: str | None,
    ) -> None:
        worker, ends = self.draw_ends(data)
        if with_told:
            ends = (*ends, *worker.told)
        then = None
        if queues is not None and worker.asked is None:
            then = Asked(fetch=self.fetch_of(worker, queues), limit=limit)
        self.exchange(worker, ends, then, fault)

    @precondition(lambda self: any(worker.has_claims for worker in self.workers))
    @rule(data=st.data(), fault=faults)
    def supervisor_gives_back_some(self, data: st.DataObject, fault: str | None) -> None:
        worker, ends = self.draw_ends(data)
        self.give_back(worker, [claim for claim, _ in ends], fault)

    @precondition(lambda self: any(worker.has_claims for worker in self.workers))
    @rule(data=st.data(), fault=faults)
    def supervisor_writes_some_that_ended(self, data: st.DataObject, fault: str | None) -> None:
        worker, ends = self.draw_ends(data)
        self.write_for(worker, ends, fault)

    def draw_ends(self, data: st.DataObject) -> tuple[WorkerView, Ends]:
        """Some of what a worker holds, in any order, each with an outcome of its own."""
        worker = data.draw(st.sampled_from([worker for worker in self.workers if worker.has_claims]))
        places = st.lists(st.sampled_from(range(len(worker.held))), min_size=1, unique=True)
        return worker, tuple((worker.held[place], data.draw(outcomes)) for place in data.draw(places))

    @precondition(lambda self: self.ghosts)
    @rule(data=st.data(), outcome=outcomes)
    def finish_after_being_taken_for_dead(self, data: st.DataObject, outcome: Outcome) -> None:
        """As a worker does whose host was cut off."""
        worker, claim = data.draw(st.sampled_from(self.ghosts))
        self.exchange(worker, ((claim, outcome),), None, None)

    @precondition(lambda self: self.settled)
    @rule(data=st.data())
    def claim_after_the_end_was_settled(self, data: st.DataObject) -> None:
        """As a database server does that comes late to what a dead worker has sent."""
        asked = Asked(fetch=data.draw(st.sampled_from(self.settled)), limit=data.draw(limits))
        assert self.claim_now(self.client, asked) == []

    @precondition(lambda self: any(worker.has_claims or worker.repeats for worker in self.workers))
    @rule(data=st.data())
    def crash(self, data: st.DataObject) -> None:
        busy = [worker for worker in self.workers if worker.has_claims or worker.repeats]
        data.draw(st.sampled_from(busy)).dead = True

    # Supervisors

    @precondition(lambda self: any(worker.dead for worker in self.workers))
    @rule(data=st.data(), killed_for=st.sampled_from(KILLED_FOR), fault=faults)
    def settle(self, data: st.DataObject, killed_for: CancelReason | None, fault: str | None) -> None:
        worker = data.draw(st.sampled_from([worker for worker in self.workers if worker.dead]))
        death = self.draw_death(data, worker, killed_for)

        def expect(model: Model) -> int:
            model.workers.pop(worker.id, None)
            held = model.held_by(worker.id)
            in_hand = _in_hand(death, held)
            for job in held:
                outcome = death.ended.get(_key(job)) or Release(reason="not begun")
                model.finish(job.id, job.claim_seq, _judged(job, killed_for) if job is in_hand else outcome)
            return len(held)

        def act() -> int:
            supervisor = self.supervisors[worker.server]
            return settle(supervisor, death, max_crashes=MAX_CRASHES, retention=KEEP, events=new_emitter())

        done = self.do_surely(fault, act, expect)

        assert done.got == done.wanted
        self.replace(worker)

    def draw_death(self, data: st.DataObject, worker: WorkerView, killed_for: CancelReason | None) -> Death:
        """Of what it held some had ended, the tickets of some lay in the pipe, and one may be shown."""
        held = [claim.key for claim in worker.held]
        fates = data.draw(st.lists(st.sampled_from(FATES), min_size=len(held), max_size=len(held)))
        of_each = list(zip(held, fates, strict=True))
        by_fate = {fate: [key for key, its in of_each if its == fate] for fate in FATES}
        shown = data.draw(st.sampled_from([None, *by_fate["begun"]]))
        ended = {key: data.draw(outcomes) for key in by_fate["ended"]}
        ended |= {claim.key: outcome for claim, outcome in worker.told}
        return Death(
            worker_id=worker.id, number=1, process=ProcessFacts(signal=9), killed_for=killed_for,
            slot=SlotView() if shown is None else SlotView(activity=Activity.RUNNING, key=shown),
            ended=ended, not_begun=by_fate["ticket"], has_taken=shown is not None or data.draw(st.booleans()),
        )  # fmt: skip

    @rule(number=servers)
    def heartbeat(self, number: int) -> None:
        known = self.server_ids[number] in self.model.beats_h

        heard = self.supervisors[number].heartbeat_server(self.server_ids[number], worker_rss={})

        assert (heard and heard.servers) == (len(self.model.beats_h) if known else None)
        if known:
            self.model.beats_h[self.server_ids[number]] = self.model.now_h
        else:  # a peer declared it dead: it goes on as a new one
            self.register(number)

    @rule(number=servers, silent_for_h=st.sampled_from([None, 0.5, 1.5]), fault=faults)
    def reclaim(self, number: int, silent_for_h: float | None, fault: str | None) -> None:
        server_id = self.server_ids[1 - number]
        silent_for = None if silent_for_h is None else timedelta(hours=silent_for_h)

        def expect(model: Model) -> int:
            beat_h = model.beats_h.get(server_id)
            # One from the future was sent before the clock stepped back, and none since.
            if silent_for_h is not None and (beat_h is None or 0 <= model.now_h - beat_h <= silent_for_h):
                return 0
            model.remove_server(server_id)
            return model.release(lambda job: job.server == server_id)

        done = self.do(
            fault,
            lambda: self.supervisors[number].reclaim_server(server_id, silent_for=silent_for, retention=KEEP),
            expect,
        )

        assert isinstance(done, Lost) or done.got == done.wanted

    @rule(number=servers, older_h=st.sampled_from([-0.5, 0.5, 1.5]), spare_own=st.booleans(), fault=faults)
    def requeue_stranded(self, number: int, older_h: float, spare_own: bool, fault: str | None) -> None:
        spared = [self.server_ids[number]] if spare_own else []
        stale_before = self.now() - timedelta(hours=older_h)

        def expect(model: Model) -> int:
            return model.release(
                lambda job: job.server not in spared and model.now_h - job.started_h > older_h
            )

        done = self.do(
            fault,
            lambda: self.supervisors[number].requeue_stranded_jobs(
                stale_before, spare_servers=spared, retention=KEEP
            ),
            expect,
        )

        assert isinstance(done, Lost) or done.got == done.wanted

    # Time

    @rule(hours=st.sampled_from([-1, 1, 1, 2, 9]), fault=faults)
    def step_the_clock_and_promote(self, hours: int, fault: str | None) -> None:
        self.model.now_h += hours
        self.world.step(hours)

        done = self.do(
            fault, lambda: self.supervisors[0].promote_due(limit=100).count, lambda model: model.promote_all()
        )

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

    @rule(fault=faults)
    def clean_up(self, fault: str | None) -> None:
        done = self.do(
            fault,
            lambda: self.supervisors[0].delete_expired_jobs(limit=100),
            lambda model: model.clean_up(),
        )

        assert isinstance(done, Lost) or done.got == done.wanted


def _key(job: ModelJob) -> ClaimKey:
    return ClaimKey(job_id=job.id, claim_seq=job.claim_seq)


def _in_hand(death: Death, held: list[ModelJob]) -> ModelJob | None:
    """The one that was shown, or was taken: the only one that had neither ended nor a ticket."""
    left = [job for job in held if _key(job) not in death.ended and _key(job) not in death.not_begun]
    shown = [job for job in left if death.slot.key == _key(job)]
    return next(iter(shown or (left if death.has_taken and len(left) == 1 else ())), None)


def _judged(job: ModelJob, killed_for: CancelReason | None) -> Outcome:
    """What the death of its worker means for a job."""
    match killed_for:
        case None:
            spent = job.crashes + 1 >= MAX_CRASHES
            return Crash(error=NO, rerun_after=None if spent else timedelta(0))
        case CancelReason.CANCELLED:
            return Cancelled(reason="cancelled")
        case CancelReason.TIMEOUT:
            return Failure(error=NO, kind=AttemptKind.TIMEOUT)
        case _:
            return Release(reason="stopped")
