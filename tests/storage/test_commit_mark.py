"""Tests: a storage's mark of commits, by which somebody who only reads sees that there is something new."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from typing import Any

from qml_mp.core.job import Job
from qml_mp.storage.store import Storage
from tests.storage.helpers import DONE, KEEP, claim_new


def test_every_commit_of_another_changes_it(storage: Storage, opened: Callable[[], Storage]) -> None:
    other = opened()
    marks = [storage.commit_mark()]

    claim = claim_new(other)
    marks.append(storage.commit_mark())
    other.finish(claim, DONE, retention=KEEP)
    marks.append(storage.commit_mark())
    other.set_paused("default", True)
    marks.append(storage.commit_mark())

    assert len(set(marks)) == len(marks)


def test_a_transaction_that_was_open_changes_it_with_its_commit(
    storage: Storage, connect: Callable[[], Any]
) -> None:
    storage.migrate()
    with closing(connect()) as connection:
        storage.enqueue_in(connection, [Job.new("work")])
        before = storage.commit_mark()

        connection.commit()

        assert storage.commit_mark() != before


def test_where_all_are_on_one_machine_a_waker_is_woken_by_a_finish(
    storage: Storage, opened: Callable[[], Storage]
) -> None:
    claim = claim_new(storage)
    other = opened()
    if not other.is_on_one_machine:  # PostgreSQL tells of new jobs alone: its mark has to be asked
        return
    waker = other.open_waker()
    assert waker is not None
    with closing(waker):
        waker.drain()

        storage.finish(claim, DONE, retention=KEEP)

        while waker.drain(soon=False) is None:
            pass
