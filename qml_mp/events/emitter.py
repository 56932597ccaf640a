"""Every process: the one place from which its facts go to whoever is told of them."""

from __future__ import annotations

import logging
from collections.abc import Callable

from qml_mp.events.facts import Event
from qml_mp.events.log import log_event

Subscriber = Callable[[Event], None]
"""Is told of each fact once, in the order in which they happen, by the one thread of its process and before
that goes on: a worker between two jobs, a supervisor between two steps of its loop. So it must not wait, use
the storage, fork or emit. What it raises is logged once, and the others are told all the same."""

logger = logging.getLogger(__name__)


class Emitter:
    """That of one process, made after the fork."""

    def __init__(self, *subscribers: Subscriber) -> None:
        self._subscribers = subscribers
        self._has_raised = set[Subscriber]()

    def emit(self, event: Event) -> None:
        """Tell everybody. Raises nothing."""
        for subscriber in self._subscribers:
            try:
                subscriber(event)
            except Exception:
                if subscriber not in self._has_raised:
                    name = type(event).__name__
                    logger.exception("A subscriber failed at %s; its next failures are not told", name)
                self._has_raised.add(subscriber)


def new_emitter(*counts: Subscriber) -> Emitter:
    """An emitter with everybody who is told of the facts of this process: the log, and `counts` of them."""
    return Emitter(log_event, *counts)
