"""Client: whether a command waits for what it has asked of a server, and for how long."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from qml_mp.cli.arguments import as_duration

no_wait_option = click.option("--no-wait", is_flag=True, help="Ask for it, and do not wait for the end.")


def wait_option(
    default: str, meaning: str = "How long to wait for the end."
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """`--timeout`, whose value is a timedelta."""
    return click.option(
        "--timeout", metavar="DURATION", default=default, callback=as_duration,
        help=f"{meaning} Default: {default}.",
    )  # fmt: skip
