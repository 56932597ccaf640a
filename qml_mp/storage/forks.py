"""Every process: no storage handle crosses a fork in a usable state.

SQLite keeps its locks per process. A child that opens the file beside a handle that it inherited
believes that it holds its parent's locks, and one that closes the inherited handle acts on the file
in its parent's name. So these handles are closed before each fork of this process, and opened again
by whoever needs one; a handle that is in use by the forking thread itself is abandoned by the child.
A connection to PostgreSQL stays the parent's; the child lets go of its socket without a word.

Of the threads of a process a child has the one that forked. What another one was about at that moment, a
lock that it held or a module that it was importing, stays as it was for ever. So every lock is made anew
in the child, and the opening of a storage, which imports, is over before a fork.
"""

from __future__ import annotations

import os
import threading
import weakref
from functools import cache
from typing import Protocol


class HoldsHandle(Protocol):
    """What has a handle to close or abandon."""

    def close_for_fork(self) -> None:
        """Runs in the forking process, before the fork. Until this is over, no thread may open another."""

    def end_fork(self) -> None:
        """Runs in the forking process, after the fork."""

    def leave_parents_handle(self) -> None:
        """Runs in the child, and harmlessly in the parent."""


class ForkGuard:
    """Everything in this process that may hold a handle; each only as long as others hold it."""

    def __init__(self) -> None:
        self._holders: weakref.WeakSet[HoldsHandle] = weakref.WeakSet()
        self.no_forks = threading.RLock()
        """While a thread holds it, the other threads of the process wait with their forks. Only for what
        is short and waits for nobody; never taken under the lock of a holder."""
        os.register_at_fork(
            before=self._before, after_in_parent=self._in_parent, after_in_child=self._in_child
        )

    def watch(self, holder: HoldsHandle) -> None:
        """Have the holder called at each fork from now on; harmless when it is watched already."""
        with self.no_forks:
            self._holders.add(holder)

    def _before(self) -> None:
        self.no_forks.acquire()
        for holder in list(self._holders):
            holder.close_for_fork()

    def _in_parent(self) -> None:
        for holder in list(self._holders):
            holder.end_fork()
        self.no_forks.release()

    def _in_child(self) -> None:
        self.no_forks = threading.RLock()
        for holder in list(self._holders):
            holder.leave_parents_handle()


@cache
def fork_guard() -> ForkGuard:
    """The one guard of this process. One, because a callback at forks can never be taken back: one
    for each storage would pile up. Made at first use, so that importing has no effect."""
    return ForkGuard()
