"""Client: `qml-mp demo`: the main job on real input, a worker killed halfway, every result checked."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import click

from qml_mp.cli.demo import tasks
from qml_mp.cli.demo.kill import WorkerKill
from qml_mp.cli.demo.progress import Progress
from qml_mp.cli.demo.server import DemoServer, demo_server
from qml_mp.cli.session import Command, Session, pass_session
from qml_mp.core.outcome import AttemptKind
from qml_mp.core.payload import JsonValue
from qml_mp.core.state import FINAL_STATES, StateName
from qml_mp.errors import QmlError
from qml_mp.storage.open import open_storage
from qml_mp.storage.store import Storage

_POLL_S = 0.05
_FEWEST_FILES = 50
"""With fewer, the jobs can all be over before a worker is caught running one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """What the part under the supervisor came to."""

    duration_s: float
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

    Uses a temporary SQLite file. About halfway it kills one busy worker with SIGKILL. At the end it
    compares every result with a computation in one process; exit code 0 only when all of it matches.
    """
    paths = tasks.source_files()[:limit]
    click.echo(f"{len(paths)} source files of {tasks.stdlib()}, {workers} workers, a temporary SQLite file")
    progress = Progress()
    with demo_server(workers=workers, verbose=session.verbose) as server:
        storage = open_storage(server.url, application_name="qml-mp demo")
        try:
            run = _run(storage, server, paths, progress)
        finally:
            storage.close()
    serial_s = _compare(run.results, progress)
    click.echo(f"jobs       {len(paths)} succeeded, every digest equal to that of the serial computation")
    click.echo(f"seconds    {run.duration_s:.1f} on {workers} workers, {serial_s:.1f} in one process")
    click.echo(f"speed-up   {serial_s / run.duration_s:.2f} over serial")
    attempts = "attempt" if run.crashes == 1 else "attempts"
    click.echo(
        f"recovered  {run.crashes} {attempts} whose worker died; every such job ran again and succeeded"
    )


def _run(storage: Storage, server: DemoServer, paths: list[str], progress: Progress) -> _Run:
    storage.migrate()
    ids = storage.enqueue_many([tasks.digest_source.job(path) for path in paths])
    path_of = dict(zip(ids, paths, strict=True))
    began = time.monotonic()
    server.start()
    _watch(storage, server, path_of, progress)
    duration_s = time.monotonic() - began
    server.wait_for_exit()
    return _Run(
        duration_s=duration_s,
        results={path: _result(storage, job_id, path) for job_id, path in path_of.items()},
        crashes=sum(
            attempt.kind is AttemptKind.CRASH for job_id in ids for attempt in storage.attempts(job_id)
        ),
    )


def _watch(storage: Storage, server: DemoServer, path_of: Mapping[str, str], progress: Progress) -> None:
    """Until every job has ended: show progress, kill a worker about halfway, show what becomes of it."""
    kill = WorkerKill(storage, path_of, progress)
    while True:
        counts = storage.job_counts()
        done = sum(counts[state] for state in FINAL_STATES)
        if done == len(path_of):
            break
        if done >= len(path_of) // 2:
            kill.advance()
        progress.show(f"{done}/{len(path_of)} done, {counts[StateName.PROCESSING]} running")
        server.check()
        time.sleep(_POLL_S)
    progress.clear()
    kill.end()


def _result(storage: Storage, job_id: str, path: str) -> JsonValue:
    job = storage.get(job_id)
    if job is None or job.state_name is not StateName.SUCCEEDED:
        state = "gone" if job is None else job.state_name
        error = "" if job is None or job.error is None else f": {job.error.type}: {job.error.message}"
        raise QmlError(f"The job of {path} ended {state}{error}.")
    return job.result


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
