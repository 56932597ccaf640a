"""Supervisor and host: the process that it was started by, or runs in."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from qml_mp.sources import NotifySocket
from qml_mp.supervisor.part import Part
from qml_mp.supervisor.run import Run
from qml_mp.supervisor.wait import wait_for


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """The supervisor's ways to its host, and back."""

    fds: Collection[int] = ()
    """When any is readable, the server has to stop: a pipe, and the host's pidfd."""
    on_ready: Callable[[], None] | None = None
    """Called once, when the first worker is ready."""
    notify: NotifySocket | None = None
    """Of the service manager that started the process; None: there is none, or it is the host's."""
    ends_process: bool = False
    """Whether the process has nothing to do after the run; then it ignores signals."""


class HostLink(Part):
    """Stops the server when the host wants it, or is gone, and tells it once that the server is ready."""

    def __init__(self, run: Run, host: Host) -> None:
        self._fds = frozenset(host.fds)
        self._on_ready = host.on_ready
        self._stop = run.stop

    def fds(self) -> frozenset[int]:
        return self._fds

    def turn(self) -> None:
        if self._fds and wait_for(self._fds, until=0.0):
            self._fds = frozenset()  # they would stay readable
            self._stop.begin(now=False, why="the host stopped it or is gone")

    def tell_ready(self) -> None:
        """The server is ready; harmless when that is told."""
        if self._on_ready is not None:
            on_ready, self._on_ready = self._on_ready, None
            on_ready()
