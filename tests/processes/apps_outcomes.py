"""Tests: jobs that end in the ways that are told, and policies that decide what comes then."""

from __future__ import annotations

import json
import os
import signal
import time

from qml_mp import QmlApp, RetryPolicy, StateChange

app = QmlApp(retry_policy=RetryPolicy.fixed(60, max_attempts=5, jitter=0))


@app.job(retry=RetryPolicy.fixed(60, never_retry=("OutOfMemory",)))
def eat_memory_once(mib: int) -> int:
    """Fill so much memory and hold it."""
    return _hold(mib)


def write_down(change: StateChange) -> None:
    """Note the transition, and the row that came with it."""
    job = change.job
    told = {
        "change": [str(change.old), str(change.new)],
        "job": {**job.to_json(), "worker": getattr(job.state, "worker_id", None)},
    }
    with open(os.environ["TOLD_FILE"], "a", encoding="utf-8") as file:
        file.write(json.dumps(told) + "\n")


told = QmlApp(retry_policy=RetryPolicy.fixed(0.05, max_attempts=2, jitter=0), on_state_change=write_down)


@told.job()
def do(what: str) -> str:
    """Return, raise, never end, or die."""
    match what:
        case "raise":
            raise ValueError("no luck")
        case "hang":
            time.sleep(600)  # past its time limit
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
    return what


def _hold(mib: int) -> int:
    block = bytearray(mib * 1024 * 1024)
    time.sleep(60)  # long enough to be seen holding it
    return len(block)
