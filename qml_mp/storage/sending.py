"""Every process: exchanges that are sent, and whose reply is read later."""

from __future__ import annotations

from collections.abc import Callable

from qml_mp.storage.claims import CLAIMING, FINISHING, JobLocker
from qml_mp.storage.outcomes import Outcomes, Writing
from qml_mp.storage.values import Exchanged, Fetch, Retention


class SendingLocker(JobLocker):
    """Lets the server write and claim while the worker runs the next job."""

    @property
    def can_send_exchange(self) -> bool:
        """Whether `send_exchange` is of use here, as far as is known."""
        return self._db.sender is not None and not self._is_limited

    def send_exchange(
        self, finished: Outcomes, *, fetch: Fetch, limit: int, retention: Retention
    ) -> Callable[[], Exchanged]:
        """`exchange` without waiting, while `can_send_exchange`: what this returns waits for the reply, and
        gives or raises what `exchange` would. Call it once; other operations in between are harmless.

        The outcomes are successes with no jobs that follow. All of it is sent when this returns, unless it is
        the first time that this connection prepares the statement: then what is returned sends it.
        No job is claimed where the jobs are more than `UNREAD_BYTES` together.
        """
        sender = self._db.sender
        assert sender is not None  # as `can_send_exchange` has said
        writing = Writing(self._db, finished, retention)
        take, wanted, run = self._next_take(fetch, limit)
        wanted = {**wanted, "read_at_once": False}
        if finished:
            assert take.exchange is not None
            assert writing.is_of_successes
            values = {**writing.values, **wanted}
            receive = sender.send_each(FINISHING, take.exchange, writing.rows, values)
        else:
            receive = sender.send(CLAIMING, take.claim, wanted)

        def exchanged() -> Exchanged:
            result = receive()
            if finished:
                writing.sent_by(result)
            claimed = self._claimed_in_a_row(result, fetch, limit, run)
            if not claimed and (run is not None or self._is_limited):
                claimed = self._claim(fetch, limit, ended=finished)
            return Exchanged(finished=writing.finished(), claims=claimed)

        return lambda: self._db.connection.whole(
            lambda: self._unless_refused(exchanged, finished, fetch, limit, retention)
        )
