"""Supervisor: the worker processes: spawned, watched for readiness and death, woken, replaced, drained."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from signal import SIGKILL
from typing import Any

from qml_mp.clock import Clock
from qml_mp.core.outcome import ProcessFacts
from qml_mp.core.server_info import new_worker_id
from qml_mp.errors import ConfigurationError
from qml_mp.events.emitter import Emitter
from qml_mp.ipc.bell import Bell
from qml_mp.ipc.ended import EndedTable
from qml_mp.ipc.slot import Activity, SlotTable
from qml_mp.ipc.turns import Turns
from qml_mp.processing.cancel import CancelReason
from qml_mp.settings import MOST_WORKERS
from qml_mp.storage.waiting import MANY_JOBS
from qml_mp.supervisor.part import Part, in_short
from qml_mp.supervisor.workers.boots import Boots
from qml_mp.supervisor.workers.death import Death, OomWatch
from qml_mp.supervisor.workers.descriptors import Room
from qml_mp.supervisor.workers.replacing import Replacing, has_to_leave_first, missing_numbers
from qml_mp.supervisor.workers.spawning import spawn_worker
from qml_mp.supervisor.workers.totals import EndTotals
from qml_mp.supervisor.workers.worker_process import WorkerProcess, WorkerSpec

_SPARE_SLOTS = 64
_SHORT_LIFE_S = 1.0
_LOOK_EVERY_S = 0.25
_LOOK_AT_BOOTS_EVERY_S = 0.01


class WorkerPool(Part):
    """All workers of one supervisor: iterate over it for those that have not been reaped."""

    def __init__(self, spec: WorkerSpec, *, all_parts: Part, clock: Clock, events: Emitter) -> None:
        """`all_parts` get ready for each fork."""
        self._spec = spec
        self._all_parts = all_parts
        self._clock = clock
        self.slots = SlotTable(spec.config.worker_count + _SPARE_SLOTS)
        self.ended = EndedTable(self.slots.capacity)
        self.totals = EndTotals()
        """Of what came of their claims."""
        self.bell = Bell()
        self._turns = Turns()
        self._events = events
        self.boots = Boots(events)
        self.paused = False
        self.busy_at = float("-inf")
        """When a worker was last seen with a job in hand."""
        self._workers: dict[str, WorkerProcess] = {}
        self._spawned = 0
        self._newest_index = 0
        self._untold: list[WorkerProcess] = []  # started a moment ago
        self.replacing = Replacing()
        self._room = Room(clock)
        self._oom = OomWatch(clock)

    def __iter__(self) -> Iterator[WorkerProcess]:
        return iter(list(self._workers.values()))

    def __len__(self) -> int:
        return len(self._workers)

    def fds(self) -> list[int]:
        """Readable when their worker has died."""
        return [fd for worker in self for fd in worker.child.fds]

    def own_fds(self) -> list[int]:
        shared = self.bell.fds | self._turns.fds
        return [*self.fds(), *shared, *(fd for worker in self for fd in worker.channels.fds)]

    def next_at(self) -> float:
        now = self._clock.monotonic()
        if self._booting:
            return now + _LOOK_AT_BOOTS_EVERY_S  # readiness is a word in memory: it wakes nobody
        again_at = float("inf")
        if self._missing() and not self._is_full:  # else a death wakes, and the look below ends the pause
            again_at = self.boots.next_at()
        # A worker that begins a job or is used up says so in memory, which wakes nobody.
        return min(again_at, now + _LOOK_EVERY_S, *(worker.looks_by for worker in self))

    def turn(self) -> None:
        """Read every slot; note who has become ready and who takes too long for it."""
        now, has_one_missed_wake = self._clock.monotonic(), False
        for worker in self:
            worker.look(now)
            has_one_missed_wake |= worker.has_missed_wake(now)
            if worker.number > self.size:
                worker.leave()  # again while its pipe is full
            self.busy_at = max(self.busy_at, worker.busy_at)
            if worker.ready_at is not None:
                if worker.last.used_up and not worker.leaving:
                    self.replacing.ask_for(worker.worker_id)
                if worker.is_busy or worker.last.jobs_done or now - worker.ready_at >= _SHORT_LIFE_S:
                    self.boots.was_of_use(ready_at=worker.ready_at)
            elif not worker.has_booted:
                worker.end_slow_boot(now, limit=self._spec.config.boot_timeout)
        self._note_booted()
        if has_one_missed_wake:
            self.wake_idle()
        self._oom.look()

    def trouble(self) -> str | None:
        shortage = self._room.shortage
        return self.boots.trouble() or (shortage and in_short("Fewer workers run than are wanted", shortage))

    def close(self) -> None:
        self.bell.close()
        self._turns.close()

    @property
    def size(self) -> int:
        """How many workers are wanted."""
        return self._spec.config.worker_count

    @property
    def is_whole(self) -> bool:
        """Whether there are as many workers as are wanted, or as there is room for."""
        return len(self) >= self.size or self._room.shortage is not None

    def rename(self, server_id: str) -> None:
        """Workers forked from now on belong to this run of the server."""
        self._spec = replace(self._spec, server_id=server_id)

    def serve(self, queues: Sequence[str]) -> None:
        """Workers forked from now on take jobs from these queues."""
        self._configure(queues=queues)

    def resize(self, size: int) -> None:
        """Have `size` workers from now on; those beyond it are soon told to finish their job and leave."""
        # One slot is for a replacement that boots.
        self._configure(worker_count=max(0, min(size, self.slots.capacity - 1, MOST_WORKERS)))
        if not self._missing():
            self.boots.end_row()

    def spawn_workers(self) -> None:
        """Fork workers until every number is filled, then a replacement if one is wanted, as fast as
        the back-off allows."""
        for number in self._missing():
            if self._try_to_spawn(number) is None:
                break
        else:
            if self.replacing.next_of(self) is None:
                self._room.suffices()
        self._replace_next()
        while self._untold:  # last: of all that is written to between two forks, each child keeps a copy
            self._events.emit(self._untold.pop(0).started())

    def replace_all(self) -> None:
        """Replace the workers one by one. Each is told to finish its job and leave when its replacement
        is ready; when one cannot boot, the workers that are left stay."""
        self.boots.begin_anew(worker.worker_id for worker in self if not worker.is_ready)
        self.replacing.ask_for_all(self._workers)

    def reap(
        self, *, stopping: bool = False, may_count_as_dead: Callable[[], bool] = lambda: False
    ) -> list[Death]:
        """Those that have died. `stopping`: the server is, and that is what a SIGTERM was for.
        `may_count_as_dead`: peers may have taken the server for dead, and that is what a SIGKILL was for."""
        now = self._clock.monotonic()
        reaped = {worker: worker.reap(now, stopping=stopping) for worker in self}
        self._note_booted()
        return [
            self._remove(worker, process, may_count_as_dead)
            for worker, process in reaped.items()
            if process is not None
        ]

    def wake_idle(self, jobs: int = MANY_JOBS) -> None:
        """Tell idle workers that there may be work, at most so many of them as there are jobs, unless claims
        are paused. One that was told and has not looked since is left to what it was told of."""
        now = self._clock.monotonic()
        for worker in self:
            worker.look(now)
        idle = [worker for worker in self if worker.can_be_woken]
        # First those that wait: who looks just now may have begun before there was anything.
        idle.sort(key=lambda worker: worker.last.activity is not Activity.IDLE)
        for worker in idle[: 0 if self.paused else jobs]:
            worker.wake(now)

    def pause(self, paused: bool) -> None:
        """Have no worker claim until told otherwise; those forked meanwhile neither."""
        self.paused = paused
        for worker in self:
            worker.pause() if paused else worker.wake(self._clock.monotonic())

    def drain(self) -> None:
        """Tell every worker to finish its job and leave."""
        for worker in self:
            worker.leave()

    def kill_all(self, reason: CancelReason) -> None:
        for worker in self:
            worker.kill(reason)

    def abandon_lost(self) -> bool:
        """Let go of those that cannot be killed; whether there are some."""
        lost, self._workers = self._workers, {}
        for worker in lost.values():
            worker.abandon()
        return bool(lost)

    @property
    def _booting(self) -> int:
        return sum(not worker.is_ready for worker in self)

    @property
    def _is_full(self) -> bool:
        """Whether there is no place for another one, until some have left."""
        return self._room.is_full or len(self) >= self.slots.capacity

    def _missing(self) -> list[int]:
        return missing_numbers(self._workers.values(), size=self.size)

    def _configure(self, **changes: Any) -> None:
        self._spec = replace(self._spec, config=replace(self._spec.config, **changes))

    def _note_booted(self) -> None:
        """Note who has become ready; also before deaths are judged: one that has died in its first job had
        booted, and for another that could not boot no start is refused that has a job in hand by now."""
        for worker in self:
            if not worker.is_ready and worker.has_booted:
                replaces = self.replacing.predecessor_of(worker.worker_id)
                self.boots.succeeded(worker.worker_id)
                self._events.emit(worker.note_ready(self._clock.monotonic(), replaces=replaces))
        self._let_predecessors_go()

    def _replace_next(self) -> None:
        """One at a time, and only while all that there should be are ready: so there is at most one process
        too many, and never a ready worker too few. Where there is no room for that, the old one makes it."""
        old = self.replacing.next_of(self)
        if old is None or self._booting:
            return
        now, is_full = self._clock.monotonic(), self._room.is_full
        if has_to_leave_first(old, self._workers.values(), size=self.size, is_full=is_full, now=now):
            old.leave()
            if old.leaving:
                self.replacing.begin(old.worker_id, new=None)
        elif len(self) == self.size and not any(worker.leaving for worker in self):
            new = self._try_to_spawn(old.number)
            if new is not None:
                self.replacing.begin(old.worker_id, new=new)

    def _predecessor_of(self, worker: WorkerProcess) -> WorkerProcess | None:
        """The worker that this one is to replace, while it is not told to leave."""
        old = self._workers.get(self.replacing.predecessor_of(worker.worker_id) or "")
        return None if old is None or old.leaving else old

    def _let_predecessors_go(self) -> None:
        for worker in self:
            old = self._predecessor_of(worker)
            if old is not None and worker.is_ready:
                old.leave()

    def _try_to_spawn(self, number: int) -> str | None:
        """The id of the new worker; None: not now."""
        if self._is_full or not self.boots.allow_another(self._clock.monotonic(), booting=self._booting):
            return None
        try:
            return self._spawn(number).worker_id
        except OSError as error:
            if not self._room.ran_out(error, running=len(self), wanted=self.size):
                self.boots.was_refused(error, number=number, now=self._clock.monotonic())
        except ConfigurationError as error:
            if self.boots.was_barred(str(error), self._clock.monotonic()) and not self._workers:
                raise
            self._room.note_bar(str(error))
        return None

    def _spawn(self, number: int) -> WorkerProcess:
        self._all_parts.before_fork()
        self._room.check()
        self._spawned += 1
        worker = spawn_worker(
            self._spec, number=number, slots=self.slots, ended=self.ended, bell=self.bell, turns=self._turns,
            worker_id=new_worker_id(self._spec.server_id, number=number, nth=self._spawned),
            index=self._free_slot(), own_fds=self._all_parts.own_fds(), now=self._clock.monotonic(),
            paused=self.paused, memory_limit=self.boots.memory_limit(self._spec.config),
        )  # fmt: skip
        self._workers[worker.worker_id] = worker
        self.totals.follow(worker.worker_id, worker.channels.ended.counts)
        self._untold.append(worker)
        return worker

    def _free_slot(self) -> int:
        """Each in turn, because what a dead worker has left in its slot is the guardian's should this process
        die before it has settled that."""
        taken, capacity = {worker.index for worker in self}, self.slots.capacity
        in_turn = ((self._newest_index + step) % capacity for step in range(1, capacity + 1))
        self._newest_index = next(index for index in in_turn if index not in taken)
        return self._newest_index

    def _remove(
        self, worker: WorkerProcess, process: ProcessFacts, may_count_as_dead: Callable[[], bool]
    ) -> Death:
        now = self._clock.monotonic()
        old, stack = self._predecessor_of(worker), worker.last_stack()
        left = worker.channels.tickets.take_all()
        del self._workers[worker.worker_id]
        worker.close()
        self.totals.part_from(worker.worker_id)
        self._turns.give()  # it may have been this worker's
        self.wake_idle()  # it may have been the one that was told of a job
        self._room.freed()
        ended = worker.channels.ended
        is_a_strangers_kill = process.signal == SIGKILL and worker.killed_for is None
        oom_killed = is_a_strangers_kill and self._oom.struck()
        killed_for = worker.killed_for
        if is_a_strangers_kill and not oom_killed and may_count_as_dead():
            # A peer of this machine did it, and may not have given the jobs to others yet.
            killed_for = CancelReason.ORPHANED
        death = Death(
            worker_id=worker.worker_id, number=worker.number, process=process, slot=worker.last, stack=stack,
            killed_for=killed_for, killed_key=worker.killed_key, is_too_slow=worker.is_too_slow,
            ended=ended.read()[1], uncounted=ended.uncounted(), not_begun=worker.taken.union(left),
            has_taken=self.slots.has_taken(worker.index),
            has_unread_reply=self.slots.unread(worker.index) != 0,
            oom_killed=oom_killed,
        )  # fmt: skip
        if not worker.is_ready:
            old_works_on = old is not None and old.killed_for is None
            if self.boots.failed(worker, death, old_works_on=old_works_on) and old_works_on:
                self.replacing.give_up()
        if not death.was_orderly and not death.was_busy and now - (worker.ready_at or now) < _SHORT_LIFE_S:
            self.boots.was_useless(now, was_ready=worker.is_ready)
        self._events.emit(death.stopped())
        return death
