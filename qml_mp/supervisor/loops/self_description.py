"""Supervisor: keeps true what the registry says of this server, between start and end."""

from __future__ import annotations

from qml_mp.storage.store import Storage
from qml_mp.supervisor.loops.loop import OnDemandLoop
from qml_mp.supervisor.registration import ServerRegistration


class SelfDescriptionLoop(OnDemandLoop):
    """Writes what has changed."""

    def __init__(self, registration: ServerRegistration) -> None:
        super().__init__("registration")
        self._registration = registration

    def has_work(self) -> bool:
        return self._registration.is_outdated

    def tick(self, storage: Storage) -> None:
        self._registration.update(storage)
