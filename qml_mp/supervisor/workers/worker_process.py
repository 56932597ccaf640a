"""Supervisor: one worker, as its supervisor sees it."""

from __future__ import annotations

import logging
import signal
from collections.abc import Mapping
from dataclasses import InitVar, dataclass, field
from datetime import timedelta

from qml_mp.child.source import ProgramSource
from qml_mp.core.job import ClaimKey
from qml_mp.core.outcome import ProcessFacts
from qml_mp.events.facts import WorkerReady, WorkerStarted
from qml_mp.ipc.pipe import Kind, Message, send
from qml_mp.ipc.slot import Activity, SlotTable, SlotView
from qml_mp.ipc.stack import STACK_SIGNAL, LastStack, empty, read_last_stack, read_stack
from qml_mp.ipc.troubles import TroubleTable
from qml_mp.processing.cancel import CancelReason
from qml_mp.settings import ServerConfig
from qml_mp.supervisor.wait import TimeSeen
from qml_mp.supervisor.workers.channels import Channels
from qml_mp.supervisor.workers.fork import Child, reap
from qml_mp.supervisor.workers.ladder import Plan, Rung
from qml_mp.units import format_duration

logger = logging.getLogger(__name__)

_BUSY = (Activity.RUNNING, Activity.FINISHING)
_MOMENT_S = 0.05  # for a worker that was woken to look for a job
_MOST_CANCELS = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSpec:
    """What all workers of a pool have in common; new ones are forked after the newest."""

    server_id: str
    config: ServerConfig
    url: str
    source: ProgramSource
    troubles: TroubleTable


@dataclass(kw_only=True, eq=False)
class WorkerProcess:
    """A worker that has not been reaped yet. Mutable; owned by the supervisor's one thread."""

    number: int
    worker_id: str
    child: Child
    channels: Channels
    slots: SlotTable
    index: int
    """Of its slot."""
    forked_at: InitVar[float]
    ready_at: float | None = field(default=None, init=False)
    """Since when it is known to be ready; `has_booted` is the fact."""
    is_too_slow: bool = field(default=False, init=False)
    """Killed because it was not ready in time."""
    leaving: bool = field(default=False, init=False)
    """Told to finish its job and leave."""
    busy_at: float = field(default=float("-inf"), init=False)
    """When it was last seen with a job in hand."""
    going_at: float = field(default=float("inf"), init=False)
    """Since when it has nothing to do but to leave, and says nothing new; infinity: it has, or may stay."""
    taken: set[ClaimKey] = field(default_factory=set, init=False)
    """Claims whose tickets were taken from it: nobody can begin them any more, and they are given back."""
    taken_reply: int = field(default=0, init=False)
    """The newest reply whose ticket was taken: what comes with it is not begun either."""
    is_out_of_reach: bool = field(default=False, init=False)
    """It may not be signalled: a job has given it another user's id."""
    killed_for: CancelReason | None = field(default=None, init=False)
    killed_key: ClaimKey | None = field(default=None, init=False)
    last: SlotView = field(default_factory=SlotView, init=False)
    """What it said at the newest look."""
    _mark: tuple[int, int] | None = field(default=None, init=False)
    """Of its slot before that was read last: nothing new is said while it stays so."""
    _woken_at: float = field(default=float("inf"), init=False)
    _looks_from: int = field(default=0, init=False)
    """The version of its slot from which on it has looked for a job since it was woken."""
    _cancels: dict[ClaimKey, Plan] = field(default_factory=dict, init=False)
    """The claims that somebody wants cancelled, and the ladder for each; some of them have ended."""
    _pushed: tuple[ClaimKey | None, Rung, CancelReason | None] = field(
        default=(None, Rung.NONE, None), init=False
    )
    """How far it has been pushed with which claim, and why."""
    _rungs: tuple[ClaimKey | None, dict[Rung, float]] = field(default_factory=lambda: (None, {}), init=False)
    """With which claim it was taken to each of these rungs, or to a higher one, and when first."""
    _interrupted: tuple[ClaimKey, CancelReason] | None = field(default=None, init=False)
    """The claim for which it was sent SIGTERM last, and why."""
    _stack_asked_in: ClaimKey | None = field(default=None, init=False)
    """The claim that it had in hand when it was asked for its stack last."""

    def __post_init__(self, forked_at: float) -> None:
        self._booting = TimeSeen(forked_at)

    def look(self, now: float) -> SlotView:
        """What the worker says now (what it said before, while it writes)."""
        mark = self.slots.mark(self.index)
        if mark != self._mark:
            view = self.slots.read(self.index)
            if view is not None:
                self.last, self._mark, self.going_at = view, mark, float("inf")
        if self.is_busy:
            self.busy_at = now
        self.going_at = min(self.going_at, now) if self._has_only_to_leave else float("inf")
        return self.last

    @property
    def has_booted(self) -> bool:
        """Whether it has ever been ready, also of a worker that is dead by now."""
        return self.slots.was_ready(self.index)

    @property
    def is_ready(self) -> bool:
        """Whether it is known to have booted."""
        return self.ready_at is not None

    @property
    def is_idle(self) -> bool:
        return self.is_ready and not self.is_busy

    @property
    def is_busy(self) -> bool:
        return self.last.activity in _BUSY

    @property
    def _has_only_to_leave(self) -> bool:
        if self.last.activity is Activity.LEAVING:
            return True
        return self.leaving and self.is_idle and not self.channels.ended.has_unwritten

    def started(self) -> WorkerStarted:
        """The fact that it was forked."""
        return WorkerStarted(worker_id=self.worker_id, number=self.number, pid=self.child.pid)

    def note_ready(self, now: float, *, replaces: str | None = None) -> WorkerReady:
        """It is known to have booted; the fact."""
        self.ready_at = now
        return WorkerReady(
            worker_id=self.worker_id,
            number=self.number,
            pid=self.child.pid,
            replaces=replaces,
        )

    @property
    def can_be_woken(self) -> bool:
        """Whether it is idle, will stay, and has looked for a job since it was woken last. One that is busy
        looks before it is idle."""
        return self.is_idle and not self.leaving and not self.has_to_look

    def wake(self, now: float) -> None:
        """There may be work. A full pipe says so already."""
        # One that waits shows next that it looks. One that looks may find nothing, and then looks again.
        steps = 2 if self.last.activity is Activity.FETCHING else 1
        self._looks_from = self.slots.version(self.index) + 2 * steps
        self._woken_at = now
        self._send(Kind.WAKE)

    @property
    def looks_by(self) -> float:
        """When it should have looked for a job, of one that was woken and has not; else never."""
        return self._woken_at + _MOMENT_S if self.has_to_look else float("inf")

    def has_missed_wake(self, now: float) -> bool:
        """Whether it should have looked by now; said once."""
        missed = now >= self.looks_by
        if missed:
            self._woken_at = float("inf")
        return missed

    @property
    def has_to_look(self) -> bool:
        """Whether it was woken, and has not shown since that it looks for a job."""
        return self.slots.version(self.index) < self._looks_from

    def pause(self) -> None:
        """Claim nothing until woken."""
        self._send(Kind.PAUSE)

    def doubt(self) -> bool:
        """Look whether it holds a claim that it does not know of; whether the pipe took the message."""
        return self._send(Kind.DOUBT)

    def leave(self) -> None:
        """Finish the job in hand, then exit. Told once; a full pipe is tried again at the next call."""
        self.leaving = self.leaving or self._send(Kind.LEAVE)

    def cancel(self, key: ClaimKey, plan: Plan) -> bool:
        """Have the claim cancelled by this plan; False when that has begun before. A claim that is held, and
        has not begun, is not run any more."""
        if key in self._cancels:
            return False
        self._cancels[key] = plan
        if len(self._cancels) > _MOST_CANCELS:
            del self._cancels[next(iter(self._cancels))]
        if self.last.key != key:
            self._send(Kind.CANCEL, key, plan.reason)
        return True

    def cancel_of(self, key: ClaimKey) -> Plan | None:
        """The ladder of the cancel that somebody wants of this claim; None: nobody does."""
        return self._cancels.get(key)

    def rungs_of(self, key: ClaimKey) -> Mapping[Rung, float]:
        """When it was first taken to these rungs with this claim, be it that its pipe was full then."""
        return self._rungs[1] if self._rungs[0] == key else {}

    def push(self, rung: Rung, key: ClaimKey, reason: CancelReason, now: float) -> None:
        """Take the job `key` up to the rung; each rung (and a new reason for it) is told once."""
        pushed_key, pushed_to, pushed_for = self._pushed
        if pushed_key == key and (rung < pushed_to or (rung == pushed_to and reason is pushed_for)):
            return
        self._rungs = key, {**{each: now for each in Rung if each <= rung}, **self.rungs_of(key)}
        told = True
        match rung:
            case Rung.NONE:
                return
            case Rung.ASK:
                told = self._send(Kind.CANCEL, key, reason)
            case Rung.INTERRUPT:
                told = self._send(Kind.INTERRUPT, key, reason)
                self._interrupted = key, reason
                self._signal(signal.SIGTERM)
            case Rung.DUMP_STACK:
                if (pushed_key, pushed_for) != (key, reason) or pushed_to < Rung.INTERRUPT:
                    self.push(Rung.INTERRUPT, key, reason, now)  # it was slept through
                self.ask_for_stack()
            case Rung.KILL:
                told = self.kill(reason, key)
        if told:  # else its pipe is full, or it may not be signalled: tried again at the next turn
            self._pushed = key, rung, reason

    def ask_for_stack(self) -> None:
        """Make the worker write its stack; a moment later `stack()` has it."""
        empty(self.channels.stack_fd)
        self._stack_asked_in = self.last.key
        self._signal(STACK_SIGNAL)

    def stack(self) -> str | None:
        """The stack that it wrote when it was asked last."""
        return read_stack(self.channels.stack_fd)

    def forget_stack(self) -> None:
        """Leave nothing of it, unless it is kept for the record of a job that is about to be killed."""
        key, rung, _ = self._pushed
        if key != self.last.key or rung < Rung.DUMP_STACK:
            empty(self.channels.stack_fd)

    def last_stack(self) -> LastStack:
        """Of one that is dead."""
        return read_last_stack(self.channels.stack_fd, asked_in=self._stack_asked_in)

    def kill(self, reason: CancelReason | None, key: ClaimKey | None = None) -> bool:
        """SIGKILL the worker and its whole process group; False: it is `is_out_of_reach`. Without a reason it
        counts as one that died by itself."""
        if self.killed_for is None:
            self.killed_for, self.killed_key = reason, key
        return self._signal(signal.SIGKILL)

    def reap(self, now: float, *, stopping: bool) -> ProcessFacts | None:
        """How it died; None: it lives. `stopping`: the server is."""
        process = reap(self.child)
        if process is not None:
            self.look(now)
            if self.killed_for is None and process.signal in (signal.SIGTERM, None):
                self._note_who_ended_it(stopping=stopping and process.signal is not None)
        return process

    def _note_who_ended_it(self, *, stopping: bool) -> None:
        """It exits, or dies of SIGTERM, only where the job in hand has taken away what it does at that."""
        if self._interrupted is not None and self._interrupted[0] == self.last.key:
            self.killed_key, self.killed_for = self._interrupted
        elif stopping:  # it came from a service manager, which signals all processes
            self.killed_for = CancelReason.SHUTDOWN

    def end_slow_boot(self, now: float, *, limit: timedelta) -> None:
        """Kill it when it should have been ready by now; once. To be asked while it is not."""
        if self.is_too_slow or self._booting.look(now) <= limit.total_seconds():
            return
        logger.error("Worker %s is not ready after %s; killing it", self.number, format_duration(limit))
        self.is_too_slow = True
        self.kill(CancelReason.SHUTDOWN)

    @property
    def is_lost(self) -> bool:
        """Whether it should be dead, and cannot be killed."""
        return self.is_out_of_reach and self.killed_for is not None

    def abandon(self) -> None:
        """Let go of it although it lives. It sees the end of its pipe, and leaves when its job has ended."""
        what = "Worker %s (pid %s) cannot be killed and is left; it leaves when its job ends"
        logger.error(what, self.number, self.child.pid)
        self.child.abandon()
        self.close()

    def close(self) -> None:
        """Close what belongs to a reaped worker, and free its slot."""
        self.channels.close()
        self.slots.set_process(self.index, pid=0, started_ticks=0)

    def _signal(self, number: int) -> bool:
        """Whether it may be signalled; that it may not any more is told."""
        may = self.child.kill() if number == signal.SIGKILL else self.child.signal(number)
        if not may and not self.is_out_of_reach:
            logger.error(
                "Worker %s (pid %s) may not be signalled, so its job cannot be ended: it is another user's, "
                "and the server has no right to signal those (CAP_KILL)",
                self.number, self.child.pid,
            )  # fmt: skip
        self.is_out_of_reach = not may
        return may

    def _send(self, kind: Kind, key: ClaimKey | None = None, reason: CancelReason | None = None) -> bool:
        return send(self.channels.pipe_fd, Message(kind=kind, key=key, reason=reason))
