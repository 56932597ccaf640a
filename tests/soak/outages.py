"""Tests: PostgreSQL restarts, ends sessions, hangs, and its replies are lost, while jobs go on (C4)."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

import psycopg

from qml_mp.core.job import Job
from qml_mp.errors import StorageUnavailable
from tests.audit import Audit
from tests.postgres_cluster import Cluster, controlled_cluster
from tests.processes.harness import Server, wait_until
from tests.soak.freeze import frozen
from tests.soak.ground import Ground, JournalTail, Watch, environment_of, fresh_ground, pause
from tests.soak.judge import Kills
from tests.soak.report import Row, median_and_p99
from tests.soak.scenario import Task, judge_ground, nothing_left
from tests.storage.flaky_proxy import FlakyProxy

_RESTARTS, _TERMINATIONS, _LOST_REPLIES, _FREEZE_S = 20, 600, 100, 20.0
"""At pace 1; the first three at least twice."""
_LEAST_FROZEN = 0.5  # of the pace: in less time the deadlines are not over
_TERMINATE_EVERY_S = 0.1
_BUSY_S = (0.0, 0.0, 0.002, 0.02)
_LIMIT_S, _CANCEL_GRACE_S, _TERM_GRACE_S, _SHUTDOWN_S = 1.0, 0.3, 0.7, 5.0
_FIRST_START_MS, _LATE_MS = 2000.0, 1000.0
_LONGEST_S = 120.0
_SETTINGS = environment_of({"max_crashes": 1, "shutdown_timeout": 20})
_STRICT = environment_of(
    {"cancel_grace": _CANCEL_GRACE_S, "term_grace": _TERM_GRACE_S, "shutdown_timeout": _SHUTDOWN_S}
)
_TERMINATE_ONE = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE application_name LIKE 'qml-mp%' AND pid <> pg_backend_pid() ORDER BY random() LIMIT 1
"""


@dataclass(kw_only=True, eq=False)
class _Trial:
    """One run, as it goes."""

    cluster: Cluster
    ground: Ground
    tail: JournalTail
    turns: int
    """Of how many outages in all; each brings its share of the jobs."""
    left: int
    """Jobs still to be enqueued."""
    ids: list[str] = field(default_factory=list)
    first_start_ms: list[float] = field(default_factory=list)
    """From when the server accepts connections to the start of a job that was enqueued then."""
    late_ms: dict[str, float] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)
    done: Counter[str] = field(default_factory=Counter)
    failures: dict[str, int] = field(default_factory=dict)
    kills: Kills = field(default_factory=Kills)
    """The server that is killed by its own deadline, and could not give back what it held."""

    def enqueue(self, jobs: Sequence[Job]) -> None:
        """As a producer does that does not give up: a job that is there already is not stored twice."""
        self.ids += [job.id for job in jobs]
        wait_until(lambda: self._try(jobs), within_s=_LONGEST_S, what="the jobs of a producer")

    def enqueue_share(self) -> None:
        """What this outage brings."""
        count = -(-self.left // self.turns)
        self.turns, self.left = self.turns - 1, self.left - count
        rng = self.ground.rng
        self.enqueue([Job.new("unit", {"busy_s": rng.choice(_BUSY_S)}) for _ in range(count)])

    def _try(self, jobs: Sequence[Job]) -> bool:
        try:
            self.ground.storage.enqueue_many(jobs)
        except StorageUnavailable:
            return False
        return True


def run_outages(task: Task) -> Row:
    """Restarts, fast and immediate; sessions terminated; replies cut off; the whole server stopped."""
    restarts, terminations, lost = (max(2, round(n * task.pace)) for n in _COUNTS)
    with (
        controlled_cluster() as cluster,
        fresh_ground("postgres", cluster.url, seed=task.seed) as ground,
    ):
        turns = restarts + terminations + lost
        trial = _Trial(cluster=cluster, ground=ground, tail=JournalTail(ground), turns=turns, left=task.count)
        with _serving(trial):
            for number in range(restarts):
                _restart(trial, mode=("fast", "immediate")[number % 2])
            _terminate(trial, terminations)
        with FlakyProxy.before(cluster.url) as proxy, _serving(trial, through=proxy):
            _lose_replies(trial, proxy, lost)
        if task.pace >= _LEAST_FROZEN:
            _freeze(trial, _FREEZE_S * task.pace)
        with contextlib.closing(Audit(ground.url)) as ground.audit:  # the one before has lost its connection
            findings = judge_ground(ground, expected=trial.ids, kills=trial.kills, failures=trial.failures)
        return task.row(
            done=len(trial.ids) - restarts, findings=findings, figures=_figures(trial),
            broken=(*trial.broken, *nothing_left(ground)), missed=_missed(trial),
        )  # fmt: skip


_COUNTS = (_RESTARTS, _TERMINATIONS, _LOST_REPLIES)


@contextlib.contextmanager
def _serving(trial: _Trial, *, through: FlakyProxy | None = None) -> Iterator[None]:
    """A server for the length of the block, which then has done everything, each job once, by the workers
    that it had at first."""
    ground = trial.ground
    server = ground.server("-w", "4", **_SETTINGS)
    if through is not None:
        server.url = through.through(ground.url)
    exits = _exits(ground, server)
    ground.start(server, ready=4)
    yield
    wait_until(
        lambda: _ended(trial), within_s=_LONGEST_S, what=f"the end of all jobs; {server.log()[-3000:]}"
    )
    exits = _exits(ground, server) - exits
    if exits:
        trial.broken.append(f"{exits} workers exited")
    runs = Counter(line.job_id for line in trial.tail.lines() if line.what == "start")
    again = [job_id for job_id in trial.ids if runs[job_id] != 1]
    if again:
        trial.broken.append(f"{len(again)} jobs did not run once: {again[:3]}")
    if (code := server.stop()) != 0:
        trial.broken.append(f"the server exited with {code}")


def _restart(trial: _Trial, *, mode: str) -> None:
    rng = trial.ground.rng
    trial.enqueue_share()
    pause(rng.uniform(0.0, 0.2))
    trial.cluster.stop(mode)
    pause(rng.choice((0.0, 0.3, 2.0)))
    trial.cluster.start()
    accepts_ns = time.monotonic_ns()
    probe = Job.new("unit", {"busy_s": 0.0}, priority=100)
    trial.enqueue([probe])
    line = wait_until(lambda: trial.tail.start_of(probe.id), within_s=_LONGEST_S, what="the first job")
    trial.first_start_ms.append((line.at_ns - accepts_ns) / 1e6)
    trial.done[f"{mode} restarts"] += 1


def _terminate(trial: _Trial, count: int) -> None:
    with psycopg.connect(trial.cluster.url, autocommit=True, application_name="the test") as admin:
        for _ in range(count):
            trial.done["sessions terminated"] += len(admin.execute(_TERMINATE_ONE).fetchall())
            trial.enqueue_share()
            pause(_TERMINATE_EVERY_S)


def _lose_replies(trial: _Trial, proxy: FlakyProxy, count: int) -> None:
    """Of commits: a worker that has jobs says nothing else."""
    for _ in range(count):
        before = proxy.replies_lost
        proxy.lose_reply(trial.ground.rng.randint(1, 4))
        trial.enqueue_share()
        wait_until(lambda before=before: proxy.replies_lost > before, within_s=_LONGEST_S)  # type: ignore[misc]
        trial.done["replies lost"] += 1


def _freeze(trial: _Trial, seconds: float) -> None:
    """With a job that is over its limit, and one in a server that is told to stop meanwhile."""
    ground = trial.ground
    limit = timedelta(seconds=_LIMIT_S)
    servers = {}
    for name, timeout in (("limit", limit), ("stop", None)):
        server = ground.start(ground.server("-w", "1", "-q", name, **_STRICT), ready=1)
        servers[name] = server, Job.new("stubborn", queue=name, timeout=timeout, max_retries=0)
    pids = {}
    for name, (server, job) in servers.items():
        ground.storage.enqueue(job)
        line = wait_until(lambda job=job: trial.tail.start_of(job.id), what=server.log)  # type: ignore[misc]
        pids[name] = line.pid
        if name == "limit":
            due = line.at_ns / 1e9 + _LIMIT_S + _CANCEL_GRACE_S + _TERM_GRACE_S
    began = time.monotonic()
    with frozen(trial.cluster.url), Watch([pids["limit"]]) as watch:
        stopper = threading.Thread(target=_time_stop, args=(servers["stop"][0], trial.late_ms))
        stopper.start()
        watch.until_all_died(within_s=_LONGEST_S)
        trial.late_ms["limit late"] = (watch.died_ns[pids["limit"]] / 1e9 - due) * 1000
        stopper.join()
        pause(max(0.0, seconds - (time.monotonic() - began)))
    trial.done["seconds frozen"] += round(time.monotonic() - began)
    if (code := servers["limit"][0].stop()) != 0:
        trial.broken.append(f"the server with the limit exited with {code}")
    # What the stopped one could not tell is found by the next.
    finder = ground.start(ground.server("-w", "0", "-q", "nothing"), ready=0)
    wait_until(lambda: not ground.storage.claims(), within_s=_LONGEST_S, what=lambda: finder.log()[-1000:])
    wait_until(
        lambda: len(ground.storage.list_servers()) == 1,
        within_s=_LONGEST_S,
        what=lambda: finder.log()[-1000:],
    )
    finder.stop()
    trial.failures[servers["limit"][1].id] = 1
    trial.kills.supervisors.add(servers["stop"][0].pid)


def _time_stop(server: Server, late_ms: dict[str, float]) -> None:
    began = time.monotonic()
    server.stop()
    late_ms["stop late"] = (time.monotonic() - began - _SHUTDOWN_S) * 1000


def _ended(trial: _Trial) -> bool:
    try:
        counts = trial.ground.storage.job_counts()
    except StorageUnavailable:
        return False
    return sum(count for state, count in counts.items() if not state.is_final) == 0


def _exits(ground: Ground, server: Server) -> int:
    """How many workers have ended, by the log, in which all servers of the ground write."""
    return server.log().count("stopped (pid") if (ground.folder / "server.log").exists() else 0


def _figures(trial: _Trial) -> str:
    parts = [f"{count} {what}" for what, count in trial.done.items()]
    parts.append(median_and_p99("first job", trial.first_start_ms))
    parts += [f"{name} {value:.0f} ms" for name, value in trial.late_ms.items()]
    return ", ".join(parts)


def _missed(trial: _Trial) -> tuple[str, ...]:
    slow = [value for value in trial.first_start_ms if value > _FIRST_START_MS]
    late = [f"{name}: {value:.0f} ms" for name, value in trial.late_ms.items() if value > _LATE_MS]
    return (*(f"the first job started after {value:.0f} ms" for value in slow), *late)
