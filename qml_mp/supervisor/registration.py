"""Supervisor: what the registry says of this run of the server."""

from __future__ import annotations

import socket
from dataclasses import replace

from qml_mp import host
from qml_mp.child.source import AppFacts
from qml_mp.clock import Clock
from qml_mp.core.acts import ALL_ACTS
from qml_mp.core.answers import ReloadAnswer, StacksAnswer
from qml_mp.core.server_info import SelfDescription, ServerInfo, new_server_id
from qml_mp.events.emitter import Emitter
from qml_mp.events.facts import ServerDeclaredDead
from qml_mp.settings import ServerConfig
from qml_mp.storage.store import Storage

_MOMENT_S = 5.0
"""So long may a worker take to end that was killed before the first heartbeat after a silence."""


class ServerRegistration:
    """The row of this run: inserted at start, bumped by the heartbeat loop, kept true by a loop of its own,
    removed at the end."""

    def __init__(self, config: ServerConfig, *, clock: Clock, events: Emitter, facts: AppFacts) -> None:
        self._config = config
        self._clock = clock
        self._events = events
        self.id = new_server_id(config.server_name)
        self.has_row = False
        """Whether this id is known to have been written: who does not find it then knows it was removed."""
        self.says = SelfDescription(queues=tuple(config.queues), methods=facts.methods)
        """As it should stand in the row; `is_outdated` until it does."""
        self._written = self.says
        self.wants_failures = facts.wants_failures
        """Whether its program is to be called when jobs have failed."""
        self.traces = facts.traces
        """Whether its program traces attempts, and a worker exports those of dead ones."""
        self.flush_timeout = facts.flush_timeout
        """What a worker may take to export its spans before it leaves, be it one of the code before."""
        self._heard_at = float("inf")
        self._silent_until = float("-inf")

    @property
    def is_outdated(self) -> bool:
        """Whether the row says something else."""
        return self.says != self._written

    def note_heard(self, *, began: float) -> None:
        """A heartbeat was written between this instant of the monotonic clock and now. Peers may have read
        the one before until now, and have found this one as old as its beginning."""
        ended = self._clock.monotonic()
        if self._is_silent(ended):
            self._silent_until = ended
        self._heard_at = began

    def may_have_counted_as_dead(self) -> bool:
        """Whether a peer may have taken this run for dead a moment ago, by its heartbeats."""
        now = self._clock.monotonic()
        return self._is_silent(now) or now - self._silent_until <= _MOMENT_S

    def _is_silent(self, now: float) -> bool:
        return now - self._heard_at > self._config.dead_server_timeout.total_seconds()

    def serve(self, queues: tuple[str, ...], facts: AppFacts) -> None:
        """New code serves these."""
        self.says = replace(self.says, queues=queues, methods=facts.methods)
        self.wants_failures, self.traces = facts.wants_failures, facts.traces
        self.flush_timeout = max(self.flush_timeout, facts.flush_timeout)

    def pause(self, paused: bool) -> None:
        """Whether claims are paused."""
        self.says = replace(self.says, paused=paused)

    def report(self, trouble: str | None) -> None:
        """What keeps the server from its work; None: nothing."""
        self.says = replace(self.says, trouble=trouble)

    def answer_reload(self, answer: ReloadAnswer) -> None:
        """How far the newest reload has come."""
        self.says = replace(self.says, answers=replace(self.says.answers, reload=answer))

    def answer_stacks(self, answer: StacksAnswer | None) -> None:
        """What the workers were doing when somebody asked; None: that is told no more."""
        self.says = replace(self.says, answers=replace(self.says.answers, stacks=answer))

    def answer_stop(self) -> None:
        """The server stops; to say so again is harmless."""
        self.says = replace(self.says, answers=replace(self.says.answers, stops=True))

    def register(self, storage: Storage) -> None:
        """Insert the row. Raises `StorageError`."""
        began = self._clock.monotonic()
        instant, says = storage.now(), self.says
        storage.register_server(
            ServerInfo(
                id=self.id,
                name=self._config.server_name,
                hostname=socket.gethostname(),
                process=host.identity(),
                worker_count=self._config.worker_count,
                queues=says.queues,
                started_at=instant,
                last_heartbeat=instant,
                heartbeat_enabled=self._config.enable_heartbeat,
                methods=says.methods,
                paused=says.paused,
                trouble=says.trouble,
                answers=says.answers,
                acts=ALL_ACTS,
            )
        )
        self.has_row, self._written = True, says
        if self._config.enable_heartbeat:
            self.note_heard(began=began)  # peers count from there on

    def update(self, storage: Storage) -> None:
        """Write what has changed. Raises `StorageError`. Without a row nothing is written: there is nothing
        to mend, because the next one is made of what is said then."""
        says = self.says
        storage.update_server(self.id, says)
        self._written = says

    def renew_id(self) -> str:
        """A peer declared this run dead: go on as a new one, whose claims are nobody else's; its id. It has
        to be registered."""
        old_id, self.id, self.has_row = self.id, new_server_id(self._config.server_name), False
        self._events.emit(ServerDeclaredDead(server_id=old_id, goes_on_as=self.id))
        return self.id
