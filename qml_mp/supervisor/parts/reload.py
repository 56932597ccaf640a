"""Supervisor: SIGHUP: looks at the new code in a child before any worker is replaced.

When it does not import, nothing changes but the server's trouble. When it does, what it gives is served
from then on, by workers of the new code. The registry tells how far that has come, to whoever has asked.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from qml_mp.child.source import AppFacts, ProgramSource, code_at_reload
from qml_mp.core.answers import ReloadAnswer, ReloadedCode, ReloadState
from qml_mp.errors import AppImportError, ConfigurationError
from qml_mp.events.facts import ServerReloaded
from qml_mp.supervisor.loops.declarations import DeclarationsLoop, Hooked
from qml_mp.supervisor.part import Part, in_short
from qml_mp.supervisor.probe import Probe
from qml_mp.supervisor.registration import ServerRegistration
from qml_mp.supervisor.run import Run
from qml_mp.units import format_duration

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class NewCode:
    """What is done about new code."""

    queues_of: Callable[[AppFacts], Sequence[str]] | None = None
    """Which queues to serve for what it gives; None: as before."""
    watch_since: datetime | None = None
    """Reload by itself when a source file changes after this instant; None: when asked."""
    files: Collection[str] = ()
    """The source files of the code that runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """What a server says that code of it gives."""

    queues: tuple[str, ...]
    """None named: all."""
    methods: tuple[str, ...] | None
    """None: not known."""
    hooked: Hooked

    @classmethod
    def by(cls, registration: ServerRegistration) -> Served:
        """As it is said now."""
        methods = registration.says.methods
        hooked = Hooked.by(methods, calls=registration.wants_failures, traces=registration.traces)
        return cls(queues=registration.says.queues, methods=methods, hooked=hooked)

    @classmethod
    def of(cls, facts: AppFacts, *, queues: tuple[str, ...]) -> Served:
        """By this code alone."""
        return cls(queues=queues, methods=facts.methods, hooked=Hooked.of(facts))

    def and_of(self, newer: Served) -> Served:
        """What workers of either code do."""
        known = self.methods is not None and newer.methods is not None
        return Served(
            queues=_of_either(self.queues, newer.queues) if self.queues and newer.queues else (),
            methods=_of_either(self.methods or (), newer.methods or ()) if known else None,
            hooked=self.hooked | newer.hooked,
        )


def _of_either(old: Sequence[str], new: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*old, *new)))


class Reload(Part):
    """The looks at new code: at most one at a time, and one more when asked for meanwhile."""

    def __init__(
        self,
        run: Run,
        source: ProgramSource,
        *,
        new_code: NewCode,
        declarations: DeclarationsLoop,
    ) -> None:
        self._run = run
        self._source = source
        self._queues_of = new_code.queues_of
        self.files = frozenset(new_code.files)
        """The source files of the code that was looked at last; after one that does not import, also those of
        the code before."""
        self.read_at = self._begun_at = new_code.watch_since or run.clock.now()
        """None of them was read before."""
        self._is_watched = new_code.watch_since is not None
        self._declarations = declarations
        self._probe: Probe | None = None
        self._is_asked = False
        """A look is to begin; also while one goes on, which may have read the code before the last change."""
        self._is_closed = False
        self._trouble: str | None = None
        self._answer: ReloadAnswer | None = None
        self._old: frozenset[str] = frozenset()
        """Ids of the workers that the newest reload replaces."""
        self._facts: AppFacts | None = None
        """Of the newest code that was taken over; None: of none yet."""
        self._newest = self._before = Served.by(run.registration)
        """What that gives, or the code of the start; and what all code before does of which workers may be
        left."""
        self._serves_both = False
        """No worker of the new code could boot, and some of the code before work on."""

    @property
    def is_under_way(self) -> bool:
        """Whether one has begun and has not come to its end."""
        return self._answer is not None and not self._answer.is_final

    @property
    def began_at(self) -> float | None:
        """When the newest began; None: there was none."""
        return None if self._answer is None else self._answer.began_at

    def fds(self) -> list[int]:
        return [] if self._probe is None else self._probe.fds

    def next_at(self) -> float:
        return float("inf") if self._probe is None else self._probe.next_at()

    def trouble(self) -> str | None:
        """Why the newest code that was looked at was not taken over; while newer code is looked at, that
        this is of the look before."""
        if self._trouble is not None and self._probe is not None:
            return f"New code is being imported. Before that: {self._trouble}"
        return self._trouble

    def begin(self) -> None:
        """Replace the workers; by new code, once it is known what that gives."""
        if self._run.stop.has_begun or self._is_closed:
            return
        code, began_at = code_at_reload(self._source), self._run.clock.monotonic()
        self._answer_with(ReloadAnswer(began_at=began_at, state=ReloadState.LOOKING, code=code))
        if code is ReloadedCode.OF_START:
            self._run.events.emit(ServerReloaded(code=code))
            self._declarations.declare_again()
            self._replace_all()
            return
        self._is_asked = True

    def start_if_asked(self) -> None:
        """Fork the child that looks. Not in `begin`, which may be called amid an operation of storage, whose
        handle would cross the fork."""
        if not self._is_asked or self._probe is not None:
            return
        self._is_asked = False
        try:
            self._probe = self._start_probe()
        except (OSError, ConfigurationError) as error:  # the latter for threads of a host's
            self._refuse("The new code cannot be looked at", str(error))
            return
        logger.info(
            "Importing the new code, for which it has %s (boot_timeout); no worker is replaced before",
            format_duration(self._run.config.boot_timeout),
        )

    def turn(self) -> None:
        self._watch_replacing()
        self._watch_old_ones()
        if self._probe is None:
            return
        facts, problem = None, ""
        try:
            facts = self._probe.look()
            if facts is None:
                return
        except AppImportError as error:
            problem = str(error)
        self._note_files(self._probe, took=facts is not None)
        self._probe = None
        if self._is_asked:
            return
        if facts is None:
            self._refuse("The new code cannot be imported", problem)
        elif not self._run.stop.has_begun:
            self._take_over(facts)

    def close(self) -> None:
        self._is_closed = True  # signals are still handled while the server leaves storage
        if self._probe is not None:
            self._probe.end()
            self._probe = None

    def _note_files(self, probe: Probe, *, took: bool) -> None:
        self.files = probe.files if took else self.files | probe.files
        self.read_at = self._begun_at

    def _start_probe(self) -> Probe:
        all_parts = self._run.all_parts
        self._begun_at = self._run.clock.now()
        all_parts.before_fork()
        return Probe(
            self._source,
            timeout=self._run.config.boot_timeout,
            clock=self._run.clock,
            own_fds=all_parts.own_fds(),
        )

    def _take_over(self, facts: AppFacts) -> None:
        queues = self._newest.queues
        try:
            if self._queues_of is not None:
                queues = tuple(self._queues_of(facts))
        except ConfigurationError as error:
            self._refuse("The settings of the new code cannot be", str(error))
            return
        self._trouble = None
        # Of those whom the reload before was to replace, and who are left, the newest code says nothing.
        self._before = self._before.and_of(self._newest) if self._is_old_left() else self._newest
        if all(worker.leaving for worker in self._run.pool if worker.worker_id in self._old):
            self._before = replace(self._before, hooked=self._newest.hooked)  # they hear of nothing any more
        self._facts, self._newest = facts, Served.of(facts, queues=queues)
        self._serves_both = False
        self._run.registration.serve(queues, facts)
        self._declarations.declare(facts, older=self._before.hooked)
        self._run.pool.serve(queues)
        code = code_at_reload(self._source)
        self._run.events.emit(ServerReloaded(queues=queues, methods=facts.methods, code=code))
        self._replace_all()

    def _replace_all(self) -> None:
        self._old = self._ids()
        self._run.pool.replace_all()
        self._answer_with(state=ReloadState.REPLACING, workers=len(self._old))

    def _watch_replacing(self) -> None:
        """Say how many are replaced, until all are or a new one cannot boot."""
        if self._answer is None or self._answer.state is not ReloadState.REPLACING:
            return
        pool = self._run.pool
        replaced = len(self._old) - sum(worker.worker_id in self._old for worker in pool)
        self._answer_with(replaced=replaced)
        if pool.boots.error is not None:
            self._answer_with(state=ReloadState.FAILED, why=pool.boots.error)
        elif replaced == len(self._old) and pool.is_whole and all(worker.is_ready for worker in pool):
            self._answer_with(state=ReloadState.DONE)

    def _serve_both(self) -> None:
        """Say that the old code's methods are known, too, and its queues served: its workers run them on, and
        no other server is to take their jobs for what nobody knows. So are its calls for failed jobs made."""
        if self._facts is None or self._facts.methods is None or self._before.methods is None:
            return
        self._serves_both = True
        both = self._before.and_of(self._newest)
        calls, traces = bool(both.hooked.calls), bool(both.hooked.traces)
        facts = replace(self._facts, methods=both.methods, wants_failures=calls, traces=traces)
        self._run.registration.serve(both.queues, facts)
        self._declarations.hook_both()

    def _watch_old_ones(self) -> None:
        """Where new ones cannot boot, those of the code before work on, and theirs counts too, until none of
        them is left; whatever became of a later look at newer code. Where one is ready, the new code's hooks
        stand alone: those who are told to leave tell of no failure any more."""
        if self._is_old_left():
            if self._run.pool.boots.error is not None and not self._serves_both:
                self._serve_both()
        elif self._serves_both and self._facts is not None:
            self._serves_both = False
            self._run.registration.serve(self._newest.queues, self._facts)
        if not self._serves_both and self._has_new_worker():
            self._declarations.hook_newest_alone()

    def _has_new_worker(self) -> bool:
        """Whether one of the newest code is ready, or none is wanted."""
        pool = self._run.pool
        return not pool.size or any(each.is_ready and each.worker_id not in self._old for each in pool)

    def _is_old_left(self) -> bool:
        return not self._old.isdisjoint(self._ids())

    def _ids(self) -> frozenset[str]:
        return frozenset(worker.worker_id for worker in self._run.pool)

    def _answer_with(self, answer: ReloadAnswer | None = None, **changes: Any) -> None:
        """This, or the answer so far with the changes."""
        answer = answer or self._answer
        if answer is not None:
            self._answer = replace(answer, **changes)
            self._run.registration.answer_reload(self._answer)

    def _refuse(self, what: str, why: str) -> None:
        """Leave everything as it is, and say so."""
        then = "save it" if self._is_watched else "send SIGHUP again"
        logger.error("%s, so the workers stay as they are. Mend it, and %s:\n%s", what, then, why)
        self._trouble = in_short(what, why)
        self._answer_with(state=ReloadState.REFUSED, why=f"{what}:\n{why}")
