"""Client: `qml-mp jobs`: look at jobs and change what a person may change."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta

import click

from qml_mp.cli.arguments import as_duration, as_job_ids
from qml_mp.cli.job_page import print_job
from qml_mp.cli.job_table import print_jobs
from qml_mp.cli.output import json_option, note, print_json, say
from qml_mp.cli.running import end_claim, owner_of
from qml_mp.cli.session import Group, Session, pass_session
from qml_mp.client import JobHandle
from qml_mp.core.job import Job, check_job_id
from qml_mp.core.outcome import Attempt, Cancelled, Outcome, Release
from qml_mp.core.state import StateName
from qml_mp.errors import InvalidTransition, JobFailed, JobNotFound, QmlError, StorageError
from qml_mp.storage.store import Storage
from qml_mp.storage.values import CancelResult, JobFilter, Retention

_force = click.option(
    "--force", is_flag=True, help="Also end a running job whose server cannot be seen and may be alive."
)


@click.group(cls=Group)
def jobs() -> None:
    """List, show, retry, cancel or delete jobs."""


@jobs.command(name="list")
@click.option(
    "--state", "states", multiple=True, type=click.Choice([str(state) for state in StateName]),
    help="Only jobs in this state; may be repeated.",
)  # fmt: skip
@click.option("-q", "--queue", help="Only jobs of this queue.")
@click.option("--method", help="Only jobs of this method.")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True, help="Jobs on a page.")
@click.option(
    "--after", metavar="CURSOR", help="The page after this cursor, which the page before names on stderr."
)
@json_option
@pass_session
def list_jobs(
    session: Session,
    states: Sequence[str],
    queue: str | None,
    method: str | None,
    limit: int,
    after: str | None,
    as_json: bool,
) -> None:
    """List jobs, newest first.

    The last column has what failed, how long a job took, when it is due or who runs it. No line is wider
    than the terminal.
    """
    storage = session.existing_storage()
    where = JobFilter(states=[StateName(state) for state in states], queue=queue, method=method)
    page = storage.list_jobs(where, limit=limit, after=after)
    if as_json:
        for job in page.jobs:
            print_json(job.to_json(_attempts(storage, job)))
    else:
        print_jobs(page.jobs)
    if page.next_cursor is not None:
        note(f"there are more; go on with --after {page.next_cursor}")


@jobs.command()
@click.argument("job_id", metavar="ID")
@json_option
@pass_session
def show(session: Session, job_id: str, as_json: bool) -> None:
    """Show one job: payload, result and attempts that did not succeed."""
    job_id = check_job_id(job_id)
    storage = session.existing_storage()
    job = storage.get(job_id)
    if job is None:
        raise _not_found(job_id)
    attempts = storage.attempts(job_id)
    progress = storage.progress_of([job.id]).get(job.id)
    if as_json:
        print_json(job.to_json(attempts) | ({} if progress is None else {"progress": progress.to_json()}))
    else:
        print_job(job, attempts, progress)


@jobs.command()
@click.argument("job_ids", metavar="ID…", nargs=-1, required=True, callback=as_job_ids)
@_force
@pass_session
def retry(session: Session, job_ids: Sequence[str], force: bool) -> None:
    """Enqueue failed jobs again. Their budgets of retries and crashes are fresh.

    A running job whose server is gone is given back, charged to no budget.
    """
    storage = session.existing_storage()
    retention = session.retention()

    def retry_one(job_id: str) -> str:
        try:
            return str(storage.retry(job_id).state_name)
        except InvalidTransition as refused:
            given_back = Release(reason="given back from the command line")
            return _end_left_behind(storage, job_id, given_back, refused, retention=retention, force=force)

    _each(job_ids, retry_one)


@jobs.command()
@click.argument("job_ids", metavar="ID…", nargs=-1, required=True, callback=as_job_ids)
@click.option(
    "--reason", default="cancelled from the command line", show_default=True, help="Kept with the job."
)
@click.option("--wait", is_flag=True, help="Wait until the jobs have ended.")
@click.option(
    "--wait-timeout", metavar="DURATION", callback=as_duration, help="With --wait: how long at most."
)
@_force
@pass_session
def cancel(
    session: Session,
    job_ids: Sequence[str],
    reason: str,
    wait: bool,
    wait_timeout: timedelta | None,
    force: bool,
) -> None:
    """Delete jobs that wait; ask the server to end those that run.

    A running job whose server is gone ends here and now.
    """
    if wait_timeout is not None and not wait:
        raise click.UsageError("--wait-timeout needs --wait.")
    storage = session.existing_storage()
    retention = session.retention()

    def cancel_one(job_id: str) -> str:
        match storage.request_cancel(job_id, reason=reason, retention=retention):
            case CancelResult.DELETED:
                return "deleted"
            case CancelResult.REQUESTED:
                owner = owner_of(storage, job_id)
                if owner is not None and not owner.runs and (force or not owner.may_run):
                    cancelled = Cancelled(reason=reason)
                    return end_claim(storage, owner, cancelled, retention=retention, force=force)
                handle = JobHandle(job_id, storage=storage, retention=retention)
                return _end_of(handle, wait_timeout) if wait else "asked to end"
            case CancelResult.NOT_FOUND:
                raise _not_found(job_id)
            case CancelResult.ALREADY_FINAL:
                raise InvalidTransition(f"The job {job_id} has ended already; it is as it was.")

    _each(job_ids, cancel_one)


@jobs.command()
@click.argument("job_ids", metavar="ID…", nargs=-1, required=True, callback=as_job_ids)
@click.option(
    "--reason", default="deleted from the command line", show_default=True, help="Kept with the job."
)
@_force
@pass_session
def delete(session: Session, job_ids: Sequence[str], reason: str, force: bool) -> None:
    """Make jobs that do not run Deleted. Their rows go when their time to live is over.

    A running job whose server is gone counts as one that does not run.
    """
    storage = session.existing_storage()
    retention = session.retention()

    def delete_one(job_id: str) -> str:
        try:
            return str(storage.delete(job_id, reason=reason, retention=retention).state_name)
        except InvalidTransition as refused:
            cancelled = Cancelled(reason=reason)
            return _end_left_behind(storage, job_id, cancelled, refused, retention=retention, force=force)

    _each(job_ids, delete_one)


def _end_left_behind(
    storage: Storage,
    job_id: str,
    outcome: Outcome,
    refused: InvalidTransition,
    *,
    retention: Retention,
    force: bool,
) -> str:
    """After a transition was refused: if it was because the job runs, end its claim should its server be
    gone. Else raise the refusal."""
    owner = owner_of(storage, job_id)
    if owner is None:
        raise refused
    return end_claim(storage, owner, outcome, retention=retention, force=force)


def _each(job_ids: Sequence[str], change: Callable[[str], str]) -> None:
    """Change every job: a line on stdout for each one done, on stderr for each refused; fail if any was."""
    refused: list[QmlError] = []
    for job_id in job_ids:
        try:
            say(f"{job_id} {change(job_id)}")
        except StorageError:
            raise
        except QmlError as error:
            refused.append(error)
            if len(job_ids) > 1:
                note(str(error))
    if refused:
        raise (
            refused[0]
            if len(job_ids) == 1
            else QmlError(f"{len(refused)} of {len(job_ids)} jobs were left as they were.")
        )


def _end_of(handle: JobHandle, timeout: timedelta | None) -> str:
    """Wait for the end of a job that was asked to end."""
    try:
        handle.wait(timeout)
    except JobFailed as end:
        if end.state == StateName.DELETED:
            return end.state
        raise InvalidTransition(
            f"The job {handle.id} ended {end.state} before the cancel reached it."
        ) from None
    raise InvalidTransition(f"The job {handle.id} succeeded before the cancel reached it.")


def _attempts(storage: Storage, job: Job) -> tuple[Attempt, ...]:
    """The history, asked for only where there can be one: a claim that was not just one success."""
    quiet = job.claim_seq == 0 or (job.state_name is StateName.SUCCEEDED and not job.failures + job.crashes)
    return () if quiet else storage.attempts(job.id)


def _not_found(job_id: str) -> JobNotFound:
    return JobNotFound(f"No job has the id {job_id}; it may have been removed after its time to live.")
