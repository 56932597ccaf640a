"""Every process: attempts whose worker died, until another worker has exported their spans.

They are kept only for methods whose code traces its attempts, and in the very commit that ends them. A
supervisor runs no user code, so it has no tracer; the next healthy worker has one. Attempts that their worker
ends cost nothing here.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import timedelta

from qml_mp.core.job import ClaimKey
from qml_mp.core.lost_attempt import LostAttempt, lost_attempt_of
from qml_mp.storage.database import Operations
from qml_mp.storage.rows import Row, text_of

_MOST_AT_A_TIME = 100


class LostAttempts(Operations):
    """Each is one worker's at a time, and is exported at least once."""

    def has_lost_attempts(self, methods: Collection[str]) -> bool:
        """Whether one of these methods can be taken now."""
        which, due = {"methods": sorted(methods)}, self._db.queries.lost_attempts.due
        return bool(self._db.read("looking for lost attempts", due, which))

    def take_lost_attempts(
        self, worker_id: str, methods: Collection[str], *, lease: timedelta
    ) -> list[LostAttempt]:
        """Take those that are due for longest, up to a hundred. They are nobody else's for so long, and
        are due again then: for twice as long the next time, and so on. Or until the worker is not registered
        any more."""
        if not self.has_lost_attempts(methods):
            return []
        values = {
            "methods": sorted(methods),
            "worker_id": worker_id,
            "lease": lease,
            "limit": _MOST_AT_A_TIME,
        }
        taken = self._db.write("taking lost attempts", self._db.queries.lost_attempts.take, values)
        return [self._taken(row) for row in taken.rows()]

    def end_lost_attempts(self, worker_id: str, keys: Collection[ClaimKey]) -> int:
        """Of these, those that are still the worker's are exported; how many."""
        values = {
            "worker_id": worker_id,
            "ids": [key.job_id for key in keys],
            "claim_seqs": [key.claim_seq for key in keys],
        }
        return self._db.write("ending lost attempts", self._db.queries.lost_attempts.end, values).count

    def forget_lost_attempts(self, *, limit: int) -> int:
        """Delete those that nobody exported for a day, so many of them at most; how many."""
        queries, values = self._db.queries.lost_attempts, {"limit": limit}
        return self._delete_old(
            "forgetting lost attempts", any_old=queries.any_old, query=queries.forget, values=values
        )

    def _taken(self, row: Row) -> LostAttempt:
        key = ClaimKey(job_id=text_of(row["job_id"]), claim_seq=int(str(row["claim_seq"])))
        ended_at = self._db.instant(row["ended_at"])
        assert ended_at is not None  # the column has no NULL
        return lost_attempt_of(text_of(row["facts"]), key=key, ended_at=ended_at)
