"""Supervisor: the fleet of workers: forked, watched for readiness and death, woken, replaced, sent away."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from signal import SIGKILL

from qml_mp.child.main import WorkerArguments, worker_main
from qml_mp.child.source import ProgramSource
from qml_mp.clock import Clock
from qml_mp.core.outcome import ProcessFacts
from qml_mp.ipc.pipe import open_pipe
from qml_mp.ipc.slot import Activity, SlotTable
from qml_mp.ipc.stack import open_stack_file
from qml_mp.processing.cancel import CancelReason
from qml_mp.settings import ServerConfig
from qml_mp.supervisor.recovery.settle import Death
from qml_mp.supervisor.workers.backoff import BootBackoff
from qml_mp.supervisor.workers.descriptors import Room
from qml_mp.supervisor.workers.fork import Child, fork_child, reap
from qml_mp.supervisor.workers.oom import OomWatch
from qml_mp.supervisor.workers.replacing import Replacing
from qml_mp.supervisor.workers.worker_process import WorkerProcess
from qml_mp.units import format_duration

logger = logging.getLogger(__name__)

_SPARE_SLOTS = 64
_SHORT_LIFE_S = 1.0
_LOOK_EVERY_S = 0.25
_WRITING_A_STACK_S = 0.1
_SILENT_BOOT_DEATHS = 5  # in a row, of workers that have no error to show, until that is the error


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSpec:
    """What the fleet needs of the supervisor for a fork."""

    config: ServerConfig
    url: str
    source: ProgramSource
    before_fork: Callable[[], None]
    """Closes whatever must not cross a fork."""
    own_fds: Callable[[], Collection[int]]
    """The supervisor's descriptors beside those of the fleet."""


class Fleet:
    """All workers of one supervisor."""

    def __init__(self, spec: WorkerSpec, *, server_id: str, clock: Clock) -> None:
        self._spec = spec
        self._server_id = server_id
        self._clock = clock
        self.slots = SlotTable(spec.config.worker_count + _SPARE_SLOTS)
        self.size = spec.config.worker_count
        self.was_ever_ready = False
        self.boot_error: str | None = None
        """What the newest worker that could not boot had to say; None again once one is ready."""
        self.backoff = BootBackoff()
        self._members: dict[str, WorkerProcess] = {}
        self._replacing = Replacing()
        self._room = Room(clock)
        self._silent_boot_deaths = 0
        self._stacks_at: float | None = None
        self._oom = OomWatch(clock)
        self._incarnation = 0
        self.paused = False

    def __iter__(self) -> Iterator[WorkerProcess]:
        return iter(list(self._members.values()))

    def __len__(self) -> int:
        return len(self._members)

    @property
    def fds(self) -> list[int]:
        """The descriptors held for workers: pidfds, writing ends and stack files."""
        ends = [fd for member in self._members.values() for fd in (member.pipe_fd, member.stack_fd)]
        return [*self.pidfds, *ends]

    @property
    def pidfds(self) -> list[int]:
        """Readable when their worker has died."""
        return [member.child.pidfd for member in self._members.values() if member.child.pidfd is not None]

    @property
    def shortage(self) -> str | None:
        """Why fewer workers run than are wanted, when it is for want of descriptors."""
        return self._room.shortage

    @property
    def booting(self) -> int:
        """Workers forked and not ready yet."""
        return sum(not member.ready for member in self._members.values())

    def rename(self, server_id: str) -> None:
        """Workers forked from now on belong to this run of the server."""
        self._server_id = server_id

    def resize(self, size: int) -> None:
        """Have `size` workers from now on; those beyond it finish their job and leave."""
        self.size = max(0, min(size, self.slots.capacity - 1))  # one slot is for a replacement that boots
        for member in self:
            if member.number > self.size:
                member.leave()

    def serve(self, queues: Sequence[str]) -> None:
        """Workers forked from now on take jobs from these queues."""
        config = replace(self._spec.config, queues=queues)
        self._spec = replace(self._spec, config=config)

    def replace_all(self) -> None:
        """Replace the workers one by one. Each is told to finish its job and leave when its replacement
        is ready; when one cannot boot, the workers that are left stay."""
        if self.was_ever_ready:
            self.boot_error = None  # should it be the same again, it is told again
        self._replacing.ask_for_all(self._members)

    def top_up(self) -> None:
        """Fork workers until every number is filled, then a replacement if one is wanted, as fast as
        the back-off allows."""
        taken = {member.number for member in self}
        for number in range(1, self.size + 1):
            if number not in taken and self._try_to_fork(number) is None:
                break
        else:
            if self._replacing.next_of(self._members) is None:
                self._room.suffices()
        self._replace_next()

    def look(self) -> None:
        """Read every slot; note who has become ready and who takes too long for it."""
        now = self._clock.monotonic()
        for member in self._members.values():
            member.look()
            if member.ready:
                self._note_used_up(member)
            elif member.has_booted:
                self._note_ready(member)
            elif now - member.forked_at > self._spec.config.boot_timeout.total_seconds():
                self._end_slow_boot(member)
        self._let_predecessors_go()
        self._oom.look()
        if self._stacks_at is not None and now >= self._stacks_at:
            self._stacks_at = None
            self._print_stacks()

    def reap(self) -> list[Death]:
        """Collect the dead."""
        deaths = []
        for member in self:
            process = reap(member.child)
            if process is not None:
                member.look()
                deaths.append(self._remove(member, process))
        return deaths

    def wake_idle(self) -> None:
        """Tell every idle worker that there may be work, unless claims are paused."""
        for member in self._members.values():
            if member.is_idle and not self.paused:
                member.wake()

    def pause(self, paused: bool) -> None:
        """Have no worker claim until told otherwise; those forked meanwhile neither."""
        self.paused = paused
        for member in self._members.values():
            member.pause() if paused else member.wake()

    def drain(self) -> None:
        """Tell every worker to finish its job and leave."""
        for member in self._members.values():
            if not member.leaving:
                member.leave()

    def ask_for_stacks(self) -> None:
        """Have every worker write its stack; it is printed at the look that comes after."""
        for member in self._members.values():
            if member.ready:
                member.ask_for_stack()
        self._stacks_at = self._clock.monotonic() + _WRITING_A_STACK_S

    def pids(self) -> dict[str, int]:
        """The processes by worker id."""
        return {member.worker_id: member.child.pid for member in self._members.values()}

    def kill_all(self, reason: CancelReason) -> None:
        """SIGKILL everybody."""
        for member in self._members.values():
            member.kill(reason)

    def next_at(self) -> float:
        """When the fleet wants to be looked at again, if nothing happens."""
        if self.booting:
            return self._clock.monotonic() + 0.01  # readiness is a word in memory: it wakes nobody
        if self._stacks_at is not None:
            return self._stacks_at
        now = self._clock.monotonic()
        missing = not {member.number for member in self}.issuperset(range(1, self.size + 1))
        again_at = self.backoff.next_at(booting=0) if missing else None
        # A worker that begins a job or is used up says so in memory, which wakes nobody.
        return now + _LOOK_EVERY_S if again_at is None else min(again_at, now + _LOOK_EVERY_S)

    def _note_ready(self, member: WorkerProcess) -> None:
        member.ready, member.ready_at, self.was_ever_ready = True, self._clock.monotonic(), True
        self._silent_boot_deaths = 0
        self.backoff.succeeded()
        self.boot_error = None
        logger.info("Worker %s is ready (pid %s)", member.number, member.child.pid)

    def _end_slow_boot(self, member: WorkerProcess) -> None:
        if member.is_too_slow:
            return
        member.is_too_slow = True
        limit = format_duration(self._spec.config.boot_timeout)
        logger.error("Worker %s is not ready after %s; killing it", member.number, limit)
        member.kill(CancelReason.SHUTDOWN)

    def _print_stacks(self) -> None:
        for member in self:
            what = member.last.method if member.is_busy else "idle"
            stack = member.stack() or "no stack: its job has blocked or taken the signal that asks for it"
            logger.info("Worker %s (pid %s, %s):\n%s", member.number, member.child.pid, what, stack)

    def _note_used_up(self, member: WorkerProcess) -> None:
        if member.last.used_up and not member.leaving:
            self._replacing.ask_for(member.worker_id)

    def _replace_next(self) -> None:
        """One at a time, and only while all that there should be are ready and none is on its way out:
        so there is at most one process too many, and never a ready worker too few. Where there is no room
        for one process too many, the old worker makes it."""
        if any(member.leaving or not member.ready for member in self):
            return
        old = self._replacing.next_of(self._members)
        if old is None:
            return
        if self._room.is_full:
            self._replacing.begin(old, new=None)
            self._members[old].leave()
        elif len(self._members) == self.size:
            new = self._try_to_fork(self._members[old].number)
            if new is not None:
                self._replacing.begin(old, new=new)

    def _let_predecessors_go(self) -> None:
        for member in self:
            old = self._members.get(self._replacing.predecessor_of(member.worker_id) or "")
            if old is not None and member.ready and not old.leaving:
                old.leave()

    def _try_to_fork(self, number: int) -> str | None:
        """The id of the new worker; None: not now."""
        if not self.backoff.allows(self._clock.monotonic(), booting=self.booting):
            return None
        if self._room.is_full or len(self._members) >= self.slots.capacity:
            return None  # until some of those that were told to leave have left
        try:
            return self._fork(number)
        except OSError as error:
            if self._room.ran_out(error, running=len(self._members), wanted=self.size):
                return None
            self.backoff.failed(self._clock.monotonic())
            logger.error("Cannot fork worker %s: %s; will try again", number, error)
            return None

    def _fork(self, number: int) -> str:
        self._spec.before_fork()
        self._room.check()
        index = self._free_index()
        self.slots.clear(index)
        self._incarnation += 1
        worker_id = f"{self._server_id}:worker:{number}.{self._incarnation}"
        (reading, writing), stack_fd = _open_channels()
        arguments = WorkerArguments(
            number=number,
            worker_id=worker_id,
            server_id=self._server_id,
            url=self._spec.url,
            config=replace(self._spec.config, worker_count=max(self.size, number)),
            source=self._spec.source,
            pipe_fd=reading,
            stack_fd=stack_fd,
            slot=self.slots.writer(index),
        )
        own_fds = {*self._spec.own_fds(), *self.fds, writing}
        try:
            child = fork_child(
                lambda: worker_main(arguments),
                own_fds=own_fds,
                keep_fds={reading, stack_fd},
                die_with_parent=True,
            )
        except BaseException:
            os.close(writing)
            os.close(stack_fd)
            raise
        finally:
            os.close(reading)
        self._enlist(number, index, worker_id, child, writing, stack_fd)
        return worker_id

    def _enlist(
        self, number: int, index: int, worker_id: str, child: Child, pipe_fd: int, stack_fd: int
    ) -> None:
        self.slots.set_process(index, pid=child.pid, started_ticks=child.started_ticks)
        self._members[worker_id] = WorkerProcess(
            number=number, index=index, worker_id=worker_id, child=child, pipe_fd=pipe_fd,
            stack_fd=stack_fd, slots=self.slots,
            forked_at=self._clock.monotonic(),
        )  # fmt: skip
        if self.paused:
            self._members[worker_id].pause()
        logger.info("Worker %s started (pid %s)", number, child.pid)

    def _free_index(self) -> int:
        taken = {member.index for member in self._members.values()}
        return next(index for index in range(self.slots.capacity) if index not in taken)

    def _note_boot_failure(self, member: WorkerProcess, death: Death) -> None:
        """It died before it was ready: by its own word that it cannot boot, or without a word. Shown once,
        not at each try; the first boot's error is the caller's to show."""
        gave_reason = member.last.activity is Activity.CANNOT_BOOT
        if not gave_reason and death.killed_for is not None and not member.is_too_slow:
            return  # whoever killed it did not mean its boot
        text = member.last.text if gave_reason else f"It {death.how}."
        old = self._members.get(self._replacing.predecessor_of(member.worker_id) or "")
        if old is not None and not old.leaving and old.killed_for is None:
            self._replacing.give_up()
            self._note_boot_error("A new worker cannot boot, so the old ones stay and work on", text)
            return
        if not gave_reason:
            self._silent_boot_deaths += 1
            if self._silent_boot_deaths < _SILENT_BOOT_DEATHS:
                return
            text = f"{_SILENT_BOOT_DEATHS} workers in a row died while booting, without a reason. {text}"
        self._note_boot_error("Workers cannot boot; trying again, ever more slowly", text)

    def _note_boot_error(self, what_follows: str, text: str) -> None:
        if self.was_ever_ready and text != self.boot_error:
            logger.error("%s:\n%s", what_follows, text)
        self.boot_error = text

    def _remove(self, member: WorkerProcess, process: ProcessFacts) -> Death:
        now = self._clock.monotonic()
        stack = member.stack()
        if member.has_booted and not member.ready:
            self._note_ready(member)  # it died in its first job, before anybody looked
            self._let_predecessors_go()
        del self._members[member.worker_id]
        member.close()
        self._room.freed()
        death = Death(
            worker_id=member.worker_id,
            number=member.number,
            process=process,
            slot=member.last,
            killed_for=member.killed_for,
            killed_key=member.killed_key,
            stack=stack,
            oom_killed=process.signal == SIGKILL and member.killed_for is None and self._oom.struck(),
        )
        if not member.ready:
            self._note_boot_failure(member, death)
        if not death.was_orderly and not death.was_busy and now - (member.ready_at or now) < _SHORT_LIFE_S:
            self.backoff.failed(now)
        level = logging.INFO if death.was_orderly else logging.WARNING
        logger.log(level, "Worker %s stopped (pid %s): it %s", member.number, process.pid, death.how)
        return death


def _open_channels() -> tuple[tuple[int, int], int]:
    """The pipe to a new worker and its stack file; neither when there is no room for both."""
    pipe = open_pipe()
    try:
        return pipe, open_stack_file()
    except BaseException:
        for fd in pipe:
            os.close(fd)
        raise
