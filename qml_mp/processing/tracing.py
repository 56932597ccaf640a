"""Client and worker: the port to what follows jobs from where they are enqueued to where they end.

Without a `Tracing` nothing of this is called. `qml_mp.otel` has the one that makes spans.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Protocol

from qml_mp.core.job import Claim, Job
from qml_mp.core.lost_attempt import LostAttempt
from qml_mp.core.outcome import Outcome
from qml_mp.errors import ConfigurationError, shown

_NEEDED = ("flush_timeout", "open", "sending", "attempt", "lost", "flush")
"""What a `Tracing` has."""


class Sending(Protocol):
    """Jobs on their way into storage."""

    @property
    def jobs(self) -> Sequence[Job]:
        """To be stored in place of those that were given: their metadata leads here."""

    def stored(self, ids: Sequence[str]) -> None:
        """They are; the ids of the jobs that stand for them, in order."""


class RunningAttempt(Protocol):
    """An attempt whose code runs now."""

    def end(self, outcome: Outcome) -> None:
        """This came of it. To be called once, in the thread that began it, after its context is gone."""


class Tracing(Protocol):
    """What a program gives to follow its jobs. Only `open` may raise: a job does not fail because of this."""

    @property
    def flush_timeout(self) -> timedelta:
        """The bound of `flush`."""

    def open(self) -> None:
        """In this process there may be spans from now on. A worker says so before its first job."""

    def sending(
        self,
        jobs: Sequence[Job],
        *,
        is_batch: bool = False,
        in_transaction: bool = False,
        parent: Job | None = None,
    ) -> AbstractContextManager[Sending]:
        """Around the enqueueing of jobs. `in_transaction`: it is the caller who commits. `parent`: the job
        that they follow, with whose success they are committed."""

    def attempt(self, claim: Claim) -> RunningAttempt:
        """Begin that of this claim; what runs in the context of the caller is part of it from now on."""

    def lost(self, attempt: LostAttempt) -> None:
        """An attempt of another worker, which is dead."""

    def flush(self) -> bool:
        """Export all that has ended; whether that worked within `flush_timeout`."""


def check_tracing(tracing: object) -> None:
    """Raise `ConfigurationError` for what is no `Tracing`; a class of them is none."""
    if isinstance(tracing, type) or not all(hasattr(tracing, name) for name in _NEEDED):
        raise ConfigurationError(
            f"tracing is {shown(tracing)}; it must be an object with {', '.join(_NEEDED)}, such as "
            "qml_mp.otel.OpenTelemetry()."
        )
