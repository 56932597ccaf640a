"""Tests of the storage: what came of claims, counted by period, and added up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from qml_mp.core.history import Ending, SeriesKey, numbers_of_one
from qml_mp.core.job import new_job_id
from qml_mp.core.outcome import Cancelled, Crash, ErrorInfo, Failure, Retry, Success
from qml_mp.storage.history import DAY, HOUR, MINUTE, TEN_MINUTES, Period
from qml_mp.storage.store import Storage
from tests.storage.helpers import KEEP, claim_new, fetch

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
BROKEN = ErrorInfo(type="ValueError", message="no")


def series(method: str = "resize", queue: str = "images", ending: Ending = Ending.SUCCEEDED) -> SeriesKey:
    return SeriesKey(method=method, queue=queue, ending=ending)


def times(count: int, *, ran_s: float = 1.0) -> list[int]:
    one = numbers_of_one(waited_us=10_000, ran_us=round(ran_s * 1e6))
    return [count * number for number in one]


def period(
    numbers: Mapping[SeriesKey, Sequence[int]],
    *,
    step: timedelta = MINUTE,
    begins_at: datetime = NOON,
    writer: str = "a#1",
) -> Period:
    return Period(step=step, begins_at=begins_at, writer=writer, numbers=numbers)


def counted(storage: Storage, **which: str) -> dict[Ending, int]:
    points = storage.history(MINUTE, since=NOON, until=NOON + HOUR, **which)
    return {ending: tally.count for point in points for ending, tally in point.tallies.items()}


def test_what_is_written_is_read_back_by_ending(storage: Storage) -> None:
    storage.note_history([period({series(): times(3), series(ending=Ending.FAILED): times(1)})])

    (point,) = storage.history(MINUTE, since=NOON, until=NOON + MINUTE)

    assert point.begins_at == NOON
    assert point.count(Ending.SUCCEEDED) == 3
    assert point.count(Ending.SUCCEEDED, Ending.FAILED) == point.total.count == 4
    assert point.total.ran.sum_us == 4_000_000
    assert point.tallies[Ending.SUCCEEDED].waited.quantile(0.5) is not None


def test_a_write_that_is_repeated_or_comes_late_changes_nothing(storage: Storage) -> None:
    early, late = period({series(): times(3)}), period({series(): times(5)})

    written = [storage.note_history([each]) for each in (early, early, late, early)]

    assert written == [1, 0, 1, 0]
    assert counted(storage) == {Ending.SUCCEEDED: 5}


def test_servers_are_added_up_and_periods_stay_apart(storage: Storage) -> None:
    storage.note_history(
        [
            period({series(): times(3)}),
            period({series(): times(4)}, writer="b#1"),
            period({series(): times(5)}, begins_at=NOON + MINUTE),
            period({series(): times(12)}, step=HOUR),
        ]
    )

    points = storage.history(MINUTE, since=NOON, until=NOON + HOUR)
    (hour,) = storage.history(HOUR, since=NOON, until=NOON + HOUR)

    assert [(point.begins_at, point.total.count) for point in points] == [(NOON, 7), (NOON + MINUTE, 5)]
    assert hour.total.count == 12


def test_a_queue_and_a_method_are_read_alone(storage: Storage) -> None:
    storage.note_history(
        [
            period(
                {
                    series(): times(1),
                    series(queue="slow"): times(2),
                    series(method="mail"): times(4),
                    series(method="mail", ending=Ending.RETRIED): times(8),
                }
            )
        ]
    )

    assert counted(storage, queue="images") == {Ending.SUCCEEDED: 5, Ending.RETRIED: 8}
    assert counted(storage, method="resize") == {Ending.SUCCEEDED: 3}
    assert counted(storage, method="resize", queue="slow") == {Ending.SUCCEEDED: 2}
    assert counted(storage, method="nobody") == {}


def test_methods_and_queues_are_listed_with_their_sums(storage: Storage) -> None:
    storage.note_history(
        [
            period({series(): times(1), series(method="mail", queue="slow"): times(2)}, step=TEN_MINUTES),
            period({series(): times(4)}, step=TEN_MINUTES, begins_at=NOON + TEN_MINUTES),
        ]
    )
    until = NOON + HOUR

    by_method = storage.history_by_method(since=NOON, until=until)
    by_queue = storage.history_by_queue(since=NOON, until=until)

    assert {name: point.total.count for name, point in by_method.items()} == {"mail": 2, "resize": 5}
    assert {name: point.total.count for name, point in by_queue.items()} == {"images": 5, "slow": 2}
    assert storage.history_by_method(since=NOON, until=until, queue="slow").keys() == {"mail"}


def test_old_periods_are_deleted_in_batches_the_oldest_first(storage: Storage) -> None:
    now = storage.now().replace(microsecond=0)
    old = [period({series(): times(1)}, begins_at=now - DAY - number * MINUTE) for number in range(2, 7)]
    storage.note_history([*old, period({series(): times(1)}, begins_at=now - HOUR)])

    deleted = [storage.forget_history(older_than=DAY, limit=3) for _ in range(3)]

    assert deleted == [3, 2, 0]
    assert len(storage.history(MINUTE, since=now - 2 * DAY, until=now)) == 1


def test_what_claims_came_to_is_told_by_their_rows_or_by_their_attempts(storage: Storage) -> None:
    done, failed, retried, crashed, cancelled, running = claims = [claim_new(storage) for _ in range(6)]
    storage.finish(done, Success(result=1, duration=timedelta()), retention=KEEP)
    storage.finish(failed, Failure(error=BROKEN), retention=KEEP)
    storage.finish(retried, Retry(error=BROKEN, delay=timedelta()), retention=KEEP)

    storage.finish(crashed, Crash(error=BROKEN, rerun_after=timedelta()), retention=KEEP)
    storage.finish(cancelled, Cancelled(reason="not wanted"), retention=KEEP)
    other = replace(done.key, claim_seq=2**60)  # of the same job
    gone = replace(done.key, job_id=new_job_id())

    recorded = storage.recorded_claims([*(claim.key for claim in claims), other, gone])

    assert {key: each.ending for key, each in recorded.items()} == {
        done.key: Ending.SUCCEEDED,
        failed.key: Ending.FAILED,
        retried.key: Ending.RETRIED,
        crashed.key: Ending.CRASHED,
        cancelled.key: Ending.CANCELLED,
        running.key: None,
        other: None,
    }
    assert {recorded[key].job.id for key in (done.key, other)} == {done.job.id}


def test_what_a_claim_came_to_is_told_once_its_job_has_gone_on_to_others(storage: Storage) -> None:
    first = claim_new(storage)
    storage.finish(first, Failure(error=BROKEN), retention=KEEP)
    storage.retry(first.job.id)
    second = storage.fetch_and_lock_job(fetch(first.job.queue))
    assert second is not None
    storage.finish(second, Success(result=1, duration=timedelta()), retention=KEEP)

    recorded = storage.recorded_claims([first.key, second.key])

    assert recorded[first.key].ending is Ending.RETRIED  # it was by hand, and its attempt stays
    assert recorded[second.key].ending is Ending.SUCCEEDED
