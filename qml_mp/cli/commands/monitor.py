"""Client: `qml-mp servers` and `workers`: lists of what is there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import click

from qml_mp.cli.output import age, json_option, local_time, print_json, print_table, say, short
from qml_mp.cli.session import Group, Session, pass_session
from qml_mp.cli.snapshot import ServerView, WorkerView, view_servers
from qml_mp.units import format_size


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
@json_option
@pass_session
def list_workers(session: Session, as_json: bool) -> None:
    """List the workers of every server, with what they run."""
    views = view_servers(session.existing_storage())
    if as_json:
        for view in views:
            for worker in view.workers:
                print_json({**worker.to_json(), "id": worker.info.id, "server_id": view.info.id})
    else:
        print_workers((view.info.name, worker) for view in views for worker in view.workers)


def print_servers(views: Sequence[ServerView]) -> None:
    """Servers as a table."""
    print_table(
        ("SERVER", "HOST", "PID", "STATE", "WORKERS", "QUEUES", "STARTED"),
        (
            (
                view.info.name, view.info.hostname, view.info.process.pid, view.state,
                len(view.workers), ",".join(view.info.queues) or "all", local_time(view.info.started_at),
            )
            for view in views
        ),
    )  # fmt: skip
    for view in views:
        if view.alive and view.info.trouble is not None:
            say(f"{view.info.name} (pid {view.info.process.pid}): {view.info.trouble}")


def print_workers(rows: Iterable[tuple[str, WorkerView]]) -> None:
    """Workers as a table, each with the name of its server; and how far jobs have come, if any says it."""
    rows = list(rows)
    tells = any(worker.progress is not None for _, worker in rows)
    headers = ("SERVER", "WORKER", "PID", "STATE", "METHOD", "JOB", "FOR", "MEMORY")
    print_table(
        (*headers, "PROGRESS") if tells else headers,
        (
            (
                server, worker.info.number, worker.info.process.pid, worker.state,
                None if worker.method is None else short(worker.method, 40),
                None if worker.claim is None else worker.claim.job.id, age(worker.running),
                None if worker.rss_bytes is None else format_size(worker.rss_bytes),
                *([worker.progress and short(str(worker.progress), 40)] if tells else []),
            )
            for server, worker in rows
        ),
    )  # fmt: skip
