"""Every process: the table of named queries that each backend fills with its SQL.

A query's sentence here is its contract: what it is bound to, what it does, which columns it gives. The why of
a lock, an order or a limit stands beside the SQL. A query that a backend lacks or misspells fails typing.
Beside the values that are named here, a query may use what its backend adds to all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from qml_mp.storage.act_queries import ActQueries
from qml_mp.storage.bulk_queries import BulkQueries
from qml_mp.storage.history_queries import HistoryQueries
from qml_mp.storage.listing_queries import ListingQueries
from qml_mp.storage.recurring_queries import RecurringQueries
from qml_mp.storage.system_queries import SystemQueries
from qml_mp.storage.telling_queries import FailureQueries, LostAttemptQueries, WaitQueries
from qml_mp.storage.values import JobFilter

UNDER_LIMITS = -1
"""In the place of how many kinds wait: there are limits, and nothing was claimed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobQueries:
    """Jobs as rows, moved by time, people and recovery; how new ones are written is each backend's own. `job`
    below: all columns that `job_rows.job_of` reads."""

    holders: str
    """ids, keys: the jobs with these ids, and those that have not ended and carry one of these keys; id,
    unique_key, is_live (it carries its key)."""
    lock_replaced: str | None
    """keys: lock the jobs with these keys that have not begun, in one order. None: there is one writer."""
    replace: str
    """id, reason, ttl: make Deleted a job that has not begun."""
    hold_key: str
    """resource, owner, ttl: hold the key so long; hits none if another does, which stays so until the end."""
    key_holder: str
    """resource: owner."""
    hand_key: str
    """resource, owner, to: have another hold it for what is left."""
    free_key: str
    """resource, owner: end that."""
    get: str
    """id: job."""
    delete: str
    """id, reason, ttl: make Deleted a job that is not running, as the transition table guards it; job."""
    retry: str
    """id: make a Failed job Enqueued by hand, with fresh budgets; the newest error stays readable; job."""
    stranded: str
    """stale_before, spared: `released_columns` of the claims that started before, save those of the servers
    spared; nobody else ends them until the transaction does."""
    next_due: str
    """spared: due_at of the next waiting job save these, now. No row, or no instant: none waits."""
    promote: str
    """limit, spared: make Enqueued what is due save these, longest due first."""
    due: str
    """limit, spared: ids of those that `promote` would make so."""
    promote_these: str
    """ids: `promote` for what is due of these."""
    any_from_the_future: str | None
    """A row if one of the next two would change a job, or `hasten` of the calls for failed ones or of lost
    attempts one of these. None: not asked, as there are several writers."""
    hasten_retries: str
    """Have an AwaitingRetry job that ended in the future be due after its delay, counted from now."""
    hasten_spread: str
    """The same for a Scheduled job that a firing has made in the future, and put off by its jitter."""
    state: str
    """id: state."""
    lock_state: str
    """id: state, which stays so until the transaction ends."""
    request_cancel: str
    """id, reason: leave word for the supervisor of the job, which runs; the first reason given stays."""
    cancel_requests: str
    """server_id: id, claim_seq, method, failures, crashes, worker_id, cancel_reason of running jobs that
    somebody wants cancelled."""
    note_progress: str
    """For `run_each`, id, claim_seq, progress (JSON text), no id twice: say so of these claims, guarded by
    claim_seq and Processing; `count`."""
    progress: str
    """ids: id, claim_seq, progress of those that have any."""
    any_expired: str | None
    """spared: a row if `delete_expired` would delete a job. None: not asked, as there are several writers."""
    delete_expired: str
    """limit, spared: delete ended jobs whose time is over save these, oldest first, their attempts with them;
    not those whose failure is to be told yet, unless nobody has begun to for a day."""
    expired: str
    """limit, spared: ids of those that `delete_expired` would delete."""
    delete_these: str
    """ids: `delete_expired` for what has expired of these."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TakeQueries:
    """The best jobs of some queues, of these methods (None: whichever): highest priority, then oldest.
    queues, queue (the one, when there is one), methods, limit."""

    best: str
    """Their ids; nobody else takes them until the transaction ends. No row: nothing to do."""
    claim: str
    """worker_id, server_id, registered, epoch: hand them out, if the worker's row has this epoch or the
    worker is not `registered`, and there are no limits; first the `CLAIM_COLUMNS` of each, in no order. Where
    there are several writers, always a row, in which id is NULL when there is no claim, and kinds:
    `UNDER_LIMITS` when there are limits."""
    exchange: str | None
    """`succeed` and then `claim`, all in one statement: now, count, and what `claim` gives; and kinds, how
    many methods (of a queue each) waited. None: two statements in a transaction cost no more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChoiceQueries:
    """How jobs are taken from some queues."""

    one: TakeQueries
    """For a limit of 1."""
    several: TakeQueries
    """As many as there are up to the limit; fewer while others claim, but one at least if there is one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimQueries:
    """Claims and their ends. Writes about them are guarded by id, claim_seq, worker and Processing."""

    from_all: ChoiceQueries
    from_one: ChoiceQueries
    from_several: ChoiceQueries
    behind: TakeQueries | None
    behind_in_all: TakeQueries | None
    """The next ones of its method and priority behind a job, in its queue or in all: after_queue,
    after_method, after_priority, after_at (`created_at`), after_id. None: a choice costs no more."""
    of_kinds: TakeQueries
    """Of the methods of queues whose heads, best first, are kind_queues, kind_methods, kind_priorities,
    kind_times, kind_ids, if no limit but kind_limits ("kind name") is about them, as of began_at. Unless
    None: of only_priority, which is that of the heads; before until_at (`created_at`) and until_id."""
    claim_this: str
    """id, worker_id, server_id: hand out the job, chosen before."""
    fail_unclaimable: str
    """id, ttl, type, message, key: set Failed the job, whose row refuses to be claimed."""
    all: str
    """`released_columns` of the job, oldest claim first."""
    of_worker: str
    """worker_id: `released_columns` of the job, oldest claim first."""
    whole_of_worker: str
    """worker_id: job, oldest claim first; for the worker, which may begin it."""
    of_server: str
    """server_id: `released_columns` of the job, oldest claim first."""
    lock_of_server: str
    """server_id: the same; nobody else ends these claims until the transaction does. Locked in the order of
    their ids, as all that locks several jobs and waits for them, so that no two wait for each other."""
    lock: str
    """ids: id, claim_seq, worker_id, cancel_reason of those that are Processing; locked as above."""
    succeed: str
    """For `run_each`, what `outcomes` binds for each, in the order of their ids, no id twice; ttl for all:
    write these successes; tells `written_at`, and in `count` how many hit their row."""
    succeed_and_tell: str
    """`succeed`, and tell the servers that a place may be free under a limit."""
    finish: str
    """id, claim_seq and what `outcomes` binds: write an outcome that is no success; tells `written_at`, None:
    a lost claim."""
    add_attempt: str
    """id, claim_seq and what `outcomes` binds: keep an attempt that did not succeed."""
    read_back: str
    """ids: job, recorded and recorded_of (of the newest claim's attempt: its kind and its worker)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitQueries:
    """What holds back the jobs of queues and methods. A key: kind, name."""

    any: str
    """A row if there are limits."""
    standings: str
    """Each limit by key: kind, name, paused, max_running, rate, per_us, next_at, running (jobs), now."""
    waiting_in_all: str
    """methods (None: any): queue, method, priority, created_at, id of each queue's best of each method."""
    waiting_in_served: str
    """The same of these queues."""
    lock: str
    """queue, method: the limits of both, by key; nobody else claims under them until the transaction ends."""
    spend: str
    """A key, next_at: a job has begun under its rate."""
    tell_of_a_place: str | None
    """Tell the servers that a place may be free. None: a commit tells of itself."""
    set_paused: str
    """A key, paused: say so of it; as the next two."""
    set_max_running: str
    """A key, max_running."""
    set_rate: str
    """A key, rate, per_us."""
    remove_if_empty: str
    """Delete the rows that limit nothing, save for the turn of a rate that was ended, until that comes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MonitoringQueries:
    """What people and `--burst` read. No queues: all of them; methods None: any; server_id None: any."""

    job_counts: str
    """state, jobs; states without jobs may be missing."""
    job_counts_among: str
    """most: the same, at most so many counted of each."""
    failure_kinds: Callable[[JobFilter], str]
    """The filter's values (Failed, AwaitingRetry alone), limit, newest_first (else the most jobs): job of the
    newest, kind, jobs, last_at."""
    failure_kinds_among: Callable[[JobFilter], str]
    """method (if the filter has one), since, until_time, limit, newest_first, most: the same, at most so many
    counted of each kind and state."""
    attempts: str
    """id, newest (so many at most; None: all): what `rows.attempt_of` reads, newest first."""
    queue_stats: str
    """queue, enqueued, processing, held, oldest_at, has_more (whether one that was not looked at may be
    older), now, by name, of queues with jobs that have not ended."""
    queue_stats_among: str
    """most: the same, at most so many counted of each queue."""
    method_stats: str
    """queues, among (None: all): queue, method, enqueued of what waits, at most so many counted of each."""
    due_count: str
    """queues, methods: jobs, how many wait and are due."""
    has_due_work: str
    """queues, methods, server_id, with_waiting: found, whether any can run or is held; of what waits and is
    due only `with_waiting`."""
    later_work: str
    """queues, methods, paused (whether paused queues count), within (None: whenever): jobs, due_at of the
    first, now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryQueries:
    """Runs of supervisors, their workers, and named locks. What a server says of itself: queues and methods
    (JSON texts), paused, trouble, answers. A process: host, pid, started_ticks."""

    register_server: str
    """id, name, hostname, worker_count, started_at, heartbeat_enabled, acts (JSON text), its process, what it
    says of itself: insert or replace it, heard now."""
    update_server: str
    """server_id, what it says of itself."""
    heartbeat: str
    """server_id: heard now; `servers`, how many there are; `asked`, whether something is asked of it."""
    list_servers: str
    """What `rows.server_of` reads, oldest start first."""
    silent_servers: str
    """own_id, timeout: the others that promised heartbeats and were not heard for longer, or last in the
    future; as `list_servers`."""
    has_server: str
    """server_id: a row if it is there."""
    remove_idle_server: str
    """server_id: delete its row unless it holds a claim; its workers' rows are gone."""
    lock_server: str
    """server_id: its row, which nobody changes until the transaction ends."""
    remove_server: str
    """server_id, silent_for, newest, judge: delete its row; unless `silent_for` is None, only if it has been
    silent for so long, or its heartbeat is still `newest`, and the server `judge` (None: whoever) was heard
    within half of it."""
    lock_workers_of: str
    """server_id: wait for the claims that its workers are making; they make none any more."""
    remove_workers_of: str
    """server_id: delete its workers' rows."""
    set_worker_rss: str
    """server_id, ids, rss_bytes: the sizes of these of its workers, in the same order."""
    register_worker: str
    """id, server_id, number, started_at, rss_bytes, epoch, its process: insert or replace it with the higher
    epoch of the two; nothing when its server is not there."""
    raise_epoch: str
    """worker_id: wait for a claim that it is making, raise its epoch; epoch."""
    remove_worker: str
    """id: delete its row."""
    list_workers: str
    """What `rows.worker_of` reads, by server and number."""
    acquire_lock: str
    """resource, owner, ttl: create, refresh for the same owner, or take over when expired; else hit none."""
    renew_lock: str
    """resource, owner, ttl: have the lock of this owner, unless it has expired, last so long from now on."""
    lock_holder: str
    """resource: owner of the lock, unless it has expired."""
    next_number: str
    """name: value, which is higher than before."""
    release_lock: str
    """resource, owner: was_held, which one that has expired was not; delete the lock of this owner."""
    any_expired_lock: str | None
    """A row if there is one. None: not asked, as there are several writers."""
    delete_expired_locks: str
    """limit: delete so many of the locks that have expired, the oldest first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Queries:
    """All of them, by topic."""

    acts: ActQueries
    bulk: BulkQueries
    claims: ClaimQueries
    failures: FailureQueries
    history: HistoryQueries
    jobs: JobQueries
    limits: LimitQueries
    listing: ListingQueries
    lost_attempts: LostAttemptQueries
    monitoring: MonitoringQueries
    recurring: RecurringQueries
    registry: RegistryQueries
    system: SystemQueries
    waits: WaitQueries
