"""Tests: jobs that end in the ways that are told, and policies that decide what comes then."""

from __future__ import annotations

import time

from qml_mp import QmlApp, RetryPolicy

app = QmlApp(retry_policy=RetryPolicy.fixed(60, max_attempts=5, jitter=0))


@app.job(retry=RetryPolicy.fixed(60, never_retry=("JobTimeout",)))
def eat_memory_unless_time_runs_out(mib: int) -> int:
    """Fill so much memory and hold it."""
    return _hold(mib)


@app.job(retry=RetryPolicy.fixed(60, never_retry=("OutOfMemory",)))
def eat_memory_once(mib: int) -> int:
    """Fill so much memory and hold it."""
    return _hold(mib)


def _hold(mib: int) -> int:
    block = bytearray(mib * 1024 * 1024)
    time.sleep(60)
    return len(block)
