"""Anywhere: what a server answers to signals that ask it for something, as its row in the registry has it.

Instants are of the monotonic clock, which all processes of a machine share. Who has sent a signal waits for
an answer that began after that: whatever came of an earlier one cannot be mistaken for it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeVar, assert_never

_T = TypeVar("_T")

_LONGEST_STACK = 16 * 1024
_LONGEST_REASON = 8 * 1024


class ReloadedCode(StrEnum):
    """Which code the new workers of a reload run."""

    NEW = "new"
    OF_START = "of_start"
    """The program is in memory, as with preload."""
    CELLS_OF_START = "cells_of_start"
    """The program is by value, as a notebook has sent it: what it has imported goes by name."""

    @property
    def caveat(self) -> str:
        """What is not new of it, to stand behind what was done; "": all is."""
        match self:
            case ReloadedCode.NEW:
                return ""
            case ReloadedCode.OF_START:
                return "; they run the code that was loaded at the start; restart the server to change it"
            case ReloadedCode.CELLS_OF_START:
                return (
                    "; they import modules anew, and run the cells as they were at the start; restart the "
                    "server to change those"
                )
            case _:
                assert_never(self)


class ReloadState(StrEnum):
    """How far a reload has come."""

    LOOKING = "looking"
    """The new code is being imported by a process that lives only for that."""
    REPLACING = "replacing"
    """Workers are replaced, one by one."""
    DONE = "done"
    REFUSED = "refused"
    """The new code does not import, or its settings cannot be: no worker was touched."""
    FAILED = "failed"
    """A worker of the new code cannot boot: those that were not replaced work on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReloadAnswer:
    """What became of a SIGHUP."""

    began_at: float
    """When the look at the code began."""
    state: ReloadState
    workers: int = 0
    """To be replaced."""
    replaced: int = 0
    """Of these, those that have left."""
    why: str | None = None
    """With REFUSED and FAILED: the error, of several lines."""
    code: ReloadedCode = ReloadedCode.NEW
    """What the new workers run."""

    @property
    def is_final(self) -> bool:
        return self.state not in (ReloadState.LOOKING, ReloadState.REPLACING)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStack:
    """What one worker was doing when it was asked."""

    number: int
    pid: int
    method: str | None
    """None: it was idle."""
    stack: str | None
    """None: it has written none."""

    @property
    def in_words(self) -> str:
        return self.stack or "no stack: its job has blocked or taken the signal that asks for it"

    def cut(self) -> WorkerStack:
        """As a row holds it."""
        return dataclasses.replace(self, stack=self.stack and self.stack[:_LONGEST_STACK])


@dataclass(frozen=True, slots=True, kw_only=True)
class StacksAnswer:
    """What became of a SIGUSR1."""

    began_at: float
    workers: tuple[WorkerStack, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """The newest answer of each kind; None: there is none, or it is no more told."""

    reload: ReloadAnswer | None = None
    stacks: StacksAnswer | None = None
    stops: bool = False
    """It has begun to stop, whoever asked for that: another SIGTERM would kill what it lets end."""

    def to_text(self) -> str | None:
        """JSON text for the row; None when there is no answer."""
        if self == NO_ANSWERS:
            return None
        shortened = self
        if self.reload is not None and self.reload.why is not None:
            reload = dataclasses.replace(self.reload, why=self.reload.why[-_LONGEST_REASON:])
            shortened = dataclasses.replace(shortened, reload=reload)
        if self.stacks is not None:
            workers = tuple(each.cut() for each in self.stacks.workers)
            shortened = dataclasses.replace(
                shortened, stacks=dataclasses.replace(self.stacks, workers=workers)
            )
        return json.dumps(dataclasses.asdict(shortened))


NO_ANSWERS = Answers()


def read_answers(text: str | None) -> Answers:
    """The way back. What cannot be read, as from another version, is no answer."""
    try:
        fields: dict[str, Any] = json.loads(text or "{}")
        reload, stacks, stops = fields.get("reload"), fields.get("stacks"), bool(fields.get("stops"))
    except (ValueError, AttributeError):
        return NO_ANSWERS
    return Answers(reload=_read(_reload_of, reload), stacks=_read(_stacks_of, stacks), stops=stops)


def _read(make: Callable[[dict[str, Any]], _T], fields: dict[str, Any] | None) -> _T | None:
    """Each by itself: that a stop has begun is known whatever else has changed."""
    try:
        return make(fields) if fields else None
    except (ValueError, TypeError, KeyError):
        return None


def _reload_of(fields: dict[str, Any]) -> ReloadAnswer:
    state, code = ReloadState(fields["state"]), ReloadedCode(fields["code"])
    return ReloadAnswer(**{**fields, "state": state, "code": code})


def _stacks_of(fields: dict[str, Any]) -> StacksAnswer:
    workers = tuple(WorkerStack(**each) for each in fields["workers"])
    return StacksAnswer(began_at=fields["began_at"], workers=workers)
