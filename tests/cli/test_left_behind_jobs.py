"""`jobs retry`, `cancel` and `delete` on a job that counts as running, and what is said of its server."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from qml_mp import host
from qml_mp.core.job import Claim, Job
from qml_mp.core.outcome import Success
from qml_mp.core.server_description import ServerDescription, ToldSetting
from qml_mp.core.server_info import ProcessIdentity, ServerInfo, WorkerInfo
from qml_mp.core.state import StateName
from qml_mp.storage.store import Storage
from qml_mp.storage.values import Fetch
from tests.cli.command import Ended, Qml, is_one_error
from tests.storage.helpers import KEEP
from tests.storage_rows import change_server
from tests.until import wait_until

HERE = host.identity()
DEAD = replace(HERE, started_ticks=1)
UNSEEN = ProcessIdentity(host=f"{HERE.host.partition(':')[0]}:pid:[1]", pid=1, started_ticks=1)


def running(
    qml: Qml,
    storage: Storage,
    process: ProcessIdentity,
    *,
    worker: ProcessIdentity | None = None,
    silent_for: timedelta | None = timedelta(),
) -> Claim:
    """A job that is claimed by a worker of this server, which was last heard so long ago; None: it sends
    no heartbeats."""
    now = datetime.now(UTC)
    storage.register_server(
        ServerInfo(
            id="blue#1", name="blue", hostname="here", process=process, worker_count=1, queues=("default",),
            started_at=now, last_heartbeat=now, heartbeat_enabled=silent_for is not None,
        )
    )  # fmt: skip
    storage.register_worker(
        WorkerInfo(
            id="blue-1", server_id="blue#1", number=1, process=worker or process, started_at=now, rss_bytes=1
        )
    )
    qml("enqueue", "resize")
    claim = storage.fetch_and_lock_job(Fetch(worker_id="blue-1", server_id="blue#1", queues=()))
    assert claim is not None
    if silent_for:
        hear_last(storage, silent_for)
    return claim


def hear_last(storage: Storage, ago: timedelta) -> None:
    """As if the server had sent its last heartbeat so long ago."""
    heard_at = datetime.now(UTC) - ago
    change_server(storage, "blue#1", last_heartbeat=int(heard_at.timestamp() * 1e6))


def state_of(storage: Storage, claim: Claim) -> StateName:
    job = storage.get(claim.job.id)
    assert job is not None
    return job.state_name


@pytest.mark.fault(74)
@pytest.mark.parametrize(
    ("command", "state", "process", "silent_for", "said"),
    [
        pytest.param("retry", "enqueued", DEAD, timedelta(), "server blue#1: dead", id="dead"),
        pytest.param(
            "delete", "deleted", UNSEEN, timedelta(minutes=3), "server blue#1: silent (last heard 3m",
            id="silent",
        ),
        pytest.param(
            "cancel", "deleted", UNSEEN, timedelta(days=-1),
            "silent (not heard since the clock was set back)", id="in-the-future",
        ),
    ],
)  # fmt: skip
def test_a_job_whose_server_is_gone_is_given_back_or_ended_by_command(
    qml: Qml, storage: Storage, command: str, state: str, process: ProcessIdentity, silent_for: timedelta,
    said: str,
) -> None:  # fmt: skip
    claim = running(qml, storage, process, silent_for=silent_for)

    ended = qml("jobs", command, claim.job.id)

    assert ended.code == 0, ended.err
    assert ended.out.startswith(f"{claim.job.id} {state} (it was left by ")
    assert said in ended.out
    job = storage.get(claim.job.id)
    assert job is not None
    assert (str(job.state_name), job.failures, job.crashes) == (state, 0, 0)
    assert storage.claims() == []


@pytest.mark.parametrize("arguments", [("retry",), ("delete", "--force")])
def test_a_job_whose_server_lives_is_left_and_the_answer_says_what_to_do(
    qml: Qml, storage: Storage, arguments: tuple[str, ...]
) -> None:
    claim = running(qml, storage, HERE)

    ended = qml("jobs", *arguments, claim.job.id)

    assert is_one_error(ended.err)
    assert "is running (server blue#1: alive)" in ended.err
    assert f"qml-mp jobs cancel {claim.job.id}" in ended.err
    assert state_of(storage, claim) is StateName.PROCESSING


def test_several_running_jobs_are_all_asked_before_the_end_of_any_is_waited_for(
    qml: Qml, storage: Storage
) -> None:
    claims = [running(qml, storage, HERE)]
    storage.enqueue(Job.new("resize"))
    second = storage.fetch_and_lock_job(Fetch(worker_id="blue-1", server_id="blue#1", queues=()))
    assert second is not None
    claims.append(second)
    job_ids = [*(claim.job.id for claim in claims), storage.enqueue(Job.new("resize"))]

    ended = qml("jobs", "cancel", *job_ids, "--wait", "--wait-timeout", "0.1")

    assert (ended.code, ended.out) == (1, f"{job_ids[2]} deleted\n")
    assert ended.err.count("was asked to end, and has not after 100ms.") == 2
    assert ended.err.endswith("qml-mp: error: 2 of 3 jobs were asked to end and have not yet.\n")
    assert {request.key for request in storage.cancel_requests("blue#1")} == {each.key for each in claims}
    assert {line["subject"] for line in qml("audit", "--json").lines} == set(job_ids)


def test_a_running_job_is_cancelled_by_its_server(qml: Qml, storage: Storage) -> None:
    claim = running(qml, storage, HERE)

    ended = qml("jobs", "cancel", claim.job.id, "--force")

    assert ended.out == f"{claim.job.id} asked to end\n"
    assert state_of(storage, claim) is StateName.PROCESSING
    assert [request.key for request in storage.cancel_requests("blue#1")] == [claim.key]


def test_a_job_that_succeeds_before_the_cancel_reaches_it_is_told(qml: Qml, storage: Storage) -> None:
    claim = running(qml, storage, HERE)
    cancel = ("jobs", "cancel", claim.job.id, "--wait", "--wait-timeout", "2m")
    command = [sys.executable, "-m", "qml_mp", *cancel]

    with subprocess.Popen(
        command, cwd=qml.folder, env=qml.environment(), stderr=subprocess.PIPE, text=True
    ) as cancelling:
        wait_until(lambda: storage.cancel_requests("blue#1"))
        done = Success(result=None, duration=timedelta(seconds=1))
        storage.finish(claim, done, retention=KEEP)
        _, said = cancelling.communicate()

    assert cancelling.returncode == 1
    assert said == f"qml-mp: error: The job {claim.job.id} succeeded before the cancel reached it.\n"


def test_a_job_whose_worker_has_outlived_its_server_is_left(qml: Qml, storage: Storage) -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as worker:
        claim = running(qml, storage, DEAD, worker=host.identity(worker.pid))

        ended = qml("jobs", "retry", claim.job.id, "--force")

    assert is_one_error(ended.err)
    assert f"still runs in process {worker.pid}" in ended.err
    assert state_of(storage, claim) is StateName.PROCESSING
    assert qml("jobs", "retry", claim.job.id).code == 0
    assert storage.claims() == []


@pytest.mark.fault(74)
@pytest.mark.parametrize(("command", "state"), [("retry", "enqueued"), ("cancel", "deleted")])
def test_a_job_whose_server_may_be_alive_is_ended_only_by_force(
    qml: Qml, storage: Storage, command: str, state: str
) -> None:
    claim = running(qml, storage, UNSEEN, silent_for=timedelta(seconds=3))

    asked = qml("jobs", command, claim.job.id)

    assert state_of(storage, claim) is StateName.PROCESSING
    if command == "cancel":
        assert asked.out == f"{claim.job.id} asked to end\n"
    else:
        assert is_one_error(asked.err)
        assert "not known (" in asked.err
        assert "--force" in asked.err
        storage.heartbeat_server("blue#1", worker_rss={})  # as if no time had passed

    forced = qml("jobs", command, claim.job.id, "--force")

    assert forced.code == 0, forced.err
    assert str(state_of(storage, claim)) == state


@pytest.mark.fault(74)
def test_a_job_of_a_server_that_beats_rarely_is_not_given_away_between_two_beats(
    qml: Qml, storage: Storage
) -> None:
    claim = running(qml, storage, UNSEEN, silent_for=timedelta(minutes=3))
    its_own = ToldSetting(name="dead_server_timeout", value="5m", source="the code")
    storage.describe_server("blue#1", ServerDescription(settings=(its_own,)))

    ended = qml("jobs", "retry", claim.job.id)

    assert is_one_error(ended.err)
    assert "not known (last heard 3m" in ended.err
    assert state_of(storage, claim) is StateName.PROCESSING


@pytest.mark.fault(74)
@pytest.mark.parametrize(
    ("process", "silent_for", "alive", "standing", "shown"),
    [
        (HERE, timedelta(), True, "alive", "alive"),
        (DEAD, timedelta(), False, "dead", "dead"),
        (UNSEEN, timedelta(seconds=3), True, "not_known", "not known (last heard "),
        (UNSEEN, timedelta(hours=2), False, "silent", "silent (last heard 2h"),
        (UNSEEN, None, False, "not_known", "not known (sends no heartbeats)"),
    ],
)
def test_a_server_that_cannot_be_seen_is_not_said_to_be_alive(
    qml: Qml, storage: Storage, process: ProcessIdentity, silent_for: timedelta | None, alive: bool,
    standing: str, shown: str,
) -> None:  # fmt: skip
    running(qml, storage, process, silent_for=silent_for)

    def told(*command: str) -> Ended:
        if silent_for:
            hear_last(storage, silent_for)  # as if no time had passed
        return qml(*command)

    (listed,) = told("servers", "list", "--json").lines
    tables = [told("servers", "list").out, told("status").out]

    assert (listed["alive"], listed["standing"]) == (alive, standing)
    assert (listed["silent_s"] is None) == (silent_for is None)
    assert all(shown in table for table in tables)
    assert all(("alive" in table) == (standing == "alive") for table in tables)
