"""Supervisor: what it says of itself in the registry, and what its code declares (limits, hooks, recurring
templates), which storage follows at the start and at a reload."""

from __future__ import annotations

from collections.abc import Callable, Sequence

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


class DeclarationsLoop(Loop):
    """Due once what the code declares is known, and storage has not followed it yet.

    Each part is done once for each code: of two servers whose code says different things, the one that was
    started or reloaded last has its way, whatever becomes of the workers of the other.
    """

    name = "declarations"

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self._facts = AppFacts()
        self._pending: list[Callable[[Storage, AppFacts], None]] = []
        """What storage has not followed yet."""

    def declare(self, facts: AppFacts) -> None:
        """Have storage follow this code at the next tick."""
        self._facts = facts
        self.declare_again()

    def declare_again(self) -> None:
        """Have storage follow the same code once more at the next tick."""
        self._pending = [self._limit, self._hook, self._follow]

    def due_at(self) -> float:
        return AT_ONCE if self._pending else NEVER

    def tick(self, storage: Storage) -> None:
        facts, pending = self._facts, self._pending
        while pending:  # newer code, declared while storage takes its time, brings a list of its own
            pending[0](storage, facts)
            del pending[0]

    def _limit(self, storage: Storage, facts: AppFacts) -> None:
        storage.declare_limits(facts.methods or (), {limit.name: limit for limit in facts.limits})

    def _hook(self, storage: Storage, facts: AppFacts) -> None:
        storage.declare_hooks(facts.methods or (), calls=facts.wants_failures, traces=facts.traces)

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
