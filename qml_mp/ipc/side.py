"""Both ends of the pipes between a supervisor and a process that runs beside it: the page, the metrics.

The first line to it says what it serves and where. Each further line is a report, at most one a second, and
the end of the file says that the supervisor is gone. The lines that come back tell where it serves, or why it
does not, and what it logs. Whatever is not taken at once is not said: neither waits for the other.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class SideArguments:
    """What such a process is told at its start. By a pipe, because the URL may hold a password."""

    address: str
    """HOST:PORT."""
    url: str
    supervisor_pid: int
    log_level: int
    config: Mapping[str, Any]
    """`ServerConfig.plain()`."""
    token: str | None = field(repr=False)
    """With what people sign in on the page; None: they do not."""

    def line(self) -> bytes:
        return _line(self)

    @classmethod
    def of(cls, line: bytes) -> SideArguments:
        return cls(**json.loads(line))


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopReport:
    """How the ticks of one loop go."""

    name: str
    succeeded_at: float | None
    """Unix time of the newest tick that did what it should; None: none has."""
    due_since: float | None
    """Since when it should have ticked, on the monotonic clock; None: it is not due."""
    failing_since: float | None
    """The first of the ticks that have failed in a row, on the same clock; None: the newest has not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerReport:
    """One worker."""

    number: int
    pid: int
    state: str
    """booting, idle, busy or leaving."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EndsReport:
    """What attempts of one method and queue have come to since the start, and how often."""

    method: str
    queue: str
    ending: str
    """Of `core.history.Ending`."""
    numbers: Sequence[int]
    """Those of a `core.history.Tally`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerReport:
    """How a server does, as its supervisor says. Made and sent within a turn of it, so that a supervisor that
    hangs says nothing new."""

    at: float
    """When it was made, on the monotonic clock that all processes of a machine share."""
    server_id: str
    started_at: float
    """Unix time."""
    wanted_workers: int
    workers: Sequence[WorkerReport]
    loops: Sequence[LoopReport]
    is_stopping: bool
    is_paused: bool
    storage_fails: bool
    """The newest try to reach storage failed."""
    trouble: str | None
    deaths: Mapping[str, int] = field(default_factory=dict)
    """Of workers since the start, by their cause; 0 of one that has not been yet."""
    storage_errors: Mapping[str, int] = field(default_factory=dict)
    """Since the start, by whose they were: the supervisor's or the workers'."""
    lost_claims: int = 0
    firings: Mapping[str, int] = field(default_factory=dict)
    """Of recurring templates since the start, by method."""
    ends: Sequence[EndsReport] = field(default_factory=list)
    """Those that are new since the report before, or have grown: the others are as they were."""
    has_told_all_ends: bool = True
    """Whether no others are left that this and the reports before it to the same process have not told."""

    def line(self) -> bytes:
        return _line(self)

    @classmethod
    def of(cls, line: bytes) -> ServerReport:
        values = json.loads(line)
        workers = [WorkerReport(**each) for each in values.pop("workers")]
        loops = [LoopReport(**each) for each in values.pop("loops")]
        ends = [EndsReport(**each) for each in values.pop("ends")]
        return cls(workers=workers, loops=loops, ends=ends, **values)


@dataclass(frozen=True, slots=True, kw_only=True)
class SideWord:
    """What such a process says: one of the three."""

    serves_at: str | None = None
    """A URL."""
    cannot: str | None = None
    """Why it does not serve, in a sentence for people; it leaves."""
    log: tuple[int, str, str, str | None] | None = None
    """A record: level, logger, message, and its traceback if it has one."""

    def line(self) -> bytes:
        return _line(self)

    @classmethod
    def of(cls, line: bytes) -> SideWord | None:
        """None: it is none, but something that was printed there."""
        try:
            values: dict[str, Any] = json.loads(line)
            log = values.pop("log")
            return cls(log=None if log is None else _log_of(*log), **values)
        except (ValueError, TypeError, KeyError, AttributeError, IndexError):
            return None


def _log_of(level: object, name: object, message: object, trace: object) -> tuple[int, str, str, str | None]:
    return int(str(level)), str(name), str(message), None if trace is None else str(trace)


def _line(record: object) -> bytes:
    return json.dumps(_values(record), default=_values).encode() + b"\n"


def _values(record: Any) -> dict[str, object]:
    """Of one record and not of those in it, of which a report has many."""
    return {each.name: getattr(record, each.name) for each in fields(record)}
