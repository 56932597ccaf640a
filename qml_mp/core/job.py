"""Anywhere: a job, a claim of it, and their JSON form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta

from qml_mp.core.ids import check_job_id, new_job_id
from qml_mp.core.outcome import Attempt, ErrorInfo
from qml_mp.core.payload import JsonValue, check_text, encode_json
from qml_mp.core.state import AwaitingRetry, Enqueued, Failed, JobState, Scheduled, StateName, Succeeded
from qml_mp.errors import InvalidJob
from qml_mp.settings import check_queue_name

MAX_METHOD_CHARS = 200
MAX_KEY_CHARS = 500
_INT32 = range(-(2**31), 2**31)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One row: what to run, where it stands, and what has happened to it.

    Built by a client with `Job.new`; read back from a storage with everything filled in.
    Instants are aware and in UTC.
    """

    id: str
    method: str
    payload: JsonValue
    state: JobState
    created_at: datetime
    queue: str = "default"
    priority: int = 0
    """Higher first; equal priorities run oldest first."""
    max_retries: int = 0
    """Retries after the first attempt; 0 leaves it to the retry policy."""
    max_crashes: int | None = None
    """Attempts whose process died before the job ends Failed; None: the function's or the server's."""
    metadata: Mapping[str, JsonValue] = field(default_factory=dict)
    timeout: timedelta | None = None
    """Limit of one attempt; None: the server's `job_timeout`."""
    unique_key: str | None = None
    """At most one job that has not ended may carry the same key."""
    expires_at: datetime | None = None
    """When cleanup may delete the row; set when the job ends."""
    run_at: datetime | None = None
    """When a Scheduled or AwaitingRetry job becomes Enqueued."""
    started_at: datetime | None = None
    """When the newest attempt was claimed."""
    finished_at: datetime | None = None
    claim_seq: int = 0
    """How often the job was handed out; fences every write about a claim."""
    failures: int = 0
    crashes: int = 0
    last_error: ErrorInfo | None = None
    cancel_reason: str | None = None
    """Set while a cancel is asked for and the job still runs."""
    payload_error: str | None = None
    """Why the stored payload could not be read (a row not written by qml-mp); `payload` is None then."""

    @classmethod
    def new(
        cls,
        method: str,
        payload: JsonValue = None,
        *,
        queue: str = "default",
        priority: int = 0,
        max_retries: int = 0,
        max_crashes: int | None = None,
        metadata: Mapping[str, JsonValue] | None = None,
        timeout: timedelta | None = None,
        unique_key: str | None = None,
        at: datetime | None = None,
        now: datetime | None = None,
    ) -> Job:
        """A validated new job: Enqueued, or Scheduled when `at` (an aware instant) is given.

        Raises `InvalidJob` (or `ConfigurationError` for the queue's name) for anything that a
        storage could not hold.
        """
        created_at = now or datetime.now(UTC)
        if at is not None:
            at = _utc(at, what="at")
        state = (
            Enqueued(enqueued_at=created_at, queue=queue)
            if at is None
            else Scheduled(scheduled_at=created_at, enqueue_at=at)
        )
        job = cls(
            id=new_job_id(), method=method, payload=payload, state=state, created_at=created_at, queue=queue,
            priority=priority, max_retries=max_retries, max_crashes=max_crashes,
            metadata=dict(metadata or {}), timeout=timeout, unique_key=unique_key, run_at=at,
        )  # fmt: skip
        job.validate()
        return job

    def validate(self) -> None:
        """Raise `InvalidJob` (or `ConfigurationError` for the queue's name) unless the job can be stored."""
        check_job_id(self.id)
        if not isinstance(self.method, str) or not 1 <= len(self.method) <= MAX_METHOD_CHARS:
            raise InvalidJob(
                f"The method name {str(self.method)[:50]!r} must have 1 to {MAX_METHOD_CHARS} characters."
            )
        check_text(self.method, what="The method name")
        check_queue_name(self.queue)
        if (
            isinstance(self.priority, bool)
            or not isinstance(self.priority, int)
            or self.priority not in _INT32
        ):
            raise InvalidJob(f"priority is {self.priority!r}; it must be a whole number of 32 bits.")
        if (
            isinstance(self.max_retries, bool)
            or not isinstance(self.max_retries, int)
            or not 0 <= self.max_retries < 2**31
        ):
            raise InvalidJob(
                f"max_retries is {self.max_retries!r}; it must be 0 (leave it to the policy) or more."
            )
        check_max_crashes(self.max_crashes)
        if self.timeout is not None and self.timeout < timedelta(milliseconds=1):
            raise InvalidJob(
                f"timeout is {self.timeout!r}; it must be at least 1ms, or None for the server's limit."
            )
        if self.unique_key is not None:
            if not 1 <= len(self.unique_key) <= MAX_KEY_CHARS:
                raise InvalidJob(
                    f"unique_key has {len(self.unique_key)} characters; it must have 1 to {MAX_KEY_CHARS}."
                )
            check_text(self.unique_key, what="unique_key")
        encode_json(self.payload, what="The payload")
        encode_json(dict(self.metadata), what="metadata")

    def in_state(self, state: JobState) -> Job:
        """A copy in another state (no check: the storage guards transitions)."""
        return replace(self, state=state)

    @property
    def result(self) -> JsonValue:
        """What the function returned, once the job has Succeeded; else None."""
        return self.state.result if isinstance(self.state, Succeeded) else None

    @property
    def error(self) -> ErrorInfo | None:
        """The newest error, whether or not the job got over it."""
        match self.state:
            case AwaitingRetry(last_exception=error) | Failed(exception=error):
                return error
            case _:
                return self.last_error

    @property
    def state_name(self) -> StateName:
        """The name of the state."""
        name: StateName = self.state.name
        return name

    def to_json(self, attempts: tuple[Attempt, ...] = ()) -> dict[str, JsonValue]:
        """The job as `--json` prints it; instants are ISO 8601 in UTC."""
        return {
            "id": self.id,
            "method": self.method,
            "queue": self.queue,
            "priority": self.priority,
            "state": str(self.state_name),
            "payload": self.payload,
            "result": self.result,
            "failures": self.failures,
            "crashes": self.crashes,
            "claim_seq": self.claim_seq,
            "created_at": _iso(self.created_at),
            "run_at": _iso(self.run_at),
            "started_at": _iso(self.started_at),
            "finished_at": _iso(self.finished_at),
            "expires_at": _iso(self.expires_at),
            "last_error": None if self.last_error is None else asdict(self.last_error),
            "attempts": [attempt_to_json(attempt) for attempt in attempts],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimKey:
    """What fences a write: the job and the number of its hand-out."""

    job_id: str
    claim_seq: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One hand-out of a job to one worker. `job` is the row as the claim left it (Processing)."""

    job: Job
    worker_id: str
    server_id: str

    @property
    def key(self) -> ClaimKey:
        """The fence of every write about this claim."""
        return ClaimKey(job_id=self.job.id, claim_seq=self.job.claim_seq)


def check_max_crashes(value: int | None) -> int | None:
    """Return the crash budget, or raise `InvalidJob` when it cannot be one."""
    if value is not None and (
        isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 2**31
    ):
        raise InvalidJob(f"max_crashes is {value!r}; it must be 1 (no second try after a crash) or more.")
    return value


def attempt_to_json(attempt: Attempt) -> dict[str, JsonValue]:
    """An entry of `attempts` as `--json` prints it."""
    return {
        "kind": str(attempt.kind),
        "claim_seq": attempt.claim_seq,
        "worker": attempt.worker,
        "pid": attempt.pid,
        "started_at": _iso(attempt.started_at),
        "ended_at": _iso(attempt.ended_at),
        "error": None if attempt.error is None else asdict(attempt.error),
        "signal": attempt.process.signal,
        "exit_code": attempt.process.exit_code,
        "peak_rss_bytes": attempt.process.peak_rss_bytes,
        "cpu_s": attempt.process.cpu_s,
    }


def _iso(instant: datetime | None) -> str | None:
    return None if instant is None else instant.isoformat()


def _utc(instant: datetime, *, what: str) -> datetime:
    if not isinstance(instant, datetime) or instant.tzinfo is None:
        raise InvalidJob(
            f"{what} is {instant!r}; it must be an aware datetime, as datetime.now(UTC) + timedelta(hours=1)."
        )
    return instant.astimezone(UTC)
