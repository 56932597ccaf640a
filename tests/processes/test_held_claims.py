"""Tests: a worker that holds several claims: nobody waits for what has not begun, and nothing runs again."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from qml_mp.core.job import Job
from qml_mp.core.state import StateName
from qml_mp.storage.store import Storage
from tests.processes.harness import Server, few, state_of, wait_until
from tests.processes.leaving import leaving_patiently
from tests.storage_rows import hold_writes, pause_writes

LIKELIER = "postgres"
MakeServer = Callable[..., Server]
LONG_S = 120.0
HELD_UP = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'advisory' AND query LIKE %s"


@pytest.fixture
def server(server: MakeServer) -> MakeServer:
    return leaving_patiently(server)


def enqueue_naps(storage: Storage, method: str, *lengths_s: float) -> list[str]:
    return storage.enqueue_many([Job.new(method, {"seconds": length_s}) for length_s in lengths_s])


def starts(one: Server) -> Counter[str]:
    return Counter(line.job_id for line in one.journal() if line.what == "start")


def states(storage: Storage, ids: list[str]) -> set[StateName]:
    return {state_of(storage, job_id) for job_id in ids}


def is_the_only_claim(storage: Storage, job_id: str) -> bool:
    """Whether this job is claimed, and no other."""
    is_one = storage.job_counts()[StateName.PROCESSING] == 1
    return is_one and state_of(storage, job_id) is StateName.PROCESSING


def have_succeeded(storage: Storage, ids: list[str]) -> bool:
    """All of them. From the end, where the first that has not is soon found."""
    return all(state_of(storage, job_id) is StateName.SUCCEEDED for job_id in reversed(ids))


@few("method", ["nap_with_the_lock"], nightly=["nap"])
def test_a_job_that_takes_longer_than_expected_holds_up_neither_what_ended_before_nor_what_comes_behind(
    server: MakeServer, storage: Storage, method: str
) -> None:
    ids = enqueue_naps(storage, method, *([0.0] * 27), LONG_S, *([0.0] * 27))
    before, long_id, behind = ids[:27], ids[27], ids[28:]
    one = server("-w", "1").start()

    # What has ended is written, and all claims but the one in hand are given back.
    wait_until(lambda: have_succeeded(storage, before), what=one.log)
    wait_until(lambda: is_the_only_claim(storage, long_id), what=one.log)
    begun = starts(one)  # also some of the others, or all, when the long one was given back before it began
    assert states(storage, [each for each in behind if each not in begun]) <= {StateName.ENQUEUED}

    one.signal(signal.SIGTTIN)  # another worker

    wait_until(lambda: have_succeeded(storage, behind), what=one.log)
    wait_until(lambda: starts(one).keys() == {*ids}, what=one.log)  # the long one may begin now
    assert state_of(storage, long_id) is StateName.PROCESSING
    assert starts(one) == Counter(ids)
    one.signal(signal.SIGQUIT)
    assert one.wait() == 6
    assert state_of(storage, long_id) is StateName.ENQUEUED
    assert [job.crashes for job in map(storage.get, ids) if job] == [0] * len(ids)


@few("method", ["nap_with_the_lock"], nightly=["nap"])
def test_what_was_claimed_while_a_job_ran_goes_to_others_when_that_takes_long(
    server: MakeServer, storage: Storage, method: str
) -> None:
    ids = enqueue_naps(storage, method, *([0.03] * 8), LONG_S, *([0.03] * 4))
    before, long_id, behind = ids[:8], ids[8], ids[9:]
    one = server("-w", "1").start()

    wait_until(lambda: state_of(storage, long_id) is StateName.PROCESSING, what=one.log)
    wait_until(lambda: have_succeeded(storage, before), what=one.log)
    wait_until(lambda: is_the_only_claim(storage, long_id), what=one.log)
    one.signal(signal.SIGTTIN)  # another worker

    wait_until(lambda: have_succeeded(storage, behind), what=one.log)
    wait_until(lambda: starts(one).keys() == {*ids}, what=one.log)  # the long one may begin now
    assert state_of(storage, long_id) is StateName.PROCESSING
    assert starts(one) == Counter(ids)
    one.signal(signal.SIGQUIT)
    assert one.wait() == 6
    assert [job.crashes for job in map(storage.get, ids) if job] == [0] * len(ids)


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("number", "message"), [(signal.SIGTERM, "told to leave"), (signal.SIGUSR2, "claims are paused")]
)
def test_a_worker_that_is_told_to_stop_gives_back_what_it_has_not_begun(
    server: MakeServer, storage: Storage, number: int, message: str
) -> None:
    ids = enqueue_naps(storage, "nap", *([0.0] * 300), *([0.02] * 100))
    one = server("-w", "2", QML_MP_FETCH_BATCH_SIZE="100").start()
    wait_until(lambda: storage.job_counts()[StateName.SUCCEEDED] > 20, what=one.log)

    one.signal(number)

    wait_until(lambda: storage.job_counts()[StateName.PROCESSING] == 0, what=f"{message}: {one.log()}")
    if number == signal.SIGUSR2:
        one.signal(signal.SIGTERM)
    assert one.wait() == 0
    counts = storage.job_counts()
    assert counts[StateName.SUCCEEDED] + counts[StateName.ENQUEUED] == len(ids)
    done = {job_id for job_id in ids if state_of(storage, job_id) is StateName.SUCCEEDED}
    assert starts(one) == Counter(done)


@pytest.fixture
def place(server: MakeServer, tmp_path: Path) -> Callable[..., Server]:
    """Makes a server in which a failpoint is armed for once."""

    def make(failpoint: str, *flags: str) -> Server:
        one = server(*flags, QML_MP_FETCH_BATCH_SIZE="100")
        one.program = ("-m", "tests.failpoints", f"{failpoint}@{tmp_path / 'mark'}")
        return one

    return make


@pytest.mark.fault(2)
@pytest.mark.fault(3)
@pytest.mark.parametrize("url", ["postgres"], indirect=True)
@few("moment", ["exchange.received"], nightly=["exchange.sent"])
def test_a_worker_killed_with_claims_on_their_way_to_it_is_charged_for_none_and_runs_none_twice(
    place: MakeServer, storage: Storage, tmp_path: Path, moment: str
) -> None:
    ids = enqueue_naps(storage, "nap", *([0.02] * 20))
    one = place(f"{moment}=kill:3", "-w", "1").start(ready=None)

    wait_until(lambda: have_succeeded(storage, ids), what=one.log)

    assert (tmp_path / "mark").exists()
    assert starts(one) == Counter(ids)
    assert [job.crashes for job in map(storage.get, ids) if job] == [0] * len(ids)
    assert one.stop() == 0


@pytest.mark.fault(2)
@pytest.mark.parametrize("url", ["postgres"], indirect=True)
def test_a_claim_that_is_committed_after_its_worker_was_killed_is_settled_with_it(
    server: MakeServer, storage: Storage, url: str
) -> None:
    one = server("-w", "1").start()
    pause_writes(storage, StateName.PROCESSING)
    address, _, schema = url.partition("?schema=")
    with psycopg.connect(address) as other, psycopg.connect(address, autocommit=True) as watcher:
        hold_writes(other)
        ids = enqueue_naps(storage, "nap", 0.0, 0.0)
        wait_until(lambda: watcher.execute(HELD_UP, [f"%{schema}%"]).fetchone(), what=one.log)
        os.kill(one.worker_pids()[1], signal.SIGKILL)
        # By the time that another is ready, it was looked for claims of this one.
        wait_until(lambda: one.log().count("is ready") == 2, what=one.log)

    wait_until(lambda: have_succeeded(storage, ids), what=one.log)

    assert starts(one) == Counter(ids)
    assert [job.crashes for job in map(storage.get, ids) if job] == [0] * len(ids)
    assert "which is gone" not in one.log()  # as a later look at all claims has it
    assert one.stop() == 0


@pytest.mark.nightly
@pytest.mark.fault(5)
@pytest.mark.parametrize("moment", ["giveback.taken", "giveback.committed"])
def test_a_supervisor_killed_while_it_gives_claims_back_loses_none(
    place: MakeServer, storage: Storage, moment: str
) -> None:
    # Three times: a worker that starved until then may hold nothing beside the first long job.
    ids = enqueue_naps(storage, "nap", *([*([0.0] * 27), 1.5] * 3), *([0.0] * 27))
    one = place(f"{moment}=kill", "-w", "1").start(ready=None)
    assert one.wait() == -signal.SIGKILL, one.log()
    begun = starts(one)

    one.start(ready=None)

    wait_until(lambda: have_succeeded(storage, ids), what=one.log)
    # What was in hand ended with its server, and so did what had ended and lay in its memory.
    again = starts(one) - Counter(ids)
    assert set(again) <= set(begun)
    assert one.stop() == 0
