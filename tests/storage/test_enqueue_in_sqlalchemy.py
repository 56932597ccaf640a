"""Tests of the storage: enqueueing inside a transaction of SQLAlchemy."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import closing

import pytest
import sqlalchemy
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from qml_mp.core.job import Job
from qml_mp.errors import ConfigurationError
from qml_mp.storage.store import Storage
from tests.storage.conftest import server_of


@pytest.fixture
def engine(storage: Storage, url: str) -> Iterator[sqlalchemy.Engine]:
    """Of the database that the storage is in."""
    storage.migrate()
    own = (
        url if url.startswith("sqlite") else server_of(url).replace("postgresql://", "postgresql+psycopg://")
    )
    engine = sqlalchemy.create_engine(own)
    yield engine
    engine.dispose()


def test_a_job_appears_with_the_commit_of_a_session(storage: Storage, engine: sqlalchemy.Engine) -> None:
    with Session(engine) as session:
        [job_id] = storage.enqueue_in(session, [Job.new("work")])
        before = storage.get(job_id)
        session.commit()

    assert before is None
    assert storage.get(job_id) is not None


def test_a_job_goes_with_the_rollback_of_a_session(storage: Storage, engine: sqlalchemy.Engine) -> None:
    with Session(engine) as session:
        session.execute(sqlalchemy.text("SELECT 1"))
        [job_id] = storage.enqueue_in(session, [Job.new("work")])
        session.rollback()

    assert storage.get(job_id) is None


def test_a_session_that_is_left_without_a_commit_enqueues_nothing(
    storage: Storage, engine: sqlalchemy.Engine
) -> None:
    with Session(engine) as session:
        [job_id] = storage.enqueue_in(session, [Job.new("work")])

    assert storage.get(job_id) is None


def test_a_job_appears_with_the_commit_of_a_connection_that_has_done_nothing_else(
    storage: Storage, engine: sqlalchemy.Engine
) -> None:
    with engine.connect() as connection:
        [job_id] = storage.enqueue_in(connection, [Job.new("work")])
        before = storage.get(job_id)
        connection.commit()

    assert before is None
    assert storage.get(job_id) is not None


def test_a_job_appears_with_the_block_of_a_connection(storage: Storage, engine: sqlalchemy.Engine) -> None:
    with engine.begin() as connection:
        [job_id] = storage.enqueue_in(connection, [Job.new("work")])

    assert storage.get(job_id) is not None


def test_a_job_appears_with_the_commit_of_an_engines_raw_connection(
    storage: Storage, engine: sqlalchemy.Engine
) -> None:
    with closing(engine.raw_connection()) as connection:
        [job_id] = storage.enqueue_in(connection, [Job.new("work")])
        before = storage.get(job_id)
        connection.commit()

    assert before is None
    assert storage.get(job_id) is not None


def test_an_engine_and_an_asynchronous_session_are_refused(
    storage: Storage, engine: sqlalchemy.Engine
) -> None:
    session = AsyncSession()

    with pytest.raises(ConfigurationError, match="give its session or connection"):
        storage.enqueue_in(engine, [Job.new("work")])
    with pytest.raises(ConfigurationError, match="is an AsyncSession"):
        storage.enqueue_in(session, [Job.new("work")])

    asyncio.run(session.close())
