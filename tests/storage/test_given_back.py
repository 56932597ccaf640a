"""Tests of the storage: a job that was claimed and given back before it began has waited all the time."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import pytest

from qml_mp.core.history import waited_us
from qml_mp.core.job import Claim, Job
from qml_mp.core.outcome import Release
from qml_mp.storage.store import Storage
from tests.storage.conftest import Raw
from tests.storage.helpers import HOUR, KEEP, fetch, present

NOT_BEGUN = Release(reason="not begun", not_begun=True)


@pytest.fixture
def held(storage: Storage, raw: Raw) -> Sequence[Claim]:
    """Three jobs, claimed together after they have waited for an hour; a fourth waits."""
    storage.enqueue_many(Job.new("work", queue="default") for _ in range(4))
    raw.age("jobs", "enqueued_at", HOUR)
    return storage.exchange((), fetch=fetch(), limit=3, retention=KEEP).claims


def oldest(storage: Storage) -> timedelta:
    """As `queues list` and the metrics show it."""
    [queue] = storage.queue_stats(among=1000)
    assert queue.oldest is not None
    return queue.oldest


def waits(storage: Storage, count: int) -> list[bool]:
    """Of so many of the next jobs, whether each is known to have waited for the hour."""
    claims = storage.exchange((), fetch=fetch(worker="next"), limit=count, retention=KEEP).claims
    hour_us = HOUR // timedelta(microseconds=1)
    return [waited_us(claim.job) >= hour_us for claim in claims]


def test_what_was_not_begun_waits_since_it_was_enqueued(storage: Storage, held: Sequence[Claim]) -> None:
    done = storage.exchange([(each, NOT_BEGUN) for each in held], fetch=None, limit=0, retention=KEEP)

    assert [each.job for each in done.finished] == [present(storage, each) for each in held]
    assert oldest(storage) >= HOUR
    assert waits(storage, 4) == [True] * 4


def test_what_had_begun_waits_anew(storage: Storage, held: Sequence[Claim]) -> None:
    for each in held:
        storage.finish(each, Release(reason="the server stopped"), retention=KEEP)

    assert waits(storage, 4) == [False, False, False, True]


def test_of_what_a_server_that_is_gone_had_claimed_the_first_alone_may_have_begun(
    storage: Storage, held: Sequence[Claim]
) -> None:
    assert storage.reclaim_server("server#1", silent_for=None, retention=KEEP) == 3

    assert waits(storage, 4) == [False, True, True, True]
