"""Supervisor: what is asked of this server through storage, taken there, and its answers.

Carrying it out is for a part (`parts/acts.py`), which must not wait for storage. Between the two lies the
desk: what is in hand, and what is to be said of it. It is lost with the process, and then the end of the
server's row says so of what it had taken.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from qml_mp import failpoints
from qml_mp.core.acts import Act, ActKind, ActState
from qml_mp.core.answers import WorkerStack
from qml_mp.ipc.pipe import holds_messages
from qml_mp.ipc.slot import Activity
from qml_mp.storage.store import Storage
from qml_mp.supervisor.loops.loop import AT_ONCE, Loop
from qml_mp.supervisor.loops.settle import SettleLoop
from qml_mp.supervisor.run import Run
from qml_mp.supervisor.workers.worker_process import WorkerProcess

_LOOK_AGAIN_S = 0.5  # at claims that are left of a server whose workers are all idle


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What is said of an act in hand."""

    state: ActState
    said: str | None = None
    stacks: tuple[WorkerStack, ...] = ()


_NOTHING_SAID = Answer(state=ActState.TAKEN)


class ActDesk:
    """The acts that the server has taken and not ended. Filled and emptied by `ActsLoop`; read and answered
    by the part that carries them out."""

    def __init__(self) -> None:
        self._in_hand: dict[str, Act] = {}
        self._new: list[Act] = []
        self._answers: dict[str, Answer] = {}
        """The newest of each."""
        self._untold: dict[str, Answer] = {}
        """Those that are not written yet."""
        self.is_empty = False
        """Whether nothing is left of what the server had claimed, since it was last asked for that."""

    @property
    def ids(self) -> frozenset[str]:
        """Of all that are in hand."""
        return frozenset(self._in_hand)

    @property
    def has_new(self) -> bool:
        """Whether something was taken that nobody has begun."""
        return bool(self._new)

    @property
    def untold(self) -> list[tuple[Act, Answer]]:
        """What is to be written."""
        return [(self._in_hand[act_id], answer) for act_id, answer in self._untold.items()]

    def put(self, act: Act) -> None:
        """It was taken."""
        self._in_hand[act.id] = act
        self._new.append(act)

    def take_new(self) -> list[Act]:
        """What was taken since the last call, in order."""
        new, self._new = self._new, []
        return new

    def answer(self, act: Act, answer: Answer) -> None:
        """What has come of it so far, or with a final state in the end."""
        if act.id in self._in_hand and self._answers.get(act.id, _NOTHING_SAID) != answer:
            self._answers[act.id] = self._untold[act.id] = answer

    def note_told(self, act: Act, answer: Answer) -> None:
        """That is written."""
        if self._untold.get(act.id) == answer:
            del self._untold[act.id]
            if answer.state.is_final:
                self.forget(act)

    def forget(self, act: Act) -> None:
        """Somebody else has ended it."""
        for table in (self._in_hand, self._answers, self._untold):
            table.pop(act.id, None)

    def done_by_leaving(self) -> list[str]:
        """Ids of those that are done once the server has left the registry: it was to stop, or it was done
        and had no time to say so."""
        stops = [act.id for act in self._in_hand.values() if act.what == ActKind.STOP]
        drained = [act.id for act in self._in_hand.values() if act.then_stop and self.is_empty]
        done = [act_id for act_id, answer in self._untold.items() if answer.state is ActState.DONE]
        return [*stops, *drained, *done]

    @property
    def wants_empty(self) -> bool:
        """Whether somebody waits for the end of what was claimed, and claims are paused for that by now: what
        storage says before may be about to change."""
        is_asked = any(act.what == ActKind.DRAIN for act in self._in_hand.values())
        return is_asked and not (self.is_empty or self.has_new)


class ActsLoop(Loop):
    """Due when something was committed that may be a request, when a heartbeat has found one, and when there
    is an answer to write: an idle server asks storage for nothing more than without it."""

    name = "acts"
    hasten_after = timedelta(milliseconds=100)

    def __init__(self, run: Run, *, desk: ActDesk, settling: SettleLoop) -> None:
        super().__init__(run)
        self._desk = desk
        self._settling = settling
        self._look_at_claims_at = AT_ONCE

    def due_at(self) -> float:
        if self._desk.untold:
            return AT_ONCE
        return min(super().due_at(), self._look_at_claims_at) if self._may_be_empty() else super().due_at()

    def tick(self, storage: Storage) -> None:
        self._tell(storage)
        own_id = self._run.registration.id
        taken = storage.take_acts(own_id, in_hand=self._desk.ids)
        if taken:
            failpoints.hit("acts.taken")
        for act in taken:
            self._desk.put(act)
        if self._may_be_empty():
            self._look_at_claims_at = self._run.clock.monotonic() + _LOOK_AGAIN_S
            self._desk.is_empty = not storage.claims_of_server(own_id)

    def _tell(self, storage: Storage) -> None:
        for act, answer in self._desk.untold:
            failpoints.hit("acts.telling")
            is_told = storage.answer_act(
                act.id,
                server_id=act.server_id or "",
                state=answer.state,
                said=answer.said,
                stacks=answer.stacks,
            )
            failpoints.hit("acts.told")
            if is_told:
                self._desk.note_told(act, answer)
            else:  # of an id that this server had before it was declared dead
                self._desk.forget(act)

    def _may_be_empty(self) -> bool:
        """Whether it is worth asking: no dead worker has left anything, and none that lives can claim."""
        is_settled = self._desk.wants_empty and not self._settling.count
        return is_settled and all(map(self._claims_nothing, self._run.pool))

    def _claims_nothing(self, worker: WorkerProcess) -> bool:
        """Whether it has no job, and begins none while claims are paused: it has read that they are, which it
        does not do between its last look at that and its claim. One that boots reads it before its first; one
        that is on its way out reads nothing any more."""
        if not worker.has_booted:
            return True
        has_read = not holds_messages(worker.channels.pipe_fd)
        activity = worker.look(self._run.clock.monotonic()).activity
        return activity is Activity.LEAVING or (has_read and activity is Activity.IDLE)
