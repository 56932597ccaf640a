"""Client: one job followed to its end: its state, and how far it says that it has come."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from datetime import timedelta

from qml_mp.cli.fitting import terminal_width
from qml_mp.cli.job_table import detail_of
from qml_mp.cli.output import coloured, compact_json, print_json, say, short
from qml_mp.cli.watching import Screen
from qml_mp.core.job import Job
from qml_mp.core.progress import Progress
from qml_mp.core.state import Succeeded
from qml_mp.printable import printable
from qml_mp.storage.store import Storage
from qml_mp.views.changing import not_found


def watch_job(storage: Storage, job_id: str, *, every: timedelta, as_json: bool) -> None:
    """Show it until it has ended: on a terminal in one place, elsewhere a line at each change. Raises
    `JobNotFound`."""
    screen = Screen()
    for job, progress in _states(storage, job_id, every):
        if as_json:
            told = None if progress is None else progress.to_json()
            print_json({**job.to_json(storage.attempts(job.id)), "progress": told})
        elif sys.stdout.isatty():
            screen.draw("".join(f"{line}\n" for line in _block(job, progress)))
        else:
            say("  ".join(filter(None, [str(job.state_name), detail_of(job), str(progress or "")])))
            sys.stdout.flush()


def _states(storage: Storage, job_id: str, every: timedelta) -> Iterator[tuple[Job, Progress | None]]:
    """The job and its progress, now and after each change, up to its end."""
    seen: object = None
    while True:
        job = storage.get(job_id)
        if job is None:
            raise not_found(job_id)
        progress = storage.progress_of([job_id]).get(job_id)
        if seen != (job, progress):
            yield job, progress
        if job.state_name.is_final:
            return
        seen = job, progress
        time.sleep(every.total_seconds())


def _block(job: Job, progress: Progress | None) -> Iterator[str]:
    width = terminal_width() or 1000
    yield f"{short(printable(job.method), 30)}  {job.id}  {coloured(str(job.state_name))}"
    yield short(printable(detail_of(job)), width)
    if progress is not None and not job.state_name.is_final:
        yield short(printable(str(progress)), width)
    if isinstance(job.state, Succeeded) and job.state.not_stored is None:
        yield short(printable(f"result {compact_json(job.state.result)}"), width)
