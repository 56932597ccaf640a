"""Tests: one server that is deployed to again and again, under load: good code, code that does not import,
code with a method more and with one less (E4)."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from qml_mp.core.job import Job
from tests.nightly.ground import Ground, fresh_ground, pause
from tests.nightly.judge import Kills
from tests.nightly.report import Row
from tests.nightly.scenario import Task, judge_ground, nothing_left
from tests.processes.harness import Server, wait_until
from tests.processes.ready_workers import counts_since_all_were
from tests.storage.helpers import patient_url

_WORKERS = 3
_LOAD = 60
"""Jobs that wait at least, while anything is deployed."""
_BUSY_S = 0.01
_ENDS_WITHIN_S = 300.0
_REASON = "ModuleNotFoundError: No module named 'no_such_library'"
_ROUND = ("good", "broken", "added", "broken", "removed")
_CODE = '''"""Version {number} of an app of the tests."""

from qml_mp import WorkerContext
from tests.processes.journal import sole_run
from tests.nightly.apps import app, note_of


@app.job()
def version(ctx: WorkerContext) -> int:
    with sole_run(ctx):
        note_of(ctx.job.id).write_text("{number}")
    return ctx.job.claim_seq
'''
_EXTRA = """

@app.job()
def extra(ctx: WorkerContext) -> int:
    with sole_run(ctx):
        return ctx.job.claim_seq
"""


@dataclass(kw_only=True)
class _Drill:
    """What was enqueued, and what did not go as it should. Belongs to one thread."""

    ground: Ground
    server: Server
    busy_s: float
    version: int = 0
    has_extra: bool = False
    expected: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    slowest_s: float = 0.0

    def deploy(self, number: int, kind: str) -> None:
        """Put the code in its place, have the server take it over, and look at what became of it."""
        if kind == "broken":
            _write(self.ground.folder, f"import no_such_library  # {number}\n")
        else:
            self.version = number
            self.has_extra = kind == "added" or (kind == "good" and self.has_extra)
            code = _CODE.format(number=number)
            _write(self.ground.folder, code + (_EXTRA if self.has_extra else ""))
        began = time.monotonic()
        ended_with, said = self._reload()
        self.slowest_s = max(self.slowest_s, time.monotonic() - began)
        wanted = (3, _REASON) if kind == "broken" else (0, f"{_WORKERS} workers replaced")
        if ended_with != wanted[0] or wanted[1] not in said:
            self.broken.append(f"deploy {number} ({kind}): exit code {ended_with}: {said[-400:]}")
        self._see_version(number, kind)

    def feed(self) -> None:
        """Keep jobs waiting; some of a method that the code may not have, which then wait for it."""
        if self.ground.audit.unfinished() < _LOAD:
            jobs = [Job.new("unit", {"busy_s": self.busy_s}) for _ in range(_LOAD)]
            jobs += [Job.new("extra") for _ in range(2)]
            self.expected += [job.id for job in jobs]
            self.ground.storage.enqueue_many(jobs)

    def _reload(self) -> tuple[int, str]:
        """The command, with its exit code and what it said."""
        command = [sys.executable, "-m", "qml_mp", "--url", patient_url(self.ground.url), "reload"]
        with (self.ground.folder / "reload.log").open("w+") as output, subprocess.Popen(
            [*command, "--server", str(self.server.pid)], stdout=output, stderr=output
        ) as process:  # fmt: skip
            while process.poll() is None:
                self.feed()
                pause(0.02)
            output.seek(0)
            return process.returncode, output.read()

    def _see_version(self, number: int, kind: str) -> None:
        """A job, ahead of the others, tells which code runs."""
        job_id = self.ground.storage.enqueue(Job.new("version", priority=9))
        self.expected.append(job_id)
        note = self.ground.folder / f"note-{job_id}"
        ran = wait_until(
            lambda: note.exists() and note.read_text(), within_s=60.0, what="a job of the version"
        )
        if ran != str(self.version):
            self.broken.append(f"deploy {number} ({kind}): version {ran} ran, not {self.version}")


def run_deploys(task: Task) -> Row:
    """The count is that of deploys."""
    with fresh_ground(task.backend, task.postgres_url, seed=task.seed) as ground:
        _write(ground.folder, _CODE.format(number=0))
        server = ground.server(
            "-w", str(_WORKERS), app="deployed:app", PYTHONDONTWRITEBYTECODE="1", PYTHONPATH=_path(ground)
        )  # fmt: skip
        drill = _Drill(
            ground=ground, server=ground.start(server, ready=_WORKERS), busy_s=_BUSY_S * task.pace
        )  # fmt: skip
        done = 0
        for number in task.turns(task.count):
            drill.feed()
            drill.deploy(number + 1, _ROUND[number % len(_ROUND)])
            done += 1
        drill.deploy(done + 1, "added")  # what waits for the method can run now
        wait_until(lambda: not ground.audit.unfinished(), within_s=_ENDS_WITHIN_S, what="the end of all jobs")
        if server.stop() != 0:
            drill.broken.append(f"the server did not stop in order: {server.log()[-500:]}")
        fewest = min(counts_since_all_were(server.log(), _WORKERS))
        if fewest < _WORKERS:
            drill.broken.append(f"only {fewest} of {_WORKERS} workers were ready at a time")
        return task.row(
            done=done,
            figures=f"{len(drill.expected)} jobs, never below {fewest} of {_WORKERS} workers, "
            f"slowest reload {drill.slowest_s:.1f} s",
            findings=judge_ground(ground, expected=drill.expected, kills=Kills()),
            broken=(*drill.broken, *nothing_left(ground)),
        )


def _write(folder: Path, code: str) -> None:
    """In one step, as a deploy should."""
    fresh = folder / "deployed.new"
    fresh.write_text(code)
    fresh.replace(folder / "deployed.py")


def _path(ground: Ground) -> str:
    """Where the workers find the app and the tests."""
    return f"{ground.folder}:{Path(__file__).parents[2]}"
