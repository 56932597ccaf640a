"""Client: `qml-mp servers` and `workers`: lists of what is there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import timedelta

import click

from qml_mp.cli.fitting import fitted, terminal_width
from qml_mp.cli.output import age, json_option, local_time, print_json, print_table, say, short
from qml_mp.cli.session import Group, Session, pass_session
from qml_mp.cli.watching import show_once_or_watch, watch_option
from qml_mp.units import format_size
from qml_mp.views.servers import ServerView, WorkerView, view_servers


@click.group(cls=Group)
def servers() -> None:
    """List servers."""


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


@click.group(cls=Group)
def workers() -> None:
    """List workers."""


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

    show_once_or_watch(show, watch)


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
