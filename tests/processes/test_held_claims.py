"""Tests: a worker that holds several claims, or of whose claims storage knows something else: none of
them is lost, and none runs again."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from qml_mp.core.job import Claim, Job
from qml_mp.core.state import StateName
from qml_mp.storage.store import Storage
from qml_mp.storage.values import Fetch
from tests.processes.harness import Server, enqueue, few, result_of, state_of, wait_for_state, wait_until
from tests.processes.leaving import leaving_patiently
from tests.storage_rows import hold_writes, pause_writes, run_raw

LIKELIER = "postgres"
MakeServer = Callable[..., Server]
HELD_UP = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'advisory' AND query LIKE %s"


@pytest.fixture
def server(server: MakeServer) -> MakeServer:
    return leaving_patiently(server)


def enqueue_naps(storage: Storage, method: str, *lengths_s: float) -> list[str]:
    return storage.enqueue_many([Job.new(method, {"seconds": length_s}) for length_s in lengths_s])


def starts(one: Server) -> Counter[str]:
    return Counter(line.job_id for line in one.journal() if line.what == "start")


def have_succeeded(storage: Storage, ids: list[str]) -> bool:
    """All of them. From the end, where the first that has not is soon found."""
    return all(state_of(storage, job_id) is StateName.SUCCEEDED for job_id in reversed(ids))


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


APP = "tests.processes.apps_storage_faults:app"
QUEUE = "elsewhere"  # which the server does not serve, so that it comes by a job of it in no other way


def claim_for(storage: Storage, worker_id: str, server_id: str, *, registered: bool) -> Claim:
    """A claim in the name of a worker, behind its back."""
    storage.enqueue(Job.new("plain", queue=QUEUE))
    fetch = Fetch(worker_id=worker_id, server_id=server_id, queues=(QUEUE,), registered=registered)
    claim = storage.fetch_and_lock_job(fetch)
    assert claim is not None
    return claim


@pytest.mark.nightly
@pytest.mark.fault(77)
def test_an_idle_worker_is_told_of_a_claim_that_it_does_not_know_and_runs_it(
    server: Callable[..., Server], storage: Storage
) -> None:
    one = server("-w", "1", app=APP).start()
    wait_for_state(storage, enqueue(storage, "plain"), StateName.SUCCEEDED)
    (worker,) = storage.list_workers()

    claim = claim_for(storage, worker.id, worker.server_id, registered=True)

    job = wait_for_state(storage, claim.job.id, StateName.SUCCEEDED)
    assert (job.claim_seq, job.crashes) == (1, 0)
    # The worker is told first, and may be through with the job before its supervisor goes on.
    wait_until(lambda: f"does not show its claim of job {claim.job.id}" in one.log(), what=one.log)
    assert f"Found the claim of job {claim.job.id}" in one.log()
    assert [info.id for info in storage.list_workers()] == [worker.id]
    # It goes on under its new epoch.
    wait_for_state(storage, enqueue(storage, "plain"), StateName.SUCCEEDED)
    assert one.stop() == 0


@pytest.mark.nightly
@pytest.mark.fault(77)
def test_a_claim_of_a_worker_that_is_gone_is_given_back_uncharged(
    server: Callable[..., Server], storage: Storage
) -> None:
    one = server("-w", "1", app=APP).start()
    (worker,) = storage.list_workers()

    claim = claim_for(storage, f"{worker.server_id}:worker:9.9", worker.server_id, registered=False)

    job = wait_for_state(storage, claim.job.id, StateName.ENQUEUED)
    assert (job.claim_seq, job.crashes, job.failures) == (1, 0, 0)
    wait_until(lambda: "which is gone, is enqueued" in one.log(), what=one.log)
    assert one.stop() == 0


OFTEN = {"QML_MP_POLLING_INTERVAL": "10ms"}  # a worker looks after itself every so many of these


@few("lose", ["DELETE FROM [workers]"], nightly=["UPDATE [workers] SET epoch = epoch - 1"])
def test_a_worker_that_storage_has_forgotten_is_registered_again_and_claims(
    server: Callable[..., Server], storage: Storage, lose: str
) -> None:
    one = server("-w", "1", app=APP, **OFTEN).start()
    workers = one.worker_pids()
    assert result_of(storage, "plain") == "plain"

    run_raw(storage, lose.replace("[workers]", table(storage, "workers")))

    assert result_of(storage, "plain") == "plain"
    wait_until(lambda: "Storage has lost the row or the newest epoch" in one.log(), what=one.log)
    assert one.worker_pids() == workers
    assert one.stop() == 0


def table(storage: Storage, name: str) -> str:
    """As `run_raw` has it."""
    return f"qml_{name}" if storage.url.startswith("sqlite:") else f"{{s}}{name}"
