"""Supervisor, pure: which workers wait to be replaced, which new worker stands for which old one, and which
places want a worker."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable

from qml_mp.ipc.slot import Activity
from qml_mp.supervisor.workers.worker_process import WorkerProcess

_LONG_JOB_S = 5.0
"""A job in hand for longer than this may go on for hours; it is also more than most boots take."""


class Replacing:
    """A queue of worker ids, and the one replacement that is under way."""

    def __init__(self) -> None:
        self._waiting: deque[str] = deque()
        self._old: str | None = None
        self._new: str | None = None

    def ask_for_all(self, worker_ids: Iterable[str]) -> None:
        """Replace all of these, also those that came from a replacement a moment ago."""
        self._waiting = deque(worker_ids)

    def ask_for(self, worker_id: str) -> None:
        """Replace one; asking again changes nothing."""
        if worker_id not in self._waiting and worker_id != self._old:
            self._waiting.append(worker_id)

    def concerns(self, worker_id: str) -> bool:
        """Whether it waits to be replaced, or is the one that just is."""
        return worker_id in self._waiting or worker_id == self._old

    def next_of(self, present: Iterable[WorkerProcess]) -> WorkerProcess | None:
        """Whose turn it is of those that are still there and not told to leave; None: nobody waits. An idle
        one leaves at once, so it goes first; of busy ones the one whose job began last: who has been at a job
        for long may be for hours more."""
        by_id = {worker.worker_id: worker for worker in present}
        self._waiting = deque(worker_id for worker_id in self._waiting if worker_id in by_id)
        waiting = (by_id[worker_id] for worker_id in self._waiting)
        return min((each for each in waiting if not each.leaving), key=_job_age_order, default=None)

    def begin(self, old: str, *, new: str | None) -> None:
        """The worker `new` was forked to take the place of `old`; None: `old` leaves first."""
        self._waiting.remove(old)
        self._old, self._new = old, new

    def predecessor_of(self, worker_id: str) -> str | None:
        """Whose place the worker is to take; None: a place that was free."""
        return self._old if worker_id == self._new else None

    def give_up(self) -> None:
        """The replacement could not boot: those that wait stay."""
        self._waiting.clear()
        self._old = self._new = None


def missing_numbers(workers: Collection[WorkerProcess], *, size: int) -> list[int]:
    """The numbers up to `size` that want a worker: first those that have none; then those whose only one was
    told to leave, as it may be in a long job, while that makes at most one process too many."""
    numbers = [worker.number for worker in workers if worker.number <= size]
    free = set(range(1, size + 1)).difference(numbers)
    left = set(numbers).difference(worker.number for worker in workers if not worker.leaving)
    spare = size + 1 - len(numbers) - len(free)
    return sorted(free) + sorted(left)[: max(0, spare)]


def has_to_leave_first(
    old: WorkerProcess, workers: Collection[WorkerProcess], *, size: int, is_full: bool, now: float
) -> bool:
    """Whether it leaves before another takes its place, because there is no room for one process too many:
    `is_full` says so, or one that was told to leave before is that. An idle one does not wait for such as are
    in long jobs, when no place is theirs any more."""
    leaving = [worker for worker in workers if worker.leaving]
    if not leaving:
        return is_full
    long_jobs = all(_is_in_long_job(worker, now) for worker in leaving)
    return old.is_idle and long_jobs and len(workers) - len(leaving) == size


def _is_in_long_job(worker: WorkerProcess, now: float) -> bool:
    view = worker.last
    return view.activity is Activity.RUNNING and now - view.since_ns / 1e9 > _LONG_JOB_S


def _job_age_order(worker: WorkerProcess) -> tuple[bool, int]:
    return worker.is_busy, -worker.last.since_ns if worker.is_busy else 0
