"""Client: `qml-mp top`: the whole system live. Its terminal is drawn by rich, which is an extra."""

from __future__ import annotations

import sys
from datetime import timedelta
from importlib.util import find_spec

import click

from qml_mp.cli.session import Command, Session, pass_session
from qml_mp.cli.watching import as_interval
from qml_mp.errors import ConfigurationError

_INSTEAD = "`qml-mp status --watch` shows the same without keys"


@click.command(cls=Command)
@click.option(
    "--every",
    metavar="DURATION",
    default="1s",
    show_default=True,
    callback=as_interval,
    help="How often to look.",
)
@pass_session
def top(session: Session, every: timedelta) -> None:
    """Show workers, queues and the newest failures live; cancel, retry and pause by keys.

    Tab goes from list to list, the arrows (or j and k) choose a row. c cancels the job of a worker, r retries
    the newest job of a failure, p pauses or resumes a queue, each after a yes; q leaves.

    ended/min is how many jobs ended in the newest whole minute, as servers count it for the history.
    """
    if find_spec("rich") is None:
        raise ConfigurationError(
            f"`qml-mp top` needs the extra `top`: pip install 'qml-mp[top]'. {_INSTEAD}."
        )
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise click.UsageError(f"`top` needs a terminal. {_INSTEAD}.")
    from rich.console import Console

    from qml_mp.cli.top.loop import run_top

    if Console().is_dumb_terminal:
        raise click.UsageError(
            "`top` needs a terminal that it can draw on, and TERM says that this is none. "
            "`qml-mp status` shows the same once."
        )

    storage = session.existing_storage()
    run_top(storage, retention=session.retention(), every=every)
