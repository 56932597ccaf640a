"""Every process: the columns of a job, as several queries give them, and what tells of a commit."""

from __future__ import annotations

from typing import Final

from qml_mp.core.job import MAX_METHOD_CHARS

JOB: Final = """
    j.id, j.method, j.queue, j.priority, j.state, j.payload, j.metadata, j.result, j.max_retries,
    j.max_crashes, j.timeout_us, j.unique_key, j.created_at, j.enqueued_at, j.run_at, j.started_at,
    j.finished_at, j.expires_at, j.duration_us, j.worker_id, j.server_id, j.claim_seq, j.failures, j.crashes,
    j.last_error_type, j.last_error_message, j.last_error_traceback, j.reason, j.cancel_reason
"""

TELL_IF_ANY: Final = "CASE WHEN count(*) > 0 THEN pg_notify(%(channel)s, '') END AS told"

# How methods are told apart. Cut, because an index takes no text of any length; longer than any name that a
# program can register, so that those are whole.
METHOD_NAME: Final = f'left(j.method, {MAX_METHOD_CHARS + 1}) COLLATE "C"'
