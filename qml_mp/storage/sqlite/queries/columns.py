"""Every process: the columns of a job, as several queries give them."""

from __future__ import annotations

from typing import Final

JOB: Final = """
    id, method, queue, priority, state, payload, metadata, result, max_retries, max_crashes, timeout_us,
    unique_key, created_at, enqueued_at, run_at, started_at, finished_at, expires_at, duration_us, worker_id,
    server_id, claim_seq, failures, crashes, last_error_type, last_error_message, last_error_traceback,
    reason, cancel_reason
"""
