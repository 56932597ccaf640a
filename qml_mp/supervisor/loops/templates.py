"""Supervisor: the recurring templates that the code declares, stored at a reload."""

from __future__ import annotations

from collections.abc import Sequence

from qml_mp.core.recurring import RecurringJob
from qml_mp.storage.protocol import Storage
from qml_mp.supervisor.loops.loop import NEVER, Tick


class Templates:
    """Those that storage has not heard of yet."""

    def __init__(self) -> None:
        self._pending: list[RecurringJob] = []

    def declare(self, templates: Sequence[RecurringJob]) -> None:
        """Store these at the next turn; they replace what was to be stored before."""
        self._pending = list(templates)

    def tick(self) -> Tick:
        """Stores one after the other; due when some are declared, and until storage has them all."""

        def store(storage: Storage) -> None:
            while self._pending:
                first = self._pending[0]
                storage.upsert_recurring_job(first)
                # Others may have been declared while storage took its time.
                self._pending = [template for template in self._pending if template is not first]

        return Tick(name="templates", interval=NEVER, body=store)
