"""Every process: the history of what came of claims."""

from __future__ import annotations

from qml_mp.core.history import Ending
from qml_mp.core.job import ClaimKey
from qml_mp.core.outcome import Attempt, AttemptKind
from qml_mp.core.state import StateName
from qml_mp.storage.database import Part
from qml_mp.storage.rows import attempt_of, state_name_of
from qml_mp.storage.storable import canonical_id

_FINAL = {
    StateName.SUCCEEDED: Ending.SUCCEEDED,
    StateName.FAILED: Ending.FAILED,
    StateName.DELETED: Ending.CANCELLED,
}


class History(Part):
    """What has ended, counted."""

    def recorded_ending(self, key: ClaimKey) -> Ending | None:
        """What a claim came to that holds no more, as the row and its attempts tell; None: neither tells of
        it, as when it was lost to somebody else or given back."""
        which = {"id": canonical_id(key.job_id)}
        rows = self._db.read("reading a job", self._db.queries.jobs.get, which)
        if rows and rows[0]["claim_seq"] == key.claim_seq:
            ending = _FINAL.get(state_name_of(rows[0]["state"]))
            if ending is not None:
                return ending
        query = self._db.queries.monitoring.attempts
        attempts = self._read("reading a job's attempts", query, attempt_of, which)
        return next((_ending_of(each) for each in attempts if each.claim_seq == key.claim_seq), None)


def _ending_of(attempt: Attempt) -> Ending:
    """Of a job that has gone on since."""
    match attempt.kind:
        case AttemptKind.CANCELLED:
            return Ending.CANCELLED
        case AttemptKind.CRASH:
            return Ending.CRASHED
        case _:
            return Ending.RETRIED
