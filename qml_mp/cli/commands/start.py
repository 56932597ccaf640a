"""Supervisor: `qml-mp start`: flags read, logging set up, and the supervisor run in this process."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import click

from qml_mp.cli.arguments import as_duration, as_queues, as_size
from qml_mp.cli.session import Command, Session, pass_session
from qml_mp.embedding.log import StderrHandler
from qml_mp.sources import load_app_spec

_PLAIN = "qml-mp: %(message)s"
_DETAILED = "%(asctime)s %(levelname)s %(process)d %(name)s: %(message)s"

_FLAGS = (  # all but --burst are settings, each under the name of its field
    click.option("-w", "--workers", "worker_count", type=int, metavar="N",
                 help="Worker processes; default 5."),
    click.option("-q", "--queues", metavar="A,B", callback=as_queues,
                 help='Queues served; default: those of the app, "*" for all.'),
    click.option("--burst", is_flag=True, help="Leave when nothing is left that this server can run now."),
    click.option("--preload", is_flag=True, default=None,
                 help="Import the app in the supervisor and fork cheap copies."),
    click.option("--max-jobs", type=int, metavar="N", help="Replace a worker after so many jobs."),
    click.option("--max-memory", metavar="SIZE", callback=as_size,
                 help="Replace a worker that holds more memory after a job."),
    click.option("--max-memory-hard", metavar="SIZE", callback=as_size,
                 help="Kill a worker that holds more memory in a job; the job fails."),
    click.option("--shutdown-timeout", metavar="D", callback=as_duration,
                 help="What stopping allows running jobs; default 30s."),
    click.option("--timeout", "job_timeout", metavar="D", callback=as_duration,
                 help="Limit of a job without its own; default 5m."),
    click.option("--server-name", metavar="NAME", help="Name shown to people; default qml-server."),
    click.option("--scheduler/--no-scheduler", "enable_scheduler", default=None,
                 help="Promote due jobs; default on."),
    click.option("--recurring/--no-recurring", "enable_recurring", default=None,
                 help="Fire due templates; default on."),
    click.option("--cleanup/--no-cleanup", "enable_cleanup", default=None,
                 help="Remove expired jobs; default on."),
    click.option("--heartbeat/--no-heartbeat", "enable_heartbeat", default=None, help="Default: on."),
)  # fmt: skip


def _with_flags(command: Callable[..., int]) -> Callable[..., int]:
    for flag in reversed(_FLAGS):
        command = flag(command)
    return command


@click.command(cls=Command)
@_with_flags
@pass_session
def start(
    session: Session, burst: bool, **config_flags: int | str | bool | timedelta | tuple[str, ...] | None
) -> int:
    """Start a supervisor with its workers, until a signal stops it.

    TERM and INT stop gracefully (a second one kills now), QUIT stops now, HUP replaces the
    workers one by one, TTIN and TTOU add and remove a worker, USR1 prints every worker's stack,
    USR2 stops claiming. Durations are seconds or text like 90s, 5m or 1h30m.
    """
    app_spec = load_app_spec(session.app_spec)
    if app_spec is None:
        raise click.UsageError("No app is named: pass -A module:attribute, or set QML_MP_APP.")
    _configure_logging(verbose=session.verbose)
    from qml_mp.embedding.start import run_server  # after the usage errors: it brings in the storage drivers

    given: dict[str, Any] = {name: value for name, value in config_flags.items() if value is not None}
    code: int = run_server(app_spec=app_spec, url_flag=session.url, config_flags=given, burst=burst)
    return code


def _configure_logging(*, verbose: bool) -> None:
    """Lines on stderr: INFO of qml-mp and WARNING of all others; when verbose DEBUG, with times and pids."""
    handler = StderrHandler()
    handler.setFormatter(logging.Formatter(_DETAILED if verbose else _PLAIN))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("qml_mp").setLevel(logging.DEBUG if verbose else logging.INFO)
