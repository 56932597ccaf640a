"""Tests: jobs under fire: a random worker killed at each interval (A3), and the supervisor too (B3)."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field

from qml_mp.core.job import Job
from tests.faults import most_held, was_taken_away
from tests.nightly.ground import Ground, environment_of, fresh_ground, kill_a_worker, pause
from tests.nightly.judge import Kills
from tests.nightly.report import Row
from tests.nightly.scenario import Task, judge_ground, nothing_left
from tests.processes.harness import Server, wait_until

WORKERS = 4
_KILL_EVERY_S = 0.2
_SUPERVISOR_EVERY_S = 5.0
_OFTEN_ENOUGH_S = 2.0
"""After so long the next worker is killed although hardly a job has ended since the last kill."""
_STUCK_AFTER_S = 120.0
_HELD_AT_LEAST = 10
"""So many claims must one worker have held at a time, or the run says nothing of several claims."""
_SETTINGS = environment_of(
    # A job is innocent of the kills that hit it; an orphan must not outlive many supervisors.
    {"max_crashes": 1000, "orphan_grace": 2, "shutdown_timeout": 20}
)


def run_kills(task: Task) -> Row:
    """Jobs on 4 workers while a random one is killed every 200 ms."""
    return _under_fire(task, supervisor_every_s=None)


def run_storm(task: Task) -> Row:
    """The same while the supervisor is killed and started again every 5 s."""
    return _under_fire(task, supervisor_every_s=_SUPERVISOR_EVERY_S * task.pace)


def _load(rng: random.Random, count: int) -> list[Job]:
    """Jobs so short that a worker holds many at a time; some that are longer, and longer than expected; and
    some that fail the first time."""
    kinds = rng.choices(("brief", "longer", "long", "unsure"), weights=(880, 100, 3, 17), k=count)
    return [_job(rng, kind) for kind in kinds]


def _job(rng: random.Random, kind: str) -> Job:
    match kind:
        case "brief":
            return Job.new("unit", {"busy_s": rng.choice((0.0, 0.0002, 0.0005))})
        case "longer":
            return Job.new("unit", {"busy_s": round(rng.uniform(0.002, 0.008), 4)})
        case "long":
            return Job.new("unit", {"busy_s": 0.12})
        case _:
            return Job.new("unsure")


@dataclass(kw_only=True, eq=False)
class _Battle:
    """One run, as it goes."""

    ground: Ground
    server: Server
    kills: Kills = field(default_factory=Kills)
    supervisors_killed: int = 0
    broken: list[str] = field(default_factory=list)

    def is_up(self) -> bool:
        """Whether the server works and has given back all of those before it, which a stop would leave to the
        next one; or whether it has ended by itself."""
        assert self.server.process is not None
        if self.server.process.poll() is not None:
            return True
        return self.ground.is_alone(self.server) and bool(self.ground.workers(self.server))

    def kill_a_worker(self) -> None:
        """SIGKILL to a random live worker, of whatever run of the server."""
        kill_a_worker(self.ground, self.kills)
        self.look_at_the_file()

    def kill_the_supervisor(self) -> None:
        """SIGKILL to it, a look at the file, and the next one at once."""
        assert self.server.process is not None
        self.kills.supervisors.add(self.server.pid)
        self.supervisors_killed += 1
        self.server.process.kill()
        self.server.process.wait()
        self.look_at_the_file()
        self.server.start(ready=None)

    def look_at_the_file(self) -> None:
        """SQLite's own check."""
        found = self.ground.audit.integrity()
        if found != "ok":
            self.broken.append(f"integrity_check after {self.kills.count} kills: {found}")


def _under_fire(task: Task, *, supervisor_every_s: float | None) -> Row:
    with fresh_ground(task.backend, task.postgres_url, seed=task.seed) as ground:
        jobs = _load(ground.rng, task.count)
        ids = ground.storage.enqueue_many(jobs)
        battle = _Battle(ground=ground, server=ground.server("-w", str(WORKERS), **_SETTINGS))
        ground.start(battle.server, ready=1)
        _fight(task, battle, supervisor_every_s)
        wait_until(battle.is_up, what=f"a server to stop; {battle.server.log()[-2000:]}")
        if battle.server.process is not None and battle.server.process.poll() is not None:
            battle.broken.append(f"the server ended by itself: {battle.server.log()[-500:]}")
        elif (code := battle.server.stop()) != 0:
            battle.broken.append(f"the server exited with {code}")
        battle.look_at_the_file()
        done = task.count - ground.audit.unfinished()
        expected = ids if not task.time_is_up else _ended(ground)
        failures = {job.id: 1 for job in jobs if job.method == "unsure"}
        if task.time_is_up:  # some of them have not come to their first end
            failures |= {
                row.id: 0 for row in ground.audit.jobs() if not row.state.is_final and not row.failures
            }
        findings = judge_ground(ground, expected=expected, kills=battle.kills, failures=failures)
        log = ground.audit.transitions()
        if most_held(log) < _HELD_AT_LEAST:
            battle.broken.append(f"no worker held more than {most_held(log)} claims at a time")
        attempts = ground.audit.attempts()
        taken = sum(was_taken_away(one, attempts) for one in log)
        figures = f"{taken} claims taken away, {most_held(log)} held at a time"
        if supervisor_every_s is not None:
            figures += f", {battle.supervisors_killed} supervisors killed"
        return task.row(
            done=done, findings=findings, kills=battle.kills.count, figures=figures,
            broken=(*battle.broken, *nothing_left(ground)),
        )  # fmt: skip


def _fight(task: Task, battle: _Battle, supervisor_every_s: float | None) -> None:
    """Until all jobs have ended or the time is up. No progress for long is a broken promise too.

    Between two kills some jobs have ended, so that a slow machine has a slower fight, and not one in which
    nobody lives long enough to do anything.
    """
    killed_at = supervisor_killed_at = progress_at = time.monotonic()
    left = left_at_kill = left_at_supervisor_kill = task.count
    while (now_left := battle.ground.audit.unfinished()) and not task.time_is_up:
        pause(_KILL_EVERY_S)
        now = time.monotonic()
        if now_left != left:
            left, progress_at = now_left, now
        if now - progress_at > _STUCK_AFTER_S:
            battle.broken.append(f"{left} jobs are stuck: {battle.server.log()[-1500:]}")
            return
        if left_at_kill - left >= _HELD_AT_LEAST or now - killed_at > _OFTEN_ENOUGH_S:
            left_at_kill, killed_at = left, now
            battle.kill_a_worker()
        if supervisor_every_s is None or now - supervisor_killed_at < supervisor_every_s:
            continue
        if left_at_supervisor_kill - left >= _HELD_AT_LEAST:
            battle.kill_the_supervisor()
            left_at_supervisor_kill, supervisor_killed_at = left, time.monotonic()


def _ended(ground: Ground) -> list[str]:
    return [row.id for row in ground.audit.jobs() if row.state.is_final]
