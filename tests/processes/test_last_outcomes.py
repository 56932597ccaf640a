"""Tests: what the guardian of a killed server writes of its dead workers, when there is no room for a fork or
the server was about to write it itself."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from qml_mp import failpoints, host
from qml_mp.core.job import Job
from qml_mp.core.outcome import Success
from qml_mp.core.state import StateName
from qml_mp.errors import StorageUnavailable
from qml_mp.ipc.ended import EndedTable
from qml_mp.ipc.pipe import open_pipe
from qml_mp.ipc.slot import SlotTable
from qml_mp.storage.store import Storage
from qml_mp.storage.values import BY_DEFAULT, Fetch
from qml_mp.supervisor.parts.guardian import _watch
from qml_mp.supervisor.recovery.last_outcomes import LastOutcomes
from qml_mp.supervisor.workers.fork import fork_child, reap
from tests.processes.harness import Server, enqueue, is_stopped, state_of, wait_for_state, wait_until

pytestmark = pytest.mark.fault(4)


class Ended:
    """A claimed job that had ended in a worker which is dead by now, with its supervisor."""

    def __init__(self, storage: Storage, url: str) -> None:
        self.job_id = storage.enqueue(Job.new("m"))
        claim = storage.fetch_and_lock_job(Fetch(worker_id="w", server_id="s", queues=()))
        assert claim is not None
        storage.close()  # no handle crosses a fork
        table = EndedTable(1)
        table.region(0, worker_id="w").append(claim.key, Success(result=None, duration=timedelta(seconds=1)))
        self.outcomes = LastOutcomes(table, url=url, retention=BY_DEFAULT)


@pytest.fixture
def ended(storage: Storage, url: str) -> Ended:
    return Ended(storage, url)


def refuse_forks(monkeypatch: pytest.MonkeyPatch, *, times: int, pid: int | None = None) -> None:
    """As at the limit of processes: so often, and not those of the process `pid`."""
    left = [OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))] * times

    def hit(place: str) -> None:
        if place == "fork.before" and os.getpid() != pid and left:
            raise left.pop()

    monkeypatch.setattr(failpoints, "hit", hit)


def test_a_write_for_which_there_is_no_room_is_made_by_the_next_call_and_gives_up_no_sign(
    ended: Ended, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, sign = os.pipe()  # to be read to its end once nobody has the sign open
    refuse_forks(monkeypatch, times=1)

    assert not ended.outcomes.write(is_dead=lambda _: True, sign=(sign,))
    os.fstat(sign)

    assert ended.outcomes.write(is_dead=lambda _: True, sign=(sign,))
    os.close(sign)
    assert os.read(reading, 1) == b""
    os.close(reading)
    assert state_of(storage, ended.job_id) is StateName.SUCCEEDED


def test_a_storage_that_is_not_to_be_had_for_a_moment_is_asked_again_and_no_sign_is_given_up_until_then(
    ended: Ended, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, sign = os.pipe()
    left = [StorageUnavailable("a busy file")] * 2

    def hit(place: str) -> None:
        if place == "storage.call" and left:
            raise left.pop()

    monkeypatch.setattr(failpoints, "hit", hit)

    assert ended.outcomes.write(is_dead=lambda _: True, sign=(sign,))
    os.close(sign)
    assert os.read(reading, 1) == b""
    os.close(reading)
    left.clear()  # which were raised in the process that writes
    assert state_of(storage, ended.job_id) is StateName.SUCCEEDED


def test_the_guardian_tries_again_to_write_what_the_last_of_its_workers_has_left(
    ended: Ended, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_forks(monkeypatch, times=3, pid=os.getpid())
    reading, writing = open_pipe()
    guardian = fork_child(
        lambda: _watch(reading, host.identity(), SlotTable(1), SlotTable(1), ended.outcomes, 600),
        ours={writing},
        theirs={reading},
    )

    os.close(writing)  # as when the supervisor is killed

    wait_until(lambda: reap(guardian), what="its end")
    assert wait_for_state(storage, ended.job_id, StateName.SUCCEEDED)


def test_what_had_ended_in_a_worker_killed_at_the_deadline_is_written_when_its_server_is_killed_leaving(
    server: Callable[..., Server], storage: Storage, tmp_path: Path
) -> None:
    one = server("-w", "1", "--shutdown-timeout", "1")
    armed = f"worker/finish.before=stop@{tmp_path / 'mark'};supervisor/settle.before=kill"
    one.program = ("-m", "tests.failpoints", armed)
    one.start()
    [worker] = one.worker_pids().values()
    job_id = enqueue(storage, "quick")
    wait_until(lambda: is_stopped(worker), what=one.log)

    assert one.stop() == -signal.SIGKILL, one.log()

    assert wait_for_state(storage, job_id, StateName.SUCCEEDED).claim_seq == 1
