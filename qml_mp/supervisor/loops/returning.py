"""Supervisor: what a living worker holds beside a job that takes long: claims that it has not begun go back,
and outcomes of jobs that have ended are written on its behalf."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from qml_mp import failpoints
from qml_mp.core.job import Claim
from qml_mp.core.outcome import Outcome, Release, Success
from qml_mp.errors import StorageError, StorageUnreachable
from qml_mp.events.claims import ended
from qml_mp.storage.store import Storage
from qml_mp.supervisor.loops.held_claims import HeldClaims
from qml_mp.supervisor.loops.loop import AT_ONCE, NEVER, Loop
from qml_mp.supervisor.recovery.sweep import MOST_UNAVAILABLE, each_by_itself
from qml_mp.supervisor.run import Run
from qml_mp.supervisor.workers.unread_replies import claims_not_read, note_taken_reply
from qml_mp.supervisor.workers.worker_process import WorkerProcess

_NOT_BEGUN = Release(reason="the job before took long", not_begun=True)


class _TakenBack(Exception):
    """What was read counts no more."""


class ReturnLoop(Loop):
    """Safe to repeat: each write is guarded by its claim, and the worker's own write of an outcome that is
    written here finds it written."""

    name = "return"

    def __init__(self, run: Run, *, held: HeldClaims) -> None:
        super().__init__(run)
        self._held = held

    def due_at(self) -> float:
        return AT_ONCE if self._held.has_work() else NEVER

    def tick(self, storage: Storage) -> None:
        def see_to(worker: WorkerProcess) -> None:
            self._see_to(storage, worker)

        each_by_itself(self._run.pool, see_to)

    def _see_to(self, storage: Storage, worker: WorkerProcess) -> None:
        taken, has_to_write = frozenset(worker.taken), self._held.has_to_write(worker)
        note_taken_reply(worker)
        taken_back = worker.channels.ended.taken_back
        number, outcomes = worker.channels.ended.read() if has_to_write else (0, {})
        if taken or outcomes:
            claims = storage.claims_of_worker(worker.worker_id)
            not_begun = taken | claims_not_read(worker, [claim.key for claim in claims])
            returned = [(claim, _NOT_BEGUN) for claim in claims if claim.key in not_begun]
            ends = [(claim, outcomes[claim.key]) for claim in claims if claim.key in outcomes]
            failpoints.hit("giveback.taken")
            try:
                self._write(storage, worker, [*returned, *ends], taken_back)
            except _TakenBack:
                return  # the next tick reads anew
            failpoints.hit("giveback.committed")
            worker.taken -= taken
        if has_to_write:
            worker.channels.ended.note_written(number)

    def _write(
        self,
        storage: Storage,
        worker: WorkerProcess,
        outcomes: Sequence[tuple[Claim, Outcome]],
        taken_back: int,
    ) -> None:
        """`taken_back` is what stood there when they were read: a worker that leaves with a transaction open,
        in which nobody else can write, takes back what came of jobs before it lets go."""

        def check() -> None:
            if worker.channels.ended.taken_back != taken_back:
                raise _TakenBack

        try:
            self._exchange(storage, outcomes, check)
        except StorageUnreachable:
            raise
        except StorageError:  # about one of them, or somebody has locked its row
            each_by_itself(
                outcomes,
                lambda outcome: self._exchange(storage, [outcome], check),
                most_unavailable=MOST_UNAVAILABLE,
            )

    def _exchange(
        self,
        storage: Storage,
        outcomes: Sequence[tuple[Claim, Outcome]],
        check: Callable[[], None],
    ) -> None:
        done = storage.exchange(outcomes, fetch=None, limit=0, retention=self._run.retention, check=check)
        returned = 0
        for (claim, outcome), finished in zip(outcomes, done.finished, strict=True):
            if outcome is _NOT_BEGUN:
                self._run.pool.totals.add_returned(claim, finished)
                returned += 1
            # What the worker has written in the same moment, it tells, and that a success of it was lost.
            # That both have given a claim back is no loss.
            can_be_missed = outcome is _NOT_BEGUN or isinstance(outcome, Success)
            is_its_own = finished.was_written or (can_be_missed and not finished.accepted)
            event = None if is_its_own else ended(claim, finished.job)
            if event is not None:
                self._run.events.emit(event)
        self._run.pool.wake_idle(returned)
