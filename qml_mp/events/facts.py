"""Every process: the facts that an operator could want to know, one type each.

A fact carries what a claim, a worker or a server is known by, and what the log and the counts say of it;
never a payload or a result. `Event` is all of them, for a `match` that typing holds to be complete.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

from qml_mp.core.answers import ReloadedCode
from qml_mp.core.job import Claim
from qml_mp.core.outcome import AttemptKind, ErrorInfo, ProcessFacts
from qml_mp.core.recurring import Followed
from qml_mp.core.state import StateName

# Jobs


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimFacts:
    """What a claim is known by."""

    job_id: str
    method: str
    claim_seq: int
    attempt: int
    """Of this job, from 1: the failures and crashes before it, and this one."""
    worker_id: str

    @classmethod
    def of(cls, claim: Claim) -> ClaimFacts:
        job = claim.job
        return cls(
            job_id=job.id, method=job.method, claim_seq=job.claim_seq, attempt=job.attempt,
            worker_id=claim.worker_id,
        )  # fmt: skip

    def in_record(self) -> dict[str, object]:
        """What a record of ours that is about this attempt carries, wherever it is made."""
        return {
            "job_id": self.job_id, "method": self.method, "attempt": self.attempt,
            "worker_id": self.worker_id,
        }  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class JobEvent:
    """Something has come of a claim."""

    claim: ClaimFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimFound(JobEvent):
    """A worker learned of a claim whose reply had been lost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptFailed(JobEvent):
    """The attempt raised or asked for a retry, passed its time limit, or its process died."""

    kind: AttemptKind
    count: int
    """Crashes for a crash, failures for all else, this one included."""
    budget: int | None
    """How many of those there may be; None: not known."""
    error: ErrorInfo | None
    runs_in: timedelta | None
    """When the job runs again; None: it has failed for good."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobCancelled(JobEvent):
    """The job was cancelled from outside."""

    reason: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class JobReleased(JobEvent):
    """The claim was given back, charged to no budget."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimLost(JobEvent):
    """The job is somebody else's by now; the outcome was not written."""

    dead_worker: WorkerStopped | None = None
    """In whose name a supervisor wanted to write it; None: the worker itself did."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimReclaimed(JobEvent):
    """A supervisor gave back a claim whose worker is gone, and which was left over when that was settled."""

    state: StateName | None
    """What the job is now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelStarted:
    """A supervisor begins to end a running job that somebody wants cancelled."""

    claim: ClaimFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateFired:
    """A recurring template was due, and its job is enqueued."""

    template_id: str
    job_id: str
    method: str
    queue: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplatesFollowed:
    """Storage has followed the recurring templates of the code."""

    followed: Followed
    kept: Mapping[str, str | None] = field(default_factory=dict)
    """Id to owner of those of the same "module:attribute" in another folder, which stay."""
    misfits: Mapping[str, str] = field(default_factory=dict)
    """Id to why of those whose payload does not fit their function."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateDisabled:
    """A recurring template fires no more, because it cannot be read; the reason says what of it."""

    template_id: str
    reason: str


# Workers


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerEvent:
    """Something has happened to a worker of this server."""

    worker_id: str
    number: int
    """The place that it fills, 1 … N."""
    pid: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStarted(WorkerEvent):
    """It was forked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerReady(WorkerEvent):
    """It has booted."""

    replaces: str | None
    """The worker whose place it takes, which is told to leave; None: the place was free."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStopped(WorkerEvent):
    """It is proved dead."""

    process: ProcessFacts
    how: str
    """ "left as told", "was killed by SIGKILL": for people."""
    was_orderly: bool
    """It left as designed, without a job in hand."""
    cause: str = "exit"  # `how` as one of few words, for counts: `Death.cause`


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkersCannotBoot:
    """New workers die before they are ready."""

    error: str
    """Told once, however many die of it."""
    old_ones_stay: bool
    """They were to replace workers, who work on instead."""


# Servers


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerDeclaredDead:
    """A peer took this server for dead, and gave its jobs to others."""

    server_id: str
    goes_on_as: str


@dataclass(frozen=True, slots=True, kw_only=True)
class JobsReclaimed:
    """Jobs that somebody else had claimed are enqueued again, or Deleted where their cancel was asked for."""

    jobs: int
    server_id: str | None
    """Who had claimed them; None: servers of whom nothing told but the age of their claims."""
    was_silent: bool = False
    """The server was judged by its silence; False: its process is proved dead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerReloaded:
    """The workers are to be replaced one by one."""

    queues: Sequence[str] = ()
    methods: Sequence[str] | None = None
    """What new code serves."""
    code: ReloadedCode = ReloadedCode.NEW


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerStopping:
    """The server was told to stop."""

    why: str
    allowed: timedelta | None
    """What running jobs have; None: nothing, they are killed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerStopped:
    """No process of the server is left, and storage was told, if it could be."""


# What is tried again


@dataclass(frozen=True, slots=True, kw_only=True)
class TryFailed:
    """Something does not work, and is tried again."""

    what: str
    """ "The cleanup loop failed", "Cannot claim a job": for people."""
    error: Exception
    retry_in: timedelta
    is_repeated: bool
    """A try failed in the very same way since it last worked, or ten did so in different ways."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageLost(TryFailed):
    """It is storage that does not answer, or refuses what a worker cannot go on without."""

    worker_id: str | None = None
    """Who has tried; None: the supervisor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TryWorked:
    """What had failed works again."""

    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageBack(TryWorked):
    """Storage answers again."""

    what: str = "Storage answers again"
    worker_id: str | None = None


JobFact = ClaimFound | AttemptFailed | JobCancelled | JobReleased | ClaimLost | ClaimReclaimed
ServerFact = ServerDeclaredDead | JobsReclaimed | ServerReloaded | ServerStopping | ServerStopped
Event = (
    JobFact | CancelStarted | TemplateFired | TemplatesFollowed | TemplateDisabled | WorkerStarted | TryFailed
    | WorkerReady | WorkerStopped | WorkersCannotBoot | ServerFact | StorageLost | TryWorked | StorageBack
)  # fmt: skip
