"""Client: `qml-mp demo`: the main job on real input, a worker killed halfway, every result checked."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

import click

from qml_mp.cli.demo import tasks
from qml_mp.cli.demo.kill import WorkerKill
from qml_mp.cli.demo.pool import run_in_pool
from qml_mp.cli.demo.progress import Progress
from qml_mp.cli.demo.server import DemoServer, demo_server
from qml_mp.cli.interruption import interrupted_once
from qml_mp.cli.session import Command, Session, pass_session
from qml_mp.core.job import Job
from qml_mp.core.outcome import AttemptKind
from qml_mp.core.payload import JsonValue
from qml_mp.core.state import FINAL_STATES, StateName
from qml_mp.errors import QmlError
from qml_mp.storage.open import open_storage
from qml_mp.storage.store import Storage

_POLL_S = 0.1  # each look takes time from the workers, on a machine with as many cores
_CLOSE_POLL_S = 0.02
_CLOSE_JOBS = 100
_STARTUP_POLL_S = 0.02
_FEWEST_FILES = 50
"""With fewer, the jobs can all be over before a worker is caught running one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """What the main phase came to: from the enqueue of the first job to the end of the last."""

    startup: timedelta
    """Before it: until every worker of the server was up."""
    duration: timedelta
    results: Mapping[str, JsonValue]
    """By path; every job succeeded."""
    crashes: int
    """Attempts, over all jobs, whose process died."""


@click.command(cls=Command)
@click.option(
    "-w", "--workers", type=click.IntRange(1, 1024), default=2, show_default=True, help="Worker processes."
)
@click.option(
    "--limit",
    type=click.IntRange(min=_FEWEST_FILES),
    metavar="FILES",
    help="Only so many files; default: all.",
)
@pass_session
def demo(session: Session, workers: int, limit: int | None) -> None:
    """Parse, compress (LZMA) and hash every source file of Python's standard library.

    Uses a temporary SQLite file. About halfway it kills one busy worker with SIGKILL. Then a
    ProcessPoolExecutor with as many processes does the same, without a storage and without a kill. At the
    end it compares every result with a computation in one process; exit code 0 only when all of it matches.
    """
    paths = tasks.source_files()[:limit]
    click.echo(f"{len(paths)} source files of {tasks.stdlib()}, {workers} workers, a temporary SQLite file")
    progress = Progress()
    with interrupted_once():
        with demo_server(workers=workers, verbose=session.verbose) as server:
            storage = open_storage(server.url, application_name="qml-mp demo")
            try:
                run = _run(storage, server, paths, progress)
            finally:
                storage.close()
        pool = run_in_pool(paths, processes=workers, progress=progress)
        serial_s = _compare(run.results, progress)
    own_s = run.duration.total_seconds()
    click.echo(f"jobs       {len(paths)} succeeded, every digest equal to that of the serial computation")
    click.echo(
        f"seconds    {own_s:.2f} by qml-mp with {workers} workers, one of them killed (up in "
        f"{run.startup.total_seconds():.2f})"
    )
    click.echo(f"           {pool:.2f} by ProcessPoolExecutor({workers}), {serial_s:.2f} in one process")
    click.echo(f"ratio      {own_s / pool:.2f} of the time of ProcessPoolExecutor")
    click.echo(
        f"speed-up   {serial_s / own_s:.2f} over serial ({serial_s / pool:.2f} by ProcessPoolExecutor)"
    )
    attempts = "attempt" if run.crashes == 1 else "attempts"
    click.echo(
        f"recovered  {run.crashes} {attempts} whose worker died; every such job ran again and succeeded"
    )


def _run(storage: Storage, server: DemoServer, paths: list[str], progress: Progress) -> _Run:
    storage.migrate()
    before = storage.now()
    server.start()
    _wait_for_workers(storage, server)
    began = storage.now()
    ids = storage.enqueue_many([tasks.digest_source.job(path) for path in paths])
    path_of = dict(zip(ids, paths, strict=True))
    _watch(storage, server, path_of, progress)
    server.stop()
    jobs = {path: _succeeded(storage, job_id, path) for job_id, path in path_of.items()}
    return _Run(
        startup=began - before,
        # By the rows, and not when this process came to look.
        duration=max(job.finished_at for job in jobs.values() if job.finished_at is not None) - began,
        results={path: job.result for path, job in jobs.items()},
        crashes=sum(
            attempt.kind is AttemptKind.CRASH for job_id in ids for attempt in storage.attempts(job_id)
        ),
    )


def _wait_for_workers(storage: Storage, server: DemoServer) -> None:
    """Until all are up: a server is started once, and a pool's processes are up before its time is taken."""
    while len(storage.list_workers()) < server.workers:
        server.check()
        time.sleep(_STARTUP_POLL_S)


def _watch(storage: Storage, server: DemoServer, path_of: Mapping[str, str], progress: Progress) -> None:
    """Until every job has ended: show progress, kill a worker about halfway, show what becomes of it."""
    kill, halfway = WorkerKill(storage, path_of, progress), len(path_of) // 2
    while True:
        counts = storage.job_counts()
        done = sum(counts[state] for state in FINAL_STATES)
        if done == len(path_of):
            break
        if done >= halfway:
            kill.advance()
        running = sum(queue.processing - queue.held for queue in storage.queue_stats())
        progress.show(f"{done}/{len(path_of)} done, {running} running")
        server.check()
        looks_closely = halfway - done <= _CLOSE_JOBS and not kill.is_over
        time.sleep(_CLOSE_POLL_S if looks_closely else _POLL_S)
    progress.clear()
    kill.end()


def _succeeded(storage: Storage, job_id: str, path: str) -> Job:
    job = storage.get(job_id)
    if job is None or job.state_name is not StateName.SUCCEEDED:
        state = "gone" if job is None else job.state_name
        error = "" if job is None or job.error is None else f": {job.error.type}: {job.error.message}"
        raise QmlError(f"The job of {path} ended {state}{error}.")
    return job


def _compare(results: Mapping[str, JsonValue], progress: Progress) -> float:
    """Compute everything again in this process; the seconds it took. Raises `QmlError` on any difference."""
    began = time.monotonic()
    for number, (path, result) in enumerate(results.items(), start=1):
        expected = tasks.digest(path)
        if result != expected:
            progress.clear()
            raise QmlError(f"{path}: the job gave {result}, the serial computation {expected}.")
        progress.show(f"{number}/{len(results)} compared with the serial computation")
    serial_s = time.monotonic() - began
    progress.clear()
    return serial_s
