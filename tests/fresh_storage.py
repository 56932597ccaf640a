"""Tests: a fresh storage of either backend for the tests of a module."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from tests.postgres_cluster import remove_schema
from tests.storage.helpers import in_schema


def fresh_url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of one, for a fixture with the parameters "sqlite" and "postgres"; nothing is there yet."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path_factory.mktemp('page')}/jobs.db"
        return
    server = request.getfixturevalue("postgres_url")
    schema = f"w_{uuid.uuid4().hex}"
    yield in_schema(server, schema)
    remove_schema(server, schema)
