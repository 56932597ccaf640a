"""Supervisor: `start --reload`: looks at the program's source files, and reloads when one has changed.

For development. The files are those that the newest look at the code has imported; the supervisor itself
imports none of them.
"""

from __future__ import annotations

import logging
import os
from datetime import timedelta

from qml_mp.supervisor.part import Part
from qml_mp.supervisor.parts.reload import Reload
from qml_mp.supervisor.run import Run

logger = logging.getLogger(__name__)

_LOOK_EVERY_S = 0.5
_SETTLES_AFTER_S = 0.1  # an editor writes a file in several steps, and a checkout many files
_GRAIN = timedelta(milliseconds=20)  # of the times that file systems note

Stamp = tuple[int, int] | None
"""When the file was changed, and its size; None: it is gone."""


class SourceWatch(Part):
    """Begins a reload once files have changed and stay as they are."""

    def __init__(self, run: Run, reload: Reload) -> None:
        self._run = run
        self._reload = reload
        self._seen: dict[str, Stamp] = {}
        self._changed: str | None = None
        """A file that differs from what was imported, while it is not known to be whole."""
        self._look_at = 0.0

    def next_at(self) -> float:
        return float("inf") if self._run.stop.has_begun else self._look_at

    def turn(self) -> None:
        now = self._run.clock.monotonic()
        if now < self._look_at or self._run.stop.has_begun:
            return
        newest = self._find_change()
        if newest is not None:
            self._changed = newest
        elif self._changed is not None:
            logger.info("%s has changed", _shown(self._changed))
            self._changed = None
            self._reload.begin()
        self._look_at = now + (_LOOK_EVERY_S if self._changed is None else _SETTLES_AFTER_S)

    def _find_change(self) -> str | None:
        """A file that has changed since the last look, or, of one that is looked at for the first time, since
        the code was read."""
        read_ns = (self._reload.read_at - _GRAIN).timestamp() * 1e9
        changed = None
        for file in self._reload.files:
            stamp = _stamp_of(file)
            before = self._seen.get(file, stamp if stamp is None or stamp[0] < read_ns else None)
            if stamp != before:
                changed = file
            self._seen[file] = stamp
        return changed


def _shown(file: str) -> str:
    try:
        return os.path.relpath(file)
    except OSError:  # the current directory was removed
        return file


def _stamp_of(file: str) -> Stamp:
    try:
        found = os.stat(file)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size
