"""Supervisor: what it says of itself in the registry, and its code's recurring templates, which storage
follows at the start and at a reload."""

from __future__ import annotations

from collections.abc import Sequence

from qml_mp.child.source import AppFacts
from qml_mp.core.recurring import RecurringJob, is_of
from qml_mp.events.facts import TemplatesFollowed
from qml_mp.storage.store import Storage
from qml_mp.supervisor.loops.loop import AT_ONCE, NEVER, Loop
from qml_mp.supervisor.loops.unknown_methods import known_to_nobody
from qml_mp.supervisor.run import Run


class SelfDescriptionLoop(Loop):
    """Due while the row says something else than the server."""

    name = "registration"

    def due_at(self) -> float:
        return AT_ONCE if self._run.registration.is_outdated else NEVER

    def tick(self, storage: Storage) -> None:
        self._run.registration.update(storage)


class TemplatesLoop(Loop):
    """Due once what the code declares is known, and storage has not followed it yet."""

    name = "templates"

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self._pending: AppFacts | None = None

    def declare(self, facts: AppFacts) -> None:
        """Have storage follow this code at the next tick."""
        self._pending = facts

    def due_at(self) -> float:
        return NEVER if self._pending is None else AT_ONCE

    def tick(self, storage: Storage) -> None:
        facts = self._pending
        if facts is None:
            return
        self._follow(storage, facts)
        if self._pending is facts:  # newer code may have been declared while storage took its time
            self._pending = None

    def _follow(self, storage: Storage, facts: AppFacts) -> None:
        declared = {template.id for template in facts.recurring}
        others = [each for each in storage.list_recurring_jobs() if each.id not in declared]
        left = [each for each in others if facts.name and each.app == facts.name]
        kept = {each.id: each.app for each in others if is_of(facts.spec, each.app) and each not in left}
        if not facts.recurring and not left and not kept:
            return
        followed = storage.follow_code(
            facts.name,
            facts.recurring,
            spec=facts.spec,
            prune=self._run.config.prune_recurring,
            spared_methods=self._known_elsewhere_only(storage, facts, left),
        )
        self._run.events.emit(
            TemplatesFollowed(
                added=followed.added,
                changed=followed.changed,
                removed=followed.removed,
                refused=followed.refused,
                kept=kept,
            )
        )

    def _known_elsewhere_only(
        self, storage: Storage, facts: AppFacts, left: Sequence[RecurringJob]
    ) -> list[str]:
        """Methods that this code lacks and another live server has: an older version that still runs, or
        another app of the same name. Their templates are not deleted under its hands."""
        lacking = {template.method for template in left}.difference(facts.methods or ())
        return sorted(lacking - known_to_nobody(storage, lacking, own_id=self._run.registration.id))
