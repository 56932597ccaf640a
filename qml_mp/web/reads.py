"""Web process: what is read from storage for all browsers together.

Fifty people who look at the same screen cost as much as one. A read is made again only after something was
committed, and then at most once in its own interval; when all that is looked at would cost more than the
storage should notice, the intervals grow together. Who got an older answer is told again when a new one is
due, and nobody is told before.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

from qml_mp.clock import Clock, SystemClock
from qml_mp.errors import QmlError, StorageUnavailable
from qml_mp.web.changes import Changes

_Value = TypeVar("_Value")

_STATEMENTS_PER_S = 3.2
"""Of all reads together, while somebody looks at them; the rest is for looking for commits."""
_LOOKED_AT_S = 5.0
"""For so long after it was asked for a read counts as one that somebody looks at."""
_LIVE_S = 15.0
"""After so long without being asked for it is no part of a live screen: those are told every 10 s anyhow, and
then ask."""
_LONGEST_S = 10.0
"""How old an answer gets although nothing was committed: processes die, and heartbeats stop, without a
commit."""
_REST = 9
"""After a read it rests so many times as long as that took, so that a slow storage is not kept busy by it."""
_LONGEST_REST_S = 30.0
"""So long at most: it may have been this process that stood still, and the page says "live" meanwhile."""
_ERROR_S = 1.0
_PATIENCE_S = 2.0
"""For one who waits until another has read; then an older answer will do, and leaves threads for pages."""
_KEPT_S = 60.0
"""So long after it was asked for last an answer is kept: its size is that of what stands in the storage."""
_MOST_KEPT = 500


class _Read:
    """The newest answer to one question. Guarded by its lock while it is made, by that of `Reads` else."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.value: Any = None
        self.error: QmlError | None = None
        self.version = -1
        self.read_at = float("-inf")
        self.took_s = 0.0
        self.asked_at = float("-inf")
        self.every_s = 0.0
        self.statements = 0


class Reads:
    """For all threads of a web process."""

    def __init__(self, changes: Changes, clock: Clock | None = None) -> None:
        self._changes = changes
        self._clock = clock or SystemClock()
        self._lock = threading.Lock()
        self._reads: OrderedDict[Hashable, _Read] = OrderedDict()
        self._forgotten_at = float("-inf")
        changes.new_at = self.new_at

    def get(
        self, key: Hashable, read: Callable[[], _Value], *, statements: int = 1, every_s: float = 0.7
    ) -> _Value:
        """The answer of `read`, as new as it can be had at this price.

        `key` names all that the answer depends on. `statements` is how many it sends, roughly; `every_s` the
        shortest time between two. Raises what `read` raises; a `QmlError` is kept for a second.
        """
        found = self._find(key, statements, every_s)
        if found.lock.acquire(timeout=_PATIENCE_S):  # whoever else wants it waits for the one who reads
            try:
                due_at = self._due_at(found, self._slowness())
                if self._clock.monotonic() >= due_at:
                    self._read(found, read)
                    self._changes.spent(statements)
                elif not self._is_current(found):
                    self._changes.tell_at(due_at)
            finally:
                found.lock.release()
        elif found.version < 0:
            raise StorageUnavailable("The storage is slow to answer; it is asked again and again.")
        if found.error is not None:
            raise found.error
        value: _Value = found.value
        return value

    def forget(self) -> None:
        """Read everything anew, however young it is: somebody has just changed something and looks for it."""
        self._forgotten_at = self._clock.monotonic()

    def new_at(self) -> float:
        """The monotonic instant from which one of the answers that somebody looks at may be newer."""
        slowness, since = self._slowness(), self._clock.monotonic() - _LIVE_S
        with self._lock:
            live = [each for each in self._reads.values() if each.asked_at >= since]
        return min((self._due_at(each, slowness) for each in live), default=float("-inf"))

    def _find(self, key: Hashable, statements: int, every_s: float) -> _Read:
        with self._lock:
            found = self._reads.setdefault(key, _Read())
            found.asked_at = now = self._clock.monotonic()
            found.statements, found.every_s = statements, every_s
            self._reads.move_to_end(key)
            while len(self._reads) > _MOST_KEPT or self._longest_unasked().asked_at < now - _KEPT_S:
                self._reads.popitem(last=False)
            return found

    def _longest_unasked(self) -> _Read:
        """They stand in the order in which they were asked for."""
        return next(iter(self._reads.values()))

    def _due_at(self, found: _Read, slowness: float) -> float:
        if found.read_at <= self._forgotten_at:
            return float("-inf")
        if found.error is not None:
            return found.read_at + found.took_s + _ERROR_S  # since it came: a silent storage takes seconds
        rest_s = min(_REST * found.took_s, found.took_s + _LONGEST_REST_S)
        pause_s = max(found.every_s * slowness, rest_s)
        return found.read_at + (max(_LONGEST_S, pause_s) if self._is_current(found) else pause_s)

    def _slowness(self) -> float:
        """By how much all intervals grow, for everything that is looked at to stay within its price."""
        since = self._clock.monotonic() - _LOOKED_AT_S
        with self._lock:
            wanted = sum(
                each.statements / each.every_s for each in self._reads.values() if each.asked_at >= since
            )
        return max(1.0, wanted / _STATEMENTS_PER_S)

    def _is_current(self, found: _Read) -> bool:
        """Whether nothing was committed since; not known while nobody listens."""
        return self._changes.is_listening and found.version == self._changes.version

    def _read(self, found: _Read, read: Callable[[], object]) -> None:
        version, began = self._changes.version, self._clock.monotonic()
        try:
            found.value, found.error = read(), None
        except QmlError as error:
            found.value, found.error = None, error
        found.version, found.read_at = version, began
        found.took_s = self._clock.monotonic() - began
