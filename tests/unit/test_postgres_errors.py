"""Tests of what an error of PostgreSQL's driver is taken for."""

from __future__ import annotations

import psycopg
import pytest
from psycopg import errors

from qml_mp.errors import StorageUnavailable
from qml_mp.storage.postgres.errors import NoReply, is_cured_by_another_connection, translate
from qml_mp.storage.postgres.target import parse_target

TARGET = parse_target("postgresql://me@host/db")


@pytest.mark.parametrize(
    "error",
    [
        psycopg.OperationalError("server closed the connection unexpectedly"),
        errors.AdminShutdown("terminating connection due to administrator command"),
        errors.InvalidSqlStatementName('prepared statement "_pg3_1" does not exist'),
        errors.FeatureNotSupported("cached plan must not change result type"),
    ],
)
def test_what_another_connection_cures_is_read_again_at_once(error: psycopg.Error) -> None:
    assert is_cured_by_another_connection(error)
    assert isinstance(translate(error, what="reading", target=TARGET), StorageUnavailable)


def test_a_statement_that_takes_too_long_is_told_from_one_that_waits_for_others() -> None:
    waits = translate(errors.LockNotAvailable("lock timeout"), what="reading", target=TARGET)
    takes_long = translate(errors.QueryCanceled("statement timeout"), what="reading", target=TARGET)

    assert "Another session" in str(waits)
    assert "Another session" not in str(takes_long)
    assert "more to do than a statement has time for" in str(takes_long)
    assert isinstance(takes_long, StorageUnavailable)


@pytest.mark.parametrize(
    "error",
    [
        errors.LockNotAvailable("canceling statement due to lock timeout"),
        errors.QueryCanceled("canceling statement due to statement timeout"),
        errors.DiskFull("no space left"),
        NoReply("the server did not reply in time"),
    ],
)
def test_what_lasts_is_not_waited_for_twice_by_one_reading(error: psycopg.Error) -> None:
    assert not is_cured_by_another_connection(error)
    assert isinstance(translate(error, what="reading", target=TARGET), StorageUnavailable)
