"""Anywhere: what the registry says of a server's run and of its workers."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import datetime

from qml_mp.core.answers import NO_ANSWERS, Answers


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessIdentity:
    """A process that can be told from every other one that ever had its pid.

    `host` names the running kernel and pid namespace (two containers share neither by chance),
    `started_ticks` is the kernel's start time of the process in clock ticks after boot.
    """

    host: str
    pid: int
    started_ticks: int
    works_here: bool = True
    """Whether it works on the storage that tells of it: the copy of a storage tells of the processes of the
    one that it was copied from, which are nobody's business there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfDescription:
    """What a server says of itself, and may change between start and end."""

    queues: tuple[str, ...]
    """What it serves; none: all."""
    methods: tuple[str, ...] | None = None
    """What its program can run; None: it has not said (an older version, or a server without a program)."""
    paused: bool = False
    """Whether it has been told to claim nothing."""
    trouble: str | None = None
    """What keeps it from its work now, for people: "the new code cannot be imported: …"; None: nothing."""
    answers: Answers = NO_ANSWERS
    """To signals that ask for something."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerInfo(SelfDescription):
    """One run of a supervisor. Written by it at start and on each heartbeat, read by everybody."""

    id: str
    name: str
    hostname: str
    process: ProcessIdentity
    worker_count: int
    started_at: datetime
    last_heartbeat: datetime
    heartbeat_enabled: bool = False
    """Whether silence means anything: a server without heartbeats is judged by its process alone."""
    acts: tuple[str, ...] = ()
    """What it can be asked through storage (`ActKind`); nothing of an older version."""

    def can(self, act: str) -> bool:
        """Whether it can be asked that through storage."""
        return act in self.acts

    def knows(self, method: str) -> bool:
        """Whether its program has the method; one that has not said may have it."""
        return self.methods is None or method in self.methods

    def fires(self, method: str) -> bool:
        """Whether it fires templates of the method: those that it knows, and all when it knows none, as it is
        there for its loops alone then."""
        return not self.methods or method in self.methods

    def serves(self, queue: str) -> bool:
        """Whether it takes jobs of the queue; without names it takes those of all."""
        return not self.queues or queue in self.queues


_WORKER = ":worker:"


def new_server_id(server_name: str) -> str:
    """The id of one run of a supervisor: `name#uuid`."""
    return f"{server_name}#{uuid.uuid4()}"


def new_worker_id(server_id: str, *, number: int, nth: int) -> str:
    """The id of a worker: the place that it fills, and how many the run has forked up to it."""
    return f"{server_id}{_WORKER}{number}.{nth}"


def number_of_worker(worker_id: str) -> str:
    """The place that the worker fills, as its id has it."""
    return worker_id.rpartition(_WORKER)[2].partition(".")[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerInfo:
    """One worker process. Written by itself when it is ready; removed by its supervisor."""

    id: str
    server_id: str
    number: int
    """1 … N, the place it fills; a replacement has the same number and another id."""
    process: ProcessIdentity
    started_at: datetime
    rss_bytes: int | None = None
    """Resident memory at the supervisor's last heartbeat, for readers on other hosts."""
    epoch: int = 0
    """Raised by the worker after a lost reply: what it sent under a lower one can claim nothing any more."""
