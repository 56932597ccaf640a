"""Client: the driver's own connection beneath SQLAlchemy's, found without importing it."""

from __future__ import annotations

from typing import Any

from qml_mp.errors import ConfigurationError


def driver_connection(connection: object) -> object:
    """That of an SQLAlchemy session or connection, in which a transaction is open then; that of a raw
    connection, and any other object, as it is.

    SQLAlchemy commits only what it has begun, so a transaction is begun in its eyes too. Raises
    `ConfigurationError` for its asynchronous ones, whose drivers do not wait.
    """
    if not _is_of_sqlalchemy(connection):
        return connection
    found: Any = connection
    if hasattr(found, "sync_session") or hasattr(found, "sync_connection"):
        raise ConfigurationError(
            f"The connection is an {type(connection).__name__}, whose driver cannot be waited for; enqueue "
            "with a synchronous session or connection, or after the commit."
        )
    if hasattr(found, "driver_connection"):  # a raw one, whose own commit is the driver's
        raw: object = found.driver_connection
        return raw
    if callable(getattr(found, "connection", None)):  # a session
        found = found.connection()
    if not hasattr(found, "in_transaction"):
        raise ConfigurationError(
            f"The connection is SQLAlchemy's {type(connection).__name__}; give its session or connection."
        )
    if not found.in_transaction():
        found.begin()
    driver: object = found.connection.driver_connection
    return driver


def _is_of_sqlalchemy(connection: object) -> bool:
    return any(kind.__module__.partition(".")[0] == "sqlalchemy" for kind in type(connection).__mro__)
