"""Client: the calls of `enqueue` within one block of `app.inline()`, of which several threads may be at it.

A thread runs whatever it finds, so jobs of one call may run in the thread of another. What comes of a job
belongs to the call that it comes of all the same, and who waits for it is told when all is done that belongs
to it: its outcome is written, and hooks know of it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from qml_mp.core.job import Claim, ClaimKey
from qml_mp.storage.connection import fork_guard


@dataclass(slots=True, eq=False, kw_only=True)
class Call:
    """One call of `enqueue` by nobody's job of its block, and all that comes of it."""

    block: Calls
    left: int
    """How many more jobs may run that nobody has enqueued, before there seems to be no end of them."""
    job_ids: set[str] = field(default_factory=set)
    """Of all jobs that it waits for."""


class Calls:
    """Those of one block, what they have under way, and what has failed. For all its threads."""

    def __init__(self) -> None:
        self._call_of: dict[str, Call] = {}
        """By the id of the job, while the call goes on."""
        self._failures: dict[str, BaseException] = {}
        """Why jobs have failed, by their ids, the first one first; until it is raised."""
        self.begin_in_child()
        fork_guard().watch_other(self)

    def begin_in_child(self) -> None:
        """The threads that are at work are the parent's."""
        self._done = threading.Condition()
        """With the lock of all of this; told when a job is done."""
        self._at_work: set[ClaimKey] = set()
        """The attempts that are not done. Another thread may have taken the next one of their job by then."""

    def expect(self, call: Call, job_ids: Collection[str], *, room: int = 0) -> frozenset[str]:
        """Before anybody can take them: these jobs come of the call, and so many more may run. The ids of all
        jobs that are under way by now."""
        with self._done:
            call.left += room
            call.job_ids.update(
                job_id for job_id in job_ids if self._call_of.setdefault(job_id, call) is call
            )
            return self._job_ids_at_work()

    def take(
        self, fetch: Callable[[], Claim | None], awaited: Collection[str], *, call: Call
    ) -> tuple[Claim, Call] | None:
        """The next job to be run, and the call that it comes of: this one, when nobody knows better. None:
        there is none, and of those that are awaited none is under way in another thread."""
        with self._done:
            while True:
                claim = fetch()
                if claim is not None:
                    self._at_work.add(claim.key)
                    self.expect(call, [claim.job.id])
                    of = self._call_of[claim.job.id]
                    of.left -= 1
                    return claim, of
                if self._job_ids_at_work().isdisjoint(awaited):
                    return None
                self._done.wait()

    def end(self, claim: Claim, failure: BaseException | None) -> None:
        """The attempt is done; why the job has failed, when it has."""
        with self._done:
            self._at_work.discard(claim.key)
            if failure is not None and claim.job.id in self._call_of:  # else its call is over
                self._failures[claim.job.id] = failure
            self._done.notify_all()

    def _job_ids_at_work(self) -> frozenset[str]:
        return frozenset(key.job_id for key in self._at_work)

    def pop_failures(self, call: Call, job_ids: Collection[str]) -> list[BaseException]:
        """Those of these jobs as far as they come of the call, the first one first; nobody is told of them
        again."""
        with self._done:
            own = [each for each in self._failures if each in job_ids and self._call_of.get(each) is call]
            return [self._failures.pop(job_id) for job_id in own]

    def forget(self, call: Call) -> None:
        """It is over."""
        with self._done:
            for job_id in call.job_ids:
                if self._call_of.get(job_id) is call:
                    del self._call_of[job_id]
                    self._failures.pop(job_id, None)  # of a call that was broken off
