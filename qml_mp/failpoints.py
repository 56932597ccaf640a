"""Anywhere: named places in the code where a test makes a process die, stop or fail.

Nothing is armed unless `QML_MP_FAILPOINTS` says so, and a place that is not armed costs a lookup
in an empty table. The variable is read here and not in `sources`, because storage and core stand
below that module; it is read at the first place that a process comes by, and forks inherit it.

    name=action, several separated by ";"
    action   kill (SIGKILL to itself), stop (SIGSTOP to itself),
             raise (`StorageUnavailable`), break (`RuntimeError`)
    :N       at the N-th time that this very process comes by; without it, at every time
    @path    only if the file is not there, and make it: of all processes and runs, once

For example "worker/storage.call=kill:3@/tmp/mark;boot=stop". A prefix "worker/" or "supervisor/"
restricts a place that both come by to one of them.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType

from qml_mp.errors import ConfigurationError, StorageUnavailable

VARIABLE = "QML_MP_FAILPOINTS"
PLACES: Mapping[str, str] = MappingProxyType(
    {
        "boot": "worker: the app is loaded, and nobody knows yet that the worker is ready",
        "claim.committed": "worker: a claim is in hand, and the job has not begun",
        "finish.before": "worker: the job has returned, and nothing of it is written",
        "finish.committed": "worker: the outcome is written, and the worker acts on no reply yet",
        "fork.before": "supervisor: signals are blocked, and there is no child yet",
        "fork.after": "supervisor: there is a child, and nobody has noted its pid",
        "settle.before": "supervisor: a worker is proved dead, and its claims are as it left them",
        "settle.finished": "supervisor: one claim of the dead is finished",
        "settle.after": "supervisor: all of the dead is settled, and it is not forgotten yet",
        "storage.call": "every process: an operation of the storage is about to begin",
        "storage.committed": "every process: it is committed, and the caller has no reply yet",
    }
)
_ENTRY = re.compile(
    r"(?:(?P<role>worker|supervisor)/)?(?P<place>[a-z.]+)=(?P<action>kill|stop|raise|break)"
    r"(?::(?P<number>[1-9][0-9]*))?(?:@(?P<once>/.+))?"
)


def hit(place: str) -> None:
    """This process has come by a place of `PLACES`."""
    points = _points()
    if points.armed:
        points.hit(place)


def play(role: str) -> None:
    """This process is a "worker" or a "supervisor" from now on, and counts from 0."""
    _points().play(role)


def arm(text: str) -> None:
    """Arm what the text says, in this process and its children, instead of what was armed before.

    Raises `ConfigurationError` when the text is not of the form above.
    """
    _points().arm(text)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Point:
    action: str
    role: str | None
    number: int | None
    once: str | None


class _Points:
    """What is armed in this process, and how often it came by each place."""

    def __init__(self, text: str) -> None:
        self.armed: dict[str, list[_Point]] = {}
        self._role: str | None = None
        self._pid = os.getpid()
        self._counts: dict[str, int] = {}
        self.arm(text)

    def arm(self, text: str) -> None:
        self.armed = _parse(text)
        self._counts.clear()

    def play(self, role: str) -> None:
        self._role = role
        self._counts.clear()

    def hit(self, place: str) -> None:
        if self._pid != os.getpid():
            self._pid = os.getpid()
            self._counts.clear()
        count = self._counts[place] = self._counts.get(place, 0) + 1
        for point in self.armed.get(place, ()):
            if point.role in (None, self._role) and point.number in (None, count) and _is_first(point.once):
                _act(point.action, place)


@cache
def _points() -> _Points:
    """Those of this process. Made at first use, so that importing has no effect."""
    return _Points(os.environ.get(VARIABLE, ""))


def _parse(text: str) -> dict[str, list[_Point]]:
    points: dict[str, list[_Point]] = {}
    for entry in filter(None, text.split(";")):
        found = _ENTRY.fullmatch(entry)
        if found is None or found["place"] not in PLACES:
            raise ConfigurationError(
                f"{VARIABLE} has {entry!r}; an entry is [worker/|supervisor/]name=action[:N][@/path] with an "
                f"action of kill, stop, raise, break and a name of {', '.join(PLACES)}."
            )
        point = _Point(
            action=found["action"],
            role=found["role"],
            number=int(found["number"]) if found["number"] else None,
            once=found["once"],
        )
        points.setdefault(found["place"], []).append(point)
    return points


def _is_first(path: str | None) -> bool:
    if path is None:
        return True
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        return False
    return True


def _act(action: str, place: str) -> None:
    match action:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "raise":
            raise StorageUnavailable(f"The failpoint {place} is armed.")
        case "break":
            raise RuntimeError(f"The failpoint {place} is armed.")
