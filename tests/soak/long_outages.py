"""Tests: PostgreSQL is away for a minute, its jobs are locked for half of one, and a standby takes over (C4).

Whatever it is, each job runs once, no worker exits, and the next job starts soon after it is over.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import psycopg
from psycopg import sql

from qml_mp.core.job import Job
from qml_mp.errors import StorageUnavailable
from tests.audit import Audit
from tests.postgres_cluster import controlled_cluster, throwaway_cluster
from tests.postgres_pair import primary_and_standby
from tests.processes.harness import Server, wait_until
from tests.soak.ground import Ground, JournalTail, environment_of, fresh_ground, pause
from tests.soak.judge import Kills
from tests.soak.report import Row
from tests.soak.scenario import Task, judge_ground, nothing_left

_AWAY_S, _LOCKED_S, _FAILOVER_S = 60.0, 30.0, 10.0
"""At pace 1."""
_LONGEST_S = 180.0
_FIRST_START_MS = 2000.0
_WORKERS = 4
_SETTINGS = environment_of({"max_crashes": 1, "shutdown_timeout": 20})
Trouble = Callable[[Ground, float], None]
"""Makes it, waits for so long, and ends it."""


def run_away(task: Task) -> Row:
    """The server dies, and comes back after a minute."""
    with controlled_cluster() as cluster:

        def away(_: Ground, seconds: float) -> None:
            cluster.stop("immediate")
            pause(seconds)
            cluster.start()

        return _run(task, cluster.url, away, seconds=_AWAY_S)


def run_locked(task: Task) -> Row:
    """Somebody locks the table of jobs for half a minute: a migration, VACUUM FULL."""
    with throwaway_cluster() as url:

        def locked(ground: Ground, seconds: float) -> None:
            schema = sql.Identifier(ground.url.rpartition("schema=")[2])
            with psycopg.connect(url) as connection:
                connection.execute(sql.SQL("LOCK TABLE {}.jobs IN ACCESS EXCLUSIVE MODE").format(schema))
                pause(seconds)

        return _run(task, url, locked, seconds=_LOCKED_S)


def run_failover(task: Task) -> Row:
    """The primary dies; its standby is promoted after a moment. The URL names both."""
    with primary_and_standby() as pair:

        def failover(_: Ground, seconds: float) -> None:
            pair.lose_first()
            pause(seconds)
            pair.promote_second()

        return _run(task, pair.url, failover, seconds=_FAILOVER_S)


def _run(task: Task, url: str, trouble: Trouble, *, seconds: float) -> Row:
    with fresh_ground("postgres", url, seed=task.seed) as ground:
        tail, broken = JournalTail(ground), []
        server = ground.start(ground.server("-w", str(_WORKERS), **_SETTINGS), ready=_WORKERS)
        exits = _exits(server)
        half = task.count // 2
        ids = ground.storage.enqueue_many([*_jobs(ground, half, seconds=seconds * task.pace)])
        wait_until(lambda: len(tail.lines()) > half // 4, within_s=_LONGEST_S, what="work")
        trouble(ground, seconds * task.pace)
        over_ns = time.monotonic_ns()
        probe = Job.new("unit", {"busy_s": 0.0}, priority=100)
        wait_until(lambda: _enqueue(ground, probe), within_s=_LONGEST_S, what="the first job")
        line = wait_until(lambda: tail.start_of(probe.id), within_s=_LONGEST_S, what="its start")
        ids += [probe.id, *ground.storage.enqueue_many(_jobs(ground, task.count - half, seconds=0.5))]
        wait_until(lambda: _all_ended(ground), within_s=_LONGEST_S, what=f"all ends; {server.log()[-3000:]}")
        if exits := _exits(server) - exits:
            broken.append(f"{exits} workers exited")
        runs = Counter(line.job_id for line in tail.lines() if line.what == "start")
        broken += [f"job {each} ran {runs[each]} times" for each in ids if runs[each] != 1]
        if (code := server.stop()) != 0:
            broken.append(f"the server exited with {code}")
        with _new_audit(ground):
            findings = judge_ground(ground, expected=ids, kills=Kills())
        first_ms = (line.at_ns - over_ns) / 1e6
        late = (f"the first job started after {first_ms:.0f} ms",) if first_ms > _FIRST_START_MS else ()
        return task.row(
            done=task.count, findings=findings, kills=0, missed=late,
            figures=f"{len(ids)} jobs, {seconds * task.pace:.0f} s, first job {first_ms:.0f} ms",
            broken=(*broken, *nothing_left(ground)),
        )  # fmt: skip


def _jobs(ground: Ground, count: int, *, seconds: float) -> Iterator[Job]:
    """Short ones, and some that end while the trouble lasts, or after it."""
    for number in range(count):
        if number % 10 == 9:
            yield Job.new("doze", {"seconds": round(ground.rng.uniform(0.2, 0.2 + seconds / 8), 2)})
        else:
            yield Job.new("unit", {"busy_s": ground.rng.choice((0.0, 0.002, 0.02))})


def _enqueue(ground: Ground, job: Job) -> bool:
    """As a producer does that does not give up: a job that is there already is not stored twice."""
    with contextlib.suppress(StorageUnavailable):
        ground.storage.enqueue_many([job])
        return True
    return False


def _all_ended(ground: Ground) -> bool:
    with contextlib.suppress(StorageUnavailable):
        counts = ground.storage.job_counts()
        return not sum(count for state, count in counts.items() if not state.is_final)
    return False


def _exits(server: Server) -> int:
    return server.log().count("stopped (pid")


@contextmanager
def _new_audit(ground: Ground) -> Iterator[None]:
    """The one before may have lost its connection."""
    opened: AbstractContextManager[Audit] = contextlib.closing(Audit(ground.url))
    with opened as ground.audit:
        yield
