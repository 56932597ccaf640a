"""Every process: the seventh migration of the SQLite schema: cleanup reads no more than it deletes."""

from __future__ import annotations

from typing import Final

VERSION_7: Final = """
-- What may be deleted. Of locks there may be as many as jobs, and few of them expired.
CREATE INDEX qml_locks_expiring ON qml_locks (expires_at);
CREATE INDEX qml_lost_attempts_ended ON qml_lost_attempts (ended_at)
"""
