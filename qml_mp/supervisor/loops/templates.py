"""Supervisor: stores the recurring templates that new code declares."""

from __future__ import annotations

from collections.abc import Sequence

from qml_mp.core.recurring import RecurringJob
from qml_mp.storage.store import Storage
from qml_mp.supervisor.loops.loop import AT_ONCE, NEVER, Loop


class TemplatesLoop(Loop):
    """Due while some are declared that storage does not have."""

    def __init__(self) -> None:
        super().__init__("templates")
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
