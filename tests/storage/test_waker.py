"""Tests of the storage: a supervisor is woken by what others commit."""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from qml_mp import host
from qml_mp.core.job import Job
from qml_mp.core.limits import LimitKind
from qml_mp.core.server_info import ServerInfo
from qml_mp.errors import StorageUnavailable
from qml_mp.storage.open import open_storage
from qml_mp.storage.postgres.target import parse_target
from qml_mp.storage.store import Storage
from qml_mp.storage.waiting import Waker, WakeUp
from tests.failpoints import arm
from tests.storage.helpers import DONE, KEEP, fetch, in_an_hour, in_children, register, set_limit
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


def test_each_of_several_commits_wakes(opened: Callable[[], Storage], waker: Waker) -> None:
    other = opened()

    for _ in range(5):
        other.enqueue(Job.new("work"))
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


def test_what_is_written_beside_an_sqlite_file_wakes_nobody(
    storage: Storage, waker: Waker, tmp_path: Path
) -> None:
    """Such as the server's own log."""
    log = tmp_path / "server.log"
    log.touch()
    while select.select([waker.fileno()], [], [], 1.5)[0]:  # looks at growing intervals, the last after 1 s
        waker.drain()

    log.write_text("a line")

    assert select.select([waker.fileno()], [], [], 0.1)[0] == []


def test_a_write_ahead_log_that_is_made_anew_is_watched(storage: Storage, url: str, waker: Waker) -> None:
    """With the last connection to the file SQLite removes the log, and the next one makes another."""
    storage.close()
    for _ in range(2):
        statuses = in_children([lambda: open_storage(url).enqueue(Job.new("work"))])

        assert statuses == [0]
        assert woken(waker)
        storage.close()


@pytest.mark.parametrize(("ended", "taken"), [(1, 0), (2, 1)])
def test_a_place_that_becomes_free_wakes_who_serves_other_queues_than_who_frees_it(
    storage: Storage, opened: Callable[[], Storage], waker: Waker, ended: int, taken: int
) -> None:
    other = opened()
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


@pytest.mark.parametrize(
    "remove",
    [
        pytest.param(partial(Storage.deregister_worker, worker_id="w-1"), id="settled"),
        pytest.param(partial(Storage.reclaim_server, server_id="one", silent_for=None), id="reclaimed"),
        pytest.param(partial(Storage.deregister_server, server_id="one"), id="left"),
    ],
)
def test_a_place_of_which_a_killed_worker_had_no_time_to_tell_is_told_when_the_worker_is_removed(
    storage: Storage, opened: Callable[[], Storage], waker: Waker, remove: Callable[[Storage], object]
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

    remove(storage)

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


@pytest.mark.parametrize("url", ["postgres"], indirect=True)  # SQLite tells nothing
def test_what_other_programs_tell_may_mean_anything(
    storage: Storage, waker: Waker, url: str, connect: Callable[[], Any]
) -> None:
    storage.migrate()
    connection = connect()
    connection.execute("SELECT pg_notify(%s, %s)", [parse_target(url).channel, "\u00e9 -3"])
    connection.commit()

    assert told(waker) == WakeUp()


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
