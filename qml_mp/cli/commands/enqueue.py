"""Client: `qml-mp enqueue`: one job, checked in full before anything is written."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import click

from qml_mp.cli.arguments import as_duration, as_instant, read_payload
from qml_mp.cli.output import note, print_json
from qml_mp.cli.session import Command, Session, pass_session
from qml_mp.handle import JobHandle


@click.command(cls=Command)
@click.argument("method")
@click.argument("arguments", nargs=-1, metavar="[KEY=VALUE]…")
@click.option("--payload", metavar="JSON|-", help="The whole payload as JSON, or - to read it from stdin.")
@click.option("--delay", metavar="DURATION", callback=as_duration, help="Run it so much later.")
@click.option("--at", metavar="TIME", callback=as_instant, help="Run it at that time (ISO 8601).")
@click.option("-q", "--queue", help="The queue; default: the method's own, else 'default'.")
@click.option("--priority", type=int, help="Higher runs first; default 0.")
@click.option(
    "--max-retries", type=int, help="Retries after the first attempt, 0: none; default: the policy decides."
)
@click.option("--timeout", metavar="DURATION", callback=as_duration, help="Limit of one attempt.")
@click.option("--unique-key", metavar="KEY", help="Write nothing when a job that has not ended has this key.")
@click.option(
    "--wait",
    is_flag=True,
    help="Wait for the job and print its result instead of its id.",
)
@click.option(
    "--wait-timeout", metavar="DURATION", callback=as_duration, help="With --wait: how long at most."
)
@pass_session
def enqueue(
    session: Session,
    method: str,
    arguments: tuple[str, ...],
    payload: str | None,
    delay: timedelta | None,
    at: datetime | None,
    wait: bool,
    wait_timeout: timedelta | None,
    **options: Any,
) -> None:
    """Enqueue one job of METHOD and print its id.

    A VALUE that is JSON is taken as such (3, true, null, [1, 2], "3"), any other as text.
    With --wait, a job that succeeded with a result that could not be stored is exit code 1.
    With an app (-A), the method and its arguments are checked against the function's signature;
    without one, the job is enqueued by name alone.
    """
    if delay is not None and at is not None:
        raise click.UsageError("Give either --delay or --at, not both.")
    if wait_timeout is not None and not wait:
        raise click.UsageError("--wait-timeout needs --wait.")
    job = session.make_job(method, read_payload(payload, arguments), delay=delay, at=at, **options)
    storage = session.storage()
    job_id = storage.enqueue(job)
    if not wait:
        click.echo(job_id)
        return
    note(f"waiting for {job_id}")
    print_json(JobHandle(job_id, storage=storage, retention=session.retention()).wait(wait_timeout))
