"""Tests, worker: jobs that are held and go back, of which a hook is told that takes its time over them."""

from __future__ import annotations

import os
import sqlite3
import time
from pathlib import Path

from qml_mp import QmlApp, RetryPolicy, StateChange
from qml_mp.core.state import StateName
from tests.processes.journal import JOURNAL
from tests.until import PATIENCE_S

LINGER = "QML_TEST_HOOK_LINGERS"
"""For how many seconds the hook stays with the first claim of each slow job."""


def _on_state_change(change: StateChange) -> None:
    if change.job.method == "slow":
        with (Path(os.environ[JOURNAL]).parent / "hooks").open("a") as file:
            file.write(f"{change.job.id} {change.new}\n")
        if (change.new, change.job.claim_seq) == (StateName.PROCESSING, 1):
            time.sleep(float(os.environ.get(LINGER, "0")))  # the hook's own work


app = QmlApp(retry_policy=RetryPolicy.none(), on_state_change=_on_state_change)
_left_open: list[sqlite3.Connection] = []


@app.job()
def brief(seconds: float = 0.0) -> None:
    """End at once, as a rule."""
    if seconds:
        time.sleep(seconds)  # the job's own work


@app.job()
def slow(seconds: float) -> None:
    """Sleep."""
    time.sleep(seconds)  # the job's own work


@app.job()
def grab(*, rolls_back: bool = False) -> None:
    """Leave a transaction open in which nobody else can write, or end it."""
    path = app.storage.url.removeprefix("sqlite:///")
    connection = sqlite3.connect(path, timeout=PATIENCE_S, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    if rolls_back:
        connection.rollback()
    _left_open.append(connection)
