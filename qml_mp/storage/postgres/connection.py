"""Every process: this process's one connection to PostgreSQL, opened when first used.

A connection is never used again once something went wrong on it. psycopg counts a statement that it
sent in a pipeline as prepared although the server skipped it after an error, or failed to parse it, and
from then on every use of that statement fails. One that crossed a fork belongs to the parent and is
never touched: even closing it would talk on the parent's socket.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import psycopg
from psycopg import pq

from qml_mp import failpoints
from qml_mp.errors import InvalidJob, StorageError
from qml_mp.storage.forks import fork_guard
from qml_mp.storage.postgres import schema
from qml_mp.storage.postgres.errors import translate
from qml_mp.storage.postgres.link import Link, LinkOptions, open_link
from qml_mp.storage.postgres.statements import Statements
from qml_mp.storage.postgres.target import Target
from qml_mp.storage.waiting import StorageWait


class ProcessConnection:
    """The connection of one storage; the threads of a process take turns."""

    def __init__(self, target: Target, options: LinkOptions) -> None:
        self.target = target
        self.options = options
        self.statements = Statements(target)
        self._handle = _Handle()
        self._left_to_parent: list[_Handle] = []
        fork_guard().watch(self)

    @contextmanager
    def use(self, what: str, *, checked: bool = True) -> Iterator[Link]:
        """The connection for one thread; errors of the driver in the block become ours.

        A new one looks at the schema first: an absent one is created, any other version than this
        code's raises `SchemaMismatch` before anything is written. Not `checked`: it is left alone.
        """
        handle = self._own_handle()
        with handle.lock:
            if handle.in_use:
                raise StorageError("A storage operation was started inside another one of the same thread.")
            failpoints.hit("storage.call")
            handle.in_use = True
            try:
                with self._translated(what):
                    yield self._usable(handle, checked=checked)
            except BaseException:
                handle.drop()
                raise
            finally:
                handle.in_use = False
            handle.drop_unless_idle()
            failpoints.hit("storage.committed")

    def migrate(self) -> list[int]:
        """Bring the schema up to this code; the versions applied."""
        with self.use("migrating the schema", checked=False) as link:
            return schema.migrate(link, self.target, self.statements)

    def version(self) -> int:
        """The version of the schema, 0 when there is none. Reads only."""
        with self.use("reading the schema's version", checked=False) as link:
            return schema.found_version(link, self.target, self.statements)

    def close(self) -> None:
        """Close this process's connection; harmless when there is none or while it is in use."""
        handle = self._own_handle()
        with handle.lock:
            if not handle.in_use:
                handle.drop()

    def __del__(self) -> None:
        """A storage that its program has dropped leaves no connection behind."""
        # Perhaps half made, or at the end of the interpreter, where even the name `suppress` is gone.
        try:  # noqa: SIM105
            self.close()
        except Exception:
            pass

    @property
    def descriptors(self) -> frozenset[int]:
        """The socket of this process's connection; empty when there is none."""
        link = self._own_handle().link
        return frozenset() if link is None or link.closed else frozenset({link.fileno()})

    def wait_with(self, waiting: StorageWait | None) -> None:
        """Have replies waited for by somebody else, over the connection that is open too."""
        self.options = replace(self.options, waiting=waiting)
        handle = self._own_handle()
        with handle.lock:
            if handle.link is not None:
                handle.link.waiting = waiting

    def close_for_fork(self) -> None:
        """The connection stays the parent's."""

    def end_fork(self) -> None:
        """It was never closed."""

    def leave_parents_handle(self) -> None:
        """In a forked child, let go of the socket: held open, it would keep the parent's session
        alive after the parent's death, with whatever it has locked."""
        if self._handle.pid != os.getpid():
            self._handle.abandon()
            self._own_handle()  # now, while there is one thread

    @contextmanager
    def _translated(self, what: str) -> Iterator[None]:
        try:
            yield
        except psycopg.Error as error:
            if isinstance(error, psycopg.DataError) and not error.sqlstate:
                raise InvalidJob(f"A value cannot be stored in PostgreSQL: {error}") from None
            raise translate(error, what=what, target=self.target) from error
        except UnicodeEncodeError as error:
            raise InvalidJob(
                f"A text has a lone surrogate, which cannot be stored or found ({error})."
            ) from None

    def _usable(self, handle: _Handle, *, checked: bool) -> Link:
        if handle.link is not None and not handle.link.is_usable():
            handle.drop()
        if handle.link is None:
            handle.link = open_link(self.target, self.options)
        if checked and not handle.checked:
            found = schema.found_version(handle.link, self.target, self.statements)
            if found == 0:
                schema.migrate(handle.link, self.target, self.statements)
            else:
                schema.check_found(found, self.target)
            handle.checked = True
        return handle.link

    def _own_handle(self) -> _Handle:
        if self._handle.pid != os.getpid():
            self._left_to_parent.append(self._handle)  # kept, so that nothing finalises it
            # With a lock of its own: that one may be held by a thread that is not here.
            self._handle = _Handle()
        return self._handle


class _Handle:
    """A link and its lock, in the process that made them."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.lock = threading.RLock()
        self.link: Link | None = None
        self.checked = False
        """Whether the schema was seen to be the right one through this link."""
        self.in_use = False
        """Whether an operation runs: one inside it would wait for the link for ever."""

    def drop_unless_idle(self) -> None:
        """After use: keep the link only outside of any transaction."""
        if self.link is not None and self.link.pgconn.transaction_status != pq.TransactionStatus.IDLE:
            self.drop()

    def abandon(self) -> None:
        """In a forked child: put the null device in the place of the parent's socket. The descriptor
        itself belongs to the driver's object, which must not close a number that is used again."""
        if self.link is not None and not self.link.closed:
            null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
            os.dup2(null, self.link.fileno(), inheritable=False)
            os.close(null)

    def drop(self) -> None:
        """Close the link, whatever state it is in."""
        link, self.link = self.link, None
        self.checked = False
        if link is not None:
            link.close()
