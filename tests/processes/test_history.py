"""Tests: the history counts each claim that has ended once, whenever workers die and replies are lost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from qml_mp.core.history import Ending
from qml_mp.core.job import Job
from qml_mp.core.outcome import AttemptKind
from qml_mp.core.state import StateName
from qml_mp.storage.history import MINUTE, HistoryPoint
from qml_mp.storage.store import Storage
from tests.processes.harness import Server, wait_until
from tests.processes.leaving import leaving_patiently

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


def test_without_a_time_to_live_no_history_is_written(server: MakeServer, storage: Storage) -> None:
    one = server("-w", "1", app=APP, QML_MP_HISTORY_TTL="0").start()
    storage.enqueue_many([Job.new("brief") for _ in range(5)])
    wait_for_end(storage, 5)

    assert one.stop() == 0

    assert points(storage) == []
