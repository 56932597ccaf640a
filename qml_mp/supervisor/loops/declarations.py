"""Supervisor: what it says of itself in the registry, and what its code declares (limits, hooks, recurring
templates), which storage follows at the start and at a reload."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta

from qml_mp.child.source import AppFacts
from qml_mp.core.recurring import Followed, RecurringJob, is_of
from qml_mp.events.facts import TemplatesFollowed
from qml_mp.storage.store import Storage
from qml_mp.supervisor.loops.loop import AT_ONCE, NEVER, Loop
from qml_mp.supervisor.loops.unknown_methods import known_to_nobody
from qml_mp.supervisor.run import Run


@dataclass(frozen=True, slots=True, kw_only=True)
class Hooked:
    """The methods of which code wants to have something stored."""

    calls: frozenset[str] = frozenset()
    """That their jobs have failed, for its function to be called."""
    traces: frozenset[str] = frozenset()
    """How attempts ended whose process died, for their spans."""

    @classmethod
    def by(cls, methods: Iterable[str] | None, *, calls: bool, traces: bool) -> Hooked:
        """What code of these methods wants."""
        known = frozenset(methods or ())
        return cls(calls=known if calls else frozenset(), traces=known if traces else frozenset())

    @classmethod
    def of(cls, facts: AppFacts) -> Hooked:
        """What this code wants."""
        return cls.by(facts.methods, calls=facts.wants_failures, traces=facts.traces)

    def __or__(self, other: Hooked) -> Hooked:
        return Hooked(calls=self.calls | other.calls, traces=self.traces | other.traces)


NOTHING = Hooked()


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
    interval = timedelta(seconds=10)

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self._facts = AppFacts()
        self._pending: list[Callable[[Storage, AppFacts], None]] = []
        """What storage has not followed yet."""
        self._older = NOTHING
        """What code before wants, and this one does not."""
        self._has_older = False
        """Whether it is to be had."""
        self._spared: frozenset[str] = frozenset()
        """Templates that this code has no more and other live servers know, until those are gone."""
        self._refused: Mapping[str, str | None] = {}
        """Templates of this code that are another app's or a person's (None), until they are not any more."""

    def declare(self, facts: AppFacts, *, older: Hooked = NOTHING) -> None:
        """Have storage follow this code at the next tick. `older` is what code before wants whose workers are
        not replaced yet, and may never be. What is not stored when their jobs fail can never be told, so its
        hooks stay until `hook_newest_alone`, which is to come soon: another server may declare newer code."""
        own, methods = Hooked.of(facts), frozenset(facts.methods or ())
        self._older = Hooked(
            calls=(older.calls & methods) - own.calls, traces=(older.traces & methods) - own.traces
        )
        self._has_older = self._older != NOTHING
        self._facts = facts
        self.declare_again()

    def hook_both(self) -> None:
        """Workers of the code before stay: have its hooks too, whatever others have declared meanwhile."""
        self._has_older = self._older != NOTHING
        if self._has_older:
            self._pending.append(self._hook)

    def hook_newest_alone(self) -> None:
        """Have those of the newer code alone; again, that is harmless."""
        if self._has_older:
            self._has_older = False
            self._pending.append(self._hook)

    def declare_again(self) -> None:
        """Have storage follow the same code once more at the next tick."""
        self._pending = [self._limit, self._hook, self._follow]

    def due_at(self) -> float:
        if self._pending:
            return AT_ONCE
        return super().due_at() if self._spared or self._refused else NEVER

    def tick(self, storage: Storage) -> None:
        facts, pending = self._facts, self._pending
        if not pending and self._spared:
            self._remove_spared(storage, facts)
        if not pending and self._refused:
            self._declare_freed(storage, facts)
        while pending:  # newer code, declared while storage takes its time, brings a list of its own
            pending[0](storage, facts)
            del pending[0]

    def _limit(self, storage: Storage, facts: AppFacts) -> None:
        storage.declare_limits(facts.methods or (), {limit.name: limit for limit in facts.limits})

    def _hook(self, storage: Storage, facts: AppFacts) -> None:
        hooked = Hooked.of(facts) | (self._older if self._has_older else NOTHING)
        alike: dict[tuple[bool, bool], list[str]] = {}
        for method in facts.methods or ():
            alike.setdefault((method in hooked.calls, method in hooked.traces), []).append(method)
        for (calls, traces), methods in alike.items():
            storage.declare_hooks(methods, calls=calls, traces=traces)

    def _follow(self, storage: Storage, facts: AppFacts) -> None:
        others = _not_declared(storage, facts)
        left = [each for each in others if facts.name and each.app == facts.name]
        kept = {each.id: each.app for each in others if is_of(facts.spec, each.app) and each not in left}
        self._spared, self._refused = frozenset(), {}
        if not facts.recurring and not left and not kept:
            return
        # An older version that still runs has them, or another app of the same name. They are not deleted
        # under its hands.
        lacking = _lacking(left, facts)
        spared_methods = lacking - known_to_nobody(storage, lacking, own_id=self._run.registration.id)
        pruned = left if self._run.config.prune_recurring else []
        removing = [each for each in pruned if each.method not in spared_methods]
        followed = storage.follow_code(facts.name, facts.recurring, spec=facts.spec, removing=removing)
        self._spared = frozenset(each.id for each in pruned if each.method in spared_methods)
        self._refused = followed.refused
        self._run.events.emit(TemplatesFollowed(followed=followed, kept=kept, misfits=facts.misfits))

    def _remove_spared(self, storage: Storage, facts: AppFacts) -> None:
        """Delete those that nobody else knows any more; no others of the app, which newer code may have
        declared since."""
        spared = self._spared
        left = [each for each in _not_declared(storage, facts) if each.id in spared]
        lacking = _lacking(left, facts)
        unknown = known_to_nobody(storage, lacking, own_id=self._run.registration.id)
        removed = storage.remove_templates_of(facts.name, spared, methods=unknown) if unknown else ()
        if removed:
            followed = Followed(added=(), changed=(), removed=removed, refused={})
            self._run.events.emit(TemplatesFollowed(followed=followed))
        if self._spared is spared:
            self._spared = frozenset(each.id for each in left if each.method in lacking - unknown)

    def _declare_freed(self, storage: Storage, facts: AppFacts) -> None:
        """Declare those that were refused and are nobody's by now, or somebody else's. The app that had them
        may have given them to this one, whose server was started first."""
        refused = self._refused
        owners = {each.id: each.app for each in storage.list_recurring_jobs() if each.id in refused}
        freed = {each for each, owner in refused.items() if each not in owners or owners[each] != owner}
        if not freed:
            return
        templates = [each for each in facts.recurring if each.id in freed]
        followed = storage.follow_code(facts.name, templates, spec=facts.spec)
        self._run.events.emit(TemplatesFollowed(followed=followed))
        if self._refused is refused:
            still = {each: owner for each, owner in refused.items() if each not in freed}
            self._refused = {**still, **followed.refused}


def _not_declared(storage: Storage, facts: AppFacts) -> list[RecurringJob]:
    declared = {template.id for template in facts.recurring}
    return [each for each in storage.list_recurring_jobs() if each.id not in declared]


def _lacking(templates: Iterable[RecurringJob], facts: AppFacts) -> set[str]:
    """Methods of theirs that this code lacks."""
    return {each.method for each in templates}.difference(facts.methods or ())
