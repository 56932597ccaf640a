"""Tests of the storage: what a clock that was set back leaves waiting is brought forward again.

For a storage it is the same whether its clock goes back or the instants in its rows go ahead.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from qml_mp.clock import SystemClock
from qml_mp.core.job import Job
from qml_mp.core.outcome import ErrorInfo, Retry
from qml_mp.core.recurring import RecurringJob
from qml_mp.core.state import StateName
from qml_mp.storage.open import open_storage
from qml_mp.storage.store import Storage
from qml_mp.storage.values import JobFilter
from tests.storage.conftest import Raw
from tests.storage.helpers import KEEP, NO, claim_new, present

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
MINUTELY, DAILY, TWICE_A_DAY = "* * * * *", "0 8 * * *", "0,30 8 * * *"


class HandClock(SystemClock):
    """Wall time that is set by hand."""

    def __init__(self) -> None:
        self.instant = datetime(2026, 3, 1, 12, tzinfo=UTC)

    def now(self) -> datetime:
        return self.instant


def next_firing(storage: Storage, recurring_id: str) -> datetime:
    template = storage.get_recurring_job(recurring_id)
    assert template is not None
    assert template.next_run_at is not None
    return template.next_run_at


@pytest.mark.fault(88)
def test_a_firing_later_than_the_schedule_says_is_computed_anew(storage: Storage, raw: Raw) -> None:
    for recurring_id, cron in (("minutely", MINUTELY), ("daily", DAILY), ("off", MINUTELY)):
        storage.upsert_recurring_job(RecurringJob.new(recurring_id, cron, "work"))
    storage.set_recurring_enabled("off", False, next_run_at=None)
    before = next_firing(storage, "daily")
    raw.age("recurring_jobs", "next_run_at", -2 * DAY)

    changed = [storage.correct_firings() for _ in range(2)]

    assert changed == [["daily", "minutely"], []]
    assert next_firing(storage, "minutely") - storage.now() <= timedelta(minutes=1)
    assert next_firing(storage, "daily") in (before, before + DAY)  # the latter when eight has just struck


def test_a_firing_that_is_none_of_the_schedules_own_is_computed_anew(storage: Storage) -> None:
    # As when a zone has other rules than before: it would fire at the one instant, and then at the other.
    storage.upsert_recurring_job(RecurringJob.new("yearly", "0 0 9 1 1 * 2050-2060", "work"))
    own = next_firing(storage, "yearly")
    storage.set_recurring_enabled("yearly", True, next_run_at=own - HOUR)

    changed = [storage.correct_firings() for _ in range(2)]

    assert changed == [["yearly"], []]
    assert next_firing(storage, "yearly") == own


def test_a_template_whose_cron_no_longer_parses_holds_up_no_other(storage: Storage, raw: Raw) -> None:
    for recurring_id in ("bad", "good"):
        storage.upsert_recurring_job(RecurringJob.new(recurring_id, MINUTELY, "work"))
    raw.age("recurring_jobs", "next_run_at", -HOUR)
    raw.run("UPDATE {recurring_jobs} SET cron = 'no cron' WHERE id = 'bad'")

    assert storage.correct_firings() == ["good"]


@pytest.mark.fault(88)
def test_a_repeated_hour_fires_a_frequent_template_again_and_a_rare_one_not(storage: Storage) -> None:
    fire_at = datetime(2026, 3, 1, 8, tzinfo=UTC)
    for recurring_id, cron in (("frequent", MINUTELY), ("rare", DAILY), ("twice", TWICE_A_DAY)):
        storage.upsert_recurring_job(RecurringJob.new(recurring_id, cron, recurring_id))
        for _ in range(3):
            storage.set_recurring_enabled(recurring_id, True, next_run_at=fire_at)
            storage.fire_due_recurring()
        # Or it fires once more when a minute ends just now.
        storage.set_recurring_enabled(recurring_id, False, next_run_at=None)

    methods = [job.method for job in storage.list_jobs(JobFilter()).jobs]
    assert sorted(methods) == ["frequent", "frequent", "frequent", "rare", "twice"]


@pytest.mark.fault(88)
def test_a_clock_two_days_ahead_and_back_fires_nothing_twice_and_goes_on(tmp_path: Path) -> None:
    clock = HandClock()  # of SQLite alone: that of PostgreSQL is its server's
    storage = open_storage(f"sqlite:///{tmp_path}/jobs.db", clock=clock)
    storage.upsert_recurring_job(RecurringJob.new("daily", DAILY, "work", now=clock.now()))
    begin, fired = clock.now(), []

    for day in (0, 1, 3, 1, 2, 3, 4, 5):
        clock.instant = begin + day * DAY
        storage.correct_firings()
        fired += [day for _ in storage.fire_due_recurring().jobs]
    storage.close()

    # The firing of day 2 came on day 3, ahead of its time, and stood for that of day 3 as well.
    assert fired == [1, 3, 3, 4, 5]


@pytest.mark.fault(88)
def test_a_retry_from_the_future_is_due_after_its_delay(storage: Storage, raw: Raw) -> None:
    claim = claim_new(storage)
    error = ErrorInfo(type="ValueError", message="no", traceback=None)
    storage.finish(claim, Retry(error=error, delay=timedelta(minutes=5)), retention=KEEP)
    planned = Job.new("planned", at=datetime.now(UTC) + 3 * HOUR)
    storage.enqueue(planned)
    for column in ("enqueued_at", "run_at"):
        raw.age("jobs", column, -HOUR)

    changed = [storage.hasten_jobs_from_the_future() for _ in range(2)]

    job, left = present(storage, claim), storage.get(planned.id)
    assert changed == [1, 0]
    assert job.state_name is StateName.AWAITING_RETRY
    assert job.run_at is not None
    assert timedelta(minutes=4) < job.run_at - storage.now() <= timedelta(minutes=5)
    assert left is not None
    assert left.run_at is not None
    assert left.run_at - storage.now() > 3.5 * HOUR


@pytest.mark.fault(88)
def test_the_job_of_a_firing_from_the_future_begins_within_its_jitter(storage: Storage, raw: Raw) -> None:
    template = RecurringJob.new("digest", DAILY, "work", jitter=DAY)
    fire_at = datetime(2026, 3, 1, 8, tzinfo=UTC)  # its job is put off by thirteen hours
    storage.upsert_recurring_job(replace(template, next_run_at=fire_at))
    [fired] = storage.fire_due_recurring().jobs
    planned = Job.new("planned", at=datetime.now(UTC) + HOUR)
    storage.enqueue(planned)
    for column in ("enqueued_at", "run_at"):
        raw.age("jobs", column, -2 * DAY)

    changed = [storage.hasten_jobs_from_the_future() for _ in range(2)]

    job, left = present(storage, fired.id), present(storage, planned.id)
    assert changed == [1, 0]
    assert job.state_name is StateName.SCHEDULED
    assert job.run_at is not None
    assert job.run_at - storage.now() <= template.delay_of(fire_at)
    assert left.run_at is not None
    assert left.run_at - storage.now() > DAY


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_where_nothing_is_from_the_future_nobody_who_writes_is_waited_for(
    url: str, storage: Storage, connect: Callable[[], Any]
) -> None:
    claim = claim_new(storage)
    storage.finish(claim, Retry(error=NO, delay=HOUR), retention=KEEP)
    connect().execute("BEGIN IMMEDIATE")

    with closing(open_storage(url, patience=timedelta(milliseconds=10))) as impatient:
        assert impatient.hasten_jobs_from_the_future() == 0
