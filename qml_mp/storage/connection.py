"""Every process: its one connection to a database. Threads take turns, and no handle crosses a fork in a
usable state.

SQLite keeps its locks per process. A child that opens the file beside a handle that it inherited
believes that it holds its parent's locks, and one that closes the inherited handle acts on the file
in its parent's name. So these handles are closed before each fork of this process, and opened again
by whoever needs one; a handle that is in use by then is abandoned by the child, which refuses the file.
A connection to PostgreSQL stays the parent's; the child lets go of its socket without a word.

Of the threads of a process a child has the one that forked. What another one was about at that moment, a
lock that it held or a module that it was importing, stays as it was for ever. So every lock is made anew
in the child, and the opening of a storage, which imports, is over before a fork.

A signal's handler may raise between any two steps of an operation: KeyboardInterrupt, or `JobTimeout` in a
job that enqueues. Raised inside `contextlib`, before a generator goes on, it puts off the generator's own
clean-up until the traceback is let go of. So whatever leaves an operation passes a plain frame (`whole`, and
that of `Operations`), which ends what was left open. The generator, when it goes on, finds its operation
ended.
"""

from __future__ import annotations

import math
import os
import threading
import time
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Protocol, TypeVar

from qml_mp import failpoints
from qml_mp.errors import StorageError
from qml_mp.storage.migrate import Migration, check_version
from qml_mp.storage.waiting import StorageWait, WriteTurns, place_in_line

_T = TypeVar("_T")


class Operation:
    """One use of the connection, by the thread that made this."""

    __slots__ = ("came_at", "thread")

    def __init__(self) -> None:
        self.thread = threading.get_ident()
        self.came_at = time.monotonic()


class ProcessConnection(ABC):
    """This process's connection of one storage, opened when first used. `Storage` says what the public
    operations promise."""

    migrations: Sequence[Migration]

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._place: str | None = None
        self._is_schema_expected = False
        """Whether it was there. It stays: one that was dropped under us, or whose file was taken away, is
        never made anew."""
        self.running: Operation | None = None
        """The operation that runs: one inside it would wait for the connection for ever. Written by its
        thread, which holds the lock as long."""
        self._gave_up_at = float("-inf")
        """When one has last waited in vain for somebody's lock; read and written by the one that runs."""
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

    def place(self) -> str:
        """What tells this storage from copies of it that processes of this machine use; "": nothing does."""
        if self._place is None:
            self._place = self._find_place()
        return self._place

    @abstractmethod
    def _find_place(self) -> str: ...

    @abstractmethod
    def migrate(self) -> list[int]: ...

    @abstractmethod
    def schema_version(self) -> int: ...

    def expect_schema(self) -> None:
        """See `Storage.expect_schema`."""
        self._is_schema_expected = True

    def log_bytes(self) -> int | None:
        """The size of the log that lies beside the file; None: there is no such."""
        return None

    @abstractmethod
    def check_rights(self) -> None: ...

    def check_schema(self) -> None:
        self.check_found(self.schema_version())

    def check_found(self, version: int) -> None:
        """`check_schema`, of a version that was read."""
        check_version(self.migrations, found=version, where=self.where())

    @abstractmethod
    def descriptors(self) -> frozenset[int]: ...

    def is_open_elsewhere(self) -> bool:
        """See `Storage.has_other_handles`."""
        return False

    @abstractmethod
    def wait_with(self, waiting: StorageWait | None) -> None: ...

    def take_turns(self, turns: WriteTurns) -> None:  # noqa: B027  # most let several write
        """Have each transaction that writes wait for its turn."""

    def close(self) -> None:
        """Harmless when there is no connection, or while it is in use."""
        self.leave_parents_handle()
        with self._lock:
            if self.running is None:
                self._drop()

    def whole(self, operation: Callable[[], _T]) -> _T:
        """Run an operation: it has ended, and left nothing open, when this returns or raises."""
        before = self.running
        try:
            return operation()
        except BaseException:
            self.end_left(before)
            raise

    def end_left(self, before: Operation | None) -> None:
        """End the operation that this thread has left open, unless it is the one that ran `before`."""
        left = self.running
        if left is not None and left is not before and left.thread == threading.get_ident():
            try:
                self._undo()
            finally:
                self._end(left)

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """One operation of one thread, undone on any error."""
        self.leave_parents_handle()
        operation = Operation()
        try:
            with self._lock:
                if self.running is not None:
                    raise StorageError(
                        "A storage operation was started inside another one of the same thread."
                    )
                place = place_in_line.get()
                if place is not None:
                    if not place.begin():
                        raise StorageError("Who has asked for this is gone, and nothing of it was begun.")
                    operation.came_at = min(operation.came_at, place.came_at)
                    place.came_at = math.inf
                failpoints.hit("storage.call")
                # Held once more, until `_end`. Python looks for signals after the call, and not before it.
                self.running = operation
                self._lock.acquire()
            yield
        except BaseException:
            if self.running is operation:
                self._undo()
                self._end(operation)  # not in a `finally`: what was not undone is still to be
            raise
        self._end(operation)
        failpoints.hit("storage.committed")

    @property
    def _has_waited_s(self) -> float:
        """How long the operation that runs has waited behind one that waited for a lock in vain; else 0. This
        counts as its own waiting: else the threads of a program would give up one behind the other."""
        if self.running is None or self.running.came_at > self._gave_up_at:
            return 0.0
        return time.monotonic() - self.running.came_at

    def _end(self, operation: Operation) -> None:
        """Harmless when it has ended: by `end_left`, or by a fork, in whose child nothing runs."""
        if self.running is operation:
            self.running = None
            self._lock.release()

    @abstractmethod
    def _undo(self) -> None:
        """Have the operation that runs leave no open transaction. Called again when it was interrupted."""

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
            self.running = None
            self._abandon()

    @abstractmethod
    def _abandon(self) -> None:
        """In a forked child: have no connection any more, and do nothing in the parent's name."""


class OfOneProcess(Protocol):
    """What has locks or threads, which are nobody's in a copy of the process."""

    def begin_in_child(self) -> None:
        """Runs in the child, before anything else does there: begin anew."""


class ForkGuard:
    """All connections of this process, and whatever else has to begin anew in its copies; each only as long
    as others hold it."""

    def __init__(self) -> None:
        self._connections: weakref.WeakSet[ProcessConnection] = weakref.WeakSet()
        self._others: weakref.WeakSet[OfOneProcess] = weakref.WeakSet()
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

    def watch_other(self, other: OfOneProcess) -> None:
        """Have this called in each child from now on."""
        with self.no_forks:
            self._others.add(other)

    def close_all(self) -> None:
        """Close what nobody is using; each is opened again when it is used."""
        for connection in list(self._connections):
            connection.close()

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
        for other in list(self._others):
            other.begin_in_child()


@cache
def fork_guard() -> ForkGuard:
    """The one guard of this process. One, because a callback at forks can never be taken back: one
    for each storage would pile up. Made at first use, so that importing has no effect."""
    return ForkGuard()
