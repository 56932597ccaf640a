"""Tests: PostgreSQL restarts, ends sessions, loses replies, is away, locked or frozen, and fails over (C4).

Whatever it is, each job runs once, no worker exits, and jobs run again when it is over.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
from psycopg import sql

from qml_mp.core.job import Job
from qml_mp.errors import StorageUnavailable
from tests.audit import Audit
from tests.nightly.ground import (
    Ground,
    JournalTail,
    descendants,
    environment_of,
    fresh_ground,
    pause,
)
from tests.nightly.judge import Kills
from tests.nightly.report import Row, median_and_p99
from tests.nightly.scenario import Task, judge_ground, nothing_left
from tests.postgres_cluster import Cluster, controlled_cluster, throwaway_cluster
from tests.postgres_pair import primary_and_standby
from tests.processes.harness import Server, wait_until
from tests.storage.flaky_proxy import FlakyProxy

_RESTARTS, _TERMINATIONS, _LOST_REPLIES = 20, 600, 100
"""At pace 1; each at least twice."""
_AWAY_S, _LOCKED_S, _FAILOVER_S, _FREEZE_S = 60.0, 30.0, 10.0, 45.0
"""At pace 1."""
_TERMINATE_EVERY_S = 0.1
_BUSY_S = (0.0, 0.0, 0.002, 0.02)
_LONGEST_S = 180.0
_WORKERS = 4
_SETTINGS = environment_of({"max_crashes": 1, "shutdown_timeout": 20})
_TERMINATE_ONE = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE application_name LIKE 'qml-mp%' AND pid <> pg_backend_pid() ORDER BY random() LIMIT 1
"""
Outage = Callable[[Ground, float], None]
"""Begins it, waits for so many seconds, and ends it."""


@dataclass(kw_only=True, eq=False)
class _Trial:
    """One run of a scenario on one storage."""

    ground: Ground
    tail: JournalTail
    ids: list[str] = field(default_factory=list)
    first_start_ms: list[float] = field(default_factory=list)
    """From the end of each outage to the start of a job that is enqueued then."""
    done: Counter[str] = field(default_factory=Counter)
    """How many outages of each kind there were."""
    broken: list[str] = field(default_factory=list)

    def enqueue(self, jobs: Sequence[Job]) -> None:
        """Try until it succeeds, as a producer does; a job that is there already is not stored twice."""
        self.ids += [job.id for job in jobs]
        wait_until(lambda: self._try(jobs), within_s=_LONGEST_S, what="the jobs of a producer")

    def _try(self, jobs: Sequence[Job]) -> bool:
        with contextlib.suppress(StorageUnavailable):
            self.ground.storage.enqueue_many(jobs)
            return True
        return False

    def see_the_first_job(self) -> None:
        """Wait for the start of a job that is enqueued after an outage."""
        over_ns = time.monotonic_ns()
        probe = Job.new("unit", {"busy_s": 0.0}, priority=100)
        self.enqueue([probe])
        line = wait_until(lambda: self.tail.start_of(probe.id), within_s=_LONGEST_S, what="the first job")
        self.first_start_ms.append((line.at_ns - over_ns) / 1e6)

    @contextlib.contextmanager
    def serving(self, *, through: FlakyProxy | None = None) -> Iterator[None]:
        """Run a server during the block; after it all jobs have run once, on the workers of the start."""
        ground = self.ground
        server = ground.server("-w", str(_WORKERS), **_SETTINGS)
        if through is not None:
            server.url = through.through(ground.url)
        exits = _exits(ground)
        ground.start(server, ready=_WORKERS)
        yield
        self._wait_for_all_ends(server)
        if exits := _exits(ground) - exits:
            self.broken.append(f"{exits} workers exited")
        runs = Counter(line.job_id for line in self.tail.lines() if line.what == "start")
        self.broken += [f"job {job_id} ran {runs[job_id]} times" for job_id in self.ids if runs[job_id] != 1]
        if (code := server.stop()) != 0:
            self.broken.append(f"the server exited with {code}")

    def _wait_for_all_ends(self, server: Server) -> None:
        try:
            wait_until(lambda: _have_ended(self.ground), within_s=_LONGEST_S)
        except AssertionError:
            counts = self.ground.storage.job_counts()
            self.broken.append(f"jobs do not end: {counts}; {server.log()[-3000:]}")

    def row(self, task: Task, *, done: int) -> Row:
        """Judge what happened."""
        # The connection of the audit before may be lost.
        with contextlib.closing(Audit(self.ground.url)) as self.ground.audit:
            findings = judge_ground(self.ground, expected=self.ids, kills=Kills())
        kinds = [f"{count} {what}" for what, count in self.done.items()]
        return task.row(
            done=done, findings=findings, kills=0,
            figures=", ".join((*kinds, median_and_p99("first job", self.first_start_ms))),
            broken=(*self.broken, *nothing_left(self.ground)),
        )  # fmt: skip


def run_outages(task: Task) -> Row:
    """Restart the server, fast and immediate; terminate sessions; cut off replies to commits."""
    counts = (_RESTARTS, _TERMINATIONS, _LOST_REPLIES)
    restarts, terminations, lost = (max(2, round(count * task.pace)) for count in counts)
    with (
        controlled_cluster() as cluster,
        fresh_ground("postgres", cluster.url, seed=task.seed) as ground,
    ):
        trial = _Trial(ground=ground, tail=JournalTail(ground))
        shares = _shares(task.count, restarts + terminations + lost)
        with trial.serving():
            for number in range(restarts):
                trial.enqueue(_brief_jobs(ground, next(shares)))
                _restart(trial, cluster, mode=("fast", "immediate")[number % 2])
            with psycopg.connect(cluster.url, autocommit=True, application_name="the test") as admin:
                for _ in range(terminations):
                    trial.done["sessions terminated"] += len(admin.execute(_TERMINATE_ONE).fetchall())
                    trial.enqueue(_brief_jobs(ground, next(shares)))
                    pause(_TERMINATE_EVERY_S)
        with FlakyProxy.before(cluster.url) as proxy, trial.serving(through=proxy):
            for _ in range(lost):
                _lose_a_reply(trial, proxy, next(shares))
        return trial.row(task, done=len(trial.ids) - restarts)


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


def run_freeze(task: Task) -> Row:
    """Every process of PostgreSQL is stopped for longer than any of our time limits, and goes on."""
    with throwaway_cluster() as url:

        def freeze(_: Ground, seconds: float) -> None:
            with _frozen(url):
                pause(seconds)

        return _run(task, url, freeze, seconds=_FREEZE_S)


def _run(task: Task, url: str, outage: Outage, *, seconds: float) -> Row:
    """One outage in the middle of the jobs."""
    with fresh_ground("postgres", url, seed=task.seed) as ground:
        trial = _Trial(ground=ground, tail=JournalTail(ground))
        seconds *= task.pace
        half = task.count // 2
        with trial.serving():
            trial.enqueue([*_jobs(ground, half, seconds=seconds)])
            wait_until(lambda: len(trial.tail.lines()) > half // 4, within_s=_LONGEST_S, what="work")
            outage(ground, seconds)
            trial.done[f"outage of {seconds:.0f} s"] += 1
            trial.see_the_first_job()
            trial.enqueue([*_jobs(ground, task.count - half, seconds=0.5)])
        return trial.row(task, done=task.count)


def _shares(count: int, turns: int) -> Iterator[int]:
    """Divide the jobs among the outages."""
    for turn in range(turns):
        yield count // turns + (turn < count % turns)


def _brief_jobs(ground: Ground, count: int) -> list[Job]:
    return [Job.new("unit", {"busy_s": ground.rng.choice(_BUSY_S)}) for _ in range(count)]


def _jobs(ground: Ground, count: int, *, seconds: float) -> Iterator[Job]:
    """Short ones, and some that end while the outage lasts, or after it."""
    for number in range(count):
        if number % 10 == 9:
            yield Job.new("doze", {"seconds": round(ground.rng.uniform(0.2, 0.2 + seconds / 8), 2)})
        else:
            yield Job.new("unit", {"busy_s": ground.rng.choice(_BUSY_S)})


def _restart(trial: _Trial, cluster: Cluster, *, mode: str) -> None:
    rng = trial.ground.rng
    pause(rng.uniform(0.0, 0.2))
    cluster.stop(mode)
    pause(rng.choice((0.0, 0.3, 2.0)))
    cluster.start()
    trial.see_the_first_job()
    trial.done[f"{mode} restarts"] += 1


def _lose_a_reply(trial: _Trial, proxy: FlakyProxy, count: int) -> None:
    """Of a commit: a worker that has jobs says nothing else."""
    before = proxy.replies_lost
    proxy.lose_reply(trial.ground.rng.randint(1, 4))
    trial.enqueue(_brief_jobs(trial.ground, count))
    wait_until(lambda: proxy.replies_lost > before, within_s=_LONGEST_S, what="a lost reply")
    trial.done["replies lost"] += 1


@contextlib.contextmanager
def _frozen(url: str) -> Iterator[None]:
    """SIGSTOP every process of the server at the URL, and SIGCONT at the end."""
    with psycopg.connect(url, autocommit=True) as connection:
        row = connection.execute("SHOW data_directory").fetchone()
    assert row is not None
    postmaster = int(Path(str(row[0]), "postmaster.pid").read_text().split()[0])
    stopped = [postmaster]
    os.kill(postmaster, signal.SIGSTOP)  # first, so that it starts no other
    try:
        for pid in descendants(postmaster):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
                stopped.append(pid)
        yield
    finally:
        for pid in reversed(stopped):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def _have_ended(ground: Ground) -> bool:
    with contextlib.suppress(StorageUnavailable):
        counts = ground.storage.job_counts()
        return not sum(count for state, count in counts.items() if not state.is_final)
    return False


def _exits(ground: Ground) -> int:
    """How many workers have ended, by the log in which all servers of the ground write."""
    log = ground.folder / "server.log"
    return log.read_text(errors="replace").count("stopped (pid") if log.exists() else 0
