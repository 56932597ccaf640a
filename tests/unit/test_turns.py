"""Tests: workers that write to one storage take turns, and none waits for who cannot give its turn on."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterator
from contextlib import closing, suppress
from datetime import timedelta
from pathlib import Path

import pytest

from qml_mp.child.exits import exit_with
from qml_mp.core.job import Job
from qml_mp.errors import StorageUnavailable
from qml_mp.ipc.turns import Turns
from qml_mp.storage.store import Storage
from tests.storage.helpers import open_sqlite


@pytest.fixture
def turns() -> Iterator[Turns]:
    with closing(Turns()) as turns:
        yield turns


@pytest.fixture
def storage(tmp_path: Path, turns: Turns) -> Iterator[Storage]:
    with closing(open_sqlite(tmp_path / "jobs.db", patience=timedelta(seconds=0.1))) as storage:
        storage.migrate()
        storage.take_turns(turns)
        yield storage


def is_free(turns: Turns) -> bool:
    """Whether the next one need not wait."""
    return bool(select.select(turns.fds, [], [], 0)[0])


def test_a_turn_is_one_workers_until_it_gives_it_on(turns: Turns) -> None:
    assert is_free(turns)
    turns.take()
    assert not is_free(turns)

    turns.give()
    assert is_free(turns)


def test_of_several_turns_one_is_left(turns: Turns) -> None:
    for _ in range(5000):  # more than there is room for
        turns.give()

    turns.take()

    assert not is_free(turns)


def test_a_turn_that_died_with_its_worker_is_waited_for_once(turns: Turns) -> None:
    if (pid := os.fork()) == 0:
        turns.take()
        os.kill(os.getpid(), signal.SIGKILL)
        exit_with(1)
    os.waitpid(pid, 0)
    assert not is_free(turns)

    turns.take()  # goes on all the same
    turns.give()

    assert is_free(turns)


def test_workers_write_in_the_order_in_which_they_came() -> None:
    turns = Turns(patience_s=60)
    turns.take()
    reading, writing = os.pipe()
    pids = []
    for number in range(5):
        if (pid := os.fork()) == 0:
            os.write(writing, b"w")
            turns.take()
            os.write(writing, bytes([number]))
            turns.give()
            exit_with(0)
        pids.append(pid)
        assert os.read(reading, 1) == b"w"
        while not waits_for_its_turn(pid):
            os.sched_yield()

    turns.give()

    for pid in pids:
        os.waitpid(pid, 0)
    assert os.read(reading, 10) == bytes(range(5))
    os.close(reading)
    os.close(writing)
    turns.close()


def waits_for_its_turn(pid: int) -> bool:
    """Whether the process sleeps in a system call."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "S"


def test_who_writes_has_the_turn_until_the_commit_whatever_becomes_of_it(
    storage: Storage, turns: Turns
) -> None:
    seen = []
    with storage._db.transaction("looking"):
        seen.append(is_free(turns))
    seen.append(is_free(turns))
    with suppress(RuntimeError), storage._db.transaction("failing"):
        raise RuntimeError
    seen.append(is_free(turns))

    assert seen == [False, True, True]


def test_others_who_write_take_no_turn_and_hold_nobody_up_for_ever(
    storage: Storage, turns: Turns, tmp_path: Path
) -> None:
    with closing(open_sqlite(tmp_path / "jobs.db")) as other:
        other.enqueue(Job.new("work"))
        assert is_free(turns)
        with other._db.transaction("holding"), pytest.raises(StorageUnavailable, match="this program itself"):
            storage.enqueue_many([Job.new("work")])
        assert is_free(turns)
        storage.enqueue_many([Job.new("work")])
