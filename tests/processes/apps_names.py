"""Tests: an app whose names and errors hold what a terminal, a log or a process list might obey."""

from __future__ import annotations

import time

from qml_mp import QmlApp, RetryPolicy

NASTY = "evil\nqml-mp: FORGED \x1b[2J\x9b31m\r\u202e\u2028"
METHOD = f"work {NASTY}"

app = QmlApp()


@app.job(name=METHOD, retry=RetryPolicy.none())
def work(seconds: float = 0) -> None:
    """Run for so long and fail with the text."""
    time.sleep(seconds)  # the job's own work
    raise ValueError(NASTY)
