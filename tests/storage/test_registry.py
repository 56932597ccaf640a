"""Tests of the storage: runs of supervisors, their workers, and what becomes of silent ones."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from qml_mp.core.answers import Answers, ReloadAnswer, ReloadState
from qml_mp.core.job import Job
from qml_mp.core.server_description import ServerDescription, ToldLoop, ToldSetting
from qml_mp.core.server_info import ProcessIdentity, SelfDescription, ServerInfo, WorkerInfo
from qml_mp.core.state import StateName
from qml_mp.errors import StorageUnavailable
from qml_mp.storage.store import Storage
from qml_mp.storage.values import Heard
from tests import failpoints
from tests.storage.conftest import Raw
from tests.storage.helpers import DONE, HOUR, KEEP, WAITING, claim_new, fetch, open_patiently, present
from tests.until import wait_until

PROCESS = ProcessIdentity(host="kernel/ns", pid=4242, started_ticks=2**40)
START = datetime(2026, 1, 1, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


def server(id: str, *, heartbeats: bool = True, minutes: int = 0) -> ServerInfo:
    return ServerInfo(
        id=id, name=id.partition("#")[0], hostname="h", process=PROCESS, worker_count=2,
        queues=("default", "mail"), started_at=START + minutes * MINUTE, last_heartbeat=START,
        heartbeat_enabled=heartbeats,
    )  # fmt: skip


def worker(id: str, server_id: str, number: int = 1) -> WorkerInfo:
    return WorkerInfo(id=id, server_id=server_id, number=number, process=PROCESS, started_at=START)


def test_a_server_is_listed_as_registered_with_the_databases_heartbeat(storage: Storage) -> None:
    storage.register_server(server("b#2", minutes=2))
    storage.register_server(server("a#1", minutes=1, heartbeats=False))

    listed = storage.list_servers()

    assert [replace(info, last_heartbeat=START) for info in listed] == [
        server("a#1", minutes=1, heartbeats=False),
        server("b#2", minutes=2),
    ]
    assert all(abs(info.last_heartbeat - storage.now()) < MINUTE for info in listed)


def test_what_a_server_says_of_itself_between_start_and_end_is_read_back(storage: Storage) -> None:
    storage.register_server(server("a#1"))
    said = SelfDescription(
        queues=("fast",), methods=("one", "two"), paused=True, trouble="The new code\ncannot be imported.",
        answers=Answers(reload=ReloadAnswer(began_at=1.5, state=ReloadState.DONE, workers=2, replaced=2)),
    )  # fmt: skip

    found = [storage.update_server(server_id, said) for server_id in ("a#1", "nobody#1")]

    (info,) = storage.list_servers()
    assert found == [True, False]
    assert said == SelfDescription(
        queues=info.queues,
        methods=info.methods,
        paused=info.paused,
        trouble=info.trouble,
        answers=info.answers,
    )


def test_a_server_without_claims_leaves_nothing_behind(storage: Storage) -> None:
    for server_id in ("a#1", "b#1"):
        storage.register_server(server(server_id))
        storage.register_worker(worker(f"{server_id}:1", server_id))
    claim_new(storage, server="b#1", worker="b#1:1")

    assert storage.deregister_server("a#1")
    assert storage.deregister_server("a#1")  # a second call finds that it is done

    assert [info.id for info in storage.list_servers()] == ["b#1"]
    assert [info.id for info in storage.list_workers()] == ["b#1:1"]


def test_a_server_whose_worker_holds_a_claim_stays_and_its_workers_claim_no_more(storage: Storage) -> None:
    storage.register_server(server("a#1"))
    storage.register_worker(worker("a#1:1", "a#1"))
    claim = claim_new(storage, server="a#1", worker="a#1:1")
    storage.enqueue(Job.new("work"))

    assert not storage.deregister_server("a#1")

    assert [info.id for info in storage.list_servers()] == ["a#1"]
    assert storage.list_workers() == []
    assert [held.key for held in storage.claims_of_server("a#1")] == [claim.key]
    registered = replace(fetch("default", worker="a#1:1", server="a#1"), registered=True)
    assert storage.fetch_and_lock_job(registered) is None


@pytest.mark.parametrize("url", ["postgres"], indirect=True)
def test_a_worker_that_registers_while_its_server_leaves_goes_with_it(
    storage: Storage, url: str, raw: Raw, connect: Callable[[], Any]
) -> None:
    """Killed by the stop, while its commit waits for a slow disk."""
    storage.register_server(server("a#1"))
    name = f"leaving-{uuid.uuid4()}"
    registering = connect()
    registering.execute(f"SELECT 1 FROM {raw.name('servers')} WHERE id = 'a#1' FOR KEY SHARE")
    registering.execute(
        f"INSERT INTO {raw.name('workers')} (id, server_id, number, host, pid, started_ticks, started_at)"
        " VALUES ('a#1:1', 'a#1', 1, 'h', 1, 1, now())"
    )
    with closing(open_patiently(url, application_name=name)) as leaving, ThreadPoolExecutor(1) as thread:
        left = thread.submit(leaving.deregister_server, "a#1")
        wait_until(lambda: raw.run(WAITING, name), what="a server that waits for its worker's row")
        registering.commit()

        assert left.result()

    assert storage.list_workers() == []


def test_workers_are_listed_by_server_and_number(storage: Storage) -> None:
    storage.register_server(server("a#1"))
    storage.register_server(server("b#1"))
    workers = [worker("w-3", "b#1", 1), worker("w-2", "a#1", 2), worker("w-1", "a#1", 1)]
    for info in workers:
        assert storage.register_worker(info)

    assert storage.list_workers() == [workers[2], workers[1], workers[0]]


def test_a_worker_whose_server_was_declared_dead_is_not_registered(storage: Storage) -> None:
    storage.register_server(server("a#1"))
    storage.reclaim_server("a#1", silent_for=None)

    registered = storage.register_worker(worker("w-1", "a#1"))

    assert not registered
    assert storage.list_workers() == []


def test_a_heartbeat_bumps_the_row_and_the_memory_of_its_workers(storage: Storage, raw: Raw) -> None:
    storage.register_server(server("a#1"))
    storage.register_worker(worker("w-1", "a#1"))
    raw.age("servers", "last_heartbeat", HOUR)

    heard = storage.heartbeat_server("a#1", worker_rss={"w-1": 5 * 2**30, "w-9": 1})

    [info] = storage.list_servers()
    assert heard == Heard(servers=1, is_asked=False)
    assert abs(info.last_heartbeat - storage.now()) < MINUTE
    assert [w.rss_bytes for w in storage.list_workers()] == [5 * 2**30]


def test_a_heartbeat_without_a_row_says_that_a_peer_declared_it_dead(storage: Storage) -> None:
    assert not storage.heartbeat_server("a#1", worker_rss={})


def test_only_peers_that_promised_heartbeats_can_be_silent(storage: Storage, raw: Raw) -> None:
    for info in (server("own#1"), server("quiet#1"), server("no-beats#1", heartbeats=False)):
        storage.register_server(info)
    raw.age("servers", "last_heartbeat", HOUR)
    storage.register_server(server("fresh#1"))

    silent = storage.silent_servers(own_id="own#1", timeout=MINUTE)

    assert [info.id for info in silent] == ["quiet#1"]
    assert storage.silent_servers(own_id="own#1", timeout=2 * HOUR) == []


@pytest.mark.fault(74)
@pytest.mark.fault(88)
def test_a_heartbeat_from_before_the_clock_was_set_back_is_silence_once_it_was_watched(
    storage: Storage, raw: Raw
) -> None:
    for info in (server("own#1"), server("quiet#1"), server("beats#1")):
        storage.register_server(info)
    raw.age("servers", "last_heartbeat", -HOUR)
    before = {info.id: info.last_heartbeat for info in storage.list_servers()}
    for living in ("own#1", "beats#1"):
        assert storage.heartbeat_server(living, worker_rss={}) == Heard(servers=3, is_asked=False)

    silent = storage.silent_servers(own_id="own#1", timeout=MINUTE)
    for server_id in ("quiet#1", "beats#1"):
        storage.reclaim_server(server_id, silent_for=MINUTE, judge="own#1")
    assert [info.id for info in silent] == ["quiet#1"]
    assert len(storage.list_servers()) == 3

    for server_id in ("quiet#1", "beats#1"):
        storage.reclaim_server(server_id, silent_for=MINUTE, newest=before[server_id], judge="own#1")
    assert {info.id for info in storage.list_servers()} == {"own#1", "beats#1"}


@pytest.mark.fault(88)
def test_a_judge_whose_own_heartbeat_lies_in_the_future_reclaims_from_nobody(
    storage: Storage, raw: Raw
) -> None:
    for info in (server("own#1"), server("quiet#1")):
        storage.register_server(info)
    raw.age("servers", "last_heartbeat", -HOUR)
    (newest,) = {info.last_heartbeat for info in storage.list_servers() if info.id == "quiet#1"}

    storage.reclaim_server("quiet#1", silent_for=MINUTE, newest=newest, judge="own#1")
    assert len(storage.list_servers()) == 2

    assert storage.heartbeat_server("own#1", worker_rss={})
    storage.reclaim_server("quiet#1", silent_for=MINUTE, newest=newest, judge="own#1")
    assert [info.id for info in storage.list_servers()] == ["own#1"]


def test_reclaiming_releases_the_claims_uncharged_and_removes_the_rows(storage: Storage) -> None:
    storage.register_server(server("a#1"))
    storage.register_worker(worker("w-1", "a#1"))
    taken = [claim_new(storage, server="a#1", worker="w-1") for _ in range(3)]
    other = claim_new(storage, server="b#1")

    count = storage.reclaim_server("a#1", silent_for=None)

    jobs = [present(storage, claim) for claim in taken]
    assert count == 3
    assert {job.state_name for job in jobs} == {StateName.ENQUEUED}
    assert {(job.failures, job.crashes, job.claim_seq) for job in jobs} == {(0, 0, 1)}
    assert (storage.list_servers(), storage.list_workers()) == ([], [])
    assert [held.key for held in storage.claims()] == [other.key]
    assert storage.reclaim_server("a#1", silent_for=None) == 0


def test_a_server_that_was_heard_again_is_not_reclaimed(storage: Storage, raw: Raw) -> None:
    storage.register_server(server("a#1"))
    storage.register_worker(worker("w-1", "a#1"))
    claim = claim_new(storage, server="a#1")

    count = storage.reclaim_server("a#1", silent_for=MINUTE)

    assert count == 0
    assert [held.key for held in storage.claims()] == [claim.key]
    assert (len(storage.list_servers()), len(storage.list_workers())) == (1, 1)

    raw.age("servers", "last_heartbeat", HOUR)
    assert storage.reclaim_server("a#1", silent_for=MINUTE) == 1
    assert storage.claims() == []


@pytest.mark.fault(8)
def test_a_server_that_was_not_heard_itself_reclaims_from_no_silent_one(storage: Storage, raw: Raw) -> None:
    storage.register_server(server("a#1"))
    storage.register_server(server("own#1"))
    claim = claim_new(storage, server="a#1")
    raw.age("servers", "last_heartbeat", HOUR)

    assert storage.reclaim_server("a#1", silent_for=MINUTE, judge="own#1") == 0
    assert storage.reclaim_server("a#1", silent_for=MINUTE, judge="unknown#1") == 0
    assert [held.key for held in storage.claims()] == [claim.key]
    assert len(storage.list_servers()) == 2

    assert storage.heartbeat_server("own#1", worker_rss={})
    assert storage.reclaim_server("a#1", silent_for=MINUTE, judge="own#1") == 1
    assert [info.id for info in storage.list_servers()] == ["own#1"]


@pytest.mark.fault(7)
def test_a_server_with_a_worker_that_is_not_proved_dead_keeps_its_jobs(storage: Storage) -> None:
    storage.register_server(server("a#1"))
    for worker_id in ("w-1", "w-2"):
        storage.register_worker(worker(worker_id, "a#1"))
    claim = claim_new(storage, server="a#1", worker="w-1")

    with pytest.raises(StorageUnavailable, match="new worker"):
        storage.reclaim_server("a#1", silent_for=None, dead_workers={"w-1"})

    assert [held.key for held in storage.claims()] == [claim.key]
    assert (len(storage.list_servers()), len(storage.list_workers())) == (1, 2)
    assert storage.reclaim_server("a#1", silent_for=None, dead_workers={"w-1", "w-2"}) == 1
    assert (storage.list_servers(), storage.list_workers()) == ([], [])


def test_claims_of_a_server_whose_row_is_gone_are_reclaimed_only_without_a_condition(
    storage: Storage,
) -> None:
    claim = claim_new(storage, server="a#1")

    assert storage.reclaim_server("a#1", silent_for=MINUTE) == 0
    assert [held.key for held in storage.claims()] == [claim.key]
    assert storage.reclaim_server("a#1", silent_for=None) == 1


@pytest.mark.fault(36)
def test_a_lost_reply_to_a_reclaim_gives_nothing_back_twice(storage: Storage, reset_failpoints: None) -> None:
    storage.register_server(server("a#1"))
    storage.register_worker(worker("w-1", "a#1"))
    lost = [claim_new(storage, server="a#1", worker="w-1") for _ in range(3)]
    failpoints.arm("storage.committed=raise:1")
    with pytest.raises(StorageUnavailable):
        storage.reclaim_server("a#1", silent_for=None)
    failpoints.arm("")
    again = storage.exchange((), fetch=fetch(server="b#1", worker="w"), limit=9, retention=KEEP).claims

    assert storage.reclaim_server("a#1", silent_for=None) == 0

    assert {claim.job.claim_seq for claim in again} == {2}
    assert not any(storage.finish(claim, DONE, retention=KEEP).accepted for claim in lost)
    assert all(storage.finish(claim, DONE, retention=KEEP).accepted for claim in again)


# What servers tell of themselves, and what the storage takes.

TOLD = ServerDescription(
    app="tasks:app",
    versions={"qml-mp": "1.2", "Python": "3.11"},
    settings=(ToldSetting(name="job_timeout", value="5m", source="QML_MP_JOB_TIMEOUT"),),
    loops=(
        ToldLoop(name="heartbeat", succeeded_at=datetime(2026, 1, 2, tzinfo=UTC), is_failing=False),
        ToldLoop(name="settle", succeeded_at=None, is_failing=True),
    ),
)


def test_what_a_server_tells_of_itself_is_read_back(storage: Storage) -> None:
    storage.register_server(server("a#1"))
    storage.register_server(server("b#2"))

    assert storage.describe_server("a#1", TOLD)

    assert storage.server_descriptions() == {"a#1": TOLD, "b#2": ServerDescription()}


def test_a_server_that_is_not_registered_has_nothing_to_tell(storage: Storage) -> None:
    assert not storage.describe_server("a#1", TOLD)
    assert storage.server_descriptions() == {}


def test_the_size_grows_with_the_jobs_and_names_the_database(storage: Storage) -> None:
    storage.enqueue(Job.new("m", "x"))
    before = storage.size()

    storage.enqueue_many([Job.new("m", "x" * 1000) for _ in range(500)])

    after = storage.size()
    assert after.size_bytes > before.size_bytes + 500_000
    assert after.version.startswith(("SQLite 3.", "PostgreSQL "))
    assert sum(table.size_bytes for table in after.tables) == after.size_bytes
    assert [table.size_bytes for table in after.tables] == sorted(
        (table.size_bytes for table in after.tables), reverse=True
    )
