"""Tests: claims that a worker gives back because one of them will take long are nothing that has happened."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from qml_mp.core.job import Job, new_job_id
from qml_mp.core.state import StateName
from qml_mp.storage.store import Storage
from tests.processes.apps_given_back import LINGER
from tests.processes.harness import Server, wait_for_state, wait_until

MakeServer = Callable[..., Server]
APP = "tests.processes.apps_given_back:app"


@pytest.fixture
def one(server: MakeServer) -> MakeServer:
    """Makes a server with one worker."""

    def make(**settings: str) -> Server:
        return server("-w", "1", app=APP, **settings).start()

    return make


def enqueue(storage: Storage, *jobs: Job) -> list[str]:
    return storage.enqueue_many(replace(job, id=new_job_id()) for job in jobs)


def wait_for_all(storage: Storage, ids: Sequence[str]) -> list[Job]:
    return [wait_for_state(storage, job_id, StateName.SUCCEEDED, StateName.FAILED) for job_id in ids]


def make_it_hold_many(storage: Storage) -> None:
    """The worker knows that slow jobs take long, and that most jobs do not."""
    wait_for_all(storage, enqueue(storage, Job.new("slow", {"seconds": 0.2}), *[Job.new("brief")] * 200))


def told(folder: Path, job_id: str) -> list[str]:
    """Which states the hook was told of, of this job."""
    lines = (folder / "hooks").read_text().splitlines()
    return [line.split()[1] for line in lines if line.startswith(job_id)]


@pytest.mark.fault(1)
@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_a_job_that_leaves_a_transaction_open_is_charged_and_none_that_was_given_back(
    one: MakeServer, storage: Storage
) -> None:
    server = one(QML_MP_MAX_CRASHES="1")
    make_it_hold_many(storage)

    ids = enqueue(storage, Job.new("grab"), *[Job.new("slow", {"seconds": 0.1})] * 3)
    grab, *others = wait_for_all(storage, ids)

    assert (grab.state_name, grab.claim_seq) == (StateName.FAILED, 1)
    assert {(job.state_name, job.crashes) for job in others} == {(StateName.SUCCEEDED, 0)}
    assert server.stop() == 0


@pytest.mark.fault(1)
@pytest.mark.fault(25)
@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_a_job_of_a_batch_that_leaves_a_transaction_open_is_found_and_none_beside_it_is_charged(
    one: MakeServer, storage: Storage
) -> None:
    server = one(QML_MP_MAX_CRASHES="1")
    make_it_hold_many(storage)

    ids = enqueue(storage, *[Job.new("brief")] * 30, Job.new("grab"), *[Job.new("brief")] * 30)
    jobs = wait_for_all(storage, ids)
    grab, others = jobs[30], [*jobs[:30], *jobs[31:]]

    assert (grab.state_name, grab.crashes) == (StateName.FAILED, 1)
    assert grab.last_error is not None
    assert "left a transaction open" in grab.last_error.message
    assert {(job.state_name, job.crashes, job.failures) for job in others} == {(StateName.SUCCEEDED, 0, 0)}
    assert server.stop() == 0


@pytest.mark.fault(1)
@pytest.mark.fault(25)
@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_what_the_supervisor_has_read_is_not_written_once_the_worker_has_taken_it_back(
    server: MakeServer, storage: Storage, tmp_path: Path
) -> None:
    """A worker is in a job that takes long, and what came of those before is about to be written on its
    behalf. One of them has left a transaction open, in which nobody else can write until the worker is gone.
    """
    mark = tmp_path / "mark"
    mark.touch()  # nothing happens yet
    one = server("-w", "1", app=APP, QML_MP_MAX_CRASHES="1")
    one.program = ("-m", "tests.failpoints", f"giveback.taken=stop@{mark}")
    one.start()
    harmless = [Job.new("grab", {"rolls_back": True}), *[Job.new("brief")] * 20]
    batch = [*[Job.new("brief")] * 10, Job.new("grab"), Job.new("brief", {"seconds": 1.0})]
    has_struck = False
    while not has_struck:  # who has to wait for a processor writes before the long job, and dies of it
        wait_for_all(storage, enqueue(storage, *harmless * 5))
        mark.unlink()
        ids = enqueue(storage, *batch)
        wait_until(partial(has_struck_or_ended, mark, storage, ids), what=one.log)
        has_struck = mark.exists()
        mark.touch()
    try:
        wait_until(lambda: not one.worker_pids(), what=one.log)
    finally:
        one.signal(signal.SIGCONT)
    *before, grab, long = wait_for_all(storage, ids)

    assert (grab.state_name, grab.crashes) == (StateName.FAILED, 1)
    assert {(job.state_name, job.crashes) for job in [*before, long]} == {(StateName.SUCCEEDED, 0)}
    assert one.stop() == 0


def has_struck_or_ended(mark: Path, storage: Storage, ids: Sequence[str]) -> bool:
    """Whether the failpoint has left its mark, or all of the jobs have ended without it."""
    return mark.exists() or all(job.state_name.is_final for job in map(storage.get, ids) if job)


@pytest.mark.fault(56)
def test_the_hook_is_told_of_no_claim_that_others_have_by_then(
    one: MakeServer, storage: Storage, tmp_path: Path
) -> None:
    server = one(**{LINGER: "0.15"})
    make_it_hold_many(storage)
    server.signal(signal.SIGTTIN)
    wait_until(lambda: len(server.worker_pids()) == 2, what=server.log)

    ids = enqueue(storage, *[Job.new("brief")], *[Job.new("slow", {"seconds": 0.01})] * 7)
    wait_for_all(storage, ids)
    assert server.stop() == 0

    for states in (told(tmp_path, job_id) for job_id in ids[1:]):
        assert StateName.PROCESSING not in states[states.index(StateName.SUCCEEDED) :]
