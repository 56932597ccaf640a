"""Supervisor: SIGHUP: looks at the new code in a child before any worker is replaced.

When it does not import, nothing changes but `trouble`. When it does, the supervisor is handed what
the code gives now.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from datetime import timedelta

from qml_mp.child.probe import AppFacts
from qml_mp.child.source import ProgramSource
from qml_mp.errors import AppImportError
from qml_mp.supervisor.probe import Probe
from qml_mp.supervisor.registration import in_short

logger = logging.getLogger(__name__)


class Reload:
    """The looks at new code: at most one at a time, and one more when asked for meanwhile."""

    def __init__(
        self,
        source: ProgramSource,
        *,
        timeout: timedelta,
        before_fork: Callable[[], None],
        own_fds: Callable[[], Collection[int]],
    ) -> None:
        self._source = source
        self._timeout = timeout
        self._before_fork = before_fork
        self._own_fds = own_fds
        self._probe: Probe | None = None
        self._once_more = False
        self.trouble: str | None = None
        """Why the newest code that was looked at was not taken over; None: it was, or nobody asked."""

    @property
    def fds(self) -> list[int]:
        """What to wait on."""
        return [] if self._probe is None else self._probe.fds

    def next_at(self) -> float | None:
        """When to look although nothing is readable."""
        return None if self._probe is None else self._probe.next_at()

    def begin(self) -> None:
        """Look at the code as it is now."""
        if self._probe is not None:
            self._once_more = True  # it may have read the code before the newest change
            return
        self._before_fork()
        try:
            self._probe = Probe(self._source, timeout=self._timeout, own_fds=self._own_fds())
        except OSError as error:
            self.refuse("The new code cannot be looked at", str(error))

    def look(self) -> AppFacts | None:
        """What the new code gives, once that is known."""
        if self._probe is None:
            return None
        facts, problem = None, ""
        try:
            facts = self._probe.look()
            if facts is None:
                return None
        except AppImportError as error:
            problem = str(error)
        self._probe = None
        if self._once_more:
            self._once_more = False
            self.begin()
            return None
        if facts is None:
            self.refuse("The new code cannot be imported", problem)
        return facts

    def refuse(self, what: str, why: str) -> None:
        """Leave everything as it is, and say so."""
        logger.error("%s, so the workers stay as they are. Mend it, and send SIGHUP again:\n%s", what, why)
        self.trouble = in_short(what, why)

    def end(self) -> None:
        """Let go of a look that is under way."""
        if self._probe is not None:
            self._probe.end()
            self._probe = None
