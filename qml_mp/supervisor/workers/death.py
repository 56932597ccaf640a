"""Supervisor: what is known of a dead worker, and whether the kernel's OOM killer has just killed."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from qml_mp import host
from qml_mp.child.exits import WorkerExit
from qml_mp.clock import Clock
from qml_mp.core.job import ClaimKey
from qml_mp.core.outcome import Outcome, ProcessFacts
from qml_mp.events.facts import WorkerStopped
from qml_mp.ipc.ended import Uncounted
from qml_mp.ipc.slot import Activity, SlotView
from qml_mp.ipc.stack import LastStack
from qml_mp.processing.cancel import CancelReason

_LOOK_EVERY_S = 1.0
CAUSES = (
    "left", "recycled", "slow_boot", "cannot_boot", "out_of_memory", "exit", *map(str, CancelReason),
    "SIGKILL", "SIGTERM", "SIGSEGV", "SIGABRT", "SIGBUS", "SIGFPE", "SIGILL",
)  # fmt: skip
"""What `Death.cause` may be, but for rarer signals."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Death:
    """A worker that has been reaped, so it is proved dead."""

    worker_id: str
    number: int
    process: ProcessFacts
    slot: SlotView = field(default_factory=SlotView)
    """The last thing that it said whole."""
    killed_for: CancelReason | None = None
    """Why we killed it, or a peer did that took this server for dead; None: it died by itself."""
    killed_key: ClaimKey | None = None
    """The claim that the kill was meant for; None: whatever it held."""
    is_too_slow: bool = False
    """We killed it because it was not ready in time."""
    oom_killed: bool = False
    """The kernel's OOM killer killed at the time of its death, and we did not kill it."""
    stack: LastStack = field(default_factory=LastStack)
    """Its last Python stack, where it could be had."""
    ended: Mapping[ClaimKey, Outcome] = field(default_factory=dict)
    """What came of jobs that had ended, written to storage or not."""
    uncounted: Mapping[ClaimKey, Uncounted] = field(default_factory=dict)
    """Of these jobs, those that it had not counted, because it did not know that they are written."""
    not_begun: Collection[ClaimKey] = ()
    """Claims whose tickets it had not taken."""
    has_taken: bool = False
    """It had taken a claim to begin its job, be it that it had not shown which."""
    has_unread_reply: bool = False
    """It had asked for claims and not read the reply. It had begun none of these."""

    reaped_ns: int = field(default_factory=time.monotonic_ns, compare=False)

    def ran_us(self, key: ClaimKey) -> int:
        """How long this claim was in its hands, as far as it has said so."""
        since_ns = self.slot.since_ns if self.slot.key == key else 0
        return max(0, self.reaped_ns - since_ns) // 1000 if since_ns else 0

    @property
    def not_kept(self) -> Collection[ClaimKey]:
        """Claims whose jobs had ended, and it could not keep what came of them, or has taken that back: of
        all that it had run since it last wrote, because one of these has left a transaction open."""
        return {key for key, one in self.uncounted.items() if one.outcome is None}

    @property
    def was_orderly(self) -> bool:
        """It left as designed and knew of no claim: one that it holds all the same came with a lost reply.
        Its exit code alone does not tell: any job can leave with any."""
        is_leaving = self.slot.activity is Activity.LEAVING
        return is_leaving and self.process.exit_code in (WorkerExit.LEFT, WorkerExit.RECYCLED)

    @property
    def was_busy(self) -> bool:
        return self.slot.activity in (Activity.RUNNING, Activity.FINISHING)

    @property
    def was_in_hook(self) -> bool:
        """What ran was no job, but told of one that had ended or never began."""
        return self.slot.activity is Activity.RUNNING and self.slot.is_over

    @property
    def how(self) -> str:
        """ "left as told", "was killed by SIGKILL": for people."""
        if not self.was_orderly:
            why = ", since a peer took this server for dead"
            return how_it_died(self.process) + (why if self.killed_for is CancelReason.ORPHANED else "")
        return "left as told" if self.process.exit_code == WorkerExit.LEFT else "left to be replaced"

    @property
    def cause(self) -> str:
        """`how`, as one of few words."""
        if self.was_orderly:
            return "left" if self.process.exit_code == WorkerExit.LEFT else "recycled"
        if self.is_too_slow:
            return "slow_boot"
        if self.killed_for is not None:
            return str(self.killed_for)
        if self.oom_killed:
            return "out_of_memory"
        if self.slot.activity is Activity.CANNOT_BOOT:
            return "cannot_boot"
        return self.process.signal_name or "exit"

    def stopped(self) -> WorkerStopped:
        said = "" if self.slot.activity is Activity.CANNOT_BOOT else self.slot.text
        return WorkerStopped(
            worker_id=self.worker_id,
            number=self.number,
            pid=self.process.pid,
            process=self.process,
            how=f"{self.how} ({said})" if said else self.how,
            was_orderly=self.was_orderly,
            cause=self.cause,
        )


def how_it_died(process: ProcessFacts) -> str:
    """ "was killed by SIGKILL", "exited with code 1": for people."""
    if process.signal is not None:
        return f"was killed by {process.signal_name}"
    if process.exit_code is not None:
        return f"exited with code {process.exit_code}"
    return "died in a way that was not told"


class OomWatch:
    """Compares the kernel's count of its kills with that of a moment ago, so that a worker's SIGKILL is
    not taken for one of its kills that was somebody else's, long before."""

    def __init__(self, clock: Clock, *, count: Callable[[], int | None] = host.oom_kills) -> None:
        self._clock = clock
        self._count = count
        # Two: the newer one may have been read between the kill and the death that came of it.
        self._seen = deque([count()], maxlen=2)
        self._look_at = clock.monotonic() + _LOOK_EVERY_S

    def look(self) -> None:
        """Read the count; at most once a second, however often it is called."""
        now = self._clock.monotonic()
        if now >= self._look_at:
            self._look_at = now + _LOOK_EVERY_S
            self._seen.append(self._count())

    def struck(self) -> bool:
        """Whether it killed within the last second or two. False where the kernel does not tell."""
        now, before = self._count(), self._seen[0]
        return None not in (now, before) and now != before
