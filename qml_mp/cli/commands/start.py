"""Supervisor: `qml-mp start`: flags read, logging set up, and the supervisor run in this process."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import click

from qml_mp.cli.arguments import as_duration, with_options
from qml_mp.cli.session import Command, Session, pass_session
from qml_mp.embedding.early_stop import stop_early_when_told
from qml_mp.embedding.log import StderrHandler
from qml_mp.embedding.log_format import JsonFormatter, TextFormatter
from qml_mp.setting_kinds import Hosts, Queues, Switch
from qml_mp.settings import SETTINGS, ServerConfig
from qml_mp.sources import unknown_variables
from qml_mp.units import format_duration

logger = logging.getLogger(__name__)

_LEVELS = ("debug", "info", "warning", "error")


def _setting(field: str, *flags: str, meaning: str) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """A flag of a field of `ServerConfig`, which says how its value is written and what its default is."""
    kind, default = SETTINGS[field], getattr(ServerConfig(), field)
    if default is not None and field != "queues":  # those of the app are their default
        meaning = f"{meaning} Default: {_shown(default)}."
    if isinstance(kind, Switch):
        return click.option(*flags, field, is_flag=True, default=None, help=meaning)

    def read(_ctx: click.Context, parameter: click.Parameter, given: str | tuple[str, ...] | None) -> object:
        if given is None or given == ():
            return None
        flag, text = parameter.opts[-1], given if isinstance(given, str) else ",".join(given)
        return kind.check(kind.from_text(text, flag), flag)

    many = isinstance(kind, Hosts | Queues)
    return click.option(*flags, field, metavar=kind.in_shell, multiple=many, callback=read, help=meaning)


def _shown(default: object) -> str:
    if isinstance(default, bool):
        return "on" if default else "off"
    return format_duration(default) if isinstance(default, timedelta) else str(default)


_FLAGS = (
    _setting("worker_count", "-w", "--workers", meaning="Worker processes."),
    _setting("queues", "-q", "--queues", meaning='Queues served; default: those of the app, "*" for all.'),
    click.option("--burst", is_flag=True, help="Leave when nothing is left that this server can run now."),
    click.option("--burst-wait", metavar="DURATION", callback=as_duration,
                 help="As --burst, and run what is due within so long from the start first."),
    _setting("preload", "--preload", meaning="Import the app in the supervisor and fork cheap copies."),
    _setting("max_jobs", "--max-jobs", meaning="Replace a worker after so many jobs."),
    _setting("max_memory", "--max-memory", meaning="Replace a worker that holds more memory after a job."),
    _setting("max_memory_hard", "--max-memory-hard",
             meaning="Kill a worker that holds more memory in a job; the job fails."),
    _setting("shutdown_timeout", "--shutdown-timeout", meaning="What stopping allows running jobs."),
    _setting("job_timeout", "--timeout", meaning="Limit of a job without its own."),
    _setting("server_name", "--server-name", meaning="Name shown to people."),
    _setting("enable_scheduler", "--scheduler/--no-scheduler", meaning="Promote due jobs."),
    _setting("enable_recurring", "--recurring/--no-recurring", meaning="Fire due templates."),
    _setting("prune_recurring", "--prune/--no-prune", meaning="Delete templates that the code has no more."),
    _setting("enable_cleanup", "--cleanup/--no-cleanup", meaning="Remove expired jobs."),
    _setting("web", "--web", meaning="Show the page there, from a process beside the server."),
    _setting("web_hosts", "--allow-host", meaning="A name under which the page is reached."),
    _setting("metrics", "--metrics", meaning="As --web, for /metrics, /livez and /readyz."),
    _setting("enable_heartbeat", "--heartbeat/--no-heartbeat", meaning="Send heartbeats."),
)  # fmt: skip


@click.command(cls=Command)
@with_options(*_FLAGS)
@click.option(
    "--reload", "watch", is_flag=True, help="For development: take over new code when a file changes."
)
@click.option(
    "--log-level",
    type=click.Choice(_LEVELS, case_sensitive=False),
    help="Least level that is logged. Default: info.",
)
@click.option(
    "--log-format",
    type=click.Choice(("text", "json")),
    default="text",
    help="Lines of the log. Default: text.",
)
@pass_session
def start(
    session: Session,
    burst: bool,
    burst_wait: timedelta | None,
    watch: bool,
    log_level: str | None,
    log_format: str,
    **config_flags: int | str | bool | timedelta | tuple[str, ...] | None,
) -> int:
    """Start a supervisor with its workers, until a signal stops it.

    TERM and INT stop gracefully (a second one kills now), QUIT stops now, HUP replaces the
    workers one by one, TTIN and TTOU add and remove a worker, USR1 prints every worker's stack,
    USR2 stops claiming. Durations are seconds or text like 90s, 5m or 1h30m.
    """
    stop_early_when_told()
    if watch and config_flags["preload"]:
        raise click.UsageError(
            "Give either --reload or --preload: a program in memory takes over no new code."
        )
    app_spec = session.named_app()
    if app_spec is None:
        raise click.UsageError("No app is named: pass -A module:attribute, or set QML_MP_APP.")
    _configure_logging(verbose=session.verbose, level=log_level, as_json=log_format == "json")
    for sentence in unknown_variables():
        logger.warning(sentence)
    from qml_mp.embedding.start import run_server  # after the usage errors: it brings in the storage drivers

    given: dict[str, Any] = {name: value for name, value in config_flags.items() if value is not None}
    return run_server(
        app_spec=app_spec, url_flag=session.url, config_flags=given,
        burst=timedelta() if burst and burst_wait is None else burst_wait, watch=watch,
    )  # fmt: skip


def _configure_logging(*, verbose: bool, level: str | None, as_json: bool) -> None:
    """Lines on stderr: INFO of everybody, or as `level` says. When verbose, with times and pids, and DEBUG of
    qml-mp unless a level is given."""
    handler = StderrHandler()
    handler.setFormatter(JsonFormatter() if as_json else TextFormatter(detailed=verbose))
    least = (level or "info").upper()
    logging.basicConfig(level=least, handlers=[handler])
    logging.getLogger("qml_mp").setLevel("DEBUG" if verbose and level is None else least)
