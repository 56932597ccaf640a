"""Every process: jobs that failed for good, and whose code wants to be called then.

That it is to be called is committed with the failure, whoever writes it (the worker, or a supervisor on
behalf of a dead one), and stays until it was called. Jobs that do not fail cost nothing. Which methods want
it is stored too, so that nobody has to know the code who writes a failure.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import timedelta

from qml_mp.core.job import Job
from qml_mp.core.outcome import ErrorInfo
from qml_mp.core.state import StateName
from qml_mp.storage.database import Operations, Values
from qml_mp.storage.job_rows import job_of
from qml_mp.storage.rows import attempt_of, text_of


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureCallback:
    """One that a worker has taken, to call it."""

    job: Job
    """As its row is now: somebody may have retried it since."""
    error: ErrorInfo
    claim_seq: int
    """Of the claim that failed."""
    tries: int
    """How often it was begun, this time included."""

    @property
    def key(self) -> Values:
        return {"job_id": self.job.id, "claim_seq": self.claim_seq, "tries": self.tries}


@dataclass(frozen=True, slots=True, kw_only=True)
class LookedThrough:
    """What a look at some of them has come to. Whether a job is gone is written nowhere but in its row, which
    has to be looked for: for all of them at once that would take long."""

    deleted: int
    rest: str | None
    """To go on behind these; None: there are no more."""


class FailureCallbacks(Operations):
    """Each is one worker's at a time, and is called at least once."""

    def declare_hooks(self, methods: Collection[str], *, calls: bool, traces: bool) -> bool:
        """Whether the code of these methods wants to be called from now on, and whether it traces its
        attempts (see `LostAttempts`); whether anything had to be changed."""
        which, queries = {"methods": sorted(methods)}, self._db.queries.failures
        wanted = {"calls": calls, "traces": traces}
        rows = self._db.read("reading hooks", queries.hooked, which)
        fitting = sum(all(bool(row[name]) is wanted[name] for name in wanted) for row in rows)
        is_any = calls or traces
        if len(rows) == fitting == (len(set(methods)) if is_any else 0):
            return False
        what = "declaring hooks"
        if is_any:
            self._db.write(what, queries.hook, {**which, **wanted})
        else:
            self._db.write(what, queries.unhook, which)
        return True

    def has_failure_callbacks(self, methods: Collection[str]) -> bool:
        """Whether one of these methods can be taken now."""
        which = {"methods": sorted(methods)}
        return bool(self._db.read("looking for failure callbacks", self._db.queries.failures.due, which))

    def take_failure_callback(
        self, worker_id: str, methods: Collection[str], *, lease: timedelta
    ) -> FailureCallback | None:
        """Take the one that is due for longest; None: there is none. It is nobody else's for so long, or
        until the worker is not registered any more."""
        queries = self._db.queries.failures
        while self.has_failure_callbacks(methods):
            values = {"methods": sorted(methods), "worker_id": worker_id, "lease": lease}
            row = self._db.write("taking a failure callback", queries.take, values).first()
            if row is None:
                return None  # others were faster
            key = {"job_id": row["job_id"], "claim_seq": row["claim_seq"], "tries": row["tries"]}
            callback = self._read_callback(key)
            if callback is not None:
                return callback
            self._db.write("forgetting a failure callback", queries.end, key)
        return None

    def postpone_failure_callback(self, callback: FailureCallback, *, delay: timedelta) -> bool:
        """It did not work: have it tried again then. False: it is another worker's now."""
        values = {**callback.key, "delay": delay}
        return (
            self._db.write("postponing a failure callback", self._db.queries.failures.postpone, values).count
            == 1
        )

    def end_failure_callback(self, callback: FailureCallback) -> bool:
        """It was called, or is given up. False: it is another worker's now."""
        query = self._db.queries.failures.end
        return self._db.write("ending a failure callback", query, callback.key).count == 1

    def forget_failure_callbacks(self, *, limit: int, after: str | None = None) -> LookedThrough:
        """Look at so many of them, and delete those whose job is Deleted, or gone. `after` is where the look
        before has ended, its `rest`."""
        queries = self._db.queries.failures
        values = {"after": after or "", "limit": limit}
        rows = self._db.read("looking through failure callbacks", queries.looked_through, values)
        gone = sorted({text_of(row["job_id"]) for row in rows if row["is_gone"]})
        deleted = 0
        if gone:
            what = "forgetting failure callbacks"
            deleted = self._db.write(what, queries.forget, {"ids": gone}).count
        return LookedThrough(
            deleted=deleted, rest=text_of(rows[-1]["job_id"]) if len(rows) == limit else None
        )

    def _read_callback(self, key: Values) -> FailureCallback | None:
        """None: the job is Deleted, by a person then, or gone."""
        which = {"id": text_of(key["job_id"]), "newest": None}
        rows = self._db.read("reading a failed job", self._db.queries.jobs.get, which)
        if not rows:
            return None
        job = job_of(rows[0], self._db.instant)
        if job.state_name is StateName.DELETED:
            return None
        attempts = self._read("reading its attempts", self._db.queries.monitoring.attempts, attempt_of, which)
        errors = [each.error for each in attempts if each.claim_seq == key["claim_seq"] and each.error]
        error = next(iter(errors), None) or job.last_error
        return FailureCallback(
            job=job,
            error=error or ErrorInfo(type="Unknown", message="What failed is not recorded."),
            claim_seq=int(str(key["claim_seq"])),
            tries=int(str(key["tries"])),
        )
