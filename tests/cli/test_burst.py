"""`start` without `-q`, and what `start --burst` runs, leaves and says of it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from qml_mp import host
from qml_mp.core.job import Job
from qml_mp.core.server_info import ServerInfo
from qml_mp.core.state import StateName
from qml_mp.storage.store import Storage
from qml_mp.storage.values import Fetch
from tests.cli.command import Qml


def enqueue_resizes(storage: Storage, count: int) -> None:
    """Jobs in the queue that the app declares for their method."""
    storage.enqueue_many(Job.new("resize", {"path": "a.png"}, queue="images") for _ in range(count))


def test_a_server_that_is_told_no_queues_serves_those_that_the_app_declares(
    qml: Qml, storage: Storage
) -> None:
    enqueue_resizes(storage, 24)
    storage.enqueue(Job.new("boom"))

    ended = qml("-A", "tasks:app", "start", "-w", "2", "--burst")

    assert ended.code == 0, ended.err
    assert storage.job_counts()[StateName.SUCCEEDED] == 24
    assert storage.job_counts()[StateName.FAILED] == 1
    assert "Queues: default, images." in ended.err
    assert "Stopping (nothing is left to do)" in ended.err
    assert "Left:" not in ended.err


def test_queues_that_are_set_win_and_a_burst_says_which_jobs_it_leaves_in_others(
    qml: Qml, storage: Storage
) -> None:
    enqueue_resizes(storage, 24)

    ended = qml("-A", "tasks:app", "start", "-w", "1", "--burst", "-q", "default")

    assert ended.code == 0, ended.err
    assert "Queues: default." in ended.err
    assert "Left: 24 jobs in queue images, which this server does not serve (-q images" in ended.err
    assert "Stopping (nothing is left that this server can run)" in ended.err
    assert storage.job_counts()[StateName.ENQUEUED] == 24


def test_a_burst_leaves_with_one_line_per_cause(qml: Qml, storage: Storage) -> None:
    now = datetime.now(UTC)
    storage.register_server(
        ServerInfo(
            id="other#1", name="other", hostname="here", process=host.identity(), worker_count=1,
            queues=(), started_at=now, last_heartbeat=now,
        )
    )  # fmt: skip
    held = storage.enqueue(Job.new("resize", {"path": "a.png"}, queue="images"))
    storage.fetch_and_lock_job(Fetch(worker_id="other-1", server_id="other#1", queues=()))
    storage.enqueue(Job.new("elsewhere", queue="mail"))
    storage.enqueue_many(
        Job.new("resize", {"path": "a.png"}, queue="images", at=now + timedelta(hours=hours))
        for hours in (1, 2)
    )
    storage.enqueue(Job.new("newone", queue="images"))

    ended = qml("-A", "tasks:app", "start", "-w", "1", "--burst")

    left = [line.partition("Left: ")[2] for line in ended.err.splitlines() if "Left: " in line]
    assert ended.code == 0, ended.err
    assert left[0].startswith("1 job in queue mail, which this server does not serve")
    assert left[1] == "1 job of method newone, which this server does not know"
    assert left[2].startswith("2 jobs due later, the next in ")
    assert left[3] == "1 job held by other servers"
    assert len(left) == 4
    job = storage.get(held)
    assert job is not None
    assert job.state_name is StateName.PROCESSING


def test_a_burst_may_wait_for_what_is_due_in_time(qml: Qml, storage: Storage) -> None:
    now = datetime.now(UTC)
    soon, late = (
        storage.enqueue(Job.new("resize", {"path": "a.png"}, queue="images", at=at))
        for at in (now + timedelta(seconds=4), now + timedelta(hours=1))  # the server is up before the first
    )
    unknown = storage.enqueue(Job.new("newone", queue="images", at=now + timedelta(minutes=5)))
    storage.set_paused("default", True)
    closed = storage.enqueue(Job.new("boom", at=now + timedelta(minutes=5)))

    ended = qml("-A", "tasks:app", "start", "-w", "1", "--burst-wait", "10m")

    assert ended.code == 0, ended.err
    states = {
        job_id: job.state_name for job_id in (soon, late, unknown, closed) if (job := storage.get(job_id))
    }
    assert states == {
        soon: StateName.SUCCEEDED, late: StateName.SCHEDULED, unknown: StateName.SCHEDULED,
        closed: StateName.SCHEDULED,
    }  # fmt: skip
    assert "Left: 3 jobs due later" in ended.err
