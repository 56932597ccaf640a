"""Tests of the storage: what came of claims, counted by period, and added up."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from qml_mp.core.history import Ending, SeriesKey, numbers_of_one
from qml_mp.core.job import new_job_id
from qml_mp.core.outcome import Cancelled, Crash, ErrorInfo, Failure, Retry, Success
from qml_mp.storage.history import DAY, HOUR, MINUTE, STEPS, TEN_MINUTES, Period, floor_to, step_of
from qml_mp.storage.store import Storage
from tests.storage.conftest import Raw
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


@pytest.mark.parametrize("name", ['"; DROP TABLE jobs; --', "a\x01\x7f\u2028", "日本" * 80, "o'\\\"\n"])
def test_any_name_of_a_method_comes_back_as_it_was(storage: Storage, name: str) -> None:
    storage.note_history([period({series(method=name): times(1)}, step=TEN_MINUTES)])

    assert storage.history_by_method(since=NOON, until=NOON + HOUR).keys() == {name}


def test_old_periods_are_deleted_in_batches_the_oldest_first(storage: Storage) -> None:
    now = storage.now().replace(microsecond=0)
    old = [period({series(): times(1)}, begins_at=now - DAY - number * MINUTE) for number in range(2, 7)]
    storage.note_history([*old, period({series(): times(1)}, begins_at=now - HOUR)])

    deleted = [storage.forget_history(older_than=DAY, limit=3) for _ in range(3)]

    assert deleted == [3, 2, 0]
    assert len(storage.history(MINUTE, since=now - 2 * DAY, until=now)) == 1


@pytest.mark.parametrize("step", STEPS[1:])
def test_a_period_is_kept_for_as_long_as_part_of_it_is_young_enough(
    storage: Storage, step: timedelta
) -> None:
    now = storage.now()
    partly_old = floor_to(step, now - 7 * DAY)
    older_than = now - partly_old - step / 10
    old = [period({series(): times(1)}, step=step, begins_at=partly_old - number * step) for number in (1, 2)]
    storage.note_history([*old, period({series(): times(3)}, step=step, begins_at=partly_old)])

    deleted = [storage.forget_history(older_than=older_than, limit=1) for _ in range(3)]

    assert deleted == [1, 1, 0]
    assert [point.total.count for point in storage.history(step, since=now - 9 * DAY, until=now)] == [3]


def test_sums_over_all_that_is_kept_lack_nothing_of_their_first_day(storage: Storage) -> None:
    now = storage.now()
    first_day = floor_to(DAY, now - 7 * DAY)
    kept_for = now - (first_day + DAY / 2)
    days = [first_day + number * DAY for number in range(7)]
    storage.note_history([period({series(): times(1)}, step=DAY, begins_at=day) for day in days])

    storage.forget_history(older_than=kept_for, limit=100)

    by_method = storage.history_by_method(since=now - kept_for, until=now)
    by_queue = storage.history_by_queue(since=now - kept_for, until=now)
    assert (by_method["resize"].total.count, by_queue["images"].total.count) == (7, 7)


def test_a_row_that_another_program_has_filled_is_passed_over(storage: Storage, raw: Raw) -> None:
    storage.note_history([period({series(): times(1)})])
    rubbish = '{"succeeded": [1, "x"], "failed": "no", "new": [1, 2], "retried": [1, 2, 9999, 1]}'

    for text in (rubbish, "[]", "not json"):
        raw.run("UPDATE {history} SET totals = ?", text)
        storage.history(MINUTE, since=NOON, until=NOON + HOUR)


def test_periods_get_longer_with_the_range(storage: Storage) -> None:
    steps = [step_of(timedelta(hours=hours)) for hours in (1, 3, 24, 7 * 24)]

    assert steps == [MINUTE, MINUTE, TEN_MINUTES, HOUR]
    assert floor_to(HOUR, NOON + timedelta(minutes=59, seconds=59)) == NOON


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


def test_a_week_of_a_hundred_methods_is_read_quickly(storage: Storage, raw: Raw) -> None:
    """The bound of the page is 50 ms; what is held here is far above it, as this may run beside anything."""
    numbers = {series(method=f"app.jobs.method_{number}"): times(3) for number in range(100)}
    week = 7 * DAY
    for step in STEPS[1:]:
        storage.note_history([period(numbers, step=step)])
        raw.run(
            "INSERT INTO {history} (step_s, begins_at, writer, claims, totals, queues, methods) "
            "WITH RECURSIVE later (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM later WHERE n + 1 < ?) "
            "SELECT step_s, begins_at + n * ?, writer, claims, totals, queues, methods FROM {history}, later "
            "WHERE step_s = ?",
            week // step, raw.interval(step), step // timedelta(seconds=1),
        )  # fmt: skip
    until = NOON + week

    began = time.process_time()
    assert len(storage.history(HOUR, since=NOON, until=until)) == 7 * 24
    assert len(storage.history(HOUR, since=NOON, until=until, queue="images")) == 7 * 24
    assert len(storage.history(HOUR, since=NOON, until=until, method="app.jobs.method_7")) == 7 * 24
    assert len(storage.history_by_method(since=NOON, until=until)) == 100
    assert time.process_time() - began < 2
