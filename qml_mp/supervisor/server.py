"""Supervisor: the parent process of a running server. Read `run` and `_turn`: they are the contents.

One thread, one place that waits, and no user code. Keeping workers alive, pushing overdue jobs
and stopping never depend on storage: whatever needs storage is a tick, and ticks may fail.
"""

from __future__ import annotations

import logging
import random
import signal
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from datetime import timedelta

from qml_mp import failpoints
from qml_mp.child.probe import AppFacts
from qml_mp.child.source import LoadedProgram, ProgramSource
from qml_mp.clock import Clock, SystemClock
from qml_mp.errors import (
    ConfigurationError,
    SchemaMismatch,
    StorageError,
    StorageUnavailable,
    StorageUnreachable,
    WorkerBootError,
)
from qml_mp.processing.cancel import CancelReason
from qml_mp.settings import ServerConfig
from qml_mp.storage.protocol import Retention, Storage
from qml_mp.storage.waiting import DEFAULT_PATIENCE
from qml_mp.supervisor.guardian import Guardian
from qml_mp.supervisor.leaving import leave_storage
from qml_mp.supervisor.loops.every import all_ticks
from qml_mp.supervisor.loops.loop import TickTable
from qml_mp.supervisor.loops.settlement import Chores
from qml_mp.supervisor.loops.templates import Templates
from qml_mp.supervisor.recovery.sweep import sweep_at_start
from qml_mp.supervisor.registration import ServerRegistration, in_short, what_is_served
from qml_mp.supervisor.reload import Reload
from qml_mp.supervisor.signals import SignalInbox
from qml_mp.supervisor.stopping import Stop
from qml_mp.supervisor.storage_listener import StorageListener
from qml_mp.supervisor.terminal import Terminal
from qml_mp.supervisor.title import show_supervisor_title
from qml_mp.supervisor.urgent import UrgentFirst
from qml_mp.supervisor.wait import wait_for
from qml_mp.supervisor.workers.ladder import Graces
from qml_mp.supervisor.workers.memory import MemoryWatch
from qml_mp.supervisor.workers.pool import Fleet, WorkerSpec
from qml_mp.supervisor.workers.pushing import Pusher

logger = logging.getLogger(__name__)

STORAGE_PATIENCE = timedelta(seconds=0.2)
"""Longest that a supervisor lets one operation wait for a lock of somebody else."""


class ExitCode:
    """What `run` returns, of the codes that the command line documents."""

    FINE = 0
    JOBS_KILLED = 6


class Supervisor:
    """One run of a server. `run()` returns when it has stopped; an instance runs once."""

    def __init__(
        self,
        config: ServerConfig,
        storage: Storage,
        source: ProgramSource,
        *,
        facts: AppFacts | None = None,
        queues_of: Callable[[AppFacts], Sequence[str]] | None = None,
        burst: bool = False,
        host_fds: Collection[int] = (),
        on_ready: Callable[[], None] | None = None,
        ends_process: bool = False,
        clock: Clock | None = None,
    ) -> None:
        """`facts` is what the program gives, as far as it is known; `queues_of` says which queues to serve
        for what new code gives at a reload (None: as before); `host_fds` are those of which any that is
        readable means stop: a pipe, and the host's pidfd; `on_ready` is called once, when the first worker
        is ready. With `ends_process` the process has nothing to do after `run`, and ignores
        signals then."""
        self._config = config
        self._storage = storage
        self._source = source
        facts = facts or AppFacts()
        self._recurring = facts.recurring
        self._queues_of = queues_of
        self._host_fds = list(host_fds)
        self._on_ready = on_ready
        self._clock = clock or SystemClock()
        self._waiting = UrgentFirst(self)
        self._terminal = Terminal()
        self._signals = SignalInbox(ends_process=ends_process)
        self._presence = ServerRegistration(config, storage, methods=facts.methods)
        self._news = StorageListener(storage, self._clock)
        spec = WorkerSpec(
            config=config,
            url=storage.url,
            source=source,
            before_fork=self._before_fork,
            own_fds=self._own_fds,
        )
        self._reload = Reload(
            source, timeout=config.boot_timeout, before_fork=self._before_fork, own_fds=self._own_fds
        )
        self._templates = Templates()
        self._fleet = Fleet(spec, server_id=self._presence.id, clock=self._clock)
        self._guardian = Guardian(self._fleet.slots, config.orphan_grace)
        graces = Graces(
            cancel_grace=config.cancel_grace,
            term_grace=config.term_grace,
            shutdown_timeout=config.shutdown_timeout,
        )
        self._graces = graces
        self._pusher = Pusher(self._fleet, graces, self._clock)
        rng = random.Random()
        self._chores = Chores(config, fleet=self._fleet, graces=graces, clock=self._clock, rng=rng)
        self._memory = MemoryWatch(config, fleet=self._fleet, clock=self._clock)
        self._refusal: ConfigurationError | None = None
        self._guardian_trouble = ""
        ticks = all_ticks(
            config,
            presence=self._presence,
            fleet=self._fleet,
            chores=self._chores,
            templates=self._templates,
            clock=self._clock,
            wake=self._fleet.wake_idle,
            hasten=lambda: self._ticks.hasten(),
            declared_dead=self._declared_dead,
            leave=(lambda why: self._stop.begin(now=False, why=why)) if burst else None,
        )
        self._ticks = TickTable(ticks, storage=storage, clock=self._clock, rng=rng)
        self._stop = Stop(
            fleet=self._fleet,
            pusher=self._pusher,
            chores=self._chores,
            graces=graces,
            storage_is_down=lambda: self._ticks.storage_is_down,
            clock=self._clock,
        )
        self._is_open = False
        self._jobs_killed = False

    def run(self) -> int:
        """Supervise until told to stop; an `ExitCode`.

        Raises `StorageError` when storage cannot be used at the start, `WorkerBootError` when no
        worker can boot, `ConfigurationError` when a memory limit is below what an idle worker uses.
        Whatever happens, no process and no descriptor of ours is left, and no claim unless
        storage is down.
        """
        failpoints.hit("supervisor.begin")
        with self._signals, self._waiting.for_storage(self._storage):
            self._open()
            try:
                while not self._stop.is_complete:
                    self._turn()
            finally:
                self._close()
        if self._refusal is not None:
            raise self._refusal
        if self._fleet.boot_error is not None and not self._fleet.was_ever_ready:
            raise WorkerBootError(self._fleet.boot_error)
        return ExitCode.JOBS_KILLED if self._jobs_killed else ExitCode.FINE

    def _open(self) -> None:
        """Recover what earlier runs left, then say who we are."""
        try:
            self._try_to_recover()
            self._register()
        except StorageError:
            if not self._stop.has_begun:
                raise
        show_supervisor_title(self._source.label, self._config.worker_count)
        self._is_open = True
        self.see_to(frozenset(), may_fork=False)

    def _try_to_recover(self) -> None:
        """One job that storage refuses to give back keeps no server from running the others."""
        try:
            sweep_at_start(self._storage, self._config, self._presence)
        except (StorageUnreachable, SchemaMismatch):
            raise
        except StorageError as error:
            logger.warning("Cannot give back what earlier runs left; a loop tries again: %s", error)

    def _register(self) -> None:
        """Who else writes at this moment is waited for a little: not worth a start that fails."""
        deadline = self._clock.monotonic() + DEFAULT_PATIENCE.total_seconds()
        while True:
            try:
                self._presence.register()
                for template in self._recurring:
                    self._storage.upsert_recurring_job(template)
                return
            except StorageUnreachable:
                raise
            except StorageUnavailable as error:
                if self._stop.has_begun or self._clock.monotonic() >= deadline:
                    raise
                logger.debug("The start waits for storage: %s", error)
            self.see_to(wait_for(self.fds(), until=self._clock.monotonic() + 0.05), may_fork=False)

    def _turn(self) -> None:
        """One round: wait for whatever comes first, then see to everything, the urgent before the slow."""
        self._manage_workers()
        ready = wait_for(self._watched(), until=self._next_at())
        self.see_to(ready, may_fork=False)
        self._settle_first()
        self._manage_workers()
        self._handle_notifications()
        self._mind_presence()
        self._run_ticks()

    def see_to(self, ready: frozenset[int], *, may_fork: bool) -> None:
        """What never waits for storage: called between two of its replies too."""
        self._handle_signals()
        self._handle_host(ready)
        self._handle_reload()
        self._reap_workers()
        self._fleet.look()
        self._mind_memory()
        if may_fork:
            self._manage_workers()
        self._pusher.push()

    def _close(self) -> None:
        """After the last worker (or an error): kill what is left, settle, deregister, let go."""
        self._fleet.kill_all(CancelReason.SHUTDOWN)
        while len(self._fleet):
            wait_for(self._fleet.pidfds, until=self._clock.monotonic() + 0.05)
            self._reap_workers()
        self._reload.end()
        self._guardian.dismiss()
        self._news.close()
        leave_storage(
            self._storage,
            self._presence.id,
            chores=self._chores,
            retention=Retention.of(self._config),
            deadline=self._stop.leave_by(),
        )
        self._storage.close()
        logger.info("Stopped")

    def fds(self) -> list[int]:
        """Of what never waits for storage."""
        return [self._signals.fds[0], *self._fleet.pidfds, *self._reload.fds, *self._host_fds]

    def next_at(self) -> float:
        """When something is due that never waits for storage."""
        wishes = (part.next_at() for part in (self._pusher, self._fleet, self._memory, self._reload))
        return min((at for at in wishes if at is not None), default=float("inf"))

    def give_up_at(self) -> float:
        """From when on storage is not worth waiting for."""
        return self._stop.give_up_at()

    def _watched(self) -> list[int]:
        guardian = [] if self._guardian.pidfd is None else [self._guardian.pidfd]
        news = [] if self._stop.has_begun else self._news.fds
        return [*self.fds(), *guardian, *news]

    def _next_at(self) -> float:
        """The next instant at which something is due although nothing happens."""
        wishes: list[float | None] = [self.next_at()]
        if self._stop.has_time_for_storage:
            wishes.append(self._ticks.next_at())
        if not (self._stop.has_begun or self._ticks.storage_is_down):  # nobody listens then
            wishes.append(self._news.next_at())
        return min((at for at in wishes if at is not None), default=float("inf"))

    def _handle_signals(self) -> None:
        for number in self._signals.take():
            match number:
                case signal.SIGTERM | signal.SIGINT:
                    self._stop.begin(now=self._stop.has_begun, why=number.name)
                case signal.SIGQUIT:
                    self._stop.begin(now=True, why=number.name)
                case signal.SIGHUP:
                    self._terminal.suspect()
                    self._begin_reload()
                case signal.SIGTTIN:
                    self._fleet.resize(self._fleet.size + 1)
                case signal.SIGTTOU:
                    self._fleet.resize(self._fleet.size - 1)
                case signal.SIGUSR1:
                    self._fleet.ask_for_stacks()
                case signal.SIGUSR2:
                    self._pause()
                case _:
                    pass  # SIGCHLD: it woke us, and the dead are looked for at every turn
        if self._terminal.is_gone and not self._stop.has_begun:
            self._stop.begin(now=False, why="its terminal is gone")

    def _handle_host(self, ready: frozenset[int]) -> None:
        if not ready.isdisjoint(self._host_fds):
            self._host_fds = []  # they would stay readable
            self._stop.begin(now=False, why="the host stopped it or is gone")

    def _begin_reload(self) -> None:
        """Replace the workers; by new code, once it is known what that gives."""
        if self._stop.has_begun:
            return
        if isinstance(self._source, LoadedProgram):
            logger.info("Replacing the workers one by one; the program in memory stays as it is")
            self._fleet.replace_all()
        else:
            self._reload.begin()

    def _handle_reload(self) -> None:
        """Take over what new code gives, and have workers of it."""
        facts = self._reload.look()
        if facts is None or self._stop.has_begun:
            return
        queues = self._presence.now.queues
        try:
            if self._queues_of is not None:
                queues = tuple(self._queues_of(facts))
        except ConfigurationError as error:
            self._reload.refuse("The settings of the new code cannot be", str(error))
            return
        self._reload.trouble = None
        self._presence.now = replace(self._presence.now, methods=facts.methods, queues=queues)
        self._templates.declare(facts.recurring)
        self._ticks.make_due("templates")
        self._fleet.serve(queues)
        logger.info("Replacing the workers one by one. %s", what_is_served(queues, facts.methods))
        self._fleet.replace_all()

    def _reap_workers(self) -> None:
        for death in self._fleet.reap():
            self._chores.remember(death)
            self._ticks.make_due("settle")
            if death.killed_for is CancelReason.SHUTDOWN and death.was_busy:
                self._jobs_killed = True
        if self._fleet.boot_error is not None and not self._fleet.was_ever_ready:
            self._stop.begin(now=True, why="no worker can boot")

    def _settle_first(self) -> None:
        """While storage answers, give a dead worker's job to others before its replacement is forked:
        a fork closes the connection to storage, and the new worker needs the processor to boot."""
        if self._chores.unsettled and not self._ticks.storage_is_down and self._stop.has_time_for_storage:
            self._ticks.run("settle")

    def _manage_workers(self) -> None:
        """Have the guardian and the right number of workers; tell the host once the first one is ready."""
        if self._stop.has_begun or not self._is_open:
            return
        if self._guardian.is_missing:
            self._before_fork()
            try:
                self._guardian.start(self._own_fds())
                self._guardian_trouble = ""
            except OSError as error:
                if str(error) != self._guardian_trouble:
                    logger.error("Cannot fork the guardian: %s; will try again", error)
                self._guardian_trouble = str(error)
        self._fleet.top_up()
        if self._on_ready is not None and (self._fleet.was_ever_ready or self._fleet.size == 0):
            on_ready, self._on_ready = self._on_ready, None
            on_ready()

    def _mind_memory(self) -> None:
        self._memory.look()
        refusal = self._memory.refusal()
        if refusal is not None:
            self._refusal = refusal
            self._stop.begin(now=True, why="its memory limit cannot be kept")

    def _handle_notifications(self) -> None:
        if self._stop.has_begun:
            return
        missed = not self._ticks.storage_is_down and self._news.listen()
        if self._news.take() or missed:
            self._ticks.hasten()
            self._fleet.wake_idle()

    def _mind_presence(self) -> None:
        error = self._fleet.boot_error if self._fleet.was_ever_ready else None
        boot_trouble = None if error is None else in_short("New workers cannot boot", error)
        shortage = self._fleet.shortage and in_short(
            "Fewer workers run than are wanted", self._fleet.shortage
        )
        trouble = self._reload.trouble or boot_trouble or shortage
        self._presence.now = replace(self._presence.now, trouble=trouble)
        if self._presence.is_outdated:
            self._ticks.make_due("presence")

    def _run_ticks(self) -> None:
        if not self._stop.has_time_for_storage:
            return
        fork_at = self._clock.monotonic() + STORAGE_PATIENCE.total_seconds()

        def between() -> None:
            """Storage waits with this in view; one that refuses without a reply to wait for takes its time
            too."""
            self.see_to(wait_for(self.fds(), until=0), may_fork=self._clock.monotonic() >= fork_at)

        self._ticks.run_due(between=between)

    def _pause(self) -> None:
        """Stop claiming, or begin again."""
        self._fleet.pause(not self._fleet.paused)
        self._presence.now = replace(self._presence.now, paused=self._fleet.paused)
        logger.info("Claims are %s", "paused" if self._fleet.paused else "resumed")

    def _declared_dead(self) -> None:
        """Our jobs are others' now: end them here, and go on under a new id."""
        self._fleet.kill_all(CancelReason.ORPHANED)
        self._fleet.rename(self._presence.renew_id())
        self._presence.register()

    def _before_fork(self) -> None:
        """No storage handle crosses a fork. While a reply is being waited for, the connection stays as it
        is, and the child lets go of it without a word."""
        self._news.close()
        if not self._waiting.is_waiting:
            self._storage.close()

    def _own_fds(self) -> list[int]:
        own = (
            self._signals.fds, self._guardian.fds, self._news.own_fds, self._reload.fds, self._host_fds,
            self._fleet.fds,
        )  # fmt: skip
        return [fd for fds in own for fd in fds]
