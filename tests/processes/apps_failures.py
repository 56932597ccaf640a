"""Tests: jobs that fail in several ways, and a function that is called for them."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from qml_mp import ErrorInfo, Job, QmlApp, RetryPolicy

app = QmlApp()


def _told() -> Path:
    return Path(os.environ["QML_TEST_JOURNAL"]).parent / "told"


@app.job(retry=RetryPolicy.none())
def fails() -> None:
    raise ValueError("no")


@app.job(max_crashes=1)
def dies() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@app.on_failure
def tell(job: Job, error: ErrorInfo) -> None:
    """One line for each call."""
    with _told().open("a") as file:
        file.write(f"{job.id} {job.state_name} {error.type} {os.getpid()}\n")
