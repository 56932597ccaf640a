"""Every process: the whole storage, put together from its parts.

Rules for all of it. An operation either happens whole or not at all. A driver's error becomes a
`StorageError`: `StorageUnavailable` where trying again later can help. No operation waits without
a bound. Instants are aware, in UTC, and are read from the database's clock wherever two machines
compare them. A write about a claim is guarded by `id AND claim_seq AND state = processing`.

A storage is used by one thread at a time per call (calls from several threads take turns) and may
be opened anew after `close()` simply by using it. It must hold nothing open across a fork: call
`close()` first. A process that inherited one all the same abandons the handle; it opens its
own, or refuses an SQLite file, where that would take no locks.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from qml_mp.storage.acts import Acts
from qml_mp.storage.bulk import Bulk
from qml_mp.storage.database import Database
from qml_mp.storage.failures import FailureCallbacks
from qml_mp.storage.history import History
from qml_mp.storage.jobs import JobStore
from qml_mp.storage.limits import Limits
from qml_mp.storage.listing import Listing
from qml_mp.storage.lost_attempts import LostAttempts
from qml_mp.storage.monitoring import Monitoring
from qml_mp.storage.progress import JobProgress
from qml_mp.storage.recurring import RecurringStore
from qml_mp.storage.registry import NamedLocks, ServerRegistry
from qml_mp.storage.scratch import Scratch
from qml_mp.storage.sending import SendingLocker
from qml_mp.storage.system import SystemFacts
from qml_mp.storage.template_jobs import TemplateJobs
from qml_mp.storage.waiting import StorageWait, Waker, WriteTurns
from qml_mp.storage.waits import Waits


class Storage(
    JobStore,
    Bulk,
    SendingLocker,
    RecurringStore,
    TemplateJobs,
    ServerRegistry,
    NamedLocks,
    Limits,
    Waits,
    JobProgress,
    FailureCallbacks,
    Acts,
    History,
    Listing,
    LostAttempts,
    Monitoring,
    SystemFacts,
):
    """All operations on one database. `open_storage(url)` makes one; it connects when it is first used."""

    def __init__(self, database: Database) -> None:
        self._db = database

    @property
    def url(self) -> str:
        """What a child process opens the same storage with."""
        return self._db.connection.url

    @property
    def display_url(self) -> str:
        """The URL with the password masked, for people and logs."""
        return self._db.connection.display_url

    @property
    def is_on_one_machine(self) -> bool:
        """Whether all its users are on one machine: their heartbeats wait for the same disk, and a process
        of another boot is dead. (They may still be in pid namespaces that hide them from each other.)"""
        return self._db.is_on_one_machine

    def migrate(self) -> list[int]:
        """Bring the schema up to this code under a lock; the versions applied, [] when up to date.

        Raises `SchemaMismatch`, before any write, when the schema is newer than this code.
        """
        return self._db.connection.migrate()

    def schema_version(self) -> int:
        """The version in the storage; 0 when it has no schema yet."""
        return self._db.connection.schema_version()

    def expect_schema(self) -> None:
        """Never make the schema, nor an SQLite file, when it is first used: whoever started this process has
        found it there. `migrate` still does."""
        self._db.connection.expect_schema()

    def check_schema(self) -> None:
        """Raise `SchemaMismatch` unless the schema is exactly what this code needs. Reads only."""
        self._db.connection.check_schema()

    def check_rights(self) -> None:
        """Raise `StorageError` where a server could not begin here: it may not make the schema that is not
        there yet, or not write to all of the one that is. Writes nothing itself."""
        self._db.connection.check_rights()

    @property
    def caveats(self) -> Iterable[str]:
        """What can be well where the storage lies, and can lose jobs, or stop all of them: texts for people.
        Reads only."""
        return self._db.caveats

    def now(self) -> datetime:
        """The database's clock."""
        return self._db.now()

    def open_waker(self) -> Waker | None:
        """A source of wake-ups: by every commit, of whatever it was, where all users are on one machine, else
        by what there is to run. None where there is none and polling must do."""
        return self._db.open_waker()

    def commit_mark(self) -> str:
        """Another text than before once anything was committed by others; it may be another one for less."""
        return self._db.commit_mark()

    def make_scratch(self) -> Scratch:
        """An empty storage of the same kind, on the same server or disk, for what must not touch this one.

        Raises `StorageError` when it cannot be made.
        """
        return self._db.make_scratch()

    def is_locked_by_this_process(self) -> bool:
        """Whether it is this very process that keeps everybody from writing, by a transaction that it has
        left open on another connection. It would wait for itself for ever."""
        return self._db.is_locked_by_this_process()

    def descriptors(self) -> frozenset[int]:
        """Those of this process's connection; empty while it is closed. One that cannot be closed, because
        they are not the files any more that they were, has them for good."""
        return self._db.connection.descriptors()

    def has_other_handles(self) -> bool:
        """Whether this process has the SQLite file open by connections that are not ours, so that a child
        that it forked could not use it. Closes those that are ours and idle. False where it is not told."""
        return self._db.connection.is_open_elsewhere()

    def wait_with(self, waiting: StorageWait | None) -> None:
        """Let somebody else wait whenever this process waits for the storage; None: as usual again."""
        self._db.connection.wait_with(waiting)

    def take_turns(self, turns: WriteTurns) -> None:
        """Have this process write when it is its turn, where only one can write at a time; else harmless."""
        self._db.connection.take_turns(turns)

    def close(self) -> None:
        """Close the connection; harmless when closed. The next use opens another."""
        self._db.connection.close()
