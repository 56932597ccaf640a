"""Client: one job followed to its end: its state, and how far it says that it has come."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial

import click

from qml_mp.cli.failure import in_words, paragraph
from qml_mp.cli.fitting import terminal_width
from qml_mp.cli.job_table import detail_of
from qml_mp.cli.output import coloured, compact_json, print_json, say, short
from qml_mp.cli.watching import Screen, printed
from qml_mp.core.job import Job
from qml_mp.core.outcome import Attempt
from qml_mp.core.progress import Progress
from qml_mp.core.state import Succeeded
from qml_mp.errors import StorageUnavailable
from qml_mp.printable import printable
from qml_mp.storage.store import Storage
from qml_mp.views.changing import not_found


def watch_job(storage: Storage, job_id: str, *, every: timedelta, as_json: bool) -> None:
    """Show it until it has ended: on a terminal in one place, elsewhere a line at each change. A storage that
    goes away meanwhile is told, and asked again. Raises `JobNotFound`."""
    screen = Screen()
    for seen in _looks(partial(_look, storage, job_id, as_json=as_json), every):
        if sys.stdout.isatty() and not as_json:
            # Printed as by every command, and so without colours where nobody wants them.
            screen.draw(printed(partial(_print_block, seen)))
        elif seen.why_old is not None:
            click.echo(paragraph(seen.why_old), err=True)
        else:
            _print_line(seen, as_json=as_json)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    """What one look has shown."""

    job: Job
    attempts: tuple[Attempt, ...]
    """Those that did not succeed, where they are shown."""
    progress: Progress | None
    why_old: StorageUnavailable | None = None
    """What kept the next look from showing anything; None: this is the newest."""


def _looks(look: Callable[[], _Seen], every: timedelta) -> Iterator[_Seen]:
    """Now, after each change up to the job's end, and once for each time that the storage is away. That it is
    away at the first look is an error."""
    seen: _Seen | None = None
    while seen is None or not seen.job.state_name.is_final:
        before = seen
        try:
            seen = look()
        except StorageUnavailable as error:
            if before is None:
                raise
            seen = before if before.why_old is not None else replace(before, why_old=error)
        if seen != before:
            yield seen
        if not seen.job.state_name.is_final:
            time.sleep(every.total_seconds())


def _look(storage: Storage, job_id: str, *, as_json: bool) -> _Seen:
    job = storage.get(job_id)
    if job is None:
        raise not_found(job_id)
    attempts = storage.attempts(job_id) if as_json else ()
    return _Seen(job=job, attempts=attempts, progress=storage.progress_of([job_id]).get(job_id))


def _print_line(seen: _Seen, *, as_json: bool) -> None:
    job, progress = seen.job, seen.progress
    if as_json:
        told = None if progress is None else progress.to_json()
        print_json({**job.to_json(seen.attempts), "progress": told})
    else:
        say("  ".join(filter(None, [str(job.state_name), detail_of(job), str(progress or "")])))
    sys.stdout.flush()


def _print_block(seen: _Seen) -> None:
    for line in _block(seen):
        click.echo(line)


def _block(seen: _Seen) -> Iterator[str]:
    job, progress = seen.job, seen.progress
    width = terminal_width() or 1000
    if seen.why_old is not None:
        yield short(f"this is old: {in_words(seen.why_old)}", width)
    yield f"{short(printable(job.method), 30)}  {job.id}  {coloured(str(job.state_name))}"
    yield short(printable(detail_of(job)), width)
    if progress is not None and not job.state_name.is_final:
        yield short(printable(str(progress)), width)
    if isinstance(job.state, Succeeded) and job.state.not_stored is None:
        yield short(printable(f"result {compact_json(job.state.result)}"), width)
