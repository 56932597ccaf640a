"""Supervisor: logging for people at a terminal or a service manager; the only place that configures it."""

from __future__ import annotations

import logging

from qml_mp.supervisor.log import StderrHandler

_PLAIN = "qml-mp: %(message)s"
_DETAILED = "%(asctime)s %(levelname)s %(process)d %(name)s: %(message)s"


def configure_logging(*, verbose: bool) -> None:
    """Lines on stderr: INFO of qml-mp and WARNING of all others; when verbose DEBUG, with times and pids.

    A stderr that takes no more makes nobody wait: lines are dropped, and counted."""
    handler = StderrHandler()
    handler.setFormatter(logging.Formatter(_DETAILED if verbose else _PLAIN))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("qml_mp").setLevel(logging.DEBUG if verbose else logging.INFO)
