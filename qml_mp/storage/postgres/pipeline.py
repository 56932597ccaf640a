"""Every process: how statements are sent to PostgreSQL one behind the other, and their replies read."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import psycopg
from psycopg.generators import send


class Pipeline(psycopg.Pipeline):
    """One that sends what it has together, with a Sync behind it, and nothing behind that.

    psycopg's sends each statement as it comes, and asks for the replies by a flush. But until a Sync comes,
    no session is idle in its transaction, as PostgreSQL counts: of a process that is stopped in between it
    would keep the locks for as long as that lasts, whatever `idle_in_transaction_session_timeout` says.

    Behind the last Sync psycopg asks for a flush once more, in a message of its own. A pooler that has seen
    the transaction end by then finds a session for that message, and keeps it for this client until it speaks
    again.
    """

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if error is None or isinstance(error, Exception):
            super().__exit__(kind, error, traceback)

    def _exit(self, exc: BaseException | None) -> None:
        # Else it would fail, and its error would hide what has interrupted the reading.
        if not self.result_queue:
            super()._exit(exc)

    def _communicate_gen(self) -> Generator[Any, Any, None]:
        """After each statement: it is sent with the others, when somebody asks for a reply."""
        yield from ()

    def _fetch_gen(self, *, flush: bool) -> Generator[Any, Any, None]:  # noqa: ARG002  # it is psycopg's
        """When somebody asks for a reply."""
        yield from self._sync_gen()

    def _exit_gen(self) -> Generator[Any, Any, None]:
        yield from self._sync_gen()

    def _sync_gen(self) -> Generator[Any, Any, None]:
        """Send what there is, and read all replies. Raises what the first statement that failed came to."""
        if not self.result_queue:
            return
        self._enqueue_sync()
        while self.command_queue:
            self.command_queue.popleft()()  # puts it into the buffer of the connection
        yield from send(self.pgconn)
        yield from super()._fetch_gen(flush=False)
