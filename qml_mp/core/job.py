"""Anywhere: a job, a claim of it, and their JSON form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta

from qml_mp.core.ids import check_job_id, new_job_id
from qml_mp.core.outcome import Attempt, ErrorInfo
from qml_mp.core.payload import EncodedJson, JsonValue, check_text, encode_json
from qml_mp.core.state import AwaitingRetry, Enqueued, Failed, JobState, Scheduled, StateName, Succeeded
from qml_mp.errors import InvalidJob, shown
from qml_mp.settings import check_queue_name

MAX_METHOD_CHARS = 200
MAX_KEY_CHARS = 500
NO_RETRIES = -1
"""What the column `max_retries` holds for a job that is not to be retried; 0 means there what it does in the
reference, whose rows other programs may insert: the retry policy decides."""
_INT32_MAX = 2**31 - 1


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
    max_retries: int | None = None
    """Retries after the first attempt, 0: none; None leaves it to the retry policy. (The column says
    otherwise: `NO_RETRIES`.)"""
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
    _payload_text: str | None = field(default=None, init=False, repr=False, compare=False)
    """Of this very payload: a copy (`replace`) begins without."""

    @classmethod
    def new(
        cls,
        method: str,
        payload: JsonValue | EncodedJson = None,
        *,
        queue: str = "default",
        priority: int = 0,
        max_retries: int | None = None,
        max_crashes: int | None = None,
        metadata: Mapping[str, JsonValue] | None = None,
        timeout: timedelta | None = None,
        unique_key: str | None = None,
        at: datetime | None = None,
        now: datetime | None = None,
    ) -> Job:
        """A validated new job: Enqueued, or Scheduled when `at` (an aware instant) is given. What is stored
        is the payload as it is now.

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
        if not isinstance(payload, EncodedJson):
            payload = EncodedJson.of(payload, what="The payload")
        job = cls(
            id=new_job_id(), method=method, payload=payload.value, state=state, created_at=created_at,
            queue=queue, priority=priority, max_retries=max_retries, max_crashes=max_crashes,
            metadata={} if metadata is None else metadata, timeout=timeout, unique_key=unique_key, run_at=at,
        )  # fmt: skip
        object.__setattr__(job, "_payload_text", payload.text)
        job.validate()
        object.__setattr__(job, "metadata", dict(job.metadata))  # the caller may change his own
        return job

    def validate(self) -> None:
        """Raise `InvalidJob` (or `ConfigurationError` for the queue's name) unless the job can be stored."""
        check_job_id(self.id)
        if not isinstance(self.method, str) or not 1 <= len(self.method) <= MAX_METHOD_CHARS:
            raise InvalidJob(
                f"The method name is {shown(self.method)}; it must be text of 1 to {MAX_METHOD_CHARS} "
                "characters."
            )
        check_text(self.method, what="The method name")
        check_queue_name(self.queue)
        check_priority(self.priority)
        check_max_retries(self.max_retries)
        check_max_crashes(self.max_crashes)
        check_timeout(self.timeout)
        check_unique_key(self.unique_key)
        check_metadata(self.metadata)
        self.payload_text()

    def payload_text(self) -> str:
        """The payload as it is stored, encoded at the first call. Raises `InvalidJob` when it cannot be."""
        if self._payload_text is None:
            object.__setattr__(self, "_payload_text", encode_json(self.payload, what="The payload"))
        assert self._payload_text is not None
        return self._payload_text

    @property
    def result(self) -> JsonValue:
        """What the function returned, once the job has Succeeded; else None, as when it was not stored."""
        return self.state.result if isinstance(self.state, Succeeded) else None

    @property
    def result_not_stored(self) -> str | None:
        """Why what the function returned could not be stored; None: it was, or nothing was returned yet."""
        return self.state.not_stored if isinstance(self.state, Succeeded) else None

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
        """The job as `--json` prints it; instants are ISO 8601 in UTC. Only a job whose result could not be
        stored has the key `result_not_stored`, which says why."""
        dropped: dict[str, JsonValue] = {"result_not_stored": self.result_not_stored}
        return {
            "id": self.id,
            "method": self.method,
            "queue": self.queue,
            "priority": self.priority,
            "state": str(self.state_name),
            "payload": self.payload,
            "result": self.result,
            **(dropped if self.result_not_stored is not None else {}),
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


def check_priority(value: int) -> int:
    """Return the priority, or raise `InvalidJob` when it cannot be one."""
    if not _is_int(value) or not -_INT32_MAX - 1 <= value <= _INT32_MAX:
        raise InvalidJob(
            f"priority is {shown(value)}; it must be a whole number from {-_INT32_MAX - 1} to {_INT32_MAX}, "
            "the higher the sooner."
        )
    return value


def check_max_retries(value: int | None) -> int | None:
    """Return the number of retries, or raise `InvalidJob` when it cannot be one."""
    if value is not None and (not _is_int(value) or not 0 <= value <= _INT32_MAX):
        raise InvalidJob(
            f"max_retries is {shown(value)}; it must be a whole number from 0 (no retry) to {_INT32_MAX}, "
            "or None: the retry policy decides."
        )
    return value


def check_max_crashes(value: int | None) -> int | None:
    """Return the crash budget, or raise `InvalidJob` when it cannot be one."""
    if value is not None and (not _is_int(value) or not 1 <= value <= _INT32_MAX):
        raise InvalidJob(
            f"max_crashes is {shown(value)}; it must be a whole number from 1 (no second try after a crash) "
            f"to {_INT32_MAX}."
        )
    return value


def check_timeout(value: timedelta | None) -> timedelta | None:
    """Return the time limit of one attempt, or raise `InvalidJob` when it cannot be one."""
    if value is not None and (not isinstance(value, timedelta) or value < timedelta(milliseconds=1)):
        raise InvalidJob(
            f"timeout is {shown(value)}; it must be a timedelta of at least 1ms, or None: the server's limit."
        )
    return value


def check_unique_key(value: str | None) -> str | None:
    """Return the key, or raise `InvalidJob` when it cannot be one."""
    if value is None:
        return None
    if not isinstance(value, str) or not 1 <= len(value) <= MAX_KEY_CHARS:
        raise InvalidJob(f"unique_key is {shown(value)}; it must be text of 1 to {MAX_KEY_CHARS} characters.")
    return check_text(value, what="unique_key")


def check_metadata(value: Mapping[str, JsonValue]) -> Mapping[str, JsonValue]:
    """Return the metadata, or raise `InvalidJob` when it cannot be stored."""
    if not isinstance(value, Mapping):
        raise InvalidJob(f"metadata is {shown(value)}; it must be a mapping with text as its keys.")
    encode_json(dict(value), what="metadata")
    return value


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


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
            f"{what} is {shown(instant)}; it must be an aware datetime, as "
            "datetime.now(UTC) + timedelta(hours=1)."
        )
    return instant.astimezone(UTC)
