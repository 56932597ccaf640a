"""Client: `qml-mp enqueue`: one job, checked in full before anything is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Any

import click

from qml_mp.cli.arguments import as_duration, as_instant, as_json, read_payload
from qml_mp.cli.output import note, print_json
from qml_mp.cli.session import Command, Session, pass_session
from qml_mp.core.job import Job
from qml_mp.core.options import JOB_OPTIONS
from qml_mp.core.payload import JsonValue
from qml_mp.core.state import StateName
from qml_mp.errors import StorageError
from qml_mp.handle import JobHandle, deadline_of
from qml_mp.storage.store import Storage
from qml_mp.storage.values import BY_DEFAULT, MethodStats
from qml_mp.views.servers import view_servers
from qml_mp.views.waiting import waiting_in_words, without_a_server

_A_WHILE = timedelta(seconds=5)
_SHORT_FLAGS = MappingProxyType({"queue": "-q"})
_BY_KIND: Mapping[type, dict[str, Any]] = MappingProxyType({
    int: {"type": int, "metavar": "N"},
    str: {"metavar": "TEXT"},
    timedelta: {"metavar": "DURATION", "callback": as_duration},
    datetime: {"metavar": "TIME", "callback": as_instant},
    dict: {"metavar": "JSON", "callback": as_json},
})  # fmt: skip
"""How an option of a job is written in a shell, by what the job holds it as."""


def _with_job_options(command: Callable[..., None]) -> Callable[..., None]:
    for name, option in reversed(list(JOB_OPTIONS.items())):
        flags = [*filter(None, [_SHORT_FLAGS.get(name)]), "--" + name.replace("_", "-")]
        command = click.option(*flags, name, help=option.meaning, **_BY_KIND[option.kind])(command)
    return command


@click.command(cls=Command)
@click.argument("method")
@click.argument("arguments", nargs=-1, metavar="[KEY=VALUE]…")
@click.option("--payload", metavar="JSON|-", help="The whole payload as JSON, or - to read it from stdin.")
@_with_job_options
@click.option("--wait", is_flag=True, help="Wait for the job and print its result instead of its id.")
@click.option(
    "--wait-timeout", metavar="DURATION", callback=as_duration, help="With --wait: how long at most."
)
@pass_session
def enqueue(
    session: Session,
    method: str,
    arguments: tuple[str, ...],
    payload: str | None,
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
    if options["delay"] is not None and options["at"] is not None:
        raise click.UsageError("Give either --delay or --at, not both.")
    if wait_timeout is not None and not wait:
        raise click.UsageError("--wait-timeout needs --wait.")
    job = session.make_job(method, read_payload(payload, arguments), **options)
    replaces = job.on_conflict == "replace"
    with session.storage_to_write() as storage:
        job_id = storage.enqueue(job, retention=session.retention() if replaces else BY_DEFAULT)
    if job_id != job.id:
        note(f"an earlier job with the unique key {job.unique_key!r} is kept; this one was not enqueued")
    if not wait:
        click.echo(job_id)
        return
    note(f"waiting for {job_id}")
    handle = JobHandle(job_id, storage=storage, method=job.method)
    print_json(_wait_for_ever(handle, storage) if wait_timeout is None else handle.wait(wait_timeout))


def _wait_for_ever(handle: JobHandle[JsonValue], storage: Storage) -> JsonValue:
    """Its result. That no server would run it is told after a while: nothing else would ever say so."""
    with handle.ends.wait([handle.id]) as waiting:  # once: only the first look of all raises in an outage
        ended = waiting.next_ended(deadline=deadline_of(_A_WHILE))
        if not ended:
            with suppress(StorageError):
                _note_what_it_lacks(handle.job(), storage)
            ended = waiting.next_ended(deadline=deadline_of(None))
    return handle.outcome(ended[handle.id])


def _note_what_it_lacks(job: Job, storage: Storage) -> None:
    if job.state_name is not StateName.ENQUEUED:
        return
    servers = view_servers(storage)
    waits = [MethodStats(queue=job.queue, method=job.method, enqueued=1)]
    for line in waiting_in_words(waits, without_a_server(waits, servers), servers):
        note(f"{line}; still waiting")
