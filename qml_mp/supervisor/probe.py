"""Supervisor and client: asks a short-lived child what the app's code gives, instead of importing it."""

from __future__ import annotations

import os
from collections.abc import Collection
from datetime import timedelta
from importlib import import_module
from json import JSONDecodeError

from qml_mp import host
from qml_mp.child.importing import importing
from qml_mp.child.source import AppFacts, ProgramSource, probe, read_facts
from qml_mp.clock import Clock, SystemClock
from qml_mp.core.outcome import ProcessFacts
from qml_mp.errors import AppImportError
from qml_mp.supervisor.wait import TimeSeen, wait_for
from qml_mp.supervisor.workers.death import how_it_died
from qml_mp.supervisor.workers.fork import fork_to_ask, kill_and_reap, reap
from qml_mp.units import format_duration

_LOOK_EVERY_S = 0.05


def probe_app(source: ProgramSource, *, timeout: timedelta) -> AppFacts:
    """The app's URL, settings, recurring templates, queues and methods.

    Raises `AppImportError` with the module's own traceback when it does not import, and when it
    takes longer than a worker would have.
    """
    # What every app imports, for this child and all workers: it would cost each of them 10 ms and 1.5 MB.
    import_module("qml_mp.app")
    asked = Probe(source, timeout=timeout, clock=SystemClock())
    try:
        while (facts := asked.look()) is None:
            wait_for(asked.fds, until=asked.next_at())
    finally:
        asked.end()
    return facts


class Probe:
    """The child, from its fork on. Look at it whenever one of its `fds` is readable or `next_at` has
    passed, until it has given the facts or raised; nothing here waits, save `end`."""

    def __init__(
        self, source: ProgramSource, *, timeout: timedelta, clock: Clock, own_fds: Collection[int] = ()
    ) -> None:
        """Forks; `own_fds` are the parent's, which the child closes. Raises `OSError` when the system has
        no room for a process."""
        self._label = source.label
        self._timeout = timeout
        self._clock = clock
        self._said = bytearray()
        self._is_open = True
        self.files: frozenset[str] = frozenset()
        """The source files that it has read, once it has ended."""

        def facts() -> str:
            with importing():
                return probe(source)

        self._reading, self._child = fork_to_ask(facts, own_fds=own_fds)
        self._taken = TimeSeen(clock.monotonic())
        self._is_late = False
        self._has_ended = False

    @property
    def fds(self) -> list[int]:
        """Readable when there is something to look at. Empty when it has ended."""
        if self._has_ended:
            return []
        return [*self._child.fds, *([self._reading] if self._is_open else [])]

    def next_at(self) -> float:
        """When to look although nothing is readable."""
        return self._clock.monotonic() + _LOOK_EVERY_S

    def look(self) -> AppFacts | None:
        """The facts; None: not yet. Raises `AppImportError` when there will be none."""
        self._drain()
        process = reap(self._child)
        if process is None:
            taken_s = self._taken.look(self._clock.monotonic())
            if not self._is_late and taken_s > self._timeout.total_seconds():
                self._is_late = True
                self._child.kill()
            return None
        self._has_ended = True
        self._drain()
        os.close(self._reading)
        return self._judge(process)

    def end(self) -> None:
        """Kill it, if it still lives, and collect it; harmless afterwards."""
        if not self._has_ended:
            kill_and_reap(self._child)
            self._has_ended = True
            os.close(self._reading)

    def _judge(self, process: ProcessFacts) -> AppFacts:
        if self._is_late:
            raise AppImportError(
                f"The app {self._label!r} was not imported within {format_duration(self._timeout)} "
                "(boot_timeout)."
            )
        if not self._said or process.signal is not None or process.exit_code:
            raise AppImportError(
                f"The process that imported {self._label!r} {how_it_died(process)} before it was done."
            )
        try:
            facts = read_facts(self._said.decode())
        except (JSONDecodeError, UnicodeDecodeError):  # both have written, one behind or amid the other
            raise AppImportError(
                f"The app {self._label!r} was imported twice at a time: a module of it forks when it is "
                "imported, and lets the copy go on with the import. End the copy there, with os._exit(), or "
                "fork in a function that is called later."
            ) from None
        self.files = frozenset(facts.files)
        if facts.error is not None:
            where = host.shown_directory()
            raise AppImportError(
                f"The app {self._label!r} cannot be imported from {where}:\n{facts.error.rstrip()}"
            )
        return facts

    def _drain(self) -> None:
        """Take in what has come. The end of the pipe is not waited for: a process that the app has
        started may hold it open."""
        try:
            while self._is_open:
                data = os.read(self._reading, 65536)
                self._said += data
                self._is_open = bool(data)
        except BlockingIOError:
            pass
