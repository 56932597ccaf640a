"""Supervisor: keeps true what the registry says of this server, between start and end."""

from __future__ import annotations

from qml_mp.storage.store import Storage
from qml_mp.supervisor.loops.loop import AT_ONCE, NEVER, Loop
from qml_mp.supervisor.run import Run


class SelfDescriptionLoop(Loop):
    """Due while the row says something else than the server."""

    def __init__(self, run: Run) -> None:
        super().__init__("registration")
        self._registration = run.registration

    def due_at(self) -> float:
        return AT_ONCE if self._registration.is_outdated else NEVER

    def tick(self, storage: Storage) -> None:
        self._registration.update(storage)
