"""Every process: the storage in PostgreSQL, put together from its parts."""

from __future__ import annotations

from datetime import datetime, timedelta

from qml_mp.storage.claims import JobLocker
from qml_mp.storage.jobs import JobStore
from qml_mp.storage.locks import NamedLocks
from qml_mp.storage.monitoring import Monitoring
from qml_mp.storage.postgres.database import PostgresDatabase
from qml_mp.storage.postgres.schema import check_found
from qml_mp.storage.postgres.waker import NotifyWaker
from qml_mp.storage.recurring import RecurringStore
from qml_mp.storage.registry import ServerRegistry
from qml_mp.storage.waiting import DEFAULT_PATIENCE, StorageWait, Waker


class PostgresStorage(JobStore, JobLocker, RecurringStore, ServerRegistry, NamedLocks, Monitoring):
    """`Storage` of the protocol in one schema of a PostgreSQL database, all instants by its clock.

    `schema` comes before the URL's `?schema=`; `application_name` is shown in the server's views;
    `patience` bounds the wait for a lock, and everything else an operation waits for follows from it.
    Raises `ConfigurationError` for a URL or schema name that cannot be; connects when first used.
    """

    def __init__(
        self,
        url: str,
        *,
        schema: str | None = None,
        application_name: str = "qml-mp",
        patience: timedelta = DEFAULT_PATIENCE,
    ) -> None:
        self._db = PostgresDatabase(url, schema=schema, application_name=application_name, patience=patience)
        self._database = self._db._connection

    def now(self) -> datetime:
        """The database's clock."""
        return self._db.now()

    @property
    def url(self) -> str:
        """What a child process opens the same storage with; the schema is in it."""
        return self._database.target.url

    @property
    def display_url(self) -> str:
        """The URL with the password masked."""
        return self._database.target.display_url

    @property
    def is_on_one_machine(self) -> bool:
        """False: servers may be anywhere."""
        return False

    def migrate(self) -> list[int]:
        return self._database.migrate()

    def schema_version(self) -> int:
        return self._database.version()

    def check_schema(self) -> None:
        check_found(self.schema_version(), self._database.target)

    def open_waker(self) -> Waker | None:
        return NotifyWaker(self._database.target, self._database.options)

    def is_locked_by_this_process(self) -> bool:
        """False: what is inserted in an open transaction locks nobody else's rows."""
        return False

    def descriptors(self) -> frozenset[int]:
        return self._database.descriptors

    def wait_with(self, waiting: StorageWait | None) -> None:
        self._database.wait_with(waiting)

    def close(self) -> None:
        self._database.close()
