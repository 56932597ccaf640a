"""Every process: its one connection to a database. Threads take turns, and no handle crosses a fork in a
usable state.

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
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache

from qml_mp import failpoints
from qml_mp.errors import StorageError
from qml_mp.storage.migrate import Migration, check_version
from qml_mp.storage.waiting import StorageWait, WriteTurns


class ProcessConnection(ABC):
    """This process's connection of one storage, opened when first used. `Storage` says what the public
    operations promise."""

    migrations: Sequence[Migration]

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._in_use = False
        """Whether an operation runs: one inside it would wait for the connection for ever."""
        fork_guard().watch(self)

    def __del__(self) -> None:
        """A storage that its program has dropped leaves no connection behind."""
        # Perhaps half made, or at the end of the interpreter, where even the name `suppress` is gone.
        try:  # noqa: SIM105
            self.close()
        except Exception:
            pass

    @property
    @abstractmethod
    def url(self) -> str: ...

    @property
    @abstractmethod
    def display_url(self) -> str: ...

    @abstractmethod
    def where(self) -> str:
        """The place of the schema, as messages name it."""

    @abstractmethod
    def migrate(self) -> list[int]: ...

    @abstractmethod
    def schema_version(self) -> int: ...

    @abstractmethod
    def check_rights(self) -> None: ...

    def check_schema(self) -> None:
        self.check_found(self.schema_version())

    def check_found(self, version: int) -> None:
        """`check_schema`, of a version that was read."""
        check_version(self.migrations, found=version, where=self.where())

    @abstractmethod
    def descriptors(self) -> frozenset[int]: ...

    @abstractmethod
    def wait_with(self, waiting: StorageWait | None) -> None: ...

    def take_turns(self, turns: WriteTurns) -> None:  # noqa: B027  # most let several write
        """Have each transaction that writes wait for its turn."""

    def close(self) -> None:
        """Harmless when there is no connection, or while it is in use."""
        self.leave_parents_handle()
        with self._lock:
            if not self._in_use:
                self._drop()

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """One operation of one thread."""
        self.leave_parents_handle()
        with self._lock:
            if self._in_use:
                raise StorageError("A storage operation was started inside another one of the same thread.")
            failpoints.hit("storage.call")
            self._in_use = True
            try:
                yield
            finally:
                self._in_use = False
            failpoints.hit("storage.committed")

    @abstractmethod
    def _drop(self) -> None:
        """Close the connection, whatever state it is in."""

    @abstractmethod
    def close_for_fork(self) -> None:
        """Runs in the forking process, before the fork. Until this is over, no thread may open another
        handle that must not be inherited."""

    @abstractmethod
    def end_fork(self) -> None:
        """Runs in the forking process, after the fork."""

    def leave_parents_handle(self) -> None:
        """Runs in the child, and harmlessly in the parent."""
        if self._pid != os.getpid():
            self._pid = os.getpid()
            self._lock = threading.RLock()  # the old one may be held by a thread that does not exist here
            self._in_use = False
            self._abandon()

    @abstractmethod
    def _abandon(self) -> None:
        """In a forked child: have no connection any more, and do nothing in the parent's name."""


class ForkGuard:
    """All connections of this process; each only as long as others hold it."""

    def __init__(self) -> None:
        self._connections: weakref.WeakSet[ProcessConnection] = weakref.WeakSet()
        self.no_forks = threading.RLock()
        """While a thread holds it, the other threads of the process wait with their forks. Only for what
        is short and waits for nobody; never taken under the lock of a connection."""
        os.register_at_fork(
            before=self._before, after_in_parent=self._in_parent, after_in_child=self._in_child
        )

    def watch(self, connection: ProcessConnection) -> None:
        """Have the connection called at each fork from now on."""
        with self.no_forks:
            self._connections.add(connection)

    def _before(self) -> None:
        self.no_forks.acquire()
        for connection in list(self._connections):
            connection.close_for_fork()

    def _in_parent(self) -> None:
        for connection in list(self._connections):
            connection.end_fork()
        self.no_forks.release()

    def _in_child(self) -> None:
        self.no_forks = threading.RLock()
        for connection in list(self._connections):
            connection.leave_parents_handle()


@cache
def fork_guard() -> ForkGuard:
    """The one guard of this process. One, because a callback at forks can never be taken back: one
    for each storage would pile up. Made at first use, so that importing has no effect."""
    return ForkGuard()
