"""The newest jobs of recurring templates, of many at a time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from qml_mp.core.outcome import Failure
from qml_mp.core.recurring import RecurringJob
from qml_mp.core.state import StateName
from qml_mp.storage.store import Storage
from tests.storage.helpers import KEEP, NO, fetch


def test_each_template_has_its_newest_jobs_the_newest_first(storage: Storage) -> None:
    hourly = RecurringJob.new(
        "hourly", "0 * * * *", "work", misfire="catch_up(4)", now=datetime.now(UTC) - timedelta(hours=6)
    )
    storage.upsert_recurring_job(hourly)
    storage.upsert_recurring_job(RecurringJob.new("rare", "0 0 1 1 *", "work"))
    fired = storage.fire_due_recurring().jobs
    claim = storage.fetch_and_lock_job(fetch())
    assert claim is not None
    storage.finish(claim, Failure(error=NO), retention=KEEP)
    by_hand = [storage.run_recurring_now("hourly"), storage.run_recurring_now("rare")]

    found = storage.newest_jobs_of(["hourly", "rare", "none"], limit=3)

    assert [job.job_id for job in found["hourly"]] == [by_hand[0], fired[3].id, fired[2].id]
    assert found["hourly"][0].fire_at is None
    assert [job.fire_at for job in found["hourly"][1:]] == [
        datetime.fromisoformat(str(job.metadata["fire_at"])) for job in (fired[3], fired[2])
    ]
    assert [job.job_id for job in found["rare"]] == [by_hand[1]]
    assert found["none"] == []
    (oldest,) = (job for job in storage.newest_jobs_of(["hourly"], limit=9)["hourly"] if job.error)
    assert (oldest.job_id, oldest.state) == (claim.job.id, StateName.FAILED)
    assert oldest.error == f"{NO.type}: {NO.message}"
    assert oldest.finished_at is not None
