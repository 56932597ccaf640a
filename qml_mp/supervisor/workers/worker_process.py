"""Supervisor: one worker as its supervisor sees it."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass, field

from qml_mp.core.job import ClaimKey
from qml_mp.ipc.messages import Kind, Message
from qml_mp.ipc.pipe import send
from qml_mp.ipc.slot import Activity, SlotTable, SlotView
from qml_mp.ipc.stack import STACK_SIGNAL, empty, read_stack
from qml_mp.processing.cancel import CancelReason
from qml_mp.supervisor.workers.fork import Child
from qml_mp.supervisor.workers.ladder import Plan, Rung

_BUSY = (Activity.RUNNING, Activity.FINISHING)


@dataclass(kw_only=True, eq=False)
class WorkerProcess:
    """A live (or not yet reaped) worker. Mutable; owned by the supervisor's one thread."""

    number: int
    index: int
    """Of its slot."""
    worker_id: str
    child: Child
    pipe_fd: int
    stack_fd: int
    slots: SlotTable
    forked_at: float
    ready: bool = False
    """As far as the supervisor has noted it; `has_booted` is the fact."""
    ready_at: float = 0.0
    is_too_slow: bool = False
    """Killed because it was not ready in time."""
    leaving: bool = False
    """Told to finish its job and leave."""
    busy_at: float = float("-inf")
    """When it was last seen with a job in hand."""
    cancels: dict[ClaimKey, Plan] = field(default_factory=dict)
    """Cancels from outside that it has to be told of."""
    pushed_key: ClaimKey | None = None
    pushed: Rung = Rung.NONE
    """How far the job `pushed_key` has been pushed."""
    pushed_for: CancelReason | None = None
    killed_for: CancelReason | None = None
    killed_key: ClaimKey | None = None
    last: SlotView = field(default_factory=SlotView)

    def look(self) -> SlotView:
        """What the worker says now (what it said before, while it writes)."""
        view = self.slots.read(self.index)
        if view is not None:
            self.last = view
        return self.last

    @property
    def has_booted(self) -> bool:
        """Whether it has ever been ready, also of a worker that is dead by now."""
        return self.slots.was_ready(self.index)

    @property
    def is_idle(self) -> bool:
        """Ready and without a job."""
        return self.ready and self.last.activity not in _BUSY

    @property
    def is_busy(self) -> bool:
        """With a job in hand."""
        return self.last.activity in _BUSY

    def wake(self) -> None:
        """There may be work. A full pipe says so already."""
        send(self.pipe_fd, Message(kind=Kind.WAKE))

    def pause(self) -> None:
        """Claim nothing until woken."""
        send(self.pipe_fd, Message(kind=Kind.PAUSE))

    def doubt(self) -> bool:
        """Look whether it holds a claim that it does not know of; whether the pipe took the message."""
        return send(self.pipe_fd, Message(kind=Kind.DOUBT))

    def leave(self) -> None:
        """Finish the job in hand, then exit."""
        self.leaving = send(self.pipe_fd, Message(kind=Kind.LEAVE)) or self.leaving

    def push(self, rung: Rung, key: ClaimKey, reason: CancelReason) -> None:
        """Take the job `key` up to the rung; each rung (and a new reason for it) is told once."""
        if self.pushed_key != key:
            self.pushed_key, self.pushed, self.pushed_for = key, Rung.NONE, None
        if rung < self.pushed or (rung == self.pushed and (rung is Rung.NONE or reason is self.pushed_for)):
            return
        match rung:
            case Rung.NONE:
                return
            case Rung.ASK:
                told = send(self.pipe_fd, Message(kind=Kind.CANCEL, key=key, reason=reason))
            case Rung.INTERRUPT:
                told = send(self.pipe_fd, Message(kind=Kind.INTERRUPT, key=key, reason=reason))
                self.child.signal(signal.SIGTERM)
            case Rung.DUMP_STACK:
                told = True
                self.ask_for_stack()
            case Rung.KILL:
                told = True
                self.kill(reason, key)
        if told:  # else its pipe is full: tried again at the next turn
            self.pushed, self.pushed_for = rung, reason

    def ask_for_stack(self) -> None:
        """Make the worker write its stack; a moment later `stack()` has it."""
        empty(self.stack_fd)
        self.child.signal(STACK_SIGNAL)

    def stack(self) -> str | None:
        """The stack that it wrote last: when asked, or when it died of a fatal signal."""
        return read_stack(self.stack_fd)

    def kill(self, reason: CancelReason, key: ClaimKey | None = None) -> None:
        """SIGKILL the worker and its whole process group."""
        if self.killed_for is None:
            self.killed_for, self.killed_key = reason, key
        self.child.kill()

    def close(self) -> None:
        """Let go of what belongs to a reaped worker."""
        os.close(self.pipe_fd)
        os.close(self.stack_fd)
        self.slots.set_process(self.index, pid=0, started_ticks=0)
