"""Tests: three servers share the jobs; one of them is killed with all its workers, again and again (C5).

`peers`: two of them are in pid namespaces of their own, as on machines of their own: nobody sees their
processes, so that their peers judge them by their silence. The third one comes back at once, or in a moment,
and finds what it had itself. `neighbours`: all are on one machine, and those that live see the death.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from qml_mp.core.job import Job
from tests.nightly.ground import Ground, JournalTail, descendants, environment_of, fresh_ground, pause
from tests.nightly.judge import Kills
from tests.nightly.report import Row, median_and_p99
from tests.nightly.scenario import Task, judge_ground, nothing_left
from tests.processes.harness import Server, wait_until
from tests.processes.pid_namespace import CONTAINER, need_namespaces

_WORKERS, _FEWER_WORKERS = 4, 2
"""Of each server; fewer in short runs."""
_KILL_EVERY_S = 10.0
_BEAT_S, _TIMEOUT_S = 0.5, 4.0
_TIMEOUT_OF_SHORT_RUNS_S = 12.0
"""They run beside other tests, and a server that has to wait for a processor is not to be taken for dead."""
_COMES_BACK_AFTER_S = 2.0
"""The second time: before its peers judge it."""
_LONGEST_S = 180.0
_ENDED = -1
_SETTINGS = environment_of({"heartbeat_interval": _BEAT_S, "max_crashes": 1, "shutdown_timeout": 20})
_NAMES = ("here", "there", "elsewhere")
_BACK, _LATER = "by itself", "by itself, started later"
_PEERS, _NEIGHBOURS = "by its peers", "by its neighbours"
_IN_TURN = (("here", _BACK), ("there", _PEERS), ("here", _LATER), ("elsewhere", _PEERS))
"""Who is killed, and who is to find what it had."""
_IN_TURN_ON_ONE_HOST = tuple((name, _NEIGHBOURS) for name in _NAMES)


@dataclass(kw_only=True, eq=False)
class _Fleet:
    """The three of them, and how soon what the killed had in hand ran again."""

    ground: Ground
    tail: JournalTail
    workers: int
    timeout_s: float
    """After so much silence a server is dead for its peers."""
    hidden: Collection[str] = _NAMES[1:]
    """Those that no other can see."""
    servers: dict[str, Server] = field(default_factory=dict)
    ids: list[str] = field(default_factory=list)
    kills: Kills = field(default_factory=Kills)
    again_ms: dict[str, list[float]] = field(default_factory=dict)
    """How long it took until each job ran again, by who has found it."""

    def start(self, name: str) -> int:
        """The instant."""
        settings = {**_SETTINGS, **environment_of({"dead_server_timeout": self.timeout_s})}
        server = self.ground.server("-w", str(self.workers), "--server-name", name, **settings)
        server.prefix = CONTAINER if name in self.hidden else ()
        began_ns = time.monotonic_ns()
        self.servers[name] = server.start(ready=None)
        return began_ns

    def wait_until_whole(self) -> None:
        """Until all their workers are there, and those of no other."""
        with contextlib.suppress(AssertionError):  # what there is instead is told
            wait_until(lambda: self._count() == self.workers * len(_NAMES), within_s=_LONGEST_S)
            return
        workers = [one.id for one in self.ground.storage.list_workers()]
        codes = {name: one.process and one.process.poll() for name, one in self.servers.items()}
        log = self.servers["here"].log()
        raise AssertionError(f"the fleet is not whole: {workers}, exit codes {codes}; {log[-3000:]}")

    def _count(self) -> int:
        return len(self.ground.storage.list_workers())

    def top_up(self) -> None:
        """As many jobs as there should be at a time: half of the workers are free for those of the killed."""
        rng = self.ground.rng
        missing = self.workers * len(_NAMES) // 2 - self.ground.audit.unfinished()
        self.ids += self.ground.storage.enqueue_many(
            Job.new("doze", {"seconds": round(rng.uniform(1, 4), 2)}) for _ in range(missing)
        )

    def in_hand(self, name: str) -> dict[str, int]:
        """The jobs that workers of the server of this name have, and the numbers of the claims."""
        own = {row.id for row in self.ground.storage.list_servers() if row.name == name}
        claims = self.ground.storage.claims()
        victims = {one.id for one in self.ground.storage.list_workers() if one.server_id in own}
        self.kills.workers |= victims
        self.kills.with_everybody |= victims
        return {
            claim.job.id: claim.job.claim_seq
            for claim in claims
            if claim.server_id in own and self.tail.start_of(claim.job.id, claim.job.claim_seq) is not None
        }


def run_peers(task: Task) -> Row:
    """Kills, each on a fleet that is whole and has jobs in hand."""
    need_namespaces()
    return _run(task, _IN_TURN, hidden=_NAMES[1:])


def run_neighbours(task: Task) -> Row:
    """The same where all see each other's processes."""
    return _run(task, _IN_TURN_ON_ONE_HOST, hidden=())


def _run(task: Task, in_turn: Sequence[tuple[str, str]], *, hidden: Collection[str]) -> Row:
    with fresh_ground(task.backend, task.postgres_url, seed=task.seed) as ground:
        fleet = _Fleet(
            ground=ground, tail=JournalTail(ground), hidden=hidden,
            workers=_WORKERS if task.pace >= 1 else _FEWER_WORKERS,
            timeout_s=_TIMEOUT_S if task.pace >= 1 else _TIMEOUT_OF_SHORT_RUNS_S,
        )  # fmt: skip
        for name in _NAMES:
            fleet.start(name)
        for number in task.turns(task.count):
            name, who = in_turn[number % len(in_turn)]
            _kill_once(fleet, name, who=who, every_s=_KILL_EVERY_S * task.pace)
            fleet.kills.count += 1
        fleet.wait_until_whole()  # process 1 of a pid namespace takes no SIGTERM before it has a handler
        wait_until(lambda: not ground.audit.unfinished(), within_s=_LONGEST_S, what="the end of all jobs")
        broken = [f"{name} exited with {code}" for name in _NAMES if (code := _stop(fleet.servers[name]))]
        findings = judge_ground(ground, expected=fleet.ids, kills=fleet.kills)
        return task.row(
            done=fleet.kills.count, findings=findings, kills=fleet.kills.count,
            figures=f"{len(fleet.ids)} jobs, " + ", ".join(
                median_and_p99(f"again {who}", values) for who, values in fleet.again_ms.items()
            ),
            broken=(*broken, *nothing_left(ground)),
        )  # fmt: skip


def _kill_once(fleet: _Fleet, name: str, *, who: str, every_s: float) -> None:
    began = time.monotonic()
    fleet.wait_until_whole()
    # A peer judges once it was heard for as long.
    pause(fleet.timeout_s if name in fleet.hidden else 2 * _BEAT_S)
    taken: dict[str, int] = {}
    while not taken:
        fleet.top_up()
        pause(0.2)
        taken = fleet.in_hand(name)
    from_ns = _kill(fleet.servers[name])
    if who == _LATER:
        pause(_COMES_BACK_AFTER_S)
        from_ns = fleet.start(name)
    elif who != _PEERS:
        fleet.start(name)
    for job_id, claim_seq in taken.items():
        at_ns = wait_until(
            lambda job_id=job_id, seq=claim_seq: _later_start(fleet, job_id, seq),  # type: ignore[misc]
            within_s=_LONGEST_S,
            what=f"another run of {job_id}; {fleet.servers['here'].log()[-3000:]}",
        )
        if at_ns != _ENDED:
            fleet.again_ms.setdefault(who, []).append((at_ns - from_ns) / 1e6)
    if who == _PEERS:
        fleet.start(name)
    while time.monotonic() < began + every_s:
        fleet.top_up()
        pause(0.2)


def _later_start(fleet: _Fleet, job_id: str, claim_seq: int) -> int | None:
    """When a later run began; `_ENDED` when the job had ended before the kill; None: neither is known yet."""
    line = fleet.tail.start_of(job_id)
    if line is not None and line.claim_seq > claim_seq:
        return line.at_ns
    job = fleet.ground.storage.get(job_id)
    return _ENDED if job is not None and job.state_name.is_final and job.claim_seq == claim_seq else None


def _kill(server: Server) -> int:
    """SIGKILL to all its processes at once; the instant."""
    assert server.process is not None
    pids = [server.pid, *descendants(server.pid)]
    killed_ns = time.monotonic_ns()
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    server.process.wait()
    return killed_ns


def _stop(server: Server) -> int:
    """SIGTERM to the supervisor itself; 0 when it stopped well, as far as that is told."""
    if not server.prefix:
        return server.stop()
    (supervisor,) = descendants(server.pid)[:1]
    os.kill(supervisor, signal.SIGTERM)
    return server.wait()
