"""Client: `qml-mp jobs`: look at jobs and change what a person may change."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import click

from qml_mp.cli.commands.job_changes import cancel, delete, retry
from qml_mp.cli.failure_table import failure_to_json, print_failures
from qml_mp.cli.job_page import print_job
from qml_mp.cli.job_table import AMONG, print_jobs
from qml_mp.cli.job_watch import watch_job
from qml_mp.cli.output import json_option, local_time, note, print_json
from qml_mp.cli.selecting import job_filter, selecting
from qml_mp.cli.session import Group, Session, pass_session
from qml_mp.cli.watching import as_interval
from qml_mp.core.job import Job, check_job_id
from qml_mp.core.outcome import Attempt
from qml_mp.core.state import StateName
from qml_mp.handle import JobHandle
from qml_mp.storage.store import Storage
from qml_mp.views.changing import not_found


@click.group(cls=Group)
def jobs() -> None:
    """List, show, retry, cancel or delete jobs."""


for change in (retry, cancel, delete):
    jobs.add_command(change)


@jobs.command(name="list")
@selecting()
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True, help="Jobs on a page.")
@click.option(
    "--after", metavar="CURSOR", help="The page after this cursor, which the page before names on stderr."
)
@json_option
@pass_session
def list_jobs(session: Session, limit: int, after: str | None, as_json: bool, **selected: Any) -> None:
    """List jobs, newest first.

    The last column has what failed, how long a job took, when it is due or who runs it. No line is wider
    than the terminal. Of each state the newest 20,000 jobs are looked at for what you ask; where that was not
    all, stderr says how to look further.
    """
    storage = session.existing_storage()
    where = job_filter(storage, **selected)
    page = storage.list_jobs(where, limit=limit, after=after, among=AMONG, brief=not as_json)
    if as_json:
        for job in page.jobs:
            print_json(job.to_json(_attempts(storage, job)))
    else:
        print_jobs(page.jobs)
    if page.looked_to is not None:
        note(
            f"looked at jobs that were created since {local_time(page.looked_to)}; look further with "
            f"--after {page.next_cursor}"
        )
    elif page.next_cursor is not None:
        note(f"there are more; go on with --after {page.next_cursor}")


@jobs.command()
@click.argument("job_id", metavar="ID")
@click.option(
    "--every",
    metavar="DURATION",
    default="500ms",
    show_default=True,
    callback=as_interval,
    help="How often to look.",
)
@json_option
@pass_session
def watch(session: Session, job_id: str, every: timedelta, as_json: bool) -> None:
    """Follow one job to its end: its state and progress.

    Ends with 0 when the job succeeds, with 7 when it does not, and with 1 when its result cannot be stored.
    """
    job_id = check_job_id(job_id)
    storage = session.existing_storage()
    watch_job(storage, job_id, every=every, as_json=as_json)
    JobHandle(job_id, storage=storage).wait(timedelta())


@jobs.command()
@selecting((StateName.FAILED, StateName.AWAITING_RETRY))
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="Kinds at most.")
@json_option
@pass_session
def errors(session: Session, limit: int, as_json: bool, **selected: Any) -> None:
    """Count failed jobs and retries by what failed.

    Failures are of one kind that have the same method, type of error, and line of your code nearest to it. Of
    each kind stand there: how many jobs, the last time, that job's error, the line, and its id.
    """
    storage = session.existing_storage()
    kinds = storage.failure_kinds(job_filter(storage, **selected), limit=limit)
    if as_json:
        for kind in kinds:
            print_json(failure_to_json(kind))
    else:
        print_failures(kinds)


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
        raise not_found(job_id)
    attempts = storage.attempts(job_id)
    progress = storage.progress_of([job.id]).get(job.id)
    if as_json:
        print_json(job.to_json(attempts) | ({} if progress is None else {"progress": progress.to_json()}))
    else:
        print_job(job, attempts, progress)


def _attempts(storage: Storage, job: Job) -> tuple[Attempt, ...]:
    """The history, asked for only where there can be one: a claim that was not just one success."""
    quiet = job.claim_seq == 0 or (job.state_name is StateName.SUCCEEDED and not job.failures + job.crashes)
    return () if quiet else storage.attempts(job.id)
