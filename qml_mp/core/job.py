"""Anywhere: a job, its id, a claim of it, and their JSON form."""

from __future__ import annotations

import os
import re
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime, timedelta
from typing import Any, Unpack

from qml_mp.clock import iso
from qml_mp.core.options import JOB_OPTIONS, JobOptions, check_given, documented, due_at
from qml_mp.core.outcome import Attempt, ErrorInfo, attempt_to_json
from qml_mp.core.payload import EncodedJson, JsonValue, check_text, encode_json
from qml_mp.core.state import (
    AwaitingRetry,
    Deleted,
    Enqueued,
    Failed,
    JobState,
    Processing,
    Scheduled,
    StateName,
    Succeeded,
)
from qml_mp.errors import InvalidJob, shown
from qml_mp.frozen import maker
from qml_mp.settings import DEFAULT_QUEUE

MAX_METHOD_CHARS = 200
PARENT_ID = "parent_id"
"""In the metadata of a job that was enqueued with the success of another: the id of that one."""
NO_RETRIES = -1
"""What the column `max_retries` holds for a job that is not to be retried; 0 means there what it does in the
reference, whose rows other programs may insert: the function or the retry policy decides."""
_CANONICAL_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


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
    # Options, which `core.options` explains and checks.
    queue: str = DEFAULT_QUEUE
    priority: int = 0
    """Equal priorities run oldest first."""
    max_retries: int | None = None
    """0: none, which the column says otherwise: `NO_RETRIES`."""
    max_crashes: int | None = None
    timeout: timedelta | None = None
    unique_key: str | None = None
    unique_for: timedelta | None = None
    """How the row is written, as the next one; a job that is read back has neither."""
    on_conflict: str = "keep"
    metadata: Mapping[str, JsonValue] = field(default_factory=dict)

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
    """Set once this very job is known to be storable; stored whatever becomes of the caller's own objects.
    A copy that `replace` makes begins without, one of `with_changes` has it too."""

    @classmethod
    @documented(JobOptions)
    def new(
        cls,
        method: str,
        payload: JsonValue | EncodedJson = None,
        *,
        now: datetime | None = None,
        **options: Unpack[JobOptions],
    ) -> Job:
        """A validated new job: Enqueued, or Scheduled when `at` or `delay` is given. Here a duration is a
        `timedelta` and nothing else. What is stored is the payload as it is now.

        Raises `InvalidJob` (or `ConfigurationError` for the queue's name) for anything that a
        storage could not hold.
        """
        check_given(options, JOB_OPTIONS)
        created_at = now or datetime.now(UTC)
        values: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
        run_at = due_at(created_at, delay=values.pop("delay", None), at=values.pop("at", None))
        if not isinstance(payload, EncodedJson):
            payload = EncodedJson.of(payload, what="The payload")
        values = _checked(method, values)
        wishes = "unique_for" in values or values.get("on_conflict", "keep") != "keep"
        if wishes and "unique_key" not in values:
            raise InvalidJob("unique_for and on_conflict say what becomes of a unique_key; give one.")
        state = (
            Enqueued(enqueued_at=created_at, queue=values.get("queue", DEFAULT_QUEUE))
            if run_at is None
            else Scheduled(scheduled_at=created_at, enqueue_at=run_at)
        )
        job = make_job(
            id=new_job_id(), method=method, payload=payload.value, state=state, created_at=created_at,
            run_at=run_at, **values,
        )  # fmt: skip
        object.__setattr__(job, "_payload_text", payload.text)
        return job

    def payload_text(self) -> str:
        """The payload as it is stored; a job is checked and encoded once, here or in `new`.

        Raises `InvalidJob` (or `ConfigurationError` for the queue's name) unless the job can be stored.
        """
        if self._payload_text is None:
            check_job_id(self.id)
            _checked(self.method, {name: getattr(self, name) for name in _COLUMNS})
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
    def attempt(self) -> int:
        """Which attempt runs, or comes next: from 1, those that crashed too."""
        return self.failures + self.crashes + 1

    @property
    def state_name(self) -> StateName:
        """The name of the state."""
        name: StateName = self.state.name
        return name

    @property
    def claim_key(self) -> ClaimKey:
        """The fence of its newest claim."""
        return ClaimKey(job_id=self.id, claim_seq=self.claim_seq)

    def to_json(self, attempts: tuple[Attempt, ...] = ()) -> dict[str, JsonValue]:
        """The job as `--json` prints it; instants are ISO 8601 in UTC. Only a job whose payload is unreadable
        has the key `payload_error`, which says why, only one whose result could not be stored has
        `result_not_stored`, and only one that follows another `parent_id`. `server_id` and `worker_id` say
        where it runs, `reason` why it was deleted or put off."""
        of_some = {
            "payload_error": self.payload_error,
            "result_not_stored": self.result_not_stored,
            PARENT_ID: self.metadata.get(PARENT_ID),
        }
        running = self.state if isinstance(self.state, Processing) else None
        return {
            "id": self.id,
            "method": self.method,
            "queue": self.queue,
            "priority": self.priority,
            "state": str(self.state_name),
            "payload": self.payload,
            "result": self.result,
            **{name: value for name, value in of_some.items() if value is not None},
            "failures": self.failures,
            "crashes": self.crashes,
            "claim_seq": self.claim_seq,
            "created_at": iso(self.created_at),
            "run_at": iso(self.run_at),
            "started_at": iso(self.started_at),
            "finished_at": iso(self.finished_at),
            "expires_at": iso(self.expires_at),
            "unique_key": self.unique_key,
            "timeout_s": None if self.timeout is None else self.timeout.total_seconds(),
            "max_retries": self.max_retries,
            "max_crashes": self.max_crashes,
            "metadata": dict(self.metadata),
            "server_id": None if running is None else running.server_name,
            "worker_id": None if running is None else running.worker_id,
            "cancel_reason": self.cancel_reason,
            "reason": self.state.reason if isinstance(self.state, Scheduled | Deleted) else None,
            "last_error": None if self.last_error is None else asdict(self.last_error),
            "attempts": [attempt_to_json(attempt) for attempt in attempts],
        }


make_job = maker(Job)
"""The constructor, for where jobs are made by the thousand."""

_COLUMNS = {each.name: JOB_OPTIONS[each.name] for each in fields(Job) if each.name in JOB_OPTIONS}
"""The options that the row holds."""


def _checked(method: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options as a row holds them. Raises `InvalidJob` or `ConfigurationError` unless one can."""
    check_method(method)
    return {name: _COLUMNS[name].check(value) for name, value in options.items()}


def check_method(method: str) -> None:
    """Raise `InvalidJob` unless a job can be of it."""
    if not isinstance(method, str) or not 1 <= len(method) <= MAX_METHOD_CHARS:
        raise InvalidJob(
            f"The method name is {shown(method)}; it must be text of 1 to {MAX_METHOD_CHARS} characters."
        )
    check_text(method, what="The method name")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimKey:
    """What fences a write: the job and the number of its hand-out."""

    job_id: str
    claim_seq: int
    _packed: bytes | None = field(default=None, init=False, repr=False, compare=False)

    @property
    def packed(self) -> bytes:
        """`KEY_BYTES` bytes, as both ends of shared memory and of a pipe know it; made once."""
        if self._packed is None:
            job = bytes.fromhex(self.job_id.replace("-", ""))  # a third of what `UUID` takes
            object.__setattr__(self, "_packed", job + self.claim_seq.to_bytes(8, "little", signed=True))
        assert self._packed is not None
        return self._packed

    @classmethod
    def unpacked(cls, packed: bytes) -> ClaimKey:
        """The way back."""
        job_id = str(uuid.UUID(bytes=packed[:16]))
        return cls(job_id=job_id, claim_seq=int.from_bytes(packed[16:], "little", signed=True))


KEY_BYTES = 24
"""Of a `ClaimKey` that is packed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One hand-out of a job to one worker. `job` is the row as the claim left it (Processing)."""

    job: Job
    worker_id: str
    server_id: str
    payload_chars: int = 0
    """How long the payload is as text; 0: not known."""
    _key: ClaimKey | None = field(default=None, init=False, repr=False, compare=False)

    @property
    def key(self) -> ClaimKey:
        """The fence of every write about this claim; made once."""
        if self._key is None:
            object.__setattr__(self, "_key", self.job.claim_key)
        assert self._key is not None
        return self._key


def new_job_id() -> str:
    """A fresh UUID of version 7 (RFC 9562): sorts by creation time to the millisecond, random otherwise."""
    since_1970 = f"{time.time_ns() // 1_000_000 & (1 << 48) - 1:012x}"
    random = os.urandom(10)
    digits = random.hex()
    variant = "89ab"[random[2] >> 6]  # of RFC 9562; takes the place of the digit that these two bits are from
    return f"{since_1970[:8]}-{since_1970[8:]}-7{digits[1:4]}-{variant}{digits[5:8]}-{digits[8:]}"


def check_is_job(given: Job) -> Job:
    """Return what was given to be enqueued, or raise `TypeError` when it is no job."""
    if not isinstance(given, Job):
        raise TypeError(
            f"{shown(given)} is no job; jobs are enqueued, as f.job(...) or app.make_job(...) makes them."
        )
    return given


def check_job_id(text: str) -> str:
    """Return the id in its canonical form, or raise `InvalidJob` when it is no UUID."""
    if type(text) is str and _CANONICAL_ID.fullmatch(text):
        return text
    try:
        return str(uuid.UUID(text))
    except (ValueError, AttributeError, TypeError):
        raise InvalidJob(
            f"{shown(text)} is not a job id; a job id is a UUID, as `qml-mp jobs list` prints it."
        ) from None
