"""Tests of the storage: what others commit wakes a supervisor, and is seen by those who only read."""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qml_mp import host
from qml_mp.core.job import Job
from qml_mp.core.limits import LimitKind
from qml_mp.core.server_info import ServerInfo
from qml_mp.errors import StorageUnavailable
from qml_mp.storage.open import open_storage
from qml_mp.storage.store import Storage
from qml_mp.storage.waiting import Waker, WakeUp
from tests.failpoints import arm
from tests.storage.helpers import DONE, KEEP, claim_new, fetch, in_an_hour, in_children, register, set_limit
from tests.until import PATIENCE_S


@pytest.fixture
def waker(storage: Storage) -> Iterator[Waker]:
    storage.migrate()
    found = storage.open_waker()
    assert found is not None
    with closing(found):
        yield found


def woken(waker: Waker, *, within_s: float = PATIENCE_S) -> bool:
    """Whether the waker reports new work before the deadline. It is asked once at least."""
    deadline = time.monotonic() + within_s
    while True:
        left_s = max(0.0, deadline - time.monotonic())
        readable, _, _ = select.select([waker.fileno()], [], [], left_s)
        if readable and waker.drain():
            return True
        if not left_s:
            return False


def test_nothing_wakes_while_nothing_happens(waker: Waker) -> None:
    assert not waker.drain()


def test_a_job_enqueued_by_the_same_process_wakes(storage: Storage, waker: Waker) -> None:
    storage.enqueue(Job.new("work"))

    assert woken(waker)
    assert storage.fetch_and_lock_job(fetch()) is not None


def test_a_job_enqueued_by_another_process_wakes(storage: Storage, url: str) -> None:
    storage.migrate()
    storage.close()
    waker = storage.open_waker()
    assert waker is not None
    with closing(waker):
        statuses = in_children([lambda: open_storage(url).enqueue(Job.new("work"))])

        assert statuses == [0]
        assert woken(waker)


def test_a_heartbeat_of_its_own_wakes_nobody_and_hides_no_job(storage: Storage, waker: Waker) -> None:
    one = ServerInfo(
        id="one", name="one", hostname="here", process=host.identity(), worker_count=1, queues=(),
        started_at=storage.now(), last_heartbeat=storage.now(),
    )  # fmt: skip
    storage.register_server(one)
    woken(waker, within_s=0.1)

    for _ in range(3):
        assert storage.heartbeat_server("one", worker_rss={})
        assert not woken(waker, within_s=0.1)

    storage.heartbeat_server("one", worker_rss={})
    storage.enqueue(Job.new("work"))
    storage.heartbeat_server("one", worker_rss={})
    assert woken(waker)


def test_a_place_that_becomes_free_wakes_who_serves_other_queues_than_who_frees_it(
    storage: Storage, opened: Callable[[], Storage], waker: Waker
) -> None:
    other, ended, taken = opened(), 1, 0
    storage.enqueue_many(Job.new("work", queue="a") for _ in range(ended + taken))
    claims = other.exchange((), fetch=fetch("a"), limit=ended, retention=KEEP).claims
    set_limit(storage, LimitKind.METHOD, "work", max_running=ended)
    storage.enqueue(Job.new("work", queue="b"))
    while woken(waker, within_s=0.5):
        pass

    outcomes = [(claim, DONE) for claim in claims]
    others = other.exchange(outcomes, fetch=fetch("a"), limit=10, retention=KEEP).claims

    assert len(others) == taken
    assert woken(waker)
    assert storage.exchange((), fetch=fetch("b"), limit=10, retention=KEEP).claims


def test_a_place_of_which_a_killed_worker_had_no_time_to_tell_is_told_when_the_worker_is_removed(
    storage: Storage, opened: Callable[[], Storage], waker: Waker
) -> None:
    other = opened()
    register(storage, "one", "w-1")
    storage.enqueue_many(Job.new("work", queue=queue) for queue in ("a", "b"))
    set_limit(storage, LimitKind.METHOD, "work", max_running=1)
    wanted = replace(fetch("a", worker="w-1", server="one"), registered=True)
    [claim] = other.exchange((), fetch=wanted, limit=1, retention=KEEP).claims
    arm("storage.committed=raise:1")
    try:
        with pytest.raises(StorageUnavailable):
            other.exchange([(claim, DONE)], fetch=wanted, limit=1, retention=KEEP)
    finally:
        arm("")
    while woken(waker, within_s=0.5):
        pass

    storage.deregister_worker("w-1")

    assert woken(waker)
    assert storage.exchange((), fetch=fetch("b"), limit=1, retention=KEEP).claims


def test_a_job_in_the_callers_transaction_wakes_with_its_commit(
    storage: Storage, waker: Waker, connect: Callable[[], Any]
) -> None:
    connection = connect()
    storage.enqueue_in(connection, [Job.new("work")])

    connection.commit()

    assert woken(waker)
    assert storage.fetch_and_lock_job(fetch()) is not None


def told(waker: Waker) -> WakeUp:
    """What the waker reports when it reports anything."""
    deadline = time.monotonic() + PATIENCE_S
    while (left_s := deadline - time.monotonic()) > 0:
        select.select([waker.fileno()], [], [], left_s)
        wake_up = waker.drain()
        if wake_up is not None:
            return wake_up
    raise AssertionError("nothing was told")


def test_it_is_told_how_many_jobs_can_run(storage: Storage, waker: Waker, connect: Callable[[], Any]) -> None:
    storage.enqueue(Job.new("work", at=in_an_hour()))
    later = told(waker)
    storage.enqueue(Job.new("work"))
    one = told(waker)
    claim = storage.fetch_and_lock_job(fetch())
    assert claim is not None
    storage.enqueue_many(Job.new("work") for _ in range(3))
    several = told(waker)
    connection = connect()
    for _ in range(5):
        storage.enqueue_in(connection, [Job.new("work")])
    connection.commit()
    in_one_transaction = told(waker)

    assert (later.jobs, later.more) == (0, True)
    assert one.jobs == 1
    assert several.jobs >= 3
    assert in_one_transaction.jobs >= 5


def test_closing_twice_is_harmless_and_another_can_be_opened(storage: Storage, waker: Waker) -> None:
    waker.close()
    waker.close()

    other = storage.open_waker()
    assert other is not None
    with closing(other):
        storage.enqueue(Job.new("work"))
        assert woken(other)


def test_a_deleted_sqlite_file_is_told(tmp_path: Path) -> None:
    with closing(open_storage(f"sqlite:///{tmp_path}/jobs.db")) as storage:
        waker = storage.open_waker()
        assert waker is not None
        with closing(waker):
            (tmp_path / "jobs.db").unlink()

            with pytest.raises(StorageUnavailable, match="deleted or replaced"):
                woken(waker)


# A storage's mark of commits, by which somebody who only reads sees that there is something new.


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
