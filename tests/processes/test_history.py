"""Tests: the history counts each claim that has ended once, whenever workers die and replies are lost."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest

from qml_mp.core.history import Ending
from qml_mp.core.job import Job
from qml_mp.core.outcome import AttemptKind
from qml_mp.core.state import StateName
from qml_mp.storage.history import MINUTE, HistoryPoint
from qml_mp.storage.store import Storage
from tests.processes.harness import Server, wait_until
from tests.processes.leaving import leaving_patiently
from tests.storage_rows import hold_writes, pause_writes

MakeServer = Callable[..., Server]


@pytest.fixture
def server(server: MakeServer) -> MakeServer:
    """What is counted last is written."""
    return leaving_patiently(server)


APP = "tests.processes.apps_history:app"


def points(storage: Storage) -> list[HistoryPoint]:
    now = datetime.now(UTC)
    return storage.history(MINUTE, since=now - timedelta(hours=1), until=now + timedelta(hours=1))


def history(storage: Storage) -> Counter[Ending]:
    """What was counted, of all methods."""
    counts: Counter[Ending] = Counter()
    for point in points(storage):
        counts.update({ending: tally.count for ending, tally in point.tallies.items()})
    return counts


def rows(storage: Storage, job_ids: list[str]) -> Counter[Ending]:
    """The same by the rows of the jobs and their attempts, save what was released."""
    ended = {
        StateName.SUCCEEDED: Ending.SUCCEEDED,
        StateName.FAILED: Ending.FAILED,
        StateName.DELETED: Ending.CANCELLED,
    }
    counts: Counter[Ending] = Counter()
    for job_id in job_ids:
        job = storage.get(job_id)
        assert job is not None
        counts[ended[job.state_name]] += 1
        for attempt in storage.attempts(job_id):
            if attempt.claim_seq != job.claim_seq or job.state_name is StateName.SUCCEEDED:
                is_crash = attempt.kind is AttemptKind.CRASH
                counts[Ending.CRASHED if is_crash else Ending.RETRIED] += 1
    return counts


def counted(storage: Storage) -> Counter[Ending]:
    found = history(storage)
    del found[Ending.RELEASED]
    return found


def wait_for_end(storage: Storage, count: int) -> None:
    final = (StateName.SUCCEEDED, StateName.FAILED, StateName.DELETED)

    def all_ended() -> bool:
        counts = storage.job_counts()
        return sum(counts[state] for state in final) == count

    wait_until(all_ended, what=f"the end of {count} jobs")


def mixed(count: int) -> list[Job]:
    """Jobs that succeed, fail, are retried, and return more than shared memory holds."""
    kinds = ("brief", "brief", "brief", "brief", "fail", "again", "large")
    return [Job.new(kinds[number % len(kinds)]) for number in range(count)]


def test_each_end_is_counted_with_how_long_it_took(server: MakeServer, storage: Storage) -> None:
    one = server("-w", "2", app=APP).start(ready=2)
    job_ids = storage.enqueue_many(mixed(70))
    ids = [str(job_id) for job_id in job_ids]
    wait_for_end(storage, 70)

    assert one.stop() == 0

    assert counted(storage) == rows(storage, ids)
    by_method = storage.history_by_method(since=datetime.now(UTC) - timedelta(hours=1), until=storage.now())
    assert by_method["brief"].total.count == 40
    assert by_method["again"].count(Ending.RETRIED) == 10
    assert sum(point.total.waited.count for point in points(storage)) == 80


def test_no_count_is_lost_or_doubled_when_workers_are_killed(server: MakeServer, storage: Storage) -> None:
    one = server("-w", "3", app=APP, QML_MP_MAX_CRASHES="1000").start(ready=3)
    ids: list[str] = []
    kills = 0

    def kill_now_and_then() -> bool:
        """Whenever some more have ended, so that workers come to something between two kills."""
        nonlocal kills
        counts = storage.job_counts()
        ended = counts[StateName.SUCCEEDED] + counts[StateName.FAILED]
        victims = list(one.worker_pids().values())
        if victims and ended >= 25 * (kills + 1):
            kills += 1
            with suppress(ProcessLookupError):
                os.kill(victims[kills % len(victims)], signal.SIGKILL)
        return ended == len(ids)

    while kills < 5:  # a test without a processor may miss the end of many
        ids += map(str, storage.enqueue_many(mixed(350)))
        wait_until(kill_now_and_then, within_s=120, what="the end of all jobs")

    assert one.stop() == 0

    assert counted(storage) == rows(storage, ids)
    assert history(storage)[Ending.SUCCEEDED] == len(ids) / 350 * 300


@pytest.mark.parametrize("url", ["postgres"], indirect=True)
def test_a_success_that_is_committed_after_the_claims_of_its_dead_worker_were_read_is_counted(
    server: MakeServer, storage: Storage, postgres_url: str
) -> None:
    one = server("-w", "1", app=APP).start()
    with psycopg.connect(postgres_url) as holder, psycopg.connect(postgres_url, autocommit=True) as admin:
        pause_writes(storage, StateName.SUCCEEDED)
        hold_writes(holder)
        job_id = str(storage.enqueue(Job.new("large")))
        writing = wait_until(lambda: waiting_for(admin, holder.info.backend_pid), what=one.log)

        os.kill(one.worker_pids()[1], signal.SIGKILL)
        wait_until(lambda: waiting_for(admin, writing), what=one.log)
        holder.rollback()
        wait_for_end(storage, 1)

    assert one.stop() == 0
    assert counted(storage) == rows(storage, [job_id]) == {Ending.SUCCEEDED: 1}


def waiting_for(admin: psycopg.Connection, pid: int) -> int | None:
    """The backend that waits for a lock of this one."""
    row = admin.execute(
        "SELECT pid FROM pg_stat_activity WHERE %s = ANY(pg_blocking_pids(pid))", [pid]
    ).fetchone()
    return None if row is None else int(row[0])


@pytest.mark.parametrize("place", ["finish.before", "finish.committed", "outcome.recorded", "job.returned"])
def test_a_worker_that_dies_about_its_commit_has_counted_or_left_it(
    server: MakeServer, storage: Storage, tmp_path: Path, place: str
) -> None:
    one = server("-w", "1", app=APP, QML_MP_MAX_CRASHES="1000")
    one.program = ("-m", "tests.failpoints", f"worker/{place}=kill:4")
    ids = [str(job_id) for job_id in storage.enqueue_many(mixed(42))]
    one.start(ready=None)
    wait_for_end(storage, 42)

    assert one.stop() == 0

    assert counted(storage) == rows(storage, ids)


def test_a_reply_that_is_lost_is_no_count_that_is_lost(
    server: MakeServer, storage: Storage, tmp_path: Path
) -> None:
    one = server("-w", "2", app=APP)
    one.program = ("-m", "tests.failpoints", "worker/finish.committed=raise:3")
    ids = [str(job_id) for job_id in storage.enqueue_many(mixed(42))]
    one.start(ready=None)
    wait_for_end(storage, 42)

    assert one.stop() == 0

    assert counted(storage) == rows(storage, ids)


def test_a_settlement_whose_reply_is_lost_is_counted_once(
    server: MakeServer, storage: Storage, tmp_path: Path
) -> None:
    one = server("-w", "1", app=APP)
    mark = tmp_path / "once"
    one.program = (
        "-m", "tests.failpoints",
        f"worker/job.returned=kill:4;supervisor/settle.finished=raise@{mark}",
    )  # fmt: skip
    ids = [str(job_id) for job_id in storage.enqueue_many([Job.new("brief") for _ in range(12)])]
    one.start(ready=None)
    wait_for_end(storage, 12)

    assert one.stop() == 0

    assert mark.exists()
    assert counted(storage) == rows(storage, ids)
    assert counted(storage)[Ending.CRASHED] >= 1


def test_without_a_time_to_live_no_history_is_written(server: MakeServer, storage: Storage) -> None:
    one = server("-w", "1", app=APP, QML_MP_HISTORY_TTL="0").start()
    storage.enqueue_many([Job.new("brief") for _ in range(5)])
    wait_for_end(storage, 5)

    assert one.stop() == 0

    assert points(storage) == []
