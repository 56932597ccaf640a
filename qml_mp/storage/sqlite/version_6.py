"""Every process: the sixth migration of the SQLite schema: what the page, metrics and traces need."""

from __future__ import annotations

from typing import Final

VERSION_6: Final = """
-- What is asked of one run of a server through storage, what came of it, and what people have changed besides
-- (without a server): the audit. Deleted by age.
CREATE TABLE qml_acts (
    id TEXT NOT NULL PRIMARY KEY,
    what TEXT NOT NULL,
    subject TEXT NOT NULL,
    server_id TEXT,
    arguments TEXT,
    asked_by TEXT NOT NULL,
    asked_from TEXT NOT NULL,
    asked_at INTEGER NOT NULL CHECK (typeof(asked_at) = 'integer'),
    until INTEGER CHECK (typeof(until) IN ('integer', 'null')),
    state TEXT NOT NULL CHECK (
        state IN ('asked', 'taken', 'done', 'failed', 'expired', 'gone', 'unfinished')),
    taken_at INTEGER,
    ended_at INTEGER,
    said TEXT,
    answer TEXT
);
CREATE INDEX qml_acts_of_server ON qml_acts (server_id) WHERE state IN ('asked', 'taken');
CREATE INDEX qml_acts_by_age ON qml_acts (asked_at, id);

-- What a server can be asked (a JSON list). NULL: nothing, as of all before this.
ALTER TABLE qml_servers ADD COLUMN acts TEXT;

-- What the code of a method wants to be told: of jobs that have failed, of attempts whose worker died. The
-- latter are kept until a worker has exported their spans (facts: JSON, see core/lost_attempt.py).
ALTER TABLE qml_failure_hooks ADD COLUMN calls INTEGER NOT NULL DEFAULT 1;
ALTER TABLE qml_failure_hooks ADD COLUMN traces INTEGER NOT NULL DEFAULT 0;
CREATE TABLE qml_lost_attempts (
    job_id TEXT NOT NULL,
    claim_seq INTEGER NOT NULL,
    method TEXT NOT NULL,
    facts TEXT NOT NULL,
    ended_at INTEGER NOT NULL,
    due_at INTEGER NOT NULL,
    tries INTEGER NOT NULL DEFAULT 0,
    taken_by TEXT,
    PRIMARY KEY (job_id, claim_seq)
);
CREATE INDEX qml_lost_attempts_due ON qml_lost_attempts (due_at);

-- Listings of what waits for its time, newest first. No other job has an entry in it.
CREATE INDEX qml_jobs_later ON qml_jobs (state, created_at, id)
    WHERE (state = 'scheduled' OR state = 'awaiting_retry');

-- What came of claims (JSON, see storage/history.py), by minute, ten minutes, hour and day: a row for each
-- period and run of a server, which writes it anew while the period lasts. What all pages read comes first.
CREATE TABLE qml_history (
    step_s INTEGER NOT NULL,
    begins_at INTEGER NOT NULL CHECK (typeof(begins_at) = 'integer'),
    writer TEXT NOT NULL,
    claims INTEGER NOT NULL,
    totals TEXT NOT NULL,
    queues TEXT NOT NULL,
    methods TEXT NOT NULL,
    PRIMARY KEY (step_s, begins_at, writer)
);
CREATE INDEX qml_history_by_age ON qml_history (begins_at);

-- What a server tells people of itself: JSON, see core/server_description.py.
ALTER TABLE qml_servers ADD COLUMN description TEXT
"""
