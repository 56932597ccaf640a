"""Supervisor: carries out what is asked of the server through storage, by the same ways as signals.

Nothing here waits for storage. What takes longer than a moment is looked at in each turn, and says how far it
is; `loops/acts.py` writes that.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from qml_mp.core.acts import Act, ActKind, ActState
from qml_mp.core.answers import ReloadAnswer, ReloadState
from qml_mp.core.server_info import number_of_worker
from qml_mp.supervisor.loops.acts import ActDesk, Answer
from qml_mp.supervisor.part import Part
from qml_mp.supervisor.parts.reload import Reload
from qml_mp.supervisor.parts.signals import StackDump
from qml_mp.supervisor.run import Run
from qml_mp.units import n_workers

logger = logging.getLogger(__name__)

_STOPS = Answer(state=ActState.UNFINISHED, said="the server is about to stop")
"""As the end of its row would leave it. FAILED, of a reload, means that the code cannot boot."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _UnderWay:
    """An act that was begun, and what tells of it at each look."""

    act: Act
    look: Callable[[], Answer]


class CarryingOut(Part):
    """Begins what was taken, in its order, and follows it to its end."""

    def __init__(self, run: Run, *, desk: ActDesk, reload: Reload, stacks: StackDump) -> None:
        self._run = run
        self._desk = desk
        self._reload = reload
        self._stacks = stacks
        self._under_way: list[_UnderWay] = []

    def next_at(self) -> float:
        return 0.0 if self._desk.has_new else float("inf")

    def turn(self) -> None:
        for act in self._desk.take_new():
            logger.info("Asked to %s by %s (%s)", act.what, act.by.who, act.by.where)
            self._under_way.append(_UnderWay(act=act, look=self._begin(act)))
        going_on = []
        for each in self._under_way:
            answer = each.look()
            self._desk.answer(each.act, answer)
            if not answer.state.is_final:
                going_on.append(each)
        self._under_way = going_on

    def _begin(self, act: Act) -> Callable[[], Answer]:
        """Begin it; what to ask at each look."""
        match act.what:
            case ActKind.STOP:
                return self._begin_stop(act, now=act.at_once)
            case _ if self._run.stop.has_begun:
                return lambda: _STOPS
            case ActKind.STACKS:
                return self._begin_stacks()
            case ActKind.REPLACE:
                return self._begin_replacing(act.worker_id or "")
            case ActKind.RELOAD:
                return self._begin_reload()
            case ActKind.PAUSE | ActKind.RESUME:
                return self._switch_claims(paused=act.what == ActKind.PAUSE)
            case ActKind.DRAIN:
                return self._begin_drain(act)
            case other:
                said = f"this version of the server cannot {other}"
                return lambda: Answer(state=ActState.FAILED, said=said)

    def _begin_stop(self, act: Act, *, now: bool) -> Callable[[], Answer]:
        why = f"asked by {act.by.who} ({act.by.where})"
        self._run.stop.begin(now=now, why=why)
        return lambda: Answer(state=ActState.TAKEN, said="stops")

    def _begin_stacks(self) -> Callable[[], Answer]:
        asked_at = self._run.clock.monotonic()
        self._stacks.ask()

        def look() -> Answer:
            answer = self._run.registration.says.answers.stacks
            if answer is None or answer.began_at < asked_at:
                return Answer(state=ActState.TAKEN)
            return Answer(
                state=ActState.DONE, said=f"{n_workers(len(answer.workers))} told", stacks=answer.workers
            )

        return look

    def _begin_reload(self) -> Callable[[], Answer]:
        asked_at = self._run.clock.monotonic()
        self._reload.begin()

        def look() -> Answer:
            answer = self._run.registration.says.answers.reload
            return _STOPS if answer is None or answer.began_at < asked_at else _of_reload(answer)

        return look

    def _begin_replacing(self, worker_id: str) -> Callable[[], Answer]:
        if all(worker.worker_id != worker_id for worker in self._run.pool):
            return lambda: Answer(state=ActState.FAILED, said="the worker is not there any more")
        self._run.pool.boots.begin_anew()
        self._run.pool.replacing.ask_for(worker_id)
        return lambda: self._look_at_replacing(worker_id)

    def _look_at_replacing(self, worker_id: str) -> Answer:
        pool, number = self._run.pool, number_of_worker(worker_id)
        if self._run.stop.has_begun:
            return _STOPS
        old = next((worker for worker in pool if worker.worker_id == worker_id), None)
        if old is not None:
            if old.leaving or pool.replacing.concerns(worker_id):
                return Answer(state=ActState.TAKEN, said="leaves after its job, once another is ready")
            return Answer(state=ActState.FAILED, said=pool.boots.error or "another cannot boot")
        if int(number) > pool.size:
            return Answer(state=ActState.DONE, said="has left; its place is not wanted any more")
        there = (each for each in pool if each.is_ready and not each.leaving)
        new = next((each for each in there if str(each.number) == number), None)
        if new is not None:
            return Answer(state=ActState.DONE, said=f"replaced by pid {new.child.pid}")
        if pool.boots.error is not None:
            return Answer(
                state=ActState.FAILED, said=f"has left, and another cannot boot: {pool.boots.error}"
            )
        return Answer(state=ActState.TAKEN, said="has left; another boots")

    def _switch_claims(self, *, paused: bool) -> Callable[[], Answer]:
        was_so = self._run.pool.paused == paused
        if not was_so:
            self._run.pause_claims(paused)
        state = "paused" if paused else "resumed"
        said = (
            f"claims were {'paused already' if paused else 'not paused'}" if was_so else f"claims are {state}"
        )
        return lambda: Answer(state=ActState.DONE, said=said)

    def _begin_drain(self, act: Act) -> Callable[[], Answer]:
        if not self._run.pool.paused:
            self._run.pause_claims(True)
        self._desk.is_empty = False

        def look() -> Answer:
            if not self._run.pool.paused:
                return Answer(state=ActState.FAILED, said="claims were resumed meanwhile")
            if not self._desk.is_empty:
                busy = sum(worker.is_busy for worker in self._run.pool)
                return Answer(state=ActState.TAKEN, said=f"{n_workers(busy)} still busy" if busy else None)
            if not act.then_stop:
                return Answer(state=ActState.DONE, said="nothing is left of what it had claimed")
            if not self._run.stop.has_begun:
                self._begin_stop(act, now=False)
            return Answer(state=ActState.TAKEN, said="stops")

        return look


def _of_reload(answer: ReloadAnswer) -> Answer:
    match answer.state:
        case ReloadState.LOOKING:
            return Answer(state=ActState.TAKEN, said="the new code is looked at")
        case ReloadState.REPLACING:
            said = f"{answer.replaced} of {n_workers(answer.workers)} replaced"
            return Answer(state=ActState.TAKEN, said=said)
        case ReloadState.DONE:
            said = f"{n_workers(answer.replaced)} replaced{answer.code.caveat}"
            return Answer(state=ActState.DONE, said=said)
        case ReloadState.REFUSED | ReloadState.FAILED:
            stay = answer.workers - answer.replaced
            kept = "The workers stay as they are" if not answer.workers else f"{n_workers(stay)} not replaced"
            return Answer(state=ActState.FAILED, said=f"{kept}. {answer.why or ''}".strip())
