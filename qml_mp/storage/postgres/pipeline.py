"""Every process: how statements are sent to PostgreSQL one behind the other, and their replies read."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import psycopg
from psycopg.generators import fetch_many, send


class Pipeline(psycopg.Pipeline):
    """One that sends nothing until a reply is asked for, and then all that it has, with a Sync behind it.

    psycopg's sends each statement as it comes, and asks for the replies by a flush. But until a Sync comes,
    no session is idle in its transaction, as PostgreSQL counts: of a process that is stopped in between it
    would keep the locks for as long as that lasts, whatever `idle_in_transaction_session_timeout` says. (So
    it still does when a process is stopped while it sends more than the buffers of a socket hold.)

    Nothing comes behind the last Sync. psycopg's flush is a message of its own there: a pooler that has seen
    the transaction end by then finds a session for it, and keeps that for this client until it speaks again.

    It is left in the middle when the block raises: what was not sent is never begun, and the connection,
    which nobody uses again, ends what was.
    """

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if error is None:
            super().__exit__(kind, error, traceback)

    def _exit(self, exc: BaseException | None) -> None:
        # With replies unread it would fail to leave, and hide by that what has interrupted the reading.
        if not self.result_queue:
            super()._exit(exc)

    def _communicate_gen(self) -> Generator[Any, Any, None]:
        """After each statement: nothing is sent."""
        yield from ()

    def _fetch_gen(self, *, flush: bool) -> Generator[Any, Any, None]:  # noqa: ARG002  # it is psycopg's
        """When somebody asks for a reply."""
        yield from self._sync_gen()

    def _exit_gen(self) -> Generator[Any, Any, None]:
        yield from self._sync_gen()

    def _sync_gen(self) -> Generator[Any, Any, None]:
        """Send what there is, and read all replies. Raises what the first statement that failed came to, also
        when the connection is lost behind it: a server says why it ends a session, and then ends it."""
        if not self.result_queue:
            return
        self._enqueue_sync()
        while self.command_queue:
            self.command_queue.popleft()()  # puts it into the buffer of the connection
        yield from send(self.pgconn)
        failure: psycopg.Error | None = None
        while self.result_queue:
            try:
                results = yield from fetch_many(self.pgconn)
            except psycopg.Error as lost:
                raise failure or lost from None
            if not results:
                raise failure or psycopg.OperationalError("the server has left out a reply")
            try:
                self._process_results(self.result_queue.popleft(), results)
            except psycopg.Error as error:
                failure = failure or error
        if failure is not None:
            raise failure
