"""Anywhere: what is asked of a server through storage, what becomes of it, and the changes that are noted
beside it: the audit.

A signal reaches a server of the same machine; a row in storage reaches every server. It names the one run of
a supervisor that is meant, and a time within which that must have taken it. What people change in jobs,
queues and templates needs no server: it stands in the same table once it is done, or before, where it takes
a while.
"""

from __future__ import annotations

import json
import uuid
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from qml_mp.clock import iso
from qml_mp.core.answers import WorkerStack

TAKEN_WITHIN = timedelta(seconds=30)
"""How long a server has to take what it is asked, unless the asker says otherwise."""


class ActKind(StrEnum):
    """What can be asked of a server."""

    STACKS = "stacks"
    """Tell the Python stack of each worker."""
    REPLACE = "replace"
    """Replace one worker, after its job."""
    RELOAD = "reload"
    """Take over new code, and replace all workers."""
    PAUSE = "pause"
    """Claim nothing, until told otherwise."""
    RESUME = "resume"
    DRAIN = "drain"
    """Claim nothing, and end what was claimed; then stop, if that was asked for."""
    STOP = "stop"


ALL_ACTS = tuple(map(str, ActKind))
"""What a server of this version can be asked."""


class ActState(StrEnum):
    """What has become of it."""

    ASKED = "asked"
    """The server has not taken it yet."""
    TAKEN = "taken"
    """The server is about it."""
    DONE = "done"
    FAILED = "failed"
    """The server could not do it, or not all of it."""
    EXPIRED = "expired"
    """It was not taken in time, and is never done."""
    GONE = "gone"
    """The server had gone before it took it. It is never done, not by a successor either."""
    UNFINISHED = "unfinished"
    """The server took it, and ended, or was about to end, before it told what came of it. Of many jobs: they
    are being changed, or were, until something ended that."""

    @property
    def is_final(self) -> bool:
        return self not in (ActState.ASKED, ActState.TAKEN)


_IN_WORDS = {
    ActState.ASKED: "waits for the server",
    ActState.TAKEN: "under way",
    ActState.DONE: "done",
    ActState.FAILED: "failed",
    ActState.EXPIRED: "not done: the server did not take it in time",
    ActState.GONE: "not done: the server had gone",
    ActState.UNFINISHED: "the server ended before it told what came of it",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Asker:
    """Who changes something, and from where."""

    who: str
    """ "user@host", or the user of a page."""
    where: str
    """ "cli", or "web" with the address of the browser."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ActRequest:
    """Something asked of one run of a server. To ask the same value again is harmless."""

    kind: ActKind
    server_id: str
    by: Asker
    worker_id: str | None = None
    """Of REPLACE: which."""
    then_stop: bool = False
    """Of DRAIN: stop the server when nothing is left of what it had claimed."""
    at_once: bool = False
    """Of STOP: kill what runs, and give its jobs back."""
    within: timedelta = TAKEN_WITHIN
    """The time limit: not taken by then, by the database's clock, it is never done."""
    id: str = field(default_factory=lambda: str(uuid.uuid4()))

    @property
    def subject(self) -> str:
        """What it is about."""
        return self.worker_id or self.server_id

    def arguments_text(self) -> str:
        """JSON text for the row."""
        return json.dumps({"worker_id": self.worker_id, "then_stop": self.then_stop, "at_once": self.at_once})


@dataclass(frozen=True, slots=True, kw_only=True)
class Act:
    """What somebody has asked of a server, or has changed, as its row has it."""

    id: str
    what: str
    """The `ActKind` of what is asked of a server; else words: "pause queue"."""
    subject: str
    """What it is about: the id of a server or worker, a queue, "12 jobs"."""
    server_id: str | None
    """None: no server is asked."""
    by: Asker
    asked_at: datetime
    state: ActState
    until: datetime | None = None
    """The time limit."""
    taken_at: datetime | None = None
    ended_at: datetime | None = None
    said: str | None = None
    """By the server: what came of it, or how far it is, for people."""
    worker_id: str | None = None
    then_stop: bool = False
    at_once: bool = False
    stacks: tuple[WorkerStack, ...] = ()
    """The answer to STACKS; a listing leaves it out."""

    @property
    def in_words(self) -> str:
        """What has become of it, for people."""
        return self.said or _IN_WORDS[self.state]

    def to_json(self) -> dict[str, Any]:
        """For programs; without the stacks."""
        return {
            "id": self.id,
            "what": self.what,
            "subject": self.subject,
            "server_id": self.server_id,
            "by": self.by.who,
            "from": self.by.where,
            "asked_at": self.asked_at.isoformat(),
            "until": iso(self.until),
            "state": str(self.state),
            "taken_at": iso(self.taken_at),
            "ended_at": iso(self.ended_at),
            "said": self.said,
        }


def stacks_text(stacks: tuple[WorkerStack, ...]) -> str | None:
    """JSON text for the row, each stack cut; None when there are none."""
    if not stacks:
        return None
    return json.dumps([asdict(each.cut()) for each in stacks])


def read_stacks(text: str | None) -> tuple[WorkerStack, ...]:
    """The way back. What cannot be read, as from another version, is none."""
    try:
        return tuple(WorkerStack(**each) for each in json.loads(text or "[]"))
    except (ValueError, TypeError):
        return ()


def read_arguments(text: str | None) -> dict[str, Any]:
    """`worker_id`, `then_stop` and `at_once` of a row, as keyword arguments."""
    try:
        found = json.loads(text or "{}")
        worker_id = found.get("worker_id")
    except (ValueError, AttributeError):
        return {}
    return {
        "worker_id": None if worker_id is None else str(worker_id),
        "then_stop": bool(found.get("then_stop")),
        "at_once": bool(found.get("at_once")),
    }
