"""Supervisor: what it says of itself in the registry, and the templates that its code declares, written to
storage when they have changed."""

from __future__ import annotations

from collections.abc import Sequence

from qml_mp.core.recurring import RecurringJob
from qml_mp.storage.store import Storage
from qml_mp.supervisor.loops.loop import AT_ONCE, NEVER, Loop
from qml_mp.supervisor.run import Run


class SelfDescriptionLoop(Loop):
    """Due while the row says something else than the server."""

    name = "registration"

    def due_at(self) -> float:
        return AT_ONCE if self._run.registration.is_outdated else NEVER

    def tick(self, storage: Storage) -> None:
        self._run.registration.update(storage)


class TemplatesLoop(Loop):
    """Due while recurring templates are declared that storage does not have."""

    name = "templates"

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self._pending: list[RecurringJob] = []

    def declare(self, templates: Sequence[RecurringJob]) -> None:
        """Store these at the next tick; they replace what was to be stored before."""
        self._pending = list(templates)

    def due_at(self) -> float:
        return AT_ONCE if self._pending else NEVER

    def tick(self, storage: Storage) -> None:
        while self._pending:
            first = self._pending[0]
            storage.upsert_recurring_job(first)
            # Others may have been declared while storage took its time.
            self._pending = [template for template in self._pending if template is not first]
