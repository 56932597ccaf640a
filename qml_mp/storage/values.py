"""Every process: what the operations of a storage are given and give."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import Enum
from typing import Final

from qml_mp.core.job import Claim, ClaimKey, Job
from qml_mp.core.state import StateName
from qml_mp.errors import ConfigurationError
from qml_mp.settings import ServerConfig
from qml_mp.units import check_longest


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """How long an ended job is kept; becomes its `expires_at`. `ConfigurationError` for what is too long."""

    succeeded_ttl: timedelta
    """Succeeded and Deleted."""
    failed_ttl: timedelta

    def __post_init__(self) -> None:
        check_longest(self.succeeded_ttl, what="Retention.succeeded_ttl")
        check_longest(self.failed_ttl, what="Retention.failed_ttl")

    @classmethod
    def of(cls, config: ServerConfig) -> Retention:
        """As the settings say."""
        return cls(succeeded_ttl=config.succeeded_ttl, failed_ttl=config.failed_ttl)


UNREAD_BYTES: Final = 96 * 1024
"""Of jobs in a reply that is not read at once. A server that has more to send than the socket holds waits, in
mid-transaction, until it is read: a Unix socket of Linux takes some 130 KB, one over TCP more."""

BY_DEFAULT = Retention.of(ServerConfig())


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
    retention: Retention = BY_DEFAULT
    """How long a job is kept that cannot be claimed, and is failed for that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """What `finish` did."""

    accepted: bool
    """False: the claim was lost to somebody else, and nothing was written about the job."""
    state: StateName | None
    """The state the job is in now because of this claim; None when the claim was lost."""
    was_written: bool = field(default=False, compare=False)
    """It was written already: by an earlier try, or by somebody else on behalf of the same claim."""
    row: Callable[[], Job] | None = field(default=None, repr=False, compare=False)
    """Makes `job`: a tenth of an empty job's time, and mostly nobody looks at it."""

    @property
    def job(self) -> Job | None:
        """The row after the write or, when an earlier write of it had landed, as it stood then; None when
        the claim was lost."""
        return None if self.row is None else self.row()


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchanged:
    """What `exchange` did."""

    finished: tuple[Finished, ...]
    """What became of each outcome, in the order given."""
    claims: tuple[Claim, ...]
    """The next jobs; fewer than asked for when there were no more, or while others were claiming. None at all
    only when there was none to claim."""


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
    method: str
    attempt: int
    """As in `Job`."""
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
    disabled: Mapping[str, str]
    """Id to reason of templates that were disabled because they cannot be read: the cron, the payload, …"""
    next_due_in: timedelta | None
    """Of the templates that it may fire."""
    unknown: Mapping[str, str] = field(default_factory=dict)
    """Id to method of due templates that were left alone, because the method is none of those asked for."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """Id to reason of due templates whose jobs a constraint or a trigger refuses, or has refused when they
    were tried last; they are due still."""


FAILED_STATES: Final = (StateName.AWAITING_RETRY, StateName.FAILED)
"""Of jobs whose failures are grouped by kind."""
FAILED_AT: Final = {StateName.FAILED: "finished_at", StateName.AWAITING_RETRY: "enqueued_at"}
"""The column that has the instant of the newest failure, by these states."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFilter:
    """Which jobs are meant; None, and an empty collection, do not restrict.

    `ConfigurationError` for an `error` that is empty: it would mean every job that has one.
    """

    states: Collection[StateName] = ()
    queue: str | None = None
    method: str | None = None
    error: str | None = None
    """A part of "type: message" of the newest error, without regard to the case of ASCII letters."""
    since: datetime | None = None
    """Ended since; of those that have not ended: waiting since, as a retry does since its last failure."""
    until: datetime | None = None
    """Likewise."""
    kind: str | None = None
    """The `key` of a `FailureKind`; only Failed and AwaitingRetry jobs are meant then."""

    def __post_init__(self) -> None:
        if self.error == "":
            raise ConfigurationError("error is empty, which every error has in it; name a part of the text.")

    def values(self) -> dict[str, object]:
        """What restricts it beside the states, by name."""
        told = {
            "queue": self.queue, "method": self.method, "error": self.error, "since": self.since,
            "until_time": self.until, "kind": self.kind,
        }  # fmt: skip
        return {name: value for name, value in told.items() if value is not None}

    def asks_for_names_alone(self) -> bool:
        """Whether beside states it restricts nothing but queue and method."""
        return self.values().keys() <= {"queue", "method"}

    @property
    def in_words(self) -> str:
        """For people: "failed, queue images"; "all"."""
        words = [" or ".join(str(state) for state in self.each_state() if self.states)]
        words += [f"{name.removesuffix('_time')} {value}" for name, value in self.values().items()]
        return ", ".join(filter(None, words)) or "all"

    def each_state(self) -> list[StateName]:
        """All that are meant."""
        possible = StateName if self.kind is None else FAILED_STATES
        return [state for state in possible if state in self.states or not self.states]


@dataclass(frozen=True, slots=True, kw_only=True)
class JobPage:
    """One page of a listing, newest first."""

    jobs: tuple[Job, ...]
    next_cursor: str | None
    """Pass it as `after` for the next page; None: this was the last."""
    previous_cursor: str | None = None
    """Pass it as `before` for the page with newer ones; None: there are none, or this page is empty."""
    looked_to: datetime | None = None
    """Jobs that were created so long ago were looked at, and on a page before a place those that were created
    until then; None: the page is full, or there are no others."""
    cut: frozenset[str] = frozenset()
    """Ids of those whose payload, result or metadata is left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureKind:
    """Failed jobs, and those that wait for a retry, whose failures are of one kind: the same method, type and
    line of the user's code."""

    count: int
    newest: Job
    """The one that failed last, without payload, result and metadata."""
    last_at: datetime
    """When that was."""
    key: str | None = None
    """What `JobFilter.kind` takes; None: rows that another program has written."""


MOST_GROUPS_OF_A_QUEUE: Final = 1000
"""Methods and priorities of one queue in which `queue_stats(among=)` looks for the oldest job."""

HEADS_OF_GROUPS: Final = {1: 1000, 10: 1000, 100: 100}
"""In a queue of up to so many methods and priorities, at how many jobs of each `queue_stats(among=)` looks
for it, as far as these are no more than `among` in all; otherwise at ten."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueStats:
    """One queue that holds jobs that have not ended."""

    name: str
    enqueued: int
    processing: int
    held: int
    """Of the Processing jobs those that a worker has claimed and not begun, as far as can be told: of what it
    holds it has begun the first."""
    oldest: timedelta | None
    """Age of the oldest Enqueued job; None when there is none."""
    is_oldest_of_some: bool = False
    """Whether `oldest` is that of the jobs that were looked at alone, as there may be more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodStats:
    """Enqueued jobs of one method in one queue."""

    queue: str
    method: str
    enqueued: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Openings:
    """What `openings` found."""

    jobs: int
    """That may begin now; `waiting.MANY_JOBS` stands for any number."""
    next_in: timedelta | None
    """In how long a rate lets one more begin; None: there is none that waits for a rate."""
    limited: bool
    """Whether there are limits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LaterWork:
    """Scheduled or AwaitingRetry jobs that are not due yet."""

    count: int
    next_due_in: timedelta | None
    """None: there are none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """What `heartbeat_server` found."""

    servers: int
    """How many are registered, with this one."""
    is_asked: bool
    """Whether something is asked of this one that it has not taken (`take_acts`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Renewed:
    """What `renew_epoch` found."""

    epoch: int
    """That of the next `Fetch`."""
    claims: tuple[Claim, ...]
    """All that the worker holds, oldest first; there can come no others by what it has sent before."""
