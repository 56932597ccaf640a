"""`status`, `queues`, `servers`, `workers` and `migrate`: what they show of a storage."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from qml_mp import host
from qml_mp.core.server_info import ProcessIdentity, ServerInfo, WorkerInfo
from qml_mp.storage.open import open_storage
from qml_mp.storage.protocol import Fetch, Storage
from tests.cli.command import Qml

_ELSEWHERE = ProcessIdentity(host="another machine", pid=1, started_ticks=1)
_GONE = ProcessIdentity(host=host.identity().host, pid=host.identity().pid, started_ticks=1)
_LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)


@pytest.fixture
def storage(qml: Qml) -> Iterator[Storage]:
    """The storage that the command looks at."""
    storage = open_storage(f"sqlite:///{qml.database}")
    storage.migrate()
    yield storage
    storage.close()


def register(storage: Storage, name: str, process: ProcessIdentity) -> None:
    """A server with two workers, all of them said to be the same process."""
    now = datetime.now(UTC)
    storage.register_server(
        ServerInfo(
            id=f"{name}#1", name=name, hostname="here", process=process, worker_count=2, queues=("default",),
            started_at=now, last_heartbeat=now,
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
    assert list(queue) == ["name", "enqueued", "processing", "oldest_s"]
    assert (queue["name"], queue["enqueued"], queue["processing"]) == ("default", 1, 1)
    assert queue["oldest_s"] >= 0
    assert list(server) == ["id", "name", "host", "pid", "alive", "workers"]
    assert (server["id"], server["name"], server["host"], server["alive"]) == ("blue#1", "blue", "here", True)
    assert list(idle) == ["number", "pid", "state", "job_id", "method", "running_s", "rss_bytes"]
    assert (idle["number"], idle["state"], idle["job_id"], idle["running_s"]) == (1, "idle", None, None)
    assert (busy["number"], busy["state"], busy["job_id"], busy["method"]) == (
        2,
        "busy",
        claim.job.id,
        "resize",
    )
    assert busy["running_s"] >= 0
    assert busy["rss_bytes"] > 12345  # of the process itself, which is on this machine


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
