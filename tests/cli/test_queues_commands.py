"""`queues`: paused, resumed and limited, and what is shown of it."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest

from qml_mp import host
from qml_mp.core.job import Job
from qml_mp.core.limits import LimitKind, Rate
from qml_mp.core.server_info import ServerInfo
from qml_mp.storage.store import Storage
from qml_mp.storage.values import Fetch
from tests.cli.command import Qml
from tests.storage.helpers import set_limit

_FETCH = Fetch(worker_id="w", server_id="s", queues=())


def test_a_paused_queue_is_shown_and_gives_no_job_until_it_is_resumed(qml: Qml, storage: Storage) -> None:
    storage.enqueue(Job.new("work", queue="images"))

    qml("queues", "pause", "images")

    assert storage.fetch_and_lock_job(_FETCH) is None
    [shown] = qml("queues", "list", "--json").lines
    assert (shown["name"], shown["enqueued"], shown["paused"]) == ("images", 1, True)
    assert qml("status", "--json").value["queues"] == [shown | {"oldest_s": pytest.approx(0, abs=3600)}]
    assert "paused" in qml("status").out
    qml("queues", "resume", "images")
    assert "was not paused" in qml("queues", "resume", "images").out
    assert storage.fetch_and_lock_job(_FETCH) is not None


def test_a_queue_that_only_another_program_can_have_named_so_is_paused_limited_and_resumed(
    qml: Qml, storage: Storage
) -> None:
    storage.enqueue(Job.new("work"))
    with closing(sqlite3.connect(qml.database)) as connection, connection:
        connection.execute("UPDATE qml_jobs SET queue = 'my queue'")

    paused = qml("queues", "pause", "my queue")
    limited = qml("queues", "limit", "my queue", "3")

    assert (paused.code, limited.code) == (0, 0)
    assert "`qml-mp queues resume 'my queue'`" in paused.out
    [shown] = qml("queues", "list", "--json").lines
    assert (shown["name"], shown["paused"], shown["max_running"]) == ("my queue", True, 3)
    qml("queues", "resume", "my queue")
    assert storage.fetch_and_lock_job(_FETCH) is not None


def test_limits_of_a_queue_are_set_shown_and_ended(qml: Qml, storage: Storage) -> None:
    set_limit(storage, LimitKind.METHOD, "resize", max_running=2)

    told = qml("queues", "limit", "default", "3", "--rate", "100/m").out

    assert told == "default: 3 running, 100/m\n"
    [method, queue] = qml("queues", "limits", "--json").lines
    assert method == {
        "kind": "method", "name": "resize", "paused": False, "max_running": 2, "rate": None, "processing": 0,
        "next_in_s": None,
    }  # fmt: skip
    assert (queue["name"], queue["max_running"], queue["rate"]) == ("default", 3, "100/m")
    assert all(len(line) <= 80 for line in qml("queues", "limits").out.splitlines())
    qml("queues", "limit", "default", "none")
    assert [each.limit.rate for each in storage.standings()] == [None, Rate.parse("100/m")]
    assert qml("queues", "limit", "default", "--rate", "none").out == "default: no limit\n"


def test_limits_of_a_method_that_a_server_knows_are_its_codes_to_say(qml: Qml, storage: Storage) -> None:
    now = storage.now()
    storage.register_server(
        ServerInfo(
            id="server#1", name="server", hostname="h", process=host.identity(), worker_count=1, queues=(),
            started_at=now, last_heartbeat=now, methods=("work",),
        )
    )  # fmt: skip
    set_limit(storage, LimitKind.METHOD, "work", max_running=2)

    refused = qml("queues", "limit", "work", "none", "--method")

    assert refused.code == 2
    assert "server on h (pid" in refused.err
    assert "knows the method 'work'" in refused.err
    assert [each.limit.max_running for each in storage.standings()] == [2]
    qml("queues", "limit", "work", "none", "--method", "--force")
    assert storage.standings() == []


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("limit", "nosuch", "none", "--method"), "No method 'nosuch' is limited. None is."),
        (("limit", "work", "3", "--method"), "the code's to say"),
        (("pause", "nosuch"), "--force"),
        (("limit", "defualt", "3"), "Did you mean 'default'?"),
        (("resume", "nosuch"), "Known are default"),
        (("pause", "no such", "--force"), "queue name"),
        (("limit", "default"), "--rate"),
        (("limit", "default", "0"), "max_running is 0"),
        (("limit", "default", "9" * 5000), "whole number"),
        (("limit", "default", "--rate", "100/fortnight"), "100/m"),
    ],
)
def test_what_no_queue_can_have_is_refused_with_what_to_do(
    qml: Qml, storage: Storage, arguments: tuple[str, ...], told: str
) -> None:
    refused = qml("queues", *arguments)

    assert refused.code == 2
    assert told in refused.err
    assert storage.standings() == []


def test_a_queue_that_is_to_come_is_paused_by_force(qml: Qml, storage: Storage) -> None:
    qml("queues", "pause", "later", "--force")

    assert [shown["name"] for shown in qml("queues", "list", "--json").lines] == ["later"]
