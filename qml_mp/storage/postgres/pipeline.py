"""Every process: how statements are sent to PostgreSQL one behind the other, and their replies read."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import psycopg
from psycopg.generators import send


class Pipeline(psycopg.Pipeline):
    """One that sends nothing after its Sync, which ends the transaction.

    psycopg's asks for a flush behind it, in a message of its own. A pooler that has seen the transaction end
    by then finds a session for that message, and keeps it for this client until it speaks again.
    """

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if error is None or isinstance(error, Exception):
            super().__exit__(kind, error, traceback)

    def _exit(self, exc: BaseException | None) -> None:
        # Else it would fail, and its error would hide what has interrupted the reading.
        if not self.result_queue:
            super()._exit(exc)

    def _exit_gen(self) -> Generator[Any, Any, None]:
        self._enqueue_sync()
        try:
            yield from self._communicate_gen()
        except psycopg.Error:  # what one statement came to; the others' results are to be read all the same
            yield from self._rest()
            raise
        yield from self._rest()

    def _rest(self) -> Generator[Any, Any, None]:
        yield from send(self.pgconn)
        yield from self._fetch_gen(flush=False)
