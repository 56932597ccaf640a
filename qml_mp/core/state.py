"""Anywhere: the seven states of a job, the data of each, and the one transition table.

The table is that of the reference system. The same guards stand in the WHERE clauses of the
storage backends; `tests/storage` holds both to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from types import MappingProxyType
from typing import ClassVar

from qml_mp.core.outcome import ErrorInfo
from qml_mp.core.payload import JsonValue


class StateName(StrEnum):
    """A job's state as stored, printed and compared."""

    ENQUEUED = "enqueued"
    SCHEDULED = "scheduled"
    PROCESSING = "processing"
    AWAITING_RETRY = "awaiting_retry"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    DELETED = "deleted"

    @property
    def is_final(self) -> bool:
        """Whether a job in this state stays as it is unless a person changes it."""
        return self in FINAL_STATES


FINAL_STATES = frozenset({StateName.SUCCEEDED, StateName.FAILED, StateName.DELETED})

TRANSITIONS: Mapping[StateName, frozenset[StateName]] = MappingProxyType(
    {
        StateName.ENQUEUED: frozenset(
            # Failed: a configuration error, no such method. Processing comes first in between.
            {StateName.PROCESSING, StateName.DELETED, StateName.SCHEDULED, StateName.FAILED}
        ),
        StateName.SCHEDULED: frozenset({StateName.ENQUEUED, StateName.DELETED}),
        StateName.PROCESSING: frozenset(
            {
                StateName.SUCCEEDED,
                StateName.FAILED,
                StateName.AWAITING_RETRY,
                StateName.DELETED,
                StateName.ENQUEUED,  # recovery or release only
            }
        ),
        StateName.AWAITING_RETRY: frozenset({StateName.ENQUEUED, StateName.DELETED}),
        StateName.FAILED: frozenset({StateName.ENQUEUED, StateName.AWAITING_RETRY, StateName.DELETED}),
        StateName.SUCCEEDED: frozenset({StateName.DELETED}),
        StateName.DELETED: frozenset(),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Enqueued:
    """Runnable now."""

    name: ClassVar = StateName.ENQUEUED
    enqueued_at: datetime
    queue: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheduled:
    """Runnable from `enqueue_at` on."""

    name: ClassVar = StateName.SCHEDULED
    scheduled_at: datetime
    enqueue_at: datetime
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Processing:
    """Claimed by a worker."""

    name: ClassVar = StateName.PROCESSING
    started_at: datetime
    worker_id: str
    server_name: str
    """The id of the server's run, `name#uuid`: what peers match on when they reclaim."""
    enqueued_at: datetime | None = None
    """Since when it could have been claimed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AwaitingRetry:
    """An attempt did not succeed; runnable again from `retry_at` on."""

    name: ClassVar = StateName.AWAITING_RETRY
    scheduled_at: datetime
    retry_at: datetime
    retry_count: int
    last_exception: ErrorInfo | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Succeeded:
    """Finished with a result."""

    name: ClassVar = StateName.SUCCEEDED
    succeeded_at: datetime
    duration: timedelta
    result: JsonValue
    not_stored: str | None = None
    """Why what the function returned is not in `result` (which is None then); kept in the column `reason`, so
    that no result of a user's can look like it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """Finished without success; its retry and crash budgets are spent, or it can never work."""

    name: ClassVar = StateName.FAILED
    failed_at: datetime
    exception: ErrorInfo | None
    retry_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Deleted:
    """Cancelled or deleted."""

    name: ClassVar = StateName.DELETED
    deleted_at: datetime
    reason: str | None


JobState = Enqueued | Scheduled | Processing | AwaitingRetry | Succeeded | Failed | Deleted
