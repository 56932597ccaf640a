"""Supervisor: collects workers that have died, and hands on what they leave."""

from __future__ import annotations

from qml_mp.processing.cancel import CancelReason
from qml_mp.supervisor.loops.settle import SettleLoop
from qml_mp.supervisor.part import Part
from qml_mp.supervisor.run import Run


class Reaper(Part):
    """A death is work for the settle loop, or the end of a server whose workers cannot boot."""

    def __init__(self, run: Run, *, settling: SettleLoop) -> None:
        self._run = run
        self._settling = settling
        self.killed_jobs = False
        """Whether a job was killed because the server stops."""
        self._has_given_up = False

    def turn(self) -> None:
        for death in self._run.pool.reap():
            self._settling.remember(death)
            if death.killed_for is CancelReason.SHUTDOWN and death.was_busy:
                self.killed_jobs = True
        if not self._has_given_up and self._run.pool.boots.failure() is not None:
            self._has_given_up = True
            self._run.stop.begin(now=True, why="no worker can boot")
