"""Tests: a server whose page and metrics are killed again and again while its workers are busy: nothing else
of it may notice (fault 70)."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
import urllib.request
from collections import Counter
from dataclasses import dataclass, field

from qml_mp.core.job import Job
from tests.nightly.ground import Ground, descendants, fresh_ground, pause, state_of
from tests.nightly.judge import Kills
from tests.nightly.report import Row, median_and_p99
from tests.nightly.scenario import Task, judge_ground, nothing_left
from tests.postgres_cluster import free_port
from tests.processes.harness import Server, is_gone, wait_until
from tests.processes.side import get, side_pid

_WORKERS = 2
_LOAD = 40
"""Jobs that wait at least."""
_JOB_S = 0.05
"""For which a job keeps its worker. It does not compute: two workers that do are in the way of all else."""
_LIFE_S = 1.4
"""For which a process serves before it is killed: the pause before the next one stays the first, of 0.1 s. Of
a short life in a short run the pause doubles."""
_STOPPED_S = 0.5
_EACH_SO_MANY = 4
"""Of so many deaths one is that of a process that was stopped before."""
_BACK_WITHIN_S = 60.0
_ENDS_WITHIN_S = 120.0
_PATHS = {"page": "/", "metrics": "/metrics"}
_HEALTH = ("/livez", "/readyz")
"""Told by the process that serves the metrics."""
_IS_WRONG = re.compile(r"qml-mp: (WARNING|ERROR) ")
_DEATH = "The process that serves the"
_LOCKED = "is locked by another program"
"""An SQLite file, for longer than the supervisor waits: whoever writes may have to wait for a processor."""
_SLOW_TO_LEAVE = "has no job and does not leave; killing it"
"""Told of a worker that has to wait for a processor, or for a disk, for a second when the server stops."""
_STAYS = "Could not leave the registry"
"""Told of a server whose storage took a second over it, as `nothing_left` has it too."""


@dataclass(kw_only=True, eq=False)
class _Side:
    """One of the two processes, whichever lives now."""

    kind: str
    origin: str
    pid: int = 0
    kills: int = 0
    killed_at: float = 0.0
    serves_since: float | None = None
    """When its newest process was seen to answer; None: it has not."""
    back_ms: list[float] = field(default_factory=list)


@dataclass(kw_only=True, eq=False)
class _Drill:
    """One run, as it goes. Belongs to one thread."""

    ground: Ground
    server: Server
    sides: tuple[_Side, ...]
    expected: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    def await_life(self, side: _Side, life_s: float) -> None:
        """Until it has answered for so long, with jobs to run meanwhile."""
        deadline = time.monotonic() + _BACK_WITHIN_S
        while side.serves_since is None or time.monotonic() - side.serves_since < life_s:
            assert time.monotonic() < deadline, f"no {side.kind}: {self.server.log()[-2000:]}"
            for each in self.sides:
                self._look(each)
            self._feed()
            pause(0.02)

    def kill(self, side: _Side, *, stopped_s: float) -> None:
        """SIGKILL, while somebody is being answered; after SIGSTOP for so long, if that is not zero."""
        with contextlib.ExitStack() as stack:
            if side.kind == "page":  # what a browser that shows it keeps open
                stack.enter_context(urllib.request.urlopen(f"{side.origin}/events", timeout=_BACK_WITHIN_S))
            if stopped_s:
                os.kill(side.pid, signal.SIGSTOP)
                self._see_jobs_end(stopped_s)
            os.kill(side.pid, signal.SIGKILL)
        side.kills, side.killed_at, side.serves_since = side.kills + 1, time.monotonic(), None

    def end_load(self) -> None:
        """Until every job has ended."""
        wait_until(
            lambda: not self.ground.audit.unfinished(), within_s=_ENDS_WITHIN_S, what="the end of all jobs"
        )

    def await_health(self) -> None:
        """Until the server is told to be well, however often whoever tells it was killed."""
        origin = next(side.origin for side in self.sides if side.kind == "metrics")
        wait_until(
            lambda: all(get(origin + path) == (200, "ok\n") for path in _HEALTH),
            within_s=_BACK_WITHIN_S,
            what="the health of the server",
        )

    def unharmed(self) -> list[int]:
        """The processes of the server that nobody kills: workers and guardian."""
        own = {side_pid(self.server, side.kind) for side in self.sides}
        return [pid for pid in descendants(self.server.pid) if pid not in own]

    def _look(self, side: _Side) -> None:
        pid = side_pid(self.server, side.kind)
        if side.serves_since is not None:
            is_unlisted = pid is None and not is_gone(side.pid)  # as another one ended just then
            if pid != side.pid and not is_unlisted:
                self.broken.append(f"the {side.kind} (pid {side.pid}) was not killed, and is {pid} now")
                side.serves_since = None
        elif pid not in (None, side.pid) and get(side.origin + _PATHS[side.kind])[0] == 200:
            side.pid, side.serves_since = pid or 0, time.monotonic()
            if side.kills:
                side.back_ms.append(1000 * (side.serves_since - side.killed_at))

    def _feed(self) -> None:
        if self.ground.audit.unfinished() < _LOAD:
            jobs = [Job.new("doze", {"seconds": _JOB_S}) for _ in range(_LOAD)]
            self.expected += self.ground.storage.enqueue_many(jobs)

    def _see_jobs_end(self, stopped_s: float) -> None:
        """While one of the two is stopped."""
        self._feed()
        until, before = time.monotonic() + stopped_s, self._ended()
        while time.monotonic() < until:
            self._feed()
            pause(0.02)
        wait_until(lambda: self._ended() > before, what="the end of a job beside a process that is stopped")

    def _ended(self) -> int:
        return len(self.expected) - self.ground.audit.unfinished()


def run_side(task: Task) -> Row:
    """The count is that of the kills of each of the two."""
    with fresh_ground(task.backend, task.postgres_url, seed=task.seed) as ground:
        ports = set[int]()
        while len(ports) < len(_PATHS):  # one that is free may be given twice
            ports.add(free_port())
        at = {kind: f"127.0.0.1:{port}" for kind, port in zip(_PATHS, ports, strict=True)}
        server = ground.server("-w", str(_WORKERS), "--web", at["page"], "--metrics", at["metrics"])
        ground.start(server, ready=_WORKERS)
        sides = tuple(_Side(kind=kind, origin=f"http://{where}") for kind, where in at.items())
        drill = _Drill(ground=ground, server=server, sides=sides)
        for side in sides:
            drill.await_life(side, 0.0)
        unharmed, fds = drill.unharmed(), state_of(server)[0]
        for number in task.turns(task.count):
            stops = number % _EACH_SO_MANY == 1
            for side in sides:
                drill.await_life(side, _LIFE_S * task.pace)
                drill.kill(side, stopped_s=_STOPPED_S * task.pace if stops else 0.0)
        for side in sides:
            drill.await_life(side, 0.0)
        drill.end_load()
        drill.await_health()
        drill.broken += _harm(drill, unharmed, fds)
        if (code := server.stop()) != 0:
            drill.broken.append(f"the server exited with {code}")
        drill.broken += _wrong_lines(drill)
        return task.row(
            done=min(side.kills for side in sides),
            kills=sum(side.kills for side in sides),
            figures=f"{len(drill.expected)} jobs; "
            + ", ".join(median_and_p99(f"{side.kind} back", side.back_ms) for side in sides),
            findings=judge_ground(ground, expected=drill.expected, kills=Kills()),
            broken=(*drill.broken[:10], *_not_run_once(drill), *nothing_left(ground)),
        )


def _harm(drill: _Drill, unharmed: list[int], fds: int) -> list[str]:
    """What the deaths have done to the rest of the server, which still runs."""
    harm = []
    if (now := drill.unharmed()) != unharmed:
        harm.append(f"the workers and the guardian were {unharmed}, and are {now}")
    if (now_fds := state_of(drill.server)[0]) != fds:
        harm.append(f"descriptors of the supervisor: {fds} before, {now_fds} after")
    return harm


def _wrong_lines(drill: _Drill) -> list[str]:
    """The log tells each death once, and nothing else that is wrong."""
    lines = drill.server.log().splitlines()
    slow = re.findall(f"Worker ([0-9]+) {_SLOW_TO_LEAVE}", drill.server.log())
    expected = (_DEATH, _LOCKED, _SLOW_TO_LEAVE, _STAYS, *(f"Worker {number} stopped" for number in slow))
    wrong = [line for line in lines if _IS_WRONG.match(line) and not any(map(line.__contains__, expected))]
    for side in drill.sides:
        told = sum(f"{_DEATH} {side.kind} (pid " in line for line in lines)
        if told != side.kills:
            wrong.append(f"{side.kills} deaths of the {side.kind}, of which {told} are told")
    return wrong


def _not_run_once(drill: _Drill) -> list[str]:
    runs = Counter(line.job_id for line in drill.ground.journal() if line.what == "start")
    return [f"job {job_id} ran {runs[job_id]} times" for job_id in drill.expected if runs[job_id] != 1][:10]
