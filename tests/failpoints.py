"""Tests: what happens at the failpoints of the package: a process kills itself, stops, or fails.

    name=action, several separated by ";"
    action   kill (SIGKILL to itself), stop (SIGSTOP to itself),
             raise (`StorageUnavailable`), break (`RuntimeError`),
             note (say in the journal that the newest run's outcome is recorded)
    :N       at the N-th time that this very process comes by; without it, at every time
    @path    only if the file is not there, and make it: of all processes and runs, once

For example "worker/storage.call=kill:3@/tmp/mark;boot=stop". A prefix "worker/" or "supervisor/"
restricts a place that both come by to one of them. Forks inherit what is armed.

    python -m tests.failpoints TEXT ARGUMENT…     the command qml-mp with the text armed
"""

from __future__ import annotations

import os
import re
import signal
import sys
from dataclasses import dataclass
from typing import Any

from qml_mp import failpoints
from qml_mp.cli.main import main
from qml_mp.errors import StorageUnavailable
from qml_mp.supervisor import stopping
from tests.processes.journal import note_recorded
from tests.until import PATIENCE_S

LEAVES_PATIENTLY = "QML_TEST_LEAVES_PATIENTLY"
"""Set it to anything: `leave_patiently`."""
TIMES_TO_LEAVE = ("_LEAVING_S", "_BUSY_LEAVING_S", "_MOST_LEAVING_S")
"""Of a server, in `qml_mp.supervisor.stopping`."""

_ENTRY = re.compile(
    r"(?:(?P<role>worker|supervisor)/)?(?P<place>[a-z.]+)=(?P<action>kill|stop|raise|break|note)"
    r"(?::(?P<number>[1-9][0-9]*))?(?:@(?P<once>/.+))?"
)
_NOTHING: Any = failpoints.hit


def arm(text: str) -> None:
    """Arm what the text says, in this process and its children, instead of what was armed before.

    Raises `ValueError` when the text is not of the form above.
    """
    package: Any = failpoints
    package.hit = _Points(_parse(text)).hit if text else _NOTHING


def leave_patiently() -> None:
    """A server of this process waits for storage at its end as long as tests wait for anything. Else it
    leaves to the next one what a database could not write within a second."""
    for name in TIMES_TO_LEAVE:
        setattr(stopping, name, PATIENCE_S)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Point:
    action: str
    role: str | None
    number: int | None
    once: str | None


class _Points:
    """What is armed in this process, and how often it came by each place."""

    def __init__(self, armed: dict[str, list[_Point]]) -> None:
        self._armed = armed
        self._role: str | None = None
        self._pid = os.getpid()
        self._counts: dict[str, int] = {}

    def hit(self, place: str) -> None:
        role, _, moment = place.partition(".")
        if moment == "begin":
            self._role = role
        if moment == "begin" or self._pid != os.getpid():
            self._pid = os.getpid()
            self._counts.clear()
        count = self._counts[place] = self._counts.get(place, 0) + 1
        for point in self._armed.get(place, ()):
            if point.role in (None, self._role) and point.number in (None, count) and _is_first(point.once):
                _act(point.action, place)


def _parse(text: str) -> dict[str, list[_Point]]:
    points: dict[str, list[_Point]] = {}
    for entry in filter(None, text.split(";")):
        found = _ENTRY.fullmatch(entry)
        if found is None or found["place"] not in failpoints.PLACES:
            raise ValueError(
                f"{entry!r} is no failpoint; one is [worker/|supervisor/]name=action[:N][@/path] with an "
                f"action of kill, stop, raise, break, note and a name of {', '.join(failpoints.PLACES)}."
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
        case "note":
            note_recorded()


if __name__ == "__main__":
    arm(sys.argv.pop(1))
    if os.environ.get(LEAVES_PATIENTLY):
        leave_patiently()
    main()
