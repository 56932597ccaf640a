"""Every process: what a storage does, in five parts and the monitoring reads.

Two backends implement it (`sqlite`, `postgres`); one suite, `tests/storage`, holds both to it.

Rules for all of it. An operation either happens whole or not at all. A driver's error becomes a
`StorageError`: `StorageUnavailable` where trying again later can help. No operation waits without
a bound. Instants are aware, in UTC, and are read from the database's clock wherever two machines
compare them. A write about a claim is guarded by `id AND claim_seq AND state = processing`.

A storage is used by one thread at a time per call (calls from several threads take turns) and may
be opened anew after `close()` simply by using it. It must hold nothing open across a fork: call
`close()` first. A process that inherited one all the same abandons the handle and opens its own.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import Enum
from typing import Protocol

from qml_mp.core.job import Claim, ClaimKey, Job
from qml_mp.core.outcome import Attempt, Outcome
from qml_mp.core.recurring import RecurringJob
from qml_mp.core.server_info import ServerInfo, WorkerInfo
from qml_mp.core.state import StateName
from qml_mp.settings import ServerConfig
from qml_mp.storage.waiting import StorageWait, Waker


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetch:
    """Who asks for a job, and from which queues (empty: all)."""

    worker_id: str
    server_id: str
    queues: tuple[str, ...]
    registered: bool = False
    """Claim only while the worker's row is in the registry and has this epoch. Once the row is removed, or
    its epoch is raised (`renew_epoch`), no statement that the worker sent before can claim anything."""
    epoch: int = 0
    """The epoch that the worker knows of; means nothing unless `registered`."""
    methods: tuple[str, ...] | None = None
    """Claim only jobs of these methods (none of them: nothing); None: of whichever."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """How long an ended job is kept; becomes its `expires_at`."""

    succeeded_ttl: timedelta
    """Succeeded and Deleted."""
    failed_ttl: timedelta

    @classmethod
    def of(cls, config: ServerConfig) -> Retention:
        """As the settings say."""
        return cls(succeeded_ttl=config.succeeded_ttl, failed_ttl=config.failed_ttl)


BY_DEFAULT = Retention.of(ServerConfig())


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """What `finish` did."""

    accepted: bool
    """False: the claim was lost to somebody else, and nothing was written about the job."""
    state: StateName | None
    """The state the job is in now because of this claim; None when the claim was lost."""
    job: Job | None = field(default=None, compare=False)
    """The row after the write or, when an earlier write of it had landed, as it stands; None when lost."""
    next: Claim | None = None
    """The next job, when one was asked for and there was one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchanged:
    """What `exchange` did."""

    finished: tuple[Finished, ...]
    """What became of each outcome, in the order given."""
    claims: tuple[Claim, ...]
    """The next jobs; fewer than asked for, when there were no more."""


class CancelResult(Enum):
    """What `request_cancel` found."""

    DELETED = "deleted"
    """The job was not running and is Deleted now."""
    REQUESTED = "requested"
    """The job is running; its supervisor will end it."""
    ALREADY_FINAL = "already_final"
    NOT_FOUND = "not_found"


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelRequest:
    """A cancel that a supervisor has to carry to one of its workers."""

    key: ClaimKey
    worker_id: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Promoted:
    """What `promote_due` did, and when to look again."""

    count: int
    next_due_in: timedelta | None
    """Time until the next waiting job is due (zero: more are due now); None: none waits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fired:
    """What `fire_due_recurring` did, and when to look again."""

    jobs: tuple[Job, ...]
    disabled: tuple[str, ...]
    """Ids of templates that were disabled because their cron no longer parses."""
    next_due_in: timedelta | None
    """Of the templates that it may fire."""
    unknown: Mapping[str, str] = field(default_factory=dict)
    """Id to method of due templates that were left alone, because the method is none of those asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFilter:
    """Which jobs a listing shows; an empty collection does not restrict."""

    states: Collection[StateName] = ()
    queue: str | None = None
    method: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class JobPage:
    """One page of a listing, newest first."""

    jobs: tuple[Job, ...]
    next_cursor: str | None
    """Pass it as `after` for the next page; None: this was the last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueStats:
    """One queue that holds jobs that have not ended."""

    name: str
    enqueued: int
    processing: int
    oldest: timedelta | None
    """Age of the oldest Enqueued job; None when there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodStats:
    """Enqueued jobs of one method in one queue."""

    queue: str
    method: str
    enqueued: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DueWork:
    """What `--burst` asks: is anything left that can still run?"""

    runnable: int
    """Enqueued or Processing jobs in the queues."""
    waiting: int
    """Scheduled or AwaitingRetry jobs in the queues that are due by now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LaterWork:
    """Scheduled or AwaitingRetry jobs that are not due yet."""

    count: int
    next_due_in: timedelta | None
    """None: there are none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Renewed:
    """What `renew_epoch` found."""

    epoch: int
    """That of the next `Fetch`."""
    claims: tuple[Claim, ...]
    """All that the worker holds, oldest first; there can come no others by what it has sent before."""


class JobStore(Protocol):
    """Jobs as rows."""

    def enqueue(self, job: Job) -> str:
        """Commit a new job (Enqueued or Scheduled as its state says) and return its id.

        When a job that has not ended carries the same `unique_key`, nothing is written and that
        job's id is returned. A Scheduled job whose instant has passed is stored Enqueued.
        """

    def enqueue_many(self, jobs: Iterable[Job]) -> list[str]:
        """`enqueue` for all in one transaction: all of them or, on any error, none. Ids in order."""

    def enqueue_in(self, connection: object, jobs: Iterable[Job]) -> list[str]:
        """`enqueue_many` inside the caller's own open transaction; commits nothing itself.

        `connection` is a driver connection (`sqlite3.Connection` / `psycopg.Connection`). Raises
        `ConfigurationError` when it is of another driver or belongs to another database.
        """

    def get(self, job_id: str) -> Job | None:
        """The job, or None."""

    def delete(self, job_id: str, *, reason: str, retention: Retention) -> Job:
        """Make a job that is not running Deleted. Raises `JobNotFound`, or `InvalidTransition`
        (Processing: cancel it instead; Deleted already)."""

    def retry(self, job_id: str) -> Job:
        """Make a Failed job Enqueued by hand, its failures and crashes set back to 0 and its
        `expires_at` cleared. Raises `JobNotFound` or `InvalidTransition`."""


class JobLocker(Protocol):
    """Claims and everything that is guarded by them."""

    def exchange(
        self,
        finished: Sequence[tuple[Claim, Outcome]],
        *,
        fetch: Fetch | None,
        limit: int,
        retention: Retention,
    ) -> Exchanged:
        """Write the outcomes of these claims, and claim up to `limit` jobs more, in one commit."""

    def fetch_and_lock_job(self, fetch: Fetch) -> Claim | None:
        """Claim the best runnable job of the queues that has one of the methods: highest priority, then
        oldest (`created_at`, `id`).

        One statement: lock, skip what others have locked, `claim_seq + 1`, stamp worker, server
        and `started_at`, state Processing. No cap on how far it looks. None: nothing to do.

        After any error the claim may have been made all the same, or may still come to be made by a
        server that was frozen: a `registered` worker calls `renew_epoch` before it asks again.
        """

    def finish(
        self, claim: Claim, outcome: Outcome, *, retention: Retention, then: Fetch | None = None
    ) -> Finished:
        """Write the outcome of a claim, and claim the next job in the same commit when `then` is given.

        Repeating it after a lost reply is harmless: it then reads the row, finds its own
        `claim_seq` final (or past Processing by its own hand) and says accepted. A claim that was
        lost changes nothing. Outcomes that are attempts without success are added to the
        history (`attempts`) in the same commit. A job asked to cancel (`request_cancel`) that
        comes to Retry or Crash or Release ends Deleted with that reason instead.

        Raises `OutcomeRefused` when it is this very outcome that cannot be stored. After any other error
        nothing is known of the next claim: write the outcome alone then, and see `fetch_and_lock_job`.
        """

    def claims_of_worker(self, worker_id: str) -> list[Claim]:
        """The claims this worker holds; after its death, what its supervisor has to settle."""

    def claims_of_server(self, server_id: str) -> list[Claim]:
        """The claims held by all workers of one run of a server."""

    def claims(self) -> list[Claim]:
        """Every claim there is, of whatever server: what the sweep at start judges."""

    def requeue_stranded_jobs(
        self,
        stale_before: datetime,
        *,
        spare_servers: Collection[str] = (),
        retention: Retention = BY_DEFAULT,
    ) -> int:
        """Release claims started before `stale_before`, save those of `spare_servers`; how many.

        A job whose cancel was asked for ends Deleted instead, and is kept as `retention` says.
        """

    def promote_due(self, *, limit: int) -> Promoted:
        """Make Enqueued what is Scheduled or AwaitingRetry and due, at most `limit`, oldest due first."""

    def hasten_retries_from_the_future(self) -> int:
        """After the clock was set back: an AwaitingRetry job whose last attempt ended in the future becomes
        due after its delay, counted from now; how many. Scheduled jobs keep the instant they were given."""

    def request_cancel(self, job_id: str, *, reason: str, retention: Retention) -> CancelResult:
        """Delete a job that is not running; ask the supervisor of one that runs to end it."""

    def cancel_requests(self, server_id: str) -> list[CancelRequest]:
        """The running jobs of this server that somebody wants cancelled."""

    def delete_expired_jobs(self, *, limit: int) -> int:
        """Delete final jobs past `expires_at`, at most `limit`; how many."""


class RecurringStore(Protocol):
    """Templates of recurring jobs."""

    def upsert_recurring_job(self, template: RecurringJob) -> None:
        """Insert or replace. When cron and zone are as they were, `next_run_at` stays too, so
        that declaring the same template at each start never skips or repeats a firing; `enabled`
        always stays as a person set it."""

    def remove_recurring_job(self, recurring_id: str) -> bool:
        """Whether it existed. Jobs already enqueued from it stay."""

    def get_recurring_job(self, recurring_id: str) -> RecurringJob | None:
        """The template, or None."""

    def list_recurring_jobs(self) -> list[RecurringJob]:
        """All templates by id."""

    def set_recurring_enabled(
        self, recurring_id: str, enabled: bool, *, next_run_at: datetime | None
    ) -> bool:
        """Switch a template on (with its next firing) or off; whether it existed."""

    def fire_due_recurring(self, *, limit: int = 256, methods: Sequence[str] | None = None) -> Fired:
        """Enqueue one job per due template, advance `next_run_at` past the present, at most `limit`.

        Only templates of these methods, unless they are None; others stay due for a server that knows
        what they run.

        One transaction; locked so that two servers never fire the same tick, and unique
        (recurring id, firing time) in the table besides. Firings missed while no server ran
        collapse into one. A template whose cron no longer parses is disabled with the reason.
        A firing time that comes again, because the clock was set back, makes another job only for a
        template that fires at least once an hour.
        """

    def recompute_late_firings(self) -> list[str]:
        """Compute anew each `next_run_at` that is later than the schedule's next firing, as all are after the
        clock was set back; the ids. A second call is harmless."""

    def run_recurring_now(self, recurring_id: str) -> str | None:
        """Enqueue one job from the template now, leaving its schedule alone; the job's id, or None."""


class ServerRegistry(Protocol):
    """Runs of supervisors and their workers."""

    def register_server(self, info: ServerInfo) -> None:
        """Insert the row (replacing one of the same id); heartbeat times are the database's."""

    def update_server(
        self,
        server_id: str,
        *,
        queues: Sequence[str],
        methods: Sequence[str] | None,
        paused: bool,
        trouble: str | None,
    ) -> bool:
        """Say what it serves (no queues: all) and can run, whether it claims nothing, and what keeps it from
        its work; False: a peer declared us dead."""

    def deregister_idle_server(self, server_id: str) -> bool:
        """Delete its workers' rows, so that none of them claims any more, and its own unless one of them
        still holds a claim, all at once. Whether nothing is left of it."""

    def heartbeat_server(self, server_id: str, *, worker_rss: Mapping[str, int]) -> bool:
        """Bump `last_heartbeat` and the workers' memory; False: a peer declared us dead."""

    def list_servers(self) -> list[ServerInfo]:
        """All rows, oldest start first."""

    def silent_servers(self, *, own_id: str, timeout: timedelta) -> list[ServerInfo]:
        """Peers with heartbeats on whose last one is older than `timeout`, by the database's clock, or lies
        in the future: the clock was set back, and they have sent none since."""

    def reclaim_server(
        self,
        server_id: str,
        *,
        silent_for: timedelta | None,
        judge: str | None = None,
        retention: Retention = BY_DEFAULT,
    ) -> int:
        """Release all its claims, uncharged, and remove its rows, in one transaction; how many.

        With `silent_for`, only if it is still silent for so long (else 0 and nothing changes), and only
        if the server `judge` that finds so has been heard within half of it: one that was stopped since
        its last heartbeat cannot tell the silence of others from its own.
        A job whose cancel was asked for ends Deleted instead, and is kept as `retention` says.
        """

    def register_worker(self, info: WorkerInfo) -> bool:
        """Insert the row, replacing one of the same id, whose epoch is never lowered by it. False, and no
        row, when its server has none: a peer declared the server dead, and nobody would remove what the
        worker leaves behind."""

    def renew_epoch(self, worker_id: str) -> Renewed | None:
        """Raise the epoch of the worker's row, then read what it holds; None when it has no row.

        For a worker that does not know what came of a claim that it asked for. Waits for a claim that
        is being made, as long as for any lock; afterwards nothing that the worker has sent under
        an earlier epoch can claim anything. Every call raises it; a call too many is harmless.
        """

    def deregister_worker(self, worker_id: str) -> None:
        """Delete the row; harmless when there is none."""

    def list_workers(self) -> list[WorkerInfo]:
        """All rows, by server and number."""


class NamedLocks(Protocol):
    """Locks with a name, an owner and a time to live, by the database's clock."""

    def acquire_lock(self, resource: str, owner: str, ttl: timedelta) -> bool:
        """Create, take over when expired, refresh for the same owner; False: another holds it."""

    def release_lock(self, resource: str, owner: str) -> bool:
        """Whether this owner held it."""

    def delete_expired_locks(self) -> int:
        """How many rows of expired locks were deleted."""


class Monitoring(Protocol):
    """Reads for people and for `--burst`."""

    def list_jobs(self, where: JobFilter, *, limit: int = 50, after: str | None = None) -> JobPage:
        """Newest first (`created_at`, `id`); `after` is the `next_cursor` of the page before."""

    def job_counts(self) -> dict[StateName, int]:
        """Number of jobs in each of the seven states (0 included)."""

    def attempts(self, job_id: str) -> tuple[Attempt, ...]:
        """The attempts of the job that did not succeed, oldest first."""

    def queue_stats(self) -> list[QueueStats]:
        """Queues by name."""

    def method_stats(self, queues: Sequence[str] = (), *, among: int | None = None) -> list[MethodStats]:
        """Enqueued jobs of the queues (empty: all) by queue and method.

        With `among`, at most so many are counted of each method of a queue: its cost does then not grow with
        the backlog.
        """

    def due_work(
        self, queues: Sequence[str], *, methods: Sequence[str] | None = None, server_id: str | None = None
    ) -> DueWork:
        """What is left to run in the queues (empty: all); of these methods alone, unless they are None;
        of the Processing jobs those of this server alone, unless it is None."""

    def later_work(self, queues: Sequence[str]) -> LaterWork:
        """What will be due in the queues (empty: all)."""


class Storage(JobStore, JobLocker, RecurringStore, ServerRegistry, NamedLocks, Monitoring, Protocol):
    """The whole of it. `open_storage(url)` makes one; it connects when it is first used."""

    @property
    def url(self) -> str:
        """What a child process opens the same storage with."""

    @property
    def display_url(self) -> str:
        """The URL with the password masked, for people and logs."""

    @property
    def is_on_one_machine(self) -> bool:
        """Whether all its users are on one machine: their heartbeats wait for the same disk, and a process
        of another boot is dead. (They may still be in pid namespaces that hide them from each other.)"""

    def migrate(self) -> list[int]:
        """Bring the schema up to this code under a lock; the versions applied, [] when up to date.

        Raises `SchemaMismatch`, before any write, when the schema is newer than this code.
        """

    def schema_version(self) -> int:
        """The version in the storage; 0 when it has no schema yet."""

    def check_schema(self) -> None:
        """Raise `SchemaMismatch` unless the schema is exactly what this code needs. Reads only."""

    def now(self) -> datetime:
        """The database's clock."""

    def open_waker(self) -> Waker | None:
        """A source of wake-ups; None where there is none and polling must do."""

    def is_locked_by_this_process(self) -> bool:
        """Whether it is this very process that keeps everybody from writing, by a transaction that it has
        left open on another connection. It would wait for itself for ever."""

    def descriptors(self) -> frozenset[int]:
        """Those of this process's connection; empty while it is closed."""

    def wait_with(self, waiting: StorageWait | None) -> None:
        """Let somebody else wait whenever this process waits for the storage; None: as usual again."""

    def close(self) -> None:
        """Close the connection; harmless when closed. The next use opens another."""
