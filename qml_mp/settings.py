"""Anywhere, no I/O: `ServerConfig`, the settings of one supervisor, validated once."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import timedelta
from itertools import takewhile
from types import MappingProxyType
from typing import Annotated, Any, TypeVar, get_type_hints

from qml_mp.errors import about_field, shown
from qml_mp.field_docs import with_fields_in_doc
from qml_mp.setting_kinds import Address, Count, Hosts, Kind, Name, Queues, Size, Switch, Time, refusal

DEFAULT_QUEUE = "default"
MOST_WORKERS = 1024
_1MS = timedelta(milliseconds=1)
_1S = timedelta(seconds=1)
_1MIB = 2**20  # below it no process of Python fits: what is meant are MiB, or no limit

_C = TypeVar("_C", bound=type)


def _noting_what_is_given(cls: _C) -> _C:
    """Make a settings dataclass remember in `given` which of its fields it was called with.

    `dataclasses.replace` passes every field: first those that it changes, then the others as they
    were, `given` at the head of them. So what comes before `given` was written by the caller.
    """
    init = cls.__init__  # type: ignore[misc]  # wrapped for this very class

    @functools.wraps(init)
    def noting(self: object, **values: Any) -> None:
        written = takewhile(lambda name: name != "given", values)
        given = frozenset(values.get("given", ())).union(written) - {"sources"}
        init(self, **{**values, "given": given})

    cls.__init__ = noting  # type: ignore[misc]
    return cls


@with_fields_in_doc
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
    sources: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)
    """No setting either: where those that were not given in code alone come from, by name, for people."""
    server_name: Annotated[str, Name()] = "qml-server"
    """Name shown to people; the id of one run is `name#uuid`."""
    worker_count: Annotated[int, Count(0, MOST_WORKERS)] = 5
    """Worker processes; 0 is legal: only the loops run."""
    polling_interval: Annotated[timedelta, Time(_1MS)] = timedelta(seconds=1)
    """How often the server looks for jobs on behalf of its idle workers where commits do not wake it; a fifth
    as often where they do."""
    job_timeout: Annotated[timedelta, Time(_1MS)] = timedelta(minutes=5)
    """Time limit of a job that sets none of its own."""
    queues: Annotated[Sequence[str], Queues()] = (DEFAULT_QUEUE,)
    """Queues served; empty means all. Unless it is set, `qml-mp start` serves those that the app declares."""
    auto_start: Annotated[bool, Switch()] = True
    """Whether `with BackgroundJobServer(...)` starts the server by itself."""
    fetch_batch_size: Annotated[int, Count(1, 1000)] = 100
    """Most jobs that a worker claims at a time (100 at most). It claims one at first, and more while jobs
    prove short: 50 ms of work, and 4 MiB of payloads, by how long those of the newest batch were. A batch of
    longer ones that follows may be as many times larger. What it has not begun goes to others when a job
    takes longer, and costs no budget when it dies."""
    enable_scheduler: Annotated[bool, Switch()] = True
    scheduler_poll_interval: Annotated[timedelta, Time(_1MS)] = timedelta(seconds=30)
    """Upper bound between two looks for due jobs; the next due instant is known and met."""
    shutdown_timeout: Annotated[timedelta, Time()] = timedelta(seconds=30)
    """What stopping allows running jobs before they are killed and given back uncharged."""
    stale_processing_after: Annotated[timedelta, Time()] = timedelta(minutes=5)
    """Processing jobs older than this are re-queued when their owner is not registered, or when it sends
    no heartbeats and its process cannot be looked up. For a server that sends none itself, an owner that has
    been silent for `dead_server_timeout` sends none."""
    enable_recurring: Annotated[bool, Switch()] = True
    recurring_poll_interval: Annotated[timedelta, Time(_1MS)] = timedelta(seconds=5)
    prune_recurring: Annotated[bool, Switch()] = True
    """At start and at a reload, delete the recurring templates that this app's code declared and no longer
    does."""
    enable_cleanup: Annotated[bool, Switch()] = True
    cleanup_interval: Annotated[timedelta, Time(_1MS)] = timedelta(minutes=1)
    succeeded_ttl: Annotated[timedelta, Time()] = timedelta(hours=24)
    """How long succeeded and deleted jobs are kept."""
    failed_ttl: Annotated[timedelta, Time()] = timedelta(days=7)
    """How long failed jobs are kept."""
    audit_ttl: Annotated[timedelta, Time()] = timedelta(days=30)
    """How long it is kept what people have asked of servers and changed."""
    history_ttl: Annotated[timedelta, Time()] = timedelta(days=7)
    """How long the counts of what came of jobs are kept, by minute; 0: this server writes none."""
    enable_heartbeat: Annotated[bool, Switch()] = True
    """Without heartbeats, peers that cannot look up this server's process judge its jobs by their age
    (`stale_processing_after`), and so does it with peers that are silent."""
    heartbeat_interval: Annotated[timedelta, Time(_1MS)] = timedelta(seconds=10)
    """Longest from one heartbeat to the next. There are at least six in each `dead_server_timeout`, and
    SQLite servers send one every two seconds."""
    dead_server_timeout: Annotated[timedelta, Time()] = timedelta(seconds=60)
    """A peer silent for longer, of which no process is seen, is dead: its jobs are re-queued and its row
    is removed. Where its own is longer, that counts. On SQLite `stale_processing_after` is enough when that
    is shorter, but 8 s at least, and `orphan_grace` + 2 s. A server without heartbeats waits for
    `stale_processing_after` too, and looks twice."""

    cancel_grace: Annotated[timedelta, Time()] = timedelta(seconds=2)
    """From asking a job to end until an exception is raised inside it."""
    term_grace: Annotated[timedelta, Time()] = timedelta(seconds=5)
    """From that exception until SIGKILL."""
    orphan_grace: Annotated[timedelta, Time()] = timedelta(seconds=5)
    """How long a busy worker may outlive its supervisor, at most two thirds of `dead_server_timeout`. In the
    last third of it, 1.5 s at most, `JobInterrupted` is raised inside its job; when that is less than a
    second, hardly or not at all."""
    boot_timeout: Annotated[timedelta, Time(_1MS)] = timedelta(seconds=60)
    """A worker that is not ready after this long is killed and counted as failed to boot."""
    max_crashes: Annotated[int, Count(1, 1000)] = 3
    """Attempts whose process died before a job ends Failed as WorkerCrashed."""
    max_jobs: Annotated[int | None, Count(1, 10**9)] = None
    """Jobs after which a worker is replaced, up to a tenth more, so that they do not all go at
    once. One is replaced at a time, and works on until it is its turn; None: never."""
    max_memory: Annotated[int | None, Size()] = None
    """Resident bytes above which a worker is replaced after a job, in its turn as for `max_jobs`; None:
    never."""
    max_memory_hard: Annotated[int | None, Size(_1MIB)] = None
    """Resident bytes (at least 1 MiB) above which a worker is killed during its job. That is a failed
    attempt, and the retry policy decides what follows, by the name `OutOfMemory`. One that is above it after
    a job takes no other; None: never."""
    unknown_method_timeout: Annotated[timedelta | None, Time(_1S)] = None
    """How long a job of the served queues may wait while no server knows its method, before it ends Failed as
    `UnknownMethod`. A server counts that from when it has seen so itself; None: such jobs wait for ever."""
    preload: Annotated[bool, Switch()] = False
    """Import the app in the supervisor and fork cheap copies; SIGHUP then picks up no new code."""

    web: Annotated[str | None, Address()] = None
    """Where the server shows the page, from a process of its own beside it; None: nowhere. Needs the extra
    `web`."""
    web_hosts: Annotated[Sequence[str] | None, Hosts()] = None
    """Names under which that page is reached besides its address and this machine's name. None: no others, or
    any name if people have to sign in."""
    metrics: Annotated[str | None, Address()] = None
    """As `web`, for `/metrics`, `/livez` and `/readyz`. Needs the extra `metrics`."""

    def __post_init__(self) -> None:
        for name, kind in SETTINGS.items():
            value = getattr(self, name)
            if value is not None or name not in _MAY_BE_NONE:
                with about_field(name):
                    object.__setattr__(self, name, kind.check(value, f"ServerConfig.{name}"))
        with about_field("max_memory_hard"):
            if self.max_memory_hard is not None and self.max_memory_hard < (self.max_memory or 0):
                bound = f"at least {self._told_of('max_memory')}"
                raise refusal("ServerConfig.max_memory_hard", self.max_memory_hard, bound)
        with about_field("dead_server_timeout"):
            if self.dead_server_timeout < 2 * self.heartbeat_interval:
                bound = f"at least twice {self._told_of('heartbeat_interval')}"
                raise refusal("ServerConfig.dead_server_timeout", self.dead_server_timeout, bound)

    def plain(self) -> dict[str, object]:
        """The arguments that make an equal value with the same `given`, as JSON can hold them."""
        values = {name: getattr(self, name) for name in SETTINGS}
        seconds = {
            name: value.total_seconds() for name, value in values.items() if isinstance(value, timedelta)
        }
        return {"given": sorted(self.given), "sources": dict(self.sources), **values, **seconds}

    def _told_of(self, name: str) -> str:
        """A setting that bounds another one, with its value and, where known, with what has set it."""
        place = f" ({self.sources[name]})" if name in self.sources else ""
        return f"{name}, which is {shown(getattr(self, name))}{place}"


SETTINGS: Mapping[str, Kind] = MappingProxyType(
    {
        name: hint.__metadata__[0]
        for name, hint in get_type_hints(ServerConfig, include_extras=True).items()
        if name not in ("given", "sources")
    }
)
"""Every setting by name, with how it may be written."""
_MAY_BE_NONE = frozenset(setting.name for setting in fields(ServerConfig) if setting.default is None)
