"""Every process: callbacks of failures."""

from __future__ import annotations

from typing import Final

from qml_mp.storage.sqlite.queries.common import EARLY_CALL, FREE
from qml_mp.storage.telling_queries import FailureQueries

_WANTED: Final = """
    EXISTS (SELECT 1 FROM qml_failure_hooks AS hook WHERE hook.method = qml_jobs.method AND hook.calls)
"""
_THIS: Final = "job_id = :job_id AND claim_seq = :claim_seq AND tries = :tries"
_GONE: Final = """
    NOT EXISTS (SELECT 1 FROM qml_jobs WHERE id = qml_failure_callbacks.job_id AND +state <> 'deleted')
"""

FAILURES: Final = FailureQueries(
    hooked="""
        SELECT method, calls, traces FROM qml_failure_hooks
        WHERE method IN (SELECT value FROM json_each(:methods))
    """,
    hook="""
        INSERT OR REPLACE INTO qml_failure_hooks (method, calls, traces)
        SELECT value, :calls, :traces FROM json_each(:methods)
    """,
    unhook="DELETE FROM qml_failure_hooks WHERE method IN (SELECT value FROM json_each(:methods))",
    # In the transaction that writes the failure.
    note=f"""
        INSERT OR IGNORE INTO qml_failure_callbacks (job_id, claim_seq, method, due_at)
        SELECT id, claim_seq, method, :now FROM qml_jobs
        WHERE id = :id AND claim_seq = :claim_seq AND state = 'failed' AND {_WANTED}
    """,
    note_all=f"""
        INSERT OR IGNORE INTO qml_failure_callbacks (job_id, claim_seq, method, due_at)
        SELECT id, claim_seq, method, :now FROM qml_jobs
        WHERE id IN (SELECT value FROM json_each(:ids)) AND +state = 'failed' AND {_WANTED}
    """,
    due=f"SELECT 1 FROM qml_failure_callbacks WHERE {FREE} LIMIT 1",
    take=f"""
        UPDATE qml_failure_callbacks SET tries = tries + 1, taken_by = :worker_id, due_at = :now + :lease
        WHERE rowid = (SELECT rowid FROM qml_failure_callbacks WHERE {FREE} ORDER BY due_at LIMIT 1)
          AND EXISTS (SELECT 1 FROM qml_workers WHERE id = :worker_id)
        RETURNING job_id, claim_seq, tries
    """,
    postpone=f"UPDATE qml_failure_callbacks SET taken_by = NULL, due_at = :now + :delay WHERE {_THIS}",
    hasten=f"UPDATE qml_failure_callbacks SET due_at = :now WHERE {EARLY_CALL}",
    end=f"DELETE FROM qml_failure_callbacks WHERE {_THIS}",
    looked_through=f"""
        SELECT job_id, {_GONE} AS is_gone FROM qml_failure_callbacks
        WHERE job_id > :after ORDER BY job_id LIMIT :limit
    """,
    forget=f"""
        DELETE FROM qml_failure_callbacks
        WHERE job_id IN (SELECT value FROM json_each(:ids)) AND {_GONE}
    """,
)
