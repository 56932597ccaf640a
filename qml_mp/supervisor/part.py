"""Supervisor: what its loop asks of each thing that it looks after."""

from __future__ import annotations

from collections.abc import Collection


class Part:
    """One thing to look after: the worker processes, the guardian, a listener. Overrides what concerns it."""

    def fds(self) -> Collection[int]:
        """Readable when it wants a turn."""
        return ()

    def own_fds(self) -> Collection[int]:
        """All descriptors that it holds: a child of the supervisor must not keep one of them."""
        return self.fds()

    def next_at(self) -> float:
        """When it wants a turn although nothing is readable, on the monotonic clock."""
        return float("inf")

    def turn(self) -> None:
        """Do what is due, if anything is."""

    def before_fork(self) -> None:
        """Close what must not cross a fork."""

    def trouble(self) -> str | None:
        """What keeps the server from its work now, on one line for people; None: nothing."""

    def close(self) -> None:
        """The run ends, and no worker is left: end what still runs, and close everything."""


class Parts(Part):
    """Several of them, asked in their order. Filled last, because those that fork need all the others."""

    def __init__(self) -> None:
        self._parts: list[Part] = []

    def add(self, *parts: Part) -> None:
        """Ask these, too, after those that are there."""
        self._parts.extend(parts)

    def fds(self) -> list[int]:
        return [fd for part in self._parts for fd in part.fds()]

    def own_fds(self) -> list[int]:
        return [fd for part in self._parts for fd in part.own_fds()]

    def next_at(self, *, besides: Part | None = None) -> float:
        """The soonest of them all, or of all `besides` one."""
        instants = (
            part.next_at(besides=besides) if isinstance(part, Parts) else part.next_at()
            for part in self._parts
            if part is not besides
        )
        return min(instants, default=float("inf"))

    def turn(self) -> None:
        for part in self._parts:
            part.turn()

    def before_fork(self) -> None:
        for part in self._parts:
            part.before_fork()

    def trouble(self) -> str | None:
        return next(filter(None, (part.trouble() for part in self._parts)), None)

    def close(self) -> None:
        for part in self._parts:
            part.close()


def in_short(what: str, traceback: str) -> str:
    """A trouble on one line, for a column of the registry; the log has the whole."""
    lines = traceback.strip().splitlines()
    return f"{what}: {lines[-1].strip()}" if lines else what
