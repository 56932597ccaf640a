"""Tests of what an error of PostgreSQL's driver is taken for."""

from __future__ import annotations

import psycopg
import pytest
from psycopg import errors

from qml_mp.errors import StorageUnavailable
from qml_mp.storage.postgres.errors import (
    NoReply,
    could_not_connect,
    is_cured_by_another_connection,
    translate,
)
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
    assert isinstance(waits, StorageUnavailable)
    assert isinstance(takes_long, StorageUnavailable)
    assert (waits.took_too_long, takes_long.took_too_long) == (False, True)


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


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (errors.DiskFull("could not extend file: No space left on device"), "Its disk is full"),
        (errors.OutOfMemory("out of memory"), "It is out of memory"),
        (errors.ConfigurationLimitExceeded("temporary file size exceeds"), "It has run out of something"),
        (errors.TooManyConnections("too many connections"), "All its connections are in use"),
        (errors.IoError("could not read block"), "Its own disk or system has failed it"),
        (errors.IdleInTransactionSessionTimeout("terminating connection"), "lay still amid a transaction"),
        (errors.AdminShutdown("terminating connection"), "See that the server runs"),
        (psycopg.OperationalError("server closed the connection unexpectedly"), "See that the server runs"),
    ],
)
def test_what_to_do_fits_what_is_wrong_with_the_server(error: psycopg.Error, advice: str) -> None:
    said = str(translate(error, what="reading", target=TARGET))

    assert advice in said
    assert said.count("See that") == advice.count("See that")


@pytest.mark.parametrize(
    "words",
    [
        "FATAL:  sorry, too many clients already",
        "FATAL:  remaining connection slots are reserved for roles with the SUPERUSER attribute",
        'FATAL:  too many connections for role "me"',
        "FATAL:  no more connections allowed (max_client_conn)",
    ],
)
@pytest.mark.parametrize("part", ["", "?odd=secret"])
def test_a_server_without_a_free_connection_is_told_from_one_that_cannot_be_reached(
    words: str, part: str
) -> None:
    target = parse_target(f"postgresql://me@host/db{part}")
    error = could_not_connect(psycopg.OperationalError(words), target=target)

    assert target.is_plain is not bool(part)  # of others, the driver's words are not shown
    assert isinstance(error, StorageUnavailable)
    assert "All its connections are in use" in str(error)
    assert "can be reached" not in str(error)
