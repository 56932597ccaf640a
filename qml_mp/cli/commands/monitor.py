"""Client: `qml-mp servers` and `workers`: lists of what is there, and what a server is asked to do, wherever
it runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any

import click

from qml_mp.cli.asking import ask, asker, called, server_called, tell
from qml_mp.cli.fitting import fitted, terminal_width
from qml_mp.cli.output import age, json_option, local_time, print_json, print_table, say, short
from qml_mp.cli.session import Group, Session, pass_session
from qml_mp.cli.waiting_options import no_wait_option, wait_option
from qml_mp.cli.watching import show_once_or_watch, watch_option
from qml_mp.core.acts import ActKind, ActRequest
from qml_mp.core.server_info import WorkerInfo
from qml_mp.storage.store import Storage
from qml_mp.units import format_size, is_whole_number
from qml_mp.views.servers import ServerView, WorkerView, view_servers

_SOON = timedelta(seconds=45)
"""A little longer than a server has to take what it is asked."""


@click.group(cls=Group)
def servers() -> None:
    """List servers; have one claim nothing, go on, or drain, on whatever machine."""


@servers.command(name="list")
@json_option
@pass_session
def list_servers(session: Session, as_json: bool) -> None:
    """List the registered servers, oldest first."""
    views = view_servers(session.existing_storage())
    if as_json:
        for view in views:
            print_json(
                {
                    **view.to_json(),
                    "queues": list(view.info.queues),
                    "methods": None if view.info.methods is None else list(view.info.methods),
                    "started_at": view.info.started_at.isoformat(),
                    "last_heartbeat": view.info.last_heartbeat.isoformat(),
                }
            )
    else:
        print_servers(views)


@servers.command()
@click.argument("server", metavar="NAME|ID")
@pass_session
def pause(session: Session, server: str) -> int:
    """Have a server claim nothing more, until it is resumed or restarted. Jobs that run go on."""
    return _ask(session, server, ActKind.PAUSE, wait=_SOON)


@servers.command()
@click.argument("server", metavar="NAME|ID")
@pass_session
def resume(session: Session, server: str) -> int:
    """End the pause of a server, or its drain."""
    return _ask(session, server, ActKind.RESUME, wait=_SOON)


@servers.command()
@click.argument("server", metavar="NAME|ID")
@click.option("--stop", "then_stop", is_flag=True, help="Stop it, once nothing is left.")
@no_wait_option
@wait_option("10m")
@pass_session
def drain(session: Session, server: str, then_stop: bool, no_wait: bool, timeout: timedelta) -> int:
    """Have a server claim nothing more, and wait until it has ended what it had claimed.

    Unlike a stop, that gives its jobs all the time that they need. Afterwards it is paused; `servers resume`
    ends that.
    """
    wait = None if no_wait else timeout
    return _ask(session, server, ActKind.DRAIN, wait=wait, then_stop=then_stop)


@click.group(cls=Group)
def workers() -> None:
    """List workers, replace one."""


@workers.command()
@click.argument("worker", metavar="ID|SERVER/NUMBER")
@no_wait_option
@wait_option("10m")
@pass_session
def replace(session: Session, worker: str, no_wait: bool, timeout: timedelta) -> int:
    """Replace one worker: it leaves after its job, once another is ready.

    Workers are named as `workers list --json` has their ids, or by their server and number: web/3.
    """
    storage = session.existing_storage()
    found = _worker_called(storage, worker)
    wait = None if no_wait else timeout
    return _ask(session, found.server_id, ActKind.REPLACE, wait=wait, worker_id=found.id)


@workers.command(name="list")
@watch_option
@json_option
@pass_session
def list_workers(session: Session, watch: timedelta | None, as_json: bool) -> None:
    """List the workers of every server, with what they run."""
    storage = session.existing_storage()

    def show() -> None:
        views = view_servers(storage)
        if not as_json:
            print_workers((view.info.name, worker) for view in views for worker in view.workers)
            return
        for view in views:
            for worker in view.workers:
                print_json({**worker.to_json(), "id": worker.info.id, "server_id": view.info.id})

    show_once_or_watch(show, watch, as_json=as_json)


def _ask(session: Session, name: str, kind: ActKind, *, wait: timedelta | None, **asked: Any) -> int:
    storage = session.existing_storage()
    server = server_called(storage, name, kind)
    request = ActRequest(kind=kind, server_id=server.id, by=asker(), **asked)
    return tell(called(server), ask(storage, request, wait=wait), waited=wait is not None)


def _worker_called(storage: Storage, name: str) -> WorkerInfo:
    server_name, slash, number = name.rpartition("/")
    workers = storage.list_workers()
    if slash and is_whole_number(number):
        server = server_called(storage, server_name, ActKind.REPLACE)
        found = [each for each in workers if each.server_id == server.id and each.number == int(number)]
        # Of one that is just being replaced, the one that stays.
        found = sorted(found, key=lambda each: each.started_at)[-1:]
    else:
        found = [each for each in workers if each.id == name]
    if not found:
        raise click.ClickException(
            f"No worker is called {name!r}; `qml-mp workers list` shows those that there are."
        )
    return found[0]


def print_servers(views: Sequence[ServerView]) -> None:
    """Servers as a table."""
    columns: dict[str, Sequence[object]] = {
        "SERVER": [view.info.name for view in views],
        "HOST": [view.info.hostname for view in views],
        "PID": [view.info.process.pid for view in views],
        "STATE": [view.state for view in views],
        "WORKERS": [len(view.workers) for view in views],
        "QUEUES": [",".join(view.info.queues) or "all" for view in views],
        "STARTED": [local_time(view.info.started_at) for view in views],
    }
    print_table(
        *fitted(
            columns, width=terminal_width(), drop=("STARTED", "HOST", "WORKERS"),
            shrink={"QUEUES": 8, "STATE": 9, "SERVER": 10},
        )
    )  # fmt: skip
    for view in views:
        if view.alive and view.info.trouble is not None:
            say(f"{view.info.name} (pid {view.info.process.pid}): {view.info.trouble}")


def print_workers(rows: Iterable[tuple[str, WorkerView]]) -> None:
    """Workers as a table, each with the name of its server; and how far jobs have come, if any says it."""
    servers, workers = [], []
    for server, worker in rows:
        servers.append(server)
        workers.append(worker)
    columns: dict[str, Sequence[object]] = {
        "SERVER": servers,
        "WORKER": [worker.info.number for worker in workers],
        "PID": [worker.info.process.pid for worker in workers],
        "STATE": [worker.state for worker in workers],
        "METHOD": [None if worker.method is None else short(worker.method, 40) for worker in workers],
        "JOB": [None if worker.claim is None else worker.claim.job.id for worker in workers],
        "FOR": [age(worker.running) for worker in workers],
        "MEMORY": [None if worker.rss_bytes is None else format_size(worker.rss_bytes) for worker in workers],
    }
    if any(worker.progress is not None for worker in workers):
        columns["PROGRESS"] = [worker.progress and short(str(worker.progress), 40) for worker in workers]
    one_server = ("SERVER",) if len(set(servers)) == 1 else ()
    print_table(
        *fitted(
            columns, width=terminal_width(), drop=("PID", *one_server, "STATE", "MEMORY", "FOR", "SERVER"),
            shrink={"PROGRESS": 12, "METHOD": 8, "SERVER": 10},
        )
    )  # fmt: skip
