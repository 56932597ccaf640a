"""Tests of the PostgreSQL backend when the server does not let it in: what is wrong, and what to change."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from urllib.parse import urlsplit

import psycopg
import pytest
from psycopg import sql

from qml_mp.errors import StorageUnreachable
from qml_mp.storage.postgres.store import PostgresStorage

ROLE = "qml_login"
READ_RULES = "SELECT pg_read_file(current_setting('hba_file'))"
WRITE_RULES = """
DO $$ BEGIN
    EXECUTE format('COPY (SELECT unnest(string_to_array(%L, E''\\n''))) TO %L',
                   {rules}, current_setting('hba_file'));
END $$
"""
WITHIN_S = 20.0


@pytest.fixture
def admin(postgres_url: str) -> Iterator[psycopg.Connection]:
    with closing(psycopg.connect(postgres_url, autocommit=True)) as connection:
        yield connection


@pytest.fixture
def role(admin: psycopg.Connection) -> Iterator[str]:
    """A role that must give the password "right"."""
    admin.execute(f"DROP ROLE IF EXISTS {ROLE}")
    admin.execute(f"CREATE ROLE {ROLE} LOGIN PASSWORD 'right'")
    with password_asked_of(admin, ROLE):
        yield ROLE
    admin.execute(f"DROP ROLE {ROLE}")


@contextmanager
def password_asked_of(admin: psycopg.Connection, role: str) -> Iterator[None]:
    """The server asks this role for its password, and everybody else as before."""
    row = admin.execute(READ_RULES).fetchone()
    assert row is not None
    rules = str(row[0])
    write_rules(admin, f"host all {role} all scram-sha-256\n{rules}")
    yield
    write_rules(admin, rules)


def write_rules(admin: psycopg.Connection, rules: str) -> None:
    """Give the server these rules, and return when it follows them."""
    literal = sql.Literal(rules.rstrip("\n"))
    admin.execute(sql.SQL(WRITE_RULES).format(rules=literal))
    loaded = "SELECT pg_conf_load_time()"
    before = admin.execute(loaded).fetchone()
    admin.execute("SELECT pg_reload_conf()")
    deadline = time.monotonic() + WITHIN_S
    while admin.execute(loaded).fetchone() == before:
        assert time.monotonic() < deadline, "the server did not read its rules again"


def url_of(postgres_url: str, login: str, *, database: str = "postgres") -> str:
    place = urlsplit(postgres_url)
    return f"postgresql://{login}@{place.hostname}:{place.port}/{database}"


def said_about(url: str) -> str:
    """What a person reads who uses this URL."""
    with closing(PostgresStorage(url)) as storage, pytest.raises(StorageUnreachable) as caught:
        storage.job_counts()
    assert "trying again can help" not in str(caught.value)
    assert "every try will fail" in str(caught.value)
    return str(caught.value)


def test_a_wrong_password_is_told_and_not_shown(postgres_url: str, role: str) -> None:
    said = said_about(url_of(postgres_url, f"{role}:wr0ng"))

    assert f'password authentication failed for user "{role}"' in said
    assert "Put the right user and password into the URL" in said
    assert "wr0ng" not in said


def test_a_password_that_is_missing_is_told(postgres_url: str, role: str) -> None:
    assert "Put the password into the URL" in said_about(url_of(postgres_url, role))


def test_a_database_that_is_not_there_is_told(postgres_url: str, role: str) -> None:
    said = said_about(url_of(postgres_url, f"{role}:right", database="nowhere"))

    assert 'database "nowhere" does not exist' in said
    assert "createdb" in said


def test_a_role_that_may_not_log_in_is_told(postgres_url: str, admin: psycopg.Connection, role: str) -> None:
    admin.execute(f"ALTER ROLE {role} NOLOGIN")

    assert "ALTER ROLE … LOGIN" in said_about(url_of(postgres_url, f"{role}:right"))


def test_a_password_that_was_changed_back_is_all_that_is_needed(
    postgres_url: str, admin: psycopg.Connection, role: str
) -> None:
    with closing(PostgresStorage(url_of(postgres_url, f"{role}:later"))) as storage:
        with pytest.raises(StorageUnreachable):
            storage.schema_version()

        admin.execute(f"ALTER ROLE {role} PASSWORD 'later'")

        assert storage.schema_version() >= 0
