"""Tests of the PostgreSQL backend when the server does not let it in: what is wrong, and what to change."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import psycopg
import pytest

from qml_mp.errors import StorageUnreachable
from qml_mp.storage.open import open_storage
from tests.postgres_login import cluster_that_asks, url_of


@pytest.fixture(scope="module")
def admin() -> Iterator[psycopg.Connection]:
    """The superuser of a server with a role `clerk` whose password is "right"."""
    with cluster_that_asks() as connection:
        connection.execute("CREATE ROLE clerk LOGIN PASSWORD 'right'")
        connection.execute("CREATE ROLE retired NOLOGIN PASSWORD 'right'")
        yield connection


def said_about(url: str) -> str:
    """What a person reads who uses this URL."""
    with closing(open_storage(url)) as storage, pytest.raises(StorageUnreachable) as caught:
        storage.job_counts()
    assert "trying again can help" not in str(caught.value)
    assert "every try will fail" in str(caught.value)
    return str(caught.value)


@pytest.mark.fault(85)
def test_a_wrong_password_is_told_and_not_shown(admin: psycopg.Connection) -> None:
    said = said_about(url_of(admin, "clerk:wr0ng"))

    assert 'password authentication failed for user "clerk"' in said
    assert "Put the right user and password into the URL" in said
    assert "wr0ng" not in said


def test_a_password_that_is_missing_is_told(admin: psycopg.Connection) -> None:
    assert "Put the password into the URL" in said_about(url_of(admin, "clerk"))


def test_a_database_that_is_not_there_is_told(admin: psycopg.Connection) -> None:
    said = said_about(url_of(admin, "clerk:right", database="nowhere"))

    assert 'database "nowhere" does not exist' in said
    assert "createdb" in said


def test_a_role_that_may_not_log_in_is_told(admin: psycopg.Connection) -> None:
    assert "ALTER ROLE … LOGIN" in said_about(url_of(admin, "retired:right"))


def test_an_encryption_that_the_server_does_not_have_is_told(admin: psycopg.Connection) -> None:
    assert "ssl parameters" in said_about(f"{url_of(admin, 'clerk:right')}?sslmode=require")


def test_a_server_that_is_only_not_there_can_be_tried_again(admin: psycopg.Connection) -> None:
    url = "postgresql://clerk:right@127.0.0.1:1/certificate"

    with closing(open_storage(url)) as storage, pytest.raises(StorageUnreachable) as caught:
        storage.job_counts()

    assert "trying again can help" in str(caught.value)
