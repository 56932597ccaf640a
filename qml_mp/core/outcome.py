"""Anywhere: what can come of one claim of a job, as one value with every decision already in it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from signal import Signals
from typing import TYPE_CHECKING

from qml_mp.clock import iso
from qml_mp.core.payload import JsonValue, encode_json
from qml_mp.units import doubled

if TYPE_CHECKING:
    from qml_mp.core.job import Job
    from qml_mp.core.progress import Progress

_MAX_CRASH_BACKOFF_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorInfo:
    """What is kept of an exception: text only, never the object."""

    type: str
    message: str
    traceback: str | None = None


class AttemptKind(StrEnum):
    """Why an attempt did not succeed."""

    FAILURE = "failure"
    CRASH = "crash"
    TIMEOUT = "timeout"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessFacts:
    """What is known of a worker process that died, from its exit status and the kernel's accounting."""

    pid: int | None = None
    """None: it is alive, and its row in the registry tells."""
    signal: int | None = None
    exit_code: int | None = None
    peak_rss_bytes: int | None = None
    """Since the worker was started: a job before this one may have needed it."""
    cpu_s: float | None = None
    """The same."""

    @property
    def signal_name(self) -> str | None:
        """ "SIGKILL"; None: no signal has ended it."""
        try:
            return None if self.signal is None else Signals(self.signal).name
        except ValueError:  # as a real-time one
            return f"signal {self.signal}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One execution that did not succeed, as kept in the job's history."""

    kind: AttemptKind
    claim_seq: int
    worker: str
    pid: int | None
    started_at: datetime
    ended_at: datetime
    error: ErrorInfo | None
    process: ProcessFacts = ProcessFacts()


@dataclass(frozen=True, slots=True, kw_only=True)
class Extras:
    """What a job said while it ran that is written together with its outcome, in the same commit."""

    follow_ups: tuple[Job, ...] = ()
    """The jobs that are enqueued with its success; of no other outcome."""
    progress: Progress | None = None
    """How far it has come; None: it said nothing of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Success:
    """The function returned; the result is JSON."""

    result: JsonValue
    duration: timedelta
    not_stored: str | None = None
    """Why what it returned cannot be stored; `result` is None then."""
    encoded: str | None = field(default=None, repr=False, compare=False)
    """The result as its row holds it, where whoever made this knows it: it is encoded once."""
    extras: Extras | None = None
    """None, as of most jobs: a success without any is written and kept by the shortest way."""

    def result_text(self) -> str:
        """The result as its row holds it. Raises `InvalidJob` when it cannot be stored."""
        return encode_json(self.result, what="The result") if self.encoded is None else self.encoded


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """The attempt failed or timed out, and the job runs again after `delay`."""

    error: ErrorInfo
    delay: timedelta
    kind: AttemptKind = AttemptKind.FAILURE
    process: ProcessFacts = ProcessFacts()
    extras: Extras | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """The attempt failed or timed out, and the job ends."""

    error: ErrorInfo
    kind: AttemptKind = AttemptKind.FAILURE
    process: ProcessFacts = ProcessFacts()
    extras: Extras | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancelled:
    """The job was cancelled from outside and ends Deleted, with the reason."""

    reason: str
    process: ProcessFacts = ProcessFacts()


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """The claim is given back, charged to no budget: shutdown, or the worker could not run it."""

    reason: str
    not_begun: bool = False
    """The job was never in hand: nothing is counted of it, and it waits since when it has waited before."""
    process: ProcessFacts = ProcessFacts()
    """Of the worker that had begun the job, and is dead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Crash:
    """The process died under the job: charged to the crash budget, never to the retry budget."""

    error: ErrorInfo
    rerun_after: timedelta | None
    """Zero: Enqueued at once. More: AwaitingRetry for so long. None: the budget is spent, Failed."""
    process: ProcessFacts = ProcessFacts()


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryWhenKilled:
    """What the retry policy says should the attempt have to be killed, asked before it runs because the
    process that kills it knows no policy. Each: run again after so long; None: the job fails."""

    timeout: timedelta | None = None
    """For its time limit, as `JobTimeout`."""
    memory: timedelta | None = None
    """For the hard memory limit, as `OutOfMemory`."""


Outcome = Success | Retry | Failure | Cancelled | Release | Crash


def extras_of(outcome: Outcome) -> Extras | None:
    """What is to be written with it."""
    return outcome.extras if isinstance(outcome, Success | Retry | Failure) else None


def not_storable(error: Exception) -> Failure:
    """In place of an outcome that storage always refuses, so that the job does not run for ever."""
    message = f"The outcome could not be stored: {error}"
    return Failure(error=ErrorInfo(type=type(error).__name__, message=message))


def judge_crash(*, crashes_before: int, max_crashes: int, error: ErrorInfo, process: ProcessFacts) -> Crash:
    """Decide what a crash does to its job: run again at once the first time, then with backoff, then fail."""
    if crashes_before + 1 >= max_crashes:
        return Crash(error=replace(error, type="WorkerCrashed"), rerun_after=None, process=process)
    backoff_s = 0.0 if crashes_before == 0 else doubled(1.0, crashes_before - 1, longest=_MAX_CRASH_BACKOFF_S)
    return Crash(error=error, rerun_after=timedelta(seconds=backoff_s), process=process)


def attempt_to_json(attempt: Attempt) -> dict[str, JsonValue]:
    """An entry of `attempts` as `--json` prints it."""
    return {
        "kind": str(attempt.kind),
        "claim_seq": attempt.claim_seq,
        "worker": attempt.worker,
        "pid": attempt.pid,
        "started_at": iso(attempt.started_at),
        "ended_at": iso(attempt.ended_at),
        "error": None if attempt.error is None else asdict(attempt.error),
        "signal": attempt.process.signal,
        "exit_code": attempt.process.exit_code,
        "peak_rss_bytes": attempt.process.peak_rss_bytes,
        "cpu_s": attempt.process.cpu_s,
    }
