"""Tests of where a PostgreSQL URL leads and of what people see of it."""

from __future__ import annotations

import pytest

from qml_mp.errors import ConfigurationError
from qml_mp.storage.postgres.target import mask_url, parse_target


def test_the_schema_is_taken_out_of_what_libpq_gets_and_kept_in_the_url() -> None:
    target = parse_target("postgresql://me@host/db?sslmode=require&schema=jobs&options=-c%20a%3Db")

    assert target.schema == "jobs"
    assert target.conninfo == "postgresql://me@host/db?sslmode=require&options=-c%20a%3Db"
    assert parse_target(target.url) == target


def test_without_a_schema_there_is_a_default() -> None:
    target = parse_target("postgres://host/db")

    assert target.schema == "qml_mp"
    assert target.url == "postgres://host/db"
    assert target.channel == "qml_mp.qml_mp"


def test_the_argument_comes_before_the_url() -> None:
    target = parse_target("postgresql:///db?schema=a", schema="b")

    assert target.schema == "b"
    assert target.url == "postgresql:///db?schema=b"


@pytest.mark.parametrize("name", ['a"b', "a.b", "1a", "", "pg_jobs", "ä", "a" * 57, "a;b", "a%b"])
def test_a_schema_name_that_cannot_be_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match="schema name"):
        parse_target("postgresql:///db?schema=" + name.replace("%", "%25"))


def test_a_url_of_another_database_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="postgresql://"):
        parse_target("mysql://me:secret@host/db")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://me:secret@host:5432/db", "postgresql://me:***@host:5432/db"),
        ("postgresql://me:se@cr:et@host/db?sslmode=require", "postgresql://me:***@host/db?sslmode=require"),
        ("postgresql://me:secret/1@host/db", "postgresql://me:***@host/db"),
        ("postgresql://host/db?user=me&password=secret", "postgresql://host/db?user=me&password=***"),
        ("postgresql://host/db?sslpassword=secret&x=1", "postgresql://host/db?sslpassword=***&x=1"),
        ("postgresql://me@host/db", "postgresql://me@host/db"),
        ("postgresql:///db", "postgresql:///db"),
    ],
)
def test_passwords_are_masked_wherever_they_stand(url: str, shown: str) -> None:
    assert mask_url(url) == shown
