"""Every process: many jobs changed at a time, each batch in a commit of its own."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime

from qml_mp.core.failure_kinds import failure_key
from qml_mp.core.state import StateName
from qml_mp.errors import StorageError
from qml_mp.storage.database import Operations
from qml_mp.storage.storable import storable_reason
from qml_mp.storage.values import Retention

_TRIES = 5
_MOST_FAILED = 500


class Bulk(Operations):
    """Jobs that were found by their filter (`Listing.job_ids`), changed. `until` is an instant of the
    database's clock: jobs that are younger, or ended later, are not meant. So a job that was retried and
    failed again is not retried once more, however often the same is asked for."""

    def retry_many(self, job_ids: Sequence[str], *, until: datetime) -> list[str]:
        """`retry` for those of the jobs that are Failed since before `until`, in one commit; the ids of those
        that it hit. A job whose unique key another has that has not ended is left as it is."""
        query, which = self._db.queries.bulk.retry, {"ids": sorted(job_ids), "until": until}
        for tries_left in reversed(range(_TRIES)):
            try:
                rows = self._db.write("retrying jobs", query, which).rows()
            except StorageError as error:
                # Somebody enqueued a job with the key of one of these in the same moment. Now it is seen.
                if not tries_left or not self._db.refuses_values(error):
                    raise
            else:
                return [row["id"] for row in rows]
        raise AssertionError("the last try returns or raises")

    def fail_unknown(
        self, method: str, *, queues: Sequence[str], waiting_since: datetime, retention: Retention
    ) -> list[str]:
        """Set Failed, as `UnknownMethod`, what has been Enqueued in these queues (empty: all) since before,
        because nobody knows the method; the ids of those that it hit, 500 at most."""
        what, queries = "failing jobs of an unknown method", self._db.queries.bulk
        since = {"waiting_since": waiting_since}
        which = {"method": method, "queues": list(queues), "limit": _MOST_FAILED, **since}
        # Apart: a long backlog of younger ones takes a while, in which nobody is to wait for a lock.
        found = [row["id"] for row in self._db.read(what, queries.unknown, which)]
        if not found:
            return []
        error_type = "UnknownMethod"
        change = {
            "ids": found,
            "type": error_type,
            "key": failure_key(method, error_type, None),
            "message": f"No server has known the method {method} for as long as unknown_method_timeout says.",
            "ttl": retention.failed_ttl,
            **since,
        }
        with self._db.transaction(what) as transaction:
            ids = [row["id"] for row in transaction.run(queries.fail_unknown, change).rows()]
            if ids:
                transaction.run(self._db.queries.failures.note_all, {"ids": ids})
        return ids

    def delete_many(
        self,
        job_ids: Sequence[str],
        *,
        states: Collection[StateName],
        until: datetime,
        reason: str,
        retention: Retention,
    ) -> list[str]:
        """`delete` for those of the jobs that are in one of these states and have not ended after `until`, in
        one commit; the ids of those that it hit."""
        which = {
            "ids": sorted(job_ids),
            "states": sorted(map(str, states)),
            "until": until,
            "reason": storable_reason(reason),
            "ttl": retention.succeeded_ttl,
        }
        return [
            row["id"] for row in self._db.write("deleting jobs", self._db.queries.bulk.delete, which).rows()
        ]
