"""Every process: jobs that the database refuses to have changed, left out for a while so that they keep no
others.

A row of the user's own may refer to one, or a trigger of the user's say no. A statement about many jobs is
then refused as a whole, and does not say for which of them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import timedelta

from qml_mp.clock import Clock
from qml_mp.errors import StorageError
from qml_mp.units import doubled

_FIRST_PAUSE = timedelta(seconds=1)
_MOST_AGAIN = 100  # of those that were left out for long enough, at a time
_MOST_TRIES = 40  # at a time: eight find one among a hundred, and every further one takes a few


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """The database has refused to have a job changed."""

    job_id: str
    error: StorageError
    retry_in: timedelta
    is_first: bool
    """False: it was left out before."""


@dataclass(frozen=True, slots=True)
class _Left:
    refusals: int
    until: float
    """By the monotonic clock."""


class LeftOut:
    """The jobs that one kind of change leaves out, by id; of one process and one thread.

    Each is tried again, apart from the others, after pauses that double. When it holds as many as it may, a
    refusal is raised as any other error is.
    """

    def __init__(self, clock: Clock, *, longest: timedelta = timedelta(minutes=1), most: int = 1000) -> None:
        """`longest`: of the pauses. `most`: how many jobs it may hold."""
        self._clock = clock
        self._longest = longest
        self._most = most
        self._left: dict[str, _Left] = {}
        self._untold: list[Refusal] = []

    @property
    def ids(self) -> list[str]:
        """All that are left out."""
        return sorted(self._left)

    @property
    def has_room(self) -> bool:
        return len(self._left) < self._most

    @property
    def next_in(self) -> timedelta | None:
        """Until the first is to be tried again; None: none is left out."""
        if not self._left:
            return None
        until = min(left.until for left in self._left.values())
        return timedelta(seconds=max(0.0, until - self._clock.monotonic()))

    def take_refusals(self) -> list[Refusal]:
        """Those since the last call."""
        taken, self._untold = self._untold, []
        return taken

    def keep(self, job_ids: Collection[str]) -> None:
        """Forget all others: there is nothing to change about them any more."""
        self._left = {job_id: left for job_id, left in self._left.items() if job_id in job_ids}

    def due(self) -> list[str]:
        """Those whose pause is over, the longest over first: what is refused again comes last."""
        now = self._clock.monotonic()
        over = [(left.until, job_id) for job_id, left in self._left.items() if left.until <= now]
        return [job_id for _, job_id in sorted(over)]

    def change_again(
        self, change: Callable[[Sequence[str]], int], *, is_refusal: Callable[[StorageError], bool]
    ) -> int:
        """`change` for some of those whose pause is over; how many were changed. One that is not refused any
        more is forgotten, changed or not: if there is still something to change, it is among the others."""
        return self.change(sorted(self.due()[:_MOST_AGAIN]), change, is_refusal=is_refusal)

    def change(
        self,
        job_ids: Sequence[str],
        change: Callable[[Sequence[str]], int],
        *,
        is_refusal: Callable[[StorageError], bool],
    ) -> int:
        """Change those that can be, by halves until one that is refused is alone; how many were changed.

        `change` changes all that it is given or raises. Not all are tried where many are refused: there is a
        limit for the tries. Raises what is no refusal, and a refusal for which there is no room; what was
        changed before stays so.
        """
        count, parts = 0, [job_ids] if job_ids else []
        for _ in range(_MOST_TRIES):
            if not parts:
                break
            part = parts.pop()
            try:
                count += change(part)
            except StorageError as error:
                half = len(part) // 2
                if not is_refusal(error) or not (half or self.has_room or part[0] in self._left):
                    raise
                if half:
                    parts += [part[half:], part[:half]]
                else:
                    self._refused(part[0], error)
            else:
                for job_id in part:
                    self._left.pop(job_id, None)
        return count

    def _refused(self, job_id: str, error: StorageError) -> None:
        before = self._left.get(job_id)
        refusals = 0 if before is None else before.refusals
        pause = doubled(_FIRST_PAUSE, refusals, longest=self._longest)
        until = self._clock.monotonic() + pause.total_seconds()
        self._left[job_id] = _Left(refusals=refusals + 1, until=until)
        refusal = Refusal(job_id=job_id, error=error, retry_in=pause, is_first=before is None)
        self._untold.append(refusal)
