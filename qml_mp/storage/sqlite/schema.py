"""Every process: the numbered migrations of the SQLite schema.

The tables live in the user's own database beside others, hence the prefix. All JSON is TEXT and all
instants are INTEGER microseconds since 1970 in UTC, so that rows compare by their values alone.
The CHECKs hold off raw rows that no statement here could order or fence, or that would cost every reader
its memory. What a payload says is not checked, because a job whose payload cannot be read has to end
Failed where people see it.
"""

from __future__ import annotations

from typing import Final

from qml_mp.storage.migrate import Migration
from qml_mp.storage.sqlite.version_6 import VERSION_6
from qml_mp.storage.sqlite.version_7 import VERSION_7

# Whether the table of versions is there; asked first, because a SELECT from a missing table is an error.
HAS_VERSIONS: Final = (
    "SELECT count(*) FROM main.sqlite_master WHERE type = 'table' AND name = 'qml_schema_version'"
)

# The version of the schema.
VERSION: Final = "SELECT max(version) FROM main.qml_schema_version"

# Have the transaction hold the write lock, by a statement that writes and finds nothing to write.
TAKE_WRITE_LOCK: Final = "DELETE FROM main.qml_schema_version WHERE false"

# Note that a migration was applied.
ADD_VERSION: Final = "INSERT INTO qml_schema_version (version, applied_at) VALUES (:version, :now)"

_VERSION_1: Final = """
CREATE TABLE qml_schema_version (
    version INTEGER PRIMARY KEY,
    applied_at INTEGER NOT NULL
);

CREATE TABLE qml_jobs (
    id TEXT NOT NULL PRIMARY KEY
        CHECK (typeof(id) = 'text' AND length(id) = 36 AND id NOT GLOB '*[^0-9a-f-]*'),
    method TEXT NOT NULL,
    queue TEXT NOT NULL,
    priority INTEGER NOT NULL DEFAULT 0 CHECK (typeof(priority) = 'integer'),
    state TEXT NOT NULL CHECK (state IN (
        'enqueued', 'scheduled', 'processing', 'awaiting_retry', 'succeeded', 'failed', 'deleted')),
    payload TEXT NOT NULL
        CONSTRAINT payload_is_at_most_1_mib CHECK (length(CAST(payload AS BLOB)) <= 1048576),
    metadata TEXT NOT NULL DEFAULT '{}'
        CONSTRAINT metadata_is_at_most_1_mib CHECK (length(CAST(metadata AS BLOB)) <= 1048576),
    result TEXT CONSTRAINT result_is_at_most_1_mib CHECK (length(CAST(result AS BLOB)) <= 1048576),
    max_retries INTEGER NOT NULL DEFAULT 0,
    max_crashes INTEGER,
    timeout_us INTEGER,
    unique_key TEXT,
    created_at INTEGER NOT NULL CHECK (
        typeof(created_at) = 'integer' AND created_at BETWEEN -62135596800000000 AND 253402300799999999),
    enqueued_at INTEGER NOT NULL CHECK (typeof(enqueued_at) = 'integer'),
    run_at INTEGER CHECK (typeof(run_at) IN ('integer', 'null')),
    started_at INTEGER CHECK (typeof(started_at) IN ('integer', 'null')),
    finished_at INTEGER CHECK (typeof(finished_at) IN ('integer', 'null')),
    expires_at INTEGER CHECK (typeof(expires_at) IN ('integer', 'null')),
    duration_us INTEGER,
    worker_id TEXT,
    server_id TEXT,
    claim_seq INTEGER NOT NULL DEFAULT 0 CHECK (typeof(claim_seq) = 'integer'),
    failures INTEGER NOT NULL DEFAULT 0 CHECK (typeof(failures) = 'integer'),
    crashes INTEGER NOT NULL DEFAULT 0 CHECK (typeof(crashes) = 'integer'),
    last_error_type TEXT,
    last_error_message TEXT,
    last_error_traceback TEXT,
    reason TEXT,
    cancel_reason TEXT,
    recurring_id TEXT,
    fire_at INTEGER,
    UNIQUE (recurring_id, fire_at)
);

-- Claims from named queues: the head of each queue is the first entry of its range.
-- enqueued_at rides along so that the statistics of queues read the index alone.
CREATE INDEX qml_jobs_enqueued ON qml_jobs (queue, priority DESC, created_at, id, enqueued_at)
    WHERE state = 'enqueued';

-- Claims from all queues: the head is the first entry.
CREATE INDEX qml_jobs_enqueued_any ON qml_jobs (priority DESC, created_at, id)
    WHERE state = 'enqueued';

-- Claims by owner; never more entries than there are workers.
CREATE INDEX qml_jobs_processing ON qml_jobs (server_id, worker_id)
    WHERE state = 'processing';

-- What becomes due next.
CREATE INDEX qml_jobs_waiting ON qml_jobs (run_at, id)
    WHERE state IN ('scheduled', 'awaiting_retry');

-- What may be deleted.
CREATE INDEX qml_jobs_expiring ON qml_jobs (expires_at)
    WHERE state IN ('succeeded', 'failed', 'deleted');

-- One job that has not ended per key.
CREATE UNIQUE INDEX qml_jobs_unique_key ON qml_jobs (unique_key)
    WHERE unique_key IS NOT NULL AND state NOT IN ('succeeded', 'failed', 'deleted');

-- Listings and counts.
CREATE INDEX qml_jobs_by_state ON qml_jobs (state, created_at, id);

CREATE TABLE qml_attempts (
    job_id TEXT NOT NULL REFERENCES qml_jobs (id) ON DELETE CASCADE,
    claim_seq INTEGER NOT NULL,
    kind TEXT NOT NULL,
    worker TEXT NOT NULL,
    pid INTEGER,
    started_at INTEGER NOT NULL,
    ended_at INTEGER NOT NULL,
    error_type TEXT,
    error_message TEXT,
    error_traceback TEXT,
    signal INTEGER,
    exit_code INTEGER,
    peak_rss_bytes INTEGER,
    cpu_s REAL,
    UNIQUE (job_id, claim_seq)
);

CREATE TABLE qml_recurring_jobs (
    id TEXT NOT NULL PRIMARY KEY,
    cron TEXT NOT NULL,
    tz TEXT NOT NULL,
    method TEXT NOT NULL,
    payload TEXT NOT NULL
        CONSTRAINT payload_is_at_most_1_mib CHECK (length(CAST(payload AS BLOB)) <= 1048576),
    queue TEXT NOT NULL,
    enabled INTEGER NOT NULL DEFAULT 1,
    next_run_at INTEGER CHECK (typeof(next_run_at) IN ('integer', 'null')),
    last_run_at INTEGER CHECK (typeof(last_run_at) IN ('integer', 'null')),
    created_at INTEGER NOT NULL,
    disabled_reason TEXT
);

CREATE TABLE qml_servers (
    id TEXT NOT NULL PRIMARY KEY,
    name TEXT NOT NULL,
    hostname TEXT NOT NULL,
    host TEXT NOT NULL,
    pid INTEGER NOT NULL,
    started_ticks INTEGER NOT NULL,
    worker_count INTEGER NOT NULL,
    queues TEXT NOT NULL,
    started_at INTEGER NOT NULL,
    last_heartbeat INTEGER NOT NULL CHECK (typeof(last_heartbeat) = 'integer'),
    heartbeat_enabled INTEGER NOT NULL
);

-- No reference to the servers: a worker may be ready just after a peer removed its server's row.
CREATE TABLE qml_workers (
    id TEXT NOT NULL PRIMARY KEY,
    server_id TEXT NOT NULL,
    number INTEGER NOT NULL,
    host TEXT NOT NULL,
    pid INTEGER NOT NULL,
    started_ticks INTEGER NOT NULL,
    started_at INTEGER NOT NULL,
    rss_bytes INTEGER
);

CREATE INDEX qml_workers_by_server ON qml_workers (server_id, number);

CREATE TABLE qml_locks (
    resource TEXT NOT NULL PRIMARY KEY,
    owner TEXT NOT NULL,
    expires_at INTEGER NOT NULL CHECK (typeof(expires_at) = 'integer')
);
"""

_VERSION_2: Final = """
-- What a server can run (a JSON list of methods), whether it claims nothing, what keeps it from its work.
ALTER TABLE qml_servers ADD COLUMN methods TEXT;
ALTER TABLE qml_servers ADD COLUMN paused INTEGER NOT NULL DEFAULT 0;
ALTER TABLE qml_servers ADD COLUMN trouble TEXT;

-- Raised by a worker after a lost reply, so that no statement sent before can claim anything.
ALTER TABLE qml_workers ADD COLUMN epoch INTEGER NOT NULL DEFAULT 0;

-- Claims step from method to method and take the head of each that their worker knows: a backlog that
-- nobody here can run costs nothing. enqueued_at rides along as before.
DROP INDEX qml_jobs_enqueued;
DROP INDEX qml_jobs_enqueued_any;
CREATE INDEX qml_jobs_enqueued ON qml_jobs (queue, method, priority DESC, created_at, id, enqueued_at)
    WHERE state = 'enqueued';
CREATE INDEX qml_jobs_enqueued_any ON qml_jobs (method, priority DESC, created_at, id)
    WHERE state = 'enqueued'
"""

_VERSION_3: Final = """
-- An index of all states changes with each of them, which was a third of what a job cost; ended jobs change
-- no more. The states are compared one by one: for a list, each statement that writes a job makes a table of
-- its own.
DROP INDEX qml_jobs_by_state;
CREATE INDEX qml_jobs_ended ON qml_jobs (state, created_at, id)
    WHERE (state = 'succeeded' OR state = 'failed' OR state = 'deleted');
DROP INDEX qml_jobs_expiring;
CREATE INDEX qml_jobs_expiring ON qml_jobs (expires_at)
    WHERE (state = 'succeeded' OR state = 'failed' OR state = 'deleted');

-- The state rides along, so that jobs are counted in the index alone.
DROP INDEX qml_jobs_waiting;
CREATE INDEX qml_jobs_waiting ON qml_jobs (run_at, id, state)
    WHERE state IN ('scheduled', 'awaiting_retry')
"""

_VERSION_4: Final = """
-- What becomes of missed firings and of those during a run, by how much their jobs are spread, whose code
-- declares the template (NULL: a person made it; '': that of an app without a name; '?': not known, as of all
-- before this), the firing that waits for the end of a job, and the newest job.
ALTER TABLE qml_recurring_jobs ADD COLUMN misfire TEXT NOT NULL DEFAULT 'fire_once';
ALTER TABLE qml_recurring_jobs ADD COLUMN overlap TEXT NOT NULL DEFAULT 'allow';
ALTER TABLE qml_recurring_jobs ADD COLUMN jitter_us INTEGER NOT NULL DEFAULT 0;
ALTER TABLE qml_recurring_jobs ADD COLUMN app TEXT;
ALTER TABLE qml_recurring_jobs ADD COLUMN waiting_for INTEGER
    CHECK (typeof(waiting_for) IN ('integer', 'null'));
ALTER TABLE qml_recurring_jobs ADD COLUMN last_job_id TEXT;
UPDATE qml_recurring_jobs SET app = '?';

-- Whether a job of a template has not ended, whatever has.
CREATE INDEX qml_jobs_of_template ON qml_jobs (recurring_id)
    WHERE recurring_id IS NOT NULL AND state IN ('enqueued', 'scheduled', 'processing', 'awaiting_retry');

-- What holds back the jobs of a queue or of a method. There is a row for nothing else: a claim asks first
-- whether there is any.
CREATE TABLE qml_limits (
    kind TEXT NOT NULL CHECK (kind IN ('queue', 'method')),
    name TEXT NOT NULL,
    paused INTEGER NOT NULL DEFAULT 0,
    max_running INTEGER CHECK (max_running IS NULL OR typeof(max_running) = 'integer' AND max_running > 0),
    rate INTEGER CHECK (rate IS NULL OR typeof(rate) = 'integer' AND rate > 0),
    per_us INTEGER CHECK (per_us IS NULL OR typeof(per_us) = 'integer' AND per_us > 0),
    next_at INTEGER,
    PRIMARY KEY (kind, name),
    CHECK ((rate IS NULL) = (per_us IS NULL))
) WITHOUT ROWID;

-- Numbers that only grow: the tokens of named locks.
CREATE TABLE qml_counters (
    name TEXT NOT NULL PRIMARY KEY,
    value INTEGER NOT NULL
)
"""

_VERSION_5: Final = """
-- Failures of one kind have one key (a hash). They are counted in the index alone, in a tenth of the time of
-- reading their rows. Jobs that do not fail have no entry in it, and cost as much as before (measured).
ALTER TABLE qml_jobs ADD COLUMN last_error_key TEXT;
CREATE INDEX qml_jobs_failures ON qml_jobs (state, last_error_key, finished_at, enqueued_at)
    WHERE (state = 'failed' OR state = 'awaiting_retry');

-- What became of the signals that ask the server for something (JSON, see core/answers.py).
ALTER TABLE qml_servers ADD COLUMN answers TEXT;

-- How far the job says that it has come: JSON, with the claim that says so.
ALTER TABLE qml_jobs ADD COLUMN progress TEXT;

-- Methods whose code wants to be called when a job of theirs has failed, and the calls that are to be made.
-- Without a reference to the jobs, each of which would pay for it when it is deleted.
CREATE TABLE qml_failure_hooks (method TEXT NOT NULL PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE qml_failure_callbacks (
    job_id TEXT NOT NULL,
    claim_seq INTEGER NOT NULL,
    method TEXT NOT NULL,
    due_at INTEGER NOT NULL,
    tries INTEGER NOT NULL DEFAULT 0,
    taken_by TEXT,
    PRIMARY KEY (job_id, claim_seq)
);
CREATE INDEX qml_failure_callbacks_due ON qml_failure_callbacks (due_at)
"""

_VERSION_8: Final = "ALTER TABLE qml_recurring_jobs ADD COLUMN priority INTEGER NOT NULL DEFAULT 0"

MIGRATIONS: Final = (
    Migration(version=1, sql=_VERSION_1),
    Migration(version=2, sql=_VERSION_2),
    Migration(version=3, sql=_VERSION_3),
    Migration(version=4, sql=_VERSION_4),
    Migration(version=5, sql=_VERSION_5),
    Migration(version=6, sql=VERSION_6),
    Migration(version=7, sql=VERSION_7),
    Migration(version=8, sql=_VERSION_8),
)
