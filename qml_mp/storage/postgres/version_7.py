"""Every process: the seventh migration of the PostgreSQL schema: cleanup reads no more than it deletes."""

from __future__ import annotations

from typing import Final

VERSION_7: Final = """
-- What may be deleted. Of locks there may be as many as jobs, and few of them expired. The condition that is
-- always true keeps a plan that was made while all had expired from looking here for a lock that has a name.
CREATE INDEX locks_expiry ON {s}.locks (expires_at) WHERE expires_at > '-infinity';
CREATE INDEX lost_attempts_ended ON {s}.lost_attempts (ended_at);

-- They come and go as jobs do, and are vacuumed as these are.
ALTER TABLE {s}.locks SET (
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_threshold = 1000,
    autovacuum_vacuum_cost_delay = 1
);
ALTER TABLE {s}.failure_callbacks SET (
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_threshold = 1000,
    autovacuum_vacuum_cost_delay = 1
);
ALTER TABLE {s}.lost_attempts SET (
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_threshold = 1000,
    autovacuum_vacuum_cost_delay = 1
);
"""
