"""Supervisor: whether its workers claim: paused and resumed by a signal, or from another machine."""

from __future__ import annotations

import logging

from qml_mp.supervisor.run import Run

logger = logging.getLogger(__name__)


def pause_claims(run: Run, paused: bool) -> None:
    """Have no worker claim until told otherwise, or end that; the registry says so."""
    run.pool.pause(paused)
    run.registration.pause(paused)
    logger.info("Claims are %s", "paused" if paused else "resumed")
