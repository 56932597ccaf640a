"""Supervisor, pure: the one ladder by which a job is ended, for cancel, timeout and shutdown.

ask (a message), interrupt (a message and SIGTERM), kill (SIGKILL to the process group). Right
before the kill the worker is made to write its stack, for the job's record. Each reason sets
instants for the rungs; all instants are on the monotonic clock.

Where everything stood still for a while (a paused container), the instants of several rungs have passed at
once. No rung is left out then, and each has its time from when the one before was taken. A stop's instants
stay as they are: whoever stops the server waits no longer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from enum import IntEnum

from qml_mp.processing.cancel import CancelReason

_DUMPING_A_STACK_S = 1.0  # what it may take to ask for a stack and write it, where processors are waited for
_UNWINDING_PART = 4  # of the time promised at shutdown, at most the last quarter is for unwinding


class Rung(IntEnum):
    """How far a job has been pushed."""

    NONE = 0
    ASK = 1
    INTERRUPT = 2
    DUMP_STACK = 3
    KILL = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """When each rung is due, and why."""

    reason: CancelReason
    ask_at: float
    interrupt_at: float
    kill_at: float

    @property
    def dump_stack_at(self) -> float:
        unwinding_s = self.kill_at - self.interrupt_at
        return self.kill_at - min(_DUMPING_A_STACK_S, unwinding_s / 2)

    def begun(self, taken_at: Mapping[Rung, float], now: float) -> Plan:
        """As it is for a claim whose rungs were taken at these instants; the others not before now."""
        if self.reason is CancelReason.SHUTDOWN:
            return self
        ask_at = max(self.ask_at, taken_at.get(Rung.ASK, now))
        due_at = ask_at + (self.interrupt_at - self.ask_at)
        interrupt_at = max(due_at, taken_at.get(Rung.INTERRUPT, now))
        kill_at = interrupt_at + (self.kill_at - self.interrupt_at)
        plan = replace(self, ask_at=ask_at, interrupt_at=interrupt_at, kill_at=kill_at)
        late_s = max(0.0, taken_at.get(Rung.DUMP_STACK, now) - plan.dump_stack_at)
        return replace(plan, kill_at=kill_at + late_s)

    def rung(self, now: float) -> Rung:
        """The highest rung that is due."""
        if now >= self.kill_at:
            return Rung.KILL
        if now >= self.dump_stack_at:
            return Rung.DUMP_STACK
        if now >= self.interrupt_at:
            return Rung.INTERRUPT
        return Rung.ASK if now >= self.ask_at else Rung.NONE

    def next_after(self, now: float) -> float:
        """The instant of the next rung; infinity when all are due."""
        rungs = (self.ask_at, self.interrupt_at, self.dump_stack_at, self.kill_at)
        return min((at for at in rungs if at > now), default=float("inf"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Graces:
    """The settings of the ladder."""

    cancel_grace: timedelta
    term_grace: timedelta
    shutdown_timeout: timedelta

    def timeout(self, *, at: float) -> Plan:
        """A job may run until then."""
        return self._from(at, CancelReason.TIMEOUT)

    def cancel(self, *, asked: float) -> Plan:
        """Somebody asked for the job's end."""
        return self._from(asked, CancelReason.CANCELLED)

    def shutdown(self, *, stopped: float) -> Plan:
        """The server was told to stop: jobs may finish until the last part of the time that they were
        promised, which is `term_grace` or a quarter of it, whichever is shorter."""
        promised_s = self.shutdown_timeout.total_seconds()
        kill_at = stopped + promised_s
        interrupt_at = kill_at - min(self.term_grace.total_seconds(), promised_s / _UNWINDING_PART)
        return Plan(reason=CancelReason.SHUTDOWN, ask_at=stopped, interrupt_at=interrupt_at, kill_at=kill_at)

    def _from(self, ask_at: float, reason: CancelReason) -> Plan:
        interrupt_at = ask_at + self.cancel_grace.total_seconds()
        kill_at = interrupt_at + self.term_grace.total_seconds()
        return Plan(reason=reason, ask_at=ask_at, interrupt_at=interrupt_at, kill_at=kill_at)
