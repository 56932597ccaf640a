"""Every process: the sixth migration of the PostgreSQL schema: what the page, metrics and traces need."""

from __future__ import annotations

from typing import Final

_ACTS = """
-- What is asked of one run of a server through storage, what came of it, and what people have changed besides
-- (without a server): the audit. Deleted by age.
CREATE TABLE {s}.acts (
    id         text COLLATE "C" PRIMARY KEY,
    what       text NOT NULL,
    subject    text NOT NULL,
    server_id  text COLLATE "C",
    arguments  text,
    asked_by   text NOT NULL,
    asked_from text NOT NULL,
    asked_at   timestamptz NOT NULL DEFAULT now(),
    until      timestamptz,
    state      text COLLATE "C" NOT NULL CHECK (state IN (
        'asked', 'taken', 'done', 'failed', 'expired', 'gone', 'unfinished')),
    taken_at   timestamptz,
    ended_at   timestamptz,
    said       text,
    answer     text,
    CHECK (until BETWEEN '0001-01-02Z' AND '9999-12-30Z')
);
CREATE INDEX acts_of_server ON {s}.acts (server_id) WHERE state IN ('asked', 'taken');
CREATE INDEX acts_by_age ON {s}.acts (asked_at DESC, id DESC);

-- What a server can be asked (a JSON list). NULL: nothing, as of all before this.
ALTER TABLE {s}.servers ADD COLUMN acts text;
"""

_LOST_ATTEMPTS = """
-- What the code of a method wants to be told: of jobs that have failed, of attempts whose worker died. The
-- latter are kept until a worker has exported their spans (facts: JSON, see core/lost_attempt.py).
ALTER TABLE {s}.failure_hooks ADD COLUMN calls boolean NOT NULL DEFAULT true;
ALTER TABLE {s}.failure_hooks ADD COLUMN traces boolean NOT NULL DEFAULT false;
CREATE TABLE {s}.lost_attempts (
    job_id    text COLLATE "C" NOT NULL,
    claim_seq integer NOT NULL,
    method    text COLLATE "C" NOT NULL,
    facts     text NOT NULL,
    ended_at  timestamptz NOT NULL,
    due_at    timestamptz NOT NULL,
    tries     integer NOT NULL DEFAULT 0,
    taken_by  text COLLATE "C",
    PRIMARY KEY (job_id, claim_seq)
);
CREATE INDEX lost_attempts_due ON {s}.lost_attempts (due_at);
"""

_LISTING_OF_WHAT_WAITS = """
-- Listings of what waits for its time, newest first. No other job has an entry in it. The condition that is
-- always true keeps a planner with old statistics from taking it for anything else.
CREATE INDEX jobs_later ON {s}.jobs (state, created_at DESC, id DESC)
    WHERE state IN ('scheduled', 'awaiting_retry') AND id <> '';
"""

_HISTORY = """
-- What came of claims (JSON, see storage/history.py), by minute, ten minutes, hour and day: a row for each
-- period and run of a server, which writes it anew while the period lasts. What all pages read comes first.
CREATE TABLE {s}.history (
    step_s    integer NOT NULL,
    begins_at timestamptz NOT NULL CHECK (begins_at BETWEEN '0001-01-02Z' AND '9999-12-30Z'),
    writer    text COLLATE "C" NOT NULL,
    claims    bigint NOT NULL,
    totals    text NOT NULL,
    queues    text NOT NULL,
    methods   jsonb NOT NULL, -- read one by one
    PRIMARY KEY (step_s, begins_at, writer)
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 200);
CREATE INDEX history_by_age ON {s}.history (begins_at);
"""

_DESCRIPTION = """
-- What a server tells people of itself: JSON, see core/server_description.py.
ALTER TABLE {s}.servers ADD COLUMN description text;
"""

VERSION_6: Final = _ACTS + _LOST_ATTEMPTS + _LISTING_OF_WHAT_WAITS + _HISTORY + _DESCRIPTION
