"""Every process: batches of claims that go on where the one before has ended."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from qml_mp.core.job import Claim, Job
from qml_mp.storage.database import Values
from qml_mp.storage.rows import Row
from qml_mp.storage.values import Fetch

_LOOK_EVERY_S = 0.05
"""How long a worker that claims several jobs at once goes on behind the last of them without a look."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Streak:
    """Batches of one kind of jobs, each behind the one before.

    PostgreSQL keeps the index entries of claimed jobs until the next vacuum, and whoever looks for the best
    job walks over them: after 200,000 claims that is three quarters of what the server does for a job. So
    where only one kind of jobs waited when a worker looked, it does not look before each batch. What is
    better and comes meanwhile waits as it would behind a larger batch.
    """

    fetch: Fetch
    last: Job
    look_deadline: float

    def goes_on(self, fetch: Fetch | None, limit: int) -> bool:
        return fetch is self.fetch and limit > 1 and time.monotonic() < self.look_deadline

    @property
    def values(self) -> Values:
        """What `behind` is bound to besides."""
        return {
            "after_queue": self.last.queue,
            "after_method": self.last.method,
            "after_priority": self.last.priority,
            "after_at": self.last.created_at,
            "after_id": self.last.id,
        }


def streak_of(
    claimed: Sequence[Claim], fetch: Fetch, told: Row | None, before: Streak | None
) -> Streak | None:
    """The streak that an exchange has begun or gone on with, if there are only jobs of one kind."""
    last = claimed[-1].job
    if told is None or told["kinds"] != 1 or claimed[0].job.priority != last.priority:
        return None
    deadline = time.monotonic() + _LOOK_EVERY_S if before is None else before.look_deadline
    return Streak(fetch=fetch, last=last, look_deadline=deadline)
