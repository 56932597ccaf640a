"""Client: `qml-mp jobs retry|cancel|delete`: single jobs by their ids, or many by what they are."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

import click

from qml_mp.cli.arguments import as_duration, as_job_ids, with_options
from qml_mp.cli.asking import note_change
from qml_mp.cli.bulk import Asked, change_many
from qml_mp.cli.output import json_option, note, print_json, say, unheard
from qml_mp.cli.selecting import chooses, job_filter, selecting
from qml_mp.cli.session import Command, Session, pass_session
from qml_mp.core.state import StateName
from qml_mp.errors import InvalidTransition, JobFailed, QmlError, ResultNotStored, StorageError, WaitTimeout
from qml_mp.handle import JobHandle, deadline_of
from qml_mp.job_selection import BulkChange
from qml_mp.storage.store import Storage
from qml_mp.units import format_duration
from qml_mp.views.changing import ASKED_TO_END, Changing

_Command = TypeVar("_Command", bound=Callable[..., Any])


def _changes(change: BulkChange) -> Callable[[_Command], _Command]:
    """Decorator: what the three commands take."""
    return with_options(
        click.argument("job_ids", metavar="[ID]…", nargs=-1, callback=as_job_ids),
        selecting((*change.states, *({StateName.PROCESSING} - set(change.states)))),
        click.option("--all", "everything", is_flag=True, help="All jobs, but for what other options say."),
        click.option("--dry-run", is_flag=True, help="Only count them, and show a few."),
        click.option("-y", "--yes", is_flag=True, help="Ask nothing."),
        click.option(
            "--force", is_flag=True,
            help="Also end a running job whose server cannot be seen and may be alive.",
        ),
        json_option,
    )  # fmt: skip


@click.command(cls=Command)
@_changes(BulkChange.RETRY)
@pass_session
def retry(session: Session, **asked: Any) -> None:
    """Enqueue failed jobs again. Their budgets of retries and crashes are fresh.

    Jobs are named by ids, or chosen by options. A running job whose server is gone is given back, charged to
    no budget.
    """
    _change(session, BulkChange.RETRY, Changing.retry, reason="given back from the command line", **asked)


@click.command(cls=Command)
@_changes(BulkChange.CANCEL)
@click.option(
    "--reason", default="cancelled from the command line", show_default=True, help="Kept with the job."
)
@click.option("--wait", is_flag=True, help="Wait until the jobs have ended; only with ids.")
@click.option(
    "--wait-timeout", metavar="DURATION", callback=as_duration, help="With --wait: how long at most."
)
@pass_session
def cancel(session: Session, wait: bool, wait_timeout: timedelta | None, **asked: Any) -> None:
    """Delete jobs that wait; ask the server to end those that run.

    Jobs are named by ids, or chosen by options. A running job whose server is gone ends here and now.
    """
    if wait_timeout is not None and not wait:
        raise click.UsageError("--wait-timeout needs --wait.")
    if wait and not asked["job_ids"]:
        raise click.UsageError("--wait is for jobs that are named by their ids.")

    _change(session, BulkChange.CANCEL, Changing.cancel, wait=wait, wait_timeout=wait_timeout, **asked)


@click.command(cls=Command)
@_changes(BulkChange.DELETE)
@click.option(
    "--reason", default="deleted from the command line", show_default=True, help="Kept with the job."
)
@pass_session
def delete(session: Session, **asked: Any) -> None:
    """Make jobs that do not run Deleted. Their rows go when their time to live is over.

    Jobs are named by ids, or chosen by options. A running job whose server is gone counts as one that does
    not run.
    """
    _change(session, BulkChange.DELETE, Changing.delete, **asked)


def _change(
    session: Session,
    change: BulkChange,
    one: Callable[[Changing, str], str],
    *,
    job_ids: Sequence[str],
    everything: bool,
    reason: str,
    force: bool,
    yes: bool,
    dry_run: bool,
    as_json: bool,
    wait: bool = False,
    wait_timeout: timedelta | None = None,
    **selected: Any,
) -> None:
    is_chosen = chooses(**selected)
    if job_ids and (is_chosen or everything or dry_run):
        raise click.UsageError("Name jobs by their ids, or choose them by options, not both.")
    if not (job_ids or is_chosen or everything):
        raise click.UsageError(
            "Say which jobs: their ids, or --state, --queue, --method, --error, --since, --until, --kind, "
            "--all."
        )
    storage = session.existing_storage()
    retention = session.retention()
    if not job_ids:
        asked = Asked(change=change, reason=reason, force=force, yes=yes, dry_run=dry_run, as_json=as_json)
        change_many(storage, job_filter(storage, **selected), asked, retention=retention)
        return
    changing = Changing.one_by_one(storage, retention=retention, reason=reason, force=force)

    def change_one(job_id: str) -> str:
        told = one(changing, job_id)
        note_change(storage, f"{change} job", job_id, said=told)
        return told

    deadline = deadline_of(wait_timeout)  # one for all
    end_of = partial(_end_of, storage, deadline=deadline, timeout=wait_timeout) if wait else None
    _each(job_ids, change_one, end_of=end_of, as_json=as_json)


def _each(
    job_ids: Sequence[str],
    change: Callable[[str], str],
    *,
    end_of: Callable[[str], str] | None,
    as_json: bool,
) -> None:
    """Change every job, then wait for the `end_of` those that were asked to end: a line on stdout for each
    one done, on stderr for each refused; fail if any was."""
    troubles: list[QmlError] = []

    def told_of(step: Callable[[str], str], job_id: str) -> str | None:
        try:
            return step(job_id)
        except StorageError:
            raise
        except QmlError as error:
            troubles.append(error)
            if len(job_ids) > 1:
                note(str(error))
            return None

    asked: list[str] = []
    for job_id in job_ids:
        told = told_of(change, job_id)
        if told == ASKED_TO_END and end_of is not None:
            asked.append(job_id)
        else:
            _tell(job_id, told, as_json=as_json)
    if end_of is not None:
        for job_id in asked:
            _tell(job_id, told_of(end_of, job_id), as_json=as_json)
    if troubles:
        raise troubles[0] if len(job_ids) == 1 else QmlError(_in_all(troubles, of=len(job_ids)))


def _tell(job_id: str, done: str | None, *, as_json: bool) -> None:
    if done is None:
        return
    with unheard():
        if as_json:
            print_json({"id": job_id, "done": done})
        else:
            say(f"{job_id} {done}")


def _in_all(troubles: Sequence[QmlError], *, of: int) -> str:
    late = sum(isinstance(each, WaitTimeout) for each in troubles)
    left = len(troubles) - late
    sentences = [f"{left} of {of} jobs were left as they were."] if left else []
    if late:
        sentences.append(f"{late} of {of} jobs were asked to end and have not yet.")
    return " ".join(sentences)


def _end_of(storage: Storage, job_id: str, *, deadline: float, timeout: timedelta | None) -> str:
    """Wait for the end of a job that was asked to end."""
    left_s = None if timeout is None else max(0.0, deadline - time.monotonic())
    try:
        JobHandle(job_id, storage=storage).wait(left_s)
    except JobFailed as end:
        if end.state == StateName.DELETED:
            return end.state
        raise InvalidTransition(f"The job {job_id} ended {end.state} before the cancel reached it.") from None
    except ResultNotStored:
        pass  # it has succeeded all the same
    except WaitTimeout:
        waited = format_duration(timeout or timedelta())
        raise WaitTimeout(f"The job {job_id} was asked to end, and has not after {waited}.") from None
    raise InvalidTransition(f"The job {job_id} succeeded before the cancel reached it.")
