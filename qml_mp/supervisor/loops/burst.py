"""Supervisor: `--burst`: leaves when this server can run nothing more, and says what it leaves."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta

from qml_mp.core.server_info import SelfDescription
from qml_mp.errors import StorageError
from qml_mp.storage.store import Storage
from qml_mp.supervisor.loops.loop import Loop
from qml_mp.supervisor.loops.settle import SettleLoop
from qml_mp.supervisor.run import Run
from qml_mp.units import format_duration, n_jobs

logger = logging.getLogger(__name__)


class BurstLoop(Loop):
    """Stops the server when all workers are idle, all dead ones settled, and no job of the served queues and
    known methods is runnable, or due, or will be within a time from its start. While claims are paused such
    jobs keep it. What it cannot do keeps it not: what is due without a scheduler, and calls for failed jobs
    without a function for them."""

    name = "burst"
    interval = timedelta(milliseconds=200)

    def __init__(self, run: Run, *, settling: SettleLoop, wait: timedelta) -> None:
        """`wait`: for what is due in so long."""
        super().__init__(run)
        self._settling = settling
        self._wait_deadline = run.clock.monotonic() + wait.total_seconds()
        self._waits_for: int | None = None

    def tick(self, storage: Storage) -> None:
        if self._settling.unsettled_ids or not self._is_at_rest():
            return
        says = self._run.registration.says
        if self._run.pool.size and self._has_work(storage, says):  # without workers there is none
            return
        left = list(_all_that_is_left(storage, self._run))
        for line in left:
            logger.warning("Left: %s", line)
        why = "nothing is left that this server can run" if left else "nothing is left to do"
        self._run.stop.begin(now=False, why=why)

    def _is_at_rest(self) -> bool:
        """Whether all workers are there and idle. Where others cannot boot, those there do all."""
        pool = self._run.pool
        if pool.boots.trouble() is not None:
            return not any(worker.is_busy for worker in pool)
        return pool.is_whole and all(worker.is_idle for worker in pool)

    def _has_work(self, storage: Storage, says: SelfDescription) -> bool:
        run = self._run
        has_due = storage.has_due_work(
            says.queues,
            methods=says.methods,
            server_id=run.registration.id,
            with_waiting=run.config.enable_scheduler,
        )
        if has_due or self._waits(storage, says):
            return True
        return run.registration.wants_failures and storage.has_failure_callbacks(says.methods or ())

    def _waits(self, storage: Storage, says: SelfDescription) -> bool:
        """Whether something comes in time; said once for each number of such jobs."""
        left_s = self._wait_deadline - self._run.clock.monotonic()
        if left_s <= 0:
            return False
        left = timedelta(seconds=left_s)
        later = storage.later_work(says.queues, methods=says.methods, paused=False, within=left)
        if later.next_due_in is None:
            return False
        if self._waits_for != later.count:
            self._waits_for = later.count
            next_in = format_duration(later.next_due_in)
            logger.info(
                "Waiting for what comes in time: %s due later, the next in %s", n_jobs(later.count), next_in
            )
        return True


def _all_that_is_left(storage: Storage, run: Run) -> Iterator[str]:
    """All of it is counted, whoever's it is. Where there are millions that takes longer than a statement of
    the supervisor may: it ends all the same."""
    try:
        yield from _what_is_left(storage, run)
    except StorageError as error:
        yield f"what else cannot be counted ({error})"


def _what_is_left(storage: Storage, run: Run) -> Iterator[str]:
    says = run.registration.says
    paused = {each.limit.name for each in storage.standings() if each.limit.paused}
    queues: Counter[str] = Counter()
    closed: Counter[str] = Counter()
    methods: Counter[str] = Counter()
    unserved = 0
    for line in storage.method_stats():
        if says.queues and line.queue not in says.queues:
            queues[line.queue] += line.enqueued
        elif line.queue in paused:
            closed[line.queue] += line.enqueued
        elif says.methods is not None and line.method not in says.methods:
            methods[line.method] += line.enqueued
        elif not run.pool.size:
            unserved += line.enqueued
    if unserved:
        yield f"{n_jobs(unserved)}, as this server has no worker (-w)"
    for queue, count in queues.items():
        yield f"{n_jobs(count)} in queue {queue}, which this server does not serve (-q {queue}, or -q '*')"
    for queue, count in closed.items():
        yield f"{n_jobs(count)} in queue {queue}, which is paused (qml-mp queues resume {queue})"
    for method, count in methods.items():
        yield f"{n_jobs(count)} of method {method}, which this server does not know"
    if not run.config.enable_scheduler:
        due = storage.due_count(says.queues, methods=says.methods)
        if due:
            yield f"{n_jobs(due)} due now, as this server has no scheduler (--no-scheduler)"
    later = storage.later_work([])
    if later.next_due_in is not None:
        yield f"{n_jobs(later.count)} due later, the next in {format_duration(later.next_due_in)}"
    running = sum(queue.processing for queue in storage.queue_stats())
    if running:
        yield f"{n_jobs(running)} held by other servers"
    if not run.registration.wants_failures and storage.has_failure_callbacks(says.methods or ()):
        yield "calls for jobs that have failed, as this program has no function for them (@app.on_failure)"
