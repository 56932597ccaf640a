"""Beside a server: looks at storage on behalf of whoever asks for metrics and health.

One thread looks, and only when somebody asks. So whoever asks waits for a bounded time, however long a
database that is down or frozen takes, and many who ask at a time cost one look. It says first whether storage
answers, and then counts, which may take long where much waits.

The figures of queues are the whole database's. They are given by one of its servers, so that a sum over all
servers has them once: by the one that holds a lock with a name. Looks renew it. When its holder has left
the registry, or is not asked any more, another takes it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta

from qml_mp.core.history import MOST_NAMES
from qml_mp.errors import SchemaMismatch, StorageError, StorageUnreachable
from qml_mp.settings import DEFAULT_QUEUE
from qml_mp.storage.store import Storage
from qml_mp.storage.values import QueueStats

logger = logging.getLogger(__name__)

_LOCK = "qml-mp:queue-metrics"
_LOCK_TTL = timedelta(seconds=200)
_RENEWED_AFTER_S = 50.0  # not at each look: it is a commit, and waits for those of others
_FIGURES_KEPT_S = 150.0  # the lock is held as long: twice the longest usual interval of a scrape, and some
_MOST_COUNTED = 100_000  # of each queue: what a scrape costs does not grow with the backlog
_FRESH_S = 1.0
_PATIENCE_S = 2.0
_COUNTING_S = 10.0  # a statement of the storage has less, and who is asked meanwhile has answered before
_GONE = (
    "There is no schema of qml-mp in the storage of this server. If there was one, its file or the schema "
    "was deleted or replaced: stop every program that uses it, put it back, and start again."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageLook:
    """What a look has found."""

    at: float
    """When it began, on the monotonic clock."""
    server_id: str | None
    """In whose name it was made."""
    answers: bool
    schema_fits: bool = False
    queues: Sequence[QueueStats] | None = None
    """None: another server gives them, or storage did not."""


class StorageLooks:
    """At one storage, as one server. `health` and `newest` may be called by several threads."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._changed = threading.Condition()
        self._health: StorageLook | None = None
        """The newest, maybe without its figures: those may be under way."""
        self._is_counting = False
        self._newest: StorageLook | None = None
        """The newest that is done."""
        self._server_id: str | None = None
        self._is_wanted = False
        self._held_as: str | None = None
        self._renewed_at = 0.0
        self._told = ""
        self._shown: set[str] = set()
        """Queues of looks before, of which so many are shown apart."""
        threading.Thread(target=self._work, name="storage looks", daemon=True).start()

    def health(self, *, server_id: str | None) -> StorageLook | None:
        """Whether storage answers; as `newest`, but waits for no figures."""
        with self._changed:
            asked_at = self._ask(server_id)
            self._changed.wait_for(lambda: self._is_current(asked_at), timeout=_PATIENCE_S)
            return self._health if self._is_current(asked_at) else None

    def newest(self, *, server_id: str | None) -> StorageLook | None:
        """One of the last second; where storage takes longer than two for it, None. Where only its figures
        take longer, they are those of the look before.

        `server_id` is that of the server in whose name the figures of queues are given; None: it stops, and
        leaves them to another.
        """
        with self._changed:
            asked_at = self._ask(server_id)
            self._changed.wait_for(lambda: self._is_fresh(asked_at, server_id), timeout=_PATIENCE_S)
            if self._is_fresh(asked_at, server_id):
                return self._newest
            health, before = self._health, self._newest
            if health is None or not self._is_current(asked_at):
                return None
            if before is None or before.server_id != server_id or before.at < asked_at - _FIGURES_KEPT_S:
                return health
            return replace(health, queues=before.queues)

    def leave(self) -> None:
        """Have another server give the figures of queues, as soon as storage answers. Does not wait."""
        with self._changed:
            self._server_id, self._is_wanted, self._newest = None, True, None
            self._changed.notify_all()

    def _ask(self, server_id: str | None) -> float:
        """Have a look made; when that was. The lock is held."""
        self._server_id, self._is_wanted = server_id, True
        self._changed.notify_all()
        return time.monotonic()

    def _is_current(self, asked_at: float) -> bool:
        within_s = _COUNTING_S if self._is_counting else _FRESH_S
        return self._health is not None and self._health.at >= asked_at - within_s

    def _is_fresh(self, asked_at: float, server_id: str | None) -> bool:
        look = self._newest
        return look is not None and look.at >= asked_at - _FRESH_S and look.server_id == server_id

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._is_wanted)
                self._is_wanted, server_id = False, self._server_id
                if self._is_fresh(time.monotonic(), server_id):
                    continue
            look = self._look(server_id)
            with self._changed:
                self._health, self._is_counting = look, look.schema_fits
                self._changed.notify_all()
            if look.schema_fits:
                look = self._with_queues(look)
            with self._changed:
                self._health, self._is_counting, self._newest = look, False, look
                self._changed.notify_all()

    def _look(self, server_id: str | None) -> StorageLook:
        at = time.monotonic()
        try:
            self._check_schema()
        except Exception as error:
            self._tell(error)
            return StorageLook(at=at, server_id=server_id, answers=isinstance(error, SchemaMismatch))
        return StorageLook(at=at, server_id=server_id, answers=True, schema_fits=True)

    def _with_queues(self, look: StorageLook) -> StorageLook:
        try:
            queues = self._queues() if self._holds_lock(look.server_id) else None
        except Exception as error:
            self._tell(error)
            return replace(look, answers=not isinstance(error, StorageUnreachable))
        self._told = ""
        return replace(look, queues=queues)

    def _queues(self) -> list[QueueStats]:
        """Those with jobs, and then those without that a server serves or that were here before: a figure
        that goes away while there is nothing to count makes averages of the other moments alone."""
        found = self._storage.queue_stats(among=_MOST_COUNTED)
        served = {
            name for server in self._storage.list_servers() for name in server.queues or (DEFAULT_QUEUE,)
        }
        names = [queue.name for queue in found]
        empty = sorted((self._shown | served).difference(names))
        new = [name for name in (*names, *empty) if name not in self._shown]
        self._shown.update(new[: MOST_NAMES - len(self._shown)])
        told = [*found, *(_without_jobs(name) for name in empty)]
        # Those that had a series keep it, however many others there are.
        return sorted(told, key=lambda queue: queue.name not in self._shown)

    def _check_schema(self) -> None:
        try:
            self._storage.check_schema()
        except SchemaMismatch:
            if self._storage.schema_version() == 0:
                raise StorageUnreachable(_GONE) from None  # one that serves has made it, or found it
            raise

    def _holds_lock(self, server_id: str | None) -> bool:
        holder = self._storage.lock_holder(_LOCK)
        if server_id is None:
            if holder is not None and holder == self._held_as:
                self._storage.release_lock(_LOCK, holder)
            return False
        if holder is not None and holder != server_id:
            if holder in {server.id for server in self._storage.list_servers()}:
                return False
            self._storage.release_lock(_LOCK, holder)
        now = time.monotonic()
        if holder == server_id == self._held_as and now - self._renewed_at < _RENEWED_AFTER_S:
            return True
        self._held_as = server_id
        is_held = self._storage.acquire_lock(_LOCK, server_id, _LOCK_TTL)
        self._renewed_at = now
        return is_held

    def _tell(self, error: Exception) -> None:
        """In the log, once: who asks over the network is not told what it is."""
        if str(error) != self._told:
            expected = isinstance(error, StorageError)
            logger.warning("Metrics cannot look at storage: %s", error, exc_info=None if expected else error)
        self._told = str(error)


def _without_jobs(name: str) -> QueueStats:
    return QueueStats(name=name, enqueued=0, processing=0, held=0, oldest=None)
