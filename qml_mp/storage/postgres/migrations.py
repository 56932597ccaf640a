"""Every process: the numbered changes of the PostgreSQL schema, oldest first. Released ones are never edited.

`{s}` stands for the quoted schema. JSON is TEXT, because what other programs put there has to be
read back as it is and judged in one place. Names are compared byte by byte (COLLATE "C"), as SQLite
does. The guards on instants keep out what Python's datetime cannot hold, those on sizes what would
cost every reader its memory.
"""

from __future__ import annotations

from qml_mp.storage.migrate import Migration
from qml_mp.storage.postgres.version_6 import VERSION_6
from qml_mp.storage.postgres.version_7 import VERSION_7

_FIRST = """
CREATE TABLE {s}.jobs (
    id                   text COLLATE "C" PRIMARY KEY CHECK (id ~ '^[0-9a-f-]{{36}}$'),
    method               text NOT NULL,
    queue                text COLLATE "C" NOT NULL DEFAULT 'default' CHECK (queue <> ''),
    priority             integer NOT NULL DEFAULT 0,
    state                text COLLATE "C" NOT NULL DEFAULT 'enqueued' CHECK (state IN (
        'enqueued', 'scheduled', 'processing', 'awaiting_retry', 'succeeded', 'failed', 'deleted')),
    payload              text NOT NULL DEFAULT 'null',
    metadata             text NOT NULL DEFAULT '{{}}',
    result               text,
    max_retries          integer NOT NULL DEFAULT 0,
    max_crashes          integer,
    timeout_us           bigint,
    unique_key           text COLLATE "C",
    created_at           timestamptz NOT NULL DEFAULT now(),
    enqueued_at          timestamptz DEFAULT now(),
    run_at               timestamptz,
    started_at           timestamptz,
    finished_at          timestamptz,
    expires_at           timestamptz,
    duration_us          bigint,
    worker_id            text,
    server_id            text,
    claim_seq            integer NOT NULL DEFAULT 0,
    failures             integer NOT NULL DEFAULT 0,
    crashes              integer NOT NULL DEFAULT 0,
    last_error_type      text,
    last_error_message   text,
    last_error_traceback text,
    reason               text,
    cancel_reason        text,
    recurring_id         text,
    fire_at              timestamptz,
    CONSTRAINT payload_is_at_most_1_mib CHECK (octet_length(payload) <= 1048576),
    CONSTRAINT metadata_is_at_most_1_mib CHECK (octet_length(metadata) <= 1048576),
    CONSTRAINT result_is_at_most_1_mib CHECK (octet_length(result) <= 1048576),
    CHECK (created_at BETWEEN '0001-01-02Z' AND '9999-12-30Z'),
    CHECK (run_at BETWEEN '0001-01-02Z' AND '9999-12-30Z'),
    CHECK (expires_at BETWEEN '0001-01-02Z' AND '9999-12-30Z')
) WITH (
    -- Each job is updated two or three times and then deleted: dead rows are the normal case, and
    -- the claim walks over those at the head of its index until they are vacuumed.
    fillfactor = 80,
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_threshold = 1000,
    autovacuum_vacuum_cost_delay = 1,
    autovacuum_analyze_scale_factor = 0.05
);

-- The claim from one queue, or from several of which each gives its head; and the claim from all
-- queues. Both hold runnable jobs alone, whatever the table keeps besides. The conditions that are
-- always true stand in the statements too: each claim can use its own index only. Left to choose, a
-- planner whose statistics are older than a burst of jobs takes the other, and sorts the backlog.
CREATE INDEX jobs_claim_queue ON {s}.jobs (queue, priority DESC, created_at, id)
    WHERE state = 'enqueued' AND queue <> '';
CREATE INDEX jobs_claim_any ON {s}.jobs (priority DESC, created_at, id)
    WHERE state = 'enqueued' AND id <> '';
CREATE INDEX jobs_due ON {s}.jobs (run_at, id) WHERE state IN ('scheduled', 'awaiting_retry');
CREATE INDEX jobs_claimed ON {s}.jobs (server_id, worker_id) WHERE state = 'processing';
CREATE INDEX jobs_expiry ON {s}.jobs (expires_at) WHERE state IN ('succeeded', 'failed', 'deleted');
-- Listings of ended jobs, newest first. Not over the other states too: a planner whose statistics
-- are older than a burst of jobs would take it for the claim, and sort the whole backlog each time.
CREATE INDEX jobs_ended ON {s}.jobs (state, created_at DESC, id DESC)
    WHERE state IN ('succeeded', 'failed', 'deleted');
-- At most one job that has not ended carries a key.
CREATE UNIQUE INDEX jobs_unique_key ON {s}.jobs (unique_key)
    WHERE unique_key IS NOT NULL AND state IN ('enqueued', 'scheduled', 'processing', 'awaiting_retry');
-- At most one job per template and firing time, however many servers fire.
CREATE UNIQUE INDEX jobs_firing ON {s}.jobs (recurring_id, fire_at) WHERE recurring_id IS NOT NULL;

CREATE TABLE {s}.attempts (
    job_id          text COLLATE "C" NOT NULL REFERENCES {s}.jobs ON DELETE CASCADE,
    claim_seq       integer NOT NULL,
    kind            text NOT NULL,
    worker          text NOT NULL,
    pid             integer,
    started_at      timestamptz NOT NULL,
    ended_at        timestamptz NOT NULL,
    error_type      text,
    error_message   text,
    error_traceback text,
    signal          integer,
    exit_code       integer,
    peak_rss_bytes  bigint,
    cpu_s           double precision,
    PRIMARY KEY (job_id, claim_seq)
);

CREATE TABLE {s}.recurring_jobs (
    id              text COLLATE "C" PRIMARY KEY,
    cron            text NOT NULL,
    tz              text NOT NULL DEFAULT 'UTC',
    method          text NOT NULL,
    payload         text NOT NULL DEFAULT 'null',
    queue           text NOT NULL DEFAULT 'default',
    enabled         boolean NOT NULL DEFAULT true,
    next_run_at     timestamptz,
    last_run_at     timestamptz,
    created_at      timestamptz NOT NULL DEFAULT now(),
    disabled_reason text,
    CONSTRAINT payload_is_at_most_1_mib CHECK (octet_length(payload) <= 1048576),
    CHECK (next_run_at BETWEEN '0001-01-02Z' AND '9999-12-30Z')
);
CREATE INDEX recurring_jobs_due ON {s}.recurring_jobs (next_run_at, id) WHERE enabled;

CREATE TABLE {s}.servers (
    id                text COLLATE "C" PRIMARY KEY,
    name              text NOT NULL,
    hostname          text NOT NULL,
    host              text NOT NULL,
    pid               integer NOT NULL,
    started_ticks     bigint NOT NULL,
    worker_count      integer NOT NULL,
    queues            text NOT NULL,
    started_at        timestamptz NOT NULL,
    last_heartbeat    timestamptz NOT NULL,
    heartbeat_enabled boolean NOT NULL
);

CREATE TABLE {s}.workers (
    id            text COLLATE "C" PRIMARY KEY,
    server_id     text COLLATE "C" NOT NULL,
    number        integer NOT NULL,
    host          text NOT NULL,
    pid           integer NOT NULL,
    started_ticks bigint NOT NULL,
    started_at    timestamptz NOT NULL,
    rss_bytes     bigint
);
CREATE INDEX workers_of_server ON {s}.workers (server_id);

CREATE TABLE {s}.locks (
    resource   text COLLATE "C" PRIMARY KEY,
    owner      text NOT NULL,
    expires_at timestamptz NOT NULL
);
"""

_SERVER_STATE_AND_EPOCHS = """
-- What a server can run (a JSON list of methods), whether it claims nothing, what keeps it from its work.
ALTER TABLE {s}.servers
    ADD COLUMN methods text,
    ADD COLUMN paused  boolean NOT NULL DEFAULT false,
    ADD COLUMN trouble text;

-- Raised by a worker after a lost reply, so that no statement sent before can claim anything.
ALTER TABLE {s}.workers ADD COLUMN epoch integer NOT NULL DEFAULT 0;

-- The claim steps from method to method and takes the head of each that its worker knows: a backlog that
-- nobody here can run costs nothing. The method is cut, because an index takes no text of any length.
DROP INDEX {s}.jobs_claim_queue;
DROP INDEX {s}.jobs_claim_any;
CREATE INDEX jobs_claim_queue ON {s}.jobs
    (queue, (left(method, 201) COLLATE "C"), priority DESC, created_at, id)
    WHERE state = 'enqueued' AND queue <> '';
CREATE INDEX jobs_claim_any ON {s}.jobs ((left(method, 201) COLLATE "C"), priority DESC, created_at, id)
    WHERE state = 'enqueued' AND id <> '';
"""

_CHEAPER_CHECK = """
-- The same ids as before. Checked with each write of a row, twice after it was inserted; a number of repeats
-- in the expression made that a twelfth of what the server does for a job.
ALTER TABLE {s}.jobs
    DROP CONSTRAINT jobs_id_check,
    ADD CONSTRAINT jobs_id_check CHECK (octet_length(id) = 36 AND id ~ '^[0-9a-f-]*$');
"""

_FOLLOWED_TEMPLATES = """
-- What becomes of missed firings and of those during a run, by how much their jobs are spread, whose code
-- declares the template (NULL: a person made it; '': that of an app without a name; '?': not known, as of all
-- before this), the firing that waits for the end of a job, and the newest job.
ALTER TABLE {s}.recurring_jobs
    ADD COLUMN misfire     text NOT NULL DEFAULT 'fire_once',
    ADD COLUMN overlap     text NOT NULL DEFAULT 'allow',
    ADD COLUMN jitter_us   bigint NOT NULL DEFAULT 0,
    ADD COLUMN app         text COLLATE "C",
    ADD COLUMN waiting_for timestamptz,
    ADD COLUMN last_job_id text COLLATE "C";
UPDATE {s}.recurring_jobs SET app = '?';

-- Whether a job of a template has not ended, whatever has.
CREATE INDEX jobs_of_template ON {s}.jobs (recurring_id)
    WHERE recurring_id IS NOT NULL AND state IN ('enqueued', 'scheduled', 'processing', 'awaiting_retry');

-- Attempts go with their jobs, and are vacuumed as these are.
ALTER TABLE {s}.attempts SET (
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_threshold = 1000,
    autovacuum_vacuum_cost_delay = 1
);
"""

_LIMITS = """
-- What holds back the jobs of a queue or of a method. There is a row for nothing else: a claim asks first
-- whether there is any.
CREATE TABLE {s}.limits (
    kind        text COLLATE "C" NOT NULL CHECK (kind IN ('queue', 'method')),
    name        text COLLATE "C" NOT NULL,
    paused      boolean NOT NULL DEFAULT false,
    max_running integer CHECK (max_running > 0),
    rate        integer CHECK (rate > 0),
    per_us      bigint CHECK (per_us > 0),
    next_at     timestamptz,
    PRIMARY KEY (kind, name),
    CHECK ((rate IS NULL) = (per_us IS NULL))
) WITH (fillfactor = 50); -- each claim under a rate updates its row

-- Numbers that only grow: the tokens of named locks.
CREATE TABLE {s}.counters (
    name  text COLLATE "C" PRIMARY KEY,
    value bigint NOT NULL
);
"""

_KEYS_OF_FAILURES = """
-- Failures of one kind have one key (a hash). They are counted in the index alone, in a tenth of the time of
-- reading their rows. Jobs that do not fail have no entry in it, and cost as much as before (measured).
ALTER TABLE {s}.jobs ADD COLUMN last_error_key text COLLATE "C";
CREATE INDEX jobs_failures ON {s}.jobs (state, last_error_key, finished_at, enqueued_at)
    WHERE state IN ('failed', 'awaiting_retry');
"""

_ANSWERS = """
-- What became of the signals that ask the server for something (JSON, see core/answers.py).
ALTER TABLE {s}.servers ADD COLUMN answers text;
"""

_WAITS = """
-- Who waits for the end of which jobs, and until when that holds: whoever ends one of them tells by NOTIFY.
-- Empty while nobody waits, which each commit of outcomes asks first.
CREATE TABLE {s}.waits (
    job_id text COLLATE "C" NOT NULL,
    waiter text COLLATE "C" NOT NULL,
    until  timestamptz NOT NULL,
    PRIMARY KEY (job_id, waiter)
) WITH (
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_threshold = 1000,
    autovacuum_vacuum_cost_delay = 1
);
"""

_PROGRESS = """
-- How far the job says that it has come: JSON, with the claim that says so.
ALTER TABLE {s}.jobs ADD COLUMN progress text;
"""

_FAILURE_CALLBACKS = """
-- Methods whose code wants to be called when a job of theirs has failed, and the calls that are to be made.
-- Without a reference to the jobs, each of which would pay for it when it is deleted.
CREATE TABLE {s}.failure_hooks (method text COLLATE "C" PRIMARY KEY);
CREATE TABLE {s}.failure_callbacks (
    job_id    text COLLATE "C" NOT NULL,
    claim_seq integer NOT NULL,
    method    text COLLATE "C" NOT NULL,
    due_at    timestamptz NOT NULL,
    tries     integer NOT NULL DEFAULT 0,
    taken_by  text COLLATE "C",
    PRIMARY KEY (job_id, claim_seq)
);
CREATE INDEX failure_callbacks_due ON {s}.failure_callbacks (due_at);
"""

_PRIORITY_OF_TEMPLATES = "ALTER TABLE {s}.recurring_jobs ADD COLUMN priority integer NOT NULL DEFAULT 0"

MIGRATIONS = (
    Migration(version=1, sql=_FIRST),
    Migration(version=2, sql=_SERVER_STATE_AND_EPOCHS),
    Migration(version=3, sql=_CHEAPER_CHECK),
    Migration(version=4, sql=_FOLLOWED_TEMPLATES + _LIMITS),
    Migration(version=5, sql=_KEYS_OF_FAILURES + _ANSWERS + _WAITS + _PROGRESS + _FAILURE_CALLBACKS),
    Migration(version=6, sql=VERSION_6),
    Migration(version=7, sql=VERSION_7),
    Migration(version=8, sql=_PRIORITY_OF_TEMPLATES),
)
