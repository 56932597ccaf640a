"""Anywhere, no I/O: `ServerConfig`, the settings of one supervisor, validated once."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import timedelta
from itertools import takewhile
from types import MappingProxyType
from typing import TypeVar

from qml_mp.errors import ConfigurationError, shown
from qml_mp.units import parse_duration, parse_size

DEFAULT_QUEUE = "default"
_NAME = re.compile(r"[A-Za-z0-9_.:@-]{1,100}")
_MAX_WORKERS = 1024
_MAX_QUEUES = 100
_MAX_BATCH = 1000
_AT_LEAST_ONE_MS = (
    "polling_interval", "scheduler_poll_interval", "recurring_poll_interval", "cleanup_interval",
    "heartbeat_interval", "job_timeout", "boot_timeout",
)  # fmt: skip

_C = TypeVar("_C", bound=type)


def _noting_what_is_given(cls: _C) -> _C:
    """Make a settings dataclass remember in `given` which of its fields it was called with.

    `dataclasses.replace` passes every field: first those that it changes, then the others as they
    were, `given` at the head of them. So what comes before `given` was written by the caller.
    """
    init = cls.__init__  # type: ignore[misc]  # wrapped for this very class

    @functools.wraps(init)
    def noting(self: object, **values: object) -> None:
        init(self, **values)
        before = values.get("given", ())
        assert isinstance(before, Iterable)
        written = takewhile(lambda name: name != "given", values)
        object.__setattr__(self, "given", frozenset(before).union(written))

    cls.__init__ = noting  # type: ignore[misc]
    return cls


@_noting_what_is_given
@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """Settings of a `BackgroundJobServer`. Durations also accept seconds or text like "5m".

    The first group has the names and defaults of the reference system; two of its defaults are
    changed: heartbeats are on, and the sweep at start never touches a job whose owner is provably alive.
    Raises `ConfigurationError` that names field, value and bound.
    """

    given: frozenset[str] = field(default=frozenset(), repr=False, compare=False)
    """No setting: the names of the fields that were written, be it at their default. They win over the
    environment. Filled in by itself, and kept by `dataclasses.replace`; stands first, as that needs."""
    server_name: str = "qml-server"
    """Name shown to people; the id of one run is `name#uuid`."""
    worker_count: int = 5
    """Worker processes; 0 is legal: only the loops run."""
    polling_interval: timedelta = timedelta(seconds=1)
    """Longest that an idle worker goes without looking for jobs; wake-ups make it sooner."""
    job_timeout: timedelta = timedelta(minutes=5)
    """Time limit of a job that sets none of its own."""
    queues: Sequence[str] = (DEFAULT_QUEUE,)
    """Queues served; empty means all. Unless it is set, `qml-mp start` serves those that the app declares."""
    auto_start: bool = True
    """Whether `with BackgroundJobServer(...)` starts the server by itself."""
    fetch_batch_size: int = 10
    """Most due jobs that the scheduler promotes in one statement. A worker always claims one job
    at a time, so that a crash puts one job in doubt and never a batch."""
    enable_scheduler: bool = True
    scheduler_poll_interval: timedelta = timedelta(seconds=30)
    """Upper bound between two looks for due jobs; the next due instant is known and met."""
    shutdown_timeout: timedelta = timedelta(seconds=30)
    """What stopping allows running jobs before they are killed and given back uncharged."""
    stale_processing_after: timedelta = timedelta(minutes=5)
    """Processing jobs older than this are re-queued when their owner is not registered, or when it sends
    no heartbeats and its process cannot be looked up."""
    enable_recurring: bool = True
    recurring_poll_interval: timedelta = timedelta(seconds=5)
    enable_cleanup: bool = True
    cleanup_interval: timedelta = timedelta(minutes=1)
    succeeded_ttl: timedelta = timedelta(hours=24)
    """How long succeeded and deleted jobs are kept."""
    failed_ttl: timedelta = timedelta(days=7)
    """How long failed jobs are kept."""
    enable_heartbeat: bool = True
    """Without heartbeats, peers that cannot look up this server's process judge its jobs by their age
    (`stale_processing_after`), and it judges nobody by silence."""
    heartbeat_interval: timedelta = timedelta(seconds=10)
    """Longest from one heartbeat to the next; SQLite servers send one every two seconds."""
    dead_server_timeout: timedelta = timedelta(seconds=60)
    """A peer silent for longer, of which no process is seen, is dead: its jobs are re-queued and its row
    is removed. On SQLite `stale_processing_after` is enough when that is shorter, but 8 s at least."""

    cancel_grace: timedelta = timedelta(seconds=2)
    """From asking a job to end until an exception is raised inside it."""
    term_grace: timedelta = timedelta(seconds=5)
    """From that exception until SIGKILL."""
    orphan_grace: timedelta = timedelta(seconds=5)
    """How long a busy worker may outlive its supervisor."""
    boot_timeout: timedelta = timedelta(seconds=60)
    """A worker that is not ready after this long is killed and counted as failed to boot."""
    max_crashes: int = 3
    """Attempts whose process died before a job ends Failed as WorkerCrashed."""
    max_jobs: int | None = None
    """Jobs after which a worker is replaced, up to a tenth more, so that they do not all go at
    once; None: never."""
    max_memory: int | None = None
    """Resident bytes above which a worker is replaced after its job; None: never."""
    max_memory_hard: int | None = None
    """Resident bytes above which a worker is killed during its job. That is a failed attempt, and the
    retry policy decides what follows, by the name `OutOfMemory`; None: never."""
    preload: bool = False
    """Import the app in the supervisor and fork cheap copies; SIGHUP then picks up no new code."""

    def __post_init__(self) -> None:
        for name, kind in SETTINGS.items():
            if kind == "timedelta":
                value = parse_duration(getattr(self, name), what=f"ServerConfig.{name}")
                object.__setattr__(self, name, value)
        if isinstance(self.queues, str):
            raise _bad("queues", self.queues, 'a list of names such as ["default", "images"]')
        object.__setattr__(self, "queues", tuple(dict.fromkeys(self.queues)))
        for name in ("max_memory", "max_memory_hard"):
            size = getattr(self, name)
            if size is not None:
                object.__setattr__(self, name, parse_size(size, what=f"ServerConfig.{name}"))
        self._validate()

    def plain(self) -> dict[str, object]:
        """The arguments that make an equal value with the same `given`, as JSON can hold them."""
        values = {name: getattr(self, name) for name in SETTINGS}
        seconds = {
            name: value.total_seconds() for name, value in values.items() if isinstance(value, timedelta)
        }
        return {"given": sorted(self.given), **values, **seconds}

    def _validate(self) -> None:
        if not isinstance(self.server_name, str) or not _NAME.fullmatch(self.server_name):
            raise _bad("server_name", self.server_name, "1 to 100 letters, digits or any of _ . : @ -")
        _check_count("worker_count", self.worker_count, 0, _MAX_WORKERS)
        _check_count("fetch_batch_size", self.fetch_batch_size, 1, _MAX_BATCH)
        _check_count("max_crashes", self.max_crashes, 1, 1000)
        if self.max_jobs is not None:
            _check_count("max_jobs", self.max_jobs, 1, 10**9)
        if len(self.queues) > _MAX_QUEUES:
            raise _bad(
                "queues", f"{len(self.queues)} names", f"at most {_MAX_QUEUES} names (empty serves all)"
            )
        for queue in self.queues:
            check_queue_name(queue)
        for name in _AT_LEAST_ONE_MS:
            if getattr(self, name) < timedelta(milliseconds=1):
                raise _bad(name, getattr(self, name), "at least 1ms")
        if self.max_memory_hard is not None and self.max_memory_hard < (self.max_memory or 0):
            raise _bad("max_memory_hard", self.max_memory_hard, "at least max_memory")
        if self.dead_server_timeout < 2 * self.heartbeat_interval:
            raise _bad("dead_server_timeout", self.dead_server_timeout, "at least twice heartbeat_interval")


SETTINGS: Mapping[str, str] = MappingProxyType(
    {setting.name: str(setting.type) for setting in fields(ServerConfig) if setting.name != "given"}
)
"""Every setting by name, with its type as text."""


def check_queue_name(queue: str) -> str:
    """Return the queue's name, or raise `ConfigurationError` when it cannot be one."""
    if not isinstance(queue, str) or not _NAME.fullmatch(queue):
        raise ConfigurationError(
            f"The queue name {shown(queue)} is not usable; use 1 to 100 letters, digits or any of _ . : @ -"
        )
    return queue


def _check_count(name: str, value: int, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise _bad(name, value, f"a whole number from {low} to {high}")


def _bad(name: str, value: object, bound: str) -> ConfigurationError:
    return ConfigurationError(f"ServerConfig.{name} is {shown(value)}; it must be {bound}.")
