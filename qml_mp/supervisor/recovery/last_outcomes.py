"""Guardian: writes what came of jobs whose worker and supervisor are both dead, or they would run again.

A supervisor writes the outcomes that a dead worker has left in shared memory. When it is dead itself, its
guardian still has that memory. It writes at once: the next server gives back the claims of this one as soon
as it is there.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import closing

from qml_mp.core.job import Claim, ClaimKey
from qml_mp.core.outcome import Outcome, not_storable
from qml_mp.errors import OutcomeRefused, StorageError, StorageUnavailable, StorageUnreachable
from qml_mp.ipc.ended import EndedTable, mark_of_worker
from qml_mp.processing.job_records import about
from qml_mp.storage.open import open_storage
from qml_mp.storage.store import Storage
from qml_mp.storage.values import Finished, Retention
from qml_mp.supervisor.urgent import STORAGE_PATIENCE
from qml_mp.supervisor.wait import wait_for
from qml_mp.supervisor.workers.fork import fork_child

logger = logging.getLogger(__name__)

_TRIED_FOR_S = 15.0
"""So that a file may be busy meanwhile, or a database start again."""
_PAUSE_S = 0.5

_Ended = Mapping[tuple[int, ClaimKey], Outcome]
"""By `mark_of_worker`, and its claim: after a restore or a failover of storage, another worker may have one
of the same number."""


class LastOutcomes:
    """Those of the workers of one server."""

    def __init__(self, table: EndedTable, *, url: str, retention: Retention) -> None:
        self._table = table
        self._url = url
        self._retention = retention
        self._seen: dict[int, int] = {}
        """What is written, or being written, of each slot."""
        self._is_told = False
        """Whether the log has it that the system has no room for the process that writes."""

    def write(self, *, is_dead: Callable[[int], bool], sign: Collection[int]) -> bool:
        """Write what dead workers have left since the last time; `is_dead` tells of the worker in a slot. In
        a process of its own, because storage may not answer and the guardian has a deadline. It holds the
        descriptor of the `sign` until all is written. False: the system has no room for it, and the next call
        tries again.

        A worker that lives writes its own: it knows that its supervisor is gone.
        """
        outcomes: dict[tuple[int, ClaimKey], Outcome] = {}
        seen: dict[int, int] = {}
        for index in filter(is_dead, range(self._table.capacity)):
            number, owner, found = self._table.read(index)
            if self._seen.get(index) != number:
                seen[index] = number
                outcomes |= {(owner, key): outcome for key, outcome in found.items()}
        if outcomes:
            try:
                fork_child(lambda: self._write(outcomes), ours=(), theirs=(), shared=sign)
            except OSError as error:  # the guardian has workers to end all the same
                if not self._is_told:
                    logger.warning("What had ended when the server was killed is not written yet: %s", error)
                self._is_told = True
                return False
        self._seen |= seen
        return True

    def _write(self, outcomes: _Ended) -> int:
        """They would run again, so it is tried more than once. Each write is guarded by its claim, and while
        the sign is held no peer on this machine gives these jobs back."""
        until = time.monotonic() + _TRIED_FOR_S
        while True:
            try:
                self._write_all(outcomes, until=until)
                return 0
            except StorageError as error:
                if not isinstance(error, StorageUnavailable) or time.monotonic() >= until:
                    logger.warning("Not all that had ended when the server was killed is written: %s", error)
                    return 1
            wait_for([], until=time.monotonic() + _PAUSE_S)

    def _write_all(self, outcomes: _Ended, *, until: float) -> None:
        """Together, or else each by itself: what storage refuses of one, or a row that somebody has locked,
        keeps no other. Many rows may be, so that it has to be impatient with each."""
        with closing(open_storage(self._url, patience=STORAGE_PATIENCE)) as storage:
            storage.expect_schema()
            # Not by the server's id: it has another one once its peers have declared it dead.
            ends = [
                (claim, outcomes[end])
                for claim in storage.claims()
                if (end := (mark_of_worker(claim.worker_id), claim.key)) in outcomes
            ]
            try:
                done = storage.exchange(ends, fetch=None, limit=0, retention=self._retention)
            except StorageUnreachable:
                raise
            except StorageError:  # of one of them, or its reply is lost
                self._write_each(storage, ends, until=until)
            else:
                for (claim, outcome), finished in zip(ends, done.finished, strict=True):
                    _tell(claim, outcome, finished)

    def _write_each(self, storage: Storage, ends: Sequence[tuple[Claim, Outcome]], *, until: float) -> None:
        """Raises what was refused, in the end; rather what another try may help against."""
        refused: StorageError | None = None
        for end in ends:
            try:
                self._finish(storage, *end)
            except StorageUnreachable:
                raise
            except StorageError as error:
                if refused is None or isinstance(error, StorageUnavailable):
                    refused = error
                if time.monotonic() >= until:  # each may have waited for a lock
                    break
        if refused is not None:
            raise refused

    def _finish(self, storage: Storage, claim: Claim, outcome: Outcome) -> None:
        """What storage refuses of it, as a failure that says so."""
        try:
            finished = storage.finish(claim, outcome, retention=self._retention)
        except OutcomeRefused as error:
            outcome = not_storable(error)
            finished = storage.finish(claim, outcome, retention=self._retention)
        _tell(claim, outcome, finished)


def _tell(claim: Claim, outcome: Outcome, finished: Finished) -> None:
    """Nothing of a claim that a peer has given away meanwhile: its job runs again."""
    if finished.accepted:
        logger.info(
            "Job %s had ended when the server was killed: %s is written",
            claim.job.id,
            type(outcome).__name__,
            extra=about(claim),
        )
