"""`status`, `queues`, `servers`, `workers` and `migrate`: what they show of a storage."""

from __future__ import annotations

import re
from datetime import UTC, datetime

import pytest

from qml_mp import host
from qml_mp.core.job import Job
from qml_mp.core.recurring import RecurringJob
from qml_mp.core.server_info import ProcessIdentity, SelfDescription, ServerInfo, WorkerInfo
from qml_mp.storage.store import Storage
from qml_mp.storage.values import BY_DEFAULT, Fetch
from tests.cli.command import Qml

_ELSEWHERE = ProcessIdentity(host="another machine", pid=1, started_ticks=1)
_GONE = ProcessIdentity(host=host.identity().host, pid=host.identity().pid, started_ticks=1)
_LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)


def register(storage: Storage, name: str, process: ProcessIdentity) -> None:
    """A server with two workers, all of them said to be the same process."""
    now = datetime.now(UTC)
    storage.register_server(
        ServerInfo(
            id=f"{name}#1", name=name, hostname="here", process=process, worker_count=2, queues=("default",),
            started_at=now, last_heartbeat=now, heartbeat_enabled=True,
        )
    )  # fmt: skip
    for number in (1, 2):
        storage.register_worker(
            WorkerInfo(
                id=f"{name}-{number}", server_id=f"{name}#1", number=number, process=process, started_at=now,
                rss_bytes=12345,
            )
        )  # fmt: skip


def test_status_of_an_empty_storage_has_every_state(qml: Qml, storage: Storage) -> None:
    status = qml("status", "--json").value

    assert status == {
        "states": {
            "enqueued": 0, "scheduled": 0, "processing": 0, "awaiting_retry": 0, "succeeded": 0, "failed": 0,
            "deleted": 0,
        },
        "queues": [],
        "servers": [],
        "waiting_methods": [],
    }  # fmt: skip


def test_status_shows_which_worker_runs_what(qml: Qml, storage: Storage) -> None:
    register(storage, "blue", host.identity())
    qml("enqueue", "resize")
    qml("enqueue", "resize")
    claim = storage.fetch_and_lock_job(Fetch(worker_id="blue-2", server_id="blue#1", queues=()))
    assert claim is not None

    status = qml("status", "--json").value

    (queue,) = status["queues"]
    (server,) = status["servers"]
    idle, busy = server["workers"]
    assert (status["states"]["enqueued"], status["states"]["processing"]) == (1, 1)
    assert (queue["name"], queue["enqueued"], queue["processing"]) == ("default", 1, 1)
    assert queue["oldest_s"] >= 0
    assert (server["id"], server["name"], server["host"], server["alive"]) == ("blue#1", "blue", "here", True)
    assert (idle["number"], idle["state"], idle["job_id"], idle["running_s"]) == (1, "idle", None, None)
    assert (busy["number"], busy["state"], busy["job_id"], busy["method"]) == (
        2,
        "busy",
        claim.job.id,
        "resize",
    )
    assert busy["running_s"] >= 0
    assert busy["rss_bytes"] > 12345  # of the process itself, which is on this machine


def test_what_a_worker_holds_and_has_not_begun_does_not_count_as_running(qml: Qml, storage: Storage) -> None:
    register(storage, "blue", host.identity())
    first, *others = (storage.enqueue(Job.new("resize", priority=priority)) for priority in (9, 5, 1))
    which = Fetch(worker_id="blue-2", server_id="blue#1", queues=())
    assert len(storage.exchange((), fetch=which, limit=3, retention=BY_DEFAULT).claims) == 3

    shown, out = qml("status", "--json").value, qml("status").out

    (queue,), (server,) = shown["queues"], shown["servers"]
    assert (shown["states"]["processing"], queue["processing"], queue["held"]) == (3, 3, len(others))
    assert server["workers"][1]["job_id"] == first
    assert "of the processing ones, workers hold 2 that they have not begun\n" in out
    assert re.search(r"^default +0 +1 +2 ", out, re.MULTILINE)


def test_a_server_whose_process_is_gone_is_not_alive(qml: Qml, storage: Storage) -> None:
    register(storage, "gone", _GONE)

    (server,) = qml("servers", "list", "--json").lines

    assert server["alive"] is False


def test_a_server_on_another_machine_is_judged_by_its_heartbeat(qml: Qml, storage: Storage) -> None:
    register(storage, "far", _ELSEWHERE)

    (server,) = qml("servers", "list", "--json").lines
    workers = qml("workers", "list", "--json").lines

    assert server["alive"] is True
    assert [worker["rss_bytes"] for worker in workers] == [12345, 12345]


def test_the_tables_name_servers_workers_and_queues(qml: Qml, storage: Storage) -> None:
    register(storage, "blue", host.identity())
    qml("enqueue", "resize", "--queue", "images")

    out = qml("status").out

    assert str(qml.database) in out
    assert "images" in out
    assert "blue" in out
    assert "idle" in out
    assert "blue" in qml("servers", "list").out
    assert "idle" in qml("workers", "list").out
    assert "images" in qml("queues", "list").out


def test_migrate_makes_the_schema_once(qml: Qml) -> None:
    first = qml("migrate", "--json").value
    second = qml("migrate", "--json").value

    assert first["applied"] == list(range(1, first["version"] + 1))
    assert second == {"applied": [], "version": first["version"]}
    assert f"has schema version {first['version']}" in qml("migrate").out


def test_a_paused_server_and_what_troubles_one_are_shown(qml: Qml, storage: Storage) -> None:
    register(storage, "blue", host.identity())
    says = SelfDescription(
        queues=("default",), methods=("resize",), paused=True, trouble="The new code\x1b[1m is broken"
    )
    storage.update_server("blue#1", says)

    (listed,) = qml("servers", "list", "--json").lines
    (shown,) = qml("status", "--json").value["servers"]
    tables = [qml("servers", "list").out, qml("status").out]

    assert (listed["paused"], listed["methods"]) == (True, ["resize"])
    assert (shown["paused"], shown["trouble"]) == (True, "The new code\x1b[1m is broken")
    assert all("paused" in table and "alive" not in table for table in tables)
    assert all("The new code\\x1b[1m is broken" in table for table in tables)


@pytest.mark.fault(90)
def test_jobs_that_no_live_server_can_run_are_named_with_the_reason(qml: Qml, storage: Storage) -> None:
    register(storage, "blue", host.identity())
    register(storage, "green", host.identity())
    storage.update_server("blue#1", SelfDescription(queues=("default",), methods=("resize",)))
    storage.update_server("green#1", SelfDescription(queues=("mail",), methods=("send",)))
    for method, queue in (
        ("resize", "default"), ("newone", "default"), ("newer", "mail"), ("newer", "default"),
        ("resize", "images"), ("resize", "images"), ("send", "default"),
    ):  # fmt: skip
        storage.enqueue(Job.new(method, queue=queue))

    out = qml("status").out
    waiting = qml("status", "--json").value["waiting_methods"]

    assert "3 jobs wait for methods that no live server has: newer, newone\n" in out
    assert "queue images: 2 jobs and no server serves it\n" in out
    assert "1 job waits for method send, which no live server of queue default has\n" in out
    listed = {queue["name"]: queue["servers"] for queue in qml("queues", "list", "--json").lines}
    assert listed == {"default": 1, "images": 0, "mail": 1}
    assert re.search(r"^images +2 .* none +-$", qml("queues", "list").out, re.MULTILINE)
    assert [tuple(entry.values()) for entry in waiting] == [
        ("newer", "default", 1), ("newone", "default", 1), ("send", "default", 1), ("resize", "images", 2),
        ("newer", "mail", 1),
    ]  # fmt: skip


def test_nothing_is_said_to_wait_for_a_server_that_has_not_told_what_it_knows(
    qml: Qml, storage: Storage
) -> None:
    storage.enqueue(Job.new("newone"))
    without_servers = qml("status", "--json").value["waiting_methods"]
    assert "1 job waits, and no server is alive\n" in qml("status").out

    register(storage, "old", host.identity())

    assert without_servers == qml("status", "--json").value["waiting_methods"] == []
    assert "waits" not in qml("status").out


def test_a_template_whose_method_no_live_server_knows_is_marked(qml: Qml, storage: Storage) -> None:
    storage.upsert_recurring_job(RecurringJob.new("digest", "0 9 * * *", "deleted"))
    nobody_lives = qml("recurring", "list", "--json").value["method_known"]
    register(storage, "blue", host.identity())
    storage.update_server("blue#1", SelfDescription(queues=(), methods=("resize",)))

    listed = qml("recurring", "list")

    assert nobody_lives is None
    assert qml("recurring", "list", "--json").value["method_known"] is False
    assert "digest does not fire: no live server knows its method deleted" in listed.err

    register(storage, "loops", host.identity())  # a server without code of its own, which fires for all
    storage.update_server("loops#1", SelfDescription(queues=(), methods=()))

    assert "does not fire" not in qml("recurring", "list").err
    assert qml("recurring", "list", "--json").value["method_known"] is False
