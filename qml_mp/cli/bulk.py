"""Client: many jobs changed by one command: counted, asked about, changed in batches, told."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import click

from qml_mp.cli.asking import note_change
from qml_mp.cli.interruption import stopped_between
from qml_mp.cli.job_table import AMONG, print_jobs
from qml_mp.cli.output import note, print_json, report, say, unheard
from qml_mp.core.job import Job
from qml_mp.core.state import StateName
from qml_mp.errors import QmlError, StorageError
from qml_mp.job_selection import BulkChange, JobSelection
from qml_mp.storage.store import Storage
from qml_mp.storage.values import JobFilter, Retention
from qml_mp.units import n_jobs
from qml_mp.views.changing import Changing

_FEW = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """How the command was asked for."""

    change: BulkChange
    reason: str
    force: bool
    yes: bool
    dry_run: bool
    as_json: bool


def change_many(storage: Storage, where: JobFilter, asked: Asked, *, retention: Retention) -> None:
    """Change the jobs that the filter means and that are there now. Raises `QmlError` when some are left as
    they were, or a person says no, `click.Abort` when one stops it."""
    selection = JobSelection(storage, where, retention=retention).for_change(asked.change, running=True)
    counts = selection.counts()
    if asked.dry_run:
        _tell_what_would_be(storage, selection.where, counts, asked)
        return
    if counts and not asked.yes:
        _ask(counts, asked)
    done = _Done(asked=asked, wanted=sum(counts.values()))
    try:
        _change(selection, done, _running(storage, asked, retention))
    except StorageError:
        done.tell_before_the_end()
        raise
    finally:
        if done.changed:
            note_change(storage, f"{asked.change} jobs", where.in_words, said=n_jobs(done.changed))
    left = {state: n for state, n in selection.counts().items() if state is not StateName.PROCESSING}
    done.tell(left=sum(left.values()))


@dataclass(slots=True, kw_only=True)
class _Done:
    """What was done so far."""

    asked: Asked
    wanted: int
    changed: int = 0
    refused: int = 0

    def tell(self, *, left: int) -> None:
        if self.asked.as_json:
            told = {"matched": self.wanted, "changed": self.changed, "left": left + self.refused}
            with unheard():
                print_json(told)
        else:
            report(f"{n_jobs(self.changed)} {_are(self.changed)} {self.asked.change.done}")
        problems = []
        if self.refused:
            problems.append(
                f"Of the running jobs {self.refused} {_are(self.refused)} as before: {self._why_refused}."
            )
        if left:
            problems.append(
                f"{n_jobs(left)} {_are(left)} as before: another job that has not ended carries the same "
                "unique_key, or somebody else was just changing them."
            )
        if problems:
            raise QmlError(" ".join(problems))

    @property
    def _why_refused(self) -> str:
        ended = "they have ended meanwhile"
        if self.asked.change is BulkChange.CANCEL:
            return ended
        return f"{ended}, or may run on a server that is not gone (`qml-mp jobs show ID` tells which)"

    def tell_before_the_end(self) -> None:
        note(
            f"{self.changed} of {self.wanted} jobs {_are(self.changed)} {self.asked.change.done}; the "
            "others are as before. The same command goes on with them"
        )


def _change(selection: JobSelection, done: _Done, running: Callable[[str], str]) -> None:
    shows = sys.stderr.isatty()
    with stopped_between() as is_stopped:
        for batch in selection.in_batches(done.asked.change, reason=done.asked.reason, running=running):
            done.changed += batch.changed
            done.refused += batch.refused
            if is_stopped():
                done.tell_before_the_end()
                raise click.Abort
            if shows:
                click.echo(f"\r{done.changed} of {done.wanted} ", err=True, nl=False)
    if shows and done.wanted:
        click.echo("\r", err=True, nl=False)


def _running(storage: Storage, asked: Asked, retention: Retention) -> Callable[[str], str]:
    """What sees to a job that runs."""
    changing = Changing.many(storage, retention=retention, reason=asked.reason, force=asked.force)
    match asked.change:
        case BulkChange.RETRY:
            return changing.retry_running
        case BulkChange.CANCEL:
            return changing.cancel
        case BulkChange.DELETE:
            return changing.delete_running


def _tell_what_would_be(
    storage: Storage, where: JobFilter, counts: Mapping[StateName, int], asked: Asked
) -> None:
    few = _examples(storage, where)
    total = sum(counts.values())
    if asked.as_json:
        states = {str(state): jobs for state, jobs in counts.items()}
        print_json({"matched": total, "states": states, "examples": [job.id for job in few], "dry_run": True})
        return
    say(f"{n_jobs(total)} would be {asked.change.done}{_by_state(counts)}")
    if few:
        print_jobs(few)


def _examples(storage: Storage, where: JobFilter) -> Sequence[Job]:
    """A few, if there are any, of those that were made last."""
    page = storage.list_jobs(where, limit=_FEW, among=AMONG)
    while not page.jobs and page.next_cursor is not None:
        page = storage.list_jobs(where, limit=_FEW, among=AMONG, after=page.next_cursor)
    return page.jobs


def _ask(counts: Mapping[StateName, int], asked: Asked) -> None:
    total = sum(counts.values())
    if not sys.stdin.isatty():
        raise click.UsageError(
            f"{n_jobs(total)} would be {asked.change.done}{_by_state(counts)}. Nobody can be asked here: "
            "repeat it with --yes, or look with --dry-run first."
        )
    question = f"{n_jobs(total)} will be {asked.change.done}{_by_state(counts)}. Go on?"
    if not click.confirm(question, err=True):
        raise QmlError("Nothing was changed.")


def _by_state(counts: Mapping[StateName, int]) -> str:
    told = ", ".join(f"{jobs} {state}" for state, jobs in counts.items())
    return f" ({told})" if told else ""


def _are(count: int) -> str:
    return "is" if count == 1 else "are"
