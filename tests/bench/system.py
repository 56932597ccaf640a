"""Benchmark: what a system under measurement has to say about itself. Each is one file in `systems/`."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from importlib import metadata
from typing import ClassVar

from tests.bench.place import Place
from tests.bench.work import Work

Command = Sequence[str]


class Kind(StrEnum):
    """What it is in the comparison."""

    PROJECT = "project"
    PEER = "peer"
    LIMIT = "limit"
    """Not a job system: what the machine and the database allow."""


class Backend(StrEnum):
    """Where the jobs lie."""

    POSTGRES = "postgres"
    SQLITE = "sqlite"
    NONE = "none"
    """In memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class System(ABC):
    """One system with one set of settings. Its programs are started in the environment of a `Place`."""

    name: str
    backend: Backend
    settings: str
    """What differs from the defaults, for the table."""
    durability: str
    """What a power cut may take."""
    usual_jobs_per_s: int
    """Of empty jobs, roughly, on a small machine: how many are enqueued for a measurement goes by it."""

    kind: ClassVar[Kind] = Kind.PEER
    package: ClassVar[str | None] = None
    """The distribution whose version stands in the table; None: it is a part of this benchmark."""

    @abstractmethod
    def workers(self, place: Place) -> Sequence[Command]:
        """What is started, side by side, to have `place.workers` processes run jobs until SIGTERM."""

    def install(self, place: Place) -> Sequence[Command]:
        """What makes its tables, one after the other."""
        return ()

    def environment(self) -> Mapping[str, str]:
        """For all its programs."""
        return {}

    def version(self) -> str:
        """Raises `metadata.PackageNotFoundError` when it is not installed."""
        return metadata.version(self.package) if self.package else "-"

    def program(self, function: str, *arguments: str) -> Command:
        """A function of its own module, called in a process of its own."""
        return program(type(self).__module__, function, *arguments)


class Producer(ABC):
    """Enqueues jobs, in a process of its own that lives as long as the run."""

    @abstractmethod
    def bulk(self, works: Sequence[Work]) -> None:
        """All of them by the fastest documented way, committed when it returns."""

    @abstractmethod
    def single(self, work: Work) -> None:
        """One, as a web request would, committed when it returns."""

    def close(self) -> None:
        """The end of the run."""
        return None


def program(module: str, function: str, *arguments: str) -> Command:
    """A function of a module, called in a process of its own."""
    return (sys.executable, "-m", "tests.bench.program", module, function, *arguments)


def console_script(name: str, *arguments: str) -> Command:
    """A command that a peer has installed beside this Python."""
    return (sys.executable.rpartition("/")[0] + "/" + name, *arguments)
