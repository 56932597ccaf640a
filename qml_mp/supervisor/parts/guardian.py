"""Guardian, supervisor: a tiny process beside the supervisor that outlives its death and then ends the
workers.

A worker whose job holds the GIL in C code cannot notice anything by itself. The guardian waits for
the end of a pipe that the supervisor alone holds open; then it signals every worker, and what serves people
beside them, again near the end of `orphan_grace`, and kills what is left when the grace is over. A second
signal that came late puts the kill off: jobs have the time to unwind that was planned. It holds no database
handle, runs no user code, and is forked anew when it dies. What had ended in workers that die with their
supervisor is written by a child of its own (`LastOutcomes`).
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Collection

import setproctitle

from qml_mp import host
from qml_mp.core.server_info import ProcessIdentity
from qml_mp.errors import ConfigurationError
from qml_mp.ipc.pipe import open_pipe
from qml_mp.ipc.slot import SlotTable
from qml_mp.supervisor.part import Part
from qml_mp.supervisor.recovery.judging import orphan_grace_of
from qml_mp.supervisor.recovery.last_outcomes import LastOutcomes
from qml_mp.supervisor.recovery.sign_of_guardian import hold_sign
from qml_mp.supervisor.run import Run
from qml_mp.supervisor.wait import wait_for
from qml_mp.supervisor.workers.fork import Child, fork_child, kill_and_reap, kill_stranger, reap
from qml_mp.units import format_duration

logger = logging.getLogger(__name__)

_UNWIND_S = 1.5  # from the second signal (the exception in the job) to the kill
_UNWINDING_PART = 3  # of a short grace, at most the last third is for that
_SECOND_SIGNAL_S = 0.75  # after the first: a worker takes one that comes within half a second for the same
_LOOK_EVERY_S = 0.05
_PAUSE_S = 0.5  # from one try to the next
_LAST_LOOK_S = 1.0  # at what the killed have left


class Guardian(Part):
    """The supervisor's side: starts it, notices its death, ends it."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._slots = run.pool.slots
        self._side_slots = run.side_slots
        grace = orphan_grace_of(run.config)
        if grace < run.config.orphan_grace:
            logger.warning(
                "orphan_grace is %s, of which %s count: two thirds of dead_server_timeout (%s), as servers "
                "that cannot see this one run its jobs again then",
                format_duration(run.config.orphan_grace),
                format_duration(grace),
                format_duration(run.config.dead_server_timeout),
            )
        self._orphan_grace_s = grace.total_seconds()
        self._all_parts = run.all_parts
        self._child: Child | None = None
        self._writing = -1
        self._not_before = 0.0
        self._told = ""

    def fds(self) -> list[int]:
        return [] if self._child is None else self._child.fds

    def own_fds(self) -> list[int]:
        return [] if self._child is None else [self._writing, *self.fds()]

    def turn(self) -> None:
        """Collect what is left of it when it has died."""
        if self._child is not None and reap(self._child) is not None:
            self._forget()

    def start_if_missing(self) -> None:
        """Fork it when there is none. When the system has no room for a process, or this process has threads
        by now, that is logged once, and tried again after a pause."""
        if self._child is not None or time.monotonic() < self._not_before:
            return
        self._not_before = time.monotonic() + _PAUSE_S
        self._all_parts.before_fork()
        outcomes = LastOutcomes(self._run.pool.ended, url=self._run.url, retention=self._run.retention)
        supervisor = host.identity()
        try:
            reading, self._writing = open_pipe()
            self._child = fork_child(
                lambda: _watch(
                    reading, supervisor, self._slots, self._side_slots, outcomes, self._orphan_grace_s
                ),
                ours={self._writing},
                theirs={reading},
                own_fds=self._all_parts.own_fds(),
            )
            self._told = ""
        except (OSError, ConfigurationError) as error:
            if isinstance(error, ConfigurationError) and not self._run.pool.boots.was_ever_ready:
                raise
            if not self._told:
                logger.error("The guardian cannot be forked, which is tried again: %s", error)
            self._told = str(error)

    def trouble(self) -> str | None:
        return f"The guardian cannot be forked: {self._told}" if self._told else None

    def end(self) -> None:
        """No worker is left to guard, and what the dead have left is written: later than `close`, as only it
        would write that should this process be killed."""
        if self._child is not None:
            kill_and_reap(self._child)
            self._forget()

    def _forget(self) -> None:
        os.close(self._writing)
        self._child = None


def _watch(
    reading: int,
    supervisor: ProcessIdentity,
    slots: SlotTable,
    side_slots: SlotTable,
    outcomes: LastOutcomes,
    orphan_grace_s: float,
) -> int:
    """The guardian's whole life; signals stay blocked, so that only its own end or SIGKILL ends it."""
    sign = hold_sign(supervisor)
    sign_fds = () if sign is None else (sign.fileno(),)
    if sys.platform != "darwin":
        setproctitle.setproctitle("qml-mp: guardian")
    while reading not in wait_for([reading], until=float("inf")):
        pass
    seen_at = time.monotonic()
    kill_at = seen_at + orphan_grace_s
    interrupt_at = kill_at - min(_UNWIND_S, orphan_grace_s / _UNWINDING_PART)
    interrupt_at = min(max(interrupt_at, seen_at + _SECOND_SIGNAL_S), kill_at)
    unwind_s = kill_at - interrupt_at
    orphans = _orphans(slots) + _orphans(side_slots)
    _terminate(orphans)

    def write_last_outcomes(living: Collection[ProcessIdentity]) -> bool:
        pids = {orphan.pid for orphan in living}
        return outcomes.write(is_dead=lambda index: slots.process(index)[0] not in pids, sign=sign_fds)

    orphans = _wait_until_gone(orphans, until=interrupt_at, write=write_last_outcomes)
    _terminate(orphans)
    kill_at = max(kill_at, time.monotonic() + unwind_s)  # it may be late
    orphans = _wait_until_gone(orphans, until=kill_at, write=write_last_outcomes)
    for orphan in orphans:
        kill_stranger(orphan)
    _wait_until_gone(orphans, until=kill_at + _LAST_LOOK_S, write=write_last_outcomes)
    return 0


def _orphans(slots: SlotTable) -> list[ProcessIdentity]:
    this_host = host.identity().host
    found = (slots.process(index) for index in range(slots.capacity))
    return [ProcessIdentity(host=this_host, pid=pid, started_ticks=ticks) for pid, ticks in found if pid]


def _wait_until_gone(
    orphans: list[ProcessIdentity],
    *,
    until: float,
    write: Callable[[Collection[ProcessIdentity]], bool],
) -> list[ProcessIdentity]:
    """Those that still live at `until`; earlier when none does. What jobs of the others have
    started is killed, as the supervisor would have done. `write` is called with the living: now, after each
    death, and again while it says that something is left to write."""
    is_written = False
    while True:
        living = _living(orphans)
        for orphan in orphans:
            if orphan not in living:
                kill_stranger(orphan)
        if len(living) < len(orphans) or not is_written:
            is_written = write(living)
        orphans = living
        if (is_written and not orphans) or time.monotonic() >= until:
            return orphans
        wait_for([], until=min(until, time.monotonic() + _LOOK_EVERY_S))


def _living(orphans: list[ProcessIdentity]) -> list[ProcessIdentity]:
    return [orphan for orphan in orphans if host.is_alive(orphan, is_local=True) is not False]


def _terminate(orphans: list[ProcessIdentity]) -> None:
    for orphan in _living(orphans):
        # The latter of one that a job has made another user's.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(orphan.pid, signal.SIGTERM)
