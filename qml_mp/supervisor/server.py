"""Supervisor: the parent process of a running server. Read `run` and `_turn`: they are the contents.

One thread, one place that waits, and no user code. Keeping workers alive, pushing overdue jobs
and stopping never depend on storage: whatever needs storage is a tick of a loop, and ticks may fail.

A turn waits, looks after what is urgent, and then lets the loops tick. While a tick waits for storage, what
is urgent has its turns too, and missing workers are forked (`urgent.py`). So whatever a tick knew of the pool
may have changed after each call of storage.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import setproctitle

from qml_mp import failpoints
from qml_mp.child.source import AppFacts, ProgramSource
from qml_mp.errors import StorageError
from qml_mp.events.facts import ServerStopped
from qml_mp.printable import printable
from qml_mp.processing.cancel import CancelReason
from qml_mp.settings import ServerConfig
from qml_mp.storage.store import Storage
from qml_mp.supervisor.assembly import Assembly
from qml_mp.supervisor.membership import join, leave, stay
from qml_mp.supervisor.parts.host_process import Host
from qml_mp.supervisor.parts.reload import NewCode
from qml_mp.supervisor.run import Run
from qml_mp.supervisor.wait import wait_for

_JOBS_KILLED = 6  # of the exit codes that the command line documents


class Supervisor:
    """One run of a server. `run()` returns when it has stopped; an instance runs once."""

    def __init__(
        self,
        config: ServerConfig,
        storage: Storage,
        source: ProgramSource,
        *,
        facts: AppFacts | None = None,
        new_code: NewCode | None = None,
        burst: timedelta | None = None,
        host: Host | None = None,
    ) -> None:
        """`facts` is what the program gives, as far as it is known; `new_code` what is done about changes of
        it."""
        self._storage = storage
        self._label = source.label
        self._facts = facts or AppFacts()
        self._run = Run(config, source, url=storage.url, facts=self._facts)
        self._assembly = Assembly(
            self._run,
            storage,
            source,
            new_code=new_code or NewCode(),
            burst=burst,
            host=host or Host(),
            manage_workers=self._manage_workers,
        )
        self._is_open = False

    def run(self) -> int:
        """Supervise until told to stop; 0, or 6 when jobs were killed at the deadline.

        Raises `StorageError` when storage cannot be used at the start, `WorkerBootError` when no
        worker can boot, `ConfigurationError` when a memory limit is below what an idle worker uses.
        Whatever happens, no process and no descriptor of ours is left, and no claim unless
        storage is down.
        """
        failpoints.hit("supervisor.begin")
        with self._assembly.inbox, self._assembly.urgent_first, _heap_shared_with_children():
            try:
                self._open()
            except BaseException:
                self._run.all_parts.close()
                self._storage.close()
                raise
            try:
                while not self._run.stop.is_complete:
                    self._turn()
            finally:
                self._close()
        if self._run.stop.error is not None:
            raise self._run.stop.error
        return _JOBS_KILLED if self._assembly.reaper.killed_jobs else 0

    def _open(self) -> None:
        """Recover what earlier runs left, then say who we are."""
        self._assembly.declarations.declare(self._facts)
        try:
            join(
                self._storage,
                self._run,
                declarations=self._assembly.declarations,
                urgent_first=self._assembly.urgent_first,
            )
        except StorageError:
            if not self._run.stop.has_begun:
                raise
        _show_title(self._label, self._run.config.worker_count)
        self._is_open = True
        self._assembly.urgent.turn()

    def _turn(self) -> None:
        """Wait until somebody wants a turn, then give everybody one, the urgent before the slow."""
        assembly = self._assembly
        # Before the wait: a death that was reaped during a tick ends no wait while storage cannot be reached.
        self._manage_workers()
        assembly.looks.wait()
        assembly.urgent.turn()
        # While storage answers, a dead worker's job goes to others before its replacement is forked: a fork
        # closes the connection to storage, and the new worker needs the processor to boot.
        assembly.loops.run_if_due(assembly.settling)
        # Before workers of new code claim, so that none exceeds the limits that it declares.
        assembly.loops.run_if_due(assembly.declarations)
        self._manage_workers()
        assembly.listener.turn()
        self._run.registration.report(self._run.all_parts.trouble())
        if self._run.stop.has_begun:
            self._run.registration.answer_stop()
        assembly.loops.turn()

    def _manage_workers(self) -> None:
        """Have the guardian, the right number of workers and what runs beside them; tell the host once the
        first worker is ready."""
        pool = self._run.pool
        if self._run.stop.has_begun or not self._is_open:
            return
        self._assembly.guardian.start_if_missing()
        pool.spawn_workers()
        self._assembly.reload.start_if_asked()
        if pool.size == 0:
            pool.boots.none_is_wanted()
        if pool.boots.was_ever_ready:
            self._assembly.host.tell_ready()
        for process in self._assembly.side_processes:
            process.start_if_missing()

    def _close(self) -> None:
        """After the last worker (or an error): kill what is left, settle, leave the registry, close all."""
        self._is_open = False
        pool, assembly = self._run.pool, self._assembly
        pool.kill_all(CancelReason.SHUTDOWN)
        while not all(worker.is_lost for worker in pool):
            wait_for(pool.fds(), until=self._run.clock.monotonic() + 0.05)
            assembly.reaper.turn()
        are_left = pool.abandon_lost()
        try:
            self._run.all_parts.close()
            if are_left:
                stay(self._storage, settling=assembly.settling)
            else:
                leave(
                    self._storage,
                    self._run,
                    settling=assembly.settling,
                    desk=assembly.desk,
                    history=assembly.history,
                )
        finally:
            assembly.guardian.end()
        self._storage.close()
        self._run.events.emit(ServerStopped())


@contextmanager
def _heap_shared_with_children() -> Iterator[None]:
    """Within the block, the garbage collector leaves alone what was there before it: a collection writes to
    every object that it looks at, and each worker would get a copy of its own (4 MB). A host that has frozen
    its objects itself has seen to that."""
    if gc.get_freeze_count():
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _show_title(label: str, workers: int) -> None:
    """ "qml-mp: supervisor [tasks:app] 8 workers". Not on macOS, where it can kill forked children."""
    if sys.platform != "darwin":
        setproctitle.setproctitle(printable(f"qml-mp: supervisor [{label}] {workers} workers"))
