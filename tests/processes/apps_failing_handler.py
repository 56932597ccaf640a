"""Tests: an app that has given the log of what happens to jobs and workers a handler that always fails."""

from __future__ import annotations

import logging

from tests.processes.jobs_app import app as app


class Failing(logging.Handler):
    """Raises by itself, where those of the standard library would print."""

    def emit(self, record: logging.LogRecord) -> None:
        raise RuntimeError("not today")


logging.getLogger("qml_mp.events.log").addHandler(Failing())
