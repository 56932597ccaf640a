"""Every process: this process's one connection to PostgreSQL, opened when first used.

A connection is never used again once something went wrong on it: a pipeline may be left in the middle of
it with statements half sent and replies unread, and psycopg counts a statement that it sent in one as
prepared although the server skipped it after an error, or failed to parse it, and from then on every use
of that statement fails. One that crossed a fork belongs to the parent and is never touched: even closing
it would talk on the parent's socket.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TypeVar

import psycopg
from psycopg import pq

from qml_mp.errors import InvalidJob, SchemaMismatch, StorageUnreachable
from qml_mp.storage.connection import ProcessConnection
from qml_mp.storage.postgres.errors import has_missed_table, translate
from qml_mp.storage.postgres.link import Link, LinkOptions, open_link, read_conninfo
from qml_mp.storage.postgres.migrations import MIGRATIONS
from qml_mp.storage.postgres.queries.common import Told, notify
from qml_mp.storage.postgres.schema import Schema
from qml_mp.storage.postgres.target import Target
from qml_mp.storage.waiting import StorageWait

_T = TypeVar("_T")


class Sent:
    """A statement that was sent. Its reply is read by whoever uses the connection next, and may be lost."""

    def __init__(self) -> None:
        self.error: psycopg.Error | None = psycopg.OperationalError(
            "the connection was closed before the reply was read"
        )
        """Why there is no reply; None: it is read."""


class PostgresConnection(ProcessConnection):
    """The link of this process, and the schema that it is for."""

    migrations = MIGRATIONS

    def __init__(self, target: Target, options: LinkOptions) -> None:
        read_conninfo(target)  # here, where it is known where the URL comes from
        self.target = target
        self.options = options
        self.schema = Schema(target)
        self._link: Link | None = None
        self._sent: Sent | None = None
        """Whose reply the link has to read."""
        self._is_checked = False
        """Whether the schema was seen to be the right one through this link."""
        self._announcements = {told: notify(target.quoted_channel, told) for told in Told}
        self._announcement: Told | None = None
        """What is announced once the operation that runs is over."""
        self._left_to_parent: list[Link] = []
        self._tried_at, self._why_none = float("-inf"), ""
        """When the last try for a connection began that was in vain, and what came of it."""
        super().__init__()

    @property
    def url(self) -> str:
        return self.target.url

    @property
    def display_url(self) -> str:
        return self.target.display_url

    @contextmanager
    def use(self, what: str, *, checked: bool = True) -> Iterator[Link]:
        """The connection for one thread; errors of the driver in the block become ours.

        A new one looks at the schema first: an absent one is created, unless this process has used it before;
        any other version than this code's raises `SchemaMismatch` before anything is written. Not `checked`:
        it is left alone.
        """
        with self._schema_looked_at(what), self._turn():
            with self._translated(what):
                link = self._usable(checked=checked)
                yield link
            announcement, self._announcement = self._announcement, None
            if link.pgconn.transaction_status != pq.TransactionStatus.IDLE and not link.is_unread:
                self._drop()
            elif announcement is not None:
                self._send_aside(link, self._announcements[announcement])

    @property
    def can_send(self) -> bool:
        """Whether `send` is of use: there is a connection, and a statement needs no transaction around it."""
        return self._link is not None and not self._link.is_pooled and self.options.waiting is None

    def send(self, what: str, execute: Callable[[Link], _T]) -> tuple[Sent, _T]:
        """Have one statement executed, whose result is there once `receive` has returned."""
        with self.use(what) as link:
            result = link.send(partial(execute, link))
            self._sent = sent = Sent()
        return sent, result

    def receive(self, what: str, sent: Sent) -> None:
        """Wait for the reply, unless it was read before. Raises what is wrong with it."""
        with self._schema_looked_at(what), self._translated(what):
            with self._turn():
                self._read_reply()
            if sent.error is not None:
                raise sent.error

    def announce(self, told: Told) -> None:
        """Tell the listeners once the operation that runs is over, in a transaction of its own.

        Transactions with a NOTIFY commit one after the other, so that each waits for the disk alone: eight
        producers then write a fifth of the jobs that they could. This one has nothing to wait for.
        """
        self._announcement = told

    def where(self) -> str:
        return self.schema.where

    def _find_place(self) -> str:
        with self.use("telling this schema from its copies") as link:
            return self.schema.place(link)

    def migrate(self) -> list[int]:
        with self.use("migrating the schema", checked=False) as link:
            return self.schema.migrate(link)

    def schema_version(self) -> int:
        with self.use("reading the schema's version", checked=False) as link:
            return self._version(link)

    def check_rights(self) -> None:
        with self.use("looking at this role's rights", checked=False) as link:
            self.schema.check_rights(link)

    def descriptors(self) -> frozenset[int]:
        self.leave_parents_handle()
        link = self._link
        return frozenset() if link is None or link.closed else frozenset({link.fileno()})

    def wait_with(self, waiting: StorageWait | None) -> None:
        """Has replies waited for by somebody else, over the connection that is open too."""
        self.options = replace(self.options, waiting=waiting)
        self.leave_parents_handle()
        with self._lock:
            if self._link is not None:
                self._link.waiting = waiting

    def close_for_fork(self) -> None:
        """The connection stays the parent's."""

    def end_fork(self) -> None:
        """It was never closed."""

    def _send_aside(self, link: Link, statement: bytes) -> None:
        try:
            link.send_aside(statement)
        except psycopg.Error:  # what it tells of is committed, and found by polling
            self._drop()

    def _read_reply(self) -> None:
        """What is wrong with it is told to whoever has sent for it."""
        sent, self._sent = self._sent, None
        if sent is None or self._link is None:
            return
        try:
            self._link.read_reply()
            sent.error = None
        except psycopg.Error as error:
            sent.error = error
            self._drop()
        except BaseException:
            self._drop()
            raise

    def _undo(self) -> None:
        self._announcement = None
        self._drop()

    def _drop(self) -> None:
        self._is_checked = False
        if self._link is not None:
            self._link.close()  # while it is ours: called again when a signal has interrupted it
        self._link = self._sent = None

    def _abandon(self) -> None:
        """Let go of the socket: held open, it would keep the parent's session alive after the parent's death,
        with whatever it has locked. The descriptor itself belongs to the driver's object, which must not
        close a number that is used again, so the null device takes its place."""
        link, self._link, self._sent = self._link, None, None
        self._is_checked = False
        self.options = replace(self.options, waiting=None)  # it looks after what is the parent's
        if link is None:
            return
        self._left_to_parent.append(link)  # kept, so that nothing finalises it
        if not link.closed:
            null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
            os.dup2(null, link.fileno(), inheritable=False)
            os.close(null)

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

    def _usable(self, *, checked: bool) -> Link:
        self._read_reply()
        if self._link is not None and not self._link.is_usable():
            self._drop()
        if self._link is None:
            self._link = self._new_link()
        if checked and not self._is_checked:
            found = self._version(self._link)
            if found == 0:
                self.schema.migrate(self._link)
            else:
                self.check_found(found)
            self._is_checked = self._is_schema_expected = True
        return self._link

    @contextmanager
    def _schema_looked_at(self, what: str) -> Iterator[None]:
        """Raise what is so instead, where a statement has missed a table of a schema that was there before:
        it was dropped, and whoever made an empty one now would be in the way of a restore. That may be over
        by now: then it was an outage too."""
        try:
            yield
        except SchemaMismatch as problem:
            missed = problem.__cause__
            if self._is_schema_expected and isinstance(missed, psycopg.Error):
                with self._turn(), self._translated(what):
                    link = self._usable(checked=True)
                    is_back = has_missed_table(missed) and self.schema.is_whole(link)
                if is_back:
                    raise StorageUnreachable(
                        f"The {self.where()} was not there at {what}, and is back now: "
                        f"{missed.diag.message_primary}. Nothing was written; try again."
                    ) from problem
            raise

    def _new_link(self) -> Link:
        """Who has come before another thread's try began is told what came of that one: in an outage the
        threads of a program would fail one behind the other."""
        if self.running is not None and self.running.came_at < self._tried_at:
            raise StorageUnreachable(self._why_none)
        began_at = time.monotonic()
        try:
            return open_link(self.target, self.options)
        except StorageUnreachable as problem:
            self._tried_at, self._why_none = began_at, str(problem)
            raise

    def _version(self, link: Link) -> int:
        found = self.schema.version(link)
        if found == 0 and self._is_schema_expected:
            raise StorageUnreachable(
                f"The {self.where()} was dropped while in use. Nothing was written. Put it back, or run "
                "`qml-mp migrate` for an empty one; whoever has used it then goes on."
            )
        return found
