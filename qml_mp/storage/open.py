"""Every process: a storage from its URL."""

from __future__ import annotations

import os
import re
from datetime import timedelta
from urllib.parse import unquote

from qml_mp import host
from qml_mp.clock import Clock, SystemClock
from qml_mp.errors import ConfigurationError
from qml_mp.storage.memory_folder import make_memory_folder
from qml_mp.storage.shown_url import shown_url
from qml_mp.storage.sqlite.database import SqliteDatabase
from qml_mp.storage.store import Storage
from qml_mp.storage.waiting import DEFAULT_PATIENCE

_FORMS = (
    "sqlite:///relative/path.db, sqlite:////absolute/path.db, memory://, "
    "postgresql://user:password@host:5432/database (?schema=name for a schema other than qml_mp)"
)

_DRIVER = re.compile(r"(?:postgresql|postgres|sqlite)(\+[a-z][a-z0-9_]{0,20})")
_KEY_VALUE = re.compile(r"\s*(?:host|hostaddr|port|dbname|user|password|service)\s*=")


def open_storage(
    url: str,
    *,
    application_name: str = "qml-mp",
    clock: Clock | None = None,
    patience: timedelta = DEFAULT_PATIENCE,
) -> Storage:
    """The storage of the URL; it connects when it is first used.

    `memory://` is a new SQLite file in shared memory, removed when the process that asked for it
    exits; `storage.url` is what its children open. `application_name` is shown by PostgreSQL's
    own views. `patience` bounds how long one operation waits for a lock of somebody else. `clock` is
    the database's clock for SQLite; PostgreSQL has its own.
    Raises `ConfigurationError` for a URL that is none of the accepted forms.
    """
    scheme, separator, rest = url.partition("://") if isinstance(url, str) else ("", "", "")
    match scheme if separator else "":
        case "sqlite":
            path = _path_of(url, rest)
        case "memory" if rest in ("", "/"):
            path = os.path.join(make_memory_folder(), "memory.db")
        case "postgresql" | "postgres":
            return _open_postgres(url, application_name, patience)
        case _:
            raise _bad_url(url, _what_is_wrong(url, scheme))
    return Storage(SqliteDatabase(path, clock=clock or SystemClock(), busy_timeout=patience))


def _path_of(url: str, rest: str) -> str:
    path, question_mark, _ = rest.partition("?")
    if not path.startswith("/"):
        raise _bad_url(url, "needs three slashes before a relative path and four before an absolute one")
    try:
        path = unquote(path[1:], errors="strict")
    except UnicodeDecodeError:
        raise _bad_url(url, "names a file whose name is not UTF-8") from None
    if question_mark:
        raise _bad_url(url, "has options after the question mark, and SQLite takes none")
    if not path or "\0" in path or path.endswith("/"):
        raise _bad_url(url, "names no file")
    if path == ":memory:":
        raise _bad_url(url, "would give every process a database of its own; use memory://")
    if not os.path.isabs(path) and host.current_directory() is None:
        raise _bad_url(url, "names a file in the current directory, which was removed")
    for name, what in ((path, "a file"), (os.path.abspath(path), "a file below a folder")):
        try:
            name.encode()
        except UnicodeEncodeError:
            raise _bad_url(url, f"names {what} whose name is not UTF-8") from None
    return path


def _open_postgres(url: str, application_name: str, patience: timedelta) -> Storage:
    try:
        # Imported here so that SQLite works where libpq is missing.
        from qml_mp.storage.postgres.database import PostgresDatabase
    except ImportError as error:
        raise ConfigurationError(
            f"PostgreSQL needs psycopg with libpq, which cannot be loaded here ({error}). "
            "Install libpq, or its packaged form: pip install 'qml-mp[binary]'."
        ) from error
    return Storage(PostgresDatabase(url, application_name=application_name, patience=patience))


def _what_is_wrong(url: object, scheme: str) -> str:
    """Of a URL that is none of ours. What is quoted of it can be no part of a password."""
    driver = _DRIVER.fullmatch(scheme)
    if driver is not None:
        return f"names a driver, which is not chosen here: leave out {driver[1]!r}"
    if isinstance(url, str) and _KEY_VALUE.match(url):
        return "is a list of key=value, as libpq takes it; write it as a URL"
    return "is none of the accepted forms"


def _bad_url(url: object, problem: str) -> ConfigurationError:
    return ConfigurationError(f"The storage URL {shown_url(url)!r} {problem}. Accepted forms: {_FORMS}.")
