"""Supervisor: the parent process of a running server. Read `run` and `_turn`: they are the contents.

One thread, one place that waits, and no user code. Keeping workers alive, pushing overdue jobs
and stopping never depend on storage: whatever needs storage is a tick of a loop, and ticks may fail.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Sequence

import setproctitle

from qml_mp import failpoints
from qml_mp.child.probe import AppFacts
from qml_mp.child.source import ProgramSource
from qml_mp.clock import SystemClock
from qml_mp.errors import StorageError
from qml_mp.events.facts import ServerStopped
from qml_mp.printable import printable
from qml_mp.processing.cancel import CancelReason
from qml_mp.settings import ServerConfig
from qml_mp.storage.store import Storage
from qml_mp.storage.values import Retention
from qml_mp.supervisor.assembly import assemble
from qml_mp.supervisor.membership import join, leave, recover
from qml_mp.supervisor.parts.host_process import Host
from qml_mp.supervisor.wait import wait_for


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
        host: Host | None = None,
    ) -> None:
        """`facts` is what the program gives, as far as it is known; `queues_of` says which queues to serve
        for what new code gives at a reload (None: as before)."""
        self._config = config
        self._storage = storage
        self._label = source.label
        self._templates = () if facts is None else facts.recurring
        self._parts = assemble(
            self,
            config,
            storage,
            source,
            facts=facts or AppFacts(),
            queues_of=queues_of,
            burst=burst,
            host=host or Host(),
        )
        self._is_open = False

    def run(self) -> int:
        """Supervise until told to stop; an `ExitCode`.

        Raises `StorageError` when storage cannot be used at the start, `WorkerBootError` when no
        worker can boot, `ConfigurationError` when a memory limit is below what an idle worker uses.
        Whatever happens, no process and no descriptor of ours is left, and no claim unless
        storage is down.
        """
        failpoints.hit("supervisor.begin")
        with self._parts.inbox, self._parts.waiting:
            self._open()
            try:
                while not self._parts.stop.is_complete:
                    self._turn()
            finally:
                self._close()
        error = self._parts.memory.refusal or self._parts.pool.boots.failure()
        if error is not None:
            raise error
        return ExitCode.JOBS_KILLED if self._parts.reaper.killed_jobs else ExitCode.FINE

    def _open(self) -> None:
        """Recover what earlier runs left, then say who we are."""
        parts = self._parts
        try:
            recover(self._storage, self._config, own_id=parts.registration.id, events=parts.events)
            join(self._storage, parts.registration, self._templates, stop=parts.stop, waiting=parts.waiting)
        except StorageError:
            if not parts.stop.has_begun:
                raise
        _show_title(self._label, self._config.worker_count)
        self._is_open = True
        self.handle_urgent(may_fork=False)

    def _turn(self) -> None:
        """Wait for whatever comes first, then give everybody a turn, the urgent before the slow."""
        parts = self._parts
        self._manage_workers()
        wait_for(parts.everyone.fds(), until=parts.everyone.next_at())
        self.handle_urgent(may_fork=False)
        # While storage answers, a dead worker's job goes to others before its replacement is forked: a fork
        # closes the connection to storage, and the new worker needs the processor to boot.
        parts.loops.run_if_due(parts.settling)
        self._manage_workers()
        parts.listener.turn()
        parts.registration.report(parts.everyone.trouble())
        parts.loops.turn()

    def handle_urgent(self, *, may_fork: bool) -> None:
        """What never waits for storage: called between two of its replies too."""
        self._parts.urgent.turn()
        if may_fork:
            self._manage_workers()

    def _manage_workers(self) -> None:
        """Have the guardian and the right number of workers; tell the host once the first one is ready."""
        pool = self._parts.pool
        if self._parts.stop.has_begun or not self._is_open:
            return
        self._parts.guardian.start_if_missing()
        pool.spawn_workers()
        if pool.boots.was_ever_ready or pool.size == 0:
            self._parts.host.tell_ready()

    def _close(self) -> None:
        """After the last worker (or an error): kill what is left, settle, deregister, let go."""
        parts = self._parts
        parts.pool.kill_all(CancelReason.SHUTDOWN)
        while len(parts.pool):
            wait_for(parts.pool.fds(), until=SystemClock().monotonic() + 0.05)
            parts.reaper.turn()
        parts.everyone.close()
        leave(
            self._storage,
            parts.registration.id,
            settling=parts.settling,
            retention=Retention.of(self._config),
            deadline=parts.stop.leave_by(),
        )
        self._storage.close()
        parts.events.emit(ServerStopped())

    def fds(self) -> Collection[int]:
        """Of what never waits for storage."""
        return self._parts.urgent.fds()

    def next_at(self) -> float:
        """When something is due that never waits for storage."""
        return self._parts.urgent.next_at()

    def give_up_at(self) -> float:
        """From when on storage is not worth waiting for."""
        return self._parts.stop.give_up_at()


def _show_title(label: str, workers: int) -> None:
    """ "qml-mp: supervisor [tasks:app] 8 workers". Not on macOS, where it can kill forked children."""
    if sys.platform != "darwin":
        setproctitle.setproctitle(printable(f"qml-mp: supervisor [{label}] {workers} workers"))
