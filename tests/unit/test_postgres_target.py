"""Tests of where a PostgreSQL URL leads and of what people see of it."""

from __future__ import annotations

import pytest

from qml_mp.errors import ConfigurationError
from qml_mp.storage.postgres.target import parse_target


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


@pytest.mark.parametrize("name", ['a"b', "a.b", "1a", "", "pg_jobs", "ä", "a" * 57, "a;b", "a%b"])
def test_a_schema_name_that_cannot_be_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match="schema name"):
        parse_target("postgresql:///db?schema=" + name.replace("%", "%25"))


def test_a_url_of_another_database_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="postgresql://"):
        parse_target("mysql://me:secret@host/db")


@pytest.mark.parametrize(
    "url", ["postgresql://me:pass@word@host/db", "postgresql://me:pass", "postgresql://h\0/db"]
)
def test_a_url_that_leads_nowhere_is_refused_with_the_way_to_write_it(url: str) -> None:
    with pytest.raises(ConfigurationError, match="@ is %40"):
        parse_target(url)


def test_a_target_that_is_printed_shows_no_password() -> None:
    assert "secret" not in repr(parse_target("postgresql://me:secret@host/db"))
