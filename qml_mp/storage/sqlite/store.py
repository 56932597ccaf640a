"""Every process: the storage in an SQLite file, put together from its parts."""

from __future__ import annotations

from datetime import datetime, timedelta
from urllib.parse import quote

from qml_mp.clock import Clock, SystemClock
from qml_mp.storage.claims import JobLocker
from qml_mp.storage.jobs import JobStore
from qml_mp.storage.locks import NamedLocks
from qml_mp.storage.migrate import check_version
from qml_mp.storage.monitoring import Monitoring
from qml_mp.storage.recurring import RecurringStore
from qml_mp.storage.registry import ServerRegistry
from qml_mp.storage.sqlite.database import SqliteDatabase
from qml_mp.storage.sqlite.own_locks import is_writing
from qml_mp.storage.sqlite.schema import MIGRATIONS
from qml_mp.storage.sqlite.waker import open_waker
from qml_mp.storage.waiting import DEFAULT_PATIENCE, StorageWait, Waker


class SqliteStorage(JobStore, JobLocker, ServerRegistry, RecurringStore, NamedLocks, Monitoring):
    """`Storage` of the protocol in the file at `path`, made with mode 0600 when it is missing.

    `busy_timeout` bounds every wait for another program's lock; `StorageUnavailable` then.
    """

    def __init__(
        self, path: str, *, clock: Clock | None = None, busy_timeout: timedelta = DEFAULT_PATIENCE
    ) -> None:
        self._db = SqliteDatabase(path, clock=clock or SystemClock(), busy_timeout=busy_timeout)
        self._database = self._db._connection

    def now(self) -> datetime:
        """The database's clock."""
        return self._db.now()

    @property
    def url(self) -> str:
        """What a child process opens the same file with, wherever it stands."""
        return f"sqlite:///{quote(self._database.path)}"

    @property
    def display_url(self) -> str:
        """The URL as people read it; there is no password in it."""
        return f"sqlite:///{self._database.path}"

    @property
    def is_on_one_machine(self) -> bool:
        """True: the locks of a file and its log work on one machine."""
        return True

    def migrate(self) -> list[int]:
        return self._database.migrate()

    def schema_version(self) -> int:
        return self._database.version()

    def check_schema(self) -> None:
        check_version(MIGRATIONS, found=self.schema_version(), where=self._database.where())

    def open_waker(self) -> Waker | None:
        return open_waker(self._database)

    def is_locked_by_this_process(self) -> bool:
        return is_writing(self._database.path)

    def descriptors(self) -> frozenset[int]:
        return self._database.descriptors

    def wait_with(self, waiting: StorageWait | None) -> None:
        self._database.wait_with(waiting)

    def close(self) -> None:
        self._database.close()
