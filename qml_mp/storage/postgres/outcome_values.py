"""Every process, no I/O: what the statements that end a claim are bound to."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from qml_mp.core.job import Claim
from qml_mp.core.payload import encode_json
from qml_mp.core.state import StateName
from qml_mp.storage.row_change import RowChange
from qml_mp.storage.storable import microseconds


def finish_values(change: RowChange) -> dict[str, Any]:
    """The values of `sql.FINISH` for a change made storable, save the claim's key.

    Raises `InvalidJob` for a result too large."""
    waits = change.state in (StateName.ENQUEUED, StateName.AWAITING_RETRY)
    succeeded = change.state is StateName.SUCCEEDED
    return {
        "state": str(change.state),
        "waits": waits,
        "delay": (change.delay or timedelta()) if change.state is StateName.AWAITING_RETRY else None,
        "ttl": change.ttl,
        "failures": change.failures,
        "crashes": change.crashes,
        "result": encode_json(change.result, what="The result") if succeeded else None,
        "duration_us": None if change.duration is None else microseconds(change.duration),
        "reason": change.reason,
        **_error_values(change),
    }


def attempt_values(claim: Claim, change: RowChange) -> dict[str, Any]:
    """The values of `sql.INSERT_ATTEMPT`, save the claim's key."""
    return {
        "kind": None if change.attempt is None else str(change.attempt),
        "worker": claim.worker_id,
        "pid": change.process.pid,
        "signal": change.process.signal,
        "exit_code": change.process.exit_code,
        "peak_rss_bytes": change.process.peak_rss_bytes,
        "cpu_s": change.process.cpu_s,
        **_error_values(change),
    }


def _error_values(change: RowChange) -> dict[str, Any]:
    error = change.error
    return {
        "failed": error is not None,
        "error_type": error and error.type,
        "error_message": error and error.message,
        "error_traceback": error and error.traceback,
    }
