"""Tests: a fresh storage of either backend for the tests of a module."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import quote, urlsplit, urlunsplit

import psycopg
import pytest

from tests.postgres_cluster import remove_schema
from tests.storage.helpers import in_schema, patient_url


def fresh_url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of one, for a fixture with the parameters "sqlite" and "postgres"; nothing is there yet."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path_factory.mktemp('page')}/jobs.db"
        return
    with fresh_schema(request.getfixturevalue("postgres_url")) as url:
        yield url


@contextmanager
def fresh_schema(server: str) -> Iterator[str]:
    """The URL of one that is not there yet, and is removed after the block."""
    schema = f"w_{uuid.uuid4().hex}"
    try:
        yield patient_url(in_schema(server, schema))
    finally:
        remove_schema(server, schema)


@contextmanager
def fresh_url_with_password(server: str) -> Iterator[str]:
    """One in PostgreSQL whose URL has user and password, wherever these are from. A server that trusts
    everybody asks for none."""
    parts = urlsplit(server)
    host = parts.netloc.rpartition("@")[2]
    with psycopg.connect(server) as connection:
        user, password = connection.info.user, connection.info.password or "any"
    login = f"{quote(user, safe='')}:{quote(password, safe='')}"
    with fresh_schema(urlunsplit(parts._replace(netloc=f"{login}@{host}"))) as url:
        yield url
